//! Health checks of running containers.
//!
//! [`next`] is the decision: status and streak after a probe. The task around it runs the probe as an exec.

use super::{Health, HealthProbe, Record, State, table::Slot};
use crate::Engine;
use gantry_docker_api::create::{ContainerConfig, ExecConfig};
use std::sync::Arc;
use std::time::Duration;

/// `true` or `false` on a container: whether it is restarted when it becomes unhealthy, whatever the daemon's default is.
pub const RESTART_LABEL: &str = "gantry.restart-unhealthy";

/// Kept of each probe's output.
const OUTPUT_LIMIT: usize = 4096;
/// Kept probes.
const LOG_LENGTH: usize = 5;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;

/// A container's check, completed with Docker's defaults.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checks {
    argv: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

/// `None`: the container has no check, or `NONE`.
pub(crate) fn checks(config: &ContainerConfig) -> Option<Checks> {
    let check = config.healthcheck.as_ref()?;
    let argv = match check.test.split_first()? {
        (kind, words) if kind == "CMD" && !words.is_empty() => words.to_vec(),
        (kind, words) if kind == "CMD-SHELL" && !words.is_empty() => {
            let shell = config.shell.clone().filter(|shell| !shell.is_empty());
            let mut argv = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
            argv.extend_from_slice(words);
            argv
        }
        _ => return None,
    };
    let duration = |ns: i64, default| match u64::try_from(ns) {
        Ok(0) | Err(_) => default,
        Ok(ns) => Duration::from_nanos(ns),
    };
    Some(Checks {
        argv,
        interval: duration(check.interval, DEFAULT_INTERVAL),
        timeout: duration(check.timeout, DEFAULT_TIMEOUT),
        start_period: duration(check.start_period, Duration::ZERO),
        start_interval: duration(check.start_interval, DEFAULT_START_INTERVAL),
        retries: u32::try_from(check.retries)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(DEFAULT_RETRIES),
    })
}

/// Status and streak after a probe that ended with `code`; `young`: the start period is not over.
fn next(health: &Health, code: i32, young: bool, retries: u32) -> (&'static str, u32) {
    if code == 0 {
        return ("healthy", 0);
    }
    let starting = health.status == "starting";
    if starting && young {
        return ("starting", health.failing_streak);
    }
    let streak = health.failing_streak + 1;
    match (streak >= retries, health.status.as_str()) {
        (true, _) => ("unhealthy", streak),
        (false, "unhealthy") => ("unhealthy", streak),
        (false, "healthy") => ("healthy", streak),
        (false, _) => ("starting", streak),
    }
}

/// Whether an unhealthy container is restarted. A label that is neither word changes nothing.
fn wanted(label: Option<&str>, default: bool) -> bool {
    match label {
        Some("true") => true,
        Some("false") => false,
        _ => default,
    }
}

impl Engine {
    /// Begins the checks of a running container, if it has any. Ended by the end of the run.
    pub(crate) fn watch_health(&self, slot: &Arc<Slot>) {
        let Some(checks) = checks(&slot.record().config) else {
            return;
        };
        let task = tokio::spawn(check(self.clone(), slot.clone(), checks));
        let before = slot.live().health.replace(task.abort_handle());
        if let Some(before) = before {
            before.abort();
        }
    }

    /// The label's word, or the daemon's default.
    pub(crate) fn restarts_unhealthy(&self, record: &Record) -> bool {
        let label = record.config.labels.get(RESTART_LABEL).map(String::as_str);
        wanted(label, self.0.settings.restart_unhealthy)
    }

    /// Ends the run as a stop does; [`Engine::exited`] then starts the next one as a restart policy would, with its pauses. A daemon that
    /// is killed in between finds a container that is still unhealthy, or one that ended so, and goes on from there.
    fn replace_unhealthy(&self, slot: &Arc<Slot>) {
        if std::mem::replace(&mut slot.live().unhealthy, true) {
            return;
        }
        let (engine, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move {
            let why = super::stop::Why::Unhealthy;
            if let Err(error) = engine.stop_slot(&slot, None, None, why).await {
                slot.live().unhealthy = false;
                tracing::warn!(container.id = %slot.id, error = %error.chain(), "restarting an unhealthy container");
            }
        });
    }

    async fn note_probe(
        &self,
        slot: &Arc<Slot>,
        probe: HealthProbe,
        young: bool,
        retries: u32,
    ) -> bool {
        let _guard = slot.lock().await;
        let mut record: Record = (*slot.record()).clone();
        let (State::Running(_), Some(health)) = (&record.state, &mut record.health) else {
            return false;
        };
        let (status, streak) = next(health, probe.exit_code, young, retries);
        let changed = health.status != status;
        let is_unhealthy = status == "unhealthy";
        health.status = status.into();
        health.failing_streak = streak;
        health.log.push(probe);
        let excess = health.log.len().saturating_sub(LOG_LENGTH);
        health.log.drain(..excess);
        // Only a change of status is worth a write; the probes since then live as long as the daemon.
        if changed {
            drop(self.save(slot, record));
            self.say(&slot.record(), format!("health_status: {status}"), &[]);
        } else {
            slot.set(record);
        }
        if is_unhealthy && self.restarts_unhealthy(&slot.record()) {
            self.replace_unhealthy(slot);
        }
        true
    }
}

async fn check(engine: Engine, slot: Arc<Slot>, checks: Checks) {
    let Some(started_at_ns) = slot
        .record()
        .state
        .process()
        .map(|process| process.started_at_ns)
    else {
        return;
    };
    loop {
        let record = slot.record();
        let age = Duration::from_nanos((crate::events::now_ns() - started_at_ns).max(0) as u64);
        let starting = record
            .health
            .as_ref()
            .is_some_and(|health| health.status == "starting");
        let young = age < checks.start_period;
        tokio::time::sleep(if starting && young {
            checks.start_interval
        } else {
            checks.interval
        })
        .await;
        match slot.record().state {
            State::Running(_) => {}
            State::Paused(_) => continue,
            _ => return,
        }
        let start_ns = crate::events::now_ns();
        let config = ExecConfig {
            cmd: Some(checks.argv.clone()),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecConfig::default()
        };
        let (exit_code, output) = match engine
            .exec_collect(&slot, config, OUTPUT_LIMIT, checks.timeout)
            .await
        {
            Ok(Some((code, text))) => (code, String::from_utf8_lossy(&text).into_owned()),
            Ok(None) => (
                -1,
                format!(
                    "Health check exceeded timeout ({})",
                    go_duration(checks.timeout)
                ),
            ),
            Err(error) => (-1, error.chain()),
        };
        let end_ns = crate::events::now_ns();
        let young =
            Duration::from_nanos((end_ns - started_at_ns).max(0) as u64) < checks.start_period;
        let probe = HealthProbe {
            start_ns,
            end_ns,
            exit_code,
            output,
        };
        if !engine.note_probe(&slot, probe, young, checks.retries).await {
            return;
        }
    }
}

/// As Go prints it: `1s`, `500ms`, `1m30s`.
fn go_duration(duration: Duration) -> String {
    let (minutes, rest) = (duration.as_secs() / 60, duration.as_secs_f64() % 60.0);
    match (minutes, duration.as_millis()) {
        (0, 0..1000) => format!("{}ms", duration.as_secs_f64() * 1000.0),
        (0, _) => format!("{rest}s"),
        (minutes, _) if minutes >= 60 => format!("{}h{}m{rest}s", minutes / 60, minutes % 60),
        (minutes, _) => format!("{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs probes with these exit codes and shows the status after each.
    fn story(codes: &[i32], young_for: usize) -> String {
        let mut health = Health {
            status: "starting".into(),
            failing_streak: 0,
            log: Vec::new(),
        };
        let mut seen = Vec::new();
        for (n, code) in codes.iter().enumerate() {
            let (status, streak) = next(&health, *code, n < young_for, 3);
            health.status = status.into();
            health.failing_streak = streak;
            seen.push(format!("{status}/{streak}"));
        }
        seen.join(" ")
    }

    #[test]
    fn three_failures_in_a_row_are_unhealthy_and_one_success_heals() {
        assert_eq!(
            story(&[0, 1, 1, 1, 0], 0),
            "healthy/0 healthy/1 healthy/2 unhealthy/3 healthy/0"
        );
        assert_eq!(story(&[1, 1, 1], 0), "starting/1 starting/2 unhealthy/3");
    }

    #[test]
    fn the_label_wins_over_the_default() {
        for (label, default, want) in [
            (None, false, false),
            (None, true, true),
            (Some("true"), false, true),
            (Some("false"), true, false),
            (Some("maybe"), true, true),
        ] {
            assert_eq!(wanted(label, default), want, "{label:?} {default}");
        }
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        assert_eq!(
            story(&[1, 1, 1, 1], 3),
            "starting/0 starting/0 starting/0 starting/1"
        );
        assert_eq!(story(&[1, 0, 1], 3), "starting/0 healthy/0 healthy/1");
    }

    #[test]
    fn tests_that_mean_no_check() {
        let config = |test: &[&str]| ContainerConfig {
            healthcheck: Some(gantry_oci::image::Healthcheck {
                test: test.iter().map(|word| (*word).to_owned()).collect(),
                ..Default::default()
            }),
            ..ContainerConfig::default()
        };
        for none in [&[][..], &["NONE"], &["CMD"], &["NONE", "x"]] {
            assert_eq!(checks(&config(none)), None, "{none:?}");
        }
        assert_eq!(
            checks(&config(&["CMD-SHELL", "a b"])).unwrap().argv,
            ["/bin/sh", "-c", "a b"]
        );
        assert_eq!(
            checks(&config(&["CMD", "a", "b"])).unwrap().argv,
            ["a", "b"]
        );
    }

    #[test]
    fn durations_as_go_prints_them() {
        for (ms, text) in [
            (500, "500ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (90_000, "1m30s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
