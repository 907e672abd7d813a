//! Test worlds: a running `gantry up` of the real program in directories of its own, and the real docker client beside it.
//!
//! ```text
//! World::new(program)        starts `gantry up`; data, run directory, socket and instance name are its own
//! World::isolated(program)   the same in a network namespace of its own: ports, bridges and rules meet nobody's
//! world.docker(&["ps"])      the real docker client;  world.gantry(&["status"])  our own command
//! world.kill(), world.up()   `kill -9` of the daemon, and its successor
//! world.purge()              `gantry down --purge`, then nothing of the world may be left ([`leftovers`])
//! ```
//! Dropping a world purges it and panics when something is left, unless the test fails already.
//!
//! Everything here panics with what happened: a test has nobody else to report to.

#![forbid(unsafe_code)]

pub mod images;
pub mod leftovers;
mod run;
mod world;

pub use run::{Done, alive, eventually, run};
pub use world::{Options, World};
