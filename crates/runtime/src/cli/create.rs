//! create, start and run.

use super::flags::{CONSOLE_SOCKET, DETACH, Flag, Flags, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS};
use super::store::{self, Container, Stored};
use super::{Failure, Globals, protect, terminal};
use crate::cgroup::Cgroup;
use crate::launch::{self, Launch, Launched, Options, Stdio};
use crate::proto::Rootfs;
use crate::{document, hooks, validate};
use gantry_linux::program;
use gantry_oci::runtime::{NamespaceKind, Spec, Status};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const BUNDLE: Flag = (
    "bundle",
    "b",
    true,
    "path to the root of the bundle directory, defaults to the current directory",
);
const NO_PIVOT: Flag = (
    "no-pivot",
    "no-pivot",
    false,
    "do not use pivot root to jail process inside rootfs, for a rootfs on top of a ramdisk",
);
const NO_NEW_KEYRING: Flag = (
    "no-new-keyring",
    "no-new-keyring",
    false,
    "do not create a new session keyring for the container: it inherits the caller's",
);

pub(super) const CREATE_FLAGS: [Flag; 7] = [
    BUNDLE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    PID_FILE,
    NO_PIVOT,
    NO_NEW_KEYRING,
    PRESERVE_FDS,
];

pub(super) const RUN_FLAGS: [Flag; 10] = [
    BUNDLE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    DETACH,
    (
        "keep",
        "keep",
        false,
        "do not delete the container after it exits",
    ),
    PID_FILE,
    (
        "no-subreaper",
        "no-subreaper",
        false,
        "taken for the sake of callers: this program never is a subreaper",
    ),
    NO_PIVOT,
    NO_NEW_KEYRING,
    PRESERVE_FDS,
];

/// More than any sane configuration has.
const CONFIG_LIMIT: u64 = 16 << 20;

/// A bundle read from disk.
struct Bundle {
    path: PathBuf,
    text: Vec<u8>,
    spec: Spec,
    rootfs: PathBuf,
}

impl Bundle {
    fn read(path: Option<&str>) -> Result<Self, Failure> {
        let path = match path {
            Some(given) => {
                let path = std::path::absolute(given)?;
                std::fs::metadata(&path).map_err(|e| {
                    Failure::new(format!("chdir {given}: {}", launch::errno_text(&e)))
                })?;
                path
            }
            None => std::env::current_dir()?,
        };
        let config = path.join("config.json");
        let mut text = Vec::with_capacity(16 << 10);
        let file = std::fs::File::open(&config).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Failure::new("JSON specification file config.json not found")
            }
            _ => e.into(),
        })?;
        io::Read::read_to_end(&mut io::Read::take(file, CONFIG_LIMIT + 1), &mut text)?;
        if text.len() as u64 > CONFIG_LIMIT {
            return Err(Failure::new(format!(
                "config.json: larger than {CONFIG_LIMIT} bytes"
            )));
        }
        let spec = document::spec(&text).map_err(Failure::new)?;
        validate::bundle(&spec).map_err(Failure::new)?;
        let root = spec.root.as_ref().map_or("", |r| r.path.as_str());
        let rootfs = path.join(root);
        match std::fs::metadata(&rootfs) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(Failure::new(format!(
                    "root.path: {root} is not a directory"
                )));
            }
            Err(e) => {
                let e = launch::errno_text(&e);
                return Err(Failure::new(format!(
                    "root.path: stat {}: {e}",
                    rootfs.display()
                )));
            }
        }
        Ok(Self {
            path,
            text,
            spec,
            rootfs,
        })
    }
}

pub(super) fn create(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &CREATE_FLAGS)?;
    flags.expect("create", 1, false)?;
    create_as(globals, &flags).map_err(|failure| failure.while_doing("runc create failed: "))
}

fn create_as(globals: &Globals, flags: &Flags) -> Result<u8, Failure> {
    store::check_id(&flags.positional[0])?;
    protect::ensure(globals)?;
    let bundle = Bundle::read(flags.value("bundle"))?;
    let made = make(globals, flags, &bundle, true)?;
    if let Err(failure) = after_create(flags, &made.launched) {
        made.abandon();
        return Err(failure);
    }
    globals.debug(|| "created: the init waits for start".to_owned());
    Ok(0)
}

struct Made {
    launched: Launched,
    container: Container,
}

impl Made {
    /// Ends what was made and leaves nothing.
    fn abandon(self) {
        let _ = program::send_signal(self.launched.pidfd.as_fd(), 9);
        let _ = reap(&self.launched);
        let _ = self.container.remove();
    }
}

fn make(
    globals: &Globals,
    flags: &Flags,
    bundle: &Bundle,
    detached: bool,
) -> Result<Made, Failure> {
    let id = flags.positional[0].as_str();
    let terminal = bundle.spec.process.as_ref().is_some_and(|p| p.terminal);
    let console_socket = flags.value("console-socket");
    if detached && terminal && console_socket.is_none() {
        return Err(Failure::new(
            "cannot allocate tty if runc will detach without setting console socket",
        ));
    }
    if (!detached || !terminal) && console_socket.is_some() {
        return Err(Failure::new(
            "cannot use console socket if runc will not detach or allocate tty",
        ));
    }
    let namespaces = bundle.spec.linux.as_ref().map(|l| l.namespaces.as_slice());
    let user = NamespaceKind::User;
    if !rustix::process::geteuid().is_root()
        && !namespaces
            .unwrap_or_default()
            .iter()
            .any(|n| n.kind == user)
    {
        return Err(Failure::new(
            "linux.namespaces: an ordinary user's container needs a user namespace",
        ));
    }
    for warning in validate::warnings(&bundle.spec) {
        globals.warn(&warning);
    }
    let preserve_fds = preserved(flags)?;
    globals.debug(|| {
        format!(
            "bundle {}: {} bytes of config.json, root {}, {} mounts",
            bundle.path.display(),
            bundle.text.len(),
            bundle.rootfs.display(),
            bundle.spec.mounts.len()
        )
    });
    let directory = store::claim(globals, id)?;
    globals.debug(|| format!("state in {}", directory.display()));
    let made = make_in(
        flags,
        bundle,
        &directory,
        id,
        terminal,
        detached,
        preserve_fds,
    )
    .inspect_err(|_| {
        let _ = store::remove_directory(&directory);
    })?;
    globals.debug(|| {
        format!(
            "container init is process {}; cgroups: {}",
            made.launched.pid,
            made.container.stored.cgroup.describe()
        )
    });
    Ok(made)
}

/// How many descriptors beyond the standard streams the program keeps; all of them must be open.
pub(super) fn preserved(flags: &Flags) -> Result<u32, Failure> {
    let count = flags.number::<u32>("preserve-fds")?.unwrap_or(0);
    // More than a process can have open: the first that is missing is found long before.
    for fd in (3..).take(count as usize) {
        std::fs::metadata(format!("/proc/self/fd/{fd}")).map_err(|e| {
            let (number, e) = (fd - 3, launch::errno_text(&e));
            Failure::new(format!(
                "unable to stat preserved-fd {number} (of {count}): stat /proc/self/fd/{fd}: {e}"
            ))
        })?;
    }
    Ok(count)
}

fn make_in(
    flags: &Flags,
    bundle: &Bundle,
    directory: &Path,
    id: &str,
    terminal: bool,
    with_fifo: bool,
    preserve_fds: u32,
) -> Result<Made, Failure> {
    let fifo = directory.join("exec.fifo");
    if with_fifo {
        let mode = Mode::from_raw_mode(0o622);
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).map_err(io::Error::from)?;
    }
    let rootfs = Rootfs::Path(bundle.rootfs.clone());
    let mut spec = std::borrow::Cow::Borrowed(&bundle.spec);
    let preserve_fds = preserve_fds + listen_fds(&mut spec);
    let given = bundle
        .spec
        .process
        .as_ref()
        .is_some_and(|p| p.console_size.is_some());
    // In the foreground the terminal is as large as the one it is seen through.
    let size = match terminal && !(with_fifo && given) {
        true => terminal::own_size(),
        false => None,
    };
    let mut stored = Stored {
        version: 1,
        id: id.to_owned(),
        pid: 0,
        start_ticks: 0,
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        created: store::rfc3339(SystemTime::now(), 9),
        owner: rustix::process::getuid().as_raw(),
        cgroup: Cgroup::for_spec(id, &spec)?,
    };
    let lock = store::begin(directory, &stored, &bundle.text)?;
    let launched = launch::launch(Launch {
        id,
        spec: &spec,
        rootfs: &rootfs,
        bundle: Some(&bundle.path),
        stdio: match terminal {
            true => Stdio::Terminal { size },
            false => Stdio::Inherit,
        },
        filter: None,
        links: &[],
        meanwhile: None,
        options: Options {
            die_with_parent: false,
            // We end when it ends, so nothing is won by making its mounts outlive it.
            hold_mounts: false,
            no_pivot: flags.is_set("no-pivot"),
            no_new_keyring: flags.is_set("no-new-keyring"),
            preserve_fds,
            exec_fifo: with_fifo.then_some(fifo.as_path()),
            cgroup: Some(&stored.cgroup),
            ignore_frozen: false,
        },
    })?;
    stored.pid = launched.pid;
    stored.start_ticks = launched.start_ticks;
    let written = store::set_init(directory, &stored);
    drop(lock);
    let made = Made {
        launched,
        container: Container {
            directory: directory.to_owned(),
            stored,
        },
    };
    match written {
        Ok(()) => Ok(made),
        Err(failure) => {
            made.abandon();
            Err(failure)
        }
    }
}

/// sd_listen_fds(3): sockets that were passed to us are the container's, whose first process has another pid.
fn listen_fds(spec: &mut std::borrow::Cow<'_, Spec>) -> u32 {
    let count = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|n| n.parse::<u32>().ok())
        .filter(|n| *n > 0);
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    match (count, ours, &spec.process) {
        (Some(count), true, Some(_)) => {
            if let Some(process) = &mut spec.to_mut().process {
                process.env.push(format!("LISTEN_FDS={count}"));
                process.env.push("LISTEN_PID=1".to_owned());
                if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
                    process.env.push(format!("LISTEN_FDNAMES={names}"));
                }
            }
            count
        }
        _ => 0,
    }
}

/// Hands over the terminal and writes the pid file.
fn after_create(flags: &Flags, launched: &Launched) -> Result<(), Failure> {
    if let (Some(socket), Some(console)) = (flags.value("console-socket"), &launched.console) {
        terminal::hand_over(socket, terminal::CONSOLE, console)?;
    }
    if let Some(socket) = flags.value("pidfd-socket") {
        terminal::hand_over(socket, "standard", &launched.pidfd)?;
    }
    write_pid_file(flags.value("pid-file"), launched.pid)
}

/// Atomic: who waits for the file never reads half a number.
pub(super) fn write_pid_file(path: Option<&str>, pid: i32) -> Result<(), Failure> {
    let Some(path) = path.map(Path::new) else {
        return Ok(());
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    let failed = |what: &str, e: &io::Error| {
        let e = launch::errno_text(e);
        Failure::new(format!("{what} {}: {e}", temporary.display()))
    };
    std::fs::write(&temporary, pid.to_string()).map_err(|e| failed("open", &e))?;
    std::fs::rename(&temporary, path).map_err(|e| failed("rename", &e))
}

pub(super) fn start(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &[])?;
    flags.expect("start", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    match container.status() {
        // Nobody would hear of the start before somebody thaws it.
        Status::Created if container.stored.cgroup.stops() => {
            return Err(Failure::new("cannot start a container in the paused state"));
        }
        Status::Created => {
            release(&container)?;
            globals.debug(|| "the program was executed".to_owned());
        }
        Status::Stopped => return Err(Failure::new("cannot start a container that has stopped")),
        Status::Paused => {
            return Err(Failure::new("cannot start a container in the paused state"));
        }
        _ => {
            return Err(Failure::new("cannot start an already running container"));
        }
    }
    if let Ok(spec) = container.spec() {
        run_poststart(&container, &spec)?;
    }
    Ok(0)
}

/// Writes the byte that the init waits for, then waits until its exec has closed the FIFO: the only reader is the init.
fn release(container: &Container) -> Result<(), Failure> {
    let path = container.fifo();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(|e| match e {
        // Nobody reads: the init has died.
        rustix::io::Errno::NXIO => Failure::new("cannot start a container that has stopped"),
        // Another start was faster.
        rustix::io::Errno::NOENT => Failure::new("cannot start an already running container"),
        e => io::Error::from(e).into(),
    })?;
    // Whoever takes the name away is the one that starts it.
    std::fs::remove_file(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::new("cannot start an already running container"),
        _ => e.into(),
    })?;
    rustix::io::write(&fifo, b"0").map_err(io::Error::from)?;
    let mut poll = [PollFd::new(&fifo, PollFlags::empty())];
    loop {
        match rustix::event::poll(&mut poll, None) {
            Ok(_) if poll[0].revents().contains(PollFlags::ERR) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

fn run_poststart(container: &Container, spec: &Spec) -> Result<(), Failure> {
    let Some(hooks) = spec.hooks.as_ref().filter(|h| !h.poststart.is_empty()) else {
        return Ok(());
    };
    let mut state = container.document(Some(spec));
    state.status = Status::Running;
    let state = serde_json::to_string(&state).map_err(io::Error::from)?;
    Ok(hooks::run(&hooks.poststart, &state)?)
}

pub(super) fn run_poststop(container: &Container, spec: &Spec) {
    let Some(hooks) = spec.hooks.as_ref().filter(|h| !h.poststop.is_empty()) else {
        return;
    };
    let mut state = container.document(Some(spec));
    state.status = Status::Stopped;
    if let Ok(state) = serde_json::to_string(&state) {
        // runtime-spec: a failing poststop hook is no reason to keep the container.
        let _ = hooks::run(&hooks.poststop, &state);
    }
}

pub(super) fn run(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &RUN_FLAGS)?;
    flags.expect("run", 1, false)?;
    run_as(globals, &flags).map_err(|failure| failure.while_doing("runc run failed: "))
}

fn run_as(globals: &Globals, flags: &Flags) -> Result<u8, Failure> {
    store::check_id(&flags.positional[0])?;
    protect::ensure(globals)?;
    let bundle = Bundle::read(flags.value("bundle"))?;
    let detach = flags.is_set("detach");
    // Signals are caught from here on, so that none that arrives early is lost.
    let forwarder = match detach {
        true => None,
        false => Some(terminal::Forwarder::new()?),
    };
    let mut made = make(globals, flags, &bundle, detach)?;
    let started = after_create(flags, &made.launched).and_then(|()| match detach {
        true => release(&made.container),
        false => Ok(made.launched.start()?),
    });
    let started = started.and_then(|()| run_poststart(&made.container, &bundle.spec));
    if let Err(failure) = started {
        made.abandon();
        return Err(failure);
    }
    globals.debug(|| "the program was executed".to_owned());
    let Some(forwarder) = forwarder else {
        return Ok(0);
    };
    let console = made.launched.console.take();
    forwarder.until_exit(&made.launched.pidfd, console)?;
    let code = reap(&made.launched)?;
    globals.debug(|| format!("the program ended: exit status {code}"));
    // With a PID namespace of its own everything in it is gone; without, what it left behind goes now.
    let own_pids = bundle.spec.linux.as_ref().is_some_and(|l| {
        l.namespace(NamespaceKind::Pid)
            .is_some_and(|n| n.path.is_empty())
    });
    if !own_pids {
        made.container.stored.cgroup.kill_all()?;
    }
    if !flags.is_set("keep") {
        run_poststop(&made.container, &bundle.spec);
        made.container.remove()?;
    }
    Ok(code)
}

fn reap(launched: &Launched) -> Result<u8, Failure> {
    terminal::exit_code(&launched.pidfd)
}
