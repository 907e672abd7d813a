//! Bytes → instructions' lines: parser directives, comments, continuation, heredocs. No instruction is understood here.

use super::{Fault, shell};
use std::collections::BTreeMap;

/// A Dockerfile larger than this is refused.
pub(crate) const SIZE_LIMIT: usize = 4 << 20;
/// Instructions of one file at most.
const INSTRUCTION_LIMIT: usize = 10_000;

/// One instruction as written: continuation lines joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// First and last line in the file, counted from 1.
    pub first: usize,
    pub last: usize,
    /// Upper case.
    pub word: String,
    /// `--name=value` words before the arguments.
    pub flags: Vec<String>,
    /// Everything after the flags.
    pub rest: String,
    /// The whole line, joined and trimmed.
    pub original: String,
    pub heredocs: Vec<Heredoc>,
}

/// `<<NAME … NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// Variables in it are expanded: its name was not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs go.
    pub chomp: bool,
    pub fd: u32,
    pub content: String,
}

impl Heredoc {
    /// The text after `<<-` has taken its tabs.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}

/// The lines of a file, and what its directives said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lines {
    pub lines: Vec<Line>,
    pub escape: char,
    pub syntax: Option<String>,
}

pub(crate) fn split(bytes: &[u8]) -> Result<Lines, Fault> {
    if bytes.len() > SIZE_LIMIT {
        return Err(Fault::file("the Dockerfile is larger than 4 MiB"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Fault::file("the Dockerfile is not valid UTF-8 text"))?;
    let mut reader = Reader::new(text);
    let mut lines = Vec::new();
    while let Some(line) = reader.next_instruction()? {
        if lines.len() == INSTRUCTION_LIMIT {
            return Err(Fault::at(
                line.first,
                format!("a Dockerfile has at most {INSTRUCTION_LIMIT} instructions"),
            ));
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(Fault::file("file with no instructions"));
    }
    Ok(Lines {
        lines,
        escape: reader.escape,
        syntax: reader.seen.remove("syntax"),
    })
}

/// The same for an `ONBUILD` trigger: one instruction, heredocs behind it.
pub(crate) fn single(text: &str, escape: char) -> Result<Line, Fault> {
    let mut reader = Reader::new(text);
    reader.escape = escape;
    reader.directives_over = true;
    reader
        .next_instruction()?
        .ok_or_else(|| Fault::file("file with no instructions"))
}

struct Reader<'a> {
    /// With their line ends.
    lines: Vec<&'a str>,
    at: usize,
    escape: char,
    directives_over: bool,
    seen: BTreeMap<String, String>,
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            lines: text.split_inclusive('\n').collect(),
            at: 0,
            escape: '\\',
            directives_over: false,
            seen: BTreeMap::new(),
        }
    }

    fn next_line(&mut self) -> Option<&'a str> {
        let line = self.lines.get(self.at)?;
        self.at += 1;
        Some(line)
    }

    fn next_instruction(&mut self) -> Result<Option<Line>, Fault> {
        while let Some(raw) = self.next_line() {
            let first = self.at;
            let start = end_trimmed(raw).trim_start();
            self.directive(start, first)?;
            if is_comment(start) {
                continue;
            }
            let (mut text, mut ended) = self.uncontinued(start);
            if ended && text.is_empty() {
                continue;
            }
            while !ended {
                let Some(raw) = self.next_line() else { break };
                let line = end_trimmed(raw);
                // A comment or an empty line within an instruction does not end it.
                if is_comment(line) || line.trim().is_empty() {
                    continue;
                }
                let (more, is_end) = self.uncontinued(line);
                text.push_str(&more);
                ended = is_end;
            }
            if text.trim().is_empty() {
                continue;
            }
            return self.instruction(&text, first).map(Some);
        }
        Ok(None)
    }

    /// The line without its continuation mark, and whether it had none. A doubled escape is no mark.
    fn uncontinued(&self, line: &str) -> (String, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before.to_owned(), false),
            _ => (line.to_owned(), true),
        }
    }

    /// `# name=value` before anything else.
    fn directive(&mut self, line: &str, number: usize) -> Result<(), Fault> {
        if self.directives_over {
            return Ok(());
        }
        let found = line.strip_prefix('#').and_then(|rest| {
            let (name, value) = rest.split_once('=')?;
            let (name, value) = (name.trim(), value.trim());
            let first = name.chars().next()?;
            let is_name = first.is_ascii_alphabetic()
                && name.chars().all(|c| c.is_ascii_alphanumeric())
                && !value.is_empty();
            is_name.then(|| (name.to_ascii_lowercase(), value.to_owned()))
        });
        let Some((name, value)) = found else {
            self.directives_over = true;
            return Ok(());
        };
        if !matches!(name.as_str(), "escape" | "syntax" | "check") {
            return Ok(());
        }
        if self.seen.contains_key(&name) {
            return Err(Fault::at(
                number,
                format!("only one {name} parser directive can be used"),
            ));
        }
        if name == "escape" {
            self.escape = match value.as_str() {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    return Err(Fault::at(
                        number,
                        format!("invalid escape token '{value}' does not match ` or \\"),
                    ));
                }
            };
        }
        self.seen.insert(name, value);
        Ok(())
    }

    fn instruction(&mut self, text: &str, first: usize) -> Result<Line, Fault> {
        let original = text.trim().to_owned();
        let (word, rest) = original
            .split_once(is_blank)
            .unwrap_or((original.as_str(), ""));
        let word = word.to_uppercase();
        let (flags, rest) = flags(rest.trim_start_matches(is_blank), self.escape)
            .map_err(|e| Fault::at(first, e))?;
        // What `ONBUILD` holds back may have a heredoc, too.
        let trigger = rest
            .split(is_blank)
            .next()
            .unwrap_or_default()
            .to_uppercase();
        let takes_heredocs = |word: &str| matches!(word, "ADD" | "COPY" | "RUN");
        let mut heredocs = Vec::new();
        if original.contains("<<")
            && (takes_heredocs(&word) || word == "ONBUILD" && takes_heredocs(&trigger))
        {
            for mut heredoc in heredocs_of(&original, self.escape) {
                self.fill(&mut heredoc, first)?;
                heredocs.push(heredoc);
            }
        }
        Ok(Line {
            first,
            last: self.at,
            word,
            flags,
            rest,
            original,
            heredocs,
        })
    }

    fn fill(&mut self, heredoc: &mut Heredoc, first: usize) -> Result<(), Fault> {
        while let Some(line) = self.next_line() {
            let mut end = end_trimmed(line);
            if heredoc.chomp {
                end = end.trim_start_matches('\t');
            }
            if end == heredoc.name {
                return Ok(());
            }
            heredoc.content.push_str(line);
        }
        Err(Fault::at(
            first,
            format!("unterminated heredoc: no line is {:?} alone", heredoc.name),
        ))
    }
}

pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

fn end_trimmed(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// The heredocs that a line opens, in order.
fn heredocs_of(line: &str, escape: char) -> Vec<Heredoc> {
    let Ok(words) = shell::raw_words(line, escape) else {
        return Vec::new();
    };
    words
        .iter()
        .filter_map(|word| heredoc_word(word, escape))
        .collect()
}

/// `<<EOF`, `3<<-"EOF"`.
pub(crate) fn heredoc_word(word: &str, escape: char) -> Option<Heredoc> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let fd = match &word[..digits] {
        "" => 0,
        text => text.parse().ok()?,
    };
    let rest = word[digits..].strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = shell::unquoted(rest, escape).ok()?;
    if name.is_empty() {
        return None;
    }
    Some(Heredoc {
        // Quotes, of whatever kind, were taken away: then nothing in it is expanded.
        expand: name == rest,
        name,
        chomp,
        fd,
        content: String::new(),
    })
}

/// Takes the `--…` words from the front.
fn flags(rest: &str, escape: char) -> Result<(Vec<String>, String), String> {
    let mut flags = Vec::new();
    let mut chars = rest.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| is_blank(*c)).is_some() {}
        let Some(&(start, _)) = chars.peek() else {
            return Ok((flags, String::new()));
        };
        if !rest[start..].starts_with("--") {
            return Ok((flags, rest[start..].to_owned()));
        }
        let (mut word, mut quote) = (String::new(), None);
        while let Some(&(_, c)) = chars.peek() {
            if quote.is_none() && is_blank(c) {
                break;
            }
            chars.next();
            match (c, quote) {
                (c, _) if c == escape => match chars.next() {
                    Some((_, next)) => word.push(next),
                    None => word.push(c),
                },
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                (c, _) => word.push(c),
            }
        }
        if word == "--" {
            let rest = chars.peek().map_or("", |&(at, _)| &rest[at..]);
            return Ok((flags, rest.trim_start_matches(is_blank).to_owned()));
        }
        flags.push(word);
    }
}
