//! `docker pull`: a manifest says what is wanted, threads fetch what is not here, workers unpack it meanwhile.
//!
//! ```text
//! manifest (index → platform) ─▶ configuration ─▶ layers not known: fetch ─▶ spool ─▶ worker ─▶ Inner::publish
//! ```
//! Every byte is hashed while it arrives. A connection that breaks is taken up where it broke.

use crate::archive::{Assembly, Content, Item, architecture};
use crate::layer::Budget;
use crate::remote::{Access, Remote, collect};
use crate::spool::{Codec, Job, Slot, Spool, SpoolWriter, sha256, with_workers};
use crate::store::{
    CONFIG_LIMIT, Inner, LAYER_LIMIT, LayerRow, MANIFEST_LIMIT, NewImage, Workshop,
};
use crate::{Credentials, Progress, Pulled};
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::image::{Descriptor, Platform};
use gantry_oci::{Digest, Reference};
use http_body_util::BodyExt;
use serde::Deserialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::runtime::Handle;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
const INDEXES: [&str; 2] = [
    gantry_oci::image::MEDIA_TYPE_INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(crate) const MANIFESTS: [&str; 2] = [
    gantry_oci::image::MEDIA_TYPE_MANIFEST,
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Layers fetched at once, as in Docker.
const PARALLEL: usize = 3;
/// Attempts at one blob, with a pause that doubles between them.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(250);
/// A connection on which nothing comes for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// A line of progress at most every so many bytes.
const STEP: u64 = 512 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A name that a registry knows, and how to get what it names.
pub struct Resolved {
    remote: Remote,
    reference: Reference,
    /// Of the document that the name leads to: an index or a manifest.
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    /// The platforms of an index, or none.
    pub platforms: Vec<Platform>,
    document: Bytes,
    platform: Option<Platform>,
}

/// `linux/arm64/v8` as typed.
pub(crate) fn parse_platform(text: &str) -> Result<Option<Platform>> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut parts = text.split('/').map(str::to_lowercase);
    let (os, machine, variant) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let machine = match machine.as_deref() {
        None if os != "linux" => {
            return Err(Error::invalid(format!(
                "{text:?} is an invalid platform: use os/architecture"
            )));
        }
        None => architecture().to_owned(),
        Some("x86_64") => "amd64".into(),
        Some("aarch64") => "arm64".into(),
        Some(other) => other.to_owned(),
    };
    Ok(Some(Platform {
        architecture: machine,
        os,
        variant,
        os_version: None,
    }))
}

pub(crate) async fn resolve(
    reference: &Reference,
    platform: &str,
    credentials: Option<Credentials>,
) -> Result<Resolved> {
    let platform = parse_platform(platform)?;
    let reference = reference.clone().or_latest();
    let remote = Remote::connect(&reference, Access::Pull, credentials).await?;
    let name = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.clone().unwrap_or_default(),
    };
    let (document, media_type) = match remote.manifest(&name, ACCEPT, MANIFEST_LIMIT).await? {
        Ok(found) => found,
        Err(refused) => {
            let words = match (refused.status.as_u16(), refused.code.as_str()) {
                (_, "NAME_UNKNOWN") => {
                    format!("repository {} not found: ", reference.familiar_name())
                }
                (404, _) => format!("manifest for {reference} not found: "),
                (401 | 403, _) => format!(
                    "pull access denied for {}, repository does not exist or may require 'docker login': ",
                    reference.familiar_name()
                ),
                _ => String::new(),
            };
            let kind = match refused.status.as_u16() {
                404 | 401 | 403 => ErrorKind::NotFound,
                _ => ErrorKind::Internal,
            };
            return Err(Error::new(kind, format!("{words}{}", refused.text)));
        }
    };
    let digest = sha256(&document);
    if let Some(wanted) = &reference.digest
        && *wanted != digest
    {
        return Err(damaged(wanted));
    }
    let platforms = serde_json::from_slice::<Index>(&document)
        .map(|index| {
            index
                .manifests
                .into_iter()
                .filter_map(|m| m.platform)
                .collect()
        })
        .unwrap_or_default();
    Ok(Resolved {
        remote,
        reference,
        digest,
        media_type,
        size: document.len() as u64,
        platforms,
        document,
        platform,
    })
}

fn damaged(digest: &Digest) -> Error {
    Error::internal(format!(
        "filesystem layer verification failed for digest {digest}"
    ))
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).context(|| format!("reading the {what} that the registry sent"))
}

impl Resolved {
    /// The manifest for the platform; follows an index once.
    async fn manifest(&self) -> Result<(Bytes, Manifest)> {
        let mut document = self.document.clone();
        let index: Index = json(&document, "manifest")?;
        if INDEXES.contains(&self.media_type.as_str())
            || INDEXES.contains(&index.media_type.as_str())
        {
            let chosen = self.choose(&index)?;
            document = match self
                .remote
                .manifest(&chosen.digest.to_string(), ACCEPT, MANIFEST_LIMIT)
                .await?
            {
                Ok((bytes, _)) => bytes,
                Err(refused) => return Err(refused.into_error()),
            };
            if sha256(&document) != chosen.digest {
                return Err(damaged(&chosen.digest));
            }
        } else if !MANIFESTS.contains(&self.media_type.as_str()) {
            return Err(Error::invalid(format!(
                "unsupported manifest media type {:?}: push the image again with a newer client",
                self.media_type
            )));
        }
        let manifest: Manifest = json(&document, "manifest")?;
        if manifest.layers.len() > LAYER_LIMIT {
            return Err(Error::invalid("max depth exceeded"));
        }
        Ok((document, manifest))
    }

    fn choose<'a>(&self, index: &'a Index) -> Result<&'a Descriptor> {
        let native = Platform {
            architecture: architecture().into(),
            os: "linux".into(),
            ..Platform::default()
        };
        let wanted = self.platform.as_ref().unwrap_or(&native);
        let fits = |d: &&Descriptor| {
            d.platform
                .as_ref()
                .is_some_and(|p| p.os == wanted.os && p.architecture == wanted.architecture)
        };
        let exact = |d: &&Descriptor| {
            d.platform
                .as_ref()
                .is_some_and(|p| p.variant == wanted.variant)
        };
        let mut fitting = index.manifests.iter().filter(fits);
        let first = fitting
            .clone()
            .find(exact)
            .or_else(|| fitting.next().filter(|_| wanted.variant.is_none()));
        first.ok_or_else(|| {
            let mut text = format!("{}/{}", wanted.os, wanted.architecture);
            if let Some(variant) = &wanted.variant {
                text = format!("{text}/{variant}");
            }
            Error::not_found(format!(
                "no matching manifest for {text} in the manifest list entries"
            ))
        })
    }

    async fn small_blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        if descriptor.size > limit {
            return Err(Error::invalid(format!(
                "the image configuration is larger than {} MiB",
                limit >> 20
            )));
        }
        let (answer, _) = self.remote.blob(&descriptor.digest, 0).await?;
        let bytes = collect(answer, usize::try_from(limit).unwrap_or(usize::MAX)).await?;
        if sha256(&bytes) != descriptor.digest {
            return Err(Error::internal(format!(
                "image config verification failed for digest {}",
                descriptor.digest
            )));
        }
        Ok(bytes.to_vec())
    }
}

/// A layer on its way.
struct Fetch {
    at: usize,
    descriptor: Descriptor,
}

pub(crate) fn pull(
    store: &Inner,
    runtime: &Handle,
    resolved: &Resolved,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Pulled> {
    let workshop = store.workshop()?;
    let budget = Budget::of(&store.dir)?;
    let (raw_manifest, manifest) = runtime.block_on(resolved.manifest())?;
    let raw_config = runtime.block_on(resolved.small_blob(&manifest.config, CONFIG_LIMIT))?;
    let mut image = NewImage::new(raw_config)?;
    let (expected, actual) = (manifest.layers.len(), image.config.rootfs.diff_ids.len());
    if expected != actual {
        return Err(Error::invalid(format!(
            "invalid manifest, layers length mismatch: expected {expected}, got {actual}"
        )));
    }
    let mut items: Vec<Option<Item>> = Vec::new();
    let mut queue = VecDeque::new();
    for (at, descriptor) in manifest.layers.iter().enumerate() {
        let known = known_layer(store, &descriptor.digest);
        let first = manifest
            .layers
            .iter()
            .position(|d| d.digest == descriptor.digest)
            == Some(at);
        match known {
            Some(row) => {
                progress(Progress::Exists(&descriptor.digest));
                items.push(Some(Item {
                    size: row.blob_size,
                    digest: row.blob.clone(),
                    content: Content::Known(row),
                }));
            }
            None => {
                if first {
                    progress(Progress::Waiting(&descriptor.digest));
                    queue.push_back(Fetch {
                        at,
                        descriptor: descriptor.clone(),
                    });
                }
                items.push(None);
            }
        }
    }
    let fetched = Mutex::new(items);
    with_workers(&budget, |jobs| {
        fetch_all(
            runtime, resolved, &workshop, &budget, jobs, queue, &fetched, progress,
        )
    })?;
    let items = fetched.into_inner().unwrap_or_else(PoisonError::into_inner);
    let places: Vec<usize> = manifest
        .layers
        .iter()
        .map(|layer| {
            manifest
                .layers
                .iter()
                .position(|d| d.digest == layer.digest)
                .unwrap_or_default()
        })
        .collect();
    let mut items: Vec<Item> = items
        .into_iter()
        .map(|item| item.unwrap_or_else(placeholder))
        .collect();
    let mut assembly = Assembly::new(store, &workshop, &budget);
    image.layers = assembly.chain(&image, &places, &mut items)?;
    if assembly.holds_blobs(&image.layers, &places, &items) {
        image.manifest = Some(raw_manifest.to_vec());
    }
    let id = image.id.clone();
    let by_digest = Reference {
        tag: None,
        digest: Some(resolved.digest.clone()),
        ..resolved.reference.clone()
    };
    let name = if resolved.reference.digest.is_some() {
        by_digest.clone()
    } else {
        resolved.reference.clone()
    };
    let is_new = store
        .find(&name.to_string())?
        .is_none_or(|before| before.id != id);
    if resolved.reference.digest.is_none() {
        image.tags.push(resolved.reference.clone());
    }
    image.tags.push(by_digest);
    store.publish(assembly.layers, vec![image])?;
    for layer in &manifest.layers {
        progress(Progress::Complete(&layer.digest));
    }
    Ok(Pulled {
        id,
        digest: resolved.digest.clone(),
        reference: name,
        is_new,
    })
}

/// A layer that an earlier one of the same digest stands for.
fn placeholder() -> Item {
    Item {
        content: Content::Memory(Vec::new()),
        size: 0,
        digest: sha256(b""),
    }
}

fn known_layer(store: &Inner, blob: &Digest) -> Option<LayerRow> {
    store
        .read()
        .layers
        .values()
        .find(|row| row.blob == *blob)
        .cloned()
}

#[expect(
    clippy::too_many_arguments,
    reason = "one pull's parts, handed to its threads once"
)]
fn fetch_all(
    runtime: &Handle,
    resolved: &Resolved,
    workshop: &Workshop<'_>,
    budget: &Budget,
    jobs: &mpsc::Sender<Job>,
    queue: VecDeque<Fetch>,
    fetched: &Mutex<Vec<Option<Item>>>,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<()> {
    let count = queue.len().min(PARALLEL);
    let queue = Mutex::new(queue);
    let failed = Mutex::new(None::<Error>);
    std::thread::scope(|scope| {
        for _ in 0..count {
            let jobs = jobs.clone();
            let (queue, failed) = (&queue, &failed);
            scope.spawn(move || {
                loop {
                    if failed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .is_some()
                    {
                        return;
                    }
                    let next = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(Fetch { at, descriptor }) = next else {
                        return;
                    };
                    match runtime.block_on(fetch(
                        resolved,
                        &descriptor,
                        workshop,
                        budget,
                        &jobs,
                        progress,
                    )) {
                        Ok(item) => {
                            // Outside the runtime: the listener may block.
                            progress(Progress::Downloaded(&descriptor.digest));
                            fetched.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(item);
                        }
                        Err(error) => {
                            failed
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(()), Err)
}

/// One layer into a spool; a worker begins to unpack it with the first bytes.
async fn fetch(
    resolved: &Resolved,
    descriptor: &Descriptor,
    workshop: &Workshop<'_>,
    budget: &Budget,
    jobs: &mpsc::Sender<Job>,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Item> {
    let digest = &descriptor.digest;
    let mut writer = SpoolWriter::create(workshop.path("blob"))?;
    let mut started: Option<(Codec, Slot)> = None;
    let mut head = Vec::new();
    let mut received = 0u64;
    let mut attempt = 0;
    while received < descriptor.size {
        let before = received;
        let result = receive(resolved, descriptor, received, |piece| {
            received += piece.len() as u64;
            if started.is_none() {
                head.extend_from_slice(&piece[..piece.len().min(16)]);
                if head.len() >= 16 || received == descriptor.size {
                    started = Some(start_unpacking(writer.spool(), &head, workshop, jobs)?);
                }
            }
            writer.write(piece, budget)?;
            if received / STEP != (received - piece.len() as u64) / STEP {
                progress(Progress::Downloading(digest, received, descriptor.size));
            }
            Ok(())
        })
        .await;
        attempt = if received > before { 0 } else { attempt + 1 };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unavailable && attempt < ATTEMPTS => {
                tracing::debug!(
                    error = error.chain(),
                    "fetching a layer broke off; taking it up again"
                );
                tokio::time::sleep(PAUSE * (1 << attempt)).await;
            }
            Err(error) => return Err(error),
        }
    }
    let (spool, actual, size) = writer.finish();
    if actual != *digest || size != descriptor.size {
        return Err(damaged(digest));
    }
    let (codec, slot) = match started {
        Some((codec, slot)) => (codec, Some(slot)),
        None => (Codec::Plain, None),
    };
    Ok(Item {
        content: Content::Spooled { spool, codec, slot },
        size,
        digest: actual,
    })
}

fn start_unpacking(
    spool: &Arc<Spool>,
    head: &[u8],
    workshop: &Workshop<'_>,
    jobs: &mpsc::Sender<Job>,
) -> Result<(Codec, Slot)> {
    let codec = Codec::detect(head)?;
    let slot = Slot::default();
    let job = Job {
        spool: spool.clone(),
        codec,
        folder: workshop.path("layer"),
        result: slot.clone(),
    };
    jobs.send(job)
        .map_err(|_| Error::internal("the unpacking threads have ended"))?;
    Ok((codec, slot))
}

/// The bytes of a blob from `offset` on. What a further attempt may cure is `Unavailable`.
async fn receive(
    resolved: &Resolved,
    descriptor: &Descriptor,
    offset: u64,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let broken = |text: String| Error::new(ErrorKind::Unavailable, text);
    let (answer, begins) = resolved
        .remote
        .blob(&descriptor.digest, offset)
        .await
        .map_err(|e| match e.kind() {
            ErrorKind::Internal => broken(e.chain()),
            _ => e,
        })?;
    // A server without ranges starts again: what is here already is passed over.
    let mut skip = offset - begins;
    let mut left = descriptor.size - offset;
    let mut body = answer.into_body();
    while left > 0 {
        let frame = match tokio::time::timeout(STALL, body.frame()).await {
            Err(_) => {
                return Err(broken(
                    "the registry stopped in the middle of a layer".into(),
                ));
            }
            Ok(None) => return Err(broken("unexpected EOF".into())),
            Ok(Some(frame)) => frame.map_err(|e| broken(e.to_string()))?,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
        skip -= passed as u64;
        let piece = &data[passed..];
        if piece.len() as u64 > left {
            return Err(damaged(&descriptor.digest));
        }
        left -= piece.len() as u64;
        if !piece.is_empty() {
            sink(piece)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_as_people_type_them() {
        let show = |text: &str| match parse_platform(text) {
            Ok(None) => "any".to_owned(),
            Ok(Some(p)) => format!(
                "{} {} {}",
                p.os,
                p.architecture,
                p.variant.unwrap_or_default()
            ),
            Err(e) => e.chain(),
        };
        assert_eq!(show(""), "any");
        assert_eq!(show("linux/arm64/v8"), "linux arm64 v8");
        assert_eq!(show("linux/x86_64"), "linux amd64 ");
        assert_eq!(
            show("arm64"),
            "\"arm64\" is an invalid platform: use os/architecture"
        );
    }
}
