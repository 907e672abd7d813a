//! Foreign chains that drop forwarded traffic: found, named, and (friendly mode) given one marked accept for our bridges.
//!
//! Nothing else of others is touched. The accept goes where Docker leaves room for others, `DOCKER-USER`, when the dropping chain
//! passes through it; otherwise to the head of the dropping chain. Its comment is the instance, by which it is found again.

use gantry_linux::netlink::wire::Result;
use gantry_linux::nft::{
    Chain, Command, Expression, Family, Hook, Meta, Outcome, Register, Socket, Verdict,
    interface_name_of_iptables,
};
use std::collections::BTreeMap;
use std::fs;

const DOCKER_USER: &str = "DOCKER-USER";

/// A base chain on the forward hook that ends in a drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropping {
    pub(crate) family: Family,
    pub(crate) table: String,
    pub(crate) chain: String,
    /// Where an accept belongs.
    pub(crate) place: String,
    /// An accept with our comment is in that place.
    pub(crate) accepted: bool,
}

/// Every foreign chain that drops forwarded IPv4 traffic, by policy or by its last rule.
pub(crate) fn dropping(nft: &mut Socket, instance: &str) -> Result<Vec<Dropping>> {
    let chains = nft.chains()?;
    let mut found = Vec::new();
    for chain in chains.iter().filter(|c| is_forward(c)) {
        if chain.family == Family::Inet && chain.table == instance {
            continue;
        }
        let rules = nft.rules(chain.family, &chain.table, &chain.name)?;
        let ends_in_drop = rules.last().is_some_and(|r| r.outcome == Outcome::Drops);
        if !chain.drops && !ends_in_drop {
            continue;
        }
        let through_user = rules
            .iter()
            .any(|r| r.outcome == Outcome::Jumps(DOCKER_USER.into()));
        let place = if through_user {
            DOCKER_USER
        } else {
            chain.name.as_str()
        };
        let there = nft.rules(chain.family, &chain.table, place)?;
        found.push(Dropping {
            family: chain.family,
            table: chain.table.clone(),
            chain: chain.name.clone(),
            place: place.to_owned(),
            accepted: there.iter().any(|r| r.comment == instance),
        });
    }
    Ok(found)
}

fn is_forward(chain: &Chain) -> bool {
    chain.hook == Some(Hook::Forward)
        && chain.kind == "filter"
        && matches!(chain.family, Family::Inet | Family::Ipv4)
}

/// Removes our accepts wherever they are and, for `bridges`, puts them where they belong now. One transaction; nothing is
/// written when all is as it should be.
pub(crate) fn set_accepts(nft: &mut Socket, instance: &str, bridges: &[&str]) -> Result<()> {
    let found = accepts(nft, instance)?;
    let mut wanted = Vec::new();
    for dropping in dropping(nft, instance)? {
        for bridge in bridges {
            for direction in [Meta::InputName, Meta::OutputName] {
                wanted.push(accept(&dropping, instance, bridge, direction));
            }
        }
    }
    if counts(&found) == counts(&wanted) {
        return Ok(());
    }
    let commands: Vec<Command> = found.into_iter().chain(wanted).collect();
    nft.commit(&commands)
}

/// Commands by place. Ours are alike but for the bridge, and bridges come and go with a write of their own.
fn counts(commands: &[Command]) -> BTreeMap<(Family, &str, &str), usize> {
    let mut counts = BTreeMap::new();
    for command in commands {
        if let Command::AddRule {
            family,
            table,
            chain,
            ..
        }
        | Command::DeleteRule {
            family,
            table,
            chain,
            ..
        } = command
        {
            *counts
                .entry((*family, table.as_str(), chain.as_str()))
                .or_default() += 1;
        }
    }
    counts
}

/// Deletions of every rule with our comment.
fn accepts(nft: &mut Socket, instance: &str) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for chain in nft.chains()? {
        if !is_forward(&chain) && chain.name != DOCKER_USER {
            continue;
        }
        for rule in nft.rules(chain.family, &chain.table, &chain.name)? {
            if rule.comment == instance {
                commands.push(Command::DeleteRule {
                    family: chain.family,
                    table: chain.table.clone(),
                    chain: chain.name.clone(),
                    handle: rule.handle,
                });
            }
        }
    }
    Ok(commands)
}

/// In the shape that iptables itself writes, because its programs read every rule of their chains.
fn accept(dropping: &Dropping, instance: &str, bridge: &str, direction: Meta) -> Command {
    Command::AddRule {
        family: dropping.family,
        table: dropping.table.clone(),
        chain: dropping.place.clone(),
        first: true,
        expressions: vec![
            Expression::Meta(direction, Register(0)),
            Expression::Equal(Register(0), interface_name_of_iptables(bridge)),
            Expression::Counter,
            Expression::Verdict(Verdict::Accept),
        ],
        comment: instance.to_owned(),
    }
}

/// Sentences for people.
pub(crate) fn sentences(nft: &mut Socket, instance: &str) -> Vec<String> {
    let mut found: Vec<String> = match dropping(nft, instance) {
        Ok(chains) => chains.iter().map(sentence).collect(),
        Err(e) => vec![format!("the firewall's chains cannot be read: {e}")],
    };
    // Rules of the older iptables cannot be read here; that there are any is worth a line.
    if fs::read_to_string("/proc/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|n| n.trim() == "filter"))
    {
        found.push(
            "iptables-legacy has a filter table; if its FORWARD chain drops, containers reach nothing (check: iptables-legacy -S FORWARD)"
                .into(),
        );
    }
    found
}

fn sentence(dropping: &Dropping) -> String {
    let Dropping {
        family,
        table,
        chain,
        place,
        accepted,
    } = dropping;
    let name = format!("{} {table} {chain}", family.name());
    if *accepted {
        format!(
            "{name} drops forwarded traffic; a marked accept in {place} lets our bridges through"
        )
    } else {
        format!("{name} drops forwarded traffic, that of our bridges included")
    }
}
