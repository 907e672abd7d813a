//! What an image, or a program in a container, may try against the host, each with the refusal it gets.
//!
//! `docs/how-to/hardening.md` names these tests. Races and bombs are in `attacks_races.rs`.

mod world;

use gantry_runtime::seccomp::docker_default;
use serde_json::{Value, json};
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use world::{PROGRAM, Ran, World, no_change, prompt};

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const KEYCTL: i64 = 250;
    /// Name, number, first arguments, what the default profile answers.
    pub(crate) const REFUSED: [(&str, i64, &str, i32); 9] = [
        ("unshare(CLONE_NEWUSER)", 272, "0x10000000", 1),
        ("mount", 165, "0, 0, 0, 0, 0", 1),
        ("keyctl", 250, "0, -3, 0", 1),
        ("add_key", 248, "0, 0, 0, 0, 0", 1),
        ("bpf", 321, "0, 0, 0", 1),
        ("open_by_handle_at", 304, "0, 0, 0", 1),
        ("init_module", 175, "0, 0, 0", 1),
        ("kexec_load", 246, "0, 0, 0, 0", 1),
        // Its flags are behind a pointer: programs are made to fall back to clone, whose flags are looked at.
        ("clone3", 435, "0, 0", 38),
    ];
    pub(crate) const CLONE: i64 = 56;
    /// What only the machine's owner may do to it.
    pub(crate) const HARDWARE: [(&str, i64, &str); 12] = [
        ("iopl", 172, "3"),
        ("ioperm", 173, "0x60, 1, 1"),
        ("settimeofday", 164, "0, 0"),
        ("clock_settime", 227, "0, 0"),
        ("reboot", 169, "0xfee1dead, 0x28121969, 0"),
        ("swapon", 167, "0, 0"),
        ("swapoff", 168, "0"),
        ("acct", 163, "0"),
        ("delete_module", 176, "0, 0"),
        ("finit_module", 313, "0, 0, 0"),
        ("kexec_file_load", 320, "0, 0, 0, 0, 0"),
        ("quotactl", 179, "0, 0, 0, 0"),
    ];
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const KEYCTL: i64 = 219;
    pub(crate) const REFUSED: [(&str, i64, &str, i32); 9] = [
        ("unshare(CLONE_NEWUSER)", 97, "0x10000000", 1),
        ("mount", 40, "0, 0, 0, 0, 0", 1),
        ("keyctl", 219, "0, -3, 0", 1),
        ("add_key", 217, "0, 0, 0, 0, 0", 1),
        ("bpf", 280, "0, 0, 0", 1),
        ("open_by_handle_at", 265, "0, 0, 0", 1),
        ("init_module", 105, "0, 0, 0", 1),
        ("kexec_load", 104, "0, 0, 0, 0", 1),
        ("clone3", 435, "0, 0", 38),
    ];
    pub(crate) const CLONE: i64 = 220;
    pub(crate) const HARDWARE: [(&str, i64, &str); 10] = [
        ("settimeofday", 170, "0, 0"),
        ("clock_settime", 112, "0, 0"),
        ("reboot", 142, "0xfee1dead, 0x28121969, 0"),
        ("swapon", 224, "0, 0"),
        ("swapoff", 225, "0"),
        ("acct", 89, "0"),
        ("delete_module", 106, "0, 0"),
        ("finit_module", 273, "0, 0, 0"),
        ("kexec_file_load", 294, "0, 0, 0, 0, 0"),
        ("quotactl", 60, "0, 0, 0, 0"),
    ];
}

/// The host's perl inside, for system calls that no shell makes.
fn with_perl(world: &World, spec: &mut Value) {
    for name in ["lib", "lib64"] {
        let _ = symlink(format!("usr/{name}"), world.root().join(name));
    }
    let usr = json!({ "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] });
    spec["mounts"].as_array_mut().unwrap().push(usr);
}

/// Everything that a privileged container has short of the host's namespaces.
fn privileged(spec: &mut Value) {
    for set in [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ] {
        spec["process"]["capabilities"][set] = json!(gantry_linux::capabilities::NAMES[..]);
    }
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
}

fn volume(world: &World, name: &str, spec: &mut Value) -> PathBuf {
    let source = world.directory.join(name);
    fs::create_dir_all(&source).unwrap();
    let mount = json!({ "destination": format!("/{name}"), "type": "bind", "source": source, "options": ["rbind", "rw"] });
    spec["mounts"].as_array_mut().unwrap().push(mount);
    source
}

fn perl_in(world: &mut World, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut with = None;
    let bundle = world.bundle(&["/usr/bin/perl", "-e", script], |spec| {
        change(spec);
        with = Some(spec.clone());
    });
    let mut spec = with.unwrap();
    with_perl(world, &mut spec);
    fs::write(
        bundle.join("config.json"),
        serde_json::to_vec(&spec).unwrap(),
    )
    .unwrap();
    let id = world.id();
    let ran = world.call(&["run", "-b", bundle.to_str().unwrap(), &id]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    ran.out
}

/// CVE-2019-5736: a process of ours that is in the container is seen there, and its program could be written through `/proc/<pid>/exe`.
#[test]
fn the_program_cannot_be_written_through_proc_self_exe() {
    let Some(mut world) = World::new() else {
        return;
    };
    // Looks at every process that is not of the container's own files and tries to write its program; says what it got.
    let attack = r##"
        open(my $log, ">>", "/vol/log"); select $log; $| = 1; print "ready\n";
        my $own = join "|", map { quotemeta } ("/usr/", "/bin/");
        until (-e "/vol/stop") {
            opendir(my $proc, "/proc") or next;
            for my $pid (grep /^\d+$/, readdir $proc) {
                my $exe = readlink "/proc/$pid/exe";
                next if $pid == $$ or !defined $exe or $exe =~ /^($own)/;
                sysopen(my $read, "/proc/$pid/exe", 0) or next;
                my $fd = fileno $read;
                my ($written, %errors) = (0);
                # mount_setattr(2): take the read-only flag off the mount; open_tree(2): a copy of it that is ours.
                syscall(442, $fd, my $empty = "", 0x1000, my $clear = pack("Q4", 0, 1, 0, 0), 32) == 0 and print "CHANGED\n";
                my $tree = syscall(428, $fd, $empty, 0x1001);
                $tree >= 0 and syscall(442, $tree, $empty, 0x1000, $clear, 32) == 0 and print "CLONED\n";
                # While any process runs it the kernel refuses for that alone; what counts is the answer when none does.
                my $until = time + 5;
                while (!$errors{30} and !$written and time < $until) {
                    for my $path ("/proc/$pid/exe", "/proc/self/fd/$fd", $tree >= 0 ? "/proc/self/fd/$tree" : ()) {
                        if (sysopen(my $write, $path, 1)) { $written += syswrite($write, "#!/pwned\n") // 0; print "WRITABLE $path $written\n" }
                        else { $errors{$! + 0}++ }
                    }
                }
                print "caught ", join(" ", sort keys %errors), "\n";
            }
        }
    "##;
    let runtime = world.directory.join("runtime-under-attack");
    fs::copy(PROGRAM, &runtime).unwrap();
    let before = fs::read(&runtime).unwrap();
    let mut shared = PathBuf::new();
    let bundle = world.bundle(&["/usr/bin/perl", "-e", attack], |_| {});
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    privileged(&mut spec);
    with_perl(&world, &mut spec);
    shared.push(volume(&world, "vol", &mut spec));
    fs::write(&config, serde_json::to_vec(&spec).unwrap()).unwrap();
    // The kernel takes a script's interpreter from inside the container, and that is our program: CVE-2019-5736's way in.
    let evil = world.root().join("bin/evil");
    fs::write(&evil, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).unwrap();
    let id = world.id();
    let call = |words: &[&str]| {
        Command::new(&runtime)
            .arg("--root")
            .arg(world.directory.join("state"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
    };
    assert!(call(&["create", "-b", bundle.to_str().unwrap(), &id]).success());
    assert!(call(&["start", &id]).success());
    let log = || fs::read_to_string(shared.join("log")).unwrap_or_default();
    let began = Instant::now();
    let caught = |text: &str| text.lines().filter(|l| l.starts_with("caught")).count();
    while caught(&log()) < 5 || !log().contains("30") {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "never caught in the act: {}",
            log()
        );
        call(&["exec", &id, "/bin/evil"]);
        call(&["exec", &id, "/bin/true"]);
    }
    fs::write(shared.join("stop"), "").unwrap();
    assert!(call(&["delete", "--force", &id]).success());
    let log = log();
    assert!(
        !log.contains("WRITABLE") && !log.contains("CHANGED") && !log.contains("CLONED"),
        "{log}"
    );
    // EROFS is the read-only view, ETXTBSY a program in use, ENOENT and ESRCH a process that is gone.
    for line in log.lines().filter_map(|l| l.strip_prefix("caught ")) {
        assert!(
            line.split(' ')
                .all(|e| ["1", "2", "3", "13", "26", "30"].contains(&e)),
            "{log}"
        );
    }
    assert!(
        log.contains("30"),
        "the read-only view was never met: {log}"
    );
    assert!(
        fs::read(&runtime).unwrap() == before,
        "the program was changed"
    );
}

/// CVE-2024-21626: a descriptor of ours that is open on the host, taken as the working directory.
#[test]
fn a_working_directory_through_a_leaked_descriptor_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::write(world.directory.join("secret"), "the host's").unwrap();
    let id = world.started(no_change);
    let leaking = |words: &[&str]| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec 5</; exec 7<\"$0\"; exec 9</proc; exec \"$@\""])
            .arg(&world.directory)
            .arg(PROGRAM)
            .arg("--root")
            .arg(world.directory.join("state"))
            .args(words)
            .stdin(Stdio::null());
        prompt(command)
    };
    let refused = |ran: &Ran, cwd: &str| {
        let why = [
            "possible container breakout detected",
            "no such file or directory",
            "not a directory",
            "permission denied",
        ];
        assert_ne!(ran.code, 0, "{cwd}: {}", ran.out);
        assert!(
            why.iter().any(|w| ran.err.contains(w)),
            "{cwd}: {}",
            ran.err
        );
        assert!(!ran.out.contains("the host's"), "{cwd}");
    };
    let mut breakouts = 0;
    for number in 3..16 {
        for pattern in [
            "/proc/self/fd/N",
            "/proc/self/fd/N/..",
            "/proc/thread-self/fd/N",
            "/proc/1/fd/N",
            "/dev/fd/N/../..",
        ] {
            let cwd = pattern.replace('N', &number.to_string());
            let ran = leaking(&[
                "exec",
                "--cwd",
                &cwd,
                &id,
                "/bin/cat",
                "secret",
                "tmp/secret",
            ]);
            refused(&ran, &cwd);
            breakouts += usize::from(ran.err.contains("breakout"));
        }
        let cwd = format!("/proc/self/fd/{number}");
        let bundle = world.bundle(&["/bin/cat", "secret"], |spec| {
            spec["process"]["cwd"] = json!(cwd)
        });
        let ran = leaking(&["run", "-b", bundle.to_str().unwrap(), &format!("{id}-cwd")]);
        refused(&ran, &cwd);
    }
    assert!(
        breakouts > 0,
        "no descriptor was ever reached, so nothing was proven"
    );
}

#[test]
fn no_descriptor_of_ours_or_our_callers_reaches_the_program() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "for f in /proc/self/fd/*; do echo ${f##*/}; done; ls /proc/1/fd | tr '\\n' ' '";
    let sleeper = world.started(no_change);
    let bundle = world.bundle(&["sh", "-c", script], no_change);
    let id = world.id();
    for words in [
        vec!["run", "-b", bundle.to_str().unwrap(), &id],
        vec!["exec", &sleeper, "/bin/sh", "-c", script],
    ] {
        let output = Command::new("sh")
            .args([
                "-c",
                "exec 5</; exec 7</etc; exec 9>/dev/null; exec \"$@\"",
                "sh",
                PROGRAM,
                "--root",
            ])
            .arg(world.directory.join("state"))
            .args(&words)
            .stdin(Stdio::null())
            .output();
        let ran = Ran::from(output.unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
        // The shell's own folder handle may be 3; what follows is the first process.
        let (own, first) = ran.out.trim_end().rsplit_once('\n').unwrap();
        assert!(
            own.lines().all(|n| ["0", "1", "2", "3"].contains(&n)),
            "{words:?}: {own}"
        );
        let first: Vec<_> = first
            .split_whitespace()
            .filter(|n| *n != "3" || words[0] == "exec")
            .collect();
        assert_eq!(first, ["0", "1", "2"], "{words:?}");
    }
}

/// CVE-2019-19921 and its kin: the real file system ends up where masks and read-only paths do not look.
#[test]
fn links_in_the_place_of_proc_and_sys_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    let canary = world.directory.join("canary");
    for (name, target) in [
        ("proc", "tmp"),
        ("proc", "/tmp/../../../../.."),
        ("proc", "CANARY"),
        ("sys", "/etc"),
        ("sys", "../../canary"),
    ] {
        let _ = fs::remove_dir_all(&canary);
        fs::create_dir(&canary).unwrap();
        let place = world.root().join(name);
        fs::remove_dir(&place).unwrap();
        symlink(target.replace("CANARY", canary.to_str().unwrap()), &place).unwrap();
        let ran = world.run(&["true"], |spec| spec["root"]["readonly"] = json!(false));
        assert_eq!(ran.code, 1, "{name} -> {target}");
        assert!(
            ran.err.contains("must be mounted on ordinary directory"),
            "{name} -> {target}: {}",
            ran.err
        );
        assert_eq!(
            fs::read_dir(&canary).unwrap().count(),
            0,
            "{name} -> {target}"
        );
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
    }
}

/// A link in the place of `/dev` is followed, but never out of the root.
#[test]
fn a_link_in_the_place_of_dev_stays_inside() {
    let Some(mut world) = World::new() else {
        return;
    };
    let canary = world.directory.join("canary");
    fs::create_dir(&canary).unwrap();
    let place = world.root().join("dev");
    for target in [
        canary.to_str().unwrap(),
        "../../../../../canary",
        "../canary",
    ] {
        let _ = fs::remove_dir(&place);
        let _ = fs::remove_file(&place);
        symlink(target, &place).unwrap();
        let ran = world.run(
            &["sh", "-c", "echo x >/dev/null && stat -c %t:%T /dev/null"],
            |spec| {
                spec["root"]["readonly"] = json!(false);
            },
        );
        assert_eq!(
            (ran.code, ran.out.trim()),
            (0, "1:3"),
            "{target}: {}",
            ran.err
        );
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "{target}");
    }
}

/// CVE-2019-16884, CVE-2025-52881: writes to procfs that the container's own files catch.
#[test]
fn settings_reach_the_kernel_whatever_is_mounted_at_proc() {
    let Some(mut world) = World::new() else {
        return;
    };
    let fake = world.directory.join("fake-proc");
    fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    fs::write(fake.join("sys/net/ipv4/ip_default_ttl"), "bait").unwrap();
    symlink("/sentinel", fake.join("self/attr/exec")).unwrap();
    fs::write(world.root().join("sentinel"), "bait").unwrap();
    fs::create_dir(world.root().join("realproc")).unwrap();
    let hostile = |spec: &mut Value| {
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/proc" {
                *mount = json!({ "destination": "/proc", "type": "bind", "source": fake, "options": ["rbind", "rw"] });
            }
        }
        let real = json!({ "destination": "/realproc", "type": "proc", "source": "proc" });
        spec["mounts"].as_array_mut().unwrap().push(real);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    };
    let script = "cat /realproc/sys/net/ipv4/ip_default_ttl /proc/sys/net/ipv4/ip_default_ttl";
    let out = world.sh(script, |spec| {
        hostile(spec);
        spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
    });
    assert_eq!(out, "77\nbait");
    // A profile that cannot be applied is refused, not written into a file that looks like the kernel's.
    let ran = world.run(&["true"], |spec| {
        hostile(spec);
        spec["process"]["apparmorProfile"] = json!("docker-default");
    });
    assert_ne!(ran.code, 0);
    assert!(
        ran.err.contains("unable to apply apparmor profile"),
        "{}",
        ran.err
    );
    assert_eq!(fs::read(world.root().join("sentinel")).unwrap(), b"bait");
}

/// A mount namespace that somebody else furnished.
#[test]
fn a_joined_mount_namespace_without_procfs_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    let furnish = "mount -t tmpfs none /proc && mkdir -p /proc/self/fd && echo ready && exec cat";
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", furnish])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let path = format!("/proc/{}/ns/mnt", other.id());
    let ran = world.run(&["true"], |spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "mount" {
                namespace["path"] = json!(path);
            }
        }
    });
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_ne!(ran.code, 0);
    assert!(
        ran.err.contains("/proc is not the root of a procfs"),
        "{}",
        ran.err
    );
}

#[test]
fn sysctls_of_the_host_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    for name in [
        "kernel.core_pattern",
        "kernel.modprobe",
        "vm.overcommit_memory",
        "net.../kernel.core_pattern",
        "net/../kernel/core_pattern",
        "kernel.domainname/../core_pattern",
    ] {
        let ran = world.run(&["true"], |spec| {
            spec["linux"]["sysctl"] = json!({ name: "|/evil" })
        });
        assert_ne!(ran.code, 0, "{name}");
        assert!(
            ran.err.contains("is not in a separate kernel namespace"),
            "{name}: {}",
            ran.err
        );
    }
}

/// exec reads the container's files and runs beside its programs, all of which may be traps.
#[test]
fn exec_into_a_hostile_container() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(privileged);
    let exec = |words: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(words);
        prompt(world.program(&all))
    };
    let shell = |script: &str| {
        let ran = exec(&[&id, "/bin/busybox", "sh", "-c", script]);
        assert_eq!(ran.code, 0, "{script}: {}", ran.err);
    };
    // The user database: a FIFO that nobody writes, an endless device, a folder, a loop, our own environment.
    for trap in [
        "busybox mkfifo /etc/passwd",
        "ln -s /dev/zero /etc/passwd",
        "mkdir /etc/passwd",
        "ln -s passwd /etc/passwd",
        "ln -s /proc/self/environ /etc/passwd",
        "ln -s /proc/self/fd/0 /etc/passwd",
    ] {
        shell(&format!("rm -rf /etc/passwd; {trap}"));
        let ran = exec(&[
            "-u",
            "4321",
            &id,
            "/bin/sh",
            "-c",
            "grep Uid: /proc/self/status | tr -dc 0-9; echo $HOME",
        ]);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (0, "4321432143214321/\n"),
            "{trap}: {}",
            ran.err
        );
    }
    // The null device: the host's own, which is our stdin, must not change hands.
    let owner = |path: &str| {
        let meta = fs::metadata(path).unwrap();
        (meta.uid(), meta.gid(), meta.mode())
    };
    let before = owner("/dev/null");
    shell("rm /dev/null; echo not a device >/dev/null");
    let ran = exec(&[
        "-u",
        "4321",
        &id,
        "/bin/grep",
        "^Uid:\t4321",
        "/proc/self/status",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(owner("/dev/null"), before);
    // The terminal's device.
    shell("mount -t tmpfs none /dev/pts; mknod /dev/pts/ptmx c 1 5");
    let ran = exec(&["-t", &id, "/bin/true"]);
    assert_ne!(ran.code, 0);
    assert!(ran.err.contains("making the terminal"), "{}", ran.err);
    // /proc: a write of ours must not land in the container's file.
    shell(
        "mount -t tmpfs none /proc; mkdir -p /proc/self/attr /proc/self/fd; echo bait >/sentinel; ln -s /sentinel /proc/self/attr/exec",
    );
    let ran = exec(&["--apparmor", "docker-default", &id, "/bin/true"]);
    assert_ne!(ran.code, 0);
    assert!(
        ran.err.contains("unable to apply apparmor profile"),
        "{}",
        ran.err
    );
    assert_eq!(fs::read(world.root().join("sentinel")).unwrap(), b"bait\n");
    let ran = exec(&[&id, "/bin/sh", "-c", "echo still here"]);
    assert_eq!(ran.out, "still here\n", "{}", ran.err);
    // The loader: whatever stands there is the container's, run with the container's rights, and our program needs none.
    shell(
        "mkdir -p /lib64; printf '#!/proc/self/exe\\n' >/lib64/ld-linux-x86-64.so.2; chmod 755 /lib64/ld-linux-x86-64.so.2",
    );
    let ran = exec(&[&id, "/bin/sh", "-c", "echo still here"]);
    assert_eq!(ran.out, "still here\n", "{}", ran.err);
}

/// CVE-2022-0492 and the classic way out of a writable cgroup tree.
#[test]
fn release_agents_are_out_of_reach() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script = "busybox find /sys/fs/cgroup -name release_agent; mkdir /tmp/c; \
        for k in cgroup:memory cgroup:rdma cgroup2:none; do mount -t ${k%:*} -o ${k#*:} none /tmp/c 2>/dev/null && echo MOUNTED $k; done; \
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo REMOUNTED; \
        for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/evil 2>/dev/null && echo MADE $d; done; \
        cat /proc/self/cgroup | while IFS=: read n c p; do [ $p = / ] || echo SEES $p; done; true";
    let writable = |spec: &mut Value| spec["root"]["readonly"] = json!(false);
    assert_eq!(world.sh(script, writable), "");
    // Even with every right: the root of a hierarchy, where the file would be, is not in the container's view.
    fs::remove_dir(world.root().join("tmp/c")).unwrap();
    let out = world.sh(
        "busybox find /sys/fs/cgroup -name release_agent",
        privileged,
    );
    assert_eq!(out, "");
}

#[test]
fn the_hosts_kernel_settings_are_masked_or_read_only() {
    let Some(mut world) = World::new() else {
        return;
    };
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    let script = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/drop_caches /proc/sysrq-trigger \
        /proc/sys/fs/binfmt_misc/register /sys/kernel/uevent_helper /proc/irq/default_smp_affinity /proc/bus/x; do \
        (echo x >$f) 2>/dev/null && echo WROTE $f; done; \
        for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do \
        [ -e $f ] && echo $f $(head -c 1 $f | wc -c) $(stat -c %t:%T $f); done; ls -A /sys/firmware; \
        mount -o remount,rw /proc/sys 2>/dev/null && echo REMOUNTED; umount /proc/kcore 2>/dev/null && echo UNMOUNTED; true";
    let out = world.sh(script, no_change);
    assert!(out.contains("/proc/keys 0 1:3\n"), "{out}");
    // This kernel may have been built without it.
    assert_eq!(
        out.contains("/proc/kcore 0 1:3\n"),
        Path::new("/proc/kcore").exists()
    );
    for line in out.lines() {
        assert!(
            line.starts_with("/proc/") && line.ends_with(" 0 1:3"),
            "{out}"
        );
    }
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
}

#[test]
fn keyrings_are_the_containers_own() {
    let Some(mut world) = World::new() else {
        return;
    };
    // KEYCTL_GET_KEYRING_ID of the session's keyring.
    let script = format!("print syscall({}, 0, -3, 0)", number::KEYCTL);
    let host = Command::new("perl").args(["-e", &script]).output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let first = perl_in(&mut world, &script, no_change);
    let second = perl_in(&mut world, &script, no_change);
    assert!(
        first.parse::<i64>().unwrap() > 0 && second.parse::<i64>().unwrap() > 0,
        "{first} {second}"
    );
    assert!(
        host != first && host != second && first != second,
        "{host} {first} {second}"
    );
}

#[test]
fn abstract_sockets_end_at_the_network_namespace() {
    let Some(mut world) = World::new() else {
        return;
    };
    let name = format!("gantry-attack-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let script = format!(
        "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0); print connect($s, pack_sockaddr_un(\"\\0{name}\")) ? 'CONNECTED' : $! + 0, \"\\n\"; \
         open(my $f, '<', '/proc/net/unix'); print((grep /{name}/, <$f>) ? 'SEEN' : 'unseen'), \"\\n\""
    );
    let host = Command::new("perl").args(["-e", &script]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&host.stdout),
        "CONNECTED\nSEEN",
        "the bait works on the host"
    );
    // ECONNREFUSED is what a name that is not there gets.
    assert_eq!(perl_in(&mut world, &script, no_change), "111\nunseen");
}

#[test]
fn the_default_profile_refuses_user_namespaces_and_mounts() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script: String = number::REFUSED
        .iter()
        .map(|(name, number, arguments, _)| {
            format!(
                "$! = 0; print '{name} ', syscall({number}, {arguments}), ' ', $! + 0, \"\\n\"; "
            )
        })
        .collect();
    // clone with CLONE_NEWUSER | SIGCHLD; a child that is made all the same ends at once.
    let script = format!(
        "{script} $! = 0; my $pid = syscall({}, 0x10000011, 0, 0, 0, 0); if ($pid == 0) {{ exit 0 }} print 'clone ', $pid, ' ', $! + 0, \"\\n\"",
        number::CLONE
    );
    let capabilities: Vec<String> = ["CAP_CHOWN", "CAP_NET_RAW", "CAP_MKNOD", "CAP_SETUID"]
        .map(str::to_owned)
        .into();
    let profile = serde_json::to_value(docker_default(&capabilities)).unwrap();
    for no_new_privileges in [true, false] {
        let out = perl_in(&mut world, &script, |spec| {
            spec["linux"]["seccomp"] = profile.clone();
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        });
        let mut expected: String = number::REFUSED
            .iter()
            .map(|(name, _, _, errno)| format!("{name} -1 {errno}\n"))
            .collect();
        expected.push_str("clone -1 1\n");
        assert_eq!(out, expected);
    }
}

/// The clock, the power, swap, modules, the processor's ports: refused to a container's root by the default profile.
#[test]
fn the_machine_is_not_the_containers() {
    let Some(mut world) = World::new() else {
        return;
    };
    let script: String = number::HARDWARE
        .iter()
        .map(|(name, number, arguments)| {
            format!(
                "$! = 0; print '{name} ', syscall({number}, {arguments}), ' ', $! + 0, \"\\n\"; "
            )
        })
        .collect();
    let expected: String = number::HARDWARE
        .iter()
        .map(|(name, ..)| format!("{name} -1 1\n"))
        .collect();
    let capabilities: Vec<String> = ["CAP_CHOWN", "CAP_MKNOD", "CAP_NET_RAW"]
        .map(str::to_owned)
        .into();
    let profile = serde_json::to_value(docker_default(&capabilities)).unwrap();
    let out = perl_in(&mut world, &script, |spec| {
        spec["linux"]["seccomp"] = profile.clone();
    });
    assert_eq!(format!("{}\n", out.trim_end()), expected);
}

/// Nothing that a container's root may make of a device node opens the host's disks or memory.
#[test]
fn device_nodes_of_the_host_do_not_open() {
    let Some(mut world) = World::new() else {
        return;
    };
    let nodes = ["b 8 0", "b 254 0", "c 1 1", "c 10 232", "c 1 11"];
    let script: String = nodes
        .iter()
        .enumerate()
        .map(|(i, node)| format!("mknod /tmp/n{i} {node} 2>/dev/null; (head -c 1 /tmp/n{i} >/dev/null) 2>/dev/null && echo OPENED {node}; "))
        .collect();
    let out = world.sh(&format!("{script} true"), |spec| {
        spec["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap()
                .push(json!("CAP_MKNOD"));
        }
    });
    assert_eq!(out, "");
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert!(Path::new("/dev/null").exists());
}
