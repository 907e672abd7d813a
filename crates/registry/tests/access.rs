//! Who may do what: accounts, robots, tokens, limits, TLS.

#![forbid(unsafe_code)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, OCI_MANIFEST, Server, digest};
use gantry_registry::access::{Account, Accounts, Grant, Proof, new_secret};
use serde_json::{Value, json};

/// A secret for each name, so that no password has to be stretched in every test.
fn account(secret: &str, grants: &[&str]) -> Account {
    let proof = Proof::Secret(digest(secret.as_bytes())[7..].to_owned());
    Account {
        proof,
        grants: grants.iter().map(|g| Grant::parse(g).unwrap()).collect(),
        expires: None,
    }
}

fn accounts() -> Accounts {
    let mut accounts = Accounts::default();
    let mut add = |name: &str, grants: &[&str]| {
        let account = account(&format!("{name}-secret"), grants);
        accounts.accounts.insert(name.to_owned(), account);
    };
    add("admin", &["*:read,write,delete"]);
    add("dev", &["team/*:read,write", "public/*:read"]);
    add("ci", &["team/app:read"]);
    accounts.anonymous = vec![Grant::parse("public/*:read").unwrap()];
    accounts
}

fn server() -> Server {
    Server::with(&[("access.json", serde_json::to_value(accounts()).unwrap())])
}

fn basic(name: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{name}-secret")))
}

fn ask(server: &Server, authorization: &str, method: &str, path: &str) -> Answer {
    server.send(method, path, &[("Authorization", authorization)], b"")
}

/// As docker does it: the challenge says where a token is to be had.
fn token(server: &Server, name: Option<&str>, scope: &str) -> String {
    let path = format!("/v2/token?service=gantry-registry&scope={scope}");
    let answer = match name {
        Some(name) => ask(server, &basic(name), "GET", &path),
        None => server.ask("GET", &path),
    };
    let answer = answer.is(200);
    assert_eq!(answer.json()["token"], answer.json()["access_token"]);
    format!("Bearer {}", answer.json()["token"].as_str().unwrap())
}

#[test]
fn without_an_account_one_learns_where_to_sign_in() {
    let server = server();
    for path in [
        "/v2/",
        "/v2/_catalog",
        "/v2/team/app/tags/list",
        "/v2/team/app/manifests/v1",
    ] {
        let refused = server.ask("GET", path).is(401);
        assert_eq!(refused.code(), "UNAUTHORIZED");
        let challenge = refused.header("www-authenticate").unwrap();
        let realm = format!(
            "Bearer realm=\"http://{}/v2/token\",service=\"gantry-registry\"",
            server.address
        );
        assert!(challenge.starts_with(&realm), "{challenge}");
        if path.contains("team") {
            assert!(
                challenge.contains("scope=\"repository:team/app:pull\""),
                "{challenge}"
            );
        }
    }
    let push = server.ask("POST", "/v2/team/app/blobs/uploads/").is(401);
    assert!(
        push.header("www-authenticate")
            .unwrap()
            .contains("scope=\"repository:team/app:pull,push\"")
    );
    // A host that is no host does not come back in the challenge.
    let odd = server
        .send(
            "GET",
            "/v2/team/app/tags/list",
            &[("Authorization", "Digest x")],
            b"",
        )
        .is(401);
    assert!(odd.header("www-authenticate").is_some());
}

#[test]
fn basic_and_tokens_give_what_the_account_has() {
    let server = server();
    let push = |authorization: &str, name: &str| {
        ask(
            &server,
            authorization,
            "POST",
            &format!("/v2/{name}/blobs/uploads/"),
        )
        .status
    };
    assert_eq!(push(&basic("dev"), "team/app"), 202);
    assert_eq!(push(&basic("dev"), "public/app"), 403);
    assert_eq!(push(&basic("ci"), "team/app"), 403);
    let dev = token(&server, Some("dev"), "repository:team/app:pull,push,delete");
    assert_eq!(push(&dev, "team/app"), 202);
    // A token is for what it says, whatever the account may.
    assert_eq!(push(&dev, "team/other"), 401);
    let delete = format!("/v2/team/app/manifests/{}", digest(b""));
    let refused = ask(&server, &dev, "DELETE", &delete).is(401);
    assert!(
        refused
            .header("www-authenticate")
            .unwrap()
            .contains("error=\"insufficient_scope\"")
    );
    let admin = token(&server, Some("admin"), "repository:team/app:delete");
    ask(&server, &admin, "DELETE", &delete).is(404);
    ask(&server, &dev, "GET", "/v2/").is(200);
    // Several scopes in one parameter or several.
    let both = token(
        &server,
        Some("dev"),
        "repository:team/a:pull%20repository:team/b:push&scope=repository:team/c:push",
    );
    assert_eq!(
        (
            push(&both, "team/a"),
            push(&both, "team/b"),
            push(&both, "team/c")
        ),
        (401, 202, 202)
    );
}

#[test]
fn wrong_expired_and_forged_credentials_are_refused() {
    let mut all = accounts();
    let mut old = account("old-secret", &["*:read"]);
    old.expires = Some("2020-01-01T00:00:00Z".parse().unwrap());
    all.accounts.insert("old".to_owned(), old);
    let server = Server::with(&[("access.json", serde_json::to_value(&all).unwrap())]);
    ask(&server, &basic("nobody"), "GET", "/v2/").is(401);
    let expired = ask(&server, &basic("old"), "GET", "/v2/").is(401);
    assert!(
        expired.json()["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("expired")
    );
    for bad in [
        "Basic",
        "Basic !!",
        "Basic eA==",
        "Bearer",
        "Bearer a.b.c",
        "Nonsense x",
    ] {
        ask(&server, bad, "GET", "/v2/").is(401);
    }
    let good = token(&server, Some("dev"), "repository:team/app:pull");
    // One changed letter in the claims or in the signature.
    for at in [good.find('.').unwrap() + 5, good.len() - 5] {
        let mut forged = good.clone().into_bytes();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        ask(&server, &String::from_utf8(forged).unwrap(), "GET", "/v2/").is(401);
    }
    let unsigned = r#"{"iss":"gantry-registry","sub":"admin","aud":"gantry-registry","exp":99999999999,"nbf":0,"iat":0,"access":[]}"#;
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let none = format!(
        "Bearer {}.{}.",
        encode(r#"{"alg":"none"}"#),
        encode(unsigned)
    );
    ask(&server, &none, "GET", "/v2/").is(401);
}

#[test]
fn a_token_of_one_server_is_good_at_another() {
    let server = server();
    let second = Server::over(&server.root, None);
    let dev = token(&server, Some("dev"), "repository:team/app:push");
    ask(&second, &dev, "POST", "/v2/team/app/blobs/uploads/").is(202);
}

#[test]
fn oauth_form_as_containerd_sends_it() {
    let server = server();
    let form = |text: &str| {
        server.send(
            "POST",
            "/v2/token",
            &[("Content-Type", "application/x-www-form-urlencoded")],
            text.as_bytes(),
        )
    };
    let answer = form("grant_type=password&service=gantry-registry&username=dev&password=dev-secret&scope=repository%3Ateam%2Fapp%3Apush").is(200);
    let bearer = format!("Bearer {}", answer.json()["access_token"].as_str().unwrap());
    ask(&server, &bearer, "POST", "/v2/team/app/blobs/uploads/").is(202);
    form("grant_type=password&username=dev&password=wrong").is(401);
    form("grant_type=refresh_token&refresh_token=x").is(400);
    form(&"x".repeat(20_000)).is(400);
}

#[test]
fn the_catalogue_and_mounts_show_only_what_the_caller_may_read() {
    let server = server();
    let admin = basic("admin");
    let authorization = [("Authorization", admin.as_str())];
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let manifest = common::manifest_of(config, b"layer", json!({}));
    for name in ["team/app", "team/other", "public/tool", "secret"] {
        for bytes in [config.as_slice(), b"layer"] {
            let path = format!("/v2/{name}/blobs/uploads/?digest={}", digest(bytes));
            server.send("POST", &path, &authorization, bytes).is(201);
        }
        let path = format!("/v2/{name}/manifests/v1");
        let headers = [authorization[0], ("Content-Type", OCI_MANIFEST)];
        server.send("PUT", &path, &headers, &manifest).is(201);
    }
    let names = |name: &str| -> Value {
        ask(&server, &basic(name), "GET", "/v2/_catalog")
            .is(200)
            .json()["repositories"]
            .clone()
    };
    assert_eq!(
        names("dev"),
        json!(["public/tool", "team/app", "team/other"])
    );
    assert_eq!(names("ci"), json!(["team/app"]));
    let mount = |from: &str| {
        let path = format!(
            "/v2/team/new/blobs/uploads/?mount={}&from={from}",
            digest(b"layer")
        );
        ask(&server, &basic("dev"), "POST", &path).status
    };
    assert_eq!((mount("secret"), mount("team/app")), (202, 201));
    // What is public is so by way of a token for nobody.
    let anyone = token(&server, None, "repository:public/tool:pull");
    ask(&server, &anyone, "GET", "/v2/public/tool/manifests/v1").is(200);
    ask(&server, &anyone, "GET", "/v2/team/app/manifests/v1").is(401);
    server.ask("GET", "/v2/public/tool/manifests/v1").is(200);
}

#[test]
fn a_removed_account_is_out_within_a_moment() {
    let server = server();
    ask(&server, &basic("dev"), "GET", "/v2/").is(200);
    let mut all = accounts();
    all.accounts.remove("dev");
    let (secret, proof) = new_secret().unwrap();
    all.accounts.insert(
        "robot+x".to_owned(),
        Account {
            proof,
            grants: vec![],
            expires: None,
        },
    );
    all.write(&server.root).unwrap();
    gantry_testkit::eventually(
        "the account is gone",
        std::time::Duration::from_secs(20),
        || match ask(&server, &basic("dev"), "GET", "/v2/").status {
            401 => Ok(()),
            other => Err(format!("{other}")),
        },
    );
    let robot = format!("Basic {}", STANDARD.encode(format!("robot+x:{secret}")));
    ask(&server, &robot, "GET", "/v2/").is(200);
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let policy = json!({"requests_per_second": 0.5, "burst": 5});
    let server = Server::with(&[
        ("policy.json", policy),
        ("access.json", serde_json::to_value(accounts()).unwrap()),
    ]);
    for _ in 0..5 {
        ask(&server, &basic("dev"), "GET", "/v2/").is(200);
    }
    let refused = ask(&server, &basic("dev"), "GET", "/v2/").is(429);
    assert_eq!(refused.code(), "TOOMANYREQUESTS");
    assert!(
        refused
            .header("retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    // Another account has its own measure.
    ask(&server, &basic("ci"), "GET", "/v2/").is(200);
}

#[test]
fn passwords_cannot_be_guessed_for_long() {
    let server = server();
    let wrong = format!("Basic {}", STANDARD.encode("dev:guess"));
    let statuses: Vec<u16> = (0..12)
        .map(|_| ask(&server, &wrong, "GET", "/v2/").status)
        .collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[11], 429);
    ask(&server, &basic("admin"), "GET", "/v2/").is(200);
}

#[test]
fn over_tls_the_challenge_says_https() {
    let server = server();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
    let config =
        gantry_registry::tls(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let encrypted = Server::over(&server.root, Some(config));
    let authority = server.root.join("ca.pem");
    std::fs::write(&authority, certificate.pem()).unwrap();
    let curl = |more: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "-i", "--noproxy", "*", "--cacert"])
            .arg(&authority)
            .args(more)
            .arg(format!("https://{}/v2/", encrypted.address))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = curl(&[]);
    let realm = format!("realm=\"https://{}/v2/token\"", encrypted.address);
    assert!(
        refused.contains("401 Unauthorized") && refused.contains(&realm),
        "{refused}"
    );
    assert!(curl(&["-u", "dev:dev-secret"]).contains("200 OK"));
    assert!(gantry_registry::tls(b"nothing", b"nothing").is_err());
}
