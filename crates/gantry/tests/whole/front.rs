//! `gantry front`: the real docker client over TCP and TLS, what the front may not do, and who has which rights.

use super::{GANTRY, SOON};
use gantry_testkit::{Options, World, eventually};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// An authority, a server's certificate for loopback and a client's, as docker wants them in one folder.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::write(folder.path());
        Self { folder }
    }

    fn write(folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = authority.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        for (name, names, usage) in [
            (
                "server",
                vec!["127.0.0.1".to_owned()],
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            ("", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names).unwrap();
            params.extended_key_usages = vec![usage];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let file = |what: &str| match name {
                "" => folder.join(format!("{what}.pem")),
                name => folder.join(format!("{name}-{what}.pem")),
            };
            std::fs::write(file("cert"), certificate.pem()).unwrap();
            std::fs::write(file("key"), key.serialize_pem()).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flags(&self) -> Vec<String> {
        let flag = |flag: &str, file: &str| format!("--{flag}={}", self.path(file).display());
        vec![
            "--docker=tcp://127.0.0.1:0".to_owned(),
            "--tlsverify".to_owned(),
            flag("tlscacert", "ca.pem"),
            flag("tlscert", "server-cert.pem"),
            flag("tlskey", "server-key.pem"),
        ]
    }
}

fn world(flags: Vec<String>) -> World {
    World::with(
        GANTRY,
        Options {
            flags,
            ..Options::default()
        },
    )
}

/// The address that the kernel chose, as `up` says it.
fn address(world: &World) -> String {
    let talk = world.talk();
    let found = talk
        .lines()
        .find_map(|line| line.strip_prefix("docker on "));
    let found = found.unwrap_or_else(|| panic!("no address in: {talk}"));
    found.split(": ").next().unwrap().to_owned()
}

fn docker(address: &str, certificates: Option<&Path>, words: &[&str]) -> Output {
    let mut command = Command::new("docker");
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent");
    if let Some(folder) = certificates {
        command.env("DOCKER_CERT_PATH", folder).arg("--tlsverify");
    }
    command
        .args(["-H", address])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The front's process: the node's child with that command line.
fn front(world: &World) -> Option<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", world.pid())).ok()?;
    // A child that another thread made is in that thread's list.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", world.pid())).ok()?;
    let mut all = children;
    for task in tasks.flatten() {
        all += &std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    }
    all.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid: &u32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"gantry\0front\0"))
        })
}

#[test]
fn docker_over_tls_from_version_to_exec() {
    let certificates = Certificates::new();
    let mut world = world(certificates.flags());
    world.load_busybox();
    let address_ = address(&world);
    let folder = certificates.folder.path();
    let run = |words: &[&str]| docker(&address_, Some(folder), words);
    let version = run(&["version", "-f", "{{.Server.Version}}"]);
    assert!(version.status.success(), "{}", text(&version.stderr));
    let ran = run(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo over tls; exit 5",
    ]);
    assert_eq!(
        (ran.status.code(), text(&ran.stdout).as_str()),
        (Some(5), "over tls\n"),
        "{}",
        text(&ran.stderr)
    );
    // Standard input ends before the answer comes: half of the connection is closed.
    let mut child = Command::new("docker")
        .env("DOCKER_CERT_PATH", folder)
        .args([
            "--tlsverify",
            "-H",
            &address_,
            "run",
            "--rm",
            "-i",
            "busybox",
            "sh",
            "-c",
            "cat; echo end",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"typed\n").unwrap();
    assert_eq!(
        text(&child.wait_with_output().unwrap().stdout),
        "typed\nend\n"
    );
    assert!(
        run(&["run", "-d", "--name", "a1", "busybox", "sleep", "1000"])
            .status
            .success()
    );
    let exec = run(&["exec", "a1", "sh", "-c", "echo in; exit 7"]);
    assert_eq!(
        (exec.status.code(), text(&exec.stdout).as_str()),
        (Some(7), "in\n")
    );
    // Without a certificate nobody is let in, nor without TLS.
    let stranger = Command::new("docker")
        .env_remove("DOCKER_CERT_PATH")
        .env("HOME", "/nonexistent")
        .args(["--tls", "-H", &address_, "ps"])
        .output()
        .unwrap();
    assert!(!stranger.status.success());
    assert!(!docker(&address_, None, &["ps"]).status.success());
    // A front that dies is replaced; containers and the local socket do not notice.
    let first = eventually("the front", SOON, || {
        front(&world).ok_or("no front".to_owned())
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let second = eventually("another front", SOON, || {
        front(&world)
            .filter(|pid| *pid != first)
            .ok_or("no other front".to_owned())
    });
    eventually("docker over TLS again", SOON, || match run(&["ps", "-q"]) {
        done if done.status.success() => Ok(()),
        done => Err(text(&done.stderr)),
    });
    // It ends with the node, also when that has no time to say so.
    world.kill();
    eventually("the end of the front", SOON, || {
        match Path::new(&format!("/proc/{second}")).exists() {
            true => Err(format!("pid {second} is there")),
            false => Ok(()),
        }
    });
    world.up();
    let again = docker(&address(&world), Some(folder), &["ps", "-q"]);
    assert!(
        again.status.success() && !again.stdout.is_empty(),
        "{}",
        text(&again.stderr)
    );
    // The purge finds also what a killed node left.
    world.kill();
}

#[test]
fn plain_tcp_stays_on_loopback() {
    let world = world(vec!["--docker=tcp://127.0.0.1:0".to_owned()]);
    assert!(
        world
            .talk()
            .contains("every user of this machine is root there"),
        "{}",
        world.talk()
    );
    let done = docker(&address(&world), None, &["version", "-f", "{{.Server.Os}}"]);
    assert_eq!(text(&done.stdout), "linux\n", "{}", text(&done.stderr));
    for (flags, sentence) in [
        (
            vec!["--docker=tcp://0.0.0.0:0"],
            "would give root on this machine to everybody who reaches it",
        ),
        (
            vec!["--docker=tcp://[::]:0"],
            "would give root on this machine to everybody who reaches it",
        ),
        (
            vec!["--docker=tcp://0.0.0.0:0", "--tlscert=/x", "--tlskey=/y"],
            "add --tlsverify",
        ),
        (
            vec!["--docker=tcp://127.0.0.1:0", "--tlsverify"],
            "--tlsverify needs --tlscert and --tlskey",
        ),
        (
            vec!["--docker=tcp://127.0.0.1:0", "--tlscert=/x"],
            "--tlscert and --tlskey go together",
        ),
        (
            vec![
                "--docker=tcp://127.0.0.1:0",
                "--tlscert=/nosuch",
                "--tlskey=/nosuch",
            ],
            "reading --tlscert /nosuch",
        ),
        (
            vec!["--docker=tcp://example.org:1"],
            "needs an address and a port",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(GANTRY)
            .args(["up", "--kube", "off"])
            .args(["--data-dir".as_ref(), folder.path().join("d").as_os_str()])
            .args(["--run-dir".as_ref(), folder.path().join("r").as_os_str()])
            .args(&flags)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(
            text(&output.stderr).contains(sentence),
            "{flags:?}: {}",
            text(&output.stderr)
        );
    }
}

/// One process as the table shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    user: String,
    capabilities: String,
    locked: String,
    program: String,
    listeners: String,
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Sockets that listen in a process's network namespace, by inode.
fn listening(pid: u32, run_dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let read = |table: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
    for table in ["tcp", "tcp6"] {
        for line in read(table).lines().skip(1) {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            if fields[3] == "0A" {
                let loopback = fields[1].starts_with("0100007F:");
                let name = if loopback { "TCP 127.0.0.1" } else { "TCP" };
                found.insert(fields[9].to_owned(), name.to_owned());
            }
        }
    }
    for line in read("unix").lines().skip(1) {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        // __SO_ACCEPTCON
        if fields[3] == "00010000" {
            let path = fields.get(7).copied().unwrap_or("(no name)");
            let path = path.replace(run_dir.to_str().unwrap(), "R");
            // A supervisor binds below a descriptor of its folder, because the whole path may be too long.
            let own = ["R/c/", "/proc/self/fd/"]
                .iter()
                .any(|start| path.starts_with(start));
            let path = match (own, path.rsplit_once('/')) {
                (true, Some((_, name))) => format!("R/c/<id>/{name}"),
                _ => path,
            };
            found.insert(fields[6].to_owned(), path);
        }
    }
    found
}

fn row(pid: u32, world: &World, node: &BTreeMap<String, String>) -> Row {
    let status = status(pid);
    let user = match status["Uid"].split_whitespace().next().unwrap() {
        "0" => "root".to_owned(),
        uid if (61_184..65_520).contains(&uid.parse::<u32>().unwrap()) => {
            "its own, 61184–65519".to_owned()
        }
        uid => uid.to_owned(),
    };
    let empty = |set: &str| u64::from_str_radix(&status[set], 16).unwrap() == 0;
    let capabilities = if ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"]
        .iter()
        .all(|set| empty(set))
    {
        "none, and none to gain"
    } else if status["CapEff"] == node["CapEff"] {
        "all that the node was started with"
    } else {
        "Docker's default set, or what the container asked for"
    };
    let locked = match (status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()) {
        ("1", "0") => "no_new_privs, landlock",
        ("0", "0") => "–",
        (_, "2") => "seccomp",
        other => panic!("{other:?}"),
    };
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let program = match exe.to_str().unwrap() {
        path if path.starts_with("/memfd:") => "sealed copy of `gantry-runtime`",
        path if path == GANTRY => "`gantry`",
        _ => "the image's",
    };
    let sockets = listening(pid, &world.run_dir());
    let mut listeners: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| {
            let link = std::fs::read_link(fd.path()).ok()?;
            let inode = link
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .to_owned();
            sockets.get(&inode).cloned()
        })
        .collect();
    listeners.sort();
    listeners.dedup();
    let name = |l: String| match l.as_str() {
        "TCP 127.0.0.1" => "TCP".to_owned(),
        "TCP" => "TCP".to_owned(),
        path => format!("`{path}`"),
    };
    let mut listeners: Vec<_> = listeners.into_iter().map(name).collect();
    listeners.dedup();
    Row {
        user,
        capabilities: capabilities.to_owned(),
        locked: locked.to_owned(),
        program: program.to_owned(),
        listeners: match listeners.is_empty() {
            true => "–".to_owned(),
            false => listeners.join(", "),
        },
    }
}

#[test]
fn changed_certificates_are_served_and_nobody_is_hung_up_on() {
    let certificates = Certificates::new();
    let world = world(certificates.flags());
    let address = address(&world);
    let folder = certificates.folder.path();
    let old = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(folder.join(name), old.path().join(name)).unwrap();
    }
    let works = |folder: &Path| {
        docker(&address, Some(folder), &["version"])
            .status
            .success()
    };
    assert!(works(folder));
    let first = front(&world).unwrap();
    // A client that is in the middle of something.
    let mut events = Command::new("docker")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("DOCKER_CERT_PATH", folder)
        .args([
            "--tlsverify",
            "-H",
            &address,
            "events",
            "--since",
            "10m",
            "-f",
            "type=volume",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(events.stdout.take().unwrap()));
    let mut number = 0;
    let mut told = |folder: &Path| {
        number += 1;
        let name = format!("v{number}");
        assert!(
            docker(&address, Some(folder), &["volume", "create", &name])
                .status
                .success()
        );
    };
    let mut hear = |name: &str| {
        while !lines
            .next()
            .expect("the stream goes on")
            .unwrap()
            .contains(name)
        {}
    };
    told(folder);
    hear("v1");
    // Half of a pair is not used.
    std::fs::write(folder.join("server-cert.pem"), "nonsense").unwrap();
    eventually("the refusal in the log", SOON, || match world.talk() {
        talk if talk.contains("the front keeps those it has") => Ok(()),
        talk => Err(talk),
    });
    assert!(works(old.path()));
    Certificates::write(folder);
    eventually("the new authority", SOON, || match works(folder) {
        true => Ok(()),
        false => Err("refused".to_owned()),
    });
    assert!(
        !works(old.path()),
        "who has only the old certificates is refused"
    );
    assert_eq!(front(&world), Some(first), "the same process serves");
    told(folder);
    hear("v2");
    events.kill().unwrap();
    events.wait().unwrap();
    // The next front has them too.
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("another front", SOON, || match works(folder) {
        true => Ok(()),
        false => Err("refused".to_owned()),
    });
    assert_ne!(front(&world), Some(first));
}

/// Everything below the node, and what was reparented: every process whose command line or cgroup is this instance's.
fn processes(world: &World) -> BTreeMap<String, u32> {
    let instance = world.instance();
    let front = eventually("the front", SOON, || {
        front(world).ok_or("no front".to_owned())
    });
    let mut found = BTreeMap::from([
        ("`gantry up`".to_owned(), world.pid()),
        ("`gantry front`".to_owned(), front),
    ]);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let inside = |part: &str| {
            cgroups
                .lines()
                .any(|l| l.contains(&format!("/{instance}{part}")))
        };
        let name = if pid == world.pid() || pid == front || !inside("/") {
            continue;
        } else if line.contains("spawner") {
            "`gantry-runtime spawner`"
        } else if line.contains("supervisor") {
            "`gantry-runtime supervisor <id>`"
        } else if line.starts_with("sleep") {
            "a container's program"
        } else {
            panic!("a process that nobody expected: {pid} {line} {cgroups}");
        };
        found.insert(name.to_owned(), pid);
    }
    found
}

/// `docs/processes.md` is what a running instance shows. `GANTRY_BLESS=1` writes it anew.
#[test]
fn the_table_of_processes_and_rights_is_true() {
    let certificates = Certificates::new();
    let world = world(certificates.flags());
    world.load_busybox();
    let run = docker(
        &address(&world),
        Some(certificates.folder.path()),
        &[
            "run",
            "-d",
            "--name",
            "a1",
            "-p",
            "127.0.0.1:0:80",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    assert!(run.status.success(), "{}", text(&run.stderr));
    let node = status(world.pid());
    let found = processes(&world);
    let mut table = String::from(
        "# Processes and their rights\n\n\
         What a running instance with one container and one published port shows in `/proc`. Written and checked by the test\n\
         `the_table_of_processes_and_rights_is_true`; `GANTRY_BLESS=1` writes it anew. `R` is the run directory.\n\n\
         | Process | User | Capabilities | Locked by | Program | Listens on |\n|---|---|---|---|---|---|\n",
    );
    for name in [
        "`gantry up`",
        "`gantry front`",
        "`gantry-runtime spawner`",
        "`gantry-runtime supervisor <id>`",
        "a container's program",
    ] {
        let pid = *found
            .get(name)
            .unwrap_or_else(|| panic!("no process {name}: {found:?}"));
        let row = row(pid, &world, &node);
        writeln!(
            table,
            "| {name} | {} | {} | {} | {} | {} |",
            row.user, row.capabilities, row.locked, row.program, row.listeners
        )
        .unwrap();
    }
    table.push_str(
        "\nThe node binds the TCP listeners and hands them to its front. The supervisor's TCP socket is the published port. What a front may\n\
         not do is tested where it is done: `nothing_can_be_opened_any_more` in `crates/linux/src/landlock.rs`.\n",
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/processes.md");
    if std::env::var_os("GANTRY_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), table);
    // What no table shows: the front opens nothing, neither a file nor a socket of its own.
    let front = found["`gantry front`"];
    let files: Vec<_> = std::fs::read_dir(format!("/proc/{front}/fd"))
        .unwrap()
        .flatten()
        .map(|fd| {
            std::fs::read_link(fd.path())
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let known = ["socket:", "anon_inode:", "/dev/null"];
    assert!(
        files.iter().all(|f| known.iter().any(|k| f.starts_with(k))),
        "{files:?}"
    );
}
