//! What `ADD` takes from elsewhere: URLs, git repositories, archives.

use crate::Failure;
use crate::builder::Build;
use crate::client::{Folder, StepInfo};
use crate::dockerfile::Copy;
use crate::stage::Piece;
use gantry_base::{Error, Result};
use gantry_image::steps::Workspace;
use gantry_linux::mount::open_in_root;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

/// `ADD` of something that is not in the context.
pub(crate) fn is_remote(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://") || is_git(source)
}

fn is_git(source: &str) -> bool {
    source.starts_with("git://")
        || source.starts_with("git@")
        || source.starts_with("ssh://")
        || (source.starts_with("http://") || source.starts_with("https://"))
            && source
                .split('#')
                .next()
                .is_some_and(|url| url.ends_with(".git"))
}

pub(crate) async fn add(
    _build: &Arc<Build>,
    source: &str,
    _copy: &Copy,
    _info: &StepInfo,
) -> Result<Piece, Failure> {
    Err(Error::new(
        gantry_base::ErrorKind::NotImplemented,
        format!("ADD of a URL is not supported: fetch {source} before the build and copy it"),
    )
    .into())
}

/// A named context that is a URL.
pub(crate) async fn context(url: &str, _workspace: &Workspace) -> Result<Arc<Folder>> {
    Err(Error::new(
        gantry_base::ErrorKind::NotImplemented,
        format!("the named context {url} is not supported: it is a folder or docker-image://…"),
    ))
}

/// The file as a tar to read, when it is an archive.
pub(crate) fn archive_in(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Box<dyn Read>>> {
    let file = open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|e| Error::internal(format!("opening {}", path.display())).with_source(e))?;
    archive(File::from(file))
}

pub(crate) fn archive(mut file: File) -> Result<Option<Box<dyn Read>>> {
    let failed = |e: io::Error| Error::internal("reading an archive").with_source(e);
    let mut start = [0; 512];
    let mut filled = 0;
    while filled < start.len() {
        match file.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    file.rewind().map_err(failed)?;
    let start = &start[..filled];
    match start {
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            // Compressed: only a tar in it counts, as in Docker.
            let copy = file.try_clone().map_err(failed)?;
            let is_tar = gantry_engine::holds_tar(copy);
            file.rewind().map_err(failed)?;
            Ok(is_tar.then(|| Box::new(file) as Box<dyn Read>))
        }
        [b'B', b'Z', b'h', ..] => through("bzip2", file),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => through("xz", file),
        _ if filled == 512
            && start.iter().any(|b| *b != 0)
            && gantry_image::tarstream::looks_like_tar(start) =>
        {
            Ok(Some(Box::new(file)))
        }
        _ => Ok(None),
    }
}

/// The two formats that only a program of the machine reads.
fn through(program: &str, file: File) -> Result<Option<Box<dyn Read>>> {
    let child = std::process::Command::new(program)
        .args(["-d", "-c"])
        .stdin(file)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut child = child.map_err(|e| {
        Error::invalid(format!(
            "ADD of a {program} archive needs the program {program} on this machine: install it or recompress with gzip"
        ))
        .with_source(e)
    })?;
    let out = child
        .stdout
        .take()
        .ok_or_else(|| Error::internal("a program without output"))?;
    Ok(Some(Box::new(Decompressed { out, child })))
}

struct Decompressed {
    out: std::process::ChildStdout,
    child: std::process::Child,
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.out.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            let status = self.child.wait()?;
            if !status.success() {
                return Err(io::Error::other(format!(
                    "the archive is damaged: {status}"
                )));
            }
        }
        Ok(read)
    }
}

impl Drop for Decompressed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
