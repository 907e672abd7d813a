//! The Open Container Initiative's documents as types, and the parsers of what people type. No I/O.
//!
//! [`runtime`] runtime-spec 1.2 · [`image`] image-spec 1.1 · [`digest`] · [`reference`] image names as Docker reads them.

#![forbid(unsafe_code)]

pub mod digest;
pub mod image;
pub mod reference;
pub mod runtime;

pub use digest::Digest;
pub use reference::Reference;
