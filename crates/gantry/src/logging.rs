//! Where the daemon's talk goes: stderr in the foreground, a bounded file `R/gantry.log` when detached.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tracing_subscriber::EnvFilter;

/// `R` usually lies in memory, so the log and its one predecessor stay below twice this.
const LIMIT_BYTES: u64 = 4 << 20;

/// Sets the process-wide subscriber. `GANTRY_LOG` takes tracing's filter syntax. The default is `info` in a file and `warn` on
/// stderr, where a person reads the line that says "ready" and the few after it.
pub fn start(file: Option<&Path>) -> io::Result<()> {
    let default = if file.is_some() { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    match file {
        None => builder
            .with_writer(io::stderr)
            .with_ansi(rustix::termios::isatty(io::stderr()))
            .init(),
        Some(path) => {
            let log = Bounded::open(path)?;
            builder
                .with_writer(move || log.clone())
                .with_ansi(false)
                .init();
        }
    }
    Ok(())
}

/// A log file that is set aside as `<name>.1` when it is full. It is also the process's stderr, so that a panic is kept.
#[derive(Clone)]
struct Bounded(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Bounded {
    fn open(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let written = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner {
            path: path.to_owned(),
            file,
            written,
        }))))
    }
}

fn append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    rustix::stdio::dup2_stderr(&file)?;
    Ok(file)
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Ok(mut inner) = self.0.lock() else {
            return Ok(bytes.len());
        };
        if inner.written > LIMIT_BYTES {
            let mut old = inner.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&inner.path, old)?;
            inner.file = append(&inner.path)?;
            inner.written = 0;
        }
        let count = inner.file.write(bytes)?;
        inner.written += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
