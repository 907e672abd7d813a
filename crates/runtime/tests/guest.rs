//! Pure cgroup v2, in a small guest: a Debian kernel in QEMU (with KVM where there is one) whose only files are this very test program,
//! the runtime, busybox and the libraries that they need.
//!
//! ```text
//! host    pure_unified_cgroups_in_a_guest    kernel package, archive of the files, QEMU; reads the console
//! guest   v2_…  (ignored elsewhere)  real containers on a kernel that has cgroup v2 alone
//! ```
//! The guest's root is a tmpfs, so that roots can be pivoted; nothing of the host is visible in it and it has no network.
#![cfg(target_arch = "x86_64")]

mod world;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use world::{BUSYBOX, PROGRAM, World, no_change};

/// Long enough for an emulated processor.
const PATIENCE: Duration = Duration::from_secs(300);
const KVM_PATIENCE: Duration = Duration::from_secs(15);
/// The first line of the guest's tests.
const STARTED: &str = "running ";
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const MARK: &str = "the guest's tests ended with";

/// Runs as the guest's first process: the tests below, then off.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
if [ ! -e /on-tmpfs ]; then
    busybox mkdir -p /proc /new; busybox mount -t tmpfs -o size=80% tmpfs /new
    for f in bin lib lib64 usr modules init GUEST_FILES;  do [ -e /$f ] && busybox cp -a /$f /new/; done
    busybox touch /new/on-tmpfs
    exec busybox switch_root /new /init
fi
busybox mkdir -p /proc /sys /dev /tmp /run /etc
busybox mount -t proc proc /proc; busybox mount -t sysfs sysfs /sys; busybox mount -t devtmpfs dev /dev
busybox mkdir -p /dev/pts; busybox mount -t devpts devpts /dev/pts
busybox mount -t cgroup2 none /sys/fs/cgroup
for m in /modules/*.ko; do busybox insmod $m; done
RUST_BACKTRACE=0 TEST_PROGRAM --ignored --test-threads=1 v2_
echo "MARK $?"
busybox poweroff -f
"#;

/// The kernel and its modules, unpacked and kept beside the build.
fn kernel() -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-kernel");
    let ready = place.join("ready");
    if ready.exists() {
        return place;
    }
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.join("files")).unwrap();
    // The package by that name is empty and depends on the newest real one.
    let depends =
        output(Command::new("apt-cache").args(["depends", "--important", KERNEL_PACKAGE]));
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .unwrap_or_else(|| {
            panic!("apt knows no {KERNEL_PACKAGE}; `apt-get update` brings the lists")
        });
    output(
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(&place),
    );
    let archive = fs::read_dir(&place)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .expect("apt-get download leaves the package");
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(place.join("files")),
    );
    fs::remove_file(archive).unwrap();
    fs::write(ready, "").unwrap();
    place
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    text
}

fn find(folder: &Path, name: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .collect();
    entries.sort();
    entries
        .iter()
        .find_map(|path| match path.is_dir() && !path.is_symlink() {
            true => find(path, name),
            false => name(path.file_name()?.to_str()?).then(|| path.clone()),
        })
}

/// cpio(5), "New ASCII Format": what the kernel unpacks into its first root.
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<PathBuf>,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let name = name.trim_start_matches('/');
        let number = self.folders.len() + self.bytes.len();
        write!(
            self.bytes,
            "070701{number:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{name}\0",
            0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0
        )
        .unwrap();
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn folder(&mut self, path: &Path) {
        if path.parent().is_none() || self.folders.iter().any(|f| f == path) {
            return;
        }
        self.folder(path.parent().unwrap());
        self.folders.push(path.to_owned());
        self.entry(path.to_str().unwrap(), 0o040_755, b"");
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.folder(Path::new(path).parent().unwrap());
        self.entry(path, 0o100_755, content);
    }

    fn link(&mut self, path: &str, target: &str) {
        self.folder(Path::new(path).parent().unwrap());
        self.entry(path, 0o120_777, target.as_bytes());
    }
}

/// The libraries that a program is linked with, by the paths it looks for them.
fn libraries(program: &Path) -> Vec<String> {
    output(Command::new("ldd").arg(program))
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(str::to_owned)
        .collect()
}

fn archive(kernel: &Path) -> Vec<u8> {
    let me = std::env::current_exe().unwrap();
    let mut archive = Archive {
        bytes: Vec::new(),
        folders: Vec::new(),
    };
    let first = |path: &str| {
        Path::new(path)
            .components()
            .nth(1)
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let mut needed = vec![me.to_str().unwrap().to_owned(), PROGRAM.to_owned()];
    needed.extend(libraries(&me));
    needed.extend(libraries(Path::new(PROGRAM)));
    needed.sort();
    needed.dedup();
    let mut tops: Vec<_> = needed.iter().map(|path| first(path)).collect();
    tops.dedup();
    let init = INIT
        .replace("GUEST_FILES", &tops.join(" "))
        .replace("TEST_PROGRAM", me.to_str().unwrap())
        .replace("MARK", MARK);
    archive.file("/init", init.as_bytes());
    archive.file(BUSYBOX, &fs::read(BUSYBOX).unwrap());
    archive.link("/bin/sh", "busybox");
    for path in needed {
        archive.file(&path, &fs::read(&path).unwrap());
    }
    for (order, module) in ["loop", "overlay"].iter().enumerate() {
        let wanted = |name: &str| name == format!("{module}.ko");
        let found = find(&kernel.join("files/lib/modules"), &wanted);
        let path = found.unwrap_or_else(|| panic!("the kernel package has no {module}.ko"));
        archive.file(
            &format!("/modules/{order}-{module}.ko"),
            &fs::read(path).unwrap(),
        );
    }
    archive.entry("TRAILER!!!", 0, b"");
    archive.bytes
}

#[test]
#[ignore = "make test-guest: nearly a minute where KVM does not work"]
fn pure_unified_cgroups_in_a_guest() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let qemu = "/usr/bin/qemu-system-x86_64";
    assert!(
        Path::new(qemu).exists(),
        "{qemu} is missing; `make test` installs it"
    );
    let kernel = kernel();
    let image = find(&kernel.join("files/boot"), &|name| {
        name.starts_with("vmlinuz-")
    })
    .unwrap();
    let folder = std::env::temp_dir().join(format!("gantry-guest-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let files = folder.join("files");
    fs::write(&files, archive(&kernel)).unwrap();
    let console = folder.join("console");
    // A hypervisor inside another one may have KVM in name only: it gets a short time to show that the guest comes up.
    let kvm = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let tries: &[&str] = if kvm { &["kvm", "tcg"] } else { &["tcg"] };
    let mut text = String::new();
    for accelerator in tries {
        let began = Instant::now();
        text = boot(qemu, accelerator, &image, &files, &console);
        println!("{text}\n({accelerator}, {:?})", began.elapsed());
        if text.contains(STARTED) {
            break;
        }
    }
    let _ = fs::remove_dir_all(&folder);
    assert!(text.contains(&format!("{MARK} 0")), "{text}");
    // The kernel's own lines may come between a name and its result, so that only the sum is sure.
    assert!(
        text.contains(&format!("test result: ok. {INSIDE} passed")),
        "{text}"
    );
}

/// What the guest wrote until it went off, or until it took too long.
fn boot(qemu: &str, accelerator: &str, image: &Path, files: &Path, console: &Path) -> String {
    let _ = fs::remove_file(console);
    let mut guest = Command::new(qemu)
        .args([
            "-accel",
            accelerator,
            "-cpu",
            if accelerator == "kvm" { "host" } else { "max" },
        ])
        .args([
            "-smp",
            "2",
            "-m",
            "768",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(files)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let written = || String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
    let began = Instant::now();
    while guest.try_wait().unwrap().is_none() {
        let dead =
            accelerator == "kvm" && began.elapsed() > KVM_PATIENCE && !written().contains(STARTED);
        if dead || began.elapsed() > PATIENCE {
            guest.kill().unwrap();
            guest.wait().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    written()
}

/// How many tests follow.
const INSIDE: usize = 14;

fn cgroup(id: &str, file: &str) -> String {
    let path = format!("/sys/fs/cgroup/{id}/{file}");
    fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .trim()
        .to_owned()
}

fn resources(value: Value) -> impl FnOnce(&mut Value) {
    move |spec| {
        for (name, value) in value.as_object().unwrap() {
            spec["linux"]["resources"][name] = value.clone();
        }
    }
}

fn world() -> World {
    World::new().expect("the guest has everything")
}

#[test]
#[ignore = "runs in the guest"]
fn v2_is_all_there_is() {
    let mut world = world();
    assert_eq!(
        fs::read_to_string("/proc/self/cgroup").unwrap().trim(),
        "0::/"
    );
    let out = world.sh("cat /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.controllers; mkdir /sys/fs/cgroup/x || echo refused", no_change);
    assert_eq!(out, "0::/\n/sys/fs/cgroup/cgroup.controllers\nrefused\n");
    let id = world.started(no_change);
    let controllers = cgroup(&id, "cgroup.controllers");
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        assert!(
            controllers.split(' ').any(|c| c == controller),
            "{controllers}"
        );
    }
    let pid = world.state(&id)["pid"].to_string();
    assert_eq!(cgroup(&id, "cgroup.procs"), pid);
    let deleted = world.call(&["delete", "--force", &id]);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    assert!(!Path::new("/sys/fs/cgroup").join(&id).exists());
}

#[test]
#[ignore = "runs in the guest"]
fn v2_memory() {
    let mut world = world();
    let wanted =
        json!({ "memory": { "limit": 32 << 20, "swap": 48 << 20, "reservation": 16 << 20 } });
    let id = world.started(resources(wanted.clone()));
    assert_eq!(cgroup(&id, "memory.max"), (32 << 20).to_string());
    assert_eq!(cgroup(&id, "memory.low"), (16 << 20).to_string());
    if Path::new("/sys/fs/cgroup")
        .join(&id)
        .join("memory.swap.max")
        .exists()
    {
        assert_eq!(cgroup(&id, "memory.swap.max"), (16 << 20).to_string());
    }
    let ran = world.run(
        &["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"],
        resources(wanted),
    );
    assert_eq!(ran.code, 137, "{}", ran.err);
}

#[test]
#[ignore = "runs in the guest"]
fn v2_cpu() {
    let mut world = world();
    let wanted =
        json!({ "cpu": { "quota": 20_000, "period": 100_000, "shares": 1024, "cpus": "1" } });
    let bundle = world.bundle(&["sh", "-c", "while :; do :; done"], resources(wanted));
    let id = world.id();
    let create = ["create", "-b", bundle.to_str().unwrap(), &id];
    assert!(
        world
            .program(&create)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(world.call(&["start", &id]).code, 0);
    assert_eq!(cgroup(&id, "cpu.max"), "20000 100000");
    assert_eq!(cgroup(&id, "cpuset.cpus"), "1");
    let weight: u32 = cgroup(&id, "cpu.weight").parse().unwrap();
    assert!((35..=100).contains(&weight), "{weight}");
    let usage = || -> u64 {
        let text = cgroup(&id, "cpu.stat");
        text.lines()
            .find_map(|l| l.strip_prefix("usage_usec "))
            .unwrap()
            .parse()
            .unwrap()
    };
    let (before, began) = (usage(), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    let share = (usage() - before) as f64 / began.elapsed().as_micros() as f64;
    assert!(
        (0.02..0.35).contains(&share),
        "a fifth of a processor was {share}"
    );
}

#[test]
#[ignore = "runs in the guest"]
fn v2_pids() {
    let mut world = world();
    let script = "i=0; while [ $i -lt 20 ]; do sleep 100 & i=$((i+1)); done; true";
    let ran = world.run(
        &["sh", "-c", script],
        resources(json!({ "pids": { "limit": 8 } })),
    );
    assert!(ran.err.contains("can't fork"), "{} {}", ran.code, ran.err);
}

#[test]
#[ignore = "runs in the guest"]
fn v2_io() {
    let mut world = world();
    let disk = world.directory.join("disk");
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    output(
        Command::new(BUSYBOX)
            .args(["losetup", "/dev/loop0"])
            .arg(&disk),
    );
    let device =
        json!({ "path": "/dev/disk", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600 });
    let rule = json!({ "allow": true, "type": "b", "major": 7, "minor": 0, "access": "rwm" });
    let limit = json!([{ "major": 7, "minor": 0, "rate": 2 << 20 }]);
    let script = "busybox cat /sys/fs/cgroup/io.max; dd if=/dev/zero of=/dev/disk bs=1M count=4 oflag=direct";
    let began = Instant::now();
    let ran = world.run(&["sh", "-c", script], |spec| {
        spec["linux"]["devices"] = json!([device]);
        spec["linux"]["resources"]["devices"]
            .as_array_mut()
            .unwrap()
            .push(rule);
        spec["linux"]["resources"]["blockIO"] = json!({ "throttleWriteBpsDevice": limit });
    });
    let took = began.elapsed();
    output(Command::new(BUSYBOX).args(["losetup", "-d", "/dev/loop0"]));
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert!(ran.out.contains("7:0 rbps=max wbps=2097152"), "{}", ran.out);
    assert!(
        took > Duration::from_millis(1200),
        "4 MiB at 2 MiB/s took {took:?}"
    );
}

#[test]
#[ignore = "runs in the guest"]
fn v2_devices() {
    let mut world = world();
    let nodes = "for n in 'c 1 3' 'c 1 1' 'c 4 64' 'b 7 0'; do busybox mknod /tmp/n $n || exit 9; \
        (: </tmp/n) 2>/dev/null && echo opened $n; rm /tmp/n; done; true";
    let change = |rules: Value| {
        move |spec: &mut Value| {
            spec["root"]["readonly"] = json!(false);
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set]
                    .as_array_mut()
                    .unwrap()
                    .push(json!("CAP_MKNOD"));
            }
            let all = spec["linux"]["resources"]["devices"]
                .as_array_mut()
                .unwrap();
            all.extend(rules.as_array().unwrap().iter().cloned());
        }
    };
    assert_eq!(world.sh(nodes, change(json!([]))), "opened c 1 3\n");
    let disk = json!([{ "allow": true, "type": "b", "major": 7, "minor": 0, "access": "r" }]);
    assert_eq!(
        world.sh(nodes, change(disk)),
        "opened c 1 3\nopened b 7 0\n"
    );
    // What is refused after it was allowed.
    let refused = json!([{ "allow": true, "type": "b", "major": 7, "minor": 0, "access": "rw" }, { "allow": false, "type": "b", "major": 7, "minor": 0, "access": "r" }]);
    assert_eq!(world.sh(nodes, change(refused)), "opened c 1 3\n");
}

#[test]
#[ignore = "runs in the guest"]
fn v2_freezer() {
    let mut world = world();
    let bundle = world.bundle(&["sh", "-c", "while :; do :; done"], no_change);
    let id = world.id();
    let create = ["create", "-b", bundle.to_str().unwrap(), &id];
    assert!(
        world
            .program(&create)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(world.call(&["start", &id]).code, 0);
    let usage = || cgroup(&id, "cpu.stat").lines().next().unwrap().to_owned();
    let paused = world.call(&["pause", &id]);
    assert_eq!(paused.code, 0, "{}", paused.err);
    assert_eq!(world.state(&id)["status"], "paused");
    assert!(cgroup(&id, "cgroup.events").contains("frozen 1"));
    let before = usage();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(usage(), before, "a frozen program ran");
    let exec = world.call(&["exec", &id, "/bin/true"]);
    assert!(
        exec.code != 0 && exec.err.contains("paused"),
        "{}",
        exec.err
    );
    assert_eq!(world.call(&["resume", &id]).code, 0);
    assert_eq!(world.state(&id)["status"], "running");
    std::thread::sleep(Duration::from_millis(100));
    assert_ne!(usage(), before);
    // Also what is frozen can be removed.
    assert_eq!(world.call(&["pause", &id]).code, 0);
    let deleted = world.call(&["delete", "--force", &id]);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    assert!(!Path::new("/sys/fs/cgroup").join(&id).exists());
}

#[test]
#[ignore = "runs in the guest"]
fn v2_frozen_cgroups() {
    world::frozen_cgroups(&mut world());
}

#[test]
#[ignore = "runs in the guest"]
fn v2_kill_all() {
    let mut world = world();
    // In the guest's own PID namespace nothing else ends what the first process leaves behind.
    let bundle = world.bundle(
        &["sh", "-c", "sleep 1000 & sleep 1001 & exec sleep 1002"],
        |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|n| n["type"] != "pid");
        },
    );
    let id = world.id();
    let create = ["create", "-b", bundle.to_str().unwrap(), &id];
    assert!(
        world
            .program(&create)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(world.call(&["start", &id]).code, 0);
    let count = || cgroup(&id, "cgroup.procs").lines().count();
    let eventually = |wanted: usize| {
        let began = Instant::now();
        while count() != wanted {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{} processes",
                count()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    eventually(3);
    let killed = world.call(&["kill", "--all", &id, "KILL"]);
    assert_eq!(killed.code, 0, "{}", killed.err);
    eventually(0);
    assert_eq!(world.call(&["delete", &id]).code, 0);
}

#[test]
#[ignore = "runs in the guest"]
fn v2_update() {
    let mut world = world();
    let id = world.started(resources(
        json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } }),
    ));
    let update = [
        "update",
        "--memory",
        "33554432",
        "--pids-limit",
        "9",
        "--cpu-quota",
        "30000",
        "--cpu-period",
        "100000",
        &id,
    ];
    let updated = world.call(&update);
    assert_eq!(updated.code, 0, "{}", updated.err);
    assert_eq!(cgroup(&id, "memory.max"), "33554432");
    assert_eq!(cgroup(&id, "pids.max"), "9");
    assert_eq!(cgroup(&id, "cpu.max"), "30000 100000");
}

#[test]
#[ignore = "runs in the guest"]
fn v2_events() {
    let mut world = world();
    let id = world.started(resources(
        json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } }),
    ));
    let stats = world.call(&["events", "--stats", &id]);
    assert_eq!(stats.code, 0, "{}", stats.err);
    let stats: Value = serde_json::from_str(&stats.out).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["id"], id.as_str());
    let data = &stats["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(
        data["memory"]["usage"]["usage"].as_u64().unwrap() > 0,
        "{data}"
    );
    assert!(
        data["cpu"]["usage"]["total"].as_u64().unwrap() > 0,
        "{data}"
    );
    assert_eq!(
        (&data["pids"]["current"], &data["pids"]["limit"]),
        (&json!(1), &json!(50)),
        "{data}"
    );
}

#[test]
#[ignore = "runs in the guest"]
fn v2_kills_are_events() {
    world::kills_as_events(&mut world());
}

#[test]
#[ignore = "runs in the guest"]
fn v2_unified_settings() {
    let mut world = world();
    let id = world.started(resources(
        json!({ "unified": { "memory.high": "20971520", "pids.max": "7" } }),
    ));
    assert_eq!(cgroup(&id, "memory.high"), "20971520");
    assert_eq!(cgroup(&id, "pids.max"), "7");
    let ran = world.run(
        &["true"],
        resources(json!({ "unified": { "memory.nosuch": "1" } })),
    );
    assert!(
        ran.code != 0 && ran.err.contains("memory.nosuch"),
        "{}",
        ran.err
    );
    let ran = world.run(
        &["true"],
        resources(json!({ "unified": { "../../escape": "1" } })),
    );
    assert_ne!(ran.code, 0);
}

#[test]
#[ignore = "runs in the guest"]
fn v2_exec_joins_what_the_container_made_of_its_cgroup() {
    let mut world = world();
    let id = world.started(no_change);
    let ran = world.call(&["exec", &id, "/bin/cat", "/proc/self/cgroup"]);
    assert_eq!(ran.out, "0::/\n", "{}", ran.err);
    // As systemd in a container does: the first process moves away, and the top cgroup takes no more processes.
    let top = Path::new("/sys/fs/cgroup").join(&id);
    fs::create_dir(top.join("inner")).unwrap();
    fs::write(
        top.join("inner/cgroup.procs"),
        world.state(&id)["pid"].to_string(),
    )
    .unwrap();
    fs::write(top.join("cgroup.subtree_control"), "+pids").unwrap();
    let ran = world.call(&["exec", &id, "/bin/cat", "/proc/self/cgroup"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "0::/inner\n"),
        "{}",
        ran.err
    );
}
