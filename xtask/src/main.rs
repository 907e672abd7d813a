//! The chores behind `make`: set-up, tidy checks, the test run.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    reason = "a chore says what it does on the terminal"
)]

mod clients;
mod deny;
mod kube;
mod protobuf;
mod setup;
mod test;
mod tidy;
mod up;

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["setup", "build"] => setup::install(setup::BUILD),
        ["setup", "up"] => setup::install(setup::UP),
        ["setup", "test"] => setup::install(setup::TEST).and_then(|()| clients::install(&root())),
        ["setup", "test-guest"] => setup::install(setup::TEST_GUEST),
        ["test"] => test::run(),
        ["check"] => test::check(),
        ["tidy"] => tidy::run(),
        ["dist"] => dist(),
        ["up"] => up::run(),
        ["deny"] => deny::run(),
        ["kube-schema", definitions] => kube::schema(definitions),
        ["kube-protobuf", sources] => protobuf::table(sources),
        _ => {
            eprintln!(
                "usage: xtask setup build|up|test|test-guest | test | check | tidy | dist | up | deny | kube-schema FILE | kube-protobuf DIR"
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// Runs a command in the workspace; fails when it does.
fn must(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .current_dir(root())
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        let words: Vec<_> = command.get_args().map(|w| w.to_string_lossy()).collect();
        bail!("{name} {} failed ({status})", words.join(" "));
    }
    Ok(())
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let sum = Command::new("sha256sum")
        .arg(file)
        .output()
        .context("starting sha256sum")?;
    let sum = String::from_utf8_lossy(&sum.stdout);
    let sum = sum.split_whitespace().next().unwrap_or_default();
    Ok(format!("sha256:{sum}"))
}

/// Puts the static program beside `target/release/gantry`, after comparing it with the copy that `gantry` carries.
fn dist() -> anyhow::Result<()> {
    let release = root().join("target/release");
    let version = Command::new(release.join("gantry"))
        .args(["version", "--output", "json"])
        .output()
        .context("asking target/release/gantry for its version")?;
    let version: serde_json::Value =
        serde_json::from_slice(&version.stdout).context("reading gantry's version")?;
    let carried = version["runtimeDigest"]
        .as_str()
        .context("gantry names no runtime digest")?;
    // One folder per target that it was ever built for.
    let folder = root().join("target/runtime");
    let mut built = None;
    for entry in std::fs::read_dir(&folder).context("reading target/runtime")? {
        let program = entry?.path().join("runtime/gantry-runtime");
        if program.exists() && carried == digest(&program)? {
            built = Some(program);
        }
    }
    let Some(built) = built else {
        bail!(
            "target/release/gantry carries {carried}, which is nowhere in {}; build again",
            folder.display()
        );
    };
    // A new file, then a rename: the old one may be running.
    let place = release.join("gantry-runtime");
    let fresh = release.join(".gantry-runtime.new");
    std::fs::copy(&built, &fresh).context("copying gantry-runtime")?;
    std::fs::rename(&fresh, &place).context("putting gantry-runtime in place")
}
