//! Files in and out of containers: `cp`, `export`, `diff`, `commit`.

use crate::Engine;
use bytes::Bytes;
use gantry_base::Result;
use gantry_docker_api::create::ContainerConfig;
use gantry_oci::{Digest, Reference};
use serde::Serialize;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// What `docker cp` asks first (header `X-Docker-Container-Path-Stat`); serialises under Docker's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode` bits.
    pub mode: u32,
    /// RFC 3339 with nanoseconds.
    pub mtime: String,
    /// Where a symbolic link ends inside the container, absolute; empty for everything else.
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

/// `POST /commit`.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    pub reference: Option<Reference>,
    pub author: String,
    pub message: String,
    /// Freeze the container meanwhile.
    pub pause: bool,
    /// `--change`, Dockerfile instructions.
    pub changes: Vec<String>,
    /// The request's body, when it has one; fields it leaves empty come from the container.
    pub config: Option<ContainerConfig>,
}

/// A tar as it is made. Bounded: the maker waits for the reader. An error is the last item.
pub type TarStream = mpsc::Receiver<io::Result<Bytes>>;

impl Engine {
    pub async fn archive_stat(&self, _r: &str, _path: &str) -> Result<PathStat> {
        todo!()
    }
    pub async fn archive_get(&self, _r: &str, _path: &str) -> Result<(PathStat, TarStream)> {
        todo!()
    }
    /// Extracts `tar` (plain, gzip or zstd) into the folder `path`. `tar` is read on a blocking thread.
    pub async fn archive_put(
        &self,
        _r: &str,
        _path: &str,
        _tar: impl Read + Send + 'static,
        _no_overwrite_dir_non_dir: bool,
        _copy_uid_gid: bool,
    ) -> Result<()> {
        todo!()
    }
    pub async fn export(&self, _r: &str) -> Result<TarStream> {
        todo!()
    }
    /// 0 modified, 1 added, 2 deleted; sorted by path.
    pub async fn changes(&self, _r: &str) -> Result<Vec<(u8, String)>> {
        todo!()
    }
    pub async fn commit(&self, _r: &str, _what: Commit) -> Result<Digest> {
        todo!()
    }
}
