//! The command line: exit codes and sentences that scripts rely on. No container is made here.

use crate::{GANTRY, stopped};
use gantry_testkit::{Done, run};
use std::process::Command;

fn gantry(words: &[&str]) -> Done {
    run(
        Command::new(GANTRY)
            .args(words)
            .env_remove("GANTRY_DATA_DIR")
            .env_remove("GANTRY_RUN_DIR"),
        None,
    )
}

#[test]
fn wrong_usage_is_2() {
    for words in [
        &["frobnicate"][..],
        &[],
        &["up", "--no-such-flag"],
        &["run"],
        &["down", "--purge=maybe"],
        &["ps", "--output", "xml"],
    ] {
        let done = gantry(words);
        assert_eq!(done.code, 2, "{done}");
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{done}");
    }
}

#[test]
fn help_and_version_are_data() {
    let help = gantry(&["--help"]).ok();
    for verb in ["up", "down", "env", "status", "doctor", "run", "ps", "logs"] {
        assert!(
            help.contains(&format!("  {verb} ")),
            "{verb} is not in:\n{help}"
        );
    }
    let version = gantry(&["version", "--output", "json"]).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(gantry(&["--version"]).ok().starts_with("gantry "));
}

#[test]
fn what_this_build_lacks_is_refused_in_one_sentence() {
    let world = stopped();
    for flag in ["--router", "--router-tls", "--console"] {
        let done = world.gantry(&["up", flag, "127.0.0.1:0"]);
        let sentence = done.fails(1);
        assert_eq!(sentence.lines().count(), 1, "{done}");
        assert!(
            sentence.contains(flag) && sentence.contains("not served by this build"),
            "{done}"
        );
    }
    assert!(
        !world.data_dir().exists(),
        "a refused start made the data directory"
    );
}

#[test]
fn without_a_daemon() {
    let world = stopped();
    for words in [&["env"][..], &["status"], &["ps"], &["run", "busybox"]] {
        let done = world.gantry(words);
        let sentence = done.fails(1);
        assert!(sentence.contains("start it with `gantry up`"), "{done}");
        assert!(done.stdout.is_empty(), "{done}");
    }
    let done = world.gantry(&["status", "--output", "json"]);
    assert!(
        done.code == 1 && done.stdout.contains("\"running\": false"),
        "{done}"
    );
    // Nothing was there: that is fine, and stays so.
    world.gantry(&["down"]).ok();
    world.gantry(&["down", "--purge"]).ok();
    assert!(!world.data_dir().exists() && !world.run_dir().exists());
}

#[test]
fn doctor_gives_a_fix_for_each_lack() {
    let done = gantry(&["doctor", "--output", "json"]);
    assert_eq!(done.code, 0, "this machine cannot run containers: {done}");
    let lines: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let lines = lines.as_array().unwrap();
    assert!(lines.len() >= 8, "{done}");
    for line in lines {
        let fine = line["verdict"] == "ok";
        assert_eq!(fine, line["fix"] == "", "{line}");
    }
    let names: Vec<_> = lines
        .iter()
        .map(|line| line["name"].as_str().unwrap())
        .collect();
    for name in ["kernel", "overlay", "capabilities", "cgroups", "nftables"] {
        assert!(names.contains(&name), "no line for {name} in {names:?}");
    }
}

#[test]
fn the_runtime_is_inside() {
    // Both ways to it are the same program.
    let inside = gantry(&["runtime", "--version"]);
    assert!(
        inside.ok().starts_with("gantry-runtime version "),
        "{inside}"
    );
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("gantry-runtime");
    std::os::unix::fs::symlink(GANTRY, &link).unwrap();
    let named = run(Command::new(link).arg("--version"), None);
    assert_eq!(named.ok(), inside.ok());
}

#[test]
fn the_release_carries_the_runtime_that_lies_beside_it() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (release, runtime) = (
        root.join("target/release/gantry"),
        root.join("target/release/gantry-runtime"),
    );
    if !release.exists() || !runtime.exists() {
        eprintln!("SKIPPED: `make build` has not run here; it makes the same comparison itself");
        return;
    }
    let version = run(
        Command::new(&release).args(["version", "--output", "json"]),
        None,
    )
    .json();
    let sum = run(Command::new("sha256sum").arg(&runtime), None).ok();
    assert_eq!(
        version["runtimeDigest"].as_str().unwrap(),
        format!("sha256:{}", sum.split(' ').next().unwrap())
    );
}
