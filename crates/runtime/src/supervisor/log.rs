//! Docker's json-file log: one JSON object per line of output, rotated by size.
//!
//! `{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.678Z"}`
//!
//! Byte for byte what Docker writes, because its readers and other programs tail these files: Go's escapes, `\ufffd` for bytes that
//! are no UTF-8, lines longer than [`CHUNK`] in pieces of which only the last has a newline.
//!
//! A full disk never stops a container: lines that cannot be written are counted, and the count is written when there is room again.

use super::time;
use crate::proto;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

/// Docker's buffer of a stream: a longer line is cut into pieces of this size.
const CHUNK: usize = 16 << 10;
/// Encoded bytes that are collected before they are written.
const BATCH: usize = 128 << 10;
/// More files than this are never kept, whatever was asked.
const FILES_LIMIT: u32 = 1000;

/// Which of the two streams a line came from; also the index into [`Logger::held`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

#[derive(Debug)]
pub(super) struct Logger {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    size: u64,
    max_size: Option<u64>,
    max_files: u32,
    /// Encoded lines that wait to be written; empty after every [`Logger::append`].
    batch: Vec<u8>,
    /// The beginning of a line whose end was not read yet, per stream.
    held: [Vec<u8>; 2],
    dropped: u64,
    /// A JSON object that every line carries; empty for none.
    attrs: String,
}

impl Logger {
    pub(super) fn open(log: &proto::Log) -> io::Result<Self> {
        let (file, size) = open(&log.path, false)?;
        let mut logger = Self {
            path: log.path.clone(),
            file,
            size,
            max_size: None,
            max_files: 1,
            batch: Vec::new(),
            held: [Vec::new(), Vec::new()],
            dropped: 0,
            attrs: log.attrs.clone(),
        };
        logger.set_limits(log.max_size, log.max_files);
        Ok(logger)
    }

    /// Takes effect with the next line.
    pub(super) fn set_limits(&mut self, max_size: Option<u64>, max_files: u32) {
        self.max_size = max_size.filter(|&size| size > 0);
        self.max_files = max_files.clamp(1, FILES_LIMIT);
    }

    /// Writes the complete lines of what was read at `now`; the begun one is held until the rest comes.
    pub(super) fn append(&mut self, stream: Stream, mut bytes: &[u8], now: SystemTime) {
        let end = self.line_end(stream, now);
        let mut held = std::mem::take(&mut self.held[stream as usize]);
        while !bytes.is_empty() {
            let window = &bytes[..bytes.len().min(CHUNK - held.len())];
            let length = (&*window)
                .skip_until(b'\n')
                .expect("reading from memory cannot fail");
            let (piece, rest) = bytes.split_at(length);
            bytes = rest;
            if piece.last() != Some(&b'\n') && held.len() + length < CHUNK {
                held.extend_from_slice(piece);
                continue;
            }
            self.line(&[&held, piece], &end);
            held.clear();
        }
        if held.is_empty() {
            held = Vec::new();
        }
        self.held[stream as usize] = held;
        self.flush();
    }

    /// The output has ended: what was held is a line without a newline.
    pub(super) fn finish(&mut self, now: SystemTime) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = std::mem::take(&mut self.held[stream as usize]);
            if !held.is_empty() {
                let end = self.line_end(stream, now);
                self.line(&[&held], &end);
            }
        }
        self.flush();
    }

    /// Gives the batch's memory back; called when the container is quiet.
    pub(super) fn relax(&mut self) {
        self.batch = Vec::new();
    }

    fn line(&mut self, pieces: &[&[u8]], end: &[u8]) {
        if let Some(limit) = self.max_size
            && self.size + self.batch.len() as u64 >= limit
        {
            self.flush();
            if self.size >= limit {
                self.rotate();
            }
        }
        self.batch.extend_from_slice(b"{\"log\":\"");
        for piece in pieces {
            escape(piece, &mut self.batch);
        }
        self.batch.extend_from_slice(end);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.dropped > 0 {
            let marker = self.marker();
            if self.write(&marker).is_ok() {
                self.dropped = 0;
            }
        }
        let batch = std::mem::take(&mut self.batch);
        if self.write(&batch).is_err() {
            // Whole lines that made it stay; a torn one is taken back, so that every line of the file is readable.
            let written = self.file.metadata().map_or(self.size, |m| m.len());
            let kept = (written.saturating_sub(self.size) as usize).min(batch.len());
            let whole = batch[..kept]
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |at| at + 1);
            self.size += whole as u64;
            let _ = self.file.set_len(self.size);
            self.dropped += batch[whole..].iter().filter(|&&b| b == b'\n').count() as u64;
        }
        self.batch = batch;
        self.batch.clear();
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Everything that follows the text of a line.
    fn line_end(&self, stream: Stream, now: SystemTime) -> Vec<u8> {
        let (time, name) = (time::rfc3339_nano(now), stream.name());
        let attrs = match self.attrs.as_str() {
            "" => String::new(),
            object => format!(",\"attrs\":{object}"),
        };
        format!("\",\"stream\":\"{name}\"{attrs},\"time\":\"{time}\"}}\n").into_bytes()
    }

    fn marker(&self) -> Vec<u8> {
        let mut line = Vec::from(b"{\"log\":\"");
        let text = format!(
            "gantry: {} log lines were lost because they could not be written\n",
            self.dropped
        );
        escape(text.as_bytes(), &mut line);
        line.extend_from_slice(&self.line_end(Stream::Stderr, SystemTime::now()));
        line
    }

    /// `path` becomes `path.1` and so on; the oldest goes. If a new file cannot be made the old one is used on.
    fn rotate(&mut self) {
        if self.max_files > 1 {
            for number in (1..self.max_files - 1).rev() {
                let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
            }
            let _ = std::fs::rename(&self.path, self.numbered(1));
        }
        if let Ok((file, size)) = open(&self.path, true) {
            self.file = file;
            self.size = size;
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn open(path: &std::path::Path, empty: bool) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)?;
    if empty {
        file.set_len(0)?;
        return Ok((file, 0));
    }
    let mut size = file.metadata()?.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    // A writer that was cut off in the middle left half a line; the next one begins on its own.
    if last != [b'\n'] && file.write_all(b"\n").is_ok() {
        size += 1;
    }
    Ok((file, size))
}

/// The text as Go's encoding/json writes it inside quotes, HTML escapes included.
fn escape(mut bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    loop {
        let plain = plain_prefix(bytes);
        out.extend_from_slice(&bytes[..plain]);
        bytes = &bytes[plain..];
        let Some((&first, rest)) = bytes.split_first() else {
            return;
        };
        match first {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', first]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0..0x80 => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(first >> 4)]);
                out.push(HEX[usize::from(first & 15)]);
            }
            _ => {
                bytes = &bytes[escape_wide(bytes, out)..];
                continue;
            }
        }
        bytes = rest;
    }
}

/// One character beyond ASCII, or one byte that is none. Returns how many bytes were used.
fn escape_wide(bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let width = match bytes[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    match bytes.get(..width).map(std::str::from_utf8) {
        // Line separators of JavaScript.
        Some(Ok("\u{2028}")) => out.extend_from_slice(b"\\u2028"),
        Some(Ok("\u{2029}")) => out.extend_from_slice(b"\\u2029"),
        Some(Ok(character)) => out.extend_from_slice(character.as_bytes()),
        Some(Err(_)) | None => {
            out.extend_from_slice(b"\\ufffd");
            return 1;
        }
    }
    width
}

/// How many bytes at the front stand for themselves. Eight at a time: this loop sees every byte a container writes.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
    let is = |word: u64, byte: u8| zero(word ^ (ONES * u64::from(byte)));
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        // `<` and `>` differ in bit 1 only.
        let angle = is(word | (ONES * 2), b'>');
        let special =
            control | (word & HIGH) | angle | is(word, b'"') | is(word, b'\\') | is(word, b'&');
        if special != 0 {
            // The lowest mark is exact; a borrow can only add false ones above it.
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + bytes[at..]
        .iter()
        .position(|b| !matches!(b, 0x20..0x80) || matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&'))
        .unwrap_or(bytes.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn escaped(text: &[u8]) -> String {
        let mut out = Vec::new();
        escape(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("gantry-log-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
        fn logger(&self, max_size: Option<u64>, max_files: u32) -> Logger {
            let path = self.0.join("log");
            Logger::open(&proto::Log {
                path,
                max_size,
                max_files,
                attrs: String::new(),
            })
            .unwrap()
        }
        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap()
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn text_is_escaped_as_go_does() {
        for (text, expected) in [
            (
                &b"plain text, longer than eight"[..],
                "plain text, longer than eight",
            ),
            (
                b"<a href=\"x\">&amp;\\",
                "\\u003ca href=\\\"x\\\"\\u003e\\u0026amp;\\\\",
            ),
            (b"a\tb\r\n\x1b[0m\x7f", "a\\u0009b\\r\\n\\u001b[0m\x7f"),
            ("grün € 😀".as_bytes(), "grün € 😀"),
            ("\u{2028}\u{2029}".as_bytes(), "\\u2028\\u2029"),
            (
                b"bad\xff\xfeend\xe2\x82",
                "bad\\ufffd\\ufffdend\\ufffd\\ufffd",
            ),
            (
                b"\x00\x00\x00\x00\x00\x00\x00\x00\x01",
                "\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u0001",
            ),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    /// The words of eight bytes against the definition, for each byte at each place.
    #[test]
    fn special_bytes_are_found_wherever_they_are() {
        for byte in 0..=255u8 {
            for place in 0..20 {
                let mut text = *b"abcdefgh~}|{ !#$%'()";
                text[place] = byte;
                let plain = matches!(byte, 0x20..0x80) && !b"\"\\<>&".contains(&byte);
                let expected = if plain { text.len() } else { place };
                assert_eq!(plain_prefix(&text), expected, "{byte:#x} at {place}");
            }
        }
    }

    #[test]
    fn lines_are_written_whole_and_ends_are_kept() {
        let scratch = Scratch::new("lines");
        let mut logger = scratch.logger(None, 1);
        let now = UNIX_EPOCH + Duration::new(1_000_000_000, 120_000_000);
        logger.append(Stream::Stdout, b"one\ntw", now);
        logger.append(Stream::Stderr, b"err\n", now);
        logger.append(Stream::Stdout, b"o\n\nrest", now);
        logger.finish(now);
        let line = |text: &str, stream: &str| {
            format!(
                "{{\"log\":\"{text}\",\"stream\":\"{stream}\",\"time\":\"2001-09-09T01:46:40.12Z\"}}\n"
            )
        };
        let expected = [
            line("one\\n", "stdout"),
            line("err\\n", "stderr"),
            line("two\\n", "stdout"),
            line("\\n", "stdout"),
            line("rest", "stdout"),
        ];
        assert_eq!(scratch.read("log"), expected.concat());
    }

    #[test]
    fn long_lines_are_cut_as_docker_cuts_them() {
        let scratch = Scratch::new("long");
        let mut logger = scratch.logger(None, 1);
        let text = "x".repeat(2 * CHUNK + 5) + "\n";
        for piece in text.as_bytes().chunks(1000) {
            logger.append(Stream::Stdout, piece, UNIX_EPOCH);
        }
        let lengths: Vec<usize> = scratch
            .read("log")
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["log"]
                    .as_str()
                    .unwrap()
                    .len()
            })
            .collect();
        assert_eq!(lengths, [CHUNK, CHUNK, 6]);
    }

    #[test]
    fn rotation_loses_nothing_that_the_files_can_hold() {
        let scratch = Scratch::new("rotate");
        let mut logger = scratch.logger(Some(1000), 50);
        for number in 0..100 {
            logger.append(
                Stream::Stdout,
                format!("line {number}\n").as_bytes(),
                UNIX_EPOCH,
            );
        }
        let mut all = String::new();
        let mut files = 0;
        for number in (0..50).rev() {
            let name = if number == 0 {
                "log".into()
            } else {
                format!("log.{number}")
            };
            if let Ok(text) = std::fs::read_to_string(scratch.0.join(&name)) {
                assert!(text.len() < 1100, "{name} has {}", text.len());
                all += &text;
                files += 1;
            }
        }
        assert!(files > 5);
        let numbers: Vec<usize> = all
            .lines()
            .map(|line| {
                line["{\"log\":\"line ".len()..]
                    .split('\\')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        logger.set_limits(Some(500), 2);
        for _ in 0..20 {
            logger.append(Stream::Stdout, b"later\n", UNIX_EPOCH);
        }
        assert!(scratch.read("log").len() < 600);
        assert!(scratch.read("log.1").contains("later"));
    }

    #[test]
    fn a_full_disk_is_counted_and_told() {
        let scratch = Scratch::new("full");
        let mut logger = scratch.logger(None, 1);
        logger.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        logger.append(Stream::Stdout, b"lost\nlost too\n", UNIX_EPOCH);
        assert_eq!(logger.dropped, 2);
        let (file, size) = open(&logger.path, false).unwrap();
        (logger.file, logger.size) = (file, size);
        logger.append(Stream::Stdout, b"kept\n", UNIX_EPOCH);
        let text = scratch.read("log");
        assert!(text.contains("2 log lines were lost"), "{text}");
        assert!(text.contains("kept"));
    }
}
