//! Where this server asks what Kubernetes' types say: unknown fields, defaults, faults of values.

use crate::kinds::Kind;
use crate::request::{Call, Target};
use crate::status::{Fault, Result, Status};
use gantry_kube_api::decode::{self, FieldValidation};
use gantry_kube_api::schema::Schema;
use gantry_kube_api::{crd, defaults, validate};
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
/// `problems` are those that the reading of the bytes found already.
pub(crate) fn prune(
    call: &Call,
    kind: &Kind,
    object: &mut Value,
    mut problems: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let validation = validation(call)?;
    let api_version = kind.api_version();
    match (&kind.custom, Schema::of(&api_version, &kind.kind)) {
        (Some(custom), _) => {
            let unknown = custom.structural.prune(object);
            problems.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
        }
        (None, Some(schema)) => {
            let unknown = decode::typed(schema, &kind.kind, object);
            problems.extend(unknown.map_err(|why| {
                Status::bad_request(decode::cannot_handle(
                    &kind.kind,
                    &api_version,
                    &kind.kind,
                    &why,
                ))
            })?);
        }
        (None, None) => {}
    }
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            let why = decode::strict(&problems);
            Err(Status::bad_request(if kind.custom.is_some() {
                why
            } else {
                decode::cannot_handle(&kind.kind, &api_version, &kind.kind, &why)
            }))
        }
        FieldValidation::Ignore => Ok(()),
        _ => {
            warnings.append(&mut problems);
            Ok(())
        }
    }
}

fn validation(call: &Call) -> Result<FieldValidation> {
    FieldValidation::parse(call.query.get("fieldValidation")).map_err(|why| {
        Status::unprocessable(format!("CreateOptions.meta.k8s.io \"\" is invalid: {why}"))
    })
}

/// Fills in what the client left open.
pub(crate) fn default(kind: &Kind, object: &mut Value) {
    match &kind.custom {
        Some(custom) => custom.structural.default(object),
        None => defaults::apply(object),
    }
}

/// Faults of a new object, or of a changed one.
pub(crate) fn validate(target: &Target, object: &Value, old: Option<&Value>) -> Result<()> {
    let kind = &target.kind;
    let mut faults = match (&kind.custom, old) {
        (Some(custom), old) => {
            let mut faults = validate::metadata(object, old, kind.namespaced);
            faults.extend(custom.structural.validate(object, old));
            faults
        }
        (None, None) => validate::create(object),
        (None, Some(old)) if target.subresource == "status" => validate::update_status(object, old),
        (None, Some(old)) => validate::update(object, old),
    };
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions") && target.subresource.is_empty()
    {
        faults.extend(crd::definition(object, old));
        if object
            .pointer("/spec/conversion/strategy")
            .is_some_and(|s| s == "Webhook")
        {
            return Err(Status::bad_request(
                "spec.conversion.strategy: Webhook is not served; use None",
            ));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let name = crate::object::text(object, "/metadata/name");
    let faults: Vec<Fault> = faults.into_iter().map(Fault::from).collect();
    Err(Status::invalid(&kind.group, &kind.kind, name, &faults))
}
