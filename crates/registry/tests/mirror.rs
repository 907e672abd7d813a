//! A registry whose repositories come from another one.

#![forbid(unsafe_code)]

mod common;

use common::{OCI_INDEX, OCI_MANIFEST, Server, digest, noise};
use gantry_registry::access::{Account, Accounts, Grant, Proof};
use serde_json::{Value, json};

/// A mirror of `upstream` below `hub/`, which compares tags at every request.
fn mirror(upstream: &Server, more: Value) -> Server {
    let mut entry = json!({
        "match": "hub/*", "upstream": format!("http://{}", upstream.address), "strip": "hub/", "fresh_seconds": 0,
    });
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    Server::with(&[("policy.json", json!({ "mirrors": [entry] }))])
}

#[test]
fn what_is_asked_for_is_fetched_and_kept() {
    let upstream = Server::start();
    let layer = noise(1, 2_000_000);
    let (d, manifest) = upstream.image("a/b", "v1", &layer);
    let mirror = mirror(&upstream, json!({}));
    for reference in ["v1", &d] {
        let got = mirror
            .ask("GET", &format!("/v2/hub/a/b/manifests/{reference}"))
            .is(200);
        assert_eq!((got.body, got.headers.len() > 3), (manifest.clone(), true));
    }
    let blob = format!("/v2/hub/a/b/blobs/{}", digest(&layer));
    let head = mirror.ask("HEAD", &blob).is(200);
    assert_eq!(head.header("content-length"), Some("2000000"));
    assert!(mirror.ask("GET", &blob).is(200).body == layer);
    // What upstream lacks is unknown here, too.
    mirror.ask("GET", "/v2/hub/a/b/manifests/none").is(404);
    mirror
        .ask("GET", &format!("/v2/hub/a/b/blobs/{}", digest(b"none")))
        .is(404);
    mirror
        .ask("GET", &format!("/v2/hub/none/manifests/{d}"))
        .is(404);
    // Upstream is gone: what was fetched is served on, the rest is a failure and not an absence.
    let (address, _) = (upstream.address, drop(upstream));
    mirror.ask("GET", "/v2/hub/a/b/manifests/v1").is(200);
    assert!(mirror.ask("GET", &blob).is(200).body == layer);
    let refused = mirror.ask("GET", "/v2/hub/a/b/manifests/v2").is(502);
    assert!(!String::from_utf8_lossy(&refused.body).contains(&format!("{address}/v2")));
}

#[test]
fn tags_follow_upstream_and_are_not_compared_while_fresh() {
    let upstream = Server::start();
    let (_, first) = upstream.image("a", "v1", b"one");
    let eager = mirror(&upstream, json!({}));
    let lazy = mirror(&upstream, json!({"fresh_seconds": 3600}));
    let get = |server: &Server| server.ask("GET", "/v2/hub/a/manifests/v1");
    assert_eq!(
        (get(&eager).body, get(&lazy).body),
        (first.clone(), first.clone())
    );
    let (_, second) = upstream.image("a", "v1", b"two");
    assert_eq!((get(&eager).body, get(&lazy).body), (second, first));
    upstream.ask("DELETE", "/v2/a/manifests/v1").is(202);
    get(&eager).is(404);
    get(&lazy).is(200);
}

#[test]
fn an_index_brings_its_manifests_when_they_are_asked_for() {
    let upstream = Server::start();
    let (child, bytes) = upstream.image("a", "child", b"layer");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": child, "size": bytes.len()}]});
    let index = index.to_string().into_bytes();
    upstream.put("a", "multi", OCI_INDEX, &index).is(201);
    let mirror = mirror(&upstream, json!({}));
    assert_eq!(
        mirror.ask("GET", "/v2/hub/a/manifests/multi").is(200).body,
        index
    );
    assert_eq!(
        mirror
            .ask("GET", &format!("/v2/hub/a/manifests/{child}"))
            .is(200)
            .body,
        bytes
    );
    mirror
        .ask("GET", &format!("/v2/hub/a/blobs/{}", digest(b"layer")))
        .is(200);
}

#[test]
fn damage_here_is_healed_from_upstream() {
    use std::os::unix::fs::FileExt;
    let upstream = Server::start();
    let layer = noise(2, 50_000);
    upstream.image("a", "v1", &layer);
    let mirror = mirror(&upstream, json!({}));
    let d = digest(&layer);
    let path = format!("/v2/hub/a/blobs/{d}");
    mirror.ask("GET", &path).is(200);
    let file = mirror
        .root
        .join(format!("blobs/sha256/{}/{}", &d[7..9], &d[7..]));
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(b"damage", 100).unwrap();
    assert!(mirror.ask("GET", &path).is(200).body == layer);
    assert!(
        mirror
            .root
            .join("damaged")
            .read_dir()
            .unwrap()
            .next()
            .is_some()
    );
}

#[test]
fn damage_there_is_not_passed_on() {
    let d = digest(b"something else");
    // A server that does not look: the file behind an honest name holds something else, and nothing is cut.
    let lying = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = lying.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in lying.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwrong",
            );
        }
    });
    let entry = json!({"match": "hub/*", "upstream": format!("http://{address}"), "strip": "hub/"});
    let mirror = Server::with(&[("policy.json", json!({ "mirrors": [entry] }))]);
    mirror.ask("GET", &format!("/v2/hub/a/blobs/{d}")).is(502);
    mirror
        .ask("GET", &format!("/v2/hub/a/manifests/{d}"))
        .is(502);
    // And nothing of it stays.
    assert!(
        mirror
            .root
            .join("uploads")
            .read_dir()
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn upstream_may_want_an_account() {
    let mut accounts = Accounts::default();
    let account = Account {
        proof: Proof::Secret(digest(b"s3cret")[7..].to_owned()),
        grants: vec![Grant::parse("*:read,write").unwrap()],
        expires: None,
    };
    accounts.accounts.insert("mirror".to_owned(), account);
    let open = Server::start();
    let (_, manifest) = open.image("a", "v1", b"layer");
    accounts.write(&open.root).unwrap();
    let closed = Server::over(&open.root, None);
    closed.ask("GET", "/v2/a/manifests/v1").is(401);
    let signed = mirror(&closed, json!({"username": "mirror", "password": "s3cret"}));
    assert_eq!(
        signed.ask("GET", "/v2/hub/a/manifests/v1").is(200).body,
        manifest
    );
    signed
        .ask("GET", &format!("/v2/hub/a/blobs/{}", digest(b"layer")))
        .is(200);
    for wrong in [
        json!({}),
        json!({"username": "mirror", "password": "wrong"}),
    ] {
        mirror(&closed, wrong)
            .ask("GET", "/v2/hub/a/manifests/v1")
            .is(404);
    }
}

#[test]
fn a_mirror_takes_no_pushes() {
    let upstream = Server::start();
    let mirror = mirror(&upstream, json!({}));
    let refused = mirror.ask("POST", "/v2/hub/a/blobs/uploads/").is(405);
    assert_eq!(refused.code(), "UNSUPPORTED");
    mirror.put("hub/a", "v1", OCI_MANIFEST, b"{}").is(405);
    mirror.ask("POST", "/v2/own/blobs/uploads/").is(202);
}
