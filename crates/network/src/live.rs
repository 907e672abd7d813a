//! A network that a running container joins or leaves. The pair is made and configured from outside, by a thread that enters the
//! container's network namespace for that moment, so that nothing in the container has to take part.
//!
//! Joining is idempotent at every step: what a crash left half made, the same call finishes.

use crate::{Endpoint, Error, Networks, Result, ResultExt};
use gantry_linux::namespace;
use gantry_linux::netlink::{Address, Child, Inside, Interface, Netns, Route, RouteSocket, Veth};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// Interfaces `eth…` that a container has at most: a number is searched for among these.
const INTERFACES: usize = 1000;

/// A container's network namespace, held open: it stays the same one when the process ends and its number is used again.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        File::open(&path)
            .map(Self)
            .context(|| format!("opening {path}"))
    }

    /// The namespace itself.
    pub fn into_file(self) -> File {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn at(file: File) -> Self {
        Self(file)
    }

    /// Runs `work` with a socket of this namespace.
    fn enter<T: Send>(&self, work: impl FnOnce(&mut RouteSocket) -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("gantry-netns".into());
            let running = thread
                .spawn_scoped(scope, || {
                    let context = || "entering a container's network".to_owned();
                    namespace::setns(self.0.as_fd(), namespace::NEWNET).context(context)?;
                    work(&mut RouteSocket::open().context(context)?)
                })
                .context(|| "starting a thread".into())?;
            running
                .join()
                .unwrap_or_else(|_| Err(Error::internal("entering a container's network failed")))
        })
    }
}

impl Networks {
    /// Gives the running container in `namespace` the interface of `endpoint`, as far as it is not there.
    pub fn join(&self, namespace: &Namespace, endpoint: &Endpoint) -> Result<()> {
        let context = || format!("joining network {}", endpoint.network_name);
        let mut host = RouteSocket::open().context(context)?;
        if let Some(parent) = &endpoint.parent {
            let taken = namespace.enter(|socket| socket.interfaces().context(context))?;
            if locate(&taken, endpoint).is_none() {
                host.create_child(&Child {
                    kind: crate::parent::child_kind(parent),
                    parent: &parent.interface,
                    name: &free_name(&taken)?,
                    netns: Netns::Fd(namespace.0.as_fd()),
                    mac: (!parent.ipvlan).then_some(endpoint.mac),
                    mtu: endpoint.mtu,
                })
                .context(context)?;
            }
            return namespace.enter(|socket| configure(socket, endpoint));
        }
        if host.index(&endpoint.host_interface).is_err() {
            let taken = namespace.enter(|socket| socket.interfaces().context(context))?;
            let peer_name = free_name(&taken)?;
            let made = host.create_veth(&Veth {
                host_name: &endpoint.host_interface,
                peer_name: &peer_name,
                peer_netns: Netns::Fd(namespace.0.as_fd()),
                master: Some(&endpoint.bridge),
                peer_mac: Some(endpoint.mac),
                mtu: endpoint.mtu,
                isolated: endpoint.isolated,
            });
            made.context(context)?;
        }
        let configured = namespace.enter(|socket| configure(socket, endpoint));
        if configured.is_err() {
            let _ = host.delete_link(&endpoint.host_interface);
        }
        configured
    }

    /// Takes the interface of `endpoint` away. When the default route went with it, the first of `others` that has a gateway gets it.
    pub fn leave(
        &self,
        namespace: &Namespace,
        endpoint: &Endpoint,
        others: &[Endpoint],
    ) -> Result<()> {
        let context = || format!("leaving network {}", endpoint.network_name);
        if endpoint.parent.is_some() {
            namespace.enter(|socket| {
                let found = socket.interfaces().context(context)?;
                match locate(&found, endpoint) {
                    Some(interface) => socket.delete_link(&interface.name).context(context),
                    None => Ok(false),
                }
            })?;
        } else {
            RouteSocket::open()
                .and_then(|mut host| host.delete_link(&endpoint.host_interface))
                .context(context)?;
        }
        match others.iter().find(|other| other.gateway.is_some()) {
            Some(other) => namespace.enter(|socket| configure(socket, other)),
            None => Ok(()),
        }
    }
}

/// Address, up, and the default route when there is none. What is there already stays.
fn configure(socket: &mut RouteSocket, endpoint: &Endpoint) -> Result<()> {
    let context = || format!("configuring network {}", endpoint.network_name);
    let found = socket.interfaces().context(context)?;
    let Some(interface) = locate(&found, endpoint) else {
        return Err(Error::internal(format!(
            "the container's interface in network {} is gone",
            endpoint.network_name
        )));
    };
    let have = socket.addresses().context(context)?;
    let missing: Vec<(IpAddr, u8)> = endpoint
        .addresses()
        .filter(|(address, _)| {
            let same = |a: &Address| a.interface == interface.index && a.address == *address;
            !have.iter().any(same)
        })
        .collect();
    let has_default = |routes: Vec<Route>| {
        let mut main = routes.iter();
        main.any(|r| r.prefix_len == 0 && r.interface.is_some_and(|i| i > 1))
    };
    let has_default = (
        has_default(socket.ipv4_routes().context(context)?),
        has_default(socket.ipv6_routes().context(context)?),
    );
    let gateway: Vec<IpAddr> = endpoint
        .gateways()
        .filter(|gateway| match gateway {
            IpAddr::V4(_) => !has_default.0,
            IpAddr::V6(_) => !has_default.1,
        })
        .collect();
    socket
        .configure_inside(&[Inside {
            name: &interface.name,
            addresses: &missing,
            gateways: &gateway,
        }])
        .context(context)
}

/// The interface of an endpoint among those of its container. In ipvlan they have their parent's address, and a container is at most once on
/// one parent.
fn locate<'a>(found: &'a [Interface], endpoint: &Endpoint) -> Option<&'a Interface> {
    match &endpoint.parent {
        Some(parent) if parent.ipvlan => found.iter().find(|i| i.kind == "ipvlan"),
        _ => found.iter().find(|i| i.mac == endpoint.mac),
    }
}

fn free_name(taken: &[Interface]) -> Result<String> {
    (0..INTERFACES)
        .map(|number| format!("eth{number}"))
        .find(|name| !taken.iter().any(|i| i.name == *name))
        .ok_or_else(|| Error::invalid(format!("the container has {INTERFACES} interfaces already")))
}
