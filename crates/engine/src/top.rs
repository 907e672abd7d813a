//! `docker top`: the container's processes in the columns of `ps`, read from `/proc` (no `ps` needed on the host).

use crate::Engine;
use gantry_base::Result;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    pub titles: Vec<String>,
    pub processes: Vec<Vec<String>>,
}

impl Engine {
    /// `ps_args` as for `ps`; empty means `-ef`.
    pub async fn top(&self, _r: &str, _ps_args: &str) -> Result<Top> {
        todo!()
    }
}
