//! One instance: a data directory, a run directory, and the name that everything global carries.
//!
//! ```text
//! D/instance      the name, when D is not the default directory
//! D/lock          held by the running daemon (flock); says which one in a sentence to the second
//! R/daemon.lock   the same for the run directory
//! R/daemon.json   what the running or last daemon is and listens on ([`Daemon`]); the lock files hold the same
//! ```
//! A lock, not a pid file, says whether a daemon runs: the kernel drops it with the process, also after `kill -9`.

use anyhow::{Context, bail};
use gantry_base::file::{Durability, atomic_write};
use gantry_linux::program::start_ticks;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What `kubectl` needs to reach this instance, below `R`; only root may read it.
pub const KUBECONFIG: &str = "kubeconfig";
const DEFAULT_DATA_DIR: &str = "/var/lib/gantry";
const DEFAULT_RUN_DIR: &str = "/run/gantry";
/// A pid file or name file longer than this is not ours.
const SMALL_FILE_LIMIT: u64 = 64 << 10;
/// How often, and how far apart, a lock is looked at before what it shows is believed.
const LOOKS: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The two directories that name an instance. Absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    pub data: PathBuf,
    pub run: PathBuf,
}

impl Dirs {
    /// What was typed, or the defaults of this user.
    pub fn resolve(data: Option<PathBuf>, run: Option<PathBuf>) -> anyhow::Result<Self> {
        let (default_data, default_run) = defaults();
        Ok(Self {
            data: absolute(data.unwrap_or(default_data))?,
            run: absolute(run.unwrap_or(default_run))?,
        })
    }

    /// Makes both directories. `R` may be crossed by everyone, because the group `docker` uses the socket in it.
    pub fn create(&self) -> anyhow::Result<()> {
        for (dir, mode) in [(&self.data, 0o711), (&self.run, 0o755)] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(dir)
                .with_context(|| format!("creating {}", dir.display()))?;
        }
        Ok(())
    }

    /// `gantry` for the default directory; otherwise what `D/instance` says. `None` when that was never written.
    pub fn instance(&self) -> anyhow::Result<Option<String>> {
        if self.data == Path::new(DEFAULT_DATA_DIR) {
            return Ok(Some("gantry".to_owned()));
        }
        let path = self.data.join("instance");
        let Some(text) = read_small(&path)? else {
            return Ok(None);
        };
        let name = text.trim();
        let hex = name.strip_prefix("gantry-").unwrap_or_default();
        let plain = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if hex.len() != 8 || !hex.chars().all(plain) {
            bail!(
                "{} does not hold an instance name such as gantry-1a2b3c4d; restore the file, or choose another --data-dir",
                path.display()
            );
        }
        Ok(Some(name.to_owned()))
    }

    /// The same, choosing and keeping a name when there is none yet.
    pub fn instance_or_new(&self) -> anyhow::Result<String> {
        if let Some(name) = self.instance()? {
            return Ok(name);
        }
        let mut bytes = [0_u8; 4];
        aws_lc_rs::rand::fill(&mut bytes)
            .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
        let name = format!("gantry-{:08x}", u32::from_ne_bytes(bytes));
        let path = self.data.join("instance");
        atomic_write(
            &path,
            format!("{name}\n").as_bytes(),
            0o644,
            Durability::Disk,
        )
        .with_context(|| format!("writing {}", path.display()))?;
        Ok(name)
    }

    /// The daemon that runs on this instance now. The data directory decides; a run directory that serves another one is refused.
    pub fn daemon(&self) -> anyhow::Result<Option<Daemon>> {
        if let Some(daemon) = holder(&self.data.join("lock"))? {
            return Ok(Some(daemon));
        }
        self.check_run_dir()?;
        holder(&self.run.join("daemon.lock"))
    }

    /// Refuses when `R` holds the run-time state of another data directory: two instances must not be taken for one.
    pub fn check_run_dir(&self) -> anyhow::Result<()> {
        let Some(other) = described(&self.run.join("daemon.json"))? else {
            return Ok(());
        };
        if other.data_dir != self.data && is_used(&self.run) {
            bail!(
                "{} belongs to the gantry on --data-dir {}; name the --run-dir of {}",
                self.run.display(),
                other.data_dir.display(),
                self.data.display()
            );
        }
        Ok(())
    }

    /// Refuses when containers of this data directory run with another run directory: they would be taken for dead.
    fn check_earlier_run_dir(&self) -> anyhow::Result<()> {
        let Some(earlier) = described(&self.data.join("lock"))? else {
            return Ok(());
        };
        if earlier.run_dir != self.run && is_used(&earlier.run_dir) {
            bail!(
                "containers of {} still run with --run-dir {}; start with that one, or end them with `gantry down --purge`",
                self.data.display(),
                earlier.run_dir.display()
            );
        }
        Ok(())
    }
}

/// Whether a daemon or its containers use this run directory.
fn is_used(run_dir: &Path) -> bool {
    let containers = std::fs::read_dir(run_dir.join("c")).is_ok_and(|mut c| c.next().is_some());
    containers || !matches!(holder(&run_dir.join("daemon.lock")), Ok(None))
}

/// What a daemon wrote about itself; `None` when the file is absent or not (yet) whole.
fn described(path: &Path) -> anyhow::Result<Option<Daemon>> {
    Ok(read_small(path)?.and_then(|text| serde_json::from_str(&text).ok()))
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    let path =
        std::path::absolute(&path).with_context(|| format!("resolving {}", path.display()))?;
    // Symbolic links are followed once, so that one directory has one name however it was typed.
    Ok(path.canonicalize().unwrap_or(path))
}

fn defaults() -> (PathBuf, PathBuf) {
    if rustix::process::geteuid().is_root() {
        return (DEFAULT_DATA_DIR.into(), DEFAULT_RUN_DIR.into());
    }
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = folder("XDG_DATA_HOME").or_else(|| folder("HOME").map(|h| h.join(".local/share")));
    let run = folder("XDG_RUNTIME_DIR");
    (
        data.map_or_else(|| DEFAULT_DATA_DIR.into(), |d| d.join("gantry")),
        run.map_or_else(|| DEFAULT_RUN_DIR.into(), |d| d.join("gantry")),
    )
}

/// A running daemon, as it describes itself in `R/daemon.json` and in its lock files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, against reuse of pids.
    pub start_ticks: u64,
    pub version: String,
    pub instance: String,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Path of the Docker API's socket; `None` when that listener is off.
    pub docker: Option<PathBuf>,
    /// Addresses on TCP, as `tcp://IP:PORT`.
    #[serde(default)]
    pub docker_tcp: Vec<String>,
    /// Where the registry listens, as `IP:PORT`; `None` when it is off.
    #[serde(default)]
    pub registry: Option<String>,
    /// The Kubernetes API, as `https://IP:PORT`; `None` when it is off.
    #[serde(default)]
    pub kube: Option<String>,
    pub started_at: jiff::Timestamp,
}

impl Daemon {
    /// A descriptor on the process, if it is still the one that wrote this.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after the descriptor is held: from here on the number cannot pass to another process unnoticed.
        (start_ticks(self.pid).ok()? == self.start_ticks).then_some(fd)
    }

    /// Sends a signal; a process that is gone already is fine.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(fd) = self.pidfd() else {
            return Ok(());
        };
        match rustix::process::pidfd_send_signal(&fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => {
                Err(e).with_context(|| format!("sending a signal to gantry, pid {}", self.pid))
            }
        }
    }
}

/// Both locks of a running daemon. They end with the process.
#[derive(Debug)]
pub struct Locks {
    files: Vec<File>,
}

impl Locks {
    /// Takes both, or says in one sentence who has them.
    pub fn take(dirs: &Dirs) -> anyhow::Result<Self> {
        let data = lock(&dirs.data.join("lock"), &dirs.data, "--data-dir")?;
        dirs.check_earlier_run_dir()?;
        dirs.check_run_dir()?;
        let run = lock(&dirs.run.join("daemon.lock"), &dirs.run, "--run-dir")?;
        Ok(Self {
            files: vec![data, run],
        })
    }

    /// The same where the directories are there, making nothing new.
    pub fn take_existing(dirs: &Dirs) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for (path, dir, flag) in [
            (dirs.data.join("lock"), &dirs.data, "--data-dir"),
            (dirs.run.join("daemon.lock"), &dirs.run, "--run-dir"),
        ] {
            if path.exists() {
                files.push(lock(&path, dir, flag)?);
            }
        }
        Ok(Self { files })
    }

    /// Writes who holds them, for `down`, `env` and the second daemon.
    pub fn describe(&mut self, daemon: &Daemon) -> anyhow::Result<()> {
        use std::io::{Seek, Write};
        let text = serde_json::to_vec(daemon).expect("our own description serialises");
        for file in &mut self.files {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(&text))
                .context("writing the lock file")?;
        }
        let path = daemon.run_dir.join("daemon.json");
        atomic_write(&path, &text, 0o644, Durability::Process)
            .with_context(|| format!("writing {}", path.display()))
    }
}

fn lock(path: &Path, dir: &Path, flag: &str) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    // Whoever only looks ([`holder`]) has the lock for microseconds; that must not read as a second daemon.
    let mut taken = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    for _ in 0..LOOKS {
        if taken != Err(rustix::io::Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(PAUSE);
        taken = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match taken {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let who = described(path)?.map_or_else(String::new, |d| format!(" (pid {})", d.pid));
            bail!(
                "another gantry{who} already runs on {}; stop it with `gantry down` or choose another {flag}",
                dir.display()
            )
        }
        Err(e) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// Who holds the lock file, if somebody does.
fn holder(path: &Path) -> anyhow::Result<Option<Daemon>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            // Between taking the lock and describing itself a daemon is nameless, or has its dead predecessor's name.
            for _ in 0..LOOKS {
                if let Some(daemon) = described(path)?
                    && daemon.pidfd().is_some()
                {
                    return Ok(Some(daemon));
                }
                std::thread::sleep(PAUSE);
            }
            bail!(
                "{} is held by a gantry that is just starting; try again",
                path.display()
            )
        }
        Err(e) => Err(e).with_context(|| format!("looking at the lock {}", path.display())),
    }
}

/// A small text file; `None` when it is absent.
fn read_small(path: &Path) -> anyhow::Result<Option<String>> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_LIMIT)
        .read_to_string(&mut text)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(root: &Path) -> Dirs {
        let dirs = Dirs {
            data: root.join("data"),
            run: root.join("run"),
        };
        dirs.create().unwrap();
        dirs
    }

    #[test]
    fn a_directory_keeps_its_name() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path());
        assert_eq!(dirs.instance().unwrap(), None);
        let name = dirs.instance_or_new().unwrap();
        assert_eq!(name.len(), "gantry-1a2b3c4d".len());
        assert_eq!(dirs.instance_or_new().unwrap(), name);
        assert_eq!(dirs.instance().unwrap(), Some(name));
    }

    #[test]
    fn a_foreign_name_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path());
        std::fs::write(dirs.data.join("instance"), "gantry-../../etc").unwrap();
        assert!(
            dirs.instance()
                .unwrap_err()
                .to_string()
                .contains("instance name")
        );
    }

    #[test]
    fn the_default_directory_is_gantry() {
        let dirs = Dirs {
            data: DEFAULT_DATA_DIR.into(),
            run: DEFAULT_RUN_DIR.into(),
        };
        assert_eq!(dirs.instance().unwrap().as_deref(), Some("gantry"));
    }

    #[test]
    fn the_second_lock_names_the_first() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path());
        let mut locks = Locks::take(&dirs).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Daemon {
            pid,
            start_ticks: start_ticks(pid).unwrap(),
            version: "0".into(),
            instance: "gantry-00000000".into(),
            data_dir: dirs.data.clone(),
            run_dir: dirs.run.clone(),
            docker: None,
            docker_tcp: Vec::new(),
            registry: None,
            kube: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
        };
        locks.describe(&me).unwrap();
        let refusal = Locks::take(&dirs).unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("pid {pid}")) && refusal.contains("--data-dir"),
            "{refusal}"
        );
        assert_eq!(dirs.daemon().unwrap().unwrap().pid, pid);
        drop(locks);
        assert!(dirs.daemon().unwrap().is_none());
    }

    #[test]
    fn instances_are_not_taken_for_each_other() {
        let root = tempfile::tempdir().unwrap();
        let first = dirs(root.path());
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut locks = Locks::take(&first).unwrap();
        locks
            .describe(&Daemon {
                pid,
                start_ticks: start_ticks(pid).unwrap(),
                version: "0".into(),
                instance: "gantry-00000000".into(),
                data_dir: first.data.clone(),
                run_dir: first.run.clone(),
                docker: None,
                docker_tcp: Vec::new(),
                registry: None,
                kube: None,
                started_at: jiff::Timestamp::UNIX_EPOCH,
            })
            .unwrap();
        // Another data directory with this run directory: refused while a daemon or containers use it.
        let second = Dirs {
            data: root.path().join("other"),
            run: first.run.clone(),
        };
        second.create().unwrap();
        assert!(
            second
                .daemon()
                .unwrap_err()
                .to_string()
                .contains("belongs to")
        );
        drop(locks);
        assert!(second.daemon().unwrap().is_none());
        // This data directory with another run directory: refused while containers are left in the first.
        std::fs::create_dir_all(first.run.join("c/1")).unwrap();
        assert!(
            Locks::take(&second)
                .unwrap_err()
                .to_string()
                .contains("belongs to")
        );
        let moved = Dirs {
            data: first.data.clone(),
            run: root.path().join("run2"),
        };
        moved.create().unwrap();
        assert!(
            Locks::take(&moved)
                .unwrap_err()
                .to_string()
                .contains("still run with")
        );
        assert!(Locks::take(&first).is_ok());
    }
}
