//! What is kept about a container between two calls.

use super::{Failure, Globals};
use crate::cgroup::Cgroup;
use gantry_oci::runtime::{Spec, State, Status, VERSION};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: u32,
    pub(super) id: String,
    /// Known only when the container is made: the link `init` holds both numbers.
    #[serde(skip)]
    pub(super) pid: i32,
    /// Against reuse of pids.
    #[serde(skip)]
    pub(super) start_ticks: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: String,
    pub(super) owner: u32,
    pub(super) cgroup: Cgroup,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) directory: PathBuf,
    pub(super) stored: Stored,
}

/// Only names that stay inside the root, in runc's words.
pub(super) fn check_id(id: &str) -> Result<(), Failure> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    if id.is_empty() {
        return Err(Failure::new("container id cannot be empty"));
    }
    if id == "." || id == ".." || id.len() > 1024 || !id.bytes().all(letter) {
        return Err(Failure::new(format!("invalid container ID format: {id:?}")));
    }
    Ok(())
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    let error = crate::launch::errno_text(error);
    Failure::new(format!("{what} {}: {error}", path.display()))
}

/// Claims the name; fails when somebody has it.
pub(super) fn claim(globals: &Globals, id: &str) -> Result<PathBuf, Failure> {
    check_id(id)?;
    let directory = globals.root.join(id);
    let make = || fs::DirBuilder::new().mode(0o711).create(&directory);
    let mut made = make();
    if made
        .as_ref()
        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&globals.root)
            .map_err(|e| failed("mkdir", &globals.root, &e))?;
        // Somebody else may have made both by now.
        made = make();
    }
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::new("container with given ID already exists"));
        }
        other => other.map_err(|e| failed("mkdir", &directory, &e))?,
    }
    Ok(directory)
}

/// Held by who makes a container, and by who removes it. A lock of the process (fcntl), not of the descriptor, which the container's
/// init gets a copy of. Opening and closing the state file again in the same process would lose it.
#[derive(Debug)]
pub(super) struct Lock {
    _state: File,
}

/// Writes what is known before anything is made, so that whatever becomes of us, who deletes knows where to look.
pub(super) fn begin(directory: &Path, stored: &Stored, spec: &[u8]) -> Result<Lock, Failure> {
    write_new(&directory.join("config.json"), spec)?;
    let text = serde_json::to_vec(stored).map_err(io::Error::from)?;
    // A run directory is gone after a reboot, so nothing is synced; the rename makes it whole or absent.
    let temporary = directory.join("state.json.tmp");
    let state = write_new(&temporary, &text)?;
    rustix::fs::fcntl_lock(&state, FlockOperation::NonBlockingLockExclusive)
        .map_err(io::Error::from)?;
    fs::rename(&temporary, directory.join("state.json"))?;
    Ok(Lock { _state: state })
}

/// From here on the container exists: its first process is known.
pub(super) fn set_init(directory: &Path, stored: &Stored) -> Result<(), Failure> {
    let text = format!("{} {}", stored.pid, stored.start_ticks);
    std::os::unix::fs::symlink(text, directory.join("init")).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::new("container was deleted while it was created"),
        _ => e.into(),
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

pub(super) fn does_not_exist() -> Failure {
    Failure::new(super::DOES_NOT_EXIST)
}

/// Waits for who makes or removes it now; fails when it is gone by then.
pub(super) fn lock(directory: &Path) -> Result<Lock, Failure> {
    let until = Instant::now() + Duration::from_secs(10);
    let state = fs::OpenOptions::new()
        .write(true)
        .open(directory.join("state.json"))
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => does_not_exist(),
            _ => e.into(),
        })?;
    loop {
        match rustix::fs::fcntl_lock(&state, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::AGAIN | Errno::ACCESS) => {
                return Err(Failure::new("container is being created or deleted"));
            }
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
    match state.metadata()?.nlink() {
        0 => Err(does_not_exist()),
        _ => Ok(Lock { _state: state }),
    }
}

pub(super) fn load(globals: &Globals, id: &str) -> Result<Container, Failure> {
    let container = load_unfinished(globals, id)?;
    match container.stored.pid {
        0 => Err(does_not_exist()),
        _ => Ok(container),
    }
}

/// Also one that is being made, or whose maker was killed: its pid is 0.
pub(super) fn load_unfinished(globals: &Globals, id: &str) -> Result<Container, Failure> {
    check_id(id)?;
    let directory = globals.root.join(id);
    let absent = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => does_not_exist(),
        _ => e.into(),
    };
    let text = fs::read(directory.join("state.json")).map_err(absent)?;
    let stored: Stored = serde_json::from_slice(&text)
        .map_err(|e| Failure::new(format!("unable to read the state of {id}: {e}")))?;
    let mut container = Container { directory, stored };
    container.find_init();
    Ok(container)
}
impl Container {
    /// Pid and start of the first process, once there is one.
    fn init(&self) -> Option<(i32, u64)> {
        let link = fs::read_link(self.directory.join("init")).ok()?;
        let (pid, ticks) = link.to_str()?.split_once(' ')?;
        Some((pid.parse().ok()?, ticks.parse().ok()?))
    }

    /// Looks for the first process, again; whether it is known.
    pub(super) fn find_init(&mut self) -> bool {
        let Some((pid, start_ticks)) = self.init() else {
            return false;
        };
        self.stored.pid = pid;
        self.stored.start_ticks = start_ticks;
        true
    }

    pub(super) fn status(&self) -> Status {
        if !self.is_alive() {
            return Status::Stopped;
        }
        // First: who joins a created one that is frozen would wait.
        if self.stored.cgroup.is_frozen() {
            return Status::Paused;
        }
        if self.fifo().exists() {
            return Status::Created;
        }
        Status::Running
    }

    /// Its first process is the one we made and has not ended (a zombie that nobody has reaped has).
    fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.stored.pid)) else {
            return false;
        };
        let Some((_, fields)) = stat.rsplit_once(')') else {
            return false;
        };
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next().unwrap_or("X");
        let ticks = fields.nth(18).and_then(|t| t.parse::<u64>().ok());
        !matches!(state, "Z" | "X") && ticks == Some(self.stored.start_ticks)
    }

    pub(super) fn fifo(&self) -> PathBuf {
        self.directory.join("exec.fifo")
    }

    pub(super) fn spec(&self) -> Result<Spec, Failure> {
        let text = fs::read(self.directory.join("config.json"))?;
        serde_json::from_slice(&text)
            .map_err(|e| Failure::new(format!("unable to read the container's config: {e}")))
    }

    /// A handle on its first process, which cannot come to mean another.
    pub(super) fn pidfd(&self) -> Result<std::os::fd::OwnedFd, Failure> {
        let gone = || Failure::new("container not running");
        let pid = rustix::process::Pid::from_raw(self.stored.pid).ok_or_else(gone)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(|_| gone())?;
        // Looked at again: the pid could have changed hands before the handle was taken.
        match self.is_alive() {
            true => Ok(fd),
            false => Err(gone()),
        }
    }

    pub(super) fn document(&self, spec: Option<&Spec>) -> State {
        let status = self.status();
        State {
            oci_version: spec
                .map(|s| s.oci_version.clone())
                .filter(|v| !v.is_empty())
                .unwrap_or_else(|| VERSION.to_owned()),
            id: self.stored.id.clone(),
            status,
            pid: Some(match status {
                Status::Stopped => 0,
                _ => self.stored.pid,
            }),
            bundle: self.stored.bundle.to_string_lossy().into_owned(),
            annotations: spec.map(|s| s.annotations.clone()).unwrap_or_default(),
        }
    }

    /// Ends what its maker, who is gone, has left behind, and takes it away.
    pub(super) fn remove_unfinished(&self) -> Result<(), Failure> {
        // An init that has no cgroup to be found in waits here.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(fifo) = rustix::fs::openat(CWD, self.fifo(), flags, Mode::empty()) {
            let _ = rustix::io::write(&fifo, b"X");
        }
        self.stored.cgroup.kill_all()?;
        self.remove()
    }

    /// Takes away everything that is left of a container whose processes are gone.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        self.stored.cgroup.remove()?;
        remove_directory(&self.directory)
    }
}

pub(super) fn remove_directory(directory: &Path) -> Result<(), Failure> {
    /// Against others that put one of its files there between our two steps.
    const TRIES: usize = 100;
    for tries in 1.. {
        // The files that we put there, and no tree that somebody else did.
        for name in [
            "exec.fifo",
            "init",
            "config.json",
            "state.json.tmp",
            "state.json",
        ] {
            match fs::remove_file(directory.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        match fs::remove_dir(directory) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => break,
        }
    }
    Ok(())
}

/// UTC with this many digits of a second's fraction.
pub(super) fn rfc3339(time: SystemTime, digits: usize) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    // Howard Hinnant's civil_from_days, for days since 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match digits {
        0 => String::new(),
        digits => format!(
            ".{}",
            &format!("{:09}", since.subsec_nanos())[..digits.min(9)]
        ),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_and_names() {
        let at = |s, n| UNIX_EPOCH + Duration::new(s, n);
        assert_eq!(rfc3339(at(0, 0), 0), "1970-01-01T00:00:00Z");
        assert_eq!(
            rfc3339(at(951_782_400, 5_000_000), 9),
            "2000-02-29T00:00:00.005000000Z"
        );
        assert_eq!(rfc3339(at(1_767_225_599, 0), 0), "2025-12-31T23:59:59Z");
        for bad in ["", ".", "..", "a/b", "a b", "é"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_id("a_B-1.2+c").is_ok());
    }
}
