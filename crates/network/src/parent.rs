//! macvlan and ipvlan: containers on the wire of an interface of the host. No bridge, no translation, no published ports; the host itself does
//! not reach them over that interface (so the kernel has it).

use crate::{CreateNetwork, Error, ErrorKind, Parent, Record, Result, ResultExt, names};
use gantry_linux::netlink::{Child, ChildKind, Netns, RouteSocket, Veth};
use std::fs::File;
use std::os::fd::AsFd;

/// What the request's driver and options mean; `None` for a bridge. The kernel is asked whether it can.
pub(crate) fn plan(request: &CreateNetwork, instance: &str, id: &str) -> Result<Option<Parent>> {
    let ipvlan = match request.driver.as_str() {
        "macvlan" => false,
        "ipvlan" => true,
        _ => return Ok(None),
    };
    let driver = &request.driver;
    let option = |name: &str| request.options.get(name).map(String::as_str);
    let mode = match (
        ipvlan,
        option(&format!("{driver}_mode")).unwrap_or_default(),
    ) {
        (false, "" | "bridge") => 4,
        (false, "private") => 1,
        (false, "vepa") => 2,
        (false, "passthru") => 8,
        (true, "" | "l2") => 0,
        (true, "l3") => 1,
        (true, "l3s") => 2,
        (_, other) => {
            return Err(Error::invalid(format!(
                "requested {driver} mode '{other}' is not valid"
            )));
        }
    };
    if let Some(flag) = option("ipvlan_flag").filter(|flag| *flag != "bridge") {
        return Err(Error::new(
            ErrorKind::NotImplemented,
            format!("ipvlan_flag {flag} is not part of this build yet"),
        ));
    }
    let named = option("parent").unwrap_or_default();
    // Docker's rule: without a parent or without a way out the containers see only each other.
    let own = named.is_empty() || request.internal;
    let interface = match own {
        true => names::host_interface(instance, id),
        false => named.to_owned(),
    };
    let parent = Parent {
        interface,
        ipvlan,
        mode,
        own,
    };
    let context = || format!("looking at interface {named}");
    let mut socket = RouteSocket::open().context(context)?;
    if !own && socket.index(named).is_err() {
        return Err(Error::invalid(format!(
            "invalid parent interface {named}: it does not exist on this host, and VLAN interfaces are not made here; add it first"
        )));
    }
    probe(&mut socket, &parent, instance, id)?;
    Ok(Some(parent))
}

/// Makes such an interface and takes it away again.
fn probe(socket: &mut RouteSocket, parent: &Parent, instance: &str, id: &str) -> Result<()> {
    let kind = if parent.ipvlan { "ipvlan" } else { "macvlan" };
    let context = || format!("trying {kind} on {}", parent.interface);
    if parent.own {
        make_own(socket, parent).context(context)?;
    }
    let here = File::open("/proc/self/ns/net").context(context)?;
    let name = names::host_interface(instance, &id[12..]);
    let tried = socket.create_child(&Child {
        kind: child_kind(parent),
        parent: &parent.interface,
        name: &name,
        netns: Netns::Fd(here.as_fd()),
        mac: None,
        mtu: 0,
    });
    if tried.is_ok() {
        let _ = socket.delete_link(&name);
    }
    if parent.own {
        let _ = socket.delete_link(&parent.interface);
    }
    tried.map_err(|e| match e.errno() {
        Some(rustix::io::Errno::OPNOTSUPP) => Error::new(
            ErrorKind::NotImplemented,
            format!("this host's kernel has no {kind}: its module is missing"),
        ),
        _ => Error::invalid(format!(
            "{kind} on parent interface {} is refused by the kernel",
            parent.interface
        ))
        .with_source(e),
    })
}

pub(crate) fn child_kind(parent: &Parent) -> ChildKind {
    match parent.ipvlan {
        true => ChildKind::Ipvlan(parent.mode),
        false => ChildKind::Macvlan(u32::from(parent.mode)),
    }
}

/// Makes the parent that is ours, if it is not there: after a reboot.
pub(crate) fn settle(record: &Record) -> Result<()> {
    let Some(parent) = record.parent.as_ref().filter(|parent| parent.own) else {
        return Ok(());
    };
    let context = || format!("setting up interface {}", parent.interface);
    let mut socket = RouteSocket::open().context(context)?;
    if socket.index(&parent.interface).is_ok() {
        return Ok(());
    }
    make_own(&mut socket, parent).context(context)
}

/// A pair of ours whose far end nobody listens at: a wire that leads nowhere, with a carrier.
fn make_own(socket: &mut RouteSocket, parent: &Parent) -> std::io::Result<()> {
    let here = File::open("/proc/self/ns/net")?;
    let far: String = parent.interface.chars().rev().collect();
    let far = format!("far{}", &far[..far.len().min(12)]);
    socket.create_veth(&Veth {
        host_name: &parent.interface,
        peer_name: &far,
        peer_netns: Netns::Fd(here.as_fd()),
        master: None,
        peer_mac: None,
        mtu: 0,
        isolated: false,
    })?;
    let far = socket.index(&far)?;
    Ok(socket.set_up(far, 0)?)
}

pub(crate) fn remove(record: &Record) -> Result<()> {
    if let Some(parent) = record.parent.as_ref().filter(|parent| parent.own) {
        RouteSocket::open()
            .and_then(|mut socket| socket.delete_link(&parent.interface))
            .context(|| format!("removing interface {}", parent.interface))?;
    }
    Ok(())
}
