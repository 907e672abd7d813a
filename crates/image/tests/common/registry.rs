//! A registry that can be told to fail: for faults that no real one has on order. Plain HTTP/1.1, one connection per request.

use super::sha256;
use gantry_oci::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came, without its body.
#[derive(Debug, Clone)]
pub struct Hit {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How many requests with this method and path came before.
    pub before: usize,
}

/// What to do instead of answering properly.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(u16, Vec<(String, String)>, String),
    /// Close after so many bytes of the body.
    Cut(usize),
    /// Change one bit of the body's byte.
    Flip(usize),
    /// One byte of the body now and then.
    Drip,
    /// Never answer.
    Hang,
    /// More than was promised, without an end.
    Flood,
    NoRange,
    /// Read this much of an upload and close.
    Refuse(usize),
}

type Rule = Box<dyn Fn(&Hit) -> Option<Fault> + Send + Sync>;

pub struct State {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// By `repository/reference`: media type and bytes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    uploads: BTreeMap<String, Vec<u8>>,
    pub hits: Vec<Hit>,
    rule: Arc<Rule>,
}

pub struct Fake {
    pub host: String,
    pub state: Arc<Mutex<State>>,
    closing: Arc<AtomicBool>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host);
    }
}

impl Fake {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            blobs: BTreeMap::new(),
            manifests: BTreeMap::new(),
            uploads: BTreeMap::new(),
            hits: Vec::new(),
            rule: Arc::new(Box::new(|_| None)),
        }));
        let closing = Arc::new(AtomicBool::new(false));
        let (shared, end) = (state.clone(), closing.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (state, end) = (shared.clone(), end.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream.unwrap(), &state, &end);
                });
            }
        });
        Self {
            host,
            state,
            closing,
        }
    }

    pub fn rule(&self, rule: impl Fn(&Hit) -> Option<Fault> + Send + Sync + 'static) {
        let mut state = self.state.lock().unwrap();
        state.rule = Arc::new(Box::new(rule));
        state.hits.clear();
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let mut state = self.state.lock().unwrap();
        state.blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    pub fn manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let mut state = self.state.lock().unwrap();
        let repository = name.rsplit_once(':').unwrap().0;
        for name in [name.replace(':', "/"), format!("{repository}/{digest}")] {
            let entry = (media_type.to_owned(), bytes.to_vec());
            state.manifests.insert(name, entry);
        }
        digest
    }

    pub fn hits(&self, method: &str, part: &str) -> Vec<Hit> {
        let state = self.state.lock().unwrap();
        let wanted = |hit: &&Hit| hit.method == method && hit.path.contains(part);
        state.hits.iter().filter(wanted).cloned().collect()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, end: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        // Somebody tries TLS.
        return (&stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
    };
    if !path.starts_with('/') || !line.contains("HTTP/1.1") {
        return (&stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((key, value)) => headers.insert(key.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let (hit, rule) = {
        let mut state = state.lock().unwrap();
        let same = |h: &&Hit| h.method == method && h.path == path;
        let hit = Hit {
            before: state.hits.iter().filter(same).count(),
            method,
            path,
            headers,
        };
        state.hits.push(hit.clone());
        (hit, state.rule.clone())
    };
    let fault = rule(&hit);
    if let Some(Fault::Refuse(bytes)) = fault {
        let mut some = vec![0; bytes];
        let _ = reader.read_exact(&mut some);
        return Ok(());
    }
    if let Some(Fault::Hang) = fault {
        while !end.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        return Ok(());
    }
    let body = read_body(&mut reader, &hit.headers)?;
    let (status, mut headers, mut body) = match &fault {
        Some(Fault::Status(status, headers, body)) => {
            (*status, headers.clone(), body.clone().into_bytes())
        }
        _ => answer(&mut state.lock().unwrap(), &hit, body),
    };
    let range = hit.headers.get("range").filter(|_| status == 200);
    let mut status = status;
    if let Some(range) = range
        && !matches!(fault, Some(Fault::NoRange))
    {
        let from: usize = range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap();
        headers.push((
            "Content-Range".into(),
            format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
        ));
        body.drain(..from);
        status = 206;
    }
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    if !headers.iter().any(|(key, _)| key == "Content-Length") {
        headers.push(("Content-Length".into(), body.len().to_string()));
    }
    if matches!(fault, Some(Fault::Flood)) {
        headers.retain(|(key, _)| key != "Content-Length");
    }
    for (key, value) in headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut out = &stream;
    out.write_all(head.as_bytes())?;
    if hit.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Cut(bytes)) => out.write_all(&body[..bytes.min(body.len())]),
        Some(Fault::Flip(at)) => {
            let at = at % body.len();
            body[at] ^= 1;
            out.write_all(&body)
        }
        Some(Fault::Drip) => {
            for byte in &body {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                out.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Some(Fault::Flood) => loop {
            out.write_all(&[b' '; 65536])?;
            if end.load(Ordering::SeqCst) {
                return Ok(());
            }
        },
        _ => out.write_all(&body),
    }
}

fn read_body(
    reader: &mut impl BufRead,
    headers: &BTreeMap<String, String>,
) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|v| v == "chunked")
    {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim_end(), 16)
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body)?;
    }
    Ok(body)
}

type Answer = (u16, Vec<(String, String)>, Vec<u8>);

fn answer(state: &mut State, hit: &Hit, body: Vec<u8>) -> Answer {
    let missing = |code: &str, text: &str| -> Answer {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{text}"}}]}}"#);
        (404, Vec::new(), body.into_bytes())
    };
    let (path, query) = hit.path.split_once('?').unwrap_or((&hit.path, ""));
    let reading = matches!(hit.method.as_str(), "GET" | "HEAD");
    if path == "/v2/" {
        return (200, Vec::new(), b"{}".to_vec());
    }
    let rest = path.trim_start_matches("/v2/");
    if let Some((_, digest)) = rest.split_once("/blobs/sha256:")
        && reading
    {
        return match state.blobs.get(&format!("sha256:{digest}")) {
            Some(bytes) => (200, Vec::new(), bytes.clone()),
            None => missing("BLOB_UNKNOWN", "blob unknown to registry"),
        };
    }
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let name = format!("{repository}/{reference}");
        if reading {
            return match state.manifests.get(&name) {
                Some((kind, bytes)) => (
                    200,
                    vec![("Content-Type".into(), kind.clone())],
                    bytes.clone(),
                ),
                None => missing("MANIFEST_UNKNOWN", "manifest unknown"),
            };
        }
        let kind = hit.headers["content-type"].clone();
        let digest = sha256(&body);
        state.manifests.insert(
            format!("{repository}/{digest}"),
            (kind.clone(), body.clone()),
        );
        state.manifests.insert(name, (kind, body));
        return (201, Vec::new(), Vec::new());
    }
    if let Some((repository, id)) = rest.split_once("/blobs/uploads/") {
        let location = |id: &str| {
            vec![(
                "Location".to_owned(),
                format!("/v2/{repository}/blobs/uploads/{id}"),
            )]
        };
        match hit.method.as_str() {
            "POST" => {
                let id = format!("u{}", state.hits.len());
                state.uploads.insert(id.clone(), Vec::new());
                return (202, location(&id), Vec::new());
            }
            "PATCH" => {
                state
                    .uploads
                    .entry(id.to_owned())
                    .or_default()
                    .extend_from_slice(&body);
                return (202, location(id), Vec::new());
            }
            "PUT" => {
                let bytes = state.uploads.remove(id).unwrap_or_default();
                let digest = sha256(&bytes).to_string();
                if !query.contains(&digest.replace(':', "%3A")) {
                    return (400, Vec::new(), Vec::new());
                }
                state.blobs.insert(digest, bytes);
                return (201, Vec::new(), Vec::new());
            }
            _ => {}
        }
    }
    missing("NAME_UNKNOWN", "repository name not known to registry")
}
