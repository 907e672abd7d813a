//! `docker logs`: reads the json-file log that the supervisor writes, its rotated older parts, and follows it.

use crate::{Engine, Stream};
use bytes::Bytes;
use gantry_base::Result;
use tokio::sync::mpsc;

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// Nanoseconds since the epoch, inclusive.
    pub since_ns: Option<i64>,
    /// Nanoseconds since the epoch, inclusive.
    pub until_ns: Option<i64>,
    /// The last so many entries, counted before streams and times select.
    pub tail: Option<usize>,
    pub follow: bool,
}

/// One stored entry: a line, or a part of one that was too long to keep whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub stream: Stream,
    /// RFC 3339 with nanoseconds, as stored.
    pub time: String,
    /// With its newline; a part of a longer line has none.
    pub line: Bytes,
}

impl Engine {
    /// Streams a container's log. Ends when everything asked for was read; with `follow` when the container
    /// stopped and everything was read. Dropping the receiver stops the reading.
    pub async fn logs(
        &self,
        _r: &str,
        _options: LogOptions,
    ) -> Result<mpsc::Receiver<Result<LogLine>>> {
        todo!()
    }
}
