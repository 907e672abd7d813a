//! Watch: the current state if asked for, then every change, then bookmarks.

use crate::Api;
use crate::hub::{self, Cursor, Event};
use crate::kinds::Kind;
use crate::object;
use crate::read::{self, At};
use crate::reply::{self, Reply};
use crate::request::{Call, Form, Target};
use crate::select::Selection;
use crate::status::{Result, Status};
use crate::table;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a watcher that wants it hears how far it is.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a watch lasts that does not say so itself; up to twice as long, so that not all end at once.
const LASTS: Duration = Duration::from_secs(1800);
const LASTS_AT_MOST: u64 = 24 * 3600;
/// Objects of the first state that are sent at a time.
const PAGE: usize = 200;

struct State {
    api: Arc<Api>,
    kind: Arc<Kind>,
    selection: Selection,
    form: Form,
    include: String,
    /// The next page of the first state begins here, and it is of this revision.
    initial: Option<(String, At)>,
    /// A bookmark says where the first state ends.
    marks_initial_end: bool,
    cursor: Option<Cursor>,
    wants_bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    columns_sent: bool,
    over: bool,
}

pub(crate) async fn watch(api: &Arc<Api>, call: &Call, target: &Target) -> Result<Reply> {
    let selection = Selection::of(call, target)?;
    let asked = read::revision(call, "resourceVersion")?;
    let wants_bookmarks = call.query.flag("allowWatchBookmarks");
    let send = call.query.get("sendInitialEvents");
    let rule = call.query.get("resourceVersionMatch");
    check(send, rule)?;
    let streams_list = send == "true" || send == "1";
    let from_start = streams_list || (send.is_empty() && matches!(asked, None | Some(0)));
    if streams_list && let Some(asked) = asked {
        let current = api.store.revision().await?;
        if asked > current {
            return Err(Status::future_revision(asked, current));
        }
    }
    let after = match asked {
        None | Some(0) => api.store.revision().await?,
        Some(revision) => revision,
    };
    let cursor = if from_start {
        None
    } else {
        Some(api.hub.subscribe(&target.kind.prefix(), after)?)
    };
    let lasts = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(LASTS_AT_MOST)),
        _ => {
            let mut spread = [0];
            object::random(&mut spread)?;
            LASTS + LASTS * u32::from(spread[0]) / 256
        }
    };
    let now = Instant::now();
    let state = State {
        api: api.clone(),
        kind: target.kind.clone(),
        selection,
        form: call.form,
        include: call.query.get("includeObject").to_owned(),
        initial: from_start.then(|| (String::new(), At::Now)),
        marks_initial_end: streams_list && wants_bookmarks,
        cursor,
        wants_bookmarks,
        next_bookmark: now + BOOKMARKS,
        ends: now + lasts,
        columns_sent: false,
        over: false,
    };
    let lines = futures_util::stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        match state.next().await {
            Ok(Some(lines)) => Some((lines, state)),
            Ok(None) => None,
            Err(status) => {
                state.over = true;
                let line = json!({"type": "ERROR", "object": status.document()});
                Some((Bytes::from(format!("{line}\n")), state))
            }
        }
    });
    Ok(reply::stream(lines))
}

fn check(send: &str, rule: &str) -> Result<()> {
    let faulty = |why: &str| {
        Err(Status::unprocessable(format!(
            "ListOptions.meta.k8s.io \"\" is invalid: {why}"
        )))
    };
    if send.is_empty() {
        if !rule.is_empty() {
            return faulty(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        return Ok(());
    }
    if rule != "NotOlderThan" {
        return faulty(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    Ok(())
}

impl State {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some((start, at)) = self.initial.take() {
            return self.first_state(&start, at).await.map(Some);
        }
        let mut stop = self.api.stopping();
        loop {
            let wake = if self.wants_bookmarks {
                self.ends.min(self.next_bookmark)
            } else {
                self.ends
            };
            let Some(cursor) = &mut self.cursor else {
                return Ok(None);
            };
            let events = tokio::select! {
                events = cursor.next() => Some(events?),
                () = tokio::time::sleep_until(wake) => None,
                () = crate::stopped(&mut stop) => return Ok(None),
            };
            let now = Instant::now();
            match events {
                Some(events) => {
                    let lines = self.lines(&events)?;
                    if !lines.is_empty() {
                        return Ok(Some(lines));
                    }
                }
                None if now >= self.ends => return Ok(None),
                None => {
                    self.next_bookmark = now + BOOKMARKS;
                    let revision = cursor.bookmark();
                    return Ok(Some(self.bookmark(revision, false)));
                }
            }
        }
    }

    async fn first_state(&mut self, start: &str, at: At) -> Result<Bytes> {
        let api = self.api.clone();
        let found = read::page(&api, &self.selection, at, start, PAGE).await?;
        if self.cursor.is_none() {
            let prefix = self.kind.prefix();
            self.cursor = Some(api.hub.subscribe(&prefix, found.revision)?);
        }
        let mut out = BytesMut::new();
        for item in &found.items {
            out.extend(self.line("ADDED", &item.value, item.revision)?);
        }
        match found.more() {
            Some(more) => {
                self.initial = Some((more.to_owned(), At::Exactly(found.revision)));
            }
            None if self.marks_initial_end => {
                out.extend(self.bookmark(found.revision, true));
            }
            None => {}
        }
        Ok(out.freeze())
    }

    fn lines(&mut self, events: &[Arc<Event>]) -> Result<Bytes> {
        let mut single = None;
        let mut out = BytesMut::new();
        for event in events {
            let Some(line) = self.event(event)? else {
                continue;
            };
            match (single.take(), out.is_empty()) {
                (None, true) => single = Some(line),
                (Some(first), _) => {
                    out.extend(first);
                    out.extend(line);
                }
                (None, false) => out.extend(line),
            }
        }
        // One event, the usual case: its line is shared by all watchers, not copied.
        Ok(single.unwrap_or_else(|| out.freeze()))
    }

    fn event(&mut self, event: &Event) -> Result<Option<Bytes>> {
        if !self.selection.has_key(&event.key) {
            return Ok(None);
        }
        let (word, shown) = if self.selection.is_by_key() {
            let plain = self.form == Form::Plain && !self.kind.is_converted();
            if plain {
                return event.line().map(Some);
            }
            (event.word(), event.shown())
        } else {
            let chosen = |kept: &Option<Bytes>| match kept {
                Some(kept) => self.selection.chooses(kept),
                None => Ok(false),
            };
            // Who sees only some objects sees them come and go as they begin and cease to be chosen.
            match (chosen(&event.now)?, chosen(&event.before)?) {
                (true, true) => ("MODIFIED", event.now.as_ref()),
                (true, false) => ("ADDED", event.now.as_ref()),
                (false, true) => ("DELETED", event.before.as_ref()),
                (false, false) => return Ok(None),
            }
        };
        match shown {
            Some(kept) => self.line(word, &kept.clone(), event.revision).map(Some),
            None => Ok(None),
        }
    }

    fn line(&mut self, word: &str, kept: &[u8], revision: u64) -> Result<Bytes> {
        if self.form == Form::Plain && !self.api.needs_conversion(&self.kind, kept) {
            return hub::line(word, kept, revision);
        }
        let object = object::decode(kept, revision)?;
        let object = self.api.converted(&self.kind, object)?;
        let shown = match self.form {
            Form::Table => {
                let row = table::row(&self.kind, &object, &self.include)?;
                self.table(&object["metadata"]["resourceVersion"], &[row])
            }
            Form::Partial => table::partial(&object),
            _ => object,
        };
        let line = json!({"type": word, "object": shown});
        Ok(Bytes::from(format!("{line}\n")))
    }

    /// Columns stand in the first table of a watch only.
    fn table(&mut self, revision: &Value, rows: &[Value]) -> Value {
        let columns = if self.columns_sent {
            Value::Null
        } else {
            table::columns(&self.kind)
        };
        self.columns_sent = true;
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
            "columnDefinitions": columns, "rows": rows,
        })
    }

    fn bookmark(&mut self, revision: u64, ends_initial: bool) -> Bytes {
        let revision = Value::String(revision.to_string());
        let object = match self.form {
            Form::Table => {
                let mut table = self.table(&revision, &[]);
                if ends_initial {
                    let row = json!({"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                        "metadata": {"resourceVersion": revision, "annotations": {"k8s.io/initial-events-end": "true"}}}});
                    table["rows"] = json!([row]);
                }
                table
            }
            _ => {
                let mut metadata = json!({"resourceVersion": revision, "creationTimestamp": null});
                if ends_initial {
                    metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                }
                let (kind, api_version) = match self.form {
                    Form::Partial => (
                        "PartialObjectMetadata".to_owned(),
                        "meta.k8s.io/v1".to_owned(),
                    ),
                    _ => (self.kind.kind.clone(), self.kind.api_version()),
                };
                json!({"kind": kind, "apiVersion": api_version, "metadata": metadata})
            }
        };
        let line = json!({"type": "BOOKMARK", "object": object});
        Bytes::from(format!("{line}\n"))
    }
}
