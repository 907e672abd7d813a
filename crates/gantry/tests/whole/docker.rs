//! An unmodified docker client on the socket: the daily verbs.

use crate::{SOON, busybox};
use gantry_testkit::{eventually, run};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn version_and_info() {
    let world = busybox();
    let version = world
        .docker(&["version", "--format", "{{.Server.APIVersion}}"])
        .ok();
    assert!(version.starts_with("1."), "{version}");
    let info = world.docker(&["info", "--format", "{{json .}}"]).json();
    assert_eq!(info["Containers"], 0);
    assert_eq!(info["Images"], 1);
}

#[test]
fn run_gives_back_output_and_exit_code() {
    let world = busybox();
    assert_eq!(
        world
            .docker(&["run", "--rm", "busybox", "echo", "hello"])
            .ok(),
        "hello"
    );
    let done = world.docker(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    let done = world.docker_with(
        &["run", "--rm", "-i", "busybox", "tr", "a-z", "A-Z"],
        b"piped\n",
    );
    assert_eq!(done.ok(), "PIPED");
    assert_eq!(
        world.docker(&["ps", "-aq"]).ok(),
        "",
        "--rm left a container"
    );
}

#[test]
fn failures_have_dockers_codes() {
    let world = busybox();
    let done = world.docker(&["run", "--rm", "busybox", "/no/such/program"]);
    assert_eq!(done.code, 127, "{done}");
    let done = world.docker(&["run", "--rm", "busybox", "/etc/passwd"]);
    assert_eq!(done.code, 126, "{done}");
    let done = world.docker(&["run", "--rm", "--user", "nosuchuser", "busybox", "true"]);
    assert!(done.code == 125 || done.code == 126, "{done}");
    assert!(done.stderr.contains("nosuchuser"), "{done}");
    let done = world.docker(&["run", "--rm", "--memory", "1k", "busybox", "true"]);
    assert!(
        done.fails(125)
            .contains("Minimum memory limit allowed is 6MB"),
        "{done}"
    );
    world.docker(&["create", "--name", "taken", "busybox"]).ok();
    let done = world.docker(&["create", "--name", "taken", "busybox"]);
    assert!(
        done.fails(1).contains("is already in use by container"),
        "{done}"
    );
    let done = world.docker(&["start", "absent"]);
    assert!(
        done.fails(1).contains("No such container: absent"),
        "{done}"
    );
    assert_eq!(
        world.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok(),
        "taken"
    );
}

#[test]
fn life_of_a_container() {
    let world = busybox();
    let id = world
        .docker(&[
            "run",
            "-d",
            "--name",
            "web",
            "-e",
            "COLOUR=blue",
            "-w",
            "/www",
            "busybox",
            "sh",
            "-c",
            "echo up; exec sleep 600",
        ])
        .ok();
    assert_eq!(id.len(), 64, "{id}");
    assert_eq!(
        world
            .docker(&["ps", "--format", "{{.Names}} {{.Image}} {{.State}}"])
            .ok(),
        "web busybox running"
    );
    assert_eq!(
        world
            .docker(&["exec", "web", "sh", "-c", "pwd; echo $COLOUR; id -u"])
            .ok(),
        "/www\nblue\n0"
    );
    let done = world.docker(&["exec", "web", "sh", "-c", "exit 3"]);
    assert_eq!(done.code, 3, "{done}");
    assert_eq!(world.docker(&["logs", "web"]).ok(), "up");
    assert!(world.docker(&["top", "web"]).ok().contains("sleep 600"));
    world.docker(&["pause", "web"]).ok();
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Status}}", "web"])
            .ok(),
        "paused"
    );
    world.docker(&["unpause", "web"]).ok();
    world.docker(&["rename", "web", "site"]).ok();
    world.docker(&["stop", "-t", "0", "site"]).ok();
    assert_eq!(
        world
            .docker(&[
                "inspect",
                "-f",
                "{{.State.Status}} {{.State.ExitCode}}",
                "site"
            ])
            .ok(),
        "exited 137"
    );
    world.docker(&["start", "site"]).ok();
    assert_eq!(world.docker(&["logs", "site"]).ok(), "up\nup");
    let done = world.docker(&["rm", "site"]);
    assert!(done.fails(1).contains("container is running"), "{done}");
    world.docker(&["rm", "-f", "site"]).ok();
    assert_eq!(world.docker(&["ps", "-aq"]).ok(), "");
}

#[test]
fn stop_gives_the_signal_first() {
    let world = busybox();
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    world
        .docker(&["run", "-d", "--name", "box", "busybox", "sh", "-c", script])
        .ok();
    eventually("the trap", SOON, || {
        match world.docker(&["logs", "box"]).ok().as_str() {
            "ready" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    world.docker(&["stop", "box"]).ok();
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.ExitCode}}", "box"])
            .ok(),
        "5"
    );
    assert_eq!(world.docker(&["logs", "box"]).ok(), "ready\nbye");
}

#[test]
fn logs_follow_until_the_end() {
    let world = busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done",
        ])
        .ok();
    assert_eq!(world.docker(&["logs", "-f", "box"]).ok(), "1\n2\n3\n4\n5");
    assert_eq!(world.docker(&["logs", "--tail", "2", "box"]).ok(), "4\n5");
    let stamped = world.docker(&["logs", "-t", "--tail", "1", "box"]).ok();
    assert!(
        stamped.contains("T") && stamped.ends_with("Z 5"),
        "{stamped}"
    );
}

#[test]
fn a_terminal() {
    let world = busybox();
    // script(1) gives the client a terminal to be on.
    let client = world.docker_command(&[
        "run",
        "--rm",
        "-it",
        "busybox",
        "sh",
        "-c",
        "'tty; stty size'",
    ]);
    let words: Vec<_> = client
        .get_args()
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    let line = format!(
        "{} {}",
        client.get_program().to_string_lossy(),
        words.join(" ")
    );
    // The client's own limit ends the client; this one ends script(1), should that be what hangs.
    // `exec`, because timeout(1) moves to a process group of its own unless it leads the session:
    // below a shell that stays (dash does, bash does not), the client would be in the background
    // of its terminal and stop at the first tcsetattr(3).
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=5",
        "120",
        "script",
        "-q",
        "-e",
        "-c",
        &format!("stty rows 33 cols 111; exec {line}"),
        "/dev/null",
    ]);
    for (name, value) in client.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let text = run(&mut command, Some(b"")).ok().replace('\r', "");
    assert_eq!(text.replace("^@", "").trim(), "/dev/pts/0\n33 111");
}

#[test]
fn files_in_and_out() {
    let world = busybox();
    world
        .docker(&["run", "-d", "--name", "box", "busybox", "sleep", "600"])
        .ok();
    let here = world.folder().join("file");
    std::fs::write(&here, "content").unwrap();
    world
        .docker(&["cp", here.to_str().unwrap(), "box:/tmp/there"])
        .ok();
    assert_eq!(
        world.docker(&["exec", "box", "cat", "/tmp/there"]).ok(),
        "content"
    );
    let back = world.folder().join("back");
    world
        .docker(&["cp", "box:/tmp/there", back.to_str().unwrap()])
        .ok();
    assert_eq!(std::fs::read_to_string(back).unwrap(), "content");
    assert_eq!(world.docker(&["diff", "box"]).ok(), "C /tmp\nA /tmp/there");
    // The same on a stopped one.
    world.docker(&["stop", "-t", "0", "box"]).ok();
    let folder = world.folder().join("www");
    world
        .docker(&["cp", "box:/www", folder.to_str().unwrap()])
        .ok();
    assert_eq!(
        std::fs::read_to_string(folder.join("index.html")).unwrap(),
        "ok\n"
    );
}

#[test]
fn mounts() {
    let world = busybox();
    let shared = world.folder().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let bind = format!("{}:/s", shared.display());
    world
        .docker(&[
            "run",
            "--rm",
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            "echo x >/s/f",
        ])
        .ok();
    assert_eq!(std::fs::read_to_string(shared.join("f")).unwrap(), "x\n");
    let done = world.docker(&[
        "run",
        "--rm",
        "-v",
        &format!("{bind}:ro"),
        "busybox",
        "touch",
        "/s/g",
    ]);
    assert!(done.fails(1).contains("Read-only file system"), "{done}");
    world.docker(&["volume", "create", "vol"]).ok();
    world
        .docker(&[
            "run",
            "--rm",
            "-v",
            "vol:/d",
            "busybox",
            "sh",
            "-c",
            "echo kept >/d/f",
        ])
        .ok();
    assert_eq!(
        world
            .docker(&["run", "--rm", "-v", "vol:/d", "busybox", "cat", "/d/f"])
            .ok(),
        "kept"
    );
    let done = world.docker(&[
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/t:size=1m",
        "busybox",
        "sh",
        "-c",
        "touch /t/a && touch /b",
    ]);
    assert!(
        done.fails(1).contains("/b: Read-only file system"),
        "{done}"
    );
    let size = world
        .docker(&[
            "run",
            "--rm",
            "--tmpfs",
            "/t:size=1m",
            "busybox",
            "sh",
            "-c",
            "df -k /t | tail -1 | awk '{print $2}'",
        ])
        .ok();
    assert_eq!(size, "1024");
}

#[test]
fn limits_are_set_and_held() {
    let world = busybox();
    let done = world.docker(&[
        "run",
        "--name",
        "hog",
        "--memory",
        "32m",
        "--memory-swap",
        "32m",
        "busybox",
        "sh",
        "-c",
        "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
    ]);
    assert_eq!(done.code, 137, "{done}");
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.OOMKilled}}", "hog"])
            .ok(),
        "true"
    );
    let done = world.docker(&[
        "run",
        "--rm",
        "--pids-limit",
        "8",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done",
    ]);
    assert_ne!(done.code, 0, "{done}");
    // The kernel's own account: never more CPU time than a tenth of the time that passed, and one period more.
    let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let done = world.docker(&[
        "run", "--rm", "--cpus", "0.1", "busybox", "time", "-p", "sh", "-c", spin,
    ]);
    assert_eq!(done.code, 0, "{done}");
    let seconds = |name: &str| -> f64 {
        let line = done.stderr.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name}: {done}"))
    };
    let (real, used) = (seconds("real"), seconds("user") + seconds("sys"));
    assert!(used > 0.1 && used <= 0.1 * real + 0.05, "{done}");
}

#[test]
fn what_a_container_may_not_do() {
    let world = busybox();
    for script in [
        "mount -t tmpfs t /mnt",
        "echo 1 >/proc/sys/kernel/panic",
        "mknod /dev/kmem c 1 2 && cat /dev/kmem",
        "hostname other",
        "cat /proc/kcore | head -c1 | grep -q .",
    ] {
        let done = world.docker(&["run", "--rm", "busybox", "sh", "-c", script]);
        assert_ne!(done.code, 0, "a plain container may: {script}\n{done}");
    }
    let status = world
        .docker(&["run", "--rm", "busybox", "cat", "/proc/self/status"])
        .ok();
    assert!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    assert_eq!(
        world
            .docker(&[
                "run",
                "--rm",
                "--privileged",
                "busybox",
                "sh",
                "-c",
                "mount -t tmpfs t /mnt && echo may"
            ])
            .ok(),
        "may"
    );
}

#[test]
fn inspect_shows_what_was_asked_for() {
    let world = busybox();
    world
        .docker(&[
            "create",
            "--name",
            "box",
            "--hostname",
            "h",
            "-m",
            "64m",
            "-p",
            "127.0.0.1::80",
            "-l",
            "a=b",
            "--restart",
            "on-failure:3",
            "busybox",
            "true",
        ])
        .ok();
    let document = &world.docker(&["inspect", "box"]).json()[0];
    assert_eq!(document["Name"], "/box");
    assert_eq!(document["Config"]["Hostname"], "h");
    assert_eq!(document["Config"]["Labels"]["a"], "b");
    assert_eq!(document["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(
        document["HostConfig"]["RestartPolicy"]["MaximumRetryCount"],
        3
    );
    assert_eq!(document["State"]["Status"], "created");
    assert_eq!(document["Path"], "true");
    for (filter, found) in [
        ("label=a=b", "box"),
        ("label=a=c", ""),
        ("status=created", "box"),
        ("status=running", ""),
        ("name=box", "box"),
    ] {
        assert_eq!(
            world
                .docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", filter])
                .ok(),
            found,
            "{filter}"
        );
    }
}

#[test]
fn stats_and_events() {
    let world = busybox();
    let mut events = world
        .docker_command(&[
            "events",
            "--filter",
            "type=container",
            "--format",
            "{{.Action}}",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // The client is subscribed when its first event comes; until then new containers are made.
    let first = std::thread::scope(|scope| {
        let reader = scope.spawn(|| lines.next());
        while !reader.is_finished() {
            world.docker(&["run", "--rm", "busybox", "true"]).ok();
        }
        reader.join().unwrap().unwrap().unwrap()
    });
    assert!(
        ["create", "attach", "start", "die", "destroy"].contains(&first.as_str()),
        "{first}"
    );
    world
        .docker(&["run", "-d", "--name", "box", "busybox", "sleep", "600"])
        .ok();
    let stats = world
        .docker(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.PIDs}}",
            "box",
        ])
        .ok();
    assert_eq!(stats, "box 1");
    let _ = events.kill();
    let _ = events.wait();
    let past = world
        .docker(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "container=box",
            "--format",
            "{{.Action}}",
        ])
        .ok();
    assert_eq!(past, "create\nstart");
}

#[test]
fn images_come_and_go() {
    let world = busybox();
    assert_eq!(
        world
            .docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
            .ok(),
        "busybox:latest"
    );
    world.docker(&["tag", "busybox", "other:1"]).ok();
    let saved = world.folder().join("saved.tar");
    world
        .docker(&["save", "-o", saved.to_str().unwrap(), "other:1"])
        .ok();
    assert!(
        world
            .docker(&["history", "-q", "busybox"])
            .ok()
            .lines()
            .count()
            >= 1
    );
    world.docker(&["create", "--name", "box", "other:1"]).ok();
    world.docker(&["rmi", "busybox"]).ok();
    let done = world.docker(&["rmi", "other:1"]);
    assert!(done.fails(1).contains("conflict"), "{done}");
    world.docker(&["rm", "box"]).ok();
    world.docker(&["rmi", "other:1"]).ok();
    assert_eq!(world.docker(&["images", "-q"]).ok(), "");
    assert_eq!(
        world.docker(&["load", "-i", saved.to_str().unwrap()]).ok(),
        "Loaded image: other:1"
    );
    assert_eq!(
        world
            .docker(&["run", "--rm", "other:1", "echo", "again"])
            .ok(),
        "again"
    );
}

#[test]
fn restart_policies_and_health() {
    let world = busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "box",
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "exit 4",
        ])
        .ok();
    eventually("two restarts", SOON, || {
        let state = world
            .docker(&[
                "inspect",
                "-f",
                "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}",
                "box",
            ])
            .ok();
        if state == "2 exited 4" {
            Ok(())
        } else {
            Err(state)
        }
    });
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "sick",
            "--health-cmd",
            "test -e /tmp/ok",
            "--health-interval",
            "100ms",
            "--health-retries",
            "2",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let health = |wanted: &str| {
        eventually(wanted, SOON, || {
            let state = world
                .docker(&["inspect", "-f", "{{.State.Health.Status}}", "sick"])
                .ok();
            if state == wanted { Ok(()) } else { Err(state) }
        });
    };
    health("unhealthy");
    world.docker(&["exec", "sick", "touch", "/tmp/ok"]).ok();
    health("healthy");
}

#[test]
fn true_under_load_loses_no_exit_code() {
    // A known race of a peer: the child's end arrives before anybody waits for it.
    let world = busybox();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let runs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 0..crate::rounds(60) {
                let code = i32::try_from(number % 4).unwrap();
                let done = world.docker(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    "busybox",
                    "sh",
                    "-c",
                    &format!("exit {code}"),
                ]);
                assert_eq!(done.code, code, "run {number}: {done}");
            }
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(panic) = runs {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn two_hundred_commands_as_docker_answers_them() {
    let world = busybox();
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/docker_cli.py");
    let mut command = world.enter("python3");
    let host = format!("unix://{}", world.socket().display());
    let said = run(command.arg(script).env("DOCKER_HOST", host), None).ok();
    assert!(said.ends_with(" passed, 0 failed"), "{said}");
}
