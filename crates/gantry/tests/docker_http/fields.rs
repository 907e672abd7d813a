//! Every field of the requests that make, change and enter containers: `conformance/docker_fields.txt`, line by line, and the page of
//! the manual that is made from it.

use super::{Answer, GANTRY, World, get, send};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Field<'a> {
    request: &'a str,
    name: &'a str,
    versions: &'a str,
    body: String,
    proof: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn table() -> String {
    std::fs::read_to_string(root().join("conformance/docker_fields.txt")).unwrap()
}

fn fields(text: &str) -> Vec<Field<'_>> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.splitn(4, " | ");
            let mut part = || parts.next().unwrap_or_else(|| panic!("too short: {line}"));
            let (request, name) = part().split_once(' ').unwrap();
            let versions = part();
            Field {
                request,
                name,
                versions,
                body: part().to_owned(),
                proof: part().to_owned(),
            }
        })
        .collect()
}

/// `{"a":{"b":1}}` upon `{"a":{"c":2}}`.
fn merge(base: &mut Value, more: &Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more.clone(),
    }
}

/// Whether everything that was sent stands in what is shown.
fn shows(shown: &Value, sent: &Value) -> bool {
    match (shown, sent) {
        (Value::Object(shown), Value::Object(sent)) => sent
            .iter()
            .all(|(key, value)| shown.get(key).is_some_and(|there| shows(there, value))),
        (Value::Array(shown), Value::Array(sent)) => {
            shown.len() == sent.len() && shown.iter().zip(sent).all(|(a, b)| shows(a, b))
        }
        (shown, sent) => shown == sent,
    }
}

/// The first block device of the machine.
fn block_device() -> String {
    let mut names: Vec<String> = std::fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
        .filter(|path| Path::new(path).exists())
        .collect();
    names.sort();
    names.first().cloned().expect("there is a block device")
}

/// A specification of the Container Device Interface of this test alone.
struct Cdi(PathBuf, String);

impl Cdi {
    fn new() -> Self {
        let kind = format!("gantry.test{}/thing", std::process::id());
        let path = Path::new("/var/run/cdi").join(format!("{}.json", kind.replace('/', "-")));
        std::fs::create_dir_all("/var/run/cdi").unwrap();
        let file = json!({"cdiVersion": "0.6.0", "kind": kind, "devices": [{"name": "one", "containerEdits": {
            "env": ["FROM_CDI=yes"], "deviceNodes": [{"path": "/dev/of-cdi", "hostPath": "/dev/null"}]}}]});
        std::fs::write(&path, file.to_string()).unwrap();
        Self(path, kind)
    }
}

impl Drop for Cdi {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn message(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    match serde_json::from_str::<Value>(&text) {
        Ok(json) => json["message"].as_str().unwrap_or(&text).to_owned(),
        Err(_) => text.into_owned(),
    }
}

fn refused(answer: &Answer, sentence: &str) -> Result<(), String> {
    let message = message(answer);
    match (400..500).contains(&answer.status) && message.contains(sentence) {
        true => Ok(()),
        false => Err(format!("{} {message}", answer.status)),
    }
}

fn contains(output: &str, wanted: &str) -> Result<(), String> {
    match output.contains(wanted) {
        true => Ok(()),
        false => Err(format!("it printed {output:?}")),
    }
}

fn pointer(shown: &Value, text: &str) -> Result<(), String> {
    let (pointer, wanted) = text.split_once(" = ").unwrap();
    let wanted: Value = serde_json::from_str(wanted).unwrap();
    match shown.pointer(pointer) {
        Some(value) if *value == wanted => Ok(()),
        other => Err(format!("inspect shows {other:?}")),
    }
}

fn create(world: &World, sent: &Value, proof: &str) -> Result<(), String> {
    let only_prints = proof.starts_with("prints: ");
    let runs = proof
        .strip_prefix("inside: ")
        .or(proof.strip_prefix("prints: "));
    let (command, wanted) = match runs {
        Some(rest) => rest.split_once(" => ").unwrap(),
        None => ("true", ""),
    };
    let mut body = json!({"Image": "busybox", "Cmd": ["sh", "-c", command]});
    merge(&mut body, sent);
    let answer = send(world, "POST", "/containers/create", &body.to_string());
    // Some things only the start finds out.
    let sentence = proof.strip_prefix("refused: ");
    if let (Some(sentence), 400..) = (sentence, answer.status) {
        return refused(&answer, sentence);
    }
    if answer.status != 201 {
        return Err(format!("{} {}", answer.status, message(&answer)));
    }
    let warnings = answer.json()["Warnings"].clone();
    let id = answer.json()["Id"].as_str().unwrap().to_owned();
    let at = |path: &str| format!("/containers/{id}{path}");
    let outcome = (|| {
        if let Some(sentence) = sentence {
            return refused(&send(world, "POST", &at("/start"), ""), sentence);
        }
        if !only_prints && warnings.as_array().is_some_and(|list| !list.is_empty()) {
            return Err(format!("warnings: {warnings}"));
        }
        let shown = get(world, &at("/json")).json();
        if let Some(text) = proof.strip_prefix("shows: ") {
            return pointer(&shown, text);
        }
        let mut document = shown["Config"].clone();
        document["HostConfig"] = shown["HostConfig"].clone();
        let mut asked = sent.clone();
        asked.as_object_mut().unwrap().remove("NetworkingConfig");
        if !only_prints && !shows(&document, &asked) {
            return Err(format!("inspect shows {document}"));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let started = send(world, "POST", &at("/start"), "");
        if started.status != 204 {
            return Err(format!("{} {}", started.status, message(&started)));
        }
        send(world, "POST", &at("/wait"), "");
        let logs = get(world, &at("/logs?stdout=1&stderr=1"));
        contains(&String::from_utf8_lossy(&logs.body), wanted)
    })();
    let gone = send(world, "DELETE", &at("?force=1&v=1"), "");
    assert_eq!(gone.status, 204, "{}", message(&gone));
    outcome
}

/// What a command in the running container prints.
fn exec(world: &World, create: &Value, start: &Value, command: &str) -> Result<String, String> {
    let mut body =
        json!({"AttachStdout": true, "AttachStderr": true, "Cmd": ["sh", "-c", command]});
    merge(&mut body, create);
    let made = send(world, "POST", "/containers/other/exec", &body.to_string());
    if made.status != 201 {
        return Err(format!("{} {}", made.status, message(&made)));
    }
    let id = made.json()["Id"].as_str().unwrap().to_owned();
    let mut body = json!({"Tty": create["Tty"]});
    merge(&mut body, start);
    let output = super::to_the_end(
        world,
        "POST",
        &format!("/exec/{id}/start"),
        &body.to_string(),
    );
    Ok(output)
}

fn update(world: &World, sent: &Value, proof: &str) -> Result<(), String> {
    let answer = send(world, "POST", "/containers/other/update", &sent.to_string());
    if let Some(sentence) = proof.strip_prefix("refused: ") {
        return refused(&answer, sentence);
    }
    if answer.status != 200 {
        return Err(format!("{} {}", answer.status, message(&answer)));
    }
    let shown = get(world, "/containers/other/json").json();
    if !shows(&shown["HostConfig"], sent) {
        return Err(format!("inspect shows {}", shown["HostConfig"]));
    }
    match proof.strip_prefix("inside: ") {
        Some(rest) => {
            let (command, wanted) = rest.split_once(" => ").unwrap();
            contains(&exec(world, &json!({}), &json!({}), command)?, wanted)
        }
        None => Ok(()),
    }
}

fn enter(world: &World, field: &Field<'_>, sent: &Value) -> Result<(), String> {
    if let Some(text) = field.proof.strip_prefix("shows: ") {
        let mut body = json!({"Cmd": ["true"]});
        merge(&mut body, sent);
        let made = send(world, "POST", "/containers/other/exec", &body.to_string()).json();
        let path = format!("/exec/{}/json", made["Id"].as_str().unwrap());
        return pointer(&get(world, &path).json(), text);
    }
    let (command, wanted) = field.proof["inside: ".len()..].split_once(" => ").unwrap();
    let tty = json!({"Tty": sent["Tty"]});
    let output = match field.request {
        "exec" => exec(world, sent, &json!({"ConsoleSize": Value::Null}), command),
        _ => exec(world, &tty, sent, command),
    };
    contains(&output?, wanted)
}

#[test]
fn no_field_is_ignored() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    let cdi = Cdi::new();
    let parent = world.instance() + "/fields";
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let made = "echo in memory >/dev/shm/shared; mkdir -p /of-other/sub; echo below >/of-other/sub/file; exec sleep 600";
    for words in [
        &[
            "network",
            "create",
            "--ipv6",
            "--subnet",
            "10.231.7.0/24",
            "--subnet",
            "fd00:231:7::/64",
            "net1",
        ][..],
        &["volume", "create", "of-other"],
        &[
            "run",
            "-d",
            "--name",
            "other",
            "--ipc",
            "shareable",
            "-v",
            "of-other:/of-other",
            "busybox",
            "sh",
            "-c",
            made,
        ],
    ] {
        world.docker(words).ok();
    }
    gantry_testkit::eventually(
        "the other container",
        std::time::Duration::from_secs(20),
        || match exec(&world, &json!({}), &json!({}), "cat /of-other/sub/file")?.contains("below") {
            true => Ok(()),
            false => Err("no file yet".to_owned()),
        },
    );
    let text = table();
    let tests = sources();
    let (mut wrong, mut sent_bodies) = (Vec::new(), 0);
    for mut field in fields(&text) {
        for text in [&mut field.body, &mut field.proof] {
            for (place, value) in [
                ("@BLOCK", block_device().as_str()),
                ("@PARENT", &parent),
                ("@FOLDER", &world.folder().display().to_string()),
                ("@CDI", &cdi.1),
                ("@HOSTNAME", hostname.trim()),
            ] {
                *text = text.replace(place, value);
            }
        }
        if let Some(test) = field.proof.strip_prefix("test: ") {
            assert!(
                tests.contains(&format!("fn {test}(")),
                "there is no test {test}"
            );
            continue;
        }
        if field.proof == "answer" {
            continue;
        }
        let sent: Value =
            serde_json::from_str(&field.body).unwrap_or_else(|e| panic!("{}: {e}", field.name));
        sent_bodies += 1;
        let outcome = match field.request {
            "create" => create(&world, &sent, &field.proof),
            "update" => update(&world, &sent, &field.proof),
            _ => enter(&world, &field, &sent),
        };
        if let Err(why) = outcome {
            wrong.push(format!(
                "{} {}: {} ({})\n   {why}",
                field.request, field.name, field.proof, field.body
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {sent_bodies} fields:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    world.docker(&["rm", "-fv", "other"]).ok();
}

/// The text of all tests that a line may name.
fn sources() -> String {
    let crates = root().join("crates");
    let folders = [
        "gantry/tests",
        "gantry/tests/whole",
        "engine/src/container",
        "engine/src/tests",
    ];
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(crates.join(folder)).unwrap());
    let texts = files
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.collect()
}

/// What the server's own types read is in the table, so that a new field comes with its line.
#[test]
fn every_field_that_is_read_has_its_line() {
    use gantry_docker_api::create::{ContainerConfig, ExecConfig, HostConfig, UpdateContainer};
    let text = table();
    let fields = fields(&text);
    let has = |request: &str, name: &str| {
        fields.iter().any(|field| {
            field.request == request
                && (field.name == name
                    || field
                        .name
                        .strip_prefix(name)
                        .is_some_and(|rest| rest.starts_with(['.', '[', '{'])))
        })
    };
    let keys = |value: Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let of = |value: Value, request: &'static str, prefix: &'static str| {
        keys(value)
            .into_iter()
            .map(move |key| (request, format!("{prefix}{key}")))
    };
    let known = of(
        serde_json::to_value(ContainerConfig::default()).unwrap(),
        "create",
        "",
    )
    .chain(of(
        serde_json::to_value(HostConfig::default()).unwrap(),
        "create",
        "HostConfig.",
    ))
    .chain(of(
        serde_json::to_value(UpdateContainer::default()).unwrap(),
        "update",
        "",
    ))
    .chain(of(
        serde_json::to_value(ExecConfig::default()).unwrap(),
        "exec",
        "",
    ));
    let missing: Vec<String> = known
        .filter(|(request, name)| !has(request, name))
        .map(|(request, name)| format!("{request} {name}"))
        .collect();
    assert!(
        missing.is_empty(),
        "no line in conformance/docker_fields.txt: {missing:?}"
    );
}

#[test]
fn the_manual_lists_the_fields() {
    let mut page = String::from(
        "# Fields of the Docker API\n\nWhat `POST /containers/create`, `/containers/{id}/update`, `/containers/{id}/exec` and `/exec/{id}/start` do with each field of the API 1.24 to 1.50. \
         Nothing is ignored in silence: a field works, or the request is refused in one sentence. Made from `conformance/docker_fields.txt`, which the tests \
         send field by field (`no_field_is_ignored`).\n",
    );
    let text = table();
    for (request, title) in [
        ("create", "Create"),
        ("update", "Update"),
        ("exec", "Exec"),
        ("start", "Start of an exec"),
    ] {
        page += &format!("\n## {title}\n\n| Field | API | | Test |\n|---|---|---|---|\n");
        for field in fields(&text)
            .iter()
            .filter(|field| field.request == request)
        {
            let (what, test) = match field.proof.split_once(": ") {
                Some(("refused", sentence)) => (
                    format!("refused: {}", sentence.replace('|', "\\|")),
                    "no_field_is_ignored",
                ),
                Some(("test", test)) => ("works".to_owned(), test),
                _ if field.proof == "answer" => ("only in answers, as in Docker".to_owned(), ""),
                _ if field.proof == "shown" => ("kept and shown".to_owned(), "no_field_is_ignored"),
                _ => ("works".to_owned(), "no_field_is_ignored"),
            };
            page += &format!(
                "| {} | {} | {what} | {test} |\n",
                field.name, field.versions
            );
        }
    }
    let path = root().join("docs/how-to/docker-fields.md");
    if std::env::var_os("GANTRY_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/how-to/docker-fields.md is not what conformance/docker_fields.txt says: run this test with GANTRY_BLESS=1"
    );
}
