//! What of a specification is refused before anything is made. Pure but for a look at which security modules the kernel has.
//!
//! Either a container runs as its specification says, or the error names the field that was not applied: a value that is not
//! known here, or that contradicts another one, is an error and never skipped. [`warnings`] is the short list of what the
//! specification itself wants to be ignored with a warning.
//!
//! Every sentence begins with the field's name; where runc refuses the same, its words follow, because engines look for them.

use crate::{document, mounts, process, seccomp};
use gantry_linux::capabilities;
use gantry_oci::runtime::{
    Device, DeviceRule, Hook, IdMapping, Linux, LinuxNamespace, Mount, NamespaceKind, Process,
    Resources, Scheduler, Spec,
};
use std::fmt::Display;
use std::path::Path;

type Check = Result<(), String>;

fn refuse(field: impl Display, why: impl Display) -> Check {
    Err(document::one_line(format!("{field}: {why}")))
}

/// What a bundle's document must hold beyond what [`spec`] asks of every container.
pub fn bundle(spec: &Spec) -> Check {
    version(&spec.oci_version)?;
    match &spec.root {
        None => return refuse("root", "root must be specified in config.json"),
        Some(root) if root.path.is_empty() => return refuse("root.path", "must not be empty"),
        Some(_) => {}
    }
    if spec.annotations.contains_key("") {
        return refuse("annotations", "keys must not be empty");
    }
    let Some(process) = &spec.process else {
        return refuse("process", "process property must not be empty");
    };
    environment(process)?;
    self::spec(spec)
}

/// A process that joins, from a file or from flags.
pub fn joining(process: &Process) -> Check {
    environment(process)?;
    self::process(process)
}

fn environment(process: &Process) -> Check {
    for (index, pair) in process.env.iter().enumerate() {
        match pair.split_once('=') {
            Some((name, _)) if !name.is_empty() => {}
            _ => {
                return refuse(
                    format!("process.env[{index}]"),
                    format!("invalid environment variable: {pair:?}"),
                );
            }
        }
    }
    Ok(())
}

/// `1.x.y` with anything behind.
fn version(text: &str) -> Check {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').map(str::parse::<u32>).collect();
    match numbers.as_slice() {
        [Ok(1), Ok(_), Ok(_)] => Ok(()),
        [Ok(_), Ok(_), Ok(_)] => refuse("ociVersion", format!("unsupported version {text:?}")),
        _ if text.is_empty() => refuse("ociVersion", "must not be empty"),
        _ => refuse("ociVersion", format!("{text:?} is not a version")),
    }
}

/// The whole specification of a container.
pub(crate) fn spec(spec: &Spec) -> Check {
    for (name, part) in [
        ("vm", &spec.vm),
        ("windows", &spec.windows),
        ("solaris", &spec.solaris),
        ("zos", &spec.zos),
    ] {
        if part.is_some() {
            return refuse(
                name,
                "this runtime runs Linux containers on the host's kernel only",
            );
        }
    }
    match &spec.process {
        Some(process) => self::process(process)?,
        None => return refuse("process", "process property must not be empty"),
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        self::mount(mount).or_else(|(part, why)| refuse(format!("mounts[{index}].{part}"), why))?;
    }
    if let Some(hooks) = &spec.hooks {
        for (kind, hooks) in [
            ("prestart", &hooks.prestart),
            ("createRuntime", &hooks.create_runtime),
            ("createContainer", &hooks.create_container),
            ("startContainer", &hooks.start_container),
            ("poststart", &hooks.poststart),
            ("poststop", &hooks.poststop),
        ] {
            for (index, hook) in hooks.iter().enumerate() {
                self::hook(&format!("hooks.{kind}[{index}]"), hook)?;
            }
        }
    }
    let no_linux = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&no_linux);
    names(spec, linux)?;
    self::linux(linux)
}

fn names(spec: &Spec, linux: &Linux) -> Check {
    /// `__NEW_UTS_LEN`.
    const LONGEST: usize = 64;
    for (field, name) in [
        ("hostname", &spec.hostname),
        ("domainname", &spec.domainname),
    ] {
        if name.is_empty() {
            continue;
        }
        if name.len() > LONGEST {
            return refuse(field, format!("longer than {LONGEST} bytes"));
        }
        if linux.namespace(NamespaceKind::Uts).is_none() {
            return refuse(
                field,
                format!("unable to set {field} without a private UTS namespace"),
            );
        }
    }
    Ok(())
}

fn process(process: &Process) -> Check {
    if process.args.is_empty() {
        return refuse("process.args", "args must not be empty");
    }
    if process.cwd.is_empty() {
        return refuse("process.cwd", "Cwd property must not be empty");
    }
    if !process.cwd.starts_with('/') {
        return refuse("process.cwd", "Cwd must be an absolute path");
    }
    if let Some(size) = &process.console_size {
        for (name, size) in [("height", size.height), ("width", size.width)] {
            if size > u32::from(u16::MAX) {
                return refuse(format!("process.consoleSize.{name}"), "more than 65535");
            }
        }
    }
    if process.user.umask.is_some_and(|mask| mask > 0o777) {
        return refuse("process.user.umask", "more than 0777");
    }
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if gantry_linux::process::resource(&limit.kind).is_none() {
            return refuse(
                format!("{field}.type"),
                format!("wrong rlimit value: {}", limit.kind),
            );
        }
        if process.rlimits[..index]
            .iter()
            .any(|l| l.kind == limit.kind)
        {
            return refuse(
                format!("{field}.type"),
                format!("{} is there twice", limit.kind),
            );
        }
        if limit.soft > limit.hard {
            return refuse(format!("{field}.soft"), "more than the hard limit");
        }
    }
    if let Some(score) = process.oom_score_adj
        && !(-1000..=1000).contains(&score)
    {
        return refuse(
            "process.oomScoreAdj",
            format!("{score} is not within -1000 and 1000"),
        );
    }
    if let Some(scheduler) = &process.scheduler {
        self::scheduler(scheduler)?;
    }
    if let Some(priority) = &process.io_priority {
        if process::io_class(&priority.class).is_none() {
            return refuse(
                "process.ioPriority.class",
                format!("invalid ioPriority.class: {:?}", priority.class),
            );
        }
        if !(0..=7).contains(&priority.priority) {
            return refuse(
                "process.ioPriority.priority",
                "invalid ioPriority.Priority: must be within 0 and 7",
            );
        }
    }
    if let Some(affinity) = &process.exec_cpu_affinity {
        for (name, list) in [("initial", &affinity.initial), ("final", &affinity.finally)] {
            if !list.is_empty() && process::cpu_list(list).is_none() {
                return refuse(
                    format!("process.execCPUAffinity.{name}"),
                    format!("bad CPU affinity {list:?}"),
                );
            }
        }
    }
    if !process.apparmor_profile.is_empty() && !has_app_armor() {
        return refuse(
            "process.apparmorProfile",
            "unable to apply apparmor profile: apparmor is disabled or not supported",
        );
    }
    if !process.selinux_label.is_empty() {
        return no_selinux("process.selinuxLabel");
    }
    Ok(())
}

/// Whether the kernel runs with AppArmor.
pub(crate) fn has_app_armor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with(b"Y"))
}

fn no_selinux(field: &str) -> Check {
    refuse(
        field,
        match Path::new("/sys/fs/selinux/enforce").exists() {
            true => "this runtime sets no selinux labels",
            false => {
                "selinux label is specified in config, but selinux is disabled or not supported"
            }
        },
    )
}

fn scheduler(wanted: &Scheduler) -> Check {
    let field = |name: &str| format!("process.scheduler.{name}");
    process::scheduling(wanted)?;
    let policy = wanted.policy.as_str();
    let fair = matches!(policy, "SCHED_OTHER" | "SCHED_BATCH");
    let real_time = matches!(policy, "SCHED_FIFO" | "SCHED_RR");
    match wanted.nice {
        Some(nice) if !(-20..=19).contains(&nice) => {
            return refuse(field("nice"), format!("invalid scheduler.nice: '{nice}'"));
        }
        Some(nice) if nice != 0 && !fair => {
            return refuse(field("nice"), format!("{policy} knows no nice value"));
        }
        _ => {}
    }
    match wanted.priority {
        Some(priority) if priority != 0 && !real_time => {
            return refuse(
                field("priority"),
                "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
            );
        }
        Some(priority) if !(0..=99).contains(&priority) => {
            return refuse(field("priority"), "must be within 0 and 99");
        }
        _ => {}
    }
    for (name, value) in [
        ("runtime", wanted.runtime),
        ("deadline", wanted.deadline),
        ("period", wanted.period),
    ] {
        if value.is_some_and(|v| v != 0) && policy != "SCHED_DEADLINE" {
            return refuse(
                field(name),
                "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
            );
        }
    }
    Ok(())
}

fn mount(mount: &Mount) -> Result<(), (String, String)> {
    let no = |part: &str, why: String| Err((part.to_owned(), why));
    if mount.destination.is_empty() {
        return no("destination", "must not be empty".to_owned());
    }
    let parsed = mounts::parse(&mount.options);
    let bind = parsed.bind || mount.kind == "bind";
    if mount.kind.is_empty() && !bind {
        return no(
            "type",
            "must not be empty for what is no bind mount".to_owned(),
        );
    }
    if bind && mount.source.is_empty() {
        return no("source", "a bind mount needs one".to_owned());
    }
    if let Some(option) = parsed.not_for(&mount.kind, bind) {
        let kind = if bind { "bind" } else { &mount.kind };
        return no(
            "options",
            format!("invalid option {option:?} for a mount of type {kind}"),
        );
    }
    if (mount.uid_mappings.is_empty()) != (mount.gid_mappings.is_empty()) {
        let missing = if mount.uid_mappings.is_empty() {
            "uidMappings"
        } else {
            "gidMappings"
        };
        return no(
            missing,
            "both uidMappings and gidMappings are needed".to_owned(),
        );
    }
    if !mount.uid_mappings.is_empty() && !bind {
        return no(
            "uidMappings",
            "id-mapped mounts are only supported for bind mounts".to_owned(),
        );
    }
    for (name, mappings) in [
        ("uidMappings", &mount.uid_mappings),
        ("gidMappings", &mount.gid_mappings),
    ] {
        id_mappings(name, mappings).map_err(|text| {
            let (part, why) = text.split_once(": ").unwrap_or((name, &text));
            (part.to_owned(), why.to_owned())
        })?;
    }
    Ok(())
}

fn hook(field: &str, hook: &Hook) -> Check {
    if !hook.path.starts_with('/') {
        return refuse(format!("{field}.path"), "must be an absolute path");
    }
    if hook.timeout.is_some_and(|seconds| seconds <= 0) {
        return refuse(format!("{field}.timeout"), "must be greater than zero");
    }
    for (index, pair) in hook.env.iter().enumerate() {
        if !pair.contains('=') {
            return refuse(
                format!("{field}.env[{index}]"),
                format!("invalid environment variable: {pair:?}"),
            );
        }
    }
    Ok(())
}

fn linux(linux: &Linux) -> Check {
    namespaces(&linux.namespaces)?;
    user_namespace(linux)?;
    time_namespace(linux)?;
    for name in linux.sysctl.keys() {
        sysctl(name, linux)?;
    }
    for (index, device) in linux.devices.iter().enumerate() {
        self::device(&format!("linux.devices[{index}]"), device)?;
    }
    if !linux.rootfs_propagation.is_empty()
        && mounts::parse_propagation(&linux.rootfs_propagation).is_none()
    {
        return refuse(
            "linux.rootfsPropagation",
            format!(
                "rootfsPropagation={} is not supported",
                linux.rootfs_propagation
            ),
        );
    }
    for (name, paths) in [
        ("maskedPaths", &linux.masked_paths),
        ("readonlyPaths", &linux.readonly_paths),
    ] {
        for (index, path) in paths.iter().enumerate() {
            if !path.starts_with('/') {
                return refuse(format!("linux.{name}[{index}]"), "must be an absolute path");
            }
        }
    }
    if !linux.mount_label.is_empty() {
        return no_selinux("linux.mountLabel");
    }
    if let Some(personality) = &linux.personality {
        if process::persona(&personality.domain).is_none() {
            return refuse(
                "linux.personality.domain",
                format!("invalid personality domain {}", personality.domain),
            );
        }
        if !personality.flags.is_empty() {
            return refuse("linux.personality.flags", "none are defined");
        }
    }
    for (name, part, why) in [
        ("intelRdt", &linux.intel_rdt, "intelRdt is not supported"),
        (
            "netDevices",
            &linux.net_devices,
            "netDevices is not supported",
        ),
        (
            "memoryPolicy",
            &linux.memory_policy,
            "memoryPolicy is not supported",
        ),
    ] {
        if part.is_some() {
            return refuse(format!("linux.{name}"), why);
        }
    }
    if Path::new(&linux.cgroups_path)
        .components()
        .any(|c| c == std::path::Component::ParentDir)
    {
        return refuse("linux.cgroupsPath", "must not contain \"..\"");
    }
    if let Some(resources) = &linux.resources {
        self::resources(resources)?;
    }
    if let Some(profile) = &linux.seccomp {
        seccomp::check(profile).map_err(document::one_line)?;
    }
    Ok(())
}

fn namespaces(namespaces: &[LinuxNamespace]) -> Check {
    for (index, wanted) in namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if namespaces[..index].iter().any(|n| n.kind == wanted.kind) {
            let kind = serde_json::to_string(&wanted.kind).unwrap_or_default();
            return refuse(
                format!("{field}.type"),
                format!("malformed spec file: duplicated ns {kind}"),
            );
        }
        if !wanted.path.is_empty() && !wanted.path.starts_with('/') {
            return refuse(format!("{field}.path"), "must be an absolute path");
        }
    }
    // Without, every mount of ours would land on the host.
    match namespaces.iter().find(|n| n.kind == NamespaceKind::Mount) {
        None => refuse("linux.namespaces", "a mount namespace is required"),
        Some(_) => Ok(()),
    }
}

fn user_namespace(linux: &Linux) -> Check {
    let all = [
        ("linux.uidMappings", &linux.uid_mappings, "uid"),
        ("linux.gidMappings", &linux.gid_mappings, "gid"),
    ];
    for (field, mappings, kind) in all {
        id_mappings(field, mappings)?;
        match linux.namespace(NamespaceKind::User) {
            None if !mappings.is_empty() => {
                return refuse(
                    field,
                    "user namespace mappings specified, but USER namespace isn't enabled in the config",
                );
            }
            Some(user) if user.path.is_empty() && mappings.is_empty() => {
                return refuse(
                    field,
                    format!("user namespaces enabled, but no {kind} mappings found"),
                );
            }
            Some(user) if !user.path.is_empty() && !mappings.is_empty() => {
                return refuse(
                    field,
                    "a user namespace that is joined has its mappings already",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

fn id_mappings(field: &str, mappings: &[IdMapping]) -> Check {
    for (index, mapping) in mappings.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let (inside, outside) = (mapping.container_id, mapping.host_id);
        if mapping.size == 0 {
            return refuse(format!("{field}.size"), "must not be zero");
        }
        let fits = |first: u32| {
            first
                .checked_add(mapping.size - 1)
                .is_some_and(|l| l < u32::MAX)
        };
        if !fits(inside) || !fits(outside) {
            return refuse(format!("{field}.size"), "reaches beyond the last id");
        }
        let overlaps = |other: &IdMapping| {
            let meet = |a: u32, b: u32| {
                a < b.saturating_add(other.size) && b < a.saturating_add(mapping.size)
            };
            meet(inside, other.container_id) || meet(outside, other.host_id)
        };
        if mappings[..index].iter().any(overlaps) {
            return refuse(field, "overlaps with another mapping");
        }
    }
    Ok(())
}

fn time_namespace(linux: &Linux) -> Check {
    if linux.time_offsets.is_empty() {
        return Ok(());
    }
    match linux.namespace(NamespaceKind::Time) {
        Some(time) if time.path.is_empty() => {}
        Some(_) => {
            return refuse(
                "linux.timeOffsets",
                "a time namespace that is joined has its offsets already",
            );
        }
        None => {
            return refuse(
                "linux.timeOffsets",
                "time namespace offsets specified, but time namespace isn't enabled in the config",
            );
        }
    }
    for (clock, offset) in &linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return refuse("linux.timeOffsets", format!("unknown clock {clock:?}"));
        }
        if offset.nanosecs.is_some_and(|n| n >= 1_000_000_000) {
            return refuse(
                format!("linux.timeOffsets.{clock}.nanosecs"),
                "a second or more",
            );
        }
    }
    Ok(())
}

/// Only settings that belong to one of the container's own namespaces, and no path tricks.
fn sysctl(name: &str, linux: &Linux) -> Check {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let dotted = name.replace('/', ".");
    let own = |kind| linux.namespace(kind).is_some();
    let separate = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        own(NamespaceKind::Ipc)
    } else if dotted.starts_with("net.") {
        own(NamespaceKind::Network)
    } else if dotted.starts_with("user.") {
        own(NamespaceKind::User)
    } else if dotted == "kernel.domainname" {
        own(NamespaceKind::Uts)
    } else {
        false
    };
    match separate && !dotted.contains("..") {
        true => Ok(()),
        false => refuse(
            "linux.sysctl",
            format!("sysctl {name:?} is not in a separate kernel namespace"),
        ),
    }
}

fn device(field: &str, device: &Device) -> Check {
    if !device.path.starts_with('/') || device.path.ends_with('/') {
        return refuse(format!("{field}.path"), "must be an absolute path");
    }
    match device.kind.as_str() {
        "p" => {}
        "b" | "c" | "u" => {
            for (name, number, last) in [
                ("major", device.major, (1 << 12) - 1),
                ("minor", device.minor, (1 << 20) - 1),
            ] {
                if !number.is_some_and(|n| (0..=last).contains(&n)) {
                    return refuse(
                        format!("{field}.{name}"),
                        format!("must be within 0 and {last}"),
                    );
                }
            }
        }
        other => {
            return refuse(
                format!("{field}.type"),
                format!("invalid device type {other:?}"),
            );
        }
    }
    if device
        .file_mode
        .is_some_and(|mode| mode & !0o777 & !0o170_000 != 0)
    {
        return refuse(format!("{field}.fileMode"), "more than 0777");
    }
    Ok(())
}

fn device_rule(field: &str, rule: &DeviceRule) -> Check {
    if !matches!(rule.kind.as_str(), "" | "a" | "b" | "c") {
        return refuse(
            format!("{field}.type"),
            format!("unknown type {:?}", rule.kind),
        );
    }
    let twice = |at: usize| rule.access[..at].contains(&rule.access[at..=at]);
    if !rule.access.bytes().all(|b| b"rwm".contains(&b)) || (0..rule.access.len()).any(twice) {
        return refuse(
            format!("{field}.access"),
            format!("{:?} is not made of r, w and m", rule.access),
        );
    }
    for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
        if number.is_some_and(|n| !(-1..=i64::from(u32::MAX)).contains(&n)) {
            return refuse(format!("{field}.{name}"), "is no device number");
        }
        if matches!(rule.kind.as_str(), "" | "a") && number.is_some_and(|n| n != -1) {
            return refuse(
                format!("{field}.{name}"),
                "a rule about all types cannot name a device",
            );
        }
    }
    Ok(())
}

/// Limits of a container, at its birth or later.
pub(crate) fn resources(resources: &Resources) -> Check {
    let field = |name: &str| format!("linux.resources.{name}");
    for (index, rule) in resources.devices.iter().enumerate() {
        device_rule(&field(&format!("devices[{index}]")), rule)?;
    }
    if let Some(memory) = &resources.memory {
        for (name, bytes) in [
            ("limit", memory.limit),
            ("reservation", memory.reservation),
            ("swap", memory.swap),
        ] {
            if bytes.is_some_and(|b| b < -1) {
                return refuse(
                    field(&format!("memory.{name}")),
                    "must be -1 or a number of bytes",
                );
            }
        }
        if memory.swappiness.is_some_and(|s| s > 100) {
            return refuse(
                field("memory.swappiness"),
                format!(
                    "invalid memory swappiness value: {} (valid range is 0-100)",
                    memory.swappiness.unwrap_or_default()
                ),
            );
        }
        if memory.use_hierarchy == Some(false) {
            return refuse(
                field("memory.useHierarchy"),
                "the kernel always accounts in the hierarchy",
            );
        }
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|s| *s != 0) {
            // The kernel would cut these to its range without a word.
            if shares < 2 {
                return refuse(field("cpu.shares"), "the minimum allowed cpu-shares is 2");
            }
            if shares > 262_144 {
                return refuse(
                    field("cpu.shares"),
                    "the maximum allowed cpu-shares is 262144",
                );
            }
        }
        if cpu.quota.is_some_and(|q| q < -1) {
            return refuse(field("cpu.quota"), "must be -1 or a number of microseconds");
        }
        if cpu.idle.is_some_and(|idle| !matches!(idle, 0 | 1)) {
            return refuse(field("cpu.idle"), "must be 0 or 1");
        }
        for (name, list) in [("cpus", &cpu.cpus), ("mems", &cpu.mems)] {
            if !list.is_empty() && process::cpu_list(list).is_none() {
                return refuse(
                    field(&format!("cpu.{name}")),
                    format!("{list:?} is no list of numbers"),
                );
            }
        }
    }
    if let Some(block_io) = &resources.block_io {
        let weight = |name: String, weight: Option<u16>| match weight {
            None | Some(0 | 10..=1000) => Ok(()),
            Some(_) => refuse(
                field(&format!("blockIO.{name}")),
                "must be within 10 and 1000",
            ),
        };
        weight("weight".to_owned(), block_io.weight)?;
        weight("leafWeight".to_owned(), block_io.leaf_weight)?;
        for (index, device) in block_io.weight_device.iter().enumerate() {
            weight(format!("weightDevice[{index}].weight"), device.weight)?;
            weight(
                format!("weightDevice[{index}].leafWeight"),
                device.leaf_weight,
            )?;
        }
    }
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        // The size becomes part of a file name.
        if limit.page_size.is_empty() || !limit.page_size.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return refuse(
                field(&format!("hugepageLimits[{index}].pageSize")),
                format!("invalid huge page size {:?}", limit.page_size),
            );
        }
    }
    if let Some(network) = &resources.network {
        for (index, priority) in network.priorities.iter().enumerate() {
            if priority.name.is_empty() || priority.name.contains(char::is_whitespace) {
                return refuse(
                    field(&format!("network.priorities[{index}].name")),
                    "is no interface",
                );
            }
        }
    }
    for (device, limit) in &resources.rdma {
        if device.is_empty() || device.contains(char::is_whitespace) {
            return refuse(field("rdma"), format!("{device:?} is no device"));
        }
        if limit.hca_handles.is_none() && limit.hca_objects.is_none() {
            return refuse(field(&format!("rdma.{device}")), "limits nothing");
        }
    }
    for file in resources.unified.keys() {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return refuse(
                field("unified"),
                format!("unified resource {file:?} must be a file name"),
            );
        }
    }
    Ok(())
}

/// What the specification wants to be ignored and said so.
pub fn warnings(spec: &Spec) -> Vec<String> {
    let mut warnings = Vec::new();
    let memory = spec
        .linux
        .as_ref()
        .and_then(|l| l.resources.as_ref())
        .and_then(|r| r.memory.as_ref());
    if memory.is_some_and(|m| m.kernel.is_some_and(|k| k != 0)) {
        warnings.push(
            "linux.resources.memory.kernel: kernel memory settings are ignored and will be removed"
                .to_owned(),
        );
    }
    if memory.is_some_and(|m| m.kernel_tcp.is_some_and(|k| k != 0)) {
        warnings.push(
            "linux.resources.memory.kernelTCP: kernel memory settings are ignored and will be removed".to_owned(),
        );
    }
    for mount in &spec.mounts {
        if !mount.destination.starts_with('/') {
            warnings.push(format!(
                "mounts: mount destination {} not absolute: support for non-absolute mount destinations will be removed",
                mount.destination
            ));
        }
    }
    if let Some(process) = &spec.process {
        warnings.extend(joining_warnings(process, spec));
    }
    warnings
}

/// The same for one process of a container.
pub fn joining_warnings(process: &Process, spec: &Spec) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(sets) = &process.capabilities else {
        return warnings;
    };
    let linux = spec.linux.as_ref();
    // In a user namespace of its own a container's root has them all.
    let own = linux.is_some_and(|l| l.namespace(NamespaceKind::User).is_some());
    let held = match own {
        true => u64::MAX,
        false => capabilities::get().map_or(0, |sets| sets.permitted),
    };
    let mut missing: Vec<&str> = Vec::new();
    for name in [
        &sets.bounding,
        &sets.effective,
        &sets.inheritable,
        &sets.permitted,
        &sets.ambient,
    ]
    .into_iter()
    .flatten()
    {
        let known = capabilities::bit(name).is_some_and(|bit| bit & held != 0);
        if !known && !missing.contains(&name.as_str()) {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        warnings.push(format!(
            "process.capabilities: ignoring unknown or unavailable capabilities: [{}]",
            missing.join(" ")
        ));
    }
    let unreachable: Vec<&str> = sets
        .ambient
        .iter()
        .filter(|name| !sets.permitted.contains(name) || !sets.inheritable.contains(name))
        .map(String::as_str)
        .collect();
    if !unreachable.is_empty() {
        warnings.push(format!(
            "process.capabilities.ambient: [{}] not both permitted and inheritable, so not ambient",
            unreachable.join(" ")
        ));
    }
    warnings
}
