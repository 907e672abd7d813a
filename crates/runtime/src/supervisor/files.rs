//! What the supervisor leaves in `R/c/<id>`: its socket and two small files that are either old or new, never half.
//! None is synced: a reboot voids them all.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const BACKLOG: i32 = 128;

/// Writes `value` as JSON under its final name in one step.
pub(super) fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).expect("our own documents serialise");
    let temporary = dir.join(format!(".{name}.tmp"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&bytes)?;
    fs::rename(&temporary, dir.join(name))
}

/// The listening `sock`, mode 0600. Whatever was there before goes.
pub(super) fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let _ = fs::remove_file(dir.join("sock"));
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Through the folder's descriptor, because a unix address holds 107 bytes and a run directory may be anywhere.
    let folder = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = format!("/proc/self/fd/{}/sock", folder.as_raw_fd());
    // Nobody else has this process's umask: it has one thread.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?);
    rustix::process::umask(umask);
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
