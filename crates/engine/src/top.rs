//! `docker top`: the container's processes in the columns of `ps`, read from `/proc` (no `ps` needed on the host).
//!
//! [`plan`] turns `ps`'s arguments into columns (pure); [`Process::read`] takes a process from `/proc`; [`Column::text`] prints (pure).

use crate::cgroup::Cgroups;
use crate::{Engine, State};
use gantry_base::{Error, Result, ResultExt};
use std::collections::HashMap;
use std::io::Read;

/// Bytes of a command line that are shown.
const COMMAND_LIMIT: u64 = 64 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}

impl Engine {
    /// `ps_args` as for `ps`; empty means `-ef`.
    pub async fn top(&self, r: &str, ps_args: &str) -> Result<Top> {
        let columns = plan(ps_args)?;
        let record = self.get(r)?;
        if matches!(record.state, State::Restarting { .. }) {
            return Err(Error::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                record.id
            )));
        }
        let Some(process) = record.state.process() else {
            return Err(Error::conflict(format!(
                "container {} is not running",
                record.id
            )));
        };
        let pid = process.pid;
        tokio::task::spawn_blocking(move || {
            let pids = Cgroups::of(pid)
                .and_then(|cgroups| cgroups.processes())
                .context(|| format!("listing the processes of process {pid}"))?;
            let machine = Machine::read();
            let mut users = Names::default();
            // Those that end while we look are not shown.
            let processes = pids.into_iter().filter_map(Process::read);
            Ok(Top {
                titles: columns.iter().map(|(_, title)| title.clone()).collect(),
                processes: processes
                    .map(|p| {
                        columns
                            .iter()
                            .map(|(column, _)| column.text(&p, &machine, &mut users))
                            .collect()
                    })
                    .collect(),
            })
        })
        .await
        .context(|| "listing processes".into())?
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Pid,
    Ppid,
    Pgid,
    Sid,
    Tid,
    User,
    UserId,
    RealUser,
    RealUserId,
    Group,
    GroupId,
    Command,
    Name,
    Cpu,
    CpuWhole,
    Mem,
    Virtual,
    Resident,
    Size,
    Terminal,
    State,
    Stat,
    Start,
    StartBsd,
    StartLong,
    Time,
    TimeBsd,
    Elapsed,
    ElapsedSeconds,
    Threads,
    Priority,
    Nice,
    Processor,
    Cgroup,
}

/// `ps(1)`, "STANDARD FORMAT SPECIFIERS": name, title, column.
const COLUMNS: &[(&str, &str, Column)] = &[
    ("pid", "PID", Column::Pid),
    ("tgid", "TGID", Column::Pid),
    ("ppid", "PPID", Column::Ppid),
    ("pgid", "PGID", Column::Pgid),
    ("pgrp", "PGRP", Column::Pgid),
    ("sid", "SID", Column::Sid),
    ("sess", "SESS", Column::Sid),
    ("session", "SESS", Column::Sid),
    ("lwp", "LWP", Column::Tid),
    ("tid", "TID", Column::Tid),
    ("user", "USER", Column::User),
    ("euser", "EUSER", Column::User),
    ("uname", "USER", Column::User),
    ("uid", "UID", Column::UserId),
    ("euid", "EUID", Column::UserId),
    ("ruser", "RUSER", Column::RealUser),
    ("ruid", "RUID", Column::RealUserId),
    ("group", "GROUP", Column::Group),
    ("egroup", "EGROUP", Column::Group),
    ("gid", "GID", Column::GroupId),
    ("egid", "EGID", Column::GroupId),
    ("comm", "COMMAND", Column::Name),
    ("ucmd", "CMD", Column::Name),
    ("ucomm", "COMMAND", Column::Name),
    ("args", "COMMAND", Column::Command),
    ("cmd", "CMD", Column::Command),
    ("command", "COMMAND", Column::Command),
    ("%cpu", "%CPU", Column::Cpu),
    ("pcpu", "%CPU", Column::Cpu),
    ("c", "C", Column::CpuWhole),
    ("%mem", "%MEM", Column::Mem),
    ("pmem", "%MEM", Column::Mem),
    ("vsz", "VSZ", Column::Virtual),
    ("vsize", "VSZ", Column::Virtual),
    ("rss", "RSS", Column::Resident),
    ("rssize", "RSS", Column::Resident),
    ("rsz", "RSZ", Column::Resident),
    ("sz", "SZ", Column::Size),
    ("tty", "TT", Column::Terminal),
    ("tt", "TT", Column::Terminal),
    ("tname", "TTY", Column::Terminal),
    ("s", "S", Column::State),
    ("state", "S", Column::State),
    ("stat", "STAT", Column::Stat),
    ("stime", "STIME", Column::Start),
    ("start_time", "START", Column::Start),
    ("start", "STARTED", Column::StartBsd),
    ("bsdstart", "START", Column::StartBsd),
    ("lstart", "STARTED", Column::StartLong),
    ("time", "TIME", Column::Time),
    ("cputime", "TIME", Column::Time),
    ("bsdtime", "TIME", Column::TimeBsd),
    ("etime", "ELAPSED", Column::Elapsed),
    ("etimes", "ELAPSED", Column::ElapsedSeconds),
    ("nlwp", "NLWP", Column::Threads),
    ("thcount", "THCNT", Column::Threads),
    ("pri", "PRI", Column::Priority),
    ("ni", "NI", Column::Nice),
    ("nice", "NI", Column::Nice),
    ("psr", "PSR", Column::Processor),
    ("cgroup", "CGROUP", Column::Cgroup),
];

const FULL: &str = "uid=UID,pid,ppid,c,stime,tname,time,cmd";
const USER: &str = "user,pid,%cpu,%mem,vsz,rss,tname,stat,start_time,bsdtime,command";
const BRIEF: &str = "pid,tname,time,ucmd";
const BSD: &str = "pid,tname,stat,bsdtime,command";

/// The columns that `ps` would print for these arguments. Which processes are meant is known: those that only choose processes are taken
/// and change nothing; what would be printed differently is refused.
fn plan(arguments: &str) -> Result<Vec<(Column, String)>> {
    let refuse = |text: &str| {
        Err(Error::invalid(format!(
            "ps: unsupported argument {text:?}; supported are -e, -A, -a, -x, -f, -o COLUMNS, aux and ax"
        )))
    };
    let mut words = arguments.split_whitespace();
    let (mut format, mut custom) = (None, Vec::new());
    while let Some(word) = words.next() {
        let (dash, letters) = match word.strip_prefix('-') {
            Some(letters) => (true, letters),
            None => (false, word),
        };
        for (at, letter) in letters.char_indices() {
            match (letter, dash) {
                ('o', _) => {
                    let rest = &letters[at + 1..];
                    let Some(list) = (if rest.is_empty() {
                        words.next()
                    } else {
                        Some(rest)
                    }) else {
                        return Err(Error::invalid("ps: format specification must follow -o"));
                    };
                    select(list, &mut custom)?;
                    break;
                }
                ('e' | 'A' | 'a' | 'd' | 'w' | 'x', _) => {}
                ('f', true) => format = Some(FULL),
                ('u', _) => format = Some(USER),
                _ => return refuse(word),
            }
            if letter == 'x' && !dash {
                format = format.or(Some(BSD));
            }
        }
        if letters.is_empty() {
            return refuse(word);
        }
    }
    if custom.is_empty() {
        let format = match format {
            Some(format) => format,
            None if arguments.trim().is_empty() => FULL,
            None => BRIEF,
        };
        select(format, &mut custom)?;
        // The one place where a title is not its column's own: `-f` prints names under UID.
        if format == FULL {
            custom[0].0 = Column::User;
        }
    }
    if !custom.iter().any(|(column, _)| *column == Column::Pid) {
        return Err(Error::internal("Couldn't find PID field in ps output"));
    }
    Ok(custom)
}

/// Columns one list may ask for.
const COLUMN_LIMIT: usize = 64;

/// `pid,comm` or `pid,comm=NAME`.
fn select(list: &str, columns: &mut Vec<(Column, String)>) -> Result<()> {
    for item in list.split(',').filter(|item| !item.is_empty()) {
        let (name, title) = match item.split_once('=') {
            Some((name, title)) => (name, Some(title)),
            None => (item, None),
        };
        let known = COLUMNS.iter().find(|(known, ..)| *known == name);
        let Some((_, default, column)) = known else {
            return Err(Error::invalid(format!(
                "ps: unknown user-defined format specifier {name:?}"
            )));
        };
        // Docker finds the processes by this title, so nothing else may have it.
        if title.is_some_and(|title| title.starts_with("PID")) {
            return Err(Error::invalid(format!(
                "specifying {item:?} is not allowed"
            )));
        }
        if columns.len() == COLUMN_LIMIT {
            return Err(Error::invalid(format!(
                "ps: more than {COLUMN_LIMIT} columns"
            )));
        }
        columns.push((*column, title.unwrap_or(default).to_owned()));
    }
    Ok(())
}

/// What of the machine the columns need.
struct Machine {
    ticks_per_second: u64,
    page_kib: u64,
    memory_kib: u64,
    /// Seconds.
    uptime: u64,
    boot: i64,
    now: i64,
    zone: jiff::tz::TimeZone,
}

impl Machine {
    fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let first_number = |text: &str| {
            text.split(['.', ' '])
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        let now = jiff::Timestamp::now().as_second();
        let uptime: u64 = first_number(&text("/proc/uptime"));
        let memory = text("/proc/meminfo");
        let memory = memory
            .strip_prefix("MemTotal:")
            .unwrap_or_default()
            .trim_start();
        Self {
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            page_kib: rustix::param::page_size() as u64 / 1024,
            memory_kib: first_number(memory).max(1),
            uptime,
            boot: now - uptime as i64,
            now,
            zone: jiff::tz::TimeZone::system(),
        }
    }
    fn local(&self, second: i64) -> jiff::Zoned {
        jiff::Timestamp::from_second(second)
            .unwrap_or_default()
            .to_zoned(self.zone.clone())
    }
}

/// Names of users and groups on this host, as `ps` there would show them.
#[derive(Default)]
struct Names {
    users: Option<HashMap<u32, String>>,
    groups: Option<HashMap<u32, String>>,
}

impl Names {
    fn of(map: &mut Option<HashMap<u32, String>>, file: &str, id: u32) -> String {
        let map = map.get_or_insert_with(|| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let pair = |line: &str| {
                let mut fields = line.split(':');
                let name = fields.next()?.to_owned();
                Some((fields.nth(1)?.parse().ok()?, name))
            };
            // The first line of a number is the one that counts.
            text.lines().rev().filter_map(pair).collect()
        });
        map.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
    fn user(&mut self, id: u32) -> String {
        Self::of(&mut self.users, "/etc/passwd", id)
    }
    fn group(&mut self, id: u32) -> String {
        Self::of(&mut self.groups, "/etc/group", id)
    }
}

#[derive(Debug, Default)]
struct Process {
    pid: i32,
    name: String,
    command: String,
    state: char,
    ppid: i32,
    pgrp: i32,
    session: i32,
    tty: u32,
    foreground: i32,
    /// User and system time in ticks.
    ticks: u64,
    priority: i64,
    nice: i64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
    processor: u64,
    locked_kib: u64,
    /// Real and effective.
    uid: (u32, u32),
    gid: u32,
    cgroup: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let mut process = Self::parse_stat(pid, &String::from_utf8_lossy(&stat))?;
        for line in text("status").ok()?.lines() {
            let Some((key, values)) = line.split_once(':') else {
                continue;
            };
            let mut values = values.split_whitespace();
            let mut number = || {
                values
                    .next()
                    .and_then(|n| n.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            match key {
                "Uid" => process.uid = (number() as u32, number() as u32),
                "Gid" => process.gid = (number(), number()).1 as u32,
                "VmLck" => process.locked_kib = number(),
                _ => {}
            }
        }
        let mut command = Vec::new();
        let file = std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
        file.take(COMMAND_LIMIT).read_to_end(&mut command).ok()?;
        while command.last() == Some(&0) {
            command.pop();
        }
        process.command = if command.is_empty() {
            format!("[{}]", process.name)
        } else {
            printable(&String::from_utf8_lossy(&command).replace('\0', " "))
        };
        process.cgroup = text("cgroup")
            .unwrap_or_default()
            .trim_end()
            .replace('\n', ",");
        Some(process)
    }

    /// proc(5), /proc/pid/stat. The name is in brackets and may hold anything, brackets too.
    fn parse_stat(pid: i32, stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        // Numbered as in the manual page, where the state is field 3.
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or("0");
        let signed = |number: usize| field(number).parse::<i64>().unwrap_or(0);
        let unsigned = |number: usize| field(number).parse::<u64>().unwrap_or(0);
        Some(Self {
            pid,
            name: printable(before.split_once('(')?.1),
            state: field(3).chars().next()?,
            ppid: signed(4) as i32,
            pgrp: signed(5) as i32,
            session: signed(6) as i32,
            tty: signed(7) as u32,
            foreground: signed(8) as i32,
            ticks: unsigned(14) + unsigned(15),
            priority: signed(18),
            nice: signed(19),
            threads: unsigned(20),
            start_ticks: unsigned(22),
            virtual_bytes: unsigned(23),
            resident_pages: unsigned(24),
            processor: unsigned(39),
            ..Self::default()
        })
    }

    fn cpu_seconds(&self, machine: &Machine) -> u64 {
        self.ticks / machine.ticks_per_second
    }
    fn elapsed(&self, machine: &Machine) -> u64 {
        machine
            .uptime
            .saturating_sub(self.start_ticks / machine.ticks_per_second)
    }
    /// Tenths of a percent of one CPU over its life.
    fn cpu_permille(&self, machine: &Machine) -> u64 {
        self.ticks * 1000 / machine.ticks_per_second / self.elapsed(machine).max(1)
    }
}

/// As `ps` does: what could move the cursor becomes a question mark.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

impl Column {
    fn text(self, p: &Process, machine: &Machine, names: &mut Names) -> String {
        let started = || machine.boot + (p.start_ticks / machine.ticks_per_second) as i64;
        let tenths = |n: u64| format!("{}.{}", n / 10, n % 10);
        match self {
            Column::Pid | Column::Tid => p.pid.to_string(),
            Column::Ppid => p.ppid.to_string(),
            Column::Pgid => p.pgrp.to_string(),
            Column::Sid => p.session.to_string(),
            Column::User => names.user(p.uid.1),
            Column::UserId => p.uid.1.to_string(),
            Column::RealUser => names.user(p.uid.0),
            Column::RealUserId => p.uid.0.to_string(),
            Column::Group => names.group(p.gid),
            Column::GroupId => p.gid.to_string(),
            Column::Command => p.command.clone(),
            Column::Name => p.name.clone(),
            Column::Cpu => tenths(p.cpu_permille(machine)),
            Column::CpuWhole => (p.cpu_permille(machine) / 10).min(99).to_string(),
            Column::Mem => {
                tenths((p.resident_pages * machine.page_kib * 1000 / machine.memory_kib).min(999))
            }
            Column::Virtual => (p.virtual_bytes / 1024).to_string(),
            Column::Resident => (p.resident_pages * machine.page_kib).to_string(),
            Column::Size => (p.virtual_bytes / 1024 / machine.page_kib.max(1)).to_string(),
            Column::Terminal => terminal(p.tty),
            Column::State => p.state.to_string(),
            Column::Stat => status(p),
            Column::Start => start(&machine.local(started()), &machine.local(machine.now)),
            Column::StartBsd => {
                let format = if machine.now - started() < 24 * 3600 {
                    "%H:%M"
                } else {
                    "%b %d"
                };
                machine.local(started()).strftime(format).to_string()
            }
            Column::StartLong => machine
                .local(started())
                .strftime("%a %b %e %H:%M:%S %Y")
                .to_string(),
            Column::Time => clock(p.cpu_seconds(machine), true),
            Column::TimeBsd => format!(
                "{}:{:02}",
                p.cpu_seconds(machine) / 60,
                p.cpu_seconds(machine) % 60
            ),
            Column::Elapsed => clock(p.elapsed(machine), false),
            Column::ElapsedSeconds => p.elapsed(machine).to_string(),
            Column::Threads => p.threads.to_string(),
            Column::Priority => (39 - p.priority).to_string(),
            Column::Nice => p.nice.to_string(),
            Column::Processor => p.processor.to_string(),
            Column::Cgroup => p.cgroup.clone(),
        }
    }
}

/// `[[D-]HH:]MM:SS`, hours always when `hours`.
fn clock(seconds: u64, hours: bool) -> String {
    let (days, hour, minute, second) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    if days > 0 {
        format!("{days}-{hour:02}:{minute:02}:{second:02}")
    } else if hours || hour > 0 {
        format!("{hour:02}:{minute:02}:{second:02}")
    } else {
        format!("{minute:02}:{second:02}")
    }
}

/// Today the time, this year the day, else the year.
fn start(started: &jiff::Zoned, now: &jiff::Zoned) -> String {
    let format = if started.date() == now.date() {
        "%H:%M"
    } else if started.year() == now.year() {
        "%b%d"
    } else {
        "%Y"
    };
    started.strftime(format).to_string()
}

/// Device numbers of the kernel's terminals: Documentation/admin-guide/devices.txt.
fn terminal(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match (major, minor) {
        (0, 0) => "?".into(),
        (136..=143, _) => format!("pts/{}", minor + (major - 136) * 256),
        (4, 0..64) => format!("tty{minor}"),
        (4, _) => format!("ttyS{}", minor - 64),
        (5, 1) => "console".into(),
        _ => "?".into(),
    }
}

/// `ps(1)`, "PROCESS STATE CODES".
fn status(p: &Process) -> String {
    let mut text = p.state.to_string();
    let marks = [
        (p.nice < 0, '<'),
        (p.nice > 0, 'N'),
        (p.locked_kib > 0, 'L'),
        (p.session == p.pid, 's'),
        (p.threads > 1, 'l'),
        (p.foreground == p.pgrp && p.tty != 0, '+'),
    ];
    text.extend(marks.iter().filter(|(on, _)| *on).map(|(_, mark)| mark));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> String {
        match plan(arguments) {
            Ok(columns) => columns
                .iter()
                .map(|(_, title)| title.as_str())
                .collect::<Vec<_>>()
                .join(" "),
            Err(e) => e.message().to_owned(),
        }
    }

    #[test]
    fn arguments_of_ps() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        let user = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        for (arguments, expected) in [
            ("", full),
            ("-ef", full),
            ("aux", user),
            ("-aux", user),
            ("-o pid,comm", "PID COMMAND"),
            ("-eo pid,user=WHO -o args", "PID WHO COMMAND"),
            ("-opid,etime", "PID ELAPSED"),
            ("ax", "PID TTY STAT TIME COMMAND"),
            ("-e", "PID TTY TIME CMD"),
            ("-o comm", "Couldn't find PID field in ps output"),
            ("-o pid,user=PID", "specifying \"user=PID\" is not allowed"),
            (
                "-o pid,evil",
                "ps: unknown user-defined format specifier \"evil\"",
            ),
            ("-o", "ps: format specification must follow -o"),
        ] {
            assert_eq!(titles(arguments), expected, "{arguments:?}");
        }
        for refused in ["--sort=pid", "-l", "axf", "-", "-q 1", ";reboot"] {
            assert!(
                titles(refused).starts_with("ps: unsupported argument"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_process_as_ps_shows_it() {
        let stat = "42 (a) b (c)) S 1 42 42 34816 42 4194560 1 2 3 4 6100 150 0 0 20 0 3 0 5000 1048576 256 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0";
        let mut p = Process::parse_stat(42, stat).unwrap();
        p.uid = (0, 0);
        p.command = "a b".into();
        let machine = Machine {
            ticks_per_second: 100,
            page_kib: 4,
            memory_kib: 10240,
            uptime: 175,
            boot: 1_700_000_000,
            now: 1_700_000_175,
            zone: jiff::tz::TimeZone::UTC,
        };
        let mut names = Names {
            users: Some(HashMap::from([(0, "root".into())])),
            groups: None,
        };
        let mut line = |arguments: &str| {
            let columns = plan(arguments).unwrap();
            columns
                .iter()
                .map(|(c, _)| c.text(&p, &machine, &mut names))
                .collect::<Vec<_>>()
                .join(" | ")
        };
        assert_eq!(
            line(""),
            "root | 42 | 1 | 50 | 22:14 | pts/0 | 00:01:02 | a b"
        );
        assert_eq!(
            line("aux"),
            "root | 42 | 50.0 | 10.0 | 1024 | 1024 | pts/0 | Ssl+ | 22:14 | 1:02 | a b"
        );
        assert_eq!(
            line("-o pid,comm,etime,nlwp,psr,pri"),
            "42 | a) b (c) | 02:05 | 3 | 1 | 19"
        );
    }

    #[test]
    fn odd_numbers_print_like_ps() {
        assert_eq!(clock(90_061, true), "1-01:01:01");
        assert_eq!(terminal(0x8803), "pts/3");
        assert_eq!(terminal(0x0501), "console");
        assert_eq!(printable("a\x1b[2J"), "a?[2J");
        let me = Process::read(std::process::id() as i32).unwrap();
        assert_eq!(
            gantry_linux::program::start_ticks(me.pid).ok(),
            Some(me.start_ticks)
        );
    }
}
