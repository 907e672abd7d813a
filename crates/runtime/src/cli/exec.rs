//! exec: another process in a running container.

use super::create::write_pid_file;
use super::flags::{Flag, Flags};
use super::{Failure, Globals, protect, store, terminal};
use crate::launch::{self, ExecTarget, Options, Stdio};
use crate::seccomp;
use gantry_oci::runtime::{Process, Spec, Status};

const FLAGS: [Flag; 17] = [
    ("console-socket", "console-socket", true),
    ("pidfd-socket", "pidfd-socket", true),
    ("cwd", "cwd", true),
    ("env", "e", true),
    ("tty", "t", false),
    ("user", "u", true),
    ("additional-gids", "g", true),
    ("process", "p", true),
    ("detach", "d", false),
    ("pid-file", "pid-file", true),
    ("process-label", "process-label", true),
    ("apparmor", "apparmor", true),
    ("no-new-privs", "no-new-privs", false),
    ("cap", "c", true),
    ("preserve-fds", "preserve-fds", true),
    ("cgroup", "cgroup", true),
    ("ignore-paused", "ignore-paused", false),
];

pub(super) fn exec(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &FLAGS)?;
    flags.expect("exec", 1, true)?;
    protect::ensure()?;
    let container = store::load(globals, &flags.positional[0])?;
    match container.status() {
        Status::Running => {}
        Status::Paused if flags.is_set("ignore-paused") => {}
        Status::Paused => {
            return Err(Failure::new(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        Status::Stopped => {
            return Err(Failure::new("cannot exec in a stopped container"));
        }
        Status::Created | Status::Creating => {
            return Err(Failure::new(
                "cannot exec a container that has not been started",
            ));
        }
    }
    let spec = container.spec()?;
    let process = process(&flags, &spec)?;
    let detach = flags.is_set("detach");
    if detach && process.terminal && flags.value("console-socket").is_none() {
        return Err(Failure::new(
            "cannot allocate tty if runc will detach without setting console socket",
        ));
    }
    let filter = spec
        .linux
        .as_ref()
        .and_then(|l| l.seccomp.as_ref())
        .map(seccomp::compile)
        .transpose()
        .map_err(Failure::new)?;
    let forwarder = match detach {
        true => None,
        false => Some(terminal::Forwarder::new()?),
    };
    let launched = launch::exec(
        &ExecTarget {
            pid: container.stored.pid,
            cgroup: &container.stored.cgroup,
        },
        &process,
        match process.terminal {
            true => Stdio::Terminal {
                size: terminal::own_size(),
            },
            false => Stdio::Inherit,
        },
        filter.as_ref(),
        Options {
            preserve_fds: flags.number("preserve-fds")?.unwrap_or(0),
            ..Options::default()
        },
    )
    .map_err(|e| Failure {
        code: 255,
        ..Failure::from(e)
    })?;
    let mut console = launched.console;
    if let (Some(socket), Some(console)) =
        (flags.value("console-socket"), console.take_if(|_| detach))
    {
        terminal::hand_over(socket, &console)?;
    }
    if let Some(socket) = flags.value("pidfd-socket") {
        terminal::hand_over(socket, &launched.pidfd)?;
    }
    write_pid_file(flags.value("pid-file"), launched.pid)?;
    let Some(forwarder) = forwarder else {
        return Ok(0);
    };
    forwarder.until_exit(&launched.pidfd, console)?;
    terminal::exit_code(&launched.pidfd)
}

/// The container's own process with what the flags change, or the one from a file.
fn process(flags: &Flags, spec: &Spec) -> Result<Process, Failure> {
    if let Some(path) = flags.value("process") {
        let text = std::fs::read(path)?;
        let mut process: Process =
            serde_json::from_slice(&text).map_err(|e| Failure::new(format!("{path}: {e}")))?;
        if process.cwd.is_empty() {
            process.cwd = "/".to_owned();
        }
        return Ok(process);
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
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Failure::new(format!("parsing {text} as int for uid failed")))
        };
        process.user.uid = number(uid)?;
        if let Some(gid) = gid {
            process.user.gid = number(gid)?;
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
