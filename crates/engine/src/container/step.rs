//! A process of a build: a container that is nobody's but the builder's. It is confined and limited like every other one and
//! has no record: when the daemon dies, the next one ends it and sweeps its folders ([`super::adopt`]).

use super::start::{in_order, link};
use super::{Record, State, mounts, spec, validate};
use crate::files::pack::Packer;
use crate::files::unpack::{Unpack, unpack};
use crate::supervisor::{self, Output};
use crate::{Engine, Exit};
use gantry_base::{Result, ResultExt};
use gantry_docker_api::create::{ContainerConfig, CreateContainer, HostConfig};
use gantry_oci::Digest;
use gantry_runtime::proto::{self, Rootfs, Spawn, Stdin, Streams};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What to run, and upon which folders.
#[derive(Debug, Clone)]
pub struct Step {
    /// Topmost first, at least one.
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// `cmd` is the whole command; user, variables and working directory count, too.
    pub config: ContainerConfig,
    /// Limits, network, extra hosts, mounts.
    pub host_config: HostConfig,
}

/// A step that runs. Dropped, it is killed and cleaned up in the background.
pub struct RunningStep {
    output: Output,
    life: Option<Life>,
}

struct Life {
    engine: Engine,
    record: Record,
    handle: supervisor::Handle,
}

impl Engine {
    /// Starts a build's process. A program that is missing is `InvalidArgument`, as for a container.
    pub async fn step_run(&self, step: Step) -> Result<RunningStep> {
        let mut request = CreateContainer {
            config: step.config,
            host_config: step.host_config,
            ..CreateContainer::default()
        };
        validate::request(&mut request, &self.0.facts)?;
        let CreateContainer {
            mut config,
            mut host_config,
            endpoints,
            ..
        } = request;
        self.resolve_containers(&mut host_config)?;
        let networks = self.networks_of(&host_config, endpoints);
        let plan = mounts::plan(
            &config,
            &host_config,
            |r| self.get(r),
            |path| std::fs::exists(path).unwrap_or(false),
        )?;
        let id = crate::random_id();
        if config.hostname.is_empty() && !host_config.network_mode.starts_with("container:") {
            config.hostname = "buildkitsandbox".to_owned();
        }
        let mut record = Record {
            schema: 1,
            name: format!("build-{}", &id[..12]),
            id,
            created_at_ns: crate::events::now_ns(),
            image: Digest::from_sha256([0; 32]),
            image_name: String::new(),
            argv: config.cmd.clone().unwrap_or_default(),
            config,
            host_config,
            mounts: plan,
            networks,
            endpoints: BTreeMap::new(),
            ports: Vec::new(),
            state: State::Creating,
            changes: Vec::new(),
            good_at_ns: 0,
            replacing: false,
            restart_count: 0,
            stopped_by_user: false,
            health: None,
        };
        for dir in [self.container_dir(&record.id), self.run_dir(&record.id)] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .context(|| format!("creating {}", dir.display()))?;
        }
        let rootfs = Rootfs::Overlay {
            lowers: step.lowers,
            upper: step.upper,
            work: step.work,
        };
        let engine = self.clone();
        Self::whole(async move {
            match engine.step_spawn(&mut record, rootfs).await {
                Ok((handle, output)) => Ok(RunningStep {
                    output,
                    life: Some(Life {
                        engine,
                        record,
                        handle,
                    }),
                }),
                Err(error) => {
                    engine.step_clean(&record).await;
                    Err(error)
                }
            }
        })
        .await
    }

    async fn step_spawn(
        &self,
        record: &mut Record,
        rootfs: Rootfs,
    ) -> Result<(supervisor::Handle, Output)> {
        let mut world = self.look_around(record).await?;
        record.endpoints = self.connect(record, &BTreeMap::new())?;
        let endpoints = in_order(record);
        if !record.host_config.network_mode.starts_with("container:") {
            world.files = self.write_files(record, &endpoints, &[])?;
        }
        let spec = spec::spec(record, &self.0.facts, &world)?;
        let filter = self.0.filters.of(&record.host_config, &self.0.facts)?;
        let (stream, theirs) = supervisor::stream_pair()?;
        let spawn = Spawn {
            version: proto::VERSION,
            id: record.id.clone(),
            spec,
            rootfs,
            filter,
            run_dir: self.run_dir(&record.id),
            log: None,
            stdin: Stdin::Closed,
            names: false,
            links: endpoints
                .iter()
                .enumerate()
                .map(|(n, endpoint)| link(n, endpoint))
                .collect(),
            ports: Vec::new(),
            attach: vec![Streams {
                stdin: false,
                stdout: true,
                stderr: true,
            }],
            console_size: None,
        };
        let handle = self
            .0
            .spawner
            .spawn(spawn, Vec::new(), vec![theirs])
            .await?;
        match handle.started().await {
            Ok(_) => Ok((handle, stream.output)),
            Err(failure) => {
                handle.gone().await;
                Err(super::start::failed(failure).error)
            }
        }
    }

    async fn step_clean(&self, record: &Record) {
        if !record.endpoints.is_empty()
            && let Err(error) = self.0.networks.release(&record.id)
        {
            tracing::warn!(build.step = %record.id, error = %error.chain(), "releasing the network");
        }
        super::remove::delete(vec![
            self.container_dir(&record.id),
            self.run_dir(&record.id),
        ])
        .await;
    }
}

impl RunningStep {
    /// The next piece of output; `None` when there will be no more. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<supervisor::Out>> {
        self.output.next().await
    }

    /// Waits for the end; then nothing of the process is left.
    pub async fn finish(mut self) -> Exit {
        let Some(life) = &self.life else {
            unreachable!("taken only here and when dropped")
        };
        let exit = life.handle.exited().await;
        life.handle.gone().await;
        if let Some(life) = self.life.take() {
            life.engine.step_clean(&life.record).await;
        }
        Exit {
            code: exit.code,
            oom_killed: exit.oom_killed,
            error: String::new(),
            started_at_ns: 0,
            finished_at_ns: exit.finished_at_ns,
            memory_peak: exit.memory_peak,
        }
    }
}

impl Drop for RunningStep {
    fn drop(&mut self) {
        let Some(life) = self.life.take() else { return };
        // Only outside of a runtime nobody is left to do it; then the next daemon does.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = life.handle.signal(9).await;
                life.handle.gone().await;
                life.engine.step_clean(&life.record).await;
            });
        }
    }
}

/// Writes an overlay's upper folder as a layer tar. Answers the bytes of its regular files.
pub fn pack_layer(upper: &Path, out: impl Write) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(upper, flags, Mode::empty())?;
    let mut packer = Packer::layer(out, &|_, _| false);
    packer.entries(upper.as_fd(), b"")?;
    let bytes = packer.bytes;
    packer.finish()?;
    Ok(bytes)
}

/// Unpacks a foreign tar (plain, gzip, zstd) into `folder` of the tree `root`; nothing outside of `root` is touched.
/// `owner` replaces what the tar says.
pub fn unpack_tar(
    root: BorrowedFd<'_>,
    folder: &Path,
    tar: impl Read,
    owner: Option<(u32, u32)>,
) -> Result<()> {
    let how = Unpack {
        keep_kinds: false,
        owner,
    };
    unpack(root, folder, tar, how)
}

/// A tree as a plain tar.
pub fn pack_tree(root: impl AsFd, out: impl Write) -> io::Result<()> {
    let root = gantry_linux::mount::open_in_root(
        root,
        Path::new("/"),
        OFlags::RDONLY | OFlags::DIRECTORY,
    )?;
    let mut packer = Packer::new(out);
    packer.entries(root.as_fd(), b"")?;
    packer.finish()
}

/// Whether compressed bytes hold a tar.
pub fn holds_tar(file: impl Read) -> bool {
    let mut start = [0; 512];
    crate::files::unpack::decompressed(file)
        .and_then(|mut plain| plain.read_exact(&mut start))
        .is_ok()
        && gantry_image::tarstream::looks_like_tar(&start)
}
