//! runc's command line over bundles: what podman, containerd and Docker call.
//!
//! ```text
//! <root>/<id>/state.json    pid with its start time, bundle, cgroups       [`store`]
//!            /config.json   the spec as it was at create
//!            /exec.fifo     there until start: the init waits for a byte on it
//! ```
//! Start with [`main`]; one function per command below it. Errors are in runc's words; with `--log` they go there too, with
//! `--log-format json` in the form that callers parse.
//!
//! Not here: making containers, which is [`crate::launch`].

mod control;
mod create;
mod exec;
mod flags;
mod help;
mod inspect;
mod protect;
mod store;
mod terminal;

use crate::launch::LaunchError;
use flags::Flags;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const ROOT: &str = "/run/gantry-runtime";

/// What goes for every command.
#[derive(Debug)]
struct Globals {
    root: PathBuf,
    log: Option<PathBuf>,
    json_log: bool,
    debug: bool,
}

/// The words by which engines know that a container is gone.
const DOES_NOT_EXIST: &str = "container does not exist";

/// One sentence, and the exit status.
#[derive(Debug)]
struct Failure {
    text: String,
    code: u8,
    /// The command line was wrong, so how it should be is shown.
    usage: bool,
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 1,
            usage: false,
        }
    }
    fn usage(text: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(text)
        }
    }
    /// Says in runc's words what failed, once.
    fn while_doing(mut self, prefix: &str) -> Self {
        // What launches containers says create, whoever asked.
        let why = match self.text.strip_prefix("runc create failed: ") {
            Some(why) => why,
            None => self.text.strip_prefix(prefix).unwrap_or(&self.text),
        };
        self.text = format!("{prefix}{why}");
        self
    }
    /// The container is not there, which is what `delete --force` wants.
    fn is_absence(&self) -> bool {
        self.text == DOES_NOT_EXIST
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::new(error.runtime_message())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(crate::launch::errno_text(&error))
    }
}

impl From<crate::launch::Failure> for Failure {
    fn from(failure: crate::launch::Failure) -> Self {
        Self::new(failure.text)
    }
}

/// The whole program for every role that is not the daemon's.
pub fn main() -> ExitCode {
    // A container must not find our memory or descriptors through /proc while we are inside its PID namespace. An ordinary
    // user would lose the right to write its own id maps.
    if rustix::process::geteuid().is_root() {
        let _ = gantry_linux::process::set_dumpable(false);
    }
    let mut arguments = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.into_string() {
            Ok(argument) => arguments.push(argument),
            Err(_) => {
                complain(None, None, &Failure::usage("arguments must be UTF-8"));
                return ExitCode::FAILURE;
            }
        }
    }
    let flags = match Flags::parse(&arguments, &help::GLOBAL_FLAGS) {
        Ok(flags) => flags,
        Err(failure) => {
            complain(None, None, &failure);
            return ExitCode::FAILURE;
        }
    };
    let log_format = flags.value("log-format").unwrap_or("text");
    let globals = Globals {
        root: flags.value("root").map_or_else(default_root, PathBuf::from),
        log: flags.value("log").map(PathBuf::from),
        json_log: log_format == "json",
        debug: flags.is_set("debug"),
    };
    if !matches!(log_format, "text" | "json") {
        complain(
            Some(&globals),
            None,
            &Failure::usage(format!("invalid log-format: {log_format}")),
        );
        return ExitCode::FAILURE;
    }
    // Found out before anything is made. Not kept open: it would get the number of a descriptor that the caller did not pass on.
    if let Some(log) = &globals.log
        && let Err(e) = open_log(log)
    {
        let e = crate::launch::errno_text(&e);
        let failure = Failure::new(format!("open {}: {e}", log.display()));
        complain(None, None, &failure);
        return ExitCode::FAILURE;
    }
    globals.debug(|| {
        format!(
            "gantry-runtime {} as user {}, root {}: {arguments:?}",
            env!("CARGO_PKG_VERSION"),
            rustix::process::geteuid().as_raw(),
            globals.root.display()
        )
    });
    match dispatch(&globals, &flags) {
        Ok(code) => {
            globals.debug(|| format!("done: exit status {code}"));
            ExitCode::from(code)
        }
        Err(failure) => {
            let command = flags.positional.first().and_then(|name| help::find(name));
            complain(Some(&globals), command, &failure);
            ExitCode::from(failure.code)
        }
    }
}

/// An ordinary user's own, where there is a folder for such things.
fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own) if !rustix::process::geteuid().is_root() => {
            PathBuf::from(own).join("gantry-runtime")
        }
        _ => PathBuf::from(ROOT),
    }
}

fn dispatch(globals: &Globals, flags: &Flags) -> Result<u8, Failure> {
    if flags.is_set("version") {
        print(&format!(
            "gantry-runtime version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            gantry_oci::runtime::VERSION
        ))?;
        return Ok(0);
    }
    let Some((name, rest)) = flags.positional.split_first() else {
        print(&help::program())?;
        return Ok(0);
    };
    if flags.is_set("help") {
        print(&help::program())?;
        return Ok(0);
    }
    if matches!(name.as_str(), "help" | "h") {
        let about = rest.first().and_then(|name| help::find(name));
        return print(&about.map_or_else(help::program, help::command)).map(|()| 0);
    }
    let Some(command) = help::find(name) else {
        return Err(Failure {
            text: format!("No help topic for '{name}'"),
            code: 3,
            usage: false,
        });
    };
    if rest.first().is_some_and(|a| a == "--help" || a == "-h") {
        return print(&help::command(command)).map(|()| 0);
    }
    if flags.is_set("systemd-cgroup") && !matches!(command.name, "features" | "spec") {
        return Err(Failure::new(
            "systemd cgroup flag passed, but systemd support for managing cgroups is not available",
        ));
    }
    if let Some(rootless) = flags.value("rootless")
        && !matches!(rootless, "auto" | "true" | "false")
    {
        return Err(Failure::usage(format!(
            "invalid value {rootless:?} for flag -rootless: must be 'true', 'false' or 'auto'"
        )));
    }
    (command.run)(globals, rest)
}

fn print(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

impl Globals {
    /// Made only when somebody wants to read it.
    fn debug(&self, text: impl FnOnce() -> String) {
        if self.debug {
            say(Some(self), "debug", &text());
        }
    }

    /// Something that was not done, and need not be.
    fn warn(&self, text: &str) {
        say(Some(self), "warning", text);
    }
}

/// The error where the caller looks for it: the log if there is one, and stderr.
fn complain(globals: Option<&Globals>, command: Option<&help::Command>, failure: &Failure) {
    if failure.usage {
        let usage = command.map_or_else(help::program, help::command);
        let _ = print(&format!("Incorrect Usage: {}\n\n{usage}", failure.text));
    }
    say(globals, "error", &failure.text);
}

fn open_log(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true).open(path)
}

fn say(globals: Option<&Globals>, level: &str, text: &str) {
    let time = store::rfc3339(std::time::SystemTime::now(), 0);
    let json = serde_json::json!({ "level": level, "msg": text, "time": time });
    let line = match globals {
        Some(globals) if globals.json_log => format!("{json}\n"),
        _ => format!(
            "time=\"{time}\" level={level} msg={}\n",
            serde_json::Value::from(text)
        ),
    };
    let log = globals.and_then(|g| g.log.as_ref());
    let logged = log.is_some_and(|path| {
        open_log(path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .is_ok()
    });
    let for_people = match logged {
        true if level != "error" => return,
        true => format!("{text}\n"),
        false => line,
    };
    let _ = std::io::stderr().write_all(for_people.as_bytes());
}
