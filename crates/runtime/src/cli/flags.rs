//! Flags as runc reads them (`-x`, `--x`, `--x=value`, `--x value`), before the positional arguments.

use super::Failure;
use std::collections::BTreeMap;

/// One flag: its long name, its short one or the same again, whether a value follows, what it is for.
pub(super) type Flag = (&'static str, &'static str, bool, &'static str);

// What several commands have.
pub(super) const CONSOLE_SOCKET: Flag = (
    "console-socket",
    "console-socket",
    true,
    "path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the console's pseudoterminal",
);
pub(super) const PIDFD_SOCKET: Flag = (
    "pidfd-socket",
    "pidfd-socket",
    true,
    "path to an AF_UNIX socket which will receive a file descriptor referencing the init process",
);
pub(super) const PID_FILE: Flag = (
    "pid-file",
    "pid-file",
    true,
    "specify the file to write the process id to",
);
pub(super) const DETACH: Flag = ("detach", "d", false, "detach from the container's process");
pub(super) const PRESERVE_FDS: Flag = (
    "preserve-fds",
    "preserve-fds",
    true,
    "pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)",
);

#[derive(Debug, Default)]
pub(super) struct Flags {
    values: BTreeMap<&'static str, Vec<String>>,
    pub(super) positional: Vec<String>,
}

impl Flags {
    pub(super) fn parse(arguments: &[String], known: &[Flag]) -> Result<Self, Failure> {
        let mut flags = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                break;
            }
            let Some(name) = argument.strip_prefix('-').filter(|n| !n.is_empty()) else {
                flags.positional.push(argument.clone());
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let Some((long, _, takes_value, _)) = known.iter().find(|f| f.0 == name || f.1 == name)
            else {
                return Err(Failure::usage(format!(
                    "flag provided but not defined: -{name}"
                )));
            };
            let value = match (takes_value, inline) {
                (_, Some(value)) => value,
                (false, None) => "true".to_owned(),
                (true, None) => rest
                    .next()
                    .cloned()
                    .ok_or_else(|| Failure::usage(format!("flag needs an argument: -{name}")))?,
            };
            flags.values.entry(long).or_default().push(value);
        }
        flags.positional.extend(rest.cloned());
        Ok(flags)
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v != "false")
    }

    /// The last one given.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.last().map(String::as_str)
    }

    pub(super) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.value(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Failure::usage(format!(
                "invalid value {text:?} for flag -{name}: parse error"
            ))
        })
    }

    /// Exactly this many positional arguments, or at least with `more`.
    pub(super) fn expect(&self, command: &str, count: usize, more: bool) -> Result<(), Failure> {
        let given = self.positional.len();
        if given == count || more && given > count {
            return Ok(());
        }
        let kind = match more {
            true => "a minimum of",
            false => "exactly",
        };
        Err(Failure::usage(format!(
            "gantry-runtime: {command:?} requires {kind} {count} argument(s)"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_positional() {
        let known = [
            ("bundle", "b", true, ""),
            ("detach", "d", false, ""),
            ("env", "e", true, ""),
        ];
        let parse = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            Flags::parse(&words, &known)
        };
        let flags = parse("-b /x --detach -e A=1 --env=B=2 id ls -l").unwrap();
        assert_eq!(flags.value("bundle"), Some("/x"));
        assert_eq!(flags.all("env"), ["A=1", "B=2"]);
        assert_eq!(flags.positional, ["id", "ls", "-l"]);
        assert!(flags.is_set("detach") && !parse("-detach=false x").unwrap().is_set("detach"));
        assert!(parse("--nosuch").is_err() && parse("-b").is_err());
    }
}
