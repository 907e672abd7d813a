//! The container's file system tree, made by its init before it moves in.
//!
//! Everything is relative to a descriptor of the new root. A destination is resolved as if that were `/` already and opened
//! once (`openat2`, `RESOLVE_IN_ROOT`); the mount is then put onto that descriptor, never onto a path. So neither a symbolic link in the
//! image nor one that a neighbour swaps in while we work leads out (the class of CVE-2021-30465).
//!
//! Spec: runtime-spec "Mounts", "Masked Paths", "Readonly Paths".

use crate::cgroup::{self, Cgroup};
use crate::launch::{Failure, errno_text};
use gantry_linux::mount::{self, Attributes, BorrowedFdId, Flags, attribute, propagation};
use gantry_linux::namespace;
use gantry_linux::view::{Overlay, detached_overlay};
use gantry_oci::runtime::{IdMapping, Linux, Mount};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The options of one mount, sorted by where they go.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    /// For mount(2) of a new file system.
    flags: u32,
    /// For the top mount of a bind.
    set: u64,
    clear: u64,
    /// For the whole tree of a bind.
    recursive_set: u64,
    recursive_clear: u64,
    propagation: Vec<(u64, bool)>,
    data: Vec<String>,
    pub(crate) bind: bool,
    recursive: bool,
    copy_up: bool,
    idmap: Option<bool>,
    /// The options that only a whole file system can have, by name: a bind cannot.
    of_file_system: Vec<String>,
    /// What of a bind's source is taken: a path that never leaves the source, whatever links are in there.
    subpath: Option<PathBuf>,
    /// Layers of an image, topmost first, that are mounted read-only.
    layers: Vec<PathBuf>,
}

/// Before the path of [`Parsed::subpath`] among a mount's options; ours, not the specification's.
pub const SUBPATH: &str = "x-gantry-subpath=";
/// Before each folder of [`Parsed::layers`].
pub const LAYER: &str = "x-gantry-layer=";

/// `MS_REMOUNT`.
const REMOUNT: u32 = 32;

/// Name, `MS_` bit, `MOUNT_ATTR_` bit, whether the name sets or clears.
const FLAGS: [(&str, u32, u64, bool); 26] = [
    ("ro", 1, attribute::RDONLY, true),
    ("rw", 1, attribute::RDONLY, false),
    ("nosuid", 2, attribute::NOSUID, true),
    ("suid", 2, attribute::NOSUID, false),
    ("nodev", 4, attribute::NODEV, true),
    ("dev", 4, attribute::NODEV, false),
    ("noexec", 8, attribute::NOEXEC, true),
    ("exec", 8, attribute::NOEXEC, false),
    ("nosymfollow", 256, attribute::NOSYMFOLLOW, true),
    ("symfollow", 256, attribute::NOSYMFOLLOW, false),
    ("nodiratime", 2048, attribute::NODIRATIME, true),
    ("diratime", 2048, attribute::NODIRATIME, false),
    ("sync", 16, 0, true),
    ("async", 16, 0, false),
    ("mand", 64, 0, true),
    ("nomand", 64, 0, false),
    ("dirsync", 128, 0, true),
    ("silent", 32768, 0, true),
    ("loud", 32768, 0, false),
    ("remount", REMOUNT, 0, true),
    ("iversion", 1 << 23, 0, true),
    ("noiversion", 1 << 23, 0, false),
    ("lazytime", 1 << 25, 0, true),
    ("nolazytime", 1 << 25, 0, false),
    ("acl", 1 << 16, 0, true),
    ("noacl", 1 << 16, 0, false),
];

const ATIME: [(&str, u32, u64); 6] = [
    ("noatime", 1024, attribute::NOATIME),
    ("relatime", 1 << 21, attribute::RELATIME),
    ("strictatime", 1 << 24, attribute::STRICTATIME),
    ("atime", 0, attribute::STRICTATIME),
    ("norelatime", 0, attribute::STRICTATIME),
    ("nostrictatime", 0, attribute::RELATIME),
];

/// runtime-spec: "Linux mount options".
pub(crate) fn parse(options: &[String]) -> Parsed {
    let mut parsed = Parsed::default();
    for option in options {
        let option = option.as_str();
        if let Some((_, ms, attr, set)) = FLAGS.iter().find(|f| f.0 == option) {
            if *set {
                // A bind is always made and then changed, which is all that is meant.
                if *attr == 0 && !matches!(option, "silent" | "remount") {
                    parsed.of_file_system.push(option.to_owned());
                }
                parsed.flags |= ms;
                parsed.set |= attr;
                parsed.clear &= !attr;
            } else {
                parsed.flags &= !ms;
                parsed.clear |= attr;
                parsed.set &= !attr;
            }
        } else if let Some((_, ms, attr)) = ATIME.iter().find(|f| f.0 == option) {
            parsed.flags |= ms;
            parsed.set = parsed.set & !attribute::ATIME | attr;
            // Access time modes are one field: it must be cleared as a whole before another value is set.
            parsed.clear |= attribute::ATIME;
        } else if let Some((_, _, attr, set)) = option
            .strip_prefix('r')
            .and_then(|plain| FLAGS.iter().find(|f| f.0 == plain && f.2 != 0))
        {
            if *set {
                parsed.recursive_set |= attr;
            } else {
                parsed.recursive_clear |= attr;
            }
        } else if let Some((_, _, attr)) = option
            .strip_prefix('r')
            .and_then(|plain| ATIME.iter().find(|f| f.0 == plain))
        {
            parsed.recursive_set |= attr;
            parsed.recursive_clear |= attribute::ATIME;
        } else {
            match option {
                "bind" => parsed.bind = true,
                "rbind" => {
                    parsed.bind = true;
                    parsed.recursive = true;
                }
                "tmpcopyup" => parsed.copy_up = true,
                "idmap" => parsed.idmap = Some(false),
                "ridmap" => parsed.idmap = Some(true),
                "defaults" | "" => {}
                option if option.starts_with(SUBPATH) => {
                    parsed.subpath = Some(PathBuf::from(&option[SUBPATH.len()..]));
                }
                option if option.starts_with(LAYER) => {
                    parsed.layers.push(PathBuf::from(&option[LAYER.len()..]));
                }
                option => match parse_propagation(option) {
                    Some(change) => parsed.propagation.push(change),
                    None => parsed.data.push(option.to_owned()),
                },
            }
        }
    }
    parsed
}

impl Parsed {
    /// The first option that would have no effect on a mount of this type.
    pub(crate) fn not_for(&self, kind: &str, bind: bool) -> Option<&str> {
        /// What a new v2 hierarchy can be told; a container's is the host's, so they are said already.
        const CGROUP2: [&str; 4] = [
            "nsdelegate",
            "memory_localevents",
            "memory_recursiveprot",
            "favordynmods",
        ];
        if self.copy_up && (bind || kind != "tmpfs") {
            return Some("tmpcopyup");
        }
        if self.idmap.is_some() && !bind {
            return Some("idmap");
        }
        let data = |allowed: &[&str]| {
            let unknown = |option: &&String| !allowed.contains(&option.as_str());
            self.data.iter().find(unknown).map(String::as_str)
        };
        match kind {
            _ if bind => data(&[]).or(self.of_file_system.first().map(String::as_str)),
            "cgroup" | "cgroup2" => data(&CGROUP2),
            // What the file system itself knows the kernel says.
            _ => None,
        }
    }
}

/// Every option name that [`parse`] knows, for `features`.
pub(crate) fn option_names() -> Vec<String> {
    let plain = FLAGS.iter().map(|f| f.0).chain(ATIME.iter().map(|f| f.0));
    let recursive = FLAGS.iter().filter(|f| f.2 != 0).map(|f| f.0);
    let recursive = recursive.chain(ATIME.iter().map(|f| f.0));
    let mut names: Vec<String> = plain
        .chain(["bind", "rbind", "tmpcopyup", "idmap", "ridmap", "defaults"])
        .chain(["private", "shared", "slave", "unbindable"])
        .chain(["rprivate", "rshared", "rslave", "runbindable"])
        .map(str::to_owned)
        .chain(recursive.map(|name| format!("r{name}")))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A kind of sharing and whether it goes for everything below too.
pub(crate) fn parse_propagation(name: &str) -> Option<(u64, bool)> {
    Some(match name {
        "private" => (propagation::PRIVATE, false),
        "rprivate" => (propagation::PRIVATE, true),
        "shared" => (propagation::SHARED, false),
        "rshared" => (propagation::SHARED, true),
        "slave" => (propagation::SLAVE, false),
        "rslave" => (propagation::SLAVE, true),
        "unbindable" => (propagation::UNBINDABLE, false),
        "runbindable" => (propagation::UNBINDABLE, true),
        _ => return None,
    })
}

/// What must stand at a mount's destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Opens `path` inside `root`, making what is missing: folders on the way, and at its end what `kind` says.
pub(crate) fn ensure(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    match mount::open_in_root(&root, path, HANDLE) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let (Kind::Directory, Some(parent), Some(name)) =
                (kind, path.parent(), path.file_name())
                && let Ok(parent) = mount::open_in_root(&root, parent, HANDLE)
                && let Ok(made) = make_folder(&parent, name)
            {
                return Ok(made);
            }
            make(root, path, kind)
        }
        other => other,
    }
}

/// A new folder in one that is open. What has the name already, a dangling link perhaps, is left to [`make`].
fn make_folder(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let flags = HANDLE | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Walks `path` one name at a time without ever letting the kernel follow a link; links are read and walked the same way, so that
/// a dangling one gets its target made inside the root, as every runtime does.
fn make(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    const LINKS: u32 = 40;
    let mut links = 0;
    let mut walked: Vec<OwnedFd> = vec![root.as_fd().try_clone_to_owned()?];
    let mut rest = reversed(path);
    while let Some(name) = rest.pop() {
        if name == ".." {
            if walked.len() > 1 {
                walked.pop();
            }
            continue;
        }
        let directory = walked.last().expect("the root is never popped");
        let open =
            || rustix::fs::openat(directory, &name, HANDLE | OFlags::NOFOLLOW, Mode::empty());
        let found = match open() {
            Err(rustix::io::Errno::NOENT) => {
                if rest.is_empty() && kind == Kind::File {
                    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(directory, &name, flags, Mode::from_raw_mode(0o644))
                        .map(drop)
                } else {
                    rustix::fs::mkdirat(directory, &name, Mode::from_raw_mode(0o755))
                }
                .or_else(|e| match e {
                    rustix::io::Errno::EXIST => Ok(()),
                    e => Err(e),
                })?;
                open()?
            }
            other => other?,
        };
        let stat = rustix::fs::fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            if target.is_absolute() {
                walked.truncate(1);
            }
            rest.extend(reversed(target));
        } else {
            walked.push(found);
        }
    }
    Ok(walked.pop().expect("the root at least"))
}

fn reversed(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    names.reverse();
    names
}

/// What mounting needs to know about the container.
pub(crate) struct Context<'a> {
    pub(crate) root: &'a OwnedFd,
    pub(crate) bundle: Option<&'a Path>,
    pub(crate) cgroup: &'a Cgroup,
    /// The container has a cgroup namespace of its own.
    pub(crate) cgroup_namespace: bool,
    pub(crate) mount_label: &'a str,
    pub(crate) uid_mappings: &'a [IdMapping],
    pub(crate) gid_mappings: &'a [IdMapping],
}

/// A detached copy of what a mount binds, or `None` for other mounts.
pub(crate) fn bind_source(
    wanted: &Mount,
    bundle: Option<&Path>,
    linux: &Linux,
) -> Result<Option<OwnedFd>, Failure> {
    let parsed = parse(&wanted.options);
    if !parsed.bind && wanted.kind != "bind" {
        return Ok(None);
    }
    clone_source(wanted, &parsed, bundle)
        .and_then(|tree| {
            map_ids(
                &tree,
                wanted,
                &parsed,
                &linux.uid_mappings,
                &linux.gid_mappings,
            )?;
            Ok(Some(tree))
        })
        .map_err(|e| failure(wanted, &e))
}

fn clone_source(wanted: &Mount, parsed: &Parsed, bundle: Option<&Path>) -> io::Result<OwnedFd> {
    let mut source = PathBuf::from(&wanted.source);
    if let (true, Some(bundle)) = (source.is_relative(), bundle) {
        source = bundle.join(source);
    }
    let mut opened = rustix::fs::openat(CWD, &source, HANDLE, Mode::empty())?;
    if let Some(subpath) = &parsed.subpath {
        opened = mount::open_in_root(&opened, subpath, OFlags::PATH)?;
    }
    mount::clone_tree(opened, parsed.recursive)
}

/// Makes one mount of the spec. `source`: what [`bind_source`] gave, if that had to be done before.
pub(crate) fn mount_one(
    context: &Context<'_>,
    wanted: &Mount,
    source: Option<OwnedFd>,
) -> Result<(), Failure> {
    let parsed = parse(&wanted.options);
    let result = if parsed.bind || wanted.kind == "bind" {
        match source {
            Some(tree) => Ok(tree),
            None => clone_source(wanted, &parsed, context.bundle).and_then(|tree| {
                let (uids, gids) = (context.uid_mappings, context.gid_mappings);
                map_ids(&tree, wanted, &parsed, uids, gids)?;
                Ok(tree)
            }),
        }
        .and_then(|tree| bind(context, &tree, wanted, &parsed))
    } else if !parsed.layers.is_empty() {
        mount_image(context, wanted, &parsed)
    } else if matches!(wanted.kind.as_str(), "cgroup" | "cgroup2") {
        mount_cgroup(context, wanted, &parsed)
    } else if parsed.flags & REMOUNT != 0 {
        remount(context, wanted, &parsed)
    } else {
        new_file_system(context, wanted, &parsed)
    };
    result.map_err(|e| failure(wanted, &e))
}

fn failure(wanted: &Mount, error: &io::Error) -> Failure {
    let mut text = format!(
        "error mounting {:?} to rootfs at {:?}: {}",
        match wanted.source.as_str() {
            "" => &wanted.kind,
            source => source,
        },
        wanted.destination,
        errno_text(error),
    );
    if error.raw_os_error() == Some(rustix::io::Errno::NOTDIR.raw_os_error()) {
        text.push_str(": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type");
        return Failure::new(127, text);
    }
    Failure::new(128, text)
}

fn new_file_system(context: &Context<'_>, wanted: &Mount, parsed: &Parsed) -> io::Result<()> {
    let destination = Path::new(&wanted.destination);
    let target = ensure(context.root, destination, Kind::Directory)?;
    if matches!(wanted.kind.as_str(), "proc" | "sysfs") {
        // A link here would put the real thing where masks and read-only paths do not look.
        mount::open_in_root_no_links(context.root, destination, HANDLE).map_err(|_| {
            io::Error::other(format!(
                "filesystem {:?} must be mounted on ordinary directory",
                wanted.kind
            ))
        })?;
    }
    let mut data = parsed.data.join(",");
    if !context.mount_label.is_empty() && !matches!(wanted.kind.as_str(), "proc" | "sysfs") {
        if !data.is_empty() {
            data.push(',');
        }
        data.push_str(&format!("context=\"{}\"", context.mount_label));
    }
    let kind = CString::new(wanted.kind.as_str())?;
    let data = CString::new(data)?;
    let source = if wanted.source.is_empty() {
        Path::new(&wanted.kind)
    } else {
        Path::new(&wanted.source)
    };
    // A tmpfs that is to be filled first is made read-only by the caller afterwards.
    let late = wanted.kind == "tmpfs" && (parsed.copy_up || destination == Path::new("/dev"));
    let flags = if late {
        parsed.flags & !1
    } else {
        parsed.flags
    };
    let flags = Flags::from_bits_retain(flags as _);
    if parsed.copy_up && wanted.kind == "tmpfs" {
        return copy_up(context, wanted, parsed, &target, flags, &data);
    }
    mount::mount_at(source, &target, &kind, flags, &data)?;
    if !parsed.propagation.is_empty() || parsed.recursive_set | parsed.recursive_clear != 0 {
        let mounted = mount::open_in_root(context.root, destination, HANDLE)?;
        set_recursive(&mounted, parsed)?;
        propagate(&mounted, parsed)?;
    }
    Ok(())
}

/// Changes what is mounted at the destination already.
fn remount(context: &Context<'_>, wanted: &Mount, parsed: &Parsed) -> io::Result<()> {
    let mounted = mount::open_in_root(context.root, Path::new(&wanted.destination), HANDLE)?;
    if !parsed.data.is_empty() || !parsed.of_file_system.is_empty() {
        let kind = CString::new(wanted.kind.as_str())?;
        let data = CString::new(parsed.data.join(","))?;
        let flags = Flags::from_bits_retain(parsed.flags as _);
        mount::mount_at(Path::new(&wanted.source), &mounted, &kind, flags, &data)?;
    }
    // The mount alone where that is enough: the file system below may be the host's, too.
    let change = Attributes {
        set: parsed.set,
        clear: parsed.clear,
        ..Attributes::default()
    };
    mount::set_attributes(&mounted, false, &change)?;
    set_recursive(&mounted, parsed)?;
    propagate(&mounted, parsed)
}

/// The files of an image, read-only; of a subpath only what lies there, also when links in the image lead elsewhere.
fn mount_image(context: &Context<'_>, wanted: &Mount, parsed: &Parsed) -> io::Result<()> {
    let overlay = Overlay {
        lowers: parsed.layers.clone(),
        upper: None,
    };
    let mut tree = detached_overlay(&overlay)?;
    if parsed.layers.len() == 1 {
        tree = mount::clone_tree(&tree, false)?;
    }
    let target = ensure(
        context.root,
        Path::new(&wanted.destination),
        Kind::Directory,
    )?;
    let read_only = Attributes {
        set: attribute::RDONLY | parsed.set,
        ..Attributes::default()
    };
    mount::set_attributes(&tree, false, &read_only)?;
    mount::attach(&tree, &target)?;
    if let Some(subpath) = &parsed.subpath {
        // Only what is attached can be cloned on every kernel: the part hides the whole, which then nothing reaches.
        let part = mount::open_in_root(&tree, subpath, OFlags::PATH)?;
        let part = mount::clone_tree(part, false)?;
        mount::attach(&part, &tree)?;
    }
    Ok(())
}

fn set_recursive(mounted: &OwnedFd, parsed: &Parsed) -> io::Result<()> {
    if parsed.recursive_set | parsed.recursive_clear == 0 {
        return Ok(());
    }
    let all = Attributes {
        set: parsed.recursive_set,
        clear: parsed.recursive_clear,
        ..Attributes::default()
    };
    mount::set_attributes(mounted, true, &all)
}

fn propagate(mounted: &OwnedFd, parsed: &Parsed) -> io::Result<()> {
    for (propagation, recursive) in &parsed.propagation {
        let change = Attributes {
            propagation: *propagation,
            ..Attributes::default()
        };
        mount::set_attributes(mounted, *recursive, &change)?;
    }
    Ok(())
}

/// What the image has under the destination appears in the new tmpfs too.
fn copy_up(
    context: &Context<'_>,
    wanted: &Mount,
    parsed: &Parsed,
    below: &OwnedFd,
    flags: Flags,
    data: &CString,
) -> io::Result<()> {
    mount::mount_at(Path::new("tmpfs"), below, c"tmpfs", flags, data)?;
    let mounted = mount::open_in_root(context.root, Path::new(&wanted.destination), HANDLE)?;
    copy_tree(below, &mounted, 0)?;
    if parsed.flags & 1 != 0 {
        let change = Attributes {
            set: attribute::RDONLY,
            ..Attributes::default()
        };
        mount::set_attributes(&mounted, false, &change)?;
    }
    set_recursive(&mounted, parsed)?;
    propagate(&mounted, parsed)
}

fn copy_tree(from: &OwnedFd, to: &OwnedFd, depth: u32) -> io::Result<()> {
    const DEPTH: u32 = 200;
    if depth > DEPTH {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let directory = rustix::fs::openat(
        from,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let own = rustix::fs::fstat(&directory)?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(&directory, to, name, depth)?;
    }
    copy_owner_and_mode(to, &own)
}

fn copy_owner_and_mode(to: &OwnedFd, stat: &rustix::fs::Stat) -> io::Result<()> {
    use rustix::fs::{AtFlags, Gid, Uid};
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    // An O_PATH descriptor takes no fchmod; through /proc the kernel starts at it.
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    Ok(rustix::fs::chmod(mount::fd_path(to).as_path(), mode)?)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, depth: u32) -> io::Result<()> {
    let opened = rustix::fs::openat(from, name, HANDLE | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = rustix::fs::fstat(&opened)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode)?;
            let made = rustix::fs::openat(to, name, HANDLE | OFlags::NOFOLLOW, Mode::empty())?;
            copy_tree(&opened, &made, depth + 1)
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source: std::fs::File =
                rustix::fs::openat(from, name, flags, Mode::empty())?.into();
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, name, flags, mode)?;
            let mut copy = std::fs::File::from(made);
            io::copy(&mut source, &mut copy)?;
            copy_owner_and_mode(&copy.into(), &stat)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&opened, "", Vec::new())?;
            Ok(rustix::fs::symlinkat(&target, to, name)?)
        }
        kind => Ok(rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?),
    }
}

fn bind(context: &Context<'_>, tree: &OwnedFd, wanted: &Mount, parsed: &Parsed) -> io::Result<()> {
    let directory =
        FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) == FileType::Directory;
    let kind = if directory {
        Kind::Directory
    } else {
        Kind::File
    };
    let mut top = Attributes {
        set: parsed.set,
        clear: parsed.clear,
        ..Attributes::default()
    };
    if top.set != 0 || top.clear != 0 {
        // Asking for read-write on a source that is read-only by nature stays without effect, not without mount.
        top.clear &= !top.set | attribute::ATIME;
        mount::set_attributes(tree, false, &top)?;
    }
    set_recursive(tree, parsed)?;
    let target = ensure(context.root, Path::new(&wanted.destination), kind)?;
    let below = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode);
    if (below == FileType::Directory) != directory {
        // move_mount(2) calls this an invalid argument; people know it by mount(2)'s word.
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    mount::attach(tree, &target)?;
    propagate(tree, parsed)
}

/// Gives a tree that is attached nowhere yet the mappings which an id-mapped mount asks for, by default the container's. Needs rights
/// over the file system that it comes from.
fn map_ids(
    tree: &OwnedFd,
    wanted: &Mount,
    parsed: &Parsed,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> io::Result<()> {
    if parsed.idmap.is_none() && wanted.uid_mappings.is_empty() {
        return Ok(());
    }
    let or = |own: &'_ [IdMapping], default: &[IdMapping]| -> Vec<IdMapping> {
        if own.is_empty() {
            default.to_vec()
        } else {
            own.to_vec()
        }
    };
    let namespace = user_namespace_with(
        &or(&wanted.uid_mappings, uids),
        &or(&wanted.gid_mappings, gids),
    )?;
    let change = Attributes {
        set: attribute::IDMAP,
        user_namespace: Some(BorrowedFdId(namespace.as_fd())),
        ..Attributes::default()
    };
    mount::set_attributes(tree, parsed.idmap.unwrap_or(false), &change)
}

/// A user namespace lives as long as a descriptor of it: a child that only waits holds it while it gets its maps.
fn user_namespace_with(uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<OwnedFd> {
    let (wait, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match namespace::clone3(namespace::NEWUSER, None)? {
        namespace::Cloned::Child => {
            drop(hold);
            let _ = rustix::io::read(&wait, &mut [0; 1]);
            gantry_linux::process::exit_now(0)
        }
        namespace::Cloned::Parent { pidfd, .. } => {
            // In this PID namespace's own /proc the child has another number than ours; setns-free: by the pidfd's fdinfo.
            let pid = pid_in_proc(&pidfd)?;
            let result = write_maps(pid, uids, gids).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
            });
            drop(hold);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            result
        }
    }
}

/// The number that the mounted `/proc`, which is still the host's, has for the process of `pidfd`.
fn pid_in_proc(pidfd: &OwnedFd) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Writes the id maps of a process that was born into a new user namespace.
pub(crate) fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<()> {
    let text = |maps: &[IdMapping]| {
        maps.iter()
            .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
            .collect::<String>()
    };
    if rustix::process::geteuid().is_root() {
        std::fs::write(format!("/proc/{pid}/gid_map"), text(gids))?;
        return std::fs::write(format!("/proc/{pid}/uid_map"), text(uids));
    }
    // user_namespaces(7): an ordinary user may map its own id alone, and a group only with setgroups denied. More than that is for the
    // helpers, which look into /etc/subuid and /etc/subgid.
    let alone =
        |maps: &[IdMapping], own: u32| matches!(maps, [map] if map.size == 1 && map.host_id == own);
    if alone(gids, rustix::process::getegid().as_raw()) {
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        std::fs::write(format!("/proc/{pid}/gid_map"), text(gids))?;
    } else {
        map_by_helper("newgidmap", pid, gids)?;
    }
    match alone(uids, rustix::process::geteuid().as_raw()) {
        true => std::fs::write(format!("/proc/{pid}/uid_map"), text(uids)),
        false => map_by_helper("newuidmap", pid, uids),
    }
}

fn map_by_helper(program: &str, pid: i32, maps: &[IdMapping]) -> io::Result<()> {
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string());
    for map in maps {
        command.args([map.container_id, map.host_id, map.size].map(|n| n.to_string()));
    }
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| {
            let e = errno_text(&e);
            io::Error::other(format!(
                "more than one's own id is mapped by {program} (package uidmap): {e}"
            ))
        })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// `/sys/fs/cgroup` as the container sees it: its own cgroups only. A bind of the very directories and not a new mount: that would
/// make one superblock per hierarchy and container.
fn mount_cgroup(context: &Context<'_>, wanted: &Mount, parsed: &Parsed) -> io::Result<()> {
    let destination = Path::new(&wanted.destination);
    let clone_directory = |directory: &Path| -> io::Result<OwnedFd> {
        let source = rustix::fs::openat(CWD, directory, HANDLE, Mode::empty())?;
        let tree = mount::clone_tree(&source, false)?;
        let change = Attributes {
            set: parsed.set & !attribute::ATIME,
            ..Attributes::default()
        };
        mount::set_attributes(&tree, false, &change)?;
        Ok(tree)
    };
    if cgroup::is_unified() {
        let target = ensure(context.root, destination, Kind::Directory)?;
        if context.cgroup_namespace {
            let flags = Flags::from_bits_retain(parsed.flags as _);
            return mount::mount_at(Path::new("cgroup"), &target, c"cgroup2", flags, c"");
        }
        let own = context.cgroup.hierarchies().first();
        let own = own.ok_or(io::ErrorKind::NotFound)?;
        let tree = clone_directory(own.directory())?;
        return mount::attach(&tree, &target);
    }
    let target = ensure(context.root, destination, Kind::Directory)?;
    let flags = Flags::from_bits_retain((parsed.flags & !1) as _);
    mount::mount_at(Path::new("tmpfs"), &target, c"tmpfs", flags, c"mode=755")?;
    let top = mount::open_in_root(context.root, destination, HANDLE)?;
    for hierarchy in context.cgroup.hierarchies() {
        let name = hierarchy.name();
        // Hierarchies in which the container got no directory of its own are left out: the creator's is none of its business.
        let tree = match clone_directory(hierarchy.directory()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        // The tmpfs is ours and nobody else has seen it.
        mount::attach(&tree, make_folder(&top, OsStr::new(&name))?)?;
        for controller in hierarchy.controllers() {
            if hierarchy.controllers().len() > 1 && *controller != name {
                rustix::fs::symlinkat(name.as_str(), &top, controller.as_str())?;
            }
        }
    }
    if parsed.flags & 1 != 0 {
        let change = Attributes {
            set: attribute::RDONLY,
            ..Attributes::default()
        };
        mount::set_attributes(&top, false, &change)?;
    }
    Ok(())
}

/// Hides paths: files under a null device, folders under one empty read-only tmpfs that all share.
pub(crate) fn mask(root: &OwnedFd, paths: &[String], null: &OwnedFd) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    let mut mask_one = |path: &str| -> io::Result<()> {
        let target = match mount::open_in_root(root, Path::new(path), HANDLE) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            other => other?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode);
        if kind != FileType::Directory {
            return mount::attach(mount::clone_tree(null, false)?, target);
        }
        if let Some(first) = &empty {
            return mount::attach(mount::clone_tree(first, false)?, target);
        }
        let made = mount::detached(
            c"tmpfs",
            c"tmpfs",
            &[("nr_blocks", b"1"), ("nr_inodes", b"1"), ("ro", b"")],
            attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC,
        )?;
        mount::attach(&made, target)?;
        empty = Some(made);
        Ok(())
    };
    for path in paths {
        mask_one(path).map_err(|e| {
            Failure::new(128, format!("can't mask path {path:?}: {}", errno_text(&e)))
        })?;
    }
    Ok(())
}

/// Makes paths read-only with everything below them.
pub(crate) fn make_read_only(root: &OwnedFd, paths: &[String]) -> Result<(), Failure> {
    let one = |path: &str| -> io::Result<()> {
        let target = match mount::open_in_root(root, Path::new(path), HANDLE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let tree = mount::clone_tree(&target, true)?;
        let change = Attributes {
            set: attribute::RDONLY,
            ..Attributes::default()
        };
        mount::set_attributes(&tree, false, &change)?;
        mount::attach(tree, target)
    };
    for path in paths {
        one(path).map_err(|e| {
            Failure::new(
                128,
                format!("can't make {path:?} read-only: {}", errno_text(&e)),
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Parsed {
        parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted() {
        let dev = options("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(dev.flags, 2 | 1 << 24);
        assert_eq!(dev.data, ["mode=755", "size=65536k"]);
        let volume = options("rbind,rprivate,ro");
        assert!(volume.bind && volume.recursive && volume.data.is_empty());
        assert_eq!(volume.set, attribute::RDONLY);
        assert_eq!(volume.propagation, [(propagation::PRIVATE, true)]);
        assert_eq!(
            options("rro,rnoexec").recursive_set,
            attribute::RDONLY | attribute::NOEXEC
        );
        assert_eq!(options("ro,rw").set, 0);
        assert_eq!(options("relatime").clear, attribute::ATIME);
    }

    #[test]
    fn dangling_links_are_made_inside() {
        let base = std::env::temp_dir().join(format!("gantry-mounts-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("root")).unwrap();
        std::os::unix::fs::symlink("/../../outside/x", base.join("root/up")).unwrap();
        std::os::unix::fs::symlink("loop", base.join("root/loop")).unwrap();
        let root: OwnedFd = std::fs::File::open(base.join("root")).unwrap().into();
        ensure(&root, Path::new("/up/y"), Kind::File).unwrap();
        ensure(&root, Path::new("/a/../b/c"), Kind::Directory).unwrap();
        assert!(base.join("root/outside/x/y").is_file());
        assert!(base.join("root/b/c").is_dir());
        assert!(!base.join("outside").exists());
        assert!(ensure(&root, Path::new("/loop/x"), Kind::File).is_err());
        std::fs::remove_dir_all(&base).unwrap();
    }
}
