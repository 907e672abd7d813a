//! Field selectors of lists and watches: `status.phase!=Running,spec.nodeName=n1`; each kind has its few fields.
//!
//! Spec: Kubernetes, "Field Selectors".

use crate::view::{at, get};
use serde_json::Value;

/// Requirements of one selector.
pub const REQUIREMENTS_LIMIT: usize = 100;

/// A parsed selector: every requirement must hold. The empty one chooses everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Requirement>);

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// `spec.nodeName`.
    pub field: String,
    /// Whether the field must have the value, or must not.
    pub equal: bool,
    /// The value.
    pub value: String,
}

const META: &[&str] = &["metadata.name", "metadata.namespace"];
const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
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
];
const NEW_EVENT: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

/// The fields of a kind beside its name and namespace.
fn fields_of(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod") => POD,
        ("", "Event") => EVENT,
        ("events.k8s.io", "Event") => NEW_EVENT,
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("apps", "StatefulSet") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec.signerName"],
        _ => &[],
    }
}

/// The sentence about a field that the kind does not have; it depends on who wrote the kind.
fn refused(group: &str, kind: &str, field: &str) -> String {
    match (group, kind) {
        ("batch", "Job") => format!("field label \"{field}\" not supported for Job"),
        ("apps", "StatefulSet") => {
            format!("field label not supported for appsv1.StatefulSet: {field}")
        }
        ("" | "events.k8s.io" | "certificates.k8s.io", _) if !fields_of(group, kind).is_empty() => {
            format!("field label not supported: {field}")
        }
        _ => format!(
            "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
    }
}

impl FieldSelector {
    /// Reads a selector for a kind. `custom` are the paths of a custom resource's `selectableFields`, without their leading dot.
    ///
    /// # Errors
    /// The message of a `BadRequest`.
    pub fn parse(text: &str, group: &str, kind: &str, custom: &[String]) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for part in split(text) {
            if part.is_empty() {
                continue;
            }
            if requirements.len() == REQUIREMENTS_LIMIT {
                return Err(format!(
                    "a field selector has at most {REQUIREMENTS_LIMIT} requirements"
                ));
            }
            let (field, equal, value) = operator(part)
                .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            // The old name of the field.
            let field = match (group, kind, field) {
                ("", "Pod", "spec.host") => "spec.nodeName",
                (_, _, field) => field,
            };
            let known = META.contains(&field)
                || fields_of(group, kind).contains(&field)
                || custom.iter().any(|path| path == field);
            if !known {
                return Err(refused(group, kind, field));
            }
            requirements.push(Requirement {
                field: field.to_owned(),
                equal,
                value: unescaped(value)?,
            });
        }
        Ok(Self(requirements))
    }

    /// The requirements in order.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// The one name that objects must have, if the selector asks for one: it can be looked up.
    pub fn name(&self) -> Option<&str> {
        let named = |r: &&Requirement| r.equal && r.field == "metadata.name";
        self.0.iter().find(named).map(|r| r.value.as_str())
    }

    /// Whether an object is chosen.
    pub fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|r| (value_of(object, &r.field) == r.value) == r.equal)
    }
}

/// A field's value as text; what is missing is empty, and a missing truth value is false.
fn value_of(object: &Value, field: &str) -> String {
    let found = match field {
        "source" => match at(object, &["source", "component"]) {
            Value::Null => get(object, "reportingComponent"),
            component => component,
        },
        "status.successful" => at(object, &["status", "succeeded"]),
        "status.podIP" => match at(object, &["status", "podIPs"]).get(0) {
            Some(first) => get(first, "ip"),
            None => at(object, &["status", "podIP"]),
        },
        "status.podIPs" => {
            let ips = at(object, &["status", "podIPs"]).as_array();
            let ips = ips
                .into_iter()
                .flatten()
                .filter_map(|ip| get(ip, "ip").as_str());
            return ips.collect::<Vec<_>>().join(",");
        }
        path => {
            let steps: Vec<&str> = path.split('.').collect();
            at(object, &steps)
        }
    };
    match found {
        Value::String(text) => text.clone(),
        Value::Null if matches!(field, "spec.hostNetwork" | "spec.unschedulable") => {
            "false".to_owned()
        }
        Value::Null if matches!(field, "status.successful" | "status.replicas") => "0".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Splits at the commas that no backslash escapes.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator(part: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in part.char_indices() {
        let rest = &part[at..];
        for (word, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(word) {
                return Some((&part[..at], equal, value));
            }
        }
    }
    None
}

fn unescaped(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{other}"
                    ));
                }
                None => {
                    return Err("invalid field selector: invalid escape sequence: \\".to_owned());
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {letter}"
                ));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chosen(text: &str, kind: &str, object: &Value) -> bool {
        FieldSelector::parse(text, "", kind, &[])
            .unwrap()
            .matches(object)
    }

    #[test]
    fn selectors_choose_by_the_fields_of_a_kind() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}});
        for (text, wanted) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace!=n", false),
            ("spec.nodeName=x,status.phase!=Pending", true),
            ("spec.host=x", true),
            ("spec.hostNetwork=false", true),
            ("status.podIP=10.0.0.1", true),
            ("status.nominatedNodeName=", true),
            ("status.phase=Failed", false),
        ] {
            assert_eq!(chosen(text, "Pod", &pod), wanted, "{text}");
        }
        let event = json!({"involvedObject": {"kind": "Pod", "name": "a"}, "type": "Warning", "source": {"component": "scheduler"}});
        assert!(chosen(
            "involvedObject.name=a,type=Warning,source=scheduler",
            "Event",
            &event
        ));
        assert!(chosen("type=Opaque", "Secret", &json!({"type": "Opaque"})));
        assert!(chosen("spec.unschedulable=false", "Node", &json!({})));
        let selector = FieldSelector::parse("metadata.name=a\\,b", "", "Pod", &[]).unwrap();
        assert_eq!(selector.name(), Some("a,b"));
        let custom = FieldSelector::parse(
            "spec.color=red",
            "example.com",
            "Widget",
            &["spec.color".to_owned()],
        )
        .unwrap();
        assert!(custom.matches(&json!({"spec": {"color": "red"}})));
    }

    #[test]
    fn other_fields_are_refused_in_kubernetes_words() {
        let refused = |text: &str, group: &str, kind: &str| {
            FieldSelector::parse(text, group, kind, &[]).unwrap_err()
        };
        assert_eq!(
            refused("spec.foo=a", "", "Pod"),
            "field label not supported: spec.foo"
        );
        assert_eq!(
            refused("spec.foo=a", "apps", "Deployment"),
            "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(
            refused("a=b", "batch", "Job"),
            "field label \"a\" not supported for Job"
        );
        assert_eq!(
            refused("foo", "", "Pod"),
            "invalid selector: 'foo'; can't understand 'foo'"
        );
        assert_eq!(
            refused("metadata.name=a=b", "", "Pod"),
            "invalid field selector: unescaped character in value: ="
        );
        let many = vec!["metadata.name!=a"; 200].join(",");
        assert!(FieldSelector::parse(&many, "", "Pod", &[]).is_err());
    }
}
