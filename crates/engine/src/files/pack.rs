//! A folder as a tar stream: ustar headers, PAX records where ustar is too small.

use super::tree::{self, kind};
use gantry_linux::dirfd::open_entry;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use tar::{Builder, EntryType, Header};

/// Names that ustar holds without a PAX record.
const USTAR_NAME: usize = 100;
/// Files with several names that are remembered, to write the later ones as links.
const LINK_LIMIT: usize = 1 << 20;

/// Bytes of a file read at once.
const COPY: usize = 128 << 10;

/// Decides by path inside the tree what stays out.
pub(crate) type Skip<'a> = &'a dyn Fn(&[u8], &Stat) -> bool;

/// Writes entries one after another.
pub(crate) struct Packer<'a, W: Write> {
    tar: Builder<W>,
    links: HashMap<(u64, u64), Vec<u8>>,
    /// The tree is an overlay's upper folder: its marks become `.wh.` files.
    layer: bool,
    skip: Skip<'a>,
    buffer: Vec<u8>,
    /// Of the regular files so far.
    pub(crate) bytes: u64,
}

impl<W: Write> Packer<'static, W> {
    pub(crate) fn new(out: W) -> Self {
        Self::with(out, false, &|_, _| false)
    }
}

impl<'a, W: Write> Packer<'a, W> {
    /// For the difference layer of `commit`.
    pub(crate) fn layer(out: W, skip: Skip<'a>) -> Self {
        Self::with(out, true, skip)
    }

    fn with(out: W, layer: bool, skip: Skip<'a>) -> Self {
        Self {
            tar: Builder::new(out),
            links: HashMap::new(),
            layer,
            skip,
            buffer: Vec::new(),
            bytes: 0,
        }
    }

    /// The end mark, and everything flushed.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.flush()
    }

    /// The entry of `dir` itself as `name/`, then what is in it. `dir` open for reading.
    pub(crate) fn folder(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        self.folder_at(dir, name, 0)
    }

    /// What is in `dir`, each name after `prefix`.
    pub(crate) fn entries(&mut self, dir: BorrowedFd<'_>, prefix: &[u8]) -> io::Result<()> {
        self.entries_at(dir, prefix, 0)
    }

    fn folder_at(&mut self, dir: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
        let stat = rustix::fs::fstat(dir)?;
        let inside = [name, b"/"].concat();
        self.header(
            &stat,
            EntryType::Directory,
            &inside,
            b"",
            0,
            tree::xattrs(dir)?,
        )?;
        if self.layer && tree::is_opaque(dir) {
            self.mark(&[&inside[..], b".wh..wh..opq"].concat())?;
        }
        // What a running container has mounted of the kernel's is no file of the container's.
        if depth > 0 && tree::is_kernels_own(dir) || name == b"/dev" && !self.layer {
            return Ok(());
        }
        self.entries_at(dir, &inside, depth)
    }

    fn entries_at(&mut self, dir: BorrowedFd<'_>, prefix: &[u8], depth: usize) -> io::Result<()> {
        if depth > tree::DEPTH_LIMIT {
            return Err(tree::too_deep());
        }
        for name in tree::names(dir)? {
            let path = [prefix, name.as_bytes()].concat();
            match self.entry_at(dir, &name, &path, depth) {
                // Whatever runs in there may remove files while we walk.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// One entry of `dir` under another name, with everything in it if it is a folder.
    pub(crate) fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
    ) -> io::Result<()> {
        self.entry_at(dir, name, path, 0)
    }

    fn entry_at(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let stat = tree::stat_child(dir, name)?;
        if (self.skip)(path, &stat) {
            return Ok(());
        }
        if self.layer && tree::is_whiteout(&stat) {
            let parent = path.len() - name.len();
            return self.mark(&[&path[..parent], b".wh.", name.as_bytes()].concat());
        }
        if kind(&stat) == FileType::Directory {
            let child = tree::open_folder(dir, name)?;
            return self.folder_at(child.as_fd(), path, depth + 1);
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.header(&stat, EntryType::Link, path, &first, 0, Vec::new());
            }
            if self.links.len() < LINK_LIMIT {
                self.links.insert(inode, path.to_vec());
            }
        }
        match kind(&stat) {
            FileType::RegularFile => self.file(dir, name, path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                self.header(
                    &stat,
                    EntryType::Symlink,
                    path,
                    target.to_bytes(),
                    0,
                    Vec::new(),
                )
            }
            FileType::CharacterDevice => self.special(&stat, EntryType::Char, path),
            FileType::BlockDevice => self.special(&stat, EntryType::Block, path),
            FileType::Fifo => self.special(&stat, EntryType::Fifo, path),
            // A socket means nothing without the process that listens.
            FileType::Socket | FileType::Directory | FileType::Unknown => Ok(()),
        }
    }

    fn special(&mut self, stat: &Stat, kind: EntryType, path: &[u8]) -> io::Result<()> {
        self.header(stat, kind, path, b"", 0, Vec::new())
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> io::Result<()> {
        // NONBLOCK: between the look and the opening it may have become a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut file = std::fs::File::from(open_entry(dir, name, flags, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if kind(&stat) != FileType::RegularFile {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let attributes = tree::xattrs(&file)?;
        self.bytes = self.bytes.saturating_add(size);
        self.header(&stat, EntryType::Regular, path, b"", size, attributes)?;
        // The header promised a length: a file that grows is cut there, one that shrinks is filled with zeros.
        let out = self.tar.get_mut();
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(COPY);
            self.buffer.resize(wanted, 0);
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => {
                    out.write_all(&self.buffer[..read])?;
                    left -= read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let padding = (512 - size % 512) % 512;
        io::copy(&mut io::repeat(0).take(left + padding), out)?;
        Ok(())
    }

    /// An empty file that says something about a layer.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(0);
        self.write(header, EntryType::Regular, path, b"", 0, Vec::new())
    }

    fn header(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        size: u64,
        attributes: Vec<(String, Vec<u8>)>,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        }
        self.write(header, kind, path, link, size, attributes)
    }

    fn write(
        &mut self,
        mut header: Header,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        size: u64,
        attributes: Vec<(String, Vec<u8>)>,
    ) -> io::Result<()> {
        let mut records = Vec::new();
        if path.len() > USTAR_NAME {
            record(&mut records, b"path", path);
        }
        if link.len() > USTAR_NAME {
            record(&mut records, b"linkpath", link);
        }
        for (name, value) in &attributes {
            record(
                &mut records,
                format!("SCHILY.xattr.{name}").as_bytes(),
                value,
            );
        }
        if !records.is_empty() {
            let mut extension = Header::new_ustar();
            extension.set_mode(0o644);
            extension.set_entry_type(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            put(&mut extension.as_old_mut().name, b"PaxHeaders.0/entry");
            extension.set_cksum();
            self.tar.append(&extension, &records[..])?;
        }
        header.set_entry_type(kind);
        header.set_size(size);
        put(&mut header.as_old_mut().name, path);
        put(&mut header.as_old_mut().linkname, link);
        header.set_cksum();
        // Only the header: the caller writes the content, whose length may differ from the promise.
        self.tar.get_mut().write_all(header.as_bytes())
    }
}

/// As much of `value` as the field holds. The full one is in a PAX record then.
fn put(field: &mut [u8; 100], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// pax: "%d %s=%s\n", where the number is the record's length with its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_digits() {
        for length in [1, 80, 88, 89, 90, 91, 985, 986, 987, 990] {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; length]);
            let digits = records.iter().position(|b| *b == b' ').unwrap();
            let said: usize = std::str::from_utf8(&records[..digits])
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(said, records.len(), "value of {length}");
        }
    }
}
