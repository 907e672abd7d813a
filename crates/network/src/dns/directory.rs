//! Who is called what. One entry per running container that is in a user-defined network; changed as a whole.

use super::message::{Data, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_PTR};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

/// Addresses of one answer; more do not fit into a packet.
const ADDRESSES: usize = 2000;
/// Answers of one reverse lookup.
const NAMES: usize = 16;

/// A server that other names are asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    pub address: SocketAddr,
    /// Asked from the host's own network instead of the container's: the host's loopback.
    pub from_host: bool,
}

/// A container in one user-defined network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub network_id: String,
    pub network_name: String,
    pub addresses: Vec<IpAddr>,
    /// What others there call it; the first is the answer to reverse lookups.
    pub names: Vec<String>,
    /// What it alone calls others there: alias and name.
    pub links: BTreeMap<String, String>,
}

/// What the directory holds of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// In the order in which they are asked.
    pub networks: Vec<Membership>,
    /// Empty with `forwards`: the host has no server.
    pub servers: Vec<Server>,
    /// Other names are asked of `servers`. Not so where every network is internal.
    pub forwards: bool,
}

/// What a question gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name is known; records of the wanted kind may still be none.
    Known(Vec<Data>),
    /// Ask these, one after the other.
    Elsewhere(Vec<Server>),
    /// There is no such name, and nobody else may be asked.
    Nowhere,
}

#[derive(Debug, Default)]
pub struct Directory {
    state: RwLock<State>,
    /// Turns the order of answers with several addresses.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<String, Member>,
    /// By network id.
    zones: HashMap<String, Zone>,
}

#[derive(Debug, Default)]
struct Zone {
    /// By lower-case name: addresses with the container that has them, oldest first.
    names: HashMap<String, Vec<(IpAddr, String)>>,
    /// By address: what its container is called first.
    addresses: HashMap<IpAddr, String>,
}

impl Directory {
    /// Replaces what is known of a container.
    pub fn enter(&self, container: &str, member: Member) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.members.get(container) == Some(&member) {
            return;
        }
        state.remove(container);
        for network in &member.networks {
            let zone = state.zones.entry(network.network_id.clone()).or_default();
            for address in &network.addresses {
                for name in &network.names {
                    let all = zone.names.entry(name.to_ascii_lowercase()).or_default();
                    if !all.iter().any(|(have, _)| have == address) {
                        all.push((*address, container.to_owned()));
                    }
                }
                if let Some(name) = network.names.first() {
                    zone.addresses.insert(*address, name.clone());
                }
            }
        }
        state.members.insert(container.to_owned(), member);
    }

    pub fn leave(&self, container: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.remove(container);
    }

    pub fn knows(&self, container: &str) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.members.contains_key(container)
    }

    /// What `container` gets when it asks for `name` (lower case) or, in reverse, for an address.
    pub fn look_up(
        &self,
        container: &str,
        name: Option<&str>,
        reverse: Option<IpAddr>,
        kind: u16,
    ) -> Answer {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = state.members.get(container) else {
            return Answer::Nowhere;
        };
        if let (Some(address), TYPE_PTR | TYPE_ANY) = (reverse, kind) {
            let names = state.names_of(member, address);
            if !names.is_empty() {
                return Answer::Known(names);
            }
        }
        if let Some(addresses) = name.and_then(|name| state.addresses_of(member, name)) {
            let mut records: Vec<Data> = addresses
                .into_iter()
                .filter(|address| match kind {
                    TYPE_A => address.is_ipv4(),
                    TYPE_AAAA => address.is_ipv6(),
                    kind => kind == TYPE_ANY,
                })
                .take(ADDRESSES)
                .map(Data::Address)
                .collect();
            if records.len() > 1 {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
                records.rotate_left(turn);
            }
            return Answer::Known(records);
        }
        if member.forwards {
            Answer::Elsewhere(member.servers.clone())
        } else {
            Answer::Nowhere
        }
    }
}

impl State {
    fn remove(&mut self, container: &str) {
        let Some(member) = self.members.remove(container) else {
            return;
        };
        for network in &member.networks {
            let Some(zone) = self.zones.get_mut(&network.network_id) else {
                continue;
            };
            for name in &network.names {
                let name = name.to_ascii_lowercase();
                if let Some(all) = zone.names.get_mut(&name) {
                    all.retain(|(_, holder)| holder != container);
                    if all.is_empty() {
                        zone.names.remove(&name);
                    }
                }
            }
            for address in &network.addresses {
                zone.addresses.remove(address);
            }
            if zone.names.is_empty() && zone.addresses.is_empty() {
                self.zones.remove(&network.network_id);
            }
        }
    }

    /// `None`: nobody of that name. For `a.b.c` first that name in every network, then `a.b` in network `c`, and so on: names of
    /// containers and of networks may both have dots.
    fn addresses_of(&self, member: &Member, name: &str) -> Option<Vec<IpAddr>> {
        let whole = member
            .networks
            .iter()
            .find_map(|n| self.in_network(n, name));
        whole.or_else(|| {
            name.rmatch_indices('.').find_map(|(at, _)| {
                let (container, network) = (&name[..at], &name[at + 1..]);
                let mut networks = member.networks.iter();
                let network = networks.find(|n| n.network_name.eq_ignore_ascii_case(network))?;
                self.in_network(network, container)
            })
        })
    }

    fn in_network(&self, network: &Membership, name: &str) -> Option<Vec<IpAddr>> {
        let zone = self.zones.get(&network.network_id)?;
        let named = |name: &str| {
            let found = zone.names.get(name)?;
            Some(found.iter().map(|(address, _)| *address).collect())
        };
        let mut links = network.links.iter();
        let link = links.find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let linked = link.and_then(|(_, target)| named(&target.to_ascii_lowercase()));
        linked.or_else(|| named(name))
    }

    fn names_of(&self, member: &Member, address: IpAddr) -> Vec<Data> {
        let networks = member.networks.iter();
        let names = networks.filter_map(|network| {
            let name = self
                .zones
                .get(&network.network_id)?
                .addresses
                .get(&address)?;
            Some(Data::Name(format!("{name}.{}", network.network_name)))
        });
        names.take(NAMES).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(networks: &[(&str, &str, &[&str])]) -> Member {
        let membership = |(network, address, names): &(&str, &str, &[&str])| Membership {
            network_id: format!("id-{network}"),
            network_name: (*network).to_owned(),
            addresses: address.split(' ').map(|a| a.parse().unwrap()).collect(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            links: BTreeMap::new(),
        };
        Member {
            networks: networks.iter().map(membership).collect(),
            servers: Vec::new(),
            forwards: false,
        }
    }

    fn ask(directory: &Directory, who: &str, name: &str, kind: u16) -> String {
        match directory.look_up(who, Some(name), None, kind) {
            Answer::Known(records) => {
                let mut words: Vec<String> = records
                    .iter()
                    .map(|record| match record {
                        Data::Address(a) => a.to_string(),
                        Data::Name(n) => n.clone(),
                    })
                    .collect();
                words.sort();
                words.join(" ")
            }
            Answer::Elsewhere(_) => "elsewhere".into(),
            Answer::Nowhere => "nowhere".into(),
        }
    }

    #[test]
    fn names_are_those_of_shared_networks() {
        let directory = Directory::default();
        directory.enter(
            "a",
            member(&[("front", "10.0.0.2", &["web", "all", "aaaa"])]),
        );
        directory.enter(
            "b",
            member(&[
                ("front", "10.0.0.3 fd00::3", &["api", "all"]),
                ("back.end", "10.1.0.3", &["api"]),
            ]),
        );
        directory.enter("c", member(&[("back.end", "10.1.0.4", &["db.one"])]));
        for (who, name, kind, want) in [
            ("a", "api", TYPE_A, "10.0.0.3"),
            ("a", "api", TYPE_AAAA, "fd00::3"),
            ("a", "web", TYPE_AAAA, ""),
            ("a", "web", 15, ""),
            ("a", "all", TYPE_A, "10.0.0.2 10.0.0.3"),
            ("a", "api.front", TYPE_A, "10.0.0.3"),
            ("a", "api.back.end", TYPE_A, "nowhere"),
            ("a", "db.one", TYPE_A, "nowhere"),
            ("b", "db.one", TYPE_A, "10.1.0.4"),
            ("b", "db.one.back.end", TYPE_A, "10.1.0.4"),
            ("b", "api.back.end", TYPE_A, "10.1.0.3"),
            ("stranger", "web", TYPE_A, "nowhere"),
        ] {
            assert_eq!(
                ask(&directory, who, name, kind),
                want,
                "{who} {name} {kind}"
            );
        }
        let reverse = |who, address: &str| {
            directory.look_up(who, None, Some(address.parse().unwrap()), TYPE_PTR)
        };
        let name = |n: &str| Answer::Known(vec![Data::Name(n.into())]);
        assert_eq!(reverse("a", "10.0.0.3"), name("api.front"));
        assert_eq!(reverse("b", "fd00::3"), name("api.front"));
        assert_eq!(reverse("a", "10.1.0.4"), Answer::Nowhere);

        directory.leave("b");
        assert_eq!(ask(&directory, "a", "api", TYPE_A), "nowhere");
        assert_eq!(ask(&directory, "a", "all", TYPE_A), "10.0.0.2");
        directory.leave("a");
        directory.leave("c");
        assert!(directory.state.read().unwrap().zones.is_empty());
    }

    #[test]
    fn answers_take_turns() {
        let directory = Directory::default();
        for n in 2..5 {
            let address = format!("10.0.0.{n}");
            directory.enter(&n.to_string(), member(&[("n", &address, &["all"])]));
        }
        let first = || match directory.look_up("2", Some("all"), None, TYPE_A) {
            Answer::Known(records) => records[0].clone(),
            other => panic!("{other:?}"),
        };
        let seen: Vec<Data> = (0..3).map(|_| first()).collect();
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    }

    #[test]
    fn links_are_private_and_servers_are_for_those_who_forward() {
        let directory = Directory::default();
        directory.enter("db", member(&[("n", "10.0.0.2", &["postgres"])]));
        let mut web = member(&[("n", "10.0.0.3", &["web"])]);
        web.networks[0].links = BTreeMap::from([("SQL".to_owned(), "Postgres".to_owned())]);
        web.forwards = true;
        directory.enter("web", web);
        assert_eq!(ask(&directory, "web", "sql", TYPE_A), "10.0.0.2");
        assert_eq!(ask(&directory, "db", "sql", TYPE_A), "nowhere");
        assert_eq!(ask(&directory, "web", "example.org", TYPE_A), "elsewhere");
    }
}
