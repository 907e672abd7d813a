//! `make up` after the build: starts the platform with its demo, or finds both as they were.

use crate::root;
use anyhow::{Context, bail};
use std::process::{Command, Stdio};

pub(crate) fn run() -> anyhow::Result<()> {
    let gantry = root().join("target/release/gantry");
    let user = Command::new("id")
        .arg("-u")
        .output()
        .context("starting id")?;
    let command = |words: &[&str]| {
        // The platform is a system service; everything else `make up` does needs no rights.
        let mut command = if user.stdout == b"0\n" {
            Command::new(&gantry)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg(&gantry);
            sudo
        };
        command.args(words);
        command
    };
    let runs = command(&["status"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("starting gantry")?
        .success();
    let status = if runs {
        command(&["demo"]).status()
    } else {
        command(&["up", "--detach", "--demo"]).status()
    };
    if !status.context("starting gantry")?.success() {
        bail!(
            "gantry did not come up; its own words are above, and `target/release/gantry doctor` may know more"
        );
    }
    Ok(())
}
