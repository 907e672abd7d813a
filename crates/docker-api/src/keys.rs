//! Detach keys: the sequence that leaves an attached terminal without stopping its program.

use gantry_base::{Error, Result};

/// Docker's default: ctrl-p, ctrl-q.
pub const DEFAULT: [u8; 2] = [0x10, 0x11];

/// Longest sequence taken; Docker has no limit, but nobody types more.
const LONGEST: usize = 32;

/// `ctrl-p,ctrl-q`, `a,b`, `ctrl-@` … as bytes; empty means [`DEFAULT`].
pub fn parse(text: &str) -> Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(DEFAULT.to_vec());
    }
    let invalid = || Error::invalid(format!("Invalid detach keys ({text}) provided"));
    if text.split(',').count() > LONGEST {
        return Err(invalid());
    }
    text.split(',')
        .map(|key| byte_of(key).ok_or_else(invalid))
        .collect()
}

fn byte_of(key: &str) -> Option<u8> {
    if let [single] = key.as_bytes() {
        return Some(*single);
    }
    let [letter] = key.strip_prefix("ctrl-")?.as_bytes() else {
        return None;
    };
    match letter {
        b'a'..=b'z' => Some(letter - b'a' + 1),
        b'@' => Some(0),
        b'[' => Some(27),
        b'\\' => Some(28),
        b']' => Some(29),
        b'^' => Some(30),
        b'_' => Some(31),
        _ => None,
    }
}

/// Watches typed bytes for the sequence. Bytes of a begun sequence are held back until it is clear that it is none.
#[derive(Debug)]
pub struct Watcher {
    keys: Vec<u8>,
    matched: usize,
}

/// What came of a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// Pass the piece on as it is: the common case, without a copy.
    Unchanged,
    /// Pass these bytes on instead.
    Instead(Vec<u8>),
    /// The sequence is complete; pass these bytes on, then detach.
    Detach(Vec<u8>),
}

impl Watcher {
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    pub fn feed(&mut self, piece: &[u8]) -> Typed {
        let Some(first) = self.keys.first() else {
            return Typed::Unchanged;
        };
        if self.matched == 0 && !piece.contains(first) {
            return Typed::Unchanged;
        }
        let mut out = Vec::with_capacity(piece.len() + self.matched);
        for &byte in piece {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return Typed::Detach(out);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(byte == self.keys[0]);
            if self.matched == 0 {
                out.push(byte);
            } else if self.keys.len() == 1 {
                self.matched = 0;
                return Typed::Detach(out);
            }
        }
        Typed::Instead(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_read_as_docker_reads_them() {
        assert_eq!(parse("").unwrap(), [0x10, 0x11]);
        assert_eq!(parse("ctrl-p,ctrl-q").unwrap(), [0x10, 0x11]);
        assert_eq!(parse("a,ctrl-@,ctrl-_").unwrap(), [b'a', 0, 31]);
        for bad in ["ctrl-", "ctrl-A", "ab", "a,,b", "ctrl-p;q"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(
                error.message(),
                format!("Invalid detach keys ({bad}) provided")
            );
        }
    }

    /// Feeds pieces; gives what the program received and whether the user detached.
    fn typed(keys: &[u8], pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut watcher = Watcher::new(keys.to_vec());
        let mut passed = Vec::new();
        for piece in pieces {
            match watcher.feed(piece) {
                Typed::Unchanged => passed.extend_from_slice(piece),
                Typed::Instead(bytes) => passed.extend(bytes),
                Typed::Detach(bytes) => {
                    passed.extend(bytes);
                    return (passed, true);
                }
            }
        }
        (passed, false)
    }

    #[test]
    fn only_the_whole_sequence_detaches_and_nothing_else_is_lost() {
        let keys = [1, 2, 3];
        /// Reads, what passes through, whether it detaches.
        type Case = (&'static [&'static [u8]], &'static [u8], bool);
        let cases: [Case; 8] = [
            (&[b"hello"], b"hello", false),
            (&[&[1, 2, 3]], b"", true),
            (&[&[1], &[2], &[3]], b"", true),
            (&[&[b'x', 1, 2, 3, b'y']], b"x", true),
            (&[&[1, 2], b"x"], &[1, 2, b'x'], false),
            (&[&[1, 1, 2, 3]], &[1], true),
            (&[&[1, 2], &[1, 2, 3]], &[1, 2], true),
            (&[&[3, 2, 1]], &[3, 2], false),
        ];
        for (pieces, want, detached) in cases {
            assert_eq!(
                typed(&keys, pieces),
                (want.to_vec(), detached),
                "{pieces:?}"
            );
        }
        assert_eq!(typed(b"q", &[b"aqb"]), (b"a".to_vec(), true));
    }
}
