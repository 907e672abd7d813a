//! One line → one instruction.

use super::lines::{self, Heredoc, Line, is_blank};
use super::{mount, shell};
use gantry_oci::image::Healthcheck;
use std::collections::BTreeMap;

const WORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction whose variables are still to be expanded.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    Add(Copy),
    Arg(Vec<(String, Option<String>)>),
    Cmd(Command),
    Copy(Copy),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Expose(String),
    Healthcheck(Healthcheck),
    Label(Vec<(String, String)>),
    Maintainer(String),
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// A line for the shell, or words for exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Shell(String),
    Exec(Vec<String>),
}

/// `RUN` with what stands behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    /// As written: parsed for their form already, and again once variables are known.
    pub mounts: Vec<String>,
    pub network: Option<String>,
    pub security: Option<String>,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Copy {
    pub sources: Vec<String>,
    /// Sources that are heredocs.
    pub heredocs: Vec<Heredoc>,
    pub destination: String,
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// `ADD --checksum`.
    pub checksum: Option<String>,
    /// `ADD --keep-git-dir`.
    pub keep_git_dir: bool,
    /// `ADD --unpack`.
    pub unpack: Option<bool>,
}

/// The `--name=value` words of one instruction.
pub(crate) struct Flags(BTreeMap<String, Vec<String>>);

impl Flags {
    /// `texts` take a value, `booleans` may; a name that ends in `+` may come several times.
    pub(crate) fn read(
        words: &[String],
        texts: &[&str],
        booleans: &[&str],
    ) -> Result<Self, String> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for word in words {
            let flag = word.strip_prefix("--").unwrap_or(word);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            let repeated = texts.iter().any(|t| t.strip_suffix('+') == Some(name));
            let is_text = repeated || texts.contains(&name);
            if !is_text && !booleans.contains(&name) {
                let known = texts
                    .iter()
                    .map(|t| t.trim_end_matches('+'))
                    .chain(booleans.iter().copied());
                let meant = closest(name, known)
                    .map_or(String::new(), |other| format!(" (did you mean {other}?)"));
                return Err(format!("unknown flag: --{name}{meant}"));
            }
            if found.contains_key(name) && !repeated {
                return Err(format!("duplicate flag specified: --{name}"));
            }
            let value = match (is_text, value) {
                (true, None) | (false, Some("")) => {
                    return Err(format!("missing a value on flag: --{name}"));
                }
                (true, Some(value)) => value.to_owned(),
                (false, None) => "true".into(),
                (false, Some(value)) => match value.to_ascii_lowercase().as_str() {
                    value @ ("true" | "false") => value.to_owned(),
                    _ => {
                        return Err(format!(
                            "expecting boolean value for flag --{name}, not: {value}"
                        ));
                    }
                },
            };
            found.entry(name.to_owned()).or_default().push(value);
        }
        Ok(Self(found))
    }
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).and_then(|mut values| values.pop())
    }
    fn take_all(&mut self, name: &str) -> Vec<String> {
        self.0.remove(name).unwrap_or_default()
    }
    fn is(&mut self, name: &str) -> bool {
        self.take(name).as_deref() == Some("true")
    }
}

pub(crate) fn parse(line: &Line, escape: char) -> Result<Instruction, String> {
    let word = line.word.as_str();
    if !WORDS.contains(&word) {
        let meant = closest(&word.to_ascii_lowercase(), WORDS.iter().copied())
            .map_or(String::new(), |other| format!(" (did you mean {other}?)"));
        return Err(format!("unknown instruction: {word}{meant}"));
    }
    if line.rest.trim().is_empty() && (word != "RUN" || line.heredocs.is_empty()) {
        return Err(match word {
            "ADD" | "COPY" => format!(
                "{word} requires at least two arguments, but only one was provided. Destination could not be determined."
            ),
            "HEALTHCHECK" => "HEALTHCHECK requires at least one argument".into(),
            "MAINTAINER" | "USER" | "WORKDIR" | "STOPSIGNAL" => {
                format!("{word} requires exactly one argument")
            }
            _ => format!("{word} requires at least one argument"),
        });
    }
    let rest = line.rest.trim();
    match word {
        "RUN" => return run(line, escape),
        "COPY" | "ADD" => return copy(line, escape),
        "HEALTHCHECK" => return healthcheck(line).map(Instruction::Healthcheck),
        _ => {}
    }
    Flags::read(&line.flags, &[], &[])?;
    Ok(match word {
        "ARG" => Instruction::Arg(arguments(rest, escape)?),
        "CMD" => Instruction::Cmd(command(rest)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)?),
        "ENV" => Instruction::Env(pairs("ENV", rest, escape)?),
        "LABEL" => Instruction::Label(pairs("LABEL", rest, escape)?),
        "EXPOSE" => Instruction::Expose(rest.into()),
        "MAINTAINER" => Instruction::Maintainer(rest.into()),
        "ONBUILD" => onbuild(line, escape)?,
        "SHELL" => match json(rest)? {
            Some(words) if words.is_empty() => {
                return Err("SHELL requires at least one argument".into());
            }
            Some(words) => Instruction::Shell(words),
            None => return Err("SHELL requires the arguments to be in JSON form".into()),
        },
        "STOPSIGNAL" => Instruction::StopSignal(rest.into()),
        "USER" => Instruction::User(rest.into()),
        "WORKDIR" => Instruction::Workdir(rest.into()),
        "VOLUME" => {
            let folders = words_or_json(rest)?;
            if folders.is_empty() {
                return Err("VOLUME requires at least one argument".into());
            }
            if folders.iter().any(|folder| folder.trim().is_empty()) {
                return Err("VOLUME specified can not be an empty string".into());
            }
            Instruction::Volume(folders)
        }
        _ => return Err(format!("unknown instruction: {word}")),
    })
}

/// The known word that a typing error is nearest to.
fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    known
        .map(|other| (distance(&word, &other.to_ascii_lowercase()), other))
        .filter(|(far, other)| *far <= 2 && *far < other.len() && *far < word.len().max(1))
        .min_by_key(|(far, _)| *far)
        .map(|(_, other)| other)
}

/// Levenshtein's, of short words.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 32 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let next = (corner + usize::from(x != y))
                .min(row[j] + 1)
                .min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// A JSON list of texts; `None` when it is no JSON list at all.
fn json(rest: &str) -> Result<Option<Vec<String>>, String> {
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else {
        return Ok(None);
    };
    values
        .into_iter()
        .map(|value| match value {
            serde_json::Value::String(text) => Ok(text),
            _ => Err(
                "When using JSON array syntax, arrays must be comprised of strings only."
                    .to_owned(),
            ),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

fn command(rest: &str) -> Result<Command, String> {
    Ok(match json(rest)? {
        Some(words) => Command::Exec(words),
        None => Command::Shell(rest.into()),
    })
}

fn words_or_json(rest: &str) -> Result<Vec<String>, String> {
    Ok(match json(rest)? {
        Some(words) => words,
        None => rest
            .split(is_blank)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

fn pairs(word: &str, rest: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = shell::raw_words(rest, escape)?;
    let blank = || format!("{word} names can not be blank");
    if !words.first().is_some_and(|first| first.contains('=')) {
        let (name, value) = rest
            .split_once(is_blank)
            .ok_or_else(|| format!("{word} must have two arguments"))?;
        return Ok(vec![(
            name.to_owned(),
            value.trim_start_matches(is_blank).to_owned(),
        )]);
    }
    words
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some(("", _)) => Err(blank()),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!(
                "Syntax error - can't find = in {pair:?}. Must be of the form: name=value"
            )),
        })
        .collect()
}

fn arguments(rest: &str, escape: char) -> Result<Vec<(String, Option<String>)>, String> {
    shell::raw_words(rest, escape)?
        .iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err("ARG names can not be blank".to_owned()),
            Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
            None => Ok((word.clone(), None)),
        })
        .collect()
}

fn onbuild(line: &Line, escape: char) -> Result<Instruction, String> {
    let mut text = line.original[line.word.len()..].trim().to_owned();
    let inner = lines::Line {
        heredocs: line.heredocs.clone(),
        ..inner(&text, line)
    };
    match inner.word.as_str() {
        "ONBUILD" => return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
        "MAINTAINER" | "FROM" => {
            return Err(format!(
                "{} isn't allowed as an ONBUILD trigger",
                inner.word
            ));
        }
        _ => {}
    }
    // What is wrong with it is told now, not to whoever builds upon the image.
    parse(&inner, escape)?;
    for heredoc in &line.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(Instruction::Onbuild(text))
}

fn inner(text: &str, line: &Line) -> Line {
    let found = lines::single(text.split('\n').next().unwrap_or_default(), '\\');
    found.unwrap_or_else(|_| {
        let (word, rest) = text.split_once(is_blank).unwrap_or((text, ""));
        Line {
            word: word.to_uppercase(),
            rest: rest.trim().to_owned(),
            original: text.to_owned(),
            flags: Vec::new(),
            ..line.clone()
        }
    })
}

fn run(line: &Line, _escape: char) -> Result<Instruction, String> {
    let mut flags = Flags::read(
        &line.flags,
        &["mount+", "network", "security", "device+"],
        &[],
    )?;
    if let Some(device) = flags.take("device") {
        return Err(format!(
            "devices are not given to builds: RUN --device={device}"
        ));
    }
    let mounts = flags.take_all("mount");
    for text in &mounts {
        // With variables in it, its form shows only later.
        if !text.contains('$') {
            mount::parse(text)?;
        }
    }
    let network = flags.take("network");
    if let Some(network) = network.as_deref()
        && !matches!(network, "default" | "none" | "host")
    {
        return Err(format!(
            "unsupported network mode {network:?}: it is default, none or host"
        ));
    }
    let security = flags.take("security");
    if let Some(security) = security.as_deref()
        && !matches!(security, "sandbox" | "insecure")
    {
        return Err(format!(
            "security {security:?} is not valid: it is sandbox or insecure"
        ));
    }
    let command = match json(line.rest.trim())? {
        Some(words) if words.is_empty() => return Err("RUN requires at least one argument".into()),
        Some(words) => Command::Exec(words),
        None => Command::Shell(line.rest.trim().into()),
    };
    Ok(Instruction::Run(Run {
        command,
        heredocs: line.heredocs.clone(),
        mounts,
        network,
        security,
    }))
}

fn copy(line: &Line, escape: char) -> Result<Instruction, String> {
    let word = line.word.as_str();
    let mut flags = if word == "COPY" {
        Flags::read(
            &line.flags,
            &["from", "chown", "chmod", "exclude+"],
            &["link", "parents"],
        )?
    } else {
        Flags::read(
            &line.flags,
            &["chown", "chmod", "exclude+", "checksum"],
            &["link", "keep-git-dir", "unpack"],
        )?
    };
    let mut words = words_or_json(line.rest.trim())?;
    let destination = match words.len() {
        0 | 1 => {
            return Err(format!(
                "{word} requires at least two arguments, but only one was provided. Destination could not be determined."
            ));
        }
        _ => words.pop().unwrap_or_default(),
    };
    let mut heredocs = line.heredocs.clone();
    let is_heredoc = |text: &String| {
        lines::heredoc_word(text, escape)
            .is_some_and(|h| line.heredocs.iter().any(|known| known.name == h.name))
    };
    if lines::heredoc_word(&destination, escape).is_some() && !line.heredocs.is_empty() {
        return Err(format!("{word} cannot accept a heredoc as a destination"));
    }
    words.retain(|text| !is_heredoc(text));
    heredocs.truncate(line.heredocs.len());
    let from = flags.take("from");
    if from.is_some() && !heredocs.is_empty() {
        return Err("a heredoc cannot come from another stage: leave --from away".into());
    }
    let copy = Copy {
        sources: words,
        heredocs,
        destination,
        from,
        chown: flags.take("chown"),
        chmod: flags.take("chmod"),
        link: flags.is("link"),
        parents: flags.is("parents"),
        exclude: flags.take_all("exclude"),
        checksum: flags.take("checksum"),
        keep_git_dir: flags.is("keep-git-dir"),
        unpack: flags.take("unpack").map(|text| text == "true"),
    };
    Ok(if word == "COPY" {
        Instruction::Copy(copy)
    } else {
        Instruction::Add(copy)
    })
}

fn healthcheck(line: &Line) -> Result<Healthcheck, String> {
    let mut flags = Flags::read(
        &line.flags,
        &[
            "interval",
            "timeout",
            "start-period",
            "start-interval",
            "retries",
        ],
        &[],
    )?;
    let (kind, rest) = line
        .rest
        .trim()
        .split_once(is_blank)
        .unwrap_or((line.rest.trim(), ""));
    let rest = rest.trim();
    if kind.eq_ignore_ascii_case("none") {
        if !rest.is_empty() {
            return Err("HEALTHCHECK NONE takes no arguments".into());
        }
        return Ok(Healthcheck {
            test: vec!["NONE".into()],
            ..Healthcheck::default()
        });
    }
    if !kind.eq_ignore_ascii_case("cmd") {
        return Err(format!(
            "Unknown type {:?} in HEALTHCHECK (try CMD)",
            kind.to_uppercase()
        ));
    }
    if rest.is_empty() {
        return Err("Missing command after HEALTHCHECK CMD".into());
    }
    let test = match json(rest)? {
        Some(words) if words.is_empty() => {
            return Err("Missing command after HEALTHCHECK CMD".into());
        }
        Some(words) => std::iter::once("CMD".to_owned()).chain(words).collect(),
        None => vec!["CMD-SHELL".into(), rest.into()],
    };
    let mut span = |name: &str| -> Result<i64, String> {
        let Some(text) = flags.take(name) else {
            return Ok(0);
        };
        let nanoseconds = gantry_docker_api::query::duration(&text)
            .ok_or_else(|| format!("time: invalid duration {text:?}"))?;
        match nanoseconds {
            0 => Ok(0),
            n if n < 1_000_000 => Err(format!("Interval {name:?} cannot be less than 1ms")),
            n => Ok(n),
        }
    };
    let check = Healthcheck {
        test,
        interval: span("interval")?,
        timeout: span("timeout")?,
        start_period: span("start-period")?,
        start_interval: span("start-interval")?,
        retries: 0,
    };
    let retries = match flags.take("retries") {
        None => 0,
        Some(text) => match text.parse::<i32>() {
            Ok(number) if number < 0 => {
                return Err(format!("--retries cannot be negative ({number})"));
            }
            Ok(number) => i64::from(number),
            Err(_) => {
                return Err(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ));
            }
        },
    };
    Ok(Healthcheck { retries, ..check })
}
