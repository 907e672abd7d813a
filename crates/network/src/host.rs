//! What a network is on the host: its bridge, its address, the settings around it. Idempotent: start-up and repair are the same.

use crate::{Error, Record, Result, ResultExt, SCHEMA, Settings, first_host, ipam, names};
use gantry_linux::net::{set_sysctl, sysctl};
use gantry_linux::netlink::{Bridge, RouteSocket};
use gantry_linux::nft;
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const MTU: u32 = 1500;
/// Comment of the table when forwarding was off before us.
const FORWARDING_WAS_OFF: &str = "ip_forward was 0";
/// Subnets tried for the default bridge before giving up.
const TRIES: usize = 8;

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Adds the predefined networks that are missing and gives the default bridge a subnet that nobody else on the host uses.
/// Returns the records that are new or changed.
pub(crate) fn predefined(
    settings: &Settings,
    records: &mut Vec<Record>,
    in_use: impl Fn(&str) -> bool,
) -> Result<Vec<Record>> {
    let mut changed = Vec::new();
    for (name, driver) in [("bridge", "bridge"), ("host", "host"), ("none", "null")] {
        if !records.iter().any(|r| r.name == name) {
            let record = new_record(settings, name, driver)?;
            records.push(record.clone());
            changed.push(record);
        }
    }
    let position = records
        .iter()
        .position(|r| r.name == "bridge")
        .expect("added above");
    for _ in 0..TRIES {
        let others = records
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != position)
            .map(|(_, r)| r);
        let used = used_subnets_but(others, records[position].bridge.as_deref())?;
        let bridge = &mut records[position];
        let free = |subnet: Ipv4Net| !used.iter().any(|u| ipam::overlap(subnet, *u));
        match bridge.subnet {
            Some(subnet) if free(subnet) => {}
            Some(subnet) if in_use(&bridge.id) => {
                tracing::warn!(%subnet, "the default bridge's subnet is also used elsewhere on this host; containers keep it");
            }
            _ => {
                let subnet = ipam::choose_subnet(settings.subnet_pool, &used).ok_or_else(|| {
                    Error::internal(format!(
                        "every subnet of the pool {} is in use on this host; choose another with --subnet-pool",
                        settings.subnet_pool
                    ))
                })?;
                bridge.subnet = Some(subnet);
                bridge.gateway = Some(first_host(subnet));
                changed.retain(|r| r.id != bridge.id);
                changed.push(bridge.clone());
            }
        }
        settle(bridge)?;
        // Another instance may have chosen the same at the same moment: who came later yields.
        if in_use(&bridge.id) || !must_yield(bridge)? {
            return Ok(changed);
        }
        remove_bridge(bridge)?;
        bridge.subnet = None;
    }
    Err(Error::internal(
        "other programs keep taking the subnets that were chosen for the default bridge",
    ))
}

fn new_record(settings: &Settings, name: &str, driver: &str) -> Result<Record> {
    let is_bridge = driver == "bridge";
    let bridge = is_bridge.then(|| names::default_bridge(&settings.instance));
    let mut options = BTreeMap::new();
    if let Some(bridge) = &bridge {
        for (key, value) in [
            ("default_bridge", "true"),
            ("enable_icc", "true"),
            ("enable_ip_masquerade", "true"),
            ("host_binding_ipv4", "0.0.0.0"),
            ("name", bridge),
        ] {
            options.insert(format!("com.docker.network.bridge.{key}"), value.to_owned());
        }
        options.insert("com.docker.network.driver.mtu".into(), MTU.to_string());
    }
    Ok(Record {
        schema: SCHEMA,
        id: names::new_id()?,
        name: name.into(),
        driver: driver.into(),
        bridge,
        subnet: None,
        ipv6: None,
        parent: None,
        gateway: None,
        range: None,
        auxiliary: BTreeMap::new(),
        mtu: if is_bridge { MTU } else { 0 },
        internal: false,
        created_at_ns: now_ns(),
        labels: BTreeMap::new(),
        options,
    })
}

/// Every IPv4 subnet that an address or route of the host or a network of ours uses.
pub(crate) fn used_subnets<'a>(records: impl Iterator<Item = &'a Record>) -> Result<Vec<Ipv4Net>> {
    used_subnets_but(records, None)
}

fn used_subnets_but<'a>(
    records: impl Iterator<Item = &'a Record>,
    bridge: Option<&str>,
) -> Result<Vec<Ipv4Net>> {
    let context = || "reading the host's addresses and routes".to_owned();
    let mut socket = RouteSocket::open().context(context)?;
    let own = bridge.and_then(|name| socket.index(name).ok());
    let mut used = vec![Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)];
    used.extend(records.filter_map(|r| r.subnet));
    let mut add = |interface: Option<u32>, address: IpAddr, prefix_len: u8| {
        // A default route uses everything and says nothing.
        if let IpAddr::V4(address) = address
            && prefix_len > 0
            && (own.is_none() || interface != own)
            && let Ok(net) = Ipv4Net::new(address, prefix_len)
        {
            used.push(net.trunc());
        }
    };
    for a in socket.addresses().context(context)? {
        add(Some(a.interface), a.address, a.prefix_len);
    }
    for r in socket.ipv4_routes().context(context)? {
        add(r.interface, r.destination, r.prefix_len);
    }
    Ok(used)
}

/// Every IPv6 subnet that an address or route of the host uses.
pub(crate) fn used_subnets6() -> Result<Vec<Ipv6Net>> {
    let context = || "reading the host's addresses and routes".to_owned();
    let mut socket = RouteSocket::open().context(context)?;
    let addresses = socket.addresses().context(context)?;
    let addresses = addresses.iter().map(|a| (a.address, a.prefix_len));
    let routes = socket.ipv6_routes().context(context)?;
    let routes = routes.iter().map(|r| (r.destination, r.prefix_len));
    let net = |(address, prefix_len): (IpAddr, u8)| match address {
        IpAddr::V6(address) if prefix_len > 0 && !address.is_unicast_link_local() => {
            Ipv6Net::new(address, prefix_len).ok().map(|n| n.trunc())
        }
        _ => None,
    };
    Ok(addresses.chain(routes).filter_map(net).collect())
}

/// Whether an older interface has an address in the bridge's subnet.
fn must_yield(record: &Record) -> Result<bool> {
    let (Some(name), Some(subnet)) = (&record.bridge, record.subnet) else {
        return Ok(false);
    };
    let context = || format!("checking the subnet of bridge {name}");
    let mut socket = RouteSocket::open().context(context)?;
    let own = socket.index(name).context(context)?;
    let addresses = socket.addresses().context(context)?;
    Ok(addresses.iter().any(|a| match a.address {
        IpAddr::V4(address) => a.interface < own && subnet.contains(&address),
        IpAddr::V6(_) => false,
    }))
}

/// Makes the network's bridge as its record says, or repairs it.
pub(crate) fn settle(record: &Record) -> Result<()> {
    let (Some(name), Some(subnet), Some(gateway)) = (&record.bridge, record.subnet, record.gateway)
    else {
        return Ok(());
    };
    let context = || format!("setting up bridge {name}");
    let mut socket = RouteSocket::open().context(context)?;
    let found = socket
        .interfaces()
        .context(context)?
        .into_iter()
        .find(|i| i.name == *name);
    match &found {
        Some(interface) if interface.kind != "bridge" => {
            return Err(Error::internal(format!(
                "interface {name} exists and is no bridge; remove or rename it"
            )));
        }
        Some(_) => {}
        None => socket
            .create_bridge(&Bridge {
                name,
                mac: ipam::mac(gateway),
                mtu: record.mtu,
            })
            .context(context)?,
    }
    let index = socket.index(name).context(context)?;
    let six = record.ipv6;
    for a in socket.addresses().context(context)? {
        let ours = match a.address {
            IpAddr::V4(address) => address == gateway,
            // Link-local ones are the kernel's.
            IpAddr::V6(address) => {
                address.is_unicast_link_local() || six.is_some_and(|s| s.gateway == address)
            }
        };
        if a.interface == index && !ours {
            socket
                .remove_address(index, a.address, a.prefix_len)
                .context(context)?;
        }
    }
    if let Some(six) = six {
        for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
            set_sysctl(&format!("ipv6/conf/{name}/{key}"), value).context(context)?;
        }
        socket
            .add_address(index, six.gateway.into(), six.subnet.prefix_len())
            .context(context)?;
        // Nobody routes IPv6 on a host unless told. It is told here, and as long as the kernel runs.
        set_sysctl("ipv6/conf/all/forwarding", "1").context(context)?;
    }
    socket
        .add_address(index, gateway.into(), subnet.prefix_len())
        .context(context)?;
    if !found.is_some_and(|f| f.up && f.mtu == record.mtu) {
        socket.set_up(index, record.mtu).context(context)?;
    }
    Ok(())
}

/// Lets connections to ports published on 127.0.0.1 out to the bridge; without it the kernel refuses to send them there. Only
/// once the table stands, whose guard chain keeps containers away from the host's loopback.
pub(crate) fn route_loopback(record: &Record) -> Result<()> {
    if let Some(name) = &record.bridge {
        set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1")
            .context(|| format!("setting route_localnet of bridge {name}"))?;
    }
    Ok(())
}

pub(crate) fn remove_bridge(record: &Record) -> Result<()> {
    if let Some(name) = &record.bridge {
        RouteSocket::open()
            .and_then(|mut socket| socket.delete_link(name))
            .context(|| format!("removing bridge {name}"))?;
    }
    Ok(())
}

/// What the table's comment must say: forwarding is off, or one of our instances found it off.
pub(crate) fn forwarding_note(nft: &mut nft::Socket) -> Result<&'static str> {
    let off = sysctl("ipv4/ip_forward").context(|| "reading net.ipv4.ip_forward".into())? == "0";
    let tables = nft.tables().context(|| "reading nftables".into())?;
    let noted = tables.iter().any(|t| t.comment == FORWARDING_WAS_OFF);
    Ok(if off || noted { FORWARDING_WAS_OFF } else { "" })
}

pub(crate) fn switch_forwarding_on() -> Result<()> {
    set_sysctl("ipv4/ip_forward", "1").context(|| "setting net.ipv4.ip_forward".into())?;
    Ok(())
}

/// Takes table, bridges and forwarding off the host.
pub(crate) fn remove(nft: &mut nft::Socket, instance: &str) -> Result<()> {
    let context = || format!("removing the networks of {instance}");
    let was_off = nft.tables().context(context)?.iter().any(|t| {
        t.family == nft::Family::Inet && t.name == instance && t.comment == FORWARDING_WAS_OFF
    });
    nft.commit(&crate::rules::remove(instance))
        .context(context)?;
    let mut socket = RouteSocket::open().context(context)?;
    let mut foreign_bridge = false;
    for interface in socket.interfaces().context(context)? {
        // The kernel takes a pair away some time after its namespace ended; purged means now.
        if interface.kind == "veth" && names::is_own_pair(instance, &interface.name) {
            socket.delete_link(&interface.name).context(context)?;
        }
        if interface.kind != "bridge" {
            continue;
        }
        if names::is_own_bridge(instance, &interface.name) {
            socket.delete_link(&interface.name).context(context)?;
        } else {
            foreign_bridge = true;
        }
    }
    if was_off && !foreign_bridge {
        set_sysctl("ipv4/ip_forward", "0").context(context)?;
    }
    Ok(())
}
