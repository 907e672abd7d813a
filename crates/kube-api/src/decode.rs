//! Reading what a client sends: JSON or YAML, bounded; fields that are unknown or stand twice are named; values of a wrong type
//! are refused in the words of Kubernetes' decoder.
//!
//! bytes --[`read`]--> document, duplicate fields
//! document --[`typed`]--> document of a built-in kind: without nulls and unknown fields, which are named
//!
//! Spec: Kubernetes, "Field validation" (`fieldValidation=Strict|Warn|Ignore`).

use crate::quantity::Quantity;
use crate::schema::{Schema, UNKNOWN_LIMIT};
use crate::view::text;
use base64::Engine;
use serde::de::{Deserialize, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// Bytes of one document.
pub const SIZE_LIMIT: usize = 3 * 1024 * 1024;
/// Levels of one document.
pub const DEPTH_LIMIT: usize = 127;
/// Values in one document, also those that a YAML alias repeats.
pub const VALUES_LIMIT: usize = 500_000;
/// Times that a YAML document may use its anchors.
pub const ALIASES_LIMIT: usize = 10_000;
/// Bytes of all keys and strings of one document, also those that a YAML alias repeats.
pub const TEXT_LIMIT: usize = 2 * SIZE_LIMIT;

/// How the bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`, also the body of an apply patch.
    Yaml,
}

/// What `fieldValidation` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Unknown and duplicate fields are dropped silently.
    Ignore,
    /// They are dropped, and each becomes a `Warning` header.
    #[default]
    Warn,
    /// They are an error.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; empty is `Warn`.
    ///
    /// # Errors
    /// Kubernetes' sentence about other words.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(format!(
                "fieldValidation: Unsupported value: {}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
                crate::field::quoted(other)
            )),
        }
    }
}

/// A document, and what strict reading has against it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The document.
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.replicas"`: warnings one by one, or one error by [`strict`].
    pub problems: Vec<String>,
}

/// The error of strict reading: `strict decoding error: unknown field "spec.foo", …`.
pub fn strict(problems: &[String]) -> String {
    format!("strict decoding error: {}", problems.join(", "))
}

/// The sentence (400) around what is wrong with a body whose kind is known: `version` without its group.
pub fn cannot_handle(kind: &str, api_version: &str, as_kind: &str, why: &str) -> String {
    let version = api_version
        .rsplit_once('/')
        .map_or(api_version, |(_, version)| version);
    format!("{kind} in version {version:?} cannot be handled as a {as_kind}: {why}")
}

/// Reads a built-in object: bytes in `format`, which must hold an object of `kind` in `api_version` (both are filled in when the
/// client left them out). Gives the typed document and its problems, which the caller handles as [`FieldValidation`] says.
///
/// # Errors
/// The message of a `BadRequest`.
pub fn object(
    bytes: &[u8],
    format: Format,
    api_version: &str,
    kind: &str,
    validation: FieldValidation,
) -> Result<Decoded, String> {
    let unrecognized = |why: String| {
        format!("the object provided is unrecognized (must be of type {kind}): {why}")
    };
    let mut decoded = read(bytes, format).map_err(unrecognized)?;
    let Some(object) = decoded.object.as_object_mut() else {
        return Err(unrecognized(
            "couldn't get version/kind; json parse error: the document is not an object".to_owned(),
        ));
    };
    for (field, value) in [("apiVersion", api_version), ("kind", kind)] {
        let given = object.entry(field).or_insert(Value::Null);
        if given.is_null() || given == "" {
            *given = Value::from(value);
        }
    }
    let (given_version, given_kind) = (
        text(&decoded.object, "apiVersion").to_owned(),
        text(&decoded.object, "kind").to_owned(),
    );
    if given_kind != kind {
        return Err(cannot_handle(
            &given_kind,
            &given_version,
            kind,
            &format!(
                "converting ({given_version}, Kind={given_kind}) to ({api_version}, Kind={kind}): unknown conversion"
            ),
        ));
    }
    if given_version != api_version {
        return Err(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        ));
    }
    if let Some(schema) = Schema::of(api_version, kind) {
        let unknown = typed(schema, kind, &mut decoded.object)
            .map_err(|why| cannot_handle(kind, api_version, kind, &why))?;
        decoded.problems.extend(unknown);
    }
    if validation == FieldValidation::Strict && !decoded.problems.is_empty() {
        return Err(cannot_handle(
            kind,
            api_version,
            kind,
            &strict(&decoded.problems),
        ));
    }
    if validation == FieldValidation::Ignore {
        decoded.problems.clear();
    }
    Ok(decoded)
}

/// Reads bytes into a document, with the fields that stand twice (the last one counts).
///
/// # Errors
/// What is wrong with the bytes, as one sentence.
pub fn read(bytes: &[u8], format: Format) -> Result<Decoded, String> {
    if bytes.len() > SIZE_LIMIT {
        return Err(format!(
            "the document has {} bytes, more than {SIZE_LIMIT}",
            bytes.len()
        ));
    }
    let state = State::default();
    let seed = Seed {
        state: &state,
        path: "",
        depth: 0,
    };
    let object = match format {
        Format::Json => {
            let mut reader = serde_json::Deserializer::from_slice(bytes);
            let value = seed.deserialize(&mut reader);
            value
                .and_then(|value| reader.end().map(|()| value))
                .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))?
        }
        Format::Yaml => yaml(bytes, seed)?,
    };
    Ok(Decoded {
        object,
        problems: state.duplicates.into_inner(),
    })
}

fn yaml(bytes: &[u8], seed: Seed<'_>) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // `defaultMode: 0644` is octal in Kubernetes' manifests.
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        budget: serde_saphyr::budget! {
            max_aliases: ALIASES_LIMIT,
            max_anchors: ALIASES_LIMIT,
            max_depth: DEPTH_LIMIT,
            max_documents: 2,
            max_nodes: VALUES_LIMIT,
            max_total_scalar_bytes: TEXT_LIMIT,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: VALUES_LIMIT,
        },
    };
    serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |reader| {
        seed.deserialize(reader)
    })
    .map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        format!("error converting YAML to JSON: yaml: {line}")
    })
}

#[derive(Default)]
struct State {
    duplicates: RefCell<Vec<String>>,
    values: RefCell<usize>,
    text: RefCell<usize>,
}

impl State {
    fn count<E: serde::de::Error>(&self, text: usize) -> Result<(), E> {
        let mut values = self.values.borrow_mut();
        *values += 1;
        let mut total = self.text.borrow_mut();
        *total += text;
        if *values > VALUES_LIMIT {
            return Err(E::custom(format!(
                "the document has more than {VALUES_LIMIT} values"
            )));
        }
        if *total > TEXT_LIMIT {
            return Err(E::custom(format!(
                "the document has more than {TEXT_LIMIT} bytes of text"
            )));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    state: &'a State,
    path: &'a str,
    depth: usize,
}

impl<'a> Seed<'a> {
    fn below<E: serde::de::Error>(&self, path: &'a str) -> Result<Seed<'a>, E> {
        if self.depth == DEPTH_LIMIT {
            return Err(E::custom(format!(
                "the document is deeper than {DEPTH_LIMIT} levels"
            )));
        }
        Ok(Seed {
            path,
            depth: self.depth + 1,
            ..*self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.state.count(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.deserialize(reader)
    }

    fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Value, E> {
        self.state.count(0)?;
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        self.state.count(0)?;
        Ok(Value::from(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        self.state.count(0)?;
        Ok(Value::from(number))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        self.state.count(0)?;
        Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.state.count(text.len())?;
        Ok(Value::from(text))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        self.state.count(text.len())?;
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.state.count(0)?;
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            let Some(item) = items.next_element_seed(self.below(&path)?)? else {
                return Ok(Value::Array(list));
            };
            list.push(item);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.state.count(0)?;
        let mut object = Map::new();
        while let Some(Key(key)) = entries.next_key()? {
            self.state.count(key.len())?;
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            let value = entries.next_value_seed(self.below(&path)?)?;
            if object.insert(key, value).is_some() {
                let mut duplicates = self.state.duplicates.borrow_mut();
                if duplicates.len() < UNKNOWN_LIMIT {
                    duplicates.push(format!("duplicate field {}", crate::field::quoted(&path)));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// A key of an object. YAML's may be a number or a truth value: it becomes its text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct AnyKey;
        impl Visitor<'_> for AnyKey {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Key, E> {
                Ok(Key(text.to_owned()))
            }
            fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Key, E> {
                Ok(Key(flag.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Key, E> {
                Ok(Key(number.to_string()))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Key, E> {
                Ok(Key(number.to_string()))
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Key, E> {
                Ok(Key(number.to_string()))
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Key, E> {
                Err(E::custom("a key is null"))
            }
        }
        reader.deserialize_any(AnyKey)
    }
}

/// Brings a document into the shape of its built-in type, as Kubernetes' own structs would hold it: nulls and unknown fields go.
/// Gives the unknown fields, at most [`UNKNOWN_LIMIT`], as `unknown field "spec.foo"`.
///
/// # Errors
/// A value of a wrong JSON type, in the words of Kubernetes' decoder.
pub fn typed(schema: &Schema, kind: &str, document: &mut Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    let place = Place {
        structure: kind,
        fields: "",
        path: "",
    };
    fit(schema, None, document, place, &mut unknown)?;
    Ok(unknown)
}

#[derive(Clone, Copy)]
struct Place<'a> {
    /// The innermost type with named fields.
    structure: &'a str,
    /// Field names from the document on, without indices, as errors of types show them.
    fields: &'a str,
    /// The same with indices, as unknown fields show them.
    path: &'a str,
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn fit(
    schema: &Schema,
    name: Option<&str>,
    value: &mut Value,
    place: Place<'_>,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let own = schema.resolved();
    let kind = own.kind.as_deref().unwrap_or_default();
    let wrong = |value: &Value| {
        let given = match value {
            Value::String(_) => "string".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
            Value::Number(number) if kind == "integer" => format!("number {number}"),
            _ => "number".to_owned(),
        };
        Err(format!(
            "json: cannot unmarshal {given} into Go struct field {}.{} of type {}",
            place.structure,
            place.fields,
            go_type(schema)
        ))
    };
    if name.is_some_and(|name| name.ends_with("resource.Quantity")) {
        return match Quantity::from_value(value) {
            Ok(_) => Ok(()),
            Err(sentence) => Err(sentence.to_owned()),
        };
    }
    match (kind, &mut *value) {
        ("object", Value::Object(object)) => {
            object.retain(|_, value| !value.is_null());
            let structure = name.map(|name| last(name).to_owned());
            let structure = structure.as_deref().unwrap_or(place.structure);
            let mut strangers = Vec::new();
            for (field, inner) in object.iter_mut() {
                let path = joined(place.path, field);
                if let Some(schema) = own.field(field) {
                    let fields = if own.is_struct() {
                        joined(place.fields, field)
                    } else {
                        place.fields.to_owned()
                    };
                    let place = Place {
                        structure,
                        fields: &fields,
                        path: &path,
                    };
                    fit(schema, schema.type_name(), inner, place, unknown)?;
                } else if own.is_struct() {
                    strangers.push(path);
                }
            }
            if !strangers.is_empty() {
                object.retain(|field, _| own.field(field).is_some());
            }
            let room = UNKNOWN_LIMIT.saturating_sub(unknown.len());
            for path in strangers.into_iter().take(room) {
                unknown.push(format!("unknown field {}", crate::field::quoted(&path)));
            }
            Ok(())
        }
        ("array", Value::Array(items)) => {
            let Some(schema) = own.items() else {
                return Ok(());
            };
            for (at, item) in items.iter_mut().enumerate() {
                let path = format!("{}[{at}]", place.path);
                let place = Place {
                    path: &path,
                    ..place
                };
                fit(schema, schema.type_name(), item, place, unknown)?;
            }
            Ok(())
        }
        ("string", Value::String(text)) => match own.format.as_deref() {
            Some("byte") => base64_fault(text).map_or(Ok(()), Err),
            Some("date-time") => time_fault(text).map_or(Ok(()), Err),
            _ => Ok(()),
        },
        ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) | ("", _) => {
            let choices = own.one_of();
            let fits = choices.is_empty()
                || choices.iter().any(|choice| match &*value {
                    Value::String(_) => choice == "string",
                    Value::Number(number) => {
                        choice == "number" || (choice == "integer" && !number.is_f64())
                    }
                    Value::Null => true,
                    _ => false,
                });
            if fits { Ok(()) } else { wrong(value) }
        }
        ("integer", Value::Number(number)) => {
            let fits = match (number.as_i64(), own.format.as_deref()) {
                (Some(number), Some("int32")) => i32::try_from(number).is_ok(),
                (Some(_), _) => true,
                (None, _) => false,
            };
            // 1.0 is a whole number.
            let whole = number
                .as_f64()
                .filter(|n| n.fract() == 0.0 && n.abs() < 9e15);
            match whole {
                _ if fits => Ok(()),
                Some(whole) if number.is_f64() && own.format.as_deref() != Some("int32") => {
                    *value = Value::from(whole as i64);
                    Ok(())
                }
                _ => wrong(value),
            }
        }
        (_, Value::Null) => Ok(()),
        _ => wrong(value),
    }
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The type as Go writes it.
fn go_type(schema: &Schema) -> String {
    let own = schema.resolved();
    if let Some(name) = schema.type_name() {
        let mut parts = name.rsplit('.');
        let (name, package) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        if own.kind.as_deref() == Some("object") || own.kind.is_none() {
            return format!("{package}.{name}");
        }
    }
    match (own.kind.as_deref(), own.format.as_deref()) {
        (Some("integer"), Some(format @ ("int32" | "int64"))) => format.to_owned(),
        (Some("integer"), _) => "int".to_owned(),
        (Some("number"), _) => "float64".to_owned(),
        (Some("boolean"), _) => "bool".to_owned(),
        (Some("string"), Some("byte")) => "[]uint8".to_owned(),
        (Some("array"), _) => format!("[]{}", own.items().map(go_type).unwrap_or_default()),
        (Some("object"), _) => format!(
            "map[string]{}",
            own.values()
                .map_or_else(|| "interface {}".to_owned(), go_type)
        ),
        _ => "string".to_owned(),
    }
}

/// Whether a text is a point in time (RFC 3339).
pub(crate) fn is_time(text: &str) -> bool {
    !text.is_empty() && time_fault(text).is_none()
}

/// Whether a text is base64.
pub(crate) fn is_base64(text: &str) -> bool {
    base64_fault(text).is_none()
}

fn base64_fault(text: &str) -> Option<String> {
    let plain: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    let error = base64::engine::general_purpose::STANDARD
        .decode(&plain)
        .err()?;
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            at
        }
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
            plain.len() / 4 * 4
        }
    };
    Some(format!("illegal base64 data at input byte {at}"))
}

/// RFC 3339, as far as a client can get it wrong.
fn time_fault(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digits = |from: usize, to: usize| {
        bytes
            .get(from..to)
            .is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let mark = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    let number = |from: usize, to: usize| {
        text.get(from..to)
            .and_then(|part| part.parse::<u32>().ok())
            .unwrap_or(99)
    };
    let date = digits(0, 4) && mark(4, b"-") && digits(5, 7) && mark(7, b"-") && digits(8, 10);
    let time = mark(10, b"Tt ")
        && digits(11, 13)
        && mark(13, b":")
        && digits(14, 16)
        && mark(16, b":")
        && digits(17, 19);
    let mut zone = text.get(19..).unwrap_or_default();
    if let Some(rest) = zone.strip_prefix('.') {
        zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let zoned = zone == "Z"
        || (zone.len() == 6
            && zone.starts_with(['+', '-'])
            && zone[1..].bytes().enumerate().all(|(at, b)| {
                if at == 2 {
                    b == b':'
                } else {
                    b.is_ascii_digit()
                }
            }));
    let sane = (1..=12).contains(&number(5, 7))
        && (1..=31).contains(&number(8, 10))
        && number(11, 13) < 24
        && number(14, 16) < 60;
    if text.is_empty() || (date && time && zoned && sane) {
        return None;
    }
    Some(format!(
        "parsing time {} as \"2006-01-02T15:04:05Z07:00\": cannot parse {} as \"2006\"",
        crate::field::quoted(text),
        crate::field::quoted(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(body: &str) -> Result<Decoded, String> {
        object(
            body.as_bytes(),
            Format::Json,
            "apps/v1",
            "Deployment",
            FieldValidation::Warn,
        )
    }

    #[test]
    fn unknown_and_duplicate_fields_are_named() {
        let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","labels":null},
            "spec":{"replicas":1,"replicas":2,"foo":1,"template":{"spec":{"containers":[{"name":"c","imagee":"x","image":"i","image":"j"}]}}}}"#;
        let decoded = deployment(body).unwrap();
        assert_eq!(
            decoded.problems,
            [
                "duplicate field \"spec.replicas\"",
                "duplicate field \"spec.template.spec.containers[0].image\"",
                "unknown field \"spec.template.spec.containers[0].imagee\"",
                "unknown field \"spec.foo\"",
            ]
        );
        assert_eq!(
            decoded.object["spec"],
            json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}})
        );
        assert_eq!(decoded.object["metadata"], json!({"name": "a"}));
        let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"foo":1}}"#;
        let refused = object(
            body.as_bytes(),
            Format::Json,
            "apps/v1",
            "Deployment",
            FieldValidation::Strict,
        );
        assert_eq!(
            refused.unwrap_err(),
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.foo\""
        );
        let ignored = object(
            body.as_bytes(),
            Format::Json,
            "apps/v1",
            "Deployment",
            FieldValidation::Ignore,
        );
        assert!(ignored.unwrap().problems.is_empty());
    }

    #[test]
    fn wrong_types_are_refused_in_go_words() {
        for (spec, sentence) in [
            (
                json!({"replicas": "1"}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"replicas": 1.5}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"replicas": 3_000_000_000_u64}),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"template": {"spec": {"containers": {}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                json!({"template": {"spec": {"containers": [{"image": 1}]}}}),
                "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.image of type string",
            ),
            (
                json!({"template": {"spec": {"hostNetwork": "yes"}}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.template.spec.hostNetwork of type bool",
            ),
            (
                json!({"template": {"metadata": {"labels": {"a": 1}}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.spec.template.metadata.labels of type string",
            ),
            (
                json!({"template": []}),
                "json: cannot unmarshal array into Go struct field DeploymentSpec.spec.template of type v1.PodTemplateSpec",
            ),
            (
                json!({"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            let body =
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}).to_string();
            assert_eq!(
                deployment(&body).unwrap_err(),
                format!(
                    "Deployment in version \"v1\" cannot be handled as a Deployment: {sentence}"
                )
            );
        }
        let secret = |data: &str| {
            let body =
                json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": data}}).to_string();
            object(
                body.as_bytes(),
                Format::Json,
                "v1",
                "Secret",
                FieldValidation::Warn,
            )
        };
        assert!(secret("aGVsbG8=").is_ok());
        assert!(secret("aGVs\nbG8=").is_ok());
        assert_eq!(
            secret("a!b=").unwrap_err(),
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 1"
        );
        let body = r#"{"metadata":{"creationTimestamp":"soon"}}"#;
        assert_eq!(
            deployment(body).unwrap_err(),
            "Deployment in version \"v1\" cannot be handled as a Deployment: parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"soon\" as \"2006\""
        );
    }

    #[test]
    fn another_kind_is_refused() {
        assert!(
            deployment(r#"{"kind":"Pod","apiVersion":"v1"}"#)
                .unwrap_err()
                .starts_with("Pod in version \"v1\" cannot be handled as a Deployment: ")
        );
        assert_eq!(
            deployment(r#"{"apiVersion":"v1"}"#).unwrap_err(),
            "the API version in the data (v1) does not match the expected API version (apps/v1)"
        );
        assert!(deployment("{").unwrap_err().starts_with("the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: "));
        assert!(deployment("[]").is_err());
        assert_eq!(
            deployment("{}").unwrap().object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment"})
        );
    }

    #[test]
    fn yaml_is_read_as_kubernetes_reads_it() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {on: \"yes\", 1: b}\nspec:\n  hostNetwork: yes\n  volumes:\n  - name: v\n    configMap: &m {name: m, defaultMode: 0644}\n  - name: w\n    configMap: *m\n";
        let pod = object(
            text.as_bytes(),
            Format::Yaml,
            "v1",
            "Pod",
            FieldValidation::Strict,
        )
        .unwrap()
        .object;
        assert_eq!(
            pod["spec"]["volumes"][1]["configMap"],
            json!({"name": "m", "defaultMode": 420})
        );
        assert_eq!(pod["spec"]["hostNetwork"], true);
        assert_eq!(pod["metadata"]["labels"]["1"], "b");
        let twice = read(b"a: {b: 1, b: 2}\nc: 3\n", Format::Yaml).unwrap();
        assert_eq!(twice.problems, ["duplicate field \"a.b\""]);
        assert_eq!(twice.object, json!({"a": {"b": 2}, "c": 3}));
        assert!(
            read(b"a: [", Format::Yaml)
                .unwrap_err()
                .starts_with("error converting YAML to JSON: yaml: ")
        );
    }

    #[test]
    fn bombs_are_refused() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(read(deep.as_bytes(), Format::Json).is_err());
        assert!(read(deep.as_bytes(), Format::Yaml).is_err());
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let items = vec![format!("*a{below}"); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        let start = std::time::Instant::now();
        assert!(read(laughs.as_bytes(), Format::Yaml).is_err());
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
        assert!(read(&vec![b' '; SIZE_LIMIT + 1], Format::Json).is_err());
        let wide = format!("[{}0]", "0,".repeat(VALUES_LIMIT));
        assert!(
            read(wide.as_bytes(), Format::Json)
                .unwrap_err()
                .contains("more than 500000 values")
        );
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(100_000),
            vec!["*a"; 200].join(",")
        );
        assert!(read(long.as_bytes(), Format::Yaml).is_err());
    }
}
