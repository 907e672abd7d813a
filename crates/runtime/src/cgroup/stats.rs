//! The counters of a container's cgroups.

use super::Cgroup;
use std::fs;
use std::io;
use std::path::Path;

/// One reading of a container's counters; what the kernel does not offer is `None` or empty.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub cpu_total_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub per_cpu_ns: Vec<u64>,
    pub throttling_periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    pub memory_usage: u64,
    pub memory_max_usage: Option<u64>,
    pub memory_limit: Option<u64>,
    pub memory_failcnt: Option<u64>,
    /// `memory.stat`, as the kernel writes it.
    pub memory_stat: Vec<(String, u64)>,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub block_io: Vec<BlockIoStat>,
    /// This machine accounts in the unified hierarchy.
    pub unified: bool,
}

#[derive(Debug, Clone, Default)]
pub struct BlockIoStat {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
}

impl Cgroup {
    /// Limit, usage, highest usage and failures of one of v1's further memory counters (`memsw`, `kmem`, `kmem.tcp`); of `memsw` what v2 has.
    pub(crate) fn further_memory(&self, name: &str) -> [u64; 4] {
        if let Some(v1) = self.v1("memory") {
            return [
                "limit_in_bytes",
                "usage_in_bytes",
                "max_usage_in_bytes",
                "failcnt",
            ]
            .map(|file| {
                let path = v1.directory.join(format!("memory.{name}.{file}"));
                read_number(&path).unwrap_or(0)
            });
        }
        let Some(unified) = self.unified().filter(|_| name == "memsw") else {
            return [0; 4];
        };
        let read = |file: &str| read_number(&unified.directory.join(file));
        [
            read("memory.swap.max").unwrap_or(u64::MAX),
            read("memory.swap.current").unwrap_or(0),
            0,
            0,
        ]
    }

    /// Nanoseconds of each CPU in user and in kernel mode; v1 only.
    pub(crate) fn per_cpu_split(&self) -> (Vec<u64>, Vec<u64>) {
        let Some(v1) = self.v1("cpuacct") else {
            return Default::default();
        };
        let text = fs::read_to_string(v1.directory.join("cpuacct.usage_all")).unwrap_or_default();
        text.lines()
            .skip(1)
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1).map(str::parse::<u64>);
                Some((fields.next()?.ok()?, fields.next()?.ok()?))
            })
            .unzip()
    }

    /// The CPU set that applies, as runc's events have it; empty where there is none.
    pub(crate) fn cpuset(&self, pid: i32) -> serde_json::Value {
        let Some(v1) = self.v1("cpuset") else {
            return serde_json::json!({});
        };
        // Not always a directory of the container's own: see the module.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = cgroups.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|n| n == "cpuset").then_some(path)
        });
        let directory = v1
            .mount
            .join(path.unwrap_or_default().trim_start_matches('/'));
        let list = |file: &str| {
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            crate::process::cpu_list(&text).unwrap_or_default()
        };
        let number = |file: &str| {
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            text.trim().parse::<i64>().unwrap_or(0)
        };
        serde_json::json!({
            "cpus": list("cpuset.cpus"),
            "cpu_exclusive": number("cpuset.cpu_exclusive"),
            "mems": list("cpuset.mems"),
            "mem_hardwall": number("cpuset.mem_hardwall"),
            "mem_exclusive": number("cpuset.mem_exclusive"),
            "memory_migrate": number("cpuset.memory_migrate"),
            "memory_spread_page": number("cpuset.memory_spread_page"),
            "memory_spread_slab": number("cpuset.memory_spread_slab"),
            "memory_pressure": number("cpuset.memory_pressure"),
            "sched_load_balance": number("cpuset.sched_load_balance"),
            "sched_relax_domain_level": number("cpuset.sched_relax_domain_level"),
        })
    }

    /// By page size, as runc's events have it.
    pub(crate) fn huge_pages(&self) -> serde_json::Value {
        let v1 = self.v1("hugetlb");
        let Some(hierarchy) = v1.or_else(|| self.unified()) else {
            return serde_json::json!({});
        };
        let (usage, max, failures) = match v1.is_some() {
            true => ("usage_in_bytes", "max_usage_in_bytes", "failcnt"),
            false => ("current", "", ""),
        };
        let mut sizes = serde_json::Map::new();
        for entry in fs::read_dir(&hierarchy.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let size = name
                .strip_prefix("hugetlb.")
                .and_then(|rest| rest.strip_suffix(usage)?.strip_suffix('.'));
            let Some(size) = size.filter(|s| !s.contains('.')) else {
                continue;
            };
            let read = |file: &str| {
                read_number(&hierarchy.directory.join(format!("hugetlb.{size}.{file}")))
                    .unwrap_or(0)
            };
            let found = serde_json::json!({
                "usage": read(usage), "max": read(max), "failcnt": read(failures),
            });
            sizes.insert(size.to_owned(), found);
        }
        sizes.into()
    }

    /// A descriptor that can be read when the kernel has killed something in here for want of memory.
    pub(crate) fn watch_oom(&self) -> io::Result<std::os::fd::OwnedFd> {
        use std::os::fd::AsRawFd;
        if let Some(v1) = self.v1("memory") {
            let flags =
                rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
            let event = rustix::event::eventfd(0, flags)?;
            let control = fs::File::open(v1.directory.join("memory.oom_control"))?;
            let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
            super::write_file(&v1.directory.join("cgroup.event_control"), &line)?;
            return Ok(event);
        }
        let flags =
            rustix::fs::inotify::CreateFlags::CLOEXEC | rustix::fs::inotify::CreateFlags::NONBLOCK;
        let inotify = rustix::fs::inotify::init(flags)?;
        if let Some(unified) = self.unified() {
            let path = unified.directory.join("memory.events");
            // Without the controller nobody is killed by it.
            let _ = rustix::fs::inotify::add_watch(
                &inotify,
                &path,
                rustix::fs::inotify::WatchFlags::MODIFY,
            );
        }
        Ok(inotify)
    }
}

pub(super) fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of `key number` lines.
pub(super) fn read_keyed(path: &Path, key: &str) -> Option<u64> {
    keyed(&fs::read_to_string(path).ok()?, key)
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

fn pairs(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

impl Cgroup {
    pub fn stats(&self) -> io::Result<Stats> {
        let mut stats = Stats::default();
        match self.unified() {
            Some(unified) if self.hierarchies.len() == 1 => {
                unified_stats(&unified.directory, &mut stats);
            }
            _ => self.v1_stats(&mut stats),
        }
        Ok(stats)
    }

    fn v1_stats(&self, stats: &mut Stats) {
        if let Some(h) = self.v1("cpuacct") {
            stats.cpu_total_ns = read_number(&h.directory.join("cpuacct.usage")).unwrap_or(0);
            // In ticks of 1/100 s, whatever the kernel's own clock.
            const TICK_NS: u64 = 10_000_000;
            let text = fs::read_to_string(h.directory.join("cpuacct.stat")).unwrap_or_default();
            stats.cpu_user_ns = keyed(&text, "user").unwrap_or(0) * TICK_NS;
            stats.cpu_system_ns = keyed(&text, "system").unwrap_or(0) * TICK_NS;
            stats.per_cpu_ns = fs::read_to_string(h.directory.join("cpuacct.usage_percpu"))
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
        }
        if let Some(h) = self.v1("cpu") {
            let text = fs::read_to_string(h.directory.join("cpu.stat")).unwrap_or_default();
            stats.throttling_periods = keyed(&text, "nr_periods").unwrap_or(0);
            stats.throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
            stats.throttled_ns = keyed(&text, "throttled_time").unwrap_or(0);
        }
        if let Some(h) = self.v1("memory") {
            let file = |name: &str| h.directory.join(name);
            stats.memory_usage = read_number(&file("memory.usage_in_bytes")).unwrap_or(0);
            stats.memory_max_usage = read_number(&file("memory.max_usage_in_bytes"));
            stats.memory_limit = read_number(&file("memory.limit_in_bytes"));
            stats.memory_failcnt = read_number(&file("memory.failcnt"));
            stats.memory_stat = pairs(&fs::read_to_string(file("memory.stat")).unwrap_or_default());
        }
        if let Some(h) = self.v1("pids") {
            stats.pids = read_number(&h.directory.join("pids.current"));
            stats.pids_limit = read_number(&h.directory.join("pids.max"));
        }
        if let Some(h) = self.v1("blkio") {
            let mut read = |file: &str, bytes: bool| {
                let text = fs::read_to_string(h.directory.join(file)).unwrap_or_default();
                for line in text.lines() {
                    add_v1_block_io(line, bytes, &mut stats.block_io);
                }
            };
            read("blkio.throttle.io_service_bytes_recursive", true);
            read("blkio.throttle.io_serviced_recursive", false);
        }
    }
}

/// `8:0 Read 4096`.
fn add_v1_block_io(line: &str, bytes: bool, all: &mut Vec<BlockIoStat>) {
    let mut fields = line.split_whitespace();
    let (Some(device), Some(operation), Some(count)) =
        (fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let (Some(entry), Ok(count)) = (block_entry(device, all), count.parse::<u64>()) else {
        return;
    };
    match (operation, bytes) {
        ("Read", true) => entry.read_bytes = count,
        ("Write", true) => entry.write_bytes = count,
        ("Read", false) => entry.read_operations = count,
        ("Write", false) => entry.write_operations = count,
        _ => {}
    }
}

fn block_entry<'a>(device: &str, all: &'a mut Vec<BlockIoStat>) -> Option<&'a mut BlockIoStat> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = all
        .iter()
        .position(|e| (e.major, e.minor) == (major, minor));
    let at = at.unwrap_or_else(|| {
        all.push(BlockIoStat {
            major,
            minor,
            ..BlockIoStat::default()
        });
        all.len() - 1
    });
    all.get_mut(at)
}

fn unified_stats(directory: &Path, stats: &mut Stats) {
    stats.unified = true;
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let cpu = text("cpu.stat");
    let micros = |key: &str| keyed(&cpu, key).unwrap_or(0);
    stats.cpu_total_ns = micros("usage_usec") * 1000;
    stats.cpu_user_ns = micros("user_usec") * 1000;
    stats.cpu_system_ns = micros("system_usec") * 1000;
    stats.throttling_periods = micros("nr_periods");
    stats.throttled_periods = micros("nr_throttled");
    stats.throttled_ns = micros("throttled_usec") * 1000;
    stats.memory_usage = read_number(&directory.join("memory.current")).unwrap_or(0);
    stats.memory_max_usage = read_number(&directory.join("memory.peak"));
    stats.memory_limit = read_number(&directory.join("memory.max"));
    stats.memory_failcnt = keyed(&text("memory.events"), "max");
    stats.memory_stat = pairs(&text("memory.stat"));
    stats.pids = read_number(&directory.join("pids.current"));
    stats.pids_limit = read_number(&directory.join("pids.max"));
    for line in text("io.stat").lines() {
        let mut fields = line.split_whitespace();
        let Some(entry) = fields
            .next()
            .and_then(|device| block_entry(device, &mut stats.block_io))
        else {
            continue;
        };
        for (key, value) in fields.filter_map(|f| f.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.write_bytes = value,
                "rios" => entry.read_operations = value,
                "wios" => entry.write_operations = value,
                _ => {}
            }
        }
    }
}
