//! `load`: archives of `docker save` (any age), OCI layouts, and archives that are both.
//!
//! ```text
//! one pass over the archive          after it
//! small file ─▶ memory               manifest.json │ index.json │ repositories  ─▶ images
//! layer      ─▶ spool ─▶ worker      layers: known (not unpacked) │ unpacked meanwhile │ unpacked now
//!                                    ─▶ Inner::publish, all or nothing
//! ```
//! The list of images stands at the end of most archives, so layers are unpacked before it is known which image they
//! belong to. A layer of the same size as a known blob is compared with it instead; only when they differ is it written.

use crate::layer::{Budget, clean, tar_error};
use crate::spool::{
    Codec, Done, Job, Peeked, Slot, Spool, SpoolWriter, sha256, take_slot, unpack, with_workers,
};
use crate::store::{
    CONFIG_LIMIT, Inner, LAYER_LIMIT, LayerRow, MANIFEST_LIMIT, NewImage, NewLayer, Workshop,
};
use crate::tarstream::{Header, Kind, TarError, TarStream, looks_like_tar};
use crate::{Loaded, spool};
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::image::{Descriptor, History, Platform};
use gantry_oci::{Digest, Reference};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

/// Files in one archive; a layer is one or three of them.
const FILE_LIMIT: u64 = 50_000;
/// Files up to this size stay in memory …
const SMALL: u64 = 256 << 10;
/// … up to this much together.
const MEMORY_LIMIT: usize = 64 << 20;
/// Images in one archive.
const IMAGE_LIMIT: usize = 10_000;
/// Indexes within indexes.
const INDEX_DEPTH: usize = 4;
const LINK_HOPS: usize = 8;

/// A file of the archive.
pub(crate) struct Item {
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

pub(crate) enum Content {
    Memory(Vec<u8>),
    Spooled {
        spool: Arc<Spool>,
        codec: Codec,
        /// The worker's result, when one was asked.
        slot: Option<Slot>,
    },
    /// The very bytes of this layer's blob.
    Known(LayerRow),
}

/// Everything that the archive held, by name.
#[derive(Default)]
struct Files {
    items: Vec<Item>,
    names: HashMap<Vec<u8>, usize>,
    /// Old `docker save` writes a repeated layer as a symbolic link to the first.
    links: HashMap<Vec<u8>, Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An image of the archive, its layers still items.
struct Found {
    image: NewImage,
    layers: Vec<usize>,
}

pub(crate) fn load(
    store: &Inner,
    archive: impl Read + Send,
    progress: &mut dyn FnMut(&Digest, u64),
) -> Result<Vec<Loaded>> {
    let workshop = store.workshop()?;
    let budget = Budget::of(&store.dir)?;
    let known: HashMap<u64, LayerRow> = store
        .read()
        .layers
        .values()
        .filter(|row| store.has_blob(row))
        .map(|row| (row.blob_size, row.clone()))
        .collect();
    let source = Peeked::new(archive, 512)?;
    let codec = Codec::detect(source.head())?;
    let plain = codec.decode(source)?;
    let mut files = with_workers(&budget, |jobs| {
        let mut reader = ArchiveReader {
            store,
            workshop: &workshop,
            budget: &budget,
            jobs,
            known: &known,
            scratch: Vec::new(),
            memory: 0,
            files: Files::default(),
            progress,
        };
        reader.read(BufReader::with_capacity(spool::BUFFER, plain))?;
        Ok(reader.files)
    })?;
    let found = files.images()?;
    let mut assembly = Assembly::new(store, &workshop, &budget);
    let mut images = Vec::new();
    let mut loaded = Vec::new();
    for Found { mut image, layers } in found {
        image.layers = assembly.chain(&image, &layers, &mut files.items)?;
        if image.manifest.is_some() && !assembly.holds_blobs(&image.layers, &layers, &files.items) {
            image.manifest = None;
        }
        if image.tags.is_empty() {
            loaded.push(Loaded {
                id: image.id.clone(),
                reference: None,
            });
        }
        for tag in &image.tags {
            loaded.push(Loaded {
                id: image.id.clone(),
                reference: Some(tag.clone()),
            });
        }
        images.push(image);
    }
    store.publish(assembly.layers, images)?;
    Ok(loaded)
}

struct ArchiveReader<'a> {
    store: &'a Inner,
    workshop: &'a Workshop<'a>,
    budget: &'a Budget,
    jobs: &'a mpsc::Sender<Job>,
    /// A layer of the store by the size of its blob.
    known: &'a HashMap<u64, LayerRow>,
    scratch: Vec<u8>,
    memory: usize,
    files: Files,
    progress: &'a mut dyn FnMut(&Digest, u64),
}

/// Where the bytes of a file go, decided by its first block.
enum Sink {
    Head(Vec<u8>),
    Memory(Vec<u8>),
    Spool(SpoolWriter, Codec, Option<Slot>),
    Compare {
        blob: File,
        row: LayerRow,
        codec: Codec,
        position: u64,
    },
}

struct SinkError(Error);
impl From<TarError> for SinkError {
    fn from(error: TarError) -> Self {
        Self(tar_error(error))
    }
}

impl ArchiveReader<'_> {
    fn read(&mut self, input: impl std::io::BufRead) -> Result<()> {
        let mut stream = TarStream::new(input, FILE_LIMIT);
        while let Some(header) = stream.next_entry().map_err(tar_error)? {
            let refused = || {
                Error::invalid(format!(
                    "invalid path {:?} in the image archive",
                    String::from_utf8_lossy(&header.path)
                ))
            };
            let name = clean(&header.path).ok_or_else(refused)?;
            match header.kind {
                Kind::File if header.sparse.is_none() => self.file(name, &header, &mut stream)?,
                Kind::File => {
                    return Err(Error::invalid(
                        "sparse files are not supported in an image archive",
                    ));
                }
                Kind::Symlink => {
                    let folder = name.rsplit_once_byte(b'/').0;
                    let target = [folder, b"/", &header.link].concat();
                    self.files
                        .links
                        .insert(name, clean(&target).ok_or_else(refused)?);
                }
                Kind::HardLink => {
                    self.files
                        .links
                        .insert(name, clean(&header.link).ok_or_else(refused)?);
                }
                Kind::Directory => {}
                Kind::Character | Kind::Block | Kind::Fifo => return Err(refused()),
            }
        }
        Ok(())
    }

    fn file<R: std::io::BufRead>(
        &mut self,
        name: Vec<u8>,
        header: &Header,
        stream: &mut TarStream<R>,
    ) -> Result<()> {
        let mut sink = Sink::Head(Vec::new());
        stream
            .body(|piece| self.take(&mut sink, piece, header.size).map_err(SinkError))
            .map_err(|e| e.0)?;
        let item = match sink {
            Sink::Head(bytes) | Sink::Memory(bytes) => Item {
                size: bytes.len() as u64,
                digest: sha256(&bytes),
                content: Content::Memory(bytes),
            },
            Sink::Spool(writer, codec, slot) => {
                let (spool, digest, size) = writer.finish();
                if slot.is_some() {
                    (self.progress)(&digest, size);
                }
                Item {
                    content: Content::Spooled { spool, codec, slot },
                    size,
                    digest,
                }
            }
            Sink::Compare { row, position, .. } => {
                (self.progress)(&row.blob, position);
                Item {
                    size: position,
                    digest: row.blob.clone(),
                    content: Content::Known(row),
                }
            }
        };
        self.files.links.remove(&name);
        self.files.names.insert(name, self.files.items.len());
        self.files.items.push(item);
        Ok(())
    }

    fn take(&mut self, sink: &mut Sink, piece: &[u8], size: u64) -> Result<()> {
        match sink {
            Sink::Head(head) => {
                head.extend_from_slice(piece);
                if head.len() >= 512 {
                    let head = std::mem::take(head);
                    *sink = self.choose(head, size)?;
                }
                Ok(())
            }
            Sink::Memory(bytes) => {
                bytes.extend_from_slice(piece);
                Ok(())
            }
            Sink::Spool(writer, ..) => writer.write(piece, self.budget),
            Sink::Compare {
                blob,
                codec,
                position,
                ..
            } => {
                self.scratch.resize(piece.len(), 0);
                let same = blob.read_exact_at(&mut self.scratch, *position).is_ok()
                    && self.scratch == piece;
                if same {
                    *position += piece.len() as u64;
                    return Ok(());
                }
                // Another layer of that size after all: what was equal so far is taken from the blob.
                let (mut writer, slot) = self.spool(*codec)?;
                let mut done = 0;
                while done < *position {
                    let left = usize::try_from(*position - done).unwrap_or(spool::BUFFER);
                    self.scratch.resize(left.min(spool::BUFFER), 0);
                    blob.read_exact_at(&mut self.scratch, done)
                        .context(|| "reading a stored layer".into())?;
                    writer.write(&self.scratch, self.budget)?;
                    done += self.scratch.len() as u64;
                }
                writer.write(piece, self.budget)?;
                *sink = Sink::Spool(writer, *codec, Some(slot));
                Ok(())
            }
        }
    }

    /// A file for a layer, and a worker that unpacks it meanwhile.
    fn spool(&self, codec: Codec) -> Result<(SpoolWriter, Slot)> {
        let writer = SpoolWriter::create(self.workshop.path("blob"))?;
        let slot = Slot::default();
        let job = Job {
            spool: writer.spool().clone(),
            codec,
            folder: self.workshop.path("layer"),
            result: slot.clone(),
        };
        self.jobs
            .send(job)
            .map_err(|_| Error::internal("the unpacking threads have ended"))?;
        Ok((writer, slot))
    }

    fn choose(&mut self, head: Vec<u8>, size: u64) -> Result<Sink> {
        let codec = Codec::detect(&head)?;
        let layer = codec != Codec::Plain || looks_like_tar(&head);
        let fits = usize::try_from(size).is_ok_and(|s| self.memory + s <= MEMORY_LIMIT);
        if !layer && size <= SMALL && fits {
            self.memory += head.len().max(usize::try_from(size).unwrap_or(0));
            return Ok(Sink::Memory(head));
        }
        if layer && let Some(row) = self.known.get(&size) {
            let path = self.store.blob_path(&row.blob);
            let mut sink = Sink::Compare {
                blob: File::open(&path).context(|| format!("opening {}", path.display()))?,
                row: row.clone(),
                codec,
                position: 0,
            };
            self.take(&mut sink, &head, size)?;
            return Ok(sink);
        }
        let (mut writer, slot) = if layer {
            let (writer, slot) = self.spool(codec)?;
            (writer, Some(slot))
        } else {
            (SpoolWriter::create(self.workshop.path("blob"))?, None)
        };
        writer.write(&head, self.budget)?;
        Ok(Sink::Spool(writer, codec, slot))
    }
}

trait SplitByte {
    fn rsplit_once_byte(&self, byte: u8) -> (&[u8], &[u8]);
}
impl SplitByte for Vec<u8> {
    fn rsplit_once_byte(&self, byte: u8) -> (&[u8], &[u8]) {
        match self.iter().rposition(|&b| b == byte) {
            Some(at) => (&self[..at], &self[at + 1..]),
            None => (b"", self),
        }
    }
}

impl Files {
    fn lookup(&self, name: &str) -> Option<usize> {
        let mut name = clean(name.as_bytes())?;
        for _ in 0..LINK_HOPS {
            if let Some(at) = self.names.get(&name) {
                return Some(*at);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn need(&self, name: &str) -> Result<usize> {
        self.lookup(name)
            .ok_or_else(|| Error::invalid(format!("the archive lacks the file {name:?}")))
    }

    /// A document; never a whole layer in memory.
    fn read(&self, at: usize, limit: u64, what: &str) -> Result<Vec<u8>> {
        let item = &self.items[at];
        if item.size > limit {
            return Err(Error::invalid(format!(
                "{what} is larger than {} MiB",
                limit >> 20
            )));
        }
        match &item.content {
            Content::Memory(bytes) => Ok(bytes.clone()),
            Content::Known(_) => Err(Error::invalid(format!("{what} is a layer"))),
            Content::Spooled { spool, .. } => {
                std::fs::read(&spool.path).context(|| format!("reading {what}"))
            }
        }
    }

    fn by_digest(&self, digest: &Digest) -> Result<usize> {
        if let Some(at) = self.items.iter().position(|item| item.digest == *digest) {
            return Ok(at);
        }
        let name = format!("blobs/sha256/{}", digest.hex());
        Err(Error::invalid(match self.lookup(&name) {
            Some(at) => format!(
                "the archive is damaged: {name} has the digest {}",
                self.items[at].digest
            ),
            None => format!("the archive lacks the blob {digest}"),
        }))
    }

    fn images(&self) -> Result<Vec<Found>> {
        let found = if let Some(at) = self.lookup("manifest.json") {
            self.docker_images(at)?
        } else if let Some(at) = self.lookup("index.json") {
            self.oci_images(at)?
        } else if let Some(at) = self.lookup("repositories") {
            self.legacy_images(at)?
        } else {
            return Err(Error::invalid(
                "no image in the archive: it holds neither manifest.json nor index.json nor repositories",
            ));
        };
        Ok(found)
    }

    fn docker_images(&self, at: usize) -> Result<Vec<Found>> {
        let bytes = self.read(at, MANIFEST_LIMIT, "manifest.json")?;
        let list: Vec<DockerManifest> = json(&bytes, "manifest.json")?;
        limit_images(list.len())?;
        // Newer archives are OCI layouts as well; their manifests' digests are worth keeping.
        let manifests = self.manifests_by_config();
        list.into_iter()
            .map(|entry| {
                let raw = self.read(self.need(&entry.config)?, CONFIG_LIMIT, "the image configuration")?;
                let mut image = NewImage::new(raw)?;
                let layers = entry.layers.unwrap_or_default();
                let (expected, actual) = (layers.len(), image.config.rootfs.diff_ids.len());
                if expected != actual {
                    return Err(Error::invalid(format!(
                        "invalid manifest, layers length mismatch: expected {expected}, got {actual}"
                    )));
                }
                let layers = layers.iter().map(|name| self.need(name)).collect::<Result<_>>()?;
                for tag in entry.repo_tags.unwrap_or_default() {
                    image.tags.push(parse_tag(&tag)?);
                }
                image.manifest = manifests.get(&image.id).cloned();
                Ok(Found { image, layers })
            })
            .collect()
    }

    /// Raw manifests of the layout beside `manifest.json`, by the configuration they name. Whatever is odd there is left out.
    fn manifests_by_config(&self) -> HashMap<Digest, Vec<u8>> {
        let mut manifests = HashMap::new();
        let Some(at) = self.lookup("index.json") else {
            return manifests;
        };
        let index = self
            .read(at, MANIFEST_LIMIT, "index.json")
            .and_then(|bytes| json::<Index>(&bytes, "index.json"));
        for descriptor in index
            .map(|i| i.manifests)
            .unwrap_or_default()
            .iter()
            .take(IMAGE_LIMIT)
        {
            let Ok(raw) = self
                .by_digest(&descriptor.digest)
                .and_then(|at| self.read(at, MANIFEST_LIMIT, "a manifest"))
            else {
                continue;
            };
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&raw) {
                manifests.insert(manifest.config.digest, raw);
            }
        }
        manifests
    }

    fn oci_images(&self, at: usize) -> Result<Vec<Found>> {
        let bytes = self.read(at, MANIFEST_LIMIT, "index.json")?;
        let index: Index = json(&bytes, "index.json")?;
        limit_images(index.manifests.len())?;
        let mut found: Vec<Found> = Vec::new();
        for descriptor in select(&index.manifests) {
            let tag = annotated_name(descriptor);
            let Some(mut one) = self.oci_image(descriptor, INDEX_DEPTH)? else {
                continue;
            };
            one.image.tags.extend(tag);
            match found.iter_mut().find(|f| f.image.id == one.image.id) {
                Some(same) => same.image.tags.extend(one.image.tags),
                None => found.push(one),
            }
        }
        if found.is_empty() {
            return Err(Error::invalid(format!(
                "no image for linux/{} in the archive",
                architecture()
            )));
        }
        Ok(found)
    }

    /// The image of a manifest, or of the best one in an index.
    fn oci_image(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Found>> {
        let raw = self.read(
            self.by_digest(&descriptor.digest)?,
            MANIFEST_LIMIT,
            "a manifest",
        )?;
        if is_index(&descriptor.media_type, &raw) {
            if depth == 0 {
                return Err(Error::invalid("indexes are nested too deep"));
            }
            let index: Index = json(&raw, "an index")?;
            limit_images(index.manifests.len())?;
            for inner in select(&index.manifests) {
                if let Some(found) = self.oci_image(inner, depth - 1)? {
                    return Ok(Some(found));
                }
            }
            return Ok(None);
        }
        let manifest: Manifest = json(&raw, "a manifest")?;
        let kind = manifest.config.media_type.as_str();
        if !matches!(
            kind,
            gantry_oci::image::MEDIA_TYPE_CONFIG | "application/vnd.docker.container.image.v1+json"
        ) {
            return Err(Error::invalid(format!(
                "{} is not a container image: its configuration is {kind:?}",
                descriptor.digest
            )));
        }
        let config = self.by_digest(&manifest.config.digest)?;
        let mut image =
            NewImage::new(self.read(config, CONFIG_LIMIT, "the image configuration")?)?;
        let (expected, actual) = (manifest.layers.len(), image.config.rootfs.diff_ids.len());
        if expected != actual || expected > LAYER_LIMIT {
            return Err(Error::invalid(format!(
                "invalid manifest, layers length mismatch: expected {expected}, got {actual}"
            )));
        }
        let layers = manifest
            .layers
            .iter()
            .map(|layer| self.by_digest(&layer.digest))
            .collect::<Result<_>>()?;
        image.manifest = Some(raw);
        Ok(Some(Found { image, layers }))
    }

    /// `docker save` before 1.10: a folder per layer with its own configuration, which names its parent.
    fn legacy_images(&self, at: usize) -> Result<Vec<Found>> {
        let bytes = self.read(at, MANIFEST_LIMIT, "repositories")?;
        let repositories: HashMap<String, HashMap<String, String>> = json(&bytes, "repositories")?;
        let mut found: Vec<Found> = Vec::new();
        for (name, tags) in repositories {
            for (tag, id) in tags {
                limit_images(found.len())?;
                let mut one = self.legacy_image(&id)?;
                one.image.tags.push(parse_tag(&format!("{name}:{tag}"))?);
                match found.iter_mut().find(|f| f.image.id == one.image.id) {
                    Some(same) => same.image.tags.extend(one.image.tags),
                    None => found.push(one),
                }
            }
        }
        found.sort_by(|a, b| a.image.tags.cmp(&b.image.tags));
        Ok(found)
    }

    fn legacy_image(&self, id: &str) -> Result<Found> {
        use serde_json::{Map, Value};
        let mut documents: Vec<Map<String, Value>> = Vec::new();
        let mut layers = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(Error::invalid(format!(
                    "invalid layer ID {id:?} in repositories"
                )));
            }
            if documents.len() >= LAYER_LIMIT {
                return Err(Error::invalid("max depth exceeded"));
            }
            let raw = self.read(
                self.need(&format!("{id}/json"))?,
                CONFIG_LIMIT,
                "a layer's json",
            )?;
            layers.push(self.need(&format!("{id}/layer.tar"))?);
            let document: Map<String, Value> = json(&raw, "a layer's json")?;
            next = document
                .get("parent")
                .and_then(Value::as_str)
                .filter(|parent| !parent.is_empty())
                .map(str::to_owned);
            documents.push(document);
        }
        documents.reverse();
        layers.reverse();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let history: Vec<History> = documents
            .iter()
            .map(|d| History {
                created: text(d.get("created")),
                created_by: d
                    .get("container_config")
                    .and_then(|c| c.get("Cmd"))
                    .and_then(Value::as_array)
                    .map(|words| {
                        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                        words.join(" ")
                    }),
                author: text(d.get("author")),
                comment: text(d.get("comment")).filter(|c| !c.is_empty()),
                empty_layer: false,
            })
            .collect();
        let diff_ids = layers
            .iter()
            .map(|&at| self.legacy_diff_id(at))
            .collect::<Result<Vec<_>>>()?;
        let mut config = documents.pop().unwrap_or_default();
        for key in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
            config.remove(key);
        }
        let value = |v: Result<Value, serde_json::Error>| v.expect("our own records serialise");
        config.insert("history".into(), value(serde_json::to_value(&history)));
        config.insert(
            "rootfs".into(),
            serde_json::json!({ "type": "layers", "diff_ids": diff_ids }),
        );
        let raw = serde_json::to_vec(&config).expect("JSON that was read can be written");
        Ok(Found {
            image: NewImage::new(raw)?,
            layers,
        })
    }

    /// These archives name no diff IDs: they are what the layers' plain tars hash to.
    fn legacy_diff_id(&self, at: usize) -> Result<Digest> {
        let item = &self.items[at];
        match &item.content {
            Content::Spooled { spool, codec, .. } if *codec != Codec::Plain => {
                let mut plain = codec.decode(spool.reader())?;
                let mut hasher = spool::Hasher::new();
                let mut buffer = vec![0; spool::BUFFER];
                loop {
                    match plain.read(&mut buffer).map_err(crate::layer::read_error)? {
                        0 => return Ok(hasher.finish()),
                        read => hasher.update(&buffer[..read]),
                    }
                }
            }
            Content::Known(row) => Ok(row.diff_id.clone()),
            _ => Ok(item.digest.clone()),
        }
    }
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).kind(ErrorKind::InvalidArgument, || format!("invalid {what}"))
}

fn limit_images(count: usize) -> Result<()> {
    if count > IMAGE_LIMIT {
        return Err(Error::invalid(format!(
            "more than {IMAGE_LIMIT} images in one archive"
        )));
    }
    Ok(())
}

fn parse_tag(text: &str) -> Result<Reference> {
    let reference = Reference::parse(text).map_err(|e| Error::invalid(e.to_string()))?;
    if reference.tag.is_none() || reference.digest.is_some() {
        return Err(Error::invalid(format!("invalid tag {text:?}")));
    }
    Ok(reference)
}

fn annotated_name(descriptor: &Descriptor) -> Option<Reference> {
    let named = |key: &str| descriptor.annotations.get(key);
    let name = named("io.containerd.image.name").or_else(|| {
        // By the specification this may be a bare tag; then the archive says nothing about the repository.
        named("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']))
    })?;
    let reference = Reference::parse(name).ok()?.or_latest();
    reference.digest.is_none().then_some(reference)
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

fn runs_here(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == architecture()
}

/// Those for this machine; those that say nothing about a platform stay. Attestations (`unknown/unknown`) go.
fn select(manifests: &[Descriptor]) -> Vec<&Descriptor> {
    manifests
        .iter()
        .filter(|d| d.platform.as_ref().is_none_or(runs_here))
        .filter(|d| !d.annotations.contains_key("vnd.docker.reference.type"))
        .collect()
}

fn is_index(media_type: &str, raw: &[u8]) -> bool {
    match media_type {
        gantry_oci::image::MEDIA_TYPE_INDEX
        | "application/vnd.docker.distribution.manifest.list.v2+json" => true,
        "" => serde_json::from_slice::<serde_json::Value>(raw)
            .is_ok_and(|v| v.get("manifests").is_some()),
        _ => false,
    }
}

/// Turns items into layers of the store, each once.
pub(crate) struct Assembly<'a> {
    store: &'a Inner,
    workshop: &'a Workshop<'a>,
    budget: &'a Budget,
    pub(crate) layers: Vec<NewLayer>,
}

impl<'a> Assembly<'a> {
    pub(crate) fn new(store: &'a Inner, workshop: &'a Workshop<'a>, budget: &'a Budget) -> Self {
        Self {
            store,
            workshop,
            budget,
            layers: Vec::new(),
        }
    }

    /// The keys of the image's layers, base first. What is neither known nor unpacked yet is unpacked now.
    pub(crate) fn chain(
        &mut self,
        image: &NewImage,
        layers: &[usize],
        items: &mut [Item],
    ) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut chain: Option<Digest> = None;
        for (number, (&at, diff_id)) in layers.iter().zip(&image.config.rootfs.diff_ids).enumerate()
        {
            chain = Some(chain_id(chain.as_ref(), diff_id));
            let chain_key = format!("chain-{}", chain.as_ref().expect("just set").hex());
            let key = self
                .layer(&mut items[at], diff_id, &chain_key, &keys)
                .map_err(|e| match e {
                    LayerError::Other(error) => error,
                    LayerError::Digest(actual) => Error::invalid(format!(
                        "invalid diffID for layer {number}: expected {:?}, got {:?}",
                        diff_id.to_string(),
                        actual.to_string()
                    )),
                })?;
            keys.push(key);
        }
        Ok(keys)
    }

    fn known(&self, key: &str) -> bool {
        self.layers.iter().any(|layer| layer.key == key)
            || self
                .store
                .read()
                .layers
                .get(key)
                .is_some_and(|row| self.store.has_blob(row))
    }

    /// Folders of the layers with these keys, topmost first.
    pub(crate) fn folders(&self, keys: &[String]) -> Vec<PathBuf> {
        let state = self.store.read();
        keys.iter()
            .rev()
            .filter_map(|key| {
                self.layers
                    .iter()
                    .find(|layer| layer.key == *key)
                    .map(|layer| layer.folder.clone())
                    .or_else(|| {
                        state
                            .layers
                            .get(key)
                            .map(|row| self.store.layer_folder(row))
                    })
            })
            .collect()
    }

    fn layer(
        &mut self,
        item: &mut Item,
        diff_id: &Digest,
        chain_key: &str,
        below: &[String],
    ) -> Result<String, LayerError> {
        let diff_key = diff_id.to_string();
        for key in [diff_key.as_str(), chain_key] {
            // Only content that was really looked at counts: the plain tar itself, or the very blob that the row was made from.
            if self.known(key) && (item.digest == *diff_id || self.is_blob_of(key, &item.digest)) {
                return Ok(key.to_owned());
            }
        }
        let (spool, codec, slot) = self.spooled(item)?;
        let done = match slot.as_ref().and_then(take_slot) {
            Some(done) => done?,
            None => {
                let folder = self.workshop.path("layer");
                unpack(&spool, codec, folder, self.budget)?
            }
        };
        let actual = done.diff_id.clone().unwrap_or_else(|| item.digest.clone());
        if actual != *diff_id {
            return Err(LayerError::Digest(actual));
        }
        Ok(self.add(
            done,
            actual,
            chain_key,
            below,
            &spool,
            item.digest.clone(),
            item.size,
        )?)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one layer, put together once"
    )]
    pub(crate) fn add(
        &mut self,
        mut done: Done,
        diff_id: Digest,
        chain_key: &str,
        below: &[String],
        spool: &Arc<Spool>,
        blob: Digest,
        blob_size: u64,
    ) -> Result<String> {
        let key = if done.unpacked.is_dependent() {
            chain_key.to_owned()
        } else {
            diff_id.to_string()
        };
        if done.unpacked.is_dependent() {
            let root = crate::layer::open_folder(&done.folder)?;
            done.unpacked
                .finish_over(&root, &self.folders(below), self.budget)?;
        }
        if !self.known(&key) {
            self.layers.push(NewLayer {
                key: key.clone(),
                diff_id,
                folder: done.folder,
                blob_path: spool.path.clone(),
                blob,
                blob_size,
                unpacked: done.unpacked,
            });
        }
        Ok(key)
    }

    fn is_blob_of(&self, key: &str, digest: &Digest) -> bool {
        self.layers
            .iter()
            .any(|l| l.key == key && l.blob == *digest)
            || self
                .store
                .read()
                .layers
                .get(key)
                .is_some_and(|row| row.blob == *digest)
    }

    /// The manifest that came with the image is true of what the store will hold.
    pub(crate) fn holds_blobs(&self, keys: &[String], layers: &[usize], items: &[Item]) -> bool {
        keys.iter()
            .zip(layers)
            .all(|(key, &at)| self.is_blob_of(key, &items[at].digest))
    }

    fn spooled(&self, item: &mut Item) -> Result<(Arc<Spool>, Codec, Option<Slot>)> {
        if let Content::Memory(bytes) = &item.content {
            let codec = Codec::detect(bytes)?;
            let mut writer = SpoolWriter::create(self.workshop.path("blob"))?;
            writer.write(bytes, self.budget)?;
            let (spool, ..) = writer.finish();
            item.content = Content::Spooled {
                spool,
                codec,
                slot: None,
            };
        }
        match &item.content {
            Content::Known(row) => {
                // The same tar over other layers, and its content depends on them.
                let path = self.store.blob_path(&row.blob);
                let head = Peeked::new(
                    File::open(&path).context(|| format!("opening {}", path.display()))?,
                    16,
                )?;
                let codec = Codec::detect(head.head())?;
                Ok((Spool::complete(path, item.size)?, codec, None))
            }
            Content::Spooled { spool, codec, slot } => Ok((spool.clone(), *codec, slot.clone())),
            Content::Memory(_) => Err(Error::internal("a layer was not written to disk")),
        }
    }
}

enum LayerError {
    Digest(Digest),
    Other(Error),
}
impl From<Error> for LayerError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// image-spec: "Layer ChainID".
pub(crate) fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
    }
}
