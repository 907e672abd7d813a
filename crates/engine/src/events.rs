//! What happened on this node, in order: a bounded history and live subscribers.

use std::collections::BTreeMap;

/// One event in Docker's terms: `container` `start`, with attributes (image, name, labels, exitCode …).
#[derive(Debug, Clone)]
pub struct Event {
    /// `container`, `image`, `volume`, `network`, `daemon`.
    pub kind: &'static str,
    pub action: String,
    pub actor: String,
    pub attributes: BTreeMap<String, String>,
    pub time_ns: i64,
}

/// Keeps the last [`HISTORY`] events and hands new ones to subscribers; a subscriber that falls behind that far is told so.
pub struct Bus {}

pub const HISTORY: usize = 1024;

impl Bus {
    pub fn new() -> Self {
        todo!()
    }
    /// Never blocks.
    pub fn publish(
        &self,
        _kind: &'static str,
        _action: impl Into<String>,
        _actor: impl Into<String>,
        _attributes: BTreeMap<String, String>,
    ) {
        todo!()
    }
    /// History since a time (nanoseconds), then live ones, without a gap and without doubles.
    pub fn subscribe(
        &self,
        _since_ns: Option<i64>,
    ) -> (Vec<Event>, tokio::sync::broadcast::Receiver<Event>) {
        todo!()
    }
}
