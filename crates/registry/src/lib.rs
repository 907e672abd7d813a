//! A registry: distribution-spec 1.1 over files, for docker, podman, skopeo, oras and whoever else speaks it.
//!
//! ```text
//! server (connections, TLS) ─▶ api (endpoints) ─▶ store (blobs, manifests, tags as files)
//!                               │  access (who may)   upload (what has arrived so far)
//!                               └─ policy, limits
//! ```
//! Start with [`store`], which draws the files; [`api`] has one function for each section of the spec.
//! [`Registry::collect`] takes away what nothing names.
//! Not here: the client's side of pull and push (crate `image`), the command line (crate `gantry`).
//!
//! Invariants
//! * Any number of servers share one folder and none knows of the others: everything appears by a rename.
//! * What was answered with 201 is synced, and every byte of a blob or manifest is proved before it is sent.
//! * Every body, list, header and name has a limit.
//!
//! Spec: OCI distribution-spec 1.1, image-spec 1.1; Docker's token authentication.

#![forbid(unsafe_code)]

pub mod access;
mod api;
mod body;
mod collect;
mod error;
mod limits;
mod manifest;
mod mirror;
mod name;
pub mod policy;
mod route;
mod server;
mod store;
mod sums;
mod upload;

pub use collect::{Report, Run};
pub use server::{Listener, preface, serve, tls};

use access::Access;
use error::Result;
use limits::Limits;
use name::Repository;
use policy::{Policy, Watched};
use std::path::Path;
use std::sync::Arc;
use store::Store;

/// One registry: a folder and what is remembered of it. Shared by all connections.
#[derive(Debug)]
pub struct Registry {
    store: Arc<Store>,
    kept: Arc<upload::Kept>,
    access: Access,
    policy: Arc<Watched<Policy>>,
    limits: Arc<Limits>,
    upstreams: mirror::Upstreams,
}

impl Registry {
    /// Opens the folder `root`, making it if need be. Fails in one sentence.
    pub fn open(root: &Path) -> Result<Arc<Self>, String> {
        let store = Store::open(root).map_err(|e| format!("opening {}: {e}", root.display()))?;
        let policy = Arc::new(Watched::open(root.join("policy.json"))?);
        let limits = Arc::new(Limits::new(Arc::clone(&policy)));
        let access = Access::open(&store, Arc::clone(&limits))?;
        Ok(Arc::new(Self {
            store: Arc::new(store),
            kept: Arc::default(),
            access,
            policy,
            limits,
            upstreams: mirror::Upstreams::default(),
        }))
    }

    /// Whether everybody may do everything: such a registry must not listen beyond loopback.
    pub fn is_open(&self) -> bool {
        self.access.is_open()
    }

    fn policy(&self) -> Arc<Policy> {
        self.policy.get().unwrap_or_default()
    }
    fn blob_limit(&self) -> u64 {
        self.policy().blob_limit()
    }
    fn is_immutable(&self, name: &Repository, tag: &str) -> bool {
        self.policy().is_immutable(name.as_str(), tag)
    }

    /// Refuses what would go over the repository's quota or the limit of one blob.
    fn room(&self, name: &Repository, more: u64) -> Result<()> {
        let policy = self.policy();
        if more > policy.blob_limit() {
            return Err(error::Error::too_large(
                "the blob is larger than this registry takes",
            ));
        }
        let Some(quota) = policy.rule(name.as_str()).and_then(|rule| rule.quota_bytes) else {
            return Ok(());
        };
        let blobs = self.store.linked(name, "_blobs")?;
        let sizes = blobs
            .iter()
            .filter_map(|digest| std::fs::metadata(self.store.blob_path(digest)).ok());
        let used: u64 = sizes.map(|meta| meta.len()).sum();
        if used.saturating_add(more) > quota {
            return Err(error::Error::denied(format!(
                "the repository {name} may hold {quota} bytes and holds {used} already"
            )));
        }
        Ok(())
    }
}
