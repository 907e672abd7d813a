//! `gantry-runtime spawner`: forks a supervisor per container, so that a start neither forks the big daemon nor execs anything.
//!
//! ```text
//! daemon --packets on fd 0--> spawner --fork--> supervisor <id>
//! ```
//! It holds nothing and may die at any time: its supervisors do not depend on it and the daemon starts another. It ends when the
//! daemon closes the socket.
//!
//! It leaves the daemon's session and, in every hierarchy, its cgroup; every supervisor inherits both. A service manager that
//! ends the daemon's cgroup therefore leaves containers alone.

use crate::proto::packet;
use crate::supervisor;
use gantry_linux::program::{self, Fork, Title};
use gantry_linux::{ipc, mountinfo};
use rustix::fd::OwnedFd;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A packet's payload and header at most.
const PACKET_LIMIT: usize = packet::INLINE_LIMIT + packet::HEADER;

/// Runs the spawner on the packet socket that is its stdin.
pub fn main() -> ExitCode {
    program::close_from(3);
    program::small_heap();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry-runtime spawner: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(2);
    let cgroup = match (arguments.next(), arguments.next()) {
        (Some(flag), Some(cgroup)) if flag == "--cgroup" => cgroup.into_string().ok(),
        _ => None,
    };
    let Some(cgroup) = cgroup.as_deref() else {
        return Err(io::Error::other("usage: spawner --cgroup PATH"));
    };
    let socket = take_stdin()?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    std::env::set_current_dir("/")?;
    // Fails when we are a group leader, which a child never is.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    program::ignore_children();
    let title = Title::find().ok();
    if let Some(title) = &title {
        let _ = title.set(&["gantry-runtime", "spawner", "--cgroup", cgroup]);
    }
    let _ = rustix::thread::set_name(c"gantry-spawner");
    for hierarchy in hierarchies(&mountinfo::read()?) {
        // A hierarchy that refuses (read-only, delegated elsewhere) is one in which supervisors stay with the daemon.
        let _ = enter(&hierarchy, cgroup);
    }
    serve(socket, title)
}

/// The socket, and `/dev/null` in its place.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// Descriptors that came ahead of the packet they belong to.
#[derive(Default)]
struct Ahead {
    sequence: u32,
    descriptors: Vec<OwnedFd>,
}

fn serve(socket: OwnedFd, title: Option<Title>) -> io::Result<()> {
    let mut ahead = Ahead::default();
    loop {
        let length = match ipc::peek_length(&socket) {
            Ok(0) => return Ok(()),
            Ok(length) => length.min(PACKET_LIMIT),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let mut buffer = vec![0; length];
        // A packet that cannot be received whole is dropped with its descriptors: the daemon sees its control connection close.
        let Ok((length, descriptors)) = ipc::receive(&socket, &mut buffer) else {
            continue;
        };
        buffer.truncate(length);
        let Some((header, _)) = buffer.split_first_chunk::<{ packet::HEADER }>() else {
            continue;
        };
        let [tag, sequence @ ..] = *header;
        let sequence = u32::from_le_bytes(sequence);
        if ahead.sequence != sequence {
            // A spawn whose sender gave up half-way.
            ahead = Ahead {
                sequence,
                descriptors: Vec::new(),
            };
        }
        ahead.descriptors.extend(descriptors);
        if ahead.descriptors.len() > packet::DESCRIPTORS_LIMIT {
            ahead = Ahead::default();
        }
        if tag == packet::SPAWN || tag == packet::SPAWN_IN_MEMFD {
            let descriptors = std::mem::take(&mut ahead.descriptors);
            // In the parent everything that belongs to the child is closed at the end of this round.
            if let Fork::Child = program::fork()? {
                program::default_children();
                // Else messages to a dead spawner would find an open socket here.
                drop(socket);
                become_supervisor(tag, buffer, descriptors, title);
            }
        }
    }
}

/// Never returns: the child of the fork is the supervisor for the rest of its life.
fn become_supervisor(
    tag: u8,
    mut message: Vec<u8>,
    mut descriptors: Vec<OwnedFd>,
    title: Option<Title>,
) -> ! {
    if tag == packet::SPAWN_IN_MEMFD {
        message = descriptors.pop().map(read_memfd).unwrap_or_default();
    } else {
        message.drain(..packet::HEADER);
    }
    supervisor::run(message, descriptors, title);
    #[expect(
        clippy::exit,
        reason = "a forked child must not return into the spawner's loop"
    )]
    std::process::exit(0)
}

fn read_memfd(memfd: OwnedFd) -> Vec<u8> {
    let file = File::from(memfd);
    let mut bytes = Vec::new();
    let whole = io::Seek::rewind(&mut &file).and_then(|()| {
        (&file)
            .take(packet::SPAWN_LIMIT as u64)
            .read_to_end(&mut bytes)
    });
    whole.map_or_else(|_| Vec::new(), |_| bytes)
}

/// A mounted cgroup hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
    cpuset: bool,
}

fn hierarchies(mounts: &[mountinfo::Entry]) -> Vec<Hierarchy> {
    let cgroups = mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup" || mount.kind == "cgroup2");
    cgroups
        .map(|mount| Hierarchy {
            mount: mount.place.clone(),
            v2: mount.kind == "cgroup2",
            cpuset: mount.has_option("cpuset"),
        })
        .collect()
}

/// Moves this process. In a v1 hierarchy by `tasks`, which for one thread takes no lock that the whole kernel shares.
fn enter(hierarchy: &Hierarchy, cgroup: &str) -> io::Result<()> {
    let mut dir = hierarchy.mount.clone();
    for part in Path::new(cgroup).components() {
        let std::path::Component::Normal(part) = part else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = dir.clone();
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        if hierarchy.cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // cpuset takes no process before it has CPUs and memory, and a new one has none.
                if fs::read_to_string(dir.join(file))?.trim().is_empty() {
                    fs::write(dir.join(file), fs::read(parent.join(file))?)?;
                }
            }
        }
    }
    let file = if hierarchy.v2 {
        "cgroup.procs"
    } else {
        "tasks"
    };
    fs::write(dir.join(file), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = hierarchies(&mountinfo::parse(table))
            .into_iter()
            .map(|h| (h.mount.display().to_string(), h.v2, h.cpuset))
            .collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpuset".into(), false, true),
                ("/sys/fs/cgroup/unified".into(), true, false),
            ]
        );
    }
}
