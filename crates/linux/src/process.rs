//! What a process can change about itself before it becomes another program, and that step.
//!
//! Spec: prctl(2), setresuid(2), setrlimit(2), sched_setattr(2), ioprio_set(2), keyctl(2), execve(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used in this module take one integer.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into()).map(|_| ())
}

/// The kernel sends this process `signal` when its parent ends. A change of uid or capabilities clears it.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)
}

/// Whether others of the same user may trace this process and read its memory and descriptors.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable))
}

pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Orphans among our descendants become our children.
pub fn set_child_subreaper(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(on))
}

/// Real, effective and saved user of this (single-threaded) process.
pub fn set_user(uid: u32) -> io::Result<()> {
    // SAFETY: only integers. The raw call changes this thread alone, which is the only one.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(|_| ())
}

/// Real, effective and saved group of this (single-threaded) process.
pub fn set_group(gid: u32) -> io::Result<()> {
    // SAFETY: as in set_user.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(|_| ())
}

pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are those of a slice that lives through the call; gid_t is u32 on every 64-bit Linux.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(|_| ())
}

/// `RLIMIT_…` by name.
pub fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "RLIMIT_CPU" => 0,
        "RLIMIT_FSIZE" => 1,
        "RLIMIT_DATA" => 2,
        "RLIMIT_STACK" => 3,
        "RLIMIT_CORE" => 4,
        "RLIMIT_RSS" => 5,
        "RLIMIT_NPROC" => 6,
        "RLIMIT_NOFILE" => 7,
        "RLIMIT_MEMLOCK" => 8,
        "RLIMIT_AS" => 9,
        "RLIMIT_LOCKS" => 10,
        "RLIMIT_SIGPENDING" => 11,
        "RLIMIT_MSGQUEUE" => 12,
        "RLIMIT_NICE" => 13,
        "RLIMIT_RTPRIO" => 14,
        "RLIMIT_RTTIME" => 15,
        _ => return None,
    })
}

pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit lives through the call; no old one is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(|_| ())
}

pub fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: only an integer.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) }).map(|_| ())
}

/// A session keyring of that name, or a new one without a name, so that keys of the caller are out of reach.
pub fn join_session_keyring(name: Option<&CStr>) -> io::Result<i32> {
    let name = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the name is null or a C string that lives through the call. 1 is KEYCTL_JOIN_SESSION_KEYRING.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 1, name) }).map(|serial| serial as i32)
}

/// I/O class (1 real time, 2 best effort, 3 idle) and priority.
pub fn set_io_priority(class: u32, priority: u32) -> io::Result<()> {
    let value = class << 13 | (priority & 0x1fff);
    // SAFETY: only integers. 1 is IOPRIO_WHO_PROCESS, 0 this one.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) }).map(|_| ())
}

/// `struct sched_attr`, first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Scheduling {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn set_scheduling(mut scheduling: Scheduling) -> io::Result<()> {
    scheduling.size = size_of::<Scheduling>() as u32;
    // SAFETY: the struct lives through the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) })
        .map(|_| ())
}

/// Marks every descriptor from `first` on close-on-exec; nothing is closed before that. Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: only a flag of descriptors changes, none is closed.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as u32,
            u32::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    });
    result.map(|_| ())
}

/// Keeps a descriptor over exec.
pub fn keep_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: only a flag of the descriptor changes; a number that is not open gives EBADF.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }.into()).map(|_| ())
}

/// Strings for execve, made before anything can go wrong late.
#[derive(Debug)]
pub struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    /// `None` when one of them holds a zero byte.
    pub fn new<'a>(strings: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let owned = strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .ok()?;
        let mut pointers: Vec<_> = owned.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Some(Self {
            _owned: owned,
            pointers,
        })
    }
}

/// Becomes another program; comes back only with an error.
pub fn exec(path: &CStr, arguments: &Strings, environment: &Strings) -> io::Error {
    // SAFETY: both arrays end with null and their strings are owned by the borrowed values. On success nothing of this program is left.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        );
    }
    io::Error::last_os_error()
}

/// Ends this process at once: no destructors, no exit handlers, no flushing of what a fork copied.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Empties the signal mask and gives every signal its default action, as a new program expects them.
pub fn reset_signals() {
    // SAFETY: a zeroed sigset is filled by sigemptyset before use; SIG_DFL is a valid action for every signal that takes one, the
    // others answer EINVAL, which does not matter.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Starts a command with the signals of a new program; [`std::process::Command`] alone hands on the caller's mask.
pub fn spawn_with_fresh_signals(
    command: &mut std::process::Command,
) -> io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec `reset_signals` makes system calls only: it neither allocates nor takes a lock. There is no
    // safe way to run anything there.
    unsafe {
        command.pre_exec(|| {
            reset_signals();
            Ok(())
        });
    }
    command.spawn()
}

/// Blocks signals and returns a descriptor from which they are read, see [`read_signal`].
pub fn signal_descriptor(signals: &[i32]) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the set is initialised by sigemptyset; it lives through the calls; the new descriptor is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd))
    }
}

/// The next pending signal of a [`signal_descriptor`], if there is one.
pub fn read_signal(descriptor: impl std::os::fd::AsFd) -> io::Result<Option<i32>> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(descriptor, &mut info) {
        // The number is the first field.
        Ok(length) if length == info.len() => Ok(Some(i32::from_ne_bytes([
            info[0], info[1], info[2], info[3],
        ]))),
        Ok(_) => Ok(None),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
