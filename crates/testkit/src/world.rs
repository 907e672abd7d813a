//! A running platform with everything of its own.

use crate::run::{Done, eventually, run};
use crate::{images, leftovers};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the daemon may take to serve, also on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A client that takes longer hangs, and one on a terminal does not mind SIGTERM. Options of timeout(1).
const CLIENT_LIMIT: [&str; 2] = ["--kill-after=5", "90"];

/// What a world is like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// In a network namespace of its own.
    pub isolated: bool,
    /// More words for `gantry up`.
    pub flags: Vec<String>,
    /// Cgroup folders that the daemon joins before it becomes `gantry`.
    pub cgroups: Vec<PathBuf>,
}

/// A running `gantry up` and what belongs to it. See the crate's front page.
#[derive(Debug)]
pub struct World {
    program: PathBuf,
    folder: tempfile::TempDir,
    options: Options,
    daemon: Option<Child>,
    namespace: Option<Child>,
    starts: u32,
}

impl World {
    /// A running platform in this network namespace.
    #[track_caller]
    pub fn new(program: &str) -> Self {
        Self::with(program, Options::default())
    }

    /// A running platform in a network namespace of its own.
    #[track_caller]
    pub fn isolated(program: &str) -> Self {
        Self::with(
            program,
            Options {
                isolated: true,
                ..Options::default()
            },
        )
    }

    #[track_caller]
    pub fn with(program: &str, options: Options) -> Self {
        let mut world = Self::stopped(program, options);
        world.up();
        world
    }

    /// The directories (and the namespace) without a daemon yet.
    #[track_caller]
    pub fn stopped(program: &str, options: Options) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "whole-program tests make containers: run them as root"
        );
        let folder = tempfile::Builder::new()
            .prefix("gantry-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        std::fs::create_dir(folder.path().join("docker-config")).expect("a folder can be made");
        let namespace = options.isolated.then(network_namespace);
        Self {
            program: program.into(),
            folder,
            options,
            daemon: None,
            namespace,
            starts: 0,
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }
    /// For files of the test itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("docker.sock")
    }
    /// The name that everything global of this world carries.
    #[track_caller]
    pub fn instance(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("instance"))
            .expect("the daemon keeps its instance's name in D/instance")
            .trim()
            .to_owned()
    }
    /// Process id of the running daemon.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// Starts the daemon and waits until it serves.
    #[track_caller]
    pub fn up(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        self.starts += 1;
        let log = self.log();
        let file = std::fs::File::create(&log).expect("a log file can be made");
        let mut command = self.daemon_command();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor can be doubled"))
            .stderr(file);
        let mut child = command.spawn().expect("gantry can be started");
        let ready = eventually("gantry up", START_LIMIT, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.lines().any(|line| line.starts_with("ready in ")) {
                return Ok(Ok(()));
            }
            match child.try_wait() {
                Ok(Some(status)) => Ok(Err(format!("gantry up ended ({status}):\n{text}"))),
                _ => Err(format!("it says:\n{text}")),
            }
        });
        if let Err(text) = ready {
            panic!("{text}");
        }
        self.daemon = Some(child);
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join(format!("up.{}.log", self.starts))
    }

    /// What the daemon said since its last start.
    pub fn talk(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn daemon_command(&self) -> Command {
        let mut words: Vec<String> = Vec::new();
        if !self.options.cgroups.is_empty() {
            let script = "for f in $FOLDERS; do echo 0 >$f/cgroup.procs; done; exec \"$@\"";
            words.extend(["sh", "-c", script, "sh"].map(str::to_owned));
        }
        words.push(self.program.to_string_lossy().into_owned());
        words.push("up".to_owned());
        let mut command = self.enter(&words[0]);
        command
            .args(&words[1..])
            .args(self.dir_flags())
            .args(&self.options.flags);
        command.args(without_defaults(&self.options.flags));
        let folders: Vec<_> = self
            .options
            .cgroups
            .iter()
            .map(|f| f.to_string_lossy())
            .collect();
        command.env("FOLDERS", folders.join(" "));
        command
    }

    fn dir_flags(&self) -> [String; 4] {
        [
            "--data-dir".to_owned(),
            self.data_dir().to_string_lossy().into_owned(),
            "--run-dir".to_owned(),
            self.run_dir().to_string_lossy().into_owned(),
        ]
    }

    /// `program` in the world's network namespace.
    pub fn enter(&self, program: &str) -> Command {
        let words = self.enter_words();
        if words.is_empty() {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.args(words).arg(program);
        command
    }

    /// Listens on a TCP port in the world's network namespace as a foreign program would, and lets it go again. Answers
    /// with the kernel's refusal, or nothing.
    #[track_caller]
    pub fn try_bind(&self, address: &str, port: &str) -> String {
        let mut perl = self.enter("perl");
        let script = "use IO::Socket::INET; IO::Socket::INET->new(Listen => 1, LocalAddr => $ARGV[0], LocalPort => $ARGV[1], Proto => 'tcp') or print $!";
        run(perl.args(["-e", script, address, port]), None).ok()
    }

    fn enter_words(&self) -> Vec<String> {
        self.namespace
            .iter()
            .map(|holder| format!("--net=/proc/{}/ns/net", holder.id()))
            .collect()
    }

    /// `kill -9` of the daemon, and of nothing else.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().expect("the daemon can be killed");
        daemon.wait().expect("the daemon can be waited for");
    }

    /// `None` when it has ended already (by `gantry down`), otherwise as [`World::terminate`].
    pub fn terminate_if_running(&mut self) -> Option<i32> {
        let ended = self
            .daemon
            .as_mut()
            .is_none_or(|daemon| matches!(daemon.try_wait(), Ok(Some(_))));
        if ended {
            self.daemon = None;
            return None;
        }
        Some(self.terminate())
    }

    /// SIGTERM, and the exit code.
    #[track_caller]
    pub fn terminate(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("the daemon can be signalled");
        let status = daemon.wait().expect("the daemon can be waited for");
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// The daemon was ended by somebody else: takes note. Panics when it runs on.
    #[track_caller]
    pub fn reap(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        eventually("the daemon's end", START_LIMIT, || {
            match daemon.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// What a power cut leaves: no process of the instance, no cgroup, an empty run directory; the data stays.
    /// The daemon must be gone already.
    #[track_caller]
    pub fn power_cut(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs");
        let instance = self.instance();
        eventually("the end of every process", START_LIMIT, || {
            let pids = leftovers::cgroup_members(&instance);
            for pid in &pids {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if pids.is_empty() {
                Ok(())
            } else {
                Err(format!("{pids:?}"))
            }
        });
        leftovers::remove_cgroups(&instance);
        std::fs::remove_dir_all(self.run_dir()).expect("the run directory can be removed");
        // A new machine has a new network: everything that was set up is gone.
        if let Some(mut holder) = self.namespace.take() {
            let _ = holder.kill();
            let _ = holder.wait();
            self.namespace = Some(network_namespace());
        }
    }

    /// Our own command on this instance.
    #[track_caller]
    pub fn gantry(&self, words: &[&str]) -> Done {
        self.gantry_with(words, None)
    }

    #[track_caller]
    pub fn gantry_with(&self, words: &[&str], input: Option<&[u8]>) -> Done {
        let mut command = self.enter("timeout");
        command.args(CLIENT_LIMIT).arg(&self.program).args(words);
        if words.first() == Some(&"up") {
            command.args(without_defaults(words));
        }
        command
            .env("GANTRY_DATA_DIR", self.data_dir())
            .env("GANTRY_RUN_DIR", self.run_dir());
        run(&mut command, input)
    }

    /// The real docker client on this world's socket.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> Done {
        run(&mut self.docker_command(words), None)
    }

    #[track_caller]
    pub fn docker_with(&self, words: &[&str], input: &[u8]) -> Done {
        run(&mut self.docker_command(words), Some(input))
    }

    /// The same, not started yet.
    pub fn docker_command(&self, words: &[&str]) -> Command {
        let mut command = self.enter("timeout");
        command
            .args(CLIENT_LIMIT)
            .arg("docker")
            .args(words)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.folder.path().join("docker-config"))
            .env("DOCKER_CLI_HINTS", "false")
            .env_remove("DOCKER_API_VERSION")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// The real kubectl on this world's Kubernetes API.
    #[track_caller]
    pub fn kubectl(&self, words: &[&str]) -> Done {
        run(&mut self.kube_command("kubectl", words), None)
    }

    #[track_caller]
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Done {
        run(
            &mut self.kube_command("kubectl", words),
            Some(input.as_bytes()),
        )
    }

    /// A Kubernetes client that `make` keeps in `target/tools`, not started yet.
    pub fn kube_command(&self, client: &str, words: &[&str]) -> Command {
        let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools");
        let mut command = self.enter("timeout");
        command
            .args(CLIENT_LIMIT)
            .arg(Path::new(tools).join(client))
            .args(words)
            .env("KUBECONFIG", self.run_dir().join("kubeconfig"))
            .env("HOME", self.folder.path());
        command
    }

    /// Brings `busybox:latest` in.
    #[track_caller]
    pub fn load_busybox(&self) {
        let done = self.docker_with(&["load"], &images::busybox_archive());
        assert_eq!(done.ok(), "Loaded image: busybox:latest");
    }

    /// `gantry down --purge`; then nothing may be left.
    #[track_caller]
    pub fn purge(mut self) {
        let left = self.purge_now();
        assert!(
            left.is_empty(),
            "left after `gantry down --purge`:\n{}",
            left.join("\n")
        );
    }

    /// What is on the machine of this world now.
    pub fn leftovers(&self, instance: &str) -> Vec<String> {
        leftovers::find(&leftovers::Traces {
            instance,
            folder: self.folder.path(),
            data_dir: &self.data_dir(),
            run_dir: &self.run_dir(),
            enter: &self.enter_words(),
        })
    }

    fn purge_now(&mut self) -> Vec<String> {
        let instance =
            std::fs::read_to_string(self.data_dir().join("instance")).unwrap_or_default();
        let done = self.gantry(&["down", "--purge"]);
        if let Some(mut daemon) = self.daemon.take() {
            // Ended by `down`; killing is for the case that it failed.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let mut left = self.leftovers(if instance.trim().is_empty() {
            "gantry-never-named"
        } else {
            instance.trim()
        });
        if done.code != 0 {
            left.push(done.to_string());
        }
        if let Some(mut holder) = self.namespace.take() {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon said:\n{}", self.talk());
            eprintln!("--- processes:\n{}", processes());
        }
        if self.namespace.is_none() && self.daemon.is_none() && !self.data_dir().exists() {
            return;
        }
        let left = self.purge_now();
        if !left.is_empty() {
            let text = format!("left after `gantry down --purge`:\n{}", left.join("\n"));
            if std::thread::panicking() {
                eprintln!("{text}");
            } else {
                panic!("{text}");
            }
        }
    }
}

/// The processes that may be part of a test that failed: each with its terminal's foreground group and what it sleeps in.
fn processes() -> String {
    let format = "pid,ppid,pgid,tpgid,tty,stat,wchan:24,etimes,args";
    let listed = match Command::new("ps").args(["-eww", "-o", format]).output() {
        Ok(done) => String::from_utf8_lossy(&done.stdout).into_owned(),
        Err(error) => return format!("ps: {error}"),
    };
    let ours = |line: &&str| {
        ["gantry", "docker", "script -q"]
            .iter()
            .any(|word| line.contains(word))
            && !line.contains("rustc")
    };
    let cut = |line: &str| line.chars().take(200).collect::<String>();
    let lines: Vec<_> = listed.lines().filter(ours).map(cut).take(100).collect();
    lines.join("\n")
}

/// A process that holds a new network namespace with its loopback up.
#[track_caller]
fn network_namespace() -> Child {
    let holder = Command::new("unshare")
        .args(["--net", "--", "sleep", "infinity"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("unshare can be started");
    let namespace = format!("/proc/{}/ns/net", holder.id());
    let ours = std::fs::read_link("/proc/self/ns/net").expect("/proc is mounted");
    eventually(
        "a network namespace",
        START_LIMIT,
        || match std::fs::read_link(&namespace) {
            Ok(link) if link != ours => Ok(()),
            Ok(_) => Err("not yet".to_owned()),
            Err(e) => Err(e.to_string()),
        },
    );
    run(
        Command::new("nsenter")
            .arg(format!("--net={namespace}"))
            .args(["ip", "link", "set", "lo", "up"]),
        None,
    )
    .ok();
    holder
}

/// Listeners whose default ports are the same for all worlds of a network namespace are off, unless they are asked for.
fn without_defaults<T: AsRef<str>>(flags: &[T]) -> Vec<&'static str> {
    let mut off = Vec::new();
    for flag in ["--registry", "--kube"] {
        if !flags.iter().any(|f| f.as_ref().starts_with(flag)) {
            off.extend([flag, "off"]);
        }
    }
    off
}
