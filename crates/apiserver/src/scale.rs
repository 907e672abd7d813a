//! The `scale` subresource: replicas of anything that has them, as one small document.

use crate::kinds::Kind;
use crate::object::text;
use crate::reply::{self, Reply};
use crate::request::{self, Call, Target};
use crate::status::{Fault, Result, Status};
use crate::{Api, Stored};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Where replicas, their number now and the selector are: JSON pointers.
fn paths(kind: &Kind) -> (String, String, String) {
    match kind.custom.as_ref().and_then(|c| c.scale.clone()) {
        Some(paths) => paths,
        None => (
            "/spec/replicas".into(),
            "/status/replicas".into(),
            "/spec/selector".into(),
        ),
    }
}

/// The Scale document of an object.
pub(crate) fn of(kind: &Kind, object: &Value) -> Result<Value> {
    let (wanted, now, selector) = paths(kind);
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut kept = json!({});
    for name in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = metadata.get(name) {
            kept[name] = value.clone();
        }
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": number(&wanted)}, "status": {"replicas": number(&now)},
    });
    let selector = match object.pointer(&selector) {
        Some(Value::String(text)) => text.clone(),
        Some(selector) => selector_text(selector),
        None => String::new(),
    };
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    Ok(scale)
}

/// A label selector (or a plain map of labels) as clients type it.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    let labels = match selector.get("matchLabels") {
        Some(labels) => labels.as_object(),
        None if selector.get("matchExpressions").is_none() => selector.as_object(),
        None => None,
    };
    for (name, value) in labels.into_iter().flatten() {
        parts.push(format!("{name}={}", value.as_str().unwrap_or_default()));
    }
    parts.sort();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        let key = text(expression, "/key");
        let values: Vec<_> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        parts.push(match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

pub(crate) fn decode(call: &Call, target: &Target, body: &[u8]) -> Result<Value> {
    let scale = match call.content_type() {
        "application/json" | "" => request::json(body)?,
        "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(body)?,
        _ => return Err(Status::unsupported_media("application/json")),
    };
    let name = text(&scale, "/metadata/name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    Ok(scale)
}

/// The object with the replicas of a Scale.
pub(crate) fn set(kind: &Kind, name: &str, old: &Value, scale: &Value) -> Result<Value> {
    let (path, ..) = paths(kind);
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| {
            Status::bad_request("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal into Go struct field ScaleSpec.spec.replicas of type int32")
        })?,
    };
    if replicas < 0 {
        let fault = Fault::invalid(
            "spec.replicas",
            &replicas.to_string(),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid("autoscaling", "Scale", name, &[fault]));
    }
    let mut new = old.clone();
    let words: Vec<_> = path.split('/').skip(1).collect();
    let mut at = &mut new;
    for word in words {
        if !at[word].is_object() && !at[word].is_null() && word != "replicas" {
            break;
        }
        at = &mut at[word];
    }
    *at = replicas.into();
    let revision = text(scale, "/metadata/resourceVersion");
    if !revision.is_empty() {
        new["metadata"]["resourceVersion"] = revision.into();
    }
    Ok(new)
}

/// The answer to a write: the Scale when that was asked for, or the object.
pub(crate) fn answer(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    stored: &Stored,
) -> Result<Reply> {
    if target.subresource != "scale" {
        return api.answer(call, target, StatusCode::OK, stored);
    }
    let object = api.document(&target.kind, stored)?;
    Ok(reply::json(StatusCode::OK, &of(&target.kind, &object)?))
}
