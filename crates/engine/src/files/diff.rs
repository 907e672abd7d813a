//! What a container changed: its upper folder compared with the layers below.

use super::tree::{self, kind};
use rustix::fs::{FileType, Stat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Docker's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Modified = 0,
    Added = 1,
    Deleted = 2,
}

/// Changes that one answer may hold.
const CHANGE_LIMIT: usize = 1 << 20;

/// What differs between the overlay of `lowers` (topmost first) and the same with `upper` on top, by absolute path.
/// `skip` names what does not count.
pub(crate) fn changes(
    upper: BorrowedFd<'_>,
    lowers: Vec<OwnedFd>,
    skip: super::pack::Skip<'_>,
) -> io::Result<BTreeMap<Vec<u8>, Change>> {
    let mut walk = Walk {
        skip,
        found: BTreeMap::new(),
    };
    walk.level(upper, &lowers, b"/", 0)?;
    Ok(walk.found)
}

struct Walk<'a> {
    skip: super::pack::Skip<'a>,
    found: BTreeMap<Vec<u8>, Change>,
}

/// What a walk found in one folder.
struct Inside {
    changed: bool,
    scaffold: bool,
}

/// What a name means in the layers below.
enum Below {
    Nothing,
    /// A folder, merged from these.
    Folder(Stat, Vec<OwnedFd>),
    Other(Stat),
}

impl Walk<'_> {
    /// Compares one folder. `lowers`: the same folder in the layers that shine through. Answers whether anything in it changed.
    fn level(
        &mut self,
        upper: BorrowedFd<'_>,
        lowers: &[OwnedFd],
        path: &[u8],
        depth: usize,
    ) -> io::Result<Inside> {
        if depth > tree::DEPTH_LIMIT {
            return Err(tree::too_deep());
        }
        let mut changed = false;
        let mut skipped = 0;
        let upper_names = tree::names(upper)?;
        for name in &upper_names {
            let stat = match tree::stat_child(upper, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                stat => stat?,
            };
            let path = [path, name.as_bytes()].concat();
            if (self.skip)(&path[1..], &stat) {
                skipped += 1;
            } else {
                changed |= self.entry(upper, lowers, name, &stat, path, depth)?;
            }
        }
        if depth > 0 && tree::is_opaque(upper) {
            // Everything below that is not there again was deleted.
            for name in lower_names(lowers)? {
                if upper_names.binary_search(&name).is_err() {
                    self.add([path, name.as_bytes()].concat(), Change::Deleted)?;
                    changed = true;
                }
            }
        }
        Ok(Inside {
            changed,
            // A folder that was only made to hold what is skipped is skipped with it.
            scaffold: skipped > 0 && skipped == upper_names.len(),
        })
    }

    fn entry(
        &mut self,
        upper: BorrowedFd<'_>,
        lowers: &[OwnedFd],
        name: &OsStr,
        stat: &Stat,
        path: Vec<u8>,
        depth: usize,
    ) -> io::Result<bool> {
        let below = below(lowers, name)?;
        if tree::is_whiteout(stat) {
            if matches!(below, Below::Nothing) {
                return Ok(false);
            }
            self.add(path, Change::Deleted)?;
            return Ok(true);
        }
        if kind(stat) != FileType::Directory {
            let change = match below {
                Below::Nothing => Some(Change::Added),
                Below::Folder(..) => Some(Change::Modified),
                Below::Other(old) => different(&old, stat).then_some(Change::Modified),
            };
            return change.map_or(Ok(false), |change| {
                self.add(path, change)?;
                Ok(true)
            });
        }
        let folder = match tree::open_folder(upper, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            folder => folder?,
        };
        let inside = [&path[..], b"/"].concat();
        let (own, lowers) = match below {
            Below::Nothing => (Some(Change::Added), Vec::new()),
            Below::Other(_) => (Some(Change::Modified), Vec::new()),
            Below::Folder(old, lowers) => {
                (different(&old, stat).then_some(Change::Modified), lowers)
            }
        };
        let inner = self.level(folder.as_fd(), &lowers, &inside, depth + 1)?;
        if own == Some(Change::Added) && inner.scaffold {
            return Ok(false);
        }
        // A folder whose content changed is changed, even if overlay made it only as a way to the content.
        match own.or(inner.changed.then_some(Change::Modified)) {
            None => Ok(false),
            Some(change) => {
                self.add(path, change)?;
                Ok(true)
            }
        }
    }

    fn add(&mut self, path: Vec<u8>, change: Change) -> io::Result<()> {
        if self.found.len() == CHANGE_LIMIT {
            return Err(io::Error::other(format!(
                "more than {CHANGE_LIMIT} files changed"
            )));
        }
        self.found.insert(path, change);
        Ok(())
    }
}

/// Docker's rule: a folder's size and time are not a change of the folder.
fn different(old: &Stat, new: &Stat) -> bool {
    let same = old.st_mode == new.st_mode
        && old.st_uid == new.st_uid
        && old.st_gid == new.st_gid
        && old.st_rdev == new.st_rdev;
    if !same || kind(new) == FileType::Directory {
        return !same;
    }
    // A time without nanoseconds came from an archive and is compared without them.
    let nanoseconds =
        old.st_mtime_nsec == new.st_mtime_nsec || old.st_mtime_nsec == 0 || new.st_mtime_nsec == 0;
    old.st_size != new.st_size || old.st_mtime != new.st_mtime || !nanoseconds
}

fn below(lowers: &[OwnedFd], name: &OsStr) -> io::Result<Below> {
    let mut folders = Vec::new();
    let mut first = None;
    for lower in lowers {
        let stat = match tree::stat_child(lower, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            stat => stat?,
        };
        if tree::is_whiteout(&stat) {
            break;
        }
        if kind(&stat) != FileType::Directory {
            if first.is_none() {
                return Ok(Below::Other(stat));
            }
            break;
        }
        let folder = tree::open_folder(lower, name)?;
        let opaque = tree::is_opaque(&folder);
        folders.push(folder);
        first.get_or_insert(stat);
        if opaque {
            break;
        }
    }
    Ok(first.map_or(Below::Nothing, |stat| Below::Folder(stat, folders)))
}

/// Names that the merged lower folder shows.
fn lower_names(lowers: &[OwnedFd]) -> io::Result<Vec<std::ffi::OsString>> {
    let mut all = Vec::new();
    for lower in lowers {
        all.extend(tree::names(lower)?);
    }
    all.sort_unstable();
    all.dedup();
    let mut shown = Vec::new();
    for name in all {
        if !matches!(below(lowers, &name)?, Below::Nothing) {
            shown.push(name);
        }
    }
    Ok(shown)
}
