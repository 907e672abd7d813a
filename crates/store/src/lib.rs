//! The versioned store: keys with revisions, transactions, watches, leases.

#![forbid(unsafe_code)]
