//! Connections: accept, serve, and end together with the daemon.

use crate::buildkit::Builds;
use crate::call::{Call, Remaining};
use crate::reply::{Body, Reply, stopped};
use crate::{authorization, error, routes};
use gantry_base::{Result, ResultExt};
use gantry_docker_api::version;
use gantry_engine::Engine;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Connections at one time, streams included; more wait in the socket's queue.
const CONNECTIONS: usize = 4096;
/// Bytes of a request's line and headers: long filters travel there.
const HEADER_LIMIT: usize = 128 << 10;
const HEADERS: usize = 128;
/// Buffer of a connection at most; archives arrive in pieces of this size.
const BUFFER_LIMIT: usize = 256 << 10;
/// How long a request that is under way may take once the daemon ends.
const GRACE: Duration = Duration::from_millis(1500);

/// Serves the Docker API on `listener` until `stop` turns true; then takes no new connection and ends when the requests
/// under way are done. Long streams (logs, events, attach, wait) are cut at that point.
pub async fn serve(
    engine: Engine,
    builds: Builds,
    listener: UnixListener,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut ending = std::pin::pin!(stopped(stop.clone()));
    loop {
        let accepted = async {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut ending => break,
        };
        match accepted {
            Ok((socket, _)) => {
                let (engine, builds, stop) = (engine.clone(), builds.clone(), stop.clone());
                tokio::spawn(async move {
                    connection(socket, engine, builds, stop).await;
                    drop(place);
                });
            }
            Err(e) if is_passing(&e) => {
                // Out of descriptors: the next accept would fail at once, too, until somebody hangs up.
                tracing::warn!("accepting a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => return Err(e).context(|| "accepting connections".into()),
        }
    }
    // All places free: nobody is served any more.
    let all = u32::try_from(CONNECTIONS).expect("a small constant");
    let _ = tokio::time::timeout(GRACE * 2, places.acquire_many(all)).await;
    Ok(())
}

fn is_passing(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, Interrupted, OutOfMemory, WouldBlock};
    // 23 and 24: ENFILE, EMFILE.
    matches!(
        e.kind(),
        ConnectionAborted | Interrupted | OutOfMemory | WouldBlock
    ) || matches!(e.raw_os_error(), Some(23 | 24))
}

async fn connection(
    socket: UnixStream,
    engine: Engine,
    builds: Builds,
    stop: watch::Receiver<bool>,
) {
    let service = {
        let stop = stop.clone();
        service_fn(move |request| answer(request, engine.clone(), builds.clone(), stop.clone()))
    };
    // Without `pipeline_flush`: with it hyper buffers without a limit for a client that does not read.
    let serving = http1::Builder::new()
        .max_header_size(HEADER_LIMIT)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER_LIMIT)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
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

async fn answer(
    request: Request<Incoming>,
    engine: Engine,
    builds: Builds,
    stop: watch::Receiver<bool>,
) -> Result<Response<Body>, Infallible> {
    let mut response = respond(request, engine, builds, stop).await.0;
    let headers = response.headers_mut();
    for (name, value) in &COMMON {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// On every answer, as Docker has them.
static COMMON: [(http::HeaderName, &str); 4] = [
    (http::HeaderName::from_static("api-version"), "1.50"),
    (
        http::HeaderName::from_static("docker-experimental"),
        "false",
    ),
    (http::HeaderName::from_static("ostype"), "linux"),
    (
        header::SERVER,
        concat!("Gantry/", env!("CARGO_PKG_VERSION"), " (linux)"),
    ),
];

async fn respond(
    request: Request<Incoming>,
    engine: Engine,
    builds: Builds,
    stop: watch::Receiver<bool>,
) -> Reply {
    let mut request = request;
    let upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let body = Remaining::new(body);
    let (version, handler, name) = match version::negotiate(parts.uri.path()) {
        Ok((version, path)) => match routes::find(&parts.method, path) {
            Some((handler, name)) => (version, handler, name),
            None => return error::reply(&gantry_base::Error::not_found("page not found")),
        },
        Err(e) => return error::reply(&e),
    };
    let mut call = Call {
        engine,
        builds,
        version,
        name,
        parts,
        body,
        seen: None,
        upgrade,
        stop,
    };
    let answered = match authorization::ask(&mut call).await {
        Ok(None) => handler(call).await,
        Ok(Some(asked)) => match handler(call).await {
            Ok(reply) => asked.about(reply).await,
            Err(e) => asked.about(error::reply(&e)).await,
        },
        Err(e) => Err(e),
    };
    answered.unwrap_or_else(|e| error::reply(&e))
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}
