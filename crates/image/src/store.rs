//! What is known about images: rows in the node database, the same in memory for readers, files in `D/images`.
//!
//! ```text
//! images/<image ID>   ImageRow   layers (keys), manifest, parent, when
//! tags/<full name>    image ID
//! layers/<key>        LayerRow   folder number, diff ID, blob
//! ```
//! A layer's key is its diff ID, so that equal layers are shared whatever lies below them; a layer whose content depends
//! on what lies below (see [`crate::layer`]) has `chain-` and its chain ID.
//!
//! Order of every change: files complete and synced in `tmp` → renamed into place → rows committed → memory. Removal goes
//! the other way. So after a crash at any line a row never lacks its files, and [`Inner::open`] sweeps files without rows.
//!
//! Layer tars are kept as they came, beside the unpacked folder. Docker throws them away and rebuilds them from the folder
//! and the recorded headers; that halves the disk but makes `save` and push slow, cannot give back a compressed blob with
//! its digest, and turns a damaged folder into a damaged image. With the blob, `save` is a copy, the manifest's digest
//! stays true, and a folder can be made again.

use crate::layer::Unpacked;
use crate::registries::Registries;
use crate::spool::{discard, sha256};
use crate::steps::StepRow;
use crate::{Image, LayerRef};
use gantry_base::{Error, Result, ResultExt, db::Batch, db::Db};
use gantry_linux::dirfd;
use gantry_oci::reference::AnyReference;
use gantry_oci::{Digest, Reference, image::ImageConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

const SCHEMA: u32 = 1;
/// Docker's `maxLayerDepth`; the kernel's own limit is 500.
pub(crate) const LAYER_LIMIT: usize = 125;
pub(crate) const CONFIG_LIMIT: u64 = 8 << 20;
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRow {
    pub(crate) schema: u32,
    /// Keys of the layers, base first.
    pub(crate) layers: Vec<String>,
    pub(crate) manifest: Option<Digest>,
    pub(crate) parent: Option<Digest>,
    pub(crate) loaded_at_ns: i64,
    /// Removed by force while a stopped container used it: nobody sees it, its layers stay.
    #[serde(default)]
    pub(crate) hidden: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRow {
    pub(crate) schema: u32,
    /// The folder `layers/<number>`.
    pub(crate) number: u64,
    pub(crate) diff_id: Digest,
    /// The layer tar as it came.
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    /// Bytes of the regular files.
    pub(crate) size: u64,
    pub(crate) opaque_root: bool,
}

#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) row: ImageRow,
    pub(crate) image: Arc<Image>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Known>,
    /// By [`Reference::canonical`].
    pub(crate) tags: BTreeMap<String, (Reference, Digest)>,
    pub(crate) layers: HashMap<String, LayerRow>,
    /// The build cache ([`crate::steps`]).
    pub(crate) steps: BTreeMap<String, StepRow>,
    /// Loads, imports, commits and saves under way. They may count on any layer they have seen: nothing is freed meanwhile.
    active: usize,
    /// Images that a container is being made of, and how many ([`Hold`]).
    held: HashMap<Digest, usize>,
    /// Images that a removal is about to take: nobody may begin to use them.
    leaving: HashSet<Digest>,
    /// Something was left for the last of them to free.
    garbage: bool,
}

pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) db: Db,
    pub(crate) registries: Registries,
    state: RwLock<State>,
    /// Held while rows change, so that file, row and memory change together. Never held while an archive is read.
    publish: Mutex<()>,
    next_layer: AtomicU64,
    next_temporary: AtomicU64,
}

/// A layer that is ready in `tmp`.
pub(crate) struct NewLayer {
    pub(crate) key: String,
    pub(crate) diff_id: Digest,
    pub(crate) folder: PathBuf,
    pub(crate) blob_path: PathBuf,
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    pub(crate) unpacked: Unpacked,
}

/// An image whose layers are all known or ready.
pub(crate) struct NewImage {
    pub(crate) id: Digest,
    pub(crate) raw_config: Vec<u8>,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<String>,
    pub(crate) tags: Vec<Reference>,
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) parent: Option<Digest>,
}

impl NewImage {
    /// Checks what every way in has in common. The ID is the configuration's digest.
    pub(crate) fn new(raw_config: Vec<u8>) -> Result<Self> {
        if raw_config.len() as u64 > CONFIG_LIMIT {
            return Err(Error::invalid(
                "the image configuration is larger than 8 MiB",
            ));
        }
        let config: ImageConfig = serde_json::from_slice(&raw_config)
            .kind(gantry_base::ErrorKind::InvalidArgument, || {
                "invalid image configuration".into()
            })?;
        if !matches!(config.os.as_str(), "" | "linux") {
            return Err(Error::invalid(format!(
                "cannot load {} image on linux",
                config.os
            )));
        }
        if config.rootfs.diff_ids.len() > LAYER_LIMIT {
            return Err(Error::invalid("max depth exceeded"));
        }
        Ok(Self {
            id: sha256(&raw_config),
            raw_config,
            config,
            layers: Vec::new(),
            tags: Vec::new(),
            manifest: None,
            parent: None,
        })
    }
}

/// The folder of one load, import or commit in `tmp`. Dropped, it is gone with everything that was not published.
pub(crate) struct Workshop<'a> {
    store: &'a Inner,
    pub(crate) dir: PathBuf,
    next: AtomicU64,
}

impl Workshop<'_> {
    /// A fresh name.
    pub(crate) fn path(&self, kind: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{kind}{number}"))
    }
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        discard(&self.dir);
        self.store.end_activity();
    }
}

/// Keeps everything that exists from being freed (a `save` reads for a while).
pub(crate) struct Activity<'a>(&'a Inner);

impl Drop for Activity<'_> {
    fn drop(&mut self) {
        self.0.end_activity();
    }
}

/// An image that is in use before there is a container to show for it.
pub(crate) struct Hold {
    store: Arc<Inner>,
    image: Digest,
}

impl Hold {
    /// `None` when the image is gone or going.
    pub(crate) fn new(store: &Arc<Inner>, image: &Digest) -> Option<Self> {
        let mut state = store.write();
        if !state.visible(image) || state.leaving.contains(image) {
            return None;
        }
        *state.held.entry(image.clone()).or_default() += 1;
        Some(Self {
            store: store.clone(),
            image: image.clone(),
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.write();
        if let Some(count) = state.held.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.image);
            }
        }
    }
}

/// Images that nobody may begin to use any more. Taken before it is asked who uses them: whoever came first is counted,
/// whoever comes later is refused.
pub(crate) struct Leaving<'a> {
    store: &'a Inner,
    images: Vec<Digest>,
}

impl<'a> Leaving<'a> {
    /// The caller holds the publish lock, so there is one at a time.
    pub(crate) fn new(store: &'a Inner, images: Vec<Digest>) -> Self {
        store.write().leaving.extend(images.iter().cloned());
        Self { store, images }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.store.write();
        for image in &self.images {
            state.leaving.remove(image);
        }
    }
}

pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl Inner {
    pub(crate) fn open(dir: &Path, db: Db, registries: Registries) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        for folder in ["blobs/sha256", "layers", "tmp"] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(dir.join(folder))
                .context(|| format!("creating {}", dir.join(folder).display()))?;
        }
        // ext4 without a journal does not give out an inode for a minute after it was freed, and looks at every such inode of
        // the block group for each new file: a load after a removal takes seconds, unless it goes elsewhere.
        if let Ok(tmp) = File::open(dir.join("tmp")) {
            dirfd::spread_folders(&tmp);
        }
        let layers: HashMap<String, LayerRow> = db.scan("layers")?.into_iter().collect();
        let next_layer = layers.values().map(|row| row.number + 1).max().unwrap_or(1);
        let inner = Self {
            dir: dir.to_owned(),
            db,
            registries,
            state: RwLock::default(),
            publish: Mutex::new(()),
            next_layer: AtomicU64::new(next_layer),
            next_temporary: AtomicU64::new(1),
        };
        inner.fill(layers)?;
        inner.sweep()?;
        Ok(inner)
    }

    /// Memory from the rows. An image whose files are damaged is left out and named, instead of stopping the whole node.
    fn fill(&self, layers: HashMap<String, LayerRow>) -> Result<()> {
        let mut state = State {
            layers,
            ..State::default()
        };
        let mut tags: HashMap<Digest, Vec<Reference>> = HashMap::new();
        for (name, id) in self.db.scan::<Digest>("tags")? {
            let Ok(reference) = Reference::parse(&name) else {
                tracing::warn!(
                    image.reference = name,
                    "a tag in the database cannot be read"
                );
                continue;
            };
            tags.entry(id.clone()).or_default().push(reference.clone());
            state.tags.insert(name, (reference, id));
        }
        for (name, row) in self.db.scan::<ImageRow>("images")? {
            let id: Digest = name
                .parse()
                .context(|| format!("reading the image row {name}"))?;
            if row.schema > SCHEMA {
                return Err(Error::internal(format!(
                    "image {id} was stored by a newer gantry (schema {}); run the newer one",
                    row.schema
                )));
            }
            let known = std::fs::read(self.blob_path(&id))
                .context(|| format!("reading the configuration of image {id}"))
                .and_then(NewImage::new)
                .and_then(|new| {
                    if new.id != id {
                        return Err(Error::internal("its digest does not match"));
                    }
                    self.image(&state, &row, new, tags.remove(&id).unwrap_or_default())
                });
            match known {
                Ok(image) => {
                    let image = Arc::new(image);
                    state.images.insert(id, Known { row, image });
                }
                Err(error) => {
                    tracing::error!(image.id = %id, error = error.chain(), "an image is damaged and left out: load it again");
                }
            }
        }
        for (key, row) in self.db.scan::<StepRow>("build")? {
            let is_whole = |layer: &String| state.layers.contains_key(layer);
            if row.layer.as_ref().is_none_or(is_whole) {
                state.steps.insert(key, row);
            }
        }
        let images = &state.images;
        state.tags.retain(|_, (_, id)| images.contains_key(id));
        *self.write() = state;
        Ok(())
    }

    /// Frees layers that no image's row names and files that no row names: what a crash left. Damaged images keep theirs
    /// until they are loaded again.
    fn sweep(&self) -> Result<()> {
        let rows = self.db.scan::<ImageRow>("images")?;
        let mut state = self.write();
        let steps = std::mem::take(&mut state.steps);
        let by_steps = steps.values().filter_map(|row| row.layer.as_ref());
        let by_images = rows.iter().flat_map(|(_, row)| &row.layers);
        let used: HashSet<&String> = by_images.chain(by_steps).collect();
        let mut batch = Batch::new();
        state.layers.retain(|key, _| {
            let keep = used.contains(key);
            if !keep {
                batch = std::mem::take(&mut batch).delete("layers", key);
            }
            keep
        });
        drop(used);
        state.steps = steps;
        let living: HashSet<String> = state
            .layers
            .values()
            .map(|row| row.blob.to_string())
            .collect();
        drop(state);
        for (blob, _) in self.db.scan::<serde_json::Value>("compressed")? {
            if !living.contains(&blob) {
                batch = batch.delete("compressed", &blob);
            }
        }
        self.db.commit_blocking(batch)?;
        let small: Vec<Digest> = rows
            .iter()
            .flat_map(|(id, row)| id.parse().ok().into_iter().chain(row.manifest.clone()))
            .collect();
        let state = self.read();
        let numbers: HashSet<String> = state
            .layers
            .values()
            .map(|row| row.number.to_string())
            .collect();
        let blobs: HashSet<String> = small
            .iter()
            .chain(state.layers.values().map(|row| &row.blob))
            .map(Digest::hex)
            .collect();
        drop(state);
        let entries = |folder: &str| {
            std::fs::read_dir(self.dir.join(folder))
                .into_iter()
                .flatten()
                .flatten()
        };
        for entry in entries("tmp") {
            remove_any(&entry.path());
        }
        for entry in entries("layers") {
            if !numbers.contains(&*entry.file_name().to_string_lossy()) {
                remove_any(&entry.path());
            }
        }
        for entry in entries("blobs/sha256") {
            if !blobs.contains(&*entry.file_name().to_string_lossy()) {
                remove_any(&entry.path());
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn lock_publish(&self) -> MutexGuard<'_, ()> {
        self.publish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
    /// False after a check took a damaged one away: the layer is as good as not here until it comes again.
    pub(crate) fn has_blob(&self, row: &LayerRow) -> bool {
        std::fs::metadata(self.blob_path(&row.blob)).is_ok_and(|meta| meta.len() == row.blob_size)
    }
    pub(crate) fn layer_folder(&self, row: &LayerRow) -> PathBuf {
        self.dir.join("layers").join(row.number.to_string())
    }

    fn image(
        &self,
        state: &State,
        row: &ImageRow,
        new: NewImage,
        mut tags: Vec<Reference>,
    ) -> Result<Image> {
        let rows = row
            .layers
            .iter()
            .map(|key| {
                state
                    .layers
                    .get(key)
                    .ok_or_else(|| Error::internal(format!("its layer {key} is missing")))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut lowers = Vec::new();
        for row in rows.iter().rev() {
            lowers.push(self.layer_folder(row));
            if row.opaque_root {
                break;
            }
        }
        tags.sort();
        tags.dedup();
        Ok(Image {
            id: new.id,
            config: new.config,
            raw_config: new.raw_config,
            size: rows.iter().map(|row| row.size).sum(),
            layers: rows
                .iter()
                .map(|row| LayerRef {
                    diff_id: row.diff_id.clone(),
                    folder: self.layer_folder(row),
                    size: row.size,
                })
                .collect(),
            tags,
            loaded_at_ns: row.loaded_at_ns,
            parent: row.parent.clone(),
            manifest: row.manifest.clone(),
            lowers,
        })
    }

    /// Starts a load: nothing that exists now is freed before the workshop is dropped.
    pub(crate) fn workshop(&self) -> Result<Workshop<'_>> {
        self.begin_activity();
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let workshop = Workshop {
            store: self,
            // ext4 chooses the place by the name (see `open`): never the same again.
            dir: self
                .dir
                .join("tmp")
                .join(format!("{number}-{:x}", now_ns())),
            next: AtomicU64::new(0),
        };
        std::fs::create_dir(&workshop.dir)
            .context(|| format!("creating {}", workshop.dir.display()))?;
        Ok(workshop)
    }

    pub(crate) fn activity(&self) -> Activity<'_> {
        self.begin_activity();
        Activity(self)
    }

    pub(crate) fn begin_activity(&self) {
        // Under the publish lock: a removal that runs now finishes its freeing first.
        let _publish = self.lock_publish();
        self.write().active += 1;
    }

    pub(crate) fn end_activity(&self) {
        let _publish = self.lock_publish();
        let mut state = self.write();
        state.active -= 1;
        let free = state.active == 0 && std::mem::take(&mut state.garbage);
        drop(state);
        if free && let Err(error) = self.free_unreferenced() {
            tracing::warn!(error = error.chain(), "could not free unreferenced layers");
        }
    }

    pub(crate) fn next_temporary(&self) -> u64 {
        self.next_temporary.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes layers and images visible, all or none.
    pub(crate) fn publish(&self, layers: Vec<NewLayer>, images: Vec<NewImage>) -> Result<()> {
        self.publish_with(layers, images, Vec::new())
    }

    /// The same with rows of the build cache.
    pub(crate) fn publish_with(
        &self,
        layers: Vec<NewLayer>,
        images: Vec<NewImage>,
        steps: Vec<(String, StepRow)>,
    ) -> Result<()> {
        let small = self.write_small_blobs(&images)?;
        if !layers.is_empty() {
            let tmp =
                File::open(self.dir.join("tmp")).context(|| "opening the store's tmp".into())?;
            dirfd::sync_file_system(&tmp).context(|| "syncing the new layers to disk".into())?;
        }

        let _publish = self.lock_publish();
        let mut placed = Placed::default();
        let result = self.place(layers, images, steps, &small, &mut placed);
        if result.is_err() {
            placed.undo();
        }
        for (path, _) in &small {
            let _ = std::fs::remove_file(path);
        }
        result
    }

    /// Configurations and manifests, as files in `tmp`.
    fn write_small_blobs(&self, images: &[NewImage]) -> Result<Vec<(PathBuf, Digest)>> {
        let mut small: Vec<(PathBuf, Digest)> = Vec::new();
        for bytes in images
            .iter()
            .flat_map(|i| [Some(&i.raw_config), i.manifest.as_ref()])
            .flatten()
        {
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join("tmp").join(format!("blob-{number}"));
            let digest = sha256(bytes);
            if self.blob_path(&digest).exists() {
                continue;
            }
            let written = File::create_new(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_data()
            });
            small.push((path, digest));
            if let Err(error) = written {
                small.iter().for_each(|(path, _)| remove_any(path));
                return Err(Error::internal("writing an image's configuration").with_source(error));
            }
        }
        Ok(small)
    }

    fn place(
        &self,
        layers: Vec<NewLayer>,
        images: Vec<NewImage>,
        steps: Vec<(String, StepRow)>,
        small: &[(PathBuf, Digest)],
        placed: &mut Placed,
    ) -> Result<()> {
        let mut batch = Batch::new();
        let mut rows = HashMap::new();
        for layer in layers {
            // Another load may have brought the same layer meanwhile; or only its blob was lost.
            let known = self.read().layers.get(&layer.key).cloned();
            if let Some(mut row) = known {
                if !self.has_blob(&row) && !rows.contains_key(&layer.key) {
                    placed.rename(&layer.blob_path, &self.blob_path(&layer.blob))?;
                    (row.blob, row.blob_size) = (layer.blob.clone(), layer.blob_size);
                    batch = batch.put("layers", &layer.key, &row);
                    rows.insert(layer.key, row);
                }
                continue;
            }
            if rows.contains_key(&layer.key) {
                continue;
            }
            let row = self.place_layer(&layer, placed)?;
            batch = batch.put("layers", &layer.key, &row);
            rows.insert(layer.key, row);
        }
        for (path, digest) in small {
            placed.rename(path, &self.blob_path(digest))?;
        }
        for folder in ["layers", "blobs/sha256"] {
            File::open(self.dir.join(folder))
                .and_then(|f| f.sync_all())
                .context(|| format!("syncing {folder}"))?;
        }

        let mut next = State {
            layers: self.read().layers.clone(),
            ..State::default()
        };
        next.layers.extend(rows.clone());
        let mut moved: Vec<(Reference, Digest)> = Vec::new();
        for mut new in images {
            let id = new.id.clone();
            let manifest = new.manifest.as_deref().map(sha256);
            let before = next
                .images
                .get(&id)
                .cloned()
                .or_else(|| self.read().images.get(&id).cloned());
            let row = match &before {
                Some(known) => ImageRow {
                    manifest: manifest.or(known.row.manifest.clone()),
                    hidden: false,
                    ..known.row.clone()
                },
                None => ImageRow {
                    schema: SCHEMA,
                    layers: std::mem::take(&mut new.layers),
                    manifest,
                    parent: new.parent.clone(),
                    loaded_at_ns: now_ns(),
                    hidden: false,
                },
            };
            let tags = before
                .map(|known| known.image.tags.clone())
                .unwrap_or_default();
            for tag in std::mem::take(&mut new.tags) {
                batch = batch.put("tags", &tag.canonical(), &id);
                moved.push((tag, id.clone()));
            }
            batch = batch.put("images", &id.to_string(), &row);
            let image = Arc::new(self.image(&next, &row, new, tags)?);
            next.images.insert(id, Known { row, image });
        }
        for (key, row) in &steps {
            batch = batch.put("build", key, row);
        }
        self.db.commit_blocking(batch)?;
        let mut state = self.write();
        state.layers.extend(rows);
        state.steps.extend(steps);
        state.images.extend(next.images);
        for (tag, id) in moved {
            state.set_tag(tag, Some(id));
        }
        Ok(())
    }

    fn place_layer(&self, layer: &NewLayer, placed: &mut Placed) -> Result<LayerRow> {
        let row = LayerRow {
            schema: SCHEMA,
            number: self.next_layer.fetch_add(1, Ordering::Relaxed),
            diff_id: layer.diff_id.clone(),
            blob: layer.blob.clone(),
            blob_size: layer.blob_size,
            size: layer.unpacked.size,
            opaque_root: layer.unpacked.opaque_root,
        };
        placed.rename(&layer.folder, &self.layer_folder(&row))?;
        placed.rename(&layer.blob_path, &self.blob_path(&layer.blob))?;
        Ok(row)
    }

    /// `None` when no image answers to the name; a name that cannot be one is `InvalidArgument`.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Arc<Image>>> {
        let parsed = AnyReference::parse(name).map_err(|e| Error::invalid(e.to_string()))?;
        Ok(self.read().find(name, &parsed).cloned())
    }

    pub(crate) fn set_tag(&self, id: &Digest, tag: &Reference) -> Result<()> {
        let _publish = self.lock_publish();
        if !self.read().visible(id) {
            return Err(Error::not_found(format!("No such image: {id}")));
        }
        let batch = Batch::new().put("tags", &tag.canonical(), id);
        self.db.commit_blocking(batch)?;
        self.write().set_tag(tag.clone(), Some(id.clone()));
        Ok(())
    }

    /// Takes tags away and images out, durably; frees what nobody refers to any more. The caller holds the publish lock.
    /// Returns the layers that went: their key, diff IDs' row and size.
    pub(crate) fn take_out(
        &self,
        tags: &[Reference],
        images: &[Digest],
        hide: &[Digest],
    ) -> Result<Vec<(String, LayerRow)>> {
        let mut batch = Batch::new();
        for tag in tags {
            batch = batch.delete("tags", &tag.canonical());
        }
        for id in images {
            batch = batch.delete("images", &id.to_string());
        }
        let hidden: Vec<(Digest, ImageRow)> = hide
            .iter()
            .filter_map(|id| {
                let mut row = self.read().images.get(id)?.row.clone();
                row.hidden = true;
                Some((id.clone(), row))
            })
            .collect();
        for (id, row) in &hidden {
            batch = batch.put("images", &id.to_string(), row);
        }
        self.db.commit_blocking(batch)?;
        let mut state = self.write();
        for tag in tags {
            state.set_tag(tag.clone(), None);
        }
        for id in images {
            state.images.remove(id);
        }
        for (id, row) in hidden {
            if let Some(known) = state.images.get_mut(&id) {
                known.row = row;
            }
        }
        drop(state);
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.free_unreferenced()
    }

    /// Frees layers and blobs that no image refers to, unless something under way may count on them; then its end does.
    /// The caller holds the publish lock.
    pub(crate) fn free_unreferenced(&self) -> Result<Vec<(String, LayerRow)>> {
        let mut state = self.write();
        let by_images = state.images.values().flat_map(|k| &k.row.layers);
        let by_steps = state.steps.values().filter_map(|row| row.layer.as_ref());
        let used: HashSet<&String> = by_images.chain(by_steps).collect();
        let dead: Vec<(String, LayerRow)> = state
            .layers
            .iter()
            .filter(|(key, _)| !used.contains(key))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect();
        if state.active > 0 {
            state.garbage = true;
            return Ok(dead);
        }
        drop(state);
        let mut batch = Batch::new();
        for (key, row) in &dead {
            // What a push made of it goes with it.
            batch = batch
                .delete("layers", key)
                .delete("compressed", &row.blob.to_string());
        }
        self.db.commit_blocking(batch)?;
        let mut state = self.write();
        for (key, _) in &dead {
            state.layers.remove(key);
        }
        let blobs: BTreeSet<String> = state
            .images
            .iter()
            .flat_map(|(id, known)| [Some(id), known.row.manifest.as_ref()])
            .flatten()
            .chain(state.layers.values().map(|row| &row.blob))
            .map(Digest::hex)
            .collect();
        drop(state);
        self.move_away(&dead, &blobs);
        Ok(dead)
    }

    /// Moves dead files into `tmp` and lets a thread remove them: nobody waits for that, and a crash leaves them to the sweep.
    fn move_away(&self, dead: &[(String, LayerRow)], live_blobs: &BTreeSet<String>) {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let grave = self.dir.join("tmp").join(format!("gone-{number}"));
        if let Err(error) = std::fs::create_dir(&grave) {
            tracing::warn!(%error, "could not move removed layers away; the next start sweeps them");
            return;
        }
        for (_, row) in dead {
            let _ = std::fs::rename(self.layer_folder(row), grave.join(row.number.to_string()));
        }
        for entry in std::fs::read_dir(self.dir.join("blobs/sha256"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if !live_blobs.contains(&*name.to_string_lossy()) {
                let _ = std::fs::rename(entry.path(), grave.join(name));
            }
        }
        let folder = grave.clone();
        let spawned = std::thread::Builder::new()
            .name("image-sweep".into())
            .spawn(move || discard(&folder));
        if spawned.is_err() {
            discard(&grave);
        }
    }
}

impl State {
    pub(crate) fn visible(&self, id: &Digest) -> bool {
        self.images.get(id).is_some_and(|known| !known.row.hidden)
    }

    pub(crate) fn visible_images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images
            .values()
            .filter(|known| !known.row.hidden)
            .map(|known| &known.image)
    }

    /// Docker's order: full ID; name (with `latest`); beginning of an ID.
    pub(crate) fn find(&self, typed: &str, parsed: &AnyReference) -> Option<&Arc<Image>> {
        let visible = |known: &&Known| !known.row.hidden;
        match parsed {
            AnyReference::Id(id) => self.images.get(id).filter(visible).map(|k| &k.image),
            AnyReference::Name(reference) => self
                .find_name(reference)
                .or_else(|| self.find_prefix(typed)),
        }
    }

    fn find_name(&self, reference: &Reference) -> Option<&Arc<Image>> {
        if let Some(digest) = &reference.digest {
            // `name@digest` names a manifest (or, for what was never pushed, the ID) within that repository.
            return self.visible_images().find(|image| {
                let named = |tag: &&Reference| tag.same_repository(reference);
                let is_it = image.manifest.as_ref() == Some(digest) || image.id == *digest;
                image
                    .tags
                    .iter()
                    .filter(named)
                    .any(|tag| is_it || tag.digest.as_ref() == Some(digest))
            });
        }
        let (_, id) = self.tags.get(&reference.clone().or_latest().canonical())?;
        self.images.get(id).map(|known| &known.image)
    }

    /// The one image whose ID begins so; none when there are several.
    fn find_prefix(&self, typed: &str) -> Option<&Arc<Image>> {
        let prefix = typed.strip_prefix("sha256:").unwrap_or(typed);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return None;
        }
        let start: Digest = format!("sha256:{prefix:0<64}").parse().ok()?;
        let mut matching = self
            .images
            .range(start..)
            .take_while(|(id, _)| id.hex().starts_with(prefix))
            .filter(|(_, known)| !known.row.hidden)
            .map(|(_, known)| &known.image);
        let first = matching.next()?;
        matching.next().is_none().then_some(first)
    }

    /// Moves or (with `None`) removes a tag, in the tag table and in the images on both sides.
    fn set_tag(&mut self, tag: Reference, id: Option<Digest>) {
        let name = tag.canonical();
        let before = match &id {
            Some(id) => self.tags.insert(name, (tag.clone(), id.clone())),
            None => self.tags.remove(&name),
        };
        if let Some((_, old)) = before
            && let Some(known) = self.images.get_mut(&old)
        {
            Arc::make_mut(&mut known.image).tags.retain(|t| *t != tag);
        }
        if let Some(known) = id.and_then(|id| self.images.get_mut(&id)) {
            let tags = &mut Arc::make_mut(&mut known.image).tags;
            if let Err(at) = tags.binary_search(&tag) {
                tags.insert(at, tag);
            }
        }
    }

    /// A container is being made of it.
    pub(crate) fn is_held(&self, id: &Digest) -> bool {
        self.held.contains_key(id)
    }

    pub(crate) fn children(&self, id: &Digest) -> usize {
        self.visible_images()
            .filter(|image| image.parent.as_ref() == Some(id))
            .count()
    }
}

/// Renames that go back when a later step fails.
#[derive(Default)]
struct Placed(Vec<PathBuf>);

impl Placed {
    /// A target that is there already is the same content: the source is left for its workshop to remove.
    fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        if to.exists() {
            return Ok(());
        }
        std::fs::rename(from, to)
            .context(|| format!("moving {} to {}", from.display(), to.display()))?;
        self.0.push(to.to_owned());
        Ok(())
    }
    fn undo(&self) {
        for path in &self.0 {
            remove_any(path);
        }
    }
}

fn remove_any(path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        discard(path);
    } else {
        let _ = std::fs::remove_file(path);
    }
}
