//! Whether a request can be granted, and what its open ends mean. Pure: nothing is touched, everything the answer depends on is
//! an argument. The sentences are Docker 28's where it has one.
//!
//! [`request`] checks and completes a request; [`merge`] adds the image's defaults; [`ports`] lists what is to be published.

use super::names;
use crate::facts::{Facts, RLIMITS, parse_list};
use gantry_base::{Error, ErrorKind, Result};
use gantry_docker_api::create::{
    ContainerConfig, CreateContainer, HostConfig, RestartPolicy, Ulimit,
};
use gantry_linux::capabilities::NAMES as CAPABILITIES;
use gantry_network::PortRequest;
use gantry_oci::image::{Healthcheck, RunConfig};
use std::net::IpAddr;

const MEMORY_MINIMUM: i64 = 6 << 20;
const SHM_DEFAULT: i64 = 64 << 20;
/// A request may ask for so many published ports.
const PORTS_LIMIT: usize = 1024;
const CAP_SYS_RESOURCE: u8 = 24;

pub(crate) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
pub(crate) const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

macro_rules! refuse {
    ($($text:tt)*) => { return Err(Error::invalid(format!($($text)*))) };
}

/// Checks a create request against Docker's rules and this node, and writes defaults into it. Answers warnings.
pub(crate) fn request(request: &mut CreateContainer, facts: &Facts) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if let Some(name) = &request.name {
        let name = name.strip_prefix('/').unwrap_or(name).to_owned();
        name_is_valid(&name)?;
        request.name = Some(name);
    }
    config(&mut request.config)?;
    let host = &mut request.host_config;
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".into();
    }
    if host.auto_remove && host.restart_policy.name != "no" {
        refuse!("can't create 'AutoRemove' container with restart policy");
    }
    for entry in host.extra_hosts.iter().flatten() {
        extra_host(entry)?;
    }
    port_bindings(host)?;
    restart_policy(&host.restart_policy)?;
    capabilities(host, facts, &mut warnings)?;
    if !matches!(host.isolation.as_str(), "" | "default") {
        refuse!("invalid isolation '{}' on linux", host.isolation);
    }
    if host
        .annotations
        .iter()
        .flatten()
        .any(|(key, _)| key.is_empty())
    {
        refuse!("invalid Annotations: the empty string is not permitted as an annotation key");
    }
    resources(host, facts, false, &mut warnings)?;
    modes(host, &mut warnings)?;
    limits(host, facts, &mut warnings)?;
    network(&request.config, host, &request.endpoints)?;
    sysctls(host)?;
    for rule in host.device_cgroup_rules.iter().flatten() {
        super::spec::device_rule(rule)?;
    }
    crate::cdi::Wanted::read(host.device_requests.as_deref().unwrap_or_default())?;
    for device in &host.devices {
        let access = &device.cgroup_permissions;
        if !access.bytes().all(|b| b"rwm".contains(&b)) {
            refuse!("invalid device mode: {access}");
        }
    }
    security_options(host)?;
    log(host)?;
    not_yet(request)?;
    adapt(request, facts);
    Ok(warnings)
}

pub(crate) fn name_is_valid(name: &str) -> Result<()> {
    if !names::is_valid(name) {
        refuse!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
    }
    Ok(())
}

fn config(config: &mut ContainerConfig) -> Result<()> {
    if !config.working_dir.is_empty() {
        if !config.working_dir.starts_with('/') {
            refuse!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                config.working_dir
            );
        }
        config.working_dir = clean_path(&config.working_dir);
    }
    if let Some(name) = config
        .stop_signal
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        signal(name)?;
    }
    for entry in config.env.iter().flatten() {
        if entry.is_empty() || entry.starts_with('=') {
            refuse!("invalid environment variable: {entry}");
        }
        if entry.contains('\0') {
            refuse!("invalid environment variable: it contains a zero byte");
        }
    }
    let words = [&config.cmd, &config.entrypoint];
    if words
        .iter()
        .filter_map(|words| words.as_ref())
        .flatten()
        .any(|word| word.contains('\0'))
    {
        refuse!("invalid command: an argument contains a zero byte");
    }
    if let Some(check) = &config.healthcheck {
        healthcheck(check)?;
    }
    if config.hostname.len() > 64 || config.hostname.contains(['\0', '/', '\n']) {
        refuse!("invalid hostname format: {}", config.hostname);
    }
    for port in config.exposed_ports.keys() {
        port_key(port)?;
    }
    if config.stop_timeout.is_some_and(|seconds| seconds < -1) {
        refuse!("invalid stop timeout: it must be -1 or more seconds");
    }
    Ok(())
}

fn healthcheck(check: &Healthcheck) -> Result<()> {
    let durations = [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ];
    for (field, nanoseconds) in durations {
        if nanoseconds != 0 && nanoseconds < 1_000_000 {
            refuse!("{field} in Healthcheck cannot be less than 1ms");
        }
    }
    if check.retries < 0 {
        refuse!("Retries in Healthcheck cannot be negative");
    }
    match check.test.first().map(String::as_str) {
        None | Some("" | "NONE" | "CMD" | "CMD-SHELL") => Ok(()),
        Some(other) => {
            refuse!("Unknown healthcheck type '{other}' (expected 'CMD') in healthcheck")
        }
    }
}

/// `name:address`, or `name=address` of newer clients; `host-gateway` stands for the bridge's address.
fn extra_host(entry: &str) -> Result<()> {
    let Some((name, address)) = split_extra_host(entry) else {
        refuse!("bad format for add-host: {entry:?}");
    };
    if name.is_empty() || name.contains(['\n', ' ', '\t']) {
        refuse!("bad format for add-host: {entry:?}");
    }
    if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
        refuse!("invalid IP address in add-host: {address:?}");
    }
    Ok(())
}

/// Name and address without brackets.
pub(crate) fn split_extra_host(entry: &str) -> Option<(&str, &str)> {
    let (name, address) = entry.split_once('=').or_else(|| entry.split_once(':'))?;
    let address = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    Some((name, address))
}

fn port_bindings(host: &HostConfig) -> Result<()> {
    for (key, bindings) in &host.port_bindings {
        port_key(key)?;
        for binding in bindings.iter().flatten() {
            host_ports(&binding.host_port)?;
            if !binding.host_ip.is_empty() && binding.host_ip.parse::<IpAddr>().is_err() {
                refuse!("invalid IP address: {}", binding.host_ip);
            }
        }
    }
    Ok(())
}

/// `80`, `80/tcp`, `53/udp` → whether UDP, and the port.
fn port_key(key: &str) -> Result<(bool, u16)> {
    let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    let invalid = || Error::invalid(format!("invalid port specification: {key:?}"));
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if port == 0 {
        return Err(invalid());
    }
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Ok((false, port)),
        "udp" => Ok((true, port)),
        "sctp" => Err(Error::new(
            ErrorKind::NotImplemented,
            format!("port {key}: SCTP is not supported; use tcp or udp"),
        )),
        _ => Err(invalid()),
    }
}

/// Empty picks one; `8000-8010` the first free one.
fn host_ports(text: &str) -> Result<(u16, u16)> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.parse::<u16>(), to.parse::<u16>()) {
        (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
        _ => Err(Error::invalid(format!(
            "invalid port specification: {text:?}"
        ))),
    }
}

/// What `docker run -p` and `-P` ask to publish, in the order of the container's ports.
pub(crate) fn ports(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<PortRequest>> {
    let mut requests = Vec::new();
    for (key, bindings) in &host.port_bindings {
        let (udp, container_port) = port_key(key)?;
        let any = [gantry_docker_api::create::PortBinding::default()];
        let bindings = bindings
            .as_deref()
            .filter(|b| !b.is_empty())
            .unwrap_or(&any);
        for binding in bindings {
            requests.push(PortRequest {
                udp,
                container_port,
                host_ip: binding.host_ip.parse().ok(),
                host_ports: host_ports(&binding.host_port)?,
            });
        }
    }
    if host.publish_all_ports {
        for key in config.exposed_ports.keys() {
            let (udp, container_port) = port_key(key)?;
            let bound = requests
                .iter()
                .any(|r: &PortRequest| r.udp == udp && r.container_port == container_port);
            if !bound {
                requests.push(PortRequest {
                    udp,
                    container_port,
                    host_ip: None,
                    host_ports: (0, 0),
                });
            }
        }
    }
    if requests.len() > PORTS_LIMIT {
        refuse!(
            "a container can publish at most {PORTS_LIMIT} ports, this one asks for {}",
            requests.len()
        );
    }
    Ok(requests)
}

pub(crate) fn restart_policy(policy: &RestartPolicy) -> Result<()> {
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" if policy.maximum_retry_count != 0 => {
            let negative = if policy.maximum_retry_count < 0 {
                " and cannot be negative"
            } else {
                ""
            };
            refuse!(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'{negative}"
            )
        }
        "on-failure" if policy.maximum_retry_count < 0 => {
            refuse!("invalid restart policy: maximum retry count cannot be negative")
        }
        "" | "always" | "unless-stopped" | "no" | "on-failure" => Ok(()),
        other => refuse!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ),
    }
}

fn capabilities(host: &mut HostConfig, facts: &Facts, warnings: &mut Vec<String>) -> Result<()> {
    for (list, option) in [
        (&mut host.cap_add, "CapAdd"),
        (&mut host.cap_drop, "CapDrop"),
    ] {
        for name in list.iter_mut().flatten() {
            *name = capability_name(name).map_err(|unknown| {
                Error::invalid(format!("invalid {option}: unknown capability: {unknown:?}"))
            })?;
        }
    }
    let all = host.privileged || host.cap_add.iter().flatten().any(|name| name == "ALL");
    let lacking = |number: &usize| {
        *number <= usize::from(facts.last_capability) && !facts.has_capability(*number as u8)
    };
    let missing: Vec<_> = (0..CAPABILITIES.len())
        .filter(lacking)
        .map(|n| CAPABILITIES[n])
        .collect();
    if all && !missing.is_empty() {
        warnings.push(format!(
            "This host does not have {}; the container gets all other capabilities.",
            missing.join(", ")
        ));
    }
    let dropped = |name: &str| host.cap_drop.iter().flatten().any(|drop| drop == name);
    for name in host.cap_add.iter().flatten() {
        if !all && missing.contains(&name.as_str()) && !dropped(name) {
            refuse!("cannot add {name}: this host does not have that capability itself");
        }
    }
    Ok(())
}

/// `net_admin` → `CAP_NET_ADMIN`; `Err` holds the name that is unknown.
fn capability_name(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(upper);
    }
    let name = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    if CAPABILITIES.contains(&name.as_str()) {
        Ok(name)
    } else {
        Err(name)
    }
}

/// Memory, CPU and block I/O; also what `update` may change.
pub(crate) fn resources(
    host: &mut HostConfig,
    facts: &Facts,
    update: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None;
    }
    if host.memory != 0 && host.memory < MEMORY_MINIMUM {
        refuse!("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        refuse!("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 && !update {
        refuse!("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if host.memory_swap < -1 {
        refuse!("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if let Some(value) = host
        .memory_swappiness
        .filter(|value| !(0..=100).contains(value))
    {
        refuse!("Invalid value: {value}, valid memory swappiness range is 0-100");
    }
    if host.memory_reservation < 0
        || (host.memory_reservation > 0 && host.memory_reservation < MEMORY_MINIMUM)
    {
        refuse!("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        refuse!("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if host.oom_kill_disable == Some(true) {
        if !facts.cgroup_v1 {
            warnings.push(
                "Your kernel does not support OomKillDisable. OomKillDisable discarded.".into(),
            );
            host.oom_kill_disable = None;
        } else if host.memory == 0 {
            warnings.push("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".into());
        }
    }
    if host.nano_cpus > 0 && host.cpu_period > 0 {
        refuse!("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.nano_cpus > 0 && host.cpu_quota > 0 {
        refuse!("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
    }
    if host.nano_cpus < 0 || host.nano_cpus > i64::from(facts.cpus) * 1_000_000_000 {
        refuse!(
            "range of CPUs is from 0.01 to {0}.00, as there are only {0} CPUs available",
            facts.cpus
        );
    }
    if host.cpu_shares < 0 {
        refuse!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        );
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        refuse!(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        );
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        refuse!("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_realtime_period != 0 {
        refuse!("kernel does not support CPU real-time scheduler");
    }
    if host.cpu_realtime_runtime != 0 {
        refuse!("kernel does not support CPU real-time scheduler");
    }
    cpu_set(&host.cpuset_cpus, &facts.cpu_list, "cpus", "CPUs")?;
    cpu_set(
        &host.cpuset_mems,
        &facts.memory_node_list,
        "mems",
        "memory nodes",
    )?;
    if host.blkio_weight > 0 && !facts.blkio_weight {
        warnings.push("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.".into());
        host.blkio_weight = 0;
    }
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        refuse!("Range of blkio weight is from 10 to 1000");
    }
    if !host.blkio_weight_device.is_empty() && !facts.blkio_weight {
        warnings.push("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.".into());
        host.blkio_weight_device.clear();
    }
    if host.io_maximum_bandwidth != 0 || host.io_maximum_iops != 0 {
        refuse!(
            "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps"
        );
    }
    Ok(())
}

fn cpu_set(wanted: &str, available: &str, file: &str, what: &str) -> Result<()> {
    let Some(numbers) = parse_list(wanted) else {
        refuse!("Invalid value {wanted} for cpuset {file}");
    };
    let have = parse_list(available).unwrap_or_default();
    if numbers.iter().any(|number| !have.contains(number)) {
        refuse!("Requested {what} are not available - requested {wanted}, available: {available}");
    }
    Ok(())
}

fn modes(host: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    let of_container = |mode: &str| {
        mode.strip_prefix("container:")
            .is_some_and(|rest| !rest.is_empty())
    };
    if !matches!(
        host.ipc_mode.as_str(),
        "" | "none" | "private" | "shareable" | "host"
    ) && !of_container(&host.ipc_mode)
    {
        refuse!("invalid IPC mode: {}", host.ipc_mode);
    }
    if !matches!(host.pid_mode.as_str(), "" | "host") && !of_container(&host.pid_mode) {
        refuse!("invalid PID mode: {}", host.pid_mode);
    }
    if host.shm_size < 0 {
        refuse!("SHM size can not be less than 0");
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        refuse!("invalid UTS mode: {}", host.uts_mode);
    }
    if !matches!(host.userns_mode.as_str(), "" | "host") {
        refuse!("invalid user namespace mode: {}", host.userns_mode);
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
        refuse!("invalid cgroup namespace mode: {}", host.cgroupns_mode);
    }
    if !matches!(
        host.runtime.as_deref(),
        None | Some("" | "runc" | "io.containerd.runc.v2" | "gantry")
    ) {
        refuse!(
            "unknown or invalid runtime name: {}",
            host.runtime.as_deref().unwrap_or_default()
        );
    }
    if host.network_mode == "host" && !host.port_bindings.is_empty() {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    for destination in host
        .tmpfs
        .iter()
        .flatten()
        .map(|(destination, _)| destination)
    {
        super::mounts::destination(destination)?;
    }
    Ok(())
}

/// Limits that only a process with CAP_SYS_RESOURCE may raise. What somebody asked for is granted or refused, never bent.
fn limits(host: &HostConfig, facts: &Facts, warnings: &mut Vec<String>) -> Result<()> {
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        refuse!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        );
    }
    let may_raise = facts.has_capability(CAP_SYS_RESOURCE);
    if host.oom_score_adj < facts.oom_score_adj && !may_raise {
        if host.oom_score_adj != 0 {
            refuse!(
                "oom-score-adj {} cannot be granted: this host's limit is {} (no CAP_SYS_RESOURCE)",
                host.oom_score_adj,
                facts.oom_score_adj
            );
        }
        warnings.push(format!(
            "The default oom-score-adj 0 is below this host's limit; the container runs with {}.",
            facts.oom_score_adj
        ));
    }
    for ulimit in &host.ulimits {
        ulimit_can_be_granted(ulimit, facts, may_raise)?;
    }
    Ok(())
}

fn ulimit_can_be_granted(ulimit: &Ulimit, facts: &Facts, may_raise: bool) -> Result<()> {
    let Ulimit { name, soft, hard } = ulimit;
    if !RLIMITS.iter().any(|(known, _, _)| known == name) {
        refuse!("invalid ulimit type: {name}");
    }
    if *soft < -1 || *hard < -1 {
        refuse!("invalid ulimit {name}: {soft}:{hard}");
    }
    // −1 is unlimited, the largest value there is.
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    if value(*soft) > value(*hard) {
        refuse!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}");
    }
    match facts.hard_limits.get(name.as_str()) {
        Some(limit) if !may_raise && value(*hard) > *limit => {
            refuse!(
                "ulimit {name}={hard} cannot be granted: this host's limit is {limit} (no CAP_SYS_RESOURCE)"
            )
        }
        _ => Ok(()),
    }
}

pub(crate) fn network(
    config: &ContainerConfig,
    host: &HostConfig,
    endpoints: &std::collections::BTreeMap<String, gantry_docker_api::create::EndpointSettings>,
) -> Result<()> {
    let mode = host.network_mode.as_str();
    let mac = config.mac_address.as_deref().unwrap_or_default();
    // What contradicts itself on any machine, docker-api refused already.
    if host.uts_mode == "host" && !config.domainname.is_empty() {
        refuse!("conflicting options: domainname and the UTS mode");
    }
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        let other = endpoints.keys().find(|name| *name != mode);
        if other.is_some() {
            refuse!(
                "container sharing network namespace with another container or host cannot be connected to any other network"
            );
        }
    }
    for address in &host.dns {
        if address.parse::<IpAddr>().is_err() {
            refuse!("bad nameserver address: {address}");
        }
    }
    if !mac.is_empty() {
        mac_address(mac)?;
    }
    for (name, endpoint) in endpoints {
        if !endpoint.mac_address.is_empty() {
            mac_address(&endpoint.mac_address)?;
        }
        let wanted = endpoint
            .ipam_config
            .as_ref()
            .map_or("", |ipam| ipam.ipv4_address.as_str());
        if !wanted.is_empty() && wanted.parse::<std::net::Ipv4Addr>().is_err() {
            refuse!(
                "invalid config for network {name}: invalid endpoint settings:\ninvalid IPv4 address: {wanted}"
            );
        }
        let wanted6 = endpoint
            .ipam_config
            .as_ref()
            .map_or("", |ipam| ipam.ipv6_address.as_str());
        if !wanted6.is_empty() && wanted6.parse::<std::net::Ipv6Addr>().is_err() {
            refuse!(
                "invalid config for network {name}: invalid endpoint settings:\ninvalid IPv6 address: {wanted6}"
            );
        }
        if !(wanted.is_empty() && wanted6.is_empty())
            && matches!(name.as_str(), "bridge" | "default" | "host" | "none")
        {
            refuse!(
                "invalid config for network {name}: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only"
            );
        }
        if endpoint
            .ipam_config
            .as_ref()
            .is_some_and(|ipam| ipam.link_local_ips.iter().flatten().next().is_some())
        {
            refuse!(
                "invalid config for network {name}: link-local addresses (LinkLocalIPs) are not supported"
            );
        }
        if matches!(name.as_str(), "bridge" | "default")
            && endpoint.aliases.iter().flatten().next().is_some()
        {
            refuse!(
                "network-scoped alias is supported only for containers in user defined networks"
            );
        }
    }
    Ok(())
}

pub(crate) fn mac_address(text: &str) -> Result<[u8; 6]> {
    let invalid = || Error::invalid(format!("{text} is not a valid mac address"));
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or_else(invalid)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
    }
    if parts.next().is_some() {
        return Err(invalid());
    }
    Ok(bytes)
}

fn sysctls(host: &HostConfig) -> Result<()> {
    for (key, value) in host.sysctls.iter().flatten() {
        if key.contains(['\0', ' '])
            || key
                .split(['.', '/'])
                .any(|part| part.is_empty() || part == "..")
            || value.contains('\0')
        {
            refuse!("invalid sysctl: {key:?}");
        }
        let key = key.replace('/', ".");
        let ipc = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
        ];
        if ipc.contains(&key.as_str()) || key.starts_with("fs.mqueue.") {
            if host.ipc_mode == "host" {
                refuse!("sysctl {key:?} not allowed in host ipc namespace");
            }
        } else if key.starts_with("net.") {
            if host.network_mode == "host" {
                refuse!("sysctl {key:?} not allowed in host network namespace");
            }
        } else if key == "kernel.domainname" || key == "kernel.hostname" {
            if host.uts_mode == "host" {
                refuse!("sysctl {key:?} not allowed in host UTS namespace");
            }
        } else {
            refuse!("sysctl {key:?} is not in a separate kernel namespace");
        }
    }
    Ok(())
}

/// `--security-opt` taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Security {
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Seccomp,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Seccomp {
    #[default]
    Builtin,
    Unconfined,
    /// The profile's JSON.
    Profile(String),
}

pub(crate) fn security_options(host: &HostConfig) -> Result<Security> {
    let mut security = Security::default();
    for option in host.security_opt.iter().flatten() {
        if option == "no-new-privileges" {
            security.no_new_privileges = true;
            continue;
        }
        if option == "disable" {
            continue;
        }
        // `:` is the older separator; a profile's JSON contains it, so `=` goes first.
        let Some((key, value)) = option.split_once('=').or_else(|| option.split_once(':')) else {
            refuse!("invalid --security-opt 1: {option:?}");
        };
        match key {
            // No SELinux here: Docker ignores labels then, too.
            "label" => {}
            "apparmor" if matches!(value, "unconfined" | "docker-default" | "") => {}
            "apparmor" => refuse!(
                "apparmor profile {value:?} cannot be applied: this host has no AppArmor support in gantry"
            ),
            "no-new-privileges" => {
                security.no_new_privileges = match value {
                    "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
                    "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
                    _ => refuse!("invalid --security-opt 2: {option:?}"),
                }
            }
            "seccomp" => {
                security.seccomp = match value {
                    "unconfined" => Seccomp::Unconfined,
                    "builtin" | "" => Seccomp::Builtin,
                    json => {
                        if let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(json) {
                            refuse!("Decoding seccomp profile failed: {e}");
                        }
                        Seccomp::Profile(json.to_owned())
                    }
                }
            }
            _ => refuse!("invalid --security-opt 2: {option:?}"),
        }
    }
    Ok(security)
}

fn log(host: &mut HostConfig) -> Result<()> {
    let log = &mut host.log_config;
    if log.kind.is_empty() {
        log.kind = "json-file".into();
    }
    crate::ship::validate(&log.kind, &log.config)
}

/// `10m` → bytes; `-1` unbounded → `None`.
pub(crate) fn log_size(text: &str) -> Result<Option<u64>> {
    if text == "-1" {
        return Ok(None);
    }
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match number.char_indices().last() {
        Some((at, 'k')) => (&number[..at], 10),
        Some((at, 'm')) => (&number[..at], 20),
        Some((at, 'g')) => (&number[..at], 30),
        _ => (number, 0),
    };
    match digits.parse::<u64>() {
        Ok(value) if value > 0 && value < 1 << (60 - shift) => Ok(Some(value << shift)),
        _ => Err(Error::invalid(format!(
            "invalid value for max-size: {text:?}"
        ))),
    }
}

/// What is known and not built: refused by name, so that nobody believes in a limit that is not there.
fn not_yet(request: &CreateContainer) -> Result<()> {
    let host = &request.host_config;
    let refusal = if host.storage_opt.iter().flatten().next().is_some() {
        "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
    } else if !host.cgroup.is_empty() {
        "the Cgroup field of HostConfig is not supported"
    } else if host.kernel_memory != 0 || host.kernel_memory_tcp != 0 {
        "kernel memory limits are not supported: kernels have none any more"
    } else if host.capabilities.iter().flatten().next().is_some() {
        "the Capabilities field of HostConfig is not supported: use CapAdd and CapDrop"
    } else if host.disk_quota != 0 {
        "DiskQuota is not supported on linux"
    } else if host.cpu_count != 0 {
        "CpuCount is not supported on linux: use NanoCpus"
    } else if host.cpu_percent != 0 {
        "CpuPercent is not supported on linux: use NanoCpus"
    } else {
        return Ok(());
    };
    Err(Error::invalid(refusal))
}

/// Docker's defaults, so that inspect shows what is true.
fn adapt(request: &mut CreateContainer, facts: &Facts) {
    let (config, host) = (&mut request.config, &mut request.host_config);
    if config.network_disabled == Some(true) {
        host.network_mode = "none".into();
    }
    if matches!(host.network_mode.as_str(), "" | "default") {
        host.network_mode = "bridge".into();
    }
    if let Some(settings) = request.endpoints.remove("default") {
        request.endpoints.entry("bridge".into()).or_insert(settings);
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.cpu_shares > 0 {
        host.cpu_shares = host.cpu_shares.clamp(2, 262_144);
    }
    if host.shm_size == 0 {
        host.shm_size = SHM_DEFAULT;
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode = "private".into();
    }
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = if facts.cgroup_v1 || host.privileged {
            "host"
        } else {
            "private"
        }
        .into();
    }
    if host.runtime.as_deref().is_none_or(str::is_empty) {
        host.runtime = Some("runc".into());
    }
    host.oom_kill_disable.get_or_insert(false);
    if !host.privileged {
        let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        host.masked_paths.get_or_insert_with(|| list(&MASKED_PATHS));
        host.readonly_paths
            .get_or_insert_with(|| list(&READONLY_PATHS));
    }
    if config.hostname.is_empty() && (host.network_mode == "host" || host.uts_mode == "host") {
        config.hostname.clone_from(&facts.hostname);
    }
}

/// The image's defaults under the request's wishes.
pub(crate) fn merge(config: &mut ContainerConfig, image: &RunConfig) -> Result<()> {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for port in image.exposed_ports.keys() {
        config
            .exposed_ports
            .entry(port.clone())
            .or_insert_with(|| serde_json::json!({}));
    }
    let mut env = config.env.take().unwrap_or_default();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let set: std::collections::BTreeSet<String> = env.iter().map(|entry| name(entry)).collect();
    env.extend(
        image
            .env
            .iter()
            .filter(|entry| !set.contains(&name(entry)))
            .cloned(),
    );
    config.env = Some(env);
    for (key, value) in &image.labels {
        config
            .labels
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    let given = |words: &Option<Vec<String>>| words.as_ref().is_some_and(|words| !words.is_empty());
    if !given(&config.entrypoint) {
        if !given(&config.cmd) {
            config.cmd.clone_from(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if config.entrypoint.as_deref() == Some(&[String::new()]) {
        config.entrypoint = None;
    }
    match (&mut config.healthcheck, &image.healthcheck) {
        (Some(own), Some(image)) => {
            if own.test.is_empty() {
                own.test.clone_from(&image.test);
            }
            let pairs = [
                (&mut own.interval, image.interval),
                (&mut own.timeout, image.timeout),
                (&mut own.start_period, image.start_period),
                (&mut own.start_interval, image.start_interval),
                (&mut own.retries, image.retries),
            ];
            for (mine, default) in pairs {
                if *mine == 0 {
                    *mine = default;
                }
            }
        }
        (own @ None, Some(image)) => *own = Some(image.clone()),
        (_, None) => {}
    }
    if config.working_dir.is_empty() && !image.working_dir.is_empty() {
        config.working_dir = clean_path(&format!("/{}", image.working_dir));
    }
    if !image.volumes.is_empty() {
        let volumes = config.volumes.get_or_insert_default();
        for path in image.volumes.keys() {
            volumes
                .entry(path.clone())
                .or_insert_with(|| serde_json::json!({}));
        }
    }
    if config.stop_signal.as_deref().is_none_or(str::is_empty) {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if !given(&config.entrypoint) && !given(&config.cmd) {
        refuse!("no command specified");
    }
    Ok(())
}

/// `TERM`, `SIGTERM`, `15` → number. `SIGRTMIN+n` as well.
pub(crate) fn signal(text: &str) -> Result<i32> {
    const NAMES: [(&str, i32); 36] = [
        ("ABRT", 6),
        ("ALRM", 14),
        ("BUS", 7),
        ("CHLD", 17),
        ("CLD", 17),
        ("CONT", 18),
        ("FPE", 8),
        ("HUP", 1),
        ("ILL", 4),
        ("INT", 2),
        ("IO", 29),
        ("IOT", 6),
        ("KILL", 9),
        ("PIPE", 13),
        ("POLL", 29),
        ("PROF", 27),
        ("PWR", 30),
        ("QUIT", 3),
        ("SEGV", 11),
        ("STKFLT", 16),
        ("STOP", 19),
        ("SYS", 31),
        ("TERM", 15),
        ("TRAP", 5),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("USR1", 10),
        ("USR2", 12),
        ("VTALRM", 26),
        ("WINCH", 28),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("RTMIN", 34),
        ("RTMAX", 64),
    ];
    let invalid = || Error::invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(invalid())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |prefix: &str| {
        name.strip_prefix(prefix)
            .and_then(|rest| rest.parse::<i32>().ok())
    };
    let number = match (offset("RTMIN+"), offset("RTMAX-")) {
        (Some(n), _) if n >= 0 => 34 + n,
        (_, Some(n)) if n >= 0 => 64 - n,
        _ => return Err(invalid()),
    };
    if (34..=64).contains(&number) {
        Ok(number)
    } else {
        Err(invalid())
    }
}

/// Lexical clean-up of an absolute path: no `.`, `..`, doubled or trailing slashes.
pub(crate) fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a request given as the JSON of Config and HostConfig; `ok` and the warnings, or the refusal.
    fn verdict(config: &str, host: &str) -> String {
        let mut wanted = CreateContainer {
            config: serde_json::from_str(config).unwrap(),
            host_config: serde_json::from_str(host).unwrap(),
            ..CreateContainer::default()
        };
        match request(&mut wanted, &Facts::example()) {
            Ok(warnings) => ["ok".to_owned()]
                .into_iter()
                .chain(warnings)
                .collect::<Vec<_>>()
                .join(" | "),
            Err(e) => e.message().to_owned(),
        }
    }

    #[test]
    fn configs_that_docker_refuses() {
        for (config, sentence) in [
            (
                r#"{"WorkingDir":"a"}"#,
                "the working directory 'a' is invalid, it needs to be an absolute path",
            ),
            (r#"{"StopSignal":"FOO"}"#, "invalid signal: FOO"),
            (r#"{"Env":["=a"]}"#, "invalid environment variable: =a"),
            (
                r#"{"Healthcheck":{"Interval":1000}}"#,
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                r#"{"Healthcheck":{"Retries":-1}}"#,
                "Retries in Healthcheck cannot be negative",
            ),
            (
                r#"{"Healthcheck":{"Test":["FOO"]}}"#,
                "Unknown healthcheck type 'FOO' (expected 'CMD') in healthcheck",
            ),
            (
                r#"{"ExposedPorts":{"http":{}}}"#,
                "invalid port specification: \"http\"",
            ),
        ] {
            assert_eq!(verdict(config, "{}"), sentence, "{config}");
        }
    }

    #[test]
    fn host_configs_that_docker_refuses() {
        for (host, sentence) in [
            (
                r#"{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}"#,
                "can't create 'AutoRemove' container with restart policy",
            ),
            (r#"{"ExtraHosts":["a"]}"#, "bad format for add-host: \"a\""),
            (
                r#"{"ExtraHosts":["a:b"]}"#,
                "invalid IP address in add-host: \"b\"",
            ),
            (
                r#"{"PortBindings":{"99999/tcp":null}}"#,
                "invalid port specification: \"99999/tcp\"",
            ),
            (
                r#"{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}"#,
                "invalid port specification: \"x\"",
            ),
            (
                r#"{"RestartPolicy":{"Name":"sometimes"}}"#,
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
            (
                r#"{"RestartPolicy":{"Name":"always","MaximumRetryCount":1}}"#,
                "invalid restart policy: maximum retry count can only be used with 'on-failure'",
            ),
            (
                r#"{"RestartPolicy":{"Name":"no","MaximumRetryCount":-1}}"#,
                "invalid restart policy: maximum retry count can only be used with 'on-failure' and cannot be negative",
            ),
            (
                r#"{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":-1}}"#,
                "invalid restart policy: maximum retry count cannot be negative",
            ),
            (
                r#"{"CapAdd":["foo"]}"#,
                "invalid CapAdd: unknown capability: \"CAP_FOO\"",
            ),
            (
                r#"{"CapDrop":["x"]}"#,
                "invalid CapDrop: unknown capability: \"CAP_X\"",
            ),
            (
                r#"{"CapAdd":["sys_resource"]}"#,
                "cannot add CAP_SYS_RESOURCE: this host does not have that capability itself",
            ),
            (
                r#"{"Isolation":"hyperv"}"#,
                "invalid isolation 'hyperv' on linux",
            ),
            (r#"{"Memory":1}"#, "Minimum memory limit allowed is 6MB"),
            (
                r#"{"Memory":67108864,"MemorySwap":6291456}"#,
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                r#"{"MemorySwap":67108864}"#,
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                r#"{"MemorySwappiness":101}"#,
                "Invalid value: 101, valid memory swappiness range is 0-100",
            ),
            (
                r#"{"MemoryReservation":1}"#,
                "Minimum memory reservation allowed is 6MB",
            ),
            (
                r#"{"Memory":6291456,"MemoryReservation":67108864}"#,
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ),
            (
                r#"{"NanoCpus":2000000001}"#,
                "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            ),
            (
                r#"{"NanoCpus":1,"CpuQuota":1000}"#,
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            (
                r#"{"NanoCpus":1,"CpuPeriod":1000}"#,
                "Conflicting options: Nano CPUs and CPU Period cannot both be set",
            ),
            (
                r#"{"CpuPeriod":999}"#,
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ),
            (
                r#"{"CpuQuota":999}"#,
                "CPU cfs quota can not be less than 1ms (i.e. 1000)",
            ),
            (
                r#"{"CpusetCpus":"0-7"}"#,
                "Requested CPUs are not available - requested 0-7, available: 0-1",
            ),
            (r#"{"CpusetCpus":"a"}"#, "Invalid value a for cpuset cpus"),
            (
                r#"{"CpusetMems":"3"}"#,
                "Requested memory nodes are not available - requested 3, available: 0",
            ),
            (r#"{"IpcMode":"foo"}"#, "invalid IPC mode: foo"),
            (
                r#"{"PidMode":"container:"}"#,
                "invalid PID mode: container:",
            ),
            (r#"{"UTSMode":"x"}"#, "invalid UTS mode: x"),
            (
                r#"{"CgroupnsMode":"x"}"#,
                "invalid cgroup namespace mode: x",
            ),
            (r#"{"ShmSize":-1}"#, "SHM size can not be less than 0"),
            (
                r#"{"Runtime":"kata"}"#,
                "unknown or invalid runtime name: kata",
            ),
            (
                r#"{"Tmpfs":{"/":""}}"#,
                "invalid specification: destination can't be '/'",
            ),
            (
                r#"{"OomScoreAdj":-1001}"#,
                "Invalid value -1001, range for oom score adj is [-1000, 1000]",
            ),
            (
                r#"{"OomScoreAdj":-5}"#,
                "oom-score-adj -5 cannot be granted: this host's limit is 0 (no CAP_SYS_RESOURCE)",
            ),
            (
                r#"{"Ulimits":[{"Name":"foo","Soft":1,"Hard":1}]}"#,
                "invalid ulimit type: foo",
            ),
            (
                r#"{"Ulimits":[{"Name":"nofile","Soft":9,"Hard":30000}]}"#,
                "ulimit nofile=30000 cannot be granted: this host's limit is 20000 (no CAP_SYS_RESOURCE)",
            ),
            (
                r#"{"Ulimits":[{"Name":"nofile","Soft":-1,"Hard":9}]}"#,
                "ulimit soft limit must be less than or equal to hard limit: -1 > 9",
            ),
            (
                r#"{"Sysctls":{"net.core.somaxconn":"1"},"NetworkMode":"host"}"#,
                "sysctl \"net.core.somaxconn\" not allowed in host network namespace",
            ),
            (
                r#"{"Sysctls":{"vm.swappiness":"1"}}"#,
                "sysctl \"vm.swappiness\" is not in a separate kernel namespace",
            ),
            (
                r#"{"SecurityOpt":["foo"]}"#,
                "invalid --security-opt 1: \"foo\"",
            ),
            (
                r#"{"SecurityOpt":["foo=bar"]}"#,
                "invalid --security-opt 2: \"foo=bar\"",
            ),
            (
                r#"{"LogConfig":{"Type":"splunk"}}"#,
                "logger: no log driver named 'splunk' is registered",
            ),
            (
                r#"{"LogConfig":{"Type":"json-file","Config":{"x":"1"}}}"#,
                "unknown log opt 'x' for json-file log driver",
            ),
            (
                r#"{"DeviceRequests":[{"Driver":"","Count":-1,"Capabilities":[["tpu"]]}]}"#,
                "could not select device driver \"\" with capabilities: [[tpu]]",
            ),
            (
                r#"{"DeviceCgroupRules":["x"]}"#,
                "invalid device cgroup rule format: 'x'",
            ),
        ] {
            assert_eq!(verdict("{}", host), sentence, "{host}");
        }
    }

    #[test]
    fn what_is_granted_with_a_warning() {
        for (host, warnings) in [
            ("{}", "ok"),
            (
                r#"{"Privileged":true}"#,
                "ok | This host does not have CAP_SYS_RESOURCE; the container gets all other capabilities.",
            ),
            (
                r#"{"CapAdd":["ALL"]}"#,
                "ok | This host does not have CAP_SYS_RESOURCE; the container gets all other capabilities.",
            ),
            (
                r#"{"NetworkMode":"host","PortBindings":{"80/tcp":null}}"#,
                "ok | Published ports are discarded when using host network mode",
            ),
            (
                r#"{"BlkioWeight":500}"#,
                "ok | Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
            ),
            (
                r#"{"Ulimits":[{"Name":"nofile","Soft":100,"Hard":20000}],"CapAdd":["net_admin"]}"#,
                "ok",
            ),
        ] {
            assert_eq!(verdict("{}", host), warnings, "{host}");
        }
    }

    #[test]
    fn image_defaults_under_the_request() {
        let image: RunConfig = serde_json::from_str(
            r#"{"Env":["PATH=/x","A=image"],"Entrypoint":["/e"],"Cmd":["c"],"WorkingDir":"w","User":"u","Labels":{"l":"1"},"ExposedPorts":{"80/tcp":{}}}"#,
        )
        .unwrap();
        let merged = |json: &str| {
            let mut config: ContainerConfig = serde_json::from_str(json).unwrap();
            merge(&mut config, &image).map(|()| config)
        };
        let config = merged(r#"{"Env":["A=mine"]}"#).unwrap();
        assert_eq!(config.env.unwrap(), ["A=mine", "PATH=/x"]);
        assert_eq!(
            (config.entrypoint, config.cmd),
            (Some(vec!["/e".into()]), Some(vec!["c".into()]))
        );
        assert_eq!(
            (config.working_dir.as_str(), config.user.as_str()),
            ("/w", "u")
        );
        let config = merged(r#"{"Cmd":["d"]}"#).unwrap();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (Some(vec!["/e".into()]), Some(vec!["d".into()]))
        );
        let config = merged(r#"{"Entrypoint":["/f"]}"#).unwrap();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (Some(vec!["/f".into()]), None)
        );
        assert_eq!(
            merged(r#"{"Entrypoint":[""]}"#).unwrap_err().message(),
            "no command specified"
        );
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("RTMIN+2", 36),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "FOO", "RTMIN+99", "SIG"] {
            assert_eq!(
                signal(bad).unwrap_err().message(),
                format!("invalid signal: {bad}")
            );
        }
    }

    #[test]
    fn sizes_and_addresses() {
        for (text, size) in [
            ("10m", Some(10 << 20)),
            ("1K", Some(1024)),
            ("7", Some(7)),
            ("1gb", Some(1 << 30)),
            ("-1", None),
        ] {
            assert_eq!(log_size(text).unwrap(), size, "{text}");
        }
        assert!(
            log_size("m").is_err() && log_size("0").is_err() && log_size("99999999999g").is_err()
        );
        assert_eq!(
            mac_address("02:42:ac:11:00:02").unwrap(),
            [2, 0x42, 0xac, 0x11, 0, 2]
        );
        assert!(
            mac_address("02:42:ac:11:00").is_err() && mac_address("02:42:ac:11:00:zz").is_err()
        );
    }
}
