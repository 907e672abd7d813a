//! What a client offers over its session: files, secrets, agents, credentials.
//!
//! Invariant: what the client sends of its files is made only inside the folder for them, name by name, links never followed.

use super::{Builds, Joined, MESSAGE_LIMIT};
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, secrets_client::SecretsClient,
};
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, auth_client::AuthClient, file_sync_client::FileSyncClient,
};
use bollard_buildkit_proto::moby::sshforward::v1::{
    BytesMessage, CheckAgentRequest, ssh_client::SshClient,
};
use futures_util::future::BoxFuture;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_build::{Client, Folder, SshSocket, client::MAIN};
use gantry_image::Credentials;
use gantry_image::steps::Workspace;
use gantry_linux::dirfd::{self, Symlinks};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Files of one context at most.
const FILE_LIMIT: usize = 4_000_000;
/// Requests for files that are on their way; more wait.
const REQUESTS: usize = 256;
/// Connections to one forwarded agent.
const AGENT_CONNECTIONS: usize = 64;

/// A client's end of a session.
pub(crate) struct Session {
    pub(super) id: String,
    pub(super) channel: Channel,
    pub(super) gone: watch::Sender<bool>,
}

impl Session {
    /// Resolves when the client has gone away.
    pub(super) async fn ended(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

/// Takes the session out of the table when its connection is dropped.
struct Leaving(Builds, String);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.remove_session(&self.1);
    }
}

/// Joins the table and stays until the connection ends.
pub(super) async fn serve(builds: Builds, id: String, mut io: Joined) -> Result<()> {
    io._keeps = Some(Box::new(Leaving(builds.clone(), id.clone())));
    let io = Arc::new(Mutex::new(Some(io)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        async move {
            io.map(TokioIo::new)
                .ok_or_else(|| std::io::Error::other("the session's connection is closed"))
        }
    });
    let channel = Endpoint::from_static("http://session")
        .connect_with_connector(connector)
        .await
        .context(|| "opening a build session".into())?;
    let session = Arc::new(Session {
        id,
        channel,
        gone: watch::Sender::new(false),
    });
    builds.add_session(session.clone())?;
    session.ended().await;
    Ok(())
}

pub(super) fn failed(what: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::Unavailable | Code::Cancelled => ErrorKind::Unavailable,
        _ => ErrorKind::InvalidArgument,
    };
    Error::new(kind, format!("{what}: {}", status.message()))
}

/// Adds a list; what is not ASCII travels percent-encoded, marked so.
fn add(metadata: &mut MetadataMap, key: &str, values: &[String]) {
    let is_plain = |text: &String| text.bytes().all(|b| (0x20..0x7f).contains(&b));
    let plain = values.iter().all(is_plain);
    let Ok(name) = AsciiMetadataKey::from_bytes(key.as_bytes()) else {
        return;
    };
    for value in values {
        let value = if plain {
            value.clone()
        } else {
            gantry_docker_api::query::escape(value)
        };
        if let Ok(value) = AsciiMetadataValue::try_from(value) {
            metadata.append(name.clone(), value);
        }
    }
    if !plain && let Ok(name) = AsciiMetadataKey::from_bytes(format!("{key}-encoded").as_bytes()) {
        metadata.insert(name, AsciiMetadataValue::from_static("1"));
    }
}

impl Session {
    /// Brings files of the client's folder `name` into `into`: those that `follow` names (`None`: all) without those that `exclude` names.
    pub(super) async fn fetch(
        &self,
        name: &str,
        follow: Option<&[String]>,
        exclude: &[String],
        into: &Path,
    ) -> Result<()> {
        let what = || format!("reading {name} from the client");
        let mut client =
            FileSyncClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let (requests, queue) = mpsc::channel::<Packet>(REQUESTS);
        let outgoing = futures_util::stream::unfold(queue, async |mut queue| {
            Some((queue.recv().await?, queue))
        });
        let mut request = tonic::Request::new(outgoing);
        let metadata = request.metadata_mut();
        add(metadata, "dir-name", &[name.to_owned()]);
        if let Some(follow) = follow {
            add(metadata, "followpaths", follow);
        }
        if !exclude.is_empty() {
            add(metadata, "exclude-patterns", exclude);
        }
        let mut incoming = client
            .diff_copy(request)
            .await
            .map_err(|status| failed(&what(), &status))?
            .into_inner();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(into, flags, Mode::empty())
            .context(|| format!("opening {}", into.display()))?;
        let mut receiver = Receiver {
            root,
            parent: None,
            count: 0,
            open: HashMap::new(),
            folders: Vec::new(),
            listed: false,
            thanked: false,
        };
        // Asking may wait for the client to read: by a task of its own, so that we go on reading meanwhile.
        let (wanted, mut wanting) = mpsc::unbounded_channel::<Packet>();
        let asking = tokio::spawn(async move {
            while let Some(packet) = wanting.recv().await {
                if requests.send(packet).await.is_err() {
                    return;
                }
            }
        });
        let result = loop {
            let packet = match incoming.message().await {
                Ok(Some(packet)) => packet,
                Ok(None) => {
                    break Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("{}: the client ended it", what()),
                    ));
                }
                Err(status) => break Err(failed(&what(), &status)),
            };
            match receiver.packet(packet) {
                Ok(Step::Ask(id)) => {
                    let request = Packet {
                        r#type: PacketType::PacketReq as i32,
                        id,
                        ..Packet::default()
                    };
                    let _ = wanted.send(request);
                }
                Ok(Step::Go) => {}
                Ok(Step::End) => break Ok(()),
                Err(error) => break Err(error),
            }
            if receiver.is_through() && !std::mem::replace(&mut receiver.thanked, true) {
                let fin = Packet {
                    r#type: PacketType::PacketFin as i32,
                    ..Packet::default()
                };
                let _ = wanted.send(fin);
            }
        };
        asking.abort();
        result?;
        receiver.finish()
    }
}

enum Step {
    Ask(u32),
    Go,
    End,
}

/// Files as they arrive.
struct Receiver {
    root: OwnedFd,
    parent: Option<(PathBuf, OwnedFd)>,
    count: u32,
    open: HashMap<u32, (File, i64)>,
    folders: Vec<(PathBuf, u32, i64)>,
    /// All names have come.
    listed: bool,
    /// The client was told that everything is here.
    thanked: bool,
}

impl Receiver {
    fn is_through(&self) -> bool {
        self.listed && self.open.is_empty()
    }

    fn packet(&mut self, packet: Packet) -> Result<Step> {
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketStat) => match packet.stat {
                None => {
                    self.listed = true;
                    Ok(Step::Go)
                }
                Some(stat) => {
                    let id = self.count;
                    if id as usize >= FILE_LIMIT {
                        return Err(Error::invalid(format!(
                            "the context has more than {FILE_LIMIT} files"
                        )));
                    }
                    self.count += 1;
                    self.entry(id, &stat)
                }
            },
            Ok(PacketType::PacketData) => {
                if packet.data.is_empty() {
                    if let Some((file, mtime)) = self.open.remove(&packet.id) {
                        let _ = dirfd::set_file_time(
                            &file,
                            mtime.div_euclid(1_000_000_000),
                            u32::try_from(mtime.rem_euclid(1_000_000_000)).unwrap_or(0),
                        );
                    }
                } else if let Some((file, _)) = self.open.get_mut(&packet.id) {
                    file.write_all(&packet.data)
                        .context(|| "writing the context".into())?;
                }
                Ok(Step::Go)
            }
            Ok(PacketType::PacketFin) => Ok(Step::End),
            Ok(PacketType::PacketErr) => Err(Error::invalid(format!(
                "error from sender: {}",
                String::from_utf8_lossy(&packet.data)
            ))),
            Ok(PacketType::PacketReq) | Err(_) => {
                Err(Error::invalid("the client sent an unexpected packet"))
            }
        }
    }

    fn entry(&mut self, id: u32, stat: &Stat) -> Result<Step> {
        let path = Path::new(&stat.path);
        let bad = || Error::invalid(format!("the client sent the path {:?}", stat.path));
        let is_clean = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        let name = path
            .file_name()
            .filter(|_| is_clean)
            .ok_or_else(bad)?
            .as_bytes();
        let text = || format!("writing {} of the context", stat.path);
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = match self.parent.take() {
            Some((known, fd)) if known == parent_path => fd,
            _ => self.folder(&parent_path).context(text)?,
        };
        // Go's bits of a file's kind and mode.
        let go = stat.mode;
        let mut mode = go & 0o777;
        for (bit, unix) in [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)] {
            if go & bit != 0 {
                mode |= unix;
            }
        }
        let time = (
            stat.mod_time.div_euclid(1_000_000_000),
            u32::try_from(stat.mod_time.rem_euclid(1_000_000_000)).unwrap_or(0),
        );
        let mut step = Step::Go;
        if go & (1 << 31) != 0 {
            match dirfd::make_dir(&parent, name, 0o755) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.context(text)?,
            }
            self.folders.push((path.to_owned(), mode, stat.mod_time));
        } else if go & (1 << 27) != 0 {
            dirfd::make_symlink(&parent, name, stat.linkname.as_bytes()).context(text)?;
            let _ = dirfd::set_time(&parent, name, time.0, time.1);
        } else if go & ((1 << 26) | (1 << 25) | (1 << 24) | (1 << 21)) != 0 {
            // Devices, pipes and sockets of the client's machine mean nothing here.
        } else if !stat.linkname.is_empty() {
            let target = Path::new(&stat.linkname);
            let target_name = target.file_name().ok_or_else(bad)?.as_bytes();
            let folder = self
                .folder(target.parent().unwrap_or(Path::new("")))
                .context(text)?;
            dirfd::make_link(&folder, target_name, &parent, name).context(text)?;
        } else {
            let file = File::from(dirfd::create_file(&parent, name, 0o600).context(text)?);
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).context(text)?;
            self.open.insert(id, (file, stat.mod_time));
            step = Step::Ask(id);
        }
        self.parent = Some((parent_path, parent));
        Ok(step)
    }

    /// A folder of the context; made where the client did not name it first.
    fn folder(&self, path: &Path) -> std::io::Result<OwnedFd> {
        match dirfd::open_dir_beneath(&self.root, path.as_os_str().as_bytes(), Symlinks::Refuse) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut reached = PathBuf::new();
                for part in path.components() {
                    let above = dirfd::open_dir_beneath(
                        &self.root,
                        reached.as_os_str().as_bytes(),
                        Symlinks::Refuse,
                    )?;
                    match dirfd::make_dir(&above, part.as_os_str().as_bytes(), 0o755) {
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                        other => other?,
                    }
                    reached.push(part);
                }
                dirfd::open_dir_beneath(&self.root, path.as_os_str().as_bytes(), Symlinks::Refuse)
            }
            other => other,
        }
    }

    /// Modes and times of folders, once nothing is made in them any more.
    fn finish(self) -> Result<()> {
        for (path, mode, mtime) in self.folders.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let folder = dirfd::open_beneath(
                &self.root,
                path.as_os_str().as_bytes(),
                flags,
                0,
                Symlinks::Refuse,
            )
            .context(|| format!("opening {} of the context", path.display()))?;
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(*mode))
                .context(|| format!("setting the mode of {}", path.display()))?;
            let nanos = u32::try_from(mtime.rem_euclid(1_000_000_000)).unwrap_or(0);
            let _ = dirfd::set_file_time(&folder, mtime.div_euclid(1_000_000_000), nanos);
        }
        Ok(())
    }
}

/// A build's client at the other end of a session.
pub(super) struct Remote {
    pub(super) session: Arc<Session>,
    pub(super) workspace: Workspace,
    /// Lines of `.dockerignore`, for the main context.
    pub(super) ignore: Vec<String>,
    /// A context that did not come as a folder of the client's.
    pub(super) given: BTreeMap<String, Arc<Folder>>,
    pub(super) run_dir: PathBuf,
}

static NEXT_SOCKET: AtomicU64 = AtomicU64::new(0);

impl Client for Remote {
    fn context<'a>(
        &'a self,
        name: &'a str,
        wanted: Option<&'a [String]>,
    ) -> BoxFuture<'a, Result<Arc<Folder>>> {
        Box::pin(async move {
            if let Some(folder) = self.given.get(name) {
                return Ok(folder.clone());
            }
            let folder = self.workspace.folder("context")?;
            let ignore: &[String] = if name == MAIN { &self.ignore } else { &[] };
            self.session.fetch(name, wanted, ignore, &folder).await?;
            Ok(Arc::new(Folder::open(
                folder,
                Box::new(self.workspace.clone()),
            )?))
        })
    }

    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            let mut client = SecretsClient::new(self.session.channel.clone());
            let request = GetSecretRequest {
                id: id.to_owned(),
                ..GetSecretRequest::default()
            };
            match client.get_secret(request).await {
                Ok(answer) => Ok(Some(answer.into_inner().data)),
                Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
                    Ok(None)
                }
                Err(status) => Err(failed(&format!("secret {id}"), &status)),
            }
        })
    }

    fn ssh<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<SshSocket>>> {
        Box::pin(async move {
            let mut client = SshClient::new(self.session.channel.clone());
            match client
                .check_agent(CheckAgentRequest { id: id.to_owned() })
                .await
            {
                Ok(_) => {}
                Err(status)
                    if matches!(
                        status.code(),
                        Code::NotFound | Code::Unimplemented | Code::Unknown
                    ) =>
                {
                    return Ok(None);
                }
                Err(status) => return Err(failed(&format!("ssh agent {id}"), &status)),
            }
            std::fs::create_dir_all(&self.run_dir)
                .context(|| format!("creating {}", self.run_dir.display()))?;
            let number = NEXT_SOCKET.fetch_add(1, Ordering::Relaxed);
            let path = self.run_dir.join(format!("ssh{number}"));
            let listener = tokio::net::UnixListener::bind(&path)
                .context(|| format!("listening on {}", path.display()))?;
            let (channel, id) = (self.session.channel.clone(), id.to_owned());
            let serving = tokio::spawn(async move {
                let places = Arc::new(tokio::sync::Semaphore::new(AGENT_CONNECTIONS));
                while let (Ok((socket, _)), Ok(place)) = (
                    listener.accept().await,
                    places.clone().acquire_owned().await,
                ) {
                    let (channel, id) = (channel.clone(), id.clone());
                    tokio::spawn(async move {
                        if let Err(error) = agent(channel, &id, socket).await {
                            tracing::debug!(error = error.chain(), "a forwarded agent");
                        }
                        drop(place);
                    });
                }
            });
            let keeps = Box::new(Listening {
                path: path.clone(),
                serving,
            });
            Ok(Some(SshSocket { path, keeps }))
        })
    }

    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(async move {
            let host = if host == "docker.io" {
                "registry-1.docker.io"
            } else {
                host
            };
            let mut client = AuthClient::new(self.session.channel.clone());
            let answer = client
                .credentials(CredentialsRequest {
                    host: host.to_owned(),
                })
                .await
                .ok()?
                .into_inner();
            if answer.secret.is_empty() {
                return None;
            }
            Some(if answer.username.is_empty() {
                Credentials {
                    identity_token: answer.secret,
                    ..Credentials::default()
                }
            } else {
                Credentials {
                    username: answer.username,
                    password: answer.secret,
                    ..Credentials::default()
                }
            })
        })
    }
}

struct Listening {
    path: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection of a step to the client's agent.
async fn agent(channel: Channel, id: &str, socket: tokio::net::UnixStream) -> Result<()> {
    let (mut reader, mut writer) = socket.into_split();
    let (pieces, queue) = mpsc::channel::<BytesMessage>(8);
    let outgoing =
        futures_util::stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)));
    let mut request = tonic::Request::new(outgoing);
    add(request.metadata_mut(), "buildkit.ssh.id", &[id.to_owned()]);
    let mut incoming = SshClient::new(channel)
        .forward_agent(request)
        .await
        .map_err(|status| failed("the ssh agent", &status))?
        .into_inner();
    let up = async {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read) = reader.read(&mut buffer).await {
            let message = BytesMessage {
                data: buffer[..read].to_vec(),
            };
            if read == 0 || pieces.send(message).await.is_err() {
                break;
            }
        }
        drop(pieces);
    };
    let down = async {
        while let Ok(Some(message)) = incoming.message().await {
            if writer.write_all(&message.data).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    tokio::join!(up, down);
    Ok(())
}
