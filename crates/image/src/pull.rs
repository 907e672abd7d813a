//! `docker pull`: a manifest says what is wanted, threads fetch what is not here, workers unpack it meanwhile.
//!
//! ```text
//! manifest (index → platform) ─▶ configuration ─▶ layers not known: fetch ─▶ spool ─▶ worker ─▶ Inner::publish
//!                                                 a layer's sources: where the manifest came from │ further mirrors and the
//!                                                 registry itself │ addresses in the manifest (foreign layers)
//! ```
//! Every byte is hashed while it arrives. A connection that breaks is taken up where it broke; a source that sends damaged bytes
//! is asked once more, then the next one is. Nothing is visible before all layers are whole.

use crate::archive::{Assembly, Content, Item, architecture};
use crate::layer::Budget;
use crate::registries::{Endpoint, Registries};
use crate::remote::{Access, Remote, collect};
use crate::schema1;
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
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, application/vnd.docker.distribution.manifest.v1+json;q=0.5";
const INDEXES: [&str; 2] = [
    gantry_oci::image::MEDIA_TYPE_INDEX,
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub(crate) const MANIFESTS: [&str; 2] = [
    gantry_oci::image::MEDIA_TYPE_MANIFEST,
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// What the configuration of something that runs is called; the last ones by registries that do not know better.
const CONFIGS: [&str; 4] = [
    gantry_oci::image::MEDIA_TYPE_CONFIG,
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "text/html",
];
/// Layers fetched at once, as in Docker.
const PARALLEL: usize = 3;
/// Attempts at one blob that bring nothing, with a pause that doubles between them.
const ATTEMPTS: u32 = 5;
/// All attempts at one blob, however little each brings.
const ALL_ATTEMPTS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(250);
/// A connection that brings fewer bytes than this within the registry's patience is given up.
const SLOWEST: u64 = 16 << 10;
/// How often a fetch looks whether anybody still waits for it.
const LOOK: Duration = Duration::from_millis(250);
/// A line of progress at most every so many bytes.
const STEP: u64 = 512 << 10;
/// Addresses of one foreign layer.
const URL_LIMIT: usize = 8;

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
    layers: Vec<Layer>,
}

#[derive(Deserialize, Clone)]
struct Layer {
    digest: Digest,
    size: u64,
    /// Where a foreign layer lies when the registry does not hold it.
    #[serde(default)]
    urls: Vec<String>,
}

/// What is to be pulled.
enum Wanted {
    Image {
        manifest: Bytes,
        config: Vec<u8>,
        layers: Vec<Layer>,
    },
    Schema1(schema1::Manifest, Vec<Layer>),
}

/// A name that a registry knows, and how to get what it names.
pub struct Resolved {
    remote: Remote,
    /// Where else the layers may be.
    others: Vec<Other>,
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

/// An endpoint that is spoken to when those before it failed.
struct Other {
    registries: Registries,
    endpoint: Endpoint,
    path: String,
    credentials: Option<Credentials>,
    remote: tokio::sync::OnceCell<Remote>,
}

impl Other {
    async fn remote(&self) -> Result<&Remote> {
        self.remote
            .get_or_try_init(|| {
                Remote::connect(
                    &self.registries,
                    &self.endpoint,
                    &self.path,
                    Access::Pull,
                    self.credentials.clone(),
                )
            })
            .await
    }
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

/// Asks each endpoint until one knows the name. The last one's refusal is the answer.
pub(crate) async fn resolve(
    registries: &Registries,
    reference: &Reference,
    platform: &str,
    credentials: Option<Credentials>,
) -> Result<Resolved> {
    let platform = parse_platform(platform)?;
    let reference = reference.clone().or_latest();
    let mut endpoints: VecDeque<Endpoint> =
        registries.endpoints(&reference.domain, true).await.into();
    loop {
        let endpoint = endpoints
            .pop_front()
            .ok_or_else(|| Error::internal("a registry without an address"))?;
        let others = endpoints.iter().map(|other| Other {
            registries: registries.clone(),
            endpoint: other.clone(),
            path: reference.path.clone(),
            credentials: credentials.clone(),
            remote: tokio::sync::OnceCell::new(),
        });
        let remote = Remote::connect(
            registries,
            &endpoint,
            &reference.path,
            Access::Pull,
            credentials.clone(),
        );
        let asked = match remote.await {
            Ok(remote) => resolve_at(remote, others.collect(), &reference, platform.clone()).await,
            Err(error) => Err(error),
        };
        match asked {
            Err(error) if !endpoints.is_empty() => {
                tracing::info!(
                    endpoint = endpoint.base,
                    error = error.chain(),
                    "a mirror does not serve an image; asking the next"
                );
            }
            result => return result,
        }
    }
}

async fn resolve_at(
    remote: Remote,
    others: Vec<Other>,
    reference: &Reference,
    platform: Option<Platform>,
) -> Result<Resolved> {
    let name = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.clone().unwrap_or_default(),
    };
    let (document, media_type) = match remote.manifest(&name, ACCEPT, MANIFEST_LIMIT).await? {
        Ok(found) => found,
        Err(refused) => {
            // Docker: `TranslatePullError`.
            let words = match (refused.status.as_u16(), refused.code.as_str()) {
                (_, "NAME_UNKNOWN") => {
                    format!("repository {} not found: ", reference.familiar_name())
                }
                (_, "DENIED") => format!(
                    "pull access denied for {}, repository does not exist or may require 'docker login': ",
                    reference.familiar_name()
                ),
                (404, _) => format!("manifest for {reference} not found: "),
                _ => String::new(),
            };
            let kind = match refused.status.as_u16() {
                429 | 502..=504 => ErrorKind::Unavailable,
                _ if words.is_empty() => ErrorKind::Internal,
                _ => ErrorKind::NotFound,
            };
            return Err(Error::new(kind, format!("{words}{}", refused.text)));
        }
    };
    let digest = if is_schema1(&media_type, &document) {
        schema1::digest(&document)?
    } else {
        sha256(&document)
    };
    if let Some(wanted) = &reference.digest
        && *wanted != digest
    {
        return Err(Error::internal(format!(
            "manifest verification failed for digest {wanted}"
        )));
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
        others,
        reference: reference.clone(),
        digest,
        media_type,
        size: document.len() as u64,
        platforms,
        document,
        platform,
    })
}

fn is_schema1(media_type: &str, document: &[u8]) -> bool {
    schema1::MEDIA_TYPES.contains(&media_type)
        || (matches!(media_type, "" | "application/json" | "text/plain")
            && schema1::is_schema1(document))
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
    /// What to fetch for the platform; follows an index once.
    async fn wanted(&self) -> Result<Wanted> {
        if is_schema1(&self.media_type, &self.document) {
            return self.wanted_schema1().await;
        }
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
                return Err(Error::internal(format!(
                    "manifest verification failed for digest {}",
                    chosen.digest
                )));
            }
        } else if !MANIFESTS.contains(&self.media_type.as_str()) {
            return Err(Error::invalid(format!(
                "unsupported manifest media type {:?}: push the image again with a newer client",
                self.media_type
            )));
        }
        let manifest: Manifest = json(&document, "manifest")?;
        let kind = manifest.config.media_type.as_str();
        if !kind.is_empty() && !CONFIGS.contains(&kind) {
            return Err(Error::invalid(format!(
                "Encountered remote {kind:?}(unknown) when fetching"
            )));
        }
        if manifest.layers.len() > LAYER_LIMIT {
            return Err(Error::invalid("max depth exceeded"));
        }
        let config = self.small_blob(&manifest.config, CONFIG_LIMIT).await?;
        Ok(Wanted::Image {
            manifest: document,
            config,
            layers: manifest.layers,
        })
    }

    async fn wanted_schema1(&self) -> Result<Wanted> {
        let manifest = schema1::read(&self.document)?;
        let mut layers: Vec<Layer> = Vec::new();
        for digest in &manifest.layers {
            let known = layers.iter().find(|l| l.digest == *digest).map(|l| l.size);
            let size = match known {
                Some(size) => size,
                None => self.remote.blob_size(digest).await?,
            };
            layers.push(Layer {
                digest: digest.clone(),
                size,
                urls: Vec::new(),
            });
        }
        Ok(Wanted::Schema1(manifest, layers))
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
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut last = None;
        // The wire may have bent it: once more.
        for _ in 0..2 {
            let (answer, _) = self.remote.blob(&descriptor.digest, 0).await?;
            let bytes = collect(answer, limit, self.remote.patience()).await?;
            if sha256(&bytes) == descriptor.digest {
                return Ok(bytes.to_vec());
            }
            last = Some(Error::internal(format!(
                "image config verification failed for digest {}",
                descriptor.digest
            )));
        }
        Err(last.unwrap_or_else(|| damaged(&descriptor.digest)))
    }
}

/// A layer on its way.
struct Fetch {
    at: usize,
    layer: Layer,
}

/// What the threads of one pull share.
struct Pull<'a> {
    store: &'a Inner,
    runtime: &'a Handle,
    resolved: &'a Resolved,
    workshop: &'a Workshop<'a>,
    budget: &'a Budget,
    progress: &'a (dyn Fn(Progress<'_>) + Sync),
    gone: &'a (dyn Fn() -> bool + Sync),
}

pub(crate) fn pull(
    store: &Inner,
    runtime: &Handle,
    resolved: &Resolved,
    progress: &(dyn Fn(Progress<'_>) + Sync),
    gone: &(dyn Fn() -> bool + Sync),
) -> Result<Pulled> {
    let workshop = store.workshop()?;
    let budget = Budget::of(&store.dir)?;
    let pull = Pull {
        store,
        runtime,
        resolved,
        workshop: &workshop,
        budget: &budget,
        progress,
        gone,
    };
    let (mut image, layers, mut items, exact) = match runtime.block_on(resolved.wanted())? {
        Wanted::Image {
            manifest,
            config,
            layers,
        } => {
            let mut image = NewImage::new(config)?;
            let (expected, actual) = (layers.len(), image.config.rootfs.diff_ids.len());
            if expected != actual {
                return Err(Error::invalid(format!(
                    "invalid manifest, layers length mismatch: expected {expected}, got {actual}"
                )));
            }
            check_platform(resolved, &image)?;
            let (items, exact) = pull.items(&layers, &image.config.rootfs.diff_ids)?;
            image.manifest = Some(manifest.to_vec());
            (image, layers, items, exact)
        }
        Wanted::Schema1(manifest, layers) => {
            let (items, _) = pull.items(&layers, &[])?;
            let diff_ids = places(&layers)
                .into_iter()
                .map(|at| diff_id(&items[at], &layers[at].digest))
                .collect::<Result<Vec<_>>>()?;
            (
                NewImage::new(manifest.config(&diff_ids))?,
                layers,
                items,
                false,
            )
        }
    };
    let places = places(&layers);
    let mut assembly = Assembly::new(store, &workshop, &budget);
    image.layers = assembly.chain(&image, &places, &mut items)?;
    if !exact || !assembly.holds_blobs(&image.layers, &places, &items) {
        image.manifest = None;
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
    let fetched: Vec<Digest> = layers
        .iter()
        .enumerate()
        .filter(|(at, _)| places[*at] == *at && !matches!(items[*at].content, Content::Known(_)))
        .map(|(_, layer)| layer.digest.clone())
        .collect();
    store.publish(assembly.layers, vec![image])?;
    for digest in &fetched {
        progress(Progress::Complete(digest));
    }
    Ok(Pulled {
        id,
        digest: resolved.digest.clone(),
        reference: name,
        is_new,
    })
}

/// Somebody who asked for a platform does not get another one without a word.
fn check_platform(resolved: &Resolved, image: &NewImage) -> Result<()> {
    let Some(wanted) = &resolved.platform else {
        return Ok(());
    };
    let config = &image.config;
    let os = if config.os.is_empty() {
        "linux"
    } else {
        &config.os
    };
    let other_variant =
        wanted.variant.is_some() && config.variant.is_some() && wanted.variant != config.variant;
    if (wanted.os == os && wanted.architecture == config.architecture && !other_variant)
        || config.architecture.is_empty()
    {
        return Ok(());
    }
    let show = |os: &str, machine: &str, variant: &Option<String>| match variant {
        Some(variant) if !variant.is_empty() => format!("{os}/{machine}/{variant}"),
        _ => format!("{os}/{machine}"),
    };
    Err(Error::not_found(format!(
        "image with reference {} was found but does not match the specified platform: wanted {}, actual: {}",
        resolved.reference,
        show(&wanted.os, &wanted.architecture, &wanted.variant),
        show(os, &config.architecture, &config.variant),
    )))
}

/// For each layer the first one of the same digest: it alone is fetched.
fn places(layers: &[Layer]) -> Vec<usize> {
    layers
        .iter()
        .map(|layer| {
            layers
                .iter()
                .position(|d| d.digest == layer.digest)
                .unwrap_or_default()
        })
        .collect()
}

/// What a layer that was fetched or known holds.
fn diff_id(item: &Item, blob: &Digest) -> Result<Digest> {
    match &item.content {
        Content::Known(row) => Ok(row.diff_id.clone()),
        Content::Spooled {
            slot: Some(slot), ..
        } => {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.as_ref() {
                Some(Ok(done)) => Ok(done.diff_id.clone().unwrap_or_else(|| item.digest.clone())),
                Some(Err(error)) => Err(Error::new(error.kind(), error.chain())),
                None => Err(Error::internal(format!("layer {blob} was not unpacked"))),
            }
        }
        _ => Err(Error::internal(format!("layer {blob} was not unpacked"))),
    }
}

impl Pull<'_> {
    /// Every layer as an item: known ones as they are, the others fetched and unpacked. The flag says that all blobs are
    /// the manifest's own.
    fn items(&self, layers: &[Layer], diff_ids: &[Digest]) -> Result<(Vec<Item>, bool)> {
        let places = places(layers);
        let mut exact = true;
        let mut items: Vec<Option<Item>> = Vec::new();
        let mut queue = VecDeque::new();
        for (at, layer) in layers.iter().enumerate() {
            let known = known_layer(self.store, &layer.digest, diff_ids.get(at));
            if let Some(row) = known {
                exact &= row.blob == layer.digest;
                (self.progress)(Progress::Exists(&layer.digest));
                items.push(Some(Item {
                    size: row.blob_size,
                    digest: row.blob.clone(),
                    content: Content::Known(row),
                }));
                continue;
            }
            if places[at] == at {
                (self.progress)(Progress::Waiting(&layer.digest));
                queue.push_back(Fetch {
                    at,
                    layer: layer.clone(),
                });
            }
            items.push(None);
        }
        let fetched = Mutex::new(items);
        with_workers(self.budget, |jobs| self.fetch_all(jobs, queue, &fetched))?;
        let items = fetched.into_inner().unwrap_or_else(PoisonError::into_inner);
        let items = items
            .into_iter()
            .map(|item| item.unwrap_or_else(placeholder))
            .collect();
        Ok((items, exact))
    }
}

/// A layer that an earlier one of the same digest stands for.
fn placeholder() -> Item {
    Item {
        content: Content::Memory(Vec::new()),
        size: 0,
        digest: sha256(b""),
    }
}

/// A layer of the store that is this blob, or one that is known to hold the same.
fn known_layer(store: &Inner, blob: &Digest, diff_id: Option<&Digest>) -> Option<LayerRow> {
    let state = store.read();
    let by_blob = state.layers.values().find(|row| row.blob == *blob);
    by_blob
        .or_else(|| state.layers.get(&diff_id?.to_string()))
        .filter(|row| store.has_blob(row))
        .cloned()
}

/// Why a source's bytes are of no use.
enum Bad {
    /// They are not what was promised.
    Damaged(Error),
    Other(Error),
}

impl From<Error> for Bad {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Registry(&'a Remote),
    /// An address that a manifest gives.
    Address(&'a Remote, &'a str),
}

impl Pull<'_> {
    fn fetch_all(
        &self,
        jobs: &mpsc::Sender<Job>,
        queue: VecDeque<Fetch>,
        fetched: &Mutex<Vec<Option<Item>>>,
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
                        let over = || {
                            failed
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .is_some()
                        };
                        if over() {
                            return;
                        }
                        let next = queue
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front();
                        let Some(Fetch { at, layer }) = next else {
                            return;
                        };
                        match self.runtime.block_on(self.fetch(&layer, &jobs, &over)) {
                            Ok(item) => {
                                // Outside the runtime: the listener may block.
                                (self.progress)(Progress::Downloaded(&layer.digest));
                                fetched.lock().unwrap_or_else(PoisonError::into_inner)[at] =
                                    Some(item);
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

    /// One layer, from the first source that has it whole.
    async fn fetch(
        &self,
        layer: &Layer,
        jobs: &mpsc::Sender<Job>,
        over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Item> {
        let resolved = self.resolved;
        let mut first = None;
        for number in 0..=resolved.others.len() + layer.urls.len().min(URL_LIMIT) {
            let source = match number.checked_sub(1) {
                None => Ok(Source::Registry(&resolved.remote)),
                Some(other) if other < resolved.others.len() => {
                    resolved.others[other].remote().await.map(Source::Registry)
                }
                Some(other) => {
                    let url = &layer.urls[other - resolved.others.len()];
                    Ok(Source::Address(&resolved.remote, url))
                }
            };
            let result = match source {
                Ok(source) => match self.fetch_from(source, layer, jobs, over).await {
                    Err(Bad::Damaged(_)) => {
                        tracing::warn!(layer = %layer.digest, "a layer arrived damaged; fetching it again");
                        self.fetch_from(source, layer, jobs, over).await
                    }
                    result => result,
                },
                Err(error) => Err(Bad::Other(error)),
            };
            match result {
                Ok(item) => return Ok(item),
                Err(Bad::Damaged(error) | Bad::Other(error)) => {
                    if over() || (self.gone)() {
                        return Err(error);
                    }
                    tracing::info!(layer = %layer.digest, error = error.chain(), "a source did not serve a layer");
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| damaged(&layer.digest)))
    }

    /// One layer into a spool; a worker begins to unpack it with the first bytes.
    async fn fetch_from(
        &self,
        source: Source<'_>,
        layer: &Layer,
        jobs: &mpsc::Sender<Job>,
        over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Item, Bad> {
        let digest = &layer.digest;
        let mut writer = SpoolWriter::create(self.workshop.path("blob"))?;
        let mut started: Option<(Codec, Slot)> = None;
        let mut head = Vec::new();
        let mut received = 0u64;
        let (mut attempt, mut all) = (0, 0);
        while received < layer.size {
            let before = received;
            let stop = || over() || (self.gone)();
            let result = receive(source, layer, received, &stop, |piece| {
                received += piece.len() as u64;
                if started.is_none() {
                    head.extend_from_slice(&piece[..piece.len().min(16)]);
                    if head.len() >= 16 || received == layer.size {
                        started =
                            Some(start_unpacking(writer.spool(), &head, self.workshop, jobs)?);
                    }
                }
                writer.write(piece, self.budget)?;
                if received / STEP != (received - piece.len() as u64) / STEP {
                    (self.progress)(Progress::Downloading(digest, received, layer.size));
                }
                Ok(())
            })
            .await;
            all += 1;
            attempt = if received >= before + SLOWEST {
                0
            } else {
                attempt + 1
            };
            match result {
                Ok(()) => {}
                Err(Bad::Other(error))
                    if error.kind() == ErrorKind::Unavailable
                        && attempt < ATTEMPTS
                        && all < ALL_ATTEMPTS =>
                {
                    tracing::debug!(
                        error = error.chain(),
                        "fetching a layer broke off; taking it up again"
                    );
                    let pause = Instant::now() + PAUSE * (1 << attempt);
                    while Instant::now() < pause {
                        if stop() {
                            return Err(Bad::Other(canceled()));
                        }
                        tokio::time::sleep(LOOK.min(pause - Instant::now())).await;
                    }
                }
                Err(bad) => return Err(bad),
            }
        }
        let (spool, actual, size) = writer.finish();
        if actual != *digest || size != layer.size {
            return Err(Bad::Damaged(damaged(digest)));
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
}

fn canceled() -> Error {
    Error::internal("context canceled")
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
    source: Source<'_>,
    layer: &Layer,
    offset: u64,
    stop: &(dyn Fn() -> bool + Sync),
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(), Bad> {
    let broken = |text: String| Bad::Other(Error::new(ErrorKind::Unavailable, text));
    let asked = match source {
        Source::Registry(remote) => remote.blob(&layer.digest, offset).await,
        Source::Address(remote, url) => remote.foreign(url, offset).await,
    };
    let (answer, begins) = asked.map_err(|e| match e.kind() {
        ErrorKind::Internal => broken(e.chain()),
        _ => Bad::Other(e),
    })?;
    let patience = match source {
        Source::Registry(remote) | Source::Address(remote, _) => remote.patience(),
    };
    // A server without ranges starts again: what is here already is passed over.
    let mut skip = offset - begins;
    let mut left = layer.size - offset;
    let mut body = answer.into_body();
    let (mut since, mut brought) = (Instant::now(), 0u64);
    while left > 0 {
        if stop() {
            return Err(Bad::Other(canceled()));
        }
        let frame = tokio::time::timeout(LOOK.min(patience), body.frame()).await;
        if since.elapsed() >= patience {
            if brought < SLOWEST && brought < left {
                return Err(broken(
                    "the registry stopped in the middle of a layer".into(),
                ));
            }
            (since, brought) = (Instant::now(), 0);
        }
        let frame = match frame {
            Err(_) => continue,
            Ok(None) => return Err(broken("unexpected EOF".into())),
            Ok(Some(frame)) => frame.map_err(|e| broken(format!("unexpected EOF: {e}")))?,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        brought += data.len() as u64;
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
        skip -= passed as u64;
        let piece = &data[passed..];
        if piece.len() as u64 > left {
            return Err(Bad::Damaged(damaged(&layer.digest)));
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
