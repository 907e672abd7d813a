//! One watch of the store for all watchers of all kinds.
//!
//! ```text
//! store.watch("/registry/") ── hub task ──► Ring of pods ──► 10,000 watchers, each a position in the ring
//!                                       └─► Ring of configmaps …
//! ```
//! An event is read from the store once, opened once (Secrets), and put into words once per form; watchers copy a pointer.
//! A ring holds the newest events only. Who starts before its beginning, or fell behind it, reads the store's own log until it
//! has caught up ([`Cursor`]): slow watchers cost no memory and miss nothing. A kind that nobody watches has no ring.

use crate::keys::Keys;
use crate::object;
use crate::rbac;
use crate::status::{Result, Status};
use bytes::Bytes;
use gantry_store::{Error, Store, Watch, Watcher};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

/// Events and bytes that a ring holds.
const RING_EVENTS: usize = 4096;
const RING_BYTES: usize = 8 << 20;
/// Watchers of one server. Each holds some kilobytes; more are refused before memory or descriptors run out.
pub(crate) const WATCHERS_LIMIT: usize = 50_000;
pub(crate) const REGISTRY: &str = "/registry/";

/// One change, shared by everyone who watches its kind.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) key: Bytes,
    /// As kept, opened. `None`: removed.
    pub(crate) now: Option<Bytes>,
    /// What was there before. `None`: it was made.
    pub(crate) before: Option<Bytes>,
    line: OnceLock<Bytes>,
}

impl Event {
    fn new(event: gantry_store::Event, keys: &Keys) -> Result<Self> {
        let open = |kv: gantry_store::KeyValue| {
            keys.open_value(&kv.key, kv.value)
                .map_err(|e| Status::internal(e.chain()))
        };
        let revision = event.revision();
        let key = event.key().clone();
        let (now, before) = match event {
            gantry_store::Event::Put { kv, prev } => {
                let made = kv.version == 1;
                let before = prev.filter(|_| !made).map(open).transpose()?;
                (Some(open(kv)?), before)
            }
            gantry_store::Event::Delete { prev, .. } => (None, prev.map(open).transpose()?),
        };
        Ok(Self {
            revision,
            key,
            now,
            before,
            line: OnceLock::new(),
        })
    }

    /// `ADDED`, `MODIFIED` or `DELETED` for somebody who sees every object.
    pub(crate) fn word(&self) -> &'static str {
        match (&self.now, &self.before) {
            (None, _) => "DELETED",
            (Some(_), None) => "ADDED",
            (Some(_), Some(_)) => "MODIFIED",
        }
    }

    /// The object that a watcher is shown: as it is, or as it was when it is gone.
    pub(crate) fn shown(&self) -> Option<&Bytes> {
        self.now.as_ref().or(self.before.as_ref())
    }

    /// The line that a watcher of the kept version who sees every object reads. Made by the first who asks.
    pub(crate) fn line(&self) -> Result<Bytes> {
        if let Some(line) = self.line.get() {
            return Ok(line.clone());
        }
        let line = match self.shown() {
            Some(kept) => line(self.word(), kept, self.revision)?,
            None => Bytes::new(),
        };
        Ok(self.line.get_or_init(|| line).clone())
    }

    fn bytes(&self) -> usize {
        let of = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        256 + self.key.len() + of(&self.now) * 2 + of(&self.before)
    }
}

/// One event as a line of JSON.
pub(crate) fn line(word: &str, kept: &[u8], revision: u64) -> Result<Bytes> {
    let mut out = Vec::with_capacity(kept.len() + 96);
    out.extend(b"{\"type\":\"");
    out.extend(word.as_bytes());
    out.extend(b"\",\"object\":");
    object::write_whole(&mut out, kept, revision)?;
    out.extend(b"}\n");
    Ok(out.into())
}

#[derive(Debug)]
struct Ring {
    state: Mutex<RingState>,
    /// The revision up to which the ring is complete; watchers sleep on it.
    reached: watch::Sender<u64>,
}

#[derive(Debug)]
struct RingState {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything after this revision is in `events`.
    from: u64,
}

pub(crate) struct Hub {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    rings: Mutex<HashMap<String, Arc<Ring>>>,
    /// Every ring is complete up to here.
    reached: AtomicU64,
    watchers: AtomicUsize,
}

/// The part of a key that names its kind: `/registry/core/pods/`.
fn prefix_of(key: &[u8]) -> Option<&str> {
    let key = std::str::from_utf8(key).ok()?;
    let mut slashes = key.match_indices('/').skip(3);
    slashes.next().map(|(at, _)| &key[..=at])
}

impl Hub {
    pub(crate) fn new(store: Arc<dyn Store>, keys: Arc<Keys>) -> Self {
        Self {
            store,
            keys,
            rings: Mutex::default(),
            reached: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
        }
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<String, Arc<Ring>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch itself; to be called once before anybody subscribes.
    pub(crate) async fn start(&self) -> Result<Box<dyn Watcher>> {
        let from = self.store.revision().await? + 1;
        self.reached.store(from - 1, Ordering::Release);
        self.open(from).await
    }

    async fn open(&self, from: u64) -> Result<Box<dyn Watcher>> {
        let span = gantry_store::Span::prefix(REGISTRY);
        let watch = Watch {
            span,
            from,
            prev: true,
        };
        Ok(self.store.watch(watch).await?)
    }

    /// Feeds the rings until the task is dropped.
    pub(crate) async fn run(&self, mut watcher: Box<dyn Watcher>, rights_changed: impl Fn()) {
        loop {
            match watcher.next().await {
                Ok(batch) => {
                    let rights = rbac::PREFIX.as_bytes();
                    if batch.events.iter().any(|e| e.key().starts_with(rights)) {
                        rights_changed();
                    }
                    self.take(batch);
                }
                Err(Error::Compacted { .. }) => {
                    tracing::warn!(
                        "the watch of the store fell behind what it keeps; watchers catch up by themselves"
                    );
                    match self.restart().await {
                        Ok(new) => watcher = new,
                        Err(error) => {
                            tracing::warn!("watching the store: {}", error.message);
                            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!("watching the store: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// Starts over from now: what the rings hold has a gap after it.
    async fn restart(&self) -> Result<Box<dyn Watcher>> {
        let revision = self.store.revision().await?;
        let watcher = self.open(revision + 1).await?;
        for ring in self.rings().values() {
            let mut state = ring.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.events.clear();
            state.bytes = 0;
            state.from = revision;
            drop(state);
            ring.reached.send_replace(revision);
        }
        self.reached.store(revision, Ordering::Release);
        Ok(watcher)
    }

    fn take(&self, batch: gantry_store::Batch) {
        let mut rings = self.rings();
        for event in batch.events {
            let Some(prefix) = prefix_of(event.key()) else {
                continue;
            };
            let Some(ring) = rings.get(prefix) else {
                continue;
            };
            if ring.reached.receiver_count() == 0 {
                // Nobody watches any more: from now on the store's log is enough.
                let prefix = prefix.to_owned();
                rings.remove(&prefix);
                continue;
            }
            let revision = event.revision();
            let event = Event::new(event, &self.keys);
            let mut state = ring.state.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) => {
                    state.bytes += event.bytes();
                    state.events.push_back(Arc::new(event));
                }
                Err(error) => {
                    tracing::error!("an event cannot be read: {}", error.message);
                    // Watchers that come by read it from the store themselves and are told.
                    state.events.clear();
                    state.bytes = 0;
                    state.from = revision;
                }
            }
            while state.events.len() > RING_EVENTS || state.bytes > RING_BYTES {
                let Some(gone) = state.events.pop_front() else {
                    break;
                };
                state.bytes -= gone.bytes();
                state.from = gone.revision;
            }
            drop(state);
            ring.reached.send_replace(revision);
        }
        self.reached.store(batch.revision, Ordering::Release);
    }

    /// A watcher of `prefix` that sees everything after `revision`.
    pub(crate) fn subscribe(self: &Arc<Self>, prefix: &str, revision: u64) -> Result<Cursor> {
        let mut rings = self.rings();
        let ring = rings.entry(prefix.to_owned()).or_insert_with(|| {
            // Under the lock that `take` holds: nothing of this kind is passed by between here and the next batch.
            let reached = self.reached.load(Ordering::Acquire);
            let (sender, _) = watch::channel(reached);
            Arc::new(Ring {
                state: Mutex::new(RingState {
                    events: VecDeque::new(),
                    bytes: 0,
                    from: reached,
                }),
                reached: sender,
            })
        });
        let wake = ring.reached.subscribe();
        let ring = ring.clone();
        drop(rings);
        if self.watchers.fetch_add(1, Ordering::Relaxed) >= WATCHERS_LIMIT {
            self.watchers.fetch_sub(1, Ordering::Relaxed);
            return Err(Status::too_many(
                "too many watches are open on this server, please try again later",
                None,
            ));
        }
        Ok(Cursor {
            hub: self.clone(),
            prefix: prefix.to_owned(),
            ring,
            wake,
            position: revision,
            own: None,
        })
    }

    /// The newest revision that every watcher has been, or can be, told of.
    pub(crate) fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }
}

/// Where one watcher is.
pub(crate) struct Cursor {
    hub: Arc<Hub>,
    prefix: String,
    ring: Arc<Ring>,
    wake: watch::Receiver<u64>,
    /// Everything up to here was delivered.
    position: u64,
    /// The store's own watch, while the ring does not reach back to `position`.
    own: Option<Box<dyn Watcher>>,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.hub.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cursor {
    /// The next events, at least one, each revision whole. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Event>>> {
        loop {
            // Before the look: what comes between the two wakes us.
            self.wake.borrow_and_update();
            let (from, found) = {
                let state = self
                    .ring
                    .state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let at = state
                    .events
                    .partition_point(|event| event.revision <= self.position);
                (
                    state.from,
                    state.events.range(at..).cloned().collect::<Vec<_>>(),
                )
            };
            if self.position >= from {
                self.own = None;
                if let Some(last) = found.last() {
                    self.position = last.revision;
                    return Ok(found);
                }
                if self.wake.changed().await.is_err() {
                    return Err(Status::unavailable("the server is shutting down", 1));
                }
                continue;
            }
            return self.catch_up().await;
        }
    }

    async fn catch_up(&mut self) -> Result<Vec<Arc<Event>>> {
        if self.own.is_none() {
            let watch = Watch {
                span: gantry_store::Span::prefix(self.prefix.clone()),
                from: self.position + 1,
                prev: true,
            };
            self.own = Some(self.hub.store.watch(watch).await?);
        }
        let own = self.own.as_mut().expect("made just now");
        let batch = own.next().await?;
        self.position = batch.revision.max(self.position);
        batch
            .events
            .into_iter()
            .map(|event| Event::new(event, &self.hub.keys).map(Arc::new))
            .collect()
    }

    /// A revision such that nothing up to it will come any more: what a bookmark says.
    pub(crate) fn bookmark(&self) -> u64 {
        if self.own.is_some() {
            return self.position;
        }
        // `reached` is read first: events that come in between are after it.
        let reached = self.hub.reached();
        let state = self
            .ring
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waiting = state
            .events
            .back()
            .is_some_and(|event| event.revision > self.position);
        if waiting || self.position < state.from {
            self.position
        } else {
            reached.max(self.position)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_store::embedded::Embedded;
    use gantry_store::{Op, Txn};

    #[test]
    fn a_key_names_its_kind() {
        let of = |key: &'static str| prefix_of(key.as_bytes());
        assert_eq!(of("/registry/core/pods/ns/a"), Some("/registry/core/pods/"));
        assert_eq!(of("/registry/core/nodes/a"), Some("/registry/core/nodes/"));
        assert_eq!(of("/registry/x"), None);
    }

    async fn put(store: &Embedded, name: &str) -> u64 {
        let value = format!(
            "{{\"kind\":\"K\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"{name}\"}}}}"
        );
        let key = format!("/registry/core/k/{name}");
        store.txn(Txn::put(key, value)).await.unwrap().revision
    }

    /// What a watcher from `revision` on is told until it has seen `count` events.
    async fn told(hub: &Arc<Hub>, revision: u64, count: usize) -> Vec<String> {
        let mut cursor = hub.subscribe("/registry/core/k/", revision).unwrap();
        let mut seen = Vec::new();
        while seen.len() < count {
            for event in cursor.next().await.unwrap() {
                let name = String::from_utf8_lossy(&event.key[17..]).into_owned();
                seen.push(format!("{} {name}", event.word()));
            }
        }
        seen
    }

    #[tokio::test]
    async fn watchers_miss_nothing_whether_the_ring_or_the_store_tells() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let keys = Arc::new(Keys::open(&store, &dir.path().join("keys")).await.unwrap());
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let hub = Arc::new(Hub::new(shared, keys));
        let before = put(&store, "early").await;
        let watcher = hub.start().await.unwrap();
        let feeding = tokio::spawn({
            let hub = hub.clone();
            async move { hub.run(watcher, || {}).await }
        });
        let mut live = hub.subscribe("/registry/core/k/", hub.reached()).unwrap();
        let late = put(&store, "a").await;
        put(&store, "a").await;
        store
            .txn(Txn {
                then: vec![Op::delete("/registry/core/k/a")],
                ..Txn::default()
            })
            .await
            .unwrap();
        let mut words = Vec::new();
        while words.len() < 3 {
            words.extend(live.next().await.unwrap().iter().map(|e| e.word()));
        }
        assert_eq!(words, ["ADDED", "MODIFIED", "DELETED"]);
        let all = ["ADDED early", "ADDED a", "MODIFIED a", "DELETED a"];
        assert_eq!(told(&hub, before - 1, 4).await, all, "before the ring");
        assert_eq!(told(&hub, before, 3).await, all[1..]);
        assert_eq!(told(&hub, late, 2).await, all[2..], "within the ring");
        feeding.abort();
    }
}
