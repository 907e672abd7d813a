//! What the daemon and a supervisor say to each other. Versioned: a newer daemon drives an older supervisor.
//!
//! ```text
//! daemon --Spawn (one SEQPACKET message + fds)--> spawner --fork--> supervisor
//! daemon <====== control connection (passed fd; later R/c/<id>/sock) ======> supervisor
//! daemon <====== stream connections, one per attach or exec =============> supervisor
//! ```
//! Frame: `u32` little-endian length of what follows, `u8` kind, payload. JSON payloads ([`Request`], [`Event`]) or raw bytes.
//! A frame is at most [`FRAME_LIMIT`] bytes; a peer that sends more is cut off.
//!
//! Unknown JSON fields are ignored on both sides, unknown request kinds are answered with [`Event::Refused`].

use crate::seccomp::Filter;
use base64::{Engine, engine::general_purpose::STANDARD};
use gantry_oci::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

pub const VERSION: u32 = 1;
pub const FRAME_LIMIT: usize = 1 << 20;
/// Length field and kind.
pub const HEADER: usize = 5;

/// Messages to the spawner: a packet whose first byte says what it is, the next four which spawn it belongs to (little-endian).
/// A packet carries at most [`gantry_linux::ipc::DESCRIPTORS_PER_MESSAGE`] descriptors, so that a spawn with many ports takes several.
pub mod packet {
    /// Nothing but descriptors, the first ones of the spawn that follows.
    pub const DESCRIPTORS: u8 = b'F';
    /// JSON [`super::Spawn`] and the (remaining) descriptors.
    pub const SPAWN: u8 = b'S';
    /// The same with the JSON in a memfd, which is the last descriptor.
    pub const SPAWN_IN_MEMFD: u8 = b'M';
    /// Kind and sequence number.
    pub const HEADER: usize = 5;
    /// JSON up to this size travels inside the packet; it fits the kernel's default socket buffer with room to spare.
    pub const INLINE_LIMIT: usize = 96 << 10;
    /// A larger JSON is refused.
    pub const SPAWN_LIMIT: usize = 8 << 20;
    /// Descriptors of one spawn at most.
    pub const DESCRIPTORS_LIMIT: usize = 2048;
}

/// The header of a frame with `length` bytes of payload.
pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    assert!(
        length < FRAME_LIMIT,
        "payloads are cut before they are framed"
    );
    let [a, b, c, d] = (length as u32 + 1).to_le_bytes();
    [a, b, c, d, kind]
}

/// A whole frame with a JSON payload.
pub fn json_frame(kind: u8, payload: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, payload).expect("our own messages serialise");
    let header = header(kind, frame.len() - HEADER);
    frame[..HEADER].copy_from_slice(&header);
    frame
}

/// A peer broke the framing; the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

/// Looks at the front of received bytes: `None` while the header is incomplete, else kind and length of the payload,
/// which may not have arrived yet.
pub fn parse_header(bytes: &[u8]) -> Result<Option<(u8, usize)>, BadFrame> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [a, b, c, d, kind] = *header;
    match u32::from_le_bytes([a, b, c, d]) as usize {
        0 => Err(BadFrame),
        length if length > FRAME_LIMIT => Err(BadFrame),
        length => Ok(Some((kind, length - 1))),
    }
}

/// First byte of a frame's body.
pub mod kind {
    /// JSON [`super::Request`], daemon to supervisor.
    pub const REQUEST: u8 = b'R';
    /// JSON [`super::Event`], supervisor to daemon.
    pub const EVENT: u8 = b'E';
    /// Raw bytes for the process's stdin. An empty payload closes the stdin of an exec and of a container with [`super::Stdin::Once`];
    /// nothing is closed on a terminal, or by one of many clients ([`super::Stdin::Open`]).
    pub const STDIN: u8 = 0;
    /// Raw bytes of stdout, or of the terminal.
    pub const STDOUT: u8 = 1;
    /// Raw bytes of stderr.
    pub const STDERR: u8 = 2;
}

/// A compiled seccomp filter as it travels in [`Spawn`] and [`Request::Exec`]: base64 of the flags (`u32` little-endian) and the program.
pub fn encode_filter(filter: &Filter) -> String {
    let mut bytes = filter.flags.to_le_bytes().to_vec();
    bytes.extend_from_slice(&filter.program);
    STANDARD.encode(bytes)
}

/// The reverse of [`encode_filter`]; `None` when the text cannot be one.
pub fn decode_filter(text: &str) -> Option<Filter> {
    let bytes = STANDARD.decode(text).ok()?;
    let (flags, program) = bytes.split_first_chunk::<4>()?;
    Some(Filter {
        program: program.to_vec(),
        flags: u32::from_le_bytes(*flags),
    })
}

/// Asks the spawner for a supervisor. The message(s) ([`packet`]) carry, in this order: the supervisor's end of the control
/// connection, one bound and listening (TCP) or bound (UDP) socket per entry of `ports`, one connected stream socket per entry of `attach`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spawn {
    pub version: u32,
    /// Container id, 64 hex digits. Also the supervisor's visible name: `gantry-runtime supervisor <id>`.
    pub id: String,
    pub spec: Spec,
    pub rootfs: Rootfs,
    /// `spec.linux.seccomp` compiled beforehand ([`encode_filter`]), so that no start compiles it again.
    pub filter: Option<String>,
    /// `R/c/<id>`: made by the daemon, 0700. The supervisor puts here `sock`, `state.json`, `exit.json` ([`Exit`]).
    pub run_dir: PathBuf,
    pub log: Option<Log>,
    pub stdin: Stdin,
    /// Interfaces to make in a new network namespace; empty for none, host and container:X.
    pub links: Vec<Link>,
    /// Makes the sockets at 127.0.0.11 before the program runs ([`Request::Names`]).
    #[serde(default)]
    pub names: bool,
    pub ports: Vec<Forward>,
    pub attach: Vec<Streams>,
    /// Terminal size at birth, columns and rows.
    pub console_size: Option<(u16, u16)>,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Rootfs {
    /// A folder that is there already (an OCI bundle's `root.path`).
    Path(PathBuf),
    /// An overlay that the container's init mounts in its own mount namespace; no mount exists on the host.
    /// `lowers` topmost first, at least one.
    Overlay {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
    },
}

/// json-file log with rotation: `path`, `path.1` … `path.(max_files-1)`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log {
    pub path: PathBuf,
    /// Bytes; `None` never rotates.
    pub max_size: Option<u64>,
    pub max_files: u32,
    /// A JSON object that every line carries as `attrs`; empty for none.
    #[serde(default)]
    pub attrs: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    Closed,
    /// A pipe that stays open over attaches (`OpenStdin`).
    Open,
    /// A pipe that closes when the first attached client is gone (`StdinOnce`).
    Once,
}

/// A veth pair born with its peer inside the container's network namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Link {
    /// Name outside, at most 15 bytes.
    pub host_name: String,
    /// Name inside, e.g. `eth0`.
    pub name: String,
    pub bridge: String,
    /// On a bridge: reaches the bridge and what is behind it, not its other isolated ports.
    #[serde(default)]
    pub isolated: bool,
    /// Instead of a pair and a bridge: shares the wire of an interface of the host.
    #[serde(default)]
    pub parent: Option<Parent>,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub addresses: Vec<(IpAddr, u8)>,
    pub gateways: Vec<IpAddr>,
}

/// The interface of the host that a macvlan or ipvlan [`Link`] shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub interface: String,
    /// `macvlan` or `ipvlan`.
    pub ipvlan: bool,
    /// The kernel's number.
    pub mode: u16,
}

/// A published port that the supervisor guards (so that conflicts show) and forwards in user space for
/// traffic that the kernel's NAT does not take, `[::1]` above all.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Forward {
    pub udp: bool,
    pub target: SocketAddr,
}

/// Which streams an attached connection takes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Daemon to supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "a request lives for one frame; a box would be one more allocation on the way of exec"
)]
pub enum Request {
    /// First frame on a new connection to `R/c/<id>/sock`; makes it a control connection, answered with [`Event::State`].
    Hello { version: u32 },
    /// Turns this connection into a stream of the container's output, optionally input.
    Attach(Streams),
    /// Runs a process in the container; this connection becomes its stream. Answered with [`Event::Started`] or
    /// [`Event::Failed`], ended with [`Event::Exited`]. If the connection closes, the process runs on (Docker's behaviour).
    Exec {
        process: Process,
        filter: Option<String>,
        streams: Streams,
        console_size: Option<(u16, u16)>,
    },
    /// Sends a signal to the container's first process.
    Signal { number: i32 },
    /// New terminal size; on a stream connection of an exec it is that exec's terminal.
    Resize { columns: u16, rows: u16 },
    /// First frame on a new connection: the container's sockets at 127.0.0.11, made if they are not there yet. Answered with
    /// [`Event::Names`] and two descriptors, datagrams first.
    Names,
    /// New log limits after `update`; takes effect with the next line.
    SetLog {
        max_size: Option<u64>,
        max_files: u32,
    },
}

/// Supervisor to daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// Answer to [`Request::Hello`].
    State {
        version: u32,
        supervisor: i32,
        pid: Option<i32>,
        exit: Option<Exit>,
    },
    /// The user's program was exec'd. `pid` as the host sees it; `start_ticks` is field 22 of `/proc/<pid>/stat`, against reuse of pids.
    Started {
        pid: i32,
        start_ticks: u64,
    },
    /// Nothing runs and nothing is left. `code`: 127 no such file, 126 not executable, 128 anything else.
    Failed {
        code: i32,
        message: String,
    },
    Exited(Exit),
    /// First frame after [`Request::Attach`]: what comes later is newer than this, what the log has from before is not repeated.
    /// Nanoseconds since the Unix epoch.
    Attached {
        since_ns: i64,
    },
    /// Answer to [`Request::Names`].
    Names,
    Refused {
        message: String,
    },
}

/// How a process ended; also the content of `exit.json`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    /// 0–255; 128 + n after signal n.
    pub code: i32,
    /// The kernel's OOM killer ended something in the container.
    pub oom_killed: bool,
    /// Nanoseconds since the Unix epoch.
    pub finished_at_ns: i64,
    /// The most memory the container ever had, in bytes, where the kernel counts it.
    #[serde(default)]
    pub memory_peak: Option<u64>,
    /// The supervisor went away and took the container with it: nobody saw the end. Only the daemon says so.
    #[serde(default)]
    pub lost: bool,
}

/// Content of `state.json`, for adoption after the daemon was gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateFile {
    pub version: u32,
    pub id: String,
    pub supervisor: i32,
    pub supervisor_start_ticks: u64,
    pub pid: i32,
    pub start_ticks: u64,
    pub started_at_ns: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back_and_broken_ones_refused() {
        let frame = json_frame(kind::REQUEST, &Request::Signal { number: 9 });
        let (kind, length) = parse_header(&frame).unwrap().unwrap();
        assert_eq!((kind, length), (kind::REQUEST, frame.len() - HEADER));
        assert_eq!(parse_header(&frame[..4]), Ok(None));
        assert_eq!(parse_header(&[0, 0, 0, 0, 1]), Err(BadFrame));
        assert_eq!(parse_header(&[255, 255, 255, 255, 1]), Err(BadFrame));
    }
}
