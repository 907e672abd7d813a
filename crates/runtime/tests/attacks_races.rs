//! Attacks that need time or masses: paths swapped while a container is being made, and bombs beside a neighbour.
//!
//! `GANTRY_TEST_RACES` sets how many paths are raced (`make test-long`: 10,000). `docs/how-to/hardening.md` names these tests.

mod world;

use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::{Ran, World};

fn races() -> usize {
    let wanted = std::env::var("GANTRY_TEST_RACES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(1000)
}

/// Exchanges two names as fast as it can, as a neighbour with the same volume would, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(pairs: Vec<(PathBuf, PathBuf)>) -> Self {
        let (stop, swaps) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (a, b) in &pairs {
                    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            swaps,
            thread: Some(thread),
        }
    }

    fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

/// A file of the host that no container may see or cover, and what it looked like before.
struct Canary {
    path: PathBuf,
    text: String,
    identity: (u64, u64),
    mounts: usize,
}

impl Canary {
    fn new(world: &World) -> Self {
        let path = world.directory.join("canary");
        let text = format!("only-the-host-{}", std::process::id());
        fs::write(&path, &text).unwrap();
        let mut canary = Self {
            path,
            text,
            identity: (0, 0),
            mounts: 0,
        };
        (canary.identity, canary.mounts) = canary.look();
        canary
    }

    /// What is at the path now, and the mounts of ours on the host.
    fn look(&self) -> ((u64, u64), usize) {
        let meta = fs::metadata(&self.path).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.path.parent().unwrap().to_str().unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(folder));
        ((meta.dev(), meta.ino()), mounts.count())
    }

    fn check(&self, ran: &Ran) {
        assert_eq!(fs::read_to_string(&self.path).unwrap(), self.text);
        assert_eq!(self.look(), (self.identity, self.mounts));
        assert!(
            !ran.out.contains(&self.text),
            "the host's file was seen: {}",
            ran.out
        );
        let null = fs::metadata("/dev/null").unwrap();
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    }
}

/// What a container may end in when its paths move under the runtime's hands.
fn refused_or_done(ran: &Ran) {
    let words = [
        "error mounting",
        "can't mask path",
        "can't make",
        "error creating device",
        "making the terminal",
        "mounting /dev/console",
        "making the root read-only",
        "opening /dev/null",
    ];
    assert!(
        ran.code == 0 || words.iter().any(|w| ran.err.contains(w)),
        "{} {}{}",
        ran.code,
        ran.out,
        ran.err
    );
}

/// CVE-2025-31133 and CVE-2025-52565: the source of a mask and the terminal's place, swapped for links while they are used.
#[test]
fn devices_swapped_for_links_during_masking() {
    let Some(mut world) = World::new() else {
        return;
    };
    let canary = Canary::new(&world);
    let dev = world.directory.join("dev-volume");
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::write(dev.join("console"), "").unwrap();
    for (name, minor) in [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ] {
        let device = rustix::fs::makedev(1, minor);
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(
            CWD,
            dev.join(name),
            kind,
            Mode::from_raw_mode(0o666),
            device,
        )
        .unwrap();
    }
    // Inside, the link's target is a file of the container's, which must not become the mask either.
    fs::write(world.root().join("bait"), "bait").unwrap();
    let mut pairs = Vec::new();
    for (name, target) in [
        ("null", canary.path.to_str().unwrap()),
        ("null", "/bait"),
        ("console", "/bait"),
        ("console", "/proc/self/fd/3"),
        ("pts", "/proc/1/root"),
        ("pts", "/etc"),
    ] {
        let link = dev.join(format!("link-{}", pairs.len()));
        symlink(target, &link).unwrap();
        pairs.push((dev.join(name), link));
    }
    let masked = [
        "/proc/keys",
        "/proc/timer_list",
        "/proc/interrupts",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/version",
    ];
    let script = format!(
        "for f in {}; do echo mask $(stat -c %t:%T $f); done; cat /dev/null; cat /proc/version /proc/keys",
        masked.join(" ")
    );
    let swapper = Swapper::start(pairs);
    let per_run = masked.len() + 3;
    let (mut done, mut completed) = (0, 0);
    while done < races() {
        let ran = world.run(&["sh", "-c", &script], |spec| {
            spec["process"]["terminal"] = json!(true);
            spec["root"]["readonly"] = json!(false);
            spec["linux"]["maskedPaths"] = json!(masked);
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev/") || m["destination"] == "/dev/pts");
            for mount in mounts.iter_mut() {
                if mount["destination"] == "/dev" {
                    *mount = json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind", "rw"] });
                }
            }
        });
        canary.check(&ran);
        assert!(!ran.out.contains("Linux version"), "unmasked: {}", ran.out);
        if ran.code == 0 {
            completed += 1;
            assert_eq!(
                ran.out.matches("mask 1:3").count(),
                masked.len(),
                "{}",
                ran.out
            );
        } else {
            refused_or_done(&ran);
        }
        done += per_run;
        let id = world.ids.pop().unwrap();
        assert!(
            !world.directory.join("state").join(&id).exists(),
            "a refused container was left behind"
        );
    }
    println!(
        "{done} paths raced, {} swaps, {completed} containers completed",
        swapper.swaps()
    );
    assert!(swapper.swaps() > done as u64 && completed > 0);
}

/// CVE-2021-30465: the folder that a mount goes to, swapped for a link out of the root by a neighbour that shares the volume.
#[test]
fn mount_targets_swapped_through_a_shared_volume() {
    let Some(mut world) = World::new() else {
        return;
    };
    let canary = Canary::new(&world);
    let shared = world.directory.join("shared");
    let source = world.directory.join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("mine"), "").unwrap();
    const TARGETS: usize = 20;
    let mut pairs = Vec::new();
    for number in 0..4 {
        fs::create_dir_all(shared.join(format!("d{number}/in"))).unwrap();
        let link = shared.join(format!("link{number}"));
        symlink(
            [
                "/",
                "/../../../../..",
                "/sys/../../..",
                world.directory.to_str().unwrap(),
            ][number],
            &link,
        )
        .unwrap();
        pairs.push((shared.join(format!("d{number}")), link));
    }
    // Anything of the host's that came in would show by the canary's name or its text.
    let script = format!(
        "busybox find / -path /proc -prune -o -path /sys -prune -o -name {} -print; cat {} /shared/d*/canary 2>/dev/null; \
         busybox grep -c /shared/ /proc/self/mountinfo; true",
        "canary",
        canary.path.display()
    );
    let swapper = Swapper::start(pairs);
    let (mut done, mut completed) = (0, 0);
    while done < races() {
        let ran = world.run(&["sh", "-c", &script], |spec| {
            spec["root"]["readonly"] = json!(false);
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({ "destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rw"] }));
            for number in 0..TARGETS {
                let destination = format!("/shared/d{}/in", number % 4);
                mounts.push(match number % 3 {
                    0 => json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"] }),
                    1 => json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"] }),
                    _ => json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["ro", "rprivate"] }),
                });
            }
        });
        canary.check(&ran);
        assert!(!ran.out.contains("canary"), "{}", ran.out);
        refused_or_done(&ran);
        completed += usize::from(ran.code == 0);
        done += TARGETS;
        world.ids.pop();
    }
    println!(
        "{done} targets raced, {} swaps, {completed} containers completed",
        swapper.swaps()
    );
    assert!(swapper.swaps() > done as u64 && completed > 0);
    assert!(Path::new("/proc/self/root/etc").exists());
}

/// `cat` in a container of its own, asked a line at a time.
struct Neighbour {
    child: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Neighbour {
    fn start(world: &mut World) -> Self {
        let bundle = world.bundle(&["cat"], |_| {});
        let id = world.id();
        let mut child = world
            .program(&["run", "-b", bundle.to_str().unwrap(), &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut neighbour = Self { child, answers };
        neighbour.ask();
        neighbour
    }

    fn ask(&mut self) -> Duration {
        let began = Instant::now();
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"x\n")
            .unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "x\n");
        began.elapsed()
    }

    /// The median and the worst of some requests.
    fn measure(&mut self) -> (Duration, Duration) {
        let mut times: Vec<_> = (0..150)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(2));
                self.ask()
            })
            .collect();
        times.sort();
        (times[times.len() / 2], times[times.len() - 1])
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// Fork bomb, descriptor bomb, memory bomb: each stays in its limits, and who lives next door hardly notices.
#[test]
fn bombs_stay_in_their_limits_and_neighbours_answer() {
    let Some(mut world) = World::new() else {
        return;
    };
    let mut neighbour = Neighbour::start(&mut world);
    let (quiet, _) = neighbour.measure();
    let limited = |spec: &mut Value| {
        spec["linux"]["resources"]["pids"] = json!({ "limit": 64 });
        spec["linux"]["resources"]["memory"] = json!({ "limit": 48 << 20, "swap": 48 << 20 });
        spec["linux"]["resources"]["cpu"] =
            json!({ "quota": 50_000, "period": 100_000, "shares": 128 });
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 }]);
    };
    // A shell that cannot fork ends, and starts the bomb anew with its last breath. The first process only sleeps.
    let bomb = "trap 'exec sh /bomb' EXIT\nwhile :; do sh /bomb & done\n";
    fs::write(world.root().join("bomb"), bomb).unwrap();
    let bombs = [
        ("fork", "sh /bomb 2>/dev/null & exec sleep 1000"),
        (
            "descriptor",
            "(while true; do (i=3; while eval \"exec $i</dev/null\"; do i=$((i+1)); done) 2>/dev/null; done) & exec sleep 1000",
        ),
        (
            "memory",
            "(while true; do head -c 200000000 /dev/zero | busybox sort -z | wc -c; done 2>/dev/null) & exec sleep 1000",
        ),
    ];
    for (name, script) in bombs {
        let bundle = world.bundle(&["sh", "-c", script], limited);
        let id = world.id();
        let create = ["create", "-b", bundle.to_str().unwrap(), &id];
        let created = world
            .program(&create)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(created.unwrap().success());
        assert_eq!(world.call(&["start", &id]).code, 0);
        let (median, worst) = neighbour.measure();
        let stats = world.call(&["events", "--stats", &id]);
        let stats: Value = serde_json::from_str(&stats.out).unwrap();
        let pids = stats["data"]["pids"]["current"].as_u64().unwrap();
        let memory = stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap();
        println!(
            "{name} bomb: neighbour {median:?} (worst {worst:?}, quiet {quiet:?}), {pids} processes, {memory} bytes"
        );
        assert!(pids <= 64 && memory <= 48 << 20, "{stats}");
        assert!(
            median < Duration::from_millis(100) && worst < Duration::from_secs(5),
            "{name}: {median:?} {worst:?}"
        );
        let deleted = world.call(&["delete", "--force", &id]);
        assert_eq!(deleted.code, 0, "{name}: {}", deleted.err);
    }
    // The limits bite where they should, with the errors that programs know.
    let ran = world.run(
        &[
            "sh",
            "-c",
            "i=3; while eval \"exec $i</dev/null\"; do i=$((i+1)); done",
        ],
        limited,
    );
    assert!(
        ran.code != 0 && ran.err.contains("/dev/null"),
        "{}",
        ran.err
    );
    let ran = world.run(
        &[
            "sh",
            "-c",
            "busybox dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?",
        ],
        limited,
    );
    assert!(ran.out.contains("137"), "{} {}", ran.out, ran.err);
    let ran = world.run(
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i+1)); done",
        ],
        limited,
    );
    assert!(ran.err.contains("can't fork"), "{}", ran.err);
    neighbour.end();
}
