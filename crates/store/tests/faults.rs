//! The embedded store under kill -9, with bytes that are not what was written, on a full disk, and against a model.
//!
//! The killed writer is this test program itself, started again for the one test `writer_that_is_killed`.

use gantry_base::ErrorKind;
use gantry_store::embedded::Embedded;
use gantry_store::{Bytes, Error, Event, Range, Span, Store, Txn, Watch, check};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const DIR: &str = "GANTRY_STORE_TEST_DIR";
const WRITERS: usize = 8;

fn everything() -> Span {
    Span::range("", "")
}

async fn all(store: &dyn Store) -> Vec<(Bytes, Bytes, u64)> {
    let kvs = store.range(Range::of(everything())).await.unwrap().kvs;
    kvs.into_iter()
        .map(|kv| (kv.key, kv.value, kv.mod_revision))
        .collect()
}

/// Not a test by itself: writes until it is killed, and says each acknowledged write on its standard output.
#[test]
fn writer_that_is_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&dir)).unwrap();
        // An event that was watched is durable, and so is one that was acknowledged.
        let from = store.revision().await.unwrap() + 1;
        let watch = Watch {
            span: everything(),
            from,
            prev: false,
        };
        let mut watcher = store.watch(watch).await.unwrap();
        tokio::spawn(async move {
            loop {
                for event in watcher.next().await.unwrap().events {
                    say(&format!(
                        "watched {} {}",
                        event.revision(),
                        String::from_utf8_lossy(event.key())
                    ));
                }
            }
        });
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            tasks.push(tokio::spawn(async move {
                let key = format!("/w/{writer}");
                for n in 0_u64.. {
                    let now = store.get(Bytes::from(key.clone())).await.unwrap();
                    let revision = now.map_or(0, |kv| kv.mod_revision);
                    let value = format!("{n} {}", "x".repeat((n % 700) as usize));
                    say(&format!("try {key} {revision} {value}"));
                    let done = store
                        .txn(Txn::swap(key.clone(), revision, value.clone()))
                        .await
                        .unwrap();
                    // Nobody else writes this key.
                    assert!(done.succeeded);
                    say(&format!("ack {key} {} {value}", done.revision));
                    if n % 100 == 99 && writer == 0 {
                        let _ = store.compact(done.revision - 50).await;
                    }
                    if n % 250 == 249 && writer == 1 {
                        store.rewrite().await.unwrap();
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn rounds(few: u64) -> u64 {
    std::env::var("GANTRY_TEST_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(few)
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_no_acknowledged_write_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // By key: the last acknowledged write and what may have been tried after it.
    let mut acknowledged: HashMap<String, (u64, String)> = HashMap::new();
    let mut next = 2;
    for round in 0..rounds(12) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "writer_that_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIR, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut tried: HashMap<String, String> = HashMap::new();
        let mut watched: Vec<(u64, String)> = Vec::new();
        // The moment is a number of lines, another one each round.
        let moment = 20 + (round * 7919) % 1500;
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            seen += 1;
            if seen == moment {
                child.kill().unwrap();
            }
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("try"), Some(key), Some(_), Some(value)) => {
                    tried.insert(key.to_owned(), value.to_owned());
                }
                (Some("ack"), Some(key), Some(revision), Some(value)) => {
                    tried.remove(key);
                    acknowledged.insert(
                        key.to_owned(),
                        (revision.parse().unwrap(), value.to_owned()),
                    );
                }
                (Some("watched"), Some(revision), Some(key), None) => {
                    watched.push((revision.parse().unwrap(), key.to_owned()));
                }
                _ => {}
            }
        }
        child.wait().unwrap();
        assert!(seen >= moment, "the writer ended by itself");

        let store = Embedded::open(&path).unwrap();
        for (key, (revision, value)) in &mut acknowledged {
            let kv = store
                .get(Bytes::from(key.clone()))
                .await
                .unwrap()
                .expect("an acknowledged key");
            let found = String::from_utf8(kv.value.to_vec()).unwrap();
            if kv.mod_revision == *revision {
                assert_eq!(found, *value, "{key} at {revision}");
            } else {
                // Only the one write that got no answer may stand there.
                assert!(kv.mod_revision > *revision, "{key}: {revision} was lost");
                assert_eq!(Some(&found), tried.get(key), "{key}");
                *revision = kv.mod_revision;
                *value = found;
            }
        }
        // What the watcher heard in the child has no gap and no repetition, and is what is there now.
        for pair in watched.windows(2) {
            assert_eq!(pair[0].0 + 1, pair[1].0, "round {round}");
        }
        let current = store.revision().await.unwrap();
        if let (Some(first), Some(last)) = (watched.first(), watched.last()) {
            assert_eq!(first.0, next, "round {round}");
            assert!(last.0 <= current, "an event that is not durable was shown");
        }
        // A client resumes after what it has heard and gets exactly the rest.
        let resume = watched.last().map_or(next, |(revision, _)| revision + 1);
        let watch = Watch {
            span: everything(),
            from: resume,
            prev: false,
        };
        match store.watch(watch).await {
            Ok(mut watcher) => {
                let mut expected = resume;
                while watcher.resume_from() <= current {
                    for event in watcher.next().await.unwrap().events {
                        assert_eq!(event.revision(), expected);
                        expected += 1;
                    }
                }
                assert_eq!(expected, current + 1);
            }
            Err(Error::Compacted { oldest, .. }) => assert!(oldest > resume),
            Err(e) => panic!("{e}"),
        }
        next = current + 1;
    }
}

async fn filled(path: &Path) -> Vec<(Bytes, Bytes, u64)> {
    let store = Embedded::open(path).unwrap();
    for i in 0..50 {
        store
            .txn(Txn::put(
                format!("/k/{i:02}"),
                format!("value {i} {}", "y".repeat(100)),
            ))
            .await
            .unwrap();
    }
    all(&store).await
}

fn log_of(path: &Path) -> std::path::PathBuf {
    let mut logs: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("log-")
        })
        .collect();
    logs.sort();
    logs.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_named_never_served_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let before = filled(&path).await;
    let log = log_of(&path);
    let whole = std::fs::read(&log).unwrap();
    assert!(check::check(&path).unwrap().findings.is_empty());
    // Every part of the file, headers, keys and values alike.
    for at in (3..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&log, &bytes).unwrap();
        match Embedded::open(&path) {
            Err(Error::Damaged { file, offset, .. }) => {
                assert_eq!(file, log);
                assert!(offset <= at as u64);
                let found = check::check(&path).unwrap().findings;
                assert!(
                    found
                        .iter()
                        .any(|f| f.offset <= at as u64 && at as u64 <= f.offset + f.bytes),
                    "{at}: {found:?}"
                );
            }
            Err(e) => panic!("{e}"),
            Ok(store) => {
                // Only the mark that nothing depends on may break without notice.
                assert_eq!(all(&store).await, before, "byte {at}");
            }
        }
        std::fs::write(&log, &whole).unwrap();
    }
    let at = whole.windows(8).position(|w| w == b"value 20").unwrap();
    let mut bytes = whole.clone();
    bytes[at] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    let repaired = check::repair(&path).unwrap();
    assert_eq!(repaired.findings[0].key.as_deref(), Some("/k/20"));
    assert_eq!(std::fs::read(&repaired.kept[0]).unwrap(), bytes);
    let store = Embedded::open(&path).unwrap();
    let wanted: Vec<_> = before
        .iter()
        .filter(|(key, ..)| key != "/k/20")
        .cloned()
        .collect();
    assert_eq!(all(&store).await, wanted);
    // Nobody who watched may go on as if nothing had happened, and no revision is given twice.
    let watch = Watch {
        span: everything(),
        from: 10,
        prev: false,
    };
    assert!(matches!(
        store.watch(watch).await,
        Err(Error::Compacted { .. })
    ));
    let last = before.iter().map(|(.., revision)| *revision).max().unwrap();
    let again = store
        .txn(Txn::put("/k/20", "again"))
        .await
        .unwrap()
        .revision;
    assert!(again > last + 1);
    drop(store);
    assert!(check::check(&path).unwrap().findings.is_empty());
    assert!(check::repair(&path).unwrap().kept.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_rots_while_the_store_is_open_is_not_served() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Embedded::open(&path).unwrap();
    store.txn(Txn::put("/good", "fine")).await.unwrap();
    store.txn(Txn::put("/bad", "rotten value")).await.unwrap();
    let log = log_of(&path);
    let bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(6).position(|w| w == b"rotten").unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.write_all_at(b"R", at as u64).unwrap();
    let refused = store.get("/bad".into()).await.unwrap_err();
    assert!(refused.to_string().contains("/bad"), "{refused}");
    assert!(matches!(refused, Error::Damaged { .. }));
    assert!(store.range(Range::of(everything())).await.is_err());
    assert!(store.get("/good".into()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_cut_off_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let store = Embedded::open(&path).unwrap();
        store.txn(Txn::put("/a", "1")).await.unwrap();
    }
    let log = log_of(&path);
    let first = std::fs::read(&log).unwrap();
    {
        let store = Embedded::open(&path).unwrap();
        let both = Txn {
            then: vec![
                gantry_store::Op::put("/b", "2"),
                gantry_store::Op::put("/c", "3"),
            ],
            ..Txn::default()
        };
        store.txn(both).await.unwrap();
    }
    let second = std::fs::read(&log).unwrap();
    let mut shown = std::collections::BTreeSet::new();
    for length in first.len()..=second.len() {
        std::fs::write(&log, &second[..length]).unwrap();
        let store = Embedded::open(&path).unwrap();
        shown.insert(all(&store).await.len());
        drop(store);
    }
    // The transaction of two keys is whole or absent.
    assert_eq!(Vec::from_iter(shown), [1, 3]);
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    assert!(matches!(Embedded::open(dir.path()), Err(Error::InUse(_))));
    assert!(matches!(check::check(dir.path()), Err(Error::InUse(_))));
    drop(store);
    Embedded::open(dir.path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_keeps_what_counts_and_frees_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Embedded::open(&path).unwrap();
    let mut last = 0;
    for i in 0..400 {
        last = store
            .txn(Txn::put(format!("/k/{}", i % 20), vec![b'z'; 2000]))
            .await
            .unwrap()
            .revision;
    }
    store.txn(Txn::delete("/k/3")).await.unwrap();
    store.compact(last).await.unwrap();
    let before = all(&store).await;
    let (total, _) = store.disk_bytes();
    store.rewrite().await.unwrap();
    assert!(store.disk_bytes().0 < total / 5);
    assert_eq!(all(&store).await, before);
    let watch = Watch {
        span: everything(),
        from: last + 1,
        prev: true,
    };
    let mut watcher = store.watch(watch).await.unwrap();
    let Event::Delete { key, prev, .. } = watcher.next().await.unwrap().events.remove(0) else {
        panic!("a deletion");
    };
    assert_eq!(&key[..], b"/k/3");
    assert!(prev.is_some());
    drop((watcher, store));
    let store = Embedded::open(&path).unwrap();
    assert_eq!(all(&store).await, before);
    assert_eq!(store.revision().await.unwrap(), last + 1);
}

/// In a mount namespace of its own: the test starts itself under `unshare` with a small tmpfs.
#[test]
fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    if let Ok(dir) = std::env::var("GANTRY_STORE_TEST_FULL") {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(full_disk(Path::new(&dir)));
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$1\" && exec \"$2\" --exact a_full_disk_refuses_writes_serves_reads_and_recovers --nocapture";
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env("GANTRY_STORE_TEST_FULL", dir.path())
        .status()
        .unwrap();
    assert!(status.success());
}

async fn full_disk(dir: &Path) {
    let store = Embedded::open(&dir.join("store")).unwrap();
    store.txn(Txn::put("/first", "here")).await.unwrap();
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let mut written = 0;
    let refused = loop {
        match store
            .txn(Txn::put(format!("/fill/{written}"), vec![1; 50_000]))
            .await
        {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 100, "the disk does not fill");
    };
    assert!(matches!(refused, Error::Full(_)), "{refused:?}");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.retry_after().is_some());
    let revision = store.revision().await.unwrap();
    assert_eq!(
        &store.get("/first".into()).await.unwrap().unwrap().value[..],
        b"here"
    );
    assert_eq!(all(&store).await.len(), written + 1);
    assert!(store.txn(Txn::put("/no", vec![1; 50_000])).await.is_err());
    std::fs::remove_file(&ballast).unwrap();
    let done = store.txn(Txn::put("/after", "room")).await.unwrap();
    assert_eq!(done.revision, revision + 1);
    drop(store);
    let store = Embedded::open(&dir.join("store")).unwrap();
    assert_eq!(all(&store).await.len(), written + 2);
}

/// Reads that overlap swaps of one key, recorded and checked: an order exists in which every answer is true.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_histories_are_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let start = std::time::Instant::now();
    let mut tasks = Vec::new();
    for client in 0..16 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let mut history = Vec::new();
            for n in 0..60 {
                let called = start.elapsed();
                let seen = store.get("/x".into()).await.unwrap();
                let revision = seen.map_or(0, |kv| kv.mod_revision);
                history.push((called, start.elapsed(), revision, false));
                let called = start.elapsed();
                let done = store
                    .txn(Txn::swap("/x", revision, format!("{client} {n}")))
                    .await
                    .unwrap();
                if done.succeeded {
                    history.push((called, start.elapsed(), done.revision, true));
                }
            }
            history
        }));
    }
    let mut history = Vec::new();
    for task in tasks {
        history.extend(task.await.unwrap());
    }
    // Revisions are the order. It is a linearization if no operation shows a state older than one that was known before it began.
    history.sort();
    let mut ended: Vec<(Duration, u64)> = history.iter().map(|h| (h.1, h.2)).collect();
    ended.sort();
    let (mut known, mut at) = (0, 0);
    for (called, _, revision, write) in &history {
        while at < ended.len() && ended[at].0 < *called {
            known = known.max(ended[at].1);
            at += 1;
        }
        assert!(
            *revision >= known,
            "an operation showed {revision} after {known} was known"
        );
        assert!(!write || *revision > known);
    }
    let mut writes: Vec<u64> = history.iter().filter(|h| h.3).map(|h| h.2).collect();
    writes.sort_unstable();
    assert_eq!(writes, Vec::from_iter(2..2 + writes.len() as u64));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Swap(u8, bool, u8),
    Compact(u8),
    Rewrite,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (0..6_u8).prop_map(Step::Delete),
        2 => (0..6_u8, any::<bool>(), any::<u8>()).prop_map(|(k, right, v)| Step::Swap(k, right, v)),
        1 => (0..5_u8).prop_map(Step::Compact),
        1 => Just(Step::Rewrite),
        1 => Just(Step::Reopen),
    ]
}

/// The whole truth, kept naively: the states after each revision.
#[derive(Debug, Default)]
struct Model {
    states: Vec<BTreeMap<u8, (u8, u64)>>,
    compacted: u64,
}

impl Model {
    fn revision(&self) -> u64 {
        self.states.len() as u64
    }
    fn now(&self) -> &BTreeMap<u8, (u8, u64)> {
        &self.states[self.states.len() - 1]
    }
    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<u8, (u8, u64)>, u64)) {
        let mut next = self.now().clone();
        change(&mut next, self.revision() + 1);
        self.states.push(next);
    }
}

async fn compare(store: &Embedded, model: &Model) {
    assert_eq!(store.revision().await.unwrap(), model.revision());
    for revision in 1..=model.revision() {
        let answer = store.range(Range::of(everything()).at(revision)).await;
        if revision < model.compacted {
            assert!(matches!(answer, Err(Error::Compacted { .. })));
            continue;
        }
        let found: BTreeMap<u8, (u8, u64)> = answer
            .unwrap()
            .kvs
            .iter()
            .map(|kv| (kv.key[0], (kv.value[0], kv.mod_revision)))
            .collect();
        assert_eq!(
            found,
            model.states[usize::try_from(revision - 1).unwrap()],
            "at {revision}"
        );
    }
    // The first revision is the empty store: it has no event, and who waits for one waits for ever.
    let from = (model.compacted + 1).max(2);
    let mut watcher = store
        .watch(Watch {
            span: everything(),
            from,
            prev: false,
        })
        .await
        .unwrap();
    let mut replayed = model.states[usize::try_from(model.compacted.max(1) - 1).unwrap()].clone();
    while watcher.resume_from() <= model.revision() && model.revision() >= from {
        for event in watcher.next().await.unwrap().events {
            match event {
                Event::Put { kv, .. } => replayed.insert(kv.key[0], (kv.value[0], kv.mod_revision)),
                Event::Delete { key, .. } => replayed.remove(&key[0]),
            };
        }
    }
    assert_eq!(&replayed, model.now());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn the_store_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Embedded::open(dir.path()).unwrap();
            let mut model = Model { states: vec![BTreeMap::new()], compacted: 0 };
            for step in steps {
                match step {
                    Step::Put(k, v) => {
                        store.txn(Txn::put(vec![k], vec![v])).await.unwrap();
                        model.change(|state, revision| { state.insert(k, (v, revision)); });
                    }
                    Step::Delete(k) => {
                        store.txn(Txn::delete(vec![k])).await.unwrap();
                        if model.now().contains_key(&k) {
                            model.change(|state, _| { state.remove(&k); });
                        }
                    }
                    Step::Swap(k, right, v) => {
                        let current = model.now().get(&k).map_or(0, |(_, revision)| *revision);
                        let revision = if right { current } else { current + 1 };
                        let done = store.txn(Txn::swap(vec![k], revision, vec![v])).await.unwrap();
                        assert_eq!(done.succeeded, right);
                        if right {
                            model.change(|state, revision| { state.insert(k, (v, revision)); });
                        }
                    }
                    Step::Compact(back) => {
                        let revision = model.revision().saturating_sub(u64::from(back)).max(1);
                        let done = store.compact(revision).await;
                        assert_eq!(done.is_ok(), revision > model.compacted);
                        model.compacted = model.compacted.max(revision);
                    }
                    Step::Rewrite => store.rewrite().await.unwrap(),
                    Step::Reopen => {
                        drop(store);
                        store = Embedded::open(dir.path()).unwrap();
                    }
                }
            }
            compare(&store, &model).await;
        });
    }
}
