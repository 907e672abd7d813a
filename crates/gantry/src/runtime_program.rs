//! The static program `gantry-runtime`, carried inside this one.
//!
//! It is always executed from a sealed copy in memory, so that no container can write to it through `/proc/<pid>/exe`.

use anyhow::Context;
use rustix::fs::{MemfdFlags, SealFlags};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

/// The program's bytes, as `build.rs` made them.
pub static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gantry-runtime"));

/// sha256 of [`BYTES`], as `gantry version` shows it.
pub fn digest() -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, BYTES);
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// Becomes the static program with `args`; returns only when that failed.
pub fn exec(args: &[OsString]) -> anyhow::Error {
    match sealed_copy() {
        Err(error) => error,
        Ok(file) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let error = std::process::Command::new(path)
                .arg0("gantry-runtime")
                .args(args)
                .exec();
            anyhow::Error::new(error).context("executing the embedded gantry-runtime")
        }
    }
}

fn sealed_copy() -> anyhow::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create(
        "gantry-runtime",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .context("creating a file in memory for gantry-runtime")?;
    let mut file = std::fs::File::from(fd);
    file.write_all(BYTES)
        .context("copying gantry-runtime into memory")?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )
    .context("sealing gantry-runtime in memory")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_exactly_the_program_that_was_built() {
        let built = std::fs::read(env!("GANTRY_RUNTIME_PROGRAM")).unwrap();
        assert!(
            built == BYTES,
            "the embedded program differs from the built one"
        );
    }
}
