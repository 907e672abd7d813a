//! From files to an index, and telling a torn end from damage.

use super::index::{Index, Segment, Version};
use crate::frame::{self, Bad, FIRST, Frame, Kind, LAST};
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Read at once while scanning; must hold the largest frame.
const WINDOW: usize = 4 << 20;
/// The revision of an empty store, as in etcd.
pub(crate) const FIRST_REVISION: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Base,
    Log,
}

/// A frame without its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) numbers: [u64; 4],
    pub(crate) key: Vec<u8>,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// Bytes that are not what was written.
#[derive(Debug, Clone)]
pub struct Finding {
    pub file: PathBuf,
    pub offset: u64,
    pub bytes: u64,
    pub what: String,
    /// The key that the bytes seem to belong to; they are damaged, so it may be wrong.
    pub key: Option<String>,
}

impl Finding {
    fn error(&self) -> Error {
        let of = self
            .key
            .as_ref()
            .map_or(String::new(), |k| format!(" (it seems to be {k})"));
        Error::Damaged {
            file: self.file.clone(),
            offset: self.offset,
            what: format!("{}{of}", self.what),
        }
    }
}

pub(crate) fn io_error(what: &str, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Full(format!("{what}: {e}"))
        }
        _ => Error::Internal(format!("{what}: {e}")),
    }
}

pub(crate) fn path_of(dir: &Path, role: Role, id: u32) -> PathBuf {
    dir.join(match role {
        Role::Base => format!("base-{id:08x}"),
        Role::Log => format!("log-{id:08x}"),
    })
}

pub(crate) fn segment_id(role: Role, id: u32) -> u32 {
    2 * id + u32::from(role == Role::Base)
}

/// The files that count, the base first, then the logs in order; and those that something newer has replaced.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) files: Vec<(Role, u32, PathBuf)>,
    pub(crate) stale: Vec<PathBuf>,
}

pub(crate) fn names(dir: &Path) -> Result<Names> {
    let failed = |e: io::Error| io_error(&format!("reading {}", dir.display()), &e);
    let mut all = Vec::new();
    let mut names = Names::default();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let (role, id) = match name.split_once('-') {
            Some(("base", id)) => (Role::Base, id),
            Some(("log", id)) => (Role::Log, id),
            _ => continue,
        };
        match u32::from_str_radix(id, 16) {
            // Ids are doubled to name segments.
            Ok(id) if id < u32::MAX / 2 => all.push((role, id, entry.path())),
            _ if name.ends_with(".tmp") => names.stale.push(entry.path()),
            _ => {}
        }
    }
    let base = all
        .iter()
        .filter(|(role, ..)| *role == Role::Base)
        .map(|(_, id, _)| *id)
        .max();
    for (role, id, path) in all {
        let counts = match role {
            Role::Base => Some(id) == base,
            Role::Log => base.is_none_or(|base| id > base),
        };
        if counts {
            names.files.push((role, id, path));
        } else {
            names.stale.push(path);
        }
    }
    names.files.sort_by_key(|(role, id, _)| (*role, *id));
    Ok(names)
}

/// What stands at a place in a file.
pub(crate) enum Item<'a> {
    Frame(Frame<'a>),
    /// No right frame for this many bytes.
    Bad {
        bytes: u64,
        key: Option<String>,
    },
}

/// Walks through all frames of a file, with memory for one window. Answers the file's length.
pub(crate) fn scan(
    file: &mut impl Read,
    mut visit: impl FnMut(u64, Item<'_>) -> Result<()>,
) -> Result<u64> {
    let mut window = Window {
        file,
        bytes: Vec::new(),
        start: 0,
        position: 0,
        ended: false,
    };
    loop {
        match frame::read(window.rest()) {
            Ok(frame) => {
                let len = frame.len;
                visit(window.offset(), Item::Frame(frame))?;
                window.position += len;
            }
            Err(Bad::Short) if !window.ended => window.refill()?,
            Err(_) if window.rest().is_empty() => return Ok(window.offset()),
            Err(_) => {
                let from = window.offset();
                let key = frame::guess_key(window.rest());
                window.position += 1;
                loop {
                    let found = frame::resync(window.rest(), 0);
                    if let Some(at) = found {
                        window.position += at;
                        break;
                    }
                    if window.ended {
                        window.position = window.bytes.len();
                        break;
                    }
                    // A frame that starts in the last part may only be cut off by the window.
                    window.position = window
                        .position
                        .max(window.bytes.len().saturating_sub(WINDOW));
                    window.refill()?;
                }
                let bytes = window.offset() - from;
                visit(from, Item::Bad { bytes, key })?;
            }
        }
    }
}

struct Window<'a, R> {
    file: &'a mut R,
    bytes: Vec<u8>,
    /// Where in the file `bytes` starts.
    start: u64,
    position: usize,
    ended: bool,
}

impl<R: Read> Window<'_, R> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.position..]
    }
    fn offset(&self) -> u64 {
        self.start + self.position as u64
    }
    fn refill(&mut self) -> Result<()> {
        self.bytes.drain(..self.position);
        self.start += self.position as u64;
        self.position = 0;
        let before = self.bytes.len();
        self.file
            .take(WINDOW as u64)
            .read_to_end(&mut self.bytes)
            .map_err(|e| io_error("reading the store", &e))?;
        self.ended = self.bytes.len() == before;
        Ok(())
    }
}

/// What [`examine`] found out about a file.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) findings: Vec<Finding>,
    /// The end of what counts; less than `length` if a group was torn.
    pub(crate) good_end: u64,
    pub(crate) length: u64,
    /// `c` of the first mark: how long the log before was when it was sealed.
    pub(crate) length_before: Option<u64>,
    pub(crate) ended: bool,
}

/// Reads one file and hands out the entries of its whole transactions. `last`: it was being written to, so its end may be torn.
/// `beyond`: whether entries after wrong bytes are handed out, too (a repair wants them).
pub(crate) fn examine(
    path: &Path,
    last: bool,
    beyond: bool,
    mut visit: impl FnMut(Entry) -> Result<()>,
) -> Result<Examined> {
    let mut file =
        File::open(path).map_err(|e| io_error(&format!("opening {}", path.display()), &e))?;
    let mut bad: Vec<Finding> = Vec::new();
    let mut pending: Vec<Entry> = Vec::new();
    let mut synced = 0;
    let mut length_before = None;
    let mut ended = false;
    let mut good_end = 0;
    let finding = |offset, bytes, what: &str, key| Finding {
        file: path.to_owned(),
        offset,
        bytes,
        what: what.to_owned(),
        key,
    };
    let length = scan(&mut file, |offset, item| {
        let frame = match item {
            Item::Frame(frame) => frame,
            Item::Bad { bytes, key } => {
                bad.push(finding(
                    offset,
                    bytes,
                    "the bytes are not what was written",
                    key,
                ));
                return Ok(());
            }
        };
        if frame.flags & FIRST != 0 {
            if let Some(cut) = pending.first() {
                bad.push(finding(
                    cut.offset,
                    offset - cut.offset,
                    "a transaction without its end",
                    Some(String::from_utf8_lossy(&cut.key).into_owned()),
                ));
            }
            pending.clear();
        } else if pending.is_empty() {
            bad.push(finding(
                offset,
                frame.len as u64,
                "a transaction without its beginning",
                Some(String::from_utf8_lossy(frame.key).into_owned()),
            ));
            return Ok(());
        }
        match frame.kind {
            Kind::Synced => {
                synced = synced.max(frame.a);
                length_before = length_before.or(Some(frame.c));
            }
            Kind::End => ended = true,
            _ => {}
        }
        pending.push(Entry {
            kind: frame.kind,
            numbers: [frame.a, frame.b, frame.c, frame.d],
            key: frame.key.to_vec(),
            offset,
            len: u32::try_from(frame.len).expect("frames are limited"),
        });
        if frame.flags & LAST != 0 {
            if bad.is_empty() {
                good_end = offset + frame.len as u64;
            }
            for entry in pending.drain(..) {
                if beyond || bad.is_empty() {
                    visit(entry)?;
                }
            }
        }
        Ok(())
    })?;
    if let Some(cut) = pending.first() {
        bad.push(finding(
            cut.offset,
            length - cut.offset,
            "a transaction without its end",
            Some(String::from_utf8_lossy(&cut.key).into_owned()),
        ));
    }
    if last {
        // What had not been synced when its writer died is no damage: nobody was told that it is there.
        bad.retain(|finding| finding.offset < synced);
    }
    Ok(Examined {
        findings: bad,
        good_end,
        length,
        length_before,
        ended,
    })
}

/// The log that is written to.
#[derive(Debug)]
pub(crate) struct ActiveLog {
    pub(crate) id: u32,
    pub(crate) segment: Arc<Segment>,
    pub(crate) len: u64,
}

pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) log: ActiveLog,
}

/// Everything about the files: the index they make, what is wrong, and how long the last log really is.
pub(crate) struct Contents {
    pub(crate) index: Index,
    pub(crate) findings: Vec<Finding>,
    last: Option<(u32, u64, u64)>,
    stale: Vec<PathBuf>,
    next_id: u32,
}

pub(crate) fn read(dir: &Path) -> Result<Contents> {
    let names = names(dir)?;
    let mut index = Index {
        revision: FIRST_REVISION,
        ..Index::default()
    };
    let mut findings = Vec::new();
    let mut last = None;
    let mut before: Option<(u32, u64)> = None;
    let count = names.files.len();
    for (at, (role, id, path)) in names.files.iter().enumerate() {
        let segment = segment_id(*role, *id);
        let is_last = at + 1 == count && *role == Role::Log;
        let examined = examine(path, is_last, false, |entry| {
            apply(&mut index, segment, &entry);
            Ok(())
        })?;
        let mut wrong = |what: String| {
            findings.push(Finding {
                file: path.clone(),
                offset: examined.length,
                bytes: 0,
                what,
                key: None,
            });
        };
        if *role == Role::Base && !examined.ended && examined.findings.is_empty() {
            wrong("the file ends too early".to_owned());
        }
        if let Some((id_before, length)) = before
            && *id != id_before + 1
        {
            wrong(format!(
                "the file before it is missing (after {length} bytes of {id_before:08x})"
            ));
        } else if let (Some((_, length)), Some(sealed)) = (before, examined.length_before)
            && names.files[at - 1].0 == Role::Log
            && sealed > length
        {
            wrong(format!("the file before it has {length} bytes of {sealed}"));
        }
        before = Some((*id, examined.length));
        findings.extend(examined.findings);
        index.sizes.insert(segment, examined.good_end);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| io_error(&format!("opening {}", path.display()), &e))?;
        let path = path.clone();
        index
            .segments
            .insert(segment, Arc::new(Segment { path, file }));
        last = (*role == Role::Log).then_some((*id, examined.good_end, examined.length));
    }
    index.settle();
    Ok(Contents {
        index,
        findings,
        last,
        stale: names.stale,
        next_id: before.map_or(1, |(id, _)| id + 1),
    })
}

pub(crate) fn open(dir: &Path) -> Result<Recovered> {
    let mut read = read(dir)?;
    if let Some(first) = read.findings.first() {
        return Err(first.error());
    }
    for path in &read.stale {
        // Left by a rewrite that was cut off before or after its last step.
        let _ = std::fs::remove_file(path);
    }
    let log = match read.last {
        Some((id, good_end, length)) => {
            let segment = read.index.segments[&segment_id(Role::Log, id)].clone();
            if length > good_end {
                tracing::warn!(file = %segment.path.display(), bytes = length - good_end, "a torn group at the end is cut off");
            }
            // Synced in any case: what a killed writer left in the page cache is about to be shown.
            segment
                .file
                .set_len(good_end)
                .and_then(|()| segment.file.sync_all())
                .map_err(|e| io_error(&format!("opening {}", segment.path.display()), &e))?;
            ActiveLog {
                id,
                segment,
                len: good_end,
            }
        }
        None => create_log(dir, read.next_id, &mut read.index)?,
    };
    Ok(Recovered {
        index: read.index,
        log,
    })
}

pub(crate) fn create_log(dir: &Path, id: u32, index: &mut Index) -> Result<ActiveLog> {
    let path = path_of(dir, Role::Log, id);
    let failed = |e: io::Error| io_error(&format!("making {}", path.display()), &e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed)?;
    sync_dir(dir).map_err(failed)?;
    let segment = Arc::new(Segment {
        path: path.clone(),
        file,
    });
    index
        .segments
        .insert(segment_id(Role::Log, id), segment.clone());
    index.sizes.insert(segment_id(Role::Log, id), 0);
    Ok(ActiveLog {
        id,
        segment,
        len: 0,
    })
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn apply(index: &mut Index, segment: u32, entry: &Entry) {
    let [a, b, c, d] = entry.numbers;
    let version = Version {
        revision: a,
        create: b,
        version: c,
        lease: d.cast_signed(),
        segment,
        offset: entry.offset,
        len: entry.len,
    };
    match entry.kind {
        Kind::Put => index.insert(&entry.key, version),
        Kind::Delete => index.insert(
            &entry.key,
            Version {
                create: 0,
                version: 0,
                lease: 0,
                ..version
            },
        ),
        Kind::Compact => {
            index.revision = index.revision.max(a);
            index.compact(b);
        }
        Kind::Grant => index.granted(b.cast_signed(), Duration::from_secs(c)),
        Kind::Revoke => {
            index.revision = index.revision.max(a);
            index.leases.remove(&b.cast_signed());
        }
        Kind::End => {
            index.revision = index.revision.max(b);
            index.compact(c);
        }
        Kind::Synced | Kind::Gap => {}
    }
}
