//! One container's control groups in every hierarchy of the machine: v1, hybrid and v2.
//!
//! ```text
//! Cgroup::for_spec / at    names the directories            (no side effect)
//!   .create(resources)     makes them, sets limits -> Join  (parent, before the clone)
//!   Join::enter            puts this process into them      (init, single-threaded)
//!   .remove()              gone, also what was made inside
//! ```
//! [`plan`] turns resources into file writes (pure); [`stats`] reads the counters; [`device_program`] is the v2 device controller.
//!
//! In v1 the process moves itself by writing `0` to `tasks`: for the pid 0 the kernel need not take its global lock against
//! concurrent forks and exits (`cgroup_procs_write_start`), whose first taker after idle waits 5–9 ms for an RCU grace period.
//! Writing to `cgroup.procs`, or any other pid, takes it.
//!
//! Not every v1 hierarchy is needed: a container without CPU sets stays in its creator's `cpuset`, because a new
//! cpuset means copying masks level by level and may rebuild the scheduler's domains.

mod device_program;
mod plan;
mod stats;

pub use stats::{BlockIoStat, Stats};

use gantry_oci::runtime::{Resources, Spec};
use plan::Setting;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

const MOUNT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Where a container's cgroups are. Only paths: can be stored, and made again from the container's `cgroupsPath`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// v1 controllers, or `name=systemd`; empty for v2.
    controllers: Vec<String>,
    mount: PathBuf,
    directory: PathBuf,
}

impl Hierarchy {
    fn unified(&self) -> bool {
        self.controllers.is_empty()
    }
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
    /// The directory's name below `/sys/fs/cgroup`.
    pub(crate) fn name(&self) -> String {
        self.mount
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
    pub(crate) fn controllers(&self) -> &[String] {
        &self.controllers
    }
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
    /// Whether a process that enters a directory of this hierarchy stops there and then, for that cgroup or one above is frozen: who
    /// waits for it waits until somebody thaws it.
    fn stops_in(&self, directory: &Path) -> bool {
        let read = |file: &str| fs::read_to_string(directory.join(file));
        if self.unified() {
            read("cgroup.freeze").is_ok_and(|state| state.trim() == "1")
                || stats::read_keyed(&directory.join("cgroup.events"), "frozen") == Some(1)
        } else {
            // A v1 freezer shows its ancestors' state as its own.
            self.has("freezer") && read("freezer.state").is_ok_and(|state| state.trim() != "THAWED")
        }
    }
}

/// A hierarchy of this machine and where this process is in it.
#[derive(Debug)]
struct Mounted {
    controllers: Vec<String>,
    mount: PathBuf,
    own: String,
}

/// True when `/sys/fs/cgroup` is the v2 hierarchy alone.
pub(crate) fn is_unified() -> bool {
    is_cgroup2(Path::new(MOUNT))
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 == CGROUP2_MAGIC)
}

/// By convention of every distribution the hierarchies are below `/sys/fs/cgroup` under their controllers' names; this reads
/// one small file instead of a mount table that may have thousands of lines.
fn mounted() -> io::Result<Vec<Mounted>> {
    let unified = is_unified();
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup")?.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(own)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let controllers: Vec<String> = match names {
            "" => Vec::new(),
            names => names.split(',').map(str::to_owned).collect(),
        };
        let mount = if names.is_empty() {
            let hybrid = Path::new(MOUNT).join("unified");
            match unified {
                true => Some(PathBuf::from(MOUNT)),
                false => is_cgroup2(&hybrid).then_some(hybrid),
            }
        } else if unified {
            None
        } else {
            let joined = names.trim_start_matches("name=");
            let reversed = controllers.iter().rev().cloned().collect::<Vec<_>>();
            [joined, &reversed.join(","), &controllers[0]]
                .into_iter()
                .map(|name| Path::new(MOUNT).join(name))
                .find(|path| path.join("tasks").exists())
        };
        if let Some(mount) = mount {
            let own = own.to_owned();
            found.push(Mounted {
                controllers,
                mount,
                own,
            });
        }
    }
    Ok(found)
}

/// Only plain components, so that no path leaves the hierarchy.
fn clean(path: &str) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("cgroups path {path:?} must not contain \"..\""),
                ));
            }
            _ => {}
        }
    }
    Ok(clean)
}

impl Cgroup {
    /// The cgroups that `cgroupsPath` names, whether they exist or not. Absolute: below each mount; relative: below the caller's own.
    pub fn at(cgroups_path: &str) -> io::Result<Self> {
        let path = clean(cgroups_path)?;
        if path.as_os_str().is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "cgroups path is empty",
            ));
        }
        let absolute = cgroups_path.starts_with('/');
        let hierarchies = mounted()?
            .into_iter()
            .map(|m| {
                let mut directory = m.mount.clone();
                if !absolute {
                    let own = Path::new(m.own.trim_start_matches('/'));
                    // v2 allows no processes in a cgroup whose children have controllers, and we are in ours: a sibling then.
                    let base = match m.controllers.is_empty() {
                        true => own.parent().unwrap_or(own),
                        false => own,
                    };
                    directory.push(base);
                }
                directory.push(&path);
                Hierarchy {
                    controllers: m.controllers,
                    mount: m.mount,
                    directory,
                }
            })
            .collect();
        Ok(Self { hierarchies })
    }

    /// The cgroups of a container by its spec; without `cgroupsPath` named by its id.
    pub fn for_spec(id: &str, spec: &Spec) -> io::Result<Self> {
        let path = spec.linux.as_ref().map_or("", |l| l.cgroups_path.as_str());
        Self::at(if path.is_empty() { id } else { path })
    }

    pub(crate) fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.unified())
    }

    fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.has(controller))
    }

    /// v1 hierarchies that are only worth a directory when something in them is limited.
    fn wanted(hierarchy: &Hierarchy, settings: &[Setting]) -> bool {
        const ALWAYS: [&str; 6] = ["memory", "cpu", "cpuacct", "pids", "devices", "freezer"];
        const OFTEN: [&str; 2] = ["blkio", "name=systemd"];
        hierarchy.unified()
            || hierarchy
                .controllers
                .iter()
                .any(|c| ALWAYS.contains(&c.as_str()) || OFTEN.contains(&c.as_str()))
            || settings.iter().any(|s| hierarchy.has(s.controller))
    }

    /// Makes the directories and sets every limit; `Join` puts a process in. On failure what was made is removed.
    /// Unless `shared`, a directory that is there with processes in it is refused: they would be ended with the container.
    pub(crate) fn create(&self, resources: &Resources, shared: bool) -> Result<Join, String> {
        let mut made = Vec::new();
        self.create_in(resources, shared, &mut made)
            .inspect_err(|_| {
                let until = Instant::now() + Duration::from_secs(2);
                for directory in made {
                    let _ = remove_directory(directory, until);
                }
            })
    }

    fn create_in<'a>(
        &'a self,
        resources: &Resources,
        shared: bool,
        made: &mut Vec<&'a Path>,
    ) -> Result<Join, String> {
        let settings = plan::settings(resources)?;
        let mut join = Join::default();
        for hierarchy in &self.hierarchies {
            if !Self::wanted(hierarchy, &settings) {
                continue;
            }
            let result = make_directory(hierarchy);
            if result.is_ok() && hierarchy.stops_in(&hierarchy.directory) {
                if let Ok(Made::New) = result {
                    made.push(&hierarchy.directory);
                }
                return Err("linux.cgroupsPath: container's cgroup unexpectedly frozen".to_owned());
            }
            if let Ok(Made::New) = result {
                made.push(&hierarchy.directory);
            } else if let (Ok(Made::Found), false) = (&result, shared) {
                let mut pids = Vec::new();
                let _ = collect_pids(&hierarchy.directory, &mut pids);
                if !pids.is_empty() {
                    return Err(format!(
                        "linux.cgroupsPath: container's cgroup is not empty: {} process(es) found",
                        pids.len()
                    ));
                }
                made.push(&hierarchy.directory);
            }
            if let Err(e) = result {
                let needed = settings.iter().any(|s| hierarchy.has(s.controller));
                // An ordinary user gets what was delegated, and no more than that is promised.
                if rustix::process::geteuid().is_root() || needed {
                    return Err(format!("mkdir {}: {e}", hierarchy.directory.display()));
                }
                continue;
            }
            let flags = OFlags::CLOEXEC;
            if hierarchy.unified() {
                let flags = flags | OFlags::PATH | OFlags::DIRECTORY;
                let directory = rustix::fs::openat(CWD, &hierarchy.directory, flags, Mode::empty())
                    .map_err(|e| format!("open {}: {e}", hierarchy.directory.display()))?;
                join.unified = Some(directory);
            } else {
                let tasks = hierarchy.directory.join("tasks");
                let flags = flags | OFlags::WRONLY;
                let tasks = rustix::fs::openat(CWD, &tasks, flags, Mode::empty())
                    .map_err(|e| format!("open {}: {e}", tasks.display()))?;
                join.v1.push(tasks);
            }
        }
        if self.hierarchies.len() == 1
            && let Some(unified) = self.unified()
        {
            enable_all(unified);
        }
        self.apply(&settings)?;
        self.limit_devices(resources)?;
        Ok(join)
    }

    /// The v2 cgroup that a process is in now: where a container runs an init that keeps its processes in cgroups of their own, its
    /// top one takes none any more.
    pub(crate) fn unified_of(&self, pid: i32, ignore_frozen: bool) -> io::Result<OwnedFd> {
        let unified = self.unified().ok_or(io::ErrorKind::NotFound)?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        let path = unified.mount.join(clean(path.unwrap_or_default())?);
        // Never above the container's own.
        if !path.starts_with(&unified.directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !ignore_frozen && unified.stops_in(&path) {
            return Err(io::Error::other(frozen(&path)));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, &path, flags, Mode::empty())?)
    }

    /// Opens what [`Join::enter`] needs of cgroups that exist.
    pub(crate) fn existing(&self) -> Join {
        let mut join = Join::default();
        for hierarchy in &self.hierarchies {
            let (path, flags) = match hierarchy.unified() {
                true => (
                    hierarchy.directory.clone(),
                    OFlags::PATH | OFlags::DIRECTORY,
                ),
                false => (hierarchy.directory.join("tasks"), OFlags::WRONLY),
            };
            if let Ok(fd) = rustix::fs::openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty()) {
                if hierarchy.stops_in(&hierarchy.directory) {
                    join.frozen = Some(hierarchy.directory.clone());
                }
                match hierarchy.unified() {
                    true => join.unified = Some(fd),
                    false => join.v1.push(fd),
                }
            }
        }
        join
    }

    /// As [`Self::existing`], for cgroups below: per controller, or for all with an empty name.
    pub(crate) fn below(&self, paths: &[(String, String)]) -> Result<Join, String> {
        let mut join = Join::default();
        let only_unified = self.hierarchies.len() == 1 && self.unified().is_some();
        for (controller, _) in paths.iter().filter(|(c, _)| !c.is_empty()) {
            if only_unified || self.v1(controller).is_none() {
                return Err(format!("--cgroup: unknown controller {controller}"));
            }
        }
        for hierarchy in &self.hierarchies {
            let wanted = paths
                .iter()
                .find(|(controller, _)| hierarchy.has(controller))
                .or_else(|| paths.iter().find(|(controller, _)| controller.is_empty()));
            let mut directory = hierarchy.directory.clone();
            if let Some((_, path)) = wanted {
                let below =
                    clean(path).map_err(|_| format!("--cgroup: bad sub cgroup path: {path}"))?;
                directory.push(below);
            }
            let (path, flags) = match hierarchy.unified() {
                true => (directory.clone(), OFlags::PATH | OFlags::DIRECTORY),
                false => (directory.join("tasks"), OFlags::WRONLY),
            };
            if hierarchy.stops_in(&directory) {
                join.frozen = Some(directory);
            }
            match rustix::fs::openat(CWD, &path, flags | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) if hierarchy.unified() => join.unified = Some(fd),
                Ok(fd) => join.v1.push(fd),
                // Where the container has no cgroup of its own there is none below it.
                Err(_) if !hierarchy.directory.exists() => {}
                Err(e) => {
                    let e = crate::launch::errno_text(&e.into());
                    return Err(format!("--cgroup: open {}: {e}", path.display()));
                }
            }
        }
        Ok(join)
    }

    /// Where a controller lives for this container and the setting in that version's words.
    fn apply(&self, settings: &[Setting]) -> Result<(), String> {
        let mut later = Vec::new();
        for setting in settings {
            let absent = |controller: &str| {
                let what = setting.what;
                format!("cannot set {what}: controller {controller} is not available on this host")
            };
            let (directory, writes) = if let Some(v1) = self.v1(setting.controller) {
                (&v1.directory, &setting.v1)
            } else if let Some(unified) = self.unified() {
                let controller = match setting.controller {
                    "blkio" => "io",
                    controller => controller,
                };
                if !controller.is_empty() {
                    enable(unified, controller);
                    // By the host's list: what is there and only not delegated, the kernel refuses in its own words.
                    let all = fs::read_to_string(unified.mount.join("cgroup.controllers"));
                    let has = |all: String| all.split_whitespace().any(|c| c == controller);
                    if all.is_ok_and(|all| !has(all)) && !setting.v2.is_empty() {
                        return Err(absent(controller));
                    }
                }
                (&unified.directory, &setting.v2)
            } else {
                return Err(absent(setting.controller));
            };
            if writes.is_empty() && setting.v1.is_empty() {
                return Err(
                    "linux.resources.unified: invalid configuration: cannot use unified on cgroup v1"
                        .to_owned(),
                );
            }
            if writes.is_empty() {
                return Err(format!(
                    "cannot set {}: cgroup v2, which has the controller {} here, knows no such limit",
                    setting.what, setting.controller,
                ));
            }
            for (file, value) in writes {
                let path = directory.join(file);
                match write_file(&path, value) {
                    Ok(()) => {}
                    // Old and new values can contradict one another for a moment (memory above memory and swap, period below
                    // quota): another try when the rest is set.
                    Err(e) if e.raw_os_error() == Some(22) => {
                        later.push((setting.what, path, value));
                    }
                    Err(e) => return Err(write_failure(setting.what, &path, value, &e)),
                }
            }
        }
        for (what, path, value) in later {
            write_file(&path, value).map_err(|e| write_failure(what, &path, value, &e))?;
        }
        Ok(())
    }

    fn limit_devices(&self, resources: &Resources) -> Result<(), String> {
        let rules = plan::device_rules(resources);
        if let Some(v1) = self.v1("devices") {
            // Many rules, two files.
            let mut open: [Option<fs::File>; 2] = [None, None];
            for rule in &rules {
                let file = if rule.allow {
                    "devices.allow"
                } else {
                    "devices.deny"
                };
                let path = v1.directory.join(file);
                let text = plan::device_rule_text(rule);
                let slot = &mut open[usize::from(rule.allow)];
                let written = match slot {
                    Some(file) => file.write_all(text.as_bytes()),
                    None => fs::OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .and_then(|file| slot.insert(file).write_all(text.as_bytes())),
                };
                match written {
                    Err(e) if rustix::process::geteuid().is_root() => {
                        return Err(write_failure("device rule", &path, &text, &e));
                    }
                    _ => {}
                }
            }
        } else if self.hierarchies.len() == 1
            && let Some(unified) = self.unified()
            && rustix::process::geteuid().is_root()
        {
            let directory = fs::File::open(&unified.directory)
                .map_err(|e| format!("open {}: {e}", unified.directory.display()))?;
            gantry_linux::cgroup::attach_device_program(&directory, &device_program::build(&rules))
                .map_err(|e| format!("attaching the device program: {e}"))?;
        }
        Ok(())
    }

    /// Sets the limits that are given, leaves the others.
    pub fn update(&self, limits: &Resources) -> io::Result<()> {
        let mut limits = limits.clone();
        self.complete_cpu(&mut limits);
        self.check_memory(&limits).map_err(io::Error::other)?;
        let settings = plan::settings(&limits).map_err(io::Error::other)?;
        self.enter_late(&settings)?;
        let before = self.files_of(&settings);
        self.apply(&settings).map_err(|why| {
            // All or nothing. Twice, because one value may only fit when another is back.
            for (path, value) in before.iter().rev().chain(&before) {
                let _ = write_file(path, value);
            }
            io::Error::other(why)
        })
    }

    /// A v1 hierarchy in which nothing was limited has no directory of the container's yet: it gets one, with all its processes.
    fn enter_late(&self, settings: &[Setting]) -> io::Result<()> {
        /// Rounds against those that fork meanwhile.
        const ROUNDS: usize = 100;
        let hierarchies = settings.iter().filter_map(|s| self.v1(s.controller));
        for hierarchy in hierarchies {
            if hierarchy.directory.exists() {
                continue;
            }
            let pids = self.pids()?;
            make_directory(hierarchy)?;
            let procs = hierarchy.directory.join("cgroup.procs");
            let mut wanted = pids;
            for _ in 0..ROUNDS {
                let mut inside = Vec::new();
                collect_pids(&hierarchy.directory, &mut inside)?;
                wanted.retain(|pid| !inside.contains(pid));
                if wanted.is_empty() {
                    break;
                }
                for pid in &wanted {
                    match write_file(&procs, &pid.to_string()) {
                        // It has just ended.
                        Err(e) if e.raw_os_error() == Some(3) => {}
                        other => other?,
                    }
                }
                wanted = self.pids()?;
            }
        }
        Ok(())
    }

    /// What the files hold that settings would write, where that is one value.
    fn files_of(&self, settings: &[Setting]) -> Vec<(PathBuf, String)> {
        let mut files = Vec::new();
        for setting in settings {
            let (directory, writes) = match (self.v1(setting.controller), self.unified()) {
                (Some(v1), _) => (&v1.directory, &setting.v1),
                (None, Some(unified)) => (&unified.directory, &setting.v2),
                (None, None) => continue,
            };
            for (file, _) in writes {
                let path = directory.join(file);
                if let Ok(value) = fs::read_to_string(&path)
                    && value.trim_end().lines().count() == 1
                {
                    files.push((path, value.trim_end().to_owned()));
                }
            }
        }
        files
    }

    /// Quota and period are one value in v2, so the one that is not given stays what it is.
    fn complete_cpu(&self, limits: &mut Resources) {
        let (None, Some(unified), Some(cpu)) = (self.v1("cpu"), self.unified(), &mut limits.cpu)
        else {
            return;
        };
        let (quota, period) = (
            cpu.quota.filter(|q| *q != 0),
            cpu.period.filter(|p| *p != 0),
        );
        if quota.is_some() == period.is_some() {
            return;
        }
        let now = fs::read_to_string(unified.directory.join("cpu.max")).unwrap_or_default();
        if let Some((now_quota, now_period)) = now.trim().split_once(' ') {
            cpu.quota = quota.or_else(|| now_quota.parse().ok());
            cpu.period = period.or_else(|| now_period.parse().ok());
        }
    }

    /// runtime-spec: "checkBeforeUpdate". v1 refuses by itself; v2 would kill until the limit fits.
    fn check_memory(&self, limits: &Resources) -> Result<(), String> {
        let (Some(memory), None, Some(unified)) =
            (&limits.memory, self.v1("memory"), self.unified())
        else {
            return Ok(());
        };
        let (Some(true), Some(limit @ 1..)) = (memory.check_before_update, memory.limit) else {
            return Ok(());
        };
        let usage = fs::read_to_string(unified.directory.join("memory.current"))
            .ok()
            .and_then(|text| text.trim().parse::<i64>().ok());
        match usage {
            Some(usage) if usage > limit => Err(format!(
                "linux.resources.memory.limit: unable to set memory limit to {limit} (current usage: {usage})"
            )),
            _ => Ok(()),
        }
    }

    /// How often the kernel's OOM killer ended something in here.
    pub fn oom_kills(&self) -> u64 {
        let (path, key) = match self.v1("memory") {
            Some(v1) => (v1.directory.join("memory.oom_control"), "oom_kill"),
            None => match self.unified() {
                Some(unified) => (unified.directory.join("memory.events"), "oom_kill"),
                None => return 0,
            },
        };
        stats::read_keyed(&path, key).unwrap_or(0)
    }

    /// The most memory that was ever used in here, in bytes.
    pub fn memory_peak(&self) -> Option<u64> {
        let path = match self.v1("memory") {
            Some(v1) => v1.directory.join("memory.max_usage_in_bytes"),
            None => self.unified()?.directory.join("memory.peak"),
        };
        stats::read_number(&path)
    }

    /// Host pids of all processes in here.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut last = io::ErrorKind::NotFound.into();
        let mut order: Vec<_> = self.hierarchies.iter().collect();
        order.sort_by_key(|h| !(h.unified() || h.has("pids") || h.has("memory")));
        for hierarchy in order {
            let mut pids = Vec::new();
            match collect_pids(&hierarchy.directory, &mut pids) {
                Ok(()) => return Ok(pids),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Kills every process in here, also those that fork meanwhile, and waits until none is left.
    pub fn kill_all(&self) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let until = Instant::now() + PATIENCE;
        let kill_file = self.unified().map(|u| u.directory.join("cgroup.kill"));
        if let Some(file) = &kill_file {
            let _ = write_file(file, "1");
        }
        // What a v1 freezer holds dies only when it is let go.
        let frozen = self.v1("freezer").is_some() && self.is_frozen();
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = match self.pids() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if frozen {
                let _ = self.thaw();
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the directories and those made inside them; gone already is fine.
    pub fn remove(&self) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(2);
        let mut result = Ok(());
        for hierarchy in &self.hierarchies {
            if let Err(e) = remove_directory(&hierarchy.directory, until) {
                result = Err(e);
            }
        }
        result
    }

    pub fn freeze(&self) -> io::Result<()> {
        self.set_frozen(true)
    }

    pub fn thaw(&self) -> io::Result<()> {
        self.set_frozen(false)
    }

    /// Whether [`Cgroup::freeze`] is in effect.
    pub fn is_frozen(&self) -> bool {
        let (path, frozen) = match self.v1("freezer") {
            Some(v1) => (v1.directory.join("freezer.state"), "FROZEN"),
            None => match self.unified() {
                Some(unified) => (unified.directory.join("cgroup.freeze"), "1"),
                None => return false,
            },
        };
        fs::read_to_string(path).is_ok_and(|state| state.trim() == frozen)
    }

    /// Whether who enters, or goes on in here, stops: also for a cgroup above that is frozen.
    pub(crate) fn stops(&self) -> bool {
        self.hierarchies.iter().any(|h| h.stops_in(&h.directory))
    }

    /// Its directories, for a log.
    pub(crate) fn describe(&self) -> String {
        let there = self.hierarchies.iter().filter(|h| h.directory.exists());
        let paths: Vec<_> = there.map(|h| h.directory.display().to_string()).collect();
        paths.join(" ")
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        let done: Box<dyn Fn() -> io::Result<bool>> = if let Some(v1) = self.v1("freezer") {
            let path = v1.directory.join("freezer.state");
            let state = if frozen { "FROZEN" } else { "THAWED" };
            // A task that forks while it is being frozen can keep a v1 freezer FREEZING until it is asked again.
            Box::new(move || {
                write_file(&path, state)?;
                Ok(fs::read_to_string(&path)?.trim() == state)
            })
        } else {
            let unified = self.unified().ok_or(io::ErrorKind::NotFound)?;
            let value = if frozen { "1" } else { "0" };
            write_file(&unified.directory.join("cgroup.freeze"), value)?;
            let events = unified.directory.join("cgroup.events");
            Box::new(move || Ok(stats::read_keyed(&events, "frozen") == Some(u64::from(frozen))))
        };
        while !done()? {
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Open handles through which a process enters a container's cgroups.
#[derive(Debug, Default)]
pub(crate) struct Join {
    /// `tasks` of each v1 hierarchy, for writing.
    v1: Vec<OwnedFd>,
    /// The directory in the v2 hierarchy, for clone3.
    pub(crate) unified: Option<OwnedFd>,
    /// One of them is frozen: who enters stops.
    pub(crate) frozen: Option<PathBuf>,
}

/// Why nobody joins there.
pub(crate) fn frozen(directory: &Path) -> String {
    format!(
        "cgroup {} is frozen: cannot exec in a paused container (use --ignore-paused to override)",
        directory.display()
    )
}

impl Join {
    /// Moves the calling, single-threaded process; `born_inside`: clone3 has done the v2 part.
    pub(crate) fn enter(&self, born_inside: bool) -> io::Result<()> {
        for tasks in &self.v1 {
            rustix::io::write(tasks, b"0")?;
        }
        if let (false, Some(directory)) = (born_inside, &self.unified) {
            let procs = rustix::fs::openat(
                directory,
                "cgroup.procs",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::io::write(&procs, b"0")?;
        }
        Ok(())
    }
}

enum Made {
    New,
    Found,
}

fn make_directory(hierarchy: &Hierarchy) -> io::Result<Made> {
    if hierarchy.has("cpuset") {
        return make_cpuset(hierarchy);
    }
    match fs::create_dir(&hierarchy.directory) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(&hierarchy.directory).map(|()| Made::New)
        }
        other => other.map(|()| Made::New),
    }
}

/// A v1 cpuset takes no task before it has CPUs and memory nodes; every new level starts with its parent's.
fn make_cpuset(hierarchy: &Hierarchy) -> io::Result<Made> {
    let mut last = Made::Found;
    let mut current = hierarchy.mount.clone();
    let below = hierarchy
        .directory
        .strip_prefix(&hierarchy.mount)
        .map_err(io::Error::other)?;
    for component in below.components() {
        let parent = current.clone();
        current.push(component);
        last = match fs::create_dir(&current) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Made::Found,
            other => other.map(|()| Made::New)?,
        };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(current.join(file))?.trim().is_empty() {
                let inherited = fs::read_to_string(parent.join(file))?;
                write_file(&current.join(file), inherited.trim())?;
            }
        }
    }
    Ok(last)
}

/// Lets the container's cgroup use every controller that the machine has: each ancestor must pass it on.
fn enable_all(unified: &Hierarchy) {
    let available =
        fs::read_to_string(unified.mount.join("cgroup.controllers")).unwrap_or_default();
    let all: Vec<String> = available
        .split_whitespace()
        .map(|c| format!("+{c}"))
        .collect();
    for ancestor in ancestors(unified) {
        let file = ancestor.join("cgroup.subtree_control");
        if write_file(&file, &all.join(" ")).is_err() {
            for one in &all {
                let _ = write_file(&file, one);
            }
        }
    }
}

fn enable(unified: &Hierarchy, controller: &str) {
    let own = fs::read_to_string(unified.directory.join("cgroup.controllers"));
    if own.is_ok_and(|own| own.split_whitespace().any(|c| c == controller)) {
        return;
    }
    for ancestor in ancestors(unified) {
        let _ = write_file(
            &ancestor.join("cgroup.subtree_control"),
            &format!("+{controller}"),
        );
    }
}

/// From the mount down to the parent.
fn ancestors(hierarchy: &Hierarchy) -> Vec<PathBuf> {
    let mut found: Vec<_> = hierarchy
        .directory
        .ancestors()
        .skip(1)
        .take_while(|a| a.starts_with(&hierarchy.mount))
        .map(Path::to_owned)
        .collect();
    found.reverse();
    found
}

fn write_file(path: &Path, value: &str) -> io::Result<()> {
    // cgroup files take one write and never a new file: no create, no truncate.
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

fn write_failure(what: &str, path: &Path, value: &str, error: &io::Error) -> String {
    // v1 refuses a limit below what is used and cannot be taken back.
    if path.ends_with("memory.limit_in_bytes") && error.raw_os_error() == Some(16) {
        let number = |file: &str| stats::read_number(&path.with_file_name(file)).unwrap_or(0);
        return format!(
            "linux.resources.memory.limit: unable to set memory limit to {value} (current usage: {}, peak usage: {})",
            number("memory.usage_in_bytes"),
            number("memory.max_usage_in_bytes"),
        );
    }
    let error = crate::launch::errno_text(error);
    format!(
        "unable to apply cgroup configuration: {what}: failed to write {value:?}: write {}: {error}",
        path.display()
    )
}

fn collect_pids(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(directory.join("cgroup.procs"))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            match collect_pids(&entry.path(), pids) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn remove_directory(directory: &Path, until: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                // Children of the container's own making, or a process that has not quite gone.
                for entry in fs::read_dir(directory)?.flatten() {
                    if entry.file_type().is_ok_and(|t| t.is_dir()) {
                        remove_directory(&entry.path(), until)?;
                    }
                }
                if Instant::now() > until {
                    return Err(e);
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_their_hierarchy() {
        assert_eq!(clean("/a//./b").unwrap(), Path::new("a/b"));
        assert!(clean("/a/../../b").is_err());
        assert!(Cgroup::at("/").is_err());
    }
}
