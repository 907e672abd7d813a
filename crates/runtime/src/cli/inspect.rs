//! state, list, ps, events, features and spec: what only looks.

use super::flags::{Flag, Flags};
use super::store::{self, Container};
use super::{Failure, Globals, print};
use crate::{cgroup, mounts};
use gantry_oci::runtime::{Status, VERSION};
use serde_json::{Value, json};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn pretty(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    print(&format!("{text}\n"))
}

/// runc's document: the specification's, and when and by whom it was made.
fn document(container: &Container) -> Value {
    let spec = container.spec().ok();
    let state = container.document(spec.as_ref());
    let mut document = json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "pid": state.pid,
        "status": state.status,
        "bundle": state.bundle,
        "rootfs": container.stored.rootfs,
        "created": container.stored.created,
        "annotations": state.annotations,
        "owner": owner(container.stored.owner),
    });
    if let (true, Some(fields)) = (state.annotations.is_empty(), document.as_object_mut()) {
        fields.shift_remove("annotations");
    }
    document
}

/// The name of a user, or `#` and the number.
fn owner(uid: u32) -> String {
    if uid == 0 {
        return "root".to_owned();
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

pub(super) fn state(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &[])?;
    flags.expect("state", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    let mut value = document(&container);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("owner".to_owned(), json!(""));
    }
    pretty(&value).map(|()| 0)
}

const FORMAT: Flag = (
    "format",
    "f",
    true,
    "select one of: table or json (default: \"table\")",
);

pub(super) const LIST_FLAGS: [Flag; 2] =
    [FORMAT, ("quiet", "q", false, "display only container IDs")];

pub(super) const PS_FLAGS: [Flag; 1] = [FORMAT];

pub(super) const EVENTS_FLAGS: [Flag; 2] = [
    (
        "interval",
        "interval",
        true,
        "set the stats collection interval (default: 5s)",
    ),
    (
        "stats",
        "stats",
        false,
        "display the container's stats then exit",
    ),
];

pub(super) const SPEC_FLAGS: [Flag; 2] = [
    (
        "bundle",
        "b",
        true,
        "path to the root of the bundle directory",
    ),
    (
        "rootless",
        "rootless",
        false,
        "generate a configuration for a rootless container",
    ),
];

pub(super) fn list(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &LIST_FLAGS)?;
    flags.expect("list", 0, false)?;
    let mut containers = Vec::new();
    for entry in std::fs::read_dir(&globals.root)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        // One that is being made or removed has no state.
        if let Some(container) = name.to_str().and_then(|id| store::load(globals, id).ok()) {
            containers.push(container);
        }
    }
    containers.sort_by(|a, b| a.stored.id.cmp(&b.stored.id));
    if flags.is_set("quiet") {
        let ids: String = containers
            .iter()
            .map(|c| format!("{}\n", c.stored.id))
            .collect();
        return print(&ids).map(|()| 0);
    }
    match flags.value("format") {
        None | Some("table") => print(&table(&containers)).map(|()| 0),
        Some("json") => {
            let all: Vec<_> = containers.iter().map(document).collect();
            // As Go writes a list that was never made.
            if all.is_empty() {
                return print("null\n").map(|()| 0);
            }
            let text = serde_json::to_string(&all).map_err(std::io::Error::from)?;
            print(&format!("{text}\n")).map(|()| 0)
        }
        Some(_) => Err(Failure::new("invalid format option")),
    }
}

fn table(containers: &[Container]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for container in containers {
        let state = container.document(None);
        let status = serde_json::to_value(state.status).unwrap_or_default();
        rows.push([
            state.id,
            state.pid.unwrap_or(0).to_string(),
            status.as_str().unwrap_or_default().to_owned(),
            state.bundle,
            container.stored.created.clone(),
            owner(container.stored.owner),
        ]);
    }
    // As Go's tabwriter with a least width of 12 and a padding of 3 sets it.
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].len() + 3)
            .max()
            .unwrap_or(0)
            .max(12)
    };
    let widths: Vec<_> = (0..5).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}"));
            }
            line.push_str(&row[5]);
            line.push('\n');
            line
        })
        .collect()
}

pub(super) fn ps(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &PS_FLAGS)?;
    flags.expect("ps", 1, true)?;
    let container = store::load(globals, &flags.positional[0])?;
    let pids = container.stored.cgroup.pids()?;
    match flags.value("format") {
        Some("json") => {
            let text = serde_json::to_string(&pids).map_err(std::io::Error::from)?;
            return print(&format!("{text}\n")).map(|()| 0);
        }
        None | Some("table") => {}
        Some(_) => return Err(Failure::new("invalid format option")),
    }
    let options = &flags.positional[1..];
    let mut ps = std::process::Command::new("ps");
    if options.is_empty() {
        ps.arg("-ef");
    } else {
        ps.args(options);
    }
    let output = ps
        .output()
        .map_err(|e| Failure::new(format!("exec: \"ps\": {}", crate::launch::errno_text(&e))))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        // In Go's words.
        let status = output.status.to_string().replacen("status: ", "status ", 1);
        return Err(Failure::new(format!("{status}: {text}{why}")));
    }
    print(&of_these(&text, &pids)?).map(|()| 0)
}

/// The title and the lines whose PID column holds one of ours.
fn of_these(text: &str, pids: &[i32]) -> Result<String, Failure> {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Failure::new("couldn't find PID field in ps output"))?;
    let mut found = format!("{title}\n");
    for line in lines {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|p| p.parse().ok());
        if pid.is_some_and(|pid: i32| pids.contains(&pid)) {
            found.push_str(line);
            found.push('\n');
        }
    }
    Ok(found)
}

pub(super) fn events(globals: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &EVENTS_FLAGS)?;
    flags.expect("events", 1, false)?;
    let container = store::load(globals, &flags.positional[0])?;
    if container.status() == Status::Stopped {
        return Err(Failure::new(format!(
            "container with id {} is not running",
            container.stored.id
        )));
    }
    let interval = parse_duration(flags.value("interval").unwrap_or("5s"))
        .ok_or_else(|| Failure::new("duration interval must be greater than 0"))?;
    if flags.is_set("stats") {
        return print(&format!("{}\n", stats(&container)?)).map(|()| 0);
    }
    watch(&container, interval).map(|()| 0)
}

/// Numbers every interval and a line for every kill of the kernel's for want of memory, until the container ends.
fn watch(container: &Container, interval: std::time::Duration) -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let process = container.pidfd()?;
    let watch = container.stored.cgroup.watch_oom()?;
    let mut kills = container.stored.cgroup.oom_kills();
    let mut oom = |counted: u64| -> Result<(), Failure> {
        if counted > kills {
            kills = counted;
            let line = json!({ "type": "oom", "id": container.stored.id });
            print(&format!("{line}\n"))?;
        }
        Ok(())
    };
    let mut next = std::time::Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polls = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&watch, PollFlags::IN),
        ];
        match rustix::event::poll(&mut polls, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(std::io::Error::from)?,
        };
        let [ended, told] = [0, 1].map(|i| !polls[i].revents().is_empty());
        if told {
            // How often is in the counter.
            let _ = rustix::io::read(&watch, &mut [0_u8; 4096]);
        }
        oom(container.stored.cgroup.oom_kills())?;
        if ended {
            return Ok(());
        }
        if std::time::Instant::now() >= next {
            next += interval;
            print(&format!("{}\n", stats(container)?))?;
        }
    }
}

fn parse_duration(text: &str) -> Option<std::time::Duration> {
    let (number, unit_ms) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1000.0)
    } else {
        (text.strip_suffix('m')?, 60_000.0)
    };
    let ms = number.parse::<f64>().ok()? * unit_ms;
    (1.0..1e9)
        .contains(&ms)
        .then(|| std::time::Duration::from_millis(ms as u64))
}

/// runc's document; what is zero is left out where it leaves it out.
fn stats(container: &Container) -> Result<Value, Failure> {
    let cgroup = &container.stored.cgroup;
    let stats = cgroup.stats()?;
    let raw: serde_json::Map<String, Value> = stats
        .memory_stat
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let present = |pairs: &[(&str, u64)]| -> Value {
        pairs
            .iter()
            .filter(|(_, value)| *value != 0)
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let further = |name: &str| {
        let memory = cgroup.further_memory(name);
        json!({ "limit": memory[0], "usage": memory[1], "max": memory[2], "failcnt": memory[3] })
    };
    let mut usage = json!({
        "total": stats.cpu_total_ns,
        "percpu": stats.per_cpu_ns,
        "kernel": stats.cpu_system_ns,
        "user": stats.cpu_user_ns,
    });
    let (per_user, per_system) = cgroup.per_cpu_split();
    if !per_user.is_empty() {
        usage["percpu_kernel"] = json!(per_system);
        usage["percpu_user"] = json!(per_user);
    }
    let entries = |pick: fn(&cgroup::BlockIoStat) -> [(&'static str, u64); 2]| -> Vec<Value> {
        let of = |stat: &cgroup::BlockIoStat, (op, value): (&str, u64)| json!({ "major": stat.major, "minor": stat.minor, "op": op, "value": value });
        stats
            .block_io
            .iter()
            .flat_map(|stat| pick(stat).map(|entry| of(stat, entry)))
            .collect()
    };
    let block_io = match stats.block_io.is_empty() {
        true => json!({}),
        false => json!({
            "ioServiceBytesRecursive": entries(|s| [("Read", s.read_bytes), ("Write", s.write_bytes)]),
            "ioServicedRecursive": entries(|s| [("Read", s.read_operations), ("Write", s.write_operations)]),
        }),
    };
    Ok(json!({
        "type": "stats",
        "id": container.stored.id,
        "data": {
            "cpuset": cgroup.cpuset(container.stored.pid),
            "cpu": {
                "usage": usage,
                "throttling": present(&[
                    ("periods", stats.throttling_periods),
                    ("throttledPeriods", stats.throttled_periods),
                    ("throttledTime", stats.throttled_ns),
                ]),
            },
            "memory": {
                "usage": {
                    "limit": stats.memory_limit.unwrap_or(u64::MAX),
                    "usage": stats.memory_usage,
                    "max": stats.memory_max_usage.unwrap_or(0),
                    "failcnt": stats.memory_failcnt.unwrap_or(0),
                },
                "swap": further("memsw"),
                "kernel": further("kmem"),
                "kernelTCP": further("kmem.tcp"),
                "raw": raw,
            },
            "pids": present(&[
                ("current", stats.pids.unwrap_or(0)),
                ("limit", stats.pids_limit.unwrap_or(0)),
            ]),
            "blkio": block_io,
            "hugetlb": cgroup.huge_pages(),
            "intel_rdt": {},
            "network_interfaces": null,
        },
    }))
}

pub(super) fn features(_: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    Flags::parse(arguments, &[])?.expect("features", 0, false)?;
    let capabilities = gantry_linux::capabilities::NAMES.as_slice();
    pretty(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mounts::option_names(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true,
                "unified": cgroup::is_unified(),
            },
            "seccomp": crate::seccomp::features(),
            // What is built in, not what this kernel has.
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": {
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
    }))
    .map(|()| 0)
}

pub(super) fn spec(_: &Globals, arguments: &[String]) -> Result<u8, Failure> {
    let flags = Flags::parse(arguments, &SPEC_FLAGS)?;
    flags.expect("spec", 0, false)?;
    let path = Path::new(flags.value("bundle").unwrap_or("")).join("config.json");
    if path.exists() {
        return Err(Failure::new(format!(
            "File {} exists. Remove it first",
            path.display()
        )));
    }
    let mut text = serde_json::to_vec_pretty(&example(flags.is_set("rootless")))
        .map_err(std::io::Error::from)?;
    text.push(b'\n');
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(&path)?;
    std::io::Write::write_all(&mut file, &text)?;
    Ok(0)
}

/// A specification to start from: a shell in a terminal.
fn example(rootless: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount"];
    if cgroup::is_unified() {
        // As runc has it: with v1 the host's paths are part of what people look at.
        namespaces.push("cgroup");
    }
    if rootless {
        namespaces.retain(|n| *n != "network");
        namespaces.push("user");
    }
    let namespaces: Vec<_> = namespaces.iter().map(|n| json!({ "type": n })).collect();
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            match rootless {
                true => &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                ],
                false => &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            },
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
    ];
    mounts.push(match rootless {
        true => mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "ro"],
        ),
        false => mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
    });
    mounts.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ));
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if rootless {
        let id = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
        linux["uidMappings"] = id(rustix::process::geteuid().as_raw());
        linux["gidMappings"] = id(rustix::process::getegid().as_raw());
    } else {
        linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    }
    json!({
        "ociVersion": VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "runc",
        "mounts": mounts,
        "linux": linux,
    })
}
