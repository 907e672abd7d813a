//! How fast a real archive goes in and out. Ignored: it needs an archive, and figures mean something only from a release build.
//!
//! `GANTRY_ARCHIVE=x.tar cargo test -p gantry-image --release --test speed -- --ignored --nocapture`

use gantry_base::db::Db;
use gantry_image::Store;
use std::fs::File;
use std::time::Instant;

#[test]
#[ignore = "measures; set GANTRY_ARCHIVE"]
fn load_and_save() {
    let archive =
        std::env::var_os("GANTRY_ARCHIVE").expect("GANTRY_ARCHIVE names a docker archive");
    let megabytes = std::fs::metadata(&archive).unwrap().len() as f64 / 1e6;
    let folder = match std::env::var_os("GANTRY_TMP") {
        Some(parent) => tempfile::tempdir_in(parent).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let db = Db::open(&folder.path().join("node.redb")).unwrap();
    let store = Store::open(
        &folder.path().join("images"),
        db,
        gantry_image::Registries::default(),
    )
    .unwrap();
    let report = |what: &str, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{what:28} {seconds:.3} s  {:.0} MB/s", megabytes / seconds);
    };
    for _ in 0..3 {
        let start = Instant::now();
        let loaded = store
            .load(File::open(&archive).unwrap(), &mut |_, _| {})
            .unwrap();
        report("load (absent)", start);

        let start = Instant::now();
        store
            .load(File::open(&archive).unwrap(), &mut |_, _| {})
            .unwrap();
        report("load (present)", start);

        let name = loaded[0].id.to_string();
        let start = Instant::now();
        store
            .save(
                std::slice::from_ref(&name),
                File::create(folder.path().join("out.tar")).unwrap(),
            )
            .unwrap();
        report("save", start);

        let start = Instant::now();
        for _ in 0..10_000 {
            std::hint::black_box(store.get(&name).unwrap());
        }
        eprintln!(
            "get                          {:?} each",
            start.elapsed() / 10_000
        );
        let id = loaded[0].id.clone();
        let start = Instant::now();
        for i in 0..200 {
            store
                .prepare(&id, &folder.path().join(format!("c{i}")))
                .unwrap();
        }
        eprintln!(
            "prepare                      {:?} each",
            start.elapsed() / 200
        );
        let start = Instant::now();
        store.remove(&name, true, &|_| Vec::new()).unwrap();
        report("remove", start);
    }
}
