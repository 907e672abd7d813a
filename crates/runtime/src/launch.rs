//! Makes a container: from a spec to a first process that waits just before its exec, then lets it go.

use crate::cgroup::Cgroup;
use crate::proto::{Link, Rootfs};
use crate::seccomp::Filter;
use gantry_oci::runtime::{Process, Spec};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What to make.
#[derive(Debug)]
pub struct Launch<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub rootfs: &'a Rootfs,
    /// The bundle's folder, which relative paths of the spec start from.
    pub bundle: Option<&'a Path>,
    pub stdio: Stdio,
    /// Compiled seccomp profile; `None` compiles `spec.linux.seccomp`.
    pub filter: Option<&'a Filter>,
    /// Interfaces to make in a new network namespace.
    pub links: &'a [Link],
    pub options: Options,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The container is killed when the calling process ends.
    pub die_with_parent: bool,
    /// `chroot` instead of `pivot_root`, for a root on the initial ram disk.
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Descriptors 3 … 3+n-1 of the caller that the program keeps.
    pub preserve_fds: u32,
}

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A new terminal; its master comes back as `console`. Columns and rows.
    Terminal { size: Option<(u16, u16)> },
    /// The caller's own.
    Inherit,
}

/// A container whose init waits for [`Launched::start`]. Dropping it before that ends the init.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Master of the terminal, from the container's own devpts.
    pub console: Option<OwnedFd>,
    pub cgroup: Cgroup,
}

/// Does everything up to just before the exec; the init is a child of the caller, who reaps it (also after an error nothing is left to reap).
///
/// The caller must have one thread. Missing and unexecutable programs are found here.
pub fn launch(_launch: Launch<'_>) -> Result<Launched, LaunchError> {
    todo!()
}

impl Launched {
    /// Releases the init; returns once the program was exec'd.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        todo!()
    }
}

/// A running container that another process joins.
#[derive(Debug)]
pub struct ExecTarget<'a> {
    /// Its first process, as the host sees it.
    pub pid: i32,
    pub cgroup: &'a Cgroup,
}

#[derive(Debug)]
pub struct ExecLaunched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub console: Option<OwnedFd>,
}

/// Runs `process` in a container. It is a child of the caller, who reaps it. Returns once the program was exec'd.
pub fn exec(
    _target: &ExecTarget<'_>,
    _process: &Process,
    _stdio: Stdio,
    _filter: Option<&Filter>,
    _options: Options,
) -> Result<ExecLaunched, LaunchError> {
    todo!()
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchError {
    /// 127 no such file, 126 not executable, 128 anything else.
    pub code: i32,
    /// Docker's whole sentence, `OCI runtime create failed: … : unknown`.
    pub message: String,
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for LaunchError {}
