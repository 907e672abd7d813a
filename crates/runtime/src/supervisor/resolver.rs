//! The sockets at which a container asks for names: 127.0.0.11, port 53. The supervisor only holds them; the daemon reads and answers.
//!
//! They are bound to ports that the kernel chooses, and the container's own nftables lead port 53 there: a container that is itself a
//! name server can have port 53 on every address. Where the kernel cannot translate, they are bound to port 53.

use gantry_linux::namespace;
use gantry_linux::nft::{Base, Command, Expression, Family, Hook, Meta, Register, Socket};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
const TABLE: &str = "gantry-dns";
const BACKLOG: i32 = 128;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Datagrams first.
pub(super) type Sockets = [OwnedFd; 2];

/// Makes the sockets in the network namespace of `pid`. The calling process is single-threaded and comes back to its own.
pub(super) fn open(pid: i32) -> io::Result<Sockets> {
    let own = File::open("/proc/self/ns/net")?;
    let theirs = File::open(format!("/proc/{pid}/ns/net"))?;
    namespace::setns(&theirs, namespace::NEWNET)?;
    let made = open_here();
    // Without its own network the supervisor could not serve published ports: better no container than that.
    namespace::setns(&own, namespace::NEWNET)?;
    made
}

fn open_here() -> io::Result<Sockets> {
    // The address is there with the interface. Bound without it (freebind) the kernel would answer from 127.0.0.1.
    namespace::loopback_up()?;
    let sockets = [socket(UDP, 0)?, socket(TCP, 0)?];
    let ports = [port_of(&sockets[0])?, port_of(&sockets[1])?];
    match translate(ports) {
        Ok(()) => Ok(sockets),
        Err(_) => Ok([socket(UDP, PORT)?, socket(TCP, PORT)?]),
    }
}

fn socket(protocol: u8, port: u16) -> io::Result<OwnedFd> {
    let kind = if protocol == UDP {
        SocketType::DGRAM
    } else {
        SocketType::STREAM
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    bind(&socket, &SocketAddrV4::new(ADDRESS, port))?;
    if protocol == TCP {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn port_of(socket: impl AsFd) -> io::Result<u16> {
    let address = SocketAddrV4::try_from(rustix::net::getsockname(socket)?)?;
    Ok(address.port())
}

/// One transaction: port 53 of [`ADDRESS`] is where the sockets are.
fn translate([udp, tcp]: [u16; 2]) -> Result<(), gantry_linux::netlink::wire::Error> {
    const A: Register = Register(0);
    const B: Register = Register(1);
    let (family, table, chain) = (Family::Ipv4, TABLE.to_owned(), "output".to_owned());
    let mut commands = vec![
        Command::AddTable {
            family,
            table: table.clone(),
            comment: String::new(),
        },
        Command::AddChain {
            family,
            table: table.clone(),
            chain: chain.clone(),
            base: Some(Base {
                kind: "nat",
                hook: Hook::Output,
                priority: -100,
            }),
        },
    ];
    for (protocol, port) in [(UDP, udp), (TCP, tcp)] {
        commands.push(Command::AddRule {
            family,
            table: table.clone(),
            chain: chain.clone(),
            first: false,
            expressions: vec![
                Expression::Destination(A),
                Expression::Equal(A, ADDRESS.octets().to_vec()),
                Expression::Meta(Meta::TransportProtocol, A),
                Expression::Equal(A, vec![protocol]),
                Expression::DestinationPort(A),
                Expression::Equal(A, PORT.to_be_bytes().to_vec()),
                Expression::Load(A, ADDRESS.octets().to_vec()),
                Expression::Load(B, port.to_be_bytes().to_vec()),
                Expression::TranslateDestination {
                    address: A,
                    port: B,
                },
            ],
            comment: String::new(),
        });
    }
    Socket::open()?.commit(&commands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn questions_to_port_53_arrive_and_the_port_is_free() {
        let work = || {
            let begin = std::time::Instant::now();
            let sockets = open_here().unwrap();
            println!("made in {} µs", begin.elapsed().as_micros());
            let [datagrams, listener] = sockets;
            let datagrams = UdpSocket::from(datagrams);
            datagrams.set_nonblocking(false).unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect((ADDRESS, PORT)).unwrap();
            client.send(b"ask").unwrap();
            let mut buffer = [0; 16];
            let (_, from) = datagrams.recv_from(&mut buffer).unwrap();
            datagrams.send_to(b"answer", from).unwrap();
            // A connected socket hears only the address that it asked.
            assert_eq!(client.recv(&mut buffer).unwrap(), 6);
            TcpStream::connect((ADDRESS, PORT)).unwrap();
            drop(listener);
            UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
            TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        };
        gantry_linux::net::in_new_namespace(work).unwrap();
    }
}
