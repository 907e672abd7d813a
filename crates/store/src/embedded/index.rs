//! Where everything is: for each key its kept revisions, the order of changes, the leases. No values.

use crate::frame::{self, Kind};
use crate::{Error, Event, KeyValue, Range, Ranged, Result, Span, Watch};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) type Key = Arc<[u8]>;

/// A file of the store. Readers keep it open while it is replaced.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// One state of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) revision: u64,
    pub(super) create: u64,
    /// 0: the key was deleted here.
    pub(super) version: u64,
    pub(super) lease: i64,
    pub(super) segment: u32,
    pub(super) offset: u64,
    /// Bytes of the frame.
    pub(super) len: u32,
}

impl Version {
    pub(super) fn deleted(&self) -> bool {
        self.version == 0
    }
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) ttl: Duration,
    pub(super) expires: Instant,
    pub(super) keys: BTreeSet<Key>,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) keys: BTreeMap<Key, Vec<Version>>,
    /// Every change after `compacted`, in order.
    pub(super) changes: VecDeque<(u64, Key)>,
    pub(crate) revision: u64,
    pub(super) compacted: u64,
    pub(super) leases: BTreeMap<i64, Lease>,
    pub(super) segments: BTreeMap<u32, Arc<Segment>>,
    /// Sizes of the files, by segment.
    pub(super) sizes: BTreeMap<u32, u64>,
    /// Bytes of the frames that `keys` points to.
    pub(super) live_bytes: u64,
}

/// A version together with what is needed to read it without the index.
#[derive(Debug)]
pub(super) struct Place {
    key: Key,
    version: Version,
    segment: Arc<Segment>,
}

impl Place {
    pub(super) fn without_value(self) -> KeyValue {
        self.with(Bytes::copy_from_slice(&self.key), Bytes::new())
    }

    fn with(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.version.create,
            mod_revision: self.version.revision,
            version: self.version.version,
            lease: self.version.lease,
        }
    }

    /// The state from disk, if its bytes are what was written.
    pub(super) fn read(&self) -> Result<KeyValue> {
        let mut bytes = vec![0; self.version.len as usize];
        let damaged = |what: &str| Error::Damaged {
            file: self.segment.path.clone(),
            offset: self.version.offset,
            what: format!(
                "{what} of {} at revision {}",
                String::from_utf8_lossy(&self.key),
                self.version.revision
            ),
        };
        match self
            .segment
            .file
            .read_exact_at(&mut bytes, self.version.offset)
        {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damaged("the file ends before the value"));
            }
            Err(e) => {
                return Err(Error::Internal(format!(
                    "reading {}: {e}",
                    self.segment.path.display()
                )));
            }
        }
        let bytes = Bytes::from(bytes);
        let Ok(found) = frame::read(&bytes) else {
            return Err(damaged("the checksum is wrong for the value"));
        };
        if found.kind != Kind::Put
            || found.a != self.version.revision
            || found.key != &self.key[..]
            || found.len != bytes.len()
        {
            return Err(damaged("another entry stands in the place"));
        }
        let (key, value) = frame::split(&bytes, &found);
        Ok(self.with(key, value))
    }

    /// The same for a copy: a deletion has no value to read.
    pub(super) fn raw(&self) -> Result<KeyValue> {
        if self.version.deleted() {
            return Ok(self.with(Bytes::copy_from_slice(&self.key), Bytes::new()));
        }
        self.read()
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }
    pub(super) fn version(&self) -> &Version {
        &self.version
    }
}

/// A change and what was before it.
#[derive(Debug)]
pub(super) struct Change {
    place: Place,
    prev: Option<Place>,
}

impl Change {
    pub(super) fn read(&self) -> Result<Event> {
        let prev = self.prev.as_ref().map(Place::read).transpose()?;
        if self.place.version.deleted() {
            return Ok(Event::Delete {
                key: Bytes::copy_from_slice(&self.place.key),
                revision: self.place.version.revision,
                prev,
            });
        }
        Ok(Event::Put {
            kv: self.place.read()?,
            prev,
        })
    }
}

impl Index {
    pub(crate) fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.sizes.values().sum()
    }

    fn place(&self, key: &Key, version: &Version) -> Result<Place> {
        let segment = self
            .segments
            .get(&version.segment)
            .ok_or_else(|| Error::Internal(format!("segment {} is not open", version.segment)))?;
        Ok(Place {
            key: key.clone(),
            version: *version,
            segment: segment.clone(),
        })
    }

    /// The current state of a key, deleted ones included.
    pub(super) fn newest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key)?.last()
    }

    pub(super) fn newest_place(&self, key: &[u8]) -> Result<Option<Place>> {
        let Some((key, versions)) = self.keys.get_key_value(key) else {
            return Ok(None);
        };
        match versions.last() {
            Some(version) if !version.deleted() => self.place(key, version).map(Some),
            _ => Ok(None),
        }
    }

    fn span<'a>(
        &'a self,
        span: &'a Span,
    ) -> Box<dyn Iterator<Item = (&'a Key, &'a Vec<Version>)> + 'a> {
        let start = &span.start[..];
        match &span.end {
            None => Box::new(self.keys.get_key_value(start).into_iter()),
            Some(end) if end.is_empty() => Box::new(
                self.keys
                    .range::<[u8], _>((Bound::Included(start), Bound::Unbounded)),
            ),
            // A range that ends before it starts is empty, where the map would panic.
            Some(end) if &end[..] <= start => Box::new(std::iter::empty()),
            Some(end) => Box::new(
                self.keys
                    .range::<[u8], _>((Bound::Included(start), Bound::Excluded(&end[..]))),
            ),
        }
    }

    /// What a range shows, and where it is.
    pub(super) fn select(&self, range: &Range) -> Result<(Ranged, Vec<Place>)> {
        if range.revision > self.revision {
            return Err(Error::Future {
                requested: range.revision,
                current: self.revision,
            });
        }
        if range.revision != 0 && range.revision < self.compacted {
            return Err(Error::Compacted {
                requested: range.revision,
                oldest: self.compacted,
            });
        }
        let at = match range.revision {
            0 => self.revision,
            revision => revision,
        };
        let mut places = Vec::new();
        let (mut more, mut count) = (false, 0);
        for (key, versions) in self.span(&range.span) {
            let Some(version) = versions.iter().rev().find(|v| v.revision <= at) else {
                continue;
            };
            if version.deleted() {
                continue;
            }
            count += 1;
            if range.limit == 0 || places.len() < range.limit {
                places.push(self.place(key, version)?);
            } else {
                more = true;
                if !range.count {
                    break;
                }
            }
        }
        let ranged = Ranged {
            kvs: Vec::new(),
            more,
            count: range.count.then_some(count),
            revision: at,
        };
        Ok((ranged, places))
    }

    pub(super) fn check_watchable(&self, from: u64) -> Result<()> {
        if from <= self.compacted {
            return Err(Error::Compacted {
                requested: from,
                oldest: self.compacted + 1,
            });
        }
        Ok(())
    }

    /// The changes that a watch sees from revision `from` on, whole revisions up to about `limit` of them, and the revision
    /// that they reach.
    pub(super) fn since(
        &self,
        watch: &Watch,
        from: u64,
        limit: usize,
        limit_bytes: u64,
    ) -> Result<(Vec<Change>, u64)> {
        self.check_watchable(from)?;
        let mut found: Vec<Change> = Vec::new();
        let mut bytes = 0;
        let start = self.changes.partition_point(|(r, _)| *r < from);
        for (revision, key) in self.changes.range(start..) {
            if let Some(last) = found.last() {
                let last = last.place.version.revision;
                if *revision != last && (found.len() >= limit || bytes >= limit_bytes) {
                    return Ok((found, last));
                }
            }
            if !watch.span.contains(key) {
                continue;
            }
            let versions = self.keys.get(key).map_or(&[][..], Vec::as_slice);
            let Ok(at) = versions.binary_search_by_key(revision, |v| v.revision) else {
                return Err(Error::Internal(format!(
                    "revision {revision} of {} is not in the index",
                    String::from_utf8_lossy(key)
                )));
            };
            let prev = match at.checked_sub(1).map(|before| &versions[before]) {
                Some(before) if watch.prev && !before.deleted() => Some(self.place(key, before)?),
                _ => None,
            };
            bytes += u64::from(versions[at].len);
            found.push(Change {
                place: self.place(key, &versions[at])?,
                prev,
            });
        }
        Ok((found, self.revision))
    }

    /// Takes in one state. States of a key come in revision order.
    pub(super) fn insert(&mut self, key: &[u8], version: Version) {
        let key: Key = match self.keys.get_key_value(key) {
            Some((key, _)) => key.clone(),
            None => key.into(),
        };
        let versions = self.keys.entry(key.clone()).or_default();
        if versions
            .last()
            .is_some_and(|newest| newest.revision >= version.revision)
        {
            return;
        }
        let before = versions.last().map_or(0, |v| v.lease);
        if versions.capacity() == versions.len() {
            // Most keys have one state: the usual growth to four would triple the index.
            versions.reserve_exact(if versions.is_empty() {
                1
            } else {
                versions.len()
            });
        }
        versions.push(version);
        self.live_bytes += u64::from(version.len);
        self.revision = self.revision.max(version.revision);
        if version.revision > self.compacted {
            self.changes.push_back((version.revision, key.clone()));
        }
        if before != version.lease {
            if let Some(lease) = self.leases.get_mut(&before) {
                lease.keys.remove(&key);
            }
            if let Some(lease) = self.leases.get_mut(&version.lease) {
                lease.keys.insert(key);
            }
        }
    }

    /// From now on nothing before `revision` is shown; [`Index::prune_some`] then frees it.
    pub(super) fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
    }

    /// Frees up to `limit` changes that compaction made unreachable; whether there may be more.
    pub(super) fn prune_some(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            match self.changes.front() {
                Some((changed, _)) if *changed <= self.compacted => {}
                _ => return false,
            }
            if let Some((_, key)) = self.changes.pop_front() {
                self.prune(&key);
            }
        }
        true
    }

    fn prune(&mut self, key: &Key) {
        let Some(versions) = self.keys.get_mut(key) else {
            return;
        };
        let compacted = self.compacted;
        let after = versions.partition_point(|v| v.revision <= compacted);
        // The newest state at the compacted revision stays, unless it is a deletion.
        let keep = match after.checked_sub(1) {
            Some(last) if !versions[last].deleted() => last,
            _ => after,
        };
        for version in versions.drain(..keep) {
            self.live_bytes -= u64::from(version.len);
        }
        if versions.is_empty() {
            self.keys.remove(key);
        } else {
            versions.shrink_to_fit();
        }
    }

    /// After a recovery: changes in revision order, and nothing that compaction had dropped.
    pub(super) fn settle(&mut self) {
        let compacted = self.compacted;
        let mut changes: Vec<(u64, Key)> = std::mem::take(&mut self.changes).into();
        changes.retain(|(revision, _)| *revision > compacted);
        changes.sort_by_key(|(revision, _)| *revision);
        self.changes = changes.into();
        let stale: Vec<Key> = self
            .keys
            .iter()
            .filter(|(_, versions)| {
                versions.first().is_some_and(|v| v.revision <= compacted)
                    && (versions.len() > 1 || versions[0].deleted())
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in stale {
            self.prune(&key);
        }
    }

    pub(super) fn keep_alive(&mut self, id: i64) -> Result<()> {
        let lease = self.leases.get_mut(&id).ok_or(Error::NoLease(id))?;
        lease.expires = Instant::now() + lease.ttl;
        Ok(())
    }

    pub(super) fn granted(&mut self, id: i64, ttl: Duration) {
        self.leases.entry(id).or_insert_with(|| Lease {
            ttl,
            expires: Instant::now() + ttl,
            keys: BTreeSet::new(),
        });
    }

    /// Up to `limit` keys after `after`, with every state up to `revision`.
    pub(super) fn chunk(
        &self,
        after: Option<&Key>,
        revision: u64,
        limit: usize,
    ) -> Result<(Vec<Place>, Option<Key>)> {
        let start = match after {
            None => Bound::Unbounded,
            Some(key) => Bound::Excluded(&key[..]),
        };
        let mut places = Vec::new();
        let mut last = None;
        for (key, versions) in self
            .keys
            .range::<[u8], _>((start, Bound::Unbounded))
            .take(limit)
        {
            for version in versions.iter().filter(|v| v.revision <= revision) {
                places.push(self.place(key, version)?);
            }
            last = Some(key.clone());
        }
        Ok((places, last))
    }
}
