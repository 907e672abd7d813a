//! `docker exec`: further processes in a running container. Kept in memory only, dropped with the container.

use super::attach::Attached;
use crate::Engine;
use gantry_base::Result;
use gantry_docker_api::create::ExecConfig;

/// How an exec is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecStart {
    pub detach: bool,
    pub tty: bool,
    /// Columns and rows.
    pub console_size: Option<(u16, u16)>,
}

/// What `exec inspect` shows.
#[derive(Debug, Clone)]
pub struct Exec {
    pub id: String,
    pub container_id: String,
    pub running: bool,
    /// `None` before it ended.
    pub exit_code: Option<i32>,
    /// 0 before it started.
    pub pid: i32,
    pub config: ExecConfig,
}

impl Engine {
    pub async fn exec_create(&self, _r: &str, _config: ExecConfig) -> Result<String> {
        todo!()
    }
    /// `None` when detached.
    pub async fn exec_start(&self, _id: &str, _how: ExecStart) -> Result<Option<Attached>> {
        todo!()
    }
    pub fn exec_get(&self, _id: &str) -> Result<Exec> {
        todo!()
    }
    pub async fn exec_resize(&self, _id: &str, _columns: u16, _rows: u16) -> Result<()> {
        todo!()
    }
}
