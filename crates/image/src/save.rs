//! `save`: one archive that is a Docker archive (`manifest.json`) and an OCI layout (`index.json`) at once.
//!
//! ```text
//! oci-layout  index.json  manifest.json
//! blobs/sha256/<configurations, manifests, layer tars>     each once, however many images share it
//! ```
//! Layers go out as they came in, so that a manifest's digest survives; only zstd is inflated, because Docker 20.10 and
//! older cannot read it. Same images, same bytes: times are zero, order is by name.

use crate::layer::read_error;
use crate::spool::{BUFFER, Codec, Hasher, sha256};
use crate::store::{Inner, LayerRow};
use crate::{Image, no_such_image};
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::image::{Descriptor, MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, Platform};
use gantry_oci::reference::AnyReference;
use gantry_oci::{Digest, Reference};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::sync::Arc;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

/// A layer as it goes out.
struct Outgoing {
    descriptor: Descriptor,
    row: LayerRow,
    /// Where it lies is compressed in a way that must not go out.
    inflate: bool,
}

pub(crate) fn save(store: &Inner, names: &[String], out: impl Write) -> Result<()> {
    // Nothing is freed while it is being read.
    let _activity = store.activity();
    let chosen = choose(store, names)?;
    let mut archive = Archive {
        builder: tar::Builder::new(BufWriter::with_capacity(BUFFER, out)),
        written: HashSet::new(),
    };
    archive.directory("blobs/")?;
    archive.directory("blobs/sha256/")?;
    let mut docker = Vec::new();
    let mut index = Vec::new();
    for (image, tags) in &chosen {
        let layers = outgoing(store, image)?;
        archive.blob(&image.id, &image.raw_config)?;
        for layer in &layers {
            archive.layer(store, layer)?;
        }
        let manifest = manifest(store, image, &layers)?;
        let digest = sha256(&manifest);
        archive.blob(&digest, &manifest)?;
        let descriptor = Descriptor {
            media_type: media_type(&manifest),
            digest,
            size: manifest.len() as u64,
            platform: Some(Platform {
                architecture: image.config.architecture.clone(),
                os: "linux".into(),
                variant: image.config.variant.clone(),
                os_version: None,
            }),
            annotations: BTreeMap::new(),
        };
        if tags.is_empty() {
            index.push(descriptor.clone());
        }
        for tag in tags {
            let mut named = descriptor.clone();
            named.annotations = BTreeMap::from([
                ("io.containerd.image.name".to_owned(), tag.canonical()),
                (
                    "org.opencontainers.image.ref.name".to_owned(),
                    tag.tag.clone().unwrap_or_default(),
                ),
            ]);
            index.push(named);
        }
        docker.push(DockerManifest {
            config: blob_name(&image.id),
            repo_tags: (!tags.is_empty()).then(|| tags.iter().map(Reference::to_string).collect()),
            layers: layers
                .iter()
                .map(|l| blob_name(&l.descriptor.digest))
                .collect(),
        });
    }
    let index = Index {
        schema_version: 2,
        media_type: gantry_oci::image::MEDIA_TYPE_INDEX,
        manifests: index,
    };
    archive.file("index.json", &json(&index))?;
    archive.file("manifest.json", &json(&docker))?;
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive
        .builder
        .into_inner()
        .and_then(|mut out| out.flush())
        .context(|| "writing the archive".into())
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("our own documents serialise")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The images with the tags that were asked for: a name without tag is all tags of that repository, an ID is none.
fn choose(store: &Inner, names: &[String]) -> Result<Vec<(Arc<Image>, Vec<Reference>)>> {
    let state = store.read();
    let mut chosen: Vec<(Arc<Image>, Vec<Reference>)> = Vec::new();
    let mut add = |image: &Arc<Image>, tag: Option<Reference>| {
        let at = chosen
            .iter()
            .position(|(i, _)| i.id == image.id)
            .unwrap_or_else(|| {
                chosen.push((image.clone(), Vec::new()));
                chosen.len() - 1
            });
        let tags = &mut chosen[at].1;
        tags.extend(tag);
        tags.sort();
        tags.dedup();
    };
    for name in names {
        let parsed = AnyReference::parse(name).map_err(|e| Error::invalid(e.to_string()))?;
        if let AnyReference::Name(reference) = &parsed
            && reference.tag.is_none()
            && reference.digest.is_none()
        {
            let mut any = false;
            for (tag, id) in state
                .tags
                .values()
                .filter(|(t, _)| t.same_repository(reference))
            {
                if let Some(known) = state.images.get(id) {
                    add(&known.image, Some(tag.clone()));
                    any = true;
                }
            }
            if any {
                continue;
            }
        }
        let image = state
            .find(name, &parsed)
            .ok_or_else(|| no_such_image(name))?;
        let tag = match parsed {
            AnyReference::Name(reference) => image
                .tags
                .iter()
                .find(|t| t.same_repository(&reference) && t.tag == reference.tag)
                .cloned(),
            AnyReference::Id(_) => None,
        };
        add(image, tag);
    }
    Ok(chosen)
}

fn outgoing(store: &Inner, image: &Image) -> Result<Vec<Outgoing>> {
    let state = store.read();
    let keys = state
        .images
        .get(&image.id)
        .map(|known| known.row.layers.clone())
        .unwrap_or_default();
    keys.iter()
        .map(|key| {
            let row = state.layers.get(key).cloned().ok_or_else(|| {
                Error::internal(format!("layer {key} of {} is missing", image.id))
            })?;
            let path = store.blob_path(&row.blob);
            let mut head = [0; 16];
            let mut file = File::open(&path).context(|| format!("opening {}", path.display()))?;
            let read = file
                .read(&mut head)
                .context(|| format!("reading {}", path.display()))?;
            let codec = Codec::detect(&head[..read])?;
            let (digest, size) = match codec {
                Codec::Zstd => (row.diff_id.clone(), plain_size(store, &row)?),
                Codec::Plain | Codec::Gzip => (row.blob.clone(), row.blob_size),
            };
            let descriptor = Descriptor {
                media_type: if codec == Codec::Gzip {
                    LAYER_GZIP
                } else {
                    LAYER
                }
                .into(),
                digest,
                size,
                platform: None,
                annotations: BTreeMap::new(),
            };
            Ok(Outgoing {
                descriptor,
                row,
                inflate: codec == Codec::Zstd,
            })
        })
        .collect()
}

/// A tar header needs the size before the bytes.
fn plain_size(store: &Inner, row: &LayerRow) -> Result<u64> {
    let mut plain = open_plain(store, row)?;
    std::io::copy(&mut plain, &mut std::io::sink()).map_err(read_error)
}

fn open_plain(store: &Inner, row: &LayerRow) -> Result<Box<dyn Read + Send>> {
    let path = store.blob_path(&row.blob);
    let file = File::open(&path).context(|| format!("opening {}", path.display()))?;
    Codec::Zstd.decode(file)
}

/// The manifest that the image came with, when it is true of what goes out; otherwise a new one.
fn manifest(store: &Inner, image: &Image, layers: &[Outgoing]) -> Result<Vec<u8>> {
    if let Some(digest) = &image.manifest
        && layers.iter().all(|layer| !layer.inflate)
    {
        let path = store.blob_path(digest);
        let raw = std::fs::read(&path).unwrap_or_default();
        if sha256(&raw) == *digest {
            return Ok(raw);
        }
        tracing::warn!(path = %path.display(), "a stored manifest is damaged; making a new one");
    }
    Ok(json(&Manifest {
        schema_version: 2,
        media_type: MEDIA_TYPE_MANIFEST,
        config: Descriptor {
            media_type: MEDIA_TYPE_CONFIG.into(),
            digest: image.id.clone(),
            size: image.raw_config.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        },
        layers: layers
            .iter()
            .map(|layer| layer.descriptor.clone())
            .collect(),
    }))
}

/// A manifest that came with an image may be Docker's schema 2 and says so.
fn media_type(manifest: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        #[serde(default)]
        media_type: String,
    }
    serde_json::from_slice::<Typed>(manifest)
        .map(|typed| typed.media_type)
        .ok()
        .filter(|kind| !kind.is_empty())
        .unwrap_or_else(|| MEDIA_TYPE_MANIFEST.into())
}

struct Archive<W: Write> {
    builder: tar::Builder<BufWriter<W>>,
    written: HashSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn append(
        &mut self,
        name: &str,
        kind: tar::EntryType,
        size: u64,
        data: impl Read,
    ) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        self.builder
            .append_data(&mut header, name, data)
            .kind(ErrorKind::Internal, || {
                format!("writing {name} to the archive")
            })
    }
    fn directory(&mut self, name: &str) -> Result<()> {
        self.append(name, tar::EntryType::Directory, 0, std::io::empty())
    }
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.append(name, tar::EntryType::Regular, bytes.len() as u64, bytes)
    }
    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if self.written.insert(digest.clone()) {
            self.file(&blob_name(digest), bytes)?;
        }
        Ok(())
    }

    /// Hashes on the way out: what the disk has made of a blob must not travel on under its name.
    fn layer(&mut self, store: &Inner, layer: &Outgoing) -> Result<()> {
        let digest = &layer.descriptor.digest;
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let size = layer.descriptor.size;
        let source: Box<dyn Read + Send> = if layer.inflate {
            open_plain(store, &layer.row)?
        } else {
            let path = store.blob_path(&layer.row.blob);
            Box::new(File::open(&path).context(|| format!("opening {}", path.display()))?)
        };
        let mut hashing = Hashing {
            inner: BufReader::with_capacity(BUFFER, source.take(size)),
            hasher: Hasher::new(),
        };
        self.append(
            &blob_name(digest),
            tar::EntryType::Regular,
            size,
            &mut hashing,
        )?;
        if hashing.hasher.finish() != *digest {
            return Err(Error::internal(format!(
                "the stored layer {digest} is damaged: remove the image and load it again"
            )));
        }
        Ok(())
    }
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
