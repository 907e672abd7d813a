//! nftables without the `nft` program: commands as data, one atomic transaction, and a reader for what must be known of others.
//!
//! ```text
//! [Command] --encode--> begin · messages · end --one send--> kernel: all of it, or none
//! ```
//! Only the expressions that our rules use exist here. `nft list` in tests is the oracle of the encoding.
//!
//! Spec: linux/netfilter/nf_tables.h.

mod encode;
mod read;

pub use read::{Chain, Outcome, Rule, Table};

use crate::netlink::wire::{Connection, Result};

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Inet,
    Ipv4,
    Ipv6,
}

impl Family {
    /// The name that `nft` prints.
    pub fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        }
    }
    fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
        }
    }
    fn from_number(number: u8) -> Option<Self> {
        [Family::Inet, Family::Ipv4, Family::Ipv6]
            .into_iter()
            .find(|f| f.number() == number)
    }
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }
}

/// What makes a chain a base chain. Its policy is accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `filter` or `nat`.
    pub kind: &'static str,
    pub hook: Hook,
    pub priority: i32,
}

/// Data types of set keys and values; they only matter to those who list the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Ipv4Address,
    Protocol,
    Port,
    InterfaceName,
}

impl Type {
    /// Number in nft's user-space numbering and size in bytes, rounded up to a register.
    fn number_and_size(self) -> (u32, u32) {
        match self {
            Type::Ipv4Address => (7, 4),
            Type::Protocol => (12, 4),
            Type::Port => (13, 4),
            Type::InterfaceName => (41, 16),
        }
    }
}

/// One of the sixteen 4-byte registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    InputName,
    OutputName,
    Protocol,
    TransportProtocol,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    Meta(Meta, Register),
    /// IPv4 source address.
    Source(Register),
    /// IPv6 source address: takes four registers.
    Source6(Register),
    /// IPv4 destination address.
    Destination(Register),
    /// Destination port of TCP and UDP.
    DestinationPort(Register),
    /// Type of the destination address by the routing table; [`LOCAL`] for the host's own.
    DestinationType(Register),
    /// Connection tracking: bits of the state, [`ESTABLISHED`] | [`RELATED`].
    TrackingState(Register),
    /// Connection tracking: bits of the status, [`TRANSLATED_DESTINATION`].
    TrackingStatus(Register),
    /// Puts bytes into a register.
    Load(Register, Vec<u8>),
    Mask(Register, Vec<u8>),
    Equal(Register, Vec<u8>),
    NotEqual(Register, Vec<u8>),
    /// Goes on only when the set holds the key; a map also loads what belongs to it.
    Lookup {
        set: String,
        key: Register,
        value: Option<Register>,
    },
    /// IPv4 destination translation.
    TranslateDestination {
        address: Register,
        port: Register,
    },
    Masquerade,
    Counter,
    Verdict(Verdict),
}

/// Value of [`Expression::DestinationType`].
pub const LOCAL: u32 = 2;
/// Bits of [`Expression::TrackingState`].
pub const ESTABLISHED: u32 = 1 << 1;
pub const RELATED: u32 = 1 << 2;
/// Bit of [`Expression::TrackingStatus`].
pub const TRANSLATED_DESTINATION: u32 = 1 << 5;

/// An interface name as register content, whole: compares equal with this name alone.
pub fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// An interface name as iptables writes it, up to and with its zero byte, so that `iptables -S` can read the rule back.
pub fn interface_name_of_iptables(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A key and, in maps, its value; fields padded to four bytes each.
pub type Element = (Vec<u8>, Option<Vec<u8>>);

/// One change. All names are limited by the kernel to 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Makes a table; one that exists stays as it is.
    AddTable {
        family: Family,
        table: String,
        comment: String,
    },
    /// Removes a table with everything in it.
    DeleteTable { family: Family, table: String },
    AddChain {
        family: Family,
        table: String,
        chain: String,
        base: Option<Base>,
    },
    /// A set, or a map when `value` is not empty.
    AddSet {
        family: Family,
        table: String,
        set: String,
        key: Vec<Type>,
        value: Vec<Type>,
    },
    AddElements {
        family: Family,
        table: String,
        set: String,
        elements: Vec<Element>,
    },
    DeleteElements {
        family: Family,
        table: String,
        set: String,
        elements: Vec<Element>,
    },
    /// At the end of its chain, or at the head of it.
    AddRule {
        family: Family,
        table: String,
        chain: String,
        first: bool,
        expressions: Vec<Expression>,
        comment: String,
    },
    DeleteRule {
        family: Family,
        table: String,
        chain: String,
        handle: u64,
    },
}

/// An nftables connection to the namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Socket(Connection);

impl Socket {
    pub fn open() -> Result<Self> {
        Connection::netfilter().map(Self)
    }

    /// All commands, or none and the first refusal (its index counts the messages that the commands became).
    pub fn commit(&mut self, commands: &[Command]) -> Result<()> {
        if commands.is_empty() {
            return Ok(());
        }
        self.0.execute(encode::transaction(commands))
    }

    pub fn tables(&mut self) -> Result<Vec<Table>> {
        read::tables(&mut self.0)
    }
    /// Every chain of the inet, ip and ip6 families.
    pub fn chains(&mut self) -> Result<Vec<Chain>> {
        read::chains(&mut self.0)
    }
    /// Rules of one chain in order. Empty when the chain is gone.
    pub fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>> {
        read::rules(&mut self.0, family, table, chain)
    }
}
