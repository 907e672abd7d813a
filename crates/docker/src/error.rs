//! From the engine's kinds to HTTP: the one table, and the body that carries the sentence.

use crate::reply::Reply;
use gantry_base::{Error, ErrorKind};
use http::StatusCode;

pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// `{"message":"…"}` with the status of its kind; `NotModified` has no body.
pub(crate) fn reply(error: &Error) -> Reply {
    if error.kind() == ErrorKind::Internal {
        tracing::error!("request failed: {}", error.chain());
    }
    match error.kind() {
        ErrorKind::NotModified => Reply::empty(StatusCode::NOT_MODIFIED),
        kind => Reply::json_with(
            status(kind),
            &Message {
                message: &error.chain(),
            },
        ),
    }
}

/// A failure after the answer has begun, as a line of the JSON stream that clients look for.
pub(crate) fn line(error: &Error) -> bytes::Bytes {
    let text = error.chain();
    let mut line =
        serde_json::to_vec(&serde_json::json!({"errorDetail": {"message": &text}, "error": &text}))
            .unwrap_or_default();
    line.extend_from_slice(b"\r\n");
    line.into()
}

#[derive(serde::Serialize)]
struct Message<'a> {
    message: &'a str,
}

/// Something that exists in Docker and not in this build.
pub(crate) fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::NotImplemented, what)
}
