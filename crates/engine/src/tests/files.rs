//! Files of containers: `cp`, `export`, `diff`, `commit`, volumes, sizes; logs, `top` and `stats` of what runs.

use super::*;
use crate::{Commit, ContainerSize, Filters, LogOptions};
use std::io::Read;

fn tar_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        tar.append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

async fn put(engine: &Engine, r: &str, folder: &str, entries: &[(&str, &str)]) -> Result<()> {
    let tar = std::io::Cursor::new(tar_of(entries));
    engine.archive_put(r, folder, tar, false, false).await
}

/// Names and contents of a tar stream.
async fn unpacked(mut tar: crate::TarStream) -> Vec<(String, String)> {
    let mut bytes = Vec::new();
    while let Some(piece) = tar.recv().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let mut archive = tar::Archive::new(&bytes[..]);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).unwrap();
        (name, String::from_utf8_lossy(&text).into_owned())
    };
    archive.entries().unwrap().map(read).collect()
}

async fn content(engine: &Engine, r: &str, path: &str) -> String {
    let (_, tar) = engine.archive_get(r, path).await.unwrap();
    unpacked(tar).await.remove(0).1
}

async fn logged(engine: &Engine, r: &str, options: LogOptions) -> String {
    let mut lines = engine.logs(r, options).await.unwrap();
    let mut text = String::new();
    while let Some(line) = lines.recv().await {
        text += std::str::from_utf8(&line.unwrap().line).unwrap();
    }
    text
}

fn filters(text: &str) -> Filters {
    Filters::parse(text, &["label", "label!", "until", "all"]).unwrap()
}

const BOTH: LogOptions = LogOptions {
    stdout: true,
    stderr: true,
    since_ns: None,
    until_ns: None,
    tail: None,
    follow: false,
};

#[test]
fn files_go_in_and_out_of_a_stopped_container() {
    let node = Node::new();
    node.run(async |engine| {
        let volume = CreateVolume {
            name: "shared".into(),
            ..CreateVolume::default()
        };
        engine.volume_create(volume).await.unwrap();
        let host = serde_json::json!({"Binds": ["shared:/srv/v", "shared:/srv/ro:ro"]});
        engine.create(shell("box", "true", host)).await.unwrap();
        put(&engine, "box", "/etc", &[("new/deep", "one")])
            .await
            .unwrap();
        put(&engine, "box", "/srv/v", &[("in-volume", "two")])
            .await
            .unwrap();
        assert_eq!(content(&engine, "box", "/etc/new/deep").await, "one");
        assert_eq!(content(&engine, "box", "/srv/ro/in-volume").await, "two");
        let kept = engine.volume_mountpoint("shared").join("in-volume");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "two");
        let stat = engine.archive_stat("box", "/etc/new/deep").await.unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.size, stat.mode),
            ("deep", 3, 0o640)
        );

        let read_only = refused(put(&engine, "box", "/srv/ro", &[("x", "")]).await);
        assert_eq!(
            read_only,
            (
                ErrorKind::InvalidArgument,
                "mounted volume is marked read-only".into()
            )
        );
        let missing = refused(engine.archive_stat("box", "/none").await);
        assert_eq!(
            missing,
            (
                ErrorKind::NotFound,
                "Could not find the file /none in container box".into()
            )
        );
        let missing = refused(put(&engine, "box", "/none", &[("x", "")]).await);
        assert_eq!(missing.0, ErrorKind::NotFound);
        let file = refused(put(&engine, "box", "/etc/passwd", &[("x", "")]).await);
        assert_eq!(file.1, "extraction point is not a directory");
        let host = serde_json::json!({"ReadonlyRootfs": true});
        engine.create(shell("hard", "true", host)).await.unwrap();
        let refusal = refused(put(&engine, "hard", "/etc", &[("x", "")]).await);
        assert_eq!(refusal.1, "container rootfs is marked read-only");

        let changes = engine.changes("box").await.unwrap();
        let shown: Vec<String> = changes
            .iter()
            .map(|(kind, path)| format!("{kind} {path}"))
            .collect();
        for wanted in ["0 /etc", "1 /etc/new", "1 /etc/new/deep"] {
            assert!(
                shown.iter().any(|line| line == wanted),
                "{wanted} in {shown:?}"
            );
        }
        let exported = unpacked(engine.export("box").await.unwrap()).await;
        assert!(
            exported
                .iter()
                .any(|(name, text)| name == "etc/new/deep" && text == "one")
        );
        assert!(
            !exported.iter().any(|(name, _)| name.ends_with("in-volume")),
            "volumes stay out"
        );
        assert_eq!(engine.container_size("box").await.unwrap().rw, 3);
        // A list of what is mounted on the host: nothing of ours.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*node_path(&engine)));
    });
}

fn node_path(engine: &Engine) -> String {
    engine.settings().data_dir.to_string_lossy().into_owned()
}

#[test]
fn a_commit_is_an_image_with_the_changes() {
    let node = Node::new();
    node.run(async |engine| {
        engine
            .create(shell("box", "true", no_host()))
            .await
            .unwrap();
        put(&engine, "box", "/etc", &[("added", "yes")])
            .await
            .unwrap();
        let what = Commit {
            reference: Some(gantry_oci::Reference::parse("made:1").unwrap()),
            author: "me".into(),
            message: "why".into(),
            pause: true,
            changes: vec!["CMD [\"cat\", \"/etc/added\"]".into(), "ENV A=b".into()],
            config: None,
        };
        let id = engine.commit("box", what).await.unwrap();
        let image = engine.images().get("made:1").unwrap();
        assert_eq!(image.id, id);
        assert_eq!(
            image.config.config.cmd,
            Some(vec!["cat".into(), "/etc/added".into()])
        );
        assert!(image.config.config.env.contains(&"A=b".to_owned()));
        assert_eq!(image.config.author.as_deref(), Some("me"));
        let last = image.config.history.last().unwrap();
        assert_eq!(last.comment.as_deref(), Some("why"));
        let request = CreateContainer {
            name: Some("next".into()),
            config: serde_json::from_str(r#"{"Image":"made:1"}"#).unwrap(),
            ..shell("", "", no_host())
        };
        engine.create(request).await.unwrap();
        assert_eq!(content(&engine, "next", "/etc/added").await, "yes");
        let bad = Commit {
            changes: vec!["RUN rm".into()],
            ..Commit::default()
        };
        assert_eq!(
            refused(engine.commit("box", bad).await).0,
            ErrorKind::InvalidArgument
        );
    });
}

#[test]
fn volumes_live_as_long_as_they_are_used() {
    let mut node = Node::new();
    node.run(async |engine| {
        let mut request = shell(
            "user",
            "true",
            serde_json::json!({"Binds": ["named:/data"]}),
        );
        request.config.volumes = Some([("/etc".to_owned(), serde_json::json!({}))].into());
        let id = engine.create(request).await.unwrap().id;
        let anonymous = engine
            .get("user")
            .unwrap()
            .mounts
            .iter()
            .find(|m| m.anonymous)
            .cloned()
            .unwrap();
        let anonymous = anonymous.name.unwrap();
        // The image's folder was copied into it, with its content.
        assert!(engine.volume_mountpoint(&anonymous).join("passwd").exists());
        let in_use = refused(engine.volume_remove("named", false).await);
        assert_eq!(
            in_use,
            (
                ErrorKind::Conflict,
                format!("remove named: volume is in use - [{id}]")
            )
        );
        let (pruned, _) = engine
            .volume_prune(&filters(r#"{"all":{"true":true}}"#))
            .await
            .unwrap();
        assert_eq!(pruned, Vec::<String>::new());
        let size = engine
            .volumes_usage()
            .await
            .unwrap()
            .into_iter()
            .find(|(v, _)| v.name == anonymous)
            .unwrap()
            .1;
        assert!(size.size_bytes > 0 && size.references == 1);
        engine
            .remove(
                "user",
                Remove {
                    volumes: true,
                    ..Remove::default()
                },
            )
            .await
            .unwrap();
        assert_eq!(
            engine
                .volumes()
                .iter()
                .map(|v| v.name.clone())
                .collect::<Vec<_>>(),
            ["named"]
        );
        assert_eq!(
            engine.volume_prune(&filters("")).await.unwrap().0,
            Vec::<String>::new()
        );
        std::fs::write(engine.volume_mountpoint("named").join("file"), "12345").unwrap();
        let all = filters(r#"{"all":{"true":true}}"#);
        assert_eq!(
            engine.volume_prune(&all).await.unwrap(),
            (vec!["named".to_owned()], 5)
        );
        assert_eq!(
            refused(engine.volume("named")),
            (ErrorKind::NotFound, "get named: no such volume".into())
        );
        engine.volume_remove("named", true).await.unwrap();

        // One whose removal a crash interrupts before the record is gone.
        engine
            .volume_create(CreateVolume {
                name: "half".into(),
                ..CreateVolume::default()
            })
            .await
            .unwrap();
    });
    node.crash();
    let volumes = node.data().join("volumes");
    std::fs::rename(volumes.join("half"), volumes.join(".removing-half")).unwrap();
    node.up();
    node.run(async |engine| {
        while engine.volume("half").is_ok() || volumes.join(".removing-half").exists() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_tmpfs_volume_is_one_for_all_and_leaves_no_mount() {
    let node = Node::new();
    node.run(async |engine| {
        let options = [
            ("type", "tmpfs"),
            ("device", "tmpfs"),
            ("o", "size=1m,mode=700"),
        ];
        let request = CreateVolume {
            name: "fast".into(),
            options: options.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..CreateVolume::default()
        };
        engine.volume_create(request).await.unwrap();
        let at = engine.volume_activate("fast", None).await.unwrap();
        assert_eq!(engine.volume_activate("fast", None).await.unwrap(), at);
        let mounts = || {
            let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            text.lines()
                .filter(|line| line.contains(&*at.to_string_lossy()))
                .count()
        };
        assert_eq!(mounts(), 1);
        engine.volume_remove("fast", false).await.unwrap();
        assert_eq!(mounts(), 0);
        let nfs = CreateVolume {
            name: "far".into(),
            options: [
                ("type".to_owned(), "nfs".to_owned()),
                ("device".to_owned(), ":/x".to_owned()),
            ]
            .into(),
            ..CreateVolume::default()
        };
        assert_eq!(
            refused(engine.volume_create(nfs).await).0,
            ErrorKind::NotImplemented
        );
    });
}

#[test]
fn stopped_containers_are_pruned_by_label_and_age() {
    let node = Node::new();
    node.run(async |engine| {
        let mut labelled = shell("kept", "true", no_host());
        labelled.config.labels.insert("keep".into(), "yes".into());
        engine.create(labelled).await.unwrap();
        let gone = engine
            .create(shell("gone", "true", no_host()))
            .await
            .unwrap()
            .id;
        put(&engine, "gone", "/etc", &[("file", "1234")])
            .await
            .unwrap();
        let old = filters(r#"{"until":{"1h":true}}"#);
        assert!(engine.container_prune(&old).await.unwrap().0.is_empty());
        let unlabelled = filters(r#"{"label!":{"keep":true}}"#);
        assert_eq!(
            engine.container_prune(&unlabelled).await.unwrap(),
            (vec![gone], 4)
        );
        assert_eq!(engine.list().len(), 1);
        assert_ne!(
            engine.container_size("kept").await.unwrap(),
            ContainerSize::default()
        );
    });
}

#[test]
fn a_running_container_is_seen_as_it_is() {
    let node = Node::new();
    node.run(async |engine| {
        let host = serde_json::json!({"Binds": ["data:/data"], "Tmpfs": {"/fast": ""}, "Memory": 67_108_864, "PidsLimit": 50});
        let script = "echo inside >/fast/file; echo kept >/data/file; echo own >/own; echo ready; exec sleep 1000";
        let (id, mut attached) = started(&engine, shell("box", script, host)).await;
        hear(&mut attached, "ready").await;
        assert_eq!(content(&engine, "box", "/fast/file").await, "inside\n");
        assert_eq!(content(&engine, "box", "/data/file").await, "kept\n");
        put(&engine, "box", "/fast", &[("new", "put")]).await.unwrap();
        assert_eq!(content(&engine, "box", "/fast/new").await, "put");
        // Nothing jumps out by way of /proc.
        let jump = engine.archive_stat("box", "/proc/1/root/etc/hostname").await;
        assert!(jump.is_err(), "{jump:?}");

        let (_, whole) = engine.archive_get("box", "/").await.unwrap();
        let whole: Vec<String> = unpacked(whole).await.into_iter().map(|(name, _)| name).collect();
        assert!(whole.contains(&"/fast/file".to_owned()) && whole.contains(&"/proc/".to_owned()));
        let kernels = |name: &&String| ["/proc/", "/sys/", "/dev/"].iter().any(|dir| name.len() > dir.len() && name.starts_with(dir));
        assert_eq!(whole.iter().find(kernels), None);

        let exported = unpacked(engine.export("box").await.unwrap()).await;
        let names: Vec<&str> = exported.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"own") && names.contains(&"data/") && names.contains(&"fast/"));
        assert!(!names.contains(&"data/file") && !names.contains(&"fast/file"), "mounts stay out");
        let changes = engine.changes("box").await.unwrap();
        assert!(changes.contains(&(1, "/own".into())), "{changes:?}");
        for hidden in ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf", "/etc"] {
            assert!(!changes.iter().any(|(_, path)| path == hidden), "{hidden} in {changes:?}");
        }

        let top = engine.top("box", "").await.unwrap();
        assert_eq!(top.titles.join(" "), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(top.processes.len(), 1);
        assert_eq!((top.processes[0][0].as_str(), top.processes[0][7].as_str()), ("root", "sleep 1000"));
        let stats = engine.stats("box").await.unwrap();
        assert_eq!((stats.memory.limit, stats.pids.current, stats.pids.limit), (67_108_864, 1, 50));
        assert!(stats.read_ns > 0 && stats.memory.usage > 0 && stats.cpu.cpu_usage.total_usage > 0);
        assert_eq!(stats.networks.map(|n| n.len()), Some(0));

        let image = engine.commit("box", Commit { pause: true, ..Commit::default() }).await.unwrap();
        assert!(matches!(engine.get("box").unwrap().state, State::Running(_)), "thawed again");
        assert!(engine.images().get(&image.to_string()).is_ok());
        engine.kill("box", "KILL").await.unwrap();
        code(&engine, "box", WaitCondition::NotRunning).await;
        let stopped = engine.stats("box").await.unwrap();
        assert_eq!((stopped.read_ns, stopped.id), (0, id.clone()));
        let (kind, text) = refused(engine.top("box", "").await);
        assert_eq!((kind, text), (ErrorKind::Conflict, format!("container {id} is not running")));
        assert_eq!(content(&engine, "box", "/data/file").await, "kept\n");
        assert_eq!(content(&engine, "box", "/own").await, "own\n");
    });
    node.assert_clean_of_mounts();
}

impl Node {
    fn assert_clean_of_mounts(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()));
    }
}

#[test]
fn a_log_is_followed_to_the_end_of_its_container_across_rotation() {
    let node = Node::new();
    node.run(async |engine| {
        let log = serde_json::json!({"LogConfig": {"Type": "json-file", "Config": {"max-size": "50k", "max-file": "20"}}});
        let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo end >&2";
        engine.create(shell("loud", script, log)).await.unwrap();
        assert_eq!(logged(&engine, "loud", LogOptions { follow: true, ..BOTH }).await, "");
        engine.start("loud").await.unwrap();
        let all = logged(&engine, "loud", LogOptions { follow: true, ..BOTH }).await;
        code(&engine, "loud", WaitCondition::NotRunning).await;
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(lines.len(), 5001);
        let mut numbers = lines.iter().filter_map(|line| line.strip_prefix("line "));
        assert!((0..5000).all(|n| numbers.next() == Some(&*n.to_string())));
        assert!(std::fs::exists(format!("{}.3", engine.log_path(&engine.get("loud").unwrap().id).display())).unwrap(), "it was rotated");
        let tail = LogOptions { tail: Some(3), ..BOTH };
        assert_eq!(logged(&engine, "loud", tail).await.lines().count(), 3);
        let errors = LogOptions { stdout: false, ..BOTH };
        assert_eq!(logged(&engine, "loud", errors).await, "end\n");
        let none = serde_json::json!({"LogConfig": {"Type": "none", "Config": {}}});
        engine.create(shell("mute", "true", none)).await.unwrap();
        let refusal = refused(engine.logs("mute", BOTH).await);
        assert_eq!(refusal, (ErrorKind::NotImplemented, "configured logging driver does not support reading".into()));
    });
}
