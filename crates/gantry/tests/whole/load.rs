//! Many containers, readers that do not read, a container that talks much, a disk that is full, and `kill -9` in each operation.

use crate::{SOON, busybox};
use gantry_testkit::{Options, World, alive, eventually, run};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of memory that the daemon holds.
fn memory(world: &World) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", world.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// A request whose answer nobody reads.
fn unread(world: &World, path: &str) -> UnixStream {
    let mut socket = UnixStream::connect(world.socket()).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
    socket
}

/// The whole answer to a request, and how long it took.
fn timed(world: &World, path: &str) -> (String, Duration) {
    let began = Instant::now();
    let mut socket = UnixStream::connect(world.socket()).unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = Vec::new();
    socket.read_to_end(&mut text).unwrap();
    (String::from_utf8_lossy(&text).into_owned(), began.elapsed())
}

/// How many containers: `GANTRY_TEST_CONTAINERS`, a thousand in `make test-long`.
fn many() -> usize {
    std::env::var("GANTRY_TEST_CONTAINERS").map_or(120, |text| text.parse().unwrap())
}

#[test]
fn many_containers_come_and_go() {
    let world = busybox();
    let count = many();
    let round = |name: &str| {
        let script = format!(
            "for i in $(seq {count}); do echo {name}$i; done | xargs -P 4 -I% docker run -d --network none --name % busybox sleep 600 >/dev/null"
        );
        let began = Instant::now();
        shell(&world, &script).ok();
        let started = began.elapsed();
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let (text, took) = timed(&world, "/containers/json?all=1");
            assert_eq!(text.matches("\"Id\":").count(), count);
            fastest = fastest.min(took);
        }
        // An optimised build on a quiet machine takes less than 20 ms for a thousand.
        let limit = Duration::from_millis(if cfg!(debug_assertions) { 400 } else { 20 });
        assert!(
            fastest < limit,
            "listing {count} containers took {fastest:?}"
        );
        println!("{count} containers: started in {started:?}, listed in {fastest:?}");
        shell(
            &world,
            "docker ps -aq | xargs -P 4 -n 20 docker rm -f >/dev/null",
        )
        .ok();
        assert_eq!(world.docker(&["ps", "-aq"]).ok(), "");
        memory(&world)
    };
    let first = round("a");
    let second = round("b");
    // What a round leaves would be left again by the second one.
    let limit = first + first / 20 + (4 << 20);
    assert!(
        second <= limit,
        "the daemon had {first} bytes after the first round and {second} after the second"
    );
    println!(
        "memory after each round: {} and {} MiB",
        first >> 20,
        second >> 20
    );
    world.purge();
}

/// A script with the docker client on this world.
fn shell(world: &World, script: &str) -> gantry_testkit::Done {
    let like = world.docker_command(&["version"]);
    let mut command = world.enter("sh");
    command.args(["-c", script]);
    for (name, value) in like.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    run(&mut command, None)
}

#[test]
fn stalled_readers_cost_little_and_delay_nobody() {
    let world = busybox();
    let script = "i=0; while :; do i=$((i+1)); echo $i some words that fill the line up to a length that is usual; done";
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "loud",
            "--log-opt",
            "max-size=4m",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    world.docker(&["run", "--rm", "busybox", "true"]).ok();
    let before = memory(&world);
    let mut readers = Vec::new();
    for _ in 0..50 {
        readers.push(unread(&world, "/containers/loud/logs?stdout=1&follow=1"));
        readers.push(unread(&world, "/events"));
    }
    for round in 0..20 {
        let name = format!("quick{round}");
        let began = Instant::now();
        assert_eq!(
            world
                .docker(&["run", "--rm", "--name", &name, "busybox", "echo", "there"])
                .ok(),
            "there"
        );
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "a run took {:?}",
            began.elapsed()
        );
    }
    let after = memory(&world);
    let cost = after.saturating_sub(before);
    println!("100 readers that do not read cost {} KiB", cost >> 10);
    assert!(
        cost <= 64 << 20,
        "100 readers that do not read cost {cost} bytes"
    );
    drop(readers);
    world.docker(&["rm", "-f", "loud"]).ok();
    world.purge();
}

#[test]
fn a_fast_writer_loses_nothing() {
    let world = busybox();
    let lines = 400_000;
    world
        .docker(&["run", "-d", "--name", "other", "busybox", "sleep", "600"])
        .ok();
    let began = Instant::now();
    let script = format!("seq 1 {lines}");
    world
        .docker(&[
            "run", "-d", "--name", "fast", "busybox", "sh", "-c", &script,
        ])
        .ok();
    assert_eq!(
        world.docker(&["exec", "other", "echo", "undisturbed"]).ok(),
        "undisturbed"
    );
    assert_eq!(world.docker(&["wait", "fast"]).ok(), "0");
    println!("{lines} lines written and logged in {:?}", began.elapsed());
    let log = world.docker(&["logs", "fast"]).ok();
    let mut count = 0;
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "the log has a gap");
        count += 1;
    }
    assert_eq!(count, lines);
    world.docker(&["rm", "-f", "other", "fast"]).ok();
    world.purge();
}

/// A data directory that is a small file system of its own.
struct Small(World);

impl Small {
    fn new() -> Self {
        let mut world = World::stopped(
            crate::GANTRY,
            Options {
                isolated: true,
                ..Options::default()
            },
        );
        let data = world.data_dir();
        std::fs::create_dir(&data).unwrap();
        let mut mount = Command::new("mount");
        run(
            mount
                .args(["-t", "tmpfs", "-o", "size=400m,mode=710", "none"])
                .arg(&data),
            None,
        )
        .ok();
        world.up();
        Self(world)
    }
    fn filler(&self) -> std::path::PathBuf {
        self.0.data_dir().join("filler")
    }
    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let block = vec![0u8; 64 << 10];
        while file.write_all(&block).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let world = &mut self.0;
        let _ = std::fs::remove_file(world.data_dir().join("filler"));
        let instance = world.instance();
        world.docker(&["rm", "-f", "writer"]);
        world.terminate_if_running();
        let mut unmount = Command::new("umount");
        run(unmount.arg(world.data_dir()), None).ok();
        // Purging needs to know what is to be purged.
        std::fs::write(world.data_dir().join("instance"), instance).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_what_frees_it_works() {
    let small = Small::new();
    let world = &small.0;
    let full = |done: &gantry_testkit::Done| {
        assert_ne!(done.code, 0, "{done}");
        let words = done.to_string().to_lowercase();
        assert!(words.contains("no space left on device"), "{done}");
    };
    world.load_busybox();
    let writer = "i=0; while test ! -e /stop; do i=$((i+1)); echo line $i; sleep 0.01; done";
    world
        .docker(&[
            "run", "-d", "--name", "writer", "busybox", "sh", "-c", writer,
        ])
        .ok();
    world.docker(&["create", "--name", "spare", "busybox"]).ok();
    let archive =
        gantry_testkit::images::archive(&["big:1"], &[big_layer()], &serde_json::json!({}));
    small.fill(0);
    // Load and commit: refused with the reason.
    full(&world.docker_with(&["load"], &archive));
    world.docker(&[
        "exec",
        "writer",
        "sh",
        "-c",
        "dd if=/dev/zero of=/x bs=4k count=1 2>/dev/null || true",
    ]);
    full(&world.docker(&["commit", "writer", "committed:1"]));
    // The container that logs runs on; reading what there is and removing work.
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Status}}", "writer"])
            .ok(),
        "running"
    );
    assert!(
        world
            .docker(&["logs", "--tail", "1", "writer"])
            .ok()
            .starts_with("line ")
    );
    let created = world.docker(&["create", "--name", "more", "busybox"]);
    if created.code != 0 {
        full(&created);
    }
    world.docker(&["rm", "-f", "spare"]).ok();
    world.docker(&["container", "prune", "-f"]).ok();
    world.docker(&["volume", "prune", "-f"]).ok();
    std::fs::remove_file(small.filler()).unwrap();
    // Room again: all goes on, and the log says what it lacks.
    world.docker_with(&["load"], &archive).ok();
    world.docker(&["run", "--rm", "busybox", "true"]).ok();
    eventually("the log going on", SOON, || {
        let first = world.docker(&["logs", "--tail", "1", "writer"]).ok();
        std::thread::sleep(Duration::from_millis(50));
        let second = world.docker(&["logs", "--tail", "1", "writer"]).ok();
        if first == second { Err(second) } else { Ok(()) }
    });
    world.docker(&["rm", "-f", "writer"]).ok();
}

/// A layer of 8 MiB.
fn big_layer() -> Vec<u8> {
    let mut header = vec![0u8; 512];
    header[..3].copy_from_slice(b"big");
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    let size = 8 << 20;
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut layer = header;
    // Not compressible to nothing on the way.
    let mut seed = 1u64;
    layer.extend((0..size).map(|_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    }));
    layer.extend(vec![0; 1024]);
    layer
}

/// Preparation, the operation in whose middle the daemon dies, and what of it may be seen afterwards: nothing or all (`%` is the round's name).
const OPERATIONS: [(&str, &str, &str, &[&str]); 20] = [
    (
        "true",
        "docker create --name % busybox",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["", "created"],
    ),
    (
        "docker create --name % busybox sleep 600",
        "docker start %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["created", "running"],
    ),
    (
        "true",
        "docker run -d --name % busybox sleep 600",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["", "created", "running"],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker stop -t 0 %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "exited"],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker kill %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "exited"],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker restart -t 0 %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "exited"],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker rm -f %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "exited", ""],
    ),
    (
        "docker create --name % busybox",
        "docker rm %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["created", ""],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker pause %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "paused"],
    ),
    (
        "docker run -d --name % busybox sleep 600; docker pause %",
        "docker unpause %",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running", "paused"],
    ),
    (
        "docker create --name % busybox",
        "docker rename % %-new",
        "docker ps -a --filter name=^% --format {{.Names}}",
        &["%", "%-new"],
    ),
    (
        "docker create --name % -m 64m busybox",
        "docker update -m 80m --memory-swap -1 %",
        "docker inspect -f {{.HostConfig.Memory}} %",
        &["67108864", "83886080"],
    ),
    (
        "docker run -d --name % busybox sleep 600",
        "docker exec % true",
        "docker ps -a --filter name=^%$ --format {{.State}}",
        &["running"],
    ),
    (
        "docker create --name % busybox",
        "docker commit % %:1",
        "docker images -q %:1 | wc -l",
        &["0", "1"],
    ),
    (
        "true",
        "docker tag busybox %:1",
        "docker images -q %:1 | wc -l",
        &["0", "1"],
    ),
    (
        "docker tag busybox %:1",
        "docker rmi %:1",
        "docker images -q %:1 | wc -l",
        &["0", "1"],
    ),
    (
        "true",
        "docker volume create %",
        "docker volume ls -q --filter name=^%$ | wc -l",
        &["0", "1"],
    ),
    (
        "docker volume create %",
        "docker volume rm %",
        "docker volume ls -q --filter name=^%$ | wc -l",
        &["0", "1"],
    ),
    (
        "true",
        "docker network create %",
        "docker network ls -q --filter name=^%$ | wc -l",
        &["0", "1"],
    ),
    (
        "docker network create %",
        "docker network rm %",
        "docker network ls -q --filter name=^%$ | wc -l",
        &["0", "1"],
    ),
];

#[test]
fn kill_9_in_each_operation() {
    let mut world = busybox();
    let (mut seed, mut kills, mut done_before) = (0x0dd5_eed5_u64, 0, 0);
    for round in 0..crate::rounds(1) {
        for (number, (prepare, operation, look, allowed)) in OPERATIONS.iter().enumerate() {
            let name = format!("k{round}-{number}");
            let of = |script: &str| script.replace('%', &name);
            shell(&world, &of(prepare)).ok();
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // The client alone takes 20 to 40 ms before it asks.
            let delay = Duration::from_micros(15_000 + (seed >> 33) % 90_000);
            let like = world.docker_command(&["version"]);
            let mut client = world.enter("sh");
            client.args(["-c", &format!("{} >/dev/null 2>&1", of(operation))]);
            client.envs(
                like.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
            let mut client = client.spawn().unwrap();
            std::thread::sleep(delay);
            done_before += u32::from(client.try_wait().unwrap().is_some());
            world.kill();
            client.wait().unwrap();
            world.up();
            kills += 1;
            let seen = shell(&world, &of(look)).ok();
            let allowed: Vec<String> = allowed.iter().map(|state| of(state)).collect();
            assert!(
                allowed.contains(&seen),
                "{operation} (round {round}, killed after {delay:?}): {seen:?}"
            );
            for id in world.docker(&["ps", "-aq"]).ok().lines() {
                let state = world
                    .docker(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", id])
                    .ok();
                let (status, pid) = state.split_once(' ').unwrap();
                assert_eq!(
                    matches!(status, "running" | "paused"),
                    pid != "0" && alive(pid),
                    "{operation}: {state}"
                );
                world.docker(&["rm", "-f", id]).ok();
            }
            // Nothing stands in the way of doing it again.
            shell(
                &world,
                &of(
                    "docker volume rm -f %; docker network rm -f %; docker rmi -f %:1 2>/dev/null; true",
                ),
            );
        }
    }
    println!(
        "{kills} kills in {} operations, {done_before} of them after the client had its answer: none lost, none half done",
        OPERATIONS.len()
    );
    assert_eq!(world.docker(&["volume", "ls", "-q"]).ok(), "");
    assert_eq!(world.docker(&["images", "-q"]).ok().lines().count(), 1);
    let instance = world.instance();
    let left: Vec<String> = world
        .leftovers(&instance)
        .into_iter()
        .filter(|line| line.contains("supervisor ") || line.contains("containers/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
