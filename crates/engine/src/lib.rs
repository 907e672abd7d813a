//! Containers, volumes, exec, logs and events on one node. No HTTP.
//!
//! ```text
//! Engine::create  validate → resolve image → plan (pure) → claim name + write intent (one transaction)
//!                 → prepare snapshot → event
//! Engine::start   address, ports → container::spec (pure) → supervisor::Spawner → Running → event
//! supervisor says Exited → state, restart policy, auto-remove, waiters, event
//! ```
//! Start with [`Engine`]; [`container`] holds the record and its state machine; [`supervisor`] talks to the supervisors.
//! Not here: HTTP shapes (crate `docker`), how a process is confined (crate `runtime`).
//!
//! Invariants
//! * Each fact has one home: the record in the node database; processes, mounts and cgroups in the kernel; nothing only in memory.
//! * Every operation is serialised per container by its lock and is safe to repeat after `kill -9` at any line:
//!   [`container::adopt`] is the ordinary recovery, from what kernel and disk show.
//! * Messages are Docker's, because scripts match them.

#![forbid(unsafe_code)]

pub mod archive;
mod cgroup;
pub mod container;
pub mod events;
mod files;
pub mod instructions;
pub mod logs;
pub mod prune;
pub mod stats;
pub mod supervisor;
pub mod top;
pub mod volumes;

pub use archive::{Commit, PathStat, TarStream};
pub use container::attach::{Attach, Attached, Input, Stream};
pub use container::create::Created;
pub use container::exec::{Exec, ExecStart};
pub use container::remove::Remove;
pub use container::wait::{WaitCondition, Waited};
pub use container::{Exit, Failure, Health, HealthProbe, MountPoint, Process, Record, State};
pub use logs::{LogLine, LogOptions};
pub use prune::{ContainerSize, Filters};
pub use stats::Stats;
pub use top::Top;
pub use volumes::CreateVolume;

use gantry_base::{Result, db::Db};
use std::path::PathBuf;
use std::sync::Arc;

/// What this instance is, resolved once by the program.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `D`, durable.
    pub data_dir: PathBuf,
    /// `R`, gone after a reboot.
    pub run_dir: PathBuf,
    /// `gantry` or `gantry-1a2b3c4d`; prefix of everything global (cgroup parent, nft table, interfaces).
    pub instance: String,
    pub network: gantry_network::Settings,
    /// The static program's bytes; put into a sealed memfd and exec'd from there as the spawner.
    pub runtime_program: &'static [u8],
}

/// One node's engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

/// Everything the operations share; one field per concern, each with its own lock discipline.
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) db: Db,
    pub(crate) images: gantry_image::Store,
    pub(crate) networks: gantry_network::Networks,
    pub(crate) events: events::Bus,
    pub(crate) volumes: volumes::Volumes,
    pub(crate) containers: container::table::Table,
}

impl Engine {
    /// Opens the node: database, images, networks, spawner; adopts running containers; starts what the restart policies ask for.
    pub async fn open(_settings: Settings) -> Result<Self> {
        todo!()
    }
    /// Stops accepting work and closes the spawner. Containers run on.
    pub async fn shutdown(&self) {
        todo!()
    }
    pub fn images(&self) -> &gantry_image::Store {
        &self.0.images
    }
    pub fn networks(&self) -> &gantry_network::Networks {
        &self.0.networks
    }
    pub fn events(&self) -> &events::Bus {
        &self.0.events
    }
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }
}
