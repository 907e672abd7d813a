//! `docker restart` and the restart policies.

use super::{State, table::Slot};
use crate::Engine;
use gantry_base::Result;
use gantry_docker_api::create::RestartPolicy;
use std::sync::Arc;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A run this long was a success: the next pause is short again.
const STEADY: Duration = Duration::from_secs(10);

/// The pause before the next start, or `None`. `restarts` so far under this policy, `last` the previous pause.
pub(crate) fn decide(
    policy: &RestartPolicy,
    code: i32,
    restarts: u32,
    ran: Duration,
    last: Duration,
) -> Option<Duration> {
    let wanted = match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let most = policy.maximum_retry_count;
            code != 0 && (most == 0 || i64::from(restarts) < most)
        }
        _ => false,
    };
    if !wanted {
        return None;
    }
    if ran >= STEADY || last.is_zero() {
        return Some(FIRST_PAUSE);
    }
    Some((last * 2).min(LONGEST_PAUSE))
}

impl Engine {
    /// Stops if it runs, then starts.
    pub async fn restart(&self, r: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let signal = signal.map(super::validate::signal).transpose()?;
        let engine = self.clone();
        Self::whole(async move {
            // A container that removes itself must not do so between the two halves.
            engine
                .stop_slot(&slot, signal, timeout, super::stop::Why::Restart)
                .await?;
            let _guard = slot.lock().await;
            let record = slot.record();
            if record.state.process().is_none() {
                engine.start_locked(&slot, super::start::Why::Asked).await?;
            }
            engine.say(&slot.record(), "restart", &[]);
            Ok(())
        })
        .await
    }

    /// Starts again after the policy's pause, unless something else happened meanwhile.
    pub(crate) fn restart_later(&self, slot: Arc<Slot>, pause: Duration) {
        let engine = self.clone();
        tokio::spawn(async move {
            let State::Restarting { next_at_ns, .. } = slot.record().state else {
                return;
            };
            tokio::time::sleep(pause).await;
            if engine.is_closing() {
                return;
            }
            let _guard = slot.lock().await;
            let record = slot.record();
            // The same pause, not a later one.
            if !matches!(record.state, State::Restarting { next_at_ns: now, .. } if now == next_at_ns)
            {
                return;
            }
            if let Err(error) = engine.start_locked(&slot, super::start::Why::Policy).await {
                tracing::warn!(container.id = %record.id, error = %error.chain(), "restart policy: start failed");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> RestartPolicy {
        let (name, count) = text.split_once(':').unwrap_or((text, "0"));
        RestartPolicy {
            name: name.into(),
            maximum_retry_count: count.parse().unwrap(),
        }
    }

    #[test]
    fn which_exits_are_restarted() {
        for (text, code, restarts, wanted) in [
            ("no", 1, 0, false),
            ("", 1, 0, false),
            ("always", 0, 0, true),
            ("unless-stopped", 0, 99, true),
            ("on-failure", 0, 0, false),
            ("on-failure", 1, 1000, true),
            ("on-failure:3", 1, 2, true),
            ("on-failure:3", 1, 3, false),
            ("on-failure:3", 0, 0, false),
        ] {
            let decision = decide(
                &policy(text),
                code,
                restarts,
                Duration::ZERO,
                Duration::ZERO,
            );
            assert_eq!(
                decision.is_some(),
                wanted,
                "{text} code {code} after {restarts}"
            );
        }
    }

    #[test]
    fn pauses_double_to_a_minute_and_begin_anew_after_a_steady_run() {
        let mut last = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            last = decide(&policy("always"), 1, 0, Duration::from_secs(1), last).unwrap();
            pauses.push(last.as_millis());
        }
        assert_eq!(
            pauses,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000
            ]
        );
        let after = decide(&policy("always"), 1, 0, Duration::from_secs(10), last);
        assert_eq!(after, Some(FIRST_PAUSE));
    }
}
