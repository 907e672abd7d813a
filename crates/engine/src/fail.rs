//! Named steps inside of operations at which a test can stop the world, as `kill -9` would.
//!
//! A step that a test has armed never returns; the test then drops the engine and opens another one on the same folders. In the
//! shipped program a step is nothing.

#[cfg(not(test))]
#[inline(always)]
pub(crate) async fn step(_name: &'static str) {}

#[cfg(test)]
pub(crate) use armed::{arm, step};

#[cfg(test)]
mod armed {
    use std::sync::{Arc, Mutex};
    use tokio::sync::Notify;

    static ARMED: Mutex<Option<(&'static str, Arc<Notify>)>> = Mutex::new(None);

    /// The next operation that comes to this step stays there; the answer tells when it has.
    pub(crate) fn arm(name: &'static str) -> Arc<Notify> {
        let reached = Arc::new(Notify::new());
        *ARMED.lock().unwrap() = Some((name, reached.clone()));
        reached
    }

    pub(crate) async fn step(name: &'static str) {
        let reached = {
            let mut armed = ARMED.lock().unwrap();
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
}
