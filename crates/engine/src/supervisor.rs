//! The daemon's side of the supervisors: starting them through the spawner, driving them, finding them again.
//!
//! ```text
//! Spawner::spawn ──> Handle      one control connection: started, exited, gone; signal, resize, log limits
//! adopt(R/c/<id>) ─> Handle      the same for a supervisor that an earlier daemon started
//! Handle::attach ──> Stream      output (and input) of the container
//! Handle::exec ────> ExecSession output, input and exit code of one more process
//! ```
//! Nothing here polls or waits for a reply that it does not need: a start is one message out and one event back.
//!
//! Wire format and files: [`gantry_runtime::proto`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_linux::{ipc, program};
use gantry_oci::runtime::Process;
use gantry_runtime::proto::{
    self, Event, Exit, HEADER, Request, Spawn, StateFile, Streams, kind, packet,
};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, watch};

/// Requests that may wait for the control connection.
const REQUEST_QUEUE: usize = 64;
/// A frame of stdin carries at most this much, so that big writes of one client do not hold up others.
const INPUT_CHUNK: usize = 32 << 10;
/// How long a supervisor may take to answer or to finish when a daemon looks for it.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The process that forks a supervisor per start. Holds nothing; when it dies the next spawn starts another.
pub struct Spawner {
    program: OwnedFd,
    instance: String,
    process: Mutex<SpawnerProcess>,
}

#[derive(Default)]
struct SpawnerProcess {
    running: Option<(AsyncFd<OwnedFd>, Child)>,
    sequence: u32,
}

impl Spawner {
    /// Copies `program` (the bytes of `gantry-runtime`) into a sealed memfd and starts it as the spawner of `instance`.
    pub async fn open(program: &'static [u8], instance: &str) -> Result<Self> {
        let spawner = Self {
            program: program::sealed_copy("gantry-runtime", program)
                .context(|| "copying gantry-runtime into memory".into())?,
            instance: instance.to_owned(),
            process: Mutex::default(),
        };
        spawner.process.lock().await.running = Some(spawner.start()?);
        Ok(spawner)
    }

    /// Asks for a supervisor. `sockets` belong to `spawn.ports`, `attach` to `spawn.attach`, in order. Returns once the message is on its
    /// way; [`Handle::started`] has the outcome. Files of an earlier run in `spawn.run_dir` are removed.
    pub async fn spawn(
        &self,
        spawn: Spawn,
        sockets: Vec<OwnedFd>,
        attach: Vec<OwnedFd>,
    ) -> Result<Handle> {
        if sockets.len() != spawn.ports.len() || attach.len() != spawn.attach.len() {
            return Err(Error::internal("a spawn with sockets that do not match it"));
        }
        for name in ["exit.json", "state.json", "sock"] {
            let _ = fs::remove_file(spawn.run_dir.join(name));
        }
        let (stream, theirs) = connected_pair().context(|| "making a control connection".into())?;
        let json = serde_json::to_vec(&spawn).context(|| "encoding a spawn".into())?;
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![theirs.as_fd()];
        descriptors.extend(sockets.iter().chain(&attach).map(AsFd::as_fd));
        self.send(&json, descriptors).await?;
        Ok(Handle::new(stream, spawn.run_dir, Seen::default()))
    }

    /// The spawner's process, while one runs.
    pub async fn process_id(&self) -> Option<u32> {
        let process = self.process.lock().await;
        process.running.as_ref().map(|(_, child)| child.id())
    }

    async fn send(&self, json: &[u8], mut descriptors: Vec<BorrowedFd<'_>>) -> Result<()> {
        let large = (json.len() > packet::INLINE_LIMIT)
            .then(|| in_memfd(json))
            .transpose()
            .context(|| "writing a spawn into memory".into())?;
        if json.len() > packet::SPAWN_LIMIT || descriptors.len() >= packet::DESCRIPTORS_LIMIT {
            return Err(Error::invalid(
                "the container's configuration is too large to be started",
            ));
        }
        let (tag, payload) = match &large {
            Some(memfd) => {
                descriptors.push(memfd.as_fd());
                (packet::SPAWN_IN_MEMFD, &[][..])
            }
            None => (packet::SPAWN, json),
        };
        let mut process = self.process.lock().await;
        for attempt in 0..2 {
            process.sequence = process.sequence.wrapping_add(1);
            let sequence = process.sequence;
            if process.running.is_none() {
                process.running = Some(self.start()?);
            }
            let (socket, _) = process.running.as_ref().expect("started above");
            let error = match send_packets(socket, tag, sequence, payload, &descriptors).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            tracing::warn!(%error, attempt, "the spawner is gone, starting another");
            if let Some((socket, mut child)) = process.running.take() {
                drop(socket);
                // It holds nothing and its supervisors do not depend on it, so it is ended for sure and waited for.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the spawner of containers cannot be reached",
        ))
    }

    fn start(&self) -> Result<(AsyncFd<OwnedFd>, Child)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context(|| "making the spawner's socket".into())?;
        let child = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("gantry-runtime")
            .args([
                "spawner",
                "--cgroup",
                &format!("{}/supervisors", self.instance),
            ])
            // Room for the command line that its forks show.
            .arg("-".repeat(128))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "starting the spawner".into())?;
        #[expect(
            deprecated,
            reason = "the descriptor is owned and stays open as long as the registration; the replacement is unsafe"
        )]
        let socket = AsyncFd::new(ours).context(|| "watching the spawner's socket".into())?;
        Ok((socket, child))
    }
}

async fn send_packets(
    socket: &AsyncFd<OwnedFd>,
    tag: u8,
    sequence: u32,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut rest = descriptors;
    while rest.len() > ipc::DESCRIPTORS_PER_MESSAGE {
        let (part, after) = rest.split_at(ipc::DESCRIPTORS_PER_MESSAGE);
        send_packet(socket, packet::DESCRIPTORS, sequence, &[], part).await?;
        rest = after;
    }
    send_packet(socket, tag, sequence, payload, rest).await
}

async fn send_packet(
    socket: &AsyncFd<OwnedFd>,
    tag: u8,
    sequence: u32,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut header = [tag; packet::HEADER];
    header[1..].copy_from_slice(&sequence.to_le_bytes());
    socket
        .async_io(Interest::WRITABLE, |fd| {
            ipc::send(
                fd,
                &[IoSlice::new(&header), IoSlice::new(payload)],
                descriptors,
            )
        })
        .await
        .map(drop)
}

fn in_memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = fs::File::from(rustix::fs::memfd_create("spawn", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// A stream connection for [`Spawner::spawn`]: attached before the first byte is written.
pub fn stream_pair() -> Result<(Stream, OwnedFd)> {
    let (stream, theirs) = connected_pair().context(|| "making a stream connection".into())?;
    Ok((Stream::new(stream, BytesMut::new()), theirs))
}

fn connected_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((UnixStream::from_std(ours.into())?, theirs))
}

/// The user's program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub pid: i32,
    pub start_ticks: u64,
}

/// Nothing runs and nothing is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// 127 no such file, 126 not executable, 128 anything else.
    pub code: i32,
    /// Docker's sentence.
    pub message: String,
}

/// What the control connection has told so far.
#[derive(Debug, Clone, Default)]
struct Seen {
    started: Option<Started>,
    failed: Option<StartError>,
    exit: Option<Exit>,
    gone: bool,
}

/// One supervisor, through its control connection. Cheap to clone; the connection closes with the last clone.
#[derive(Debug, Clone)]
pub struct Handle {
    seen: watch::Receiver<Seen>,
    requests: mpsc::Sender<Vec<u8>>,
    run_dir: Arc<Path>,
}

impl Handle {
    fn new(stream: UnixStream, run_dir: PathBuf, seen: Seen) -> Self {
        Self::with_buffer(stream, BytesMut::new(), run_dir, seen)
    }

    fn with_buffer(stream: UnixStream, buffer: BytesMut, run_dir: PathBuf, seen: Seen) -> Self {
        let (sender, seen) = watch::channel(seen);
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        tokio::spawn(drive(stream, buffer, sender, queue));
        Self {
            seen,
            requests,
            run_dir: run_dir.into(),
        }
    }

    /// Resolves when the user's program was exec'd, or with the reason why it never was.
    pub async fn started(&self) -> Result<Started, StartError> {
        let seen = self
            .until(|seen| seen.started.is_some() || seen.failed.is_some() || seen.gone)
            .await;
        match (seen.started, seen.failed) {
            (Some(started), _) => Ok(started),
            (None, Some(failed)) => Err(failed),
            (None, None) => Err(StartError {
                code: 128,
                message: "the container's supervisor ended before the container was started".into(),
            }),
        }
    }

    /// Resolves when the container's first process has ended and its output is in the log. A supervisor that was killed took
    /// the container along: 137. Before it is started again, [`Handle::gone`] must be awaited.
    pub async fn exited(&self) -> Exit {
        let seen = self.until(|seen| seen.exit.is_some() || seen.gone).await;
        seen.exit
            .or_else(|| read_exit(&self.run_dir))
            .unwrap_or_else(lost)
    }

    /// Resolves when the supervisor has cleaned up: no process, no cgroup, no socket is left.
    pub async fn gone(&self) {
        self.until(|seen| seen.gone).await;
    }

    /// Sends a signal to the container's first process. Nobody there any more is not an error.
    pub async fn signal(&self, number: i32) -> Result<()> {
        self.request(&Request::Signal { number }).await
    }

    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.request(&Request::Resize { columns, rows }).await
    }

    pub async fn set_log(&self, max_size: Option<u64>, max_files: u32) -> Result<()> {
        self.request(&Request::SetLog {
            max_size,
            max_files,
        })
        .await
    }

    /// Opens one more connection to the container's output from [`Stream::since_ns`] on, and to its input if wanted.
    pub async fn attach(&self, streams: Streams) -> Result<Stream> {
        let mut stream = self.connect().await?;
        let frame = proto::json_frame(kind::REQUEST, &Request::Attach(streams));
        stream.write_all(&frame).await.map_err(not_running)?;
        let mut frames = Frames::new(BytesMut::new());
        let since_ns = match frames.next(&mut stream).await.map_err(not_running)? {
            Some((kind::EVENT, payload)) => match parse_event(&payload)? {
                Event::Attached { since_ns } => since_ns,
                Event::Refused { message } => return Err(Error::conflict(message)),
                _ => {
                    return Err(Error::internal(
                        "the supervisor answered an attach with nonsense",
                    ));
                }
            },
            Some(_) => {
                return Err(Error::internal(
                    "the supervisor sent output before an answer",
                ));
            }
            None => return Err(not_running(io::ErrorKind::UnexpectedEof.into())),
        };
        Ok(Stream {
            since_ns,
            ..Stream::new(stream, frames.buffer)
        })
    }

    /// The container's sockets at 127.0.0.11: datagrams, listener.
    pub async fn names(&self) -> Result<[OwnedFd; 2]> {
        let mut stream = self.connect().await?;
        let frame = proto::json_frame(kind::REQUEST, &Request::Names);
        stream.write_all(&frame).await.map_err(not_running)?;
        let mut buffer = [0; 4096];
        let received = stream.async_io(Interest::READABLE, || ipc::receive(&stream, &mut buffer));
        let (length, descriptors) = received.await.map_err(not_running)?;
        let Ok(Some((kind::EVENT, payload))) = proto::parse_header(&buffer[..length]) else {
            return Err(not_running(io::ErrorKind::UnexpectedEof.into()));
        };
        // An answer is far smaller than the buffer and was written as one.
        let payload = buffer.get(HEADER..HEADER + payload).unwrap_or_default();
        match parse_event(payload)? {
            Event::Names => descriptors
                .try_into()
                .map_err(|_| Error::internal("the supervisor sent no sockets for names")),
            Event::Refused { message } => Err(Error::conflict(message)),
            _ => Err(Error::internal(
                "the supervisor answered a request for names with nonsense",
            )),
        }
    }

    /// Runs one more process in the container. The inner error is about that process, the outer one about reaching the supervisor.
    pub async fn exec(
        &self,
        process: Process,
        filter: Option<String>,
        streams: Streams,
        console_size: Option<(u16, u16)>,
    ) -> Result<Result<ExecSession, StartError>> {
        let mut stream = self.connect().await?;
        let request = Request::Exec {
            process,
            filter,
            streams,
            console_size,
        };
        let json = serde_json::to_vec(&request).context(|| "encoding an exec".into())?;
        if json.len() >= proto::FRAME_LIMIT {
            return Err(Error::invalid("the exec's configuration is too large"));
        }
        let frame = [&proto::header(kind::REQUEST, json.len())[..], &json].concat();
        stream.write_all(&frame).await.map_err(not_running)?;
        let mut frames = Frames::new(BytesMut::new());
        let outcome = match frames.next(&mut stream).await.map_err(not_running)? {
            Some((kind::EVENT, payload)) => parse_event(&payload)?,
            Some(_) => {
                return Err(Error::internal(
                    "the supervisor sent output before an answer",
                ));
            }
            None => return Err(not_running(io::ErrorKind::UnexpectedEof.into())),
        };
        match outcome {
            Event::Started { pid, start_ticks } => {
                let Stream { output, input, .. } = Stream::new(stream, frames.buffer);
                Ok(Ok(ExecSession {
                    started: Started { pid, start_ticks },
                    output,
                    input,
                }))
            }
            Event::Failed { code, message } => Ok(Err(StartError { code, message })),
            Event::Refused { message } => Err(Error::conflict(message)),
            Event::State { .. } | Event::Exited(_) | Event::Attached { .. } | Event::Names => Err(
                Error::internal("the supervisor answered an exec with nonsense"),
            ),
        }
    }

    async fn connect(&self) -> Result<UnixStream> {
        connect(&self.run_dir).await.map_err(not_running)
    }

    async fn request(&self, request: &Request) -> Result<()> {
        let frame = proto::json_frame(kind::REQUEST, request);
        let sent = self.requests.send(frame).await;
        sent.map_err(|_| not_running(io::ErrorKind::BrokenPipe.into()))
    }

    async fn until(&self, condition: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let waited = seen.wait_for(condition).await.map(|seen| seen.clone());
        // The task that drives the connection always says `gone` before it ends, unless the runtime is going down.
        waited.unwrap_or_else(|_| Seen {
            gone: true,
            ..self.seen.borrow().clone()
        })
    }
}

/// Owns the control connection: events in, requests out, until either end is gone.
async fn drive(
    mut stream: UnixStream,
    buffer: BytesMut,
    seen: watch::Sender<Seen>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    let (mut reader, mut writer) = stream.split();
    let mut frames = Frames::new(buffer);
    loop {
        tokio::select! {
            frame = frames.next(&mut reader) => match frame {
                Ok(Some((kind::EVENT, payload))) => match parse_event(&payload) {
                    Ok(event) => note(&seen, event),
                    Err(error) => tracing::warn!(error = %error.chain(), "unreadable event of a supervisor"),
                },
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "control connection of a supervisor");
                    break;
                }
            },
            request = queue.recv() => match request {
                // A failure to write shows as the end of the reading side, after the last events.
                Some(frame) => drop(writer.write_all(&frame).await),
                None => return,
            },
        }
    }
    seen.send_modify(|seen| seen.gone = true);
}

fn note(seen: &watch::Sender<Seen>, event: Event) {
    match event {
        Event::Started { pid, start_ticks } => {
            seen.send_modify(|seen| seen.started = Some(Started { pid, start_ticks }));
        }
        Event::Failed { code, message } => {
            seen.send_modify(|seen| seen.failed = Some(StartError { code, message }));
        }
        Event::Exited(exit) => seen.send_modify(|seen| seen.exit = Some(exit)),
        Event::State { exit, .. } => seen.send_modify(|seen| seen.exit = exit.or(seen.exit.take())),
        Event::Attached { .. } | Event::Names => {}
        Event::Refused { message } => tracing::warn!(message, "a supervisor refused a request"),
    }
}

/// A connection to a container's output and input.
#[derive(Debug)]
pub struct Stream {
    /// Everything that the process says after this moment comes here; what it said before is in the log. 0 when attached before the start.
    pub since_ns: i64,
    pub output: Output,
    pub input: Input,
}

impl Stream {
    fn new(stream: UnixStream, buffer: BytesMut) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            since_ns: 0,
            output: Output {
                reader,
                frames: Frames::new(buffer),
            },
            input: Input {
                writer,
                pending: BytesMut::new(),
            },
        }
    }
}

/// The reading half of a [`Stream`] or [`ExecSession`].
#[derive(Debug)]
pub struct Output {
    reader: OwnedReadHalf,
    frames: Frames,
}

/// What comes out of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Only of an exec, and last.
    Exited(Exit),
}

impl Output {
    /// The next piece of output; `None` when there will be no more. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<Out>> {
        loop {
            let frame = self.frames.next(&mut self.reader).await;
            return Ok(Some(match frame.context(|| "reading output".into())? {
                None => return Ok(None),
                Some((kind::STDOUT, bytes)) => Out::Stdout(bytes),
                Some((kind::STDERR, bytes)) => Out::Stderr(bytes),
                Some((kind::EVENT, payload)) => match parse_event(&payload)? {
                    Event::Exited(exit) => Out::Exited(exit),
                    Event::Refused { message } => return Err(Error::conflict(message)),
                    Event::State { .. }
                    | Event::Started { .. }
                    | Event::Failed { .. }
                    | Event::Attached { .. }
                    | Event::Names => continue,
                },
                // A newer supervisor may say more than we understand.
                Some(_) => continue,
            }));
        }
    }
}

/// The writing half of a [`Stream`] or [`ExecSession`]. Dropping it counts as closing.
#[derive(Debug)]
pub struct Input {
    writer: OwnedWriteHalf,
    /// Framed and not yet written: a cancelled write is finished by the next one.
    pending: BytesMut,
}

impl Input {
    /// Waits while the process does not read. Safe to cancel; the bytes are then written before those of the next call.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        self.flush().await?;
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(INPUT_CHUNK));
            self.frame(kind::STDIN, &chunk);
            self.flush().await?;
        }
        Ok(())
    }

    /// The end of the input.
    pub async fn close(mut self) -> Result<()> {
        self.end().await
    }

    /// The same while the connection stays, for a terminal's size and the output.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.frame(kind::STDIN, &[]);
        self.flush().await
    }

    /// New size of this session's terminal (an exec's own, else the container's).
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let request = proto::json_frame(kind::REQUEST, &Request::Resize { columns, rows });
        self.pending.put_slice(&request);
        self.flush().await
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        self.pending.put_slice(&proto::header(kind, payload.len()));
        self.pending.put_slice(payload);
    }

    async fn flush(&mut self) -> Result<()> {
        while self.pending.has_remaining() {
            let written = self.writer.write_buf(&mut self.pending).await;
            if written.context(|| "writing input".into())? == 0 {
                return Err(Error::internal("writing input"));
            }
        }
        Ok(())
    }
}

/// One exec'd process. If both halves are dropped it runs on, unheard.
#[derive(Debug)]
pub struct ExecSession {
    pub started: Started,
    pub output: Output,
    pub input: Input,
}

/// Takes frames off a stream, bounded by the limit of one frame.
#[derive(Debug)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    fn new(buffer: BytesMut) -> Self {
        Self { buffer }
    }

    /// Safe to cancel: bytes of a half frame stay in the buffer.
    async fn next(
        &mut self,
        reader: &mut (impl tokio::io::AsyncRead + Unpin),
    ) -> io::Result<Option<(u8, Bytes)>> {
        loop {
            match proto::parse_header(&self.buffer) {
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
                Ok(Some((kind, length))) if self.buffer.len() >= HEADER + length => {
                    self.buffer.advance(HEADER);
                    return Ok(Some((kind, self.buffer.split_to(length).freeze())));
                }
                Ok(Some((_, length))) => self.buffer.reserve(HEADER + length - self.buffer.len()),
                Ok(None) => self.buffer.reserve(4096),
            }
            match reader.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                // The kernel's word for a peer that closed with unread bytes of ours; what it wrote was read before.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }
}

fn parse_event(payload: &[u8]) -> Result<Event> {
    serde_json::from_slice(payload).context(|| "reading an event of a supervisor".into())
}

/// What a daemon that starts finds of a container that an earlier one started.
#[derive(Debug)]
pub enum Adopted {
    /// Its supervisor is alive and the container runs.
    Running(Handle, StateFile),
    /// It ended while nobody looked.
    Exited(Exit),
    /// It was started and supervisor and container are gone without a word: killed.
    Lost,
    /// No sign that it was ever started.
    Never,
}

/// Finds the supervisor whose files are in `run_dir`. Leaves no process behind in the case of [`Adopted::Lost`].
pub async fn adopt(run_dir: &Path) -> Result<Adopted> {
    let search = async {
        if read_exit(run_dir).is_none()
            && let Some(adopted) = reach(run_dir).await?
        {
            return Ok(adopted);
        }
        let Some(state) = read_json::<StateFile>(&run_dir.join("state.json")) else {
            return Ok(Adopted::Never);
        };
        // It may just be finishing: then it is waited for, so that whoever starts the container again does not meet its clean-up.
        if let Some(supervisor) = open_process(state.supervisor, state.supervisor_start_ticks) {
            ended(supervisor).await?;
        }
        if let Some(exit) = read_exit(run_dir) {
            return Ok(Adopted::Exited(exit));
        }
        // The container's first process dies with its supervisor unless it changed its identity; then it ends here.
        if let Some(init) = open_process(state.pid, state.start_ticks) {
            let _ = rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL);
            ended(init).await?;
        }
        Ok(Adopted::Lost)
    };
    tokio::time::timeout(ADOPT_TIMEOUT, search)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                format!("the supervisor of {} does not answer", run_dir.display()),
            ))
        })
}

/// Talks to the supervisor, if one listens.
async fn reach(run_dir: &Path) -> Result<Option<Adopted>> {
    let Ok(mut stream) = connect(run_dir).await else {
        return Ok(None);
    };
    let hello = Request::Hello {
        version: proto::VERSION,
    };
    if stream
        .write_all(&proto::json_frame(kind::REQUEST, &hello))
        .await
        .is_err()
    {
        return Ok(None);
    }
    let mut frames = Frames::new(BytesMut::new());
    let Ok(Some((kind::EVENT, payload))) = frames.next(&mut stream).await else {
        return Ok(None);
    };
    let Event::State { exit, .. } = parse_event(&payload)? else {
        return Err(Error::internal("a supervisor answered with nonsense"));
    };
    if let Some(exit) = exit {
        return Ok(Some(Adopted::Exited(exit)));
    }
    let Some(state) = read_json::<StateFile>(&run_dir.join("state.json")) else {
        return Ok(None);
    };
    let seen = Seen {
        started: Some(Started {
            pid: state.pid,
            start_ticks: state.start_ticks,
        }),
        ..Seen::default()
    };
    let handle = Handle::with_buffer(stream, frames.buffer, run_dir.to_owned(), seen);
    Ok(Some(Adopted::Running(handle, state)))
}

/// A descriptor of exactly that process, or nothing when the pid is free or somebody else's by now.
pub(crate) fn open_process(pid: i32, start_ticks: u64) -> Option<OwnedFd> {
    let id = rustix::process::Pid::from_raw(pid)?;
    let pidfd = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::NONBLOCK).ok()?;
    // After the open: the pid cannot be reused between the two looks without the times differing.
    (program::start_ticks(pid).ok()? == start_ticks).then_some(pidfd)
}

async fn ended(pidfd: OwnedFd) -> Result<()> {
    #[expect(
        deprecated,
        reason = "the descriptor is owned and stays open as long as the registration; the replacement is unsafe"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)
        .context(|| "watching a process".into())?;
    pidfd
        .readable()
        .await
        .context(|| "waiting for a process".into())
        .map(drop)
}

fn read_exit(run_dir: &Path) -> Option<Exit> {
    read_json(&run_dir.join("exit.json"))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Connects to `run_dir/sock` whatever the length of that path: a unix address holds 107 bytes.
async fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let path = run_dir.join("sock");
    if path.as_os_str().len() < 108 {
        return UnixStream::connect(path).await;
    }
    let dir = fs::File::open(run_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/sock", dir.as_raw_fd())).await
}

fn not_running(cause: io::Error) -> Error {
    Error::conflict("the container is not running").with_source(cause)
}

fn lost() -> Exit {
    Exit {
        code: 137,
        oom_killed: false,
        finished_at_ns: now_ns(),
        memory_peak: None,
        lost: true,
    }
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i64)
}
