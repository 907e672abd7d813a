//! What happened on this node, in order: a bounded history and live subscribers.
//!
//! Invariants
//! * Times strictly increase in the order of publication, so that `since` cuts the history at one place.
//! * History and live stream join under one lock: a subscriber sees every event from its cut exactly once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use tokio::sync::broadcast;

/// Events that a late subscriber can still get, and that a slow one may fall behind.
pub const HISTORY: usize = 1024;

/// One event in Docker's terms: `container` `start`, with attributes (image, name, labels, exitCode …).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `container`, `image`, `volume`, `network`, `daemon`.
    pub kind: &'static str,
    pub action: String,
    pub actor: String,
    pub attributes: BTreeMap<String, String>,
    pub time_ns: i64,
}

/// Keeps the last [`HISTORY`] events and hands new ones to subscribers; a subscriber that falls behind that far is told so.
pub struct Bus {
    history: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    pub fn new() -> Self {
        Self {
            history: Mutex::new(VecDeque::new()),
            live: broadcast::Sender::new(HISTORY),
        }
    }

    /// Never blocks: the lock is held for a push, and a full subscriber loses its oldest event, not our time.
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        actor: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        self.publish_at(kind, action.into(), actor.into(), attributes, now_ns());
    }

    fn publish_at(
        &self,
        kind: &'static str,
        action: String,
        actor: String,
        attributes: BTreeMap<String, String>,
        now_ns: i64,
    ) {
        let mut history = self.history.lock().unwrap_or_else(|e| e.into_inner());
        // The wall clock may step back; an event must not sort before an older one.
        let time_ns = history
            .back()
            .map_or(now_ns, |last| now_ns.max(last.time_ns + 1));
        let event = Event {
            kind,
            action,
            actor,
            attributes,
            time_ns,
        };
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(event.clone());
        // An error only says that nobody listens.
        let _ = self.live.send(event);
    }

    /// History since a time (nanoseconds), then live ones, without a gap and without doubles.
    /// `None`: no history.
    pub fn subscribe(&self, since_ns: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let history = self.history.lock().unwrap_or_else(|e| e.into_inner());
        let past = match since_ns {
            Some(since) => {
                let from = history.partition_point(|event| event.time_ns < since);
                history.range(from..).cloned().collect()
            }
            None => Vec::new(),
        };
        (past, self.live.subscribe())
    }
}

/// The wall clock, nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let now = jiff::Timestamp::now();
    i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(bus: &Bus, action: &str, now_ns: i64) {
        bus.publish_at(
            "container",
            action.into(),
            "x".into(),
            BTreeMap::new(),
            now_ns,
        );
    }

    #[test]
    fn history_is_bounded_and_cut_by_time() {
        let bus = Bus::new();
        for n in 0..HISTORY + 10 {
            say(&bus, &n.to_string(), n as i64);
        }
        let (all, _) = bus.subscribe(Some(0));
        assert_eq!((all.len(), all[0].action.as_str()), (HISTORY, "10"));
        let (last, _) = bus.subscribe(Some(HISTORY as i64 + 9));
        assert_eq!(last.len(), 1);
        assert!(bus.subscribe(None).0.is_empty());
    }

    #[test]
    fn a_clock_that_steps_back_does_not_reorder() {
        let bus = Bus::new();
        say(&bus, "a", 100);
        say(&bus, "b", 50);
        let times: Vec<i64> = bus.subscribe(Some(0)).0.iter().map(|e| e.time_ns).collect();
        assert_eq!(times, [100, 101]);
    }

    #[test]
    fn no_gap_and_no_double_while_others_publish() {
        let bus = std::sync::Arc::new(Bus::new());
        let publisher = bus.clone();
        let thread = std::thread::spawn(move || {
            for n in 0..500 {
                say(&publisher, &n.to_string(), 0);
            }
        });
        for _ in 0..50 {
            let (past, mut live) = bus.subscribe(Some(0));
            let mut seen: Vec<usize> = past.iter().map(|e| e.action.parse().unwrap()).collect();
            while let Ok(event) = live.try_recv() {
                seen.push(event.action.parse().unwrap());
            }
            assert_eq!(seen, (0..seen.len()).collect::<Vec<_>>());
        }
        thread.join().unwrap();
    }
}
