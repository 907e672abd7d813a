//! Docker's plug-ins of the first kind: volumes that somebody else keeps, and somebody who must allow every request.

use crate::GANTRY;
use gantry_testkit::{Options, World};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A plug-in that answers with `answer`; what it was asked stands in the list.
fn serve(
    socket: &Path,
    answer: impl Fn(&str, &Value) -> Value + Send + 'static,
) -> Arc<Mutex<Vec<String>>> {
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let list = asked.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some((method, question)) = question(&stream) else {
                continue;
            };
            list.lock().unwrap().push(format!("{method} {question}"));
            let body = answer(&method, &question).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = (&stream).write_all((head + &body).as_bytes());
        }
    });
    asked
}

fn question(stream: &UnixStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let method = line.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((method, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn socket(world: &World, name: &str) -> PathBuf {
    world.run_dir().join("plugins").join(format!("{name}.sock"))
}

#[test]
fn volumes_of_a_plugin() {
    let world = crate::busybox();
    let refused = world
        .docker(&["volume", "create", "-d", "far", "v1"])
        .fails(1);
    assert!(refused.contains("plugin \"far\" not found"), "{refused}");
    let place = world.folder().join("far");
    std::fs::create_dir(&place).unwrap();
    let kept = place.clone();
    let asked = serve(
        &socket(&world, "far"),
        move |method, question| match method {
            "Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
            "VolumeDriver.Create" if question["Opts"]["size"] == "no" => json!({"Err": "no room"}),
            "VolumeDriver.Mount" => json!({"Mountpoint": kept}),
            _ => json!({}),
        },
    );
    let refused = world
        .docker(&["volume", "create", "-d", "far", "-o", "size=no", "v0"])
        .fails(1);
    assert!(
        refused.contains("create v0: ") && refused.contains("no room"),
        "{refused}"
    );
    world
        .docker(&["volume", "create", "-d", "far", "-o", "a=b", "v1"])
        .ok();
    let shown = world
        .docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"])
        .ok();
    assert_eq!(shown, "far v1");
    world
        .docker(&[
            "run",
            "--name",
            "box",
            "-v",
            "v1:/data",
            "busybox",
            "sh",
            "-c",
            "echo kept >/data/file",
        ])
        .ok();
    assert_eq!(
        std::fs::read_to_string(place.join("file")).unwrap(),
        "kept\n"
    );
    // Made on the way, by a container.
    let printed = world
        .docker(&[
            "run",
            "--rm",
            "--volume-driver",
            "far",
            "-v",
            "v2:/data",
            "busybox",
            "cat",
            "/data/file",
        ])
        .ok();
    assert_eq!(printed, "kept");
    let refused = world.docker(&["cp", "box:/data/file", "-"]).fails(1);
    assert!(refused.contains("belongs to plugin far"), "{refused}");
    assert!(
        world
            .docker(&["volume", "rm", "v1"])
            .fails(1)
            .contains("volume is in use")
    );
    world.docker(&["rm", "box"]).ok();
    world.docker(&["volume", "rm", "v1", "v2"]).ok();
    assert!(
        place.join("file").exists(),
        "the plug-in's files are its own"
    );
    let asked = asked.lock().unwrap().clone();
    let count = |word: &str| asked.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!(count("VolumeDriver.Mount"), 2, "{asked:?}");
    assert_eq!(count("VolumeDriver.Unmount"), 2, "{asked:?}");
    assert_eq!(count("VolumeDriver.Remove"), 2, "{asked:?}");
    assert!(
        asked
            .iter()
            .any(|line| line.contains(r#""Opts":{"a":"b"}"#)),
        "{asked:?}"
    );
    std::fs::remove_dir_all(world.run_dir().join("plugins")).unwrap();
    world.purge();
}

#[test]
fn a_plugin_allows_and_denies() {
    let flags = ["--authorization-plugin", "guard"]
        .map(str::to_owned)
        .to_vec();
    let mut world = World::stopped(
        GANTRY,
        Options {
            isolated: true,
            flags,
            ..Options::default()
        },
    );
    let base64 = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        let mut decode = std::process::Command::new("base64");
        let done = gantry_testkit::run(decode.arg("-d"), Some(text.as_bytes()));
        serde_json::from_str::<Value>(&done.stdout).unwrap_or_default()
    };
    serve(
        &socket(&world, "guard"),
        move |method, question| match method {
            "Plugin.Activate" => json!({"Implements": ["authz"]}),
            "AuthZPlugin.AuthZReq" => {
                let privileged =
                    base64(&question["RequestBody"])["HostConfig"]["Privileged"] == true;
                json!({"Allow": !privileged, "Msg": "nobody is privileged"})
            }
            "AuthZPlugin.AuthZRes" => {
                let secret = base64(&question["ResponseBody"])["Name"] == "/secret";
                json!({"Allow": !secret, "Msg": "nobody sees it"})
            }
            _ => json!({}),
        },
    );
    world.up();
    world.load_busybox();
    assert_eq!(
        world
            .docker(&["run", "--rm", "busybox", "echo", "allowed"])
            .ok(),
        "allowed"
    );
    let denied = world
        .docker(&["run", "--rm", "--privileged", "busybox", "true"])
        .fails(125);
    assert!(
        denied.contains("authorization denied by plugin guard: nobody is privileged"),
        "{denied}"
    );
    world
        .docker(&["create", "--name", "secret", "busybox"])
        .ok();
    let denied = world.docker(&["inspect", "secret"]).fails(1);
    assert!(
        denied.contains("authorization denied by plugin guard: nobody sees it"),
        "{denied}"
    );
    assert_eq!(world.docker(&["exec", "secret", "true"]).code, 1);
    // Nobody to ask is nobody who allows.
    std::fs::remove_dir_all(world.run_dir().join("plugins")).unwrap();
    let denied = world.docker(&["ps"]).fails(1);
    assert!(
        denied.contains("plugin guard failed with error: plugin \"guard\" not found"),
        "{denied}"
    );
}
