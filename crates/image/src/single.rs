//! Images made of one new layer: `import`, `commit`, and those built from files in memory.

use crate::archive::{Assembly, chain_id};
use crate::layer::{Budget, read_error};
use crate::spool::{self, Codec, Job, Peeked, Slot, SpoolWriter, take_slot, with_workers};
use crate::store::{Inner, LAYER_LIMIT, NewImage};
use crate::{Entry, EntryKind, Image};
use gantry_base::{Error, Result, ResultExt};
use gantry_oci::image::{History, ImageConfig, RootFs};
use gantry_oci::{Digest, Reference};
use std::io::Read;
use std::sync::Arc;

/// Digest of a tar without entries (two blocks of zeros). Docker makes no layer of it.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

pub(crate) fn import(
    store: &Inner,
    tar: impl Read + Send,
    reference: Option<&Reference>,
    mut config: ImageConfig,
) -> Result<Digest> {
    stamp(&mut config, "Imported from -");
    add_layer(store, None, tar, reference, config)
}

pub(crate) fn commit(
    store: &Inner,
    base: Option<&Digest>,
    layer: impl Read + Send,
    reference: Option<&Reference>,
    mut config: ImageConfig,
) -> Result<Digest> {
    let base = match base {
        // Also one that was removed by force: its container is being committed.
        Some(id) => Some(
            store
                .read()
                .images
                .get(id)
                .map(|known| known.image.clone())
                .ok_or_else(|| Error::not_found(format!("No such image: {id}")))?,
        ),
        None => None,
    };
    stamp(&mut config, "");
    add_layer(store, base, layer, reference, config)
}

pub(crate) fn build(
    store: &Inner,
    entries: &[Entry],
    mut config: ImageConfig,
    reference: Option<&Reference>,
) -> Result<Digest> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        let result = match &entry.kind {
            EntryKind::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, &entry.path, bytes.as_slice())
            }
            EntryKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, &entry.path, std::io::empty())
            }
            EntryKind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, &entry.path, target)
            }
        };
        result.context(|| format!("adding {} to the layer", entry.path))?;
    }
    let tar = builder
        .into_inner()
        .context(|| "finishing the layer".into())?;
    if config.history.is_empty() {
        config.history.push(History {
            created: config.created.clone(),
            created_by: Some("gantry".into()),
            ..History::default()
        });
    }
    add_layer(store, None, tar.as_slice(), reference, config)
}

fn stamp(config: &mut ImageConfig, comment: &str) {
    let now = jiff::Timestamp::now().to_string();
    let created = config.created.get_or_insert(now).clone();
    if config.history.is_empty() {
        config.history.push(History {
            created: Some(created),
            comment: (!comment.is_empty()).then(|| comment.to_owned()),
            ..History::default()
        });
    }
}

fn add_layer(
    store: &Inner,
    base: Option<Arc<Image>>,
    tar: impl Read + Send,
    reference: Option<&Reference>,
    mut config: ImageConfig,
) -> Result<Digest> {
    if reference.is_some_and(|r| r.digest.is_some()) {
        return Err(Error::invalid(
            "refusing to create a tag with a digest reference",
        ));
    }
    let workshop = store.workshop()?;
    let budget = Budget::of(&store.dir)?;
    let mut source = Peeked::new(tar, 512)?;
    let codec = Codec::detect(source.head())?;
    let slot = Slot::default();
    let (spooled, blob, blob_size) = with_workers(&budget, |jobs| {
        let mut writer = SpoolWriter::create(workshop.path("blob"))?;
        let job = Job {
            spool: writer.spool().clone(),
            codec,
            folder: workshop.path("layer"),
            result: slot.clone(),
        };
        jobs.send(job)
            .map_err(|_| Error::internal("the unpacking threads have ended"))?;
        let mut buffer = vec![0; spool::BUFFER];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(writer.finish()),
                Ok(read) => writer.write(&buffer[..read], &budget)?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(e)),
            }
        }
    })?;
    let done = take_slot(&slot).ok_or_else(|| Error::internal("the layer was not unpacked"))??;
    let diff_id = done.diff_id.clone().unwrap_or_else(|| blob.clone());

    let (mut keys, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(base) = &base {
        let state = store.read();
        let known = state.images.get(&base.id);
        keys = known.map(|k| k.row.layers.clone()).unwrap_or_default();
        diff_ids.clone_from(&base.config.rootfs.diff_ids);
        history.clone_from(&base.config.history);
    }
    if diff_ids.len() >= LAYER_LIMIT {
        return Err(Error::invalid("max depth exceeded"));
    }
    let mut assembly = Assembly::new(store, &workshop, &budget);
    history.append(&mut config.history);
    if base.is_some() && diff_id.to_string() == EMPTY_LAYER {
        if let Some(last) = history.last_mut() {
            last.empty_layer = true;
        }
    } else {
        let below = diff_ids.iter().fold(None, |below, diff_id| {
            Some(chain_id(below.as_ref(), diff_id))
        });
        let chain_key = format!("chain-{}", chain_id(below.as_ref(), &diff_id).hex());
        let key = assembly.add(
            done,
            diff_id.clone(),
            &chain_key,
            &keys,
            &spooled,
            blob,
            blob_size,
        )?;
        keys.push(key);
        diff_ids.push(diff_id);
    }
    config.history = history;
    config.rootfs = RootFs {
        kind: "layers".into(),
        diff_ids,
    };
    if config.os.is_empty() {
        config.os = "linux".into();
    }
    if config.architecture.is_empty() {
        config.architecture = crate::archive::architecture().into();
    }
    let raw = serde_json::to_vec(&config).expect("our own documents serialise");
    let mut image = NewImage::new(raw)?;
    image.layers = keys;
    image.tags = reference
        .map(|r| r.clone().or_latest())
        .into_iter()
        .collect();
    image.parent = base.map(|base| base.id.clone());
    let id = image.id.clone();
    store.publish(assembly.layers, vec![image])?;
    Ok(id)
}
