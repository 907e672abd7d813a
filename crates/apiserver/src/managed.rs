//! Who manages which field, and server-side apply: crate `kube-api` decides, this writes.

use crate::reply::{self, Reply};
use crate::request::{Call, Target};
use crate::scale;
use crate::status::{Fault, Result, Status};
use crate::write::{self, Change};
use crate::{Api, object, rules};
use gantry_kube_api::apply::{self, Refused, Request};
use gantry_kube_api::decode::{self, Format};
use gantry_kube_api::schema::Schema;
use http::StatusCode;
use serde_json::Value;
use std::sync::Arc;

/// The media type of an apply.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

/// What `kube-api` wants to know of a request; the strings live as long as the call.
struct Who {
    manager: String,
    api_version: String,
    time: String,
}

impl Who {
    fn of(call: &Call, target: &Target) -> Self {
        Self {
            manager: call.manager(),
            api_version: target.kind.api_version(),
            time: object::now(),
        }
    }
    fn request<'a>(&'a self, target: &'a Target) -> Request<'a> {
        Request {
            manager: &self.manager,
            subresource: &target.subresource,
            api_version: &self.api_version,
            time: &self.time,
            has_status: target.kind.has("status"),
        }
    }
}

fn types(target: &Target) -> Option<&Schema> {
    if let Some(custom) = &target.kind.custom {
        return Some(&custom.types);
    }
    Schema::of(&target.kind.api_version(), &target.kind.kind)
}

/// Notes down who made the fields of a new object.
pub(crate) fn created(call: &Call, target: &Target, object: &mut Value) -> Result<()> {
    // An apply has noted them itself.
    if call.content_type() != APPLY {
        changed(call, target, &Value::Null, object)?;
    }
    Ok(())
}

/// Notes down who changed what.
pub(crate) fn changed(call: &Call, target: &Target, old: &Value, new: &mut Value) -> Result<()> {
    if let Some(types) = types(target) {
        let who = Who::of(call, target);
        *new = apply::update(types, old, new.take(), &who.request(target));
    }
    Ok(())
}

/// The live object with a configuration applied.
pub(crate) fn applied(
    call: &Call,
    target: &Target,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Value> {
    let types = types(target).ok_or_else(|| {
        Status::unsupported_media("application/json-patch+json, application/merge-patch+json")
    })?;
    let who = Who::of(call, target);
    apply::apply(types, live, config, &who.request(target), force).map_err(|refused| {
        let message = refused.to_string();
        match refused {
            Refused::Bad(_) => Status::bad_request(message),
            Refused::Untyped(_) => Status::untyped(message),
            Refused::Conflicts(conflicts) => {
                let causes = conflicts
                    .into_iter()
                    .map(|c| (format!("conflict with {}", c.manager), c.field))
                    .collect();
                Status::apply_conflict(message, causes)
            }
        }
    })
}

pub(crate) async fn apply(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    if call.query.get("fieldManager").is_empty() {
        let fault = Fault::required("fieldManager", "is required for apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[fault]));
    }
    let decoded = decode::read(body, Format::Yaml)
        .map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
    let mut config = decoded.object;
    if !config.is_object() {
        return Err(Status::bad_request(
            "error decoding YAML: an object was expected",
        ));
    }
    write::belongs(target, &mut config)?;
    let mut warnings = Vec::new();
    rules::prune(
        call,
        &target.kind,
        &mut config,
        decoded.problems,
        &mut warnings,
    )?;
    let force = call.query.flag("force");
    let found = api
        .find(&target.kind, &target.namespace, &target.name)
        .await?;
    let (stored, status) = if found.is_none() && target.subresource.is_empty() {
        let made = applied(call, target, &Value::Null, &config, force)?;
        let stored = write::create_object(api, call, target, made, &mut warnings).await?;
        (stored, StatusCode::CREATED)
    } else {
        let change = Change::Applied {
            applied: config,
            force,
        };
        let (stored, _) = write::change_object(api, call, target, &change, &mut warnings).await?;
        (stored, StatusCode::OK)
    };
    let mut reply = if target.subresource == "scale" {
        scale::answer(api, call, target, &stored)?
    } else {
        api.answer(call, target, status, &stored)?
    };
    reply::warn(&mut reply, &warnings);
    Ok(reply)
}
