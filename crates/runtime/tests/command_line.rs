//! What callers of runc rely on: exit codes, words, documents.

mod world;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use world::{World, no_change};

#[test]
fn refusals_in_runcs_words_and_with_its_exit_codes() {
    let Some(world) = World::new() else {
        return;
    };
    for (arguments, code, words) in [
        (
            &["state"][..],
            1,
            "\"state\" requires exactly 1 argument(s)",
        ),
        (
            &["state", "a", "b"],
            1,
            "\"state\" requires exactly 1 argument(s)",
        ),
        (&["kill"], 1, "\"kill\" requires a minimum of 1 argument(s)"),
        (
            &["exec", "nosuch"],
            255,
            "exec failed: container does not exist",
        ),
        (
            &["exec", "nosuch", "true"],
            255,
            "exec failed: container does not exist",
        ),
        (&["start", "nosuch"], 1, "container does not exist"),
        (&["kill", "nosuch"], 1, "container does not exist"),
        (&["pause", "nosuch"], 1, "container does not exist"),
        (&["events", "nosuch"], 1, "container does not exist"),
        (&["update", "nosuch"], 1, "container does not exist"),
        (&["checkpoint", "nosuch"], 1, "container does not exist"),
        (
            &["restore", "nosuch"],
            1,
            "restore is not supported: this runtime does not work with CRIU",
        ),
        (&["delete", "nosuch"], 1, "container does not exist"),
        (&["list", "-f", "xml"], 1, "invalid format option"),
        (&["nosuch"], 3, "No help topic for 'nosuch'"),
        (&["nosuch", "-h"], 3, "No help topic for 'nosuch'"),
        (&["--nosuch"], 1, "flag provided but not defined: -nosuch"),
        (
            &["create", "--nosuch", "x"],
            1,
            "flag provided but not defined: -nosuch",
        ),
        (&["create", "-b"], 1, "flag needs an argument: -b"),
        (
            &["--log-format", "xml", "list"],
            1,
            "invalid log-format: xml",
        ),
        (
            &["--rootless", "maybe", "list"],
            1,
            "must be 'true', 'false' or 'auto'",
        ),
        (
            &["--systemd-cgroup", "list"],
            1,
            "systemd cgroup flag passed, but systemd support for managing cgroups is not available",
        ),
        (&["create", "a b"], 1, "invalid container ID format"),
        (
            &["create", "-b", "/nosuch", "x"],
            1,
            "chdir /nosuch: no such file or directory",
        ),
    ] {
        let ran = world.call(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.err);
        assert!(
            ran.err.replace('\\', "").contains(words),
            "{arguments:?}: {}",
            ran.err
        );
    }
    // Fine for who wants it gone.
    assert_eq!(world.call(&["delete", "--force", "nosuch"]).code, 0);
    for arguments in [
        &["--help"][..],
        &["help"],
        &["create", "--help"],
        &["--version"],
        &["--criu", "/x", "--rootless=true", "list"],
    ] {
        assert_eq!(world.call(arguments).code, 0, "{arguments:?}");
    }
    let usage = world.call(&["state"]);
    assert!(usage.out.starts_with("Incorrect Usage: "), "{}", usage.out);
}

#[test]
fn the_log_is_what_engines_parse() {
    let Some(mut world) = World::new() else {
        return;
    };
    let log = world.directory.join("log.json");
    let ran = world.call(&[
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "--debug",
        "state",
        "nosuch",
    ]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "container does not exist\n")
    );
    let lines: Vec<Value> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines[0]["level"], "debug");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["level"], &last["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
    assert!(last["time"].as_str().unwrap().ends_with('Z'));
    // Who looks for what went wrong finds every step.
    let bundle = world.bundle(&["sh", "-c", "exit 4"], no_change);
    let id = world.id();
    fs::remove_file(&log).unwrap();
    let words = ["--log-format", "json", "--debug", "run", "-b"];
    let ran = world
        .program(&["--log", log.to_str().unwrap()])
        .args(words)
        .args([bundle.to_str().unwrap(), &id])
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(4));
    assert!(ran.stderr.is_empty(), "all of it is in the log");
    let text = fs::read_to_string(&log).unwrap();
    let said: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    for step in [
        "gantry-runtime ",
        "bundle ",
        "state in ",
        "container init is process ",
        "the program was executed",
        "the program ended: exit status 4",
        "done: exit status 4",
    ] {
        let found = |line: &Value| {
            line["level"] == "debug" && line["msg"].as_str().unwrap().starts_with(step)
        };
        assert!(said.iter().any(found), "{step}: {text}");
    }
}

#[test]
fn documents_have_runcs_fields() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(|spec| spec["annotations"] = json!({ "a": "b" }));
    let state = world.state(&id);
    let fields: Vec<_> = state
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        fields,
        [
            "ociVersion",
            "id",
            "pid",
            "status",
            "bundle",
            "rootfs",
            "created",
            "annotations",
            "owner"
        ]
    );
    let listed: Value =
        serde_json::from_str(&world.call(&["list", "--format", "json"]).out).unwrap();
    assert_eq!(listed[0]["id"], json!(id));
    assert_eq!(listed[0]["owner"], "root");
    let table = world.call(&["list"]).out;
    let head = table.lines().next().unwrap();
    let columns: Vec<_> = head.split_whitespace().collect();
    assert_eq!(
        columns,
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    assert_eq!(
        head.find("PID"),
        Some(id.len() + 3),
        "three blanks between columns"
    );
    let stats: Value = serde_json::from_str(&world.call(&["events", "--stats", &id]).out).unwrap();
    assert_eq!(
        (&stats["type"], &stats["id"]),
        (&json!("stats"), &json!(id))
    );
    for pointer in [
        "/cpu/usage/total",
        "/cpu/throttling",
        "/memory/usage/usage",
        "/memory/swap",
        "/memory/raw",
        "/pids/current",
        "/blkio",
        "/hugetlb",
        "/intel_rdt",
        "/network_interfaces",
    ] {
        assert!(
            stats["data"].pointer(pointer).is_some(),
            "{pointer}: {stats}"
        );
    }
    let features: Value = serde_json::from_str(&world.call(&["features"]).out).unwrap();
    for pointer in [
        "/ociVersionMin",
        "/ociVersionMax",
        "/hooks/5",
        "/mountOptions/0",
        "/linux/namespaces/7",
        "/linux/capabilities/0",
        "/linux/cgroup/v1",
        "/linux/seccomp/actions/0",
        "/linux/seccomp/operators/0",
        "/linux/seccomp/archs/0",
        "/linux/apparmor/enabled",
        "/linux/selinux/enabled",
        "/linux/intelRdt/enabled",
    ] {
        assert!(features.pointer(pointer).is_some(), "{pointer}");
    }
    let table = world.call(&["ps", &id, "-o", "pid,comm"]);
    assert!(table.out.contains("sleep"), "{} {}", table.out, table.err);
    let checkpoint = world.call(&["checkpoint", &id]);
    assert!(
        checkpoint.code == 1 && checkpoint.err.contains("checkpoint is not supported"),
        "{}",
        checkpoint.err
    );
}

#[test]
fn update_changes_what_it_is_given_and_nothing_else() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.started(|spec| {
        spec["linux"]["resources"]["cpu"] =
            json!({ "shares": 512, "quota": 50000, "period": 100_000 });
        spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        spec["linux"]["resources"]["pids"] = json!({ "limit": 30 });
    });
    let pid = world.state(&id)["pid"].as_i64().unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let read = |controller: &str, v1: &str, v2: &str| {
        let own = cgroups.lines().find_map(|l| {
            let mut fields = l.splitn(3, ':').skip(1);
            fields
                .next()?
                .split(',')
                .any(|n| n == controller)
                .then(|| fields.next())?
        });
        let path = match own {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
            None => {
                let path = cgroups.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
                format!("/sys/fs/cgroup{path}/{v2}")
            }
        };
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let numbers = || {
        (
            read("cpu", "cpu.cfs_quota_us", "cpu.max")
                .split(' ')
                .next()
                .unwrap()
                .to_owned(),
            read("memory", "memory.limit_in_bytes", "memory.max"),
            read("pids", "pids.max", "pids.max"),
        )
    };
    let is = |quota: &str, memory: u64, pids: &str| {
        (quota.to_owned(), memory.to_string(), pids.to_owned())
    };
    assert_eq!(numbers(), is("50000", 64 << 20, "30"));
    let by_flags = world.call(&["update", &id, "--cpu-quota", "70000"]);
    assert_eq!(by_flags.code, 0, "{}", by_flags.err);
    assert_eq!(numbers(), is("70000", 64 << 20, "30"));
    let mut child = world
        .program(&["update", "-r", "-", &id])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let document = json!({ "memory": { "limit": 96 << 20 }, "pids": { "limit": 40 } });
    child
        .stdin
        .take()
        .unwrap()
        .write_all(document.to_string().as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(numbers(), is("70000", 96 << 20, "40"));
    for (arguments, words) in [
        (
            &["update", "--l3-cache-schema", "L3:0=ff", &id][..],
            "--l3-cache-schema: intelRdt is not supported",
        ),
        (
            &["update", "--cpu-share", "1", &id],
            "linux.resources.cpu.shares: the minimum allowed cpu-shares is 2",
        ),
        (
            &["update", "--memory", "lots", &id],
            "invalid value for memory: lots",
        ),
        (
            &["update", "-r", "/nosuch", &id],
            "no such file or directory",
        ),
    ] {
        let ran = world.call(arguments);
        assert!(
            ran.code == 1 && ran.err.contains(words),
            "{arguments:?}: {}",
            ran.err
        );
    }
    let warned = world.call(&["update", "--kernel-memory", "5m", &id]);
    assert!(
        warned.code == 0 && warned.err.contains("level=warning"),
        "{}",
        warned.err
    );
    assert_eq!(numbers(), is("70000", 96 << 20, "40"));
}

#[test]
fn a_created_container_takes_an_exec_and_a_stopped_one_does_not() {
    let Some(mut world) = World::new() else {
        return;
    };
    let id = world.sleeping(no_change);
    let ran = world.call(&["exec", &id, "echo", "in"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "in\n"), "{}", ran.err);
    assert_eq!(world.state(&id)["status"], "created");
    assert_eq!(world.call(&["start", &id]).code, 0);
    assert_eq!(world.call(&["kill", &id, "KILL"]).code, 0);
    while world.state(&id)["status"] != "stopped" {
        std::thread::yield_now();
    }
    for (arguments, code, words) in [
        (
            &["exec", &id, "true"][..],
            255,
            "exec failed: cannot exec in a stopped container",
        ),
        (
            &["start", &id],
            1,
            "cannot start a container that has stopped",
        ),
        (&["kill", &id], 1, "container not running"),
        (&["pause", &id], 1, "container not running"),
        (
            &["update", "--pids-limit", "5", &id],
            1,
            "container not running",
        ),
    ] {
        let ran = world.call(arguments);
        assert!(
            ran.code == code && ran.err.contains(words),
            "{arguments:?}: {} {}",
            ran.code,
            ran.err
        );
    }
    assert_eq!(world.call(&["kill", "--all", &id]).code, 0);
    assert_eq!(world.call(&["delete", &id]).code, 0);
}
