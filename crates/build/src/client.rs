//! What a build needs from whoever asked for it: files, secrets, agents, credentials; and whom it tells of its progress.
//! Two implementations: the classic `/build` (everything came with the request) and a BuildKit session (asked for when needed).

use futures_util::future::BoxFuture;
use gantry_base::{Result, ResultExt};
use gantry_image::Credentials;
use gantry_oci::Digest;
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the build's own context.
pub const MAIN: &str = "context";

/// A folder with a context's files.
pub struct Folder {
    path: PathBuf,
    root: OwnedFd,
    _keeps: Box<dyn Any + Send + Sync>,
}

impl Folder {
    /// `keeps` removes the folder when it is dropped.
    pub fn open(path: PathBuf, keeps: Box<dyn Any + Send + Sync>) -> Result<Self> {
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .context(|| format!("opening the context {}", path.display()))?;
        Ok(Self {
            path,
            root,
            _keeps: keeps,
        })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A unix socket on this machine that leads to an SSH agent.
pub struct SshSocket {
    pub path: PathBuf,
    /// Ends the forwarding when it is dropped.
    pub keeps: Box<dyn Any + Send + Sync>,
}

/// Who asked.
pub trait Client: Send + Sync {
    /// The files of a context, [`MAIN`] or a named one. `wanted`: the paths that the build reads, `None` for all.
    fn context<'a>(
        &'a self,
        name: &'a str,
        wanted: Option<&'a [String]>,
    ) -> BoxFuture<'a, Result<Arc<Folder>>>;
    /// A secret's bytes; `None` when the client has none of that name.
    fn secret<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>>>;
    /// `None` when the client forwards no agent of that name.
    fn ssh<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<SshSocket>>>;
    /// For the registry `host`.
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Option<Credentials>>;
}

/// A step as it is shown.
#[derive(Debug, Clone)]
pub struct StepInfo {
    /// Counted from 0 over all steps of the build.
    pub id: usize,
    /// Steps of the build, without triggers.
    pub total: usize,
    /// The stage's name or number, and this step's place among its visible ones, for `[stage 2/5]`.
    pub stage: String,
    pub place: usize,
    pub places: usize,
    /// The instruction as written.
    pub text: String,
    pub line: usize,
    /// An `ONBUILD` trigger of the base image; shown with the step `id`, the `FROM`.
    pub trigger: bool,
    /// It does something with files; the others only write down.
    pub visible: bool,
}

/// How a step ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub cached: bool,
    /// The image as it would be after this step.
    pub image: Option<Digest>,
    pub error: Option<String>,
}

/// Hears of a build's steps, from several tasks.
pub trait Progress: Send + Sync {
    fn begin(&self, step: &StepInfo);
    /// `stream` 1 or 2. Waits while whoever listens is behind.
    fn log<'a>(&'a self, step: &'a StepInfo, stream: u8, bytes: &'a [u8]) -> BoxFuture<'a, ()>;
    fn end(&self, step: &StepInfo, outcome: &Outcome);
}
