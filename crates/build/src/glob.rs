//! Patterns of paths: Go's `filepath.Match` for sources of COPY, and `.dockerignore` with `**` and exceptions.

/// One pattern of one path component, or `**`.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// `**`: any number of components.
    Any,
    Name(Vec<char>),
}

/// Lines of a `.dockerignore`; the last one that matches decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ignore {
    rules: Vec<(bool, Vec<Part>)>,
}

/// Lines that are read at most.
const RULE_LIMIT: usize = 10_000;

impl Ignore {
    /// Reads the file. Bad patterns are an error that names them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self::of(lines)
    }

    pub fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut rules = Vec::new();
        for line in lines {
            let line = line.trim();
            let (excepted, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if pattern.is_empty() {
                if excepted {
                    return Err("illegal exclusion pattern: \"!\"".into());
                }
                continue;
            }
            if rules.len() == RULE_LIMIT {
                return Err(format!("more than {RULE_LIMIT} patterns"));
            }
            let parts = parts(pattern)?;
            if !parts.is_empty() {
                rules.push((excepted, parts));
            }
        }
        Ok(Self { rules })
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Something below an excluded folder may come back.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(excepted, _)| *excepted)
    }

    /// Whether a path (relative, `/` between) stays out: it or one of its parents is named, and no later line brings it back.
    pub fn excludes(&self, path: &str) -> bool {
        let names: Vec<Vec<char>> = path
            .split('/')
            .filter(|name| !name.is_empty())
            .map(|name| name.chars().collect())
            .collect();
        let mut out = false;
        for (excepted, parts) in &self.rules {
            if out == *excepted && (1..=names.len()).any(|depth| matches(parts, &names[..depth])) {
                out = !*excepted;
            }
        }
        out
    }
}

/// `filepath.Clean` and a split at slashes. Empty for the root itself.
fn parts(pattern: &str) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    for name in pattern.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(parts.pop()),
            "**" => {
                if parts.last() != Some(&Part::Any) {
                    parts.push(Part::Any);
                }
            }
            name => {
                check(name).map_err(|e| format!("{e} in {pattern:?}"))?;
                // `a**b` crosses no slash where we match names: moby's regular expression would; such patterns are rare
                // enough that one star's meaning is taken.
                parts.push(Part::Name(name.chars().collect()));
            }
        }
    }
    Ok(parts)
}

fn check(name: &str) -> Result<(), String> {
    let chars: Vec<char> = name.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '\\' => {
                at += 1;
                if at == chars.len() {
                    return Err("syntax error in pattern: it ends with a backslash".into());
                }
            }
            '[' => match class_end(&chars, at) {
                Some(end) => at = end,
                None => return Err("syntax error in pattern: [ without ]".into()),
            },
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Index of the `]` that ends the class at `at`.
fn class_end(pattern: &[char], at: usize) -> Option<usize> {
    let mut end = at + 1;
    if pattern.get(end) == Some(&'^') {
        end += 1;
    }
    let first = end;
    while let Some(c) = pattern.get(end) {
        match c {
            ']' if end > first => return Some(end),
            '\\' => end += 1,
            _ => {}
        }
        end += 1;
    }
    None
}

/// Whether the parts match all of the names. Runs in time of their product.
fn matches(parts: &[Part], names: &[Vec<char>]) -> bool {
    let mut reached = vec![false; names.len() + 1];
    reached[0] = true;
    for (index, part) in parts.iter().enumerate() {
        let mut next = vec![false; names.len() + 1];
        match part {
            Part::Any => {
                let mut on = false;
                for (at, slot) in next.iter_mut().enumerate() {
                    on |= reached[at];
                    *slot = on;
                }
                // At the end it stands for something: `a/**` is not `a`.
                if index + 1 == parts.len() && index > 0 {
                    let mut on = false;
                    for at in 0..=names.len() {
                        next[at] = on;
                        on |= reached[at];
                    }
                }
            }
            Part::Name(pattern) => {
                for at in 0..names.len() {
                    next[at + 1] = reached[at] && name_matches(pattern, &names[at]);
                }
            }
        }
        reached = next;
    }
    reached[names.len()]
}

/// `filepath.Match` of one component.
pub(crate) fn name_matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return true,
            None => None,
            Some(_) => name.get(n).and_then(|c| one(pattern, p, *c)),
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                n += 1;
            }
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Matches one character; the index behind what matched it.
fn one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match pattern[at] {
        '?' => Some(at + 1),
        '\\' => (pattern.get(at + 1) == Some(&c)).then_some(at + 2),
        '[' => {
            let end = class_end(pattern, at)?;
            let negated = pattern.get(at + 1) == Some(&'^');
            let class = &pattern[at + 1 + usize::from(negated)..end];
            (class_has(class, c) != negated).then_some(end + 1)
        }
        literal => (literal == c).then_some(at + 1),
    }
}

fn class_has(class: &[char], c: char) -> bool {
    let mut chars: Vec<(char, bool)> = Vec::new();
    let mut rest = class.iter();
    while let Some(&x) = rest.next() {
        match x {
            '\\' => chars.extend(rest.next().map(|&x| (x, true))),
            x => chars.push((x, false)),
        }
    }
    let mut at = 0;
    while at < chars.len() {
        let low = chars[at].0;
        if let [_, ('-', false), (high, _), ..] = chars[at..] {
            if (low..=high).contains(&c) {
                return true;
            }
            at += 3;
        } else {
            if low == c {
                return true;
            }
            at += 1;
        }
    }
    false
}

/// Whether a source of COPY has to be looked up.
pub(crate) fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignores(rules: &[&str], path: &str) -> bool {
        Ignore::of(rules.iter().copied()).unwrap().excludes(path)
    }

    /// Cases of moby's pattern matcher.
    #[test]
    fn dockerignore_is_gos() {
        for (rules, path, want) in [
            (&["**"][..], "file", true),
            (&["**"], "dir/file", true),
            (&["**/"], "file", true),
            (&["dir/**"], "dir/file", true),
            (&["dir/**"], "dir", false),
            (&["**/dir2/*"], "dir/dir2/file", true),
            (&["**/dir2/*"], "dir/dir2/dir2/file", true),
            (&["**/file"], "file", true),
            (&["**/file"], "dir/dir/file", true),
            (&["**/f*"], "dir/fx", true),
            (&["*.md", "!README.md"], "README.md", false),
            (&["*.md", "!README.md"], "a.md", true),
            (
                &["*.md", "!README*.md", "README-secret.md"],
                "README-secret.md",
                true,
            ),
            (&["/foo"], "foo", true),
            (&["foo/"], "foo/bar", true),
            (&["foo", "!foo/bar"], "foo/bar", false),
            (&["foo", "!foo/bar"], "foo/baz", true),
            (&["*"], "a/b", true),
            (&["*/b"], "a/b", true),
            (&["*/b"], "b", false),
            (&["a/../b"], "b", true),
            (&["."], "a", false),
            (&["file[0-9]"], "file5", true),
            (&["file[^0-9]"], "file5", false),
            (&["fi\\*e"], "fi*e", true),
            (&["fi\\*e"], "file", false),
            (&["f?le"], "file", true),
            (&["a/**/b"], "a/b", true),
            (&["a/**/b"], "a/x/y/b", true),
            (&["  padded  "], "padded", true),
            (&["# no comment here"], "# no comment here", true),
        ] {
            assert_eq!(ignores(rules, path), want, "{rules:?} on {path}");
        }
        assert!(!Ignore::parse("# a\n#b\n").unwrap().excludes("#b"));
        assert!(Ignore::of(["["].into_iter()).is_err());
        assert!(Ignore::of(["!"].into_iter()).is_err());
        assert!(Ignore::of(["a\\"].into_iter()).is_err());
    }

    #[test]
    fn a_nasty_pattern_ends_soon() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!ignores(&[&pattern], &"a".repeat(200)));
        let pattern = "**/".repeat(60) + "x";
        assert!(!ignores(&[&pattern], &"a/".repeat(200)));
    }
}
