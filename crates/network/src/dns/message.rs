//! DNS packets: what must be read of a question, and answers. Pure; every byte that comes in is hostile.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TYPE_A: u16 = 1;
pub const TYPE_PTR: u16 = 12;
pub const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
pub const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

const HEADER: usize = 12;
/// A name on the wire has at most so many bytes.
const NAME_LIMIT: usize = 255;
/// What a client takes over UDP that does not say otherwise.
const PLAIN_UDP: usize = 512;
/// What we send over UDP at most, whatever a client takes: more would be fragmented on the way through a tunnel.
const OUR_UDP: usize = 4096;
/// Seconds that an answer may be kept; Docker's.
const TTL: u32 = 600;

/// How a question went (RFC 1035, 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    NoError = 0,
    Malformed = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A question that can be answered or forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    recursion_desired: bool,
    /// Lower case, without the last dot; `None` when a label holds bytes that no name of ours has.
    pub name: Option<String>,
    pub kind: u16,
    class: u16,
    /// The question as it came, for the echo.
    question: Vec<u8>,
    /// What the client takes over UDP, when it speaks EDNS.
    edns: Option<u16>,
}

/// Why a packet gets no ordinary answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// No answer at all: not even a header, or itself an answer.
    Silent,
    /// This one.
    Answer(Vec<u8>),
}

/// One record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    /// For a reverse lookup, without the last dot.
    Name(String),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Reads a packet with one question.
pub fn parse(packet: &[u8]) -> Result<Query, Bad> {
    let (Some(id), Some(flags), Some(questions)) =
        (u16_at(packet, 0), u16_at(packet, 2), u16_at(packet, 4))
    else {
        return Err(Bad::Silent);
    };
    if packet.len() < HEADER || flags & 0x8000 != 0 {
        return Err(Bad::Silent);
    }
    let refuse = |code: Code| Bad::Answer(header(id, flags & 0x0100 != 0, code, 0, 0, 0, false));
    if (flags >> 11) & 0xf != 0 {
        return Err(refuse(Code::NotImplemented));
    }
    let malformed = || refuse(Code::Malformed);
    if questions != 1 {
        return Err(malformed());
    }
    let (name, end) = question_name(packet).ok_or_else(malformed)?;
    let kind = u16_at(packet, end).ok_or_else(malformed)?;
    let class = u16_at(packet, end + 2).ok_or_else(malformed)?;
    let after = end + 4;
    let records: usize = [6, 8, 10]
        .iter()
        .filter_map(|at| u16_at(packet, *at))
        .map(usize::from)
        .sum();
    let edns = options(packet, after, records).ok_or_else(malformed)?;
    Ok(Query {
        id,
        recursion_desired: flags & 0x0100 != 0,
        name,
        kind,
        class,
        question: packet[HEADER..after].to_vec(),
        edns,
    })
}

/// The name of the question and where its type is. A question is never compressed: there is nothing before it.
fn question_name(packet: &[u8]) -> Option<(Option<String>, usize)> {
    let mut at = HEADER;
    let mut name = Some(String::new());
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > 63 {
            return None;
        }
        let label = packet.get(at..at + length)?;
        at += length;
        if at - HEADER >= NAME_LIMIT {
            return None;
        }
        name = name.filter(|_| label.iter().all(|b| b.is_ascii_graphic() && *b != b'.'));
        if let (Some(name), Ok(label)) = (&mut name, std::str::from_utf8(label)) {
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&label.to_ascii_lowercase());
        }
    }
    Some((name, at))
}

/// The UDP size of an OPT record among those behind the question. Each record takes at least eleven bytes, which bounds the walk.
fn options(packet: &[u8], mut at: usize, records: usize) -> Option<Option<u16>> {
    let mut found = None;
    for _ in 0..records {
        at = skip_name(packet, at)?;
        let kind = u16_at(packet, at)?;
        let class = u16_at(packet, at + 2)?;
        let length = usize::from(u16_at(packet, at + 8)?);
        at += 10;
        packet.get(at..at + length)?;
        at += length;
        if kind == TYPE_OPT {
            found = Some(class);
        }
    }
    Some(found)
}

fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            // A pointer ends a name.
            192.. => return packet.get(at + 1).map(|_| at + 2),
            64..=191 => return None,
        }
    }
}

impl Query {
    pub fn is_internet(&self) -> bool {
        matches!(self.class, CLASS_IN | CLASS_ANY)
    }

    /// The address that a reverse lookup asks for.
    pub fn reverse(&self) -> Option<IpAddr> {
        let name = self.name.as_deref()?;
        if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
            let mut parts = octets.split('.').map(str::parse::<u8>);
            let mut next = || parts.next()?.ok();
            let (d, c, b, a) = (next()?, next()?, next()?, next()?);
            return parts
                .next()
                .is_none()
                .then(|| Ipv4Addr::new(a, b, c, d).into());
        }
        let nibbles = name.strip_suffix(".ip6.arpa")?;
        let mut value: u128 = 0;
        let mut count = 0;
        for nibble in nibbles.split('.') {
            let digit = u8::from_str_radix(nibble, 16).ok().filter(|d| *d < 16)?;
            if nibble.len() != 1 || count == 32 {
                return None;
            }
            value |= u128::from(digit) << (4 * count);
            count += 1;
        }
        (count == 32).then(|| Ipv6Addr::from(value).into())
    }

    /// An answer without records.
    pub fn answer_nothing(&self, code: Code) -> Vec<u8> {
        self.answer(code, &[], usize::MAX)
    }

    /// What fits into one UDP answer.
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.unwrap_or(0)).clamp(PLAIN_UDP, OUR_UDP)
    }

    /// An answer that says only that it would be too long for UDP.
    pub fn answer_truncated(&self) -> Vec<u8> {
        let mut packet = self.answer_nothing(Code::NoError);
        packet[2] |= 2;
        packet
    }

    /// An answer with as many of the records as fit into `limit` bytes, marked as truncated when that is not all.
    pub fn answer(&self, code: Code, records: &[Data], limit: usize) -> Vec<u8> {
        let edns: &[u8] = match self.edns {
            // Root name, type, our size, no extended code, version 0, no data.
            Some(_) => &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0],
            None => &[],
        };
        let limit = limit.min(usize::from(u16::MAX));
        let mut body = Vec::new();
        let mut written: u16 = 0;
        for record in records {
            let Some(record) = encode(record) else {
                continue;
            };
            let size = HEADER + self.question.len() + body.len() + record.len() + edns.len();
            if size > limit {
                break;
            }
            body.extend_from_slice(&record);
            written += 1;
        }
        let truncated = usize::from(written) < records.len();
        let mut packet = header(
            self.id,
            self.recursion_desired,
            code,
            1,
            written,
            u16::from(self.edns.is_some()),
            truncated,
        );
        packet.extend_from_slice(&self.question);
        packet.extend_from_slice(&body);
        packet.extend_from_slice(edns);
        packet
    }

    /// Whether `packet` answers this question under the number that it was forwarded with.
    pub fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        let end = HEADER + self.question.len();
        packet.len() >= HEADER
            && u16_at(packet, 0) == Some(id)
            && packet[2] & 0x80 != 0
            // Some servers leave the question out when they refuse.
            && (u16_at(packet, 4) == Some(0)
                || packet
                    .get(HEADER..end)
                    .is_some_and(|echo| echo.eq_ignore_ascii_case(&self.question)))
    }
}

/// The code that an answer carries.
pub fn code_of(packet: &[u8]) -> u8 {
    packet.get(3).map_or(0, |byte| byte & 0xf)
}

/// Puts another number into a packet.
pub fn set_id(packet: &mut [u8], id: u16) {
    if let Some(place) = packet.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

fn header(
    id: u16,
    recursion_desired: bool,
    code: Code,
    questions: u16,
    answers: u16,
    additional: u16,
    truncated: bool,
) -> Vec<u8> {
    let mut packet = Vec::with_capacity(PLAIN_UDP);
    packet.extend(id.to_be_bytes());
    let (tc, rd) = (u8::from(truncated), u8::from(recursion_desired));
    packet.push(0x80 | (tc << 1) | rd);
    // Recursion is available: we forward.
    packet.push(0x80 | code as u8);
    for count in [questions, answers, 0, additional] {
        packet.extend(count.to_be_bytes());
    }
    packet
}

/// A record whose owner is the name of the question. `None`: a name that cannot be written.
fn encode(data: &Data) -> Option<Vec<u8>> {
    let (kind, bytes) = match data {
        Data::Address(IpAddr::V4(a)) => (TYPE_A, a.octets().to_vec()),
        Data::Address(IpAddr::V6(a)) => (TYPE_AAAA, a.octets().to_vec()),
        Data::Name(name) => (TYPE_PTR, encode_name(name)?),
    };
    let mut record = vec![0xc0, HEADER as u8];
    record.extend(kind.to_be_bytes());
    record.extend(CLASS_IN.to_be_bytes());
    record.extend(TTL.to_be_bytes());
    record.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
    record.extend(bytes);
    Some(record)
}

fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_LIMIT).then_some(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A question as a client sends it.
    pub(crate) fn question(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
        let mut packet = id.to_be_bytes().to_vec();
        packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
        packet.extend(encode_name(name).unwrap());
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1]);
        if let Some(size) = edns {
            packet.extend([0, 0, 41]);
            packet.extend(size.to_be_bytes());
            packet.extend([0; 6]);
        }
        packet
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let packet = question(7, "Web.Front", TYPE_A, None);
        let query = parse(&packet).unwrap();
        assert_eq!(query.name.as_deref(), Some("web.front"));
        assert_eq!((query.id, query.kind), (7, TYPE_A));
        let answer = query.answer(
            Code::NoError,
            &[Data::Address("10.1.2.3".parse().unwrap())],
            query.udp_limit(),
        );
        // The echo keeps the client's case: some check it.
        assert_eq!(&answer[12..12 + 11], b"\x03Web\x05Front\x00");
        assert_eq!(&answer[..12], &[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(answer.ends_with(&[0, 0, 2, 88, 0, 4, 10, 1, 2, 3]));
        assert!(query.is_answered_by(&answer, 7));
        assert!(!query.is_answered_by(&answer, 8));
        assert!(!query.is_answered_by(&packet, 7));
    }

    #[test]
    fn many_records_are_cut_and_marked() {
        let many: Vec<Data> = (0..200u8)
            .map(|n| Data::Address(Ipv4Addr::new(10, 0, 0, n).into()))
            .collect();
        for (edns, fits) in [
            (None, 30),
            (Some(100), 30),
            (Some(1232), 75),
            (Some(u16::MAX), 200),
        ] {
            let query = parse(&question(1, "all", TYPE_A, edns)).unwrap();
            let answer = query.answer(Code::NoError, &many, query.udp_limit());
            assert!(answer.len() <= query.udp_limit());
            assert_eq!(u16_at(&answer, 6), Some(fits), "{edns:?}");
            assert_eq!(answer[2] & 2 != 0, fits < 200, "{edns:?}");
        }
    }

    #[test]
    fn reverse_names() {
        let asked = |name: &str| {
            let query = parse(&question(1, name, TYPE_PTR, None)).unwrap();
            query.reverse().map(|address| address.to_string())
        };
        assert_eq!(asked("4.3.2.10.in-addr.arpa").as_deref(), Some("10.2.3.4"));
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(asked(six).as_deref(), Some("2001:db8::2"));
        for odd in [
            "3.2.10.in-addr.arpa",
            "5.4.3.2.10.in-addr.arpa",
            "256.3.2.10.in-addr.arpa",
            "in-addr.arpa",
            "2.0.ip6.arpa",
            "web",
        ] {
            assert_eq!(asked(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_no_question_is_refused_or_passed_over() {
        let good = question(9, "web", TYPE_A, None);
        for cut in 0..12 {
            assert_eq!(parse(&good[..cut]), Err(Bad::Silent));
        }
        let code = |packet: &[u8]| match parse(packet) {
            Err(Bad::Answer(answer)) => Some(answer[3] & 0xf),
            _ => None,
        };
        for cut in 12..good.len() {
            assert_eq!(code(&good[..cut]), Some(1), "{cut}");
        }
        let with = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            packet
        };
        assert_eq!(code(&with(2, 0x28)), Some(4));
        assert_eq!(code(&with(5, 2)), Some(1));
        // A pointer to itself in the question.
        assert_eq!(code(&with(12, 0xc0)), Some(1));
        // Claims a record that is not there.
        assert_eq!(code(&with(11, 1)), Some(1));
        assert_eq!(parse(&with(2, 0x81)), Err(Bad::Silent));
        // A name that is too long.
        let mut long = good[..12].to_vec();
        for _ in 0..5 {
            long.push(63);
            long.extend([b'a'; 63]);
        }
        long.extend([0, 0, 1, 0, 1]);
        assert_eq!(code(&long), Some(1));
        // Bytes that no name of ours has: forwarded, not looked up.
        let odd = parse(&with(13, 0xff)).unwrap();
        assert_eq!(odd.name, None);
        assert_eq!(odd.reverse(), None);
    }

    proptest! {
        #[test]
        fn no_packet_panics_and_answers_stay_in_bounds(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            match parse(&packet) {
                Ok(query) => {
                    let records = vec![Data::Name("a.b".into()); 100];
                    prop_assert!(query.answer(Code::NoError, &records, query.udp_limit()).len() <= query.udp_limit());
                    let _ = query.reverse();
                    let _ = query.is_answered_by(&packet, query.id);
                }
                Err(Bad::Answer(answer)) => prop_assert!(answer.len() == 12),
                Err(Bad::Silent) => {}
            }
        }
    }
}
