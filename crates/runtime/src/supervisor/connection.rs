//! One connection to the supervisor: frames in, frames out, never blocking.
//!
//! Reading and writing end apart: a client that has closed is still owed nothing, but what it sent before is still input;
//! a client that has only ended its input still wants output.

use super::log::Stream;
use super::poll::{Key, Kind, Poll};
use super::session::Watch;
use crate::proto::{self, BadFrame, Event, HEADER, Streams, kind};
use gantry_linux::ipc;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io::IoSlice;
use std::ops::Range;

/// Bytes that wait for a client; beyond this the output that it takes is not read any more (Docker's behaviour: a slow client
/// slows the container down).
pub(super) const QUEUE_LIMIT: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// Has not said what it is.
    New,
    Control,
    /// Of the container or of an exec.
    Stream {
        session: Key,
        streams: Streams,
    },
}

#[derive(Debug)]
pub(super) struct Connection {
    watch: Watch,
    pub(super) role: Role,
    /// Received and not yet parsed; `parsed` bytes at its front are done.
    input: Vec<u8>,
    parsed: usize,
    /// Not yet taken by the kernel; `sent` bytes at its front are done.
    queue: Vec<u8>,
    sent: usize,
    /// The peer may still send.
    reading: bool,
    /// The peer may still receive.
    writing: bool,
    /// Its input has nowhere to go at the moment.
    pub(super) paused: bool,
    /// To be closed as soon as the queue is empty.
    pub(super) closing: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, role: Role) -> Self {
        Self {
            watch: Watch::new(socket),
            role,
            input: Vec::new(),
            parsed: 0,
            queue: Vec::new(),
            sent: 0,
            reading: true,
            writing: true,
            paused: false,
            closing: false,
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Nothing more can happen here.
    pub(super) fn is_over(&self) -> bool {
        let idle = !self.reading && self.unparsed() == 0;
        let deaf = !self.writing || (self.closing && self.queued() == 0);
        match self.role {
            Role::New | Role::Control => !self.reading || deaf,
            Role::Stream { .. } => (idle && !self.writing) || (self.closing && deaf),
        }
    }

    /// Whether the client takes this stream.
    pub(super) fn wants(&self, stream: Stream) -> bool {
        match (self.role, stream) {
            (Role::Stream { streams, .. }, Stream::Stdout) => self.is_writing() && streams.stdout,
            (Role::Stream { streams, .. }, Stream::Stderr) => self.is_writing() && streams.stderr,
            (Role::New | Role::Control, _) => false,
        }
    }

    /// The other end is closed; asked of the kernel now.
    pub(super) fn peer_is_gone(&self) -> bool {
        let mut poll = [PollFd::from_borrowed_fd(
            self.watch.fd(),
            PollFlags::empty(),
        )];
        let now = Timespec::default();
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Whether the client can be sent output at all.
    pub(super) fn is_writing(&self) -> bool {
        self.writing && !self.closing
    }

    /// Tells the kernel what we wait for now.
    pub(super) fn watch(&mut self, poll: &Poll, key: Key) {
        let mut flags = EventFlags::empty();
        if self.reading && !self.paused && !self.closing {
            flags |= EventFlags::IN;
        }
        if self.writing && self.queued() > 0 {
            flags |= EventFlags::OUT;
        }
        // A hang-up is always reported; that is all an idle client is watched for after it ended its input.
        let quiet = flags.is_empty() && self.writing && !self.paused;
        self.watch.set(poll, Kind::Connection, key, flags, quiet);
    }

    pub(super) fn unwatch(&mut self, poll: &Poll) {
        self.watch.clear(poll);
    }

    pub(super) fn send_event(&mut self, event: &Event) {
        let payload = serde_json::to_vec(event).expect("our own messages serialise");
        self.send(kind::EVENT, &payload);
    }

    /// Sends an event with descriptors on a connection that has nothing queued; hangs up when the kernel does not take it whole.
    pub(super) fn send_with<const N: usize>(
        &mut self,
        event: &Event,
        descriptors: [BorrowedFd<'_>; N],
    ) {
        let frame = proto::json_frame(kind::EVENT, event);
        let sent = match self.queued() {
            0 => ipc::send(self.watch.fd(), &[IoSlice::new(&frame)], &descriptors).unwrap_or(0),
            _ => 0,
        };
        if sent < frame.len() {
            self.hang_up();
        }
    }

    /// Sends a frame or queues what the kernel does not take.
    pub(super) fn send(&mut self, kind: u8, payload: &[u8]) {
        if !self.is_writing() {
            return;
        }
        let header = proto::header(kind, payload.len());
        let mut done = 0;
        if self.queued() == 0 {
            done = match self.send_now(&[IoSlice::new(&header), IoSlice::new(payload)]) {
                Ok(sent) => sent,
                Err(()) => return,
            };
        }
        if done < HEADER {
            self.queue.extend_from_slice(&header[done..]);
        }
        self.queue
            .extend_from_slice(&payload[done.saturating_sub(HEADER).min(payload.len())..]);
    }

    /// Writes what is queued, as far as the kernel takes it.
    pub(super) fn flush(&mut self) {
        while self.writing && self.queued() > 0 {
            let queue = std::mem::take(&mut self.queue);
            let result = self.send_now(&[IoSlice::new(&queue[self.sent..])]);
            self.queue = queue;
            match result {
                Ok(0) => break,
                Ok(sent) => self.sent += sent,
                Err(()) => return,
            }
        }
        if self.queued() == 0 {
            (self.queue, self.sent) = (Vec::new(), 0);
        } else if self.sent > QUEUE_LIMIT / 4 {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Zero when the socket is full.
    fn send_now(&mut self, parts: &[IoSlice<'_>]) -> Result<usize, ()> {
        loop {
            let mut control = rustix::net::SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(self.watch.fd(), parts, &mut control, flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.writing = false;
                    (self.queue, self.sent) = (Vec::new(), 0);
                    return Err(());
                }
            }
        }
    }

    /// Takes what has arrived, at most one buffer full. Knows afterwards when the peer will send no more.
    pub(super) fn receive(&mut self, scratch: &mut [u8]) {
        // What somebody still sends whom we are about to close is not kept.
        if !self.reading || self.paused || self.closing {
            return;
        }
        match rustix::net::recv(self.watch.fd(), &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.reading = false,
            Ok((length, _)) => self.input.extend_from_slice(&scratch[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.hang_up(),
        }
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading
    }

    /// The peer has closed its end.
    pub(super) fn peer_closed(&mut self) {
        self.writing = false;
        (self.queue, self.sent) = (Vec::new(), 0);
    }

    /// Nothing goes in or out any more.
    pub(super) fn hang_up(&mut self) {
        self.peer_closed();
        self.reading = false;
        (self.input, self.parsed) = (Vec::new(), 0);
    }

    fn unparsed(&self) -> usize {
        self.input.len() - self.parsed
    }

    /// The next complete frame: its kind and where its payload lies ([`Self::payload`]).
    pub(super) fn next_frame(&mut self) -> Result<Option<(u8, Range<usize>)>, BadFrame> {
        if let Some((kind, length)) = proto::parse_header(&self.input[self.parsed..])?
            && self.unparsed() >= HEADER + length
        {
            let start = self.parsed + HEADER;
            self.parsed = start + length;
            return Ok(Some((kind, start..start + length)));
        }
        if self.parsed > 0 {
            // Once per batch of frames: the half frame at the end moves to the front.
            let rest = self.input[self.parsed..].to_vec();
            (self.input, self.parsed) = (rest, 0);
        }
        if !self.reading {
            // The rest of a half frame will never come.
            (self.input, self.parsed) = (Vec::new(), 0);
        }
        Ok(None)
    }

    pub(super) fn payload(&self, range: Range<usize>) -> &[u8] {
        &self.input[range]
    }
}
