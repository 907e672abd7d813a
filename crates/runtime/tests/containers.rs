//! Real containers, made by the program's own command line as root.

mod world;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use world::{PROGRAM, Ran, World, no_change};

#[test]
fn a_container_lives_in_namespaces_of_its_own() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "echo $$; hostname; for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done; ip link | grep -c :.lo:.*UP; \
        grep -c ^Pid /proc/1/status";
    let out = world.sh(script, no_change);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..2], ["1", "runc"]);
    for (line, kind) in lines[2..8]
        .iter()
        .zip(["pid", "net", "ipc", "uts", "mnt", "cgroup"])
    {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(Path::new(line), host, "{kind}");
    }
    assert_eq!(lines[8], "1", "loopback is up");
}

#[test]
fn exit_codes_are_the_programs() {
    let Some(mut world) = World::new() else {
        return;
    };
    for (command, code, err) in [
        (&["sh", "-c", "exit 7"][..], 7, ""),
        (&["true"], 0, ""),
        (
            &["nosuch"],
            1,
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            &["/etc/passwd"],
            1,
            "exec: \"/etc/passwd\": permission denied",
        ),
        (
            &["/nosuch"],
            1,
            "exec: \"/nosuch\": stat /nosuch: no such file or directory",
        ),
        (&["/etc"], 1, "exec: \"/etc\": is a directory"),
    ] {
        let ran = world.run(command, no_change);
        assert_eq!(ran.code, code, "{command:?}: {}", ran.err);
        assert!(
            ran.err.replace('\\', "").contains(err),
            "{command:?}: {}",
            ran.err
        );
    }
    fs::write(world.root().join("bin/bad"), "garbage").unwrap();
    fs::set_permissions(
        world.root().join("bin/bad"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let ran = world.run(&["bad"], no_change);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (255, "exec /bin/bad: exec format error\n")
    );
}

#[test]
fn life_of_a_container_in_runcs_words() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.sleeping(no_change);
    assert_eq!(world.state(&id)["status"], "created");
    let again = world.call(&["start", &id]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(world.state(&id)["status"], "running");
    for (arguments, words) in [
        (
            &["start", &id][..],
            "cannot start an already running container",
        ),
        (&["delete", &id], "that is not stopped: running"),
        (&["resume", &id], "container not paused"),
        (&["state", "nosuch"], "container does not exist"),
        (&["create", "../x"], "invalid container ID format"),
        (&["kill", &id, "NOSUCH"], "unknown signal"),
        (
            &["start", "--nosuch", &id],
            "flag provided but not defined: -nosuch",
        ),
    ] {
        let ran = world.call(arguments);
        assert_eq!(ran.code, 1, "{arguments:?}");
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
    let bundle = world.directory.join("bundle");
    let twice = world.call(&["create", "-b", bundle.to_str().unwrap(), &id]);
    assert!(
        twice.err.contains("container with given ID already exists"),
        "{}",
        twice.err
    );
    assert_eq!(world.call(&["pause", &id]).code, 0);
    assert_eq!(world.state(&id)["status"], "paused");
    assert!(
        world
            .call(&["exec", &id, "true"])
            .err
            .contains("cannot exec in a paused container")
    );
    assert_eq!(world.call(&["resume", &id]).code, 0);
    let listed = world.call(&["list", "-q"]);
    assert_eq!(listed.out, format!("{id}\n"));
    let pid = world.state(&id)["pid"].as_i64().unwrap();
    let pids: Vec<i64> = serde_json::from_str(&world.call(&["ps", "-f", "json", &id]).out).unwrap();
    assert_eq!(pids, [pid]);
    assert_eq!(world.call(&["delete", "--force", &id]).code, 0);
    assert!(
        world
            .call(&["state", &id])
            .err
            .contains("container does not exist")
    );
    assert!(!Path::new(&format!("/sys/fs/cgroup/pids/{id}")).exists());
}

#[test]
fn exec_joins_everything() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(no_change);
    let script = "for n in pid net ipc uts mnt cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; \
        grep CapBnd /proc/1/status /proc/self/status | cut -d: -f3 | sort -u | wc -l; cat /proc/self/cgroup; pwd; ls /proc/self/fd | wc -l";
    let script = script.replace("cut -d: -f3 | sort -u | wc -l", "tr -d '\\n' | wc -l");
    let ran = world.call(&["exec", "--cwd", "/tmp", &id, "sh", "-c", &script]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.out.starts_with("pid"), "{}", ran.out);
    assert!(
        ran.out
            .lines()
            .filter(|l| l.contains(':'))
            .all(|l| l.ends_with(":/") || l.contains("cpuset")),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("/tmp\n"));
    for (command, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["nosuch"], 255),
    ] {
        let arguments = [&["exec", &id], command].concat();
        assert_eq!(world.call(&arguments).code, code, "{command:?}");
    }
    let user = world.call(&[
        "exec",
        "-u",
        "33:34",
        "-e",
        "A=b",
        &id,
        "sh",
        "-c",
        "id -u; id -g; echo $A $HOME",
    ]);
    assert_eq!(user.out, "33\n34\nb /var/www\n");
    // Our own namespaces are as before: the next container is not born inside this one.
    let pid = world.state(&id)["pid"].as_i64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn limits_are_set_where_the_kernel_keeps_them() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        spec["linux"]["resources"]["cpu"] =
            json!({ "shares": 512, "quota": 50000, "period": 100_000 });
        spec["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    });
    let pid = world.state(&id)["pid"].as_i64().unwrap();
    let read = |file: &str| {
        // By the process's own word for where it is.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let controller = file.split('.').next().unwrap();
        let path = cgroups.lines().find_map(|l| {
            let mut fields = l.splitn(3, ':').skip(1);
            let names = fields.next()?;
            names
                .split(',')
                .any(|n| n == controller)
                .then(|| fields.next())
                .flatten()
        });
        let (base, path) = match path {
            Some(path) => (format!("/sys/fs/cgroup/{controller}"), path.to_owned()),
            None => {
                let path = cgroups.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
                ("/sys/fs/cgroup".to_owned(), path.to_owned())
            }
        };
        fs::read_to_string(format!("{base}{path}/{file}"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    let expected = if v1 {
        vec![
            ("memory.limit_in_bytes", "67108864"),
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "50000"),
            ("pids.max", "50"),
        ]
    } else {
        vec![
            ("memory.max", "67108864"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "50"),
        ]
    };
    for (file, value) in expected {
        assert_eq!(read(file), value, "{file}");
    }
    let updated = world.call(&["update", "--pids-limit", "60", "--memory", "128m", &id]);
    assert_eq!(updated.code, 0, "{}", updated.err);
    assert_eq!(read("pids.max"), "60");
    let stats = world.call(&["events", "--stats", &id]);
    let stats: Value = serde_json::from_str(&stats.out).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 60);
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
}

#[test]
fn the_memory_limit_kills() {
    let Some(mut world) = World::new() else {
        return;
    };
    let ran = world.run(
        &["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=2"],
        |spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 20 << 20 });
        },
    );
    assert_eq!(ran.code, 137, "{}", ran.err);
}

#[test]
fn masks_and_read_only_paths_hold() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "for f in kcore keys timer_list sched_debug; do [ ! -e /proc/$f ] || wc -c </proc/$f; done | sort -u; \
        for d in /sys/firmware /proc/acpi /proc/scsi; do [ ! -d $d ] || ls $d; done; \
        for p in bus fs irq sys sysrq-trigger; do [ ! -e /proc/$p ] || grep -c \" /proc/$p proc ro\" /proc/mounts; done | sort -u; \
        (echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -c Read-only; (touch /x) 2>&1 | grep -c Read-only; \
        touch /dev/x && echo dev; (touch /sys/x) 2>&1 | grep -c -i -e Read-only -e denied";
    assert_eq!(world.sh(script, no_change), "0\n1\n1\n1\ndev\n1\n");
}

#[test]
fn capabilities_and_no_new_privileges() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "grep -e ^Cap -e ^NoNew /proc/self/status | tr '\\t' ' '";
    let out = world.sh(script, |spec| {
        let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SYS_RESOURCE", "CAP_NOT_YET"]);
        spec["process"]["capabilities"] =
            json!({ "bounding": caps, "effective": ["CAP_KILL"], "permitted": caps, "inheritable": [], "ambient": [] });
        spec["process"]["noNewPrivileges"] = json!(true);
    });
    let bounding = out.lines().find(|l| l.starts_with("CapBnd")).unwrap();
    let bits = u64::from_str_radix(bounding.rsplit(' ').next().unwrap(), 16).unwrap();
    // CAP_SYS_RESOURCE only where the host has it.
    assert_eq!(bits & !(1 << 24), 1 | 1 << 5, "{out}");
    assert!(out.contains("NoNewPrivs: 1"), "{out}");
    let out = world.sh(script, |spec| {
        let caps = json!(["CAP_KILL"]);
        spec["process"]["user"] = json!({ "uid": 33, "gid": 34 });
        spec["process"]["capabilities"] =
            json!({ "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps });
    });
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{set}: 0000000000000020")), "{out}");
    }
    let out = world.sh(script, |spec| {
        spec["process"]
            .as_object_mut()
            .unwrap()
            .remove("capabilities");
        spec["process"]["noNewPrivileges"] = json!(false);
    });
    assert!(
        out.contains("CapEff: 0000000000000000") && out.contains("NoNewPrivs: 0"),
        "{out}"
    );
}

#[test]
fn dockers_seccomp_profile_blocks_in_a_real_container() {
    let Some(mut world) = World::new() else {
        return;
    };
    let caps: Vec<String> = gantry_linux::capabilities::NAMES
        .iter()
        .map(|c| (*c).to_owned())
        .collect();
    let few: Vec<String> = ["CAP_CHOWN", "CAP_SETUID", "CAP_SYS_CHROOT"]
        .map(str::to_owned)
        .to_vec();
    // All capabilities for the process, but the profile of one that has few: what stops a call here is the filter.
    for no_new_privileges in [true, false] {
        let script = "grep ^Seccomp: /proc/self/status | tr '\\t' ' '; mount -t tmpfs x /tmp 2>&1 | grep -c -e denied -e 'not permitted'; \
            unshare -U true 2>&1 | grep -c 'Operation not permitted'; hostname x 2>&1 | grep -c 'Operation not permitted'; chroot / true && echo chroot";
        let out = world.sh(script, |spec| {
            spec["linux"]["seccomp"] =
                serde_json::to_value(gantry_runtime::seccomp::docker_default(&few)).unwrap();
            spec["process"]["capabilities"] =
                json!({ "bounding": caps, "effective": caps, "permitted": caps });
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        });
        assert_eq!(out, "Seccomp: 2\n1\n1\n1\nchroot\n");
    }
}

#[test]
fn hostile_destinations_stay_inside() {
    let Some(mut world) = World::new() else {
        return;
    };
    let outside = world.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    let root = world.root();
    symlink(&outside, root.join("absolute")).unwrap();
    symlink("../../../../../../../../..", root.join("up")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink(&outside, root.join("tmp/dangling")).unwrap();
    let source = world.directory.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("here"), "x").unwrap();
    for destination in [
        "/absolute",
        "/absolute/deep/er",
        "/up/up2",
        "/tmp/dangling/x",
        "/../../dots",
    ] {
        let out = world.sh(&format!("cat {destination}/here"), |spec| {
            spec["mounts"].as_array_mut().unwrap().push(json!({
                "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"] }));
        });
        assert_eq!(out, "x", "{destination}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{destination}");
        assert!(!Path::new("/dots").exists() && !Path::new("/up2").exists());
    }
    let loops = world.run(&["true"], |spec| {
        symlink("self", root.join("self")).unwrap();
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/self/x", "type": "bind", "source": source, "options": ["rbind"] }));
    });
    assert_eq!(loops.code, 1);
    // /proc through a link would escape the masks.
    let root = world.root();
    let linked = world.run(&["true"], |_| {
        fs::remove_dir(root.join("proc")).unwrap();
        symlink("tmp", root.join("proc")).unwrap();
    });
    assert!(
        linked.err.contains("must be mounted on ordinary directory"),
        "{}",
        linked.err
    );
}

#[test]
fn mounts_keep_their_promises() {
    let Some(mut world) = World::new() else {
        return;
    };
    let source = world.directory.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::create_dir_all(world.root().join("var/seed")).unwrap();
    fs::write(world.root().join("var/seed/f"), "seeded").unwrap();
    let script = "(touch /ro/x) 2>&1 | grep -c Read-only; touch /rw/made && echo rw; cat /one; (echo y >/one) 2>&1 | grep -c Read-only; \
        cat /var/seed/f; touch /var/seed/new && echo up; grep -c ' /ro .*noexec' /proc/mounts";
    let out = world.sh(script, |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/ro", "source": source, "options": ["rbind", "ro", "noexec", "rprivate"] }));
        mounts.last_mut().unwrap()["type"] = json!("bind");
        mounts.push(json!({ "destination": "/rw", "type": "bind", "source": source, "options": ["rbind", "rw"] }));
        mounts.push(json!({ "destination": "/one", "type": "bind", "source": source.join("file"), "options": ["bind", "ro"] }));
        mounts.push(json!({ "destination": "/var/seed", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid"] }));
        fs::write(world_root(spec).join("one"), "").unwrap();
    });
    assert_eq!(out, "1\nrw\ncontent1\nseededup\n1\n");
    assert!(source.join("made").exists());
    let missing = world.run(&["true"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/x", "type": "bind", "source": "/nosuch", "options": ["bind"] }));
    });
    assert!(
        missing.err.contains("no such file or directory"),
        "{}",
        missing.err
    );
    let onto_file = world.run(&["true"], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "destination": "/etc/passwd", "type": "bind", "source": source, "options": ["bind"] }));
    });
    assert!(
        onto_file
            .err
            .contains("Are you trying to mount a directory onto a file"),
        "{}",
        onto_file.err
    );
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !table.contains(world.directory.to_str().unwrap()),
        "a mount was left on the host"
    );
}

fn world_root(spec: &Value) -> PathBuf {
    spec["root"]["path"].as_str().unwrap().into()
}

#[test]
fn process_settings_arrive() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "id -u; id -g; id -G; umask; pwd; ulimit -n; cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        echo $HOME; ls -ld /work/deep | wc -l; hostname";
    let out = world.sh(script, |spec| {
        spec["process"]["user"] =
            json!({ "uid": 33, "gid": 34, "additionalGids": [50, 51], "umask": 0o27 });
        spec["process"]["cwd"] = json!("/work/deep");
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        spec["process"]["oomScoreAdj"] = json!(500);
        spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "80" });
        spec["hostname"] = json!("some-host");
        spec["domainname"] = json!("example.org");
    });
    assert_eq!(
        out,
        "33\n34\n34 50 51\n0027\n/work/deep\n100\n500\n80\n/var/www\n1\nsome-host\n"
    );
    let refused = world.run(&["true"], |spec| {
        spec["linux"]["sysctl"] = json!({ "kernel.panic": "1" });
    });
    assert!(
        refused
            .err
            .contains("is not in a separate kernel namespace"),
        "{}",
        refused.err
    );
}

#[test]
fn names_of_users_come_from_the_containers_own_files() {
    let Some(mut world) = World::new() else {
        return;
    };
    let by_name = |name: &'static str| {
        move |spec: &mut Value| {
            spec["process"]["user"] = json!({ "uid": 0, "gid": 0, "username": name })
        }
    };
    assert_eq!(
        world.sh("id -u; id -g; id -G", by_name("web")),
        "33\n34\n34 50\n"
    );
    let missing = world.run(&["true"], by_name("nosuch"));
    assert!(
        missing
            .err
            .contains("unable to find user nosuch: no matching entries in passwd file"),
        "{}",
        missing.err
    );
}

#[test]
fn a_terminal_is_the_containers_own() {
    let Some(mut world) = World::new() else {
        return;
    };
    use rustix::net::{AddressFamily, SocketType};
    let path = world.directory.join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let bundle = world.bundle(
        &[
            "sh",
            "-c",
            "tty; stty size; test -c /dev/console && echo console; cat",
        ],
        |spec| {
            spec["process"]["terminal"] = json!(true);
            spec["process"]["consoleSize"] = json!({ "height": 33, "width": 99 });
        },
    );
    let id = world.id();
    let socket = path.to_str().unwrap();
    let created = world
        .program(&[
            "create",
            "-b",
            bundle.to_str().unwrap(),
            "--console-socket",
            socket,
            &id,
        ])
        .output()
        .unwrap();
    assert!(
        created.status.success(),
        "{}",
        String::from_utf8_lossy(&created.stderr)
    );
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = [0; 64];
    let (_, mut descriptors) = gantry_linux::ipc::receive(&stream, &mut buffer).unwrap();
    let master = descriptors.pop().unwrap();
    assert_eq!(world.call(&["start", &id]).code, 0);
    let mut text = String::new();
    while !text.contains("console\r\n") {
        let length = rustix::io::read(&master, &mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert_eq!(
        text,
        "/dev/console\r\n33 99\r\nconsole\r\n"
            .replace("/dev/console", text.lines().next().unwrap())
    );
    // End of file through the terminal ends the program.
    rustix::io::write(&master, b"\x04").unwrap();
    while rustix::io::read(&master, &mut buffer).is_ok_and(|n| n > 0) {}
    let _ = (AddressFamily::UNIX, SocketType::STREAM);
}

#[test]
fn hooks_run_at_their_times() {
    let Some(mut world) = World::new() else {
        return;
    };
    let log = world.directory.join("log");
    let hook = |name: &str| {
        let script = format!(
            "read state; echo {name} >> {}; case \"$state\" in *ociVersion*) ;; *) exit 1;; esac",
            log.display()
        );
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    let names = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let ran = world.run(&["true"], |spec| {
        for name in names {
            spec["hooks"][name] = hook(name);
        }
    });
    assert_eq!(ran.code, 0, "{}", ran.err);
    let logged = fs::read_to_string(&log).unwrap();
    assert_eq!(logged.lines().collect::<Vec<_>>(), names);
    let failing = world.run(&["true"], |spec| {
        spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/false" }]);
    });
    assert_eq!(failing.code, 1);
    assert!(
        failing.err.contains("error running hook #0"),
        "{}",
        failing.err
    );
}

#[test]
fn a_user_namespace_maps_root_away() {
    let Some(mut world) = World::new() else {
        return;
    };
    rustix::fs::chown(
        world.root().join("tmp").as_path(),
        Some(rustix::fs::Uid::from_raw(100_000)),
        None,
    )
    .unwrap();
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; touch /tmp/mine; stat -c %u /tmp/mine; echo x >/dev/null && echo null; cat /one";
    // A source that the mapped root could not even walk to.
    let source = world.directory.join("secret");
    fs::create_dir(&source).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(source.join("one"), "bound").unwrap();
    fs::write(world.root().join("one"), "").unwrap();
    let out = world.sh(script, |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/one", "type": "bind", "source": source.join("one"), "options": ["bind", "ro"] }));
        spec["root"]["readonly"] = json!(false);
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    assert_eq!(out, "0\n 0 100000 65536\n0\nnull\nbound");
    assert_eq!(
        fs::metadata(world.root().join("tmp/mine")).unwrap().uid(),
        100_000
    );
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let Some(mut world) = World::new() else {
        return;
    };
    let first = world.started(no_change);
    let pid = world.state(&first)["pid"].as_i64().unwrap();
    let out = world.sh(
        "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; ps | grep -c 'sleep 1000'",
        |spec| {
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                let kind = namespace["type"].as_str().unwrap().to_owned();
                let file = match kind.as_str() {
                    "network" => "net",
                    "ipc" | "pid" => kind.as_str(),
                    _ => continue,
                };
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        },
    );
    let link = |kind: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    let expected = format!("{}\n{}\n", link("net"), link("ipc"));
    assert!(out.starts_with(&expected), "{out} / {expected}");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let Some(mut world) = World::new() else {
        return;
    };
    let ran = world.run(&["true"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 1 });
        spec["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "3MB", "limit": 1 }]);
    });
    assert_eq!(ran.code, 1);
    let id = world.ids.last().unwrap().clone();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(
            !hierarchy.path().join(&id).exists(),
            "{:?}",
            hierarchy.path()
        );
    }
    assert_eq!(
        fs::read_dir(world.directory.join("state")).map_or(0, Iterator::count),
        0
    );
}

#[test]
fn cgroup_v2_alone() {
    let Some(mut world) = World::new() else {
        return;
    };
    // A mount namespace in which /sys/fs/cgroup is the v2 hierarchy; which controllers it has depends on the machine.
    let in_view = |world: &World, arguments: &[&str]| -> Ran {
        let view = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";
        let command = world.program(arguments);
        Command::new("unshare")
            .args(["-m", "sh", "-c", view, PROGRAM])
            .args(command.get_args())
            .stdin(Stdio::null())
            .output()
            .unwrap()
            .into()
    };
    let script = "tail -1 /proc/self/cgroup; grep -c ' /sys/fs/cgroup cgroup2 ro' /proc/mounts; (mknod /tmp/kvm c 10 232; cat /tmp/kvm) 2>&1 | grep -c 'not permitted'; \
        cat /dev/null && echo null";
    let bundle = world.bundle(&["sh", "-c", script], |spec| {
        let caps = json!(["CAP_MKNOD"]);
        spec["process"]["capabilities"] =
            json!({ "bounding": caps, "effective": caps, "permitted": caps });
        spec["root"]["readonly"] = json!(false);
    });
    let id = world.id();
    let ran = in_view(&world, &["run", "-b", bundle.to_str().unwrap(), &id]);
    assert_eq!(ran.out, "0::/\n1\n1\nnull\n", "{}", ran.err);
    let refused = world.bundle(&["true"], |spec| {
        spec["linux"]["resources"]["unified"] = json!({ "nosuch.max": "1" });
    });
    let id = world.id();
    let refused = in_view(&world, &["run", "-b", refused.to_str().unwrap(), &id]);
    assert!(
        refused
            .err
            .contains("nosuch.max: no such file or directory"),
        "{}",
        refused.err
    );
    let table = fs::read_dir("/sys/fs/cgroup/unified")
        .or_else(|_| fs::read_dir("/sys/fs/cgroup"))
        .unwrap();
    assert!(
        !table
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains(&id))
    );
}

#[test]
fn run_never_loses_an_exit() {
    let Some(world) = World::new() else { return };
    // Enough to have caught a lost SIGCHLD; the long form is a benchmark.
    let count: usize = std::env::var("GANTRY_RUN_COUNT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let bundle = world.bundle(&["sh", "-c", "exit 3"], no_change);
    let bundle = bundle.to_str().unwrap();
    let base = world
        .directory
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (world, base) = (&world, &base);
            scope.spawn(move || {
                for i in 0..count / 3 {
                    let ran = world.call(&["run", "-b", bundle, &format!("{base}-w{worker}-{i}")]);
                    assert_eq!(ran.code, 3, "{}", ran.err);
                }
            });
        }
    });
}
