//! A client of one repository on one registry.
//!
//! ```text
//! ping (https, then http where that is allowed) ─▶ request ─▶ 401 ─▶ token or basic ─▶ request again
//!                                                          ─▶ 429, 502, 503, 504 ─▶ wait ─▶ request again
//! ```
//! Credentials go to the registry and to the token service that it names, never to a mirror of another registry and never to a
//! host that a redirect leads to. Everything that a registry sends is bounded: documents in size, answers in time.
//!
//! Spec: distribution-spec 1.1; Docker's token authentication.

use crate::layer::read_error;
use crate::registries::{Client, Endpoint, Registries};
use base64::Engine as _;
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result, ResultExt};
use gantry_oci::{Digest, Reference};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use serde::Deserialize;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

const REDIRECTS: usize = 5;
/// Documents that are not manifests: errors, tokens, lists of tags.
const SMALL_ANSWER: usize = 1 << 20;
/// Requests at a registry that is busy, with a pause that doubles between them unless it says how long.
const ATTEMPTS: u32 = 5;
/// Requests whose connection broke or stayed silent.
const BROKEN_ATTEMPTS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A registry may need this many times longer to look at what was sent than to begin an answer.
const LOOKING: u32 = 10;
/// Pages of a list of tags, and tags.
const PAGES: usize = 1000;
const TAG_LIMIT: usize = 100_000;

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
    client: Client<OutBody>,
    /// `https://host:port`
    base: String,
    path: String,
    access: Access,
    credentials: Option<Credentials>,
    /// Repositories that layers may be mounted from.
    sources: Vec<String>,
    patience: Duration,
    /// The header that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Failures {
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
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

fn empty() -> OutBody {
    whole(Bytes::new())
}

pub(crate) fn whole(bytes: Bytes) -> OutBody {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body whose pieces come from a thread. Tells how far it was taken.
pub(crate) struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken {
    pieces: AtomicU64,
    whole: AtomicBool,
}

impl Pieces {
    pub(crate) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            pieces,
            taken: Arc::default(),
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = self.pieces.poll_recv(cx);
        match &next {
            Poll::Ready(Some(_)) => drop(self.taken.pieces.fetch_add(1, Ordering::Relaxed)),
            Poll::Ready(None) => self.taken.whole.store(true, Ordering::Relaxed),
            Poll::Pending => {}
        }
        next.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

impl Remote {
    /// Finds out how the registry at one endpoint is spoken to.
    pub(crate) async fn connect(
        registries: &Registries,
        endpoint: &Endpoint,
        path: &str,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let mut remote = Self {
            client: registries.client(endpoint)?,
            base: endpoint.base.clone(),
            path: path.to_owned(),
            access,
            // What was given is for the registry that was named.
            credentials: credentials.filter(|_| !endpoint.mirror),
            sources: Vec::new(),
            patience: registries.patience(),
            authorization: Mutex::new(None),
        };
        match remote.ping().await {
            Err(Failure {
                speaks_tls: false, ..
            }) if endpoint.may_be_plain => {
                remote.base = format!("http://{}", endpoint.host);
                remote.ping().await.map_err(|failure| failure.error)?;
            }
            result => result.map_err(|failure| failure.error)?,
        }
        Ok(remote)
    }

    /// The registry itself, not one of its mirrors.
    pub(crate) async fn connect_origin(
        registries: &Registries,
        reference: &Reference,
        access: Access,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let endpoints = registries.endpoints(&reference.domain, false).await;
        let endpoint = endpoints
            .last()
            .ok_or_else(|| Error::internal("a registry without an address"))?;
        Self::connect(registries, endpoint, &reference.path, access, credentials).await
    }

    /// Layers may be mounted from these repositories: a token must say so.
    pub(crate) fn mount_from(&mut self, sources: &[String]) {
        self.sources = sources.to_vec();
    }

    async fn ping(&self) -> Result<(), Failure> {
        let url = format!("{}/v2/", self.base);
        let answer = self
            .once(&Method::GET, &url, &HeaderMap::new(), empty(), None)
            .await?;
        drain(answer).await;
        Ok(())
    }

    async fn once(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: OutBody,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let request = outgoing(method, url, headers, body, authorization)?;
        let limit = match *method {
            Method::PUT => self.patience * LOOKING,
            _ => self.patience,
        };
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Err(_) => Err(Failure {
                error: Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "{}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                        spoken(method, url)
                    ),
                ),
                speaks_tls: true,
            }),
            Ok(Err(e)) => Err(Failure::of(method, url, &e)),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    /// Sends a request whose body can be sent again, with authentication and redirects; waits for a registry that is busy.
    pub(crate) async fn request(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let again = matches!(method, Method::GET | Method::HEAD | Method::PUT);
        let mut attempt = 1;
        loop {
            let result = self.follow(&method, url, &headers, &body).await;
            let pause = match &result {
                Ok(answer) if is_busy(answer.status()) => {
                    said_pause(answer.headers()).unwrap_or(PAUSE * (1 << attempt))
                }
                Err(error) if again && error.kind() == ErrorKind::Unavailable => {
                    PAUSE * (1 << attempt)
                }
                _ => return result,
            };
            let limit = if result.is_ok() {
                ATTEMPTS
            } else {
                BROKEN_ATTEMPTS
            };
            if attempt >= limit {
                return result;
            }
            attempt += 1;
            tracing::debug!(url, attempt, "a registry is busy; asking again");
            if let Ok(answer) = result {
                drain(answer).await;
            }
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
        }
    }

    async fn follow(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Incoming>> {
        let mut url = absolute(url, &self.base);
        let mut authenticated = false;
        for _ in 0..REDIRECTS + 2 {
            let authorization = self.authorization_for(&url);
            let answer = self
                .once(method, &url, headers, whole(body.clone()), authorization)
                .await
                .map_err(|failure| failure.error)?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && !authenticated && self.is_ours(&url) {
                authenticated = true;
                let words = || spoken(method, &url);
                if self.authenticate(answer.headers(), &words).await? {
                    drain(answer).await;
                    continue;
                }
                return Ok(answer);
            }
            // 301 to 303 would turn an upload into a question.
            let follows = matches!(*method, Method::GET | Method::HEAD)
                || matches!(status.as_u16(), 307 | 308);
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED || !follows {
                return Ok(answer);
            }
            url = self.location(&answer, &url)?;
            drain(answer).await;
        }
        Err(Error::internal(format!(
            "{}: stopped after {REDIRECTS} redirects",
            spoken(method, &url)
        )))
    }

    /// Sends a stream once; authentication must have happened. Given up when the registry takes nothing for long.
    pub(crate) async fn stream(
        &self,
        method: Method,
        url: &str,
        body: Pieces,
    ) -> Result<Response<Incoming>> {
        let url = absolute(url, &self.base);
        let kind = HeaderValue::from_static("application/octet-stream");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let taken = body.taken.clone();
        let authorization = self.authorization_for(&url);
        let request = outgoing(&method, &url, &headers, body.boxed_unsync(), authorization)
            .map_err(|failure| failure.error)?;
        let mut sending = std::pin::pin!(self.client.request(request));
        let (mut before, mut silent) = (0, 0);
        loop {
            match tokio::time::timeout(self.patience, &mut sending).await {
                Ok(result) => {
                    return result.map_err(|e| {
                        let error = Failure::of(&method, &url, &e).error;
                        Error::new(ErrorKind::Unavailable, error.message())
                    });
                }
                Err(_) => {
                    let now = taken.pieces.load(Ordering::Relaxed);
                    silent = if now == before { silent + 1 } else { 0 };
                    before = now;
                    let limit = if taken.whole.load(Ordering::Relaxed) {
                        LOOKING
                    } else {
                        1
                    };
                    if silent >= limit {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            format!(
                                "{}: the registry stopped in the middle of an upload",
                                spoken(&method, &url)
                            ),
                        ));
                    }
                }
            }
        }
    }

    pub(crate) fn repository(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.path)
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
        let to = absolute(to, from);
        let plain = to.starts_with("http://");
        if !(plain || to.starts_with("https://")) || (plain && from.starts_with("https://")) {
            return Err(Error::internal(format!(
                "the registry leads to {to:.200}: refused"
            )));
        }
        Ok(to)
    }

    /// Answers a challenge; false when there is none that can be answered.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        words: &(dyn Fn() -> String + Sync),
    ) -> Result<bool> {
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
                let Some(basic) = self.basic() else {
                    return Err(Error::internal(format!(
                        "{}: no basic auth credentials",
                        words()
                    )));
                };
                found = Some(format!("Basic {basic}"));
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
        let token = self.ask_token(challenge, false).await?;
        let text = if token.token.is_empty() {
            token.access_token
        } else {
            token.token
        };
        if text.is_empty() {
            return Err(Error::internal(
                "authorization server did not include a token in the response",
            ));
        }
        Ok(format!("Bearer {text}"))
    }

    fn scopes(&self) -> Vec<String> {
        if self.path.is_empty() {
            return Vec::new();
        }
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let mut scopes = vec![format!("repository:{}:{actions}", self.path)];
        scopes.extend(self.sources.iter().map(|s| format!("repository:{s}:pull")));
        scopes
    }

    /// `keep`: a token to come again with is wanted too.
    async fn ask_token(&self, challenge: &[(String, String)], keep: bool) -> Result<Token> {
        let value = |key: &str| {
            challenge
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, v)| v.as_str())
        };
        let realm =
            value("realm").ok_or_else(|| Error::internal("the registry names no token service"))?;
        let plain = realm.starts_with("http://");
        if !(plain || realm.starts_with("https://")) || (plain && self.base.starts_with("https://"))
        {
            return Err(Error::internal(format!(
                "the token service {realm:.200} is not encrypted: refused"
            )));
        }
        let scopes = self.scopes();
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
                escape(&scopes.join(" ")),
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
            for scope in &scopes {
                url.push_str(&format!("&scope={}", escape(scope)));
            }
            if let Some(known) = self.credentials.as_ref().filter(|c| !c.username.is_empty()) {
                url.push_str(&format!("&account={}", escape(&known.username)));
            }
            if keep {
                url.push_str("&offline_token=true&client_id=gantry");
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
            .await
            .map_err(|failure| failure.error)?;
        if !answer.status().is_success() {
            return Err(refusal(answer).await.into_error());
        }
        let bytes = collect(answer, SMALL_ANSWER, self.patience).await?;
        serde_json::from_slice(&bytes).context(|| "reading the token service's answer".into())
    }

    /// `docker login`: are these credentials good? Answers with what to send instead of the password from now on, or nothing.
    pub(crate) async fn check(&self) -> Result<String> {
        let url = format!("{}/v2/", self.base);
        let words = |status: StatusCode| {
            Error::new(
                ErrorKind::Unauthorized,
                format!(
                    "login attempt to {url} failed with status: {} {}",
                    status.as_u16(),
                    status.canonical_reason().unwrap_or_default()
                ),
            )
        };
        let first = self
            .once(&Method::GET, &url, &HeaderMap::new(), empty(), None)
            .await
            .map_err(|failure| failure.error)?;
        let mut identity = String::new();
        if first.status() == StatusCode::UNAUTHORIZED {
            for challenge in first.headers().get_all(header::WWW_AUTHENTICATE) {
                let text = challenge.to_str().unwrap_or_default();
                let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
                if scheme.eq_ignore_ascii_case("bearer") {
                    let known = self.credentials.as_ref();
                    let renewed = known.is_none_or(|c| c.identity_token.is_empty());
                    let token = self.ask_token(&parameters(rest), renewed).await?;
                    identity = token.refresh_token;
                }
            }
        }
        drain(first).await;
        let answer = self
            .request(Method::GET, "/v2/", HeaderMap::new(), Bytes::new())
            .await?;
        if answer.status().is_success() {
            return Ok(identity);
        }
        Err(words(answer.status()))
    }

    /// All tags of the repository.
    pub(crate) async fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let mut url = self.repository("tags/list");
        let mut tags = Vec::new();
        for _ in 0..PAGES {
            let answer = self
                .request(Method::GET, &url, HeaderMap::new(), Bytes::new())
                .await?;
            let answer = expect_success(answer).await?;
            let next = next_page(answer.headers());
            let bytes = collect(answer, SMALL_ANSWER, self.patience).await?;
            let page: Page =
                serde_json::from_slice(&bytes).context(|| "reading the list of tags".into())?;
            tags.extend(page.tags.unwrap_or_default());
            if tags.len() > TAG_LIMIT {
                return Err(Error::invalid(format!(
                    "more than {TAG_LIMIT} tags in one repository"
                )));
            }
            match next {
                // The list goes on where it began: a page elsewhere would get our credentials.
                Some(next) if next.starts_with('/') && !next.starts_with("//") => url = next,
                _ => return Ok(tags),
            }
        }
        Err(Error::internal("the list of tags does not end"))
    }

    /// `docker search`: the index's answer as it is, bounded.
    pub(crate) async fn search(&self, query: &str) -> Result<Bytes> {
        let answer = self
            .request(
                Method::GET,
                &format!("/v1/search?{query}"),
                HeaderMap::new(),
                Bytes::new(),
            )
            .await?;
        if !answer.status().is_success() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("Unexpected status code {}", answer.status().as_u16()),
            ));
        }
        collect(answer, SMALL_ANSWER, self.patience).await
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
        let bytes = collect(
            answer,
            usize::try_from(limit).unwrap_or(usize::MAX),
            self.patience,
        )
        .await?;
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

    /// Its size as the registry states it; schema 1 does not say.
    pub(crate) async fn blob_size(&self, digest: &Digest) -> Result<u64> {
        let url = self.repository(&format!("blobs/{digest}"));
        let answer = self
            .request(Method::HEAD, &url, HeaderMap::new(), Bytes::new())
            .await?;
        let answer = expect_success(answer).await?;
        answer
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or_else(|| {
                Error::internal(format!("the registry does not say how large {digest} is"))
            })
    }

    /// A blob from `offset` on: the answer, and where it really begins.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<(Response<Incoming>, u64)> {
        let url = self.repository(&format!("blobs/{digest}"));
        self.bytes_from(&url, offset).await
    }

    /// A foreign layer from the address that a manifest gives, without our credentials.
    pub(crate) async fn foreign(
        &self,
        url: &str,
        offset: u64,
    ) -> Result<(Response<Incoming>, u64)> {
        let plain = url.starts_with("http://") && self.base.starts_with("http://");
        if !plain && !url.starts_with("https://") {
            return Err(Error::invalid(format!(
                "the foreign layer's address {url:.200} is not https: refused"
            )));
        }
        self.bytes_from(url, offset).await
    }

    async fn bytes_from(&self, url: &str, offset: u64) -> Result<(Response<Incoming>, u64)> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"))
                .context(|| "asking for a part of a blob".into())?;
            headers.insert(header::RANGE, range);
        }
        let answer = self
            .request(Method::GET, url, headers, Bytes::new())
            .await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                // A part that begins elsewhere would shift everything behind it.
                let said = answer.headers().get(header::CONTENT_RANGE);
                let begins = said
                    .and_then(|v| v.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
                    .and_then(|(begin, _)| begin.parse::<u64>().ok())
                    .unwrap_or(offset);
                if begins > offset {
                    return Err(Error::internal(
                        "the registry sends another part than asked",
                    ));
                }
                Ok((answer, begins))
            }
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

    pub(crate) fn patience(&self) -> Duration {
        self.patience
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

/// A document, read whole. Larger ones and slow ones are refused.
pub(crate) async fn collect(
    answer: Response<Incoming>,
    limit: usize,
    patience: Duration,
) -> Result<Bytes> {
    let too_large = || {
        Error::invalid(format!(
            "the registry's answer is larger than {limit} bytes: refused"
        ))
    };
    let stated = answer.body().size_hint().lower();
    if usize::try_from(stated).map_or(true, |stated| stated > limit) {
        return Err(too_large());
    }
    let body = Limited::new(answer.into_body(), limit).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => match e.downcast::<hyper::Error>() {
            Ok(broken) => {
                Err(Error::new(ErrorKind::Unavailable, "unexpected EOF").with_source(broken))
            }
            Err(e) => Err(read_error(io::Error::other(e))),
        },
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "the registry stopped in the middle of an answer",
        )),
    }
}

/// Reads a short body that says nothing, so that its connection can be used again.
async fn drain(answer: Response<Incoming>) {
    let body = Limited::new(answer.into_body(), 64 << 10).collect();
    let _ = tokio::time::timeout(Duration::from_secs(1), body).await;
}

/// Docker's client: a bearer challenge knows better than the body what was wrong.
fn challenged(headers: &HeaderMap) -> Option<(&'static str, String)> {
    let parameters = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter_map(|text| text.split_once(' '))
        .find(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, rest)| parameters(rest))?;
    let value = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v);
    let (code, text) = match value("error")?.as_str() {
        "invalid_token" => ("UNAUTHORIZED", "authentication required"),
        "insufficient_scope" => ("DENIED", "requested access to the resource is denied"),
        _ => return None,
    };
    let text = value("error_description").map_or(text, String::as_str);
    Some((code, format!("{}: {text:.500}", code.to_lowercase())))
}

pub(crate) async fn refusal(answer: Response<Incoming>) -> Refusal {
    let status = answer.status();
    let challenge = challenged(answer.headers()).filter(|_| status.is_client_error());
    let body = collect(answer, SMALL_ANSWER, Duration::from_secs(10))
        .await
        .unwrap_or_default();
    if let Some((code, text)) = challenge {
        return Refusal {
            status,
            code: code.to_owned(),
            text,
        };
    }
    let first = serde_json::from_slice::<Failures>(&body)
        .ok()
        .and_then(|list| list.errors.into_iter().next());
    let (code, text) = match first {
        Some(first) => (
            first.code.clone(),
            format!(
                "{}: {:.1000}",
                first.code.to_lowercase().replace('_', " "),
                first.message
            ),
        ),
        None if status == StatusCode::UNAUTHORIZED => (
            "UNAUTHORIZED".to_owned(),
            "unauthorized: authentication required".to_owned(),
        ),
        None => (
            String::new(),
            format!(
                "received unexpected HTTP status: {} {}",
                status.as_u16(),
                status.canonical_reason().unwrap_or_default()
            ),
        ),
    };
    Refusal { status, code, text }
}

/// What a registry that is only busy says.
fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// `Retry-After` in seconds; a date is not worth a clock that both must agree on.
fn said_pause(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// `Link: </v2/…?last=x>; rel="next"`
fn next_page(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::LINK)?.to_str().ok()?;
    let (link, rest) = text.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| link.to_owned())
}

/// A reference in an answer, against the address that was asked.
fn absolute(to: &str, from: &str) -> String {
    let (scheme, rest) = from.split_once("://").unwrap_or(("https", from));
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{host}{to}")
    } else if to.contains("://") {
        to.to_owned()
    } else {
        let path = rest.split('?').next().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or(host, |(folder, _)| folder);
        format!("{scheme}://{folder}/{to}")
    }
}

fn outgoing(
    method: &Method,
    url: &str,
    headers: &HeaderMap,
    body: OutBody,
    authorization: Option<HeaderValue>,
) -> Result<Request<OutBody>, Failure> {
    let uri: Uri = url.parse().map_err(|e| Failure {
        error: Error::internal(format!(
            "the registry gave an address that is none: {url:.200}"
        ))
        .with_source(e),
        speaks_tls: true,
    })?;
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers.clone();
    let agent = HeaderValue::from_static(concat!("gantry/", env!("CARGO_PKG_VERSION")));
    request.headers_mut().insert(header::USER_AGENT, agent);
    if let Some(value) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

/// `Get "https://host/v2/"`
fn spoken(method: &Method, url: &str) -> String {
    let name = method.as_str();
    let url: String = url.chars().take(300).collect();
    format!("{}{} {url:?}", &name[..1], name[1..].to_lowercase())
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

/// A request that got no answer.
struct Failure {
    error: Error,
    /// False when the other end is not there or answers in plain text.
    speaks_tls: bool,
}

impl Failure {
    /// In Go's words where they are known. Before a connection stands the failure is final, after it another attempt may help.
    fn of(method: &Method, url: &str, error: &hyper_util::client::legacy::Error) -> Self {
        let host = url.split('/').nth(2).unwrap_or_default();
        let mut speaks_tls = !error.is_connect();
        let mut words = String::new();
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = next {
            words = cause.to_string();
            if words == "dns error" {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                words = format!("dial tcp: lookup {name}: no such host");
                break;
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                if let Some(tls) = tls_error(io) {
                    (words, speaks_tls) = tls_words(tls);
                    break;
                }
                let how = match io.kind() {
                    io::ErrorKind::ConnectionRefused => "connection refused",
                    io::ErrorKind::HostUnreachable => "no route to host",
                    io::ErrorKind::NetworkUnreachable => "network is unreachable",
                    io::ErrorKind::TimedOut if error.is_connect() => "i/o timeout",
                    _ => "",
                };
                if !how.is_empty() {
                    words = format!("dial tcp {host}: connect: {how}");
                    break;
                }
            }
            next = cause.source();
        }
        let kind = if error.is_connect() {
            ErrorKind::Internal
        } else {
            ErrorKind::Unavailable
        };
        Self {
            error: Error::new(kind, format!("{}: {words}", spoken(method, url))),
            speaks_tls,
        }
    }
}

/// TLS errors lie in one or two of the other kind, which do not tell of them as their source.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    match inner.downcast_ref::<rustls::Error>() {
        Some(tls) => Some(tls),
        None => tls_error(inner.downcast_ref::<io::Error>()?),
    }
}

fn tls_words(error: &rustls::Error) -> (String, bool) {
    use rustls::{CertificateError, Error as Tls};
    let words = match error {
        // What comes back is no TLS record.
        Tls::InvalidMessage(_) => {
            return (
                "http: server gave HTTP response to HTTPS client".to_owned(),
                false,
            );
        }
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
                .to_owned()
        }
        Tls::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "tls: failed to verify certificate: x509: certificate has expired or is not yet valid"
            .to_owned(),
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "tls: failed to verify certificate: x509: certificate is not valid for this name"
            .to_owned(),
        Tls::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        other => format!("tls: {other}"),
    };
    (words, true)
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    refresh_token: String,
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
    fn references_are_taken_against_what_was_asked() {
        let from = "https://a.example:5000/v2/x/blobs/uploads/?n=/1";
        for (to, want) in [
            ("/v2/y", "https://a.example:5000/v2/y"),
            ("//b.example/y", "https://b.example/y"),
            ("http://b.example/y", "http://b.example/y"),
            ("y?z", "https://a.example:5000/v2/x/blobs/uploads/y?z"),
        ] {
            assert_eq!(absolute(to, from), want);
        }
        assert_eq!(absolute("y", "https://a"), "https://a/y");
    }
}
