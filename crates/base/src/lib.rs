//! What every crate may lean on: error kinds, the node database, atomic files.
//!
//! Start with [`Error`]; [`db`] is the one transactional database of a node; [`file`] writes files
//! that are either old or new, never half.
//!
//! This is a closed list: an addition is argued in the change that brings it. Nothing here knows what
//! a container is.

#![forbid(unsafe_code)]

#[cfg(feature = "db")]
pub mod db;
pub mod error;
pub mod file;

pub use error::{Error, ErrorKind, Result, ResultExt};
