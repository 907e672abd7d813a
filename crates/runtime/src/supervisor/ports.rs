//! Published ports: bound sockets held so that conflicts show, and connections forwarded that the kernel's NAT does not take.
//!
//! Data is copied through one shared buffer, not spliced: a splice needs a pipe per direction (four descriptors and 128 KiB of
//! kernel memory per connection) and takes as many system calls, which for small requests is all that counts.
//!
//! Limits: [`CONNECTIONS`] forwarded at a time, more wait in the kernel's backlog; [`FLOWS`] UDP clients, the longest silent one makes room.

use super::poll::{Key, Kind, Poll, Ready, Table};
use super::session::Watch;
use crate::proto::Forward;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 256;
const FLOWS: usize = 256;
/// A UDP client that is silent for so long is forgotten.
const FLOW_IDLE: Duration = Duration::from_secs(60);
const SWEEP: Duration = Duration::from_secs(15);
/// How long accepting rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(200);
/// Datagrams or buffers moved before others get their turn.
const TURN: usize = 16;
/// What a read takes at most.
pub(super) const BUFFER: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Ports {
    ports: Table<Port>,
    connections: Table<Connection>,
    flows: Table<Flow>,
    /// Some TCP ports do not accept at the moment.
    parked: bool,
    /// When to look at flows or to accept again.
    pub(super) deadline: Option<Instant>,
}

#[derive(Debug)]
enum Port {
    Tcp {
        listener: TcpListener,
        target: SocketAddr,
    },
    Udp {
        socket: UdpSocket,
        target: SocketAddr,
        flows: BTreeMap<SocketAddr, Key>,
    },
}

/// One forwarded TCP connection: the client's side and the container's.
#[derive(Debug)]
struct Connection {
    sides: [Side; 2],
    connecting: bool,
}

#[derive(Debug)]
struct Side {
    watch: Watch,
    /// Read from the other side, not yet taken by this one.
    pending: Vec<u8>,
    /// This side will send no more.
    ended: bool,
    /// This side was told that it will get no more.
    shut: bool,
}

/// One UDP client of one port.
#[derive(Debug)]
struct Flow {
    socket: UdpSocket,
    client: SocketAddr,
    port: Key,
    used: Instant,
}

impl Ports {
    /// Takes the sockets over and begins to serve them.
    pub(super) fn open(
        poll: &Poll,
        forwards: &[Forward],
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let mut ports = Self::default();
        for (forward, socket) in forwards.iter().zip(sockets) {
            let port = Port::new(*forward, socket)?;
            let key = ports.ports.insert(port);
            ports
                .ports
                .get(key)
                .expect("just inserted")
                .watch(poll, key)?;
        }
        Ok(ports)
    }

    pub(super) fn handle(&mut self, poll: &Poll, ready: Ready, scratch: &mut [u8], now: Instant) {
        match ready.kind {
            Kind::Port => match self.ports.get(ready.key) {
                Some(Port::Tcp { .. }) => self.accept(poll, ready.key, now),
                Some(Port::Udp { .. }) => self.receive(poll, ready.key, scratch, now),
                None => {}
            },
            Kind::Client | Kind::Target => self.forward(poll, ready.key, scratch, now),
            Kind::Flow => self.answer(ready.key, scratch, now),
            Kind::Listener
            | Kind::Connection
            | Kind::Process
            | Kind::Stdin
            | Kind::Stdout
            | Kind::Stderr => {}
        }
    }

    /// What is due by time.
    pub(super) fn tick(&mut self, poll: &Poll, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        for key in self.flows.keys() {
            if self
                .flows
                .get(key)
                .is_some_and(|flow| now - flow.used >= FLOW_IDLE)
            {
                self.forget(poll, key);
            }
        }
        self.deadline = (self.flows.len() > 0).then(|| now + SWEEP);
        self.unpark(poll);
    }

    fn accept(&mut self, poll: &Poll, key: Key, now: Instant) {
        for _ in 0..TURN {
            let Some(Port::Tcp { listener, target }) = self.ports.get(key) else {
                return;
            };
            if self.connections.len() >= CONNECTIONS {
                return self.park(poll);
            }
            let (client, target) = match listener.accept() {
                Ok((client, _)) => (client, *target),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if is_exhausted(&e) => return self.rest(poll, now),
                // One client's failure, such as a connection that was reset in the backlog.
                Err(_) => continue,
            };
            match Connection::open(client, target) {
                Ok(connection) => {
                    let key = self.connections.insert(connection);
                    let connection = self.connections.get_mut(key).expect("just inserted");
                    connection.watch(poll, key);
                }
                Err(e) if is_exhausted(&e) => return self.rest(poll, now),
                // The container does not listen: the client sees its connection closed.
                Err(_) => {}
            }
        }
    }

    fn rest(&mut self, poll: &Poll, now: Instant) {
        self.park(poll);
        self.deadline = Some(now + REST);
    }

    fn park(&mut self, poll: &Poll) {
        self.parked = true;
        self.each_listener(|listener, key| {
            poll.modify(listener, Kind::Port, key, EventFlags::empty())
        });
    }

    fn unpark(&mut self, poll: &Poll) {
        if std::mem::take(&mut self.parked) {
            self.each_listener(|listener, key| {
                poll.modify(listener, Kind::Port, key, EventFlags::IN)
            });
        }
    }

    fn each_listener(&self, act: impl Fn(&TcpListener, Key) -> rustix::io::Result<()>) {
        for (key, port) in self.ports.iter() {
            if let Port::Tcp { listener, .. } = port {
                let _ = act(listener, key);
            }
        }
    }

    fn forward(&mut self, poll: &Poll, key: Key, scratch: &mut [u8], _now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match connection.pump(scratch) {
            Ok(true) => connection.watch(poll, key),
            Ok(false) | Err(_) => {
                for side in &mut connection.sides {
                    side.watch.clear(poll);
                }
                self.connections.remove(key);
                self.unpark(poll);
            }
        }
    }

    fn receive(&mut self, poll: &Poll, key: Key, scratch: &mut [u8], now: Instant) {
        for _ in 0..TURN {
            let Some(Port::Udp { socket, flows, .. }) = self.ports.get(key) else {
                return;
            };
            let (length, client) = match socket.recv_from(scratch) {
                Ok(received) => received,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier answer.
                Err(_) => continue,
            };
            let flow = match flows.get(&client) {
                Some(&flow) => Some(flow),
                None => self.open_flow(poll, key, client, now).ok(),
            };
            // Datagrams may be lost, so one that cannot be passed on is.
            if let Some(flow) = flow.and_then(|flow| self.flows.get_mut(flow)) {
                flow.used = now;
                let _ = flow.socket.send(&scratch[..length]);
            }
        }
    }

    fn open_flow(
        &mut self,
        poll: &Poll,
        port: Key,
        client: SocketAddr,
        now: Instant,
    ) -> io::Result<Key> {
        if self.flows.len() >= FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used);
            if let Some(oldest) = oldest.map(|(key, _)| key) {
                self.forget(poll, oldest);
            }
        }
        let Some(Port::Udp { target, flows, .. }) = self.ports.get_mut(port) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let socket = rustix::net::socket_with(
            family(*target),
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, target)?;
        let key = self.flows.insert(Flow {
            socket: socket.into(),
            client,
            port,
            used: now,
        });
        flows.insert(client, key);
        let flow = self.flows.get(key).expect("just inserted");
        poll.add(&flow.socket, Kind::Flow, key, EventFlags::IN)?;
        self.deadline.get_or_insert(now + SWEEP);
        Ok(key)
    }

    fn answer(&mut self, key: Key, scratch: &mut [u8], now: Instant) {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(key) else {
                return;
            };
            match flow.socket.recv(scratch) {
                Ok(length) => {
                    flow.used = now;
                    if let Some(Port::Udp { socket, .. }) = self.ports.get(flow.port) {
                        let _ = socket.send_to(&scratch[..length], flow.client);
                    }
                }
                // Also a refusal: the program in the container may listen later.
                Err(_) => return,
            }
        }
    }

    fn forget(&mut self, poll: &Poll, key: Key) {
        if let Some(flow) = self.flows.remove(key) {
            poll.remove(&flow.socket);
            if let Some(Port::Udp { flows, .. }) = self.ports.get_mut(flow.port) {
                flows.remove(&flow.client);
            }
        }
    }
}

impl Port {
    fn new(forward: Forward, socket: OwnedFd) -> io::Result<Self> {
        let target = forward.target;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(if forward.udp {
            Port::Udp {
                socket: socket.into(),
                target,
                flows: BTreeMap::new(),
            }
        } else {
            Port::Tcp {
                listener: socket.into(),
                target,
            }
        })
    }

    fn watch(&self, poll: &Poll, key: Key) -> io::Result<()> {
        match self {
            Port::Tcp { listener, .. } => poll.add(listener, Kind::Port, key, EventFlags::IN)?,
            Port::Udp { socket, .. } => poll.add(socket, Kind::Port, key, EventFlags::IN)?,
        }
        Ok(())
    }
}

impl Connection {
    fn open(client: TcpStream, target: SocketAddr) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        let socket = rustix::net::socket_with(
            family(target),
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let connecting = match rustix::net::connect(&socket, &target) {
            Ok(()) => false,
            Err(Errno::INPROGRESS) => true,
            Err(e) => return Err(e.into()),
        };
        let sides = [OwnedFd::from(client), socket].map(Side::new);
        for side in &sides {
            let _ = sockopt::set_tcp_nodelay(side.watch.fd(), true);
            let _ = sockopt::set_socket_keepalive(side.watch.fd(), true);
        }
        Ok(Self { sides, connecting })
    }

    fn watch(&mut self, poll: &Poll, key: Key) {
        let waits = [0, 1].map(|this: usize| !self.sides[1 - this].pending.is_empty());
        for (this, kind) in [Kind::Client, Kind::Target].into_iter().enumerate() {
            let side = &mut self.sides[this];
            let mut flags = EventFlags::empty();
            flags.set(
                EventFlags::IN,
                !self.connecting && !side.ended && !waits[this],
            );
            flags.set(
                EventFlags::OUT,
                !side.pending.is_empty() || (self.connecting && kind == Kind::Target),
            );
            side.watch.set(poll, kind, key, flags, false);
        }
    }

    /// Moves what can be moved, in both directions. False when all is said.
    fn pump(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        if self.connecting {
            match sockopt::socket_error(self.sides[1].watch.fd())? {
                Ok(()) if is_connected(&self.sides[1]) => self.connecting = false,
                Ok(()) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
        let [client, target] = &mut self.sides;
        copy(client, target, scratch)?;
        copy(target, client, scratch)?;
        Ok(!(client.shut && target.shut))
    }
}

impl Side {
    fn new(socket: OwnedFd) -> Self {
        Self {
            watch: Watch::new(socket),
            pending: Vec::new(),
            ended: false,
            shut: false,
        }
    }
}

fn copy(from: &mut Side, to: &mut Side, scratch: &mut [u8]) -> io::Result<()> {
    for _ in 0..TURN {
        if !to.pending.is_empty() {
            let written = write(to, &to.pending)?;
            to.pending.drain(..written);
            if !to.pending.is_empty() {
                return Ok(());
            }
            to.pending = Vec::new();
        }
        if from.ended {
            if !std::mem::replace(&mut to.shut, true) {
                let how = rustix::net::Shutdown::Write;
                // A side that is gone already needs no word.
                let _ = rustix::net::shutdown(to.watch.fd(), how);
            }
            return Ok(());
        }
        match rustix::io::read(from.watch.fd(), &mut scratch[..BUFFER]) {
            Ok(0) => from.ended = true,
            Ok(length) => {
                let written = write(to, &scratch[..length])?;
                to.pending.extend_from_slice(&scratch[written..length]);
                // A buffer that was not filled was the last for now.
                if length < BUFFER && to.pending.is_empty() {
                    return Ok(());
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn write(to: &Side, bytes: &[u8]) -> io::Result<usize> {
    match rustix::net::send(to.watch.fd(), bytes, rustix::net::SendFlags::NOSIGNAL) {
        Ok(written) => Ok(written),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

fn is_connected(side: &Side) -> bool {
    rustix::net::getpeername(side.watch.fd()).is_ok()
}

fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
