//! Installs a finished seccomp filter on this process.
//!
//! Spec: seccomp(2).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Bytes of one instruction (`struct sock_filter`).
pub const INSTRUCTION: usize = 8;

/// The kernel's limit (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

pub const FLAG_TSYNC: u32 = 1;
pub const FLAG_LOG: u32 = 2;
pub const FLAG_SPEC_ALLOW: u32 = 4;
pub const FLAG_NEW_LISTENER: u32 = 8;
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 32;

/// Installs `program` (an array of `struct sock_filter`). With [`FLAG_NEW_LISTENER`] the descriptor that notifications arrive on comes back.
///
/// Needs no_new_privs or CAP_SYS_ADMIN.
pub fn install(program: &[u8], flags: u32) -> io::Result<Option<OwnedFd>> {
    let count = program.len() / INSTRUCTION;
    if count == 0 || count > MAX_INSTRUCTIONS || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A Vec of structs and not the bytes themselves, for their alignment.
    let mut filters: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let fprog = libc::sock_fprog {
        len: count as libc::c_ushort,
        filter: filters.as_mut_ptr(),
    };
    // SAFETY: fprog points at `count` instructions that live through the call; the kernel copies and verifies them.
    // rustix has no seccomp(2).
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const fprog,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        fd if flags & FLAG_NEW_LISTENER != 0 => {
            // SAFETY: with this flag the result is a new descriptor of ours.
            let listener = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            Ok(Some(listener))
        }
        0 => Ok(None),
        // With TSYNC: the thread that could not be synchronised.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
