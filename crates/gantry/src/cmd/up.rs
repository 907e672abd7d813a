//! `gantry up`: locks, sockets, engine, Docker face, "ready".

use super::{demo, detach};
use crate::args::{DirArgs, UpArgs};
use crate::client::Client;
use crate::front::{self, Front};
use crate::instance::{Daemon, KUBECONFIG, Locks};
use crate::listener::Listener;
use crate::settings::Settings;
use crate::{logging, runtime_program};
use anyhow::{Context, bail};
use gantry_apiserver::Api;
use gantry_base::file::{Durability, atomic_write};
use gantry_engine::Engine;
use gantry_linux::program::start_ticks;
use gantry_store::embedded::Embedded;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Requests that are under way when the daemon is told to end get this long to finish.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at other programs' firewalls.
const REPAIR_INTERVAL: Duration = Duration::from_secs(10);
/// Blocking work (archives, file trees) at one time.
const BLOCKING_THREADS: usize = 64;

pub fn run(dirs: &DirArgs, up: &UpArgs) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let settings = Settings::resolve(dirs, up)?;
    if up.detach && !up.detached {
        return detach::run(&settings, up);
    }
    let mut talk = Talk::start(up.detached)?;
    match serve(began, &settings, up, &mut talk) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            talk.line(&format!("gantry: {}", crate::sentence(&error)));
            if up.detached {
                tracing::error!("{}", crate::sentence(&error));
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn serve(began: Instant, settings: &Settings, up: &UpArgs, talk: &mut Talk) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("gantry up needs root in this build; use sudo");
    }
    // Modes are meant as they are written, whatever shell started us.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    raise_file_limit();
    let dirs = &settings.dirs;
    dirs.create()?;
    let mut locks = Locks::take(dirs)?;
    if up.detached {
        logging::start(Some(&dirs.run.join("gantry.log"))).context("opening the log")?;
    } else {
        logging::start(None)?;
    }
    let instance = dirs.instance_or_new()?;
    let front = Front::prepare(&settings.front, &dirs.run, &instance)?;
    let given_way = front
        .as_ref()
        .map(|front| front.given_way.clone())
        .unwrap_or_default();
    let front = front.filter(|front| !front.is_empty());
    let registry = match front.as_ref().and_then(Front::registry) {
        Some(address) => Some((address, super::registry::open(dirs, address)?)),
        None => None,
    };
    let kube = front.as_ref().and_then(Front::kube);
    let me = i32::try_from(std::process::id()).context("reading the own process id")?;
    let daemon = Daemon {
        pid: me,
        start_ticks: start_ticks(me).context("reading /proc; is it mounted?")?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: instance.clone(),
        data_dir: dirs.data.clone(),
        run_dir: dirs.run.clone(),
        docker: settings.docker.clone(),
        docker_tcp: front.as_ref().map(Front::addresses).unwrap_or_default(),
        registry: registry.as_ref().map(|(address, _)| address.to_string()),
        kube: kube.map(|address| format!("https://{}", reachable(address))),
        started_at: jiff::Timestamp::now(),
    };
    locks.describe(&daemon)?;
    // Bound before the engine is opened: a client that comes early waits in the queue instead of failing.
    let listener = settings.docker.as_deref().map(Listener::bind).transpose()?;
    let (socket, place) = listener.map(Listener::into_parts).unzip();
    let front_listener = match &front {
        // What nobody listens for on TCP needs no door for the front.
        Some(front) if !daemon.docker_tcp.is_empty() => Some(Listener::bind_for(
            &dirs.run.join(front::SOCKET),
            front.uid,
        )?),
        _ => None,
    };
    let (front_socket, front_place) = front_listener.map(Listener::into_parts).unzip();
    let registry_listener = match (&front, &registry) {
        (Some(front), Some(_)) => Some(Listener::bind_for(
            &dirs.run.join(front::REGISTRY_SOCKET),
            front.uid,
        )?),
        _ => None,
    };
    let (registry_socket, registry_place) = registry_listener.map(Listener::into_parts).unzip();
    let kube_listener = match (&front, kube) {
        (Some(front), Some(_)) => Some(Listener::bind_for(
            &dirs.run.join(front::KUBE_SOCKET),
            front.uid,
        )?),
        _ => None,
    };
    let (kube_socket, kube_place) = kube_listener.map(Listener::into_parts).unzip();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("gantry")
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let outcome = runtime.block_on(async {
        // Registered first, so that a signal during a long start is not lost.
        let mut end = Ending::register()?;
        let engine = tokio::select! {
            opened = Engine::open(engine_settings(settings, instance)) => opened.map_err(|e| anyhow::anyhow!(e.chain()))?,
            () = end.wait() => return Ok(()),
        };
        let builds = gantry_docker::Builds::new(engine.clone()).map_err(|e| anyhow::anyhow!(e.chain()))?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let face = match socket {
            Some(socket) => {
                let listener = tokio::net::UnixListener::from_std(socket)
                    .context("handing the socket to the async runtime")?;
                Some(tokio::spawn(gantry_docker::serve(engine.clone(), builds.clone(), listener, stopped.clone())))
            }
            None => None,
        };
        let registry_serving = match (registry, registry_socket) {
            (Some((_, registry)), Some(socket)) => {
                let listener = tokio::net::UnixListener::from_std(socket)
                    .context("handing the registry's socket to the async runtime")?;
                let listener = gantry_registry::Listener::Front(listener);
                tokio::spawn(registry.clone().maintain(stopped.clone()));
                Some(tokio::spawn(gantry_registry::serve(registry, listener, stopped.clone())))
            }
            _ => None,
        };
        let kube_serving = match (kube, kube_socket) {
            (Some(address), Some(socket)) => {
                Some(serve_kube(settings, address, socket, stopped.clone()).await?)
            }
            _ => None,
        };
        let docker_tcp = match front_socket {
            Some(socket) => {
                let listener = tokio::net::UnixListener::from_std(socket)
                    .context("handing the front's socket to the async runtime")?;
                Some(tokio::spawn(gantry_docker::serve(engine.clone(), builds.clone(), listener, stopped.clone())))
            }
            None => None,
        };
        let front = match front {
            Some(mut front) => {
                let first = front.start().await?;
                Some(tokio::spawn(front.keep(first, stopped)))
            }
            None => None,
        };
        talk.line(&format!("ready in {:.2}s", began.elapsed().as_secs_f64()));
        for address in &daemon.docker_tcp {
            let open = if settings.front.tls.is_some() { "" } else { ": every user of this machine is root there" };
            talk.line(&format!("docker on {address}{open}"));
        }
        if let Some(address) = &daemon.registry {
            talk.line(&format!("registry on {address}"));
        }
        if let Some(address) = &daemon.kube {
            talk.line(&format!("kubernetes on {address}"));
        }
        for (name, why) in &given_way {
            talk.line(&format!("no {name}: {why}; say --{name} 127.0.0.1:0 for a free port"));
        }
        match &settings.docker {
            Some(socket) if up.demo => {
                let client = Client::at(socket.clone());
                match demo::up(&client).await {
                    Ok(lines) => lines.iter().for_each(|line| talk.line(line)),
                    // The platform serves; only its demo does not.
                    Err(error) => {
                        talk.line(&format!("gantry: the demo: {}", crate::sentence(&error)));
                    }
                }
            }
            Some(socket) => newcomer_lines(socket, talk),
            None => {}
        }
        talk.end();
        notify_service_manager();
        tracing::info!(instance = daemon.instance, "serving");

        for drop in engine.networks().foreign_drops() {
            tracing::warn!("{drop}");
        }
        let repairing = tokio::spawn(repair_accepts(engine.clone()));

        end.wait().await;
        repairing.abort();
        tracing::info!("stopping; containers run on");
        let _ = stop.send(true);
        if let Some(face) = face
            && let Ok(Ok(Err(error))) = tokio::time::timeout(GRACE, face).await
        {
            tracing::error!("the Docker API ended: {}", error.chain());
        }
        if let Some(front) = front {
            let _ = tokio::time::timeout(GRACE, front).await;
        }
        for serving in docker_tcp.into_iter() {
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        for serving in kube_serving.into_iter() {
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        if let Some(serving) = registry_serving {
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        engine.shutdown().await;
        anyhow::Ok(())
    });
    let places = front_place
        .into_iter()
        .chain(registry_place)
        .chain(kube_place);
    for place in place.into_iter().chain(places) {
        place.remove();
    }
    // A blocking thread in the middle of an archive must not hold the exit up: what it did is undone at the next start.
    runtime.shutdown_timeout(GRACE);
    outcome
}

/// Opens the cluster's state, serves the Kubernetes API behind the front, and leaves the file that `kubectl` needs.
async fn serve_kube(
    settings: &Settings,
    address: SocketAddr,
    socket: std::os::unix::net::UnixListener,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let dirs = &settings.dirs;
    let store = Embedded::open(&dirs.data.join("store"))?;
    let api = gantry_apiserver::Settings {
        keys_dir: dirs.data.join("keys"),
        address: reachable(address).to_string(),
        audit_log: Some(dirs.data.join("audit.log")),
        addresses: vec![address.ip()],
    };
    let api = Api::open(Arc::new(store), api, stopped)
        .await
        .map_err(|e| anyhow::anyhow!(e.chain()))?;
    let config = api
        .admin_kubeconfig()
        .map_err(|e| anyhow::anyhow!(e.chain()))?;
    let path = dirs.run.join(KUBECONFIG);
    atomic_write(&path, config.as_bytes(), 0o600, Durability::Process)
        .with_context(|| format!("writing {}", path.display()))?;
    let listener = tokio::net::UnixListener::from_std(socket)
        .context("handing the Kubernetes API's socket to the async runtime")?;
    Ok(tokio::spawn(async move {
        if let Err(error) = gantry_apiserver::serve(api, listener).await {
            tracing::error!("the Kubernetes API ended: {}", error.chain());
        }
    }))
}

/// Where a client on this machine reaches a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// A firewall that was started over forgot our accepts; until the next look at it, its drops hold.
async fn repair_accepts(engine: Engine) {
    loop {
        tokio::time::sleep(REPAIR_INTERVAL).await;
        let networks = engine.networks().clone();
        let _ = tokio::task::spawn_blocking(move || networks.repair_accepts()).await;
    }
}

/// Each running container takes a few descriptors here; the soft limit of a login shell would be reached with some hundred.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // Up to the hard limit everybody may; a refusal costs only the head room.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

fn engine_settings(settings: &Settings, instance: String) -> gantry_engine::Settings {
    gantry_engine::Settings {
        data_dir: settings.dirs.data.clone(),
        run_dir: settings.dirs.run.clone(),
        network: gantry_network::Settings {
            instance: instance.clone(),
            subnet_pool: settings.subnet_pool,
            firewall: settings.firewall,
        },
        instance,
        restart_unhealthy: settings.restart_unhealthy,
        authorization_plugins: settings.authorization_plugins.clone(),
        registries: settings.registries.clone(),
        runtime_program: runtime_program::BYTES,
    }
}

/// What a newcomer may type next; six lines at most.
fn newcomer_lines(socket: &Path, talk: &mut Talk) {
    talk.line(&format!("  export DOCKER_HOST=unix://{}", socket.display()));
    talk.line("  docker load -i IMAGE.tar           bring an image in");
    talk.line("  docker run --rm -it IMAGE sh       run it");
    talk.line("  gantry status | gantry doctor      what is up; what this machine lacks");
    talk.line("  gantry down                        stop; containers run on");
}

/// Resolves when the daemon is told to end.
struct Ending([tokio::signal::unix::Signal; 3]);

impl Ending {
    fn register() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self([
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
            // The terminal of a foreground `up` was closed.
            listen(SignalKind::hangup())?,
        ]))
    }
    async fn wait(&mut self) {
        let [term, int, hup] = &mut self.0;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

/// What the user reads while the daemon starts: stderr, or for `--detach` the pipe to the waiting parent.
struct Talk {
    detached: bool,
}

impl Talk {
    fn start(detached: bool) -> anyhow::Result<Self> {
        if detached {
            // Not a process group leader: the parent only forked and exec'd, so this cannot fail for that reason.
            rustix::process::setsid().context("making a session of its own")?;
        }
        Ok(Self { detached })
    }
    fn line(&mut self, text: &str) {
        if self.detached {
            let _ = writeln!(std::io::stdout(), "{text}");
        } else {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
    /// All is said. The waiting parent sees the pipe's end and returns.
    fn end(&mut self) {
        if self.detached
            && let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
        {
            let _ = rustix::stdio::dup2_stdout(null);
        }
    }
}

/// systemd's `Type=notify`: one datagram when everything serves.
fn notify_service_manager() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent =
        address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "telling the service manager failed");
    }
}
