//! One file per verb, or per handful of small ones.

mod containers;
mod cp;
mod demo;
mod detach;
mod disk;
mod doctor;
mod down;
mod env;
mod exec;
mod images;
mod logs;
mod registry;
mod run;
mod set;
mod status;
mod store;
mod streams;
pub mod up;
mod version;
mod why;

use crate::args::{Args, Verb};
use crate::client::Client;
use crate::instance::Dirs;
use anyhow::Context;
use std::process::ExitCode;

/// Does what was typed. An error becomes one sentence and exit code 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dirs = || Dirs::resolve(args.dirs.data_dir.clone(), args.dirs.run_dir.clone());
    match args.verb {
        Verb::Up(up) => up::run(&args.dirs, &up),
        Verb::Down(down) => down::run(&dirs()?, &down),
        Verb::Env(how) => env::run(&dirs()?, how.output),
        Verb::Status(how) => block_on(status::run(&dirs()?, how.output)),
        Verb::Doctor(how) => doctor::run(&dirs()?, how.output),
        Verb::Version(how) => version::run(how.output),
        Verb::Store(args) => store::run(&dirs()?, &args),
        Verb::Registry(args) => registry::run(&dirs()?, *args),
        Verb::Front { uid } => crate::front::child::run(uid),
        Verb::Runtime { words } => Err(crate::runtime_program::exec(&words)),
        verb => {
            let client = Client::of(&dirs()?)?;
            block_on(ask(&client, verb))
        }
    }
}

/// The verbs that are clients of the API.
async fn ask(client: &Client, verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Demo => demo::run(client).await,
        Verb::Run(args) => run::run(client, *args).await,
        Verb::Ps(args) => containers::ps(client, &args).await,
        Verb::Logs(args) => logs::run(client, &args).await,
        Verb::Exec(args) => exec::run(client, args).await,
        Verb::Start(args) => containers::start(client, &args.names).await,
        Verb::Stop(args) => containers::stop(client, &args).await,
        Verb::Kill(args) => containers::kill(client, &args).await,
        Verb::Rm(args) => containers::remove(client, &args).await,
        Verb::Inspect(args) => containers::inspect(client, &args.names).await,
        Verb::Set(args) => set::run(client, &args).await,
        Verb::Why(args) => why::why(client, &args).await,
        Verb::Autopsy(args) => why::autopsy(client, &args).await,
        Verb::Rmi(args) => images::remove(client, &args).await,
        Verb::Disk(args) => disk::run(client, &args.verb).await,
        Verb::Images(args) => images::list(client, &args).await,
        Verb::Load(args) => images::load(client, &args).await,
        Verb::Save(args) => images::save(client, &args).await,
        Verb::Pull(args) => images::pull(client, &args.name).await,
        Verb::Cp(args) => cp::run(client, &args).await,
        Verb::Up(_)
        | Verb::Down(_)
        | Verb::Env(_)
        | Verb::Status(_)
        | Verb::Doctor(_)
        | Verb::Version(_)
        | Verb::Store(_)
        | Verb::Registry(_)
        | Verb::Front { .. }
        | Verb::Runtime { .. } => unreachable!("answered by run()"),
    }
}

/// Runs a client verb. A thread that still waits for the keyboard does not hold the end up.
fn block_on(verb: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let code = runtime.block_on(verb);
    runtime.shutdown_background();
    code
}
