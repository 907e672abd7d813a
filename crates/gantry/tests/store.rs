//! `gantry store check` and `repair` on a real store with a flipped byte.

use gantry_store::embedded::Embedded;
use gantry_store::{Store, Txn};
use std::path::Path;
use std::process::{Command, Output};

fn gantry(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gantry"))
        .arg("--data-dir")
        .arg(data)
        .args(words)
        .output()
        .unwrap()
}

#[tokio::test]
async fn store_check_names_damage_and_repair_takes_it_out() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().join("store");
    let store = Embedded::open(&dir).unwrap();
    for key in ["/a", "/b", "/c"] {
        store
            .txn(Txn::put(key, format!("value of {key}")))
            .await
            .unwrap();
    }
    let refused = gantry(data.path(), &["store", "check"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use by another gantry"));
    drop(store);
    let good = gantry(data.path(), &["store", "check"]);
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("3 keys"));

    let log = dir.join("log-00000001");
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(11).position(|w| w == b"value of /b").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let bad = gantry(data.path(), &["store", "check"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&bad.stdout).contains("it seems to be /b"),
        "{bad:?}"
    );
    let repaired = gantry(data.path(), &["store", "repair"]);
    assert!(repaired.status.success(), "{repaired:?}");
    let again = gantry(data.path(), &["store", "check", "--output", "json"]);
    assert!(again.status.success(), "{again:?}");
    let store = Embedded::open(&dir).unwrap();
    assert!(store.get("/b".into()).await.unwrap().is_none());
    assert!(store.get("/c".into()).await.unwrap().is_some());
}
