//! Label selectors of lists and watches: `app=web,tier in (a, b),!old`.
//!
//! Spec: Kubernetes, "Labels and Selectors".

use serde_json::Value;

/// Requirements of one selector.
pub const REQUIREMENTS_LIMIT: usize = 1000;

/// A parsed selector: every requirement must hold. The empty one chooses everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// What is wrong with it, as one sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        for part in parts(text)? {
            if requirements.len() == REQUIREMENTS_LIMIT {
                return Err(format!(
                    "a selector has at most {REQUIREMENTS_LIMIT} requirements"
                ));
            }
            requirements.push(requirement(part.trim())?);
        }
        Ok(Self(requirements))
    }

    /// Whether an object with these `labels` (its `metadata.labels`, or null) is chosen.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&requirement.key).and_then(Value::as_str);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match &requirement.test {
                Test::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Test::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::Greater(bound) => number().is_some_and(|n| n > *bound),
                Test::Less(bound) => number().is_some_and(|n| n < *bound),
            }
        })
    }
}

/// Splits at the commas that stand outside of parentheses.
fn parts(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' if !inside => inside = true,
            ')' if inside => inside = false,
            '(' | ')' => return Err(format!("unable to parse requirement: found '{letter}'")),
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("unable to parse requirement: found '', expected: ')'".into());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let new = |key: &str, test| {
        let key = key.trim();
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        if !word(name) || name.is_empty() || key.matches('/').count() > 1 {
            return Err(format!(
                "unable to parse requirement: invalid label key {key:?}"
            ));
        }
        Ok(Requirement {
            key: key.to_owned(),
            test,
        })
    };
    let value = |text: &str| {
        let text = text.trim();
        if word(text) {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "unable to parse requirement: invalid label value {text:?}"
            ))
        }
    };
    let number = |text: &str| {
        let text = text.trim();
        text.parse()
            .map_err(|_| format!("unable to parse requirement: {text:?} is not an integer"))
    };
    if let Some(list) = part.strip_suffix(')') {
        let Some((head, values)) = list.split_once('(') else {
            return Err("unable to parse requirement: found ')'".into());
        };
        let values = values
            .split(',')
            .map(value)
            .collect::<Result<Vec<_>, _>>()?;
        let words: Vec<&str> = head.split_whitespace().collect();
        return match words[..] {
            [key, "in"] => new(key, Test::In(values)),
            [key, "notin"] => new(key, Test::NotIn(values)),
            _ => Err(format!(
                "unable to parse requirement: found {head:?}, expected: in, notin"
            )),
        };
    }
    if let Some((key, right)) = part.split_once("!=") {
        return new(key, Test::NotIn(vec![value(right)?]));
    }
    if let Some((key, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return new(key, Test::In(vec![value(right)?]));
    }
    if let Some((key, right)) = part.split_once('>') {
        return new(key, Test::Greater(number(right)?));
    }
    if let Some((key, right)) = part.split_once('<') {
        return new(key, Test::Less(number(right)?));
    }
    match part.strip_prefix('!') {
        Some(key) => new(key, Test::Absent),
        None => new(part, Test::Exists),
    }
}

/// A label's value: at most 63 of letters, digits, `-`, `_`, `.`, with a letter or digit at both ends; or nothing.
fn word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric();
    bytes.len() <= 63
        && bytes.first().is_none_or(plain)
        && bytes.last().is_none_or(plain)
        && bytes.iter().all(|b| plain(b) || b"-_.".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_choose() {
        let labels = json!({"app": "web", "n": "5", "e/x": ""});
        for (text, chosen) in [
            ("", true),
            ("app=web", true),
            ("app==web,n=5", true),
            ("app = db", false),
            ("app!=db", true),
            ("none!=db", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("none notin (db)", true),
            ("app,e/x", true),
            ("!app", false),
            ("!none", true),
            ("n>4", true),
            ("n<5", false),
            ("app>1", false),
            ("e/x=", true),
        ] {
            let selector = Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(&labels), chosen, "{text}");
        }
        assert!(!Selector::parse("app").unwrap().matches(&Value::Null));
    }

    #[test]
    fn malformed_selectors_are_refused() {
        for text in [
            "a in (b",
            "a in b)",
            "a near (b)",
            "a=b c",
            "=x",
            ",",
            "a/b/c",
            "n>x",
            "a=-b",
            "((",
            "a=b,",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
        let long = vec!["a"; REQUIREMENTS_LIMIT + 1].join(",");
        assert!(Selector::parse(&long).is_err());
    }
}
