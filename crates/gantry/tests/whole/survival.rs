//! Containers do not care about us: the daemon dies in every way, and they run on.

use crate::{GANTRY, SOON, busybox};
use gantry_testkit::{Options, World, alive, eventually, run};
use std::path::{Path, PathBuf};

#[track_caller]
fn page(world: &World, host: &str, port: &str) -> String {
    let mut command = world.enter("curl");
    command.args([
        "-sS",
        "--globoff",
        "--max-time",
        "5",
        &format!("http://{host}:{port}/"),
    ]);
    run(&mut command, None).ok()
}

fn web(world: &World) -> String {
    let script = "httpd -p 80 -h /www; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    world
        .docker(&[
            "run", "-d", "--name", "web", "-p", "80", "busybox", "sh", "-c", script,
        ])
        .ok();
    let port = world.docker(&["port", "web", "80/tcp"]).ok();
    let port = port
        .lines()
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    eventually("the web server", SOON, || {
        let mut command = world.enter("curl");
        let done = run(
            command.args(["-sS", &format!("http://127.0.0.1:{port}/")]),
            None,
        );
        if done.code == 0 {
            Ok(())
        } else {
            Err(done.to_string())
        }
    });
    port
}

#[test]
fn kill_9_of_the_daemon() {
    let mut world = busybox();
    let port = web(&world);
    let pid = world
        .docker(&["inspect", "-f", "{{.State.Pid}}", "web"])
        .ok();
    world.kill();
    // Served on, and nobody else can take the port.
    assert_eq!(page(&world, "127.0.0.1", &port), "ok");
    assert_eq!(page(&world, "[::1]", &port), "ok");
    assert_eq!(world.try_bind("0.0.0.0", &port), "Address already in use");
    let lines_before = log_lines(&world);
    eventually("the log going on", SOON, || {
        let lines = log_lines(&world);
        if lines > lines_before {
            Ok(())
        } else {
            Err(format!("{lines} lines"))
        }
    });
    let began = std::time::Instant::now();
    world.up();
    assert!(
        began.elapsed().as_secs() < 5,
        "adopting took {:?}",
        began.elapsed()
    );
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "web"])
            .ok(),
        format!("running {pid}")
    );
    assert_eq!(page(&world, "127.0.0.1", &port), "ok");
    assert_eq!(world.docker(&["exec", "web", "echo", "in"]).ok(), "in");
    // The log has no gap: 1, 2, 3, …
    let log = world.docker(&["logs", "web"]).ok();
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "the log has a gap");
    }
    world.docker(&["stop", "-t", "0", "web"]).ok();
    world.docker(&["start", "web"]).ok();
}

/// Lines in the container's log file, read without the daemon.
fn log_lines(world: &World) -> usize {
    let mut lines = 0;
    for container in std::fs::read_dir(world.data_dir().join("containers"))
        .unwrap()
        .flatten()
    {
        for file in std::fs::read_dir(container.path()).unwrap().flatten() {
            if file.file_name().to_string_lossy().contains("-json.log") {
                lines += std::fs::read_to_string(file.path())
                    .unwrap()
                    .lines()
                    .count();
            }
        }
    }
    lines
}

#[test]
fn what_ended_meanwhile_has_its_exit_code() {
    let mut world = busybox();
    let gate = world.folder().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let bind = format!("{}:/gate", gate.display());
    let script = "while ! test -e /gate/open; do sleep 0.02; done; echo last words; exit 42";
    let id = world
        .docker(&[
            "run", "-d", "--name", "box", "-v", &bind, "busybox", "sh", "-c", script,
        ])
        .ok();
    let gone = world
        .docker(&[
            "run", "-d", "--rm", "--name", "gone", "-v", &bind, "busybox", "sh", "-c", script,
        ])
        .ok();
    world.kill();
    std::fs::write(gate.join("open"), "").unwrap();
    for id in [&id, &gone] {
        let exit = world.run_dir().join("c").join(id).join("exit.json");
        eventually("exit.json", SOON, || {
            if exit.exists() {
                Ok(())
            } else {
                Err(exit.display().to_string())
            }
        });
    }
    world.up();
    eventually("the exit code", SOON, || {
        let state = world
            .docker(&[
                "inspect",
                "-f",
                "{{.State.Status}} {{.State.ExitCode}}",
                "box",
            ])
            .ok();
        if state == "exited 42" {
            Ok(())
        } else {
            Err(state)
        }
    });
    assert_eq!(world.docker(&["logs", "box"]).ok(), "last words");
    eventually("--rm after the restart", SOON, || {
        let names = world.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok();
        if names == "box" { Ok(()) } else { Err(names) }
    });
}

#[test]
fn kill_9_in_the_middle_of_things() {
    // Each round kills at another seeded moment of a busy client. Afterwards all is whole or gone.
    let mut world = busybox();
    let archive = world.folder().join("again.tar");
    let archive = archive.to_str().unwrap();
    world.docker(&["save", "-o", archive, "busybox"]).ok();
    let mut seed = 0x5eed_u64;
    for round in 0..crate::rounds(6) {
        let script = format!(
            "for i in 1 2 3 4 5 6; do docker run --rm --name r{round}-$i busybox true; docker create --name c{round}-$i busybox true; docker start c{round}-$i; docker run -d --name d{round}-$i busybox sleep 600; docker exec d{round}-$i true; docker load -i {archive}; docker stop -t 0 d{round}-$i; docker rm -f d{round}-$i; done >/dev/null 2>&1"
        );
        let like = world.docker_command(&["version"]);
        let mut client = world.enter("sh");
        client.args(["-c", &script]);
        for (name, value) in like.get_envs() {
            if let Some(value) = value {
                client.env(name, value);
            }
        }
        let mut client = client.spawn().unwrap();
        // A linear congruential step: the same moments in every run.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(std::time::Duration::from_millis(20 + (seed >> 33) % 1200));
        world.kill();
        client.wait().unwrap();
        world.up();
        world.docker(&["run", "--rm", "busybox", "true"]).ok();
        for id in world.docker(&["ps", "-aq"]).ok().lines() {
            let state = world
                .docker(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", id])
                .ok();
            let (status, pid) = state.split_once(' ').unwrap();
            let alive = pid != "0" && alive(pid);
            assert_eq!(status == "running", alive, "round {round}: {state}");
            world.docker(&["rm", "-f", id]).ok();
        }
    }
    // Nothing of all this is left: only the supervisors' folder and the image.
    let instance = world.instance();
    let left: Vec<String> = world
        .leftovers(&instance)
        .into_iter()
        .filter(|line| line.contains("supervisor ") || line.contains("containers/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A cgroup folder of this test in each v1 hierarchy, and in the v2 one.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn new(name: &str) -> Self {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut folders = Vec::new();
        for line in mountinfo.lines() {
            let (head, tail) = line.split_once(" - ").unwrap();
            if !tail.starts_with("cgroup") {
                continue;
            }
            let folder = Path::new(head.split(' ').nth(4).unwrap()).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            // A new cpuset holds nothing until it is told what.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = std::fs::read_to_string(folder.parent().unwrap().join(file)) {
                    let _ = std::fs::write(folder.join(file), all);
                }
            }
            folders.push(folder);
        }
        Self(folders)
    }
    /// What a service manager does with `KillMode=control-group`.
    fn kill_all(&self) {
        for folder in &self.0 {
            for pid in std::fs::read_to_string(folder.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                run(std::process::Command::new("kill").args(["-9", pid]), None);
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[test]
fn everything_in_the_daemons_cgroup_is_killed() {
    let cgroups = Cgroups::new(&format!("service-{}", std::process::id()));
    let mut world = World::with(
        GANTRY,
        Options {
            isolated: true,
            cgroups: cgroups.0.clone(),
            ..Options::default()
        },
    );
    world.load_busybox();
    let port = web(&world);
    let pid = world
        .docker(&["inspect", "-f", "{{.State.Pid}}", "web"])
        .ok();
    cgroups.kill_all();
    world.reap();
    assert_eq!(page(&world, "127.0.0.1", &port), "ok");
    assert_eq!(page(&world, "[::1]", &port), "ok");
    world.up();
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "web"])
            .ok(),
        format!("running {pid}")
    );
    world.purge();
}

#[test]
fn after_a_reboot() {
    let mut world = busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "always",
            "--restart",
            "always",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "unless",
            "--restart",
            "unless-stopped",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "stopped",
            "--restart",
            "unless-stopped",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    world
        .docker(&[
            "run", "-d", "--name", "plain", "-p", "80", "busybox", "sleep", "600",
        ])
        .ok();
    world.docker(&["stop", "-t", "0", "stopped"]).ok();
    world.kill();
    world.power_cut();
    world.up();
    let states = eventually("the restart", SOON, || {
        let states = world
            .docker(&["ps", "-a", "--format", "{{.Names}} {{.State}}"])
            .ok();
        if states.matches("running").count() == 2 {
            Ok(states)
        } else {
            Err(states)
        }
    });
    for line in [
        "always running",
        "unless running",
        "stopped exited",
        "plain exited",
    ] {
        assert!(states.contains(line), "{line} is not in:\n{states}");
    }
    let plain = world
        .docker(&[
            "inspect",
            "-f",
            "{{.State.Pid}} {{.NetworkSettings.IPAddress}}",
            "plain",
        ])
        .ok();
    assert_eq!(plain, "0", "a stale pid or address");
    world.docker(&["start", "plain"]).ok();
}

/// A small file system under the daemon's data directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let status = std::process::Command::new("mount")
            // More than what loading an image leaves free.
            .args(["-t", "tmpfs", "-o", "size=320m,mode=700", "none"])
            .arg(&folder)
            .status()
            .unwrap();
        assert!(status.success(), "mounting a small file system");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let mut world = World::stopped(
        GANTRY,
        Options {
            isolated: true,
            ..Options::default()
        },
    );
    let disk = SmallDisk::under(world.data_dir());
    world.up();
    world.load_busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "before",
            "busybox",
            "sh",
            "-c",
            "while :; do echo line; sleep 0.2; done",
        ])
        .ok();
    let pid = world
        .docker(&["inspect", "-f", "{{.State.Pid}}", "before"])
        .ok();

    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    for block in [vec![1_u8; 1 << 20], vec![1_u8; 4096]] {
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
    drop(file);
    let mut refusals = 0;
    for number in 0..40 {
        let done = world.docker(&[
            "create",
            "--name",
            &format!("full{number}"),
            "busybox",
            "true",
        ]);
        if done.code != 0 {
            refusals += 1;
            assert!(
                done.stderr.contains("No space left on device")
                    || done.stderr.contains("no space left on device"),
                "{done}"
            );
        }
    }
    assert!(refusals > 0, "a full disk refused nothing");
    assert!(alive(&pid), "a full disk ended a running container");

    std::fs::remove_file(&filler).unwrap();
    world.docker(&["run", "--rm", "busybox", "true"]).ok();
    // What was refused is not there, what was answered is, and a new daemon agrees.
    let listed = names(&world);
    assert_eq!(listed.lines().count(), 40 - refusals + 1, "{listed}");
    world.kill();
    world.up();
    assert_eq!(names(&world), listed);
    assert!(alive(&pid));
    for id in world.docker(&["ps", "-aq"]).ok().lines() {
        world.docker(&["rm", "-f", id]).ok();
    }
    // The purge empties the small disk; the mount itself is this test's.
    world.gantry(&["down", "--purge"]).ok();
    drop(disk);
}

fn names(world: &World) -> String {
    world.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok()
}
