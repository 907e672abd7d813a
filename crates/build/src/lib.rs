//! Dockerfile → stages → steps → layers → an image.
//!
//! ```text
//! bytes ──dockerfile::parse──▶ stages ──Builder::build──▶ the needed ones, side by side
//! step: key (digest of its inputs) ── in the cache? the layer ── being made by another build? wait ── else make it:
//!       RUN   a container of the engine's upon the layers below   ┐ overlay's upper folder ──seal──▶ layer
//!       COPY  files through a detached overlay                    ┘ (the folder itself, never unpacked again)
//! end:  layers, cache rows and image become visible in one commit
//! ```
//! Start with [`Builder::build`]; [`dockerfile`] is the language; `stage` gives each instruction its meaning; `tree` finds, hashes
//! and copies files; [`glob`] has the patterns. Not here: HTTP and BuildKit's protocol (crate `docker`), how a process is confined
//! (crate `engine`), where layers lie (crate `image`).
//!
//! Invariants
//! * A step's key holds everything that its layer depends on, by content: file system below, words, variables, user, folder, files.
//! * Nothing of a build is visible before its layers are whole and synced; what a killed build leaves is swept at the next start.
//! * Secrets exist as files of a run folder for as long as their step runs; no key, layer, history or log line holds their bytes.
//! * A step runs under the limits, the seccomp profile and the network rules of every other container.

#![forbid(unsafe_code)]

mod builder;
pub mod client;
pub mod dockerfile;
mod fetch;
pub mod glob;
mod mounts;
mod stage;
mod tree;

pub use builder::{Builder, Built, Request};
pub use client::{Client, Folder, Outcome, Progress, SshSocket, StepInfo};

use gantry_base::Error;
use std::fmt;

/// Why a build ended without an image.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    /// Line of the Dockerfile, from 1.
    pub line: Option<usize>,
    /// The command of a `RUN` and its exit code.
    pub command: Option<(String, i32)>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            line: None,
            command: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error.chain())
    }
}
