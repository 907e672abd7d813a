//! kill, delete, pause, resume and update.

use super::create::run_poststop;
use super::flags::{Flag, Flags};
use super::store::{self, Container};
use super::{Failure, Globals};
use crate::{document, validate};
use gantry_linux::program;
use gantry_oci::runtime::{BlockIo, Cpu, Memory, Pids, Resources, Status};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::Read;
use std::os::fd::AsFd;

pub(super) const KILL_FLAGS: [Flag; 1] = [(
    "all",
    "a",
    false,
    "send the specified signal to all processes inside the container",
)];

pub(super) const DELETE_FLAGS: [Flag; 1] = [(
    "force",
    "f",
    false,
    "forcibly deletes the container if it is still running (uses SIGKILL)",
)];

pub(super) fn kill(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &KILL_FLAGS)?;
    if !matches!(flags.positional.len(), 1 | 2) {
        return Err(Failure::usage(
            "gantry-runtime: \"kill\" requires a minimum of 1 argument(s)",
        ));
    }
    let container = store::load(globals, &flags.positional[0])?;
    let signal = signal_number(flags.positional.get(1).map_or("TERM", String::as_str))?;
    if flags.is_set("all") {
        let pids = match container.stored.cgroup.pids() {
            // An ordinary user's container without cgroups: a first process that ends takes its namespace along.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => match container.pidfd() {
                Ok(process) => {
                    program::send_signal(process.as_fd(), signal)?;
                    return Ok(0);
                }
                // Nothing is left to get a signal, which is what was wanted.
                Err(_) => return Ok(0),
            },
            other => other?,
        };
        globals.debug(|| format!("signal {signal} to processes {pids:?}"));
        for pid in pids {
            if let Some(pid) = rustix::process::Pid::from_raw(pid)
                && let Ok(fd) =
                    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            {
                let _ = program::send_signal(fd.as_fd(), signal);
            }
        }
        return Ok(0);
    }
    let process = container.pidfd()?;
    let pid = container.stored.pid;
    globals.debug(|| format!("signal {signal} to process {pid}"));
    program::send_signal(process.as_fd(), signal)?;
    if signal == SIGKILL {
        // A frozen v1 process dies only when it is thawed.
        if container.stored.cgroup.is_frozen() {
            let _ = container.stored.cgroup.thaw();
        }
    }
    Ok(0)
}

const SIGKILL: i32 = 9;

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `9`, `KILL`, `SIGKILL`, `RTMIN+1`.
fn signal_number(text: &str) -> Result<i32, Failure> {
    let unknown = || Failure::new(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            0..=64 => Ok(number),
            _ => Err(unknown()),
        };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
        return Ok(index as i32 + 1);
    }
    let offset = |text: &str| text.parse::<i32>().map_err(|_| unknown());
    let number = match name {
        "RTMIN" => 34,
        "RTMAX" => 64,
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(up), _) => 34 + offset(up)?,
            (_, Some(down)) => 64 - offset(down)?,
            _ => return Err(unknown()),
        },
    };
    match number {
        34..=64 => Ok(number),
        _ => Err(unknown()),
    }
}

pub(super) fn delete(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &DELETE_FLAGS)?;
    flags.expect("delete", 1, false)?;
    let id = flags.positional[0].as_str();
    let force = flags.is_set("force");
    let deleted = match force {
        true => delete_by_force(globals, id),
        false => store::load(globals, id).and_then(|container| {
            let _lock = store::lock(&container.directory)?;
            delete_locked(&container, false)
        }),
    };
    if deleted.is_ok() {
        globals.debug(|| format!("deleted {id} with its cgroups"));
    }
    match deleted {
        Err(failure) if force && failure.is_absence() => Ok(0),
        other => other.map(|()| 0),
    }
}

/// Also what a killed create has left.
fn delete_by_force(globals: &Globals, id: &str) -> Result<(), Failure> {
    let mut container = match store::load_unfinished(globals, id) {
        Ok(container) => container,
        Err(failure) if failure.is_absence() => {
            // Before its state was written nothing else was made.
            let directory = globals.root.join(id);
            return match directory.is_dir() {
                true => store::remove_directory(&directory),
                false => Ok(()),
            };
        }
        other => other?,
    };
    let _lock = store::lock(&container.directory)?;
    // Its maker may have come to the end before we got the lock. Reading the state once more would lose it.
    match container.find_init() {
        true => delete_locked(&container, true),
        false => container.remove_unfinished(),
    }
}

fn delete_locked(container: &Container, force: bool) -> Result<(), Failure> {
    let id = &container.stored.id;
    match container.status() {
        Status::Stopped => {}
        Status::Created => end(container)?,
        _ if force => end(container)?,
        status => {
            let status = serde_json::to_value(status).unwrap_or_default();
            return Err(Failure::new(format!(
                "cannot delete container {id} that is not stopped: {}",
                status.as_str().unwrap_or_default()
            )));
        }
    }
    // Also what joined without being in its PID namespace, and children of an init that shared the host's.
    let _ = container.stored.cgroup.kill_all();
    if let Ok(spec) = container.spec() {
        run_poststop(container, &spec);
    }
    container.remove()
}

/// Kills the first process and waits until it is gone.
fn end(container: &Container) -> Result<(), Failure> {
    let Ok(process) = container.pidfd() else {
        return Ok(());
    };
    let _ = program::send_signal(process.as_fd(), SIGKILL);
    if container.stored.cgroup.is_frozen() {
        let _ = container.stored.cgroup.thaw();
    }
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)) {
        Ok(1..) => Ok(()),
        _ => Err(Failure::new("container init still running")),
    }
}

/// Freezing a container to disk is CRIU's work, which this program does not drive.
pub(super) fn checkpoint(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    refuse_checkpoint(globals, "checkpoint", arguments)
}

pub(super) fn restore(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    refuse_checkpoint(globals, "restore", arguments)
}

fn refuse_checkpoint(
    globals: &Globals,
    command: &str,
    arguments: &[String],
) -> Result<u8, Failure> {
    // The flags do not matter, but for the container that is named last.
    let Some(id) = arguments.last().filter(|id| !id.starts_with('-')) else {
        return Err(Failure::usage(format!(
            "gantry-runtime: {command:?} requires exactly 1 argument(s)"
        )));
    };
    store::check_id(id)?;
    if command == "checkpoint" {
        store::load(globals, id)?;
    }
    Err(Failure::new(format!(
        "{command} is not supported: this runtime does not work with CRIU"
    )))
}

pub(super) fn pause(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &[])?;
    flags.expect("pause", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    match container.status() {
        Status::Running | Status::Created => {
            container.stored.cgroup.freeze()?;
            globals.debug(|| format!("froze {}", container.stored.cgroup.describe()));
            Ok(0)
        }
        _ => Err(Failure::new("container not running")),
    }
}

pub(super) fn resume(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &[])?;
    flags.expect("resume", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    if !container.stored.cgroup.is_frozen() {
        return Err(Failure::new("container not paused"));
    }
    container.stored.cgroup.thaw()?;
    globals.debug(|| format!("thawed {}", container.stored.cgroup.describe()));
    Ok(0)
}

pub(super) const UPDATE_FLAGS: [Flag; 19] = [
    (
        "resources",
        "r",
        true,
        "path to the file containing the resources to update or '-' to read from the standard input",
    ),
    (
        "blkio-weight",
        "blkio-weight",
        true,
        "block I/O weight, from 10 to 1000",
    ),
    (
        "cpu-period",
        "cpu-period",
        true,
        "CPU CFS period to be used for hardcapping (in usecs). 0 to use system default",
    ),
    (
        "cpu-quota",
        "cpu-quota",
        true,
        "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period",
    ),
    (
        "cpu-burst",
        "cpu-burst",
        true,
        "CPU CFS hardcap burst limit (in usecs). Allowed accumulated cpu time additionally for burst in a given period",
    ),
    (
        "cpu-share",
        "cpu-share",
        true,
        "CPU shares (relative weight vs. other containers)",
    ),
    (
        "cpu-rt-period",
        "cpu-rt-period",
        true,
        "CPU realtime period to be used for hardcapping (in usecs). 0 to use system default",
    ),
    (
        "cpu-rt-runtime",
        "cpu-rt-runtime",
        true,
        "CPU realtime hardcap limit (in usecs). Allowed cpu time in a given period",
    ),
    ("cpuset-cpus", "cpuset-cpus", true, "CPU(s) to use"),
    ("cpuset-mems", "cpuset-mems", true, "memory node(s) to use"),
    (
        "cpu-idle",
        "cpu-idle",
        true,
        "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE",
    ),
    ("memory", "memory", true, "memory limit (in bytes)"),
    (
        "memory-reservation",
        "memory-reservation",
        true,
        "memory reservation or soft_limit (in bytes)",
    ),
    (
        "memory-swap",
        "memory-swap",
        true,
        "total memory usage (memory + swap); set '-1' to enable unlimited swap",
    ),
    (
        "kernel-memory",
        "kernel-memory",
        true,
        "ignored with a warning, as the kernel does",
    ),
    (
        "kernel-memory-tcp",
        "kernel-memory-tcp",
        true,
        "ignored with a warning, as the kernel does",
    ),
    (
        "l3-cache-schema",
        "l3-cache-schema",
        true,
        "Intel RDT: refused",
    ),
    ("mem-bw-schema", "mem-bw-schema", true, "Intel RDT: refused"),
    (
        "pids-limit",
        "pids-limit",
        true,
        "maximum number of pids allowed in the container",
    ),
];

pub(super) fn update(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    // runc takes the id before or after the flags.
    let mut flags = Flags::parse(arguments, &UPDATE_FLAGS)?;
    if flags.positional.len() > 1 {
        let id = flags.positional[0].clone();
        flags = Flags::parse(&flags.positional[1..], &UPDATE_FLAGS)?;
        flags.positional.insert(0, id);
    }
    flags.expect("update", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    if container.status() == Status::Stopped {
        return Err(Failure::new("container not running"));
    }
    for name in ["l3-cache-schema", "mem-bw-schema"] {
        if flags.value(name).is_some_and(|v| !v.is_empty()) {
            return Err(Failure::new(format!("--{name}: intelRdt is not supported")));
        }
    }
    for name in ["kernel-memory", "kernel-memory-tcp"] {
        if flags.value(name).is_some() {
            globals.warn("Kernel memory settings are ignored and will be removed");
        }
    }
    let resources = match flags.value("resources") {
        Some("-") => {
            let mut text = Vec::new();
            std::io::stdin()
                .take(RESOURCES_LIMIT)
                .read_to_end(&mut text)?;
            from_json(&text)?
        }
        Some(path) => from_json(&read_bounded(path)?)?,
        None => from_flags(&flags)?,
    };
    validate::resources(&resources).map_err(Failure::new)?;
    globals.debug(|| {
        format!(
            "setting {} in {}",
            serde_json::to_string(&resources).unwrap_or_default(),
            container.stored.cgroup.describe()
        )
    });
    container
        .stored
        .cgroup
        .update(&resources)
        .map_err(|e| Failure::new(e.to_string()))?;
    Ok(0)
}

/// A document of limits.
const RESOURCES_LIMIT: u64 = 1 << 20;

fn read_bounded(path: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(RESOURCES_LIMIT).read_to_end(&mut text))
        .map_err(|e| Failure::new(format!("open {path}: {}", crate::launch::errno_text(&e))))?;
    Ok(text)
}

fn from_json(text: &[u8]) -> Result<Resources, Failure> {
    document::resources(text).map_err(Failure::new)
}

fn from_flags(flags: &Flags) -> Result<Resources, Failure> {
    let bytes = |name: &str| -> Result<Option<i64>, Failure> {
        flags
            .value(name)
            .map(|text| {
                parse_bytes(text)
                    .ok_or_else(|| Failure::new(format!("invalid value for {name}: {text}")))
            })
            .transpose()
    };
    Ok(Resources {
        memory: Some(Memory {
            limit: bytes("memory")?,
            reservation: bytes("memory-reservation")?,
            swap: bytes("memory-swap")?,
            ..Memory::default()
        }),
        cpu: Some(Cpu {
            shares: flags.number("cpu-share")?,
            quota: flags.number("cpu-quota")?,
            period: flags.number("cpu-period")?,
            burst: flags.number("cpu-burst")?,
            realtime_period: flags.number("cpu-rt-period")?,
            realtime_runtime: flags.number("cpu-rt-runtime")?,
            cpus: flags.value("cpuset-cpus").unwrap_or("").to_owned(),
            mems: flags.value("cpuset-mems").unwrap_or("").to_owned(),
            idle: flags.number("cpu-idle")?,
        }),
        pids: flags.number("pids-limit")?.map(|limit| Pids { limit }),
        block_io: flags.number("blkio-weight")?.map(|weight| BlockIo {
            weight: Some(weight),
            ..BlockIo::default()
        }),
        ..Resources::default()
    })
}

/// `1048576`, `64m`, `1g`, `-1`.
fn parse_bytes(text: &str) -> Option<i64> {
    let lower = text.to_lowercase();
    let lower = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, unit) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits.parse::<i64>().ok()?.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_and_bytes() {
        for (text, number) in [
            ("9", 9),
            ("SIGTERM", 15),
            ("usr1", 10),
            ("RTMIN+1", 35),
            ("RTMAX", 64),
        ] {
            assert_eq!(signal_number(text).unwrap(), number);
        }
        for bad in ["", "NOSUCH", "65", "-1", "RTMIN+99"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bytes("64m"), Some(64 << 20));
        assert_eq!(parse_bytes("-1"), Some(-1));
        assert_eq!(parse_bytes("1Gi"), Some(1 << 30));
        assert_eq!(parse_bytes("x"), None);
    }
}
