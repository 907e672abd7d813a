//! System calls, thin and safe. Every `unsafe` of the workspace is here.

pub mod capabilities;
pub mod cgroup;
pub mod conntrack;
pub mod dirfd;
pub mod entry;
pub mod ipc;
pub mod landlock;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod net;
pub mod netlink;
pub mod nft;
pub mod process;
pub mod procfs;
pub mod program;
pub mod pty;
pub mod seccomp;
pub mod view;
