//! A world of its own for each test of real containers: a folder, a state root, a root file system that holds one static busybox, ids.
//!
//! Where the machine cannot (no root, no busybox), a test says so and counts as passed, because nothing could be learned.

// Every test program uses a part of it.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

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
