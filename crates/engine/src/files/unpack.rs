//! Extracts a foreign tar into a folder of a container. Whatever the tar or a process in the container does with links, nothing outside
//! of the container's root is touched.

use super::tree::{self, Ownership, kind};
use gantry_base::{Error, Result, ResultExt};
use gantry_image::tarstream::{Header, Kind, TarError, TarStream};
use gantry_linux::{dirfd::open_entry, mount::open_in_root};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::io::{self, BufRead, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unpack {
    /// Refuse to put a folder over a file or a file over a folder.
    pub(crate) keep_kinds: bool,
    /// Everything belongs to this user and group instead of the tar's.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Undoes gzip or zstd when the first bytes show it.
pub(crate) fn decompressed<'a>(tar: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut tar = io::BufReader::with_capacity(64 << 10, tar);
    let start = tar.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(tar)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(tar)?),
        _ => Box::new(tar),
    })
}

/// Entries that one archive may have.
const ENTRY_LIMIT: u64 = 10_000_000;

/// Unpacks `tar` into `folder` (a path inside `root`, no links resolved yet).
pub(crate) fn unpack(
    root: BorrowedFd<'_>,
    folder: &Path,
    tar: impl Read,
    how: Unpack,
) -> Result<()> {
    let plain = decompressed(tar).map_err(|e| malformed(TarError::Read(e)))?;
    let mut archive = TarStream::new(io::BufReader::with_capacity(128 << 10, plain), ENTRY_LIMIT);
    let mut state = State {
        root,
        folder,
        how,
        parent: None,
        folders: Vec::new(),
    };
    while let Some(header) = archive.next_entry().map_err(malformed)? {
        state.entry(&header, &mut archive)?;
    }
    state.finish()
}

fn malformed(e: TarError) -> Error {
    Error::invalid("Error processing tar file").with_source(e)
}

/// Why a file's content was not written.
enum BodyError {
    Tar(TarError),
    File(io::Error),
}

impl From<TarError> for BodyError {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

/// Writes the present entry's bytes where they belong.
fn write_body(
    archive: &mut TarStream<impl BufRead>,
    header: &Header,
    file: &std::fs::File,
) -> Result<(), BodyError> {
    let whole = [(0, header.stored)];
    let mut pieces = header.sparse.as_deref().unwrap_or(&whole).iter().copied();
    let (mut at, mut left) = pieces.next().unwrap_or_default();
    archive.body(|mut bytes| {
        while !bytes.is_empty() {
            while left == 0 {
                // The reader hands out as many bytes as the pieces have.
                (at, left) = pieces
                    .next()
                    .ok_or_else(|| BodyError::File(io::Error::from(io::ErrorKind::InvalidData)))?;
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            file.write_all_at(&bytes[..length], at)
                .map_err(BodyError::File)?;
            bytes = &bytes[length..];
            (at, left) = (at + length as u64, left - length as u64);
        }
        Ok::<(), BodyError>(())
    })?;
    if header.sparse.is_some() {
        file.set_len(header.size).map_err(BodyError::File)?;
    }
    Ok(())
}

/// Folders whose time of change is set at the end.
const FOLDER_LIMIT: usize = 1 << 20;

struct State<'a> {
    root: BorrowedFd<'a>,
    folder: &'a Path,
    how: Unpack,
    /// The folder of the last entry: archives come folder by folder.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Writing into a folder changes its time, so times come last.
    folders: Vec<(PathBuf, Ownership)>,
}

impl State<'_> {
    fn entry(&mut self, header: &Header, archive: &mut TarStream<impl BufRead>) -> Result<()> {
        let path = inside(&header.path).ok_or_else(|| {
            let name = String::from_utf8_lossy(&header.path).into_owned();
            Error::invalid(format!(
                "{name:?} is outside of {:?}",
                self.folder.display().to_string()
            ))
        })?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The folder itself: Docker leaves it as it is.
            return Ok(());
        };
        let whole = self.folder.join(&path);
        let text = || format!("extracting {}", whole.display());
        let parent = self
            .parent(path.parent().unwrap_or(Path::new("")))
            .context(text)?;
        let keep_folder = self.make_room(&parent, &name, header.kind, &whole)?;
        let private = Mode::from_raw_mode(0o600);
        let made = match header.kind {
            Kind::Directory => {
                if !keep_folder {
                    rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700))
                        .context(text)?;
                }
                tree::open_folder(&parent, &name).context(text)?
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file =
                    std::fs::File::from(open_entry(&parent, &name, flags, private).context(text)?);
                write_body(archive, header, &file).map_err(|e| match e {
                    BodyError::Tar(e) => malformed(e),
                    BodyError::File(e) => Error::internal(text()).with_source(e),
                })?;
                file.into()
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&header.link), &parent, &name)
                    .context(text)?;
                // Later entries must see the link, not what a kept descriptor says.
                self.parent = None;
                open_entry(&parent, &name, OFlags::PATH, Mode::empty()).context(text)?
            }
            Kind::HardLink => {
                let target = OsStr::from_bytes(&header.link);
                return self.hard_link(target, &parent, &name).context(text);
            }
            Kind::Character | Kind::Block | Kind::Fifo => {
                let file_type = match header.kind {
                    Kind::Character => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = match header.kind {
                    Kind::Fifo => 0,
                    _ => rustix::fs::makedev(header.device.0, header.device.1),
                };
                rustix::fs::mknodat(&parent, &name, file_type, private, device).context(text)?;
                open_entry(&parent, &name, OFlags::PATH, Mode::empty()).context(text)?
            }
        };
        let ownership = self.ownership(header);
        ownership.apply(&made, &attributes(header)).context(text)?;
        if header.kind == Kind::Directory && self.folders.len() < FOLDER_LIMIT {
            self.folders.push((whole, ownership));
        }
        Ok(())
    }

    /// Sets the folders' times, deepest last seen first. Links that took a folder's place meanwhile are not followed out of the root.
    fn finish(self) -> Result<()> {
        for (path, ownership) in self.folders.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            if let Ok(folder) = open_in_root(self.root, path, flags) {
                ownership
                    .apply_times(folder)
                    .context(|| format!("setting the time of {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn ownership(&self, header: &Header) -> Ownership {
        let (uid, gid) = self.how.owner.unwrap_or((header.uid, header.gid));
        let link = header.kind == Kind::Symlink;
        Ownership {
            uid,
            gid,
            mode: (!link).then_some(header.mode & 0o7777),
            mtime: (header.mtime.0, header.mtime.1.into()),
        }
    }

    /// The folder `path` below the destination, made where missing.
    fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((last, folder)) = &self.parent
            && last == path
        {
            return folder.try_clone();
        }
        let folder = self.make_folder(&self.folder.join(path))?;
        self.parent = Some((path.to_owned(), folder.try_clone()?));
        Ok(folder)
    }

    fn make_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        match open_in_root(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let parent = self.make_folder(parent)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                if let Some((uid, gid)) = self.how.owner {
                    let (uid, gid) = (
                        rustix::fs::Uid::from_raw(uid),
                        rustix::fs::Gid::from_raw(gid),
                    );
                    rustix::fs::chownat(
                        &parent,
                        name,
                        Some(uid),
                        Some(gid),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                }
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        tree::open_folder(&parent, name)
    }

    /// Removes what is in the way. True when a folder meets a folder and stays.
    fn make_room(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        new: Kind,
        whole: &Path,
    ) -> Result<bool> {
        let Ok(stat) = tree::stat_child(parent, name) else {
            return Ok(false);
        };
        let (old_is_folder, new_is_folder) =
            (kind(&stat) == FileType::Directory, new == Kind::Directory);
        if old_is_folder && new_is_folder {
            return Ok(true);
        }
        let (path, into) = (
            whole.display().to_string(),
            self.folder.display().to_string(),
        );
        if self.how.keep_kinds && old_is_folder {
            return Err(Error::invalid(format!(
                "cannot overwrite directory {path:?} with non-directory {into:?}"
            )));
        }
        if self.how.keep_kinds && new_is_folder {
            return Err(Error::invalid(format!(
                "cannot overwrite non-directory {path:?} with directory {into:?}"
            )));
        }
        self.parent = None;
        let removed = if old_is_folder {
            // By way of the descriptor, so that no link on the path can be swapped.
            std::fs::remove_dir_all(Path::new(&tree::proc_path(parent)).join(name))
        } else {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(io::Error::from)
        };
        removed.context(|| format!("replacing {path}"))?;
        Ok(false)
    }

    fn hard_link(&mut self, target: &OsStr, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let outside = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("invalid hardlink {name:?} -> {target:?}"),
            )
        };
        let target = inside(target.as_bytes()).ok_or_else(outside)?;
        let first = target.file_name().ok_or_else(outside)?;
        let folder = self.folder.join(target.parent().unwrap_or(Path::new("")));
        let folder = open_in_root(self.root, &folder, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(rustix::fs::linkat(
            folder,
            first,
            parent,
            name,
            AtFlags::empty(),
        )?)
    }
}

/// A name in an archive as a path below the destination: absolute ones count from there, `..` may not climb out.
fn inside(raw: &[u8]) -> Option<PathBuf> {
    if raw.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(raw)).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

/// The kinds that we also write. A link's own attributes say nothing.
fn attributes(header: &Header) -> Vec<(String, Vec<u8>)> {
    let own = |name: &str| {
        name == "security.capability"
            || name.starts_with("user.")
            || name.starts_with("system.posix_acl_")
    };
    let named = header
        .xattrs
        .iter()
        .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)));
    named
        .filter(|(name, _)| own(name))
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
}
