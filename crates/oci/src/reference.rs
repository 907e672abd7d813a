//! Image names as Docker reads them: `busybox`, `host:5000/a/b:tag`, `name@sha256:…`.
//! Grammar: distribution reference; defaults as Docker's "familiar names" (docker.io, library/, latest).
//!
//! Written by hand instead of as one regular expression, because it is on the path of every request that
//! names an image; the tests hold it to the grammar.

use crate::Digest;
use std::fmt;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
/// distribution reference: `RepositoryNameTotalLengthMax`.
const PATH_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;
/// No valid reference is longer: domain, path, tag and digest together. Longer texts are refused unread.
const TEXT_LIMIT: usize = 4096;

/// A normalised image name. `Display` gives the familiar form (`busybox:latest`, `host:5000/a/b:tag`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `docker.io` when none was typed.
    pub domain: String,
    /// Path with `library/` added for docker.io's single names.
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// What a person may type where an image is meant. Distribution reference: `ParseAnyReference`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyReference {
    /// A full ID: 64 hex digits with or without `sha256:`.
    Id(Digest),
    /// A name; it may also be the beginning of an ID, which only a look at the images can tell.
    Name(Reference),
}

impl AnyReference {
    /// Fails like [`Reference::parse`].
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        if is_identifier(text) {
            let id = format!("sha256:{text}");
            return Ok(Self::Id(
                id.parse().expect("64 lower-case hex digits are a digest"),
            ));
        }
        if let Ok(id) = text.parse::<Digest>() {
            return Ok(Self::Id(id));
        }
        Reference::parse(text).map(Self::Name)
    }
}

impl Reference {
    /// Parses what a person typed. Without tag and digest both stay `None`; [`Reference::or_latest`] completes it.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        if text.len() > TEXT_LIMIT {
            return Err(invalid("invalid reference format"));
        }
        if is_identifier(text) {
            return Err(InvalidReference(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split(':').next().unwrap_or_default();
        // Docker compares with the text's lower case, so letters of any script count.
        if remote.chars().any(|c| c.to_lowercase().ne([c])) {
            return Err(InvalidReference(format!(
                "invalid reference format: repository name ({remote}) must be lowercase"
            )));
        }
        let (name, digest) = match remainder.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (remainder.as_str(), None),
        };
        // A path holds no colon, so the first one begins the tag.
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        if !path.split('/').all(is_path_component)
            || !tag.is_none_or(is_tag)
            || !digest.is_none_or(is_digest_shaped)
        {
            return Err(invalid("invalid reference format"));
        }
        let (domain, path) = if is_domain(&domain) {
            (domain, path.to_owned())
        } else if is_path_component(&domain) {
            // `a__b.c/d`: the first part looks like a host and is none; the grammar then reads it as path.
            (String::new(), format!("{domain}/{path}"))
        } else {
            return Err(invalid("invalid reference format"));
        };
        if path.len() > PATH_LIMIT {
            return Err(InvalidReference(format!(
                "repository name must not be more than {PATH_LIMIT} characters"
            )));
        }
        let digest = digest.map(parse_digest).transpose()?;
        Ok(Self {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// Completes a bare name with the tag `latest`.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The name without tag and digest, as people write it: `busybox`, `host:5000/a/b`.
    pub fn familiar_name(&self) -> String {
        if self.domain == DEFAULT_DOMAIN {
            match self.path.strip_prefix(OFFICIAL_PREFIX) {
                Some(single) if !single.contains('/') => single.to_owned(),
                _ => self.path.clone(),
            }
        } else {
            self.name()
        }
    }

    /// The full name without tag and digest: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        if self.domain.is_empty() {
            self.path.clone()
        } else {
            format!("{}/{}", self.domain, self.path)
        }
    }

    /// The full form, `docker.io/library/busybox:latest`. Unlike the familiar form it always parses back to the same value.
    pub fn canonical(&self) -> String {
        self.with_suffix(self.name())
    }

    /// Both name the same repository.
    pub fn same_repository(&self, other: &Self) -> bool {
        self.domain == other.domain && self.path == other.path
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.familiar_name()))
    }
}

impl std::str::FromStr for Reference {
    type Err = InvalidReference;
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        Self::parse(text)
    }
}

/// Docker's own words, e.g. `invalid reference format`, `invalid reference format: repository name (library/Foo) must be lowercase`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReference(pub String);

fn invalid(words: &str) -> InvalidReference {
    InvalidReference(words.to_owned())
}

/// Distribution reference: `splitDockerDomain`. What stands before the first slash is a host when it cannot be a path.
fn split_domain(text: &str) -> (String, String) {
    let (domain, remainder) = match text.split_once('/') {
        Some((first, rest)) if first == LEGACY_DEFAULT_DOMAIN => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(|c| c.to_lowercase().ne([c])) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    };
    let remainder = if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        format!("{OFFICIAL_PREFIX}{remainder}")
    } else {
        remainder.to_owned()
    };
    (domain.to_owned(), remainder)
}

/// A text that Docker reads as a bare image ID.
fn is_identifier(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `[a-z0-9]+((?:[._]|__|[-]+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let bytes = text.as_bytes();
    let mut rest = bytes;
    loop {
        let run = rest.iter().take_while(|b| alphanumeric(b)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|&&b| b == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

/// `[\w][\w.-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty()
        && text.len() <= TAG_LIMIT
        && word(text.as_bytes()[0])
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Dot-separated host components or a bracketed IPv6 address, and an optional port.
fn is_domain(text: &str) -> bool {
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return !address.is_empty()
            && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
            && (port.is_empty() || port.strip_prefix(':').is_some_and(digits));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(digits)
        && host.split('.').all(|component| {
            !component.is_empty()
                && !component.starts_with('-')
                && !component.ends_with('-')
                && component
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// `[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*[:][[:xdigit:]]{32,}`
fn is_digest_shaped(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && algorithm.split(['-', '_', '+', '.']).all(|part| {
            part.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
                && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

/// The words of Docker's digest library.
fn parse_digest(text: &str) -> Result<Digest, InvalidReference> {
    let (algorithm, hex) = text.split_once(':').unwrap_or((text, ""));
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(invalid("unsupported digest algorithm")),
    };
    if hex.len() != length {
        return Err(invalid("invalid checksum digest length"));
    }
    if algorithm != "sha256" {
        // The content store knows sha256 alone; every image tool in use writes nothing else.
        return Err(invalid("unsupported digest algorithm"));
    }
    text.parse()
        .map_err(|_| invalid("invalid checksum digest format"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(c: &str) -> String {
        c.repeat(64)
    }

    #[test]
    fn what_people_type() {
        let digest = format!("sha256:{}", hex("a"));
        for (typed, canonical, familiar) in [
            ("busybox", "docker.io/library/busybox", "busybox"),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox",
                "busybox",
            ),
            (
                "docker.io/library/busybox:x",
                "docker.io/library/busybox:x",
                "busybox:x",
            ),
            ("a/b", "docker.io/a/b", "a/b"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            (
                "host:5000/a/b:tag",
                "host:5000/a/b:tag",
                "host:5000/a/b:tag",
            ),
            ("localhost/a", "localhost/a", "localhost/a"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a", "127.0.0.1:5000/a"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("Foo/bar:Tag", "Foo/bar:Tag", "Foo/bar:Tag"),
            ("a__b.c/d", "a__b.c/d", "a__b.c/d"),
            (
                "a-b--c_d__e.f",
                "docker.io/library/a-b--c_d__e.f",
                "a-b--c_d__e.f",
            ),
            ("xn--n3h.com/a", "xn--n3h.com/a", "xn--n3h.com/a"),
        ] {
            let reference = Reference::parse(typed).unwrap_or_else(|e| panic!("{typed}: {e}"));
            assert_eq!(reference.canonical(), canonical, "{typed}");
            assert_eq!(reference.to_string(), familiar, "{typed}");
        }
        let both = Reference::parse(&format!("a:t@{digest}")).unwrap();
        assert_eq!(both.tag.as_deref(), Some("t"));
        assert_eq!(both.to_string(), format!("a:t@{digest}"));
        assert_eq!(
            Reference::parse("a").unwrap().or_latest().to_string(),
            "a:latest"
        );
        assert_eq!(both.clone().or_latest(), both);
    }

    #[test]
    fn refusals_in_dockers_words() {
        let long = "a".repeat(300);
        for (typed, words) in [
            ("", "invalid reference format"),
            (
                "Foo",
                "invalid reference format: repository name (library/Foo) must be lowercase",
            ),
            (
                "a/Foo:x",
                "invalid reference format: repository name (a/Foo) must be lowercase",
            ),
            (":x", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a::b", "invalid reference format"),
            ("a:b:c", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a-", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a/", "invalid reference format"),
            ("../a", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("http://a/b", "invalid reference format"),
            ("host:port/a", "invalid reference format"),
            ("a@sha256:abc", "invalid reference format"),
            ("a\0", "invalid reference format"),
            (
                &hex("a"),
                &format!(
                    "invalid repository name ({}), cannot specify 64-byte hexadecimal strings",
                    hex("a")
                ),
            ),
            (
                &long,
                "repository name must not be more than 255 characters",
            ),
            (
                &format!("a:{}", "t".repeat(129)),
                "invalid reference format",
            ),
            (
                &format!("a@sha256:{}", "b".repeat(40)),
                "invalid checksum digest length",
            ),
            (
                &format!("a@sha256:{}", hex("A")),
                "invalid checksum digest format",
            ),
            (
                &format!("a@md5:{}", "b".repeat(32)),
                "unsupported digest algorithm",
            ),
        ] {
            assert_eq!(
                Reference::parse(typed).unwrap_err().to_string(),
                words,
                "{typed:?}"
            );
        }
    }

    #[test]
    fn ids_are_not_names() {
        let id: Digest = format!("sha256:{}", hex("b")).parse().unwrap();
        assert_eq!(
            AnyReference::parse(&hex("b")),
            Ok(AnyReference::Id(id.clone()))
        );
        assert_eq!(
            AnyReference::parse(&id.to_string()),
            Ok(AnyReference::Id(id))
        );
        assert!(matches!(
            AnyReference::parse("bbbb"),
            Ok(AnyReference::Name(_))
        ));
    }

    proptest! {
        /// Nothing makes the parser panic, and the canonical form is a fixed point.
        #[test]
        fn canonical_parses_back(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.canonical()), Ok(reference));
            }
        }

        #[test]
        fn well_formed_names_parse(
            domain in prop::option::of("[a-z]{1,8}\\.[a-z]{2,3}(:[0-9]{1,5})?"),
            path in "[a-z0-9]{1,5}([._-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        ) {
            let mut text = match &domain { Some(d) => format!("{d}/{path}"), None => path.clone() };
            if let Some(tag) = &tag { text = format!("{text}:{tag}"); }
            let reference = Reference::parse(&text);
            prop_assert!(reference.is_ok(), "{}", text);
            let reference = reference.unwrap();
            prop_assert_eq!(&reference.tag, &tag);
            prop_assert_eq!(Reference::parse(&reference.canonical()), Ok(reference));
        }

        /// What is shown to people means the same when typed again, as long as a person typed it without the default domain.
        #[test]
        fn familiar_form_parses_back(path in "[a-z0-9]{1,6}(/[a-z0-9]{1,6}){0,2}") {
            prop_assume!(!path.starts_with("localhost/"));
            let reference = Reference::parse(&path).unwrap();
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
    }
}
