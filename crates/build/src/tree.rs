//! Files that COPY takes: found by pattern in a root folder, hashed for the cache's key, copied into a layer.
//!
//! Invariant: a source is reached through `openat2` within its root, a destination within the layer's root; a symbolic link
//! leads nowhere else.

use crate::glob::{self, Ignore};
use gantry_base::{Error, Result, ResultExt};
use gantry_image::steps::KeyHasher;
use gantry_linux::dirfd::{self, open_entry};
use gantry_linux::mount::open_in_root;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Folders within folders; each level holds one descriptor.
const DEPTH_LIMIT: usize = 400;
/// Entries of one folder at most.
const ENTRY_LIMIT: usize = 4 << 20;
/// Sources that one pattern may find.
const MATCH_LIMIT: usize = 100_000;

/// One thing to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Within the root, clean, without leading slash; empty for the root itself.
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
}

/// How things are copied.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// Owner of everything; `None` keeps the source's.
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) chmod: Option<Chmod>,
    pub(crate) exclude: Ignore,
    /// Modification time of everything that is made.
    pub(crate) no_xattrs: bool,
}

/// `--chmod`: octal, or `u=rwX,go=rX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Change>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bits of 0o700, 0o070, 0o007.
    who: u32,
    operator: char,
    read: bool,
    write: bool,
    execute: bool,
    /// `X`: execute for folders and what somebody may execute already.
    conditional: bool,
    set_id: bool,
    sticky: bool,
}

impl Chmod {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            )
        };
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(Self::Octal(mode)),
                _ => Err(bad()),
            };
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let split = clause.find(['+', '-', '=']).ok_or_else(bad)?;
            let (who, rest) = clause.split_at(split);
            let mut mask = 0;
            for c in who.chars() {
                mask |= match c {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => return Err(bad()),
                };
            }
            let mut change = Change {
                who: if mask == 0 { 0o777 } else { mask },
                operator: rest.chars().next().ok_or_else(bad)?,
                read: false,
                write: false,
                execute: false,
                conditional: false,
                set_id: false,
                sticky: false,
            };
            for c in rest.chars().skip(1) {
                match c {
                    'r' => change.read = true,
                    'w' => change.write = true,
                    'x' => change.execute = true,
                    'X' => change.conditional = true,
                    's' => change.set_id = true,
                    't' => change.sticky = true,
                    _ => return Err(bad()),
                }
            }
            changes.push(change);
        }
        Ok(Self::Symbolic(changes))
    }

    fn apply(&self, mode: u32, folder: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(changes) => changes.iter().fold(mode, |mode, change| {
                let mut bits = 0;
                for (on, bit) in [
                    (change.read, 0o444),
                    (change.write, 0o222),
                    (change.execute, 0o111),
                    (change.conditional && (folder || mode & 0o111 != 0), 0o111),
                ] {
                    if on {
                        bits |= bit;
                    }
                }
                bits &= change.who;
                if change.set_id {
                    bits |= if change.who & 0o700 != 0 { 0o4000 } else { 0 };
                    bits |= if change.who & 0o070 != 0 { 0o2000 } else { 0 };
                }
                if change.sticky {
                    bits |= 0o1000;
                }
                match change.operator {
                    '+' => mode | bits,
                    '-' => mode & !bits,
                    _ => (mode & !change.who) | bits,
                }
            }),
        }
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn stat_entry(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() == ENTRY_LIMIT {
            return Err(io::Error::other(format!(
                "a folder has more than {ENTRY_LIMIT} entries"
            )));
        }
        names.push(OsString::from_vec(name));
    }
    names.sort_unstable();
    Ok(names)
}

fn open_folder(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    open_entry(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

fn open_root_folder(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// A path of a Dockerfile below a root: clean, `..` does not lead above it.
pub(crate) fn clean(text: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// The files that `text` means in `root`, in order of their names. A link is followed to what it names inside of the root.
/// `None`: there is nothing of that name.
pub(crate) fn find(root: BorrowedFd<'_>, text: &str) -> Result<Option<Vec<Found>>> {
    let clean = clean(text);
    let failed = |e: io::Error| Error::internal(format!("looking for {text}")).with_source(e);
    if !glob::has_wildcard(text) {
        return match stat_in_root(root, &clean) {
            Ok(stat) => Ok(Some(vec![Found {
                path: clean,
                is_folder: kind(&stat) == FileType::Directory,
            }])),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(failed(e)),
        };
    }
    let mut reached = vec![PathBuf::new()];
    for part in clean.components() {
        let name = part.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for path in &reached {
            if !glob::has_wildcard(&name) {
                next.push(path.join(&*name));
                continue;
            }
            let folder = match open_root_folder(root, path) {
                Ok(folder) => folder,
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(failed(e)),
            };
            let pattern: Vec<char> = name.chars().collect();
            for entry in names(&folder).map_err(failed)? {
                let text: Vec<char> = entry.to_string_lossy().chars().collect();
                if glob::name_matches(&pattern, &text) {
                    next.push(path.join(entry));
                }
            }
            if next.len() > MATCH_LIMIT {
                return Err(Error::invalid(format!(
                    "{text:?} finds more than {MATCH_LIMIT} files"
                )));
            }
        }
        reached = next;
    }
    let mut found = Vec::new();
    for path in reached {
        match stat_in_root(root, &path) {
            Ok(stat) => found.push(Found {
                path,
                is_folder: kind(&stat) == FileType::Directory,
            }),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok((!found.is_empty()).then_some(found))
}

fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || e.raw_os_error() == Some(40)
}

fn stat_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<Stat> {
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    let handle = open_in_root(root, path, OFlags::PATH)?;
    Ok(rustix::fs::fstat(handle)?)
}

/// Feeds a key with everything that a copy of `found` would bring.
pub(crate) fn hash(
    root: BorrowedFd<'_>,
    found: &Found,
    how: &How,
    key: &mut KeyHasher,
) -> Result<()> {
    let failed =
        |e: io::Error| Error::internal(format!("reading {}", found.path.display())).with_source(e);
    if found.is_folder {
        let folder = open_root_folder(root, &found.path).map_err(failed)?;
        key.part(b"folder");
        hash_level(folder.as_fd(), "", how, key, 0).map_err(failed)?;
    } else {
        let name = found.path.file_name().unwrap_or_default();
        key.part(b"file").part(name.as_bytes());
        let handle =
            open_in_root(root, &found.path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
        let stat = rustix::fs::fstat(&handle).map_err(|e| failed(e.into()))?;
        hash_meta(&stat, how, key);
        if kind(&stat) == FileType::RegularFile {
            hash_xattrs(handle.as_fd(), b"", how, key);
            hash_file(&mut File::from(handle), key).map_err(failed)?;
        }
    }
    Ok(())
}

fn hash_meta(stat: &Stat, how: &How, key: &mut KeyHasher) {
    let owner = how.owner.unwrap_or((stat.st_uid, stat.st_gid));
    let fields: [u64; 4] = [
        u64::from(stat.st_mode),
        u64::from(owner.0),
        u64::from(owner.1),
        stat.st_rdev,
    ];
    for field in fields {
        key.raw(&field.to_le_bytes());
    }
}

fn hash_xattrs(dir: BorrowedFd<'_>, name: &[u8], how: &How, key: &mut KeyHasher) {
    for (name, value) in xattrs(dir, name, how) {
        key.part(&name).part(&value);
    }
}

fn hash_file(file: &mut File, key: &mut KeyHasher) -> io::Result<()> {
    let mut content = KeyHasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => drop(content.raw(&buffer[..read])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    key.part(content.finish().to_string().as_bytes());
    Ok(())
}

fn hash_level(
    dir: BorrowedFd<'_>,
    prefix: &str,
    how: &How,
    key: &mut KeyHasher,
    depth: usize,
) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(too_deep());
    }
    for name in names(dir)? {
        let path = join(prefix, &name);
        let stat = stat_entry(dir, &name)?;
        let is_folder = kind(&stat) == FileType::Directory;
        let out = how.exclude.excludes(&path);
        if out && !(is_folder && how.exclude.has_exceptions()) {
            continue;
        }
        if !out {
            key.part(path.as_bytes());
            hash_meta(&stat, how, key);
            hash_xattrs(dir, name.as_bytes(), how, key);
        }
        match kind(&stat) {
            FileType::Directory => {
                let folder = open_folder(dir, &name)?;
                hash_level(folder.as_fd(), &path, how, key, depth + 1)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                hash_file(
                    &mut File::from(open_entry(dir, &name, flags, Mode::empty())?),
                    key,
                )?;
            }
            FileType::Symlink => {
                key.part(rustix::fs::readlinkat(dir, &name, Vec::new())?.as_bytes());
            }
            _ => {}
        }
    }
    Ok(())
}

fn join(prefix: &str, name: &OsStr) -> String {
    let name = name.to_string_lossy();
    if prefix.is_empty() {
        name.into_owned()
    } else {
        format!("{prefix}/{name}")
    }
}

fn too_deep() -> io::Error {
    io::Error::other(format!("folders are nested deeper than {DEPTH_LIMIT}"))
}

/// The attributes that belong to a file's content.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8], how: &How) -> Vec<(Vec<u8>, Vec<u8>)> {
    if how.no_xattrs {
        return Vec::new();
    }
    let wanted = |key: &[u8]| {
        key == b"security.capability"
            || key.starts_with(b"user.") && !key.starts_with(b"user.overlay.")
            || key.starts_with(b"system.posix_acl_")
    };
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = dirfd::list_xattrs(dir, name)
        .unwrap_or_default()
        .into_iter()
        .filter(|key| wanted(key))
        .filter_map(|key| {
            let value = dirfd::get_xattr(dir, name, &key).ok()??;
            Some((key, value))
        })
        .collect();
    found.sort();
    found
}

/// Makes a folder and its parents in `root`, as COPY does for its destination: what is missing gets mode 0755 and `owner`.
/// A link on the way is followed inside of the root.
pub(crate) fn make_folders(
    root: BorrowedFd<'_>,
    path: &Path,
    owner: (u32, u32),
) -> io::Result<OwnedFd> {
    match open_root_folder(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut folder = open_root_folder(root, Path::new(""))?;
    let mut reached = PathBuf::new();
    for part in path.components() {
        reached.push(part);
        folder = match open_root_folder(root, &reached) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let name = part.as_os_str();
                match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        dirfd::set_mode(&folder, name.as_bytes(), 0o755)?;
                        if owner != (0, 0) {
                            dirfd::set_owner(&folder, name.as_bytes(), owner.0, owner.1)?;
                        }
                    }
                    // A link to nowhere: what it names is made.
                    Err(rustix::io::Errno::EXIST) => {
                        let target = rustix::fs::readlinkat(&folder, name, Vec::new())?;
                        let target = OsStr::from_bytes(target.as_bytes());
                        let parent = reached.parent().unwrap_or(Path::new(""));
                        let whole = clean(&parent.join(target).to_string_lossy());
                        if whole.starts_with(&reached) {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        make_folders(root, &whole, owner)?;
                    }
                    Err(e) => return Err(e.into()),
                }
                open_root_folder(root, &reached)?
            }
            Err(e) => return Err(e),
        };
    }
    Ok(folder)
}

/// Copies one source into `to` at `destination`. With `into`, the destination is a folder that files keep their names in.
pub(crate) fn copy(
    from: BorrowedFd<'_>,
    found: &Found,
    to: BorrowedFd<'_>,
    destination: &Path,
    into: bool,
    how: &How,
) -> Result<()> {
    let owner = how.owner.unwrap_or((0, 0));
    let failed = |e: io::Error| {
        Error::invalid(format!(
            "copying {} to /{}",
            found.path.display(),
            destination.display()
        ))
        .with_source(e)
    };
    let mut links = Links::new();
    if found.is_folder {
        let source = open_root_folder(from, &found.path).map_err(failed)?;
        let target = match make_folders(to, destination, owner) {
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::invalid(format!(
                    "cannot copy to non-directory: /{}",
                    destination.display()
                )));
            }
            other => other.map_err(failed)?,
        };
        return copy_level(source.as_fd(), target.as_fd(), "", how, 0, &mut links).map_err(failed);
    }
    let name = found.path.file_name().unwrap_or_default().to_owned();
    let is_folder =
        into || stat_in_root(to, destination).is_ok_and(|stat| kind(&stat) == FileType::Directory);
    let (folder, name) = if is_folder {
        (make_folders(to, destination, owner).map_err(failed)?, name)
    } else {
        let destination = followed(to, destination).map_err(failed)?;
        let parent = destination.parent().unwrap_or(Path::new(""));
        let last = destination
            .file_name()
            .ok_or_else(|| Error::invalid("the destination is the root itself"))?;
        (
            make_folders(to, parent, owner).map_err(failed)?,
            last.to_owned(),
        )
    };
    // A link was followed to the file itself, whose folder is opened for the copy.
    let real = followed(from, &found.path).map_err(failed)?;
    let source = open_root_folder(from, real.parent().unwrap_or(Path::new(""))).map_err(failed)?;
    let real_name = real.file_name().unwrap_or_default();
    let stat = stat_entry(&source, real_name).map_err(failed)?;
    copy_entry(
        source.as_fd(),
        real_name,
        &stat,
        folder.as_fd(),
        &name,
        "",
        how,
        0,
        &mut links,
    )
    .map_err(failed)
}

/// Where a path ends once links at its last component are followed. Also of one that does not exist.
fn followed(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path);
        };
        let Ok(folder) = open_root_folder(root, parent) else {
            return Ok(path);
        };
        match stat_entry(&folder, name) {
            Ok(stat) if kind(&stat) == FileType::Symlink => {
                let target = rustix::fs::readlinkat(&folder, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                path = clean(&parent.join(target).to_string_lossy());
            }
            _ => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// First copy of each inode with several names: its folder in the copy and its name there.
type Links = HashMap<(u64, u64), (std::rc::Rc<OwnedFd>, OsString)>;

fn copy_level(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    prefix: &str,
    how: &How,
    depth: usize,
    links: &mut Links,
) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(too_deep());
    }
    for name in names(from)? {
        let path = join(prefix, &name);
        let stat = stat_entry(from, &name)?;
        if how.exclude.excludes(&path) {
            let inside = kind(&stat) == FileType::Directory
                && how.exclude.has_exceptions()
                && has_kept(from, &name, &path, how, depth)?;
            if !inside {
                continue;
            }
        }
        copy_entry(from, &name, &stat, to, &name, &path, how, depth, links)?;
    }
    Ok(())
}

/// Whether something below an excluded folder comes back.
fn has_kept(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    path: &str,
    how: &How,
    depth: usize,
) -> io::Result<bool> {
    if depth > DEPTH_LIMIT {
        return Err(too_deep());
    }
    let folder = open_folder(dir, name)?;
    for name in names(&folder)? {
        let path = join(path, &name);
        if !how.exclude.excludes(&path) {
            return Ok(true);
        }
        if kind(&stat_entry(&folder, &name)?) == FileType::Directory
            && has_kept(folder.as_fd(), &name, &path, how, depth + 1)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[expect(
    clippy::too_many_arguments,
    reason = "one entry with its two places and the walk's state"
)]
fn copy_entry(
    from: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    to: BorrowedFd<'_>,
    new: &OsStr,
    path: &str,
    how: &How,
    depth: usize,
    links: &mut Links,
) -> io::Result<()> {
    let private = Mode::from_raw_mode(0o600);
    let is_folder = kind(stat) == FileType::Directory;
    if !is_folder && stat.st_nlink > 1 {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some((folder, first)) = links.get(&inode) {
            make_room(to, new)?;
            return Ok(rustix::fs::linkat(
                folder.as_fd(),
                first,
                to,
                new,
                AtFlags::empty(),
            )?);
        }
        let here = std::rc::Rc::new(to.try_clone_to_owned()?);
        links.insert(inode, (here, new.to_owned()));
    }
    if is_folder {
        match rustix::fs::mkdirat(to, new, Mode::from_raw_mode(0o700)) {
            Err(rustix::io::Errno::EXIST) => {
                if kind(&stat_entry(to, new)?) != FileType::Directory {
                    return Err(io::Error::other(format!(
                        "cannot copy to non-directory: {path}"
                    )));
                }
            }
            other => other?,
        }
        let (source, target) = (open_folder(from, name)?, open_folder(to, new)?);
        copy_level(source.as_fd(), target.as_fd(), path, how, depth + 1, links)?;
        return dress(from, name, stat, to, new, how);
    }
    make_room(to, new)?;
    match kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let source = File::from(open_entry(from, name, flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut target = File::from(open_entry(to, new, flags, private)?);
            io::copy(&mut &source, &mut target)?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&*target, to, new)?;
        }
        // A socket means nothing without the process that listens.
        FileType::Socket | FileType::Unknown => return Ok(()),
        special => rustix::fs::mknodat(to, new, special, private, stat.st_rdev)?,
    }
    dress(from, name, stat, to, new, how)
}

/// Whatever is no folder makes room for a file.
fn make_room(to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match stat_entry(to, name) {
        Ok(stat) if kind(&stat) == FileType::Directory => Err(io::Error::other(format!(
            "cannot replace to directory {} with file",
            name.display()
        ))),
        Ok(_) => Ok(rustix::fs::unlinkat(to, name, AtFlags::empty())?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Owner first (a change of it clears set-id bits and capabilities), mode, attributes, time last.
fn dress(
    from: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    to: BorrowedFd<'_>,
    new: &OsStr,
    how: &How,
) -> io::Result<()> {
    let (uid, gid) = how.owner.unwrap_or((stat.st_uid, stat.st_gid));
    rustix::fs::chownat(
        to,
        new,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if kind(stat) != FileType::Symlink {
        let is_folder = kind(stat) == FileType::Directory;
        let mode = stat.st_mode & 0o7777;
        let mode = how
            .chmod
            .as_ref()
            .map_or(mode, |chmod| chmod.apply(mode, is_folder));
        dirfd::set_mode(to, new.as_bytes(), mode)?;
        for (key, value) in xattrs(from, name.as_bytes(), how) {
            match dirfd::set_xattr(to, new.as_bytes(), &key, &value) {
                Err(e) if e.raw_os_error() == Some(95) && !key.starts_with(b"security.") => {}
                other => other?,
            }
        }
    }
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        to,
        new,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Writes a file from memory into `to`, replacing what has its name.
pub(crate) fn write(
    to: BorrowedFd<'_>,
    destination: &Path,
    content: &[u8],
    how: &How,
    mtime: Option<i64>,
) -> Result<()> {
    use std::io::Write;
    let attempt = || -> io::Result<()> {
        let owner = how.owner.unwrap_or((0, 0));
        let destination = followed(to, destination)?;
        let name = destination
            .file_name()
            .ok_or_else(|| io::Error::other("the destination is the root itself"))?;
        let folder = make_folders(to, destination.parent().unwrap_or(Path::new("")), owner)?;
        make_room(folder.as_fd(), name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(open_entry(
            &folder,
            name,
            flags,
            Mode::from_raw_mode(0o600),
        )?);
        file.write_all(content)?;
        dirfd::set_owner(&folder, name.as_bytes(), owner.0, owner.1)?;
        let mode = how
            .chmod
            .as_ref()
            .map_or(0o644, |chmod| chmod.apply(0o644, false));
        dirfd::set_mode(&folder, name.as_bytes(), mode)?;
        if let Some(seconds) = mtime {
            dirfd::set_file_time(&file, seconds, 0)?;
        }
        Ok(())
    };
    attempt().kind(gantry_base::ErrorKind::InvalidArgument, || {
        format!("writing /{}", destination.display())
    })
}

/// A small file of a root, for reading passwd and the like. `None` when it is not there.
pub(crate) fn read_small(
    root: BorrowedFd<'_>,
    path: &str,
    limit: u64,
) -> io::Result<Option<Vec<u8>>> {
    let file = match open_in_root(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chmod_in_both_notations() {
        for (text, mode, folder, want) in [
            ("755", 0o644, false, 0o755),
            ("4755", 0o644, false, 0o4755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("a=r", 0o755, false, 0o444),
            ("u+s", 0o755, false, 0o4755),
        ] {
            assert_eq!(
                Chmod::parse(text).unwrap().apply(mode, folder),
                want,
                "{text}"
            );
        }
        for bad in ["", "8", "999", "77777", "u", "x=r", "u~r"] {
            assert!(Chmod::parse(bad).is_err(), "{bad}");
        }
    }
}
