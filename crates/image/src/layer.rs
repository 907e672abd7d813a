//! Turns one layer tar into one overlay lower folder, whatever the tar says.
//!
//! ```text
//! entry ──clean path──▶ parent folder (openat2 beneath the layer) ──▶ one single name made in it
//! .wh.x            → character device 0/0 named x           (overlayfs: deleted here)
//! .wh..wh..opq     → trusted.overlay.opaque=y on the folder (overlayfs: nothing below shows)
//! ```
//!
//! Invariants
//! * Every name is made relative to a folder descriptor that was reached beneath the layer's own folder; nothing ever
//!   goes through an absolute path, `..`, or a symbolic link that leaves the layer.
//! * An entry never replaces a folder that holds something, so a folder descriptor that is kept stays where it was.
//! * What an archive may cost is bounded: entries ([`ENTRY_LIMIT`]), bytes ([`Budget`]), memory ([`REMEMBERED_LIMIT`]).
//!
//! Where Docker has a rule (which of two equal names wins, what an absolute name means, whiteouts in any order), so do we.
//! Two things depend on the layers below: folders that an entry implies but the tar does not list, and hard links to
//! files of a lower layer. Such a layer is *dependent*: [`Unpacked::finish_over`] completes it, and it is shared only
//! between images with the same chain.

use crate::tarstream::{Header, Kind, TarError, TarStream};
use gantry_base::{Error, Result, ResultExt};
use gantry_linux::dirfd::{self, Node, Symlinks};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// More than any real layer holds (the largest public images have some 500,000).
pub(crate) const ENTRY_LIMIT: u64 = 2_000_000;
/// Bytes of paths that must be kept until the end of a layer (folders' times, implied folders, links below).
const REMEMBERED_LIMIT: usize = 128 << 20;
/// Apparent size of one sparse file.
const SPARSE_SIZE_LIMIT: u64 = 1 << 40;
/// Disk that an unpacking archive leaves free.
const RESERVE: u64 = 256 << 20;
/// Linux' device numbers: 12 and 20 bits.
const MAJOR_LIMIT: u32 = 0xfff;
const MINOR_LIMIT: u32 = 0xf_ffff;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_KEY: &[u8] = b"trusted.overlay.opaque";

/// Disk bytes that one operation may still write, shared by its threads.
pub(crate) struct Budget(AtomicU64);

impl Budget {
    /// What is free on the file system of `folder`, less a reserve.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let folder_fd = open_folder(folder)?;
        let free = dirfd::free_bytes(&folder_fd)
            .context(|| format!("asking for the free space under {}", folder.display()))?;
        Ok(Self::new(free.saturating_sub(RESERVE)))
    }
    pub(crate) fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .map(drop)
            .map_err(|_| {
                Error::internal(
                    "no space left on device: the archive needs more than the disk has free",
                )
            })
    }
}

/// What came out of one layer tar.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes of its regular files.
    pub(crate) size: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Folders that an entry lies in and no entry describes.
    implied: BTreeSet<Vec<u8>>,
    /// Hard links whose target is not in this layer: (target, new name).
    lower_links: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) fn open_folder(folder: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(folder, flags, rustix::fs::Mode::empty())
        .context(|| format!("opening {}", folder.display()))
}

/// Unpacks the tar `input` into the empty folder `root` and reads it to the archive's end (not to the input's).
/// Returns the rest of the input. A refusal is `InvalidArgument`; what was unpacked until then is the caller's to remove.
pub(crate) fn unpack<R: BufRead>(
    root: &OwnedFd,
    input: R,
    budget: &Budget,
) -> Result<(Unpacked, R)> {
    let mut extractor = Extractor {
        root,
        budget,
        parent: None,
        folders: Vec::new(),
        remembered: 0,
        out: Unpacked::default(),
    };
    dirfd::set_mode(root, b".", 0o755).context(|| "preparing the layer's folder".into())?;
    let mut stream = TarStream::new(input, ENTRY_LIMIT);
    while let Some(header) = stream.next_entry().map_err(tar_error)? {
        extractor.entry(&header, &mut stream)?;
    }
    extractor.finish()?;
    Ok((extractor.out, stream.into_rest()))
}

pub(crate) fn tar_error(error: TarError) -> Error {
    match error {
        TarError::Read(source) => read_error(source),
        refusal => Error::invalid(refusal.to_string()),
    }
}

/// What our own readers have to say travels inside `io::Error`; everything else is a failure to read.
pub(crate) fn read_error(source: io::Error) -> Error {
    match source.downcast::<Error>() {
        Ok(ours) => ours,
        Err(source) => match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                Error::invalid("reading the archive").with_source(source)
            }
            io::ErrorKind::UnexpectedEof => Error::invalid("unexpected EOF"),
            _ => Error::internal("reading the archive").with_source(source),
        },
    }
}

/// Lets `?` inside [`TarStream::body`] carry our errors.
struct BodyError(Error);
impl From<TarError> for BodyError {
    fn from(error: TarError) -> Self {
        Self(tar_error(error))
    }
}

struct Extractor<'a> {
    root: &'a OwnedFd,
    budget: &'a Budget,
    /// The folder that the last entry lay in; most entries lie in the same one as the one before.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folders with the time to give them once nothing is made in them any more.
    folders: Vec<(Vec<u8>, (i64, u32))>,
    remembered: usize,
    out: Unpacked,
}

fn show(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// The path from the root of a layer or archive without leading slash, `.` and empty parts; `..` is resolved by the text alone.
/// Empty for the root itself, `None` when it leads out of the root.
pub(crate) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

impl Extractor<'_> {
    fn entry<R: BufRead>(&mut self, header: &Header, stream: &mut TarStream<R>) -> Result<()> {
        let path = clean(&header.path).ok_or_else(|| {
            Error::invalid(format!(
                "invalid path {}: it leads out of the layer",
                show(&header.path)
            ))
        })?;
        if path
            .split(|&b| b == b'/')
            .any(|part| part.starts_with(WHITEOUT_META_PREFIX) && part != WHITEOUT_OPAQUE)
        {
            return Ok(()); // aufs' own bookkeeping; Docker skips it too
        }
        if path.is_empty() {
            return self.root_entry(header);
        }
        let (parent, name) = split(&path);
        if path.split(|&b| b == b'/').any(|part| part.len() > 255) {
            return Err(Error::invalid(format!(
                "file name too long in {}",
                show(&path)
            )));
        }
        let parent = self.parent_of(parent, &path)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&parent, name, hidden, &path);
        }
        match header.kind {
            Kind::File => self.file(&parent, name, &path, header, stream),
            Kind::HardLink => self.hard_link(&parent, name, &path, header),
            Kind::Directory => self.folder(&parent, name, &path, header),
            Kind::Symlink => self.symlink(&parent, name, &path, header),
            Kind::Character | Kind::Block | Kind::Fifo => self.node(&parent, name, &path, header),
        }
        .map(|()| self.parent = Some((split(&path).0.to_vec(), parent)))
    }

    fn root_entry(&mut self, header: &Header) -> Result<()> {
        if header.kind != Kind::Directory {
            return Err(Error::invalid(format!(
                "invalid path {}: the layer's root must be a folder",
                show(&header.path)
            )));
        }
        self.folder_metadata(self.root, header, b"")?;
        self.remember(b"")?;
        self.folders.push((Vec::new(), header.mtime));
        Ok(())
    }

    /// A descriptor of the folder, made with its ancestors where the tar did not list them. Takes the kept one out.
    fn parent_of(&mut self, parent: &[u8], path: &[u8]) -> Result<OwnedFd> {
        if let Some((kept, fd)) = self.parent.take()
            && kept == parent
        {
            return Ok(fd);
        }
        match dirfd::open_dir_beneath(self.root, parent, Symlinks::Beneath) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                self.make_parents(parent, path)
            }
            other => other.map_err(|e| leaves(e, path)),
        }
    }

    fn make_parents(&mut self, parent: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let mut reached = Vec::new();
        for part in parent.split(|&b| b == b'/') {
            let above = dirfd::open_dir_beneath(self.root, &reached, Symlinks::Beneath)
                .map_err(|e| leaves(e, path))?;
            if !reached.is_empty() {
                reached.push(b'/');
            }
            reached.extend_from_slice(part);
            match dirfd::make_dir(&above, part, 0o755) {
                Ok(()) => self.imply(&above, part, &reached)?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let stat = dirfd::stat(&above, part).map_err(|e| failed(e, &reached))?;
                    if dirfd::is_whiteout(&stat) {
                        // The tar deleted the name and now brings a folder of that name: nothing from below shows in it.
                        dirfd::remove(&above, part, false).map_err(|e| failed(e, &reached))?;
                        dirfd::make_dir(&above, part, 0o755).map_err(|e| failed(e, &reached))?;
                        self.set_opaque(&above, part, &reached)?;
                        self.imply(&above, part, &reached)?;
                    }
                }
                Err(e) => return Err(failed(e, &reached)),
            }
        }
        dirfd::open_dir_beneath(self.root, parent, Symlinks::Beneath).map_err(|e| leaves(e, path))
    }

    fn imply(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        dirfd::set_mode(above, name, 0o755).map_err(|e| failed(e, path))?;
        self.remember(path)?;
        self.out.implied.insert(path.to_vec());
        Ok(())
    }

    fn remember(&mut self, path: &[u8]) -> Result<()> {
        self.remembered += path.len() + 64;
        if self.remembered > REMEMBERED_LIMIT {
            return Err(Error::invalid("the layer has too many folders"));
        }
        Ok(())
    }

    /// Makes a name with `make`; whatever non-folder (or empty folder) has the name makes room first, as in Docker.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        make: impl Fn() -> io::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.make_room(parent, name, path)?;
                make().map_err(|e| failed(e, path))
            }
            other => other.map_err(|e| failed(e, path)),
        }
    }

    fn make_room(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let stat = dirfd::stat(parent, name).map_err(|e| failed(e, path))?;
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match dirfd::remove(parent, name, folder) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(Error::invalid(format!(
                "cannot overwrite directory {} with non-directory",
                show(path)
            ))),
            other => other.map_err(|e| failed(e, path)),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        header: &Header,
        stream: &mut TarStream<R>,
    ) -> Result<()> {
        self.budget
            .take(header.stored.saturating_add(4095) & !4095)?;
        if header.sparse.is_some() && header.size > SPARSE_SIZE_LIMIT {
            return Err(Error::invalid(format!(
                "sparse file {} is too large",
                show(path)
            )));
        }
        let fd = self.replacing(parent, name, path, || {
            dirfd::create_file(parent, name, header.mode & 0o777)
        })?;
        let mut file = File::from(fd);
        match &header.sparse {
            None => stream.body(|piece| {
                file.write_all(piece)
                    .map_err(|e| BodyError(failed(e, path)))
            }),
            Some(map) => write_sparse(&file, map, stream, path),
        }
        .map_err(|e| e.0)?;
        if header.sparse.is_some() {
            file.set_len(header.size).map_err(|e| failed(e, path))?;
        }
        self.out.size = self.out.size.saturating_add(header.size);
        // The owner first: changing it takes set-user-ID bits and file capabilities away.
        let apply = || {
            rustix::fs::fchown(
                &file,
                Some(rustix::fs::Uid::from_raw(header.uid)),
                Some(rustix::fs::Gid::from_raw(header.gid)),
            )?;
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(header.mode))?;
            Ok(())
        };
        apply().map_err(|e: io::Error| failed(e, path))?;
        for (key, value) in &header.xattrs {
            if let Some(key) = wanted_xattr(key) {
                settle_xattr(key, path, || {
                    Ok(rustix::fs::fsetxattr(
                        &file,
                        key,
                        value,
                        rustix::fs::XattrFlags::empty(),
                    )?)
                })?;
            }
        }
        dirfd::set_file_time(&file, header.mtime.0, header.mtime.1).map_err(|e| failed(e, path))
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        header: &Header,
    ) -> Result<()> {
        let escapes = || {
            Error::invalid(format!(
                "invalid hardlink {} -> {}",
                show(path),
                show(&header.link)
            ))
        };
        let target = clean(&header.link)
            .filter(|t| !t.is_empty())
            .ok_or_else(escapes)?;
        if target == path {
            return Err(escapes());
        }
        let (target_parent, target_name) = split(&target);
        let missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let target_fd = match dirfd::open_dir_beneath(self.root, target_parent, Symlinks::Refuse) {
            Err(e) if missing(&e) => return self.link_below(target, path),
            Err(e)
                if matches!(
                    Errno::from_io_error(&e),
                    Some(Errno::LOOP | Errno::XDEV | Errno::NOTDIR)
                ) =>
            {
                return Err(escapes());
            }
            other => other.map_err(|e| failed(e, path))?,
        };
        match dirfd::stat(&target_fd, target_name) {
            Err(e) if missing(&e) => return self.link_below(target, path),
            Err(e) => return Err(failed(e, path)),
            Ok(stat)
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    || dirfd::is_whiteout(&stat) =>
            {
                return Err(escapes());
            }
            Ok(_) => {}
        }
        self.replacing(parent, name, path, || {
            dirfd::make_link(&target_fd, target_name, parent, name)
        })
    }

    fn link_below(&mut self, target: Vec<u8>, path: &[u8]) -> Result<()> {
        self.remember(&target)?;
        self.remember(path)?;
        self.out.lower_links.push((target, path.to_vec()));
        Ok(())
    }

    fn symlink(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        header: &Header,
    ) -> Result<()> {
        // Docker refuses links that point above the root; in a container they would end at the root, so nobody needs them.
        let relative = !header.link.starts_with(b"/");
        let from_root = [split(path).0, b"/", &header.link].concat();
        if header.link.is_empty() || (relative && clean(&from_root).is_none()) {
            return Err(Error::invalid(format!(
                "invalid symlink {} -> {}",
                show(path),
                show(&header.link)
            )));
        }
        self.replacing(parent, name, path, || {
            dirfd::make_symlink(parent, name, &header.link)
        })?;
        dirfd::set_owner(parent, name, header.uid, header.gid).map_err(|e| failed(e, path))?;
        self.named_xattrs(parent, name, path, header)?;
        dirfd::set_time(parent, name, header.mtime.0, header.mtime.1).map_err(|e| failed(e, path))
    }

    fn node(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8], header: &Header) -> Result<()> {
        let (major, minor) = header.device;
        let node = match header.kind {
            Kind::Character => Node::Character { major, minor },
            Kind::Block => Node::Block { major, minor },
            _ => Node::Fifo,
        };
        if node != Node::Fifo && (major > MAJOR_LIMIT || minor > MINOR_LIMIT) {
            return Err(Error::invalid(format!(
                "invalid device number {major}:{minor} of {}",
                show(path)
            )));
        }
        self.replacing(parent, name, path, || {
            dirfd::make_node(parent, name, node, header.mode & 0o777)
        })?;
        dirfd::set_owner(parent, name, header.uid, header.gid).map_err(|e| failed(e, path))?;
        dirfd::set_mode(parent, name, header.mode).map_err(|e| failed(e, path))?;
        self.named_xattrs(parent, name, path, header)?;
        dirfd::set_time(parent, name, header.mtime.0, header.mtime.1).map_err(|e| failed(e, path))
    }

    fn folder(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        header: &Header,
    ) -> Result<()> {
        match dirfd::make_dir(parent, name, 0o755) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let stat = dirfd::stat(parent, name).map_err(|e| failed(e, path))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    dirfd::remove(parent, name, false).map_err(|e| failed(e, path))?;
                    dirfd::make_dir(parent, name, 0o755).map_err(|e| failed(e, path))?;
                    if dirfd::is_whiteout(&stat) {
                        self.set_opaque(parent, name, path)?;
                    }
                }
            }
            other => other.map_err(|e| failed(e, path))?,
        }
        self.out.implied.remove(path);
        let fd =
            dirfd::open_dir_beneath(parent, name, Symlinks::Refuse).map_err(|e| failed(e, path))?;
        self.folder_metadata(&fd, header, path)?;
        self.remember(path)?;
        self.folders.push((path.to_vec(), header.mtime));
        Ok(())
    }

    fn folder_metadata(&self, folder: &OwnedFd, header: &Header, path: &[u8]) -> Result<()> {
        dirfd::set_owner(folder, b".", header.uid, header.gid).map_err(|e| failed(e, path))?;
        dirfd::set_mode(folder, b".", header.mode).map_err(|e| failed(e, path))?;
        for (key, value) in &header.xattrs {
            if let Some(key) = wanted_xattr(key) {
                settle_xattr(key, path, || dirfd::set_xattr(folder, b"", key, value))?;
            }
        }
        Ok(())
    }

    fn named_xattrs(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        header: &Header,
    ) -> Result<()> {
        for (key, value) in &header.xattrs {
            if let Some(key) = wanted_xattr(key) {
                settle_xattr(key, path, || dirfd::set_xattr(parent, name, key, value))?;
            }
        }
        Ok(())
    }

    /// A whiteout hides what lies below; what this same layer brings stays, in whichever order they come.
    fn whiteout(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        hidden: &[u8],
        path: &[u8],
    ) -> Result<()> {
        if name == WHITEOUT_OPAQUE {
            if split(path).0.is_empty() {
                // overlayfs does not look for the mark on the root of a layer.
                self.out.opaque_root = true;
            }
            return dirfd::set_xattr(parent, b"", OPAQUE_KEY, b"y").map_err(|e| failed(e, path));
        }
        if !dirfd::is_single_name(hidden) {
            return Err(Error::invalid(format!("invalid whiteout {}", show(path))));
        }
        match dirfd::make_node(parent, hidden, dirfd::WHITEOUT, 0) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let stat = dirfd::stat(parent, hidden).map_err(|e| failed(e, path))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return self.set_opaque(parent, hidden, path);
                }
                Ok(())
            }
            other => other.map_err(|e| failed(e, path)),
        }
    }

    fn set_opaque(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        dirfd::set_xattr(parent, name, OPAQUE_KEY, b"y").map_err(|e| failed(e, path))
    }

    fn finish(&mut self) -> Result<()> {
        self.parent = None;
        // Deepest last made, first timed: nothing changes a folder's time after this.
        for (path, (seconds, nanos)) in self.folders.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match dirfd::open_beneath(self.root, path, flags, 0, Symlinks::Beneath) {
                Ok(fd) => {
                    dirfd::set_file_time(&fd, *seconds, *nanos).map_err(|e| failed(e, path))?
                }
                // Replaced by something else later in the tar.
                Err(_) => continue,
            }
        }
        self.folders = Vec::new();
        Ok(())
    }
}

fn failed(error: io::Error, path: &[u8]) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::XDEV | Errno::LOOP) => leaves(error, path),
        Some(Errno::NAMETOOLONG | Errno::NOTDIR | Errno::ISDIR | Errno::INVAL | Errno::FBIG) => {
            Error::invalid(format!("unpacking {}", show(path))).with_source(error)
        }
        _ => Error::internal(format!("unpacking {}", show(path))).with_source(error),
    }
}

/// The kernel refused to walk to the parent.
fn leaves(error: io::Error, path: &[u8]) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::XDEV | Errno::LOOP) => Error::invalid(format!(
            "invalid path {}: it goes through a symbolic link that leads out of the layer",
            show(path)
        )),
        _ => Error::invalid(format!("unpacking {}", show(path))).with_source(error),
    }
}

/// Attributes that steer overlayfs itself would let an image point into other layers; those are ours to set.
fn wanted_xattr(key: &[u8]) -> Option<&[u8]> {
    let known = [&b"user."[..], b"security.", b"trusted.", b"system."];
    let overlay = [&b"trusted.overlay."[..], b"user.overlay."];
    let wanted = key.len() <= 255
        && !key.contains(&0)
        && known
            .iter()
            .any(|k| key.starts_with(k) && key.len() > k.len())
        && !overlay.iter().any(|k| key.starts_with(k));
    wanted.then_some(key)
}

/// A file system without attributes, or a kind of file that cannot carry this one, is no reason to refuse an image (Docker warns).
fn settle_xattr(key: &[u8], path: &[u8], set: impl FnOnce() -> io::Result<()>) -> Result<()> {
    match set() {
        Ok(()) => Ok(()),
        Err(e)
            if matches!(Errno::from_io_error(&e), Some(Errno::NOTSUP | Errno::PERM))
                && key != b"security.capability" =>
        {
            tracing::debug!(key = %key.escape_ascii(), path = %path.escape_ascii(), "extended attribute not kept");
            Ok(())
        }
        Err(e) => Err(Error::invalid(format!(
            "setting the extended attribute {} of {}",
            show(key),
            show(path)
        ))
        .with_source(e)),
    }
}

fn write_sparse<R: BufRead>(
    file: &File,
    map: &[(u64, u64)],
    stream: &mut TarStream<R>,
    path: &[u8],
) -> Result<(), BodyError> {
    let mut fragments = map.iter().copied();
    let (mut offset, mut left) = (0, 0u64);
    stream.body(|mut piece| {
        while !piece.is_empty() {
            while left == 0 {
                // The reader checked that fragments and stored bytes add up.
                let Some(next) = fragments.next() else {
                    return Err(BodyError(Error::invalid("sparse map too short")));
                };
                (offset, left) = next;
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            file.write_all_at(&piece[..take], offset)
                .map_err(|e| BodyError(failed(e, path)))?;
            offset += take as u64;
            left -= take as u64;
            piece = &piece[take..];
        }
        Ok(())
    })
}

impl Unpacked {
    /// A layer that was not unpacked but written as a folder: it depends on nothing below.
    pub(crate) fn written(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }
    /// The layer's content depends on the layers below it.
    pub(crate) fn is_dependent(&self) -> bool {
        !self.implied.is_empty() || !self.lower_links.is_empty()
    }

    /// Completes a dependent layer in `root` from the folders below it, topmost first: implied folders get the owner, mode
    /// and attributes that they have there (a mount would show ours), links get their files, as copying up would do.
    pub(crate) fn finish_over(
        &mut self,
        root: &OwnedFd,
        lowers: &[PathBuf],
        budget: &Budget,
    ) -> Result<()> {
        let lowers = lowers
            .iter()
            .map(|folder| open_folder(folder))
            .collect::<Result<Vec<_>>>()?;
        for path in std::mem::take(&mut self.implied) {
            adopt_folder(root, &lowers, &path)?;
        }
        for (target, name) in std::mem::take(&mut self.lower_links) {
            self.size += link_from_below(root, &lowers, &target, &name, budget)?;
        }
        Ok(())
    }
}

/// What a mount of the lower layers would show at `path`: the layer's folder and whether it is one.
fn look_below<'a>(
    lowers: &'a [OwnedFd],
    path: &[u8],
) -> io::Result<Option<(&'a OwnedFd, rustix::fs::Stat)>> {
    for lower in lowers {
        let mut opaque = false;
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(i, _)| i)
            .chain([path.len()]);
        for end in ends {
            let (parent, name) = split(&path[..end]);
            let Ok(parent) = dirfd::open_dir_beneath(lower, parent, Symlinks::Refuse) else {
                return Ok(None);
            };
            let stat = match dirfd::stat(&parent, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            };
            if dirfd::is_whiteout(&stat) {
                return Ok(None);
            }
            if end == path.len() {
                return Ok(Some((lower, stat)));
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(None);
            }
            opaque |= dirfd::get_xattr(&parent, name, OPAQUE_KEY)?.is_some();
        }
        if opaque {
            return Ok(None);
        }
    }
    Ok(None)
}

fn adopt_folder(root: &OwnedFd, lowers: &[OwnedFd], path: &[u8]) -> Result<()> {
    let Some((lower, stat)) = look_below(lowers, path).map_err(|e| failed(e, path))? else {
        return Ok(());
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    let ours =
        dirfd::open_dir_beneath(root, path, Symlinks::Refuse).map_err(|e| failed(e, path))?;
    let theirs =
        dirfd::open_dir_beneath(lower, path, Symlinks::Refuse).map_err(|e| failed(e, path))?;
    copy_metadata(&theirs, b"", &stat, &ours, b"").map_err(|e| failed(e, path))
}

/// An empty name means the folder itself.
fn copy_metadata(
    from: &OwnedFd,
    from_name: &[u8],
    stat: &rustix::fs::Stat,
    to: &OwnedFd,
    name: &[u8],
) -> io::Result<()> {
    let own = |name| if name == b"" { &b"."[..] } else { name };
    dirfd::set_owner(to, own(name), stat.st_uid, stat.st_gid)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        dirfd::set_mode(to, own(name), stat.st_mode)?;
    }
    for key in dirfd::list_xattrs(from, from_name)? {
        if wanted_xattr(&key).is_some()
            && let Some(value) = dirfd::get_xattr(from, from_name, &key)?
        {
            dirfd::set_xattr(to, name, &key, &value)?;
        }
    }
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    dirfd::set_time(to, own(name), stat.st_mtime, nanos)
}

/// Copies `target` from below into the layer (with the folders it lies in) and links `name` to it. Returns the bytes copied.
fn link_from_below(
    root: &OwnedFd,
    lowers: &[OwnedFd],
    target: &[u8],
    name: &[u8],
    budget: &Budget,
) -> Result<u64> {
    let found = look_below(lowers, target).map_err(|e| failed(e, target))?;
    let Some((lower, stat)) = found else {
        return Err(Error::invalid(format!(
            "link {} {}: no such file or directory",
            show(target),
            show(name)
        )));
    };
    let (parent, file) = split(target);
    for end in parent
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'/')
        .map(|(i, _)| i)
        .chain([parent.len()])
    {
        let folder = &parent[..end];
        let (above, part) = split(folder);
        if folder.is_empty() {
            continue;
        }
        let above = dirfd::open_dir_beneath(root, above, Symlinks::Refuse)
            .map_err(|e| leaves(e, target))?;
        match dirfd::make_dir(&above, part, 0o755) {
            Ok(()) => adopt_folder(root, lowers, folder)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e, folder)),
        }
    }
    let from =
        dirfd::open_dir_beneath(lower, parent, Symlinks::Refuse).map_err(|e| failed(e, target))?;
    let to =
        dirfd::open_dir_beneath(root, parent, Symlinks::Refuse).map_err(|e| leaves(e, target))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // A link before this one may have copied it already.
    let mut copied = 0;
    let copy = match kind {
        FileType::RegularFile => copy_file(&from, &to, file, &stat, budget, &mut copied),
        FileType::Symlink => rustix::fs::readlinkat(&from, file, Vec::new())
            .map_err(io::Error::from)
            .and_then(|link| dirfd::make_symlink(&to, file, link.as_bytes()))
            .map_err(|e| failed(e, target)),
        FileType::Fifo => {
            dirfd::make_node(&to, file, Node::Fifo, 0o600).map_err(|e| failed(e, target))
        }
        _ => {
            return Err(Error::invalid(format!(
                "invalid hardlink {} -> {}",
                show(name),
                show(target)
            )));
        }
    };
    match copy {
        Ok(()) => copy_metadata(&from, file, &stat, &to, file).map_err(|e| failed(e, target))?,
        Err(e) if already_there(&e) => {}
        Err(e) => return Err(e),
    }
    let (name_parent, link_name) = split(name);
    let name_dir = dirfd::open_dir_beneath(root, name_parent, Symlinks::Beneath)
        .map_err(|e| leaves(e, name))?;
    match dirfd::make_link(&to, file, &name_dir, link_name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            dirfd::remove(&name_dir, link_name, false).map_err(|e| failed(e, name))?;
            dirfd::make_link(&to, file, &name_dir, link_name).map_err(|e| failed(e, name))?;
        }
        other => other.map_err(|e| failed(e, name))?,
    }
    Ok(copied)
}

fn already_there(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() == io::ErrorKind::AlreadyExists)
}

fn copy_file(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    stat: &rustix::fs::Stat,
    budget: &Budget,
    copied: &mut u64,
) -> Result<()> {
    let out = dirfd::create_file(to.as_fd(), name, 0o600).map_err(|e| failed(e, name))?;
    budget.take(u64::try_from(stat.st_size).unwrap_or(0))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    let source =
        dirfd::open_beneath(from, name, flags, 0, Symlinks::Refuse).map_err(|e| failed(e, name))?;
    *copied =
        io::copy(&mut File::from(source), &mut File::from(out)).map_err(|e| failed(e, name))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_paths() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("/a//b/", Some("a/b")),
            ("./a/./b", Some("a/b")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("/", Some("")),
            ("", Some("")),
            ("..", None),
            ("a/../..", None),
            ("/../a", None),
            ("a/../../b", None),
            ("...", Some("...")),
        ] {
            assert_eq!(
                clean(path.as_bytes()).as_deref(),
                expected.map(str::as_bytes),
                "{path}"
            );
        }
    }
}
