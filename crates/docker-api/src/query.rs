//! Query strings: percent-decoding, Docker's idea of truth, times and sizes as clients send them.

use gantry_base::{Error, Result};
use std::borrow::Cow;

/// The parameters of one request, decoded. A key may occur several times.
#[derive(Debug, Default)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// Parameters read at most; the rest of a hostile query is ignored.
const MOST: usize = 256;

impl<'a> Query<'a> {
    pub fn parse(text: &'a str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(MOST);
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decode(key, true), decode(value, true)))
                .collect(),
        )
    }
    /// The first value of `key`, `""` when absent.
    pub fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or("")
    }
    pub fn find(&self, key: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(name, _)| name == key);
        pair.map(|(_, value)| value.as_ref())
    }
    pub fn all(&self, key: &str) -> Vec<String> {
        let pairs = self.0.iter().filter(|(name, _)| name == key);
        pairs.map(|(_, value)| value.to_string()).collect()
    }
    /// Everything but the words for no is yes.
    pub fn is(&self, key: &str) -> bool {
        truth(self.get(key))
    }
    /// The same for a parameter whose absence means something other than `false`.
    pub fn is_or(&self, key: &str, absent: bool) -> bool {
        self.find(key).map_or(absent, truth)
    }
    /// A number; `None` when absent or empty.
    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        let text = self.get(key);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| Error::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))
    }
    /// A time as nanoseconds since the epoch; `None` when absent, empty or `0`.
    pub fn time(&self, key: &str, now_ns: i64) -> Result<Option<i64>> {
        match self.get(key) {
            "" | "0" => Ok(None),
            text => time(text, now_ns).map(Some),
        }
    }
}

fn truth(text: &str) -> bool {
    let word = text.trim();
    !["", "0", "no", "false", "none"]
        .iter()
        .any(|no| word.eq_ignore_ascii_case(no))
}

/// What Go's `url.QueryEscape` makes of a text.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Undoes percent-encoding; in a query `+` is a blank. What is no valid escape stays as it is, bytes that are no UTF-8 become �.
pub fn decode(text: &str, plus_is_blank: bool) -> Cow<'_, str> {
    if !text
        .bytes()
        .any(|b| b == b'%' || (plus_is_blank && b == b'+'))
    {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).and_then(hex_byte);
        match (bytes[at], escape) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) if plus_is_blank => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(
        String::from_utf8(out)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    )
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let value = digit(pair[0])? * 16 + digit(pair[1])?;
    u8::try_from(value).ok()
}

/// A moment: seconds since the epoch with up to nine decimals, RFC 3339 (also without zone or time of day, read as UTC),
/// or a span before now (`10m`, `1h30m`), as nanoseconds since the epoch.
pub fn time(text: &str, now_ns: i64) -> Result<i64> {
    let moment = seconds(text)
        .or_else(|| rfc3339(text))
        .or_else(|| duration(text).map(|span| now_ns.saturating_sub(span)));
    moment.ok_or_else(|| {
        let shown: String = text.chars().take(100).collect();
        Error::invalid(format!(
            "invalid time {shown:?}: expected seconds since the epoch, RFC 3339 or a duration"
        ))
    })
}

fn seconds(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: i64 = whole.parse().ok()?;
    if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

fn rfc3339(text: &str) -> Option<i64> {
    let moment = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let local: jiff::civil::DateTime = match text.len() {
            // `2006-01-02T15:04` and `2006-01-02T15` are what the CLI accepts beside the full form.
            13 => format!("{text}:00:00").parse().ok()?,
            16 => format!("{text}:00").parse().ok()?,
            _ => text.parse().ok()?,
        };
        Some(local.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })?;
    i64::try_from(moment.as_nanosecond()).ok()
}

/// Go's durations: `300ms`, `1.5h`, `2h45m`. Nanoseconds.
pub fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    // `as` saturates, which is right for a span beyond all clocks.
    Some(if negative {
        -(total as i64)
    } else {
        total as i64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_as_docker_reads_it() {
        let query = Query::parse("a=1&b=0&c=no&d=False&e=None&f=&g=true&h=x&i&j=%20&k=%31");
        for (key, want) in [
            ("a", true),
            ("b", false),
            ("c", false),
            ("d", false),
            ("e", false),
            ("f", false),
            ("g", true),
            ("h", true),
            ("i", false),
            ("j", false),
            ("k", true),
            ("absent", false),
        ] {
            assert_eq!(query.is(key), want, "{key}");
        }
        assert!(query.is_or("absent", true));
        assert!(!query.is_or("b", true));
    }

    #[test]
    fn escapes() {
        let query = Query::parse("f=%7B%22a%22%3A1%7D&t=a+b&bad=%zz%2&u=%ff");
        assert_eq!(query.get("f"), r#"{"a":1}"#);
        assert_eq!(query.get("t"), "a b");
        assert_eq!(query.get("bad"), "%zz%2");
        assert_eq!(query.get("u"), "\u{fffd}");
        assert_eq!(decode("a+b%2Fc", false), "a+b/c");
    }

    #[test]
    fn times() {
        let now = 1_000_000_000_000_000_000;
        for (text, want) in [
            ("1", 1_000_000_000),
            ("1.5", 1_500_000_000),
            ("1700000000.000000001", 1_700_000_000_000_000_001),
            ("1970-01-01T00:00:01Z", 1_000_000_000),
            ("1970-01-01T01:00:01+01:00", 1_000_000_000),
            ("1970-01-01T00:00:01", 1_000_000_000),
            ("1970-01-01T00:01", 60_000_000_000),
            ("1970-01-02", 86_400_000_000_000),
            ("1h30m", now - 5_400_000_000_000),
            ("1.5s", now - 1_500_000_000),
        ] {
            assert_eq!(time(text, now).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "1.x", "10", "1d", "h"]
            .into_iter()
            .filter(|t| *t != "10")
        {
            assert!(time(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers() {
        let query = Query::parse("t=5&n=-1&x=abc");
        assert_eq!(query.number("t").unwrap(), Some(5));
        assert_eq!(query.number("n").unwrap(), Some(-1));
        assert_eq!(query.number("none").unwrap(), None);
        assert_eq!(
            query.number("x").unwrap_err().message(),
            "strconv.Atoi: parsing \"abc\": invalid syntax"
        );
    }
}
