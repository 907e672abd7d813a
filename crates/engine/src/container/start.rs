//! `docker start`.
//!
//! ```text
//! address, ports → /etc files → spec → one message to the spawner
//!                                      ∥ record with addresses and ports to the disk, NAT      → Running, event
//! ```
//! A record that is not `Running` whose supervisor lives is a start that a crash interrupted before its answer: adopting it as
//! running needs no more than the addresses and ports, and those are on disk before the answer.

use super::etc::{self, Around};
use super::spec::{self, FoundDevice, World};
use super::{
    Exit, Failure, Health, Process, Record, State, create, mounts, naming, remove, table::Slot,
    validate,
};
use crate::{Engine, supervisor};
use gantry_base::{Error, Result, ResultExt};
use gantry_network::{Endpoint, PortBinding};
use gantry_oci::runtime::Device;
use gantry_runtime::proto::{self, Forward, Link, Rootfs, Spawn, Stdin};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Device nodes that one `--device` of a folder may bring.
const DEVICES_LIMIT: usize = 4096;

/// Who starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    /// The restart policy.
    Policy,
}

/// A start that did not come about: exit code for the record, error for who asked.
pub(super) struct Failed {
    code: i32,
    pub(super) error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { code: 128, error }
    }
}

impl Engine {
    /// Runs a container. `NotModified` when it runs already.
    pub async fn start(&self, r: &str) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let engine = self.clone();
        Self::whole(async move {
            let _guard = slot.lock().await;
            engine.start_locked(&slot, Why::Asked).await
        })
        .await
    }

    /// The caller holds the lock.
    pub(crate) async fn start_locked(&self, slot: &Arc<Slot>, why: Why) -> Result<()> {
        let record = slot.record();
        match &record.state {
            State::Paused(_) => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            State::Running(_) => return Err(Error::not_modified()),
            State::Restarting { .. } if why == Why::Asked => return Err(Error::not_modified()),
            State::Removing | State::Dead | State::Creating => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            State::Created { .. } | State::Exited(_) | State::Restarting { .. } => {}
        }
        let mut next: Record = (*record).clone();
        if why == Why::Asked {
            next.restart_count = 0;
            next.stopped_by_user = false;
            slot.live().pause = std::time::Duration::ZERO;
        }
        match self.launch(slot, next).await {
            Ok(()) => Ok(()),
            Err(failed) => {
                self.start_failed(slot, &record, &failed).await;
                Err(failed.error)
            }
        }
    }

    async fn launch(&self, slot: &Arc<Slot>, mut record: Record) -> Result<(), Failed> {
        // The last run's supervisor may still be taking its cgroup and files away.
        let last = slot.live().handle.take();
        if let Some(handle) = last {
            handle.gone().await;
        }
        let snapshot = self
            .0
            .images
            .prepare(&record.image, &self.container_dir(&record.id))?;
        let mut world = self.look_around(&record).await?;
        self.check_log_driver(&record).await?;
        if let Some(hostname) = world.hostname_of.take() {
            // One network is one name to those who look from outside.
            record.config.hostname = hostname;
        }
        let kept = std::mem::take(&mut slot.live().keep_addresses);
        record.endpoints = self.connect(&record, &kept)?;
        record.ports.clear();
        let result = self
            .launch_connected(slot, &mut record, snapshot, &mut world)
            .await;
        match result {
            Ok((handle, started)) => {
                self.running(slot, record, handle, started);
                Ok(())
            }
            Err(failed) => {
                self.release(&record);
                self.drop_shared_memory(&record);
                self.volumes_deactivate(&record).await;
                Err(failed)
            }
        }
    }

    async fn launch_connected(
        &self,
        slot: &Arc<Slot>,
        record: &mut Record,
        snapshot: gantry_image::Snapshot,
        world: &mut World,
    ) -> Result<(supervisor::Handle, supervisor::Started), Failed> {
        let endpoints = in_order(record);
        let sockets = self.reserve(record, endpoints.first())?;
        let is_shared = record.host_config.network_mode.starts_with("container:");
        if !is_shared {
            world.files = self.write_files(record, &endpoints, &world.link_hosts)?;
        }
        self.announce(record);
        self.step("start.connected").await;
        let spec = spec::spec(record, &self.0.facts, world)?;
        let filter = self.0.filters.of(&record.host_config, &self.0.facts)?;
        let run_dir = self.run_dir(&record.id);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&run_dir)
            .context(|| format!("creating {}", run_dir.display()))?;
        let (streams, attach): (Vec<_>, Vec<OwnedFd>) =
            std::mem::take(&mut slot.live().waiting).into_iter().unzip();
        let spawn = Spawn {
            version: proto::VERSION,
            id: record.id.clone(),
            spec,
            rootfs: Rootfs::Overlay {
                lowers: snapshot.lowers,
                upper: snapshot.upper,
                work: snapshot.work,
            },
            filter,
            run_dir: run_dir.clone(),
            log: crate::ship::log_of(record, self.log_path(&record.id)),
            stdin: match (record.config.open_stdin, record.config.stdin_once) {
                (false, _) => Stdin::Closed,
                (true, false) => Stdin::Open,
                (true, true) => Stdin::Once,
            },
            names: endpoints.iter().any(naming::has_names),
            links: endpoints
                .iter()
                .enumerate()
                .map(|(n, endpoint)| link(n, endpoint))
                .collect(),
            ports: endpoints.first().map_or_else(Vec::new, |endpoint| {
                let forward = |binding: &PortBinding| Forward {
                    udp: binding.udp,
                    // Within a family the container sees no translation.
                    target: match endpoint.ipv6.filter(|_| binding.host_ip.is_ipv6()) {
                        Some(six) => SocketAddr::new(six.address.into(), binding.container_port),
                        None => SocketAddr::new(endpoint.address.into(), binding.container_port),
                    },
                };
                record.ports.iter().map(forward).collect()
            }),
            attach: streams,
            console_size: {
                let set = slot.live().console_size;
                let asked = record
                    .host_config
                    .console_size
                    .map(|(rows, columns)| (columns, rows));
                set.or(asked).filter(|size| *size != (0, 0))
            },
        };
        let handle = self.0.spawner.spawn(spawn, sockets, attach).await?;
        // While the kernel works: what adoption needs goes to the disk, and the kernel learns the way to the ports.
        let intent = gantry_base::db::Batch::new().put("containers", &record.id, record);
        let intent = self.0.db.submit(intent);
        if let Some(endpoint) = endpoints.first().filter(|_| !record.ports.is_empty())
            && let Err(error) = self.0.networks.publish(&record.id, endpoint, &record.ports)
        {
            // The supervisor forwards in user space; slower, not wrong.
            tracing::warn!(container.id = %record.id, error = %error.chain(), "publishing ports in the kernel");
        }
        let started = handle.started().await;
        self.step("start.started").await;
        let undo = match (started, intent.await) {
            (Ok(started), Ok(())) => return Ok((handle, started)),
            (Ok(_), Err(error)) => {
                let _ = handle.signal(9).await;
                Failed { code: 128, error }
            }
            (Err(failure), _) => failed(failure),
        };
        handle.gone().await;
        let _ = std::fs::remove_dir_all(&run_dir);
        Err(undo)
    }

    /// The program runs: shown, told, watched. The record's way to the disk need not be waited for.
    fn running(
        &self,
        slot: &Arc<Slot>,
        mut record: Record,
        handle: supervisor::Handle,
        started: supervisor::Started,
    ) {
        record.state = State::Running(Process {
            pid: started.pid,
            start_ticks: started.start_ticks,
            supervisor: 0,
            started_at_ns: crate::events::now_ns(),
        });
        record.replacing = false;
        record.health = super::health::checks(&record.config).map(|_| Health {
            status: "starting".into(),
            failing_streak: 0,
            log: Vec::new(),
        });
        slot.live().handle = Some(handle.clone());
        drop(self.save(slot, record));
        let record = slot.record();
        for endpoint in record.endpoints.values() {
            self.say_network(&record, endpoint, "connect");
        }
        self.say(&record, "start", &[]);
        self.serve_names(slot, &handle);
        self.watch(slot.clone(), handle);
        self.watch_health(slot);
        self.ship_log(slot);
    }

    /// Docker keeps why a start failed in the state it had, and removes a container that removes itself.
    async fn start_failed(&self, slot: &Arc<Slot>, before: &Record, failed: &Failed) {
        let mut record = before.clone();
        let message = failed.error.chain();
        record.state = match &before.state {
            State::Exited(exit) | State::Restarting { exit, .. } => State::Exited(Exit {
                code: failed.code,
                error: message.clone(),
                ..exit.clone()
            }),
            _ => State::Created {
                failure: Some(Failure {
                    code: failed.code,
                    message: message.clone(),
                }),
            },
        };
        if let Err(error) = self.save(slot, record).await {
            tracing::error!(container.id = %before.id, error = %error.chain(), "storing a failed start");
        }
        super::wait::Moment::note_exit(slot.moment(), failed.code, None);
        if before.host_config.auto_remove {
            let how = remove::Remove {
                force: true,
                volumes: true,
                link: false,
            };
            if let Err(error) = self.remove_locked(slot, how).await {
                tracing::error!(container.id = %before.id, error = %error.chain(), "auto-remove failed");
            }
        }
    }

    /// Sources of mounts, devices, and the processes whose namespaces are joined.
    pub(super) async fn look_around(&self, record: &Record) -> Result<World> {
        let host = &record.host_config;
        let mut world = World {
            cgroup_path: format!("/{}", record.cgroup_path(&self.0.settings.instance)),
            init_program: crate::init_program(&self.0.settings)
                .to_string_lossy()
                .into_owned(),
            ..World::default()
        };
        for mount in &record.mounts {
            world
                .sources
                .push(self.mount_source(&record.id, mount).await?);
            if let Some(image) = mount.image() {
                let layers = self.0.images.layers(&image)?;
                let layers = layers.iter().map(|l| l.to_string_lossy().into_owned());
                world
                    .image_layers
                    .insert(mount.destination.clone(), layers.collect());
            }
        }
        if let Some(other) = host.network_mode.strip_prefix("container:") {
            let other = self.joined(record, other, |id| {
                format!("cannot join network of a non running container: {id}")
            })?;
            world.network_of = other.state.process().map(|process| process.pid);
            world.hostname_of = Some(other.config.hostname.clone());
            let dir = self.container_dir(&other.id);
            let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
            // Its host's network: that one has the host's files.
            world.files = vec![
                ("/etc/resolv.conf", file("resolv.conf")),
                ("/etc/hostname", file("hostname")),
                ("/etc/hosts", file("hosts")),
            ];
        }
        if let Some(other) = host.pid_mode.strip_prefix("container:") {
            let other = self.joined(record, other, |id| {
                format!("can't join PID namespace of container {id}: container {id} is not running")
            })?;
            world.pid_of = other.state.process().map(|process| process.pid);
        }
        if let Some(other) = host.ipc_mode.strip_prefix("container:") {
            let other = self.joined(record, other, |id| {
                format!("can't join IPC of container {id}: container {id} is not running")
            })?;
            if other.host_config.ipc_mode != "shareable" {
                return Err(Error::invalid(format!(
                    "can't join IPC of container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                    other.id
                )));
            }
            world.ipc_of = other.state.process().map(|process| process.pid);
            world.shared_memory = Some(self.shared_memory(&other).to_string_lossy().into_owned());
        }
        if host.ipc_mode == "shareable" {
            let folder = self.make_shared_memory(record)?;
            world.shared_memory = Some(folder.to_string_lossy().into_owned());
        }
        let linked = self.links(record)?;
        (world.link_hosts, world.link_env) = (linked.hosts, linked.env);
        world.devices = devices(record)?;
        if let Some(requests) = &host.device_requests {
            world.cdi = crate::cdi::resolve(requests, &crate::cdi::FOLDERS.map(PathBuf::from))?;
        }
        for path in spec::block_device_paths(host) {
            let numbers = block_device(path)?;
            world.block_devices.insert(path.to_owned(), numbers);
        }
        Ok(world)
    }

    /// `/dev/shm` of a container that shares it: the one mount of a container on the host, because only so can another one get it.
    fn shared_memory(&self, record: &Record) -> PathBuf {
        self.run_dir(&record.id).join("shm")
    }

    fn make_shared_memory(&self, record: &Record) -> Result<PathBuf> {
        let folder = self.shared_memory(record);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .context(|| format!("creating {}", folder.display()))?;
        let options = format!("mode=1777,size={}", record.host_config.shm_size);
        crate::volumes::mount_tmpfs(&folder, &options)
            .context(|| format!("mounting {}", folder.display()))?;
        Ok(folder)
    }

    /// The run is over; who joined keeps what it has.
    pub(crate) fn drop_shared_memory(&self, record: &Record) {
        if record.host_config.ipc_mode == "shareable"
            && let Err(error) = crate::volumes::unmount(&self.shared_memory(record))
        {
            tracing::warn!(container.id = %record.id, %error, "unmounting the shared memory");
        }
    }

    fn joined(
        &self,
        record: &Record,
        other: &str,
        not_running: impl Fn(&str) -> String,
    ) -> Result<Arc<Record>> {
        let other = self.get(other)?;
        if other.id == record.id {
            return Err(Error::invalid("cannot join own network"));
        }
        if other.state.process().is_none() {
            return Err(Error::conflict(not_running(&other.id)));
        }
        Ok(other)
    }

    async fn mount_source(&self, id: &str, mount: &super::MountPoint) -> Result<String> {
        match (mount.kind.as_str(), &mount.name) {
            ("bind", _) => {
                if mount.options.contains_key(mounts::option::MAKE_SOURCE) {
                    create::make_bind_source(&mount.source)?;
                } else if !std::fs::exists(&mount.source).unwrap_or(false) {
                    return Err(Error::invalid(format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: {}",
                        mount.source
                    )));
                }
                Ok(mount.source.clone())
            }
            ("volume", Some(name)) => {
                let folder = self.volume_activate(name, Some(id)).await?;
                if let Some(subpath) = mount.options.get(mounts::option::SUBPATH) {
                    subpath_exists(&folder, subpath)?;
                }
                Ok(folder.to_string_lossy().into_owned())
            }
            _ => Ok(String::new()),
        }
    }

    /// An address in each network. All or none.
    pub(super) fn connect(
        &self,
        record: &Record,
        kept: &BTreeMap<String, std::net::Ipv4Addr>,
    ) -> Result<BTreeMap<String, Endpoint>> {
        let mut endpoints = BTreeMap::new();
        for (name, settings) in &record.networks {
            match self.endpoint(&record.id, name, settings, kept.get(name).copied()) {
                Ok(endpoint) => {
                    endpoints.insert(name.clone(), endpoint);
                }
                Err(error) => {
                    let _ = self.0.networks.release(&record.id);
                    return Err(error);
                }
            }
        }
        Ok(endpoints)
    }

    /// Binds the published ports; without a network of its own there is nothing to publish.
    fn reserve(&self, record: &mut Record, endpoint: Option<&Endpoint>) -> Result<Vec<OwnedFd>> {
        let Some(endpoint) = endpoint else {
            return Ok(Vec::new());
        };
        if endpoint.parent.is_some() {
            // It is on the wire with every port (Docker publishes nothing there either).
            return Ok(Vec::new());
        }
        let requests = validate::ports(&record.config, &record.host_config)?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let published = self
            .0
            .networks
            .reserve(&record.id, &record.name, endpoint, &requests)?;
        record.ports = published.bindings;
        Ok(published.sockets)
    }

    pub(super) fn write_files(
        &self,
        record: &Record,
        endpoints: &[Endpoint],
        links: &[(String, String)],
    ) -> Result<Vec<(&'static str, String)>> {
        let dir = self.container_dir(&record.id);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let shares_host = record.host_config.network_mode == "host";
        let names = endpoints.iter().any(naming::has_names);
        let around = Around {
            names,
            addresses: endpoints
                .iter()
                .flat_map(Endpoint::addresses)
                .map(|(address, _)| address)
                .collect(),
            gateway: endpoints
                .iter()
                .find_map(|endpoint| endpoint.gateway)
                .map(Into::into),
            links: links.to_vec(),
            host_hosts: if shares_host {
                read("/etc/hosts")
            } else {
                String::new()
            },
            host_resolv: if shares_host {
                read("/etc/resolv.conf")
            } else {
                naming::host_resolv()
            },
        };
        let texts = [
            (
                "/etc/resolv.conf",
                "resolv.conf",
                etc::resolv_conf(record, &around),
            ),
            ("/etc/hostname", "hostname", etc::hostname(record)),
            ("/etc/hosts", "hosts", etc::hosts(record, &around)),
        ];
        let mut files = Vec::new();
        for (destination, name, text) in texts {
            let path = dir.join(name);
            std::fs::write(&path, text).context(|| format!("writing {}", path.display()))?;
            files.push((destination, path.to_string_lossy().into_owned()));
        }
        Ok(files)
    }
}

/// The start of a container whose mount names a folder that is not there is refused; which file is mounted in the end the runtime looks up
/// again, without ever leaving the volume.
fn subpath_exists(volume: &Path, subpath: &str) -> Result<()> {
    let handle = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let root =
        rustix::fs::open(volume, handle, rustix::fs::Mode::empty()).map_err(std::io::Error::from);
    let found = root.and_then(|root| {
        gantry_linux::mount::open_in_root(root, Path::new(subpath), rustix::fs::OFlags::PATH)
    });
    found.map(drop).map_err(|e| {
        let reason = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => e.to_string(),
        };
        Error::invalid(format!(
            "cannot access path {}: {reason}",
            volume.join(subpath).display()
        ))
    })
}

/// The first one has the default route and the ports: the highest `GwPriority`, then the network that was named at create.
pub(super) fn in_order(record: &Record) -> Vec<Endpoint> {
    let place = |endpoint: &&Endpoint| {
        let wished = record.networks.get(&endpoint.network_name);
        let priority = wished.map_or(0, |settings| settings.gw_priority);
        let other = endpoint.network_name != record.host_config.network_mode;
        (std::cmp::Reverse(priority), other)
    };
    let mut endpoints: Vec<&Endpoint> = record.endpoints.values().collect();
    endpoints.sort_by_key(place);
    endpoints.into_iter().cloned().collect()
}

pub(super) fn link(number: usize, endpoint: &Endpoint) -> Link {
    Link {
        host_name: endpoint.host_interface.clone(),
        name: format!("eth{number}"),
        bridge: endpoint.bridge.clone(),
        isolated: endpoint.isolated,
        parent: endpoint.parent.as_ref().map(|parent| proto::Parent {
            interface: parent.interface.clone(),
            ipvlan: parent.ipvlan,
            mode: parent.mode,
        }),
        mac: endpoint.mac,
        mtu: endpoint.mtu,
        addresses: endpoint.addresses().collect(),
        gateways: endpoint.gateways().filter(|_| number == 0).collect(),
    }
}

/// Docker's sentence around the runtime's, and its status: a program that is missing or not executable is the request's fault.
pub(super) fn failed(failure: supervisor::StartError) -> Failed {
    let message = if failure.message.starts_with("OCI runtime") {
        format!(
            "failed to create task for container: failed to create shim task: {}",
            failure.message
        )
    } else {
        failure.message
    };
    let error = match failure.code {
        126 | 127 => Error::invalid(message),
        _ => Error::internal(message),
    };
    Failed {
        code: failure.code,
        error,
    }
}

/// `--device` with its numbers; a folder brings every device below it.
fn devices(record: &Record) -> Result<Vec<FoundDevice>> {
    let host = &record.host_config;
    let mut found = Vec::new();
    if host.privileged {
        collect_devices(Path::new("/dev"), "/dev", "rwm", &mut found)?;
        // Those that every container gets its own of.
        let own = [
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/dev/console",
            "/dev/ptmx",
            "/dev/fd",
            "/dev/core",
        ];
        found.retain(|device: &FoundDevice| {
            !own.iter().any(|path| {
                device.device.path == *path || device.device.path.starts_with(&format!("{path}/"))
            })
        });
        return Ok(found);
    }
    for mapping in &host.devices {
        let access = if mapping.cgroup_permissions.is_empty() {
            "rwm"
        } else {
            &mapping.cgroup_permissions
        };
        let inside = if mapping.path_in_container.is_empty() {
            &mapping.path_on_host
        } else {
            &mapping.path_in_container
        };
        let before = found.len();
        collect_devices(Path::new(&mapping.path_on_host), inside, access, &mut found)?;
        if found.len() == before {
            return Err(Error::internal(format!(
                "error gathering device information while adding custom device {:?}: not a device node",
                mapping.path_on_host
            )));
        }
    }
    Ok(found)
}

fn collect_devices(
    path: &Path,
    inside: &str,
    access: &str,
    found: &mut Vec<FoundDevice>,
) -> Result<()> {
    let failed = |e: std::io::Error| {
        let reason = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => e.to_string(),
        };
        Error::internal(format!(
            "error gathering device information while adding custom device {:?}: {reason}",
            path.display().to_string()
        ))
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A link or a node that goes away meanwhile is not worth failing for.
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                if matches!(
                    name.as_ref(),
                    "pts" | "shm" | "fd" | "mqueue" | ".lxc" | ".lxd-mounts" | ".udev"
                ) {
                    continue;
                }
                collect_devices(&entry.path(), &format!("{inside}/{name}"), access, found)?;
            }
        }
        return Ok(());
    }
    let kind = meta.file_type();
    if !(kind.is_char_device() || kind.is_block_device()) {
        return Ok(());
    }
    if found.len() >= DEVICES_LIMIT {
        return Err(Error::invalid(format!(
            "a container can have at most {DEVICES_LIMIT} devices"
        )));
    }
    found.push(FoundDevice {
        device: Device {
            path: validate::clean_path(inside),
            kind: if kind.is_char_device() { "c" } else { "b" }.into(),
            major: Some(i64::from(rustix::fs::major(meta.rdev()))),
            minor: Some(i64::from(rustix::fs::minor(meta.rdev()))),
            file_mode: Some(meta.mode() & 0o7777),
            uid: Some(meta.uid()),
            gid: Some(meta.gid()),
        },
        access: access.into(),
    });
    Ok(())
}

fn block_device(path: &str) -> Result<(i64, i64)> {
    let meta = std::fs::metadata(path).map_err(|e| Error::invalid(format!("{path}: {e}")))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::invalid(format!("{path}: not a block device")));
    }
    let rdev = meta.rdev();
    Ok((
        i64::from(rustix::fs::major(rdev)),
        i64::from(rustix::fs::minor(rdev)),
    ))
}
