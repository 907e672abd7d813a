//! Our services: `moby.buildkit.v1.Control` and the gateway `LLBBridge` of the built-in front-end.
//!
//! ```text
//! Control.Solve(ref, front-end)   builds, exports, answers
//! Control.Solve(ref)              exports what LLBBridge.Solve of the same ref built, once LLBBridge.Return says so
//! Control.Status(ref)             the vertices of either
//! ```

use super::progress::{Message, Vertices};
use super::session::{Remote, Session, failed};
use super::{Builds, Joined, MESSAGE_LIMIT, export};
use bollard_buildkit_proto::moby::buildkit::v1::control_server::{Control, ControlServer};
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::{
    LlbBridge, LlbBridgeServer,
};
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{self, result};
use bollard_buildkit_proto::moby::buildkit::v1::{self as wire, apicaps::ApiCap, types};
use bollard_buildkit_proto::pb;
use futures_util::Stream;
use gantry_base::{Error, Result};
use gantry_build::glob::Ignore;
use gantry_build::{Built, Failure, Request};
use gantry_docker_api::create::{HostConfig, Ulimit};
use gantry_oci::Reference;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tonic::{Response, Status};

/// Names the solve that a gateway's call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
const DOCKERFILE_LIMIT: u64 = 4 << 20;
/// The version of BuildKit whose protocol this is.
const VERSION: &str = "v0.13.0";

/// How long a build that is over is kept for who has yet to ask for its status; clients give up after three seconds.
const STATUS_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One solve: its status, and what a front-end left for it.
pub(super) struct Solve {
    pub(super) vertices: Arc<Vertices>,
    messages: Mutex<Option<mpsc::UnboundedReceiver<Message>>>,
    /// What `Control.Solve` said, for the gateway's calls.
    asked: watch::Sender<Option<Arc<wire::SolveRequest>>>,
    built: Mutex<Option<Arc<Built>>>,
    /// `LLBBridge.Return`: an error text, or done.
    returned: watch::Sender<Option<Result<(), String>>>,
    /// Over: the status ends after what is on its way.
    over: watch::Sender<bool>,
}

impl Solve {
    pub(super) fn new(id: &str) -> Self {
        let (vertices, messages) = Vertices::new(id);
        Self {
            vertices: Arc::new(vertices),
            messages: Mutex::new(Some(messages)),
            asked: watch::Sender::new(None),
            built: Mutex::default(),
            returned: watch::Sender::new(None),
            over: watch::Sender::new(false),
        }
    }

    /// The vertices as they come; `None` when somebody has them already.
    pub(super) fn status(&self) -> Option<Items<wire::StatusResponse>> {
        let messages = self
            .messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let over = self.over.subscribe();
        Some(Box::pin(futures_util::stream::unfold(
            (messages, over),
            async |(mut messages, mut over)| {
                let next = tokio::select! {
                    biased;
                    message = messages.recv() => message,
                    _ = over.wait_for(|over| *over) => messages.try_recv().ok(),
                };
                let (status, _permit) = next?;
                Some((Ok(status), (messages, over)))
            },
        )))
    }

    fn status_is_taken(&self) -> bool {
        let messages = self.messages.lock();
        messages.unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }
}

#[derive(Clone)]
struct Services(Builds);

/// Serves one connection until the client closes it.
pub(super) async fn serve(builds: Builds, io: Joined) {
    let services = Services(builds);
    let control = ControlServer::new(services.clone()).max_decoding_message_size(MESSAGE_LIMIT);
    let bridge = LlbBridgeServer::new(services).max_decoding_message_size(MESSAGE_LIMIT);
    let once = futures_util::stream::iter([Ok::<_, std::io::Error>(io)]);
    let serving = tonic::transport::Server::builder()
        .add_service(control)
        .add_service(bridge)
        .serve_with_incoming(once)
        .await;
    if let Err(error) = serving {
        tracing::debug!(%error, "a build connection");
    }
}

fn status(error: &Error) -> Status {
    let text = error.chain();
    match error.kind() {
        gantry_base::ErrorKind::NotFound => Status::not_found(text),
        gantry_base::ErrorKind::InvalidArgument => Status::unknown(text),
        gantry_base::ErrorKind::NotImplemented => Status::unimplemented(text),
        gantry_base::ErrorKind::Unavailable => Status::unavailable(text),
        _ => Status::unknown(text),
    }
}

fn worker() -> types::WorkerRecord {
    types::WorkerRecord {
        id: "gantry".into(),
        labels: HashMap::from([
            (
                "org.mobyproject.buildkit.worker.executor".to_owned(),
                "containers".to_owned(),
            ),
            (
                "org.mobyproject.buildkit.worker.moby.host-gateway-ip".to_owned(),
                String::new(),
            ),
        ]),
        platforms: vec![pb::Platform {
            architecture: crate::images::architecture().into(),
            os: "linux".into(),
            ..pb::Platform::default()
        }],
        buildkit_version: Some(version()),
        ..types::WorkerRecord::default()
    }
}

fn version() -> types::BuildkitVersion {
    types::BuildkitVersion {
        package: "github.com/moby/buildkit".into(),
        version: VERSION.into(),
        revision: String::new(),
    }
}

/// What a front-end's options say, in the builder's terms.
pub(super) fn request(
    attributes: &HashMap<String, String>,
    entitlements: &[String],
) -> Result<Request> {
    let get = |key: &str| attributes.get(key).map_or("", String::as_str);
    let after = |prefix: &str| -> BTreeMap<String, String> {
        let found = attributes
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
        found.collect()
    };
    let list = |key: &str| -> Vec<String> {
        get(key)
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mut host = HostConfig {
        network_mode: match get("force-network-mode") {
            "" => "default".into(),
            mode @ ("default" | "none" | "host") => mode.into(),
            mode => {
                return Err(Error::invalid(format!(
                    "network mode {mode:?} not supported by buildkit"
                )));
            }
        },
        shm_size: get("shm-size").parse().unwrap_or(0),
        cgroup_parent: get("cgroup-parent").into(),
        ..HostConfig::default()
    };
    let hosts: Vec<String> = list("add-hosts")
        .iter()
        .map(|entry| entry.replacen('=', ":", 1))
        .collect();
    if !hosts.is_empty() {
        host.extra_hosts = Some(hosts);
    }
    for entry in list("ulimit") {
        let bad = || Error::invalid(format!("invalid ulimit: {entry}"));
        let (name, values) = entry.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        host.ulimits.push(Ulimit {
            name: name.into(),
            soft: soft.parse().map_err(|_| bad())?,
            hard: hard.parse().map_err(|_| bad())?,
        });
    }
    let granted = |name: &str| entitlements.iter().any(|given| given == name);
    let no_cache = attributes.get("no-cache");
    Ok(Request {
        dockerfile_name: match get("filename") {
            "" => "Dockerfile".into(),
            name => name.into(),
        },
        target: get("target").into(),
        build_args: after("build-arg:")
            .into_iter()
            .map(|(name, value)| (name, Some(value)))
            .collect(),
        labels: after("label:"),
        no_cache: no_cache.is_some_and(String::is_empty),
        no_cache_stages: list("no-cache"),
        pull: get("image-resolve-mode") == "pull",
        platform: get("platform").into(),
        allow_host_network: host.network_mode == "host" || granted("network.host"),
        host_config: host,
        contexts: after("context:"),
        ..Request::default()
    })
}

impl Builds {
    /// Fetches the Dockerfile from the session and builds.
    pub(super) async fn run(
        &self,
        session: Arc<Session>,
        mut request: Request,
        attributes: &HashMap<String, String>,
        vertices: Arc<Vertices>,
    ) -> Result<Built, Failure> {
        let workspace = self.builder().engine().images().workspace()?;
        let name = request.dockerfile_name.clone();
        let key = "definition";
        vertices.start(
            key,
            &format!("[internal] load build definition from {name}"),
        );
        let mut given = BTreeMap::new();
        let main = attributes.get("context").map_or("", String::as_str);
        let is_local = matches!(main, "" | "context") || main.starts_with("local:");
        let folder = workspace.folder("dockerfile")?;
        let loaded = if is_local {
            let local = attributes
                .get("dockerfilekey")
                .map_or("dockerfile", String::as_str);
            let mut wanted = vec![name.clone(), format!("{name}.dockerignore")];
            if name == "Dockerfile" {
                wanted.push("dockerfile".into());
            }
            session
                .fetch(local, Some(&wanted), &[], &folder)
                .await
                .map(|()| folder.clone())
        } else {
            let fetched = self.builder().fetch_context(main, &workspace).await;
            fetched.map(|context| {
                let path = context.path().to_owned();
                given.insert(gantry_build::client::MAIN.to_owned(), context);
                path
            })
        };
        let read = loaded.and_then(|path| read_dockerfile(&path, &name));
        let (dockerfile, own_ignore) = match read {
            Ok(found) => {
                vertices.complete(key, false, None);
                found
            }
            Err(error) => {
                vertices.complete(key, false, Some(error.chain()));
                return Err(error.into());
            }
        };
        request.dockerfile = dockerfile;
        let mut ignore = own_ignore;
        if ignore.is_none() && is_local {
            let key = "ignore";
            vertices.start(key, "[internal] load .dockerignore");
            let folder = workspace.folder("ignore")?;
            session
                .fetch("context", Some(&[".dockerignore".to_owned()]), &[], &folder)
                .await?;
            ignore = small(&folder, ".dockerignore")?;
            vertices.complete(key, false, None);
        }
        let ignore: Vec<String> = match &ignore {
            Some(text) => {
                let text = String::from_utf8_lossy(text);
                Ignore::parse(&text)
                    .map_err(|e| Error::invalid(format!("error parsing .dockerignore: {e}")))?;
                text.lines()
                    .filter(|line| !line.starts_with('#'))
                    .map(|line| line.trim().to_owned())
                    .filter(|line| !line.is_empty())
                    .map(|line| rooted(&line))
                    .collect()
            }
            None => Vec::new(),
        };
        let client = Arc::new(Remote {
            session: session.clone(),
            workspace,
            ignore,
            given,
            run_dir: self.builder().engine().settings().run_dir.join("build/ssh"),
        });
        tokio::select! {
            built = Box::pin(self.builder().build(request, client, vertices)) => built,
            () = session.ended() => Err(Error::new(gantry_base::ErrorKind::Unavailable, "context canceled: the client went away").into()),
        }
    }
}

/// `/a` in a `.dockerignore` is `a`.
fn rooted(line: &str) -> String {
    match line.strip_prefix('!') {
        Some(rest) => format!("!{}", rest.trim().trim_start_matches('/')),
        None => line.trim_start_matches('/').to_owned(),
    }
}

fn small(folder: &std::path::Path, name: &str) -> Result<Option<Vec<u8>>> {
    use rustix::fs::{Mode, OFlags};
    use std::io::Read;
    let bad = |e: std::io::Error| Error::invalid(format!("reading {name}")).with_source(e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty()).map_err(|e| bad(e.into()))?;
    let file = match gantry_linux::mount::open_in_root(
        &root,
        std::path::Path::new(name),
        OFlags::RDONLY | OFlags::NONBLOCK,
    ) {
        Ok(file) => std::fs::File::from(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(bad(e)),
    };
    let mut bytes = Vec::new();
    file.take(DOCKERFILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(bad)?;
    if bytes.len() as u64 > DOCKERFILE_LIMIT {
        return Err(Error::invalid(format!("{name} is larger than 4 MiB")));
    }
    Ok(Some(bytes))
}

fn read_dockerfile(folder: &std::path::Path, name: &str) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let found = match small(folder, name)? {
        None if name == "Dockerfile" => small(folder, "dockerfile")?,
        found => found,
    };
    let dockerfile = found.ok_or_else(|| {
        Error::invalid(format!(
            "failed to read dockerfile: open {name}: no such file or directory"
        ))
    })?;
    Ok((dockerfile, small(folder, &format!("{name}.dockerignore"))?))
}

/// `name` of an exporter: several, separated by commas.
pub(super) fn tags(names: &str) -> Result<Vec<Reference>> {
    let names = names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let reference = Reference::parse(name).map_err(|e| Error::invalid(e.to_string()))?;
            if reference.digest.is_some() {
                return Err(Error::invalid("build tag cannot contain a digest"));
            }
            Ok(reference.or_latest())
        })
        .collect()
}

/// The outputs of a solve: type and attributes.
fn exporters(request: &wire::SolveRequest) -> Vec<(String, HashMap<String, String>)> {
    if !request.exporters.is_empty() {
        return request
            .exporters
            .iter()
            .map(|e| (e.r#type.clone(), e.attrs.clone()))
            .collect();
    }
    if request.exporter_deprecated.is_empty() {
        return Vec::new();
    }
    vec![(
        request.exporter_deprecated.clone(),
        request.exporter_attrs_deprecated.clone(),
    )]
}

impl Services {
    /// Builds what a front-end was asked for; the names come from the solve's exporters.
    async fn front_end(
        &self,
        solve: &Solve,
        asked: &wire::SolveRequest,
        name: &str,
        attributes: &HashMap<String, String>,
    ) -> Result<Arc<Built>, Status> {
        match name {
            "dockerfile.v0" => {}
            "gateway.v0" => {
                return Err(Status::unimplemented(
                    "external front-ends are not run: the built-in dockerfile.v0 is",
                ));
            }
            other => return Err(Status::not_found(format!("frontend {other} not found"))),
        }
        let session = self
            .0
            .session(&asked.session)
            .await
            .map_err(|e| status(&e))?;
        let mut request = request(attributes, &asked.entitlements).map_err(|e| status(&e))?;
        for (kind, attributes) in exporters(asked) {
            if matches!(kind.as_str(), "moby" | "image" | "docker" | "oci") {
                let names = attributes.get("name").map_or("", String::as_str);
                request.tags.extend(tags(names).map_err(|e| status(&e))?);
            }
        }
        let running = self
            .0
            .run(session, request, attributes, solve.vertices.clone());
        let built = Box::pin(running).await;
        match built {
            Ok(built) => Ok(Arc::new(built)),
            Err(failure) => Err(status(&failure.error)),
        }
    }

    async fn solve_whole(
        &self,
        solve: &Solve,
        asked: Arc<wire::SolveRequest>,
    ) -> Result<wire::SolveResponse, Status> {
        let built = if asked.frontend.is_empty() {
            if asked
                .definition
                .as_ref()
                .is_some_and(|definition| !definition.def.is_empty())
            {
                return Err(Status::unimplemented(
                    "only the front-end dockerfile.v0 is built, no LLB of a client's own",
                ));
            }
            let session = self
                .0
                .session(&asked.session)
                .await
                .map_err(|e| status(&e))?;
            let mut returned = solve.returned.subscribe();
            let outcome = tokio::select! {
                outcome = returned.wait_for(Option::is_some) => outcome.map(|outcome| outcome.clone()).ok().flatten(),
                () = session.ended() => None,
            };
            match outcome {
                Some(Ok(())) => {}
                Some(Err(text)) => return Err(Status::unknown(text)),
                None => return Err(Status::cancelled("context canceled: the client went away")),
            }
            solve
                .built
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        } else {
            Some(
                self.front_end(solve, &asked, &asked.frontend, &asked.frontend_attrs)
                    .await?,
            )
        };
        let mut answer = HashMap::new();
        if let Some(built) = built {
            let session = self
                .0
                .session(&asked.session)
                .await
                .map_err(|e| status(&e))?;
            for (kind, attributes) in exporters(&asked) {
                let done = export::export(
                    &self.0,
                    &session,
                    &solve.vertices,
                    &built,
                    &kind,
                    &attributes,
                )
                .await;
                answer.extend(done.map_err(|e| status(&e))?);
            }
        }
        Ok(wire::SolveResponse {
            exporter_response: answer,
        })
    }
}

#[tonic::async_trait]
impl Control for Services {
    async fn solve(
        &self,
        request: tonic::Request<wire::SolveRequest>,
    ) -> Result<Response<wire::SolveResponse>, Status> {
        let asked = Arc::new(request.into_inner());
        let solve = self.0.solve(&asked.r#ref).map_err(|e| status(&e))?;
        solve.asked.send_replace(Some(asked.clone()));
        let result = Box::pin(self.solve_whole(&solve, asked.clone())).await;
        solve.end();
        if solve.status_is_taken() {
            self.0.remove_solve(&asked.r#ref);
        } else {
            // A build out of the cache may be over before its status is asked for, on a call of its own: who asks then must hear
            // that it is over, and not wait for a build that never comes.
            let (builds, id) = (self.0.clone(), asked.r#ref.clone());
            tokio::spawn(async move {
                tokio::time::sleep(STATUS_WAIT).await;
                builds.remove_solve(&id);
            });
        }
        result.map(Response::new)
    }

    type StatusStream = Items<wire::StatusResponse>;
    async fn status(
        &self,
        request: tonic::Request<wire::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let solve = self
            .0
            .solve(&request.into_inner().r#ref)
            .map_err(|e| status(&e))?;
        let items = solve
            .status()
            .ok_or_else(|| Status::already_exists("the status of this build is read already"))?;
        Ok(Response::new(items))
    }

    type SessionStream = Items<wire::BytesMessage>;
    async fn session(
        &self,
        _request: tonic::Request<tonic::Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented(
            "sessions are opened by POST /session",
        ))
    }

    async fn info(
        &self,
        _request: tonic::Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        Ok(Response::new(wire::InfoResponse {
            buildkit_version: Some(version()),
        }))
    }

    async fn list_workers(
        &self,
        _request: tonic::Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        Ok(Response::new(wire::ListWorkersResponse {
            record: vec![worker()],
        }))
    }

    async fn disk_usage(
        &self,
        _request: tonic::Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let record = self.0.builder().engine().images().steps();
        Ok(Response::new(wire::DiskUsageResponse {
            record: record
                .into_iter()
                .map(|(key, row)| usage(&key, &row))
                .collect(),
        }))
    }

    type PruneStream = Items<wire::UsageRecord>;
    async fn prune(
        &self,
        request: tonic::Request<wire::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let before = (request.keep_duration > 0).then(|| {
            i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
                - request.keep_duration
        });
        let known: HashMap<_, _> = self
            .0
            .builder()
            .engine()
            .images()
            .steps()
            .into_iter()
            .collect();
        let builder = self.0.builder().clone();
        let pruned = crate::images::blocking(move || builder.prune(before))
            .await
            .map_err(|e| status(&e))?;
        let gone = pruned
            .0
            .into_iter()
            .filter_map(move |key| known.get(&key).map(|row| Ok(usage(&key, row))));
        Ok(Response::new(Box::pin(futures_util::stream::iter(
            gone.collect::<Vec<_>>(),
        ))))
    }

    type ListenBuildHistoryStream = Items<wire::BuildHistoryEvent>;
    async fn listen_build_history(
        &self,
        _request: tonic::Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented("no history of builds is kept"))
    }

    async fn update_build_history(
        &self,
        _request: tonic::Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented("no history of builds is kept"))
    }
}

fn timestamp(ns: i64) -> bollard_buildkit_proto::google::protobuf::Timestamp {
    bollard_buildkit_proto::google::protobuf::Timestamp {
        seconds: ns.div_euclid(1_000_000_000),
        nanos: i32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

fn usage(key: &str, row: &gantry_image::steps::StepRow) -> wire::UsageRecord {
    wire::UsageRecord {
        id: key.chars().take(25).collect(),
        size: i64::try_from(row.size).unwrap_or(i64::MAX),
        created_at: Some(timestamp(row.created_ns)),
        last_used_at: Some(timestamp(row.used_ns)),
        usage_count: i64::try_from(row.uses).unwrap_or(i64::MAX),
        description: row.what.clone(),
        record_type: "regular".into(),
        ..wire::UsageRecord::default()
    }
}

fn capability(id: &str) -> ApiCap {
    ApiCap {
        id: id.to_owned(),
        enabled: true,
        ..ApiCap::default()
    }
}

impl Services {
    fn solve_of<T>(&self, request: &tonic::Request<T>) -> Result<Arc<Solve>, Status> {
        let id = request
            .metadata()
            .get(BUILD_ID)
            .and_then(|value| value.to_str().ok());
        let id = id.ok_or_else(|| Status::invalid_argument("no build ID found in metadata"))?;
        self.0.solve(id).map_err(|e| status(&e))
    }
}

fn only_dockerfiles<T>() -> Result<T, Status> {
    Err(Status::unimplemented(
        "the built-in front-end builds Dockerfiles; it does not serve files or containers to clients",
    ))
}

#[tonic::async_trait]
impl LlbBridge for Services {
    async fn ping(
        &self,
        _request: tonic::Request<frontend::PingRequest>,
    ) -> Result<Response<frontend::PongResponse>, Status> {
        let known = [
            "solve.base",
            "solve.inlinereturn",
            "return",
            "returnmap",
            "proto.refarray",
            "gateway.solve.metadata",
            "gateway.evaluate.solve",
        ];
        Ok(Response::new(frontend::PongResponse {
            frontend_api_caps: known.iter().map(|id| capability(id)).collect(),
            llb_caps: Vec::new(),
            workers: vec![worker()],
        }))
    }

    async fn solve(
        &self,
        request: tonic::Request<frontend::SolveRequest>,
    ) -> Result<Response<frontend::SolveResponse>, Status> {
        let solve = self.solve_of(&request)?;
        let request = request.into_inner();
        let mut asked = solve.asked.subscribe();
        let asked = match tokio::time::timeout(super::SESSION_WAIT, asked.wait_for(Option::is_some))
            .await
        {
            Ok(Ok(asked)) => asked.clone(),
            _ => None,
        };
        let asked = asked.ok_or_else(|| Status::not_found("no such job"))?;
        let built = self
            .front_end(&solve, &asked, &request.frontend, &request.frontend_opt)
            .await?;
        let id = built.id.to_string();
        *solve.built.lock().unwrap_or_else(PoisonError::into_inner) = Some(built);
        Ok(Response::new(frontend::SolveResponse {
            r#ref: String::new(),
            result: Some(frontend::Result {
                result: Some(result::Result::Ref(frontend::Ref { id, def: None })),
                ..frontend::Result::default()
            }),
        }))
    }

    async fn r#return(
        &self,
        request: tonic::Request<frontend::ReturnRequest>,
    ) -> Result<Response<frontend::ReturnResponse>, Status> {
        let solve = self.solve_of(&request)?;
        let outcome = match request.into_inner().error {
            Some(error) if error.code != 0 => Err(error.message),
            _ => Ok(()),
        };
        solve.returned.send_replace(Some(outcome));
        Ok(Response::new(frontend::ReturnResponse {}))
    }

    async fn evaluate(
        &self,
        _request: tonic::Request<frontend::EvaluateRequest>,
    ) -> Result<Response<frontend::EvaluateResponse>, Status> {
        // What was solved was built.
        Ok(Response::new(frontend::EvaluateResponse {}))
    }
    async fn warn(
        &self,
        _request: tonic::Request<frontend::WarnRequest>,
    ) -> Result<Response<frontend::WarnResponse>, Status> {
        Ok(Response::new(frontend::WarnResponse {}))
    }
    async fn inputs(
        &self,
        _request: tonic::Request<frontend::InputsRequest>,
    ) -> Result<Response<frontend::InputsResponse>, Status> {
        Ok(Response::new(frontend::InputsResponse::default()))
    }
    async fn resolve_image_config(
        &self,
        _request: tonic::Request<frontend::ResolveImageConfigRequest>,
    ) -> Result<Response<frontend::ResolveImageConfigResponse>, Status> {
        only_dockerfiles()
    }
    async fn resolve_source_meta(
        &self,
        _request: tonic::Request<frontend::ResolveSourceMetaRequest>,
    ) -> Result<Response<frontend::ResolveSourceMetaResponse>, Status> {
        only_dockerfiles()
    }
    async fn read_file(
        &self,
        _request: tonic::Request<frontend::ReadFileRequest>,
    ) -> Result<Response<frontend::ReadFileResponse>, Status> {
        only_dockerfiles()
    }
    async fn read_dir(
        &self,
        _request: tonic::Request<frontend::ReadDirRequest>,
    ) -> Result<Response<frontend::ReadDirResponse>, Status> {
        only_dockerfiles()
    }
    async fn stat_file(
        &self,
        _request: tonic::Request<frontend::StatFileRequest>,
    ) -> Result<Response<frontend::StatFileResponse>, Status> {
        only_dockerfiles()
    }
    async fn new_container(
        &self,
        _request: tonic::Request<frontend::NewContainerRequest>,
    ) -> Result<Response<frontend::NewContainerResponse>, Status> {
        only_dockerfiles()
    }
    async fn release_container(
        &self,
        _request: tonic::Request<frontend::ReleaseContainerRequest>,
    ) -> Result<Response<frontend::ReleaseContainerResponse>, Status> {
        only_dockerfiles()
    }
    type ExecProcessStream = Items<frontend::ExecMessage>;
    async fn exec_process(
        &self,
        _request: tonic::Request<tonic::Streaming<frontend::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        only_dockerfiles()
    }
    async fn read_file_container(
        &self,
        _request: tonic::Request<frontend::ReadFileRequest>,
    ) -> Result<Response<frontend::ReadFileResponse>, Status> {
        only_dockerfiles()
    }
    async fn read_dir_container(
        &self,
        _request: tonic::Request<frontend::ReadDirRequest>,
    ) -> Result<Response<frontend::ReadDirResponse>, Status> {
        only_dockerfiles()
    }
    async fn stat_file_container(
        &self,
        _request: tonic::Request<frontend::StatFileRequest>,
    ) -> Result<Response<frontend::StatFileResponse>, Status> {
        only_dockerfiles()
    }
}

/// For the exporters: an answer of the client's that says no.
pub(super) fn refused(what: &str, status: &Status) -> Error {
    failed(what, status)
}
