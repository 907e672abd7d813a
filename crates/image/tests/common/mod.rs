//! Archives as foreign programs (and attackers) write them, and a store to put them in.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several test programs, each of which uses its part"
)]

pub mod registry;

use gantry_base::db::Db;
use gantry_image::{Image, Loaded, Registries, Store};
use gantry_oci::Digest;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Self { dir, store }
    }
    pub fn load(&self, archive: &[u8]) -> gantry_base::Result<Vec<Loaded>> {
        self.store.load(archive, &mut |_, _| {})
    }
    pub fn image(&self, name: &str) -> Arc<Image> {
        self.store
            .get(name)
            .unwrap_or_else(|e| panic!("{name}: {}", e.chain()))
    }
    /// Closes and opens again, as a restart does.
    pub fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = open(dir.path());
        Self { dir, store }
    }
    pub fn images_dir(&self) -> PathBuf {
        self.dir.path().join("images")
    }
    /// Names under `images/`, without `gone-…` folders, whose removal nobody waits for.
    pub fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in ["blobs/sha256", "layers", "tmp"] {
            for entry in std::fs::read_dir(self.images_dir().join(folder)).unwrap() {
                let name = entry.unwrap().file_name().to_string_lossy().into_owned();
                if !name.starts_with("gone-") {
                    names.push(format!("{folder}/{name}"));
                }
            }
        }
        names.sort();
        names
    }
}

pub fn open(dir: &Path) -> Store {
    open_with(dir, Registries::default())
}

/// The database's thread of a closed store may need a moment to let go of the file.
pub fn open_with(dir: &Path, registries: Registries) -> Store {
    let path = dir.join("node.redb");
    let db = loop {
        match Db::open(&path) {
            Ok(db) => break db,
            Err(e) if e.kind() == gantry_base::ErrorKind::Conflict => std::thread::yield_now(),
            Err(e) => panic!("{}", e.chain()),
        }
    };
    Store::open(&dir.join("images"), db, registries).unwrap()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Digest::from_sha256(digest.as_ref().try_into().unwrap())
}

/// An archive under construction. Names are written as given, checked by nobody.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn file(self, path: &str, bytes: &[u8]) -> Self {
        self.raw(b'0', path.as_bytes(), b"", 0o644, bytes)
    }
    pub fn dir(self, path: &str) -> Self {
        self.raw(b'5', path.as_bytes(), b"", 0o755, b"")
    }
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), 0o777, b"")
    }
    pub fn link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), 0o644, b"")
    }
    pub fn device(mut self, kind: u8, path: &str, major: u32, minor: u32) -> Self {
        let start = self.0.len();
        self = self.raw(kind, path.as_bytes(), b"", 0o600, b"");
        let block = &mut self.0[start..start + 512];
        block[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        block[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        checksum(block);
        self
    }
    /// PAX records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.raw(b'x', b"PaxHeaders/x", b"", 0o644, &text)
    }
    pub fn raw(mut self, kind: u8, path: &[u8], link: &[u8], mode: u32, bytes: &[u8]) -> Self {
        let mut block = [0u8; 512];
        block[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[156] = kind;
        block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        block[257..265].copy_from_slice(b"ustar\x0000");
        checksum(&mut block);
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    /// Changes the header that was written last, and its checksum.
    pub fn patch(mut self, entry_size: usize, at: usize, bytes: &[u8]) -> Self {
        let start = self.0.len() - 512 - entry_size.next_multiple_of(512);
        let block = &mut self.0[start..start + 512];
        block[at..at + bytes.len()].copy_from_slice(bytes);
        checksum(block);
        self
    }
    pub fn append(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
    pub fn cut(self) -> Vec<u8> {
        self.0
    }
}

fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub fn config(diff_ids: &[Digest], extra: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": { "Cmd": ["/bin/sh"], "Env": ["X=".to_owned() + extra] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|d| serde_json::json!({"created_by": format!("add {d}")})).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// As `docker save` before 25: layers first, the list last.
pub fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    docker_archive_of(layers, layers, tags)
}

/// `packed` are the layers as they lie in the archive.
pub fn docker_archive_of(plain: &[Vec<u8>], packed: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = plain.iter().map(|l| sha256(l)).collect();
    let config = config(&diff_ids, "");
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (number, layer) in packed.iter().enumerate() {
        let name = format!("{number}/layer.tar");
        tar = tar.dir(&format!("{number}/")).file(&name, layer);
        names.push(name);
    }
    let config_name = format!("{}.json", sha256(&config).hex());
    let manifest =
        serde_json::json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    tar.file(&config_name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

/// Blobs of an OCI layout.
pub struct Layout(pub Tar);

impl Layout {
    pub fn new() -> Self {
        Self(Tar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#))
    }
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = sha256(bytes);
        let tar = std::mem::take(&mut self.0);
        self.0 = tar.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }
    pub fn manifest(
        &mut self,
        plain: &[Vec<u8>],
        packed: &[Vec<u8>],
        extra: &str,
    ) -> serde_json::Value {
        let diff_ids: Vec<Digest> = plain.iter().map(|l| sha256(l)).collect();
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            &config(&diff_ids, extra),
        );
        let layers: Vec<_> = packed
            .iter()
            .map(|l| self.blob("application/vnd.oci.image.layer.v1.tar", l))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }
    pub fn index(manifests: &[serde_json::Value]) -> Vec<u8> {
        serde_json::json!({ "schemaVersion": 2, "manifests": manifests })
            .to_string()
            .into_bytes()
    }
    pub fn end(self, manifests: &[serde_json::Value]) -> Vec<u8> {
        self.0.file("index.json", &Self::index(manifests)).end()
    }
}

/// `sh -c` with the rest as `$1…`; panics with what it said.
pub fn shell(script: &str, arguments: &[&Path]) -> String {
    let output = std::process::Command::new("sh")
        .arg("-euc")
        .arg(script)
        .arg("sh")
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a container of the image would see: mounts its layers as overlay in a mount namespace of its own and runs a script there.
/// The script's working folder is the root file system.
pub fn in_container(world: &World, image: &Image, script: &str) -> String {
    let folder = tempfile::tempdir_in(world.dir.path()).unwrap();
    let snapshot = world.store.prepare(&image.id, folder.path()).unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let join = |paths: &[PathBuf]| {
        let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
        paths.join(":")
    };
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        join(&snapshot.lowers),
        snapshot.upper.display(),
        snapshot.work.display()
    );
    let script = format!("mount -t overlay overlay -o '{options}' \"$1\"; cd \"$1\"; {script}");
    let output = std::process::Command::new("unshare")
        .args([
            "-m",
            "--propagation",
            "private",
            "sh",
            "-euc",
            &script,
            "sh",
        ])
        .arg(&root)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
