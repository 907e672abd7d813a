//! Why a container is not running: `gantry why`, `gantry autopsy`.
//!
//! [`Evidence`] is gathered from the record, the events, the last lines of the log and the container's files; [`judge`] is the decision, pure.
//! Nothing here needs the daemon to have been there when it happened: the supervisor writes down how a run ended.

use crate::container::adopt::{PROCESSES_LOST, SUPERVISOR_LOST};
use crate::container::{Change, Record, State};
use crate::{Engine, LogOptions};
use gantry_base::Result;
use serde::Serialize;

/// Lines of the log that are looked at and shown.
const LINES: usize = 30;
/// Bytes of a program that are read to find out what it needs.
const HEAD: usize = 64 << 10;

/// What is known about a container's end.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Docker's status word.
    pub status: String,
    pub code: i32,
    /// Why a start did not come about, or what the record says beside the code.
    pub error: String,
    pub oom_killed: bool,
    pub memory_limit: i64,
    pub memory_peak: Option<u64>,
    pub pids_limit: Option<i64>,
    pub shm_size: i64,
    /// `docker stop` and its like.
    pub stopped_by_user: bool,
    /// Signals that came through the API during the run, oldest first.
    pub signals: Vec<i32>,
    /// Status of the health checks and what the last one said.
    pub health: Option<(String, String)>,
    /// Replaced because its checks failed.
    pub replaced: bool,
    /// The program is there, but this file that it needs to begin is not.
    pub missing_interpreter: Option<String>,
    pub argv: Vec<String>,
    /// The last lines, oldest first.
    pub output: Vec<String>,
}

/// A kind of death in one word, and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Verdict {
    pub kind: &'static str,
    pub cause: String,
    pub advice: String,
}

/// `GET /containers/{id}/autopsy`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    pub id: String,
    pub name: String,
    pub status: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub exit_code: i32,
    /// Name of the signal that ended it.
    pub signal: Option<String>,
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
    pub restart_count: u32,
    pub memory_limit: i64,
    pub memory_peak: Option<u64>,
    pub last_output: Vec<String>,
    /// When a run last showed that its configuration works; 0: never.
    pub last_good_at_ns: i64,
    /// What was changed since then, or since the create.
    pub changes: Vec<ChangeShown>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChangeShown {
    pub at_ns: i64,
    pub field: String,
    pub before: String,
    pub after: String,
}

impl From<&Change> for ChangeShown {
    fn from(change: &Change) -> Self {
        Self {
            at_ns: change.at_ns,
            field: change.field.clone(),
            before: change.before.clone(),
            after: change.after.clone(),
        }
    }
}

const SIGNALS: [(i32, &str); 16] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (31, "SIGSYS"),
];

fn signal_name(number: i32) -> Option<&'static str> {
    SIGNALS
        .iter()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| *name)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The one cause that fits best.
pub fn judge(evidence: &Evidence) -> Verdict {
    let verdict = |kind: &'static str, cause: String, advice: &str| Verdict {
        kind,
        cause,
        advice: advice.to_owned(),
    };
    match evidence.status.as_str() {
        "running" | "paused" => return alive(evidence),
        "created" if evidence.error.is_empty() => {
            return verdict(
                "never-started",
                "it was created and never started".into(),
                "start it with docker start",
            );
        }
        _ => {}
    }
    if !evidence.error.is_empty() {
        return never_ran(evidence);
    }
    let signal = (evidence.code > 128).then_some(evidence.code - 128);
    if evidence.oom_killed {
        return out_of_memory(evidence, signal);
    }
    if evidence.replaced {
        let said = evidence
            .health
            .as_ref()
            .map_or("", |(_, said)| said.as_str());
        return verdict(
            "unhealthy",
            format!(
                "its health checks failed, so it was restarted; the last one said: {}",
                said.trim()
            ),
            "look at the check's output in docker inspect",
        );
    }
    let asked = |number: i32| evidence.signals.contains(&number);
    match signal {
        Some(9) if evidence.stopped_by_user && evidence.signals.len() > 1 => verdict(
            "stopped-by-force",
            format!(
                "it was told to stop, did not end in time, and was killed (it had got {})",
                names(&evidence.signals)
            ),
            "let the program end on its stop signal, or give it more time with --stop-timeout",
        ),
        Some(number) if asked(number) => verdict(
            if evidence.stopped_by_user && number != 9 {
                "stopped"
            } else {
                "signalled"
            },
            format!(
                "somebody sent it {} through the API",
                signal_name(number).unwrap_or("a signal")
            ),
            "",
        ),
        _ if evidence.stopped_by_user && !evidence.signals.is_empty() => verdict(
            "stopped",
            format!(
                "it was stopped by somebody and ended with code {}",
                evidence.code
            ),
            "",
        ),
        _ => from_output(evidence).unwrap_or_else(|| by_itself(evidence, signal)),
    }
}

fn alive(evidence: &Evidence) -> Verdict {
    let (kind, cause, advice) = match &evidence.health {
        Some((status, said)) if status == "unhealthy" => (
            "running-unhealthy",
            format!(
                "it runs, but its health checks fail; the last one said: {}",
                said.trim()
            ),
            "label it gantry.restart-unhealthy=true to have it restarted then",
        ),
        _ if evidence.status == "paused" => (
            "paused",
            "it is paused".to_owned(),
            "docker unpause lets it go on",
        ),
        _ => ("running", "it runs".to_owned(), ""),
    };
    Verdict {
        kind,
        cause,
        advice: advice.into(),
    }
}

fn names(signals: &[i32]) -> String {
    let names: Vec<String> = signals
        .iter()
        .map(|number| {
            signal_name(*number).map_or_else(|| format!("signal {number}"), str::to_owned)
        })
        .collect();
    names.join(", ")
}

fn out_of_memory(evidence: &Evidence, signal: Option<i32>) -> Verdict {
    let peak = evidence
        .memory_peak
        .map_or(String::new(), |peak| format!(" and had used {}", mib(peak)));
    let limit = u64::try_from(evidence.memory_limit).unwrap_or(0);
    let whole = if limit == 0 {
        "the machine ran out of memory".to_owned()
    } else {
        format!("its limit is {}{peak}", mib(limit))
    };
    let (kind, what) = if signal == Some(9) {
        ("out-of-memory", "the kernel killed it for want of memory")
    } else {
        (
            "out-of-memory-child",
            "the kernel killed one of its processes for want of memory, and then it ended",
        )
    };
    Verdict {
        kind,
        cause: format!("{what}: {whole}"),
        advice: "raise the limit (gantry set --memory), or find what eats it".into(),
    }
}

/// Starts that did not come about, and ends that nobody saw.
fn never_ran(evidence: &Evidence) -> Verdict {
    let error = evidence.error.as_str();
    let program = evidence.argv.first().map_or("", String::as_str);
    let has = |part: &str| error.contains(part);
    let (kind, cause, advice): (&'static str, String, &str) = if error == SUPERVISOR_LOST {
        (
            "supervisor-killed",
            "somebody killed the process that guards it, and the kernel ended it with that".into(),
            "",
        )
    } else if error == PROCESSES_LOST {
        (
            "machine-gone",
            "it ran when the machine (or all of its processes) went away; how it ended nobody saw"
                .into(),
            "give it --restart unless-stopped to have it back after a reboot",
        )
    } else if let Some(missing) = &evidence.missing_interpreter {
        (
            "missing-interpreter",
            format!(
                "{program} is there, but {missing}, which it needs to begin, is not in the image"
            ),
            "install the interpreter, or link the program statically",
        )
    } else if has("executable file not found in $PATH")
        || (has("stat ") && has("no such file or directory"))
    {
        (
            "missing-program",
            format!("there is no program {program:?} in the image"),
            "check the command and PATH; a shell's built-in needs sh -c",
        )
    } else if has("exec format error") {
        (
            "wrong-format",
            format!(
                "{program} is no program for this machine: a script without #! line, or another architecture"
            ),
            "build it for this machine, or give the script its #! line",
        )
    } else if has("exec:") && (has("permission denied") || has("is a directory")) {
        (
            "not-executable",
            format!(
                "{program} may not be executed ({})",
                if has("is a directory") {
                    "it is a folder"
                } else {
                    "its x bit is missing"
                }
            ),
            "chmod +x it in the image",
        )
    } else if has("port is already allocated") || has("address already in use") {
        (
            "port-taken",
            format!("a port that it publishes is taken: {}", tail(error)),
            "publish another port (gantry set --publish), or end who has it",
        )
    } else if has("bind source path does not exist")
        || has("cannot access path")
        || has("failed to mount local volume")
    {
        (
            "missing-mount",
            format!(
                "something that is to be mounted is not there: {}",
                tail(error)
            ),
            "make it, or give the container another one (gantry set --volume)",
        )
    } else if has("unable to find user") || has("no matching entries in passwd") {
        (
            "missing-user",
            format!("its user is not in the image: {}", tail(error)),
            "add the user to the image, or give a number",
        )
    } else if has("chdir to cwd") || has("working directory") {
        (
            "missing-folder",
            format!("its working directory cannot be entered: {}", tail(error)),
            "",
        )
    } else if has("logging driver") {
        (
            "log-receiver-away",
            format!("its log has nowhere to go: {}", tail(error)),
            "start the receiver, or take another --log-driver",
        )
    } else if has("network") {
        (
            "missing-network",
            format!("it cannot be connected: {}", tail(error)),
            "make the network, or take another one",
        )
    } else if has("device information") {
        (
            "missing-device",
            format!("a device is not there: {}", tail(error)),
            "",
        )
    } else {
        ("start-failed", error.to_owned(), "")
    };
    Verdict {
        kind,
        cause,
        advice: advice.into(),
    }
}

/// The last part of a chain of causes.
fn tail(error: &str) -> &str {
    error
        .rsplit_once("container process: ")
        .map_or(error, |(_, last)| last)
        .trim_end_matches(": unknown")
}

/// What the program said before it went tells more than its code.
fn from_output(evidence: &Evidence) -> Option<Verdict> {
    if evidence.code == 0 {
        return None;
    }
    let program = evidence.argv.first().map_or("", String::as_str);
    let last = evidence.output.last().map_or("", String::as_str);
    if last.starts_with("exec ") && last.contains(": ") {
        let failed = Evidence {
            error: last.to_owned(),
            ..evidence.clone()
        };
        let verdict = never_ran(&failed);
        if verdict.kind != "start-failed" && last.contains(program) {
            return Some(verdict);
        }
    }
    let lines = || evidence.output.iter().rev().map(String::as_str);
    let said = |part: &str| lines().find(|line| line.contains(part));
    let verdict = |kind, cause: String, advice: &str| {
        Some(Verdict {
            kind,
            cause,
            advice: advice.to_owned(),
        })
    };
    // glibc's loader and musl's.
    for words in [
        "error while loading shared libraries: ",
        "Error loading shared library ",
    ] {
        let Some(line) = said(words) else { continue };
        let library = line
            .split(words)
            .nth(1)
            .and_then(|rest| rest.split(':').next())
            .unwrap_or_default();
        return verdict(
            "missing-library",
            format!("the program needs the library {library}, which is not in the image"),
            "install the package that has it",
        );
    }
    if evidence.code == 127
        && let Some(line) = said("not found")
    {
        return verdict(
            "command-not-found",
            format!("its shell did not find a command: {line}"),
            "install the command in the image",
        );
    }
    let full = said("No space left on device").or_else(|| said("Disk quota exceeded"));
    if let Some(line) = full {
        return verdict(
            "disk-full",
            format!("it could not write: {line}"),
            "make room: docker system df shows what takes it, docker system prune frees what nobody uses",
        );
    }
    if let Some(line) = said("ddress already in use").or_else(|| said("EADDRINUSE")) {
        return verdict(
            "port-taken-inside",
            format!("it could not listen: {line}"),
            "two programs in one network namespace want the same port",
        );
    }
    let forks = [
        "can't fork",
        "Resource temporarily unavailable",
        "Cannot fork",
        "fork: retry",
    ];
    if let Some(line) = forks.iter().find_map(|part| said(part))
        && let Some(limit) = evidence.pids_limit.filter(|limit| *limit > 0)
    {
        return verdict(
            "process-limit",
            format!("it reached its limit of {limit} processes: {line}"),
            "raise it with gantry set --pids-limit",
        );
    }
    if let Some(line) = said("Read-only file system") {
        return verdict(
            "read-only",
            format!("it wanted to write where it may not: {line}"),
            "mount a volume or a tmpfs there, or leave out --read-only",
        );
    }
    None
}

fn by_itself(evidence: &Evidence, signal: Option<i32>) -> Verdict {
    let code = evidence.code;
    let (kind, cause, advice): (&'static str, String, &str) = match signal {
        None if code == 0 => ("finished", "its program ended with success".into(), "a container lives as long as its first program; give it one that stays"),
        Some(4) => ("illegal-instruction", "the program used an instruction that this processor does not have (SIGILL)".into(), "build it for an older processor"),
        Some(6) => ("aborted", "the program gave up by itself (SIGABRT)".into(), "its last output says why, most likely"),
        Some(7) => ("bus-error", format!("it touched memory that has nothing behind it (SIGBUS); /dev/shm has {}", mib(u64::try_from(evidence.shm_size).unwrap_or(0))), "try a larger --shm-size"),
        Some(8) => ("arithmetic", "it divided by zero or the like (SIGFPE)".into(), ""),
        Some(11) => ("crashed", "the program crashed: it touched memory that is not its own (SIGSEGV)".into(), ""),
        Some(9) => ("killed", "it was killed (SIGKILL), not through the API and not for want of memory: from inside, or by somebody on the host".into(), "look for a kill in the container's scripts and on the host"),
        Some(24) => ("cpu-limit", "it used up its limit of CPU time (SIGXCPU)".into(), "raise --ulimit cpu"),
        Some(25) => ("file-size-limit", "it wrote a file beyond its limit (SIGXFSZ)".into(), "raise --ulimit fsize"),
        Some(31) => ("forbidden-call", "it made a system call that its seccomp profile ends programs for (SIGSYS)".into(), "look for the call with strace, and allow it with --security-opt seccomp=FILE"),
        Some(number) if signal_name(number).is_some() => (
            "signalled",
            format!("it ended on {}, which did not come through the API", signal_name(number).unwrap_or_default()),
            "",
        ),
        _ => ("failed", format!("its program ended with code {code}"), "its last output says why, most likely"),
    };
    Verdict {
        kind,
        cause,
        advice: advice.into(),
    }
}

impl Engine {
    /// What can be said about why a container does not run, or how it is.
    pub async fn autopsy(&self, r: &str) -> Result<Report> {
        let record = self.get(r)?;
        let evidence = self.evidence(&record).await;
        let verdict = judge(&evidence);
        let (started_at_ns, finished_at_ns) = match &record.state {
            State::Exited(exit) | State::Restarting { exit, .. } => {
                (exit.started_at_ns, exit.finished_at_ns)
            }
            state => (
                state.process().map_or(0, |process| process.started_at_ns),
                0,
            ),
        };
        let signal = (evidence.code > 128)
            .then(|| signal_name(evidence.code - 128))
            .flatten();
        let changes = record
            .changes
            .iter()
            .filter(|change| change.at_ns > record.good_at_ns);
        Ok(Report {
            id: record.id.clone(),
            name: record.name.clone(),
            status: evidence.status.clone(),
            exit_code: evidence.code,
            signal: signal.map(str::to_owned),
            started_at_ns,
            finished_at_ns,
            restart_count: record.restart_count,
            memory_limit: evidence.memory_limit,
            memory_peak: evidence.memory_peak,
            last_good_at_ns: record.good_at_ns,
            changes: changes.map(ChangeShown::from).collect(),
            last_output: evidence.output,
            verdict,
        })
    }

    async fn evidence(&self, record: &Record) -> Evidence {
        let host = &record.host_config;
        let mut evidence = Evidence {
            status: record.state.status().to_owned(),
            code: record.state.exit_code(),
            memory_limit: host.memory,
            pids_limit: host.pids_limit,
            shm_size: host.shm_size,
            stopped_by_user: record.stopped_by_user,
            argv: record.argv.clone(),
            ..Evidence::default()
        };
        let last_probe = record.health.as_ref().and_then(|health| {
            Some((
                health.status.clone(),
                health.log.last().map(|probe| probe.output.clone())?,
            ))
        });
        evidence.health = last_probe;
        let mut started_at_ns = record.created_at_ns;
        match &record.state {
            State::Exited(exit) | State::Restarting { exit, .. } => {
                evidence.error.clone_from(&exit.error);
                evidence.oom_killed = exit.oom_killed;
                evidence.memory_peak = exit.memory_peak;
                started_at_ns = exit.started_at_ns;
                let unhealthy = record
                    .health
                    .as_ref()
                    .is_some_and(|health| health.status == "unhealthy");
                evidence.replaced =
                    unhealthy && !record.stopped_by_user && self.restarts_unhealthy(record);
            }
            State::Created {
                failure: Some(failure),
            } => evidence.error.clone_from(&failure.message),
            _ => {}
        }
        let (past, _) = self.events().subscribe(Some(started_at_ns));
        evidence.signals = past
            .iter()
            .filter(|event| event.actor == record.id && event.action == "kill")
            .filter_map(|event| event.attributes.get("signal")?.parse().ok())
            .collect();
        evidence.output = self.last_lines(record).await;
        // A program that cannot begin shows only at its exec, which is after the start; what the runtime then says stands in the log.
        let last = evidence.output.last().map_or("", String::as_str);
        let lacks = (last.starts_with("exec ") && last.ends_with("no such file or directory"))
            || evidence.error.contains("no such file or directory")
            || evidence.error.contains("exec format error");
        if lacks {
            evidence.missing_interpreter = self.missing_interpreter(record).await;
        }
        evidence
    }

    async fn last_lines(&self, record: &Record) -> Vec<String> {
        let options = LogOptions {
            stdout: true,
            stderr: true,
            tail: Some(LINES),
            ..LogOptions::default()
        };
        let Ok(mut lines) = self.logs(&record.id, options).await else {
            return Vec::new();
        };
        let mut output = Vec::new();
        while let Some(Ok(line)) = lines.recv().await {
            output.push(
                String::from_utf8_lossy(&line.line)
                    .trim_end_matches('\n')
                    .to_owned(),
            );
        }
        output
    }

    /// The file that the kernel looks for when it executes the container's program, if that file is what is not there.
    async fn missing_interpreter(&self, record: &Record) -> Option<String> {
        let head = self.program_head(record).await?;
        let wanted = interpreter(&head)?;
        let found = self.archive_stat(&record.id, &wanted).await;
        found.is_err().then_some(wanted)
    }

    async fn program_head(&self, record: &Record) -> Option<Vec<u8>> {
        let program = record.argv.first()?;
        let path = record
            .config
            .env
            .iter()
            .flatten()
            .find_map(|entry| entry.strip_prefix("PATH="));
        let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let candidates: Vec<String> = if program.starts_with('/') {
            vec![program.clone()]
        } else if program.contains('/') {
            vec![format!("{}/{program}", record.config.working_dir)]
        } else {
            path.split(':')
                .map(|folder| format!("{folder}/{program}"))
                .collect()
        };
        for candidate in candidates {
            let Ok(mut stat) = self.archive_stat(&record.id, &candidate).await else {
                continue;
            };
            let target = std::mem::take(&mut stat.link_target);
            let file = if target.is_empty() { candidate } else { target };
            let Ok((_, mut tar)) = self.archive_get(&record.id, &file).await else {
                continue;
            };
            let mut bytes = Vec::new();
            while bytes.len() < HEAD {
                match tar.recv().await {
                    Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                    _ => break,
                }
            }
            let mut archive = tar::Archive::new(&bytes[..]);
            let entry = archive.entries().ok()?.next()?.ok()?;
            let mut head = Vec::new();
            // The rest of a long file is not there, which the reader says after what there is.
            let _ =
                std::io::Read::read_to_end(&mut std::io::Read::take(entry, HEAD as u64), &mut head);
            return Some(head);
        }
        None
    }
}

/// What a file names as its interpreter: `#!` of a script, or the loader of an ELF program (64 bit, little endian). Bytes from an image:
/// every offset is checked.
fn interpreter(head: &[u8]) -> Option<String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let text = String::from_utf8_lossy(line.get(..line.len().min(256))?).into_owned();
        return text
            .split_whitespace()
            .next()
            .map(|word| word.trim_end_matches('\r').to_owned());
    }
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, width: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(width)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let table = usize::try_from(number(32, 8)?).ok()?;
    let (size, count) = (number(54, 2)? as usize, number(56, 2)? as usize);
    for index in 0..count.min(128) {
        let at = table.checked_add(size.checked_mul(index)?)?;
        // PT_INTERP
        if number(at, 4)? == 3 {
            let from = usize::try_from(number(at.checked_add(8)?, 8)?).ok()?;
            let length = usize::try_from(number(at.checked_add(32)?, 8)?)
                .ok()?
                .min(4096);
            let name = head.get(from..from.checked_add(length)?)?;
            let name = name.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(code: i32) -> Evidence {
        Evidence {
            status: "exited".into(),
            code,
            ..Evidence::default()
        }
    }
    fn said(code: i32, line: &str) -> Evidence {
        Evidence {
            output: vec!["before".into(), line.into(), "after".into()],
            pids_limit: Some(9),
            ..dead(code)
        }
    }
    fn failed(code: i32, error: &str) -> Evidence {
        Evidence {
            error: error.into(),
            argv: vec!["prog".into()],
            ..dead(code)
        }
    }

    #[test]
    fn each_kind_of_death_by_its_name() {
        let oom = |code| Evidence {
            oom_killed: true,
            memory_limit: 8 << 20,
            memory_peak: Some(8 << 20),
            ..dead(code)
        };
        let by_user = |code, signals: &[i32]| Evidence {
            stopped_by_user: true,
            signals: signals.to_vec(),
            ..dead(code)
        };
        let cases = [
            ("finished", dead(0)),
            ("failed", dead(3)),
            ("stopped", by_user(143, &[15])),
            ("stopped", by_user(0, &[15])),
            ("stopped-by-force", by_user(137, &[15, 9])),
            (
                "signalled",
                Evidence {
                    signals: vec![9],
                    ..dead(137)
                },
            ),
            ("killed", dead(137)),
            ("signalled", dead(143)),
            ("out-of-memory", oom(137)),
            ("out-of-memory-child", oom(1)),
            ("crashed", dead(139)),
            ("aborted", dead(134)),
            ("illegal-instruction", dead(132)),
            ("bus-error", dead(135)),
            ("arithmetic", dead(136)),
            ("forbidden-call", dead(159)),
            ("cpu-limit", dead(152)),
            ("file-size-limit", dead(153)),
            (
                "missing-program",
                failed(
                    127,
                    "exec: \"prog\": executable file not found in $PATH: unknown",
                ),
            ),
            (
                "missing-program",
                failed(
                    127,
                    "exec: \"/prog\": stat /prog: no such file or directory: unknown",
                ),
            ),
            (
                "missing-interpreter",
                Evidence {
                    missing_interpreter: Some("/bin/ruby".into()),
                    ..failed(127, "exec /prog: no such file or directory")
                },
            ),
            (
                "not-executable",
                failed(126, "exec: \"prog\": permission denied"),
            ),
            ("wrong-format", failed(126, "exec /prog: exec format error")),
            (
                "port-taken",
                failed(128, "Bind for 0.0.0.0:80 failed: port is already allocated"),
            ),
            (
                "missing-mount",
                failed(
                    128,
                    "invalid mount config for type \"bind\": bind source path does not exist: /x",
                ),
            ),
            (
                "missing-user",
                failed(
                    126,
                    "unable to find user nobody2: no matching entries in passwd file",
                ),
            ),
            (
                "log-receiver-away",
                failed(
                    128,
                    "failed to initialize logging driver: dial tcp 127.0.0.1:1: connect: connection refused",
                ),
            ),
            ("supervisor-killed", failed(137, SUPERVISOR_LOST)),
            ("machine-gone", failed(255, PROCESSES_LOST)),
            (
                "missing-library",
                said(
                    127,
                    "x: error while loading shared libraries: libz.so.1: cannot open shared object file",
                ),
            ),
            ("command-not-found", said(127, "sh: foo: not found")),
            (
                "disk-full",
                said(1, "cp: write error: No space left on device"),
            ),
            ("port-taken-inside", said(1, "bind: Address already in use")),
            (
                "process-limit",
                said(2, "sh: can't fork: Resource temporarily unavailable"),
            ),
            ("read-only", said(1, "touch: /x: Read-only file system")),
            (
                "unhealthy",
                Evidence {
                    replaced: true,
                    health: Some(("unhealthy".into(), "no".into())),
                    ..dead(143)
                },
            ),
            (
                "never-started",
                Evidence {
                    status: "created".into(),
                    ..Evidence::default()
                },
            ),
            (
                "running",
                Evidence {
                    status: "running".into(),
                    ..Evidence::default()
                },
            ),
        ];
        for (kind, evidence) in cases {
            let verdict = judge(&evidence);
            assert_eq!(verdict.kind, kind, "{evidence:?}: {}", verdict.cause);
            assert!(!verdict.cause.is_empty());
        }
        assert_eq!(
            judge(&oom(137)).cause,
            "the kernel killed it for want of memory: its limit is 8.0 MiB and had used 8.0 MiB"
        );
    }

    #[test]
    fn interpreters_are_read_from_hostile_heads() {
        assert_eq!(
            interpreter(b"#! /usr/bin/env python\nx").as_deref(),
            Some("/usr/bin/env")
        );
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"plain"), None);
        let own = std::fs::read("/bin/sh").unwrap();
        if &own[..6] == b"\x7fELF\x02\x01" {
            assert!(interpreter(&own).unwrap().contains("ld-linux"));
            for length in 0..own.len().min(400) {
                interpreter(&own[..length]);
            }
            let mut wild = own[..400].to_vec();
            wild[32..40].fill(0xff);
            assert_eq!(interpreter(&wild), None);
        }
    }
}
