//! Images between nodes and a real registry, with real clients.

use crate::{GANTRY, SOON, busybox};
use gantry_testkit::{Options, World, eventually, run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const REGISTRY: &str = "127.0.0.1:5000";
/// An address of the world's own that is not loopback.
const OTHER: &str = "10.77.0.1";

/// A server in the world's network namespace, where every port is free.
struct Server(Child);

impl Server {
    fn start(world: &World, mut command: Command, address: &str, port: &str) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().unwrap());
        eventually("the server listens", SOON, || {
            if world.try_bind(address, port).is_empty() {
                Err("the port is free".to_owned())
            } else {
                Ok(())
            }
        });
        server
    }

    /// Debian's reference registry with more lines in its configuration.
    fn registry(world: &World, address: &str, more: &str) -> Self {
        let number = address.replace([':', '.'], "-");
        let file = world.folder().join(format!("registry-{number}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n{more}\nhttp:\n  addr: \"{address}\"\n",
            world.folder().join(format!("registry-{number}")).display()
        );
        // What belongs under `http` is written with two blanks in front and stands at the end.
        let (top, http): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| !line.starts_with("  tls"));
        std::fs::write(&file, [top, http].concat().join("\n") + "\n").unwrap();
        let mut command = world.enter("docker-registry");
        command.arg("serve").arg(&file);
        let (host, port) = address.rsplit_once(':').unwrap();
        Self::start(world, command, host, port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The world's other address.
fn with_other_address(world: &World) {
    let mut ip = world.enter("ip");
    run(
        ip.args(["address", "add", &format!("{OTHER}/32"), "dev", "lo"]),
        None,
    )
    .ok();
}

fn openssl(words: &[&str], input: Option<&[u8]>) {
    run(Command::new("openssl").args(words), input).ok();
}

/// A key and a self-signed certificate for these addresses.
fn certificate(folder: &Path, name: &str, addresses: &str) -> (PathBuf, PathBuf) {
    let (key, certificate) = (
        folder.join(format!("{name}.key")),
        folder.join(format!("{name}.crt")),
    );
    openssl(
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            &format!("subjectAltName={addresses}"),
            "-keyout",
            &key.to_string_lossy(),
            "-out",
            &certificate.to_string_lossy(),
        ],
        None,
    );
    (key, certificate)
}

/// `/etc/docker/certs.d/HOST` of this test alone: its port is nobody else's.
struct CertsFolder(PathBuf);

impl CertsFolder {
    fn new(host: &str) -> Self {
        let folder = Path::new("/etc/docker/certs.d").join(host);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for CertsFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that belongs to this process: two tests never have the same at one time.
fn own_port() -> u32 {
    10_000 + std::process::id() % 50_000
}

#[test]
fn basic_authentication() {
    let world = busybox();
    let passwords = world.folder().join("passwords");
    let hashed = run(
        Command::new("htpasswd").args(["-Bbn", "user", "pass"]),
        None,
    )
    .ok();
    std::fs::write(&passwords, hashed).unwrap();
    let more = format!(
        "auth: {{htpasswd: {{realm: test, path: {}}}}}",
        passwords.display()
    );
    let _registry = Server::registry(&world, REGISTRY, &more);
    let name = "127.0.0.1:5000/a/busybox:1";
    world.docker(&["tag", "busybox", name]).ok();
    let refused = world.docker(&["push", name]).fails(1);
    assert!(refused.contains("no basic auth credentials"), "{refused}");
    let wrong = world
        .docker_with(
            &["login", "-u", "user", "--password-stdin", REGISTRY],
            b"wrong",
        )
        .fails(1);
    assert!(
        wrong.contains(
            "login attempt to http://127.0.0.1:5000/v2/ failed with status: 401 Unauthorized"
        ),
        "{wrong}"
    );
    let login = world
        .docker_with(
            &["login", "-u", "user", "--password-stdin", REGISTRY],
            b"pass",
        )
        .ok();
    assert!(login.contains("Login Succeeded"), "{login}");
    world.docker(&["push", name]).ok();
    world
        .docker(&["push", "-a", "127.0.0.1:5000/a/busybox"])
        .ok();
    world.docker(&["rmi", name]).ok();
    world
        .docker(&["pull", "-a", "127.0.0.1:5000/a/busybox"])
        .ok();
    world.docker(&["run", "--rm", name, "true"]).ok();
    // What the registry says of the name, as the client of another engine reads it.
    let mut skopeo = world.enter("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", "--creds", "user:pass"]);
    let seen = run(skopeo.arg(format!("docker://{name}")), None).json();
    let told = world
        .docker(&["image", "inspect", "-f", "{{index .RepoDigests 0}}", name])
        .ok();
    assert!(told.ends_with(seen["Digest"].as_str().unwrap()), "{told}");
    world.docker(&["logout", REGISTRY]).ok();
    world.docker(&["rmi", "-f", name]).ok();
    let refused = world.docker(&["pull", name]).fails(1);
    assert!(refused.contains("no basic auth credentials"), "{refused}");
}

#[test]
fn token_authentication() {
    let world = busybox();
    let folder = world.folder().to_owned();
    let (key, certificate) = certificate(&folder, "token", "DNS:token");
    let (script, log) = (folder.join("token.py"), folder.join("tokens.log"));
    std::fs::write(&script, include_str!("../token_server.py")).unwrap();
    let mut command = world.enter("python3");
    command
        .arg(&script)
        .arg("5001")
        .args([&key, &certificate, &log]);
    let _service = Server::start(&world, command, "127.0.0.1", "5001");
    let more = format!(
        "auth: {{token: {{realm: \"http://127.0.0.1:5001/token\", service: reg, issuer: issuer, rootcertbundle: {}}}}}",
        certificate.display()
    );
    let _registry = Server::registry(&world, REGISTRY, &more);
    let name = "127.0.0.1:5000/team/busybox:1";
    world.docker(&["tag", "busybox", name]).ok();
    let refused = world.docker(&["push", name]).fails(1);
    assert!(
        refused.contains("denied: requested access to the resource is denied"),
        "{refused}"
    );
    let wrong = world
        .docker_with(
            &["login", "-u", "user", "--password-stdin", REGISTRY],
            b"wrong",
        )
        .fails(1);
    assert!(
        wrong.contains("unauthorized: incorrect username or password"),
        "{wrong}"
    );
    world
        .docker_with(
            &["login", "-u", "user", "--password-stdin", REGISTRY],
            b"pass",
        )
        .ok();
    world.docker(&["push", name]).ok();
    // Mounted: the token has to name both repositories.
    let second = "127.0.0.1:5000/team/other:1";
    world.docker(&["tag", "busybox", second]).ok();
    let mounted = world.docker(&["push", second]).ok();
    assert!(mounted.contains("Mounted from team/busybox"), "{mounted}");
    let asked = std::fs::read_to_string(&log).unwrap();
    assert!(
        asked.contains("user repository:team/other:pull,push repository:team/busybox:pull"),
        "{asked}"
    );
    // Not ours to write.
    world.docker(&["tag", "busybox", "127.0.0.1:5000/b:1"]).ok();
    let denied = world.docker(&["push", "127.0.0.1:5000/b:1"]).fails(1);
    assert!(
        denied.contains("denied: requested access to the resource is denied"),
        "{denied}"
    );
    // Everybody may read.
    world.docker(&["logout", REGISTRY]).ok();
    world.docker(&["rmi", name]).ok();
    world.docker(&["pull", name]).ok();
}

#[test]
fn certificates_insecure_registries_and_mirrors() {
    let port = own_port();
    let secure = format!("{OTHER}:{port}");
    let certs = CertsFolder::new(&secure);
    let options = |flags: &[&str]| Options {
        isolated: true,
        flags: flags.iter().map(|&f| f.to_owned()).collect(),
        ..Options::default()
    };
    let mut world = World::stopped(
        GANTRY,
        options(&[
            "--insecure-registry",
            "10.77.0.1:5002",
            "--registry-mirror",
            "http://127.0.0.1:5003",
        ]),
    );
    with_other_address(&world);
    world.up();
    world.load_busybox();
    let info = world
        .docker(&["info", "--format", "{{json .RegistryConfig}}"])
        .json();
    assert_eq!(info["Mirrors"][0], "http://127.0.0.1:5003/");
    assert_eq!(info["IndexConfigs"]["10.77.0.1:5002"]["Secure"], false);

    let folder = world.folder().to_owned();
    let (key, certificate) = certificate(&folder, "server", &format!("IP:{OTHER},IP:127.0.0.1"));
    let (client_key, client) = self::certificate(&folder, "client", "DNS:client");
    let tls = format!(
        "  tls: {{certificate: {}, key: {}, clientcas: [{}]}}",
        certificate.display(),
        key.display(),
        client.display()
    );
    let _secure = Server::registry(&world, &secure, &tls);
    let name = format!("{secure}/a:1");
    world.docker(&["tag", "busybox", &name]).ok();
    let refused = world.docker(&["push", &name]).fails(1);
    assert!(
        refused.contains("x509: certificate signed by unknown authority"),
        "{refused}"
    );
    std::fs::copy(&certificate, certs.0.join("ca.crt")).unwrap();
    let refused = world.docker(&["push", &name]).fails(1);
    assert!(refused.contains("tls: "), "{refused}");
    std::fs::copy(&client, certs.0.join("client.cert")).unwrap();
    let refused = world.docker(&["push", &name]).fails(1);
    assert!(
        refused.contains("missing key client.key for client certificate client.cert"),
        "{refused}"
    );
    std::fs::copy(&client_key, certs.0.join("client.key")).unwrap();
    world.docker(&["push", &name]).ok();
    world.docker(&["rmi", &name]).ok();
    world.docker(&["pull", &name]).ok();

    // Loopback: any certificate, and plain text only where TLS is not spoken.
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}",
        certificate.display(),
        key.display()
    );
    let _loopback = Server::registry(&world, "127.0.0.1:5004", &tls);
    world.docker(&["tag", "busybox", "127.0.0.1:5004/a:1"]).ok();
    world.docker(&["push", "127.0.0.1:5004/a:1"]).ok();

    // Plain text beyond loopback.
    let _open = Server::registry(&world, "10.77.0.1:5005", "");
    world.docker(&["tag", "busybox", "10.77.0.1:5005/a:1"]).ok();
    let refused = world.docker(&["push", "10.77.0.1:5005/a:1"]).fails(1);
    assert!(
        refused.contains("http: server gave HTTP response to HTTPS client"),
        "{refused}"
    );
    let _insecure = Server::registry(&world, "10.77.0.1:5002", "");
    world.docker(&["tag", "busybox", "10.77.0.1:5002/a:1"]).ok();
    world.docker(&["push", "10.77.0.1:5002/a:1"]).ok();

    // A mirror of Docker's own registry.
    let _mirror = Server::registry(&world, "127.0.0.1:5003", "");
    let seed = "127.0.0.1:5003/library/seed:1";
    world.docker(&["tag", "busybox", seed]).ok();
    world.docker(&["push", seed]).ok();
    world.docker(&["pull", "seed:1"]).ok();
    world.docker(&["run", "--rm", "seed:1", "true"]).ok();
}

#[test]
fn docker_pushes_pulls_and_runs_through_a_registry() {
    let world = busybox();
    let refused = world.docker(&["pull", "127.0.0.1:5000/a/none"]).fails(1);
    assert!(refused.contains("connect: connection refused"), "{refused}");
    let _registry = Server::registry(&world, REGISTRY, "");
    let name = "127.0.0.1:5000/a/busybox:1";
    let unknown = world.docker(&["pull", "127.0.0.1:5000/a/none"]).fails(1);
    assert!(
        unknown.contains("manifest for 127.0.0.1:5000/a/none:latest not found: manifest unknown: manifest unknown"),
        "{unknown}"
    );

    world.docker(&["tag", "busybox", name]).ok();
    let pushed = world.docker(&["push", name]).ok();
    assert!(
        pushed.contains("The push refers to repository [127.0.0.1:5000/a/busybox]"),
        "{pushed}"
    );
    assert!(
        pushed.contains(": Pushed") && pushed.contains("1: digest: sha256:"),
        "{pushed}"
    );
    let again = world.docker(&["push", name]).ok();
    assert!(again.contains("Layer already exists"), "{again}");
    world
        .docker(&["tag", "busybox", "127.0.0.1:5000/b/busybox:1"])
        .ok();
    let mounted = world.docker(&["push", "127.0.0.1:5000/b/busybox:1"]).ok();
    assert!(mounted.contains("Mounted from a/busybox"), "{mounted}");

    let id = world
        .docker(&["image", "inspect", "-f", "{{.Id}}", "busybox"])
        .ok();
    world.docker(&["rmi", "-f", id.trim()]).ok();
    assert_eq!(world.docker(&["images", "-q"]).ok(), "");
    // Not here any more: run fetches it.
    assert_eq!(
        world
            .docker(&["run", "--rm", name, "cat", "/www/index.html"])
            .ok()
            .trim(),
        "ok"
    );
    let same = world
        .docker(&["image", "inspect", "-f", "{{.Id}} {{.RepoDigests}}", name])
        .ok();
    assert!(
        same.starts_with(id.trim()) && same.contains("127.0.0.1:5000/a/busybox@sha256:"),
        "{same}"
    );
    let pulled = world.docker(&["pull", name]).ok();
    assert!(
        pulled.contains("Status: Image is up to date for 127.0.0.1:5000/a/busybox:1"),
        "{pulled}"
    );
    world.docker(&["rmi", name]).ok();
    assert_eq!(world.docker(&["images", "-q"]).ok(), "");
}

#[test]
fn our_own_registry() {
    let world = busybox();
    let address = "127.0.0.1:5006";
    let mut command = world.enter(GANTRY);
    command.args(["registry", "--listen", address, "--data-dir"]);
    command.arg(world.folder().join("own"));
    command.arg("--run-dir").arg(world.folder().join("own-run"));
    let _registry = Server::start(&world, command, "127.0.0.1", "5006");
    let name = "127.0.0.1:5006/a/busybox:1";
    world.docker(&["tag", "busybox", name]).ok();
    world.docker(&["push", name]).ok();
    let again = world.docker(&["push", name]).ok();
    assert!(again.contains("Layer already exists"), "{again}");
    let other = "127.0.0.1:5006/b:1";
    world.docker(&["tag", "busybox", other]).ok();
    let mounted = world.docker(&["push", other]).ok();
    assert!(mounted.contains("Mounted from a/busybox"), "{mounted}");
    world.docker(&["rmi", name, other]).ok();
    world
        .docker(&["pull", "-a", "127.0.0.1:5006/a/busybox"])
        .ok();
    world.docker(&["run", "--rm", name, "true"]).ok();
    let unknown = world.docker(&["pull", "127.0.0.1:5006/none"]).fails(1);
    assert!(unknown.contains("not found"), "{unknown}");
}

#[test]
fn disk_verbs_and_prune_with_filters() {
    let world = busybox();
    let gantry = |words: &[&str]| {
        let mut command = world.enter(GANTRY);
        command.args(words).arg("--data-dir").arg(world.data_dir());
        run(command.arg("--run-dir").arg(world.run_dir()), None)
    };
    for (name, label) in [("a", "keep=yes"), ("b", "keep=no"), ("c", "keep=no")] {
        let change = format!("LABEL {label}");
        let tar = [0; 1024];
        let words = ["import", "--change", &change, "-", &format!("{name}:1")];
        world.docker_with(&words, &tar).ok();
    }
    world
        .docker(&["create", "--name", "user", "c:1", "/x"])
        .ok();
    let dry = gantry(&[
        "disk",
        "reclaim",
        "--to",
        "0",
        "--dry-run",
        "--output",
        "json",
    ])
    .json();
    let ids = dry["Images"].as_array().unwrap().len();
    assert_eq!(ids, 3, "{dry}");
    gantry(&["disk", "pin", "a:1"]).ok();
    assert_eq!(gantry(&["disk", "pin"]).ok(), "docker.io/library/a:1");
    let old = world
        .docker(&["image", "prune", "-af", "--filter", "until=24h"])
        .ok();
    assert!(!old.contains("untagged: b:1"), "{old}");
    let pruned = world
        .docker(&["image", "prune", "-af", "--filter", "label=keep=no"])
        .ok();
    assert!(pruned.contains("untagged: b:1"), "{pruned}");
    assert!(
        !pruned.contains("c:1") && !pruned.contains("a:1"),
        "{pruned}"
    );
    // Whether busybox was old enough for the first prune is its maker's affair.
    gantry(&["disk", "reclaim", "--to", "0"]).ok();
    let left = world
        .docker(&["images", "--format", "{{.Repository}}"])
        .ok();
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    assert_eq!(left, ["a", "c"]);
    let sound = gantry(&["disk", "check"]).ok();
    assert!(sound.ends_with("0 damaged"), "{sound}");
    let blobs = world.data_dir().join("images/blobs/sha256");
    let largest = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let damaged = gantry(&["disk", "check"]);
    assert_eq!(damaged.code, 1, "{damaged}");
    assert!(damaged.stdout.contains("1 damaged"), "{damaged}");
}

#[test]
fn a_container_exported_and_imported_is_the_same_tree() {
    let world = busybox();
    let make = "mkdir -p /x/d && echo hi >/x/f && ln -s f /x/l && ln /x/f /x/h && chmod 4711 /x/f && chown 7:8 /x/d && mkfifo /x/p && rm -r /www";
    world
        .docker(&["run", "--name", "made", "busybox", "sh", "-c", make])
        .ok();
    let archive = world.folder().join("made.tar").display().to_string();
    world.docker(&["export", "-o", &archive, "made"]).ok();
    world
        .docker(&["import", "-c", "CMD [\"sh\"]", &archive, "again:1"])
        .ok();
    let look = "cd /x && ls -ln . && stat -c '%n %a %u %g %h %F' f l h d p && cat h && ls -d /www 2>&1; true";
    let seen = world
        .docker(&["run", "--rm", "again:1", "sh", "-c", look])
        .ok();
    for part in [
        "f 4711 0 0 2 regular file",
        "d 755 7 8",
        "p 644 0 0 1 fifo",
        "l -> f",
        "hi",
    ] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(seen.contains("/www: No such file"), "{seen}");
    // The same again by another program: what GNU tar reads of our export.
    let listed = run(Command::new("tar").args(["-tvf", &archive]), None).ok();
    assert!(
        listed.contains("x/l -> f") && listed.contains("link to x/"),
        "{listed}"
    );
}
