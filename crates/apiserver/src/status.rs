//! Failures as Kubernetes words them: `metav1.Status`.
//!
//! Clients decide by `reason`, people and scripts read `message`; both are Kubernetes' own.

use http::StatusCode;
use serde_json::{Map, Value, json};

/// A refusal, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub code: StatusCode,
    pub reason: &'static str,
    pub message: String,
    details: Box<Map<String, Value>>,
    pub retry_after: Option<u64>,
}

pub(crate) type Result<T, E = Status> = std::result::Result<T, E>;

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: StatusCode::from_u16(code).expect("written here"),
            reason,
            message: message.into(),
            details: Box::default(),
            retry_after: None,
        }
    }

    /// Names the object that it is about: `resource` is the plural, `group` its group.
    fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        if !name.is_empty() {
            self.details.insert("name".into(), name.into());
        }
        if !group.is_empty() {
            self.details.insert("group".into(), group.into());
        }
        self.details.insert("kind".into(), resource.into());
        self
    }

    fn causes(mut self, causes: Vec<Value>) -> Self {
        self.details.insert("causes".into(), Value::Array(causes));
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    /// `what` may have no name: `pods is forbidden: …`.
    pub(crate) fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }
    /// A path that is no object: `forbidden: User "u" cannot get path "/x"`.
    pub(crate) fn forbidden_path(why: &str) -> Self {
        let mut status = Self::new(403, "Forbidden", format!("forbidden: {why}"));
        status.details = Box::default();
        status
    }
    pub(crate) fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }
    /// No such path or kind.
    pub(crate) fn no_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }
    pub(crate) fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }
    pub(crate) fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = format!("Operation cannot be fulfilled on {what} {name:?}: {why}");
        Self::new(409, "Conflict", message).about(group, resource, name)
    }
    /// Conflicts of server-side apply, each with its manager's sentence and its field.
    pub(crate) fn apply_conflict(message: String, causes: Vec<(String, String)>) -> Self {
        let causes = causes
            .into_iter()
            .map(|(message, field)| json!({"reason": "FieldManagerConflict", "message": message, "field": field}))
            .collect();
        Self::new(409, "Conflict", message).causes(causes)
    }
    pub(crate) fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    /// A page of a list whose state is gone; `token` goes on from the current one.
    pub(crate) fn continue_expired(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        let mut status = Self::new(410, "Expired", message);
        status
            .details
            .insert("continue".into(), token.to_owned().into());
        status
    }
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }
    pub(crate) fn unsupported_media(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }
    /// Faults of fields: (path, what). `kind` is the kind's name, not the plural.
    pub(crate) fn invalid(group: &str, kind: &str, name: &str, faults: &[Fault]) -> Self {
        let sentences: Vec<_> = faults.iter().map(Fault::sentence).collect();
        let joined = match &sentences[..] {
            [one] => one.clone(),
            more => format!("[{}]", more.join(", ")),
        };
        let what = qualified(group, kind);
        let message = format!("{what} {name:?} is invalid: {joined}");
        let causes = faults
            .iter()
            .map(|f| json!({"reason": f.reason, "message": f.message, "field": f.field}))
            .collect();
        Self::new(422, "Invalid", message)
            .about(group, kind, name)
            .causes(causes)
    }
    pub(crate) fn too_many(message: &str, cause: Option<Value>) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        if let Some(cause) = cause {
            status = status.causes(vec![cause]);
        }
        status.retry_after = Some(1);
        status
    }
    pub(crate) fn internal(what: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {what}");
        Self::new(500, "InternalError", message)
    }
    /// A configuration that does not fit its type: 500 without a reason, as Kubernetes answers.
    pub(crate) fn untyped(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }
    pub(crate) fn unavailable(message: impl Into<String>, seconds: u64) -> Self {
        let mut status = Self::new(503, "ServiceUnavailable", message);
        status.retry_after = Some(seconds);
        status
    }
    pub(crate) fn future_revision(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", format!("Timeout: {message}")).causes(vec![
            json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}),
        ]);
        status.retry_after = Some(1);
        status
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == StatusCode::NOT_FOUND
    }
    pub(crate) fn is_conflict(&self) -> bool {
        self.code == StatusCode::CONFLICT
    }

    /// One more cause, such as the reason why a namespace takes nothing.
    pub(crate) fn with_cause(self, reason: &str, message: &str, field: &str) -> Self {
        self.causes(vec![
            json!({"reason": reason, "message": message, "field": field}),
        ])
    }

    pub(crate) fn document(&self) -> Value {
        let mut details = self.details.clone();
        if let Some(seconds) = self.retry_after {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut metadata = Map::new();
        if let Some(token) = details.remove("continue") {
            metadata.insert("continue".into(), token);
        }
        let mut document = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata,
            "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            document["reason"] = self.reason.into();
        }
        if !details.is_empty() || self.code == StatusCode::NOT_FOUND {
            document["details"] = Value::Object(*details);
        }
        document["code"] = self.code.as_u16().into();
        document
    }
}

impl From<gantry_store::Error> for Status {
    fn from(error: gantry_store::Error) -> Self {
        use gantry_store::Error;
        match error {
            Error::Compacted { requested, oldest } => {
                Self::expired(format!("too old resource version: {requested} ({oldest})"))
            }
            Error::Future { requested, current } => Self::future_revision(requested, current),
            Error::Unavailable(_) | Error::Full(_) => {
                let seconds = error.retry_after().map_or(1, |after| after.as_secs());
                Self::unavailable(error.to_string(), seconds)
            }
            Error::Invalid(message) if message.contains("too large") => Self::new(
                413,
                "RequestEntityTooLarge",
                format!("etcdserver: {message}"),
            ),
            other => Self::internal(other),
        }
    }
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: &'static str,
    pub(crate) field: String,
    /// Without the field: `Required value`.
    pub(crate) message: String,
}

impl From<gantry_kube_api::field::FieldError> for Fault {
    fn from(error: gantry_kube_api::field::FieldError) -> Self {
        Self {
            reason: error.fault.reason(),
            message: error.body(),
            field: error.field,
        }
    }
}

impl Fault {
    pub(crate) fn invalid(field: &str, value: &str, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.to_owned(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }
    pub(crate) fn required(field: &str, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Self {
            reason: "FieldValueRequired",
            field: field.to_owned(),
            message,
        }
    }
    pub(crate) fn forbidden(field: &str, why: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.to_owned(),
            message: format!("Forbidden: {why}"),
        }
    }
    fn sentence(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}
