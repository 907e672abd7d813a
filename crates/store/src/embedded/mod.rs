//! The store in one directory: an append-only log with one writer, and an index of where things are in memory.
//!
//! ```text
//! D/store/
//!   lock                 held while open: one process a directory
//!   base-<id>            every kept state up to a rotation, in key order; replaces all files with an id up to its own
//!   log-<id>             groups of transactions in revision order; the highest id is written to
//!   base-<id>.tmp        a base that was being written when somebody died: removed at the next opening
//! ```
//! The index holds, for each key, its revisions and where each lies; values stay on disk (the page cache) and are checked
//! against their checksum each time they are read. So memory grows with the number of keys, not with their size.
//!
//! One thread writes: it takes every transaction that waits, decides each in order, appends all of them with one write and one
//! `fdatasync`, makes them visible, answers. What a crash leaves after the last synced group is cut off at the next opening.
//! Whether wrong bytes are such a rest or damage is decided by the marks at the head of each group, which say up to where the
//! file had been synced; one is also written when the writer is idle.
//!
//! When dead bytes outweigh the living, a second thread writes a new base beside the running log and drops the old files.

mod index;
mod recover;
mod rewrite;
mod writer;

use crate::{
    Answer, Batch, Error, Range, Ranged, Result, Store, Txn, Txned, WATCH_BATCH, Watch, Watcher,
};
use index::{Index, Place};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use writer::Job;

pub use recover::Finding;
pub(crate) use recover::{Role, examine, io_error, names, path_of, read as contents, sync_dir};

/// More entries than this are read from disk on a thread that may block.
const INLINE_READS: usize = 32;
/// Bytes of values that one [`Watcher::next`] reads at most, unless a single revision has more.
const WATCH_BATCH_BYTES: u64 = 4 << 20;
/// Transactions that may wait for the writer; more wait before they are put in line.
const QUEUE: usize = 4096;

/// A handle on the embedded store. Cheap to clone; the last one closes it.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    jobs: Arc<Jobs>,
}

/// Ends the writer when the last handle goes, and waits for it, so that the directory is free afterwards.
struct Jobs {
    queue: mpsc::Sender<Job>,
    room: Arc<tokio::sync::Semaphore>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for Jobs {
    fn drop(&mut self) {
        let _ = self.queue.send(Job::Stop);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

/// What readers, watchers, the writer and the rewriter share.
pub(crate) struct Shared {
    dir: PathBuf,
    index: RwLock<Index>,
    /// The current revision; watchers sleep on it. Closed when the store is.
    revision: watch::Sender<u64>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens or makes the store in `dir`. [`Error::InUse`] when another process has it, [`Error::Damaged`] when something that
    /// had been synced is not what was written.
    pub fn open(dir: &Path) -> Result<Self> {
        let lock = lock(dir)?;
        let recovered = recover::open(dir)?;
        let (revision, _) = watch::channel(recovered.index.revision);
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            index: RwLock::new(recovered.index),
            revision,
        });
        let (queue, jobs) = mpsc::channel();
        let writer = writer::Writer::new(shared.clone(), recovered.log, jobs, queue.clone(), lock);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::Internal(format!("starting the store's thread: {e}")))?;
        Ok(Self {
            shared,
            jobs: Arc::new(Jobs {
                queue,
                room: Arc::new(tokio::sync::Semaphore::new(QUEUE)),
                writer: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Bytes of all files, and those of them that are still needed.
    pub fn disk_bytes(&self) -> (u64, u64) {
        let index = self.shared.read();
        (index.total_bytes(), index.live_bytes)
    }

    /// Writes a new base now and drops what it replaces, as happens by itself when dead bytes outweigh the living.
    pub async fn rewrite(&self) -> Result<()> {
        self.submit(Job::Rewrite).await
    }

    async fn submit<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let ended = || Error::Unavailable("the store is closed".to_owned());
        let _room = self.jobs.room.acquire().await.map_err(|_| ended())?;
        let (done, answer) = oneshot::channel();
        self.jobs.queue.send(job(done)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// The lock on the directory, which is made if need be.
pub(crate) fn lock(dir: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |e: std::io::Error| recover::io_error(&format!("opening {}", dir.display()), &e);
    if !dir.is_dir() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

impl Store for Embedded {
    fn range(&self, range: Range) -> Answer<'_, Ranged> {
        Box::pin(async move {
            let (mut ranged, places) = self.shared.read().select(&range)?;
            if range.keys_only {
                ranged.kvs = places.into_iter().map(Place::without_value).collect();
            } else if places.len() <= INLINE_READS {
                ranged.kvs = places.iter().map(Place::read).collect::<Result<_>>()?;
            } else {
                ranged.kvs = tokio::task::spawn_blocking(move || {
                    places.iter().map(Place::read).collect::<Result<Vec<_>>>()
                })
                .await
                .map_err(|e| Error::Internal(format!("reading the store: {e}")))??;
            }
            Ok(ranged)
        })
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Txned> {
        Box::pin(async move {
            txn.validate()?;
            self.submit(|done| Job::Txn(txn, done)).await
        })
    }

    fn watch(&self, watch: Watch) -> Answer<'_, Box<dyn Watcher>> {
        Box::pin(async move {
            let current = self.shared.revision.subscribe();
            let next = match watch.from {
                0 => *current.borrow() + 1,
                from => from,
            };
            let watcher = EmbeddedWatcher {
                shared: self.shared.clone(),
                _open: self.jobs.clone(),
                current,
                watch,
                next,
            };
            self.shared.read().check_watchable(next)?;
            Ok(Box::new(watcher) as Box<dyn Watcher>)
        })
    }

    fn revision(&self) -> Answer<'_, u64> {
        Box::pin(async move { Ok(self.shared.read().revision) })
    }

    fn compact(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(self.submit(move |done| Job::Compact(revision, done)))
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, i64> {
        Box::pin(self.submit(move |done| Job::Grant(ttl, done)))
    }

    fn keep_alive(&self, lease: i64) -> Answer<'_, ()> {
        Box::pin(async move { self.shared.write().keep_alive(lease) })
    }

    fn revoke(&self, lease: i64) -> Answer<'_, ()> {
        Box::pin(self.submit(move |done| Job::Revoke(lease, Some(done))))
    }
}

/// A cursor over the revisions. It keeps no events: each call reads what is new from the index and the files.
struct EmbeddedWatcher {
    shared: Arc<Shared>,
    /// The store stays open as long as somebody watches.
    _open: Arc<Jobs>,
    current: watch::Receiver<u64>,
    watch: Watch,
    /// The next revision to deliver.
    next: u64,
}

impl Watcher for EmbeddedWatcher {
    fn next(&mut self) -> Answer<'_, Batch> {
        Box::pin(async move {
            loop {
                let current = *self.current.borrow_and_update();
                while current >= self.next {
                    let (places, through) = self.shared.read().since(
                        &self.watch,
                        self.next,
                        WATCH_BATCH,
                        WATCH_BATCH_BYTES,
                    )?;
                    if places.is_empty() {
                        self.next = through + 1;
                        continue;
                    }
                    let read = move || {
                        places
                            .iter()
                            .map(index::Change::read)
                            .collect::<Result<Vec<_>>>()
                    };
                    let events = read()?;
                    self.next = through + 1;
                    return Ok(Batch {
                        events,
                        revision: through,
                    });
                }
                self.current
                    .changed()
                    .await
                    .map_err(|_| Error::Unavailable("the store is closed".to_owned()))?;
            }
        })
    }

    fn resume_from(&self) -> u64 {
        self.next
    }
}
