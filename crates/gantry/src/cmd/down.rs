//! `gantry down`: ends the daemon of an instance, however it was started; `--purge` takes everything else away too.

use crate::args::DownArgs;
use crate::instance::{Daemon, Dirs, Locks};
use crate::purge;
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to end on its own, and then after it was killed.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(dirs: &Dirs, down: &DownArgs) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("gantry down needs root in this build; use sudo");
    }
    let daemon = dirs.daemon()?;
    if let Some(daemon) = &daemon {
        stop(daemon)?;
        eprintln!("stopped gantry, pid {}", daemon.pid);
    }
    // A daemon that was started with another pair of directories knows better where its things are.
    let dirs = daemon.map_or_else(
        || dirs.clone(),
        |daemon| Dirs {
            data: daemon.data_dir,
            run: daemon.run_dir,
        },
    );
    dirs.check_run_dir()?;
    let instance = dirs.instance()?;
    let _locks = Locks::take_existing(&dirs)?;
    if down.purge {
        let purged = purge::purge(&dirs, instance.as_deref())?;
        eprintln!(
            "purged {}: {} processes, {} mounts, and every rule, bridge, cgroup and file",
            instance
                .as_deref()
                .unwrap_or("nothing; no instance was there"),
            purged.processes,
            purged.mounts
        );
    } else if let Some(instance) = instance {
        let settings = gantry_network::Settings {
            instance,
            subnet_pool: ipnet::Ipv4Net::default(),
            firewall: gantry_network::Firewall::Friendly,
        };
        gantry_network::Networks::remove_all(&settings, false)
            .map_err(|e| anyhow::anyhow!(e.chain()))?;
    }
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
