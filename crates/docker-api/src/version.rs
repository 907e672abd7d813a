//! API versions: which ones a client may ask for, in its path prefix `/v1.xx`.

use gantry_base::{Error, Result};
use std::fmt;

/// `1.<minor>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u16);

/// The newest version spoken, also what a path without prefix means.
pub const CURRENT: ApiVersion = ApiVersion(50);
/// The oldest one.
pub const MINIMUM: ApiVersion = ApiVersion(24);

impl ApiVersion {
    pub fn at_least(self, minor: u16) -> bool {
        self.0 >= minor
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

/// Splits `/v1.41/containers/json` into the version and `/containers/json`. A path without a prefix speaks [`CURRENT`].
/// `InvalidArgument` in Docker's words when the version is outside [`MINIMUM`]..=[`CURRENT`].
pub fn negotiate(path: &str) -> Result<(ApiVersion, &str)> {
    let Some((text, rest)) = prefix(path) else {
        return Ok((CURRENT, path));
    };
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    // Docker compares number by number; what does not fit a number is far too new.
    let number = |part: &str| part.parse::<u16>().unwrap_or(u16::MAX);
    let asked = (
        number(major),
        number(minor.split('.').next().unwrap_or("0")),
    );
    if asked < (1, MINIMUM.0) {
        return Err(Error::invalid(format!(
            "client version {text} is too old. Minimum supported API version is {MINIMUM}, please upgrade your client to a newer version"
        )));
    }
    if asked > (1, CURRENT.0) {
        return Err(Error::invalid(format!(
            "client version {text} is too new. Maximum supported API version is {CURRENT}"
        )));
    }
    Ok((ApiVersion(asked.1), rest))
}

/// `/v` and digits and dots, up to the next slash.
fn prefix(path: &str) -> Option<(&str, &str)> {
    let after = path.strip_prefix("/v")?;
    let end = after.find('/')?;
    let (text, rest) = after.split_at(end);
    let is_version = text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() <= 16
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_version.then_some((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_or_refused_in_dockers_words() {
        let cases = [
            ("/v1.41/_ping", Ok((41, "/_ping"))),
            ("/v1.24/info", Ok((24, "/info"))),
            ("/v1.50/a/b", Ok((50, "/a/b"))),
            ("/_ping", Ok((50, "/_ping"))),
            ("/volumes", Ok((50, "/volumes"))),
            ("/version", Ok((50, "/version"))),
            ("/v1.41", Ok((50, "/v1.41"))),
            (
                "/v1.23/info",
                Err(
                    "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
                ),
            ),
            (
                "/v1.99/info",
                Err("client version 1.99 is too new. Maximum supported API version is 1.50"),
            ),
            (
                "/v2/info",
                Err("client version 2 is too new. Maximum supported API version is 1.50"),
            ),
            (
                "/v1.99999999/info",
                Err("client version 1.99999999 is too new. Maximum supported API version is 1.50"),
            ),
        ];
        for (path, want) in cases {
            match (negotiate(path), want) {
                (Ok((version, rest)), Ok(want)) => assert_eq!((version.0, rest), want, "{path}"),
                (Err(error), Err(want)) => assert_eq!(error.message(), want, "{path}"),
                (got, want) => panic!("{path}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
