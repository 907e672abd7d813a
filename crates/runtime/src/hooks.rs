//! Programs that the spec asks to be run at points of the life cycle.
//!
//! Spec: runtime-spec "POSIX-platform Hooks".

use crate::launch::{Failure, Launch, errno_text};
use gantry_oci::runtime::{Hook, Hooks, State, Status, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

pub(crate) fn needed_while_creating(hooks: &Hooks) -> bool {
    !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty()
}

/// The state document that hooks get on stdin.
pub(crate) fn state(launch: &Launch<'_>, status: Status, pid: i32) -> String {
    serde_json::to_string(&state_document(launch, status, pid)).unwrap_or_default()
}

pub(crate) fn state_document(launch: &Launch<'_>, status: Status, pid: i32) -> State {
    State {
        oci_version: VERSION.to_owned(),
        id: launch.id.to_owned(),
        status,
        pid: Some(pid),
        bundle: launch
            .bundle
            .map(|b| b.to_string_lossy().into_owned())
            .unwrap_or_default(),
        annotations: launch.spec.annotations.clone(),
    }
}

/// Runs them in order; the first failure is the result.
pub(crate) fn run(hooks: &[Hook], state: &str) -> Result<(), Failure> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state)
            .map_err(|e| Failure::new(128, format!("error running hook #{index}: {e}")))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command
        .env_clear()
        .envs(hook.env.iter().filter_map(|e| e.split_once('=')))
        .stdin(input(state).map_err(|e| errno_text(&e))?)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mut child = command
        .spawn()
        .map_err(|e| format!("fork/exec {}: {}", hook.path, errno_text(&e)))?;
    if let Some(seconds) = hook.timeout.filter(|t| *t > 0) {
        wait_at_most(&mut child, seconds)?;
    }
    let status = child.wait().map_err(|e| errno_text(&e))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{}, stdout: , stderr: ", in_gos_words(status))),
    }
}

fn in_gos_words(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    const SIGNALS: [&str; 16] = [
        "",
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
    ];
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(31)) => "signal: bad system call".to_owned(),
        (None, Some(number)) => match SIGNALS.get(number as usize) {
            Some(name) => format!("signal: {name}"),
            None => format!("signal: signal {number}"),
        },
        (None, None) => status.to_string(),
    }
}

/// The document as a file in memory: a hook need not read it, and one that does not must not hold us up.
fn input(state: &str) -> std::io::Result<std::fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("state", flags)?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn wait_at_most(child: &mut std::process::Child, seconds: i64) -> Result<(), String> {
    let pid = rustix::process::Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|e| errno_text(&e.into()))?;
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    if ended == Ok(0) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("hook ran past specified timeout of {seconds}.0s"));
    }
    Ok(())
}
