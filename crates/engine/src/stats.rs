//! One sample of what a container uses, read at once from its cgroup and its network namespace.
//!
//! The parts serialise under Docker's names (`cpu_stats`, `memory_stats` … of `GET /containers/{id}/stats`).

use crate::Engine;
use crate::cgroup::Cgroups;
use gantry_base::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// A sample. Of a container that does not run all but id and name is empty and `read_ns` is 0.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// When it was read, nanoseconds since the epoch; 0 when the container does not run.
    pub read_ns: i64,
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// `cpu_stats`.
    pub cpu: Cpu,
    /// `memory_stats`.
    pub memory: Memory,
    /// `pids_stats`.
    pub pids: Pids,
    /// `blkio_stats`.
    pub blkio: Blkio,
    /// `networks`, by interface name inside the container; `None` with the host's network.
    pub networks: Option<BTreeMap<String, Interface>>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Cpu {
    pub cpu_usage: CpuUsage,
    /// CPU time of the whole machine, nanoseconds.
    pub system_cpu_usage: u64,
    pub online_cpus: u32,
    pub throttling_data: Throttling,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CpuUsage {
    pub total_usage: u64,
    /// Only cgroup v1 counts per CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_usage: Vec<u64>,
    pub usage_in_kernelmode: u64,
    pub usage_in_usermode: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    /// Nanoseconds.
    pub throttled_time: u64,
}

/// Bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_usage: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub failcnt: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// Docker prints 2⁶⁴−1 for no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Blkio {
    pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
    pub io_serviced_recursive: Option<Vec<BlkioEntry>>,
    pub io_queue_recursive: Option<Vec<BlkioEntry>>,
    pub io_service_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_wait_time_recursive: Option<Vec<BlkioEntry>>,
    pub io_merged_recursive: Option<Vec<BlkioEntry>>,
    pub io_time_recursive: Option<Vec<BlkioEntry>>,
    pub sectors_recursive: Option<Vec<BlkioEntry>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Engine {
    /// One sample, at once.
    pub async fn stats(&self, r: &str) -> Result<Stats> {
        let record = self.get(r)?;
        let nothing = Stats {
            id: record.id.clone(),
            name: record.name.clone(),
            ..Stats::default()
        };
        let Some(process) = record.state.process() else {
            return Ok(nothing);
        };
        let host_network = record.host_config.network_mode == "host";
        match sample(process.pid, host_network) {
            // Looked at after the reading.
            Ok(stats) if process.is_alive() => Ok(Stats {
                id: nothing.id,
                name: nothing.name,
                ..stats
            }),
            // It ended while we looked.
            _ => Ok(nothing),
        }
    }
}

/// Everything about the cgroups of `pid`. Files that this node does not have count as nothing.
fn sample(pid: i32, host_network: bool) -> io::Result<Stats> {
    let cgroups = Cgroups::of(pid)?;
    let (system_cpu_usage, online_cpus) =
        machine_cpu(&read("/proc/stat".as_ref()).unwrap_or_default());
    let cpu = Cpu {
        system_cpu_usage,
        online_cpus,
        ..cpu(&cgroups)
    };
    Ok(Stats {
        read_ns: crate::events::now_ns(),
        cpu,
        memory: memory(&cgroups),
        pids: pids(&cgroups),
        blkio: blkio(&cgroups),
        networks: if host_network {
            None
        } else {
            Some(interfaces(&std::fs::read_to_string(format!(
                "/proc/{pid}/net/dev"
            ))?))
        },
        ..Stats::default()
    })
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    read(&folder.join(name))?.trim().parse().ok()
}

/// Lines of `key value`.
fn table(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// proc(5), /proc/stat: user nice system idle iowait irq softirq steal in ticks of 1/100 s; guest times are in user already.
fn machine_cpu(stat: &str) -> (u64, u32) {
    let mut lines = stat.lines().take_while(|line| line.starts_with("cpu"));
    let all = lines.next().unwrap_or_default();
    let ticks: u64 = all
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    (
        ticks * (1_000_000_000 / per_second),
        u32::try_from(lines.count()).unwrap_or(0),
    )
}

fn cpu(cgroups: &Cgroups) -> Cpu {
    let mut cpu = Cpu::default();
    let usage = &mut cpu.cpu_usage;
    if let Some(folder) = cgroups.v1("cpuacct") {
        usage.total_usage = number(folder, "cpuacct.usage").unwrap_or(0);
        let all = read(&folder.join("cpuacct.usage_all")).unwrap_or_default();
        // Columns: cpu user system, in nanoseconds.
        for line in all.lines().skip(1) {
            let mut columns = line
                .split(' ')
                .skip(1)
                .filter_map(|n| n.parse::<u64>().ok());
            let (user, system) = (columns.next().unwrap_or(0), columns.next().unwrap_or(0));
            usage.percpu_usage.push(user + system);
            usage.usage_in_usermode += user;
            usage.usage_in_kernelmode += system;
        }
    }
    let folder = cgroups.v1("cpu").or(cgroups.v2());
    let stat = folder
        .and_then(|folder| read(&folder.join("cpu.stat")))
        .unwrap_or_default();
    for (key, value) in table(&stat) {
        match key {
            "nr_periods" => cpu.throttling_data.periods = value,
            "nr_throttled" => cpu.throttling_data.throttled_periods = value,
            "throttled_time" => cpu.throttling_data.throttled_time = value,
            "throttled_usec" => cpu.throttling_data.throttled_time = value * 1000,
            "usage_usec" => usage.total_usage = value * 1000,
            "user_usec" => usage.usage_in_usermode = value * 1000,
            "system_usec" => usage.usage_in_kernelmode = value * 1000,
            _ => {}
        }
    }
    cpu
}

fn memory(cgroups: &Cgroups) -> Memory {
    let map = |folder: &Path| {
        let text = read(&folder.join("memory.stat")).unwrap_or_default();
        table(&text)
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    };
    let (mut memory, limit) = if let Some(folder) = cgroups.v1("memory") {
        let memory = Memory {
            usage: number(folder, "memory.usage_in_bytes").unwrap_or(0),
            max_usage: number(folder, "memory.max_usage_in_bytes").unwrap_or(0),
            failcnt: number(folder, "memory.failcnt").unwrap_or(0),
            stats: map(folder),
            limit: 0,
        };
        (memory, number(folder, "memory.limit_in_bytes"))
    } else if let Some(folder) = cgroups.v2() {
        let memory = Memory {
            usage: number(folder, "memory.current").unwrap_or(0),
            stats: map(folder),
            ..Memory::default()
        };
        (memory, number(folder, "memory.max"))
    } else {
        return Memory::default();
    };
    // No limit means the machine's memory, as Docker shows it.
    memory.limit = limit.unwrap_or(u64::MAX).min(machine_memory());
    memory
}

fn machine_memory() -> u64 {
    static TOTAL: OnceLock<u64> = OnceLock::new();
    *TOTAL.get_or_init(|| {
        let text = read("/proc/meminfo".as_ref()).unwrap_or_default();
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map_or(u64::MAX, |kib| kib * 1024)
    })
}

fn pids(cgroups: &Cgroups) -> Pids {
    let Some(folder) = cgroups.v1("pids").or(cgroups.v2()) else {
        return Pids::default();
    };
    Pids {
        current: number(folder, "pids.current").unwrap_or(0),
        limit: match read(&folder.join("pids.max")) {
            Some(text) => text.trim().parse().unwrap_or(u64::MAX),
            None => 0,
        },
    }
}

fn blkio(cgroups: &Cgroups) -> Blkio {
    let mut blkio = Blkio::default();
    if let Some(folder) = cgroups.v1("blkio") {
        let entries = |name: &str| read(&folder.join(name)).map(|text| v1_entries(&text));
        blkio.io_service_bytes_recursive = entries("blkio.throttle.io_service_bytes_recursive")
            .or_else(|| entries("blkio.throttle.io_service_bytes"));
        blkio.io_serviced_recursive = entries("blkio.throttle.io_serviced_recursive")
            .or_else(|| entries("blkio.throttle.io_serviced"));
    } else if let Some(text) = cgroups
        .v2()
        .and_then(|folder| read(&folder.join("io.stat")))
    {
        blkio.io_service_bytes_recursive = Some(v2_entries(&text));
    }
    blkio
}

/// `8:0 Read 4096`; the last line is a total without a device.
fn v1_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: fields.next()?.to_owned(),
            value: fields.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 …`
fn v2_entries(text: &str) -> Vec<BlkioEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let Some((major, minor)) = fields.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            continue;
        };
        for field in fields {
            let (op, value) = match field.split_once('=') {
                Some(("rbytes", value)) => ("read", value),
                Some(("wbytes", value)) => ("write", value),
                _ => continue,
            };
            entries.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or(0),
            });
        }
    }
    entries
}

/// proc(5), /proc/net/dev: two lines of titles, then eight columns in and eight out. The loopback is nobody's traffic.
fn interfaces(text: &str) -> BTreeMap<String, Interface> {
    let mut found = BTreeMap::new();
    for line in text.lines().skip(2) {
        let Some((name, numbers)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        if name == "lo" || numbers.len() < 12 {
            continue;
        }
        let interface = Interface {
            rx_bytes: numbers[0],
            rx_packets: numbers[1],
            rx_errors: numbers[2],
            rx_dropped: numbers[3],
            tx_bytes: numbers[8],
            tx_packets: numbers[9],
            tx_errors: numbers[10],
            tx_dropped: numbers[11],
        };
        found.insert(name.to_owned(), interface);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes ...\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let found = interfaces(dev);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(
            (
                found["eth0"].rx_bytes,
                found["eth0"].rx_dropped,
                found["eth0"].tx_bytes,
                found["eth0"].tx_dropped
            ),
            (10, 4, 50, 8)
        );
        let v1 = v1_entries("8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n");
        assert_eq!(
            (v1.len(), v1[0].op.as_str(), v1[0].major, v1[0].value),
            (2, "Read", 8, 4096)
        );
        let v2 = v2_entries("254:16 rbytes=7 wbytes=9 rios=1 wios=1 dbytes=0 dios=0\n");
        assert_eq!(
            (v2.len(), v2[1].op.as_str(), v2[1].minor, v2[1].value),
            (2, "write", 16, 9)
        );
        let stat = "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 1\ncpu1 1 1\nintr 5\n";
        assert_eq!(machine_cpu(stat), (360_000_000, 2));
    }

    #[test]
    fn this_process_has_a_sample_and_it_is_quick() {
        let pid = std::process::id() as i32;
        let stats = sample(pid, false).unwrap();
        assert!(
            stats.cpu.system_cpu_usage > 0 && stats.cpu.online_cpus > 0 && stats.memory.limit > 0
        );
        let quickest = (0..50)
            .map(|_| {
                let start = std::time::Instant::now();
                sample(pid, false).unwrap();
                start.elapsed()
            })
            .min()
            .unwrap();
        assert!(
            quickest < std::time::Duration::from_millis(2),
            "{quickest:?}"
        );
        println!("quickest sample {quickest:?}");
    }
}
