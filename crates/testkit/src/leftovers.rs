//! What an instance may have left on the machine: processes, mounts, interfaces, rules, cgroups, files.

use crate::run::run;
use std::path::Path;
use std::process::Command;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Traces<'a> {
    /// `gantry-1a2b3c4d`.
    pub instance: &'a str,
    /// The folder that holds data and run directory; its path is in every mount and command line of the instance.
    pub folder: &'a Path,
    pub data_dir: &'a Path,
    pub run_dir: &'a Path,
    /// Arguments of nsenter that lead to the instance's network namespace; empty for ours.
    pub enter: &'a [String],
}

/// One line per thing found; empty when the machine is as it was.
pub fn find(traces: &Traces<'_>) -> Vec<String> {
    let mut found = Vec::new();
    processes(traces, &mut found);
    interfaces(traces, &mut found);
    rules(traces, &mut found);
    cgroups(Path::new("/sys/fs/cgroup"), traces.instance, 3, &mut found);
    for folder in [traces.data_dir, traces.run_dir] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            found.push(format!("file {}", entry.path().display()));
        }
    }
    found
}

/// Processes in a cgroup of the instance, or whose mounts or command line name the instance's folder.
fn processes(traces: &Traces<'_>, found: &mut Vec<String>) {
    let folder = traces.folder.to_string_lossy();
    let cgroup = format!("/{}", traces.instance);
    let me = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .flatten()
    {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == me {
            continue;
        }
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let in_cgroup = read("cgroup")
            .lines()
            .any(|line| line.ends_with(&cgroup) || line.contains(&format!("{cgroup}/")));
        let command = read("cmdline");
        let gantry = command
            .split(' ')
            .next()
            .is_some_and(|word| word.contains("gantry"));
        let mount = read("mountinfo")
            .lines()
            .find(|line| line.contains(&*folder))
            .map(str::to_owned);
        if in_cgroup || (gantry && command.contains(&*folder)) || mount.is_some() {
            let why = mount.unwrap_or_default();
            // Gone in between: a process that ended while we looked is not left over.
            if entry.path().join("stat").exists() && !read("stat").contains(") Z ") {
                found.push(format!("process {pid} {command} {why}"));
            }
        }
    }
}

fn interfaces(traces: &Traces<'_>, found: &mut Vec<String>) {
    let links = enter(traces, "ip", &["-oneline", "link"]);
    let hex = traces.instance.trim_start_matches("gantry-");
    for line in links.lines() {
        let name = line.split(':').nth(1).unwrap_or_default().trim();
        let ours = line.contains(traces.instance) || (hex.len() == 8 && line.contains(hex));
        // In a namespace of our own nothing but the loopback was there.
        if ours || (!traces.enter.is_empty() && name != "lo") {
            found.push(format!("interface {line}"));
        }
    }
}

fn rules(traces: &Traces<'_>, found: &mut Vec<String>) {
    for line in enter(traces, "nft", &["list", "ruleset"]).lines() {
        if line.contains(traces.instance) {
            found.push(format!("rule {}", line.trim()));
        }
    }
}

fn enter(traces: &Traces<'_>, program: &str, words: &[&str]) -> String {
    let mut command = if traces.enter.is_empty() {
        Command::new(program)
    } else {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(traces.enter).arg(program);
        nsenter
    };
    run(command.args(words), None).ok()
}

fn cgroups(folder: &Path, instance: &str, depth: u32, found: &mut Vec<String>) {
    if depth == 0 {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == instance {
            found.push(format!("cgroup {}", entry.path().display()));
        } else {
            cgroups(&entry.path(), instance, depth - 1, found);
        }
    }
}

/// Processes in the instance's cgroups, in whichever hierarchy.
pub fn cgroup_members(instance: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for folder in instance_folders(instance) {
        let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Removes the instance's cgroups. A spawner or supervisor that is ending keeps its own busy for a moment: waited for, at most [`BUSY_LIMIT`].
pub fn remove_cgroups(instance: &str) {
    let until = std::time::Instant::now() + BUSY_LIMIT;
    loop {
        let folders = instance_folders(instance);
        for folder in &folders {
            let _ = std::fs::remove_dir(folder);
        }
        if folders.is_empty() || std::time::Instant::now() > until {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// How long processes that were told to end may take.
const BUSY_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The instance's cgroups and all below, deepest first.
fn instance_folders(instance: &str) -> Vec<std::path::PathBuf> {
    fn below(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below(&entry.path(), into);
            }
        }
        into.push(folder.to_owned());
    }
    let mut roots = Vec::new();
    cgroups(Path::new("/sys/fs/cgroup"), instance, 3, &mut roots);
    let mut folders = Vec::new();
    for root in roots {
        below(Path::new(root.trim_start_matches("cgroup ")), &mut folders);
    }
    folders
}
