//! Layers that a build makes, and the cache that finds them again.
//!
//! ```text
//! build/<step's key>   StepRow   the layer that the step made (or none), when, how large
//! ```
//! A step writes into a fresh folder of a [`Workspace`]; [`Workspace::seal`] packs that folder into a blob and gives it its
//! digest. The folder itself then *is* the layer: it is renamed into place by [`Store::publish_steps`], never unpacked again.
//! Until then the layer serves as a lower folder where it lies.
//!
//! A row keeps its layer from being freed, as an image does. [`Store::prune_steps`] takes rows away.

use crate::layer::{Budget, Unpacked};
use crate::spool::{Hasher, SpoolWriter, discard};
use crate::store::{Inner, NewImage, NewLayer, now_ns};
use crate::{Image, Store};
use gantry_base::{Error, Result, ResultExt, db::Batch};
use gantry_oci::{Digest, Reference};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

const SCHEMA: u32 = 1;
/// Rows of the build cache at most; the least used go first.
const ROW_LIMIT: usize = 100_000;
/// A row's last use is written down when it is older than this.
const USE_STEP_NS: i64 = 600_000_000_000;

/// What is kept of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    schema: u32,
    /// Key of the layer; `None` when the step changed no file.
    pub(crate) layer: Option<String>,
    pub diff_id: Option<Digest>,
    pub size: u64,
    pub created_ns: i64,
    pub used_ns: i64,
    #[serde(default)]
    pub uses: u64,
    /// The instruction, for `docker builder du`.
    pub what: String,
}

/// A folder of one build in `tmp`. While it lives, nothing that exists is freed; when the last clone and the last layer of it
/// are gone, so is the folder. Cheap to clone.
#[derive(Clone)]
pub struct Workspace(Arc<Room>);

struct Room {
    store: Arc<Inner>,
    dir: PathBuf,
    next: AtomicU64,
}

impl Drop for Room {
    fn drop(&mut self) {
        discard(&self.dir);
        self.store.end_activity();
    }
}

/// A layer that a step made or the cache had.
pub struct Layer {
    diff_id: Digest,
    size: u64,
    created_ns: i64,
    place: RwLock<Place>,
}

#[derive(Clone)]
enum Place {
    Sealed {
        folder: PathBuf,
        blob_path: PathBuf,
        blob_size: u64,
        /// Keeps the folder.
        _room: Workspace,
    },
    Stored {
        key: String,
        folder: PathBuf,
    },
}

impl Layer {
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }
    pub fn size(&self) -> u64 {
        self.size
    }
    pub fn created_ns(&self) -> i64 {
        self.created_ns
    }
    /// The folder as it is now; publishing moves it.
    pub fn folder(&self) -> PathBuf {
        match &*self.place.read().unwrap_or_else(PoisonError::into_inner) {
            Place::Sealed { folder, .. } | Place::Stored { folder, .. } => folder.clone(),
        }
    }
    fn place(&self) -> Place {
        self.place
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
    fn key(&self) -> String {
        match self.place() {
            Place::Sealed { .. } => self.diff_id.to_string(),
            Place::Stored { key, .. } => key,
        }
    }
}

/// What a build publishes.
#[derive(Default)]
pub struct Publish {
    /// All layers that rows or the image name.
    pub layers: Vec<Arc<Layer>>,
    /// Steps by key: the layer (or none) and the instruction.
    pub steps: Vec<(String, Option<Arc<Layer>>, String)>,
    pub image: Option<NewBuild>,
}

/// The image of a build.
pub struct NewBuild {
    /// With history and diff IDs.
    pub raw_config: Vec<u8>,
    pub base: Option<Arc<Image>>,
    /// Upon the base's.
    pub layers: Vec<Arc<Layer>>,
    pub tags: Vec<Reference>,
}

impl Workspace {
    /// A fresh folder, mode 0755, made.
    pub fn folder(&self, kind: &str) -> Result<PathBuf> {
        let path = self.path(kind);
        crate::make_folder(&path)?;
        Ok(path)
    }

    /// A fresh name.
    pub fn path(&self, kind: &str) -> PathBuf {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.dir.join(format!("{kind}{number}"))
    }

    /// Makes a layer of `upper`, a folder of this workspace in overlay's form; `pack` writes it as a layer tar.
    /// `None` when there is nothing in it.
    pub fn seal(
        &self,
        upper: &Path,
        pack: impl FnOnce(&mut dyn Write) -> io::Result<u64>,
    ) -> Result<Option<Arc<Layer>>> {
        let is_empty = std::fs::read_dir(upper)
            .context(|| format!("reading {}", upper.display()))?
            .next()
            .is_none();
        if is_empty {
            return Ok(None);
        }
        let budget = Budget::of(&self.0.store.dir)?;
        let mut out = Out {
            writer: SpoolWriter::create(self.path("blob"))?,
            budget: &budget,
            buffer: Vec::with_capacity(OUT),
        };
        let packed = pack(&mut out).and_then(|size| {
            out.flush()?;
            Ok(size)
        });
        let size = packed.map_err(|e| match e.downcast::<Error>() {
            Ok(ours) => ours,
            Err(e) => Error::internal("packing a layer").with_source(e),
        })?;
        let (spool, digest, blob_size) = out.writer.finish();
        Ok(Some(Arc::new(Layer {
            diff_id: digest,
            size,
            created_ns: now_ns(),
            place: RwLock::new(Place::Sealed {
                folder: upper.to_owned(),
                blob_path: spool.path.clone(),
                blob_size,
                _room: self.clone(),
            }),
        })))
    }
}

const OUT: usize = 256 << 10;

struct Out<'a> {
    writer: SpoolWriter,
    budget: &'a Budget,
    buffer: Vec<u8>,
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > OUT {
            self.flush()?;
        }
        if bytes.len() >= OUT {
            self.writer
                .write(bytes, self.budget)
                .map_err(io::Error::other)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.writer
            .write(&self.buffer, self.budget)
            .map_err(io::Error::other)?;
        self.buffer.clear();
        Ok(())
    }
}

/// SHA-256 over several parts, each with its length: no two lists of parts have the same bytes.
pub struct KeyHasher(Hasher);

impl Default for KeyHasher {
    fn default() -> Self {
        Self(Hasher::new())
    }
}

impl KeyHasher {
    pub fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }
    /// Bytes that belong to the part before.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

impl Store {
    /// Begins a build.
    pub fn workspace(&self) -> Result<Workspace> {
        self.0.begin_activity();
        let number = self.0.next_temporary();
        let room = Room {
            store: self.0.clone(),
            dir: self
                .0
                .dir
                .join("tmp")
                .join(format!("build-{number}-{:x}", now_ns())),
            next: AtomicU64::new(0),
        };
        std::fs::create_dir(&room.dir).context(|| format!("creating {}", room.dir.display()))?;
        Ok(Workspace(Arc::new(room)))
    }

    /// What the cache has under a key: the layer, or `Some(None)` for a step that changed nothing. The caller has a
    /// [`Workspace`], so it stays.
    pub fn cached_step(&self, key: &str) -> Option<Option<Arc<Layer>>> {
        let mut state = self.0.write();
        let now = now_ns();
        let row = state.steps.get_mut(key)?;
        row.uses += 1;
        let stale = now - row.used_ns > USE_STEP_NS;
        if stale {
            row.used_ns = now;
        }
        let row = row.clone();
        let layer = match &row.layer {
            None => None,
            Some(layer) => {
                let layer_row = state.layers.get(layer)?;
                Some(Arc::new(Layer {
                    diff_id: layer_row.diff_id.clone(),
                    size: layer_row.size,
                    created_ns: row.created_ns,
                    place: RwLock::new(Place::Stored {
                        key: layer.clone(),
                        folder: self.0.layer_folder(layer_row),
                    }),
                }))
            }
        };
        drop(state);
        if stale {
            // Lost by a crash, it costs a worse guess of what is used least.
            drop(self.0.db.submit(Batch::new().put("build", key, &row)));
        }
        Some(layer)
    }

    /// Makes layers, cache rows and image visible, all or none. Answers the image's ID.
    pub fn publish_steps(&self, what: Publish) -> Result<Option<Digest>> {
        let mut new_layers = Vec::new();
        let mut seen = BTreeSet::new();
        for layer in &what.layers {
            let Place::Sealed {
                folder,
                blob_path,
                blob_size,
                ..
            } = layer.place()
            else {
                continue;
            };
            if !seen.insert(layer.diff_id.clone()) {
                continue;
            }
            new_layers.push(NewLayer {
                key: layer.diff_id.to_string(),
                diff_id: layer.diff_id.clone(),
                folder,
                blob_path,
                blob: layer.diff_id.clone(),
                blob_size,
                unpacked: Unpacked::written(layer.size),
            });
        }
        let rows: Vec<(String, StepRow)> = what
            .steps
            .iter()
            .map(|(key, layer, text)| {
                let row = StepRow {
                    schema: SCHEMA,
                    layer: layer.as_ref().map(|layer| layer.key()),
                    diff_id: layer.as_ref().map(|layer| layer.diff_id.clone()),
                    size: layer.as_ref().map_or(0, |layer| layer.size),
                    created_ns: layer.as_ref().map_or_else(now_ns, |layer| layer.created_ns),
                    used_ns: now_ns(),
                    uses: 0,
                    what: text.chars().take(400).collect(),
                };
                (key.clone(), row)
            })
            .collect();
        let mut images = Vec::new();
        let mut id = None;
        if let Some(build) = what.image {
            let mut image = NewImage::new(build.raw_config)?;
            if let Some(base) = &build.base {
                let state = self.0.read();
                let known = state.images.get(&base.id);
                image.layers = known
                    .map(|known| known.row.layers.clone())
                    .ok_or_else(|| Error::not_found(format!("No such image: {}", base.id)))?;
            }
            image
                .layers
                .extend(build.layers.iter().map(|layer| layer.key()));
            image.tags = build.tags;
            id = Some(image.id.clone());
            let state = self.0.read();
            // The same image under the same names is there already: nothing to write.
            let settled = state.visible(&image.id)
                && image.tags.iter().all(|tag| {
                    state
                        .tags
                        .get(&tag.canonical())
                        .is_some_and(|(_, known)| *known == image.id)
                });
            drop(state);
            if !settled {
                images.push(image);
            }
        }
        if new_layers.is_empty() && rows.is_empty() && images.is_empty() {
            return Ok(id);
        }
        self.0.publish_with(new_layers, images, rows)?;
        for layer in &what.layers {
            let key = layer.diff_id.to_string();
            let state = self.0.read();
            if let (Place::Sealed { .. }, Some(row)) = (layer.place(), state.layers.get(&key)) {
                let folder = self.0.layer_folder(row);
                drop(state);
                *layer.place.write().unwrap_or_else(PoisonError::into_inner) =
                    Place::Stored { key, folder };
            }
        }
        Ok(id)
    }

    /// The rows of the build cache by key.
    pub fn steps(&self) -> Vec<(String, StepRow)> {
        let state = self.0.read();
        let rows = state.steps.iter();
        rows.map(|(key, row)| (key.clone(), row.clone())).collect()
    }

    /// Takes steps out of the cache. Answers the bytes that nothing else needs.
    pub fn prune_steps(&self, keys: &[String]) -> Result<u64> {
        let _publish = self.0.lock_publish();
        let mut batch = Batch::new();
        for key in keys {
            batch = batch.delete("build", key);
        }
        self.0.db.commit_blocking(batch)?;
        let mut state = self.0.write();
        for key in keys {
            state.steps.remove(key);
        }
        drop(state);
        let freed = self.0.free_unreferenced()?;
        Ok(freed.iter().map(|(_, row)| row.size).sum())
    }

    /// Drops the least recently used steps until their layers are at most `bytes`.
    pub fn limit_steps(&self, bytes: u64) -> Result<u64> {
        let mut rows = self.steps();
        let total: u64 = rows.iter().map(|(_, row)| row.size).sum();
        if total <= bytes && rows.len() <= ROW_LIMIT {
            return Ok(0);
        }
        rows.sort_by_key(|(_, row)| row.used_ns);
        let (mut left, mut count) = (total, rows.len());
        let mut dead = Vec::new();
        for (key, row) in rows {
            if left <= bytes && count <= ROW_LIMIT {
                break;
            }
            left -= row.size;
            count -= 1;
            dead.push(key);
        }
        self.prune_steps(&dead)
    }
}
