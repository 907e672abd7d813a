//! Finding damage, and the way back: `gantry store check` and `gantry store repair`.

use crate::embedded::{Finding, Role, contents, examine, io_error, lock, names, path_of, sync_dir};
use crate::frame::{self, ALONE, Kind};
use crate::{Error, Result};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a check saw.
#[derive(Debug)]
pub struct Report {
    pub revision: u64,
    pub keys: usize,
    pub files: usize,
    pub bytes: u64,
    pub findings: Vec<Finding>,
}

/// What a repair did.
#[derive(Debug)]
pub struct Repaired {
    pub findings: Vec<Finding>,
    /// Copies of the files as they were, for whoever wants to look.
    pub kept: Vec<PathBuf>,
    /// The revision the store goes on from. It lies beyond every revision that can have been lost, and everything before
    /// it counts as compacted, so that every watcher lists again instead of missing something.
    pub revision: u64,
}

/// Reads every byte of the store in `dir` and changes nothing. [`Error::InUse`] while a gantry has it open.
pub fn check(dir: &Path) -> Result<Report> {
    if !dir.is_dir() {
        return Err(Error::Invalid(format!(
            "{} is no store: there is no such directory",
            dir.display()
        )));
    }
    let _lock = lock(dir)?;
    let contents = contents(dir)?;
    Ok(Report {
        revision: contents.index.revision,
        keys: contents.index.key_count(),
        files: names(dir)?.files.len(),
        bytes: contents.index.total_bytes(),
        findings: contents.findings,
    })
}

/// Takes every damaged entry out. What was damaged is lost, and named in the answer; a key whose newest state is lost shows
/// the one before. A store without damage is left as it is.
pub fn repair(dir: &Path) -> Result<Repaired> {
    let report = check(dir)?;
    if report.findings.is_empty() {
        return Ok(Repaired {
            findings: Vec::new(),
            kept: Vec::new(),
            revision: report.revision,
        });
    }
    let _lock = lock(dir)?;
    let files = names(dir)?.files;
    let mut kept = Vec::new();
    let (mut revision, mut lost) = (1, 0);
    let mut next = 0;
    for (role, id, path) in &files {
        next = *id + 1;
        let damaged = report.findings.iter().any(|f| f.file == *path);
        let mut good = Vec::new();
        // The last file counts as any other: what may be torn is lost either way, and must not be taken for whole.
        let examined = examine(path, false, true, |entry| {
            if matches!(
                entry.kind,
                Kind::Put | Kind::Delete | Kind::Compact | Kind::Revoke
            ) {
                revision = revision.max(entry.numbers[0]);
            }
            if entry.kind == Kind::End {
                revision = revision.max(entry.numbers[1]);
            }
            // Marks speak of offsets that change, the end of a base of a number of frames.
            if !matches!(entry.kind, Kind::Synced) {
                good.push((entry.offset, entry.len));
            }
            Ok(())
        })?;
        lost += examined
            .findings
            .iter()
            .map(|f| f.bytes.max(1))
            .sum::<u64>();
        if damaged || !examined.findings.is_empty() {
            kept.push(replace(path, *role, examined.ended, &good)?);
        }
    }
    // No frame is smaller than its head, so this many revisions at most are gone.
    revision += lost / frame::HEAD as u64 + 1;
    // A file that is missing may have held anything: a step that no clock of writes has made.
    if report.findings.iter().any(|f| f.bytes == 0) {
        revision += 1 << 32;
    }
    let path = path_of(dir, Role::Log, next);
    let mut bytes = Vec::new();
    frame::write(
        &mut bytes,
        Kind::Compact,
        ALONE,
        [revision, revision, 0, 0],
        &[],
        &[],
    );
    write_new(&path, &bytes)?;
    renumber(dir)?;
    sync_dir(dir).map_err(|e| io_error("syncing the store's directory", &e))?;
    Ok(Repaired {
        findings: report.findings,
        kept,
        revision,
    })
}

/// Ids follow each other; after a file got lost they are closed up, from the lowest on.
fn renumber(dir: &Path) -> Result<()> {
    let mut before: Option<u32> = None;
    for (role, id, path) in names(dir)?.files {
        let wanted = before.map_or(id, |before| before + 1);
        if wanted != id {
            let to = path_of(dir, role, wanted);
            std::fs::rename(&path, &to)
                .map_err(|e| io_error(&format!("renaming {}", path.display()), &e))?;
        }
        before = Some(wanted);
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e: std::io::Error| io_error(&format!("writing {}", path.display()), &e);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Puts the good entries of a file in its place and keeps the file beside. Answers where it is kept.
fn replace(path: &Path, role: Role, ended: bool, good: &[(u64, u32)]) -> Result<PathBuf> {
    let failed = |e: std::io::Error| io_error(&format!("repairing {}", path.display()), &e);
    let from = std::fs::File::open(path).map_err(failed)?;
    let temporary = path.with_extension("tmp");
    let file = std::fs::File::create(&temporary).map_err(failed)?;
    let mut out = std::io::BufWriter::new(file);
    let mut bytes = Vec::new();
    for (offset, len) in good {
        bytes.resize(*len as usize, 0);
        from.read_exact_at(&mut bytes, *offset).map_err(failed)?;
        out.write_all(&bytes).map_err(failed)?;
    }
    if role == Role::Base && !ended {
        bytes.clear();
        frame::write(
            &mut bytes,
            Kind::End,
            ALONE,
            [good.len() as u64, 0, 0, 0],
            &[],
            &[],
        );
        out.write_all(&bytes).map_err(failed)?;
    }
    out.flush().map_err(failed)?;
    out.get_ref().sync_all().map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept = (0_u32..)
        .map(|n| path.with_file_name(format!("damaged-{n}-{name}")))
        .find(|kept| !kept.exists())
        .expect("there are more numbers than files");
    // A hard link first: at no moment is there neither the old nor the new file.
    std::fs::hard_link(path, &kept).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    Ok(kept)
}
