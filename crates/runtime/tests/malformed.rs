//! Configurations that are refused: one sentence that names the field, and nothing made.

mod world;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use world::World;

/// Where in `config.json`, what stands there instead, and how the sentence begins.
fn cases() -> Vec<(&'static str, Value, &'static str)> {
    let map = |inside: u32, outside: u32, size: u32| json!([{ "containerID": inside, "hostID": outside, "size": size }]);
    let nobody = json!(null);
    vec![
        ("/ociVersion", json!(""), "ociVersion: must not be empty"),
        (
            "/ociVersion",
            json!("one"),
            "ociVersion: \"one\" is not a version",
        ),
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: unsupported version \"2.0.0\"",
        ),
        (
            "/ociVersion",
            json!(1),
            "ociVersion: invalid type: integer `1`, expected a string",
        ),
        ("/root", nobody.clone(), "root: root must be specified"),
        (
            "/root",
            json!([]),
            "root: invalid type: array, expected an object",
        ),
        ("/root/path", json!(""), "root.path: must not be empty"),
        ("/root/path", json!("nosuch"), "root.path: stat "),
        (
            "/root/path",
            json!("config.json"),
            "root.path: config.json is not a directory",
        ),
        (
            "/root/readonly",
            json!("yes"),
            "root.readonly: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "/hostname",
            json!("x".repeat(65)),
            "hostname: longer than 64 bytes",
        ),
        (
            "/hostname",
            json!("a\0b"),
            "hostname: must not contain a zero byte",
        ),
        ("/hostname", json!(["a"]), "hostname: invalid type"),
        (
            "/domainname",
            json!("x".repeat(65)),
            "domainname: longer than 64 bytes",
        ),
        (
            "/annotations",
            json!({ "": "x" }),
            "annotations: keys must not be empty",
        ),
        (
            "/annotations",
            json!({ "a": 1 }),
            "annotations.a: invalid type",
        ),
        ("/annotations", json!(["a"]), "annotations: invalid type"),
        ("/vm", json!({}), "vm: this runtime runs Linux containers"),
        (
            "/windows",
            json!({ "layerFolders": [] }),
            "windows: this runtime runs Linux containers",
        ),
        ("/solaris", json!({}), "solaris: this runtime"),
        ("/zos", json!({}), "zos: this runtime"),
        (
            "/process",
            nobody.clone(),
            "process: process property must not be empty",
        ),
        (
            "/process",
            json!("sh"),
            "process: invalid type: string \"sh\", expected struct Process",
        ),
        (
            "/process/args",
            json!([]),
            "process.args: args must not be empty",
        ),
        (
            "/process/args",
            json!("sh"),
            "process.args: invalid type: string \"sh\", expected a sequence",
        ),
        (
            "/process/args",
            json!(["sh", 1]),
            "process.args[1]: invalid type: integer `1`, expected a string",
        ),
        (
            "/process/args",
            json!(["a\0"]),
            "process.args[0]: must not contain a zero byte",
        ),
        (
            "/process/env",
            json!(["A=1", "B"]),
            "process.env[1]: invalid environment variable: \"B\"",
        ),
        (
            "/process/env",
            json!(["=x"]),
            "process.env[0]: invalid environment variable: \"=x\"",
        ),
        (
            "/process/cwd",
            json!(""),
            "process.cwd: Cwd property must not be empty",
        ),
        (
            "/process/cwd",
            json!("tmp"),
            "process.cwd: Cwd must be an absolute path",
        ),
        (
            "/process/terminal",
            json!("no"),
            "process.terminal: invalid type",
        ),
        (
            "/process/consoleSize",
            json!({ "height": 70000, "width": 1 }),
            "process.consoleSize.height: more than 65535",
        ),
        (
            "/process/user/uid",
            json!(-1),
            "process.user.uid: invalid value: integer `-1`, expected u32",
        ),
        (
            "/process/user/gid",
            json!(4_294_967_296_u64),
            "process.user.gid: invalid value",
        ),
        (
            "/process/user/umask",
            json!(0o1000),
            "process.user.umask: more than 0777",
        ),
        (
            "/process/user/additionalGids",
            json!([1, "x"]),
            "process.user.additionalGids[1]: invalid type",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]),
            "process.rlimits[0].type: wrong rlimit value: RLIMIT_MOON",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]),
            "process.rlimits[0].soft: more than the hard limit",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CORE", "soft": 1, "hard": 1 }, { "type": "RLIMIT_CORE", "soft": 1, "hard": 1 }]),
            "process.rlimits[1].type: RLIMIT_CORE is there twice",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CORE", "soft": -1, "hard": 1 }]),
            "process.rlimits[0].soft: invalid value",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj: 1001 is not within",
        ),
        (
            "/process/capabilities",
            json!(["CAP_CHOWN"]),
            "process.capabilities[0]: invalid type: string \"CAP_CHOWN\", expected a sequence",
        ),
        (
            "/process/capabilities/bounding",
            json!("CAP_CHOWN"),
            "process.capabilities.bounding: invalid type",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_MOON" }),
            "process.scheduler.policy: invalid scheduler policy: \"SCHED_MOON\"",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "nice": 20 }),
            "process.scheduler.nice: invalid scheduler.nice: '20'",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "priority": 5 }),
            "process.scheduler.priority: scheduler.priority can only",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_FIFO", "priority": 100 }),
            "process.scheduler.priority: must be within",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_FIFO", "runtime": 1 }),
            "process.scheduler.runtime: scheduler runtime/deadline/period",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "flags": ["X"] }),
            "process.scheduler.flags: invalid scheduler flag: \"X\"",
        ),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_X", "priority": 1 }),
            "process.ioPriority.class: invalid ioPriority.class",
        ),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }),
            "process.ioPriority.priority: invalid ioPriority.Priority",
        ),
        (
            "/process/execCPUAffinity",
            json!({ "initial": "1-" }),
            "process.execCPUAffinity.initial: bad CPU affinity \"1-\"",
        ),
        (
            "/process/execCPUAffinity",
            json!({ "final": "all" }),
            "process.execCPUAffinity.final: bad CPU affinity \"all\"",
        ),
        (
            "/mounts",
            json!({}),
            "mounts: invalid type: map, expected a sequence",
        ),
        (
            "/mounts",
            json!([["/proc"]]),
            "mounts[0]: invalid type: array, expected an object",
        ),
        (
            "/mounts",
            json!([{ "type": "proc" }]),
            "mounts[0].destination: must not be empty",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x" }]),
            "mounts[0].type: must not be empty",
        ),
        (
            "/mounts",
            json!([{ "destination": "/x", "type": "bind" }]),
            "mounts[0].source: a bind mount needs one",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "source": "/tmp", "options": ["bind", "size=5"] }]),
            "mounts[0].options: invalid option \"size=5\" for a mount of type bind",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "source": "/tmp", "options": ["bind", "sync"] }]),
            "mounts[0].options: invalid option \"sync\"",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "proc", "options": ["tmpcopyup"] }]),
            "mounts[0].options: invalid option \"tmpcopyup\" for a mount of type proc",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "cgroup", "options": ["none"] }]),
            "mounts[0].options: invalid option \"none\"",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "tmpfs", "options": "ro" }]),
            "mounts[0].options: invalid type",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuchoption=1"] }]),
            "error mounting \"tmpfs\" to rootfs at \"/tmp\"",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "moonfs", "source": "x" }]),
            "error mounting \"x\" to rootfs at \"/tmp\": no such device",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "source": "/nosuch", "options": ["bind"] }]),
            "error mounting \"/nosuch\" to rootfs at \"/tmp\": no such file",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "type": "tmpfs", "uidMappings": map(0, 1, 1), "gidMappings": map(0, 1, 1) }]),
            "mounts[0].uidMappings: id-mapped mounts are only supported for bind mounts",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "source": "/tmp", "options": ["bind"], "uidMappings": map(0, 1, 1) }]),
            "mounts[0].gidMappings: both uidMappings and gidMappings",
        ),
        (
            "/mounts",
            json!([{ "destination": "/tmp", "source": "/tmp", "options": ["bind"], "uidMappings": map(0, 1, 0), "gidMappings": map(0, 1, 1) }]),
            "mounts[0].uidMappings[0].size: must not be zero",
        ),
        (
            "/hooks",
            json!({ "prestart": [{ "path": "true" }] }),
            "hooks.prestart[0].path: must be an absolute path",
        ),
        (
            "/hooks",
            json!({ "poststop": [{ "path": "/bin/true", "timeout": 0 }] }),
            "hooks.poststop[0].timeout: must be greater than zero",
        ),
        (
            "/hooks",
            json!({ "createRuntime": [{ "path": "/bin/true", "env": ["X"] }] }),
            "hooks.createRuntime[0].env[0]: invalid environment variable",
        ),
        (
            "/hooks",
            json!({ "poststart": {} }),
            "hooks.poststart: invalid type",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "moon" }]),
            "linux.namespaces[0].type: unknown variant `moon`",
        ),
        (
            "/linux/namespaces",
            json!([{ "path": "/proc/1/ns/net" }]),
            "linux.namespaces[0]: missing field `type`",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "uts" }, { "type": "mount" }]),
            "linux.namespaces[2].type: malformed spec file: duplicated ns \"mount\"",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "pid" }, { "type": "uts" }]),
            "linux.namespaces: a mount namespace is required",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }]),
            "hostname: unable to set hostname without a private UTS namespace",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "uts" }, { "type": "network", "path": "ns" }]),
            "linux.namespaces[2].path: must be an absolute path",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "uts" }, { "type": "network", "path": "/nosuch" }]),
            "linux.namespaces: namespace \"/nosuch\": no such file or directory",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "uts" }, { "type": "user" }]),
            "linux.uidMappings: user namespaces enabled, but no uid mappings found",
        ),
        (
            "/linux/uidMappings",
            map(0, 1, 1),
            "linux.uidMappings: user namespace mappings specified, but USER namespace isn't enabled",
        ),
        (
            "/linux/gidMappings",
            json!([{ "containerID": 0, "hostID": 1, "size": 2 }, { "containerID": 1, "hostID": 5, "size": 2 }]),
            "linux.gidMappings[1]: overlaps with another mapping",
        ),
        (
            "/linux/uidMappings",
            map(4_294_967_290, 0, 10),
            "linux.uidMappings[0].size: reaches beyond the last id",
        ),
        (
            "/linux/timeOffsets",
            json!({ "boottime": { "secs": 1 } }),
            "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled",
        ),
        (
            "/linux/sysctl",
            json!({ "kernel.panic": "1" }),
            "linux.sysctl: sysctl \"kernel.panic\" is not in a separate kernel namespace",
        ),
        (
            "/linux/sysctl",
            json!({ "net.ipv4/../../kernel/panic": "1" }),
            "linux.sysctl: sysctl",
        ),
        (
            "/linux/sysctl",
            json!({ "net.nosuch": "1" }),
            "linux.sysctl: open /proc/sys/net/nosuch: no such file",
        ),
        (
            "/linux/devices",
            json!([{ "path": "x", "type": "c", "major": 1, "minor": 3 }]),
            "linux.devices[0].path: must be an absolute path",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }]),
            "linux.devices[0].type: invalid device type \"z\"",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "c", "minor": 3 }]),
            "linux.devices[0].major: must be within",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "b", "major": 1, "minor": -3 }]),
            "linux.devices[0].minor: must be within",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 5 }]),
            "linux.devices: error creating device \"/dev/null\": file exists",
        ),
        (
            "/linux/rootfsPropagation",
            json!("sideways"),
            "linux.rootfsPropagation: rootfsPropagation=sideways is not supported",
        ),
        (
            "/linux/maskedPaths",
            json!(["proc/kcore"]),
            "linux.maskedPaths[0]: must be an absolute path",
        ),
        (
            "/linux/readonlyPaths",
            json!(["../x"]),
            "linux.readonlyPaths[0]: must be an absolute path",
        ),
        (
            "/linux/cgroupsPath",
            json!("/a/../../b"),
            "linux.cgroupsPath: must not contain \"..\"",
        ),
        (
            "/linux/personality",
            json!({ "domain": "BSD" }),
            "linux.personality.domain: invalid personality domain BSD",
        ),
        (
            "/linux/personality",
            json!({ "domain": "LINUX", "flags": ["X"] }),
            "linux.personality.flags: none are defined",
        ),
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt: intelRdt is not supported",
        ),
        (
            "/linux/netDevices",
            json!({ "eth0": {} }),
            "linux.netDevices: netDevices is not supported",
        ),
        (
            "/linux/memoryPolicy",
            json!({ "mode": "MPOL_BIND" }),
            "linux.memoryPolicy: memoryPolicy is not supported",
        ),
        (
            "/linux/resources/devices",
            json!([{ "allow": true, "type": "x" }]),
            "linux.resources.devices[0].type: unknown type \"x\"",
        ),
        (
            "/linux/resources/devices",
            json!([{ "allow": true, "type": "c", "access": "rx" }]),
            "linux.resources.devices[0].access: \"rx\" is not made of r, w and m",
        ),
        (
            "/linux/resources/devices",
            json!([{ "allow": true, "type": "a", "major": 5 }]),
            "linux.resources.devices[0].major: a rule about all types",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": -2 }),
            "linux.resources.memory.limit: must be -1",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": "64m" }),
            "linux.resources.memory.limit: invalid type",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": 1 << 26, "swap": 1 << 25 }),
            "linux.resources.memory.swap: memory+swap limit should be >= memory limit",
        ),
        (
            "/linux/resources/memory",
            json!({ "swappiness": 101 }),
            "linux.resources.memory.swappiness: invalid memory swappiness value: 101",
        ),
        (
            "/linux/resources/memory",
            json!({ "useHierarchy": false }),
            "linux.resources.memory.useHierarchy: the kernel",
        ),
        (
            "/linux/resources/cpu",
            json!({ "shares": 1 }),
            "linux.resources.cpu.shares: the minimum allowed cpu-shares is 2",
        ),
        (
            "/linux/resources/cpu",
            json!({ "shares": 262_145 }),
            "linux.resources.cpu.shares: the maximum allowed cpu-shares is 262144",
        ),
        (
            "/linux/resources/cpu",
            json!({ "quota": -5 }),
            "linux.resources.cpu.quota: must be -1",
        ),
        (
            "/linux/resources/cpu",
            json!({ "cpus": "0-" }),
            "linux.resources.cpu.cpus: \"0-\" is no list of numbers",
        ),
        (
            "/linux/resources/cpu",
            json!({ "cpus": "4095" }),
            "unable to apply cgroup configuration: CPU set",
        ),
        (
            "/linux/resources/cpu",
            json!({ "idle": 2 }),
            "linux.resources.cpu.idle: must be 0 or 1",
        ),
        (
            "/linux/resources/pids",
            json!({ "limit": "many" }),
            "linux.resources.pids.limit: invalid type",
        ),
        (
            "/linux/resources/blockIO",
            json!({ "weight": 5 }),
            "linux.resources.blockIO.weight: must be within 10 and 1000",
        ),
        (
            "/linux/resources/blockIO",
            json!({ "weightDevice": [{ "major": 8, "minor": 0, "leafWeight": 5 }] }),
            "linux.resources.blockIO.weightDevice[0].leafWeight: must be within",
        ),
        (
            "/linux/resources/blockIO",
            json!({ "throttleReadBpsDevice": [{ "major": 99, "minor": 99, "rate": 5 }] }),
            "unable to apply cgroup configuration: block I/O throttle",
        ),
        (
            "/linux/resources/hugepageLimits",
            json!([{ "pageSize": "../x", "limit": 1 }]),
            "linux.resources.hugepageLimits[0].pageSize: invalid huge page size \"../x\"",
        ),
        (
            "/linux/resources/hugepageLimits",
            json!([{ "pageSize": "3MB", "limit": 1 }]),
            "unable to apply cgroup configuration: huge page limit",
        ),
        (
            "/linux/resources/network",
            json!({ "priorities": [{ "name": "", "priority": 1 }] }),
            "linux.resources.network.priorities[0].name: is no interface",
        ),
        (
            "/linux/resources/rdma",
            json!({ "mlx5_1": {} }),
            "linux.resources.rdma.mlx5_1: limits nothing",
        ),
        (
            "/linux/resources/rdma",
            json!({ "mlx5_1": [3] }),
            "linux.resources.rdma.mlx5_1: invalid type: array, expected an object",
        ),
        (
            "/linux/resources/unified",
            json!({ "../x.y": "1" }),
            "linux.resources.unified: unified resource \"../x.y\" must be a file name",
        ),
        (
            "/linux/resources/unified",
            json!({ "nosuch.max": "1" }),
            "unable to apply cgroup configuration: unified resource",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_MAYBE" }),
            "linux.seccomp.defaultAction: string SCMP_ACT_MAYBE is not a valid action for seccomp",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1 }),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW carries no errno",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"] }),
            "linux.seccomp.flags[0]: string X is not a valid flag for seccomp",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"] }),
            "linux.seccomp.architectures[0]: string SCMP_ARCH_PDP11 is not a valid arch for seccomp",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x" }),
            "linux.seccomp.listenerMetadata: only allowed with listenerPath",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": [], "action": "SCMP_ACT_KILL" }] }),
            "linux.seccomp.syscalls[0].names: must not be empty",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "X" }] }),
            "linux.seccomp.syscalls[0].action: string X is not a valid action for seccomp",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1 }] }),
            "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_KILL carries no errno",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["write"], "action": "SCMP_ACT_NOTIFY" }] }),
            "linux.seccomp.syscalls[0].names: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] }),
            "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs one",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }] }] }),
            "linux.seccomp.syscalls[0].args[0].index: invalid seccomp argument index 6",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{ "index": 0, "value": 1, "op": "EQ" }] }] }),
            "linux.seccomp.syscalls[0].args[0].op: string EQ is not a valid operator for seccomp",
        ),
        (
            "/linux/seccomp",
            json!([]),
            "linux.seccomp: invalid type: array, expected an object",
        ),
        (
            "/linux",
            json!("x"),
            "linux: invalid type: string \"x\", expected struct Linux",
        ),
    ]
}

/// Sets what a pointer names, also where nothing stands yet.
fn put(spec: &mut Value, pointer: &str, value: Value) {
    let mut place = spec;
    for name in pointer.split('/').skip(1) {
        place = &mut place[name];
    }
    *place = value;
}

#[test]
fn every_malformed_configuration_is_refused_by_the_fields_name() {
    let Some(mut world) = World::new() else {
        return;
    };
    let cases = cases();
    assert!(cases.len() >= 100);
    let mut wrong = Vec::new();
    for (pointer, value, expected) in cases {
        let bundle = world.bundle(&["true"], |spec| put(spec, pointer, value.clone()));
        let id = world.id();
        let ran = world.call(&[
            "--log",
            "/dev/null",
            "create",
            "-b",
            bundle.to_str().unwrap(),
            &id,
        ]);
        let sentence = ran.err.trim_end();
        let sentence = sentence
            .strip_prefix("runc create failed: ")
            .unwrap_or(sentence);
        let made = "unable to start container process: ";
        let sentence = sentence.strip_prefix(made).unwrap_or(sentence);
        if ran.code != 1 || !sentence.starts_with(expected) || sentence.contains('\n') {
            wrong.push(format!("{pointer} {value}: {} {sentence}", ran.code));
        }
        let left = fs::read_dir(world.directory.join("state")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{pointer} {value} left a state");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let cgroup = hierarchy.path().join(&id);
            assert!(
                !cgroup.exists(),
                "{pointer} {value} left {}",
                cgroup.display()
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn text_that_is_no_json_is_refused_by_its_place() {
    let Some(mut world) = World::new() else {
        return;
    };
    for (text, expected) in [
        (
            &b""[..],
            "config.json: EOF while parsing a value at line 1 column 0",
        ),
        (
            b"[]",
            "config.json: invalid type: array, expected an object",
        ),
        (
            b"{",
            "config.json: EOF while parsing an object at line 1 column 1",
        ),
        (
            b"{\"process\":{\"args\":[}",
            "process.args: expected value at line 1 column 21",
        ),
        (
            b"\xff\xfe{}",
            "config.json: expected value at line 1 column 1",
        ),
        (
            b"{\"hostname\":\"\xff\"}",
            "hostname: invalid unicode code point at line 1 column",
        ),
        (
            b"{} {}",
            "config.json: trailing characters at line 1 column 4",
        ),
        (
            b"{\"hostname\":\"a\",\"hostname\":\"b\"}",
            "hostname: duplicate field `hostname`",
        ),
    ] {
        let bundle = world.bundle(&["true"], |_| {});
        fs::write(bundle.join("config.json"), text).unwrap();
        let id = world.id();
        let ran = world.call(&[
            "--log",
            "/dev/null",
            "create",
            "-b",
            bundle.to_str().unwrap(),
            &id,
        ]);
        assert_eq!(ran.code, 1);
        assert!(
            ran.err
                .starts_with(&format!("runc create failed: {expected}")),
            "{}: {}",
            text.escape_ascii(),
            ran.err
        );
    }
    let nowhere = world.directory.clone();
    let ran = world.call(&["create", "-b", nowhere.to_str().unwrap(), "x"]);
    assert!(
        ran.err
            .contains("JSON specification file config.json not found"),
        "{}",
        ran.err
    );
    let deep = world.bundle(&["true"], |_| {});
    fs::write(
        deep.join("config.json"),
        format!("{{\"x\":{}", "[".repeat(100_000)),
    )
    .unwrap();
    let ran = world.call(&["create", "-b", deep.to_str().unwrap(), "x"]);
    assert!(
        ran.code == 1 && ran.err.contains("x[0][0]") && ran.err.len() < 1000,
        "{}",
        ran.err.len()
    );
    assert!(!Path::new("/sys/fs/cgroup/pids/x").exists());
}

/// What the fuzz target `runtime_config` looks for, over a few thousand seeded changes of a whole configuration.
#[test]
fn changed_bytes_are_refused_in_one_sentence_or_read() {
    use gantry_runtime::{document, validate};
    let whole = json!({
        "ociVersion": "1.2.0", "hostname": "h", "annotations": { "a": "b" },
        "process": { "args": ["sh", "-c", "x"], "cwd": "/", "env": ["A=b"], "user": { "uid": 1, "gid": 2, "additionalGids": [3] },
            "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }], "capabilities": { "bounding": ["CAP_CHOWN"] },
            "scheduler": { "policy": "SCHED_BATCH", "nice": 1 }, "execCPUAffinity": { "initial": "0-1" } },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/x", "source": "/y", "options": ["rbind", "ro", "idmap"], "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 2 }],
            "gidMappings": [{ "containerID": 0, "hostID": 1, "size": 2 }] }, { "destination": "/t", "type": "tmpfs", "options": ["size=1m"] }],
        "hooks": { "prestart": [{ "path": "/bin/true", "timeout": 5 }] },
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }, { "type": "time" }], "timeOffsets": { "boottime": { "secs": 1 } },
            "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 2 }], "sysctl": { "kernel.domainname": "d" },
            "resources": { "devices": [{ "allow": false, "access": "rwm" }], "memory": { "limit": 5, "swap": -1 }, "cpu": { "cpus": "0,2-3" },
                "unified": { "memory.high": "1" }, "rdma": { "m": { "hcaHandles": 1 } }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }] },
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] }] } }
    });
    let whole = serde_json::to_vec(&whole).unwrap();
    let spec = document::spec(&whole).unwrap();
    assert_eq!(validate::bundle(&spec), Ok(()));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let tokens: [&[u8]; 14] = [
        b"null",
        b"[]",
        b"{}",
        b"-1",
        b"\"\"",
        b"99999999999",
        b"[[",
        b"}",
        b"\\u0000",
        b",",
        b":",
        b"true",
        b"\xff",
        b"1e9",
    ];
    let (mut read, mut refused) = (0, 0);
    for _ in 0..6000 {
        let mut text = whole.clone();
        for _ in 0..=below(3) {
            let at = below(text.len());
            match below(4) {
                0 => text[at] = below(256) as u8,
                1 => drop(text.drain(at..(at + below(12)).min(text.len()))),
                2 => text.truncate(at + 1),
                _ => drop(text.splice(at..at, tokens[below(tokens.len())].iter().copied())),
            }
        }
        let outcome = document::spec(&text).and_then(|spec| validate::bundle(&spec).map(|()| spec));
        match outcome {
            Ok(spec) => {
                read += 1;
                let written = serde_json::to_vec(&spec).unwrap();
                assert_eq!(
                    document::spec(&written),
                    Ok(spec),
                    "{}",
                    text.escape_ascii()
                );
            }
            Err(sentence) => {
                refused += 1;
                let (field, why) = sentence
                    .split_once(": ")
                    .unwrap_or_else(|| panic!("{sentence}"));
                assert!(
                    !field.is_empty() && !why.is_empty() && sentence.len() < 2000,
                    "{sentence}"
                );
            }
        }
    }
    assert!(read > 100 && refused > 1000, "{read} {refused}");
}
