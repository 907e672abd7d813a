//! The versioned store: keys with revisions, compare-and-swap transactions, watches without gaps, leases, compaction.
//!
//! ```text
//! API server ──trait Store──┬── embedded: one directory, one writer thread, group commit      (default, one server)
//!                           └── etcd:     an etcd v3 cluster over gRPC, TLS, authentication   (any number of servers)
//! ```
//! Start with [`Store`]; both implementations pass one suite (`tests/suite`). [`embedded`] says what is on disk and what a crash
//! leaves; [`check`] finds, names and repairs damage.
//!
//! Not here: documents (a value is bytes), watch caches and bookmarks (the API server), encryption of Secrets, consensus.
//!
//! Invariants
//! * Every transaction that writes takes the next revision; revisions never go back and are never given twice.
//! * An answered write is on disk (`fdatasync`); nothing is visible to a reader before it is.
//! * A watch delivers every change from its start on, in order, each revision whole and once, or ends with
//!   [`Error::Compacted`], which names the first revision that can still be watched. A watcher pulls, so a slow one holds no memory.
//! * Bytes whose checksum is wrong are never served: the read fails with [`Error::Damaged`], which names file and offset.
//!
//! Semantics follow etcd v3 (first write is revision 2, a deletion is a revision, compaction keeps the newest state).

#![forbid(unsafe_code)]

pub mod check;
pub mod embedded;
pub mod etcd;
mod frame;

pub use bytes::Bytes;
use gantry_base::ErrorKind;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// Bytes that one transaction may carry, keys and values together; etcd's default limit of a request.
pub const TXN_LIMIT_BYTES: usize = 1_572_864;
/// Operations that one transaction may carry; etcd's default.
pub const TXN_LIMIT_OPS: usize = 128;
/// Bytes that a key may have.
pub const KEY_LIMIT_BYTES: usize = 8 << 10;
/// Changes that one [`Watcher::next`] hands out at most, unless a single revision has more.
pub const WATCH_BATCH: usize = 1000;

pub type Result<T, E = Error> = std::result::Result<T, E>;
/// What the methods of [`Store`] return: a future that may be sent to another thread.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What can go wrong. [`Error::kind`] gives the closed set that faces turn into a status.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The revision asked for is gone. A watcher or a paged list starts again from the current state.
    #[error("required revision {requested} has been compacted, the first one kept is {oldest}")]
    Compacted { requested: u64, oldest: u64 },
    #[error("required revision {requested} is a future revision, the current one is {current}")]
    Future { requested: u64, current: u64 },
    #[error("requested lease {0} not found")]
    NoLease(i64),
    /// The caller asked for something that no store does.
    #[error("{0}")]
    Invalid(String),
    /// No answer was to be had; a write may or may not have happened. Try again after a moment (503 with Retry-After).
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The disk takes no more. Reads go on; writes succeed again once there is room (503 with Retry-After).
    #[error("the store's disk refuses writes, reads go on: {0}")]
    Full(String),
    /// Bytes on disk are not what was written. They are never served.
    #[error("{} is damaged at offset {offset}: {what}; run `gantry store check`, then `gantry store repair`", file.display())]
    Damaged {
        file: PathBuf,
        offset: u64,
        what: String,
    },
    /// Another process has the directory open.
    #[error("{} is in use by another gantry; stop it with `gantry down` or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Compacted { .. } | Self::InUse(_) => ErrorKind::Conflict,
            Self::Future { .. } | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::NoLease(_) => ErrorKind::NotFound,
            Self::Unavailable(_) | Self::Full(_) => ErrorKind::Unavailable,
            Self::Unauthorized(_) => ErrorKind::Unauthorized,
            Self::Damaged { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// How long a client should wait before it tries again, where that helps. A face sends it as `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(_) => Some(Duration::from_secs(1)),
            Self::Full(_) => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// One key as it was at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// Revision of the write that made the key.
    pub create_revision: u64,
    /// Revision of this write.
    pub mod_revision: u64,
    /// 1 for the write that made the key, one more for each write since.
    pub version: u64,
    /// The lease that removes the key when it ends; 0 for none.
    pub lease: i64,
}

/// Keys from `start` (with it) to `end` (without it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub start: Bytes,
    /// `None`: only the key `start`. Empty: no upper end.
    pub end: Option<Bytes>,
}

impl Span {
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self {
            start: key.into(),
            end: None,
        }
    }
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: Some(end.into()),
        }
    }
    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        // The first key after all that begin with the prefix: the last byte that can grow, grown.
        while end.pop_if(|byte| *byte == u8::MAX).is_some() {}
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self {
            start,
            end: Some(end.into()),
        }
    }
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            None => key == self.start,
            Some(end) => key >= &self.start[..] && (end.is_empty() || key < &end[..]),
        }
    }
}

/// What a range asks for. `Range::of(span)` is everything now.
#[derive(Debug, Clone)]
pub struct Range {
    pub span: Span,
    /// 0: the current one. A later page names the revision of the first one and starts just after its last key.
    pub revision: u64,
    /// 0: no limit.
    pub limit: usize,
    pub keys_only: bool,
    /// Whether [`Ranged::count`] is wanted; it walks the whole span.
    pub count: bool,
}

impl Range {
    pub fn of(span: Span) -> Self {
        Self {
            span,
            revision: 0,
            limit: 0,
            keys_only: false,
            count: false,
        }
    }
    #[must_use]
    pub fn at(mut self, revision: u64) -> Self {
        self.revision = revision;
        self
    }
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// The answer to a [`Range`], in key order.
#[derive(Debug, Clone, Default)]
pub struct Ranged {
    pub kvs: Vec<KeyValue>,
    /// There are more keys in the span than the limit let through.
    pub more: bool,
    /// Keys in the whole span; `Some` if asked for.
    pub count: Option<u64>,
    /// The revision of the store that the answer shows (the one asked for, or the current one).
    pub revision: u64,
}

/// A condition of a transaction. An absent key has 0 everywhere.
#[derive(Debug, Clone)]
pub struct Compare {
    pub key: Bytes,
    pub is: Is,
}

#[derive(Debug, Clone, Copy)]
pub enum Is {
    ModRevision(u64),
    CreateRevision(u64),
    Version(u64),
}

impl Compare {
    pub fn mod_revision(key: impl Into<Bytes>, revision: u64) -> Self {
        Self {
            key: key.into(),
            is: Is::ModRevision(revision),
        }
    }
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::mod_revision(key, 0)
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    Get {
        key: Bytes,
    },
    Put {
        key: Bytes,
        value: Bytes,
        /// 0: none.
        lease: i64,
    },
    Delete {
        key: Bytes,
    },
}

impl Op {
    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Get { key: key.into() }
    }
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
        }
    }
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into() }
    }
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// If every comparison holds, `then`; if not, `or_else`. Whole or not at all, and in one revision.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
    pub or_else: Vec<Op>,
}

impl Txn {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            then: vec![Op::put(key, value)],
            ..Self::default()
        }
    }
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self {
            then: vec![Op::delete(key)],
            ..Self::default()
        }
    }
    /// Replaces `key` if it is still as of `revision` (0: absent); if not, tells what is there.
    pub fn swap(key: impl Into<Bytes>, revision: u64, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self {
            when: vec![Compare::mod_revision(key.clone(), revision)],
            then: vec![Op::put(key.clone(), value)],
            or_else: vec![Op::get(key)],
        }
    }
    /// Removes `key` if it is still as of `revision`; if not, tells what is there.
    pub fn remove(key: impl Into<Bytes>, revision: u64) -> Self {
        let key = key.into();
        Self {
            when: vec![Compare::mod_revision(key.clone(), revision)],
            then: vec![Op::delete(key.clone())],
            or_else: vec![Op::get(key)],
        }
    }

    /// What every implementation refuses before it looks at a key.
    fn validate(&self) -> Result<()> {
        let mut bytes = 0;
        for ops in [&self.then, &self.or_else] {
            if ops.len() > TXN_LIMIT_OPS {
                return Err(Error::Invalid(
                    "too many operations in txn request".to_owned(),
                ));
            }
            let mut written = std::collections::BTreeSet::new();
            for op in ops {
                bytes += op.key().len();
                match op {
                    Op::Put { value, .. } => bytes += value.len(),
                    Op::Get { .. } => continue,
                    Op::Delete { .. } => {}
                }
                if !written.insert(op.key()) {
                    return Err(Error::Invalid(
                        "duplicate key given in txn request".to_owned(),
                    ));
                }
            }
        }
        if bytes > TXN_LIMIT_BYTES {
            return Err(Error::Invalid("request is too large".to_owned()));
        }
        let keys = self
            .when
            .iter()
            .map(|c| &c.key)
            .chain(self.then.iter().chain(&self.or_else).map(Op::key));
        for key in keys {
            if key.is_empty() {
                return Err(Error::Invalid("key is not provided".to_owned()));
            }
            if key.len() > KEY_LIMIT_BYTES {
                return Err(Error::Invalid("key is too long".to_owned()));
            }
        }
        if self.when.len() > TXN_LIMIT_OPS {
            return Err(Error::Invalid(
                "too many operations in txn request".to_owned(),
            ));
        }
        Ok(())
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txned {
    /// Whether `then` was taken.
    pub succeeded: bool,
    /// The store's revision after it; the `mod_revision` of what it wrote.
    pub revision: u64,
    /// One for each operation of the branch taken.
    pub results: Vec<Done>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Got(Option<KeyValue>),
    Put,
    /// Whether there was something to delete.
    Deleted(bool),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put {
        kv: KeyValue,
        /// What it replaced, if asked for and not compacted away.
        prev: Option<KeyValue>,
    },
    Delete {
        key: Bytes,
        revision: u64,
        prev: Option<KeyValue>,
    },
}

impl Event {
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// What a watch asks for.
#[derive(Debug, Clone)]
pub struct Watch {
    pub span: Span,
    /// The first revision wanted; 0: what comes after this call. A list at revision r is followed by a watch from r + 1.
    pub from: u64,
    /// Whether events carry what was there before.
    pub prev: bool,
}

/// Events in order, at least one, each revision whole. Everything up to `revision` has been delivered.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub events: Vec<Event>,
    pub revision: u64,
}

/// A running watch. Dropping it ends it.
pub trait Watcher: Send {
    /// Waits for the next events. Safe to drop and call again: nothing is lost or repeated.
    ///
    /// [`Error::Compacted`]: the watcher was too slow or started too early; list again. [`Error::Unavailable`]: call again,
    /// the watch goes on where it was.
    fn next(&mut self) -> Answer<'_, Batch>;
    /// The revision that a new watch would have to start from to go on where this one is.
    fn resume_from(&self) -> u64;
}

/// The one interface of cluster state.
pub trait Store: Send + Sync {
    /// Linearizable: shows every write that was answered before the call.
    fn range(&self, range: Range) -> Answer<'_, Ranged>;
    /// Dropping the future does not cancel the transaction.
    fn txn(&self, txn: Txn) -> Answer<'_, Txned>;
    fn watch(&self, watch: Watch) -> Answer<'_, Box<dyn Watcher>>;
    /// The current revision.
    fn revision(&self) -> Answer<'_, u64>;
    /// Forgets what is older than `revision`, except what is still current at it.
    fn compact(&self, revision: u64) -> Answer<'_, ()>;
    /// A lease of at least `ttl` (whole seconds, at least one). Its keys go when it ends.
    fn grant(&self, ttl: Duration) -> Answer<'_, i64>;
    /// Starts the lease's time again.
    fn keep_alive(&self, lease: i64) -> Answer<'_, ()>;
    /// Ends the lease now and removes its keys, in one revision.
    fn revoke(&self, lease: i64) -> Answer<'_, ()>;

    /// One key now.
    fn get(&self, key: Bytes) -> Answer<'_, Option<KeyValue>> {
        Box::pin(async move { Ok(self.range(Range::of(Span::key(key))).await?.kvs.pop()) })
    }
}
