//! `kill -9` at any moment of load, tag and remove: after the next start every image is whole or absent, and nothing is left over.

mod common;

use common::*;
use gantry_oci::Reference;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "GANTRY_CRASH_CHILD";
const ROUNDS: u64 = 40;
const SIZE: usize = 200_000;

fn archive(number: usize) -> Vec<u8> {
    let shared = Tar::new().dir("d/").file("d/shared", &[1; 5000]).end();
    let own = (0..20).fold(Tar::new(), |tar, i| {
        tar.file(
            &format!("own{i}"),
            &vec![u8::try_from(number).unwrap(); SIZE / 20],
        )
    });
    gzip(&docker_archive(
        &[shared, own.end()],
        &[&format!("x:{number}")],
    ))
}

/// What the killed process does; run by the test below.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let store = open(Path::new(&dir));
    let archives: Vec<_> = (0..3).map(archive).collect();
    loop {
        for (number, archive) in archives.iter().enumerate() {
            store.load(archive.as_slice(), &mut |_, _| {}).unwrap();
            let name = format!("x:{number}");
            store
                .tag(&name, &Reference::parse(&format!("y:{number}")).unwrap())
                .unwrap();
            if number != 1 {
                store.remove(&name, true, &|_| Vec::new()).unwrap();
                store
                    .remove(&format!("y:{number}"), true, &|_| Vec::new())
                    .unwrap();
            }
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let mut world = World::new();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..ROUNDS {
        let World { dir, store } = world;
        drop(store);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Not a synchronisation: the moment is meant to be any.
        std::thread::sleep(Duration::from_micros(20_000 + random % 150_000));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child failed by itself in round {round}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(dir.path());
        world = World { dir, store };
        check(&world, round);
    }
    world.load(&archive(0)).unwrap();
    check(&world, ROUNDS);
}

fn check(world: &World, round: u64) {
    let images = world.store.list().unwrap();
    let mut expected: Vec<String> = Vec::new();
    for image in &images {
        expected.push(format!("blobs/sha256/{}", image.id.hex()));
        for layer in &image.layers {
            expected.push(format!(
                "layers/{}",
                layer.folder.file_name().unwrap().to_string_lossy()
            ));
            expected.push(format!("blobs/sha256/{}", layer.diff_id.hex()));
        }
        let own = &image.layers[1].folder;
        let bytes: u64 = std::fs::read_dir(own)
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(bytes, SIZE as u64, "round {round}");
        assert_eq!(
            std::fs::read(image.layers[0].folder.join("d/shared")).unwrap(),
            [1; 5000]
        );
        assert!(
            image
                .tags
                .iter()
                .all(|tag| world.image(&tag.to_string()).id == image.id)
        );
        let mut saved = Vec::new();
        world
            .store
            .save(&[image.id.to_string()], &mut saved)
            .unwrap();
    }
    expected.sort();
    expected.dedup();
    assert_eq!(world.files(), expected, "round {round}");
}
