//! The parent of one container. One thread, one loop that never blocks on anybody, small memory.
//!
//! ```text
//!            ┌ stdout, stderr ─> log file (json-file) and attached clients
//! container ─┤ stdin          <─ attached clients
//!            └ exit           ─> exit.json, then Exited on the control connections
//! execs: the same streams over one connection each          published ports: sockets held and forwarded
//! ```
//! Start with [`run`]; [`session`] is a process with its streams, [`connection`] a client, [`log`] the file, [`ports`] the forwarding.
//!
//! Invariants
//! * The container is started only while the daemon that asked for it lives, or its successor can find the socket: never unseen.
//! * `state.json` is there before anybody hears `Started`, `exit.json` before anybody hears `Exited`.
//! * The control connections close last: then no process, no cgroup, no port and no socket of the container is left. Output that slow
//!   clients have not taken yet is the only thing that outlives them.
//! * Without a daemon nothing differs.

mod connection;
mod files;
mod log;
mod poll;
mod ports;
mod resolver;
mod session;
mod time;

use crate::cgroup::Cgroup;
use crate::launch::{ExecTarget, Launch, LaunchError, Options, Stdio, exec, launch};
use crate::proto::{self, Event, Exit, Request, Spawn, StateFile, Stdin, Streams, kind};
use crate::seccomp::Filter;
use connection::{Connection, QUEUE_LIMIT, Role};
use gantry_linux::program::{self, Title};
use gantry_oci::runtime::{NamespaceKind, Process};
use log::{Logger, Stream};
use poll::{Key, Kind, Poll, Ready, Table};
use ports::Ports;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use session::{Read, Session};
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

const CONTROLS: usize = 16;
const STREAMS: usize = 256;
/// Execs that run at a time.
const EXECS: usize = 256;
/// Bytes read at once.
const SCRATCH: usize = 256 << 10;
/// Reads of one output after its process ended: more than the largest pipe holds.
const LAST_READS: usize = 64;
/// How long the loop must be quiet before buffers are given back.
const QUIET: Duration = Duration::from_secs(1);
/// How long output may still come after the container's first process ended, when others that share its streams live on.
const GRACE: Duration = Duration::from_secs(2);
/// The same for an exec, whose background children may keep its streams for ever.
const EXEC_GRACE: Duration = Duration::from_millis(500);
/// How long accepting rests when there are no descriptors left.
const REST: Duration = Duration::from_millis(200);
/// How long slow clients may take for the last output, and execs outside of the container's PID namespace to die.
const LINGER: Duration = Duration::from_secs(600);

/// Runs the supervisor of one container from start to end. `descriptors` are those of [`Spawn`], in its order.
pub fn run(message: Vec<u8>, descriptors: Vec<OwnedFd>, title: Option<Title>) {
    let mut descriptors = descriptors.into_iter();
    let Some(control) = descriptors.next() else {
        return;
    };
    // Handlers, not SIG_IGN: what is exec'd later must not inherit it.
    program::swallow_signals(&SIGNALS);
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"gantry-supervis");
    let mut control = Connection::new(control, Role::Control);
    match Supervisor::start(&message, descriptors.collect(), &mut control) {
        Err(error) => control.send_event(&Event::Failed {
            code: error.code,
            message: error.message,
        }),
        Ok((mut supervisor, id, attached)) => {
            drop(message);
            if let Some(title) = title {
                let _ = title.set(&["gantry-runtime", "supervisor", &id]);
            }
            supervisor.adopt_connections(control, attached);
            supervisor.serve();
        }
    }
}

/// HUP, INT, QUIT, USR1, USR2, PIPE, ALRM, TERM: nobody ends a supervisor by accident.
const SIGNALS: [i32; 8] = [1, 2, 3, 10, 12, 13, 14, 15];

struct Supervisor {
    poll: Poll,
    run_dir: PathBuf,
    listener: Option<OwnedFd>,
    /// When to accept again after descriptors ran out.
    accept_at: Option<Instant>,
    connections: Table<Connection>,
    sessions: Table<Session>,
    /// The container's first process among the sessions.
    container: Key,
    stdin: Stdin,
    /// Its processes die with its first one.
    private_pids: bool,
    pid: i32,
    cgroup: Cgroup,
    /// Holds the container's mounts until its exit was reported.
    mounts: Option<OwnedFd>,
    logger: Option<Logger>,
    ports: Ports,
    /// Where the container asks for names; only held.
    names: Option<resolver::Sockets>,
    scratch: Vec<u8>,
    /// Buffers are held.
    busy: bool,
    /// Sessions whose process has ended, and until when their output is waited for.
    draining: Vec<(Key, Instant)>,
    finished_at: Option<SystemTime>,
    /// All is done but last output to slow clients.
    lingering: Option<Instant>,
}

impl Supervisor {
    /// Makes and starts the container. Whatever fails leaves nothing behind.
    fn start(
        message: &[u8],
        descriptors: Vec<OwnedFd>,
        control: &mut Connection,
    ) -> Result<(Self, String, Vec<Connection>), LaunchError> {
        let spawn: Spawn = serde_json::from_slice(message)
            .map_err(|e| failure(format!("reading the message to the supervisor: {e}")))?;
        if descriptors.len() != spawn.ports.len() + spawn.attach.len() {
            return Err(failure("descriptors and message do not match".into()));
        }
        let mut sockets = descriptors;
        let attached = sockets.split_off(spawn.ports.len());
        let listener =
            files::listen(&spawn.run_dir).map_err(while_doing("listening for the daemon"))?;
        let started = Self::start_listening(&spawn, sockets, listener, control);
        if started.is_err() {
            let _ = std::fs::remove_file(spawn.run_dir.join("sock"));
        }
        let (supervisor, key) = started?;
        let attach = |(socket, &streams)| {
            let session = key;
            Connection::new(socket, Role::Stream { session, streams })
        };
        let attached = attached
            .into_iter()
            .zip(&spawn.attach)
            .map(attach)
            .collect();
        Ok((supervisor, spawn.id, attached))
    }

    fn start_listening(
        spawn: &Spawn,
        sockets: Vec<OwnedFd>,
        listener: OwnedFd,
        control: &mut Connection,
    ) -> Result<(Self, Key), LaunchError> {
        let logger = spawn.log.as_ref().map(Logger::open).transpose();
        let logger = logger.map_err(while_doing("failed to initialize logging driver"))?;
        let poll = Poll::new().map_err(|e| while_doing("making the event loop")(e.into()))?;
        let ports = Ports::open(&poll, &spawn.ports, sockets);
        let ports = ports.map_err(while_doing("taking over published ports"))?;
        let filter = parse_filter(spawn.filter.as_deref())?;
        let terminal = spawn.spec.process.as_ref().is_some_and(|p| p.terminal);
        let (stdio, pipes) = stdio(terminal, spawn.stdin != Stdin::Closed, spawn.console_size)?;
        let names = RefCell::new(None);
        let open_names = |pid| {
            *names.borrow_mut() = Some(resolver::open(pid)?);
            Ok(())
        };
        let mut launched = launch(Launch {
            id: &spawn.id,
            spec: &spawn.spec,
            rootfs: &spawn.rootfs,
            bundle: None,
            stdio,
            filter: filter.as_ref(),
            links: &spawn.links,
            meanwhile: spawn.names.then_some(&open_names),
            options: OPTIONS,
        })?;
        let undo = |cgroup: &Cgroup| {
            let _ = cgroup.kill_all();
            let _ = cgroup.remove();
        };
        if control.peer_is_gone() {
            // The daemon died meanwhile and has not recorded a start; its successor must not find one that it does not know.
            let cgroup = launched.cgroup.clone();
            drop(launched);
            undo(&cgroup);
            return Err(failure("the daemon is gone".into()));
        }
        launched.start()?;
        let started_at = SystemTime::now();
        let state = StateFile {
            version: proto::VERSION,
            id: spawn.id.clone(),
            supervisor: own_pid(),
            supervisor_start_ticks: program::start_ticks(own_pid()).unwrap_or(0),
            pid: launched.pid,
            start_ticks: launched.start_ticks,
            started_at_ns: time::nanoseconds(started_at),
        };
        if let Err(error) = files::write_json(&spawn.run_dir, "state.json", &state) {
            undo(&launched.cgroup);
            return Err(while_doing("writing the container's state")(error));
        }
        control.send_event(&Event::Started {
            pid: state.pid,
            start_ticks: state.start_ticks,
        });
        let session = match (launched.console, pipes) {
            (Some(master), _) => Session::with_terminal(state.pid, launched.pidfd, master),
            (None, Some(pipes)) => Session::with_pipes(state.pid, launched.pidfd, pipes),
            (None, None) => Session::without_streams(state.pid, launched.pidfd),
        };
        let mut sessions = Table::default();
        let container = sessions.insert(session);
        let linux = spawn.spec.linux.as_ref();
        let pids = linux.and_then(|linux| linux.namespace(NamespaceKind::Pid));
        let supervisor = Self {
            poll,
            run_dir: spawn.run_dir.clone(),
            listener: Some(listener),
            accept_at: None,
            connections: Table::default(),
            sessions,
            container,
            stdin: spawn.stdin,
            private_pids: pids.is_some_and(|namespace| namespace.path.is_empty()),
            pid: state.pid,
            cgroup: launched.cgroup,
            mounts: launched.mounts,
            logger,
            ports,
            names: names.into_inner(),
            scratch: Vec::new(),
            busy: true,
            draining: Vec::new(),
            finished_at: None,
            lingering: None,
        };
        Ok((supervisor, container))
    }

    fn adopt_connections(&mut self, control: Connection, attached: Vec<Connection>) {
        self.add_connection(control);
        for connection in attached {
            let key = self.add_connection(connection);
            if let Some(session) = self.container() {
                session.clients.push(key);
            }
        }
        let (container, poll) = (self.container, &self.poll);
        if let Some(session) = self.sessions.get_mut(container) {
            // Fails only without memory for a few bytes; then the exit would be missed, and dying takes the container along.
            session
                .watch(poll, container)
                .expect("watching the container");
        }
        if let Some(listener) = &self.listener {
            let _ = poll.add(listener, Kind::Listener, Key::default(), EventFlags::IN);
        }
    }

    fn serve(&mut self) {
        let mut ready = Vec::new();
        while !self.is_finished() {
            let timeout = self.timeout(Instant::now());
            if self.poll.wait(timeout, &mut ready).is_err() {
                return;
            }
            if ready.is_empty() && self.busy {
                self.relax();
            }
            let now = Instant::now();
            for &event in &ready {
                self.dispatch(event, now);
            }
            self.tick(now);
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let deadlines = self.draining.iter().map(|&(_, deadline)| deadline);
        let deadlines = deadlines
            .chain(self.ports.deadline)
            .chain(self.lingering)
            .chain(self.accept_at);
        let next = deadlines.min().map(|at| at.saturating_duration_since(now));
        let quiet = self.busy.then_some(QUIET);
        next.into_iter().chain(quiet).min()
    }

    /// Nothing has happened for a while: holds as little memory as possible until something does.
    fn relax(&mut self) {
        self.busy = false;
        self.scratch = Vec::new();
        if let Some(logger) = &mut self.logger {
            logger.relax();
        }
        program::trim_heap();
    }

    fn dispatch(&mut self, ready: Ready, now: Instant) {
        if self.scratch.is_empty() {
            self.scratch = vec![0; SCRATCH];
        }
        self.busy = true;
        let Ready { kind, key, flags } = ready;
        match kind {
            Kind::Listener => self.accept(),
            Kind::Connection => self.connection_ready(key, flags),
            Kind::Process => self.process_ended(key, now),
            Kind::Stdin => self.input_ready(key),
            Kind::Stdout | Kind::Stderr => {
                if flags.contains(EventFlags::OUT) {
                    self.input_ready(key);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    let stream = match kind {
                        Kind::Stderr => Stream::Stderr,
                        _ => Stream::Stdout,
                    };
                    self.pump(key, stream);
                }
            }
            Kind::Port | Kind::Client | Kind::Target | Kind::Flow => {
                self.ports.handle(&self.poll, ready, &mut self.scratch, now);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.ports.tick(&self.poll, now);
        if self.accept_at.is_some_and(|at| now >= at) {
            self.accept_at = None;
            self.watch_listener(EventFlags::IN);
        }
        for (key, deadline) in std::mem::take(&mut self.draining) {
            let ended = self.sessions.get(key).is_none_or(|s| !s.has_output());
            if ended || now >= deadline {
                self.session_done(key);
            } else {
                self.draining.push((key, deadline));
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.lingering.is_some_and(|deadline| {
            let idle = self.connections.len() == 0 && self.sessions.len() == 0;
            idle || Instant::now() >= deadline
        })
    }

    /// The container's first process, until it is done with.
    fn container(&mut self) -> Option<&mut Session> {
        self.sessions.get_mut(self.container)
    }
}

/// Output.
impl Supervisor {
    /// Reads an output once and hands it on. What the read gave, or `Empty` when clients must catch up first.
    fn pump(&mut self, key: Key, stream: Stream) -> Read {
        let Some(session) = self.sessions.get_mut(key) else {
            return Read::End;
        };
        let read = session.read(&self.poll, stream, &mut self.scratch);
        let Read::Bytes(length) = read else {
            return read;
        };
        let bytes = &self.scratch[..length];
        if key == self.container
            && let Some(logger) = &mut self.logger
        {
            logger.append(stream, bytes, SystemTime::now());
        }
        let mut behind = false;
        for index in 0..session.clients.len() {
            let Some(client) = self.connections.get_mut(session.clients[index]) else {
                continue;
            };
            if client.wants(stream) {
                let kind = match stream {
                    Stream::Stdout => kind::STDOUT,
                    Stream::Stderr => kind::STDERR,
                };
                client.send(kind, bytes);
                client.watch(&self.poll, session.clients[index]);
                behind |= client.queued() > QUEUE_LIMIT;
            }
        }
        if behind {
            session.pause(&self.poll, key, stream, true);
        }
        read
    }

    /// Reads outputs again whose clients have caught up or are gone.
    fn resume_output(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        for stream in [Stream::Stdout, Stream::Stderr] {
            let waits = session.clients.iter().any(|&client| {
                let client = self.connections.get(client);
                client.is_some_and(|c| c.wants(stream) && c.queued() > QUEUE_LIMIT / 2)
            });
            if !waits {
                session.pause(&self.poll, key, stream, false);
            }
        }
    }
}

/// Ends.
impl Supervisor {
    fn process_ended(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        if session.reap(&self.poll).is_none() {
            return;
        }
        let is_container = key == self.container;
        let terminal = session.terminal;
        if is_container {
            self.finished_at = Some(SystemTime::now());
            if !self.private_pids {
                // Nobody else ends what the first process left behind.
                let _ = self.cgroup.kill_all();
            }
        }
        // What is in the pipes now is taken whether clients are slow or not: it is bounded.
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..LAST_READS {
                if !matches!(self.pump(key, stream), Read::Bytes(_)) {
                    break;
                }
            }
        }
        let more = self.sessions.get(key).is_some_and(Session::has_output);
        let alone = terminal || (is_container && self.private_pids);
        if more && !alone {
            let grace = if is_container { GRACE } else { EXEC_GRACE };
            self.draining.push((key, now + grace));
        } else {
            self.session_done(key);
        }
    }

    fn session_done(&mut self, key: Key) {
        if key == self.container {
            self.container_done();
        } else if let Some(mut session) = self.sessions.remove(key) {
            session.close_outputs(&self.poll);
            let exit = Exit {
                code: session.status.unwrap_or(255),
                oom_killed: false,
                finished_at_ns: time::nanoseconds(SystemTime::now()),
                memory_peak: None,
                lost: false,
            };
            for client in session.clients {
                if let Some(connection) = self.connections.get_mut(client) {
                    connection.send_event(&Event::Exited(exit.clone()));
                    connection.closing = true;
                }
                self.settle(client);
            }
        }
    }

    /// The container is over: record, tell, clean up.
    fn container_done(&mut self) {
        let container = self.container;
        let Some(mut session) = self.sessions.remove(container) else {
            return;
        };
        session.close_outputs(&self.poll);
        if let Some(mut logger) = self.logger.take() {
            logger.finish(SystemTime::now());
        }
        self.ports = Ports::default();
        self.names = None;
        let exit = Exit {
            code: session.status.unwrap_or(255),
            oom_killed: self.cgroup.oom_kills() > 0,
            finished_at_ns: time::nanoseconds(self.finished_at.unwrap_or_else(SystemTime::now)),
            memory_peak: self.cgroup.memory_peak(),
            lost: false,
        };
        let _ = files::write_json(&self.run_dir, "exit.json", &exit);
        for key in self.connections.keys() {
            if let Some(connection) = self.connections.get_mut(key)
                && matches!(connection.role, Role::Control)
            {
                connection.send_event(&Event::Exited(exit.clone()));
            }
        }
        for client in session.clients {
            if let Some(connection) = self.connections.get_mut(client) {
                connection.closing = true;
            }
            self.settle(client);
        }
        self.clean_up();
    }

    fn clean_up(&mut self) {
        for (_, exec) in self.sessions.iter() {
            let _ = exec.signal(SIGKILL);
        }
        let _ = self.cgroup.kill_all();
        self.mounts = None;
        let _ = self.cgroup.remove();
        if let Some(listener) = self.listener.take() {
            self.poll.remove(listener);
        }
        let _ = std::fs::remove_file(self.run_dir.join("sock"));
        for key in self.connections.keys() {
            if let Some(connection) = self.connections.get_mut(key)
                && matches!(connection.role, Role::New | Role::Control)
            {
                connection.closing = true;
                self.settle(key);
            }
        }
        self.lingering = Some(Instant::now() + LINGER);
    }
}

/// Clients.
impl Supervisor {
    fn add_connection(&mut self, connection: Connection) -> Key {
        let key = self.connections.insert(connection);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.watch(&self.poll, key);
        }
        key
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener, flags) {
            Ok(socket) => {
                // Somebody who never said a word makes room, else the new one is turned away.
                if self.connections.len() < CONTROLS + STREAMS || self.drop_silent() {
                    self.add_connection(Connection::new(socket, Role::New));
                }
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                if !self.drop_silent() {
                    // Without a descriptor for it the connection would wake us for ever.
                    self.watch_listener(EventFlags::empty());
                    self.accept_at = Some(Instant::now() + REST);
                }
            }
            Err(_) => {}
        }
    }

    fn watch_listener(&self, flags: EventFlags) {
        if let Some(listener) = &self.listener {
            let _ = self
                .poll
                .modify(listener, Kind::Listener, Key::default(), flags);
        }
    }

    fn drop_silent(&mut self) -> bool {
        let silent = |(_, c): &(Key, &Connection)| matches!(c.role, Role::New);
        let silent = self.connections.iter().find(silent).map(|(key, _)| key);
        if let Some(key) = silent {
            self.drop_connection(key);
        }
        silent.is_some()
    }

    fn connection_ready(&mut self, key: Key, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if flags.contains(EventFlags::OUT) {
            connection.flush();
        }
        connection.receive(&mut self.scratch);
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) && !connection.is_reading() {
            connection.peer_closed();
        }
        self.take_frames(key);
        self.settle(key);
    }

    /// Acts on every complete frame that has arrived.
    fn take_frames(&mut self, key: Key) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else {
                return;
            };
            if connection.paused || connection.closing {
                return;
            }
            match connection.next_frame() {
                Ok(Some((kind, range))) => self.frame(key, kind, range),
                Ok(None) => break,
                Err(proto::BadFrame) => {
                    connection.hang_up();
                    break;
                }
            }
        }
        let ended = self.connections.get(key).filter(|c| !c.is_reading());
        if let Some(&Role::Stream { session, streams }) = ended.map(|c| &c.role)
            && streams.stdin
        {
            self.end_input(session);
        }
    }

    fn frame(&mut self, key: Key, kind: u8, range: Range<usize>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if kind == kind::STDIN {
            if let Role::Stream { session, streams } = connection.role
                && streams.stdin
            {
                self.input(key, session, range);
            }
            return;
        }
        let request = match kind {
            kind::REQUEST => serde_json::from_slice(connection.payload(range)).ok(),
            _ => None,
        };
        let role = connection.role;
        let refusal = match (role, request) {
            (Role::New, Some(Request::Hello { .. })) => self.hello(key),
            (Role::New, Some(Request::Names)) => self.names(key),
            (Role::New, Some(Request::Attach(streams))) => self.attach(key, streams),
            (
                Role::New,
                Some(Request::Exec {
                    process,
                    filter,
                    streams,
                    console_size,
                }),
            ) => self.exec(key, &process, filter.as_deref(), streams, console_size),
            (Role::Stream { session, .. }, Some(Request::Resize { columns, rows })) => {
                self.resize(session, columns, rows)
            }
            (Role::Control, Some(request)) => self.control(request),
            _ => Err("unknown request".into()),
        };
        if let (Err(message), Some(connection)) = (refusal, self.connections.get_mut(key)) {
            connection.send_event(&Event::Refused { message });
            // A control connection goes on; anybody else has nothing more to say.
            connection.closing |= matches!(connection.role, Role::New);
            if connection.queued() > QUEUE_LIMIT {
                connection.hang_up();
            }
        }
    }

    fn hello(&mut self, key: Key) -> Result<(), String> {
        let is_control = |(_, c): &(Key, &Connection)| matches!(c.role, Role::Control);
        if self.connections.iter().filter(is_control).count() >= CONTROLS {
            return Err("too many control connections".into());
        }
        let state = Event::State {
            version: proto::VERSION,
            supervisor: own_pid(),
            pid: Some(self.pid),
            exit: None,
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.role = Role::Control;
            connection.send_event(&state);
        }
        Ok(())
    }

    /// Hands out the sockets for names. Descriptors go with the first byte of a connection or not at all.
    fn names(&mut self, key: Key) -> Result<(), String> {
        if self.names.is_none() {
            let made = resolver::open(self.pid);
            self.names = Some(made.map_err(|e| format!("making the sockets for names: {e}"))?);
        }
        if let (Some(connection), Some(sockets)) = (self.connections.get_mut(key), &self.names) {
            connection.send_with(&Event::Names, sockets.each_ref().map(AsFd::as_fd));
            connection.closing = true;
        }
        Ok(())
    }

    fn control(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Signal { number } => {
                // Gone already is what the sender wanted.
                let _ = self.container().map(|session| session.signal(number));
                Ok(())
            }
            Request::Resize { columns, rows } => self.resize(self.container, columns, rows),
            Request::SetLog {
                max_size,
                max_files,
            } => {
                if let Some(logger) = &mut self.logger {
                    logger.set_limits(max_size, max_files);
                }
                Ok(())
            }
            Request::Hello { .. } | Request::Names | Request::Attach(_) | Request::Exec { .. } => {
                Err("this needs a connection of its own".into())
            }
        }
    }

    fn resize(&mut self, session: Key, columns: u16, rows: u16) -> Result<(), String> {
        if let Some(session) = self.sessions.get(session) {
            session.resize(columns, rows);
        }
        Ok(())
    }

    fn attach(&mut self, key: Key, streams: Streams) -> Result<(), String> {
        self.check_streams()?;
        let session = self.container;
        if let (Some(connection), Some(process)) = (
            self.connections.get_mut(key),
            self.sessions.get_mut(session),
        ) {
            connection.role = Role::Stream { session, streams };
            process.clients.push(key);
            let since_ns = time::nanoseconds(SystemTime::now());
            connection.send_event(&Event::Attached { since_ns });
        }
        Ok(())
    }

    fn exec(
        &mut self,
        key: Key,
        process: &Process,
        filter: Option<&str>,
        streams: Streams,
        console_size: Option<(u16, u16)>,
    ) -> Result<(), String> {
        self.check_streams()?;
        if self.sessions.len() > EXECS {
            return Err("too many processes were exec'd at a time".into());
        }
        let outcome = self.exec_session(process, filter, streams, console_size);
        let Some(connection) = self.connections.get_mut(key) else {
            return Ok(());
        };
        match outcome {
            Err(LaunchError { code, message }) => {
                connection.send_event(&Event::Failed { code, message });
                connection.closing = true;
            }
            Ok(mut process) => {
                connection.send_event(&Event::Started {
                    pid: process.pid,
                    start_ticks: program::start_ticks(process.pid).unwrap_or(0),
                });
                process.clients.push(key);
                let session = self.sessions.insert(process);
                connection.role = Role::Stream { session, streams };
                let process = self.sessions.get_mut(session).expect("just inserted");
                if process.watch(&self.poll, session).is_err() {
                    let _ = process.signal(SIGKILL);
                    connection.hang_up();
                }
            }
        }
        Ok(())
    }

    fn exec_session(
        &self,
        process: &Process,
        filter: Option<&str>,
        streams: Streams,
        console_size: Option<(u16, u16)>,
    ) -> Result<Session, LaunchError> {
        let filter = parse_filter(filter)?;
        let (stdio, pipes) = stdio(process.terminal, streams.stdin, console_size)?;
        let target = ExecTarget {
            pid: self.pid,
            cgroup: &self.cgroup,
            sub_cgroups: &[],
            notify: None,
        };
        let launched = exec(&target, process, stdio, filter.as_ref(), OPTIONS)?;
        Ok(match (launched.console, pipes) {
            (Some(master), _) => Session::with_terminal(launched.pid, launched.pidfd, master),
            (None, Some(pipes)) => Session::with_pipes(launched.pid, launched.pidfd, pipes),
            (None, None) => Session::without_streams(launched.pid, launched.pidfd),
        })
    }

    fn check_streams(&self) -> Result<(), String> {
        let is_stream = |(_, c): &(Key, &Connection)| matches!(c.role, Role::Stream { .. });
        if self.connections.iter().filter(is_stream).count() >= STREAMS {
            return Err("too many clients are attached".into());
        }
        Ok(())
    }

    fn input(&mut self, key: Key, session: Key, range: Range<usize>) {
        if range.is_empty() {
            return self.end_input(session);
        }
        if let (Some(connection), Some(process)) = (
            self.connections.get_mut(key),
            self.sessions.get_mut(session),
        ) {
            process.write(&self.poll, session, connection.payload(range));
            connection.paused = process.input_full();
        }
    }

    /// A client's input is over: so is the process's, unless it is one of many's.
    fn end_input(&mut self, session: Key) {
        let shared = session == self.container && self.stdin != Stdin::Once;
        if let (false, Some(process)) = (shared, self.sessions.get_mut(session)) {
            process.end_input(&self.poll, session);
        }
    }

    /// The process takes input again.
    fn input_ready(&mut self, session: Key) {
        let Some(process) = self.sessions.get_mut(session) else {
            return;
        };
        process.flush(&self.poll, session);
        for client in process.clients.clone() {
            let full = self.sessions.get(session).is_some_and(Session::input_full);
            match self.connections.get_mut(client) {
                Some(connection) if connection.paused && !full => connection.paused = false,
                _ => continue,
            }
            self.take_frames(client);
            self.settle(client);
        }
    }

    /// After anything happened on a connection: what to wait for next, or its end.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.is_over() {
            return self.drop_connection(key);
        }
        connection.watch(&self.poll, key);
        if let Role::Stream { session, .. } = connection.role
            && connection.queued() <= QUEUE_LIMIT / 2
        {
            self.resume_output(session);
        }
    }

    fn drop_connection(&mut self, key: Key) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        connection.unwatch(&self.poll);
        if let Role::Stream { session, streams } = connection.role {
            if let Some(process) = self.sessions.get_mut(session) {
                process.clients.retain(|&client| client != key);
            }
            self.resume_output(session);
            if streams.stdin {
                self.end_input(session);
            }
        }
    }
}

/// What every container and exec of a supervisor has in common.
const OPTIONS: Options<'static> = Options {
    die_with_parent: true,
    hold_mounts: true,
    no_pivot: false,
    no_new_keyring: false,
    preserve_fds: 0,
    cgroup: None,
    exec_fifo: None,
    ignore_frozen: false,
};

const SIGKILL: i32 = 9;

/// The streams for a new process and our ends of them; a terminal's end comes from the launch.
fn stdio(
    terminal: bool,
    stdin: bool,
    size: Option<(u16, u16)>,
) -> Result<(Stdio, Option<session::Pipes>), LaunchError> {
    if terminal {
        return Ok((Stdio::Terminal { size }, None));
    }
    let made = session::pipes(stdin).map_err(while_doing("making standard streams"))?;
    let (ours, [stdin, stdout, stderr]) = made;
    let theirs = Stdio::Pipes {
        stdin,
        stdout,
        stderr,
    };
    Ok((theirs, Some(ours)))
}

fn parse_filter(filter: Option<&str>) -> Result<Option<Filter>, LaunchError> {
    let parse =
        |text| proto::decode_filter(text).ok_or_else(|| failure("a broken seccomp filter".into()));
    filter.map(parse).transpose()
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn failure(message: String) -> LaunchError {
    LaunchError { code: 128, message }
}

fn while_doing(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |error| failure(format!("{what}: {error}"))
}
