//! Kubernetes documents and their pure rules. Objects stay JSON documents; a table of the types says what their fields are.
//!
//! document + patch --[`patch`]--> document
//! document, table  --[`schema`]--> fields that no type has
//! labels           --[`selector`]--> chosen or not
//!
//! Start with [`schema::Schema::of`]; [`patch::strategic`] walks the same table.
//! Not here: I/O, storage, HTTP. Not yet here: server-side apply, defaulting, validation of values, printed columns.
//!
//! Invariants
//! * A patch that fails leaves no half-changed document: each takes a document and gives back another.
//! * Everything that a client can make long has a named limit.

#![forbid(unsafe_code)]

pub mod patch;
pub mod schema;
pub mod selector;
