//! The `filters` parameter: which of a list's items a client wants.

use gantry_base::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Name → wanted values. Values of one name are alternatives (labels: all must hold), names add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

/// Values taken at most over all names.
const MOST: usize = 1024;

/// Both shapes that clients send: `{"label":{"a":true}}` since 1.22 and `{"label":["a"]}` before.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Set(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// Parses the JSON text; empty is no filter. Names outside `known` are refused in Docker's words.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let decoded: Option<BTreeMap<String, Option<Values>>> = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("invalid filter: {e}")))?;
        let mut filters = BTreeMap::new();
        for (name, values) in decoded.unwrap_or_default() {
            if !known.contains(&name.as_str()) {
                return Err(Error::invalid(format!("invalid filter '{name}'")));
            }
            let values: Vec<String> = match values {
                Some(Values::Set(set)) => set
                    .into_iter()
                    .filter(|(_, on)| *on)
                    .map(|(value, _)| value)
                    .collect(),
                Some(Values::List(list)) => list,
                None => Vec::new(),
            };
            if !values.is_empty() {
                filters.insert(name, values);
            }
        }
        if filters.values().map(Vec::len).sum::<usize>() > MOST {
            return Err(Error::invalid(format!(
                "invalid filter: more than {MOST} values"
            )));
        }
        Ok(Self(filters))
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Adds a wanted value, as older API versions imply some.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.entry(name.into()).or_default().push(value.into());
        self
    }
    /// The wanted values of `name`; empty when it was not given.
    pub fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    /// Whether `name` was not given, or `matches` holds for one of its values.
    pub fn any(&self, name: &str, matches: impl FnMut(&str) -> bool) -> bool {
        let mut matches = matches;
        self.0
            .get(name)
            .is_none_or(|values| values.iter().any(|value| matches(value)))
    }
    /// `label=key`, `label=key=value`: all must hold. `label!` names what must not hold.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").iter().all(holds) && !self.values("label!").iter().any(holds)
    }
    /// A yes-or-no filter. `InvalidArgument` as Docker says it for anything but one clear value.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        let values = self.values(name);
        let is = |words: [&str; 2]| values.iter().any(|value| words.contains(&value.as_str()));
        match (is(["1", "true"]), is(["0", "false"])) {
            _ if values.is_empty() => Ok(None),
            (true, false) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            _ => Err(Error::invalid(format!(
                "invalid filter '{name}=[{}]'",
                values.join(" ")
            ))),
        }
    }
    /// Whether `name` was not given, or one of its values matches `text` as a regular expression anywhere in it (Docker's rule for
    /// names and IDs) or is equal to it.
    pub fn pattern(&self, name: &str, text: &str) -> bool {
        self.any(name, |value| value == text || pattern::matches(value, text))
    }
}

/// Docker's name filters are Go regular expressions. Nearly all that people write are literals with anchors, dots, stars and
/// alternatives; this small matcher does those (`^ $ . * + ? | ( ) [ ] \`) without a dependency and in bounded time.
pub mod pattern {
    /// Whether `pattern` matches somewhere in `text`. A malformed pattern matches nothing, as in Docker.
    pub fn matches(pattern: &str, text: &str) -> bool {
        if !pattern.contains([
            '^', '$', '.', '*', '+', '?', '|', '(', ')', '[', ']', '\\', '{',
        ]) {
            return text.contains(pattern);
        }
        Program::compile(pattern).is_some_and(|program| program.run(text))
    }

    /// Instructions of a Thompson machine: linear in pattern times text whatever the pattern is.
    enum Step {
        Char(Class),
        Start,
        End,
        Split(usize, usize),
        Jump(usize),
        Match,
    }

    enum Class {
        Any,
        One(char),
        Set {
            negated: bool,
            ranges: Vec<(char, char)>,
        },
    }

    impl Class {
        fn holds(&self, c: char) -> bool {
            match self {
                Class::Any => c != '\n',
                Class::One(wanted) => c == *wanted,
                Class::Set { negated, ranges } => {
                    ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
                }
            }
        }
    }

    struct Program(Vec<Step>);

    const LONGEST: usize = 1024;
    const DEEPEST: usize = 50;

    impl Program {
        fn compile(pattern: &str) -> Option<Self> {
            if pattern.len() > LONGEST {
                return None;
            }
            let mut parser = Parser {
                rest: pattern.chars().collect(),
                at: 0,
                depth: 0,
            };
            let mut steps = parser.alternatives()?;
            if parser.at != parser.rest.len() {
                return None;
            }
            steps.push(Step::Match);
            Some(Self(steps))
        }

        fn run(&self, text: &str) -> bool {
            let chars: Vec<char> = text.chars().collect();
            let mut now = Vec::new();
            let mut seen = vec![usize::MAX; self.0.len()];
            for at in 0..=chars.len() {
                let mut next = Vec::new();
                // Threads that came here by a character, and a new one: the match may begin anywhere.
                let mut stack: Vec<usize> = std::mem::take(&mut now);
                stack.push(0);
                while let Some(pc) = stack.pop() {
                    if seen[pc] == at {
                        continue;
                    }
                    seen[pc] = at;
                    match &self.0[pc] {
                        Step::Match => return true,
                        Step::Jump(to) => stack.push(*to),
                        Step::Split(a, b) => stack.extend([*a, *b]),
                        Step::Start if at == 0 => stack.push(pc + 1),
                        Step::End if at == chars.len() => stack.push(pc + 1),
                        Step::Char(class) if at < chars.len() && class.holds(chars[at]) => {
                            next.push(pc + 1)
                        }
                        Step::Start | Step::End | Step::Char(_) => {}
                    }
                }
                now = next;
            }
            false
        }
    }

    struct Parser {
        rest: Vec<char>,
        at: usize,
        depth: usize,
    }

    impl Parser {
        fn peek(&self) -> Option<char> {
            self.rest.get(self.at).copied()
        }
        fn take(&mut self) -> Option<char> {
            let c = self.peek()?;
            self.at += 1;
            Some(c)
        }
        /// Steps are position-independent until appended: targets are shifted then.
        fn alternatives(&mut self) -> Option<Vec<Step>> {
            let mut left = self.sequence()?;
            while self.peek() == Some('|') {
                self.at += 1;
                let right = self.sequence()?;
                let mut both = vec![Step::Split(1, left.len() + 2)];
                append(&mut both, left);
                both.push(Step::Jump(both.len() + 1 + right.len()));
                append(&mut both, right);
                left = both;
            }
            Some(left)
        }
        fn sequence(&mut self) -> Option<Vec<Step>> {
            let mut steps = Vec::new();
            while let Some(c) = self.peek() {
                if c == '|' || c == ')' {
                    break;
                }
                let atom = self.atom()?;
                let repeated = self.repeat(atom);
                append(&mut steps, repeated);
            }
            Some(steps)
        }
        fn repeat(&mut self, atom: Vec<Step>) -> Vec<Step> {
            let size = atom.len();
            let mut out;
            match self.peek() {
                Some('*') => {
                    out = vec![Step::Split(1, size + 2)];
                    append(&mut out, atom);
                    out.push(Step::Jump(0));
                }
                Some('+') => {
                    out = atom;
                    out.push(Step::Split(0, size + 1));
                }
                Some('?') => {
                    out = vec![Step::Split(1, size + 1)];
                    append(&mut out, atom);
                }
                _ => return atom,
            }
            self.at += 1;
            out
        }
        fn atom(&mut self) -> Option<Vec<Step>> {
            let step = match self.take()? {
                '^' => Step::Start,
                '$' => Step::End,
                '.' => Step::Char(Class::Any),
                '(' => {
                    self.depth += 1;
                    if self.depth > DEEPEST {
                        return None;
                    }
                    if self.rest[self.at..].starts_with(&['?', ':']) {
                        self.at += 2;
                    }
                    let inner = self.alternatives()?;
                    self.depth -= 1;
                    return (self.take()? == ')').then_some(inner);
                }
                '[' => Step::Char(self.set()?),
                '\\' => Step::Char(escape(self.take()?)?),
                '*' | '+' | '?' | '{' => return None,
                c => Step::Char(Class::One(c)),
            };
            Some(vec![step])
        }
        fn set(&mut self) -> Option<Class> {
            let negated = self.peek() == Some('^');
            self.at += usize::from(negated);
            let mut ranges = Vec::new();
            loop {
                let low = match self.take()? {
                    ']' if !ranges.is_empty() => return Some(Class::Set { negated, ranges }),
                    '\\' => match escape(self.take()?)? {
                        Class::Set {
                            negated: false,
                            ranges: more,
                        } => {
                            ranges.extend(more);
                            continue;
                        }
                        Class::One(c) => c,
                        Class::Any | Class::Set { .. } => return None,
                    },
                    c => c,
                };
                let is_range = self.peek() == Some('-')
                    && self.rest.get(self.at + 1).is_some_and(|c| *c != ']');
                let high = if is_range {
                    self.at += 1;
                    self.take()?
                } else {
                    low
                };
                ranges.push((low, high));
            }
        }
    }

    fn escape(c: char) -> Option<Class> {
        let word = vec![('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
        let set = |ranges: Vec<(char, char)>, negated| Some(Class::Set { negated, ranges });
        match c {
            'd' => set(vec![('0', '9')], false),
            'D' => set(vec![('0', '9')], true),
            'w' => set(word, false),
            'W' => set(word, true),
            's' => set(vec![('\t', '\r'), (' ', ' ')], false),
            'S' => set(vec![('\t', '\r'), (' ', ' ')], true),
            c if c.is_ascii_alphanumeric() => None,
            c => Some(Class::One(c)),
        }
    }

    fn append(steps: &mut Vec<Step>, more: Vec<Step>) {
        let base = steps.len();
        steps.extend(more.into_iter().map(|step| match step {
            Step::Split(a, b) => Step::Split(a + base, b + base),
            Step::Jump(to) => Step::Jump(to + base),
            other @ (Step::Char(_) | Step::Start | Step::End | Step::Match) => other,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_and_refusals() {
        let parse = |text| Filters::parse(text, &["label", "name"]);
        let want = parse(r#"{"label":["a","b"]}"#).unwrap();
        assert_eq!(
            parse(r#"{"label":{"a":true,"b":true,"c":false}}"#).unwrap(),
            want
        );
        for empty in ["", "{}", "null", r#"{"label":[]}"#, r#"{"label":null}"#] {
            assert!(parse(empty).unwrap().is_empty(), "{empty}");
        }
        assert_eq!(
            parse(r#"{"x":["y"]}"#).unwrap_err().message(),
            "invalid filter 'x'"
        );
        for bad in ["x", "[]", r#"{"label":1}"#, r#"{"label":[1]}"#] {
            assert!(
                parse(bad)
                    .unwrap_err()
                    .message()
                    .starts_with("invalid filter: "),
                "{bad}"
            );
        }
    }

    #[test]
    fn labels_and_flags() {
        let have = BTreeMap::from([
            ("a".to_string(), "1".to_string()),
            ("b".to_string(), String::new()),
        ]);
        let holds = |text| {
            Filters::parse(text, &["label", "label!"])
                .unwrap()
                .labels(&have)
        };
        assert!(holds(r#"{"label":["a"]}"#));
        assert!(holds(r#"{"label":["a=1","b"]}"#));
        assert!(!holds(r#"{"label":["a=1","c"]}"#));
        assert!(!holds(r#"{"label":["a=2"]}"#));
        assert!(!holds(r#"{"label!":["a"]}"#));
        let flag = |text| {
            Filters::parse(text, &["dangling"])
                .unwrap()
                .flag("dangling")
        };
        assert_eq!(flag(r#"{"dangling":["true"]}"#).unwrap(), Some(true));
        assert_eq!(flag(r#"{"dangling":["0"]}"#).unwrap(), Some(false));
        assert_eq!(flag("").unwrap(), None);
        assert_eq!(
            flag(r#"{"dangling":["foo"]}"#).unwrap_err().message(),
            "invalid filter 'dangling=[foo]'"
        );
    }

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("web", "my-web-1", true),
            ("^web$", "web", true),
            ("^web$", "web1", false),
            ("^/?web", "web1", true),
            ("w.b", "web", true),
            ("^a.*z$", "abcz", true),
            ("^(a|bc)+$", "abca", true),
            ("^(a|bc)+$", "abxa", false),
            ("x|y", "zy", true),
            ("[0-9]$", "web-3", true),
            ("[^0-9]$", "web-3", false),
            (r"web\.1", "web.1", true),
            (r"web\.1", "webx1", false),
            (r"\d+", "a12", true),
            ("(", "(", false),
            ("*a", "a", false),
            ("^$", "", true),
            ("(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", false),
        ] {
            assert_eq!(pattern::matches(pattern, text), want, "{pattern} on {text}");
        }
    }
}
