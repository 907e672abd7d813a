//! `docker attach`, also before the start.

use crate::Engine;
use bytes::Bytes;
use gantry_base::Result;
use tokio::sync::mpsc;

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

/// The process's stdin.
pub struct Input {}

impl Input {
    /// Waits while the process does not read.
    pub async fn write(&mut self, _bytes: Bytes) -> Result<()> {
        todo!()
    }
    /// End of input for the process (if it was opened with `StdinOnce`, or an exec).
    pub async fn close(self) {
        todo!()
    }
}

impl Engine {
    /// Also before the start: then the streams begin with the process's first byte.
    pub async fn attach(&self, _r: &str, _what: Attach) -> Result<Attached> {
        todo!()
    }
}
