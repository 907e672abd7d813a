//! The registry that `gantry up` serves, and `gantry registry` alone, with the real docker client.

use crate::{GANTRY, SOON};
use gantry_testkit::{Options, World, eventually, run};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const REGISTRY: &str = "127.0.0.1:5000";

fn world() -> World {
    let flags = ["--registry", REGISTRY].map(str::to_owned).to_vec();
    let world = World::with(
        GANTRY,
        Options {
            isolated: true,
            flags,
            ..Options::default()
        },
    );
    world.load_busybox();
    world
}

/// curl in the world's network; status and body.
fn curl(world: &World, words: &[&str]) -> String {
    let mut curl = world.enter("curl");
    curl.args(["-s", "--noproxy", "*", "-w", "%{http_code}"]);
    run(curl.args(words), None).ok()
}

#[test]
fn docker_pushes_and_pulls_and_nothing_is_lost_with_the_daemon() {
    let mut world = world();
    let name = "127.0.0.1:5000/team/busybox:1";
    let status = world.gantry(&["status", "--output", "json"]).json();
    assert_eq!(status["registry"], REGISTRY);
    world.docker(&["tag", "busybox", name]).ok();
    world.docker(&["push", name]).ok();
    world.docker(&["rmi", name, "busybox"]).ok();
    world.kill();
    world.up();
    let done = world.docker(&["run", "--rm", name, "cat", "/www/index.html"]);
    assert_eq!(done.ok().trim(), "ok");
    assert_eq!(
        curl(&world, &["http://127.0.0.1:5000/v2/_catalog"]),
        r#"{"repositories":["team/busybox"]}200"#
    );
    world.docker(&["rmi", name]).ok();
}

#[test]
fn docker_signs_in_and_does_what_its_account_may() {
    let world = world();
    let account = |words: &[&str], input: &[u8]| {
        let words: Vec<_> = ["registry", "account"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        world.gantry_with(&words, Some(input)).ok()
    };
    account(
        &["set", "anna", "--grant", "team/*:read,write"],
        b"correct horse\n",
    );
    let secret = account(
        &["robot", "ci", "--grant", "team/*:read", "--expires", "1h"],
        b"",
    );
    assert_eq!(secret.trim().len(), 64);
    let listed = account(&["list"], b"");
    assert!(
        listed.contains("anna  person  team/*:read,write")
            && listed.contains("ci  robot  team/*:read  until "),
        "{listed}"
    );
    assert!(!listed.contains("correct horse") && !listed.contains(secret.trim()));
    eventually("the registry is closed", SOON, || {
        let answer = curl(&world, &["-o", "/dev/null", "http://127.0.0.1:5000/v2/"]);
        if answer == "401" { Ok(()) } else { Err(answer) }
    });
    let name = "127.0.0.1:5000/team/busybox:1";
    world.docker(&["tag", "busybox", name]).ok();
    world
        .docker(&["tag", "busybox", "127.0.0.1:5000/other/busybox:1"])
        .ok();
    world.docker(&["push", name]).fails(1);
    let login = |user: &str, password: &[u8]| {
        world.docker_with(
            &["login", "-u", user, "--password-stdin", REGISTRY],
            password,
        )
    };
    login("anna", b"wrong").fails(1);
    login("anna", b"correct horse").ok();
    world.docker(&["push", name]).ok();
    world
        .docker(&["push", "127.0.0.1:5000/other/busybox:1"])
        .fails(1);
    login("ci", secret.trim().as_bytes()).ok();
    world.docker(&["rmi", name]).ok();
    world.docker(&["pull", name]).ok();
    world
        .docker(&["push", "127.0.0.1:5000/team/busybox:1"])
        .fails(1);
}

#[test]
fn its_default_port_gives_way_and_a_typed_one_does_not() {
    let world = World::stopped(
        GANTRY,
        Options {
            isolated: true,
            ..Options::default()
        },
    );
    let mut other = world.enter("python3");
    let mut other = other
        .args(["-m", "http.server", "--bind", "127.0.0.1", "5000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the port is taken", SOON, || {
        match world.try_bind("127.0.0.1", "5000").is_empty() {
            true => Err("it is free".to_owned()),
            false => Ok(()),
        }
    });
    let typed = world.gantry(&["up", "--registry", REGISTRY]).fails(1);
    assert!(
        typed.contains("--registry 127.0.0.1:5000, which pid") && typed.contains("python3"),
        "{typed}"
    );
    let mut up = world.enter(GANTRY);
    up.args(["up", "--detach", "--kube", "off", "--data-dir"])
        .arg(world.data_dir())
        .arg("--run-dir")
        .arg(world.run_dir());
    let done = run(&mut up, None);
    assert_eq!(done.code, 0, "{done}");
    assert!(
        done.stderr.contains("no registry: ") && done.stderr.contains("say --registry 127.0.0.1:0"),
        "{done}"
    );
    let status = world.gantry(&["status", "--output", "json"]).json();
    assert!(status["registry"].is_null());
    let _ = other.kill();
    let _ = other.wait();
}

#[test]
fn alone_it_serves_and_refuses_to_be_open_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let registry = |words: &[&str]| {
        let mut command = Command::new(GANTRY);
        command
            .arg("registry")
            .args(words)
            .arg("--data-dir")
            .arg(folder.path());
        command
    };
    let refused = run(&mut registry(&["--listen", "0.0.0.0:0"]), None).fails(1);
    assert!(
        refused.contains("in the clear") && refused.lines().count() == 1,
        "{refused}"
    );
    let refused = run(
        &mut registry(&["--listen", "0.0.0.0:0", "--plain-http"]),
        None,
    )
    .fails(1);
    assert!(refused.contains("make an account first"), "{refused}");
    let mut child = registry(&["--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(lines.next().unwrap().starts_with("ready in "));
    let address = lines.next().unwrap();
    let address = address.strip_prefix("registry on ").unwrap();
    let mut curl = Command::new("curl");
    let answer = run(
        curl.args(["-s", "--noproxy", "*", &format!("http://{address}/v2/")]),
        None,
    );
    assert_eq!(answer.ok(), "{}");
    let report = run(&mut registry(&["collect", "--output", "json"]), None).json();
    assert_eq!(report["blobs"], 0);
    run(&mut registry(&["check"]), None).ok();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}
