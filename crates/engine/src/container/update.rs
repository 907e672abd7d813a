//! `docker update`: new limits and restart policy, live.

use super::{Record, State, spec, validate};
use crate::Engine;
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::create::{HostConfig, UpdateContainer};

impl Engine {
    /// Answers warnings.
    pub async fn update(&self, r: &str, change: UpdateContainer) -> Result<Vec<String>> {
        let slot = self.0.containers.find(r)?;
        let engine = self.clone();
        Self::whole(async move {
            let _guard = slot.lock().await;
            let record = slot.record();
            let prefixed = |e: Error| {
                Error::new(
                    e.kind(),
                    format!("Cannot update container {}: {}", record.id, e.chain()),
                )
            };
            if matches!(record.state, State::Removing | State::Dead) {
                return Err(prefixed(Error::conflict(
                    "container is marked for removal and cannot be \"update\".",
                )));
            }
            change.refuse_fixed()?;
            let mut updated: Record = (*record).clone();
            apply(&mut updated.host_config, &change)?;
            let mut warnings = Vec::new();
            validate::resources(
                &mut updated.host_config,
                &engine.0.facts,
                true,
                &mut warnings,
            )?;
            if record.state.process().is_some() {
                let limits =
                    spec::resources(&updated.host_config, &std::collections::BTreeMap::new());
                let cgroup = engine.cgroup(&record)?;
                let outcome = tokio::task::spawn_blocking(move || cgroup.update(&limits)).await;
                outcome
                    .context(|| "updating limits".into())?
                    .context(|| "updating limits".into())
                    .map_err(prefixed)?;
            }
            updated.note_changes(&record);
            engine.save(&slot, updated).await?;
            engine.say(&record, "update", &[]);
            Ok(warnings)
        })
        .await
    }
}

/// Zero and `None` keep what is.
fn apply(host: &mut HostConfig, change: &UpdateContainer) -> Result<()> {
    if let Some(policy) = change
        .restart_policy
        .as_ref()
        .filter(|policy| !policy.name.is_empty())
    {
        validate::restart_policy(policy)?;
        if host.auto_remove && policy.name != "no" {
            return Err(Error::invalid(
                "Restart policy cannot be updated because AutoRemove is enabled for the container",
            ));
        }
        host.restart_policy = policy.clone();
    }
    if change.nano_cpus > 0 && host.cpu_period > 0 {
        return Err(Error::invalid(
            "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set",
        ));
    }
    if change.nano_cpus > 0 && host.cpu_quota > 0 {
        return Err(Error::invalid(
            "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set",
        ));
    }
    if change.cpu_period > 0 && host.nano_cpus > 0 {
        return Err(Error::invalid(
            "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
        ));
    }
    if change.cpu_quota > 0 && host.nano_cpus > 0 {
        return Err(Error::invalid(
            "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set",
        ));
    }
    if change.memory > 0
        && change.memory_swap == 0
        && host.memory_swap > 0
        && change.memory > host.memory_swap
    {
        return Err(Error::invalid(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    let numbers = [
        (&mut host.cpu_shares, change.cpu_shares),
        (&mut host.memory, change.memory),
        (&mut host.nano_cpus, change.nano_cpus),
        (&mut host.cpu_period, change.cpu_period),
        (&mut host.cpu_quota, change.cpu_quota),
        (&mut host.cpu_realtime_period, change.cpu_realtime_period),
        (&mut host.cpu_realtime_runtime, change.cpu_realtime_runtime),
        (&mut host.memory_reservation, change.memory_reservation),
        (&mut host.memory_swap, change.memory_swap),
    ];
    for (field, value) in numbers {
        if value != 0 {
            *field = value;
        }
    }
    if change.blkio_weight != 0 {
        host.blkio_weight = change.blkio_weight;
    }
    for (field, value) in [
        (&mut host.cpuset_cpus, &change.cpuset_cpus),
        (&mut host.cpuset_mems, &change.cpuset_mems),
    ] {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    if let Some(limit) = change.pids_limit {
        host.pids_limit = Some(limit);
    }
    Ok(())
}
