//! Signals to a running container: stop, kill, pause, unpause, terminal size.

use super::{Record, State, table::Slot, validate};
use crate::Engine;
use gantry_base::{Error, Result, ResultExt};
use std::sync::Arc;
use std::time::Duration;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// Docker's default for `stop`.
const STOP_TIMEOUT_S: i64 = 10;
/// After SIGKILL: a process that hangs in the kernel is reported, not waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Who wants it stopped; a stop by the user overrides the restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    /// Half of a restart.
    Restart,
    /// Its health checks failed, and it is to be started anew.
    Unhealthy,
}

impl Engine {
    /// Asks with `signal` (default: the container's stop signal), after `timeout` seconds kills. −1 waits for ever. `NotModified` when not running.
    pub async fn stop(&self, r: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let signal = signal
            .filter(|text| !text.is_empty())
            .map(validate::signal)
            .transpose()?;
        let engine = self.clone();
        Self::whole(async move {
            let runs = matches!(
                slot.record().state,
                State::Running(_) | State::Paused(_) | State::Restarting { .. }
            );
            if !runs {
                return Err(Error::not_modified());
            }
            engine.stop_slot(&slot, signal, timeout, Why::Asked).await?;
            engine.say(&slot.record(), "stop", &[]);
            Ok(())
        })
        .await
    }

    /// Ends the present run, if there is one. Does not hold the lock while it waits.
    pub(crate) async fn stop_slot(
        &self,
        slot: &Arc<Slot>,
        signal: Option<i32>,
        timeout: Option<i64>,
        why: Why,
    ) -> Result<()> {
        let mut moments = slot.moment().subscribe();
        let (handle, exits, record) = {
            let _guard = slot.lock().await;
            let record = slot.record();
            let exits = moments.borrow_and_update().exits;
            match &record.state {
                State::Restarting { exit, .. } => {
                    let mut stopped: Record = (*record).clone();
                    stopped.state = State::Exited(exit.clone());
                    stopped.stopped_by_user = why == Why::Asked;
                    let code = exit.code;
                    self.save(slot, stopped).await?;
                    // Who waits for the end of the next run: there is none.
                    super::wait::Moment::note_exit(slot.moment(), code, None);
                    return Ok(());
                }
                State::Running(_) => {}
                State::Paused(_) => self.thaw(&record)?,
                _ => return Ok(()),
            }
            let mut stopping: Record = (*record).clone();
            stopping.stopped_by_user |= why == Why::Asked;
            if let State::Paused(process) = &record.state {
                stopping.state = State::Running(process.clone());
            }
            slot.live().restarting = why == Why::Restart;
            drop(self.save(slot, stopping));
            (slot.live().handle.clone(), exits, record)
        };
        let handle =
            handle.ok_or_else(|| Error::internal("a running container without a supervisor"))?;
        let signal = match signal {
            Some(signal) => signal,
            None => stop_signal(&record)?,
        };
        let seconds = timeout
            .or(record.config.stop_timeout)
            .unwrap_or(STOP_TIMEOUT_S);
        let ended = async |moments: &mut tokio::sync::watch::Receiver<super::wait::Moment>| {
            let _ = moments
                .wait_for(|moment| moment.exits > exits || moment.removed)
                .await;
        };
        self.send(&handle, &record, signal).await;
        let in_time = match u64::try_from(seconds) {
            Err(_) => {
                ended(&mut moments).await;
                true
            }
            Ok(seconds) => {
                let patience = Duration::from_secs(seconds);
                tokio::time::timeout(patience, ended(&mut moments))
                    .await
                    .is_ok()
            }
        };
        if !in_time {
            self.send(&handle, &record, SIGKILL).await;
            if tokio::time::timeout(KILL_TIMEOUT, ended(&mut moments))
                .await
                .is_err()
            {
                return Err(Error::internal(format!(
                    "cannot stop container: {}: tried to kill container, but did not receive an exit event",
                    record.id
                )));
            }
        }
        Ok(())
    }

    async fn send(&self, handle: &crate::supervisor::Handle, record: &Record, signal: i32) {
        self.say(record, "kill", &[("signal", signal.to_string())]);
        if let Err(error) = handle.signal(signal).await {
            // It ended by itself in this moment.
            tracing::debug!(container.id = %record.id, error = %error.chain(), "signal not delivered");
        }
    }

    /// Sends a signal by name or number; empty is KILL.
    pub async fn kill(&self, r: &str, signal: &str) -> Result<()> {
        let signal = match signal {
            "" => SIGKILL,
            text => validate::signal(text)?,
        };
        let slot = self.0.containers.find(r)?;
        let mut moments = slot.moment().subscribe();
        let exits = moments.borrow_and_update().exits;
        {
            let _guard = slot.lock().await;
            let record = slot.record();
            match &record.state {
                State::Running(_) | State::Paused(_) => {}
                State::Restarting { exit, .. } => {
                    let mut stopped: Record = (*record).clone();
                    stopped.state = State::Exited(exit.clone());
                    stopped.stopped_by_user = true;
                    let code = exit.code;
                    self.save(&slot, stopped).await?;
                    super::wait::Moment::note_exit(slot.moment(), code, None);
                    return Ok(());
                }
                _ => {
                    return Err(Error::conflict(format!(
                        "cannot kill container: {r}: container {} is not running",
                        record.id
                    )));
                }
            }
            let handle = slot.live().handle.clone();
            let handle = handle
                .ok_or_else(|| Error::internal("a running container without a supervisor"))?;
            let ends = signal == SIGKILL || signal == stop_signal(&record)?;
            if ends {
                let mut stopping: Record = (*record).clone();
                stopping.stopped_by_user = true;
                drop(self.save(&slot, stopping));
            }
            self.send(&handle, &record, signal).await;
            if signal == SIGKILL && matches!(record.state, State::Paused(_)) {
                // A frozen process cannot die in cgroup v1.
                self.thaw(&record)?;
            }
        }
        if signal == SIGKILL {
            let ended = moments.wait_for(|moment| moment.exits > exits || moment.removed);
            let _ = tokio::time::timeout(KILL_TIMEOUT, ended).await;
        }
        Ok(())
    }

    pub async fn pause(&self, r: &str) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let _guard = slot.lock().await;
        let record = slot.record();
        let process = match &record.state {
            State::Running(process) => process.clone(),
            State::Paused(_) => {
                return Err(Error::conflict(format!(
                    "container {} is already paused",
                    record.id
                )));
            }
            State::Restarting { .. } => {
                return Err(Error::conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    record.id
                )));
            }
            _ => {
                return Err(Error::conflict(format!(
                    "container {} is not running",
                    record.id
                )));
            }
        };
        self.freeze(&record).await?;
        let mut paused: Record = (*record).clone();
        paused.state = State::Paused(process);
        self.save(&slot, paused).await?;
        self.say(&record, "pause", &[]);
        Ok(())
    }

    pub async fn unpause(&self, r: &str) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let _guard = slot.lock().await;
        let record = slot.record();
        let State::Paused(process) = &record.state else {
            return Err(Error::conflict(format!(
                "container {} is not paused",
                record.id
            )));
        };
        self.thaw(&record)?;
        let mut running: Record = (*record).clone();
        running.state = State::Running(process.clone());
        self.save(&slot, running).await?;
        self.say(&record, "unpause", &[]);
        Ok(())
    }

    /// New terminal size; before the start it is kept for it.
    pub async fn resize(&self, r: &str, columns: u16, rows: u16) -> Result<()> {
        let slot = self.0.containers.find(r)?;
        let record = slot.record();
        let handle = {
            let mut live = slot.live();
            live.console_size = Some((columns, rows));
            live.handle.clone()
        };
        if record.state.process().is_none() {
            return Err(Error::conflict(format!(
                "container {} is not running",
                record.id
            )));
        }
        let handle =
            handle.ok_or_else(|| Error::internal("a running container without a supervisor"))?;
        handle.resize(columns, rows).await?;
        self.say(
            &record,
            "resize",
            &[("height", rows.to_string()), ("width", columns.to_string())],
        );
        Ok(())
    }

    /// Freezes every process of the container and waits until the kernel says so.
    async fn freeze(&self, record: &Record) -> Result<()> {
        let cgroup = self.cgroup(record)?;
        tokio::task::spawn_blocking(move || cgroup.freeze())
            .await
            .context(|| "pausing".into())?
            .context(|| format!("cannot pause container {}", record.id))
    }

    pub(crate) fn thaw(&self, record: &Record) -> Result<()> {
        let thawed = self.cgroup(record)?.thaw();
        thawed.context(|| format!("cannot unpause container {}", record.id))
    }

    pub(crate) fn cgroup(&self, record: &Record) -> Result<gantry_runtime::cgroup::Cgroup> {
        let path = format!("/{}", record.cgroup_path(&self.0.settings.instance));
        gantry_runtime::cgroup::Cgroup::at(&path).context(|| format!("finding the cgroup {path}"))
    }
}

/// `STOPSIGNAL`, or TERM.
fn stop_signal(record: &Record) -> Result<i32> {
    match record.config.stop_signal.as_deref() {
        None | Some("") => Ok(SIGTERM),
        Some(text) => validate::signal(text),
    }
}
