//! `gantry-runtime`: the small static program that runs beside every container.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let role = std::env::args_os().nth(1).unwrap_or_default();
    if role == "spawner" {
        return gantry_runtime::spawner::main();
    }
    if role == "init" {
        return gantry_runtime::reaper::main(std::env::args_os().skip(2));
    }
    if role == "demo-web" {
        return gantry_runtime::demo::main();
    }
    gantry_runtime::cli::main()
}
