//! Trees of files that others control: measured, copied, packed into a tar, unpacked from one, compared with the layers below.
//!
//! Invariant: every step goes from a folder's descriptor to one entry of it without following links, or through
//! [`gantry_linux::mount::open_in_root`]. No path is ever checked first and opened later.

pub(crate) mod diff;
pub(crate) mod pack;
pub(crate) mod tree;
pub(crate) mod unpack;

use bytes::Bytes;
use std::io::{self, Read, Write};
use tokio::sync::mpsc;

/// Bytes that one message of a [`ChannelWriter`] carries.
const CHUNK: usize = 128 << 10;
/// Messages that may wait for a slow reader.
pub(crate) const CHUNKS_WAITING: usize = 8;

/// Hands what is written to an async reader in large pieces; waits while the reader is behind. For blocking threads only.
pub(crate) struct ChannelWriter {
    out: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl ChannelWriter {
    pub(crate) fn new(out: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            out,
            buffer: Vec::with_capacity(CHUNK),
        }
    }
    fn send(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.out
            .blocking_send(Ok(full.into()))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.send()
    }
}

/// The other end, for a reader that blocks.
pub(crate) struct ChannelReader {
    from: mpsc::Receiver<io::Result<Bytes>>,
    left: Bytes,
}

impl ChannelReader {
    pub(crate) fn new(from: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            from,
            left: Bytes::new(),
        }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.from.blocking_recv() {
                Some(chunk) => self.left = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.left.len());
        buffer[..length].copy_from_slice(&self.left.split_to(length));
        Ok(length)
    }
}
