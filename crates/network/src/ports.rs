//! Sockets on the host for published ports: they keep the port against everybody else, also while no daemon lives.

use crate::{PortBinding, PortRequest};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

const BACKLOG: i32 = 4096;

/// What Docker takes when the kernel does not say which ports are ephemeral.
const FALLBACK_RANGE: (u16, u16) = (49153, 65535);

/// Who of this instance holds which port; the kernel's own answer decides, this only words it.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    held: HashMap<(bool, IpAddr, u16), String>,
    /// Where the next search for a free port begins.
    next: u16,
}

/// Why a port cannot be published, in Docker's words behind `driver failed programming external connectivity on endpoint …: `.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

impl Ports {
    pub(crate) fn hold(&mut self, container: &str, binding: &PortBinding) {
        let key = (binding.udp, binding.host_ip, binding.host_port);
        self.held.insert(key, container.to_owned());
    }
    pub(crate) fn release(&mut self, container: &str) {
        self.held.retain(|_, holder| holder != container);
    }

    /// Binds everything or nothing. `target`: the container's address, for the words only.
    pub(crate) fn reserve(
        &mut self,
        container: &str,
        target: Ipv4Addr,
        requests: &[PortRequest],
    ) -> Result<(Vec<PortBinding>, Vec<OwnedFd>), Refusal> {
        let (mut bindings, mut sockets) = (Vec::new(), Vec::new());
        for request in requests {
            for (binding, socket) in self.reserve_one(target, request)? {
                bindings.push(binding);
                sockets.push(socket);
            }
        }
        for binding in &bindings {
            self.hold(container, binding);
        }
        Ok((bindings, sockets))
    }

    fn reserve_one(
        &mut self,
        target: Ipv4Addr,
        request: &PortRequest,
    ) -> Result<Vec<(PortBinding, OwnedFd)>, Refusal> {
        let (from, to) = request.host_ports;
        if from == 0 {
            return self.reserve_ephemeral(target, request);
        }
        for port in from..=to.max(from) {
            match try_port(request, port) {
                Ok(found) => return Ok(found),
                Err((_, Errno::ADDRINUSE)) if to > from => {}
                Err((ip, errno)) => return Err(self.refusal(request, ip, port, target, errno)),
            }
        }
        Err(Refusal("all ports are allocated".into()))
    }

    fn reserve_ephemeral(
        &mut self,
        target: Ipv4Addr,
        request: &PortRequest,
    ) -> Result<Vec<(PortBinding, OwnedFd)>, Refusal> {
        let (first, last) = ephemeral_range();
        if !(first..=last).contains(&self.next) {
            self.next = first;
        }
        let start = self.next;
        for port in (start..=last).chain(first..start) {
            match try_port(request, port) {
                Ok(found) => {
                    self.next = port.checked_add(1).unwrap_or(first);
                    return Ok(found);
                }
                Err((_, Errno::ADDRINUSE | Errno::ACCESS)) => {}
                Err((ip, errno)) => return Err(self.refusal(request, ip, port, target, errno)),
            }
        }
        Err(Refusal("all ports are allocated".into()))
    }

    fn refusal(
        &self,
        request: &PortRequest,
        ip: IpAddr,
        port: u16,
        target: Ipv4Addr,
        errno: Errno,
    ) -> Refusal {
        let host = SocketAddr::new(ip, port);
        if errno == Errno::ADDRINUSE && self.is_held(request.udp, ip, port) {
            return Refusal(format!("Bind for {host} failed: port is already allocated"));
        }
        let protocol = if request.udp { "udp" } else { "tcp" };
        let why = match errno {
            Errno::ADDRINUSE => "address already in use".to_owned(),
            Errno::ADDRNOTAVAIL => "cannot assign requested address".to_owned(),
            Errno::ACCESS => "permission denied".to_owned(),
            other => std::io::Error::from(other).to_string(),
        };
        Refusal(format!(
            "failed to bind host port for {host}:{target}:{}/{protocol}: {why}",
            request.container_port
        ))
    }

    fn is_held(&self, udp: bool, ip: IpAddr, port: u16) -> bool {
        self.held.keys().any(|(u, i, p)| {
            *u == udp
                && *p == port
                && i.is_ipv4() == ip.is_ipv4()
                && (*i == ip || i.is_unspecified() || ip.is_unspecified())
        })
    }
}

/// Every address of the request on this port, or the address that failed and why.
fn try_port(
    request: &PortRequest,
    port: u16,
) -> Result<Vec<(PortBinding, OwnedFd)>, (IpAddr, Errno)> {
    let both = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let addresses = match &request.host_ip {
        Some(ip) => std::slice::from_ref(ip),
        None => &both[..],
    };
    let mut found = Vec::new();
    for ip in addresses {
        match guard(request.udp, SocketAddr::new(*ip, port)) {
            Ok(socket) => {
                let binding = PortBinding {
                    udp: request.udp,
                    container_port: request.container_port,
                    host_ip: *ip,
                    host_port: port,
                };
                found.push((binding, socket));
            }
            // A host without IPv6 still publishes on IPv4.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                if ip.is_ipv6() && request.host_ip.is_none() => {}
            Err(errno) => return Err((*ip, errno)),
        }
    }
    Ok(found)
}

/// A socket that holds the port. TCP listens at once, because only a listening socket keeps others out that also set
/// `SO_REUSEADDR`; UDP goes without that option, which would let others in.
fn guard(udp: bool, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let kind = if udp {
        SocketType::DGRAM
    } else {
        SocketType::STREAM
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if !udp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if !udp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn ephemeral_range() -> (u16, u16) {
    gantry_linux::net::sysctl("ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| parse_range(&text))
        .unwrap_or(FALLBACK_RANGE)
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_ascii_whitespace();
    let range = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (range.0 > 0 && range.0 <= range.1).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const TARGET: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

    fn request(host_ip: Option<&str>, host_ports: (u16, u16)) -> PortRequest {
        PortRequest {
            udp: false,
            container_port: 80,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_ports,
        }
    }

    #[test]
    fn ephemeral_ports_come_for_both_families_and_keep_others_out() {
        let mut ports = Ports::default();
        let (bindings, sockets) = ports
            .reserve("a", TARGET, &[request(None, (0, 0))])
            .unwrap();
        let port = bindings[0].host_port;
        assert_eq!(bindings[0].host_ip, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert!(bindings.iter().all(|b| b.host_port == port));
        assert_eq!(bindings.len(), sockets.len());
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());

        let own = ports
            .reserve("b", TARGET, &[request(None, (port, port))])
            .unwrap_err();
        assert_eq!(
            own.0,
            format!("Bind for 0.0.0.0:{port} failed: port is already allocated")
        );
        // Another family of the same number is nobody's.
        drop(sockets);
        ports.release("a");
        assert!(!ports.is_held(false, "::".parse().unwrap(), port));
    }

    #[test]
    fn a_foreign_listener_is_named_otherwise() {
        let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = foreign.local_addr().unwrap().port();
        let mut ports = Ports::default();
        let refused = ports
            .reserve("a", TARGET, &[request(Some("127.0.0.1"), (port, port))])
            .unwrap_err();
        assert_eq!(
            refused.0,
            format!(
                "failed to bind host port for 127.0.0.1:{port}:172.17.0.2:80/tcp: address already in use"
            )
        );
        let refused = ports
            .reserve("a", TARGET, &[request(Some("192.0.2.250"), (0, 0))])
            .unwrap_err();
        assert!(
            refused.0.ends_with("cannot assign requested address"),
            "{refused:?}"
        );
    }

    #[test]
    fn udp_ports_are_held_too() {
        let mut ports = Ports::default();
        let mut wanted = request(Some("127.0.0.1"), (0, 0));
        wanted.udp = true;
        let (bindings, _sockets) = ports.reserve("a", TARGET, &[wanted.clone()]).unwrap();
        let port = bindings[0].host_port;
        assert!(std::net::UdpSocket::bind(("127.0.0.1", port)).is_err());
        // TCP of the same number is free.
        assert!(!ports.is_held(false, bindings[0].host_ip, port));
    }

    #[test]
    fn all_or_none() {
        let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = foreign.local_addr().unwrap().port();
        let mut ports = Ports::default();
        let both = [
            request(Some("127.0.0.1"), (0, 0)),
            request(Some("127.0.0.1"), (taken, taken)),
        ];
        assert!(ports.reserve("a", TARGET, &both).is_err());
        assert!(ports.held.is_empty());
    }

    #[test]
    fn a_range_takes_its_first_free_port() {
        // A listener and the port behind it, found free for the test by trying.
        let mut ports = Ports::default();
        for _ in 0..50 {
            let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
            let taken = foreign.local_addr().unwrap().port();
            let Some(next) = taken.checked_add(1) else {
                continue;
            };
            if TcpListener::bind(("127.0.0.1", next)).is_err() {
                continue;
            }
            let wanted = request(Some("127.0.0.1"), (taken, next));
            let Ok((bindings, _sockets)) = ports.reserve("a", TARGET, &[wanted]) else {
                continue;
            };
            assert_eq!(bindings[0].host_port, next);
            return;
        }
        panic!("no two neighbouring ports in fifty tries");
    }

    #[test]
    fn ranges_of_the_kernel() {
        assert_eq!(parse_range("32768\t60999"), Some((32768, 60999)));
        for odd in ["", "1", "9 1", "0 5", "x y", "1 70000"] {
            assert_eq!(parse_range(odd), None, "{odd}");
        }
    }
}
