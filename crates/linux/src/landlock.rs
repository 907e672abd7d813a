//! A process takes the file system, new TCP sockets and other processes away from itself, for good.
//!
//! Spec: landlock(7). Kernels without it, and rights that a kernel does not know yet, are left out: landlock is the last of several walls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// By version of the interface: rights on files, on TCP ports, scopes. What is handled and not allowed is denied.
const VERSIONS: [(u64, u64, u64); 7] = [
    (0, 0, 0),
    ((1 << 13) - 1, 0, 0),
    ((1 << 14) - 1, 0, 0),
    ((1 << 15) - 1, 0, 0),
    ((1 << 15) - 1, 0b11, 0),
    ((1 << 16) - 1, 0b11, 0),
    ((1 << 16) - 1, 0b11, 0b11),
];

const QUERY_VERSION: u32 = 1;

#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// Denies everything that can be denied: opening, making and executing files, binding and connecting TCP, abstract sockets of and signals
/// to others. What is open stays usable, and sockets in the file system can be connected to. Needs no_new_privs. Answers the version of the interface
/// that was there; 0 when there is none.
pub fn deny_everything() -> io::Result<u32> {
    // SAFETY: a null attribute of size 0 with this flag only asks for the version.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Ruleset>(),
            0,
            QUERY_VERSION,
        )
    };
    let Ok(version) = usize::try_from(version) else {
        // ENOSYS, or EOPNOTSUPP when it was switched off at boot.
        return Ok(0);
    };
    let (files, network, scopes) = VERSIONS[version.min(VERSIONS.len() - 1)];
    let ruleset = Ruleset {
        files,
        network,
        scopes,
    };
    let size = match version {
        0..=3 => 8,
        4..=5 => 16,
        _ => 24,
    };
    // SAFETY: the structure lives through the call and `size` is not more than it has; the kernel answers a new descriptor.
    let fd = unsafe {
        let fd = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size,
            0,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    // SAFETY: only integers; the descriptor is open.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) };
    match result {
        0 => Ok(version as u32),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};

    #[test]
    fn nothing_can_be_opened_any_more() {
        // It goes for the calling thread, which ends here.
        let checked = std::thread::spawn(|| {
            crate::process::set_no_new_privileges().unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut open = std::fs::File::open("/etc/passwd").unwrap();
            let version = deny_everything().unwrap();
            if version == 0 {
                eprintln!("SKIPPED: this kernel has no landlock");
                return;
            }
            let denied = |what: &str, error: Option<io::Error>| {
                assert_eq!(
                    error.map(|e| e.kind()),
                    Some(ErrorKind::PermissionDenied),
                    "{what}"
                );
            };
            denied("reading", std::fs::File::open("/etc/passwd").err());
            denied("listing", std::fs::read_dir("/").err());
            denied("making", std::fs::write("/tmp/gantry-landlock", "").err());
            denied(
                "executing",
                std::process::Command::new("/bin/true").spawn().err(),
            );
            if version >= 4 {
                denied("binding", std::net::TcpListener::bind("127.0.0.1:0").err());
                let address = listener.local_addr().unwrap();
                denied("connecting", std::net::TcpStream::connect(address).err());
            }
            // What is open stays usable.
            assert!(open.read(&mut [0; 1]).is_ok());
            let (mut a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
            a.write_all(b"x").unwrap();
            b.read_exact(&mut [0; 1]).unwrap();
        });
        checked.join().unwrap();
    }
}
