//! `docker start`.

use crate::Engine;
use gantry_base::Result;

impl Engine {
    /// Runs a container. `NotModified` when it runs already.
    pub async fn start(&self, _r: &str) -> Result<()> {
        todo!()
    }
}
