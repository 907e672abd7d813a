//! `docker create`.

use crate::Engine;
use gantry_base::Result;
use gantry_docker_api::create::CreateContainer;

/// What `create` answers.
#[derive(Debug, Clone)]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Makes a container that can be started. Validates everything before it touches anything.
    pub async fn create(&self, _request: CreateContainer) -> Result<Created> {
        todo!()
    }
}
