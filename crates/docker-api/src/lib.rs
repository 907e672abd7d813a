//! The Docker Engine API's documents as types, and their pure rules: decoding, normalising older API versions into the newest
//! shape (here and only here), Docker's texts for durations, sizes and states. No I/O.
//!
//! [`create`] what `POST /containers/create` asks for; the engine stores it as it is, because this is the field's vocabulary for a
//! single-node container and a second shape of 150 fields would need a converter beside it.
//!
//! Spec: Docker Engine API 1.24–1.50.

pub mod create;
