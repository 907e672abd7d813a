//! A world of its own for each test of real containers: a folder, a state root, a root file system that holds one static busybox, ids.
//!
//! Where the machine cannot (no root, no busybox), a test says so and counts as passed, because nothing could be learned.

// Every test program uses a part of it.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_gantry-runtime");
pub const BUSYBOX: &str = "/bin/busybox";

pub struct World {
    pub directory: PathBuf,
    pub ids: Vec<String>,
}

/// What a run left on its streams and how it ended.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl World {
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || !Path::new(BUSYBOX).exists() {
            eprintln!("SKIPPED: needs root and {BUSYBOX} (Debian package busybox-static)");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gantry-containers-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let root = directory.join("rootfs");
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        let tools = "sh true false sleep ls cat id mount umount ps echo env hostname ip touch mknod stat grep readlink tty stty \
            sort unshare chroot dd kill ulimit chmod pwd test mkdir rm head wc tr sync";
        for tool in tools.split_whitespace() {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\nweb:x:34:\nlog:x:50:web\n",
        )
        .unwrap();
        Some(Self {
            directory,
            ids: Vec::new(),
        })
    }

    pub fn root(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    pub fn id(&mut self) -> String {
        let base = self.directory.file_name().unwrap().to_string_lossy();
        let id = format!("{base}-{}", self.ids.len());
        self.ids.push(id.clone());
        id
    }

    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("--root")
            .arg(self.directory.join("state"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn call(&self, arguments: &[&str]) -> Ran {
        self.program(arguments).output().unwrap().into()
    }

    /// A bundle with the example spec, this command and what `change` does to it.
    pub fn bundle(&self, command: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.directory.join("bundle");
        let _ = fs::remove_dir_all(&bundle);
        fs::create_dir(&bundle).unwrap();
        let made = self.call(&["spec", "-b", bundle.to_str().unwrap()]);
        assert_eq!(made.code, 0, "{}", made.err);
        let config = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(command);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        spec["process"].as_object_mut().unwrap().remove("rlimits");
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        if !namespaces.contains(&json!({ "type": "cgroup" })) {
            namespaces.push(json!({ "type": "cgroup" }));
        }
        spec["root"] = json!({ "path": self.root(), "readonly": true });
        change(&mut spec);
        fs::write(&config, serde_json::to_vec(&spec).unwrap()).unwrap();
        bundle
    }

    pub fn run(&mut self, command: &[&str], change: impl FnOnce(&mut Value)) -> Ran {
        let bundle = self.bundle(command, change);
        let id = self.id();
        self.call(&["run", "-b", bundle.to_str().unwrap(), &id])
    }

    /// The output of a shell script in a container.
    pub fn sh(&mut self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let ran = self.run(&["sh", "-c", script], change);
        assert_eq!(ran.code, 0, "{script}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// A container that sleeps.
    pub fn sleeping(&mut self, change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.bundle(&["sleep", "1000"], change);
        let id = self.id();
        let created = self
            .program(&["create", "-b", bundle.to_str().unwrap(), &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(created.success());
        id
    }

    pub fn started(&mut self, change: impl FnOnce(&mut Value)) -> String {
        let id = self.sleeping(change);
        let started = self.call(&["start", &id]);
        assert_eq!(started.code, 0, "{}", started.err);
        id
    }

    pub fn state(&self, id: &str) -> Value {
        let state = self.call(&["state", id]);
        assert_eq!(state.code, 0, "{}", state.err);
        serde_json::from_str(&state.out).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for id in &self.ids {
            self.call(&["delete", "--force", id]);
        }
        assert!(
            fs::read_dir(self.directory.join("state")).map_or(0, Iterator::count) == 0
                || std::thread::panicking(),
            "a container's state was left behind"
        );
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub fn no_change(_: &mut Value) {}

/// How this machine freezes: the v1 hierarchy, or v2.
struct Freezer {
    base: PathBuf,
    v1: bool,
}

impl Freezer {
    fn new() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        match v1.exists() {
            true => Self {
                base: v1.to_owned(),
                v1: true,
            },
            false => Self {
                base: PathBuf::from("/sys/fs/cgroup"),
                v1: false,
            },
        }
    }

    fn set(&self, name: &str, frozen: bool) {
        let (file, value) = match (self.v1, frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        fs::write(self.base.join(name).join(file), value).unwrap();
    }

    fn processes(&self, name: &str) -> usize {
        let text = fs::read_to_string(self.base.join(name).join("cgroup.procs"));
        text.unwrap_or_default().lines().count()
    }
}

/// Fails the test instead of hanging it when the runtime can be held up.
#[track_caller]
pub fn prompt(mut command: Command) -> Ran {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap().into()
}

/// Every way into a cgroup that is frozen, by itself or by one above it, refuses in words; only `--ignore-paused` waits, and can be told
/// to stop that.
pub fn frozen_cgroups(world: &mut World) {
    let freezer = Freezer::new();
    let base = world.directory.file_name().unwrap().to_str().unwrap();
    let parent = format!("{base}-frozen");
    fs::create_dir(freezer.base.join(&parent)).unwrap();
    freezer.set(&parent, true);
    let bundle = |world: &World, path: &str, command: &[&str]| {
        let bundle = world.bundle(command, |spec| {
            spec["linux"]["cgroupsPath"] = json!(format!("/{path}"));
        });
        bundle.to_str().unwrap().to_owned()
    };
    let frozen = "linux.cgroupsPath: container's cgroup unexpectedly frozen";
    let inner = format!("{parent}/inner");
    for path in [inner.as_str(), parent.as_str()] {
        let bundle = bundle(world, path, &["true"]);
        for command in [&["run"][..], &["run", "-d"], &["create"]] {
            let id = world.id();
            let mut words = command.to_vec();
            words.extend(["-b", &bundle, &id]);
            let ran = prompt(world.program(&words));
            assert!(
                ran.code == 1 && ran.err.contains(frozen),
                "{command:?} {path}: {}",
                ran.err
            );
        }
    }
    assert!(!freezer.base.join(&inner).exists());
    freezer.set(&parent, false);

    // Frozen from above, after it was made.
    let path = bundle(world, &inner, &["sleep", "1000"]);
    let id = world.id();
    let create = ["create", "-b", &path, &id];
    let quiet = |mut command: Command| {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
    };
    quiet(world.program(&create));
    freezer.set(&parent, true);
    let paused = "cannot exec in a paused container (use --ignore-paused to override)";
    let refused = |words: &[&str], code: i32, why: &str| {
        let ran = prompt(world.program(words));
        assert!(
            ran.code == code && ran.err.contains(why),
            "{words:?}: {} {}",
            ran.code,
            ran.err
        );
    };
    refused(
        &["start", &id],
        1,
        "cannot start a container in the paused state",
    );
    refused(&["exec", &id, "true"], 255, paused);
    freezer.set(&parent, false);
    quiet(world.program(&["start", &id]));
    freezer.set(&parent, true);
    refused(&["exec", &id, "true"], 255, paused);
    freezer.set(&parent, false);
    assert_eq!(prompt(world.program(&["exec", &id, "true"])).code, 0);

    // A cgroup of its own that the container keeps frozen.
    fs::create_dir(freezer.base.join(&inner).join("sub")).unwrap();
    let sub = format!("{inner}/sub");
    freezer.set(&sub, true);
    let argument = if freezer.v1 { "freezer:sub" } else { "sub" };
    refused(&["exec", "--cgroup", argument, &id, "true"], 255, paused);
    fs::remove_dir(freezer.base.join(&sub)).unwrap();

    // Who wants to wait waits, goes on with the container, and can be told to stop waiting.
    quiet(world.program(&["pause", &id]));
    let wait = |code: &str| {
        let before = freezer.processes(&inner);
        let script = format!("exit {code}");
        let words = ["exec", "--ignore-paused", &id, "sh", "-c", &script];
        let mut child = world.program(&words).stderr(Stdio::null()).spawn().unwrap();
        while freezer.processes(&inner) == before {
            assert!(child.try_wait().unwrap().is_none(), "it does not wait");
            std::thread::yield_now();
        }
        child
    };
    let mut first = wait("9");
    let mut second = wait("0");
    let pid = rustix::process::Pid::from_child(&second);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(!second.wait().unwrap().success());
    quiet(world.program(&["resume", &id]));
    assert_eq!(first.wait().unwrap().code(), Some(9));
    // Its program, which nobody waits for any more, was not run: only the first process is left.
    while freezer.processes(&inner) > 1 {
        std::thread::yield_now();
    }
    quiet(world.program(&["pause", &id]));
    quiet(world.program(&["delete", "--force", &id]));
    fs::remove_dir(freezer.base.join(&parent)).unwrap();
    // Whatever of it there is in other hierarchies.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(&parent));
    }
}

/// `events` goes on and tells of each kill for want of memory, until the container ends.
pub fn kills_as_events(world: &mut World) {
    let bundle = world.bundle(
        &[
            "sh",
            "-c",
            "cat /go; dd if=/dev/zero of=/dev/null bs=100M count=2; cat /go",
        ],
        |spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 20 << 20 });
        },
    );
    let go = world.root().join("go");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &go,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let id = world.id();
    let ran = world
        .program(&["run", "-d", "-b", bundle.to_str().unwrap(), &id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(ran.unwrap().success());
    let mut events = world
        .program(&["events", "--interval", "100ms", &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(events.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    // It listens by now.
    assert_eq!(next()["type"], "stats");
    fs::OpenOptions::new()
        .write(true)
        .open(&go)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let oom = loop {
        let event = next();
        if event["type"] != "stats" {
            break event;
        }
    };
    assert_eq!(oom, json!({ "type": "oom", "id": id }));
    assert_eq!(world.call(&["kill", &id, "KILL"]).code, 0);
    assert!(
        events.wait().unwrap().success(),
        "it ends with the container"
    );
}
