//! What Docker cannot do: say why a container died, and change one in place.

use crate::{SOON, busybox};
use gantry_testkit::{World, eventually};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// One way to die: name and kind, words of `docker create` before the image, and the script after its gate opened.
struct Death(&'static str, &'static [&'static str], &'static str);

const LOOP: &str = "while :; do sleep 0.05; done";

/// Deaths that come when the gate opens, whoever watches.
const BY_ITSELF: [Death; 17] = [
    Death("finished", &[], "exit 0"),
    Death("failed", &[], "echo bad luck; exit 3"),
    Death(
        "out-of-memory",
        &["-m", "8m"],
        "x=y; while :; do x=$x$x; done",
    ),
    Death(
        "out-of-memory-child",
        &["-m", "8m"],
        "sh -c 'x=y; while :; do x=$x$x; done'; exit 1",
    ),
    Death("crashed", &["--init"], "kill -SEGV $$"),
    Death("aborted", &["--init"], "kill -ABRT $$"),
    Death("illegal-instruction", &["--init"], "kill -ILL $$"),
    Death("bus-error", &["--init"], "kill -BUS $$"),
    Death("arithmetic", &["--init"], "kill -FPE $$"),
    Death("forbidden-call", &["--init"], "kill -SYS $$"),
    Death("file-size-limit", &["--init"], "kill -XFSZ $$"),
    Death("command-not-found", &[], "no-such-command"),
    Death(
        "missing-library",
        &[],
        "echo 'app: error while loading shared libraries: libz.so.1: cannot open shared object file' >&2; exit 127",
    ),
    Death(
        "disk-full",
        &["--tmpfs", "/t:size=64k"],
        "dd if=/dev/zero of=/t/x bs=64k count=2 || exit 1",
    ),
    Death(
        "process-limit",
        &["--pids-limit", "6"],
        "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; exit 1",
    ),
    Death("read-only", &["--read-only"], "touch /x || exit 1"),
    Death(
        "port-taken-inside",
        &[],
        "nc -l -p 7777 & sleep 0.3; echo 'bind: Address already in use' >&2; exit 1",
    ),
];

/// Starts that do not come about, by what is wrong with `/prog`.
const NO_START: [(&str, &str, u32, &str); 4] = [
    ("missing-program", "", 0, "/nosuch"),
    ("missing-interpreter", "#!/opt/ruby\n", 0o755, "/prog"),
    ("wrong-format", "no program at all", 0o755, "/prog"),
    ("not-executable", "#!/bin/sh\n", 0o644, "/prog"),
];

fn parent_of(pid: &str) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    rest.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn create(world: &World, name: &str, options: &[&str], gate: &Path, script: &str) {
    let bind = format!("{}:/gate", gate.display());
    let script = format!("while ! test -e /gate/open; do sleep 0.05; done; {script}");
    let mut words = vec!["create", "--name", name, "-v", &bind];
    words.extend(options);
    words.extend(["busybox", "sh", "-c", &script]);
    world.docker(&words).ok();
}

fn pid_of(world: &World, name: &str) -> String {
    world
        .docker(&["inspect", "--format", "{{.State.Pid}}", name])
        .ok()
}

/// All kinds of death in one world; with `absent` the daemon is killed before they come, and another one has to find out.
fn deaths(absent: bool) {
    let mut world = busybox();
    let gate = world.folder().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let mut kinds: Vec<&str> = Vec::new();
    for Death(kind, options, script) in BY_ITSELF {
        create(&world, kind, options, &gate, script);
        world.docker(&["start", kind]).ok();
        kinds.push(kind);
    }
    for (kind, text, mode, program) in NO_START {
        world
            .docker(&["create", "--name", kind, "busybox", program])
            .ok();
        if !text.is_empty() {
            let file = world.folder().join("prog");
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            world
                .docker(&["cp", file.to_str().unwrap(), &format!("{kind}:/prog")])
                .ok();
        }
        // Docker counts a start as done when the exec begins; some of these fail in it.
        world.docker(&["start", kind]);
        kinds.push(kind);
    }
    // Somebody's doing.
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "holder",
            "-p",
            "127.0.0.1::80",
            "busybox",
            "sh",
            "-c",
            LOOP,
        ])
        .ok();
    let port = world.docker(&["port", "holder", "80"]).ok();
    world
        .docker(&[
            "create",
            "--name",
            "port-taken",
            "-p",
            &format!("{port}:80"),
            "busybox",
            "true",
        ])
        .ok();
    assert_ne!(world.docker(&["start", "port-taken"]).code, 0);
    let source = world.folder().join("source");
    std::fs::create_dir(&source).unwrap();
    let mount = format!("type=bind,src={},dst=/m", source.display());
    world
        .docker(&[
            "create",
            "--name",
            "missing-mount",
            "--mount",
            &mount,
            "busybox",
            "true",
        ])
        .ok();
    std::fs::remove_dir(&source).unwrap();
    assert_ne!(world.docker(&["start", "missing-mount"]).code, 0);
    world
        .docker(&[
            "create",
            "--name",
            "missing-user",
            "-u",
            "nosuchuser",
            "busybox",
            "true",
        ])
        .ok();
    assert_ne!(world.docker(&["start", "missing-user"]).code, 0);
    let run = |name: &str, script: &str| {
        world
            .docker(&["run", "-d", "--name", name, "busybox", "sh", "-c", script])
            .ok()
    };
    run(
        "stopped",
        &format!("trap 'exit 0' TERM; echo ready; {LOOP}"),
    );
    run(
        "stopped-by-force",
        &format!("trap '' TERM; echo ready; {LOOP}"),
    );
    run("signalled", LOOP);
    for name in ["stopped", "stopped-by-force"] {
        eventually("its trap", SOON, || {
            let log = world.docker(&["logs", name]).ok();
            if log.contains("ready") {
                Ok(())
            } else {
                Err(log)
            }
        });
    }
    world.docker(&["stop", "stopped"]).ok();
    world.docker(&["stop", "-t", "0", "stopped-by-force"]).ok();
    world.docker(&["kill", "signalled"]).ok();
    world.docker(&["wait", "signalled"]).ok();
    kinds.extend([
        "port-taken",
        "missing-mount",
        "missing-user",
        "stopped",
        "stopped-by-force",
        "signalled",
    ]);
    run("killed", LOOP);
    run("supervisor-killed", LOOP);
    let (victim, guarded) = (
        pid_of(&world, "killed"),
        pid_of(&world, "supervisor-killed"),
    );
    kinds.extend(["killed", "supervisor-killed"]);
    assert!(kinds.len() >= 20);
    if absent {
        world.kill();
    }
    kill(victim.parse().unwrap());
    kill(parent_of(&guarded));
    std::fs::write(gate.join("open"), "").unwrap();
    if absent {
        world.up();
    }
    for kind in kinds {
        let report = eventually("its end", SOON, || {
            let report = world.gantry(&["autopsy", "--output", "json", kind]).json();
            if report["Status"] == "running" {
                Err(report.to_string())
            } else {
                Ok(report)
            }
        });
        assert_eq!(report["Kind"], kind, "{report:#}");
        let sentence = world.gantry(&["why", kind]).ok();
        assert!(
            sentence.starts_with(&format!("{kind}: ")) && sentence.len() > kind.len() + 10,
            "{sentence}"
        );
    }
    let report = world
        .gantry(&["autopsy", "--output", "json", "out-of-memory"])
        .json();
    assert!(
        report["Cause"]
            .as_str()
            .unwrap()
            .contains("its limit is 8.0 MiB"),
        "{report:#}"
    );
    let report = world.gantry(&["autopsy", "failed"]).ok();
    assert!(
        report.contains("\n  bad luck") && report.contains("last good   no run yet"),
        "{report}"
    );
    let sentence = world.gantry(&["why", "missing-interpreter"]).ok();
    assert!(sentence.contains("/opt/ruby"), "{sentence}");
    let sentence = world.gantry(&["why", "missing-library"]).ok();
    assert!(sentence.contains("libz.so.1"), "{sentence}");
}

#[test]
fn each_kind_of_death_is_told_apart() {
    deaths(false);
}

#[test]
fn each_kind_of_death_is_told_apart_after_the_daemon_was_away() {
    deaths(true);
}

#[test]
fn set_changes_a_container_in_place() {
    let world = busybox();
    world.docker(&["network", "create", "mine"]).ok();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "mine",
            "-e",
            "A=1",
            "-e",
            "B=2",
            "-v",
            "/anon",
            "-v",
            "data:/data",
            "busybox",
            "sh",
            "-c",
            &format!("trap 'exit 0' TERM; date +%s%N >>/runs; {LOOP}"),
        ])
        .ok();
    let inspect = |format: &str| world.docker(&["inspect", "--format", format, "web"]).ok();
    let (id, address) = (
        inspect("{{.Id}}"),
        inspect("{{.NetworkSettings.Networks.mine.IPAddress}}"),
    );
    let anonymous = |mounts: &str| {
        mounts
            .split_whitespace()
            .find(|name| name.len() == 64)
            .map(str::to_owned)
    };
    let volume = anonymous(&inspect("{{range .Mounts}}{{.Name}} {{end}}")).unwrap();
    world
        .docker(&[
            "exec",
            "web",
            "sh",
            "-c",
            "echo kept >/anon/f; echo layer >/f",
        ])
        .ok();
    let done = world.gantry(&[
        "set",
        "web",
        "--env",
        "A=9",
        "--env",
        "B",
        "--publish",
        "127.0.0.1::80",
        "--memory",
        "64m",
        "--volume",
        "more:/more",
        "--label",
        "x=y",
    ]);
    assert_eq!(done.ok(), "web");
    assert_eq!(
        (
            inspect("{{.Id}}"),
            inspect("{{.NetworkSettings.Networks.mine.IPAddress}}")
        ),
        (id, address)
    );
    assert_eq!(
        inspect("{{.State.Status}} {{.HostConfig.Memory}} {{index .Config.Labels \"x\"}}"),
        "running 67108864 y"
    );
    assert_eq!(
        anonymous(&inspect("{{range .Mounts}}{{.Name}} {{end}}")),
        Some(volume)
    );
    let seen = world
        .docker(&[
            "exec",
            "web",
            "sh",
            "-c",
            "echo $A ${B:-none}; cat /anon/f /f; ls -d /more; wc -l </runs",
        ])
        .ok();
    assert_eq!(seen, "9 none\nkept\nlayer\n/more\n2");
    assert!(
        world
            .docker(&["port", "web", "80"])
            .ok()
            .starts_with("127.0.0.1:")
    );
    // A configuration that does not start is taken back.
    let holder = world.docker(&["port", "web", "80"]).ok();
    world
        .docker(&["run", "-d", "--name", "other", "busybox", "sh", "-c", LOOP])
        .ok();
    let done = world.gantry(&["set", "other", "--publish", &format!("{holder}:80")]);
    assert!(
        done.fails(1)
            .contains("the container was put back as it was"),
        "{done}"
    );
    assert_eq!(
        world
            .docker(&[
                "inspect",
                "--format",
                "{{.State.Status}} {{.HostConfig.PortBindings}}",
                "other"
            ])
            .ok(),
        "running map[]"
    );
    // One that cannot be is refused before anything is touched.
    let done = world.gantry(&["set", "web", "--memory", "1k"]);
    assert!(
        done.fails(1)
            .contains("Minimum memory limit allowed is 6MB"),
        "{done}"
    );
    // What changed since the last good run is told.
    let report = world.gantry(&["autopsy", "web"]).ok();
    assert!(
        report.contains("HostConfig.Memory: 0 -> 67108864") || report.contains("last good"),
        "{report}"
    );
}
