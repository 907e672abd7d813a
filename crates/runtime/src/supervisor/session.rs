//! One process with its standard streams: the container's first, or an exec.

use super::log::Stream;
use super::poll::{Key, Kind, Poll};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{Winsize, tcsetwinsize};
use std::collections::VecDeque;
use std::io;

/// Input that waits for the process; beyond this its clients are not read.
pub(super) const INPUT_LIMIT: usize = 64 << 10;
/// What an output pipe grows to when its writer is fast. The most that needs no privilege.
const PIPE_SIZE: usize = 1 << 20;
/// A read of this much means that the pipe of the default size was full.
const PIPE_FULL: usize = 64 << 10;

/// A descriptor and what the kernel watches it for at the moment.
#[derive(Debug)]
pub(super) struct Watch {
    fd: OwnedFd,
    flags: Option<EventFlags>,
}

impl Watch {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, flags: None }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Watches for `flags`. With none the descriptor is taken out of the set, because the kernel reports hang-ups unasked and
    /// over and over; `hang_up` keeps it in for just these.
    pub(super) fn set(
        &mut self,
        poll: &Poll,
        kind: Kind,
        key: Key,
        flags: EventFlags,
        hang_up: bool,
    ) {
        let wanted = (!flags.is_empty() || hang_up).then_some(flags);
        let result = match (self.flags, wanted) {
            (old, new) if old == new => return,
            (None, Some(flags)) => poll.add(&self.fd, kind, key, flags),
            (Some(_), Some(flags)) => poll.modify(&self.fd, kind, key, flags),
            (_, None) => {
                poll.remove(&self.fd);
                Ok(())
            }
        };
        if result.is_ok() {
            self.flags = wanted;
        }
    }

    pub(super) fn clear(&mut self, poll: &Poll) {
        if self.flags.take().is_some() {
            poll.remove(&self.fd);
        }
    }
}

/// The supervisor's ends and the process's ends of three pipes.
#[derive(Debug)]
pub(super) struct Pipes {
    pub(super) input: Option<OwnedFd>,
    pub(super) outputs: [OwnedFd; 2],
}

/// Makes the streams of a process without a terminal; its stdin is `/dev/null` unless wanted. Returns ours and its three.
pub(super) fn pipes(stdin: bool) -> io::Result<(Pipes, [OwnedFd; 3])> {
    let (input, stdin) = if stdin {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        (Some(ours), theirs)
    } else {
        (None, std::fs::File::open("/dev/null")?.into())
    };
    let (stdout, their_stdout) = output_pipe()?;
    let (stderr, their_stderr) = output_pipe()?;
    let ours = Pipes {
        input,
        outputs: [stdout, stderr],
    };
    Ok((ours, [stdin, their_stdout, their_stderr]))
}

fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    // Only our end: whether a descriptor blocks is a property of the open file, and each end of a pipe is one.
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) pid: i32,
    pidfd: Option<OwnedFd>,
    /// 0–255, once it has ended.
    pub(super) status: Option<i32>,
    /// stdout (or the terminal) and stderr, until they end.
    outputs: [Option<Watch>; 2],
    /// Waits for slow clients.
    paused: [bool; 2],
    grown: [bool; 2],
    input: Option<Watch>,
    queue: VecDeque<u8>,
    /// Input ends when the queue is empty.
    ending: bool,
    pub(super) terminal: bool,
    /// Held open so that the terminal does not hang up while the process has it closed for a moment.
    slave: Option<OwnedFd>,
    /// Connections of kind stream.
    pub(super) clients: Vec<Key>,
}

/// What reading an output gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    /// Nothing at the moment.
    Empty,
    /// Never again.
    End,
}

impl Session {
    pub(super) fn with_pipes(pid: i32, pidfd: OwnedFd, pipes: Pipes) -> Self {
        Self {
            outputs: pipes.outputs.map(|fd| Some(Watch::new(fd))),
            input: pipes.input.map(Watch::new),
            ..Self::without_streams(pid, pidfd)
        }
    }

    pub(super) fn with_terminal(pid: i32, pidfd: OwnedFd, master: OwnedFd) -> Self {
        let _ = rustix::io::ioctl_fionbio(&master, true);
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).ok();
        Self {
            outputs: [Some(Watch::new(master)), None],
            terminal: true,
            slave,
            ..Self::without_streams(pid, pidfd)
        }
    }

    pub(super) fn without_streams(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
            status: None,
            outputs: [None, None],
            paused: [false; 2],
            grown: [false; 2],
            input: None,
            queue: VecDeque::new(),
            ending: false,
            terminal: false,
            slave: None,
            clients: Vec::new(),
        }
    }

    /// Watches the process and its output.
    pub(super) fn watch(&mut self, poll: &Poll, key: Key) -> rustix::io::Result<()> {
        if let Some(pidfd) = &self.pidfd {
            poll.add(pidfd, Kind::Process, key, EventFlags::IN)?;
        }
        self.watch_streams(poll, key);
        Ok(())
    }

    fn watch_streams(&mut self, poll: &Poll, key: Key) {
        let pending = !self.queue.is_empty();
        for (index, kind) in [Kind::Stdout, Kind::Stderr].into_iter().enumerate() {
            if let Some(output) = &mut self.outputs[index] {
                let mut flags = EventFlags::empty();
                flags.set(EventFlags::IN, !self.paused[index]);
                flags.set(EventFlags::OUT, self.terminal && pending);
                output.set(poll, kind, key, flags, false);
            }
        }
        if let Some(input) = &mut self.input {
            let flags = if pending {
                EventFlags::OUT
            } else {
                EventFlags::empty()
            };
            input.set(poll, Kind::Stdin, key, flags, false);
        }
    }

    /// Takes the exit status when there is one.
    pub(super) fn reap(&mut self, poll: &Poll) -> Option<i32> {
        let pidfd = self.pidfd.as_ref()?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let code = match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(None) | Err(Errno::INTR) => return None,
            Ok(Some(status)) => status
                .exit_status()
                .or(status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(255),
            // Somebody else's child cannot be; the answer is then as good as any.
            Err(_) => 255,
        };
        poll.remove(pidfd);
        self.pidfd = None;
        self.status = Some(code);
        Some(code)
    }

    pub(super) fn signal(&self, number: i32) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => gantry_linux::program::send_signal(pidfd.as_fd(), number),
            None => Err(Errno::SRCH.into()),
        }
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if let (true, Some(terminal)) = (self.terminal, &self.outputs[0]) {
            let size = Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = tcsetwinsize(terminal.fd(), size);
        }
    }

    /// Reads once. A closed output is forgotten.
    pub(super) fn read(&mut self, poll: &Poll, stream: Stream, scratch: &mut [u8]) -> Read {
        let index = stream as usize;
        let Some(output) = &mut self.outputs[index] else {
            return Read::End;
        };
        match rustix::io::read(output.fd(), &mut *scratch) {
            Ok(length) if length > 0 => {
                if length >= PIPE_FULL && !std::mem::replace(&mut self.grown[index], true) {
                    let _ = fcntl_setpipe_size(output.fd(), PIPE_SIZE);
                }
                Read::Bytes(length)
            }
            Err(Errno::AGAIN | Errno::INTR) => Read::Empty,
            // The end of a pipe, or EIO: nobody has the terminal open.
            Ok(_) | Err(_) => {
                output.clear(poll);
                self.outputs[index] = None;
                Read::End
            }
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.outputs.iter().any(Option::is_some)
    }

    /// Gives up on outputs that somebody else still holds open.
    pub(super) fn close_outputs(&mut self, poll: &Poll) {
        for output in &mut self.outputs {
            if let Some(output) = output {
                output.clear(poll);
            }
            *output = None;
        }
        self.slave = None;
    }

    /// Stops or resumes reading an output.
    pub(super) fn pause(&mut self, poll: &Poll, key: Key, stream: Stream, pause: bool) {
        if std::mem::replace(&mut self.paused[stream as usize], pause) != pause {
            self.watch_streams(poll, key);
        }
    }

    /// Whether clients have to wait before they may send more input.
    pub(super) fn input_full(&self) -> bool {
        self.queue.len() > INPUT_LIMIT
    }

    /// Input for the process; dropped when it takes none.
    pub(super) fn write(&mut self, poll: &Poll, key: Key, bytes: &[u8]) {
        if self.ending || self.input_fd().is_none() {
            return;
        }
        let mut rest = bytes;
        if self.queue.is_empty() {
            rest = &rest[self.write_now(poll, bytes)..];
        }
        if self.input_fd().is_some() {
            self.queue.extend(rest);
        }
        self.watch_streams(poll, key);
    }

    /// Writes queued input as far as the process takes it.
    pub(super) fn flush(&mut self, poll: &Poll, key: Key) {
        while !self.queue.is_empty() {
            let queue = std::mem::take(&mut self.queue);
            let written = self.write_now(poll, queue.as_slices().0);
            if self.input_fd().is_none() {
                break;
            }
            self.queue = queue;
            self.queue.drain(..written);
            if written == 0 {
                break;
            }
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            if self.ending {
                self.close_input(poll);
            }
        }
        self.watch_streams(poll, key);
    }

    /// The input is over once everything queued was written. A terminal has no end of input: its line discipline would need a
    /// character for it, and Docker sends none either.
    pub(super) fn end_input(&mut self, poll: &Poll, key: Key) {
        if !self.terminal {
            self.ending = true;
            self.flush(poll, key);
        }
    }

    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.terminal {
            self.outputs[0].as_ref().map(Watch::fd)
        } else {
            self.input.as_ref().map(Watch::fd)
        }
    }

    fn write_now(&mut self, poll: &Poll, bytes: &[u8]) -> usize {
        let Some(fd) = self.input_fd() else { return 0 };
        match rustix::io::write(fd, bytes) {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.close_input(poll);
                0
            }
        }
    }

    fn close_input(&mut self, poll: &Poll) {
        if let Some(mut input) = self.input.take() {
            input.clear(poll);
        }
        self.queue = VecDeque::new();
    }
}
