//! `docker logs`: reads the json-file log that the supervisor writes, its rotated older parts, and follows it.
//!
//! ```text
//! D/containers/<id>/<id>-json.log      being written
//!                   <id>-json.log.1 …  older, when `max-file` > 1
//! ```
//! [`Files`] holds the parts open, oldest first: what rotation deletes can still be read, and a part is left only after it was
//! read to its end with its successor already open, when nobody writes to it any more.
//! Opening goes from the newest to the oldest name, and rotation moves files the same way: none is missed, and doubles are known
//! by inode.

use crate::{Engine, Record, State, Stream};
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use rustix::fs::inotify;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Lines that may wait for a slow client.
const LINES_WAITING: usize = 1024;
/// Bytes read at once.
const READ_AT_ONCE: usize = 256 << 10;
/// A stored entry is never longer: 16 KiB of text, escaped, with its attributes. What is longer is no entry of ours.
const ENTRY_LIMIT: usize = 1 << 20;
/// Rotated parts held open for a slow client; beyond that the oldest is given up, or a client could keep a disk full.
const PARTS_LIMIT: usize = 256;
/// Highest number of a rotated part that is looked for.
const NUMBER_LIMIT: u32 = 1000;
/// How often to look when the node has no inotify instance left.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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
    /// What the log options put beside the text: labels, variables, the tag.
    pub attrs: Vec<(String, String)>,
}

impl Engine {
    /// Streams a container's log. Ends when everything asked for was read; with `follow` when the container
    /// stopped and everything was read. Dropping the receiver stops the reading.
    pub async fn logs(
        &self,
        r: &str,
        options: LogOptions,
    ) -> Result<mpsc::Receiver<Result<LogLine>>> {
        let slot = self.0.containers.find(r)?;
        let log = &slot.record().host_config.log_config;
        if !crate::ship::is_readable(&log.kind, &log.config) {
            return Err(Error::new(
                ErrorKind::NotImplemented,
                "configured logging driver does not support reading",
            ));
        }
        self.read_log(&slot, options)
    }

    /// The same for who sends it on, and without asking whether it may be read.
    pub(crate) fn read_log(
        &self,
        slot: &std::sync::Arc<crate::container::table::Slot>,
        options: LogOptions,
    ) -> Result<mpsc::Receiver<Result<LogLine>>> {
        // Before the look at the state, so that an exit in between is seen.
        let mut moment = slot.moment().subscribe();
        let exits = moment.borrow_and_update().exits;
        let record = slot.record();
        let source = Source::of(&record, self.log_path(&record.id))?;
        let (out, lines) = mpsc::channel(LINES_WAITING);
        if !options.follow || !alive(&record.state) {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = read_all(&source, &options, &out) {
                    let _ = out.blocking_send(Err(e));
                }
            });
            return Ok(lines);
        }
        let watch = Watch::new(&source.path);
        tokio::spawn(async move {
            let ended = async move {
                while moment.borrow_and_update().exits == exits {
                    if moment.changed().await.is_err() {
                        break;
                    }
                }
            };
            if let Err(e) = follow(source, options, watch, ended, &out).await {
                let _ = out.send(Err(e)).await;
            }
        });
        Ok(lines)
    }
}

fn alive(state: &State) -> bool {
    match state {
        State::Running(_) | State::Paused(_) | State::Restarting { .. } => true,
        State::Creating
        | State::Created { .. }
        | State::Exited(_)
        | State::Removing
        | State::Dead => false,
    }
}

/// Where a container's log lies.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    max_files: u32,
}

impl Source {
    fn of(record: &Record, path: PathBuf) -> Result<Self> {
        if matches!(record.state, State::Removing | State::Dead) {
            return Err(Error::conflict(
                "can not get logs from container which is dead or marked for removal",
            ));
        }
        let log = &record.host_config.log_config;
        let (_, max_files) = crate::ship::limits(&log.kind, &log.config);
        Ok(Self {
            path,
            // An update may have lowered it since.
            max_files: max_files.clamp(5, NUMBER_LIMIT),
        })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// The parts from the newest to the oldest, up to one that `known` recognises. The second part of the answer: whether it was met.
    fn open(&self, known: impl Fn(Inode) -> bool) -> Result<(Vec<Part>, bool)> {
        let mut parts: Vec<Part> = Vec::new();
        // Not until the first gap: while a rotation is under way a name in the middle can be free.
        for number in 0..self.max_files.max(1) {
            let path = if number == 0 {
                self.path.clone()
            } else {
                self.numbered(number)
            };
            let part = match Part::open(&path) {
                Ok(part) => part,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).context(|| format!("opening {}", path.display())),
            };
            if known(part.inode) {
                return Ok((parts, true));
            }
            if parts.iter().all(|have| have.inode != part.inode) {
                parts.push(part);
            }
        }
        Ok((parts, false))
    }
}

type Inode = (u64, u64);

/// One file of a log.
#[derive(Debug)]
struct Part {
    file: File,
    inode: Inode,
    /// Where the next entry begins.
    at: u64,
    /// Where to stop; `None` reads what comes.
    end: Option<u64>,
}

impl Part {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            file,
            inode: (metadata.dev(), metadata.ino()),
            at: 0,
            end: None,
        })
    }

    /// The next entries' bytes, whole lines only, and moves past them. Empty at the end.
    fn read<'a>(&mut self, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        // A log of one file is emptied in place when it is full.
        if self.end.is_none() && self.file.metadata()?.len() < self.at {
            self.at = 0;
        }
        let mut want = READ_AT_ONCE;
        loop {
            let left = self
                .end
                .map_or(want as u64, |end| end.saturating_sub(self.at));
            let length = usize::try_from(left).unwrap_or(want).min(want);
            buffer.resize(length, 0);
            let mut filled = 0;
            while filled < length {
                match self
                    .file
                    .read_at(&mut buffer[filled..], self.at + filled as u64)
                {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            if let Some(last) = buffer[..filled].iter().rposition(|b| *b == b'\n') {
                self.at += last as u64 + 1;
                return Ok(&buffer[..=last]);
            }
            if filled < want {
                return Ok(&[]);
            }
            if want >= ENTRY_LIMIT {
                // No entry of ours: passed over, to find the next line.
                self.at += filled as u64;
                want = READ_AT_ONCE;
            } else {
                want = ENTRY_LIMIT;
            }
        }
    }

    /// Moves to the last `count` whole lines; answers how many there are up to that many.
    fn seek_tail(&mut self, count: usize) -> io::Result<usize> {
        const BLOCK: u64 = 64 << 10;
        let mut block = vec![0; BLOCK as usize];
        let mut end = match self.end {
            Some(end) => end,
            None => self.file.metadata()?.len(),
        };
        // Newlines seen, of which the first ends the last line.
        let mut seen = 0;
        self.at = 0;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            let block = &mut block[..(end - start) as usize];
            self.file.read_exact_at(block, start)?;
            for (index, _) in block.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
                if seen == count {
                    self.at = start + index as u64 + 1;
                    return Ok(count);
                }
                seen += 1;
            }
            end = start;
        }
        Ok(seen)
    }
}

/// The open parts, oldest first, and what passes.
struct Files {
    source: Source,
    parts: VecDeque<Part>,
    /// The newest part ever opened, also when it was read and left.
    newest: Option<Inode>,
    buffer: Vec<u8>,
}

impl Files {
    fn open(source: Source, options: &LogOptions) -> Result<Self> {
        let (newest_first, _) = source.open(|_| false)?;
        let reading = || format!("reading {}", source.path.display());
        let newest = newest_first.first().map(|part| part.inode);
        let mut parts = VecDeque::new();
        let mut wanted = options.tail;
        for mut part in newest_first {
            let metadata = part.file.metadata().context(reading)?;
            if !options.follow {
                part.end = Some(metadata.len());
            }
            let written_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            if options.since_ns.is_some_and(|since| written_ns < since) && !parts.is_empty() {
                break;
            }
            if let Some(wanted) = &mut wanted {
                if *wanted == 0 && !parts.is_empty() {
                    break;
                }
                *wanted -= part.seek_tail(*wanted).context(reading)?;
            }
            parts.push_front(part);
        }
        Ok(Self {
            source,
            parts,
            newest,
            buffer: Vec::new(),
        })
    }

    /// Opens what rotation made since the last look.
    fn refresh(&mut self) -> Result<()> {
        let newest = self.newest;
        let (fresh, _) = self.source.open(|inode| Some(inode) == newest)?;
        if let Some(first) = fresh.first() {
            self.newest = Some(first.inode);
        }
        self.parts.extend(fresh.into_iter().rev());
        while self.parts.len() > PARTS_LIMIT {
            self.parts.pop_front();
        }
        Ok(())
    }

    /// The next entries that pass; `None` when nothing more is there now.
    fn next(&mut self, filter: &Filter) -> Result<Option<Batch>> {
        loop {
            let has_successor = self.parts.len() > 1;
            let Some(part) = self.parts.front_mut() else {
                return Ok(None);
            };
            let bytes = part
                .read(&mut self.buffer)
                .context(|| format!("reading {}", self.source.path.display()))?;
            if !bytes.is_empty() {
                return Ok(Some(filter.apply(bytes)));
            }
            if !has_successor {
                return Ok(None);
            }
            self.parts.pop_front();
        }
    }
}

/// Entries that passed, and whether the time to stop was reached.
#[derive(Default)]
struct Batch {
    lines: VecDeque<LogLine>,
    done: bool,
}

/// Which entries a client wants.
struct Filter {
    stdout: bool,
    stderr: bool,
    since_ns: Option<i64>,
    until_ns: Option<i64>,
}

#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow, default)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Cow<'a, str>,
    #[serde(default)]
    attrs: std::collections::BTreeMap<String, String>,
}

impl Filter {
    fn of(options: &LogOptions) -> Self {
        Self {
            stdout: options.stdout,
            stderr: options.stderr,
            since_ns: options.since_ns,
            until_ns: options.until_ns,
        }
    }

    fn apply(&self, bytes: &[u8]) -> Batch {
        let mut batch = Batch::default();
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            // A line that a crash cut short is no entry.
            let Ok(stored) = serde_json::from_slice::<Stored<'_>>(line) else {
                continue;
            };
            if self.since_ns.is_some() || self.until_ns.is_some() {
                let time_ns = stored.time.parse::<jiff::Timestamp>().map_or(0, |time| {
                    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
                });
                if self.until_ns.is_some_and(|until| time_ns > until) {
                    batch.done = true;
                    return batch;
                }
                if self.since_ns.is_some_and(|since| time_ns < since) {
                    continue;
                }
            }
            let (stream, wanted) = match &*stored.stream {
                "stderr" => (Stream::Stderr, self.stderr),
                _ => (Stream::Stdout, self.stdout),
            };
            if wanted {
                batch.lines.push_back(LogLine {
                    stream,
                    time: stored.time.into_owned(),
                    line: Bytes::from(stored.log.into_owned()),
                    attrs: stored.attrs.into_iter().collect(),
                });
            }
        }
        batch
    }
}

fn read_all(
    source: &Source,
    options: &LogOptions,
    out: &mpsc::Sender<Result<LogLine>>,
) -> Result<()> {
    let options = LogOptions {
        follow: false,
        ..options.clone()
    };
    let mut files = Files::open(source.clone(), &options)?;
    let filter = Filter::of(&options);
    while let Some(batch) = files.next(&filter)? {
        for line in batch.lines {
            if out.blocking_send(Ok(line)).is_err() {
                return Ok(());
            }
        }
        if batch.done {
            break;
        }
    }
    Ok(())
}

/// Reads until `ended` and nothing is left. While the client is slow it keeps up with rotation, so that no part is deleted unseen.
async fn follow(
    source: Source,
    options: LogOptions,
    mut watch: Watch,
    ended: impl Future<Output = ()>,
    out: &mpsc::Sender<Result<LogLine>>,
) -> Result<()> {
    let filter = Filter::of(&options);
    let mut files = Files::open(source, &options)?;
    tokio::pin!(ended);
    let (mut over, mut due) = (false, false);
    let until = async {
        match options.until_ns {
            Some(until_ns) => {
                let left = until_ns.saturating_sub(crate::events::now_ns());
                tokio::time::sleep(Duration::from_nanos(u64::try_from(left).unwrap_or(0))).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::pin!(until);
    loop {
        // In this order: what was written before the end was seen is read after it.
        let last_look = over || due;
        if last_look {
            files.refresh()?;
        }
        let Some(batch) = files.next(&filter)? else {
            if last_look {
                return Ok(());
            }
            tokio::select! {
                () = watch.changed() => files.refresh()?,
                () = &mut ended, if !over => over = true,
                () = &mut until, if !due => due = true,
                () = out.closed() => return Ok(()),
            }
            continue;
        };
        for line in batch.lines {
            if !send(out, line, &mut watch, &mut files).await? {
                return Ok(());
            }
        }
        if batch.done {
            return Ok(());
        }
        // A batch is up to a few thousand lines: others get their turn.
        tokio::task::yield_now().await;
        if watch.pending() {
            files.refresh()?;
        }
    }
}

/// False when the client is gone.
async fn send(
    out: &mpsc::Sender<Result<LogLine>>,
    line: LogLine,
    watch: &mut Watch,
    files: &mut Files,
) -> Result<bool> {
    let line = match out.try_send(Ok(line)) {
        Ok(()) => return Ok(true),
        Err(TrySendError::Closed(_)) => return Ok(false),
        Err(TrySendError::Full(line)) => line,
    };
    loop {
        tokio::select! {
            permit = out.reserve() => {
                let Ok(permit) = permit else { return Ok(false) };
                permit.send(line);
                return Ok(true);
            }
            () = watch.changed() => files.refresh()?,
        }
    }
}

/// Tells when something in the log's folder was written, made or renamed.
enum Watch {
    Inotify(AsyncFd<OwnedFd>),
    Clock(tokio::time::Interval),
}

impl Watch {
    /// Before the files are opened, so that nothing happens unseen in between.
    fn new(log: &Path) -> Self {
        let folder = log.parent().unwrap_or(log);
        Self::inotify(folder).unwrap_or_else(|e| {
            tracing::debug!(error = %e, "no inotify instance left: looking at the log every 100 ms");
            let mut clock = tokio::time::interval(LOOK_EVERY);
            clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            Self::Clock(clock)
        })
    }

    fn inotify(folder: &Path) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let descriptor = inotify::init(flags)?;
        let what = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&descriptor, folder, what)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd keeps its own"
        )]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self::Inotify(descriptor))
    }

    /// Waits for the next change. Safe to drop at any time: what was reported and not taken is reported again.
    async fn changed(&mut self) {
        match self {
            Watch::Clock(clock) => {
                clock.tick().await;
            }
            Watch::Inotify(descriptor) => {
                // An error here would come again at once; the end of the container is noticed all the same.
                let Ok(mut ready) = descriptor.readable().await else {
                    return std::future::pending().await;
                };
                drain(descriptor.get_ref());
                ready.clear_ready();
            }
        }
    }

    /// Takes what is there already.
    fn pending(&mut self) -> bool {
        match self {
            Watch::Clock(_) => true,
            Watch::Inotify(descriptor) => drain(descriptor.get_ref()),
        }
    }
}

/// Empties the queue of events: what happened is seen by looking at the files.
fn drain(descriptor: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(descriptor, &mut buffer);
    let mut any = false;
    while reader.next().is_ok() {
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use tokio::sync::Notify;

    fn everything() -> LogOptions {
        LogOptions {
            stdout: true,
            stderr: true,
            ..LogOptions::default()
        }
    }

    fn entry(text: &str, stream: &str, second: usize) -> String {
        format!(
            "{{\"log\":\"{text}\\n\",\"stream\":\"{stream}\",\"time\":\"2024-01-01T00:{:02}:{:02}.5Z\"}}\n",
            second / 60 % 60,
            second % 60
        )
    }

    /// A folder with a log of `parts`, oldest first.
    fn log(parts: &[String]) -> (tempfile::TempDir, Source) {
        let dir = tempfile::tempdir().unwrap();
        let source = Source {
            path: dir.path().join("log"),
            max_files: 20,
        };
        for (age, part) in parts.iter().rev().enumerate() {
            let path = match age {
                0 => source.path.clone(),
                age => source.numbered(age as u32),
            };
            std::fs::write(path, part).unwrap();
        }
        (dir, source)
    }

    fn read(source: &Source, options: LogOptions) -> Vec<String> {
        let mut files = Files::open(source.clone(), &options).unwrap();
        let filter = Filter::of(&options);
        let mut texts = Vec::new();
        while let Some(batch) = files.next(&filter).unwrap() {
            texts.extend(
                batch
                    .lines
                    .iter()
                    .map(|l| String::from_utf8(l.line.to_vec()).unwrap()),
            );
            if batch.done {
                break;
            }
        }
        texts
            .iter()
            .map(|text| text.trim_end().to_owned())
            .collect()
    }

    fn ten_in_three_parts() -> (tempfile::TempDir, Source) {
        let lines: Vec<String> = (0..10)
            .map(|n| {
                entry(
                    &n.to_string(),
                    if n % 2 == 0 { "stdout" } else { "stderr" },
                    n,
                )
            })
            .collect();
        log(&[
            lines[..4].concat(),
            lines[4..7].concat(),
            lines[7..].concat() + "{\"log\":\"torn",
        ])
    }

    #[test]
    fn tail_times_and_streams_select() {
        let (_dir, source) = ten_in_three_parts();
        let with = |change: &dyn Fn(&mut LogOptions)| {
            let mut options = everything();
            change(&mut options);
            read(&source, options).join(" ")
        };
        let at = |second: i64| 1_704_067_200_000_000_000 + second * 1_000_000_000 + 500_000_000;
        assert_eq!(with(&|_| {}), "0 1 2 3 4 5 6 7 8 9");
        assert_eq!(with(&|o| o.tail = Some(0)), "");
        assert_eq!(with(&|o| o.tail = Some(2)), "8 9");
        assert_eq!(with(&|o| o.tail = Some(5)), "5 6 7 8 9");
        assert_eq!(with(&|o| o.tail = Some(99)), "0 1 2 3 4 5 6 7 8 9");
        assert_eq!(with(&|o| o.stderr = false), "0 2 4 6 8");
        // Docker counts before it selects.
        assert_eq!(with(&|o| (o.tail, o.stdout) = (Some(3), false)), "7 9");
        assert_eq!(with(&|o| o.since_ns = Some(at(6))), "6 7 8 9");
        assert_eq!(with(&|o| o.until_ns = Some(at(2))), "0 1 2");
    }

    #[test]
    fn a_torn_line_and_rubbish_are_passed_over() {
        let rubbish = "x".repeat(2 * ENTRY_LIMIT) + "\nnot json\n";
        let (_dir, source) = log(&[entry("a", "stdout", 0) + &rubbish + &entry("b", "stdout", 1)]);
        assert_eq!(read(&source, everything()), ["a", "b"]);
    }

    #[test]
    fn parts_of_a_line_stay_parts() {
        let (_dir, source) =
            log(&["{\"log\":\"be\",\"stream\":\"stdout\",\"time\":\"t\"}\n".into()]);
        let mut files = Files::open(source, &everything()).unwrap();
        let batch = files.next(&Filter::of(&everything())).unwrap().unwrap();
        assert_eq!(
            (batch.lines[0].line.as_ref(), batch.lines[0].time.as_str()),
            (&b"be"[..], "t")
        );
    }

    #[test]
    fn a_long_tail_is_found_across_blocks() {
        let lines: String = (0..5000)
            .map(|n| entry(&n.to_string(), "stdout", n))
            .collect();
        let (_dir, source) = log(&[lines]);
        for count in [1, 999, 4999, 5000] {
            let found = read(
                &source,
                LogOptions {
                    tail: Some(count),
                    ..everything()
                },
            );
            assert_eq!(
                (found.len(), found[0].clone()),
                (count, (5000 - count).to_string())
            );
        }
    }

    /// Rotates as the supervisor does.
    fn rotate(source: &Source, keep: u32) -> File {
        for number in (1..keep).rev() {
            let _ = std::fs::rename(source.numbered(number), source.numbered(number + 1));
        }
        let _ = std::fs::remove_file(source.numbered(keep));
        std::fs::rename(&source.path, source.numbered(1)).unwrap();
        File::create(&source.path).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn following_loses_nothing_while_the_log_rotates() {
        let (_dir, source) = log(&[String::new()]);
        let total = 300_000;
        let over = Arc::new(Notify::new());
        let (out, mut lines) = mpsc::channel(LINES_WAITING);
        let options = LogOptions {
            follow: true,
            ..everything()
        };
        let watch = Watch::new(&source.path);
        let ended = {
            let over = over.clone();
            async move { over.notified().await }
        };
        let follower = source.clone();
        let task = tokio::spawn(async move { follow(follower, options, watch, ended, &out).await });
        let writer = source.clone();
        std::thread::spawn(move || {
            let mut file = File::options().append(true).open(&writer.path).unwrap();
            let mut size = 0;
            let mut batch = String::new();
            for n in 0..total {
                batch += &entry(&n.to_string(), "stdout", n);
                if batch.len() > 60_000 || n + 1 == total {
                    file.write_all(batch.as_bytes()).unwrap();
                    size += batch.len();
                    batch.clear();
                    if size > 1_000_000 {
                        file = rotate(&writer, 19);
                        size = 0;
                    }
                }
            }
            over.notify_one();
        });
        let mut expected = 0;
        while let Some(line) = lines.recv().await {
            let text = String::from_utf8(line.unwrap().line.to_vec()).unwrap();
            assert_eq!(text.trim_end(), expected.to_string());
            expected += 1;
        }
        task.await.unwrap().unwrap();
        assert_eq!(expected, total);
    }

    #[test]
    fn what_rotation_deletes_is_still_read() {
        let (_dir, source) = log(&[entry("0", "stdout", 0)]);
        let options = LogOptions {
            follow: true,
            ..everything()
        };
        let mut files = Files::open(source.clone(), &options).unwrap();
        for n in 1..50 {
            let mut file = rotate(&source, 2);
            file.write_all(entry(&n.to_string(), "stdout", n).as_bytes())
                .unwrap();
            // A look at every second rotation is enough while two are kept.
            if n % 2 == 0 {
                files.refresh().unwrap();
            }
        }
        files.refresh().unwrap();
        let filter = Filter::of(&options);
        let mut expected = 0..50;
        while let Some(batch) = files.next(&filter).unwrap() {
            for line in batch.lines {
                let wanted = format!("{}\n", expected.next().unwrap());
                assert_eq!(line.line, wanted.as_bytes());
            }
        }
        assert_eq!(expected.next(), None);
        assert_eq!(files.parts.len(), 1, "parts that were read are closed");
    }

    #[tokio::test]
    async fn following_an_emptied_log_goes_on_at_its_start() {
        let (_dir, source) = log(&[entry("a", "stdout", 0) + &entry("b", "stdout", 1)]);
        let mut files = Files::open(
            source.clone(),
            &LogOptions {
                follow: true,
                ..everything()
            },
        )
        .unwrap();
        let filter = Filter::of(&everything());
        assert_eq!(files.next(&filter).unwrap().unwrap().lines.len(), 2);
        std::fs::write(&source.path, entry("c", "stdout", 2)).unwrap();
        let batch = files.next(&filter).unwrap().unwrap();
        assert_eq!(batch.lines[0].line.as_ref(), b"c\n");
        assert!(files.next(&filter).unwrap().is_none());
    }
}
