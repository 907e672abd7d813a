//! Makes the table of protobuf field numbers that `crates/apiserver` carries, from the sources of the published crate `k8s-pb`
//! and the table of types.

use crate::root;
use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// A message: its fields in order, each as (number, name in Rust, attribute, type).
type Message = Vec<(String, String, String, String)>;

/// Reads `sources` (the folder `src` of `k8s-pb`) and writes `crates/apiserver/src/protobuf/fields.txt`: a line `=<type>` for each
/// message, then `<number> <name> <kind>` for each field. Kinds: `s` string, `b` boolean, `i` integer, `d` double, `y` bytes,
/// `<type>` a message; in front `*` for repeated, `%` for a map with such values; `^<type>` is a message whose fields belong to
/// the message around it.
pub(crate) fn table(sources: &str) -> anyhow::Result<()> {
    let mut messages = BTreeMap::new();
    read(Path::new(sources), &mut Vec::new(), &mut messages)?;
    let types = types()?;
    let full: BTreeMap<String, &String> = types.keys().map(|n| (n.to_lowercase(), n)).collect();
    let mut out = String::new();
    let mut wanted: Vec<(String, &Value)> = messages
        .keys()
        .filter_map(|name| full.get(&name.to_lowercase()))
        .map(|name| ((*name).clone(), &types[*name]["fields"]))
        .collect();
    let mut done = std::collections::BTreeSet::new();
    while let Some((name, own)) = wanted.pop() {
        let key = messages
            .keys()
            .find(|m| m.to_lowercase() == name.to_lowercase());
        let Some(fields) = key.and_then(|key| messages.get(key)) else {
            continue;
        };
        if !done.insert(name.clone()) {
            continue;
        }
        let _ = writeln!(out, "={name}");
        let names = own;
        let own = own.as_object();
        for (number, field, attribute, kind) in fields {
            let plain = field
                .trim_start_matches("r#")
                .replace('_', "")
                .to_lowercase();
            let json = own.and_then(|own| {
                own.keys()
                    .find(|k| k.trim_start_matches('$').to_lowercase() == plain)
            });
            let message = full
                .get(&kind.to_lowercase())
                .map_or(kind.clone(), |n| (*n).clone());
            let scalar = |word: &str| match word {
                "string" => "s",
                "bool" => "b",
                "int32" | "int64" => "i",
                "double" => "d",
                _ => "y",
            };
            let words = if let Some(inside) = attribute.strip_prefix("btree_map=\"string,") {
                let value = inside.split('"').next().unwrap_or_default();
                if value == "message" {
                    format!("%{message}")
                } else {
                    format!("%{}", scalar(value))
                }
            } else {
                let first = attribute.split([',', '=']).next().unwrap_or_default();
                let one = if first == "message" {
                    message
                } else {
                    scalar(first).to_owned()
                };
                if attribute.contains("repeated") {
                    format!("*{one}")
                } else {
                    one
                }
            };
            match json {
                Some(json) => {
                    let _ = writeln!(out, "{number} {json} {words}");
                }
                // No such field in the JSON form: what it holds stands in the object itself.
                None if attribute.starts_with("message") && !attribute.contains("repeated") => {
                    let _ = writeln!(out, "{number} - ^{words}");
                    // A type of its own, or only a part of this one: then its fields are named here.
                    if !types.contains_key(&words) {
                        wanted.push((words, names));
                    }
                }
                None => {
                    let _ = writeln!(out, "{number} {} {words}", field.trim_start_matches("r#"));
                }
            }
        }
    }
    let place = root().join("crates/apiserver/src/protobuf/fields.txt");
    std::fs::write(&place, out).with_context(|| format!("writing {}", place.display()))
}

/// The table of types, uncompressed.
fn types() -> anyhow::Result<BTreeMap<String, Value>> {
    let place = root().join("crates/kube-api/src/schema/v1_35.json.gz");
    let output = Command::new("gzip")
        .arg("-dc")
        .arg(&place)
        .output()
        .context("starting gzip")?;
    if !output.status.success() {
        bail!("gzip failed on {}", place.display());
    }
    serde_json::from_slice(&output.stdout).context("decoding the table of types")
}

/// Collects the messages of a folder; `module` is its path below the sources.
fn read(
    folder: &Path,
    module: &mut Vec<String>,
    messages: &mut BTreeMap<String, Message>,
) -> anyhow::Result<()> {
    for entry in
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            module.push(name);
            read(&entry.path(), module, messages)?;
            module.pop();
        } else if name == "mod.rs" && !module.is_empty() {
            let text = std::fs::read_to_string(entry.path())?;
            structs(&text, module, messages);
        }
    }
    Ok(())
}

fn structs(text: &str, module: &[String], messages: &mut BTreeMap<String, Message>) {
    let mut current: Option<String> = None;
    let mut attribute = String::new();
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{']).next().unwrap_or_default();
            let full = full_name(module, name);
            messages.entry(full.clone()).or_default();
            current = rest.ends_with('{').then_some(full);
        } else if line == "}" {
            current = None;
        } else if line.starts_with("#[prost(") {
            attribute = line.to_owned();
            while !attribute.ends_with(")]") {
                match lines.next() {
                    Some(more) => attribute.push_str(more),
                    None => return,
                }
            }
        } else if let (Some(message), Some(rest)) = (&current, line.strip_prefix("pub ")) {
            let mut field = rest.to_owned();
            // A long type has a line for each of its parameters.
            let open = |field: &str| field.matches('<').count() > field.matches('>').count();
            while !field.ends_with(',') || open(&field) {
                match lines.next() {
                    Some(more) => field.push_str(more),
                    None => return,
                }
            }
            let Some((name, kind)) = field.split_once(':') else {
                continue;
            };
            let inside = attribute.replace(' ', "");
            let inside = inside.trim_start_matches("#[prost(").trim_end_matches(")]");
            let Some((_, number)) = inside.split_once("tag=\"") else {
                continue;
            };
            let number = number.trim_end_matches('"').to_owned();
            let kind = message_of(kind, module);
            let entry = (number, name.to_owned(), inside.to_owned(), kind);
            if let Some(fields) = messages.get_mut(message) {
                fields.push(entry);
            }
        }
    }
}

/// The full name of the message that a field's type ends in.
fn message_of(kind: &str, module: &[String]) -> String {
    let kind = kind.replace([' ', ','], ",");
    let last = kind
        .trim_end_matches(['>', ','])
        .rsplit(['<', ','])
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    let mut module = module.to_vec();
    let mut name = "";
    for word in last.split("::").filter(|w| !w.is_empty()) {
        match word {
            "super" => drop(module.pop()),
            word => {
                if !name.is_empty() {
                    module.push(name.to_owned());
                }
                name = word;
            }
        }
    }
    full_name(&module, name)
}

/// As the table of types names it: `io.k8s.api.core.v1.Pod`.
fn full_name(module: &[String], name: &str) -> String {
    let module = module.join(".").replace('_', "-").replace(".r#", ".");
    format!("io.k8s.{module}.{name}")
}
