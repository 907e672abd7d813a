//! `cargo deny`, installed when it is missing.

use crate::{must, root};
use std::process::Command;

pub(crate) fn run() -> anyhow::Result<()> {
    let there = Command::new("cargo")
        .args(["deny", "--version"])
        .current_dir(root())
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        println!("installing cargo-deny (cargo install; takes some minutes)");
        must(Command::new("cargo").args(["install", "--locked", "cargo-deny"]))?;
    }
    must(Command::new("cargo").args(["deny", "--locked", "check", "bans", "licenses", "sources"]))?;
    // Apart, because it fetches the advisory database: without a network the rest has been checked.
    must(Command::new("cargo").args(["deny", "--locked", "check", "advisories"]))
}
