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
    one_of: Vec<String>,
    /// Only schemas of custom resources have one.
    default: Value,
    /// Only schemas of custom resources say so.
    preserve_unknown: bool,
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

fn uncompressed() -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(COMPRESSED)
        .read_to_end(&mut text)
        .expect("the table is a part of this program");
    text
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let types: BTreeMap<String, Schema> =
            serde_json::from_slice(&uncompressed()).expect("the table is a part of this program");
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

    /// The table with its descriptions, as it lies in the program: read anew each time, so that nobody keeps it by accident.
    pub(crate) fn documented() -> BTreeMap<String, Value> {
        serde_json::from_slice(&uncompressed()).expect("the table is a part of this program")
    }

    /// The types of a custom resource, from its `openAPIV3Schema`.
    pub(crate) fn custom(schema: &Value) -> Self {
        let mut own = Self::converted(schema);
        for name in ["apiVersion", "kind"] {
            let text = Self {
                kind: Some("string".to_owned()),
                ..Self::default()
            };
            own.fields.insert(name.to_owned(), text);
        }
        let metadata = Self {
            reference: Some("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta".to_owned()),
            ..Self::default()
        };
        own.fields.insert("metadata".to_owned(), metadata);
        own
    }

    fn converted(schema: &Value) -> Self {
        let word = |name: &str| schema.get(name).and_then(Value::as_str).map(str::to_owned);
        let flag = |name: &str| {
            schema
                .get(name)
                .and_then(Value::as_bool)
                .unwrap_or_default()
        };
        let inner = |name: &str| {
            let inner = schema.get(name).filter(|inner| inner.is_object())?;
            Some(Box::new(Self::converted(inner)))
        };
        let keys = schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array);
        let fields = schema.get("properties").and_then(Value::as_object);
        Self {
            kind: word("type"),
            list_type: word("x-kubernetes-list-type"),
            list_map_keys: keys
                .into_iter()
                .flatten()
                .filter_map(|key| key.as_str().map(str::to_owned))
                .collect(),
            map_type: word("x-kubernetes-map-type"),
            items: inner("items"),
            values: inner("additionalProperties"),
            fields: fields
                .into_iter()
                .flatten()
                .map(|(name, field)| (name.clone(), Self::converted(field)))
                .collect(),
            default: schema.get("default").cloned().unwrap_or_default(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            ..Self::default()
        }
    }

    /// Every kind that stands alone, in order.
    pub fn kinds() -> impl Iterator<Item = &'static Gvk> {
        table().by_gvk.keys()
    }

    /// The full name of the type of `kind` in `api_version`, as `io.k8s.api.core.v1.Pod`.
    pub fn name_of(api_version: &str, kind: &str) -> Option<&'static str> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let gvk = Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        table().by_gvk.get(&gvk).map(String::as_str)
    }

    /// The type with a full name.
    pub fn named(name: &str) -> Option<&'static Self> {
        table().types.get(name)
    }

    /// The full name of the type that this field refers to; `None` when its schema stands here.
    pub fn type_name(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    /// The type behind a reference, or itself.
    pub fn resolved(&self) -> &Self {
        match &self.reference {
            Some(name) => table().types.get(name).unwrap_or(self),
            None => self,
        }
    }

    /// The schema of a field of an object, or of a value of a map.
    pub fn field(&self, name: &str) -> Option<&Self> {
        let schema = self.resolved();
        schema.fields.get(name).or(schema.values.as_deref())
    }

    /// The fields that have a name of their own, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Self)> {
        let fields = &self.resolved().fields;
        fields.iter().map(|(name, schema)| (name.as_str(), schema))
    }

    /// Whether it is an object with a field of that name, and not only a map.
    pub fn has_field(&self, name: &str) -> bool {
        self.resolved().fields.contains_key(name)
    }

    /// Whether fields that it does not name are data all the same (custom resources).
    pub fn preserves_unknown(&self) -> bool {
        self.resolved().preserve_unknown
    }

    /// Whether it is an object with named fields (not a map and not free-form).
    pub fn is_struct(&self) -> bool {
        !self.resolved().fields.is_empty()
    }

    /// The schema of a map's values.
    pub fn values(&self) -> Option<&Self> {
        self.resolved().values.as_deref()
    }

    /// The schema of a list's items.
    pub fn items(&self) -> Option<&Self> {
        self.resolved().items.as_deref()
    }

    /// How server-side apply treats the list: what the field says, else what its type says, else `atomic`.
    pub fn list_kind(&self) -> &str {
        let own = self.list_type.as_deref();
        own.or(self.resolved().list_type.as_deref())
            .unwrap_or("atomic")
    }

    /// The fields that name an item of a list of type `map`.
    pub fn map_keys(&self) -> &[String] {
        if self.list_map_keys.is_empty() {
            &self.resolved().list_map_keys
        } else {
            &self.list_map_keys
        }
    }

    /// Whether server-side apply owns the object or map as one value.
    pub fn is_atomic_map(&self) -> bool {
        let own = self.map_type.as_deref();
        own.or(self.resolved().map_type.as_deref()) == Some("atomic")
    }

    /// What a key of a list item counts as when the item does not say: the table's source has no defaults,
    /// and in Kubernetes only ports have one in a key.
    pub fn key_default(&self, key: &str) -> Option<Value> {
        let has_port = || {
            let fields = &self.resolved().fields;
            fields.contains_key("containerPort") || fields.contains_key("targetPort")
        };
        if let Some(default) = self.resolved().fields.get(key).map(|f| &f.default)
            && !default.is_null()
        {
            return Some(default.clone());
        }
        (key == "protocol" && has_port()).then(|| Value::from("TCP"))
    }

    /// The kinds of JSON that a type without one kind may be (`string` and `integer`…).
    pub fn one_of(&self) -> &[String] {
        &self.resolved().one_of
    }

    /// Whether the field's strategic merge says `word` (`merge`, `replace`, `retainKeys`).
    pub fn strategy(&self, word: &str) -> bool {
        let words = self.patch_strategy.as_deref().unwrap_or_default();
        words.split(',').any(|w| w == word)
    }

    /// Fields of `document` that the type does not have, as `spec.containers[0].imagee`; at most [`UNKNOWN_LIMIT`].
    pub fn unknown_fields(&self, document: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.unknown(document, "", &mut found);
        found
    }

    fn unknown(&self, value: &Value, path: &str, found: &mut Vec<String>) {
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
