//! `docker restart` and the restart policies.

use crate::Engine;
use gantry_base::Result;

impl Engine {
    /// Stops if it runs, then starts.
    pub async fn restart(
        &self,
        _r: &str,
        _signal: Option<&str>,
        _timeout: Option<i64>,
    ) -> Result<()> {
        todo!()
    }
}
