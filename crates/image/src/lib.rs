//! Images on one node: keep them, bring them in and out, turn them into root filesystems.
//!
//! archive --load--> blobs (content store) --unpack--> layers --prepare--> snapshot (overlay folders) --> runtime
//!
//! Start with [`Store`]; [`layer`] extracts one tar safely; [`snapshot`] is what a container writes into.
//! Not here: running anything, HTTP.
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
//! Spec: OCI image-spec v1.1; Docker image spec v1.2 (`docker save`).

use gantry_base::{Result, db::Db};
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

/// The node's images. Cheap to clone; all methods block (call them from a blocking thread when they read archives).
#[derive(Clone)]
pub struct Store {}

impl Store {
    /// Opens `dir` (`D/images`), sweeps half-made things.
    pub fn open(_dir: &Path, _db: Db) -> Result<Self> {
        todo!()
    }
    /// `docker load`: a `docker save` archive or an OCI layout in a tar, plain or gzip or zstd.
    pub fn load(
        &self,
        _archive: impl Read + Send,
        _progress: &mut dyn FnMut(&Digest, u64),
    ) -> Result<Vec<Loaded>> {
        todo!()
    }
    /// `docker import`: a root file system tar becomes a one-layer image. `config` is the run configuration after `--change`.
    pub fn import(
        &self,
        _tar: impl Read + Send,
        _reference: Option<&Reference>,
        _config: ImageConfig,
    ) -> Result<Digest> {
        todo!()
    }
    /// `docker commit`: `layer` is the difference layer (a tar) over `base`. `config.history` holds this commit's entry alone
    /// (the base's history is put before it, the file systems likewise); empty makes a plain one.
    pub fn commit(
        &self,
        _base: Option<&Digest>,
        _layer: impl Read + Send,
        _reference: Option<&Reference>,
        _config: ImageConfig,
    ) -> Result<Digest> {
        todo!()
    }
    /// `docker save`: an archive that both Docker and OCI tools read.
    pub fn save(&self, _names: &[String], _out: impl Write) -> Result<()> {
        todo!()
    }
    /// By reference, full ID, or unambiguous ID prefix. `NotFound` in Docker's words: `No such image: …`.
    /// Costs a lookup and a reference count.
    pub fn get(&self, _name: &str) -> Result<Arc<Image>> {
        todo!()
    }
    /// Newest first.
    pub fn list(&self) -> Result<Vec<Arc<Image>>> {
        todo!()
    }
    /// `docker history`, newest step first.
    pub fn history(&self, _name: &str) -> Result<Vec<HistoryLine>> {
        todo!()
    }
    /// An image of one layer from files in memory: the demo image, test images. Same input, same ID.
    pub fn build_single_layer(
        &self,
        _entries: &[Entry],
        _config: ImageConfig,
        _reference: Option<&Reference>,
    ) -> Result<Digest> {
        todo!()
    }
    /// Frees what removed images left because a stopped container still used them. Call it after containers were removed.
    pub fn collect(&self, _in_use: &dyn Fn(&Digest) -> bool) -> Result<u64> {
        todo!()
    }
    /// Bytes of all unpacked layers, each counted once (`docker system df`).
    pub fn layers_size(&self) -> u64 {
        todo!()
    }
    pub fn tag(&self, _name: &str, _reference: &Reference) -> Result<()> {
        todo!()
    }
    /// `in_use` names the containers of an image (id and whether one runs). Refusals in Docker's words (`conflict: unable to remove repository reference …`).
    pub fn remove(
        &self,
        _name: &str,
        _force: bool,
        _in_use: &dyn Fn(&Digest) -> Vec<(String, bool)>,
    ) -> Result<Vec<Removed>> {
        todo!()
    }
    /// Dangling ones, or all without containers. Returns what went and the bytes freed.
    pub fn prune(
        &self,
        _all: bool,
        _in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<(Vec<Removed>, u64)> {
        todo!()
    }
    /// Makes `dir/{upper,work}` for a container. Idempotent. Costs a few mkdirs, no mount.
    pub fn prepare(&self, _image: &Digest, _dir: &Path) -> Result<Snapshot> {
        todo!()
    }
}
