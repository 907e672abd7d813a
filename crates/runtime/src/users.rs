//! Users and groups by the container's own `/etc/passwd` and `/etc/group`, read from inside its root.
//!
//! Spec: passwd(5), group(5); the words of the errors are Docker's.

use crate::launch::Failure;
use gantry_linux::mount;
use gantry_oci::runtime::User as Wanted;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More than any real file has; a container may put anything there.
const FILE_LIMIT: u64 = 4 << 20;

#[derive(Debug, PartialEq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Reads the files of the root that this process is in.
pub(crate) fn resolve(wanted: &Wanted) -> Result<User, Failure> {
    let passwd = read("/etc/passwd");
    let group = match wanted.username.is_empty() {
        true => String::new(),
        false => read("/etc/group"),
    };
    look_up(wanted, &passwd, &group)
}

fn read(path: &str) -> String {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    // A FIFO there must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let Ok(file) = root
        .map_err(std::io::Error::from)
        .and_then(|root| mount::open_in_root(root, Path::new(path), flags))
    else {
        return String::new();
    };
    // A device or a socket there is not read: reading alone can do something.
    let kind = rustix::fs::fstat(&file).map(|s| FileType::from_raw_mode(s.st_mode));
    if kind != Ok(FileType::RegularFile) {
        return String::new();
    }
    let mut bytes = Vec::new();
    let _ = File::from(file).take(FILE_LIMIT).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Entry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Ids above this are negative for some programs; Docker refuses them.
const MAX_ID: u32 = i32::MAX as u32;

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

fn look_up(wanted: &Wanted, passwd: &str, group: &str) -> Result<User, Failure> {
    let home = |entry: Option<&Entry<'_>>| {
        entry
            .map(|e| e.home)
            .filter(|home| !home.is_empty())
            .unwrap_or("/")
            .to_owned()
    };
    if wanted.username.is_empty() {
        let entry = entries(passwd).find(|e| e.uid == wanted.uid);
        return Ok(User {
            uid: wanted.uid,
            gid: wanted.gid,
            groups: wanted.additional_gids.clone(),
            home: home(entry.as_ref()),
        });
    }
    let plain = |text: String| Failure {
        code: 128,
        text,
        plain: true,
    };
    let range = || plain(format!("uids and gids must be in range 0-{MAX_ID}"));
    let (user, group_name) = match wanted.username.split_once(':') {
        Some((user, group)) => (user, group),
        None => (wanted.username.as_str(), ""),
    };
    let as_number = number(user);
    let entry = entries(passwd).find(|e| e.name == user || as_number == Some(e.uid));
    let (uid, mut gid) = match (&entry, as_number) {
        _ if user.is_empty() => (0, 0),
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) if uid <= MAX_ID => (uid, 0),
        (None, Some(_)) => return Err(range()),
        (None, None) => {
            return Err(plain(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let mut groups = Vec::new();
    if group_name.is_empty() {
        if let Some(entry) = &entry {
            groups.extend(member_of(group, entry.name));
        }
    } else {
        let as_number = number(group_name);
        let found = group_entries(group)
            .find(|(name, id, _)| *name == group_name || as_number == Some(*id))
            .map(|(_, id, _)| id);
        gid = match (found, as_number) {
            (Some(id), _) => id,
            (None, Some(id)) if id <= MAX_ID => id,
            (None, Some(_)) => return Err(range()),
            (None, None) => {
                return Err(plain(format!(
                    "unable to find group {group_name}: no matching entries in group file"
                )));
            }
        };
    }
    for &additional in &wanted.additional_gids {
        if !groups.contains(&additional) {
            groups.push(additional);
        }
    }
    for name in &wanted.additional_groups {
        let found = group_entries(group).find(|(known, _, _)| known == name);
        let Some((_, id, _)) = found else {
            return Err(plain(format!(
                "unable to find group {name}: no matching entries in group file"
            )));
        };
        if !groups.contains(&id) {
            groups.push(id);
        }
    }
    Ok(User {
        uid,
        gid,
        groups,
        home: home(entry.as_ref()),
    })
}

fn group_entries(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((name, id, fields.next().unwrap_or("")))
    })
}

fn member_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_entries(group)
        .filter(move |(_, _, members)| members.split(',').any(|m| m == user))
        .map(|(_, id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(username: &str) -> String {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/bin/sh\n";
        let group = "root:x:0:\nweb:x:34:\nlog:x:50:web,x\nssl:x:51:x,web\n";
        let wanted = Wanted {
            username: username.to_owned(),
            additional_gids: vec![7],
            ..Wanted::default()
        };
        match look_up(&wanted, passwd, group) {
            Ok(u) => format!("{} {} {:?} {}", u.uid, u.gid, u.groups, u.home),
            Err(e) => e.text,
        }
    }

    #[test]
    fn as_docker_reads_them() {
        for (username, expected) in [
            ("web", "33 34 [50, 51, 7] /var/www"),
            ("33", "33 34 [50, 51, 7] /var/www"),
            ("web:log", "33 50 [7] /var/www"),
            ("1000", "1000 0 [7] /"),
            ("1000:1001", "1000 1001 [7] /"),
            ("web:99", "33 99 [7] /var/www"),
            (
                "nosuch",
                "unable to find user nosuch: no matching entries in passwd file",
            ),
            (
                "web:no",
                "unable to find group no: no matching entries in group file",
            ),
            ("4000000000", "uids and gids must be in range 0-2147483647"),
        ] {
            assert_eq!(resolve(username), expected, "{username}");
        }
    }
}
