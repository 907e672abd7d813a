//! `gantry-runtime`: the small static program that runs beside every container.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("gantry-runtime: no role of this name");
    ExitCode::FAILURE
}
