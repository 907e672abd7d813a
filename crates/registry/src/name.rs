//! What a request may name: repositories, tags, digests. Parsed at the edge and trusted inside: each is safe as a file's name.
//!
//! Spec: distribution-spec "Pulling manifests" (grammar of `<name>` and `<reference>`), image-spec "Digests".

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use std::fmt;
use std::str::FromStr;

/// A repository's path: the spec says that clients may limit host and path to 255 bytes together.
const REPOSITORY_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// `a/b/c`: lower-case components, joined by single separators.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Repository(String);

impl Repository {
    /// `None` when the grammar does not allow it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= REPOSITORY_LIMIT && text.split('/').all(is_component);
        fits.then(|| Self(text.to_owned()))
    }
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(plain) || !bytes.last().copied().is_some_and(plain) {
        return false;
    }
    bytes.split(|c| plain(*c)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-')
    })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub(crate) fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    bytes.len() <= TAG_LIMIT
        && bytes.first().is_some_and(word)
        && bytes.iter().all(|c| word(c) || matches!(c, b'.' | b'-'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// `sha256:…` or `sha512:…` with all lower-case digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest {
    pub(crate) algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    pub(crate) fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }
    /// The digest from a file's name below a folder named by the algorithm.
    pub(crate) fn from_file_name(algorithm: Algorithm, hex: &str) -> Option<Self> {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (hex.len() == algorithm.digits() && hex.bytes().all(digit)).then(|| Self {
            algorithm,
            hex: hex.into(),
        })
    }
}

/// The text is not a digest that this registry keeps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a sha256 or sha512 digest")]
pub(crate) struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Algorithm::Sha256, hex),
            Some(("sha512", hex)) => (Algorithm::Sha512, hex),
            _ => return Err(InvalidDigest),
        };
        Self::from_file_name(algorithm, hex).ok_or(InvalidDigest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest in the making.
#[derive(Clone)]
pub(crate) struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm.name())
    }
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let context = Context::new(match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        });
        Self { algorithm, context }
    }
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }
    pub(crate) fn finish(self) -> Digest {
        Digest {
            algorithm: self.algorithm,
            hex: hex(self.context.finish().as_ref()).into(),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|d| char::from(DIGITS[usize::from(d)]))
        .collect()
}

/// The reference of a manifest in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.contains(':') {
            return text.parse().ok().map(Self::Digest);
        }
        is_tag(text).then(|| Self::Tag(text.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_follow_the_grammar() {
        for good in [
            "a",
            "a/b",
            "a.b/c_d/e__f",
            "a---b",
            "0/1",
            "a/".repeat(127).trim_end_matches('/'),
        ] {
            assert!(Repository::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "a._b",
            "_a",
            "a_",
            "-a",
            "..",
            "a/../b",
            "a b",
            "ä",
            "a.",
            &"a".repeat(256),
        ] {
            assert!(Repository::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["a", "_", "A.b-c_d", "1.0", &"x".repeat(128)] {
            assert!(is_tag(good), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "a b", "..", &"x".repeat(129)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }

    #[test]
    fn digests_are_whole_and_lower_case() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), empty);
        assert_eq!(
            empty.parse::<Digest>().unwrap(),
            Digest::of(Algorithm::Sha256, b"")
        );
        let long = Digest::of(Algorithm::Sha512, b"x").to_string();
        assert_eq!(long.len(), 7 + 128);
        assert!(long.parse::<Digest>().is_ok());
        for bad in [
            "",
            "sha256:",
            "md5:00",
            &empty.to_uppercase(),
            &empty[..70],
            "sha256:../../etc",
            &format!("{empty}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Reference::parse("sha256:00"), None);
        assert_eq!(
            Reference::parse("v1"),
            Some(Reference::Tag("v1".to_owned()))
        );
    }
}
