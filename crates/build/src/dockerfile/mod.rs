//! A Dockerfile as data: every instruction of the language, parsed strictly, nothing executed.
//!
//! ```text
//! bytes ──lines──▶ Line (joined, heredocs) ──instruction──▶ Instruction ──▶ Stage, Dockerfile
//! ```
//! Variables are not expanded here: their values are known only when the steps before have run ([`shell`] does it then).
//! Messages are BuildKit's where it has one.

mod instruction;
pub(crate) mod lines;
pub(crate) mod mount;
pub(crate) mod shell;
#[cfg(test)]
mod tests;

pub use instruction::{Command, Copy, Instruction, Run};
pub use lines::Heredoc;
pub use mount::{Mount, MountKind, Sharing};

use gantry_base::{Error, Result};
use lines::Line;

/// Stages of one file at most.
const STAGE_LIMIT: usize = 1000;

/// A whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// `ARG` before the first `FROM`.
    pub meta: Vec<Step>,
    pub stages: Vec<Stage>,
    pub escape: char,
    /// `# syntax=`.
    pub syntax: Option<String>,
}

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// As written: variables of `meta` are expanded later.
    pub base: String,
    pub platform: Option<String>,
    /// Lower case.
    pub name: Option<String>,
    pub line: usize,
    pub original: String,
    pub steps: Vec<Step>,
}

/// One instruction and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub line: usize,
    pub last: usize,
    /// As written, continuation lines joined.
    pub original: String,
    pub instruction: Instruction,
}

/// What is wrong, and on which line (0: with the file as a whole).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub message: String,
}

impl Fault {
    pub(crate) fn at(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
    pub(crate) fn file(message: impl Into<String>) -> Self {
        Self::at(0, message)
    }
    /// One sentence with the file's name.
    pub(crate) fn into_error(self, file: &str) -> Error {
        if self.line == 0 {
            return Error::invalid(format!("{file}: {}", self.message));
        }
        Error::invalid(format!(
            "{file}:{}: dockerfile parse error on line {}: {}",
            self.line, self.line, self.message
        ))
    }
}

/// Parses a file; `file` is its name for messages. `InvalidArgument` names file, line and what to do.
pub fn parse(bytes: &[u8], file: &str) -> Result<Dockerfile> {
    parse_faults(bytes).map_err(|fault| fault.into_error(file))
}

pub(crate) fn parse_faults(bytes: &[u8]) -> std::result::Result<Dockerfile, Fault> {
    let lines = lines::split(bytes)?;
    let mut file = Dockerfile {
        meta: Vec::new(),
        stages: Vec::new(),
        escape: lines.escape,
        syntax: lines.syntax,
    };
    for line in &lines.lines {
        let fail = |message: String| Fault::at(line.first, message);
        if line.word == "FROM" {
            if file.stages.len() == STAGE_LIMIT {
                return Err(fail(format!(
                    "a Dockerfile has at most {STAGE_LIMIT} stages"
                )));
            }
            file.stages.push(stage(line).map_err(fail)?);
            continue;
        }
        let step = step(line, lines.escape).map_err(fail)?;
        match (file.stages.last_mut(), &step.instruction) {
            (Some(stage), _) => stage.steps.push(step),
            (None, Instruction::Arg(_)) => file.meta.push(step),
            (None, _) => return Err(fail("no build stage in current context".into())),
        }
    }
    if file.stages.is_empty() {
        return Err(Fault::file(
            "dockerfile contains no stages to build: it needs a FROM",
        ));
    }
    Ok(file)
}

/// An `ONBUILD` trigger of a base image.
pub(crate) fn parse_trigger(text: &str) -> Result<Step> {
    let fail = |message: String| {
        Error::invalid(format!(
            "the ONBUILD trigger {text:?} of the base image: {message}"
        ))
    };
    let line = lines::single(text, '\\').map_err(|fault| fail(fault.message))?;
    if matches!(line.word.as_str(), "FROM" | "ONBUILD" | "MAINTAINER") {
        return Err(fail(format!(
            "{} isn't allowed as an ONBUILD trigger",
            line.word
        )));
    }
    step(&line, '\\').map_err(fail)
}

fn step(line: &Line, escape: char) -> std::result::Result<Step, String> {
    Ok(Step {
        line: line.first,
        last: line.last,
        original: line.original.clone(),
        instruction: instruction::parse(line, escape)?,
    })
}

fn stage(line: &Line) -> std::result::Result<Stage, String> {
    let mut flags = instruction::Flags::read(&line.flags, &["platform"], &[])?;
    let words: Vec<&str> = line
        .rest
        .split(lines::is_blank)
        .filter(|w| !w.is_empty())
        .collect();
    let (base, name) = match words[..] {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some(name)),
        _ => return Err("FROM requires either one or three arguments".into()),
    };
    let name = name.map(str::to_lowercase);
    if let Some(name) = &name {
        let good = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if !good {
            return Err(format!(
                "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
            ));
        }
        if name == "context" || name == "scratch" {
            return Err(format!(
                "invalid name for build stage: {name:?}, name is reserved"
            ));
        }
    }
    Ok(Stage {
        base: base.to_owned(),
        platform: flags.take("platform"),
        name,
        line: line.first,
        original: line.original.clone(),
        steps: Vec::new(),
    })
}
