//! One stage: each instruction's meaning, in order.

use crate::builder::{Build, DEAR, Platform};
use crate::client::{Folder, MAIN, StepInfo};
use crate::dockerfile::{self, Command, Copy, Fault, Instruction, Step, shell};
use crate::tree::{self, Chmod, Found, How};
use crate::{Failure, fetch, glob};
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::create::ContainerConfig;
use gantry_engine::supervisor::Out;
use gantry_image::Image;
use gantry_image::steps::{KeyHasher, Layer};
use gantry_linux::view::{Overlay, detached_overlay};
use gantry_oci::Digest;
use gantry_oci::image::{History, ImageConfig, RootFs, RunConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Arguments that are known without an `ARG` and count in no key.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// What every key begins with: another meaning of steps is another word.
const KEY: &[u8] = b"gantry step 1";
/// `/etc/passwd` and `/etc/group` up to this size.
const PASSWD_LIMIT: u64 = 4 << 20;

/// A file system as layers upon a base.
#[derive(Clone, Default)]
pub(crate) struct Fs {
    pub(crate) base: Option<Arc<Image>>,
    pub(crate) layers: Vec<Arc<Layer>>,
}

impl Fs {
    /// Topmost first; `empty` stands for nothing.
    pub(crate) fn lowers(&self, empty: &Path) -> Vec<PathBuf> {
        let mut lowers: Vec<PathBuf> = self
            .layers
            .iter()
            .rev()
            .map(|layer| layer.folder())
            .collect();
        if let Some(base) = &self.base {
            lowers.extend(base.lowers().iter().cloned());
        }
        if lowers.is_empty() {
            lowers.push(empty.to_owned());
        }
        lowers
    }

    pub(crate) fn diff_ids(&self) -> Vec<Digest> {
        let base = self
            .base
            .iter()
            .flat_map(|base| base.layers.iter().map(|layer| layer.diff_id.clone()));
        base.chain(self.layers.iter().map(|layer| layer.diff_id().clone()))
            .collect()
    }
}

/// A stage as it is after its last step so far.
#[derive(Clone, Default)]
pub(crate) struct Done {
    pub(crate) fs: Fs,
    pub(crate) config: RunConfig,
    pub(crate) author: Option<String>,
    pub(crate) platform: Platform,
    pub(crate) history: Vec<History>,
    /// Of the newest step that has one.
    pub(crate) created: Option<String>,
    args: BTreeMap<String, Option<String>>,
}

impl Done {
    /// The image's configuration document.
    pub(crate) fn raw_config(&self, build: &Build, labels: &BTreeMap<String, String>) -> Vec<u8> {
        let mut config = self.config.clone();
        config.labels.extend(labels.clone());
        let created = match build.epoch {
            Some(seconds) => jiff::Timestamp::from_second(seconds)
                .ok()
                .map(|t| t.to_string()),
            None => self.created.clone(),
        };
        let document = ImageConfig {
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
            variant: Some(self.platform.variant.clone()).filter(|v| !v.is_empty()),
            created,
            author: self.author.clone(),
            config,
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: self.fs.diff_ids(),
            },
            history: self.history.clone(),
            ..ImageConfig::default()
        };
        serde_json::to_vec(&document).expect("our own documents serialise")
    }
}

/// A stage that is being executed.
pub(crate) struct Run {
    build: Arc<Build>,
    index: usize,
    needed: BTreeSet<usize>,
    state: Done,
    cmd_is_set: bool,
    no_cache: bool,
}

/// How a step ended: whether it was in the cache.
type Cached = bool;

impl Run {
    pub(crate) fn new(build: Arc<Build>, index: usize, needed: BTreeSet<usize>) -> Self {
        let name = build.file.stages[index].name.clone().unwrap_or_default();
        let no_cache = build.request.no_cache
            || build.request.no_cache_stages.iter().any(|stage| {
                !name.is_empty() && stage.eq_ignore_ascii_case(&name) || *stage == index.to_string()
            });
        Self {
            build,
            index,
            needed,
            state: Done::default(),
            cmd_is_set: false,
            no_cache,
        }
    }

    pub(crate) async fn execute(mut self) -> Result<Done, Failure> {
        let build = self.build.clone();
        let stage = &build.file.stages[self.index];
        let info = build.info(self.index, 0, &self.needed);
        build.progress.begin(&info);
        if let Err(failure) = Box::pin(self.from()).await {
            return Err(self.failed(&info, stage.line, failure));
        }
        build.end(&info, false, Some(self.image_id()));
        for text in self.state.config.on_build.take().into_iter().flatten() {
            let mut info = info.clone();
            (info.trigger, info.text) = (true, text.clone());
            build.progress.begin(&info);
            let result = match dockerfile::parse_trigger(&text) {
                Ok(step) => self.step(&info, &step).await,
                Err(e) => Err(e.into()),
            };
            match result {
                Ok(cached) => build.end(&info, cached, Some(self.image_id())),
                Err(failure) => return Err(self.failed(&info, stage.line, failure)),
            }
        }
        for (place, step) in stage.steps.iter().enumerate() {
            let info = build.info(self.index, place + 1, &self.needed);
            build.progress.begin(&info);
            match self.step(&info, step).await {
                Ok(cached) => build.end(&info, cached, Some(self.image_id())),
                Err(failure) => return Err(self.failed(&info, step.line, failure)),
            }
        }
        Ok(self.state)
    }

    fn failed(&self, info: &StepInfo, line: usize, mut failure: Failure) -> Failure {
        failure.line.get_or_insert(line);
        let outcome = crate::Outcome {
            cached: false,
            image: None,
            error: Some(failure.error.chain()),
        };
        self.build.progress.end(info, &outcome);
        failure
    }

    fn image_id(&self) -> Digest {
        let mut key = KeyHasher::default();
        key.raw(&self.state.raw_config(&self.build, &BTreeMap::new()));
        key.finish()
    }

    async fn from(&mut self) -> Result<(), Failure> {
        let build = self.build.clone();
        let stage = &build.file.stages[self.index];
        let name = build.base_of(self.index)?;
        let platform = match &stage.platform {
            None => build.platform.clone(),
            Some(text) => {
                let known = |name: &str| build.meta.get(name).cloned();
                let text = shell::word(text, build.file.escape, &known)
                    .map_err(|e| self.fault(stage.line, e))?;
                if text.is_empty() {
                    return Err(self
                        .fault(
                            stage.line,
                            format!(
                                "empty platform value from expression {}",
                                stage.platform.as_deref().unwrap_or_default()
                            ),
                        )
                        .into());
                }
                Platform::parse(&text)?
            }
        };
        let replaced = build.request.contexts.get(&name).cloned();
        if let Some(url) = &replaced {
            let Some(image) = url.strip_prefix("docker-image://") else {
                return Err(Error::invalid(format!(
                    "the named context {name}={url} is a folder: FROM takes an image (docker-image://…)"
                ))
                .into());
            };
            return self.begin_with(image, platform).await;
        }
        if name.eq_ignore_ascii_case("scratch") {
            self.state = Done {
                platform,
                ..Done::default()
            };
            self.state.config.env = vec![format!("PATH={DEFAULT_PATH}")];
            self.state.config.working_dir = "/".into();
            return Ok(());
        }
        if let Some(other) = build.stage_named(&name, self.index, false) {
            let done = build.other_stage(other, &self.needed).await?;
            let args = BTreeMap::new();
            self.state = Done {
                args,
                ..(*done).clone()
            };
            return Ok(());
        }
        self.begin_with(&name, platform).await
    }

    async fn begin_with(&mut self, name: &str, platform: Platform) -> Result<(), Failure> {
        let image = self.build.image(name, &platform).await?;
        let document = &image.config;
        let mut history = document.history.clone();
        if history.is_empty() {
            history = image.layers.iter().map(|_| History::default()).collect();
        }
        self.state = Done {
            config: document.config.clone(),
            author: document.author.clone(),
            platform: Platform {
                architecture: if document.architecture.is_empty() {
                    platform.architecture
                } else {
                    document.architecture.clone()
                },
                os: "linux".into(),
                variant: document.variant.clone().unwrap_or_default(),
            },
            history,
            created: document.created.clone(),
            args: BTreeMap::new(),
            fs: Fs {
                base: Some(image.clone()),
                layers: Vec::new(),
            },
        };
        let env = &mut self.state.config.env;
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        Ok(())
    }

    /// An error that names file and line.
    fn fault(&self, line: usize, message: impl Into<String>) -> Error {
        Fault::at(line, message).into_error(&self.build.request.dockerfile_name)
    }

    /// What a variable of an instruction is now.
    fn variable(&self, name: &str) -> Option<String> {
        let env = self.state.config.env.iter();
        let set = env
            .filter_map(|entry| entry.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned());
        set.or_else(|| self.state.args.get(name).cloned().flatten())
    }

    fn word(&self, text: &str, line: usize) -> Result<String> {
        let known = |name: &str| self.variable(name);
        shell::word(text, self.build.file.escape, &known).map_err(|e| self.fault(line, e))
    }

    async fn step(&mut self, info: &StepInfo, step: &Step) -> Result<Cached, Failure> {
        match &step.instruction {
            Instruction::Run(run) => return Box::pin(self.run(info, step, run)).await,
            Instruction::Copy(copy) => return Box::pin(self.copy(info, step, copy, false)).await,
            Instruction::Add(copy) => return Box::pin(self.copy(info, step, copy, true)).await,
            Instruction::Workdir(folder) => return Box::pin(self.workdir(step, folder)).await,
            _ => {}
        }
        let text = self.configure(step)?;
        self.note(text, None);
        Ok(false)
    }

    /// Instructions that only touch the configuration. Answers their line of the history.
    fn configure(&mut self, step: &Step) -> Result<String, Failure> {
        let line = step.line;
        let config = &mut self.state.config;
        Ok(match &step.instruction {
            Instruction::Env(pairs) => {
                // All see the values from before the instruction.
                let mut set = Vec::new();
                for (name, value) in pairs {
                    set.push((self.word(name, line)?, self.word(value, line)?));
                }
                let shown: Vec<String> = set.iter().map(|(n, v)| format!("{n}={v}")).collect();
                for (name, value) in set {
                    set_env(&mut self.state.config.env, &name, &value);
                }
                format!("ENV {}", shown.join(" "))
            }
            Instruction::Label(pairs) => {
                let mut shown = Vec::new();
                for (name, value) in pairs {
                    let (name, value) = (self.word(name, line)?, self.word(value, line)?);
                    shown.push(format!("{name}={value}"));
                    self.state.config.labels.insert(name, value);
                }
                format!("LABEL {}", shown.join(" "))
            }
            Instruction::Arg(arguments) => {
                let mut shown = Vec::new();
                for (name, default) in arguments {
                    let name = self.word(name, line)?;
                    let value = self.argument(&name, default.as_deref(), line)?;
                    shown.push(match &value {
                        Some(value) => format!("{name}={value}"),
                        None => name.clone(),
                    });
                    self.state.args.insert(name, value);
                }
                format!("ARG {}", shown.join(" "))
            }
            Instruction::Cmd(command) => {
                let words = words_of(command, config.shell.as_deref());
                let text = format!("CMD {}", json(&words));
                config.cmd = Some(words);
                self.cmd_is_set = true;
                text
            }
            Instruction::Entrypoint(command) => {
                let words = words_of(command, config.shell.as_deref());
                let text = format!("ENTRYPOINT {}", json(&words));
                config.entrypoint = Some(words);
                // A command that the base brought was meant for the base's entrypoint.
                if !self.cmd_is_set {
                    config.cmd = None;
                }
                text
            }
            Instruction::Expose(text) => {
                let known = |name: &str| self.variable(name);
                let ports = shell::words(text, self.build.file.escape, &known)
                    .map_err(|e| self.fault(line, e))?;
                for port in &ports {
                    let range = gantry_docker_api::ports::parse(port)
                        .map_err(|e| self.fault(line, e.message()))?;
                    for number in range.first..=range.last {
                        let key = format!("{number}/{}", range.protocol);
                        self.state
                            .config
                            .exposed_ports
                            .insert(key, serde_json::json!({}));
                    }
                }
                format!("EXPOSE [{}]", ports.join(" "))
            }
            Instruction::Healthcheck(check) => {
                config.healthcheck = Some(check.clone());
                format!(
                    "HEALTHCHECK {}",
                    step.original
                        .split_once(' ')
                        .map_or("", |(_, rest)| rest)
                        .trim()
                )
            }
            Instruction::Maintainer(name) => {
                self.state.author = Some(name.clone());
                format!("MAINTAINER {name}")
            }
            Instruction::Onbuild(text) => {
                config.on_build.get_or_insert_default().push(text.clone());
                format!("ONBUILD {text}")
            }
            Instruction::Shell(words) => {
                config.shell = Some(words.clone());
                format!("SHELL [{}]", words.join(" "))
            }
            Instruction::StopSignal(text) => {
                let signal = self.word(text, line)?;
                check_signal(&signal).map_err(|e| self.fault(line, e))?;
                self.state.config.stop_signal = Some(signal.clone());
                format!("STOPSIGNAL {signal}")
            }
            Instruction::User(text) => {
                let user = self.word(text, line)?;
                if user.is_empty() {
                    return Err(self
                        .fault(line, "USER requires exactly one argument")
                        .into());
                }
                self.state.config.user.clone_from(&user);
                format!("USER {user}")
            }
            Instruction::Volume(folders) => {
                for folder in folders {
                    let folder = self.word(folder, line)?;
                    if folder.is_empty() {
                        return Err(self
                            .fault(line, "VOLUME specified can not be an empty string")
                            .into());
                    }
                    self.state
                        .config
                        .volumes
                        .insert(folder, serde_json::json!({}));
                }
                format!("VOLUME [{}]", folders.join(" "))
            }
            Instruction::Run(_)
            | Instruction::Copy(_)
            | Instruction::Add(_)
            | Instruction::Workdir(_) => {
                return Err(Error::internal("a step with files among those without").into());
            }
        })
    }

    /// What an `ARG` is worth here: what the client gave, its default, the one before the first FROM, or the platform's.
    fn argument(&self, name: &str, default: Option<&str>, line: usize) -> Result<Option<String>> {
        let build = &self.build;
        if let Some(given) = build.request.build_args.get(name) {
            build.consume(name);
            if given.is_some() {
                return Ok(given.clone());
            }
        }
        if let Some(text) = default {
            return self.word(text, line).map(Some);
        }
        Ok(build.meta.get(name).cloned())
    }

    /// A line of the history. With a layer it has the layer's time, else that of the step before: the same build gives the same image.
    fn note(&mut self, text: String, layer: Option<&Arc<Layer>>) {
        if let Some(layer) = layer {
            let time = match self.build.epoch {
                Some(seconds) => jiff::Timestamp::from_second(seconds).ok(),
                None => jiff::Timestamp::from_nanosecond(layer.created_ns().into()).ok(),
            };
            self.state.created = time.map(|t| t.to_string());
        }
        self.state.history.push(History {
            created: self.state.created.clone(),
            created_by: Some(format!("{text} # buildkit"))
                .filter(|_| layer.is_some())
                .or(Some(text)),
            author: None,
            comment: Some("buildkit.dockerfile.v0".into()),
            empty_layer: layer.is_none(),
        });
    }

    fn key(&self, kind: &str) -> KeyHasher {
        let mut key = KeyHasher::default();
        key.part(KEY).part(kind.as_bytes());
        key.part(&(self.build.epoch.unwrap_or(-1)).to_le_bytes());
        for diff_id in self.state.fs.diff_ids() {
            key.part(diff_id.to_string().as_bytes());
        }
        key.part(b"");
        key
    }

    fn take_layer(&mut self, layer: Option<Arc<Layer>>, text: String) {
        self.note(text, layer.as_ref());
        self.state.fs.layers.extend(layer);
    }

    /// The stage's files, to look at.
    fn view(&self) -> Result<OwnedFd> {
        view(&self.state.fs, &self.build.empty)
    }

    async fn workdir(&mut self, step: &Step, folder: &str) -> Result<Cached, Failure> {
        let typed = self.word(folder, step.line)?;
        if typed.is_empty() {
            return Err(self
                .fault(step.line, "WORKDIR requires exactly one argument")
                .into());
        }
        let now = self.state.config.working_dir.clone();
        let whole = absolute(&now, &typed);
        self.state.config.working_dir.clone_from(&whole);
        let text = format!("WORKDIR {whole}");
        if whole == "/" {
            self.note(text, None);
            return Ok(false);
        }
        let path = tree::clean(&whole);
        let mut key = self.key("workdir");
        key.part(path.as_os_str().as_bytes());
        let (fs, build) = (self.state.fs.clone(), self.build.clone());
        let (layer, cached) = build
            .keyed(key.finish(), &step.original, self.no_cache, || async {
                writing(&build, fs, move |root| {
                    tree::make_folders(root, &path, (0, 0))
                        .map(drop)
                        .kind(gantry_base::ErrorKind::InvalidArgument, || {
                            format!("creating the working directory /{}", path.display())
                        })
                })
                .await
            })
            .await?;
        self.take_layer(layer, text);
        Ok(cached)
    }

    async fn copy(
        &mut self,
        info: &StepInfo,
        step: &Step,
        copy: &Copy,
        add: bool,
    ) -> Result<Cached, Failure> {
        let line = step.line;
        let word = if add { "ADD" } else { "COPY" };
        let build = self.build.clone();
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.word(source, line)?;
            if source.is_empty() {
                return Err(self
                    .fault(line, format!("{word} source must not be empty"))
                    .into());
            }
            sources.push(source);
        }
        let destination = self.word(&copy.destination, line)?;
        if destination.is_empty() {
            return Err(self.fault(line, format!("{word} requires at least two arguments, but only one was provided. Destination could not be determined.")).into());
        }
        let several = sources.len() + copy.heredocs.len() > 1;
        let is_folder = destination.ends_with('/')
            || destination.ends_with("/.")
            || destination == "."
            || destination == "..";
        if several && !is_folder {
            return Err(self
                .fault(line, format!("When using {word} with more than one source file, the destination must be a directory and end with a /"))
                .into());
        }
        let target = tree::clean(&absolute(&self.state.config.working_dir, &destination));
        let chmod = match &copy.chmod {
            Some(text) => {
                Some(Chmod::parse(&self.word(text, line)?).map_err(|e| self.fault(line, e))?)
            }
            None => None,
        };
        let owner = match &copy.chown {
            Some(text) => {
                let text = self.word(text, line)?;
                Some(self.owner(&text).map_err(|e| self.fault(line, e))?)
            }
            None => None,
        };
        let mut exclude = Vec::new();
        for pattern in &copy.exclude {
            exclude.push(self.word(pattern, line)?);
        }
        let exclude = glob::Ignore::of(exclude.iter().map(String::as_str))
            .map_err(|e| self.fault(line, e))?;
        let how = How {
            owner,
            chmod,
            exclude,
            no_xattrs: false,
        };

        let mut pieces: Vec<Piece> = Vec::new();
        let mut local = Vec::new();
        for source in sources {
            if add && fetch::is_remote(&source) {
                let fetched = fetch::add(&build, &source, copy, info).await?;
                pieces.push(fetched);
            } else {
                local.push(source);
            }
        }
        let has_local = !local.is_empty();
        if has_local {
            let source = self.source(copy.from.as_deref(), line).await?;
            // Files of the client's have no owner here.
            let how = How {
                owner: how.owner.or(source.is_context().then_some((0, 0))),
                ..how.clone()
            };
            for text in &local {
                let found = {
                    let (source, text) = (source.clone(), text.clone());
                    blocking(move || tree::find(source.root()?, &text)).await?
                };
                let found = match found {
                    Some(found) => found,
                    None if glob::has_wildcard(text) && local.len() > 1 => continue,
                    None if glob::has_wildcard(text) => {
                        return Err(Error::not_found(format!(
                            "{word} failed: no source files were specified"
                        ))
                        .into());
                    }
                    None => {
                        let shown = format!("/{}", tree::clean(text).display());
                        return Err(Error::not_found(format!(
                            "failed to calculate checksum of ref: {shown:?}: not found: {word} failed: file not found in build context or excluded by .dockerignore: stat {text}: file does not exist"
                        ))
                        .into());
                    }
                };
                for found in found {
                    let folder_of = |base: &Path| base.parent().unwrap_or(Path::new("")).to_owned();
                    let target = if copy.parents {
                        let keep = parents_of(text, &found.path);
                        target.join(if found.is_folder {
                            keep
                        } else {
                            folder_of(&keep)
                        })
                    } else {
                        target.clone()
                    };
                    pieces.push(Piece::Tree {
                        source: source.clone(),
                        found,
                        target,
                        unpack: add && copy.unpack != Some(false) && !copy.parents,
                        how: how.clone(),
                    });
                }
            }
            if pieces.is_empty() {
                return Err(Error::not_found(format!(
                    "{word} failed: no source files were specified"
                ))
                .into());
            }
        }
        for heredoc in &copy.heredocs {
            let content = self.heredoc(heredoc, line)?;
            pieces.push(Piece::Text {
                name: heredoc.name.clone(),
                content: content.into_bytes(),
                mtime: None,
            });
        }

        let text = format!(
            "{word} {}",
            step.original
                .split_once(char::is_whitespace)
                .map_or("", |(_, rest)| rest.trim())
        );
        let mut key = self.key(word);
        key.part(target.as_os_str().as_bytes())
            .part(&[
                u8::from(is_folder),
                u8::from(copy.parents),
                u8::from(copy.unpack == Some(true)),
            ])
            .part(format!("{:?} {:?} {:?}", how.owner, how.chmod, copy.exclude).as_bytes());
        let (key, pieces) = blocking(move || {
            for piece in &pieces {
                piece.hash(&mut key)?;
            }
            Ok((key.finish(), pieces))
        })
        .await?;
        let fs = self.state.fs.clone();
        let (layer, cached) = build
            .keyed(key, &step.original, self.no_cache, || async {
                writing(&build, fs, move |root| {
                    for piece in &pieces {
                        piece.write(root, &target, is_folder, &how)?;
                    }
                    Ok(())
                })
                .await
            })
            .await?;
        self.take_layer(layer, text);
        Ok(cached)
    }

    /// Where COPY and mounts take files from.
    pub(crate) async fn source(&self, from: Option<&str>, line: usize) -> Result<Source, Failure> {
        let build = &self.build;
        let Some(from) = from.filter(|from| !from.is_empty()) else {
            return Ok(Source::Context(build.context(MAIN, &self.needed).await?));
        };
        let from = self.word(from, line)?;
        if let Some(url) = build.request.contexts.get(&from) {
            return match url.strip_prefix("docker-image://") {
                Some(image) => self.image_source(image).await,
                None => Ok(Source::Context(build.context(&from, &self.needed).await?)),
            };
        }
        if let Some(other) = build.stage_named(&from, self.index, true) {
            let done = build.other_stage(other, &self.needed).await?;
            return Ok(Source::of_fs(done.fs.clone(), &build.empty));
        }
        if from.eq_ignore_ascii_case("scratch") {
            return Ok(Source::of_fs(Fs::default(), &build.empty));
        }
        if from.parse::<usize>().is_ok() {
            return Err(self
                .fault(
                    line,
                    format!(
                        "invalid stage index {from}: no stage of that number stands before this one"
                    ),
                )
                .into());
        }
        self.image_source(&from).await
    }

    async fn image_source(&self, name: &str) -> Result<Source, Failure> {
        let image = self.build.image(name, &self.build.platform).await?;
        let fs = Fs {
            base: Some(image),
            layers: Vec::new(),
        };
        Ok(Source::of_fs(fs, &self.build.empty))
    }

    pub(crate) fn heredoc(&self, heredoc: &dockerfile::Heredoc, line: usize) -> Result<String> {
        let text = heredoc.text();
        if !heredoc.expand {
            return Ok(text);
        }
        let known = |name: &str| self.variable(name);
        shell::raw(&text, self.build.file.escape, &known).map_err(|e| self.fault(line, e))
    }

    /// `user:group` of `--chown`, by name as the stage's own files have it.
    fn owner(&self, text: &str) -> Result<(u32, u32), String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let number = |text: &str| text.parse::<u32>().ok();
        if let (Some(uid), Some(gid)) = (number(user), group.map_or(number(user), number)) {
            return Ok((uid, gid));
        }
        let root = self.view().map_err(|e| e.chain())?;
        let read = |path: &str| -> Result<String, String> {
            let bytes = tree::read_small(root.as_fd(), path, PASSWD_LIMIT)
                .map_err(|e| format!("reading {path}: {e}"))?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let find = |text: &str, name: &str, field: usize| {
            text.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                (fields.first() == Some(&name))
                    .then(|| fields.get(field).and_then(|f| f.parse::<u32>().ok()))?
            })
        };
        let passwd = read("/etc/passwd")?;
        let unknown = |what: &str, name: &str| {
            format!(
                "unable to convert uid/gid chown string to host mapping: can't find {what} for {name}: no such {}: {name}",
                if what == "uid" { "user" } else { "group" }
            )
        };
        let uid = number(user)
            .or_else(|| find(&passwd, user, 2))
            .ok_or_else(|| unknown("uid", user))?;
        let gid = match group {
            None if number(user).is_some() => uid,
            None => find(&passwd, user, 3).unwrap_or(uid),
            Some(group) => number(group)
                .or(find(&read("/etc/group")?, group, 2))
                .ok_or_else(|| unknown("gid", group))?,
        };
        Ok((uid, gid))
    }

    async fn run(
        &mut self,
        info: &StepInfo,
        step: &Step,
        run: &dockerfile::Run,
    ) -> Result<Cached, Failure> {
        let line = step.line;
        let build = self.build.clone();
        let shell_words = self
            .state
            .config
            .shell
            .clone()
            .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
        let mut script = None;
        let mut argv = words_of(&run.command, Some(&shell_words));
        if !run.heredocs.is_empty()
            && let Command::Shell(command) = &run.command
        {
            let (words, file) = self.heredoc_command(command, run, &shell_words, line)?;
            (argv, script) = (words, file);
        }
        let shown = argv.join(" ");
        if run.security.as_deref() == Some("insecure") {
            return Err(Error::new(gantry_base::ErrorKind::Forbidden, "security.insecure is not allowed: builds run with the rights of an ordinary container").into());
        }
        if run.network.as_deref() == Some("host") && !build.request.allow_host_network {
            return Err(Error::new(
                gantry_base::ErrorKind::Forbidden,
                "network.host is not allowed: build with --network=host or --allow network.host",
            )
            .into());
        }
        if self.state.platform.architecture != Platform::host().architecture {
            return Err(Error::invalid(format!(
                "RUN needs programs of {}, and this machine runs {}: {} steps can only copy files",
                self.state.platform,
                Platform::host(),
                self.state.platform
            ))
            .into());
        }
        let env = self.run_env();
        let config = ContainerConfig {
            cmd: Some(argv.clone()),
            env: Some(env.clone()),
            user: self.state.config.user.clone(),
            working_dir: match self.state.config.working_dir.as_str() {
                "" => "/".into(),
                folder => absolute("/", folder),
            },
            ..ContainerConfig::default()
        };
        let mut host = build.request.host_config.clone();
        match run.network.as_deref() {
            Some("none") => host.network_mode = "none".into(),
            Some("host") => host.network_mode = "host".into(),
            _ => {}
        }
        let mut mounts = Vec::new();
        for text in &run.mounts {
            let text = self.word_unquoted(text, line)?;
            mounts.push(dockerfile::mount::parse(&text).map_err(|e| self.fault(line, e))?);
        }
        let plan = crate::mounts::plan(self, mounts, &config.working_dir, line).await?;

        let mut key = self.key("run");
        for word in &argv {
            key.part(word.as_bytes());
        }
        key.part(script.as_deref().unwrap_or_default().as_bytes());
        let counted = env
            .iter()
            .filter(|entry| !PROXIES.contains(&entry.split('=').next().unwrap_or_default()));
        for entry in counted {
            key.part(entry.as_bytes());
        }
        key.part(config.user.as_bytes())
            .part(config.working_dir.as_bytes())
            .part(host.network_mode.as_bytes())
            .part(format!("{:?}", host.extra_hosts).as_bytes());
        let key = {
            let plan = plan.clone();
            blocking(move || {
                plan.hash(&mut key)?;
                Ok(key.finish())
            })
            .await?
        };
        let history = match &run.command {
            Command::Shell(text) if run.heredocs.is_empty() => {
                format!("RUN {} {text}", shell_words.join(" "))
            }
            _ => format!("RUN {shown}"),
        };
        let mut text = history;
        let args: Vec<String> = self
            .state
            .args
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_deref()?)))
            .collect();
        if !args.is_empty() {
            text = text.replacen(
                "RUN ",
                &format!("RUN |{} {} ", args.len(), args.join(" ")),
                1,
            );
        }
        let fs = self.state.fs.clone();
        let (layer, cached) = build
            .keyed(key, &step.original, self.no_cache, || {
                let begun = Instant::now();
                let build = build.clone();
                async move {
                    let process = Process {
                        config,
                        host,
                        plan,
                        script,
                        shown,
                    };
                    let layer = Box::pin(process.run(&build, fs, info)).await?;
                    let dear = begun.elapsed() >= DEAR;
                    if dear {
                        // Together with what was made before; this step's own row comes with the next.
                        build.keep().await;
                    }
                    Ok(layer)
                }
            })
            .await?;
        self.take_layer(layer, text);
        Ok(cached)
    }

    /// Variables of a flag, whose quotes the lines' reader took already.
    fn word_unquoted(&self, text: &str, line: usize) -> Result<String> {
        let known = |name: &str| self.variable(name);
        shell::raw(text, self.build.file.escape, &known).map_err(|e| self.fault(line, e))
    }

    /// The image's variables and the arguments in effect.
    fn run_env(&self) -> Vec<String> {
        let mut env = self.state.config.env.clone();
        for (name, value) in &self.state.args {
            let is_set = env
                .iter()
                .any(|entry| entry.split('=').next() == Some(name));
            if let (Some(value), false) = (value, is_set) {
                env.push(format!("{name}={value}"));
            }
        }
        for name in PROXIES {
            if let Some(Some(value)) = self.build.request.build_args.get(name) {
                self.build.consume(name);
                if !env
                    .iter()
                    .any(|entry| entry.split('=').next() == Some(name))
                {
                    env.push(format!("{name}={value}"));
                }
            }
        }
        env
    }

    /// `RUN <<EOF`: the text is the script; with other words on the line it is the shell's own heredoc.
    fn heredoc_command(
        &self,
        command: &str,
        run: &dockerfile::Run,
        shell_words: &[String],
        line: usize,
    ) -> Result<(Vec<String>, Option<String>), Failure> {
        let mut heredocs = Vec::new();
        for heredoc in &run.heredocs {
            // The shell expands, not we: the text is the shell's.
            heredocs.push((heredoc, heredoc.content.clone()));
        }
        let alone = run.heredocs.len() == 1
            && dockerfile::lines::heredoc_word(command.trim(), self.build.file.escape).is_some();
        if let [(heredoc, _)] = &heredocs[..]
            && alone
        {
            let text = heredoc.text();
            if text.starts_with("#!") {
                let path = format!("/dev/pipes/{}", heredoc.name);
                if heredoc.name.contains('/') {
                    return Err(self
                        .fault(
                            line,
                            "the name of a heredoc with a script must not contain slashes",
                        )
                        .into());
                }
                return Ok((vec![path], Some(text)));
            }
            let mut words = shell_words.to_vec();
            words.push(text);
            return Ok((words, None));
        }
        let mut whole = command.to_owned();
        for (heredoc, content) in heredocs {
            whole.push('\n');
            whole.push_str(&content);
            whole.push_str(&heredoc.name);
        }
        let mut words = shell_words.to_vec();
        words.push(whole);
        Ok((words, None))
    }
}

/// A process of a `RUN`, ready to go.
struct Process {
    config: ContainerConfig,
    host: gantry_docker_api::create::HostConfig,
    plan: crate::mounts::Plan,
    script: Option<String>,
    shown: String,
}

impl Process {
    async fn run(
        mut self,
        build: &Arc<Build>,
        fs: Fs,
        info: &StepInfo,
    ) -> Result<Option<Arc<Layer>>, Failure> {
        let inner = &build.builder.0;
        let _place = inner
            .runs
            .acquire()
            .await
            .map_err(|_| Error::internal("the builder ended"))?;
        let mut ready = self
            .plan
            .prepare(build, &mut self.host, &mut self.config)
            .await?;
        if let Some(script) = &self.script {
            let target = self
                .config
                .cmd
                .iter()
                .flatten()
                .next()
                .cloned()
                .unwrap_or_default();
            ready.script(build, &mut self.host, &target, script)?;
        }
        let (upper, work) = (
            build.workspace.folder("upper")?,
            build.workspace.folder("work")?,
        );
        let moving = inner.moving.read().await;
        let lowers = fs.lowers(&build.empty);
        let mut targets = ready.targets(&lowers)?;
        targets.extend(
            [
                "dev",
                "proc",
                "sys",
                "etc/hosts",
                "etc/hostname",
                "etc/resolv.conf",
            ]
            .map(PathBuf::from),
        );
        let step = gantry_engine::Step {
            lowers,
            upper: upper.clone(),
            work,
            config: self.config,
            host_config: self.host,
        };
        let mut running = inner.engine.step_run(step).await.map_err(|error| Failure {
            command: Some((
                self.shown.clone(),
                if error.message().contains("no such file or directory") {
                    127
                } else {
                    126
                },
            )),
            line: None,
            error,
        })?;
        drop(moving);
        while let Some(out) = running.next().await? {
            match out {
                Out::Stdout(bytes) => build.progress.log(info, 1, &ready.masked(&bytes)).await,
                Out::Stderr(bytes) => build.progress.log(info, 2, &ready.masked(&bytes)).await,
                Out::Exited(_) => {}
            }
        }
        let exit = running.finish().await;
        drop(ready);
        if exit.code != 0 || exit.oom_killed {
            let why = if exit.oom_killed {
                " (it was killed: out of memory)"
            } else {
                ""
            };
            return Err(Failure {
                error: Error::invalid(format!(
                    "process {:?} did not complete successfully: exit code: {}{why}",
                    self.shown, exit.code
                )),
                line: None,
                command: Some((self.shown, exit.code)),
            });
        }
        let build = build.clone();
        let lowers = fs.lowers(&build.empty);
        Ok(blocking(move || {
            clean_stubs(&upper, &lowers, &targets)
                .context(|| "removing mount points of a step".into())?;
            seal(&build, &upper)
        })
        .await?)
    }
}

/// Takes away what was only made so that something could be mounted on it, and folders that were only copied up for that.
fn clean_stubs(upper: &Path, lowers: &[PathBuf], targets: &[PathBuf]) -> std::io::Result<()> {
    use gantry_linux::dirfd;
    use rustix::fs::{FileType, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    let root = open(upper)?;
    let mut roots = Vec::new();
    for lower in lowers {
        roots.push(open(lower)?);
    }
    let below = |path: &Path| {
        roots.iter().find_map(|root| {
            let parent = path.parent().unwrap_or(Path::new(""));
            let folder = dirfd::open_dir_beneath(
                root,
                parent.as_os_str().as_bytes(),
                dirfd::Symlinks::Refuse,
            )
            .ok()?;
            dirfd::stat(&folder, path.file_name()?.as_bytes()).ok()
        })
    };
    for target in targets {
        let mut path = target.clone();
        let mut is_target = true;
        while let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let Ok(folder) = dirfd::open_dir_beneath(
                &root,
                parent.as_os_str().as_bytes(),
                dirfd::Symlinks::Refuse,
            ) else {
                break;
            };
            let Ok(stat) = dirfd::stat(&folder, name.as_bytes()) else {
                let next = parent.to_owned();
                // Not made, or gone with another target: its parents may be left.
                if next.as_os_str().is_empty() {
                    break;
                }
                path = next;
                is_target = false;
                continue;
            };
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let old = below(&path);
            let stub = match &old {
                // Copied up as it was.
                Some(old) => {
                    is_folder
                        && old.st_mode == stat.st_mode
                        && (old.st_uid, old.st_gid) == (stat.st_uid, stat.st_gid)
                }
                None => {
                    is_folder
                        || is_target
                            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                            && stat.st_size == 0
                }
            };
            // A folder that the step itself made and left empty beside a mount point looks the same; only the way to the target is judged.
            if !stub || dirfd::remove(&folder, name.as_bytes(), is_folder).is_err() {
                break;
            }
            path = parent.to_owned();
            is_target = false;
        }
    }
    Ok(())
}

/// Writes files through an overlay of `fs` and makes a layer of what came.
async fn writing(
    build: &Arc<Build>,
    fs: Fs,
    write: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<()> + Send + 'static,
) -> Result<Option<Arc<Layer>>, Failure> {
    let moving = build.builder.0.moving.read().await;
    let build = build.clone();
    let layer = blocking(move || {
        let (upper, work) = (
            build.workspace.folder("upper")?,
            build.workspace.folder("work")?,
        );
        let root = detached_overlay(&Overlay {
            lowers: fs.lowers(&build.empty),
            upper: Some((upper.clone(), work)),
        })
        .context(|| "mounting the layers of a step".into())?;
        write(root.as_fd())?;
        drop(root);
        seal(&build, &upper)
    })
    .await;
    drop(moving);
    Ok(layer?)
}

fn seal(build: &Build, upper: &Path) -> Result<Option<Arc<Layer>>> {
    build
        .workspace
        .seal(upper, |out| gantry_engine::pack_layer(upper, out))
}

pub(crate) fn view(fs: &Fs, empty: &Path) -> Result<OwnedFd> {
    detached_overlay(&Overlay {
        lowers: fs.lowers(empty),
        upper: None,
    })
    .context(|| "looking into the layers of a stage".into())
}

/// Where files come from.
#[derive(Clone)]
pub(crate) enum Source {
    Context(Arc<Folder>),
    Layers(Arc<Layers>),
}

pub(crate) struct Layers {
    fs: Fs,
    empty: PathBuf,
    root: std::sync::OnceLock<OwnedFd>,
}

impl Source {
    fn of_fs(fs: Fs, empty: &Path) -> Self {
        Self::Layers(Arc::new(Layers {
            fs,
            empty: empty.to_owned(),
            root: std::sync::OnceLock::new(),
        }))
    }
    pub(crate) fn is_context(&self) -> bool {
        matches!(self, Self::Context(_))
    }
    /// The folder on this machine, when it is one.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Context(folder) => Some(folder.path().to_owned()),
            Self::Layers(layers) => match &layers.fs.lowers(&layers.empty)[..] {
                [only] => Some(only.clone()),
                _ => None,
            },
        }
    }
    pub(crate) fn root(&self) -> Result<std::os::fd::BorrowedFd<'_>> {
        match self {
            Self::Context(folder) => Ok(folder.root()),
            Self::Layers(layers) => {
                if let Some(root) = layers.root.get() {
                    return Ok(root.as_fd());
                }
                let root = view(&layers.fs, &layers.empty)?;
                Ok(layers.root.get_or_init(|| root).as_fd())
            }
        }
    }
}

/// Something that COPY or ADD writes.
pub(crate) enum Piece {
    Tree {
        source: Source,
        found: Found,
        target: PathBuf,
        /// ADD: archives are unpacked.
        unpack: bool,
        how: How,
    },
    /// A heredoc, or what a URL had.
    Text {
        name: String,
        content: Vec<u8>,
        mtime: Option<i64>,
    },
    /// A file that was fetched.
    #[expect(dead_code, reason = "nothing is fetched yet")]
    File {
        name: String,
        path: PathBuf,
        mtime: Option<i64>,
        unpack: bool,
    },
}

impl Piece {
    fn hash(&self, key: &mut KeyHasher) -> Result<()> {
        match self {
            Self::Tree {
                source,
                found,
                target,
                how,
                unpack,
            } => {
                key.part(b"tree")
                    .part(target.as_os_str().as_bytes())
                    .part(&[u8::from(*unpack)]);
                tree::hash(source.root()?, found, how, key)
            }
            Self::Text {
                name,
                content,
                mtime,
            } => {
                key.part(b"text")
                    .part(name.as_bytes())
                    .part(content)
                    .part(format!("{mtime:?}").as_bytes());
                Ok(())
            }
            Self::File {
                name,
                path,
                mtime,
                unpack,
            } => {
                key.part(b"file")
                    .part(name.as_bytes())
                    .part(format!("{mtime:?} {unpack}").as_bytes());
                let mut file =
                    std::fs::File::open(path).context(|| format!("opening {}", path.display()))?;
                let mut content = KeyHasher::default();
                let mut buffer = vec![0; 256 << 10];
                loop {
                    match std::io::Read::read(&mut file, &mut buffer)
                        .context(|| format!("reading {}", path.display()))?
                    {
                        0 => break,
                        read => drop(content.raw(&buffer[..read])),
                    }
                }
                key.part(content.finish().to_string().as_bytes());
                Ok(())
            }
        }
    }

    fn write(
        &self,
        root: std::os::fd::BorrowedFd<'_>,
        target: &Path,
        is_folder: bool,
        how: &How,
    ) -> Result<()> {
        match self {
            Self::Tree {
                source,
                found,
                target,
                unpack,
                how,
            } => {
                let from = source.root()?;
                if *unpack
                    && !found.is_folder
                    && let Some(archive) = fetch::archive_in(from, &found.path)?
                {
                    tree::make_folders(root, target, (0, 0))
                        .context(|| format!("creating /{}", target.display()))?;
                    return gantry_engine::unpack_tar(
                        root,
                        target,
                        archive,
                        how.owner.filter(|owner| *owner != (0, 0)),
                    );
                }
                tree::copy(from, found, root, target, is_folder, how)
            }
            Self::Text {
                name,
                content,
                mtime,
            } => {
                let place = if is_folder {
                    target.join(name)
                } else {
                    target.to_owned()
                };
                tree::write(root, &place, content, how, *mtime)
            }
            Self::File {
                name,
                path,
                mtime,
                unpack,
            } => {
                if *unpack {
                    let file = std::fs::File::open(path)
                        .context(|| format!("opening {}", path.display()))?;
                    if let Some(archive) = fetch::archive(file)? {
                        tree::make_folders(root, target, (0, 0))
                            .context(|| format!("creating /{}", target.display()))?;
                        return gantry_engine::unpack_tar(root, target, archive, how.owner);
                    }
                }
                let content =
                    std::fs::read(path).context(|| format!("reading {}", path.display()))?;
                let place = if is_folder {
                    target.join(name)
                } else {
                    target.to_owned()
                };
                let how = How {
                    chmod: Some(how.chmod.clone().unwrap_or(Chmod::Octal(0o600))),
                    ..how.clone()
                };
                tree::write(root, &place, &content, &how, *mtime)
            }
        }
    }
}

/// `--parents`: the part of a path that is kept; `./` in the source says where it begins.
fn parents_of(source: &str, found: &Path) -> PathBuf {
    match source.find("/./") {
        Some(at) => {
            let before = tree::clean(&source[..at]);
            found.strip_prefix(&before).unwrap_or(found).to_owned()
        }
        None => found.to_owned(),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context(|| "waiting for a build's work".into())?
}

/// A path of an instruction, relative to the working directory; clean and absolute.
pub(crate) fn absolute(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    format!("/{}", tree::clean(&whole).display())
}

fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env
        .iter_mut()
        .find(|entry| entry.split('=').next() == Some(name))
    {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

fn words_of(command: &Command, shell: Option<&[String]>) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) => {
            let mut words =
                shell.map_or_else(|| vec!["/bin/sh".into(), "-c".into()], <[String]>::to_vec);
            words.push(text.clone());
            words
        }
    }
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).expect("texts serialise")
}

fn check_signal(text: &str) -> Result<(), String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = name.starts_with("RTMIN") || name.starts_with("RTMAX");
    let number = text.parse::<u32>().is_ok_and(|n| (1..=64).contains(&n));
    if number || realtime || NAMES.contains(&name) || matches!(name, "IOT" | "CLD" | "POLL") {
        return Ok(());
    }
    Err(format!("invalid signal: {text}"))
}
