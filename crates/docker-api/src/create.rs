//! `POST /containers/create` and the other requests about containers, newest shape (API 1.50).

use crate::ApiVersion;
use gantry_base::{Error, Result as Answer};
use gantry_oci::image::{Healthcheck, null_default};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole request after decoding and normalising.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Without the leading slash; `None` picks one.
    pub name: Option<String>,
    pub platform: Option<String>,
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    /// Network name → endpoint settings; bridge's static address and aliases.
    pub endpoints: BTreeMap<String, EndpointSettings>,
}

/// Docker's `ContainerConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    #[serde(deserialize_with = "null_default")]
    pub hostname: String,
    #[serde(deserialize_with = "null_default")]
    pub domainname: String,
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    #[serde(deserialize_with = "null_default")]
    pub attach_stdin: bool,
    #[serde(deserialize_with = "null_default")]
    pub attach_stdout: bool,
    #[serde(deserialize_with = "null_default")]
    pub attach_stderr: bool,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_default")]
    pub tty: bool,
    #[serde(deserialize_with = "null_default")]
    pub open_stdin: bool,
    #[serde(deserialize_with = "null_default")]
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    /// `None` inherits the image's, `Some([])` clears it.
    #[serde(deserialize_with = "string_or_list")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    #[serde(deserialize_with = "null_default")]
    pub image: String,
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(deserialize_with = "null_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "string_or_list")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_disabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    pub on_build: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds; −1 waits for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// Docker's `HostConfig`. Sizes in bytes, `nano_cpus` in 10⁻⁹ CPUs, CPU periods and quotas in µs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    pub binds: Option<Vec<String>>,
    #[serde(rename = "ContainerIDFile", deserialize_with = "null_default")]
    pub container_id_file: String,
    #[serde(deserialize_with = "null_default")]
    pub log_config: LogConfig,
    #[serde(deserialize_with = "null_default")]
    pub network_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    #[serde(deserialize_with = "null_default")]
    pub restart_policy: RestartPolicy,
    #[serde(deserialize_with = "null_default")]
    pub auto_remove: bool,
    #[serde(deserialize_with = "null_default")]
    pub volume_driver: String,
    pub volumes_from: Option<Vec<String>>,
    pub console_size: Option<(u16, u16)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "string_or_list")]
    pub cap_add: Option<Vec<String>>,
    #[serde(deserialize_with = "string_or_list")]
    pub cap_drop: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub cgroupns_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub dns: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub dns_options: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub dns_search: Vec<String>,
    pub extra_hosts: Option<Vec<String>>,
    pub group_add: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub ipc_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub cgroup: String,
    pub links: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub oom_score_adj: i64,
    #[serde(deserialize_with = "null_default")]
    pub pid_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub privileged: bool,
    #[serde(deserialize_with = "null_default")]
    pub publish_all_ports: bool,
    #[serde(deserialize_with = "null_default")]
    pub readonly_rootfs: bool,
    pub security_opt: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_opt: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<BTreeMap<String, String>>,
    #[serde(rename = "UTSMode", deserialize_with = "null_default")]
    pub uts_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub userns_mode: String,
    #[serde(deserialize_with = "null_default")]
    pub shm_size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    #[serde(deserialize_with = "null_default")]
    pub isolation: String,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub mounts: Vec<Mount>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    pub init: Option<bool>,

    #[serde(deserialize_with = "null_default")]
    pub cpu_shares: i64,
    #[serde(deserialize_with = "null_default")]
    pub memory: i64,
    #[serde(alias = "NanoCPUs", deserialize_with = "null_default")]
    pub nano_cpus: i64,
    #[serde(deserialize_with = "null_default")]
    pub cgroup_parent: String,
    #[serde(deserialize_with = "null_default")]
    pub blkio_weight: u16,
    #[serde(deserialize_with = "null_default")]
    pub blkio_weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "null_default")]
    pub blkio_device_read_bps: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "null_default")]
    pub blkio_device_write_bps: Vec<ThrottleDevice>,
    #[serde(rename = "BlkioDeviceReadIOps", deserialize_with = "null_default")]
    pub blkio_device_read_iops: Vec<ThrottleDevice>,
    #[serde(rename = "BlkioDeviceWriteIOps", deserialize_with = "null_default")]
    pub blkio_device_write_iops: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "null_default")]
    pub cpu_period: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_quota: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_realtime_period: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_realtime_runtime: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpuset_cpus: String,
    #[serde(deserialize_with = "null_default")]
    pub cpuset_mems: String,
    #[serde(deserialize_with = "null_default")]
    pub devices: Vec<DeviceMapping>,
    pub device_cgroup_rules: Option<Vec<String>>,
    pub device_requests: Option<Vec<serde_json::Value>>,
    #[serde(deserialize_with = "null_default")]
    pub memory_reservation: i64,
    /// Memory and swap together; −1 unlimited, 0 = twice `memory`.
    #[serde(deserialize_with = "null_default")]
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub pids_limit: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub ulimits: Vec<Ulimit>,
    #[serde(deserialize_with = "null_default")]
    pub cpu_count: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps", deserialize_with = "null_default")]
    pub io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth", deserialize_with = "null_default")]
    pub io_maximum_bandwidth: u64,
    // What old versions of the API had: read in order to be refused.
    #[serde(deserialize_with = "null_default", skip_serializing)]
    pub kernel_memory: i64,
    #[serde(
        rename = "KernelMemoryTCP",
        deserialize_with = "null_default",
        skip_serializing
    )]
    pub kernel_memory_tcp: i64,
    #[serde(skip_serializing)]
    pub capabilities: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default", skip_serializing)]
    pub disk_quota: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    #[serde(rename = "Type", deserialize_with = "null_default")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    #[serde(deserialize_with = "null_default")]
    pub host_ip: String,
    #[serde(deserialize_with = "null_default")]
    pub host_port: String,
}

/// `name`: "", `no`, `always`, `unless-stopped`, `on-failure`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    #[serde(deserialize_with = "null_default")]
    pub maximum_retry_count: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`, `npipe`, `cluster`, `image`.
    #[serde(rename = "Type", deserialize_with = "null_default")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub source: String,
    #[serde(deserialize_with = "null_default")]
    pub target: String,
    #[serde(deserialize_with = "null_default")]
    pub read_only: bool,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_options: Option<ImageOptions>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageOptions {
    #[serde(deserialize_with = "null_default")]
    pub subpath: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    #[serde(deserialize_with = "null_default")]
    pub propagation: String,
    #[serde(deserialize_with = "null_default")]
    pub non_recursive: bool,
    #[serde(deserialize_with = "null_default")]
    pub create_mountpoint: bool,
    #[serde(deserialize_with = "null_default")]
    pub read_only_non_recursive: bool,
    #[serde(deserialize_with = "null_default")]
    pub read_only_force_recursive: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    #[serde(deserialize_with = "null_default")]
    pub no_copy: bool,
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    pub driver_config: Option<DriverConfig>,
    #[serde(deserialize_with = "null_default")]
    pub subpath: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverConfig {
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    #[serde(deserialize_with = "null_default")]
    pub options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    #[serde(deserialize_with = "null_default")]
    pub size_bytes: i64,
    #[serde(deserialize_with = "null_default")]
    pub mode: u32,
    /// Each a flag alone or a name and its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<Vec<String>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WeightDevice {
    #[serde(deserialize_with = "null_default")]
    pub path: String,
    #[serde(deserialize_with = "null_default")]
    pub weight: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ThrottleDevice {
    #[serde(deserialize_with = "null_default")]
    pub path: String,
    #[serde(deserialize_with = "null_default")]
    pub rate: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    #[serde(deserialize_with = "null_default")]
    pub path_on_host: String,
    #[serde(deserialize_with = "null_default")]
    pub path_in_container: String,
    #[serde(deserialize_with = "null_default")]
    pub cgroup_permissions: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    #[serde(deserialize_with = "null_default")]
    pub soft: i64,
    #[serde(deserialize_with = "null_default")]
    pub hard: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSettings {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<EndpointIpam>,
    pub links: Option<Vec<String>>,
    pub aliases: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub mac_address: String,
    pub driver_opts: Option<BTreeMap<String, String>>,
    /// The network with the highest one has the default route.
    #[serde(deserialize_with = "null_default")]
    pub gw_priority: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIpam {
    #[serde(rename = "IPv4Address", deserialize_with = "null_default")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address", deserialize_with = "null_default")]
    pub ipv6_address: String,
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "Option::is_none")]
    pub link_local_ips: Option<Vec<String>>,
}

/// `POST /containers/{id}/update`: limits and restart policy; zero and `None` keep what is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateContainer {
    #[serde(deserialize_with = "null_default")]
    pub cpu_shares: i64,
    #[serde(deserialize_with = "null_default")]
    pub memory: i64,
    #[serde(alias = "NanoCPUs", deserialize_with = "null_default")]
    pub nano_cpus: i64,
    #[serde(deserialize_with = "null_default")]
    pub blkio_weight: u16,
    #[serde(deserialize_with = "null_default")]
    pub cpu_period: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_quota: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_realtime_period: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpu_realtime_runtime: i64,
    #[serde(deserialize_with = "null_default")]
    pub cpuset_cpus: String,
    #[serde(deserialize_with = "null_default")]
    pub cpuset_mems: String,
    #[serde(deserialize_with = "null_default")]
    pub memory_reservation: i64,
    #[serde(deserialize_with = "null_default")]
    pub memory_swap: i64,
    pub pids_limit: Option<i64>,
    pub restart_policy: Option<RestartPolicy>,
    /// Everything else that stands in the request.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

impl UpdateContainer {
    /// Fields of the API that `update` cannot change: those of the create document that are not among ours.
    const FIXED: [&str; 21] = [
        "CgroupParent",
        "BlkioWeightDevice",
        "BlkioDeviceReadBps",
        "BlkioDeviceWriteBps",
        "BlkioDeviceReadIOps",
        "BlkioDeviceWriteIOps",
        "Devices",
        "DeviceCgroupRules",
        "DeviceRequests",
        "DiskQuota",
        "KernelMemory",
        "KernelMemoryTCP",
        "MemorySwappiness",
        "OomKillDisable",
        "Ulimits",
        "CpuCount",
        "CpuPercent",
        "IOMaximumIOps",
        "IOMaximumBandwidth",
        "Init",
        "Capabilities",
    ];

    /// Docker leaves them out in silence; a client that sends them as they are by default is not refused.
    pub fn refuse_fixed(&self) -> Answer<()> {
        use serde_json::Value;
        let is_default = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) => false,
        };
        let mut set = Self::FIXED.iter().filter(|name| {
            self.others
                .get(**name)
                .is_some_and(|value| !is_default(value))
        });
        match set.next() {
            Some(name) => Err(Error::invalid(format!(
                "{name} cannot be changed by an update: use `gantry set`, or create the container again"
            ))),
            None => Ok(()),
        }
    }
}

/// `POST /containers/{id}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    #[serde(deserialize_with = "null_default")]
    pub privileged: bool,
    #[serde(deserialize_with = "null_default")]
    pub tty: bool,
    pub console_size: Option<(u16, u16)>,
    #[serde(deserialize_with = "null_default")]
    pub attach_stdin: bool,
    #[serde(deserialize_with = "null_default")]
    pub attach_stdout: bool,
    #[serde(deserialize_with = "null_default")]
    pub attach_stderr: bool,
    /// docker-py writes it with a small letter, which Go does not mind.
    #[serde(alias = "detachKeys", deserialize_with = "null_default")]
    pub detach_keys: String,
    pub env: Option<Vec<String>>,
    #[serde(deserialize_with = "null_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "string_or_list")]
    pub cmd: Option<Vec<String>>,
}

/// `POST /exec/{id}/start`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecStart {
    #[serde(deserialize_with = "null_default")]
    pub detach: bool,
    #[serde(deserialize_with = "null_default")]
    pub tty: bool,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
}

/// What stands beside the flattened `ContainerConfig` in the body of `create`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Beside {
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkingConfig {
    endpoints_config: Option<BTreeMap<String, Option<EndpointSettings>>>,
}

/// Decodes the body of `create` and turns what `version` means into the newest shape. `name` and `platform` come from the query.
pub fn decode(
    name: &str,
    platform: &str,
    body: &[u8],
    version: ApiVersion,
) -> Answer<CreateContainer> {
    // Two passes over a few kilobytes cost less than serde's flatten, which buffers every field.
    let beside: Beside = json(body)?;
    let mut config: ContainerConfig = json(body)?;
    let is_nothing = || {
        serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(body)
            .is_ok_and(|map| map.is_empty())
    };
    if config.image.is_empty() && is_nothing() {
        return Err(Error::invalid(
            "config cannot be empty in order to create a container",
        ));
    }
    let mut host = beside.host_config.unwrap_or_default();
    let networking = beside.networking_config.unwrap_or_default();
    let mut endpoints: BTreeMap<String, EndpointSettings> = networking
        .endpoints_config
        .unwrap_or_default()
        .into_iter()
        .map(|(network, settings)| (network, settings.unwrap_or_default()))
        .collect();
    normalise(&mut config, &mut host, &mut endpoints, version);
    refuse_conflicts(&config, &host)?;
    Ok(CreateContainer {
        name: Some(name.trim_start_matches('/').to_string()).filter(|name| !name.is_empty()),
        platform: Some(platform.to_string()).filter(|platform| !platform.is_empty()),
        config,
        host_config: host,
        endpoints,
    })
}

/// What older versions meant by silence, and fields that they did not have.
fn normalise(
    config: &mut ContainerConfig,
    host: &mut HostConfig,
    endpoints: &mut BTreeMap<String, EndpointSettings>,
    version: ApiVersion,
) {
    if host.network_mode.is_empty() {
        host.network_mode = "default".into();
    }
    if !version.at_least(40) {
        if host.ipc_mode.is_empty() {
            host.ipc_mode = "shareable".into();
        }
        for options in host
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.bind_options.as_mut())
        {
            options.non_recursive = false;
        }
    }
    if !version.at_least(41) && host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = "host".into();
    }
    if !version.at_least(42) {
        for options in host
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.bind_options.as_mut())
        {
            // Before 1.42 a missing source of a bind mount was an error, always.
            options.create_mountpoint = false;
        }
        // The field existed on the wire long before Linux gave it a meaning.
        host.console_size = None;
    }
    if !version.at_least(43) {
        host.annotations = None;
    }
    if !version.at_least(44) {
        for options in host
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.bind_options.as_mut())
        {
            options.read_only_non_recursive = true;
            options.read_only_force_recursive = false;
        }
    }
    if !version.at_least(46) {
        for options in host
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.tmpfs_options.as_mut())
        {
            options.options = None;
        }
    }
    if !version.at_least(45) {
        for options in host
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.volume_options.as_mut())
        {
            options.subpath.clear();
        }
    }
    // Clients send an empty map where they mean nothing, and Docker shows nothing then.
    config.volumes.take_if(|volumes| volumes.is_empty());
    // Since 1.44 a MAC address belongs to the endpoint; the container-wide one means the main network's.
    let wide = config.mac_address.take().filter(|mac| !mac.is_empty());
    if let Some(mac) = wide {
        let mode = if host.network_mode == "default" {
            "bridge"
        } else {
            &host.network_mode
        };
        let key = if endpoints.contains_key(&host.network_mode) {
            &host.network_mode
        } else {
            mode
        };
        let endpoint = endpoints.entry(key.to_string()).or_default();
        if endpoint.mac_address.is_empty() {
            endpoint.mac_address = mac.clone();
        }
        config.mac_address = Some(mac);
    }
}

/// Options that contradict each other whatever the node looks like, in Docker's words.
fn refuse_conflicts(config: &ContainerConfig, host: &HostConfig) -> Answer<()> {
    let conflict = |what: &str| Err(Error::invalid(format!("conflicting options: {what}")));
    let shares = host.network_mode.starts_with("container:");
    let is_host = host.network_mode == "host";
    let has_links = host.links.as_ref().is_some_and(|links| !links.is_empty());
    let has_hosts = host
        .extra_hosts
        .as_ref()
        .is_some_and(|hosts| !hosts.is_empty());
    let has_mac = config.mac_address.is_some();
    if (shares || host.uts_mode == "host") && !config.hostname.is_empty() {
        return conflict(if shares {
            "hostname and the network mode"
        } else {
            "hostname and the UTS mode"
        });
    }
    if is_host && has_links {
        return conflict(
            "host type networking can't be used with links. This would result in undefined behavior",
        );
    }
    if !shares {
        return Ok(());
    }
    match () {
        () if host.network_mode == "container:" => Err(Error::invalid(
            "invalid container format container:<name|id>",
        )),
        () if has_links => conflict(
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        () if !host.dns.is_empty() => conflict("dns and the network mode"),
        () if has_hosts => conflict("custom host-to-IP mapping and the network mode"),
        () if has_mac => conflict("mac-address and the network mode"),
        () if host.publish_all_ports || !host.port_bindings.is_empty() => {
            conflict("port publishing and the container type network mode")
        }
        () if !config.exposed_ports.is_empty() => {
            conflict("port exposing and the container type network mode")
        }
        () => Ok(()),
    }
}

/// A JSON body in Docker's words for what is wrong with it. Unknown fields are accepted, as Go does.
pub fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Answer<T> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::invalid(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    serde_json::from_slice(body).map_err(|e| match e.classify() {
        serde_json::error::Category::Syntax if e.to_string().starts_with("trailing characters") => {
            Error::invalid("unexpected content after JSON")
        }
        serde_json::error::Category::Eof => Error::invalid("invalid JSON: unexpected EOF"),
        _ => Error::invalid(format!("invalid JSON: {e}")),
    })
}

/// Docker accepts a bare string where a list of strings is meant (`Cmd`, `Entrypoint`, `CapAdd`).
fn string_or_list<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(
        Option::<Either>::deserialize(deserializer)?.map(|e| match e {
            Either::One(s) => vec![s],
            Either::Many(v) => v,
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(body: &str, minor: u16) -> Answer<CreateContainer> {
        decode("/web", "", body.as_bytes(), ApiVersion(minor))
    }

    #[test]
    fn the_flattened_body_is_taken_apart() {
        let body = r#"{"Image":"busybox","Cmd":"ls","Entrypoint":["a"],"Env":null,"Unknown":{"x":1},"Labels":null,
            "HostConfig":{"NetworkMode":"n","PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"Memory":null,"RestartPolicy":{"Name":"always"}},
            "NetworkingConfig":{"EndpointsConfig":{"n":{"Aliases":["w"],"IPAMConfig":{"IPv4Address":"10.0.0.9"}},"m":null}}}"#;
        let create = decoded(body, 50).unwrap();
        assert_eq!(create.name.as_deref(), Some("web"));
        assert_eq!(create.config.cmd, Some(vec!["ls".to_string()]));
        assert_eq!(create.host_config.restart_policy.name, "always");
        assert_eq!(create.endpoints["n"].aliases, Some(vec!["w".to_string()]));
        assert_eq!(create.endpoints["m"], EndpointSettings::default());
        let bindings = create.host_config.port_bindings["80/tcp"].as_ref().unwrap();
        assert_eq!(bindings[0].host_port, "8080");
    }

    #[test]
    fn silence_means_what_it_meant_in_that_version() {
        for (minor, network, ipc, cgroupns) in [
            (24, "default", "shareable", "host"),
            (40, "default", "", "host"),
            (50, "default", "", ""),
        ] {
            let host = decoded(r#"{"Image":"x"}"#, minor).unwrap().host_config;
            let got = (
                host.network_mode.as_str(),
                host.ipc_mode.as_str(),
                host.cgroupns_mode.as_str(),
            );
            assert_eq!(got, (network, ipc, cgroupns), "1.{minor}");
        }
        let mac = decoded(r#"{"Image":"x","MacAddress":"02:00:00:00:00:01"}"#, 43).unwrap();
        assert_eq!(mac.endpoints["bridge"].mac_address, "02:00:00:00:00:01");
    }

    /// Every way to replace one value in the document by null.
    fn nulled(value: &serde_json::Value) -> Vec<serde_json::Value> {
        use serde_json::Value;
        /// A part of a document, and how the whole looks with that part replaced.
        type Part = (Value, Box<dyn Fn(Value) -> Value>);
        let inner: Vec<Part> = match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, inner)| {
                    let (map, key) = (map.clone(), key.clone());
                    let put = move |new| {
                        let mut map = map.clone();
                        map.insert(key.clone(), new);
                        Value::Object(map)
                    };
                    (inner.clone(), Box::new(put) as Box<dyn Fn(Value) -> Value>)
                })
                .collect(),
            Value::Array(list) if list.first().is_some_and(Value::is_object) => {
                vec![(list[0].clone(), Box::new(|new| Value::Array(vec![new])))]
            }
            _ => Vec::new(),
        };
        let mut all = Vec::new();
        for (inner, put) in inner {
            if value.is_object() {
                all.push(put(Value::Null));
            }
            all.extend(nulled(&inner).into_iter().map(&put));
        }
        all
    }

    #[test]
    fn every_field_may_be_null() {
        let host = HostConfig {
            mounts: vec![Mount {
                bind_options: Some(BindOptions::default()),
                volume_options: Some(VolumeOptions {
                    driver_config: Some(DriverConfig::default()),
                    ..VolumeOptions::default()
                }),
                tmpfs_options: Some(TmpfsOptions::default()),
                ..Mount::default()
            }],
            port_bindings: BTreeMap::from([("80/tcp".into(), Some(vec![PortBinding::default()]))]),
            blkio_weight_device: vec![WeightDevice::default()],
            blkio_device_read_bps: vec![ThrottleDevice::default()],
            devices: vec![DeviceMapping::default()],
            ulimits: vec![Ulimit::default()],
            ..HostConfig::default()
        };
        let config = ContainerConfig {
            image: "x".into(),
            healthcheck: Some(Healthcheck::default()),
            ..ContainerConfig::default()
        };
        let mut body = serde_json::to_value(config).unwrap();
        body["HostConfig"] = serde_json::to_value(host).unwrap();
        let endpoint = EndpointSettings {
            ipam_config: Some(EndpointIpam::default()),
            ..EndpointSettings::default()
        };
        body["NetworkingConfig"] = serde_json::json!({"EndpointsConfig": {"n": endpoint}});
        let variants = nulled(&body);
        assert!(variants.len() > 120);
        for variant in variants {
            let text = variant.to_string();
            if let Err(e) = decoded(&text, 50) {
                panic!("{}: {text}", e.chain());
            }
        }
    }

    #[test]
    fn refusals_in_dockers_words() {
        for (body, want) in [
            ("", "invalid JSON: got EOF while reading request body"),
            (
                "{}",
                "config cannot be empty in order to create a container",
            ),
            (r#"{"Image":"x"} {}"#, "unexpected content after JSON"),
            (r#"{"Image":"#, "invalid JSON: unexpected EOF"),
            (
                r#"{"Image":"x","Hostname":"h","HostConfig":{"NetworkMode":"container:a"}}"#,
                "conflicting options: hostname and the network mode",
            ),
            (
                r#"{"Image":"x","HostConfig":{"NetworkMode":"container:a","PublishAllPorts":true}}"#,
                "conflicting options: port publishing and the container type network mode",
            ),
            (
                r#"{"Image":"x","HostConfig":{"NetworkMode":"container:a","Dns":["1.1.1.1"]}}"#,
                "conflicting options: dns and the network mode",
            ),
            (
                r#"{"Image":"x","Hostname":"h","HostConfig":{"UTSMode":"host"}}"#,
                "conflicting options: hostname and the UTS mode",
            ),
        ] {
            assert_eq!(decoded(body, 50).unwrap_err().message(), want, "{body}");
        }
        assert!(
            decoded(r#"{"Image":1}"#, 50)
                .unwrap_err()
                .message()
                .starts_with("invalid JSON: ")
        );
    }
}
