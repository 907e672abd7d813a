//! Netlink without forks, crates or an async runtime: [`wire`] encodes and decodes, [`route`] makes links, addresses and routes.
//!
//! ```text
//! Batch (several messages) --one send--> kernel, which works them off in order and at once --> answers, already queued
//! ```
//! The kernel handles requests of these families inside of the send, so every answer is there when it returns:
//! reading never waits, and a kernel that does not answer is an error instead of a hang.
//!
//! Used by the daemon and by the static program (supervisor, init). Every answer is parsed with bounds.

pub mod route;
pub mod wire;

pub use route::{
    Address, Bridge, Child, ChildKind, Inside, Interface, Netns, Route, Socket as RouteSocket,
    Veth, configure_inside, create_veth,
};
pub use wire::Error;
