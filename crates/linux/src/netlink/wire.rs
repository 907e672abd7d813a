//! Messages, attributes, and the socket that exchanges them.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recvfrom,
    send, socket_with, sockopt,
};
use std::fmt;
use std::io;

pub(crate) const NLM_F_REQUEST: u16 = 0x001;
pub(crate) const NLM_F_ACK: u16 = 0x004;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x010;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

const NLA_F_NESTED: u16 = 0x8000;
/// What is left of an attribute's type without its two flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSGERR_ATTR_MSG: u16 = 1;

const HEADER: usize = 16;
/// The kernel builds answers of at most this size for a reader that offers it.
const RECEIVE_BUFFER: usize = 32 << 10;
/// Bytes that one dump may bring; a kernel with more objects than that is refused rather than held in memory.
const DUMP_LIMIT: usize = 64 << 20;
/// Times that a dump is begun anew because something changed meanwhile.
const DUMP_TRIES: usize = 8;

/// Why the kernel did not do it.
#[derive(Debug)]
pub enum Error {
    /// The socket itself failed.
    Socket(io::Error),
    /// The kernel refused message number `index` (from 0) of the batch; `text` is its own explanation, often empty.
    Refused {
        errno: Errno,
        index: usize,
        text: String,
    },
    /// The answer does not follow the protocol.
    Malformed(&'static str),
}

impl Error {
    /// The error number that the kernel gave.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            Error::Socket(e) => Errno::from_io_error(e),
            Error::Malformed(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Socket(e) => write!(f, "netlink socket: {e}"),
            Error::Refused { errno, text, .. } if text.is_empty() => {
                write!(f, "{}", io::Error::from(*errno))
            }
            Error::Refused { errno, text, .. } => {
                write!(f, "{} ({text})", io::Error::from(*errno))
            }
            Error::Malformed(what) => write!(f, "the kernel's netlink answer has {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Socket(errno.into())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Socket(e) => e,
            Error::Refused { errno, .. } => {
                io::Error::new(io::Error::from(errno).kind(), error.to_string())
            }
            Error::Malformed(_) => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Messages that travel in one send.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the open message starts.
    message: usize,
    count: u32,
    /// Messages that may be refused.
    optional: Vec<usize>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }
    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
    /// Starts a message; `header` is the family's fixed part.
    pub fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // The sequence number counts within the batch; the socket adds its base. The port id 0 is ours to leave out.
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.count += 1;
        self.raw(header);
    }
    /// The open message may be refused without failing the batch.
    pub fn optional(&mut self) {
        self.optional.push(self.count as usize - 1);
    }
    /// Adds flags to the open message.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        let now = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(now | flags).to_ne_bytes());
    }
    /// Bytes without attribute header, padded; for structures inside of nests.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.finish();
    }
    /// One attribute.
    ///
    /// # Panics
    /// When `value` does not fit an attribute; callers bound what they put in.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute holds less than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }
    /// Big endian, as nfnetlink wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }
    /// Big endian, as nfnetlink wants its numbers.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }
    /// A string with its closing zero byte.
    pub fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes);
    }
    /// An attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length =
            u16::try_from(self.bytes.len() - start).expect("a nest holds less than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.finish();
    }
    /// Pads to four bytes and writes the open message's length.
    fn finish(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        let length = u32::try_from(self.bytes.len() - self.message).expect("a message is small");
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }
    /// The bytes as they are sent, sequence numbers counted from `base`.
    fn with_base(mut self, base: u32) -> Vec<u8> {
        let mut at = 0;
        while at < self.bytes.len() {
            let length = u32_at(&self.bytes, at) as usize;
            let sequence = u32_at(&self.bytes, at + 8).wrapping_add(base);
            self.bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
            at += length;
        }
        self.bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// One received message.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Cuts a datagram into its messages.
fn messages(mut bytes: &[u8]) -> Result<Vec<Message<'_>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < HEADER {
            return Err(Error::Malformed("a cut message header"));
        }
        let length = u32_at(bytes, 0) as usize;
        if length < HEADER || length > bytes.len() {
            return Err(Error::Malformed("a message longer than its datagram"));
        }
        found.push(Message {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            sequence: u32_at(bytes, 8),
            body: &bytes[HEADER..length],
        });
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(found)
}

/// Attributes of a message or nest, in order: type without flags, value.
pub fn attributes(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < 4 {
            return Err(Error::Malformed("a cut attribute header"));
        }
        let length = usize::from(u16_at(bytes, 0));
        if length < 4 || length > bytes.len() {
            return Err(Error::Malformed("an attribute longer than its message"));
        }
        found.push((u16_at(bytes, 2) & NLA_TYPE_MASK, &bytes[4..length]));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(found)
}

/// A string attribute: up to its zero byte, which may be absent. Bytes that are not UTF-8 are replaced.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number attribute in the machine's byte order.
pub fn number(value: &[u8]) -> Result<u32> {
    let bytes: [u8; 4] = value
        .try_into()
        .map_err(|_| Error::Malformed("a number of the wrong size"))?;
    Ok(u32::from_ne_bytes(bytes))
}

/// A number attribute in big endian.
pub fn be_number(value: &[u8]) -> Result<u32> {
    number(value).map(u32::from_be)
}

/// A big endian 64-bit attribute.
pub fn be_number64(value: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = value
        .try_into()
        .map_err(|_| Error::Malformed("a number of the wrong size"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// What an answer of type error says: `None` is an acknowledgement.
fn verdict(message: &Message<'_>) -> Result<Option<(Errno, String)>> {
    let code = message
        .body
        .get(..4)
        .ok_or(Error::Malformed("a cut error message"))?;
    let code = i32::from_ne_bytes(code.try_into().expect("four bytes"));
    if code == 0 {
        return Ok(None);
    }
    // Numbers of the kernel lie in −4095..0; anything else cannot be one.
    if !(-4095..0).contains(&code) {
        return Err(Error::Malformed("an error number out of range"));
    }
    Ok(Some((
        Errno::from_raw_os_error(-code),
        explanation(message).unwrap_or_default(),
    )))
}

/// The text of an extended acknowledgement, which follows the (capped or whole) copy of the request.
fn explanation(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let mut skip = 4 + HEADER;
    if message.flags & NLM_F_CAPPED == 0 {
        let copied = message.body.get(4..8)?;
        let copied = u32::from_ne_bytes(copied.try_into().ok()?) as usize;
        skip = 4usize.checked_add(copied)?.checked_next_multiple_of(4)?;
    }
    let found = attributes(message.body.get(skip..)?).ok()?;
    let (_, value) = found.iter().find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
    Some(text(value))
}

/// A netlink connection. Not shared between threads without a lock: one exchange at a time.
#[derive(Debug)]
pub struct Connection {
    pub(crate) fd: OwnedFd,
    next: u32,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn route() -> Result<Self> {
        Self::open(None)
    }
    pub(crate) fn netfilter() -> Result<Self> {
        let connection = Self::open(Some(netlink::NETFILTER))?;
        // A table with thousands of published ports travels in one send. A process without the right keeps the default.
        let _ = sockopt::set_socket_recv_buffer_size_force(&connection.fd, 8 << 20);
        let _ = set_send_buffer(&connection.fd, 16 << 20);
        Ok(connection)
    }
    fn open(protocol: Option<Protocol>) -> Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // Explanations are a courtesy of newer kernels.
        let _ = ask_for_explanations(&fd);
        Ok(Self {
            fd,
            next: 1,
            buffer: Vec::new(),
        })
    }

    /// Sends the batch and reads an answer for every message that asked for one. The first refusal is the error; the kernel has
    /// nevertheless seen the messages behind it (nfnetlink: none took effect).
    pub fn execute(&mut self, batch: Batch) -> Result<()> {
        let mut first = None;
        let mut answers = 0usize;
        if batch.is_empty() {
            return Ok(());
        }
        let optional = batch.optional.clone();
        self.exchange(batch, |index, message| {
            if message.kind == NLMSG_ERROR {
                answers += 1;
                if let Some((errno, text)) = verdict(message)?
                    && first.is_none()
                    && !optional.contains(&index)
                {
                    first = Some(Error::Refused { errno, index, text });
                }
            }
            Ok(())
        })?;
        match first {
            Some(error) => Err(error),
            None if answers == 0 => Err(Error::Malformed("no acknowledgement")),
            None => Ok(()),
        }
    }

    /// Runs a dump (or a single query) and hands each object's type and body to `each`. Begun anew when the kernel says that it
    /// changed under way, so `each` may see objects twice: `reset` tells it to forget.
    pub fn dump(
        &mut self,
        batch: &Batch,
        mut each: impl FnMut(Object<'_>) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..DUMP_TRIES {
            let (mut interrupted, mut refused, mut done) = (false, None, false);
            each(Object::Reset)?;
            self.exchange(batch.clone(), |index, message| {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR => {
                        done = true;
                        if let Some((errno, text)) = verdict(message)? {
                            refused = Some(Error::Refused { errno, index, text });
                        }
                    }
                    NLMSG_DONE => done = true,
                    NLMSG_NOOP => {}
                    kind => each(Object::Item(kind, message.body))?,
                }
                Ok(())
            })?;
            match refused {
                Some(Error::Refused {
                    errno: Errno::INTR, ..
                }) => continue,
                Some(error) => return Err(error),
                None if interrupted => continue,
                None if !done => return Err(Error::Malformed("no end")),
                None => return Ok(()),
            }
        }
        Err(Error::Malformed("no consistent state"))
    }

    /// Sends, then reads until nothing is queued. Answers to other requests are passed over.
    fn exchange(
        &mut self,
        batch: Batch,
        mut each: impl FnMut(usize, &Message<'_>) -> Result<()>,
    ) -> Result<()> {
        let (base, count) = (self.next, batch.count);
        self.next = self.next.wrapping_add(count);
        let bytes = batch.with_base(base);
        let sent = send(&self.fd, &bytes, SendFlags::empty())?;
        if sent != bytes.len() {
            return Err(Error::Malformed("taken only part of the request"));
        }
        self.buffer.resize(RECEIVE_BUFFER, 0);
        let mut total = 0;
        loop {
            let (_, length, sender) = match recvfrom(
                &self.fd,
                &mut self.buffer[..],
                RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            ) {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            // Only the kernel has port id 0; a process could send to us if it has the right.
            let from_kernel = sender
                .and_then(|a| netlink::SocketAddrNetlink::try_from(a).ok())
                .is_some_and(|a| a.pid() == 0);
            if !from_kernel {
                continue;
            }
            if length > self.buffer.len() {
                return Err(Error::Malformed("a datagram over the limit"));
            }
            total += length;
            if total > DUMP_LIMIT {
                return Err(Error::Malformed("more objects than the limit"));
            }
            for message in messages(&self.buffer[..length])? {
                let index = message.sequence.wrapping_sub(base);
                if index >= count {
                    continue;
                }
                if message.kind == NLMSG_OVERRUN {
                    return Err(Error::Malformed("lost data"));
                }
                each(index as usize, &message)?;
            }
        }
    }
}

/// What a dump hands out.
#[derive(Debug)]
pub enum Object<'a> {
    /// The dump begins (again): forget what was collected.
    Reset,
    /// One object: message type and body.
    Item(u16, &'a [u8]),
}

fn ask_for_explanations(fd: &OwnedFd) -> io::Result<()> {
    const NETLINK_CAP_ACK: libc::c_int = 10;
    const NETLINK_EXT_ACK: libc::c_int = 11;
    set_option(fd, libc::SOL_NETLINK, NETLINK_CAP_ACK, 1)?;
    set_option(fd, libc::SOL_NETLINK, NETLINK_EXT_ACK, 1)
}

/// Above the limit of ordinary processes.
fn set_send_buffer(fd: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

fn set_option(
    fd: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the pointer is to a live c_int of exactly the given size, which the kernel only reads; the descriptor is open for
    // the call because it is borrowed. rustix has no netlink options.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn messages_are_padded_and_counted() {
        let mut batch = Batch::new();
        batch.begin(16, NLM_F_ACK, &[1, 2, 3, 4]);
        batch.nest(5, |b| b.string(1, "veth"));
        batch.begin(17, 0, &[]);
        let bytes = batch.with_base(100);
        let found = messages(&bytes).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].sequence), (16, 100));
        assert_eq!((found[1].kind, found[1].sequence), (17, 101));
        let outer = attributes(&found[0].body[4..]).unwrap();
        assert_eq!(outer[0].0, 5);
        assert_eq!(attributes(outer[0].1).unwrap(), [(1, &b"veth\0"[..])]);
    }

    #[test]
    fn odd_answers_are_refused_not_read_beyond() {
        for bytes in [
            &[1u8, 0, 0][..],
            &[0; 16],
            &[15, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(messages(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&[8u8, 0, 1][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1, 2, 3, 4]] {
            assert!(attributes(bytes).is_err(), "{bytes:?}");
        }
        // The last attribute may lack its padding.
        assert_eq!(attributes(&[5, 0, 1, 0, 7]).unwrap(), [(1, &[7u8][..])],);
    }

    #[test]
    fn error_messages_of_every_shape() {
        let ask = |flags, body: &[u8]| {
            let bytes = message(NLMSG_ERROR, flags, body);
            verdict(&messages(&bytes).unwrap()[0]).map_err(|e| e.to_string())
        };
        assert_eq!(ask(0, &[0; 20]), Ok(None));
        assert_eq!(
            ask(0, &(-17i32).to_ne_bytes()),
            Ok(Some((Errno::EXIST, String::new())))
        );
        for odd in [i32::MIN, -4096, 1, i32::MAX] {
            assert!(ask(0, &odd.to_ne_bytes()).is_err(), "{odd}");
        }
        assert!(ask(0, &[1, 2]).is_err());
        // Explanation behind a capped copy of the request.
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        body.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
        assert_eq!(
            ask(NLM_F_CAPPED | NLM_F_ACK_TLVS, &body),
            Ok(Some((Errno::INVAL, "no!".into())))
        );
        // The length of the copied request lies: no explanation, but still the verdict.
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend([255; HEADER]);
        assert_eq!(
            ask(NLM_F_ACK_TLVS, &body),
            Ok(Some((Errno::INVAL, String::new())))
        );
    }
}
