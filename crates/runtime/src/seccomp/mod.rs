//! `linux.seccomp` of runtime-spec as a classic BPF program, and Docker's default profile.
//!
//! ```text
//! Seccomp --rules per architecture--> number line cut into intervals of one outcome --binary search--> program
//! ```
//! Start with [`compile`]. [`docker_default`] is the profile that a container gets when nobody says otherwise; [`compiler`] makes the
//! instructions; [`table`] holds the numbers of system calls.
//!
//! As in runc: unknown names are skipped (a profile may be newer than we are); a rule equal to the default is skipped; calls
//! with numbers beyond everything that the profile knows answer ENOSYS instead of the default errno, so that programs fall back.
//!
//! Spec: runtime-spec "Seccomp", seccomp(2).

mod compiler;
mod docker;
mod table;

pub use docker::docker_default;

use crate::launch::{Attempt, Failure};
use compiler::{Architecture, Condition, Operator, Rule};
use gantry_linux::ipc;
use gantry_linux::seccomp::{
    FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_TSYNC, FLAG_WAIT_KILLABLE_RECV,
    MAX_INSTRUCTIONS,
};
use gantry_oci::runtime::{ArgRule, Seccomp, State, SyscallRule};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

/// A compiled profile: `struct sock_filter[]` in the machine's byte order and `SECCOMP_FILTER_FLAG_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<u8>,
    pub flags: u32,
}

const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_KILL", KILL_THREAD),
    ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
    ("SCMP_ACT_TRAP", TRAP),
    ("SCMP_ACT_ERRNO", ERRNO),
    ("SCMP_ACT_NOTIFY", NOTIFY),
    ("SCMP_ACT_TRACE", TRACE),
    ("SCMP_ACT_LOG", LOG),
    ("SCMP_ACT_ALLOW", ALLOW),
];

const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", FLAG_TSYNC),
    ("SECCOMP_FILTER_FLAG_LOG", FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", FLAG_SPEC_ALLOW),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        FLAG_WAIT_KILLABLE_RECV,
    ),
];

const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_NE", Operator::NotEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
];

/// Names of architectures that this machine can run, its own first.
const ARCHITECTURES: &[(&str, Architecture)] = if cfg!(target_arch = "aarch64") {
    &[("SCMP_ARCH_AARCH64", Architecture::Aarch64)]
} else {
    &[
        ("SCMP_ARCH_X86_64", Architecture::X86_64),
        ("SCMP_ARCH_X86", Architecture::I386),
        ("SCMP_ARCH_X32", Architecture::X32),
    ]
};

fn known<T: Copy>(what: &str, name: &str, table: &[(&str, T)]) -> Result<T, String> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("string {name} is not a valid {what} for seccomp"))
}

/// An action with the errno (or the tracer's message) that it carries.
fn action(name: &str, data: Option<u32>) -> Result<u32, String> {
    let action = known("action", name, &ACTIONS)?;
    Ok(match action {
        ERRNO | TRACE => action | data.unwrap_or(EPERM) & 0xffff,
        action => action,
    })
}

/// Names that the specification knows besides [`ARCHITECTURES`]; on this machine they mean nothing.
const FOREIGN: [&str; 22] = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_SHEB",
];

/// What a specification's profile must not hold; the sentence begins with the field.
pub(crate) fn check(profile: &Seccomp) -> Result<(), String> {
    let at = |field: &str, why: String| format!("linux.seccomp.{field}: {why}");
    let carries = |name: &str| matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
    let default = profile.default_action.as_str();
    if let Err(why) = known("action", default, &ACTIONS) {
        return Err(at("defaultAction", why));
    }
    if default == "SCMP_ACT_NOTIFY" {
        // Also the calls by which the descriptor is handed over would wait for an answer.
        return Err(at(
            "defaultAction",
            "SCMP_ACT_NOTIFY cannot be used as default action".to_owned(),
        ));
    }
    if profile.default_errno_ret.is_some() && !carries(default) {
        return Err(at("defaultErrnoRet", format!("{default} carries no errno")));
    }
    for (index, name) in profile.flags.iter().enumerate() {
        known("flag", name, &FLAGS).map_err(|why| at(&format!("flags[{index}]"), why))?;
    }
    for (index, name) in profile.architectures.iter().enumerate() {
        if !FOREIGN.contains(&name.as_str()) {
            let why = format!("string {name} is not a valid arch for seccomp");
            return Err(at(&format!("architectures[{index}]"), why));
        }
    }
    let mut notifies = false;
    for (index, rule) in profile.syscalls.iter().enumerate() {
        let at = |part: &str, why: String| at(&format!("syscalls[{index}].{part}"), why);
        if rule.names.is_empty() {
            return Err(at("names", "must not be empty".to_owned()));
        }
        known("action", &rule.action, &ACTIONS).map_err(|why| at("action", why))?;
        if rule.errno_ret.is_some() && !carries(&rule.action) {
            return Err(at("errnoRet", format!("{} carries no errno", rule.action)));
        }
        if rule.action == "SCMP_ACT_NOTIFY" {
            notifies = true;
            if rule.names.iter().any(|name| name == "write") {
                return Err(at(
                    "names",
                    "SCMP_ACT_NOTIFY cannot be used for the write syscall".to_owned(),
                ));
            }
        }
        for (number, argument) in rule.args.iter().enumerate() {
            condition(argument)
                .map_err(|(part, why)| at(&format!("args[{number}].{part}"), why))?;
        }
    }
    if notifies && profile.listener_path.is_empty() {
        return Err(at("listenerPath", "SCMP_ACT_NOTIFY needs one".to_owned()));
    }
    if !notifies && !profile.listener_path.is_empty() {
        return Err(at("listenerPath", "no rule has SCMP_ACT_NOTIFY".to_owned()));
    }
    if profile.listener_path.is_empty() && !profile.listener_metadata.is_empty() {
        return Err(at(
            "listenerMetadata",
            "only allowed with listenerPath".to_owned(),
        ));
    }
    Ok(())
}

/// Compiles a profile for this machine.
pub fn compile(profile: &Seccomp) -> Result<Filter, String> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut flags = 0;
    for name in &profile.flags {
        flags |= known("flag", name, &FLAGS)?;
    }
    // The machine's own architecture is always in, as in libseccomp; foreign ones mean nothing here.
    let mut architectures = vec![ARCHITECTURES[0].1];
    for name in &profile.architectures {
        if let Ok(architecture) = known("arch", name, ARCHITECTURES)
            && !architectures.contains(&architecture)
        {
            architectures.push(architecture);
        }
    }
    let beyond = match default & 0xffff_0000 {
        ALLOW | LOG => None,
        _ if profile.default_errno_ret == Some(ENOSYS) => None,
        _ => Some(ERRNO | ENOSYS),
    };
    let mut blocks = Vec::new();
    for architecture in architectures {
        let mut rules = Vec::new();
        for rule in &profile.syscalls {
            add_rules(rule, architecture, default, &mut rules)?;
        }
        blocks.push((architecture, rules));
    }
    if profile
        .syscalls
        .iter()
        .any(|r| r.action == "SCMP_ACT_NOTIFY")
    {
        flags |= FLAG_NEW_LISTENER;
        // The listener's number and a failing thread's id would share one result.
        flags &= !FLAG_TSYNC;
    }
    let program = compiler::compile(&blocks, default, beyond, KILL_THREAD);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(format!(
            "the seccomp profile needs {} instructions, the kernel takes {MAX_INSTRUCTIONS}",
            program.len()
        ));
    }
    Ok(Filter {
        program: program.iter().flat_map(|i| i.to_bytes()).collect(),
        flags,
    })
}

fn add_rules(
    rule: &SyscallRule,
    architecture: Architecture,
    default: u32,
    rules: &mut Vec<Rule>,
) -> Result<(), String> {
    let action = action(&rule.action, rule.errno_ret)?;
    if action == default {
        return Ok(());
    }
    let conditions = rule
        .args
        .iter()
        .map(|argument| condition(argument).map_err(|(_, why)| why))
        .collect::<Result<Vec<_>, _>>()?;
    // libseccomp takes one comparison per argument and rule; profiles that name an argument twice mean "either", as runc reads them.
    let twice = conditions
        .iter()
        .any(|c| conditions.iter().filter(|o| o.index == c.index).count() > 1);
    for name in &rule.names {
        let Some(number) = table::number(name, architecture) else {
            continue;
        };
        if twice {
            rules.extend(conditions.iter().map(|c| Rule {
                number,
                conditions: vec![*c],
                action,
            }));
        } else {
            rules.push(Rule {
                number,
                conditions: conditions.clone(),
                action,
            });
        }
    }
    Ok(())
}

/// The field and what is wrong with it otherwise.
fn condition(rule: &ArgRule) -> Result<Condition, (&'static str, String)> {
    if rule.index > 5 {
        let why = format!("invalid seccomp argument index {}", rule.index);
        return Err(("index", why));
    }
    let operator = known("operator", &rule.op, &OPERATORS).map_err(|why| ("op", why))?;
    let (mask, value) = match operator {
        Operator::MaskedEqual => (rule.value, rule.value_two.unwrap_or(0)),
        _ => (u64::MAX, rule.value),
    };
    Ok(Condition {
        index: rule.index,
        operator,
        mask,
        value,
    })
}

/// Where notifications go: connected before the container's root is entered, used once the filter is there.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    message: String,
}

impl Listener {
    /// `state` is the container's state document for who listens.
    pub(crate) fn connect(profile: &Seccomp, state: &State) -> Result<Self, Failure> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io::Error::from)
        .failed("socket")?;
        SocketAddrUnix::new(profile.listener_path.as_str())
            .and_then(|address| rustix::net::connect(&socket, &address))
            .map_err(io::Error::from)
            .failed("connecting to the seccomp listener")?;
        // runtime-spec: "The Container Process State".
        let message = serde_json::json!({
            "ociVersion": state.oci_version,
            "fds": ["seccompFd"],
            "pid": state.pid,
            "metadata": profile.listener_metadata,
            "state": state,
        });
        Ok(Self {
            socket,
            message: message.to_string(),
        })
    }

    pub(crate) fn hand_over(&self, notifications: &OwnedFd) -> Result<(), Failure> {
        ipc::send(
            &self.socket,
            &[IoSlice::new(self.message.as_bytes())],
            &[notifications.as_fd()],
        )
        .map(|_| ())
        .failed("sending to the seccomp listener")
    }
}

pub(crate) fn features() -> serde_json::Value {
    fn names<T>(table: &[(&'static str, T)]) -> Vec<&'static str> {
        table.iter().map(|(name, _)| *name).collect()
    }
    serde_json::json!({
        "enabled": true,
        "actions": names(&ACTIONS),
        "operators": names(&OPERATORS),
        "archs": names(ARCHITECTURES),
        "knownFlags": names(&FLAGS),
        "supportedFlags": names(&FLAGS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// Runs a program as the kernel would.
    pub(super) fn run(program: &[u8], arch: u32, number: u32, arguments: &[u64]) -> u32 {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (i, argument) in arguments.iter().enumerate() {
            data[16 + 8 * i..24 + 8 * i].copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut a, mut at) = (0_u32, 0);
        loop {
            let i = &program[at * 8..at * 8 + 8];
            let code = u16::from_ne_bytes([i[0], i[1]]);
            let k = u32::from_ne_bytes(i[4..8].try_into().unwrap());
            at += 1;
            let jump = |holds: bool| at + usize::from(if holds { i[2] } else { i[3] });
            match code {
                0x20 => {
                    a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap())
                }
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at = jump(a == k),
                0x25 => at = jump(a > k),
                0x35 => at = jump(a >= k),
                0x06 => return k,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn number(name: &str) -> u32 {
        table::number(name, Architecture::X86_64).unwrap()
    }

    fn outcome(filter: &Filter, name: &str, arguments: &[u64]) -> &'static str {
        match run(&filter.program, X86_64, number(name), arguments) {
            ALLOW => "allow",
            0x0005_0001 => "EPERM",
            0x0005_0026 => "ENOSYS",
            KILL_THREAD => "kill",
            _ => "other",
        }
    }

    #[test]
    fn dockers_default_blocks_what_docker_blocks() {
        let caps: Vec<String> = ["CAP_CHOWN", "CAP_SYS_CHROOT"].map(str::to_owned).to_vec();
        let plain = compile(&docker_default(&caps)).unwrap();
        const NEWUSER: u64 = 0x1000_0000;
        for (name, arguments, expected) in [
            ("read", &[][..], "allow"),
            ("chroot", &[], "allow"),
            ("mount", &[], "EPERM"),
            ("umount2", &[], "EPERM"),
            ("keyctl", &[], "EPERM"),
            ("add_key", &[], "EPERM"),
            ("unshare", &[NEWUSER], "EPERM"),
            ("setns", &[], "EPERM"),
            ("bpf", &[], "EPERM"),
            ("io_uring_setup", &[], "EPERM"),
            ("userfaultfd", &[], "EPERM"),
            ("kexec_load", &[], "EPERM"),
            ("swapon", &[], "EPERM"),
            ("ptrace", &[], "allow"),
            ("clone", &[0x11], "allow"),
            ("clone", &[NEWUSER | 0x11], "EPERM"),
            ("clone", &[0x2_0000], "EPERM"),
            ("clone3", &[], "ENOSYS"),
            ("socket", &[2], "allow"),
            ("socket", &[40], "EPERM"),
            ("personality", &[0xffff_ffff], "allow"),
            ("personality", &[0x20008], "allow"),
            ("personality", &[0x40000], "EPERM"),
            ("reboot", &[], "EPERM"),
        ] {
            assert_eq!(
                outcome(&plain, name, arguments),
                expected,
                "{name} {arguments:x?}"
            );
        }
        let caps = ["CAP_SYS_ADMIN".to_owned()];
        let admin = compile(&docker_default(&caps)).unwrap();
        for name in ["mount", "clone3", "unshare", "bpf"] {
            assert_eq!(outcome(&admin, name, &[0x1000_0000]), "allow", "{name}");
        }
        // i386's numbers are its own; a foreign architecture dies; numbers from the future are unknown.
        assert_eq!(run(&plain.program, I386, 21, &[]), ERRNO | EPERM);
        assert_eq!(run(&plain.program, I386, 3, &[]), ALLOW);
        assert_eq!(run(&plain.program, 0xc000_00b7, 0, &[]), KILL_THREAD);
        assert_eq!(run(&plain.program, X86_64, 5000, &[]), ERRNO | ENOSYS);
        assert_eq!(run(&plain.program, X86_64, 0x4000_0000, &[]), ALLOW);
        assert!(
            plain.program.len() / 8 < 1500,
            "{}",
            plain.program.len() / 8
        );
    }

    #[test]
    fn comparisons_are_of_64_bits() {
        let big = 0x1_0000_0005;
        for (op, value, two, yes, no) in [
            ("EQ", big, None, vec![big], vec![5, big + 1, 0x2_0000_0005]),
            ("NE", big, None, vec![5, 0x2_0000_0005], vec![big]),
            (
                "LT",
                big,
                None,
                vec![big - 1, 0xffff_ffff],
                vec![big, big + 1, u64::MAX],
            ),
            ("LE", big, None, vec![big, 0], vec![big + 1, 0x2_0000_0000]),
            ("GT", big, None, vec![big + 1, 0x2_0000_0000], vec![big, 9]),
            (
                "GE",
                big,
                None,
                vec![big, u64::MAX],
                vec![big - 1, 0xffff_ffff],
            ),
            (
                "MASKED_EQ",
                0xf_0000_000f,
                Some(0x3_0000_0001_u64),
                vec![0x3_0000_0001, 0xf3_0000_00f1],
                vec![0x3_0000_0003, 0x1_0000_0001],
            ),
        ] {
            let profile: Seccomp = serde_json::from_value(serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                    "args": [{ "index": 2, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}") }] }],
            }))
            .unwrap();
            let filter = compile(&profile).unwrap();
            for (arguments, expected) in [(yes, ERRNO | 7), (no, ALLOW)] {
                for argument in arguments {
                    let got = run(&filter.program, X86_64, 39, &[0, 0, argument]);
                    assert_eq!(got, expected, "{op} {argument:#x}");
                }
            }
            assert_eq!(run(&filter.program, X86_64, 9999, &[]), ALLOW);
        }
    }

    #[test]
    fn conditions_of_one_rule_hold_together_and_rules_are_alternatives() {
        let profile: Seccomp = serde_json::from_str(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["read","nosuch"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},
                {"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]},
                {"names":["write"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
        )
        .unwrap();
        let program = compile(&profile).unwrap().program;
        for (number, arguments, expected) in [
            (0, [1, 2], ALLOW),
            (0, [1, 3], ERRNO | EPERM),
            (0, [9, 2], LOG),
            (1, [0, 0], KILL_PROCESS),
            (2, [0, 0], ERRNO | ENOSYS),
        ] {
            assert_eq!(
                run(&program, X86_64, number, &arguments),
                expected,
                "{number} {arguments:?}"
            );
        }
        assert!(
            compile(&Seccomp {
                default_action: "SCMP_ACT_MAYBE".into(),
                ..Seccomp::default()
            })
            .is_err()
        );
    }
}
