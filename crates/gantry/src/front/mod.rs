//! `gantry front`: every TCP listener, in a process that may do nothing else.
//!
//! ```text
//! client ──TCP, TLS──► gantry front ──R/front.sock, R/registry.sock──► gantry up (root, unix sockets only)
//! kubectl ──TCP──────►              ──R/kube.sock────────────────────► its API server, where TLS ends
//!                      own uid, no capabilities, no_new_privs, landlock
//! ```
//! The node binds the listeners (so that a refusal names flag and holder), reads keys and certificates, hands both over one control
//! socket and keeps none; the front's process is [`child`]. When it dies the node binds again and makes a new one; when the
//! node dies the control socket ends, and the front with it. When keys or certificates change, the node reads them again and hands
//! them over once more: who connects from then on sees the new ones, and nobody is hung up on.
//!
//! The bytes are passed on as they are: the same face answers them as on the local socket, so there is one place that decides.

pub mod child;

use anyhow::{Context, bail};
use gantry_linux::ipc;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Where the node listens for its front, below `R`.
pub const SOCKET: &str = "front.sock";
/// The same for the registry's clients.
pub const REGISTRY_SOCKET: &str = "registry.sock";
/// The same for clients of the Kubernetes API. Their TLS ends in the node: their certificates say who they are.
pub const KUBE_SOCKET: &str = "kube.sock";
/// A key or a chain of certificates longer than this is refused: all of them travel in one message.
const PEM_LIMIT: u64 = 48 << 10;
/// One message on the control socket.
const MESSAGE_LIMIT: usize = 192 << 10;
/// How long a front may take to serve.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Between the death of a front and its successor, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A front that lived this long has not died of what killed its predecessors.
const HEALTHY: Duration = Duration::from_secs(30);
/// How often the files of keys and certificates are looked at. Not by inotify: they may be links that are changed somewhere else.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// systemd's range for users that exist only while something runs.
const UIDS: std::ops::Range<u32> = 61_184..65_520;
const READY: u8 = b'R';
const ERROR: u8 = b'E';
const LOG: u8 = b'L';
const CHANGED: u8 = b'C';

/// What shall be served on TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub addresses: Vec<SocketAddr>,
    pub registry: Option<Address>,
    pub kube: Option<Address>,
    pub tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub address: SocketAddr,
    /// Somebody asked for it, so it must be had. The default gives way to another program on its port.
    pub typed: bool,
}

/// What a listener's clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Face {
    Docker,
    /// With TLS beyond loopback.
    Registry {
        tls: bool,
    },
    Kube,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate of this authority.
    pub authority: Option<PathBuf>,
}

/// The same as text, as the front gets it.
#[derive(Debug, Serialize, Deserialize)]
struct Tls {
    certificate: String,
    key: String,
    authority: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    tls: Option<Tls>,
    /// One for each listener that comes along.
    faces: Vec<Face>,
}

/// Listeners that are bound and what a front needs to serve them.
#[derive(Debug)]
pub struct Front {
    /// Bound, and not handed over yet.
    listeners: Option<Vec<TcpListener>>,
    addresses: Vec<SocketAddr>,
    faces: Vec<Face>,
    /// Default listeners that are off, with the reason.
    pub given_way: Vec<(&'static str, String)>,
    message: Vec<u8>,
    files: Option<TlsFiles>,
    /// What the files looked like before they were read.
    seen: Vec<Look>,
    run_dir: PathBuf,
    pub uid: u32,
}

impl Front {
    /// Binds and reads everything that only the node may. `None` when nothing is wanted.
    pub fn prepare(
        wanted: &Wanted,
        run_dir: &Path,
        instance: &str,
    ) -> anyhow::Result<Option<Self>> {
        if wanted.addresses.is_empty() && wanted.registry.is_none() && wanted.kube.is_none() {
            return Ok(None);
        }
        let seen = wanted.tls.as_ref().map(look).unwrap_or_default();
        let tls = wanted.tls.as_ref().map(read_tls).transpose()?;
        // Before any client is kept waiting for a mistake in a file.
        child::server_config(tls.as_ref())?;
        let mut listeners = Vec::new();
        let mut faces = Vec::new();
        for address in &wanted.addresses {
            listeners.push(bind(*address, Face::Docker)?);
            faces.push(Face::Docker);
        }
        let mut given_way = Vec::new();
        let registry = wanted.registry.map(|registry| {
            let tls = !registry.address.ip().is_loopback();
            (registry, Face::Registry { tls })
        });
        let kube = wanted.kube.map(|kube| (kube, Face::Kube));
        for (wanted, face) in registry.into_iter().chain(kube) {
            match bind(wanted.address, face) {
                Ok(listener) => {
                    listeners.push(listener);
                    faces.push(face);
                }
                Err(error) if !wanted.typed && is_taken(&error) => {
                    let name = if face == Face::Kube {
                        "kube"
                    } else {
                        "registry"
                    };
                    given_way.push((name, crate::sentence(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>();
        Ok(Some(Self {
            listeners: Some(listeners),
            addresses: addresses.context("reading a listener's address")?,
            message: serde_json::to_vec(&Message {
                tls,
                faces: faces.clone(),
            })
            .expect("strings serialise"),
            faces,
            given_way,
            files: wanted.tls.clone(),
            seen,
            run_dir: run_dir.to_owned(),
            uid: uid_of(instance),
        }))
    }

    /// Where it really listens, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<String> {
        let docker = self.listeners().filter(|(face, _)| *face == Face::Docker);
        docker
            .map(|(_, address)| format!("tcp://{address}"))
            .collect()
    }

    /// The same for the registry; `None` when it is off.
    pub fn registry(&self) -> Option<SocketAddr> {
        self.listeners()
            .find(|(face, _)| matches!(face, Face::Registry { .. }))
            .map(|(_, address)| address)
    }

    /// The same for the Kubernetes API.
    pub fn kube(&self) -> Option<SocketAddr> {
        self.listeners()
            .find(|(face, _)| *face == Face::Kube)
            .map(|(_, address)| address)
    }

    fn listeners(&self) -> impl Iterator<Item = (Face, SocketAddr)> {
        self.faces
            .iter()
            .copied()
            .zip(self.addresses.iter().copied())
    }

    /// Nothing is listened on: the default gave way.
    pub fn is_empty(&self) -> bool {
        self.faces.is_empty()
    }

    /// A front that serves. It alone has the listeners then.
    pub async fn start(&mut self) -> anyhow::Result<Running> {
        let listeners = match self.listeners.take() {
            Some(listeners) => listeners,
            None => self
                .listeners()
                .map(|(face, address)| bind(address, face))
                .collect::<Result<_, _>>()?,
        };
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context("making the front's control socket")?;
        let child = Command::new("/proc/self/exe")
            .arg0("gantry")
            .args(["front", &self.uid.to_string()])
            .env_clear()
            .current_dir(&self.run_dir)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the front")?;
        let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        ipc::send(&ours, &[IoSlice::new(&self.message)], &descriptors)
            .context("handing the listeners to the front")?;
        drop(listeners);
        let control = std::os::unix::net::UnixStream::from(ours);
        let mut running = control
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(control))
            .map(|control| Running { child, control })
            .context("watching the front")?;
        match tokio::time::timeout(START_LIMIT, running.next()).await {
            Ok(Some((READY, _))) => Ok(running),
            Ok(Some((ERROR, text))) => bail!("the front refused: {text}"),
            Ok(_) => bail!("the front ended before it served"),
            Err(_) => bail!("the front did not serve within {} s", START_LIMIT.as_secs()),
        }
    }

    /// Replaces fronts that die, until `stop` turns true.
    pub async fn keep(mut self, first: Running, mut stop: watch::Receiver<bool>) {
        let mut running = Some(first);
        let mut pause = PAUSES.0;
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        tokio::pin!(stopped);
        loop {
            let began = std::time::Instant::now();
            if let Some(front) = running.take() {
                tokio::select! {
                    () = self.until_death(front) => {}
                    () = &mut stopped => return,
                }
                tracing::warn!("the front died; clients on TCP connect again");
            }
            if began.elapsed() > HEALTHY {
                pause = PAUSES.0;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut stopped => return,
            }
            pause = (pause * 2).min(PAUSES.1);
            match self.start().await {
                Ok(front) => running = Some(front),
                Err(error) => tracing::error!("{}", crate::sentence(&error)),
            }
        }
    }

    async fn until_death(&mut self, mut front: Running) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = front.next() => match message {
                    None => break,
                    Some((LOG, text)) => tracing::warn!("front: {}", text.escape_debug()),
                    Some((CHANGED, _)) => tracing::info!("the front serves with the changed keys and certificates"),
                    Some(_) => {}
                },
                _ = looks.tick(), if self.files.is_some() => self.hand_over_changes(&front),
            }
        }
        let _ = front.child.kill().await;
    }

    /// Files that cannot be used, half of a new pair perhaps, change nothing.
    fn hand_over_changes(&mut self, front: &Running) {
        let Some(files) = &self.files else {
            return;
        };
        let now = look(files);
        if now == self.seen {
            return;
        }
        let read = read_tls(files).and_then(|tls| {
            child::server_config(Some(&tls))?;
            let (tls, faces) = (Some(tls), self.faces.clone());
            Ok(serde_json::to_vec(&Message { tls, faces }).expect("strings serialise"))
        });
        match read {
            Ok(message) => {
                match ipc::send(&front.control, &[IoSlice::new(&message)], &[]) {
                    // For this front and those after it.
                    Ok(_) => self.message = message,
                    // Its queue is full; the next look is soon.
                    Err(_) => return,
                }
            }
            Err(error) => tracing::error!(
                "keys and certificates changed and cannot be used, the front keeps those it has: {}",
                crate::sentence(&error)
            ),
        }
        self.seen = now;
    }
}

/// A front's process. It ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// A packet socket: one read is one message.
    control: UnixStream,
}

impl Running {
    /// The next message; `None` when the front is gone.
    async fn next(&mut self) -> Option<(u8, String)> {
        let mut buffer = [0; 4096];
        match self.control.read(&mut buffer).await {
            Ok(0) | Err(_) => None,
            Ok(length) => Some((
                buffer[0],
                String::from_utf8_lossy(&buffer[1..length]).into_owned(),
            )),
        }
    }
}

/// Device, inode, size and time of change in seconds and nanoseconds; `None` for what is not there.
type Look = Option<(u64, u64, u64, i64, i64)>;

fn look(files: &TlsFiles) -> Vec<Look> {
    use std::os::unix::fs::MetadataExt;
    [&files.certificate, &files.key]
        .into_iter()
        .chain(&files.authority)
        .map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            let (second, nanosecond) = (meta.ctime(), meta.ctime_nsec());
            Some((meta.dev(), meta.ino(), meta.size(), second, nanosecond))
        })
        .collect()
}

fn read_tls(files: &TlsFiles) -> anyhow::Result<Tls> {
    let read = |flag: &str, path: &Path| {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(PEM_LIMIT + 1).read_to_string(&mut text))
            .with_context(|| format!("reading --{flag} {}", path.display()))?;
        if text.len() as u64 > PEM_LIMIT {
            bail!(
                "--{flag} {} is longer than {PEM_LIMIT} bytes",
                path.display()
            );
        }
        Ok(text)
    };
    Ok(Tls {
        certificate: read("tlscert", &files.certificate)?,
        key: read("tlskey", &files.key)?,
        authority: files
            .authority
            .as_ref()
            .map(|path| read("tlscacert", path))
            .transpose()?,
    })
}

fn is_taken(error: &anyhow::Error) -> bool {
    let source = error.downcast_ref::<std::io::Error>();
    source.is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
}

fn bind(address: SocketAddr, face: Face) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let who = match error.kind() {
            std::io::ErrorKind::AddrInUse => holder(address).unwrap_or_default(),
            _ => String::new(),
        };
        let flag = match face {
            Face::Docker => "--docker tcp://",
            Face::Registry { .. } => "--registry ",
            Face::Kube => "--kube ",
        };
        anyhow::Error::new(error).context(format!("listening on {flag}{address}{who}"))
    })?;
    listener.set_nonblocking(true).context("a listener")?;
    Ok(listener)
}

/// Who listens on the port, for a person to read.
fn holder(address: SocketAddr) -> Option<String> {
    let port = format!(":{:04X}", address.port());
    let mut inode = None;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).ok()?;
        inode = inode.or_else(|| {
            text.lines().find_map(|line| {
                let fields: Vec<_> = line.split_ascii_whitespace().collect();
                let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
                listens.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
            })
        });
    }
    let inode = inode?;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        // `self` and others are there too.
        if !process
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            continue;
        }
        for fd in std::fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if std::fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == inode.as_str()) {
                let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
                let pid = process.file_name().to_string_lossy().into_owned();
                return Some(format!(", which pid {pid} ({}) holds", name.trim()));
            }
        }
    }
    None
}

/// A user that owns nothing, the same for an instance each time, and none that this machine's own file has.
fn uid_of(instance: &str) -> u32 {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let taken = |uid: u32| {
        let uid = uid.to_string();
        passwd
            .lines()
            .any(|line| line.split(':').nth(2) == Some(&uid))
    };
    // FNV-1a.
    let hash = instance
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let count = u64::from(UIDS.end - UIDS.start);
    (0..count)
        .map(|step| UIDS.start + ((hash + step) % count) as u32)
        .find(|uid| !taken(*uid))
        .unwrap_or(UIDS.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_keeps_its_own_user() {
        let first = uid_of("gantry");
        assert!(UIDS.contains(&first));
        assert_eq!(first, uid_of("gantry"));
        assert_ne!(first, uid_of("gantry-00000001"));
    }

    #[test]
    fn a_taken_port_names_flag_and_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refusal = crate::sentence(&bind(address, Face::Docker).unwrap_err());
        let expected = format!(
            "listening on --docker tcp://{address}, which pid {} (",
            std::process::id()
        );
        assert!(refusal.starts_with(&expected), "{refusal}");
    }
}
