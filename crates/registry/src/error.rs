//! What a client reads when it is refused. distribution-spec: "Error Codes".

use http::StatusCode;
use std::io;

/// One refusal: status, the spec's code, one sentence.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Headers that go with it: where an upload stands, how to authenticate, when to come back.
    pub(crate) headers: Vec<(http::HeaderName, String)>,
    /// What happened below; logged where the answer is made, never told to the client.
    pub(crate) cause: Option<io::Error>,
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
            cause: None,
        }
    }
    pub(crate) fn blob_unknown() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UNKNOWN",
            "blob unknown to registry",
        )
    }
    pub(crate) fn upload_unknown() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UPLOAD_UNKNOWN",
            "blob upload unknown to registry",
        )
    }
    pub(crate) fn upload_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }
    pub(crate) fn manifest_unknown() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            "manifest unknown",
        )
    }
    pub(crate) fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }
    pub(crate) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }
    pub(crate) fn name_unknown() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            "repository name not known to registry",
        )
    }
    pub(crate) fn name_invalid() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            "invalid repository name",
        )
    }
    pub(crate) fn size_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", message)
    }
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }
    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }
    pub(crate) fn unsupported() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "the operation is unsupported",
        )
    }
    pub(crate) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "there is nothing here; the API is below /v2/",
        )
    }
    pub(crate) fn internal(cause: io::Error) -> Self {
        let full = matches!(
            cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let (status, message) = if full {
            (
                StatusCode::INSUFFICIENT_STORAGE,
                "the registry's disk is full",
            )
        } else {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the registry could not read or write its files",
            )
        };
        Self {
            cause: Some(cause),
            ..Self::new(status, "UNKNOWN", message)
        }
    }
    /// The client stopped sending, or sent what is no HTTP.
    pub(crate) fn broken_body() -> Self {
        Self::upload_invalid("the request's body ended early")
    }
    #[must_use]
    pub(crate) fn with(mut self, name: http::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
    /// The document of the spec.
    pub(crate) fn document(&self) -> Vec<u8> {
        let document = serde_json::json!({
            "errors": [{ "code": self.code, "message": self.message, "detail": serde_json::Value::Null }]
        });
        serde_json::to_vec(&document).expect("a JSON value can be written")
    }
}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        Self::internal(cause)
    }
}
