//! Files in and out of containers: `cp`, `export`, `diff`, `commit`.
//!
//! ```text
//! running   /proc/<pid>/root, so that volumes and tmpfs are seen as the container sees them
//! stopped   a detached overlay, its volumes and binds upon it in a mount table without processes
//! ```
//! Every path goes through `openat2` relative to the container's root: links in it lead where they lead inside.

use crate::files::pack::Packer;
use crate::files::tree::kind;
use crate::files::unpack::{Unpack, unpack};
use crate::files::{CHUNKS_WAITING, ChannelReader, ChannelWriter, diff};
use crate::{Engine, Record, State, WaitCondition};
use bytes::Bytes;
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::create::ContainerConfig;
use gantry_linux::mount::{open_in_root, open_in_root_no_links};
use gantry_linux::view::{Bind, Overlay, View, detached_overlay};
use gantry_oci::image::{History, ImageConfig, RunConfig};
use gantry_oci::{Digest, Reference};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use serde::Serialize;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What `docker cp` asks first (header `X-Docker-Container-Path-Stat`); serialises under Docker's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode` bits.
    pub mode: u32,
    /// RFC 3339 with nanoseconds.
    pub mtime: String,
    /// Where a symbolic link ends inside the container, absolute; empty for everything else.
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

/// `POST /commit`.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    pub reference: Option<Reference>,
    pub author: String,
    pub message: String,
    /// Freeze the container meanwhile.
    pub pause: bool,
    /// `--change`, Dockerfile instructions.
    pub changes: Vec<String>,
    /// The request's body, when it has one; fields it leaves empty come from the container.
    pub config: Option<ContainerConfig>,
}

/// A tar as it is made. Bounded: the maker waits for the reader. An error is the last item.
pub type TarStream = mpsc::Receiver<io::Result<Bytes>>;

impl Engine {
    pub async fn archive_stat(&self, r: &str, path: &str) -> Result<PathStat> {
        let record = self.get(r)?;
        let path = InContainer::parse(path);
        let view = self.view(&record).await?;
        let looked = blocking(move || Ok(path.stat(&view).map_err(|e| (e, path)))).await?;
        looked.map_err(|(e, path)| path.failed(e, r))
    }

    pub async fn archive_get(&self, r: &str, path: &str) -> Result<(PathStat, TarStream)> {
        let record = self.get(r)?;
        let path = InContainer::parse(path);
        let view = self.view(&record).await?;
        let opened = blocking(move || Ok(path.open(view).map_err(|e| (e, path)))).await?;
        let (stat, source) = opened.map_err(|(e, path)| path.failed(e, r))?;
        let tar = stream(move |out| {
            let mut packer = Packer::new(out);
            match &source.entry {
                Some(name) => packer.entry(source.folder.as_fd(), name, name.as_bytes())?,
                None => packer.folder(source.folder.as_fd(), source.name.as_bytes())?,
            }
            packer.finish()
        });
        self.say(&record, "archive-path", &[]);
        Ok((stat, tar))
    }

    /// Extracts `tar` (plain, gzip or zstd) into the folder `path`. `tar` is read on a blocking thread.
    pub async fn archive_put(
        &self,
        r: &str,
        path: &str,
        tar: impl Read + Send + 'static,
        no_overwrite_dir_non_dir: bool,
        copy_uid_gid: bool,
    ) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let (engine, path, r) = (self.clone(), InContainer::parse(path), r.to_owned());
        // To its end, whatever becomes of the client: the lock must be held as long as the files are written.
        let put = tokio::spawn(async move {
            let mut record = slot.record();
            // A stopped container's overlay must not be mounted a second time by a start meanwhile.
            let mut guard = None;
            if record.state.process().is_none() {
                guard = Some(slot.lock().await);
                record = slot.record();
            }
            let view = engine.view(&record).await?;
            let written = record.clone();
            blocking(move || {
                let how = Put {
                    keep_kinds: no_overwrite_dir_non_dir,
                    as_user: copy_uid_gid,
                };
                put(&written, &view, &path, tar, how).map_err(|e| match e {
                    PutError::Io(e) => path.failed(e, &r),
                    PutError::Refused(e) => e,
                })
            })
            .await?;
            drop(guard);
            engine.say(&record, "extract-to-dir", &[]);
            Ok(())
        });
        put.await.context(|| "copying into the container".into())?
    }

    /// The whole root file system, without volumes and other mounts.
    pub async fn export(&self, r: &str) -> Result<TarStream> {
        let record = self.get(r)?;
        refuse_removed(&record)?;
        let overlay = self.overlay(&record)?;
        let process = record.state.process().cloned();
        let root = blocking(move || {
            let view = match process {
                Some(process) => View::root_mount_of(process.pid),
                None => detached_overlay(&overlay).map(View::of),
            };
            view.and_then(|view| {
                open_in_root(&view, Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY)
            })
            .context(|| "opening the container's root file system".into())
        })
        .await?;
        let tar = stream(move |out| {
            let mut packer = Packer::new(out);
            packer.entries(root.as_fd(), b"")?;
            packer.finish()
        });
        self.say(&record, "export", &[]);
        Ok(tar)
    }

    /// 0 modified, 1 added, 2 deleted; sorted by path.
    pub async fn changes(&self, r: &str) -> Result<Vec<(u8, String)>> {
        let record = self.get(r)?;
        refuse_removed(&record)?;
        let overlay = self.overlay(&record)?;
        blocking(move || {
            let open = |path: &Path| -> io::Result<OwnedFd> {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                Ok(rustix::fs::open(path, flags, Mode::empty())?)
            };
            let found = (|| {
                let upper = overlay
                    .upper
                    .as_ref()
                    .map_or(Path::new(""), |(upper, _)| upper);
                let lowers: io::Result<Vec<OwnedFd>> =
                    overlay.lowers.iter().map(|lower| open(lower)).collect();
                diff::changes(open(upper)?.as_fd(), lowers?, &mounted_over)
            })();
            let found =
                found.context(|| "comparing the container's files with its image".into())?;
            let text = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
            Ok(found
                .into_iter()
                .map(|(path, change)| (change as u8, text(path)))
                .collect())
        })
        .await
    }

    /// Pauses a container that runs; `false` when it ended at that moment, which makes it hold still, too.
    async fn hold_still(&self, id: &str) -> Result<bool> {
        let Err(error) = self.pause(id).await else {
            return Ok(true);
        };
        let ended = self.wait(id, WaitCondition::NotRunning).await?;
        match tokio::time::timeout(std::time::Duration::from_secs(1), ended).await {
            Ok(_) => Ok(false),
            Err(_) => Err(error),
        }
    }

    pub async fn commit(&self, r: &str, what: Commit) -> Result<Digest> {
        let record = self.get(r)?;
        match record.state {
            State::Removing => {
                return Err(Error::conflict(format!(
                    "You cannot commit container {} which is being removed",
                    record.id
                )));
            }
            State::Dead => {
                return Err(Error::conflict(format!(
                    "You cannot commit container {} which is Dead",
                    record.id
                )));
            }
            _ => {}
        }
        let base = self.0.images.get(&record.image.to_string())?;
        let config = image_config(&record, &base.config, &what)?;
        let overlay = self.overlay(&record)?;
        let frozen = what.pause
            && matches!(record.state, State::Running(_))
            && self.hold_still(&record.id).await?;
        let (images, image, reference) = (
            self.0.images.clone(),
            record.image.clone(),
            what.reference.clone(),
        );
        let stored = blocking(move || {
            let layer = ChannelReader::new(stream(move |out| {
                let upper = overlay.upper.map(|(upper, _)| upper).unwrap_or_default();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let upper = rustix::fs::open(&upper, flags, Mode::empty())?;
                let mut packer = Packer::layer(out, &mounted_over);
                packer.entries(upper.as_fd(), b"")?;
                packer.finish()
            }));
            images.commit(Some(&image), layer, reference.as_ref(), config)
        })
        .await;
        if frozen {
            match self.unpause(&record.id).await {
                Ok(()) => {}
                // Somebody else thawed or ended it meanwhile.
                Err(e) => tracing::debug!(
                    container.id = record.id,
                    error = e.chain(),
                    "unpausing after a commit"
                ),
            }
        }
        let id = stored?;
        let mut extra = vec![
            ("comment", what.message.clone()),
            ("imageID", id.to_string()),
        ];
        if let Some(reference) = &what.reference {
            extra.push(("imageRef", reference.to_string()));
        }
        self.say(&record, "commit", &extra);
        Ok(id)
    }

    fn overlay(&self, record: &Record) -> Result<Overlay> {
        let folder = self.container_dir(&record.id);
        let snapshot = self.0.images.prepare(&record.image, &folder)?;
        Ok(Overlay {
            lowers: snapshot.lowers,
            upper: Some((snapshot.upper, snapshot.work)),
        })
    }

    /// A container's files as they are for `cp`.
    async fn view(&self, record: &Arc<Record>) -> Result<View> {
        refuse_removed(record)?;
        let text = || format!("opening the files of container {}", record.id);
        if let Some(process) = record.state.process() {
            let process = process.clone();
            let opened = blocking(move || {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root =
                    rustix::fs::open(format!("/proc/{}/root", process.pid), flags, Mode::empty());
                // Looked at after the opening: a number that went to another process by then shows another start.
                Ok(root.ok().filter(|_| process.is_alive()).map(View::of))
            })
            .await?;
            if let Some(view) = opened {
                return Ok(view);
            }
            // It ended just now: as if it had been stopped before.
        }
        let overlay = self.overlay(record)?;
        let mut binds: Vec<Bind> = Vec::new();
        // The files of an image are not the container's: they are seen while it runs.
        let of_host =
            |mount: &&super::MountPoint| !matches!(mount.kind.as_str(), "tmpfs" | "image");
        for mount in record.mounts.iter().filter(of_host) {
            let source = match &mount.name {
                Some(name) if mount.kind == "volume" => self.volume_activate(name, None).await?,
                _ => PathBuf::from(&mount.source),
            };
            binds.push(Bind {
                source,
                target: PathBuf::from(&mount.destination),
                read_only: !mount.rw,
            });
        }
        // Outer ones before what lies in them.
        binds.sort_by(|a, b| a.target.cmp(&b.target));
        let anchor = self.container_dir(&record.id);
        blocking(move || View::new(&overlay, &binds, &anchor).context(|| "mounting".into()))
            .await
            .context(text)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context(|| "a file operation broke off".into())?
}

/// Runs a maker of a tar on a thread of its own pool; its error is the stream's last item.
fn stream(make: impl FnOnce(ChannelWriter) -> io::Result<()> + Send + 'static) -> TarStream {
    let (out, tar) = mpsc::channel(CHUNKS_WAITING);
    tokio::task::spawn_blocking(move || {
        if let Err(e) = make(ChannelWriter::new(out.clone())) {
            // Nobody hears it when the reader is what went away.
            let _ = out.blocking_send(Err(e));
        }
    });
    tar
}

fn refuse_removed(record: &Record) -> Result<()> {
    match record.state {
        State::Removing | State::Dead => Err(Error::conflict(format!(
            "container {} is marked for removal and its files cannot be read",
            record.id
        ))),
        _ => Ok(()),
    }
}

/// The files and folders that every start makes so that something can be mounted on them. Docker keeps them out of sight in a layer
/// of their own: they are no change of the container's.
fn mounted_over(path: &[u8], stat: &Stat) -> bool {
    let empty_file = kind(stat) == FileType::RegularFile && stat.st_size == 0;
    match path {
        b"dev" | b"proc" | b"sys" => kind(stat) == FileType::Directory,
        b"etc/hosts" | b"etc/hostname" | b"etc/resolv.conf" | b".dockerenv"
        | b"run/.containerenv" => empty_file,
        b"etc/mtab" => kind(stat) == FileType::Symlink,
        _ => false,
    }
}

/// A path that a client named: absolute and clean, with what Docker's rules make of its end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InContainer {
    /// As typed, for messages.
    typed: String,
    clean: PathBuf,
    /// It ended in `/` or `/.`: what a link points to is meant, and it must be a folder.
    follow: bool,
    /// Docker's base name: `.` for `/a/.`, `/` for the root.
    base: OsString,
}

impl InContainer {
    fn parse(typed: &str) -> Self {
        let mut clean = PathBuf::from("/");
        for part in Path::new(typed).components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => {
                    clean.pop();
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        let dot = typed == "." || typed.ends_with("/.");
        let base = match clean.file_name() {
            None => "/".into(),
            Some(_) if dot => ".".into(),
            Some(name) => name.to_owned(),
        };
        Self {
            typed: typed.to_owned(),
            follow: dot || typed.ends_with('/') || clean == Path::new("/"),
            clean,
            base,
        }
    }

    fn failed(&self, e: io::Error, r: &str) -> Error {
        if e.kind() == io::ErrorKind::NotFound {
            return Error::not_found(format!(
                "Could not find the file {} in container {r}",
                self.typed
            ));
        }
        Error::internal(format!("lstat {}", self.typed)).with_source(e)
    }

    /// What is there: the link itself, unless the path asks for what it points to.
    fn handle(&self, root: impl AsFd) -> io::Result<OwnedFd> {
        let flags = if self.follow {
            OFlags::DIRECTORY
        } else {
            OFlags::NOFOLLOW
        };
        open_in_root(root, &self.clean, flags | OFlags::PATH)
    }

    fn stat(&self, root: impl AsFd) -> io::Result<PathStat> {
        let root = root.as_fd();
        let stat = rustix::fs::fstat(self.handle(root)?)?;
        let link = kind(&stat) == FileType::Symlink;
        let target = if link {
            follow(root, &self.clean)?
        } else {
            PathBuf::new()
        };
        let mtime_ns = stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_mtime_nsec as i64);
        Ok(PathStat {
            name: self.base.to_string_lossy().into_owned(),
            size: stat.st_size,
            mode: go_mode(stat.st_mode),
            mtime: gantry_docker_api::text::time(mtime_ns),
            link_target: target.to_string_lossy().into_owned(),
        })
    }

    /// Opens what `cp` copies.
    fn open(&self, view: View) -> io::Result<(PathStat, Source)> {
        let stat = self.stat(&view)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if stat.mode & GO_FOLDER != 0 {
            let follow = if self.follow {
                OFlags::empty()
            } else {
                OFlags::NOFOLLOW
            };
            let folder = open_in_root(&view, &self.clean, flags | follow)?;
            // The root's entries are named from the slash.
            let name = if self.base == "/" {
                OsString::new()
            } else {
                self.base.clone()
            };
            return Ok((
                stat,
                Source {
                    folder,
                    name,
                    entry: None,
                    _view: view,
                },
            ));
        }
        let parent = self.clean.parent().unwrap_or(Path::new("/"));
        let folder = open_in_root(&view, parent, flags)?;
        let entry = Some(self.base.clone());
        Ok((
            stat,
            Source {
                folder,
                name: OsString::new(),
                entry,
                _view: view,
            },
        ))
    }
}

/// What is packed: a folder under a name, or one entry of it.
struct Source {
    folder: OwnedFd,
    name: OsString,
    entry: Option<OsString>,
    /// Mounts must stay while they are read.
    _view: View,
}

const GO_FOLDER: u32 = 1 << 31;

/// `os.FileMode` of Go: the permission bits below, the kind in bits of its own.
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => GO_FOLDER,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::RegularFile => 0,
        FileType::Unknown => 1 << 19,
    };
    let bit = |from: u32, to: u32| if mode & from != 0 { 1 << to } else { 0 };
    mode & 0o777 | kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20)
}

/// Links on one path; the kernel's own limit.
const LINK_LIMIT: usize = 40;

/// Where `path` ends after all links, as far as it exists: what is missing is taken by its name.
fn follow(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = parts(path).collect();
    let mut resolved = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        let handle = open_in_root_no_links(root, &next, OFlags::PATH | OFlags::NOFOLLOW);
        let target = handle.and_then(|handle| Ok(rustix::fs::readlinkat(handle, "", Vec::new())?));
        let Ok(target) = target else {
            resolved = next;
            continue;
        };
        links += 1;
        if links > LINK_LIMIT {
            return Err(io::Error::from(rustix::io::Errno::LOOP));
        }
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
            left.push_front(part);
        }
    }
    Ok(resolved)
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

enum PutError {
    /// About the destination.
    Io(io::Error),
    Refused(Error),
}

#[derive(Clone, Copy)]
struct Put {
    keep_kinds: bool,
    as_user: bool,
}

fn put(
    record: &Record,
    view: &View,
    path: &InContainer,
    tar: impl Read,
    how: Put,
) -> Result<(), PutError> {
    let folder = follow(view.as_fd(), &path.clean).map_err(PutError::Io)?;
    let stat =
        open_in_root(view, &folder, OFlags::PATH).and_then(|handle| Ok(rustix::fs::fstat(handle)?));
    if kind(&stat.map_err(PutError::Io)?) != FileType::Directory {
        return Err(PutError::Refused(Error::invalid(
            "extraction point is not a directory",
        )));
    }
    writable(record, &folder).map_err(PutError::Refused)?;
    let owner = match how.as_user {
        true if !record.config.user.is_empty() => {
            Some(user_of(view, &record.config.user).map_err(PutError::Refused)?)
        }
        _ => None,
    };
    let how = Unpack {
        keep_kinds: how.keep_kinds,
        owner,
    };
    unpack(view.as_fd(), &folder, tar, how).map_err(PutError::Refused)
}

/// Docker's refusals; the mounts themselves would refuse it too, in the kernel's words.
fn writable(record: &Record, folder: &Path) -> Result<()> {
    let mounts = record
        .mounts
        .iter()
        .filter(|mount| folder.starts_with(&mount.destination));
    if let Some(mount) = mounts.max_by_key(|mount| mount.destination.len()) {
        return match mount.rw {
            true => Ok(()),
            false => Err(Error::invalid("mounted volume is marked read-only")),
        };
    }
    let tmpfs = record
        .host_config
        .tmpfs
        .iter()
        .flatten()
        .any(|(path, _)| folder.starts_with(path));
    if record.host_config.readonly_rootfs && !(tmpfs && record.state.process().is_some()) {
        return Err(Error::invalid("container rootfs is marked read-only"));
    }
    Ok(())
}

/// Bytes of the container's user list that are read.
const PASSWD_LIMIT: u64 = 1 << 20;

/// `user`, `user:group`, by name or number, as the container's own lists have them.
fn user_of(root: &View, text: &str) -> Result<(u32, u32)> {
    let read = |path: &str| -> String {
        let file = open_in_root(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK);
        let mut bytes = Vec::new();
        if let Ok(file) = file
            && rustix::fs::fstat(&file).is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
        {
            let _ = std::fs::File::from(file)
                .take(PASSWD_LIMIT)
                .read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let (uid, own_group) = lookup(&read("/etc/passwd"), user).ok_or_else(|| {
        Error::invalid(format!(
            "unable to find user {user}: no matching entries in passwd file"
        ))
    })?;
    if group.is_empty() {
        return Ok((uid, own_group));
    }
    let (gid, _) = lookup(&read("/etc/group"), group).ok_or_else(|| {
        Error::invalid(format!(
            "unable to find group {group}: no matching entries in group file"
        ))
    })?;
    Ok((uid, gid))
}

/// The third and fourth field of the line whose first or third is `who`. A number needs no line.
fn lookup(list: &str, who: &str) -> Option<(u32, u32)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let id = fields.get(2)?.parse().ok()?;
        let other = fields.get(3).and_then(|n| n.parse().ok()).unwrap_or(0);
        (fields[0] == who || fields[2] == who).then_some((id, other))
    };
    list.lines()
        .find_map(line)
        .or_else(|| Some((who.parse().ok()?, 0)))
}

/// The new image's configuration: the container's, the request's, the instructions'.
fn image_config(record: &Record, base: &ImageConfig, what: &Commit) -> Result<ImageConfig> {
    let own = run_config(&record.config);
    let mut config = what.config.as_ref().map_or_else(|| own.clone(), run_config);
    crate::instructions::apply_changes(&mut config, &what.changes)?;
    complete(&mut config, &own);
    let created = gantry_docker_api::text::time(crate::events::now_ns());
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(ImageConfig {
        architecture: base.architecture.clone(),
        os: base.os.clone(),
        variant: base.variant.clone(),
        created: Some(created.clone()),
        author: some(&what.author),
        config,
        history: vec![History {
            created: Some(created),
            created_by: Some(record.config.cmd.clone().unwrap_or_default().join(" ")),
            author: some(&what.author),
            comment: some(&what.message),
            empty_layer: false,
        }],
        container: Some(record.id.clone()),
        container_config: serde_json::to_value(&record.config).ok(),
        ..ImageConfig::default()
    })
}

/// The part of a container's configuration that an image has too.
fn run_config(config: &ContainerConfig) -> RunConfig {
    RunConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.clone(),
        env: config.env.clone().unwrap_or_default(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: config.volumes.clone().unwrap_or_default(),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.clone(),
        on_build: config.on_build.clone(),
        shell: config.shell.clone(),
    }
}

/// Docker's merge: what `config` leaves open comes from the container.
fn complete(config: &mut RunConfig, own: &RunConfig) {
    if config.user.is_empty() {
        config.user.clone_from(&own.user);
    }
    for (port, value) in &own.exposed_ports {
        config
            .exposed_ports
            .entry(port.clone())
            .or_insert_with(|| value.clone());
    }
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in &own.env {
        if config.env.iter().all(|have| key(have) != key(entry)) {
            config.env.push(entry.clone());
        }
    }
    for (label, value) in &own.labels {
        config
            .labels
            .entry(label.clone())
            .or_insert_with(|| value.clone());
    }
    if config.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&own.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&own.entrypoint);
        }
    }
    if config.healthcheck.is_none() {
        config.healthcheck.clone_from(&own.healthcheck);
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&own.working_dir);
    }
    for (path, value) in &own.volumes {
        config
            .volumes
            .entry(path.clone())
            .or_insert_with(|| value.clone());
    }
    if config.stop_signal.is_none() {
        config.stop_signal.clone_from(&own.stop_signal);
    }
    if config.shell.is_none() {
        config.shell.clone_from(&own.shell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tree;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    /// A container's root with the traps of a hostile one, and a file outside that nobody may reach.
    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let world = Self { dir };
            let root = world.root();
            std::fs::create_dir_all(root.join("etc")).unwrap();
            std::fs::create_dir_all(root.join("data/sub")).unwrap();
            std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nweb:x:33:34::/:\n").unwrap();
            std::fs::write(root.join("etc/group"), "staff:x:50:\n").unwrap();
            std::fs::write(root.join("data/file"), "inside").unwrap();
            std::fs::create_dir(world.dir.path().join("outside")).unwrap();
            std::fs::write(world.dir.path().join("outside/secret"), "secret").unwrap();
            symlink("../../../../../../../../../../etc", root.join("up")).unwrap();
            symlink(world.dir.path().join("outside"), root.join("abs")).unwrap();
            symlink("/data/../data/file", root.join("link")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
            symlink("/nowhere/else", root.join("broken")).unwrap();
            world
        }
        fn root(&self) -> PathBuf {
            self.dir.path().join("root")
        }
        fn view(&self) -> View {
            detached_overlay(&Overlay {
                lowers: vec![self.root()],
                upper: None,
            })
            .map(View::of)
            .unwrap()
        }
        fn stat(&self, path: &str) -> String {
            match InContainer::parse(path).stat(self.view()) {
                Ok(stat) => format!("{} {:o} {}", stat.name, stat.mode, stat.link_target),
                Err(e) => InContainer::parse(path)
                    .failed(e, "c1")
                    .message()
                    .to_owned(),
            }
        }
        fn get(&self, path: &str) -> Vec<u8> {
            let (_, source) = InContainer::parse(path).open(self.view()).unwrap();
            let mut out = Vec::new();
            let mut packer = Packer::new(&mut out);
            match &source.entry {
                Some(name) => packer
                    .entry(source.folder.as_fd(), name, name.as_bytes())
                    .unwrap(),
                None => packer
                    .folder(source.folder.as_fd(), source.name.as_bytes())
                    .unwrap(),
            }
            packer.finish().unwrap();
            out
        }
        fn names(&self, path: &str) -> String {
            let tar = self.get(path);
            let mut archive = tar::Archive::new(&tar[..]);
            let names = archive
                .entries()
                .unwrap()
                .map(|e| String::from_utf8(e.unwrap().path_bytes().into_owned()).unwrap());
            names.collect::<Vec<_>>().join(" ")
        }
        fn put(&self, folder: &str, tar: Vec<u8>, how: Unpack) -> String {
            match unpack(self.view().as_fd(), Path::new(folder), &tar[..], how) {
                Ok(()) => "done".into(),
                Err(e) => e.chain(),
            }
        }
        fn outside_is_untouched(&self) {
            let outside = self.dir.path().join("outside");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
            assert_eq!(
                std::fs::read_to_string(outside.join("secret")).unwrap(),
                "secret"
            );
        }
    }

    #[test]
    fn links_are_named_and_not_followed() {
        let world = World::new();
        let link = |target: &str| format!("1000000777 {target}");
        assert_eq!(world.stat("/link"), format!("link {}", link("/data/file")));
        assert_eq!(world.stat("up"), format!("up {}", link("/etc")));
        assert_eq!(
            world.stat("/broken"),
            format!("broken {}", link("/nowhere/else"))
        );
        assert!(world.stat("/up/").starts_with("up 20000000755 "));
        assert!(world.stat("/up/../data/.").starts_with(". 20000000755 "));
        assert!(world.stat("/").starts_with("/ 20000000755 "));
        assert_eq!(
            world.stat("/data/none"),
            "Could not find the file /data/none in container c1"
        );
        // Inside, there is no such folder: the absolute link leads nowhere.
        assert_eq!(
            world.stat("/abs/secret"),
            "Could not find the file /abs/secret in container c1"
        );
        assert_eq!(world.stat("/loop"), "lstat /loop");
    }

    #[test]
    fn names_in_the_archive_are_dockers() {
        let world = World::new();
        assert_eq!(world.names("/data"), "data/ data/file data/sub/");
        assert_eq!(world.names("/data/."), "./ ./file ./sub/");
        assert_eq!(world.names("/data/file"), "file");
        assert_eq!(world.names("/link"), "link");
        assert_eq!(world.names("/up/"), "up/ up/group up/passwd");
        assert!(
            world
                .names("/")
                .starts_with("/ /abs /broken /data/ /data/file")
        );
    }

    fn tar(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4751);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1_000_000_000);
            let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            header.set_size(if link { 0 } else { content.len() as u64 });
            if link {
                header.set_link_name_literal(content).unwrap();
            }
            header.set_cksum();
            builder
                .append(&header, if link { &b""[..] } else { content.as_bytes() })
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

    #[test]
    fn what_goes_in_keeps_owner_mode_and_time() {
        let world = World::new();
        let archive = tar(&[
            ("d/", Directory, ""),
            ("d/f", Regular, "x"),
            ("d/l", Link, "d/f"),
            ("d/s", Symlink, "f"),
            ("d/p", Fifo, ""),
        ]);
        assert_eq!(world.put("/data", archive, Unpack::default()), "done");
        let at =
            |name: &str| std::fs::symlink_metadata(world.root().join("data").join(name)).unwrap();
        let file = at("d/f");
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime()),
            (7, 8, 0o4751, 1_000_000_000)
        );
        assert_eq!(file.ino(), at("d/l").ino());
        assert_eq!(
            (at("d").mtime(), at("d/s").mtime(), at("d/s").uid()),
            (1_000_000_000, 1_000_000_000, 7)
        );
        assert!(at("d/p").file_type().is_fifo());
        let owned = Unpack {
            owner: Some((1, 2)),
            ..Unpack::default()
        };
        assert_eq!(
            world.put("/data", tar(&[("new/o", Regular, "")]), owned),
            "done"
        );
        assert_eq!(
            (at("new").uid(), at("new/o").uid(), at("new/o").gid()),
            (1, 1, 2)
        );
    }

    #[test]
    fn nothing_gets_out_of_the_root() {
        let world = World::new();
        let outside = world
            .dir
            .path()
            .join("outside")
            .to_string_lossy()
            .into_owned();
        for archive in [
            tar(&[("../../outside/new", Regular, "x")]),
            tar(&[("a", Symlink, &outside), ("a/new", Regular, "x")]),
            tar(&[("b", Symlink, "../../outside"), ("b/new", Regular, "x")]),
            tar(&[
                ("c", Symlink, &format!("{outside}/secret")),
                ("c", Regular, "x"),
            ]),
            tar(&[("h", Link, "../../outside/secret")]),
            tar(&[("i", Symlink, "../../outside"), ("j", Link, "i/secret")]),
            tar(&[("k", Link, &format!("{outside}/secret"))]),
            tar(&[("../abs/new", Regular, "x")]),
        ] {
            world.put("/data", archive.clone(), Unpack::default());
            world.put("/abs", archive, Unpack::default());
        }
        world.outside_is_untouched();
        // A name that climbs out is told so.
        let text = world.put("/data", tar(&[("../x", Regular, "")]), Unpack::default());
        assert_eq!(text, "\"../x\" is outside of \"/data\"");
    }

    #[test]
    fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
        let world = World::new();
        let outside = world.dir.path().join("outside");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The container's process swaps a folder and a link as fast as it can.
            scope.spawn(|| {
                let (folder, link) = (
                    world.root().join("data/race"),
                    world.root().join("data/trap"),
                );
                symlink(&outside, &link).unwrap();
                std::fs::create_dir_all(&folder).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &folder,
                        rustix::fs::CWD,
                        &link,
                        flags,
                    );
                }
            });
            for _ in 0..300 {
                world.put(
                    "/data",
                    tar(&[("race/new", Regular, "x"), ("race/secret", Regular, "y")]),
                    Unpack::default(),
                );
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        world.outside_is_untouched();
    }

    #[test]
    fn kinds_are_kept_when_asked() {
        let world = World::new();
        let keep = Unpack {
            keep_kinds: true,
            ..Unpack::default()
        };
        assert_eq!(
            world.put("/data", tar(&[("sub", Regular, "x")]), keep),
            "cannot overwrite directory \"/data/sub\" with non-directory \"/data\""
        );
        assert_eq!(
            world.put("/data", tar(&[("file/", Directory, "")]), keep),
            "cannot overwrite non-directory \"/data/file\" with directory \"/data\""
        );
        assert_eq!(
            world.put(
                "/data",
                tar(&[("sub", Regular, "x"), ("file/", Directory, "")]),
                Unpack::default()
            ),
            "done"
        );
        assert!(world.root().join("data/file").is_dir() && world.root().join("data/sub").is_file());
    }

    #[test]
    fn packed_and_unpacked_it_is_the_same() {
        let world = World::new();
        let data = world.root().join("data");
        let long = "n".repeat(150);
        std::fs::write(data.join(&long), "long").unwrap();
        symlink("t".repeat(200), data.join("far")).unwrap();
        std::fs::hard_link(data.join("file"), data.join("zwin")).unwrap();
        std::fs::set_permissions(data.join("file"), std::fs::Permissions::from_mode(0o2755))
            .unwrap();
        // With a line feed in it, which line-minded readers of PAX records stumble over.
        let capability = [1, 0, 0, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(
            data.join("file"),
            "security.capability",
            &capability,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            data.join("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
        let packed = world.get("/data/.");
        std::fs::create_dir(world.root().join("copy")).unwrap();
        assert_eq!(world.put("/copy", packed, Unpack::default()), "done");
        let copy = world.root().join("copy");
        assert_eq!(std::fs::read_to_string(copy.join(&long)).unwrap(), "long");
        assert_eq!(
            std::fs::read_link(copy.join("far"))
                .unwrap()
                .as_os_str()
                .len(),
            200
        );
        let (file, twin) = (
            std::fs::metadata(copy.join("file")).unwrap(),
            std::fs::metadata(copy.join("zwin")).unwrap(),
        );
        assert_eq!((file.ino(), file.mode() & 0o7777), (twin.ino(), 0o2755));
        let mut value = [0; 32];
        assert_eq!(
            rustix::fs::getxattr(copy.join("file"), "security.capability", &mut value),
            Ok(capability.len())
        );
        assert_eq!(
            std::fs::metadata(copy.join("null")).unwrap().rdev(),
            rustix::fs::makedev(1, 3)
        );
    }

    #[test]
    fn compressed_archives_are_read_too() {
        use std::io::Write;
        let world = World::new();
        let plain = tar(&[("z", Regular, "x")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for packed in [
            gzip.finish().unwrap(),
            zstd::encode_all(&plain[..], 1).unwrap(),
        ] {
            assert_eq!(world.put("/data", packed, Unpack::default()), "done");
            std::fs::remove_file(world.root().join("data/z")).unwrap();
        }
        assert!(
            world
                .put("/data", vec![7; 1024], Unpack::default())
                .starts_with("Error processing tar file")
        );
    }

    #[test]
    fn a_stopped_containers_mounts_are_seen_and_hold_no_host_mount() {
        let world = World::new();
        let at = |name: &str| world.dir.path().join(name);
        for name in ["upper", "work", "volume", "ro", "anchor"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("ro/kept"), "kept").unwrap();
        let overlay = Overlay {
            lowers: vec![world.root()],
            upper: Some((at("upper"), at("work"))),
        };
        let bind = |source: &str, target: &str, read_only| Bind {
            source: at(source),
            target: target.into(),
            read_only,
        };
        // The second target is reached through a link of the image's that points out.
        let binds = [
            bind("volume", "/data/vol", false),
            bind("ro", "/up/ro", true),
            bind("missing", "/gone", false),
        ];
        let mounts = || {
            std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .filter(|l| l.contains(&*at("").to_string_lossy()))
                .count()
        };
        {
            let view = View::new(&overlay, &binds, &at("anchor")).unwrap();
            let put = |folder: &str| {
                unpack(
                    view.as_fd(),
                    Path::new(folder),
                    &tar(&[("new", Regular, "x")])[..],
                    Unpack::default(),
                )
            };
            put("/data/vol").unwrap();
            put("/data").unwrap();
            assert!(
                put("/etc/ro")
                    .unwrap_err()
                    .chain()
                    .contains("Read-only file system")
            );
            assert_eq!(mounts(), 0);
        }
        assert!(
            at("volume/new").exists() && at("upper/data/new").exists() && at("ro/kept").exists()
        );
        assert!(!world.root().join("data/new").exists());
        world.outside_is_untouched();
    }

    #[test]
    fn changes_are_reported_as_docker_does() {
        let world = World::new();
        let at = |name: &str| world.dir.path().join(name);
        let top = at("top");
        for name in ["upper", "work", "top", "top/opt", "top/opt/old"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(top.join("opt/old/a"), "a").unwrap();
        std::fs::write(top.join("opt/touched"), "a").unwrap();
        let lowers = vec![top.clone(), world.root()];
        let root = detached_overlay(&Overlay {
            lowers: lowers.clone(),
            upper: Some((at("upper"), at("work"))),
        })
        .unwrap();
        let inside = PathBuf::from(tree::proc_path(&root));
        std::fs::write(inside.join("data/file"), "other").unwrap();
        std::fs::write(inside.join("data/sub/new"), "new").unwrap();
        std::fs::remove_file(inside.join("link")).unwrap();
        std::fs::remove_dir_all(inside.join("opt/old")).unwrap();
        std::fs::create_dir(inside.join("opt/old")).unwrap();
        std::fs::create_dir_all(inside.join("made/deep")).unwrap();
        std::fs::create_dir(inside.join("proc")).unwrap();
        std::fs::create_dir(inside.join("run")).unwrap();
        std::fs::write(inside.join("run/.containerenv"), "").unwrap();
        std::fs::write(inside.join("etc/hosts"), "").unwrap();
        // Copied up and put back: no change.
        let permissions = std::fs::metadata(inside.join("opt/touched"))
            .unwrap()
            .permissions();
        std::fs::set_permissions(
            inside.join("opt/touched"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        std::fs::set_permissions(inside.join("opt/touched"), permissions).unwrap();
        let open = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let found = diff::changes(
            open(&at("upper")).as_fd(),
            lowers.iter().map(|l| open(l)).collect(),
            &mounted_over,
        )
        .unwrap();
        let lines: Vec<String> = found
            .iter()
            .map(|(path, change)| {
                format!(
                    "{} {}",
                    ["C", "A", "D"][*change as usize],
                    String::from_utf8_lossy(path)
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "C /data",
                "C /data/file",
                "C /data/sub",
                "A /data/sub/new",
                "D /link",
                "A /made",
                "A /made/deep",
                "C /opt",
                "C /opt/old",
                "D /opt/old/a"
            ]
        );
        let mut layer = Vec::new();
        let mut packer = Packer::layer(&mut layer, &mounted_over);
        packer.entries(open(&at("upper")).as_fd(), b"").unwrap();
        packer.finish().unwrap();
        let names: Vec<String> = tar::Archive::new(&layer[..])
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(
            names.contains(&".wh.link".to_owned())
                && names.contains(&"opt/old/.wh..wh..opq".to_owned()),
            "{names:?}"
        );
        assert!(
            !names
                .iter()
                .any(|name| name.starts_with("proc") || name == "etc/hosts"),
            "{names:?}"
        );
    }

    #[test]
    fn users_come_from_the_containers_lists() {
        let world = World::new();
        let user = |text: &str| user_of(&world.view(), text).map_err(|e| e.message().to_owned());
        assert_eq!(user("web"), Ok((33, 34)));
        assert_eq!(user("33"), Ok((33, 34)));
        assert_eq!(user("web:staff"), Ok((33, 50)));
        assert_eq!(user("1000"), Ok((1000, 0)));
        assert_eq!(user("1000:1000"), Ok((1000, 1000)));
        assert_eq!(
            user("nobody"),
            Err("unable to find user nobody: no matching entries in passwd file".into())
        );
    }

    #[test]
    fn a_commit_fills_what_the_request_leaves_open() {
        let own = RunConfig {
            env: vec!["A=1".into(), "B=2".into()],
            cmd: Some(vec!["run".into()]),
            entrypoint: Some(vec!["/init".into()]),
            working_dir: "/w".into(),
            ..RunConfig::default()
        };
        let mut config = RunConfig {
            env: vec!["B=3".into()],
            entrypoint: Some(vec!["/other".into()]),
            ..RunConfig::default()
        };
        complete(&mut config, &own);
        assert_eq!(config.env, ["B=3", "A=1"]);
        assert_eq!(
            (config.cmd, config.entrypoint, config.working_dir),
            (None, Some(vec!["/other".to_owned()]), "/w".to_owned())
        );
    }
}
