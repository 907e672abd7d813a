//! The files that every container gets from us: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Pure texts.

use super::Record;
use super::validate::split_extra_host;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// What the texts depend on besides the record.
#[derive(Debug, Default)]
pub(crate) struct Around {
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// What `host-gateway` stands for.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The host's own files.
    pub(crate) host_hosts: String,
    pub(crate) host_resolv: String,
}

pub(crate) fn hosts(record: &Record, around: &Around) -> String {
    let host = &record.host_config;
    let mut text = String::new();
    if host.network_mode == "host" {
        text.push_str(&around.host_hosts);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        );
    }
    for entry in host.extra_hosts.iter().flatten() {
        let Some((name, address)) = split_extra_host(entry) else {
            continue;
        };
        let address = match (address, around.gateway) {
            ("host-gateway", Some(gateway)) => gateway.to_string(),
            ("host-gateway", None) => "127.0.0.1".to_owned(),
            (address, _) => address.to_owned(),
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    let config = &record.config;
    for address in &around.addresses {
        if config.hostname.is_empty() {
            continue;
        }
        if config.domainname.is_empty() {
            let _ = writeln!(text, "{address}\t{}", config.hostname);
        } else {
            let _ = writeln!(
                text,
                "{address}\t{0}.{1} {0}",
                config.hostname, config.domainname
            );
        }
    }
    text
}

pub(crate) fn hostname(record: &Record) -> String {
    let config = &record.config;
    if config.domainname.is_empty() {
        format!("{}\n", config.hostname)
    } else {
        format!("{}.{}\n", config.hostname, config.domainname)
    }
}

/// The host's resolvers without those that only the host can reach, under what `--dns` and its like say.
pub(crate) fn resolv_conf(record: &Record, around: &Around) -> String {
    let host = &record.host_config;
    let shares_host = host.network_mode == "host";
    let words = |key: &'static str| {
        around.host_resolv.lines().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        })
    };
    let reachable = |text: &String| {
        shares_host
            || text
                .split('%')
                .next()
                .and_then(|ip| ip.parse::<IpAddr>().ok())
                .is_some_and(|ip| !ip.is_loopback())
    };
    let mut servers = host.dns.clone();
    if servers.is_empty() {
        servers = words("nameserver")
            .filter_map(|words| words.into_iter().next())
            .filter(reachable)
            .collect();
    }
    if servers.is_empty() && !shares_host {
        servers = vec!["8.8.8.8".into(), "8.8.4.4".into()];
    }
    let mut search = host.dns_search.clone();
    if search.is_empty() {
        search = words("search").last().unwrap_or_default();
    }
    search.retain(|domain| domain != ".");
    let mut options = host.dns_options.clone();
    if options.is_empty() {
        options = words("options").flatten().collect();
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}
