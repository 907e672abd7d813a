//! Extracts a foreign tar into a folder of a container. Whatever the tar or a process in the container does with links, nothing outside
//! of the container's root is touched.

use super::tree::{self, Ownership, kind};
use gantry_base::{Error, Result, ResultExt};
use gantry_linux::{dirfd::open_entry, mount::open_in_root};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

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

/// Unpacks `tar` into `folder` (a path inside `root`, no links resolved yet).
pub(crate) fn unpack(
    root: BorrowedFd<'_>,
    folder: &Path,
    tar: impl Read,
    how: Unpack,
) -> Result<()> {
    let mut archive =
        tar::Archive::new(decompressed(tar).context(|| "reading the archive".into())?);
    let mut state = State {
        root,
        folder,
        how,
        parent: None,
        folders: Vec::new(),
    };
    for entry in archive
        .entries()
        .kind(gantry_base::ErrorKind::InvalidArgument, || {
            "Error processing tar file".into()
        })?
    {
        let entry = entry.kind(gantry_base::ErrorKind::InvalidArgument, || {
            "Error processing tar file".into()
        })?;
        state.entry(entry)?;
    }
    state.finish()
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
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = inside(&raw).ok_or_else(|| {
            let name = String::from_utf8_lossy(&raw).into_owned();
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
        let header = entry.header();
        let ownership = self
            .ownership(header)
            .kind(gantry_base::ErrorKind::InvalidArgument, text)?;
        let keep_folder = self.make_room(&parent, &name, kind, &whole)?;
        let made = match kind {
            EntryType::Directory => {
                if !keep_folder {
                    rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700))
                        .context(text)?;
                }
                tree::open_folder(&parent, &name).context(text)?
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file =
                    open_entry(&parent, &name, flags, Mode::from_raw_mode(0o600)).context(text)?;
                let mut file = std::fs::File::from(file);
                io::copy(&mut entry, &mut file).context(text)?;
                file.into()
            }
            EntryType::Symlink => {
                let target = link_name(&entry, &whole)?;
                rustix::fs::symlinkat(&target, &parent, &name).context(text)?;
                // Later entries must see the link, not what a kept descriptor says.
                self.parent = None;
                open_entry(&parent, &name, OFlags::PATH, Mode::empty()).context(text)?
            }
            EntryType::Link => {
                let target = link_name(&entry, &whole)?;
                return self.hard_link(&target, &parent, &name).context(text);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let file_type = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                let device = rustix::fs::makedev(
                    number(header.device_major()),
                    number(header.device_minor()),
                );
                let device = if kind == EntryType::Fifo { 0 } else { device };
                rustix::fs::mknodat(
                    &parent,
                    &name,
                    file_type,
                    Mode::from_raw_mode(0o600),
                    device,
                )
                .context(text)?;
                open_entry(&parent, &name, OFlags::PATH, Mode::empty()).context(text)?
            }
            other => {
                return Err(Error::invalid(format!(
                    "unhandled tar header type {} for {}",
                    other.as_byte(),
                    whole.display()
                )));
            }
        };
        ownership
            .apply(&made, &attributes(&mut entry).context(text)?)
            .context(text)?;
        if kind == EntryType::Directory && self.folders.len() < FOLDER_LIMIT {
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

    fn ownership(&self, header: &tar::Header) -> io::Result<Ownership> {
        let small =
            |id: u64| u32::try_from(id).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (uid, gid) = match self.how.owner {
            Some(owner) => owner,
            None => (small(header.uid()?)?, small(header.gid()?)?),
        };
        let link = header.entry_type() == EntryType::Symlink;
        Ok(Ownership {
            uid,
            gid,
            mode: if link {
                None
            } else {
                Some(header.mode()? & 0o7777)
            },
            mtime: (i64::try_from(header.mtime()?).unwrap_or(0), 0),
        })
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
        new: EntryType,
        whole: &Path,
    ) -> Result<bool> {
        let Ok(stat) = tree::stat_child(parent, name) else {
            return Ok(false);
        };
        let (old_is_folder, new_is_folder) = (
            kind(&stat) == FileType::Directory,
            new == EntryType::Directory,
        );
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

fn link_name(entry: &tar::Entry<'_, impl Read>, whole: &Path) -> Result<OsString> {
    let name = entry
        .link_name_bytes()
        .ok_or_else(|| Error::invalid(format!("{} is a link to nothing", whole.display())))?;
    Ok(OsString::from_vec(name.into_owned()))
}

/// `SCHILY.xattr.*` of the kinds that we also write.
fn attributes(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else {
        return Ok(found);
    };
    for extension in extensions {
        let extension = extension?;
        if let Ok(key) = extension.key()
            && let Some(name) = key.strip_prefix("SCHILY.xattr.")
            && (name == "security.capability"
                || name.starts_with("user.")
                || name.starts_with("system.posix_acl_"))
        {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}
