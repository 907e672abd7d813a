//! Rules of pods and of the templates that make them.

use super::meta::{
    self, IMMUTABLE, annotations, chooses, ip, label_key, label_selector, labels, maybe_one_of,
    nonnegative, one_of, port,
};
use super::volume;
use crate::field::{Errors, Fault, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::view::{
    at, entries, flag, get, has, int, is_set, list, number, quantity, same, text, words,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const HUGE: &str = "hugepages-";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a pod's containers are checked against.
struct Context<'a> {
    spec: &'a Value,
    grace: Option<i64>,
    host_users: bool,
    volumes: BTreeMap<&'a str, &'a Value>,
    claims: BTreeSet<&'a str>,
    is_pod: bool,
}

pub(super) fn pod(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    let metadata = get(object, "metadata");
    pod_annotations(
        metadata,
        spec,
        &Path::new("metadata").child("annotations"),
        errors,
    );
    pod_spec(spec, Some(text(metadata, "name")), &path, errors);
    if text(spec, "serviceAccountName").is_empty() {
        for (v, volume) in list(spec, "volumes").iter().enumerate() {
            for (s, source) in list(get(volume, "projected"), "sources").iter().enumerate() {
                if has(source, "serviceAccountToken") {
                    let here = path.child("volumes").index(v).child("projected");
                    let here = here.child("sources").index(s).child("serviceAccountToken");
                    errors.forbidden(
                        &here,
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        for (at, container) in list(spec, field).iter().enumerate() {
            trimmed_image(container, &path.child(field).index(at), errors);
        }
    }
    match old {
        Some(old) => pod_update(object, old, errors),
        None => {
            if is_set(spec, "ephemeralContainers") {
                errors.forbidden(
                    &path.child("ephemeralContainers"),
                    "cannot be set on create",
                );
            }
            if !text(spec, "nodeName").is_empty() && is_set(spec, "schedulingGates") {
                errors.forbidden(
                    &path.child("nodeName"),
                    "cannot be set until all schedulingGates have been cleared",
                );
            }
        }
    }
}

fn trimmed_image(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, "image");
    if image.trim() != image {
        errors.invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
}

fn pod_annotations(metadata: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in entries(metadata, "annotations") {
        let value = value.as_str().unwrap_or_default();
        match key.as_str() {
            MIRROR if text(spec, "nodeName").is_empty() => errors.invalid(
                &path.key(MIRROR),
                value,
                "must set spec.nodeName if mirror pod annotation is set",
            ),
            "controller.kubernetes.io/pod-deletion-cost" => {
                let odd = value.starts_with('+') || (value.len() > 1 && value.starts_with('0'));
                if odd || value.parse::<i32>().is_err() {
                    errors.invalid(&path.key(key), value, "must be a 32bit integer");
                }
            }
            _ => {}
        }
    }
}

fn pod_update(object: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (spec, before) = (get(object, "spec"), get(old, "spec"));
    let notes = Path::new("metadata").child("annotations");
    let (new_mirror, old_mirror) = (
        at(object, &["metadata", "annotations", MIRROR]),
        at(old, &["metadata", "annotations", MIRROR]),
    );
    if !old_mirror.is_null() && new_mirror != old_mirror {
        errors.forbidden(
            &notes.key(MIRROR),
            "may not remove or update mirror pod annotation",
        );
    } else if old_mirror.is_null() && !new_mirror.is_null() {
        errors.forbidden(&notes.key(MIRROR), "may not add mirror pod annotation");
    }
    for field in ["containers", "initContainers"] {
        if list(spec, field).len() != list(before, field).len() {
            errors.forbidden(
                &path.child(field),
                "pod updates may not add or remove containers",
            );
            return;
        }
        for (at, container) in list(spec, field).iter().enumerate() {
            if text(container, "image").is_empty() {
                errors.required(&path.child(field).index(at).child("image"), "");
            }
        }
    }
    let deadline = path.child("activeDeadlineSeconds");
    match (
        number(spec, "activeDeadlineSeconds"),
        number(before, "activeDeadlineSeconds"),
    ) {
        (Some(new), Some(old)) if old < new => {
            errors.invalid(
                &deadline,
                new,
                "must be less than or equal to previous value",
            );
            return;
        }
        (None, Some(_)) => errors.invalid(
            &deadline,
            Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    let without_seconds = |t| {
        (
            text(t, "key"),
            text(t, "operator"),
            text(t, "value"),
            text(t, "effect"),
        )
    };
    let kept: BTreeSet<_> = list(spec, "tolerations")
        .iter()
        .map(without_seconds)
        .collect();
    let mut known = list(before, "tolerations").iter().map(without_seconds);
    if known.any(|old| !kept.contains(&old)) {
        errors.forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    let gates: BTreeSet<&str> = list(before, "schedulingGates")
        .iter()
        .map(|g| text(g, "name"))
        .collect();
    for (at, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !gates.contains(&name) {
            errors.forbidden(
                &path.child("schedulingGates").index(at).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
    if same(spec, before) {
        return;
    }
    let mut munged = spec.clone();
    let Some(changed) = munged.as_object_mut() else {
        return;
    };
    for field in ["containers", "initContainers"] {
        let images: Vec<Value> = list(before, field)
            .iter()
            .map(|c| get(c, "image").clone())
            .collect();
        for (container, image) in changed
            .get_mut(field)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .zip(images)
        {
            crate::view::put(container, &["image"], image);
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        changed.insert(field.to_owned(), get(before, field).clone());
    }
    if int(before, "terminationGracePeriodSeconds") < 0
        && int(spec, "terminationGracePeriodSeconds") == 1
    {
        let old = get(before, "terminationGracePeriodSeconds").clone();
        changed.insert("terminationGracePeriodSeconds".to_owned(), old);
    }
    if !gates.is_empty() {
        // A gated pod may be narrowed down to fewer nodes.
        let wider = entries(before, "nodeSelector")
            .any(|(key, value)| get(get(spec, "nodeSelector"), key) != value);
        if wider {
            errors.invalid(
                &path.child("nodeSelector"),
                get(spec, "nodeSelector").clone(),
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            );
        }
        changed.insert(
            "nodeSelector".to_owned(),
            get(before, "nodeSelector").clone(),
        );
    }
    if !same(&munged, before) {
        errors.forbidden(
            &path,
            format!("pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}", difference(before, &munged)),
        );
    }
}

/// The fields of a spec that differ, old with minus and new with plus.
fn difference(old: &Value, new: &Value) -> String {
    let mut text = String::new();
    let mut names: Vec<&String> = old
        .as_object()
        .into_iter()
        .chain(new.as_object())
        .flat_map(|o| o.keys())
        .collect();
    names.sort();
    names.dedup();
    for name in names {
        let (before, after) = (get(old, name), get(new, name));
        if !same(before, after) {
            text.push_str(&format!("-\t{name}: {before}\n+\t{name}: {after}\n"));
        }
    }
    text
}

pub(super) fn ephemeral_update(pod: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    let name = text(get(pod, "metadata"), "name");
    pod_spec(get(pod, "spec"), Some(name), &Path::new("spec"), errors);
    let new = list(get(pod, "spec"), "ephemeralContainers");
    for before in list(get(old, "spec"), "ephemeralContainers") {
        let name = text(before, "name");
        match new.iter().find(|container| text(container, "name") == name) {
            None => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(after) if !same(before, after) => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    difference(before, after)
                ),
            ),
            Some(_) => {}
        }
    }
}

pub(super) fn status_update(object: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let (status, before) = (get(object, "status"), get(old, "status"));
    if text(get(object, "spec"), "nodeName") != text(get(old, "spec"), "nodeName") {
        errors.forbidden(&path.child("nodeName"), "may not be changed directly");
    }
    if !text(before, "qosClass").is_empty() && get(status, "qosClass") != get(before, "qosClass") {
        errors.invalid(
            &path.child("qosClass"),
            get(status, "qosClass").clone(),
            IMMUTABLE,
        );
    }
    for (at, address) in list(status, "podIPs").iter().enumerate() {
        ip(text(address, "ip"), &path.child("podIPs").index(at), errors);
    }
    let policy = text(get(old, "spec"), "restartPolicy");
    if policy == "Always" {
        return;
    }
    for (at, container) in list(before, "containerStatuses").iter().enumerate() {
        let ended = get(get(container, "state"), "terminated");
        if ended.is_null() || (policy == "OnFailure" && int(ended, "exitCode") != 0) {
            continue;
        }
        let now = list(status, "containerStatuses")
            .iter()
            .find(|c| text(c, "name") == text(container, "name"));
        if now.is_some_and(|now| !has(get(now, "state"), "terminated")) {
            errors.forbidden(
                &path.child("containerStatuses").index(at).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

/// A pod template of a controller.
pub(super) fn template(template: &Value, path: &Path, errors: &mut Errors) {
    template_metadata(template, path, errors);
    let spec = get(template, "spec");
    pod_spec(spec, None, &path.child("spec"), errors);
    if is_set(spec, "ephemeralContainers") {
        errors.forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

pub(super) fn template_metadata(template: &Value, path: &Path, errors: &mut Errors) {
    let metadata = get(template, "metadata");
    labels(get(metadata, "labels"), &path.child("labels"), errors);
    let here = path.child("annotations");
    annotations(get(metadata, "annotations"), &here, errors);
    pod_annotations(metadata, get(template, "spec"), &here, errors);
}

/// `pod` is the pod's name when this is a pod and not a template.
fn pod_spec(spec: &Value, pod: Option<&str>, path: &Path, errors: &mut Errors) {
    if !has(spec, "terminationGracePeriodSeconds") {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let context = Context {
        spec,
        grace: number(spec, "terminationGracePeriodSeconds"),
        host_users: get(spec, "hostUsers").as_bool() != Some(false),
        volumes: volume::volumes(spec, pod, &path.child("volumes"), errors),
        claims: list(spec, "resourceClaims")
            .iter()
            .map(|c| text(c, "name"))
            .collect(),
        is_pod: pod.is_some(),
    };
    resource_claims(spec, &path.child("resourceClaims"), errors);
    containers(&context, &path.child("containers"), errors);
    init_containers(&context, &path.child("initContainers"), errors);
    ephemeral_containers(&context, &path.child("ephemeralContainers"), errors);
    if flag(spec, "hostNetwork") {
        for (c, container) in list(spec, "containers").iter().enumerate() {
            for (p, entry) in list(container, "ports").iter().enumerate() {
                let (host, inner) = (int(entry, "hostPort"), int(entry, "containerPort"));
                if (context.is_pod || host != 0) && host != inner {
                    let here = path.child("containers").index(c).child("ports").index(p);
                    errors.invalid(
                        &here.child("hostPort"),
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    );
                }
            }
        }
    }
    one_of(
        spec,
        "restartPolicy",
        path,
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        spec,
        "dnsPolicy",
        path,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    labels(
        get(spec, "nodeSelector"),
        &path.child("nodeSelector"),
        errors,
    );
    pod_security(spec, &path.child("securityContext"), errors);
    affinity(get(spec, "affinity"), &path.child("affinity"), errors);
    dns_config(spec, &path.child("dnsConfig"), errors);
    for (at, gate) in list(spec, "readinessGates").iter().enumerate() {
        let here = path
            .child("readinessGates")
            .index(at)
            .child("conditionType");
        label_key(text(gate, "conditionType"), &here, errors);
    }
    let mut gates: BTreeSet<&str> = BTreeSet::new();
    for (at, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let (name, here) = (text(gate, "name"), path.child("schedulingGates").index(at));
        label_key(name, &here, errors);
        if gates.contains(&name) {
            errors.duplicate(&here, name);
        }
        gates.insert(name);
    }
    spread(spec, &path.child("topologySpreadConstraints"), errors);
    if !context.host_users {
        for (field, shown) in [
            ("hostNetwork", "hostNetwork"),
            ("hostPID", "HostPID"),
            ("hostIPC", "HostIPC"),
        ] {
            if flag(spec, field) {
                errors.forbidden(&path.child(shown), "when `pod.Spec.HostUsers` is false");
            }
        }
    }
    for (field, check) in [
        (
            "serviceAccountName",
            names::dns_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", names::dns_subdomain),
    ] {
        named(spec, field, path, check, errors);
    }
    if let Some(seconds) = number(spec, "activeDeadlineSeconds") {
        for detail in names::range(seconds, 1, i64::from(i32::MAX)) {
            errors.invalid(&path.child("activeDeadlineSeconds"), seconds, detail);
        }
    }
    named(spec, "hostname", path, names::dns_label, errors);
    named(spec, "subdomain", path, names::dns_label, errors);
    tolerations(spec, &path.child("tolerations"), errors);
    for (at, alias) in list(spec, "hostAliases").iter().enumerate() {
        let here = path.child("hostAliases").index(at);
        ip(text(alias, "ip"), &here.child("ip"), errors);
        for (at, name) in words(alias, "hostnames").iter().enumerate() {
            errors.invalid_each(
                &here.child("hostnames").index(at),
                name,
                names::dns_subdomain(name),
            );
        }
    }
    named(
        spec,
        "priorityClassName",
        path,
        names::dns_subdomain,
        errors,
    );
    if has(spec, "runtimeClassName") {
        let name = text(spec, "runtimeClassName");
        errors.invalid_each(
            &path.child("runtimeClassName"),
            name,
            names::dns_subdomain(name),
        );
    }
    maybe_one_of(
        spec,
        "preemptionPolicy",
        path,
        &["PreemptLowerPriority", "Never"],
        errors,
    );
    if has(spec, "overhead") {
        let overhead = json!({"limits": get(spec, "overhead")});
        resources(
            &overhead,
            &BTreeSet::new(),
            false,
            &path.child("overhead"),
            errors,
        );
    }
    if has(spec, "resources") {
        let own = get(spec, "resources");
        if has(own, "claims") {
            errors.forbidden(
                &path.child("resources").child("claims"),
                "claims cannot be set for Resources at pod-level",
            );
        }
        resources(own, &context.claims, true, &path.child("resources"), errors);
    }
    if has(spec, "os") {
        let name = text(get(spec, "os"), "name");
        if name.is_empty() {
            errors.required(&path.child("os").child("name"), "cannot be empty");
        } else if !matches!(name, "linux" | "windows") {
            errors.not_supported(&path.child("os"), name, &["linux", "windows"]);
        }
    }
}

fn named(
    spec: &Value,
    field: &str,
    path: &Path,
    check: fn(&str) -> Vec<String>,
    errors: &mut Errors,
) {
    let name = text(spec, field);
    if !name.is_empty() {
        errors.invalid_each(&path.child(field), name, check(name));
    }
}

fn resource_claims(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let (here, name) = (path.index(at), text(claim, "name"));
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        } else if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        } else {
            errors.invalid_each(&here.child("name"), name, names::dns_label(name));
            seen.insert(name);
        }
        match (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName")) {
            (true, true) => errors.invalid(&here, claim.clone(), "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            (false, false) => errors.invalid(&here, claim.clone(), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            _ => {}
        }
    }
}

fn containers(context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let all = list(context.spec, "containers");
    if all.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, container) in all.iter().enumerate() {
        let here = path.index(at);
        common(container, context, &here, errors);
        let name = text(container, "name");
        if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        } else {
            seen.insert(name);
        }
        hooks(container, context, &here, errors);
        if has(container, "restartPolicy") && !has(container, "restartPolicyRules") {
            maybe_one_of(
                container,
                "restartPolicy",
                &here,
                &["Always", "OnFailure", "Never"],
                errors,
            );
        }
    }
    host_ports(all, path, errors);
}

fn hooks(container: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let handler = get(get(container, "lifecycle"), hook);
        if !handler.is_null() {
            let here = path.child("lifecycle").child(hook);
            self::handler(
                handler,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                context.grace,
                &here,
                errors,
            );
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = get(container, kind);
        if probe.is_null() {
            continue;
        }
        let here = path.child(kind);
        handler(
            probe,
            &["exec", "httpGet", "tcpSocket", "grpc"],
            context.grace,
            &here,
            errors,
        );
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            nonnegative(probe, field, &here, errors);
        }
        if let Some(seconds) = number(probe, "terminationGracePeriodSeconds") {
            let field = here.child("terminationGracePeriodSeconds");
            if seconds <= 0 {
                errors.invalid(&field, seconds, "must be greater than 0");
            }
            if kind == "readinessProbe" {
                errors.invalid(&field, seconds, "must not be set for readinessProbes");
            }
        }
        if kind != "readinessProbe" && int(probe, "successThreshold") != 1 {
            errors.invalid(
                &here.child("successThreshold"),
                int(probe, "successThreshold"),
                "must be 1",
            );
        }
    }
}

fn handler(handler: &Value, kinds: &[&str], grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut found = 0;
    for kind in kinds {
        let action = get(handler, kind);
        if action.is_null() {
            continue;
        }
        let here = path.child(kind);
        found += 1;
        if found > 1 {
            errors.forbidden(&here, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if !is_set(action, "command") => errors.required(&here.child("command"), ""),
            "httpGet" => {
                if text(action, "path").is_empty() {
                    errors.required(&here.child("path"), "");
                }
                port(get(action, "port"), &here.child("port"), errors);
                maybe_one_of(action, "scheme", &here, &["HTTP", "HTTPS"], errors);
                for header in list(action, "httpHeaders") {
                    let name = text(header, "name");
                    errors.invalid_each(&here.child("httpHeaders"), name, names::header_name(name));
                }
            }
            "tcpSocket" | "grpc" => port(get(action, "port"), &here.child("port"), errors),
            "sleep" => {
                let seconds = int(action, "seconds");
                if let Some(grace) = grace
                    && (seconds < 0 || seconds > grace)
                {
                    errors.invalid(
                        &here,
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    );
                }
            }
            _ => {}
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn host_ports(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (c, container) in containers.iter().enumerate() {
        for (p, entry) in list(container, "ports").iter().enumerate() {
            let port = int(entry, "hostPort");
            if port == 0 {
                continue;
            }
            let key = format!(
                "{}/{}/{port}",
                text(entry, "protocol"),
                text(entry, "hostIP")
            );
            if seen.contains(&key) {
                errors.duplicate(
                    &path.index(c).child("ports").index(p).child("hostPort"),
                    key,
                );
            } else {
                seen.insert(key);
            }
        }
    }
}

fn init_containers(context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = list(context.spec, "containers")
        .iter()
        .map(|c| text(c, "name"))
        .collect();
    for (at, container) in list(context.spec, "initContainers").iter().enumerate() {
        let here = path.index(at);
        common(container, context, &here, errors);
        if has(container, "restartPolicy") && !has(container, "restartPolicyRules") {
            maybe_one_of(
                container,
                "restartPolicy",
                &here,
                &["Always", "OnFailure", "Never"],
                errors,
            );
        }
        let name = text(container, "name");
        if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        host_ports(std::slice::from_ref(container), path, errors);
        if text(container, "restartPolicy") == "Always" {
            hooks(container, context, &here, errors);
            continue;
        }
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if has(container, field) {
                errors.forbidden(
                    &here.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

fn ephemeral_containers(context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let others: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| list(context.spec, field))
        .map(|c| text(c, "name"))
        .collect();
    let mut seen = others.clone();
    for (at, container) in list(context.spec, "ephemeralContainers").iter().enumerate() {
        let here = path.index(at);
        common(container, context, &here, errors);
        trimmed_image(container, &here, errors);
        let name = text(container, "name");
        if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        } else {
            seen.insert(name);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.not_found(&here.child("targetContainerName"), target);
        }
        for field in [
            "ports",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            if is_set(container, field) {
                errors.forbidden(
                    &here.child(field),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
        for (at, mount) in list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    errors.forbidden(
                        &here.child("volumeMounts").index(at).child(field),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
    }
}

fn common(container: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), name, names::dns_label(name));
    }
    if text(container, "image").is_empty() {
        errors.required(&path.child("image"), "");
    }
    one_of(
        container,
        "terminationMessagePolicy",
        path,
        &["File", "FallbackToLogsOnError"],
        errors,
    );
    ports(container, &path.child("ports"), errors);
    env(container, path, errors);
    mounts(container, context, path, errors);
    one_of(
        container,
        "imagePullPolicy",
        path,
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    resources(
        get(container, "resources"),
        &context.claims,
        false,
        &path.child("resources"),
        errors,
    );
    resize_policy(container, context, &path.child("resizePolicy"), errors);
    security_context(
        get(container, "securityContext"),
        context.host_users,
        &path.child("securityContext"),
        errors,
    );
}

fn ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, entry) in list(container, "ports").iter().enumerate() {
        let (here, name) = (path.index(at), text(entry, "name"));
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if !wrong.is_empty() {
                errors.invalid_each(&here.child("name"), name, wrong);
            } else if seen.contains(&name) {
                errors.duplicate(&here.child("name"), name);
            } else {
                seen.insert(name);
            }
        }
        let inner = int(entry, "containerPort");
        if inner == 0 {
            errors.required(&here.child("containerPort"), "");
        } else {
            for detail in names::port_number(inner) {
                errors.invalid(&here.child("containerPort"), inner, detail);
            }
        }
        let outer = int(entry, "hostPort");
        if outer != 0 {
            for detail in names::port_number(outer) {
                errors.invalid(&here.child("hostPort"), outer, detail);
            }
        }
        one_of(entry, "protocol", &here, &["SCTP", "TCP", "UDP"], errors);
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(container: &Value, path: &Path, errors: &mut Errors) {
    for (at, variable) in list(container, "env").iter().enumerate() {
        let (here, name) = (path.child("env").index(at), text(variable, "name"));
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        } else {
            errors.invalid_each(&here.child("name"), name, names::env_name(name));
        }
        let from = get(variable, "valueFrom");
        if from.is_null() {
            continue;
        }
        let here = here.child("valueFrom");
        let mut sources = 0;
        if has(from, "fieldRef") {
            sources += 1;
            field_reference(
                get(from, "fieldRef"),
                ENV_FIELDS,
                &here.child("fieldRef"),
                errors,
            );
        }
        if has(from, "resourceFieldRef") {
            sources += 1;
            resource_reference(
                get(from, "resourceFieldRef"),
                false,
                &here.child("resourceFieldRef"),
                errors,
            );
        }
        for field in ["configMapKeyRef", "secretKeyRef"] {
            let key_of = get(from, field);
            if key_of.is_null() {
                continue;
            }
            sources += 1;
            let here = here.child(field);
            let name = text(key_of, "name");
            errors.invalid_each(&here.child("name"), name, names::dns_subdomain(name));
            let key = text(key_of, "key");
            if key.is_empty() {
                errors.required(&here.child("key"), "");
            } else {
                errors.invalid_each(&here.child("key"), key, names::config_key(key));
            }
        }
        sources += i32::from(has(from, "fileKeyRef"));
        if sources == 0 {
            errors.invalid(&here, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
        } else if !text(variable, "value").is_empty() {
            errors.invalid(&here, "", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            errors.invalid(
                &here,
                "",
                "may not have more than one field specified at a time",
            );
        }
    }
    let path = path.child("envFrom");
    for (at, source) in list(container, "envFrom").iter().enumerate() {
        let here = path.index(at);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.invalid_each(&here.child("prefix"), prefix, names::env_name(prefix));
        }
        let mut sources = 0;
        for field in ["configMapRef", "secretRef"] {
            if has(source, field) {
                sources += 1;
                let name = text(get(source, field), "name");
                let here = here.child(field).child("name");
                if name.is_empty() {
                    errors.required(&here, "");
                } else {
                    errors.invalid_each(&here, name, names::dns_subdomain(name));
                }
            }
        }
        if sources == 0 {
            errors.invalid(
                &path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            );
        } else if sources > 1 {
            errors.invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            );
        }
    }
}

pub(super) fn field_reference(
    reference: &Value,
    allowed: &[&str],
    path: &Path,
    errors: &mut Errors,
) {
    if text(reference, "apiVersion").is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        errors.required(&path.child("fieldPath"), "");
        return;
    }
    let key = field
        .strip_suffix("']")
        .and_then(|rest| rest.split_once("['"));
    if let Some((map, key)) = key {
        match map {
            "metadata.annotations" => {
                errors.invalid_each(path, key, names::qualified(&key.to_lowercase()))
            }
            "metadata.labels" => errors.invalid_each(path, key, names::qualified(key)),
            other => errors.invalid(path, other, "does not support subscript"),
        }
        return;
    }
    let known = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if !known.contains(&field) {
        errors.invalid(
            &path.child("fieldPath"),
            field,
            format!("error converting fieldPath: field label not supported: {field}"),
        );
    } else if !allowed.contains(&field) {
        errors.not_supported(&path.child("fieldPath"), field, allowed);
    }
}

pub(super) fn resource_reference(
    reference: &Value,
    volume: bool,
    path: &Path,
    errors: &mut Errors,
) {
    let allowed = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(reference, "resource");
    if volume && text(reference, "containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !allowed.contains(&resource)
        && !resource.starts_with("limits.hugepages-")
        && !resource.starts_with("requests.hugepages-")
    {
        errors.not_supported(&path.child("resource"), resource, &allowed);
    }
    let divisor = quantity(get(reference, "divisor")).unwrap_or(Quantity::ZERO);
    if divisor.sign().is_eq() {
        return;
    }
    let shown = divisor.to_string();
    let units = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let of = match resource {
        "limits.cpu" | "requests.cpu" => {
            if !matches!(shown.as_str(), "1m" | "1") {
                errors.invalid(
                    &path.child("divisor"),
                    resource,
                    "only divisor's values 1m and 1 are supported with the cpu resource",
                );
            }
            return;
        }
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ => "hugepages",
    };
    if !units.contains(&shown.as_str()) {
        errors.invalid(
            &path.child("divisor"),
            resource,
            format!(
                "only divisor's values {} are supported with the {of} resource",
                units.join(", ")
            ),
        );
    }
}

/// What the items of a list say in one field.
fn items_of<'a>(items: &'a [Value], field: &str) -> BTreeSet<&'a str> {
    items.iter().map(|item| text(item, field)).collect()
}

fn mounts(container: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let known = |name: &str| context.volumes.contains_key(name);
    let devices = list(container, "volumeDevices");
    let all = list(container, "volumeMounts");
    let (device_names, device_paths) = (items_of(devices, "name"), items_of(devices, "devicePath"));
    let (mount_names, mount_paths) = (items_of(all, "name"), items_of(all, "mountPath"));
    let mounts_path = path.child("volumeMounts");
    let mut points: BTreeSet<&str> = BTreeSet::new();
    for (at, mount) in all.iter().enumerate() {
        let here = mounts_path.index(at);
        let (name, point) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        }
        if !known(name) {
            errors.not_found(&here.child("name"), name);
        }
        if point.is_empty() {
            errors.required(&here.child("mountPath"), "");
        }
        if points.contains(&point) {
            errors.invalid(&here.child("mountPath"), point, "must be unique");
        }
        points.insert(point);
        if device_names.contains(name) {
            errors.invalid(
                &here.child("name"),
                name,
                "must not already exist in volumeDevices",
            );
        }
        if device_paths.contains(point) {
            errors.invalid(
                &here.child("mountPath"),
                point,
                "must not already exist as a path in volumeDevices",
            );
        }
        let (sub, expr) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() {
            volume::descending(sub, &mounts_path.child("subPath"), errors);
        }
        if !expr.is_empty() {
            if !sub.is_empty() {
                errors.invalid(
                    &here.child("subPathExpr"),
                    expr,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            volume::descending(expr, &mounts_path.child("subPathExpr"), errors);
        }
        if has(mount, "mountPropagation") {
            let word = text(mount, "mountPropagation");
            let field = mounts_path.child("mountPropagation");
            if !matches!(word, "None" | "HostToContainer" | "Bidirectional") {
                errors.not_supported(&field, word, &["Bidirectional", "HostToContainer", "None"]);
            } else if word == "Bidirectional"
                && !flag(get(container, "securityContext"), "privileged")
            {
                errors.forbidden(
                    &field,
                    "Bidirectional mount propagation is available only to privileged containers",
                );
            }
        }
        if has(mount, "recursiveReadOnly") {
            let word = text(mount, "recursiveReadOnly");
            let field = mounts_path.child("recursiveReadOnly");
            if !matches!(word, "Disabled" | "IfPossible" | "Enabled") {
                errors.not_supported(&field, word, &["Disabled", "Enabled", "IfPossible"]);
            } else if word != "Disabled" && !flag(mount, "readOnly") {
                errors.forbidden(&field, "may only be specified when readOnly is true");
            }
        }
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for (at, device) in devices.iter().enumerate() {
        let here = path.child("volumeDevices").index(at);
        let (name, place) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        }
        if names.contains(&name) {
            errors.invalid(&here.child("name"), name, "must be unique");
        }
        match context.volumes.get(name) {
            Some(source) if !has(source, "persistentVolumeClaim") && !has(source, "ephemeral") => errors.invalid(
                &here.child("name"),
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            None => errors.not_found(&here.child("name"), name),
            _ => {}
        }
        if place.is_empty() {
            errors.required(&here.child("devicePath"), "");
        }
        if paths.contains(&place) {
            errors.invalid(&here.child("devicePath"), place, "must be unique");
        }
        names.insert(name);
        paths.insert(place);
        if mount_names.contains(name) {
            errors.invalid(
                &here.child("name"),
                name,
                "must not already exist in volumeMounts",
            );
        }
        if mount_paths.contains(place) {
            errors.invalid(
                &here.child("devicePath"),
                place,
                "must not already exist as a path in volumeMounts",
            );
        }
    }
}

/// Whether a resource's name belongs to Kubernetes itself.
pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/')
        || name
            .split('/')
            .next()
            .is_some_and(|domain| domain == "kubernetes.io" || domain.ends_with(".kubernetes.io"))
}

/// Whether more of a resource may be requested than there is.
pub(super) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE)
}

pub(super) fn resource_name(name: &str, path: &Path, errors: &mut Errors) -> bool {
    let wrong = names::qualified(name);
    if !wrong.is_empty() {
        errors.invalid_each(path, name, wrong);
        return false;
    }
    let standard = matches!(
        name,
        "cpu"
            | "memory"
            | "ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
            | "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "storage"
            | "requests.storage"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || name.starts_with(HUGE)
        || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !standard {
        errors.invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        );
        return false;
    }
    true
}

pub(super) fn container_resource_name(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with(HUGE) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) {
        let quota = format!("requests.{name}");
        if name.starts_with("requests.") || !names::qualified(&quota).is_empty() {
            errors.invalid(path, name, "doesn't follow extended resource name standard");
        }
    }
}

pub(super) fn resource_quantity(
    name: &str,
    value: &Value,
    path: &Path,
    errors: &mut Errors,
) -> Option<Quantity> {
    let amount = match Quantity::from_value(value) {
        Ok(amount) => amount,
        Err(detail) => {
            errors.invalid(path, value.clone(), detail);
            return None;
        }
    };
    if amount.sign().is_lt() {
        errors.invalid(path, amount.to_string(), meta::NEGATIVE);
    }
    let counted = matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || !is_native(name);
    if counted && !amount.is_whole() {
        errors.invalid(path, amount.to_string(), "must be an integer");
    }
    Some(amount)
}

fn resources(
    own: &Value,
    claims: &BTreeSet<&str>,
    pod_level: bool,
    path: &Path,
    errors: &mut Errors,
) {
    let (mut usual, mut huge) = (false, false);
    for field in ["limits", "requests"] {
        let field_path = path.child(field);
        for (name, value) in entries(own, field) {
            let here = field_path.key(name);
            if pod_level {
                if resource_name(name, &here, errors)
                    && !matches!(name.as_str(), "cpu" | "memory")
                    && !name.starts_with(HUGE)
                {
                    errors.not_supported(&here, name.as_str(), &["cpu", "hugepages-", "memory"]);
                }
            } else {
                container_resource_name(name, &here, errors);
            }
            let Some(amount) = resource_quantity(name, value, &here, errors) else {
                continue;
            };
            if field == "requests" {
                let limit = quantity(get(get(own, "limits"), name))
                    .filter(|_| has(get(own, "limits"), name));
                match limit {
                    Some(limit) if amount != limit && !may_overcommit(name) => errors.invalid(
                        &field_path,
                        amount.to_string(),
                        format!("must be equal to {name} limit of {limit}"),
                    ),
                    Some(limit) if amount > limit => errors.invalid(
                        &field_path,
                        amount.to_string(),
                        format!("must be less than or equal to {name} limit of {limit}"),
                    ),
                    None if !may_overcommit(name) => errors.required(
                        &path.child("limits"),
                        "Limit must be set for non overcommitable resources",
                    ),
                    _ => {}
                }
            }
            if let Some(page) = name.strip_prefix(HUGE) {
                huge = true;
                let fits = Quantity::parse(page).is_ok_and(|page| amount.is_multiple_of(page));
                if !fits {
                    errors.invalid(
                        &here,
                        amount.to_string(),
                        format!("{amount} is not positive integer multiple of {name}"),
                    );
                }
            }
            usual |= matches!(name.as_str(), "cpu" | "memory");
        }
    }
    if huge && !usual {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, claim) in list(own, "claims").iter().enumerate() {
        let (name, here) = (text(claim, "name"), path.child("claims").index(at));
        if name.is_empty() {
            errors.required(&here, "");
            continue;
        }
        if seen.contains(&name) {
            errors.duplicate(&here, name);
        }
        seen.insert(name);
        if !claims.contains(&name) {
            let known: Vec<&str> = claims.iter().copied().collect();
            let detail = if known.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                format!(
                    "must be one of the names in pod.spec.resourceClaims: {}",
                    known.join(", ")
                )
            };
            errors.push(Fault::NotFound, &here, json!(name), detail);
        }
    }
}

fn resize_policy(container: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, policy) in list(container, "resizePolicy").iter().enumerate() {
        let (name, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if seen.contains(&name) {
            errors.duplicate(&path.index(at), name);
        }
        seen.insert(name);
        for (value, allowed) in [
            (name, ["cpu", "memory"]),
            (restart, ["NotRequired", "RestartContainer"]),
        ] {
            if value.is_empty() {
                errors.required(path, "");
            } else if !allowed.contains(&value) {
                errors.not_supported(path, value, &allowed);
            }
        }
        if text(context.spec, "restartPolicy") == "Never" && restart != "NotRequired" {
            errors.invalid(
                path,
                restart,
                "must be 'NotRequired' when `restartPolicy` is 'Never'",
            );
        }
    }
}

fn ids(context: &Value, fields: &[&str], path: &Path, errors: &mut Errors) {
    for field in fields {
        if let Some(id) = number(context, field) {
            for detail in names::range(id, 0, i64::from(i32::MAX)) {
                errors.invalid(&path.child(field), id, detail);
            }
        }
    }
}

fn profiles(context: &Value, path: &Path, errors: &mut Errors) {
    for (field, name) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let profile = get(context, field);
        if profile.is_null() {
            continue;
        }
        let here = path.child(field);
        let kind = text(profile, "type");
        if kind.is_empty() {
            errors.required(
                &here.child("type"),
                &format!("type is required when {field} is set"),
            );
        } else if !matches!(kind, "Localhost" | "RuntimeDefault" | "Unconfined") {
            errors.not_supported(
                &here.child("type"),
                kind,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            );
        }
        let local = here.child("localhostProfile");
        match (kind, has(profile, "localhostProfile")) {
            ("Localhost", false) => errors.required(
                &local,
                &format!("must be set when {name} type is Localhost"),
            ),
            ("Localhost", true) if field == "seccompProfile" => {
                volume::descending(text(profile, "localhostProfile"), &local, errors)
            }
            ("Localhost", true) => {
                let own = text(profile, "localhostProfile");
                if own.trim() != own {
                    errors.invalid(&local, own, "must not be padded with whitespace");
                } else if own.is_empty() {
                    errors.required(&local, "must be set when AppArmor type is Localhost");
                }
            }
            (_, true) => errors.invalid(
                &local,
                if field == "seccompProfile" {
                    profile.clone()
                } else {
                    get(profile, "localhostProfile").clone()
                },
                format!("can only be set when {name} type is Localhost"),
            ),
            _ => {}
        }
    }
}

fn security_context(context: &Value, host_users: bool, path: &Path, errors: &mut Errors) {
    if context.is_null() {
        return;
    }
    ids(context, &["runAsUser", "runAsGroup"], path, errors);
    if has(context, "procMount") {
        maybe_one_of(context, "procMount", path, &["Default", "Unmasked"], errors);
        if host_users && text(context, "procMount") == "Unmasked" {
            errors.invalid(
                &path.child("procMount"),
                "Unmasked",
                "`hostUsers` must be false to use `Unmasked`",
            );
        }
    }
    profiles(context, path, errors);
    if get(context, "allowPrivilegeEscalation").as_bool() == Some(false) {
        if flag(context, "privileged") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if words(get(context, "capabilities"), "add").contains(&"CAP_SYS_ADMIN") {
            errors.invalid(path, context.clone(), "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

fn pod_security(spec: &Value, path: &Path, errors: &mut Errors) {
    let context = get(spec, "securityContext");
    ids(
        context,
        &["fsGroup", "runAsUser", "runAsGroup"],
        path,
        errors,
    );
    for (at, id) in list(context, "supplementalGroups").iter().enumerate() {
        let id = id.as_i64().unwrap_or_default();
        for detail in names::range(id, 0, i64::from(i32::MAX)) {
            errors.invalid(&path.child("supplementalGroups").index(at), id, detail);
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, entry) in list(context, "sysctls").iter().enumerate() {
        let (name, here) = (
            text(entry, "name"),
            path.child("sysctls").index(at).child("name"),
        );
        if name.is_empty() {
            errors.required(&here, "");
        } else if !is_sysctl(name) {
            errors.invalid(
                &here,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(&name) {
            errors.duplicate(&here, name);
        }
        seen.insert(name);
        let dotted = name.replace('/', ".");
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(
                &here,
                name,
                "may not be specified when 'hostNetwork' is true",
            );
        }
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if flag(spec, "hostIPC") && ipc {
            errors.invalid(&here, name, "may not be specified when 'hostIPC' is true");
        }
    }
    maybe_one_of(
        context,
        "fsGroupChangePolicy",
        path,
        &["Always", "OnRootMismatch"],
        errors,
    );
    maybe_one_of(
        context,
        "supplementalGroupsPolicy",
        path,
        &["Merge", "Strict"],
        errors,
    );
    profiles(context, path, errors);
}

fn is_sysctl(name: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        bytes.first().is_some_and(ends)
            && bytes.last().is_some_and(ends)
            && bytes.iter().all(|b| ends(b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

fn affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    let node = get(affinity, "nodeAffinity");
    let here = path.child("nodeAffinity");
    let required = get(node, "requiredDuringSchedulingIgnoredDuringExecution");
    if !required.is_null() {
        node_selector(
            required,
            &here.child("requiredDuringSchedulingIgnoredDuringExecution"),
            errors,
        );
    }
    let field = "preferredDuringSchedulingIgnoredDuringExecution";
    for (at, term) in list(node, field).iter().enumerate() {
        let here = here.child(field).index(at);
        weight(term, &here, errors);
        node_term(
            get(term, "preference"),
            false,
            &here.child("preference"),
            errors,
        );
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (own, here) = (get(affinity, kind), path.child(kind));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (at, term) in list(own, required).iter().enumerate() {
            pod_term(term, &here.child(required).index(at), errors);
        }
        for (at, term) in list(own, field).iter().enumerate() {
            let here = here.child(field).index(at);
            weight(term, &here, errors);
            pod_term(
                get(term, "podAffinityTerm"),
                &here.child("podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = int(term, "weight");
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

pub(super) fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let terms = path.child("nodeSelectorTerms");
    if !is_set(selector, "nodeSelectorTerms") {
        errors.required(&terms, "must have at least one node selector term");
    }
    for (at, term) in list(selector, "nodeSelectorTerms").iter().enumerate() {
        node_term(term, true, &terms.index(at), errors);
    }
}

fn node_term(term: &Value, strict: bool, path: &Path, errors: &mut Errors) {
    for (at, rule) in list(term, "matchExpressions").iter().enumerate() {
        let here = path.child("matchExpressions").index(at);
        let values = words(rule, "values");
        match text(rule, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    &here.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    &here.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors.required(
                    &here.child("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(
                &here.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        label_key(text(rule, "key"), &here.child("key"), errors);
        if strict {
            for (at, value) in values.iter().enumerate() {
                errors.invalid_each(
                    &here.child("values").index(at),
                    value,
                    names::label_value(value),
                );
            }
        }
    }
    for (at, rule) in list(term, "matchFields").iter().enumerate() {
        let here = path.child("matchFields").index(at);
        match text(rule, "operator") {
            "In" | "NotIn" => {
                if list(rule, "values").len() != 1 {
                    errors.required(&here.child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
                }
            }
            other => errors.invalid(
                &here.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        if text(rule, "key") != "metadata.name" {
            errors.invalid(
                &here.child("key"),
                text(rule, "key"),
                "not a valid field selector key",
            );
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    label_selector(
        get(term, "labelSelector"),
        &path.child("labelSelector"),
        errors,
    );
    label_selector(
        get(term, "namespaceSelector"),
        &path.child("namespaceSelector"),
        errors,
    );
    for name in words(term, "namespaces") {
        errors.invalid_each(&path.child("namespace"), name, names::dns_label(name));
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    label_key(key, &path.child("topologyKey"), errors);
}

fn dns_config(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = get(spec, "dnsConfig");
    let servers = words(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            errors.required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    if servers.len() > 3 {
        errors.invalid(
            &path.child("nameservers"),
            json!(servers),
            "must not have more than 3 nameservers",
        );
    }
    for (at, server) in servers.iter().enumerate() {
        ip(server, &path.child("nameservers").index(at), errors);
    }
    let searches = words(config, "searches");
    if searches.len() > 32 {
        errors.invalid(
            &path.child("searches"),
            json!(searches),
            "must not have more than 32 search paths",
        );
    }
    if searches.join(" ").len() > 2048 {
        errors.invalid(
            &path.child("searches"),
            json!(searches),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (at, search) in searches
        .iter()
        .enumerate()
        .filter(|(_, search)| **search != ".")
    {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.invalid_each(
            &path.child("searches").index(at),
            search,
            names::dns_subdomain_underscore(search),
        );
    }
    for (at, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(&path.child("options").index(at), "must not be empty");
        }
    }
}

fn spread(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (at, rule) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let here = path.index(at);
        if int(rule, "maxSkew") <= 0 {
            errors.invalid(
                &here.child("maxSkew"),
                int(rule, "maxSkew"),
                "must be greater than zero",
            );
        }
        let key = text(rule, "topologyKey");
        if key.is_empty() {
            errors.required(&here.child("topologyKey"), "can not be empty");
        } else {
            label_key(key, &here.child("topologyKey"), errors);
        }
        let when = text(rule, "whenUnsatisfiable");
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(
                &here.child("whenUnsatisfiable"),
                when,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if seen.contains(&(key, when)) {
            errors.duplicate(
                &here.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {when}}}"),
            );
        }
        seen.insert((key, when));
        if let Some(least) = number(rule, "minDomains") {
            if least <= 0 {
                errors.invalid(
                    &here.child("minDomains"),
                    least,
                    "must be greater than zero",
                );
            }
            if when != "DoNotSchedule" {
                errors.invalid(
                    &here.child("minDomains"),
                    least,
                    format!(
                        "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"
                    ),
                );
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            maybe_one_of(rule, field, &here, &["Honor", "Ignore"], errors);
        }
        label_selector(
            get(rule, "labelSelector"),
            &here.child("labelSelector"),
            errors,
        );
    }
}

pub(super) fn effect(effect: &str, path: &Path, errors: &mut Errors) {
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        errors.not_supported(
            path,
            effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
    }
}

fn tolerations(spec: &Value, path: &Path, errors: &mut Errors) {
    for (at, toleration) in list(spec, "tolerations").iter().enumerate() {
        let here = path.index(at);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if !key.is_empty() {
            label_key(key, &here.child("key"), errors);
        } else if operator != "Exists" {
            errors.invalid(
                &here.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        let own = text(toleration, "effect");
        if has(toleration, "tolerationSeconds") && own != "NoExecute" {
            errors.invalid(
                &here.child("effect"),
                own,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        let value = text(toleration, "value");
        match operator {
            "" | "Equal" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    errors.invalid(&here.child("operator"), value, wrong.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(
                        &here.child("operator"),
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            other => errors.not_supported(&here.child("operator"), other, &["Equal", "Exists"]),
        }
        if !own.is_empty() {
            effect(own, &here.child("effect"), errors);
        }
    }
}

/// The selector of a controller must choose what its template makes.
pub(super) fn selected(spec: &Value, path: &Path, errors: &mut Errors) {
    let (selector, labels) = (get(spec, "selector"), meta::template_labels(spec));
    if !meta::is_empty_selector(selector) && !chooses(selector, labels) {
        errors.invalid(
            &path.child("template").child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
}
