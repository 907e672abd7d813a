//! Pseudo terminals, and the size of any terminal.

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A new terminal of the devpts whose `ptmx` is open as `ptmx` (a fresh open makes the terminal): its two ends.
pub struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

impl Terminal {
    /// Makes a terminal from a freshly opened `ptmx`, which must be one of a devpts and nothing that a container put there.
    pub fn from_ptmx(ptmx: OwnedFd, size: Option<(u16, u16)>) -> io::Result<Self> {
        let devpts = rustix::fs::fstatfs(&ptmx)?.f_type as u64 == DEVPTS_MAGIC;
        let device = rustix::fs::fstat(&ptmx)?.st_rdev;
        if !devpts || device != rustix::fs::makedev(5, 2) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        rustix::pty::unlockpt(&ptmx)?;
        // By descriptor and not by the name in /dev/pts, which could be anything by now.
        let slave = rustix::pty::ioctl_tiocgptpeer(
            &ptmx,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        if let Some((columns, rows)) = size {
            set_size(&ptmx, columns, rows)?;
        }
        Ok(Self {
            master: ptmx,
            slave,
        })
    }

    /// Makes a terminal of the host's devpts.
    pub fn of_host(size: Option<(u16, u16)>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let ptmx = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
        Self::from_ptmx(ptmx, size)
    }
}

pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Columns and rows.
pub fn size(terminal: impl AsFd) -> io::Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal)?;
    Ok((size.ws_col, size.ws_row))
}

/// Starts a session of our own with `terminal` as its controlling terminal.
pub fn become_session_of(terminal: impl AsFd) -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}
