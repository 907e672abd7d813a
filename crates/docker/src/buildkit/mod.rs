//! BuildKit's way to build: gRPC in both directions over hijacked connections.
//!
//! ```text
//! POST /session   the client serves: its files, secrets, agents, credentials       → [`session`]
//! POST /grpc      we serve: Control (Solve, Status …) and LLBBridge (the front-end) → [`control`]
//! POST /build?version=2   the older way: the request says it all, status as lines  → [`older`]
//! ```
//! The only front-end is the built-in `dockerfile.v0`. A solve ends with its session.
//!
//! Spec: moby/buildkit `api/services/control`, `frontend/gateway/pb`, `session`.

mod control;
mod export;
mod older;
mod progress;
mod session;

pub(crate) use older::build as older_build;

use crate::call::Call;
use crate::reply::{Body, Reply, stopped};
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result};
use gantry_engine::Engine;
use http::{HeaderValue, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// A solve names its session before or after the session is there.
const SESSION_WAIT: Duration = Duration::from_secs(10);
/// Sessions and solves at one time.
const LIMIT: usize = 1024;
/// One message of the protocol; BuildKit's own limit.
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

/// The builder of a node with what BuildKit's clients have open. Cheap to clone.
#[derive(Clone)]
pub struct Builds(Arc<Inner>);

struct Inner {
    builder: gantry_build::Builder,
    sessions: watch::Sender<HashMap<String, Arc<session::Session>>>,
    solves: Mutex<HashMap<String, Arc<control::Solve>>>,
}

impl Builds {
    pub fn new(engine: Engine) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            builder: gantry_build::Builder::new(engine)?,
            sessions: watch::Sender::new(HashMap::new()),
            solves: Mutex::default(),
        })))
    }
    pub(crate) fn builder(&self) -> &gantry_build::Builder {
        &self.0.builder
    }

    /// The session of that name, which may be about to come.
    async fn session(&self, id: &str) -> Result<Arc<session::Session>> {
        let mut sessions = self.0.sessions.subscribe();
        let waiting = sessions.wait_for(|sessions| sessions.contains_key(id));
        let found = match tokio::time::timeout(SESSION_WAIT, waiting).await {
            Ok(Ok(sessions)) => sessions.get(id).cloned(),
            _ => None,
        };
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("no active session for {id}"),
            )
        })
    }

    fn add_session(&self, session: Arc<session::Session>) -> Result<()> {
        let mut full = false;
        self.0.sessions.send_modify(|sessions| {
            full = sessions.len() >= LIMIT;
            if !full {
                sessions.insert(session.id.clone(), session);
            }
        });
        if full {
            return Err(Error::conflict(format!(
                "{LIMIT} build sessions are open, the most there may be"
            )));
        }
        Ok(())
    }

    fn remove_session(&self, id: &str) {
        self.0.sessions.send_modify(|sessions| {
            if let Some(session) = sessions.remove(id) {
                session.gone.send_replace(true);
            }
        });
    }

    /// The solve of that name; made by whichever of its calls comes first.
    fn solve(&self, id: &str) -> Result<Arc<control::Solve>> {
        if id.is_empty() || id.len() > 256 {
            return Err(Error::invalid("a build needs a name of at most 256 bytes"));
        }
        let mut solves = self.0.solves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(solve) = solves.get(id) {
            return Ok(solve.clone());
        }
        if solves.len() >= LIMIT {
            return Err(Error::conflict(format!(
                "{LIMIT} builds are under way, the most there may be"
            )));
        }
        let solve = Arc::new(control::Solve::new(id));
        solves.insert(id.to_owned(), solve.clone());
        Ok(solve)
    }

    fn remove_solve(&self, id: &str) {
        let mut solves = self.0.solves.lock().unwrap_or_else(PoisonError::into_inner);
        solves.remove(id);
    }
}

/// `POST /session`: the client's services from now on.
pub(crate) async fn session(mut call: Call) -> Result<Reply> {
    let text = |name: &str| {
        let value = call.parts.headers.get(name);
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let id = text("x-docker-expose-session-uuid").unwrap_or_default();
    if id.is_empty() || id.len() > 256 {
        return Err(Error::invalid(
            "a session needs a name (X-Docker-Expose-Session-Uuid)",
        ));
    }
    let builds = call.builds.clone();
    hijack(&mut call, move |io, stop| async move {
        tokio::select! {
            result = session::serve(builds, id, io) => {
                if let Err(error) = result {
                    tracing::debug!(error = error.chain(), "a build session");
                }
            }
            () = stopped(stop) => {}
        }
    })
}

/// `POST /grpc`: our services.
pub(crate) async fn grpc(mut call: Call) -> Result<Reply> {
    let builds = call.builds.clone();
    hijack(&mut call, move |io, stop| async move {
        tokio::select! {
            () = control::serve(builds, io) => {}
            () = stopped(stop) => {}
        }
    })
}

fn hijack<F: Future<Output = ()> + Send + 'static>(
    call: &mut Call,
    serve: impl FnOnce(Joined, watch::Receiver<bool>) -> F + Send + 'static,
) -> Result<Reply> {
    let upgrade = call
        .upgrade
        .take()
        .ok_or_else(|| Error::invalid("this request must ask to upgrade its connection to h2c"))?;
    let stop = call.stop.clone();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else {
            return;
        };
        let io = Joined {
            first: parts.read_buf,
            socket: parts.io.into_inner(),
            _keeps: None,
        };
        serve(io, stop).await;
    });
    let mut response = Response::new(Body::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    Ok(Reply(response))
}

/// A connection whose first bytes were read already.
pub(crate) struct Joined {
    first: Bytes,
    socket: UnixStream,
    /// Told when the connection is dropped.
    _keeps: Option<Box<dyn std::any::Any + Send>>,
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.remaining());
            let part = self.first.split_to(length);
            buffer.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl tonic::transport::server::Connected for Joined {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}
