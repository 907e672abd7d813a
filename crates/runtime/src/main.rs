//! `gantry-runtime`: the small static program that runs beside every container.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|role| role == "spawner")
    {
        return gantry_runtime::spawner::main();
    }
    eprintln!("gantry-runtime: no role of this name");
    ExitCode::FAILURE
}
