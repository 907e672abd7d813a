//! OpenAPI documents, version 2 and 3, made from the table of types and the table of resources: what `kubectl explain`,
//! validation in kubectl and code generators read.
//!
//! Each document is made anew; who serves it keeps the bytes. The descriptions of types are read for it and dropped again.
//!
//! [`protobuf`] is the form of version 2 that Go clients ask for.
//!
//! Spec: OpenAPI 2.0 and 3.0; Kubernetes, "The Kubernetes API", OpenAPI.

mod encoded;

pub use encoded::{MEDIA_TYPE, protobuf};

use crate::resources::{self, Resource};
use crate::schema::Schema;
use crate::view::{get, text};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A custom resource in one version.
#[derive(Debug, Clone, Copy)]
pub struct Custom<'a> {
    /// `example.com`.
    pub group: &'a str,
    /// `v1`.
    pub version: &'a str,
    /// `Widget`.
    pub kind: &'a str,
    /// `WidgetList`.
    pub list_kind: &'a str,
    /// `widgets`.
    pub plural: &'a str,
    /// Whether its objects live in a namespace.
    pub namespaced: bool,
    /// The version's `schema.openAPIV3Schema`.
    pub schema: &'a Value,
    /// Whether the version has the subresource `status`.
    pub has_status: bool,
    /// Whether the version has the subresource `scale`.
    pub has_scale: bool,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// What one path serves, built-in or custom.
struct Served {
    group: String,
    version: String,
    kind: String,
    plural: String,
    namespaced: bool,
    subresources: Vec<String>,
    only_create: bool,
    type_name: String,
    list_type: Option<String>,
}

impl Served {
    fn built_in(resource: &Resource) -> Self {
        let version = resource.api_version();
        let list = Schema::name_of(&version, &format!("{}List", resource.kind));
        Self {
            group: resource.group.to_owned(),
            version: resource.version.to_owned(),
            kind: resource.kind.to_owned(),
            plural: resource.plural.to_owned(),
            namespaced: resource.namespaced,
            subresources: resource
                .subresources
                .iter()
                .map(|s| (*s).to_owned())
                .collect(),
            only_create: resource.virtual_only,
            type_name: Schema::name_of(&version, resource.kind)
                .unwrap_or_default()
                .to_owned(),
            list_type: list.map(str::to_owned),
        }
    }

    fn custom(custom: &Custom<'_>) -> Self {
        let mut subresources = Vec::new();
        if custom.has_scale {
            subresources.push("scale".to_owned());
        }
        if custom.has_status {
            subresources.push("status".to_owned());
        }
        Self {
            group: custom.group.to_owned(),
            version: custom.version.to_owned(),
            kind: custom.kind.to_owned(),
            plural: custom.plural.to_owned(),
            namespaced: custom.namespaced,
            subresources,
            only_create: false,
            type_name: custom_name(custom, custom.kind),
            list_type: Some(custom_name(custom, custom.list_kind)),
        }
    }

    fn gvk(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// `com.example.v1.Widget`.
fn custom_name(custom: &Custom<'_>, kind: &str) -> String {
    let mut parts: Vec<&str> = custom.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), custom.version)
}

/// `api/v1` or `apis/apps/v1`: how version 3 calls a group's version.
pub fn place(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The group versions of the built-in resources, without repetition.
pub fn built_in_groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for resource in resources::all() {
        if !groups.contains(&(resource.group, resource.version)) {
            groups.push((resource.group, resource.version));
        }
    }
    groups
}

/// The index of version 3 (`/openapi/v3`): for each place the hash of its document.
pub fn v3_index(documents: &[(String, String)]) -> Value {
    let paths: Map<String, Value> = documents
        .iter()
        .map(|(place, hash)| {
            let url = format!("/openapi/v3/{place}?hash={hash}");
            (place.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// A hash of a document's bytes, for its address: a changed document has another address. Not for security.
pub fn hash(bytes: &[u8]) -> String {
    let mut parts = [0xcbf2_9ce4_8422_2325_u64, 0x8422_2325_cbf2_9ce4];
    for byte in bytes {
        for (at, part) in parts.iter_mut().enumerate() {
            *part = (*part ^ u64::from(*byte) ^ at as u64).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{:016X}{:016X}", parts[0], parts[1])
}

/// The document of one group version in version 3 (`/openapi/v3/apis/apps/v1`). `custom` are the custom resources of that group
/// version; others are left out. `None` when nothing is served there.
pub fn v3(group: &str, version: &str, custom: &[Custom<'_>]) -> Option<Value> {
    let mut served: Vec<Served> = resources::all()
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .map(Served::built_in)
        .collect();
    let custom: Vec<&Custom<'_>> = custom
        .iter()
        .filter(|c| c.group == group && c.version == version)
        .collect();
    served.extend(custom.iter().map(|c| Served::custom(c)));
    if served.is_empty() {
        return None;
    }
    let writer = Writer { three: true };
    let (paths, schemas) = writer.document(&served, &custom);
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken":
            {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}}},
    }))
}

/// The whole document in version 2 (`/openapi/v2`).
pub fn v2(custom: &[Custom<'_>]) -> Value {
    let mut served: Vec<Served> = resources::all().iter().map(Served::built_in).collect();
    served.extend(custom.iter().map(Served::custom));
    let writer = Writer { three: false };
    let custom: Vec<&Custom<'_>> = custom.iter().collect();
    let (paths, definitions) = writer.document(&served, &custom);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken":
            {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    })
}

struct Writer {
    three: bool,
}

impl Writer {
    fn document(&self, served: &[Served], custom: &[&Custom<'_>]) -> (Value, Value) {
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut paths = Map::new();
        for one in served {
            self.paths(one, &mut paths, &mut wanted);
        }
        for name in [
            "APIResourceList",
            "DeleteOptions",
            "Patch",
            "Status",
            "WatchEvent",
        ] {
            wanted.insert(format!("{META}.{name}"));
        }
        if !custom.is_empty() {
            for name in ["ObjectMeta", "ListMeta"] {
                wanted.insert(format!("{META}.{name}"));
            }
        }
        let documented = Schema::documented();
        let mut schemas: Map<String, Value> = Map::new();
        let mut queue: Vec<String> = wanted.into_iter().collect();
        while let Some(name) = queue.pop() {
            if schemas.contains_key(&name) {
                continue;
            }
            let Some(entry) = documented.get(&name) else {
                continue;
            };
            let mut schema = self.schema(entry, &mut queue);
            self.special(&name, &mut schema);
            schemas.insert(name, schema);
        }
        for one in custom {
            self.custom(one, &mut schemas);
        }
        let mut sorted: Vec<(String, Value)> = schemas.into_iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        paths.sort_keys();
        (Value::Object(paths), sorted.into_iter().collect())
    }

    fn reference(&self, name: &str) -> Value {
        let place = if self.three {
            "#/components/schemas/"
        } else {
            "#/definitions/"
        };
        json!({"$ref": format!("{place}{name}")})
    }

    /// An entry of the table in OpenAPI's words.
    fn schema(&self, entry: &Value, queue: &mut Vec<String>) -> Value {
        let mut out = Map::new();
        if let Some(name) = entry.get("ref").and_then(Value::as_str) {
            queue.push(name.to_owned());
            let reference = self.reference(name);
            if !self.three {
                out.insert("$ref".to_owned(), reference["$ref"].clone());
            } else if entry.get("description").is_none() {
                return reference;
            } else {
                out.insert("allOf".to_owned(), json!([reference]));
            }
        }
        for (from, to) in [
            ("description", "description"),
            ("type", "type"),
            ("format", "format"),
            ("required", "required"),
            ("listType", "x-kubernetes-list-type"),
            ("listMapKeys", "x-kubernetes-list-map-keys"),
            ("mapType", "x-kubernetes-map-type"),
            ("mergeKey", "x-kubernetes-patch-merge-key"),
            ("patchStrategy", "x-kubernetes-patch-strategy"),
            ("gvk", "x-kubernetes-group-version-kind"),
        ] {
            if let Some(value) = entry.get(from) {
                out.insert(to.to_owned(), value.clone());
            }
        }
        if let Some(items) = entry.get("items") {
            out.insert("items".to_owned(), self.schema(items, queue));
        }
        if let Some(values) = entry.get("values") {
            out.insert(
                "additionalProperties".to_owned(),
                self.schema(values, queue),
            );
        }
        if let Some(fields) = entry.get("fields").and_then(Value::as_object) {
            let fields: Map<String, Value> = fields
                .iter()
                .map(|(name, field)| (name.clone(), self.schema(field, queue)))
                .collect();
            out.insert("properties".to_owned(), Value::Object(fields));
        }
        Value::Object(out)
    }

    /// Types that are written in more than one JSON type.
    fn special(&self, name: &str, schema: &mut Value) {
        let Some(object) = schema.as_object_mut() else {
            return;
        };
        if name.ends_with("resource.Quantity") {
            if self.three {
                object.insert(
                    "oneOf".to_owned(),
                    json!([{"type": "string"}, {"type": "number"}]),
                );
            } else {
                object.insert("type".to_owned(), json!("string"));
            }
        } else if name.ends_with("intstr.IntOrString") {
            object.insert("format".to_owned(), json!("int-or-string"));
            if self.three {
                object.insert(
                    "oneOf".to_owned(),
                    json!([{"type": "integer"}, {"type": "string"}]),
                );
            } else {
                object.insert("type".to_owned(), json!("string"));
            }
        }
    }

    fn custom(&self, custom: &Custom<'_>, schemas: &mut Map<String, Value>) {
        let gvk =
            |kind: &str| json!([{"group": custom.group, "version": custom.version, "kind": kind}]);
        let mut schema = custom.schema.clone();
        if !self.three {
            for_version_two(&mut schema, true);
        }
        if !schema.is_object() {
            schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        let strings = |what: &str| json!({"type": "string", "description": what});
        let metadata = |name: &str| {
            let reference = self.reference(&format!("{META}.{name}"));
            if self.three {
                json!({"allOf": [reference], "description": "Standard object's metadata."})
            } else {
                reference
            }
        };
        const VERSION: &str =
            "APIVersion defines the versioned schema of this representation of an object.";
        const KIND: &str =
            "Kind is a string value representing the REST resource this object represents.";
        if !get(&schema, "properties").is_object() {
            schema["properties"] = json!({});
        }
        schema["properties"]["apiVersion"] = strings(VERSION);
        schema["properties"]["kind"] = strings(KIND);
        schema["properties"]["metadata"] = metadata("ObjectMeta");
        schema["x-kubernetes-group-version-kind"] = gvk(custom.kind);
        let own = custom_name(custom, custom.kind);
        let list = json!({"type": "object", "required": ["items"], "description": format!("{} is a list of {}", custom.list_kind, custom.kind),
            "properties": {"apiVersion": strings(VERSION), "kind": strings(KIND), "metadata": metadata("ListMeta"),
                "items": {"type": "array", "description": "List of objects.", "items": self.reference(&own)}},
            "x-kubernetes-group-version-kind": gvk(custom.list_kind)});
        schemas.insert(own, schema);
        schemas.insert(custom_name(custom, custom.list_kind), list);
    }

    fn paths(&self, one: &Served, paths: &mut Map<String, Value>, wanted: &mut BTreeSet<String>) {
        wanted.insert(one.type_name.clone());
        wanted.extend(one.list_type.clone());
        let root = format!("/{}", place(&one.group, &one.version));
        let base = if one.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", one.plural)
        } else {
            format!("{root}/{}", one.plural)
        };
        let scope = if one.namespaced { "Namespaced" } else { "" };
        let own = Some(one.type_name.as_str());
        if one.only_create {
            let create = self.operation(
                one,
                "create",
                scope,
                "",
                "post",
                own,
                own,
                &[DRY_RUN, MANAGER, VALIDATION],
            );
            paths.insert(base, self.item(one, json!({"post": create}), false));
            return;
        }
        let list_type = one.list_type.as_deref();
        let list = self.operation(one, "list", scope, "", "list", None, list_type, LISTING);
        if one.namespaced {
            let all = self.operation(
                one,
                "list",
                "",
                "ForAllNamespaces",
                "list",
                None,
                list_type,
                LISTING,
            );
            let mut item = self.item(one, json!({"get": all}), false);
            if let Some(parameters) = item.get_mut("parameters").and_then(Value::as_array_mut) {
                parameters.retain(|p| text(p, "name") != "namespace");
            }
            paths.insert(format!("{root}/{}", one.plural), item);
        }
        let status = format!("{META}.Status");
        let collection = json!({
            "get": list,
            "post": self.operation(one, "create", scope, "", "post", own, own, &[DRY_RUN, MANAGER, VALIDATION]),
            "delete": self.operation(one, "deleteCollection", scope, "", "deletecollection", None, Some(&status), LISTING),
        });
        paths.insert(base.clone(), self.item(one, collection, false));
        paths.insert(
            format!("{base}/{{name}}"),
            self.item(one, self.named(one, scope, "", own), true),
        );
        for subresource in &one.subresources {
            let camel: String = subresource[..1].to_uppercase() + &subresource[1..];
            let place = format!("{base}/{{name}}/{subresource}");
            match subresource.as_str() {
                "status" | "ephemeralcontainers" | "resize" | "approval" | "finalize" => {
                    let mut operations = self.named(one, scope, &camel, own);
                    if let Some(operations) = operations.as_object_mut() {
                        operations.shift_remove("delete");
                    }
                    paths.insert(place, self.item(one, operations, true));
                }
                "scale" => {
                    let scale = "io.k8s.api.autoscaling.v1.Scale";
                    wanted.insert(scale.to_owned());
                    let mut operations = self.named(one, scope, &camel, Some(scale));
                    if let Some(operations) = operations.as_object_mut() {
                        operations.shift_remove("delete");
                        for operation in operations.values_mut() {
                            operation["x-kubernetes-group-version-kind"] =
                                json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
                        }
                    }
                    paths.insert(place, self.item(one, operations, true));
                }
                "eviction" | "binding" | "token" => {
                    let (name, gvk) = match subresource.as_str() {
                        "eviction" => ("io.k8s.api.policy.v1.Eviction", ("policy", "Eviction")),
                        "binding" => ("io.k8s.api.core.v1.Binding", ("", "Binding")),
                        _ => (
                            "io.k8s.api.authentication.v1.TokenRequest",
                            ("authentication.k8s.io", "TokenRequest"),
                        ),
                    };
                    wanted.insert(name.to_owned());
                    let mut create = self.operation(
                        one,
                        "create",
                        scope,
                        &camel,
                        "post",
                        Some(name),
                        Some(name),
                        &[DRY_RUN, MANAGER, VALIDATION],
                    );
                    create["x-kubernetes-group-version-kind"] =
                        json!({"group": gvk.0, "version": "v1", "kind": gvk.1});
                    paths.insert(place, self.item(one, json!({"post": create}), true));
                }
                _ => {}
            }
        }
    }

    fn named(&self, one: &Served, scope: &str, end: &str, own: Option<&str>) -> Value {
        let patch = format!("{META}.Patch");
        let delete = format!("{META}.DeleteOptions");
        let status = format!("{META}.Status");
        json!({
            "get": self.operation(one, "read", scope, end, "get", None, own, &[]),
            "put": self.operation(one, "replace", scope, end, "put", own, own, &[DRY_RUN, MANAGER, VALIDATION]),
            "patch": self.operation(one, "patch", scope, end, "patch", Some(&patch), own, &[DRY_RUN, MANAGER, VALIDATION, FORCE]),
            "delete": self.operation(one, "delete", scope, end, "delete", Some(&delete), Some(&status), &[DRY_RUN, GRACE, PROPAGATION]),
        })
    }

    /// The parameters that all operations of a path share.
    fn item(&self, one: &Served, mut operations: Value, named: bool) -> Value {
        let mut parameters = Vec::new();
        if named {
            let what = format!("name of the {}", one.kind);
            parameters.push(self.parameter(("name", "string", &what), "path"));
        }
        if one.namespaced {
            let what = "object name and auth scope, such as for teams and projects";
            parameters.push(self.parameter(("namespace", "string", what), "path"));
        }
        parameters.push(self.parameter(
            (
                "pretty",
                "string",
                "If 'true', then the output is pretty printed.",
            ),
            "query",
        ));
        operations["parameters"] = json!(parameters);
        operations
    }

    fn parameter(&self, (name, kind, what): Parameter<'_>, place: &str) -> Value {
        let mut out = json!({"name": name, "in": place, "description": what});
        if place == "path" {
            out["required"] = json!(true);
        }
        if self.three {
            out["schema"] = json!({"type": kind, "uniqueItems": true});
        } else {
            out["type"] = json!(kind);
            out["uniqueItems"] = json!(true);
        }
        out
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one row of a table of operations"
    )]
    fn operation(
        &self,
        one: &Served,
        verb: &str,
        scope: &str,
        end: &str,
        action: &str,
        body: Option<&str>,
        answer: Option<&str>,
        parameters: &[Parameter<'_>],
    ) -> Value {
        let tag = tag(&one.group, &one.version);
        let id = format!("{verb}{}{scope}{}{end}", camel(&tag), one.kind);
        let schema = answer.map(|name| self.reference(name));
        let mut parameters: Vec<Value> = parameters
            .iter()
            .map(|p| self.parameter(*p, "query"))
            .collect();
        let types = [
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ];
        let patches = [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ];
        let mut operation = json!({
            "description": format!("{verb} {}", if verb == "list" { "objects of kind" } else { "the specified" }) + " " + &one.kind,
            "operationId": id,
            "tags": [tag],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": one.gvk(),
        });
        let ok = if self.three {
            let content: Map<String, Value> = types
                .iter()
                .take(2)
                .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                .collect();
            json!({"description": "OK", "content": content})
        } else {
            operation["produces"] = json!(types[..2]);
            operation["consumes"] = if action == "patch" {
                json!(patches)
            } else {
                json!(["*/*"])
            };
            operation["schemes"] = json!(["https"]);
            json!({"description": "OK", "schema": schema})
        };
        operation["responses"] = json!({"200": ok, "401": {"description": "Unauthorized"}});
        if let Some(body) = body {
            let schema = self.reference(body);
            if self.three {
                let content: Map<String, Value> = if action == "patch" {
                    patches
                        .iter()
                        .map(|t| ((*t).to_owned(), json!({"schema": schema})))
                        .collect()
                } else {
                    [("*/*".to_owned(), json!({"schema": schema}))]
                        .into_iter()
                        .collect()
                };
                operation["requestBody"] =
                    json!({"content": content, "required": action != "delete"});
            } else {
                parameters.insert(0, json!({"name": "body", "in": "body", "required": action != "delete", "schema": schema}));
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = json!(parameters);
        }
        operation
    }
}

/// What version 2 cannot say is left out: it would make readers of the document fail.
fn for_version_two(schema: &mut Value, root: bool) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let preserve = get_flag(object, "x-kubernetes-preserve-unknown-fields");
    let any_type = get_flag(object, "x-kubernetes-int-or-string") || get_flag(object, "nullable");
    for word in ["oneOf", "anyOf", "allOf", "not", "nullable", "default"] {
        object.shift_remove(word);
    }
    if any_type || (preserve && !root) {
        for word in [
            "type",
            "items",
            "properties",
            "additionalProperties",
            "required",
        ] {
            object.shift_remove(word);
        }
        return;
    }
    if let Some(items) = object.get_mut("items") {
        for_version_two(items, false);
    }
    if let Some(values) = object.get_mut("additionalProperties") {
        for_version_two(values, false);
    }
    for field in object
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        for_version_two(field.1, false);
    }
}

fn get_flag(object: &Map<String, Value>, name: &str) -> bool {
    object
        .get(name)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

type Parameter<'a> = (&'a str, &'a str, &'a str);

const DRY_RUN: Parameter<'static> = (
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. Valid values are: All",
);
const MANAGER: Parameter<'static> = (
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes.",
);
const VALIDATION: Parameter<'static> = (
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle unknown or duplicate fields. Valid values are: Ignore, Warn, Strict",
);
const FORCE: Parameter<'static> = (
    "force",
    "boolean",
    "Force is going to \"force\" Apply requests.",
);
const GRACE: Parameter<'static> = (
    "gracePeriodSeconds",
    "integer",
    "The duration in seconds before the object should be deleted.",
);
const PROPAGATION: Parameter<'static> = (
    "propagationPolicy",
    "string",
    "Whether and how garbage collection will be performed.",
);
const LISTING: &[Parameter<'static>] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "allowWatchBookmarks requests watch events with type \"BOOKMARK\".",
    ),
    (
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    ),
    (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields.",
    ),
    (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels.",
    ),
    (
        "limit",
        "integer",
        "limit is a maximum number of responses to return for a list call.",
    ),
    (
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "resourceVersionMatch determines how resourceVersion is applied to list calls.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "sendInitialEvents begins a watch with synthetic events of the current state.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "Timeout for the list/watch call.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream.",
    ),
];

/// `core_v1`, `apps_v1`, `rbacAuthorization_v1`.
fn tag(group: &str, version: &str) -> String {
    let group = match group {
        "" => "core".to_owned(),
        group => {
            let group = group.strip_suffix(".k8s.io").unwrap_or(group);
            let mut parts = group.split('.');
            let mut out = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                out.push_str(&camel(part));
            }
            out
        }
    };
    format!("{group}_{version}")
}

fn camel(text: &str) -> String {
    text.split(['_', '-'])
        .map(|part| {
            let mut letters = part.chars();
            match letters.next() {
                Some(first) => first.to_uppercase().collect::<String>() + letters.as_str(),
                None => String::new(),
            }
        })
        .collect()
}

/// The kind of a schema in a document, for who looks for one: `(group, version, kind)`.
pub fn kind_of(schema: &Value) -> Option<(String, String, String)> {
    let gvk = get(schema, "x-kubernetes-group-version-kind").get(0)?;
    Some((
        text(gvk, "group").to_owned(),
        text(gvk, "version").to_owned(),
        text(gvk, "kind").to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of a document leads to a schema of it.
    fn check(document: &Value, prefix: &str, schemas: &Value) {
        fn walk(value: &Value, prefix: &str, schemas: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
                        let name = reference.strip_prefix(prefix).expect(reference);
                        assert!(schemas.get(name).is_some(), "{reference}");
                    }
                    object.values().for_each(|v| walk(v, prefix, schemas));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(v, prefix, schemas)),
                _ => {}
            }
        }
        walk(document, prefix, schemas);
    }

    fn widget(schema: &Value) -> Custom<'_> {
        Custom {
            group: "example.com",
            version: "v1",
            kind: "Widget",
            list_kind: "WidgetList",
            plural: "widgets",
            namespaced: true,
            schema,
            has_status: true,
            has_scale: false,
        }
    }

    #[test]
    fn each_group_has_a_document_of_its_own() {
        for (group, version) in built_in_groups() {
            let document = v3(group, version, &[]).unwrap();
            check(
                &document,
                "#/components/schemas/",
                &document["components"]["schemas"],
            );
        }
        assert!(v3("nothing.example", "v1", &[]).is_none());
        let apps = v3("apps", "v1", &[]).unwrap();
        let deployment = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            kind_of(deployment).unwrap(),
            ("apps".to_owned(), "v1".to_owned(), "Deployment".to_owned())
        );
        assert!(
            deployment["description"]
                .as_str()
                .unwrap()
                .contains("declarative updates")
        );
        let containers = &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]
            ["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let patch =
            &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["dryRun", "fieldManager", "fieldValidation", "force"]
        );
    }

    #[test]
    fn the_old_document_has_everything() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}}});
        let document = v2(&[widget(&schema)]);
        check(&document, "#/definitions/", &document["definitions"]);
        assert_eq!(document["swagger"], "2.0");
        let pods = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
        assert_eq!(pods["get"]["operationId"], "readCoreV1NamespacedPod");
        assert_eq!(
            document["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"],
            "string"
        );
        let own = &document["definitions"]["com.example.v1.Widget"];
        assert!(
            own["properties"]["spec"]["properties"]["size"]
                .get("anyOf")
                .is_none()
        );
        let ids: Vec<&str> = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|item| {
                item.as_object()
                    .unwrap()
                    .values()
                    .filter_map(|operation| operation.get("operationId"))
                    .filter_map(Value::as_str)
            })
            .collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len());
    }

    #[test]
    fn custom_resources_stand_beside() {
        let schema = json!({"type": "object", "description": "A widget.", "properties": {"spec": {"type": "object"}}});
        let document = v3("example.com", "v1", &[widget(&schema)]).unwrap();
        check(
            &document,
            "#/components/schemas/",
            &document["components"]["schemas"],
        );
        let own = &document["components"]["schemas"]["com.example.v1.Widget"];
        assert_eq!(own["description"], "A widget.");
        assert_eq!(kind_of(own).unwrap().2, "Widget");
        assert!(
            document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/status"]
                ["patch"]
                .is_object()
        );
        let bytes = document.to_string();
        assert_eq!(hash(bytes.as_bytes()), hash(bytes.as_bytes()));
        assert_ne!(hash(b"a"), hash(b"b"));
        let index = v3_index(&[(place("example.com", "v1"), "AB".to_owned())]);
        assert_eq!(
            index["paths"]["apis/example.com/v1"]["serverRelativeURL"],
            "/openapi/v3/apis/example.com/v1?hash=AB"
        );
    }
}
