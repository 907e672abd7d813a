//! `docker update`: new limits and restart policy, live.

use crate::Engine;
use gantry_base::Result;
use gantry_docker_api::create::UpdateContainer;

impl Engine {
    /// Answers warnings.
    pub async fn update(&self, _r: &str, _change: UpdateContainer) -> Result<Vec<String>> {
        todo!()
    }
}
