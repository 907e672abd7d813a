//! Makes a container: from a spec to a first process that waits just before its exec, then lets it go.
//!
//! ```text
//! caller                                         init (child, copy of our memory: the spec needs no encoding)
//!   cgroups, limits
//!   clone3 into all new namespaces  ---------->  enters v1 cgroups, joins given namespaces
//!   id maps                         --'M'----->  (waits, only with a user namespace)
//!   veth pairs                                   mounts, devices, masks          (both at the same time)
//!                                   --'L'----->  addresses and routes
//!   hooks                 <--'N'-- --'H'----->   (only with hooks), pivot_root, user, capabilities, looks up the program
//!                         <--'R' + console----   ready, or 'E' + what failed
//!   start()                         --'G'----->  seccomp, exec: end of the socket
//! ```
//! Start with [`launch`]; the right column is [`crate::init`], its last part [`crate::process`]; [`exec`] joins a running container.

use crate::cgroup::{self, Cgroup, Join};
use crate::proto::{Link, Rootfs};
use crate::seccomp::{self, Filter};
use crate::{hooks, init, mounts, process, validate};
use gantry_linux::namespace::{self, Cloned};
use gantry_linux::{ipc, netlink, program};
use gantry_oci::runtime::{Linux, NamespaceKind, Process, Resources, Seccomp, Spec, State, Status};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What to make.
pub struct Launch<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub rootfs: &'a Rootfs,
    /// The bundle's folder, which relative paths of the spec start from.
    pub bundle: Option<&'a Path>,
    pub stdio: Stdio,
    /// Compiled seccomp profile; `None` compiles `spec.linux.seccomp`.
    pub filter: Option<&'a Filter>,
    /// Interfaces to make in a new network namespace.
    pub links: &'a [Link],
    /// Called with the init's process id once its namespaces have their links, while it builds its file system.
    pub meanwhile: Option<&'a dyn Fn(i32) -> io::Result<()>>,
    pub options: Options<'a>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The container is killed when the calling process ends.
    pub die_with_parent: bool,
    /// Moves the root over `/` instead of `pivot_root`, for a root on the initial ram disk.
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Descriptors 3 … 3+n-1 of the caller that the program keeps.
    pub preserve_fds: u32,
    /// The container's cgroups, which nobody else may use: the caller has noted them before. `None`: by the spec.
    pub cgroup: Option<&'a Cgroup>,
    /// The caller outlives the container and wants [`Launched::mounts`].
    pub hold_mounts: bool,
    /// A FIFO whose next byte releases the init, instead of [`Launched::start`]: for a caller that ends before.
    pub exec_fifo: Option<&'a Path>,
    /// Joins a container whose cgroup is frozen, and waits until it is not. Otherwise that is refused.
    pub ignore_frozen: bool,
}

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A new terminal; its master comes back as `console`. Columns and rows.
    Terminal { size: Option<(u16, u16)> },
    /// The caller's own.
    Inherit,
}

/// A container whose init waits for [`Launched::start`]. Dropping it before that ends the init (unless it waits on an exec FIFO).
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    /// When it began, in clock ticks since boot: tells it from a later process of the same pid. 0: it has ended.
    pub start_ticks: u64,
    pub pidfd: OwnedFd,
    /// Master of the terminal, from the container's own devpts.
    pub console: Option<OwnedFd>,
    pub cgroup: Cgroup,
    /// Holds the container's mounts. Whoever ends last in a mount namespace waits for an RCU grace period (milliseconds on a busy
    /// machine) while its mounts go; as long as this is open that is not the init, whose exit is so heard of at once. Closed
    /// when the exit was reported, it is the holder that waits.
    pub mounts: Option<OwnedFd>,
    socket: Option<OwnedFd>,
}

/// One message between us and the init.
pub(crate) mod message {
    pub(crate) const MAPPED: u8 = b'M';
    pub(crate) const LINKED: u8 = b'L';
    pub(crate) const NAMESPACES: u8 = b'N';
    pub(crate) const HOOKS_DONE: u8 = b'H';
    pub(crate) const READY: u8 = b'R';
    pub(crate) const GO: u8 = b'G';
    /// Then the exit code, 1 for a sentence that stands alone, the text.
    pub(crate) const ERROR: u8 = b'E';
    pub(crate) const LIMIT: usize = 8192;
}

/// Everything that the init gets by being a copy of us.
pub(crate) struct Plan<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) linux: &'a Linux,
    pub(crate) process: &'a Process,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) join: &'a Join,
    pub(crate) born_in_cgroup: bool,
    /// Namespaces to join that only the process itself can (all but PID).
    pub(crate) joins: Vec<(u64, OwnedFd)>,
    /// Namespaces to make after those joins.
    pub(crate) late: u64,
    /// The caller is an ordinary user.
    pub(crate) rootless: bool,
    /// The init makes its own time namespace.
    pub(crate) own_time: bool,
    pub(crate) new_user: bool,
    pub(crate) new_network: bool,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) prepared: init::Prepared,
}

/// Does everything up to just before the exec; the init is a child of the caller, who reaps it (after an error nothing is left to reap).
///
/// The caller must have one thread. Missing and unexecutable programs are found here.
pub fn launch(launch: Launch<'_>) -> Result<Launched, LaunchError> {
    launch_in(&launch).map_err(|failure| failure.into_create_error())
}

fn launch_in(launch: &Launch<'_>) -> Result<Launched, Failure> {
    let no_linux = Linux::default();
    let linux = launch.spec.linux.as_ref().unwrap_or(&no_linux);
    let no_process = Process::default();
    let process = launch.spec.process.as_ref().unwrap_or(&no_process);
    validate::spec(launch.spec).map_err(|e| Failure::new(128, e))?;
    let compiled;
    let filter = match (launch.filter, &linux.seccomp) {
        (Some(filter), _) => Some(filter),
        (None, Some(profile)) => {
            compiled = seccomp::compile(profile).map_err(|e| Failure::new(128, e))?;
            Some(&compiled)
        }
        (None, None) => None,
    };
    let cgroup = match launch.options.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => Cgroup::for_spec(launch.id, launch.spec).failed("cgroups")?,
    };
    let shared = launch.options.cgroup.is_none();
    let no_resources = Resources::default();
    let resources = linux.resources.as_ref().unwrap_or(&no_resources);
    let join = cgroup
        .create(resources, shared)
        .map_err(|e| Failure::new(128, e))?;
    let made = clone_init(launch, linux, process, &cgroup, &join, filter).and_then(|mut child| {
        // While the init is at work.
        let start_ticks = program::start_ticks(child.pid).unwrap_or(0);
        match child.bring_up(launch, linux) {
            Ok(console) => Ok((child, start_ticks, console)),
            Err(failure) => {
                child.kill();
                Err(failure)
            }
        }
    });
    match made {
        Ok((child, start_ticks, console)) => Ok(Launched {
            mounts: match launch.options.hold_mounts {
                true => open_namespace(&format!("/proc/{}/ns/mnt", child.pid)).ok(),
                false => None,
            },
            pid: child.pid,
            start_ticks,
            pidfd: child.pidfd,
            console,
            cgroup,
            socket: launch.options.exec_fifo.is_none().then_some(child.socket),
        }),
        Err(mut failure) => {
            if failure.text == EARLY_EXIT && cgroup.oom_kills() > 0 {
                failure.text = "container init was OOM-killed (memory limit too low?)".to_owned();
            }
            let _ = cgroup.remove();
            Err(failure)
        }
    }
}

const EARLY_EXIT: &str = "container init exited before it was ready";

struct Child {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

const fn bit(kind: NamespaceKind) -> u64 {
    match kind {
        NamespaceKind::Pid => namespace::NEWPID,
        NamespaceKind::Network => namespace::NEWNET,
        NamespaceKind::Mount => namespace::NEWNS,
        NamespaceKind::Ipc => namespace::NEWIPC,
        NamespaceKind::Uts => namespace::NEWUTS,
        NamespaceKind::User => namespace::NEWUSER,
        NamespaceKind::Cgroup => namespace::NEWCGROUP,
        NamespaceKind::Time => namespace::NEWTIME,
    }
}

/// A namespace for our next children, and the way back for us.
struct ForChildren {
    kind: u64,
    own: OwnedFd,
}

impl ForChildren {
    fn enter(kind: u64, name: &str, change: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        let own = open_namespace(&format!("/proc/self/ns/{name}"))?;
        change()?;
        Ok(Self { kind, own })
    }
}

impl Drop for ForChildren {
    fn drop(&mut self) {
        // Only fails if the namespace was no ancestor, and then entering would have failed before.
        let _ = namespace::setns(&self.own, self.kind);
    }
}

fn open_namespace(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn clone_init<'a>(
    launch: &'a Launch<'a>,
    linux: &'a Linux,
    process: &'a Process,
    cgroup: &'a Cgroup,
    join: &'a Join,
    filter: Option<&'a Filter>,
) -> Result<Child, Failure> {
    let mut flags = 0;
    let mut joins = Vec::new();
    let mut for_children = Vec::new();
    for wanted in &linux.namespaces {
        let kind = bit(wanted.kind);
        if wanted.path.is_empty() {
            flags |= kind;
            continue;
        }
        let fd = open_namespace(&wanted.path).map_err(|e| {
            Failure::new(
                128,
                format!(
                    "linux.namespaces: namespace {:?}: {}",
                    wanted.path,
                    errno_text(&e)
                ),
            )
        })?;
        if kind == namespace::NEWPID {
            let entered = ForChildren::enter(kind, "pid", || namespace::setns(&fd, kind));
            for_children.push(entered.failed("joining the PID namespace")?);
        } else {
            joins.push((kind, fd));
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    // An ordinary user may make one only inside its user namespace; the init is in it from its exec on.
    let own_time = flags & namespace::NEWUSER != 0 && !is_root && flags & namespace::NEWTIME != 0;
    if own_time {
        flags &= !namespace::NEWTIME;
    } else if flags & namespace::NEWTIME != 0 {
        flags &= !namespace::NEWTIME;
        let entered = ForChildren::enter(namespace::NEWTIME, "time", || new_time_namespace(linux));
        for_children.push(entered.failed("making the time namespace")?);
    }
    // The cgroup namespace's root is where a process is when it makes it, and init enters v1 cgroups only later.
    let mut late = flags & namespace::NEWCGROUP;
    flags &= !late;
    if joins.iter().any(|(kind, _)| *kind == namespace::NEWUSER) {
        // New ones must belong to the user namespace that is joined first.
        late |= flags & !namespace::NEWPID;
        flags &= namespace::NEWPID;
    }
    let prepared = init::Prepared::new(launch, linux, flags & namespace::NEWUSER != 0)?;
    let (ours, theirs) = socket_pair()?;
    let clone = |cgroup| namespace::clone3(flags, cgroup);
    let mut born_in_cgroup = join.unified.is_some();
    let cloned = match clone(join.unified.as_ref().map(AsFd::as_fd)) {
        // Before 5.7 there is no CLONE_INTO_CGROUP; and a v2 cgroup may refuse births it would take moves into.
        Err(e)
            if born_in_cgroup
                && e.raw_os_error() != Some(rustix::io::Errno::PERM.raw_os_error()) =>
        {
            born_in_cgroup = false;
            clone(None)
        }
        other => other,
    };
    match cloned.failed("clone")? {
        Cloned::Parent { pid, pidfd } => Ok(Child {
            pid,
            pidfd,
            socket: ours,
        }),
        Cloned::Child => {
            drop(ours);
            let plan = Plan {
                launch,
                linux,
                process,
                cgroup,
                join,
                born_in_cgroup,
                joins,
                late,
                own_time,
                rootless: !is_root,
                new_user: flags & namespace::NEWUSER != 0,
                new_network: (flags | late) & namespace::NEWNET != 0,
                filter,
                prepared,
            };
            init::run(plan, theirs)
        }
    }
}

pub(crate) fn new_time_namespace(linux: &Linux) -> io::Result<()> {
    namespace::unshare(namespace::NEWTIME)?;
    let offsets: String = linux
        .time_offsets
        .iter()
        .map(|(clock, offset)| {
            format!(
                "{clock} {} {}\n",
                offset.secs.unwrap_or(0),
                offset.nanosecs.unwrap_or(0)
            )
        })
        .collect();
    if offsets.is_empty() {
        return Ok(());
    }
    std::fs::write("/proc/self/timens_offsets", offsets)
}

fn socket_pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io::Error::from)
    .failed("socketpair")
}

pub(crate) fn send(socket: &OwnedFd, kind: u8) -> io::Result<()> {
    ipc::send(socket, &[IoSlice::new(&[kind])], &[]).map(|_| ())
}

impl Child {
    fn bring_up(&mut self, launch: &Launch<'_>, linux: &Linux) -> Result<Option<OwnedFd>, Failure> {
        if new_user(linux) {
            mounts::write_maps(self.pid, &linux.uid_mappings, &linux.gid_mappings)
                .failed("linux.uidMappings, linux.gidMappings: writing the id maps")?;
            self.send(message::MAPPED)?;
        }
        if !launch.links.is_empty() {
            for link in launch.links {
                make_link(link, self.pid)?;
            }
            self.send(message::LINKED)?;
        }
        if let Some(work) = launch.meanwhile {
            work(self.pid).failed("setting up the container's name server")?;
        }
        if let Some(hooks) = &launch.spec.hooks
            && hooks::needed_while_creating(hooks)
        {
            self.receive(message::NAMESPACES)?;
            let state = hooks::state(launch, Status::Creating, self.pid);
            hooks::run(&hooks.prestart, &state)?;
            hooks::run(&hooks.create_runtime, &state)?;
            self.send(message::HOOKS_DONE)?;
        }
        self.receive(message::READY)
    }

    fn send(&self, kind: u8) -> Result<(), Failure> {
        match send(&self.socket, kind) {
            // The init is gone; why, it has said before.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.failed("talking to the container's init"),
        }
    }

    fn receive(&self, expected: u8) -> Result<Option<OwnedFd>, Failure> {
        let mut buffer = [0; message::LIMIT];
        let (length, mut descriptors) = loop {
            match ipc::receive(&self.socket, &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.failed("waiting for the container's init")?,
            }
        };
        match &buffer[..length] {
            [kind, ..] if *kind == expected => Ok(descriptors.pop()),
            [message::ERROR, code, plain, text @ ..] => Err(Failure {
                code: i32::from(*code),
                text: String::from_utf8_lossy(text).into_owned(),
                plain: *plain == 1,
            }),
            _ => Err(Failure::new(128, EARLY_EXIT)),
        }
    }

    fn kill(&self) {
        let _ = program::send_signal(self.pidfd.as_fd(), 9);
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

fn new_user(linux: &Linux) -> bool {
    linux
        .namespace(NamespaceKind::User)
        .is_some_and(|n| n.path.is_empty())
}

fn make_link(link: &Link, pid: i32) -> Result<(), Failure> {
    if let Some(parent) = &link.parent {
        let child = netlink::Child {
            kind: match parent.ipvlan {
                true => netlink::ChildKind::Ipvlan(parent.mode),
                false => netlink::ChildKind::Macvlan(u32::from(parent.mode)),
            },
            parent: &parent.interface,
            name: &link.name,
            netns: netlink::Netns::Pid(pid as _),
            mac: (!parent.ipvlan).then_some(link.mac),
            mtu: link.mtu,
        };
        return netlink::RouteSocket::open()
            .and_then(|mut socket| socket.create_child(&child))
            .map_err(|e| {
                let parent = &parent.interface;
                Failure::new(128, format!("making an interface on {parent}: {e}"))
            });
    }
    netlink::create_veth(&netlink::Veth {
        host_name: &link.host_name,
        peer_name: &link.name,
        peer_netns: netlink::Netns::Pid(pid as _),
        master: (!link.bridge.is_empty()).then_some(link.bridge.as_str()),
        peer_mac: Some(link.mac),
        mtu: link.mtu,
        isolated: link.isolated,
    })
    .map_err(|e| Failure::new(128, format!("making interface {}: {e}", link.host_name)))
}

impl Launched {
    /// Releases the init; returns once the program was exec'd. A file that is there but is no program (`exec format error`) is reported
    /// on the container's stderr and by exit status 255, as by every runtime, because by then the container runs.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        match send(&socket, message::GO) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            other => other
                .failed("starting the container's init")
                .map_err(Failure::into_create_error)?,
        }
        wait_for_exec(&socket).map_err(Failure::into_create_error)
    }
}

/// The other end closes with the exec, or with the death of the process, which its exit status tells.
fn wait_for_exec(socket: &OwnedFd) -> Result<(), Failure> {
    let mut buffer = [0; message::LIMIT];
    loop {
        match ipc::receive(socket, &mut buffer) {
            Ok((0, _)) => return Ok(()),
            Ok((length, _)) => {
                if let [message::ERROR, code, plain, text @ ..] = &buffer[..length] {
                    return Err(Failure {
                        code: i32::from(*code),
                        text: String::from_utf8_lossy(text).into_owned(),
                        plain: *plain == 1,
                    });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e).failed("waiting for the exec"),
        }
    }
}

/// A running container that another process joins.
#[derive(Debug)]
pub struct ExecTarget<'a> {
    /// Its first process, as the host sees it.
    pub pid: i32,
    pub cgroup: &'a Cgroup,
    /// Controller (empty for all) and the path below `cgroup` that the process enters instead.
    pub sub_cgroups: &'a [(String, String)],
    /// The profile whose notifications go to a listener, and the container's state for it.
    pub notify: Option<(&'a Seccomp, &'a State)>,
}

#[derive(Debug)]
pub struct ExecLaunched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub console: Option<OwnedFd>,
}

/// Runs `process` in a container. It is a child of the caller, who reaps it. Returns once the program was exec'd.
pub fn exec(
    target: &ExecTarget<'_>,
    process: &Process,
    stdio: Stdio,
    filter: Option<&Filter>,
    options: Options<'_>,
) -> Result<ExecLaunched, LaunchError> {
    exec_in(target, process, &stdio, filter, options).map_err(Failure::into_exec_error)
}

fn exec_in(
    target: &ExecTarget<'_>,
    process: &Process,
    stdio: &Stdio,
    filter: Option<&Filter>,
    options: Options<'_>,
) -> Result<ExecLaunched, Failure> {
    let pid = rustix::process::Pid::from_raw(target.pid)
        .ok_or_else(|| Failure::new(128, "container not running".to_owned()))?;
    let container = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|_| Failure::new(128, "container not running".to_owned()))?;
    let mut joins = process::namespaces_of(target.pid).failed("namespaces of the container")?;
    let user = joins & namespace::NEWUSER != 0;
    let join = match target.sub_cgroups {
        [] => target.cgroup.existing(),
        below => target
            .cgroup
            .below(below)
            .map_err(|e| Failure::new(128, e))?,
    };
    if let (Some(directory), false) = (&join.frozen, options.ignore_frozen) {
        return Err(Failure::new(128, cgroup::frozen(directory)));
    }
    let (ours, theirs) = socket_pair()?;
    let rootless = !rustix::process::geteuid().is_root();
    if user && rootless {
        // Only inside its own user namespace has an ordinary user the right to enter the others. There is no way back, and no need:
        // outside we are who we were.
        namespace::setns(&container, namespace::NEWUSER).failed("joining the user namespace")?;
        joins &= !namespace::NEWUSER;
    }
    // A PID namespace is entered by being born in it: it is set for our next child only, and set back at once.
    let in_pid_namespace = ForChildren::enter(namespace::NEWPID, "pid", || {
        namespace::setns(&container, namespace::NEWPID)
    })
    .failed("joining the PID namespace")?;
    let mut born_in_cgroup = join.unified.is_some();
    let born_in = |cgroup: &OwnedFd| namespace::clone3(0, Some(cgroup.as_fd()));
    let cloned = match &join.unified {
        None => namespace::clone3(0, None),
        Some(cgroup) => match born_in(cgroup) {
            Err(e)
                if target.sub_cgroups.is_empty()
                    && e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) =>
            {
                target
                    .cgroup
                    .unified_of(target.pid, options.ignore_frozen)
                    .and_then(|c| born_in(&c))
            }
            // Before 5.7 there is no CLONE_INTO_CGROUP.
            Err(_) => {
                born_in_cgroup = false;
                namespace::clone3(0, None)
            }
            made => made,
        },
    };
    let (pid, pidfd) = match cloned.failed("clone")? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop(ours);
            let joining = process::Joining {
                container: &container,
                namespaces: joins,
                user,
                rootless,
                cgroups: &join,
                born_in_cgroup,
                notify: target.notify,
            };
            process::run_joined(&joining, process, stdio, filter, options, &theirs)
        }
    };
    drop(in_pid_namespace);
    drop(theirs);
    let child = Child {
        pid,
        pidfd,
        socket: ours,
    };
    let console = child
        .receive(message::READY)
        .and_then(|console| wait_for_exec(&child.socket).map(|()| console));
    match console {
        Ok(console) => Ok(ExecLaunched {
            pid: child.pid,
            pidfd: child.pidfd,
            console,
        }),
        Err(failure) => {
            child.kill();
            Err(failure)
        }
    }
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchError {
    /// 127 no such file, 126 not executable, 128 anything else.
    pub code: i32,
    /// Docker's whole sentence, `OCI runtime create failed: … : unknown`.
    pub message: String,
}

const CREATE_PREFIX: &str = "OCI runtime create failed: ";
const EXEC_PREFIX: &str = "OCI runtime exec failed: ";
const SUFFIX: &str = ": unknown";

impl LaunchError {
    /// What a runtime on its own says, without the daemon's words around it.
    pub fn runtime_message(&self) -> &str {
        let inner = self
            .message
            .strip_prefix(CREATE_PREFIX)
            .or_else(|| self.message.strip_prefix(EXEC_PREFIX));
        match inner {
            Some(inner) => inner.strip_suffix(SUFFIX).unwrap_or(inner),
            None => &self.message,
        }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for LaunchError {}

/// What went wrong, before it is dressed in the words of create or exec.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) text: String,
    /// The text is Docker's whole sentence.
    pub(crate) plain: bool,
}

impl Failure {
    pub(crate) fn new(code: i32, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            plain: false,
        }
    }

    fn into_create_error(self) -> LaunchError {
        self.dress(CREATE_PREFIX, "runc create failed")
    }

    fn into_exec_error(self) -> LaunchError {
        self.dress(EXEC_PREFIX, "exec failed")
    }

    fn dress(self, prefix: &str, what: &str) -> LaunchError {
        let message = match self.plain {
            true => self.text,
            false => format!(
                "{prefix}{what}: unable to start container process: {}{SUFFIX}",
                self.text
            ),
        };
        LaunchError {
            code: self.code,
            message,
        }
    }
}

pub(crate) trait Attempt<T> {
    /// The error with what was attempted in front.
    fn failed(self, attempted: &str) -> Result<T, Failure>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn failed(self, attempted: &str) -> Result<T, Failure> {
        self.map_err(|e| Failure::new(128, format!("{attempted}: {}", errno_text(&e))))
    }
}

/// An error in the words that Go programs use for it: strerror in lower case, without the number.
pub(crate) fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let Some(errno) = error.raw_os_error() else {
        return text;
    };
    let text = text
        .strip_suffix(&format!(" (os error {errno})"))
        .unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_dockers() {
        let e = io::Error::from_raw_os_error(2);
        assert_eq!(errno_text(&e), "no such file or directory");
        let failure = Failure::new(127, "exec: \"nosuch\": executable file not found in $PATH");
        assert_eq!(
            failure.into_create_error().message,
            "OCI runtime create failed: runc create failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH: unknown"
        );
    }
}
