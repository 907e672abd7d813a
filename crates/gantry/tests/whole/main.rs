//! The whole program, seen from outside: the real binary, the real docker client, real containers. Needs root.
//!
//! Each test has a [`World`] of its own and leaves nothing behind: dropping the world purges it and looks.

#![forbid(unsafe_code)]

mod beyond;
mod build;
mod compose;
mod contract;
mod debian;
mod demo;
mod docker;
mod front;
mod instance;
mod load;
mod naming;
mod network;
mod networks;
mod own_registry;
mod plugins;
mod registry_clients;
mod survival;
mod verbs;

use gantry_testkit::{Options, World};
use std::time::Duration;

/// The program under test.
const GANTRY: &str = env!("CARGO_BIN_EXE_gantry");
/// How long anything may take that happens in a moment on a quiet machine.
const SOON: Duration = Duration::from_secs(20);

/// A platform in a network namespace of its own, with `busybox` loaded.
#[track_caller]
fn busybox() -> World {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    world
}

/// Directories of its own and no daemon.
#[track_caller]
fn stopped() -> World {
    World::stopped(GANTRY, Options::default())
}

/// How often a test repeats: `usual`, or what `GANTRY_TEST_ROUNDS` says (`make test-long`).
fn rounds(usual: u64) -> u64 {
    std::env::var("GANTRY_TEST_ROUNDS").map_or(usual, |text| {
        text.parse().expect("GANTRY_TEST_ROUNDS is a number")
    })
}
