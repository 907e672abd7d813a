//! Rules of namespaces, nodes, config maps, secrets, limits, quotas, priorities, leases and events.

use super::meta::{IMMUTABLE, cidr, immutable, label_key, standard_finalizer};
use super::pod::{
    container_resource_name, effect, may_overcommit, resource_name, resource_quantity,
};
use crate::field::{Errors, Fault, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::view::{
    at, entries, flag, get, has, int, is_set, list, number, quantity, same, text, words,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of all values of a config map or secret.
const DATA_LIMIT: usize = 1024 * 1024;

pub(super) fn namespace(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("finalizers");
    for name in words(get(object, "spec"), "finalizers") {
        errors.invalid_each(&path, name, names::qualified(name));
        standard_finalizer(name, &path, errors);
    }
}

pub(super) fn namespace_status(object: &Value, errors: &mut Errors) {
    let phase = text(get(object, "status"), "phase");
    let path = Path::new("status").child("Phase");
    let ending = has(get(object, "metadata"), "deletionTimestamp");
    if !ending && phase != "Active" {
        errors.invalid(
            &path,
            phase,
            "may only be 'Active' if `deletionTimestamp` is empty",
        );
    } else if ending && phase != "Terminating" {
        errors.invalid(
            &path,
            phase,
            "may only be 'Terminating' if `deletionTimestamp` is not empty",
        );
    }
}

pub(super) fn node(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = get(object, "spec");
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (at, taint) in list(spec, "taints").iter().enumerate() {
        // Kubernetes itself puts taints below metadata in these paths.
        let here = Path::new("metadata").child("taints").index(at);
        let key = text(taint, "key");
        label_key(key, &here.child("key"), errors);
        let wrong = names::label_value(text(taint, "value"));
        if !wrong.is_empty() {
            errors.invalid(&here.child("value"), text(taint, "value"), wrong.join(";"));
        }
        let own = text(taint, "effect");
        if own.is_empty() {
            errors.required(&here.child("effect"), "");
        } else {
            effect(own, &here.child("effect"), errors);
        }
        if seen.contains(&(key, own)) {
            let detail = "taints must be unique by key and effect pair";
            errors.push(Fault::Duplicate, &here, taint.clone(), detail);
        }
        seen.insert((key, own));
    }
    for field in ["capacity", "allocatable"] {
        for (name, value) in entries(get(object, "status"), field) {
            let here = Path::new("status").child(field).child(name);
            resource_quantity(name, value, &here, errors);
        }
    }
    let ranges = words(spec, "podCIDRs");
    let here = Path::new("spec").child("podCIDRs");
    for (at, range) in ranges.iter().enumerate().take(10) {
        cidr(range, &here.index(at), errors);
        if ranges[..at].contains(range) {
            errors.duplicate(&here.index(at), *range);
        }
    }
    if ranges.len() > 2 {
        errors.invalid(
            &here,
            json!(ranges),
            "may specify no more than one CIDR for each IP family",
        );
    }
    let Some(before) = old.map(|old| get(old, "spec")) else {
        return;
    };
    let old_ranges = words(before, "podCIDRs");
    if !old_ranges.is_empty() && old_ranges != ranges {
        errors.forbidden(
            &here,
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    let provider = text(before, "providerID");
    if !provider.is_empty() && provider != text(spec, "providerID") {
        errors.forbidden(
            &Path::new("spec").child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
}

fn frozen(object: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if !flag(object, "immutable") {
        errors.forbidden(&Path::new("immutable"), detail);
    }
    for field in fields {
        if !same(get(object, field), get(old, field)) {
            errors.forbidden(&Path::new(field), detail);
        }
    }
}

/// Bytes behind base64 text.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

pub(super) fn config_map(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        frozen(object, old, &["data", "binaryData"], errors);
    }
    let mut size = 0;
    for field in ["data", "binaryData"] {
        let path = Path::new(field);
        for (key, value) in entries(object, field) {
            errors.invalid_each(&path.key(key), key, names::config_key(key));
            let value = value.as_str().unwrap_or_default();
            if field == "data" {
                if has(get(object, "binaryData"), key) {
                    errors.invalid(
                        &path.key(key),
                        key.as_str(),
                        "duplicate of key present in binaryData",
                    );
                }
                size += value.len();
            } else {
                size += decoded_len(value);
            }
        }
    }
    if size > DATA_LIMIT {
        errors.0.push(crate::field::FieldError {
            fault: Fault::TooLong,
            field: String::new(),
            bad: json!("<value omitted>"),
            detail: format!("may not be more than {DATA_LIMIT} bytes"),
        });
    }
}

pub(super) fn secret(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        immutable(
            get(object, "type"),
            get(old, "type"),
            &Path::new("type"),
            errors,
        );
        frozen(object, old, &["data"], errors);
    }
    let path = Path::new("data");
    let data = get(object, "data");
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        errors.invalid_each(&path.key(key), key, names::config_key(key));
        size += decoded_len(value.as_str().unwrap_or_default());
    }
    if size > DATA_LIMIT {
        errors.too_long(&path, DATA_LIMIT);
    }
    let needs: &[&str] = match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(at(object, &["metadata", "annotations"]), key).is_empty() {
                errors.required(&Path::new("metadata").child("annotations").key(key), "");
            }
            &[]
        }
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/basic-auth"
            if data.get("username").is_some() || data.get("password").is_some() =>
        {
            &[]
        }
        "kubernetes.io/basic-auth" => &["username", "password"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in needs {
        if data.get(key).is_none() || (*key == "ssh-privatekey" && text(data, key).is_empty()) {
            errors.required(&path.key(key), "");
        }
    }
}

pub(super) fn limit_range(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("limits");
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    for (at, limit) in list(get(object, "spec"), "limits").iter().enumerate() {
        let (here, kind) = (path.index(at), text(limit, "type"));
        let wrong = names::qualified(kind);
        let standard = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
        if !wrong.is_empty() {
            errors.invalid_each(&here.child("type"), kind, wrong);
        } else if !kind.contains('/') && !standard {
            errors.invalid(
                &here.child("type"),
                kind,
                "must be a standard limit type or fully qualified",
            );
        }
        if kinds.contains(&kind) {
            errors.duplicate(&here.child("type"), kind);
        }
        kinds.insert(kind);
        let mut amounts: BTreeMap<&str, BTreeMap<&str, Quantity>> = BTreeMap::new();
        for field in [
            "max",
            "min",
            "default",
            "defaultRequest",
            "maxLimitRequestRatio",
        ] {
            if kind == "Pod" && field.starts_with("default") {
                if is_set(limit, field) {
                    errors.forbidden(
                        &here.child(field),
                        "may not be specified when `type` is 'Pod'",
                    );
                }
                continue;
            }
            for (name, value) in entries(limit, field) {
                let here = here.child(field).key(name);
                if matches!(kind, "Pod" | "Container") {
                    container_resource_name(name, &here, errors);
                } else {
                    resource_name(name, &here, errors);
                }
                if let Some(value) = quantity(value) {
                    amounts.entry(name).or_default().insert(field, value);
                }
            }
        }
        if kind == "PersistentVolumeClaim"
            && !has(get(limit, "min"), "storage")
            && !has(get(limit, "max"), "storage")
        {
            errors.required(
                &here.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
        for (name, by_field) in amounts {
            bounds(name, &by_field, &here, errors);
        }
    }
}

fn bounds(name: &str, by_field: &BTreeMap<&str, Quantity>, path: &Path, errors: &mut Errors) {
    let of = |field: &str| by_field.get(field).copied();
    let (least, most, usual, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
    let mut above = |low: Option<Quantity>,
                     low_name: &str,
                     high: Option<Quantity>,
                     high_name: &str,
                     field: &str,
                     shown: Option<Quantity>| {
        if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
            && low > high
        {
            errors.invalid(
                &path.child(field).key(name),
                shown.to_string(),
                format!("{low_name} value {low} is greater than {high_name} value {high}"),
            );
        }
    };
    above(least, "min", most, "max", "min", least);
    above(
        least,
        "min",
        request,
        "default request",
        "defaultRequest",
        request,
    );
    above(
        request,
        "default request",
        most,
        "max",
        "defaultRequest",
        request,
    );
    above(
        request,
        "default request",
        usual,
        "default limit",
        "defaultRequest",
        request,
    );
    above(least, "min", usual, "default", "default", least);
    above(usual, "default", most, "max", "default", most);
    if let Some(ratio) = of("maxLimitRequestRatio") {
        let one = Quantity::parse("1").unwrap_or(Quantity::ZERO);
        let here = path.child("maxLimitRequestRatio").key(name);
        if ratio < one {
            errors.invalid(
                &here,
                ratio.to_string(),
                format!("ratio {ratio} is less than 1"),
            );
        }
        if let (Some(least), Some(most)) = (least, most) {
            let limit = most.milli() as f64 / least.milli() as f64;
            if ratio.milli() as f64 / 1000.0 > limit {
                errors.invalid(
                    &here,
                    ratio.to_string(),
                    format!("ratio {ratio} is greater than max/min = {limit:.6}"),
                );
            }
        }
    }
    if let (Some(usual), Some(request)) = (usual, request)
        && !may_overcommit(name)
        && usual != request
    {
        errors.invalid(
            &path.child("defaultRequest").key(name),
            request.to_string(),
            format!("default value {usual} must equal to defaultRequest value {request} in {name}"),
        );
    }
}

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(super) fn resource_quota(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    for (name, value) in entries(spec, "hard") {
        let here = path.child("hard").key(name);
        if resource_name(name, &here, errors) && !name.contains('/') && !is_quota_name(name) {
            errors.invalid(
                &here,
                name.as_str(),
                "must be a standard resource for quota",
            );
        }
        resource_quantity(name, value, &here, errors);
    }
    let scopes = words(spec, "scopes");
    let here = path.child("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(&here, json!(scopes), "unsupported scope");
        }
    }
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            errors.invalid(&here, json!(scopes), "conflicting scopes");
        }
    }
    let rules = list(get(spec, "scopeSelector"), "matchExpressions");
    let here = path.child("scopeSelector").child("matchExpressions");
    for rule in rules {
        let (scope, operator) = (text(rule, "scopeName"), text(rule, "operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&here.child("scopeName"), scope, "unsupported scope");
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            errors.invalid(&here.child("operator"), operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        match operator {
            "In" | "NotIn" if !is_set(rule, "values") => errors.required(
                &here.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if is_set(rule, "values") => errors.invalid(
                &here.child("values"),
                get(rule, "values").clone(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(
                &here.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
    }
    if let Some(old) = old {
        let mut before = words(get(old, "spec"), "scopes");
        let mut now = scopes.clone();
        before.sort_unstable();
        now.sort_unstable();
        if before != now {
            errors.invalid(&path.child("scopes"), json!(scopes), IMMUTABLE);
        }
    }
}

fn is_quota_name(name: &str) -> bool {
    name != "storage" || name.starts_with("count/")
}

pub(super) fn priority_class(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    const MOST: i64 = 1_000_000_000;
    let (name, value) = (text(get(object, "metadata"), "name"), int(object, "value"));
    let system = [
        ("system-node-critical", 2_000_001_000),
        ("system-cluster-critical", 2_000_000_000),
    ];
    if name.starts_with("system-") {
        if !system.contains(&(name, value)) {
            errors.forbidden(
                &Path::new("metadata").child("name"),
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"),
            );
        }
    } else if value > MOST {
        errors.forbidden(
            &Path::new("value"),
            format!("maximum allowed value of a user defined priority is {MOST}"),
        );
    }
    super::meta::maybe_one_of(
        object,
        "preemptionPolicy",
        &Path::root(),
        &["PreemptLowerPriority", "Never"],
        errors,
    );
    if let Some(old) = old {
        if int(old, "value") != value {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        immutable(
            get(object, "preemptionPolicy"),
            get(old, "preemptionPolicy"),
            &Path::new("preemptionPolicy"),
            errors,
        );
    }
}

pub(super) fn lease(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    if let Some(seconds) = number(spec, "leaseDurationSeconds")
        && seconds <= 0
    {
        errors.invalid(
            &path.child("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        );
    }
    super::meta::nonnegative(spec, "leaseTransitions", &path, errors);
}

pub(super) fn event(object: &Value, errors: &mut Errors) {
    let namespace = text(get(object, "metadata"), "namespace");
    let involved = text(get(object, "involvedObject"), "namespace");
    let path = Path::new("involvedObject").child("namespace");
    if involved.is_empty() {
        if namespace != "default" {
            errors.invalid(&path, involved, "does not match event.namespace");
        }
    } else if namespace != involved {
        errors.invalid(&path, involved, "does not match event.namespace");
    }
}
