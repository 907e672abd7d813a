//! How an entry looks in a log: a header with a checksum over everything, then key and value.
//!
//! ```text
//! frame    "gfR1" | crc32 of the rest | kind u8 | flags u8 | key length u16 | value length u32 | a b c d: u64 | key | value
//! put      a revision, b create revision, c version, d lease
//! delete   a revision
//! synced   a this file's length, all of it synced, b file id, c length of the file before   at the head of each group
//! compact  a revision of the store then, b revision compacted at
//! grant    a revision, b lease, c seconds
//! revoke   a revision, b lease
//! end      a frames before it, b revision, c compacted revision                              last frame of a base
//! gap      a first revision missing, b last one                                              history only
//! ```
//! Flags mark the first and the last frame of a transaction. A reader that finds a wrong frame searches for the next right one by its magic
//! and checksum, so one flipped length does not hide what follows.

use bytes::Bytes;

pub(crate) const HEAD: usize = 48;
const MAGIC: [u8; 4] = *b"gfR1";
/// The frame ends its transaction.
pub(crate) const LAST: u8 = 1;
/// The frame begins its transaction.
pub(crate) const FIRST: u8 = 2;
/// The frame stands alone.
pub(crate) const ALONE: u8 = FIRST | LAST;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Put = 1,
    Delete = 2,
    Synced = 3,
    Compact = 4,
    Grant = 5,
    Revoke = 6,
    End = 7,
    Gap = 8,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Put,
            2 => Self::Delete,
            3 => Self::Synced,
            4 => Self::Compact,
            5 => Self::Grant,
            6 => Self::Revoke,
            7 => Self::End,
            8 => Self::Gap,
            _ => return None,
        })
    }
}

/// A frame that passed its checksum. `len` is its size on disk; the value is what follows the key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) d: u64,
    pub(crate) key: &'a [u8],
    pub(crate) len: usize,
}

/// Appends a frame and tells its length.
pub(crate) fn write(
    out: &mut Vec<u8>,
    kind: Kind,
    flags: u8,
    numbers: [u64; 4],
    key: &[u8],
    value: &[u8],
) -> usize {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.push(kind as u8);
    out.push(flags);
    let key_len = u16::try_from(key.len()).expect("keys are limited to 8 KiB");
    let value_len = u32::try_from(value.len()).expect("transactions are limited to 1.5 MiB");
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(&value_len.to_le_bytes());
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    let sum = checksum(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    out.len() - start
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Why there is no frame at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The bytes end before the frame does.
    Short,
    /// No frame starts here, or its checksum is wrong.
    Wrong,
}

/// The frame at the start of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Frame<'_>, Bad> {
    let (len, key_len) = length(bytes)?;
    let Some(whole) = bytes.get(..len) else {
        return Err(Bad::Short);
    };
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().expect("eight bytes"));
    let sum = u32::from_le_bytes(whole[4..8].try_into().expect("four bytes"));
    if checksum(&whole[8..]) != sum {
        return Err(Bad::Wrong);
    }
    Ok(Frame {
        kind: Kind::of(whole[8]).ok_or(Bad::Wrong)?,
        flags: whole[9],
        a: number(16),
        b: number(24),
        c: number(32),
        d: number(40),
        key: &whole[HEAD..HEAD + key_len],
        len,
    })
}

/// Length on disk and of the key, from a header that may lie.
pub(crate) fn length(bytes: &[u8]) -> Result<(usize, usize), Bad> {
    if bytes.len() < HEAD {
        return Err(Bad::Short);
    }
    if bytes[..4] != MAGIC {
        return Err(Bad::Wrong);
    }
    let key_len = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    let value_len = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    if key_len > crate::KEY_LIMIT_BYTES || value_len > 2 * crate::TXN_LIMIT_BYTES {
        return Err(Bad::Wrong);
    }
    Ok((HEAD + key_len + value_len, key_len))
}

/// The next place at or after `from` where a right frame starts.
pub(crate) fn resync(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len().saturating_sub(HEAD - 1))
        .find(|&at| bytes[at..at + 4] == MAGIC && read(&bytes[at..]).is_ok())
}

/// The key that a wrong frame seems to carry, for the report only.
pub(crate) fn guess_key(bytes: &[u8]) -> Option<String> {
    let key_len = usize::from(u16::from_le_bytes([*bytes.get(10)?, *bytes.get(11)?]));
    let key = bytes.get(HEAD..HEAD + key_len)?;
    let text = std::str::from_utf8(key).ok()?;
    (!text.is_empty() && text.chars().all(|c| !c.is_control())).then(|| text.to_owned())
}

/// Key and value out of bytes that were read for one frame.
pub(crate) fn split(bytes: &Bytes, frame: &Frame<'_>) -> (Bytes, Bytes) {
    let key = bytes.slice(HEAD..HEAD + frame.key.len());
    let value = bytes.slice(HEAD + frame.key.len()..frame.len);
    (key, value)
}

/// Sets a flag in a frame that has been written to memory.
pub(crate) fn flag(bytes: &mut [u8], flag: u8) {
    let (len, _) = length(bytes).expect("a frame was written here");
    bytes[9] |= flag;
    let sum = checksum(&bytes[8..len]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}
