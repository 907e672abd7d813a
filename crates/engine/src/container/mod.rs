//! A container: its record, its state machine, and the operations on it, one file each.
//!
//! ```text
//! create ─ start ─ (supervisor) ─ exit ─ remove        the life of one container
//! stop, restart, pause, kill · exec · attach · health   while it runs
//! adopt                                                 after the daemon was gone
//! ```
//! [`table`] finds a container by what was typed and holds its lock; [`spec`] decides how it runs (pure).

pub mod attach;
pub mod create;
pub mod exec;
pub mod remove;
pub mod rename;
pub mod restart;
pub mod start;
pub mod stop;
pub(crate) mod table;
pub mod update;
pub mod wait;

use gantry_docker_api::create::{ContainerConfig, HostConfig};
use gantry_network::{Endpoint, PortBinding};
use gantry_oci::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// By network name; only while running, but a static address stays wished for.
    pub endpoints: BTreeMap<String, Endpoint>,
    pub ports: Vec<PortBinding>,
    pub state: State,
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

/// A mount as `docker inspect` shows it (`Mounts`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
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
pub(crate) struct Live {}

impl crate::Engine {
    /// By ID, name, or unambiguous ID prefix. `NotFound`: `No such container: …`.
    pub fn get(&self, r: &str) -> gantry_base::Result<std::sync::Arc<Record>> {
        Ok(self.0.containers.find(r)?.record())
    }
    /// Snapshots of all containers, newest first.
    pub fn list(&self) -> Vec<std::sync::Arc<Record>> {
        self.0.containers.list()
    }
}
