//! Images made without any registry.

use crate::run::run;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name under which [`busybox_archive`] loads.
pub const BUSYBOX: &str = "busybox:latest";
/// Modification time of everything in an image, so that the same input gives the same digest.
const MTIME: u64 = 1_700_000_000;

/// A `docker save` archive with one image, `busybox:latest`, from Debian's static busybox: a shell and its applets.
pub fn busybox_archive() -> Vec<u8> {
    archive(
        &[BUSYBOX],
        &[busybox_layer()],
        &serde_json::json!({
            "Cmd": ["sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        }),
    )
}

/// A root file system tar with busybox, some users, and `/www/index.html`.
pub fn busybox_layer() -> Vec<u8> {
    let program = ["/usr/bin/busybox", "/bin/busybox"]
        .iter()
        .find(|path| Path::new(path).exists())
        .expect("busybox is installed (Debian package busybox-static)");
    let list = run(Command::new(program).arg("--list-full"), None).ok();
    let mut layer = Layer::new();
    for folder in [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "srv",
        "sys",
        "usr",
        "usr/bin",
        "usr/sbin",
        "usr/local",
        "usr/local/bin",
        "var",
        "var/log",
        "www",
    ] {
        layer.folder(folder, 0o755);
    }
    layer.folder("tmp", 0o1777);
    layer.folder("var/tmp", 0o1777);
    layer.file(
        "bin/busybox",
        0o755,
        &std::fs::read(program).expect("busybox can be read"),
    );
    for applet in list.lines() {
        if applet != "bin/busybox" && applet != "linuxrc" {
            layer.link(applet, "/bin/busybox");
        }
    }
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    );
    layer.file(
        "etc/group",
        0o644,
        b"root:x:0:\ndaemon:x:1:\nwheel:x:10:\nnogroup:x:65534:\n",
    );
    layer.file("www/index.html", 0o644, b"ok\n");
    layer.finish()
}

/// A `docker save` archive: one image with `layers` (base first) and `config` (Docker's run configuration), under `tags`.
pub fn archive(tags: &[&str], layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let document = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": diff_ids.iter().map(|id| format!("sha256:{id}")).collect::<Vec<_>>(),
        },
        "history": layers.iter().map(|_| serde_json::json!({
            "created": "2023-11-14T22:13:20Z",
            "created_by": "testkit",
        })).collect::<Vec<_>>(),
    });
    let document = serde_json::to_vec(&document).expect("a JSON value serialises");
    let document_name = format!("{}.json", sha256(&document));
    let names: Vec<String> = diff_ids
        .iter()
        .map(|id| format!("{id}/layer.tar"))
        .collect();
    let manifest = serde_json::json!([{
        "Config": document_name,
        "RepoTags": tags,
        "Layers": names,
    }]);
    let mut out = Layer::new();
    for (name, layer) in names.iter().zip(layers) {
        out.file(name, 0o644, layer);
    }
    out.file(&document_name, 0o644, &document);
    out.file("manifest.json", 0o644, manifest.to_string().as_bytes());
    out.finish()
}

/// Docker's name of this machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A root file system tar of real Debian with python3, made by mmdebstrap on first use and kept in `.cache`.
/// It takes half a minute and the Debian archive once; `None` (said loudly) when the archive cannot be reached.
pub fn debian_rootfs() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    std::fs::create_dir_all(&folder).expect("the cache folder can be made");
    let place = folder.join("debian-python3.tar");
    // Several tests may ask at the same time; one makes it.
    let lock = std::fs::File::create(folder.join("debian.lock")).expect("the lock can be made");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .expect("the lock can be taken");
    if !place.exists() {
        let fresh = folder.join("debian-python3.new.tar");
        let done = run(
            Command::new("mmdebstrap")
                .args(["--mode=root", "--variant=minbase", "--include=python3"])
                .args([
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/locale/*",
                    // A mirror may be a snapshot, whose lists are signed but not renewed.
                    "--aptopt=Acquire::Check-Valid-Until \"false\"",
                ])
                .arg("stable")
                .arg(&fresh)
                .env("SOURCE_DATE_EPOCH", MTIME.to_string()),
            None,
        );
        if done.code != 0 {
            eprintln!("SKIPPED, no Debian image: {done}");
            return None;
        }
        std::fs::rename(&fresh, &place).expect("the image can be put in place");
    }
    Some(place)
}

/// The client's plugin `docker buildx`: the system's, or the one of Debian 13's package, unpacked on first use and kept in
/// `.cache`. `None` (said loudly) when there is none and the Debian archive cannot be reached.
pub fn buildx() -> Option<PathBuf> {
    let installed = [
        "/usr/libexec/docker/cli-plugins/docker-buildx",
        "/usr/lib/docker/cli-plugins/docker-buildx",
    ];
    if let Some(found) = installed.iter().map(Path::new).find(|path| path.exists()) {
        return Some(found.to_owned());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/buildx");
    std::fs::create_dir_all(&folder).expect("the cache folder can be made");
    let place = folder.join("docker-buildx");
    let lock = std::fs::File::create(folder.join("lock")).expect("the lock can be made");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .expect("the lock can be taken");
    if !place.exists() {
        let script = r#"
set -e
cd "$1"
mkdir -p lists/partial cache/archives/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $2 trixie main" >list
set -- -q -o "Dir::Etc::sourcelist=$PWD/list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
apt-get "$@" update
apt-get "$@" download docker-buildx
dpkg-deb -x docker-buildx_*.deb unpacked
mv unpacked/usr/libexec/docker/cli-plugins/docker-buildx docker-buildx
rm -rf unpacked lists cache docker-buildx_*.deb
"#;
        let sources = std::fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
            .or_else(|_| std::fs::read_to_string("/etc/apt/sources.list"))
            .unwrap_or_default();
        let archive = sources
            .split_whitespace()
            .find(|word| word.starts_with("http") && word.ends_with("/debian"));
        let archive = archive.unwrap_or_default();
        let done = run(
            Command::new("timeout")
                .args(["120", "sh", "-c", script, "sh"])
                .arg(&folder)
                .arg(archive),
            None,
        );
        if done.code != 0 || !place.exists() {
            eprintln!("SKIPPED, no docker buildx: {done}");
            return None;
        }
    }
    Some(place)
}

/// A tar being written; names without a leading slash.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
    pub fn folder(&mut self, name: &str, mode: u32) {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.0
            .append_data(&mut header, name, std::io::empty())
            .expect("writing to memory");
    }
    pub fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
        self.0
            .append_data(&mut header, name, bytes)
            .expect("writing to memory");
    }
    pub fn link(&mut self, name: &str, target: &str) {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0
            .append_link(&mut header, name, target)
            .expect("writing to memory");
    }
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("writing to memory")
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size);
    header
}

fn sha256(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
