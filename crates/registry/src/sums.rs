//! Checksums of a large blob's pieces, so that any piece can be proved whole before it is sent, also for a range.
//!
//! A digest over the whole can only be checked when everything was read, which is too late for the bytes that are on the wire
//! already. CRC-32 finds every single flipped bit of a piece and costs a fraction of a digest; against an attacker it proves
//! nothing and need not: whoever can write here can do as he likes, and clients check the digest themselves.

use flate2::Crc;
use std::io::{self, Read};

/// One piece. What a reader holds in memory, too.
pub(crate) const PIECE: usize = 256 << 10;
const MAGIC: &[u8; 8] = b"gantrcs1";

/// The checksums of a blob of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) size: u64,
    pieces: Vec<u32>,
}

impl Sums {
    /// Is `bytes` the piece with this index?
    pub(crate) fn proves(&self, index: u64, bytes: &[u8]) -> bool {
        let expected = usize::try_from(index).ok().and_then(|i| self.pieces.get(i));
        let mut crc = Crc::new();
        crc.update(bytes);
        expected == Some(&crc.sum())
    }

    /// Magic, size, pieces, and a checksum over those.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.pieces.iter().flat_map(|p| p.to_le_bytes()));
        let mut crc = Crc::new();
        crc.update(&bytes);
        bytes.extend(crc.sum().to_le_bytes());
        bytes
    }

    /// `None` when these are not the whole sums of a blob of `size` bytes.
    pub(crate) fn from_bytes(bytes: &[u8], size: u64) -> Option<Self> {
        let (body, end) = bytes.split_last_chunk::<4>()?;
        let mut crc = Crc::new();
        crc.update(body);
        if crc.sum() != u32::from_le_bytes(*end) {
            return None;
        }
        let body = body.strip_prefix(MAGIC)?;
        let (stated, body) = body.split_first_chunk::<8>()?;
        let (pieces, rest) = body.as_chunks::<4>();
        let whole = u64::from_le_bytes(*stated) == size
            && rest.is_empty()
            && pieces.len() as u64 == size.div_ceil(PIECE as u64);
        whole.then(|| Self {
            size,
            pieces: pieces.iter().map(|p| u32::from_le_bytes(*p)).collect(),
        })
    }

    /// How long the file of a blob of `size` bytes is.
    pub(crate) fn file_length(size: u64) -> u64 {
        8 + 8 + size.div_ceil(PIECE as u64) * 4 + 4
    }
}

/// Sums in the making.
#[derive(Debug, Default)]
pub(crate) struct Summing {
    size: u64,
    pieces: Vec<u32>,
    current: Crc,
}

impl Summing {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = PIECE - usize::try_from(self.size % PIECE as u64).expect("below a piece");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.current.update(now);
            self.size += now.len() as u64;
            if now.len() == room {
                self.pieces.push(self.current.sum());
                self.current.reset();
            }
            bytes = later;
        }
    }
    pub(crate) fn finish(mut self) -> Sums {
        if !self.size.is_multiple_of(PIECE as u64) {
            self.pieces.push(self.current.sum());
        }
        Sums {
            size: self.size,
            pieces: self.pieces,
        }
    }
}

/// Fills as much of `buffer` as there is.
pub(crate) fn read_full(mut from: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen_and_every_length_survives() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut summing = Summing::default();
            for part in bytes.chunks(10_007) {
                summing.update(part);
            }
            let sums = summing.finish();
            let file = sums.to_bytes();
            assert_eq!(file.len() as u64, Sums::file_length(size as u64));
            assert_eq!(Sums::from_bytes(&file, size as u64).unwrap(), sums);
            for (index, piece) in bytes.chunks(PIECE).enumerate() {
                assert!(sums.proves(index as u64, piece));
                let mut flipped = piece.to_vec();
                flipped[piece.len() / 2] ^= 16;
                assert!(!sums.proves(index as u64, &flipped));
                assert!(!sums.proves(index as u64 + 1, piece) || size > PIECE);
            }
            for at in 0..file.len() {
                let mut flipped = file.clone();
                flipped[at] ^= 1;
                assert_eq!(Sums::from_bytes(&flipped, size as u64), None, "byte {at}");
            }
        }
    }
}
