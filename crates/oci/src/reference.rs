//! Image names as Docker reads them: `busybox`, `host:5000/a/b:tag`, `name@sha256:…`.
//! Grammar: distribution reference; defaults as Docker's "familiar names" (docker.io, library/, latest).

use crate::Digest;

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

impl Reference {
    /// Parses what a person typed. Without tag and digest both stay `None`; [`Reference::or_latest`] completes it.
    pub fn parse(_text: &str) -> Result<Self, InvalidReference> {
        todo!("image helper")
    }
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }
}

/// Docker's own words, e.g. `invalid reference format`, `invalid reference format: repository name (library/Foo) must be lowercase`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReference(pub String);
