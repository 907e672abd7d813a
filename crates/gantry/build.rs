//! Builds the static program `gantry-runtime` and hands its path to `src/runtime_program.rs`, which carries it.

#[path = "../runtime/static_program.rs"]
mod static_program;

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
    // A target that is added to the toolchain may be the better one.
    if let Ok(found) = Command::new(env("RUSTC"))
        .args(["--print", "sysroot"])
        .output()
    {
        let sysroot = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        println!("cargo:rerun-if-changed={sysroot}/lib/rustlib");
    }

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

    let program = static_program::build_static_program(&env("CARGO"), &root, profile, &target);
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
