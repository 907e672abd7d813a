//! A client of one repository on one registry.
//!
//! ```text
//! ping (https, then http on loopback) ─▶ request ─▶ 401 ─▶ token or basic ─▶ request again
//! ```
//! Credentials go to the registry and to the token service that it names, never to a host that a redirect leads to.
//!
//! Spec: distribution-spec 1.1; Docker's token authentication.

use crate::layer::read_error;
use base64::Engine as _;
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::{Digest, Reference};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// An answer's head must come within this time.
const ANSWER: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);
const REDIRECTS: usize = 5;
/// Documents that are not manifests: errors, tokens.
const SMALL_ANSWER: usize = 1 << 20;
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const REGISTRY_CERTIFICATES: &str = "/etc/docker/certs.d";

type OutBody = UnsyncBoxBody<Bytes, io::Error>;

/// What `docker login` gave.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// An OAuth refresh token instead of a password.
    pub identity_token: String,
    /// A bearer token to send as it is.
    pub registry_token: String,
}

/// What may be done with a repository.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Pull,
    Push,
}

pub(crate) struct Remote {
    pool: Pool<HttpsConnector<HttpConnector>, OutBody>,
    /// `https://host:port`
    base: String,
    path: String,
    access: Access,
    credentials: Option<Credentials>,
    /// The header that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Failures {
    #[serde(default)]
    errors: Vec<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A refusal of the registry.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    /// In the registry's words, as Docker shows them: `manifest unknown: manifest unknown`.
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn into_error(self) -> Error {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
            StatusCode::FORBIDDEN => ErrorKind::Forbidden,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                ErrorKind::Unavailable
            }
            _ => ErrorKind::Internal,
        };
        Error::new(kind, self.text)
    }
}

/// Where a host's registry listens.
pub(crate) fn registry_host(domain: &str) -> &str {
    match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn pool(host: &str) -> Result<Pool<HttpsConnector<HttpConnector>, OutBody>> {
    let mut roots = rustls::RootCertStore::empty();
    let mut files = vec![Path::new(SYSTEM_CERTIFICATES).to_owned()];
    let own = std::fs::read_dir(Path::new(REGISTRY_CERTIFICATES).join(host));
    files.extend(
        own.into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "crt")),
    );
    for certificate in files
        .iter()
        .filter_map(|file| CertificateDer::pem_file_iter(file).ok())
        .flatten()
        .flatten()
    {
        // One that cannot be used is one that nothing is signed with.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(|| "setting up TLS".into())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    http.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Pool::builder(TokioExecutor::new()).build(connector))
}

fn empty() -> OutBody {
    whole(Bytes::new())
}

pub(crate) fn whole(bytes: Bytes) -> OutBody {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body whose pieces come from a thread.
pub(crate) struct Pieces(pub(crate) mpsc::Receiver<io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

impl Remote {
    /// Finds out how the registry is spoken to.
    pub(crate) async fn connect(
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let host = registry_host(&reference.domain);
        let mut remote = Self {
            pool: pool(host)?,
            base: format!("https://{host}"),
            path: reference.path.clone(),
            access,
            credentials,
            authorization: Mutex::new(None),
        };
        let mut failed = remote.ping().await;
        if failed.is_err() && is_loopback(host) {
            remote.base = format!("http://{host}");
            failed = remote.ping().await;
        }
        failed.map(|()| remote)
    }

    async fn ping(&self) -> Result<()> {
        let url = format!("{}/v2/", self.base);
        self.once(&Method::GET, &url, &HeaderMap::new(), empty(), None)
            .await
            .map(drop)
    }

    async fn once(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: OutBody,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>> {
        let uri: Uri = url
            .parse()
            .context(|| format!("the registry gave an address that is none: {url:.200}"))?;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers.clone();
        let agent = HeaderValue::from_static(concat!("gantry/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let answer = self.pool.request(request);
        let words = || {
            let verb = format!(
                "{}{}",
                &method.as_str()[..1],
                method.as_str()[1..].to_lowercase()
            );
            format!("{verb} {url:?}")
        };
        match tokio::time::timeout(ANSWER, answer).await {
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                    words()
                ),
            )),
            Ok(Err(e)) => Err(Error::internal(format!(
                "{}: {}",
                words(),
                network_words(&e, url)
            ))),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    /// Sends a request whose body can be sent again, with authentication and redirects.
    pub(crate) async fn request(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut url = self.absolute(url);
        let mut authenticated = false;
        for _ in 0..REDIRECTS + 2 {
            let authorization = self.authorization_for(&url);
            let answer = self
                .once(&method, &url, &headers, whole(body.clone()), authorization)
                .await?;
            if answer.status() == StatusCode::UNAUTHORIZED && !authenticated && self.is_ours(&url) {
                authenticated = true;
                if self.authenticate(answer.headers()).await? {
                    continue;
                }
                return Ok(answer);
            }
            if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            url = self.location(&answer, &url)?;
        }
        Err(Error::internal(format!(
            "{url:.200}: stopped after {REDIRECTS} redirects"
        )))
    }

    /// Sends a stream once; authentication must have happened.
    pub(crate) async fn stream(
        &self,
        method: Method,
        url: &str,
        body: Pieces,
    ) -> Result<Response<Incoming>> {
        let url = self.absolute(url);
        let kind = HeaderValue::from_static("application/octet-stream");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let body = body.boxed_unsync();
        let authorization = self.authorization_for(&url);
        // An upload has no limit of its own: the registry may answer only when it has everything.
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = url
            .parse()
            .context(|| format!("the registry gave an address that is none: {url:.200}"))?;
        *request.headers_mut() = headers;
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.pool.request(request).await.map_err(|e| {
            Error::internal(format!("uploading to {url:?}: {}", network_words(&e, &url)))
        })
    }

    pub(crate) fn repository(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.path)
    }

    fn absolute(&self, url: &str) -> String {
        if url.starts_with('/') {
            format!("{}{url}", self.base)
        } else {
            url.to_owned()
        }
    }

    fn is_ours(&self, url: &str) -> bool {
        url.strip_prefix(&self.base)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    fn authorization_for(&self, url: &str) -> Option<HeaderValue> {
        let kept = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.clone().filter(|_| self.is_ours(url))
    }

    /// Where an answer leads; a plain-text address behind an encrypted one is refused.
    pub(crate) fn location(&self, answer: &Response<Incoming>, from: &str) -> Result<String> {
        let to = answer
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Error::internal("the registry's answer lacks a Location"))?;
        let to = self.absolute(to);
        let plain = to.starts_with("http://");
        if !(plain || to.starts_with("https://")) || (plain && from.starts_with("https://")) {
            return Err(Error::internal(format!(
                "the registry leads to {to:.200}: refused"
            )));
        }
        Ok(to)
    }

    /// Answers a challenge; false when there is nothing to answer with.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<bool> {
        let mut found = None;
        for challenge in headers.get_all(header::WWW_AUTHENTICATE) {
            let Ok(text) = challenge.to_str() else {
                continue;
            };
            let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                found = Some(self.token(&parameters(rest)).await?);
                break;
            }
            if scheme.eq_ignore_ascii_case("basic") {
                found = self.basic().map(|basic| format!("Basic {basic}"));
            }
        }
        let Some(text) = found else { return Ok(false) };
        let mut value = HeaderValue::from_str(&text)
            .context(|| "the registry's token cannot be sent".into())?;
        value.set_sensitive(true);
        *self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(true)
    }

    fn basic(&self) -> Option<String> {
        let known = self
            .credentials
            .as_ref()
            .filter(|c| !c.username.is_empty())?;
        Some(
            base64::engine::general_purpose::STANDARD
                .encode(format!("{}:{}", known.username, known.password)),
        )
    }

    async fn token(&self, challenge: &[(String, String)]) -> Result<String> {
        if let Some(known) = self
            .credentials
            .as_ref()
            .filter(|c| !c.registry_token.is_empty())
        {
            return Ok(format!("Bearer {}", known.registry_token));
        }
        let value = |key: &str| {
            challenge
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, v)| v.as_str())
        };
        let realm =
            value("realm").ok_or_else(|| Error::internal("the registry names no token service"))?;
        if !realm.starts_with("https://") && self.base.starts_with("https://") {
            return Err(Error::internal(format!(
                "the token service {realm:.200} is not encrypted: refused"
            )));
        }
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scope = if self.path.is_empty() {
            String::new()
        } else {
            format!("repository:{}:{actions}", self.path)
        };
        let service = value("service").unwrap_or_default();
        let refresh = self
            .credentials
            .as_ref()
            .filter(|c| !c.identity_token.is_empty());
        let mut headers = HeaderMap::new();
        let (method, url, body) = if let Some(known) = refresh {
            let form = format!(
                "grant_type=refresh_token&service={}&client_id=gantry&scope={}&refresh_token={}",
                escape(service),
                escape(&scope),
                escape(&known.identity_token)
            );
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
            (Method::POST, realm.to_owned(), Bytes::from(form))
        } else {
            let join = if realm.contains('?') { '&' } else { '?' };
            let mut url = format!("{realm}{join}service={}", escape(service));
            if !scope.is_empty() {
                url.push_str(&format!("&scope={}", escape(&scope)));
            }
            (Method::GET, url, Bytes::new())
        };
        let basic = refresh
            .is_none()
            .then(|| self.basic())
            .flatten()
            .and_then(|b| HeaderValue::from_str(&format!("Basic {b}")).ok());
        let answer = self
            .once(&method, &url, &headers, whole(body), basic)
            .await?;
        if !answer.status().is_success() {
            return Err(refusal(answer).await.into_error());
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = collect(answer, SMALL_ANSWER).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .context(|| "reading the token service's answer".into())?;
        let token = if token.token.is_empty() {
            token.access_token
        } else {
            token.token
        };
        if token.is_empty() {
            return Err(Error::internal(
                "authorization server did not include a token in the response",
            ));
        }
        Ok(format!("Bearer {token}"))
    }

    /// `docker login`: are these credentials good?
    pub(crate) async fn check(&self) -> Result<()> {
        let answer = self
            .request(Method::GET, "/v2/", HeaderMap::new(), Bytes::new())
            .await?;
        if answer.status().is_success() {
            return Ok(());
        }
        let refused = refusal(answer).await;
        Err(Error::new(
            ErrorKind::Unauthorized,
            format!(
                "login attempt to {}/v2/ failed with status: {} {}",
                self.base,
                refused.status.as_u16(),
                refused.status.canonical_reason().unwrap_or_default()
            ),
        ))
    }

    /// A manifest with its media type, by tag or digest.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        accept: &str,
        limit: u64,
    ) -> Result<Result<(Bytes, String), Refusal>> {
        let headers = HeaderMap::from_iter([(
            header::ACCEPT,
            HeaderValue::from_str(accept).context(|| "asking for a manifest".into())?,
        )]);
        let url = self.repository(&format!("manifests/{name}"));
        let answer = self
            .request(Method::GET, &url, headers, Bytes::new())
            .await?;
        if !answer.status().is_success() {
            return Ok(Err(refusal(answer).await));
        }
        let kind = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = collect(answer, usize::try_from(limit).unwrap_or(usize::MAX)).await?;
        Ok(Ok((bytes, kind)))
    }

    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let url = self.repository(&format!("blobs/{digest}"));
        let answer = self
            .request(Method::HEAD, &url, HeaderMap::new(), Bytes::new())
            .await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refusal(answer).await.into_error()),
        }
    }

    /// A blob from `offset` on: the answer, and where it really begins.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<(Response<Incoming>, u64)> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"))
                .context(|| "asking for a part of a blob".into())?;
            headers.insert(header::RANGE, range);
        }
        let url = self.repository(&format!("blobs/{digest}"));
        let answer = self
            .request(Method::GET, &url, headers, Bytes::new())
            .await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => Ok((answer, offset)),
            StatusCode::OK => Ok((answer, 0)),
            _ => Err(refusal(answer).await.into_error()),
        }
    }

    /// Begins an upload; `None` when the blob was mounted from another repository instead.
    pub(crate) async fn begin_upload(
        &self,
        mount: Option<(&Digest, &str)>,
    ) -> Result<Option<String>> {
        let mut url = self.repository("blobs/uploads/");
        if let Some((digest, from)) = mount {
            url.push_str(&format!(
                "?mount={}&from={}",
                escape(&digest.to_string()),
                escape(from)
            ));
        }
        let answer = self
            .request(Method::POST, &url, HeaderMap::new(), Bytes::new())
            .await?;
        match answer.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => self.location(&answer, &self.base).map(Some),
            _ => Err(refusal(answer).await.into_error()),
        }
    }

    pub(crate) async fn finish_upload(&self, location: &str, digest: &Digest) -> Result<()> {
        let join = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{join}digest={}", escape(&digest.to_string()));
        let kind = HeaderValue::from_static("application/octet-stream");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        expect_success(
            self.request(Method::PUT, &url, headers, Bytes::new())
                .await?,
        )
        .await
        .map(drop)
    }

    pub(crate) async fn put_manifest(&self, name: &str, kind: &str, bytes: Bytes) -> Result<()> {
        let kind = HeaderValue::from_str(kind).context(|| "sending a manifest".into())?;
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let url = self.repository(&format!("manifests/{name}"));
        expect_success(self.request(Method::PUT, &url, headers, bytes).await?)
            .await
            .map(drop)
    }
}

pub(crate) async fn expect_success(answer: Response<Incoming>) -> Result<Response<Incoming>> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    Err(refusal(answer).await.into_error())
}

pub(crate) async fn collect(answer: Response<Incoming>, limit: usize) -> Result<Bytes> {
    let body = Limited::new(answer.into_body(), limit).collect();
    match tokio::time::timeout(ANSWER, body).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) => Err(read_error(io::Error::other(e))),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "the registry stopped in the middle of an answer",
        )),
    }
}

pub(crate) async fn refusal(answer: Response<Incoming>) -> Refusal {
    let status = answer.status();
    let body = collect(answer, SMALL_ANSWER).await.unwrap_or_default();
    let first = serde_json::from_slice::<Failures>(&body)
        .ok()
        .and_then(|list| list.errors.into_iter().next());
    match first {
        Some(failure) => Refusal {
            status,
            text: format!(
                "{}: {}",
                failure.code.to_lowercase().replace('_', " "),
                failure.message
            ),
            code: failure.code,
        },
        None => Refusal {
            status,
            code: String::new(),
            text: format!(
                "received unexpected HTTP status: {} {}",
                status.as_u16(),
                status.canonical_reason().unwrap_or_default()
            ),
        },
    }
}

/// `key="value",key=value`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after
                .split_once(',')
                .map_or((after, ""), |(value, _)| (value, &after[value.len()..])),
        };
        found.push((key.trim().to_ascii_lowercase(), value.to_owned()));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    found
}

/// Percent-encoded for a query.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte))
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// What went wrong on the wire, in Go's words where they are known.
fn network_words(error: &(dyn std::error::Error + 'static), url: &str) -> String {
    let mut next = Some(error);
    let mut last = String::new();
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::ConnectionRefused
        {
            let host = url.split('/').nth(2).unwrap_or_default();
            return format!("dial tcp {host}: connect: connection refused");
        }
        last = cause.to_string();
        next = cause.source();
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let found = parameters(
            r#"realm="https://a/token?x=1,2",service=reg.example, scope="repository:a/b:pull,push""#,
        );
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("realm", "https://a/token?x=1,2"),
                ("service", "reg.example"),
                ("scope", "repository:a/b:pull,push"),
            ]
        );
        assert!(parameters("nonsense").is_empty());
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_plain_text() {
        for (host, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("127.0.0.1.example:80", false),
            ("registry.example", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
    }
}
