//! `container prune` and the sizes that `system df` and `ps -s` show.

use crate::Engine;
use gantry_base::Result;
use std::collections::BTreeMap;

/// Docker's filters after decoding: key → values.
pub type Filters = BTreeMap<String, Vec<String>>;

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerSize {
    /// The writable layer.
    pub rw: u64,
    /// Writable layer and image together.
    pub root_fs: u64,
}

impl Engine {
    /// Removes stopped containers (`until`, `label`, `label!`). Returns ids and bytes freed.
    pub async fn container_prune(&self, _filters: &Filters) -> Result<(Vec<String>, u64)> {
        todo!()
    }
    pub async fn container_size(&self, _r: &str) -> Result<ContainerSize> {
        todo!()
    }
}
