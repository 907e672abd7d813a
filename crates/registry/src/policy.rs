//! What an operator decides about content: `S/policy.json`, read again when it changes.
//!
//! ```json
//! {
//!   "max_blob_bytes": 10737418240,
//!   "upload_expiry_seconds": 86400,
//!   "requests_per_second": 50, "burst": 200,
//!   "collect": { "every_seconds": 21600, "grace_seconds": 86400 },
//!   "repositories": [
//!     { "match": "team/*", "immutable_tags": ["v*"], "quota_bytes": 1073741824,
//!       "keep": [{ "tags": "nightly-*", "newest": 10, "younger_than_days": 30 }], "untagged_days": 7 }
//!   ],
//!   "mirrors": [{ "match": "hub/*", "upstream": "https://registry.example", "strip": "hub/", "fresh_seconds": 60 }]
//! }
//! ```
//! Every key may be left out. The first entry of `repositories` and of `mirrors` that matches decides. In a pattern `*` stands for
//! any text, `/` included.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A larger blob is refused when nothing else was decided.
const BLOB_LIMIT: u64 = 128 << 30;
const FILE_LIMIT: u64 = 4 << 20;
/// How soon a change of a file is seen.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub max_blob_bytes: Option<u64>,
    pub upload_expiry_seconds: Option<u64>,
    /// For each account, or each address of callers without one.
    pub requests_per_second: Option<f64>,
    pub burst: Option<f64>,
    pub collect: Collect,
    pub repositories: Vec<Rule>,
    pub mirrors: Vec<Upstream>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collect {
    /// 0 is never; `gantry registry collect` does it by hand.
    pub every_seconds: u64,
    /// What was claimed within this time stays: a push names it with a manifest soon.
    pub grace_seconds: u64,
}

impl Default for Collect {
    fn default() -> Self {
        Self {
            every_seconds: 6 * 3600,
            grace_seconds: 24 * 3600,
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    pub r#match: String,
    /// Patterns of tags that name one manifest for ever.
    pub immutable_tags: Vec<String>,
    /// All blobs of the repository together.
    pub quota_bytes: Option<u64>,
    pub keep: Vec<Keep>,
    /// Manifests without a tag go after so many days, unless an index or a subject that stays holds them.
    pub untagged_days: Option<f64>,
}

/// Tags that match are removed unless one of the two reasons to keep them holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    pub tags: String,
    pub newest: Option<usize>,
    pub younger_than_days: Option<f64>,
}

/// A registry whose content is fetched when it is asked for here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    pub r#match: String,
    pub upstream: String,
    /// Taken off the repository's name before upstream is asked.
    pub strip: String,
    /// Put before it.
    pub prefix: String,
    /// For so long a tag is not asked for again.
    pub fresh_seconds: Option<u64>,
    pub username: String,
    pub password: String,
    /// A PEM file of authorities that upstream's certificate may come from.
    pub authority: Option<PathBuf>,
}

impl Policy {
    pub(crate) fn blob_limit(&self) -> u64 {
        self.max_blob_bytes.unwrap_or(BLOB_LIMIT)
    }
    pub(crate) fn upload_expiry(&self) -> Duration {
        Duration::from_secs(self.upload_expiry_seconds.unwrap_or(24 * 3600))
    }
    pub(crate) fn rule(&self, repository: &str) -> Option<&Rule> {
        self.repositories
            .iter()
            .find(|rule| matches(&rule.r#match, repository))
    }
    pub(crate) fn is_immutable(&self, repository: &str, tag: &str) -> bool {
        self.rule(repository).is_some_and(|rule| {
            rule.immutable_tags
                .iter()
                .any(|pattern| matches(pattern, tag))
        })
    }
}

/// `*` stands for any text. Linear in the text for each star.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(mut part) = parts.next() else {
        return rest.is_empty();
    };
    for next in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        part = next;
    }
    rest.ends_with(part)
}

/// A JSON file that is read again when it changes. A change that cannot be read is refused in the log and the last one holds.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    path: PathBuf,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    looked: Instant,
    stamp: Stamp,
    value: Option<Arc<T>>,
}

type Stamp = Option<(SystemTime, u64, u64)>;

impl<T: serde::de::DeserializeOwned> Watched<T> {
    /// Fails when the file is there and cannot be read.
    pub(crate) fn open(path: PathBuf) -> Result<Self, String> {
        let stamp = stamp(&path);
        let value = read(&path)?.map(Arc::new);
        let state = State {
            looked: Instant::now(),
            stamp,
            value,
        };
        Ok(Self {
            path,
            state: Mutex::new(state),
        })
    }

    /// What the file says, or said when it could last be read; `None` when there never was one.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let now = stamp(&self.path);
            if now != state.stamp {
                state.stamp = now;
                match read(&self.path) {
                    Ok(Some(value)) => state.value = Some(Arc::new(value)),
                    Ok(None) => tracing::warn!(
                        "{} is gone; what it said holds until the registry is started anew",
                        self.path.display()
                    ),
                    Err(e) => tracing::error!("{e}; what it said before holds"),
                }
            }
        }
        state.value.clone()
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

/// `None` when there is no file.
pub(crate) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let text = crate::store::read_limited(path, FILE_LIMIT)
        .map_err(|e| format!("reading {}: {e}", path.display()))?;
    let Some(text) = text else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| format!("{} is not what the registry reads: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "a/b", true),
            ("team/*", "team/a/b", true),
            ("team/*", "team", false),
            ("*-dev", "x-dev", true),
            ("*-dev", "x-dev2", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("v1", "v1", true),
            ("v1", "v12", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_typo_is_refused_by_name() {
        let refused = serde_json::from_str::<Policy>(r#"{"repositorys": []}"#).unwrap_err();
        assert!(refused.to_string().contains("repositorys"));
    }
}
