//! A registry on a free port, and a client that can also say what no client should.

#![allow(dead_code, reason = "each suite uses its part")]

use gantry_registry::{Listener, Registry};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry in this process.
pub(crate) struct Server {
    pub(crate) registry: Arc<Registry>,
    pub(crate) address: SocketAddr,
    pub(crate) root: PathBuf,
    _folder: Option<tempfile::TempDir>,
    _runtime: tokio::runtime::Runtime,
    _stop: tokio::sync::watch::Sender<bool>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With these files in its folder.
    pub(crate) fn with(files: &[(&str, Value)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        let mut server = Self::over(folder.path(), None);
        server._folder = Some(folder);
        server
    }

    /// One more server over a folder.
    pub(crate) fn over(root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let registry = Registry::open(root).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Listener::Tcp(listener, tls);
        runtime.spawn(gantry_registry::serve(
            Arc::clone(&registry),
            listener,
            stopped,
        ));
        Self {
            registry,
            address,
            root: root.to_owned(),
            _folder: None,
            _runtime: runtime,
            _stop: stop,
        }
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[], b"")
    }

    #[track_caller]
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        send(self.address, method, path, headers, body).expect("the registry answers")
    }

    /// Pushes a blob and answers with its digest.
    #[track_caller]
    pub(crate) fn blob(&self, name: &str, bytes: &[u8]) -> String {
        push_blob(self.address, name, bytes).expect("a blob can be pushed")
    }

    /// Pushes an image of one layer; answers with its manifest's digest and bytes.
    #[track_caller]
    pub(crate) fn image(&self, name: &str, reference: &str, layer: &[u8]) -> (String, Vec<u8>) {
        let manifest = self.manifest_of(name, layer, json!({}));
        let answer = self.put(name, reference, OCI_MANIFEST, &manifest);
        assert_eq!(answer.status, 201, "{answer:?}");
        (digest(&manifest), manifest)
    }

    /// The manifest of an image whose blobs are there, with more fields.
    #[track_caller]
    pub(crate) fn manifest_of(&self, name: &str, layer: &[u8], more: Value) -> Vec<u8> {
        let config = br#"{"architecture":"amd64","os":"linux"}"#;
        self.blob(name, config);
        self.blob(name, layer);
        manifest_of(config, layer, more)
    }

    pub(crate) fn put(&self, name: &str, reference: &str, kind: &str, bytes: &[u8]) -> Answer {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.send("PUT", &path, &[("Content-Type", kind)], bytes)
    }
}

pub(crate) fn manifest_of(config: &[u8], layer: &[u8], more: Value) -> Vec<u8> {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": layer.len()}],
    });
    for (key, value) in more.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    manifest.to_string().into_bytes()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn push_blob(address: SocketAddr, name: &str, bytes: &[u8]) -> std::io::Result<String> {
    let digest = digest(bytes);
    let begun = send(
        address,
        "POST",
        &format!("/v2/{name}/blobs/uploads/"),
        &[],
        b"",
    )?;
    let wrong = |answer: &Answer| std::io::Error::other(format!("{answer:?}"));
    let location = begun.header("location").ok_or_else(|| wrong(&begun))?;
    let put = send(
        address,
        "PUT",
        &format!("{location}?digest={digest}"),
        &[],
        bytes,
    )?;
    match put.status {
        201 => Ok(digest),
        _ => Err(wrong(&put)),
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = &self.body[..self.body.len().min(500)];
        write!(
            f,
            "{} {:?} {}",
            self.status,
            self.headers,
            String::from_utf8_lossy(body)
        )
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    /// The spec's code of a refusal.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
    /// The path of a `Location` that may be absolute.
    #[track_caller]
    pub(crate) fn location(&self) -> String {
        self.header("location").expect("a Location").to_owned()
    }
}

/// One request on a connection of its own. The answer must be whole: a body shorter than its length is an error.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let chunked = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("transfer-encoding"));
    let stated = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    if !chunked && !stated && (!body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH")) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    // A refusal may come before all was sent.
    let _ = stream.write_all(body);
    read_answer(stream, method == "HEAD")
}

pub(crate) fn read_answer(mut stream: impl Read, head_only: bool) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let broken = |what: &str| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what);
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(|| broken("no answer"))?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let body = bytes.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|l| l.split(' ').nth(1))
        .and_then(|s| s.parse().ok());
    let headers: Vec<_> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    let answer = Answer {
        status: status.ok_or_else(|| broken("no status"))?,
        headers,
        body,
    };
    let length = answer
        .header("content-length")
        .and_then(|l| l.parse::<usize>().ok());
    if !head_only
        && answer.status != 304
        && length.is_some_and(|length| length != answer.body.len())
    {
        read?;
        return Err(broken("the body is cut"));
    }
    Ok(answer)
}

/// Bytes that look random and are the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
