//! A new base beside the running log: what is kept is copied, the index is pointed to the copies, the old files go.

use super::Shared;
use super::index::{Key, Segment};
use super::recover::{Role, io_error, path_of, segment_id, sync_dir};
use crate::frame::{self, ALONE, Kind};
use crate::{Error, Result};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys copied, and states pointed to their copies, between two chances for the writer.
const CHUNK: usize = 256;

/// Replaces every file with an id up to `sealed`, whose last revision is `revision`. Those files no longer change.
pub(super) fn run(shared: &Shared, sealed: u32, revision: u64, stop: &AtomicBool) -> Result<()> {
    let path = path_of(&shared.dir, Role::Base, sealed);
    let temporary = path.with_extension("tmp");
    let result = copy(shared, &temporary, revision, stop);
    let (moved, length) = match result {
        Ok(done) => done,
        Err(e) => {
            let _ = std::fs::remove_file(&temporary);
            return Err(e);
        }
    };
    let failed = |e: std::io::Error| io_error(&format!("writing {}", path.display()), &e);
    std::fs::rename(&temporary, &path).map_err(failed)?;
    sync_dir(&shared.dir).map_err(failed)?;
    let file = OpenOptions::new().read(true).open(&path).map_err(failed)?;
    let base = segment_id(Role::Base, sealed);
    {
        let mut index = shared.write();
        index
            .segments
            .insert(base, Arc::new(Segment { path, file }));
        index.sizes.insert(base, length);
    }
    for chunk in moved.chunks(CHUNK) {
        let mut index = shared.write();
        for (key, revision, offset) in chunk {
            let Some(versions) = index.keys.get_mut(key) else {
                continue;
            };
            if let Ok(at) = versions.binary_search_by_key(revision, |v| v.revision) {
                versions[at].segment = base;
                versions[at].offset = *offset;
            }
        }
    }
    let replaced: Vec<Arc<Segment>> = {
        let mut index = shared.write();
        let ids: Vec<u32> = index.segments.range(..base).map(|(id, _)| *id).collect();
        ids.iter()
            .filter_map(|id| {
                index.sizes.remove(id);
                index.segments.remove(id)
            })
            .collect()
    };
    for segment in replaced {
        let _ = std::fs::remove_file(&segment.path);
    }
    Ok(())
}

type Moved = Vec<(Key, u64, u64)>;

fn copy(
    shared: &Shared,
    temporary: &std::path::Path,
    revision: u64,
    stop: &AtomicBool,
) -> Result<(Moved, u64)> {
    let failed = |e: std::io::Error| io_error(&format!("writing {}", temporary.display()), &e);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(temporary)
        .map_err(failed)?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut bytes = Vec::new();
    let (mut frames, mut length) = (0_u64, 0_u64);
    for (id, lease) in &shared.read().leases {
        let numbers = [revision, id.cast_unsigned(), lease.ttl.as_secs(), 0];
        frame::write(&mut bytes, Kind::Grant, ALONE, numbers, &[], &[]);
        frames += 1;
    }
    let mut moved = Moved::new();
    let mut after: Option<Key> = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Unavailable("the store is closed".to_owned()));
        }
        let (places, last) = shared.read().chunk(after.as_ref(), revision, CHUNK)?;
        for place in &places {
            let kv = place.raw()?;
            let version = place.version();
            moved.push((
                place.key().clone(),
                version.revision,
                length + bytes.len() as u64,
            ));
            let (kind, numbers) = if version.deleted() {
                (Kind::Delete, [version.revision, 0, 0, 0])
            } else {
                let lease = version.lease.cast_unsigned();
                (
                    Kind::Put,
                    [version.revision, version.create, version.version, lease],
                )
            };
            frame::write(&mut bytes, kind, ALONE, numbers, &kv.key, &kv.value);
            frames += 1;
        }
        if last.is_none() {
            let compacted = shared.read().compacted;
            let numbers = [frames, revision, compacted, 0];
            frame::write(&mut bytes, Kind::End, ALONE, numbers, &[], &[]);
        }
        out.write_all(&bytes).map_err(failed)?;
        length += bytes.len() as u64;
        bytes.clear();
        if last.is_none() {
            break;
        }
        after = last;
    }
    out.flush().map_err(failed)?;
    out.get_ref().sync_all().map_err(failed)?;
    Ok((moved, length))
}
