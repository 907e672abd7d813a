//! Blobs, manifests, tags and uploads as files that any number of servers share.
//!
//! ```text
//! S/blobs/sha256/ab/<hex>                  content of blobs and manifests
//! S/blobs/sha256/ab/<hex>.sums             checksums of its pieces, for large ones (can be made again)
//! S/repos/<name>/_blobs/sha256-<hex>       the repository holds the blob; empty; its time is the last claim
//! S/repos/<name>/_manifests/sha256-<hex>   the repository holds the manifest; contains its media type
//! S/repos/<name>/_tags/<tag>               a manifest's digest
//! S/repos/<name>/_referrers/<subject>/<digest>   descriptor of a manifest that names the subject
//! S/repos/<name>/_fresh/<tag>              a mirror compared the tag with its upstream at this file's time
//! S/uploads/<id>-<repository>              what has arrived of an upload; its time is the last byte
//! S/damaged/                               what was found to be other than its name says; never served
//! S/tmp/                                   files before they are moved into place
//! S/lock                                   shared: a reference is being made; exclusive: the collector removes
//! ```
//! A component of a repository's name never begins with `_`, so the folders do not mix.
//!
//! Everything appears by a rename, and the file that makes a thing visible comes before the content that it names or is written
//! after it was synced; so a server may be killed at any line, and others never see a half. Nothing is only in memory: what is
//! cached here is checked against the files on each use.

use crate::error::{Error, Result};
use crate::name::{Algorithm, Digest, Hasher, Repository};
use crate::sums::{PIECE, Summing, Sums, read_full};
use bytes::Bytes;
use rustix::fs::{FlockOperation, Timespec, Timestamps, flock, futimens};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// distribution-spec: "Pushing Manifests" asks for at least 4 MiB.
pub(crate) const MANIFEST_LIMIT: usize = 4 << 20;
/// Blobs up to this size are read and proved in one go.
pub(crate) const SMALL: u64 = 1 << 20;
/// Manifests that are kept in memory.
const CACHE_BYTES: usize = 8 << 20;
/// A claim (somebody was told that the blob is here) is renewed when it is older than this.
pub(crate) const CLAIM: Duration = Duration::from_secs(10);
/// The file of a link or tag.
const LINK_LIMIT: u64 = 4096;
/// A descriptor among the referrers; annotations are its bulk.
const DESCRIPTOR_LIMIT: u64 = MANIFEST_LIMIT as u64 + 4096;

/// The files of one registry.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    serial: AtomicU64,
    nonce: String,
    cache: Mutex<Cache>,
}

/// A manifest as it was pushed.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: Arc<str>,
    pub(crate) bytes: Bytes,
}

/// What the file of a manifest's link holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestLink {
    media_type: String,
}

/// A blob, ready to be read in proved pieces.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Small(Bytes),
    Large { file: Arc<File>, sums: Arc<Sums> },
}

impl Blob {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Large { sums, .. } => sums.size,
        }
    }
}

impl Store {
    /// Opens the folder, making it if need be.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        for folder in [
            "blobs/sha256",
            "blobs/sha512",
            "repos",
            "uploads",
            "damaged",
            "tmp",
        ] {
            make_folder(&root.join(folder))?;
        }
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join("lock"))?;
        Ok(Self {
            root: root.to_owned(),
            serial: AtomicU64::new(0),
            nonce: random_hex()?,
            cache: Mutex::default(),
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn repository(&self, name: &Repository) -> PathBuf {
        self.root.join("repos").join(name.as_str())
    }
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(format!(
            "blobs/{}/{}/{hex}",
            digest.algorithm.name(),
            &hex[..2]
        ))
    }
    pub(crate) fn sums_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.blob_path(digest).into_os_string();
        path.push(".sums");
        path.into()
    }
    fn link(&self, name: &Repository, kind: &str, digest: &Digest) -> PathBuf {
        self.root
            .join(format!("repos/{name}/{kind}/{}", file_name(digest)))
    }
    pub(crate) fn blob_link(&self, name: &Repository, digest: &Digest) -> PathBuf {
        self.link(name, "_blobs", digest)
    }
    pub(crate) fn manifest_link(&self, name: &Repository, digest: &Digest) -> PathBuf {
        self.link(name, "_manifests", digest)
    }
    fn tag_path(&self, name: &Repository, tag: &str) -> PathBuf {
        self.root.join(format!("repos/{name}/_tags/{tag}"))
    }
    fn referrers_path(&self, name: &Repository, subject: &Digest) -> PathBuf {
        self.link(name, "_referrers", subject)
    }
    /// A name below `tmp` that no other server and no other request has.
    pub(crate) fn temporary(&self) -> PathBuf {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!("tmp/{}-{serial}", self.nonce))
    }

    /// Held while a reference is made, so that the collector does not remove what is being named.
    pub(crate) fn shared(&self) -> io::Result<File> {
        let file = File::open(self.root.join("lock"))?;
        flock(&file, FlockOperation::LockShared)?;
        Ok(file)
    }
    /// Held while something is removed.
    pub(crate) fn exclusive(&self) -> io::Result<File> {
        let file = File::open(self.root.join("lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    // Blobs

    /// The size of a blob that the repository holds; the claim is renewed, so that it stays for who was told.
    pub(crate) fn blob_size(&self, name: &Repository, digest: &Digest) -> Result<u64> {
        let size = self.look_at_blob(name, digest)?;
        self.renew(name, digest)?;
        Ok(size)
    }

    fn look_at_blob(&self, name: &Repository, digest: &Digest) -> Result<u64> {
        let known =
            self.blob_link(name, digest).exists() || self.manifest_link(name, digest).exists();
        if !known {
            return Err(Error::blob_unknown());
        }
        match std::fs::metadata(self.blob_path(digest)) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::blob_unknown()),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes an old claim young again. Under the lock: the collector looks at the time and removes under its own.
    fn renew(&self, name: &Repository, digest: &Digest) -> Result<()> {
        let link = self.blob_link(name, digest);
        let Ok(meta) = std::fs::metadata(&link) else {
            return Ok(());
        };
        if age(&meta) < CLAIM {
            return Ok(());
        }
        let _lock = self.shared()?;
        match touch(&link) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::blob_unknown()),
            other => Ok(other?),
        }
    }

    /// The blob, each of whose bytes will be proved before it is given away.
    pub(crate) fn open_blob(&self, name: &Repository, digest: &Digest) -> Result<Blob> {
        self.look_at_blob(name, digest)?;
        let file = match File::open(self.blob_path(digest)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::blob_unknown()),
            Err(e) => return Err(e.into()),
        };
        let size = file.metadata()?.len();
        if size <= SMALL {
            let bytes = read_at_most(&file, SMALL)?;
            if Digest::of(digest.algorithm, &bytes) != *digest {
                self.set_aside(digest, &file)?;
                return Err(Error::blob_unknown());
            }
            return Ok(Blob::Small(bytes.into()));
        }
        let sums = match self.read_sums(digest, size)? {
            Some(sums) => sums,
            None => self.prove(digest, &file)?,
        };
        Ok(Blob::Large {
            file: Arc::new(file),
            sums: Arc::new(sums),
        })
    }

    fn read_sums(&self, digest: &Digest, size: u64) -> io::Result<Option<Sums>> {
        match File::open(self.sums_path(digest)) {
            Ok(file) => {
                let bytes = read_at_most(&file, Sums::file_length(size))?;
                Ok(Sums::from_bytes(&bytes, size))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads the whole blob. What is not what its name says is set aside; otherwise its sums are written.
    pub(crate) fn prove(&self, digest: &Digest, file: &File) -> Result<Sums> {
        let (found, sums) = read_through(file, digest.algorithm)?;
        if found != *digest {
            self.set_aside(digest, file)?;
            return Err(Error::blob_unknown());
        }
        if sums.size > SMALL {
            let temporary = self.temporary();
            std::fs::write(&temporary, sums.to_bytes())?;
            std::fs::rename(&temporary, self.sums_path(digest))?;
        }
        Ok(sums)
    }

    /// Takes a damaged file out of sight, unless a whole one has come in its place.
    fn set_aside(&self, digest: &Digest, damaged: &File) -> io::Result<()> {
        let _lock = self.exclusive()?;
        let path = self.blob_path(digest);
        let same = |meta: std::fs::Metadata| -> io::Result<bool> {
            let ours = damaged.metadata()?;
            Ok((meta.dev(), meta.ino()) == (ours.dev(), ours.ino()))
        };
        if std::fs::metadata(&path).and_then(same).unwrap_or(false) {
            tracing::error!(%digest, "the bytes on disk are not what their name says; set aside, not served");
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let aside = format!("damaged/{}.{}-{serial}", file_name(digest), self.nonce);
            std::fs::rename(&path, self.root.join(aside))?;
            let _ = std::fs::remove_file(self.sums_path(digest));
        }
        Ok(())
    }

    /// A piece that was read did not fit its sum: either the blob or its sums are damaged. The whole decides.
    pub(crate) fn doubt(&self, digest: &Digest, file: &File) -> Option<Sums> {
        match self.prove(digest, file) {
            Ok(sums) => Some(sums),
            Err(e) => {
                if let Some(cause) = e.cause {
                    tracing::error!(%digest, "proving a doubtful blob: {cause}");
                }
                None
            }
        }
    }

    /// A piece of a large blob, proved. Blocks.
    pub(crate) fn piece(
        &self,
        digest: &Digest,
        file: &File,
        sums: &Sums,
        index: u64,
    ) -> io::Result<Bytes> {
        let at = index * PIECE as u64;
        let length = usize::try_from((sums.size - at).min(PIECE as u64)).expect("at most a piece");
        let mut buffer = vec![0; length];
        let filled = read_full(At { file, at }, &mut buffer)?;
        buffer.truncate(filled);
        let proved = sums.proves(index, &buffer)
            || self
                .doubt(digest, file)
                .is_some_and(|sums| sums.proves(index, &buffer));
        if !proved {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a damaged blob is not served",
            ));
        }
        Ok(buffer.into())
    }

    /// Puts a finished, verified file in place and links it. `file` lies in `S` on the same file system and is consumed.
    /// Whatever was there before is replaced, which heals a damaged one.
    pub(crate) fn commit_blob(
        &self,
        name: &Repository,
        digest: &Digest,
        path: &Path,
        file: &File,
        sums: Option<&Sums>,
    ) -> Result<()> {
        let target = self.blob_path(digest);
        let link = self.blob_link(name, digest);
        let size = file.metadata()?.len();
        if size > SMALL {
            file.sync_data()?;
            if let Some(sums) = sums {
                let temporary = self.temporary();
                std::fs::write(&temporary, sums.to_bytes())?;
                in_folder(&target, || {
                    std::fs::rename(&temporary, self.sums_path(digest))
                })?;
            }
        }
        let _lock = self.shared()?;
        // Before the content: a retry that comes after a kill between the two finds its upload still there.
        claim(&link)?;
        in_folder(&target, || std::fs::rename(path, &target))?;
        if size <= SMALL {
            // After the rename, so that one commit of the file system's journal carries file, name and link. Nobody was told of
            // it yet, and a reader proves a small blob whole.
            file.sync_all()?;
        }
        sync_parent(&target)?;
        sync_parent(&link)?;
        Ok(())
    }

    /// Links a blob of another repository. distribution-spec: "Mounting a blob from another repository".
    pub(crate) fn mount(
        &self,
        from: &Repository,
        name: &Repository,
        digest: &Digest,
    ) -> Result<()> {
        let _lock = self.shared()?;
        self.look_at_blob(from, digest)?;
        let link = self.blob_link(name, digest);
        claim(&link)?;
        touch(&self.blob_path(digest))?;
        sync_parent(&link)?;
        Ok(())
    }

    /// Takes a blob out of the repository; its content is the collector's business.
    pub(crate) fn delete_blob(&self, name: &Repository, digest: &Digest) -> Result<()> {
        self.look_at_blob(name, digest)?;
        let link = self.blob_link(name, digest);
        match std::fs::remove_file(&link) {
            Ok(()) => Ok(sync_parent(&link)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::blob_unknown()),
            Err(e) => Err(e.into()),
        }
    }

    // Manifests

    /// The digest that a tag names now.
    pub(crate) fn tag(&self, name: &Repository, tag: &str) -> Result<Digest> {
        match read_small(&self.tag_path(name, tag))? {
            Some(text) => text.trim_end().parse().map_err(|_| {
                tracing::error!(repository = %name, tag, "the tag's file holds no digest");
                Error::manifest_unknown()
            }),
            None => Err(Error::manifest_unknown()),
        }
    }

    pub(crate) fn has_manifest(&self, name: &Repository, digest: &Digest) -> bool {
        self.manifest_link(name, digest).exists()
    }

    /// A manifest that the repository holds, proved.
    pub(crate) fn manifest(&self, name: &Repository, digest: &Digest) -> Result<Manifest> {
        let link = self.manifest_link(name, digest);
        if let Some(manifest) = self.cache().get(name, digest) {
            // Another server may have deleted it meanwhile.
            return if link.exists() {
                Ok(manifest)
            } else {
                Err(Error::manifest_unknown())
            };
        }
        let Some(text) = read_small(&link)? else {
            return Err(Error::manifest_unknown());
        };
        let about: ManifestLink = serde_json::from_str(&text).map_err(|e| {
            tracing::error!(repository = %name, %digest, "the manifest's link is damaged: {e}");
            Error::manifest_unknown()
        })?;
        let file = match File::open(self.blob_path(digest)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::manifest_unknown()),
            Err(e) => return Err(e.into()),
        };
        let bytes = read_at_most(&file, MANIFEST_LIMIT as u64)?;
        if Digest::of(digest.algorithm, &bytes) != *digest {
            self.set_aside(digest, &file)?;
            return Err(Error::manifest_unknown());
        }
        let manifest = Manifest {
            digest: digest.clone(),
            media_type: about.media_type.into(),
            bytes: bytes.into(),
        };
        self.cache().put(name, &manifest);
        Ok(manifest)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a manifest whose references the caller has checked under the same lock (see [`Store::shared`]).
    pub(crate) fn put_manifest(
        &self,
        _lock: &File,
        name: &Repository,
        manifest: &Manifest,
        refers: Option<(&Digest, &[u8])>,
    ) -> Result<()> {
        let digest = &manifest.digest;
        let about = ManifestLink {
            media_type: manifest.media_type.to_string(),
        };
        let about = serde_json::to_vec(&about).expect("two strings can be written");
        self.write(&self.blob_path(digest), &manifest.bytes)?;
        if let Some((subject, descriptor)) = refers {
            let path = self.referrers_path(name, subject).join(file_name(digest));
            self.write(&path, descriptor)?;
        }
        // Last: it makes the manifest visible.
        self.write(&self.manifest_link(name, digest), &about)?;
        self.cache().put(name, manifest);
        Ok(())
    }

    /// Lets a tag name a manifest. With `once` a tag that names another one already is left as it is, also when two servers
    /// are asked at the same moment; answers with what the tag names then.
    pub(crate) fn put_tag(
        &self,
        name: &Repository,
        tag: &str,
        digest: &Digest,
        once: bool,
    ) -> Result<Digest> {
        let path = self.tag_path(name, tag);
        let text = digest.to_string();
        if !once {
            self.write(&path, text.as_bytes())?;
            return Ok(digest.clone());
        }
        let temporary = self.temporary();
        write_synced(&temporary, text.as_bytes())?;
        let linked = in_folder(&path, || std::fs::hard_link(&temporary, &path));
        let _ = std::fs::remove_file(&temporary);
        match linked {
            Ok(()) => sync_parent(&path)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return self.tag(name, tag),
            Err(e) => return Err(e.into()),
        }
        Ok(digest.clone())
    }

    pub(crate) fn delete_tag(&self, name: &Repository, tag: &str) -> Result<()> {
        let path = self.tag_path(name, tag);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(sync_parent(&path)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::manifest_unknown()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a manifest, the tags that name it, and its place among its subject's referrers.
    pub(crate) fn delete_manifest(
        &self,
        name: &Repository,
        digest: &Digest,
        subject: Option<&Digest>,
    ) -> Result<()> {
        for tag in self.tags(name)? {
            if self.tag(name, &tag).is_ok_and(|named| named == *digest) {
                let _ = self.delete_tag(name, &tag);
            }
        }
        if let Some(subject) = subject {
            let folder = self.referrers_path(name, subject);
            let _ = std::fs::remove_file(folder.join(file_name(digest)));
            let _ = std::fs::remove_dir(folder);
        }
        self.cache().forget(name, digest);
        let link = self.manifest_link(name, digest);
        match std::fs::remove_file(&link) {
            Ok(()) => Ok(sync_parent(&link)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::manifest_unknown()),
            Err(e) => Err(e.into()),
        }
    }

    // Lists

    /// All tags, in lexical order. Unknown when the repository is.
    pub(crate) fn tags(&self, name: &Repository) -> Result<Vec<String>> {
        let folder = self.repository(name);
        let mut tags = file_names(&folder.join("_tags"))?;
        if tags.is_empty() && !is_repository(&folder) {
            return Err(Error::name_unknown());
        }
        tags.retain(|tag| crate::name::is_tag(tag));
        tags.sort_unstable();
        Ok(tags)
    }

    /// Digests of the manifests or blobs that the repository links; `kind` is the folder's name.
    pub(crate) fn linked(&self, name: &Repository, kind: &str) -> io::Result<Vec<Digest>> {
        let names = file_names(&self.repository(name).join(kind))?;
        Ok(names.iter().filter_map(|n| from_file_name(n)).collect())
    }

    /// Descriptors of what names `subject`, in the order of their digests, from after `last`, `limit` at most, those that
    /// `wanted` takes. The flag says whether there are more.
    pub(crate) fn referrers(
        &self,
        name: &Repository,
        subject: &Digest,
        last: Option<&Digest>,
        limit: usize,
        mut wanted: impl FnMut(&serde_json::Value) -> bool,
    ) -> Result<(Vec<serde_json::Value>, bool)> {
        let folder = self.referrers_path(name, subject);
        let mut names = file_names(&folder)?;
        names.sort_unstable();
        let after = last.map(file_name).unwrap_or_default();
        let mut found = Vec::new();
        for file in names.into_iter().filter(|n| *n > after) {
            let Some(digest) = from_file_name(&file).filter(|d| self.has_manifest(name, d)) else {
                continue;
            };
            let Some(text) = read_limited(&folder.join(&file), DESCRIPTOR_LIMIT)? else {
                continue;
            };
            let Ok(descriptor) = serde_json::from_str::<serde_json::Value>(&text) else {
                tracing::error!(repository = %name, %digest, "a referrer's descriptor is damaged");
                continue;
            };
            if wanted(&descriptor) {
                if found.len() == limit {
                    return Ok((found, true));
                }
                found.push(descriptor);
            }
        }
        Ok((found, false))
    }

    /// Every repository that holds a manifest, in lexical order.
    pub(crate) fn repositories(&self) -> io::Result<Vec<Repository>> {
        self.walk(is_repository)
    }

    /// Every folder of a repository's name that `wanted` takes, in lexical order.
    pub(crate) fn walk(&self, wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<Repository>> {
        let top = self.root.join("repos");
        let mut found = Vec::new();
        let mut open = vec![(top, String::new())];
        while let Some((folder, prefix)) = open.pop() {
            for component in folder_names(&folder)? {
                if component.starts_with('_') {
                    continue;
                }
                let name = if prefix.is_empty() {
                    component.clone()
                } else {
                    format!("{prefix}/{component}")
                };
                let folder = folder.join(&component);
                if let Some(repository) = Repository::parse(&name) {
                    if wanted(&folder) {
                        found.push(repository);
                    }
                    open.push((folder, name));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Old or new, never half; synced.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.temporary();
        let result = write_synced(&temporary, bytes)
            .and_then(|()| in_folder(path, || std::fs::rename(&temporary, path)))
            .and_then(|()| sync_parent(path));
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result
    }
}

/// Digest and sums of a whole file.
pub(crate) fn read_through(file: &File, algorithm: Algorithm) -> io::Result<(Digest, Sums)> {
    let mut buffer = vec![0; PIECE];
    let mut hasher = Hasher::new(algorithm);
    let mut summing = Summing::default();
    let mut at = 0;
    loop {
        let length = read_full(At { file, at }, &mut buffer)?;
        if length == 0 {
            return Ok((hasher.finish(), summing.finish()));
        }
        hasher.update(&buffer[..length]);
        summing.update(&buffer[..length]);
        at += length as u64;
    }
}

/// Reads from a place without moving the file's own.
#[derive(Debug)]
pub(crate) struct At<'a> {
    pub(crate) file: &'a File,
    pub(crate) at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// Manifests by repository and digest. The oldest half goes when it is full.
#[derive(Debug, Default)]
struct Cache {
    entries: HashMap<(Repository, Digest), (u64, Manifest)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    fn get(&mut self, name: &Repository, digest: &Digest) -> Option<Manifest> {
        self.clock += 1;
        let (used, manifest) = self.entries.get_mut(&(name.clone(), digest.clone()))?;
        *used = self.clock;
        Some(manifest.clone())
    }
    fn put(&mut self, name: &Repository, manifest: &Manifest) {
        if manifest.bytes.len() > CACHE_BYTES / 8 {
            return;
        }
        if self.bytes + manifest.bytes.len() > CACHE_BYTES {
            let mut times: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            times.sort_unstable();
            let median = times[times.len() / 2];
            self.entries.retain(|_, (used, _)| *used > median);
            self.bytes = self.entries.values().map(|(_, m)| m.bytes.len()).sum();
        }
        self.clock += 1;
        let key = (name.clone(), manifest.digest.clone());
        self.bytes += manifest.bytes.len();
        if let Some((_, old)) = self.entries.insert(key, (self.clock, manifest.clone())) {
            self.bytes -= old.bytes.len();
        }
    }
    fn forget(&mut self, name: &Repository, digest: &Digest) {
        if let Some((_, old)) = self.entries.remove(&(name.clone(), digest.clone())) {
            self.bytes -= old.bytes.len();
        }
    }
}

pub(crate) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm.name(), digest.hex())
}

pub(crate) fn from_file_name(name: &str) -> Option<Digest> {
    let (algorithm, hex) = match name.split_once('-')? {
        ("sha256", hex) => (Algorithm::Sha256, hex),
        ("sha512", hex) => (Algorithm::Sha512, hex),
        _ => return None,
    };
    Digest::from_file_name(algorithm, hex)
}

/// A folder is a repository once a manifest or a tag was pushed to it.
fn is_repository(folder: &Path) -> bool {
    folder.join("_manifests").exists()
}

/// 128 random bits.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(crate::name::hex(&bytes))
}

pub(crate) fn age(meta: &std::fs::Metadata) -> Duration {
    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now()
        .duration_since(modified)
        .unwrap_or_default()
}

/// Sets a file's time to now.
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    Ok(futimens(File::open(path)?, &times)?)
}

/// Makes an empty file, or makes it young.
fn claim(path: &Path) -> io::Result<()> {
    let made = in_folder(path, || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    });
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => touch(path),
        other => other.map(|_| ()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

/// Does `act`; when the folder of `path` is missing, makes it and does `act` again.
pub(crate) fn in_folder<T>(path: &Path, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match act() {
            // More than once: an empty folder may be swept away in the moment after it was made.
            Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 3 => {
                tries += 1;
                make_folder(path.parent().expect("every file here has a folder"))?;
            }
            other => return other,
        }
    }
}

/// The folder and its parents; each new name is synced.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_folder(path.parent().ok_or(e)?)?;
            match std::fs::create_dir(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                _ => sync_parent(path),
            }
        }
        Err(e) => Err(e),
    }
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// A file of at most `limit` bytes. What is longer is cut, and then is not what its digest says.
fn read_at_most(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len().min(limit)).expect("limits fit");
    let mut bytes = vec![0; length];
    let filled = read_full(At { file, at: 0 }, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}

fn read_small(path: &Path) -> io::Result<Option<String>> {
    read_limited(path, LINK_LIMIT)
}

/// A text file, or `None` when there is none.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Names in a folder; none when it is missing.
pub(crate) fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn folder_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}
