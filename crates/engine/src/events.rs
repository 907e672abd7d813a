//! What happened on this node, in order: a bounded history and live subscribers.
//!
//! Invariants
//! * Times strictly increase in the order of publication, so that `since` cuts the history at one place.
//! * What was published is on disk (not synced) before it is told: the next daemon's history begins with it, also after `kill -9`.
//! * History and live stream join under one lock: a subscriber sees every event from its cut exactly once.

use gantry_base::{Result, ResultExt, file};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::sync::broadcast;

/// Events that a late subscriber can still get, and that a slow one may fall behind.
pub const HISTORY: usize = 1024;

/// One event in Docker's terms: `container` `start`, with attributes (image, name, labels, exitCode …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `container`, `image`, `volume`, `network`, `daemon`.
    pub kind: Cow<'static, str>,
    pub action: String,
    pub actor: String,
    pub attributes: BTreeMap<String, String>,
    pub time_ns: i64,
}

/// Keeps the last [`HISTORY`] events and hands new ones to subscribers; a subscriber that falls behind that far is told so.
pub struct Bus {
    history: Mutex<History>,
    live: broadcast::Sender<Event>,
}

#[derive(Default)]
struct History {
    events: VecDeque<Event>,
    journal: Option<Journal>,
}

/// One event per line. Written anew with the history alone when it has grown to `limit`.
struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    /// [`JOURNAL_LIMIT`], or twice what the history itself needs.
    limit: u64,
}

/// Bytes of the file before it is written anew; the last [`HISTORY`] events are usually far less.
const JOURNAL_LIMIT: u64 = 4 << 20;
/// No more of the file's end is read.
const READ_LIMIT: u64 = 64 << 20;

impl Journal {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            limit: JOURNAL_LIMIT.max(size * 2),
        })
    }

    /// The last events. A line that a crash or a full disk cut short is none, and the next one begins on its own.
    fn read(&mut self) -> std::io::Result<VecDeque<Event>> {
        let mut bytes = Vec::new();
        let from = self.size.saturating_sub(READ_LIMIT);
        self.file.seek(SeekFrom::Start(from))?;
        (&self.file).take(READ_LIMIT).read_to_end(&mut bytes)?;
        if bytes.last().is_some_and(|last| *last != b'\n') {
            self.file.write_all(b"\n")?;
            self.size += 1;
        }
        let lines = bytes.split(|byte| *byte == b'\n');
        let events: Vec<Event> = lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let skip = events.len().saturating_sub(HISTORY);
        Ok(events.into_iter().skip(skip).collect())
    }

    fn add(&mut self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn shrink(&mut self, events: &VecDeque<Event>) -> std::io::Result<()> {
        let mut text = Vec::new();
        for event in events {
            serde_json::to_writer(&mut text, event)?;
            text.push(b'\n');
        }
        file::atomic_write(&self.path, &text, 0o600, file::Durability::Process)?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    pub fn new() -> Self {
        Self {
            history: Mutex::default(),
            live: broadcast::Sender::new(HISTORY),
        }
    }

    /// With the history of the daemons before, kept in a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut journal = Journal::open(path).context(|| format!("opening {}", path.display()))?;
        let events = journal
            .read()
            .context(|| format!("reading {}", path.display()))?;
        let bus = Self::new();
        *bus.history.lock().unwrap_or_else(|e| e.into_inner()) = History {
            events,
            journal: Some(journal),
        };
        Ok(bus)
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
            .events
            .back()
            .map_or(now_ns, |last| now_ns.max(last.time_ns + 1));
        let event = Event {
            kind: Cow::Borrowed(kind),
            action,
            actor,
            attributes,
            time_ns,
        };
        if history.events.len() == HISTORY {
            history.events.pop_front();
        }
        history.events.push_back(event.clone());
        let History { events, journal } = &mut *history;
        if let Some(journal) = journal {
            let mut kept = journal.add(&event);
            if journal.size > journal.limit {
                kept = kept.and_then(|()| journal.shrink(events));
            }
            // A full disk costs the next daemon's memory of this event, not the operation.
            if let Err(error) = kept {
                tracing::debug!(%error, "keeping an event");
            }
        }
        // An error only says that nobody listens.
        let _ = self.live.send(event);
    }

    /// History since a time (nanoseconds), then live ones, without a gap and without doubles.
    /// `None`: no history.
    pub fn subscribe(&self, since_ns: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let history = self.history.lock().unwrap_or_else(|e| e.into_inner());
        let past = match since_ns {
            Some(since) => {
                let events = &history.events;
                let from = events.partition_point(|event| event.time_ns < since);
                events.range(from..).cloned().collect()
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
    fn the_next_daemon_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.json");
        let first = Bus::open(&path).unwrap();
        say(&first, "a", 100);
        say(&first, "b", 200);
        // Cut short by a crash.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"kind\":\"cont").unwrap();
        let second = Bus::open(&path).unwrap();
        say(&second, "c", 150);
        let third = Bus::open(&path).unwrap();
        let seen: Vec<_> = third
            .subscribe(Some(200))
            .0
            .into_iter()
            .map(|event| (event.action, event.time_ns))
            .collect();
        assert_eq!(seen, [("b".into(), 200), ("c".into(), 201)]);
    }

    #[test]
    fn the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.json");
        let bus = Bus::open(&path).unwrap();
        let long = "x".repeat(4000);
        for n in 0..4 * HISTORY {
            say(&bus, &format!("{long}{n}"), 0);
        }
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < (2 * HISTORY * 4200) as u64 + 4200, "{size}");
        assert_eq!(
            Bus::open(&path).unwrap().subscribe(Some(0)).0.len(),
            HISTORY
        );
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
