//! Instances: up, down, purge, two side by side, and who may start where.

use crate::{GANTRY, SOON, busybox};
use gantry_testkit::{Options, World, alive, eventually, run};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

#[test]
fn up_says_ready_once_and_little_more() {
    let world = World::isolated(GANTRY);
    let talk = world.talk();
    let lines: Vec<&str> = talk.lines().filter(|line| !line.contains("INFO")).collect();
    let ready: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("ready in "))
        .collect();
    assert_eq!(ready.len(), 1, "{talk}");
    assert!(ready[0].ends_with('s') && lines.len() <= 7, "{talk}");
    let host = format!("unix://{}", world.socket().display());
    assert_eq!(
        world.gantry(&["env"]).ok(),
        format!("export DOCKER_HOST={host}")
    );
    let status = world.gantry(&["status", "--output", "json"]).json();
    assert_eq!(status["running"], true);
    assert_eq!(status["pid"], world.pid());
    assert_eq!(status["docker"], host.as_str());
    assert_eq!(status["instance"], world.instance().as_str());
}

#[test]
fn down_leaves_containers_and_purge_leaves_nothing() {
    let mut world = busybox();
    let id = world
        .docker(&["run", "-d", "--name", "box", "busybox", "sleep", "600"])
        .ok();
    let pid = world
        .docker(&["inspect", "-f", "{{.State.Pid}}", "box"])
        .ok();
    world.gantry(&["down"]).ok();
    assert!(!world.socket().exists());
    assert!(alive(&pid), "`down` ended a container");
    assert_eq!(world.terminate_if_running(), None);
    world.up();
    assert_eq!(world.docker(&["ps", "-q", "--no-trunc"]).ok(), id);
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Pid}}", "box"])
            .ok(),
        pid
    );
    let instance = world.instance();
    assert!(
        !world.leftovers(&instance).is_empty(),
        "the check for left-overs sees nothing at all"
    );
    world.purge();
    assert!(!alive(&pid));
}

#[test]
fn purge_works_without_a_daemon_and_on_paused_containers() {
    let mut world = busybox();
    world.docker(&["run", "-d", "busybox", "sleep", "600"]).ok();
    let paused = world.docker(&["run", "-d", "busybox", "sleep", "600"]).ok();
    world.docker(&["pause", &paused]).ok();
    world
        .docker(&["create", "-v", "data:/data", "busybox"])
        .ok();
    world.kill();
    world.purge();
}

#[test]
fn two_instances_and_one_is_purged() {
    let first = World::new(GANTRY);
    let second = World::new(GANTRY);
    assert_ne!(first.instance(), second.instance());
    for world in [&first, &second] {
        world.load_busybox();
        world
            .docker(&["run", "-d", "--name", "same", "busybox", "sleep", "600"])
            .ok();
    }
    let subnet = |world: &World| {
        world
            .docker(&[
                "network",
                "inspect",
                "bridge",
                "-f",
                "{{(index .IPAM.Config 0).Subnet}}",
            ])
            .ok()
    };
    assert_ne!(subnet(&first), subnet(&second));
    let before = second.leftovers(&second.instance());
    first.purge();
    // Nothing of the second changed: same processes, interfaces, rules, cgroups and files.
    assert_eq!(second.leftovers(&second.instance()), before);
    assert_eq!(
        second.docker(&["exec", "same", "echo", "alive"]).ok(),
        "alive"
    );
    second.purge();
}

#[test]
fn the_second_daemon_refuses() {
    let world = World::isolated(GANTRY);
    let done = world.gantry(&["up"]);
    let sentence = done.fails(1);
    assert_eq!(sentence.lines().count(), 1, "{done}");
    assert!(
        sentence.contains(&format!("pid {}", world.pid())) && sentence.contains("--data-dir"),
        "{done}"
    );
    // Also from another run directory.
    let other = world.folder().join("other-run");
    let done = world.gantry(&["up", "--run-dir", other.to_str().unwrap()]);
    assert!(done.fails(1).contains("already runs on"), "{done}");
    world.gantry(&["status"]).ok();
    let _ = std::fs::remove_dir_all(other);
}

#[test]
fn a_taken_socket_names_flag_and_holder() {
    let world = World::stopped(GANTRY, Options::default());
    let path = world.folder().join("taken.sock");
    let _holder = UnixListener::bind(&path).unwrap();
    let address = format!("unix://{}", path.display());
    let done = world.gantry(&["up", "--docker", &address]);
    let sentence = done.fails(1);
    assert!(
        sentence.contains("--docker") && sentence.contains(&format!("pid {}", std::process::id())),
        "{done}"
    );
    assert!(
        UnixStream::connect(&path).is_ok(),
        "the holder lost its socket"
    );
}

#[test]
fn detached_it_returns_when_it_serves() {
    let world = World::stopped(
        GANTRY,
        Options {
            isolated: true,
            ..Options::default()
        },
    );
    let done = world.gantry(&["up", "--detach"]);
    assert_eq!(done.code, 0, "{done}");
    assert!(
        done.stderr.starts_with("ready in ") && done.stdout.is_empty(),
        "{done}"
    );
    world.docker(&["version"]).ok();
    let status = world.gantry(&["status", "--output", "json"]).json();
    let pid = status["pid"].as_i64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(
        session,
        pid.to_string(),
        "the daemon is not in a session of its own"
    );
    assert!(world.run_dir().join("gantry.log").exists());
    // A second one says why not, with the child's exit code.
    let again = world.gantry(&["up", "--detach"]);
    assert!(again.fails(1).contains(&format!("pid {pid}")), "{again}");
    world.gantry(&["down"]).ok();
    eventually("the daemon's end", SOON, || {
        if alive(&pid.to_string()) {
            Err(format!("pid {pid} is there"))
        } else {
            Ok(())
        }
    });
}

#[test]
fn sigterm_ends_it_with_0() {
    let mut world = World::isolated(GANTRY);
    // A stream that never ends by itself must not hold the end up.
    let mut events = world.docker_command(&["events"]).spawn().unwrap();
    assert_eq!(world.terminate(), 0);
    assert!(!world.socket().exists());
    let _ = events.wait();
    world.up();
    world.docker(&["version"]).ok();
}

#[test]
fn the_socket_is_for_root_and_the_group_docker() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::isolated(GANTRY);
    let mode = std::fs::metadata(world.socket())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    let group = run(Command::new("getent").args(["group", "docker"]), None).code == 0;
    assert_eq!(mode, if group { 0o660 } else { 0o600 });
    let data = std::fs::metadata(world.data_dir())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(
        data & 0o066,
        0,
        "others may read the data directory ({data:o})"
    );
}
