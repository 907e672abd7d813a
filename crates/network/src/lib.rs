//! Networks of one node: bridges, addresses, address translation, published ports. netlink and nftables directly.
//!
//! ```text
//! Networks::open      sysctls, default bridge, the one nft table        (idempotent: also the recovery path)
//! Networks::connect   address from IPAM                -> Endpoint      (the supervisor makes the veth from it)
//! Networks::publish   bind the host's sockets, NAT map -> Published     (sockets go to the supervisor)
//! Networks::release   both back; unknown is fine
//! ```
//! Start with [`Networks`]; [`rules`] is the nft table as data; [`ipam`] hands out addresses (pure);
//! [`files`] writes hosts and resolv.conf texts (pure).
//!
//! Invariants
//! * One nft table of our own (`inet gantry…`), changed in one transaction; foreign rules are never edited, except the one marked
//!   accept for our bridges where a foreign base chain drops forwarded traffic.
//! * Everything global carries the instance's name.
//! * No process is forked.

use gantry_base::{Result, db::Db};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

#[derive(Debug, Clone)]
pub struct Settings {
    /// `gantry`, or `gantry-1a2b3c4d` for other data directories; the prefix of everything global.
    pub instance: String,
    /// Pool that subnets are cut from, avoiding every address and route of the host.
    pub subnet_pool: ipnet::Ipv4Net,
    /// Whether foreign chains that drop forwarded traffic get our marked accept.
    pub firewall: Firewall,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firewall {
    Friendly,
    Strict,
}

/// A network as stored and shown (`docker network inspect`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub id: String,
    pub name: String,
    /// `bridge`, `host`, `null`.
    pub driver: String,
    /// Interface on the host, for bridges.
    pub bridge: Option<String>,
    pub subnet: Option<ipnet::Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    pub mtu: u32,
    pub internal: bool,
    pub created_at_ns: i64,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// One container's place in one bridge network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: String,
    pub network_id: String,
    pub network_name: String,
    pub bridge: String,
    /// Host side's interface name, at most 15 bytes.
    pub host_interface: String,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Option<Ipv4Addr>,
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// A port that somebody asked to publish. `host_port` 0 picks a free one of the ephemeral range; a range picks the first free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    pub udp: bool,
    pub container_port: u16,
    /// `None`: every address, IPv4 and IPv6.
    pub host_ip: Option<IpAddr>,
    pub host_ports: (u16, u16),
}

/// A port that is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    pub udp: bool,
    pub container_port: u16,
    pub host_ip: IpAddr,
    pub host_port: u16,
}

/// The bound sockets go to the supervisor, in the order of `bindings`; dropping them before that frees the ports.
#[derive(Debug)]
pub struct Published {
    pub bindings: Vec<PortBinding>,
    pub sockets: Vec<OwnedFd>,
}

/// The node's networks. Cheap to clone; methods block for kernel answers (tens of microseconds).
#[derive(Clone)]
pub struct Networks {}

impl Networks {
    /// Makes what is missing, repairs what was changed (bridge, address, sysctls, table), keeps leases and published ports of
    /// `live` containers (by id, as their records say) and drops all others. Leases have no home but those records.
    pub fn open(
        _settings: Settings,
        _db: Db,
        _live: &BTreeMap<String, (Vec<Endpoint>, Vec<PortBinding>)>,
    ) -> Result<Self> {
        todo!()
    }
    pub fn list(&self) -> Vec<Record> {
        todo!()
    }
    /// By name, ID, or ID prefix. `NotFound`: `network … not found`.
    pub fn get(&self, _name: &str) -> Result<Record> {
        todo!()
    }
    /// Takes an address for `container`. Idempotent per container and network. `wanted`: a static address. In memory only: the
    /// caller stores the endpoint in its own record.
    pub fn connect(
        &self,
        _container: &str,
        _network: &str,
        _wanted: Option<Ipv4Addr>,
        _mac: Option<[u8; 6]>,
    ) -> Result<Endpoint> {
        todo!()
    }
    /// Binds and listens on the host's sockets, all or none. Errors in Docker's words
    /// (`driver failed programming external connectivity on endpoint …: Bind for 0.0.0.0:80 failed: port is already allocated`).
    pub fn reserve(
        &self,
        _container: &str,
        _container_name: &str,
        _endpoint: &Endpoint,
        _ports: &[PortRequest],
    ) -> Result<Published> {
        todo!()
    }
    /// Points the kernel's NAT at the endpoint: one nft transaction. Not needed for correctness (the supervisor forwards), only for speed.
    pub fn publish(
        &self,
        _container: &str,
        _endpoint: &Endpoint,
        _bindings: &[PortBinding],
    ) -> Result<()> {
        todo!()
    }
    /// Gives back addresses, port reservations and NAT entries of a container. Unknown is fine.
    pub fn release(&self, _container: &str) -> Result<()> {
        todo!()
    }
    /// Foreign base chains that drop forwarded traffic, as `table chain` sentences for `status` and `doctor`.
    pub fn foreign_drops(&self) -> Vec<String> {
        todo!()
    }
    /// Removes everything global of this instance: table, marked accepts, bridges. For `down`: the rules of `down` without `--purge`
    /// are only the marked accepts.
    pub fn remove_all(_settings: &Settings, _purge: bool) -> Result<()> {
        todo!()
    }
}
