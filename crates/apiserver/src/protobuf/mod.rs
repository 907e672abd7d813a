//! Reading objects that clients send as protobuf: typed Go clients (kubectl create, helm) prefer it for Kubernetes' own kinds.
//!
//! `fields.txt` is made by `cargo xtask kube-protobuf`: for each type the numbers of its fields, with the names of the JSON form.
//! An object becomes the same document that its JSON form would be; answers are JSON, which every client takes.
//!
//! Spec: protobuf wire format; Kubernetes "Protobuf encoding": `k8s\0` and a `runtime.Unknown`.

use crate::status::{Result, Status};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gantry_kube_api::schema::Schema;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::OnceLock;

const FIELDS: &str = include_str!("fields.txt");
const MAGIC: &[u8] = b"k8s\0";
const DEPTH_LIMIT: usize = 100;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// Structs that are always on the wire, empty or not. Others are pointers in Kubernetes: an empty one means something.
const DROPPED_EMPTY: [&str; 9] = [
    "status",
    "resources",
    "strategy",
    "updateStrategy",
    "metadata",
    "spec",
    "loadBalancer",
    "template",
    "source",
];
/// Numbers and booleans that are always on the wire: 0 and false say nothing.
const DROPPED_ZERO: [&str; 13] = [
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "hostPort",
    "nodePort",
    "minReadySeconds",
    "generation",
    "observedGeneration",
    "count",
    "restartCount",
    "maxReplicas",
];
const KEPT_FALSE: [&str; 18] = [
    "automountServiceAccountToken",
    "allowPrivilegeEscalation",
    "immutable",
    "optional",
    "suspend",
    "enableServiceLinks",
    "shareProcessNamespace",
    "runAsNonRoot",
    "privileged",
    "readOnlyRootFilesystem",
    "controller",
    "blockOwnerDeletion",
    "hostUsers",
    "allocateLoadBalancerNodePorts",
    "attachRequired",
    "podInfoOnMount",
    "allowVolumeExpansion",
    "orphanDependents",
];

fn messages() -> &'static HashMap<&'static str, &'static str> {
    static TABLE: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    TABLE.get_or_init(|| {
        FIELDS
            .split('=')
            .filter_map(|section| section.split_once('\n'))
            .collect()
    })
}

fn malformed() -> Status {
    Status::bad_request("the object provided is unrecognized: malformed protobuf")
}

/// The document in a body; kind and version are what the envelope says.
pub(crate) fn decode(body: &[u8]) -> Result<Value> {
    let body = body.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = match Schema::name_of(&api_version, &kind) {
        Some(name) => name.to_owned(),
        None if kind == "DeleteOptions" => format!("{META}DeleteOptions"),
        None => {
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {api_version:?}"
            )));
        }
    };
    let mut object = Map::new();
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), api_version.into());
    message(&name, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn string(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed())
}

enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message as they stand on the wire.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut one = || -> Option<(u64, Wire<'_>)> {
            let tag = varint(&mut rest)?;
            let wire = match tag & 7 {
                0 => Wire::Varint(varint(&mut rest)?),
                1 => {
                    let (bytes, after) = rest.split_first_chunk::<8>()?;
                    rest = after;
                    Wire::Fixed(u64::from_le_bytes(*bytes))
                }
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let (bytes, after) = rest.split_at_checked(length)?;
                    rest = after;
                    Wire::Bytes(bytes)
                }
                5 => {
                    let (bytes, after) = rest.split_first_chunk::<4>()?;
                    rest = after;
                    Wire::Fixed(u64::from(u32::from_le_bytes(*bytes)))
                }
                _ => return None,
            };
            Some((tag >> 3, wire))
        };
        let found = one();
        if found.is_none() {
            rest = &[];
        }
        Some(found.ok_or_else(malformed))
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for at in 0..10 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(at * 7)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Fills `object` with the fields of a message of type `name`.
fn message(name: &str, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(malformed());
    }
    let Some(table) = messages().get(name) else {
        return Err(Status::bad_request(format!("no type {name} in protobuf")));
    };
    for field in fields(bytes) {
        let (number, wire) = field?;
        let line = table.lines().find_map(|line| {
            let (found, rest) = line.split_once(' ')?;
            (found.parse() == Ok(number)).then(|| rest.split_once(' '))?
        });
        // A newer client's field: unknown here, as in JSON.
        let Some((name, kind)) = line else {
            continue;
        };
        if let Some(inner) = kind.strip_prefix('^') {
            let Wire::Bytes(bytes) = wire else {
                return Err(malformed());
            };
            message(inner, bytes, object, depth + 1)?;
        } else if let Some(kind) = kind.strip_prefix('*') {
            let list = object
                .entry(name)
                .or_insert_with(|| Value::Array(Vec::new()));
            let list = list.as_array_mut().ok_or_else(malformed)?;
            match (kind, wire) {
                // Packed numbers.
                ("i", Wire::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        let number = varint(&mut packed).ok_or_else(malformed)?;
                        list.push(number.cast_signed().into());
                    }
                }
                (kind, wire) => list.extend(value(kind, &wire, depth)?),
            }
        } else if let Some(kind) = kind.strip_prefix('%') {
            let Wire::Bytes(entry) = wire else {
                return Err(malformed());
            };
            let (mut key, mut found) = (String::new(), None);
            for field in fields(entry) {
                match field? {
                    (1, Wire::Bytes(text)) => key = string(text)?,
                    (2, wire) => found = value(kind, &wire, depth)?,
                    _ => {}
                }
            }
            let found = found.unwrap_or_else(|| match kind {
                "s" | "y" => "".into(),
                _ => Value::Object(Map::new()),
            });
            object
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()))
                .as_object_mut()
                .ok_or_else(malformed)?
                .insert(key, found);
        } else if let Some(found) = value(kind, &wire, depth)? {
            let says = match &found {
                Value::String(text) => !text.is_empty(),
                Value::Object(inner) => !inner.is_empty() || !DROPPED_EMPTY.contains(&name),
                Value::Number(number) => {
                    number.as_i64() != Some(0) || !DROPPED_ZERO.contains(&name)
                }
                Value::Bool(yes) => *yes || KEPT_FALSE.contains(&name),
                _ => true,
            };
            if says {
                object.insert(name.to_owned(), found);
            }
        }
    }
    Ok(())
}

/// One value. `None`: it says nothing (a time of zero).
fn value(kind: &str, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>> {
    Ok(Some(match (kind, wire) {
        ("s", Wire::Bytes(text)) => string(text)?.into(),
        ("b", Wire::Varint(number)) => (*number != 0).into(),
        ("i", Wire::Varint(number)) => number.cast_signed().into(),
        ("d", Wire::Fixed(bits)) => f64::from_bits(*bits).into(),
        ("y", Wire::Bytes(bytes)) => BASE64_STANDARD.encode(bytes).into(),
        ("s" | "b" | "i" | "d" | "y", _) => return Err(malformed()),
        (name, Wire::Bytes(bytes)) => return special(name, bytes, depth),
        _ => return Err(malformed()),
    }))
}

/// Messages whose JSON form is not an object of their fields.
fn special(name: &str, bytes: &[u8], depth: usize) -> Result<Option<Value>> {
    let first = |number: u64| -> Result<Option<&[u8]>> {
        for field in fields(bytes) {
            if let (found, Wire::Bytes(inner)) = field?
                && found == number
            {
                return Ok(Some(inner));
            }
        }
        Ok(None)
    };
    let short = name.rsplit('.').next().unwrap_or_default();
    Ok(match short {
        "Quantity" => first(1)?.map(string).transpose()?.map(Value::from),
        "Time" | "MicroTime" | "Timestamp" => time(bytes, short == "MicroTime")?,
        "FieldsV1" | "RawExtension" | "JSON" => match first(1)? {
            Some(raw) => Some(serde_json::from_slice(raw).map_err(|_| malformed())?),
            None => None,
        },
        "IntOrString" => {
            let (mut is_text, mut number, mut text) = (false, 0, String::new());
            for field in fields(bytes) {
                match field? {
                    (1, Wire::Varint(kind)) => is_text = kind == 1,
                    (2, Wire::Varint(found)) => number = found.cast_signed(),
                    (3, Wire::Bytes(found)) => text = string(found)?,
                    _ => {}
                }
            }
            Some(if is_text { text.into() } else { number.into() })
        }
        "ExtraValue" => {
            let mut list = Vec::new();
            for field in fields(bytes) {
                if let (1, Wire::Bytes(text)) = field? {
                    list.push(Value::from(string(text)?));
                }
            }
            Some(list.into())
        }
        "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
            let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
            let (mut found, mut list) = (None, Vec::new());
            for field in fields(bytes) {
                match (short, field?) {
                    ("JSONSchemaPropsOrBool", (1, Wire::Varint(yes))) => {
                        found = found.or(Some(Value::Bool(yes != 0)));
                    }
                    ("JSONSchemaPropsOrBool", (2, Wire::Bytes(inner)))
                    | (_, (1, Wire::Bytes(inner))) => {
                        let mut object = Map::new();
                        message(props, inner, &mut object, depth + 1)?;
                        found = Some(Value::Object(object));
                    }
                    ("JSONSchemaPropsOrArray", (2, Wire::Bytes(inner))) => {
                        let mut object = Map::new();
                        message(props, inner, &mut object, depth + 1)?;
                        list.push(Value::Object(object));
                    }
                    (_, (2, Wire::Bytes(text))) => list.push(string(text)?.into()),
                    _ => {}
                }
            }
            found.or(Some(Value::Array(list)))
        }
        _ => {
            let mut object = Map::new();
            message(name, bytes, &mut object, depth + 1)?;
            Some(Value::Object(object))
        }
    })
}

fn time(bytes: &[u8], micro: bool) -> Result<Option<Value>> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Varint(found)) => seconds = found.cast_signed(),
            (2, Wire::Varint(found)) => nanos = i32::try_from(found).unwrap_or(0),
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| malformed())?;
    Ok(Some(if micro {
        time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into()
    } else {
        crate::object::at(time).into()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A field with bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [
            &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
            bytes,
        ]
        .concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &meta), &field(2, raw)].concat()
    }

    #[test]
    fn an_object_becomes_its_json_form() {
        let metadata = [
            field(1, b"x"),
            field(3, b""),
            field(8, &[]),
            field(11, &[field(1, b"a"), field(2, b"b")].concat()),
        ]
        .concat();
        let data = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &data)].concat();
        assert_eq!(
            decode(&envelope("v1", "ConfigMap", &raw)).unwrap(),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x", "labels": {"a": "b"}}, "data": {"k": "v"}})
        );
        let secret = envelope("v1", "Secret", &field(2, &data));
        assert_eq!(decode(&secret).unwrap()["data"], json!({"k": "dg=="}));
    }

    #[test]
    fn parts_without_a_field_of_their_own_are_found() {
        // Volume: name, then the source that stands inside; emptyDir says something although it is empty.
        let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
        let pod = field(2, &field(1, &volume));
        assert_eq!(
            decode(&envelope("v1", "Pod", &pod)).unwrap()["spec"],
            json!({"volumes": [{"name": "v", "emptyDir": {}}]})
        );
    }

    #[test]
    fn hostile_bytes_are_refused() {
        for body in [
            &b"{}"[..],
            b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"k8s\0\x0a\x7f",
            &envelope("v1", "Nothing", b""),
            &envelope("v1", "ConfigMap", b"\x0a\xff"),
            &envelope("v1", "ConfigMap", b"\x08\x01"),
        ] {
            assert!(decode(body).is_err(), "{body:?}");
        }
        let mut deep = Vec::new();
        for _ in 0..40 {
            deep = field(2, &deep);
        }
        let _ = decode(&envelope("v1", "Pod", &deep));
    }

    #[test]
    fn every_message_of_the_table_is_there() {
        for line in FIELDS.lines() {
            let kind = line
                .rsplit(' ')
                .next()
                .unwrap()
                .trim_start_matches(['*', '%', '^', '=']);
            if kind.len() > 1 && line.contains(' ') {
                assert!(
                    messages().contains_key(kind)
                        || kind.ends_with("ExtraValue")
                        || !kind.starts_with("io.k8s.api."),
                    "{line}"
                );
            }
        }
    }
}
