//! The server of one container: reads its two sockets until told to stop.
//!
//! Bounds per container: packets of a window, questions that are being forwarded, TCP connections and their time. What goes over them
//! waits in the kernel or gets "server failure", and delays nobody else.

use super::directory::{Answer, Directory, Server};
use super::message::{self, Bad, Code, Query};
use gantry_linux::net::in_namespace;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// A question is never longer than this; what is, is cut and refused.
const QUESTION: usize = 4096;
/// A forwarded answer over UDP; a longer one is asked for again over TCP.
const ANSWER: usize = 4096;
/// Questions of a container in [`WINDOW`].
const PACKETS: u32 = 2000;
const WINDOW: Duration = Duration::from_millis(100);
/// Questions of a container that are asked elsewhere at a time.
const FORWARDED: usize = 128;
/// The same of all containers.
const FORWARDED_IN_ALL: usize = 1024;
const CONNECTIONS: usize = 32;
/// Questions over one connection.
const PER_CONNECTION: usize = 1000;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How long a server may take, and how many are tried.
const PATIENCE: Duration = Duration::from_secs(2);
const SERVERS: usize = 3;

static FORWARDING: Semaphore = Semaphore::const_new(FORWARDED_IN_ALL);

/// What a container's supervisor holds: the datagram socket and the listener.
#[derive(Debug)]
pub struct Sockets {
    pub datagrams: OwnedFd,
    pub listener: OwnedFd,
}

struct Container {
    directory: Arc<Directory>,
    container: String,
    /// Where questions are forwarded from.
    namespace: File,
    forwarded: Semaphore,
}

/// Answers the questions of `container`, whose network namespace is `namespace`. Ends only with an error; dropping it stops serving.
pub async fn serve(
    directory: Arc<Directory>,
    container: String,
    sockets: Sockets,
    namespace: File,
) -> io::Result<std::convert::Infallible> {
    let datagrams = std::net::UdpSocket::from(sockets.datagrams);
    datagrams.set_nonblocking(true)?;
    let datagrams = Arc::new(UdpSocket::from_std(datagrams)?);
    let listener = std::net::TcpListener::from(sockets.listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let server = Arc::new(Container {
        directory,
        container,
        namespace,
        forwarded: Semaphore::new(FORWARDED),
    });
    // Whoever drops this future ends every task that it started.
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; QUESTION];
    let (mut window, mut packets) = (Instant::now(), 0);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        tokio::select! {
            received = datagrams.recv_from(&mut buffer) => match received {
                Ok((length, from)) => {
                    server.datagram(&datagrams, &buffer[..length], from, &mut tasks);
                    packets += 1;
                }
                // Of an earlier answer: the client has gone.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => packets += 1,
                Err(e) => return Err(e),
            },
            accepted = listener.accept() => {
                packets += 1;
                if let (Ok((stream, _)), Ok(permit)) =
                    (accepted, connections.clone().try_acquire_owned())
                {
                    let server = server.clone();
                    tasks.spawn(async move {
                        // A client that breaks off is no matter.
                        let _ = server.connection(stream).await;
                        drop(permit);
                    });
                }
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
        if window.elapsed() >= WINDOW {
            (window, packets) = (Instant::now(), 0);
        } else if packets >= PACKETS {
            tokio::time::sleep_until(window + WINDOW).await;
        }
    }
}

enum Reply {
    Now(Vec<u8>),
    Ask(Query, Vec<Server>),
    Silence,
}

impl Container {
    fn reply(&self, packet: &[u8], limit: impl FnOnce(&Query) -> usize) -> Reply {
        let query = match message::parse(packet) {
            Ok(query) => query,
            Err(Bad::Answer(answer)) => return Reply::Now(answer),
            Err(Bad::Silent) => return Reply::Silence,
        };
        if !query.is_internet() {
            return Reply::Now(query.answer_nothing(Code::Refused));
        }
        let name = query.name.as_deref();
        let answer = self
            .directory
            .look_up(&self.container, name, query.reverse(), query.kind);
        Reply::Now(match answer {
            Answer::Known(records) => query.answer(Code::NoError, &records, limit(&query)),
            Answer::Nowhere => query.answer_nothing(Code::NoSuchName),
            Answer::Elsewhere(servers) if servers.is_empty() => {
                query.answer_nothing(Code::ServerFailure)
            }
            Answer::Elsewhere(servers) => return Reply::Ask(query, servers),
        })
    }

    fn datagram(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        packet: &[u8],
        from: SocketAddr,
        tasks: &mut tokio::task::JoinSet<()>,
    ) {
        match self.reply(packet, Query::udp_limit) {
            Reply::Silence => {}
            // A full buffer is a client that does not read: its loss.
            Reply::Now(answer) => drop(socket.try_send_to(&answer, from)),
            Reply::Ask(query, servers) => {
                if self.forwarded.available_permits() == 0 {
                    let answer = query.answer_nothing(Code::ServerFailure);
                    let _ = socket.try_send_to(&answer, from);
                    return;
                }
                let (server, socket, packet) = (self.clone(), socket.clone(), packet.to_vec());
                tasks.spawn(async move {
                    let answer = server.ask(&query, packet, &servers, false).await;
                    let _ = socket.send_to(&answer, from).await;
                });
            }
        }
    }

    /// RFC 7766: several questions over one connection, each behind its length.
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        for _ in 0..PER_CONNECTION {
            let question = async {
                let length = usize::from(stream.read_u16().await?);
                if length > QUESTION {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let mut packet = vec![0; length];
                stream.read_exact(&mut packet).await?;
                Ok::<_, io::Error>(packet)
            };
            let packet = timeout(IDLE, question).await??;
            let answer = match self.reply(&packet, |_| usize::MAX) {
                Reply::Now(answer) => answer,
                Reply::Silence => return Ok(()),
                Reply::Ask(query, servers) => self.ask(&query, packet, &servers, true).await,
            };
            let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    /// The first useful answer of the servers, in the client's terms.
    async fn ask(
        &self,
        query: &Query,
        mut packet: Vec<u8>,
        servers: &[Server],
        tcp: bool,
    ) -> Vec<u8> {
        let failure = || query.answer_nothing(Code::ServerFailure);
        let (Ok(_own), Ok(_all)) = (self.forwarded.try_acquire(), FORWARDING.try_acquire()) else {
            return failure();
        };
        let mut last = None;
        for server in servers.iter().take(SERVERS) {
            let id = unguessable();
            message::set_id(&mut packet, id);
            let asked = async {
                if tcp {
                    self.over_tcp(query, &packet, server, id).await
                } else {
                    self.over_udp(query, &packet, server, id).await
                }
            };
            let Ok(Ok(mut answer)) = timeout(PATIENCE, asked).await else {
                continue;
            };
            message::set_id(&mut answer, query.id);
            // Another server may know better.
            if matches!(message::code_of(&answer), 2 | 4 | 5) {
                last = Some(answer);
                continue;
            }
            return answer;
        }
        last.unwrap_or_else(failure)
    }

    /// A socket of the container's network, or of the host's.
    fn socket<T: Send>(
        &self,
        server: &Server,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        if server.from_host {
            return open();
        }
        in_namespace(self.namespace.as_fd(), open)?
    }

    async fn over_udp(
        &self,
        query: &Query,
        packet: &[u8],
        server: &Server,
        id: u16,
    ) -> io::Result<Vec<u8>> {
        let address = server.address;
        // A port of its own for each question: an answer can hardly be forged.
        let socket = self.socket(server, || {
            let any: SocketAddr = if address.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let socket = std::net::UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(address).await?;
        socket.send(packet).await?;
        let mut buffer = vec![0; ANSWER + 1];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if !query.is_answered_by(&buffer[..length], id) {
                continue;
            }
            if length > ANSWER {
                // Cut by us: the client asks again over TCP.
                return Ok(query.answer_truncated());
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
    }

    async fn over_tcp(
        &self,
        query: &Query,
        packet: &[u8],
        server: &Server,
        id: u16,
    ) -> io::Result<Vec<u8>> {
        let is_ipv4 = server.address.is_ipv4();
        let socket = self.socket(server, || {
            if is_ipv4 {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
        })?;
        let mut stream = socket.connect(server.address).await?;
        let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        stream
            .write_all(&[&length.to_be_bytes()[..], packet].concat())
            .await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        if query.is_answered_by(&answer, id) {
            Ok(answer)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

/// A number that an outsider cannot foresee: the standard library's hash keys come from the kernel's random numbers.
fn unguessable() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::question;
    use super::super::message::{TYPE_A, TYPE_PTR};
    use super::super::{Member, Membership};
    use super::*;
    use std::collections::BTreeMap;

    /// A server for container `a` in this namespace, and where it listens.
    async fn started(member: Member) -> (SocketAddr, SocketAddr, tokio::task::JoinHandle<()>) {
        let directory = Arc::new(Directory::default());
        directory.enter("a", member);
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = (
            datagrams.local_addr().unwrap(),
            listener.local_addr().unwrap(),
        );
        let sockets = Sockets {
            datagrams: datagrams.into(),
            listener: listener.into(),
        };
        let namespace = File::open("/proc/self/ns/net").unwrap();
        let task = tokio::spawn(async move {
            let _ = serve(directory, "a".into(), sockets, namespace).await;
        });
        (at.0, at.1, task)
    }

    fn member(count: u8, servers: Vec<Server>) -> Member {
        let membership = |n: u8| Membership {
            network_id: format!("n{n}"),
            network_name: "net".into(),
            addresses: vec![Ipv4Addr::new(10, 0, 0, n).into()],
            names: vec!["web".into()],
            links: BTreeMap::new(),
        };
        let mut one = membership(1);
        one.addresses = (1..=count)
            .map(|n| Ipv4Addr::new(10, 0, 0, n).into())
            .collect();
        Member {
            networks: vec![one],
            forwards: !servers.is_empty(),
            servers,
        }
    }

    async fn udp(to: SocketAddr, packet: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(packet, to).await.unwrap();
        let mut buffer = vec![0; 65535];
        let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer))
            .await
            .expect("an answer")
            .unwrap();
        buffer.truncate(length);
        buffer
    }

    async fn tcp(to: SocketAddr, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let mut answers = Vec::new();
        for packet in packets {
            stream.write_u16(packet.len() as u16).await.unwrap();
            stream.write_all(packet).await.unwrap();
            let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut answer).await.unwrap();
            answers.push(answer);
        }
        answers
    }

    #[tokio::test]
    async fn truncated_over_udp_and_whole_over_tcp() {
        let (datagrams, stream, _task) = started(member(200, Vec::new())).await;
        let asked = question(3, "web", TYPE_A, None);
        let answer = udp(datagrams, &asked).await;
        assert!(answer.len() <= 512 && answer[2] & 2 != 0);
        let reverse = question(4, "7.0.0.10.in-addr.arpa", TYPE_PTR, None);
        let unknown = question(5, "nobody", TYPE_A, None);
        let answers = tcp(stream, &[asked, reverse, unknown]).await;
        assert_eq!((answers[0][7], answers[0][2] & 2), (200, 0));
        assert!(answers[1].ends_with(b"\x03web\x03net\x00"));
        assert_eq!(message::code_of(&answers[2]), Code::NoSuchName as u8);
    }

    #[tokio::test]
    async fn other_names_are_forwarded_and_forged_answers_are_not_taken() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = |address| Server {
            address,
            from_host: true,
        };
        // The second of two servers: the first never answers.
        let servers = vec![
            server(deaf.local_addr().unwrap()),
            server(upstream.local_addr().unwrap()),
        ];
        let (datagrams, _, _task) = started(member(1, servers)).await;
        let upstream = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = upstream.recv_from(&mut buffer).await.unwrap();
            let query = message::parse(&buffer[..length]).unwrap();
            let forged = message::parse(&question(query.id, "other.org", TYPE_A, None)).unwrap();
            let lie = [message::Data::Address("6.6.6.6".parse().unwrap())];
            let forged = forged.answer(Code::NoError, &lie, 512);
            upstream.send_to(&forged, from).await.unwrap();
            let truth = [message::Data::Address("1.2.3.4".parse().unwrap())];
            let answer = query.answer(Code::NoError, &truth, 512);
            upstream.send_to(&answer, from).await.unwrap();
            query.id
        });
        let answer = udp(datagrams, &question(77, "example.org", TYPE_A, None)).await;
        assert!(answer.ends_with(&[1, 2, 3, 4]), "{answer:?}");
        assert_eq!(&answer[..2], &[0, 77]);
        upstream.await.unwrap();
    }

    #[tokio::test]
    async fn junk_and_idle_connections_keep_nobody_out() {
        let (datagrams, stream, task) = started(member(1, Vec::new())).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for n in 0..3000u32 {
            let junk: Vec<u8> = (0..n % 70).map(|b| (b * n) as u8).collect();
            socket.send_to(&junk, datagrams).await.unwrap();
        }
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS + 5 {
            idle.push(TcpStream::connect(stream).await.unwrap());
        }
        let answer = loop {
            // The flood may have filled the socket's buffer: a client asks again.
            let asked = question(1, "web", TYPE_A, None);
            if let Ok(answer) = timeout(Duration::from_secs(1), udp(datagrams, &asked)).await {
                break answer;
            }
        };
        assert!(answer.ends_with(&[10, 0, 0, 1]));
        assert!(!task.is_finished());
    }
}
