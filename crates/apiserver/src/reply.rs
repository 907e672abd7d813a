//! Answers: bodies, headers, streams.

use crate::status::Status;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use std::convert::Infallible;

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;
pub type Reply = Response<Body>;

pub(crate) fn bytes(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(text.into()).boxed_unsync());
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

pub(crate) fn json(status: StatusCode, document: &Value) -> Reply {
    match serde_json::to_vec(document) {
        Ok(text) => bytes(status, "application/json", text),
        Err(e) => refusal(&Status::internal(e)),
    }
}

pub(crate) fn text(text: impl Into<String>) -> Reply {
    bytes(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        text.into().into_bytes(),
    )
}

pub(crate) fn refusal(status: &Status) -> Reply {
    let text = serde_json::to_vec(&status.document()).unwrap_or_default();
    let mut reply = bytes(status.code, "application/json", text);
    if let Some(seconds) = status.retry_after {
        reply
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

/// A stream of lines that ends when it ends.
pub(crate) fn stream(lines: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Reply {
    use futures_util::StreamExt;
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let mut reply = Response::new(StreamBody::new(frames).boxed_unsync());
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    reply
}

/// Says something beside the answer, as kubectl shows: `Warning: …`.
pub(crate) fn warn(reply: &mut Reply, warnings: &[String]) {
    for text in warnings {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append(header::WARNING, value);
        }
    }
}
