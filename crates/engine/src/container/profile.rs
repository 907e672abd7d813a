//! A user's seccomp profile in Docker's format → runtime-spec's: rules that depend on capabilities, machine and kernel are decided.

use gantry_base::{Error, Result};
use gantry_oci::image::null_default;
use gantry_oci::runtime::{ArgRule, Seccomp, SyscallRule};
use serde::Deserialize;

const RULES_LIMIT: usize = 10_000;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_default")]
    architectures: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    arch_map: Vec<Architecture>,
    #[serde(deserialize_with = "null_default")]
    flags: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Architecture {
    architecture: String,
    #[serde(deserialize_with = "null_default")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: String,
    #[serde(deserialize_with = "null_default")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_default")]
    args: Vec<ArgRule>,
    #[serde(deserialize_with = "null_default")]
    includes: Filter,
    #[serde(deserialize_with = "null_default")]
    excludes: Filter,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    #[serde(deserialize_with = "null_default")]
    caps: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    arches: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    min_kernel: String,
}

/// Decides the conditions for a container that holds `capabilities` on this machine.
pub(crate) fn convert(json: &str, capabilities: &[String]) -> Result<Seccomp> {
    let failed =
        |reason: &str| Error::invalid(format!("Decoding seccomp profile failed: {reason}"));
    let profile: Profile = serde_json::from_str(json).map_err(|e| failed(&e.to_string()))?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(failed(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'",
        ));
    }
    if profile.syscalls.len() > RULES_LIMIT {
        return Err(failed("too many rules"));
    }
    let native = match std::env::consts::ARCH {
        "x86_64" => ("SCMP_ARCH_X86_64", "amd64"),
        "aarch64" => ("SCMP_ARCH_AARCH64", "arm64"),
        other => (other, other),
    };
    let mut architectures = profile.architectures;
    if let Some(found) = profile
        .arch_map
        .iter()
        .find(|entry| entry.architecture == native.0)
    {
        architectures.push(found.architecture.clone());
        architectures.extend(found.sub_architectures.iter().cloned());
    }
    let holds = |name: &String| capabilities.contains(name);
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        let excluded = rule.excludes.arches.iter().any(|arch| arch == native.1)
            || rule.excludes.caps.iter().any(holds)
            || (!rule.excludes.min_kernel.is_empty() && kernel_at_least(&rule.excludes.min_kernel));
        let included = (rule.includes.arches.is_empty()
            || rule.includes.arches.iter().any(|arch| arch == native.1))
            && rule.includes.caps.iter().all(holds)
            && (rule.includes.min_kernel.is_empty() || kernel_at_least(&rule.includes.min_kernel));
        if excluded || !included {
            continue;
        }
        let names = match (rule.name.is_empty(), rule.names.is_empty()) {
            (false, false) => {
                return Err(failed("both 'name' and 'names' are specified in a rule"));
            }
            (false, true) => vec![rule.name],
            (true, _) => rule.names,
        };
        syscalls.push(SyscallRule {
            names,
            action: rule.action,
            errno_ret: rule.errno_ret,
            args: rule.args,
        });
    }
    Ok(Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags,
        syscalls,
        ..Seccomp::default()
    })
}

fn kernel_at_least(wanted: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let numbers = |text: &str| {
        let mut parts = text
            .split(['.', '-'])
            .map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    numbers(&release) >= numbers(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided_by_capabilities() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW","args":null},
            {"name":"mount","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},"includes":{"minKernel":"4.8"}}]}"#;
        let names = |capabilities: &[String]| {
            let profile = convert(json, capabilities).unwrap();
            profile
                .syscalls
                .into_iter()
                .flat_map(|rule| rule.names)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names(&[]), "read ptrace");
        assert_eq!(names(&["CAP_SYS_ADMIN".into()]), "read mount");
        assert!(
            convert("{", &[])
                .unwrap_err()
                .message()
                .starts_with("Decoding seccomp profile failed: ")
        );
    }
}
