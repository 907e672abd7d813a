//! `kill -9` at any moment of pull, push and collection: no damaged image is ever listed, nothing is left over, and the next try
//! goes through. The other end lives on.

mod common;

use common::registry::Fake;
use common::*;
use gantry_image::{DiskBudget, Progress, PushProgress, Registries};
use gantry_oci::Reference;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "GANTRY_CRASH_CHILD";
const HOST: &str = "GANTRY_CRASH_HOST";
const DEED: &str = "GANTRY_CRASH_DEED";
const SIZE: usize = 400_000;

fn rounds() -> u64 {
    std::env::var("GANTRY_TEST_ROUNDS").map_or(25, |text| text.parse().unwrap())
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn archive(host: &str, number: u64) -> Vec<u8> {
    let shared = Tar::new()
        .dir("d/")
        .file("d/shared", &noise(50_000, 9))
        .end();
    let own = Tar::new().file("own", &noise(SIZE, number + 1)).end();
    docker_archive(&[shared, own], &[&format!("{host}/x{number}:1")])
}

struct Other {
    store: gantry_image::Store,
    runtime: tokio::runtime::Runtime,
}

impl Other {
    fn push(&self, name: &str) -> gantry_base::Result<()> {
        let reference = Reference::parse(name).unwrap();
        let progress = |_: PushProgress<'_>| {};
        self.store
            .push(self.runtime.handle(), &reference, None, &progress, &|| {
                false
            })
            .map(drop)
    }
    fn pull(&self, name: &str) -> gantry_base::Result<()> {
        let reference = Reference::parse(name).unwrap();
        let resolved = self
            .runtime
            .block_on(self.store.resolve(&reference, "", None))?;
        let progress = |_: Progress<'_>| {};
        self.store
            .pull(self.runtime.handle(), &resolved, &progress, &|| false)
            .map(drop)
    }
}

fn other(store: gantry_image::Store) -> Other {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Other { store, runtime }
}

/// What the killed process does; run by the tests below.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let host = std::env::var(HOST).unwrap();
    let deed = std::env::var(DEED).unwrap();
    let node = other(open_with(Path::new(&dir), Registries::default()));
    let none = |_: &gantry_oci::Digest| false;
    for round in 0u64.. {
        let name = format!("{host}/x{}:1", round % 3);
        match deed.as_str() {
            "pull" => {
                node.pull(&name).unwrap();
                node.store.remove(&name, true, &|_| Vec::new()).unwrap();
            }
            "push" => {
                // Another repository each time, so that there is something to send.
                let copy = format!(
                    "{host}/p{}/x{}:1",
                    round + u64::from(std::process::id()) * 1000,
                    round % 3
                );
                node.store
                    .tag(&name, &Reference::parse(&copy).unwrap())
                    .unwrap();
                node.push(&copy).unwrap();
                node.store.remove(&copy, false, &|_| Vec::new()).unwrap();
            }
            _ => {
                let bytes = archive(&host, round % 3);
                node.store.load(&bytes[..], &mut |_, _| {}).unwrap();
                let budget = DiskBudget {
                    bytes: 0,
                    keep: 1,
                    dry_run: false,
                };
                node.store.reclaim(budget, &none).unwrap();
                node.store.prune(round % 2 == 0, &|_| true, &none).unwrap();
                node.store.collect(&none).unwrap();
            }
        }
    }
}

/// Kills the deed at random moments; after each the store must be whole.
fn killed(deed: &str, seed: u64) {
    let fake = Fake::new();
    let mut world = World::new();
    let host = fake.host.clone();
    // The registry has all three images.
    let far = World::new();
    let source = other(far.store.clone());
    for number in 0..3 {
        source
            .store
            .load(&archive(&host, number)[..], &mut |_, _| {})
            .unwrap();
        source.push(&format!("{host}/x{number}:1")).unwrap();
        if deed == "push" {
            world.load(&archive(&host, number)).unwrap();
        }
    }
    if deed == "push" {
        // What lies there already would not be sent again.
        fake.state.lock().unwrap().blobs.clear();
    }
    let mut random = seed;
    for round in 0..rounds() {
        let World { dir, store } = world;
        drop(store);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, dir.path())
            .env(HOST, &host)
            .env(DEED, deed)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Not a synchronisation: the moment is meant to be any.
        std::thread::sleep(Duration::from_micros(30_000 + random % 250_000));
        assert!(
            child.try_wait().unwrap().is_none(),
            "{deed} failed by itself in round {round}, seed {seed}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(dir.path());
        world = World { dir, store };
        check(&world, deed, round, seed);
        if deed == "push" {
            fake.state.lock().unwrap().blobs.clear();
        }
    }
    // What was broken off goes through.
    let node = other(world.store.clone());
    let name = format!("{host}/x0:1");
    if deed == "push" {
        node.push(&name).unwrap();
    }
    let nearby = World::new();
    let fresh = other(nearby.store.clone());
    if deed == "push" {
        fresh.pull(&name).unwrap();
    } else {
        for number in 0..3 {
            source.push(&format!("{host}/x{number}:1")).unwrap();
        }
        node.pull(&name).unwrap();
    }
    check(&world, deed, u64::MAX, seed);
}

fn check(world: &World, deed: &str, round: u64, seed: u64) {
    let told = format!("{deed}, round {round}, seed {seed}");
    let mut expected: Vec<String> = Vec::new();
    for image in &world.store.list().unwrap() {
        let mut saved = Vec::new();
        world
            .store
            .save(&[image.id.to_string()], &mut saved)
            .expect(&told);
        assert_eq!(
            std::fs::read(image.layers[0].folder.join("d/shared")).unwrap(),
            noise(50_000, 9),
            "{told}"
        );
        assert_eq!(
            std::fs::metadata(image.layers[1].folder.join("own"))
                .unwrap()
                .len(),
            SIZE as u64,
            "{told}"
        );
        expected.extend(image.layers.iter().map(|layer| {
            format!(
                "layers/{}",
                layer.folder.file_name().unwrap().to_string_lossy()
            )
        }));
    }
    let (_, damage) = world.store.check(false, &|_| false).unwrap();
    assert!(damage.is_empty(), "{told}: {damage:?}");
    expected.sort();
    expected.dedup();
    let folders: Vec<String> = world
        .files()
        .into_iter()
        .filter(|name| !name.starts_with("blobs/"))
        .collect();
    assert_eq!(folders, expected, "{told}");
}

#[test]
fn killed_in_pull() {
    killed("pull", 0x2545_f491_4f6c_dd1d);
}

#[test]
fn killed_in_push() {
    killed("push", 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn killed_in_load_and_collection() {
    killed("collect", 0xd1b5_4a32_d192_ed03);
}
