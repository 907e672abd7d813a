//! Connections: TLS with client certificates, HTTP/1.1 and HTTP/2, and their end together with the server.

use crate::request::User;
use crate::{Api, Body, auth, reply};
use gantry_base::{Result, ResultExt};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Connections at one time; more wait in the listener's queue.
const CONNECTIONS: usize = 4096;
/// Streams of one HTTP/2 connection; Kubernetes' own limit.
const STREAMS: u32 = 250;
const HEADER_LIMIT: usize = 64 << 10;
const HEADERS: usize = 128;
/// What a connection may hold of bytes that were not read yet, each way.
const WINDOW: u32 = 256 << 10;
/// A client that takes longer over its greeting is hung up on.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a request that is under way may take once the server ends.
const GRACE: Duration = Duration::from_millis(1500);

/// Serves on `listener`, which hears what the front passes on, until the server is told to stop.
pub async fn serve(api: Arc<Api>, listener: UnixListener) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(config(&api)?));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = api.stopping();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = crate::stopped(&mut stop) => break,
        };
        match accepted {
            Ok((socket, _)) => {
                let (api, acceptor) = (api.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let greeting = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket));
                    // A failed greeting is the client's affair; TLS itself told it.
                    if let Ok(Ok(socket)) = greeting.await {
                        let certificate = socket.get_ref().1.peer_certificates();
                        let certificate = certificate.and_then(|chain| chain.first());
                        let user = certificate.map(auth::of_certificate);
                        connection(api, socket, user).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: the next accept would fail at once, too.
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let all = u32::try_from(CONNECTIONS).expect("a small constant");
    let _ = tokio::time::timeout(GRACE * 2, places.acquire_many(all)).await;
    Ok(())
}

type Certified = Option<crate::status::Result<User>>;

async fn connection<S>(api: Arc<Api>, socket: S, user: Certified)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stop = api.stopping();
    let service = service_fn(move |request| answer(api.clone(), user.clone(), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_headers(HEADERS)
        .max_buf_size(HEADER_LIMIT * 2)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER_LIMIT).expect("a small constant"))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_send_buf_size(WINDOW as usize)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(socket), service);
    let mut serving = std::pin::pin!(serving);
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = crate::stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, serving).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!("connection: {error}");
    }
}

async fn answer(
    api: Arc<Api>,
    certified: Certified,
    request: Request<Incoming>,
) -> std::result::Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let user = match auth::authenticate(&api, certified, &parts.headers).await {
        Ok(user) => auth::impersonate(&api, user, &parts.headers).await,
        Err(status) => Err(status),
    };
    let mut answer = match user {
        Ok(user) => {
            api.call(user, parts.method, &parts.uri, parts.headers, body)
                .await
        }
        Err(status) => reply::refusal(&status),
    };
    answer.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    Ok(answer)
}

fn config(api: &Api) -> Result<ServerConfig> {
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    addresses.extend(&api.settings.addresses);
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let authority = &api.keys.authority;
    let pair = authority.server(&names, &addresses)?;
    let read = |pem: &str| {
        CertificateDer::from_pem_slice(pem.as_bytes())
            .context(|| "reading an own certificate".into())
    };
    let root = read(&authority.certificate_pem)?;
    let own = read(&pair.certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .context(|| "reading an own key".into())?;
    let mut roots = RootCertStore::empty();
    roots
        .add(root)
        .context(|| "trusting the own authority".into())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context(|| "verifying clients' certificates".into())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(|| "TLS versions".into())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own], key)
        .context(|| "serving with an own certificate".into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
