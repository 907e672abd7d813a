//! The one thread that decides and appends.

use super::Shared;
use super::index::{Index, Version};
use super::recover::{self, ActiveLog, Role, io_error, segment_id};
use super::rewrite;
use crate::frame::{self, ALONE, FIRST, Kind, LAST};
use crate::{Compare, Done, Error, Is, KeyValue, Op, Result, Txn, Txned};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Jobs and bytes that one sync may carry at most.
const GROUP_LIMIT: usize = 1024;
const GROUP_LIMIT_BYTES: usize = 8 << 20;
/// After this long without work the log gets a mark that all of it was synced.
const IDLE: Duration = Duration::from_millis(50);
/// How late an ended lease may be noticed.
const LEASE_CHECK: Duration = Duration::from_millis(200);
/// Changes that are freed in one go after a compaction, between two groups.
const PRUNE_CHUNK: usize = 1000;
/// Dead bytes that are not worth a rewrite.
const DEAD_BYTES: u64 = 64 << 20;
/// The shortest and the longest lease.
const LEASE_SECONDS: (u64, u64) = (1, 9_000_000_000);

pub(super) enum Job {
    Txn(Txn, oneshot::Sender<Result<Txned>>),
    Compact(u64, oneshot::Sender<Result<()>>),
    Grant(Duration, oneshot::Sender<Result<i64>>),
    Revoke(i64, Option<oneshot::Sender<Result<()>>>),
    Rewrite(oneshot::Sender<Result<()>>),
    Rewritten(Result<()>),
    Stop,
}

impl Job {
    /// Decided alone, because others in the same group may change what it is about.
    fn alone(&self) -> bool {
        !matches!(self, Self::Txn(..) | Self::Grant(..))
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    log: ActiveLog,
    /// Length of the log before, for the first mark of this one.
    length_before: u64,
    /// The log's length after the last mark.
    marked: u64,
    jobs: Receiver<Job>,
    queue: Sender<Job>,
    pruning: bool,
    leases_checked: Instant,
    rewriting: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
    rewrite_waiters: Vec<oneshot::Sender<Result<()>>>,
    /// No rewrite before the files have this size: the last one failed or brought nothing.
    rewrite_from: u64,
    _lock: File,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        log: ActiveLog,
        jobs: Receiver<Job>,
        queue: Sender<Job>,
        lock: File,
    ) -> Self {
        Self {
            shared,
            log,
            length_before: 0,
            marked: 0,
            jobs,
            queue,
            pruning: true,
            leases_checked: Instant::now(),
            rewriting: None,
            rewrite_waiters: Vec::new(),
            rewrite_from: 0,
            _lock: lock,
        }
    }

    pub(super) fn run(mut self) {
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(job) => job,
                None => match self.jobs.recv_timeout(self.patience()) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        self.idle();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                },
            };
            match first {
                Job::Stop => break,
                Job::Rewrite(done) => {
                    self.rewrite_waiters.push(done);
                    self.start_rewrite();
                }
                Job::Rewritten(result) => self.rewritten(&result),
                job if job.alone() => self.commit(vec![job]),
                job => {
                    let mut group = vec![job];
                    while group.len() < GROUP_LIMIT {
                        match self.jobs.try_recv() {
                            Ok(job) if job.alone() => {
                                next = Some(job);
                                break;
                            }
                            Ok(job) => group.push(job),
                            Err(_) => break,
                        }
                    }
                    self.commit(group);
                }
            }
            self.prune();
            self.expire_leases();
            self.rewrite_if_worth_it();
        }
        if let Some((thread, stop)) = self.rewriting.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
        self.mark();
    }

    fn patience(&self) -> Duration {
        if self.pruning {
            return Duration::ZERO;
        }
        if self.marked < self.log.len {
            return IDLE;
        }
        if self.shared.read().leases.is_empty() {
            return Duration::from_secs(3600);
        }
        LEASE_CHECK
    }

    fn idle(&mut self) {
        if self.pruning {
            self.prune();
        } else if self.marked < self.log.len {
            self.mark();
        }
        self.expire_leases();
    }

    fn prune(&mut self) {
        if self.pruning {
            self.pruning = self.shared.write().prune_some(PRUNE_CHUNK);
        }
    }

    /// Says in the log that all of it is synced, so that a later change of its last bytes is known for damage.
    fn mark(&mut self) {
        if self.marked >= self.log.len {
            return;
        }
        let mut bytes = Vec::with_capacity(frame::HEAD);
        self.write_mark(&mut bytes);
        // Not synced itself: without it the end of the log is taken on trust, no more.
        match self.log.segment.file.write_all_at(&bytes, self.log.len) {
            Ok(()) => self.log.len += bytes.len() as u64,
            Err(_) => {
                let _ = self.log.segment.file.set_len(self.log.len);
            }
        }
        self.marked = self.log.len;
    }

    fn write_mark(&self, bytes: &mut Vec<u8>) {
        let numbers = [self.log.len, u64::from(self.log.id), self.length_before, 0];
        frame::write(bytes, Kind::Synced, ALONE, numbers, &[], &[]);
    }

    fn expire_leases(&mut self) {
        if self.leases_checked.elapsed() < LEASE_CHECK {
            return;
        }
        self.leases_checked = Instant::now();
        let now = Instant::now();
        let ended: Vec<i64> = self
            .shared
            .read()
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.commit(vec![Job::Revoke(id, None)]);
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let mut jobs = std::collections::VecDeque::from(jobs);
        while !jobs.is_empty() {
            let shared = self.shared.clone();
            let index = shared.read();
            let mut group = Group::new(&index, &self.log);
            if self.marked < self.log.len || self.log.len == 0 {
                self.write_mark(&mut group.bytes);
            }
            group.head = group.bytes.len();
            while let Some(job) = jobs.pop_front() {
                group.decide(job);
                if group.bytes.len() > GROUP_LIMIT_BYTES {
                    break;
                }
            }
            let Group {
                bytes,
                head,
                effects,
                answers,
                ..
            } = group;
            drop(index);
            let written = if bytes.len() == head {
                Ok(())
            } else {
                self.append(&bytes)
            };
            match written {
                Ok(()) => {
                    self.apply(effects);
                    for answer in answers {
                        answer.give(None);
                    }
                }
                Err(error) => {
                    for answer in answers {
                        answer.give(Some(&error));
                    }
                }
            }
        }
    }

    /// Makes the group durable, or leaves the log as it was.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let file = &self.log.segment.file;
        let written = file
            .write_all_at(bytes, self.log.len)
            .and_then(|()| file.sync_data());
        if let Err(e) = written {
            // After a failed sync nobody knows what is on disk beyond the last good one: it is cut off before anything follows.
            let cut = file.set_len(self.log.len).and_then(|()| file.sync_all());
            let text = format!("writing {}", self.log.segment.path.display());
            if let Err(cut) = cut {
                tracing::error!(error = %cut, "the log could not be cut back after a failed write");
            }
            return Err(io_error(&text, &e));
        }
        self.log.len += bytes.len() as u64;
        Ok(())
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let mut index = self.shared.write();
        for effect in effects {
            match effect {
                Effect::Version { key, version, .. } => index.insert(&key, version),
                Effect::Compacted(revision) => {
                    index.compact(revision);
                    self.pruning = true;
                }
                Effect::Granted(id, ttl) => index.granted(id, ttl),
                Effect::Revoked(id) => {
                    index.leases.remove(&id);
                }
            }
        }
        let id = segment_id(Role::Log, self.log.id);
        index.sizes.insert(id, self.log.len);
        let revision = index.revision;
        drop(index);
        self.shared.revision.send_if_modified(|current| {
            let changed = *current != revision;
            *current = revision;
            changed
        });
    }

    fn rewrite_if_worth_it(&mut self) {
        if self.rewriting.is_some() || self.pruning {
            return;
        }
        let index = self.shared.read();
        let total = index.total_bytes();
        let worth = total > 2 * index.live_bytes + DEAD_BYTES && total >= self.rewrite_from;
        drop(index);
        if worth {
            self.rewrite_from = total + DEAD_BYTES;
            self.start_rewrite();
        }
    }

    /// Seals the log, goes on in a new one, and has the rest done beside.
    fn start_rewrite(&mut self) {
        if self.rewriting.is_some() {
            return;
        }
        let (sealed, sealed_len) = (self.log.id, self.log.len);
        let revision = self.shared.read().revision;
        let made = recover::create_log(&self.shared.dir, sealed + 1, &mut self.shared.write());
        match made {
            Ok(log) => self.log = log,
            Err(e) => return self.rewritten(&Err(e)),
        }
        self.length_before = sealed_len;
        self.marked = 0;
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, queue, stopped) = (self.shared.clone(), self.queue.clone(), stop.clone());
        let spawned = std::thread::Builder::new()
            .name("store-rewrite".into())
            .spawn(move || {
                let result = rewrite::run(&shared, sealed, revision, &stopped);
                let _ = queue.send(Job::Rewritten(result));
            });
        match spawned {
            Ok(thread) => self.rewriting = Some((thread, stop)),
            Err(e) => self.rewritten(&Err(io_error("starting the rewrite", &e))),
        }
    }

    fn rewritten(&mut self, result: &Result<()>) {
        if let Some((thread, _)) = self.rewriting.take() {
            let _ = thread.join();
        }
        if let Err(e) = result {
            tracing::warn!(error = %e, "rewriting the store failed; the old files stay");
        }
        for done in self.rewrite_waiters.drain(..) {
            let _ = done.send(result.clone());
        }
    }
}

/// What becomes visible once the group is on disk.
enum Effect {
    Version {
        key: Bytes,
        version: Version,
        value: Bytes,
    },
    Compacted(u64),
    Granted(i64, Duration),
    Revoked(i64),
}

enum Reply {
    Txn(oneshot::Sender<Result<Txned>>, Result<Txned>),
    Unit(Option<oneshot::Sender<Result<()>>>, Result<()>),
    Lease(oneshot::Sender<Result<i64>>, Result<i64>),
}

impl Reply {
    fn give(self, failed: Option<&Error>) {
        // A caller that has gone away is no fault.
        match (self, failed) {
            (Self::Txn(to, _), Some(e)) => drop(to.send(Err(e.clone()))),
            (Self::Txn(to, answer), None) => drop(to.send(answer)),
            (Self::Unit(Some(to), _), Some(e)) => drop(to.send(Err(e.clone()))),
            (Self::Unit(Some(to), answer), None) => drop(to.send(answer)),
            (Self::Unit(None, _), _) => {}
            (Self::Lease(to, _), Some(e)) => drop(to.send(Err(e.clone()))),
            (Self::Lease(to, answer), None) => drop(to.send(answer)),
        }
    }
}

/// Transactions that share one sync, decided one after the other.
struct Group<'a> {
    index: &'a Index,
    segment: u32,
    start: u64,
    bytes: Vec<u8>,
    /// Bytes of the mark in front.
    head: usize,
    revision: u64,
    effects: Vec<Effect>,
    /// The newest effect on a key.
    changed: HashMap<Bytes, usize>,
    answers: Vec<Reply>,
}

impl<'a> Group<'a> {
    fn new(index: &'a Index, log: &ActiveLog) -> Self {
        Self {
            index,
            segment: segment_id(Role::Log, log.id),
            start: log.len,
            bytes: Vec::new(),
            head: 0,
            revision: index.revision,
            effects: Vec::new(),
            changed: HashMap::new(),
            answers: Vec::new(),
        }
    }

    fn decide(&mut self, job: Job) {
        let answer = match job {
            Job::Txn(txn, done) => {
                let result = self.txn(&txn);
                Reply::Txn(done, result)
            }
            Job::Compact(revision, done) => {
                let result = self.compact(revision);
                Reply::Unit(Some(done), result)
            }
            Job::Grant(ttl, done) => {
                let result = Ok(self.grant(ttl));
                Reply::Lease(done, result)
            }
            Job::Revoke(id, done) => {
                let result = self.revoke(id);
                Reply::Unit(done, result)
            }
            Job::Rewrite(_) | Job::Rewritten(_) | Job::Stop => {
                unreachable!("handled by the writer's loop")
            }
        };
        self.answers.push(answer);
    }

    /// The newest state of a key, deleted or not.
    fn newest(&self, key: &[u8]) -> Option<&Version> {
        match self.changed.get(key) {
            Some(at) => match &self.effects[*at] {
                Effect::Version { version, .. } => Some(version),
                _ => None,
            },
            None => self.index.newest(key),
        }
    }

    fn live(&self, key: &[u8]) -> Option<&Version> {
        self.newest(key).filter(|version| !version.deleted())
    }

    fn get(&self, key: &Bytes) -> Result<Option<KeyValue>> {
        let Some(at) = self.changed.get(key) else {
            return self
                .index
                .newest_place(key)?
                .map(|place| place.read())
                .transpose();
        };
        Ok(match &self.effects[*at] {
            Effect::Version {
                key,
                version,
                value,
            } if !version.deleted() => Some(KeyValue {
                key: key.clone(),
                value: value.clone(),
                create_revision: version.create,
                mod_revision: version.revision,
                version: version.version,
                lease: version.lease,
            }),
            _ => None,
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let live = self.live(&compare.key);
        match compare.is {
            Is::ModRevision(revision) => live.map_or(0, |v| v.revision) == revision,
            Is::CreateRevision(revision) => live.map_or(0, |v| v.create) == revision,
            Is::Version(version) => live.map_or(0, |v| v.version) == version,
        }
    }

    fn txn(&mut self, txn: &Txn) -> Result<Txned> {
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.or_else };
        for op in ops {
            if let Op::Put { lease, .. } = op
                && *lease != 0
                && !self.index.leases.contains_key(lease)
            {
                return Err(Error::NoLease(*lease));
            }
        }
        let revision = self.revision + 1;
        let (bytes_before, effects_before) = (self.bytes.len(), self.effects.len());
        let mut frames = Vec::new();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let done = match op {
                Op::Get { key } => match self.get(key) {
                    Ok(found) => Done::Got(found),
                    Err(e) => {
                        // Nothing of this transaction stays in the group.
                        self.undo(bytes_before, effects_before);
                        return Err(e);
                    }
                },
                Op::Put { key, value, lease } => {
                    frames.push(self.bytes.len());
                    self.put(key, value, *lease, revision);
                    Done::Put
                }
                Op::Delete { key } => {
                    let there = self.live(key).is_some();
                    if there {
                        frames.push(self.bytes.len());
                        self.delete(key, revision);
                    }
                    Done::Deleted(there)
                }
            };
            results.push(done);
        }
        self.finish(&frames, revision);
        Ok(Txned {
            succeeded,
            revision: self.revision,
            results,
        })
    }

    fn undo(&mut self, bytes: usize, effects: usize) {
        self.bytes.truncate(bytes);
        self.effects.truncate(effects);
        self.changed.clear();
        for (at, effect) in self.effects.iter().enumerate() {
            if let Effect::Version { key, .. } = effect {
                self.changed.insert(key.clone(), at);
            }
        }
    }

    /// Marks first and last frame of a transaction and takes its revision, if it wrote anything.
    fn finish(&mut self, frames: &[usize], revision: u64) {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
            return;
        };
        frame::flag(&mut self.bytes[*first..], FIRST);
        frame::flag(&mut self.bytes[*last..], LAST);
        self.revision = revision;
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: i64, revision: u64) {
        let (create, version) = match self.live(key) {
            Some(v) => (v.create, v.version + 1),
            None => (revision, 1),
        };
        let numbers = [revision, create, version, lease.cast_unsigned()];
        self.push(Kind::Put, numbers, key, value);
    }

    fn delete(&mut self, key: &Bytes, revision: u64) {
        self.push(Kind::Delete, [revision, 0, 0, 0], key, &Bytes::new());
    }

    fn push(&mut self, kind: Kind, numbers: [u64; 4], key: &Bytes, value: &Bytes) {
        let offset = self.start + self.bytes.len() as u64;
        let len = frame::write(&mut self.bytes, kind, 0, numbers, key, value);
        self.changed.insert(key.clone(), self.effects.len());
        self.effects.push(Effect::Version {
            key: key.clone(),
            version: Version {
                revision: numbers[0],
                create: numbers[1],
                version: numbers[2],
                lease: numbers[3].cast_signed(),
                segment: self.segment,
                offset,
                len: u32::try_from(len).expect("frames are limited"),
            },
            value: value.clone(),
        });
    }

    fn compact(&mut self, revision: u64) -> Result<()> {
        if revision > self.revision {
            return Err(Error::Future {
                requested: revision,
                current: self.revision,
            });
        }
        if revision <= self.index.compacted {
            return Err(Error::Compacted {
                requested: revision,
                oldest: self.index.compacted,
            });
        }
        let numbers = [self.revision, revision, 0, 0];
        frame::write(&mut self.bytes, Kind::Compact, ALONE, numbers, &[], &[]);
        self.effects.push(Effect::Compacted(revision));
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> i64 {
        let seconds = (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0))
            .clamp(LEASE_SECONDS.0, LEASE_SECONDS.1);
        let taken: BTreeSet<i64> = self
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Granted(id, _) => Some(*id),
                _ => None,
            })
            .collect();
        let id = loop {
            let id = random_id();
            if id != 0 && !taken.contains(&id) && !self.index.leases.contains_key(&id) {
                break id;
            }
        };
        let numbers = [self.revision, id.cast_unsigned(), seconds, 0];
        frame::write(&mut self.bytes, Kind::Grant, ALONE, numbers, &[], &[]);
        self.effects
            .push(Effect::Granted(id, Duration::from_secs(seconds)));
        id
    }

    /// Alone in its group, so the index knows all keys of the lease.
    fn revoke(&mut self, id: i64) -> Result<()> {
        let lease = self.index.leases.get(&id).ok_or(Error::NoLease(id))?;
        let revision = self.revision + 1;
        let mut frames = Vec::new();
        for key in &lease.keys {
            frames.push(self.bytes.len());
            self.delete(&Bytes::copy_from_slice(key), revision);
        }
        self.finish(&frames, revision);
        let numbers = [self.revision, id.cast_unsigned(), 0, 0];
        frame::write(&mut self.bytes, Kind::Revoke, ALONE, numbers, &[], &[]);
        self.effects.push(Effect::Revoked(id));
        Ok(())
    }
}

/// Positive, and not guessed by two servers alike: the standard library's hasher is seeded by the system.
fn random_id() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    (random >> 1).cast_signed()
}
