//! Connections to the receivers of logs.

use super::format::{self, Subject, Syslog};
use crate::{LogLine, Record};
use gantry_base::{Error, Result};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram, UnixStream};

/// A receiver that does not take a message for so long counts as away.
const PATIENCE: Duration = Duration::from_secs(10);
const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG_SOCKETS: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// Where a receiver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(String),
    Udp(String),
    Unix(PathBuf),
    Datagram(PathBuf),
    /// syslog of this machine, wherever its socket is.
    Local,
}

/// `proto://address` of an option; what each driver takes differs.
pub(super) fn address(text: &str, driver: &str) -> Result<Address> {
    let option = format!("{driver}-address");
    let bad = || {
        Error::invalid(format!(
            "{option} should be in form proto://address, got {text}"
        ))
    };
    let with_port = |rest: &str, port: u16| match rest.rsplit_once(':') {
        Some((host, digits)) if !host.is_empty() && digits.parse::<u16>().is_ok() => {
            Ok(rest.to_owned())
        }
        Some(_) => Err(bad()),
        None if rest.is_empty() => Err(bad()),
        None => Ok(format!("{rest}:{port}")),
    };
    let path = |rest: &str| {
        if rest.starts_with('/') {
            Ok(PathBuf::from(rest))
        } else {
            Err(bad())
        }
    };
    match (driver, text.split_once("://")) {
        ("syslog", None) if text.is_empty() => Ok(Address::Local),
        ("syslog", Some(("udp", rest))) => with_port(rest, 514).map(Address::Udp),
        ("syslog", Some(("tcp", rest))) => with_port(rest, 514).map(Address::Tcp),
        ("syslog", Some(("tcp+tls", _))) => Err(Error::invalid(format!(
            "{option} {text}: syslog over TLS is not supported; use tcp, udp or a unix socket"
        ))),
        ("syslog" | "fluentd", Some(("unix", rest))) => path(rest).map(Address::Unix),
        ("syslog", Some(("unixgram", rest))) => path(rest).map(Address::Datagram),
        ("fluentd", None) if text.is_empty() => Ok(Address::Tcp("localhost:24224".into())),
        ("fluentd", None) => with_port(text, 24224).map(Address::Tcp),
        ("fluentd", Some(("tcp", rest))) => with_port(rest, 24224).map(Address::Tcp),
        ("gelf", Some(("udp", rest))) => with_port(rest, 12201).map(Address::Udp),
        ("gelf", Some(("tcp", rest))) => with_port(rest, 12201).map(Address::Tcp),
        _ => Err(bad()),
    }
}

enum Link {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Unix(UnixStream),
    Datagram(UnixDatagram),
}

enum Words {
    Syslog(Syslog),
    Journal,
    Fluentd {
        precise: bool,
    },
    Gelf {
        hostname: String,
        compression: Compression,
        tcp: bool,
    },
}

#[derive(Clone, Copy)]
enum Compression {
    None,
    Gzip(u32),
    Zlib(u32),
}

/// One container's way to its receiver.
pub(super) struct Sender {
    link: Link,
    words: Words,
    subject: Subject,
    tag: String,
    attributes: BTreeMap<String, String>,
}

impl Sender {
    pub(super) async fn connect(record: &Record) -> Result<Self> {
        let log = &record.host_config.log_config;
        let option = |name: &str| log.config.get(name).map_or("", String::as_str);
        let subject = Subject::of(record);
        let template = match option("tag") {
            "" => "{{.ID}}",
            template => template,
        };
        let tag = format::tag(template, &subject)?;
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let address = match log.kind.as_str() {
            "journald" if !std::fs::exists(JOURNAL).unwrap_or(false) => {
                return Err(unavailable("journald is not enabled on this host"));
            }
            "journald" => Address::Datagram(JOURNAL.into()),
            driver => address(option(&format!("{driver}-address")), driver)?,
        };
        let words = match log.kind.as_str() {
            "syslog" => Words::Syslog(Syslog {
                facility: format::facility(option("syslog-facility"))?,
                format: option("syslog-format").to_owned(),
                tag: tag.clone(),
                hostname,
            }),
            "journald" => Words::Journal,
            "fluentd" => Words::Fluentd {
                precise: super::is_on(&log.config, "fluentd-sub-second-precision"),
            },
            _ => {
                let level = option("gelf-compression-level")
                    .parse::<u32>()
                    .unwrap_or(1)
                    .min(9);
                let tcp = matches!(address, Address::Tcp(_));
                let compression = match option("gelf-compression-type") {
                    _ if tcp => Compression::None,
                    "none" => Compression::None,
                    "zlib" => Compression::Zlib(level),
                    _ => Compression::Gzip(level),
                };
                Words::Gelf {
                    hostname,
                    compression,
                    tcp,
                }
            }
        };
        let link = tokio::time::timeout(PATIENCE, open(&address)).await;
        let link = link
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| {
                let (kind, place) = describe(&address);
                unavailable(format!("dial {kind} {place}: connect: {}", reason(&e)))
            })?;
        let attributes = super::attributes(record);
        Ok(Self {
            link,
            words,
            subject,
            tag,
            attributes,
        })
    }

    pub(super) async fn send(&mut self, line: &LogLine) -> Result<()> {
        let (subject, tag, attributes) = (&self.subject, &self.tag, &self.attributes);
        let pieces = match &self.words {
            Words::Syslog(syslog) => vec![syslog.message(line)],
            Words::Journal => vec![format::journal(line, subject, tag, attributes)],
            Words::Fluentd { precise } => {
                vec![format::fluentd(line, subject, tag, attributes, *precise)]
            }
            Words::Gelf {
                hostname,
                compression,
                tcp,
            } => {
                let mut document = format::gelf(line, subject, tag, attributes, hostname);
                if *tcp {
                    document.push(0);
                    vec![document]
                } else {
                    let packed = compress(document, *compression)
                        .map_err(|e| Error::internal("compressing a log message").with_source(e))?;
                    format::gelf_chunks(packed, crate::random())
                }
            }
        };
        let sending = async {
            for piece in pieces {
                put(&mut self.link, &piece).await?;
            }
            Ok::<(), io::Error>(())
        };
        let sent = tokio::time::timeout(PATIENCE, sending).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| unavailable("sending a log message").with_source(e))
    }
}

async fn open(address: &Address) -> io::Result<Link> {
    match address {
        Address::Tcp(place) => {
            let stream = TcpStream::connect(place).await?;
            stream.set_nodelay(true)?;
            Ok(Link::Tcp(stream))
        }
        Address::Udp(place) => {
            let mut last = io::ErrorKind::NotFound.into();
            for target in tokio::net::lookup_host(place).await? {
                let local = if target.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(local).await?;
                match socket.connect(target).await {
                    Ok(()) => return Ok(Link::Udp(socket)),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
        Address::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => Ok(Link::Unix(stream)),
            // A datagram socket behind `unix://` is common with syslog.
            Err(_) => datagram(path).map(Link::Datagram),
        },
        Address::Datagram(path) => datagram(path).map(Link::Datagram),
        Address::Local => {
            let mut last = io::ErrorKind::NotFound.into();
            for path in SYSLOG_SOCKETS {
                match datagram(&PathBuf::from(path)) {
                    Ok(socket) => return Ok(Link::Datagram(socket)),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn datagram(path: &PathBuf) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

async fn put(link: &mut Link, bytes: &[u8]) -> io::Result<()> {
    match link {
        Link::Tcp(stream) => {
            // A receiver that hung up shows only when it is listened to: a lost line would count as sent.
            let mut byte = [0];
            match stream.try_read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
            stream.write_all(bytes).await
        }
        Link::Unix(stream) => stream.write_all(bytes).await,
        Link::Udp(socket) => match socket.send(bytes).await {
            // Nobody listens: UDP's way to lose, which who chose it accepted.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            sent => sent.map(drop),
        },
        Link::Datagram(socket) => socket.send(bytes).await.map(drop),
    }
}

fn compress(bytes: Vec<u8>, how: Compression) -> io::Result<Vec<u8>> {
    match how {
        Compression::None => Ok(bytes),
        Compression::Gzip(level) => {
            let mut packer =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
            packer.write_all(&bytes)?;
            packer.finish()
        }
        Compression::Zlib(level) => {
            let mut packer =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
            packer.write_all(&bytes)?;
            packer.finish()
        }
    }
}

fn describe(address: &Address) -> (&'static str, String) {
    match address {
        Address::Tcp(place) => ("tcp", place.clone()),
        Address::Udp(place) => ("udp", place.clone()),
        Address::Unix(path) => ("unix", path.display().to_string()),
        Address::Datagram(path) => ("unixgram", path.display().to_string()),
        Address::Local => ("unixgram", SYSLOG_SOCKETS[0].to_owned()),
    }
}

fn reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => e.to_string(),
    }
}

fn unavailable(text: impl Into<String>) -> Error {
    Error::new(gantry_base::ErrorKind::Unavailable, text)
}
