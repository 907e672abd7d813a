//! Delete, and delete of many: preconditions, grace, finalizers, propagation.

use crate::kinds::Kind;
use crate::object::{self, metadata, text};
use crate::read::{self, At};
use crate::reply::{self, Reply};
use crate::request::{self, Call, Form, Target};
use crate::select::Selection;
use crate::status::{Result, Status};
use crate::write::uid_conflict;
use crate::{Api, Extra, Stored};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

const TRIES: usize = 30;
const PAGE: usize = 500;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// What a pod gets that does not say itself.
const POD_GRACE: i64 = 30;

/// What a client says about a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) grace: Option<i64>,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    /// `Background`, `Foreground`, `Orphan`, or nothing said.
    pub(crate) propagation: String,
    pub(crate) dry: bool,
}

impl Options {
    fn read(call: &Call, body: &[u8]) -> Result<Self> {
        let mut options = Self {
            dry: call.dry_run()?,
            propagation: call.query.get("propagationPolicy").to_owned(),
            ..Self::default()
        };
        let grace = call.query.get("gracePeriodSeconds");
        if !grace.is_empty() {
            options.grace = Some(grace.parse().map_err(|_| {
                Status::bad_request(format!("invalid gracePeriodSeconds {grace:?}"))
            })?);
        }
        if call.query.flag("orphanDependents") {
            options.propagation = "Orphan".into();
        }
        if !body.is_empty() {
            let document = match call.content_type() {
                "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(body)?,
                _ => request::json(body)?,
            };
            options.grace = document["gracePeriodSeconds"].as_i64().or(options.grace);
            let said = text(&document, "/propagationPolicy");
            if !said.is_empty() {
                options.propagation = said.to_owned();
            }
            match document["orphanDependents"].as_bool() {
                Some(true) => options.propagation = "Orphan".into(),
                Some(false) => options.propagation = "Background".into(),
                None => {}
            }
            options.uid = text(&document, "/preconditions/uid").to_owned();
            options.resource_version = text(&document, "/preconditions/resourceVersion").to_owned();
            let dry = document["dryRun"].as_array();
            options.dry |= dry.is_some_and(|d| d.iter().any(|word| word == "All"));
        }
        match &options.propagation[..] {
            "" | "Background" | "Foreground" | "Orphan" => Ok(options),
            other => Err(Status::unprocessable(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            ))),
        }
    }
}

/// What became of it.
pub(crate) enum Deleted {
    Gone(Value),
    /// Marked, and waiting for somebody.
    Marked(Stored),
}

pub(crate) async fn delete(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let options = Options::read(call, body)?;
    let kind = &target.kind;
    match delete_object(api, target, &options).await? {
        Deleted::Marked(stored) => api.answer(call, target, StatusCode::OK, &stored),
        // Kinds that can end gracefully are answered with themselves, the others with a Status.
        Deleted::Gone(object) if kind.is("", "pods") => Ok(reply::json(StatusCode::OK, &object)),
        Deleted::Gone(object) => {
            let mut details = json!({"name": target.name});
            if !kind.group.is_empty() {
                details["group"] = kind.group.clone().into();
            }
            details["kind"] = kind.plural.clone().into();
            details["uid"] = object["metadata"]["uid"].clone();
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            Ok(reply::json(StatusCode::OK, &status))
        }
    }
}

/// The whole of a deletion, for the face and for parts of this server.
pub(crate) async fn delete_object(
    api: &Arc<Api>,
    target: &Target,
    options: &Options,
) -> Result<Deleted> {
    let kind = &target.kind;
    for _ in 0..TRIES {
        let stored = api.need(target).await?;
        let old = api.document(kind, &stored)?;
        check(kind, &target.name, options, &old)?;
        let mut new = old.clone();
        let grace = mark(kind, options, &old, &mut new);
        if grace == 0 && is_over(kind, &new) {
            if options.dry
                || api
                    .remove(kind, &target.namespace, &target.name, &stored)
                    .await?
            {
                return Ok(Deleted::Gone(new));
            }
            continue;
        }
        if new == old {
            return Ok(Deleted::Marked(stored));
        }
        let mut extra = Extra::default();
        let written = api
            .replace(
                kind,
                &target.namespace,
                &target.name,
                &new,
                &stored,
                &mut extra,
                options.dry,
            )
            .await?;
        if let Some(stored) = written {
            return Ok(Deleted::Marked(stored));
        }
        if !options.resource_version.is_empty() {
            break;
        }
    }
    Err(Status::modified(&kind.group, &kind.plural, &target.name))
}

fn check(kind: &Kind, name: &str, options: &Options, old: &Value) -> Result<()> {
    let uid = text(old, "/metadata/uid");
    if !options.uid.is_empty() && options.uid != uid {
        return Err(uid_conflict(kind, name, &options.uid, uid));
    }
    let revision = text(old, "/metadata/resourceVersion");
    if !options.resource_version.is_empty() && options.resource_version != revision {
        let asked = &options.resource_version;
        return Err(Status::conflict(
            &kind.group,
            &kind.plural,
            name,
            &format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {revision}"
            ),
        ));
    }
    Ok(())
}

/// Writes down that the object shall go; answers with the seconds that it still has.
fn mark(kind: &Kind, options: &Options, old: &Value, new: &mut Value) -> i64 {
    let mut finalizers: Vec<Value> = old["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let wanted = match &options.propagation[..] {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    if !options.propagation.is_empty() {
        finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
        finalizers.extend(wanted.map(Value::from));
    }
    let fields = metadata(new);
    if finalizers.is_empty() {
        fields.shift_remove("finalizers");
    } else {
        fields.insert("finalizers".into(), Value::Array(finalizers));
    }
    let grace = if kind.is("", "pods") {
        pod_grace(options, old)
    } else {
        0
    };
    let had = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let marked = old["metadata"].get("deletionTimestamp").is_some();
    if !marked || had.is_some_and(|had| grace < had) {
        let when = jiff::Timestamp::now()
            .checked_add(jiff::SignedDuration::from_secs(grace))
            .unwrap_or_else(|_| jiff::Timestamp::now());
        fields.insert("deletionTimestamp".into(), object::at(when).into());
        fields.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if kind.is("", "namespaces") {
        new["status"]["phase"] = "Terminating".into();
    }
    grace
}

fn pod_grace(options: &Options, pod: &Value) -> i64 {
    // Nobody runs it, or it has ended: there is nothing to wait for.
    if text(pod, "/spec/nodeName").is_empty()
        || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
    {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    options.grace.or(own).unwrap_or(POD_GRACE).max(0)
}

/// Whether an object that is marked waits for nobody any more.
pub(crate) fn is_over(kind: &Kind, object: &Value) -> bool {
    let meta = &object["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    meta.get("deletionTimestamp").is_some()
        && none(&meta["finalizers"])
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && (!kind.is("", "namespaces") || none(&object["spec"]["finalizers"]))
}

pub(crate) async fn delete_many(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let options = Options::read(call, body)?;
    let selection = Selection::of(call, target)?;
    let mut items = Vec::new();
    let mut start = String::new();
    let mut at = At::Now;
    let revision = loop {
        let found = read::page(api, &selection, at, &start, PAGE).await?;
        at = At::Exactly(found.revision);
        for item in &found.items {
            let (namespace, name) = names(item)?;
            let one = Target {
                verb: "delete",
                namespace,
                name,
                ..target.clone()
            };
            match delete_object(api, &one, &options).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        let more = found.more().map(str::to_owned);
        items.extend(found.items);
        match more {
            Some(more) => start = more,
            None => break found.revision,
        }
    };
    let metadata = json!({"resourceVersion": revision.to_string()});
    let plain = Call {
        form: Form::Plain,
        ..call.clone()
    };
    read::render(api, &plain, target, &items, &metadata)
}

fn names(item: &Stored) -> Result<(String, String)> {
    let head = object::head(&item.value)?;
    Ok((
        head.metadata.namespace.into_owned(),
        head.metadata.name.into_owned(),
    ))
}
