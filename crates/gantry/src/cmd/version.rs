//! `gantry version`.

use crate::args::Output;
use crate::{output, runtime_program};
use serde_json::json;
use std::process::ExitCode;

pub fn run(how: Output) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    match how {
        Output::Text => output::line(format!("gantry {version} ({})", env!("GANTRY_TARGET")))?,
        Output::Json => output::json(&json!({
            "version": version,
            "target": env!("GANTRY_TARGET"),
            "runtimeDigest": runtime_program::digest(),
        }))?,
    }
    Ok(ExitCode::SUCCESS)
}
