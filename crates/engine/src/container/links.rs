//! Legacy links (`--link other:alias`): the other container's address under a name in `/etc/hosts`, and in variables.
//!
//! The record keeps them as Docker shows them, `/other:/self/alias`. They are resolved at each start.

use super::Record;
use crate::Engine;
use gantry_base::{Error, Result};
use gantry_docker_api::create::HostConfig;
use gantry_network::Endpoint;
use std::sync::Arc;

/// A container may have so many links.
const LINKS_LIMIT: usize = 256;

/// What a container gets of those that it is linked to.
pub(crate) struct Linked {
    /// Names and address, for `/etc/hosts`.
    pub(crate) hosts: Vec<(String, String)>,
    pub(crate) env: Vec<String>,
}

/// `other:alias`, `other`, `/other:/self/alias` → other and alias.
pub(super) fn parse(link: &str) -> Result<(&str, &str)> {
    let (other, alias) = link.split_once(':').unwrap_or((link, link));
    let other = other.trim_start_matches('/');
    let alias = alias.rsplit('/').next().unwrap_or_default();
    if other.is_empty() || alias.is_empty() || alias.contains([':', '\n', ' ', '\t', '=', '\0']) {
        return Err(Error::invalid(format!("bad format for links: {link}")));
    }
    Ok((other, alias))
}

impl Engine {
    /// At create: the linked containers must be there.
    pub(crate) fn resolve_links(&self, own_name: &str, host: &mut HostConfig) -> Result<()> {
        let Some(links) = host.links.take().filter(|links| !links.is_empty()) else {
            return Ok(());
        };
        if links.len() > LINKS_LIMIT {
            return Err(Error::invalid(format!(
                "a container can have at most {LINKS_LIMIT} links"
            )));
        }
        let mut resolved = Vec::with_capacity(links.len());
        for link in &links {
            let (other, alias) = parse(link)?;
            let target = self.get(other).map_err(|e| {
                Error::new(
                    e.kind(),
                    format!("could not get container for {other}: {}", e.chain()),
                )
            })?;
            if target.host_config.network_mode == "host" {
                return Err(Error::invalid(
                    "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
                ));
            }
            resolved.push(format!("/{}:/{own_name}/{alias}", target.name));
        }
        host.links = Some(resolved);
        Ok(())
    }

    /// At a start: lines for `/etc/hosts` (names, address) and variables.
    pub(crate) fn links(&self, record: &Record) -> Result<Linked> {
        let (mut hosts, mut env) = (Vec::new(), Vec::new());
        let own = record.host_config.links.iter().flatten();
        for link in own {
            let (other, alias) = parse(link)?;
            let target = self.get(other)?;
            if target.state.process().is_none() {
                return Err(Error::invalid(format!(
                    "Cannot link to a non running container: /{} AS /{}/{alias}",
                    target.name, record.name
                )));
            }
            let Some(endpoint) = shared_endpoint(record, &target) else {
                continue;
            };
            // In a user-defined network the name server knows the alias, also after the other one's next start.
            if !super::naming::has_names(endpoint) {
                hosts.push(line(&target, alias, endpoint));
            }
            // Variables are the bridge's; user-defined networks never had them.
            if record.host_config.network_mode == "bridge" {
                env.extend(variables(record, &target, alias, endpoint));
            }
        }
        Ok(Linked { hosts, env })
    }

    /// `docker rm --link parent/alias`.
    pub(crate) async fn remove_link(&self, name: &str) -> Result<()> {
        let name = name.trim_start_matches('/');
        let Some((parent, alias)) = name.split_once('/') else {
            return Err(Error::invalid(format!(
                "cannot get parent / for name /{name}"
            )));
        };
        let slot = self.0.containers.find(parent)?;
        let _guard = slot.lock().await;
        let mut record: Record = (*slot.record()).clone();
        let links = record.host_config.links.get_or_insert_default();
        let before = links.len();
        links.retain(|link| parse(link).is_ok_and(|(_, have)| have != alias));
        if links.len() == before {
            return Err(Error::not_found(format!("No such link: /{name}")));
        }
        self.save(&slot, record).await
    }
}

fn shared_endpoint<'a>(record: &Record, target: &'a Arc<Record>) -> Option<&'a Endpoint> {
    let shared = record
        .networks
        .keys()
        .find_map(|name| target.endpoints.get(name));
    shared.or_else(|| target.endpoints.values().next())
}

fn line(target: &Record, alias: &str, endpoint: &Endpoint) -> (String, String) {
    let mut names = vec![alias.to_owned()];
    for name in [target.config.hostname.as_str(), target.name.as_str()] {
        if !name.is_empty() && !names.iter().any(|have| have == name) {
            names.push(name.to_owned());
        }
    }
    (names.join(" "), endpoint.address.to_string())
}

/// What Docker has set since 2013: `DB_NAME`, `DB_PORT_5432_TCP_ADDR`, `DB_ENV_…`.
fn variables(record: &Record, target: &Record, alias: &str, endpoint: &Endpoint) -> Vec<String> {
    let prefix = alias.to_uppercase().replace('-', "_");
    let address = endpoint.address;
    let mut ports: Vec<(u16, String)> = target
        .config
        .exposed_ports
        .keys()
        .filter_map(|key| {
            let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
            Some((port.parse().ok()?, protocol.to_owned()))
        })
        .collect();
    ports.sort();
    let mut env = Vec::new();
    if let Some((port, protocol)) = ports.first() {
        env.push(format!("{prefix}_PORT={protocol}://{address}:{port}"));
    }
    for (port, protocol) in &ports {
        let name = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        env.push(format!("{name}={protocol}://{address}:{port}"));
        env.push(format!("{name}_ADDR={address}"));
        env.push(format!("{name}_PORT={port}"));
        env.push(format!("{name}_PROTO={protocol}"));
    }
    env.push(format!("{prefix}_NAME=/{}/{alias}", record.name));
    for entry in target.config.env.iter().flatten() {
        match entry.split_once('=') {
            Some(("HOME" | "PATH", _)) | None => {}
            Some((name, value)) => env.push(format!("{prefix}_ENV_{name}={value}")),
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_as_they_are_typed_and_as_they_are_shown() {
        for (text, want) in [
            ("db", ("db", "db")),
            ("db:sql", ("db", "sql")),
            ("/db:/web/sql", ("db", "sql")),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for bad in ["", ":", "a:", ":b", "a:b c", "a:b\nc"] {
            assert_eq!(
                parse(bad).unwrap_err().message(),
                format!("bad format for links: {bad}")
            );
        }
    }
}
