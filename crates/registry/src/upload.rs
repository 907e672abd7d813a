//! Uploads under way. distribution-spec: "Pushing blobs".
//!
//! An upload is one file whose length says how far it got, so any server can go on with it. Its name carries a hash of the
//! repository, so an id is of no use in another one. A lock on the file keeps two requests from writing at once. The digest so far
//! is kept in memory where the next piece is likely to arrive; a server that has not got it reads the file again.

use crate::error::{Error, Result};
use crate::name::{Algorithm, Digest, Hasher, Repository};
use crate::store::{Store, age, random_hex, read_through, touch};
use crate::sums::{PIECE, Summing, Sums};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Digests so far that are kept in memory.
const KEPT: usize = 256;
/// How long a request waits for another one on the same upload: a client whose connection broke comes back at once.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Written back to the disk each time so many bytes have come, so that the sync at the end finds little to do.
const WRITE_BACK: u64 = 8 << 20;

/// The name of an upload in a path: 32 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Id(String);

impl Id {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (text.len() == 32 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known of an upload's bytes up to `size`.
struct Progress {
    size: u64,
    hasher: Hasher,
    summing: Summing,
}

impl Progress {
    fn new() -> Self {
        Self {
            size: 0,
            hasher: Hasher::new(Algorithm::Sha256),
            summing: Summing::default(),
        }
    }
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.summing.update(bytes);
        self.size += bytes.len() as u64;
    }
}

/// Digests so far, by upload.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<Id, Progress>>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

impl Kept {
    fn take(&self, id: &Id) -> Option<Progress> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id)
    }
    fn put(&self, id: &Id, progress: Progress) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT
            && let Some(any) = kept.keys().next().cloned()
        {
            kept.remove(&any);
        }
        kept.insert(id.clone(), progress);
    }
}

/// Begins an upload; nothing needs to be synced: an upload that a power cut takes away is begun again.
pub(crate) fn begin(store: &Store, name: &Repository) -> Result<Id> {
    let id = Id(random_hex()?);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path_of(store, name, &id))?;
    Ok(id)
}

/// How many bytes have come.
pub(crate) fn size(store: &Store, name: &Repository, id: &Id) -> Result<u64> {
    Ok(std::fs::metadata(path_of(store, name, id))
        .map_err(unknown)?
        .len())
}

pub(crate) fn cancel(store: &Store, kept: &Kept, name: &Repository, id: &Id) -> Result<()> {
    kept.take(id);
    std::fs::remove_file(path_of(store, name, id)).map_err(unknown)
}

/// Removes uploads that nobody has written to for so long. Answers how many.
pub(crate) fn expire(store: &Store, older: Duration) -> io::Result<usize> {
    let mut count = 0;
    for folder in ["uploads", "tmp"] {
        let folder = store.root().join(folder);
        for name in crate::store::file_names(&folder)? {
            let path = folder.join(name);
            let Ok(file) = File::open(&path) else {
                continue;
            };
            // One that is being written to is locked, whatever its time says.
            if age(&file.metadata()?) >= older
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && std::fs::remove_file(&path).is_ok()
            {
                count += 1;
            }
        }
    }
    Ok(count)
}

fn path_of(store: &Store, name: &Repository, id: &Id) -> PathBuf {
    let repository = Digest::of(Algorithm::Sha256, name.as_str().as_bytes());
    store.root().join(format!(
        "uploads/{}-{}",
        id.as_str(),
        &repository.hex()[..16]
    ))
}

fn unknown(e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::NotFound {
        Error::upload_unknown()
    } else {
        e.into()
    }
}

/// An upload that this request alone may write to. Every call blocks.
pub(crate) struct Upload {
    store: Arc<Store>,
    kept: Arc<Kept>,
    name: Repository,
    id: Id,
    path: PathBuf,
    file: File,
    size: u64,
    written_back: u64,
    progress: Option<Progress>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upload({}, {} bytes)", self.id.0, self.size)
    }
}

impl Upload {
    pub(crate) fn open(
        store: &Arc<Store>,
        kept: &Arc<Kept>,
        name: &Repository,
        id: &Id,
    ) -> Result<Self> {
        let path = path_of(store, name, id);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(unknown)?;
        lock(&file)?;
        // Finished or cancelled while this request waited.
        if !is_still(&path, &file) {
            return Err(Error::upload_unknown());
        }
        let size = file.seek(io::SeekFrom::End(0))?;
        let progress = kept
            .take(id)
            .filter(|progress| progress.size == size)
            .or_else(|| (size == 0).then(Progress::new));
        Ok(Self {
            store: Arc::clone(store),
            kept: Arc::clone(kept),
            name: name.clone(),
            id: id.clone(),
            path,
            file,
            size,
            written_back: size,
            progress,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }
    pub(crate) fn name(&self) -> &Repository {
        &self.name
    }

    /// The upload is over and nothing of it stays.
    pub(crate) fn discard(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(unknown)
    }

    /// Adds bytes. A disk that is full takes none of them, and the upload goes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(e) = self.file.write_all(bytes) {
            let error = Error::from(e);
            let _ = std::fs::remove_file(&self.path);
            return Err(error);
        }
        self.size += bytes.len() as u64;
        if let Some(progress) = &mut self.progress {
            progress.update(bytes);
        }
        if self.size - self.written_back >= WRITE_BACK {
            // The kernel begins to write at once what it is advised to forget; the pages stay until they are clean.
            let length = std::num::NonZero::new(self.size - self.written_back);
            let _ = rustix::fs::fadvise(
                &self.file,
                self.written_back,
                length,
                rustix::fs::Advice::DontNeed,
            );
            self.written_back = self.size;
        }
        Ok(())
    }

    /// The request is over and the upload is not.
    pub(crate) fn leave(mut self) -> u64 {
        if let Some(progress) = self.progress.take() {
            self.kept.put(&self.id, progress);
        }
        let _ = touch(&self.path);
        self.size
    }

    /// All has come: it must be `digest`. Then it is the repository's, synced; otherwise the upload is gone.
    pub(crate) fn finish(mut self, digest: &Digest) -> Result<()> {
        let (found, sums) = match self.progress.take() {
            Some(progress) if digest.algorithm == Algorithm::Sha256 => {
                (progress.hasher.finish(), progress.summing.finish())
            }
            _ => read_through(&self.file, digest.algorithm)?,
        };
        if found != *digest {
            let _ = std::fs::remove_file(&self.path);
            return Err(Error::digest_invalid(
                "provided digest did not match uploaded content",
            ));
        }
        self.commit(digest, &sums)
    }

    fn commit(&self, digest: &Digest, sums: &Sums) -> Result<()> {
        self.store
            .commit_blob(&self.name, digest, &self.path, &self.file, Some(sums))
    }
}

/// A small blob that came whole in one request, without an upload before it.
pub(crate) fn put_whole(
    store: &Store,
    name: &Repository,
    digest: &Digest,
    bytes: &[u8],
) -> Result<()> {
    debug_assert!(bytes.len() <= PIECE);
    if Digest::of(digest.algorithm, bytes) != *digest {
        return Err(Error::digest_invalid(
            "provided digest did not match uploaded content",
        ));
    }
    let path = store.temporary();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let done = file
        .write_all(bytes)
        .map_err(Error::from)
        .and_then(|()| store.commit_blob(name, digest, &path, &file, None));
    if done.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    done
}

fn lock(file: &File) -> Result<()> {
    let began = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_PAUSE)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    http::StatusCode::CONFLICT,
                    "BLOB_UPLOAD_INVALID",
                    "another request is writing to this upload",
                ));
            }
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

fn is_still(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => inode(there) == inode(ours),
        _ => false,
    }
}
