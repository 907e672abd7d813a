//! A network that a running container joins or leaves. The pair is made and configured from outside, by a thread that enters the
//! container's network namespace for that moment, so that nothing in the container has to take part.
//!
//! Joining is idempotent at every step: what a crash left half made, the same call finishes.

use crate::{Endpoint, Error, Networks, Result, ResultExt};
use gantry_linux::namespace;
use gantry_linux::netlink::{Inside, Interface, Netns, RouteSocket, Veth};
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
        RouteSocket::open()
            .and_then(|mut host| host.delete_link(&endpoint.host_interface))
            .context(context)?;
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
    let Some(interface) = found.into_iter().find(|i| i.mac == endpoint.mac) else {
        return Err(Error::internal(format!(
            "the container's interface in network {} is gone",
            endpoint.network_name
        )));
    };
    let has_address = socket
        .addresses()
        .context(context)?
        .iter()
        .any(|a| a.interface == interface.index && a.address == IpAddr::V4(endpoint.address));
    let has_default = socket
        .ipv4_routes()
        .context(context)?
        .iter()
        .any(|r| r.prefix_len == 0);
    let address = [(IpAddr::V4(endpoint.address), endpoint.prefix_len)];
    let gateway: Vec<IpAddr> = endpoint
        .gateway
        .filter(|_| !has_default)
        .map(Into::into)
        .into_iter()
        .collect();
    socket
        .configure_inside(&[Inside {
            name: &interface.name,
            addresses: if has_address { &[] } else { &address },
            gateways: &gateway,
        }])
        .context(context)
}

fn free_name(taken: &[Interface]) -> Result<String> {
    (0..INTERFACES)
        .map(|number| format!("eth{number}"))
        .find(|name| !taken.iter().any(|i| i.name == *name))
        .ok_or_else(|| Error::invalid(format!("the container has {INTERFACES} interfaces already")))
}
