//! One request, taken apart: what every handler gets.

use bytes::{Bytes, BytesMut};
use gantry_base::{Error, Result};
use gantry_docker_api::query::Query;
use gantry_docker_api::{ApiVersion, Filters};
use gantry_engine::Engine;
use http::header;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A JSON body carries at most this many bytes.
const JSON_LIMIT: usize = 4 << 20;
/// Frames of a streamed body on their way to the thread that reads them.
const FRAMES_AHEAD: usize = 8;

/// How long an unwanted body is read to its end.
const DISCARD: Duration = Duration::from_secs(10);

pub(crate) struct Call {
    pub(crate) engine: Engine,
    pub(crate) builds: crate::buildkit::Builds,
    pub(crate) version: ApiVersion,
    /// What stands in the path's variable part, decoded.
    pub(crate) name: String,
    pub(crate) parts: http::request::Parts,
    pub(crate) body: Remaining,
    /// The whole body, where it had to be read before the handler: what an authorisation plug-in saw is what is done.
    pub(crate) seen: Option<Bytes>,
    /// There when the client asked to change the protocol.
    pub(crate) upgrade: Option<OnUpgrade>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// The body until somebody takes it. What nobody took is read and thrown away, for a while: a client in the middle of a long upload reads
/// the refusal only when the connection is not closed under its hands.
pub(crate) struct Remaining(Option<Incoming>);

impl Remaining {
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
    pub(crate) fn take(&mut self) -> Option<Incoming> {
        self.0.take()
    }
    fn as_ref(&self) -> Option<&Incoming> {
        self.0.as_ref()
    }
}

impl Drop for Remaining {
    fn drop(&mut self) {
        if let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) {
            tokio::spawn(discard(body));
        }
    }
}

async fn discard(mut body: Incoming) {
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DISCARD, reading).await;
}

impl Call {
    pub(crate) fn query(&self) -> Query<'_> {
        Query::parse(self.parts.uri.query().unwrap_or(""))
    }
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Filters> {
        Filters::parse(self.query().get("filters"), known)
    }
    /// The whole body of a request that speaks JSON; `None` when there is none.
    pub(crate) async fn json_bytes(&mut self) -> Result<Option<Bytes>> {
        let kind = self.parts.headers.get(header::CONTENT_TYPE);
        let kind = kind
            .map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned())
            .unwrap_or_default();
        if let Some(body) = self.seen.take() {
            if kind.is_empty() && body.is_empty() {
                return Ok(None);
            }
            check_is_json(&kind)?;
            return Ok(Some(body).filter(|body| !body.is_empty()));
        }
        let is_empty = self
            .body
            .as_ref()
            .is_none_or(|body| body.is_end_stream() || body.size_hint().exact() == Some(0));
        if kind.is_empty() && is_empty {
            return Ok(None);
        }
        check_is_json(&kind)?;
        let body = self.bytes().await?;
        Ok(Some(body).filter(|body| !body.is_empty()))
    }
    /// A body that must be there.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        let body = self.json_bytes().await?.unwrap_or_default();
        gantry_docker_api::create::json(&body)
    }
    /// A body that may be absent.
    pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(&mut self) -> Result<T> {
        match self.json_bytes().await? {
            Some(body) => gantry_docker_api::create::json(&body),
            None => Ok(T::default()),
        }
    }
    pub(crate) async fn bytes(&mut self) -> Result<Bytes> {
        let too_big = || {
            Error::invalid(format!(
                "the request's body is larger than {JSON_LIMIT} bytes"
            ))
        };
        let Some(mut body) = self.body.take() else {
            return Ok(Bytes::new());
        };
        if body.size_hint().lower() > JSON_LIMIT as u64 {
            self.body = Remaining::new(body);
            return Err(too_big());
        }
        let mut whole = BytesMut::new();
        let mut only: Option<Bytes> = None;
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|e| Error::invalid("reading the request's body").with_source(e))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if whole.len() + only.as_ref().map_or(0, Bytes::len) + data.len() > JSON_LIMIT {
                self.body = Remaining::new(body);
                return Err(too_big());
            }
            // Nearly every body is one frame, which then needs no copy.
            match (only.take(), whole.is_empty()) {
                (None, true) => only = Some(data),
                (first, _) => {
                    whole.extend_from_slice(&first.unwrap_or_default());
                    whole.extend_from_slice(&data);
                }
            }
        }
        Ok(only.unwrap_or_else(|| whole.freeze()))
    }
    /// The body for a thread that reads it: bounded ahead, however long it is.
    pub(crate) fn reader(&mut self) -> BodyReader {
        let (frames, channel) = mpsc::channel(FRAMES_AHEAD);
        if let Some(mut body) = self.body.take() {
            tokio::spawn(async move {
                while let Some(frame) = body.frame().await {
                    let item = match frame {
                        Ok(frame) => frame
                            .into_data()
                            .map_err(|_| io::Error::other("a trailer instead of data")),
                        Err(e) => Err(io::Error::other(e)),
                    };
                    if frames.send(item).await.is_err() {
                        return discard(body).await;
                    }
                }
            });
        }
        BodyReader {
            channel,
            rest: Bytes::new(),
        }
    }
    /// A number that must be there.
    pub(crate) fn required_number(&self, key: &str) -> Result<i64> {
        self.query()
            .number(key)?
            .ok_or_else(|| Error::invalid("strconv.Atoi: parsing \"\": invalid syntax"))
    }
    /// Terminal size: columns and rows from `w` and `h`.
    pub(crate) fn size(&self) -> Result<(u16, u16)> {
        let side = |key| {
            let number = self.required_number(key)?;
            u16::try_from(number).map_err(|_| {
                Error::invalid(format!(
                    "invalid resize {key} {number}: a terminal has 0 to 65535 rows and columns"
                ))
            })
        };
        Ok((side("w")?, side("h")?))
    }
}

/// Content types as Docker checks them.
fn check_is_json(kind: &str) -> Result<()> {
    let bare = kind.split(';').next().unwrap_or("").trim();
    if bare.is_empty() {
        return Err(Error::invalid(format!(
            "malformed Content-Type header ({kind}): mime: no media type"
        )));
    }
    if !bare.eq_ignore_ascii_case("application/json") {
        return Err(Error::invalid(format!(
            "unsupported Content-Type header ({kind}): must be 'application/json'"
        )));
    }
    Ok(())
}

/// A request's body as a blocking reader. A client that goes away is an error, not an early end.
pub(crate) struct BodyReader {
    channel: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl io::Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.channel.blocking_recv() {
                Some(frame) => self.rest = frame?,
                None => return Ok(0),
            }
        }
        let size = self.rest.len().min(buffer.len());
        buffer[..size].copy_from_slice(&self.rest.split_to(size));
        Ok(size)
    }
}
