//! Errors of single fields in Kubernetes' words, and the `Status` that carries them.
//!
//! Spec: Kubernetes, "API conventions", Response status kind; causes as `kubectl` prints them.

use serde_json::{Value, json};
use std::fmt;

/// Errors of one document that are reported; the rest is not looked for.
pub const ERRORS_LIMIT: usize = 1000;
/// Bytes of a bad value that an error repeats: a document must not come back many times its size.
pub const BAD_VALUE_LIMIT: usize = 64 * 1024;

/// A place in a document, as `spec.containers[0].image` or `metadata.labels[app]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The first step.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// A field of the object here.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// An item of the list here.
    #[must_use]
    pub fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    /// A value of the map here.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Something that it refers to is not there.
    NotFound,
    /// It is missing or empty.
    Required,
    /// It stands twice.
    Duplicate,
    /// It is malformed.
    Invalid,
    /// It breaks a rule; the value is not shown.
    Omitted,
    /// It is none of the values of its enumeration.
    NotSupported,
    /// It may not be set or changed here.
    Forbidden,
    /// It has too many bytes.
    TooLong,
    /// It has too many items.
    TooMany,
    /// It is of another JSON type than its schema says.
    TypeInvalid,
    /// A fault of the server.
    Internal,
}

impl Fault {
    /// The `reason` of a cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid | Self::Omitted => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid | Self::Omitted => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One fault of one field. `Display` is Kubernetes' line: `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// The kind of fault.
    pub fault: Fault,
    /// Where.
    pub field: String,
    /// The value; not shown with `Required`, `Forbidden` and `TooLong`.
    pub bad: Value,
    /// Why; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The line without its field: the `message` of a cause.
    pub fn body(&self) -> String {
        let mut text = self.fault.words().to_owned();
        match self.fault {
            Fault::Required
            | Fault::Forbidden
            | Fault::TooLong
            | Fault::Internal
            | Fault::Omitted => {}
            _ => {
                let mut bad = match &self.bad {
                    Value::String(word) => quoted(word),
                    other => other.to_string(),
                };
                if bad.len() > BAD_VALUE_LIMIT {
                    let mut end = BAD_VALUE_LIMIT;
                    while !bad.is_char_boundary(end) {
                        end -= 1;
                    }
                    bad.truncate(end);
                    bad.push_str("...");
                }
                text = format!("{text}: {bad}");
            }
        }
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A string as Go's `%q` writes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The faults that were found so far, in order.
#[derive(Debug, Default)]
pub(crate) struct Errors(pub(crate) Vec<FieldError>);

impl Errors {
    pub(crate) fn push(
        &mut self,
        fault: Fault,
        path: &Path,
        bad: Value,
        detail: impl Into<String>,
    ) {
        if self.0.len() < ERRORS_LIMIT {
            self.0.push(FieldError {
                fault,
                field: path.to_string(),
                bad,
                detail: detail.into(),
            });
        }
    }

    pub(crate) fn required(&mut self, path: &Path, detail: &str) {
        self.push(Fault::Required, path, Value::String(String::new()), detail);
    }

    pub(crate) fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(Fault::Forbidden, path, Value::String(String::new()), detail);
    }

    pub(crate) fn invalid(
        &mut self,
        path: &Path,
        bad: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.push(Fault::Invalid, path, bad.into(), detail);
    }

    /// An invalid value that is not repeated.
    pub(crate) fn omitted(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(Fault::Omitted, path, Value::Null, detail);
    }

    /// One error for each sentence.
    pub(crate) fn invalid_each(&mut self, path: &Path, bad: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(path, bad, detail);
        }
    }

    pub(crate) fn duplicate(&mut self, path: &Path, bad: impl Into<Value>) {
        self.push(Fault::Duplicate, path, bad.into(), "");
    }

    pub(crate) fn not_found(&mut self, path: &Path, bad: impl Into<Value>) {
        self.push(Fault::NotFound, path, bad.into(), "");
    }

    pub(crate) fn not_supported(&mut self, path: &Path, bad: impl Into<Value>, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|word| quoted(word)).collect();
        let detail = match &supported[..] {
            [] => String::new(),
            some => format!("supported values: {}", some.join(", ")),
        };
        self.push(Fault::NotSupported, path, bad.into(), detail);
    }

    pub(crate) fn too_long(&mut self, path: &Path, limit: usize) {
        let bytes = if limit == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {limit} {bytes}");
        self.push(
            Fault::TooLong,
            path,
            Value::String("<value omitted>".to_owned()),
            detail,
        );
    }

    pub(crate) fn too_many(&mut self, path: &Path, actual: usize, limit: usize) {
        let items = if limit == 1 { "item" } else { "items" };
        let detail = format!("must have at most {limit} {items}");
        self.push(Fault::TooMany, path, json!(actual), detail);
    }
}

/// All errors in one line, as the message of a `Status` has them: one alone bare, more in brackets, none twice.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut lines: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let line = error.to_string();
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    match &lines[..] {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}

/// The `Status` (422) of an object that was refused: `group` is empty for core, `name` may be empty.
pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Value {
    let full = if group.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}.{group}")
    };
    let causes: Vec<Value> = errors
        .iter()
        .map(|error| json!({"reason": error.fault.reason(), "message": error.body(), "field": error.field}))
        .collect();
    let message = if errors.is_empty() {
        format!("{full} {} is invalid", quoted(name))
    } else {
        format!("{full} {} is invalid: {}", quoted(name), aggregate(errors))
    };
    let mut details = serde_json::Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details.insert(key.to_owned(), json!(value));
        }
    }
    details.insert("causes".to_owned(), json!(causes));
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Invalid", "details": details, "code": 422,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_stands_alone_and_more_in_brackets() {
        let mut errors = Errors::default();
        errors.required(&Path::new("spec").child("containers"), "");
        let one = invalid("", "Pod", "a", &errors.0);
        assert_eq!(
            one["message"],
            "Pod \"a\" is invalid: spec.containers: Required value"
        );
        errors.invalid(&Path::new("spec").child("replicas"), -1, "too small");
        errors.invalid(&Path::new("spec").child("replicas"), -1, "too small");
        let two = invalid("apps", "Deployment", "a", &errors.0);
        assert_eq!(
            two["message"],
            "Deployment.apps \"a\" is invalid: [spec.containers: Required value, spec.replicas: Invalid value: -1: too small]"
        );
        assert_eq!(two["details"]["causes"][1]["reason"], "FieldValueInvalid");
        assert_eq!(two["details"]["causes"][1]["field"], "spec.replicas");
        assert_eq!(two["code"], 422);
    }

    #[test]
    fn strings_are_quoted_as_go_does() {
        assert_eq!(quoted("a\"b\\\n\u{1}é"), "\"a\\\"b\\\\\\n\\x01é\"");
    }
}
