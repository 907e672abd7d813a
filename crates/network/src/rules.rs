//! The instance's one nft table as data: settings, networks and published ports in, commands out.
//!
//! ```text
//! guard        prerouting, before tracking   nothing from a bridge reaches the host's loopback services
//! prerouting ┐
//! output     ┴ published   host address . protocol . port -> container address . port   (maps)
//! forward      to_bridge   same bridge, replies, published; everything else towards a bridge is dropped
//! postrouting              masquerade: outwards, hairpin, loopback
//! ```
//! A start changes elements of the two maps only; the table is written anew when networks come and go, and at start-up.
//! Our accepts end our own chains alone: the host's own chains see every packet as well.

use crate::{PortBinding, Record};
use gantry_linux::nft::{
    Base, Command, ESTABLISHED, Element, Expression, Family, Hook, LOCAL, Meta, RELATED, Register,
    TRANSLATED_DESTINATION, Type, Verdict, interface_name,
};
use std::net::{IpAddr, Ipv4Addr};

const FAMILY: Family = Family::Inet;
/// Published on every address: protocol . port.
const PORTS: &str = "ports";
/// Published on one address: address . protocol . port.
const PORTS_AT: &str = "ports_at";
const BRIDGES: &str = "bridges";
const INTERNAL: &str = "internal";

const A: Register = Register(0);
const B: Register = Register(1);
const C: Register = Register(2);

/// A binding with the address that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    pub binding: PortBinding,
    pub target: Ipv4Addr,
}

/// How a packet from elsewhere comes to a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromOutside {
    /// Led to the container before the host decides: it is forwarded, and the host's input rules do not see it.
    Translated,
    /// To the host's socket, past the host's input rules; the supervisor passes on what arrives.
    ToTheSocket,
}

/// The whole table, replacing what is there. `note` is kept as the table's comment.
pub fn table<'a>(
    instance: &str,
    note: &str,
    networks: impl Iterator<Item = &'a Record> + Clone,
    published: &[Forwarding],
    from_outside: FromOutside,
) -> Vec<Command> {
    let mut table = Writer {
        table: instance,
        commands: remove(instance),
    };
    table.commands.push(Command::AddTable {
        family: FAMILY,
        table: instance.into(),
        comment: note.into(),
    });
    table.set(BRIDGES, &[Type::InterfaceName], &[]);
    table.set(INTERNAL, &[Type::InterfaceName], &[]);
    let target = [Type::Ipv4Address, Type::Port];
    table.set(PORTS, &[Type::Protocol, Type::Port], &target);
    table.set(
        PORTS_AT,
        &[Type::Ipv4Address, Type::Protocol, Type::Port],
        &target,
    );
    let bridges = networks.clone().filter_map(|n| n.bridge.as_deref());
    table.elements(BRIDGES, bridges.map(bridge_element).collect());
    let internal = networks.clone().filter(|n| n.internal);
    let internal = internal.filter_map(|n| n.bridge.as_deref());
    table.elements(INTERNAL, internal.map(bridge_element).collect());
    table.commands.extend(add_ports(instance, published));

    table.guard();
    table.published(from_outside);
    table.forward(networks.clone());
    table.postrouting(networks);
    table.commands
}

/// Removes the table, whether it is there or not.
pub fn remove(instance: &str) -> Vec<Command> {
    vec![
        Command::AddTable {
            family: FAMILY,
            table: instance.into(),
            comment: String::new(),
        },
        Command::DeleteTable {
            family: FAMILY,
            table: instance.into(),
        },
    ]
}

/// Adds map elements. IPv6 bindings have none: the supervisor serves them.
pub fn add_ports(instance: &str, published: &[Forwarding]) -> Vec<Command> {
    change_ports(instance, published, |family, table, set, elements| {
        Command::AddElements {
            family,
            table,
            set,
            elements,
        }
    })
}

/// Removes map elements; refused as a whole when one of them is not there.
pub fn remove_ports(instance: &str, published: &[Forwarding]) -> Vec<Command> {
    change_ports(instance, published, |family, table, set, elements| {
        Command::DeleteElements {
            family,
            table,
            set,
            elements,
        }
    })
}

fn change_ports(
    instance: &str,
    published: &[Forwarding],
    command: impl Fn(Family, String, String, Vec<Element>) -> Command,
) -> Vec<Command> {
    let (mut everywhere, mut at) = (Vec::new(), Vec::new());
    for Forwarding { binding, target } in published {
        let IpAddr::V4(host) = binding.host_ip else {
            continue;
        };
        let mut key = Vec::with_capacity(12);
        if !host.is_unspecified() {
            key.extend(host.octets());
        }
        key.extend([protocol(binding.udp), 0, 0, 0]);
        key.extend(port(binding.host_port));
        let mut value = target.octets().to_vec();
        value.extend(port(binding.container_port));
        let set = if host.is_unspecified() {
            &mut everywhere
        } else {
            &mut at
        };
        set.push((key, Some(value)));
    }
    [(PORTS, everywhere), (PORTS_AT, at)]
        .into_iter()
        .filter(|(_, elements)| !elements.is_empty())
        .map(|(set, elements)| command(FAMILY, instance.into(), set.into(), elements))
        .collect()
}

fn protocol(udp: bool) -> u8 {
    if udp { 17 } else { 6 }
}

/// A port in a register: big endian, then padding.
fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}

fn bridge_element(name: &str) -> Element {
    (interface_name(name), None)
}

fn input(bridge: &str) -> [Expression; 2] {
    [
        Expression::Meta(Meta::InputName, A),
        Expression::Equal(A, interface_name(bridge)),
    ]
}

fn output(bridge: &str) -> [Expression; 2] {
    [
        Expression::Meta(Meta::OutputName, A),
        Expression::Equal(A, interface_name(bridge)),
    ]
}

fn input_in(set: &str) -> [Expression; 2] {
    [Expression::Meta(Meta::InputName, A), is_in(set)]
}

fn is_in(set: &str) -> Expression {
    Expression::Lookup {
        set: set.into(),
        key: A,
        value: None,
    }
}

/// IPv4, which the address expressions behind it rely on.
fn ipv4() -> [Expression; 2] {
    [
        Expression::Meta(Meta::Protocol, A),
        Expression::Equal(A, vec![2]),
    ]
}

/// The loaded address is within `net`.
fn within(net: ipnet::Ipv4Net) -> [Expression; 2] {
    [
        Expression::Mask(A, net.netmask().octets().to_vec()),
        Expression::Equal(A, net.network().octets().to_vec()),
    ]
}

fn loopback() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)
}

fn translated() -> [Expression; 3] {
    [
        Expression::TrackingStatus(A),
        Expression::Mask(A, TRANSLATED_DESTINATION.to_ne_bytes().to_vec()),
        Expression::NotEqual(A, vec![0; 4]),
    ]
}

fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

fn drop() -> Expression {
    Expression::Verdict(Verdict::Drop)
}

/// Collects commands for one table.
struct Writer<'a> {
    table: &'a str,
    commands: Vec<Command>,
}

impl Writer<'_> {
    fn set(&mut self, set: &str, key: &[Type], value: &[Type]) {
        self.commands.push(Command::AddSet {
            family: FAMILY,
            table: self.table.into(),
            set: set.into(),
            key: key.to_vec(),
            value: value.to_vec(),
        });
    }
    fn elements(&mut self, set: &str, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.commands.push(Command::AddElements {
                family: FAMILY,
                table: self.table.into(),
                set: set.into(),
                elements,
            });
        }
    }
    fn chain(&mut self, chain: &str, base: Option<(&'static str, Hook, i32)>) {
        self.commands.push(Command::AddChain {
            family: FAMILY,
            table: self.table.into(),
            chain: chain.into(),
            base: base.map(|(kind, hook, priority)| Base {
                kind,
                hook,
                priority,
            }),
        });
    }
    fn rule(&mut self, chain: &str, parts: &[&[Expression]]) {
        self.commands.push(Command::AddRule {
            family: FAMILY,
            table: self.table.into(),
            chain: chain.into(),
            first: false,
            expressions: parts.concat(),
            comment: String::new(),
        });
    }

    /// Loopback addresses may be routed on our bridges (`route_localnet`, for ports published on 127.0.0.1), so a container could
    /// name them as its target. Replies to translated connections carry the bridge's address here: they are untranslated later.
    fn guard(&mut self) {
        self.chain("guard", Some(("filter", Hook::Prerouting, -300)));
        for address in [Expression::Destination(A), Expression::Source(A)] {
            self.rule(
                "guard",
                &[
                    &ipv4(),
                    &input_in(BRIDGES),
                    &[address],
                    &within(loopback()),
                    &[drop()],
                ],
            );
        }
    }

    fn published(&mut self, from_outside: FromOutside) {
        self.chain("published", None);
        let load = [
            Expression::Meta(Meta::TransportProtocol, B),
            Expression::DestinationPort(C),
        ];
        let translate = [Expression::TranslateDestination {
            address: A,
            port: B,
        }];
        let look_up = |set: &str, key| {
            [Expression::Lookup {
                set: set.into(),
                key,
                value: Some(A),
            }]
        };
        self.rule(
            "published",
            &[
                &ipv4(),
                &[Expression::Destination(A)],
                &load,
                &look_up(PORTS_AT, A),
                &translate,
            ],
        );
        self.rule(
            "published",
            &[
                &ipv4(),
                &[
                    Expression::DestinationType(A),
                    Expression::Equal(A, LOCAL.to_ne_bytes().to_vec()),
                ],
                &load,
                &look_up(PORTS, B),
                &translate,
            ],
        );
        let hooks = [("prerouting", Hook::Prerouting), ("output", Hook::Output)];
        let left_out = match from_outside {
            FromOutside::Translated => 0,
            FromOutside::ToTheSocket => 1,
        };
        for (chain, hook) in hooks.into_iter().skip(left_out) {
            self.chain(chain, Some(("nat", hook, -100)));
            let jump = Expression::Verdict(Verdict::Jump("published".into()));
            self.rule(chain, &[&[jump]]);
        }
    }

    fn forward<'a>(&mut self, networks: impl Iterator<Item = &'a Record>) {
        self.chain("to_bridge", None);
        let open = networks.filter(|n| !n.isolates());
        for bridge in open.filter_map(|n| n.bridge.as_deref()) {
            self.rule("to_bridge", &[&input(bridge), &output(bridge), &[accept()]]);
        }
        self.rule("to_bridge", &[&input_in(INTERNAL), &[drop()]]);
        let replies = [
            Expression::TrackingState(A),
            Expression::Mask(A, (ESTABLISHED | RELATED).to_ne_bytes().to_vec()),
            Expression::NotEqual(A, vec![0; 4]),
        ];
        self.rule("to_bridge", &[&replies, &[accept()]]);
        self.rule("to_bridge", &[&translated(), &[accept()]]);
        self.rule("to_bridge", &[&[drop()]]);
        self.chain("forward", Some(("filter", Hook::Forward, 0)));
        let jump = Expression::Verdict(Verdict::Jump("to_bridge".into()));
        self.rule(
            "forward",
            &[
                &[Expression::Meta(Meta::OutputName, A)],
                &[is_in(BRIDGES), jump],
            ],
        );
        self.rule("forward", &[&input_in(INTERNAL), &[drop()]]);
    }

    fn postrouting<'a>(&mut self, networks: impl Iterator<Item = &'a Record>) {
        self.chain("postrouting", Some(("nat", Hook::Postrouting, 100)));
        for network in networks {
            let (Some(bridge), Some(subnet)) = (&network.bridge, network.subnet) else {
                continue;
            };
            let from = |net| {
                let mut expressions = ipv4().to_vec();
                expressions.push(Expression::Source(A));
                expressions.extend(within(net));
                expressions
            };
            let from6 = |net: ipnet::Ipv6Net| {
                vec![
                    Expression::Meta(Meta::Protocol, A),
                    Expression::Equal(A, vec![10]),
                    Expression::Source6(A),
                    Expression::Mask(A, net.netmask().octets().to_vec()),
                    Expression::Equal(A, net.network().octets().to_vec()),
                ]
            };
            let elsewhere = [
                Expression::Meta(Meta::OutputName, A),
                Expression::NotEqual(A, interface_name(bridge)),
            ];
            let masquerade = [Expression::Masquerade];
            let wanted = network
                .options
                .get("com.docker.network.bridge.enable_ip_masquerade")
                .is_none_or(|text| text != "false");
            if !network.internal && wanted {
                self.rule("postrouting", &[&from(subnet), &elsewhere, &masquerade]);
                if let Some(six) = network.ipv6 {
                    self.rule(
                        "postrouting",
                        &[&from6(six.subnet), &elsewhere, &masquerade],
                    );
                }
            }
            // A container that reaches a published port of its own network: the answer must come back this way.
            self.rule(
                "postrouting",
                &[&from(subnet), &output(bridge), &translated(), &masquerade],
            );
            self.rule(
                "postrouting",
                &[&from(loopback()), &output(bridge), &masquerade],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(host: &str, host_port: u16, udp: bool) -> Forwarding {
        Forwarding {
            binding: PortBinding {
                udp,
                container_port: 80,
                host_ip: host.parse().unwrap(),
                host_port,
            },
            target: Ipv4Addr::new(172, 17, 0, 2),
        }
    }

    #[test]
    fn ports_go_into_the_map_of_their_kind() {
        let commands = add_ports(
            "gantry",
            &[
                forwarding("0.0.0.0", 8080, false),
                forwarding("::", 8080, false),
                forwarding("127.0.0.1", 53, true),
            ],
        );
        let elements: Vec<_> = commands
            .into_iter()
            .map(|c| match c {
                Command::AddElements { set, elements, .. } => (set, elements),
                other => panic!("{other:?}"),
            })
            .collect();
        let target = Some(vec![172, 17, 0, 2, 0, 80, 0, 0]);
        assert_eq!(
            elements,
            [
                (
                    "ports".into(),
                    vec![(vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], target.clone())]
                ),
                (
                    "ports_at".into(),
                    vec![(vec![127, 0, 0, 1, 17, 0, 0, 0, 0, 53, 0, 0], target)]
                ),
            ]
        );
    }

    #[test]
    fn only_ipv6_touches_nothing() {
        assert!(add_ports("gantry", &[forwarding("::1", 1, false)]).is_empty());
        assert!(remove_ports("gantry", &[]).is_empty());
    }
}
