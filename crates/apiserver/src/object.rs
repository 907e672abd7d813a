//! Objects as bytes: how they are kept and how they are answered, without being parsed in between.
//!
//! Kept: `{"kind":…,"apiVersion":…,"metadata":{…},…}` in this order and without `metadata.resourceVersion`, which is the store's
//! revision and is put in on the way out. So a list of ten thousand pods is copied, not decoded.

use crate::status::{Result, Status};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

const METADATA: &[u8] = b"\"metadata\":{";

/// The kept form. `object` must be an object with metadata.
pub(crate) fn encode(object: &Value) -> Result<Bytes> {
    let Some(fields) = object.as_object() else {
        return Err(Status::bad_request("an object was expected"));
    };
    let mut out = Vec::with_capacity(512);
    let mut first = true;
    let mut put = |out: &mut Vec<u8>, name: &str, value: &Value| -> Result<()> {
        out.extend(if first { b"{" } else { b"," });
        first = false;
        serde_json::to_writer(&mut *out, name).map_err(Status::internal)?;
        out.push(b':');
        serde_json::to_writer(&mut *out, value).map_err(Status::internal)
    };
    for name in ["kind", "apiVersion"] {
        put(&mut out, name, &fields[name])?;
    }
    match &fields["metadata"] {
        Value::Object(metadata) if metadata.contains_key("resourceVersion") => {
            let mut metadata = metadata.clone();
            metadata.shift_remove("resourceVersion");
            put(&mut out, "metadata", &Value::Object(metadata))?;
        }
        metadata => put(&mut out, "metadata", metadata)?,
    }
    for (name, value) in fields {
        if !matches!(&name[..], "kind" | "apiVersion" | "metadata") {
            put(&mut out, name, value)?;
        }
    }
    out.push(b'}');
    Ok(out.into())
}

/// Where the metadata's own fields begin.
fn metadata_at(kept: &[u8]) -> Result<usize> {
    // Kind and apiVersion stand before it, and neither can hold these bytes: both were matched with a kind's name.
    kept.windows(METADATA.len())
        .take(1024)
        .position(|window| window == METADATA)
        .map(|at| at + METADATA.len())
        .ok_or_else(|| Status::internal("a kept object has no metadata"))
}

/// Appends the object as clients see it.
pub(crate) fn write_whole(out: &mut Vec<u8>, kept: &[u8], revision: u64) -> Result<()> {
    let at = metadata_at(kept)?;
    out.extend(&kept[..at]);
    write_rest(out, &kept[at..], revision);
    Ok(())
}

/// The same as an item of a list: built-in kinds leave out kind and apiVersion there.
pub(crate) fn write_item(out: &mut Vec<u8>, kept: &[u8], revision: u64) -> Result<()> {
    let at = metadata_at(kept)?;
    out.push(b'{');
    out.extend(METADATA);
    write_rest(out, &kept[at..], revision);
    Ok(())
}

fn write_rest(out: &mut Vec<u8>, rest: &[u8], revision: u64) {
    out.extend(b"\"resourceVersion\":\"");
    out.extend(revision.to_string().into_bytes());
    out.extend(if rest.first() == Some(&b'}') {
        &b"\""[..]
    } else {
        b"\","
    });
    out.extend(rest);
}

/// The document of a kept object, with its resourceVersion.
pub(crate) fn decode(kept: &[u8], revision: u64) -> Result<Value> {
    let mut object: Value = serde_json::from_slice(kept)
        .map_err(|e| Status::internal(format!("a kept object is not JSON: {e}")))?;
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    Ok(object)
}

/// Of an object only what selectors and deletions look at; the rest is skipped, not built.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Head<'a> {
    #[serde(borrow)]
    pub(crate) metadata: Metadata<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata<'a> {
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) namespace: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) uid: Cow<'a, str>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    pub(crate) deletion_timestamp: Option<Cow<'a, str>>,
    pub(crate) owner_references: Vec<Owner>,
    pub(crate) finalizers: Vec<String>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Owner {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) block_owner_deletion: bool,
}

pub(crate) fn head(kept: &[u8]) -> Result<Head<'_>> {
    serde_json::from_slice(kept)
        .map_err(|e| Status::internal(format!("a kept object is not JSON: {e}")))
}

/// The metadata of a document, made if it is not there.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    object["metadata"]
        .as_object_mut()
        .expect("made an object just now")
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Now, as Kubernetes writes times: whole seconds.
pub(crate) fn now() -> String {
    at(jiff::Timestamp::now())
}

pub(crate) fn at(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| Status::internal("the kernel gives no random numbers"))
}

/// A random UUID, version 4.
pub(crate) fn uid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    random(&mut bytes)?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = |part: &[u8]| part.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        hex(&bytes[..4]),
        hex(&bytes[4..6]),
        hex(&bytes[6..8]),
        hex(&bytes[8..10]),
        hex(&bytes[10..])
    ))
}

/// Kubernetes' five letters behind a generateName: no vowels, so that no words appear.
pub(crate) fn suffix() -> Result<String> {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0_u8; 5];
    random(&mut bytes)?;
    Ok(bytes
        .iter()
        .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_kept_comes_back_with_its_revision() {
        let object = json!({"data": {"a": "\"metadata\":{"}, "metadata": {"name": "x", "resourceVersion": "3"}, "apiVersion": "v1", "kind": "ConfigMap"});
        let kept = encode(&object).unwrap();
        assert_eq!(
            std::str::from_utf8(&kept).unwrap(),
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"\"metadata\":{"}}"#
        );
        let mut whole = Vec::new();
        write_whole(&mut whole, &kept, 7).unwrap();
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap(), expected);
        assert_eq!(decode(&kept, 7).unwrap(), expected);
        let mut item = Vec::new();
        write_item(&mut item, &kept, 7).unwrap();
        assert!(item.starts_with(br#"{"metadata":{"resourceVersion":"7","name":"x"}"#));
    }
}
