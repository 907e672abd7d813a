//! Words as a Dockerfile means them: quotes, escapes, and every form of variable.

use std::iter::Peekable;
use std::str::Chars;

/// A value may grow by expansion up to this many bytes.
const LENGTH_LIMIT: usize = 1 << 20;
/// `${a:-${b:-…}}`.
const DEPTH_LIMIT: usize = 64;

/// Where variables come from: `None` is unset.
pub(crate) trait Variables {
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Variables for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// Expands one word: quotes go, variables are replaced. The error is BuildKit's text.
pub(crate) fn word(text: &str, escape: char, variables: &dyn Variables) -> Result<String, String> {
    process(text, escape, variables).map(|(whole, _)| whole)
}

/// The same, split at blanks that no quotes protect.
pub(crate) fn words(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<Vec<String>, String> {
    process(text, escape, variables).map(|(_, words)| words)
}

/// Expands variables and leaves quotes as they are: the content of a heredoc.
pub(crate) fn raw(text: &str, escape: char, variables: &dyn Variables) -> Result<String, String> {
    let mut lexer = Lexer {
        chars: text.chars().peekable(),
        escape,
        variables,
        raw_quotes: true,
        depth: 0,
        words: Words::default(),
    };
    lexer.until(None, false).map_err(|e| failed(text, &e))
}

fn process(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<(String, Vec<String>), String> {
    let mut lexer = Lexer {
        chars: text.chars().peekable(),
        escape,
        variables,
        raw_quotes: false,
        depth: 0,
        words: Words::default(),
    };
    let whole = lexer.until(None, false).map_err(|e| failed(text, &e))?;
    lexer.words.end();
    Ok((whole, lexer.words.list))
}

fn failed(text: &str, why: &str) -> String {
    let shown: String = text.chars().take(200).collect();
    format!("failed to process {shown:?}: {why}")
}

/// Splits at blanks outside quotes; quotes and escapes stay in the words.
pub(crate) fn raw_words(text: &str, escape: char) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, quote) if c == escape && quote != Some('\'') => {
                word.push(c);
                word.extend(chars.next());
            }
            ('"' | '\'', None) => {
                quote = Some(c);
                word.push(c);
            }
            (c, Some(open)) if c == open => {
                quote = None;
                word.push(c);
            }
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// A word without its quotes and escapes; variables stay as they are.
pub(crate) fn unquoted(text: &str, escape: char) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, None) if c == escape => out.extend(chars.next()),
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) => out.push(c),
        }
    }
    if quote.is_some() {
        return Err("unexpected end of statement while looking for matching quote".into());
    }
    Ok(out)
}

#[derive(Default)]
struct Words {
    list: Vec<String>,
    word: String,
    begun: bool,
}

impl Words {
    /// Protected by quotes or an escape.
    fn protected(&mut self, text: &str) {
        self.begun = true;
        self.word.push_str(text);
    }
    fn open(&mut self, text: &str) {
        for c in text.chars() {
            if c.is_whitespace() {
                self.end();
            } else {
                self.begun = true;
                self.word.push(c);
            }
        }
    }
    fn end(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.list.push(std::mem::take(&mut self.word));
        }
    }
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    variables: &'a dyn Variables,
    raw_quotes: bool,
    depth: usize,
    words: Words,
}

impl Lexer<'_> {
    /// Up to `stop`, which is taken, or the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<String, String> {
        let mut out = String::new();
        loop {
            if out.len() > LENGTH_LIMIT {
                return Err(format!("it grows beyond {LENGTH_LIMIT} bytes"));
            }
            let Some(&c) = self.chars.peek() else {
                return match stop {
                    None => Ok(out),
                    Some(stop) => Err(format!("syntax error: missing '{stop}'")),
                };
            };
            if Some(c) == stop {
                self.chars.next();
                return Ok(out);
            }
            match c {
                '\'' if !self.raw_quotes => {
                    let part = self.single()?;
                    self.words.protected(&part);
                    out.push_str(&part);
                }
                '"' if !self.raw_quotes => {
                    let part = self.double()?;
                    self.words.protected(&part);
                    out.push_str(&part);
                }
                '$' => {
                    let part = self.quiet(Self::dollar)?;
                    self.words.open(&part);
                    out.push_str(&part);
                }
                c if c == self.escape => {
                    self.chars.next();
                    let Some(next) = self.chars.next() else {
                        if raw_escapes || self.raw_quotes {
                            out.push(c);
                        }
                        continue;
                    };
                    // In a heredoc only what could begin a variable is protected.
                    let keep = raw_escapes || self.raw_quotes && next != '$' && next != self.escape;
                    let mut part = String::new();
                    if keep {
                        part.push(c);
                    }
                    part.push(next);
                    self.words.protected(&part);
                    out.push_str(&part);
                }
                c => {
                    self.chars.next();
                    let mut buffer = [0; 4];
                    let part = c.encode_utf8(&mut buffer);
                    self.words.open(part);
                    out.push(c);
                }
            }
        }
    }

    /// Runs a part whose text goes to the words as a whole, by the caller.
    fn quiet<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        if self.depth == DEPTH_LIMIT {
            return Err("variables are nested too deeply".into());
        }
        let words = std::mem::take(&mut self.words);
        self.depth += 1;
        let result = part(self);
        self.depth -= 1;
        self.words = words;
        result
    }

    fn single(&mut self) -> Result<String, String> {
        self.chars.next();
        let mut out = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(out);
            }
            out.push(c);
        }
        Err("unexpected end of statement while looking for matching single-quote".into())
    }

    fn double(&mut self) -> Result<String, String> {
        let unended = || {
            Err("unexpected end of statement while looking for matching double-quote".to_owned())
        };
        self.chars.next();
        let mut out = String::new();
        loop {
            let Some(&c) = self.chars.peek() else {
                return unended();
            };
            match c {
                '"' => {
                    self.chars.next();
                    return Ok(out);
                }
                '$' => out.push_str(&self.quiet(Self::dollar)?),
                c => {
                    self.chars.next();
                    if c != self.escape {
                        out.push(c);
                        continue;
                    }
                    let Some(next) = self.chars.next() else {
                        return unended();
                    };
                    if !(matches!(next, '"' | '$') || next == self.escape) {
                        out.push(c);
                    }
                    out.push(next);
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(self.variables.get(&name).unwrap_or_default());
        }
        match self.chars.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('}') => return Err("bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution".into());
        }
        let value = self.variables.get(&name);
        let mut operator = match self.chars.next() {
            Some('}') => return Ok(value.unwrap_or_default()),
            Some(c) => c,
            None => return Err("syntax error: missing '}'".into()),
        };
        let mut null_is_unset = false;
        let mut modifier = operator.to_string();
        if operator == ':' {
            null_is_unset = true;
            operator = self
                .chars
                .next()
                .ok_or_else(|| "syntax error: missing '}'".to_owned())?;
            modifier.push(operator);
        }
        let unsupported = || Err(format!("unsupported modifier ({modifier}) in substitution"));
        let absent = value.is_none() || null_is_unset && value.as_deref() == Some("");
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), false)?;
                match operator {
                    '-' if absent => Ok(word),
                    '-' => Ok(value.unwrap_or_default()),
                    '+' if absent => Ok(String::new()),
                    '+' => Ok(word),
                    _ if absent && word.is_empty() => Err(format!(
                        "{name}: is not allowed to be {}",
                        if value.is_none() { "unset" } else { "empty" }
                    )),
                    _ if absent => Err(format!("{name}: {word}")),
                    _ => Ok(value.unwrap_or_default()),
                }
            }
            '#' | '%' if !null_is_unset => {
                let greedy = self.chars.next_if_eq(&operator).is_some();
                let pattern = self.until(Some('}'), true)?;
                let value = value.unwrap_or_default();
                Ok(trimmed(
                    &value,
                    &pattern,
                    operator == '#',
                    greedy,
                    self.escape,
                ))
            }
            '/' if !null_is_unset => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.until(Some('/'), true)?;
                let replacement = self.until(Some('}'), false)?;
                let value = value.unwrap_or_default();
                Ok(replaced(&value, &pattern, &replacement, all, self.escape))
            }
            _ => unsupported(),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_alphabetic() || *c == '_' => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
            Some(c) if c.is_ascii_digit() => {
                while let Some(c) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                name.extend(self.chars.next());
            }
            _ => {}
        }
        name
    }
}

/// A pattern of `${x#…}`: `*`, `?`, and escaped characters.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Piece {
    Any,
    One,
    Exactly(char),
}

fn pieces(pattern: &str, escape: char) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '*' => Piece::Any,
            '?' => Piece::One,
            c if c == escape => Piece::Exactly(chars.next().unwrap_or(c)),
            c => Piece::Exactly(c),
        });
    }
    out
}

/// The lengths (in characters) of the beginnings of `text` that match, as flags.
fn matching_lengths(pieces: &[Piece], text: &[char]) -> Vec<bool> {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for piece in pieces {
        let mut next = vec![false; text.len() + 1];
        match piece {
            Piece::Any => {
                let mut on = false;
                for (at, slot) in next.iter_mut().enumerate() {
                    on |= reached[at];
                    *slot = on;
                }
            }
            Piece::One => next[1..].copy_from_slice(&reached[..text.len()]),
            Piece::Exactly(c) => {
                for at in 0..text.len() {
                    next[at + 1] = reached[at] && text[at] == *c;
                }
            }
        }
        reached = next;
    }
    reached
}

fn trimmed(value: &str, pattern: &str, front: bool, greedy: bool, escape: char) -> String {
    let mut text: Vec<char> = value.chars().collect();
    let mut pieces = pieces(pattern, escape);
    if !front {
        text.reverse();
        pieces.reverse();
    }
    let lengths = matching_lengths(&pieces, &text);
    let cut = if greedy {
        lengths.iter().rposition(|hit| *hit)
    } else {
        lengths.iter().position(|hit| *hit)
    };
    let mut rest = text.split_off(cut.unwrap_or(0));
    if !front {
        rest.reverse();
    }
    rest.into_iter().collect()
}

fn replaced(value: &str, pattern: &str, replacement: &str, all: bool, escape: char) -> String {
    let text: Vec<char> = value.chars().collect();
    let pieces = pieces(pattern, escape);
    let (mut out, mut at, mut done) = (String::new(), 0, false);
    while at < text.len() {
        let longest = (!done)
            .then(|| matching_lengths(&pieces, &text[at..]))
            .and_then(|lengths| lengths.iter().rposition(|hit| *hit))
            .filter(|length| *length > 0);
        match longest {
            Some(length) => {
                out.push_str(replacement);
                at += length;
                done = !all;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "B" => Some("two words".into()),
            "EMPTY" => Some(String::new()),
            "P" => Some("/usr/lib/x.tar.gz".into()),
            _ => None,
        }
    }

    #[test]
    fn every_form_of_a_variable() {
        for (text, want) in [
            ("$A", Ok("one")),
            ("${A}x", Ok("onex")),
            ("$Ax", Ok("")),
            ("\\$A", Ok("$A")),
            ("'$A'", Ok("$A")),
            ("\"$A b\"", Ok("one b")),
            ("\"\\$A\\n\"", Ok("$A\\n")),
            ("a\\ b", Ok("a b")),
            ("${NO:-x}", Ok("x")),
            ("${NO-x}", Ok("x")),
            ("${EMPTY:-x}", Ok("x")),
            ("${EMPTY-x}", Ok("")),
            ("${A:+set}", Ok("set")),
            ("${NO:+set}", Ok("")),
            ("${EMPTY+set}", Ok("set")),
            ("${NO:-${A:-y}}", Ok("one")),
            ("${P#*/}", Ok("usr/lib/x.tar.gz")),
            ("${P##*/}", Ok("x.tar.gz")),
            ("${P%.*}", Ok("/usr/lib/x.tar")),
            ("${P%%.*}", Ok("/usr/lib/x")),
            ("${P/lib/share}", Ok("/usr/share/x.tar.gz")),
            ("${P//\\//_}", Ok("_usr_lib_x.tar.gz")),
            ("$", Ok("$")),
            ("a$-b", Ok("ab")),
            ("${A:?gone}", Ok("one")),
            (
                "${NO:?gone}",
                Err("failed to process \"${NO:?gone}\": NO: gone"),
            ),
            (
                "${NO?}",
                Err("failed to process \"${NO?}\": NO: is not allowed to be unset"),
            ),
            (
                "${A",
                Err("failed to process \"${A\": syntax error: missing '}'"),
            ),
            ("${}", Err("failed to process \"${}\": bad substitution")),
            (
                "${A:x}",
                Err("failed to process \"${A:x}\": unsupported modifier (:x) in substitution"),
            ),
            (
                "'a",
                Err(
                    "failed to process \"'a\": unexpected end of statement while looking for matching single-quote",
                ),
            ),
        ] {
            let got = word(text, '\\', &variables);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn words_split_where_nothing_protects() {
        for (text, want) in [
            ("80 $B", &["80", "two", "words"][..]),
            ("\"$B\" x", &["two words", "x"]),
            ("$NO", &[]),
            ("\"\"", &[""]),
        ] {
            assert_eq!(words(text, '\\', &variables).unwrap(), want, "{text}");
        }
    }
}
