//! Texts of the files that tell a container who it is and whom to ask: hosts, hostname, resolv.conf. Pure.

use crate::dns::Server;
use std::fmt::Write;
use std::net::IpAddr;

/// Nameservers at most; the C library reads three, others read more.
const NAMESERVERS: usize = 16;
/// What Docker falls back to when the host's nameservers cannot be reached from a container.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// `/etc/hosts` of a container with its own network.
/// `extra`: name and address of `--add-host`; `host-gateway` must be replaced by the caller.
pub fn hosts(
    hostname: &str,
    domain: &str,
    addresses: &[IpAddr],
    extra: &[(String, String)],
) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    add_hosts(&mut text, extra);
    for address in addresses {
        text.push_str(&hosts_line(hostname, domain, *address));
    }
    text
}

/// The line of one own address in `/etc/hosts`.
pub fn hosts_line(hostname: &str, domain: &str, address: IpAddr) -> String {
    if domain.is_empty() {
        format!("{address}\t{hostname}\n")
    } else {
        format!("{address}\t{hostname}.{domain} {hostname}\n")
    }
}

/// `/etc/hosts` of a container in the host's network: the host's own, with `extra`.
pub fn hosts_of_host(host: &str, extra: &[(String, String)]) -> String {
    let mut text = host.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    add_hosts(&mut text, extra);
    text
}

fn add_hosts(text: &mut String, extra: &[(String, String)]) {
    for (name, address) in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
}

/// `/etc/hostname`.
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

/// What a user or the host asks for in resolv.conf; empty means: as the host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    /// `.` alone: no search list.
    pub search: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    /// The host's file. Unknown lines are passed over, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            // A comment begins a line; the resolver knows no other place for one.
            let mut words = line.split_ascii_whitespace();
            let words_of = |words: std::str::SplitAsciiWhitespace<'_>| -> Vec<String> {
                words.take(64).map(str::to_owned).collect()
            };
            match words.next() {
                Some("nameserver") if found.servers.len() < NAMESERVERS => {
                    found.servers.extend(words.next().map(str::to_owned));
                }
                // The last of them counts (resolv.conf(5)).
                Some("search" | "domain") => found.search = words_of(words),
                Some("options") => found.options.extend(words_of(words)),
                _ => {}
            }
        }
        found
    }
}

/// `/etc/resolv.conf` of a container with its own network: the host's, without servers that only the host reaches, overridden by
/// what the user `wants`.
pub fn resolv_conf(host: &str, wants: &Resolver) -> String {
    let host = Resolver::parse(host);
    let servers = if wants.servers.is_empty() {
        let reachable: Vec<String> = host.servers.into_iter().filter(|s| reachable(s)).collect();
        if reachable.is_empty() {
            FALLBACK.map(str::to_owned).into()
        } else {
            reachable
        }
    } else {
        wants.servers.clone()
    };
    let search = if wants.search.is_empty() {
        host.search
    } else {
        wants.search.clone()
    };
    let options = if wants.options.is_empty() {
        host.options
    } else {
        wants.options.clone()
    };
    write_resolver(&Resolver {
        servers,
        search,
        options,
    })
}

/// `/etc/resolv.conf` of a container in a user-defined network: our own server, and in comments whom that asks.
pub fn resolv_conf_of_names(host: &str, wants: &Resolver) -> String {
    let parsed = Resolver::parse(host);
    let or = |want: &Vec<String>, host: Vec<String>| {
        if want.is_empty() { host } else { want.clone() }
    };
    let mut options = or(&wants.options, parsed.options);
    let own_ndots = options.iter().any(|o| o.starts_with("ndots:"));
    if !own_ndots {
        options.push("ndots:0".into());
    }
    let written = write_resolver(&Resolver {
        servers: vec![crate::dns::ADDRESS.to_string()],
        search: or(&wants.search, parsed.search),
        options,
    });
    let servers = servers(host, wants).into_iter().map(|server| {
        let address = server.address.ip();
        if server.from_host {
            format!("host({address})")
        } else {
            address.to_string()
        }
    });
    let servers: Vec<String> = servers.collect();
    let mut overrides = Vec::new();
    for (name, wanted) in [
        ("nameservers", &wants.servers),
        ("search", &wants.search),
        ("options", &wants.options),
    ] {
        if !wanted.is_empty() {
            overrides.push(name);
        }
    }
    let ndots = match (own_ndots, wants.options.is_empty()) {
        (false, _) => "internal",
        (true, true) => "host",
        (true, false) => "override",
    };
    format!(
        "# Generated by Gantry.\n\n{written}\n\
         # Based on host file: '/etc/resolv.conf' (internal resolver)\n\
         # ExtServers: [{}]\n\
         # Overrides: [{}]\n\
         # Option ndots from: {ndots}\n",
        servers.join(" "),
        overrides.join(" "),
    )
}

/// Whom our server asks for names that it does not know: those that the user wants, otherwise the host's, in their order.
pub fn servers(host: &str, wants: &Resolver) -> Vec<Server> {
    let of_host = wants.servers.is_empty();
    let all = if of_host {
        Resolver::parse(host).servers
    } else {
        wants.servers.clone()
    };
    let server = |text: &String| {
        let address: IpAddr = text.split('%').next()?.parse().ok()?;
        // A zone is the host's, and so is what its loopback addresses mean; containers may have no IPv6 at all.
        let from_host = of_host && (address.is_loopback() || address.is_ipv6());
        Some(Server {
            address: (address, 53).into(),
            from_host,
        })
    };
    all.iter().filter_map(server).take(NAMESERVERS).collect()
}

/// `/etc/resolv.conf` of a container in the host's network: the host's own bytes unless the user wants otherwise.
pub fn resolv_conf_of_host(host: &str, wants: &Resolver) -> String {
    if *wants == Resolver::default() {
        return host.to_owned();
    }
    let host = Resolver::parse(host);
    let or = |want: &Vec<String>, host: Vec<String>| {
        if want.is_empty() { host } else { want.clone() }
    };
    write_resolver(&Resolver {
        servers: or(&wants.servers, host.servers),
        search: or(&wants.search, host.search),
        options: or(&wants.options, host.options),
    })
}

fn write_resolver(resolver: &Resolver) -> String {
    let mut text = String::new();
    for server in resolver.servers.iter().take(NAMESERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !resolver.search.is_empty() && resolver.search != ["."] {
        let _ = writeln!(text, "search {}", resolver.search.join(" "));
    }
    if !resolver.options.is_empty() {
        let _ = writeln!(text, "options {}", resolver.options.join(" "));
    }
    text
}

/// A server that a container on an IPv4 bridge can ask: not the host's loopback, not IPv6.
fn reachable(server: &str) -> bool {
    match server.split('%').next().unwrap_or(server).parse() {
        Ok(IpAddr::V4(address)) => !address.is_loopback() && !address.is_unspecified(),
        Ok(IpAddr::V6(_)) | Err(_) => false,
    }
}

/// Where systemd-resolved lists the servers behind its stub 127.0.0.53, which no container reaches.
pub const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Whether the host's file names only the stub of systemd-resolved, so that [`SYSTEMD_RESOLV_CONF`] should be read instead.
pub fn is_stub(host: &str) -> bool {
    let servers = Resolver::parse(host).servers;
    servers == ["127.0.0.53"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn hosts_as_docker_writes_it() {
        let extra = [("db".to_owned(), "10.1.1.1".to_owned())];
        let text = hosts(
            "web",
            "example.org",
            &["172.17.0.2".parse().unwrap()],
            &extra,
        );
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost"));
        assert!(text.ends_with("10.1.1.1\tdb\n172.17.0.2\tweb.example.org web\n"));
        assert!(
            hosts("web", "", &["172.17.0.2".parse().unwrap()], &[]).ends_with("172.17.0.2\tweb\n")
        );
        assert_eq!(hosts_of_host("::1 x", &extra), "::1 x\n10.1.1.1\tdb\n");
    }

    #[test]
    fn resolv_conf_cases() {
        for (host, wants, text) in [
            ("", ("", "", ""), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
            (
                "# c\nnameserver 127.0.0.53\nnameserver ::1\nsearch lan\noptions edns0\n",
                ("", "", ""),
                "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch lan\noptions edns0\n",
            ),
            (
                "nameserver 10.0.0.53\nnameserver 127.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\n",
                ("", "", ""),
                "nameserver 10.0.0.53\n",
            ),
            (
                "nameserver 10.0.0.53\nsearch a\nsearch b c\noptions x\noptions y\n",
                ("", "", ""),
                "nameserver 10.0.0.53\nsearch b c\noptions x y\n",
            ),
            (
                "nameserver 10.0.0.53\nsearch lan\noptions edns0\n",
                ("127.0.0.1 9.9.9.9", ".", "ndots:2"),
                "nameserver 127.0.0.1\nnameserver 9.9.9.9\noptions ndots:2\n",
            ),
        ] {
            let wants = Resolver {
                servers: words(wants.0),
                search: words(wants.1),
                options: words(wants.2),
            };
            assert_eq!(resolv_conf(host, &wants), text, "{host:?}");
        }
    }

    #[test]
    fn our_own_server_and_whom_it_asks() {
        let none = Resolver::default();
        assert_eq!(
            resolv_conf_of_names("nameserver 10.0.0.53\nnameserver ::1\nsearch lan\n", &none),
            "# Generated by Gantry.\n\n\
             nameserver 127.0.0.11\nsearch lan\noptions ndots:0\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n\
             # ExtServers: [10.0.0.53 host(::1)]\n# Overrides: []\n# Option ndots from: internal\n"
        );
        let wants = Resolver {
            servers: words("127.0.0.1 nonsense"),
            search: words("."),
            options: words("ndots:3"),
        };
        let text = resolv_conf_of_names("nameserver 127.0.0.1\n", &wants);
        assert!(
            text.contains("nameserver 127.0.0.11\noptions ndots:3\n\n"),
            "{text}"
        );
        assert!(
            text.contains("ExtServers: [127.0.0.1]\n# Overrides: [nameservers search options]\n"),
            "{text}"
        );
        assert!(servers("", &none).is_empty());
    }

    #[test]
    fn the_host_network_keeps_the_hosts_bytes() {
        let host = "# mine\nnameserver 127.0.0.53\n";
        assert_eq!(resolv_conf_of_host(host, &Resolver::default()), host);
        let wants = Resolver {
            options: words("ndots:1"),
            ..Resolver::default()
        };
        assert_eq!(
            resolv_conf_of_host(host, &wants),
            "nameserver 127.0.0.53\noptions ndots:1\n"
        );
        assert!(is_stub(host));
        assert!(!is_stub("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"));
    }
}
