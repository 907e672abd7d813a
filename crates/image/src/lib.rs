//! Images on one node: keep them, bring them in and out, turn them into root filesystems.
//!
//! archive --load--> blobs (content store) --unpack--> layers --prepare--> snapshot (overlay folders) --> runtime
//!
//! Start with [`Store`]; `archive` reads what `docker save` and OCI tools write; `layer` extracts one tar safely;
//! `store` owns rows, files and what may be freed; `disk` keeps a budget and checks what lies there; `registries` says how registries
//! are reached and `remote` speaks with them for `pull` and `push`. Not here: running anything, serving HTTP.
//!
//! ```text
//! D/images/blobs/sha256/<hex>     configs, manifests and layer tars as they came in (verified, synced)
//! D/images/layers/<n>/            one unpacked layer: overlay lower folder (short names: many must fit one mount)
//! D/images/tmp/                   being made; swept at start-up
//! D/containers/<id>/{upper,work}  a container's writable layer
//! ```
//!
//! Invariants
//! * A blob is visible only after its digest was verified and its file synced.
//! * A layer folder is visible (row in `layers/`) only after it was unpacked whole, its diff ID verified, and synced (syncfs).
//! * Only garbage collection deletes. Everyone else drops a reference.
//! * Nothing in an archive can touch a path outside its own layer folder (openat2 RESOLVE_BENEATH semantics on each component).
//!
//! What it costs (one core of this kind hashes 1.5 GB/s): a load is one pass; hashing and writing the archive on one core,
//! inflating and unpacking its layers on another. [`Store::get`] and [`Store::list`] read memory alone.
//!
//! Spec: OCI image-spec v1.1; Docker image spec v1.2 (`docker save`).

#![forbid(unsafe_code)]

mod archive;
mod disk;
mod layer;
mod pull;
mod push;
mod registries;
mod remote;
mod remove;
mod save;
mod schema1;
mod single;
mod spool;
pub mod steps;
mod store;
pub mod tarstream;

pub use disk::{Damage, DiskBudget, Reclaimed, Taken};
pub use pull::Resolved;
pub use registries::Registries;
pub use remote::Credentials;

use gantry_base::{Error, Result, db::Db};
use gantry_oci::{Digest, Reference, image::ImageConfig};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One image on this node.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration document: Docker's image ID.
    pub id: Digest,
    pub config: ImageConfig,
    /// The configuration's raw bytes.
    pub raw_config: Vec<u8>,
    /// Bytes of the files in all layers.
    pub size: u64,
    /// Chain of unpacked layers, base first.
    pub layers: Vec<LayerRef>,
    /// Sorted; empty for a dangling image.
    pub tags: Vec<Reference>,
    /// When it arrived here, nanoseconds since the epoch.
    pub loaded_at_ns: i64,
    /// The image that a commit was made from.
    pub parent: Option<Digest>,
    /// Digest of the manifest it came with, when it came with one.
    pub manifest: Option<Digest>,
    /// Layer folders that a mount needs, topmost first.
    pub(crate) lowers: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct LayerRef {
    pub diff_id: Digest,
    pub folder: PathBuf,
    pub size: u64,
}

/// What `load` brought in: a line of Docker's `Loaded image: …` / `Loaded image ID: …`.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub id: Digest,
    pub reference: Option<Reference>,
}

/// What a pull tells of a layer, by its blob's digest.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    Waiting(&'a Digest),
    Exists(&'a Digest),
    /// Bytes so far, and of all.
    Downloading(&'a Digest, u64, u64),
    Downloaded(&'a Digest),
    Complete(&'a Digest),
}

/// What a push tells of a layer, by its diff ID.
#[derive(Debug, Clone, Copy)]
pub enum PushProgress<'a> {
    Preparing(&'a Digest),
    Exists(&'a Digest),
    /// Mounted from this repository of the registry.
    Mounted(&'a Digest, &'a str),
    /// Bytes so far, and of all.
    Pushing(&'a Digest, u64, u64),
    Pushed(&'a Digest),
    /// The manifest says where it lies; it is not sent.
    Foreign(&'a Digest),
}

/// What a pull brought.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub id: Digest,
    /// Of the document that the name led to.
    pub digest: Digest,
    pub reference: Reference,
    /// The name meant another image before, or none.
    pub is_new: bool,
}

/// What a push left in the registry.
#[derive(Debug, Clone)]
pub struct Pushed {
    pub tag: String,
    pub digest: Digest,
    /// Of the manifest.
    pub size: u64,
}

/// A line of `rmi`'s answer.
#[derive(Debug, Clone)]
pub enum Removed {
    Untagged(Reference),
    Deleted(Digest),
}

/// One line of `docker history`.
#[derive(Debug, Clone)]
pub struct HistoryLine {
    /// The image itself for the newest line, `None` (`<missing>`) for steps whose image is not here.
    pub id: Option<Digest>,
    /// Seconds since the epoch.
    pub created: i64,
    pub created_by: String,
    pub size: u64,
    pub comment: String,
    pub tags: Vec<Reference>,
}

/// A file for [`Store::build_single_layer`]. Parent folders that are not listed are made with mode 0755.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative to the root, without `..`.
    pub path: String,
    pub mode: u32,
    pub kind: EntryKind,
}

#[derive(Debug, Clone)]
pub enum EntryKind {
    File(Vec<u8>),
    Directory,
    Symlink(String),
}

/// Overlay folders for one container. `lowers` topmost first.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// An image is not removed while one of these lives. See [`Store::hold`].
#[must_use = "dropped, it holds nothing"]
pub struct Hold(#[expect(dead_code, reason = "works by being dropped")] store::Hold);

/// The node's images. Cheap to clone; all methods block (call them from a blocking thread when they read archives).
#[derive(Clone)]
pub struct Store(Arc<store::Inner>);

impl Store {
    /// Opens `dir` (`D/images`), sweeps half-made things. `registries`: how pulls and pushes reach their other end.
    pub fn open(dir: &Path, db: Db, registries: Registries) -> Result<Self> {
        Ok(Self(Arc::new(store::Inner::open(dir, db, registries)?)))
    }

    pub fn registries(&self) -> &Registries {
        &self.0.registries
    }

    /// `docker load`: a `docker save` archive or an OCI layout in a tar, plain or gzip or zstd.
    /// `progress` hears of each layer that arrived: its blob's digest and size. All images of the archive or none;
    /// what is wrong with an archive is `InvalidArgument`.
    pub fn load(
        &self,
        archive: impl Read + Send,
        progress: &mut dyn FnMut(&Digest, u64),
    ) -> Result<Vec<Loaded>> {
        archive::load(&self.0, archive, progress)
    }

    /// Asks the registry what a name means; nothing is fetched yet. `platform`: empty for this machine's, or `linux/arm64`.
    /// Errors in Docker's words: `manifest for … not found: …`, `pull access denied for …`.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &str,
        credentials: Option<Credentials>,
    ) -> Result<Resolved> {
        pull::resolve(&self.0.registries, reference, platform, credentials).await
    }

    /// `docker pull` of what was resolved. Blocks; `runtime` carries the connections. Ends soon after `gone` says that
    /// nobody waits any more.
    pub fn pull(
        &self,
        runtime: &tokio::runtime::Handle,
        resolved: &Resolved,
        progress: &(dyn Fn(Progress<'_>) + Sync),
        gone: &(dyn Fn() -> bool + Sync),
    ) -> Result<Pulled> {
        pull::pull(&self.0, runtime, resolved, progress, gone)
    }

    /// The tags that a registry has for a repository.
    pub async fn remote_tags(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Vec<String>> {
        let registries = &self.0.registries;
        let access = remote::Access::Pull;
        remote::Remote::connect_origin(registries, reference, access, credentials)
            .await?
            .tags()
            .await
    }

    /// `docker push` of one tag. Blocks; `runtime` carries the connections. Ends soon after `gone` says that nobody waits
    /// any more.
    pub fn push(
        &self,
        runtime: &tokio::runtime::Handle,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &(dyn Fn(PushProgress<'_>) + Sync),
        gone: &(dyn Fn() -> bool + Sync),
    ) -> Result<Pushed> {
        push::push(&self.0, runtime, reference, credentials, progress, gone)
    }

    /// `docker login`: asks the registry whether it knows the credentials. Answers with the token that stands for the
    /// password from now on, where the registry gives one.
    pub async fn login(&self, domain: &str, credentials: Credentials) -> Result<String> {
        let reference = host(domain);
        let registries = &self.0.registries;
        let access = remote::Access::Pull;
        remote::Remote::connect_origin(registries, &reference, access, Some(credentials))
            .await?
            .check()
            .await
    }

    /// `docker search`: what the index of `domain` answers to this query string, as it is.
    pub async fn search(
        &self,
        domain: &str,
        query: &str,
        credentials: Option<Credentials>,
    ) -> Result<bytes::Bytes> {
        let registries = &self.0.registries;
        let endpoint = registries.endpoint(domain).await;
        let access = remote::Access::Pull;
        remote::Remote::connect(registries, &endpoint, "", access, credentials)
            .await?
            .search(query)
            .await
    }

    /// `docker import`: a root file system tar (plain, gzip, zstd) becomes a one-layer image. `config` is the run
    /// configuration after `--change`; its file systems are ignored, and an empty history gets Docker's line.
    pub fn import(
        &self,
        tar: impl Read + Send,
        reference: Option<&Reference>,
        config: ImageConfig,
    ) -> Result<Digest> {
        single::import(&self.0, tar, reference, config)
    }

    /// `docker commit`: `layer` is the difference layer (a tar) over `base`. `config.history` holds this commit's entry alone
    /// (the base's history is put before it, the file systems likewise); empty makes a plain one.
    pub fn commit(
        &self,
        base: Option<&Digest>,
        layer: impl Read + Send,
        reference: Option<&Reference>,
        config: ImageConfig,
    ) -> Result<Digest> {
        single::commit(&self.0, base, layer, reference, config)
    }

    /// `docker save`: an archive that both Docker and OCI tools read. A name without tag means all its tags.
    pub fn save(&self, names: &[String], out: impl Write) -> Result<()> {
        save::save(&self.0, names, out)
    }

    /// By reference, full ID, or unambiguous ID prefix. `NotFound` in Docker's words: `No such image: …`.
    /// Costs a lookup and a reference count.
    pub fn get(&self, name: &str) -> Result<Arc<Image>> {
        self.0.find(name)?.ok_or_else(|| no_such_image(name))
    }

    /// Newest first.
    pub fn list(&self) -> Result<Vec<Arc<Image>>> {
        let mut images: Vec<_> = self.0.read().visible_images().cloned().collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.created_ns()));
        Ok(images)
    }

    /// `docker history`, newest step first.
    pub fn history(&self, name: &str) -> Result<Vec<HistoryLine>> {
        let image = self.get(name)?;
        let mut sizes = image.layers.iter().map(|layer| layer.size);
        let mut lines: Vec<HistoryLine> = image
            .config
            .history
            .iter()
            .map(|step| HistoryLine {
                id: None,
                created: step.created.as_deref().map_or(0, seconds),
                created_by: step.created_by.clone().unwrap_or_default(),
                size: if step.empty_layer {
                    0
                } else {
                    sizes.next().unwrap_or(0)
                },
                comment: step.comment.clone().unwrap_or_default(),
                tags: Vec::new(),
            })
            .collect();
        lines.reverse();
        if let Some(newest) = lines.first_mut() {
            newest.id = Some(image.id.clone());
            newest.tags.clone_from(&image.tags);
        }
        Ok(lines)
    }

    /// An image of one layer from files in memory: the demo image, test images. Same input, same ID.
    pub fn build_single_layer(
        &self,
        entries: &[Entry],
        config: ImageConfig,
        reference: Option<&Reference>,
    ) -> Result<Digest> {
        single::build(&self.0, entries, config, reference)
    }

    pub fn tag(&self, name: &str, reference: &Reference) -> Result<()> {
        let refuse = |words: &str| Err(Error::invalid(words));
        if reference.digest.is_some() {
            return refuse("refusing to create a tag with a digest reference");
        }
        if reference.familiar_name() == "sha256" {
            return refuse("refusing to create an ambiguous tag using digest algorithm as name");
        }
        let id = self.get(name)?.id.clone();
        self.0.set_tag(&id, &reference.clone().or_latest())
    }

    /// `in_use` names the containers of an image (id and whether one runs). Refusals in Docker's words (`conflict: unable to remove repository reference …`).
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Vec<(String, bool)>,
    ) -> Result<Vec<Removed>> {
        remove::remove(&self.0, name, force, in_use)
    }

    /// Of the images that are `wanted` the dangling ones, or all without containers. Returns what went and the bytes freed.
    pub fn prune(
        &self,
        all: bool,
        wanted: &dyn Fn(&Image) -> bool,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<(Vec<Removed>, u64)> {
        remove::prune(&self.0, all, wanted, in_use)
    }

    /// Takes unused images away until what is left is within a budget, the least recently used first. With `dry_run` it only says
    /// which. Never one that `in_use` names, that is pinned, that another was made from, or that is among the last used.
    pub fn reclaim(
        &self,
        budget: DiskBudget,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<(Reclaimed, Vec<Removed>)> {
        disk::reclaim(&self.0, budget, in_use)
    }

    /// Protects a name or an image from [`Store::reclaim`] and [`Store::prune`], or no longer.
    pub fn pin(&self, name: &str, wanted: bool) -> Result<()> {
        disk::pin(&self.0, name, wanted)
    }

    /// What is pinned: full names and IDs, sorted.
    pub fn pins(&self) -> Result<Vec<String>> {
        let mut pins: Vec<String> = disk::pins(&self.0)?.into_iter().collect();
        pins.sort();
        Ok(pins)
    }

    /// Reads every stored byte again and compares unpacked layers with their blobs: bytes read, and what is damaged. With
    /// `repair`, what can be made again here is, unless a running container (`runs`) stands on it; a damaged blob is taken
    /// away, so that a pull or load brings it anew.
    pub fn check(
        &self,
        repair: bool,
        runs: &dyn Fn(&Digest) -> bool,
    ) -> Result<(u64, Vec<Damage>)> {
        disk::check(&self.0, repair, runs)
    }

    /// Frees what removed images left because a stopped container still used them. Call it after containers were removed.
    pub fn collect(&self, in_use: &dyn Fn(&Digest) -> bool) -> Result<u64> {
        remove::collect(&self.0, in_use)
    }

    /// Bytes of all unpacked layers, each counted once (`docker system df`).
    pub fn layers_size(&self) -> u64 {
        self.0.read().layers.values().map(|row| row.size).sum()
    }

    /// Keeps an image for a container that is being made, until the container itself can be seen by the `in_use` of
    /// [`Store::remove`]. `NotFound` when it is gone or just being removed.
    pub fn hold(&self, image: &Digest) -> Result<Hold> {
        store::Hold::new(&self.0, image)
            .map(Hold)
            .inspect(|_| disk::touch(&self.0, image))
            .ok_or_else(|| no_such_image(&image.to_string()))
    }

    /// The folders of an image's layers, topmost first.
    pub fn layers(&self, image: &Digest) -> Result<Vec<PathBuf>> {
        match self.0.read().images.get(image) {
            Some(known) => Ok(known.image.lowers.clone()),
            None => Err(no_such_image(&image.to_string())),
        }
    }

    /// Makes `dir/{upper,work}` for a container. Idempotent. Costs a few mkdirs, no mount.
    /// The image may have been removed by force meanwhile; its layers stay while `remove` is told of the container.
    pub fn prepare(&self, image: &Digest, dir: &Path) -> Result<Snapshot> {
        let lowers = self.layers(image)?;
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        for folder in [&upper, &work] {
            make_folder(folder)?;
        }
        Ok(Snapshot {
            lowers,
            upper,
            work,
        })
    }
}

impl Image {
    /// Layer folders that a mount needs, topmost first.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }
    /// When it was built, nanoseconds since the epoch; 0 when it does not say.
    pub fn created_ns(&self) -> i64 {
        self.config
            .created
            .as_deref()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map_or(0, |time| i64::try_from(time.as_nanosecond()).unwrap_or(0))
    }
}

/// The image's other repositories on the registry of `reference`.
fn image_tags(image: &Image, reference: &Reference) -> Vec<String> {
    let mut paths: Vec<String> = image
        .tags
        .iter()
        .filter(|tag| tag.domain == reference.domain && tag.path != reference.path)
        .map(|tag| tag.path.clone())
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

fn host(domain: &str) -> Reference {
    Reference {
        domain: domain.to_owned(),
        path: String::new(),
        tag: None,
        digest: None,
    }
}

fn seconds(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_second)
}

/// Docker's words name the reference with its tag.
fn no_such_image(name: &str) -> Error {
    use gantry_oci::reference::AnyReference;
    let shown = match AnyReference::parse(name) {
        Ok(AnyReference::Name(reference)) => reference.or_latest().to_string(),
        Ok(AnyReference::Id(id)) => id.to_string(),
        Err(_) => name.to_owned(),
    };
    Error::not_found(format!("No such image: {shown}"))
}

/// Parents are made only when they lack: the usual case is one call.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    use gantry_base::ResultExt;
    use std::io::ErrorKind;
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let make = || std::fs::DirBuilder::new().mode(0o755).create(folder);
    let result = match make() {
        Err(e) if e.kind() == ErrorKind::NotFound => folder
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| make()),
        other => other,
    };
    match result {
        // The mode is the container's root folder's: not subject to our umask.
        Ok(()) => std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
    .context(|| format!("creating {}", folder.display()))
}
