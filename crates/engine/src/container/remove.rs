//! `docker rm`.

use crate::Engine;
use gantry_base::Result;

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct Remove {
    /// Kill it first if it runs.
    pub force: bool,
    /// Its anonymous volumes go too.
    pub volumes: bool,
    /// Only the legacy link of that name.
    pub link: bool,
}

impl Engine {
    pub async fn remove(&self, _r: &str, _how: Remove) -> Result<()> {
        todo!()
    }
}
