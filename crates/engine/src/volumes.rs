//! Named and anonymous volumes of the `local` driver.
//!
//! ```text
//! D/volumes/<name>/_data      what containers see
//! db volumes/<name>           Record
//! ```
//! Who uses a volume is derived from the containers' records, never stored a second time.

use crate::Engine;
use crate::prune::Filters;
use gantry_base::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Marks a volume that nobody named; `prune` takes these first. Docker's own label.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// A volume as stored (`volumes/<name>`). `schema` = 1; a newer one is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub name: String,
    pub driver: String,
    pub created_at_ns: i64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `type`, `o`, `device`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// `POST /volumes/create`.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    /// Empty picks one of 64 hex digits and marks it anonymous.
    pub name: String,
    /// Empty means `local`.
    pub driver: String,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// `UsageData` of `GET /volumes/{name}` and `system df`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub size_bytes: u64,
    pub references: usize,
}

impl Record {
    pub fn anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_LABEL)
    }
}

impl Engine {
    /// By name.
    pub fn volumes(&self) -> Vec<Record> {
        todo!()
    }
    /// `NotFound`: `get x: no such volume`.
    pub fn volume(&self, _name: &str) -> Result<Record> {
        todo!()
    }
    /// `Mountpoint` of inspect, which is also what a container binds.
    pub fn volume_mountpoint(&self, _name: &str) -> PathBuf {
        todo!()
    }
    /// Idempotent: an existing volume of that name is the answer.
    pub async fn volume_create(&self, _request: CreateVolume) -> Result<Record> {
        todo!()
    }
    /// `Conflict`: `remove x: volume is in use - [id]`.
    pub async fn volume_remove(&self, _name: &str, _force: bool) -> Result<()> {
        todo!()
    }
    /// Anonymous ones without users, with filter `all=true` named ones too. Returns names and bytes freed.
    pub async fn volume_prune(&self, _filters: &Filters) -> Result<(Vec<String>, u64)> {
        todo!()
    }
    /// Every volume with its size and number of users, for `system df`.
    pub async fn volumes_usage(&self) -> Result<Vec<(Record, Usage)>> {
        todo!()
    }
    /// Before a start: makes what the volume's options ask for and returns the folder to bind into the container
    /// (for `o=bind` the device itself).
    pub async fn volume_activate(&self, _name: &str) -> Result<PathBuf> {
        todo!()
    }
    /// First use of an empty volume: copies what the image has at `destination` into it, with owner, mode and attributes.
    /// `lowers` are the image's layer folders, topmost first. A volume that holds anything stays as it is.
    pub async fn volume_populate(
        &self,
        _name: &str,
        _lowers: &[PathBuf],
        _destination: &Path,
    ) -> Result<()> {
        todo!()
    }
}
