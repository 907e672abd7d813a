//! Images between nodes and a real registry, with real clients.

use crate::{SOON, busybox};
use gantry_testkit::{World, eventually};
use std::process::{Child, Stdio};

const REGISTRY: &str = "127.0.0.1:5000";

/// Debian's reference registry in the world's network namespace, where every port is free.
struct Registry(Child);

impl Registry {
    fn start(world: &World) -> Self {
        let file = world.folder().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n",
            world.folder().join("registry").display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = world.enter("docker-registry");
        command
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let registry = Self(command.spawn().unwrap());
        eventually("the registry listens", SOON, || {
            if world.try_bind("127.0.0.1", "5000").is_empty() {
                Err("the port is free".to_owned())
            } else {
                Ok(())
            }
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn docker_pushes_pulls_and_runs_through_a_registry() {
    let world = busybox();
    let refused = world.docker(&["pull", "127.0.0.1:5000/a/none"]).fails(1);
    assert!(refused.contains("connect: connection refused"), "{refused}");
    let _registry = Registry::start(&world);
    let name = "127.0.0.1:5000/a/busybox:1";
    let unknown = world.docker(&["pull", "127.0.0.1:5000/a/none"]).fails(1);
    assert!(
        unknown.contains("manifest for 127.0.0.1:5000/a/none:latest not found: manifest unknown: manifest unknown"),
        "{unknown}"
    );

    world.docker(&["tag", "busybox", name]).ok();
    let pushed = world.docker(&["push", name]).ok();
    assert!(
        pushed.contains("The push refers to repository [127.0.0.1:5000/a/busybox]"),
        "{pushed}"
    );
    assert!(
        pushed.contains(": Pushed") && pushed.contains("1: digest: sha256:"),
        "{pushed}"
    );
    let again = world.docker(&["push", name]).ok();
    assert!(again.contains("Layer already exists"), "{again}");
    world
        .docker(&["tag", "busybox", "127.0.0.1:5000/b/busybox:1"])
        .ok();
    let mounted = world.docker(&["push", "127.0.0.1:5000/b/busybox:1"]).ok();
    assert!(mounted.contains("Mounted from a/busybox"), "{mounted}");

    let id = world
        .docker(&["image", "inspect", "-f", "{{.Id}}", "busybox"])
        .ok();
    world.docker(&["rmi", "-f", id.trim()]).ok();
    assert_eq!(world.docker(&["images", "-q"]).ok(), "");
    // Not here any more: run fetches it.
    assert_eq!(
        world
            .docker(&["run", "--rm", name, "cat", "/www/index.html"])
            .ok()
            .trim(),
        "ok"
    );
    let same = world
        .docker(&["image", "inspect", "-f", "{{.Id}} {{.RepoDigests}}", name])
        .ok();
    assert!(
        same.starts_with(id.trim()) && same.contains("127.0.0.1:5000/a/busybox@sha256:"),
        "{same}"
    );
    let pulled = world.docker(&["pull", name]).ok();
    assert!(
        pulled.contains("Status: Image is up to date for 127.0.0.1:5000/a/busybox:1"),
        "{pulled}"
    );
    world.docker(&["rmi", name]).ok();
    assert_eq!(world.docker(&["images", "-q"]).ok(), "");
}
