//! Our own container verbs, for people without a docker client.

use crate::busybox;
use gantry_testkit::{World, images};

#[test]
fn images_by_our_own_verbs() {
    let world = World::isolated(crate::GANTRY);
    let done = world.gantry_with(&["load"], Some(&images::busybox_archive()));
    assert_eq!(done.ok(), "Loaded image: busybox:latest");
    assert!(world.gantry(&["images"]).ok().contains("busybox:latest"));
    let archive = world.folder().join("a.tar");
    world
        .gantry(&["save", "-o", archive.to_str().unwrap(), "busybox"])
        .ok();
    world.gantry(&["rmi", "busybox"]).ok();
    assert_eq!(world.gantry(&["images", "-q"]).ok(), "");
    world
        .gantry(&["load", "-i", archive.to_str().unwrap()])
        .ok();
    let done = world.gantry(&["rmi", "absent"]);
    assert!(done.fails(1).contains("No such image: absent"), "{done}");
}

#[test]
fn run_ps_logs_exec_stop_rm() {
    let world = busybox();
    let done = world.gantry(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 9",
    ]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (9, "out\n", "err\n")
    );
    let done = world.gantry_with(&["run", "--rm", "-i", "busybox", "cat"], Some(b"through\n"));
    assert_eq!(done.ok(), "through");
    let id = world
        .gantry(&[
            "run",
            "-d",
            "--name",
            "box",
            "-m",
            "64m",
            "--cpus",
            "0.5",
            "-p",
            "80",
            "-e",
            "A=b",
            "busybox",
            "sh",
            "-c",
            "echo $A; exec sleep 600",
        ])
        .ok();
    assert_eq!(id.len(), 64);
    let list = world.gantry(&["ps"]).ok();
    assert!(
        list.contains("busybox") && list.contains("->80/tcp") && list.ends_with("box"),
        "{list}"
    );
    assert_eq!(world.gantry(&["logs", "box"]).ok(), "b");
    assert_eq!(world.gantry(&["exec", "box", "echo", "in"]).ok(), "in");
    assert_eq!(world.gantry(&["exec", "box", "sh", "-c", "exit 3"]).code, 3);
    let document = &world.gantry(&["inspect", "box"]).json()[0];
    assert_eq!(document["HostConfig"]["NanoCpus"], 500_000_000);
    assert_eq!(world.gantry(&["stop", "-t", "0", "box"]).ok(), "box");
    assert_eq!(world.gantry(&["ps", "-q"]).ok(), "");
    assert_eq!(
        world.gantry(&["ps", "-a", "--output", "json"]).json()[0]["State"],
        "exited"
    );
    assert_eq!(world.gantry(&["start", "box"]).ok(), "box");
    world.gantry(&["kill", "box"]).ok();
    let done = world.gantry(&["rm", "box", "absent"]);
    assert!(
        done.fails(1).contains("No such container: absent"),
        "{done}"
    );
    assert_eq!(done.stdout, "box\n");
    let done = world.gantry(&["run", "absent-image"]);
    assert!(done.fails(1).contains("No such image"), "{done}");
    let done = world.gantry(&["run", "--rm", "busybox", "/no/such"]);
    assert!(done.code == 1 || done.code == 127, "{done}");
    assert_eq!(world.gantry(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn cp_both_ways() {
    let world = busybox();
    world
        .gantry(&["run", "-d", "--name", "box", "busybox", "sleep", "600"])
        .ok();
    let here = world.folder().join("here");
    std::fs::write(&here, "text").unwrap();
    world
        .gantry(&["cp", here.to_str().unwrap(), "box:/tmp"])
        .ok();
    world
        .gantry(&["cp", here.to_str().unwrap(), "box:/tmp/renamed"])
        .ok();
    assert_eq!(
        world
            .gantry(&["exec", "box", "cat", "/tmp/here", "/tmp/renamed"])
            .ok(),
        "texttext"
    );
    let out = world.folder().join("out");
    world
        .gantry(&["cp", "box:/www", out.to_str().unwrap()])
        .ok();
    assert_eq!(
        std::fs::read_to_string(out.join("index.html")).unwrap(),
        "ok\n"
    );
    let file = world.folder().join("file");
    world
        .gantry(&["cp", "box:/tmp/here", file.to_str().unwrap()])
        .ok();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "text");
}
