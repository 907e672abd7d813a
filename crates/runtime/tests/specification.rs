//! runtime-spec 1.2, one test per part that has no test elsewhere: each runs a container and asks inside what it got.

mod world;

use gantry_linux::capabilities;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use world::{World, no_change};

fn push(list: &mut Value, value: Value) {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap().push(value);
}

fn all_capabilities(spec: &mut Value) {
    let all = json!(capabilities::NAMES.as_slice());
    spec["process"]["capabilities"] =
        json!({ "bounding": all, "effective": all, "permitted": all });
}

fn map(outside: u32) -> Value {
    json!([{ "containerID": 0, "hostID": outside, "size": 65536 }])
}

#[test]
fn a_time_namespace_has_its_offsets_and_can_be_joined() {
    let Some(mut world) = World::new() else {
        return;
    };
    let with_time = |spec: &mut Value| {
        push(&mut spec["linux"]["namespaces"], json!({ "type": "time" }));
        spec["linux"]["timeOffsets"] = json!({
            "boottime": { "secs": 7_000_000, "nanosecs": 5 }, "monotonic": { "secs": 86400 } });
    };
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let here = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let inside = uptime(&world.sh("cat /proc/uptime", with_time));
    assert!(
        (7_000_000..7_000_100).contains(&(inside - here)),
        "{inside} {here}"
    );
    let first = world.started(with_time);
    let pid = world.state(&first)["pid"].as_i64().unwrap();
    let joined = world.sh("cat /proc/uptime; readlink /proc/self/ns/time", |spec| {
        push(
            &mut spec["linux"]["namespaces"],
            json!({ "type": "time", "path": format!("/proc/{pid}/ns/time") }),
        );
    });
    assert!(uptime(&joined) > 7_000_000, "{joined}");
    let entered = world.call(&["exec", &first, "cat", "/proc/uptime"]);
    assert!(uptime(&entered.out) > 7_000_000, "{}", entered.out);
}

#[test]
fn id_mapped_mounts_show_files_as_somebody_elses() {
    let Some(mut world) = World::new() else {
        return;
    };
    let source = world.directory.join("data");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    rustix::fs::chown(
        source.join("file").as_path(),
        Some(rustix::fs::Uid::from_raw(1000)),
        None,
    )
    .unwrap();
    fs::create_dir(world.root().join("mnt")).unwrap();
    let mount = json!({ "destination": "/mnt", "source": source, "options": ["bind"],
        "uidMappings": [{ "containerID": 1000, "hostID": 3000, "size": 10 }, { "containerID": 0, "hostID": 0, "size": 1 }],
        "gidMappings": [{ "containerID": 0, "hostID": 0, "size": 10 }] });
    let out = world.sh(
        "stat -c %u /mnt/file; touch /mnt/new; stat -c %u /mnt/new",
        |spec| {
            push(&mut spec["mounts"], mount.clone());
        },
    );
    assert_eq!(out, "3000\n0\n");
    assert_eq!(fs::metadata(source.join("new")).unwrap().uid(), 0);
    // `idmap` alone takes the container's own mapping, so that files belong to whom they belong to outside.
    let out = world.sh("stat -c %u /mnt/file; id -u", |spec| {
        push(&mut spec["linux"]["namespaces"], json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = map(100_000);
        spec["linux"]["gidMappings"] = map(100_000);
        push(
            &mut spec["mounts"],
            json!({ "destination": "/mnt", "source": source, "options": ["bind", "idmap"] }),
        );
    });
    assert_eq!(out, "1000\n0\n");
}

#[test]
fn attributes_of_mounts_go_as_deep_as_they_say() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::create_dir(world.root().join("mnt")).unwrap();
    let source = world.directory.join("tree");
    fs::create_dir_all(source.join("below")).unwrap();
    // A mount below the source, in a mount namespace of its own around the runtime.
    let run = |world: &mut World, options: &[&str], script: &str| {
        let bundle = world.bundle(&["sh", "-c", script], |spec| {
            push(
                &mut spec["mounts"],
                json!({ "destination": "/mnt", "source": source, "options": options }),
            );
        });
        let id = world.id();
        let command = world.program(&["run", "-b", bundle.to_str().unwrap(), &id]);
        let around = format!(
            "mount -t tmpfs t {}/below && exec \"$0\" \"$@\"",
            source.display()
        );
        let output = std::process::Command::new("unshare")
            .args(["-m", "sh", "-c", &around])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let script = "for d in /mnt /mnt/below; do touch $d/x 2>/dev/null && echo rw || echo ro; done";
    assert_eq!(run(&mut world, &["rbind", "ro"], script), "ro\nrw\n");
    assert_eq!(run(&mut world, &["rbind", "rro"], script), "ro\nro\n");
    let options = "grep ' /mnt' /proc/self/mountinfo | cut -d' ' -f5,6 || true; while read a b c d e f g; do case $e in /mnt*) echo $e $f;; esac; done </proc/self/mountinfo";
    let deep = run(
        &mut world,
        &[
            "rbind",
            "rnosuid",
            "rnodev",
            "rnoexec",
            "rnoatime",
            "rnosymfollow",
        ],
        options,
    );
    for place in ["/mnt ", "/mnt/below "] {
        let line = deep.lines().rfind(|l| l.starts_with(place)).unwrap();
        for option in ["nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
            assert!(line.contains(option), "{option}: {line}");
        }
    }
    std::os::unix::fs::symlink("/etc/passwd", source.join("link")).unwrap();
    let follow = "cat /mnt/link >/dev/null 2>&1 && echo yes || echo no";
    assert_eq!(run(&mut world, &["bind"], follow), "yes\n");
    assert_eq!(run(&mut world, &["bind", "nosymfollow"], follow), "no\n");
    let shared = run(
        &mut world,
        &["rbind", "rshared"],
        "while read a b c d e f g; do case $e in /mnt) echo $g;; esac; done </proc/self/mountinfo",
    );
    assert!(shared.contains("shared:"), "{shared}");
    let alone = run(
        &mut world,
        &["bind", "unbindable"],
        "while read a b c d e f g; do case $e in /mnt) echo $g;; esac; done </proc/self/mountinfo",
    );
    assert!(alone.contains("unbindable"), "{alone}");
    // Also a new file system takes the recursive form.
    let out = world.sh("touch /mnt/x 2>/dev/null || echo ro", |spec| {
        push(&mut spec["mounts"], json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["rro"] }));
    });
    assert_eq!(out, "ro\n");
    // What is mounted already changes; what is not there cannot.
    let remounted = |first: Value, options: &[&str]| {
        let again = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": options });
        move |spec: &mut Value| {
            push(&mut spec["mounts"], first);
            push(&mut spec["mounts"], again);
        }
    };
    let tmpfs = json!({ "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] });
    let look = "touch /mnt/x 2>/dev/null || echo ro; grep ' /mnt ' /proc/self/mounts";
    let out = world.sh(
        look,
        remounted(tmpfs, &["remount", "ro", "nosuid", "size=128k"]),
    );
    assert!(
        out.starts_with("ro\n") && out.contains("nosuid") && out.contains("size=128k"),
        "{out}"
    );
    // Of a bind it is the mount alone, never the file system that it shares with the host.
    let bound =
        json!({ "destination": "/mnt", "type": "bind", "source": source, "options": ["bind"] });
    let out = world.sh(look, remounted(bound, &["remount", "ro"]));
    assert!(out.starts_with("ro\n"), "{out}");
    fs::write(source.join("still"), "").unwrap();
    let ran = world.run(&["true"], |spec| {
        push(&mut spec["mounts"], json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"] }));
    });
    assert!(
        ran.code == 1 && ran.err.contains("error mounting"),
        "{} {}",
        ran.code,
        ran.err
    );
}

#[test]
fn nobody_waits_for_a_frozen_cgroup() {
    let Some(mut world) = World::new() else {
        return;
    };
    world::frozen_cgroups(&mut world);
}

/// `SCHED_DEADLINE` where the kernel admits it, otherwise its refusal.
#[test]
fn a_deadline_is_kept_or_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    // Field 41 of stat is the policy.
    let script = "read a </proc/self/stat; set -- $a; shift 40; echo $1";
    let ran = world.run(&["sh", "-c", script], |spec| {
        spec["process"]["scheduler"] = json!({ "policy": "SCHED_DEADLINE",
            "runtime": 5_000_000, "deadline": 50_000_000, "period": 100_000_000 });
    });
    match ran.code {
        0 => assert_eq!(ran.out, "6\n"),
        // A kernel whose real-time bandwidth is given away, or that this caller may not ask.
        _ => assert!(
            ran.err
                .contains("process.scheduler: error setting scheduler: "),
            "{}",
            ran.err
        ),
    }
    println!("deadline: {} {}", ran.code, ran.err);
}

/// The kernel's binfmt_misc, with one more interpreter while this lives.
#[cfg(target_arch = "x86_64")]
struct Interpreter {
    place: PathBuf,
    name: String,
}

#[cfg(target_arch = "x86_64")]
impl Interpreter {
    /// `F`: the kernel keeps the interpreter open, so that it need not be in the container.
    fn register(world: &World, program: &str) -> std::io::Result<Self> {
        let place = world.directory.join("binfmt");
        fs::create_dir(&place)?;
        rustix::mount::mount(
            "none",
            &place,
            "binfmt_misc",
            rustix::mount::MountFlags::empty(),
            None,
        )?;
        let name = world.directory.file_name().unwrap().to_str().unwrap();
        let interpreter = Self {
            place,
            name: name.to_owned(),
        };
        // The head of an executable of 64-bit ARM, and which of its bits count.
        let magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
        let mask =
            r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
        let line = format!(":{name}:M::{magic}:{mask}:{program}:F");
        fs::write(interpreter.place.join("register"), line)?;
        Ok(interpreter)
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Interpreter {
    fn drop(&mut self) {
        let _ = fs::write(self.place.join(&self.name), "-1");
        let _ = rustix::mount::unmount(&self.place, rustix::mount::UnmountFlags::DETACH);
    }
}

/// An executable for 64-bit ARM that says "from arm64" and ends with 7.
#[cfg(target_arch = "x86_64")]
fn arm64_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const TEXT: &[u8] = b"from arm64\n";
    // mov x0, 1; adr x1, TEXT; mov x2, its length; mov x8, write; svc 0; mov x0, 7; mov x8, exit; svc 0
    let code = [
        0xd280_0020_u32,
        0x1000_00e1,
        0xd280_0002 | (TEXT.len() as u32) << 5,
        0xd280_0808,
        0xd400_0001,
        0xd280_00e0,
        0xd280_0ba8,
        0xd400_0001,
    ];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let size = (64 + 56 + 4 * code.len() + TEXT.len()) as u64;
    for half in [2_u16, 183] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [BASE + 64 + 56, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment: the whole file, readable and executable.
    for word in [1_u32, 5] {
        file.extend(word.to_le_bytes());
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    for instruction in code {
        file.extend(instruction.to_le_bytes());
    }
    file.extend(TEXT);
    file
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_of_a_foreign_architecture_runs() {
    let Some(mut world) = World::new() else {
        return;
    };
    let qemu = "/usr/bin/qemu-aarch64-static";
    let path = world.root().join("bin/foreign");
    fs::write(&path, arm64_program()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    if !Path::new(qemu).exists() {
        eprintln!("SKIPPED: needs {qemu} (Debian package qemu-user-static)");
        return;
    }
    let interpreter = match Interpreter::register(&world, qemu) {
        Ok(interpreter) => interpreter,
        Err(e) => {
            eprintln!("SKIPPED: this kernel takes no interpreters: {e}");
            return;
        }
    };
    let ran = world.run(&["foreign"], no_change);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (7, "from arm64\n"),
        "{}",
        ran.err
    );
    let id = world.started(no_change);
    let ran = world.call(&["exec", &id, "foreign"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (7, "from arm64\n"),
        "{}",
        ran.err
    );
    drop(interpreter);
    if std::process::Command::new(&path).output().is_ok() {
        // This machine has an interpreter of its own.
        return;
    }
    // Without one the kernel's own word.
    let ran = world.run(&["foreign"], no_change);
    assert!(
        ran.code != 7 && ran.err.contains("exec format error"),
        "{} {}",
        ran.code,
        ran.err
    );
}

#[test]
fn a_tmpfs_can_begin_with_what_the_image_has() {
    let Some(mut world) = World::new() else {
        return;
    };
    let below = world.root().join("data/sub");
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("file"), "from the image").unwrap();
    fs::set_permissions(below.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    std::os::unix::fs::symlink("sub/file", world.root().join("data/link")).unwrap();
    rustix::fs::chown(
        below.join("file").as_path(),
        Some(rustix::fs::Uid::from_raw(33)),
        None,
    )
    .unwrap();
    let out = world.sh("cat /data/link; stat -c ' %u' /data/sub/file; echo new >/data/sub/file; cat /data/link", |spec| {
        push(&mut spec["mounts"], json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid"] }));
    });
    assert_eq!(out, "from the image 33\nnew\n");
    assert_eq!(
        fs::read_to_string(below.join("file")).unwrap(),
        "from the image"
    );
}

#[test]
fn the_roots_propagation_is_as_asked() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script =
        "while read a b c d e f g; do case $e in /) echo \"$g\";; esac; done </proc/self/mountinfo";
    for (wanted, sign) in [
        ("shared", "shared:"),
        ("unbindable", "unbindable"),
        ("private", " - "),
        ("rslave", ""),
    ] {
        let out = world.sh(script, |spec| {
            spec["linux"]["rootfsPropagation"] = json!(wanted)
        });
        let line = format!(" {out}");
        assert!(line.contains(sign), "{wanted}: {out}");
        assert_eq!(
            wanted == "shared",
            line.contains("shared:"),
            "{wanted}: {out}"
        );
    }
}

/// Where a process is in a controller's hierarchy and in the unified one.
fn directories(pid: i64, controller: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines()
        .flat_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next().unwrap(), fields.next().unwrap());
            let mounts: &[&str] = match names {
                "" => &["unified", ""],
                names if names.split(',').any(|n| n == controller) => &[controller],
                _ => &[],
            };
            mounts
                .iter()
                .map(|mount| {
                    Path::new("/sys/fs/cgroup")
                        .join(mount)
                        .join(path.trim_start_matches('/'))
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn resources_reach_their_files_or_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    // (fragment of linux.resources, controller, files with v1's and v2's values)
    type Case = (Value, &'static str, &'static [(&'static str, &'static str)]);
    let cases: [Case; 9] = [
        (
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            "hugetlb",
            &[
                ("hugetlb.2MB.limit_in_bytes", "4194304"),
                ("hugetlb.2MB.max", "4194304"),
            ],
        ),
        (
            json!({ "unified": { "hugetlb.2MB.max": "2097152" } }),
            "unified",
            &[("hugetlb.2MB.max", "2097152")],
        ),
        (
            json!({ "network": { "classID": 1_048_577 } }),
            "net_cls",
            &[("net_cls.classid", "1048577")],
        ),
        (
            json!({ "network": { "priorities": [{ "name": "lo", "priority": 3 }] } }),
            "net_prio",
            &[("net_prio.ifpriomap", "lo 3")],
        ),
        (
            json!({ "cpu": { "cpus": "0", "mems": "0" } }),
            "cpuset",
            &[("cpuset.cpus", "0"), ("cpuset.mems", "0")],
        ),
        (
            json!({ "cpu": { "burst": 10000, "quota": 50000, "period": 100_000 } }),
            "cpu",
            &[("cpu.cfs_burst_us", "10000"), ("cpu.max.burst", "10000")],
        ),
        (json!({ "cpu": { "idle": 1 } }), "cpu", &[("cpu.idle", "1")]),
        (
            json!({ "memory": { "limit": 67_108_864, "reservation": 33_554_432, "swappiness": 10 } }),
            "memory",
            &[
                ("memory.soft_limit_in_bytes", "33554432"),
                ("memory.swappiness", "10"),
            ],
        ),
        (
            json!({ "rdma": { "nosuch_0": { "hcaHandles": 1 } } }),
            "rdma",
            &[],
        ),
    ];
    let mut applied = 0;
    for (resources, controller, files) in cases {
        let bundle = world.bundle(&["sleep", "1000"], |spec| {
            for (name, value) in resources.as_object().unwrap() {
                spec["linux"]["resources"][name] = value.clone();
            }
            // net_prio wants an interface that is there.
            spec["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .retain(|n| n["type"] != "network");
            spec["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| m["destination"] != "/sys");
        });
        let id = world.id();
        let log = world.directory.join("log");
        let created = world
            .program(&[
                "--log",
                log.to_str().unwrap(),
                "create",
                "-b",
                bundle.to_str().unwrap(),
                &id,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let refused = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        if !created.success() {
            // Whatever this kernel cannot do is named, and nothing ran without it.
            assert!(
                refused.contains("cannot set")
                    || refused.contains("unable to apply cgroup configuration"),
                "{resources}: {refused}"
            );
            continue;
        }
        let pid = world.state(&id)["pid"].as_i64().unwrap();
        let found = files.iter().any(|(file, value)| {
            directories(pid, controller).iter().any(|directory| {
                fs::read_to_string(directory.join(file))
                    .is_ok_and(|text| text.lines().any(|l| l.trim() == *value))
            })
        });
        assert!(found, "{resources} was neither refused nor set");
        applied += 1;
        assert_eq!(world.call(&["delete", "-f", &id]).code, 0);
    }
    assert!(applied >= 4, "only {applied} were applied");
}

#[test]
fn what_one_version_of_cgroups_cannot_do_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    if !Path::new("/sys/fs/cgroup/memory").exists() {
        return;
    }
    for (resources, words) in [
        (
            json!({ "unified": { "memory.high": "5000000" } }),
            "linux.resources.unified: invalid configuration: cannot use unified on cgroup v1",
        ),
        (
            json!({ "blockIO": { "leafWeight": 500 } }),
            "block I/O leaf weight",
        ),
    ] {
        let ran = world.run(&["true"], |spec| {
            spec["linux"]["resources"] = resources.clone()
        });
        assert!(ran.code == 1 && ran.err.contains(words), "{}", ran.err);
    }
}

#[test]
fn kernel_memory_is_ignored_with_a_warning() {
    let Some(mut world) = World::new() else {
        return;
    };
    let ran = world.run(&["echo", "ran"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "kernel": 1 << 24, "kernelTCP": 1 << 24 });
    });
    assert_eq!((ran.code, ran.out.as_str()), (0, "ran\n"));
    let warning =
        "level=warning msg=\"linux.resources.memory.kernel: kernel memory settings are ignored";
    assert!(ran.err.contains(warning), "{}", ran.err);
    let ran = world.run(&["echo", "ran"], |spec| {
        spec["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_MOON"]);
    });
    assert!(
        ran.code == 0
            && ran
                .err
                .contains("ignoring unknown or unavailable capabilities: [CAP_MOON]"),
        "{}",
        ran.err
    );
}

#[test]
fn ambient_capabilities_reach_an_ordinary_user() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t\\n'";
    let out = world.sh(script, |spec| {
        let set = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
        let one = json!(["CAP_NET_BIND_SERVICE"]);
        spec["process"]["user"] = json!({ "uid": 33, "gid": 33 });
        spec["process"]["capabilities"] =
            json!({ "bounding": set, "effective": one, "permitted": set, "inheritable": set, "ambient": one });
    });
    let one = "0000000000000400";
    let two = "0000000000000401";
    assert_eq!(
        out,
        format!("CapInh:{two}CapPrm:{one}CapEff:{one}CapBnd:{two}CapAmb:{one}")
    );
}

#[test]
fn every_seccomp_action_does_what_it_says() {
    let Some(mut world) = World::new() else {
        return;
    };
    // What becomes of a shell's child that makes a folder.
    let script = "mkdir /tmp/made; echo $?";
    for (action, errno, expected) in [
        ("SCMP_ACT_ALLOW", None, "0\n"),
        ("SCMP_ACT_LOG", None, "0\n"),
        ("SCMP_ACT_ERRNO", Some(28), "1\n"),
        ("SCMP_ACT_ERRNO", None, "1\n"),
        // 31 is SIGSYS.
        ("SCMP_ACT_KILL", None, "159\n"),
        ("SCMP_ACT_KILL_THREAD", None, "159\n"),
        ("SCMP_ACT_KILL_PROCESS", None, "159\n"),
        ("SCMP_ACT_TRAP", None, "159\n"),
        // Nobody traces, so the call is not there.
        ("SCMP_ACT_TRACE", Some(7), "1\n"),
    ] {
        let _ = fs::remove_dir(world.root().join("tmp/made"));
        let ran = world.run(&["sh", "-c", script], |spec| {
            spec["root"]["readonly"] = json!(false);
            let mut rule = json!({ "names": ["mkdir", "mkdirat"], "action": action });
            if let Some(errno) = errno {
                rule["errnoRet"] = json!(errno);
            }
            let default = if action == "SCMP_ACT_ALLOW" {
                "SCMP_ACT_LOG"
            } else {
                "SCMP_ACT_ALLOW"
            };
            spec["linux"]["seccomp"] = json!({ "defaultAction": default, "syscalls": [rule],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] });
        });
        assert_eq!(ran.out, expected, "{action}: {}", ran.err);
        let said = match (action, errno) {
            ("SCMP_ACT_ERRNO", Some(28)) => "No space left on device",
            ("SCMP_ACT_ERRNO", None) => "Operation not permitted",
            ("SCMP_ACT_TRACE", _) => "Function not implemented",
            _ => "",
        };
        assert!(ran.err.contains(said), "{action}: {}", ran.err);
    }
}

#[test]
fn notifications_of_seccomp_go_to_the_listener() {
    let Some(mut world) = World::new() else {
        return;
    };
    let path = world.directory.join("listener");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "the-meta",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }] });
    let receive = |what: &str| {
        let (stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let (length, mut descriptors) = gantry_linux::ipc::receive(&stream, &mut buffer).unwrap();
        let message: Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(message["fds"], json!(["seccompFd"]), "{what}");
        assert_eq!(message["metadata"], "the-meta");
        assert!(message["pid"].as_i64().unwrap() > 1);
        (message, descriptors.pop().unwrap())
    };
    let bundle = world.bundle(&["sh", "-c", "mkdir /made; echo $?"], |spec| {
        spec["linux"]["seccomp"] = profile.clone();
        spec["annotations"] = json!({ "a": "b" });
    });
    let id = world.id();
    let running = world
        .program(&["run", "-b", bundle.to_str().unwrap(), &id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (message, notifications) = receive("run");
    assert_eq!(message["state"]["id"], json!(id));
    assert_eq!(message["state"]["annotations"]["a"], "b");
    // Nobody answers any more, so the kernel does.
    drop(notifications);
    let output = running.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Function not implemented"));
    // A process that joins has a listener of its own.
    let bundle = world.bundle(&["sleep", "1000"], |spec| {
        spec["linux"]["seccomp"] = profile.clone()
    });
    let id = world.id();
    let created = world
        .program(&["run", "-d", "-b", bundle.to_str().unwrap(), &id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let (_, first) = receive("create");
    assert!(created.unwrap().wait().unwrap().success());
    let joining = world
        .program(&["exec", &id, "mkdir", "/made"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (message, second) = receive("exec");
    assert_eq!(message["state"]["status"], "running");
    assert_ne!(
        message["pid"],
        message["state"]["pid"]
            .as_i64()
            .map_or(json!(0), |_| world.state(&id)["pid"].clone())
    );
    drop(second);
    let output = joining.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("Function not implemented"));
    drop(first);
    // No listener, no container.
    drop(listener);
    let ran = world.run(&["true"], |spec| spec["linux"]["seccomp"] = profile.clone());
    assert!(
        ran.code != 0
            && ran
                .err
                .contains("connecting to the seccomp listener: connection refused"),
        "{}",
        ran.err
    );
}

#[test]
fn scheduling_io_priority_and_personality_arrive() {
    let Some(mut world) = World::new() else {
        return;
    };
    // Field 41 of stat is the policy, 19 the nice value.
    let script = "set -- $(cat /proc/self/stat); shift 18; echo $1; shift 22; echo $1; busybox ionice -p $$; busybox uname -m";
    let out = world.sh(script, |spec| {
        spec["process"]["scheduler"] =
            json!({ "policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
        spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
    });
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[2], "best-effort: prio 6", "{out}");
    assert!(["i686", "armv8l"].contains(&lines[3]), "{out}");
    // The policy does not outlive a fork with that flag, the shell itself has it.
    let policy = world.sh(
        "read a </proc/self/stat; set -- $a; shift 18; echo $1; shift 22; echo $1",
        |spec| {
            spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        },
    );
    assert_eq!(policy, "5\n3\n");
    // A refusal of the kernel is one of ours.
    let refused = world.run(&["true"], |spec| {
        spec["process"]["scheduler"] =
            json!({ "policy": "SCHED_DEADLINE", "runtime": 20, "deadline": 10, "period": 30 });
    });
    assert!(
        refused
            .err
            .contains("process.scheduler: error setting scheduler: invalid argument"),
        "{}",
        refused.err
    );
}

#[test]
fn exec_runs_on_the_cpus_that_are_asked_for() {
    let Some(mut world) = World::new() else {
        return;
    };
    let allowed = "grep Cpus_allowed_list /proc/self/status";
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap()
        .to_owned();
    let first = own.split([',', '-']).next().unwrap().to_owned();
    let id = world.started(|spec| {
        spec["process"]["execCPUAffinity"] = json!({ "initial": first, "final": first })
    });
    let ran = world.call(&["exec", &id, "sh", "-c", allowed]);
    assert_eq!(
        ran.out,
        format!("Cpus_allowed_list:\t{first}\n"),
        "{}",
        ran.err
    );
    let process = world.directory.join("process.json");
    let with = |affinity: Value| {
        let document = json!({ "args": ["sh", "-c", allowed], "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 }, "execCPUAffinity": affinity });
        fs::write(&process, document.to_string()).unwrap();
        world.call(&["exec", "--process", process.to_str().unwrap(), &id])
    };
    assert_eq!(with(json!({})).out, format!("Cpus_allowed_list:\t{own}\n"));
    let refused = with(json!({ "final": "1000" }));
    assert_eq!(refused.code, 255);
    assert!(
        refused
            .err
            .contains("process.execCPUAffinity.final: setting CPU affinity"),
        "{}",
        refused.err
    );
}

#[test]
fn all_six_kinds_of_hooks_run_in_their_places_and_in_their_time() {
    let Some(mut world) = World::new() else {
        return;
    };
    let log = world.directory.join("log");
    let said = world.root().join("said");
    fs::write(&said, "").unwrap();
    let status = "s=$(cat); s=${s#*status\\\":\\\"}; echo";
    let outside = |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("{status} {name} ${{s%%\\\"*}} $MARK >> {}", log.display())], "env": ["MARK=m", "PATH=/bin:/usr/bin"], "timeout": 10 }]);
    let ran = world.run(&["sh", "-c", "cat /said"], |spec| {
        spec["root"]["readonly"] = json!(false);
        for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            spec["hooks"][name] = outside(name);
        }
        // Its path is the container's.
        spec["hooks"]["startContainer"] = json!([{ "path": "/bin/busybox", "args": ["sh", "-c", format!("{status} startContainer ${{s%%\\\"*}} >> /said")], "env": ["PATH=/bin"] }]);
    });
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "startContainer created\n"),
        "{}",
        ran.err
    );
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "prestart creating m\ncreateRuntime creating m\ncreateContainer creating m\npoststart running m\npoststop stopped m\n"
    );
    // One that never ends is ended, and the container with it.
    for name in ["createRuntime", "createContainer", "startContainer"] {
        let began = std::time::Instant::now();
        let ran = world.run(&["true"], |spec| {
            spec["hooks"][name] =
                json!([{ "path": "/bin/busybox", "args": ["sleep", "600"], "timeout": 1 }]);
        });
        assert!(
            ran.code != 0 && ran.err.contains("hook ran past specified timeout of 1.0s"),
            "{name}: {}",
            ran.err
        );
        assert!(began.elapsed().as_secs() < 60);
    }
    // One that does not read its input, however long that is.
    let ran = world.run(&["true"], |spec| {
        spec["annotations"] = json!({ "long": "x".repeat(300_000) });
        spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/true" }]);
    });
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn sockets_of_the_caller_and_kept_descriptors_arrive() {
    let Some(mut world) = World::new() else {
        return;
    };
    let bundle = world.bundle(&["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3; cat <&4; ls /proc/self/fd | tr '\\n' ' '"], no_change);
    let id = world.id();
    let run = world.program(&[
        "run",
        "--preserve-fds",
        "1",
        "-b",
        bundle.to_str().unwrap(),
        &id,
    ]);
    let script = "exec 3<\"$F3\" 4<\"$F4\" 7</dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=web LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let [three, four] = ["three", "four"].map(|name| {
        let path = world.directory.join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        path
    });
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(run.get_program())
        .args(run.get_args())
        .env("F3", three)
        .env("F4", four)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text,
        "1 1 web\nthree\nfour\n0 1 2 3 4 5 ",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let id = world.id();
    let missing = world.call(&[
        "run",
        "--preserve-fds",
        "50",
        "-b",
        bundle.to_str().unwrap(),
        &id,
    ]);
    assert!(
        missing.code == 1 && missing.err.contains("unable to stat preserved-fd"),
        "{}",
        missing.err
    );
}

#[test]
fn security_modules_that_are_not_there_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let id = world.started(no_change);
    for (what, ran) in [
        (
            "label",
            world.call(&[
                "exec",
                "--process-label",
                "system_u:system_r:svirt_lxc_net_t:s0",
                &id,
                "true",
            ]),
        ),
        (
            "selinuxLabel",
            world.run(&["true"], |s| {
                s["process"]["selinuxLabel"] = json!("a:b:c:d")
            }),
        ),
        (
            "mountLabel",
            world.run(&["true"], |s| s["linux"]["mountLabel"] = json!("a:b:c:d")),
        ),
    ] {
        assert!(
            ran.code != 0 && ran.err.contains("selinux is disabled or not supported"),
            "{what}: {}",
            ran.err
        );
    }
    if !fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with(b"Y")) {
        let ran = world.call(&["exec", "--apparmor", "unconfined-not", &id, "true"]);
        assert!(
            ran.code == 255 && ran.err.contains("apparmor is disabled or not supported"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn devices_of_the_specification_are_made_or_must_be_there() {
    let Some(mut world) = World::new() else {
        return;
    };
    let out = world.sh("stat -c '%t:%T %a %u:%g %F' /dev/my/zero /dev/my/pipe; head -c 2 /dev/my/zero | wc -c", |spec| {
        spec["linux"]["devices"] = json!([
            { "path": "/dev/my/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4 },
            { "path": "/dev/my/pipe", "type": "p", "fileMode": 0o600 }]);
        push(&mut spec["linux"]["resources"]["devices"], json!({ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "r" }));
        all_capabilities(spec);
    });
    assert_eq!(
        out,
        "1:5 640 3:4 character special file\n0:0 600 0:0 fifo\n2\n"
    );
    let on_hosts = |device: Value| {
        move |spec: &mut Value| {
            for mount in spec["mounts"].as_array_mut().unwrap() {
                if mount["destination"] == "/dev" {
                    *mount =
                        json!({ "destination": "/dev", "source": "/dev", "options": ["rbind"] });
                }
            }
            spec["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev/"));
            spec["linux"]["devices"] = json!([device]);
        }
    };
    let there = world.run(
        &["true"],
        on_hosts(json!({ "path": "/dev/zero", "type": "c", "major": 1, "minor": 5 })),
    );
    assert_eq!(there.code, 0, "{}", there.err);
    let absent = world.run(
        &["true"],
        on_hosts(json!({ "path": "/dev/zero", "type": "c", "major": 1, "minor": 3 })),
    );
    assert!(
        absent
            .err
            .replace('\\', "")
            .contains("linux.devices: \"/dev/zero\" is not in the bind-mounted /dev"),
        "{}",
        absent.err
    );
}

#[test]
fn exec_enters_a_cgroup_below() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(|spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "cgroup");
    });
    if !Path::new("/sys/fs/cgroup/pids").exists() {
        return;
    }
    let below = Path::new("/sys/fs/cgroup/pids").join(&id).join("sub");
    fs::create_dir(&below).unwrap();
    let ran = world.call(&[
        "exec",
        "--cgroup",
        "pids:sub",
        &id,
        "cat",
        "/proc/self/cgroup",
    ]);
    assert!(
        ran.out.contains(&format!(":pids:/{id}/sub\n")),
        "{} {}",
        ran.out,
        ran.err
    );
    let freezer = ran.out.lines().find(|l| l.contains(":freezer:")).unwrap();
    assert!(freezer.ends_with(&format!("/{id}")), "{freezer}");
    for (argument, words) in [
        ("pids:nosuch", "no such file or directory"),
        ("pids:../../..", "bad sub cgroup path"),
        ("moon:sub", "unknown controller moon"),
        ("a:b:c", "invalid --cgroup argument: a:b:c"),
    ] {
        let ran = world.call(&["exec", "--cgroup", argument, &id, "true"]);
        assert!(
            ran.code == 255 && ran.err.contains(words),
            "{argument}: {}",
            ran.err
        );
    }
}

#[test]
fn a_cgroup_in_use_is_left_alone() {
    let Some(mut world) = World::new() else {
        return;
    };
    let first = world.started(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/gantry-shared-{}", std::process::id()))
    });
    let second = world.run(&["true"], |spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/gantry-shared-{}", std::process::id()))
    });
    assert!(
        second.code == 1
            && second
                .err
                .contains("container's cgroup is not empty: 1 process(es) found"),
        "{}",
        second.err
    );
    assert_eq!(world.state(&first)["status"], "running");
}

#[test]
fn the_kernels_kills_are_told_as_events() {
    let Some(mut world) = World::new() else {
        return;
    };
    world::kills_as_events(&mut world);
}

#[test]
fn without_pivot_root_the_hosts_proc_is_out_of_reach() {
    let Some(mut world) = World::new() else {
        return;
    };
    let bundle = world.bundle(
        &[
            "unshare",
            "-mrpf",
            "sh",
            "-c",
            "mount -t proc none /proc && echo mounted",
        ],
        |spec| {
            let caps = json!(["CAP_SETFCAP"]);
            spec["process"]["capabilities"] =
                json!({ "bounding": caps, "effective": caps, "permitted": caps });
        },
    );
    let id = world.id();
    let ran = world.call(&["run", "--no-pivot", "-b", bundle.to_str().unwrap(), &id]);
    assert!(
        !ran.out.contains("mounted") && ran.err.contains("permission denied"),
        "{} {}",
        ran.out,
        ran.err
    );
    let bundle = world.bundle(&["ls", "/"], no_change);
    let id = world.id();
    let ran = world.call(&["run", "--no-pivot", "-b", bundle.to_str().unwrap(), &id]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.out.contains("root"), "{}", ran.out);
}

#[test]
fn pids_and_descriptors_are_handed_over() {
    let Some(mut world) = World::new() else {
        return;
    };
    let path = world.directory.join("pidfd");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let bundle = world.bundle(&["sh", "-c", "exit 5"], no_change);
    let pid_file = world.directory.join("pid");
    let id = world.id();
    let arguments = [
        "run",
        "--keep",
        "--pidfd-socket",
        path.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        "-b",
        bundle.to_str().unwrap(),
        &id,
    ];
    let ran = world.call(&arguments);
    assert_eq!(ran.code, 5, "{}", ran.err);
    let (stream, _) = listener.accept().unwrap();
    let mut text = [0; 64];
    let (length, descriptors) = gantry_linux::ipc::receive(&stream, &mut text).unwrap();
    assert_eq!((&text[..length], descriptors.len()), (&b"standard"[..], 1));
    assert!(
        fs::read_to_string(&pid_file)
            .unwrap()
            .parse::<i32>()
            .unwrap()
            > 1
    );
    // It was kept.
    assert_eq!(world.state(&id)["status"], "stopped");
    assert_eq!(world.call(&["delete", &id]).code, 0);
}
