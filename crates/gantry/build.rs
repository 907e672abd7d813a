//! Builds the static program `gantry-runtime` and hands its path to `src/runtime_program.rs`, which carries it.
//!
//! It is a second cargo run, because it wants what one run cannot mix: another profile (small, no unwinding), another
//! target feature (`crt-static`: no dynamic loader inside a container's mount namespace) and its own feature set. It uses the
//! same lock file and its own target directory, so it neither waits for this build's lock nor disturbs its cache.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates that end up in the static program; a change in any other must not rebuild it.
const SOURCES: [&str; 5] = [
    "Cargo.lock",
    "Cargo.toml",
    "crates/runtime",
    "crates/linux",
    "crates/oci",
];

fn main() {
    let root = Path::new(&env("CARGO_MANIFEST_DIR")).join("../..");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let triple = env("TARGET");
    // A debug build of the workspace takes the quick variant: the same code without link-time optimisation.
    let profile = if env("PROFILE") == "release" {
        "runtime"
    } else {
        "runtime-dev"
    };
    // OUT_DIR is <target>/<profile>/build/gantry-<hash>/out.
    let out = PathBuf::from(env("OUT_DIR"));
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR lies four folders below the target directory")
        .join("runtime");

    let mut cargo = Command::new(env("CARGO"));
    cargo
        .current_dir(&root)
        .args(["build", "--locked", "-p", "gantry-runtime"])
        .args(["--bin", "gantry-runtime"])
        .args(["--profile", profile, "--target", &triple])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    // What the outer cargo (or clippy, or a coverage tool) set for its own compilations is not meant for this one.
    for name in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_BUILD_RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building gantry-runtime failed");

    let program = target.join(&triple).join(profile).join("gantry-runtime");
    println!(
        "cargo:rustc-env=GANTRY_RUNTIME_PROGRAM={}",
        program.display()
    );
    println!("cargo:rustc-env=GANTRY_TARGET={triple}");
    // The copy in OUT_DIR is what gets embedded: it cannot change between this run and the compilation.
    std::fs::copy(&program, out.join("gantry-runtime")).expect("the built program can be copied");
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
