//! Named and anonymous volumes, of the `local` driver and of plug-ins ([`crate::plugins`]), which keep the files themselves.
//!
//! ```text
//! D/volumes/<name>/_data      what containers see
//! D/volumes/.removing-<name>  being removed; swept at start-up
//! db volumes/<name>           Record
//! ```
//! Who uses a volume is derived from the containers' records, never stored a second time.
//!
//! A volume with `type=tmpfs` is mounted on its `_data` when a container first needs it, because all its containers must see the
//! same files; one with `o=bind` is the other folder itself and needs no mount.

use crate::events::now_ns;
use crate::files::tree;
use crate::{Engine, Filters};
use gantry_base::db::Batch;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_linux::mount::{open_in_root, open_in_root_no_links};
use gantry_linux::view::{Overlay, detached_overlay};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Marks a volume that nobody named; `prune` takes these first. Docker's own label.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

const TABLE: &str = "volumes";
/// The driver that is no plug-in.
pub const LOCAL: &str = "local";
/// What a volume plug-in says it implements, and before the name of each question.
const DRIVER: &str = "VolumeDriver";
const SCHEMA: u32 = 1;
/// Volumes of one node.
const VOLUME_LIMIT: usize = 100_000;
const REMOVING: &str = ".removing-";

/// A volume as stored (`volumes/<name>`). `schema` = 1; a newer one is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub name: String,
    pub driver: String,
    pub created_at_ns: i64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `type`, `o`, `device`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// `POST /volumes/create`.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    /// Empty picks one of 64 hex digits and marks it anonymous.
    pub name: String,
    /// Empty means `local`.
    pub driver: String,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// `UsageData` of `GET /volumes/{name}` and `system df`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub size_bytes: u64,
    pub references: usize,
}

/// What the engine holds for volumes: one change of the set at a time.
#[derive(Default)]
pub(crate) struct Volumes {
    changes: tokio::sync::Mutex<()>,
    /// Names that a container being created will use; its record does not show it yet.
    claimed: Arc<Mutex<Vec<String>>>,
}

/// Keeps a volume from being removed until the container that wants it is there to be seen.
pub(crate) struct Claim {
    claimed: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = claimed.iter().position(|name| *name == self.name) {
            claimed.swap_remove(at);
        }
    }
}

impl Volumes {
    fn claim(&self, name: &str) -> Claim {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.push(name.to_owned());
        Claim {
            claimed: self.claimed.clone(),
            name: name.to_owned(),
        }
    }
    fn is_claimed(&self, name: &str) -> bool {
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.iter().any(|have| have == name)
    }
}

impl Record {
    pub fn anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_LABEL)
    }
}

impl Engine {
    /// By name.
    pub fn volumes(&self) -> Vec<Record> {
        match self.0.db.scan::<Record>(TABLE) {
            Ok(records) => records.into_iter().map(|(_, record)| record).collect(),
            Err(e) => {
                tracing::error!(error = e.chain(), "listing volumes");
                Vec::new()
            }
        }
    }

    /// `NotFound`: `get x: no such volume`.
    pub fn volume(&self, name: &str) -> Result<Record> {
        let record: Option<Record> = self.0.db.get(TABLE, name)?;
        let record =
            record.ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))?;
        if record.schema > SCHEMA {
            return Err(Error::internal(format!(
                "volume {name} was written by a newer gantry (schema {})",
                record.schema
            )));
        }
        Ok(record)
    }

    /// `Mountpoint` of inspect.
    pub fn volume_mountpoint(&self, name: &str) -> PathBuf {
        self.volume_folder(name).join("_data")
    }

    fn volumes_folder(&self) -> PathBuf {
        self.0.settings.data_dir.join("volumes")
    }

    fn volume_folder(&self, name: &str) -> PathBuf {
        self.volumes_folder().join(name)
    }

    /// Idempotent: an existing volume of that name is the answer.
    pub async fn volume_create(&self, request: CreateVolume) -> Result<Record> {
        Ok(self.volume_claim(request).await?.0)
    }

    /// The same for a container being created.
    pub(crate) async fn volume_claim(&self, request: CreateVolume) -> Result<(Record, Claim)> {
        if !matches!(request.driver.as_str(), "" | LOCAL) {
            // Before the name is looked at, as in Docker.
            let found = self.driver(&request.driver).await;
            let text =
                |e: Error| Error::new(e.kind(), format!("create {}: {}", request.name, e.chain()));
            found.map_err(text)?;
        }
        let record = plan(request, now_ns(), crate::random_id)?;
        let name = record.name.as_str();
        let fail = |e: Error| Error::new(e.kind(), format!("create {name}: {}", e.chain()));
        let _one = self.0.volumes.changes.lock().await;
        if let Some(existing) = self.0.db.get::<Record>(TABLE, name)? {
            let claim = self.0.volumes.claim(&existing.name);
            return Ok((existing, claim));
        }
        if record.driver != LOCAL {
            // Asked before the record: a volume that only the plug-in knows is found again by the next create.
            self.ask_driver(&record.driver, "Create", &record)
                .await
                .map_err(fail)?;
        }
        if self.volumes().len() >= VOLUME_LIMIT {
            return Err(fail(Error::conflict(format!(
                "this node has {VOLUME_LIMIT} volumes, the most it may have"
            ))));
        }
        // A folder without a record is harmless, a record without a folder is mended at the first use.
        if record.driver == LOCAL {
            make_folders(&self.volume_folder(name)).map_err(fail)?;
        }
        self.0
            .db
            .commit(Batch::new().put(TABLE, name, &record))
            .await?;
        self.volume_event("create", name, &record.driver);
        let claim = self.0.volumes.claim(name);
        Ok((record, claim))
    }

    /// `Conflict`: `remove x: volume is in use - [id]`. With `force` an absent one is fine.
    pub async fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        match self.volume(name) {
            Err(e) if force && e.kind() == ErrorKind::NotFound => return Ok(()),
            result => drop(result?),
        }
        self.remove_volume(name).await?;
        Ok(())
    }

    async fn remove_volume(&self, name: &str) -> Result<()> {
        let _one = self.0.volumes.changes.lock().await;
        let users = self.volume_users(name);
        if !users.is_empty() || self.0.volumes.is_claimed(name) {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(" ")
            )));
        }
        let record = self.volume(name)?;
        if record.driver != LOCAL {
            let asked = self.ask_driver(&record.driver, "Remove", &record).await;
            asked.map_err(|e| Error::new(e.kind(), format!("remove {name}: {}", e.chain())))?;
            self.0.db.commit(Batch::new().delete(TABLE, name)).await?;
            self.volume_event("destroy", name, &record.driver);
            return Ok(());
        }
        let folder = self.volume_folder(name);
        let aside = self.volumes_folder().join(format!("{REMOVING}{name}"));
        let text = || format!("remove {name}: removing {}", folder.display());
        unmount(&folder.join("_data")).context(text)?;
        // Out of the way before the record goes: a later volume of that name must not find these files.
        let (from, to) = (folder.clone(), aside.clone());
        tokio::task::spawn_blocking(move || set_aside(&from, &to))
            .await
            .context(text)?
            .context(text)?;
        self.0.db.commit(Batch::new().delete(TABLE, name)).await?;
        self.volume_event("destroy", name, LOCAL);
        // Nobody waits for the files to go; what a crash leaves the next start sweeps.
        tokio::task::spawn_blocking(move || {
            if let Err(e) = std::fs::remove_dir_all(&aside)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %aside.display(), error = %e, "removing a volume's files");
            }
        });
        Ok(())
    }

    /// Anonymous ones without users, with filter `all=true` named ones too. Returns names and bytes freed.
    pub async fn volume_prune(&self, filters: &Filters) -> Result<(Vec<String>, u64)> {
        let all = filters.flag("all")?.unwrap_or(false);
        let (mut removed, mut freed) = (Vec::new(), 0);
        for record in self.volumes() {
            if !(all || record.anonymous())
                || !filters.labels(&record.labels)
                || !self.volume_users(&record.name).is_empty()
            {
                continue;
            }
            let size = self.volume_size(&record).await;
            match self.remove_volume(&record.name).await {
                Ok(()) => {
                    freed += size;
                    removed.push(record.name);
                }
                // A container took it meanwhile.
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => {
                    tracing::warn!(volume = record.name, error = e.chain(), "pruning a volume")
                }
            }
        }
        let attributes = BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]);
        self.0.events.publish("volume", "prune", "", attributes);
        Ok((removed, freed))
    }

    /// Every volume with its size and number of users, for `system df`.
    pub async fn volumes_usage(&self) -> Result<Vec<(Record, Usage)>> {
        let mut all = Vec::new();
        for record in self.volumes() {
            let usage = Usage {
                size_bytes: self.volume_size(&record).await,
                references: self.volume_users(&record.name).len(),
            };
            all.push((record, usage));
        }
        Ok(all)
    }

    async fn volume_size(&self, record: &Record) -> u64 {
        if record.driver != LOCAL {
            return 0;
        }
        let folder = self.volume_mountpoint(&record.name);
        tokio::task::spawn_blocking(move || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(&folder, flags, Mode::empty()).ok()?;
            tree::measure(folder.as_fd()).ok()
        })
        .await
        .ok()
        .flatten()
        .unwrap_or(0)
    }

    /// IDs of the containers that mount it, running or not.
    pub fn volume_users(&self, name: &str) -> Vec<String> {
        let uses = |record: &crate::Record| {
            record
                .mounts
                .iter()
                .any(|m| m.kind == "volume" && m.name.as_deref() == Some(name))
        };
        self.list()
            .iter()
            .filter(|record| uses(record))
            .map(|record| record.id.clone())
            .collect()
    }

    /// Before a start: makes what the volume's options ask for and returns the folder to bind into the container
    /// (for `o=bind` the device itself). Idempotent. A plug-in's volume is mounted for the container and given back by
    /// [`Engine::volumes_deactivate`]; `None` stands for somebody who only looks, which plug-ins do not serve.
    pub async fn volume_activate(&self, name: &str, container: Option<&str>) -> Result<PathBuf> {
        let record = self.volume(name)?;
        if record.driver != LOCAL {
            let Some(container) = container else {
                return Err(Error::conflict(format!(
                    "volume {name} belongs to plugin {}: its files are there while a container runs with it",
                    record.driver
                )));
            };
            let plugin = self.plugin(&record.driver, DRIVER).await?;
            let question = serde_json::json!({"Name": name, "ID": container});
            let answer = plugin.call("VolumeDriver.Mount", &question).await?;
            let place = answer["Mountpoint"].as_str().unwrap_or_default();
            return if place.starts_with('/') {
                Ok(place.into())
            } else {
                Err(Error::internal(format!(
                    "plugin {} mounted volume {name} at {place:?}, which is no absolute path",
                    record.driver
                )))
            };
        }
        match placed(&record.options)? {
            Place::Folder => {
                let folder = self.volume_folder(name);
                make_folders(&folder)?;
                Ok(folder.join("_data"))
            }
            Place::Bind(device) => match std::fs::metadata(&device) {
                Ok(_) => Ok(device),
                Err(e) => {
                    let at = self.volume_mountpoint(name);
                    let words = std::io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(0))
                        .to_string();
                    let words = words
                        .split(" (os error")
                        .next()
                        .unwrap_or_default()
                        .to_lowercase();
                    Err(Error::internal(format!(
                        "failed to mount local volume: mount {}:{}, flags: 0x1000: {words}",
                        device.display(),
                        at.display()
                    )))
                }
            },
            Place::Tmpfs(options) => {
                let folder = self.volume_folder(name);
                make_folders(&folder)?;
                let at = folder.join("_data");
                let _one = self.0.volumes.changes.lock().await;
                mount_tmpfs(&at, &options).context(|| {
                    format!("failed to mount local volume: mount tmpfs:{}", at.display())
                })?;
                Ok(at)
            }
        }
    }

    /// After a container stopped: takes down what `volume_activate` put up for it, unless another container knows the volume.
    /// The caller holds the container's lock, so that it does not start meanwhile.
    pub(crate) async fn volumes_deactivate(&self, record: &crate::Record) {
        for name in record.mounts.iter().filter_map(|m| m.name.as_deref()) {
            let foreign = self
                .volume(name)
                .ok()
                .filter(|volume| volume.driver != LOCAL);
            if let Some(volume) = foreign {
                let question = serde_json::json!({"Name": name, "ID": record.id});
                let asked = async {
                    let plugin = self.plugin(&volume.driver, DRIVER).await?;
                    plugin.call("VolumeDriver.Unmount", &question).await
                };
                if let Err(e) = asked.await {
                    tracing::warn!(
                        volume = name,
                        error = e.chain(),
                        "giving a plug-in's volume back"
                    );
                }
                continue;
            }
            let tmpfs = self
                .volume(name)
                .is_ok_and(|volume| matches!(placed(&volume.options), Ok(Place::Tmpfs(_))));
            if !tmpfs
                || self.volume_users(name).iter().any(|id| *id != record.id)
                || self.0.volumes.is_claimed(name)
            {
                continue;
            }
            if let Err(e) = unmount(&self.volume_mountpoint(name)) {
                tracing::warn!(volume = name, error = %e, "unmounting a volume");
            }
        }
    }

    /// First use of an empty volume: copies what the image has at `destination` into it, with owner, mode and attributes.
    /// `lowers` are the image's layer folders, topmost first. A volume that holds anything stays as it is.
    pub async fn volume_populate(
        &self,
        name: &str,
        lowers: &[PathBuf],
        destination: &Path,
    ) -> Result<()> {
        if self.volume(name)?.driver != LOCAL {
            // What is in it is the plug-in's matter.
            return Ok(());
        }
        let folder = self.volume_activate(name, None).await?;
        let (lowers, destination) = (lowers.to_vec(), destination.to_owned());
        let text = format!(
            "copying the image's content of {} into volume {name}",
            destination.display()
        );
        tokio::task::spawn_blocking(move || populate(&folder, lowers, &destination))
            .await
            .context(|| text.clone())?
            .context(|| text)
    }

    /// At start-up: finishes removals that a crash interrupted. Blocks.
    pub(crate) fn sweep_volumes(&self) {
        let Ok(folders) = std::fs::read_dir(self.volumes_folder()) else {
            return;
        };
        for folder in folders.flatten() {
            let name = folder.file_name();
            let Some(volume) = name.to_str().and_then(|name| name.strip_prefix(REMOVING)) else {
                continue;
            };
            let swept = std::fs::remove_dir_all(folder.path()).context(|| "removing files".into());
            let result = swept.and_then(|()| match self.volume_folder(volume).exists() {
                true => Ok(()),
                false => self
                    .0
                    .db
                    .commit_blocking(Batch::new().delete(TABLE, volume)),
            });
            if let Err(e) = result {
                tracing::warn!(
                    volume,
                    error = e.chain(),
                    "finishing the removal of a volume"
                );
            }
        }
    }

    /// A driver that nobody has is `NotFound`.
    async fn driver(&self, driver: &str) -> Result<Arc<crate::plugins::Plugin>> {
        self.plugin(driver, DRIVER).await.map_err(|e| {
            let text = format!("error looking up volume plugin {driver}: {}", e.chain());
            Error::new(e.kind(), text)
        })
    }

    /// `VolumeDriver.<method>` about a volume.
    async fn ask_driver(&self, driver: &str, method: &str, record: &Record) -> Result<()> {
        let plugin = self.driver(driver).await?;
        let question = serde_json::json!({"Name": record.name, "Opts": record.options});
        let method = format!("{DRIVER}.{method}");
        plugin.call(&method, &question).await.map(drop)
    }

    fn volume_event(&self, action: &str, name: &str, driver: &str) {
        let attributes = BTreeMap::from([("driver".to_owned(), driver.to_owned())]);
        self.0.events.publish("volume", action, name, attributes);
    }
}

/// The record that a request asks for. Pure but for the name it draws.
fn plan(request: CreateVolume, now_ns: i64, draw: impl FnOnce() -> String) -> Result<Record> {
    let CreateVolume {
        mut name,
        driver,
        mut labels,
        options,
    } = request;
    if name.is_empty() {
        name = draw();
        labels.insert(ANONYMOUS_LABEL.into(), String::new());
    }
    let fail = |kind, text: String| Error::new(kind, format!("create {name}: {text}"));
    validate_name(&name).map_err(|text| fail(ErrorKind::InvalidArgument, text))?;
    let driver = if driver.is_empty() {
        LOCAL.into()
    } else {
        driver
    };
    if driver == LOCAL {
        placed(&options).map_err(|e| fail(e.kind(), e.message().to_owned()))?;
    }
    Ok(Record {
        schema: SCHEMA,
        name,
        driver,
        created_at_ns: now_ns,
        labels,
        options,
    })
}

/// Docker's rule and words, without the `create x: ` before them.
fn validate_name(name: &str) -> Result<(), String> {
    if name.len() == 1 {
        return Err(
            "volume name is too short, names should be at least two alphanumeric characters".into(),
        );
    }
    let word = |b: &u8| b.is_ascii_alphanumeric() || b"_.-".contains(b);
    let valid = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric())
        && name.as_bytes().iter().all(word);
    // One folder name: the file system's limit, less what removal puts before it.
    if valid && name.len() + REMOVING.len() <= 255 {
        return Ok(());
    }
    Err(format!(
        "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    ))
}

/// What a volume's options make of it.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Folder,
    Bind(PathBuf),
    /// Options as the kernel reads them.
    Tmpfs(String),
}

fn placed(options: &BTreeMap<String, String>) -> Result<Place> {
    for option in options.keys() {
        if !matches!(option.as_str(), "type" | "o" | "device" | "size") {
            return Err(Error::invalid(format!("invalid option: {option:?}")));
        }
    }
    if options.contains_key("size") {
        return Err(Error::invalid("quota size requested but no quota support"));
    }
    let get = |key: &str| {
        options
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    let (kind, flags, device) = (get("type"), get("o"), get("device"));
    let missing = |key: &str| Error::invalid(format!("missing required option: {key:?}"));
    if kind.is_none() && flags.is_none() && device.is_none() {
        return Ok(Place::Folder);
    }
    let device = device.ok_or_else(|| missing("device"))?;
    let kind = kind.ok_or_else(|| missing("type"))?;
    let flags: Vec<&str> = flags
        .unwrap_or_default()
        .split(',')
        .filter(|word| !word.is_empty())
        .collect();
    if flags.iter().any(|word| matches!(*word, "bind" | "rbind")) {
        if !device.starts_with('/') {
            return Err(Error::invalid(format!(
                "invalid device {device:?} of a bind: it must be an absolute path"
            )));
        }
        return Ok(Place::Bind(device.into()));
    }
    match kind {
        "tmpfs" => {
            let known = ["size=", "mode=", "uid=", "gid=", "nr_inodes=", "nr_blocks="];
            let simple = ["rw", "nosuid", "nodev", "noexec", "noatime"];
            for word in &flags {
                if !simple.contains(word) && !known.iter().any(|key| word.starts_with(key)) {
                    return Err(Error::invalid(format!(
                        "invalid option {word:?} for a tmpfs volume"
                    )));
                }
            }
            Ok(Place::Tmpfs(flags.join(",")))
        }
        other => Err(Error::new(
            ErrorKind::NotImplemented,
            format!(
                "volumes of type {other:?} are not supported; supported are tmpfs, and folders with o=bind. Mount it on the host and use o=bind"
            ),
        )),
    }
}

fn make_folders(folder: &Path) -> Result<()> {
    let make = |path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new()
            .recursive(false)
            .mode(mode)
            .create(path);
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    };
    let parent = folder.parent().unwrap_or(folder);
    make(parent, 0o701)
        .and_then(|()| make(folder, 0o701))
        .and_then(|()| make(&folder.join("_data"), 0o755))
        .context(|| {
            format!(
                "error while creating volume path '{}'",
                folder.join("_data").display()
            )
        })
}

fn set_aside(folder: &Path, aside: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match std::fs::rename(folder, aside) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Mounts once: a second call finds the first one's mount.
pub(crate) fn mount_tmpfs(at: &Path, options: &str) -> io::Result<()> {
    if is_mounted(at)? {
        return Ok(());
    }
    let mut flags = rustix::mount::MountFlags::empty();
    let mut data = Vec::new();
    for word in options.split(',').filter(|word| !word.is_empty()) {
        match word {
            "nosuid" => flags |= rustix::mount::MountFlags::NOSUID,
            "nodev" => flags |= rustix::mount::MountFlags::NODEV,
            "noexec" => flags |= rustix::mount::MountFlags::NOEXEC,
            "noatime" => flags |= rustix::mount::MountFlags::NOATIME,
            "rw" => {}
            word => data.push(word),
        }
    }
    let data = std::ffi::CString::new(data.join(","))?;
    Ok(rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        flags,
        data.as_c_str(),
    )?)
}

/// Whether something is mounted on exactly this folder: it lies on another device than its parent.
fn is_mounted(at: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = at.parent().unwrap_or(at);
    Ok(std::fs::symlink_metadata(at)?.dev() != std::fs::symlink_metadata(parent)?.dev())
}

pub(crate) fn unmount(at: &Path) -> io::Result<()> {
    match is_mounted(at) {
        Ok(true) => Ok(rustix::mount::unmount(
            at,
            rustix::mount::UnmountFlags::NOFOLLOW,
        )?),
        Ok(false) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn populate(volume: &Path, lowers: Vec<PathBuf>, destination: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let volume = rustix::fs::open(volume, flags, Mode::empty())?;
    if lowers.is_empty() || !tree::is_empty(&volume)? {
        return Ok(());
    }
    if !lowers.iter().any(|lower| may_have(lower, destination)) {
        return Ok(());
    }
    let root = detached_overlay(&Overlay {
        lowers,
        upper: None,
    })?;
    let source = match open_in_root(&root, destination, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        source => source?,
    };
    tree::copy_entries(source.as_fd(), volume.as_fd())?;
    let stat = rustix::fs::fstat(&source)?;
    tree::Ownership::of(&stat).apply(&volume, &tree::xattrs(&source)?)
}

/// Whether a layer can have a part in what the image shows at `path`. Without a link on the way it must have all of the path itself;
/// most images have nothing there, and need no mount to find that out.
fn may_have(lower: &Path, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(lower, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|lower| open_in_root_no_links(&lower, path, OFlags::PATH | OFlags::NOFOLLOW));
    match handle {
        Ok(_) => true,
        Err(e) => !matches!(
            e.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> BTreeMap<String, String> {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').expect("key=value"))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn names_as_docker_takes_them() {
        for good in ["ab", "a.b", "A_b-c", "0a"] {
            assert_eq!(validate_name(good), Ok(()), "{good}");
        }
        for bad in ["a/b", "../x", ".x", "-x", "a b", "ä1", "", &"x".repeat(250)] {
            assert!(
                validate_name(bad)
                    .unwrap_err()
                    .contains("includes invalid characters"),
                "{bad}"
            );
        }
        assert!(
            validate_name("a")
                .unwrap_err()
                .starts_with("volume name is too short")
        );
    }

    #[test]
    fn options_decide_the_place() {
        let place = |text: &str| placed(&options(text)).map_err(|e| e.message().to_owned());
        assert_eq!(place(""), Ok(Place::Folder));
        assert_eq!(
            place("type=none o=bind device=/srv"),
            Ok(Place::Bind("/srv".into()))
        );
        assert_eq!(
            place("type=tmpfs device=tmpfs o=size=1m,nosuid"),
            Ok(Place::Tmpfs("size=1m,nosuid".into()))
        );
        assert_eq!(
            place("device=/srv o=bind"),
            Err("missing required option: \"type\"".into())
        );
        assert_eq!(
            place("type=tmpfs"),
            Err("missing required option: \"device\"".into())
        );
        assert_eq!(place("foo=1"), Err("invalid option: \"foo\"".into()));
        assert!(
            place("type=nfs o=addr=1.2.3.4 device=:/x")
                .unwrap_err()
                .contains("\"nfs\" are not supported")
        );
        assert!(place("type=tmpfs device=x o=size=1,evil=2").is_err());
    }

    #[test]
    fn a_plan_names_what_it_refuses() {
        let refuse = |name: &str, driver: &str| {
            let request = CreateVolume {
                name: name.into(),
                driver: driver.into(),
                ..Default::default()
            };
            plan(request, 0, || "f".repeat(64))
                .unwrap_err()
                .message()
                .to_owned()
        };
        assert!(refuse("a", "local").contains("volume name is too short"));
        assert!(refuse("a/b", "foo").contains("includes invalid characters"));
        // A plug-in's options are the plug-in's matter.
        let request = CreateVolume {
            name: "x1".into(),
            driver: "foo".into(),
            options: options("any=thing"),
            ..Default::default()
        };
        let planned = plan(request, 0, || "f".repeat(64)).unwrap();
        assert_eq!((planned.driver.as_str(), planned.options.len()), ("foo", 1));
        let anonymous = plan(CreateVolume::default(), 7, || "f".repeat(64)).unwrap();
        assert!(anonymous.anonymous());
        assert_eq!((anonymous.name.len(), anonymous.created_at_ns), (64, 7));
    }

    #[test]
    fn an_empty_volume_takes_the_images_content_once() {
        let dir = tempfile::tempdir().unwrap();
        let (low, top, volume) = (
            dir.path().join("low"),
            dir.path().join("top"),
            dir.path().join("vol"),
        );
        for folder in ["low/data/sub", "top/data", "top/etc", "vol"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(low.join("data/sub/a"), "old").unwrap();
        std::fs::hard_link(low.join("data/sub/a"), low.join("data/b")).unwrap();
        std::fs::write(top.join("data/c"), "new").unwrap();
        // A link that points out of the image must lead nowhere.
        std::os::unix::fs::symlink("../../../../../../etc", top.join("out")).unwrap();
        std::os::unix::fs::chown(low.join("data/b"), Some(7), Some(8)).unwrap();
        let lowers = vec![top, low];
        populate(&volume, lowers.clone(), Path::new("/out")).unwrap();
        assert!(
            std::fs::read_dir(&volume).unwrap().next().is_none(),
            "the image's own /etc is empty"
        );
        populate(&volume, lowers.clone(), Path::new("/data")).unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("c")).unwrap(), "new");
        use std::os::unix::fs::MetadataExt;
        let (a, b) = (
            std::fs::metadata(volume.join("sub/a")).unwrap(),
            std::fs::metadata(volume.join("b")).unwrap(),
        );
        assert_eq!((a.ino(), a.uid(), a.gid()), (b.ino(), 7, 8));
        std::fs::remove_file(volume.join("c")).unwrap();
        populate(&volume, lowers, Path::new("/data")).unwrap();
        assert!(!volume.join("c").exists(), "only an empty volume is filled");
    }
}
