//! Rules of `metadata`, of label selectors, and of the options of requests.

use crate::field::{Errors, Path};
use crate::names;
use crate::resources::NameRule;
use crate::view::{at, entries, flag, get, has, int, is_set, list, same, text, words};
use serde_json::{Value, json};

const ANNOTATIONS_LIMIT: usize = 256 * 1024;
pub(super) const IMMUTABLE: &str = "field is immutable";
pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";

pub(super) fn create(object: &Value, namespaced: bool, rule: NameRule, errors: &mut Errors) {
    let (metadata, path) = (get(object, "metadata"), Path::new("metadata"));
    let generated = text(metadata, "generateName");
    if !generated.is_empty() {
        errors.invalid_each(
            &path.child("generateName"),
            generated,
            rule.check(generated, true),
        );
    }
    let name = text(metadata, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        errors.invalid_each(&path.child("name"), name, rule.check(name, false));
    }
    let namespace = text(metadata, "namespace");
    if !namespaced {
        if !namespace.is_empty() {
            errors.forbidden(&path.child("namespace"), "not allowed on this type");
        }
    } else if namespace.is_empty() {
        errors.required(&path.child("namespace"), "");
    } else {
        errors.invalid_each(
            &path.child("namespace"),
            namespace,
            names::dns_label(namespace),
        );
    }
    nonnegative(metadata, "generation", &path, errors);
    common(metadata, &path, errors);
    finalizers(metadata, &path.child("finalizers"), errors);
}

pub(super) fn update(object: &Value, old: &Value, errors: &mut Errors) {
    let (metadata, before) = (get(object, "metadata"), get(old, "metadata"));
    let path = Path::new("metadata");
    if has(before, "deletionTimestamp") {
        let known = words(before, "finalizers");
        let added: Vec<&str> = words(metadata, "finalizers")
            .into_iter()
            .filter(|f| !known.contains(f))
            .collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| crate::field::quoted(f)).collect();
            errors.forbidden(
                &path.child("finalizers"),
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", list.join(", ")),
            );
        }
    }
    if text(metadata, "resourceVersion").is_empty() {
        errors.invalid(
            &path.child("resourceVersion"),
            text(metadata, "resourceVersion"),
            "must be specified for an update",
        );
    }
    nonnegative(metadata, "generation", &path, errors);
    if int(metadata, "generation") < int(before, "generation") {
        errors.invalid(
            &path.child("generation"),
            int(metadata, "generation"),
            "must not be decremented",
        );
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        immutable(
            get(metadata, field),
            get(before, field),
            &path.child(field),
            errors,
        );
    }
    common(metadata, &path, errors);
    for (at, name) in words(metadata, "finalizers").into_iter().enumerate() {
        standard_finalizer(name, &path.child("finalizers").index(at), errors);
    }
}

fn common(metadata: &Value, path: &Path, errors: &mut Errors) {
    labels(get(metadata, "labels"), &path.child("labels"), errors);
    annotations(
        get(metadata, "annotations"),
        &path.child("annotations"),
        errors,
    );
    owners(metadata, &path.child("ownerReferences"), errors);
}

fn finalizers(metadata: &Value, path: &Path, errors: &mut Errors) {
    let all = words(metadata, "finalizers");
    for name in &all {
        errors.invalid_each(path, name, names::qualified(name));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        errors.invalid(
            path,
            json!(all),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
    for (at, name) in all.iter().enumerate() {
        standard_finalizer(name, &path.index(at), errors);
    }
}

pub(super) fn standard_finalizer(name: &str, path: &Path, errors: &mut Errors) {
    // The last one is what custom resource definitions carry.
    let standard = [
        "kubernetes",
        "orphan",
        "foregroundDeletion",
        "customresourcecleanup.apiextensions.k8s.io",
    ];
    if !name.contains('/') && !standard.contains(&name) {
        errors.invalid(
            path,
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        );
    }
}

fn owners(metadata: &Value, path: &Path, errors: &mut Errors) {
    let mut controller = String::new();
    for (at, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        let here = path.index(at);
        let version = text(owner, "apiVersion");
        if version.is_empty() {
            errors.required(&here.child("apiVersion"), "must not be empty");
        } else if version.matches('/').count() > 1 || version.ends_with('/') {
            errors.invalid(
                &here.child("apiVersion"),
                version,
                "must be <group>/<version> or <version>",
            );
        }
        for field in ["kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                errors.required(&here.child(field), "must not be empty");
            }
        }
        if version == "v1" && text(owner, "kind") == "Event" {
            errors.invalid(
                &here,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            );
        }
        if flag(owner, "controller") {
            let this = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            if controller.is_empty() {
                controller = this;
            } else {
                errors.invalid(
                    path,
                    get(metadata, "ownerReferences").clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {this}"),
                );
            }
        }
    }
}

pub(super) fn labels(map: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in map.as_object().into_iter().flatten() {
        errors.invalid_each(path, key, names::qualified(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_each(path, value, names::label_value(value));
    }
}

pub(super) fn annotations(map: &Value, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in map.as_object().into_iter().flatten() {
        errors.invalid_each(path, key, names::qualified(&key.to_lowercase()));
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > ANNOTATIONS_LIMIT {
        errors.too_long(path, ANNOTATIONS_LIMIT);
    }
}

pub(super) fn nonnegative(object: &Value, field: &str, path: &Path, errors: &mut Errors) {
    let value = int(object, field);
    if value < 0 {
        errors.invalid(&path.child(field), value, NEGATIVE);
    }
}

pub(crate) fn immutable(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if !same(new, old) {
        errors.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// A value of an enumeration that must be there.
pub(super) fn one_of(
    object: &Value,
    field: &str,
    path: &Path,
    allowed: &[&str],
    errors: &mut Errors,
) {
    let value = text(object, field);
    if value.is_empty() {
        errors.required(&path.child(field), "");
    } else if !allowed.contains(&value) {
        errors.not_supported(&path.child(field), value, allowed);
    }
}

/// A value of an enumeration that may be missing.
pub(super) fn maybe_one_of(
    object: &Value,
    field: &str,
    path: &Path,
    allowed: &[&str],
    errors: &mut Errors,
) {
    if has(object, field) && !allowed.contains(&text(object, field)) {
        errors.not_supported(&path.child(field), text(object, field), allowed);
    }
}

pub(super) fn label_key(key: &str, path: &Path, errors: &mut Errors) {
    errors.invalid_each(path, key, names::qualified(key));
}

pub(super) fn label_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    if selector.is_null() {
        return;
    }
    labels(
        get(selector, "matchLabels"),
        &path.child("matchLabels"),
        errors,
    );
    for (at, rule) in list(selector, "matchExpressions").iter().enumerate() {
        let here = path.child("matchExpressions").index(at);
        let values = words(rule, "values");
        match text(rule, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.required(
                        &here.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errors.forbidden(
                        &here.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            other => errors.invalid(
                &here.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        label_key(text(rule, "key"), &here.child("key"), errors);
        for (at, value) in values.iter().enumerate() {
            errors.invalid_each(
                &here.child("values").index(at),
                value,
                names::label_value(value),
            );
        }
    }
}

/// Whether a label selector asks for nothing.
pub(super) fn is_empty_selector(selector: &Value) -> bool {
    !is_set(selector, "matchLabels") && !is_set(selector, "matchExpressions")
}

/// Whether a label selector (`matchLabels`, `matchExpressions`) chooses labels.
pub(super) fn chooses(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && list(selector, "matchExpressions").iter().all(|rule| {
            let (value, values) = (label(text(rule, "key")), words(rule, "values"));
            match text(rule, "operator") {
                "In" => value.is_some_and(|v| values.contains(&v)),
                "NotIn" => value.is_none_or(|v| !values.contains(&v)),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// What is wrong with the field manager of a request (query parameter `fieldManager`, or an entry of `managedFields`).
pub fn field_manager(name: &str) -> Vec<crate::field::FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("fieldManager");
    if name.len() > 128 {
        errors.too_long(&path, 128);
    }
    for (at, letter) in name.char_indices() {
        if letter.is_control() {
            errors.invalid(
                &path,
                name,
                format!(
                    "invalid character U+{:04X} (at position {at})",
                    u32::from(letter)
                ),
            );
        }
    }
    errors.0
}

/// What is wrong with the options of a delete.
pub fn delete_options(options: &Value) -> Vec<crate::field::FieldError> {
    let mut errors = Errors::default();
    let path = Path::root();
    if has(options, "orphanDependents") && has(options, "propagationPolicy") {
        errors.invalid(
            &path.child("propagationPolicy"),
            get(options, "propagationPolicy").clone(),
            "orphanDependents and deletionPropagation cannot be both set",
        );
    }
    maybe_one_of(
        options,
        "propagationPolicy",
        &path,
        &["Foreground", "Background", "Orphan", "nil"],
        &mut errors,
    );
    let dry = words(options, "dryRun");
    if dry.iter().any(|word| *word != "All") {
        errors.not_supported(&path.child("dryRun"), json!(dry), &["All"]);
    }
    errors.0
}

/// Percent or whole number.
pub(super) fn int_or_percent(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::String(text) => errors.invalid_each(path, text, names::percent(text)),
        Value::Number(_) => {
            let number = value.as_i64().unwrap_or_default();
            if number < 0 {
                errors.invalid(path, number, NEGATIVE);
            }
        }
        _ => {}
    }
}

/// `maxUnavailable: 120%` is more than everything.
pub(super) fn not_above_hundred(value: &Value, path: &Path, errors: &mut Errors) {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%'));
    if percent
        .and_then(|n| n.parse::<i64>().ok())
        .is_some_and(|n| n > 100)
    {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// A port by number or by name.
pub(super) fn port(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::String(name) => errors.invalid_each(path, name, names::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or_default();
            for detail in names::port_number(number) {
                errors.invalid(path, number, detail);
            }
        }
    }
}

/// An IP address in its usual form.
pub(super) fn ip(value: &str, path: &Path, errors: &mut Errors) -> bool {
    let good = value.parse::<std::net::IpAddr>().is_ok();
    if !good {
        errors.invalid(
            path,
            value,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    good
}

/// A range of addresses.
pub(super) fn cidr(value: &str, path: &Path, errors: &mut Errors) -> bool {
    let parsed = value.split_once('/').and_then(|(address, bits)| {
        let address = address.parse::<std::net::IpAddr>().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        (plain && bits.parse::<u32>().ok()? <= most).then_some(())
    });
    if parsed.is_none() {
        errors.invalid(
            path,
            value,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        );
    }
    parsed.is_some()
}

/// Labels of a template, for the sentence that the selector does not fit them.
pub(super) fn template_labels(spec: &Value) -> &Value {
    at(spec, &["template", "metadata", "labels"])
}
