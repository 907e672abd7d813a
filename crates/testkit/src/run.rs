//! Running a command to its end, and waiting for a condition.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A command that ended.
#[derive(Debug, Clone)]
pub struct Done {
    pub command: String,
    /// 128 + n when signal n ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// stdout without the white space at its ends; panics when the command failed.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.stdout.trim().to_owned()
    }

    /// stderr without the white space at its ends; panics when the exit code is another one.
    #[track_caller]
    pub fn fails(&self, code: i32) -> String {
        assert_eq!(self.code, code, "{self}");
        self.stderr.trim().to_owned()
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs `command` to its end, stdin closed unless `input` is given.
#[track_caller]
pub fn run(command: &mut Command, input: Option<&[u8]>) -> Done {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let text = words.join(" ");
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("starting {text}: {e}"));
    let writer = input.map(|bytes| {
        let mut stdin = child.stdin.take().expect("stdin was made a pipe");
        let bytes = bytes.to_vec();
        // On a thread of its own: the command may answer before it has read everything.
        std::thread::spawn(move || {
            let _ = stdin.write_all(&bytes);
        })
    });
    let output = child
        .wait_with_output()
        .unwrap_or_else(|e| panic!("waiting for {text}: {e}"));
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let code = output
        .status
        .code()
        .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Done {
        command: text,
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Asks until the answer is there; panics with the last objection after `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(objection) if Instant::now() >= end => {
                panic!("{what}: not within {limit:?}: {objection}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Whether process `pid` runs. One that ended and waits to be collected does not.
pub fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}
