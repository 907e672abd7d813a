//! One error type for everything that a face must answer with a status code and one sentence.
//!
//! The texts are contract (scripts match Docker's words), so the message is written where the fact is
//! known, as a sentence, together with the [`ErrorKind`] from which every face derives its status.

use std::fmt;

/// What kind of failure this is. A closed set: HTTP status, Kubernetes reason and exit code are one table each from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong (HTTP 400).
    InvalidArgument,
    /// Credentials are missing or wrong (401).
    Unauthorized,
    /// A policy refuses it (403).
    Forbidden,
    /// The named thing does not exist (404).
    NotFound,
    /// The present state does not allow it: name taken, container running (409).
    Conflict,
    /// Already in the wanted state (304).
    NotModified,
    /// The kind of thing is known and not supported here (501).
    NotImplemented,
    /// A dependency cannot be reached now (503).
    Unavailable,
    /// A system failure or a bug (500).
    Internal,
}

/// A failure with its kind, one sentence, and the cause below it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }
    pub fn not_modified() -> Self {
        Self::new(ErrorKind::NotModified, "already in that state")
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
    /// The same failure with its cause attached.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// The sentence alone, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }
    /// The sentence and every cause, joined by `: `. This is what a user reads.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}

/// Turns a foreign error into ours at the place where the attempted action is known.
pub trait ResultExt<T> {
    /// `Internal`, with a text that says what was attempted and on what.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
    /// The same with a chosen kind.
    fn kind(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> ResultExt<T>
    for std::result::Result<T, E>
{
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.kind(ErrorKind::Internal, message)
    }
    fn kind(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(kind, message()).with_source(e))
    }
}
