//! The same commands to runc and to us, on containers of the same bundle: the same exit statuses, the same words, documents with the same
//! fields. What runc does not know (it is older here) or does worse is in `command_line.rs`.

mod world;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use world::{PROGRAM, Ran, World};

const RUNC: &str = "/usr/sbin/runc";

/// A container of each runtime, made from one bundle.
struct Pair {
    world: World,
    bundle: String,
}

/// What both said.
struct Both {
    runc: Ran,
    ours: Ran,
}

impl Pair {
    fn new() -> Option<Self> {
        if !Path::new(RUNC).exists() {
            eprintln!("SKIPPED: needs {RUNC} (Debian package runc)");
            return None;
        }
        let world = World::new()?;
        let bundle = world.bundle(&["sleep", "1000"], |_| {});
        let bundle = bundle.to_str().unwrap().to_owned();
        Some(Self { world, bundle })
    }

    fn id(&self, program: &str) -> String {
        let name = self.world.directory.file_name().unwrap().to_string_lossy();
        match program {
            RUNC => format!("{name}-r"),
            _ => format!("{name}-g"),
        }
    }

    /// `ID` and `BUNDLE` stand for what they say. The output goes to files, because a created container keeps the streams it is given.
    fn call(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Ran {
        let [out, err, stdin] = ["out", "err", "in"].map(|name| self.world.directory.join(name));
        fs::write(&stdin, input.unwrap_or_default()).unwrap();
        let log = self.world.directory.join("log");
        let _ = fs::remove_file(&log);
        let id = self.id(program);
        let arguments = arguments.iter().map(|a| match *a {
            "ID" => &id,
            "BUNDLE" => &self.bundle,
            other => other,
        });
        let status = Command::new(program)
            .args(["--log-format", "json", "--log", log.to_str().unwrap()])
            .arg("--root")
            .arg(self.world.directory.join(match program {
                RUNC => "runc-state",
                _ => "state",
            }))
            .args(arguments)
            .stdin(Stdio::from(fs::File::open(&stdin).unwrap()))
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        // The last error of the log, without what differs by nature.
        let said = fs::read_to_string(&log).unwrap_or_default();
        let said = said.lines().rev().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["level"] == "error").then(|| line["msg"].as_str().map(str::to_owned))?
        });
        let streams = fs::read_to_string(&err).unwrap();
        let same = |text: &str| text.replace(&id, "ID").replace("gantry-runtime", "runc");
        Ran {
            code: status.code().unwrap_or(-1),
            out: same(&fs::read_to_string(&out).unwrap()),
            err: same(said.as_deref().unwrap_or(&streams)).replace("/usr/sbin/", ""),
        }
    }

    fn both_with(&self, arguments: &[&str], input: Option<&str>) -> Both {
        Both {
            runc: self.call(RUNC, arguments, input),
            ours: self.call(PROGRAM, arguments, input),
        }
    }

    fn both(&self, arguments: &[&str]) -> Both {
        self.both_with(arguments, None)
    }

    /// The same status, words and output.
    #[track_caller]
    fn same(&self, arguments: &[&str]) {
        let Both { runc, ours } = self.both(arguments);
        assert_eq!(
            (ours.code, ours.err.as_str(), ours.out.as_str()),
            (runc.code, runc.err.as_str(), runc.out.as_str()),
            "{arguments:?}"
        );
    }

    /// The same status; the field's name may stand before runc's words, and more behind them. `part`: the words that matter.
    #[track_caller]
    fn alike(&self, arguments: &[&str], code: i32, part: &str) {
        let Both { runc, ours } = self.both(arguments);
        let said = (runc.err.contains(part), ours.err.contains(part));
        assert!(
            (runc.code, ours.code, said) == (code, code, (true, true)),
            "{arguments:?} {part:?}: {} {:?}, ours {} {:?}",
            runc.code,
            runc.err,
            ours.code,
            ours.err
        );
    }

    /// Both containers have ended.
    fn wait_stopped(&self) {
        while ["runc", "ours"].iter().any(|who| {
            let program = if *who == "runc" { RUNC } else { PROGRAM };
            !self
                .call(program, &["state", "ID"], None)
                .out
                .contains("stopped")
        }) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.both(&["delete", "--force", "ID"]);
    }
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {} {}", ran.out, ran.err))
}

/// The paths of all fields, lists by their first element.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let at = format!("{at}/{name}");
                fields(value, &at, found);
                found.insert(at);
            }
        }
        Value::Array(list) => {
            for value in list.iter().take(1) {
                fields(value, &format!("{at}[]"), found);
            }
        }
        _ => {}
    }
}

/// What runc's document has and ours does not.
fn missing(both: &Both) -> Vec<String> {
    let [runc, ours] = [&both.runc, &both.ours].map(|ran| {
        let mut found = BTreeSet::new();
        fields(&json_of(ran), "", &mut found);
        found
    });
    runc.difference(&ours).cloned().collect()
}

#[test]
fn refusals_without_a_container() {
    let Some(pair) = Pair::new() else {
        return;
    };
    for command in [
        "start", "state", "kill", "delete", "ps", "pause", "resume", "update", "events",
    ] {
        pair.same(&[command, "nosuch"]);
        pair.alike(&[command, "a b"], 1, "invalid container ID format");
    }
    pair.same(&["exec", "nosuch", "true"]);
    pair.same(&["delete", "--force", "nosuch"]);
    pair.same(&["create", "nosuch"]);
    pair.same(&["run", "nosuch"]);
    pair.same(&["list", "-f", "json"]);
    pair.same(&["list", "-q"]);
    pair.same(&["list"]);
    pair.same(&["list", "-f", "xml"]);
    pair.same(&["create", "-b", "/nosuch", "ID"]);
    for command in [
        "create",
        "start",
        "state",
        "delete",
        "pause",
        "resume",
        "update",
        "events",
        "run",
        "checkpoint",
        "restore",
    ] {
        pair.alike(&[command], 1, "requires exactly 1 argument(s)");
    }
    for command in ["kill", "exec", "ps"] {
        pair.alike(&[command], 1, "requires a minimum of 1 argument(s)");
    }
    for command in ["list", "spec", "features"] {
        pair.alike(&[command, "more"], 1, "requires exactly 0 argument(s)");
        pair.alike(&[command, "-x"], 1, "flag provided but not defined: -x");
    }
    for words in [
        &["--log", "/nosuch/x", "list"][..],
        &["--root", "/proc/x", "create", "-b", "BUNDLE", "ID"],
    ] {
        pair.alike(words, 1, "no such file or directory");
    }
    pair.alike(&["nosuch"], 3, "No help topic for 'nosuch'");
    // Every flag that runc's help names is in ours.
    for command in [
        "create", "run", "exec", "kill", "delete", "list", "ps", "events", "update", "spec", "",
    ] {
        let words: Vec<_> = [command, "--help"]
            .into_iter()
            .filter(|w| !w.is_empty())
            .collect();
        let both = pair.both(&words);
        let flags = |text: &str| -> BTreeSet<String> {
            text.lines()
                .filter_map(|line| {
                    let line = line.trim_start().strip_prefix("--")?;
                    line.split([' ', ',']).next().map(str::to_owned)
                })
                .collect()
        };
        let (theirs, ours) = (flags(&both.runc.out), flags(&both.ours.out));
        assert!(
            !theirs.is_empty() && theirs.is_subset(&ours),
            "{command}: {theirs:?} {ours:?}"
        );
    }
}

#[test]
fn bundles_that_are_refused() {
    let Some(mut pair) = Pair::new() else {
        return;
    };
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 21] = [
        (
            |s| s["process"]["args"] = json!(["nosuch"]),
            "unable to start container process: exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            |s| s["process"]["args"] = json!(["/no/such"]),
            "unable to start container process: exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
        (
            |s| s["process"]["cwd"] = json!("x"),
            "Cwd must be an absolute path",
        ),
        (
            |s| s["root"]["path"] = json!("/nosuch"),
            "stat /nosuch: no such file or directory",
        ),
        (
            |s| drop(s.as_object_mut().unwrap().remove("root")),
            "root must be specified",
        ),
        (
            |s| drop(s.as_object_mut().unwrap().remove("process")),
            "process property must not be empty",
        ),
        (
            |s| {
                s["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|n| n["type"] != "uts")
            },
            "unable to set hostname without a private UTS namespace",
        ),
        (
            |s| s["linux"]["sysctl"] = json!({ "kernel.core_pattern": "x" }),
            "sysctl \"kernel.core_pattern\" is not in a separate kernel namespace",
        ),
        (
            |s| {
                s["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "type": "pid" }))
            },
            "malformed spec file: duplicated ns",
        ),
        (
            |s| s["linux"]["namespaces"][0]["path"] = json!("/nosuch"),
            "no such file or directory",
        ),
        (
            |s| s["process"]["rlimits"] = json!([{ "type": "RLIMIT_X", "soft": 1, "hard": 1 }]),
            "wrong rlimit value: RLIMIT_X",
        ),
        (
            |s| s["process"]["selinuxLabel"] = json!("a:b:c:d"),
            "selinux label is specified in config, but selinux is disabled or not supported",
        ),
        (
            |s| s["process"]["apparmorProfile"] = json!("x"),
            "unable to apply apparmor profile: ",
        ),
        (
            |s| s["linux"]["seccomp"] = json!({ "defaultAction": "X" }),
            "string X is not a valid action for seccomp",
        ),
        (
            |s| {
                s["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/x", "type": "bind", "source": "/nosuch", "options": ["bind"] }))
            },
            "error mounting \"/nosuch\" to rootfs at \"/x\": ",
        ),
        (
            |s| s["hooks"] = json!({ "prestart": [{ "path": "/bin/false" }] }),
            "exit status 1, stdout: , stderr: ",
        ),
        (
            |s| s["hooks"] = json!({ "createRuntime": [{ "path": "/nosuch" }] }),
            "error running hook #0: fork/exec /nosuch: no such file or directory",
        ),
        (
            |s| {
                s["linux"]["namespaces"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "type": "user" }))
            },
            "ser namespaces enabled, but no uid mappings found",
        ),
        (
            |s| {
                s["linux"]["devices"] =
                    json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 1 }])
            },
            "invalid device type \"z\"",
        ),
        (
            |s| s["linux"]["rootfsPropagation"] = json!("x"),
            "rootfsPropagation=x is not supported",
        ),
        (
            |s| s["linux"]["resources"]["rdma"] = json!({ "mlx5_1": { "hcaHandles": 3 } }),
            "cannot set rdma limit: ",
        ),
    ];
    for (change, part) in cases {
        let bundle = pair.world.bundle(&["true"], change);
        pair.bundle = bundle.to_str().unwrap().to_owned();
        pair.alike(&["create", "-b", "BUNDLE", "ID"], 1, part);
        pair.alike(&["create", "-b", "BUNDLE", "ID"], 1, "runc create failed: ");
        pair.alike(&["run", "-b", "BUNDLE", "ID"], 1, part);
        pair.alike(&["run", "-b", "BUNDLE", "ID"], 1, "runc run failed: ");
        pair.same(&["state", "ID"]);
    }
    // Less memory than a container takes to be made: both name the limit, and neither leaves a container.
    let bundle = pair.world.bundle(&["true"], |s| {
        s["linux"]["resources"]["memory"] = json!({ "limit": 4096 });
    });
    pair.bundle = bundle.to_str().unwrap().to_owned();
    let both = pair.both(&["create", "-b", "BUNDLE", "ID"]);
    assert!(both.runc.code == 1 && both.ours.code == 1);
    assert!(
        both.ours
            .err
            .contains("container init was OOM-killed (memory limit too low?)"),
        "{}",
        both.ours.err
    );
    pair.same(&["state", "ID"]);
    // A terminal, and nobody who takes it.
    let bundle = pair
        .world
        .bundle(&["true"], |s| s["process"]["terminal"] = json!(true));
    pair.bundle = bundle.to_str().unwrap().to_owned();
    pair.same(&["create", "-b", "BUNDLE", "ID"]);
    pair.same(&[
        "create",
        "-b",
        "BUNDLE",
        "--console-socket",
        "/nosuch",
        "ID",
    ]);
    pair.same(&["run", "-d", "-b", "BUNDLE", "ID"]);
    pair.same(&["run", "--console-socket", "/nosuch", "-b", "BUNDLE", "ID"]);
}

#[test]
fn runs_end_alike() {
    let Some(mut pair) = Pair::new() else {
        return;
    };
    let bundle = pair
        .world
        .bundle(&["sh", "-c", "echo hi; echo oh >&2; exit 3"], |_| {});
    pair.bundle = bundle.to_str().unwrap().to_owned();
    pair.same(&["run", "-b", "BUNDLE", "ID"]);
    pair.same(&[
        "run",
        "--no-pivot",
        "--no-new-keyring",
        "--no-subreaper",
        "-b",
        "BUNDLE",
        "ID",
    ]);
    let nowhere = "runc run failed: open /nosuch/.x: no such file or directory";
    pair.alike(
        &["run", "--pid-file", "/nosuch/x", "-b", "BUNDLE", "ID"],
        1,
        nowhere,
    );
    pair.same(&["state", "ID"]);
    pair.same(&["run", "--keep", "-b", "BUNDLE", "ID"]);
    pair.same(&["run", "-b", "BUNDLE", "ID"]);
    pair.same(&["delete", "ID"]);
    // What it writes comes later.
    pair.alike(&["run", "-d", "-b", "BUNDLE", "ID"], 0, "");
    pair.wait_stopped();
    pair.same(&["start", "ID"]);
    pair.same(&["exec", "ID", "true"]);
    pair.same(&["delete", "ID"]);
}

/// From create to delete, with everything that is refused on the way.
#[test]
fn a_life_from_create_to_delete() {
    let Some(pair) = Pair::new() else {
        return;
    };
    pair.same(&["create", "-b", "BUNDLE", "ID"]);
    pair.alike(
        &["create", "-b", "BUNDLE", "ID"],
        1,
        "runc create failed: container with given ID already exists",
    );
    for words in [
        &["exec", "ID", "echo", "in a created one"][..],
        &["pause", "ID"],
        // A created container that is frozen is a paused one: nobody waits for it.
        &["pause", "ID"],
        &["exec", "ID", "true"],
        &["start", "ID"],
        &["delete", "ID"],
        &["resume", "ID"],
        &["resume", "ID"],
        &["start", "ID"],
        &["start", "ID"],
        &["delete", "ID"],
        &["exec", "ID", "nosuch"],
        &["exec", "ID", "/no/such"],
        &["exec", "ID", "sh", "-c", "exit 7"],
        &["exec", "ID", "sh", "-c", "kill -9 $$"],
        &["exec", "ID"],
        &["exec", "-d", "-t", "ID", "tty"],
        &["exec", "--cwd", "/nosuch", "ID", "true"],
        &["exec", "-u", "1:2", "-g", "5", "ID", "id"],
        &[
            "exec", "-e", "A=b", "--cwd", "/tmp", "ID", "sh", "-c", "env; pwd",
        ],
        &[
            "exec",
            "-c",
            "CAP_SYS_ADMIN",
            "ID",
            "grep",
            "Cap",
            "/proc/self/status",
        ],
        &[
            "exec",
            "--no-new-privs",
            "ID",
            "grep",
            "NoNewPrivs",
            "/proc/self/status",
        ],
        &["exec", "--process", "/nosuch", "ID"],
        &["exec", "--console-socket", "/nosuch", "ID", "true"],
        &[
            "exec",
            "--console-socket",
            "/nosuch",
            "-d",
            "-t",
            "ID",
            "true",
        ],
        &["exec", "--pid-file", "/nosuch/x", "ID", "true"],
        &["ps", "-f", "xml", "ID"],
        &["ps", "ID", "-o", "comm"],
        &["update", "--pids-limit", "20", "ID"],
        &["update", "ID"],
        &["update", "ID", "--cpu-share", "512"],
        &["update", "--cpuset-cpus", "0", "ID"],
        &[
            "exec",
            "ID",
            "grep",
            "Cpus_allowed_list",
            "/proc/1/status",
            "/proc/self/status",
        ],
        &["exec", "ID", "cat", "/sys/fs/cgroup/pids/pids.max"],
        &["update", "-r", "/nosuch", "ID"],
        &["events", "--interval", "0s", "ID"],
        &["kill", "ID", "NOSUCH"],
        &["kill", "ID", "0"],
        &["pause", "ID"],
        &["pause", "ID"],
        &["exec", "ID", "true"],
        &["update", "--pids-limit", "30", "ID"],
        &["delete", "ID"],
        &["resume", "ID"],
    ] {
        pair.same(words);
    }
    for (words, code, part) in [
        (
            &["exec", "-u", "x", "ID", "true"][..],
            255,
            "exec failed: parsing x as int for uid failed",
        ),
        (
            &["exec", "--process-label", "a:b:c:d", "ID", "true"],
            255,
            "selinux label is specified in config, but selinux is disabled or not supported",
        ),
        (&["ps", "ID", "-Z!"], 1, "exit status 1: "),
        (
            &["update", "--memory", "x", "ID"],
            1,
            "invalid value for memory: ",
        ),
        (
            &["update", "--cpuset-cpus", "99", "ID"],
            1,
            "failed to write \"99\": write /sys/fs/cgroup/cpuset",
        ),
        (
            &["update", "--cpu-quota", "1", "ID"],
            1,
            "failed to write \"1\": write /sys/fs/cgroup/cpu",
        ),
        (
            &["exec", "--cgroup", "nosuch", "ID", "true"],
            255,
            "no such file or directory",
        ),
    ] {
        pair.alike(words, code, part);
    }
    // A change that is refused changes nothing.
    let both = pair.both(&["update", "--pids-limit", "44", "--memory", "1", "ID"]);
    for ran in [&both.runc, &both.ours] {
        assert_eq!(ran.code, 1);
        assert!(
            ran.err
                .contains("unable to set memory limit to 1 (current usage: "),
            "{}",
            ran.err
        );
    }
    let limit = pair.call(
        PROGRAM,
        &["exec", "ID", "cat", "/sys/fs/cgroup/pids/pids.max"],
        None,
    );
    assert_eq!(limit.out, "30\n", "{}", limit.err);
    let input = json!({ "pids": { "limit": 25 }, "cpu": { "shares": 300 } }).to_string();
    let both = pair.both_with(&["update", "-r", "-", "ID"], Some(&input));
    assert_eq!(
        (both.runc.code, both.ours.code),
        (0, 0),
        "{}",
        both.ours.err
    );
    pair.same(&[
        "exec",
        "ID",
        "cat",
        "/sys/fs/cgroup/pids/pids.max",
        "/sys/fs/cgroup/cpu/cpu.shares",
    ]);
    pair.same(&["kill", "-a", "ID", "KILL"]);
    pair.wait_stopped();
    for words in [
        &["kill", "ID"][..],
        &["kill", "-a", "ID"],
        &["ps", "ID"],
        &["exec", "ID", "true"],
        &["start", "ID"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["events", "--stats", "ID"],
        &["events", "ID"],
        &["update", "--pids-limit", "9", "ID"],
        &["delete", "ID"],
        &["delete", "ID"],
    ] {
        pair.same(words);
    }
}

#[test]
fn documents_have_all_of_runcs_fields() {
    let Some(pair) = Pair::new() else {
        return;
    };
    pair.same(&["create", "-b", "BUNDLE", "ID"]);
    pair.same(&["start", "ID"]);
    let states = pair.both(&["state", "ID"]);
    let [runc, ours] = [&states.runc, &states.ours].map(|ran| {
        let mut state = json_of(ran);
        // The version is the bundle's; there it is the program's.
        for own in ["pid", "created", "ociVersion"] {
            assert!(!state[own].is_null());
            state[own] = json!(null);
        }
        state
    });
    assert_eq!(runc, ours);
    for words in [
        &["state", "ID"][..],
        &["list", "-f", "json"],
        &["ps", "-f", "json", "ID"],
        &["events", "--stats", "ID"],
    ] {
        let mut missing = missing(&pair.both(words));
        // Counters of what happened to happen: runc leaves out what is zero, and only of raw numbers we have more.
        missing.retain(|field| !field.starts_with("/data/blkio/") && !field.contains("/raw/"));
        assert_eq!(missing, Vec::<String>::new(), "{words:?}");
    }
    let features = pair.both(&["features"]);
    let mut absent = missing(&features);
    // Who runc is.
    absent.retain(|field| !field.starts_with("/annotations/"));
    assert_eq!(absent, Vec::<String>::new());
    let [theirs, ours] = [&features.runc, &features.ours].map(json_of);
    for list in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
    ] {
        let has = |document: &Value| -> BTreeSet<String> {
            let list = document.pointer(list).and_then(Value::as_array).unwrap();
            list.iter()
                .map(|v| v.as_str().unwrap().to_owned())
                .collect()
        };
        assert!(has(&theirs).is_subset(&has(&ours)), "{list}");
    }
    // The example to start from.
    for rootless in [&[][..], &["--rootless"]] {
        let [theirs, ours] = [RUNC, PROGRAM].map(|program| {
            let folder = pair.world.directory.join("example");
            fs::create_dir(&folder).unwrap();
            let mut words = vec!["spec", "-b", folder.to_str().unwrap()];
            words.extend(rootless);
            assert_eq!(pair.call(program, &words, None).code, 0);
            let again = pair.call(program, &words, None);
            assert!(
                again.err.contains("exists. Remove it first"),
                "{}",
                again.err
            );
            let text = fs::read(folder.join("config.json")).unwrap();
            fs::remove_dir_all(&folder).unwrap();
            let mut document: Value = serde_json::from_slice(&text).unwrap();
            document["ociVersion"] = json!(null);
            // Without being inheritable, as there, none of them can be ambient.
            document["process"]["capabilities"]
                .as_object_mut()
                .unwrap()
                .remove("ambient");
            document
        });
        assert_eq!(theirs, ours, "{rootless:?}");
    }
}
