//! The Docker face: HTTP on a unix socket, routes and streams over the engine.
//!
//! ```text
//! connection (hyper, HTTP/1.1) → routes::TABLE → handler (decode → engine → encode) → Reply
//!                                                   └ attach, exec: 101, then stream::pump owns the socket
//! ```
//! Start with [`serve`], then [`routes`]: one table. Handlers are thin and lie by subject: [`system`], [`events`], [`containers`],
//! [`exec`], [`archive`], [`images`], [`volumes`], [`networks`]. [`error`] is the one table from kind to status.
//! Not here: what a request means (crate `engine`), how documents look and older versions are read (crate `docker-api`).
//!
//! Invariants
//! * Every body, header and number of connections is bounded; archives are streamed, never held.
//! * A client that goes away ends its waits, follows and streams; what it asked the engine to change is finished.
//!
//! Spec: Docker Engine API 1.24–1.50.

#![forbid(unsafe_code)]

mod archive;
mod authorization;
mod build;
mod buildkit;
mod call;
mod containers;
mod disk;
mod error;
mod events;
mod exec;
mod images;
mod networks;
mod reply;
mod routes;
mod server;
mod stream;
mod system;
mod transfer;
mod volumes;
mod websocket;

pub use buildkit::Builds;
pub use server::serve;
