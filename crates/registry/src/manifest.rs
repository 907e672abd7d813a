//! What a manifest names. image-spec "Image Manifest", "Image Index"; Docker's schema 2.
//!
//! One reading for all kinds: whatever a document names as config, layers, blobs, manifests or subject counts, so that neither
//! the check of a push nor the collector depends on knowing the media type.

use crate::error::{Error, Result};
use crate::name::Digest;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A media type longer than this is refused.
const MEDIA_TYPE_LIMIT: usize = 255;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: Option<String>,
    os: Option<String>,
}

/// Something that must be here, or may be elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Content that the manifest says lies elsewhere (foreign layers).
    pub(crate) elsewhere: bool,
}

/// A manifest, read.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) media_type: String,
    pub(crate) artifact_type: Option<String>,
    pub(crate) blobs: BTreeSet<Named>,
    pub(crate) manifests: BTreeSet<Named>,
    pub(crate) subject: Option<Digest>,
    pub(crate) annotations: Option<Map<String, Value>>,
    /// Of an index: the manifest for linux on amd64, for clients that know no index.
    pub(crate) plain_child: Option<Digest>,
}

/// Reads what was pushed as `content_type` (without parameters; empty when the client named none).
pub(crate) fn read(content_type: &str, bytes: &[u8]) -> Result<Reading> {
    let invalid = |text: &str| Error::manifest_invalid(text);
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|e| invalid(&format!("the manifest is not the expected JSON: {e}")))?;
    if document.schema_version == Some(1) {
        return Err(invalid(
            "schema 1 manifests are not kept here; push schema 2 or OCI",
        ));
    }
    if document.schema_version != Some(2) {
        return Err(invalid("schemaVersion must be 2"));
    }
    let stated = document.media_type.as_deref().unwrap_or_default();
    // image-spec: a document that says what it is must not be taken for another.
    if !stated.is_empty() && !content_type.is_empty() && stated != content_type {
        return Err(invalid(&format!(
            "the manifest says mediaType {:?} and the request Content-Type {:?}",
            short(stated),
            short(content_type)
        )));
    }
    let of_image = document.config.is_some() || document.layers.is_some();
    if of_image && document.manifests.is_some() {
        return Err(invalid(
            "a manifest with layers and manifests at once is ambiguous",
        ));
    }
    let media_type = match (stated, content_type) {
        ("", "" | "application/json") if document.manifests.is_some() => OCI_INDEX,
        ("", "" | "application/json") => OCI_MANIFEST,
        ("", other) | (other, _) => other,
    };
    let kind_fits = match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => document.config.is_some() && document.layers.is_some(),
        OCI_INDEX | DOCKER_LIST => document.manifests.is_some(),
        _ => true,
    };
    if !kind_fits {
        return Err(invalid(&format!("the document is no {media_type}")));
    }
    if media_type.len() > MEDIA_TYPE_LIMIT || !media_type.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(invalid("the media type is not one"));
    }
    let config_type = document.config.as_ref().and_then(|c| c.media_type.clone());
    let blobs = document
        .config
        .iter()
        .chain(document.layers.iter().flatten())
        .chain(document.blobs.iter().flatten());
    Ok(Reading {
        blobs: blobs.map(named).collect::<Result<_>>()?,
        manifests: document
            .manifests
            .iter()
            .flatten()
            .map(named)
            .collect::<Result<_>>()?,
        subject: document
            .subject
            .as_ref()
            .map(named)
            .transpose()?
            .map(|s| s.digest),
        plain_child: document
            .manifests
            .iter()
            .flatten()
            .find(|m| m.is_plain())
            .and_then(|m| m.digest.parse().ok()),
        // distribution-spec "Listing Referrers": an image manifest without artifactType stands with its config's type.
        artifact_type: document
            .artifact_type
            .filter(|t| !t.is_empty())
            .or(config_type),
        annotations: document.annotations,
        media_type: media_type.to_owned(),
    })
}

impl Descriptor {
    fn is_plain(&self) -> bool {
        let platform = self.platform.as_ref();
        platform.is_some_and(|p| {
            p.os.as_deref() == Some("linux") && p.architecture.as_deref() == Some("amd64")
        })
    }
}

fn named(descriptor: &Descriptor) -> Result<Named> {
    let digest = descriptor.digest.parse().map_err(|_| {
        Error::manifest_invalid(format!(
            "the manifest names {:?}, which is no digest",
            short(&descriptor.digest)
        ))
    })?;
    let media_type = descriptor.media_type.as_deref().unwrap_or_default();
    Ok(Named {
        digest,
        size: descriptor.size,
        elsewhere: media_type.contains("nondistributable")
            || media_type.contains(".foreign.")
            || descriptor
                .urls
                .as_ref()
                .is_some_and(|urls| !urls.is_empty()),
    })
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

impl Reading {
    /// How this manifest stands among its subject's referrers. distribution-spec "Listing Referrers".
    pub(crate) fn descriptor(&self, digest: &Digest, size: usize) -> Value {
        let mut descriptor = json!({
            "mediaType": self.media_type,
            "size": size,
            "digest": digest.to_string(),
        });
        let object = descriptor.as_object_mut().expect("made above");
        if let Some(artifact_type) = &self.artifact_type {
            object.insert("artifactType".into(), artifact_type.clone().into());
        }
        if let Some(annotations) = &self.annotations {
            object.insert("annotations".into(), Value::Object(annotations.clone()));
        }
        descriptor
    }
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn refusal(content_type: &str, document: Value) -> String {
        read(content_type, document.to_string().as_bytes())
            .unwrap_err()
            .message
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let d = json!({"mediaType": "x", "digest": D, "size": 1});
        for (content_type, document, part) in [
            (OCI_MANIFEST, json!([]), "JSON"),
            (OCI_MANIFEST, json!({"schemaVersion": 1}), "schema 1"),
            (OCI_MANIFEST, json!({"schemaVersion": 2}), "no application"),
            (
                OCI_MANIFEST,
                json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
                "Content-Type",
            ),
            (
                OCI_MANIFEST,
                json!({"schemaVersion": 2, "config": d, "layers": [], "manifests": []}),
                "ambiguous",
            ),
            (
                OCI_MANIFEST,
                json!({"schemaVersion": 2, "config": {"digest": "sha256:../x", "size": 1}, "layers": []}),
                "no digest",
            ),
            (
                OCI_MANIFEST,
                json!({"schemaVersion": 2, "config": {"digest": D, "size": -1}, "layers": []}),
                "JSON",
            ),
            ("a b", json!({"schemaVersion": 2}), "media type"),
        ] {
            let text = refusal(content_type, document);
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn everything_named_is_found() {
        let document = json!({
            "schemaVersion": 2, "config": {"mediaType": "c/t", "digest": D, "size": 0},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": D, "size": 9}],
            "subject": {"mediaType": OCI_MANIFEST, "digest": D, "size": 3}, "annotations": {"a": "b"},
        });
        let reading = read(OCI_MANIFEST, document.to_string().as_bytes()).unwrap();
        assert_eq!(
            reading
                .blobs
                .iter()
                .map(|b| b.elsewhere)
                .collect::<Vec<_>>(),
            [false, true]
        );
        assert_eq!(reading.subject.as_ref().unwrap().to_string(), D);
        let descriptor = reading.descriptor(reading.subject.as_ref().unwrap(), 7);
        assert_eq!(descriptor["artifactType"], "c/t");
        assert_eq!(descriptor["annotations"]["a"], "b");
        let index = json!({"schemaVersion": 2, "manifests": [{"digest": D, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}]});
        let reading = read("", index.to_string().as_bytes()).unwrap();
        assert_eq!(
            (reading.is_index(), reading.plain_child.is_some()),
            (true, true)
        );
    }
}
