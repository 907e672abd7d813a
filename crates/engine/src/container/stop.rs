//! Signals to a running container: stop, kill, pause, unpause, terminal size.

use crate::Engine;
use gantry_base::Result;

impl Engine {
    /// Asks with `signal` (default: the container's stop signal), after `timeout` seconds kills. −1 waits for ever. `NotModified` when not running.
    pub async fn stop(&self, _r: &str, _signal: Option<&str>, _timeout: Option<i64>) -> Result<()> {
        todo!()
    }
    /// Sends a signal by name or number; empty is KILL.
    pub async fn kill(&self, _r: &str, _signal: &str) -> Result<()> {
        todo!()
    }
    pub async fn pause(&self, _r: &str) -> Result<()> {
        todo!()
    }
    pub async fn unpause(&self, _r: &str) -> Result<()> {
        todo!()
    }
    /// New terminal size.
    pub async fn resize(&self, _r: &str, _columns: u16, _rows: u16) -> Result<()> {
        todo!()
    }
}
