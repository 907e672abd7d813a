//! The node database: string keys to JSON documents in named tables, one writer thread with group commit.
//!
//! ```text
//! D/node.redb
//!   meta/schema             -> u32            version of this layout; a newer one is refused
//!   containers/<id>         -> engine::container::Record
//!   networks/<id>           -> network::Record           (network crate)
//!   leases/<network>/<ip>   -> network::Lease
//!   volumes/<name>          -> engine::volumes::Record
//!   images/<digest>         -> image::Record             (image crate)
//!   tags/<reference>        -> digest
//!   layers/<chain id>       -> image::Layer
//! ```
//! A table here is a prefix of the key in one redb table, so that one transaction can span tables of several crates.
//!
//! Invariants
//! * [`Db::commit`] answers after the batch is on disk (`fdatasync`); batches that wait together share one sync.
//! * Batches take effect in the order of their `commit` calls; a batch is whole or absent.
//! * A failed write (full disk) fails its batch and nothing else: redb refuses all work after an I/O error, so the file is
//!   closed and opened again, which finds the last durable state.
//! * On a full disk one may still remove what fills it: `node.reserve` beside the database keeps room, which is given up for a batch
//!   that removes something and found no room, and taken again later.

use crate::{Error, Result, ResultExt};
use redb::{ReadableDatabase, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new("node");
const SCHEMA: u32 = 1;
/// Batches that one sync may carry at most.
const GROUP_LIMIT: usize = 256;

/// Bytes that are kept for the time when the disk is full: thousands of records.
const RESERVE: usize = 4 << 20;
/// How often to try to have the reserve again.
const RESERVE_EVERY: Duration = Duration::from_secs(10);

/// Room on the disk in the shape of a file of zeros.
struct Reserve {
    path: PathBuf,
    /// When it was given up, or could not be made.
    missing_since: Option<Instant>,
}

impl Reserve {
    fn new(database: &Path) -> Self {
        let mut reserve = Self {
            path: database.with_extension("reserve"),
            missing_since: None,
        };
        reserve.make();
        reserve
    }

    fn make(&mut self) {
        let is_there = std::fs::metadata(&self.path).is_ok_and(|meta| meta.len() == RESERVE as u64);
        if !is_there && std::fs::write(&self.path, vec![0; RESERVE]).is_err() {
            // Half of it would only make the disk fuller.
            let _ = std::fs::remove_file(&self.path);
            self.missing_since = Some(Instant::now());
            return;
        }
        self.missing_since = None;
    }

    /// Whether there is room now that was not there before.
    fn spend(&mut self) -> bool {
        let spent = self.missing_since.is_none() && std::fs::remove_file(&self.path).is_ok();
        self.missing_since = Some(Instant::now());
        spent
    }

    fn restore(&mut self) {
        if (self.missing_since).is_some_and(|since| since.elapsed() >= RESERVE_EVERY) {
            self.make();
        }
    }
}

/// One write of a batch.
#[derive(Debug)]
enum Write {
    Put(String, Vec<u8>),
    Delete(String),
}

/// Writes that take effect together or not at all.
#[derive(Debug, Default)]
pub struct Batch(Vec<Write>);

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }
    /// Stores `value` under `table/key`.
    #[must_use]
    pub fn put<T: Serialize>(mut self, table: &str, key: &str, value: &T) -> Self {
        let bytes = serde_json::to_vec(value).expect("our own records serialise");
        self.0.push(Write::Put(format!("{table}/{key}"), bytes));
        self
    }
    /// Whether it takes something away: what a full disk must not keep from happening.
    fn frees(&self) -> bool {
        self.0.iter().any(|write| matches!(write, Write::Delete(_)))
    }
    /// Removes `table/key`; absent is fine.
    #[must_use]
    pub fn delete(mut self, table: &str, key: &str) -> Self {
        self.0.push(Write::Delete(format!("{table}/{key}")));
        self
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type Job = (Batch, oneshot::Sender<Result<()>>);

/// A handle on the node database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    file: Arc<File>,
    jobs: mpsc::Sender<Job>,
}

/// The open database, or `None` after a failed write until it could be opened again.
struct File {
    path: PathBuf,
    database: RwLock<Option<redb::Database>>,
}

impl File {
    fn open(path: &Path) -> Result<redb::Database> {
        redb::Builder::new().set_cache_size(4 << 20).create(path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::conflict(format!(
                "{} is in use by another gantry; stop it with `gantry down` or choose another --data-dir",
                path.display()
            )),
            e => Error::internal(format!("opening the node database {}", path.display())).with_source(e),
        })
    }

    fn with<T>(&self, act: impl FnOnce(&redb::Database) -> Result<T>) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = database.as_ref() {
            return act(database);
        }
        drop(database);
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(Self::open(&self.path)?);
        }
        act(database.as_ref().expect("opened just above"))
    }

    /// After a failed write: back to what is durable.
    fn reopen(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file's lock is held by whoever has it open.
        *database = None;
        *database = Self::open(&self.path).ok();
    }
}

impl Db {
    /// Opens or creates the database. `Conflict` when another process has it open, `Internal` when it was written by a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        let database = File::open(path)?;
        // The first transaction makes the table, so that reads never meet a missing one.
        let write = database
            .begin_write()
            .context(|| "starting the first transaction".into())?;
        write
            .open_table(TABLE)
            .context(|| "creating the node table".into())?;
        write
            .commit()
            .context(|| "committing the node table".into())?;
        let file = Arc::new(File {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
        });
        let (jobs, queue) = mpsc::channel::<Job>();
        let db = Self {
            file: file.clone(),
            jobs,
        };
        match db.get::<u32>("meta", "schema")? {
            Some(version) if version > SCHEMA => {
                return Err(Error::internal(format!(
                    "{} has schema {version}, this gantry knows {SCHEMA}; run the newer gantry",
                    path.display()
                )));
            }
            Some(_) => {}
            None => {
                let batch = Batch::new().put("meta", "schema", &SCHEMA);
                file.with(|database| apply(database, &[&batch]))?;
            }
        }
        std::thread::Builder::new()
            .name("db".into())
            .spawn(move || writer(&file, &queue))
            .context(|| "starting the database thread".into())?;
        Ok(db)
    }

    /// Makes the batch durable. Dropping the future does not cancel the write.
    pub async fn commit(&self, batch: Batch) -> Result<()> {
        self.submit(batch).await
    }

    /// Puts the batch in line at once; the future, which may be dropped, tells when it is durable. For writes that are to
    /// overlap with other work.
    pub fn submit(&self, batch: Batch) -> impl Future<Output = Result<()>> + Send + use<> {
        let ended = || Error::internal("the database thread has ended");
        let (done, answer) = oneshot::channel();
        let sent = if batch.is_empty() {
            done.send(Ok(())).map_err(|_| ended())
        } else {
            self.jobs.send((batch, done)).map_err(|_| ended())
        };
        async move {
            sent?;
            answer.await.map_err(|_| ended())?
        }
    }

    /// The same for callers outside of the async runtime.
    pub fn commit_blocking(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        self.jobs
            .send((batch, done))
            .map_err(|_| Error::internal("the database thread has ended"))?;
        answer
            .blocking_recv()
            .map_err(|_| Error::internal("the database thread has ended"))?
    }

    pub fn get<T: DeserializeOwned>(&self, table: &str, key: &str) -> Result<Option<T>> {
        let key = format!("{table}/{key}");
        self.file.with(|database| {
            let node = table_of(database)?;
            let Some(value) = node
                .get(key.as_str())
                .context(|| format!("reading {key}"))?
            else {
                return Ok(None);
            };
            serde_json::from_slice(value.value())
                .context(|| format!("decoding {key}"))
                .map(Some)
        })
    }

    /// Every entry of a table in key order, keys without the table's name. Each crate bounds what it puts in.
    pub fn scan<T: DeserializeOwned>(&self, table: &str) -> Result<Vec<(String, T)>> {
        let (from, to) = (format!("{table}/"), format!("{table}0")); // '0' follows '/'
        self.file.with(|database| {
            let mut entries = Vec::new();
            for entry in table_of(database)?
                .range(from.as_str()..to.as_str())
                .context(|| format!("scanning {table}"))?
            {
                let (key, value) = entry.context(|| format!("scanning {table}"))?;
                let key = key.value()[from.len()..].to_owned();
                let value = serde_json::from_slice(value.value())
                    .context(|| format!("decoding {table}/{key}"))?;
                entries.push((key, value));
            }
            Ok(entries)
        })
    }
}

fn table_of(database: &redb::Database) -> Result<redb::ReadOnlyTable<&'static str, &'static [u8]>> {
    database
        .begin_read()
        .context(|| "reading the node database".into())?
        .open_table(TABLE)
        .context(|| "reading the node database".into())
}

fn writer(file: &File, queue: &mpsc::Receiver<Job>) {
    let mut reserve = Reserve::new(&file.path);
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_LIMIT {
            match queue.try_recv() {
                Ok(job) => group.push(job),
                Err(_) => break,
            }
        }
        let batches: Vec<&Batch> = group.iter().map(|(batch, _)| batch).collect();
        let result = file.with(|database| apply(database, &batches));
        let mut freed = false;
        if let Err(error) = &result {
            let freeing: Vec<&Batch> = batches.iter().copied().filter(|b| b.frees()).collect();
            let full = error.chain().contains(NO_SPACE);
            let retry = full && !freeing.is_empty() && reserve.spend();
            file.reopen();
            if retry {
                freed = file.with(|database| apply(database, &freeing)).is_ok();
                if !freed {
                    file.reopen();
                }
            }
        } else {
            reserve.restore();
        }
        for (batch, done) in group {
            let answer = match &result {
                Err(e) if !(freed && batch.frees()) => Err(Error::internal(e.chain())),
                _ => Ok(()),
            };
            let _ = done.send(answer);
        }
    }
}

/// The kernel's words for ENOSPC; redb hands its errors on as text and source.
const NO_SPACE: &str = "No space left on device";

fn apply(database: &redb::Database, batches: &[&Batch]) -> Result<()> {
    let write = database
        .begin_write()
        .context(|| "starting a transaction".into())?;
    {
        let mut node = write
            .open_table(TABLE)
            .context(|| "opening the node table".into())?;
        for change in batches.iter().flat_map(|b| &b.0) {
            match change {
                Write::Put(key, value) => {
                    node.insert(key.as_str(), value.as_slice())
                        .context(|| format!("writing {key}"))?;
                }
                Write::Delete(key) => {
                    node.remove(key.as_str())
                        .context(|| format!("removing {key}"))?;
                }
            }
        }
    }
    write
        .commit()
        .context(|| "committing to the node database".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_do_not_see_each_other() {
        let dir = std::env::temp_dir().join(format!("gantry-db-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let db = Db::open(&dir.join("node.redb")).unwrap();
        db.commit_blocking(
            Batch::new()
                .put("a", "1", &"x")
                .put("ab", "1", &"y")
                .put("a", "2", &"z"),
        )
        .unwrap();
        let a: Vec<(String, String)> = db.scan("a").unwrap();
        assert_eq!(a, [("1".into(), "x".into()), ("2".into(), "z".into())]);
        db.commit_blocking(Batch::new().delete("a", "1")).unwrap();
        assert_eq!(db.get::<String>("a", "1").unwrap(), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
