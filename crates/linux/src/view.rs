//! A container's files seen from the host without a mount on the host: overlays that are only a descriptor, and mount tables
//! that nobody else sees.
//!
//! Everything here ends with the returned descriptors, also when the process is killed.

use crate::dirfd::open_entry;
use crate::mount::{self, open_in_root};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Overlay folders. `lowers` topmost first, at least one.
#[derive(Debug, Clone)]
pub struct Overlay {
    pub lowers: Vec<PathBuf>,
    /// Upper and work folder; `None` only reads.
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// Mounts an overlay attached to nothing; the descriptor is its root folder.
///
/// The kernel wants two layers for an overlay that only reads: a single one is opened as it is.
pub fn detached_overlay(overlay: &Overlay) -> io::Result<OwnedFd> {
    if let ([only], None) = (overlay.lowers.as_slice(), &overlay.upper) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(rustix::fs::open(only, flags, Mode::empty())?);
    }
    // What a layer's difference means must not depend on the kernel's defaults.
    let plain: [(&str, &[u8]); 3] = [
        ("redirect_dir", b"off"),
        ("metacopy", b"off"),
        ("index", b"off"),
    ];
    match &overlay.upper {
        Some((upper, work)) => mount::overlay(&overlay.lowers, upper, work, &plain),
        None => {
            let lowers = overlay.lowers.iter();
            let mut parameters: Vec<(&str, &[u8])> = lowers
                .map(|lower| ("lowerdir+", lower.as_os_str().as_bytes()))
                .collect();
            parameters.extend(plain);
            mount::detached(c"overlay", c"overlay", &parameters, 0)
        }
    }
}

/// Something to see at `target` inside the root.
#[derive(Debug, Clone)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A root folder with its own mounts. The namespace lives exactly as long as this.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
    _namespace: Option<OwnedFd>,
}

impl AsFd for View {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl View {
    /// A root folder that needs no mounts of its own.
    pub fn of(root: OwnedFd) -> Self {
        Self {
            root,
            _namespace: None,
        }
    }

    /// `overlay` with `binds` upon it, in their order, in a mount namespace that has no process. `anchor` is any folder of the host:
    /// the place in that namespace where the overlay hangs. A source that is missing is left out; missing targets are made.
    pub fn new(overlay: &Overlay, binds: &[Bind], anchor: &Path) -> io::Result<Self> {
        let root = detached_overlay(overlay)?;
        if binds.is_empty() {
            return Ok(Self::of(root));
        }
        // A namespace belongs to a thread; a fresh one ends with it and leaves the process as it was.
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("view".into())
                .spawn_scoped(scope, || assemble(&root, binds, anchor))?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("assembling mounts panicked")))
        })
    }

    /// The root mount alone of the namespace that process `pid` is in, without what is mounted upon it: the container's
    /// own files as they are, while it runs.
    pub fn root_mount_of(pid: i32) -> io::Result<Self> {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
        let root = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("view".into())
                .spawn_scoped(scope, || {
                    unshare(UnshareFlags::FS)?;
                    rustix::thread::move_into_link_name_space(
                        namespace.as_fd(),
                        Some(LinkNameSpaceType::Mount),
                    )?;
                    // setns put this thread's root at the namespace's root mount.
                    Ok(rustix::mount::open_tree(
                        CWD,
                        "/",
                        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
                    )?)
                })?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("cloning a mount panicked")))
        })?;
        Ok(Self::of(root))
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the callers' threads are new, and the flags are FS and NEWNS only: no descriptor table is split, so no descriptor that
    // another thread relies on changes meaning.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

fn assemble(overlay: &OwnedFd, binds: &[Bind], anchor: &Path) -> io::Result<View> {
    unshare(UnshareFlags::FS | UnshareFlags::NEWNS)?;
    // Unmounts on the host must reach this copy, or it would keep foreign devices busy; nothing goes the other way.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    // All sources before the overlay hides anything.
    let mut trees = Vec::new();
    for bind in binds {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        match rustix::mount::open_tree(CWD, &bind.source, flags) {
            Ok(tree) => trees.push((tree, bind)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    rustix::mount::move_mount(
        overlay.as_fd(),
        "",
        CWD,
        anchor,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    let root = overlay.try_clone()?;
    for (tree, bind) in trees {
        let folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode)
            == rustix::fs::FileType::Directory;
        let target = mount_point(&root, &bind.target, folder)?;
        if bind.read_only {
            let change = mount::Attributes {
                set: mount::attribute::RDONLY,
                ..mount::Attributes::default()
            };
            mount::set_attributes(&tree, true, &change)?;
        }
        mount::attach(&tree, &target)?;
    }
    let namespace = std::fs::File::open("/proc/thread-self/ns/mnt")?.into();
    Ok(View {
        root,
        _namespace: Some(namespace),
    })
}

/// Opens where a bind goes, making what is missing.
fn mount_point(root: &OwnedFd, target: &Path, folder: bool) -> io::Result<OwnedFd> {
    match open_in_root(root, target, OFlags::PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let parent = mount_point(root, parent, true)?;
    let made = if folder {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    open_entry(&parent, name, OFlags::PATH, Mode::empty())
}
