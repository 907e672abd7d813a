//! A disk budget, pins, looking at what the disk has kept, and a disk that is full.

mod common;

use common::registry::Fake;
use common::*;
use gantry_base::db::Db;
use gantry_image::{DiskBudget, Progress, PushProgress, Reclaimed, Registries};
use gantry_oci::{Digest, Reference};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn layer(name: &str, size: usize) -> Vec<u8> {
    Tar::new().file(name, &vec![b'x'; size]).end()
}

/// Images `a:1` … that share a base layer, the first used longest ago.
fn four() -> World {
    let world = World::new();
    for (age, name) in ["a", "b", "c", "d"].iter().enumerate() {
        let layers = [layer("base", 50_000), layer(name, 10_000)];
        world
            .load(&docker_archive(&layers, &[&format!("{name}:1")]))
            .unwrap();
        used(&world, &format!("{name}:1"), 100 - age as u64);
    }
    world
}

/// Makes the image look as if it was used so many seconds ago.
fn used(world: &World, name: &str, seconds: u64) {
    let hex = world.image(name).id.hex();
    let path = world.images_dir().join("blobs/sha256").join(hex);
    let time = SystemTime::now() - Duration::from_secs(seconds);
    let file = std::fs::File::open(path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(time))
        .unwrap();
}

fn reclaim(world: &World, bytes: u64, keep: usize, dry_run: bool, in_use: &[Digest]) -> Reclaimed {
    let budget = DiskBudget {
        bytes,
        keep,
        dry_run,
    };
    world
        .store
        .reclaim(budget, &|id| in_use.contains(id))
        .unwrap()
        .0
}

fn names(reclaimed: &Reclaimed) -> Vec<String> {
    reclaimed
        .images
        .iter()
        .flat_map(|i| i.tags.clone())
        .collect()
}

#[test]
fn a_budget_takes_the_longest_unused_first_and_a_dry_run_nothing() {
    let world = four();
    let all = reclaim(&world, u64::MAX, 0, true, &[]);
    assert_eq!((names(&all).len(), all.before), (0, all.after));
    let one_less = all.before - 1;
    let dry = reclaim(&world, one_less, 0, true, &[]);
    assert_eq!(names(&dry), ["a:1"]);
    assert_eq!(world.store.list().unwrap().len(), 4);
    // The shared base stays until the last one goes.
    assert!(dry.images[0].freed < 40_000, "{dry:?}");
    assert_eq!(dry.after, dry.before - dry.images[0].freed);
    // A container was made of it: it is the newest now.
    drop(world.store.hold(&world.image("a:1").id).unwrap());
    assert_eq!(names(&reclaim(&world, one_less, 0, false, &[])), ["b:1"]);
    assert!(world.store.get("b:1").is_err());
    let rest = reclaim(&world, 0, 0, false, &[]);
    assert_eq!((names(&rest).len(), rest.after), (3, 0));
    assert_eq!(world.files(), Vec::<String>::new());
}

#[test]
fn running_pinned_and_last_used_images_are_protected() {
    let world = four();
    let running = world.image("a:1").id.clone();
    world.store.pin("b:1", true).unwrap();
    assert_eq!(world.store.pins().unwrap(), ["docker.io/library/b:1"]);
    let world = world.reopen();
    let taken = reclaim(&world, 0, 1, false, std::slice::from_ref(&running));
    assert_eq!(names(&taken), ["c:1"]);
    let why: Vec<_> = ["a:1", "b:1", "d:1"]
        .map(|name| taken.protected[&world.image(name).id.to_string()])
        .into();
    assert_eq!(why, ["a container uses it", "pinned", "used lately"]);
    // Prune leaves pinned ones, too.
    world
        .store
        .prune(true, &|_| true, &|id| *id == running)
        .unwrap();
    assert!(world.store.get("d:1").is_err());
    assert_eq!(world.image("b:1").tags.len(), 1);
    world.store.pin("b:1", false).unwrap();
    assert!(world.store.pin("none:1", true).is_err());
    world.store.prune(true, &|_| true, &|_| false).unwrap();
    assert_eq!(world.files(), Vec::<String>::new());
}

/// Changes one bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn one_flipped_bit_on_disk_is_found_and_healed() {
    let fake = Fake::new();
    let name = format!("{}/a:1", fake.host);
    let world = World::new();
    let packed: Vec<Vec<u8>> = [layer("f", 5000), layer("g", 70_000)]
        .iter()
        .map(|l| gzip(l))
        .collect();
    let plain = [layer("f", 5000), layer("g", 70_000)];
    world
        .load(&docker_archive_of(&plain, &packed, &[&name]))
        .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reference = Reference::parse(&name).unwrap();
    let transfer = |world: &World| {
        let resolved = runtime
            .block_on(world.store.resolve(&reference, "", None))
            .unwrap();
        let progress = |_: Progress<'_>| {};
        let store = &world.store;
        store
            .pull(runtime.handle(), &resolved, &progress, &|| false)
            .unwrap();
    };
    let progress = |_: PushProgress<'_>| {};
    world
        .store
        .push(runtime.handle(), &reference, None, &progress, &|| false)
        .unwrap();
    // With the manifest that the registry has.
    transfer(&world);
    let check = |world: &World, repair: bool| world.store.check(repair, &|_| false).unwrap();
    assert!(check(&world, false).1.is_empty());
    let image = world.image(&name);
    let blob = |digest: &Digest| world.images_dir().join("blobs/sha256").join(digest.hex());
    for seed in 0..25usize {
        // In turn: unpacked files, layers as they came, the configuration, the manifest.
        let (path, fetch) = match seed % 4 {
            0 => (
                image.layers[seed % 2].folder.join(["f", "g"][seed % 2]),
                false,
            ),
            1 => (blob(&sha256(&packed[seed / 4 % 2])), true),
            2 => (blob(&image.id), false),
            _ => match &image.manifest {
                Some(manifest) => (blob(manifest), true),
                None => continue,
            },
        };
        flip(&path, seed * 7919);
        let (_, found) = check(&world, false);
        assert_eq!(found.len(), 1, "seed {seed}: {found:?}");
        assert_eq!((found[0].fetch, found[0].repaired), (fetch, false));
        assert!(found[0].images[0].contains(&fake.host));
        let (_, found) = check(&world, true);
        assert_eq!(found[0].repaired, !fetch, "seed {seed}: {found:?}");
        if fetch {
            transfer(&world);
        }
        assert!(check(&world, false).1.is_empty(), "seed {seed}");
        let mut saved = Vec::new();
        world
            .store
            .save(std::slice::from_ref(&name), &mut saved)
            .unwrap();
    }
    // A damaged blob that was taken away comes with a load as well, plain this time.
    flip(&blob(&sha256(&packed[0])), 100);
    check(&world, true);
    world.load(&docker_archive(&plain, &[&name])).unwrap();
    assert!(check(&world, false).1.is_empty());
    // Files of a running container are told, not touched.
    flip(&image.layers[0].folder.join("f"), 3);
    let (_, found) = world.store.check(true, &|_| true).unwrap();
    assert!(
        !found[0].repaired && found[0].what.contains("stop it"),
        "{found:?}"
    );
}

#[test]
fn what_a_push_made_of_a_layer_goes_with_it() {
    let fake = Fake::new();
    let name = format!("{}/a:1", fake.host);
    let rows = |world: &World| {
        let db = loop {
            match Db::open(&world.dir.path().join("node.redb")) {
                Ok(db) => break db,
                Err(_) => std::thread::yield_now(),
            }
        };
        db.scan::<serde_json::Value>("compressed").unwrap().len()
    };
    let mut world = World::new();
    world
        .load(&docker_archive(&[layer("f", 9)], &[&name]))
        .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reference = Reference::parse(&name).unwrap();
    let progress = |_: PushProgress<'_>| {};
    let push = |world: &World| {
        let store = &world.store;
        store
            .push(runtime.handle(), &reference, None, &progress, &|| false)
            .unwrap();
    };
    push(&world);
    for remains in [1, 0] {
        if remains == 0 {
            world.store.remove(&name, true, &|_| Vec::new()).unwrap();
        }
        let World { dir, store } = world;
        drop(store);
        let closed = World {
            store: World::new().store,
            dir,
        };
        assert_eq!(rows(&closed), remains);
        world = World {
            store: open(closed.dir.path()),
            dir: closed.dir,
        };
    }
}

/// A small file system of its own.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs -o {options} small \"$1\"");
        shell(&script, &[dir.path()]);
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        shell("umount -l \"$1\"", &[self.0.path()]);
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_visible() {
    let small = Small::new("size=300m,nr_inodes=150");
    let store = open_with(small.0.path(), Registries::default());
    let images = small.0.path().join("images");
    let many = (0..300)
        .fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"x"))
        .end();
    let full = |archive: &[u8]| {
        let error = store.load(archive, &mut |_, _| {}).unwrap_err().chain();
        assert!(store.list().unwrap().is_empty());
        for folder in ["blobs/sha256", "layers"] {
            assert_eq!(std::fs::read_dir(images.join(folder)).unwrap().count(), 0);
        }
        error
    };
    // No more files.
    let archive = docker_archive(&[many], &["a:1"]);
    let error = full(&archive);
    assert!(error.contains("No space left on device"), "{error}");
    // No more bytes: 256 MiB are never filled.
    let error = full(&docker_archive(&[layer("f", 50 << 20)], &["a:2"]));
    assert_eq!(
        error,
        "no space left on device: the archive needs more than the disk has free"
    );
    shell("mount -o remount,nr_inodes=10000 \"$1\"", &[small.0.path()]);
    store.load(&archive[..], &mut |_, _| {}).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
}
