//! The terminal and the two-way streams of `run` and `exec`.

use crate::client::{Client, empty};
use anyhow::{Context, bail};
use http::Method;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::{OptionalActions, Termios};
use std::io::{self, IsTerminal, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};

/// A frame of the multiplexed stream longer than this is refused.
const FRAME_LIMIT: usize = 64 << 20;

/// The keyboard as it is, without lines and echo, until this is dropped.
pub struct RawTerminal(Termios);

impl RawTerminal {
    /// Only when stdin is a terminal.
    pub fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(&stdin).context("asking the terminal's state")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw)
            .context("switching the terminal to raw")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Columns and rows of the terminal on stdout.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// Tells the daemon the terminal's size now and at every change, for ever. `path` is the resize endpoint.
pub async fn follow_size(client: &Client, path: &str) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((columns, rows)) = terminal_size() {
            // The process may not have started or be gone; then there is nothing to resize.
            let _ = client
                .send(
                    Method::POST,
                    &format!("{path}?w={columns}&h={rows}"),
                    empty(),
                    &[],
                )
                .await;
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// Copies both ways until the output ends. `input`: whether stdin goes in; `tty`: one raw stream instead of frames.
pub async fn pump(stream: TokioIo<Upgraded>, input: bool, tty: bool) -> anyhow::Result<()> {
    let (mut output, to_process) = tokio::io::split(stream);
    let feeding = input.then(|| tokio::spawn(feed(to_process)));
    let result = if tty {
        copy_raw(&mut output).await
    } else {
        copy_frames(&mut output).await
    };
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    result
}

async fn feed(mut to_process: WriteHalf<TokioIo<Upgraded>>) {
    let (sender, mut pieces) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    // A thread of its own: reading a terminal blocks for as long as nobody types, and nobody waits for this thread.
    let reader = std::thread::Builder::new().name("stdin".into());
    let started = reader.spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count) = io::stdin().lock().read(&mut buffer) {
            if count == 0 || sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    if started.is_err() {
        return;
    }
    let mut gone = false;
    while let Some(piece) = pieces.recv().await {
        gone = to_process.write_all(&piece).await.is_err();
        if gone {
            break;
        }
    }
    if !gone {
        // End of file on our stdin is end of file on the process's; its output goes on.
        let _ = to_process.shutdown().await;
    }
    // Kept until the task is aborted: closing this half early would look like leaving.
    std::future::pending::<()>().await;
}

async fn copy_raw(output: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match output
            .read(&mut buffer)
            .await
            .context("reading the output")?
        {
            0 => return Ok(()),
            count => write(1, &buffer[..count])?,
        }
    }
}

/// Docker's multiplexed stream: stream number, three zeros, length (big endian), bytes.
pub async fn copy_frames(output: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut header = [0; 8];
    let mut buffer = Vec::new();
    loop {
        match output.read_exact(&mut header).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e).context("reading the output"),
        }
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > FRAME_LIMIT {
            bail!("the daemon sent a frame of {length} bytes");
        }
        buffer.resize(length, 0);
        output
            .read_exact(&mut buffer)
            .await
            .context("reading the output")?;
        write(header[0], &buffer)?;
    }
}

fn write(stream: u8, bytes: &[u8]) -> anyhow::Result<()> {
    if stream == 2 {
        let mut err = io::stderr().lock();
        err.write_all(bytes).context("writing to stderr")
    } else {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .context("writing to stdout")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_cut_short_is_an_error_and_a_huge_one_refused() {
        assert!(copy_frames(&mut &b""[..]).await.is_ok());
        assert!(
            copy_frames(&mut &b"\x02\0\0\0\0\0\0\x05ab"[..])
                .await
                .is_err()
        );
        assert!(
            copy_frames(&mut &b"\x01\0\0\0\xff\xff\xff\xff"[..])
                .await
                .is_err()
        );
    }
}
