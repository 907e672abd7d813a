//! The endpoints. distribution-spec 1.1; each function names its section.

use crate::Registry;
use crate::access::{Action, Caller};
use crate::body::{Body, Query, Range, collect, decode, encode};
use crate::error::{Error, Result};
use crate::manifest::{self, OCI_INDEX, Reading};
use crate::name::{Algorithm, Digest, Reference, Repository, is_tag};
use crate::route::Route;
use crate::store::{MANIFEST_LIMIT, Manifest, touch};
use crate::sums::PIECE;
use crate::upload::{self, Id, Upload};
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderName, IF_NONE_MATCH, LINK, LOCATION, RANGE, VARY,
};
use http::response::Builder;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Tags of one push.
const TAGS: usize = 32;
/// Names in one list; more come with the next page.
const PAGE: usize = 10_000;
const REFERRERS_PAGE: usize = 1000;
/// A client that sends nothing for so long is hung up on.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes that are gathered before they are hashed and written in one go; as many again arrive meanwhile.
const GATHER: usize = 512 << 10;
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: Option<IpAddr>,
    pub(crate) tls: bool,
}

/// What a handler sees of a request.
pub(crate) struct Call {
    pub(crate) registry: Arc<Registry>,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) query: Query,
    pub(crate) peer: Peer,
    pub(crate) caller: Caller,
}

/// Answers one request; what is refused becomes the spec's document.
pub(crate) async fn answer<B>(
    registry: Arc<Registry>,
    request: Request<B>,
    peer: Peer,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let (parts, body) = request.into_parts();
    let mut response = respond(
        registry,
        parts.method,
        &parts.uri,
        parts.headers,
        body,
        peer,
    )
    .await
    .unwrap_or_else(|error| {
        if let Some(cause) = &error.cause {
            tracing::error!(path = parts.uri.path(), "{}: {cause}", error.message);
        }
        refuse(&error)
    });
    response
        .headers_mut()
        .insert(VERSION, http::HeaderValue::from_static("registry/2.0"));
    response
}

async fn respond<B>(
    registry: Arc<Registry>,
    method: Method,
    uri: &Uri,
    headers: HeaderMap,
    body: B,
    peer: Peer,
) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let path = decode(uri.path(), false).ok_or_else(Error::not_found)?;
    let query = Query::parse(uri.query());
    let route = match Route::parse(&path) {
        Ok(route) => route,
        // Who may not come in does not learn what there would be.
        Err(e) if path.starts_with("/v2/") => {
            registry.access.caller(&headers, peer).await?;
            return Err(e);
        }
        Err(e) => return Err(e),
    };
    if route == Route::Token {
        return crate::access::token(&registry, &method, &headers, query, body, peer).await;
    }
    let caller = registry.access.caller(&headers, peer).await?;
    registry.limits.admit(&caller, peer.address)?;
    let call = Call {
        registry,
        method,
        headers,
        query,
        peer,
        caller,
    };
    match route {
        Route::Base => call.base(),
        Route::Token => unreachable!("answered above"),
        Route::Catalog => call.catalog().await,
        Route::Tags(name) => call.tags(&name).await,
        Route::Referrers(name, subject) => call.referrers(name, subject).await,
        Route::Blob(name, digest) => call.blob(name, digest).await,
        Route::Uploads(name) => call.begin_upload(name, body).await,
        Route::Upload(name, id) => call.upload(name, id, body).await,
        Route::Manifest(name, reference) => call.manifest(name, reference, body).await,
    }
}

fn refuse(error: &Error) -> Response<Body> {
    let mut builder = Response::builder()
        .status(error.status)
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in &error.headers {
        builder = builder.header(name, value);
    }
    builder
        .body(Body::Whole(error.document().into()))
        .unwrap_or_else(|_| Response::new(Body::empty()))
}

/// A finished answer. Values of ours are valid headers; what a client gave was parsed.
pub(crate) fn send(builder: Builder, body: Body) -> Result<Response<Body>> {
    builder
        .body(body)
        .map_err(|e| Error::internal(std::io::Error::other(e)))
}

pub(crate) fn send_json(value: &serde_json::Value, builder: Builder) -> Result<Response<Body>> {
    let bytes = serde_json::to_vec(value).expect("a JSON value can be written");
    let mut builder = builder.header(CONTENT_LENGTH, bytes.len());
    if builder
        .headers_ref()
        .is_none_or(|h| !h.contains_key(CONTENT_TYPE))
    {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    send(builder, Body::Whole(bytes.into()))
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(std::io::Error::other(e)))?
}

impl Call {
    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    fn allow(&self, name: &Repository, action: Action) -> Result<()> {
        self.registry
            .access
            .check(&self.caller, name, action, &self.headers, self.peer)
    }
    fn reads(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
    /// A body for GET, the same without it for HEAD.
    fn body(&self, bytes: Bytes) -> Body {
        match self.method == Method::HEAD {
            true => Body::empty(),
            false => Body::Whole(bytes),
        }
    }
    /// The client has it already.
    fn has(&self, digest: &Digest) -> bool {
        let given = self.header(&IF_NONE_MATCH).unwrap_or_default();
        given == "*"
            || given.split(',').any(|tag| {
                tag.trim().trim_start_matches("W/").trim_matches('"') == digest.to_string()
            })
    }

    /// "Determining Support".
    fn base(&self) -> Result<Response<Body>> {
        if !self.reads() {
            return Err(Error::unsupported());
        }
        self.registry
            .access
            .check_known(&self.caller, &self.headers, self.peer)?;
        send(
            Response::builder()
                .header(CONTENT_TYPE, "application/json")
                .header(CONTENT_LENGTH, 2),
            self.body(Bytes::from_static(b"{}")),
        )
    }

    // Lists

    /// Docker's catalogue: repositories that the caller may read.
    async fn catalog(&self) -> Result<Response<Body>> {
        if !self.reads() {
            return Err(Error::unsupported());
        }
        self.registry
            .access
            .check_known(&self.caller, &self.headers, self.peer)?;
        let registry = Arc::clone(&self.registry);
        let mut names = blocking(move || Ok(registry.store.repositories()?)).await?;
        names.retain(|name| self.caller.may(name, Action::Read));
        let names = names
            .into_iter()
            .map(|name| name.as_str().to_owned())
            .collect();
        let (names, next) = self.page(names, str::to_owned)?;
        let builder = link(Response::builder(), "/v2/_catalog", next);
        send_json(&json!({ "repositories": names }), builder)
    }

    /// "Listing Tags".
    async fn tags(&self, name: &Repository) -> Result<Response<Body>> {
        if !self.reads() {
            return Err(Error::unsupported());
        }
        self.allow(name, Action::Read)?;
        let (registry, of) = (Arc::clone(&self.registry), name.clone());
        let tags = blocking(move || registry.store.tags(&of)).await?;
        // The spec's order: "lexical (i.e. case-insensitive alphanumeric)".
        let (tags, next) = self.page(tags, |tag| tag.to_ascii_lowercase())?;
        let builder = link(Response::builder(), &format!("/v2/{name}/tags/list"), next);
        send_json(&json!({ "name": name.as_str(), "tags": tags }), builder)
    }

    /// Cuts a list by `n` and `last`. Answers with the query of the next page, if there is one.
    fn page(
        &self,
        mut names: Vec<String>,
        key: impl Fn(&str) -> String,
    ) -> Result<(Vec<String>, Option<String>)> {
        let limit = match self.query.get("n") {
            None | Some("") => PAGE,
            Some(text) => {
                let invalid = || {
                    Error::new(
                        StatusCode::BAD_REQUEST,
                        "UNSUPPORTED",
                        "n must be a number, 0 or more",
                    )
                };
                text.parse::<usize>().map_err(|_| invalid())?.min(PAGE)
            }
        };
        let order = |name: &str| (key(name), name.to_owned());
        names.sort_by_cached_key(|name| order(name));
        if let Some(last) = self.query.get("last") {
            let last = order(last);
            names.retain(|name| order(name) > last);
        }
        let more = names.len() > limit;
        names.truncate(limit);
        let next = names
            .last()
            .filter(|_| more)
            .map(|last| format!("n={limit}&last={}", encode(last)));
        Ok((names, next))
    }

    /// "Listing Referrers".
    async fn referrers(&self, name: Repository, subject: Digest) -> Result<Response<Body>> {
        if !self.reads() {
            return Err(Error::unsupported());
        }
        self.allow(&name, Action::Read)?;
        let wanted: Vec<String> = self
            .query
            .all("artifactType")
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect();
        let filtered = !wanted.is_empty();
        let last = match self.query.get("last") {
            Some(text) => Some(
                text.parse::<Digest>()
                    .map_err(|_| Error::digest_invalid("last is no digest"))?,
            ),
            None => None,
        };
        let limit = match self.query.get("n").map(str::parse::<usize>) {
            Some(Ok(n)) => n.clamp(1, REFERRERS_PAGE),
            _ => REFERRERS_PAGE,
        };
        let (registry, of, about) = (Arc::clone(&self.registry), name.clone(), subject.clone());
        let types = wanted.clone();
        let (found, more) = blocking(move || {
            registry
                .store
                .referrers(&of, &about, last.as_ref(), limit, |descriptor| {
                    types.is_empty()
                        || types
                            .iter()
                            .any(|t| descriptor["artifactType"].as_str() == Some(t))
                })
        })
        .await?;
        let next = found
            .last()
            .filter(|_| more)
            .and_then(|d| d["digest"].as_str())
            .map(|last| {
                let types: String = wanted
                    .iter()
                    .map(|t| format!("&artifactType={}", encode(t)))
                    .collect();
                format!("n={limit}&last={}{types}", encode(last))
            });
        let mut builder = Response::builder().header(CONTENT_TYPE, OCI_INDEX);
        if filtered {
            builder = builder.header(FILTERS, "artifactType");
        }
        let builder = link(builder, &format!("/v2/{name}/referrers/{subject}"), next);
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        send_json(&index, builder)
    }

    // Blobs

    /// "Pulling blobs", "Checking if content exists in the registry", "Deleting Blobs".
    async fn blob(&self, name: Repository, digest: Digest) -> Result<Response<Body>> {
        match self.method {
            Method::GET | Method::HEAD => self.allow(&name, Action::Read)?,
            Method::DELETE => {
                self.allow(&name, Action::Delete)?;
                let registry = Arc::clone(&self.registry);
                blocking(move || registry.store.delete_blob(&name, &digest)).await?;
                return accepted();
            }
            _ => return Err(Error::unsupported()),
        }
        let builder = Response::builder()
            .header(ACCEPT_RANGES, "bytes")
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(DIGEST, digest.to_string())
            .header(ETAG, format!("\"{digest}\""))
            .header(CACHE_CONTROL, "max-age=31536000");
        if self.method == Method::HEAD {
            let size = match self.registry.store.blob_size(&name, &digest) {
                Err(e) if e.code == "BLOB_UNKNOWN" => {
                    self.registry.remote_blob_size(&name, &digest).await?
                }
                size => size?,
            };
            return send(builder.header(CONTENT_LENGTH, size), Body::empty());
        }
        if self.has(&digest) && self.registry.store.blob_size(&name, &digest).is_ok() {
            return send(builder.status(StatusCode::NOT_MODIFIED), Body::empty());
        }
        let opened = {
            let (registry, name, digest) =
                (Arc::clone(&self.registry), name.clone(), digest.clone());
            blocking(move || registry.store.open_blob(&name, &digest)).await
        };
        let blob = match opened {
            Err(e) if e.code == "BLOB_UNKNOWN" => self.registry.fetch_blob(&name, &digest).await?,
            blob => blob?,
        };
        let size = blob.size();
        let body = |begin, end| Body::of(&self.registry.store, &digest, blob.clone(), begin, end);
        match Range::parse(self.header(&RANGE), size) {
            Range::Whole => send(builder.header(CONTENT_LENGTH, size), body(0, size)),
            Range::Part(begin, end) => send(
                builder
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(CONTENT_RANGE, format!("bytes {begin}-{}/{size}", end - 1))
                    .header(CONTENT_LENGTH, end - begin),
                body(begin, end),
            ),
            Range::Unsatisfiable => Err(Error::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                "the range lies beyond the blob's end",
            )
            .with(CONTENT_RANGE, format!("bytes */{size}"))),
        }
    }

    /// "Pushing a blob monolithically" (single POST), "Mounting a blob from another repository", and the beginning of all others.
    async fn begin_upload<B>(&self, name: Repository, body: B) -> Result<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        if self.method != Method::POST {
            return Err(Error::unsupported());
        }
        self.allow(&name, Action::Write)?;
        self.registry.writable(&name)?;
        if let Some(digest) = self.query.get("mount") {
            let digest: Digest = digest
                .parse()
                .map_err(|_| Error::digest_invalid("mount is no digest"))?;
            let from = self.query.get("from").and_then(Repository::parse);
            // Who may not read there does not learn whether the blob is there: it is an upload like any other then.
            if let Some(from) = from.filter(|from| self.caller.may(from, Action::Read)) {
                let (registry, to, what) =
                    (Arc::clone(&self.registry), name.clone(), digest.clone());
                match blocking(move || registry.store.mount(&from, &to, &what)).await {
                    Ok(()) => return created_blob(&name, &digest),
                    Err(e) if e.code == "BLOB_UNKNOWN" => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let digest = match self.query.get("digest") {
            Some(text) => Some(
                text.parse::<Digest>()
                    .map_err(|_| Error::digest_invalid("digest is no digest"))?,
            ),
            None => None,
        };
        let store = &self.registry.store;
        if let Some(digest) = digest {
            self.registry.room(&name, body.size_hint().lower())?;
            if body
                .size_hint()
                .exact()
                .is_some_and(|size| size <= PIECE as u64)
            {
                let bytes = receive_small(body).await?;
                let (registry, to, what) =
                    (Arc::clone(&self.registry), name.clone(), digest.clone());
                blocking(move || upload::put_whole(&registry.store, &to, &what, &bytes)).await?;
            } else {
                let id = upload::begin(store, &name)?;
                let upload = self.open(&name, &id).await?;
                let upload = self.receive(upload, body).await?;
                let what = digest.clone();
                blocking(move || upload.finish(&what)).await?;
            }
            return created_blob(&name, &digest);
        }
        let id = upload::begin(store, &name)?;
        standing(StatusCode::ACCEPTED, &name, &id, 0)
    }

    /// "Pushing a blob in chunks", "Resuming an upload", "Canceling a blob upload", and the end of every upload.
    async fn upload<B>(&self, name: Repository, id: Id, body: B) -> Result<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        self.allow(&name, Action::Write)?;
        let store = &self.registry.store;
        match self.method {
            Method::GET | Method::HEAD => {
                let size = upload::size(store, &name, &id)?;
                standing(StatusCode::NO_CONTENT, &name, &id, size)
            }
            Method::DELETE => {
                upload::cancel(store, &self.registry.kept, &name, &id)?;
                send(
                    Response::builder().status(StatusCode::NO_CONTENT),
                    Body::empty(),
                )
            }
            Method::PATCH => {
                let upload = self.open(&name, &id).await?;
                self.check_order(&name, &id, upload.size(), body.size_hint().exact())?;
                let upload = self.receive(upload, body).await?;
                let size = blocking(move || Ok(upload.leave())).await?;
                standing(StatusCode::ACCEPTED, &name, &id, size)
            }
            Method::PUT => {
                let text = self
                    .query
                    .get("digest")
                    .ok_or_else(|| Error::digest_invalid("the query lacks digest"))?;
                let digest: Digest = text
                    .parse()
                    .map_err(|_| Error::digest_invalid("digest is no digest"))?;
                let upload = match self.open(&name, &id).await {
                    // A server died after it had put the blob in place and before it said so; the client asks another one.
                    Err(e)
                        if e.code == "BLOB_UPLOAD_UNKNOWN"
                            && store.blob_size(&name, &digest).is_ok() =>
                    {
                        return created_blob(&name, &digest);
                    }
                    upload => upload?,
                };
                self.check_order(&name, &id, upload.size(), body.size_hint().exact())?;
                if upload.size() == 0
                    && body
                        .size_hint()
                        .exact()
                        .is_some_and(|size| size <= PIECE as u64)
                {
                    let bytes = receive_small(body).await?;
                    self.registry.room(&name, bytes.len() as u64)?;
                    let what = digest.clone();
                    blocking(move || {
                        let mut upload = upload;
                        upload.append(&bytes)?;
                        upload.finish(&what)
                    })
                    .await?;
                } else {
                    let upload = self.receive(upload, body).await?;
                    let what = digest.clone();
                    blocking(move || upload.finish(&what)).await?;
                }
                created_blob(&name, &digest)
            }
            _ => Err(Error::unsupported()),
        }
    }

    async fn open(&self, name: &Repository, id: &Id) -> Result<Upload> {
        let (registry, name, id) = (Arc::clone(&self.registry), name.clone(), id.clone());
        blocking(move || Upload::open(&registry.store, &registry.kept, &name, &id)).await
    }

    /// "Chunks MUST be uploaded in order": what does not go on where the last one ended is a 416 that says where that is.
    fn check_order(
        &self,
        name: &Repository,
        id: &Id,
        size: u64,
        length: Option<u64>,
    ) -> Result<()> {
        let Some(range) = self.header(&CONTENT_RANGE) else {
            return Ok(());
        };
        let range = range.trim().trim_start_matches("bytes").trim();
        let range = range.split('/').next().unwrap_or_default();
        let parsed = range.split_once('-').and_then(|(first, last)| {
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        let Some((first, last)) = parsed.filter(|(first, last)| first <= last) else {
            return Err(Error::upload_invalid("Content-Range must be FIRST-LAST"));
        };
        if first != size {
            let error = Error::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                "the chunk does not go on where the last one ended",
            );
            return Err(error
                .with(
                    LOCATION,
                    format!("/v2/{name}/blobs/uploads/{}", id.as_str()),
                )
                .with(RANGE, format!("0-{}", size.saturating_sub(1)))
                .with(UPLOAD_ID, id.as_str()));
        }
        if length.is_some_and(|length| last - first != length.saturating_sub(1) || length == 0) {
            return Err(Error::size_invalid(
                "Content-Range and Content-Length differ",
            ));
        }
        Ok(())
    }

    /// Takes a body in: while one part is hashed and written, the next arrives. A body that breaks off leaves the upload as far
    /// as it got, to be resumed.
    async fn receive<B>(&self, upload: Upload, mut body: B) -> Result<Upload>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let limit = self.registry.blob_limit();
        let hint = body.size_hint();
        self.registry.room(
            &upload.name().clone(),
            upload.size().saturating_add(hint.lower()),
        )?;
        let mut size = upload.size();
        let mut idle = Some(upload);
        let mut writing: Option<tokio::task::JoinHandle<Result<Upload>>> = None;
        let mut gathered: Vec<Bytes> = Vec::new();
        let mut length = 0;
        loop {
            let frame = tokio::time::timeout(IDLE, body.frame()).await;
            let (ended, broken) = match frame {
                Ok(None) => (true, false),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        size += data.len() as u64;
                        gathered.push(data);
                    }
                    (false, false)
                }
                Ok(Some(Err(_))) | Err(_) => (true, true),
            };
            let too_large = size > limit;
            if length >= GATHER || ((ended || too_large) && length > 0) {
                let mut upload = match writing.take() {
                    Some(writing) => written(writing.await)?,
                    None => idle.take().expect("it is here or being written to"),
                };
                let parts = std::mem::take(&mut gathered);
                length = 0;
                writing = Some(tokio::task::spawn_blocking(move || {
                    for part in &parts {
                        upload.append(part)?;
                    }
                    Ok(upload)
                }));
            }
            if ended || too_large {
                let upload = match writing.take() {
                    Some(writing) => written(writing.await)?,
                    None => idle.take().expect("it is here or being written to"),
                };
                if too_large {
                    blocking(move || upload.discard()).await?;
                    return Err(Error::too_large(
                        "the blob is larger than this registry takes",
                    ));
                }
                if broken {
                    blocking(move || Ok(upload.leave())).await?;
                    return Err(Error::broken_body());
                }
                return Ok(upload);
            }
        }
    }

    // Manifests

    async fn manifest<B>(
        &self,
        name: Repository,
        reference: Reference,
        body: B,
    ) -> Result<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        match self.method {
            Method::GET | Method::HEAD => {
                self.allow(&name, Action::Read)?;
                self.get_manifest(&name, &reference).await
            }
            Method::PUT => {
                self.allow(&name, Action::Write)?;
                self.put_manifest(name, reference, body).await
            }
            Method::DELETE => {
                self.allow(&name, Action::Delete)?;
                self.delete_manifest(name, reference).await
            }
            _ => Err(Error::unsupported()),
        }
    }

    /// "Pulling manifests". What is found in memory is answered here; the rest is a read of two small files.
    async fn get_manifest(
        &self,
        name: &Repository,
        reference: &Reference,
    ) -> Result<Response<Body>> {
        self.registry.refresh_manifest(name, reference).await?;
        let store = &self.registry.store;
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => store.tag(name, tag)?,
        };
        let mut manifest = store.manifest(name, &digest)?;
        // A client from before indexes asks for a manifest by its tag: it gets the one for the common platform, as Docker's
        // registry does. Whatever else a client accepts, it gets what there is.
        if matches!(reference, Reference::Tag(_))
            && self.wants_no_index()
            && let Ok(reading) = manifest::read(&manifest.media_type, &manifest.bytes)
            && reading.is_index()
            && let Some(child) = reading.plain_child
        {
            manifest = store.manifest(name, &child)?;
        }
        let text = manifest.digest.to_string();
        let builder = Response::builder()
            .header(CONTENT_TYPE, &*manifest.media_type)
            .header(ETAG, format!("\"{text}\""))
            .header(DIGEST, text)
            .header(VARY, "Accept");
        if self.has(&manifest.digest) {
            return send(builder.status(StatusCode::NOT_MODIFIED), Body::empty());
        }
        send(
            builder.header(CONTENT_LENGTH, manifest.bytes.len()),
            self.body(manifest.bytes),
        )
    }

    fn wants_no_index(&self) -> bool {
        let mut accepted = self
            .headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .peekable();
        if accepted.peek().is_none() {
            return false;
        }
        let all: Vec<&str> = accepted
            .flat_map(|v| v.split(','))
            .map(|v| v.split(';').next().unwrap_or_default().trim())
            .collect();
        let index = |t: &&str| {
            matches!(
                *t,
                "*/*" | "application/*" | OCI_INDEX | manifest::DOCKER_LIST
            )
        };
        let plain = |t: &&str| matches!(*t, manifest::OCI_MANIFEST | manifest::DOCKER_MANIFEST);
        !all.iter().any(index) && all.iter().any(plain)
    }

    /// "Pushing Manifests", "Pushing Manifests with Subject".
    async fn put_manifest<B>(
        &self,
        name: Repository,
        reference: Reference,
        body: B,
    ) -> Result<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        self.registry.writable(&name)?;
        let receiving = tokio::time::timeout(IDLE, collect(body, MANIFEST_LIMIT));
        let bytes = match receiving.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(true)) => return Err(Error::too_large("a manifest may be 4 MiB long")),
            Ok(Err(false)) | Err(_) => {
                return Err(Error::manifest_invalid("the request's body ended early"));
            }
        };
        let algorithm = match &reference {
            Reference::Digest(digest) => digest.algorithm,
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let digest = Digest::of(algorithm, &bytes);
        if let Reference::Digest(named) = &reference
            && *named != digest
        {
            return Err(Error::digest_invalid(
                "provided digest did not match uploaded content",
            ));
        }
        let content_type = self.header(&CONTENT_TYPE).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        let reading = manifest::read(content_type, &bytes)?;
        let tags = self.tags_of(&reference)?;
        let subject = reading.subject.clone();
        let mut builder = Response::builder()
            .status(StatusCode::CREATED)
            .header(LOCATION, format!("/v2/{name}/manifests/{reference}"))
            .header(DIGEST, digest.to_string());
        if let Some(subject) = &subject {
            builder = builder.header(SUBJECT, subject.to_string());
        }
        if matches!(reference, Reference::Digest(_)) && !tags.is_empty() {
            builder = builder.header(TAG, tags.join(", "));
        }
        let manifest = Manifest {
            digest,
            media_type: reading.media_type.as_str().into(),
            bytes,
        };
        let registry = Arc::clone(&self.registry);
        blocking(move || registry.keep_manifest(&name, &tags, &manifest, &reading)).await?;
        send(builder.header(CONTENT_LENGTH, 0), Body::empty())
    }

    /// The tags that a push sets: the one in its path, or those in the query of a push by digest.
    fn tags_of(&self, reference: &Reference) -> Result<Vec<String>> {
        if let Reference::Tag(tag) = reference {
            return Ok(vec![tag.clone()]);
        }
        let mut tags: Vec<String> = self.query.all("tag").map(str::to_owned).collect();
        tags.dedup();
        if tags.len() > TAGS || !tags.iter().all(|tag| is_tag(tag)) {
            return Err(Error::manifest_invalid(
                "the query's tags are too many or not tags",
            ));
        }
        Ok(tags)
    }

    /// "Deleting Tags", "Deleting Manifests".
    async fn delete_manifest(
        &self,
        name: Repository,
        reference: Reference,
    ) -> Result<Response<Body>> {
        let registry = Arc::clone(&self.registry);
        blocking(move || {
            let store = &registry.store;
            match reference {
                Reference::Tag(tag) => {
                    registry.may_change_tag(&name, &tag)?;
                    store.delete_tag(&name, &tag)
                }
                Reference::Digest(digest) => registry.delete_manifest(&name, &digest),
            }
        })
        .await?;
        accepted()
    }
}

impl Registry {
    /// Keeps a manifest and lets `tags` name it, if everything that it names is here.
    pub(crate) fn keep_manifest(
        &self,
        name: &Repository,
        tags: &[String],
        manifest: &Manifest,
        reading: &Reading,
    ) -> Result<()> {
        let store = &self.store;
        let lock = store.shared()?;
        self.check_references(name, reading)?;
        for tag in tags {
            if self.is_immutable(name, tag)
                && store
                    .tag(name, tag)
                    .is_ok_and(|named| named != manifest.digest)
            {
                return Err(immutable(tag));
            }
        }
        let descriptor = reading.subject.as_ref().map(|subject| {
            let descriptor = reading.descriptor(&manifest.digest, manifest.bytes.len());
            let bytes = serde_json::to_vec(&descriptor).expect("a JSON value can be written");
            (subject, bytes)
        });
        let refers = descriptor
            .as_ref()
            .map(|(subject, bytes)| (*subject, bytes.as_slice()));
        store.put_manifest(&lock, name, manifest, refers)?;
        for tag in tags {
            let once = self.is_immutable(name, tag);
            let named = store.put_tag(name, tag, &manifest.digest, once)?;
            if named != manifest.digest {
                return Err(immutable(tag));
            }
        }
        Ok(())
    }

    /// Under the shared lock, so that what was found stays until the manifest that names it is visible.
    fn check_references(&self, name: &Repository, reading: &Reading) -> Result<()> {
        let store = &self.store;
        let unknown = |digest: &Digest| {
            Error::new(
                StatusCode::BAD_REQUEST,
                "MANIFEST_BLOB_UNKNOWN",
                format!("the manifest names {digest}, which is not in the repository"),
            )
        };
        for blob in &reading.blobs {
            let link = store.blob_link(name, &blob.digest);
            let size = std::fs::metadata(&link)
                .and_then(|_| std::fs::metadata(store.blob_path(&blob.digest)))
                .map(|content| content.len());
            match size {
                Ok(size) if size == blob.size => touch(&link)?,
                Ok(size) => {
                    return Err(Error::manifest_invalid(format!(
                        "the manifest says that {} has {} bytes; it has {size}",
                        blob.digest, blob.size
                    )));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    if !blob.elsewhere {
                        return Err(unknown(&blob.digest));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        for child in &reading.manifests {
            if !store.has_manifest(name, &child.digest) {
                return Err(unknown(&child.digest));
            }
        }
        Ok(())
    }

    pub(crate) fn delete_manifest(&self, name: &Repository, digest: &Digest) -> Result<()> {
        let store = &self.store;
        let manifest = store.manifest(name, digest)?;
        for tag in store.tags(name)? {
            if self.is_immutable(name, &tag)
                && store.tag(name, &tag).is_ok_and(|named| named == *digest)
            {
                return Err(undeletable(&tag));
            }
        }
        let subject = manifest::read(&manifest.media_type, &manifest.bytes)
            .ok()
            .and_then(|r| r.subject);
        store.delete_manifest(name, digest, subject.as_ref())
    }

    pub(crate) fn may_change_tag(&self, name: &Repository, tag: &str) -> Result<()> {
        if self.is_immutable(name, tag) && self.store.tag(name, tag).is_ok() {
            return Err(undeletable(tag));
        }
        Ok(())
    }
}

/// "If tag deletion is disabled, the registry MUST respond with either a 400 or a 405".
fn undeletable(tag: &str) -> Error {
    Error {
        status: StatusCode::METHOD_NOT_ALLOWED,
        ..immutable(tag)
    }
}

fn immutable(tag: &str) -> Error {
    Error::denied(format!("the tag {tag} is immutable here"))
}

fn written(result: std::result::Result<Result<Upload>, tokio::task::JoinError>) -> Result<Upload> {
    result.map_err(|e| Error::internal(std::io::Error::other(e)))?
}

async fn receive_small<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    match tokio::time::timeout(IDLE, collect(body, PIECE)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        _ => Err(Error::broken_body()),
    }
}

fn link(builder: Builder, path: &str, next: Option<String>) -> Builder {
    match next {
        Some(query) => builder.header(LINK, format!("<{path}?{query}>; rel=\"next\"")),
        None => builder,
    }
}

fn accepted() -> Result<Response<Body>> {
    send(
        Response::builder()
            .status(StatusCode::ACCEPTED)
            .header(CONTENT_LENGTH, 0),
        Body::empty(),
    )
}

fn created_blob(name: &Repository, digest: &Digest) -> Result<Response<Body>> {
    send(
        Response::builder()
            .status(StatusCode::CREATED)
            .header(LOCATION, format!("/v2/{name}/blobs/{digest}"))
            .header(DIGEST, digest.to_string())
            .header(CONTENT_LENGTH, 0),
        Body::empty(),
    )
}

/// Where an upload stands. An upload without bytes says `0-0`, as Docker's registry does: the notation has nothing for it.
fn standing(status: StatusCode, name: &Repository, id: &Id, size: u64) -> Result<Response<Body>> {
    let mut builder = Response::builder()
        .status(status)
        .header(
            LOCATION,
            format!("/v2/{name}/blobs/uploads/{}", id.as_str()),
        )
        .header(RANGE, format!("0-{}", size.saturating_sub(1)))
        .header(UPLOAD_ID, id.as_str());
    if status != StatusCode::NO_CONTENT {
        builder = builder.header(CONTENT_LENGTH, 0);
    }
    send(builder, Body::empty())
}
