//! The table of Kubernetes 1.35's types, read when it is first asked for.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

const COMPRESSED: &[u8] = include_bytes!("schema/v1_35.json.gz");
/// Unknown fields of one document that are named; the rest is not walked.
pub const UNKNOWN_LIMIT: usize = 100;

/// What a value may be: a scalar, a list, a map, or an object with named fields.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schema {
    /// Another type by its full name; what stands beside it belongs to the field, not to the type.
    #[serde(rename = "ref")]
    reference: Option<String>,
    /// JSON's word: `string`, `integer`, `number`, `boolean`, `array` or `object`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `int32`, `date-time`, `byte` and so on.
    pub format: Option<String>,
    /// Fields without which an object is refused.
    pub required: Vec<String>,
    /// `atomic`, `set` or `map`, for server-side apply.
    pub list_type: Option<String>,
    /// The fields that name an item of a list of type `map`.
    pub list_map_keys: Vec<String>,
    /// `atomic` or `granular`.
    pub map_type: Option<String>,
    /// The field that names an item in a strategic merge patch.
    pub merge_key: Option<String>,
    patch_strategy: Option<String>,
    /// Group, version and kind of a type that stands alone.
    pub gvk: Vec<Gvk>,
    items: Option<Box<Schema>>,
    values: Option<Box<Schema>>,
    fields: BTreeMap<String, Schema>,
}

/// A type's name in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Gvk {
    /// Empty for core.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `Pod`.
    pub kind: String,
}

struct Table {
    types: BTreeMap<String, Schema>,
    by_gvk: BTreeMap<Gvk, String>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(COMPRESSED)
            .read_to_end(&mut text)
            .expect("the table is a part of this program");
        let types: BTreeMap<String, Schema> =
            serde_json::from_slice(&text).expect("the table is a part of this program");
        let mut by_gvk = BTreeMap::new();
        for (name, schema) in &types {
            // DeleteOptions and WatchEvent stand in every group; a kind of its own has one name.
            if let [gvk] = &schema.gvk[..] {
                by_gvk.insert(gvk.clone(), name.clone());
            }
        }
        Table { types, by_gvk }
    })
}

impl Schema {
    /// The type of `kind` in `api_version` (`v1`, `apps/v1`); `None` when Kubernetes has no such kind.
    pub fn of(api_version: &str, kind: &str) -> Option<&'static Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let gvk = Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        let table = table();
        table.types.get(table.by_gvk.get(&gvk)?)
    }

    /// Every kind that stands alone, in order.
    pub fn kinds() -> impl Iterator<Item = &'static Gvk> {
        table().by_gvk.keys()
    }

    /// The type behind a reference, or itself.
    pub fn resolved(&'static self) -> &'static Self {
        match &self.reference {
            Some(name) => table().types.get(name).unwrap_or(self),
            None => self,
        }
    }

    /// The schema of a field of an object, or of a value of a map.
    pub fn field(&'static self, name: &str) -> Option<&'static Self> {
        let schema = self.resolved();
        schema.fields.get(name).or(schema.values.as_deref())
    }

    /// The schema of a list's items.
    pub fn items(&'static self) -> Option<&'static Self> {
        self.resolved().items.as_deref()
    }

    /// Whether the field's strategic merge says `word` (`merge`, `replace`, `retainKeys`).
    pub fn strategy(&self, word: &str) -> bool {
        let words = self.patch_strategy.as_deref().unwrap_or_default();
        words.split(',').any(|w| w == word)
    }

    /// Fields of `document` that the type does not have, as `spec.containers[0].imagee`; at most [`UNKNOWN_LIMIT`].
    pub fn unknown_fields(&'static self, document: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.unknown(document, "", &mut found);
        found
    }

    fn unknown(&'static self, value: &Value, path: &str, found: &mut Vec<String>) {
        let schema = self.resolved();
        match value {
            Value::Object(object) if !schema.fields.is_empty() || schema.values.is_some() => {
                for (name, inner) in object {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    match schema.field(name) {
                        Some(field) => field.unknown(inner, &path, found),
                        None if found.len() < UNKNOWN_LIMIT => found.push(path),
                        None => return,
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = schema.items() else { return };
                for (at, inner) in list.iter().enumerate() {
                    items.unknown(inner, &format!("{path}[{at}]"), found);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_usual_kinds_are_there() {
        for (api_version, kind) in [
            ("v1", "Pod"),
            ("v1", "Namespace"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "CronJob"),
            ("networking.k8s.io/v1", "Ingress"),
            ("rbac.authorization.k8s.io/v1", "ClusterRole"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ] {
            assert!(
                Schema::of(api_version, kind).is_some(),
                "{api_version} {kind}"
            );
        }
        assert!(Schema::of("v1", "Deployment").is_none());
        assert!(Schema::of("extensions/v1beta1", "Ingress").is_none());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(schema: &Schema, name: &str) {
            if let Some(reference) = &schema.reference {
                assert!(table().types.contains_key(reference), "{name}: {reference}");
            }
            let inner = schema.items.iter().chain(&schema.values).map(AsRef::as_ref);
            for inner in inner.chain(schema.fields.values()) {
                walk(inner, name);
            }
        }
        for (name, schema) in &table().types {
            walk(schema, name);
        }
    }

    #[test]
    fn unknown_fields_are_named_with_their_path() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "bogus": 1,
            "metadata": {"name": "a", "labels": {"any": "thing"}},
            "spec": {"containers": [{"name": "c", "imagee": "x", "resources": {"limits": {"cpu": 1}}}]}});
        let schema = Schema::of("v1", "Pod").unwrap();
        assert_eq!(
            schema.unknown_fields(&pod),
            ["bogus", "spec.containers[0].imagee"]
        );
    }

    #[test]
    fn a_field_says_how_it_merges() {
        let spec = Schema::of("v1", "Pod").unwrap().field("spec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.strategy("merge"));
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        let ports = containers.items().unwrap().field("ports").unwrap();
        assert_eq!(ports.list_map_keys, ["containerPort", "protocol"]);
    }
}
