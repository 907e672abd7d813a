//! `docker push`: layers that the registry lacks go up, then the manifest.
//!
//! ```text
//! compressed blob ─▶ HEAD ─▶ mount from another repository │ upload as it is
//! plain blob      ─▶ gzip in pieces, on all cores ─▶ upload while it is made
//! ```
//! A layer that came compressed keeps its digest; a plain one becomes gzip of several members, each a piece of the tar, so
//! that one layer is compressed by several threads. Same tar, same bytes. What a tar became is remembered, so that a second
//! push asks first. Stored bytes are hashed on the way out: a damaged blob never leaves. An upload that breaks off begins again.

use crate::image_tags;
use crate::remote::{Access, Pieces, Remote, expect_success};
use crate::spool::{Codec, Hasher, sha256};
use crate::store::{Inner, LayerRow};
use crate::{Credentials, Image, PushProgress, Pushed, no_such_image};
use bytes::Bytes;
use flate2::write::GzEncoder;
use gantry_base::db::Batch;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::{Digest, Reference};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::runtime::Handle;

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// One gzip member's plain bytes: large enough that a fresh dictionary costs less than a hundredth.
const MEMBER: usize = 1 << 20;
/// A level that two cores can pay for while the user waits; see the manual for sizes.
const LEVEL: u32 = 2;
const PARALLEL: usize = 2;
const PIECES_AHEAD: usize = 8;
const STEP: u64 = 512 << 10;
/// Attempts at one upload, with a pause that doubles between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(250);

/// What a plain layer became: row `compressed/<diff ID>`. It goes with the layer.
#[derive(Clone, Serialize, Deserialize)]
struct Compressed {
    digest: Digest,
    size: u64,
}

/// A layer in the registry.
struct Sent {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

struct Push<'a> {
    store: &'a Inner,
    runtime: &'a Handle,
    remote: Remote,
    /// Other repositories of the image on the same registry.
    sources: Vec<String>,
    /// Blobs that the image's manifest finds elsewhere: they stay there.
    foreign: HashSet<Digest>,
    progress: &'a (dyn Fn(PushProgress<'_>) + Sync),
    gone: &'a (dyn Fn() -> bool + Sync),
}

pub(crate) fn push(
    store: &Inner,
    runtime: &Handle,
    reference: &Reference,
    credentials: Option<Credentials>,
    progress: &(dyn Fn(PushProgress<'_>) + Sync),
    gone: &(dyn Fn() -> bool + Sync),
) -> Result<Pushed> {
    let _activity = store.activity();
    let tag = reference
        .tag
        .clone()
        .ok_or_else(|| Error::invalid("cannot push a digest reference"))?;
    let image = store
        .find(&reference.to_string())?
        .ok_or_else(|| no_such_image(&reference.to_string()))?;
    let rows = layer_rows(store, &image)?;
    for row in &rows {
        progress(PushProgress::Preparing(&row.diff_id));
    }
    let connecting =
        Remote::connect_origin(&store.registries, reference, Access::Push, credentials);
    let mut remote = runtime.block_on(connecting)?;
    let sources = image_tags(&image, reference);
    remote.mount_from(&sources);
    let push = Push {
        store,
        runtime,
        remote,
        sources,
        foreign: foreign(store, &image, &rows)?,
        progress,
        gone,
    };
    let sent = push.layers(&rows)?;
    push.small(&image.id, &image.raw_config)?;
    let (media_type, manifest) = manifest(store, &image, &sent)?;
    let digest = sha256(&manifest);
    let size = manifest.len() as u64;
    runtime.block_on(push.remote.put_manifest(&tag, &media_type, manifest.into()))?;
    let by_digest = Reference {
        tag: None,
        digest: Some(digest.clone()),
        ..reference.clone()
    };
    // The image may have been removed meanwhile; the push is none the worse for it.
    let _ = store.set_tag(&image.id, &by_digest);
    Ok(Pushed { tag, digest, size })
}

fn layer_rows(store: &Inner, image: &Image) -> Result<Vec<LayerRow>> {
    let state = store.read();
    let known = state
        .images
        .get(&image.id)
        .ok_or_else(|| no_such_image(&image.id.to_string()))?;
    known
        .row
        .layers
        .iter()
        .map(|key| {
            state
                .layers
                .get(key)
                .cloned()
                .ok_or_else(|| Error::internal(format!("layer {key} of {} is missing", image.id)))
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    layers: Vec<KnownLayer>,
}

#[derive(Deserialize)]
struct KnownLayer {
    digest: Digest,
    #[serde(default)]
    urls: Vec<String>,
}

/// The manifest that the image came with, when there is one and the disk has kept it.
fn known_manifest(store: &Inner, image: &Image) -> Result<Option<(Known, Vec<u8>)>> {
    let Some(digest) = &image.manifest else {
        return Ok(None);
    };
    let path = store.blob_path(digest);
    let raw = std::fs::read(&path).unwrap_or_default();
    if sha256(&raw) != *digest {
        tracing::warn!(path = %path.display(), "a stored manifest is damaged; making a new one");
        return Ok(None);
    }
    let known = serde_json::from_slice(&raw).context(|| "reading the image's manifest".into())?;
    Ok(Some((known, raw)))
}

/// Foreign layers stay where they are as long as the manifest that says where goes out unchanged.
fn foreign(store: &Inner, image: &Image, rows: &[LayerRow]) -> Result<HashSet<Digest>> {
    let Some((known, _)) = known_manifest(store, image)? else {
        return Ok(HashSet::new());
    };
    let same = known
        .layers
        .iter()
        .map(|l| &l.digest)
        .eq(rows.iter().map(|r| &r.blob));
    let foreign = known
        .layers
        .into_iter()
        .filter(|layer| same && !layer.urls.is_empty());
    Ok(foreign.map(|layer| layer.digest).collect())
}

/// The manifest that the image came with when it is true of what was sent; otherwise one of Docker's schema 2.
fn manifest(store: &Inner, image: &Image, sent: &[Sent]) -> Result<(String, Vec<u8>)> {
    if let Some((known, raw)) = known_manifest(store, image)? {
        let same = known
            .layers
            .iter()
            .map(|l| &l.digest)
            .eq(sent.iter().map(|s| &s.digest));
        if same {
            let kind = if known.media_type.is_empty() {
                gantry_oci::image::MEDIA_TYPE_MANIFEST.into()
            } else {
                known.media_type
            };
            return Ok((kind, raw));
        }
    }
    // Docker's format has no zstd; OCI's has.
    let oci = sent.iter().any(|layer| layer.media_type == LAYER_ZSTD);
    let kind = if oci {
        gantry_oci::image::MEDIA_TYPE_MANIFEST
    } else {
        super::pull::MANIFESTS[1]
    };
    let layer_kind = |sent: &Sent| match sent.media_type {
        LAYER_GZIP if oci => "application/vnd.oci.image.layer.v1.tar+gzip",
        other => other,
    };
    let document = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {
            "mediaType": if oci { gantry_oci::image::MEDIA_TYPE_CONFIG } else { CONFIG },
            "size": image.raw_config.len(),
            "digest": image.id,
        },
        "layers": sent.iter().map(|s| json!({"mediaType": layer_kind(s), "size": s.size, "digest": s.digest})).collect::<Vec<_>>(),
    });
    Ok((
        kind.into(),
        serde_json::to_vec_pretty(&document).expect("our own documents serialise"),
    ))
}

impl Push<'_> {
    fn layers(&self, rows: &[LayerRow]) -> Result<Vec<Sent>> {
        // The largest first: the last one alone decides when all are there.
        let mut order: Vec<usize> = (0..rows.len())
            .filter(|&at| rows.iter().position(|r| r.blob == rows[at].blob) == Some(at))
            .collect();
        order.sort_by_key(|&at| rows[at].blob_size);
        let queue = Mutex::new(order);
        let sent: Mutex<Vec<Option<Arc<Sent>>>> =
            Mutex::new((0..rows.len()).map(|_| None).collect());
        let failed = Mutex::new(None::<Error>);
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL {
                scope.spawn(|| {
                    while failed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .is_none()
                    {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some(at) = next else { return };
                        match self.layer(&rows[at]) {
                            Ok(layer) => {
                                sent.lock().unwrap_or_else(PoisonError::into_inner)[at] =
                                    Some(Arc::new(layer))
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
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
        rows.iter()
            .map(|row| {
                let at = rows
                    .iter()
                    .position(|r| r.blob == row.blob)
                    .unwrap_or_default();
                let layer = sent[at]
                    .as_ref()
                    .ok_or_else(|| Error::internal("a layer was not sent"))?;
                Ok(Sent {
                    media_type: layer.media_type,
                    digest: layer.digest.clone(),
                    size: layer.size,
                })
            })
            .collect()
    }

    fn layer(&self, row: &LayerRow) -> Result<Sent> {
        let path = self.store.blob_path(&row.blob);
        let file = File::open(&path).context(|| format!("opening {}", path.display()))?;
        let mut head = Vec::new();
        file.take(16)
            .read_to_end(&mut head)
            .context(|| format!("reading {}", path.display()))?;
        let codec = Codec::detect(&head)?;
        let mut known = match codec {
            Codec::Plain => self
                .store
                .db
                .get::<Compressed>("compressed", &row.blob.to_string())?,
            Codec::Gzip | Codec::Zstd => Some(Compressed {
                digest: row.blob.clone(),
                size: row.blob_size,
            }),
        };
        let media_type = if codec == Codec::Zstd {
            LAYER_ZSTD
        } else {
            LAYER_GZIP
        };
        let sent = |known: &Compressed| Sent {
            media_type,
            digest: known.digest.clone(),
            size: known.size,
        };
        if let Some(known) = known.as_ref().filter(|k| self.foreign.contains(&k.digest)) {
            (self.progress)(PushProgress::Foreign(&row.diff_id));
            return Ok(sent(known));
        }
        let mut attempt = 1;
        loop {
            let mut location = None;
            if let Some(known) = &known {
                if self.runtime.block_on(self.remote.has_blob(&known.digest))? {
                    if attempt == 1 {
                        (self.progress)(PushProgress::Exists(&row.diff_id));
                    }
                    return Ok(sent(known));
                }
                for source in self.sources.iter().filter(|_| attempt == 1) {
                    let mount = Some((&known.digest, source.as_str()));
                    match self.runtime.block_on(self.remote.begin_upload(mount)) {
                        Ok(None) => {
                            (self.progress)(PushProgress::Mounted(&row.diff_id, source));
                            return Ok(sent(known));
                        }
                        Ok(begun) => location = begun,
                        // Not ours to read there; it goes up like any other.
                        Err(error) => {
                            tracing::debug!(source, error = error.chain(), "a mount was refused")
                        }
                    }
                }
            }
            match self.upload(row, codec, &path, location) {
                Ok(made) => {
                    if codec == Codec::Plain {
                        let batch = Batch::new().put("compressed", &row.blob.to_string(), &made);
                        self.store.db.commit_blocking(batch)?;
                    }
                    (self.progress)(PushProgress::Pushed(&row.diff_id));
                    return Ok(sent(&made));
                }
                Err((made, error)) => {
                    // A token may have expired in the middle; the next upload begins with a fresh one.
                    let passing = matches!(
                        error.kind(),
                        ErrorKind::Unavailable | ErrorKind::Unauthorized
                    );
                    if !passing || attempt == ATTEMPTS || (self.gone)() {
                        return Err(error);
                    }
                    tracing::debug!(
                        error = error.chain(),
                        "an upload broke off; beginning again"
                    );
                    std::thread::sleep(PAUSE * (1 << attempt));
                    known = known.or(made);
                    attempt += 1;
                }
            }
        }
    }

    /// One attempt. A failure may leave what the layer became: the registry may have it after all.
    fn upload(
        &self,
        row: &LayerRow,
        codec: Codec,
        path: &Path,
        location: Option<String>,
    ) -> Result<Compressed, (Option<Compressed>, Error)> {
        let nothing = |error| (None, error);
        let file = File::open(path)
            .context(|| format!("opening {}", path.display()))
            .map_err(nothing)?;
        let location = match location {
            Some(location) => location,
            None => self
                .runtime
                .block_on(self.remote.begin_upload(None))
                .and_then(|begun| {
                    begun.ok_or_else(|| {
                        Error::internal("the registry took a blob that it was not given")
                    })
                })
                .map_err(nothing)?,
        };
        let (pieces, body) = tokio::sync::mpsc::channel(PIECES_AHEAD);
        let pieces = Outgoing {
            pieces,
            gone: self.gone,
        };
        let upload = async {
            let answer = self
                .remote
                .stream(Method::PATCH, &location, Pieces::new(body))
                .await?;
            let answer = expect_success(answer).await?;
            self.remote.location(&answer, &location)
        };
        let (made, uploaded) = std::thread::scope(|scope| {
            let maker = scope.spawn(|| match codec {
                Codec::Plain => compress(file, row, pieces, self.progress),
                Codec::Gzip | Codec::Zstd => copy(file, row, pieces, self.progress),
            });
            let uploaded = self.runtime.block_on(upload);
            (
                maker
                    .join()
                    .unwrap_or_else(|_| Err(Error::internal("the compressing thread panicked"))),
                uploaded,
            )
        });
        // A registry that refuses ends the maker too, and knows better why.
        let (location, made) = match (made, uploaded) {
            (Err(error), _) if error.message() != STOPPED => return Err((None, error)),
            (Ok(made), Err(error)) => return Err((Some(made), error)),
            (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err((None, error)),
            (Ok(made), Ok(location)) => (location, made),
        };
        match self
            .runtime
            .block_on(self.remote.finish_upload(&location, &made.digest))
        {
            Ok(()) => Ok(made),
            Err(error) => {
                // An answer that was lost is asked for again, and then the upload is not there any more.
                let error = match error.kind() {
                    ErrorKind::NotFound => Error::new(ErrorKind::Unavailable, error.message()),
                    _ => error,
                };
                Err((Some(made), error))
            }
        }
    }

    fn small(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        self.runtime.block_on(async {
            if self.remote.has_blob(digest).await? {
                return Ok(());
            }
            let location =
                self.remote.begin_upload(None).await?.ok_or_else(|| {
                    Error::internal("the registry took a blob that it was not given")
                })?;
            let (pieces, body) = tokio::sync::mpsc::channel(1);
            let _ = pieces.send(Ok(Bytes::copy_from_slice(bytes))).await;
            drop(pieces);
            let answer = expect_success(
                self.remote
                    .stream(Method::PATCH, &location, Pieces::new(body))
                    .await?,
            )
            .await?;
            let location = self.remote.location(&answer, &location)?;
            self.remote.finish_upload(&location, digest).await
        })
    }
}

const STOPPED: &str = "the upload stopped";

/// Where the pieces of an upload go.
struct Outgoing<'a> {
    pieces: tokio::sync::mpsc::Sender<std::io::Result<Bytes>>,
    gone: &'a (dyn Fn() -> bool + Sync),
}

fn send(outgoing: &Outgoing<'_>, piece: Bytes) -> Result<()> {
    if (outgoing.gone)() {
        let broken = Err(std::io::ErrorKind::Interrupted.into());
        let _ = outgoing.pieces.blocking_send(broken);
        return Err(Error::internal("context canceled"));
    }
    outgoing
        .pieces
        .blocking_send(Ok(piece))
        .map_err(|_| Error::internal(STOPPED))
}

/// The connection breaks, so that the registry does not take the half for the whole.
fn damaged(outgoing: &Outgoing<'_>, row: &LayerRow) -> Error {
    let _ = outgoing
        .pieces
        .blocking_send(Err(std::io::ErrorKind::InvalidData.into()));
    Error::internal(format!(
        "the stored layer {} is damaged: remove the image and load it again",
        row.blob
    ))
}

fn copy(
    mut file: File,
    row: &LayerRow,
    pieces: Outgoing<'_>,
    progress: &(dyn Fn(PushProgress<'_>) + Sync),
) -> Result<Compressed> {
    let mut hasher = Hasher::new();
    let mut done = 0;
    loop {
        let piece = read_piece(&mut file, MEMBER)?;
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        done += piece.len() as u64;
        progress(PushProgress::Pushing(&row.diff_id, done, row.blob_size));
        // The last piece goes only when all are known to be right.
        if done >= row.blob_size {
            if done != row.blob_size || hasher.finish() != row.blob {
                return Err(damaged(&pieces, row));
            }
            send(&pieces, piece.into())?;
            return Ok(Compressed {
                digest: row.blob.clone(),
                size: done,
            });
        }
        send(&pieces, piece.into())?;
    }
    Err(damaged(&pieces, row))
}

fn read_piece(file: &mut File, size: usize) -> Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(size);
    file.take(size as u64)
        .read_to_end(&mut piece)
        .context(|| "reading a stored layer".into())?;
    Ok(piece)
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(
        Vec::with_capacity(plain.len() / 2),
        flate2::Compression::new(LEVEL),
    );
    encoder
        .write_all(plain)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

type Member = (Vec<u8>, mpsc::SyncSender<Vec<u8>>);

fn compress(
    mut file: File,
    row: &LayerRow,
    pieces: Outgoing<'_>,
    progress: &(dyn Fn(PushProgress<'_>) + Sync),
) -> Result<Compressed> {
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(1, 8);
    let (work, queue) = mpsc::sync_channel::<Member>(threads);
    let queue = Arc::new(Mutex::new(queue));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let queue = queue.clone();
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((plain, result)) = next else { return };
                    let _ = result.send(gzip(&plain));
                }
            });
        }
        let (mut plain_hash, mut hash) = (Hasher::new(), Hasher::new());
        let (mut read, mut size) = (0u64, 0u64);
        let mut told = 0;
        let mut waiting: VecDeque<(u64, mpsc::Receiver<Vec<u8>>)> = VecDeque::new();
        let gone = || Error::internal("a compressing thread panicked");
        let mut next = Some(());
        let outcome = loop {
            while next.is_some() && waiting.len() < 2 * threads {
                let plain = match read_piece(&mut file, MEMBER) {
                    Ok(plain) => plain,
                    Err(error) => return Err(error),
                };
                if plain.is_empty() {
                    next = None;
                    break;
                }
                plain_hash.update(&plain);
                read += plain.len() as u64;
                let (result, member) = mpsc::sync_channel(1);
                work.send((plain, result)).map_err(|_| gone())?;
                waiting.push_back((read, member));
            }
            let Some((position, member)) = waiting.pop_front() else {
                break Ok(());
            };
            let member = member.recv().map_err(|_| gone())?;
            hash.update(&member);
            size += member.len() as u64;
            if let Err(error) = send(&pieces, member.into()) {
                break Err(error);
            }
            if position - told >= STEP {
                told = position;
                progress(PushProgress::Pushing(&row.diff_id, position, row.blob_size));
            }
        };
        drop(work);
        outcome?;
        if plain_hash.finish() != row.blob {
            return Err(damaged(&pieces, row));
        }
        Ok(Compressed {
            digest: hash.finish(),
            size,
        })
    })
}
