//! Manifests of schema 1, which registries of 2015 and older still hold: read, never written.
//!
//! They name layers newest first, each with the configuration of an image of its own; no sizes, no diff IDs. What the layers
//! hold becomes the diff IDs, and the newest configuration becomes the image's. The signatures bind the document to a key that
//! is itself in the document, so they prove nothing beyond what the digest does: they are taken off, not checked.

use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::Digest;
use gantry_oci::image::History;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::spool::sha256;
use crate::store::LAYER_LIMIT;

pub(crate) const MEDIA_TYPES: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
];

#[derive(Debug)]
pub(crate) struct Manifest {
    /// Blobs of the layers, base first.
    pub(crate) layers: Vec<Digest>,
    history: Vec<History>,
    config: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    fs_layers: Vec<FsLayer>,
    #[serde(default)]
    history: Vec<Step>,
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    v1_compatibility: String,
}

#[derive(Deserialize)]
struct Signature {
    protected: String,
}

/// True of a document that is schema 1, whatever it was called.
pub(crate) fn is_schema1(document: &[u8]) -> bool {
    serde_json::from_slice::<Document>(document).is_ok_and(|d| d.schema_version == 1)
}

/// The digest of what was signed: the document without its signatures.
pub(crate) fn digest(document: &[u8]) -> Result<Digest> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let bad = || Error::invalid("the manifest's signatures cannot be read");
    let parsed = parse(document)?;
    let Some(first) = parsed.signatures.first() else {
        return Ok(sha256(document));
    };
    if parsed
        .signatures
        .iter()
        .any(|other| other.protected.len() > 4096)
    {
        return Err(bad());
    }
    let read = |signature: &Signature| -> Option<Vec<u8>> {
        let text = signature.protected.trim_end_matches('=');
        let protected: Protected =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let tail = protected.format_tail.trim_end_matches('=');
        let mut payload = document.get(..protected.format_length)?.to_vec();
        payload.extend(URL_SAFE_NO_PAD.decode(tail).ok()?);
        Some(payload)
    };
    let payload = read(first).ok_or_else(bad)?;
    // Otherwise one signature would cover another text than the one that is read.
    if serde_json::from_slice::<Value>(&payload).ok() != unsigned(document) {
        return Err(bad());
    }
    Ok(sha256(&payload))
}

fn unsigned(document: &[u8]) -> Option<Value> {
    let mut value: Value = serde_json::from_slice(document).ok()?;
    value.as_object_mut()?.remove("signatures");
    Some(value)
}

fn parse(document: &[u8]) -> Result<Document> {
    serde_json::from_slice(document).kind(ErrorKind::InvalidArgument, || {
        "invalid manifest of schema 1".into()
    })
}

pub(crate) fn read(document: &[u8]) -> Result<Manifest> {
    let document = parse(document)?;
    let (layers, steps) = (document.fs_layers.len(), document.history.len());
    if layers == 0 || layers != steps {
        return Err(Error::invalid(format!(
            "invalid manifest, length of history not equal to number of layers: {steps} and {layers}"
        )));
    }
    if layers > 4 * LAYER_LIMIT {
        return Err(Error::invalid("max depth exceeded"));
    }
    let mut manifest = Manifest {
        layers: Vec::new(),
        history: Vec::new(),
        config: Map::new(),
    };
    let pairs = document.fs_layers.into_iter().zip(document.history);
    for (layer, step) in pairs.rev() {
        let step: Map<String, Value> = serde_json::from_str(&step.v1_compatibility)
            .kind(ErrorKind::InvalidArgument, || {
                "invalid history in a manifest of schema 1".into()
            })?;
        let text = |key: &str| step.get(key).and_then(Value::as_str).map(str::to_owned);
        let empty = step.get("throwaway").and_then(Value::as_bool) == Some(true);
        let words = step
            .get("container_config")
            .and_then(|c| c.get("Cmd"))
            .and_then(Value::as_array)
            .map(|words| {
                let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                words.join(" ")
            });
        manifest.history.push(History {
            created: text("created"),
            created_by: words,
            author: text("author").filter(|t| !t.is_empty()),
            comment: text("comment").filter(|t| !t.is_empty()),
            empty_layer: empty,
        });
        if !empty {
            manifest.layers.push(layer.blob_sum);
        }
        manifest.config = step;
    }
    if manifest.layers.len() > LAYER_LIMIT {
        return Err(Error::invalid("max depth exceeded"));
    }
    Ok(manifest)
}

impl Manifest {
    /// The image's configuration, now that it is known what the layers hold. Docker: `MakeConfigFromV1Config`.
    pub(crate) fn config(mut self, diff_ids: &[Digest]) -> Vec<u8> {
        for key in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
            self.config.remove(key);
        }
        let history = serde_json::to_value(&self.history).expect("our own records serialise");
        self.config.insert(
            "rootfs".into(),
            serde_json::json!({"type": "layers", "diff_ids": diff_ids}),
        );
        self.config.insert("history".into(), history);
        serde_json::to_vec(&self.config).expect("JSON that was read can be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = r#"{
   "schemaVersion": 1,
   "name": "a/b",
   "tag": "1",
   "fsLayers": [
      {"blobSum": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
      {"blobSum": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}
   ],
   "history": [
      {"v1Compatibility": "{\"id\":\"2\",\"parent\":\"1\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"sh\"]},\"throwaway\":true}"},
      {"v1Compatibility": "{\"id\":\"1\",\"created\":\"2015-01-01T00:00:00Z\",\"container_config\":{\"Cmd\":[\"/bin/sh\",\"-c\",\"x\"]}}"}
   ]@
}"#;

    #[test]
    fn a_signed_document_has_the_digest_of_what_was_signed() {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let plain = SIGNED.replace('@', "");
        let length = SIGNED.find('@').unwrap();
        let signed = |tail: &str| {
            let protected = encode(&format!(
                r#"{{"formatLength":{length},"formatTail":"{}"}}"#,
                encode(tail)
            ));
            SIGNED.replace(
                '@',
                &format!(
                    r#", "signatures": [{{"protected": "{protected}", "signature": "x", "header": {{}}}}]"#
                ),
            )
        };
        let good = signed("\n}");
        assert!(is_schema1(good.as_bytes()));
        assert_eq!(digest(good.as_bytes()).unwrap(), sha256(plain.as_bytes()));
        // A tail that makes another document of it.
        assert!(digest(signed(", \"name\": \"c\"}").as_bytes()).is_err());
    }

    #[test]
    fn the_newest_configuration_and_all_history() {
        let manifest = read(SIGNED.replace('@', "").as_bytes()).unwrap();
        assert_eq!(manifest.layers.len(), 1);
        assert_eq!(manifest.layers[0].hex()[..1], *"b");
        let diff_ids = manifest.layers.clone();
        let config = String::from_utf8(manifest.config(&diff_ids)).unwrap();
        assert_eq!(
            config,
            r#"{"os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]},"history":[{"created":"2015-01-01T00:00:00Z","created_by":"/bin/sh -c x"},{"empty_layer":true}]}"#
        );
        for bad in [
            r#"{"schemaVersion": 1}"#,
            r#"{"schemaVersion": 1, "fsLayers": [], "history": [{"v1Compatibility": "{}"}]}"#,
            "[]",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
