//! Networks of one node: bridges, addresses, address translation, published ports. netlink and nftables directly.
//!
//! ```text
//! Networks::open      sysctls, default bridge, the one nft table        (idempotent: also the recovery path)
//! Networks::connect   address from IPAM                -> Endpoint      (the supervisor makes the veth from it)
//! Networks::publish   bind the host's sockets, NAT map -> Published     (sockets go to the supervisor)
//! Networks::release   both back; unknown is fine
//! Networks::join, leave                            a running container and one more network
//! ```
//! Start with [`Networks`]; [`rules`] is the nft table as data; [`ipam`] hands out addresses (pure);
//! [`files`] writes hosts and resolv.conf texts (pure); [`firewall`] knows the chains of others, [`ports`] the host's sockets.
//!
//! What is stored: `networks/<id>` ([`Record`]). Leases and published ports have no table of their own: they are in the
//! containers' records, from which [`Networks::open`] takes them, so that a start commits once.
//!
//! Forwarding (`net.ipv4.ip_forward`) is switched on when it was off; the table's comment remembers that, so that the memory lives
//! exactly as long as the kernel's state. `down --purge` switches it off again only when we switched it on and no bridge of
//! anybody is left that may need it.
//!
//! Invariants
//! * One nft table of our own (`inet gantry…`), changed in one transaction; foreign rules are never edited, except the one marked
//!   accept for our bridges where a foreign base chain drops forwarded traffic.
//! * Everything global carries the instance's name.
//! * No process is forked.

#![forbid(unsafe_code)]

pub mod dns;
pub mod files;
mod firewall;
mod host;
pub mod ipam;
mod live;
mod names;
mod parent;
mod ports;
pub mod rules;

pub use live::Namespace;

use gantry_base::db::{Batch, Db};
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_linux::nft;
use ipnet::{Ipv4Net, Ipv6Net};
use rules::Forwarding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

/// Version of [`Record`].
const SCHEMA: u32 = 1;
const TABLE: &str = "networks";
/// Networks that a node holds at most; each is a bridge on the host.
const NETWORKS: usize = 1000;
/// Auxiliary addresses of one network.
const AUXILIARY: usize = 256;
/// Containers' endpoints that a node holds at most.
const ENDPOINTS: usize = 100_000;

#[derive(Debug, Clone)]
pub struct Settings {
    /// `gantry`, or `gantry-1a2b3c4d` for other data directories; the prefix of everything global.
    pub instance: String,
    /// Pool that subnets are cut from, avoiding every address and route of the host.
    pub subnet_pool: ipnet::Ipv4Net,
    /// Whether foreign chains that drop forwarded traffic get our marked accept, and whether the host's input rules hold for
    /// published ports.
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
    #[serde(default)]
    pub ipv6: Option<Ipv6>,
    /// macvlan and ipvlan: whose wire the containers share.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// Part of the subnet that addresses are chosen from.
    #[serde(default)]
    pub range: Option<ipnet::Ipv4Net>,
    /// Addresses that other devices in the subnet have, by what they are called: never given to a container.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
    pub created_at_ns: i64,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

/// The IPv6 side of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6 {
    pub subnet: Ipv6Net,
    pub gateway: Ipv6Addr,
    #[serde(default)]
    pub range: Option<Ipv6Net>,
}

/// An interface of the host whose wire containers share with interfaces of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub interface: String,
    pub ipvlan: bool,
    /// The kernel's number.
    pub mode: u16,
    /// Made by us, because none was named: leads nowhere and goes with the network.
    pub own: bool,
}

impl Record {
    /// `com.docker.network.bridge.enable_icc=false`: the containers do not reach each other.
    pub fn isolates(&self) -> bool {
        let icc = self.options.get("com.docker.network.bridge.enable_icc");
        icc.is_some_and(|text| text == "false")
    }
    /// `bridge`, `host` and `none`: they are always there.
    pub fn is_predefined(&self) -> bool {
        is_predefined(&self.name)
    }
}

/// What `docker network create` asks for.
#[derive(Debug, Clone, Default)]
pub struct CreateNetwork {
    pub name: String,
    /// Empty: `bridge`, the only one.
    pub driver: String,
    pub subnet: Option<ipnet::Ipv4Net>,
    pub range: Option<ipnet::Ipv4Net>,
    pub gateway: Option<Ipv4Addr>,
    /// With IPv6; a subnet that is not named is chosen.
    pub ipv6: bool,
    pub subnet6: Option<Ipv6Net>,
    pub range6: Option<Ipv6Net>,
    pub gateway6: Option<Ipv6Addr>,
    pub auxiliary: BTreeMap<String, Ipv4Addr>,
    pub internal: bool,
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
    #[serde(default)]
    pub ipv6: Option<Endpoint6>,
    /// macvlan and ipvlan: instead of a pair and a bridge.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// Does not reach the others on its bridge.
    #[serde(default)]
    pub isolated: bool,
}

/// The IPv6 side of an [`Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint6 {
    pub address: Ipv6Addr,
    pub prefix_len: u8,
    pub gateway: Option<Ipv6Addr>,
}

impl Endpoint {
    /// Every address with its prefix length.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u8)> + use<> {
        let six = self.ipv6.map(|e| (IpAddr::V6(e.address), e.prefix_len));
        std::iter::once((IpAddr::V4(self.address), self.prefix_len)).chain(six)
    }

    /// Where the default routes lead.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let four = self.gateway.map(IpAddr::V4);
        let six = self.ipv6.and_then(|e| e.gateway).map(IpAddr::V6);
        four.into_iter().chain(six)
    }
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
pub struct Networks(Arc<Inner>);

struct Inner {
    settings: Settings,
    db: Db,
    state: Mutex<State>,
    directory: Arc<dns::Directory>,
}

/// Everything that changes, under one lock: held for memory work and single kernel transactions only.
struct State {
    nft: nft::Socket,
    /// The table's comment.
    note: &'static str,
    /// By network id.
    networks: BTreeMap<String, Network>,
    /// By container id.
    endpoints: BTreeMap<String, Vec<Endpoint>>,
    /// By container id: what the maps of the table hold.
    published: BTreeMap<String, Vec<Forwarding>>,
    ports: ports::Ports,
}

struct Network {
    record: Record,
    /// `host` and `none` hand out no addresses.
    pool: Option<ipam::Pool>,
    pool6: Option<ipam::Pool6>,
}

impl Network {
    fn new(record: Record) -> Self {
        let pool = record.subnet.map(|subnet| {
            let mut pool = ipam::Pool::new(subnet, record.range, record.gateway);
            for address in record.auxiliary.values() {
                // No container has the empty id. What is outside of the subnet was refused at create.
                let _ = pool.lease("", Some(*address));
            }
            pool
        });
        let pool6 = record
            .ipv6
            .map(|six| ipam::Pool6::new(six.subnet, six.range, six.gateway));
        Self {
            record,
            pool,
            pool6,
        }
    }

    fn release(&mut self, container: &str) {
        if let Some(pool) = &mut self.pool {
            pool.release(container);
        }
        if let Some(pool) = &mut self.pool6 {
            pool.release(container);
        }
    }
}

impl Networks {
    /// Makes what is missing, repairs what was changed (bridge, address, sysctls, table), keeps leases and published ports of
    /// `live` containers (by id, as their records say) and drops all others. Leases have no home but those records.
    pub fn open(
        settings: Settings,
        db: Db,
        live: &BTreeMap<String, (Vec<Endpoint>, Vec<PortBinding>)>,
    ) -> Result<Self> {
        let mut records: Vec<Record> = Vec::new();
        for (id, record) in db.scan::<Record>(TABLE)? {
            if record.schema > SCHEMA {
                return Err(Error::internal(format!(
                    "network {id} was written by a newer gantry (schema {}, this one knows {SCHEMA})",
                    record.schema
                )));
            }
            records.push(record);
        }
        let in_use = |network: &str| {
            let mut endpoints = live.values().flat_map(|(endpoints, _)| endpoints);
            endpoints.any(|e| e.network_id == network)
        };
        let changed = host::predefined(&settings, &mut records, in_use)?;
        let batch = changed.iter().fold(Batch::new(), |batch, record| {
            batch.put(TABLE, &record.id, record)
        });
        // Not waited for: later commits come behind it, and if it is lost nothing refers to it yet.
        drop(db.submit(batch));

        let nft = nft::Socket::open().context(|| "opening nftables".into())?;
        let mut state = State {
            nft,
            note: "",
            networks: records
                .into_iter()
                .map(|r| (r.id.clone(), Network::new(r)))
                .collect(),
            endpoints: BTreeMap::new(),
            published: BTreeMap::new(),
            ports: ports::Ports::default(),
        };
        for (container, (endpoints, bindings)) in live {
            state.restore(container, endpoints, bindings);
        }
        state.note = host::forwarding_note(&mut state.nft)?;
        // The rules stand before anything is routed because of us.
        state.write_table(&settings)?;
        for network in state.networks.values() {
            host::settle(&network.record)?;
            host::route_loopback(&network.record)?;
            parent::settle(&network.record)?;
        }
        host::switch_forwarding_on()?;
        state.write_accepts(&settings);
        Ok(Self(Arc::new(Inner {
            settings,
            db,
            state: Mutex::new(state),
            directory: Arc::default(),
        })))
    }

    /// What containers are called; kept up to date by who runs them.
    pub fn directory(&self) -> &Arc<dns::Directory> {
        &self.0.directory
    }

    pub fn list(&self) -> Vec<Record> {
        let state = self.state();
        state.networks.values().map(|n| n.record.clone()).collect()
    }

    /// By name, ID, or ID prefix. `NotFound`: `network … not found`.
    pub fn get(&self, name: &str) -> Result<Record> {
        Ok(self.state().find(name)?.record.clone())
    }

    /// Makes a bridge network. Errors in Docker's words.
    pub async fn create_network(&self, request: CreateNetwork) -> Result<Record> {
        let record = {
            let mut state = self.state();
            let record = state.plan(&self.0.settings, request)?;
            state
                .networks
                .insert(record.id.clone(), Network::new(record.clone()));
            let made = state
                .write_table(&self.0.settings)
                .and_then(|()| host::settle(&record))
                .and_then(|()| host::route_loopback(&record))
                .and_then(|()| parent::settle(&record));
            if let Err(error) = made {
                state.forget(&self.0.settings, &record);
                return Err(error);
            }
            state.write_accepts(&self.0.settings);
            record
        };
        let batch = Batch::new().put(TABLE, &record.id, &record);
        if let Err(error) = self.0.db.commit(batch).await {
            self.state().forget(&self.0.settings, &record);
            return Err(error);
        }
        Ok(record)
    }

    /// Removes a network that nobody is connected to. Errors in Docker's words.
    pub async fn remove_network(&self, name: &str) -> Result<Record> {
        let record = {
            let state = self.state();
            let record = state.find(name)?.record.clone();
            if is_predefined(&record.name) {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    format!(
                        "{} is a pre-defined network and cannot be removed",
                        record.name
                    ),
                ));
            }
            if state
                .endpoints
                .values()
                .flatten()
                .any(|e| e.network_id == record.id)
            {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    format!(
                        "error while removing network: network {} id {} has active endpoints",
                        record.name, record.id
                    ),
                ));
            }
            record
        };
        // The record goes first: what a crash leaves of bridge and rules is nobody's and goes with the next start.
        let batch = Batch::new().delete(TABLE, &record.id);
        self.0.db.commit(batch).await?;
        self.state().forget(&self.0.settings, &record);
        Ok(record)
    }

    /// Takes an address for `container`. Idempotent per container and network. `wanted`: a static address. In memory only: the
    /// caller stores the endpoint in its own record.
    pub fn connect(
        &self,
        container: &str,
        network: &str,
        wanted: Option<Ipv4Addr>,
        wanted6: Option<Ipv6Addr>,
        mac: Option<[u8; 6]>,
    ) -> Result<Endpoint> {
        let mut state = self.state();
        let record = state.find(network)?.record.clone();
        if let Some(endpoint) = state
            .endpoints
            .get(container)
            .and_then(|all| all.iter().find(|e| e.network_id == record.id))
        {
            return Ok(endpoint.clone());
        }
        if state.endpoints.len() >= ENDPOINTS {
            return Err(Error::internal(format!(
                "this node has {ENDPOINTS} connected containers, which is its limit"
            )));
        }
        let Some(subnet) = record.subnet else {
            return Err(Error::invalid(format!(
                "container cannot be connected to {} network",
                record.name
            )));
        };
        if wanted6.is_some() && record.ipv6.is_none() {
            return Err(Error::invalid(format!(
                "invalid endpoint settings:\nno IPv6 subnet is configured for network {}",
                record.name
            )));
        }
        if wanted.is_some() && record.name == "bridge" {
            return Err(Error::invalid(
                "user specified IP address is supported on user defined networks only",
            ));
        }
        let id = names::new_id()?;
        let host_interface = state.free_interface(&self.0.settings.instance, &id)?;
        let network = state.networks.get_mut(&record.id).expect("just found");
        let pool = network.pool.as_mut().expect("a subnet has a pool");
        let address = pool
            .lease(container, wanted)
            .map_err(|refusal| no_address(refusal, &record, wanted.map(Into::into)))?;
        let ipv6 = match (network.pool6.as_mut(), record.ipv6) {
            (Some(pool), Some(six)) => match pool.lease(container, wanted6) {
                Ok(address) => Some(Endpoint6 {
                    address,
                    prefix_len: six.subnet.prefix_len(),
                    gateway: (!record.internal).then_some(six.gateway),
                }),
                Err(refusal) => {
                    network.release(container);
                    return Err(no_address(refusal, &record, wanted6.map(Into::into)));
                }
            },
            _ => None,
        };
        let isolated = record.isolates();
        let endpoint = Endpoint {
            id,
            network_id: record.id,
            network_name: record.name,
            bridge: record.bridge.unwrap_or_default(),
            host_interface,
            address,
            prefix_len: subnet.prefix_len(),
            gateway: record.gateway.filter(|_| !record.internal),
            mac: mac.unwrap_or_else(|| ipam::mac(address)),
            mtu: record.mtu,
            ipv6,
            parent: record.parent,
            isolated,
        };
        let all = state.endpoints.entry(container.to_owned()).or_default();
        all.push(endpoint.clone());
        Ok(endpoint)
    }

    /// Binds and listens on the host's sockets (non-blocking), all or none. Errors in Docker's words
    /// (`driver failed programming external connectivity on endpoint …: Bind for 0.0.0.0:80 failed: port is already allocated`).
    pub fn reserve(
        &self,
        container: &str,
        container_name: &str,
        endpoint: &Endpoint,
        ports: &[PortRequest],
    ) -> Result<Published> {
        let reserved = self
            .state()
            .ports
            .reserve(container, endpoint.address, ports);
        let (bindings, sockets) = reserved.map_err(|refusal| {
            Error::internal(format!(
                "driver failed programming external connectivity on endpoint {container_name} ({}): {}",
                endpoint.id, refusal.0
            ))
        })?;
        Ok(Published { bindings, sockets })
    }

    /// Points the kernel's NAT at the endpoint: one nft transaction. Not needed for correctness (the supervisor forwards), only for speed.
    pub fn publish(
        &self,
        container: &str,
        endpoint: &Endpoint,
        bindings: &[PortBinding],
    ) -> Result<()> {
        let forwardings = forwardings(endpoint.address, bindings);
        let instance = &self.0.settings.instance;
        let mut state = self.state();
        for binding in bindings {
            state.ports.hold(container, binding);
        }
        let before = state
            .published
            .insert(container.to_owned(), forwardings.clone());
        if before.as_ref() == Some(&forwardings) {
            return Ok(());
        }
        let mut commands = rules::remove_ports(instance, before.as_deref().unwrap_or_default());
        commands.extend(rules::add_ports(instance, &forwardings));
        match state.nft.commit(&commands) {
            Ok(()) => Ok(()),
            // Somebody changed our table: write it anew from what we know, which includes this container.
            Err(error) => {
                tracing::warn!(%error, "published ports could not be added to the table; writing it anew");
                state.write_table(&self.0.settings)
            }
        }
    }

    /// Gives back addresses, port reservations and NAT entries of a container. Unknown is fine.
    pub fn release(&self, container: &str) -> Result<()> {
        self.0.directory.leave(container);
        let published = self.state().release(&self.0.settings, container)?;
        if let Some(udp) = published.iter().find(|f| f.binding.udp)
            && let Err(error) = gantry_linux::conntrack::forget_udp_to(udp.target)
        {
            // Not under the lock: the kernel walks its whole table.
            tracing::debug!(%error, address = %udp.target, "UDP flows to a container that is gone are left to their time limit");
        }
        Ok(())
    }

    /// Gives back one address of a container that stays in its other networks.
    pub fn disconnect(&self, container: &str, endpoint: &Endpoint) {
        let mut state = self.state();
        if let Some(all) = state.endpoints.get_mut(container) {
            all.retain(|e| e.network_id != endpoint.network_id);
            if all.is_empty() {
                state.endpoints.remove(container);
            }
        }
        if let Some(network) = state.networks.get_mut(&endpoint.network_id) {
            network.release(container);
        }
    }

    /// Foreign base chains that drop forwarded traffic, as `table chain` sentences for `status` and `doctor`.
    pub fn foreign_drops(&self) -> Vec<String> {
        firewall::sentences(&mut self.state().nft, &self.0.settings.instance)
    }

    /// The same for an instance that may not run.
    pub fn foreign_drops_of(instance: &str) -> Result<Vec<String>> {
        let mut nft = nft::Socket::open().context(|| "opening nftables".into())?;
        Ok(firewall::sentences(&mut nft, instance))
    }

    /// Puts the marked accepts where they belong now: other firewalls come, go and start over while we run. Writes nothing
    /// when each of them is in its place.
    pub fn repair_accepts(&self) {
        let mut state = self.state();
        let missing = firewall::dropping(&mut state.nft, &self.0.settings.instance)
            .is_ok_and(|chains| chains.iter().any(|chain| !chain.accepted));
        if missing && self.0.settings.firewall == Firewall::Friendly {
            state.write_accepts(&self.0.settings);
        }
    }

    /// Removes everything global of this instance: table, marked accepts, bridges. For `down`: the rules of `down` without `--purge`
    /// are only the marked accepts.
    pub fn remove_all(settings: &Settings, purge: bool) -> Result<()> {
        let mut nft = nft::Socket::open().context(|| "opening nftables".into())?;
        firewall::set_accepts(&mut nft, &settings.instance, &[])
            .context(|| "removing the accepts for our bridges".into())?;
        if purge {
            host::remove(&mut nft, &settings.instance)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves maps that are still maps; refusing all networks for ever would be worse.
        self.0
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, name: &str) -> Result<&Network> {
        if let Some(network) = self.networks.get(name) {
            return Ok(network);
        }
        if let Some(network) = self.networks.values().find(|n| n.record.name == name) {
            return Ok(network);
        }
        let mut found = self
            .networks
            .values()
            .filter(|n| !name.is_empty() && n.record.id.starts_with(name));
        match (found.next(), found.count()) {
            (Some(network), 0) => Ok(network),
            (Some(_), more) => Err(Error::invalid(format!(
                "network {name} is ambiguous ({} matches found based on ID prefix)",
                more + 1
            ))),
            (None, _) => Err(Error::not_found(format!("network {name} not found"))),
        }
    }

    /// What a container had according to its record. What the network cannot give any more is left out.
    fn restore(&mut self, container: &str, endpoints: &[Endpoint], bindings: &[PortBinding]) {
        for endpoint in endpoints {
            let network = self.networks.get_mut(&endpoint.network_id);
            let restored = network.is_some_and(|network| {
                let four = network.pool.as_mut();
                let six = endpoint.ipv6.zip(network.pool6.as_mut());
                four.is_some_and(|pool| pool.restore(container, endpoint.address))
                    && six.is_none_or(|(e, pool)| pool.lease(container, Some(e.address)).is_ok())
            });
            if !restored {
                tracing::warn!(
                    container.id = container,
                    address = %endpoint.address,
                    network = endpoint.network_name,
                    "a running container's address belongs to somebody else"
                );
                continue;
            }
            let all = self.endpoints.entry(container.to_owned()).or_default();
            all.push(endpoint.clone());
        }
        let Some(first) = self.endpoints.get(container).and_then(|all| all.first()) else {
            return;
        };
        if bindings.is_empty() {
            return;
        }
        let forwardings = forwardings(first.address, bindings);
        for binding in bindings {
            self.ports.hold(container, binding);
        }
        self.published.insert(container.to_owned(), forwardings);
    }

    /// Everything that is checked before a network is made, and its record.
    fn plan(&self, settings: &Settings, request: CreateNetwork) -> Result<Record> {
        let forbidden = |message: String| Error::new(ErrorKind::Forbidden, message);
        if request.name.is_empty() || request.name.len() > 255 {
            return Err(Error::invalid(
                "invalid network name: it must have 1 to 255 characters",
            ));
        }
        if is_predefined(&request.name) {
            return Err(forbidden(format!(
                "operation is not permitted on predefined {} network ",
                request.name
            )));
        }
        if !matches!(
            request.driver.as_str(),
            "" | "bridge" | "default" | "macvlan" | "ipvlan"
        ) {
            return Err(Error::not_found(format!(
                "could not find plugin {} in v1 plugin registry: plugin not found",
                request.driver
            )));
        }
        if self
            .networks
            .values()
            .any(|n| n.record.name == request.name)
        {
            return Err(Error::conflict(format!(
                "network with name {} already exists",
                request.name
            )));
        }
        if self.networks.len() >= NETWORKS {
            return Err(forbidden(format!(
                "this node has {NETWORKS} networks, which is its limit"
            )));
        }
        let used = host::used_subnets(self.networks.values().map(|n| &n.record))?;
        let subnet = match request.subnet {
            Some(subnet) if subnet.prefix_len() > 30 => {
                return Err(Error::invalid(format!(
                    "invalid subnet {subnet}: it has no room for a gateway and a container"
                )));
            }
            Some(subnet) if subnet != subnet.trunc() => {
                return Err(Error::invalid(format!(
                    "invalid network config:\ninvalid subnet {subnet}: it should be {}",
                    subnet.trunc()
                )));
            }
            Some(subnet) if used.iter().any(|u| ipam::overlap(subnet, *u)) => {
                return Err(forbidden(
                    "Pool overlaps with other one on this address space".into(),
                ));
            }
            Some(subnet) => subnet,
            None => ipam::choose_subnet(settings.subnet_pool, &used).ok_or_else(|| {
                forbidden("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network".into())
            })?,
        };
        if let Some(range) = request.range
            && !subnet.contains(&range)
        {
            return Err(Error::invalid(format!(
                "invalid ip-range {range}: it is not part of subnet {subnet}"
            )));
        }
        let gateway = match request.gateway {
            Some(gateway) if !subnet.contains(&gateway) => {
                return Err(Error::invalid(format!(
                    "no matching subnet for gateway {gateway}"
                )));
            }
            Some(gateway) => gateway,
            None => first_host(subnet),
        };
        if let Some(outside) = request.auxiliary.values().find(|a| !subnet.contains(*a)) {
            return Err(Error::invalid(format!(
                "no matching subnet for aux-address {outside}"
            )));
        }
        if request.auxiliary.len() > AUXILIARY {
            return Err(Error::invalid(format!(
                "a network can have at most {AUXILIARY} auxiliary addresses"
            )));
        }
        let ipv6 = request.ipv6.then(|| self.plan_ipv6(&request)).transpose()?;
        let mtu = match request.options.get("com.docker.network.driver.mtu") {
            Some(text) => text
                .parse()
                .ok()
                .filter(|mtu| (68..=65535).contains(mtu))
                .ok_or_else(|| Error::invalid(format!("invalid mtu {text}")))?,
            // The parent's.
            None if matches!(request.driver.as_str(), "macvlan" | "ipvlan") => 0,
            None => host::MTU,
        };
        let taken = |name: &str| {
            let mut bridges = self
                .networks
                .values()
                .filter_map(|n| n.record.bridge.as_deref());
            bridges.any(|b| b == name)
        };
        let (id, bridge) = loop {
            let id = names::new_id()?;
            let bridge = names::network_bridge(&settings.instance, &id);
            if !taken(&bridge) {
                break (id, bridge);
            }
        };
        let parent = parent::plan(&request, &settings.instance, &id)?;
        let driver = match parent {
            Some(_) => request.driver.clone(),
            None => "bridge".into(),
        };
        Ok(Record {
            schema: SCHEMA,
            id,
            name: request.name,
            driver,
            bridge: parent.is_none().then_some(bridge),
            ipv6,
            // A network without a way out needs no parent of the host's.
            parent,
            subnet: Some(subnet),
            gateway: Some(gateway),
            range: request.range,
            auxiliary: request.auxiliary,
            mtu,
            internal: request.internal,
            created_at_ns: host::now_ns(),
            labels: request.labels,
            options: request.options,
        })
    }

    /// The subnet that is asked for, or a private one that nobody else can have (RFC 4193).
    fn plan_ipv6(&self, request: &CreateNetwork) -> Result<Ipv6> {
        let used: Vec<Ipv6Net> = self
            .networks
            .values()
            .filter_map(|n| Some(n.record.ipv6?.subnet))
            .chain(host::used_subnets6()?)
            .collect();
        let overlaps = |subnet: Ipv6Net| {
            used.iter()
                .any(|u| u.contains(&subnet) || subnet.contains(u))
        };
        let subnet = match request.subnet6 {
            Some(subnet) if subnet != subnet.trunc() || subnet.prefix_len() > 126 => {
                return Err(Error::invalid(format!(
                    "invalid network config:\ninvalid subnet {subnet}: it should be {}, with room for a gateway and a container",
                    subnet.trunc()
                )));
            }
            Some(subnet) if overlaps(subnet) => {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "Pool overlaps with other one on this address space",
                ));
            }
            Some(subnet) => subnet,
            None => loop {
                let random = u128::from_str_radix(&names::new_id()?[..14], 16).unwrap_or(1);
                let address = Ipv6Addr::from((0xfd << 120) | (random << 64));
                let subnet = Ipv6Net::new_assert(address, 64).trunc();
                if !overlaps(subnet) {
                    break subnet;
                }
            },
        };
        let gateway = match request.gateway6 {
            Some(gateway) if !subnet.contains(&gateway) => {
                return Err(Error::invalid(format!(
                    "no matching subnet for gateway {gateway}"
                )));
            }
            Some(gateway) => gateway,
            None => Ipv6Addr::from(u128::from(subnet.network()) + 1),
        };
        if let Some(range) = request.range6
            && !subnet.contains(&range)
        {
            return Err(Error::invalid(format!(
                "invalid ip-range {range}: it is not part of subnet {subnet}"
            )));
        }
        Ok(Ipv6 {
            subnet,
            gateway,
            range: request.range6,
        })
    }

    /// Takes a network out of memory and off the host, as far as that goes.
    fn forget(&mut self, settings: &Settings, record: &Record) {
        self.networks.remove(&record.id);
        if let Err(error) = host::remove_bridge(record).and_then(|()| parent::remove(record)) {
            tracing::warn!(%error, network = record.name, "the bridge of a removed network is left");
        }
        if let Err(error) = self.write_table(settings) {
            tracing::warn!(
                error = error.chain(),
                "the table still holds a removed network"
            );
        }
        self.write_accepts(settings);
    }

    /// What was published is out of the table afterwards.
    fn release(&mut self, settings: &Settings, container: &str) -> Result<Vec<Forwarding>> {
        self.ports.release(container);
        for endpoint in self.endpoints.remove(container).unwrap_or_default() {
            if let Some(network) = self.networks.get_mut(&endpoint.network_id) {
                network.release(container);
            }
        }
        let published = self.published.remove(container).unwrap_or_default();
        let commands = rules::remove_ports(&settings.instance, &published);
        if let Err(error) = self.nft.commit(&commands) {
            tracing::warn!(%error, "published ports could not be removed from the table; writing it anew");
            self.write_table(settings)?;
        }
        Ok(published)
    }

    /// A name for the host's side of a pair that no other endpoint has.
    fn free_interface(&self, instance: &str, id: &str) -> Result<String> {
        let mut id = id.to_owned();
        loop {
            let name = names::host_interface(instance, &id);
            let mut all = self.endpoints.values().flatten();
            if !all.any(|e| e.host_interface == name) {
                return Ok(name);
            }
            id = names::new_id()?;
        }
    }

    fn write_table(&mut self, settings: &Settings) -> Result<()> {
        let published: Vec<Forwarding> = self.published.values().flatten().cloned().collect();
        let networks = self.networks.values().map(|n| &n.record);
        let from_outside = match settings.firewall {
            Firewall::Friendly => rules::FromOutside::Translated,
            Firewall::Strict => rules::FromOutside::ToTheSocket,
        };
        let commands = rules::table(
            &settings.instance,
            self.note,
            networks,
            &published,
            from_outside,
        );
        self.nft
            .commit(&commands)
            .context(|| format!("writing the nftables table inet {}", settings.instance))
    }

    /// Not fatal: without the accepts containers still run, and `foreign_drops` says what stands in the way.
    fn write_accepts(&mut self, settings: &Settings) {
        let bridges: Vec<&str> = match settings.firewall {
            Firewall::Friendly => {
                let networks = self.networks.values();
                networks
                    .filter_map(|n| n.record.bridge.as_deref())
                    .collect()
            }
            Firewall::Strict => Vec::new(),
        };
        if let Err(error) = firewall::set_accepts(&mut self.nft, &settings.instance, &bridges) {
            tracing::warn!(%error, "foreign chains that drop forwarded traffic could not be looked at");
        }
    }
}

fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none")
}

fn forwardings(target: Ipv4Addr, bindings: &[PortBinding]) -> Vec<Forwarding> {
    let with_target = |binding: &PortBinding| Forwarding {
        binding: binding.clone(),
        target,
    };
    bindings.iter().map(with_target).collect()
}

/// The subnet's first address behind that of the network itself.
fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.network())
}

fn no_address(refusal: ipam::Refusal, record: &Record, wanted: Option<IpAddr>) -> Error {
    let wanted = wanted.map(|a| a.to_string()).unwrap_or_default();
    match refusal {
        ipam::Refusal::Exhausted => Error::internal(format!(
            "no available IPv4 addresses on this network's address pools: {} ({})",
            record.name, record.id
        )),
        ipam::Refusal::Taken => Error::new(ErrorKind::Forbidden, "Address already in use"),
        ipam::Refusal::Outside => Error::invalid(format!(
            "invalid address {wanted}: It does not belong to any of this network's subnets"
        )),
    }
}

#[cfg(test)]
mod tests;
