//! Where this server asks what Kubernetes' types say: unknown fields, defaults, faults of values.

use crate::kinds::Kind;
use crate::request::{Call, Target};
use crate::status::{Fault, Result, Status};
use gantry_kube_api::schema::Schema;
use gantry_kube_api::{defaults, validate};
use serde_json::Value;

/// Kinds whose `metadata.generation` counts changes of what is wanted.
pub(crate) fn has_generation(kind: &Kind) -> bool {
    kind.custom.is_some()
        || matches!(
            (&kind.group[..], &kind.plural[..]),
            (
                "apps",
                "deployments" | "replicasets" | "statefulsets" | "daemonsets"
            ) | ("batch", _)
                | ("networking.k8s.io", _)
                | ("policy", _)
                | ("discovery.k8s.io", _)
                | ("apiextensions.k8s.io", _)
                | ("", "replicationcontrollers" | "pods")
                | ("scheduling.k8s.io", _)
        )
}

/// Takes out what the type does not have. With `fieldValidation=Strict` that is a refusal, with `Warn` (the default) a warning.
pub(crate) fn prune(
    call: &Call,
    kind: &Kind,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let unknown = match &kind.custom {
        Some(custom) => custom.prune(&kind.version, object),
        None => {
            let Some(schema) = Schema::of(&kind.api_version(), &kind.kind) else {
                return Ok(());
            };
            let unknown = schema.unknown_fields(object);
            for path in &unknown {
                remove(object, path);
            }
            unknown
        }
    };
    let unknown: Vec<_> = unknown
        .iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    match call.query.get("fieldValidation") {
        "" | "Warn" => warnings.extend(unknown),
        "Ignore" => {}
        "Strict" => {
            let all = unknown.join(", ");
            return Err(Status::bad_request(match &kind.custom {
                Some(_) => format!("strict decoding error: {all}"),
                None => format!(
                    "{} in version {:?} cannot be handled as a {}: strict decoding error: {all}",
                    kind.kind, kind.version, kind.kind
                ),
            }));
        }
        other => {
            return Err(Status::unprocessable(format!(
                "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Invalid value: {other:?}: fieldValidation parameter must be one of \"Strict\", \"Warn\", or \"Ignore\""
            )));
        }
    }
    Ok(())
}

/// Removes the field at a path such as `spec.containers[0].imagee`.
fn remove(object: &mut Value, path: &str) {
    let mut at = object;
    let mut rest = path;
    loop {
        match at {
            Value::Object(fields) => {
                // A name of a field may itself hold a dot: the longest one that is there is meant.
                if fields.shift_remove(rest).is_some() {
                    return;
                }
                let name = fields
                    .keys()
                    .filter(|name| {
                        rest.strip_prefix(name.as_str())
                            .is_some_and(|after| after.starts_with(['.', '[']))
                    })
                    .max_by_key(|name| name.len())
                    .cloned();
                let Some(name) = name else {
                    return;
                };
                rest = rest[name.len()..].trim_start_matches('.');
                at = &mut fields[&name];
            }
            Value::Array(list) => {
                let Some((index, after)) =
                    rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
                else {
                    return;
                };
                let Some(item) = index.parse().ok().and_then(|i: usize| list.get_mut(i)) else {
                    return;
                };
                rest = after.trim_start_matches('.');
                at = item;
            }
            _ => return,
        }
    }
}

/// Fills in what the client left open.
pub(crate) fn default(kind: &Kind, object: &mut Value) {
    match &kind.custom {
        Some(custom) => custom.default(object),
        None => defaults::apply(object),
    }
}

/// Faults of a new object, or of a changed one.
pub(crate) fn validate(target: &Target, object: &Value, old: Option<&Value>) -> Result<()> {
    let kind = &target.kind;
    let faults = match (&kind.custom, old) {
        (Some(custom), old) => {
            let mut faults = validate::metadata(object, old, kind.namespaced);
            faults.extend(custom.validate(object, old));
            faults
        }
        (None, None) => validate::create(object),
        (None, Some(old)) if target.subresource == "status" => validate::update_status(object, old),
        (None, Some(old)) => validate::update(object, old),
    };
    if faults.is_empty() {
        return Ok(());
    }
    let name = crate::object::text(object, "/metadata/name");
    let faults: Vec<Fault> = faults.into_iter().map(Fault::from).collect();
    Err(Status::invalid(&kind.group, &kind.kind, name, &faults))
}
