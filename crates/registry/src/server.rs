//! Connections: accept, TLS, serve, and end together with the program.

use crate::Registry;
use crate::api::{Peer, answer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Connections at one time; more wait in the listener's queue.
const CONNECTIONS: usize = 4096;
const HEADER_LIMIT: usize = 64 << 10;
const HEADERS: usize = 64;
/// Buffer of a connection at most.
const BUFFER_LIMIT: usize = 256 << 10;
/// A client that takes longer over its greeting or over a request's head is hung up on. It is also how long an idle connection is kept.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// How long a request that is under way may take once the program ends.
const GRACE: Duration = Duration::from_millis(1500);

/// Where clients come in.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
    /// From a process that holds the TCP listeners: each connection begins with [`preface`].
    Front(UnixListener),
}

/// What a front says of a connection before the client's own bytes: whether it came over TLS, and from which address.
pub fn preface(tls: bool, address: IpAddr) -> [u8; 17] {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; 17];
    bytes[0] = u8::from(tls);
    bytes[1..].copy_from_slice(&address.octets());
    bytes
}

/// The server's side of TLS from two PEM texts.
pub fn tls(certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the certificate is not PEM: {e:?}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key is not PEM: {e:?}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| format!("certificate and key do not belong together: {e}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `stop` turns true; then ends when the requests under way are done.
pub async fn serve(
    registry: Arc<Registry>,
    listener: Listener,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut ending = std::pin::pin!(stopped(stop.clone()));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = accept(&listener, &registry, place, &stop) => accepted,
            () = &mut ending => break,
        };
        if let Err(e) = accepted {
            // Out of descriptors, most likely: the next one would fail at once, too.
            tracing::warn!("accepting a connection: {e}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // Nobody new; all places free again means that nobody is served any more.
    drop(listener);
    let all = u32::try_from(CONNECTIONS).expect("a small constant");
    let _ = tokio::time::timeout(GRACE * 2, places.acquire_many(all)).await;
    Ok(())
}

async fn accept(
    listener: &Listener,
    registry: &Arc<Registry>,
    place: OwnedSemaphorePermit,
    stop: &watch::Receiver<bool>,
) -> io::Result<()> {
    match listener {
        Listener::Tcp(listener, tls) => {
            let (socket, address) = listener.accept().await?;
            let _ = socket.set_nodelay(true);
            let peer = Peer {
                address: Some(address.ip().to_canonical()),
                tls: tls.is_some(),
            };
            let (registry, stop, tls) = (Arc::clone(registry), stop.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => connection(socket, registry, peer, stop).await,
                    Some(config) => {
                        let greeting = TlsAcceptor::from(config).accept(socket);
                        if let Ok(Ok(socket)) = tokio::time::timeout(HEAD_LIMIT, greeting).await {
                            connection(socket, registry, peer, stop).await;
                        }
                    }
                }
                drop(place);
            });
        }
        Listener::Front(listener) => {
            let (mut socket, _) = listener.accept().await?;
            let (registry, stop) = (Arc::clone(registry), stop.clone());
            tokio::spawn(async move {
                let mut bytes = [0; 17];
                let reading = socket.read_exact(&mut bytes);
                if let Ok(Ok(_)) = tokio::time::timeout(HEAD_LIMIT, reading).await {
                    let [tls, address @ ..] = bytes;
                    let peer = Peer {
                        address: Some(IpAddr::V6(Ipv6Addr::from(address)).to_canonical()),
                        tls: tls != 0,
                    };
                    connection(socket, registry, peer, stop).await;
                }
                drop(place);
            });
        }
    }
    Ok(())
}

async fn connection(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    registry: Arc<Registry>,
    peer: Peer,
    stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let registry = Arc::clone(&registry);
        async move { Ok::<_, Infallible>(answer(registry, request, peer).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_header_size(HEADER_LIMIT)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER_LIMIT)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = stopped(stop) => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, serving).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(e) = outcome {
        tracing::debug!("connection: {e}");
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
