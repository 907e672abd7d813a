//! Get and list.

use crate::object;
use crate::reply::{self, Reply};
use crate::request::{Call, Form, Target};
use crate::select::Selection;
use crate::status::{Result, Status};
use crate::table;
use crate::{Api, Stored};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use gantry_store::{Range, Span};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Objects that are read from the store at a time: a list holds its answer, not twice.
const PAGE: usize = 500;

pub(crate) async fn get(api: &Arc<Api>, call: &Call, target: &Target) -> Result<Reply> {
    let wanted = revision(call, "resourceVersion")?.unwrap_or(0);
    let stored = api.need(target).await?;
    if wanted > stored.revision {
        let current = api.store.revision().await?;
        if wanted > current {
            return Err(Status::future_revision(wanted, current));
        }
    }
    api.answer(call, target, StatusCode::OK, &stored)
}

/// A resourceVersion of the query. Opaque to clients, a number to us.
pub(crate) fn revision(call: &Call, name: &str) -> Result<Option<u64>> {
    match call.query.get(name) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("invalid resource version \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"))
        }),
    }
}

/// Where a list goes on. The form is Kubernetes' own, though clients must not look inside.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(revision: i64, start: &str) -> String {
        let token = Self {
            v: "meta.k8s.io/v1".into(),
            rv: revision,
            start: start.into(),
        };
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("strings serialise"))
    }
    fn decode(text: &str) -> Result<Self> {
        let bad = || Status::bad_request("continue key is not valid: malformed");
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|_| bad())?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        if token.v != "meta.k8s.io/v1" || token.start.contains("..") {
            return Err(bad());
        }
        Ok(token)
    }
}

/// One page of what is chosen.
pub(crate) struct Page {
    pub(crate) items: Vec<Stored>,
    pub(crate) revision: u64,
    /// The next key's rest behind the prefix, when there is more.
    more: Option<String>,
    remaining: Option<u64>,
}

impl Page {
    pub(crate) fn more(&self) -> Option<&str> {
        self.more.as_deref()
    }
}

/// Which state a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Now,
    Exactly(u64),
}

/// Reads what `selection` chooses, from `start` (behind the prefix) on, at most `limit` objects (0: all).
pub(crate) async fn page(
    api: &Api,
    selection: &Selection,
    at: At,
    start: &str,
    limit: usize,
) -> Result<Page> {
    let prefix = selection.prefix();
    let span = match selection.only_key() {
        Some(key) => Span::key(key),
        None => {
            let mut span = Span::prefix(prefix.to_owned());
            if !start.is_empty() {
                span.start = Bytes::from(format!("{prefix}{start}"));
            }
            span
        }
    };
    let mut found = Page {
        items: Vec::new(),
        revision: 0,
        more: None,
        remaining: None,
    };
    let mut next = span.clone();
    let mut seen = 0;
    loop {
        let mut range = Range::of(next.clone()).limit(PAGE);
        if limit > 0 && selection.is_by_key() {
            range = range.limit(limit);
        }
        range.count = limit > 0 && found.revision == 0 && selection.is_by_key();
        match at {
            At::Exactly(revision) => range = range.at(revision),
            // Later pages show what the first one saw.
            At::Now if found.revision > 0 => range = range.at(found.revision),
            At::Now => {}
        }
        let answer = api.store.range(range).await?;
        if found.revision == 0 {
            found.revision = match at {
                At::Exactly(revision) => revision,
                At::Now => answer.revision,
            };
        }
        let count = answer.count;
        let last = answer.kvs.last().map(|kv| kv.key.clone());
        let mut full = false;
        for kv in answer.kvs {
            seen += 1;
            let key = kv.key.clone();
            let stored = api.opened(kv)?;
            if !selection.chooses(&stored.value)? {
                continue;
            }
            found.items.push(stored);
            if limit > 0 && found.items.len() == limit {
                full = true;
                let is_last = Some(&key) == last.as_ref() && !answer.more;
                if !is_last {
                    let rest = String::from_utf8_lossy(&key[prefix.len()..]);
                    // The first key after this one.
                    found.more = Some(format!("{rest}\0"));
                }
                break;
            }
        }
        if let Some(count) = count.filter(|_| found.more.is_some()) {
            found.remaining = Some(count.saturating_sub(seen));
        }
        let (Some(last), true, false) = (last, answer.more, full) else {
            return Ok(found);
        };
        let mut after = last.to_vec();
        after.push(0);
        next = Span {
            start: after.into(),
            end: span.end.clone(),
        };
    }
}

pub(crate) async fn list(api: &Arc<Api>, call: &Call, target: &Target) -> Result<Reply> {
    let selection = Selection::of(call, target)?;
    let limit = call.query.number("limit")?.unwrap_or(0);
    let limit = usize::try_from(limit).unwrap_or(0);
    let asked = revision(call, "resourceVersion")?;
    let rule = call.query.get("resourceVersionMatch");
    let token = call.query.get("continue");
    check_list(call, rule, token)?;
    let (at, start) = if token.is_empty() {
        match (rule, asked) {
            ("Exact", Some(revision)) => (At::Exactly(revision), String::new()),
            (_, Some(revision)) if revision > 0 && rule.is_empty() && limit > 0 => {
                (At::Exactly(revision), String::new())
            }
            (_, asked) => {
                if let Some(asked) = asked {
                    let current = api.store.revision().await?;
                    if asked > current {
                        return Err(Status::future_revision(asked, current));
                    }
                }
                (At::Now, String::new())
            }
        }
    } else {
        let token = Continue::decode(token)?;
        let at = u64::try_from(token.rv).map_or(At::Now, At::Exactly);
        (at, token.start)
    };
    let found = match page(api, &selection, at, &start, limit).await {
        Err(status) if status.code == StatusCode::GONE && !token.is_empty() => {
            return Err(Status::continue_expired(&Continue::encode(-1, &start)));
        }
        other => other?,
    };
    let mut metadata = json!({"resourceVersion": found.revision.to_string()});
    if let Some(start) = &found.more {
        let revision = i64::try_from(found.revision).unwrap_or(i64::MAX);
        metadata["continue"] = Continue::encode(revision, start).into();
        if let Some(remaining) = found.remaining.filter(|n| *n > 0) {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    render(api, call, target, &found.items, &metadata)
}

fn check_list(call: &Call, rule: &str, token: &str) -> Result<()> {
    let faulty = |why: String| {
        Err(Status::unprocessable(format!(
            "ListOptions.meta.k8s.io \"\" is invalid: {why}"
        )))
    };
    let asked = call.query.get("resourceVersion");
    match rule {
        "" | "Exact" | "NotOlderThan" => {}
        other => {
            return faulty(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
            ));
        }
    }
    if !rule.is_empty() && asked.is_empty() {
        return faulty("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided".into());
    }
    if rule == "Exact" && asked == "0" {
        return faulty("resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"".into());
    }
    if !rule.is_empty() && !token.is_empty() {
        return faulty("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided".into());
    }
    if !asked.is_empty() && asked != "0" && !token.is_empty() {
        return Err(Status::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    if !call.query.get("sendInitialEvents").is_empty() {
        return faulty(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list".into(),
        );
    }
    Ok(())
}

/// A list in the form that was asked for.
pub(crate) fn render(
    api: &Api,
    call: &Call,
    target: &Target,
    items: &[Stored],
    metadata: &Value,
) -> Result<Reply> {
    let kind = &target.kind;
    match call.form {
        Form::Table => {
            let mut rows = Vec::with_capacity(items.len());
            for item in items {
                let object = api.document(kind, item)?;
                rows.push(table::row(kind, &object, call.query.get("includeObject"))?);
            }
            let document = json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "columnDefinitions": table::columns(kind), "rows": rows,
            });
            Ok(reply::json(StatusCode::OK, &document))
        }
        Form::Partial => {
            let mut partial = Vec::with_capacity(items.len());
            for item in items {
                let object = api.document(kind, item)?;
                partial.push(table::partial(&object));
            }
            let document = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": partial,
            });
            Ok(reply::json(StatusCode::OK, &document))
        }
        Form::Plain | Form::Aggregated | Form::OpenApi => {
            let size: usize = items.iter().map(|i| i.value.len() + 40).sum();
            let mut out = Vec::with_capacity(size + 256);
            let head = json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": metadata});
            serde_json::to_writer(&mut out, &head).map_err(Status::internal)?;
            out.pop();
            out.extend(b",\"items\":[");
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                if api.needs_conversion(kind, &item.value) {
                    let object = api.document(kind, item)?;
                    serde_json::to_writer(&mut out, &object).map_err(Status::internal)?;
                } else if kind.custom.is_some() {
                    object::write_whole(&mut out, &item.value, item.revision)?;
                } else {
                    object::write_item(&mut out, &item.value, item.revision)?;
                }
            }
            out.extend(b"]}");
            Ok(reply::bytes(StatusCode::OK, "application/json", out))
        }
    }
}
