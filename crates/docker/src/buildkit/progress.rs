//! A build's steps as BuildKit's vertices, for whoever asks for the status of a solve.

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus};
use futures_util::future::BoxFuture;
use gantry_build::{Outcome, Progress, StepInfo};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes of output on their way to the client; then the build waits.
const AHEAD: usize = 1 << 20;

/// A message, and its place on the way.
pub(super) type Message = (StatusResponse, Option<OwnedSemaphorePermit>);

/// Vertices of one solve.
pub(super) struct Vertices {
    name: String,
    out: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    started: Mutex<HashMap<String, Vertex>>,
}

pub(super) fn now() -> Timestamp {
    let now = jiff::Timestamp::now();
    Timestamp {
        seconds: now.as_second(),
        nanos: now.subsec_nanosecond(),
    }
}

impl Vertices {
    pub(super) fn new(name: &str) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (out, messages) = mpsc::unbounded_channel();
        let vertices = Self {
            name: name.to_owned(),
            out,
            room: Arc::new(Semaphore::new(AHEAD)),
            started: Mutex::default(),
        };
        (vertices, messages)
    }

    fn send(&self, message: StatusResponse) {
        let _ = self.out.send((message, None));
    }

    fn digest(&self, key: &str) -> String {
        let mut hasher = gantry_image::steps::KeyHasher::default();
        hasher.part(self.name.as_bytes()).part(key.as_bytes());
        hasher.finish().to_string()
    }

    pub(super) fn start(&self, key: &str, name: &str) {
        let vertex = Vertex {
            digest: self.digest(key),
            name: name.to_owned(),
            started: Some(now()),
            ..Vertex::default()
        };
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.insert(key.to_owned(), vertex.clone());
        drop(started);
        self.send(StatusResponse {
            vertexes: vec![vertex],
            ..StatusResponse::default()
        });
    }

    pub(super) fn complete(&self, key: &str, cached: bool, error: Option<String>) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut vertex) = started.remove(key) else {
            return;
        };
        drop(started);
        vertex.completed = Some(now());
        vertex.cached = cached;
        vertex.error = error.unwrap_or_default();
        self.send(StatusResponse {
            vertexes: vec![vertex],
            ..StatusResponse::default()
        });
    }

    /// A line within a vertex that is done.
    pub(super) fn status(&self, key: &str, id: &str) {
        self.send(StatusResponse {
            statuses: vec![VertexStatus {
                id: id.to_owned(),
                vertex: self.digest(key),
                name: id.to_owned(),
                current: 0,
                total: 0,
                timestamp: Some(now()),
                started: Some(now()),
                completed: Some(now()),
            }],
            ..StatusResponse::default()
        });
    }
}

fn key(step: &StepInfo) -> String {
    format!(
        "step {} {}",
        step.id,
        if step.trigger { &step.text } else { "" }
    )
}

impl Progress for Vertices {
    fn begin(&self, step: &StepInfo) {
        if !step.visible {
            return;
        }
        let stage = if step.stage.is_empty() {
            String::new()
        } else {
            format!("{} ", step.stage)
        };
        let name = format!("[{stage}{}/{}] {}", step.place, step.places, step.text);
        self.start(&key(step), &name);
    }
    fn log<'a>(&'a self, step: &'a StepInfo, stream: u8, bytes: &'a [u8]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let size = u32::try_from(bytes.len().min(AHEAD)).unwrap_or(1);
            let permit = self.room.clone().acquire_many_owned(size).await.ok();
            let message = StatusResponse {
                logs: vec![VertexLog {
                    vertex: self.digest(&key(step)),
                    timestamp: Some(now()),
                    stream: i64::from(stream),
                    msg: bytes.to_vec(),
                }],
                ..StatusResponse::default()
            };
            let _ = self.out.send((message, permit));
        })
    }
    fn end(&self, step: &StepInfo, outcome: &Outcome) {
        if step.visible {
            self.complete(&key(step), outcome.cached, outcome.error.clone());
        }
    }
}
