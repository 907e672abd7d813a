//! Resources as file writes, in the words of v1 and of v2. Pure.

use gantry_oci::runtime::{BlockIo, Cpu, DeviceRule, Memory, Resources};

/// One thing that was asked for: what it is called, whose it is, and the writes that do it.
#[derive(Debug, PartialEq)]
pub(crate) struct Setting {
    pub(crate) what: &'static str,
    /// Empty for a file of the v2 core.
    pub(crate) controller: &'static str,
    pub(crate) v1: Vec<(String, String)>,
    pub(crate) v2: Vec<(String, String)>,
}

impl Setting {
    fn new(what: &'static str, controller: &'static str) -> Self {
        Self {
            what,
            controller,
            v1: Vec::new(),
            v2: Vec::new(),
        }
    }
    fn v1(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.v1.push((file.into(), value.to_string()));
        self
    }
    fn v2(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.v2.push((file.into(), value.to_string()));
        self
    }
}

/// Everything that the resources ask for, in an order that the kernel takes. Zero means "not set", as Docker and runc read it.
pub(crate) fn settings(resources: &Resources) -> Result<Vec<Setting>, String> {
    let mut all = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_settings(memory, &mut all)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_settings(cpu, &mut all);
    }
    if let Some(pids) = &resources.pids
        && pids.limit != 0
    {
        let limit = if pids.limit > 0 {
            pids.limit.to_string()
        } else {
            "max".to_owned()
        };
        let setting = Setting::new("pids limit", "pids");
        all.push(setting.v1("pids.max", &limit).v2("pids.max", &limit));
    }
    if let Some(block_io) = &resources.block_io {
        block_io_settings(block_io, &mut all);
    }
    for limit in &resources.hugepage_limits {
        // The size becomes part of a file name.
        if !limit.page_size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format!("invalid huge page size {:?}", limit.page_size));
        }
        all.push(
            Setting::new("huge page limit", "hugetlb")
                .v1(
                    format!("hugetlb.{}.limit_in_bytes", limit.page_size),
                    limit.limit,
                )
                .v2(format!("hugetlb.{}.max", limit.page_size), limit.limit),
        );
    }
    if let Some(network) = &resources.network {
        if let Some(class) = network.class_id {
            all.push(Setting::new("network class", "net_cls").v1("net_cls.classid", class));
        }
        for priority in &network.priorities {
            all.push(Setting::new("network priority", "net_prio").v1(
                "net_prio.ifpriomap",
                format!("{} {}", priority.name, priority.priority),
            ));
        }
    }
    for (device, limit) in &resources.rdma {
        let mut value = device.clone();
        if let Some(handles) = limit.hca_handles {
            value.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limit.hca_objects {
            value.push_str(&format!(" hca_object={objects}"));
        }
        let setting = Setting::new("rdma limit", "rdma");
        all.push(setting.v1("rdma.max", &value).v2("rdma.max", &value));
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(format!("unified resource {file:?} must be a file name"));
        }
        all.push(Setting::new("unified resource", controller_of(file)).v2(file.as_str(), value));
    }
    Ok(all)
}

fn controller_of(file: &str) -> &'static str {
    const KNOWN: [&str; 8] = [
        "memory", "cpu", "cpuset", "io", "pids", "hugetlb", "rdma", "misc",
    ];
    let prefix = file.split('.').next().unwrap_or_default();
    KNOWN
        .into_iter()
        .find(|known| *known == prefix)
        .unwrap_or("")
}

fn memory_settings(memory: &Memory, all: &mut Vec<Setting>) -> Result<(), String> {
    let max = |bytes: i64| match bytes {
        ..0 => "max".to_owned(),
        bytes => bytes.to_string(),
    };
    let limit = memory.limit.filter(|l| *l != 0);
    // Unlimited memory under a finite sum of memory and swap would be refused; who lifts one lifts both.
    let swap = memory
        .swap
        .filter(|s| *s != 0)
        .or((limit == Some(-1)).then_some(-1));
    if let Some(limit) = limit {
        all.push(
            Setting::new("memory limit", "memory")
                .v1("memory.limit_in_bytes", limit)
                .v2("memory.max", max(limit)),
        );
    }
    if let Some(swap) = swap
        && !(memory.swap.is_none() && limit == Some(-1) && !swap_is_accounted())
    {
        let own = match (swap, limit) {
            (..0, _) => "max".to_owned(),
            (swap, Some(limit)) if limit >= 0 => {
                if swap < limit {
                    return Err(
                        "linux.resources.memory.swap: memory+swap limit should be >= memory limit"
                            .to_owned(),
                    );
                }
                (swap - limit).to_string()
            }
            _ => {
                return Err(
                    "linux.resources.memory.swap: unable to set swap limit without memory limit: memory+swap is one number"
                        .to_owned(),
                );
            }
        };
        all.push(
            Setting::new("memory and swap limit", "memory")
                .v1("memory.memsw.limit_in_bytes", swap)
                .v2("memory.swap.max", own),
        );
    }
    if let Some(reservation) = memory.reservation.filter(|r| *r != 0) {
        all.push(
            Setting::new("memory reservation", "memory")
                .v1("memory.soft_limit_in_bytes", reservation)
                .v2("memory.low", max(reservation)),
        );
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            return Err(format!(
                "invalid memory swappiness value: {swappiness} (valid range is 0-100)"
            ));
        }
        all.push(Setting::new("swappiness", "memory").v1("memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer == Some(true) {
        all.push(Setting::new("OOM killer", "memory").v1("memory.oom_control", 1));
    }
    Ok(())
}

/// Whether v1 counts swap: the file is missing on kernels that were told not to.
fn swap_is_accounted() -> bool {
    std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

fn cpu_settings(cpu: &Cpu, all: &mut Vec<Setting>) {
    if let Some(shares) = cpu.shares.filter(|s| *s != 0) {
        all.push(
            Setting::new("CPU shares", "cpu")
                .v1("cpu.shares", shares)
                .v2("cpu.weight", weight_of_shares(shares)),
        );
    }
    let period = cpu.period.filter(|p| *p != 0);
    let quota = cpu.quota.filter(|q| *q != 0);
    if period.is_some() || quota.is_some() {
        let mut setting = Setting::new("CPU quota", "cpu");
        if let Some(period) = period {
            setting = setting.v1("cpu.cfs_period_us", period);
        }
        if let Some(quota) = quota {
            setting = setting.v1("cpu.cfs_quota_us", quota);
        }
        let amount = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        all.push(setting.v2("cpu.max", format!("{amount} {}", period.unwrap_or(100_000))));
    }
    if let Some(burst) = cpu.burst {
        all.push(
            Setting::new("CPU burst", "cpu")
                .v1("cpu.cfs_burst_us", burst)
                .v2("cpu.max.burst", burst),
        );
    }
    if let Some(period) = cpu.realtime_period.filter(|p| *p != 0) {
        all.push(Setting::new("real-time period", "cpu").v1("cpu.rt_period_us", period));
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|r| *r != 0) {
        all.push(Setting::new("real-time runtime", "cpu").v1("cpu.rt_runtime_us", runtime));
    }
    if let Some(idle) = cpu.idle {
        all.push(
            Setting::new("CPU idle", "cpu")
                .v1("cpu.idle", idle)
                .v2("cpu.idle", idle),
        );
    }
    for (what, file, list) in [
        ("CPU set", "cpuset.cpus", &cpu.cpus),
        ("memory nodes", "cpuset.mems", &cpu.mems),
    ] {
        if !list.is_empty() {
            all.push(Setting::new(what, "cpuset").v1(file, list).v2(file, list));
        }
    }
}

/// 2…262144 shares onto 1…10000, as every other runtime maps them.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn block_io_settings(block_io: &BlockIo, all: &mut Vec<Setting>) {
    let v2_weight = |weight: u16| 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
    // The controller is `blkio` in v1 and `io` in v2; which hierarchy has it is found by either name.
    if let Some(weight) = block_io.weight.filter(|w| *w != 0) {
        let file = match std::path::Path::new("/sys/fs/cgroup/blkio/blkio.weight").exists() {
            true => "blkio.weight",
            false => "blkio.bfq.weight",
        };
        all.push(
            Setting::new("block I/O weight", "blkio")
                .v1(file, weight)
                .v2("io.weight", v2_weight(weight)),
        );
    }
    if let Some(weight) = block_io.leaf_weight.filter(|w| *w != 0) {
        let setting = Setting::new("block I/O leaf weight", "blkio");
        all.push(setting.v1("blkio.leaf_weight", weight));
    }
    for device in &block_io.weight_device {
        if let Some(weight) = device.leaf_weight.filter(|w| *w != 0) {
            all.push(
                Setting::new("block I/O leaf weight of a device", "blkio").v1(
                    "blkio.leaf_weight_device",
                    format!("{}:{} {weight}", device.major, device.minor),
                ),
            );
        }
        if let Some(weight) = device.weight {
            let numbers = format!("{}:{}", device.major, device.minor);
            let file =
                match std::path::Path::new("/sys/fs/cgroup/blkio/blkio.weight_device").exists() {
                    true => "blkio.weight_device",
                    false => "blkio.bfq.weight_device",
                };
            all.push(
                Setting::new("block I/O weight of a device", "blkio")
                    .v1(file, format!("{numbers} {weight}"))
                    .v2("io.weight", format!("{numbers} {}", v2_weight(weight))),
            );
        }
    }
    for (devices, file, key) in [
        (
            &block_io.throttle_read_bps_device,
            "blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            &block_io.throttle_write_bps_device,
            "blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            &block_io.throttle_read_iops_device,
            "blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            &block_io.throttle_write_iops_device,
            "blkio.throttle.write_iops_device",
            "wiops",
        ),
    ] {
        for device in devices {
            let numbers = format!("{}:{}", device.major, device.minor);
            let rate = match device.rate {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            all.push(
                Setting::new("block I/O throttle", "blkio")
                    .v1(file, format!("{numbers} {}", device.rate))
                    .v2("io.max", format!("{numbers} {key}={rate}")),
            );
        }
    }
}

/// The rules in the order in which they apply: all denied first unless the spec begins with all, then the spec's, then what
/// every container may use (runtime-spec: "Default Devices", and making nodes without using them).
pub(crate) fn device_rules(resources: &Resources) -> Vec<DeviceRule> {
    let everything = |rule: &DeviceRule| {
        matches!(rule.kind.as_str(), "" | "a") && rule.major.is_none() && rule.minor.is_none()
    };
    let mut rules = Vec::new();
    if !resources.devices.first().is_some_and(everything) {
        rules.push(DeviceRule::default());
    }
    rules.extend(resources.devices.iter().cloned());
    if rules.last().is_some_and(|r| r.allow && everything(r)) {
        return rules;
    }
    let allow = |kind: &str, major, minor, access: &str| DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    rules.push(allow("c", None, None, "m"));
    rules.push(allow("b", None, None, "m"));
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (136, None),
        (5, Some(2)),
    ] {
        rules.push(allow("c", Some(major), minor, "rwm"));
    }
    rules
}

/// A rule in the words of `devices.allow` and `devices.deny`.
pub(crate) fn device_rule_text(rule: &DeviceRule) -> String {
    let kind = match rule.kind.as_str() {
        "" | "a" => {
            return "a".to_owned();
        }
        kind => kind,
    };
    let number = |n: Option<i64>| {
        n.filter(|n| *n >= 0)
            .map_or("*".to_owned(), |n| n.to_string())
    };
    let access = if rule.access.is_empty() {
        "rwm"
    } else {
        &rule.access
    };
    format!(
        "{kind} {}:{} {access}",
        number(rule.major),
        number(rule.minor)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(json: &str) -> String {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let side = |writes: &[(String, String)]| {
            writes
                .iter()
                .map(|(f, v)| format!("{f}={v}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        match settings(&resources) {
            Ok(all) => all
                .iter()
                .map(|s| format!("{} | {}", side(&s.v1), side(&s.v2)))
                .collect::<Vec<_>>()
                .join("; "),
            Err(e) => e,
        }
    }

    #[test]
    fn both_versions_say_the_same() {
        for (json, expected) in [
            ("{}", ""),
            (r#"{"memory":{"limit":0,"swap":0}}"#, ""),
            (
                r#"{"memory":{"limit":1000,"swap":1500}}"#,
                "memory.limit_in_bytes=1000 | memory.max=1000; memory.memsw.limit_in_bytes=1500 | memory.swap.max=500",
            ),
            (
                r#"{"memory":{"limit":1000,"swap":-1,"reservation":5}}"#,
                "memory.limit_in_bytes=1000 | memory.max=1000; memory.memsw.limit_in_bytes=-1 | memory.swap.max=max; memory.soft_limit_in_bytes=5 | memory.low=5",
            ),
            (
                r#"{"memory":{"limit":1000,"swap":500}}"#,
                "linux.resources.memory.swap: memory+swap limit should be >= memory limit",
            ),
            (
                r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"}}"#,
                "cpu.shares=1024 | cpu.weight=39; cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000 | cpu.max=50000 100000; cpuset.cpus=0-1 | cpuset.cpus=0-1",
            ),
            (
                r#"{"cpu":{"quota":-1}}"#,
                "cpu.cfs_quota_us=-1 | cpu.max=max 100000",
            ),
            (r#"{"pids":{"limit":-1}}"#, "pids.max=max | pids.max=max"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":7}]}}"#,
                "blkio.throttle.read_bps_device=8:0 7 | io.max=8:0 rbps=7",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
                "invalid huge page size \"../x\"",
            ),
            (r#"{"unified":{"memory.high":"5"}}"#, " | memory.high=5"),
            (
                r#"{"unified":{"../x.y":"5"}}"#,
                "unified resource \"../x.y\" must be a file name",
            ),
        ] {
            assert_eq!(writes(json), expected, "{json}");
        }
    }

    #[test]
    fn devices_start_denied_and_a_privileged_list_stays_open() {
        let rules = |json: &str| {
            device_rules(&serde_json::from_str(json).unwrap())
                .iter()
                .map(|r| format!("{}{}", if r.allow { "+" } else { "-" }, device_rule_text(r)))
                .collect::<Vec<_>>()
        };
        assert_eq!(rules("{}")[0], "-a");
        assert_eq!(
            rules(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#),
            ["+a"]
        );
        let some = rules(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#,
        );
        assert_eq!(some[..2], ["-a", "+c 10:229 rw"]);
        assert!(some.contains(&"+c 136:* rwm".to_owned()));
    }
}
