//! Namespaces: born with a process (clone3), joined (setns), left (unshare).
//!
//! Spec: clone(2), setns(2), namespaces(7).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
pub const NEWTIME: u64 = 0x80;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// A child with its own copy of our memory, born into new namespaces (`NEW…` bits) and into a v2 cgroup (an open directory).
///
/// # Panics
/// When this process has more than one thread: the child could not even allocate.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    assert_eq!(threads()?, 1, "clone3 needs a single-threaded process");
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all fields of clone_args are integers, for which zero is "not wanted".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces | libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and without a stack the child continues here on a copy of this stack, as after fork; this process has a
    // single thread, so no lock is held by somebody who is missing in the child. `arguments` and `pidfd` live through the call.
    // Neither std nor rustix has clone3.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: pid as i32,
            // SAFETY: the kernel has just stored a new descriptor there, which nobody else knows.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

fn threads() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // One subdirectory per thread, so the link count tells without reading the directory.
    Ok(std::fs::metadata("/proc/self/task")?
        .nlink()
        .saturating_sub(2))
}

/// Joins the namespace that `fd` stands for, or with a pidfd all those in `kinds` of that process.
pub fn setns(fd: impl AsFd, kinds: u64) -> io::Result<()> {
    // SAFETY: only integers; the descriptor is open for the call. A change of namespaces cannot break memory safety.
    match unsafe { libc::setns(fd.as_fd().as_raw_fd(), kinds as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this process into new namespaces.
pub fn unshare(kinds: u64) -> io::Result<()> {
    // SAFETY: only integers; callers pass namespace bits, never CLONE_FILES or CLONE_VM, so nothing that std relies on is split.
    match unsafe { libc::unshare(kinds as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets `lo` of this process's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: an ifreq of zeroes is valid; the name is shorter than the field and ends with a zero; the kernel reads and writes only
    // this struct, which lives through both calls.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        ) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
