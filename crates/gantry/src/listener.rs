//! The socket of the Docker API.

use anyhow::{Context, bail};
use rustix::fs::{FileType, Gid, Mode};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 4096;
/// A group file longer than this is not searched further.
const GROUP_FILE_LIMIT: usize = 1 << 20;

/// A listening socket and the file that stands for it.
#[derive(Debug)]
pub struct Listener {
    pub socket: UnixListener,
    place: Place,
}

/// Which file is ours, so that a successor's is not removed.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Listener {
    /// Listens where root, and the group `docker` if there is one, may connect. A socket file that nobody serves is replaced.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let flag = || format!("--docker unix://{}", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => {
                if let Ok(stream) = UnixStream::connect(path) {
                    bail!(
                        "{} is served already by {}; stop that, or choose another path",
                        flag(),
                        holder(&stream)
                    );
                }
                std::fs::remove_file(path)
                    .with_context(|| format!("removing the left-over socket of {}", flag()))?;
            }
            Ok(_) => bail!(
                "{} is not a socket but a file that somebody else made; choose another path",
                flag()
            ),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)
                        .with_context(|| format!("creating the folder of {}", flag()))?;
                }
            }
            Err(e) => return Err(e).with_context(|| format!("looking at {}", flag())),
        }
        let socket = listen_privately(path).with_context(|| format!("listening on {}", flag()))?;
        if let Some(group) = group_id("docker") {
            // In this order: the group's right comes last, when the file already belongs to the right group.
            rustix::fs::chown(path, None, Some(Gid::from_raw(group)))
                .and_then(|()| rustix::fs::chmod(path, Mode::from_raw_mode(0o660)))
                .with_context(|| format!("giving {} to the group docker", flag()))?;
        }
        let meta =
            std::fs::symlink_metadata(path).with_context(|| format!("looking at {}", flag()))?;
        let place = Place {
            path: path.to_owned(),
            device_and_inode: (meta.dev(), meta.ino()),
        };
        Ok(Self { socket, place })
    }

    /// Listens where only root and this user may connect. The caller holds the run directory's lock, so a file that is there is left over.
    pub fn bind_for(path: &Path, uid: u32) -> anyhow::Result<Self> {
        let what = || format!("listening on {}", path.display());
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(what),
            _ => {}
        }
        let socket = listen_privately(path).with_context(what)?;
        rustix::fs::chown(path, Some(rustix::fs::Uid::from_raw(uid)), None).with_context(what)?;
        let meta = std::fs::symlink_metadata(path).with_context(what)?;
        let place = Place {
            path: path.to_owned(),
            device_and_inode: (meta.dev(), meta.ino()),
        };
        Ok(Self { socket, place })
    }

    pub fn into_parts(self) -> (UnixListener, Place) {
        (self.socket, self.place)
    }
}

impl Place {
    /// Removes the socket's file, unless it is another one by now.
    pub fn remove(&self) {
        let still_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_and_inode);
        if still_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Nobody but root can connect, not even for the moment between `bind` and `chmod`: on Linux the mode of the socket's
/// descriptor, taken over by `bind`, decides.
fn listen_privately(path: &Path) -> anyhow::Result<UnixListener> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    debug_assert!(
        rustix::fs::lstat(path)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Socket)
    );
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// The process on the other side, for a person to read.
fn holder(stream: &UnixStream) -> String {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) => {
            let pid = peer.pid.as_raw_nonzero();
            match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(name) => format!("pid {pid} ({})", name.trim()),
                Err(_) => format!("pid {pid}"),
            }
        }
        Err(_) => "another program".to_owned(),
    }
}

/// The number of a group in `/etc/group`. Read by hand: the name service would load libraries for one line.
fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let text = text.get(..GROUP_FILE_LIMIT).unwrap_or(&text);
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        crate::sentence(&Listener::bind(path).unwrap_err())
    }

    #[test]
    fn a_served_socket_names_flag_and_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path).unwrap();
        let text = refusal(&path);
        let me = format!("pid {}", std::process::id());
        assert!(
            text.starts_with("--docker unix://") && text.contains(&me),
            "{text}"
        );
        assert!(path.exists(), "the refused one took the file away");
        let (_socket, place) = first.into_parts();
        place.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_left_over_is_replaced_but_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(Listener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Listener::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(refusal(&path).contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn strangers_may_not_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = Listener::bind(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
    }
}
