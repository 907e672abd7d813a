//! For every bundle either the container runs as it says, or the error names what was not applied.
//!
//! Random sets of wishes are put into one configuration. Each wish has a probe that looks inside for what it got; wishes that no
//! kernel here can grant have none, and then the refusal must name one of them. `GANTRY_TEST_ROUNDS` makes more of it, the
//! seed of a failing round is in its message (`GANTRY_TEST_SEED`).

mod world;

use serde_json::{Value, json};
use std::fs;
use world::World;

/// One thing that a configuration can ask for.
struct Wish {
    /// By what a refusal names it.
    names: &'static [&'static str],
    change: fn(&mut Value),
    /// A script and what it prints when the wish is granted; empty where it cannot be here.
    probe: &'static str,
    expected: &'static str,
}

const fn wish(
    names: &'static [&'static str],
    change: fn(&mut Value),
    probe: &'static str,
    expected: &'static str,
) -> Wish {
    Wish {
        names,
        change,
        probe,
        expected,
    }
}

fn mount(spec: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": destination, "type": kind, "source": source, "options": options }));
}

fn resource(spec: &mut Value, controller: &str, name: &str, value: Value) {
    spec["linux"]["resources"][controller][name] = value;
}

/// Where a limit of the container's own v1 cgroup is read inside; on v2 the files have other names, and the guest's tests look at them.
const WISHES: [Wish; 36] = [
    wish(
        &["hostname"],
        |s| s["hostname"] = json!("wished"),
        "hostname",
        "wished",
    ),
    wish(
        &["domainname"],
        |s| s["domainname"] = json!("wished.org"),
        "cat /proc/sys/kernel/domainname",
        "wished.org",
    ),
    wish(
        &["process.user"],
        |s| s["process"]["user"]["uid"] = json!(4321),
        "id -u",
        "4321",
    ),
    wish(
        &["process.user"],
        |s| s["process"]["user"]["gid"] = json!(4322),
        "id -g",
        "4322",
    ),
    wish(
        &["process.user", "setgroups"],
        |s| s["process"]["user"]["additionalGids"] = json!([61, 62]),
        "grep Groups: /proc/self/status | tr -d '\\t'",
        "Groups:61 62 ",
    ),
    wish(
        &["process.user.umask"],
        |s| s["process"]["user"]["umask"] = json!(0o27),
        "umask",
        "0027",
    ),
    wish(
        &["process.cwd"],
        |s| s["process"]["cwd"] = json!("/etc"),
        "pwd",
        "/etc",
    ),
    wish(
        &["process.env"],
        |s| {
            s["process"]["env"]
                .as_array_mut()
                .unwrap()
                .push(json!("WISH=a b"))
        },
        "echo $WISH",
        "a b",
    ),
    wish(
        &["process.rlimits"],
        |s| s["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 }]),
        "ulimit -n; ulimit -Hn",
        "77\n99",
    ),
    wish(
        &["process.oomScoreAdj"],
        |s| s["process"]["oomScoreAdj"] = json!(333),
        "cat /proc/self/oom_score_adj",
        "333",
    ),
    wish(
        &["process.noNewPrivileges"],
        |s| s["process"]["noNewPrivileges"] = json!(false),
        "grep NoNewPrivs /proc/self/status | tr -dc 01",
        "0",
    ),
    wish(
        &["process.capabilities"],
        |s| {
            for set in ["bounding", "effective", "permitted"] {
                s["process"]["capabilities"][set] = json!(["CAP_CHOWN"])
            }
        },
        "grep CapBnd /proc/self/status | tr -dc 0-9a-f | tail -c 16",
        "0000000000000001",
    ),
    wish(
        &["process.scheduler"],
        |s| s["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 3 }),
        "read a </proc/self/stat; set -- $a; shift 18; echo $1; shift 22; echo $1",
        "3\n3",
    ),
    wish(
        &["process.ioPriority"],
        |s| s["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }),
        "busybox ionice -p $$",
        "best-effort: prio 6",
    ),
    wish(
        &["linux.personality"],
        |s| s["linux"]["personality"] = json!({ "domain": "LINUX32" }),
        "cat /proc/self/personality 2>/dev/null || echo 00000008",
        "00000008",
    ),
    wish(
        &["root.readonly"],
        |s| s["root"]["readonly"] = json!(false),
        "grep -c ' / [^ ]* rw' /proc/self/mounts",
        "1",
    ),
    wish(
        &["mounts", "error mounting"],
        |s| {
            mount(
                s,
                "/wish-tmpfs",
                "tmpfs",
                "tmpfs",
                &["size=64k", "nosuid", "noexec", "mode=711"],
            )
        },
        "grep -o 'wish-tmpfs tmpfs rw,nosuid,noexec' /proc/self/mounts; stat -c %a /wish-tmpfs",
        "wish-tmpfs tmpfs rw,nosuid,noexec\n711",
    ),
    wish(
        &["mounts", "error mounting"],
        |s| mount(s, "/wish-bind", "bind", "/usr/share", &["rbind", "ro"]),
        "grep -c ' /wish-bind [^ ]* ro' /proc/self/mounts",
        "1",
    ),
    wish(
        &["mounts", "error mounting"],
        |s| {
            mount(
                s,
                "/wish-r",
                "bind",
                "/usr/share",
                &["rbind", "rro", "rnosuid"],
            )
        },
        "grep -c ' /wish-r [^ ]* ro,nosuid' /proc/self/mounts",
        "1",
    ),
    wish(
        &["mounts", "error mounting"],
        |s| mount(s, "/wish-copy", "tmpfs", "tmpfs", &["tmpcopyup"]),
        "ls -d /wish-copy",
        "/wish-copy",
    ),
    wish(
        &["linux.maskedPaths", "mask"],
        |s| {
            s["linux"]["maskedPaths"]
                .as_array_mut()
                .unwrap()
                .push(json!("/proc/version"))
        },
        "cat /proc/version | wc -c",
        "0",
    ),
    wish(
        &["linux.readonlyPaths", "can't make"],
        |s| {
            s["linux"]["readonlyPaths"]
                .as_array_mut()
                .unwrap()
                .push(json!("/tmp"))
        },
        "grep -c ' /tmp [^ ]* ro' /proc/self/mounts",
        "1",
    ),
    wish(
        &["linux.sysctl"],
        |s| s["linux"]["sysctl"]["net.ipv4.ip_default_ttl"] = json!("77"),
        "cat /proc/sys/net/ipv4/ip_default_ttl",
        "77",
    ),
    wish(
        &["linux.sysctl"],
        |s| s["linux"]["sysctl"]["kernel.msgmax"] = json!("7777"),
        "cat /proc/sys/kernel/msgmax",
        "7777",
    ),
    wish(
        &["linux.timeOffsets", "time namespace"],
        |s| {
            s["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "time" }));
            s["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 800_000_000 } });
        },
        "read a b </proc/uptime; [ ${a%.*} -gt 800000000 ] && echo later",
        "later",
    ),
    wish(
        &["linux.uidMappings", "linux.gidMappings"],
        |s| {
            s["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "user" }));
            for map in ["uidMappings", "gidMappings"] {
                s["linux"][map] = json!([{ "containerID": 0, "hostID": 0, "size": 70000 }]);
            }
        },
        "tr -s ' ' </proc/self/uid_map",
        " 0 0 70000",
    ),
    wish(
        &["linux.resources.pids", "pids"],
        |s| resource(s, "pids", "limit", json!(33)),
        "cat /sys/fs/cgroup/pids/pids.max",
        "33",
    ),
    wish(
        &["linux.resources.memory", "memory"],
        |s| resource(s, "memory", "limit", json!(64 << 20)),
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        "67108864",
    ),
    wish(
        &["linux.resources.cpu", "CPU"],
        |s| resource(s, "cpu", "shares", json!(777)),
        "cat /sys/fs/cgroup/cpu/cpu.shares",
        "777",
    ),
    wish(
        &["linux.resources.cpu", "CPU"],
        |s| resource(s, "cpu", "quota", json!(70_000)),
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        "70000",
    ),
    wish(
        &["linux.seccomp"],
        |s| s["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }] }),
        "mkdir /wished 2>&1 | grep -o 'No space'",
        "No space",
    ),
    // Not to be had, whatever the machine: each must be named.
    wish(
        &["linux.intelRdt"],
        |s| s["linux"]["intelRdt"] = json!({ "closID": "x" }),
        "",
        "",
    ),
    wish(
        &["process.selinuxLabel"],
        |s| s["process"]["selinuxLabel"] = json!("a:b:c:d"),
        "",
        "",
    ),
    wish(
        &["linux.resources.hugepageLimits", "huge page limit"],
        |s| s["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "3MB", "limit": 1 }]),
        "",
        "",
    ),
    wish(
        &["mounts", "error mounting"],
        |s| mount(s, "/wish-nosuch", "nosuchfs", "none", &[]),
        "",
        "",
    ),
    wish(
        &["linux.netDevices"],
        |s| s["linux"]["netDevices"] = json!({ "eth0": {} }),
        "",
        "",
    ),
];

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn what_is_asked_for_is_there_or_named() {
    let Some(mut world) = World::new() else {
        return;
    };
    if !fs::exists("/sys/fs/cgroup/pids").unwrap() {
        eprintln!("SKIPPED: the probes read v1 files");
        return;
    }
    let rounds = number("GANTRY_TEST_ROUNDS", 60);
    let mut seed = number("GANTRY_TEST_SEED", 0x5eed_0004);
    let (mut ran_as_asked, mut refused) = (0, 0);
    let grantable = WISHES.iter().filter(|w| !w.probe.is_empty()).count();
    for round in 0..rounds {
        let this = seed;
        let mut below = |limit: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % limit
        };
        // Every third has something that cannot be.
        let mut chosen: Vec<&Wish> = WISHES[..grantable]
            .iter()
            .filter(|_| below(3) == 0)
            .collect();
        if below(3) == 0 {
            chosen.push(&WISHES[grantable + below((WISHES.len() - grantable) as u64) as usize]);
        }
        // A second mark for each probe's end: what it prints may be empty.
        let script: String = chosen
            .iter()
            .map(|wish| format!("echo '<'; {}\necho '>'\n", wish.probe))
            .collect();
        let ran = world.run(&["sh", "-c", &script], |spec| {
            for wish in &chosen {
                (wish.change)(spec);
            }
        });
        let place = format!("seed {this} round {round}: {}{}", ran.out, ran.err);
        if ran.err.contains("create failed: ") || ran.err.contains("run failed: ") {
            refused += 1;
            assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{place}");
            let named = |wish: &&Wish| wish.names.iter().any(|name| ran.err.contains(name));
            assert!(
                chosen.iter().any(named),
                "nothing that was asked for is named: {place}"
            );
            let id = world.ids.last().unwrap();
            assert!(!world.directory.join("state").join(id).exists(), "{place}");
            assert!(
                !fs::exists(format!("/sys/fs/cgroup/pids/{id}")).unwrap(),
                "{place}"
            );
        } else {
            ran_as_asked += 1;
            let mut answers = ran.out.split("<\n").skip(1);
            for wish in &chosen {
                let answer = answers.next().unwrap_or_default();
                let answer = answer
                    .strip_suffix(">\n")
                    .unwrap_or(answer)
                    .trim_end_matches('\n');
                assert_eq!(
                    answer, wish.expected,
                    "{:?} {}: {place}",
                    wish.names, wish.probe
                );
                assert!(
                    !wish.probe.is_empty(),
                    "{:?} cannot have been granted: {place}",
                    wish.names
                );
            }
        }
    }
    println!("{ran_as_asked} ran as asked, {refused} were refused by name");
    assert!(
        ran_as_asked * 4 > rounds && refused * 6 > rounds,
        "{ran_as_asked} {refused}"
    );
}
