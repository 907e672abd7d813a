//! `docker wait`.

use super::Record;
use crate::Engine;
use gantry_base::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitCondition {
    /// Answers at once when it does not run.
    NotRunning,
    NextExit,
    Removed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waited {
    pub code: i64,
    pub error: Option<String>,
}

/// What waiters look at: counts up, so that nobody misses anything between looking and sleeping.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moment {
    pub(crate) exits: u64,
    pub(crate) removed: bool,
    pub(crate) last: Waited,
}

impl Moment {
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            last: Waited {
                code: record.state.exit_code().into(),
                error: None,
            },
            ..Self::default()
        }
    }
}

impl Engine {
    /// The answer holds the place in line; the future ends when the condition comes about.
    pub async fn wait(
        &self,
        r: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = Waited> + Send + 'static> {
        let slot = self.0.containers.find(r)?;
        let _ = (slot, condition);
        Ok(async { todo!() })
    }
}
