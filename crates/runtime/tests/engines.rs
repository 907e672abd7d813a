//! Unmodified engines from Debian with this runtime in runc's place: podman, containerd with ctr, and Docker.
//!
//! Every daemon is started by its test in a directory of its own and ended by it. `make test` installs the packages; where one is
//! missing the test fails, so that nothing is skipped unseen.

mod world;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use world::{BUSYBOX, PROGRAM, Ran};

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder, a root file system with busybox, and the daemons that were started in it.
struct Place {
    directory: PathBuf,
    daemons: Vec<Child>,
}

impl Place {
    fn new(engine: &str, programs: &[&str]) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        for program in programs.iter().chain(&["script"]) {
            let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
                .iter()
                .any(|folder| Path::new(folder).join(program).exists());
            assert!(found, "{program} is missing; `make test` installs it");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gantry-{engine}-{}-{number}", std::process::id());
        // Sockets' paths must be short.
        let place = Self {
            directory: Path::new("/tmp").join(name),
            daemons: Vec::new(),
        };
        let bin = place.rootfs().join("bin");
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(place.rootfs().join(folder)).unwrap();
        }
        fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
        for tool in "sh true sleep cat id tty test touch dd echo stty head".split(' ') {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        Some(place)
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Names everything of ours that is global.
    fn name(&self) -> &str {
        self.directory.file_name().unwrap().to_str().unwrap()
    }

    fn daemon(&mut self, command: &mut Command, log: &str) {
        let log = fs::File::create(self.directory.join(log)).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.daemons.push(child.unwrap());
    }

    fn containerd(&mut self) -> String {
        let socket = self.path("c.sock");
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\n  address = \"{socket}\"\n[ttrpc]\n  address = \"{socket}.ttrpc\"\n",
            self.path("containerd"),
            self.path("containerd-state"),
        );
        fs::write(self.directory.join("containerd.toml"), config).unwrap();
        let config = self.path("containerd.toml");
        self.daemon(
            Command::new("containerd").args(["--config", &config]),
            "containerd.log",
        );
        let answers = || call(Command::new("ctr").args(["-a", &socket, "version"])).code == 0;
        self.wait_for("containerd", answers);
        socket
    }

    fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        while !condition() {
            if began.elapsed() > PATIENCE {
                let logs = ["containerd.log", "dockerd.log"]
                    .map(|l| fs::read_to_string(self.directory.join(l)).unwrap_or_default());
                panic!("{what} never came: {}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let pid = rustix::process::Pid::from_child(daemon);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let began = Instant::now();
            while daemon.try_wait().is_ok_and(|status| status.is_none()) {
                if began.elapsed() > PATIENCE {
                    let _ = daemon.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // A failed test leaves shims and their containers; each names this folder, or its parent does.
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if pid != std::process::id() as i32
                && String::from_utf8_lossy(&line).contains(self.name())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in mounts.lines().rev() {
            let place = line.split(' ').nth(4).unwrap_or_default();
            if place.contains(self.name()) {
                let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            remove_tree(&hierarchy.path().join(self.name()));
        }
        remove_tree(&Path::new("/sys/fs/cgroup").join(self.name()));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Folders of a cgroup tree, the deepest first.
fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Who was killed is in it until it has ended.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while fs::remove_dir(directory)
        .is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()))
        && std::time::Instant::now() < until
    {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn call(command: &mut Command) -> Ran {
    command.stdin(Stdio::null()).output().unwrap().into()
}

/// The same with a terminal of its own as standard streams; what the program wrote comes on stdout.
fn call_in_terminal(words: &[String]) -> Ran {
    let line: Vec<_> = words
        .iter()
        .map(|w| format!("'{}'", w.replace('\'', "'\\''")))
        .collect();
    // conmon notes an OOM kill in the folder it stands in.
    let mut script = Command::new("script");
    script.current_dir("/tmp");
    call(script.args(["-qec", &line.join(" "), "/dev/null"]))
}

#[track_caller]
fn expect(ran: &Ran, code: i32, text: &str) {
    assert!(
        ran.code == code && (ran.out.contains(text) || ran.err.contains(text)),
        "expected {code} {text:?}, got {} {:?} {:?}",
        ran.code,
        ran.out,
        ran.err
    );
}

/// Where a process's cgroup of this v1 controller is, or the v2 one.
fn limit(pid: &str, controller: &str, v1: &str, v2: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let line = |wanted: &dyn Fn(&str) -> bool| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let names = fields.next()?;
            wanted(names).then(|| fields.next().map(str::to_owned))?
        })
    };
    let file = match line(&|names| names.split(',').any(|n| n == controller)) {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
        None => format!("/sys/fs/cgroup{}/{v2}", line(&str::is_empty).unwrap()),
    };
    fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("{file}: {e}"))
        .trim()
        .to_owned()
}

/// In bytes.
fn memory_limit(pid: &str) -> u64 {
    let text = limit(pid, "memory", "memory.limit_in_bytes", "memory.max");
    text.parse().unwrap()
}

/// What each engine is asked for; the number of processes only where it can be asked.
fn check_limits(pid: &str, pids: Option<&str>) {
    assert_eq!(memory_limit(pid), 64 << 20);
    if let Some(pids) = pids {
        assert_eq!(limit(pid, "pids", "pids.max", "pids.max"), pids);
    }
    assert!(limit(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
}

const OOM: [&str; 5] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];

#[test]
fn podman() {
    let Some(place) = Place::new("podman", &["podman", "conmon"]) else {
        return;
    };
    // Where root may not raise limits, podman's defaults are more than there is.
    let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
    fs::write(place.directory.join("containers.conf"), conf).unwrap();
    let parent = format!("--cgroup-parent=/{}", place.name());
    let rootfs = place.path("rootfs");
    let command = |words: &[&str]| {
        let mut command = Command::new("podman");
        // conmon notes an OOM kill in the folder it stands in.
        command
            .current_dir(&place.directory)
            .env("CONTAINERS_CONF", place.path("containers.conf"))
            .args([
                "--runtime",
                PROGRAM,
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
                "--storage-driver",
                "vfs",
            ])
            .args([
                "--root",
                &place.path("root"),
                "--runroot",
                &place.path("run"),
                "--tmpdir",
                &place.path("tmp"),
            ])
            .args(words);
        command
    };
    let podman = |words: &[&str]| call(&mut command(words));
    let run = |flags: &[&str], program: &[&str]| {
        let mut words = vec!["run", "--network", "none", &parent];
        words.extend(flags);
        words.extend(["--rootfs", &rootfs]);
        words.extend(program);
        podman(&words)
    };
    expect(
        &run(&["--rm"], &["sh", "-c", "echo hello; exit 3"]),
        3,
        "hello\n",
    );
    expect(&run(&["--rm", "-t"], &["tty"]), 0, "/dev/pts/0");
    expect(
        &run(&["--rm"], &["nosuch"]),
        127,
        "executable file not found in $PATH",
    );
    expect(
        &run(&["--rm", "--memory", "32m", "--memory-swap", "32m"], &OOM),
        137,
        "",
    );
    let limits = [
        "-d",
        "--name",
        "a1",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "--health-cmd",
        "test -e /tmp/ok",
    ];
    expect(&run(&limits, &["sleep", "1000"]), 0, "");
    let inspect = |format: &str| {
        podman(&["inspect", "-f", format, "a1"])
            .out
            .trim()
            .to_owned()
    };
    check_limits(&inspect("{{.State.Pid}}"), Some("50"));
    expect(
        &podman(&["exec", "a1", "sh", "-c", "echo in; exit 7"]),
        7,
        "in\n",
    );
    expect(&podman(&["exec", "-t", "a1", "tty"]), 0, "/dev/pts/");
    expect(&podman(&["healthcheck", "run", "a1"]), 1, "");
    expect(&podman(&["exec", "a1", "touch", "/tmp/ok"]), 0, "");
    expect(&podman(&["healthcheck", "run", "a1"]), 0, "");
    expect(&podman(&["update", "--memory", "128m", "a1"]), 0, "");
    assert_eq!(memory_limit(&inspect("{{.State.Pid}}")), 128 << 20);
    expect(&podman(&["pause", "a1"]), 0, "");
    assert_eq!(inspect("{{.State.Status}}"), "paused");
    expect(&podman(&["unpause", "a1"]), 0, "");
    expect(&podman(&["top", "a1"]), 0, "sleep 1000");
    expect(&podman(&["stop", "-t", "0", "a1"]), 0, "");
    assert_eq!(
        inspect("{{.State.Status}} {{.State.ExitCode}}"),
        "exited 137"
    );
    expect(&podman(&["start", "a1"]), 0, "");
    expect(&podman(&["kill", "a1"]), 0, "");
    expect(&podman(&["rm", "-f", "a1"]), 0, "");
    assert_eq!(podman(&["ps", "-aq"]).out, "");
}

#[test]
fn containerd_and_ctr() {
    let Some(mut place) = Place::new("ctr", &["containerd", "ctr"]) else {
        return;
    };
    let socket = place.containerd();
    let namespace = place.name().to_owned();
    let rootfs = place.path("rootfs");
    let words = |words: &[&str]| -> Vec<String> {
        ["ctr", "-a", &socket, "-n", &namespace]
            .iter()
            .chain(words)
            .map(|w| (*w).to_owned())
            .collect()
    };
    let ctr = |arguments: &[&str]| call(Command::new("ctr").args(&words(arguments)[1..]));
    let run = ["run", "--runc-binary", PROGRAM];
    let with = |flags: &[&'static str], program: &[&'static str]| {
        let mut all = run.to_vec();
        all.extend(flags);
        all.extend(["--rootfs", &rootfs]);
        ctr(&all.iter().chain(program).copied().collect::<Vec<_>>())
    };
    expect(
        &with(&["--rm"], &["a1", "/bin/sh", "-c", "echo hello; exit 3"]),
        3,
        "hello\n",
    );
    expect(
        &with(&["--rm"], &["a2", "/bin/nosuch"]),
        1,
        "no such file or directory",
    );
    let with_terminal = words(&[
        "run",
        "--runc-binary",
        PROGRAM,
        "--rm",
        "-t",
        "--rootfs",
        &rootfs,
        "a3",
        "/bin/sh",
        "-c",
        "tty; exit 4",
    ]);
    expect(&call_in_terminal(&with_terminal), 4, "/dev/pts/0");
    expect(
        &with(
            &["--rm", "--memory-limit", "33554432"],
            &[
                "a4",
                "/bin/dd",
                "if=/dev/zero",
                "of=/dev/null",
                "bs=200M",
                "count=1",
            ],
        ),
        137,
        "",
    );
    expect(
        &with(
            &["-d", "--memory-limit", "67108864", "--cpus", "0.5"],
            &["b1", "/bin/sleep", "1000"],
        ),
        0,
        "",
    );
    let tasks = ctr(&["task", "ls"]).out;
    let task: Vec<_> = tasks.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((task[0], task[2]), ("b1", "RUNNING"));
    let pid = task[1];
    check_limits(pid, None);
    expect(
        &ctr(&[
            "task",
            "exec",
            "--exec-id",
            "x1",
            "b1",
            "/bin/sh",
            "-c",
            "echo in; exit 7",
        ]),
        7,
        "in\n",
    );
    let terminal = words(&["task", "exec", "-t", "--exec-id", "x2", "b1", "/bin/tty"]);
    expect(&call_in_terminal(&terminal), 0, "/dev/pts/");
    expect(&ctr(&["task", "metrics", "b1"]), 0, "memory");
    expect(&ctr(&["task", "ps", "b1"]), 0, pid);
    expect(&ctr(&["task", "pause", "b1"]), 0, "");
    expect(&ctr(&["task", "ls"]), 0, "PAUSED");
    expect(&ctr(&["task", "resume", "b1"]), 0, "");
    expect(&ctr(&["task", "kill", "-s", "SIGKILL", "b1"]), 0, "");
    place.wait_for("the end of b1", || {
        ctr(&["task", "ls"]).out.contains("STOPPED")
    });
    expect(&ctr(&["task", "delete", "b1"]), 0, "exit code 137");
    expect(&ctr(&["container", "delete", "b1"]), 0, "");
    assert_eq!(ctr(&["task", "ls", "-q"]).out, "");
}

#[test]
fn docker() {
    let Some(mut place) = Place::new("dockerd", &["containerd", "dockerd", "docker"]) else {
        return;
    };
    let containerd = place.containerd();
    let host = format!("unix://{}", place.path("d.sock"));
    let runtime = format!("gantry={PROGRAM}");
    let parent = format!("--cgroup-parent=/{}", place.name());
    let paths = [
        place.path("docker"),
        place.path("exec"),
        place.path("d.pid"),
    ];
    // A network namespace of its own: it must not touch the host's rules.
    let mut daemon = Command::new("unshare");
    daemon
        .args(["--net", "dockerd", "-H", &host, "--containerd", &containerd])
        .args([
            "--data-root",
            &paths[0],
            "--exec-root",
            &paths[1],
            "--pidfile",
            &paths[2],
        ])
        .args([
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            "--storage-driver=vfs",
        ])
        .args([
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--add-runtime",
            &runtime,
            "--default-runtime=runc",
            &parent,
        ]);
    place.daemon(&mut daemon, "dockerd.log");
    let docker = |words: &[&str]| {
        let config = place.path("client");
        call(
            Command::new("docker")
                .env("DOCKER_HOST", &host)
                .env("DOCKER_CONFIG", config)
                .args(words),
        )
    };
    place.wait_for("dockerd", || docker(&["version"]).code == 0);
    let archive = place.path("rootfs.tar");
    expect(
        &call(Command::new("tar").args(["-C", &place.path("rootfs"), "-cf", &archive, "."])),
        0,
        "",
    );
    expect(
        &docker(&["import", "-c", "ENV PATH=/bin", &archive, "bb"]),
        0,
        "sha256:",
    );
    let run = |flags: &[&str], program: &[&str]| {
        let mut words = vec!["run", "--runtime", "gantry", "--network", "none"];
        words.extend(flags);
        words.push("bb");
        words.extend(program);
        docker(&words)
    };
    expect(
        &run(&["--rm"], &["sh", "-c", "echo hello; exit 3"]),
        3,
        "hello\n",
    );
    expect(&run(&["--rm", "-t"], &["tty"]), 0, "/dev/pts/0");
    expect(
        &run(&["--rm"], &["nosuch"]),
        127,
        "exec: \"nosuch\": executable file not found in $PATH",
    );
    expect(
        &run(&["--rm", "-m", "32m", "--memory-swap", "32m"], &OOM),
        137,
        "",
    );
    let limits = [
        "-d",
        "--name",
        "a1",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "--health-cmd",
        "test -e /tmp/ok",
        "--health-interval",
        "300ms",
        "--health-retries",
        "1",
    ];
    expect(&run(&limits, &["sleep", "1000"]), 0, "");
    let inspect = |what: &str| -> Value {
        let text = docker(&["inspect", "a1"]).out;
        serde_json::from_str::<Value>(&text).unwrap()[0]
            .pointer(what)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(inspect("/HostConfig/Runtime"), "gantry");
    let pid = inspect("/State/Pid").to_string();
    check_limits(&pid, Some("50"));
    expect(
        &docker(&["exec", "a1", "sh", "-c", "echo in; exit 7"]),
        7,
        "in\n",
    );
    expect(&docker(&["exec", "-t", "a1", "tty"]), 0, "/dev/pts/");
    place.wait_for("unhealthy", || {
        inspect("/State/Health/Status") == "unhealthy"
    });
    expect(&docker(&["exec", "a1", "touch", "/tmp/ok"]), 0, "");
    place.wait_for("healthy", || inspect("/State/Health/Status") == "healthy");
    expect(
        &docker(&["update", "--memory", "128m", "--memory-swap", "128m", "a1"]),
        0,
        "a1",
    );
    assert_eq!(memory_limit(&pid), 128 << 20);
    expect(&docker(&["pause", "a1"]), 0, "a1");
    assert_eq!(inspect("/State/Status"), "paused");
    expect(&docker(&["unpause", "a1"]), 0, "a1");
    expect(&docker(&["top", "a1"]), 0, "sleep 1000");
    expect(&docker(&["stop", "-t", "0", "a1"]), 0, "a1");
    assert_eq!(inspect("/State/ExitCode"), 137);
    expect(&docker(&["start", "a1"]), 0, "a1");
    expect(&docker(&["restart", "-t", "0", "a1"]), 0, "a1");
    expect(&docker(&["rm", "-f", "a1"]), 0, "a1");
    assert_eq!(docker(&["ps", "-aq"]).out, "");
}
