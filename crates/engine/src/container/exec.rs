//! `docker exec`: further processes in a running container. Kept in memory only, dropped with the container.

use super::attach::{Attached, Input, Stream};
use super::{State, spec, table::Slot};
use crate::{Engine, supervisor};
use gantry_base::{Error, Result};
use gantry_docker_api::create::ExecConfig;
use gantry_runtime::proto::Streams;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Execs that one container remembers; the oldest finished ones are forgotten first.
const EXECS_LIMIT: usize = 1024;
const OUTPUT_QUEUE: usize = 16;

/// How an exec is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecStart {
    pub detach: bool,
    pub tty: bool,
    /// Columns and rows.
    pub console_size: Option<(u16, u16)>,
}

/// What `exec inspect` shows.
#[derive(Debug, Clone)]
pub struct Exec {
    pub id: String,
    pub container_id: String,
    pub running: bool,
    /// `None` before it ended.
    pub exit_code: Option<i32>,
    /// 0 before it started.
    pub pid: i32,
    pub config: ExecConfig,
}

/// One exec in memory.
pub(crate) struct ExecSlot {
    exec: Mutex<Inner>,
}

struct Inner {
    exec: Exec,
    started: bool,
    connection: Option<Arc<tokio::sync::Mutex<supervisor::Input>>>,
    created_at_ns: i64,
}

impl ExecSlot {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.exec.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    pub async fn exec_create(&self, r: &str, config: ExecConfig) -> Result<String> {
        let slot = self.0.containers.find(r)?;
        let record = slot.record();
        must_run(r, &record.state)?;
        if config
            .cmd
            .as_ref()
            .is_none_or(|words| words.is_empty() || words[0].is_empty())
        {
            return Err(Error::invalid("No exec command specified"));
        }
        if config
            .cmd
            .iter()
            .flatten()
            .chain(config.env.iter().flatten())
            .any(|word| word.contains('\0'))
        {
            return Err(Error::invalid(
                "invalid exec command: an argument contains a zero byte",
            ));
        }
        if config
            .env
            .iter()
            .flatten()
            .any(|entry| entry.is_empty() || entry.starts_with('='))
        {
            return Err(Error::invalid("invalid environment variable: "));
        }
        if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
            return Err(Error::invalid(format!(
                "Cwd must be an absolute path: {}",
                config.working_dir
            )));
        }
        let id = crate::random_id();
        let words = config.cmd.as_deref().unwrap_or_default().join(" ");
        let exec = Exec {
            id: id.clone(),
            container_id: record.id.clone(),
            running: false,
            exit_code: None,
            pid: 0,
            config,
        };
        let inner = Inner {
            exec,
            started: false,
            connection: None,
            created_at_ns: crate::events::now_ns(),
        };
        let exec = Arc::new(ExecSlot {
            exec: Mutex::new(inner),
        });
        {
            let mut live = slot.live();
            make_room(&mut live.execs)?;
            live.execs.insert(id.clone(), exec);
        }
        self.0
            .execs
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), Arc::downgrade(&slot));
        self.say(
            &record,
            format!("exec_create: {words}"),
            &[("execID", id.clone())],
        );
        Ok(id)
    }

    /// `None` when detached.
    pub async fn exec_start(&self, id: &str, how: ExecStart) -> Result<Option<Attached>> {
        let (slot, exec) = self.find_exec(id)?;
        let (engine, how) = (self.clone(), how);
        Self::whole(async move { engine.exec_start_whole(&slot, exec, how).await }).await
    }

    async fn exec_start_whole(
        &self,
        slot: &Arc<Slot>,
        exec: Arc<ExecSlot>,
        how: ExecStart,
    ) -> Result<Option<Attached>> {
        let record = slot.record();
        must_run(&record.id, &record.state)?;
        let handle = slot.live().handle.clone();
        let handle = handle.ok_or_else(|| not_running(&record.id))?;
        let (id, config) = {
            let mut inner = exec.inner();
            let id = inner.exec.id.clone();
            if inner.exec.exit_code.is_some() {
                return Err(Error::conflict(format!(
                    "exec command {id} has already run"
                )));
            }
            if std::mem::replace(&mut inner.started, true) {
                return Err(Error::conflict(format!(
                    "exec command {id} is already running"
                )));
            }
            (id, inner.exec.config.clone())
        };
        let outcome = self.exec_process(&record, &config, &handle, how).await;
        let session = match outcome {
            Ok(session) => session,
            Err((code, error)) => {
                let mut inner = exec.inner();
                inner.exec.exit_code = Some(code);
                return Err(error);
            }
        };
        let input = Arc::new(tokio::sync::Mutex::new(session.input));
        {
            let mut inner = exec.inner();
            inner.exec.running = true;
            inner.exec.pid = session.started.pid;
            inner.connection = Some(input.clone());
        }
        let words = config.cmd.as_deref().unwrap_or_default().join(" ");
        self.say(&record, format!("exec_start: {words}"), &[("execID", id)]);
        let (sender, output) = mpsc::channel(OUTPUT_QUEUE);
        let listener = (!how.detach).then_some(sender);
        tokio::spawn(follow(
            self.clone(),
            slot.clone(),
            exec,
            session.output,
            listener,
        ));
        if how.detach {
            return Ok(None);
        }
        Ok(Some(Attached {
            tty: config.tty,
            output,
            input: config.attach_stdin.then(|| Input::new(input)),
        }))
    }

    /// Starts the process; on failure its exit code and the error for the client.
    async fn exec_process(
        &self,
        record: &super::Record,
        config: &ExecConfig,
        handle: &supervisor::Handle,
        how: ExecStart,
    ) -> Result<supervisor::ExecSession, (i32, Error)> {
        let (process, filter) =
            spec::exec(record, config, &self.0.facts, &self.0.filters).map_err(|e| (126, e))?;
        let streams = Streams {
            stdin: config.attach_stdin && !how.detach,
            stdout: (config.attach_stdout || config.tty) && !how.detach,
            stderr: config.attach_stderr && !config.tty && !how.detach,
        };
        let size = how
            .console_size
            .or(config.console_size.map(|(rows, columns)| (columns, rows)));
        match handle.exec(process, filter, streams, size).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(failure)) => {
                // Docker answers a program that is missing or not executable as a wrong request.
                let error = match failure.code {
                    126 | 127 => Error::invalid(failure.message),
                    _ => Error::internal(failure.message),
                };
                Err((failure.code, error))
            }
            Err(_) if slot_is_down(&self.0.containers, &record.id) => {
                Err((137, not_running(&record.id)))
            }
            Err(error) => Err((126, error)),
        }
    }

    /// `ExecIDs` of inspect: those that have not ended, oldest first.
    pub fn exec_ids(&self, r: &str) -> Result<Vec<String>> {
        let slot = self.0.containers.find(r)?;
        let live = slot.live();
        let mut open: Vec<(i64, String)> = live
            .execs
            .iter()
            .filter_map(|(id, exec)| {
                let inner = exec.inner();
                inner
                    .exec
                    .exit_code
                    .is_none()
                    .then(|| (inner.created_at_ns, id.clone()))
            })
            .collect();
        open.sort();
        Ok(open.into_iter().map(|(_, id)| id).collect())
    }

    pub fn exec_get(&self, id: &str) -> Result<Exec> {
        let (_, exec) = self.find_exec(id)?;
        let exec = exec.inner().exec.clone();
        Ok(exec)
    }

    pub async fn exec_resize(&self, id: &str, columns: u16, rows: u16) -> Result<()> {
        let (_, exec) = self.find_exec(id)?;
        let connection = exec.inner().connection.clone();
        let Some(connection) = connection else {
            return Err(Error::conflict(format!("exec {id} is not running")));
        };
        connection.lock().await.resize(columns, rows).await
    }

    /// Runs a command of our own in a container and collects what it says, at most `limit` bytes; used by the health checks.
    /// `None`: it did not end in time and was killed.
    pub(crate) async fn exec_collect(
        &self,
        slot: &Arc<Slot>,
        config: ExecConfig,
        limit: usize,
        timeout: std::time::Duration,
    ) -> Result<Option<(i32, Vec<u8>)>> {
        let record = slot.record();
        let handle = slot
            .live()
            .handle
            .clone()
            .ok_or_else(|| not_running(&record.id))?;
        let how = ExecStart::default();
        let session = self
            .exec_process(&record, &config, &handle, how)
            .await
            .map_err(|(_, e)| e)?;
        let supervisor::ExecSession {
            started,
            mut output,
            input: _input,
        } = session;
        let read = async {
            let mut text = Vec::new();
            while let Some(piece) = output.next().await? {
                match piece {
                    supervisor::Out::Stdout(bytes) | supervisor::Out::Stderr(bytes) => {
                        let room = limit.saturating_sub(text.len());
                        text.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    }
                    supervisor::Out::Exited(exit) => return Ok(Some((exit.code, text))),
                }
            }
            Err(Error::internal("the command's end was not reported"))
        };
        match tokio::time::timeout(timeout, read).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(process) = supervisor::open_process(started.pid, started.start_ticks) {
                    let _ =
                        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
                }
                Ok(None)
            }
        }
    }

    fn find_exec(&self, id: &str) -> Result<(Arc<Slot>, Arc<ExecSlot>)> {
        let missing = || Error::not_found(format!("No such exec instance: {id}"));
        let execs = self.0.execs.read().unwrap_or_else(PoisonError::into_inner);
        let slot = match execs.get(id) {
            Some(slot) => slot.clone(),
            None if id.len() >= 4 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
                let mut matches = execs
                    .range(id.to_owned()..)
                    .take_while(|(full, _)| full.starts_with(id));
                matches
                    .next()
                    .filter(|_| matches.next().is_none())
                    .ok_or_else(missing)?
                    .1
                    .clone()
            }
            None => return Err(missing()),
        };
        drop(execs);
        let slot = slot.upgrade().ok_or_else(missing)?;
        let live = slot.live();
        let found = live
            .execs
            .range(id.to_owned()..)
            .next()
            .filter(|(full, _)| full.starts_with(id));
        let exec = found.ok_or_else(missing)?.1.clone();
        drop(live);
        Ok((slot, exec))
    }

    /// Forgets a container's execs: it was removed.
    pub(crate) fn forget_execs(&self, slot: &Slot) {
        let execs = std::mem::take(&mut slot.live().execs);
        let mut index = self.0.execs.write().unwrap_or_else(PoisonError::into_inner);
        for id in execs.keys() {
            index.remove(id);
        }
    }
}

fn slot_is_down(table: &super::table::Table, id: &str) -> bool {
    table
        .find(id)
        .map_or(true, |slot| slot.record().state.process().is_none())
}

fn not_running(r: &str) -> Error {
    Error::conflict(format!("container {r} is not running"))
}

/// Docker's refusals, in its order.
fn must_run(r: &str, state: &State) -> Result<()> {
    match state {
        State::Running(_) => Ok(()),
        State::Paused(_) => Err(Error::conflict(format!(
            "container {r} is paused, unpause the container before exec"
        ))),
        State::Restarting { .. } => Err(Error::conflict(format!(
            "container {r} is restarting, wait until the container is running"
        ))),
        State::Creating
        | State::Created { .. }
        | State::Exited(_)
        | State::Removing
        | State::Dead => Err(not_running(r)),
    }
}

fn make_room(execs: &mut std::collections::BTreeMap<String, Arc<ExecSlot>>) -> Result<()> {
    if execs.len() < EXECS_LIMIT {
        return Ok(());
    }
    let age = |(id, exec): (&String, &Arc<ExecSlot>)| {
        let inner = exec.inner();
        (!inner.exec.running).then(|| (inner.created_at_ns, id.clone()))
    };
    let oldest = execs.iter().filter_map(age).min();
    let Some((_, id)) = oldest else {
        return Err(Error::conflict(format!(
            "{EXECS_LIMIT} commands run in this container already"
        )));
    };
    execs.remove(&id);
    Ok(())
}

/// Reads an exec to its end, whether somebody listens or not, and notes how it ended.
async fn follow(
    engine: Engine,
    slot: Arc<Slot>,
    exec: Arc<ExecSlot>,
    mut output: supervisor::Output,
    mut listener: Option<mpsc::Sender<(Stream, bytes::Bytes)>>,
) {
    let code = loop {
        let piece = match output.next().await {
            Ok(Some(supervisor::Out::Stdout(bytes))) => (Stream::Stdout, bytes),
            Ok(Some(supervisor::Out::Stderr(bytes))) => (Stream::Stderr, bytes),
            Ok(Some(supervisor::Out::Exited(exit))) => break exit.code,
            // The container ended and took the exec along.
            Ok(None) | Err(_) => break 137,
        };
        if let Some(sender) = &listener
            && sender.send(piece).await.is_err()
        {
            listener = None;
        }
    };
    let id = {
        let mut inner = exec.inner();
        inner.exec.running = false;
        inner.exec.exit_code = Some(code);
        inner.connection = None;
        inner.exec.id.clone()
    };
    let record = slot.record();
    engine.say(
        &record,
        "exec_die",
        &[("execID", id), ("exitCode", code.to_string())],
    );
    // Dropped last: a client that sees the end of the output may ask for the exit code at once.
    drop(listener);
}
