//! Keeping the disk within a budget, and what lies on it true.
//!
//! [`plan`] decides what a budget takes away: unused images, the least recently used first. Protected are images of containers
//! (running or not), pinned ones, those that others were made from, and the last N used. When an image was used last is the time
//! of its configuration's file: loading and making a container set it; nothing is synced for that.
//!
//! [`check`] reads every stored byte again. What can be made again from here is (a layer's folder from its blob, a configuration
//! from memory); a damaged blob is moved out of the way, so that it is never served and the next pull or load brings it anew.

use crate::layer::Budget;
use crate::spool::{Codec, Hasher, Peeked, Spool, discard, sha256, unpack};
use crate::store::{Inner, LayerRow, State};
use crate::{Image, Removed, no_such_image};
use gantry_base::db::Batch;
use gantry_base::{Error, Result, ResultExt};
use gantry_oci::reference::AnyReference;
use gantry_oci::{Digest, Reference};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// Names that may be pinned.
const PIN_LIMIT: usize = 10_000;
/// Differences of one layer that are told by name.
const TOLD_LIMIT: usize = 20;

/// How much may stay, and what stays whatever it costs.
#[derive(Debug, Clone, Copy)]
pub struct DiskBudget {
    pub bytes: u64,
    /// So many of the images that were used last are never taken.
    pub keep: usize,
    pub dry_run: bool,
}

/// An image that a budget takes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Taken {
    pub id: Digest,
    pub tags: Vec<String>,
    /// Bytes that its going frees, after those before it went.
    pub freed: u64,
    /// Nanoseconds since the epoch.
    pub used_at_ns: i64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reclaimed {
    /// Bytes of all layers, unpacked and as they came.
    pub before: u64,
    pub after: u64,
    pub images: Vec<Taken>,
    /// Why the others stay: by ID.
    pub protected: BTreeMap<String, &'static str>,
}

/// What a budget is decided on.
struct Candidate<'a> {
    image: &'a Image,
    layers: &'a [String],
    used_at_ns: i64,
    protected: Option<&'static str>,
}

/// What goes, in this order. Same input, same answer. `sizes`: bytes of each layer on disk.
fn plan<'a>(
    candidates: &[Candidate<'a>],
    others: &[&'a [String]],
    sizes: &HashMap<&str, u64>,
    budget: DiskBudget,
) -> (Vec<(&'a Image, u64)>, u64) {
    let mut users: HashMap<&str, usize> = HashMap::new();
    let all = candidates
        .iter()
        .map(|c| c.layers)
        .chain(others.iter().copied());
    for layers in all {
        for key in layers.iter().collect::<HashSet<_>>() {
            *users.entry(key).or_default() += 1;
        }
    }
    let mut left: u64 = users.keys().filter_map(|key| sizes.get(key)).sum();
    let mut order: Vec<&Candidate<'a>> = candidates
        .iter()
        .filter(|c| c.protected.is_none())
        .collect();
    order.sort_by_key(|c| (c.used_at_ns, c.image.id.clone()));
    let mut gone = Vec::new();
    for candidate in order {
        if left <= budget.bytes {
            break;
        }
        let mut freed = 0;
        for key in candidate.layers.iter().collect::<HashSet<_>>() {
            if let Some(count) = users.get_mut(key.as_str()) {
                *count -= 1;
                if *count == 0 {
                    freed += sizes.get(key.as_str()).copied().unwrap_or(0);
                }
            }
        }
        left -= freed;
        gone.push((candidate.image, freed));
    }
    (gone, left)
}

/// When an image was used last.
fn used_at_ns(store: &Inner, image: &Image) -> i64 {
    std::fs::metadata(store.blob_path(&image.id))
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(image.loaded_at_ns)
}

/// A container is being made of it.
pub(crate) fn touch(store: &Inner, image: &Digest) {
    // Lost after a crash, an image only looks older than it is.
    let now = std::fs::FileTimes::new().set_modified(SystemTime::now());
    let _ = File::open(store.blob_path(image)).and_then(|file| file.set_times(now));
}

fn bytes_of(row: &LayerRow) -> u64 {
    row.size + row.blob_size
}

pub(crate) fn reclaim(
    store: &Inner,
    budget: DiskBudget,
    in_use: &dyn Fn(&Digest) -> bool,
) -> Result<(Reclaimed, Vec<Removed>)> {
    let _publish = store.lock_publish();
    let pins = pins(store)?;
    let candidates: Vec<Digest> = store
        .read()
        .visible_images()
        .map(|i| i.id.clone())
        .collect();
    // From here on nobody can begin to use them; who does already is known to `in_use` or holds one.
    let _leaving = (!budget.dry_run).then(|| crate::store::Leaving::new(store, candidates));
    let (reclaimed, gone) = {
        let state = store.read();
        decide(store, &state, budget, &pins, in_use)
    };
    if budget.dry_run || gone.is_empty() {
        return Ok((reclaimed, Vec::new()));
    }
    let tags: Vec<Reference> = gone.iter().flat_map(|image| image.tags.clone()).collect();
    let (removed, _) = crate::remove::take_out(store, &tags, &gone, &[])?;
    Ok((reclaimed, removed))
}

fn decide(
    store: &Inner,
    state: &State,
    budget: DiskBudget,
    pins: &HashSet<String>,
    in_use: &dyn Fn(&Digest) -> bool,
) -> (Reclaimed, Vec<std::sync::Arc<Image>>) {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut hidden: Vec<&[String]> = Vec::new();
    for known in state.images.values() {
        if known.row.hidden {
            hidden.push(&known.row.layers);
            continue;
        }
        let image = &*known.image;
        let pinned = pins.contains(&image.id.to_string())
            || image.tags.iter().any(|tag| pins.contains(&tag.canonical()));
        let protected = if in_use(&image.id) || state.is_held(&image.id) {
            Some("a container uses it")
        } else if pinned {
            Some("pinned")
        } else if state.children(&image.id) > 0 {
            Some("another image was made from it")
        } else {
            None
        };
        candidates.push(Candidate {
            image,
            layers: &known.row.layers,
            used_at_ns: used_at_ns(store, image),
            protected,
        });
    }
    // The build cache keeps its layers; `docker builder prune` is for those.
    let cached: Vec<String> = state
        .steps
        .values()
        .filter_map(|row| row.layer.clone())
        .collect();
    hidden.extend(cached.iter().map(std::slice::from_ref));
    candidates.sort_by_key(|c| std::cmp::Reverse((c.used_at_ns, c.image.id.clone())));
    for candidate in candidates.iter_mut().take(budget.keep) {
        candidate.protected.get_or_insert("used lately");
    }
    let sizes: HashMap<&str, u64> = state
        .layers
        .iter()
        .map(|(key, row)| (key.as_str(), bytes_of(row)))
        .collect();
    let (gone, after) = plan(&candidates, &hidden, &sizes, budget);
    let freed: u64 = gone.iter().map(|(_, freed)| freed).sum();
    let used: HashMap<&Digest, i64> = candidates
        .iter()
        .map(|c| (&c.image.id, c.used_at_ns))
        .collect();
    let reclaimed = Reclaimed {
        before: after + freed,
        after,
        images: gone
            .iter()
            .map(|(image, freed)| Taken {
                id: image.id.clone(),
                tags: image.tags.iter().map(ToString::to_string).collect(),
                freed: *freed,
                used_at_ns: used.get(&image.id).copied().unwrap_or_default(),
            })
            .collect(),
        protected: candidates
            .iter()
            .filter_map(|c| Some((c.image.id.to_string(), c.protected?)))
            .collect(),
    };
    let gone = gone
        .iter()
        .filter_map(|(image, _)| state.images.get(&image.id).map(|k| k.image.clone()))
        .collect();
    (reclaimed, gone)
}

/// Full names and IDs that nothing but `rmi` takes away.
pub(crate) fn pins(store: &Inner) -> Result<HashSet<String>> {
    Ok(store
        .db
        .scan::<bool>("pins")?
        .into_iter()
        .map(|(name, _)| name)
        .collect())
}

/// A name is pinned whatever image it will mean; an ID pins that image.
pub(crate) fn pin(store: &Inner, name: &str, wanted: bool) -> Result<()> {
    let parsed = AnyReference::parse(name).map_err(|e| Error::invalid(e.to_string()))?;
    let found = store.find(name)?;
    let key = match (&parsed, &found) {
        (AnyReference::Name(reference), Some(image))
            if image.tags.contains(&reference.clone().or_latest())
                || reference.digest.is_some() =>
        {
            reference.clone().or_latest().canonical()
        }
        (_, Some(image)) => image.id.to_string(),
        // What is gone may still be unpinned.
        (AnyReference::Name(reference), None) if !wanted => {
            reference.clone().or_latest().canonical()
        }
        (AnyReference::Id(id), None) if !wanted => id.to_string(),
        _ => return Err(no_such_image(name)),
    };
    if wanted {
        if pins(store)?.len() >= PIN_LIMIT {
            return Err(Error::invalid(format!(
                "more than {PIN_LIMIT} pinned images"
            )));
        }
        store
            .db
            .commit_blocking(Batch::new().put("pins", &key, &true))
    } else {
        store.db.commit_blocking(Batch::new().delete("pins", &key))
    }
}

/// Something on disk that is not what it was.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Damage {
    /// Of the layer's blob, the configuration or the manifest.
    pub digest: Digest,
    pub what: String,
    /// Images that have it, as they may be pulled again.
    pub images: Vec<String>,
    pub repaired: bool,
    /// Nothing here can make it again: pull or load one of the images.
    pub fetch: bool,
}

pub(crate) fn check(
    store: &Inner,
    repair: bool,
    runs: &dyn Fn(&Digest) -> bool,
) -> Result<(u64, Vec<Damage>)> {
    // What is being looked at is not freed meanwhile.
    let workshop = store.workshop()?;
    let (layers, images) = {
        let state = store.read();
        let layers: Vec<(String, LayerRow)> = state
            .layers
            .iter()
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect();
        let images: Vec<_> = state
            .images
            .values()
            .map(|known| (known.image.clone(), known.row.layers.clone()))
            .collect();
        (layers, images)
    };
    let mut damage = Vec::new();
    let mut bytes = 0;
    for (image, _) in &images {
        bytes += image.raw_config.len() as u64;
        let names = vec![name_to_fetch(image)];
        if !is_blob(store, &image.id)? {
            // Memory has what the disk had when it was read and right.
            let repaired = repair && rewrite(store, &image.id, &image.raw_config).is_ok();
            damage.push(Damage {
                digest: image.id.clone(),
                what: "the configuration is damaged".into(),
                images: names.clone(),
                repaired,
                fetch: false,
            });
        }
        if let Some(manifest) = &image.manifest
            && !is_blob(store, manifest)?
        {
            if repair {
                remove_blob(store, manifest)?;
            }
            damage.push(Damage {
                digest: manifest.clone(),
                what: "the manifest is damaged; a new one is made when it is needed".into(),
                images: names,
                repaired: false,
                fetch: true,
            });
        }
    }
    for (key, row) in layers {
        bytes += bytes_of(&row);
        let users: Vec<_> = images
            .iter()
            .filter(|(_, keys)| keys.contains(&key))
            .collect();
        let names = || {
            users
                .iter()
                .map(|(image, _)| name_to_fetch(image))
                .collect()
        };
        if !is_blob(store, &row.blob)? {
            if repair {
                remove_blob(store, &row.blob)?;
            }
            damage.push(Damage {
                digest: row.blob.clone(),
                what: "the stored layer is damaged".into(),
                images: names(),
                repaired: false,
                fetch: true,
            });
            continue;
        }
        // A layer that depends on those below is completed from them: unpacked alone it would differ.
        if key.starts_with("chain-") {
            continue;
        }
        let path = store.blob_path(&row.blob);
        let budget = Budget::of(&store.dir)?;
        let head = File::open(&path).context(|| format!("opening {}", path.display()))?;
        let codec = Codec::detect(Peeked::new(head, 16)?.head())?;
        let spool = Spool::complete(path, row.blob_size)?;
        let done = unpack(&spool, codec, workshop.path("layer"), &budget)?;
        let mut differences = Vec::new();
        let folder = store.layer_folder(&row);
        compare(&done.folder, &folder, Path::new(""), &mut differences)?;
        if differences.is_empty() {
            discard(&done.folder);
            continue;
        }
        let busy = users.iter().any(|(image, _)| runs(&image.id));
        let repaired = repair && !busy;
        if repaired {
            replace(store, &folder, &done.folder, &workshop.path("gone"))?;
        }
        let mut what = format!("the unpacked layer differs in {}", differences.join(", "));
        if repair && busy {
            what.push_str("; a running container uses it: stop it and repair again");
        }
        damage.push(Damage {
            digest: row.blob.clone(),
            what,
            images: names(),
            repaired,
            fetch: false,
        });
    }
    Ok((bytes, damage))
}

/// By digest, so that exactly the same comes again; else by tag or ID.
fn name_to_fetch(image: &Image) -> String {
    let by_digest = image.tags.iter().find(|tag| tag.digest.is_some());
    by_digest
        .or(image.tags.first())
        .map_or_else(|| image.id.to_string(), ToString::to_string)
}

fn is_blob(store: &Inner, digest: &Digest) -> Result<bool> {
    let path = store.blob_path(digest);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).context(|| format!("opening {}", path.display())),
    };
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; crate::spool::BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish() == *digest),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // A disk that cannot read a sector has lost it.
            Err(_) => return Ok(false),
        }
    }
}

fn rewrite(store: &Inner, digest: &Digest, bytes: &[u8]) -> Result<()> {
    if sha256(bytes) != *digest {
        return Err(Error::internal("the memory's copy is damaged too"));
    }
    let path = store.blob_path(digest);
    let aside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)
    };
    write().context(|| format!("writing {}", path.display()))
}

/// Moved out of the way, it is not there: the next pull or load brings it.
fn remove_blob(store: &Inner, digest: &Digest) -> Result<()> {
    let path = store.blob_path(digest);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn replace(store: &Inner, old: &Path, new: &Path, grave: &Path) -> Result<()> {
    let tmp = File::open(store.dir.join("tmp")).context(|| "opening the store's tmp".into())?;
    gantry_linux::dirfd::sync_file_system(&tmp).context(|| "syncing a layer to disk".into())?;
    // A crash between the two leaves an image without this folder: the next check makes it again from the blob.
    std::fs::rename(old, grave).context(|| format!("moving {} away", old.display()))?;
    std::fs::rename(new, old).context(|| format!("moving {} into place", old.display()))?;
    File::open(store.dir.join("layers"))
        .and_then(|folder| folder.sync_all())
        .context(|| "syncing layers".into())
}

/// Names below `good` and `bad` that are not the same: kind, mode, owner, links, content.
fn compare(good: &Path, bad: &Path, below: &Path, out: &mut Vec<String>) -> Result<()> {
    let names = |folder: &Path| -> HashSet<std::ffi::OsString> {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect()
    };
    let (left, right) = (names(&good.join(below)), names(&bad.join(below)));
    let mut all: Vec<_> = left.union(&right).collect();
    all.sort();
    for name in all {
        if out.len() >= TOLD_LIMIT {
            return Ok(());
        }
        let path = below.join(name);
        let (a, b) = (good.join(&path), bad.join(&path));
        let same = match (a.symlink_metadata(), b.symlink_metadata()) {
            (Ok(x), Ok(y)) => {
                let alike = x.mode() == y.mode()
                    && (x.uid(), x.gid(), x.rdev()) == (y.uid(), y.gid(), y.rdev())
                    && (x.is_dir() || x.len() == y.len());
                if alike && x.is_dir() {
                    compare(good, bad, &path, out)?;
                    true
                } else if alike && x.is_file() {
                    same_bytes(&a, &b).unwrap_or(false)
                } else {
                    alike
                        && (!x.is_symlink()
                            || std::fs::read_link(&a).ok() == std::fs::read_link(&b).ok())
                }
            }
            _ => false,
        };
        if !same {
            out.push(format!("/{}", path.display()));
        }
    }
    Ok(())
}

fn same_bytes(a: &Path, b: &Path) -> std::io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let read = a.read(&mut x)?;
        b.read_exact(&mut y[..read])?;
        if x[..read] != y[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(b.read(&mut y)? == 0);
        }
    }
}
