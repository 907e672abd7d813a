//! System calls, thin and safe. Every `unsafe` of the workspace is here.

pub mod dirfd;
pub mod ipc;
pub mod netlink;
pub mod path;
pub mod program;
pub mod view;
