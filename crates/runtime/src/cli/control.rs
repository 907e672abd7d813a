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

pub(super) fn kill(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &[("all", "a", false)])?;
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
    let flags = Flags::parse(arguments, &[("force", "f", false)])?;
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
pub(super) fn refuse_checkpoint(
    globals: &Globals,
    command: &str,
    arguments: &[String],
) -> Result<u8, Failure> {
    if let Some(id) = arguments.last().filter(|_| command == "checkpoint") {
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
    Ok(0)
}

const UPDATE_FLAGS: [Flag; 19] = [
    ("resources", "r", true),
    ("blkio-weight", "blkio-weight", true),
    ("cpu-period", "cpu-period", true),
    ("cpu-quota", "cpu-quota", true),
    ("cpu-burst", "cpu-burst", true),
    ("cpu-share", "cpu-share", true),
    ("cpu-rt-period", "cpu-rt-period", true),
    ("cpu-rt-runtime", "cpu-rt-runtime", true),
    ("cpuset-cpus", "cpuset-cpus", true),
    ("cpuset-mems", "cpuset-mems", true),
    ("cpu-idle", "cpu-idle", true),
    ("memory", "memory", true),
    ("memory-reservation", "memory-reservation", true),
    ("memory-swap", "memory-swap", true),
    ("kernel-memory", "kernel-memory", true),
    ("kernel-memory-tcp", "kernel-memory-tcp", true),
    ("l3-cache-schema", "l3-cache-schema", true),
    ("mem-bw-schema", "mem-bw-schema", true),
    ("pids-limit", "pids-limit", true),
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
            std::io::stdin().take(1 << 20).read_to_end(&mut text)?;
            from_json(&text)?
        }
        Some(path) => from_json(&std::fs::read(path)?)?,
        None => from_flags(&flags)?,
    };
    validate::resources(&resources).map_err(Failure::new)?;
    container
        .stored
        .cgroup
        .update(&resources)
        .map_err(|e| Failure::new(e.to_string()))?;
    Ok(0)
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
