//! The OCI runtime and the per-container supervisor. Everything here runs in the small static program
//! `gantry-runtime`: single-threaded, no async runtime.
//!
//! ```text
//! gantry-runtime create|start|run|exec|…   [`cli`]         runc's command line, over a bundle
//! gantry-runtime spawner                   [`spawner`]     child of the daemon; forks a supervisor per container
//! (forked) supervisor <id>                 [`supervisor`]  parent of one container: stdio, log, exits, exec, ports
//! (forked) init                            [`launch`]      from clone3 to the exec of the user's program
//! ```
//! Start with [`launch::launch`]: both the command line and the supervisor make containers through it.
//! [`proto`] is what the daemon and a supervisor say to each other.
//!
//! Not here: images, names, networks' addresses, restart policies: the daemon decides, this acts.
//!
//! Spec: OCI runtime-spec 1.2.

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod cli;
pub mod demo;
mod devices;
pub mod document;
mod hooks;
mod init;
pub mod launch;
mod mounts;
mod process;
pub mod proto;
pub mod reaper;
pub mod seccomp;
pub mod spawner;
pub mod supervisor;
mod users;
pub mod validate;

pub use mounts::{LAYER, SUBPATH};
