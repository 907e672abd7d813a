//! One file per verb.

mod detach;
mod down;
mod env;
pub mod up;
mod version;

use crate::args::{Args, Verb};
use crate::instance::Dirs;
use std::process::ExitCode;

/// Does what was typed. An error becomes one sentence and exit code 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dirs = || Dirs::resolve(args.dirs.data_dir.clone(), args.dirs.run_dir.clone());
    match args.verb {
        Verb::Up(up) => up::run(&args.dirs, &up),
        Verb::Down(down) => down::run(&dirs()?, &down),
        Verb::Env(how) => env::run(&dirs()?, how.output),
        Verb::Version(how) => version::run(how.output),
        Verb::Status(_) | Verb::Doctor(_) => anyhow::bail!("not in this build"),
        Verb::Runtime { words } => Err(crate::runtime_program::exec(&words)),
    }
}
