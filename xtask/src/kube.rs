//! Makes the table of Kubernetes' types that `crates/kube-api` carries, from a published definitions file.

use crate::root;
use anyhow::{Context, bail};
use serde_json::{Map, Value};
use std::io::Write;
use std::process::{Command, Stdio};

/// Reads `definitions` (`_definitions.json` of Kubernetes 1.35 in the Python package `kubernetes-validate`)
/// and writes the table, compressed, with a fixed time stamp so that the same input gives the same bytes.
pub(crate) fn schema(definitions: &str) -> anyhow::Result<()> {
    let text = std::fs::read(definitions).with_context(|| format!("reading {definitions}"))?;
    let document: Value =
        serde_json::from_slice(&text).with_context(|| format!("decoding {definitions}"))?;
    let Some(types) = document["$defs"].as_object() else {
        bail!("{definitions} has no $defs");
    };
    let mut table = Map::new();
    let mut names: Vec<&String> = types.keys().collect();
    names.sort();
    for name in names {
        table.insert(name.clone(), compact(&types[name]));
    }
    let table = serde_json::to_vec(&table).context("encoding the table")?;
    let place = root().join("crates/kube-api/src/schema/v1_35.json.gz");
    let file =
        std::fs::File::create(&place).with_context(|| format!("creating {}", place.display()))?;
    let mut gzip = Command::new("gzip")
        .args(["-9", "-n"])
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("starting gzip")?;
    let mut pipe = gzip.stdin.take().context("gzip has no input")?;
    pipe.write_all(&table).context("writing to gzip")?;
    drop(pipe);
    if !gzip.wait().context("waiting for gzip")?.success() {
        bail!("gzip failed");
    }
    Ok(())
}

/// One schema in the table's words. The published file widens every optional type by `null`, which says nothing here.
fn compact(schema: &Value) -> Value {
    let mut out = Map::new();
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/$defs/");
        out.insert("ref".into(), name.into());
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|k| *k != "null").cloned(),
        Value::Null => None,
        one => Some(one.clone()),
    };
    if let Some(kind) = kind {
        out.insert("type".into(), kind);
    }
    for (from, to) in [
        ("format", "format"),
        ("description", "description"),
        ("required", "required"),
        ("x-kubernetes-list-type", "listType"),
        ("x-kubernetes-list-map-keys", "listMapKeys"),
        ("x-kubernetes-map-type", "mapType"),
        ("x-kubernetes-patch-merge-key", "mergeKey"),
        ("x-kubernetes-patch-strategy", "patchStrategy"),
        ("x-kubernetes-group-version-kind", "gvk"),
    ] {
        if let Some(value) = schema.get(from) {
            out.insert(to.into(), value.clone());
        }
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let kinds = choices
            .iter()
            .filter_map(|c| compact(c).get("type").cloned());
        out.insert("oneOf".into(), kinds.collect::<Vec<_>>().into());
    }
    for (from, to) in [("items", "items"), ("additionalProperties", "values")] {
        if let Some(inner) = schema.get(from).filter(|s| s.is_object()) {
            out.insert(to.into(), compact(inner));
        }
    }
    if let Some(fields) = schema["properties"].as_object() {
        let fields = fields.iter().map(|(n, s)| (n.clone(), compact(s)));
        out.insert("fields".into(), Value::Object(fields.collect()));
    }
    Value::Object(out)
}
