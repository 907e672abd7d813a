//! Which objects a list, a watch or a deletion of many is about.

use crate::kinds::Kind;
use crate::object;
use crate::request::{Call, Target};
use crate::status::{Result, Status};
use gantry_kube_api::selector::Selector;
use serde_json::Value;

/// Requirements of one field selector.
const FIELDS_LIMIT: usize = 100;

/// A namespace, a name, labels, fields; each may be open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    prefix: String,
    labels: Option<Selector>,
    /// `metadata.name=x` is looked up by key.
    name: Option<String>,
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Field {
    path: String,
    equal: bool,
    value: String,
}

impl Selection {
    pub(crate) fn of(call: &Call, target: &Target) -> Result<Self> {
        let kind = &target.kind;
        let mut prefix = kind.prefix();
        if !target.namespace.is_empty() {
            prefix.push_str(&target.namespace);
            prefix.push('/');
        }
        let labels = match call.query.get("labelSelector") {
            "" => None,
            text => Some(Selector::parse(text).map_err(|why| {
                Status::bad_request(format!("unable to parse requirement: {why}"))
            })?),
        };
        let mut selection = Self {
            prefix,
            labels,
            name: None,
            fields: Vec::new(),
        };
        let fields = call.query.get("fieldSelector");
        for part in fields.split(',').filter(|part| !part.trim().is_empty()) {
            if selection.fields.len() == FIELDS_LIMIT {
                return Err(Status::bad_request("the field selector has too many terms"));
            }
            selection.add(kind, part.trim())?;
        }
        if !target.name.is_empty() {
            selection.name = Some(target.name.clone());
        }
        Ok(selection)
    }

    /// Everything of a kind.
    pub(crate) fn all(kind: &Kind) -> Self {
        Self {
            prefix: kind.prefix(),
            ..Self::default()
        }
    }

    /// Everything of a kind in a namespace.
    pub(crate) fn within(kind: &Kind, namespace: &str) -> Self {
        Self {
            prefix: format!("{}{namespace}/", kind.prefix()),
            ..Self::default()
        }
    }

    fn add(&mut self, kind: &Kind, part: &str) -> Result<()> {
        let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = part.split_once("==") {
            (path, true, value)
        } else if let Some((path, value)) = part.split_once('=') {
            (path, true, value)
        } else {
            return Err(Status::bad_request(format!(
                "invalid selector: {part:?}; can't understand {part:?}"
            )));
        };
        if !supported(kind, path) {
            return Err(Status::bad_request(
                if kind.group.is_empty() || kind.custom.is_some() {
                    format!("field label not supported: {path}")
                } else {
                    format!(
                        "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                },
            ));
        }
        if path == "metadata.name" && equal && kind_is_single(kind, &self.prefix) {
            self.name = Some(value.to_owned());
            return Ok(());
        }
        self.fields.push(Field {
            path: path.to_owned(),
            equal,
            value: value.to_owned(),
        });
        Ok(())
    }

    /// What every chosen key begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The one key that can be meant, if only one can.
    pub(crate) fn only_key(&self) -> Option<String> {
        self.name
            .as_ref()
            .map(|name| format!("{}{name}", self.prefix))
    }

    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        match &self.name {
            Some(name) => {
                key.len() == self.prefix.len() + name.len()
                    && key.starts_with(self.prefix.as_bytes())
                    && key.ends_with(name.as_bytes())
            }
            None => key.starts_with(self.prefix.as_bytes()),
        }
    }

    /// Whether the key alone decides.
    pub(crate) fn is_by_key(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    /// Whether an object whose key is chosen is chosen.
    pub(crate) fn chooses(&self, kept: &[u8]) -> Result<bool> {
        if self.is_by_key() {
            return Ok(true);
        }
        if let Some(labels) = &self.labels {
            let head = object::head(kept)?;
            let found = head.metadata.labels.unwrap_or_default();
            let found = found.into_iter().map(|(k, v)| (k, Value::String(v)));
            if !labels.matches(&Value::Object(found.collect())) {
                return Ok(false);
            }
        }
        if self.fields.is_empty() {
            return Ok(true);
        }
        let object = object::decode(kept, 0)?;
        Ok(self
            .fields
            .iter()
            .all(|field| (value_of(&object, &field.path) == field.value) == field.equal))
    }
}

/// A key is known from the name alone when the namespace is fixed or there is none.
fn kind_is_single(kind: &Kind, prefix: &str) -> bool {
    !kind.namespaced || prefix != kind.prefix()
}

fn value_of(object: &Value, path: &str) -> String {
    let mut value = object;
    for word in path.split('.') {
        match value.get(word) {
            Some(inner) => value = inner,
            None => {
                return match path {
                    "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
                    "status.successful" | "status.replicas" => "0".to_owned(),
                    _ => String::new(),
                };
            }
        }
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn supported(kind: &Kind, path: &str) -> bool {
    if matches!(path, "metadata.name") || path == "metadata.namespace" && kind.namespaced {
        return true;
    }
    if let Some(custom) = &kind.custom {
        return custom.selectable.iter().any(|field| field == path);
    }
    let fields: &[&str] = match (&kind.group[..], &kind.plural[..]) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &["reason", "regarding.kind", "regarding.name", "type"],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        _ => &[],
    };
    fields.contains(&path)
}
