//! What others have: tables, chains, and of rules only what decides whether they let forwarded traffic pass.

use super::encode::{SUBSYSTEM, header};
use super::{Family, Hook};
use crate::netlink::wire::{
    Batch, Connection, Error, NLM_F_DUMP, Object, Result, attributes, be_number, be_number64, text,
};
use rustix::io::Errno;

const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;

/// Objects of one dump that are kept; who has more rules in one chain is not ours to judge.
const LIMIT: usize = 100_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    pub comment: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub family: Family,
    pub table: String,
    pub name: String,
    /// Hook, when it is a base chain on one of the five hooks of IP.
    pub hook: Option<Hook>,
    /// `filter`, `nat`, `route`; empty when no base chain.
    pub kind: String,
    /// A base chain's policy is drop.
    pub drops: bool,
}

/// What a rule does with every packet that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has conditions, or goes on.
    Depends,
    Accepts,
    /// Drop or reject.
    Drops,
    /// Goes through the named chain.
    Jumps(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub handle: u64,
    pub comment: String,
    pub outcome: Outcome,
}

pub(super) fn tables(connection: &mut Connection) -> Result<Vec<Table>> {
    let mut batch = Batch::new();
    batch.begin(GETTABLE, NLM_F_DUMP, &header(0));
    collect(connection, &batch, NEWTABLE, table)
}

pub(super) fn chains(connection: &mut Connection) -> Result<Vec<Chain>> {
    let mut batch = Batch::new();
    batch.begin(GETCHAIN, NLM_F_DUMP, &header(0));
    collect(connection, &batch, NEWCHAIN, chain)
}

pub(super) fn rules(
    connection: &mut Connection,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<Vec<Rule>> {
    let mut batch = Batch::new();
    batch.begin(GETRULE, NLM_F_DUMP, &header(family.number()));
    batch.string(1, table);
    batch.string(2, chain);
    match collect(connection, &batch, NEWRULE, |body| rule(body, chain)) {
        Err(e) if e.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

fn collect<T>(
    connection: &mut Connection,
    batch: &Batch,
    kind: u16,
    parse: impl Fn(&[u8]) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    connection.dump(batch, |object| {
        match object {
            Object::Reset => found.clear(),
            Object::Item(k, body) if k == kind => {
                found.extend(parse(body)?);
                if found.len() > LIMIT {
                    return Err(Error::Malformed("more objects than the limit"));
                }
            }
            Object::Item(..) => {}
        }
        Ok(())
    })?;
    Ok(found)
}

/// The family and what follows `struct nfgenmsg`; `None` for families that are not ours to look at.
fn split(body: &[u8]) -> Result<Option<(Family, &[u8])>> {
    let (header, rest) = body
        .split_first_chunk::<4>()
        .ok_or(Error::Malformed("a cut object"))?;
    Ok(Family::from_number(header[0]).map(|family| (family, rest)))
}

fn table(body: &[u8]) -> Result<Option<Table>> {
    let Some((family, rest)) = split(body)? else {
        return Ok(None);
    };
    let mut found = Table {
        family,
        name: String::new(),
        comment: String::new(),
    };
    for (kind, value) in attributes(rest)? {
        match kind {
            1 => found.name = text(value),
            6 => found.comment = comment(value),
            _ => {}
        }
    }
    Ok(Some(found))
}

fn chain(body: &[u8]) -> Result<Option<Chain>> {
    let Some((family, rest)) = split(body)? else {
        return Ok(None);
    };
    let mut found = Chain {
        family,
        table: String::new(),
        name: String::new(),
        hook: None,
        kind: String::new(),
        drops: false,
    };
    for (kind, value) in attributes(rest)? {
        match kind {
            1 => found.table = text(value),
            3 => found.name = text(value),
            4 => found.hook = hook(value)?,
            5 => found.drops = be_number(value)? == 0,
            7 => found.kind = text(value),
            _ => {}
        }
    }
    found.drops &= found.hook.is_some();
    Ok(Some(found))
}

fn hook(value: &[u8]) -> Result<Option<Hook>> {
    for (kind, value) in attributes(value)? {
        if kind == 1 {
            return Ok(match be_number(value)? {
                0 => Some(Hook::Prerouting),
                1 => Some(Hook::Input),
                2 => Some(Hook::Forward),
                3 => Some(Hook::Output),
                4 => Some(Hook::Postrouting),
                _ => None,
            });
        }
    }
    Ok(None)
}

fn rule(body: &[u8], wanted: &str) -> Result<Option<Rule>> {
    let Some((_, rest)) = split(body)? else {
        return Ok(None);
    };
    let mut found = Rule {
        handle: 0,
        comment: String::new(),
        outcome: Outcome::Depends,
    };
    for (kind, value) in attributes(rest)? {
        match kind {
            // A kernel that ignores the filter gives the rules of every chain.
            2 if text(value) != wanted => return Ok(None),
            3 => found.handle = be_number64(value)?,
            4 => found.outcome = outcome(value)?,
            7 => found.comment = comment(value),
            _ => {}
        }
    }
    Ok(Some(found))
}

/// What an expression list does when nothing in it is a condition.
fn outcome(list: &[u8]) -> Result<Outcome> {
    for (_, expression) in attributes(list)? {
        let mut name = String::new();
        let mut data: &[u8] = &[];
        for (kind, value) in attributes(expression)? {
            match kind {
                1 => name = text(value),
                2 => data = value,
                _ => {}
            }
        }
        match name.as_str() {
            // They count or write and go on.
            "counter" | "log" => {}
            "reject" => return Ok(Outcome::Drops),
            "immediate" => return verdict(data),
            // An extension of iptables: "REJECT" in the compatible form.
            "target" => {
                let rejects = attributes(data)?
                    .iter()
                    .any(|(kind, value)| *kind == 1 && text(value) == "REJECT");
                return Ok(if rejects {
                    Outcome::Drops
                } else {
                    Outcome::Depends
                });
            }
            _ => return Ok(Outcome::Depends),
        }
    }
    Ok(Outcome::Depends)
}

fn verdict(data: &[u8]) -> Result<Outcome> {
    // immediate: data (2) · data: verdict (2) · verdict: code (1), chain (2)
    let Some(data) = find(data, 2)? else {
        return Ok(Outcome::Depends);
    };
    let Some(verdict) = find(data, 2)? else {
        return Ok(Outcome::Depends);
    };
    let chain = find(verdict, 2)?.map(text);
    let code = find(verdict, 1)?.map(be_number).transpose()?;
    Ok(match (code, chain) {
        (Some(0), _) => Outcome::Drops,
        (Some(1), _) => Outcome::Accepts,
        (Some(_), Some(chain)) => Outcome::Jumps(chain),
        _ => Outcome::Depends,
    })
}

fn find(nest: &[u8], wanted: u16) -> Result<Option<&[u8]>> {
    let mut found = attributes(nest)?.into_iter();
    Ok(found.find(|(kind, _)| *kind == wanted).map(|(_, v)| v))
}

/// The comment in nft's user data, empty when there is none; what does not parse is somebody else's format.
fn comment(mut data: &[u8]) -> String {
    while let [kind, length, rest @ ..] = data {
        let Some(value) = rest.get(..usize::from(*length)) else {
            break;
        };
        if *kind == 0 {
            return text(value);
        }
        data = &rest[usize::from(*length)..];
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_odd_user_data() {
        for (data, want) in [
            (&b"\0\x03ab\0"[..], "ab"),
            (b"\x01\x01x\0\x02a\0", "a"),
            (b"", ""),
            (b"\0", ""),
            (b"\0\xffab", ""),
            (b"\x05\x00", ""),
        ] {
            assert_eq!(comment(data), want, "{data:?}");
        }
    }

    #[test]
    fn cut_objects_are_refused() {
        assert!(table(&[2, 0, 0]).is_err());
        assert!(chain(&[2, 0, 0, 0, 9, 0, 1, 0]).is_err());
        assert!(rule(&[2, 0, 0, 0, 8, 0, 3, 0, 1, 2, 3, 4], "x").is_err());
        // Other families are passed over.
        assert_eq!(table(&[7, 0, 0, 0]).unwrap(), None);
    }

    #[test]
    fn expressions_nested_wrongly_do_not_pass_as_drops() {
        assert_eq!(outcome(&[]).unwrap(), Outcome::Depends);
        assert!(outcome(&[8, 0, 1, 0, 200, 0, 1, 0]).is_err());
    }
}
