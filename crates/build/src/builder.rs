//! The builder of a node: which stages a request needs, and the cache that its builds share.

use crate::Failure;
use crate::client::{Client, Folder, MAIN, Outcome, Progress, StepInfo};
use crate::dockerfile::{self, Dockerfile, Instruction, shell};
use crate::stage::{Done, Fs, Run as StageRun};
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::create::HostConfig;
use gantry_engine::Engine;
use gantry_image::Image;
use gantry_image::steps::{Layer, NewBuild, Publish, Workspace};
use gantry_oci::{Digest, Reference};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{OnceCell, Semaphore};

/// Processes of builds that run at the same time on a node.
const RUNS: usize = 8;
/// A step that took this long is written to the cache at once, so that a crash does not cost it.
pub(crate) const DEAR: std::time::Duration = std::time::Duration::from_secs(3);
/// Bytes of layers that the cache keeps beyond what images use.
const CACHE_LIMIT: u64 = 20 << 30;

/// A build as asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub dockerfile: Vec<u8>,
    /// For messages.
    pub dockerfile_name: String,
    /// Empty for the last stage.
    pub target: String,
    /// `None`: named without a value, which counts as unset.
    pub build_args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    pub no_cache: bool,
    /// Stages that alone do without the cache.
    pub no_cache_stages: Vec<String>,
    /// Ask registries for base images that are here already.
    pub pull: bool,
    pub tags: Vec<Reference>,
    /// Empty for this machine's.
    pub platform: String,
    /// Limits, network and hosts of every RUN.
    pub host_config: HostConfig,
    /// `RUN --network=host` may.
    pub allow_host_network: bool,
    /// `--build-context`: `docker-image://…`, `local:…`, a URL.
    pub contexts: BTreeMap<String, String>,
}

/// What a build made.
pub struct Built {
    pub id: Digest,
    pub raw_config: Vec<u8>,
    /// Build arguments that no ARG took.
    pub unconsumed: Vec<String>,
    /// The file system, for exports.
    pub(crate) fs: Fs,
    pub(crate) workspace: Workspace,
}

/// One per node. Cheap to clone.
#[derive(Clone)]
pub struct Builder(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) runs: Semaphore,
    flights: Mutex<HashMap<String, Flight>>,
    /// Writers move layers into place, readers mount them where they lie.
    pub(crate) moving: tokio::sync::RwLock<()>,
    pub(crate) cache_mounts: crate::mounts::CacheMounts,
    /// `R/build`: secrets while their step runs.
    pub(crate) run_dir: PathBuf,
}

/// A step that is being made, for all builds that want it.
type Flight = Arc<tokio::sync::Mutex<Option<Option<Arc<Layer>>>>>;

/// A step's key, its layer, and the instruction.
type Made = (String, Option<Arc<Layer>>, String);

/// One build under way.
pub(crate) struct Build {
    pub(crate) builder: Builder,
    pub(crate) request: Request,
    pub(crate) file: Dockerfile,
    pub(crate) client: Arc<dyn Client>,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) workspace: Workspace,
    pub(crate) empty: PathBuf,
    stages: Vec<OnceCell<Result<Arc<Done>, Arc<Failure>>>>,
    contexts: Mutex<BTreeMap<String, Arc<OnceCell<Arc<Folder>>>>>,
    landings: Mutex<Vec<Landing>>,
    /// Steps that this build made, to be published.
    made: Mutex<Vec<Made>>,
    /// Variables before the first FROM.
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) platform: Platform,
    pub(crate) epoch: Option<i64>,
    /// Build arguments that some ARG took.
    consumed: Mutex<BTreeSet<String>>,
    pulled: RwLock<BTreeMap<String, Arc<Image>>>,
}

/// `linux/arm64/v8`, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: String,
}

impl Platform {
    pub(crate) fn host() -> Self {
        Self {
            os: "linux".into(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .into(),
            variant: String::new(),
        }
    }
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() || text == "local" {
            return Ok(Self::host());
        }
        if text.contains(',') {
            return Err(Error::invalid(format!(
                "several platforms in one build are not supported: build {text:?} one after another"
            )));
        }
        let mut parts = text.split('/').map(str::to_ascii_lowercase);
        let first = parts.next().unwrap_or_default();
        let (os, architecture) = match parts.next() {
            Some(architecture) => (first, architecture),
            None if first == "linux" => (first, Self::host().architecture),
            None => ("linux".into(), first),
        };
        if os != "linux" {
            return Err(Error::invalid(format!(
                "failed to parse platform {text}: {os:?} is not built on linux"
            )));
        }
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            _ => architecture,
        };
        let variant = parts.next().unwrap_or_default();
        Ok(Self {
            os,
            // `arm64/v8` is what `arm64` means.
            variant: if architecture == "arm64" && variant == "v8" {
                String::new()
            } else {
                variant
            },
            architecture,
        })
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Builder {
    /// One for `engine`; what builds of an earlier daemon left in the run folder goes.
    pub fn new(engine: Engine) -> Result<Self> {
        let run_dir = engine.settings().run_dir.join("build");
        let _ = std::fs::remove_dir_all(&run_dir);
        let cache_mounts =
            crate::mounts::CacheMounts::new(engine.settings().data_dir.join("build/mounts"));
        Ok(Self(Arc::new(Inner {
            engine,
            runs: Semaphore::new(RUNS),
            flights: Mutex::default(),
            moving: tokio::sync::RwLock::default(),
            cache_mounts,
            run_dir,
        })))
    }

    /// The files of a URL, as a context.
    pub async fn fetch_context(&self, url: &str, workspace: &Workspace) -> Result<Arc<Folder>> {
        crate::fetch::context(url, workspace).await
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Builds. Dropped, it ends: its processes are killed, what it finished stays in the cache.
    pub async fn build(
        &self,
        request: Request,
        client: Arc<dyn Client>,
        progress: Arc<dyn Progress>,
    ) -> Result<Built, Failure> {
        let file = dockerfile::parse(&request.dockerfile, &request.dockerfile_name)?;
        check_syntax(&file)?;
        let build = Build::new(self.clone(), request, file, client, progress)?;
        let build = Arc::new(build);
        // What was made until an end of whatever kind is kept.
        let mut keeper = Keeper(Some(build.clone()));
        let result = Box::pin(build.run()).await;
        keeper.0 = None;
        match result {
            Ok(done) => build.finish(&done).await.map_err(Failure::from),
            Err(failure) => {
                build.keep().await;
                Err(Arc::try_unwrap(failure).unwrap_or_else(|shared| Failure {
                    error: Error::new(shared.error.kind(), shared.error.chain()),
                    line: shared.line,
                    command: shared.command.clone(),
                }))
            }
        }
    }

    /// Bytes freed and the keys of the steps that went: all, or those that were not used since `before_ns`.
    pub fn prune(&self, before_ns: Option<i64>) -> Result<(Vec<String>, u64)> {
        let images = self.0.engine.images();
        let rows = images.steps().into_iter();
        let dead: Vec<String> = rows
            .filter(|(_, row)| before_ns.is_none_or(|before| row.used_ns < before))
            .map(|(key, _)| key)
            .collect();
        let mut freed = images.prune_steps(&dead)?;
        if before_ns.is_none() {
            freed += self.0.cache_mounts.prune();
        }
        Ok((dead, freed))
    }
}

/// Publishes what was made when the build's future is dropped.
struct Keeper(Option<Arc<Build>>);

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(build) = self.0.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { build.keep().await });
        }
    }
}

/// Front-ends are programs from registries: only the built-in one is there.
fn check_syntax(file: &Dockerfile) -> Result<()> {
    let Some(syntax) = &file.syntax else {
        return Ok(());
    };
    let name = syntax.split_whitespace().next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let (name, _) = name.split_once(['@']).unwrap_or((name, ""));
    let (name, _) = name.split_once(':').unwrap_or((name, ""));
    match name {
        "docker/dockerfile" | "docker/dockerfile-upstream" | "dockerfile.v0" => Ok(()),
        _ => Err(Error::invalid(format!(
            "external front-ends are not run: remove the line # syntax={syntax}, the built-in docker/dockerfile is used then"
        ))),
    }
}

impl Build {
    fn new(
        builder: Builder,
        request: Request,
        file: Dockerfile,
        client: Arc<dyn Client>,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        let platform = Platform::parse(&request.platform)?;
        let workspace = builder.0.engine.images().workspace()?;
        let empty = workspace.folder("empty")?;
        let epoch = match request.build_args.get("SOURCE_DATE_EPOCH") {
            Some(Some(text)) if !text.is_empty() => Some(
                text.parse::<i64>()
                    .map_err(|_| Error::invalid(format!("invalid SOURCE_DATE_EPOCH: {text}")))?,
            ),
            _ => None,
        };
        let mut build = Self {
            stages: file.stages.iter().map(|_| OnceCell::new()).collect(),
            builder,
            request,
            file,
            client,
            progress,
            workspace,
            empty,
            contexts: Mutex::default(),
            landings: Mutex::default(),
            made: Mutex::default(),
            meta: BTreeMap::new(),
            platform,
            epoch,
            consumed: Mutex::default(),
            pulled: RwLock::default(),
        };
        build.read_meta()?;
        Ok(build)
    }

    /// Variables that `FROM` may use.
    fn read_meta(&mut self) -> Result<()> {
        for (name, value) in self.platform_arguments() {
            self.meta.insert(name, value);
        }
        for step in &self.file.meta {
            let Instruction::Arg(arguments) = &step.instruction else {
                continue;
            };
            for (name, default) in arguments {
                let given = self.request.build_args.get(name).cloned().flatten();
                let value = match (given, default) {
                    (Some(given), _) => {
                        self.consume(name);
                        Some(given)
                    }
                    (None, Some(text)) => {
                        let known = |name: &str| self.meta.get(name).cloned();
                        let value = shell::word(text, self.file.escape, &known);
                        Some(value.map_err(|e| {
                            dockerfile::Fault::at(step.line, e)
                                .into_error(&self.request.dockerfile_name)
                        })?)
                    }
                    (None, None) => None,
                };
                if let Some(value) = value {
                    self.meta.insert(name.clone(), value);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn platform_arguments(&self) -> Vec<(String, String)> {
        let host = Platform::host();
        let mut all = Vec::new();
        for (prefix, platform) in [("TARGET", &self.platform), ("BUILD", &host)] {
            all.push((format!("{prefix}PLATFORM"), platform.to_string()));
            all.push((format!("{prefix}OS"), platform.os.clone()));
            all.push((format!("{prefix}ARCH"), platform.architecture.clone()));
            all.push((format!("{prefix}VARIANT"), platform.variant.clone()));
        }
        let target = match self.request.target.as_str() {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        all.push(("TARGETSTAGE".into(), target));
        all
    }

    pub(crate) fn consume(&self, name: &str) {
        self.consumed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
    }

    /// A stage by name, or by number; only those before `before`.
    pub(crate) fn stage_named(&self, name: &str, before: usize, numbers: bool) -> Option<usize> {
        let lower = name.to_lowercase();
        let named = self.file.stages[..before]
            .iter()
            .rposition(|stage| stage.name.as_deref() == Some(&*lower));
        let numbered = || name.parse::<usize>().ok().filter(|index| *index < before);
        named.or_else(|| numbers.then(numbered).flatten())
    }

    pub(crate) fn base_of(&self, index: usize) -> Result<String> {
        let stage = &self.file.stages[index];
        let known = |name: &str| self.meta.get(name).cloned();
        let fault = |e: String| {
            dockerfile::Fault::at(stage.line, e).into_error(&self.request.dockerfile_name)
        };
        let base = shell::word(&stage.base, self.file.escape, &known).map_err(fault)?;
        if base.is_empty() {
            return Err(fault(format!(
                "base name ({}) should not be blank",
                stage.base
            )));
        }
        Ok(base)
    }

    /// The stages that `stage` takes something from, by what stands in the file.
    fn needs(&self, index: usize) -> Result<BTreeSet<usize>> {
        let mut needs = BTreeSet::new();
        let base = self.base_of(index)?;
        if !self.request.contexts.contains_key(&base) {
            needs.extend(self.stage_named(&base, index, false));
        }
        for step in &self.file.stages[index].steps {
            match &step.instruction {
                Instruction::Copy(copy) => {
                    if let Some(from) = &copy.from {
                        if self.stage_named(from, self.file.stages.len(), false) == Some(index) {
                            return Err(dockerfile::Fault::at(
                                step.line,
                                format!("invalid from flag value {from}: the stage would copy from itself"),
                            )
                            .into_error(&self.request.dockerfile_name));
                        }
                        needs.extend(self.stage_named(from, index, true));
                    }
                }
                Instruction::Run(run) => {
                    for text in &run.mounts {
                        if let Ok(mount) = dockerfile::mount::parse(text) {
                            needs.extend(self.stage_named(&mount.from, index, true));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(needs)
    }

    fn target(&self) -> Result<usize> {
        let stages = &self.file.stages;
        let target = &self.request.target;
        if target.is_empty() {
            return Ok(stages.len() - 1);
        }
        self.stage_named(target, stages.len(), true).ok_or_else(|| {
            Error::invalid(format!(
                "target stage {target:?} could not be found: failed to reach build target {target} in Dockerfile"
            ))
        })
    }

    /// Everything that a needed stage reads of the main context; `None` when that cannot be told beforehand.
    fn wanted_paths(&self, needed: &BTreeSet<usize>) -> Option<Vec<String>> {
        let mut paths = BTreeSet::new();
        for index in needed {
            for step in &self.file.stages[*index].steps {
                match &step.instruction {
                    Instruction::Copy(copy) | Instruction::Add(copy) if copy.from.is_none() => {
                        for source in &copy.sources {
                            if source.contains(['$', '"', '\'']) {
                                return None;
                            }
                            paths.insert(source.clone());
                        }
                    }
                    Instruction::Run(run) => {
                        for text in &run.mounts {
                            if text.contains('$') {
                                return None;
                            }
                            let mount = dockerfile::mount::parse(text).ok()?;
                            if mount.kind == dockerfile::MountKind::Bind && mount.from.is_empty() {
                                paths.insert(mount.source);
                            }
                        }
                    }
                    // Its triggers may copy anything.
                    _ => {}
                }
            }
        }
        let all = ["", ".", "/", "./"];
        if paths.iter().any(|path| all.contains(&path.as_str())) {
            return None;
        }
        Some(paths.into_iter().collect())
    }

    async fn run(self: &Arc<Self>) -> Result<Arc<Done>, Arc<Failure>> {
        let fail = |e: Error| Arc::new(Failure::from(e));
        let target = self.target().map_err(fail)?;
        let mut needed = BTreeSet::from([target]);
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            for other in self.needs(index).map_err(fail)? {
                if needed.insert(other) {
                    open.push(other);
                }
            }
        }
        let stages = needed
            .iter()
            .map(|index| Box::pin(self.stage(*index, &needed)));
        futures_util::future::try_join_all(stages).await?;
        self.stage(target, &needed).await
    }

    /// The result of a stage, made once.
    async fn stage(
        self: &Arc<Self>,
        index: usize,
        needed: &BTreeSet<usize>,
    ) -> Result<Arc<Done>, Arc<Failure>> {
        let made = self.stages[index]
            .get_or_init(|| async {
                let run = StageRun::new(self.clone(), index, needed.clone());
                Box::pin(run.execute())
                    .await
                    .map(Arc::new)
                    .map_err(Arc::new)
            })
            .await;
        made.clone()
    }

    /// The same, for a step of another stage.
    pub(crate) fn other_stage(
        self: &Arc<Self>,
        index: usize,
        needed: &BTreeSet<usize>,
    ) -> futures_util::future::BoxFuture<'static, Result<Arc<Done>, Failure>> {
        let (build, needed) = (self.clone(), needed.clone());
        Box::pin(async move {
            build.stage(index, &needed).await.map_err(|shared| Failure {
                error: Error::new(shared.error.kind(), shared.error.chain()),
                line: shared.line,
                command: shared.command.clone(),
            })
        })
    }

    /// A context's files, fetched once.
    pub(crate) async fn context(
        &self,
        name: &str,
        needed: &BTreeSet<usize>,
    ) -> Result<Arc<Folder>> {
        let cell = {
            let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
            contexts.entry(name.to_owned()).or_default().clone()
        };
        let folder = cell.get_or_try_init(|| async {
            if let Some(url) = self.request.contexts.get(name)
                && !url.starts_with("local:")
            {
                return crate::fetch::context(url, &self.workspace).await;
            }
            let wanted = match name {
                MAIN => self.wanted_paths(needed),
                _ => None,
            };
            self.client.context(name, wanted.as_deref()).await
        });
        folder.await.cloned()
    }

    /// Number, place and text of a step: `FROM` is number 0 of its stage.
    pub(crate) fn info(&self, index: usize, place: usize, needed: &BTreeSet<usize>) -> StepInfo {
        let length = |index: usize| self.file.stages[index].steps.len() + 1;
        let first: usize = needed
            .iter()
            .filter(|other| **other < index)
            .map(|i| length(*i))
            .sum();
        let stage = &self.file.stages[index];
        let (text, line) = match place {
            0 => (stage.original.clone(), stage.line),
            _ => (
                stage.steps[place - 1].original.clone(),
                stage.steps[place - 1].line,
            ),
        };
        let name = match &stage.name {
            Some(name) => name.clone(),
            None if needed.len() == 1 => String::new(),
            None => format!("stage-{index}"),
        };
        let is_visible = |step: &dockerfile::Step| {
            matches!(
                step.instruction,
                Instruction::Run(_)
                    | Instruction::Copy(_)
                    | Instruction::Add(_)
                    | Instruction::Workdir(_)
            )
        };
        let visible = |steps: &[dockerfile::Step]| steps.iter().filter(|s| is_visible(s)).count();
        StepInfo {
            id: first + place,
            total: needed.iter().map(|i| length(*i)).sum(),
            stage: name,
            place: 1 + visible(&stage.steps[..place]),
            places: 1 + visible(&stage.steps),
            text,
            line,
            trigger: false,
            visible: place == 0 || is_visible(&stage.steps[place - 1]),
        }
    }

    /// The layer of a step: from the cache, from another build that makes it now, or made here.
    pub(crate) async fn keyed<F>(
        &self,
        key: Digest,
        what: &str,
        no_cache: bool,
        make: impl FnOnce() -> F,
    ) -> Result<(Option<Arc<Layer>>, bool), Failure>
    where
        F: Future<Output = Result<Option<Arc<Layer>>, Failure>>,
    {
        let key = key.hex();
        let images = self.builder.0.engine.images();
        if no_cache {
            let layer = Box::pin(make()).await?;
            self.note(key, layer.clone(), what);
            return Ok((layer, false));
        }
        if let Some(layer) = images.cached_step(&key) {
            return Ok((layer, true));
        }
        let flight = {
            let flights = &self.builder.0.flights;
            let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.entry(key.clone()).or_default().clone()
        };
        let landing = Landing {
            builder: self.builder.clone(),
            key: key.clone(),
            flight: Some(flight.clone()),
        };
        let mut place = flight.lock().await;
        let result = if let Some(layer) = &*place {
            (layer.clone(), true)
        } else if let Some(layer) = images.cached_step(&key) {
            (layer, true)
        } else {
            let layer = Box::pin(make()).await?;
            *place = Some(layer.clone());
            (layer, false)
        };
        self.note(key.clone(), result.0.clone(), what);
        drop(place);
        drop(flight);
        // Until its row is in the cache, others find the layer here.
        let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        landings.push(landing);
        Ok(result)
    }

    fn note(&self, key: String, layer: Option<Arc<Layer>>, what: &str) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push((key, layer, what.to_owned()));
    }

    /// Puts what was made so far into the cache.
    pub(crate) async fn keep(&self) {
        let what = self.take_made();
        if what.steps.is_empty() {
            return;
        }
        if let Err(error) = self.publish(what).await {
            tracing::warn!(error = error.chain(), "keeping the steps of a build");
        }
    }

    fn take_made(&self) -> Publish {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        Publish {
            layers: made
                .iter()
                .filter_map(|(_, layer, _)| layer.clone())
                .collect(),
            steps: made,
            image: None,
        }
    }

    async fn publish(&self, what: Publish) -> Result<Option<Digest>> {
        let _moving = self.builder.0.moving.write().await;
        let images = self.builder.0.engine.images().clone();
        tokio::task::spawn_blocking(move || images.publish_steps(what))
            .await
            .context(|| "publishing a build".into())?
    }

    async fn finish(&self, done: &Done) -> Result<Built> {
        let raw_config = done.raw_config(self, &self.request.labels);
        let mut what = self.take_made();
        what.layers.extend(done.fs.layers.iter().cloned());
        what.image = Some(NewBuild {
            raw_config: raw_config.clone(),
            base: done.fs.base.clone(),
            layers: done.fs.layers.clone(),
            tags: self.request.tags.clone(),
        });
        let id = self
            .publish(what)
            .await?
            .ok_or_else(|| Error::internal("a build published no image"))?;
        let images = self.builder.0.engine.images().clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = images.limit_steps(CACHE_LIMIT) {
                tracing::warn!(error = error.chain(), "limiting the build cache");
            }
        });
        Ok(Built {
            id,
            raw_config,
            unconsumed: self.unconsumed(),
            fs: done.fs.clone(),
            workspace: self.workspace.clone(),
        })
    }

    /// An image from this node, or from its registry when it is not here (or `--pull` says so).
    pub(crate) async fn image(&self, name: &str, platform: &Platform) -> Result<Arc<Image>> {
        if let Some(known) = self
            .pulled
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
        {
            return Ok(known.clone());
        }
        let images = self.builder.0.engine.images();
        let fits = |image: &Image| {
            let architecture = image.config.architecture.as_str();
            architecture.is_empty() || architecture == platform.architecture
        };
        let here = images.get(name).ok().filter(|image| fits(image));
        let is_id = matches!(
            gantry_oci::reference::AnyReference::parse(name),
            Ok(gantry_oci::reference::AnyReference::Id(_))
        );
        let image = match here {
            Some(image) if !self.request.pull || is_id => image,
            _ => self.pull(name, platform).await?,
        };
        self.pulled
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), image.clone());
        Ok(image)
    }

    async fn pull(&self, name: &str, platform: &Platform) -> Result<Arc<Image>> {
        let reference = Reference::parse(name)
            .map_err(|e| Error::invalid(format!("failed to parse stage name {name:?}: {e}")))?
            .or_latest();
        let credentials = self.client.credentials(&reference.domain).await;
        let images = self.builder.0.engine.images().clone();
        let resolved = images
            .resolve(&reference, &platform.to_string(), credentials)
            .await?;
        let runtime = tokio::runtime::Handle::current();
        // Falls when the build is dropped while it waits here.
        let waiting = Arc::new(());
        let watched = Arc::downgrade(&waiting);
        let gone = move || watched.strong_count() == 0;
        let pulling = move || images.pull(&runtime, &resolved, &|_| (), &gone);
        let pulled = tokio::task::spawn_blocking(pulling)
            .await
            .context(|| "pulling a base image".into())??;
        drop(waiting);
        self.builder.0.engine.images().get(&pulled.id.to_string())
    }

    pub(crate) fn end(&self, info: &StepInfo, cached: bool, image: Option<Digest>) {
        let outcome = Outcome {
            cached,
            image,
            error: None,
        };
        self.progress.end(info, &outcome);
    }

    /// Build arguments that no ARG took.
    pub(crate) fn unconsumed(&self) -> Vec<String> {
        let consumed = self.consumed.lock().unwrap_or_else(PoisonError::into_inner);
        let given = self.request.build_args.keys();
        given
            .filter(|name| !consumed.contains(*name))
            .cloned()
            .collect()
    }
}

/// Takes a flight out of the table when the last build that wanted it is through.
struct Landing {
    builder: Builder,
    key: String,
    flight: Option<Flight>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let flights = &self.builder.0.flights;
        let mut flights = flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted under the table's lock: the table's own and those of other builds.
        let flight = self.flight.take();
        let others = flight.as_ref().map_or(0, Arc::strong_count);
        if others <= 2 {
            flights.remove(&self.key);
        }
        drop(flights);
    }
}

impl Built {
    /// The layers as a mount needs them, topmost first.
    pub(crate) fn lowers(&self, empty: &Path) -> Vec<PathBuf> {
        self.fs.lowers(empty)
    }

    /// The whole file system as one tar, for `--output type=tar` and `type=local`.
    pub fn tar(&self, out: impl std::io::Write) -> Result<()> {
        let empty = self.workspace.folder("empty")?;
        let root = gantry_linux::view::detached_overlay(&gantry_linux::view::Overlay {
            lowers: self.lowers(&empty),
            upper: None,
        })
        .context(|| "opening the result of the build".into())?;
        gantry_engine::pack_tree(root, out).context(|| "packing the result of the build".into())
    }
}
