//! `/_ping`, `/version`, `/info`, `/system/df`, and what belongs to Swarm and plugins.

use crate::call::Call;
use crate::containers::{now_ns, summary};
use crate::error::unsupported;
use crate::images::architecture;
use crate::reply::Reply;
use crate::{images, volumes};
use gantry_base::{Error, ErrorKind, Result};
use gantry_docker_api::{text, version as api, volume};
use gantry_engine::{Engine, State};
use http::{HeaderName, header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) async fn ping(_call: Call) -> Result<Reply> {
    Ok(Reply::text("OK")
        .with(header::CACHE_CONTROL, "no-cache, no-store, must-revalidate")
        .with(header::PRAGMA, "no-cache")
        // 2: BuildKit sessions; clients without them use the classic builder all the same.
        .with(HeaderName::from_static("builder-version"), "2")
        .with(HeaderName::from_static("swarm"), "inactive"))
}

fn kernel_version() -> String {
    read("/proc/sys/kernel/osrelease")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_string())
        .unwrap_or_default()
}

pub(crate) async fn version(_call: Call) -> Result<Reply> {
    let kernel = kernel_version();
    Ok(Reply::json(&json!({
        "Platform": {"Name": "Gantry"},
        "Components": [{
            "Name": "Engine",
            "Version": VERSION,
            "Details": {
                "ApiVersion": api::CURRENT.to_string(),
                "Arch": architecture(),
                "BuildTime": "",
                "Experimental": "false",
                "GitCommit": "",
                "GoVersion": "",
                "KernelVersion": kernel,
                "MinAPIVersion": api::MINIMUM.to_string(),
                "Os": "linux",
            },
        }, {
            "Name": "gantry-runtime",
            "Version": VERSION,
            "Details": {"GitCommit": ""},
        }],
        "Version": VERSION,
        "ApiVersion": api::CURRENT.to_string(),
        "MinAPIVersion": api::MINIMUM.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
        "BuildTime": "",
    })))
}

/// What of the machine does not change while it is up, read once.
struct Machine {
    kernel: String,
    system: String,
    system_version: String,
    cpus: usize,
    memory_bytes: u64,
    controllers: Vec<String>,
    cgroup_v2: bool,
    filesystem: &'static str,
}

fn machine(data_dir: &std::path::Path) -> &'static Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let release = read("/etc/os-release");
        let field = |name: &str| {
            let line = release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or("").trim_matches('"').to_string()
        };
        let memory = read("/proc/meminfo");
        let memory = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"));
        let kilobytes: u64 = memory
            .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        let v2 = read("/sys/fs/cgroup/cgroup.controllers");
        let cgroup_v2 = !v2.is_empty();
        let controllers = if cgroup_v2 {
            v2.split_whitespace().map(String::from).collect()
        } else {
            let v1 = read("/proc/cgroups");
            v1.lines()
                .filter(|line| !line.starts_with('#') && line.ends_with('1'))
                .filter_map(|line| line.split_whitespace().next().map(String::from))
                .collect()
        };
        Machine {
            kernel: kernel_version(),
            system: field("PRETTY_NAME"),
            system_version: field("VERSION_ID"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes * 1024,
            controllers,
            cgroup_v2,
            filesystem: filesystem_of(data_dir),
        }
    })
}

/// The name that Docker has for the file system below a folder, from the longest mount point above it.
fn filesystem_of(dir: &std::path::Path) -> &'static str {
    let mounts = read("/proc/self/mounts");
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?))
        })
        .filter(|(place, _)| dir.starts_with(place))
        .max_by_key(|(place, _)| place.len());
    match best.map_or("", |(_, kind)| kind) {
        "ext2" | "ext3" | "ext4" => "extfs",
        "xfs" => "xfs",
        "btrfs" => "btrfs",
        "tmpfs" => "tmpfs",
        "overlay" => "overlayfs",
        "zfs" => "zfs",
        _ => "<unknown>",
    }
}

/// Docker's own registry has mirrors; whatever else is listed is reached without trust in a certificate.
fn registry_config(registries: &gantry_engine::Registries) -> serde_json::Value {
    let (hosts, mut nets) = registries.insecure();
    nets.extend(["::1/128", "127.0.0.0/8"].map(str::to_owned));
    let mirrors = registries.mirrors();
    let mut indexes = serde_json::Map::new();
    let own = json!({"Name": "docker.io", "Mirrors": mirrors, "Secure": true, "Official": true});
    indexes.insert("docker.io".into(), own);
    for host in hosts {
        let index = json!({"Name": host, "Mirrors": [], "Secure": false, "Official": false});
        indexes.insert(host, index);
    }
    json!({"InsecureRegistryCIDRs": nets, "IndexConfigs": indexes, "Mirrors": mirrors})
}

pub(crate) async fn info(call: Call) -> Result<Reply> {
    let engine = &call.engine;
    let settings = engine.settings();
    let machine = machine(&settings.data_dir);
    let records = engine.list();
    let count = |wanted: fn(&State) -> bool| {
        records
            .iter()
            .filter(|record| wanted(&record.state))
            .count()
    };
    let running = count(|state| matches!(state, State::Running(_) | State::Restarting { .. }));
    let paused = count(|state| matches!(state, State::Paused(_)));
    let has = |name: &str| {
        machine
            .controllers
            .iter()
            .any(|controller| controller == name)
    };
    let forwards = |path: &str| read(path) == "1";
    let memory = has("memory");
    let swap = memory
        && (machine.cgroup_v2
            || std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists());
    let mut volume_drivers = vec!["local".to_owned()];
    volume_drivers.extend(engine.plugin_names("VolumeDriver"));
    let node = json!({
        "ID": instance_id(settings),
        "Containers": records.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": records.len() - running - paused,
        "Images": engine.images().list()?.len(),
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", machine.filesystem], ["Supports d_type", "true"], ["Using metacopy", "false"], ["Native Overlay Diff", "true"], ["userxattr", "false"]],
        "Plugins": {"Volume": volume_drivers, "Network": ["bridge", "host", "null"], "Authorization": crate::containers::some_if_any(settings.authorization_plugins.clone()), "Log": gantry_engine::LOG_DRIVERS},
    });
    let abilities = json!({
        "MemoryLimit": memory,
        "SwapLimit": swap,
        "CpuCfsPeriod": has("cpu"),
        "CpuCfsQuota": has("cpu"),
        "CPUShares": has("cpu"),
        "CPUSet": has("cpuset"),
        "PidsLimit": has("pids"),
        "IPv4Forwarding": forwards("/proc/sys/net/ipv4/ip_forward"),
        "BridgeNfIptables": forwards("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        "BridgeNfIp6tables": forwards("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        "Debug": false,
        "NFd": std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        "OomKillDisable": memory && !machine.cgroup_v2,
        "NGoroutines": 0,
        "SystemTime": text::time(now_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if machine.cgroup_v2 { "2" } else { "1" },
        "NEventsListener": 0,
    });
    let host = json!({
        "KernelVersion": machine.kernel,
        "OperatingSystem": machine.system,
        "OSVersion": machine.system_version,
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": registry_config(call.engine.images().registries()),
        "NCPU": machine.cpus,
        "MemTotal": machine.memory_bytes,
        "GenericResources": null,
        "DockerRootDir": settings.data_dir.to_string_lossy(),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": read("/proc/sys/kernel/hostname"),
        "Labels": [],
    });
    let rest = json!({
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": {"gantry": {"path": "gantry-runtime"}},
        "DefaultRuntime": "gantry",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null},
        // Containers live without the daemon, always.
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "gantry-runtime",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security_options(),
        "CDISpecDirs": [],
        "Warnings": warnings(engine, machine, swap),
    });
    let parts = [node, abilities, host, rest]
        .into_iter()
        .filter_map(|part| match part {
            Value::Object(fields) => Some(fields),
            _ => None,
        });
    Ok(Reply::json(
        &parts.flatten().collect::<serde_json::Map<_, _>>(),
    ))
}

fn security_options() -> Vec<&'static str> {
    let mut options = vec!["name=seccomp,profile=builtin"];
    if std::path::Path::new("/proc/self/ns/cgroup").exists() {
        options.push("name=cgroupns");
    }
    options
}

/// Stable per data directory: derived from the instance and its place.
fn instance_id(settings: &gantry_engine::Settings) -> String {
    format!("{}:{}", settings.instance, settings.data_dir.display())
}

fn warnings(engine: &Engine, machine: &Machine, swap: bool) -> Option<Vec<String>> {
    let has = |name: &str| {
        machine
            .controllers
            .iter()
            .any(|controller| controller == name)
    };
    let mut list = Vec::new();
    let mut warn = |missing: bool, text: &str| {
        if missing {
            list.push(format!("WARNING: {text}"));
        }
    };
    warn(!has("memory"), "No memory limit support");
    warn(!swap, "No swap limit support");
    warn(!has("cpu"), "No cpu cfs quota support");
    warn(!has("cpuset"), "No cpuset support");
    warn(!has("pids"), "No pids limit support");
    warn(
        read("/proc/sys/net/ipv4/ip_forward") != "1",
        "IPv4 forwarding is disabled",
    );
    list.extend(
        engine
            .networks()
            .foreign_drops()
            .into_iter()
            .map(|text| format!("WARNING: {text}")),
    );
    crate::containers::some_if_any(list)
}

/// `docker system df`; `type` picks parts since 1.42.
pub(crate) async fn disk_usage(call: Call) -> Result<Reply> {
    let types = call.query().all("type");
    if let Some(bad) = types
        .iter()
        .find(|kind| !["container", "image", "volume", "build-cache"].contains(&kind.as_str()))
    {
        return Err(Error::invalid(format!("unknown object type: {bad}")));
    }
    let wants = |kind: &str| types.is_empty() || types.iter().any(|wanted| wanted == kind);
    let engine = &call.engine;
    let records = engine.list();
    let mut document: BTreeMap<&str, Value> = BTreeMap::new();
    let value = |e: serde_json::Error| Error::internal("describing disk usage").with_source(e);
    if wants("image") {
        let mut used: BTreeMap<&gantry_oci::Digest, i64> = BTreeMap::new();
        for record in &records {
            *used.entry(&record.image).or_default() += 1;
        }
        let mut layers: BTreeMap<std::path::PathBuf, u32> = BTreeMap::new();
        let all = engine.images().list()?;
        for layer in all.iter().flat_map(|image| &image.layers) {
            *layers.entry(layer.folder.clone()).or_default() += 1;
        }
        let list = all.iter().map(|image| {
            let mut summary = images::summary(image, call.version);
            summary.containers = used.get(&image.id).copied().unwrap_or(0);
            let shared = image
                .layers
                .iter()
                .filter(|layer| layers.get(&layer.folder).is_some_and(|uses| *uses > 1));
            summary.shared_size =
                i64::try_from(shared.map(|layer| layer.size).sum::<u64>()).unwrap_or(i64::MAX);
            serde_json::to_value(summary)
        });
        document.insert(
            "Images",
            Value::Array(list.collect::<Result<_, _>>().map_err(value)?),
        );
        document.insert("LayersSize", engine.images().layers_size().into());
    }
    if wants("container") {
        let now = now_ns();
        let mut list = Vec::with_capacity(records.len());
        for record in &records {
            let size = engine.container_size(&record.id).await.unwrap_or_default();
            let mut summary = summary(record, now);
            (summary.size_rw, summary.size_root_fs) = (Some(size.rw), Some(size.root_fs));
            list.push(serde_json::to_value(summary).map_err(value)?);
        }
        document.insert("Containers", Value::Array(list));
    }
    if wants("volume") {
        let list = engine.volumes_usage().await?;
        let list = list.iter().map(|(record, usage)| {
            let usage = volume::Usage {
                ref_count: i64::try_from(usage.references).unwrap_or(i64::MAX),
                size: i64::try_from(usage.size_bytes).unwrap_or(i64::MAX),
            };
            serde_json::to_value(volumes::document(engine, record, Some(usage)))
        });
        document.insert(
            "Volumes",
            Value::Array(list.collect::<Result<_, _>>().map_err(value)?),
        );
    }
    if wants("build-cache") {
        document.insert("BuildCache", json!([]));
    }
    if !call.version.at_least(42) {
        document.insert("BuilderSize", 0.into());
    }
    Ok(Reply::json(&document))
}

pub(crate) async fn not_a_manager(_call: Call) -> Result<Reply> {
    Err(Error::new(
        ErrorKind::Unavailable,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    ))
}

pub(crate) async fn swarm_begin(_call: Call) -> Result<Reply> {
    Err(unsupported("swarm mode is not part of this build yet"))
}

pub(crate) async fn swarm_leave(_call: Call) -> Result<Reply> {
    Err(Error::new(
        ErrorKind::Unavailable,
        "This node is not part of a swarm",
    ))
}

pub(crate) async fn plugins(_call: Call) -> Result<Reply> {
    Ok(Reply::json(&json!([])))
}

pub(crate) async fn no_plugin(call: Call) -> Result<Reply> {
    Err(Error::not_found(format!(
        "plugin {:?} not found",
        call.name
    )))
}

pub(crate) async fn plugins_unsupported(_call: Call) -> Result<Reply> {
    Err(unsupported("plugins are not part of this build"))
}
