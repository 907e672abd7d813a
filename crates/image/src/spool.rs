//! Brings foreign bytes onto the disk once and lets others read behind the writer.
//!
//! An archive may come from a connection that can be read only once. Its files are written to the store's own `tmp` folder
//! while they are hashed, and a worker unpacks a layer from the page cache while the rest of it still arrives:
//!
//! ```text
//! archive ─▶ SpoolWriter (hash, write) ─▶ file ─▶ SpoolReader ─▶ (inflate + hash, own thread) ─▶ layer::unpack
//! ```

use crate::layer::{self, Budget, Unpacked, read_error};
use aws_lc_rs::digest::{Context, SHA256};
use gantry_base::{Error, Result, ResultExt};
use gantry_linux::dirfd;
use gantry_oci::Digest;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

/// Read from files and connections at once; file contents go from this buffer straight into `write`.
pub(crate) const BUFFER: usize = 512 << 10;
/// Begin to write to disk after this much, so that the final sync waits for little.
const WRITEBACK_STEP: u64 = 16 << 20;
/// Inflated pieces on their way to the unpacking thread.
const PIECES: usize = 8;
/// More than this many times its compressed size is a bomb (gzip's own limit is 1032) …
const RATIO_LIMIT: u64 = 200;
/// … once it is at least this large. Honest images of mostly zeros are smaller.
const RATIO_FLOOR: u64 = 4 << 30;
/// Memory that a zstd stream may ask for (log2).
const ZSTD_WINDOW_LOG: u32 = 27;

pub(crate) struct Hasher(Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub(crate) fn finish(self) -> Digest {
        let digest = self.0.finish();
        Digest::from_sha256(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher.finish()
}

/// A file that is being written, for readers.
pub(crate) struct Spool {
    pub(crate) path: PathBuf,
    file: File,
    progress: Mutex<Progress>,
    grown: Condvar,
}

#[derive(Clone, Copy)]
struct Progress {
    written: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Complete,
    Broken,
}

impl Spool {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A file that is whole already.
    pub(crate) fn complete(path: PathBuf, size: u64) -> Result<Arc<Self>> {
        let file = File::open(&path).context(|| format!("opening {}", path.display()))?;
        let progress = Progress {
            written: size,
            end: Some(End::Complete),
        };
        Ok(Arc::new(Self {
            path,
            file,
            progress: Mutex::new(progress),
            grown: Condvar::new(),
        }))
    }
    pub(crate) fn reader(self: &Arc<Self>) -> SpoolReader {
        SpoolReader {
            spool: self.clone(),
            position: 0,
        }
    }
}

/// The writing end. Dropped before [`SpoolWriter::finish`], it fails the readers instead of letting them wait for ever.
pub(crate) struct SpoolWriter {
    spool: Arc<Spool>,
    hasher: Hasher,
    written: u64,
    flushed: u64,
}

impl SpoolWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .context(|| format!("creating {}", path.display()))?;
        let spool = Arc::new(Spool {
            path,
            file,
            progress: Mutex::new(Progress {
                written: 0,
                end: None,
            }),
            grown: Condvar::new(),
        });
        Ok(Self {
            spool,
            hasher: Hasher::new(),
            written: 0,
            flushed: 0,
        })
    }

    pub(crate) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    pub(crate) fn write(&mut self, bytes: &[u8], budget: &Budget) -> Result<()> {
        budget.take(bytes.len() as u64)?;
        (&self.spool.file)
            .write_all(bytes)
            .context(|| format!("writing {}", self.spool.path.display()))?;
        self.written += bytes.len() as u64;
        self.spool.lock().written = self.written;
        self.spool.grown.notify_all();
        self.hasher.update(bytes);
        if self.written - self.flushed >= WRITEBACK_STEP {
            dirfd::start_writeback(&self.spool.file, self.flushed, self.written - self.flushed);
            self.flushed = self.written;
        }
        Ok(())
    }

    /// The digest and size of what was written.
    pub(crate) fn finish(mut self) -> (Arc<Spool>, Digest, u64) {
        self.end(End::Complete);
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new());
        (self.spool.clone(), hasher.finish(), self.written)
    }

    fn end(&self, end: End) {
        self.spool.lock().end.get_or_insert(end);
        self.spool.grown.notify_all();
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.end(End::Broken);
    }
}

/// Reads a spool from its start; waits for the writer at its end.
pub(crate) struct SpoolReader {
    spool: Arc<Spool>,
    position: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = loop {
            let progress = self.spool.lock();
            if progress.written > self.position {
                break progress.written - self.position;
            }
            match progress.end {
                Some(End::Complete) => return Ok(0),
                Some(End::Broken) => return Err(io::ErrorKind::ConnectionAborted.into()),
                None => drop(
                    self.spool
                        .grown
                        .wait(progress)
                        .unwrap_or_else(PoisonError::into_inner),
                ),
            }
        };
        let take = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self
            .spool
            .file
            .read_at(&mut buffer[..take], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Gzip,
    Zstd,
}

impl Codec {
    /// From the first bytes. Formats that we know and do not read are refused by name.
    pub(crate) fn detect(start: &[u8]) -> Result<Self> {
        let refuse = |name: &str, program: &str| {
            Err(Error::invalid(format!(
                "{name} compression is not supported: decompress the archive first ({program})"
            )))
        };
        match start {
            [0x1f, 0x8b, 8, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => refuse("bzip2", "bunzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => refuse("xz", "unxz"),
            [0x5d, 0, 0, _, _, 0xff, 0xff, ..] => refuse("lzma", "unlzma"),
            _ => Ok(Self::Plain),
        }
    }

    /// Plain bytes out of `input`. Guards against bombs; its refusals come as [`Error`] inside the `io::Error`.
    pub(crate) fn decode<'a>(
        self,
        input: impl Read + Send + 'a,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        if self == Self::Plain {
            return Ok(Box::new(input));
        }
        let consumed = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: input,
            count: consumed.clone(),
        };
        let input = BufReader::with_capacity(BUFFER, counted);
        Ok(match self {
            Self::Gzip => Box::new(Guarded::new(
                flate2::bufread::MultiGzDecoder::new(input),
                consumed,
            )),
            _ => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                    .context(|| "starting zstd".into())?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .context(|| "starting zstd".into())?;
                Box::new(Guarded::new(decoder, consumed))
            }
        })
    }
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

struct Guarded<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
    produced: u64,
}

impl<R> Guarded<R> {
    fn new(inner: R, consumed: Arc<AtomicU64>) -> Self {
        Self {
            inner,
            consumed,
            produced: 0,
        }
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.produced += read as u64;
        let limit = self
            .consumed
            .load(Ordering::Relaxed)
            .saturating_mul(RATIO_LIMIT);
        if self.produced > RATIO_FLOOR && self.produced > limit {
            return Err(io::Error::other(Error::invalid(format!(
                "the archive expands to more than {RATIO_LIMIT} times its size: refused as a decompression bomb"
            ))));
        }
        Ok(read)
    }
}

/// A source whose first bytes were looked at.
pub(crate) struct Peeked<R> {
    head: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Peeked<R> {
    pub(crate) fn new(mut source: R, bytes: u64) -> Result<Self> {
        let mut head = Vec::new();
        (&mut source)
            .take(bytes)
            .read_to_end(&mut head)
            .map_err(read_error)?;
        Ok(Self {
            head: io::Cursor::new(head),
            rest: source,
        })
    }
    pub(crate) fn head(&self) -> &[u8] {
        self.head.get_ref()
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.head.read(buffer)? {
            0 => self.rest.read(buffer),
            read => Ok(read),
        }
    }
}

/// A layer that was unpacked into a folder in `tmp`.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) folder: PathBuf,
    pub(crate) unpacked: Unpacked,
    /// Digest of the plain tar; `None` when the blob is the plain tar.
    pub(crate) diff_id: Option<Digest>,
}

/// Unpacks a spooled layer, perhaps while it is still being written, into a new folder.
pub(crate) fn unpack(
    spool: &Arc<Spool>,
    codec: Codec,
    folder: PathBuf,
    budget: &Budget,
) -> Result<Done> {
    std::fs::create_dir(&folder).context(|| format!("creating {}", folder.display()))?;
    let root = layer::open_folder(&folder)?;
    let (unpacked, diff_id) = if codec == Codec::Plain {
        let input = BufReader::with_capacity(BUFFER, spool.reader());
        (layer::unpack(&root, input, budget)?.0, None)
    } else {
        let (unpacked, diff_id) = unpack_compressed(&root, codec.decode(spool.reader())?, budget)?;
        (unpacked, Some(diff_id))
    };
    Ok(Done {
        folder,
        unpacked,
        diff_id,
    })
}

/// Inflates and hashes in a thread of its own: each half costs about as much as the other.
fn unpack_compressed(
    root: &std::os::fd::OwnedFd,
    mut plain: Box<dyn Read + Send>,
    budget: &Budget,
) -> Result<(Unpacked, Digest)> {
    let (pieces, queue) = mpsc::sync_channel::<Vec<u8>>(PIECES);
    std::thread::scope(|scope| {
        let inflate = scope.spawn(move || -> Result<Digest> {
            let mut hasher = Hasher::new();
            loop {
                let mut piece = vec![0; BUFFER];
                let mut filled = 0;
                while filled < piece.len() {
                    match plain.read(&mut piece[filled..]) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(read_error(e)),
                    }
                }
                if filled == 0 {
                    return Ok(hasher.finish());
                }
                piece.truncate(filled);
                hasher.update(&piece);
                if pieces.send(piece).is_err() {
                    // The unpacking end refused the archive and says why.
                    return Err(Error::internal("unpacking stopped"));
                }
            }
        });
        let input = Pieces {
            queue,
            piece: Vec::new(),
            position: 0,
        };
        let unpacked = layer::unpack(root, input, budget).and_then(|(unpacked, mut rest)| {
            io::copy(&mut rest, &mut io::sink()).map_err(read_error)?;
            Ok(unpacked)
        });
        let digest = inflate
            .join()
            .unwrap_or_else(|_| Err(Error::internal("the inflating thread panicked")));
        match (unpacked, digest) {
            (Ok(unpacked), Ok(digest)) => Ok((unpacked, digest)),
            // A damaged stream looks like a truncated tar to the other end: the inflating end knows better.
            (Err(e), Err(cause)) if cause.message() == "unpacking stopped" => Err(e),
            (_, Err(e)) | (Err(e), _) => Err(e),
        }
    })
}

struct Pieces {
    queue: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    position: usize,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.piece.len() {
            self.piece = self.queue.recv().unwrap_or_default();
            self.position = 0;
        }
        Ok(&self.piece[self.position..])
    }
    fn consume(&mut self, bytes: usize) {
        self.position += bytes;
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// A layer to unpack, and where its result goes.
pub(crate) struct Job {
    pub(crate) spool: Arc<Spool>,
    pub(crate) codec: Codec,
    pub(crate) folder: PathBuf,
    pub(crate) result: Slot,
}

/// Empty until the workers of the job's [`with_workers`] have ended.
pub(crate) type Slot = Arc<Mutex<Option<Result<Done>>>>;

pub(crate) fn take_slot(slot: &Slot) -> Option<Result<Done>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Runs `body` beside workers that unpack what it sends. Every job is done when this returns.
pub(crate) fn with_workers<T>(
    budget: &Budget,
    body: impl FnOnce(&mpsc::Sender<Job>) -> Result<T>,
) -> Result<T> {
    let workers = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 4);
    std::thread::scope(|scope| {
        let (sender, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..workers {
            let queue = queue.clone();
            scope.spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    let result = unpack(&job.spool, job.codec, job.folder, budget);
                    *job.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
        body(&sender)
    })
}

/// Removes a folder of ours and everything in it, as far as it goes: what is left is swept at the next start.
pub(crate) fn discard(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %error, "could not remove a folder; the next start sweeps it");
    }
}
