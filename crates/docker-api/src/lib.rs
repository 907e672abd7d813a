//! The Docker Engine API's documents as types, and their pure rules: decoding, normalising older API versions into the newest
//! shape (here and only here), Docker's texts for durations and states, filters, queries, detach keys. No I/O.
//!
//! ```text
//! query string --query/filters--> typed options      body --create::decode--> CreateContainer (newest shape)
//! engine's facts --container/image/network/volume/system--> the documents that clients read
//! ```
//! [`create`] what `POST /containers/create` asks for; the engine stores it as it is, because this is the field's vocabulary for a
//! single-node container and a second shape of 150 fields would need a converter beside it.
//! [`version`] what a client may claim to speak; [`text`] the sentences that `docker ps` prints; [`change`] the Dockerfile
//! instructions that `import --change` and `commit --change` take.
//!
//! Spec: Docker Engine API 1.24–1.50.

#![forbid(unsafe_code)]

pub mod change;
pub mod container;
pub mod create;
pub mod filters;
pub mod image;
pub mod keys;
pub mod network;
pub mod ports;
pub mod query;
pub mod system;
pub mod text;
pub mod version;
pub mod volume;

pub use filters::Filters;
pub use version::ApiVersion;
