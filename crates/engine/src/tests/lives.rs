//! Lives that go on by themselves: unhealthy containers, links, subpaths, logs that are sent on, events over a crash.

use super::*;
use serde_json::json;
use std::os::unix::net::UnixDatagram;

/// Until `probe` gives something.
async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn with_config(mut request: CreateContainer, config: serde_json::Value) -> CreateContainer {
    let mut merged = serde_json::to_value(&request.config).unwrap();
    merged
        .as_object_mut()
        .unwrap()
        .extend(config.as_object().unwrap().clone());
    request.config = serde_json::from_value(merged).unwrap();
    request
}

fn sick(name: &str, labels: serde_json::Value) -> CreateContainer {
    let check =
        json!({"Test": ["CMD-SHELL", "test -e /well"], "Interval": 20_000_000, "Retries": 2});
    with_config(
        shell(
            name,
            "trap 'exit 3' TERM; while :; do sleep 0.05; done",
            no_host(),
        ),
        json!({"Healthcheck": check, "Labels": labels}),
    )
}

#[test]
fn an_unhealthy_container_is_restarted_when_its_label_says_so() {
    let mut node = Node::new();
    node.run(async |engine| {
        engine
            .create(sick("weak", json!({"gantry.restart-unhealthy": "true"})))
            .await
            .unwrap();
        engine.create(sick("left", json!({}))).await.unwrap();
        engine.start("weak").await.unwrap();
        engine.start("left").await.unwrap();
        until("a restart", || {
            (engine.get("weak").unwrap().restart_count >= 2).then_some(())
        })
        .await;
        let unhealthy = || {
            let record = engine.get("left").unwrap();
            record
                .health
                .as_ref()
                .is_some_and(|health| health.status == "unhealthy")
                .then_some(())
        };
        until("a failed check", unhealthy).await;
        let left = engine.get("left").unwrap();
        assert_eq!((left.restart_count, left.state.status()), (0, "running"));
        // What the user stops stays stopped.
        engine.stop("weak", None, Some(0)).await.unwrap();
        assert_eq!(engine.get("weak").unwrap().state.status(), "exited");
    });
    // Also when the daemon was away in the middle of it.
    node.run(async |engine| {
        engine.start("weak").await.unwrap();
    });
    node.crash_and_up();
    node.run(async |engine| {
        until("a restart after the crash", || {
            (engine.get("weak").unwrap().restart_count >= 1).then_some(())
        })
        .await;
    });
}

#[test]
fn a_link_gives_the_other_ones_address_and_variables() {
    let node = Node::new();
    node.run(async |engine| {
        let bridge = |links: &[&str]| json!({"NetworkMode": "bridge", "Links": links});
        let db = with_config(
            shell("db", "sleep 600", bridge(&[])),
            json!({"Env": ["FOO=1"], "ExposedPorts": {"5432/tcp": {}}}),
        );
        engine.create(db).await.unwrap();
        let refusal = refused(
            engine
                .create(shell("xx", "true", bridge(&["nobody:n"])))
                .await,
        );
        assert_eq!(
            refusal,
            (
                ErrorKind::NotFound,
                "could not get container for nobody: No such container: nobody".into()
            )
        );
        engine
            .create(shell("web", "env; cat /etc/hosts", bridge(&["db:my-db"])))
            .await
            .unwrap();
        assert_eq!(
            engine.get("web").unwrap().host_config.links,
            Some(vec!["/db:/web/my-db".into()])
        );
        let refusal = refused(engine.start("web").await);
        assert_eq!(
            refusal.1,
            "Cannot link to a non running container: /db AS /web/my-db"
        );
        engine.start("db").await.unwrap();
        let address = engine.get("db").unwrap().endpoints["bridge"]
            .address
            .to_string();
        let mut attached = engine.attach("web", WATCH).await.unwrap();
        engine.start("web").await.unwrap();
        let text = text(&mut attached).await;
        for part in [
            "MY_DB_NAME=/web/my-db\n".to_owned(),
            "MY_DB_ENV_FOO=1\n".to_owned(),
            format!("MY_DB_PORT_5432_TCP_ADDR={address}\n"),
            format!("{address}\tmy-db "),
        ] {
            assert!(text.contains(&part), "{part} is not in {text}");
        }
        let how = Remove {
            link: true,
            ..Remove::default()
        };
        engine.remove("/web/my-db", how).await.unwrap();
        assert_eq!(
            engine.get("web").unwrap().host_config.links,
            Some(Vec::new())
        );
        assert_eq!(
            refused(engine.remove("/web/my-db", how).await).0,
            ErrorKind::NotFound
        );
    });
}

#[test]
fn a_subpath_never_leaves_its_volume() {
    let node = Node::new();
    node.run(async |engine| {
        let mount = |subpath: &str| {
            json!({"Mounts": [{"Type": "volume", "Source": "data", "Target": "/m", "VolumeOptions": {"Subpath": subpath}}]})
        };
        engine.create(shell("fill", "mkdir -p /v/a/b; echo deep >/v/a/b/f; ln -s / /v/out; ln -s a/b /v/in", json!({"Binds": ["data:/v"]}))).await.unwrap();
        engine.start("fill").await.unwrap();
        code(&engine, "fill", WaitCondition::NotRunning).await;
        for (subpath, want) in [("a/b", "deep\n"), ("in", "deep\n")] {
            let (id, mut attached) = started(&engine, shell("look", "cat /m/f", mount(subpath))).await;
            assert_eq!(text(&mut attached).await, want, "{subpath}");
            engine.remove(&id, FORCE).await.unwrap();
        }
        // A link to `/` is the volume's own root, not the host's.
        let (id, mut attached) = started(&engine, shell("look", "ls /m", mount("out"))).await;
        assert_eq!(text(&mut attached).await, "a\nin\nout\n");
        engine.remove(&id, FORCE).await.unwrap();
        engine.create(shell("none", "true", mount("missing"))).await.unwrap();
        assert!(refused(engine.start("none").await).1.ends_with("_data/missing: no such file or directory"));
        for bad in ["../x", "/etc", "a/../../x"] {
            let refusal = refused(engine.create(shell("bad", "true", mount(bad))).await);
            assert_eq!(refusal.1, "invalid mount config for type \"volume\": subpath must be a relative path within the volume");
        }
    });
}

/// All that arrives until a message has `last` in it.
fn heard(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let size = socket.recv(&mut buffer).expect("a message in time");
        let text = String::from_utf8_lossy(&buffer[..size])
            .trim_end()
            .to_owned();
        let is_last = text.contains(last);
        messages.push(text);
        if is_last {
            return messages;
        }
    }
}

#[test]
fn a_log_is_sent_on_also_what_was_written_while_nobody_did() {
    let mut node = Node::new();
    let path = node.dir.path().join("syslog.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = format!("unixgram://{}", path.display());
    let log = json!({"LogConfig": {"Type": "syslog", "Config": {"syslog-address": address, "tag": "{{.Name}}"}}});
    let gate = node.dir.path().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let mut host = log.clone();
    host["Binds"] = json!([format!("{}:/gate", gate.display())]);
    node.run(async |engine| {
        let script =
            "echo one; while ! test -e /gate/open; do sleep 0.02; done; echo two; echo three >&2";
        engine.create(shell("app", script, host)).await.unwrap();
        engine.start("app").await.unwrap();
    });
    let first = heard(&socket, "one");
    assert!(
        first[0].starts_with("<30>") && first[0].contains(" app["),
        "{first:?}"
    );
    // The place that was reached gets to the disk within a second; before that, a crash may send a line twice, never none.
    node.crash();
    std::fs::write(gate.join("open"), "").unwrap();
    node.up();
    let mut rest = heard(&socket, "three");
    rest.retain(|message| !message.ends_with("one"));
    let ends: Vec<_> = rest
        .iter()
        .map(|message| message.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(ends, ["two", "three"]);
    assert!(rest[1].starts_with("<27>"), "stderr is an error: {rest:?}");
    node.run(async |engine| {
        // And docker logs reads it all the same.
        let mut lines = engine.logs("app", crate::LogOptions { stdout: true, ..Default::default() }).await.unwrap();
        assert_eq!(&lines.recv().await.unwrap().unwrap().line[..], b"one\n");
        let nowhere = json!({"LogConfig": {"Type": "syslog", "Config": {"syslog-address": "unixgram:///nonexistent"}}});
        engine.create(shell("nowhere", "true", nowhere)).await.unwrap();
        let refusal = refused(engine.start("nowhere").await);
        assert!(refusal.1.contains("failed to initialize logging driver: dial unixgram /nonexistent: connect: no such file or directory"), "{}", refusal.1);
    });
}

#[test]
fn labels_and_the_tag_stand_in_the_log() {
    let node = Node::new();
    node.run(async |engine| {
        let host = json!({"LogConfig": {"Type": "json-file", "Config": {"labels": "team", "env-regex": "^A", "tag": "{{.Name}}"}}});
        let request = with_config(shell("app", "echo x", host), json!({"Labels": {"team": "blue", "other": "1"}, "Env": ["A1=v", "B=w"]}));
        engine.create(request).await.unwrap();
        engine.start("app").await.unwrap();
        code(&engine, "app", WaitCondition::NotRunning).await;
        let mut lines = engine.logs("app", crate::LogOptions { stdout: true, ..Default::default() }).await.unwrap();
        let line = lines.recv().await.unwrap().unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(line.attrs, [pair("A1", "v"), pair("tag", "app"), pair("team", "blue")]);
    });
}

#[test]
fn events_have_no_gap_over_a_crash() {
    let mut node = Node::new();
    let gate = node.dir.path().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let host = json!({"Binds": [format!("{}:/gate", gate.display())]});
    node.run(async |engine| {
        engine
            .create(shell(
                "app",
                "while ! test -e /gate/open; do sleep 0.02; done; exit 5",
                host,
            ))
            .await
            .unwrap();
        engine.start("app").await.unwrap();
    });
    node.crash();
    std::fs::write(gate.join("open"), "").unwrap();
    node.up();
    node.run(async |engine| {
        until("the end", || {
            (engine.get("app").unwrap().state.status() == "exited").then_some(())
        })
        .await;
        let actions = || {
            let (past, _) = engine.events().subscribe(Some(0));
            let own = past.into_iter().filter(|event| event.kind == "container");
            own.map(|event| (event.action, event.attributes.get("exitCode").cloned()))
                .collect::<Vec<_>>()
        };
        let last = until("the event of the end", || {
            actions()
                .last()
                .filter(|(action, _)| action == "die")
                .cloned()
        })
        .await;
        assert_eq!(last.1.as_deref(), Some("5"));
        let names: Vec<_> = actions().into_iter().map(|(action, _)| action).collect();
        assert_eq!(names, ["create", "start", "die"]);
    });
}
