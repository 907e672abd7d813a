//! The running program as a process among others: a sealed copy of it, its visible name, its forks, its signals and its heap.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::ffi::c_int;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Puts a program into memory that nobody can ever change, ready to be exec'd through `/proc/self/fd`.
/// A container that gets hold of `/proc/<pid>/exe` of a process made from it can read it, not write it (CVE-2019-5736).
pub fn sealed_copy(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Before 6.3 the kernel does not know the wish to be executable; every memfd was.
    let memfd =
        memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(name, flags))?;
    let mut file = fs::File::from(memfd);
    file.write_all(bytes)?;
    let memfd = OwnedFd::from(file);
    fcntl_add_seals(
        &memfd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(memfd)
}

/// Where the kernel reads the command line of this process from. Stays the same in forks.
#[derive(Debug, Clone, Copy)]
pub struct Title {
    start: u64,
    length: usize,
}

impl Title {
    /// Finds the room that the command line of this process had at exec.
    pub fn find() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        // proc(5): fields 48 and 49 are arg_start and arg_end; field 3 is the first after the name's bracket.
        let mut fields = after_name(&stat)?.split_ascii_whitespace().skip(45);
        let mut next = || fields.next().and_then(|f| f.parse::<u64>().ok());
        match (next(), next()) {
            (Some(start), Some(end)) if start != 0 && end > start => Ok(Self {
                start,
                length: (end - start) as usize,
            }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Shows `arguments` as this process's command line, cut where the room ends. `prctl(PR_SET_MM)` could move the area but needs
    /// CAP_SYS_RESOURCE; writing through `/proc/self/mem` needs nothing.
    pub fn set(&self, arguments: &[&str]) -> io::Result<()> {
        let mut area = arguments.join("\0").into_bytes();
        // The last byte stays zero, else the kernel takes the environment for a continuation.
        area.resize(self.length - 1, 0);
        area.push(0);
        let memory = fs::OpenOptions::new().write(true).open("/proc/self/mem")?;
        memory.write_all_at(&area, self.start)
    }
}

/// When a process was born, in clock ticks since boot (field 22 of `/proc/<pid>/stat`): with the pid it names a process for good.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    after_name(&stat)?
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The fields from the third on; the second is a name in brackets that may hold anything.
fn after_name(stat: &str) -> io::Result<&str> {
    stat.rsplit_once(')')
        .map(|(_, rest)| rest)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks this process. Only for a program that has one thread: the child of a threaded one could not even allocate.
///
/// # Panics
/// When this process has more than one thread.
pub fn fork() -> io::Result<Fork> {
    // One subdirectory per thread, so the link count tells without reading the directory.
    let threads = fs::metadata("/proc/self/task")?.nlink().saturating_sub(2);
    assert_eq!(threads, 1, "fork needs a single-threaded process");
    // SAFETY: with a single thread no lock can be held by somebody who does not exist in the child, so the child may go on as
    // any program does. There is no safe way in std or rustix.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Closes every descriptor from `first` on.
///
/// Only for the first lines of a program, before it owns anything: it closes what a parent forgot to keep from us.
pub fn close_from(first: u32) {
    // SAFETY: no memory is touched. Called before any descriptor was opened by this program, so no owner loses its own;
    // rustix has close_range only as an unsafe function too.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

extern "C" fn nothing(_: c_int) {}

/// Makes the given signals harmless here without ignoring them: unlike `SIG_IGN` a handler is gone after exec, so that
/// no program that is exec'd later inherits it.
pub fn swallow_signals(signals: &[c_int]) {
    for &signal in signals {
        set_action(signal, nothing as *const () as libc::sighandler_t);
    }
}

/// Children need not be waited for; must be undone in a fork that wants to know how its own children end.
pub fn ignore_children() {
    set_action(libc::SIGCHLD, libc::SIG_IGN);
}

pub fn default_children() {
    set_action(libc::SIGCHLD, libc::SIG_DFL);
}

fn set_action(signal: c_int, handler: libc::sighandler_t) {
    // SAFETY: a zeroed sigaction is a valid one (no flags, empty mask); the handler is SIG_IGN, SIG_DFL or a function that touches
    // nothing, so it is safe at any point of the program. std and rustix offer no safe way to set a disposition.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Sends any signal, real-time ones too (rustix knows only the named ones).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; a null siginfo asks the kernel to fill it as kill(2) does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the allocator up for a small process that works in bursts: big buffers are mapped and go back at once.
pub fn small_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator; called while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives free heap back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only returns free memory; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_name_a_process() {
        let me = std::process::id() as i32;
        assert_eq!(start_ticks(me).unwrap(), start_ticks(me).unwrap());
        assert!(start_ticks(me).unwrap() >= start_ticks(1).unwrap());
    }

    #[test]
    fn a_sealed_copy_runs_and_cannot_be_written() {
        let program = fs::read("/bin/true").unwrap();
        let copy = sealed_copy("true", &program).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert!(
            std::process::Command::new(&path)
                .status()
                .unwrap()
                .success()
        );
        assert!(
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut f| f.write_all(b"x"))
                .is_err()
        );
    }
}
