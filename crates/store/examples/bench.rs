//! Durable writes of 256 bytes: the embedded store, etcd over gRPC, or redb through the same kind of group commit.
//!
//! `bench embedded DIR | etcd HOST:PORT | redb DIR`, then writers and seconds. One line of JSON on stdout. `bench pods DIR` stores
//! 150,000 pods of 2 KiB and tells the memory.

#![allow(clippy::print_stdout, reason = "a benchmark's output is data")]

use gantry_store::embedded::Embedded;
use gantry_store::etcd::{Config, Etcd};
use gantry_store::{Answer, Range, Span, Store, Txn};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const TABLE: redb::TableDefinition<'static, &[u8], &[u8]> = redb::TableDefinition::new("store");

type Put = Arc<dyn Fn(Vec<u8>, Vec<u8>) -> Answer<'static, ()> + Send + Sync>;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, place, rest @ ..] = &words[..] else {
        panic!("bench embedded|etcd|redb|pods PLACE [WRITERS SECONDS]");
    };
    let number =
        |at: usize, other: u64| rest.get(at).map_or(other, |n| n.parse().expect("a number"));
    let put = match what.as_str() {
        "pods" => return pods(Path::new(place)).await,
        "embedded" => over(Arc::new(
            Embedded::open(Path::new(place)).expect("the store opens"),
        )),
        "etcd" => {
            let config = Config {
                endpoints: vec![place.clone()],
                ..Config::default()
            };
            over(Arc::new(
                Etcd::connect(&config).await.expect("etcd answers"),
            ))
        }
        "redb" => redb_group_commit(Path::new(place)),
        other => panic!("{other} is not known"),
    };
    let (writers, seconds) = (number(0, 256), number(1, 3));
    let until = Instant::now() + Duration::from_secs(seconds);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for writer in 0..writers {
        let put = put.clone();
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let start = Instant::now();
                let key = format!("/bench/{writer}/{}", took.len());
                put(key.into_bytes(), vec![b'v'; 256])
                    .await
                    .expect("a durable write");
                took.push(start.elapsed());
            }
            took
        }));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a writer"));
    }
    let elapsed = begun.elapsed().as_secs_f64();
    took.sort();
    let micros = |part: usize| took[(took.len() - 1) * part / 100].as_micros();
    println!(
        "{{\"what\":\"{what}\",\"writers\":{writers},\"per_second\":{:.0},\"p50_us\":{},\"p99_us\":{}}}",
        f64::from(u32::try_from(took.len()).expect("fewer than 2^32")) / elapsed,
        micros(50),
        micros(99)
    );
}

fn over(store: Arc<dyn Store>) -> Put {
    Arc::new(move |key, value| {
        let store = store.clone();
        Box::pin(async move { store.txn(Txn::put(key, value)).await.map(drop) })
    })
}

fn redb_group_commit(dir: &Path) -> Put {
    std::fs::create_dir_all(dir).expect("the directory");
    let database = redb::Database::create(dir.join("bench.redb")).expect("redb opens");
    let (queue, jobs) = mpsc::channel::<(Vec<u8>, Vec<u8>, oneshot::Sender<()>)>();
    std::thread::spawn(move || {
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            group.extend(jobs.try_iter().take(1023));
            let write = database.begin_write().expect("a transaction");
            {
                let mut table = write.open_table(TABLE).expect("the table");
                for (key, value, _) in &group {
                    table
                        .insert(key.as_slice(), value.as_slice())
                        .expect("a write");
                }
            }
            write.commit().expect("a durable commit");
            for (.., done) in group {
                let _ = done.send(());
            }
        }
    });
    Arc::new(move |key, value| {
        let (done, answer) = oneshot::channel();
        queue.send((key, value, done)).expect("the thread runs");
        Box::pin(async move {
            answer.await.expect("an answer");
            Ok(())
        })
    })
}

async fn pods(dir: &Path) {
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status
            .lines()
            .find(|l| l.starts_with("VmRSS"))
            .expect("VmRSS");
        line.split_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok())
            .expect("kB")
            / 1024
    };
    let store = Embedded::open(dir).expect("the store opens");
    let before = memory();
    for chunk in 0..1500 {
        let mut answers = Vec::new();
        for n in 0..100 {
            let key = format!(
                "/registry/pods/namespace-{}/pod-{chunk:05}-{n:02}",
                chunk % 50
            );
            let store = store.clone();
            answers.push(tokio::spawn(async move {
                store.txn(Txn::put(key, vec![b'p'; 2048])).await
            }));
        }
        for answer in answers {
            let answer = answer.await.expect("a writer");
            answer.expect("a durable write");
        }
    }
    let stored = memory();
    let begun = Instant::now();
    let ten = store
        .range(Range::of(Span::prefix("/registry/pods/")).limit(10_000))
        .await
        .expect("a list");
    let list = begun.elapsed();
    drop(ten);
    let begun = Instant::now();
    let (mut start, mut pages, mut seen) = ("/registry/pods/".as_bytes().to_vec(), 0, 0);
    loop {
        let span = Span::range(start.clone(), "/registry/pods0");
        let page = store
            .range(Range::of(span).limit(500))
            .await
            .expect("a page");
        seen += page.kvs.len();
        pages += 1;
        start = page.kvs.last().expect("no page is empty").key.to_vec();
        start.push(0);
        if !page.more {
            break;
        }
    }
    let paged = begun.elapsed();
    let after = memory();
    drop(store);
    let begun = Instant::now();
    let store = Embedded::open(dir).expect("the store opens again");
    println!(
        "{{\"pods\":{seen},\"mib_empty\":{before},\"mib_stored\":{stored},\"list_10000_ms\":{},\"pages\":{pages},\"paged_ms\":{},\"mib_after_pages\":{after},\"reopen_ms\":{}}}",
        list.as_millis(),
        paged.as_millis(),
        begun.elapsed().as_millis()
    );
    drop(store);
}
