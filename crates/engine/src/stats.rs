//! One sample of what a container uses, read at once from its cgroup and its network namespace.
//!
//! The parts serialise under Docker's names (`cpu_stats`, `memory_stats` … of `GET /containers/{id}/stats`).

use crate::Engine;
use gantry_base::Result;
use serde::Serialize;
use std::collections::BTreeMap;

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
    pub async fn stats(&self, _r: &str) -> Result<Stats> {
        todo!()
    }
}
