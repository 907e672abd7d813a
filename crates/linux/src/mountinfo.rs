//! The mount table of this process's mount namespace.
//!
//! Spec: proc(5), `/proc/pid/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What of the file system the mount shows as its root (field 4).
    pub root: String,
    /// Where it is mounted (field 5), with the kernel's escapes undone.
    pub place: PathBuf,
    /// Type of the file system, e.g. `cgroup2`.
    pub kind: String,
    /// The superblock's options, joined by commas; for cgroup v1 the controllers are among them.
    pub options: String,
}

impl Entry {
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }
}

/// The table as it is now, the oldest mount first.
pub fn read() -> io::Result<Vec<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Lines that do not have the form are left out.
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    // The number of optional fields varies; a lone dash ends them.
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let mut back = back.split(' ');
    Some(Entry {
        root: front.next()?.to_owned(),
        place: unescape(front.next()?),
        kind: back.next()?.to_owned(),
        options: back.nth(1).unwrap_or_default().to_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            plain.push(byte);
            at += 4;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_escapes_are_read() {
        let line = r"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(
            parse(line),
            [Entry {
                root: "/mnt1".into(),
                place: PathBuf::from(r"/a b\c"),
                kind: "ext3".into(),
                options: "rw,errors=continue".into(),
            }]
        );
        assert_eq!(parse("garbage"), []);
        assert_eq!(unescape(r"\9z\"), PathBuf::from(r"\9z\"));
    }
}
