//! What this node can give, read once when the engine opens: the limits that requests are checked against.

use std::collections::BTreeMap;
use std::fs;

/// Plain data, so that decisions that depend on the machine can be tested with made-up machines.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) cpus: u32,
    /// Online processors and memory nodes as the kernel lists them (`0-1`).
    pub(crate) cpu_list: String,
    pub(crate) memory_node_list: String,
    /// Bit set of the capabilities that this process may hand on.
    pub(crate) capabilities: u64,
    /// The highest capability the kernel knows.
    pub(crate) last_capability: u8,
    /// Hard resource limits of this process by Docker's names; absent is unlimited.
    pub(crate) hard_limits: BTreeMap<&'static str, u64>,
    pub(crate) oom_score_adj: i64,
    /// Controllers live in cgroup v1 hierarchies (also in a hybrid layout).
    pub(crate) cgroup_v1: bool,
    pub(crate) blkio_weight: bool,
    pub(crate) hostname: String,
}

/// Docker's ulimit names, their constants, and their labels in `/proc/self/limits`.
pub(crate) const RLIMITS: [(&str, &str, &str); 15] = [
    ("core", "RLIMIT_CORE", "Max core file size"),
    ("cpu", "RLIMIT_CPU", "Max cpu time"),
    ("data", "RLIMIT_DATA", "Max data size"),
    ("fsize", "RLIMIT_FSIZE", "Max file size"),
    ("locks", "RLIMIT_LOCKS", "Max file locks"),
    ("memlock", "RLIMIT_MEMLOCK", "Max locked memory"),
    ("msgqueue", "RLIMIT_MSGQUEUE", "Max msgqueue size"),
    ("nice", "RLIMIT_NICE", "Max nice priority"),
    ("nofile", "RLIMIT_NOFILE", "Max open files"),
    ("nproc", "RLIMIT_NPROC", "Max processes"),
    ("rss", "RLIMIT_RSS", "Max resident set"),
    ("rtprio", "RLIMIT_RTPRIO", "Max realtime priority"),
    ("rttime", "RLIMIT_RTTIME", "Max realtime timeout"),
    ("sigpending", "RLIMIT_SIGPENDING", "Max pending signals"),
    ("stack", "RLIMIT_STACK", "Max stack size"),
];

impl Facts {
    pub(crate) fn read() -> Self {
        let text = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let cpu_list = text("/sys/devices/system/cpu/online");
        let limits = text("/proc/self/limits");
        let capabilities = text("/proc/self/status")
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        let cgroup_v1 = !fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false);
        Self {
            cpus: parse_list(&cpu_list).map_or(1, |list| list.len() as u32),
            cpu_list,
            memory_node_list: text("/sys/devices/system/node/online"),
            capabilities,
            last_capability: text("/proc/sys/kernel/cap_last_cap").parse().unwrap_or(40),
            hard_limits: RLIMITS
                .iter()
                .filter_map(|(name, _, label)| Some((*name, hard_limit(&limits, label)?)))
                .collect(),
            oom_score_adj: text("/proc/self/oom_score_adj").parse().unwrap_or(0),
            cgroup_v1,
            blkio_weight: if cgroup_v1 {
                fs::exists("/sys/fs/cgroup/blkio/blkio.weight").unwrap_or(false)
                    || fs::exists("/sys/fs/cgroup/blkio/blkio.bfq.weight").unwrap_or(false)
            } else {
                text("/sys/fs/cgroup/cgroup.controllers")
                    .split(' ')
                    .any(|c| c == "io")
            },
            hostname: text("/proc/sys/kernel/hostname"),
        }
    }

    pub(crate) fn has_capability(&self, number: u8) -> bool {
        self.capabilities >> number & 1 == 1
    }
}

fn hard_limit(limits: &str, label: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The kernel's list format: `0-2,7`. `None` when it is malformed or names more than 8192 numbers.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    const LIMIT: u32 = 8192;
    let mut numbers = Vec::new();
    if text.is_empty() {
        return Some(numbers);
    }
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to > LIMIT {
            return None;
        }
        numbers.extend(from..=to);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

#[cfg(test)]
impl Facts {
    /// Two processors, everything granted except CAP_SYS_RESOURCE, cgroup v1.
    pub(crate) fn example() -> Self {
        Self {
            cpus: 2,
            cpu_list: "0-1".into(),
            memory_node_list: "0".into(),
            capabilities: ((1 << 41) - 1) & !(1 << 24),
            last_capability: 40,
            hard_limits: BTreeMap::from([("nofile", 20_000), ("core", 0)]),
            oom_score_adj: 0,
            cgroup_v1: true,
            blkio_weight: false,
            hostname: "node1".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list("1,1,0"), Some(vec![0, 1]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["a", "2-1", "0,", "-1", "0-99999999", "1--2"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn hard_limits_by_their_label() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 20000                files\n\
                      Max stack size            8388608              unlimited            bytes\n";
        assert_eq!(hard_limit(limits, "Max open files"), Some(20_000));
        assert_eq!(hard_limit(limits, "Max stack size"), None);
    }
}
