//! Where a process's cgroups lie on this node, for cgroup v1, hybrid and v2. Reading only.

use gantry_linux::mountinfo;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Processes of one container that are listed.
const PROCESS_LIMIT: usize = 1 << 17;
/// Cgroups below a container's own that are looked into.
const NESTED_LIMIT: usize = 4096;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Empty for v2.
    controllers: Vec<String>,
    mount: PathBuf,
    /// Which cgroup the mount shows as its root.
    root: String,
}

/// The folders of one process's cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// v1: controller → folder.
    v1: Vec<(String, PathBuf)>,
    v2: Option<PathBuf>,
}

impl Cgroups {
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        static HIERARCHIES: OnceLock<Vec<Hierarchy>> = OnceLock::new();
        let hierarchies = match HIERARCHIES.get() {
            Some(hierarchies) => hierarchies,
            None => {
                let read = hierarchies(mountinfo::read()?);
                HIERARCHIES.get_or_init(|| read)
            }
        };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(Self::from(hierarchies, &text))
    }

    fn from(hierarchies: &[Hierarchy], text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let same = |h: &&Hierarchy| {
                if controllers.is_empty() {
                    h.controllers.is_empty()
                } else {
                    controllers
                        .split(',')
                        .all(|c| h.controllers.iter().any(|have| have == c))
                }
            };
            let Some(hierarchy) = hierarchies.iter().find(same) else {
                continue;
            };
            let Some(folder) = hierarchy.folder(path) else {
                continue;
            };
            if controllers.is_empty() {
                found.v2 = Some(folder);
            } else {
                found.v1.extend(
                    controllers
                        .split(',')
                        .map(|c| (c.to_owned(), folder.clone())),
                );
            }
        }
        found
    }

    /// The folder of a v1 controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|(name, _)| name == controller)
            .map(|(_, folder)| folder.as_path())
    }

    pub(crate) fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// Everybody in it and in the cgroups below, in the order of their numbers.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        let folder = self
            .v1("pids")
            .or_else(|| self.v1("memory"))
            .or(self.v2())
            .or_else(|| self.v1.first().map(|(_, f)| f.as_path()));
        let Some(folder) = folder else {
            return Err(io::Error::other("no cgroup hierarchy is mounted"));
        };
        let mut folders = vec![folder.to_owned()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            let text = match std::fs::read_to_string(folder.join("cgroup.procs")) {
                // Removed meanwhile; or a threaded v2 cgroup, whose processes its parent lists.
                Err(e)
                    if e.kind() == io::ErrorKind::NotFound
                        || e.raw_os_error()
                            == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
                {
                    continue;
                }
                text => text?,
            };
            pids.extend(
                text.lines()
                    .filter_map(|pid| pid.parse::<i32>().ok())
                    .take(PROCESS_LIMIT - pids.len()),
            );
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                if seen < NESTED_LIMIT && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    seen += 1;
                    folders.push(entry.path());
                }
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

impl Hierarchy {
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let below = if self.root == "/" {
            path
        } else {
            path.strip_prefix(&self.root)?
        };
        // A cgroup outside of our own cgroup namespace reads `/../…` and is not under the mount.
        if below.split('/').any(|part| part == "..") {
            return None;
        }
        Some(self.mount.join(below.trim_start_matches('/')))
    }
}

fn hierarchies(mounts: Vec<mountinfo::Entry>) -> Vec<Hierarchy> {
    let hierarchy = |mount: mountinfo::Entry| {
        let controllers = match mount.kind.as_str() {
            "cgroup2" => Vec::new(),
            "cgroup" => mount
                .options
                .split(',')
                .filter(|word| {
                    !matches!(*word, "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                })
                .map(str::to_owned)
                .collect(),
            _ => return None,
        };
        Some(Hierarchy {
            controllers,
            mount: mount.place,
            root: mount.root,
        })
    };
    mounts.into_iter().filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /inner /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn folders_of_a_hybrid_process() {
        let hierarchies = hierarchies(mountinfo::parse(HYBRID));
        let found = Cgroups::from(
            &hierarchies,
            "9:name=systemd:/x\n4:memory:/inner/g/1\n2:cpu,cpuacct:/g/1\n0::/g/1\n",
        );
        assert_eq!(
            found.v1("memory"),
            Some(Path::new("/sys/fs/cgroup/memory/g/1"))
        );
        assert_eq!(
            found.v1("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/g/1"))
        );
        assert_eq!(
            found.v1("name=systemd"),
            Some(Path::new("/sys/fs/cgroup/systemd/x"))
        );
        assert_eq!(found.v2(), Some(Path::new("/sys/fs/cgroup/unified/g/1")));
        assert_eq!(found.v1("pids"), None);
        let outside = Cgroups::from(&hierarchies, "4:memory:/other\n0::/../../up\n");
        assert_eq!(outside, Cgroups::default());
    }

    #[test]
    fn this_process_is_in_its_own_cgroups() {
        let me = std::process::id() as i32;
        assert!(Cgroups::of(me).unwrap().processes().unwrap().contains(&me));
    }
}
