//! Device nodes and links in the container's `/dev`.
//!
//! Spec: runtime-spec "Devices", "Default Devices", "Dev symbolic links".

use crate::launch::{Failure, errno_text};
use crate::mounts::{Kind, ensure};
use gantry_linux::mount;
use gantry_oci::runtime::Device;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the default devices, the spec's and the usual links. The umask must be 0.
pub(crate) fn populate(root: &OwnedFd, wanted: &[Device]) -> Result<(), Failure> {
    let failure = |path: &str, e: io::Error| {
        Failure::new(
            128,
            format!("error creating device {path:?}: {}", errno_text(&e)),
        )
    };
    let dev = ensure(root, Path::new("/dev"), Kind::Directory).map_err(|e| failure("/dev", e))?;
    for (name, major, minor) in DEFAULTS {
        let result = node(&dev, name, FileType::CharacterDevice, 0o666, (major, minor));
        result.map_err(|e| failure(name, e))?;
    }
    for device in wanted {
        spec_device(root, device).map_err(|e| {
            let mut failure = failure(&device.path, e);
            failure.text.insert_str(0, "linux.devices: ");
            failure
        })?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A root without a /dev of its own may be read-only, with everything there.
            Err(Errno::ROFS) => {}
            Err(e) => return Err(failure(name, e.into())),
        }
    }
    Ok(())
}

/// Whether what the spec wants is there, for a `/dev` that is not ours to fill.
pub(crate) fn expect(root: &OwnedFd, wanted: &[Device]) -> Result<(), Failure> {
    for device in wanted {
        let kind = kind_of(device);
        let same = mount::open_in_root(root, Path::new(&device.path), HANDLE)
            .and_then(|found| is_device(&found, kind, numbers_of(device)));
        if !same.unwrap_or(false) {
            return Err(Failure::new(
                128,
                format!(
                    "linux.devices: {:?} is not in the bind-mounted /dev",
                    device.path
                ),
            ));
        }
    }
    Ok(())
}

fn is_device(found: &OwnedFd, kind: Option<FileType>, numbers: (u32, u32)) -> io::Result<bool> {
    let stat = rustix::fs::fstat(found)?;
    let found = FileType::from_raw_mode(stat.st_mode);
    let device = rustix::fs::makedev(numbers.0, numbers.1);
    Ok(Some(found) == kind && (found == FileType::Fifo || stat.st_rdev == device))
}

fn kind_of(device: &Device) -> Option<FileType> {
    Some(match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => return None,
    })
}

fn numbers_of(device: &Device) -> (u32, u32) {
    let number = |n: Option<i64>| u32::try_from(n.unwrap_or(0)).unwrap_or(0);
    (number(device.major), number(device.minor))
}

fn node(
    directory: &OwnedFd,
    name: &str,
    kind: FileType,
    mode: u32,
    numbers: (u32, u32),
) -> io::Result<()> {
    let device = rustix::fs::makedev(numbers.0, numbers.1);
    match rustix::fs::mknodat(directory, name, kind, Mode::from_raw_mode(mode), device) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // Inside a user namespace nobody may make nodes; the host's own is mounted in its place.
        Err(Errno::PERM) if kind != FileType::Fifo => {
            let host =
                rustix::fs::openat(CWD, Path::new("/dev").join(name), HANDLE, Mode::empty())?;
            let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(rustix::fs::openat(
                directory,
                name,
                flags,
                Mode::from_raw_mode(0o644),
            )?);
            let target =
                rustix::fs::openat(directory, name, HANDLE | OFlags::NOFOLLOW, Mode::empty())?;
            mount::attach(mount::clone_tree(&host, false)?, target)
        }
        Err(e) => Err(e.into()),
    }
}

fn spec_device(root: &OwnedFd, device: &Device) -> io::Result<()> {
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = ensure(root, parent, Kind::Directory)?;
    let kind = kind_of(device).ok_or(io::ErrorKind::InvalidInput)?;
    let numbers = numbers_of(device);
    let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
    node(&directory, name, kind, mode, numbers)?;
    // What was there before may be something else under that name.
    let made = rustix::fs::openat(&directory, name, HANDLE | OFlags::NOFOLLOW, Mode::empty())?;
    if !is_device(&made, Some(kind), numbers)? {
        return Err(Errno::EXIST.into());
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        rustix::fs::chownat(
            &directory,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

/// A null device to hide files under: the container's own, so that what a container does to its mode stays its own affair.
pub(crate) fn null(root: &OwnedFd) -> Result<OwnedFd, Failure> {
    let opened = mount::open_in_root_no_links(root, Path::new("/dev/null"), HANDLE);
    if let Ok(fd) = &opened
        && rustix::fs::fstat(fd).is_ok_and(|s| {
            FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice
                && s.st_rdev == rustix::fs::makedev(1, 3)
        })
    {
        return opened.map_err(|e| Failure::new(128, e.to_string()));
    }
    rustix::fs::openat(CWD, "/dev/null", HANDLE, Mode::empty())
        .map_err(|e| Failure::new(128, format!("opening /dev/null: {}", errno_text(&e.into()))))
}
