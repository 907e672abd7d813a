//! The registry: distribution-spec 1.1 over files.

#![forbid(unsafe_code)]
