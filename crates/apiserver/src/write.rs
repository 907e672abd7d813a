//! Create, update, patch: from bytes to a compare-and-swap in the store.
//!
//! ```text
//! decode → prune → (admit) → default → validate → swap at the revision that was read ─┐
//!    ▲                                                                                │ somebody was faster, and the
//!    └────────────────────────────────────────────────────────────────────────────────┘ client named no revision
//! ```

use crate::kinds::Kind;
use crate::object::{self, metadata, text};
use crate::reply::{self, Reply};
use crate::request::{Call, Target};
use crate::status::{Result, Status};
use crate::{Api, Stored, admission, delete, managed, protobuf, rules, scale};
use bytes::Bytes;
use gantry_kube_api::decode::{self, Format};
use gantry_kube_api::patch;
use gantry_kube_api::schema::Schema;
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Tries of a write whose client does not care which revision it replaces.
const TRIES: usize = 30;
/// Tries to find a free name behind a generateName.
const NAMES: usize = 8;
const ACCEPTED_BODIES: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const ACCEPTED_PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, application/strategic-merge-patch+json";

/// Reads an object that belongs where it is sent. What is not said is filled in from the address, what is unknown is taken out.
pub(crate) fn decode(
    call: &Call,
    target: &Target,
    body: &[u8],
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let format = match call.content_type() {
        "application/json" | "" | "*/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        "application/vnd.kubernetes.protobuf" if target.kind.custom.is_none() => {
            let mut object = protobuf::decode(body)?;
            belongs(target, &mut object)?;
            return Ok(object);
        }
        _ => return Err(Status::unsupported_media(ACCEPTED_BODIES)),
    };
    let read = decode::read(body, format).map_err(|why| {
        let kind = &target.kind.kind;
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why}"
        ))
    })?;
    let mut object = read.object;
    if !object.is_object() {
        return Err(Status::bad_request(
            "couldn't get version/kind; json parse error: an object was expected",
        ));
    }
    belongs(target, &mut object)?;
    rules::prune(call, &target.kind, &mut object, read.problems, warnings)?;
    Ok(object)
}

/// Whether kind, version, namespace and name of the document are those of the address.
pub(crate) fn belongs(target: &Target, object: &mut Value) -> Result<()> {
    let kind = &target.kind;
    let (api_version, name) = (kind.api_version(), kind.kind.clone());
    for (field, expected) in [("apiVersion", &api_version), ("kind", &name)] {
        match object.get(field).map(|v| v.as_str()) {
            None | Some(Some("")) => object[field] = expected.as_str().into(),
            Some(Some(found)) if found == expected => {}
            Some(Some(found)) if field == "apiVersion" => {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({found}) does not match the expected API version ({expected})"
                )));
            }
            Some(Some(found)) => {
                return Err(Status::bad_request(format!(
                    "{name} in version {:?} cannot be handled as a {name}: no kind {found:?} is registered for version {api_version:?}",
                    kind.version
                )));
            }
            Some(None) => {
                return Err(Status::bad_request(format!(
                    "couldn't get version/kind; json parse error: {field} must be a string"
                )));
            }
        }
    }
    match &object["metadata"] {
        Value::Null | Value::Object(_) => {}
        _ => {
            return Err(Status::bad_request(format!(
                "{name} in version {:?} cannot be handled as a {name}: json: cannot unmarshal into Go struct field {name}.metadata of type v1.ObjectMeta",
                kind.version
            )));
        }
    }
    let namespace = text(object, "/metadata/namespace").to_owned();
    if kind.namespaced {
        if namespace.is_empty() {
            metadata(object).insert("namespace".into(), target.namespace.clone().into());
        } else if namespace != target.namespace {
            return Err(Status::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({namespace} != {})",
                target.namespace
            )));
        }
    } else if !namespace.is_empty() {
        metadata(object).shift_remove("namespace");
    }
    if !target.name.is_empty() {
        let found = text(object, "/metadata/name").to_owned();
        if found.is_empty() {
            metadata(object).insert("name".into(), target.name.clone().into());
        } else if found != target.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({found}) does not match the name on the URL ({})",
                target.name
            )));
        }
    }
    Ok(())
}

pub(crate) async fn create(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let mut warnings = Vec::new();
    let object = decode(call, target, body, &mut warnings)?;
    let stored = create_object(api, call, target, object, &mut warnings).await?;
    let mut reply = api.answer(call, target, StatusCode::CREATED, &stored)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

/// The whole of a creation, for the face and for parts of this server.
pub(crate) async fn create_object(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    mut object: Value,
    warnings: &mut Vec<String>,
) -> Result<Stored> {
    let kind = &target.kind;
    let fields = metadata(&mut object);
    if fields
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty())
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for name in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "uid",
        "creationTimestamp",
        "generation",
    ] {
        fields.shift_remove(name);
    }
    let generates = text(&object, "/metadata/name").is_empty()
        && !text(&object, "/metadata/generateName").is_empty();
    let dry = call.dry_run()?;
    for attempt in 1.. {
        let mut fresh = object.clone();
        let fields = metadata(&mut fresh);
        if generates {
            let base = fields["generateName"].as_str().unwrap_or_default();
            let base: String = base.chars().take(58).collect();
            let name = format!("{base}{}", object::suffix()?);
            fields.insert("name".into(), name.into());
        }
        fields.insert("uid".into(), object::uid()?.into());
        fields.insert("creationTimestamp".into(), object::now().into());
        if rules::has_generation(kind) {
            fields.insert("generation".into(), 1.into());
        }
        let mut extra = admission::create(api, call, target, &mut fresh, warnings).await?;
        rules::default(kind, &mut fresh);
        tidy(&mut fresh);
        rules::validate(target, &fresh, None)?;
        managed::created(call, target, &mut fresh)?;
        let name = text(&fresh, "/metadata/name").to_owned();
        match api
            .insert(kind, &target.namespace, &name, &fresh, &mut extra, dry)
            .await
        {
            Ok(Some(stored)) => return Ok(stored),
            Ok(None) if generates && attempt < NAMES => {}
            Ok(None) => return Err(Status::already_exists(&kind.group, &kind.plural, &name)),
            Err(status) => return Err(status),
        }
    }
    unreachable!("the loop ends by an answer")
}

pub(crate) async fn update(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let mut warnings = Vec::new();
    let change = if target.subresource == "scale" {
        Change::Scale(scale::decode(call, target, body)?)
    } else {
        Change::Replace(decode(call, target, body, &mut warnings)?)
    };
    let (stored, _) = change_object(api, call, target, &change, &mut warnings).await?;
    let mut reply = scale::answer(api, call, target, &stored)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

pub(crate) async fn patch(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let mut warnings = Vec::new();
    let bad = |e: serde_json::Error| Status::bad_request(format!("error decoding patch: {e}"));
    let change = match call.content_type() {
        "application/json-patch+json" => Change::Json(serde_json::from_slice(body).map_err(bad)?),
        "application/merge-patch+json" => Change::Merge(serde_json::from_slice(body).map_err(bad)?),
        "application/strategic-merge-patch+json" if target.kind.custom.is_none() => {
            Change::Strategic(serde_json::from_slice(body).map_err(bad)?)
        }
        managed::APPLY => return managed::apply(api, call, target, body).await,
        _ => return Err(Status::unsupported_media(ACCEPTED_PATCHES)),
    };
    let (stored, _) = change_object(api, call, target, &change, &mut warnings).await?;
    let mut reply = scale::answer(api, call, target, &stored)?;
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}

/// How an object that is there becomes another.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Replace(Value),
    Json(Value),
    Merge(Value),
    Strategic(Value),
    /// The wanted replicas, and the revision that the client saw.
    Scale(Value),
    /// The result of server-side apply with the managed fields that it has then.
    Applied {
        applied: Value,
        force: bool,
    },
}

/// Changes an object until it is written. `true`: it was written, `false`: nothing was different, or it was a trial.
pub(crate) async fn change_object(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    change: &Change,
    warnings: &mut Vec<String>,
) -> Result<(Stored, bool)> {
    let kind = &target.kind;
    let dry = call.dry_run()?;
    for _ in 0..TRIES {
        let stored = api.need(target).await?;
        let old = api.document(kind, &stored)?;
        let mut said = Vec::new();
        let new = changed(call, target, change, &old, &mut said)?;
        let named = text(&new, "/metadata/resourceVersion");
        if !named.is_empty() && named != text(&old, "/metadata/resourceVersion") {
            return Err(Status::modified(&kind.group, &kind.plural, &target.name));
        }
        let mut new = new;
        keep(target, &old, &mut new)?;
        let mut extra = admission::update(api, call, target, &old, &mut new).await?;
        rules::default(kind, &mut new);
        tidy(&mut new);
        rules::validate(target, &new, Some(&old))?;
        if !matches!(change, Change::Applied { .. }) {
            managed::changed(call, target, &old, &mut new)?;
        }
        if same(&old, &new) {
            warnings.extend(said);
            return Ok((stored, false));
        }
        if rules::has_generation(kind) && counts(kind, &old, &new) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata(&mut new).insert("generation".into(), generation.into());
        }
        if delete::is_over(kind, &new) {
            // The last finalizer went: this write is the removal.
            if dry
                || api
                    .remove(kind, &target.namespace, &target.name, &stored)
                    .await?
            {
                warnings.extend(said);
                return Ok((api.rendered(kind, &new, stored.revision)?, true));
            }
            continue;
        }
        let written = api
            .replace(
                kind,
                &target.namespace,
                &target.name,
                &new,
                &stored,
                &mut extra,
                dry,
            )
            .await?;
        if let Some(stored) = written {
            warnings.extend(said);
            return Ok((stored, !dry));
        }
        if matches!(change, Change::Replace(object) if !text(object, "/metadata/resourceVersion").is_empty())
        {
            break;
        }
    }
    Err(Status::modified(&kind.group, &kind.plural, &target.name))
}

/// The document that the change makes of `old`.
fn changed(
    call: &Call,
    target: &Target,
    change: &Change,
    old: &Value,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let kind = &target.kind;
    let on_scale = target.subresource == "scale";
    let base = || {
        if on_scale {
            scale::of(kind, old)
        } else {
            Ok(old.clone())
        }
    };
    let refused = |e: patch::Refused| match e {
        patch::Refused::Bad(why) => Status::bad_request(why),
        patch::Refused::Unprocessable(why) => Status::unprocessable(why),
    };
    let patched = match change {
        Change::Replace(new) => {
            let mut new = new.clone();
            if text(&new, "/metadata/resourceVersion").is_empty() {
                metadata(&mut new).shift_remove("resourceVersion");
            }
            let uid = text(&new, "/metadata/uid");
            if !uid.is_empty() && uid != text(old, "/metadata/uid") {
                return Err(uid_conflict(
                    kind,
                    &target.name,
                    uid,
                    text(old, "/metadata/uid"),
                ));
            }
            return Ok(new);
        }
        Change::Scale(wanted) => return scale::set(kind, &target.name, old, wanted),
        Change::Applied { applied, force } => {
            return managed::applied(call, target, old, applied, *force);
        }
        Change::Json(operations) => patch::json(base()?, operations).map_err(refused)?,
        Change::Merge(with) => {
            if !with.is_object() {
                return Err(Status::bad_request(
                    "error decoding patch: an object was expected",
                ));
            }
            patch::merge(base()?, with.clone())
        }
        Change::Strategic(with) => {
            let (api_version, name) = if on_scale {
                ("autoscaling/v1".to_owned(), "Scale")
            } else {
                (kind.api_version(), &kind.kind[..])
            };
            let schema = Schema::of(&api_version, name)
                .ok_or_else(|| Status::unsupported_media(ACCEPTED_PATCHES))?;
            patch::strategic(base()?, with.clone(), schema).map_err(refused)?
        }
    };
    if on_scale {
        return scale::set(kind, &target.name, old, &patched);
    }
    let mut patched = patched;
    if !patched.is_object() {
        return Err(Status::unprocessable(
            "the patched document is not an object",
        ));
    }
    belongs(target, &mut patched)?;
    let uid = text(&patched, "/metadata/uid");
    if !uid.is_empty() && uid != text(old, "/metadata/uid") {
        return Err(uid_conflict(
            kind,
            &target.name,
            uid,
            text(old, "/metadata/uid"),
        ));
    }
    rules::prune(call, kind, &mut patched, Vec::new(), warnings)?;
    Ok(patched)
}

pub(crate) fn uid_conflict(kind: &Kind, name: &str, asked: &str, found: &str) -> Status {
    Status::conflict(
        &kind.group,
        &kind.plural,
        name,
        &format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"),
    )
}

/// Puts back what this request may not change.
fn keep(target: &Target, old: &Value, new: &mut Value) -> Result<()> {
    let kind = &target.kind;
    let empty = Map::new();
    let before = old["metadata"].as_object().unwrap_or(&empty);
    for name in ["kind", "apiVersion"] {
        new[name] = old[name].clone();
    }
    let fields = metadata(new);
    for name in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ] {
        match before.get(name) {
            Some(value) => fields.insert(name.into(), value.clone()),
            None => fields.shift_remove(name),
        };
    }
    if fields.get("managedFields").is_none() && before.contains_key("managedFields") {
        fields.insert("managedFields".into(), before["managedFields"].clone());
    }
    // An object that is being deleted gets no new finalizers.
    if before.contains_key("deletionTimestamp") {
        let list = |of: Option<&Value>| of.and_then(Value::as_array).cloned().unwrap_or_default();
        let had = list(before.get("finalizers"));
        let added: Vec<_> = list(fields.get("finalizers"))
            .into_iter()
            .filter(|f| !had.contains(f))
            .collect();
        if !added.is_empty() {
            let fault = crate::status::Fault::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                    Value::Array(added)
                ),
            );
            return Err(Status::invalid(
                &kind.group,
                &kind.kind,
                &target.name,
                &[fault],
            ));
        }
    }
    match &target.subresource[..] {
        "status" => {
            let status = new.get("status").cloned();
            let managed = new["metadata"].get("managedFields").cloned();
            *new = old.clone();
            if let Some(managed) = managed {
                metadata(new).insert("managedFields".into(), managed);
            }
            put(new, "status", status);
        }
        "" if kind.has("status") => put(new, "status", old.get("status").cloned()),
        _ => {}
    }
    if kind.is("", "namespaces") && target.subresource.is_empty() {
        let finalizers = old.pointer("/spec/finalizers").cloned();
        let mut spec = new
            .get("spec")
            .cloned()
            .filter(Value::is_object)
            .unwrap_or(json!({}));
        put(&mut spec, "finalizers", finalizers);
        new["spec"] = spec;
    }
    Ok(())
}

pub(crate) fn put(object: &mut Value, name: &str, value: Option<Value>) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => fields.insert(name.to_owned(), value),
        None => fields.shift_remove(name),
    };
}

/// Maps and lists of the metadata that became empty go, as they do in Kubernetes' own structs.
fn tidy(object: &mut Value) {
    let fields = metadata(object);
    for name in ["annotations", "labels", "finalizers", "ownerReferences"] {
        let empty = match fields.get(name) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            fields.shift_remove(name);
        }
    }
}

/// Whether anything but the books changed: a manager's time alone is no change.
fn same(old: &Value, new: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(Value::Array(managed)) = object.pointer_mut("/metadata/managedFields") {
            for entry in managed {
                put(entry, "time", None);
            }
        }
        object
    };
    without(old) == without(new)
}

/// Whether what is wanted changed.
fn counts(kind: &Kind, old: &Value, new: &Value) -> bool {
    let wanted = |object: &Value| -> Vec<(String, Value)> {
        let mut fields: Vec<_> = object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !matches!(&name[..], "metadata" | "status"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields
    };
    let annotations = |object: &Value| object.pointer("/metadata/annotations").cloned();
    wanted(old) != wanted(new)
        || (kind.is("apps", "deployments") && annotations(old) != annotations(new))
}

/// A stored object in the version of its kind, as bytes that are kept.
pub(crate) fn kept(api: &Api, kind: &Kind, object: &Value) -> Result<Bytes> {
    let object = api.to_stored(kind, object.clone())?;
    object::encode(&object)
}
