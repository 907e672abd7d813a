//! A process in the foreground: its terminal behind ours, our signals passed on, its end.

use super::Failure;
use gantry_linux::{ipc, process, program, pty};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::termios::{OptionalActions, Termios};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

/// Sends a descriptor to whoever listens at `path`, with the text that runc sends along.
pub(super) fn hand_over(path: &str, text: &str, descriptor: &OwnedFd) -> Result<(), Failure> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io::Error::from)?;
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    rustix::net::connect(&socket, &address).map_err(|e| {
        let e = crate::launch::errno_text(&e.into());
        Failure::new(format!("dial unix {path}: connect: {e}"))
    })?;
    ipc::send(
        &socket,
        &[IoSlice::new(text.as_bytes())],
        &[descriptor.as_fd()],
    )?;
    Ok(())
}

/// The text that goes with a terminal's master.
pub(super) const CONSOLE: &str = "/dev/pts/ptmx";

/// Columns and rows of the terminal that we have, if we have one.
pub(super) fn own_size() -> Option<(u16, u16)> {
    pty::size(rustix::stdio::stdin()).ok()
}

/// How a child ended, as a shell says it.
pub(super) fn exit_code(pidfd: &OwnedFd) -> Result<u8, Failure> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let code = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, Some(signal)) => 128 + signal,
                    (None, None) => 255,
                };
                return Ok(code as u8);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

/// Everything but what cannot be caught, what tells of children (their ends are read from the pidfd, so that none can be missed),
/// and what a fault of our own raises.
const FORWARDED: [i32; 24] = [
    1, 2, 3, 6, 10, 12, 13, 14, 15, 16, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 34, 35,
];
const SIGWINCH: i32 = 28;
const SIGURG: i32 = 23;
const BUFFER: usize = 32 << 10;

/// Catches signals from its making on.
#[derive(Debug)]
pub(super) struct Forwarder {
    signals: OwnedFd,
}

/// Our own terminal in raw mode, set back when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

impl Forwarder {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            signals: process::signal_descriptor(&FORWARDED)?,
        })
    }

    /// Passes on signals and, with a terminal, bytes, until the process has ended and its last output is out.
    pub(super) fn until_exit(
        &self,
        pidfd: &OwnedFd,
        console: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        let raw = console.as_ref().and_then(|_| Raw::enter());
        let mut input_open = console.is_some();
        let mut output_open = console.is_some();
        loop {
            let mut polls = vec![
                PollFd::new(pidfd, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            let stdin = rustix::stdio::stdin();
            if let Some(console) = console.as_ref().filter(|_| output_open) {
                polls.push(PollFd::new(console, PollFlags::IN));
                if input_open {
                    polls.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
                }
            }
            match rustix::event::poll(&mut polls, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            let is_ready = |index: usize| polls.get(index).is_some_and(|p| !p.revents().is_empty());
            let (ended, signal, output, input) =
                (is_ready(0), is_ready(1), is_ready(2), is_ready(3));
            drop(polls);
            if signal {
                self.pass_on(pidfd, console.as_ref())?;
            }
            if let Some(console) = &console {
                if input {
                    input_open = copy(rustix::stdio::stdin(), console);
                    if !input_open {
                        // The end of our input is the terminal's end-of-file character, the only way to tell it.
                        let _ = rustix::io::write(console, &[4]);
                    }
                }
                if output {
                    output_open = copy(console, rustix::stdio::stdout());
                    continue;
                }
            }
            if ended {
                break;
            }
        }
        drop(raw);
        Ok(())
    }

    fn pass_on(&self, pidfd: &OwnedFd, console: Option<&OwnedFd>) -> Result<(), Failure> {
        while let Some(signal) = process::read_signal(&self.signals)? {
            match (signal, console) {
                (SIGWINCH, Some(console)) => {
                    if let Some((columns, rows)) = own_size() {
                        let _ = pty::set_size(console, columns, rows);
                    }
                }
                (SIGURG, _) => {}
                // It may just have ended.
                _ => drop(program::send_signal(pidfd.as_fd(), signal)),
            }
        }
        Ok(())
    }
}

/// One buffer from one side to the other; false at the end.
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = vec![0; BUFFER];
    let mut rest = match rustix::io::read(from, buffer.as_mut_slice()) {
        Ok(0) | Err(rustix::io::Errno::IO) => return false,
        Ok(length) => &buffer[..length],
        Err(_) => return true,
    };
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
    true
}
