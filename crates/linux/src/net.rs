//! Small things about interfaces and settings of the network namespace that the calling thread is in.

use rustix::fd::BorrowedFd;
use std::fs;
use std::io;

/// Reads a number under `/proc/sys/net`, such as `ipv4/ip_forward`. The thread's own namespace answers.
pub fn sysctl(name: &str) -> io::Result<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}"))?;
    Ok(text.trim().to_owned())
}

/// Writes a value under `/proc/sys/net` when it is not there already. `true` when it was changed.
pub fn set_sysctl(name: &str, value: &str) -> io::Result<bool> {
    if sysctl(name)? == value {
        return Ok(false);
    }
    // Opened for writing without creation: these files exist or the setting does not.
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/sys/net/{name}"))?
        .write_all(value.as_bytes())?;
    Ok(true)
}

/// Runs `work` on a thread of its own in a new, empty network namespace, which ends with it unless something else holds it.
pub fn in_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(
        || {
            // SAFETY: changes the network namespace of the calling thread alone, which was made for this and ends afterwards.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            if result == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        },
        work,
    )
}

/// Runs `work` on a thread of its own in the network namespace that `netns` (an open `/proc/<pid>/ns/net`) refers to.
pub fn in_namespace<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    on_thread(
        || {
            rustix::thread::move_into_link_name_space(
                netns,
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .map_err(io::Error::from)
        },
        work,
    )
}

fn on_thread<T: Send>(
    enter: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter().map(|()| work()));
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
