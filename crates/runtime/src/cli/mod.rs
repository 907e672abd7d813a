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
mod inspect;
mod protect;
mod store;
mod terminal;

use crate::launch::LaunchError;
use flags::{Flag, Flags};
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

const GLOBAL_FLAGS: [Flag; 10] = [
    ("debug", "debug", false),
    ("log", "log", true),
    ("log-format", "log-format", true),
    ("root", "root", true),
    ("criu", "criu", true),
    ("systemd-cgroup", "systemd-cgroup", false),
    ("rootless", "rootless", true),
    ("help", "h", false),
    ("version", "v", false),
    ("cgroup-manager", "cgroup-manager", true),
];

const USAGE: &str = "NAME:
   gantry-runtime - Open Container Initiative runtime

USAGE:
   gantry-runtime [global options] command [command options] [arguments...]

COMMANDS:
   checkpoint  refused: there is no CRIU support
   create   create a container
   delete   delete any resources held by the container often used with detached container
   events   display container events such as OOM notifications, cpu, memory, and IO usage statistics
   exec     execute new process inside the container
   features show the enabled features
   kill     kill sends the specified signal (default: SIGTERM) to the container's init process
   list     lists containers started by gantry-runtime with the given root
   pause    pause suspends all processes inside the container
   ps       ps displays the processes running inside a container
   restore  refused: there is no CRIU support
   resume   resumes all processes that have been previously paused
   run      create and run a container
   spec     create a new specification file
   start    executes the user defined process in a created container
   state    output the state of a container
   update   update container resource constraints

GLOBAL OPTIONS:
   --debug             enable debug logging
   --log value         set the log file to write logs to (default: '/dev/stderr')
   --log-format value  set the log format ('text' (default), or 'json') (default: \"text\")
   --root value        root directory for storage of container state (default: \"/run/gantry-runtime\")
   --criu value        taken for the sake of callers; there is no checkpoint
   --systemd-cgroup    refused: cgroups are made without systemd
   --rootless value    taken for the sake of callers; an ordinary user's containers get the cgroups that are delegated
   --help, -h          show help
   --version, -v       print the version
";

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
                complain(None, &Failure::usage("arguments must be UTF-8"));
                return ExitCode::FAILURE;
            }
        }
    }
    let flags = match Flags::parse(&arguments, &GLOBAL_FLAGS) {
        Ok(flags) => flags,
        Err(failure) => {
            complain(None, &failure);
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
            &Failure::usage(format!("invalid log-format: {log_format}")),
        );
        return ExitCode::FAILURE;
    }
    if globals.debug {
        globals.debug(&format!("arguments: {arguments:?}"));
    }
    match dispatch(&globals, &flags) {
        Ok(code) => {
            globals.debug(&format!("done: exit status {code}"));
            ExitCode::from(code)
        }
        Err(failure) => {
            complain(Some(&globals), &failure);
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
    let Some((command, rest)) = flags.positional.split_first() else {
        print(USAGE)?;
        return Ok(0);
    };
    // The table of commands is the one that is shown.
    let known = USAGE
        .lines()
        .any(|l| l.trim_start().split(' ').next() == Some(command));
    let asked = rest.first().is_some_and(|a| a == "--help" || a == "-h");
    if flags.is_set("help") || known && asked {
        print(USAGE)?;
        return Ok(0);
    }
    if flags.is_set("systemd-cgroup") && !matches!(command.as_str(), "features" | "spec" | "help") {
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
    match command.as_str() {
        "checkpoint" | "restore" => control::refuse_checkpoint(globals, command, rest),
        "create" => create::create(globals, rest),
        "run" => create::run(globals, rest),
        "start" => create::start(globals, rest),
        "exec" => exec::exec(globals, rest),
        "state" => inspect::state(globals, rest),
        "list" => inspect::list(globals, rest),
        "ps" => inspect::ps(globals, rest),
        "events" => inspect::events(globals, rest),
        "features" => inspect::features(),
        "spec" => inspect::spec(rest),
        "kill" => control::kill(globals, rest),
        "delete" => control::delete(globals, rest),
        "pause" => control::pause(globals, rest),
        "resume" => control::resume(globals, rest),
        "update" => control::update(globals, rest),
        "help" => print(USAGE).map(|()| 0),
        other => Err(Failure {
            text: format!("No help topic for '{other}'"),
            code: 3,
            usage: false,
        }),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

impl Globals {
    fn debug(&self, text: &str) {
        if self.debug {
            say(Some(self), "debug", text);
        }
    }

    /// Something that was not done, and need not be.
    fn warn(&self, text: &str) {
        say(Some(self), "warning", text);
    }
}

/// The error where the caller looks for it: the log if there is one, and stderr.
fn complain(globals: Option<&Globals>, failure: &Failure) {
    if failure.usage {
        let _ = print(&format!("Incorrect Usage: {}\n\n{USAGE}", failure.text));
    }
    say(globals, "error", &failure.text);
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
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
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
