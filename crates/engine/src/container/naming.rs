//! What containers are called in the networks that users made, and who answers when they ask: the directory of crate `network` is told
//! here, its server is started here.
//!
//! The record says it all, so that adopting, joining, leaving and renaming are the same call ([`Engine::announce`]).

use super::{Record, links, table::Slot};
use crate::{Engine, supervisor};
use gantry_base::Result;
use gantry_docker_api::create::EndpointSettings;
use gantry_network::dns::{self, Member, Membership, Sockets};
use gantry_network::files::{self, Resolver, SYSTEMD_RESOLV_CONF, is_stub};
use gantry_network::{Endpoint, Namespace};
use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::sync::Arc;

/// What a container may have made of its `/etc/hosts`; a larger one is left alone.
const HOSTS_LIMIT: u64 = 1 << 20;

/// What a container is called in a user-defined network, most telling first: name, aliases, short id, host name.
pub fn names_in_network(record: &Record, settings: &EndpointSettings) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let aliases = settings.aliases.iter().flatten().map(String::as_str);
    let short_id = record.id.get(..12).unwrap_or_default();
    let all = std::iter::once(record.name.as_str())
        .chain(aliases)
        .chain([short_id, record.config.hostname.as_str()]);
    for name in all {
        if !name.is_empty() && !names.iter().any(|have| have == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The default bridge has no names (Docker's rule since user-defined networks exist).
pub(crate) fn has_names(endpoint: &Endpoint) -> bool {
    endpoint.network_name != "bridge"
}

/// The host's own resolv.conf, or what is behind systemd-resolved's stub.
pub(crate) fn host_resolv() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    match read("/etc/resolv.conf") {
        stub if is_stub(&stub) => read(SYSTEMD_RESOLV_CONF),
        text => text,
    }
}

pub(crate) fn wanted_resolver(record: &Record) -> Resolver {
    let host = &record.host_config;
    Resolver {
        servers: host.dns.clone(),
        search: host.dns_search.clone(),
        options: host.dns_options.clone(),
    }
}

impl Engine {
    /// Tells the directory what the record says. A container without a user-defined network is not in it.
    pub(crate) fn announce(&self, record: &Record) {
        let directory = self.0.networks.directory();
        let endpoints = super::start::in_order(record);
        if !endpoints.iter().any(has_names) {
            directory.leave(&record.id);
            return;
        }
        let no_settings = EndpointSettings::default();
        let membership = |endpoint: &Endpoint| {
            let name = &endpoint.network_name;
            let settings = record.networks.get(name).unwrap_or(&no_settings);
            Membership {
                network_id: endpoint.network_id.clone(),
                network_name: name.clone(),
                addresses: endpoint.addresses().map(|(address, _)| address).collect(),
                names: names_in_network(record, settings),
                links: self.link_names(record, settings),
            }
        };
        // Whoever has one network that is not closed may ask the world.
        let forwards = endpoints.iter().any(|endpoint| {
            let network = self.0.networks.get(&endpoint.network_id);
            network.is_ok_and(|network| !network.internal)
        });
        let member = Member {
            networks: endpoints
                .iter()
                .filter(|e| has_names(e))
                .map(membership)
                .collect(),
            servers: files::servers(&host_resolv(), &wanted_resolver(record)),
            forwards,
        };
        directory.enter(&record.id, member);
    }

    /// Links of a user-defined network: what the container calls the others, and what they are called there.
    fn link_names(&self, record: &Record, settings: &EndpointSettings) -> BTreeMap<String, String> {
        let own = record.host_config.links.iter().flatten();
        let all = own.chain(settings.links.iter().flatten());
        let pairs = all.filter_map(|link| links::parse(link).ok());
        pairs
            .map(|(other, alias)| {
                let target = self.get(other);
                let name = target.map_or_else(|_| other.to_owned(), |t| t.name.clone());
                (alias.to_owned(), name)
            })
            .collect()
    }

    /// Answers the container's questions until its run ends. Once per run; a container without user-defined networks has no server.
    pub(crate) fn serve_names(&self, slot: &Arc<Slot>, handle: &supervisor::Handle) {
        let record = slot.record();
        if !record.endpoints.values().any(has_names)
            || std::mem::replace(&mut slot.live().names, true)
        {
            return;
        }
        let Some(process) = record.state.process() else {
            return;
        };
        let namespace = Namespace::of(process.pid);
        let (engine, slot, handle) = (self.clone(), slot.clone(), handle.clone());
        tokio::spawn(async move {
            let served = async {
                let [datagrams, listener] = handle.names().await?;
                let sockets = Sockets {
                    datagrams,
                    listener,
                };
                let directory = engine.0.networks.directory().clone();
                let serving =
                    dns::serve(directory, slot.id.clone(), sockets, namespace?.into_file());
                tokio::select! {
                    _ = handle.exited() => Ok(()),
                    ended = serving => ended.map(|never| match never {}).map_err(|e| {
                        gantry_base::Error::internal("serving names").with_source(e)
                    }),
                }
            };
            let served: Result<()> = served.await;
            slot.live().names = false;
            // A run that ended while it was asked for is no matter.
            if let Err(error) = served
                && slot.record().state.process().is_some()
            {
                tracing::warn!(container.id = %slot.id, error = %error.chain(), "the container finds no names of others");
            }
        });
    }

    /// A running container has joined a network: the line with its address in `/etc/hosts`, and `/etc/resolv.conf` when it has
    /// names of others from now on. What the container itself has written there stays.
    pub(crate) fn files_joined(&self, record: &Record, endpoint: &Endpoint) {
        let lines: String = endpoint
            .addresses()
            .map(|(address, _)| hosts_line(record, address))
            .collect();
        self.change_file(record, "hosts", |text| {
            let mut text = text.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text + &lines
        });
        if has_names(endpoint) {
            let ours = files::resolv_conf_of_names(&host_resolv(), &wanted_resolver(record));
            let before = files::resolv_conf(&host_resolv(), &wanted_resolver(record));
            // Only what is still as we wrote it is ours to replace.
            self.change_file(record, "resolv.conf", |text| {
                if text == before {
                    ours
                } else {
                    text.to_owned()
                }
            });
        }
    }

    /// The line of a network that was left goes.
    pub(crate) fn files_left(&self, record: &Record, endpoint: &Endpoint) {
        let lines: Vec<String> = endpoint
            .addresses()
            .map(|(address, _)| hosts_line(record, address))
            .collect();
        self.change_file(record, "hosts", |text| {
            let kept = text.split_inclusive('\n');
            kept.filter(|line| !lines.iter().any(|gone| gone == line))
                .collect()
        });
    }

    /// In place: the container has this very file mounted.
    fn change_file(&self, record: &Record, name: &str, change: impl FnOnce(&str) -> String) {
        let path = self.container_dir(&record.id).join(name);
        let changed = || -> std::io::Result<()> {
            let mut file = std::fs::File::options()
                .read(true)
                .write(true)
                .open(&path)?;
            if file.metadata()?.len() > HOSTS_LIMIT {
                return Err(std::io::Error::other("it is too large"));
            }
            let mut bytes = Vec::new();
            (&mut file).take(HOSTS_LIMIT).read_to_end(&mut bytes)?;
            let before = String::from_utf8_lossy(&bytes);
            let after = change(&before);
            if after != before {
                file.rewind()?;
                file.write_all(after.as_bytes())?;
                file.set_len(after.len() as u64)?;
            }
            Ok(())
        };
        if let Err(error) = changed() {
            tracing::warn!(container.id = %record.id, %error, file = name, "a container's file could not be brought up to date");
        }
    }
}

fn hosts_line(record: &Record, address: std::net::IpAddr) -> String {
    files::hosts_line(&record.config.hostname, &record.config.domainname, address)
}
