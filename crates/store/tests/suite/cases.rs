//! The cases. Each takes a prefix of its own, so that one store serves all.

use super::etcd_server::EtcdServer;
use gantry_base::ErrorKind;
use gantry_store::{
    Bytes, Compare, Done, Error, Event, Op, Range, Span, Store, Txn, Watch, Watcher,
};
use std::time::Duration;

/// Longer than anything here takes; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn all(store: &dyn Store) {
    revisions_and_versions(store).await;
    ranges_page_at_one_revision(store).await;
    transactions_compare_and_swap(store).await;
    refusals(store).await;
    racing_swaps_have_one_winner(store).await;
    watch_has_everything_once(store).await;
    watch_shows_what_was_before(store).await;
    leases_take_their_keys(store).await;
    compaction_ends_old_reads_and_watches(store).await;
}

async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    store
        .txn(Txn::put(key.to_owned(), value.to_owned()))
        .await
        .unwrap()
        .revision
}

async fn delete(store: &dyn Store, key: &str) -> u64 {
    store
        .txn(Txn::delete(key.to_owned()))
        .await
        .unwrap()
        .revision
}

fn key(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn prefix(text: &str) -> Span {
    Span::prefix(key(text))
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    let kvs = store.range(range).await.unwrap().kvs;
    kvs.iter()
        .map(|kv| String::from_utf8(kv.key.to_vec()).unwrap())
        .collect()
}

async fn revisions_and_versions(store: &dyn Store) {
    let first = put(store, "/rev/a", "1").await;
    assert_eq!(put(store, "/rev/a", "2").await, first + 1);
    let kv = store.get(key("/rev/a")).await.unwrap().unwrap();
    assert_eq!(
        (
            kv.create_revision,
            kv.mod_revision,
            kv.version,
            &kv.value[..]
        ),
        (first, first + 1, 2, &b"2"[..])
    );
    assert_eq!(delete(store, "/rev/a").await, first + 2);
    assert!(store.get(key("/rev/a")).await.unwrap().is_none());
    // What is not there is not deleted again, and takes no revision.
    let again = store.txn(Txn::delete("/rev/a")).await.unwrap();
    assert_eq!(again.results, [Done::Deleted(false)]);
    assert_eq!(again.revision, first + 2);
    assert_eq!(put(store, "/rev/a", "3").await, first + 3);
    let kv = store.get(key("/rev/a")).await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.version), (first + 3, 1));
    for (revision, value) in [
        (first, Some("1")),
        (first + 1, Some("2")),
        (first + 2, None),
    ] {
        let then = store
            .range(Range::of(Span::key("/rev/a")).at(revision))
            .await
            .unwrap();
        assert_eq!(
            then.kvs.first().map(|kv| &kv.value[..]),
            value.map(str::as_bytes)
        );
    }
    assert_eq!(store.revision().await.unwrap(), first + 3);
}

async fn ranges_page_at_one_revision(store: &dyn Store) {
    for i in 0..10 {
        put(store, &format!("/page/{i}"), "x").await;
    }
    put(store, "/page0", "outside").await;
    let mut range = Range::of(prefix("/page/")).limit(4);
    range.count = true;
    let first = store.range(range.clone()).await.unwrap();
    assert_eq!(
        (first.kvs.len(), first.more, first.count),
        (4, true, Some(10))
    );
    // What happens between two pages is not in the second.
    put(store, "/page/55", "new").await;
    delete(store, "/page/9").await;
    let mut seen = first.kvs.clone();
    let mut more = first.more;
    while more {
        let mut next = seen.last().unwrap().key.to_vec();
        next.push(0);
        range.span.start = next.into();
        range.revision = first.revision;
        let page = store.range(range.clone()).await.unwrap();
        more = page.more;
        seen.extend(page.kvs);
    }
    let seen: Vec<_> = seen.iter().map(|kv| kv.key.to_vec()).collect();
    let wanted: Vec<_> = (0..10).map(|i| format!("/page/{i}").into_bytes()).collect();
    assert_eq!(seen, wanted);
    let backwards = Range::of(Span::range("/page/5", "/page/1"));
    assert_eq!(keys(store, backwards).await, Vec::<String>::new());
    let mut only = Range::of(prefix("/page/")).limit(1);
    only.keys_only = true;
    assert!(store.range(only).await.unwrap().kvs[0].value.is_empty());
}

async fn transactions_compare_and_swap(store: &dyn Store) {
    let made = store.txn(Txn::swap("/cas", 0, "1")).await.unwrap();
    assert!(made.succeeded);
    let again = store.txn(Txn::swap("/cas", 0, "2")).await.unwrap();
    assert!(!again.succeeded);
    let [Done::Got(Some(there))] = &again.results[..] else {
        panic!("{again:?}");
    };
    assert_eq!(
        (there.mod_revision, &there.value[..]),
        (made.revision, &b"1"[..])
    );
    let swapped = store
        .txn(Txn::swap("/cas", made.revision, "3"))
        .await
        .unwrap();
    assert!(swapped.succeeded);
    // Several keys take one revision.
    let both = Txn {
        when: vec![
            Compare::mod_revision("/cas", swapped.revision),
            Compare::absent("/cas2"),
        ],
        then: vec![Op::put("/cas", "4"), Op::put("/cas2", "5"), Op::get("/cas")],
        or_else: vec![],
    };
    let both = store.txn(both).await.unwrap();
    assert!(both.succeeded);
    let Done::Got(Some(inside)) = &both.results[2] else {
        panic!("{both:?}");
    };
    assert_eq!(&inside.value[..], b"4");
    for name in ["/cas", "/cas2"] {
        let kv = store.get(key(name)).await.unwrap().unwrap();
        assert_eq!(kv.mod_revision, both.revision);
    }
    assert!(
        !store
            .txn(Txn::remove("/cas", made.revision))
            .await
            .unwrap()
            .succeeded
    );
    assert!(
        store
            .txn(Txn::remove("/cas", both.revision))
            .await
            .unwrap()
            .succeeded
    );
}

async fn refusals(store: &dyn Store) {
    let twice = Txn {
        then: vec![Op::put("/no", "1"), Op::put("/no", "2")],
        ..Txn::default()
    };
    assert!(matches!(store.txn(twice).await, Err(Error::Invalid(_))));
    assert!(matches!(
        store.txn(Txn::put("", "1")).await,
        Err(Error::Invalid(_))
    ));
    let large = Txn::put("/no", vec![0; 2 << 20]);
    assert!(matches!(store.txn(large).await, Err(Error::Invalid(_))));
    let future = Range::of(Span::key("/no")).at(store.revision().await.unwrap() + 10);
    assert!(matches!(
        store.range(future).await,
        Err(Error::Future { .. })
    ));
    let lease = Txn {
        then: vec![Op::Put {
            key: key("/no"),
            value: key("1"),
            lease: 12345,
        }],
        ..Txn::default()
    };
    assert!(matches!(store.txn(lease).await, Err(Error::NoLease(12345))));
    assert!(matches!(
        store.keep_alive(12345).await,
        Err(Error::NoLease(12345))
    ));
    assert!(matches!(
        store.revoke(12345).await,
        Err(Error::NoLease(12345))
    ));
    assert!(store.get(key("/no")).await.unwrap().is_none());
}

async fn racing_swaps_have_one_winner(store: &dyn Store) {
    put(store, "/race", "0").await;
    for _ in 0..20 {
        let before = store.get(key("/race")).await.unwrap().unwrap().mod_revision;
        let (a, b, c) = tokio::join!(
            store.txn(Txn::swap("/race", before, "a")),
            store.txn(Txn::swap("/race", before, "b")),
            store.txn(Txn::swap("/race", before, "c")),
        );
        let winners = [a, b, c]
            .iter()
            .filter(|r| r.as_ref().unwrap().succeeded)
            .count();
        assert_eq!(winners, 1);
    }
}

/// Collects events until `until` has been delivered.
async fn collect(watcher: &mut dyn Watcher, until: u64) -> Vec<Event> {
    let mut events = Vec::new();
    while watcher.resume_from() <= until {
        let batch = tokio::time::timeout(PATIENCE, watcher.next())
            .await
            .expect("events")
            .unwrap();
        assert!(!batch.events.is_empty());
        events.extend(batch.events);
    }
    events
}

fn told(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| {
            let key = String::from_utf8_lossy(event.key()).into_owned();
            match event {
                Event::Put { kv, .. } => format!("{key}={}", String::from_utf8_lossy(&kv.value)),
                Event::Delete { .. } => format!("{key} gone"),
            }
        })
        .collect()
}

async fn watch_has_everything_once(store: &dyn Store) {
    let start = put(store, "/watch/a", "1").await;
    put(store, "/watch/b", "1").await;
    put(store, "/elsewhere", "1").await;
    let watch = |from| Watch {
        span: prefix("/watch/"),
        from,
        prev: false,
    };
    let mut old = store.watch(watch(start)).await.unwrap();
    let mut now = store.watch(watch(0)).await.unwrap();
    delete(store, "/watch/a").await;
    let both = Txn {
        then: vec![Op::put("/watch/c", "2"), Op::put("/watch/d", "2")],
        ..Txn::default()
    };
    let last = store.txn(both).await.unwrap().revision;
    let wanted = [
        "/watch/a=1",
        "/watch/b=1",
        "/watch/a gone",
        "/watch/c=2",
        "/watch/d=2",
    ];
    let events = collect(&mut *old, last).await;
    assert_eq!(told(&events), wanted);
    assert_eq!(events[4].revision(), events[3].revision());
    assert_eq!(told(&collect(&mut *now, last).await), wanted[2..]);
    // A watch from any revision has exactly the rest.
    let mut middle = store.watch(watch(events[2].revision())).await.unwrap();
    assert_eq!(told(&collect(&mut *middle, last).await), wanted[2..]);
    // A call that is given up loses nothing.
    let waited = tokio::time::timeout(Duration::from_millis(5), now.next()).await;
    assert!(waited.is_err());
    let last = put(store, "/watch/e", "3").await;
    assert_eq!(told(&collect(&mut *now, last).await), ["/watch/e=3"]);
    // A slow watcher gets all of it.
    let mut last = 0;
    for i in 0..2500 {
        last = put(store, "/watch/f", &i.to_string()).await;
    }
    let events = collect(&mut *now, last).await;
    assert_eq!(events.len(), 2500);
    for pair in events.windows(2) {
        assert_eq!(pair[0].revision() + 1, pair[1].revision());
    }
}

async fn watch_shows_what_was_before(store: &dyn Store) {
    let start = put(store, "/prev", "1").await;
    put(store, "/prev", "2").await;
    let last = delete(store, "/prev").await;
    let watch = Watch {
        span: Span::key("/prev"),
        from: start,
        prev: true,
    };
    let mut watcher = store.watch(watch).await.unwrap();
    let before: Vec<Option<Bytes>> = collect(&mut *watcher, last)
        .await
        .into_iter()
        .map(|event| match event {
            Event::Put { prev, .. } | Event::Delete { prev, .. } => prev.map(|kv| kv.value),
        })
        .collect();
    assert_eq!(before, [None, Some(key("1")), Some(key("2"))]);
}

async fn leases_take_their_keys(store: &dyn Store) {
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let with = |name: &str, lease| Txn {
        then: vec![Op::Put {
            key: key(name),
            value: key("x"),
            lease,
        }],
        ..Txn::default()
    };
    store.txn(with("/lease/a", lease)).await.unwrap();
    store.txn(with("/lease/b", lease)).await.unwrap();
    store.txn(with("/lease/kept", lease)).await.unwrap();
    // A write without the lease takes the key out of it.
    put(store, "/lease/kept", "y").await;
    store.keep_alive(lease).await.unwrap();
    assert_eq!(
        store.get(key("/lease/a")).await.unwrap().unwrap().lease,
        lease
    );
    let from = store.revision().await.unwrap() + 1;
    store.revoke(lease).await.unwrap();
    assert_eq!(
        keys(store, Range::of(prefix("/lease/"))).await,
        ["/lease/kept"]
    );
    let watch = Watch {
        span: prefix("/lease/"),
        from,
        prev: false,
    };
    let mut watcher = store.watch(watch).await.unwrap();
    let gone = collect(&mut *watcher, from).await;
    assert_eq!(told(&gone), ["/lease/a gone", "/lease/b gone"]);
    assert_eq!(gone[0].revision(), gone[1].revision());
    // One that nobody keeps alive ends by itself.
    let short = store.grant(Duration::from_secs(1)).await.unwrap();
    let at = store
        .txn(with("/lease/short", short))
        .await
        .unwrap()
        .revision;
    assert_eq!(
        told(&collect(&mut *watcher, at + 1).await),
        ["/lease/kept=y", "/lease/short=x", "/lease/short gone"][1..]
    );
    assert!(matches!(
        store.keep_alive(short).await,
        Err(Error::NoLease(_))
    ));
}

async fn compaction_ends_old_reads_and_watches(store: &dyn Store) {
    let old = put(store, "/compact/a", "1").await;
    put(store, "/compact/b", "1").await;
    put(store, "/compact/a", "2").await;
    let gone = delete(store, "/compact/b").await;
    let at = put(store, "/compact/c", "1").await;
    let watch = |from| Watch {
        span: prefix("/compact/"),
        from,
        prev: false,
    };
    let mut slow = store.watch(watch(at + 1)).await.unwrap();
    store.compact(at).await.unwrap();
    assert!(matches!(
        store.compact(at).await,
        Err(Error::Compacted { .. })
    ));
    assert!(matches!(
        store.compact(at + 100).await,
        Err(Error::Future { .. })
    ));
    for revision in [old, gone - 1] {
        let range = Range::of(prefix("/compact/")).at(revision);
        let refused = store.range(range).await.unwrap_err();
        assert!(matches!(refused, Error::Compacted { .. }), "{refused:?}");
    }
    let mut watcher = store.watch(watch(old)).await;
    let refused = match &mut watcher {
        Err(e) => e.clone(),
        Ok(watcher) => watcher.next().await.unwrap_err(),
    };
    let Error::Compacted { oldest, .. } = refused else {
        panic!("{refused:?}");
    };
    assert!(oldest >= at);
    assert_eq!(
        keys(store, Range::of(prefix("/compact/")).at(at)).await,
        ["/compact/a", "/compact/c"]
    );
    assert_eq!(
        keys(store, Range::of(prefix("/compact/"))).await,
        ["/compact/a", "/compact/c"]
    );
    let last = put(store, "/compact/a", "3").await;
    assert_eq!(told(&collect(&mut *slow, last).await), ["/compact/a=3"]);
}

pub(crate) async fn outage(store: &dyn Store, server: &mut EtcdServer) {
    let before = put(store, "/outage", "1").await;
    let watch = Watch {
        span: prefix("/outage"),
        from: before,
        prev: false,
    };
    let mut watcher = store.watch(watch).await.unwrap();
    assert_eq!(told(&collect(&mut *watcher, before).await), ["/outage=1"]);
    server.kill();
    let refused = store.get(key("/outage")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert!(refused.retry_after().is_some());
    let ended = tokio::time::timeout(PATIENCE, watcher.next())
        .await
        .expect("an answer");
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
    server.restart();
    let deadline = std::time::Instant::now() + PATIENCE;
    let last = loop {
        match store.txn(Txn::put("/outage", "2")).await {
            Ok(done) => break done.revision,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable, "{e:?}"),
        }
        assert!(
            std::time::Instant::now() < deadline,
            "etcd does not come back"
        );
    };
    let mut events = Vec::new();
    while watcher.resume_from() <= last {
        match tokio::time::timeout(PATIENCE, watcher.next())
            .await
            .expect("an answer")
        {
            Ok(batch) => events.extend(batch.events),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable, "{e:?}"),
        }
    }
    // The put may have been tried more than once, but nothing is repeated and nothing left out.
    assert!(
        events
            .windows(2)
            .all(|pair| pair[0].revision() + 1 == pair[1].revision())
    );
    assert_eq!(events.first().map(Event::revision), Some(before + 1));
}
