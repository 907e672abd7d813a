//! `docker attach`, also before the start.

use super::State;
use crate::{Engine, LogOptions, supervisor};
use bytes::Bytes;
use gantry_base::{Error, Result};
use gantry_runtime::proto::Streams;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};

/// Pieces of output that may wait for one client.
const OUTPUT_QUEUE: usize = 16;
/// Clients that may attach to a container before it starts.
const WAITING_LIMIT: usize = 64;

/// What the client wants to see and send.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// First what was logged so far.
    pub logs: bool,
    /// Then what comes.
    pub stream: bool,
}

/// Numbers as in Docker's multiplexed streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

/// A connection to a process's streams. Dropping it leaves the process running.
pub struct Attached {
    pub tty: bool,
    /// Ends when the process ended and everything was read.
    pub output: mpsc::Receiver<(Stream, Bytes)>,
    pub input: Option<Input>,
}

/// The process's stdin. Dropping it counts as [`Input::close`].
pub struct Input {
    connection: Arc<Mutex<supervisor::Input>>,
    open: bool,
}

impl Input {
    pub(crate) fn new(connection: Arc<Mutex<supervisor::Input>>) -> Self {
        Self {
            connection,
            open: true,
        }
    }
    /// Waits while the process does not read.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.connection.lock().await.write(bytes).await
    }
    /// End of input for the process (if it was opened with `StdinOnce`, or an exec).
    pub async fn close(mut self) {
        self.open = false;
        // A process that has gone does not need to hear of it.
        let _ = self.connection.lock().await.end().await;
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let connection = self.connection.clone();
        // No runtime any more: the daemon is going down, and with it the connection.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = connection.lock().await.end().await;
            });
        }
    }
}

impl Engine {
    /// Also before the start: then the streams begin with the process's first byte.
    pub async fn attach(&self, r: &str, what: Attach) -> Result<Attached> {
        let slot = self.0.containers.find(r)?;
        let guard = slot.lock().await;
        let record = slot.record();
        match record.state {
            State::Paused(_) => {
                return Err(Error::conflict(format!(
                    "container {r} is paused, unpause the container before attach"
                )));
            }
            State::Restarting { .. } => {
                return Err(Error::conflict(format!(
                    "container {r} is restarting, wait until the container is running"
                )));
            }
            State::Removing | State::Dead => {
                return Err(Error::conflict(format!(
                    "container {r} is marked for removal"
                )));
            }
            State::Creating | State::Created { .. } | State::Exited(_) | State::Running(_) => {}
        }
        let streams = Streams {
            stdin: what.stdin && what.stream && record.config.open_stdin,
            stdout: what.stdout,
            stderr: what.stderr,
        };
        let connection = match (what.stream, &record.state) {
            (false, _) => None,
            (true, State::Running(_)) => {
                let handle = slot.live().handle.clone();
                let handle = handle
                    .ok_or_else(|| Error::internal("a running container without a supervisor"))?;
                Some(handle.attach(streams).await?)
            }
            (true, _) => {
                let (stream, theirs) = supervisor::stream_pair()?;
                let mut live = slot.live();
                live.waiting.retain(|(_, socket)| !peer_is_gone(socket));
                if live.waiting.len() >= WAITING_LIMIT {
                    return Err(Error::conflict(format!(
                        "{WAITING_LIMIT} clients are attached to container {r} already"
                    )));
                }
                live.waiting.push((streams, theirs));
                Some(stream)
            }
        };
        drop(guard);
        // Attached first, then read up to that moment: nothing is lost between the log and the stream, nothing comes twice.
        let mut past = match what.logs {
            true => {
                let options = LogOptions {
                    stdout: what.stdout,
                    stderr: what.stderr,
                    until_ns: connection
                        .as_ref()
                        .map(|c| c.since_ns)
                        .filter(|since| *since > 0),
                    ..LogOptions::default()
                };
                Some(self.logs(&record.id, options).await?)
            }
            false => None,
        };
        self.say(&record, "attach", &[]);
        let tty = record.config.tty;
        let (sender, output) = mpsc::channel(OUTPUT_QUEUE);
        let (reader, writer) = connection
            .map(|c| (c.output, Arc::new(Mutex::new(c.input))))
            .unzip();
        let input = writer.clone().filter(|_| streams.stdin).map(Input::new);
        tokio::spawn(async move {
            // Without a client for it the writing half stays here: closed, it would look like a client that left.
            let _writer = writer;
            while let Some(Ok(line)) = next_line(&mut past).await {
                if sender.send((line.stream, line.line)).await.is_err() {
                    return;
                }
            }
            if let Some(reader) = reader {
                pump(reader, sender).await;
            }
        });
        Ok(Attached { tty, output, input })
    }
}

async fn next_line(
    past: &mut Option<mpsc::Receiver<Result<crate::LogLine>>>,
) -> Option<Result<crate::LogLine>> {
    past.as_mut()?.recv().await
}

/// Hands output on until the process's last byte or until nobody listens.
async fn pump(mut reader: supervisor::Output, sender: mpsc::Sender<(Stream, Bytes)>) {
    loop {
        let piece = tokio::select! {
            piece = reader.next() => piece,
            () = sender.closed() => return,
        };
        let piece = match piece {
            Ok(Some(supervisor::Out::Stdout(bytes))) => (Stream::Stdout, bytes),
            Ok(Some(supervisor::Out::Stderr(bytes))) => (Stream::Stderr, bytes),
            Ok(Some(supervisor::Out::Exited(_)) | None) => return,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "output of a container");
                return;
            }
        };
        if sender.send(piece).await.is_err() {
            return;
        }
    }
}

/// A client that attached and left before the start.
fn peer_is_gone(socket: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}
