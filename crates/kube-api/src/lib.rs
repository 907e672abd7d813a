//! Kubernetes documents and their pure rules: schema, defaulting, validation, patch, merge, apply.

#![forbid(unsafe_code)]
