//! Rules of what makes pods: deployments and the like, jobs, autoscalers, disruption budgets.

use super::meta::{
    IMMUTABLE, immutable, int_or_percent, is_empty_selector, label_selector, maybe_one_of,
    nonnegative, not_above_hundred, one_of,
};
use super::pod::{selected, template, template_metadata};
use crate::cron::Schedule;
use crate::field::{Errors, Path};
use crate::names;
use crate::view::{at, flag, get, has, int, is_set, is_zero, list, number, put, same, text};
use serde_json::{Value, json};

fn selector(spec: &Value, path: &Path, empty: &str, errors: &mut Errors) {
    let own = get(spec, "selector");
    let here = path.child("selector");
    if own.is_null() {
        errors.required(&here, "");
        return;
    }
    label_selector(own, &here, errors);
    if is_empty_selector(own) {
        errors.invalid(&here, own.clone(), empty);
    }
}

fn only_always(spec: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let pod = at(spec, &["template", "spec"]);
    let here = path.child("template").child("spec");
    let policy = text(pod, "restartPolicy");
    if policy != "Always" {
        errors.not_supported(&here.child("restartPolicy"), policy, &["Always"]);
    }
    if has(pod, "activeDeadlineSeconds") {
        errors.forbidden(
            &here.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

pub(super) fn deployment(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    nonnegative(spec, "replicas", &path, errors);
    selector(
        spec,
        &path,
        "empty selector is invalid for deployment",
        errors,
    );
    selected(spec, &path, errors);
    template(get(spec, "template"), &path.child("template"), errors);
    only_always(spec, "ReplicaSet", &path, errors);
    let (strategy, here) = (get(spec, "strategy"), path.child("strategy"));
    let rolling = get(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.forbidden(
                    &here.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" if rolling.is_null() => {
            errors.required(
                &here.child("rollingUpdate"),
                "this should be defaulted and never be nil",
            );
        }
        "RollingUpdate" => {
            let here = here.child("rollingUpdate");
            for field in ["maxUnavailable", "maxSurge"] {
                int_or_percent(get(rolling, field), &here.child(field), errors);
            }
            let zero = |value: &Value| is_zero(value) || value == "0%";
            if zero(get(rolling, "maxUnavailable")) && zero(get(rolling, "maxSurge")) {
                errors.invalid(
                    &here.child("maxUnavailable"),
                    get(rolling, "maxUnavailable").clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            not_above_hundred(
                get(rolling, "maxUnavailable"),
                &here.child("maxUnavailable"),
                errors,
            );
        }
        other => errors.not_supported(&here.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
    nonnegative(spec, "minReadySeconds", &path, errors);
    nonnegative(spec, "revisionHistoryLimit", &path, errors);
    if let Some(deadline) = number(spec, "progressDeadlineSeconds") {
        nonnegative(spec, "progressDeadlineSeconds", &path, errors);
        if deadline <= int(spec, "minReadySeconds") {
            errors.invalid(
                &path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            );
        }
    }
    same_selector(spec, old, errors);
}

fn same_selector(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        immutable(
            get(spec, "selector"),
            at(old, &["spec", "selector"]),
            &Path::new("spec").child("selector"),
            errors,
        );
    }
}

pub(super) fn replica_set(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    nonnegative(spec, "replicas", &path, errors);
    nonnegative(spec, "minReadySeconds", &path, errors);
    selector(
        spec,
        &path,
        "empty selector is invalid for deployment",
        errors,
    );
    selected(spec, &path, errors);
    template(get(spec, "template"), &path.child("template"), errors);
    only_always(spec, "ReplicaSet", &path, errors);
    same_selector(spec, old, errors);
}

pub(super) fn replication_controller(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    nonnegative(spec, "minReadySeconds", &path, errors);
    if !is_set(spec, "selector") {
        errors.required(&path.child("selector"), "");
    }
    nonnegative(spec, "replicas", &path, errors);
    if !has(spec, "template") {
        errors.required(&path.child("template"), "");
        return;
    }
    let labels = super::meta::template_labels(spec);
    let all = crate::view::entries(spec, "selector").all(|(key, value)| get(labels, key) == value);
    if !all {
        errors.invalid(
            &path.child("template").child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    template(get(spec, "template"), &path.child("template"), errors);
    only_always(spec, "ReplicationController", &path, errors);
}

pub(super) fn daemon_set(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    label_selector(get(spec, "selector"), &path.child("selector"), errors);
    selected(spec, &path, errors);
    if is_empty_selector(get(spec, "selector")) {
        errors.invalid(
            &path.child("selector"),
            get(spec, "selector").clone(),
            "empty selector is invalid for daemonset",
        );
    }
    template(get(spec, "template"), &path.child("template"), errors);
    only_always(spec, "DaemonSet", &path, errors);
    nonnegative(spec, "minReadySeconds", &path, errors);
    let (strategy, here) = (get(spec, "updateStrategy"), path.child("updateStrategy"));
    let rolling = get(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => errors.required(&here.child("rollingUpdate"), ""),
        "RollingUpdate" => {
            let here = here.child("rollingUpdate");
            for field in ["maxUnavailable", "maxSurge"] {
                int_or_percent(get(rolling, field), &here.child(field), errors);
                not_above_hundred(get(rolling, field), &here.child(field), errors);
            }
            let zero = |field: &str| is_zero(get(rolling, field)) || get(rolling, field) == "0%";
            if zero("maxUnavailable") && zero("maxSurge") {
                errors.invalid(
                    &here.child("maxUnavailable"),
                    get(rolling, "maxUnavailable").clone(),
                    "cannot be 0 when maxSurge is 0",
                );
            } else if !zero("maxUnavailable") && !zero("maxSurge") {
                errors.invalid(
                    &here.child("maxSurge"),
                    get(rolling, "maxSurge").clone(),
                    "may not be set when maxUnavailable is non-zero",
                );
            }
        }
        _ => errors.not_supported(&here, strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
    nonnegative(spec, "revisionHistoryLimit", &path, errors);
    same_selector(spec, old, errors);
}

pub(super) fn stateful_set(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    let policy = text(spec, "podManagementPolicy");
    if policy.is_empty() {
        errors.required(&path.child("podManagementPolicy"), "");
    } else if !matches!(policy, "OrderedReady" | "Parallel") {
        errors.invalid(
            &path.child("podManagementPolicy"),
            policy,
            "must be 'OrderedReady' or 'Parallel'",
        );
    }
    let (strategy, here) = (get(spec, "updateStrategy"), path.child("updateStrategy"));
    let rolling = get(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "" => errors.required(&here, ""),
        "OnDelete" => {
            if !rolling.is_null() {
                errors.invalid(
                    &here.child("rollingUpdate"),
                    rolling.clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => nonnegative(rolling, "partition", &here.child("rollingUpdate"), errors),
        _ => errors.invalid(
            &here,
            strategy.clone(),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    let retention = get(spec, "persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let here = path.child("persistentVolumeClaimRetentionPolicy");
        maybe_one_of(retention, field, &here, &["Retain", "Delete"], errors);
    }
    nonnegative(spec, "replicas", &path, errors);
    nonnegative(spec, "minReadySeconds", &path, errors);
    nonnegative(
        get(spec, "ordinals"),
        "start",
        &path.child("ordinals"),
        errors,
    );
    selector(
        spec,
        &path,
        "empty selector is invalid for statefulset",
        errors,
    );
    selected(spec, &path, errors);
    // The containers are looked at when the pods are made: as in Kubernetes, claims are volumes that the template does not name.
    template_metadata(get(spec, "template"), &path.child("template"), errors);
    only_always(spec, "StatefulSet", &path, errors);
    if let Some(old) = old {
        let strip = |spec: &Value| {
            let mut spec = spec.clone();
            if let Some(spec) = spec.as_object_mut() {
                for field in [
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "revisionHistoryLimit",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                ] {
                    spec.shift_remove(field);
                }
            }
            spec
        };
        if !same(&strip(spec), &strip(get(old, "spec"))) {
            errors.forbidden(&path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    }
}

pub(super) fn revision(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if !has(object, "data") {
        errors.required(&Path::new("data"), "data is mandatory");
    }
    nonnegative(object, "revision", &Path::root(), errors);
    if let Some(old) = old {
        immutable(
            get(object, "data"),
            get(old, "data"),
            &Path::new("data"),
            errors,
        );
    }
}

pub(super) fn status(object: &Value, errors: &mut Errors) {
    let (status, path) = (get(object, "status"), Path::new("status"));
    for field in [
        "replicas",
        "readyReplicas",
        "availableReplicas",
        "updatedReplicas",
        "fullyLabeledReplicas",
        "numberReady",
    ] {
        nonnegative(status, field, &path, errors);
    }
    if text(object, "kind") == "DaemonSet" {
        return;
    }
    for field in [
        "fullyLabeledReplicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
    ] {
        if int(status, field) > int(status, "replicas") {
            errors.invalid(
                &path.child(field),
                int(status, field),
                "cannot be greater than status.replicas",
            );
        }
    }
    if int(status, "availableReplicas") > int(status, "readyReplicas") {
        let available = int(status, "availableReplicas");
        errors.invalid(
            &path.child("availableReplicas"),
            available,
            "cannot be greater than readyReplicas",
        );
    }
}

pub(super) fn job(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    job_spec(spec, &path, errors);
    if !has(spec, "selector") {
        errors.required(&path.child("selector"), "");
    } else {
        label_selector(get(spec, "selector"), &path.child("selector"), errors);
        selected(spec, &path, errors);
        generated_selector(object, errors);
    }
    let Some(old) = old else { return };
    let before = get(old, "spec");
    let elastic = text(spec, "completionMode") == "Indexed"
        && get(spec, "completions") == get(spec, "parallelism");
    if !elastic {
        immutable(
            get(spec, "completions"),
            get(before, "completions"),
            &path.child("completions"),
            errors,
        );
    }
    for field in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(
            get(spec, field),
            get(before, field),
            &path.child(field),
            errors,
        );
    }
    let mut template = get(spec, "template").clone();
    // What decides on the nodes may still change while nothing was started.
    if flag(before, "suspend") && is_zero(at(old, &["status", "startTime"])) {
        for field in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
            let value = at(before, &["template", "spec", field]).clone();
            put(&mut template, &["spec", field], value);
        }
        let metadata = at(before, &["template", "metadata"]).clone();
        put(&mut template, &["metadata"], metadata);
    }
    if !same(&template, get(before, "template")) {
        errors.invalid(
            &path.child("template"),
            get(spec, "template").clone(),
            IMMUTABLE,
        );
    }
}

/// A selector that the job did not bring itself must be the one that its uid and name give.
fn generated_selector(object: &Value, errors: &mut Errors) {
    let (spec, metadata) = (get(object, "spec"), get(object, "metadata"));
    let (uid, name) = (text(metadata, "uid"), text(metadata, "name"));
    if flag(spec, "manualSelector") || uid.is_empty() {
        return;
    }
    let path = Path::new("spec");
    let labels = super::meta::template_labels(spec);
    let here = path.child("template").child("metadata").child("labels");
    for (key, value) in [
        ("controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
    ] {
        if text(labels, key) != value {
            errors.invalid(&here.key(key), labels.clone(), format!("must be '{value}'"));
        }
    }
    let expected = json!({"controller-uid": uid, "job-name": name,
        "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name});
    if !super::meta::chooses(get(spec, "selector"), &expected) {
        errors.invalid(
            &path.child("selector"),
            get(spec, "selector").clone(),
            "`selector` not auto-generated",
        );
    }
}

fn job_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        nonnegative(spec, field, path, errors);
    }
    let mode = text(spec, "completionMode");
    if !mode.is_empty() {
        if !matches!(mode, "NonIndexed" | "Indexed") {
            errors.not_supported(
                &path.child("completionMode"),
                mode,
                &["Indexed", "NonIndexed"],
            );
        } else if mode == "Indexed" {
            if !has(spec, "completions") {
                errors.required(
                    &path.child("completions"),
                    "when completion mode is Indexed",
                );
            }
            if int(spec, "parallelism") > 100_000 {
                errors.invalid(
                    &path.child("parallelism"),
                    int(spec, "parallelism"),
                    "must be less than or equal to 100000 when completion mode is Indexed",
                );
            }
        }
    }
    if has(spec, "backoffLimitPerIndex") && mode != "Indexed" {
        errors.invalid(
            &path.child("backoffLimitPerIndex"),
            int(spec, "backoffLimitPerIndex"),
            "requires indexed completion mode",
        );
    }
    maybe_one_of(
        spec,
        "podReplacementPolicy",
        path,
        &["Failed", "TerminatingOrFailed"],
        errors,
    );
    let policy = text(at(spec, &["template", "spec"]), "restartPolicy");
    if has(spec, "podFailurePolicy") && policy != "Never" {
        errors.invalid(
            &path.child("template").child("spec").child("restartPolicy"),
            policy,
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
    template(get(spec, "template"), &path.child("template"), errors);
    let here = path.child("template").child("spec").child("restartPolicy");
    match policy {
        "Always" => errors.required(&here, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        other => errors.not_supported(&here, other, &["OnFailure", "Never"]),
    }
}

pub(super) fn cron_job(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    let schedule = text(spec, "schedule");
    let here = path.child("schedule");
    if schedule.is_empty() {
        errors.required(&here, "");
    } else if schedule.contains("TZ") {
        errors.invalid(
            &here,
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Err(sentence) = Schedule::parse(schedule) {
        errors.invalid(&here, schedule, sentence);
    }
    if has(spec, "timeZone") && text(spec, "timeZone").is_empty() {
        errors.invalid(
            &path.child("timeZone"),
            "",
            "timeZone must be nil or non-empty string",
        );
    }
    nonnegative(spec, "startingDeadlineSeconds", &path, errors);
    one_of(
        spec,
        "concurrencyPolicy",
        &path,
        &["Allow", "Forbid", "Replace"],
        errors,
    );
    let template_path = path.child("jobTemplate").child("spec");
    let job = at(spec, &["jobTemplate", "spec"]);
    job_spec(job, &template_path, errors);
    if has(job, "selector") {
        errors.invalid(
            &template_path.child("selector"),
            get(job, "selector").clone(),
            "`selector` will be auto-generated",
        );
    }
    if flag(job, "manualSelector") {
        errors.not_supported(
            &template_path.child("manualSelector"),
            true,
            &["nil", "false"],
        );
    }
    nonnegative(spec, "successfulJobsHistoryLimit", &path, errors);
    nonnegative(spec, "failedJobsHistoryLimit", &path, errors);
    let name = text(get(object, "metadata"), "name");
    if name.len() > 52 {
        errors.invalid(
            &Path::new("metadata").child("name"),
            name,
            "must be no more than 52 characters",
        );
    }
}

pub(super) fn autoscaler(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    let least = number(spec, "minReplicas");
    if least.is_some_and(|least| least < 1) {
        errors.invalid(
            &path.child("minReplicas"),
            json!(least),
            "must be greater than or equal to 1",
        );
    }
    let most = int(spec, "maxReplicas");
    if most < 1 {
        errors.invalid(&path.child("maxReplicas"), most, "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        errors.invalid(
            &path.child("maxReplicas"),
            most,
            "must be greater than or equal to `minReplicas`",
        );
    }
    let (target, here) = (get(spec, "scaleTargetRef"), path.child("scaleTargetRef"));
    for field in ["kind", "name"] {
        let value = text(target, field);
        if value.is_empty() {
            errors.required(&here.child(field), "");
        } else {
            errors.invalid_each(&here.child(field), value, names::path_segment(value));
        }
    }
    for (at, metric) in list(spec, "metrics").iter().enumerate() {
        let here = path.child("metrics").index(at);
        let source = match text(metric, "type") {
            "" => {
                errors.required(&here.child("type"), "must specify a metric source type");
                continue;
            }
            "Object" => "object",
            "Pods" => "pods",
            "Resource" => "resource",
            "External" => "external",
            "ContainerResource" => "containerResource",
            other => {
                errors.not_supported(
                    &here.child("type"),
                    other,
                    &[
                        "ContainerResource",
                        "External",
                        "Object",
                        "Pods",
                        "Resource",
                    ],
                );
                continue;
            }
        };
        let own = get(metric, source);
        if own.is_null() {
            errors.required(
                &here.child(source),
                "must populate information for the given metric source",
            );
            continue;
        }
        if source.ends_with("esource") {
            if text(own, "name").is_empty() {
                errors.required(
                    &here.child(source).child("name"),
                    "must specify a resource name",
                );
            }
            let target = get(own, "target");
            let here = here.child(source).child("target");
            one_of(
                target,
                "type",
                &here,
                &["Utilization", "Value", "AverageValue"],
                errors,
            );
            if let Some(value) = number(target, "averageUtilization")
                && value < 1
            {
                errors.invalid(
                    &here.child("averageUtilization"),
                    value,
                    "must be greater than 0",
                );
            }
            if !has(target, "averageUtilization") && !has(target, "averageValue") {
                errors.required(
                    &here.child("averageUtilization"),
                    "must set either a target raw value or a target utilization",
                );
            }
        }
    }
}

pub(super) fn disruption_budget(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        errors.invalid(
            &path,
            spec.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for field in ["minAvailable", "maxUnavailable"] {
        int_or_percent(get(spec, field), &path.child(field), errors);
        not_above_hundred(get(spec, field), &path.child(field), errors);
    }
    label_selector(get(spec, "selector"), &path.child("selector"), errors);
    maybe_one_of(
        spec,
        "unhealthyPodEvictionPolicy",
        &path,
        &["IfHealthyBudget", "AlwaysAllow"],
        errors,
    );
}
