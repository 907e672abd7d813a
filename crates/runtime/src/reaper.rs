//! `gantry-runtime init -- COMMAND`: the first process of a container with `--init`. Hands signals on to the command, reaps whatever
//! is orphaned in the container, and ends as the command ends.
//!
//! It is mounted as `/sbin/docker-init`, so it lives in the container with the user's rights and knows nothing of us.

use gantry_linux::process::{read_signal, signal_descriptor, spawn_with_fresh_signals};
use gantry_linux::program::send_signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, wait};
use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const SIGCHLD: i32 = 17;
/// Raised by the process's own doing, or not to be caught: ILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, STOP, TTIN, TTOU, SYS; the last two are
/// the C library's own.
const NOT_HANDED_ON: [i32; 13] = [4, 5, 6, 7, 8, 9, 11, 19, 21, 22, 31, 32, 33];

/// The arguments after the role.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = words.skip_while(|word| word == "--");
    let Some(program) = words.next() else {
        eprintln!("docker-init: no command was given");
        return ExitCode::from(2);
    };
    // Blocked before the command exists, so that no signal and no death of a child is missed.
    let handed_on: Vec<i32> = (1..=64)
        .filter(|signal| !NOT_HANDED_ON.contains(signal))
        .collect();
    let signals = match signal_descriptor(&handed_on) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("docker-init: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A group of its own: what the terminal sends goes to the command once, not once more through us.
    let spawned = spawn_with_fresh_signals(Command::new(&program).args(words).process_group(0));
    let child = match spawned {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            eprintln!("docker-init: exec {}: {error}", program.display());
            return ExitCode::from(match error.kind() {
                ErrorKind::NotFound => 127,
                _ => 126,
            });
        }
    };
    if io::stdin().is_terminal() && rustix::termios::tcsetpgrp(io::stdin(), child).is_ok() {
        // It may have been stopped for reading before the terminal was its own.
        let _ = kill_process_group(child, Signal::CONT);
    }
    let Ok(process) = pidfd_open(child, PidfdFlags::empty()) else {
        return ExitCode::FAILURE;
    };
    loop {
        let mut waited = [PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut waited, None);
        while let Ok(Some(signal)) = read_signal(&signals) {
            if signal == SIGCHLD {
                if let Some(code) = reap(child) {
                    return ExitCode::from(code);
                }
            } else {
                let _ = send_signal(process.as_fd(), signal);
            }
        }
    }
}

/// Takes every dead child; the command's exit code if it is among them.
fn reap(child: Pid) -> Option<u8> {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid != child {
            continue;
        }
        if let Some(code) = status.exit_status() {
            return Some(code as u8);
        }
        if let Some(signal) = status.terminating_signal() {
            return Some((128 + signal) as u8);
        }
    }
    None
}
