//! `docker rename`.

use crate::Engine;
use gantry_base::Result;

impl Engine {
    pub async fn rename(&self, _r: &str, _new: &str) -> Result<()> {
        todo!()
    }
}
