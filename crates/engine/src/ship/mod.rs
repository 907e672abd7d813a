//! Log drivers. Every container's output goes to files first (`json-file`'s shape, written by the supervisor, which needs no daemon); for
//! `syslog`, `journald`, `fluentd` and `gelf` a task of the daemon reads these files and sends on what is new.
//!
//! ```text
//! container ─ supervisor ─ D/containers/<id>/<id>-json.log ─ ship ─ syslog, journal, fluentd, gelf
//!                                        └ docker logs        └ db shipped/<id>: how far
//! ```
//! So a receiver that is slow or away never stops a container, `docker logs` works with every driver, and nothing is lost while the daemon
//! is away: it goes on where it was. What the cache (`cache-max-size`, `cache-max-file`) cannot hold while a receiver is away is lost. After
//! `kill -9` of the daemon the last second's lines may arrive twice.
//!
//! [`validate`] is the list of drivers and options; [`format`] turns a line into a receiver's words (pure); [`sender`] holds connections.

mod format;
mod sender;

use crate::container::table::Slot;
use crate::{Engine, LogLine, LogOptions, Record, State};
use gantry_base::{Error, Result, db::Batch};
use gantry_docker_api::filters::pattern;
use gantry_runtime::proto;
use sender::Sender;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Options = BTreeMap<String, String>;

const TABLE: &str = "shipped";
/// Docker's cache of a remote driver, and its `local` driver: five files of 20 MiB.
const CACHE_SIZE: u64 = 20 << 20;
const CACHE_FILES: u32 = 5;
/// How often the place that was reached is stored.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Between two tries of a receiver that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Options that all drivers have.
const COMMON: [&str; 7] = [
    "mode",
    "max-buffer-size",
    "tag",
    "labels",
    "labels-regex",
    "env",
    "env-regex",
];
const CACHE: [&str; 4] = [
    "cache-disabled",
    "cache-max-size",
    "cache-max-file",
    "cache-compress",
];
/// Driver and its own options.
const DRIVERS: [(&str, &[&str]); 7] = [
    ("json-file", &["max-size", "max-file", "compress"]),
    ("local", &["max-size", "max-file", "compress"]),
    ("none", &[]),
    (
        "syslog",
        &["syslog-address", "syslog-facility", "syslog-format"],
    ),
    ("journald", &[]),
    (
        "fluentd",
        &[
            "fluentd-address",
            "fluentd-async",
            "fluentd-async-connect",
            "fluentd-buffer-limit",
            "fluentd-retry-wait",
            "fluentd-max-retries",
            "fluentd-sub-second-precision",
        ],
    ),
    (
        "gelf",
        &[
            "gelf-address",
            "gelf-compression-type",
            "gelf-compression-level",
        ],
    ),
];

/// Names of the drivers, for `docker info`.
pub const NAMES: [&str; 7] = [
    "fluentd",
    "gelf",
    "journald",
    "json-file",
    "local",
    "none",
    "syslog",
];

/// Whether a driver takes these options, in Docker's words where it has them.
pub(crate) fn validate(driver: &str, options: &Options) -> Result<()> {
    let refuse = |text: String| Err(Error::invalid(text));
    let Some((_, own)) = DRIVERS.iter().find(|(name, _)| *name == driver) else {
        return refuse(format!(
            "logger: no log driver named '{driver}' is registered"
        ));
    };
    let remote = is_remote(driver);
    for (key, value) in options {
        let key = key.as_str();
        let known = driver == "none"
            || own.contains(&key)
            || COMMON.contains(&key)
            || (remote && CACHE.contains(&key));
        if !known {
            return refuse(format!("unknown log opt '{key}' for {driver} log driver"));
        }
        match key {
            "max-size" | "cache-max-size" => drop(size(value)?),
            "max-file" | "cache-max-file" => match value.parse::<i64>() {
                Ok(1..=1000) => {}
                Ok(count) if count < 1 => return refuse(format!("{key} cannot be less than 1")),
                _ => return refuse(format!("invalid value for {key}: {value:?}")),
            },
            "compress"
            | "cache-compress"
            | "cache-disabled"
            | "fluentd-async"
            | "fluentd-async-connect"
            | "fluentd-sub-second-precision" => {
                if flag(value).is_none() {
                    return refuse(format!("invalid value for {key}: {value:?}"));
                }
                if key.ends_with("compress") && flag(value) == Some(true) && driver == "json-file" {
                    return refuse(
                        "log opt compress=true is not supported: rotated logs stay uncompressed"
                            .into(),
                    );
                }
            }
            "mode" if !matches!(value.as_str(), "blocking" | "non-blocking" | "") => {
                return refuse(format!("logger: logging mode not supported: {value}"));
            }
            "max-buffer-size" => {
                if options.get("mode").map(String::as_str) != Some("non-blocking") {
                    return refuse(
                        "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
                            .into(),
                    );
                }
                size(value)?;
            }
            "tag" => drop(format::tag(value, &format::Subject::default())?),
            "syslog-address" => drop(sender::address(value, "syslog")?),
            "syslog-facility" => drop(format::facility(value)?),
            "syslog-format"
                if !matches!(value.as_str(), "" | "rfc3164" | "rfc5424" | "rfc5424micro") =>
            {
                return refuse("Invalid syslog format".into());
            }
            "fluentd-address" => drop(sender::address(value, "fluentd")?),
            "gelf-address" => drop(sender::address(value, "gelf")?),
            "gelf-compression-type" if !matches!(value.as_str(), "" | "gzip" | "zlib" | "none") => {
                return refuse(format!(
                    "gelf: invalid value for \"gelf-compression-type\" log-opt: {value}, valid values are \"gzip\", \"zlib\" and \"none\""
                ));
            }
            "gelf-compression-level"
                if !value
                    .parse::<i8>()
                    .is_ok_and(|level| (-1..=9).contains(&level)) =>
            {
                return refuse(format!(
                    "gelf: invalid value for \"gelf-compression-level\" log-opt: {value}"
                ));
            }
            _ => {}
        }
    }
    if driver == "gelf" && !options.contains_key("gelf-address") {
        return refuse("gelf: missing required option: \"gelf-address\"".into());
    }
    Ok(())
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn is_on(options: &Options, key: &str) -> bool {
    options.get(key).and_then(|value| flag(value)) == Some(true)
}

fn is_remote(driver: &str) -> bool {
    matches!(driver, "syslog" | "journald" | "fluentd" | "gelf")
}

/// Whether `docker logs` can read it.
pub(crate) fn is_readable(driver: &str, options: &Options) -> bool {
    driver != "none" && !is_on(options, "cache-disabled")
}

/// `10m` → bytes; `-1` unbounded → `None`.
pub(crate) fn size(text: &str) -> Result<Option<u64>> {
    crate::container::validate::log_size(text)
}

/// Bytes of a file and how many are kept.
pub(crate) fn limits(driver: &str, options: &Options) -> (Option<u64>, u32) {
    let prefix = if is_remote(driver) { "cache-" } else { "" };
    let option = |name: &str| options.get(&format!("{prefix}{name}")).map(String::as_str);
    let bounded = is_remote(driver) || driver == "local";
    let max_size = match option("max-size") {
        Some(text) => size(text).ok().flatten(),
        None => bounded.then_some(CACHE_SIZE),
    };
    let default_files = if bounded { CACHE_FILES } else { 1 };
    let max_files = option("max-file")
        .and_then(|text| text.parse().ok())
        .unwrap_or(default_files);
    (max_size, max_files)
}

/// What the supervisor is told; `None` for the driver `none`.
pub(crate) fn log_of(record: &Record, path: PathBuf) -> Option<proto::Log> {
    let log = &record.host_config.log_config;
    if log.kind == "none" {
        return None;
    }
    let (max_size, max_files) = limits(&log.kind, &log.config);
    let attrs = attributes(record);
    let attrs = if attrs.is_empty() || is_remote(&log.kind) {
        String::new()
    } else {
        serde_json::to_string(&attrs).unwrap_or_default()
    };
    Some(proto::Log {
        path,
        max_size,
        max_files,
        attrs,
    })
}

/// Labels and variables that the options ask for, and the tag when one was given.
fn attributes(record: &Record) -> BTreeMap<String, String> {
    let options = &record.host_config.log_config.config;
    let listed = |key: &str, name: &str| {
        options
            .get(key)
            .is_some_and(|list| list.split(',').any(|wanted| wanted.trim() == name))
    };
    let matched = |key: &str, name: &str| {
        options
            .get(key)
            .is_some_and(|text| !text.is_empty() && pattern::matches(text, name))
    };
    let mut found = BTreeMap::new();
    for (name, value) in &record.config.labels {
        if listed("labels", name) || matched("labels-regex", name) {
            found.insert(name.clone(), value.clone());
        }
    }
    for entry in record.config.env.iter().flatten() {
        if let Some((name, value)) = entry.split_once('=')
            && (listed("env", name) || matched("env-regex", name))
        {
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    if let Some(template) = options.get("tag").filter(|tag| !tag.is_empty())
        && let Ok(tag) = format::tag(template, &format::Subject::of(record))
    {
        found.insert("tag".into(), tag);
    }
    found
}

/// How far a container's log was sent: the time of the last line, and how many lines of that very time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Reached {
    time: String,
    lines: u64,
}

impl Reached {
    fn pass(&mut self, line: &LogLine) {
        if self.time == line.time {
            self.lines += 1;
        } else {
            self.time.clone_from(&line.time);
            self.lines = 1;
        }
    }
    fn since_ns(&self) -> Option<i64> {
        let time = self.time.parse::<jiff::Timestamp>().ok()?;
        i64::try_from(time.as_nanosecond()).ok()
    }
}

impl Engine {
    /// Docker refuses to start a container whose log cannot go anywhere.
    pub(crate) async fn check_log_driver(&self, record: &Record) -> Result<()> {
        let log = &record.host_config.log_config;
        let later =
            is_on(&log.config, "fluentd-async") || is_on(&log.config, "fluentd-async-connect");
        if !is_remote(&log.kind) || later {
            return Ok(());
        }
        let opened = Sender::connect(record).await;
        opened.map(drop).map_err(|e| {
            Error::internal(format!(
                "failed to create task for container: failed to initialize logging driver: {}",
                e.chain()
            ))
        })
    }

    /// Sends on what a container writes, and what it wrote while nobody did, until it ends and everything is sent.
    pub(crate) fn ship_log(&self, slot: &Arc<Slot>) {
        let record = slot.record();
        let log = &record.host_config.log_config;
        let ran = !matches!(record.state, State::Creating | State::Created { .. });
        if !is_remote(&log.kind) || !ran {
            return;
        }
        let (engine, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move {
            let turn = slot.live().shipping.clone();
            // A later run's task waits for its predecessor, and then goes on where that one ended.
            let _turn = turn.lock().await;
            if let Err(error) = engine.ship(&slot).await {
                tracing::warn!(container.id = %slot.id, error = %error.chain(), "sending a log on");
            }
        });
    }

    async fn ship(&self, slot: &Arc<Slot>) -> Result<()> {
        let record = slot.record();
        let mut reached: Reached = self.0.db.get(TABLE, &record.id)?.unwrap_or_default();
        let options = LogOptions {
            stdout: true,
            stderr: true,
            since_ns: reached.since_ns(),
            follow: true,
            ..LogOptions::default()
        };
        let mut lines = self.read_log(slot, options)?;
        let (mut sender, mut noted, mut skip) = (None, Instant::now(), reached.clone());
        while let Some(line) = lines.recv().await {
            let line = line?;
            // Sent before: those of the same moment.
            if line.time == skip.time && skip.lines > 0 {
                skip.lines -= 1;
                continue;
            }
            if !self.deliver(&record, &mut sender, &line).await {
                return Ok(());
            }
            reached.pass(&line);
            if noted.elapsed() >= NOTE_EVERY || lines.is_empty() {
                noted = Instant::now();
                self.note_reached(&record.id, &reached);
            }
        }
        self.note_reached(&record.id, &reached);
        Ok(())
    }

    fn note_reached(&self, id: &str, reached: &Reached) {
        // A removed container's place would stay for ever.
        if self.0.containers.find(id).is_ok() {
            drop(self.0.db.submit(Batch::new().put(TABLE, id, reached)));
        }
    }

    /// Until the receiver has it; `false` when the container is gone or the daemon ends.
    async fn deliver(&self, record: &Record, sender: &mut Option<Sender>, line: &LogLine) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            let sent = async {
                if sender.is_none() {
                    *sender = Some(Sender::connect(record).await?);
                }
                match sender.as_mut() {
                    Some(sender) => sender.send(line).await,
                    None => Ok(()),
                }
            };
            match sent.await {
                Ok(()) => return true,
                Err(error) => {
                    *sender = None;
                    tracing::debug!(container.id = %record.id, error = %error.chain(), "the log's receiver is away");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self.is_closing() || self.0.containers.find(&record.id).is_err() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(driver: &str, options: &str) -> String {
        let options = options
            .split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        validate(driver, &options).map_or_else(|e| e.message().to_owned(), |()| "ok".to_owned())
    }

    #[test]
    fn drivers_and_their_options() {
        for (driver, options, want) in [
            (
                "json-file",
                "max-size=10m max-file=3 labels=a,b env=X tag={{.Name}}",
                "ok",
            ),
            ("json-file", "mode=non-blocking max-buffer-size=4m", "ok"),
            (
                "json-file",
                "max-buffer-size=4m",
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
            ),
            (
                "json-file",
                "mode=sometimes",
                "logger: logging mode not supported: sometimes",
            ),
            ("json-file", "max-file=0", "max-file cannot be less than 1"),
            (
                "json-file",
                "compress=true",
                "log opt compress=true is not supported: rotated logs stay uncompressed",
            ),
            (
                "json-file",
                "syslog-address=udp://a:1",
                "unknown log opt 'syslog-address' for json-file log driver",
            ),
            ("local", "max-size=1m compress=false", "ok"),
            ("none", "", "ok"),
            (
                "syslog",
                "syslog-address=udp://127.0.0.1:514 syslog-facility=daemon syslog-format=rfc5424",
                "ok",
            ),
            (
                "syslog",
                "syslog-address=tcp+tls://h:1",
                "syslog-address tcp+tls://h:1: syslog over TLS is not supported; use tcp, udp or a unix socket",
            ),
            (
                "syslog",
                "syslog-address=http://h:1",
                "syslog-address should be in form proto://address, got http://h:1",
            ),
            ("syslog", "syslog-facility=x", "invalid syslog facility"),
            ("syslog", "syslog-format=x", "Invalid syslog format"),
            (
                "fluentd",
                "fluentd-address=localhost:24224 fluentd-async=true",
                "ok",
            ),
            (
                "gelf",
                "",
                "gelf: missing required option: \"gelf-address\"",
            ),
            (
                "gelf",
                "gelf-address=udp://127.0.0.1:12201 gelf-compression-type=none cache-disabled=true",
                "ok",
            ),
            (
                "gelf",
                "gelf-address=127.0.0.1:1",
                "gelf-address should be in form proto://address, got 127.0.0.1:1",
            ),
            (
                "splunk",
                "",
                "logger: no log driver named 'splunk' is registered",
            ),
            (
                "json-file",
                "tag={{.Foo}}",
                "invalid tag template: {{.Foo}}",
            ),
        ] {
            assert_eq!(verdict(driver, options), want, "{driver} {options}");
        }
    }

    #[test]
    fn a_place_in_a_log_counts_lines_of_one_moment() {
        let line = |time: &str| LogLine {
            stream: crate::Stream::Stdout,
            time: time.into(),
            line: bytes::Bytes::new(),
            attrs: Vec::new(),
        };
        let mut reached = Reached::default();
        for time in [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:01.5Z",
            "2026-01-01T00:00:01.5Z",
        ] {
            reached.pass(&line(time));
        }
        assert_eq!(
            (reached.lines, reached.since_ns()),
            (2, Some(1_767_225_601_500_000_000))
        );
    }
}
