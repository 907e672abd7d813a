//! `docker network connect` and `disconnect`.
//!
//! A container that does not run only has its wishes changed. For one that runs the record comes first when it joins and last when it
//! leaves: after a crash in between, adoption gives the container what its record says ([`Engine::rejoin`]).

use super::{Record, State, table::Slot, validate};
use crate::Engine;
use gantry_base::{Error, ErrorKind, Result};
use gantry_docker_api::create::EndpointSettings;
use gantry_network::{Endpoint, Namespace};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Networks that a container is in at most.
const NETWORKS: usize = 64;

impl Engine {
    pub async fn network_connect(
        &self,
        network: &str,
        container: &str,
        settings: EndpointSettings,
    ) -> Result<()> {
        self.with_both(network, container, |engine, slot, network| async move {
            engine.connect_locked(&slot, &network, settings).await
        })
        .await
    }

    /// Network and container found, the container locked and open to changes.
    async fn with_both<F, Done>(&self, network: &str, container: &str, act: F) -> Result<()>
    where
        F: FnOnce(Engine, Arc<Slot>, gantry_network::Record) -> Done + Send + 'static,
        Done: Future<Output = Result<()>> + Send,
    {
        let network = self.0.networks.get(network)?;
        let slot = self.0.containers.find(container)?;
        let engine = self.clone();
        Self::whole(async move {
            let _guard = slot.lock().await;
            may_change(&slot.record())?;
            act(engine, slot.clone(), network).await
        })
        .await
    }

    async fn connect_locked(
        &self,
        slot: &Arc<Slot>,
        network: &gantry_network::Record,
        settings: EndpointSettings,
    ) -> Result<()> {
        let record = slot.record();
        let mode = record.host_config.network_mode.as_str();
        if network.driver == "host" {
            return Err(Error::invalid(
                "cannot connect container to host network - container must be created in host network mode",
            ));
        }
        if mode == "none" || network.driver == "null" {
            return Err(Error::invalid(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode",
            ));
        }
        let wanted = BTreeMap::from([(network.name.clone(), settings.clone())]);
        validate::network(&record.config, &record.host_config, &wanted)?;
        let mut next: Record = (*record).clone();
        let Some(process) = record.state.process() else {
            // Docker replaces what was asked for before.
            next.networks.insert(network.name.clone(), settings);
            has_room(&next)?;
            return self.save(slot, next).await;
        };
        if record.endpoints.contains_key(&network.name) {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "endpoint with name {} already exists in network {}",
                    record.name, network.name
                ),
            ));
        }
        if settings.gw_priority != 0 {
            return Err(Error::invalid(format!(
                "GwPriority of network {} takes effect at a start: stop container {} first",
                network.name, record.name
            )));
        }
        let namespace = Namespace::of(process.pid)?;
        let endpoint = self.endpoint(&record.id, &network.name, &settings, None)?;
        next.networks.insert(network.name.clone(), settings);
        next.endpoints
            .insert(network.name.clone(), endpoint.clone());
        let joined = match has_room(&next) {
            Ok(()) => match self.save(slot, next).await {
                Ok(()) => self.0.networks.join(&namespace, &endpoint),
                refused => refused,
            },
            refused => refused,
        };
        if let Err(error) = joined {
            self.0.networks.disconnect(&record.id, &endpoint);
            self.save(slot, (*record).clone()).await?;
            return Err(error);
        }
        let record = slot.record();
        self.announce(&record);
        self.files_joined(&record, &endpoint);
        let handle = slot.live().handle.clone();
        if let Some(handle) = handle {
            self.serve_names(slot, &handle);
        }
        self.say_network(&record, &endpoint, "connect");
        Ok(())
    }

    /// What Docker forces here cannot come about: a network that a container is in stays.
    pub async fn network_disconnect(&self, network: &str, container: &str) -> Result<()> {
        self.with_both(network, container, |engine, slot, network| async move {
            engine.disconnect_locked(&slot, &network).await
        })
        .await
    }

    async fn disconnect_locked(
        &self,
        slot: &Arc<Slot>,
        network: &gantry_network::Record,
    ) -> Result<()> {
        let record = slot.record();
        if network.driver == "host" && record.host_config.network_mode == "host" {
            return Err(Error::invalid(
                "container cannot be disconnected from host network",
            ));
        }
        let mut next: Record = (*record).clone();
        let wished = next.networks.remove(&network.name).is_some();
        let endpoint = next.endpoints.remove(&network.name);
        if !wished && endpoint.is_none() {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "container {} is not connected to network {}",
                    record.id, network.name
                ),
            ));
        }
        let (Some(process), Some(endpoint)) = (record.state.process(), endpoint) else {
            return self.save(slot, next).await;
        };
        if !record.ports.is_empty()
            && super::start::in_order(&record)
                .first()
                .is_some_and(|first| first.network_id == network.id)
        {
            return Err(Error::invalid(format!(
                "container {} has its published ports in network {}; a running container cannot move them, stop it first",
                record.name, network.name
            )));
        }
        let others: Vec<Endpoint> = super::start::in_order(&next);
        let namespace = Namespace::of(process.pid)?;
        self.0.networks.leave(&namespace, &endpoint, &others)?;
        self.save(slot, next).await?;
        self.0.networks.disconnect(&record.id, &endpoint);
        self.announce(&slot.record());
        self.files_left(&record, &endpoint);
        self.say_network(&record, &endpoint, "disconnect");
        Ok(())
    }

    /// The address that a container gets in a network: the one it asked for, otherwise the one it `had` if that is free, or any.
    pub(crate) fn endpoint(
        &self,
        container: &str,
        network: &str,
        settings: &EndpointSettings,
        had: Option<std::net::Ipv4Addr>,
    ) -> Result<Endpoint> {
        let wanted = settings
            .ipam_config
            .as_ref()
            .and_then(|ipam| ipam.ipv4_address.parse().ok());
        let wanted6 = settings
            .ipam_config
            .as_ref()
            .and_then(|ipam| ipam.ipv6_address.parse().ok());
        let mac = match settings.mac_address.as_str() {
            "" => None,
            text => Some(validate::mac_address(text)?),
        };
        let networks = &self.0.networks;
        if let (Some(had), None) = (had, wanted)
            && let Ok(endpoint) = networks.connect(container, network, Some(had), wanted6, mac)
        {
            return Ok(endpoint);
        }
        networks.connect(container, network, wanted, wanted6, mac)
    }

    /// Finishes what a crash interrupted: networks that a running container joined after its start. The one it started with needs
    /// no look.
    pub(crate) fn rejoin(&self, record: &Record) {
        let Some(process) = record.state.process() else {
            return;
        };
        for endpoint in record.endpoints.values() {
            if endpoint.network_name == record.host_config.network_mode {
                continue;
            }
            let joined = Namespace::of(process.pid)
                .and_then(|namespace| self.0.networks.join(&namespace, endpoint));
            if let Err(error) = joined {
                tracing::warn!(container.id = %record.id, network = endpoint.network_name, error = %error.chain(), "joining a network again");
            }
        }
    }
}

fn may_change(record: &Record) -> Result<()> {
    match record.state {
        State::Removing | State::Dead | State::Creating => Err(Error::conflict(format!(
            "container {} is marked for removal and cannot be connected or disconnected to the network",
            record.id
        ))),
        _ => Ok(()),
    }
}

fn has_room(record: &Record) -> Result<()> {
    if record.networks.len() > NETWORKS {
        return Err(Error::invalid(format!(
            "a container can be in at most {NETWORKS} networks"
        )));
    }
    Ok(())
}
