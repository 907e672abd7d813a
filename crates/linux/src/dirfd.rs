//! Files named relative to a directory descriptor, so that nobody who can rename or link inside a tree can lead us out of it.
//!
//! [`open_beneath`] resolves a whole path under a root (`openat2`, Linux 5.6); everything else takes a directory and one
//! single name. Callers check names that come from outside with [`is_single_name`].
//!
//! Spec: openat2(2), `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_MAGICLINKS`.

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What to do with symbolic links on the way (never the last component when the flags hold `NOFOLLOW`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlinks {
    /// Follow relative ones that stay beneath the root; anything else is `EXDEV`.
    Beneath,
    /// `ELOOP` on any.
    Refuse,
}

/// A rename elsewhere in the tree can make the kernel ask for another try (`EAGAIN`); a loop without end would let it starve us.
const TRIES: usize = 128;

/// Opens `path` under `root`. An empty path is the root itself. `path` is relative; a leading slash gives `EXDEV`.
pub fn open_beneath(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: u32,
    symlinks: Symlinks,
) -> io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_MAGICLINKS
        | match symlinks {
            Symlinks::Beneath => ResolveFlags::empty(),
            Symlinks::Refuse => ResolveFlags::NO_SYMLINKS,
        };
    for _ in 0..TRIES {
        match rustix::fs::openat2(
            root.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(mode),
            resolve,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// A handle on a directory under `root`, good for the calls below (`O_PATH`).
pub fn open_dir_beneath(root: impl AsFd, path: &[u8], symlinks: Symlinks) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    open_beneath(root, path, flags, 0, symlinks)
}

/// Opens the entry `name` of `dir` itself: not through a symbolic link, never another folder's. `mode` counts when `flags` create.
pub fn open_entry(dir: impl AsFd, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    if !is_single_name(name.as_bytes()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, mode)?)
}

/// True for a name that stays in its directory: not empty, not `.` or `..`, no slash, no NUL, at most 255 bytes.
pub fn is_single_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}

/// Makes and opens a new regular file for writing; `EEXIST` when the name is taken by anything.
pub fn create_file(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        dir,
        name,
        flags,
        Mode::from_raw_mode(mode),
    )?)
}

pub fn make_dir(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

pub fn make_symlink(dir: impl AsFd, name: &[u8], target: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// A second name for `target` in `target_dir`; a symbolic link is linked itself, not followed.
pub fn make_link(
    target_dir: impl AsFd,
    target: &[u8],
    dir: impl AsFd,
    name: &[u8],
) -> io::Result<()> {
    Ok(rustix::fs::linkat(
        target_dir,
        target,
        dir,
        name,
        AtFlags::empty(),
    )?)
}

/// A named pipe, or a device node with the given numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Fifo,
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

/// What overlayfs reads as "deleted here": a character device 0/0.
pub const WHITEOUT: Node = Node::Character { major: 0, minor: 0 };

pub fn make_node(dir: impl AsFd, name: &[u8], node: Node, mode: u32) -> io::Result<()> {
    let (kind, device) = match node {
        Node::Fifo => (FileType::Fifo, 0),
        Node::Character { major, minor } => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        Node::Block { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
    };
    let mode = Mode::from_raw_mode(mode);
    Ok(rustix::fs::mknodat(dir, name, kind, mode, device)?)
}

/// What is there under this name; a symbolic link is not followed. An empty name is the descriptor itself.
pub fn stat(dir: impl AsFd, name: &[u8]) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    Ok(rustix::fs::statat(dir, name, flags)?)
}

pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Owner without following a symbolic link.
pub fn set_owner(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)?)
}

/// Permission bits. Follows a symbolic link (they have no mode): the caller knows that this is none.
pub fn set_mode(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    Ok(rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?)
}

/// Sets access and modification time to one value; a symbolic link is not followed.
pub fn set_time(dir: impl AsFd, name: &[u8], seconds: i64, nanos: u32) -> io::Result<()> {
    let times = timestamps(seconds, nanos);
    Ok(rustix::fs::utimensat(
        dir,
        name,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// The same on an open file.
pub fn set_file_time(file: impl AsFd, seconds: i64, nanos: u32) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &timestamps(seconds, nanos))?)
}

fn timestamps(seconds: i64, nanos: u32) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanos.min(999_999_999)),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Sets an extended attribute on `dir/name` itself, whatever it is; an empty name is `dir`.
///
/// There is no `…at` call before Linux 6.13; through `/proc/self/fd` the kernel starts at the descriptor, and one single
/// name is not followed (`lsetxattr`), so this is as safe as one.
pub fn set_xattr(dir: impl AsFd, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
    let path = proc_path(dir.as_fd(), name);
    let (path, key) = (OsStr::from_bytes(&path), OsStr::from_bytes(key));
    if name.is_empty() {
        rustix::fs::setxattr(path, key, value, XattrFlags::empty())?;
    } else {
        rustix::fs::lsetxattr(path, key, value, XattrFlags::empty())?;
    }
    Ok(())
}

/// One extended attribute of `dir/name` itself; `None` when it has none by that key or the file system knows none.
pub fn get_xattr(dir: impl AsFd, name: &[u8], key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(dir.as_fd(), name);
    let (path, key) = (OsStr::from_bytes(&path), OsStr::from_bytes(key));
    let mut value = vec![0; XATTR_LIMIT];
    let result = if name.is_empty() {
        rustix::fs::getxattr(path, key, value.as_mut_slice())
    } else {
        rustix::fs::lgetxattr(path, key, value.as_mut_slice())
    };
    match result {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The keys of all extended attributes of `dir/name` itself.
pub fn list_xattrs(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let path = proc_path(dir.as_fd(), name);
    let path = OsStr::from_bytes(&path);
    let mut keys = vec![0; XATTR_LIMIT];
    let result = if name.is_empty() {
        rustix::fs::listxattr(path, keys.as_mut_slice())
    } else {
        rustix::fs::llistxattr(path, keys.as_mut_slice())
    };
    match result {
        Ok(length) => Ok(keys[..length]
            .split(|&b| b == 0)
            .filter(|key| !key.is_empty())
            .map(<[u8]>::to_vec)
            .collect()),
        Err(Errno::NOTSUP) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

/// The kernel's own limit for one value and for a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_LIMIT: usize = 65536;

fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Removes a name: a directory must be empty, anything else is unlinked.
pub fn remove(dir: impl AsFd, name: &[u8], directory: bool) -> io::Result<()> {
    let flags = if directory {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

/// Writes everything dirty of the file system under `file` to disk (syncfs(2)); reports write errors since the descriptor was opened.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Bytes that an ordinary user could still write to the file system of `file`.
pub fn free_bytes(file: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Tells ext4 that the folders in `dir` have nothing to do with each other, so that each begins in a part of the disk of its
/// own (`chattr +T`). A hint: other file systems do not know it.
pub fn spread_folders(dir: impl AsFd) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    if let Ok(flags) = ioctl_getflags(&dir) {
        let _ = ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}

/// Asks the kernel to begin writing a range to disk and does not wait, so that a later sync finds little to do. A hint: errors do not matter.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    // SAFETY: the descriptor is borrowed and so open for the whole call; the call takes only integers. rustix has no wrapper for it.
    unsafe {
        libc::sync_file_range(
            file.as_fd().as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> (std::path::PathBuf, OwnedFd) {
        let path = std::env::temp_dir().join(format!("gantry-dirfd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        let fd = std::fs::File::open(&path).unwrap().into();
        (path, fd)
    }

    #[test]
    fn no_path_leaves_the_root() {
        let (path, root) = dir("beneath");
        make_dir(&root, b"a", 0o755).unwrap();
        make_symlink(&root, b"up", b"../..").unwrap();
        make_symlink(&root, b"etc", b"/etc").unwrap();
        make_symlink(&root, b"b", b"a").unwrap();
        make_symlink(&root, b"proc", b"/proc/self/root").unwrap();
        let open =
            |p: &[u8], s| open_dir_beneath(&root, p, s).map_err(|e| e.raw_os_error().unwrap());
        for bad in [&b"up"[..], b"etc", b"..", b"a/../..", b"/etc", b"proc"] {
            assert_eq!(
                open(bad, Symlinks::Beneath).unwrap_err(),
                libc::EXDEV,
                "{}",
                bad.escape_ascii()
            );
        }
        assert!(open(b"b", Symlinks::Beneath).is_ok());
        assert_eq!(open(b"b", Symlinks::Refuse).unwrap_err(), libc::ELOOP);
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn attributes_of_links_themselves() {
        let (path, root) = dir("xattr");
        create_file(&root, b"f", 0o600).unwrap();
        make_symlink(&root, b"l", b"f").unwrap();
        set_xattr(&root, b"f", b"user.x", b"1").unwrap();
        assert_eq!(get_xattr(&root, b"f", b"user.x").unwrap().unwrap(), b"1");
        assert_eq!(get_xattr(&root, b"l", b"user.x").ok().flatten(), None);
        assert_eq!(list_xattrs(&root, b"f").unwrap(), [b"user.x".to_vec()]);
        set_xattr(&root, b"", b"user.d", b"2").unwrap();
        assert_eq!(get_xattr(&root, b"", b"user.d").unwrap().unwrap(), b"2");
        set_time(&root, b"l", 5, 7).unwrap();
        assert_ne!(stat(&root, b"f").unwrap().st_mtime, 5);
        assert_eq!(stat(&root, b"l").unwrap().st_mtime, 5);
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn names_stay_in_their_directory() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'a'; 256]] {
            assert!(!is_single_name(bad), "{}", bad.escape_ascii());
        }
        assert!(is_single_name(b"...") && is_single_name(b"\xff") && is_single_name(&[b'a'; 255]));
    }
}
