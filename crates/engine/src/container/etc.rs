//! The files that every container gets from us: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. What they say is decided here, how it
//! is written in [`gantry_network::files`]. Pure.

use super::Record;
use super::validate::split_extra_host;
use gantry_network::files;
use std::net::IpAddr;

/// What the texts depend on besides the record.
#[derive(Debug, Default)]
pub(crate) struct Around {
    pub(crate) addresses: Vec<IpAddr>,
    /// It is in a user-defined network: asks our own server.
    pub(crate) names: bool,
    /// What `host-gateway` stands for.
    pub(crate) gateway: Option<IpAddr>,
    /// Linked containers: names and address.
    pub(crate) links: Vec<(String, String)>,
    /// The host's own files.
    pub(crate) host_hosts: String,
    pub(crate) host_resolv: String,
}

pub(crate) fn hosts(record: &Record, around: &Around) -> String {
    let (config, host) = (&record.config, &record.host_config);
    let gateway = around
        .gateway
        .map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string());
    let extra = host.extra_hosts.iter().flatten().filter_map(|entry| {
        let (name, address) = split_extra_host(entry)?;
        let address = if address == "host-gateway" {
            &gateway
        } else {
            address
        };
        Some((name.to_owned(), address.to_owned()))
    });
    let extra: Vec<_> = extra.chain(around.links.iter().cloned()).collect();
    match host.network_mode.as_str() {
        "host" => files::hosts_of_host(&around.host_hosts, &extra),
        _ => files::hosts(
            &config.hostname,
            &config.domainname,
            &around.addresses,
            &extra,
        ),
    }
}

pub(crate) fn hostname(record: &Record) -> String {
    let config = &record.config;
    match config.domainname.as_str() {
        "" => files::hostname(&config.hostname),
        domain => files::hostname(&format!("{}.{domain}", config.hostname)),
    }
}

pub(crate) fn resolv_conf(record: &Record, around: &Around) -> String {
    let wants = super::naming::wanted_resolver(record);
    match record.host_config.network_mode.as_str() {
        "host" => files::resolv_conf_of_host(&around.host_resolv, &wants),
        _ if around.names => files::resolv_conf_of_names(&around.host_resolv, &wants),
        _ => files::resolv_conf(&around.host_resolv, &wants),
    }
}
