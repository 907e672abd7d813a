//! Reads a tar archive once, front to back, and believes nothing it says.
//!
//! The `tar` crate collects long names and PAX headers of any size in memory and knows no PAX sparse files; a hostile
//! layer would fill our memory with the first, and GNU tar's `--sparse` would be unpacked wrongly with the second.
//! So archives are read here (and written with that crate, where the bytes are ours).
//!
//! Formats: v7, POSIX ustar and PAX, GNU (long names, base-256 numbers, old sparse), PAX sparse 0.0, 0.1, 1.0.
//! Where formats leave a choice we decide as Go's archive/tar, because that is what Docker's layers were made and read with.

use std::io::{self, BufRead};

const BLOCK: usize = 512;
/// Linux' `PATH_MAX`: no path or link target may be longer.
pub const PATH_LIMIT: usize = 4096;
/// One PAX header: many extended attributes of up to 64 KiB each.
const PAX_LIMIT: u64 = 1 << 20;
/// Data fragments of one sparse file.
const SPARSE_LIMIT: usize = 1 << 16;
/// Extended headers in a row before something real must come.
const META_LIMIT: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("reading the archive")]
    Read(#[source] io::Error),
    #[error("unexpected EOF")]
    Truncated,
    #[error("invalid tar header at byte {at}: {what}")]
    Header { at: u64, what: &'static str },
    #[error("more than {0} entries")]
    TooMany(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, its extended headers already applied.
#[derive(Debug, Clone)]
pub struct Header {
    pub kind: Kind,
    /// As in the archive: not yet checked for `..`, slashes, or anything else but NUL and length.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// The size that the file will have.
    pub size: u64,
    /// Bytes of it that the archive holds.
    pub stored: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes belong: (offset, length), rising, without overlap. `None` for an ordinary file.
    pub sparse: Option<Vec<(u64, u64)>>,
}

pub struct TarStream<R> {
    input: R,
    position: u64,
    /// Stored bytes of the present entry not yet read, and the padding after them.
    remaining: u64,
    padding: u64,
    entries: u64,
    entry_limit: u64,
}

/// What extended headers say about the entry that follows.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseRecords,
}

#[derive(Default)]
struct SparseRecords {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    map: Vec<u64>,
    any: bool,
}

impl<R: BufRead> TarStream<R> {
    pub fn new(input: R, entry_limit: u64) -> Self {
        Self {
            input,
            position: 0,
            remaining: 0,
            padding: 0,
            entries: 0,
            entry_limit,
        }
    }

    /// The next entry, or `None` at the end of the archive. What was left of the present one is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Header>, TarError> {
        self.skip_body()?;
        let mut extended = Extended::default();
        let mut long_path = None;
        let mut long_link = None;
        for _ in 0..META_LIMIT {
            let at = self.position;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let raw = Raw::parse(&block).map_err(|what| TarError::Header { at, what })?;
            match raw.kind {
                b'x' | b'X' => {
                    let text = self.meta_body(raw.size, PAX_LIMIT, at)?;
                    extended = parse_pax(&text).map_err(|what| TarError::Header { at, what })?;
                }
                // Docker ignores global headers (git puts the commit there); so do we, whatever they say.
                b'g' => drop(self.meta_body(raw.size, PAX_LIMIT, at)?),
                b'L' => long_path = Some(self.long_name(raw.size, at)?),
                b'K' => long_link = Some(self.long_name(raw.size, at)?),
                _ => {
                    self.entries += 1;
                    if self.entries > self.entry_limit {
                        return Err(TarError::TooMany(self.entry_limit));
                    }
                    let header = self.entry(&block, raw, extended, long_path, long_link, at)?;
                    return Ok(Some(header));
                }
            }
        }
        Err(TarError::Header {
            at: self.position,
            what: "too many extended headers in a row",
        })
    }

    /// Hands the stored bytes of the present entry to `sink`, in pieces straight from the input's buffer.
    pub fn body<E: From<TarError>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.remaining > 0 {
            let buffer = fill(&mut self.input)?;
            let take = usize::try_from(self.remaining)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let result = sink(&buffer[..take]);
            self.consume(take);
            result?;
        }
        Ok(())
    }

    /// What follows the end of the archive.
    pub fn into_rest(self) -> R {
        self.input
    }

    fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.position += bytes as u64;
        self.remaining -= bytes as u64;
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        self.remaining += std::mem::take(&mut self.padding);
        self.body(|_| Ok(()))
    }

    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = self.input.fill_buf();
            let buffer = match buffer {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(TarError::Read)?,
            };
            if buffer.is_empty() {
                return if filled == 0 {
                    Ok(None)
                } else {
                    Err(TarError::Truncated)
                };
            }
            let take = buffer.len().min(BLOCK - filled);
            block[filled..filled + take].copy_from_slice(&buffer[..take]);
            self.input.consume(take);
            filled += take;
        }
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    /// A header, or `None` at two blocks of zeros or at the end of the input (as Go reads it).
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let Some(block) = self.read_block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.read_block()? {
            Some(second) if second != [0; BLOCK] => Err(TarError::Header {
                at: self.position - BLOCK as u64,
                what: "data after a block of zeros",
            }),
            _ => Ok(None),
        }
    }

    fn meta_body(&mut self, size: u64, limit: u64, at: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::Header {
                at,
                what: "extended header too large",
            });
        }
        self.begin_body(size);
        let mut text = Vec::new();
        self.body(|piece| {
            text.extend_from_slice(piece);
            Ok::<_, TarError>(())
        })?;
        self.skip_body()?;
        Ok(text)
    }

    fn long_name(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        let text = self.meta_body(size, PATH_LIMIT as u64 + 1, at)?;
        Ok(until_nul(&text).to_vec())
    }

    fn begin_body(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        raw: Raw,
        extended: Extended,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        at: u64,
    ) -> Result<Header, TarError> {
        let fail = |what| TarError::Header { at, what };
        let path = extended.path.or(long_path).unwrap_or(raw.path);
        let link = extended.link.or(long_link).unwrap_or(raw.link);
        let size = extended.size.unwrap_or(raw.size);
        let kind = match raw.kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(fail("unknown entry type")),
        };
        let stored = if kind == Kind::File { size } else { 0 };
        if stored > i64::MAX as u64 {
            return Err(fail("size out of range"));
        }
        self.begin_body(stored);
        let mut header = Header {
            kind,
            path,
            link,
            mode: raw.mode,
            uid: extended.uid.unwrap_or(raw.uid),
            gid: extended.gid.unwrap_or(raw.gid),
            mtime: extended.mtime.unwrap_or(raw.mtime),
            size: stored,
            stored,
            device: raw.device,
            xattrs: extended.xattrs,
            sparse: None,
        };
        if raw.kind == b'S' {
            let (map, size) = self.old_sparse(block, at)?;
            header.sparse = Some(map);
            header.size = size;
        } else if kind == Kind::File && extended.sparse.any {
            self.pax_sparse(&mut header, extended.sparse, at)?;
        }
        if let Some(map) = &header.sparse {
            check_sparse(map, header.size, self.remaining).map_err(fail)?;
            header.stored = self.remaining;
        }
        for text in [&header.path, &header.link] {
            if text.len() > PATH_LIMIT {
                return Err(fail("name longer than 4096 bytes"));
            }
            if text.contains(&0) {
                return Err(fail("NUL in a name"));
            }
        }
        Ok(header)
    }

    /// GNU's own format: four fragments in the header, more in blocks of 21 between header and data.
    fn old_sparse(
        &mut self,
        block: &[u8; BLOCK],
        at: u64,
    ) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let fail = |what| TarError::Header { at, what };
        let real_size = number(&block[483..495]).map_err(fail)?;
        let mut map = Vec::new();
        let mut more = block[482] != 0;
        fragments(&block[386..482], &mut map).map_err(fail)?;
        // The extra blocks are not counted in the entry's size.
        while more {
            let extra = self.read_block()?.ok_or(TarError::Truncated)?;
            fragments(&extra[..504], &mut map).map_err(fail)?;
            more = extra[504] != 0;
            if map.len() > SPARSE_LIMIT {
                return Err(fail("too many sparse fragments"));
            }
        }
        Ok((map, real_size))
    }

    fn pax_sparse(
        &mut self,
        header: &mut Header,
        records: SparseRecords,
        at: u64,
    ) -> Result<(), TarError> {
        let fail = |what| TarError::Header { at, what };
        let numbers = match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
            (0, _) => records.map,
            (1, 0) => self.sparse_map_in_data(at)?,
            _ => return Err(fail("unknown sparse format")),
        };
        if numbers.len() % 2 != 0 {
            return Err(fail("odd sparse map"));
        }
        header.size = records.real_size.ok_or(fail("sparse file without size"))?;
        if let Some(name) = records.name {
            header.path = name;
        }
        header.sparse = Some(numbers.chunks_exact(2).map(|c| (c[0], c[1])).collect());
        Ok(())
    }

    /// PAX sparse 1.0: the map is text at the head of the data, padded to a block: count, then offset and length each on a line.
    fn sparse_map_in_data(&mut self, at: u64) -> Result<Vec<u64>, TarError> {
        let fail = |what| TarError::Header { at, what };
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits: Option<u64> = None;
        loop {
            if self.remaining < BLOCK as u64 {
                return Err(fail("sparse map cut short"));
            }
            let block = self.read_block()?.ok_or(TarError::Truncated)?;
            self.remaining -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let value = digits
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')));
                        digits = Some(value.ok_or(fail("sparse map number too large"))?);
                    }
                    b'\n' => {
                        numbers.push(digits.take().ok_or(fail("empty line in a sparse map"))?);
                        let count = numbers[0];
                        if count > SPARSE_LIMIT as u64 {
                            return Err(fail("too many sparse fragments"));
                        }
                        if numbers.len() as u64 == 1 + 2 * count {
                            numbers.remove(0);
                            return Ok(numbers);
                        }
                    }
                    _ => return Err(fail("no number in a sparse map")),
                }
            }
        }
    }
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], TarError> {
    loop {
        match input.fill_buf() {
            Ok([]) => return Err(TarError::Truncated),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(TarError::Read(e)),
        }
    }
    // A second call returns the same buffer without reading; the borrow checker does not let the first one out of the loop.
    input.fill_buf().map_err(TarError::Read)
}

/// True when a block looks like the head of a tar archive: its checksum is right.
pub fn looks_like_tar(start: &[u8]) -> bool {
    start
        .first_chunk::<BLOCK>()
        .is_some_and(|block| *block == [0; BLOCK] || checksum_is_right(block))
}

/// The fields of one header block.
struct Raw {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: (i64, u32),
    device: (u32, u32),
}

impl Raw {
    fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        if !checksum_is_right(block) {
            return Err("checksum does not match");
        }
        let kind = block[156];
        let posix = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        let mut path = until_nul(&block[..100]).to_vec();
        if posix {
            // Schilling's star shortens the prefix to keep two times behind it.
            let star = &block[508..512] == b"tar\0";
            let prefix = until_nul(&block[345..if star { 476 } else { 500 }]);
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        let id =
            |field| number(field).and_then(|n| u32::try_from(n).map_err(|_| "owner out of range"));
        let device = if matches!(kind, b'3' | b'4') && (posix || gnu) {
            let part = |field| {
                number(field).and_then(|n| u32::try_from(n).map_err(|_| "device out of range"))
            };
            (part(&block[329..337])?, part(&block[337..345])?)
        } else {
            (0, 0)
        };
        let mode = number(&block[100..108])? & 0o7777;
        Ok(Self {
            kind,
            path,
            link: until_nul(&block[157..257]).to_vec(),
            mode: u32::try_from(mode).map_err(|_| "mode out of range")?,
            uid: id(&block[108..116])?,
            gid: id(&block[116..124])?,
            size: number(&block[124..136])?,
            mtime: (signed_number(&block[136..148])?, 0),
            device,
        })
    }
}

/// Some old programs summed signed bytes.
fn checksum_is_right(block: &[u8; BLOCK]) -> bool {
    let Ok(stated) = number(&block[148..156]) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0u64, 0i64);
    for (i, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stated == unsigned || i64::try_from(stated) == Ok(signed)
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(signed_number(field)?).map_err(|_| "negative number")
}

/// Octal digits among spaces and NULs, or GNU's base 256 (top bit set, two's complement).
fn signed_number(field: &[u8]) -> Result<i64, &'static str> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = i128::from(field[0] & 0x3f) - if negative { 0x40 } else { 0 };
        for &byte in &field[1..] {
            value = value * 256 + i128::from(byte);
            if value.unsigned_abs() > u128::from(u64::MAX) {
                return Err("number out of range");
            }
        }
        return i64::try_from(value).map_err(|_| "number out of range");
    }
    let text = field.trim_ascii_start();
    let text = &text[text.iter().take_while(|&&b| b == 0).count()..];
    let digits = text.iter().take_while(|b| matches!(b, b'0'..=b'7')).count();
    if !text[digits..].iter().all(|&b| b == 0 || b == b' ') {
        return Err("not a number");
    }
    // Twelve octal digits hold 36 bits.
    Ok(text[..digits]
        .iter()
        .fold(0, |value, &b| value * 8 + i64::from(b - b'0')))
}

/// Offset and length, twelve bytes each; an empty one ends the list.
fn fragments(field: &[u8], map: &mut Vec<(u64, u64)>) -> Result<(), &'static str> {
    for fragment in field.chunks_exact(24) {
        if fragment[0] == 0 || fragment[12] == 0 {
            break;
        }
        map.push((number(&fragment[..12])?, number(&fragment[12..])?));
    }
    Ok(())
}

fn check_sparse(map: &[(u64, u64)], size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0;
    let mut total = 0u64;
    for &(offset, length) in map {
        if offset < end {
            return Err("sparse fragments overlap");
        }
        end = offset
            .checked_add(length)
            .ok_or("sparse fragment out of range")?;
        total += length;
    }
    if end > size || size > i64::MAX as u64 {
        return Err("sparse fragment behind the end of the file");
    }
    if total != stored {
        return Err("sparse fragments do not add up to the stored size");
    }
    Ok(())
}

/// PAX records: `LENGTH KEY=VALUE\n`, the length counting itself.
fn parse_pax(mut text: &[u8]) -> Result<Extended, &'static str> {
    const BAD: &str = "malformed PAX record";
    let mut extended = Extended::default();
    while !text.is_empty() {
        let space = text.iter().take(12).position(|&b| b == b' ').ok_or(BAD)?;
        let length = usize::try_from(decimal(&text[..space])?).map_err(|_| BAD)?;
        let record = text.get(space + 1..length).ok_or(BAD)?;
        let record = record.strip_suffix(b"\n").ok_or(BAD)?;
        text = &text[length..];
        let equals = record.iter().position(|&b| b == b'=').ok_or(BAD)?;
        extended.record(&record[..equals], &record[equals + 1..])?;
    }
    Ok(extended)
}

impl Extended {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // POSIX: an empty value takes an earlier one back.
        let given = !value.is_empty();
        let text = || given.then(|| value.to_vec());
        let count = || given.then(|| decimal(value)).transpose();
        let id = || {
            given
                .then(|| {
                    decimal(value).and_then(|n| u32::try_from(n).map_err(|_| "owner out of range"))
                })
                .transpose()
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = count()?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(n, _)| n != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(what) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(what, value)?;
                }
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        self.any = true;
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" | b"numbytes" => self.map.push(decimal(value)?),
            b"map" => {
                self.map = value
                    .split(|&b| b == b',')
                    .filter(|part| !part.is_empty())
                    .map(decimal)
                    .collect::<Result<_, _>>()?;
            }
            _ => {}
        }
        if self.map.len() > 2 * SPARSE_LIMIT {
            return Err("too many sparse fragments");
        }
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Result<u64, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "not a number")?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("not a number");
    }
    text.parse().map_err(|_| "number out of range")
}

/// Seconds with a fraction of any length, possibly negative.
fn time(text: &[u8]) -> Result<(i64, u32), &'static str> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(decimal(parts.next().unwrap_or_default())?)
        .map_err(|_| "time out of range")?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("not a time");
    }
    let nanos = (0..9).fold(0, |n, i| {
        n * 10 + u32::from(fraction.get(i).map_or(0, |b| b - b'0'))
    });
    Ok(match (negative, nanos) {
        (false, _) => (whole, nanos),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
        let mut stream = TarStream::new(bytes, 1000);
        let mut entries = Vec::new();
        while let Some(header) = stream.next_entry()? {
            let mut body = Vec::new();
            stream.body(|piece| {
                body.extend_from_slice(piece);
                Ok::<_, TarError>(())
            })?;
            entries.push((header, body));
        }
        Ok(entries)
    }

    #[test]
    fn numbers() {
        assert_eq!(signed_number(b"0000644\0"), Ok(0o644));
        assert_eq!(signed_number(b"   644 \0"), Ok(0o644));
        assert_eq!(signed_number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(signed_number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Ok(256));
        assert_eq!(
            signed_number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Ok(-1)
        );
        assert!(signed_number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
        assert!(signed_number(b"12x4567\0").is_err());
        assert_eq!(time(b"1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert!(time(b"").is_err() && time(b"1.x").is_err());
    }

    #[test]
    fn pax_lengths_must_be_true() {
        assert!(parse_pax(b"12 path=abc\n").is_ok());
        for bad in [
            &b"13 path=abc\n"[..],
            b"11 path=abc\n",
            b"999999999999 path=abc\n",
            b"-1 path=abc\n",
            b"0 path=abc\n",
            b"2 path=abc\n",
            b"path=abc\n",
            b"12 path abc\n",
        ] {
            assert!(parse_pax(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        /// Whatever bytes come: an answer, no panic, no more memory than the input.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = read_all(&bytes);
        }

        /// A true archive with some bytes changed: an answer, and never more body than the archive is long.
        #[test]
        fn damaged_archives(changes in prop::collection::vec((0usize..4096, any::<u8>()), 1..20), fix in any::<bool>()) {
            let mut builder = ::tar::Builder::new(Vec::new());
            for (name, size) in [("a", 10), ("b/c", 700)] {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(size);
                header.set_mode(0o644);
                builder.append_data(&mut header, name, &vec![7; usize::try_from(size).unwrap()][..]).unwrap();
            }
            let mut bytes = builder.into_inner().unwrap();
            let length = bytes.len();
            for (at, value) in changes { bytes[at % length] = value; }
            if fix {
                // A right checksum lets the damage through to the fields.
                let sum: u64 = bytes[..512].iter().enumerate().map(|(i, &b)| u64::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            if let Ok(entries) = read_all(&bytes) {
                prop_assert!(entries.iter().map(|(_, body)| body.len()).sum::<usize>() <= length);
            }
        }
    }
}
