//! Containers, volumes, exec, logs and events on one node. No HTTP but as a client of plug-ins.
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
pub mod autopsy;
pub mod cdi;
mod cgroup;
pub mod container;
pub mod events;
pub(crate) mod facts;
pub(crate) mod fail;
mod files;
pub mod instructions;
pub mod logs;
mod networks;
pub mod plugins;
pub mod prune;
pub(crate) mod ship;
pub mod stats;
pub mod supervisor;
#[cfg(test)]
mod tests;
pub mod top;
pub mod volumes;

pub use archive::{Commit, PathStat, TarStream};
pub use container::attach::{Attach, Attached, Input, Stream};
pub use container::create::Created;
pub use container::exec::{Exec, ExecStart};
pub use container::naming::names_in_network;
pub use container::remove::Remove;
pub use container::set::Set;
pub use container::step::{RunningStep, Step, holds_tar, pack_layer, pack_tree, unpack_tar};
pub use container::wait::{WaitCondition, Waited};
pub use container::{Exit, Failure, Health, HealthProbe, MountPoint, Process, Record, State};
pub use gantry_image::Registries;
pub use logs::{LogLine, LogOptions};
pub use prune::{ContainerSize, Filters};
pub use ship::NAMES as LOG_DRIVERS;
pub use stats::Stats;
pub use top::Top;
pub use volumes::CreateVolume;

use gantry_base::{self as base, Result, ResultExt, db::Db};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, Weak};

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
    pub registries: gantry_image::Registries,
    /// A container that becomes unhealthy is restarted, unless its label says otherwise ([`container::health::RESTART_LABEL`]).
    pub restart_unhealthy: bool,
    /// Plug-ins that are asked before every request of the Docker API, in this order.
    pub authorization_plugins: Vec<String>,
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
    pub(crate) plugins: plugins::Plugins,
    pub(crate) containers: container::table::Table,
    /// Exec ID to its container; the exec itself lives there.
    pub(crate) execs: RwLock<BTreeMap<String, Weak<container::table::Slot>>>,
    pub(crate) facts: facts::Facts,
    /// Compiled seccomp profiles.
    pub(crate) filters: container::spec::Filters,
    pub(crate) spawner: supervisor::Spawner,
    closing: AtomicBool,
    #[cfg(test)]
    armed: fail::Armed,
}

impl Engine {
    /// Opens the node: database, images, networks, spawner; adopts running containers; starts what the restart policies ask for.
    pub async fn open(settings: Settings) -> Result<Self> {
        let (data, run) = (&settings.data_dir, &settings.run_dir);
        for (dir, mode) in [
            (data.clone(), 0o710),
            (data.join("containers"), 0o710),
            (run.clone(), 0o755),
            (run.join("c"), 0o700),
        ] {
            make_dir(&dir, mode).context(|| format!("creating {}", dir.display()))?;
        }
        let db = Db::open(&data.join("node.redb"))?;
        let images = gantry_image::Store::open(
            &data.join("images"),
            db.clone(),
            settings.registries.clone(),
        )?;
        write_init_program(&settings).context(|| "writing the init program".into())?;
        let spawner =
            supervisor::Spawner::open(settings.runtime_program, &settings.instance).await?;
        let journal = settings.data_dir.join("events.json");
        let found = container::adopt::find(&settings, &db).await?;
        let networks =
            gantry_network::Networks::open(settings.network.clone(), db.clone(), &found.live())?;
        let plugins = plugins::Plugins::new(&settings.run_dir);
        let engine = Self(Arc::new(Inner {
            settings,
            db,
            images,
            networks,
            events: events::Bus::open(&journal)?,
            volumes: volumes::Volumes::default(),
            plugins,
            containers: container::table::Table::default(),
            execs: RwLock::default(),
            facts: facts::Facts::read(),
            filters: container::spec::Filters::default(),
            spawner,
            closing: AtomicBool::new(false),
            #[cfg(test)]
            armed: fail::Armed::default(),
        }));
        engine.settle(found).await?;
        let sweeper = engine.clone();
        tokio::task::spawn_blocking(move || sweeper.sweep_volumes());
        Ok(engine)
    }
    /// Stops accepting work. Containers run on; what ends from now on the next daemon finds out.
    pub async fn shutdown(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        for slot in self.0.containers.slots() {
            if let Some(health) = slot.live().health.take() {
                health.abort();
            }
        }
        // Commits take effect in order: after this one, all are on disk.
        let last = base::db::Batch::new().put("meta", "stopped_at_ns", &events::now_ns());
        if let Err(error) = self.0.db.commit(last).await {
            tracing::error!(error = %error.chain(), "closing the node database");
        }
    }
    pub(crate) fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Relaxed)
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
    /// A plug-in that implements `what` (`VolumeDriver`, `authz`), found and activated.
    pub async fn plugin(&self, name: &str, what: &str) -> Result<Arc<plugins::Plugin>> {
        self.0.plugins.get(name, what).await
    }
    /// Names of the activated plug-ins that implement `what`.
    pub fn plugin_names(&self, what: &str) -> Vec<String> {
        self.0.plugins.names(what)
    }
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }
}

/// The static program as a file that containers with `--init` get mounted, read-only, as `/sbin/docker-init`.
pub(crate) fn init_program(settings: &Settings) -> PathBuf {
    settings.run_dir.join("docker-init")
}

fn write_init_program(settings: &Settings) -> io::Result<()> {
    let path = init_program(settings);
    let same = std::fs::metadata(&path)
        .is_ok_and(|meta| meta.len() == settings.runtime_program.len() as u64)
        && std::fs::read(&path).is_ok_and(|bytes| bytes == settings.runtime_program);
    if same {
        return Ok(());
    }
    base::file::atomic_write(
        &path,
        settings.runtime_program,
        0o755,
        base::file::Durability::Process,
    )
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)?;
    // An existing folder keeps what the user gave it, but never more than ours for the private ones.
    if mode == 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// 64 hex digits from the system's random source; never all decimal in the first twelve, which would read as a number.
pub(crate) fn random_id() -> String {
    loop {
        let id: String = random::<32>()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if !id[..12].bytes().all(|b| b.is_ascii_digit()) {
            return id;
        }
    }
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source works");
    bytes
}
