//! The front's own process: gives up every right first, then takes its listeners from the node and serves.

use super::{
    CHANGED, ERROR, Face, KUBE_SOCKET, LOG, MESSAGE_LIMIT, Message, READY, REGISTRY_SOCKET, SOCKET,
    Tls,
};
use anyhow::{Context, bail};
use gantry_linux::capabilities::{self, Sets};
use gantry_linux::{ipc, landlock, process, program};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Connections at one time; more wait in the listeners' queues.
const CONNECTIONS: usize = 1024;
/// Bytes that are read and passed on at a time, each way of each connection.
const PASSED: usize = 32 << 10;
/// A client that takes longer over its greeting is hung up on.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What `gantry front UID` does. Only the node starts it.
pub fn run(uid: u32) -> anyhow::Result<ExitCode> {
    // Whatever the node forgot to keep from us.
    program::close_from(3);
    let control = rustix::stdio::stdin()
        .try_clone_to_owned()
        .context("the control socket")?;
    if uid == 0
        || rustix::net::sockopt::socket_type(&control) != Ok(rustix::net::SocketType::SEQPACKET)
    {
        bail!("gantry front is started by gantry up");
    }
    match prepare(uid, &control) {
        Ok((listeners, acceptors)) => {
            say(&control, READY, "");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(serve(control, listeners, acceptors))?;
        }
        Err(error) => say(&control, ERROR, &crate::sentence(&error)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The listeners with what their clients speak, and how they are greeted.
type Prepared = (Vec<(std::net::TcpListener, Face)>, Acceptors);

/// How new connections are greeted: with TLS, where there is one. Changes while the front runs.
struct Acceptors {
    docker: Option<TlsAcceptor>,
    registry: Option<TlsAcceptor>,
}

impl Acceptors {
    fn new(tls: Option<Tls>) -> anyhow::Result<Self> {
        let docker = server_config(tls.as_ref())?.map(TlsAcceptor::from);
        // The registry's clients prove who they are with accounts.
        let without_authority = tls.map(|tls| Tls {
            authority: None,
            ..tls
        });
        let registry = server_config(without_authority.as_ref())?.map(TlsAcceptor::from);
        Ok(Self { docker, registry })
    }

    fn of(&self, face: Face) -> Option<TlsAcceptor> {
        match face {
            Face::Docker => self.docker.clone(),
            Face::Registry { tls: true } => self.registry.clone(),
            Face::Registry { tls: false } | Face::Kube => None,
        }
    }
}

type Shared = Arc<RwLock<Acceptors>>;

fn prepare(uid: u32, control: &OwnedFd) -> anyhow::Result<Prepared> {
    give_up_rights(uid)?;
    let mut buffer = vec![0; MESSAGE_LIMIT];
    let (length, descriptors) =
        ipc::receive(control, &mut buffer).context("receiving the listeners")?;
    let message: Message =
        serde_json::from_slice(&buffer[..length]).context("reading the node's message")?;
    let acceptors = Acceptors::new(message.tls)?;
    let listeners = descriptors
        .into_iter()
        .map(std::net::TcpListener::from)
        .zip(message.faces)
        .collect();
    Ok((listeners, acceptors))
}

/// In this order: each step needs what the next one takes away.
fn give_up_rights(uid: u32) -> anyhow::Result<()> {
    // Executed by way of /proc, the process would be called `exe` in every list.
    let _ = std::fs::write("/proc/self/comm", "gantry");
    capabilities::limit_bounding(0).context("dropping the bounding set")?;
    process::set_groups(&[]).context("dropping groups")?;
    process::set_group(uid).context("changing group")?;
    process::set_user(uid).context("changing user")?;
    let none = Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    capabilities::set(&none).context("dropping capabilities")?;
    process::set_no_new_privileges().context("no_new_privs")?;
    process::set_dumpable(false).context("hiding the memory")?;
    landlock::deny_everything().context("landlock")?;
    Ok(())
}

fn say(control: impl AsFd, kind: u8, text: &str) {
    let text = &text.as_bytes()[..text.len().min(2048)];
    let _ = ipc::send(control, &[IoSlice::new(&[kind]), IoSlice::new(text)], &[]);
}

/// The TLS side, or nothing for plain TCP.
pub(super) fn server_config(tls: Option<&Tls>) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let Some(tls) = tls else {
        return Ok(None);
    };
    let certificates = |text: &str, flag: &str| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .with_context(|| format!("--{flag} is not PEM"))?;
        if found.is_empty() {
            bail!("--{flag} holds no certificate");
        }
        Ok(found)
    };
    let chain = certificates(&tls.certificate, "tlscert")?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes())
        .context("--tlskey holds no private key")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("TLS versions")?;
    let builder = match &tls.authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authority, "tlscacert")? {
                roots
                    .add(certificate)
                    .context("--tlscacert holds no usable certificate")?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .context("--tlscacert")?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .context("--tlscert and --tlskey do not belong together")?;
    // The face behind speaks nothing newer.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

async fn serve(
    control: OwnedFd,
    listeners: Vec<(std::net::TcpListener, Face)>,
    acceptors: Acceptors,
) -> anyhow::Result<()> {
    let control = Arc::new(control);
    let acceptors = Shared::new(RwLock::new(acceptors));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    for (listener, face) in listeners {
        let listener = TcpListener::from_std(listener).context("a listener")?;
        tokio::spawn(accept(
            listener,
            face,
            acceptors.clone(),
            places.clone(),
            control.clone(),
        ));
    }
    let watched =
        std::os::unix::net::UnixStream::from(control.try_clone().context("the control socket")?);
    watched
        .set_nonblocking(true)
        .context("the control socket")?;
    let watched = UnixStream::from_std(watched).context("the control socket")?;
    // The node says when keys and certificates have changed. Whatever else comes is its end.
    let mut buffer = vec![0; MESSAGE_LIMIT];
    loop {
        watched.readable().await.context("the control socket")?;
        let length = match watched.try_io(tokio::io::Interest::READABLE, || {
            ipc::receive(&watched, &mut buffer)
        }) {
            Ok((0, _)) => return Ok(()),
            Ok((length, _)) => length,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return Ok(()),
        };
        let changed = serde_json::from_slice(&buffer[..length])
            .context("reading the node's message")
            .and_then(|message: Message| Acceptors::new(message.tls));
        // The key is not left lying about.
        buffer.fill(0);
        match changed {
            Ok(changed) => {
                *acceptors.write().unwrap_or_else(PoisonError::into_inner) = changed;
                say(&*control, CHANGED, "");
            }
            Err(error) => say(&*control, LOG, &crate::sentence(&error)),
        }
    }
}

async fn accept(
    listener: TcpListener,
    face: Face,
    acceptors: Shared,
    places: Arc<Semaphore>,
    control: Arc<OwnedFd>,
) {
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((client, address)) => {
                let acceptor = acceptors
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .of(face);
                tokio::spawn(async move {
                    connection(client, address.ip(), face, acceptor).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: the next accept would fail at once, too.
                say(&*control, LOG, &format!("accepting a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(client: TcpStream, address: IpAddr, face: Face, acceptor: Option<TlsAcceptor>) {
    let _ = client.set_nodelay(true);
    // The registry limits who comes too often, so it learns who comes.
    let (socket, preface) = match face {
        Face::Docker => (SOCKET, None),
        Face::Kube => (KUBE_SOCKET, None),
        Face::Registry { tls } => (
            REGISTRY_SOCKET,
            Some(gantry_registry::preface(tls, address)),
        ),
    };
    match acceptor {
        None => pass_on(client, socket, preface).await,
        // A failed greeting is the client's affair; it was told by TLS itself.
        Some(acceptor) => {
            let greeting = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(client));
            if let Ok(Ok(client)) = greeting.await {
                pass_on(client, socket, preface).await;
            }
        }
    }
}

/// Both ways until both have ended: a client that has said all still hears the answer.
async fn pass_on(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    socket: &str,
    preface: Option<[u8; 17]>,
) {
    // Relative to `R`, which we were started in: its parents may be closed to our user.
    if let Ok(mut node) = UnixStream::connect(socket).await {
        if let Some(preface) = preface
            && node.write_all(&preface).await.is_err()
        {
            return;
        }
        // Larger than tokio's own 8 KiB: the registry's clients move layers.
        let _ = copy_bidirectional_with_sizes(&mut client, &mut node, PASSED, PASSED).await;
    }
}
