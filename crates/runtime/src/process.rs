//! From a process in the right place to the user's program: streams, limits, user, capabilities, seccomp, exec.
//! The same for a container's init and for a process that joins later.
//!
//! Two orders matter. The program is looked up with the rights that it will have, before the caller hears "ready", so that a missing one is
//! an error of create. And the filter comes as late as it can: with no_new_privs as the very last thing; without, while
//! CAP_SYS_ADMIN is still permitted, so that only capset and exec happen under it.
//!
//! Spec: runtime-spec "Process".

use crate::cgroup::Join;
use crate::init;
use crate::launch::{Attempt, Failure, Options, Stdio, errno_text, message};
use crate::seccomp::{Filter, Listener};
use crate::{hooks, users};
use gantry_linux::capabilities::{self, Sets};
use gantry_linux::process::{self as own, Strings};
use gantry_linux::procfs::Procfs;
use gantry_linux::{ipc, namespace, pty};
use gantry_oci::runtime::{Hook, Personality, Process, Scheduler, Seccomp, State};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(crate) enum Gate {
    /// The caller's next message.
    Socket,
    /// Its next byte.
    Fifo(OwnedFd),
    None,
}

pub(crate) struct Finish<'a> {
    pub(crate) process: &'a Process,
    pub(crate) stdio: &'a Stdio,
    pub(crate) terminal: Option<pty::Terminal>,
    pub(crate) filter: Option<&'a Filter>,
    /// Where notifications of the filter go, if anywhere.
    pub(crate) listener: Option<Listener>,
    pub(crate) personality: Option<&'a Personality>,
    /// startContainer, with their state document.
    pub(crate) hooks: Option<(&'a [Hook], String)>,
    pub(crate) options: Options<'a>,
    pub(crate) socket: &'a OwnedFd,
    pub(crate) gate: Gate,
}

/// Sends a failure to the caller.
pub(crate) fn report(socket: &OwnedFd, failure: &Failure) {
    let mut text = failure.text.as_bytes();
    text = &text[..text.len().min(message::LIMIT - 3)];
    let head = [
        message::ERROR,
        u8::try_from(failure.code).unwrap_or(128),
        u8::from(failure.plain),
    ];
    if ipc::send(socket, &[IoSlice::new(&head), IoSlice::new(text)], &[]).is_err() {
        // The caller that made us has ended, as create does; who started us reads the container's stderr.
        let _ = rustix::io::write(rustix::stdio::stderr(), text);
        let _ = rustix::io::write(rustix::stdio::stderr(), b"\n");
    }
}

/// Until the exec nobody in the container may look into this process: it still holds the host's memory, rights and descriptors.
///
/// `rootless`: what the caller is, not we: in a user namespace anybody may be root by now. For an ordinary user it would also close its
/// own files in `/proc`, and whoever could look in is that same user.
pub(crate) fn hide(rootless: bool) {
    if !rootless {
        let _ = own::set_dumpable(false);
    }
}

/// Through the host's `/proc`, so before the root changes.
pub(crate) fn set_oom_score(process: &Process) -> Result<(), Failure> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    let write = |proc: Procfs| proc.write(Path::new("self/oom_score_adj"), &score.to_string());
    Procfs::mounted().and_then(write).map_err(|e| {
        Failure::new(
            128,
            format!("write /proc/self/oom_score_adj: {}", errno_text(&e)),
        )
    })
}

pub(crate) fn finish(finish: Finish<'_>) -> Result<Infallible, Failure> {
    let process = finish.process;
    own::reset_signals();
    connect_streams(finish.stdio, finish.terminal.as_ref())?;
    let user = users::resolve(&process.user)?;
    let environment = environment(process, &user);
    let environment = Strings::new(environment.iter().map(String::as_str))
        .ok_or_else(|| Failure::new(128, "environment variable contains a zero byte"))?;
    let arguments = Strings::new(process.args.iter().map(String::as_str))
        .ok_or_else(|| Failure::new(128, "argument contains a zero byte"))?;
    set_scheduling(process, finish.personality)?;
    for limit in &process.rlimits {
        set_limit(&limit.kind, limit.soft, limit.hard)?;
    }
    give_streams_to(user.uid);
    let changed = change_directory(&process.cwd);
    let capabilities = Wanted::of(process);
    become_user(process, &user, &capabilities)?;
    if finish.options.die_with_parent {
        // The change of user has cleared it.
        own::set_parent_death_signal(9).failed("prctl")?;
    }
    if changed.is_err() {
        // A folder that only the user may enter, on a file system that knows no root.
        change_directory(&process.cwd)?;
    }
    let path = look_up(&process.args[0], path_of(process))?;
    set_app_armor(&process.apparmor_profile)?;

    init::ready(finish.socket, finish.terminal.as_ref().map(|t| &t.master))?;
    pass(&finish.gate, finish.socket)?;
    drop(finish.terminal);
    // From here on the container counts as started: what fails now is its own exit status, not an error of ours.
    let first = 3 + finish.options.preserve_fds as i32;
    own::close_on_exec_from(first).failed("close_range")?;
    for fd in 3..first {
        own::keep_on_exec(fd).failed("preserving a descriptor")?;
    }
    if process.no_new_privileges {
        own::set_no_new_privileges().failed("prctl")?;
        capabilities.drop_rest()?;
        install(finish.filter, finish.listener.as_ref())?;
    } else {
        if finish.filter.is_some() {
            capabilities.raise_for_filter()?;
            install(finish.filter, finish.listener.as_ref())?;
        }
        capabilities.drop_rest()?;
    }
    if let Some((start_container, state)) = &finish.hooks {
        // They are the container's: no more is allowed to them than to its program.
        hooks::run(start_container, state)?;
    }
    let error = own::exec(&path, &arguments, &environment);
    let text = format!("exec {}: {}\n", path.to_string_lossy(), errno_text(&error));
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    own::exit_now(255)
}

fn pass(gate: &Gate, socket: &OwnedFd) -> Result<(), Failure> {
    match gate {
        Gate::None => Ok(()),
        Gate::Socket => init::expect(socket, message::GO),
        Gate::Fifo(fifo) => loop {
            let mut byte = [0];
            match rustix::io::read(fifo, &mut byte) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1) if byte == *b"0" => return Ok(()),
                // The container is deleted.
                _ => own::exit_now(1),
            }
        },
    }
}

/// Standard streams in place; with a terminal it also becomes the controlling one of a new session.
fn connect_streams(stdio: &Stdio, terminal: Option<&pty::Terminal>) -> Result<(), Failure> {
    let place = |fd: BorrowedFd<'_>, number: i32| -> io::Result<()> {
        Ok(match number {
            0 => rustix::stdio::dup2_stdin(fd),
            1 => rustix::stdio::dup2_stdout(fd),
            _ => rustix::stdio::dup2_stderr(fd),
        }?)
    };
    match (stdio, terminal) {
        (_, Some(terminal)) => {
            pty::become_session_of(&terminal.slave).failed("controlling terminal")?;
            for number in 0..3 {
                place(terminal.slave.as_fd(), number).failed("dup2")?;
            }
        }
        (
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
            None,
        ) => {
            session()?;
            // One of them may sit on a number that another is about to get: all out of the way first.
            let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
            let low = [stdin, stdout, stderr].iter().any(|fd| fd.as_raw_fd() < 3);
            if low {
                for (number, fd) in [stdin, stdout, stderr].into_iter().map(away).enumerate() {
                    let fd = fd.map_err(io::Error::from).failed("dup")?;
                    place(fd.as_fd(), number as i32).failed("dup2")?;
                }
            } else {
                for (number, fd) in [stdin, stdout, stderr].into_iter().enumerate() {
                    place(fd.as_fd(), number as i32).failed("dup2")?;
                }
            }
        }
        (_, None) => session()?,
    }
    Ok(())
}

fn session() -> Result<(), Failure> {
    match rustix::process::setsid() {
        // Already the leader of a group, as the child of a supervisor that made it so.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(e) => Err(io::Error::from(e)).failed("setsid"),
    }
}

/// So that a program of another user can open `/dev/stdout` again. Descriptors that cannot change hands stay as they are.
fn give_streams_to(uid: u32) {
    // Not by what is at /dev/null: the container may have put something else there, and the host's own would change hands.
    let null = rustix::fs::makedev(1, 3);
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = rustix::fs::fstat(stream) else {
            continue;
        };
        // The null device is everybody's.
        if stat.st_uid == uid || stat.st_rdev == null {
            continue;
        }
        let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
    }
}

fn environment(process: &Process, user: &users::User) -> Vec<String> {
    let mut environment = process.env.clone();
    environment.retain(|e| e != "HOME=");
    if !environment.iter().any(|e| e.starts_with("HOME=")) {
        environment.push(format!("HOME={}", user.home));
    }
    environment
}

fn set_limit(name: &str, soft: u64, hard: u64) -> Result<(), Failure> {
    let resource = own::resource(name)
        .ok_or_else(|| Failure::new(128, format!("wrong rlimit value: {name}")))?;
    own::set_limit(resource, soft, hard).map_err(|e| {
        Failure::new(
            128,
            format!("error setting rlimit type {resource}: {}", errno_text(&e)),
        )
    })
}

fn set_scheduling(process: &Process, personality: Option<&Personality>) -> Result<(), Failure> {
    if let Some(personality) = personality {
        let domain = &personality.domain;
        let persona = persona(domain)
            .ok_or_else(|| Failure::new(128, format!("invalid personality domain {domain}")))?;
        own::set_personality(persona).failed("personality")?;
    }
    if let Some(priority) = &process.io_priority {
        let class = io_class(&priority.class).ok_or_else(|| {
            Failure::new(
                128,
                format!("invalid io priority class: {}", priority.class),
            )
        })?;
        own::set_io_priority(class, priority.priority.clamp(0, 7) as u32)
            .failed("failed to set io priority")?;
    }
    if let Some(scheduler) = &process.scheduler {
        let scheduling = scheduling(scheduler).map_err(|e| Failure::new(128, e))?;
        own::set_scheduling(scheduling).failed("process.scheduler: error setting scheduler")?;
    }
    Ok(())
}

/// The number of a personality's domain.
pub(crate) fn persona(domain: &str) -> Option<u32> {
    match domain {
        "LINUX" => Some(0),
        "LINUX32" => Some(8),
        _ => None,
    }
}

/// The number of an I/O class.
pub(crate) fn io_class(name: &str) -> Option<u32> {
    match name {
        "IOPRIO_CLASS_RT" => Some(1),
        "IOPRIO_CLASS_BE" => Some(2),
        "IOPRIO_CLASS_IDLE" => Some(3),
        _ => None,
    }
}

/// `0-3,7` as its numbers; `None` for what is no such list.
pub(crate) fn cpu_list(text: &str) -> Option<Vec<usize>> {
    const MOST: usize = 8192;
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<usize>().ok().filter(|n| *n < MOST),
            false => None,
        };
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// What sched_setattr(2) gets; an error names the field.
pub(crate) fn scheduling(wanted: &Scheduler) -> Result<own::Scheduling, String> {
    const POLICIES: [(&str, u32); 6] = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 1),
        ("SCHED_FLAG_RECLAIM", 2),
        ("SCHED_FLAG_DL_OVERRUN", 4),
        ("SCHED_FLAG_KEEP_POLICY", 8),
        ("SCHED_FLAG_KEEP_PARAMS", 16),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 32),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 64),
    ];
    let policy = POLICIES
        .iter()
        .find(|(name, _)| *name == wanted.policy)
        .ok_or_else(|| {
            let policy = &wanted.policy;
            format!("process.scheduler.policy: invalid scheduler policy: {policy:?}")
        })?;
    let mut flags = 0;
    for name in &wanted.flags {
        flags |= FLAGS
            .iter()
            .find(|(known, _)| known == name)
            .ok_or_else(|| format!("process.scheduler.flags: invalid scheduler flag: {name:?}"))?
            .1;
    }
    Ok(own::Scheduling {
        policy: policy.1,
        flags,
        nice: wanted.nice.unwrap_or(0),
        priority: wanted.priority.unwrap_or(0).max(0) as u32,
        runtime: wanted.runtime.unwrap_or(0),
        deadline: wanted.deadline.unwrap_or(0),
        period: wanted.period.unwrap_or(0),
        ..own::Scheduling::default()
    })
}

fn change_directory(cwd: &str) -> Result<(), Failure> {
    if cwd.is_empty() {
        return Ok(());
    }
    let refuse = |e: io::Error| {
        Failure::new(
            128,
            format!(
                "chdir to cwd ({cwd:?}) set in config.json failed: {}",
                errno_text(&e)
            ),
        )
    };
    rustix::process::chdir(cwd).map_err(|e| refuse(e.into()))?;
    // A folder outside the root (a leaked descriptor through /proc/self/fd, CVE-2024-21626) has no path in here.
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Failure::new(
            128,
            "current working directory is outside of container mount namespace root -- possible container breakout detected",
        )),
    }
}

/// What the process shall have, cut to what this host has to give.
struct Wanted {
    bounding: u64,
    ambient: u64,
    held: u64,
    last: Sets,
}

impl Wanted {
    fn of(process: &Process) -> Self {
        let none = Default::default();
        let wanted = process.capabilities.as_ref().unwrap_or(&none);
        let held = capabilities::get().map_or(0, |sets| sets.permitted);
        let set = |names| capabilities::set_of(names) & held;
        let permitted = set(&wanted.permitted);
        let inheritable = set(&wanted.inheritable);
        Self {
            bounding: capabilities::set_of(&wanted.bounding),
            // The kernel allows only what is permitted and inheritable.
            ambient: set(&wanted.ambient) & permitted & inheritable,
            held,
            last: Sets {
                effective: set(&wanted.effective) & permitted,
                permitted,
                inheritable,
            },
        }
    }

    /// Acts with the final rights while it may still raise others.
    fn pretend(&self) -> Result<(), Failure> {
        let sets = Sets {
            permitted: self.held,
            ..self.last
        };
        capabilities::set(&sets).failed("unable to apply caps")
    }

    fn raise_for_filter(&self) -> Result<(), Failure> {
        let sets = Sets {
            effective: self.held,
            permitted: self.held,
            inheritable: self.last.inheritable,
        };
        capabilities::set(&sets).failed("unable to apply caps")
    }

    fn drop_rest(&self) -> Result<(), Failure> {
        capabilities::set(&self.last).failed("unable to apply caps")?;
        capabilities::set_ambient(self.ambient).failed("unable to apply caps")
    }
}

fn become_user(
    process: &Process,
    user: &users::User,
    capabilities: &Wanted,
) -> Result<(), Failure> {
    let mask = process.user.umask.unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    capabilities::limit_bounding(capabilities.bounding).failed("unable to apply bounding set")?;
    capabilities::keep_over_setuid(true).failed("unable to set keep caps")?;
    match own::set_groups(&user.groups) {
        // An ordinary user's namespace may not change groups; then there are none to drop either.
        Err(e) if e.raw_os_error() == Some(1) && user.groups.is_empty() => {}
        other => other.failed("setgroups")?,
    }
    own::set_group(user.gid).failed("setgid")?;
    own::set_user(user.uid).failed("setuid")?;
    capabilities.pretend()
}

fn path_of(process: &Process) -> &str {
    process
        .env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or("")
}

/// As Go's exec.LookPath does it, whose words Docker's users know.
fn look_up(name: &str, path: &str) -> Result<CString, Failure> {
    let refuse = |code, why: &str| Failure::new(code, format!("exec: {name:?}: {why}"));
    let c_string = |path: &str| CString::new(path).map_err(|_| refuse(127, "invalid argument"));
    if name.is_empty() {
        return Err(refuse(127, "executable file not found in $PATH"));
    }
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c_string(name),
            Err(Refusal::Stat(e)) => {
                let e = io::Error::from(e);
                let code = if e.kind() == io::ErrorKind::PermissionDenied {
                    126
                } else {
                    127
                };
                Err(refuse(code, &format!("stat {name}: {}", errno_text(&e))))
            }
            Err(Refusal::Directory) => Err(refuse(126, "is a directory")),
            Err(Refusal::Access) => Err(refuse(126, "permission denied")),
        };
    }
    for directory in path.split(':').filter(|_| !path.is_empty()) {
        let candidate = match directory {
            "" => format!("./{name}"),
            directory => Path::new(directory)
                .join(name)
                .to_string_lossy()
                .into_owned(),
        };
        if executable(&candidate).is_ok() {
            if !candidate.starts_with('/') {
                return Err(refuse(
                    127,
                    "cannot run executable found relative to current directory",
                ));
            }
            return c_string(&candidate);
        }
    }
    Err(refuse(127, "executable file not found in $PATH"))
}

enum Refusal {
    Stat(rustix::io::Errno),
    Directory,
    Access,
}

fn executable(path: &str) -> Result<(), Refusal> {
    let stat = rustix::fs::stat(path).map_err(Refusal::Stat)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(Refusal::Directory);
    }
    rustix::fs::accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|_| Refusal::Access)
}

fn set_app_armor(profile: &str) -> Result<(), Failure> {
    if profile.is_empty() {
        return Ok(());
    }
    let refuse = || {
        Failure::new(
            128,
            "unable to apply apparmor profile: apparmor is not available",
        )
    };
    // The container's own /proc may be anything; a lie there would leave the program unconfined.
    let proc = Procfs::private().map_err(|_| refuse())?;
    let text = format!("exec {profile}");
    // The newer place first; a kernel with AppArmor alone has only the second.
    ["self/attr/apparmor/exec", "self/attr/exec"]
        .iter()
        .find_map(|path| proc.write(Path::new(path), &text).ok())
        .ok_or_else(refuse)
}

fn install(filter: Option<&Filter>, listener: Option<&Listener>) -> Result<(), Failure> {
    let Some(filter) = filter else {
        return Ok(());
    };
    let notifications = gantry_linux::seccomp::install(&filter.program, filter.flags)
        .failed("unable to install the seccomp filter")?;
    match (notifications, listener) {
        (Some(notifications), Some(listener)) => listener.hand_over(&notifications)?,
        // Nobody would ever answer.
        (Some(_), None) => {
            return Err(Failure::new(
                128,
                "seccomp filter notifies, but no listenerPath is given",
            ));
        }
        (None, _) => {}
    }
    Ok(())
}

/// The namespaces of a process that differ from ours, as `NEW…` bits, all but its PID namespace.
pub(crate) fn namespaces_of(pid: i32) -> io::Result<u64> {
    const KINDS: [(&str, u64); 7] = [
        ("mnt", namespace::NEWNS),
        ("uts", namespace::NEWUTS),
        ("ipc", namespace::NEWIPC),
        ("net", namespace::NEWNET),
        ("cgroup", namespace::NEWCGROUP),
        ("user", namespace::NEWUSER),
        ("time", namespace::NEWTIME),
    ];
    let mut all = 0;
    for (name, kind) in KINDS {
        let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/{name}"));
        let ours = rustix::fs::stat(format!("/proc/self/ns/{name}"));
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) if theirs.st_ino != ours.st_ino => all |= kind,
            (Ok(_), Ok(_)) => {}
            // A kernel without this kind.
            (_, Err(_)) => {}
            (Err(e), Ok(_)) => return Err(e.into()),
        }
    }
    Ok(all)
}

/// Our pid as the host's `/proc` has it, which must be the one that is mounted.
pub(crate) fn host_pid() -> i32 {
    std::fs::read_link("/proc/self")
        .ok()
        .and_then(|link| link.to_str()?.parse().ok())
        .unwrap_or(0)
}

fn set_affinity(when: &str, list: Option<&str>) -> Result<(), Failure> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(());
    };
    let refuse = |why: &str| {
        let text = format!("process.execCPUAffinity.{when}: setting CPU affinity {list:?}: {why}");
        Failure::new(128, text)
    };
    let cpus = cpu_list(list).ok_or_else(|| refuse("invalid argument"))?;
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(refuse("invalid argument"));
        }
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|e| refuse(&errno_text(&e.into())))
}

pub(crate) struct Joining<'a> {
    pub(crate) container: &'a OwnedFd,
    pub(crate) namespaces: u64,
    /// The container has a user namespace that is not ours by birth.
    pub(crate) user: bool,
    /// The caller is an ordinary user.
    pub(crate) rootless: bool,
    pub(crate) cgroups: &'a Join,
    pub(crate) born_in_cgroup: bool,
    pub(crate) notify: Option<(&'a Seccomp, &'a State)>,
}

/// The child of [`crate::launch::exec`]: never returns.
pub(crate) fn run_joined(
    joining: &Joining<'_>,
    process: &Process,
    stdio: &Stdio,
    filter: Option<&Filter>,
    options: Options<'_>,
    socket: &OwnedFd,
) -> ! {
    hide(joining.rootless);
    let Err(failure) = join_and_finish(joining, process, stdio, filter, options, socket);
    report(socket, &failure);
    own::exit_now(1)
}

fn join_and_finish(
    joining: &Joining<'_>,
    process: &Process,
    stdio: &Stdio,
    filter: Option<&Filter>,
    options: Options<'_>,
    socket: &OwnedFd,
) -> Result<Infallible, Failure> {
    if options.die_with_parent {
        own::set_parent_death_signal(9).failed("prctl")?;
    }
    let affinity = process.exec_cpu_affinity.as_ref();
    // Before the container's cgroups are entered, and so not bound to their CPUs.
    set_affinity("initial", affinity.map(|a| a.initial.as_str()))?;
    joining
        .cgroups
        .enter(joining.born_in_cgroup)
        .failed("entering the cgroups")?;
    set_affinity("final", affinity.map(|a| a.finally.as_str()))?;
    set_oom_score(process)?;
    let listener = match joining.notify {
        Some((profile, state)) => {
            let state = State {
                pid: Some(host_pid()),
                ..state.clone()
            };
            Some(Listener::connect(profile, &state)?)
        }
        None => None,
    };
    if joining.namespaces != 0 {
        namespace::setns(joining.container, joining.namespaces).failed("joining the container")?;
    }
    if joining.user {
        own::set_group(0).failed("setresgid")?;
        own::set_user(0).failed("setresuid")?;
    }
    if !options.no_new_keyring {
        let _ = own::join_session_keyring(None);
    }
    if process.args.is_empty() {
        return Err(Failure::new(128, "process.args must not be empty"));
    }
    let terminal = match stdio {
        Stdio::Terminal { size } => {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let size = size.or_else(|| {
                let size = process.console_size.as_ref()?;
                Some((size.width.try_into().ok()?, size.height.try_into().ok()?))
            });
            let terminal = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|ptmx| pty::Terminal::from_ptmx(ptmx, size))
                .failed("making the terminal")?;
            Some(terminal)
        }
        _ => None,
    };
    finish(Finish {
        process,
        stdio,
        terminal,
        filter,
        listener,
        personality: None,
        hooks: None,
        options,
        socket,
        gate: Gate::None,
    })
}
