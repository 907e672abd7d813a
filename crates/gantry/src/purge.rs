//! Takes everything of one instance off the machine: containers, cgroups, interfaces, rules, mounts, files. Nothing else.
//!
//! It works from what kernel and disk show, without a daemon and without the node database, so that it also cleans up
//! after a daemon that cannot start any more. Every step is fine with nothing being there.

use crate::instance::{Daemon, Dirs};
use anyhow::{Context, bail};
use gantry_linux::mountinfo;
use gantry_linux::program::start_ticks;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes and their cgroups may take to go.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a cgroup that is emptying.
const PAUSE: Duration = Duration::from_millis(5);
/// What an instance puts into `D`.
const DATA_NAMES: [&str; 15] = [
    "node.redb",
    "node.reserve",
    "events.json",
    "images",
    "build",
    "containers",
    "volumes",
    "registry",
    "tmp",
    "store",
    "keys",
    "audit.log",
    "audit.log.1",
    "instance",
    "lock",
];
/// What an instance puts into `R`.
const RUN_NAMES: [&str; 13] = [
    "c",
    "docker.sock",
    "front.sock",
    "registry.sock",
    "kube.sock",
    "kubeconfig",
    "docker-init",
    "build",
    "spawner.sock",
    "gantry.log",
    "gantry.log.1",
    "daemon.json",
    "daemon.lock",
];

/// What went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub processes: usize,
    pub mounts: usize,
}

/// The daemon must not run any more; the caller holds its locks.
pub fn purge(dirs: &Dirs, instance: Option<&str>) -> anyhow::Result<Purged> {
    let mut purged = Purged::default();
    let cgroups = match instance {
        Some(instance) => instance_cgroups(instance)?,
        None => Vec::new(),
    };
    purged.processes = end_processes(&cgroups, &recorded_processes(&dirs.run))?;
    for folder in &cgroups {
        remove_cgroup(folder)?;
    }
    if let Some(instance) = instance {
        let settings = gantry_network::Settings {
            instance: instance.to_owned(),
            subnet_pool: ipnet::Ipv4Net::default(),
            firewall: gantry_network::Firewall::Friendly,
        };
        gantry_network::Networks::remove_all(&settings, true)
            .map_err(|e| anyhow::anyhow!(e.chain()))?;
    }
    for folder in [&dirs.run, &dirs.data] {
        purged.mounts += unmount_below(folder)?;
    }
    remove_foreign_socket(&dirs.run);
    // The locks go last: as long as they are there, no new daemon starts in a half-removed directory.
    remove_names(&dirs.run, &RUN_NAMES)?;
    remove_names(&dirs.data, &DATA_NAMES)?;
    Ok(purged)
}

/// The instance's folder in every mounted cgroup hierarchy.
fn instance_cgroups(instance: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = BTreeSet::new();
    for mount in mounts()? {
        if mount.kind == "cgroup" || mount.kind == "cgroup2" {
            let folder = mount.place.join(instance);
            if folder.is_dir() {
                folders.insert(folder);
            }
        }
    }
    Ok(folders.into_iter().collect())
}

/// Supervisors and first processes that `R/c/<id>/state.json` names, for a machine whose cgroups are not mounted.
fn recorded_processes(run_dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(run_dir.join("c"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(text) = std::fs::read(entry.path().join("state.json")) else {
            continue;
        };
        let Ok(state) = serde_json::from_slice::<gantry_runtime::proto::StateFile>(&text) else {
            continue;
        };
        let known = [
            (state.supervisor, state.supervisor_start_ticks),
            (state.pid, state.start_ticks),
        ];
        for (pid, ticks) in known {
            if pid > 0 && start_ticks(pid).is_ok_and(|born| born == ticks) {
                pids.push(pid);
            }
        }
    }
    pids
}

/// Kills until nobody is left in the cgroups. Answers how many processes there were.
fn end_processes(cgroups: &[PathBuf], recorded: &[i32]) -> anyhow::Result<usize> {
    let mut ended = BTreeSet::new();
    let limit = Instant::now() + PATIENCE;
    for pid in recorded {
        kill(*pid);
        ended.insert(*pid);
    }
    loop {
        let mut alive = BTreeSet::new();
        for folder in cgroups {
            for group in folders_below(folder) {
                thaw(&group);
                alive.extend(members(&group));
            }
        }
        if alive.is_empty() {
            return Ok(ended.len());
        }
        if Instant::now() > limit {
            bail!("processes {alive:?} do not end even when killed; they wait in the kernel");
        }
        for pid in alive {
            kill(pid);
            ended.insert(pid);
        }
        std::thread::sleep(PAUSE);
    }
}

fn kill(pid: i32) {
    if pid as u32 == std::process::id() {
        return;
    }
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// A frozen process does not die before it is thawed (cgroup v1).
fn thaw(group: &Path) {
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        let path = group.join(file);
        if path.exists() {
            let _ = std::fs::write(path, word);
        }
    }
}

fn members(group: &Path) -> Vec<i32> {
    std::fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect()
}

/// The folder and everything below, deepest first.
fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders_below(&entry.path()));
        }
    }
    found.push(folder.to_owned());
    found
}

fn remove_cgroup(folder: &Path) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    for group in folders_below(folder) {
        loop {
            match std::fs::remove_dir(&group) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                // The last process is a zombie that its parent has not collected yet.
                Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < limit => {
                    std::thread::sleep(PAUSE);
                }
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("removing the cgroup {}", group.display()));
                }
            }
        }
    }
    Ok(())
}

/// Detaches every mount at or below `folder`, the youngest first.
fn unmount_below(folder: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for mount in mounts()?.iter().rev() {
        if mount.place != folder && mount.place.starts_with(folder) {
            rustix::mount::unmount(&mount.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .with_context(|| format!("unmounting {}", mount.place.display()))?;
            count += 1;
        }
    }
    Ok(count)
}

fn mounts() -> anyhow::Result<Vec<mountinfo::Entry>> {
    mountinfo::read().context("reading /proc/self/mountinfo")
}

/// A socket outside of `R` that a killed daemon left behind, if nobody serves it.
fn remove_foreign_socket(run_dir: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let socket = std::fs::read(run_dir.join("daemon.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Daemon>(&text).ok())
        .and_then(|daemon| daemon.docker);
    if let Some(path) = socket
        && std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(&path).is_err()
    {
        let _ = std::fs::remove_file(path);
    }
}

/// Removes the names that an instance makes, and the folder if it is empty then. Foreign files in it stay.
fn remove_names(folder: &Path, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        let path = folder.join(name);
        let removed = match std::fs::symlink_metadata(&path) {
            // Walks by descriptor and follows no link, whatever a container put there.
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound && e.kind() != ErrorKind::NotADirectory => {
                return Err(e).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    match std::fs::remove_dir(folder) {
        Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {
            eprintln!(
                "{} holds files that gantry did not make; they stay",
                folder.display()
            );
        }
        // A service manager's folder or a mount point may stay, empty.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_files_stay() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("data");
        std::fs::create_dir_all(folder.join("images/deep")).unwrap();
        std::fs::write(folder.join("node.redb"), "").unwrap();
        std::os::unix::fs::symlink(root.path(), folder.join("images/deep/out")).unwrap();
        std::fs::write(folder.join("mine"), "").unwrap();
        remove_names(&folder, &DATA_NAMES).unwrap();
        let left: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["mine"]);
        std::fs::remove_file(folder.join("mine")).unwrap();
        remove_names(&folder, &DATA_NAMES).unwrap();
        assert!(!folder.exists() && root.path().exists());
    }

    #[test]
    fn an_absent_instance_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            data: root.path().join("data"),
            run: root.path().join("run"),
        };
        assert_eq!(purge(&dirs, None).unwrap(), Purged::default());
    }
}
