//! `gantry set`: ports, variables, labels, mounts and limits of a container that exists, in one step. It keeps its ID, name, files,
//! volumes and addresses; if it runs it is restarted, and with a configuration that does not start it goes back to the one it had.
//!
//! ```text
//! validate → record with the new configuration and `replacing` (one commit) → stop → start → `replacing` is gone
//! ```
//! A daemon that is killed in between finds `replacing` and goes on with the stop or the start ([`super::adopt`]).

use super::{Record, mounts, start, stop, table::Slot, validate};
use crate::Engine;
use gantry_base::{Error, Result};
use gantry_docker_api::create::{CreateContainer, PortBinding, RestartPolicy};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to change; what is not named stays.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Set {
    /// `NAME=VALUE` sets, `NAME` takes away.
    pub env: Vec<String>,
    /// `null` takes away.
    pub labels: BTreeMap<String, Option<String>>,
    /// By `80/tcp`: replaces what that port had; empty takes it away.
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// As `-v`; replaces what was mounted at that path.
    pub binds: Vec<String>,
    /// Paths whose mounts go.
    pub unmount: Vec<String>,
    pub memory: Option<i64>,
    pub nano_cpus: Option<i64>,
    pub pids_limit: Option<i64>,
    pub restart_policy: Option<RestartPolicy>,
    /// `None` keeps it.
    pub cmd: Option<Vec<String>>,
}

/// The request that would have made this container with the changes.
fn changed(record: &Record, set: Set) -> CreateContainer {
    let (mut config, mut host) = (record.config.clone(), record.host_config.clone());
    fn name(entry: &str) -> &str {
        entry.split('=').next().unwrap_or_default()
    }
    let env = config.env.get_or_insert_default();
    for entry in set.env {
        env.retain(|have| name(have) != name(&entry));
        if entry.contains('=') {
            env.push(entry);
        }
    }
    for (key, value) in set.labels {
        match value {
            Some(value) => config.labels.insert(key, value),
            None => config.labels.remove(&key),
        };
    }
    for (port, bindings) in set.port_bindings {
        if bindings.is_empty() {
            host.port_bindings.remove(&port);
        } else {
            config
                .exposed_ports
                .entry(port.clone())
                .or_insert_with(|| serde_json::json!({}));
            host.port_bindings.insert(port, Some(bindings));
        }
    }
    let target = |bind: &str| {
        let mut parts = bind.split(':');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        validate::clean_path(second.unwrap_or(first))
    };
    let gone: Vec<String> = set
        .unmount
        .iter()
        .map(|path| validate::clean_path(path))
        .chain(set.binds.iter().map(|bind| target(bind)))
        .collect();
    let binds = host.binds.get_or_insert_default();
    binds.retain(|bind| !gone.contains(&target(bind)));
    binds.extend(set.binds);
    host.mounts
        .retain(|mount| !gone.contains(&validate::clean_path(&mount.target)));
    if let Some(volumes) = &mut config.volumes {
        volumes.retain(|path, _| !gone.contains(&validate::clean_path(path)));
    }
    if let Some(memory) = set.memory {
        // The swap limit follows, as at create, unless it was set apart.
        if host.memory_swap == host.memory.saturating_mul(2) {
            host.memory_swap = 0;
        }
        host.memory = memory;
    }
    if let Some(cpus) = set.nano_cpus {
        host.nano_cpus = cpus;
    }
    if set.pids_limit.is_some() {
        host.pids_limit = set.pids_limit;
    }
    if let Some(policy) = set.restart_policy {
        host.restart_policy = policy;
    }
    if set.cmd.is_some() {
        config.cmd = set.cmd;
    }
    CreateContainer {
        config,
        host_config: host,
        endpoints: record.networks.clone(),
        ..CreateContainer::default()
    }
}

impl Engine {
    /// Answers warnings. A container that runs is restarted.
    pub async fn set(&self, r: &str, set: Set) -> Result<Vec<String>> {
        let slot = self.0.containers.find(r)?;
        let engine = self.clone();
        Self::whole(async move { engine.set_whole(&slot, set).await }).await
    }

    async fn set_whole(&self, slot: &Arc<Slot>, set: Set) -> Result<Vec<String>> {
        let (before, warnings) = {
            let _guard = slot.lock().await;
            let before = slot.record();
            if matches!(
                before.state,
                super::State::Removing | super::State::Dead | super::State::Creating
            ) {
                return Err(Error::conflict(format!(
                    "container {} is marked for removal",
                    before.id
                )));
            }
            let mut request = changed(&before, set);
            let warnings = validate::request(&mut request, &self.0.facts)?;
            validate::ports(&request.config, &request.host_config)?;
            let mut next: Record = (*before).clone();
            next.argv = request
                .config
                .entrypoint
                .iter()
                .chain(&request.config.cmd)
                .flatten()
                .cloned()
                .collect();
            let plan = mounts::plan(
                &request.config,
                &request.host_config,
                |r| self.get(r),
                |path| std::fs::exists(path).unwrap_or(false),
            )?;
            let mut claims = Vec::new();
            next.mounts = self.kept_and_new(&before, plan, &mut claims).await?;
            (next.config, next.host_config) = (request.config, request.host_config);
            next.note_changes(&before);
            next.replacing = before.state.process().is_some();
            self.save(slot, next).await?;
            self.say(&slot.record(), "update", &[]);
            if before.state.process().is_none() {
                return Ok(warnings);
            }
            (before, warnings)
        };
        let Err(error) = self.replace(slot).await else {
            return Ok(warnings);
        };
        self.go_back(slot, &before).await?;
        Err(Error::new(
            error.kind(),
            format!("{}; the container was put back as it was", error.chain()),
        ))
    }

    /// What stays mounted keeps its volume, anonymous ones too; what is new is made.
    async fn kept_and_new(
        &self,
        before: &Record,
        plan: mounts::Plan,
        claims: &mut Vec<crate::volumes::Claim>,
    ) -> Result<Vec<super::MountPoint>> {
        let snapshot = self
            .0
            .images
            .prepare(&before.image, &self.container_dir(&before.id))?;
        let mut all = Vec::with_capacity(plan.len());
        for mut mount in plan {
            let kept = before.mounts.iter().find(|have| {
                have.destination == mount.destination
                    && have.kind == mount.kind
                    && match mount.kind.as_str() {
                        "volume" => mount.name.is_none() || mount.name == have.name,
                        _ => mount.source == have.source,
                    }
            });
            if let Some(kept) = kept {
                (mount.name, mount.anonymous) = (kept.name.clone(), kept.anonymous);
                mount.source.clone_from(&kept.source);
                if let Some(image) = kept.options.get(super::mounts::option::IMAGE) {
                    let key = super::mounts::option::IMAGE.to_owned();
                    mount.options.insert(key, image.clone());
                }
            } else if mount.kind == "image" {
                self.find_image(&mut mount).await?;
            } else if mount.kind == "volume" {
                self.make_volume(&mut mount, &snapshot.lowers, claims)
                    .await?;
            }
            all.push(mount);
        }
        Ok(all)
    }

    /// Ends the run and begins the next one with what the record says now.
    pub(crate) async fn replace(&self, slot: &Arc<Slot>) -> Result<()> {
        let addresses = slot
            .record()
            .endpoints
            .iter()
            .map(|(name, endpoint)| (name.clone(), endpoint.address))
            .collect();
        slot.live().keep_addresses = addresses;
        self.stop_slot(slot, None, None, stop::Why::Restart).await?;
        let _guard = slot.lock().await;
        self.step("set.stopped").await;
        let record = slot.record();
        // Somebody else started or removed it meanwhile.
        if record.state.process().is_some() || !record.replacing {
            return Ok(());
        }
        self.start_locked(slot, start::Why::Policy).await
    }

    async fn go_back(&self, slot: &Arc<Slot>, before: &Record) -> Result<()> {
        let _guard = slot.lock().await;
        let now = slot.record();
        if now.state.process().is_some() {
            return Ok(());
        }
        let mut old: Record = before.clone();
        old.state = now.state.clone();
        (old.endpoints, old.ports) = (BTreeMap::new(), Vec::new());
        old.replacing = true;
        self.save(slot, old).await?;
        self.start_locked(slot, start::Why::Policy).await
    }
}
