//! Repositories whose content comes from another registry when it is asked for.
//!
//! ```text
//! GET manifest by tag ─▶ fresh? serve ─▶ else ask upstream for the digest ─▶ same: serve; other: fetch, keep, serve
//!                                        upstream cannot be reached: serve what is here
//! GET blob            ─▶ here? serve  ─▶ else fetch whole, prove, keep, serve
//! ```
//! What is kept is kept like a push, so it is proved again each time it is served, and what was damaged here is fetched anew.
//! When a tag was last compared is the time of a file, so all servers over one folder know it.

use crate::Registry;
use crate::api::blocking;
use crate::body::{collect, encode};
use crate::error::{Error, Result};
use crate::manifest::{self, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::name::{Algorithm, Digest, Reference, Repository};
use crate::policy::Upstream;
use crate::store::{Blob, MANIFEST_LIMIT, Manifest, age, in_folder, touch};
use crate::upload::{self, Upload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For so long a tag is not compared again when the policy does not say.
const FRESH: u64 = 60;
/// An answer's head must come within this time.
const ANSWER: Duration = Duration::from_secs(30);
/// A body must go on within this time.
const STALL: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 5;
const TOKEN_LIMIT: usize = 1 << 20;
/// Bytes that are gathered before they are hashed and written.
const GATHER: usize = 512 << 10;
/// Tokens and clients that are remembered.
const REMEMBERED: usize = 1024;
const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

type Http = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// What is remembered of upstreams.
#[derive(Default)]
pub(crate) struct Upstreams {
    clients: Mutex<HashMap<Option<PathBuf>, Http>>,
    /// What the last challenge was answered with, by upstream and repository.
    authorizations: Mutex<HashMap<(String, String), String>>,
    /// One fetch of the same thing at a time.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstreams")
    }
}

/// Why upstream did not give it.
#[derive(Debug)]
enum Refused {
    /// It has not got it, or does not give it to us.
    Absent,
    /// It cannot be asked now.
    Unreachable(String),
}

impl Registry {
    /// The registry that this repository comes from.
    pub(crate) fn upstream(&self, name: &Repository) -> Option<Upstream> {
        let policy = self.policy.get()?;
        let found = policy
            .mirrors
            .iter()
            .find(|m| crate::policy::matches(&m.r#match, name.as_str()));
        found.cloned()
    }

    /// A mirror takes no pushes: they would be overwritten.
    pub(crate) fn writable(&self, name: &Repository) -> Result<()> {
        match self.upstream(name) {
            None => Ok(()),
            Some(upstream) => Err(Error::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                format!("{name} mirrors {} and takes no pushes", upstream.upstream),
            )),
        }
    }

    /// Brings what is here up to what upstream has, before a manifest is read from here.
    pub(crate) async fn refresh_manifest(
        self: &Arc<Self>,
        name: &Repository,
        reference: &Reference,
    ) -> Result<()> {
        let Some(upstream) = self.upstream(name) else {
            return Ok(());
        };
        let tag = match reference {
            Reference::Digest(digest) if self.store.has_manifest(name, digest) => return Ok(()),
            Reference::Digest(_) => None,
            Reference::Tag(tag) => Some(tag.as_str()),
        };
        let fresh = Duration::from_secs(upstream.fresh_seconds.unwrap_or(FRESH));
        let mark = tag.map(|tag| self.store.repository(name).join("_fresh").join(tag));
        let is_fresh = || {
            mark.as_deref()
                .is_some_and(|m| std::fs::metadata(m).is_ok_and(|m| age(&m) < fresh))
        };
        if is_fresh() {
            return Ok(());
        }
        let turn = self.upstreams.turn(format!("{name}:{reference}"));
        let _turn = turn.lock().await;
        if is_fresh() {
            return Ok(());
        }
        let remote = Remote {
            registry: self,
            upstream: &upstream,
            name: remote_name(&upstream, name),
        };
        let here = tag
            .and_then(|tag| self.store.tag(name, tag).ok())
            .filter(|d| self.store.has_manifest(name, d));
        match self
            .bring_manifest(&remote, name, reference, here.as_ref())
            .await?
        {
            Ok(()) => {
                if let Some(mark) = mark {
                    blocking(move || Ok(make_young(&mark)?)).await?;
                }
                Ok(())
            }
            Err(Refused::Absent) => {
                if let Some(tag) = tag {
                    let _ = self.store.delete_tag(name, tag);
                }
                Err(Error::manifest_unknown())
            }
            // Old is better than nothing.
            Err(Refused::Unreachable(why)) if here.is_some() => {
                tracing::warn!(repository = %name, %reference, "upstream cannot be asked, serving what is here: {why}");
                Ok(())
            }
            Err(Refused::Unreachable(why)) => Err(bad_gateway(&upstream, why)),
        }
    }

    async fn bring_manifest(
        self: &Arc<Self>,
        remote: &Remote<'_>,
        name: &Repository,
        reference: &Reference,
        here: Option<&Digest>,
    ) -> Result<Result<(), Refused>> {
        let path = format!("manifests/{reference}");
        if let Some(here) = here {
            match remote.ask(Method::HEAD, &path).await {
                Ok(answer) if stated_digest(answer.headers()).as_ref() == Some(here) => {
                    return Ok(Ok(()));
                }
                Ok(_) => {}
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let answer = match remote.ask(Method::GET, &path).await {
            Ok(answer) => answer,
            Err(refused) => return Ok(Err(refused)),
        };
        let kind = answer
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let collecting = tokio::time::timeout(STALL, collect(answer.into_body(), MANIFEST_LIMIT));
        let Ok(Ok(bytes)) = collecting.await else {
            return Ok(Err(Refused::Unreachable(
                "the manifest broke off or is too long".to_owned(),
            )));
        };
        let algorithm = match reference {
            Reference::Digest(digest) => digest.algorithm,
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let digest = Digest::of(algorithm, &bytes);
        if matches!(reference, Reference::Digest(named) if *named != digest) {
            return Ok(Err(Refused::Unreachable(
                "the manifest is not what its digest says".to_owned(),
            )));
        }
        let Ok(reading) = manifest::read(&kind, &bytes) else {
            return Ok(Err(Refused::Unreachable(
                "the manifest cannot be read".to_owned(),
            )));
        };
        let manifest = Manifest {
            digest,
            media_type: reading.media_type.as_str().into(),
            bytes,
        };
        let (registry, name, reference) = (Arc::clone(self), name.clone(), reference.clone());
        blocking(move || {
            let store = &registry.store;
            let lock = store.shared()?;
            let descriptor = reading.subject.as_ref().map(|subject| {
                let descriptor = reading.descriptor(&manifest.digest, manifest.bytes.len());
                (
                    subject,
                    serde_json::to_vec(&descriptor).expect("a JSON value can be written"),
                )
            });
            let refers = descriptor
                .as_ref()
                .map(|(subject, bytes)| (*subject, bytes.as_slice()));
            // Its blobs come when they are asked for.
            store.put_manifest(&lock, &name, &manifest, refers)?;
            if let Reference::Tag(tag) = &reference {
                store.put_tag(&name, tag, &manifest.digest, false)?;
            }
            Ok(())
        })
        .await?;
        Ok(Ok(()))
    }

    /// A blob that is not here: fetched whole, proved and kept, then read as any other.
    pub(crate) async fn fetch_blob(
        self: &Arc<Self>,
        name: &Repository,
        digest: &Digest,
    ) -> Result<Blob> {
        let Some(upstream) = self.upstream(name) else {
            return Err(Error::blob_unknown());
        };
        let turn = self.upstreams.turn(format!("{name}@{digest}"));
        let _turn = turn.lock().await;
        let open = |registry: Arc<Self>, name: Repository, digest: Digest| {
            blocking(move || registry.store.open_blob(&name, &digest))
        };
        match open(Arc::clone(self), name.clone(), digest.clone()).await {
            Err(e) if e.code == "BLOB_UNKNOWN" => {}
            there => return there,
        }
        let remote = Remote {
            registry: self,
            upstream: &upstream,
            name: remote_name(&upstream, name),
        };
        let answer = match remote.ask(Method::GET, &format!("blobs/{digest}")).await {
            Ok(answer) => answer,
            Err(Refused::Absent) => return Err(Error::blob_unknown()),
            Err(Refused::Unreachable(why)) => return Err(bad_gateway(&upstream, why)),
        };
        let upload = {
            let (registry, name) = (Arc::clone(self), name.clone());
            blocking(move || {
                let id = upload::begin(&registry.store, &name)?;
                Upload::open(&registry.store, &registry.kept, &name, &id)
            })
            .await?
        };
        let upload = self.take_in(upload, answer.into_body(), &upstream).await?;
        let what = digest.clone();
        blocking(move || upload.finish(&what)).await.map_err(|e| {
            if e.cause.is_some() {
                e
            } else {
                bad_gateway(&upstream, "the blob is not what its digest says".to_owned())
            }
        })?;
        open(Arc::clone(self), name.clone(), digest.clone()).await
    }

    async fn take_in(
        &self,
        mut upload: Upload,
        mut body: Incoming,
        upstream: &Upstream,
    ) -> Result<Upload> {
        let limit = self.blob_limit();
        let mut parts: Vec<Bytes> = Vec::new();
        let mut length = 0;
        loop {
            let (ended, broken) = match tokio::time::timeout(STALL, body.frame()).await {
                Ok(None) => (true, false),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        parts.push(data);
                    }
                    (false, false)
                }
                Ok(Some(Err(_))) | Err(_) => (true, true),
            };
            if broken || upload.size() + length as u64 > limit {
                blocking(move || upload.discard()).await?;
                return Err(bad_gateway(
                    upstream,
                    "the blob broke off or is too large".to_owned(),
                ));
            }
            if length >= GATHER || ended {
                let gathered = std::mem::take(&mut parts);
                length = 0;
                upload = blocking(move || {
                    for part in &gathered {
                        upload.append(part)?;
                    }
                    Ok(upload)
                })
                .await?;
            }
            if ended {
                return Ok(upload);
            }
        }
    }

    /// The size of a blob that is not here.
    pub(crate) async fn remote_blob_size(
        self: &Arc<Self>,
        name: &Repository,
        digest: &Digest,
    ) -> Result<u64> {
        let Some(upstream) = self.upstream(name) else {
            return Err(Error::blob_unknown());
        };
        let remote = Remote {
            registry: self,
            upstream: &upstream,
            name: remote_name(&upstream, name),
        };
        match remote.ask(Method::HEAD, &format!("blobs/{digest}")).await {
            Ok(answer) => {
                let length = answer
                    .headers()
                    .get(CONTENT_LENGTH)
                    .and_then(|v| v.to_str().ok()?.parse().ok());
                length.ok_or_else(Error::blob_unknown)
            }
            Err(Refused::Absent) => Err(Error::blob_unknown()),
            Err(Refused::Unreachable(why)) => Err(bad_gateway(&upstream, why)),
        }
    }
}

impl Upstreams {
    fn turn(&self, key: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Whose turn is over, nobody else holds.
        fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(fetching.entry(key).or_default())
    }

    fn client(&self, authority: Option<&Path>) -> Result<Http, String> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = authority.map(Path::to_owned);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(ANSWER));
        http.set_nodelay(true);
        let builder = match authority {
            None => HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(provider)
                .map_err(|e| format!("this machine's certificates: {e}"))?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let bytes =
                    std::fs::read(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
                for certificate in CertificateDer::pem_slice_iter(&bytes).flatten() {
                    roots
                        .add(certificate)
                        .map_err(|e| format!("{}: {e}", path.display()))?;
                }
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|e| e.to_string())?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                HttpsConnectorBuilder::new().with_tls_config(config)
            }
        };
        let connector = builder.https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        if clients.len() >= REMEMBERED {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// One repository of one upstream.
struct Remote<'a> {
    registry: &'a Registry,
    upstream: &'a Upstream,
    name: String,
}

impl Remote<'_> {
    /// Asks, signs in when told to, follows redirects without taking credentials along. The answer is a success.
    async fn ask(&self, method: Method, path: &str) -> Result<Response<Incoming>, Refused> {
        let base = self.upstream.upstream.trim_end_matches('/');
        let first = format!("{base}/v2/{}/{path}", self.name);
        let key = (self.upstream.upstream.clone(), self.name.clone());
        let remembered = || self.authorizations().get(&key).cloned();
        let mut authorization = remembered();
        let mut signed_in = false;
        let mut url = first.clone();
        let mut hops = 0;
        loop {
            let sent = authorization.as_deref().filter(|_| url == first);
            let answer = self.send(method.clone(), &url, sent).await?;
            match answer.status() {
                status if status.is_success() => return Ok(answer),
                StatusCode::UNAUTHORIZED if !signed_in && url == first => {
                    signed_in = true;
                    let fresh = self.sign_in(answer.headers()).await?;
                    let mut all = self.authorizations();
                    if all.len() >= REMEMBERED {
                        all.clear();
                    }
                    all.insert(key.clone(), fresh.clone());
                    authorization = Some(fresh);
                }
                status if status.is_redirection() && hops < REDIRECTS => {
                    hops += 1;
                    url = redirected(&url, answer.headers())?;
                }
                StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(Refused::Absent);
                }
                status => return Err(Refused::Unreachable(format!("it answered {status}"))),
            }
        }
    }

    fn authorizations(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), String>> {
        self.registry
            .upstreams
            .authorizations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, Refused> {
        let client = self
            .registry
            .upstreams
            .client(self.upstream.authority.as_deref())
            .map_err(Refused::Unreachable)?;
        let mut request = Request::builder().method(method).uri(url);
        for kind in ACCEPTED {
            request = request.header(ACCEPT, kind);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Empty::new())
            .map_err(|e| Refused::Unreachable(format!("{url}: {e}")))?;
        match tokio::time::timeout(ANSWER, client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(Refused::Unreachable(chain(&e))),
            Err(_) => Err(Refused::Unreachable(format!(
                "no answer within {} s",
                ANSWER.as_secs()
            ))),
        }
    }

    /// Docker's token authentication, or Basic.
    async fn sign_in(&self, headers: &HeaderMap) -> Result<String, Refused> {
        let challenge = headers
            .get(WWW_AUTHENTICATE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let upstream = self.upstream;
        let basic = (!upstream.username.is_empty()).then(|| {
            format!(
                "Basic {}",
                STANDARD.encode(format!("{}:{}", upstream.username, upstream.password))
            )
        });
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or(Refused::Absent);
        }
        let realm = parameter(rest, "realm")
            .filter(|_| scheme.eq_ignore_ascii_case("bearer"))
            .ok_or(Refused::Absent)?;
        // A name and password that are kept from readers of the wire stay so.
        if upstream.upstream.starts_with("https:") && !realm.starts_with("https:") {
            return Err(Refused::Unreachable(format!(
                "its token service {realm} is not encrypted"
            )));
        }
        let service = parameter(rest, "service").unwrap_or_default();
        let scope = format!("repository:{}:pull", self.name);
        let separator = if realm.contains('?') { '&' } else { '?' };
        let url = format!(
            "{realm}{separator}service={}&scope={}",
            encode(&service),
            encode(&scope)
        );
        let answer = self.send(Method::GET, &url, basic.as_deref()).await?;
        if !answer.status().is_success() {
            return Err(Refused::Absent);
        }
        let collecting = tokio::time::timeout(STALL, collect(answer.into_body(), TOKEN_LIMIT));
        let Ok(Ok(bytes)) = collecting.await else {
            return Err(Refused::Unreachable(
                "its token service broke off".to_owned(),
            ));
        };
        let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let token = document["token"]
            .as_str()
            .or(document["access_token"].as_str());
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or(Refused::Absent)
    }
}

fn remote_name(upstream: &Upstream, name: &Repository) -> String {
    let own = name.as_str();
    format!(
        "{}{}",
        upstream.prefix,
        own.strip_prefix(upstream.strip.as_str()).unwrap_or(own)
    )
}

fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn redirected(from: &str, headers: &HeaderMap) -> Result<String, Refused> {
    let to = headers
        .get(LOCATION)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let wrong = || Refused::Unreachable(format!("it sent us to {to:?}"));
    let absolute = if to.starts_with('/') {
        let base: Uri = from.parse().map_err(|_| wrong())?;
        format!(
            "{}://{}{to}",
            base.scheme_str().unwrap_or("https"),
            base.authority().ok_or_else(wrong)?
        )
    } else {
        to.to_owned()
    };
    // From encrypted to plain nobody is sent.
    let allowed = absolute.starts_with("https://")
        || (absolute.starts_with("http://") && from.starts_with("http://"));
    allowed.then_some(absolute).ok_or_else(wrong)
}

/// A parameter of a challenge: `name="value"`.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (found, after) = rest.trim_start_matches([',', ' ']).split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if found.trim().eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after;
    }
}

fn make_young(mark: &Path) -> io::Result<()> {
    in_folder(mark, || {
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(mark)
    })?;
    touch(mark)
}

fn bad_gateway(upstream: &Upstream, why: String) -> Error {
    tracing::warn!(upstream = upstream.upstream, "upstream: {why}");
    Error::new(
        StatusCode::BAD_GATEWAY,
        "UNKNOWN",
        format!("the registry that this repository mirrors: {why}"),
    )
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_and_redirects_are_read_with_care() {
        let text = r#"realm="https://a/t?x=1",service="s, t", scope=plain"#;
        assert_eq!(parameter(text, "realm").as_deref(), Some("https://a/t?x=1"));
        assert_eq!(parameter(text, "service").as_deref(), Some("s, t"));
        assert_eq!(parameter(text, "scope").as_deref(), Some("plain"));
        assert_eq!(parameter("realm", "realm"), None);
        let to = |from: &str, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, location.parse().unwrap());
            redirected(from, &headers).ok()
        };
        assert_eq!(to("https://a/v2/x", "/y").as_deref(), Some("https://a/y"));
        assert_eq!(
            to("http://a/v2/x", "https://b/y").as_deref(),
            Some("https://b/y")
        );
        assert_eq!(to("https://a/v2/x", "http://b/y"), None);
        assert_eq!(to("https://a/v2/x", "file:///etc/passwd"), None);
    }

    #[test]
    fn names_are_mapped() {
        let upstream = Upstream {
            strip: "hub/".into(),
            prefix: "library/".into(),
            ..Upstream::default()
        };
        assert_eq!(
            remote_name(&upstream, &Repository::parse("hub/debian").unwrap()),
            "library/debian"
        );
    }
}
