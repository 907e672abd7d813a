//! `gantry down`.

use crate::args::DownArgs;
use crate::instance::{Daemon, Dirs};
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to end on its own, and then after it was killed.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(dirs: &Dirs, down: &DownArgs) -> anyhow::Result<ExitCode> {
    let daemon = dirs.daemon()?;
    if let Some(daemon) = &daemon {
        stop(daemon)?;
        eprintln!("stopped gantry, pid {}", daemon.pid);
    }
    let _ = down;
    Ok(ExitCode::SUCCESS)
}

/// Ends the daemon: asked first, then killed. Its containers do not depend on it.
fn stop(daemon: &Daemon) -> anyhow::Result<()> {
    let Some(process) = daemon.pidfd() else {
        return Ok(());
    };
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.signal(signal)?;
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs().try_into().expect("ten fits"),
            tv_nsec: 0,
        };
        let ended =
            rustix::event::poll(&mut watched, Some(&limit)).context("waiting for gantry")?;
        if ended > 0 {
            return Ok(());
        }
    }
    bail!(
        "gantry, pid {}, does not end even when killed; it waits in the kernel",
        daemon.pid
    )
}
