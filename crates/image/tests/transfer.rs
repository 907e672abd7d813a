//! Pull and push against registries that fail in every way: what arrives is right or refused, and nothing half-made is ever seen.

mod common;

use common::registry::{Fake, Fault, Hit};
use common::*;
use gantry_base::{Error, Result};
use gantry_image::{Credentials, Progress, Pulled, PushProgress, Pushed, Registries};
use gantry_oci::{Digest, Reference};
use serde_json::json;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A store that waits a second where others wait a minute.
fn impatient(mirrors: &[String]) -> World {
    waiting(Duration::from_secs(1), mirrors)
}

fn waiting(patience: Duration, mirrors: &[String]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let registries = Registries::new(mirrors, &[])
        .unwrap()
        .with_certificates(&dir.path().join("certs.d"))
        .with_patience(patience);
    let store = open_with(dir.path(), registries);
    World { dir, store }
}

fn pull_as(world: &World, name: &str, credentials: Option<Credentials>) -> Result<Pulled> {
    pull_while(world, name, credentials, &|| false)
}

fn pull_while(
    world: &World,
    name: &str,
    credentials: Option<Credentials>,
    gone: &(dyn Fn() -> bool + Sync),
) -> Result<Pulled> {
    let runtime = runtime();
    let reference = Reference::parse(name).unwrap();
    let resolved = runtime.block_on(world.store.resolve(&reference, "", credentials))?;
    world
        .store
        .pull(runtime.handle(), &resolved, &|_: Progress<'_>| {}, gone)
}

fn pull(world: &World, name: &str) -> Result<Pulled> {
    pull_as(world, name, None)
}

fn push(world: &World, name: &str) -> (Result<Pushed>, String) {
    let said = Mutex::new(String::new());
    let runtime = runtime();
    let result = world.store.push(
        runtime.handle(),
        &Reference::parse(name).unwrap(),
        None,
        &|step: PushProgress<'_>| {
            if !matches!(step, PushProgress::Pushing(..)) {
                said.lock().unwrap().push_str(&format!("{step:?}\n"));
            }
        },
        &|| false,
    );
    (result, said.into_inner().unwrap())
}

fn words<T>(result: Result<T>) -> String {
    result.err().map_or("no error".into(), |e: Error| e.chain())
}

/// Bytes that do not compress, the same each time.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn layers() -> Vec<Vec<u8>> {
    (0..3u8)
        .map(|n| {
            Tar::new()
                .file(&format!("f{n}"), &noise(300_000, u64::from(n) + 1))
                .file("same", &[n])
                .end()
        })
        .collect()
}

struct Placed {
    manifest: Digest,
    config: Digest,
    layers: Vec<Digest>,
    document: serde_json::Value,
}

/// An image of [`layers`] in the registry.
fn place(fake: &Fake, name: &str, pack: fn(&[u8]) -> Vec<u8>) -> Placed {
    let plain = layers();
    let diff_ids: Vec<Digest> = plain.iter().map(|l| sha256(l)).collect();
    let config = config(&diff_ids, "x");
    let packed: Vec<Vec<u8>> = plain.iter().map(|l| pack(l)).collect();
    let descriptors: Vec<_> = packed
        .iter()
        .map(|p| json!({"mediaType": GZIP, "digest": fake.blob(p), "size": p.len()}))
        .collect();
    let document = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": fake.blob(&config), "size": config.len()},
        "layers": descriptors,
    });
    Placed {
        manifest: fake.manifest(name, MANIFEST, document.to_string().as_bytes()),
        config: sha256(&config),
        layers: packed.iter().map(|p| sha256(p)).collect(),
        document,
    }
}

fn is_blob(hit: &Hit) -> bool {
    hit.method == "GET" && hit.path.contains("/blobs/sha256:")
}

fn of(hit: &Hit, digest: &Digest) -> bool {
    is_blob(hit) && hit.path.ends_with(&digest.to_string())
}

fn assert_whole(world: &World, name: &str) {
    let image = world.image(name);
    for (n, layer) in image.layers.iter().enumerate() {
        let bytes = std::fs::read(layer.folder.join(format!("f{n}"))).unwrap();
        assert!(bytes == noise(300_000, n as u64 + 1), "layer {n}");
    }
    let mut saved = Vec::new();
    world.store.save(&[name.to_owned()], &mut saved).unwrap();
}

fn assert_nothing(world: &World) {
    assert!(world.store.list().unwrap().is_empty());
    assert_eq!(world.files(), Vec::<String>::new());
}

#[test]
fn gzip_zstd_and_plain_layers_of_oci_manifests_and_indexes() {
    for pack in [gzip, zstd, |bytes: &[u8]| bytes.to_vec()] {
        let (fake, world) = (Fake::new(), impatient(&[]));
        let placed = place(&fake, "a/b:1", pack);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": sha256(b"attestation"), "size": 3, "platform": {"architecture": "unknown", "os": "unknown"}},
            {"mediaType": MANIFEST, "digest": sha256(b"arm"), "size": 3, "platform": {"architecture": "arm64", "os": "linux"}},
            {"mediaType": MANIFEST, "digest": placed.manifest, "size": 3, "platform": {"architecture": "amd64", "os": "linux"}},
        ]});
        let digest = fake.manifest("a/b:all", INDEX, index.to_string().as_bytes());
        let name = format!("{}/a/b:all", fake.host);
        let pulled = pull(&world, &name).unwrap();
        assert_eq!(pulled.digest, digest);
        assert_eq!(pulled.id, placed.config);
        assert_whole(&world, &name);
        // What came goes out again with the same digest.
        let other = Fake::new();
        let copy = format!("{}/c:1", other.host);
        world
            .store
            .tag(&name, &Reference::parse(&copy).unwrap())
            .unwrap();
        let (pushed, _) = push(&world, &copy);
        let packed_plain = placed.layers == layers().iter().map(|l| sha256(l)).collect::<Vec<_>>();
        assert_eq!(pushed.unwrap().digest == placed.manifest, !packed_plain);
    }
}

#[test]
fn redirects_are_followed_without_credentials() {
    let (fake, cdn, world) = (Fake::new(), Fake::new(), impatient(&[]));
    let placed = place(&fake, "a/b:1", gzip);
    for digest in &placed.layers {
        let bytes = fake.state.lock().unwrap().blobs[&digest.to_string()].clone();
        cdn.blob(&bytes);
    }
    let host = cdn.host.clone();
    fake.rule(move |hit| {
        if hit.headers.get("authorization").map(String::as_str) != Some("Basic dXNlcjpwYXNz") {
            let challenge = ("WWW-Authenticate".into(), "Basic realm=\"x\"".into());
            return Some(Fault::Status(401, vec![challenge], String::new()));
        }
        let leads = format!("http://{host}/elsewhere{}", hit.path);
        is_blob(hit).then(|| Fault::Status(307, vec![("Location".into(), leads)], String::new()))
    });
    // A second step, relative to where the first one led.
    cdn.rule(|hit| {
        let path = hit.path.strip_prefix("/elsewhere")?.to_owned();
        Some(Fault::Status(
            302,
            vec![("Location".into(), path)],
            String::new(),
        ))
    });
    let config = fake.state.lock().unwrap().blobs[&placed.config.to_string()].clone();
    cdn.blob(&config);
    let name = format!("{}/a/b:1", fake.host);
    let refused = words(pull(&world, &name));
    assert!(refused.ends_with("no basic auth credentials"), "{refused}");
    let credentials = Credentials {
        username: "user".into(),
        password: "pass".into(),
        ..Credentials::default()
    };
    pull_as(&world, &name, Some(credentials)).unwrap();
    assert_whole(&world, &name);
    let hits = cdn.hits("GET", "");
    assert!(hits.len() >= 8, "{hits:?}");
    assert!(
        hits.iter()
            .all(|hit| !hit.headers.contains_key("authorization"))
    );
}

#[test]
fn redirects_that_never_end_are_given_up() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    place(&fake, "a/b:1", gzip);
    fake.rule(|hit| {
        let location = vec![("Location".into(), hit.path.clone())];
        is_blob(hit).then(|| Fault::Status(307, location, String::new()))
    });
    let refused = words(pull(&world, &format!("{}/a/b:1", fake.host)));
    assert!(refused.contains("stopped after 5 redirects"), "{refused}");
    assert_nothing(&world);
}

#[test]
fn a_layer_that_breaks_off_is_taken_up_where_it_broke() {
    for ranges in [true, false] {
        let (fake, world) = (Fake::new(), impatient(&[]));
        let placed = place(&fake, "a/b:1", gzip);
        let layer = placed.layers[1].clone();
        fake.rule(move |hit| match hit.before {
            _ if !of(hit, &layer) => None,
            0 => Some(Fault::Cut(100_000)),
            1 if ranges => Some(Fault::Cut(100_000)),
            _ if ranges => None,
            _ => Some(Fault::NoRange),
        });
        let name = format!("{}/a/b:1", fake.host);
        pull(&world, &name).unwrap();
        assert_whole(&world, &name);
        let asked: Vec<_> = fake
            .hits("GET", &placed.layers[1].to_string())
            .iter()
            .map(|hit| hit.headers.get("range").cloned().unwrap_or_default())
            .collect();
        let want: &[&str] = if ranges {
            &["", "bytes=100000-", "bytes=200000-"]
        } else {
            &["", "bytes=100000-"]
        };
        assert_eq!(asked, want);
    }
}

#[test]
fn a_busy_registry_is_waited_for_and_a_dead_one_is_not_waited_for_for_ever() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    place(&fake, "a/b:1", gzip);
    fake.rule(|hit| match (hit.before, hit.path.contains("/manifests/")) {
        (0, true) => {
            let after = vec![("Retry-After".into(), "1".into())];
            Some(Fault::Status(429, after, String::new()))
        }
        (0 | 1, false) if is_blob(hit) => Some(Fault::Status(503, vec![], String::new())),
        _ => None,
    });
    let name = format!("{}/a/b:1", fake.host);
    let began = Instant::now();
    pull(&world, &name).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_whole(&world, &name);

    let world = impatient(&[]);
    let text = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    fake.rule(move |hit| {
        let after = vec![("Retry-After".into(), "0".into())];
        hit.path
            .contains("/manifests/")
            .then(|| Fault::Status(429, after, text.into()))
    });
    assert_eq!(words(pull(&world, &name)), "toomanyrequests: slow down");
    assert_eq!(fake.hits("GET", "/manifests/").len(), 5);
    assert_nothing(&world);
}

#[test]
fn one_flipped_bit_on_the_wire_is_fetched_again_and_in_the_registry_refused() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    let placed = place(&fake, "a/b:1", gzip);
    let name = format!("{}/a/b:1", fake.host);
    // Every blob arrives damaged once, each at another place.
    for seed in 0..8usize {
        fake.rule(move |hit| {
            (is_blob(hit) && hit.before == 0).then_some(Fault::Flip(seed * 37_501 + 11))
        });
        let world = impatient(&[]);
        pull(&world, &name).unwrap();
        assert_whole(&world, &name);
        // The small ones and the layers twice each.
        assert_eq!(fake.hits("GET", "/blobs/").len(), 8, "seed {seed}");
    }
    for (number, digest) in placed.layers.iter().enumerate() {
        let layer = digest.clone();
        fake.rule(move |hit| of(hit, &layer).then_some(Fault::Flip(number * 100_000)));
        assert_eq!(
            words(pull(&world, &name)),
            format!("filesystem layer verification failed for digest {digest}")
        );
        assert_nothing(&world);
    }
    let config = placed.config.clone();
    fake.rule(move |hit| of(hit, &config).then_some(Fault::Flip(100)));
    assert_eq!(
        words(pull(&world, &name)),
        format!(
            "image config verification failed for digest {}",
            placed.config
        )
    );
    fake.rule(|hit| hit.path.contains("/manifests/").then_some(Fault::Flip(100)));
    let by_digest = format!("{}/a/b@{}", fake.host, placed.manifest);
    assert_eq!(
        words(pull(&world, &by_digest)),
        format!(
            "manifest verification failed for digest {}",
            placed.manifest
        )
    );
    assert_nothing(&world);
    fake.rule(|_| None);
    pull(&world, &by_digest).unwrap();
}

#[test]
fn a_layer_that_holds_something_else_than_the_configuration_says_is_refused() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    let mut placed = place(&fake, "a/b:1", gzip);
    let other = gzip(&Tar::new().file("evil", b"x").end());
    placed.document["layers"][1] =
        json!({"mediaType": GZIP, "digest": fake.blob(&other), "size": other.len()});
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    let refused = words(pull(&world, &format!("{}/a/b:1", fake.host)));
    assert!(
        refused.starts_with("invalid diffID for layer 1: expected"),
        "{refused}"
    );
    assert_nothing(&world);
}

#[test]
fn slow_and_silent_registries_are_given_up() {
    let (fake, world) = (Fake::new(), waiting(Duration::from_millis(300), &[]));
    let placed = place(&fake, "a/b:1", gzip);
    let name = format!("{}/a/b:1", fake.host);
    let layer = placed.layers[2].clone();
    fake.rule(move |hit| of(hit, &layer).then_some(Fault::Drip));
    let began = Instant::now();
    assert_eq!(
        words(pull(&world, &name)),
        "the registry stopped in the middle of a layer"
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_nothing(&world);
    for part in ["/manifests/", &placed.config.to_string(), "/v2/"] {
        let part = part.to_owned();
        let only_ping = part == "/v2/";
        fake.rule(move |hit| {
            let wanted = if only_ping {
                hit.path == part
            } else {
                hit.path.contains(&part)
            };
            wanted.then_some(Fault::Hang)
        });
        // The waiting is tried five times; one is enough here.
        let runtime = runtime();
        let reference = Reference::parse(&name).unwrap();
        let asking = async {
            let resolved = world.store.resolve(&reference, "", None).await?;
            let (world, handle) = (world.store.clone(), tokio::runtime::Handle::current());
            tokio::task::spawn_blocking(move || {
                world.pull(&handle, &resolved, &|_: Progress<'_>| {}, &|| false)
            })
            .await
            .unwrap()
        };
        let refused = words(runtime.block_on(asking));
        assert!(refused.contains("Client.Timeout exceeded"), "{refused}");
        assert_nothing(&world);
    }
}

#[test]
fn answers_larger_than_they_may_be_are_refused() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    let mut placed = place(&fake, "a/b:1", gzip);
    let name = format!("{}/a/b:1", fake.host);
    fake.manifest("a/b:large", MANIFEST, &vec![b' '; (4 << 20) + 1]);
    let large = words(pull(&world, &format!("{}/a/b:large", fake.host)));
    assert_eq!(
        large,
        "the registry's answer is larger than 4194304 bytes: refused"
    );
    for part in ["/manifests/", "/blobs/"] {
        fake.rule(move |hit| hit.path.contains(part).then_some(Fault::Flood));
        let refused = words(pull(&world, &name));
        assert!(
            refused.contains("bytes: refused") || refused.contains("verification failed"),
            "{refused}"
        );
        assert_nothing(&world);
    }
    fake.rule(|_| None);
    placed.document["config"]["size"] = json!(9 << 20);
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    assert_eq!(
        words(pull(&world, &name)),
        "the image configuration is larger than 8 MiB"
    );
    placed.document["config"]["size"] = json!(10);
    placed.document["layers"][0]["size"] = json!(1000);
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    assert!(words(pull(&world, &name)).contains("verification failed"));
    placed.document["layers"] = json!(vec![placed.document["layers"][1].clone(); 126]);
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    assert_eq!(words(pull(&world, &name)), "max depth exceeded");
    placed.document["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    assert_eq!(
        words(pull(&world, &name)),
        "Encountered remote \"application/vnd.cncf.helm.config.v1+json\"(unknown) when fetching"
    );
    assert_nothing(&world);
}

#[test]
fn mirrors_come_first_get_no_credentials_and_stand_in_for_each_other() {
    let (bad, good) = (Fake::new(), Fake::new());
    let mirrors = [&bad, &good].map(|fake| format!("http://{}", fake.host));
    let world = impatient(&mirrors);
    let placed = place(&good, "library/b:1", gzip);
    // The first one does not know it.
    let credentials = Some(Credentials {
        username: "user".into(),
        password: "pass".into(),
        ..Credentials::default()
    });
    pull_as(&world, "b:1", credentials.clone()).unwrap();
    assert_whole(&world, "b:1");
    assert_eq!(bad.hits("GET", "/v2/library/b/manifests/1").len(), 1);

    // The first one knows it, but one layer is damaged there and one is missing.
    let world = impatient(&mirrors);
    place(&bad, "library/b:1", gzip);
    let (damaged, missing) = (placed.layers[0].clone(), placed.layers[1].clone());
    bad.rule(move |hit| {
        if of(hit, &missing) {
            return Some(Fault::Status(404, vec![], String::new()));
        }
        of(hit, &damaged).then_some(Fault::Flip(5))
    });
    good.rule(|_| None);
    pull_as(&world, "b:1", credentials).unwrap();
    assert_whole(&world, "b:1");
    assert_eq!(good.hits("GET", "/blobs/").len(), 2);
    for fake in [&bad, &good] {
        let hits = fake.state.lock().unwrap().hits.clone();
        assert!(
            hits.iter()
                .all(|hit| !hit.headers.contains_key("authorization"))
        );
    }
}

#[test]
fn tokens_are_asked_for_with_scope_and_account_and_renewed() {
    use base64::Engine as _;
    let (fake, service, world) = (Fake::new(), Fake::new(), impatient(&[]));
    let placed = place(&fake, "a/b:1", gzip);
    let realm = format!("http://{}/token?x=1", service.host);
    service.rule(|hit| {
        let good = "Basic ".to_owned()
            + &base64::engine::general_purpose::STANDARD.encode("user:pass");
        if hit.headers.get("authorization") != Some(&good) {
            let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
            return Some(Fault::Status(401, vec![], text.into()));
        }
        let text = format!(r#"{{"token": "t{}"}}"#, hit.before);
        Some(Fault::Status(200, vec![], text))
    });
    // The first token ends with the manifest.
    fake.rule(move |hit| {
        let token = hit.headers.get("authorization").map(String::as_str);
        let good = match hit.path.contains("/blobs/") {
            true => token == Some("Bearer t1"),
            false => token == Some("Bearer t0"),
        };
        let challenge = format!(r#"Bearer realm="{realm}",service="reg, x",error="invalid_token""#);
        let challenge = vec![("WWW-Authenticate".into(), challenge)];
        (!good).then(|| Fault::Status(401, challenge, String::new()))
    });
    let name = format!("{}/a/b:1", fake.host);
    let mut credentials = Credentials {
        username: "user".into(),
        password: "wrong".into(),
        ..Credentials::default()
    };
    let refused = words(pull_as(&world, &name, Some(credentials.clone())));
    assert_eq!(refused, "unauthorized: incorrect username or password");
    credentials.password = "pass".into();
    service.state.lock().unwrap().hits.clear();
    pull_as(&world, &name, Some(credentials)).unwrap();
    assert_whole(&world, &name);
    assert_eq!(
        service.hits("GET", "")[0].path,
        "/token?x=1&service=reg%2C%20x&scope=repository%3Aa%2Fb%3Apull&account=user"
    );
    assert_eq!(world.image(&name).id, placed.config);
}

#[test]
fn foreign_layers_come_from_their_addresses_and_stay_there() {
    let (fake, elsewhere, world) = (Fake::new(), Fake::new(), impatient(&[]));
    let mut placed = place(&fake, "a/b:1", gzip);
    let bytes = {
        let mut state = fake.state.lock().unwrap();
        state.blobs.remove(&placed.layers[1].to_string()).unwrap()
    };
    let digest = elsewhere.blob(&bytes);
    let url = format!("http://{}/v2/any/blobs/{digest}", elsewhere.host);
    placed.document["layers"][1]["mediaType"] =
        json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    placed.document["layers"][1]["urls"] = json!(["ftp://nowhere", url]);
    fake.manifest("a/b:1", MANIFEST, placed.document.to_string().as_bytes());
    let name = format!("{}/a/b:1", fake.host);
    pull(&world, &name).unwrap();
    assert_whole(&world, &name);

    let other = Fake::new();
    let copy = format!("{}/a/b:1", other.host);
    world
        .store
        .tag(&name, &Reference::parse(&copy).unwrap())
        .unwrap();
    let (pushed, said) = push(&world, &copy);
    pushed.unwrap();
    assert!(said.contains("Foreign"), "{said}");
    let state = other.state.lock().unwrap();
    assert!(!state.blobs.contains_key(&digest.to_string()));
    assert_eq!(state.blobs.len(), 3);
}

#[test]
fn schema_1_is_read() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    let placed = place(&fake, "a/b:1", gzip);
    let step = |id: &str, parent: &str, rest: serde_json::Value| {
        let mut document = json!({"id": id, "parent": parent, "created": "2014-01-01T00:00:00Z"});
        for (key, value) in rest.as_object().unwrap() {
            document[key] = value.clone();
        }
        json!({"v1Compatibility": document.to_string()})
    };
    let command = |text: &str| json!({"container_config": {"Cmd": ["/bin/sh", "-c", text]}});
    let empty = gzip(&Tar::new().end());
    let document = json!({
        "schemaVersion": 1, "name": "a/b", "tag": "old", "architecture": "amd64",
        "fsLayers": [
            {"blobSum": placed.layers[2]}, {"blobSum": fake.blob(&empty)}, {"blobSum": placed.layers[1]}, {"blobSum": placed.layers[0]},
        ],
        "history": [
            step("d", "c", json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/f2"]}})),
            step("c", "b", json!({"throwaway": true, "container_config": {"Cmd": ["env"]}})),
            step("b", "a", command("two")),
            step("a", "", command("one")),
        ],
    });
    let kind = "application/vnd.docker.distribution.manifest.v1+json";
    let digest = fake.manifest("a/b:old", kind, document.to_string().as_bytes());
    let name = format!("{}/a/b:old", fake.host);
    let pulled = pull(&world, &name).unwrap();
    assert_eq!(pulled.digest, digest);
    assert_whole(&world, &name);
    let image = world.image(&name);
    assert_eq!(
        image.config.config.cmd.as_deref(),
        Some(&["/f2".to_owned()][..])
    );
    assert_eq!(image.config.history.len(), 4);
    assert_eq!(image.layers.len(), 3);
    assert_eq!(
        image.config.history[0].created_by.as_deref(),
        Some("/bin/sh -c one")
    );
}

#[test]
fn a_pull_that_nobody_waits_for_ends() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    let placed = place(&fake, "a/b:1", gzip);
    let layer = placed.layers[0].clone();
    fake.rule(move |hit| of(hit, &layer).then_some(Fault::Drip));
    let looked = AtomicBool::new(false);
    let gone = || looked.swap(true, Ordering::SeqCst);
    let began = Instant::now();
    let refused = words(pull_while(
        &world,
        &format!("{}/a/b:1", fake.host),
        None,
        &gone,
    ));
    assert_eq!(refused, "context canceled");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_nothing(&world);
}

#[test]
fn an_upload_that_breaks_off_begins_again() {
    let (fake, world) = (Fake::new(), impatient(&[]));
    world
        .load(&docker_archive(
            &layers(),
            &[&format!("{}/a/b:1", fake.host)],
        ))
        .unwrap();
    let name = format!("{}/a/b:1", fake.host);
    let id = world.image(&name).id.clone();
    let failures = Mutex::new(0);
    fake.rule(move |hit| {
        let mut failures = failures.lock().unwrap();
        if hit.method != "PATCH" || *failures == 4 {
            return None;
        }
        *failures += 1;
        Some(match *failures {
            1 => Fault::Refuse(50_000),
            2 => Fault::Status(503, vec![], String::new()),
            3 => Fault::Refuse(0),
            _ => Fault::Status(500, vec![], String::new()),
        })
    });
    let (first, _) = push(&world, &name);
    // 500 is an answer: it is not asked again.
    if let Err(error) = first {
        assert_eq!(
            error.chain(),
            "received unexpected HTTP status: 500 Internal Server Error"
        );
    }
    let (pushed, _) = push(&world, &name);
    let pushed = pushed.unwrap();
    let other = impatient(&[]);
    let pulled = pull(&other, &name).unwrap();
    assert_eq!((pulled.id, pulled.digest), (id, pushed.digest));
    assert_whole(&other, &name);
    // The same again asks for each blob and sends none.
    fake.rule(|_| None);
    let (again, said) = push(&world, &name);
    again.unwrap();
    assert_eq!(said.matches("Exists").count(), 3, "{said}");
    assert!(fake.hits("PATCH", "").is_empty());
}

#[test]
fn a_full_registry_and_a_silent_one_are_told_as_they_are() {
    let (fake, world) = (Fake::new(), waiting(Duration::from_millis(200), &[]));
    let name = format!("{}/a/b:1", fake.host);
    world.load(&docker_archive(&layers(), &[&name])).unwrap();
    fake.rule(|hit| {
        let text = r#"{"errors":[{"code":"UNKNOWN","message":"no space left on device"}]}"#;
        (hit.method == "PATCH").then(|| Fault::Status(507, vec![], text.into()))
    });
    assert_eq!(
        words(push(&world, &name).0),
        "unknown: no space left on device"
    );
    fake.rule(|hit| (hit.method == "PATCH").then_some(Fault::Hang));
    let began = Instant::now();
    let refused = words(push(&world, &name).0);
    assert!(
        refused.contains("the registry stopped in the middle of an upload"),
        "{refused}"
    );
    assert!(began.elapsed() < Duration::from_secs(120));
    assert!(fake.state.lock().unwrap().manifests.is_empty());
}

#[test]
fn a_damaged_blob_on_disk_never_leaves() {
    let fake = Fake::new();
    let name = format!("{}/a/b:1", fake.host);
    for (number, layer) in layers().iter().enumerate() {
        for packed in [layer.clone(), gzip(layer)] {
            let world = impatient(&[]);
            let archive = docker_archive_of(
                std::slice::from_ref(layer),
                std::slice::from_ref(&packed),
                &[&name],
            );
            world.load(&archive).unwrap();
            let path = world
                .images_dir()
                .join("blobs/sha256")
                .join(sha256(&packed).hex());
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[number * 90_000 + 600] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            let refused = words(push(&world, &name).0);
            assert!(refused.contains("is damaged"), "{refused}");
            let state = fake.state.lock().unwrap();
            assert!(state.manifests.is_empty());
            assert!(
                state
                    .blobs
                    .iter()
                    .all(|(name, bytes)| *name == sha256(bytes).to_string())
            );
        }
    }
}

/// Holds an answer back until it is told to go on.
#[derive(Clone, Default)]
struct Gate(std::sync::Arc<(Mutex<(bool, bool)>, std::sync::Condvar)>);

impl Gate {
    /// In the server: somebody is here, and waits.
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.0 = true;
        changed.notify_all();
        let waited = changed.wait_timeout_while(state, Duration::from_secs(30), |s| !s.1);
        assert!(!waited.unwrap().1.timed_out());
    }
    fn wait_for_somebody(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap();
        let waited = changed.wait_timeout_while(state, Duration::from_secs(30), |s| !s.0);
        assert!(!waited.unwrap().1.timed_out());
    }
    fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().1 = true;
        changed.notify_all();
    }
}

fn sweep(world: &World) {
    let none = |_: &Digest| false;
    let all = gantry_image::DiskBudget {
        bytes: 0,
        keep: 0,
        dry_run: false,
    };
    world.store.prune(true, &|_| true, &none).unwrap();
    world.store.reclaim(all, &none).unwrap();
    world.store.collect(&none).unwrap();
}

#[test]
fn collection_takes_nothing_that_a_pull_counts_on() {
    let (fake, world) = (Fake::new(), waiting(Duration::from_secs(30), &[]));
    let placed = place(&fake, "a/b:1", gzip);
    // The first two layers are here, by an image that goes in the middle of the pull.
    let plain = &layers()[..2];
    let packed: Vec<Vec<u8>> = plain.iter().map(|l| gzip(l)).collect();
    world
        .load(&docker_archive_of(plain, &packed, &["old:1"]))
        .unwrap();
    let gate = Gate::default();
    let (inside, last) = (gate.clone(), placed.layers[2].clone());
    fake.rule(move |hit| {
        if of(hit, &last) {
            inside.pass();
        }
        None
    });
    let name = format!("{}/a/b:1", fake.host);
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| pull(&world, &name));
        gate.wait_for_somebody();
        sweep(&world);
        assert!(world.store.get("old:1").is_err());
        gate.open();
        pulling.join().unwrap().unwrap();
    });
    assert_whole(&world, &name);
    assert_eq!(fake.hits("GET", "/blobs/").len(), 2);
    assert!(world.store.check(false, &|_| false).unwrap().1.is_empty());
    sweep(&world);
    assert_nothing(&world);
}

#[test]
fn collection_takes_nothing_that_a_push_reads() {
    let (fake, world) = (Fake::new(), waiting(Duration::from_secs(30), &[]));
    let name = format!("{}/a/b:1", fake.host);
    world.load(&docker_archive(&layers(), &[&name])).unwrap();
    let gate = Gate::default();
    let inside = gate.clone();
    fake.rule(move |hit| {
        if hit.method == "PATCH" {
            inside.pass();
        }
        None
    });
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push(&world, &name).0);
        gate.wait_for_somebody();
        sweep(&world);
        assert!(world.store.list().unwrap().is_empty());
        gate.open();
        pushing.join().unwrap().unwrap();
    });
    // Freed when the push was over.
    assert_nothing(&world);
    fake.rule(|_| None);
    pull(&world, &name).unwrap();
    assert_whole(&world, &name);
}
