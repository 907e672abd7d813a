//! Rules of roles, bindings and webhooks.

use super::meta::{label_selector, maybe_one_of};
use crate::field::{Errors, Path};
use crate::names;
use crate::view::{get, has, is_set, list, number, same, text, words};
use serde_json::Value;
use std::collections::BTreeSet;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(object: &Value, errors: &mut Errors) {
    let namespaced = text(object, "kind") == "Role";
    for (at, rule) in list(object, "rules").iter().enumerate() {
        let here = Path::new("rules").index(at);
        if !is_set(rule, "verbs") {
            errors.required(
                &here.child("verbs"),
                "verbs must contain at least one value",
            );
        }
        if is_set(rule, "nonResourceURLs") {
            let field = here.child("nonResourceURLs");
            let urls = get(rule, "nonResourceURLs").clone();
            if namespaced {
                errors.invalid(
                    &field,
                    urls,
                    "namespaced rules cannot apply to non-resource URLs",
                );
            } else if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|f| is_set(rule, f))
            {
                errors.invalid(
                    &field,
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if !is_set(rule, "apiGroups") {
            errors.required(
                &here.child("apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if !is_set(rule, "resources") {
            errors.required(
                &here.child("resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
    label_selectors(object, errors);
}

fn label_selectors(object: &Value, errors: &mut Errors) {
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let rule = get(object, "aggregationRule");
    if has(object, "aggregationRule") && !is_set(rule, "clusterRoleSelectors") {
        errors.required(
            &path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
    for (at, selector) in list(rule, "clusterRoleSelectors").iter().enumerate() {
        label_selector(selector, &path.index(at), errors);
    }
}

pub(super) fn role_binding(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let namespaced = text(object, "kind") == "RoleBinding";
    let (role, path) = (get(object, "roleRef"), Path::new("roleRef"));
    if text(role, "apiGroup") != GROUP {
        errors.not_supported(&path.child("apiGroup"), text(role, "apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(role, "kind")) {
        errors.not_supported(&path.child("kind"), text(role, "kind"), kinds);
    }
    let name = text(role, "name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), name, names::path_segment(name));
    }
    for (at, subject) in list(object, "subjects").iter().enumerate() {
        let here = Path::new("subjects").index(at);
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.invalid_each(&here.child("name"), name, names::dns_subdomain(name));
                }
                if !group.is_empty() {
                    errors.not_supported(&here.child("apiGroup"), group, &[""]);
                }
                if !namespaced && text(subject, "namespace").is_empty() {
                    errors.required(&here.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.not_supported(&here.child("apiGroup"), group, &[GROUP]);
                }
            }
            other => errors.not_supported(
                &here.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            ),
        }
    }
    if let Some(old) = old
        && !same(role, get(old, "roleRef"))
    {
        errors.invalid(&path, role.clone(), "cannot change roleRef");
    }
}

pub(super) fn webhooks(object: &Value, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, hook) in list(object, "webhooks").iter().enumerate() {
        let (here, name) = (Path::new("webhooks").index(at), text(hook, "name"));
        qualified_name(name, &here.child("name"), errors);
        if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        }
        seen.insert(name);
        if !is_set(hook, "admissionReviewVersions") {
            errors.required(
                &here.child("admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            );
        } else if !words(hook, "admissionReviewVersions")
            .iter()
            .any(|v| matches!(*v, "v1" | "v1beta1"))
        {
            errors.invalid(
                &here.child("admissionReviewVersions"),
                get(hook, "admissionReviewVersions").clone(),
                "must include at least one of v1, v1beta1",
            );
        }
        for (at, rule) in list(hook, "rules").iter().enumerate() {
            rule_with_operations(rule, &here.child("rules").index(at), errors);
        }
        maybe_one_of(hook, "failurePolicy", &here, &["Fail", "Ignore"], errors);
        maybe_one_of(hook, "matchPolicy", &here, &["Equivalent", "Exact"], errors);
        maybe_one_of(
            hook,
            "reinvocationPolicy",
            &here,
            &["IfNeeded", "Never"],
            errors,
        );
        if !has(hook, "sideEffects") {
            errors.required(
                &here.child("sideEffects"),
                "must specify one of None, NoneOnDryRun",
            );
        } else {
            maybe_one_of(
                hook,
                "sideEffects",
                &here,
                &["None", "NoneOnDryRun"],
                errors,
            );
        }
        if let Some(seconds) = number(hook, "timeoutSeconds")
            && !(1..=30).contains(&seconds)
        {
            errors.invalid(
                &here.child("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        for field in ["namespaceSelector", "objectSelector"] {
            label_selector(get(hook, field), &here.child(field), errors);
        }
        client_config(
            get(hook, "clientConfig"),
            &here.child("clientConfig"),
            errors,
        );
    }
}

fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    let wrong = names::dns_subdomain(name);
    if name.is_empty() {
        errors.required(path, "");
    } else if !wrong.is_empty() {
        errors.invalid(path, name, wrong.join(","));
    } else if name.split('.').count() < 3 {
        errors.invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        );
    }
}

fn rule_with_operations(rule: &Value, path: &Path, errors: &mut Errors) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let values = words(rule, field);
        if values.is_empty() {
            errors.required(&path.child(field), "");
        } else if values.len() > 1 && values.contains(&"*") && field != "resources" {
            errors.invalid(
                &path.child(field),
                get(rule, field).clone(),
                "if '*' is present, must not specify other ".to_owned()
                    + match field {
                        "operations" => "operations",
                        "apiGroups" => "API groups",
                        _ => "API versions",
                    },
            );
        }
    }
    for (at, operation) in words(rule, "operations").iter().enumerate() {
        let all = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if !all.contains(operation) {
            errors.not_supported(&path.child("operations").index(at), *operation, &all);
        }
    }
    maybe_one_of(rule, "scope", path, &["*", "Cluster", "Namespaced"], errors);
}

/// Exactly one of a URL and a service.
pub(crate) fn client_config(config: &Value, path: &Path, errors: &mut Errors) {
    let (url, service) = (text(config, "url"), get(config, "service"));
    if has(config, "url") != service.is_null() {
        errors.required(path, "exactly one of url or service is required");
        return;
    }
    if has(config, "url") {
        let here = path.child("url");
        match url.split_once("://") {
            Some(("https", rest)) if !rest.is_empty() && !rest.starts_with('/') => {
                if rest.contains('@') {
                    errors.invalid(&here, url, "user information is not permitted in the URL");
                }
                if rest.contains('#') || rest.contains('?') {
                    errors.invalid(&here, url, "query parameters are not permitted in the URL");
                }
            }
            Some(("https", _)) => errors.invalid(
                &here,
                url,
                "host must be specified; desired format: https://host[/path]",
            ),
            Some((scheme, _)) => errors.invalid(
                &here,
                scheme,
                "'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            None => errors.invalid(
                &here,
                "",
                "'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
        }
        return;
    }
    let here = path.child("service");
    for field in ["namespace", "name"] {
        if text(service, field).is_empty() {
            errors.required(&here.child(field), &format!("service {field} is required"));
        }
    }
    for detail in names::port_number(number(service, "port").unwrap_or(443)) {
        errors.invalid(
            &here.child("port"),
            get(service, "port").clone(),
            format!("port is not valid: {detail}"),
        );
    }
}
