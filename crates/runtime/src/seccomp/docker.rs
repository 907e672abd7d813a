//! Docker's default profile, from the list in `docker_default.txt`.

use super::{ENOSYS, EPERM};
use gantry_oci::runtime::{ArgRule, Seccomp, SyscallRule};

const TEXT: &str = include_str!("docker_default.txt");

/// Docker's default profile for a container that holds `capabilities` (`CAP_…`).
pub fn docker_default(capabilities: &[String]) -> Seccomp {
    let holds = |condition: &str| match condition.strip_prefix('!') {
        Some(name) => !capabilities.iter().any(|c| c == name),
        None => capabilities.iter().any(|c| c == condition),
    };
    let mut always = Vec::new();
    let mut syscalls = Vec::new();
    for line in TEXT.lines() {
        let mut words = line.split_ascii_whitespace();
        let errno = match words.next() {
            Some("allow") => None,
            Some("cap") if words.next().is_some_and(holds) => None,
            Some("arch") if words.next() == Some(std::env::consts::ARCH) => None,
            Some("enosys") if words.next().is_some_and(holds) => Some(ENOSYS),
            _ => continue,
        };
        for word in words {
            match (word.split_once('@'), errno) {
                (None, None) => always.push(word.to_owned()),
                (Some((name, argument)), None) => {
                    syscalls.push(rule(name, None, Some(argument)));
                }
                (_, Some(errno)) => syscalls.push(rule(word, Some(errno), None)),
            }
        }
    }
    syscalls.insert(
        0,
        SyscallRule {
            names: always,
            action: "SCMP_ACT_ALLOW".to_owned(),
            ..SyscallRule::default()
        },
    );
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(EPERM),
        architectures: super::ARCHITECTURES
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        syscalls,
        ..Seccomp::default()
    }
}

fn rule(name: &str, errno: Option<u32>, argument: Option<&str>) -> SyscallRule {
    SyscallRule {
        names: vec![name.to_owned()],
        action: match errno {
            Some(_) => "SCMP_ACT_ERRNO",
            None => "SCMP_ACT_ALLOW",
        }
        .to_owned(),
        errno_ret: errno,
        args: argument.map(parse_argument).into_iter().collect(),
    }
}

fn parse_argument(text: &str) -> ArgRule {
    const BROKEN: &str = "the list is part of this program and tested";
    let mut fields = text.split(':');
    let mut next = || fields.next();
    ArgRule {
        index: next().and_then(|f| f.parse().ok()).expect(BROKEN),
        op: format!("SCMP_CMP_{}", next().expect(BROKEN)),
        value: next().and_then(|f| f.parse().ok()).expect(BROKEN),
        value_two: next().map(|f| f.parse().expect(BROKEN)),
    }
}
