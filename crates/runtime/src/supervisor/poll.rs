//! What the loop waits for: an epoll set whose events carry keys into tables.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result};
use std::mem::MaybeUninit;
use std::time::Duration;

/// Events taken from the kernel at a time.
const EVENTS: usize = 32;

/// What kind of thing became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// `R/c/<id>/sock`.
    Listener,
    /// A connection to us.
    Connection,
    /// A process ended.
    Process,
    /// A process's stdin pipe has room.
    Stdin,
    /// Output, or a terminal.
    Stdout,
    Stderr,
    /// A published port.
    Port,
    /// The client's side of a forwarded connection.
    Client,
    /// The container's side of a forwarded connection.
    Target,
    /// A container's answers to one UDP client.
    Flow,
}

const KINDS: [Kind; 10] = [
    Kind::Listener,
    Kind::Connection,
    Kind::Process,
    Kind::Stdin,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Port,
    Kind::Client,
    Kind::Target,
    Kind::Flow,
];

/// Names an entry of a [`Table`]; an entry that came later into the same place has another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) flags: EventFlags,
}

#[derive(Debug)]
pub(super) struct Poll(OwnedFd);

impl Poll {
    pub(super) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    pub(super) fn add(&self, fd: impl AsFd, kind: Kind, key: Key, flags: EventFlags) -> Result<()> {
        epoll::add(&self.0, fd, data(kind, key), flags)
    }

    pub(super) fn modify(
        &self,
        fd: impl AsFd,
        kind: Kind,
        key: Key,
        flags: EventFlags,
    ) -> Result<()> {
        epoll::modify(&self.0, fd, data(kind, key), flags)
    }

    /// Needed before a descriptor is closed that somebody else may hold too: the kernel watches the open file, not the number.
    pub(super) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for events; none after `timeout`, or after a signal.
    pub(super) fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); EVENTS];
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        ready.clear();
        match epoll::wait(&self.0, &mut space[..], timeout.as_ref()) {
            Ok((events, _)) => ready.extend(events.iter().map(|event| {
                let (kind, key) = parse(event.data.u64());
                Ready {
                    kind,
                    key,
                    flags: event.flags,
                }
            })),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn data(kind: Kind, key: Key) -> EventData {
    EventData::new_u64(
        u64::from(key.index) | u64::from(key.generation & 0xff_ffff) << 32 | (kind as u64) << 56,
    )
}

fn parse(data: u64) -> (Kind, Key) {
    let key = Key {
        index: data as u32,
        generation: (data >> 32) as u32 & 0xff_ffff,
    };
    (KINDS[(data >> 56) as usize], key)
}

/// Entries with keys that never name the wrong one, so that an event of something closed a moment ago finds nothing.
#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<(u32, Option<T>)>,
    used: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            used: 0,
        }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.used
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        self.used += 1;
        let free = self.entries.iter().position(|(_, value)| value.is_none());
        let index = free.unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() - 1
        });
        let (generation, place) = &mut self.entries[index];
        *generation = (*generation + 1) & 0xff_ffff;
        *place = Some(value);
        Key {
            index: index as u32,
            generation: *generation,
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (generation, value) = self.entries.get(key.index as usize)?;
        value.as_ref().filter(|_| *generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        value.as_mut().filter(|_| *generation == key.generation)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.used -= 1;
        self.entries[key.index as usize].1.take()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, (generation, value))| {
            let key = Key {
                index: index as u32,
                generation: *generation,
            };
            value.as_ref().map(|value| (key, value))
        })
    }
}
