//! Walking, measuring and copying folders by descriptor.

use gantry_linux::dirfd::open_entry;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Folders within folders; each level holds one descriptor.
pub(crate) const DEPTH_LIMIT: usize = 400;
/// Entries of one folder that are kept in memory to sort them.
const ENTRY_LIMIT: usize = 4 << 20;
/// Files that a measurement looks at before it answers with what it has.
const MEASURE_LIMIT: usize = 2 << 20;
/// One attribute's value; the kernel's own limit.
const XATTR_LIMIT: usize = 64 << 10;

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Overlay's mark for a deleted name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Overlay's mark for a folder that hides the layers below.
pub(crate) fn is_opaque(dir: impl AsFd) -> bool {
    let mut value = [0; 1];
    matches!(rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
}

pub(crate) fn stat_child(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(crate) fn open_folder(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    open_entry(dir, name, flags, Mode::empty())
}

/// Entry names without `.` and `..`, sorted. `dir` must be open for reading.
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

/// Whether a folder has no entry.
pub(crate) fn is_empty(dir: impl AsFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn too_deep() -> io::Error {
    io::Error::other(format!("folders are nested deeper than {DEPTH_LIMIT}"))
}

/// Bytes of all files below an open folder, each inode once, as `docker ps -s` counts. Stops at a limit rather than run for ever.
pub(crate) fn measure(dir: BorrowedFd<'_>) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    measure_into(dir, 0, &mut seen, &mut bytes)?;
    Ok(bytes)
}

fn measure_into(
    dir: BorrowedFd<'_>,
    depth: usize,
    seen: &mut HashSet<(u64, u64)>,
    bytes: &mut u64,
) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Ok(());
    }
    for entry in Dir::read_from(dir)? {
        if seen.len() >= MEASURE_LIMIT {
            return Ok(());
        }
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        // What vanishes while it is counted counts nothing.
        let Ok(stat) = stat_child(dir, name) else {
            continue;
        };
        if !seen.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        if kind(&stat) == FileType::Directory {
            if let Ok(child) = open_folder(dir, name) {
                measure_into(child.as_fd(), depth + 1, seen, bytes)?;
            }
        } else {
            *bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
    }
    Ok(())
}

/// A path by which the entry itself can be named to calls that take no descriptor opened with `O_PATH`.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The attributes that belong to a file's content, not to the place where it lies: capabilities, user's own, access lists.
/// `fd` must be open for reading, not only `O_PATH`.
pub(crate) fn xattrs(fd: impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    // Nearly every file has none or few; the kernel's whole size only for the rest.
    let mut few = [0u8; 512];
    let mut all = Vec::new();
    let list = match rustix::fs::flistxattr(&fd, &mut few[..]) {
        Ok(length) => &few[..length],
        Err(Errno::RANGE) => {
            all.resize(XATTR_LIMIT, 0);
            let length = rustix::fs::flistxattr(&fd, &mut all[..])?;
            &all[..length]
        }
        Err(Errno::NOTSUP | Errno::NODATA) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in list.split(|b| *b == 0) {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let wanted = name == "security.capability"
            || name.starts_with("user.") && !name.starts_with("user.overlay.")
            || name == "system.posix_acl_access"
            || name == "system.posix_acl_default";
        if !wanted {
            continue;
        }
        let mut value = vec![0u8; XATTR_LIMIT];
        match rustix::fs::fgetxattr(&fd, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_owned(), value));
            }
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e.into()),
        }
    }
    found.sort();
    Ok(found)
}

/// File systems that are the kernel's word and no files: `proc`, `sysfs`, cgroups, terminals, message queues, tracing, BPF.
pub(crate) fn is_kernels_own(dir: impl AsFd) -> bool {
    const KINDS: [u32; 10] = [
        0x9fa0,
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x1cd1,
        0x1980_0202,
        0x6462_6720,
        0x7472_6163,
        0xcafe_4a11,
        0x7363_6673,
    ];
    rustix::fs::fstatfs(dir).is_ok_and(|fs| KINDS.contains(&(fs.f_type as u32)))
}

/// Sets an attribute on whatever `fd` is (also one opened with `O_PATH`). File systems without attributes are fine for `user.*` only.
pub(crate) fn set_xattr(fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    let path = CString::new(proc_path(fd))?;
    match rustix::fs::setxattr(&*path, name, value, XattrFlags::empty()) {
        Err(Errno::NOTSUP) if !name.starts_with("security.") => Ok(()),
        result => Ok(result?),
    }
}

/// Owner, mode and times of one entry, in the order the kernel needs: a change of owner clears set-id bits.
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits; `None` for symbolic links.
    pub(crate) mode: Option<u32>,
    pub(crate) mtime: (i64, i64),
}

impl Ownership {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: (kind(stat) != FileType::Symlink).then_some(stat.st_mode & 0o7777),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }

    /// `fd` may be opened with `O_PATH`, so that links, devices and pipes work too.
    pub(crate) fn apply(&self, fd: impl AsFd, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
        let fd = fd.as_fd();
        rustix::fs::chownat(
            fd,
            "",
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
            AtFlags::EMPTY_PATH,
        )?;
        if let Some(mode) = self.mode {
            let path = proc_path(fd);
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
            for (name, value) in attributes {
                set_xattr(fd, name, value)?;
            }
        }
        self.apply_times(fd)
    }

    pub(crate) fn apply_times(&self, fd: impl AsFd) -> io::Result<()> {
        let time = Timespec {
            tv_sec: self.mtime.0,
            tv_nsec: self.mtime.1 as _,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
    }
}

/// Copies everything in `from` into `to`, with owner, mode, times and attributes. Both open for reading.
pub(crate) fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    copy_level(from, to, 0, &mut std::collections::HashMap::new())
}

/// First copy of each inode with several names: its folder in the copy and its name there.
type Links = std::collections::HashMap<(u64, u64), (std::rc::Rc<OwnedFd>, OsString)>;

fn copy_level(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    depth: usize,
    links: &mut Links,
) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(too_deep());
    }
    let here = std::rc::Rc::new(to.try_clone_to_owned()?);
    for name in names(from)? {
        let stat = stat_child(from, &name)?;
        if kind(&stat) != FileType::Directory && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some((folder, first)) = links.get(&inode) {
                rustix::fs::linkat(folder.as_fd(), first, to, &name, AtFlags::empty())?;
                continue;
            }
            links.insert(inode, (here.clone(), name.clone()));
        }
        copy_entry(from, to, &name, &stat, depth, links)?;
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    depth: usize,
    links: &mut Links,
) -> io::Result<()> {
    let private = Mode::from_raw_mode(0o600);
    let (made, source) = match kind(stat) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let (source, target) = (open_folder(from, name)?, open_folder(to, name)?);
            copy_level(source.as_fd(), target.as_fd(), depth + 1, links)?;
            (target, source)
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let source = std::fs::File::from(open_entry(from, name, flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut target = std::fs::File::from(open_entry(to, name, flags, private)?);
            io::copy(&mut &source, &mut target)?;
            (target.into(), source.into())
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&*target, to, name)?;
            let flags = OFlags::PATH;
            (
                open_entry(to, name, flags, Mode::empty())?,
                open_entry(from, name, flags, Mode::empty())?,
            )
        }
        // A socket means nothing without the process that listens.
        FileType::Socket | FileType::Unknown => return Ok(()),
        special => {
            rustix::fs::mknodat(to, name, special, private, stat.st_rdev)?;
            let flags = OFlags::PATH;
            (
                open_entry(to, name, flags, Mode::empty())?,
                open_entry(from, name, flags, Mode::empty())?,
            )
        }
    };
    let attributes = match kind(stat) {
        FileType::Directory | FileType::RegularFile => xattrs(&source)?,
        _ => Vec::new(),
    };
    Ownership::of(stat).apply(made, &attributes)
}
