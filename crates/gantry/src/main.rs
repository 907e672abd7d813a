//! The program `gantry`: command line, settings, wiring.
//!
//! ```text
//! main ── runtime …  → becomes the embedded static program (runc's command line), before any thread exists
//!      ── up         → settings → locks, sockets → engine → Docker face → "ready in …"
//!      ── down, env, status, doctor, version
//!      ── run, ps, logs, …  thin clients of the same API over the unix socket
//! ```
//! Start with [`cmd::up`]; [`settings`] says what each flag means; [`instance`] is what one data directory owns.
//! The allocator is the system's: mimalloc was tried and held 22 MiB idle and 46 MiB after an image was loaded, where this one
//! holds 12 and 17, with no start being faster.
//!
//! stdout is data, stderr is talk. Exit codes: 0 done, 1 refused or failed (one sentence), 2 wrong usage.

#![forbid(unsafe_code)]
#![allow(
    unreachable_pub,
    reason = "a program exports nothing; `pub` marks what a module offers the others"
)]

mod args;
mod client;
mod cmd;
mod front;
mod instance;
mod listener;
mod logging;
mod output;
mod purge;
mod runtime_program;
mod settings;

use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(rest) = runtime_words(&words) {
        return failed(&runtime_program::exec(rest));
    }
    let args = match args::Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(refusal) => {
            // Help and version are data; a mistake is talk. clap knows which.
            let _ = refusal.print();
            return ExitCode::from(u8::try_from(refusal.exit_code()).unwrap_or(2));
        }
    };
    match cmd::run(args) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// The words for the OCI runtime, when that is the role: `gantry runtime …`, or started under the name `gantry-runtime`.
fn runtime_words(words: &[OsString]) -> Option<&[OsString]> {
    let name = std::path::Path::new(words.first()?).file_name()?;
    if name == "gantry-runtime" {
        return Some(&words[1..]);
    }
    (words.get(1)? == "runtime").then(|| &words[2..])
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("gantry: {}", sentence(error));
    ExitCode::FAILURE
}

/// The whole chain in one line; a cause that only repeats the line so far is left out.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
