//! `gantry up`: locks, sockets, engine, Docker face, "ready".

use super::{demo, detach};
use crate::args::{DirArgs, UpArgs};
use crate::client::Client;
use crate::front::{self, Front};
use crate::instance::{Daemon, Locks};
use crate::listener::Listener;
use crate::settings::Settings;
use crate::{logging, runtime_program};
use anyhow::{Context, bail};
use gantry_engine::Engine;
use gantry_linux::program::start_ticks;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
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
    let given_way = front.as_ref().and_then(|front| front.given_way.clone());
    let front = front.filter(|front| !front.is_empty());
    let registry = match front.as_ref().and_then(Front::registry) {
        Some(address) => Some((address, super::registry::open(dirs, address)?)),
        None => None,
    };
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
        started_at: jiff::Timestamp::now(),
    };
    locks.describe(&daemon)?;
    // Bound before the engine is opened: a client that comes early waits in the queue instead of failing.
    let listener = settings.docker.as_deref().map(Listener::bind).transpose()?;
    let (socket, place) = listener.map(Listener::into_parts).unzip();
    let front_listener = match &front {
        Some(front) => Some(Listener::bind_for(
            &dirs.run.join(front::SOCKET),
            front.uid,
        )?),
        None => None,
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
        let builder = gantry_docker::Builder::new(engine.clone()).map_err(|e| anyhow::anyhow!(e.chain()))?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let face = match socket {
            Some(socket) => {
                let listener = tokio::net::UnixListener::from_std(socket)
                    .context("handing the socket to the async runtime")?;
                Some(tokio::spawn(gantry_docker::serve(engine.clone(), builder.clone(), listener, stopped.clone())))
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
        let tcp = match (front, front_socket) {
            (Some(mut front), Some(socket)) => {
                let listener = tokio::net::UnixListener::from_std(socket)
                    .context("handing the front's socket to the async runtime")?;
                let serving = tokio::spawn(gantry_docker::serve(engine.clone(), builder.clone(), listener, stopped.clone()));
                let first = front.start().await?;
                Some((serving, tokio::spawn(front.keep(first, stopped))))
            }
            _ => None,
        };
        talk.line(&format!("ready in {:.2}s", began.elapsed().as_secs_f64()));
        for address in &daemon.docker_tcp {
            let open = if settings.front.tls.is_some() { "" } else { ": every user of this machine is root there" };
            talk.line(&format!("docker on {address}{open}"));
        }
        match (&daemon.registry, &given_way) {
            (Some(address), _) => talk.line(&format!("registry on {address}")),
            (None, Some(why)) => talk.line(&format!("no registry: {why}; say --registry 127.0.0.1:0 for a free port")),
            (None, None) => {}
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
        if let Some((serving, front)) = tcp {
            let _ = tokio::time::timeout(GRACE, front).await;
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        if let Some(serving) = registry_serving {
            let _ = tokio::time::timeout(GRACE, serving).await;
        }
        engine.shutdown().await;
        anyhow::Ok(())
    });
    for place in place.into_iter().chain(front_place).chain(registry_place) {
        place.remove();
    }
    // A blocking thread in the middle of an archive must not hold the exit up: what it did is undone at the next start.
    runtime.shutdown_timeout(GRACE);
    outcome
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
