//! A container must never get to write the program that the host runs (CVE-2019-5736): while our process is in it, its root user
//! could open `/proc/<pid>/exe`, or make us exec it, and write to the file.
//!
//! So before anything touches a container we exec ourselves again from a view of our file that nobody can write through: a detached
//! read-only mount, which belongs to no mount namespace and so cannot be remounted either. That copies nothing. Where
//! mounts are not allowed, it is a sealed copy in memory.

use super::{Failure, Globals};
use gantry_linux::mount::{self, Attributes, attribute};
use gantry_linux::process::{self, Strings};
use gantry_linux::program;
use rustix::fs::{CWD, Mode, OFlags, SealFlags, StatVfsMountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Returns when this process already runs from such a view.
pub(super) fn ensure(globals: &Globals) -> Result<(), Failure> {
    let open = |flags| {
        rustix::fs::openat(
            CWD,
            "/proc/self/exe",
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io::Error::from)
    };
    let program = open(OFlags::RDONLY)?;
    if is_protected(&program) {
        return Ok(());
    }
    globals.debug(|| "running again from a view of this program that nobody can write".to_owned());
    let error = match read_only_view(&program) {
        Ok(view) => run_again(&view),
        Err(e) => e,
    };
    let mut copy = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(program), &mut copy)?;
    let sealed = program::sealed_copy("gantry-runtime", &copy).map_err(|_| error)?;
    Err(run_again(&sealed).into())
}

fn is_protected(program: &OwnedFd) -> bool {
    let read_only =
        rustix::fs::fstatvfs(program).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY));
    read_only || rustix::fs::fcntl_get_seals(program).is_ok_and(|s| s.contains(SealFlags::WRITE))
}

fn read_only_view(program: &OwnedFd) -> io::Result<OwnedFd> {
    let view = mount::clone_tree(program, false)?;
    let change = Attributes {
        set: attribute::RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(&view, false, &change)?;
    Ok(view)
}

/// Comes back only with an error.
fn run_again(view: &OwnedFd) -> io::Error {
    let text = |strings: Vec<String>| Strings::new(strings.iter().map(String::as_str));
    let arguments = text(std::env::args().collect());
    let environment = text(
        std::env::vars_os()
            .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)))
            .collect(),
    );
    let path = CString::new(format!("/proc/self/fd/{}", view.as_raw_fd()));
    match (arguments, environment, path) {
        (Some(arguments), Some(environment), Ok(path)) => {
            process::exec(&path, &arguments, &environment)
        }
        _ => io::ErrorKind::InvalidInput.into(),
    }
}
