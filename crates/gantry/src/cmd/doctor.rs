//! `gantry doctor`: what this machine lacks, and the fix for each line.
//!
//! Each check looks at the machine as it is and changes nothing. `fails` stops containers from working, `lacks` takes one
//! feature away. Exit code 1 when something fails.

use crate::args::Output;
use crate::instance::Dirs;
use crate::output;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Lacks,
    Fails,
}

#[derive(Debug)]
struct Line {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it; empty when it is fine.
    fix: String,
}

fn fine(name: &'static str, found: impl Into<String>) -> Line {
    Line {
        name,
        verdict: Verdict::Fine,
        found: found.into(),
        fix: String::new(),
    }
}

fn lacks(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Line {
    Line {
        name,
        verdict: Verdict::Lacks,
        found: found.into(),
        fix: fix.into(),
    }
}

fn fails(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Line {
    Line {
        verdict: Verdict::Fails,
        ..lacks(name, found, fix)
    }
}

pub fn run(dirs: &Dirs, how: Output) -> anyhow::Result<ExitCode> {
    let lines: Vec<Line> = [
        root(),
        kernel(),
        overlay(),
        capabilities(),
        namespaces(),
        cgroups(),
        nf_tables(),
        forwarding(),
        foreign_drops(dirs.instance()?.as_deref().unwrap_or("gantry")),
        seccomp(),
        apparmor(),
        file_limit(),
    ]
    .into_iter()
    .flatten()
    .collect();
    match how {
        Output::Json => {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| json!({ "name": line.name, "verdict": word(line.verdict), "found": line.found, "fix": line.fix }))
                .collect();
            output::json(&json!(lines))?;
        }
        Output::Text => {
            for line in &lines {
                output::line(format!(
                    "{:<6} {:<14} {}",
                    word(line.verdict),
                    line.name,
                    line.found
                ))?;
                if !line.fix.is_empty() {
                    output::line(format!("{:<21} fix: {}", "", line.fix))?;
                }
            }
        }
    }
    let failed = lines.iter().any(|line| line.verdict == Verdict::Fails);
    Ok(ExitCode::from(u8::from(failed)))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fine => "ok",
        Verdict::Lacks => "lacks",
        Verdict::Fails => "fails",
    }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Vec<Line> {
    if rustix::process::geteuid().is_root() {
        return vec![fine("user", "root")];
    }
    vec![fails(
        "user",
        "not root; this build has no rootless mode",
        "run `gantry up` with sudo or as a service",
    )]
}

/// The oldest kernel with everything that is used: `openat2` 5.6, `clone3` into a cgroup 5.7, `mount_setattr` 5.12, overlay `lowerdir+` 6.7.
fn kernel() -> Vec<Line> {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    match version(&release) {
        Some(found) if found >= (6, 7) => vec![fine("kernel", release)],
        Some(found) if found >= (5, 12) => vec![lacks(
            "kernel",
            format!("{release}; images with very many layers need 6.7"),
            "upgrade the kernel",
        )],
        _ => vec![fails(
            "kernel",
            format!("{release}; 5.12 is the oldest that works"),
            "upgrade the kernel",
        )],
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn overlay() -> Vec<Line> {
    let known = read("/proc/filesystems")
        .lines()
        .any(|line| line.ends_with("\toverlay"));
    if known {
        vec![fine("overlay", "the kernel has overlayfs")]
    } else {
        vec![fails(
            "overlay",
            "the kernel does not list overlayfs",
            "modprobe overlay",
        )]
    }
}

/// Capabilities that a privileged container would get on a machine that holds nothing back (capabilities(7)).
const CAPABILITIES: [(u32, &str, Verdict, &str); 8] = [
    (
        21,
        "CAP_SYS_ADMIN",
        Verdict::Fails,
        "no container can be made",
    ),
    (
        12,
        "CAP_NET_ADMIN",
        Verdict::Fails,
        "no network can be made",
    ),
    (
        27,
        "CAP_MKNOD",
        Verdict::Lacks,
        "devices in images cannot be made",
    ),
    (
        24,
        "CAP_SYS_RESOURCE",
        Verdict::Lacks,
        "limits (--ulimit, oom_score_adj) cannot be raised above our own, and --privileged goes without it",
    ),
    (
        19,
        "CAP_SYS_PTRACE",
        Verdict::Lacks,
        "joining other users' namespaces may fail",
    ),
    (
        31,
        "CAP_SETFCAP",
        Verdict::Lacks,
        "file capabilities in images are lost",
    ),
    (
        16,
        "CAP_SYS_MODULE",
        Verdict::Lacks,
        "missing kernel modules are not loaded on demand",
    ),
    (
        23,
        "CAP_SYS_NICE",
        Verdict::Lacks,
        "real-time scheduling cannot be given",
    ),
];

fn capabilities() -> Vec<Line> {
    let status = read("/proc/self/status");
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| mask & (1 << bit) == 0)
        .collect();
    if missing.is_empty() {
        return vec![fine("capabilities", "all that is needed")];
    }
    missing
        .into_iter()
        .map(|(_, name, verdict, effect)| Line {
            name: "capabilities",
            verdict: *verdict,
            found: format!("{name} is missing: {effect}"),
            fix: format!("start gantry where nothing took {name} away (outside of a container, or in one that was given it)"),
        })
        .collect()
}

fn namespaces() -> Vec<Line> {
    let missing: Vec<&str> = ["mnt", "pid", "net", "uts", "ipc", "cgroup"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    let mut lines = vec![if missing.is_empty() {
        fine("namespaces", "mount, pid, net, uts, ipc, cgroup")
    } else {
        fails(
            "namespaces",
            format!("the kernel lacks {}", missing.join(", ")),
            "use a kernel built with them",
        )
    }];
    let limit: u64 = read("/proc/sys/user/max_user_namespaces")
        .trim()
        .parse()
        .unwrap_or(0);
    if !Path::new("/proc/self/ns/user").exists() || limit == 0 {
        lines.push(lacks(
            "user namespace",
            "switched off: programs in containers that make their own sandboxes may fail",
            "sysctl user.max_user_namespaces=15000",
        ));
    }
    lines
}

fn cgroups() -> Vec<Line> {
    let mounts = gantry_linux::mountinfo::read().unwrap_or_default();
    let v2 = mounts.iter().find(|mount| mount.kind == "cgroup2");
    // Among a v1 hierarchy's options are its controllers.
    let v1: Vec<&str> = mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup")
        .flat_map(|mount| mount.options.split(','))
        .collect();
    let unified = v2
        .map(|mount| read(mount.place.join("cgroup.controllers")))
        .unwrap_or_default();
    let unified: Vec<&str> = unified.split_whitespace().collect();
    if v1.is_empty() && unified.is_empty() {
        return vec![fails(
            "cgroups",
            "no cgroup hierarchy with controllers is mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )];
    }
    let wanted = [
        ("memory", "memory", "--memory"),
        ("cpu", "cpu", "--cpus, --cpu-shares"),
        ("pids", "pids", "--pids-limit"),
        ("cpuset", "cpuset", "--cpuset-cpus"),
        ("blkio", "io", "--blkio-weight, --device-read-bps"),
    ];
    let mut lines: Vec<Line> = wanted
        .iter()
        .filter(|(one, two, _)| !v1.contains(one) && !unified.contains(two))
        .map(|(name, _, flags)| {
            lacks(
                "cgroups",
                format!("no {name} controller: {flags} cannot be held"),
                format!("boot with cgroup_enable={name}, or take it back from whoever disabled it"),
            )
        })
        .collect();
    if lines.is_empty() {
        let kind = match (v1.is_empty(), unified.is_empty()) {
            (true, _) => "v2",
            (false, true) => "v1",
            (false, false) => "v1 and v2",
        };
        lines.push(fine("cgroups", kind));
    }
    lines
}

fn nf_tables() -> Vec<Line> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
    match socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    ) {
        Ok(_) => vec![fine("nftables", "the kernel answers on netfilter's socket")],
        Err(e) => vec![fails(
            "nftables",
            format!(
                "no netfilter socket ({e}): no address translation, no published ports at full speed"
            ),
            "modprobe nf_tables",
        )],
    }
}

fn forwarding() -> Vec<Line> {
    if read("/proc/sys/net/ipv4/ip_forward").trim() == "1" {
        vec![fine("forwarding", "on")]
    } else {
        // Not a fault: `up` switches it on.
        vec![fine("forwarding", "off; `gantry up` switches it on")]
    }
}

/// `instance`: whose accepts count as being in place.
fn foreign_drops(instance: &str) -> Vec<Line> {
    match gantry_network::Networks::foreign_drops_of(instance) {
        Ok(drops) if drops.is_empty() => {
            vec![fine("firewalls", "no foreign chain drops forwarded traffic")]
        }
        Ok(drops) => drops
            .into_iter()
            .map(|drop| {
                // Our own accept is in place; the sentence says so.
                if drop.contains("lets our bridges through") {
                    fine("firewalls", drop)
                } else {
                    lacks(
                        "firewalls",
                        drop,
                        "`gantry up` (not with --firewall strict) puts a marked accept there, or accept our bridges in that firewall",
                    )
                }
            })
            .collect(),
        // The line about nftables says why.
        Err(_) => Vec::new(),
    }
}

fn seccomp() -> Vec<Line> {
    if read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        vec![fine("seccomp", "filters work")]
    } else {
        vec![fails(
            "seccomp",
            "the kernel has no seccomp filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )]
    }
}

fn apparmor() -> Vec<Line> {
    if read("/sys/module/apparmor/parameters/enabled").trim() == "Y" {
        vec![lacks(
            "AppArmor",
            "on, and this build loads no profile of its own: containers run unconfined by it (seccomp and capabilities still hold)",
            "nothing to do; `--security-opt apparmor=NAME` is refused",
        )]
    } else {
        vec![fine("AppArmor", "not on this machine")]
    }
}

/// Limits that the daemon inherits and cannot raise decide how many containers fit.
fn file_limit() -> Vec<Line> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(files) if files < 4096 => vec![lacks(
            "open files",
            format!("at most {files}: about {} containers", files / 4),
            "ulimit -Hn 1048576 before `gantry up`, or LimitNOFILE= in the unit",
        )],
        _ => vec![fine("open files", "enough")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(version("6.18.2-cloud"), Some((6, 18)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn every_line_that_is_not_fine_has_a_fix() {
        for line in [
            root(),
            kernel(),
            capabilities(),
            cgroups(),
            namespaces(),
            nf_tables(),
        ]
        .into_iter()
        .flatten()
        {
            assert_eq!(
                line.verdict == Verdict::Fine,
                line.fix.is_empty(),
                "{line:?}"
            );
        }
    }
}
