//! Kubernetes documents and their pure rules. Objects stay JSON documents; a table of the types says what their fields are.
//!
//! bytes --[`decode`]--> document, unknown and duplicate fields
//! document + patch --[`patch`]--> document
//! live + configuration --[`apply`]--> document with its managers, or conflicts
//! document         --[`defaults`]--> document with what Kubernetes fills in
//! document (+ old) --[`validate`]--> faults, each with reason and path --[`field`]--> `Status`
//! table            --[`openapi`]--> documents for kubectl
//! schema of a custom resource --[`crd`]--> pruning, defaults, validation, with [`rules`] in CEL
//! labels, fields   --[`selector`], [`field_selector`]--> chosen or not
//!
//! Start with [`schema::Schema::of`]; [`patch::strategic`] and [`defaults::apply`] walk the same table. [`resources`] says how
//! kinds are called in paths.
//! Not here: I/O, storage, HTTP. Not yet here: printed columns.
//!
//! Invariants
//! * A patch that fails leaves no half-changed document: each takes a document and gives back another.
//! * Everything that a client can make long has a named limit.

#![forbid(unsafe_code)]

pub mod apply;
pub mod crd;
pub mod cron;
pub mod decode;
pub mod defaults;
pub mod field;
pub mod field_selector;
pub mod fieldset;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod resources;
pub mod rules;
pub mod schema;
pub mod selector;
pub mod validate;
mod view;
