//! `docker wait`.

use super::{Record, State};
use crate::Engine;
use gantry_base::Result;
use tokio::sync::watch;

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
    /// One more run has ended.
    pub(crate) fn note_exit(moment: &watch::Sender<Self>, code: i32, error: Option<String>) {
        moment.send_modify(|moment| {
            moment.exits += 1;
            moment.last = Waited {
                code: code.into(),
                error,
            };
        });
    }
    pub(crate) fn note_removed(moment: &watch::Sender<Self>) {
        moment.send_modify(|moment| moment.removed = true);
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
        // Looked at before the state, so that an exit in between counts.
        let mut moments = slot.moment().subscribe();
        let exits = moments.borrow().exits;
        let record = slot.record();
        let ended = match &record.state {
            State::Running(_) | State::Paused(_) | State::Restarting { .. } => None,
            // A removal began after the last exit was noted, and its record no longer says how that was.
            State::Removing | State::Dead => Some(moments.borrow().last.clone()),
            // The record is the truth: it shows an exit a moment before the waiters are woken.
            State::Creating | State::Created { .. } | State::Exited(_) => {
                Some(Moment::of(&record).last)
            }
        };
        Ok(async move {
            if let Some(waited) = ended.filter(|_| condition == WaitCondition::NotRunning) {
                return waited;
            }
            let met = move |moment: &Moment| match condition {
                WaitCondition::NotRunning | WaitCondition::NextExit => {
                    moment.exits > exits || moment.removed
                }
                WaitCondition::Removed => moment.removed,
            };
            // An error says that the container is gone from memory: it was removed.
            let _ = moments.wait_for(met).await;
            moments.borrow().last.clone()
        })
    }
}
