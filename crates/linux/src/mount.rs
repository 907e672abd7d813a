//! Mounts made and changed through descriptors, so that no path is walked twice.
//!
//! Spec: mount(2), open_tree(2), move_mount(2), fsopen(2), mount_setattr(2).

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use rustix::mount::MountFlags as Flags;

/// `MOUNT_ATTR_…` bits for [`set_attributes`].
pub mod attribute {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    pub const ATIME: u64 = 0x70;
    pub const RELATIME: u64 = 0;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x10_0000;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `MS_…` of mount propagation.
pub mod propagation {
    pub const UNBINDABLE: u64 = 1 << 17;
    pub const PRIVATE: u64 = 1 << 18;
    pub const SLAVE: u64 = 1 << 19;
    pub const SHARED: u64 = 1 << 20;
}

/// Changes of a mount's attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    /// User namespace whose mappings the mount takes, with [`attribute::IDMAP`].
    pub user_namespace: Option<BorrowedFdId<'a>>,
}

/// A borrowed descriptor that compares by number.
#[derive(Debug, Clone, Copy)]
pub struct BorrowedFdId<'a>(pub BorrowedFd<'a>);

impl PartialEq for BorrowedFdId<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_raw_fd() == other.0.as_raw_fd()
    }
}
impl Eq for BorrowedFdId<'_> {}

/// mount_setattr(2) on the mount that `mount` is in, with `recursive` on all below too. Linux 5.12.
pub fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    change: &Attributes<'_>,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: change
            .user_namespace
            .map_or(0, |fd| fd.0.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty string, the struct lives through the call and its size is passed; rustix has no mount_setattr.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Path through which the kernel starts at an open descriptor. Needs the host's `/proc`.
pub fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// mount(2) of a new file system onto the directory `target` stands for.
pub fn mount_at(
    source: &Path,
    target: impl AsFd,
    kind: &CStr,
    flags: MountFlags,
    data: &CStr,
) -> io::Result<()> {
    Ok(rustix::mount::mount(
        source,
        fd_path(target).as_path(),
        kind,
        flags,
        data,
    )?)
}

/// A detached new file system of `kind` with the given parameters; goes away with the descriptor unless [`attach`]ed.
pub fn detached(
    kind: &CStr,
    source: &CStr,
    parameters: &[(&str, &[u8])],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)?;
    for (key, value) in parameters {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes as _),
    )?)
}

/// A detached copy of the mount tree at `source`: the whole tree or its top mount alone.
pub fn clone_tree(source: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(source.as_fd(), "", flags)?)
}

/// Puts a detached mount onto the file or directory that `target` stands for.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount.as_fd(),
        "",
        target.as_fd(),
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}

/// A detached overlay. `lowers` topmost first. Before Linux 6.5 there is no `lowerdir+`, so the classic option string is tried next.
pub fn overlay(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    extra: &[(&str, &[u8])],
) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let mut parameters: Vec<(&str, &[u8])> = lowers
        .iter()
        .map(|lower| ("lowerdir+", lower.as_os_str().as_bytes()))
        .collect();
    let rest = [
        ("upperdir", upper.as_os_str().as_bytes()),
        ("workdir", work.as_os_str().as_bytes()),
    ];
    parameters.extend(rest);
    parameters.extend(extra);
    match detached(c"overlay", c"overlay", &parameters, 0) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let joined = lowers
                .iter()
                .map(|lower| escape_lower(lower.as_os_str().as_bytes()))
                .collect::<Vec<_>>()
                .join(&b':');
            let mut parameters = vec![("lowerdir", joined.as_slice())];
            parameters.extend(rest);
            parameters.extend(extra);
            detached(c"overlay", c"overlay", &parameters, 0)
        }
        other => other,
    }
}

/// overlayfs splits `lowerdir` at colons unless a backslash stands before them.
fn escape_lower(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for &byte in path {
        if matches!(byte, b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// Sets how mounts below `/` are shared with other mount namespaces.
pub fn set_propagation(path: &Path, flags: u64) -> io::Result<()> {
    let flags = MountPropagationFlags::from_bits_retain(flags as _);
    Ok(rustix::mount::mount_change(path, flags)?)
}

/// Makes `root` (an open directory that is a mount's root) this process's root and drops the old tree.
pub fn pivot_root(root: impl AsFd) -> io::Result<()> {
    let old = rustix::fs::openat(
        CWD,
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::process::fchdir(root.as_fd())?;
    // Both arguments the same: the old root ends up stacked on the new one, so that no directory for it is needed inside.
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(&old)?;
    // Unmounting must not travel to the host through a shared peer.
    rustix::mount::mount_change(
        ".",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Makes `root` this process's root by moving its mount over `/`: for a root on the initial ram disk, which cannot be pivoted.
pub fn move_root(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root.as_fd())?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Opens `path` as a process whose root is `root` would, but never through magic links. A handle only (`O_PATH`) when `flags` say so.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_in_root_with(root, path, flags, ResolveFlags::empty())
}

/// The same without following any symbolic link.
pub fn open_in_root_no_links(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_in_root_with(root, path, flags, ResolveFlags::NO_SYMLINKS)
}

fn open_in_root_with(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    // A rename elsewhere can make the kernel ask for another try; without an end that could starve us.
    for _ in 0..128 {
        match rustix::fs::openat2(
            root.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(rustix::io::Errno::AGAIN.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_may_hold_colons() {
        assert_eq!(escape_lower(b"/a:b\\c"), b"/a\\:b\\\\c");
    }
}
