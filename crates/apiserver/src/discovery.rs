//! What there is: versions, groups, resources; one document for each level, or all in one.

use crate::Api;
use crate::kinds::Kind;
use crate::reply::{self, Reply};
use crate::request::{Call, Form};
use crate::status::{Result, Status};
use gantry_kube_api::openapi;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::sync::Arc;

/// The Kubernetes whose API this is.
pub(crate) const MAJOR: &str = "1";
pub(crate) const MINOR: &str = "35";

pub(crate) fn version() -> Value {
    let platform = format!(
        "linux/{}",
        if cfg!(target_arch = "x86_64") {
            "amd64"
        } else {
            "arm64"
        }
    );
    json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": format!("v{MAJOR}.{MINOR}.0+gantry{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": platform,
    })
}

/// Answers the paths that are no objects; `None`: not one of them.
pub(crate) fn answer(api: &Arc<Api>, call: &Call) -> Result<Option<Reply>> {
    let kinds = api.registry.all();
    let path = call.path.trim_end_matches('/');
    let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let document = match &words[..] {
        ["api"] if call.form == Form::Aggregated => return aggregated(&kinds, true).map(Some),
        ["apis"] if call.form == Form::Aggregated => return aggregated(&kinds, false).map(Some),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": api.address()}],
        }),
        ["apis"] => {
            let groups: Vec<_> = groups(&kinds).iter().map(|g| group(&kinds, g)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            if name.is_empty() || !groups(&kinds).contains(name) {
                return Err(Status::no_resource());
            }
            let mut document = group(&kinds, name);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        ["openapi", "v3"] => openapi::v3_index(&places(&kinds)),
        ["openapi", "v3", "api", version] => document(&kinds, "", version)?,
        ["openapi", "v3", "apis", group, version] => document(&kinds, group, version)?,
        ["openapi", "v2"] => return Ok(Some(version_2(call, &kinds))),
        ["api", version] => resources(&kinds, "", version)?,
        ["apis", name, version] => resources(&kinds, name, version)?,
        _ => return Ok(None),
    };
    Ok(Some(reply::json(StatusCode::OK, &document)))
}

/// The documents of OpenAPI 3 and their hashes. A built-in group's document changes only with the program.
fn places(kinds: &[Arc<Kind>]) -> Vec<(String, String)> {
    let mut places = Vec::new();
    for name in std::iter::once("").chain(groups(kinds)) {
        for version in versions(kinds, name) {
            let place = openapi::place(name, version);
            let mut content = format!("{} {place}", env!("CARGO_PKG_VERSION"));
            for kind in kinds
                .iter()
                .filter(|k| k.group == name && k.version == version)
            {
                if let Some(custom) = &kind.custom {
                    content.push_str(&custom.schema.to_string());
                }
            }
            let hash = openapi::hash(content.as_bytes());
            places.push((place, hash));
        }
    }
    places
}

fn custom(kinds: &[Arc<Kind>]) -> Vec<openapi::Custom<'_>> {
    let all = kinds
        .iter()
        .filter_map(|kind| Some((kind, kind.custom.as_ref()?)));
    all.map(|(kind, custom)| openapi::Custom {
        group: &kind.group,
        version: &kind.version,
        kind: &kind.kind,
        list_kind: &custom.list_kind,
        plural: &kind.plural,
        namespaced: kind.namespaced,
        schema: &custom.schema,
        has_status: kind.has("status"),
        has_scale: kind.has("scale"),
    })
    .collect()
}

/// The document of OpenAPI 2: as Go clients ask for it, or as JSON.
fn version_2(call: &Call, kinds: &[Arc<Kind>]) -> Reply {
    let document = openapi::v2(&custom(kinds));
    if call.form == Form::OpenApi {
        return reply::bytes(
            StatusCode::OK,
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            openapi::protobuf(&document),
        );
    }
    reply::json(StatusCode::OK, &document)
}

fn document(kinds: &[Arc<Kind>], group: &str, version: &str) -> Result<Value> {
    if !versions(kinds, group).contains(&version) {
        return Err(Status::no_resource());
    }
    openapi::v3(group, version, &custom(kinds)).ok_or_else(Status::no_resource)
}

/// Groups in the order of the table, without core.
fn groups(kinds: &[Arc<Kind>]) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for kind in kinds {
        if !kind.group.is_empty() && !found.contains(&&kind.group[..]) {
            found.push(&kind.group);
        }
    }
    found
}

fn versions<'a>(kinds: &'a [Arc<Kind>], group: &str) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for kind in kinds.iter().filter(|k| k.group == group) {
        if !found.contains(&&kind.version[..]) {
            found.push(&kind.version);
        }
    }
    found
}

fn group(kinds: &[Arc<Kind>], name: &str) -> Value {
    let versions: Vec<_> = versions(kinds, name)
        .into_iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
}

fn resources(kinds: &[Arc<Kind>], group: &str, version: &str) -> Result<Value> {
    let of_version: Vec<_> = kinds
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if of_version.is_empty() {
        return Err(Status::no_resource());
    }
    let mut resources = Vec::new();
    for kind in of_version {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs(),
        });
        if !kind.short.is_empty() {
            resource["shortNames"] = json!(kind.short);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        resources.push(resource);
        for name in &kind.subresources {
            let (group, version, sub, verbs) = subresource(kind, name);
            let mut resource = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": sub, "verbs": verbs,
            });
            if (group, version) != (&kind.group, &kind.version) {
                resource["group"] = group.into();
                resource["version"] = version.into();
            }
            resources.push(resource);
        }
    }
    let group_version = crate::kinds::api_version(group, version);
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}

/// Group, version, kind and verbs of a subresource.
fn subresource<'a>(
    kind: &'a Kind,
    name: &str,
) -> (&'a str, &'a str, &'a str, &'static [&'static str]) {
    const CHANGED: &[&str] = &["get", "patch", "update"];
    match name {
        "scale" => ("autoscaling", "v1", "Scale", CHANGED),
        "eviction" => ("policy", "v1", "Eviction", &["create"]),
        "binding" => ("", "v1", "Binding", &["create"]),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        "finalize" => (&kind.group, &kind.version, &kind.kind, &["update"]),
        "log" => (&kind.group, &kind.version, &kind.kind, &["get"]),
        "exec" => ("", "v1", "PodExecOptions", &["create", "get"]),
        "attach" => ("", "v1", "PodAttachOptions", &["create", "get"]),
        "portforward" => ("", "v1", "PodPortForwardOptions", &["create", "get"]),
        _ => (&kind.group, &kind.version, &kind.kind, CHANGED),
    }
}

/// All groups in one document: `apidiscovery.k8s.io/v2`.
fn aggregated(kinds: &[Arc<Kind>], core: bool) -> Result<Reply> {
    let names = if core { vec![""] } else { groups(kinds) };
    let mut items = Vec::new();
    for name in names {
        let mut versions_found = Vec::new();
        for version in versions(kinds, name) {
            let resources: Vec<_> = kinds
                .iter()
                .filter(|k| k.group == name && k.version == version)
                .map(|k| aggregated_resource(k))
                .collect();
            versions_found
                .push(json!({"version": version, "resources": resources, "freshness": "Current"}));
        }
        let mut metadata = json!({"creationTimestamp": null});
        if !name.is_empty() {
            metadata["name"] = name.into();
        }
        items.push(json!({"metadata": metadata, "versions": versions_found}));
    }
    let document = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let mut reply = reply::json(StatusCode::OK, &document);
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        ),
    );
    Ok(reply)
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs(),
    });
    if !kind.short.is_empty() {
        resource["shortNames"] = json!(kind.short);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<_> = kind
        .subresources
        .iter()
        .map(|name| {
            let (group, version, sub, verbs) = subresource(kind, name);
            json!({
                "subresource": name,
                "responseKind": {"group": group, "version": version, "kind": sub},
                "verbs": verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = Value::Array(subresources);
    }
    resource
}
