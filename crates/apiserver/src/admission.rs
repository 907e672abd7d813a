//! What this server adds to, or refuses of, an object because of other objects.

use crate::object::text;
use crate::request::{Call, Target};
use crate::status::{Result, Status};
use crate::write::put;
use crate::{Api, Extra, auth, rbac};
use gantry_store::{Compare, Is};
use serde_json::{Value, json};
use std::sync::Arc;

/// Before a new object is defaulted and validated. What it answers with becomes part of the transaction.
pub(crate) async fn create(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    object: &mut Value,
    _warnings: &mut Vec<String>,
) -> Result<Extra> {
    let kind = &target.kind;
    let mut extra = Extra::default();
    if kind.namespaced {
        let name = &target.namespace;
        let Some(namespace) = api.namespace(name).await? else {
            return Err(Status::not_found("", "namespaces", name));
        };
        if namespace.ending {
            let object_name = text(object, "/metadata/name");
            let why = format!(
                "unable to create new content in namespace {name} because it is being terminated"
            );
            let refusal = Status::forbidden(&kind.group, &kind.plural, object_name, &why);
            let cause = format!("namespace {name} is being terminated");
            return Err(refusal.with_cause("NamespaceTerminating", &cause, "metadata.namespace"));
        }
        // It must still be the same namespace when the object is written.
        extra.when.push(Compare {
            key: format!("/registry/core/namespaces/{name}").into(),
            is: Is::CreateRevision(namespace.created),
        });
    }
    auth::escalation(api, &call.user, target, object).await?;
    fresh_status(target, object);
    match (&kind.group[..], &kind.plural[..]) {
        ("", "namespaces") => {
            let name = text(object, "/metadata/name").to_owned();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
            object["spec"] = json!({"finalizers": ["kubernetes"]});
        }
        ("", "secrets") => encode_string_data(object)?,
        ("apiextensions.k8s.io", "customresourcedefinitions") => crate::custom::complete(object),
        ("", "pods") => crate::pods::admit(api, target, object).await?,
        _ => {}
    }
    Ok(extra)
}

/// A new object has no status but what its kind begins with.
fn fresh_status(target: &Target, object: &mut Value) {
    let kind = &target.kind;
    if !kind.has("status") || kind.is("", "nodes") {
        return;
    }
    let status = match (&kind.group[..], &kind.plural[..]) {
        ("", "pods" | "persistentvolumes" | "persistentvolumeclaims") => {
            Some(json!({"phase": "Pending"}))
        }
        ("", "namespaces") => Some(json!({"phase": "Active"})),
        ("", "services") | ("networking.k8s.io", "ingresses") => Some(json!({"loadBalancer": {}})),
        ("apps", "statefulsets" | "replicasets") | ("", "replicationcontrollers") => {
            Some(json!({"replicas": 0}))
        }
        _ if kind.custom.is_some() => None,
        _ => Some(json!({})),
    };
    put(object, "status", status);
}

/// `stringData` is for writing only: it becomes `data`.
fn encode_string_data(object: &mut Value) -> Result<()> {
    use base64::Engine;
    let Some(plain) = object
        .as_object_mut()
        .and_then(|o| o.shift_remove("stringData"))
    else {
        return Ok(());
    };
    for (name, value) in plain.as_object().into_iter().flatten() {
        let Some(value) = value.as_str() else {
            return Err(Status::bad_request(
                "Secret in version \"v1\" cannot be handled as a Secret: json: cannot unmarshal into Go struct field Secret.stringData of type string",
            ));
        };
        object["data"][name] = base64::prelude::BASE64_STANDARD.encode(value).into();
    }
    Ok(())
}

/// The same for a change.
pub(crate) async fn update(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    old: &Value,
    new: &mut Value,
) -> Result<Extra> {
    let kind = &target.kind;
    if kind.group == rbac::GROUP && !granted_before(old, new) {
        auth::escalation(api, &call.user, target, new).await?;
    }
    match (&kind.group[..], &kind.plural[..]) {
        ("", "namespaces") => {
            let name = text(old, "/metadata/name").to_owned();
            new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        }
        ("", "secrets") => encode_string_data(new)?,
        _ => {}
    }
    Ok(Extra::default())
}

/// Whether a role or binding hands out nothing that it did not hand out before.
fn granted_before(old: &Value, new: &Value) -> bool {
    ["rules", "subjects", "roleRef", "aggregationRule"]
        .iter()
        .all(|field| old.get(field) == new.get(field))
}
