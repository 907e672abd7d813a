//! exec: another process in a running container.

use super::create::{preserved, write_pid_file};
use super::flags::{CONSOLE_SOCKET, DETACH, Flag, Flags, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS};
use super::{Failure, Globals, protect, store, terminal};
use crate::launch::{self, ExecLaunched, ExecTarget, Options, Stdio};
use crate::{document, seccomp, validate};
use gantry_linux::program;
use gantry_oci::runtime::{Process, Spec, Status};
use std::os::fd::AsFd;

pub(super) const FLAGS: [Flag; 17] = [
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    DETACH,
    PID_FILE,
    PRESERVE_FDS,
    (
        "cwd",
        "cwd",
        true,
        "current working directory in the container",
    ),
    ("env", "e", true, "set environment variables"),
    ("tty", "t", false, "allocate a pseudo-TTY"),
    ("user", "u", true, "UID (format: <uid>[:<gid>])"),
    ("additional-gids", "g", true, "additional gids"),
    ("process", "p", true, "path to the process.json"),
    (
        "process-label",
        "process-label",
        true,
        "set the SELinux label of the process (refused)",
    ),
    (
        "apparmor",
        "apparmor",
        true,
        "set the apparmor profile for the process",
    ),
    (
        "no-new-privs",
        "no-new-privs",
        false,
        "set the no new privileges value for the process",
    ),
    (
        "cap",
        "c",
        true,
        "add a capability to the bounding set for the process",
    ),
    (
        "cgroup",
        "cgroup",
        true,
        "run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>",
    ),
    (
        "ignore-paused",
        "ignore-paused",
        false,
        "allow exec in a paused container: it goes on when the container does",
    ),
];

pub(super) fn exec(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &FLAGS)?;
    flags.expect("exec", 1, true)?;
    exec_in(globals, &flags).map_err(|failure| Failure {
        // Unlike every number that a program ends with by itself.
        code: 255,
        ..failure.while_doing("exec failed: ")
    })
}

fn exec_in(globals: &Globals, flags: &Flags) -> Result<u8, Failure> {
    protect::ensure(globals)?;
    let container = store::load(globals, &flags.positional[0])?;
    let status = container.status();
    match status {
        // A created one has everything but its program.
        Status::Running | Status::Created => {}
        Status::Paused if flags.is_set("ignore-paused") => {}
        Status::Paused => {
            return Err(Failure::new(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        Status::Stopped => {
            return Err(Failure::new("cannot exec in a stopped container"));
        }
        Status::Creating => return Err(store::does_not_exist()),
    }
    let spec = container.spec()?;
    let process = process(flags, &spec)?;
    validate::joining(&process).map_err(Failure::new)?;
    for warning in validate::joining_warnings(&process, &spec) {
        globals.warn(&warning);
    }
    let preserve_fds = preserved(flags)?;
    let sub_cgroups = sub_cgroups(flags.all("cgroup"))?;
    let detach = flags.is_set("detach");
    if detach && process.terminal && flags.value("console-socket").is_none() {
        return Err(Failure::new(
            "cannot allocate tty if runc will detach without setting console socket",
        ));
    }
    if flags.value("console-socket").is_some() && !(detach && process.terminal) {
        return Err(Failure::new(
            "cannot use console socket if runc will not detach or allocate tty",
        ));
    }
    let filter = spec
        .linux
        .as_ref()
        .and_then(|l| l.seccomp.as_ref())
        .map(seccomp::compile)
        .transpose()
        .map_err(Failure::new)?;
    let paused = status == Status::Paused;
    let catch = || match detach {
        true => Ok(None),
        false => terminal::Forwarder::new().map(Some),
    };
    // Signals are caught before there is somebody to pass them on to, so that none is lost. Only who waits for a paused container
    // to go on is ended by them.
    let early = match paused {
        true => None,
        false => catch()?,
    };
    globals.debug(|| {
        format!(
            "joining the namespaces of process {}, cgroups: {}; args {:?}, cwd {:?}",
            container.stored.pid,
            container.stored.cgroup.describe(),
            process.args,
            process.cwd
        )
    });
    let notify = spec
        .linux
        .as_ref()
        .and_then(|l| l.seccomp.as_ref())
        .filter(|profile| !profile.listener_path.is_empty());
    let state = container.document(Some(&spec));
    let launched = launch::exec(
        &ExecTarget {
            pid: container.stored.pid,
            cgroup: &container.stored.cgroup,
            sub_cgroups: &sub_cgroups,
            notify: notify.map(|profile| (profile, &state)),
        },
        &process,
        match process.terminal {
            true => Stdio::Terminal {
                // In the foreground it is as large as the one it is seen through.
                size: match detach && process.console_size.is_some() {
                    true => None,
                    false => terminal::own_size(),
                },
            },
            false => Stdio::Inherit,
        },
        filter.as_ref(),
        Options {
            preserve_fds,
            ignore_frozen: paused,
            ..Options::default()
        },
    )?;
    globals.debug(|| format!("the program is process {}", launched.pid));
    if let Err(failure) = after_launch(flags, &launched, detach) {
        // Nobody knows of it: it must not live on, nor stay behind as a zombie that keeps the container from ending.
        let _ = program::send_signal(launched.pidfd.as_fd(), 9);
        let _ = terminal::exit_code(&launched.pidfd);
        return Err(failure);
    }
    let forwarder = match paused {
        true => catch()?,
        false => early,
    };
    let Some(forwarder) = forwarder else {
        return Ok(0);
    };
    forwarder.until_exit(&launched.pidfd, launched.console)?;
    terminal::exit_code(&launched.pidfd)
}

/// Hands over the terminal and writes the pid file.
fn after_launch(flags: &Flags, launched: &ExecLaunched, detach: bool) -> Result<(), Failure> {
    let console = launched.console.as_ref().filter(|_| detach);
    if let (Some(socket), Some(console)) = (flags.value("console-socket"), console) {
        terminal::hand_over(socket, terminal::CONSOLE, console)?;
    }
    if let Some(socket) = flags.value("pidfd-socket") {
        terminal::hand_over(socket, "setns", &launched.pidfd)?;
    }
    write_pid_file(flags.value("pid-file"), launched.pid)
}

/// `[controller,…:]path`, as runc takes it: controllers and a path below the container's own cgroup.
fn sub_cgroups(arguments: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut all = Vec::new();
    for argument in arguments {
        let bad = |why: &str| Failure::new(format!("invalid --cgroup argument: {argument}{why}"));
        match argument.split_once(':') {
            None if arguments.len() > 1 => return Err(bad(" (missing <controller>: prefix)")),
            None => all.push((String::new(), argument.clone())),
            Some((_, path)) if path.contains(':') => return Err(bad("")),
            Some((controllers, path)) => {
                all.extend(
                    controllers
                        .split(',')
                        .map(|c| (c.to_owned(), path.to_owned())),
                );
            }
        }
    }
    Ok(all)
}

/// The container's own process with what the flags change, or the one from a file.
fn process(flags: &Flags, spec: &Spec) -> Result<Process, Failure> {
    if let Some(path) = flags.value("process") {
        let text = std::fs::read(path)
            .map_err(|e| Failure::new(format!("open {path}: {}", launch::errno_text(&e))))?;
        return document::process(&text).map_err(Failure::new);
    }
    let mut process = spec
        .process
        .clone()
        .ok_or_else(|| Failure::new("process property must not be empty"))?;
    process.args = flags.positional[1..].to_vec();
    if process.args.is_empty() {
        return Err(Failure::new("process args cannot be empty"));
    }
    process.terminal = flags.is_set("tty");
    if let Some(cwd) = flags.value("cwd") {
        process.cwd = cwd.to_owned();
    }
    process.env.extend(flags.all("env").iter().cloned());
    if let Some(label) = flags.value("process-label") {
        process.selinux_label = label.to_owned();
    }
    if let Some(profile) = flags.value("apparmor") {
        process.apparmor_profile = profile.to_owned();
    }
    if flags.is_set("no-new-privs") {
        process.no_new_privileges = true;
    }
    if let Some(user) = flags.value("user") {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user, None),
        };
        let number = |text: &str, what: &str| {
            text.parse()
                .map_err(|_| Failure::new(format!("parsing {text} as int for {what} failed")))
        };
        process.user.uid = number(uid, "uid")?;
        if let Some(gid) = gid {
            process.user.gid = number(gid, "gid")?;
        }
        process.user.username = String::new();
    }
    for gid in flags.all("additional-gids") {
        let gid = gid
            .parse()
            .map_err(|_| Failure::new(format!("parsing {gid} as int for additional gid failed")))?;
        process.user.additional_gids.push(gid);
    }
    let sets = process.capabilities.get_or_insert_default();
    for name in flags.all("cap") {
        // Not inheritable and so not ambient: what is added reaches the program only if it runs as root.
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(name.clone());
        }
    }
    Ok(process)
}
