//! Links, addresses and routes over rtnetlink.

use super::wire::{
    Batch, Connection, Error, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE,
    Object, Result, attributes, number, text,
};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_LINK: u16 = 5;
/// The same number for macvlan and ipvlan.
const IFLA_CHILD_MODE: u16 = 1;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_UNSPEC: u8 = 0;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u32 = 255;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

/// Bytes of an interface's name at most.
pub const NAME_LIMIT: usize = 15;

/// A network namespace, as the kernel wants to hear of it.
#[derive(Debug, Clone, Copy)]
pub enum Netns<'a> {
    /// The one that this process is in.
    Pid(i32),
    /// An open `/proc/<pid>/ns/net`.
    Fd(BorrowedFd<'a>),
}

/// A pair whose peer is born inside another namespace.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    pub host_name: &'a str,
    pub peer_name: &'a str,
    pub peer_netns: Netns<'a>,
    /// Bridge that the host's side joins.
    pub master: Option<&'a str>,
    pub peer_mac: Option<[u8; 6]>,
    /// 0 leaves the kernel's default.
    pub mtu: u32,
    /// The host's side exchanges nothing with other isolated ports of its bridge.
    pub isolated: bool,
}

/// An interface that shares a parent's wire, born inside another namespace.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    pub kind: ChildKind,
    pub parent: &'a str,
    pub name: &'a str,
    pub netns: Netns<'a>,
    /// Not for ipvlan, which has its parent's.
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildKind {
    /// The kernel's `MACVLAN_MODE_…`.
    Macvlan(u32),
    /// The kernel's `IPVLAN_MODE_…`.
    Ipvlan(u16),
}

/// What an interface gets inside of a container's namespace.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    pub name: &'a str,
    pub addresses: &'a [(IpAddr, u8)],
    pub gateways: &'a [IpAddr],
}

/// A bridge to make.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    pub name: &'a str,
    /// Fixed, or the bridge takes the lowest of its ports and changes it under the containers.
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, … ; empty for hardware.
    pub kind: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Vec<u8>,
    pub master: Option<u32>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub interface: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
}

/// A route. `destination` is the unspecified address with length 0 for a default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub destination: IpAddr,
    pub prefix_len: u8,
    pub interface: Option<u32>,
    pub table: u32,
}

/// [`Socket::create_veth`] with a socket of its own.
pub fn create_veth(veth: &Veth<'_>) -> Result<()> {
    Socket::open()?.create_veth(veth)
}

/// [`Socket::configure_inside`] with a socket of its own, in the namespace that the calling thread is in.
pub fn configure_inside(links: &[Inside<'_>]) -> Result<()> {
    Socket::open()?.configure_inside(links)
}

/// An rtnetlink connection to the namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Socket(Connection);

impl Socket {
    pub fn open() -> Result<Self> {
        Connection::route().map(Self)
    }

    /// Makes the pair: the peer in its namespace, the host's side on the bridge and up. One send.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        check_name(veth.host_name)?;
        check_name(veth.peer_name)?;
        let master = veth.master.map(|name| self.index(name)).transpose()?;
        let mut batch = Batch::new();
        batch.begin(
            RTM_NEWLINK,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &link_header(0, 0, 0),
        );
        batch.string(IFLA_IFNAME, veth.host_name);
        veth_common(&mut batch, veth.mtu);
        if let Some(master) = master {
            batch.u32(IFLA_MASTER, master);
        }
        batch.nest(IFLA_LINKINFO, |b| {
            b.string(IFLA_INFO_KIND, "veth");
            b.nest(IFLA_INFO_DATA, |b| {
                b.nest(VETH_INFO_PEER, |b| {
                    b.raw(&link_header(0, 0, 0));
                    b.string(IFLA_IFNAME, veth.peer_name);
                    veth_common(b, veth.mtu);
                    if let Some(mac) = veth.peer_mac {
                        b.put(IFLA_ADDRESS, &mac);
                    }
                    match veth.peer_netns {
                        Netns::Pid(pid) => b.put(IFLA_NET_NS_PID, &pid.to_ne_bytes()),
                        Netns::Fd(fd) => b.put(IFLA_NET_NS_FD, &fd.as_raw_fd().to_ne_bytes()),
                    }
                });
            });
        });
        // A bridge port needs no address of its own; made before it is up, none is ever probed for.
        no_link_local(&mut batch, 0, veth.host_name);
        set_up(&mut batch, 0, veth.host_name);
        if master.is_some() {
            // With br_netfilter, a container that reaches its own published port by the host's address is translated inside of the
            // bridge, which sends a frame back to where it came from only in this mode.
            batch.nest(IFLA_LINKINFO, |b| {
                b.string(IFLA_INFO_SLAVE_KIND, "bridge");
                b.nest(IFLA_INFO_SLAVE_DATA, |b| {
                    b.u8(IFLA_BRPORT_MODE, 1);
                    if veth.isolated {
                        b.u8(IFLA_BRPORT_ISOLATED, 1);
                    }
                });
            });
        }
        self.0.execute(batch)
    }

    /// Makes a macvlan or ipvlan interface; `EOPNOTSUPP` where the kernel has no such kind.
    pub fn create_child(&mut self, child: &Child<'_>) -> Result<()> {
        check_name(child.name)?;
        let parent = self.index(child.parent)?;
        let mut batch = Batch::new();
        batch.begin(
            RTM_NEWLINK,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &link_header(0, 0, 0),
        );
        batch.string(IFLA_IFNAME, child.name);
        batch.u32(IFLA_LINK, parent);
        if child.mtu != 0 {
            batch.u32(IFLA_MTU, child.mtu);
        }
        if let Some(mac) = child.mac {
            batch.put(IFLA_ADDRESS, &mac);
        }
        match child.netns {
            Netns::Pid(pid) => batch.put(IFLA_NET_NS_PID, &pid.to_ne_bytes()),
            Netns::Fd(fd) => batch.put(IFLA_NET_NS_FD, &fd.as_raw_fd().to_ne_bytes()),
        }
        batch.nest(IFLA_LINKINFO, |b| match child.kind {
            ChildKind::Macvlan(mode) => {
                b.string(IFLA_INFO_KIND, "macvlan");
                b.nest(IFLA_INFO_DATA, |b| b.u32(IFLA_CHILD_MODE, mode));
            }
            ChildKind::Ipvlan(mode) => {
                b.string(IFLA_INFO_KIND, "ipvlan");
                b.nest(IFLA_INFO_DATA, |b| b.u16(IFLA_CHILD_MODE, mode));
            }
        });
        self.0.execute(batch)
    }

    /// Inside a new namespace: loopback up, then each link with its addresses, up, with its default routes. One send.
    /// IPv6 does without duplicate address detection and link-local addresses, so nothing is waited for.
    pub fn configure_inside(&mut self, links: &[Inside<'_>]) -> Result<()> {
        let mut batch = Batch::new();
        set_up(&mut batch, 1, "lo");
        for link in links {
            let index = self.index(link.name)?;
            if !link.addresses.iter().any(|(a, _)| a.is_ipv6()) {
                no_link_local(&mut batch, index, "");
            }
            for (address, prefix_len) in link.addresses {
                add_address(&mut batch, index, *address, *prefix_len, 0);
            }
            set_up(&mut batch, index, "");
            for gateway in link.gateways {
                batch.begin(
                    RTM_NEWROUTE,
                    NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                    &route_header(*gateway),
                );
                batch.u32(RTA_OIF, index);
                put_ip(&mut batch, RTA_GATEWAY, *gateway);
            }
        }
        self.0.execute(batch)
    }

    /// Makes a bridge without spanning tree and without delay, not up yet.
    pub fn create_bridge(&mut self, bridge: &Bridge<'_>) -> Result<()> {
        check_name(bridge.name)?;
        let mut batch = Batch::new();
        batch.begin(
            RTM_NEWLINK,
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &link_header(0, 0, 0),
        );
        batch.string(IFLA_IFNAME, bridge.name);
        batch.put(IFLA_ADDRESS, &bridge.mac);
        if bridge.mtu != 0 {
            batch.u32(IFLA_MTU, bridge.mtu);
        }
        batch.nest(IFLA_LINKINFO, |b| {
            b.string(IFLA_INFO_KIND, "bridge");
            b.nest(IFLA_INFO_DATA, |b| {
                b.u32(IFLA_BR_FORWARD_DELAY, 0);
                b.u32(IFLA_BR_STP_STATE, 0);
            });
        });
        self.0.execute(batch)
    }

    /// Brings an interface up, with an MTU when it is not 0.
    pub fn set_up(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, NLM_F_ACK, &link_header(index, IFF_UP, IFF_UP));
        if mtu != 0 {
            batch.u32(IFLA_MTU, mtu);
        }
        self.0.execute(batch)
    }

    /// Adds an address; one that is there already is fine.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        let mut batch = Batch::new();
        add_address(&mut batch, index, address, prefix_len, NLM_F_REPLACE);
        self.0.execute(batch)
    }

    pub fn remove_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> Result<()> {
        let mut batch = Batch::new();
        batch.begin(
            RTM_DELADDR,
            NLM_F_ACK,
            &address_header(address, prefix_len, index),
        );
        put_ip(&mut batch, IFA_LOCAL, address);
        self.0.execute(batch)
    }

    /// Deletes an interface. `false` when there was none.
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        check_name(name)?;
        let mut batch = Batch::new();
        batch.begin(RTM_DELLINK, NLM_F_ACK, &link_header(0, 0, 0));
        batch.string(IFLA_IFNAME, name);
        match self.0.execute(batch) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::NODEV) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Index of an interface; `ENODEV` when there is none.
    pub fn index(&self, name: &str) -> Result<u32> {
        check_name(name)?;
        Ok(rustix::net::netdevice::name_to_index(&self.0.fd, name)?)
    }

    /// Every interface.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETLINK, NLM_F_DUMP, &link_header(0, 0, 0));
        self.collect(&batch, RTM_NEWLINK, interface)
    }

    /// Every address of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
        self.collect(&batch, RTM_NEWADDR, address)
    }

    /// Every IPv4 route but those of the local table.
    pub fn ipv4_routes(&mut self) -> Result<Vec<Route>> {
        self.routes(AF_INET)
    }

    /// Every IPv6 route but those of the local table.
    pub fn ipv6_routes(&mut self) -> Result<Vec<Route>> {
        self.routes(AF_INET6)
    }

    fn routes(&mut self, family: u8) -> Result<Vec<Route>> {
        let mut batch = Batch::new();
        let mut header = [0; 12];
        header[0] = family;
        batch.begin(RTM_GETROUTE, NLM_F_DUMP, &header);
        self.collect(&batch, RTM_NEWROUTE, route)
    }

    fn collect<T>(
        &mut self,
        batch: &Batch,
        kind: u16,
        parse: fn(&[u8]) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        self.0.dump(batch, |object| {
            match object {
                Object::Reset => found.clear(),
                Object::Item(k, body) if k == kind => found.extend(parse(body)?),
                Object::Item(..) => {}
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= NAME_LIMIT
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
    if good {
        Ok(())
    } else {
        Err(Errno::INVAL.into())
    }
}

/// Both ends alike: one queue, because veth takes no lock per queue and each costs a kernel object, and the network's MTU.
fn veth_common(batch: &mut Batch, mtu: u32) {
    batch.u32(IFLA_NUM_TX_QUEUES, 1);
    batch.u32(IFLA_NUM_RX_QUEUES, 1);
    if mtu != 0 {
        batch.u32(IFLA_MTU, mtu);
    }
}

/// By index, or by name when the index is 0.
fn set_up(batch: &mut Batch, index: u32, name: &str) {
    batch.begin(RTM_NEWLINK, NLM_F_ACK, &link_header(index, IFF_UP, IFF_UP));
    if index == 0 {
        batch.string(IFLA_IFNAME, name);
    }
}

/// A kernel without IPv6 refuses this, which is as good.
fn no_link_local(batch: &mut Batch, index: u32, name: &str) {
    batch.begin(RTM_NEWLINK, NLM_F_ACK, &link_header(index, 0, 0));
    batch.optional();
    if index == 0 {
        batch.string(IFLA_IFNAME, name);
    }
    batch.nest(IFLA_AF_SPEC, |b| {
        b.nest(u16::from(AF_INET6), |b| {
            b.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        });
    });
}

fn add_address(batch: &mut Batch, index: u32, address: IpAddr, prefix_len: u8, flags: u16) {
    batch.begin(
        RTM_NEWADDR,
        NLM_F_ACK | NLM_F_CREATE | flags,
        &address_header(address, prefix_len, index),
    );
    put_ip(batch, IFA_LOCAL, address);
    put_ip(batch, IFA_ADDRESS, address);
    if let IpAddr::V4(address) = address
        && prefix_len < 31
    {
        let broadcast = u32::from(address) | (u32::MAX >> prefix_len);
        batch.put(IFA_BROADCAST, &Ipv4Addr::from(broadcast).octets());
    }
}

fn put_ip(batch: &mut Batch, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(a) => batch.put(kind, &a.octets()),
        IpAddr::V6(a) => batch.put(kind, &a.octets()),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// `struct ifinfomsg`
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`
fn address_header(address: IpAddr, prefix_len: u8, index: u32) -> [u8; 8] {
    let mut header = [family(address), prefix_len, 0, 0, 0, 0, 0, 0];
    if address.is_ipv6() {
        header[2] = IFA_F_NODAD;
    }
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// `struct rtmsg` of a default route.
fn route_header(gateway: IpAddr) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family(gateway);
    header[4] = RT_TABLE_MAIN;
    header[5] = RTPROT_BOOT;
    header[6] = RT_SCOPE_UNIVERSE;
    header[7] = RTN_UNICAST;
    header
}

/// Splits a body in its fixed part of `N` bytes and its attributes.
fn split<const N: usize>(body: &[u8]) -> Result<(&[u8; N], &[u8])> {
    body.split_first_chunk::<N>()
        .ok_or(Error::Malformed("a cut object"))
}

fn interface(body: &[u8]) -> Result<Option<Interface>> {
    let (header, rest) = split::<16>(body)?;
    let mut found = Interface {
        index: number(&header[4..8])?,
        name: String::new(),
        kind: String::new(),
        up: number(&header[8..12])? & IFF_UP != 0,
        mtu: 0,
        mac: Vec::new(),
        master: None,
    };
    for (kind, value) in attributes(rest)? {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_MTU => found.mtu = number(value)?,
            IFLA_MASTER => found.master = Some(number(value)?),
            IFLA_ADDRESS => found.mac = value.to_vec(),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value)? {
                    if kind == IFLA_INFO_KIND {
                        found.kind = text(value);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(found))
}

/// An address of the stated family, or `None` for families that we do not know.
fn ip(family: u8, value: &[u8]) -> Result<Option<IpAddr>> {
    let wrong = Error::Malformed("an address of the wrong size");
    match family {
        AF_INET => <[u8; 4]>::try_from(value)
            .map(|b| Some(b.into()))
            .map_err(|_| wrong),
        AF_INET6 => <[u8; 16]>::try_from(value)
            .map(|b| Some(b.into()))
            .map_err(|_| wrong),
        _ => Ok(None),
    }
}

fn address(body: &[u8]) -> Result<Option<Address>> {
    let (header, rest) = split::<8>(body)?;
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(rest)? {
        match kind {
            IFA_LOCAL => local = ip(header[0], value)?,
            IFA_ADDRESS => peer = ip(header[0], value)?,
            _ => {}
        }
    }
    Ok(local.or(peer).map(|address| Address {
        interface: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
        address,
        prefix_len: header[1],
    }))
}

fn route(body: &[u8]) -> Result<Option<Route>> {
    let (header, rest) = split::<12>(body)?;
    let mut found = Route {
        destination: match header[0] {
            AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            AF_INET6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            _ => return Ok(None),
        },
        prefix_len: header[1],
        interface: None,
        table: u32::from(header[4]),
    };
    for (kind, value) in attributes(rest)? {
        match kind {
            RTA_DST => {
                if let Some(destination) = ip(header[0], value)? {
                    found.destination = destination;
                }
            }
            RTA_OIF => found.interface = Some(number(value)?),
            RTA_TABLE => found.table = number(value)?,
            _ => {}
        }
    }
    Ok((found.table != RT_TABLE_LOCAL).then_some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Runs `test` on a thread of its own in a new network namespace.
    fn in_new_namespace(test: impl FnOnce() + Send) {
        std::thread::scope(|s| {
            s.spawn(|| {
                new_network_namespace();
                test();
            })
            .join()
            .unwrap();
        });
    }

    fn new_network_namespace() {
        crate::namespace::unshare(libc::CLONE_NEWNET as u64).expect("root");
    }

    #[test]
    fn names_that_the_kernel_would_misread() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "sixteen-bytes-xx",
            "a:b",
            "a\0",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("gantry-12345678").is_ok());
    }

    #[test]
    fn cut_objects_are_refused() {
        assert!(interface(&[0; 15]).is_err());
        assert!(address(&[AF_INET, 8, 0, 0, 1, 0, 0, 0, 7, 0, 2, 0, 1, 2, 3]).is_err());
        assert!(route(&[AF_INET; 11]).is_err());
        assert_eq!(route(&[99; 12]).unwrap(), None);
    }

    #[test]
    fn a_pair_is_born_in_its_namespace_and_configured_inside() {
        in_new_namespace(|| {
            let mut host = Socket::open().unwrap();
            host.create_bridge(&Bridge {
                name: "br0",
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1400,
            })
            .unwrap();
            let bridge = host.index("br0").unwrap();
            host.add_address(bridge, "10.9.0.1".parse().unwrap(), 24)
                .unwrap();
            host.add_address(bridge, "10.9.0.1".parse().unwrap(), 24)
                .unwrap();
            host.set_up(bridge, 1400).unwrap();
            let (ready, wait) = std::sync::mpsc::channel();
            let (made, go) = std::sync::mpsc::channel::<()>();
            let inside = std::thread::spawn(move || {
                new_network_namespace();
                let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
                ready.send(netns).unwrap();
                go.recv().unwrap();
                let mut socket = Socket::open().unwrap();
                let before = std::time::Instant::now();
                socket
                    .configure_inside(&[Inside {
                        name: "eth0",
                        addresses: &[("10.9.0.2".parse().unwrap(), 24)],
                        gateways: &["10.9.0.1".parse().unwrap()],
                    }])
                    .unwrap();
                eprintln!("configure_inside {:?}", before.elapsed());
                (
                    socket.interfaces().unwrap(),
                    socket.addresses().unwrap(),
                    socket.ipv4_routes().unwrap(),
                )
            });
            let netns = wait.recv().unwrap();
            let before = std::time::Instant::now();
            host.create_veth(&Veth {
                host_name: "v0",
                peer_name: "eth0",
                peer_netns: Netns::Fd(netns.as_fd()),
                master: Some("br0"),
                peer_mac: Some([2, 0x42, 10, 9, 0, 2]),
                mtu: 1400,
                isolated: false,
            })
            .unwrap();
            eprintln!("create_veth {:?}", before.elapsed());
            made.send(()).unwrap();
            let (links, addresses, routes) = inside.join().unwrap();
            let eth0 = links.iter().find(|l| l.name == "eth0").unwrap();
            assert_eq!(
                (eth0.up, eth0.mtu, eth0.mac.as_slice()),
                (true, 1400, &[2, 0x42, 10, 9, 0, 2][..])
            );
            assert!(links.iter().any(|l| l.name == "lo" && l.up));
            assert!(
                addresses.iter().any(|a| a.interface == eth0.index
                    && a.address == "10.9.0.2".parse::<IpAddr>().unwrap())
            );
            assert!(
                addresses
                    .iter()
                    .all(|a| a.interface != eth0.index || a.address.is_ipv4()),
                "{addresses:?}"
            );
            assert!(routes.iter().any(|r| r.prefix_len == 0));
            let outside = host.interfaces().unwrap();
            // The inner namespace ended with its thread, so the pair may be gone already; the bridge is not.
            if let Some(v0) = outside.iter().find(|l| l.name == "v0") {
                assert_eq!((v0.up, v0.master), (true, Some(bridge)));
            }
            assert!(host.delete_link("br0").unwrap());
            assert!(!host.delete_link("br0").unwrap());
        });
    }

    #[test]
    fn refusals_carry_number_and_place() {
        in_new_namespace(|| {
            let mut socket = Socket::open().unwrap();
            let veth = Veth {
                host_name: "v0",
                peer_name: "eth0",
                peer_netns: Netns::Pid(i32::MAX),
                master: None,
                peer_mac: None,
                mtu: 0,
                isolated: false,
            };
            assert_eq!(
                socket.create_veth(&veth).unwrap_err().errno(),
                Some(Errno::SRCH)
            );
            let no_bridge = Veth {
                master: Some("absent"),
                ..veth
            };
            assert_eq!(
                socket.create_veth(&no_bridge).unwrap_err().errno(),
                Some(Errno::NODEV)
            );
        });
    }
}
