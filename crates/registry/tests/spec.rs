//! distribution-spec 1.1: one case for each MUST and SHOULD that concerns a registry. A test is named for its section.

#![forbid(unsafe_code)]

mod common;

use common::{Answer, OCI_INDEX, OCI_MANIFEST, Server, digest, noise, send};
use serde_json::json;

const ABSENT: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn determining_support() {
    let server = Server::start();
    for path in ["/v2/", "/v2"] {
        let answer = server.ask("GET", path).is(200);
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );
    }
    server.ask("POST", "/v2/").is(405);
}

#[test]
fn pulling_manifests() {
    let server = Server::start();
    let (d, bytes) = server.image("a/b", "v1", b"layer");
    for reference in ["v1", &d] {
        let path = format!("/v2/a/b/manifests/{reference}");
        // "MUST provide the expected manifest, with a response code that MUST be 200 OK."
        let got = server.ask("GET", &path).is(200);
        // "MUST store the manifest in the exact byte representation provided by the client."
        assert_eq!(got.body, bytes);
        // "The Content-Type header SHOULD match what the client pushed", "SHOULD NOT include parameters".
        assert_eq!(got.header("content-type"), Some(OCI_MANIFEST));
        assert_eq!(got.header("docker-content-digest"), Some(d.as_str()));
    }
    // "If the manifest is not found in the repository, the response code MUST be 404 Not Found."
    for path in [
        "/v2/a/b/manifests/none".to_owned(),
        format!("/v2/a/b/manifests/{ABSENT}"),
        format!("/v2/other/manifests/{d}"),
    ] {
        assert_eq!(server.ask("GET", &path).is(404).code(), "MANIFEST_UNKNOWN");
    }
    // "MUST match the following regular expression" (name, reference).
    for (path, code) in [
        ("/v2/A/manifests/v1", "NAME_INVALID"),
        ("/v2/a/b/manifests/.v1", "MANIFEST_INVALID"),
        ("/v2/a/b/manifests/sha256:12", "DIGEST_INVALID"),
    ] {
        assert_eq!(server.ask("GET", path).is(400).code(), code, "{path}");
    }
    let long = format!("/v2/a/b/manifests/{}", "x".repeat(129));
    server.ask("GET", &long).is(400);
}

#[test]
fn pulling_manifests_negotiation() {
    let server = Server::start();
    let (child, bytes) = server.image("a", "child", b"layer");
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": child, "size": bytes.len(),
                       "platform": {"os": "linux", "architecture": "amd64"}}],
    });
    let index = index.to_string().into_bytes();
    server.put("a", "multi", OCI_INDEX, &index).is(201);
    let get = |reference: &str, accept: &str| {
        let path = format!("/v2/a/manifests/{reference}");
        server
            .send("GET", &path, &[("Accept", accept)], b"")
            .is(200)
    };
    assert_eq!(
        get("multi", &format!("{OCI_MANIFEST}, {OCI_INDEX}")).body,
        index
    );
    assert_eq!(get("multi", "*/*").body, index);
    assert_eq!(get("multi", "application/json").body, index);
    // A client from before indexes.
    assert_eq!(get("multi", OCI_MANIFEST).body, bytes);
    assert_eq!(get(&digest(&index), OCI_MANIFEST).body, index);
    // What the client has need not travel again.
    let again = server.send(
        "GET",
        "/v2/a/manifests/multi",
        &[("If-None-Match", &format!("\"{}\"", digest(&index)))],
        b"",
    );
    assert!(again.is(304).body.is_empty());
}

#[test]
fn pulling_blobs() {
    let server = Server::start();
    // Around the sizes where the way of reading changes.
    for size in [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000] {
        let bytes = noise(size as u64, size);
        let d = server.blob("a", &bytes);
        let got = server.ask("GET", &format!("/v2/a/blobs/{d}")).is(200);
        assert!(got.body == bytes, "{size}");
        assert_eq!(got.header("docker-content-digest"), Some(d.as_str()));
    }
    let missing = server.ask("GET", &format!("/v2/a/blobs/{ABSENT}")).is(404);
    assert_eq!(missing.code(), "BLOB_UNKNOWN");
    // A blob belongs to the repositories that it was pushed to.
    let d = server.blob("a", b"secret of a");
    server.ask("GET", &format!("/v2/b/blobs/{d}")).is(404);
    assert_eq!(
        server.ask("GET", "/v2/a/blobs/md5:00").is(400).code(),
        "DIGEST_INVALID"
    );
}

#[test]
fn pulling_blobs_ranges() {
    // "A registry SHOULD support the Range request header in accordance with RFC 9110."
    let server = Server::start();
    for size in [1000, 3_000_000] {
        let bytes = noise(7, size);
        let d = server.blob("a", &bytes);
        let get = |range: &str| {
            let path = format!("/v2/a/blobs/{d}");
            server.send("GET", &path, &[("Range", range)], b"")
        };
        for (range, begin, end) in [
            ("bytes=0-9".to_owned(), 0, 10),
            ("bytes=500-".to_owned(), 500, size),
            ("bytes=-10".to_owned(), size - 10, size),
            (
                format!("bytes={}-{}", size / 3, size - 100),
                size / 3,
                size - 99,
            ),
            (format!("bytes=10-{}", size * 2), 10, size),
        ] {
            let part = get(&range).is(206);
            assert!(part.body == bytes[begin..end], "{range}");
            let stated = format!("bytes {begin}-{}/{size}", end - 1);
            assert_eq!(part.header("content-range"), Some(stated.as_str()));
        }
        let beyond = get(&format!("bytes={size}-")).is(416);
        let stated = format!("bytes */{size}");
        assert_eq!(beyond.header("content-range"), Some(stated.as_str()));
        assert!(get("bytes=0-1,5-6").is(200).body == bytes);
    }
}

#[test]
fn checking_if_content_exists_in_the_registry() {
    let server = Server::start();
    let (d, bytes) = server.image("a", "v1", b"layer");
    let blob = digest(b"layer");
    for (path, of, size) in [
        ("/v2/a/manifests/v1".to_owned(), &d, bytes.len()),
        (format!("/v2/a/manifests/{d}"), &d, bytes.len()),
        (format!("/v2/a/blobs/{blob}"), &blob, 5),
    ] {
        let answer = server.ask("HEAD", &path).is(200);
        assert_eq!(
            answer.header("content-length"),
            Some(size.to_string().as_str())
        );
        assert_eq!(answer.header("docker-content-digest"), Some(of.as_str()));
        assert!(answer.body.is_empty());
    }
    for path in [
        "/v2/a/manifests/none".to_owned(),
        format!("/v2/a/blobs/{ABSENT}"),
    ] {
        server.ask("HEAD", &path).is(404);
    }
}

#[test]
fn pushing_a_blob_monolithically_post_then_put() {
    let server = Server::start();
    let d = digest(b"hello");
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    // "MUST contain a UUID representing a unique session ID for the upload to follow."
    let other = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    assert_ne!(begun.location(), other.location());
    let done = server
        .send(
            "PUT",
            &format!("{}?digest={d}", begun.location()),
            &[],
            b"hello",
        )
        .is(201);
    // "MUST have the following header: Location: <blob-location>", a pullable URL.
    assert_eq!(server.ask("GET", &done.location()).is(200).body, b"hello");
    assert_eq!(done.header("docker-content-digest"), Some(d.as_str()));
    // Said again (the first answer was lost): the same.
    server
        .send(
            "PUT",
            &format!("{}?digest={d}", begun.location()),
            &[],
            b"hello",
        )
        .is(201);

    let wrong = |digest: &str, code: &str| {
        let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
        let path = format!("{}{digest}", begun.location());
        assert_eq!(
            server.send("PUT", &path, &[], b"other").is(400).code(),
            code
        );
    };
    wrong(&format!("?digest={ABSENT}"), "DIGEST_INVALID");
    wrong("?digest=sha256:1", "DIGEST_INVALID");
    wrong("", "DIGEST_INVALID");
    server.ask("GET", &format!("/v2/a/blobs/{ABSENT}")).is(404);
    // An id of another repository is none here.
    let foreign = other.location().replace("/v2/a/", "/v2/b/");
    assert_eq!(
        server
            .send("PUT", &format!("{foreign}?digest={d}"), &[], b"hello")
            .is(404)
            .code(),
        "BLOB_UPLOAD_UNKNOWN"
    );
}

#[test]
fn pushing_a_blob_monolithically_single_post() {
    let server = Server::start();
    for size in [0, 100, 2_000_000] {
        let bytes = noise(3, size);
        let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&bytes));
        let done = server.send("POST", &path, &[], &bytes).is(201);
        assert!(server.ask("GET", &done.location()).is(200).body == bytes);
    }
    let path = format!("/v2/a/blobs/uploads/?digest={ABSENT}");
    assert_eq!(
        server.send("POST", &path, &[], b"x").is(400).code(),
        "DIGEST_INVALID"
    );
}

#[test]
fn pushing_a_blob_with_sha512() {
    let server = Server::start();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, b"hello");
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let path = format!("/v2/a/blobs/uploads/?digest=sha512:{hex}");
    let done = server.send("POST", &path, &[], b"hello").is(201);
    assert_eq!(server.ask("GET", &done.location()).is(200).body, b"hello");
}

fn patch(server: &Server, location: &str, range: &str, bytes: &[u8]) -> Answer {
    server.send("PATCH", location, &[("Content-Range", range)], bytes)
}

#[test]
fn pushing_a_blob_in_chunks() {
    let server = Server::start();
    let bytes = noise(5, 1_500_000);
    let begun = server
        .send(
            "POST",
            "/v2/a/blobs/uploads/",
            &[("Content-Length", "0")],
            b"",
        )
        .is(202);
    // "Each successful chunk upload MUST have a 202 Accepted response code, and MUST have: Location, Range."
    let first = patch(&server, &begun.location(), "0-999999", &bytes[..1_000_000]).is(202);
    assert_eq!(first.header("range"), Some("0-999999"));
    // "If a chunk is uploaded out of order, the registry MUST respond with 416."
    for range in ["0-999999", "1000001-1000002", "500000-1499999"] {
        let refused = patch(&server, &first.location(), range, &bytes[..2]).is(416);
        assert_eq!(refused.header("range"), Some("0-999999"), "{range}");
    }
    for (range, body) in [
        ("1000000-1000005", &bytes[..2]),
        ("x-y", &bytes[..2]),
        ("5-1", &bytes[..2]),
    ] {
        patch(&server, &first.location(), range, body).is(400);
    }
    // "The response to an active upload <location> MUST be a 204 No Content", with Location and Range.
    let status = server.ask("GET", &first.location()).is(204);
    assert_eq!(status.header("range"), Some("0-999999"));
    let second = patch(
        &server,
        &status.location(),
        "1000000-1399999",
        &bytes[1_000_000..1_400_000],
    )
    .is(202);
    assert_eq!(second.header("range"), Some("0-1399999"));
    // "The session MUST be closed with a PUT request", which may carry the last chunk.
    let path = format!("{}?digest={}", second.location(), digest(&bytes));
    let range = [("Content-Range", "1400000-1499999")];
    let done = server
        .send("PUT", &path, &range, &bytes[1_400_000..])
        .is(201);
    assert!(server.ask("GET", &done.location()).is(200).body == bytes);
    assert_eq!(
        server.ask("GET", &second.location()).is(404).code(),
        "BLOB_UPLOAD_UNKNOWN"
    );
    // The closing PUT may be empty, too.
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    let sent = patch(&server, &begun.location(), "0-3", b"abcd").is(202);
    let path = format!("{}?digest={}", sent.location(), digest(b"abcd"));
    server.send("PUT", &path, &[], b"").is(201);
}

#[test]
fn pushing_a_blob_streamed() {
    // One PATCH without a range, its length unknown, as docker sends it.
    let server = Server::start();
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    let mut body = Vec::new();
    for part in [&b"hello "[..], b"world"] {
        body.extend(format!("{:x}\r\n", part.len()).bytes());
        body.extend(part);
        body.extend(b"\r\n");
    }
    body.extend(b"0\r\n\r\n");
    let chunked = [("Transfer-Encoding", "chunked")];
    let sent = server
        .send("PATCH", &begun.location(), &chunked, &body)
        .is(202);
    assert_eq!(sent.header("range"), Some("0-10"));
    let path = format!("{}?digest={}", sent.location(), digest(b"hello world"));
    server.send("PUT", &path, &[], b"").is(201);
}

#[test]
fn resumable_push() {
    use std::io::Write;
    // Another server over the same folder goes on with an upload that broke off.
    let server = Server::start();
    let second = Server::over(&server.root, None);
    let bytes = noise(9, 3_000_000);
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "PATCH {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        begun.location(),
        bytes.len()
    )
    .unwrap();
    stream.write_all(&bytes[..2_000_000]).unwrap();
    drop(stream);
    gantry_testkit::eventually(
        "the bytes are there",
        std::time::Duration::from_secs(20),
        || {
            let status = second.ask("GET", &begun.location());
            match status.header("range") {
                Some("0-1999999") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    );
    let sent = patch(
        &second,
        &begun.location(),
        "2000000-2999999",
        &bytes[2_000_000..],
    )
    .is(202);
    let path = format!("{}?digest={}", sent.location(), digest(&bytes));
    let done = server.send("PUT", &path, &[], b"").is(201);
    assert!(second.ask("GET", &done.location()).is(200).body == bytes);
}

#[test]
fn canceling_a_blob_upload() {
    let server = Server::start();
    let begun = server.ask("POST", "/v2/a/blobs/uploads/").is(202);
    server.ask("DELETE", &begun.location()).is(204);
    server.ask("GET", &begun.location()).is(404);
    server.ask("DELETE", &begun.location()).is(404);
}

#[test]
fn mounting_a_blob_from_another_repository() {
    let server = Server::start();
    let d = server.blob("a", b"shared");
    let mount = |query: &str| server.ask("POST", &format!("/v2/b/blobs/uploads/?{query}"));
    // "The response to a successful mount MUST be 201 Created, and MUST contain Location."
    let done = mount(&format!("mount={d}&from=a")).is(201);
    assert_eq!(server.ask("GET", &done.location()).is(200).body, b"shared");
    // "unable to mount the requested blob, it SHOULD return a 202."
    for query in [
        format!("mount={ABSENT}&from=a"),
        format!("mount={d}&from=nowhere"),
        format!("mount={d}&from=../a"),
        format!("mount={d}"),
    ] {
        assert!(
            mount(&query).is(202).header("location").is_some(),
            "{query}"
        );
    }
    mount("mount=sha256:1&from=a").is(400);
}

#[test]
fn pushing_manifests() {
    let server = Server::start();
    let manifest = server.manifest_of("a", b"layer", json!({}));
    let d = digest(&manifest);
    for reference in ["v1", &d] {
        // "MUST return response code 201 Created, and MUST have Location: <location>", a pullable URL.
        let done = server.put("a", reference, OCI_MANIFEST, &manifest).is(201);
        assert_eq!(server.ask("GET", &done.location()).is(200).body, manifest);
        assert_eq!(done.header("docker-content-digest"), Some(d.as_str()));
    }
    // "The registry SHOULD ignore parameters on the Content-Type header."
    let with = format!("{OCI_MANIFEST}; charset=utf-8");
    server.put("a", "v2", &with, &manifest).is(201);
    let refused = server.put("a", "v3", OCI_INDEX, &manifest).is(400);
    assert_eq!(refused.code(), "MANIFEST_INVALID");
    let refused = server.put("a", ABSENT, OCI_MANIFEST, &manifest).is(400);
    assert_eq!(refused.code(), "DIGEST_INVALID");
    let refused = server.put("a", "v3", OCI_MANIFEST, b"{").is(400);
    assert_eq!(refused.code(), "MANIFEST_INVALID");
    // "When a manifest is rejected for this reason, it MUST result in one or more MANIFEST_BLOB_UNKNOWN errors."
    let elsewhere = server.put("b", "v1", OCI_MANIFEST, &manifest);
    assert_eq!(elsewhere.code(), "MANIFEST_BLOB_UNKNOWN");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"digest": ABSENT, "size": 1}]});
    let missing = server.put("a", "v3", OCI_INDEX, index.to_string().as_bytes());
    assert_eq!(missing.code(), "MANIFEST_BLOB_UNKNOWN");
    server.ask("GET", "/v2/a/manifests/v3").is(404);
    // "An attempt to pull a nonexistent repository MUST return 404."
    server.ask("GET", "/v2/nowhere/manifests/v1").is(404);
}

#[test]
fn pushing_manifests_limits() {
    // "expect to be able to support manifest pushes of at least 4 megabytes"; over the limit "SHOULD respond with 413".
    let server = Server::start();
    let sized = |size: usize| {
        let base = server.manifest_of("a", b"layer", json!({"annotations": {"pad": ""}}));
        let pad = "x".repeat(size - base.len());
        server.manifest_of("a", b"layer", json!({"annotations": {"pad": pad}}))
    };
    server
        .put("a", "big", OCI_MANIFEST, &sized(4 << 20))
        .is(201);
    let refused = server.put("a", "bigger", OCI_MANIFEST, &sized((4 << 20) + 1));
    assert_eq!(refused.is(413).code(), "SIZE_INVALID");
}

#[test]
fn pushing_manifests_with_subject() {
    let server = Server::start();
    let subject = json!({"mediaType": OCI_MANIFEST, "digest": ABSENT, "size": 7});
    // "MUST initially accept an otherwise valid manifest with a subject field that references a manifest that does not exist."
    let manifest = server.manifest_of("a", b"layer", json!({"subject": subject}));
    let done = server.put("a", "sig", OCI_MANIFEST, &manifest).is(201);
    // "MUST respond with the response header OCI-Subject: <subject digest>."
    assert_eq!(done.header("oci-subject"), Some(ABSENT));
    let plain = server.manifest_of("a", b"layer", json!({}));
    let done = server.put("a", "plain", OCI_MANIFEST, &plain).is(201);
    assert_eq!(done.header("oci-subject"), None);
}

#[test]
fn pushing_manifests_with_tags_in_the_query() {
    let server = Server::start();
    let manifest = server.manifest_of("a", b"layer", json!({}));
    let d = digest(&manifest);
    let done = server
        .put("a", &format!("{d}?tag=x&tag=y"), OCI_MANIFEST, &manifest)
        .is(201);
    assert_eq!(done.header("oci-tag"), Some("x, y"));
    assert_eq!(
        server.ask("GET", "/v2/a/manifests/y").is(200).body,
        manifest
    );
    server
        .put("a", &format!("{d}?tag=.x"), OCI_MANIFEST, &manifest)
        .is(400);
}

#[test]
fn listing_tags() {
    let server = Server::start();
    server.image("a", "b", b"layer");
    let manifest = server.manifest_of("a", b"layer", json!({}));
    for tag in ["B2", "a10", "a2", "C", "_x", "1.0"] {
        server.put("a", tag, OCI_MANIFEST, &manifest).is(201);
    }
    let list = |query: &str| {
        server
            .ask("GET", &format!("/v2/a/tags/list{query}"))
            .is(200)
    };
    // "the tags MUST be in lexical order (i.e. case-insensitive alphanumeric order)."
    let all = ["1.0", "_x", "a10", "a2", "b", "B2", "C"];
    assert_eq!(list("").json(), json!({"name": "a", "tags": all}));
    // "the response MUST include <int> results", Link with rel="next", `last` is a tag and need not exist.
    let mut got = Vec::new();
    let mut query = "?n=3".to_owned();
    loop {
        let page = list(&query);
        let tags = page.json()["tags"].as_array().unwrap().clone();
        got.extend(tags.iter().map(|t| t.as_str().unwrap().to_owned()));
        match page.header("link") {
            Some(link) => {
                assert!(
                    link.ends_with("; rel=\"next\"") && tags.len() == 3,
                    "{link}"
                );
                let path = &link[1..link.find('>').unwrap()];
                query = path.strip_prefix("/v2/a/tags/list").unwrap().to_owned();
            }
            None => break,
        }
    }
    assert_eq!(got, all);
    assert_eq!(list("?last=a3").json()["tags"], json!(["b", "B2", "C"]));
    // "When n is zero, this endpoint MUST return an empty list, and MUST NOT include a Link header."
    let none = list("?n=0");
    assert_eq!(none.json()["tags"], json!([]));
    assert_eq!(none.header("link"), None);
    server.ask("GET", "/v2/a/tags/list?n=x").is(400);
    assert_eq!(
        server.ask("GET", "/v2/nowhere/tags/list").is(404).code(),
        "NAME_UNKNOWN"
    );
}

#[test]
fn listing_referrers() {
    let server = Server::start();
    let (subject, bytes) = server.image("a", "v1", b"layer");
    let of = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": bytes.len()});
    let list = |query: &str| {
        let answer = server
            .ask("GET", &format!("/v2/a/referrers/{subject}{query}"))
            .is(200);
        // "The Content-Type header MUST be set to application/vnd.oci.image.index.v1+json."
        assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
        answer
    };
    let entries = |answer: &Answer| answer.json()["manifests"].as_array().unwrap().clone();
    // "If a query results in no matching referrers, an empty manifest list MUST be returned."
    assert!(entries(&list("")).is_empty());
    let put = |more: serde_json::Value| {
        let manifest = server.manifest_of("a", b"layer", more);
        server
            .put("a", &digest(&manifest), OCI_MANIFEST, &manifest)
            .is(201);
        digest(&manifest)
    };
    let sbom = put(json!({"subject": of, "artifactType": "a/sbom", "annotations": {"k": "v"}}));
    let bare = put(json!({"subject": of, "annotations": {"n": "2"}}));
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": of})
        .to_string();
    server
        .put("a", &digest(index.as_bytes()), OCI_INDEX, index.as_bytes())
        .is(201);
    let all = entries(&list(""));
    assert_eq!(all.len(), 3);
    let find = |d: &str| all.iter().find(|m| m["digest"] == d).unwrap();
    // artifactType from the manifest, else from its config; an index without one has none; annotations are there.
    assert_eq!(find(&sbom)["artifactType"], "a/sbom");
    assert_eq!(find(&sbom)["annotations"], json!({"k": "v"}));
    assert_eq!(
        find(&bare)["artifactType"],
        "application/vnd.oci.image.config.v1+json"
    );
    assert_eq!(find(&digest(index.as_bytes())).get("artifactType"), None);
    // "SHOULD support filtering on artifactType"; "MUST include a header OCI-Filters-Applied: artifactType".
    let filtered = list("?artifactType=a%2Fsbom");
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(entries(&filtered).len(), 1);
    assert_eq!(entries(&filtered)[0]["digest"], sbom.as_str());
    assert_eq!(list("").header("oci-filters-applied"), None);
    // "A Link header MUST be included in the response when the descriptor list cannot be returned in a single manifest."
    let first = list("?n=2");
    let link = first.header("link").unwrap();
    let next = link[1..link.find('>').unwrap()].to_owned();
    let rest = server.ask("GET", &next).is(200);
    assert_eq!(
        (
            entries(&first).len(),
            entries(&rest).len(),
            rest.header("link")
        ),
        (2, 1, None)
    );
    // "MUST NOT return a 404 Not Found to a referrers API request"; "invalid syntax, a 400 Bad Request MUST be returned".
    assert!(
        entries(
            &server
                .ask("GET", &format!("/v2/a/referrers/{ABSENT}"))
                .is(200)
        )
        .is_empty()
    );
    server
        .ask("GET", &format!("/v2/nowhere/referrers/{ABSENT}"))
        .is(200);
    server.ask("GET", "/v2/a/referrers/sha256:x").is(400);
    // A referrer that is deleted is none any more.
    server
        .ask("DELETE", &format!("/v2/a/manifests/{sbom}"))
        .is(202);
    assert_eq!(entries(&list("")).len(), 2);
}

#[test]
fn deleting_tags() {
    let server = Server::start();
    let (d, bytes) = server.image("a", "v1", b"layer");
    server.put("a", "v2", OCI_MANIFEST, &bytes).is(201);
    server.ask("DELETE", "/v2/a/manifests/v1").is(202);
    server.ask("GET", "/v2/a/manifests/v1").is(404);
    server.ask("GET", "/v2/a/manifests/v2").is(200);
    server.ask("GET", &format!("/v2/a/manifests/{d}")).is(200);
    server.ask("DELETE", "/v2/a/manifests/v1").is(404);
    // "If tag deletion is disabled, the registry MUST respond with either a 400 or a 405."
    let policy = json!({"repositories": [{"match": "*", "immutable_tags": ["v*"]}]});
    let fixed = Server::with(&[("policy.json", policy)]);
    let (d, _) = fixed.image("a", "v1", b"layer");
    fixed.ask("DELETE", "/v2/a/manifests/v1").is(405);
    fixed.ask("DELETE", &format!("/v2/a/manifests/{d}")).is(405);
    fixed.ask("GET", "/v2/a/manifests/v1").is(200);
}

#[test]
fn deleting_manifests() {
    let server = Server::start();
    let (d, _) = server.image("a", "v1", b"layer");
    server
        .ask("DELETE", &format!("/v2/a/manifests/{d}"))
        .is(202);
    for reference in ["v1", &d] {
        server
            .ask("GET", &format!("/v2/a/manifests/{reference}"))
            .is(404);
    }
    assert_eq!(
        server.ask("GET", "/v2/a/tags/list").is(200).json()["tags"],
        json!([])
    );
    // "If the repository does not exist, the response MUST return 404 Not Found."
    server
        .ask("DELETE", &format!("/v2/nowhere/manifests/{d}"))
        .is(404);
    // Another server that had it in memory does not give it away either.
    let (d, _) = server.image("a", "v1", b"layer");
    let second = Server::over(&server.root, None);
    second.ask("GET", "/v2/a/manifests/v1").is(200);
    server
        .ask("DELETE", &format!("/v2/a/manifests/{d}"))
        .is(202);
    second.ask("GET", &format!("/v2/a/manifests/{d}")).is(404);
}

#[test]
fn deleting_blobs() {
    let server = Server::start();
    let d = server.blob("a", b"x");
    server.blob("b", b"x");
    server.ask("DELETE", &format!("/v2/a/blobs/{d}")).is(202);
    server.ask("GET", &format!("/v2/a/blobs/{d}")).is(404);
    server.ask("DELETE", &format!("/v2/a/blobs/{d}")).is(404);
    server.ask("GET", &format!("/v2/b/blobs/{d}")).is(200);
}

#[test]
fn error_codes() {
    let server = Server::start();
    let answer = server.ask("GET", "/v2/a/manifests/none").is(404);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let error = &answer.json()["errors"][0];
    assert!(
        error["code"]
            .as_str()
            .unwrap()
            .bytes()
            .all(|c| c.is_ascii_uppercase() || c == b'_')
    );
    assert!(error["message"].is_string());
    for (method, path) in [
        ("PATCH", "/v2/a/manifests/v1"),
        ("PUT", "/v2/a/tags/list"),
        ("POST", "/v2/_catalog"),
    ] {
        assert_eq!(server.ask(method, path).is(405).code(), "UNSUPPORTED");
    }
    server.ask("GET", "/").is(404);
    server.ask("GET", "/v2/%zz/tags/list").is(404);
}

#[test]
fn the_catalogue() {
    let server = Server::start();
    for name in ["b", "a/c", "a-b", "a"] {
        server.image(name, "v1", b"layer");
    }
    server.blob("only/blobs", b"x");
    let list = |query: &str| server.ask("GET", &format!("/v2/_catalog{query}")).is(200);
    assert_eq!(
        list("").json()["repositories"],
        json!(["a", "a-b", "a/c", "b"])
    );
    let page = list("?n=2");
    assert_eq!(page.json()["repositories"], json!(["a", "a-b"]));
    assert_eq!(
        page.header("link"),
        Some("</v2/_catalog?n=2&last=a-b>; rel=\"next\"")
    );
    assert_eq!(
        list("?n=2&last=a-b").json()["repositories"],
        json!(["a/c", "b"])
    );
}

#[test]
fn every_request_has_limits() {
    let server = Server::start();
    let long = "x".repeat(100_000);
    for headers in [vec![("X", long.as_str())], vec![("X", "y"); 100]] {
        match send(server.address, "GET", "/v2/", &headers, b"") {
            Ok(answer) => assert_eq!(answer.status, 431),
            Err(e) => assert!(e.kind() != std::io::ErrorKind::TimedOut, "{e}"),
        }
    }
    server
        .ask(
            "GET",
            &format!("/v2/{}/tags/list", "a/".repeat(200).trim_end_matches('/')),
        )
        .is(400);
    let policy = json!({"max_blob_bytes": 1000});
    let small = Server::with(&[("policy.json", policy)]);
    let d = digest(&[0; 1001]);
    let refused = small.send(
        "POST",
        &format!("/v2/a/blobs/uploads/?digest={d}"),
        &[],
        &[0; 1001],
    );
    assert_eq!(refused.is(413).code(), "SIZE_INVALID");
    // Also when the length is not said before.
    let begun = small.ask("POST", "/v2/a/blobs/uploads/").is(202);
    let mut body = b"3e9\r\n".to_vec();
    body.extend([0; 1001]);
    body.extend(b"\r\n0\r\n\r\n");
    small
        .send(
            "PATCH",
            &begun.location(),
            &[("Transfer-Encoding", "chunked")],
            &body,
        )
        .is(413);
    small.ask("GET", &begun.location()).is(404);
}
