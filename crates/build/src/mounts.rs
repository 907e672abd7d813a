//! `RUN --mount`: what a step sees besides its own files, and nothing of which reaches its layer.

use crate::builder::Build;
use crate::client::SshSocket;
use crate::dockerfile::{Mount, MountKind, Sharing};
use crate::stage::{Run, Source, absolute, blocking};
use crate::tree::{self, Found, How};
use crate::{Failure, glob};
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::create::{self, ContainerConfig, HostConfig};
use gantry_image::steps::KeyHasher;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// A secret at most; BuildKit's own limit.
const SECRET_LIMIT: usize = 500 << 10;
/// Shorter secrets are not looked for in the output: every other line would have them.
const MASK_FROM: usize = 6;
/// Copies of one cache folder for `sharing=private`.
const PRIVATE_LIMIT: usize = 64;

/// The mounts of one step, sources resolved.
#[derive(Clone)]
pub(crate) struct Plan(Vec<Planned>);

#[derive(Clone)]
struct Planned {
    mount: Mount,
    target: String,
    source: Option<(Source, Found)>,
}

pub(crate) async fn plan(
    run: &Run,
    mounts: Vec<Mount>,
    working_dir: &str,
    line: usize,
) -> Result<Plan, Failure> {
    let mut planned = Vec::new();
    for mount in mounts {
        let target = match (mount.kind, mount.target.as_str()) {
            (MountKind::Secret, "") if mount.env.is_some() => String::new(),
            (MountKind::Secret, "") => format!("/run/secrets/{}", mount.id),
            (MountKind::Ssh, "") => format!("/run/buildkit/ssh_agent.{}", planned.len()),
            (_, typed) => absolute(working_dir, typed),
        };
        if target == "/" {
            return Err(Error::invalid("invalid mount target \"/\"").into());
        }
        let wants_source = mount.kind == MountKind::Bind
            || mount.kind == MountKind::Cache && !mount.from.is_empty();
        let source = if wants_source {
            let source = run.source(Some(mount.from.as_str()), line).await?;
            let text = mount.source.clone();
            if glob::has_wildcard(&text) {
                return Err(
                    Error::invalid(format!("a mount's source takes no pattern: {text}")).into(),
                );
            }
            let found = {
                let source = source.clone();
                blocking(move || tree::find(source.root()?, &text)).await?
            };
            let found = found.and_then(|mut found| found.pop()).ok_or_else(|| {
                Error::not_found(format!(
                    "failed to calculate checksum of ref: {:?}: not found",
                    format!("/{}", tree::clean(&mount.source).display())
                ))
            })?;
            Some((source, found))
        } else {
            None
        };
        planned.push(Planned {
            mount,
            target,
            source,
        });
    }
    Ok(Plan(planned))
}

impl Plan {
    /// Sources count by content, secrets, agents and caches by name alone.
    pub(crate) fn hash(&self, key: &mut KeyHasher) -> Result<()> {
        for planned in &self.0 {
            let mount = &planned.mount;
            key.part(format!("{:?} {} {}", mount.kind, planned.target, mount.id).as_bytes());
            key.part(format!("{:?} {:?} {:?}", mount.mode, mount.uid, mount.env).as_bytes());
            if let (MountKind::Bind, Some((source, found))) = (mount.kind, &planned.source) {
                tree::hash(source.root()?, found, &How::default(), key)?;
            }
        }
        Ok(())
    }

    /// Makes everything that is mounted and names it in the container's configuration.
    pub(crate) async fn prepare(
        self,
        build: &Arc<Build>,
        host: &mut HostConfig,
        config: &mut ContainerConfig,
    ) -> Result<Ready> {
        let mut ready = Ready::default();
        for planned in self.0 {
            let mount = planned.mount;
            ready.destinations.push(planned.target.clone());
            match mount.kind {
                MountKind::Tmpfs => {
                    let mut options = "exec,mode=1777".to_owned();
                    if mount.size > 0 {
                        options.push_str(&format!(",size={}", mount.size));
                    }
                    host.tmpfs
                        .get_or_insert_default()
                        .insert(planned.target, options);
                }
                MountKind::Bind => {
                    let Some((source, found)) = planned.source else {
                        return Err(Error::internal("a bind mount without its source"));
                    };
                    let folder = bind_source(build, source, found, !mount.read_only).await?;
                    bind(host, &folder, &planned.target, mount.read_only);
                }
                MountKind::Cache => {
                    let caches = &build.builder.0.cache_mounts;
                    let (folder, guard) = caches.take(&mount, planned.source).await?;
                    ready.guards.push(guard);
                    bind(host, &folder, &planned.target, mount.read_only);
                }
                MountKind::Secret => {
                    secret(build, &mut ready, host, config, &mount, &planned.target).await?
                }
                MountKind::Ssh => {
                    let Some(socket) = build.client.ssh(&mount.id).await? else {
                        if mount.required {
                            return Err(Error::invalid(format!(
                                "unset ssh forward key {}: build with --ssh {}",
                                mount.id, mount.id
                            )));
                        }
                        ready.destinations.pop();
                        continue;
                    };
                    let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
                    set_owner(&socket.path, owner, mount.mode.unwrap_or(0o600))?;
                    bind(host, &socket.path, &planned.target, false);
                    config
                        .env
                        .get_or_insert_default()
                        .push(format!("SSH_AUTH_SOCK={}", planned.target));
                    ready.sockets.push(socket);
                }
            }
        }
        ready
            .destinations
            .retain(|destination| !destination.is_empty());
        Ok(ready)
    }
}

fn bind(host: &mut HostConfig, source: &Path, target: &str, read_only: bool) {
    host.mounts.push(create::Mount {
        kind: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        target: target.to_owned(),
        read_only,
        ..create::Mount::default()
    });
}

/// A folder or file on this machine to bind. What the step may write to, and what is spread over layers, is copied.
async fn bind_source(
    build: &Arc<Build>,
    source: Source,
    found: Found,
    writes: bool,
) -> Result<PathBuf> {
    if let (Some(path), false) = (source.path(), writes) {
        return Ok(path.join(&found.path));
    }
    let copy = build.workspace.folder("bind")?;
    let result = copy.clone();
    blocking(move || {
        let how = How {
            owner: source.is_context().then_some((0, 0)),
            ..How::default()
        };
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open(&copy, flags, rustix::fs::Mode::empty())
            .context(|| format!("opening {}", copy.display()))?;
        tree::copy(
            source.root()?,
            &found,
            std::os::fd::AsFd::as_fd(&root),
            Path::new(""),
            true,
            &how,
        )?;
        Ok(match (found.is_folder, found.path.file_name()) {
            (false, Some(name)) => result.join(name),
            _ => result,
        })
    })
    .await
}

async fn secret(
    build: &Arc<Build>,
    ready: &mut Ready,
    host: &mut HostConfig,
    config: &mut ContainerConfig,
    mount: &Mount,
    target: &str,
) -> Result<()> {
    let Some(bytes) = build.client.secret(&mount.id).await? else {
        if mount.required {
            return Err(Error::not_found(format!(
                "secret {}: not found: build with --secret id={},src=FILE",
                mount.id, mount.id
            )));
        }
        if !target.is_empty() {
            ready.destinations.pop();
        }
        return Ok(());
    };
    if bytes.len() > SECRET_LIMIT {
        return Err(Error::invalid(format!(
            "secret {} is larger than 500 KiB",
            mount.id
        )));
    }
    if let Some(name) = &mount.env {
        let text = String::from_utf8(bytes.clone()).map_err(|_| {
            Error::invalid(format!(
                "secret {} is no text: it cannot be a variable",
                mount.id
            ))
        })?;
        config
            .env
            .get_or_insert_default()
            .push(format!("{name}={text}"));
    }
    let trimmed = bytes.trim_ascii();
    if trimmed.len() >= MASK_FROM {
        ready.secrets.push(trimmed.to_vec());
    }
    if !target.is_empty() {
        let file = ready.file(build, &bytes, mount.mode.unwrap_or(0o400))?;
        set_owner(
            &file,
            (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
            mount.mode.unwrap_or(0o400),
        )?;
        bind(host, &file, target, true);
    }
    Ok(())
}

fn set_owner(path: &Path, owner: (u32, u32), mode: u32) -> Result<()> {
    let text = || format!("preparing {}", path.display());
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1)).context(text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).context(text)
}

/// Everything of a step that goes away when it ends.
#[derive(Default)]
pub(crate) struct Ready {
    destinations: Vec<String>,
    secrets: Vec<Vec<u8>>,
    folder: Option<PathBuf>,
    files: u32,
    guards: Vec<CacheGuard>,
    sockets: Vec<SshSocket>,
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Ready {
    /// A file in the run folder (memory, on every usual system), gone with the step.
    fn file(&mut self, build: &Build, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        use std::io::Write;
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let folder = build.builder.0.run_dir.join(number.to_string());
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)
                    .context(|| format!("creating {}", folder.display()))?;
                self.folder = Some(folder.clone());
                folder
            }
        };
        self.files += 1;
        let path = folder.join(self.files.to_string());
        let text = || format!("writing {}", path.display());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .context(text)?;
        file.write_all(bytes).context(text)?;
        Ok(path)
    }

    /// A heredoc with an interpreter's line.
    pub(crate) fn script(
        &mut self,
        build: &Build,
        host: &mut HostConfig,
        target: &str,
        text: &str,
    ) -> Result<()> {
        let path = self.file(build, text.as_bytes(), 0o755)?;
        set_owner(&path, (0, 0), 0o755)?;
        bind(host, &path, target, true);
        Ok(())
    }

    /// The mount points as they are in the layers, links on the way followed.
    pub(crate) fn targets(&self, lowers: &[PathBuf]) -> Result<Vec<PathBuf>> {
        if self.destinations.is_empty() {
            return Ok(Vec::new());
        }
        let root = gantry_linux::view::detached_overlay(&gantry_linux::view::Overlay {
            lowers: lowers.to_vec(),
            upper: None,
        })
        .context(|| "looking into the layers of a stage".into())?;
        let handle = rustix::fs::OFlags::PATH;
        let mut targets = Vec::new();
        for destination in &self.destinations {
            let clean = tree::clean(destination);
            let mut known = PathBuf::new();
            for part in clean.components() {
                let next = known.join(part);
                // A link is resolved by the kernel; what is not there yet stays as typed.
                known = match gantry_linux::mount::open_in_root(&root, &next, handle) {
                    Ok(fd) => {
                        let path = gantry_linux::mount::fd_path(&fd);
                        let whole = std::fs::read_link(&path).unwrap_or_default();
                        let is_link = std::fs::symlink_metadata(&path).is_err();
                        if is_link || whole.as_os_str().is_empty() {
                            next
                        } else {
                            relative(&whole, lowers).unwrap_or(next)
                        }
                    }
                    Err(_) => next,
                };
            }
            targets.push(known);
        }
        Ok(targets)
    }

    /// Output without the secrets' bytes.
    pub(crate) fn masked<'a>(&self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        let mut out = std::borrow::Cow::Borrowed(bytes);
        for secret in &self.secrets {
            let has = |bytes: &[u8]| {
                bytes
                    .windows(secret.len())
                    .position(|window| window == &secret[..])
            };
            while let Some(at) = has(&out) {
                let mut masked = out[..at].to_vec();
                masked.extend_from_slice(b"***");
                masked.extend_from_slice(&out[at + secret.len()..]);
                out = std::borrow::Cow::Owned(masked);
            }
        }
        out
    }
}

/// The path that a descriptor shows is the mount's own: from the detached root, or from a layer's folder.
fn relative(path: &Path, lowers: &[PathBuf]) -> Option<PathBuf> {
    for lower in lowers {
        if let Ok(rest) = path.strip_prefix(lower) {
            return Some(rest.to_owned());
        }
    }
    path.strip_prefix("/").ok().map(Path::to_owned)
}

/// Folders of `--mount=type=cache`, by id: `D/build/mounts/<digest of the id>[-n]`.
pub(crate) struct CacheMounts {
    dir: PathBuf,
    taken: Mutex<HashMap<String, Arc<Shelf>>>,
}

#[derive(Default)]
struct Shelf {
    locked: Arc<tokio::sync::Mutex<()>>,
    /// Builds that use each copy.
    users: Mutex<BTreeMap<usize, usize>>,
}

/// A cache folder in use.
pub(crate) struct CacheGuard {
    shelf: Arc<Shelf>,
    copy: usize,
    _lock: Option<OwnedMutexGuard<()>>,
}

impl Drop for CacheGuard {
    fn drop(&mut self) {
        let mut users = self
            .shelf
            .users
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.copy) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.copy);
            }
        }
    }
}

impl CacheMounts {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            taken: Mutex::default(),
        }
    }

    async fn take(
        &self,
        mount: &Mount,
        source: Option<(Source, Found)>,
    ) -> Result<(PathBuf, CacheGuard)> {
        let mut key = KeyHasher::default();
        key.part(mount.id.as_bytes());
        let name = key.finish().hex();
        let shelf = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.entry(name.clone()).or_default().clone()
        };
        let lock = match mount.sharing {
            Sharing::Locked => Some(shelf.locked.clone().lock_owned().await),
            _ => None,
        };
        let copy = {
            let mut users = shelf.users.lock().unwrap_or_else(PoisonError::into_inner);
            let copy = match mount.sharing {
                Sharing::Private => (0..PRIVATE_LIMIT)
                    .find(|copy| !users.contains_key(copy))
                    .ok_or_else(|| {
                        Error::conflict(format!(
                            "cache {} is used by {PRIVATE_LIMIT} builds",
                            mount.id
                        ))
                    })?,
                _ => 0,
            };
            *users.entry(copy).or_default() += 1;
            copy
        };
        let guard = CacheGuard {
            shelf,
            copy,
            _lock: lock,
        };
        let folder = match copy {
            0 => self.dir.join(&name),
            n => self.dir.join(format!("{name}-{n}")),
        };
        let (made, mount) = (folder.clone(), mount.clone());
        blocking(move || make_cache(&made, &mount, source)).await?;
        Ok((folder, guard))
    }

    /// Removes the folders that no build uses now. Answers their bytes.
    pub(crate) fn prune(&self) -> u64 {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.split('-').next().unwrap_or_default();
            let busy = taken.get(id).is_some_and(|shelf| {
                !shelf
                    .users
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_empty()
            });
            if !busy {
                freed += size_of(&entry.path());
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        freed
    }
}

fn size_of(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(meta) = entry.metadata() {
            bytes += if meta.is_dir() {
                size_of(&entry.path())
            } else {
                meta.len()
            };
        }
    }
    bytes
}

/// Makes a cache folder that is not there yet, whole or not at all.
fn make_cache(folder: &Path, mount: &Mount, source: Option<(Source, Found)>) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let text = || format!("creating {}", folder.display());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let fresh = folder.with_extension(format!("new{}-{number}", std::process::id()));
    std::fs::create_dir_all(&fresh).context(text)?;
    let fill = || -> Result<()> {
        if let Some((source, found)) = source {
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC;
            let root = rustix::fs::open(&fresh, flags, rustix::fs::Mode::empty()).context(text)?;
            tree::copy(
                source.root()?,
                &found,
                std::os::fd::AsFd::as_fd(&root),
                Path::new(""),
                true,
                &How::default(),
            )?;
        }
        let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        set_owner(&fresh, owner, mount.mode.unwrap_or(0o755))
    };
    let placed = fill().and_then(|()| match std::fs::rename(&fresh, folder) {
        Err(_) if folder.exists() => Ok(()),
        other => other.context(text),
    });
    let _ = std::fs::remove_dir_all(&fresh);
    placed
}
