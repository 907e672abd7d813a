//! How the static `gantry-runtime` is built: a module of gantry's build script and of the engine's tests.
//!
//! It is a cargo run of its own, because it wants what one run cannot mix: another profile (small, no unwinding), another target
//! (no dynamic loader inside a container's mount namespace) and its own feature set. It uses the same lock file and its own
//! target directory, so it neither waits for the other's lock nor disturbs its cache.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds it with `profile` into `target` and returns its path. `workspace` is the workspace's folder.
///
/// The C library is musl where the toolchain has it: glibc's start asks the processor some fifty questions, which
/// under a hypervisor takes longer than half of what `gantry-runtime state` does.
pub(crate) fn build_static_program(
    cargo: &str,
    workspace: &Path,
    profile: &str,
    target: &Path,
) -> PathBuf {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let has_musl = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .current_dir(workspace)
        .args(["--print", "target-libdir", "--target", &musl])
        .output()
        .is_ok_and(|o| {
            o.status.success() && Path::new(String::from_utf8_lossy(&o.stdout).trim()).exists()
        });
    let triple = match has_musl {
        true => musl,
        false => format!("{arch}-unknown-linux-gnu"),
    };
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args(["build", "--locked", "--quiet", "-p", "gantry-runtime"])
        .args(["--bin", "gantry-runtime", "--profile", profile])
        .args(["--target", &triple, "--target-dir"])
        .arg(target)
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
        command.env_remove(name);
    }
    let status = command.status().expect("cargo can be started");
    assert!(status.success(), "building gantry-runtime failed");
    target.join(&triple).join(profile).join("gantry-runtime")
}
