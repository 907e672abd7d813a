//! What follows when a container's process ends: record, network, restart policy, removal, waiters.

use super::wait::Moment;
use super::{Exit, Record, State, restart, table::Slot};
use crate::{Engine, supervisor};
use std::sync::Arc;

/// A run that shows that its configuration works: it ended well, or it was stopped after it had run for a while and was not unhealthy.
fn is_good(exit: &Exit, stopped_by_user: bool, health: Option<&super::Health>) -> bool {
    let ran_ns = exit.finished_at_ns - exit.started_at_ns;
    let unhealthy = health.is_some_and(|health| health.status == "unhealthy");
    exit.code == 0
        || (stopped_by_user && !unhealthy && !exit.oom_killed && ran_ns >= 10_000_000_000)
}

impl Engine {
    /// Waits for the end of the present run in the background.
    pub(crate) fn watch(&self, slot: Arc<Slot>, handle: supervisor::Handle) {
        let engine = self.clone();
        tokio::spawn(async move {
            let exit = handle.exited().await;
            if engine.is_closing() {
                // The next daemon finds the exit on disk.
                return;
            }
            let _guard = slot.lock().await;
            engine.exited(&slot, exit).await;
        });
    }

    /// The one place where a run ends. The caller holds the lock.
    pub(crate) async fn exited(&self, slot: &Arc<Slot>, exit: gantry_runtime::proto::Exit) {
        let record = slot.record();
        let Some(process) = record.state.process() else {
            return;
        };
        let started_at_ns = process.started_at_ns;
        let exit = Exit {
            code: exit.code,
            oom_killed: exit.oom_killed,
            error: if exit.lost {
                super::adopt::SUPERVISOR_LOST.to_owned()
            } else {
                String::new()
            },
            started_at_ns,
            finished_at_ns: exit.finished_at_ns,
            memory_peak: exit.memory_peak,
        };
        if let Some(health) = slot.live().health.take() {
            health.abort();
        }
        let (restarting, unhealthy) = {
            let mut live = slot.live();
            (
                std::mem::take(&mut live.restarting),
                std::mem::take(&mut live.unhealthy),
            )
        };
        let next = if restarting {
            None
        } else {
            self.after_exit(slot, &record, &exit, unhealthy)
        };
        let removes = record.host_config.auto_remove && next.is_none() && !restarting;
        let mut ended: Record = (*record).clone();
        ended.endpoints.clear();
        ended.ports.clear();
        if is_good(&exit, record.stopped_by_user, record.health.as_ref()) {
            ended.good_at_ns = exit.finished_at_ns;
        }
        ended.state = match next {
            Some(pause) => {
                ended.restart_count += 1;
                let next_at_ns =
                    crate::events::now_ns() + i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX);
                State::Restarting {
                    exit: exit.clone(),
                    next_at_ns,
                }
            }
            None => State::Exited(exit.clone()),
        };
        // Shown and told first: how it ended is on disk already (exit.json), the record may take its time. With auto-remove
        // nothing is written, because the removal is.
        if removes {
            slot.set(ended);
        } else {
            let saved = self.save(slot, ended);
            tokio::spawn(async move {
                if let Err(error) = saved.await {
                    tracing::error!(error = %error.chain(), "the end of a container could not be stored");
                }
            });
        }
        self.say_died(&record, &exit);
        Moment::note_exit(slot.moment(), exit.code, None);
        self.release(&record);
        self.drop_shared_memory(&record);
        self.volumes_deactivate(&record).await;
        if let Some(pause) = next {
            self.restart_later(slot.clone(), pause);
        } else if removes {
            let how = super::remove::Remove {
                force: true,
                volumes: true,
                link: false,
            };
            if let Err(error) = self.remove_locked(slot, how).await {
                tracing::error!(container.id = %record.id, error = %error.chain(), "auto-remove failed");
            }
        }
    }

    /// What the restart policy says: the pause before the next start.
    fn after_exit(
        &self,
        slot: &Slot,
        record: &Record,
        exit: &Exit,
        unhealthy: bool,
    ) -> Option<std::time::Duration> {
        if record.stopped_by_user {
            return None;
        }
        let always = gantry_docker_api::create::RestartPolicy {
            name: "always".into(),
            ..Default::default()
        };
        let policy = if unhealthy {
            &always
        } else {
            &record.host_config.restart_policy
        };
        let mut live = slot.live();
        let decision = restart::decide(
            policy,
            exit.code,
            record.restart_count,
            std::time::Duration::from_nanos(
                (exit.finished_at_ns - exit.started_at_ns).max(0) as u64
            ),
            live.pause,
        );
        live.pause = decision.unwrap_or_default();
        decision
    }

    pub(crate) fn say_died(&self, record: &Record, exit: &Exit) {
        if exit.oom_killed {
            self.say(record, "oom", &[]);
        }
        let duration = (exit.finished_at_ns - exit.started_at_ns).max(0) / 1_000_000_000;
        self.say(
            record,
            "die",
            &[
                ("exitCode", exit.code.to_string()),
                ("execDuration", duration.to_string()),
            ],
        );
    }

    /// Gives back addresses and ports.
    pub(crate) fn release(&self, record: &Record) {
        if record.endpoints.is_empty() {
            return;
        }
        if let Err(error) = self.0.networks.release(&record.id) {
            tracing::warn!(container.id = %record.id, error = %error.chain(), "releasing the network");
        }
        for endpoint in record.endpoints.values() {
            self.say_network(record, endpoint, "disconnect");
        }
    }

    pub(crate) fn say_network(
        &self,
        record: &Record,
        endpoint: &gantry_network::Endpoint,
        action: &str,
    ) {
        let attributes = [
            ("container", record.id.clone()),
            ("name", endpoint.network_name.clone()),
            ("type", "bridge".to_owned()),
        ];
        let attributes = attributes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        self.0
            .events
            .publish("network", action, endpoint.network_id.clone(), attributes);
    }
}
