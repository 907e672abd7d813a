//! The classic way to build: `POST /build` with the context as a tar, lines of JSON back.

use crate::call::Call;
use crate::error::unsupported;
use crate::images::{blocking, publish};
use crate::reply::{Reply, json_line};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use gantry_base::{Error, Result, ResultExt};
use gantry_build::{
    Client, Failure, Folder, Outcome, Progress, Request, SshSocket, StepInfo, glob::Ignore,
};
use gantry_docker_api::create::{HostConfig, Ulimit};
use gantry_docker_api::query::Query;
use gantry_image::Credentials;
use gantry_oci::Reference;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes of output on their way to the client; then the build waits.
const AHEAD: usize = 1 << 20;
/// Output that is kept of a step whose turn to be shown has not come.
const KEPT: usize = 1 << 20;
/// A `.dockerignore` at most.
const IGNORE_LIMIT: u64 = 1 << 20;
const DOCKERFILE_LIMIT: u64 = 4 << 20;

/// What the query says, in the builder's terms.
fn request(query: &Query<'_>) -> Result<Request> {
    for (key, what) in [("squash", "squash is only supported with experimental mode")] {
        if query.is(key) {
            return Err(Error::invalid(what));
        }
    }
    if !matches!(query.get("isolation"), "" | "default") {
        return Err(Error::invalid(format!(
            "unsupported isolation: {}",
            query.get("isolation")
        )));
    }
    let map = |key: &str| -> Result<BTreeMap<String, Option<String>>> {
        match query.get(key) {
            "" => Ok(BTreeMap::new()),
            text => serde_json::from_str(text)
                .map_err(|e| Error::invalid(format!("error reading {key}")).with_source(e)),
        }
    };
    let tags = query.all("t");
    let tags = tags.iter().filter(|tag| !tag.is_empty()).map(|tag| {
        let reference = Reference::parse(tag).map_err(|e| Error::invalid(e.to_string()))?;
        if reference.digest.is_some() {
            return Err(Error::invalid("build tag cannot contain a digest"));
        }
        Ok(reference.or_latest())
    });
    let labels = map("labels")?;
    let mut host = HostConfig {
        network_mode: match query.get("networkmode") {
            "" => "default".into(),
            mode @ ("default" | "bridge" | "none" | "host") => mode.into(),
            mode => {
                return Err(Error::invalid(format!(
                    "network mode {mode:?} not supported by buildkit: a build has default, none or host"
                )));
            }
        },
        memory: query.number("memory")?.unwrap_or(0),
        memory_swap: query.number("memswap")?.unwrap_or(0),
        cpu_shares: query.number("cpushares")?.unwrap_or(0),
        cpu_period: query.number("cpuperiod")?.unwrap_or(0),
        cpu_quota: query.number("cpuquota")?.unwrap_or(0),
        cpuset_cpus: query.get("cpusetcpus").into(),
        cpuset_mems: query.get("cpusetmems").into(),
        shm_size: query.number("shmsize")?.unwrap_or(0),
        cgroup_parent: query.get("cgroupparent").into(),
        ..HostConfig::default()
    };
    if !query.get("ulimits").is_empty() {
        host.ulimits = serde_json::from_str::<Option<Vec<Ulimit>>>(query.get("ulimits"))
            .map_err(|e| Error::invalid("error reading ulimit settings").with_source(e))?
            .unwrap_or_default();
    }
    let hosts = query.all("extrahosts");
    if !hosts.is_empty() {
        host.extra_hosts = Some(hosts);
    }
    let security = query.all("securityopt");
    if !security.is_empty() {
        return Err(Error::invalid(
            "The daemon on this platform does not support setting security options on build",
        ));
    }
    Ok(Request {
        dockerfile_name: match query.get("dockerfile") {
            "" => "Dockerfile".into(),
            name => name.into(),
        },
        target: query.get("target").into(),
        build_args: map("buildargs")?,
        labels: labels
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
        no_cache: query.is("nocache"),
        pull: query.is("pull"),
        tags: tags.collect::<Result<_>>()?,
        platform: query.get("platform").into(),
        allow_host_network: host.network_mode == "host",
        host_config: host,
        ..Request::default()
    })
}

/// `X-Registry-Config`: base64 of a map from registry to credentials.
fn credentials(call: &Call) -> BTreeMap<String, Credentials> {
    let read = || -> Option<BTreeMap<String, Value>> {
        let text = call.parts.headers.get("x-registry-config")?.as_bytes();
        let bytes = URL_SAFE
            .decode(text)
            .or_else(|_| STANDARD.decode(text))
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    read()
        .unwrap_or_default()
        .into_iter()
        .map(|(host, value)| {
            let credentials = Credentials {
                username: text(&value, "username"),
                password: text(&value, "password"),
                identity_token: text(&value, "identitytoken"),
                registry_token: text(&value, "registrytoken"),
            };
            (host, credentials)
        })
        .collect()
}

pub(crate) async fn build(mut call: Call) -> Result<Reply> {
    let query = call.query();
    if query.get("version") == "2" {
        return crate::buildkit::older_build(call).await;
    }
    let mut request = request(&query)?;
    let quiet = query.is("q");
    let remote = query.get("remote").to_owned();
    if !remote.is_empty() {
        return Err(unsupported(
            "building from a URL is not supported: fetch it and build from the folder",
        ));
    }
    let credentials = credentials(&call);
    let workspace = call.engine.images().workspace()?;
    let archive = call.reader();
    let name = request.dockerfile_name.clone();
    let (folder, dockerfile) = blocking(move || unpack(workspace, archive, &name)).await?;
    request.dockerfile = dockerfile;
    // What is wrong with the file has a status; nothing was said yet.
    gantry_build::dockerfile::parse(&request.dockerfile, &request.dockerfile_name)?;

    let (out, lines) = mpsc::unbounded_channel();
    let progress = Arc::new(Lines {
        out: out.clone(),
        room: Arc::new(Semaphore::new(AHEAD)),
        state: Mutex::default(),
        quiet,
    });
    let client = Arc::new(Classic {
        folder: Arc::new(folder),
        credentials,
    });
    let (builder, engine) = (call.builds.builder().clone(), call.engine.clone());
    tokio::spawn(async move {
        let tags = request.tags.clone();
        let building = Box::pin(builder.build(request, client, progress.clone()));
        let result = tokio::select! {
            result = building => result,
            // Nobody listens any more: the build ends.
            () = out.closed() => return,
        };
        let say = |document: &Value| drop(out.send((json_line(document), None)));
        match result {
            Ok(built) => {
                if !built.unconsumed.is_empty() && !quiet {
                    say(
                        &json!({"stream": format!("[Warning] One or more build-args [{}] were not consumed\n", built.unconsumed.join(" "))}),
                    );
                }
                say(&json!({"aux": {"ID": built.id.to_string()}}));
                if quiet {
                    say(&json!({"stream": format!("{}\n", built.id)}));
                } else {
                    say(
                        &json!({"stream": format!("Successfully built {}\n", &built.id.hex()[..12])}),
                    );
                }
                for tag in &tags {
                    publish(&engine, &tag.to_string(), "tag");
                    if !quiet {
                        say(&json!({"stream": format!("Successfully tagged {tag}\n")}));
                    }
                }
            }
            Err(failure) => say(&failed(&failure)),
        }
    });
    let stream = futures_util::StreamExt::map(
        futures_util::stream::unfold(lines, async |mut lines| {
            let (line, _permit): (Bytes, Option<OwnedSemaphorePermit>) = lines.recv().await?;
            Some((line, lines))
        }),
        Ok::<_, io::Error>,
    );
    Ok(Reply::chunks("application/json", stream))
}

/// Docker's words of a step that failed.
fn failed(failure: &Failure) -> Value {
    let (code, message) = match &failure.command {
        Some((command, code)) if failure.error.message().starts_with("process ") => (
            *code,
            format!("The command '{command}' returned a non-zero code: {code}"),
        ),
        Some((_, code)) => (*code, failure.error.chain()),
        None => (1, failure.error.chain()),
    };
    json!({"errorDetail": {"code": code, "message": message}, "error": message})
}

/// The context on disk, and the Dockerfile out of it.
fn unpack(
    workspace: gantry_image::steps::Workspace,
    archive: impl Read,
    name: &str,
) -> Result<(Folder, Vec<u8>)> {
    let path = workspace.folder("context")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty())
        .context(|| format!("opening {}", path.display()))?;
    gantry_engine::unpack_tar(root.as_fd(), Path::new("/"), archive, Some((0, 0)))?;
    let read = |name: &str, limit: u64| -> Result<Option<Vec<u8>>> {
        let opened = gantry_linux::mount::open_in_root(
            &root,
            Path::new(name),
            OFlags::RDONLY | OFlags::NONBLOCK,
        );
        let file = match opened {
            Ok(file) => std::fs::File::from(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::invalid(format!("reading {name}")).with_source(e)),
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .kind(gantry_base::ErrorKind::InvalidArgument, || {
                format!("reading {name}")
            })?;
        if bytes.len() as u64 > limit {
            return Err(Error::invalid(format!(
                "{name} is larger than {limit} bytes"
            )));
        }
        Ok(Some(bytes))
    };
    let dockerfile = match read(name, DOCKERFILE_LIMIT)? {
        None if name == "Dockerfile" => read("dockerfile", DOCKERFILE_LIMIT)?,
        found => found,
    };
    let dockerfile = dockerfile
        .ok_or_else(|| Error::invalid(format!("Cannot locate specified Dockerfile: {name}")))?;
    if dockerfile.is_empty() {
        return Err(Error::invalid(format!(
            "the Dockerfile ({name}) cannot be empty"
        )));
    }
    // The client leaves out what the file names, but must send the two files themselves.
    if let Some(text) = read(".dockerignore", IGNORE_LIMIT)? {
        let ignore = Ignore::parse(&String::from_utf8_lossy(&text))
            .map_err(|e| Error::invalid(format!("error reading .dockerignore: {e}")))?;
        for file in [".dockerignore", name] {
            if ignore.excludes(file) {
                let _ = rustix::fs::unlinkat(&root, file, rustix::fs::AtFlags::empty());
            }
        }
    }
    Ok((Folder::open(path, Box::new(workspace))?, dockerfile))
}

/// A client that said everything in its request.
struct Classic {
    folder: Arc<Folder>,
    credentials: BTreeMap<String, Credentials>,
}

impl Client for Classic {
    fn context<'a>(
        &'a self,
        name: &'a str,
        _wanted: Option<&'a [String]>,
    ) -> BoxFuture<'a, Result<Arc<Folder>>> {
        Box::pin(async move {
            if name == gantry_build::client::MAIN {
                return Ok(self.folder.clone());
            }
            Err(Error::invalid(format!(
                "named context {name}: build with BuildKit (DOCKER_BUILDKIT=1)"
            )))
        })
    }
    fn secret<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async { Ok(None) })
    }
    fn ssh<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<Option<SshSocket>>> {
        Box::pin(async { Ok(None) })
    }
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Option<Credentials>> {
        let found = self.credentials.get(host).or_else(|| {
            (host == "docker.io")
                .then(|| self.credentials.get("https://index.docker.io/v1/"))
                .flatten()
        });
        Box::pin(async move { found.cloned() })
    }
}

type Line = (Bytes, Option<OwnedSemaphorePermit>);

/// Steps run side by side and are shown one after another.
struct Lines {
    out: mpsc::UnboundedSender<Line>,
    room: Arc<Semaphore>,
    state: Mutex<Shown>,
    quiet: bool,
}

#[derive(Default)]
struct Shown {
    /// The step that is being shown.
    now: usize,
    waiting: BTreeMap<usize, Waiting>,
    /// Half a character at the end of a piece of output.
    halves: BTreeMap<(usize, u8), Vec<u8>>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<Bytes>,
    bytes: usize,
    clipped: bool,
    ended: bool,
}

fn stream(text: &str) -> Bytes {
    json_line(&json!({"stream": text}))
}

impl Lines {
    fn say(&self, id: usize, lines: impl IntoIterator<Item = Bytes>, ends: bool) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.now != id {
            let waiting = state.waiting.entry(id).or_default();
            for line in lines {
                if waiting.bytes + line.len() > KEPT {
                    if !std::mem::replace(&mut waiting.clipped, true) {
                        waiting.lines.push(stream("[output clipped]\n"));
                    }
                    continue;
                }
                waiting.bytes += line.len();
                waiting.lines.push(line);
            }
            waiting.ended |= ends;
            return;
        }
        for line in lines {
            let _ = self.out.send((line, None));
        }
        if !ends {
            return;
        }
        loop {
            state.now += 1;
            let now = state.now;
            let Some(next) = state.waiting.remove(&now) else {
                return;
            };
            for line in next.lines {
                let _ = self.out.send((line, None));
            }
            if !next.ended {
                return;
            }
        }
    }

    /// Whole characters; what is cut at the end waits for the next piece.
    fn text(&self, key: (usize, u8), bytes: &[u8]) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whole = state.halves.remove(&key).unwrap_or_default();
        whole.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&whole) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => whole.len(),
        };
        let rest = whole.split_off(cut);
        if !rest.is_empty() {
            state.halves.insert(key, rest);
        }
        String::from_utf8_lossy(&whole).into_owned()
    }
}

impl Progress for Lines {
    fn begin(&self, step: &StepInfo) {
        let text = if step.trigger {
            format!("# Executing build trigger: {}\n", step.text)
        } else {
            format!("Step {}/{} : {}", step.id + 1, step.total, step.text)
        };
        let lines = if step.trigger {
            vec![stream(&text)]
        } else {
            vec![stream(&text), stream("\n")]
        };
        self.say(step.id, lines, false);
    }
    fn log<'a>(&'a self, step: &'a StepInfo, kind: u8, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.quiet {
                return;
            }
            let text = self.text((step.id, kind), bytes);
            if text.is_empty() {
                return;
            }
            let line = match kind {
                // Docker shows errors in red.
                2 => stream(&format!("\u{1b}[91m{text}\u{1b}[0m")),
                _ => stream(&text),
            };
            let is_now = self
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .now
                == step.id;
            if is_now {
                let size = u32::try_from(line.len().min(AHEAD)).unwrap_or(1);
                let permit = self.room.clone().acquire_many_owned(size).await.ok();
                let _ = self.out.send((line, permit));
            } else {
                self.say(step.id, [line], false);
            }
        })
    }
    fn end(&self, step: &StepInfo, outcome: &Outcome) {
        let mut lines = Vec::new();
        if outcome.cached {
            lines.push(stream(" ---> Using cache\n"));
        }
        if let Some(image) = &outcome.image {
            lines.push(stream(&format!(" ---> {}\n", &image.hex()[..12])));
        }
        // The FROM may have triggers behind it, which are shown with it: the next step ends it.
        self.say(step.id, lines, !step.trigger);
    }
}

/// `docker builder prune`.
pub(crate) async fn prune(call: Call) -> Result<Reply> {
    let filters = call.filters(&[
        "until",
        "id",
        "parent",
        "type",
        "description",
        "inuse",
        "shared",
        "private",
        "unused-for",
    ])?;
    let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    let mut before = None;
    for name in ["until", "unused-for"] {
        if let Some(text) = filters.values(name).first() {
            let span = gantry_docker_api::query::duration(text)
                .ok_or_else(|| Error::invalid(format!("invalid filter '{name}={text}'")))?;
            before = Some(now - span);
        }
    }
    let builder = call.builds.builder().clone();
    let (keys, freed) = blocking(move || builder.prune(before)).await?;
    let keys: Vec<String> = keys
        .into_iter()
        .map(|key| key.chars().take(25).collect())
        .collect();
    Ok(Reply::json(&json!({
        "CachesDeleted": crate::containers::some_if_any(keys),
        "SpaceReclaimed": freed,
    })))
}

/// A classic build ends with its connection, a BuildKit one with its session: there is nothing to cancel by name.
pub(crate) async fn cancel(call: Call) -> Result<Reply> {
    let id = call.query().get("id").to_owned();
    if id.is_empty() {
        return Err(Error::invalid("build ID not provided"));
    }
    Ok(Reply::no_content())
}
