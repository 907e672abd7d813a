//! `/containers/…`: life cycle, listing, logs, stats, attach.

use crate::call::Call;
use crate::error::unsupported;
use crate::reply::{Reply, json_line};
use crate::stream::{self, Ended, Session};
use crate::websocket;
use bytes::BytesMut;
use futures_util::stream as streams;
use gantry_base::{Error, Result};
use gantry_docker_api::container::{self as doc, Summary};
use gantry_docker_api::create::{UpdateContainer, decode};
use gantry_docker_api::text::{self, Phase};
use gantry_docker_api::{Filters, keys, ports};
use gantry_engine::{
    Attach, Engine, LogLine, LogOptions, MountPoint, Record, Remove, State, Stats, WaitCondition,
};
use gantry_network::Endpoint;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const LIST_FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "until"];
const STATES: &[&str] = &[
    "created",
    "running",
    "paused",
    "restarting",
    "removing",
    "exited",
    "dead",
];
const HEALTHS: &[&str] = &["none", "starting", "healthy", "unhealthy"];
/// Log lines put into one chunk at most.
const LINES: usize = 128;
/// `docker stats` redraws once a second.
const STATS_EVERY: Duration = Duration::from_secs(1);
/// Two samples this far apart make a CPU percentage when the client wants one document only.
const STATS_APART: Duration = Duration::from_millis(500);

pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

pub(crate) async fn create(mut call: Call) -> Result<Reply> {
    let body = call.json_bytes().await?.unwrap_or_default();
    let query = call.query();
    let request = decode(
        query.get("name"),
        query.get("platform"),
        &body,
        call.version,
    )?;
    let created = call.engine.create(request).await?;
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        id: String,
        warnings: Vec<String>,
    }
    Ok(Reply::created(&Answer {
        id: created.id,
        warnings: created.warnings,
    }))
}

pub(crate) async fn start(call: Call) -> Result<Reply> {
    call.engine.start(&call.name).await?;
    Ok(Reply::no_content())
}

/// `signal` and `t` of stop and restart.
fn stop_options(call: &Call) -> Result<(Option<String>, Option<i64>)> {
    let query = call.query();
    let signal = Some(query.get("signal").to_string())
        .filter(|signal| !signal.is_empty() && call.version.at_least(42));
    Ok((signal, query.number("t")?))
}

pub(crate) async fn stop(call: Call) -> Result<Reply> {
    let (signal, timeout) = stop_options(&call)?;
    call.engine
        .stop(&call.name, signal.as_deref(), timeout)
        .await?;
    Ok(Reply::no_content())
}

pub(crate) async fn restart(call: Call) -> Result<Reply> {
    let (signal, timeout) = stop_options(&call)?;
    call.engine
        .restart(&call.name, signal.as_deref(), timeout)
        .await?;
    Ok(Reply::no_content())
}

pub(crate) async fn kill(call: Call) -> Result<Reply> {
    let killed = call
        .engine
        .kill(&call.name, call.query().get("signal"))
        .await;
    let name = &call.name;
    killed.map_err(|e| {
        Error::new(
            e.kind(),
            format!("cannot kill container: {name}: {}", e.chain()),
        )
    })?;
    Ok(Reply::no_content())
}

pub(crate) async fn pause(call: Call) -> Result<Reply> {
    call.engine.pause(&call.name).await?;
    Ok(Reply::no_content())
}

pub(crate) async fn unpause(call: Call) -> Result<Reply> {
    call.engine.unpause(&call.name).await?;
    Ok(Reply::no_content())
}

pub(crate) async fn rename(call: Call) -> Result<Reply> {
    call.engine
        .rename(&call.name, call.query().get("name"))
        .await?;
    Ok(Reply::no_content())
}

pub(crate) async fn resize(call: Call) -> Result<Reply> {
    let (columns, rows) = call.size()?;
    call.engine.resize(&call.name, columns, rows).await?;
    Ok(Reply::ok())
}

pub(crate) async fn update(mut call: Call) -> Result<Reply> {
    let change: UpdateContainer = call.json().await?;
    let warnings = call.engine.update(&call.name, change).await?;
    Ok(Reply::json(
        &serde_json::json!({"Warnings": some_if_any(warnings)}),
    ))
}

/// Docker writes `null` for an empty list in many places.
pub(crate) fn some_if_any<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

pub(crate) async fn remove(call: Call) -> Result<Reply> {
    let query = call.query();
    let how = Remove {
        force: query.is("force"),
        volumes: query.is("v"),
        link: query.is("link"),
    };
    let removed = call.engine.remove(&call.name, how).await;
    match removed {
        Err(e) if !call.version.at_least(42) => Err(old_words(&call, e)),
        other => other.map(|()| Reply::no_content()),
    }
}

/// Clients of the API before 1.42 look for the sentences of their time.
fn old_words(call: &Call, error: Error) -> Error {
    let Ok(record) = call.engine.get(&call.name) else {
        return error;
    };
    let advice = match record.state {
        State::Running(_) => "Stop the container before attempting removal or force remove",
        State::Paused(_) => {
            "Unpause and then stop the container before attempting removal or force remove"
        }
        State::Restarting { .. } => "Stop the container before attempting removal or force remove",
        _ => return error,
    };
    if error.kind() != gantry_base::ErrorKind::Conflict {
        return error;
    }
    Error::conflict(format!(
        "You cannot remove a {} container {}. {advice}",
        record.state.status(),
        record.id
    ))
}

pub(crate) async fn prune(call: Call) -> Result<Reply> {
    let filters = call.filters(PRUNE_FILTERS)?;
    let (deleted, freed) = call.engine.container_prune(&filters).await?;
    Ok(Reply::json(
        &serde_json::json!({"ContainersDeleted": some_if_any(deleted), "SpaceReclaimed": freed}),
    ))
}

/// Changes a container in place; Docker wants a new one.
pub(crate) async fn set(mut call: Call) -> Result<Reply> {
    let change = call.json().await?;
    let warnings = call.engine.set(&call.name, change).await?;
    Ok(Reply::json(
        &serde_json::json!({"Warnings": some_if_any(warnings)}),
    ))
}

/// Why it does not run; Docker has no such thing.
pub(crate) async fn autopsy(call: Call) -> Result<Reply> {
    Ok(Reply::json(&call.engine.autopsy(&call.name).await?))
}

pub(crate) async fn top(call: Call) -> Result<Reply> {
    let query = call.query();
    let top = call
        .engine
        .top(&call.name, query.find("ps_args").unwrap_or("-ef"))
        .await?;
    Ok(Reply::json(
        &serde_json::json!({"Processes": top.processes, "Titles": top.titles}),
    ))
}

/// Headers at once, the body when it has happened: `docker run` starts the container only after it has the headers.
pub(crate) async fn wait(call: Call) -> Result<Reply> {
    let condition = match call.query().get("condition") {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(Error::invalid(format!("invalid condition: {other:?}"))),
    };
    let waited = call.engine.wait(&call.name, condition).await?;
    let body = streams::once(async move {
        let waited = waited.await;
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<Failure>,
            status_code: i64,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Failure {
            message: String,
        }
        Ok(json_line(&Answer {
            error: waited.error.map(|message| Failure { message }),
            status_code: waited.code,
        }))
    });
    Ok(Reply::endless("application/json", body, call.stop))
}

pub(crate) async fn attach(call: Call) -> Result<Reply> {
    let query = call.query();
    let keys = keys::parse(query.get("detachKeys"))?;
    let what = Attach {
        stdin: query.is("stdin"),
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        logs: query.is("logs"),
        stream: query.is("stream"),
    };
    let attached = call.engine.attach(&call.name, what).await?;
    let (engine, id) = (call.engine.clone(), call.engine.get(&call.name)?.id.clone());
    let session = Session {
        tty: attached.tty,
        keys,
        attached: std::future::ready(Ok(attached)),
    };
    Ok(stream::hijack(call, session, move |ended| {
        if ended == Ended::Detached {
            publish(&engine, &id, "detach");
        }
    }))
}

/// An event about a container with the attributes that Docker gives all of them.
pub(crate) fn publish(engine: &Engine, id: &str, action: &str) {
    let Ok(record) = engine.get(id) else { return };
    let mut attributes = record.config.labels.clone();
    attributes.insert("image".into(), record.image_name.clone());
    attributes.insert("name".into(), record.name.clone());
    engine
        .events()
        .publish("container", action, record.id.clone(), attributes);
}

/// The same over a websocket. Before 1.42 the parameters for streams meant nothing here: all of them were joined.
pub(crate) async fn attach_websocket(call: Call) -> Result<Reply> {
    let query = call.query();
    let keys = keys::parse(query.get("detachKeys"))?;
    let chooses = call.version.at_least(42);
    let what = Attach {
        stdin: !chooses || query.is("stdin"),
        stdout: !chooses || query.is("stdout"),
        stderr: !chooses || query.is("stderr"),
        logs: query.is("logs"),
        stream: query.is("stream"),
    };
    let attached = call.engine.attach(&call.name, what).await?;
    websocket::join(call, attached, keys)
}

pub(crate) async fn checkpoints(_call: Call) -> Result<Reply> {
    Err(unsupported("checkpoints are not part of this build"))
}

pub(crate) async fn logs(call: Call) -> Result<Reply> {
    let query = call.query();
    let (stdout, stderr) = (query.is("stdout"), query.is("stderr"));
    if !stdout && !stderr {
        return Err(Error::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let now = now_ns();
    let (follow, times, details) = (
        query.is("follow"),
        query.is("timestamps"),
        query.is("details"),
    );
    let options = LogOptions {
        stdout,
        stderr,
        since_ns: query.time("since", now)?,
        until_ns: query.time("until", now)?,
        // Anything that is no number means all, as in Docker.
        tail: query.get("tail").parse().ok(),
        follow,
    };
    let tty = call.engine.get(&call.name)?.config.tty;
    let lines = call.engine.logs(&call.name, options).await?;
    let chunks = streams::unfold(lines, move |mut lines| async move {
        let mut batch = Vec::with_capacity(LINES);
        if lines.recv_many(&mut batch, LINES).await == 0 {
            return None;
        }
        let mut out = BytesMut::new();
        for line in batch {
            match line {
                Ok(line) => put_line(&mut out, tty, times, details, &line),
                Err(e) => {
                    let text = format!("{}\n", e.chain());
                    stream::put(
                        &mut out,
                        tty,
                        gantry_engine::Stream::Stderr,
                        text.as_bytes(),
                    );
                }
            }
        }
        Some((io::Result::Ok(out.freeze()), lines))
    });
    let kind = stream::media_type(&call, tty);
    Ok(Reply::endless(kind, chunks, call.stop))
}

fn put_line(out: &mut BytesMut, tty: bool, times: bool, details: bool, line: &LogLine) {
    let mut prefix = String::new();
    if times {
        push_fixed(&mut prefix, &line.time);
        prefix.push(' ');
    }
    if details {
        let pairs = line.attrs.iter().map(|(key, value)| {
            format!(
                "{}={}",
                gantry_docker_api::query::escape(key),
                gantry_docker_api::query::escape(value)
            )
        });
        prefix.push_str(&pairs.collect::<Vec<_>>().join(","));
        prefix.push(' ');
    }
    if !tty {
        out.extend_from_slice(&stream::header(line.stream, prefix.len() + line.line.len()));
    }
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(&line.line);
}

/// `2026-11-24T04:06:31.5Z` with all nine decimals, as `docker logs -t` prints times.
fn push_fixed(out: &mut String, time: &str) {
    let Some(bare) = time.strip_suffix('Z') else {
        return out.push_str(time);
    };
    let (seconds, decimals) = bare.split_once('.').unwrap_or((bare, ""));
    out.push_str(seconds);
    out.push('.');
    out.push_str(decimals);
    out.extend(std::iter::repeat_n(
        '0',
        9usize.saturating_sub(decimals.len()),
    ));
    out.push('Z');
}

pub(crate) async fn stats(call: Call) -> Result<Reply> {
    let query = call.query();
    let is_stream = query.is_or("stream", true);
    let one_shot = query.is("one-shot");
    if is_stream && one_shot {
        return Err(Error::invalid("cannot have stream=true and one-shot=true"));
    }
    let id = call.engine.get(&call.name)?.id.clone();
    let first = call.engine.stats(&id).await?;
    if !is_stream {
        let runs = first.read_ns != 0;
        let (before, now) = if one_shot || !runs {
            (None, first)
        } else {
            tokio::time::sleep(STATS_APART).await;
            let second = call.engine.stats(&id).await?;
            (Some(first), second)
        };
        return Ok(Reply::json(&stats_document(before.as_ref(), &now)));
    }
    let engine = call.engine.clone();
    let begin = (None::<Stats>, Some(first));
    let documents = streams::unfold(begin, move |(before, now)| {
        let (engine, id) = (engine.clone(), id.clone());
        async move {
            let now = match now {
                Some(first) => first,
                None => {
                    tokio::time::sleep(STATS_EVERY).await;
                    // A container that is gone ends the stream.
                    engine.stats(&id).await.ok()?
                }
            };
            let document = json_line(&stats_document(before.as_ref(), &now));
            Some((io::Result::Ok(document), (Some(now), None)))
        }
    });
    Ok(Reply::endless("application/json", documents, call.stop))
}

/// Docker's document, from this sample and the one before.
fn stats_document<'a>(before: Option<&'a Stats>, now: &'a Stats) -> impl Serialize + 'a {
    #[derive(Serialize)]
    struct Document<'a> {
        name: String,
        id: &'a str,
        read: String,
        preread: String,
        pids_stats: &'a gantry_engine::stats::Pids,
        blkio_stats: &'a gantry_engine::stats::Blkio,
        num_procs: u32,
        storage_stats: BTreeMap<&'a str, u64>,
        cpu_stats: &'a gantry_engine::stats::Cpu,
        precpu_stats: PreCpu<'a>,
        memory_stats: &'a gantry_engine::stats::Memory,
        #[serde(skip_serializing_if = "Option::is_none")]
        networks: Option<&'a BTreeMap<String, gantry_engine::stats::Interface>>,
    }
    /// Before the first sample there is a document of zeros without the machine's figures, which is how clients tell.
    #[derive(Serialize)]
    #[serde(untagged)]
    enum PreCpu<'a> {
        Sample(&'a gantry_engine::stats::Cpu),
        None(serde_json::Value),
    }
    let nothing = || {
        serde_json::json!({
            "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        })
    };
    Document {
        name: format!("/{}", now.name),
        id: &now.id,
        read: text::time(now.read_ns),
        preread: text::time(before.map_or(0, |before| before.read_ns)),
        pids_stats: &now.pids,
        blkio_stats: &now.blkio,
        num_procs: 0,
        storage_stats: BTreeMap::new(),
        cpu_stats: &now.cpu,
        precpu_stats: before.map_or_else(
            || PreCpu::None(nothing()),
            |before| PreCpu::Sample(&before.cpu),
        ),
        memory_stats: &now.memory,
        networks: now.networks.as_ref(),
    }
}

pub(crate) async fn list(call: Call) -> Result<Reply> {
    let query = call.query();
    let filters = call.filters(LIST_FILTERS)?;
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let with_size = query.is("size");
    let all = query.is("all")
        || limit.is_some()
        || ["status", "exited", "health"]
            .iter()
            .any(|name| filters.has(name));
    let records = call.engine.list();
    let wanted = Wanted::new(&call.engine, &records, &filters, all)?;
    let limit = usize::try_from(limit.unwrap_or(i64::MAX)).unwrap_or(usize::MAX);
    let chosen: Vec<&Arc<Record>> = wanted
        .window(&records)
        .filter(|record| wanted.holds(record))
        .take(limit)
        .collect();
    let now = now_ns();
    let mut summaries = Vec::with_capacity(chosen.len());
    for record in chosen {
        let mut summary = summary(record, now);
        if with_size {
            let size = call.engine.container_size(&record.id).await?;
            summary.size_rw = Some(size.rw).filter(|size| *size > 0);
            summary.size_root_fs = Some(size.root_fs);
        }
        summaries.push(summary);
    }
    Ok(Reply::json(&summaries))
}

/// The list's filters, resolved once: what needs a look-up is looked up here, not per container.
struct Wanted<'a> {
    filters: &'a Filters,
    all: bool,
    is_task: Option<bool>,
    exited: Vec<i32>,
    ancestors: Option<Vec<gantry_oci::Digest>>,
    published: Vec<ports::PortRange>,
    exposed: Vec<ports::PortRange>,
    /// Only containers after (newer than) this one, and before that one, by their place in the list.
    newer_than: Option<usize>,
    older_than: Option<usize>,
}

impl<'a> Wanted<'a> {
    fn new(
        engine: &Engine,
        records: &[Arc<Record>],
        filters: &'a Filters,
        all: bool,
    ) -> Result<Self> {
        let known = |name: &str, words: &[&str]| match filters
            .values(name)
            .iter()
            .find(|v| !words.contains(&v.as_str()))
        {
            Some(bad) => Err(Error::invalid(format!(
                "Unrecognised filter value for {name}: {bad}"
            ))),
            None => Ok(()),
        };
        known("status", STATES)?;
        known("health", HEALTHS)?;
        let exited = filters.values("exited").iter().map(|code| {
            code.parse()
                .map_err(|_| Error::invalid(format!("invalid filter 'exited=[{code}]'")))
        });
        let place = |name: &str| -> Result<Option<usize>> {
            let Some(reference) = filters.values(name).first() else {
                return Ok(None);
            };
            let id = engine.get(reference)?.id.clone();
            Ok(records.iter().position(|record| record.id == id))
        };
        let ranges = |name: &str| {
            filters
                .values(name)
                .iter()
                .map(|text| ports::parse(text))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            filters,
            all,
            is_task: filters.flag("is-task")?,
            exited: exited.collect::<Result<_>>()?,
            ancestors: filters
                .has("ancestor")
                .then(|| ancestors(engine, filters.values("ancestor"))),
            published: ranges("publish")?,
            exposed: ranges("expose")?,
            newer_than: place("since")?,
            older_than: place("before")?,
        })
    }

    /// The list is newest first, so newer means nearer to its start.
    fn window<'r>(
        &self,
        records: &'r [Arc<Record>],
    ) -> impl Iterator<Item = &'r Arc<Record>> + use<'r> {
        let end = self.newer_than.unwrap_or(records.len());
        let begin = self.older_than.map_or(0, |place| place + 1).min(end);
        records[begin..end].iter()
    }

    fn holds(&self, record: &Record) -> bool {
        let runs = matches!(
            record.state,
            State::Running(_) | State::Paused(_) | State::Restarting { .. }
        );
        let visible = !matches!(record.state, State::Creating) && (self.all || runs);
        let filters = self.filters;
        visible
            && self.is_task != Some(true)
            && filters.any("status", |status| status == record.state.status())
            && filters.any("health", |wanted| {
                wanted == health(record).unwrap_or("none")
            })
            && (self.exited.is_empty()
                || (matches!(record.state, State::Exited(_))
                    && self.exited.contains(&record.state.exit_code())))
            && filters.pattern("id", &record.id)
            && (filters.pattern("name", &record.name)
                || filters.pattern("name", &format!("/{}", record.name)))
            && filters.labels(&record.config.labels)
            && self
                .ancestors
                .as_ref()
                .is_none_or(|images| images.contains(&record.image))
            && filters.any("network", |wanted| on_network(record, wanted))
            && filters.any("volume", |wanted| {
                record.mounts.iter().any(|m| {
                    m.name.as_deref() == Some(wanted)
                        || m.destination == wanted
                        || m.source == wanted
                })
            })
            && (self.published.is_empty()
                || record.ports.iter().any(|port| {
                    let proto = protocol(port.udp);
                    self.published.iter().any(|r| {
                        r.contains(port.container_port, proto) || r.contains(port.host_port, proto)
                    })
                }))
            && (self.exposed.is_empty()
                || record
                    .config
                    .exposed_ports
                    .keys()
                    .filter_map(|text| ports::parse(text).ok())
                    .any(|port| {
                        self.exposed
                            .iter()
                            .any(|range| range.contains(port.first, &port.protocol))
                    }))
    }
}

/// Images named, and those that were committed from them. An unknown one matches nothing.
fn ancestors(engine: &Engine, names: &[String]) -> Vec<gantry_oci::Digest> {
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| engine.images().get(name).ok())
        .map(|i| i.id.clone())
        .collect();
    let Ok(images) = engine.images().list() else {
        return found;
    };
    let mut at = 0;
    while at < found.len() {
        let children = images.iter().filter(|image| {
            image.parent.as_ref() == Some(&found[at]) && !found.contains(&image.id)
        });
        let children: Vec<_> = children.map(|image| image.id.clone()).collect();
        found.extend(children);
        at += 1;
    }
    found
}

fn on_network(record: &Record, wanted: &str) -> bool {
    let named = record
        .endpoints
        .iter()
        .any(|(name, endpoint)| name == wanted || endpoint.network_id.starts_with(wanted));
    named || mode_network(record) == Some(wanted)
}

/// The network that a container's mode names; none for `container:…`.
fn mode_network(record: &Record) -> Option<&str> {
    match record.host_config.network_mode.as_str() {
        "" | "default" => Some("bridge"),
        mode if mode.starts_with("container:") => None,
        mode => Some(mode),
    }
}

pub(crate) fn protocol(udp: bool) -> &'static str {
    if udp { "udp" } else { "tcp" }
}

fn health(record: &Record) -> Option<&str> {
    record.health.as_ref().map(|health| health.status.as_str())
}

/// What the status sentence needs to know.
pub(crate) fn phase(state: &State) -> Phase {
    match state {
        State::Creating | State::Created { .. } => Phase::Created,
        State::Running(process) => Phase::Running {
            since: process.started_at_ns,
        },
        State::Paused(process) => Phase::Paused {
            since: process.started_at_ns,
        },
        State::Restarting { exit, .. } => Phase::Restarting {
            code: exit.code,
            at: exit.finished_at_ns,
        },
        State::Exited(exit) => Phase::Exited {
            code: exit.code,
            at: exit.finished_at_ns,
        },
        State::Removing => Phase::Removing,
        State::Dead => Phase::Dead,
    }
}

pub(crate) fn summary(record: &Record, now: i64) -> Summary<'_> {
    let networks = networks(record);
    Summary {
        id: &record.id,
        names: vec![format!("/{}", record.name)],
        image: &record.image_name,
        image_id: record.image.to_string(),
        command: text::command(&record.argv),
        created: record.created_at_ns.div_euclid(1_000_000_000),
        ports: summary_ports(record),
        size_rw: None,
        size_root_fs: None,
        labels: &record.config.labels,
        state: record.state.status(),
        status: text::status(phase(&record.state), health(record), now),
        host_config: doc::SummaryHost {
            network_mode: &record.host_config.network_mode,
            annotations: record
                .host_config
                .annotations
                .as_ref()
                .filter(|map| !map.is_empty()),
        },
        network_settings: doc::SummaryNetworks { networks },
        mounts: mounts(record),
    }
}

/// Published ports, and exposed ones that are not published; none while nothing runs.
fn summary_ports(record: &Record) -> Vec<doc::Port> {
    if record.state.process().is_none() {
        return Vec::new();
    }
    let published = record.ports.iter().map(|port| doc::Port {
        ip: port.host_ip.to_string(),
        private_port: port.container_port,
        public_port: Some(port.host_port),
        protocol: protocol(port.udp),
    });
    let mut list: Vec<doc::Port> = published.collect();
    for exposed in record
        .config
        .exposed_ports
        .keys()
        .filter_map(|text| ports::parse(text).ok())
    {
        let protocol = match exposed.protocol.as_str() {
            "udp" => "udp",
            "sctp" => "sctp",
            _ => "tcp",
        };
        for private_port in exposed.first..=exposed.last {
            if !list
                .iter()
                .any(|port| port.private_port == private_port && port.protocol == protocol)
            {
                list.push(doc::Port {
                    ip: String::new(),
                    private_port,
                    public_port: None,
                    protocol,
                });
            }
        }
    }
    list
}

fn mounts(record: &Record) -> Vec<doc::MountPoint<'_>> {
    let shown = |mount: &&MountPoint| {
        !(mount.kind == "tmpfs" && is_legacy_tmpfs(record, &mount.destination))
    };
    record
        .mounts
        .iter()
        .filter(shown)
        .map(mount_document)
        .collect()
}

fn mount_document(mount: &MountPoint) -> doc::MountPoint<'_> {
    doc::MountPoint {
        kind: &mount.kind,
        name: mount.name.as_deref(),
        source: if mount.kind == "tmpfs" {
            ""
        } else {
            &mount.source
        },
        destination: &mount.destination,
        driver: mount.driver.as_deref(),
        mode: &mount.mode,
        rw: mount.rw,
        propagation: &mount.propagation,
    }
}

/// `--tmpfs` is shown under `HostConfig.Tmpfs`, not among the mounts.
fn is_legacy_tmpfs(record: &Record, destination: &str) -> bool {
    record
        .host_config
        .tmpfs
        .as_ref()
        .is_some_and(|map| map.contains_key(destination))
}

fn networks(record: &Record) -> BTreeMap<&str, doc::Endpoint> {
    let mut map: BTreeMap<&str, doc::Endpoint> = record
        .endpoints
        .iter()
        .map(|(name, endpoint)| (name.as_str(), endpoint_document(endpoint)))
        .collect();
    for (name, wished) in &record.networks {
        let endpoint = map.entry(name).or_default();
        endpoint.ipam_config = wished.ipam_config.clone();
        endpoint.links = wished.links.clone();
        endpoint.aliases = wished.aliases.clone();
        endpoint.driver_opts = wished.driver_opts.clone();
        endpoint.gw_priority = wished.gw_priority;
        if endpoint.mac_address.is_empty() {
            endpoint.mac_address.clone_from(&wished.mac_address);
        }
        if !matches!(name.as_str(), "bridge" | "host" | "none") {
            endpoint.dns_names = Some(gantry_engine::names_in_network(record, wished));
        }
    }
    if let (true, Some(name)) = (map.is_empty(), mode_network(record)) {
        map.insert(name, doc::Endpoint::default());
    }
    map
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn endpoint_document(endpoint: &Endpoint) -> doc::Endpoint {
    doc::Endpoint {
        mac_address: mac_text(endpoint.mac),
        network_id: endpoint.network_id.clone(),
        endpoint_id: endpoint.id.clone(),
        gateway: endpoint
            .gateway
            .map(|gateway| gateway.to_string())
            .unwrap_or_default(),
        ip_address: endpoint.address.to_string(),
        ip_prefix_len: endpoint.prefix_len,
        ipv6_gateway: endpoint
            .ipv6
            .and_then(|six| six.gateway)
            .map(|gateway| gateway.to_string())
            .unwrap_or_default(),
        global_ipv6_address: endpoint
            .ipv6
            .map(|six| six.address.to_string())
            .unwrap_or_default(),
        global_ipv6_prefix_len: endpoint.ipv6.map_or(0, |six| six.prefix_len),
        ..doc::Endpoint::default()
    }
}

pub(crate) async fn inspect(call: Call) -> Result<Reply> {
    let record = call.engine.get(&call.name)?;
    let size = if call.query().is("size") {
        Some(call.engine.container_size(&record.id).await?)
    } else {
        None
    };
    let dir = call
        .engine
        .settings()
        .data_dir
        .join("containers")
        .join(&record.id);
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (path, args) = match record.argv.split_first() {
        Some((path, args)) => (path.as_str(), args),
        None => ("", &[][..]),
    };
    Ok(Reply::json(&doc::Inspect {
        id: &record.id,
        created: text::time(record.created_at_ns),
        path,
        args,
        state: state_document(&record),
        image: record.image.to_string(),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: if record.host_config.log_config.kind == "json-file" {
            log_path(&dir, &record.id)
        } else {
            String::new()
        },
        name: format!("/{}", record.name),
        restart_count: record.restart_count,
        driver: "overlay2",
        platform: "linux",
        mount_label: "",
        process_label: "",
        app_armor_profile: "",
        exec_ids: some_if_any(call.engine.exec_ids(&record.id)?),
        host_config: &record.host_config,
        graph_driver: graph_driver(&call.engine, &record, &dir),
        size_rw: size.map(|size| size.rw),
        size_root_fs: size.map(|size| size.root_fs),
        mounts: mounts(&record),
        config: &record.config,
        network_settings: network_settings(&record),
    }))
}

fn log_path(dir: &std::path::Path, id: &str) -> String {
    let docker_style = dir.join(format!("{id}-json.log"));
    let plain = dir.join("log");
    // Where the supervisor writes; a file of Docker's own name is preferred if there is one.
    if docker_style.exists() {
        docker_style
    } else {
        plain
    }
    .to_string_lossy()
    .into_owned()
}

fn state_document(record: &Record) -> doc::State<'_> {
    let state = &record.state;
    let exit = match state {
        State::Exited(exit) | State::Restarting { exit, .. } => Some(exit),
        _ => None,
    };
    let process = state.process();
    let started = process
        .map(|p| p.started_at_ns)
        .or(exit.map(|e| e.started_at_ns));
    let failure = match state {
        State::Created {
            failure: Some(failure),
        } => failure.message.as_str(),
        _ => "",
    };
    doc::State {
        status: state.status(),
        running: matches!(
            state,
            State::Running(_) | State::Paused(_) | State::Restarting { .. }
        ),
        paused: matches!(state, State::Paused(_)),
        restarting: matches!(state, State::Restarting { .. }),
        oom_killed: exit.is_some_and(|exit| exit.oom_killed),
        dead: matches!(state, State::Dead),
        pid: process.map_or(0, |process| process.pid),
        exit_code: state.exit_code(),
        error: exit.map_or(failure, |exit| exit.error.as_str()),
        started_at: text::time(started.unwrap_or(0)),
        finished_at: text::time(exit.map_or(0, |exit| exit.finished_at_ns)),
        health: record.health.as_ref().map(|health| doc::Health {
            status: &health.status,
            failing_streak: health.failing_streak,
            log: health
                .log
                .iter()
                .map(|probe| doc::HealthProbe {
                    start: text::time(probe.start_ns),
                    end: text::time(probe.end_ns),
                    exit_code: probe.exit_code,
                    output: &probe.output,
                })
                .collect(),
        }),
    }
}

/// The overlay's folders. Nothing is mounted on the host: while the container runs its whole tree is seen through its process.
fn graph_driver(engine: &Engine, record: &Record, dir: &std::path::Path) -> doc::GraphDriver {
    let mut data = BTreeMap::new();
    if let Ok(image) = engine.images().get(&record.image.to_string()) {
        let folders: Vec<String> = image
            .layers
            .iter()
            .rev()
            .map(|l| l.folder.to_string_lossy().into_owned())
            .collect();
        data.insert("LowerDir", folders.join(":"));
    }
    if let Some(process) = record.state.process() {
        data.insert("MergedDir", format!("/proc/{}/root", process.pid));
    }
    data.insert("UpperDir", dir.join("upper").to_string_lossy().into_owned());
    data.insert("WorkDir", dir.join("work").to_string_lossy().into_owned());
    doc::GraphDriver {
        data,
        name: "overlay2",
    }
}

fn network_settings(record: &Record) -> doc::NetworkSettings<'_> {
    let process = record.state.process();
    let main = record
        .endpoints
        .get("bridge")
        .map(endpoint_document)
        .filter(|_| process.is_some())
        .unwrap_or_default();
    let mut ports: BTreeMap<String, Option<Vec<doc::HostPort>>> = BTreeMap::new();
    if process.is_some() {
        for port in summary_ports(record) {
            let entry = ports
                .entry(format!("{}/{}", port.private_port, port.protocol))
                .or_default();
            if let Some(public) = port.public_port {
                entry.get_or_insert_default().push(doc::HostPort {
                    host_ip: port.ip,
                    host_port: public.to_string(),
                });
            }
        }
    }
    doc::NetworkSettings {
        bridge: "",
        sandbox_id: process.map(|_| record.id.clone()).unwrap_or_default(),
        sandbox_key: process
            .map(|process| format!("/proc/{}/ns/net", process.pid))
            .unwrap_or_default(),
        ports,
        hairpin_mode: false,
        link_local_ipv6_address: "",
        link_local_ipv6_prefix_len: 0,
        secondary_ip_addresses: None,
        secondary_ipv6_addresses: None,
        endpoint_id: main.endpoint_id.clone(),
        gateway: main.gateway.clone(),
        global_ipv6_address: "",
        global_ipv6_prefix_len: 0,
        ip_address: main.ip_address.clone(),
        ip_prefix_len: main.ip_prefix_len,
        ipv6_gateway: "",
        mac_address: main.mac_address.clone(),
        networks: networks(record),
    }
}
