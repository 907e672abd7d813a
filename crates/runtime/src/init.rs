//! The container's first process between clone3 and the exec of the user's program.
//!
//! Runs in a copy of the caller's memory, so it reads the spec where it lies. Every failure goes back over the socket as one sentence.

use crate::launch::{Attempt, Failure, Launch, Plan, Stdio, errno_text, message, send};
use crate::process::{Finish, Gate};
use crate::proto::Rootfs;
use crate::seccomp::Listener;
use crate::{devices, hooks, launch, mounts, process};
use gantry_linux::mount::{self, Attributes, attribute, propagation};
use gantry_linux::process as own;
use gantry_linux::procfs::Procfs;
use gantry_linux::{ipc, namespace, netlink, pty};
use gantry_oci::runtime::{Linux, Mount, NamespaceKind, Status};
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What must be opened with the caller's rights, because the init of a user namespace has none outside.
pub(crate) struct Prepared {
    /// The root, detached.
    root: Option<OwnedFd>,
    /// By mount of the spec, what it binds.
    sources: Vec<Option<OwnedFd>>,
}

impl Prepared {
    pub(crate) fn new(launch: &Launch<'_>, linux: &Linux, new_user: bool) -> Result<Self, Failure> {
        let mut prepared = Self {
            root: None,
            sources: Vec::new(),
        };
        // An ordinary user has no right to clone mounts here, and as root of its own namespace walks where it could walk before.
        if !new_user || !rustix::process::geteuid().is_root() {
            return Ok(prepared);
        }
        // A tree cloned by us may be attached by the init even where it could not walk to it.
        if let Rootfs::Overlay { .. } = launch.rootfs {
            prepared.root = Some(detached_root(launch.rootfs, None)?);
        }
        for wanted in &launch.spec.mounts {
            prepared
                .sources
                .push(mounts::bind_source(wanted, launch.bundle, linux)?);
        }
        Ok(prepared)
    }
}

fn detached_root(rootfs: &Rootfs, bundle: Option<&Path>) -> Result<OwnedFd, Failure> {
    match rootfs {
        Rootfs::Overlay {
            lowers,
            upper,
            work,
        } => mount::overlay(lowers, upper, work, &[]).failed("mounting the overlay"),
        Rootfs::Path(path) => {
            let path = absolute(path, bundle);
            let handle = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
            rustix::fs::openat(CWD, &path, handle, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|fd| mount::clone_tree(fd, true))
                .map_err(|e| {
                    let path = path.display();
                    Failure::new(128, format!("rootfs {path}: {}", errno_text(&e)))
                })
        }
    }
}

fn absolute(path: &Path, bundle: Option<&Path>) -> PathBuf {
    match bundle {
        Some(bundle) if path.is_relative() => bundle.join(path),
        _ => path.to_owned(),
    }
}

/// Never returns: becomes the user's program, or reports and exits.
pub(crate) fn run(plan: Plan<'_>, socket: OwnedFd) -> ! {
    process::hide(plan.rootless);
    let Err(failure) = set_up(plan, &socket);
    process::report(&socket, &failure);
    own::exit_now(1)
}

fn set_up(mut plan: Plan<'_>, socket: &OwnedFd) -> Result<std::convert::Infallible, Failure> {
    if plan.launch.options.die_with_parent {
        own::set_parent_death_signal(9).failed("prctl")?;
    }
    plan.join
        .enter(plan.born_in_cgroup)
        .failed("entering the cgroups")?;
    process::set_oom_score(plan.process)?;
    if plan.new_user {
        expect(socket, message::MAPPED)?;
    }
    if plan.own_time {
        // Before the change of user, which takes the files of our own folder in /proc out of our hands.
        launch::new_time_namespace(plan.linux).failed("making the time namespace")?;
    }
    enter_namespaces(&mut plan)?;
    if !plan.launch.options.no_new_keyring {
        let name = CString::new(format!("_ses.{}", plan.launch.id)).ok();
        // A kernel without keyrings, or a host with its quota of keys used up, is no reason not to run.
        let _ = own::join_session_keyring(name.as_deref());
    }
    rustix::process::umask(Mode::empty());
    set_names(&plan)?;
    write_sysctls(plan.linux)?;
    let (root, terminal) = build_root(&mut plan, socket)?;
    let gate = open_gate(&plan, socket)?;
    let listener = connect_listener(&plan)?;
    enter_root(&plan, &root)?;
    drop(root);
    // Late, so that dropping the old tree goes on while the caller makes the links.
    if plan.new_network {
        if plan.launch.links.is_empty() {
            namespace::loopback_up().failed("setting the loopback interface up")?;
        } else {
            expect(socket, message::LINKED)?;
            configure_links(&plan)?;
        }
    }
    process::finish(Finish {
        process: plan.process,
        stdio: &plan.launch.stdio,
        terminal,
        filter: plan.filter,
        listener,
        personality: plan.linux.personality.as_ref(),
        hooks: plan.launch.spec.hooks.as_ref().map(|hooks| {
            let state = hooks::state(
                plan.launch,
                Status::Created,
                rustix::process::getpid().as_raw_nonzero().get(),
            );
            (hooks.start_container.as_slice(), state)
        }),
        options: plan.launch.options,
        socket,
        gate,
    })
}

/// Waits for one message; the end of the socket means that the caller gave up.
pub(crate) fn expect(socket: &OwnedFd, kind: u8) -> Result<(), Failure> {
    let mut buffer = [0; 8];
    loop {
        match ipc::receive(socket, &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok((1, _)) if buffer[0] == kind => return Ok(()),
            Ok((1, _)) => return Err(Failure::new(128, "messages out of order")),
            _ => own::exit_now(1),
        }
    }
}

fn enter_namespaces(plan: &mut Plan<'_>) -> Result<(), Failure> {
    let joins = std::mem::take(&mut plan.joins);
    let mounts_are_theirs = joins.iter().any(|(kind, _)| *kind == namespace::NEWNS);
    let (user, others): (Vec<_>, Vec<_>) = joins
        .into_iter()
        .partition(|(kind, _)| *kind == namespace::NEWUSER);
    // With the host's rights everything can be joined before the user namespace; what belongs to that one only after it.
    let mut after_user = Vec::new();
    for (kind, fd) in others {
        match namespace::setns(&fd, kind) {
            Err(e) if !user.is_empty() && e.raw_os_error() == Some(1) => {
                after_user.push((kind, fd))
            }
            other => other.failed("joining a namespace")?,
        }
    }
    for (kind, fd) in user.iter().chain(&after_user) {
        namespace::setns(fd, *kind).failed("joining a namespace")?;
    }
    if mounts_are_theirs {
        // From here on descriptors are named through its /proc.
        Procfs::mounted().failed("joining a mount namespace")?;
    }
    if plan.new_user || !user.is_empty() {
        // Root of the new user namespace; the old ids mean nothing in it.
        own::set_group(0).failed("setresgid")?;
        own::set_user(0).failed("setresuid")?;
    }
    if plan.late != 0 {
        namespace::unshare(plan.late).failed("unshare")?;
    }
    Ok(())
}

fn set_names(plan: &Plan<'_>) -> Result<(), Failure> {
    let spec = plan.launch.spec;
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(io::Error::from)
            .failed("sethostname")?;
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .map_err(io::Error::from)
            .failed("setdomainname")?;
    }
    Ok(())
}

/// The kernel looks at the namespaces of who opens the file, not of who mounted.
fn write_sysctls(linux: &Linux) -> Result<(), Failure> {
    if linux.sysctl.is_empty() {
        return Ok(());
    }
    let proc = Procfs::private().failed("opening a procfs for sysctls")?;
    for (name, value) in &linux.sysctl {
        let path = match name.contains('/') {
            true => name.clone(),
            false => name.replace('.', "/"),
        };
        let path = Path::new("sys").join(path);
        proc.write(&path, value).map_err(|e| {
            let path = path.display();
            Failure::new(
                128,
                format!("linux.sysctl: open /proc/{path}: {}", errno_text(&e)),
            )
        })?;
    }
    Ok(())
}

fn configure_links(plan: &Plan<'_>) -> Result<(), Failure> {
    let links: Vec<_> = plan
        .launch
        .links
        .iter()
        .map(|link| netlink::Inside {
            name: &link.name,
            addresses: &link.addresses,
            gateways: &link.gateways,
        })
        .collect();
    netlink::configure_inside(&links)
        .map_err(|e| Failure::new(128, format!("configuring the network: {e}")))
}

fn open_gate(plan: &Plan<'_>, socket: &OwnedFd) -> Result<Gate, Failure> {
    let hooks = plan.launch.spec.hooks.as_ref();
    if hooks.is_some_and(hooks::needed_while_creating) {
        send(socket, message::NAMESPACES).failed("socket")?;
        expect(socket, message::HOOKS_DONE)?;
    }
    if let Some(hooks) = hooks.filter(|h| !h.create_container.is_empty()) {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        hooks::run(
            &hooks.create_container,
            &hooks::state(plan.launch, Status::Creating, pid),
        )?;
    }
    let Some(path) = plan.launch.options.exec_fifo else {
        return Ok(Gate::Socket);
    };
    // For reading and writing, so that the open does not wait for the other end.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fifo = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(io::Error::from)
        .failed("opening the exec FIFO")?;
    Ok(Gate::Fifo(fifo))
}

/// While the host's files are still in reach.
fn connect_listener(plan: &Plan<'_>) -> Result<Option<Listener>, Failure> {
    let Some(profile) = plan.linux.seccomp.as_ref() else {
        return Ok(None);
    };
    if profile.listener_path.is_empty() {
        return Ok(None);
    }
    let state = hooks::state_document(plan.launch, Status::Creating, process::host_pid());
    Listener::connect(profile, &state).map(Some)
}

/// Builds the tree below the new root, which is attached where its own files come from: only this namespace sees that.
fn build_root(
    plan: &mut Plan<'_>,
    _socket: &OwnedFd,
) -> Result<(OwnedFd, Option<pty::Terminal>), Failure> {
    let launch = plan.launch;
    let place = match launch.rootfs {
        Rootfs::Path(path) => absolute(path, launch.bundle),
        Rootfs::Overlay { upper, .. } => upper.clone(),
    };
    isolate(&plan.linux.rootfs_propagation, &place)?;
    let root = match plan.prepared.root.take() {
        Some(root) => root,
        None => detached_root(launch.rootfs, launch.bundle)?,
    };
    let handle = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let target = rustix::fs::openat(CWD, &place, handle, Mode::empty())
        .map_err(io::Error::from)
        .failed("opening the root")?;
    mount::attach(&root, target).failed("attaching the root")?;

    let linux = plan.linux;
    let context = mounts::Context {
        root: &root,
        bundle: launch.bundle,
        cgroup: plan.cgroup,
        cgroup_namespace: linux.namespace(NamespaceKind::Cgroup).is_some(),
        mount_label: &linux.mount_label,
        uid_mappings: &linux.uid_mappings,
        gid_mappings: &linux.gid_mappings,
    };
    let mut sources = plan.prepared.sources.drain(..);
    for wanted in &launch.spec.mounts {
        mounts::mount_one(&context, wanted, sources.next().flatten())?;
    }
    drop(sources);
    let dev = |m: &&Mount| m.destination.trim_end_matches('/') == "/dev";
    let dev = launch.spec.mounts.iter().rfind(dev);
    match dev.is_some_and(|m| mounts::parse(&m.options).bind || m.kind == "bind") {
        false => devices::populate(&root, &linux.devices)?,
        // Somebody else's folder: what the spec wants must be in it.
        true => devices::expect(&root, &linux.devices)?,
    }
    let terminal = open_terminal(plan, &root)?;
    if let Some(dev) = dev.filter(|m| m.kind == "tmpfs" && m.options.iter().any(|o| o == "ro")) {
        set_read_only(&root, Path::new(&dev.destination))?;
    }
    if !linux.masked_paths.is_empty() {
        mounts::mask(&root, &linux.masked_paths, &devices::null(&root)?)?;
    }
    mounts::make_read_only(&root, &linux.readonly_paths)?;
    let cwd = Path::new(&plan.process.cwd);
    if cwd != Path::new("/") {
        // A read-only image without it is found out when the process changes into it.
        let _ = mounts::ensure(&root, cwd, mounts::Kind::Directory);
    }
    if launch.spec.root.as_ref().is_some_and(|r| r.readonly) {
        set_read_only(&root, Path::new("/"))?;
    }
    Ok((root, terminal))
}

fn set_read_only(root: &OwnedFd, path: &Path) -> Result<(), Failure> {
    let change = Attributes {
        set: attribute::RDONLY,
        ..Attributes::default()
    };
    mount::open_in_root(root, path, OFlags::PATH)
        .and_then(|mounted| mount::set_attributes(&mounted, false, &change))
        .failed("making the root read-only")
}

/// Nothing that is mounted here may travel to the host. What the host mounts later still arrives, unless the spec says otherwise.
fn isolate(wanted: &str, place: &Path) -> Result<(), Failure> {
    const RECURSIVE: u64 = 1 << 14;
    match wanted {
        "shared" | "rshared" => {
            // Binds shall stay peers of the host's mounts, so only the mount under the new root is cut off.
            for ancestor in place.ancestors() {
                match mount::set_propagation(ancestor, propagation::PRIVATE) {
                    // Not the root of a mount.
                    Err(e) if e.raw_os_error() == Some(22) => {}
                    other => return other.failed("making the root's parent mount private"),
                }
            }
            Ok(())
        }
        "private" | "rprivate" => {
            mount::set_propagation(Path::new("/"), propagation::PRIVATE | RECURSIVE)
                .failed("mount propagation")
        }
        _ => mount::set_propagation(Path::new("/"), propagation::SLAVE | RECURSIVE)
            .failed("mount propagation"),
    }
}

fn open_terminal(plan: &Plan<'_>, root: &OwnedFd) -> Result<Option<pty::Terminal>, Failure> {
    let Stdio::Terminal { size } = plan.launch.stdio else {
        return Ok(None);
    };
    let size = size.or_else(|| {
        let size = plan.process.console_size.as_ref()?;
        Some((size.width.try_into().ok()?, size.height.try_into().ok()?))
    });
    let mut mounts = plan.launch.spec.mounts.iter();
    let terminal = if mounts.any(|m| m.destination == "/dev/pts") {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        mount::open_in_root(root, Path::new("/dev/pts/ptmx"), flags)
            .and_then(|ptmx| pty::Terminal::from_ptmx(ptmx, size))
    } else {
        pty::Terminal::of_host(size)
    };
    let terminal = terminal.failed("making the terminal")?;
    mounts::ensure(root, Path::new("/dev/console"), mounts::Kind::File)
        .and_then(|target| mount::attach(mount::clone_tree(&terminal.slave, false)?, target))
        .failed("mounting /dev/console")?;
    Ok(Some(terminal))
}

/// Without `pivot_root` the host's tree stays below the container's, and a process there could make a user namespace and mount a whole
/// `/proc` or `/sys`: the kernel only asks whether one is visible. The host's go before.
fn hide_host_views() -> Result<(), Failure> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").failed("reading the mount table")?;
    let mut places = Vec::new();
    for line in table.lines() {
        let mut fields = line.split(' ');
        let (Some(top), Some(place)) = (fields.nth(3), fields.next()) else {
            continue;
        };
        let kind = line.split(" - ").nth(1).and_then(|f| f.split(' ').next());
        // The container's own are further down, below the place where its root is attached.
        let of_host = matches!(place, "/proc" | "/sys");
        if of_host && top == "/" && matches!(kind, Some("proc" | "sysfs")) {
            places.push(place.to_owned());
        }
    }
    for place in places {
        rustix::mount::unmount(place.as_str(), rustix::mount::UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .failed("taking the host's proc and sys away")?;
    }
    Ok(())
}

fn enter_root(plan: &Plan<'_>, root: &OwnedFd) -> Result<(), Failure> {
    if plan.launch.options.no_pivot {
        hide_host_views()?;
        mount::move_root(root).failed("moving the root")?;
    } else {
        mount::pivot_root(root).failed("pivot_root")?;
    }
    match mounts::parse_propagation(&plan.linux.rootfs_propagation) {
        Some((kind, recursive)) if kind != propagation::SLAVE && kind != propagation::PRIVATE => {
            let flags = kind | if recursive { 1 << 14 } else { 0 };
            mount::set_propagation(Path::new("/"), flags).failed("mount propagation")
        }
        _ => Ok(()),
    }
}

/// Tells the caller that everything is done up to the exec, and gives it the terminal.
pub(crate) fn ready(socket: &OwnedFd, console: Option<&OwnedFd>) -> Result<(), Failure> {
    let descriptors: Vec<_> = console.iter().map(|fd| fd.as_fd()).collect();
    ipc::send(socket, &[IoSlice::new(&[message::READY])], &descriptors)
        .map(|_| ())
        .failed("socket")
}
