//! The table of commands: what is run by which name, and what `--help` says about it.

use super::flags::Flag;
use super::{Failure, Globals, control, create, exec, inspect};
use std::fmt::Write;

#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    about: &'static str,
    /// What follows the flags.
    arguments: &'static str,
    flags: &'static [Flag],
    pub(super) run: fn(&Globals, &[String]) -> Result<u8, Failure>,
}

pub(super) const GLOBAL_FLAGS: [Flag; 10] = [
    ("debug", "debug", false, "enable debug logging"),
    (
        "log",
        "log",
        true,
        "set the log file to write logs to (default is '/dev/stderr')",
    ),
    (
        "log-format",
        "log-format",
        true,
        "set the log format ('text' (default), or 'json')",
    ),
    (
        "root",
        "root",
        true,
        "root directory for storage of container state (default: \"/run/gantry-runtime\")",
    ),
    (
        "criu",
        "criu",
        true,
        "taken for the sake of callers; there is no checkpoint",
    ),
    (
        "systemd-cgroup",
        "systemd-cgroup",
        false,
        "refused: cgroups are made without systemd",
    ),
    (
        "cgroup-manager",
        "cgroup-manager",
        true,
        "taken for the sake of callers; cgroups are always made directly",
    ),
    (
        "rootless",
        "rootless",
        true,
        "taken for the sake of callers; an ordinary user's containers get the cgroups that are delegated",
    ),
    ("help", "h", false, "show help"),
    ("version", "v", false, "print the version"),
];

const COMMANDS: [Command; 17] = [
    Command {
        name: "checkpoint",
        about: "refused: there is no CRIU support",
        arguments: "<container-id>",
        flags: &[],
        run: control::checkpoint,
    },
    Command {
        name: "create",
        about: "create a container",
        arguments: "<container-id>",
        flags: &create::CREATE_FLAGS,
        run: create::create,
    },
    Command {
        name: "delete",
        about: "delete any resources held by the container often used with detached container",
        arguments: "<container-id>",
        flags: &control::DELETE_FLAGS,
        run: control::delete,
    },
    Command {
        name: "events",
        about: "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
        arguments: "<container-id>",
        flags: &inspect::EVENTS_FLAGS,
        run: inspect::events,
    },
    Command {
        name: "exec",
        about: "execute new process inside the container",
        arguments: "<container-id> <command> [command options]  || -p process.json <container-id>",
        flags: &exec::FLAGS,
        run: exec::exec,
    },
    Command {
        name: "features",
        about: "show the enabled features",
        arguments: "",
        flags: &[],
        run: inspect::features,
    },
    Command {
        name: "kill",
        about: "kill sends the specified signal (default: SIGTERM) to the container's init process",
        arguments: "<container-id> [signal]",
        flags: &control::KILL_FLAGS,
        run: control::kill,
    },
    Command {
        name: "list",
        about: "lists containers started by gantry-runtime with the given root",
        arguments: "",
        flags: &inspect::LIST_FLAGS,
        run: inspect::list,
    },
    Command {
        name: "pause",
        about: "pause suspends all processes inside the container",
        arguments: "<container-id>",
        flags: &[],
        run: control::pause,
    },
    Command {
        name: "ps",
        about: "ps displays the processes running inside a container",
        arguments: "<container-id> [ps options]",
        flags: &inspect::PS_FLAGS,
        run: inspect::ps,
    },
    Command {
        name: "restore",
        about: "refused: there is no CRIU support",
        arguments: "<container-id>",
        flags: &[],
        run: control::restore,
    },
    Command {
        name: "resume",
        about: "resumes all processes that have been previously paused",
        arguments: "<container-id>",
        flags: &[],
        run: control::resume,
    },
    Command {
        name: "run",
        about: "create and run a container",
        arguments: "<container-id>",
        flags: &create::RUN_FLAGS,
        run: create::run,
    },
    Command {
        name: "spec",
        about: "create a new specification file",
        arguments: "",
        flags: &inspect::SPEC_FLAGS,
        run: inspect::spec,
    },
    Command {
        name: "start",
        about: "executes the user defined process in a created container",
        arguments: "<container-id>",
        flags: &[],
        run: create::start,
    },
    Command {
        name: "state",
        about: "output the state of a container",
        arguments: "<container-id>",
        flags: &[],
        run: inspect::state,
    },
    Command {
        name: "update",
        about: "update container resource constraints",
        arguments: "<container-id>",
        flags: &control::UPDATE_FLAGS,
        run: control::update,
    },
];

pub(super) fn find(name: &str) -> Option<&'static Command> {
    const TABLE: &[Command] = &COMMANDS;
    TABLE.iter().find(|command| command.name == name)
}

/// What the program says about itself.
pub(super) fn program() -> String {
    let mut text = "NAME:\n   gantry-runtime - Open Container Initiative runtime\n\nUSAGE:\n   \
        gantry-runtime [global options] command [command options] [arguments...]\n\nCOMMANDS:\n"
        .to_owned();
    for command in &COMMANDS {
        let _ = writeln!(text, "   {:<12}{}", command.name, command.about);
    }
    text.push_str("   help, h     shows a list of commands or help for one command\n");
    options(&mut text, "GLOBAL OPTIONS", &GLOBAL_FLAGS);
    text
}

/// What it says about one command.
pub(super) fn command(command: &Command) -> String {
    let (name, about, arguments) = (command.name, command.about, command.arguments);
    let with = match command.flags {
        [] => "",
        _ => " [command options]",
    };
    let usage = format!("gantry-runtime {name}{with} {arguments}");
    let mut text = format!(
        "NAME:\n   gantry-runtime {name} - {about}\n\nUSAGE:\n   {}\n",
        usage.trim_end()
    );
    options(&mut text, "OPTIONS", command.flags);
    text
}

fn options(text: &mut String, title: &str, flags: &[Flag]) {
    if flags.is_empty() {
        return;
    }
    let shown = |(long, short, value, _): &Flag| {
        let value = if *value { " value" } else { "" };
        match long == short {
            true => format!("--{long}{value}"),
            false => format!("--{long}{value}, -{short}{value}"),
        }
    };
    let width = flags.iter().map(|f| shown(f).len()).max().unwrap_or(0);
    let _ = writeln!(text, "\n{title}:");
    for flag in flags {
        let _ = writeln!(text, "   {:<width$}  {}", shown(flag), flag.3);
    }
}
