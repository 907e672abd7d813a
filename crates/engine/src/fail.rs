//! Named steps inside of operations at which a test can stop the world, as `kill -9` would.
//!
//! A step that a test has armed never returns; the test then drops the engine and opens another one on the same folders. In the
//! shipped program a step is nothing.

use crate::Engine;

impl Engine {
    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) async fn step(&self, _name: &'static str) {}

    #[cfg(test)]
    pub(crate) async fn step(&self, name: &'static str) {
        let reached = {
            let mut armed = self.0.armed.lock().unwrap();
            match &*armed {
                Some((wanted, _)) if *wanted == name => armed.take().map(|(_, reached)| reached),
                _ => None,
            }
        };
        if let Some(reached) = reached {
            reached.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// The next operation that comes to this step stays there; the answer tells when it has.
    #[cfg(test)]
    pub(crate) fn arm(&self, name: &'static str) -> std::sync::Arc<tokio::sync::Notify> {
        let reached = std::sync::Arc::new(tokio::sync::Notify::new());
        *self.0.armed.lock().unwrap() = Some((name, reached.clone()));
        reached
    }
}

/// The armed step and who is told when it was reached.
#[cfg(test)]
pub(crate) type Armed =
    std::sync::Mutex<Option<(&'static str, std::sync::Arc<tokio::sync::Notify>)>>;
