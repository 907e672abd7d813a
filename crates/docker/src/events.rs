//! `GET /events`: what happened and what happens, one document per line.

use crate::call::Call;
use crate::containers::now_ns;
use crate::reply::{Reply, json_line};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream as streams};
use gantry_base::{Error, Result};
use gantry_docker_api::{Filters, system};
use gantry_engine::events::Event;
use std::io;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

const FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

pub(crate) async fn stream(call: Call) -> Result<Reply> {
    let query = call.query();
    let filters = call.filters(FILTERS)?;
    let now = now_ns();
    let (since, until) = (query.time("since", now)?, query.time("until", now)?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(Error::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            query.get("since"),
            query.get("until")
        )));
    }
    let (past, live) = call.engine.events().subscribe(since);
    let mut first = BytesMut::new();
    for event in past
        .iter()
        .filter(|event| until.is_none_or(|until| event.time_ns <= until))
    {
        if matches(&filters, event) {
            first.extend_from_slice(&line(event));
        }
    }
    let history = streams::iter(
        Some(first)
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| io::Result::Ok(bytes.freeze())),
    );
    let rest = until.map_or(i64::MAX, |until| until.saturating_sub(now));
    if rest <= 0 {
        return Ok(Reply::chunks("application/json", history));
    }
    let end = Box::pin(async move {
        match until {
            Some(_) => tokio::time::sleep(Duration::from_nanos(rest.unsigned_abs())).await,
            None => std::future::pending().await,
        }
    });
    let chunks = history.chain(following(live, filters)).take_until(end);
    Ok(Reply::endless("application/json", chunks, call.stop))
}

fn following(
    live: broadcast::Receiver<Event>,
    filters: Filters,
) -> impl streams::Stream<Item = io::Result<Bytes>> + Send {
    streams::unfold((live, filters), async |(mut live, filters)| {
        loop {
            match live.recv().await {
                Ok(event) if matches(&filters, &event) => {
                    return Some((Ok(line(&event)), (live, filters)));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "a client reads events too slowly and lost some")
                }
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

fn line(event: &Event) -> Bytes {
    json_line(&system::Event::new(
        &event.kind,
        &event.action,
        &event.actor,
        &event.attributes,
        event.time_ns,
    ))
}

/// Docker's rules: the object filters name an object of their kind by ID (or its beginning) or name.
fn matches(filters: &Filters, event: &Event) -> bool {
    let name = event.attributes.get("name").map_or("", String::as_str);
    let object = |kind: &str| {
        filters.any(kind, |wanted| {
            let of_kind = event.kind == kind;
            let itself = of_kind && (event.actor.starts_with(wanted) || name.starts_with(wanted));
            itself
                || (kind == "image" && of_image(event, wanted))
                || (!of_kind && event.attributes.get(kind).is_some_and(|v| v == wanted))
        })
    };
    let action = event.action.split(':').next().unwrap_or("");
    filters.any("type", |kind| event.kind == kind)
        && filters.any("event", |wanted| wanted == action || wanted == event.action)
        && filters.any("scope", |scope| scope == "local")
        && [
            "container",
            "image",
            "volume",
            "network",
            "daemon",
            "plugin",
        ]
        .iter()
        .all(|kind| object(kind))
        && ["service", "node", "secret", "config"]
            .iter()
            .all(|kind| !filters.has(kind))
        && filters.labels(&event.attributes)
}

/// Events of containers count as their image's; a tag left out means any.
fn of_image(event: &Event, wanted: &str) -> bool {
    let without_tag = |name: &str| {
        name.rsplit_once(':')
            .filter(|(_, tag)| !tag.contains('/'))
            .map_or(name.to_string(), |(n, _)| n.to_string())
    };
    let attribute = if event.kind == "image" {
        "name"
    } else {
        "image"
    };
    let name = event.attributes.get(attribute).map_or("", String::as_str);
    (event.kind == "image" && event.actor == wanted)
        || name == wanted
        || without_tag(name) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn filters_follow_docker() {
        let event = Event {
            kind: "container".into(),
            action: "exec_create: sh".into(),
            actor: "abcdef".into(),
            attributes: BTreeMap::from(
                [("name", "web"), ("image", "busybox:1"), ("a", "b")]
                    .map(|(k, v)| (k.into(), v.into())),
            ),
            time_ns: 1,
        };
        for (text, want) in [
            ("", true),
            (r#"{"container":["abc"]}"#, true),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"event":["exec_create"]}"#, true),
            (r#"{"event":["start"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"image":["busybox:1"]}"#, true),
            (r#"{"image":["busybox:2"]}"#, false),
            (r#"{"label":["a=b"]}"#, true),
            (r#"{"label":["c"]}"#, false),
            (r#"{"type":["image"]}"#, false),
            (r#"{"type":["image","container"]}"#, true),
            (r#"{"scope":["swarm"]}"#, false),
        ] {
            let filters = Filters::parse(text, FILTERS).unwrap();
            assert_eq!(matches(&filters, &event), want, "{text}");
        }
    }
}
