//! What the world does to a registry: servers that are killed, disks that flip bits or are full, a collector in the middle.

#![forbid(unsafe_code)]

mod common;

use common::{Answer, OCI_MANIFEST, Server, digest, manifest_of, noise, push_blob, send};
use gantry_registry::{Listener, Registry, Run};
use gantry_testkit::eventually;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROOT: &str = "GANTRY_TEST_SERVE";
const SOON: Duration = Duration::from_secs(30);
/// A request is tried again for so long, as clients do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test: the process that the others kill. It serves the folder that the environment names.
#[test]
#[ignore = "the server's process of the other tests"]
fn serve_for_the_others() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let registry = Registry::open(Path::new(&root)).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nlistening {}", listener.local_addr().unwrap());
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        gantry_registry::serve(registry, Listener::Tcp(listener, None), stopped)
            .await
            .unwrap();
    });
}

/// A server in a process of its own.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(root: &Path) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), root)
    }

    /// `command` ends in this test's program.
    fn spawn(mut command: Command, root: &Path) -> Self {
        let mut child = command
            .args([
                "--ignored",
                "--exact",
                "serve_for_the_others",
                "--nocapture",
            ])
            .env(ROOT, root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let line = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening ").map(str::to_owned))
            .expect("the server says where it listens");
        Self {
            child,
            address: line.parse().unwrap(),
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A TCP balancer: each connection goes to the next server that takes it.
struct Balancer {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
    ended: Arc<AtomicBool>,
}

impl Balancer {
    fn start(servers: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(servers));
        let ended = Arc::new(AtomicBool::new(false));
        let (all, end) = (Arc::clone(&servers), Arc::clone(&ended));
        std::thread::spawn(move || {
            for (turn, client) in listener.incoming().map_while(Result::ok).enumerate() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let mut order = all.lock().unwrap().clone();
                let turn = turn % order.len();
                order.rotate_left(turn);
                if let Some(server) = order.iter().find_map(|a| TcpStream::connect(a).ok()) {
                    pass(client.try_clone().unwrap(), server.try_clone().unwrap());
                    pass(server, client);
                }
            }
        });
        Self {
            address,
            servers,
            ended,
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // What is broken on one side is broken on the other.
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// Asks until there is an answer that is no failure of the server's.
#[track_caller]
fn insist(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let began = Instant::now();
    loop {
        match send(address, method, path, headers, body) {
            Ok(answer) if answer.status < 500 => return answer,
            other if began.elapsed() > PATIENCE => panic!("{method} {path}: {other:?}"),
            _ => std::thread::yield_now(),
        }
    }
}

/// Pushes in two chunks, going on where the registry says that the upload stands.
fn push_resuming(address: SocketAddr, name: &str, bytes: &[u8]) -> String {
    let digest = digest(bytes);
    let began = Instant::now();
    'upload: loop {
        assert!(began.elapsed() < PATIENCE, "a blob cannot be pushed");
        if insist(
            address,
            "HEAD",
            &format!("/v2/{name}/blobs/{digest}"),
            &[],
            b"",
        )
        .status
            == 200
        {
            return digest;
        }
        let begun = insist(
            address,
            "POST",
            &format!("/v2/{name}/blobs/uploads/"),
            &[],
            b"",
        )
        .is(202);
        let location = begun.location();
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + bytes.len() / 2 + 1);
            let range = format!("{at}-{}", end - 1);
            match send(
                address,
                "PATCH",
                &location,
                &[("Content-Range", &range)],
                &bytes[at..end],
            ) {
                Ok(answer) if answer.status == 202 => at = end,
                _ => {
                    let status = insist(address, "GET", &location, &[], b"");
                    if status.status != 204 {
                        continue 'upload;
                    }
                    let stands = status
                        .header("range")
                        .and_then(|r| r.strip_prefix("0-"))
                        .unwrap();
                    // `0-0` is no byte or one; one that is there already is refused and asked for again.
                    at = match stands.parse::<usize>().unwrap() {
                        0 => 0,
                        last => last + 1,
                    };
                    if at > bytes.len() {
                        continue 'upload;
                    }
                }
            }
        }
        let path = format!("{location}?digest={digest}");
        match insist(address, "PUT", &path, &[], b"").status {
            201 => return digest,
            _ => continue,
        }
    }
}

/// Pulls an image and proves every part of it. Answers whether it was there.
fn pull(ask: impl Fn(&str) -> Answer, name: &str, tag: &str) -> bool {
    let got = ask(&format!("/v2/{name}/manifests/{tag}"));
    if got.status == 404 {
        return false;
    }
    let got = got.is(200);
    assert_eq!(
        got.header("docker-content-digest"),
        Some(digest(&got.body).as_str())
    );
    let manifest = got.json();
    let layers = manifest["layers"].as_array().unwrap();
    for part in layers.iter().chain([&manifest["config"]]) {
        let wanted = part["digest"].as_str().unwrap();
        let blob = ask(&format!("/v2/{name}/blobs/{wanted}")).is(200);
        assert_eq!(digest(&blob.body), wanted, "a damaged blob was served");
    }
    true
}

#[test]
fn three_servers_one_killed_again_and_again_and_no_client_fails() {
    const CLIENTS: usize = 50;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut servers: Vec<_> = (0..3).map(|_| Process::start(root)).collect();
    let balancer = Balancer::start(servers.iter().map(|s| s.address).collect());
    let address = balancer.address;
    let (done, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (done, kills) = (&done, &kills);
            scope.spawn(move || {
                let name = format!("c{}", client % 10);
                let mut round = 0;
                // At least one round each, and on until servers were killed often enough.
                while round == 0 || (kills.load(Ordering::Relaxed) < 25 && round < 20) {
                    let seed = (client * 100 + round) as u64;
                    let layer = noise(seed, 1_200_000);
                    let config = format!(r#"{{"architecture":"amd64","os":"linux","n":{seed}}}"#);
                    push_resuming(address, &name, config.as_bytes());
                    push_resuming(address, &name, &layer);
                    let manifest = manifest_of(config.as_bytes(), &layer, json!({}));
                    let tag = format!("t{client}-{round}");
                    let path = format!("/v2/{name}/manifests/{tag}");
                    insist(
                        address,
                        "PUT",
                        &path,
                        &[("Content-Type", OCI_MANIFEST)],
                        &manifest,
                    )
                    .is(201);
                    assert!(pull(
                        |path| insist(address, "GET", path, &[], b""),
                        &name,
                        &tag
                    ));
                    round += 1;
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut turn = 0;
        while done.load(Ordering::Relaxed) < CLIENTS {
            let victim = turn % 3;
            servers[victim].kill();
            kills.fetch_add(1, Ordering::Relaxed);
            servers[victim] = Process::start(root);
            balancer.servers.lock().unwrap()[victim] = servers[victim].address;
            turn += 1;
        }
    });
    assert!(kills.load(Ordering::Relaxed) >= 3);
    // What is listed is whole, and nothing on disk is other than its name says.
    let last = Server::over(root, None);
    let mut pulled = 0;
    for name in (0..10).map(|n| format!("c{n}")) {
        let tags = last
            .ask("GET", &format!("/v2/{name}/tags/list"))
            .is(200)
            .json();
        for tag in tags["tags"].as_array().unwrap() {
            assert!(pull(
                |path| last.ask("GET", path),
                &name,
                tag.as_str().unwrap()
            ));
            pulled += 1;
        }
    }
    assert!(pulled >= CLIENTS, "{pulled}");
    assert_eq!(last.registry.check().unwrap(), Vec::<String>::new());
}

fn blob_file(root: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    root.join(format!("blobs/sha256/{}/{hex}", &hex[..2]))
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 4;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_flipped_bit_is_never_served_and_a_new_push_heals() {
    let server = Server::start();
    for size in [10, 100_000, 3_000_000] {
        let bytes = noise(size as u64, size);
        let d = server.blob("a", &bytes);
        let path = format!("/v2/a/blobs/{d}");
        server.ask("GET", &path).is(200);
        flip(&blob_file(&server.root, &d), size as u64 / 2);
        // Either refused at once or cut off; whole and wrong never.
        match send(server.address, "GET", &path, &[], b"") {
            Ok(answer) => assert_eq!(answer.status, 404, "{size}"),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::UnexpectedEof, "{size}"),
        }
        for method in ["GET", "HEAD"] {
            server.ask(method, &path).is(404);
        }
        assert!(
            server
                .root
                .join("damaged")
                .read_dir()
                .unwrap()
                .next()
                .is_some()
        );
        server.blob("a", &bytes);
        assert!(server.ask("GET", &path).is(200).body == bytes);
    }
}

#[test]
fn a_flipped_bit_in_a_range_is_not_served_either() {
    let server = Server::start();
    let bytes = noise(1, 3_000_000);
    let d = server.blob("a", &bytes);
    flip(&blob_file(&server.root, &d), 2_000_000);
    let path = format!("/v2/a/blobs/{d}");
    let range = |range: &str| send(server.address, "GET", &path, &[("Range", range)], b"");
    // Another piece is what it was.
    assert!(range("bytes=0-99").unwrap().is(206).body == bytes[..100]);
    let damaged = range("bytes=1999990-2000010");
    assert_eq!(
        damaged.unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    assert_eq!(range("bytes=1999990-2000010").unwrap().status, 404);
}

#[test]
fn damaged_sums_are_made_again() {
    let server = Server::start();
    let bytes = noise(2, 3_000_000);
    let d = server.blob("a", &bytes);
    let sums = blob_file(&server.root, &d).with_extension("sums");
    flip(&sums, 30);
    assert!(server.ask("GET", &format!("/v2/a/blobs/{d}")).is(200).body == bytes);
    std::fs::remove_file(&sums).unwrap();
    assert!(server.ask("GET", &format!("/v2/a/blobs/{d}")).is(200).body == bytes);
    assert!(sums.exists());
}

#[test]
fn a_damaged_manifest_is_not_served() {
    let server = Server::start();
    let (d, bytes) = server.image("a", "v1", b"layer");
    flip(&blob_file(&server.root, &d), 5);
    // Another server, which has not got it in memory.
    let second = Server::over(&server.root, None);
    assert_eq!(
        second.ask("GET", "/v2/a/manifests/v1").is(404).code(),
        "MANIFEST_UNKNOWN"
    );
    second.put("a", "v1", OCI_MANIFEST, &bytes).is(201);
    assert_eq!(second.ask("GET", "/v2/a/manifests/v1").is(200).body, bytes);
}

#[test]
fn check_names_what_is_damaged() {
    let server = Server::start();
    let good = server.blob("a", b"good");
    let bad = server.blob("a", b"bad");
    flip(&blob_file(&server.root, &bad), 0);
    assert_eq!(server.registry.check().unwrap(), [bad.as_str()]);
    server.ask("GET", &format!("/v2/a/blobs/{good}")).is(200);
    server.ask("GET", &format!("/v2/a/blobs/{bad}")).is(404);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=6m none \"$GANTRY_TEST_SERVE\" && exec \"$@\"";
    command
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap());
    let server = Process::spawn(command, folder.path());
    let ask = |method: &str, path: &str, body: &[u8]| {
        send(server.address, method, path, &[], body).unwrap()
    };
    let kept = push_blob(server.address, "a", &noise(1, 100_000)).unwrap();
    let large = noise(2, 10_000_000);
    let begun = ask("POST", "/v2/a/blobs/uploads/", b"").is(202);
    let path = format!("{}?digest={}", begun.location(), digest(&large));
    // The refusal may come while the client still sends.
    match send(server.address, "PUT", &path, &[], &large) {
        Ok(answer) => {
            let answer = answer.is(507);
            assert!(
                String::from_utf8_lossy(&answer.body).contains("disk is full"),
                "{answer:?}"
            );
        }
        Err(e) => panic!("no clear refusal: {e}"),
    }
    ask("GET", &format!("/v2/a/blobs/{}", digest(&large)), b"").is(404);
    ask("GET", &begun.location(), b"").is(404);
    // Reading goes on, and writing as soon as there is room.
    ask("GET", &format!("/v2/a/blobs/{kept}"), b"").is(200);
    push_blob(server.address, "a", &noise(3, 2_000_000)).unwrap();
}

/// Makes every file below `folder` an hour old.
fn age(folder: &Path) {
    age_to(
        folder,
        std::time::SystemTime::now() - Duration::from_secs(3600),
    );
}

fn age_to(folder: &Path, then: std::time::SystemTime) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            age_to(&path, then);
        } else {
            std::fs::File::open(&path)
                .unwrap()
                .set_modified(then)
                .unwrap();
        }
    }
}

const NOW: Run = Run {
    dry: false,
    grace: Some(Duration::ZERO),
};

#[test]
fn what_nothing_names_goes_and_what_is_named_stays() {
    let server = Server::start();
    let (gone, _) = server.image("a", "old", b"old layer");
    server.image("a", "new", b"new layer");
    server.image("b/c", "v1", b"only here");
    let loose = server.blob("loose", b"never named");
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    server
        .ask("DELETE", &format!("/v2/a/manifests/{gone}"))
        .is(202);
    server.ask("DELETE", "/v2/b/c/manifests/v1").is(202);
    let dry = server.registry.collect(Run { dry: true, ..NOW }).unwrap();
    server
        .ask("HEAD", &format!("/v2/loose/blobs/{loose}"))
        .is(200);
    // Young claims stay.
    let hour = Some(Duration::from_secs(3600));
    let none = server
        .registry
        .collect(Run {
            dry: false,
            grace: hour,
        })
        .unwrap();
    assert_eq!((none.claims, none.blobs), (0, 0));
    let report = server.registry.collect(NOW).unwrap();
    // The layer and the loose blob with their claims, and the manifest's content. The config serves the other image, too.
    assert_eq!((report.claims, report.blobs), (2, 3), "{report:?}");
    assert_eq!((dry.claims, dry.bytes), (2, report.bytes));
    server
        .ask("HEAD", &format!("/v2/loose/blobs/{loose}"))
        .is(404);
    assert!(pull(|path| server.ask("GET", path), "a", "new"));
    // Without its tag a manifest stays where no rule says otherwise; an upload stays until it expires.
    assert_eq!(
        server.registry.collect(NOW).unwrap(),
        gantry_registry::Report::default()
    );
    server.ask("GET", &begun.location()).is(204);
    let catalogue = server.ask("GET", "/v2/_catalog").is(200).json();
    assert_eq!(catalogue["repositories"], json!(["a", "b/c"]));
}

#[test]
fn uploads_expire_and_rules_retire_tags_and_untagged_manifests() {
    let policy = json!({
        "upload_expiry_seconds": 60,
        "repositories": [
            {"match": "team/*", "keep": [{"tags": "n-*", "newest": 2}], "untagged_days": 0.01},
            {"match": "fixed", "immutable_tags": ["*"], "keep": [{"tags": "*", "newest": 0}]},
        ],
    });
    let server = Server::with(&[("policy.json", policy)]);
    for n in 1..=4 {
        server.image("team/a", &format!("n-{n}"), format!("layer {n}").as_bytes());
        server.image("fixed", &format!("v{n}"), format!("layer {n}").as_bytes());
    }
    server.image("team/a", "stable", b"stable");
    let (subject, bytes) = server.image("team/a", "n-0", b"with a signature");
    let of = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": bytes.len()});
    let signature = server.manifest_of("team/a", b"signature", json!({"subject": of}));
    server
        .put("team/a", &digest(&signature), OCI_MANIFEST, &signature)
        .is(201);
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    age(&server.root);
    let report = server
        .registry
        .collect(Run {
            dry: false,
            grace: Some(Duration::from_secs(60)),
        })
        .unwrap();
    let tags = |name: &str| {
        server
            .ask("GET", &format!("/v2/{name}/tags/list"))
            .is(200)
            .json()["tags"]
            .clone()
    };
    assert_eq!(tags("team/a"), json!(["n-3", "n-4", "stable"]));
    assert_eq!(tags("fixed"), json!(["v1", "v2", "v3", "v4"]));
    // Three images without a tag, and the signature of one of them.
    assert_eq!(
        (report.uploads, report.tags, report.manifests),
        (1, 3, 4),
        "{report:?}"
    );
    server.ask("GET", &begun.location()).is(404);
    server
        .ask("GET", &format!("/v2/team/a/manifests/{subject}"))
        .is(404);
    let left = server
        .ask("GET", &format!("/v2/team/a/referrers/{subject}"))
        .is(200);
    assert_eq!(left.json()["manifests"], json!([]));
    for tag in ["n-3", "n-4", "stable"] {
        assert!(pull(|path| server.ask("GET", path), "team/a", tag));
    }
}

#[test]
fn a_collector_in_the_middle_of_pushes_loses_nothing() {
    // Everything that will be pushed is there already, old and named by nothing: the collector wants all of it, and clients
    // are told "exists" and name it a moment later.
    let server = Server::start();
    let second = Server::over(&server.root, None);
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let (mut kept, mut collected) = (0, 0);
    for round in 0..6 {
        let layers: Vec<_> = (0..40_u64).map(|n| noise(round * 1000 + n, 5000)).collect();
        for layer in &layers {
            server.blob("a", layer);
            server.blob("from", layer);
        }
        server.blob("a", config);
        age(&server.root);
        let pushing = AtomicUsize::new(4);
        std::thread::scope(|scope| {
            for pusher in 0..4 {
                let (layers, pushing, server, second) = (&layers, &pushing, &server, &second);
                scope.spawn(move || {
                    let server = if pusher % 2 == 0 { server } else { second };
                    for (n, layer) in layers.iter().enumerate().filter(|(n, _)| n % 5 == pusher) {
                        for bytes in [config.as_slice(), layer] {
                            let d = digest(bytes);
                            let mount = format!("/v2/a/blobs/uploads/?mount={d}&from=from");
                            let there = server.ask("HEAD", &format!("/v2/a/blobs/{d}")).status
                                == 200
                                || (n % 2 == 0 && server.ask("POST", &mount).status == 201);
                            if !there {
                                server.blob("a", bytes);
                            }
                        }
                        let manifest = manifest_of(config, layer, json!({}));
                        server
                            .put("a", &format!("r{round}-{n}"), OCI_MANIFEST, &manifest)
                            .is(201);
                    }
                    pushing.fetch_sub(1, Ordering::Relaxed);
                });
            }
            while pushing.load(Ordering::Relaxed) > 0 {
                let grace = Some(Duration::from_secs(60));
                let report = server.registry.collect(Run { dry: false, grace }).unwrap();
                collected += report.blobs;
            }
        });
        let tags = server.ask("GET", "/v2/a/tags/list").is(200).json();
        for tag in tags["tags"].as_array().unwrap() {
            assert!(pull(
                |path| second.ask("GET", path),
                "a",
                tag.as_str().unwrap()
            ));
            kept += 1;
        }
    }
    assert!(kept > 100 && collected > 20, "{kept} {collected}");
}

#[test]
fn of_two_pushes_of_an_immutable_tag_one_wins() {
    let policy = json!({"repositories": [{"match": "*", "immutable_tags": ["v*"]}]});
    let server = Server::with(&[("policy.json", policy)]);
    let second = Server::over(&server.root, None);
    let one = server.manifest_of("a", b"one", json!({}));
    let two = server.manifest_of("a", b"two", json!({}));
    for n in 0..20 {
        let tag = format!("v{n}");
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| server.put("a", &tag, OCI_MANIFEST, &one));
            let b = scope.spawn(|| second.put("a", &tag, OCI_MANIFEST, &two));
            (a.join().unwrap(), b.join().unwrap())
        });
        let mut statuses = [a.status, b.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 403]);
        let winner = if a.status == 201 { &one } else { &two };
        assert_eq!(
            &server.ask("GET", &format!("/v2/a/manifests/{tag}")).body,
            winner
        );
        // The same content again is no change.
        server.put("a", &tag, OCI_MANIFEST, winner).is(201);
    }
    server.put("a", "latest", OCI_MANIFEST, &one).is(201);
    server.put("a", "latest", OCI_MANIFEST, &two).is(201);
}

#[test]
fn a_policy_is_read_again_when_it_changes() {
    let server = Server::start();
    server.image("a", "v1", b"one");
    let other = server.manifest_of("a", b"two", json!({}));
    server.put("a", "v1", OCI_MANIFEST, &other).is(201);
    let policy =
        json!({"repositories": [{"match": "a", "immutable_tags": ["*"], "quota_bytes": 100_000}]});
    std::fs::write(server.root.join("policy.json"), policy.to_string()).unwrap();
    let first = server.manifest_of("a", b"one", json!({}));
    eventually("the new policy holds", SOON, || {
        let [a, b] =
            [&first, &other].map(|bytes| server.put("a", "v1", OCI_MANIFEST, bytes).status);
        match (a, b) {
            (201, 403) | (403, 201) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let held = server.ask("GET", "/v2/a/manifests/v1").is(200).body;
    let another = if held == first { &other } else { &first };
    let large = noise(1, 200_000);
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&large));
    assert_eq!(
        server.send("POST", &path, &[], &large).is(403).code(),
        "DENIED"
    );
    // What cannot be read changes nothing.
    std::fs::write(server.root.join("policy.json"), "{").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    server.put("a", "v1", OCI_MANIFEST, another).is(403);
}
