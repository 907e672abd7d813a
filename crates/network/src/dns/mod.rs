//! Names of containers: the server at 127.0.0.11 in every container that is in a user-defined network.
//!
//! ```text
//! container --127.0.0.11:53--> sockets in its namespace, held by its supervisor and read by the daemon
//!                                  | serve: bounds, UDP and TCP
//!                                  v
//!             directory: names and addresses of the networks it is in   -> answered here
//!             anything else                                             -> the host's servers or those of --dns
//! ```
//! Start with [`serve`]; [`Directory`] knows who is called what; [`message`] reads and writes packets (pure).
//!
//! The sockets outlive the daemon: while none runs, questions wait in the kernel's buffers (a client gives up after some seconds), and
//! the next daemon answers them. Nothing is cached, so that an answer is as true as the directory.
//!
//! Spec: RFC 1034, 1035, 6891 (EDNS), 7766 (TCP).

mod directory;
pub mod message;
mod serve;

pub use directory::{Answer, Directory, Member, Membership, Server};
pub use serve::{Sockets, serve};

/// Where every container finds the server.
pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);
