//! A container's record and the facts of the moment → runtime-spec. Pure; the defaults are Docker's.
//!
//! [`spec`] for the start, [`exec`] for further processes, [`resources`] also for `update`. [`Filters`] keeps compiled seccomp
//! profiles, because a profile depends on little more than the capabilities.

use super::validate::{self, Seccomp};
use super::{Record, mounts::option};
use crate::facts::{Facts, RLIMITS};
use gantry_base::{Error, Result};
use gantry_docker_api::create::{ExecConfig, HostConfig};
use gantry_linux::capabilities::NAMES as CAPABILITIES;
use gantry_oci::runtime::{
    self as oci, BlockIo, Capabilities, Cpu, Device, DeviceRule, Linux, LinuxNamespace, Memory,
    Mount, NamespaceKind, Pids, Process, Resources, Rlimit, Root, Spec, User,
};
use gantry_runtime::seccomp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// Where `--init` finds its program inside the container.
const INIT_PATH: &str = "/sbin/docker-init";

/// What the start found out about the world.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// Absolute, of the container's cgroups.
    pub(crate) cgroup_path: String,
    /// Processes whose namespaces are joined.
    /// The host name of the container whose network is joined.
    pub(crate) hostname_of: Option<String>,
    pub(crate) network_of: Option<i32>,
    pub(crate) ipc_of: Option<i32>,
    pub(crate) pid_of: Option<i32>,
    /// Of linked containers: lines of `/etc/hosts`, and variables.
    pub(crate) link_hosts: Vec<(String, String)>,
    pub(crate) link_env: Vec<String>,
    /// A folder for `/dev/shm` that several containers share.
    pub(crate) shared_memory: Option<String>,
    /// `/etc/hosts` and its like: destination and the file on the host.
    pub(crate) files: Vec<(&'static str, String)>,
    /// For each of the record's mounts the folder or file on the host.
    pub(crate) sources: Vec<String>,
    /// For each destination of an image mount the image's layers, topmost first.
    pub(crate) image_layers: BTreeMap<String, Vec<String>>,
    /// What `--gpus` and `--device vendor/class=name` bring.
    pub(crate) cdi: crate::cdi::Edits,
    /// `--device`, resolved; all of the host's when privileged.
    pub(crate) devices: Vec<FoundDevice>,
    /// Block devices of `--device-read-bps` and the like, by path.
    pub(crate) block_devices: BTreeMap<String, (i64, i64)>,
    /// File on the host of the init program.
    pub(crate) init_program: String,
}

impl World {
    fn all_devices(&self) -> impl Iterator<Item = &FoundDevice> {
        self.devices.iter().chain(&self.cdi.devices)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct FoundDevice {
    pub(crate) device: Device,
    /// Some of `rwm`.
    pub(crate) access: String,
}

pub(crate) fn spec(record: &Record, facts: &Facts, world: &World) -> Result<Spec> {
    let (config, host) = (&record.config, &record.host_config);
    let own_network = world.network_of.is_none() && host.network_mode != "host";
    let mut args = record.argv.clone();
    if host.init == Some(true) && host.pid_mode.is_empty() {
        args.splice(0..0, [INIT_PATH, "init", "--"].map(str::to_owned));
    }
    let mut process = process(record, facts)?;
    process.args = args;
    let named = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let own: std::collections::BTreeSet<String> =
        process.env.iter().map(|entry| named(entry)).collect();
    let from_links = world
        .link_env
        .iter()
        .filter(|entry| !own.contains(&named(entry)));
    process.env.extend(from_links.cloned());
    process.env = replace_env(process.env, world.cdi.env.iter());
    process.user.additional_gids.extend(&world.cdi.gids);
    Ok(Spec {
        oci_version: oci::VERSION.into(),
        process: Some(process),
        root: Some(Root {
            path: "rootfs".into(),
            readonly: host.readonly_rootfs,
        }),
        hostname: if host.uts_mode == "host" {
            String::new()
        } else {
            config.hostname.clone()
        },
        domainname: if host.uts_mode == "host" {
            String::new()
        } else {
            config.domainname.clone()
        },
        mounts: mounts(record, world),
        hooks: Some(world.cdi.hooks.clone()).filter(|hooks| *hooks != oci::Hooks::default()),
        annotations: host.annotations.clone().unwrap_or_default(),
        linux: Some(Linux {
            sysctl: sysctls(host, own_network),
            resources: Some(resources_with_devices(host, world)),
            cgroups_path: world.cgroup_path.clone(),
            namespaces: namespaces(host, world),
            devices: world
                .all_devices()
                .map(|found| found.device.clone())
                .collect(),
            masked_paths: host.masked_paths.clone().unwrap_or_default(),
            readonly_paths: host.readonly_paths.clone().unwrap_or_default(),
            ..Linux::default()
        }),
        ..Spec::default()
    })
}

/// The process without its arguments: what an exec has in common with the first one.
fn process(record: &Record, facts: &Facts) -> Result<Process> {
    let (config, host) = (&record.config, &record.host_config);
    let security = validate::security_options(host)?;
    let may_lower = facts.has_capability(24);
    let floor = if may_lower {
        -1000
    } else {
        facts.oom_score_adj
    };
    Ok(Process {
        terminal: config.tty,
        user: user(&config.user, host),
        env: environment(record),
        cwd: if config.working_dir.is_empty() {
            "/".into()
        } else {
            config.working_dir.clone()
        },
        capabilities: Some(capability_sets(&capabilities(host, facts))),
        rlimits: rlimits(host),
        no_new_privileges: security.no_new_privileges,
        oom_score_adj: i32::try_from(host.oom_score_adj.max(floor)).ok(),
        ..Process::default()
    })
}

/// A further process: the container's, changed by what the exec asks for. Answers the compiled seccomp filter, too.
pub(crate) fn exec(
    record: &Record,
    config: &ExecConfig,
    facts: &Facts,
    filters: &Filters,
) -> Result<(Process, Option<String>)> {
    let mut process = process(record, facts)?;
    let host = &record.host_config;
    process.args = config.cmd.clone().unwrap_or_default();
    process.terminal = config.tty;
    if !config.user.is_empty() {
        process.user = user(&config.user, host);
    }
    if !config.working_dir.is_empty() {
        process.cwd.clone_from(&config.working_dir);
    }
    let has_term = |env: &[String]| env.iter().any(|entry| entry.starts_with("TERM="));
    if config.tty && !has_term(&process.env) {
        process.env.push("TERM=xterm".into());
    }
    process.env = replace_env(process.env, config.env.iter().flatten());
    if config.privileged {
        process.capabilities = Some(capability_sets(&granted(facts, |_| true)));
        return Ok((process, None));
    }
    let filter = filters.of(host, facts)?;
    Ok((process, filter))
}

fn user(text: &str, host: &HostConfig) -> User {
    let groups = host.group_add.iter().flatten();
    let mut user = User {
        additional_gids: groups
            .clone()
            .filter_map(|group| group.parse().ok())
            .collect(),
        additional_groups: groups
            .filter(|group| group.parse::<u32>().is_err())
            .cloned()
            .collect(),
        ..User::default()
    };
    // Names are looked up inside the container by its init; root without a name, too, for its groups and HOME.
    user.username = if text.is_empty() {
        "0".into()
    } else {
        text.to_owned()
    };
    user
}

/// Docker's order: PATH, HOSTNAME, TERM, then image and request; HOME is added by init, which knows the user's.
fn environment(record: &Record) -> Vec<String> {
    let config = &record.config;
    let mut env = vec![DEFAULT_PATH.to_owned()];
    if !config.hostname.is_empty() {
        env.push(format!("HOSTNAME={}", config.hostname));
    }
    if config.tty {
        env.push("TERM=xterm".into());
    }
    replace_env(env, config.env.iter().flatten())
}

/// Later values replace earlier ones in place; a name without `=` takes the variable away.
fn replace_env<'a>(mut env: Vec<String>, changes: impl Iterator<Item = &'a String>) -> Vec<String> {
    fn name(entry: &str) -> &str {
        entry.split('=').next().unwrap_or_default()
    }
    for change in changes {
        let at = env.iter().position(|entry| name(entry) == name(change));
        match (at, change.contains('=')) {
            (Some(at), true) => env[at].clone_from(change),
            (None, true) => env.push(change.clone()),
            (Some(at), false) => drop(env.remove(at)),
            (None, false) => {}
        }
    }
    env
}

fn granted(facts: &Facts, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let numbers = 0..CAPABILITIES.len();
    numbers
        .filter(|n| *n <= usize::from(facts.last_capability) && facts.has_capability(*n as u8))
        .map(|n| CAPABILITIES[n])
        .filter(|name| wanted(name))
        .map(str::to_owned)
        .collect()
}

/// What the container holds, in the kernel's order. Names were normalised at create.
pub(crate) fn capabilities(host: &HostConfig, facts: &Facts) -> Vec<String> {
    let has =
        |list: &Option<Vec<String>>, name: &str| list.iter().flatten().any(|entry| entry == name);
    let (add, drop) = (&host.cap_add, &host.cap_drop);
    if host.privileged {
        return granted(facts, |_| true);
    }
    if has(add, "ALL") {
        return granted(facts, |name| !has(drop, name) && !has(drop, "ALL"));
    }
    if has(drop, "ALL") {
        return granted(facts, |name| has(add, name));
    }
    granted(facts, |name| {
        (DEFAULT_CAPABILITIES.contains(&name) || has(add, name)) && !has(drop, name)
    })
}

fn capability_sets(names: &[String]) -> Capabilities {
    Capabilities {
        bounding: names.to_vec(),
        effective: names.to_vec(),
        permitted: names.to_vec(),
        ..Capabilities::default()
    }
}

fn rlimits(host: &HostConfig) -> Vec<Rlimit> {
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    let limits = host.ulimits.iter().filter_map(|ulimit| {
        let (_, kind, _) = RLIMITS.iter().find(|(name, _, _)| *name == ulimit.name)?;
        Some(Rlimit {
            kind: (*kind).into(),
            hard: value(ulimit.hard),
            soft: value(ulimit.soft),
        })
    });
    limits.collect()
}

fn sysctls(host: &HostConfig, own_network: bool) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if own_network {
        // Inside, ports below 1024 and ping need no privilege: there is nobody to protect.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        sysctls.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
    }
    sysctls.extend(
        host.sysctls
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    sysctls
}

fn namespaces(host: &HostConfig, world: &World) -> Vec<LinuxNamespace> {
    let new = |kind| {
        Some(LinuxNamespace {
            kind,
            path: String::new(),
        })
    };
    let shared = |kind, file: &str, mode: &str, of: Option<i32>| match of {
        Some(pid) => Some(LinuxNamespace {
            kind,
            path: format!("/proc/{pid}/ns/{file}"),
        }),
        None if mode == "host" => None,
        None => new(kind),
    };
    let private_cgroup = host.cgroupns_mode == "private";
    [
        new(NamespaceKind::Mount),
        shared(
            NamespaceKind::Network,
            "net",
            &host.network_mode,
            world.network_of,
        ),
        shared(NamespaceKind::Uts, "uts", &host.uts_mode, None),
        shared(NamespaceKind::Pid, "pid", &host.pid_mode, world.pid_of),
        shared(NamespaceKind::Ipc, "ipc", &host.ipc_mode, world.ipc_of),
        if private_cgroup {
            new(NamespaceKind::Cgroup)
        } else {
            None
        },
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn mounts(record: &Record, world: &World) -> Vec<Mount> {
    let host = &record.host_config;
    let own: Vec<Mount> = user_mounts(record, world);
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
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
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
    ];
    if host.privileged {
        for mount in &mut all {
            mount.options.retain(|option| option != "ro");
        }
    }
    match (&world.shared_memory, host.ipc_mode.as_str()) {
        (_, "host") => {
            all.push(mount(
                "/dev/mqueue",
                "bind",
                "/dev/mqueue",
                &["rbind", "nosuid", "noexec", "nodev"],
            ));
            all.push(mount(
                "/dev/shm",
                "bind",
                "/dev/shm",
                &["rbind", "rprivate"],
            ));
        }
        (shared, mode) => {
            all.push(mount(
                "/dev/mqueue",
                "mqueue",
                "mqueue",
                &["nosuid", "noexec", "nodev"],
            ));
            if let Some(folder) = shared {
                all.push(mount("/dev/shm", "bind", folder, &["rbind", "rprivate"]));
            } else if mode != "none" {
                let size = format!("size={}", host.shm_size);
                all.push(mount(
                    "/dev/shm",
                    "tmpfs",
                    "shm",
                    &["nosuid", "noexec", "nodev", "mode=1777", &size],
                ));
            }
        }
    }
    // What the user mounts there takes the place of ours.
    let taken = |destination: &str| own.iter().any(|mount| mount.destination == destination);
    all.retain(|mount| !taken(&mount.destination));
    for (destination, source) in &world.files {
        if !taken(destination) {
            all.push(mount(destination, "bind", source, &["rbind", "rprivate"]));
        }
    }
    if host.init == Some(true) && host.pid_mode.is_empty() {
        all.push(mount(
            INIT_PATH,
            "bind",
            &world.init_program,
            &["bind", "ro"],
        ));
    }
    all.extend(world.cdi.mounts.iter().cloned());
    all.extend(own);
    all
}

/// Binds, volumes and tmpfs, parents before children.
fn user_mounts(record: &Record, world: &World) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for (path, options) in record.host_config.tmpfs.iter().flatten() {
        mounts.push(tmpfs(&validate::clean_path(path), options));
    }
    for (point, source) in record.mounts.iter().zip(&world.sources) {
        if point.kind == "tmpfs" {
            let options = point.options.get(option::TMPFS).map_or("", String::as_str);
            mounts.push(tmpfs(&point.destination, options));
            continue;
        }
        let subpath = point.options.get(option::SUBPATH);
        let subpath = subpath.map(|path| format!("{}{path}", gantry_runtime::SUBPATH));
        if let Some(layers) = world.image_layers.get(&point.destination) {
            let mut options: Vec<String> = layers
                .iter()
                .map(|layer| format!("{}{layer}", gantry_runtime::LAYER))
                .collect();
            options.extend(subpath);
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            mounts.push(mount(&point.destination, "overlay", "image", &options));
            continue;
        }
        let has = |name: &str| point.options.contains_key(name);
        let mut options = vec![if has(option::NON_RECURSIVE) {
            "bind"
        } else {
            "rbind"
        }];
        if !point.rw {
            options.push("ro");
            if !has(option::READ_ONLY_NON_RECURSIVE) && !has(option::NON_RECURSIVE) {
                options.push("rro");
            }
        }
        options.extend(subpath.as_deref());
        options.push(if point.propagation.is_empty() {
            "rprivate"
        } else {
            &point.propagation
        });
        mounts.push(mount(&point.destination, "bind", source, &options));
    }
    mounts.sort_by(|a, b| a.destination.split('/').cmp(b.destination.split('/')));
    mounts
}

fn tmpfs(destination: &str, options: &str) -> Mount {
    let mut all: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
    for option in options.split(',').filter(|option| !option.is_empty()) {
        // The user's word replaces its opposite.
        all.retain(|default| default.strip_prefix("no") != Some(option));
        all.push(option);
    }
    mount(destination, "tmpfs", "tmpfs", &all)
}

/// Docker's device rules: everything may be made, the harmless ones may be used.
fn resources_with_devices(host: &HostConfig, world: &World) -> Resources {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
    };
    let mut resources = resources(host, &world.block_devices);
    if host.privileged {
        resources.devices = vec![rule(true, "", None, None, "rwm")];
        return resources;
    }
    let rules = &mut resources.devices;
    rules.push(rule(false, "", None, None, "rwm"));
    rules.push(rule(true, "c", None, None, "m"));
    rules.push(rule(true, "b", None, None, "m"));
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ] {
        rules.push(rule(true, "c", Some(major), minor, "rwm"));
    }
    for found in world.all_devices() {
        let Device {
            kind, major, minor, ..
        } = &found.device;
        rules.push(rule(true, kind, *major, *minor, &found.access));
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        if let Ok(own) = device_rule(text) {
            rules.push(own);
        }
    }
    resources
}

/// `c 1:3 rwm`, with `*` for any number.
pub(crate) fn device_rule(text: &str) -> Result<DeviceRule> {
    let invalid = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let mut words = text.split(' ');
    let (Some(kind @ ("a" | "b" | "c")), Some(numbers), Some(access), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(invalid());
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits => digits
            .parse::<u32>()
            .map(|n| Some(i64::from(n)))
            .map_err(|_| invalid()),
    };
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(invalid());
    }
    Ok(DeviceRule {
        allow: true,
        kind: kind.into(),
        major: number(major)?,
        minor: number(minor)?,
        access: access.into(),
    })
}

/// Limits of memory, CPU, processes and block I/O. `block_devices` gives the numbers of the paths that are named.
pub(crate) fn resources(
    host: &HostConfig,
    block_devices: &BTreeMap<String, (i64, i64)>,
) -> Resources {
    let set = |value: i64| (value != 0).then_some(value);
    let memory = Memory {
        limit: set(host.memory),
        reservation: set(host.memory_reservation),
        swap: set(host.memory_swap),
        swappiness: host
            .memory_swappiness
            .and_then(|value| u64::try_from(value).ok()),
        disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
        ..Memory::default()
    };
    let (mut quota, mut period) = (
        set(host.cpu_quota),
        set(host.cpu_period).map(|us| us as u64),
    );
    if host.nano_cpus > 0 {
        // 100 ms periods; 10⁹ nano CPUs are a whole period.
        period = Some(100_000);
        quota = Some(host.nano_cpus / 10_000);
    }
    let cpu = Cpu {
        shares: u64::try_from(host.cpu_shares)
            .ok()
            .filter(|shares| *shares > 0),
        quota,
        period,
        cpus: host.cpuset_cpus.clone(),
        mems: host.cpuset_mems.clone(),
        ..Cpu::default()
    };
    let throttles = |devices: &[gantry_docker_api::create::ThrottleDevice]| {
        let known = devices.iter().filter_map(|device| {
            let (major, minor) = *block_devices.get(&device.path)?;
            Some(oci::ThrottleDevice {
                major,
                minor,
                rate: device.rate,
            })
        });
        known.collect::<Vec<_>>()
    };
    let weights = host.blkio_weight_device.iter().filter_map(|device| {
        let (major, minor) = *block_devices.get(&device.path)?;
        Some(oci::WeightDevice {
            major,
            minor,
            weight: Some(device.weight),
            leaf_weight: None,
        })
    });
    let block_io = BlockIo {
        weight: (host.blkio_weight > 0).then_some(host.blkio_weight),
        weight_device: weights.collect(),
        throttle_read_bps_device: throttles(&host.blkio_device_read_bps),
        throttle_write_bps_device: throttles(&host.blkio_device_write_bps),
        throttle_read_iops_device: throttles(&host.blkio_device_read_iops),
        throttle_write_iops_device: throttles(&host.blkio_device_write_iops),
        ..BlockIo::default()
    };
    Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: host
            .pids_limit
            .filter(|limit| *limit != 0)
            .map(|limit| Pids { limit }),
        block_io: (block_io != BlockIo::default()).then_some(block_io),
        ..Resources::default()
    }
}

/// Paths whose device numbers [`resources`] needs.
pub(crate) fn block_device_paths(host: &HostConfig) -> impl Iterator<Item = &str> {
    let throttles = [
        &host.blkio_device_read_bps,
        &host.blkio_device_write_bps,
        &host.blkio_device_read_iops,
        &host.blkio_device_write_iops,
    ];
    let weights = host
        .blkio_weight_device
        .iter()
        .map(|device| device.path.as_str());
    throttles
        .into_iter()
        .flatten()
        .map(|device| device.path.as_str())
        .chain(weights)
}

/// Compiled seccomp profiles, in the form that travels to the supervisor.
#[derive(Default)]
pub(crate) struct Filters(Mutex<BTreeMap<String, Arc<str>>>);

/// Sets of capabilities that are in use at the same time are few; user profiles are, too.
const FILTERS_LIMIT: usize = 256;

impl Filters {
    /// The container's filter, `None` when it is unconfined.
    pub(crate) fn of(&self, host: &HostConfig, facts: &Facts) -> Result<Option<String>> {
        let security = validate::security_options(host)?;
        if host.privileged || security.seccomp == Seccomp::Unconfined {
            return Ok(None);
        }
        let capabilities = capabilities(host, facts);
        let mut key = capabilities.join(" ");
        if let Seccomp::Profile(json) = &security.seccomp {
            key = format!("{key}\n{json}");
        }
        if let Some(filter) = self.lock().get(&key) {
            return Ok(Some(filter.to_string()));
        }
        let profile = match &security.seccomp {
            Seccomp::Profile(json) => super::profile::convert(json, &capabilities)?,
            _ => seccomp::docker_default(&capabilities),
        };
        let filter = seccomp::compile(&profile).map_err(|reason| {
            Error::invalid(format!("seccomp profile cannot be used: {reason}"))
        })?;
        let text = gantry_runtime::proto::encode_filter(&filter);
        let mut filters = self.lock();
        if filters.len() >= FILTERS_LIMIT {
            filters.clear();
        }
        filters.insert(key, text.as_str().into());
        Ok(Some(text))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{MountPoint, State, mounts};
    use gantry_docker_api::create::CreateContainer;

    /// A record as `create` makes it from this HostConfig.
    fn record(config: serde_json::Value, host: serde_json::Value) -> Record {
        let mut request = CreateContainer {
            config: serde_json::from_value(config).unwrap(),
            host_config: serde_json::from_value(host).unwrap(),
            ..CreateContainer::default()
        };
        validate::request(&mut request, &Facts::example()).unwrap();
        let CreateContainer {
            mut config,
            host_config,
            ..
        } = request;
        if config.hostname.is_empty() {
            config.hostname = "0123456789ab".into();
        }
        let none = |_: &str| Err(Error::not_found("none"));
        let mounts = mounts::plan(&config, &host_config, none, |_| true).unwrap();
        Record {
            schema: 1,
            id: "0123456789abcdef".repeat(4),
            name: "web".into(),
            created_at_ns: 0,
            image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            image_name: "busybox".into(),
            argv: config.cmd.clone().unwrap_or_default(),
            config,
            host_config,
            mounts,
            networks: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            ports: Vec::new(),
            state: State::Created { failure: None },
            changes: Vec::new(),
            good_at_ns: 0,
            replacing: false,
            restart_count: 0,
            stopped_by_user: false,
            health: None,
        }
    }

    fn world(record: &Record) -> World {
        let source = |mount: &MountPoint| match mount.kind.as_str() {
            "volume" => "/data/volumes/v/_data".to_owned(),
            _ => mount.source.clone(),
        };
        World {
            cgroup_path: format!("/gantry/{}", record.id),
            files: vec![("/etc/hosts", "/d/hosts".into())],
            sources: record.mounts.iter().map(source).collect(),
            init_program: "/run/gantry/docker-init".into(),
            ..World::default()
        }
    }

    fn made(config: serde_json::Value, host: serde_json::Value) -> Spec {
        let record = record(config, host);
        spec(&record, &Facts::example(), &world(&record)).unwrap()
    }

    fn of(host: serde_json::Value) -> Spec {
        made(
            serde_json::json!({"Image": "busybox", "Cmd": ["true"]}),
            host,
        )
    }

    #[test]
    fn the_default_container_is_dockers() {
        insta::assert_json_snapshot!(of(serde_json::json!({})));
    }

    #[test]
    fn limits_reach_the_cgroup() {
        let spec = of(serde_json::json!({
            "Memory": 64 << 20, "NanoCpus": 500_000_000u64, "CpuShares": 512, "CpusetCpus": "0", "PidsLimit": 32,
            "MemoryReservation": 32 << 20, "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}], "OomScoreAdj": 100
        }));
        let mut resources = spec.linux.unwrap().resources.unwrap();
        resources.devices.clear();
        let process = spec.process.unwrap();
        insta::assert_snapshot!(serde_json::to_string(&resources).unwrap(), @r#"{"memory":{"limit":67108864,"reservation":33554432,"swap":134217728},"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":32}}"#);
        insta::assert_snapshot!(serde_json::to_string(&process.rlimits).unwrap(), @r#"[{"type":"RLIMIT_NOFILE","hard":200,"soft":100}]"#);
        assert_eq!(process.oom_score_adj, Some(100));
    }

    /// `kind:path` of each namespace.
    fn shown(spec: &Spec) -> String {
        let namespaces = &spec.linux.as_ref().unwrap().namespaces;
        let names = namespaces
            .iter()
            .map(|n| format!("{:?}{}", n.kind, n.path).to_lowercase());
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn namespaces_follow_the_modes() {
        assert_eq!(
            shown(&of(serde_json::json!({}))),
            "mount network uts pid ipc"
        );
        let host = serde_json::json!({"NetworkMode": "host", "PidMode": "host", "IpcMode": "host", "UTSMode": "host"});
        assert_eq!(shown(&of(host)), "mount");
        assert_eq!(
            shown(&of(serde_json::json!({"CgroupnsMode": "private"}))),
            "mount network uts pid ipc cgroup"
        );
        let joined = record(
            serde_json::json!({"Image": "b"}),
            serde_json::json!({"NetworkMode": "container:x"}),
        );
        let around = World {
            network_of: Some(42),
            ..world(&joined)
        };
        let spec = spec(&joined, &Facts::example(), &around).unwrap();
        assert_eq!(shown(&spec), "mount network/proc/42/ns/net uts pid ipc");
        assert!(spec.linux.unwrap().sysctl.is_empty());
    }

    #[test]
    fn privileged_gets_what_the_host_has() {
        let spec = of(serde_json::json!({"Privileged": true}));
        let capabilities = spec.process.unwrap().capabilities.unwrap();
        assert_eq!(capabilities.bounding.len(), 40);
        assert!(
            !capabilities
                .bounding
                .contains(&"CAP_SYS_RESOURCE".to_owned())
        );
        let linux = spec.linux.unwrap();
        assert!(linux.masked_paths.is_empty() && linux.readonly_paths.is_empty());
        assert!(
            spec.mounts
                .iter()
                .all(|mount| !mount.options.contains(&"ro".to_owned()))
        );
        assert_eq!(
            serde_json::to_string(&linux.resources.unwrap().devices).unwrap(),
            r#"[{"allow":true,"access":"rwm"}]"#
        );
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let names = |add: &[&str], drop: &[&str]| {
            let spec = of(serde_json::json!({"CapAdd": add, "CapDrop": drop}));
            spec.process.unwrap().capabilities.unwrap().bounding
        };
        assert_eq!(names(&[], &[]).len(), 14);
        assert_eq!(names(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(names(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 39);
        assert!(!names(&[], &["chown"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(names(&[], &["all"]).len(), 0);
    }

    #[test]
    fn environment_in_dockers_order() {
        let spec = made(
            serde_json::json!({"Image": "b", "Tty": true, "Hostname": "h", "Env": ["A=1", "PATH=/bin", "TERM", "B"]}),
            serde_json::json!({}),
        );
        assert_eq!(
            spec.process.unwrap().env,
            ["PATH=/bin", "HOSTNAME=h", "A=1"]
        );
    }

    #[test]
    fn mounts_of_the_user_take_the_place_of_ours() {
        let spec = made(
            serde_json::json!({"Image": "b", "Volumes": {"/data": {}}}),
            serde_json::json!({
                "Binds": ["/srv:/srv:ro", "/h:/etc/hosts", "cache:/srv/cache:nocopy"],
                "Tmpfs": {"/run": "size=1m,exec"}, "Init": true,
                "Mounts": [{"Type": "tmpfs", "Target": "/dev/shm", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}}]
            }),
        );
        let lines: Vec<String> = spec
            .mounts
            .iter()
            .map(|m| {
                format!(
                    "{} {} {} {}",
                    m.destination,
                    m.kind,
                    m.source,
                    m.options.join(",")
                )
            })
            .skip_while(|line| !line.starts_with("/dev/mqueue"))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        /dev/mqueue mqueue mqueue nosuid,noexec,nodev
        /sbin/docker-init bind /run/gantry/docker-init bind,ro
        /data bind /data/volumes/v/_data rbind,rprivate
        /dev/shm tmpfs tmpfs noexec,nosuid,nodev,mode=700,size=4096
        /etc/hosts bind /h rbind,rprivate
        /run tmpfs tmpfs nosuid,nodev,size=1m,exec
        /srv bind /srv rbind,ro,rro,rprivate
        /srv/cache bind /data/volumes/v/_data rbind,rprivate
        ");
        assert_eq!(
            spec.process.unwrap().args,
            ["/sbin/docker-init", "init", "--"]
        );
    }

    #[test]
    fn exec_inherits_and_changes() {
        let record = record(
            serde_json::json!({"Image": "b", "User": "app", "WorkingDir": "/w", "Env": ["A=1"]}),
            serde_json::json!({"SecurityOpt": ["no-new-privileges", "seccomp=unconfined"], "GroupAdd": ["audio", "7"]}),
        );
        let config = ExecConfig {
            cmd: Some(vec!["sh".into()]),
            env: Some(vec!["A=2".into()]),
            tty: true,
            ..ExecConfig::default()
        };
        let (process, filter) =
            exec(&record, &config, &Facts::example(), &Filters::default()).unwrap();
        assert_eq!(filter, None);
        let user = &process.user;
        assert_eq!(
            (user.username.as_str(), &user.additional_gids[..]),
            ("app", &[7][..])
        );
        assert_eq!(user.additional_groups, ["audio"]);
        assert_eq!(
            (process.cwd.as_str(), process.no_new_privileges),
            ("/w", true)
        );
        assert_eq!(
            process
                .env
                .iter()
                .filter(|e| e.starts_with("A=") || e.starts_with("TERM"))
                .count(),
            2
        );
        let (process, _) = exec(
            &record,
            &ExecConfig {
                user: "0".into(),
                privileged: true,
                ..config
            },
            &Facts::example(),
            &Filters::default(),
        )
        .unwrap();
        assert_eq!(
            (
                process.user.username.as_str(),
                process.capabilities.unwrap().bounding.len()
            ),
            ("0", 40)
        );
    }

    #[test]
    fn device_rules_as_docker_reads_them() {
        let rule = device_rule("c 189:* rw").unwrap();
        assert_eq!(
            (
                rule.kind.as_str(),
                rule.major,
                rule.minor,
                rule.access.as_str()
            ),
            ("c", Some(189), None, "rw")
        );
        for bad in [
            "",
            "c 1:3",
            "d 1:3 r",
            "c 1 r",
            "c 1:3 x",
            "c 1:3 rwm x",
            "c a:b r",
        ] {
            assert!(device_rule(bad).is_err(), "{bad}");
        }
    }
}
