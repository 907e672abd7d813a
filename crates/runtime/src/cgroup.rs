//! One container's control groups in every hierarchy of the machine: v1, hybrid and v2.

use gantry_oci::runtime::Resources;
use serde::{Deserialize, Serialize};
use std::io;

/// Where a container's cgroups are. Only paths: can be stored, and made again from the container's `cgroupsPath`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cgroup {}

impl Cgroup {
    /// The cgroups that `cgroupsPath` (absolute) names, whether they exist or not.
    pub fn at(_cgroups_path: &str) -> io::Result<Self> {
        todo!()
    }
    /// How often the kernel's OOM killer ended something in here.
    pub fn oom_kills(&self) -> u64 {
        todo!()
    }
    /// Kills every process in here, also those that fork meanwhile, and waits until none is left.
    pub fn kill_all(&self) -> io::Result<()> {
        todo!()
    }
    /// Removes the directories; gone already is fine.
    pub fn remove(&self) -> io::Result<()> {
        todo!()
    }
    pub fn freeze(&self) -> io::Result<()> {
        todo!()
    }
    pub fn thaw(&self) -> io::Result<()> {
        todo!()
    }
    /// Host pids of all processes in here.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        todo!()
    }
    /// Sets the limits that are given, leaves the others.
    pub fn update(&self, _limits: &Resources) -> io::Result<()> {
        todo!()
    }
    pub fn stats(&self) -> io::Result<Stats> {
        todo!()
    }
}

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

#[derive(Debug, Clone)]
pub struct BlockIoStat {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
}
