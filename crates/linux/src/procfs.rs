//! procfs without trusting what is mounted at `/proc`.
//!
//! Whoever controls a mount namespace can put a tmpfs, a link or another file of procfs where a setting is looked for, so that a write
//! goes to a file of theirs or takes no effect (the class of CVE-2019-16884, CVE-2019-19921, CVE-2025-52881). A [`Procfs`] is a handle
//! that was proven to be a procfs's root; names below it are walked inside that one mount only, and what was opened is proven again.

use crate::mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// `PROC_SUPER_MAGIC`.
const MAGIC: u64 = 0x9fa0;
/// `PROC_ROOT_INO`: of a procfs's root, and of nothing else in it.
const ROOT_INODE: u64 = 1;

/// The root of a procfs.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// One of our own, attached nowhere, so that nobody can mount anything over parts of it. It shows the PID namespace that this process
    /// is in. Where that is not allowed (no CAP_SYS_ADMIN), the one at `/proc`, proven to be one.
    pub fn private() -> io::Result<Self> {
        match mount::detached(c"proc", c"proc", &[], 0) {
            Ok(root) => Self::proven(root),
            Err(_) => Self::mounted(),
        }
    }

    /// The one at `/proc`.
    pub fn mounted() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::proven(rustix::fs::openat(CWD, "/proc", flags, Mode::empty())?)
    }

    fn proven(root: OwnedFd) -> io::Result<Self> {
        if is_procfs(&root)? && rustix::fs::fstat(&root)?.st_ino == ROOT_INODE {
            return Ok(Self(root));
        }
        Err(io::Error::other("/proc is not the root of a procfs"))
    }

    /// Opens a file by its path below `/proc`. Mount points on the way and magic links are refused.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(
            self.0.as_fd(),
            path,
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
            resolve,
        )?;
        match is_procfs(&opened)? {
            true => Ok(opened),
            false => Err(rustix::io::Errno::XDEV.into()),
        }
    }

    /// Writes `text` in one call, as settings of the kernel want it.
    pub fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let file = self.open(path, OFlags::WRONLY)?;
        match rustix::io::write(&file, text.as_bytes())? {
            written if written == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn is_procfs(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_files_are_opened() {
        let proc = Procfs::private().unwrap();
        assert!(proc.open(Path::new("self/status"), OFlags::RDONLY).is_ok());
        // A link out, however it is written.
        for path in [
            "self/root/etc/passwd",
            "self/cwd",
            "../etc/passwd",
            "self/fd/0",
            "self/exe",
        ] {
            assert!(
                proc.open(Path::new(path), OFlags::RDONLY).is_err(),
                "{path}"
            );
        }
        let tmp: OwnedFd = std::fs::File::open("/tmp").unwrap().into();
        assert!(Procfs::proven(tmp).is_err());
        let part: OwnedFd = std::fs::File::open("/proc/sys").unwrap().into();
        assert!(
            Procfs::proven(part).is_err(),
            "a part of procfs is not its root"
        );
    }

    /// A mount namespace whose `/proc` somebody else furnished. It belongs to one thread and ends with it.
    #[test]
    fn what_is_mounted_over_it_is_not_written() {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let bait = tempfile_with("bait");
        let target = bait.clone();
        let checked = std::thread::spawn(move || {
            // SAFETY: only this new thread's view of mounts and its own folder change; no descriptor table is split.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .unwrap();
            let comm = format!("/proc/{}/comm", std::process::id());
            mount_bind(&target, &comm).unwrap();
            std::fs::write(&comm, "bait").unwrap();
            let real = Procfs::mounted().unwrap();
            let path = Path::new("self/comm");
            let refused = real.write(path, "caught").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EXDEV));
            Procfs::private().unwrap().write(path, "own").unwrap();
            // The whole of it.
            mount(
                "tmpfs",
                "/proc",
                "tmpfs",
                MountFlags::empty(),
                None::<&std::ffi::CStr>,
            )
            .unwrap();
            std::fs::create_dir("/proc/self").unwrap();
            std::os::unix::fs::symlink(&target, "/proc/self/comm").unwrap();
            assert!(Procfs::mounted().is_err());
            Procfs::private().unwrap().write(path, "own2").unwrap();
            // The handle from before is still the real one, and still knows that something lies on the file.
            assert!(real.write(path, "caught").is_err());
        });
        checked.join().unwrap();
        assert_eq!(std::fs::read(&bait).unwrap(), b"bait");
        assert_eq!(std::fs::read("/proc/self/comm").unwrap(), b"own2\n");
        std::fs::remove_file(bait).unwrap();
    }

    fn tempfile_with(text: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("gantry-procfs-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }
}
