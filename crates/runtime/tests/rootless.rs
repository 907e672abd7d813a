//! Containers of an ordinary user, who is really one: another uid, no rights, and in a mount namespace of its own an `/etc/passwd` and an
//! `/etc/subuid` that know it.

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use world::{Ran, World};

const UID: u32 = 54_321;

struct User {
    world: World,
    home: std::path::PathBuf,
    /// A cgroup that the commands run in.
    delegated: Option<std::path::PathBuf>,
}

impl User {
    fn new() -> Option<Self> {
        let world = World::new()?;
        let home = world.directory.join("home");
        for folder in ["state", "bundle"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        let passwd = format!("root:x:0:0::/root:/bin/sh\ntester:x:{UID}:{UID}::/:/bin/sh\n");
        fs::write(world.directory.join("passwd"), passwd).unwrap();
        fs::write(world.directory.join("sub"), "tester:200000:65536\n").unwrap();
        // An ordinary user cannot reach a program below somebody's private folder.
        fs::copy(world::PROGRAM, world.directory.join("runtime")).unwrap();
        for path in [&home, &home.join("state"), &home.join("bundle")] {
            rustix::fs::chown(
                path,
                Some(rustix::fs::Uid::from_raw(UID)),
                Some(rustix::fs::Gid::from_raw(UID)),
            )
            .unwrap();
        }
        Some(Self {
            world,
            home,
            delegated: None,
        })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let d = self.world.directory.display();
        let enter = match &self.delegated {
            Some(path) => format!("echo $$ >{}/cgroup.procs && ", path.display()),
            None => String::new(),
        };
        let setting = format!(
            "{enter}for f in subuid subgid; do [ -e /etc/$f ] || continue; mount --bind {d}/sub /etc/$f; done; mount --bind {d}/passwd /etc/passwd; \
             exec setpriv --reuid {UID} --regid {UID} --clear-groups --bounding-set=-all,+setuid,+setgid,+setfcap,+sys_admin,+dac_override \"$0\" \"$@\""
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &setting, program])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn call(&self, arguments: &[&str]) -> Ran {
        let state = self.home.join("state");
        let all = [&["--root", state.to_str().unwrap()], arguments].concat();
        let program = self.world.directory.join("runtime");
        let mut command = self.command(program.to_str().unwrap(), &all);
        if arguments[0] != "create" && !arguments.contains(&"-d") {
            return command.output().unwrap().into();
        }
        // What is created keeps its streams.
        let log = self.world.directory.join("log");
        let status = command
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .status()
            .unwrap();
        Ran {
            code: status.code().unwrap_or(-1),
            out: String::new(),
            err: fs::read_to_string(&log).unwrap(),
        }
    }

    fn bundle(&self, command: &[&str], change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.home.join("bundle");
        let config = bundle.join("config.json");
        let _ = fs::remove_file(&config);
        let path = bundle.to_str().unwrap().to_owned();
        let made = self.call(&["spec", "--rootless", "-b", &path]);
        assert_eq!(made.code, 0, "{}", made.err);
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(command);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        spec["process"].as_object_mut().unwrap().remove("rlimits");
        spec["root"] = json!({ "path": self.world.root(), "readonly": true });
        change(&mut spec);
        fs::write(&config, serde_json::to_vec(&spec).unwrap()).unwrap();
        path
    }

    fn sh(&self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.bundle(&["sh", "-c", script], change);
        let ran = self.call(&["run", "-b", &bundle, "one"]);
        assert_eq!(ran.code, 0, "{script}: {}{}", ran.out, ran.err);
        ran.out
    }

    fn is_possible(&self) -> bool {
        let tried = self.command("unshare", &["-U", "true"]).status();
        let possible = tried.is_ok_and(|s| s.success());
        if !possible {
            eprintln!("SKIPPED: ordinary users may make no user namespaces here");
        }
        possible
    }
}

#[test]
fn an_ordinary_users_container_lives_a_whole_life() {
    let Some(user) = User::new().filter(User::is_possible) else {
        return;
    };
    let out = user.sh("id -u; id -g; cat /proc/self/uid_map | tr -s ' '; echo x >/dev/null && echo null; touch /tmp/x 2>/dev/null || echo ro; echo $$", |_| {});
    assert_eq!(out, format!("0\n0\n 0 {UID} 1\nnull\nro\n1\n"));
    let bundle = user.bundle(&["sh", "-c", "while :; do sleep 1; done"], |spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "time" }));
        spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 9_000_000 } });
        spec["hostname"] = json!("mine");
    });
    let created = user.call(&["create", "-b", &bundle, "two"]);
    assert_eq!(created.code, 0, "{}", created.err);
    assert_eq!(user.call(&["start", "two"]).code, 0);
    let state: Value = serde_json::from_str(&user.call(&["state", "two"]).out).unwrap();
    assert_eq!(state["status"], "running");
    let pid = state["pid"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{UID}\t{UID}")), "{status}");
    let ran = user.call(&[
        "exec",
        "two",
        "sh",
        "-c",
        "id -u; hostname; cat /proc/uptime; readlink /proc/self/ns/user; readlink /proc/1/ns/user",
    ]);
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines[..2], ["0", "mine"], "{} {}", ran.out, ran.err);
    assert!(
        lines[2].split('.').next().unwrap().parse::<u64>().unwrap() > 9_000_000,
        "{}",
        lines[2]
    );
    assert_eq!(lines[3], lines[4]);
    assert_eq!(user.call(&["exec", "two", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(user.call(&["kill", "--all", "two", "KILL"]).code, 0);
    let deleted = user.call(&["delete", "--force", "two"]);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || user.call(&["state", "two"]).code == 1);
    assert_eq!(user.call(&["list", "-q"]).out, "");
}

#[test]
fn more_ids_come_from_the_helpers() {
    let Some(user) = User::new().filter(User::is_possible) else {
        return;
    };
    let more = |first: u32| {
        move |spec: &mut Value| {
            for name in ["uidMappings", "gidMappings"] {
                let one = json!({ "containerID": 1, "hostID": first, "size": 1000 });
                spec["linux"][name].as_array_mut().unwrap().push(one);
            }
            spec["process"]["user"] = json!({ "uid": 33, "gid": 34, "additionalGids": [50] });
        }
    };
    if ["/etc/subuid", "/etc/subgid", "/usr/bin/newuidmap"]
        .iter()
        .any(|p| !Path::new(p).exists())
    {
        eprintln!("SKIPPED: needs newuidmap (Debian package uidmap)");
        return;
    }
    assert_eq!(
        user.sh("id -u; id -g; id -G", more(200_000)),
        "33\n34\n34 50\n"
    );
    // Ids that are not this user's are refused, and nothing is left.
    let bundle = user.bundle(&["true"], more(900_000));
    let refused = user.call(&["run", "-b", &bundle, "three"]);
    assert_eq!(refused.code, 1);
    let words = [
        "linux.uidMappings, linux.gidMappings: writing the id maps",
        "not allowed",
    ];
    assert!(
        words.iter().all(|w| refused.err.contains(w)),
        "{}",
        refused.err
    );
    assert_eq!(fs::read_dir(user.home.join("state")).unwrap().count(), 0);
}

#[test]
fn limits_that_are_not_delegated_are_refused() {
    let Some(user) = User::new().filter(User::is_possible) else {
        return;
    };
    let bundle = user.bundle(&["true"], |spec| {
        spec["linux"]["resources"] = json!({ "pids": { "limit": 10 } })
    });
    let refused = user.call(&["run", "-b", &bundle, "four"]);
    assert!(
        refused.code == 1 && refused.err.contains("ermission denied"),
        "{}",
        refused.err
    );
    let bundle = user.bundle(&["true"], |spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "user");
        spec["linux"].as_object_mut().unwrap().remove("uidMappings");
        spec["linux"].as_object_mut().unwrap().remove("gidMappings");
    });
    let refused = user.call(&["run", "-b", &bundle, "five"]);
    assert!(
        refused.code == 1
            && refused
                .err
                .contains("linux.namespaces: an ordinary user's container needs a user namespace"),
        "{}",
        refused.err
    );
}

#[test]
fn limits_hold_in_what_is_delegated() {
    let Some(mut user) = User::new().filter(User::is_possible) else {
        return;
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|l| l.split_once(":pids:"));
    let Some((_, own)) = own else {
        eprintln!("SKIPPED: no v1 hierarchy for the number of processes");
        return;
    };
    let name = user.world.directory.file_name().unwrap();
    let base = Path::new("/sys/fs/cgroup/pids").join(own.trim_start_matches('/'));
    let delegated = base.join(name);
    fs::create_dir(&delegated).unwrap();
    for file in ["", "cgroup.procs", "tasks"] {
        let owner = Some(rustix::fs::Uid::from_raw(UID));
        rustix::fs::chown(delegated.join(file).as_path(), owner, None).unwrap();
    }
    user.delegated = Some(delegated.clone());
    let bundle = user.bundle(&["sleep", "1000"], |spec| {
        spec["linux"]["resources"] = json!({ "pids": { "limit": 10 } });
    });
    let created = user.call(&["create", "-b", &bundle, "six"]);
    let limit = fs::read_to_string(delegated.join("six/pids.max"));
    let inside = fs::read_to_string(delegated.join("six/cgroup.procs"));
    let deleted = user.call(&["delete", "-f", "six"]);
    let left = delegated.join("six").exists();
    fs::remove_dir(&delegated).unwrap();
    assert_eq!(created.code, 0, "{}", created.err);
    assert_eq!(limit.unwrap().trim(), "10");
    assert_eq!(inside.unwrap().lines().count(), 1);
    assert_eq!(deleted.code, 0, "{}", deleted.err);
    assert!(!left);
}
