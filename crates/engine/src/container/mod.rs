//! A container: its record, its state machine, and the operations on it, one file each.
//!
//! ```text
//! create ─ start ─ (supervisor) ─ exit ─ remove        the life of one container
//! stop, restart, pause, kill · exec · attach · health   while it runs
//! adopt                                                 after the daemon was gone
//! ```
//! [`table`] finds a container by what was typed and holds its lock; [`spec`] decides how it runs (pure).

pub(crate) mod adopt;
pub mod attach;
mod connect;
pub mod create;
pub(crate) mod etc;
pub mod exec;
pub(crate) mod exit;
pub mod health;
pub(crate) mod links;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod naming;
pub(crate) mod profile;
pub mod remove;
pub mod rename;
pub mod restart;
pub mod set;
pub(crate) mod spec;
pub mod start;
pub mod step;
pub mod stop;
pub(crate) mod table;
pub mod update;
pub(crate) mod validate;
pub mod wait;

use crate::supervisor;
use gantry_docker_api::create::{ContainerConfig, EndpointSettings, HostConfig};
use gantry_network::{Endpoint, PortBinding};
use gantry_oci::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A container as stored in the node database (`containers/<id>`). `schema` = 1; a newer one is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    /// 64 hex digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    pub created_at_ns: i64,
    pub image: Digest,
    /// What the user typed (`Config.Image`).
    pub image_name: String,
    /// Effective configuration: the request merged with the image's.
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    /// Effective command: `Path` and `Args` of inspect.
    pub argv: Vec<String>,
    pub mounts: Vec<MountPoint>,
    /// By network name: what was asked for (static address, aliases). Empty for none, host and container:X.
    #[serde(default)]
    pub networks: BTreeMap<String, EndpointSettings>,
    /// By network name; only while running, but a static address stays wished for.
    pub endpoints: BTreeMap<String, Endpoint>,
    pub ports: Vec<PortBinding>,
    pub state: State,
    /// What was changed after the create, newest last; at most [`CHANGES_LIMIT`].
    #[serde(default)]
    pub changes: Vec<Change>,
    /// It is to be stopped and started again with this configuration: the intent of `set`.
    #[serde(default)]
    pub replacing: bool,
    /// When the last good run ended or proved itself, nanoseconds since the epoch; 0: never.
    #[serde(default)]
    pub good_at_ns: i64,
    pub restart_count: u32,
    /// The user stopped it: `unless-stopped` does not start it at boot, and no policy restarts it now.
    pub stopped_by_user: bool,
    pub health: Option<Health>,
}

/// Data lives in the state it is true in. Docker's status strings are derived ([`State::status`]).
///
/// ```text
/// (intent) Creating → Created → Running ⇄ Paused
///                                  ↓
///                               Exited → Restarting → Running
///                                  ↓
///                              Removing → (gone)
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Intent written, folders being made; after a crash it is undone.
    Creating,
    /// Never ran. `failure`: why its last start did not come about; Docker shows its code and text.
    Created {
        failure: Option<Failure>,
    },
    Running(Process),
    Paused(Process),
    /// The restart policy waits before the next start. Docker counts this as running.
    Restarting {
        exit: Exit,
        next_at_ns: i64,
    },
    Exited(Exit),
    /// Intent to remove; after a crash it is finished.
    Removing,
    /// Removal failed half-way; `remove` again finishes.
    Dead,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub start_ticks: u64,
    pub supervisor: i32,
    pub started_at_ns: i64,
}

/// A start that did not come about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// 127 no such program, 126 not executable, 128 anything else.
    pub code: i32,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub oom_killed: bool,
    pub error: String,
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
    /// The most memory of the run, in bytes, where the kernel counts it.
    #[serde(default)]
    pub memory_peak: Option<u64>,
}

impl Process {
    /// Whether it is still this process: its number may have gone to another one.
    pub(crate) fn is_alive(&self) -> bool {
        gantry_linux::program::start_ticks(self.pid).is_ok_and(|born| born == self.start_ticks)
    }
}

impl State {
    /// Docker's `State.Status`.
    pub fn status(&self) -> &'static str {
        match self {
            State::Creating | State::Created { .. } => "created",
            State::Running(_) => "running",
            State::Paused(_) => "paused",
            State::Restarting { .. } => "restarting",
            State::Exited(_) => "exited",
            State::Removing => "removing",
            State::Dead => "dead",
        }
    }
    /// The process, when one is alive.
    pub fn process(&self) -> Option<&Process> {
        match self {
            State::Running(process) | State::Paused(process) => Some(process),
            State::Creating
            | State::Created { .. }
            | State::Restarting { .. }
            | State::Exited(_)
            | State::Removing
            | State::Dead => None,
        }
    }
    /// Docker's `State.ExitCode`.
    pub fn exit_code(&self) -> i32 {
        match self {
            State::Exited(exit) | State::Restarting { exit, .. } => exit.code,
            State::Created {
                failure: Some(failure),
            } => failure.code,
            State::Creating
            | State::Created { failure: None }
            | State::Running(_)
            | State::Paused(_)
            | State::Removing
            | State::Dead => 0,
        }
    }
}

/// A record keeps so many changes.
pub(crate) const CHANGES_LIMIT: usize = 64;

/// One field of the configuration that `update`, `rename` or `set` changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub at_ns: i64,
    /// `HostConfig.Memory`.
    pub field: String,
    /// JSON.
    pub before: String,
    pub after: String,
}

/// A mount as `docker inspect` shows it (`Mounts`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`, `image`.
    pub kind: String,
    pub name: Option<String>,
    /// Path on the host.
    pub source: String,
    pub destination: String,
    pub driver: Option<String>,
    pub mode: String,
    pub rw: bool,
    pub propagation: String,
    /// tmpfs options, `nocopy`, and the like.
    pub options: BTreeMap<String, String>,
    /// The volume was made for this container alone and goes with `rm -v`.
    pub anonymous: bool,
}

impl MountPoint {
    /// The image whose files it shows.
    pub fn image(&self) -> Option<Digest> {
        let id = self.options.get(mounts::option::IMAGE)?;
        id.parse().ok()
    }
}

impl Record {
    /// Whether it runs from this image or mounts it.
    pub fn uses_image(&self, image: &Digest) -> bool {
        self.image == *image
            || (self.mounts.iter()).any(|mount| mount.image().as_ref() == Some(image))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`.
    pub status: String,
    pub failing_streak: u32,
    /// The last five.
    pub log: Vec<HealthProbe>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthProbe {
    pub start_ns: i64,
    pub end_ns: i64,
    pub exit_code: i32,
    pub output: String,
}

/// What the daemon holds of a container in memory; gone and made anew with the daemon.
#[derive(Default)]
pub(crate) struct Live {
    /// The supervisor of the present run, or of the last one until it is gone.
    pub(crate) handle: Option<supervisor::Handle>,
    /// Clients that attached before the start; the supervisor gets their sockets.
    pub(crate) waiting: Vec<(gantry_runtime::proto::Streams, OwnedFd)>,
    /// Terminal size that was set before the start: columns and rows.
    pub(crate) console_size: Option<(u16, u16)>,
    /// The last pause of the restart policy; doubles.
    pub(crate) pause: Duration,
    pub(crate) execs: BTreeMap<String, Arc<exec::ExecSlot>>,
    /// The health checks of the present run.
    pub(crate) health: Option<tokio::task::AbortHandle>,
    /// The run is being ended in order to begin again: neither the restart policy nor auto-remove has a say.
    pub(crate) restarting: bool,
    /// The run is being ended because its health checks failed; the next one begins whatever the restart policy says.
    pub(crate) unhealthy: bool,
    /// Addresses that the next run gets again if they are free.
    pub(crate) keep_addresses: BTreeMap<String, std::net::Ipv4Addr>,
    /// The container's questions for names are being answered.
    pub(crate) names: bool,
    /// At most one shipper of the log at a time.
    pub(crate) shipping: Arc<tokio::sync::Mutex<()>>,
}

impl Record {
    /// `Path` of the container's cgroup below each hierarchy's root, without the leading slash.
    pub fn cgroup_path(&self, instance: &str) -> String {
        match self.host_config.cgroup_parent.trim_matches('/') {
            "" => format!("{instance}/{}", self.id),
            parent => format!("{parent}/{}", self.id),
        }
    }
    /// Notes in `self` what differs from `before`, field by field.
    pub(crate) fn note_changes(&mut self, before: &Record) {
        let at_ns = crate::events::now_ns();
        let documents = [
            (
                "Config",
                serde_json::to_value(&before.config),
                serde_json::to_value(&self.config),
            ),
            (
                "HostConfig",
                serde_json::to_value(&before.host_config),
                serde_json::to_value(&self.host_config),
            ),
        ];
        for (part, old, new) in documents {
            let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) =
                (old, new)
            else {
                continue;
            };
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let text = |value: Option<&serde_json::Value>| {
                value.map_or("null".to_owned(), ToString::to_string)
            };
            for name in names
                .into_iter()
                .filter(|name| old.get(*name) != new.get(*name))
            {
                self.changes.push(Change {
                    at_ns,
                    field: format!("{part}.{name}"),
                    before: text(old.get(name)),
                    after: text(new.get(name)),
                });
            }
        }
        let excess = self.changes.len().saturating_sub(CHANGES_LIMIT);
        self.changes.drain(..excess);
    }
    /// The first twelve digits, as Docker shows them.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }
}

impl crate::Engine {
    /// By ID, name, or unambiguous ID prefix. `NotFound`: `No such container: …`.
    pub fn get(&self, r: &str) -> gantry_base::Result<Arc<Record>> {
        Ok(self.0.containers.find(r)?.record())
    }
    /// Snapshots of all containers, newest first.
    pub fn list(&self) -> Vec<Arc<Record>> {
        self.0.containers.list()
    }
    /// `D/containers/<id>`: writable layer, log, hosts, hostname, resolv.conf.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.0.settings.data_dir.join("containers").join(id)
    }
    /// Docker's `LogPath`.
    pub fn log_path(&self, id: &str) -> PathBuf {
        self.container_dir(id).join(format!("{id}-json.log"))
    }
    /// `R/c/<id>`: what a supervisor leaves for the next daemon.
    pub(crate) fn run_dir(&self, id: &str) -> PathBuf {
        self.0.settings.run_dir.join("c").join(id)
    }
    /// Publishes a container's event with Docker's attributes: image, name, labels, and `extra`.
    pub(crate) fn say(&self, record: &Record, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut attributes = record.config.labels.clone();
        attributes.insert("image".into(), record.image_name.clone());
        attributes.insert("name".into(), record.name.clone());
        for (key, value) in extra {
            attributes.insert((*key).into(), value.clone());
        }
        self.0
            .events
            .publish("container", action, record.id.clone(), attributes);
    }
    /// Shows `record` to readers and puts it in line for the disk. The caller holds the container's lock.
    pub(crate) fn save(
        &self,
        slot: &table::Slot,
        record: Record,
    ) -> impl Future<Output = gantry_base::Result<()>> + Send + use<> {
        let batch = gantry_base::db::Batch::new().put("containers", &record.id, &record);
        slot.set(record);
        self.0.db.submit(batch)
    }
    /// Runs an operation to its end even when who asked for it goes away in the middle.
    pub(crate) async fn whole<T: Send + 'static>(
        operation: impl Future<Output = gantry_base::Result<T>> + Send + 'static,
    ) -> gantry_base::Result<T> {
        tokio::spawn(operation).await.unwrap_or_else(|e| {
            Err(gantry_base::Error::internal(format!(
                "the operation broke off: {e}"
            )))
        })
    }
}
