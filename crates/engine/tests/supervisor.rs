//! Supervisors through the real static program: what is promised to the engine, with real containers. Needs root.

#[path = "../../runtime/static_program.rs"]
mod static_program;

use bytes::Bytes;
use gantry_engine::supervisor::{
    Adopted, ExecSession, Handle, Out, Output, Spawner, StartError, Stream, adopt, stream_pair,
};
use gantry_oci::runtime::{
    Linux, LinuxNamespace, Mount, NamespaceKind, Process, Resources, Root, Spec,
};
use gantry_runtime::proto::{
    self, Exit, Forward, HEADER, Log, Request, Rootfs, Spawn, Stdin, Streams, kind,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
};
const OUTPUT: Streams = Streams {
    stdin: false,
    stdout: true,
    stderr: true,
};

/// The static program, built as the product builds it, so that these tests never run a stale one.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("GANTRY_RUNTIME") {
            return fs::read(path).expect("GANTRY_RUNTIME names the program");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        // <target>/<profile>/deps/<this test>
        let this = std::env::current_exe().unwrap();
        let target = this.ancestors().nth(3).unwrap().join("runtime");
        fs::read(static_program::build_static_program(
            env!("CARGO"),
            &root,
            "runtime-dev",
            &target,
        ))
        .unwrap()
    })
}

/// A spawner of its own, a busybox root, and run directories below a temporary folder.
struct World {
    dir: tempfile::TempDir,
    instance: String,
    spawner: Spawner,
    /// Every spawner this world has had. While one executes its program its command line cannot be read yet.
    spawners: Vec<u32>,
}

impl World {
    async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("gantry-t{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for folder in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "true", "stty", "seq", "head", "sleep", "yes", "dd",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
        fs::write(root.join("bin/text"), "no program").unwrap();
        let spawner = Spawner::open(program(), &instance).await.unwrap();
        let spawners = spawner.process_id().await.into_iter().collect();
        Self {
            dir,
            instance,
            spawner,
            spawners,
        }
    }

    /// What a new daemon does.
    async fn replace_spawner(&mut self) {
        self.spawner = Spawner::open(program(), &self.instance).await.unwrap();
        self.spawners.extend(self.spawner.process_id().await);
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn spec(&self, id: &str, process: Process) -> Spec {
        let kinds = [
            NamespaceKind::Pid,
            NamespaceKind::Mount,
            NamespaceKind::Network,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
        ];
        let namespaces = kinds.map(|kind| LinuxNamespace {
            kind,
            path: String::new(),
        });
        let mount = |destination: &str, kind: &str| Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: kind.into(),
            ..Mount::default()
        };
        Spec {
            oci_version: gantry_oci::runtime::VERSION.into(),
            root: Some(Root {
                path: self.root().display().to_string(),
                readonly: false,
            }),
            process: Some(process),
            mounts: vec![
                mount("/proc", "proc"),
                mount("/dev", "tmpfs"),
                mount("/dev/pts", "devpts"),
            ],
            linux: Some(Linux {
                namespaces: namespaces.into(),
                cgroups_path: format!("/{}/{id}", self.instance),
                resources: Some(Resources::default()),
                ..Linux::default()
            }),
            ..Spec::default()
        }
    }

    /// What to run, with a run directory and a log.
    fn spawn_of(&self, process: Process) -> Spawn {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let id = format!("{:064x}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let run_dir = self.dir.path().join("c").join(&id);
        fs::create_dir_all(&run_dir).unwrap();
        Spawn {
            version: proto::VERSION,
            spec: self.spec(&id, process),
            rootfs: Rootfs::Path(self.root()),
            filter: None,
            log: Some(Log {
                path: run_dir.join("log"),
                max_size: None,
                max_files: 1,
                attrs: String::new(),
            }),
            id,
            run_dir,
            stdin: Stdin::Closed,
            links: Vec::new(),
            names: false,
            ports: Vec::new(),
            attach: Vec::new(),
            console_size: None,
        }
    }

    async fn start(&self, spawn: Spawn) -> Result<Handle, StartError> {
        let handle = self.spawner.spawn(spawn, vec![], vec![]).await.unwrap();
        handle.started().await.map(|_| handle)
    }

    async fn start_attached(&self, mut spawn: Spawn, streams: Streams) -> (Handle, Stream) {
        let (stream, theirs) = stream_pair().unwrap();
        spawn.attach.push(streams);
        let handle = self
            .spawner
            .spawn(spawn, vec![], vec![theirs])
            .await
            .unwrap();
        handle.started().await.unwrap();
        (handle, stream)
    }

    async fn exit_code(&self, arguments: &[&str]) -> i32 {
        let handle = self.start(self.spawn_of(command(arguments))).await.unwrap();
        let exit = handle.exited().await;
        handle.gone().await;
        exit.code
    }
}

impl Drop for World {
    /// Nothing of a test stays on the machine, and in a test that passed every supervisor has ended by itself.
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<&str> = table
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4))
            .collect();
        let dirs: Vec<PathBuf> = mounts
            .iter()
            .map(|mount| Path::new(mount).join(&self.instance))
            .collect();
        let alive = || -> Vec<i32> {
            let lists = dirs
                .iter()
                .map(|dir| fs::read_to_string(dir.join("supervisors/cgroup.procs")));
            let lists: Vec<String> = lists.filter_map(Result::ok).collect();
            lists
                .iter()
                .flat_map(|l| l.lines())
                .map(|pid| pid.parse().unwrap())
                .collect()
        };
        let is_spawner = |pid: &i32| {
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.is_empty() || name.starts_with(b"gantry-runtime\0spawner")
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !std::thread::panicking() && !alive().iter().all(is_spawner) {
            assert!(
                Instant::now() < deadline,
                "supervisors are left: {:?}",
                alive()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nobody waits for them, so their numbers stay theirs.
        let own = || -> Vec<i32> {
            let lives = |pid: &u32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
            };
            let living = self.spawners.iter().copied().filter(lives);
            living.map(u32::cast_signed).collect()
        };
        let left = || {
            !own().is_empty()
                || !spawners(&self.instance).is_empty()
                || dirs.iter().any(|dir| dir.exists())
        };
        while left() && Instant::now() < deadline {
            // Also spawners that have just been started and are not in there yet.
            let dying = alive()
                .into_iter()
                .chain(spawners(&self.instance))
                .chain(own());
            for pid in dying.filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            for dir in &dirs {
                let inner = fs::read_dir(dir).into_iter().flatten().flatten();
                for inner in inner.filter(|entry| entry.path().is_dir()) {
                    let _ = fs::remove_dir(inner.path());
                }
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// Spawners of a test's instance, by their command line.
fn spawners(instance: &str) -> Vec<i32> {
    let title = format!("gantry-runtime\0spawner\0--cgroup\0{instance}/supervisors\0");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        name.starts_with(title.as_bytes())
    })
    .collect()
}

fn command(arguments: &[&str]) -> Process {
    Process {
        args: arguments.iter().map(|&a| a.into()).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        ..Process::default()
    }
}

fn shell(script: &str) -> Process {
    command(&["/bin/sh", "-c", script])
}

/// Everything that comes, by stream, and the exit if it is an exec's.
async fn rest(output: &mut Output) -> (String, String, Option<Exit>) {
    let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(out) = output.next().await.unwrap() {
        match out {
            Out::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Out::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Out::Exited(e) => exit = Some(e),
        }
    }
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(stdout), text(stderr), exit)
}

/// Reads until the output ends with `end`.
async fn until(output: &mut Output, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        match output.next().await.unwrap() {
            Some(Out::Stdout(bytes) | Out::Stderr(bytes)) => {
                text += std::str::from_utf8(&bytes).unwrap();
            }
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

/// The lines of a log file: text and stream.
fn log_lines(path: &Path) -> Vec<(String, String)> {
    let parse = |line| -> (String, String) {
        let mut fields: BTreeMap<String, String> = serde_json::from_str(line).unwrap();
        (
            fields.remove("log").unwrap(),
            fields.remove("stream").unwrap(),
        )
    };
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(parse)
        .collect()
}

#[tokio::test]
async fn exit_codes_are_the_programs_own() {
    let world = World::new().await;
    assert_eq!(world.exit_code(&["/bin/true"]).await, 0);
    assert_eq!(world.exit_code(&["/bin/sh", "-c", "exit 7"]).await, 7);
    let handle = world
        .start(world.spawn_of(command(&["/bin/sleep", "1000"])))
        .await
        .unwrap();
    handle.signal(9).await.unwrap();
    assert_eq!(handle.exited().await.code, 137);
    for (program, code) in [("/bin/missing", 127), ("/bin/text", 126), ("/etc", 126)] {
        let spawn = world.spawn_of(command(&[program]));
        let run_dir = spawn.run_dir.clone();
        let handle = world.spawner.spawn(spawn, vec![], vec![]).await.unwrap();
        let error = handle.started().await.unwrap_err();
        assert_eq!(error.code, code, "{program}: {}", error.message);
        handle.gone().await;
        assert!(!run_dir.join("sock").exists());
        assert!(matches!(adopt(&run_dir).await.unwrap(), Adopted::Never));
    }
}

#[tokio::test]
async fn output_reaches_client_and_log_before_the_exit_does() {
    let world = World::new().await;
    let spawn = world.spawn_of(shell(
        "echo out; echo err >&2; printf 'no end <&>\\377'; exit 3",
    ));
    let run_dir = spawn.run_dir.clone();
    let (handle, mut stream) = world.start_attached(spawn, OUTPUT).await;
    assert_eq!(handle.exited().await.code, 3);
    let mut lines = log_lines(&run_dir.join("log"));
    lines.sort();
    let line = |text: &str, stream: &str| (text.to_owned(), stream.to_owned());
    assert_eq!(
        lines,
        [
            line("err\n", "stderr"),
            line("no end <&>\u{fffd}", "stdout"),
            line("out\n", "stdout"),
        ]
    );
    let mut bytes = (Vec::new(), Vec::new());
    while let Some(out) = stream.output.next().await.unwrap() {
        match out {
            Out::Stdout(b) => bytes.0.extend_from_slice(&b),
            Out::Stderr(b) => bytes.1.extend_from_slice(&b),
            Out::Exited(_) => panic!("an exit on a container's stream"),
        }
    }
    assert_eq!(bytes.0, b"out\nno end <&>\xff");
    assert_eq!(bytes.1, b"err\n");
    handle.gone().await;
    assert!(!run_dir.join("sock").exists());
    assert!(matches!(
        adopt(&run_dir).await.unwrap(),
        Adopted::Exited(Exit { code: 3, .. })
    ));
}

#[tokio::test]
async fn a_fast_writer_loses_no_line_over_rotations() {
    let world = World::new().await;
    let mut spawn = world.spawn_of(command(&["/bin/seq", "1", "300000"]));
    let log = spawn.run_dir.join("log");
    spawn.log = Some(Log {
        path: log.clone(),
        max_size: Some(1 << 20),
        max_files: 1000,
        attrs: String::new(),
    });
    let handle = world.start(spawn).await.unwrap();
    assert_eq!(handle.exited().await.code, 0);
    let mut files: Vec<PathBuf> = (1..1000)
        .rev()
        .map(|n| log.with_file_name(format!("log.{n}")))
        .filter(|path| path.exists())
        .collect();
    assert!(files.len() > 10, "{} rotations", files.len());
    files.push(log);
    let lines = files.iter().flat_map(|path| log_lines(path));
    let numbers: Vec<u32> = lines
        .map(|(text, _)| text.trim().parse().unwrap())
        .collect();
    assert!(
        numbers.iter().copied().eq(1..=300_000),
        "{} lines",
        numbers.len()
    );
}

#[tokio::test]
async fn a_slow_client_gets_everything_and_so_does_the_log() {
    let world = World::new().await;
    let spawn = world.spawn_of(command(&["/bin/seq", "1", "600000"]));
    let log = spawn.run_dir.join("log");
    let (handle, mut stream) = world.start_attached(spawn, OUTPUT).await;
    // The container is held up by the client that does not read: it cannot have ended.
    let second = handle.attach(OUTPUT).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(300), handle.exited()).await;
    assert!(waited.is_err());
    drop(second);
    let (text, _, _) = rest(&mut stream.output).await;
    assert!(
        text.lines()
            .map(|l| l.parse::<u32>().unwrap())
            .eq(1..=600_000)
    );
    assert_eq!(handle.exited().await.code, 0);
    assert_eq!(log_lines(&log).len(), 600_000);
}

#[tokio::test]
async fn a_client_that_vanishes_does_not_hold_the_container() {
    let world = World::new().await;
    let spawn = world.spawn_of(command(&["/bin/seq", "1", "600000"]));
    let (handle, stream) = world.start_attached(spawn, OUTPUT).await;
    drop(stream);
    assert_eq!(handle.exited().await.code, 0);
}

#[tokio::test]
async fn a_new_daemon_finds_the_container_running_and_how_it_ended() {
    let world = World::new().await;
    let mut spawn = world.spawn_of(shell("read code; exit $code"));
    spawn.stdin = Stdin::Open;
    let run_dir = spawn.run_dir.clone();
    let handle = world.start(spawn.clone()).await.unwrap();
    let started = handle.started().await.unwrap();
    drop(handle);
    let Adopted::Running(handle, state) = adopt(&run_dir).await.unwrap() else {
        panic!("not found running");
    };
    assert_eq!(
        (state.pid, state.start_ticks),
        (started.pid, started.start_ticks)
    );
    assert_eq!(handle.started().await.unwrap(), started);
    let name = fs::read_to_string(format!("/proc/{}/cmdline", state.supervisor)).unwrap();
    let name = name.trim_end_matches('\0').replace('\0', " ");
    assert_eq!(name, format!("gantry-runtime supervisor {}", spawn.id));
    let mut stream = handle.attach(ALL).await.unwrap();
    stream
        .input
        .write(Bytes::from_static(b"5\n"))
        .await
        .unwrap();
    assert_eq!(handle.exited().await.code, 5);
    handle.gone().await;

    // Now it ends while nobody looks.
    let handle = world.start(spawn).await.unwrap();
    let mut stream = handle.attach(ALL).await.unwrap();
    drop(handle);
    stream
        .input
        .write(Bytes::from_static(b"6\n"))
        .await
        .unwrap();
    assert_eq!(stream.output.next().await.unwrap(), None);
    assert!(matches!(
        adopt(&run_dir).await.unwrap(),
        Adopted::Exited(Exit { code: 6, .. })
    ));
}

#[tokio::test]
async fn a_killed_supervisor_takes_the_container_along() {
    let world = World::new().await;
    let spawn = world.spawn_of(command(&["/bin/sleep", "1000"]));
    let run_dir = spawn.run_dir.clone();
    let handle = world.start(spawn).await.unwrap();
    let state: proto::StateFile =
        serde_json::from_slice(&fs::read(run_dir.join("state.json")).unwrap()).unwrap();
    let supervisor = rustix::process::Pid::from_raw(state.supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert_eq!(handle.exited().await.code, 137);
    assert!(matches!(adopt(&run_dir).await.unwrap(), Adopted::Lost));
    // Dead, though whoever it was handed to may not have reaped it yet.
    let stat = fs::read_to_string(format!("/proc/{}/stat", state.pid)).unwrap_or_default();
    let ticks = gantry_linux::program::start_ticks(state.pid);
    let reused = ticks.is_ok_and(|ticks| ticks != state.start_ticks);
    assert!(stat.is_empty() || stat.contains(") Z ") || reused, "{stat}");
}

#[tokio::test]
async fn stdin_once_ends_with_its_client_and_open_stdin_does_not() {
    let world = World::new().await;
    let mut spawn = world.spawn_of(command(&["/bin/cat"]));
    spawn.stdin = Stdin::Once;
    let (handle, mut stream) = world.start_attached(spawn.clone(), ALL).await;
    let big = Bytes::from("0123456789abcdef".repeat(20_000));
    let copy = big.clone();
    let write = async {
        stream.input.write(copy).await.unwrap();
        stream.input.close().await.unwrap();
    };
    let ((), (text, _, _)) = tokio::join!(write, rest(&mut stream.output));
    assert!(text.as_bytes() == big, "{} of {}", text.len(), big.len());
    assert_eq!(handle.exited().await.code, 0);
    handle.gone().await;

    // A client that is simply gone ends it too, and what it sent before is read.
    let (handle, mut stream) = world.start_attached(spawn.clone(), ALL).await;
    let mut second = handle.attach(OUTPUT).await.unwrap();
    stream
        .input
        .write(Bytes::from_static(b"last words\n"))
        .await
        .unwrap();
    drop(stream);
    until(&mut second.output, "last words\n").await;
    assert_eq!(handle.exited().await.code, 0);
    handle.gone().await;

    spawn.stdin = Stdin::Open;
    let (handle, mut stream) = world.start_attached(spawn, ALL).await;
    stream
        .input
        .write(Bytes::from_static(b"one\n"))
        .await
        .unwrap();
    until(&mut stream.output, "one\n").await;
    stream.input.close().await.unwrap();
    let mut second = handle.attach(ALL).await.unwrap();
    second
        .input
        .write(Bytes::from_static(b"two\n"))
        .await
        .unwrap();
    until(&mut second.output, "two\n").await;
    handle.signal(9).await.unwrap();
    assert_eq!(handle.exited().await.code, 137);
}

#[tokio::test]
async fn a_terminal_has_a_size_and_one_stream() {
    let world = World::new().await;
    let mut process = shell("stty size; read x; stty size; echo err >&2; read y; exit 4");
    process.terminal = true;
    let mut spawn = world.spawn_of(process);
    spawn.stdin = Stdin::Once;
    spawn.console_size = Some((80, 24));
    let log = spawn.run_dir.join("log");
    let (handle, mut stream) = world.start_attached(spawn, ALL).await;
    until(&mut stream.output, "24 80\r\n").await;
    stream.input.resize(100, 40).await.unwrap();
    stream
        .input
        .write(Bytes::from_static(b"x\r"))
        .await
        .unwrap();
    until(&mut stream.output, "40 100\r\nerr\r\n").await;
    stream
        .input
        .write(Bytes::from_static(b"y\r"))
        .await
        .unwrap();
    assert_eq!(handle.exited().await.code, 4);
    assert!(log_lines(&log).contains(&("40 100\r\n".into(), "stdout".into())));
}

async fn exec(handle: &Handle, process: Process, streams: Streams) -> ExecSession {
    let session = handle.exec(process, None, streams, Some((70, 20))).await;
    session.unwrap().unwrap()
}

#[tokio::test]
async fn execs_have_streams_and_exit_codes_of_their_own() {
    let world = World::new().await;
    let handle = world
        .start(world.spawn_of(command(&["/bin/sleep", "1000"])))
        .await
        .unwrap();
    let mut session = exec(&handle, shell("echo out; echo err >&2; exit 9"), OUTPUT).await;
    let (stdout, stderr, exit) = rest(&mut session.output).await;
    assert_eq!(
        (stdout.as_str(), stderr.as_str(), exit.unwrap().code),
        ("out\n", "err\n", 9)
    );

    let mut session = exec(&handle, command(&["/bin/cat"]), ALL).await;
    session
        .input
        .write(Bytes::from_static(b"through\n"))
        .await
        .unwrap();
    session.input.close().await.unwrap();
    let (stdout, _, exit) = rest(&mut session.output).await;
    assert_eq!((stdout.as_str(), exit.unwrap().code), ("through\n", 0));

    let missing = handle
        .exec(command(&["/bin/missing"]), None, OUTPUT, None)
        .await
        .unwrap();
    assert_eq!(missing.unwrap_err().code, 127);

    // An exec whose client is gone runs on.
    let session = exec(&handle, shell("read x; echo done >/tmp/done"), ALL).await;
    drop(session);
    let mut session = exec(
        &handle,
        shell("until test -e /tmp/done; do sleep 0.01; done"),
        OUTPUT,
    )
    .await;
    assert_eq!(rest(&mut session.output).await.2.unwrap().code, 0);

    // The end of the container is the end of its execs.
    let mut session = exec(&handle, command(&["/bin/sleep", "1000"]), OUTPUT).await;
    handle.signal(9).await.unwrap();
    assert_eq!(rest(&mut session.output).await.2.unwrap().code, 137);
    assert_eq!(handle.exited().await.code, 137);
    handle.gone().await;
}

#[tokio::test]
async fn an_exec_can_have_a_terminal() {
    let world = World::new().await;
    let handle = world
        .start(world.spawn_of(command(&["/bin/sleep", "1000"])))
        .await
        .unwrap();
    let mut process = shell("stty size; read x; stty size; exit 2");
    process.terminal = true;
    let mut session = exec(&handle, process, ALL).await;
    until(&mut session.output, "20 70\r\n").await;
    session.input.resize(90, 30).await.unwrap();
    session
        .input
        .write(Bytes::from_static(b"\r"))
        .await
        .unwrap();
    let (text, _, exit) = rest(&mut session.output).await;
    assert!(text.ends_with("30 90\r\n"), "{text:?}");
    assert_eq!(exit.unwrap().code, 2);
    handle.signal(9).await.unwrap();
    handle.gone().await;
}

#[tokio::test]
async fn broken_clients_hurt_nobody() {
    let world = World::new().await;
    let mut spawn = world.spawn_of(command(&["/bin/cat"]));
    spawn.stdin = Stdin::Open;
    let run_dir = spawn.run_dir.clone();
    let (handle, mut stream) = world.start_attached(spawn, ALL).await;
    let sock = run_dir.join("sock");
    let mut held = Vec::new();
    let hello = proto::json_frame(kind::REQUEST, &Request::Hello { version: 99 });
    let attach = proto::json_frame(kind::REQUEST, &Request::Attach(ALL));
    for (number, garbage) in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[255; 4096],
        &hello[..hello.len() - 1],
        &proto::header(kind::REQUEST, 100_000),
        &[2, 0, 0, 0, b'R', b'{'],
        &[1, 0, 0, 0, b'E'],
        &[&hello[..], b"\x03\0\0\0R{}", &hello[..]].concat(),
        &[&attach[..], &proto::header(kind::STDIN, 900_000)].concat(),
        &[&attach[..], &[9, 9, 9, 9, 9]].concat(),
    ]
    .into_iter()
    .cycle()
    .take(600)
    .enumerate()
    {
        let mut client = UnixStream::connect(&sock).unwrap();
        let _ = client.write_all(garbage);
        // Some stay, some go at once, some have their answers unread.
        if number % 3 == 0 {
            held.push(client);
        }
    }
    stream
        .input
        .write(Bytes::from_static(b"still here\n"))
        .await
        .unwrap();
    until(&mut stream.output, "still here\n").await;
    drop(held);
    // A refused client is told so.
    let mut client = UnixStream::connect(&sock).unwrap();
    client
        .write_all(&proto::json_frame(
            kind::REQUEST,
            &Request::Signal { number: 9 },
        ))
        .unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[HEADER..]).contains("Refused"));
    let mut session = exec(&handle, command(&["/bin/true"]), OUTPUT).await;
    assert_eq!(rest(&mut session.output).await.2.unwrap().code, 0);
    handle.signal(9).await.unwrap();
    assert_eq!(handle.exited().await.code, 137);
}

/// `true` over and over while every CPU is busy: no start hangs and no exit is lost. `GANTRY_TEST_STARTS` sets how often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exit_is_lost_under_load() {
    let count = std::env::var("GANTRY_TEST_STARTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let world = World::new().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (0..std::thread::available_parallelism().unwrap().get() * 2)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
        })
        .collect();
    for round in 0..count / 4 {
        let four = (0..4).map(|_| world.exit_code(&["/bin/true"]));
        let codes = futures_util::future::join_all(four).await;
        assert_eq!(codes, [0; 4], "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    for thread in load {
        thread.join().unwrap();
    }
}

/// A daemon that dies while a start is under way: the container runs and is found, or it never ran.
#[test]
fn no_container_runs_unseen() {
    let daemon = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    for round in 0..20 {
        let first = daemon();
        let mut world = first.block_on(World::new());
        let spawn = world.spawn_of(shell("echo ran >/tmp/ran; exec sleep 1000"));
        let run_dir = spawn.run_dir.clone();
        let handle = first
            .block_on(world.spawner.spawn(spawn, vec![], vec![]))
            .unwrap();
        // Some die at once, some while the supervisor works.
        let deadline = Instant::now() + Duration::from_secs(10);
        while round % 2 == 0 && !run_dir.join("sock").exists() {
            assert!(Instant::now() < deadline, "round {round}");
        }
        std::thread::sleep(Duration::from_micros(round * 100));
        // All its descriptors are closed before a second one can look.
        drop(handle);
        drop(first);
        let second = daemon();
        second.block_on(async {
            world.replace_spawner().await;
            match adopt(&run_dir).await.unwrap() {
                Adopted::Running(handle, _) => {
                    handle.signal(9).await.unwrap();
                    assert_eq!(handle.exited().await.code, 137);
                    handle.gone().await;
                }
                Adopted::Never => {
                    let ran = world.root().join("tmp/ran");
                    // Its end waits for every supervisor's.
                    let dir = std::mem::replace(&mut world.dir, tempfile::tempdir().unwrap());
                    drop(world);
                    assert!(!ran.exists(), "round {round}");
                    drop(dir);
                }
                other => panic!("round {round}: {other:?}"),
            }
        });
    }
}

#[tokio::test]
async fn a_dead_spawner_is_replaced_and_leaves_containers_alone() {
    let world = World::new().await;
    let handle = world
        .start(world.spawn_of(command(&["/bin/sleep", "1000"])))
        .await
        .unwrap();
    let spawner = world.spawner.process_id().await.unwrap();
    let spawner = rustix::process::Pid::from_raw(spawner.cast_signed()).unwrap();
    let pidfd = rustix::process::pidfd_open(spawner, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(spawner, rustix::process::Signal::KILL).unwrap();
    let mut ended = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).unwrap();
    assert_eq!(world.exit_code(&["/bin/true"]).await, 0);
    handle.signal(9).await.unwrap();
    assert_eq!(handle.exited().await.code, 137);
}

#[tokio::test]
async fn a_spawn_may_be_large_and_have_many_descriptors() {
    let world = World::new().await;
    let mut process = shell("exit ${#LARGE}");
    process.env.push(format!("LARGE={}", "x".repeat(7)));
    process.env.push(format!("OTHER={}", "x".repeat(100_000)));
    let mut spawn = world.spawn_of(process);
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for _ in 0..600 {
        sockets.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().into());
        spawn.ports.push(Forward {
            udp: false,
            target: (Ipv4Addr::LOCALHOST, 1).into(),
        });
    }
    let handle = world.spawner.spawn(spawn, sockets, vec![]).await.unwrap();
    assert_eq!(handle.exited().await.code, 7);
    handle.gone().await;
}

#[tokio::test]
async fn published_ports_are_forwarded_and_freed() {
    let world = World::new().await;
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (tcp_port, udp_port) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp_target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forward = |udp, target: SocketAddr| Forward { udp, target };
    let mut spawn = world.spawn_of(command(&["/bin/sleep", "1000"]));
    spawn.ports = vec![
        forward(false, target.local_addr().unwrap()),
        forward(true, udp_target.local_addr().unwrap()),
    ];
    let sockets = vec![tcp.into(), udp.into()];
    let handle = world.spawner.spawn(spawn, sockets, vec![]).await.unwrap();
    handle.started().await.unwrap();

    // The server answers only after the client has ended its half.
    let server = std::thread::spawn(move || {
        let mut servers = Vec::new();
        for _ in 0..8 {
            let (mut connection, _) = target.accept().unwrap();
            servers.push(std::thread::spawn(move || {
                let mut bytes = Vec::new();
                connection.read_to_end(&mut bytes).unwrap();
                bytes.reverse();
                connection.write_all(&bytes).unwrap();
            }));
        }
        servers.into_iter().for_each(|s| s.join().unwrap());
    });
    let clients: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 + number) as u8).collect();
                let mut client = TcpStream::connect(tcp_port).unwrap();
                client.write_all(&sent).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
                let mut received = Vec::new();
                client.read_to_end(&mut received).unwrap();
                received.reverse();
                assert!(received == sent);
            })
        })
        .collect();
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    server.join().unwrap();

    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client.connect(udp_port).unwrap();
    client.send(b"ping").unwrap();
    let mut buffer = [0; 16];
    let (length, peer) = udp_target.recv_from(&mut buffer).unwrap();
    udp_target.send_to(&buffer[..length], peer).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 4);

    assert!(TcpListener::bind(tcp_port).is_err());
    handle.signal(9).await.unwrap();
    handle.exited().await;
    TcpListener::bind(tcp_port).unwrap();
    UdpSocket::bind(udp_port).unwrap();
}

/// The numbers behind the promises; run with `--ignored --nocapture` and `GANTRY_RUNTIME` naming the shipped program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, does not judge"]
async fn measure() {
    let world = World::new().await;
    assert_eq!(world.exit_code(&["/bin/true"]).await, 0);
    let (mut started, mut exited, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        let spawn = world.spawn_of(command(&["/bin/true"]));
        let begin = Instant::now();
        let handle = world.spawner.spawn(spawn, vec![], vec![]).await.unwrap();
        handle.started().await.unwrap();
        started.push(begin.elapsed());
        handle.exited().await;
        exited.push(begin.elapsed());
        handle.gone().await;
        gone.push(begin.elapsed());
    }
    for (what, mut times) in [("started", started), ("exited", exited), ("gone", gone)] {
        times.sort();
        println!(
            "spawn -> {what}: min {:?}, median {:?}, p95 {:?}",
            times[0], times[100], times[190]
        );
    }

    let handle = world
        .start(world.spawn_of(command(&["/bin/sleep", "1000"])))
        .await
        .unwrap();
    let mut execs = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        let mut session = exec(&handle, command(&["/bin/true"]), OUTPUT).await;
        rest(&mut session.output).await;
        execs.push(begin.elapsed());
    }
    execs.sort();
    println!(
        "exec true: min {:?}, median {:?}, p95 {:?}",
        execs[0], execs[100], execs[190]
    );
    handle.signal(9).await.unwrap();
    handle.gone().await;

    let mut handles = Vec::new();
    let mut pids = Vec::new();
    for _ in 0..20 {
        let spawn = world.spawn_of(command(&["/bin/sleep", "1000"]));
        let state = spawn.run_dir.join("state.json");
        handles.push(world.start(spawn).await.unwrap());
        let state: proto::StateFile = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
        pids.push(state.supervisor);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (mut pss, mut private) = (0, 0);
    for pid in &pids {
        for line in fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .unwrap()
            .lines()
        {
            let value = || {
                line.split_ascii_whitespace()
                    .nth(1)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            };
            if line.starts_with("Pss:") {
                pss += value();
            }
            if line.starts_with("Private_") {
                private += value();
            }
        }
    }
    println!(
        "20 idle supervisors: PSS {} KiB, private {} KiB each",
        pss / 20,
        private / 20
    );
    for handle in &handles {
        handle.signal(9).await.unwrap();
        handle.gone().await;
    }

    let line = "0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ and the end of this line.\n";
    let text = line.repeat((300 << 20) / line.len());
    fs::write(world.root().join("tmp/text"), &text).unwrap();
    let mut spawn = world.spawn_of(command(&["/bin/cat", "/tmp/text"]));
    let log = spawn.run_dir.join("log");
    spawn.log = Some(Log {
        path: log.clone(),
        max_size: Some(100 << 20),
        max_files: 100,
        attrs: String::new(),
    });
    let begin = Instant::now();
    let handle = world.start(spawn).await.unwrap();
    assert_eq!(handle.exited().await.code, 0);
    let rate = text.len() as f64 / 1e6 / begin.elapsed().as_secs_f64();
    let mut lines = 0;
    for entry in fs::read_dir(log.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("log")
        {
            lines += fs::read(path)
                .unwrap()
                .iter()
                .filter(|&&b| b == b'\n')
                .count();
        }
    }
    assert_eq!(lines, text.len() / line.len());
    println!("logging: {rate:.0} MB/s of output, {lines} lines, none lost");
}
