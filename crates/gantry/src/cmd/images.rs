//! `gantry images, load, save, pull, rmi`.

use super::containers::{each, short};
use crate::args::{ListArgs, LoadArgs, Output, RmiArgs, SaveArgs};
use crate::client::{Body, Client, empty, escaped};
use crate::output;
use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use tokio::sync::mpsc;

/// Pieces of an archive that are on their way at one time, and how large one is.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// A progress line longer than this is not one.
const LINE_LIMIT: usize = 1 << 20;

pub async fn list(client: &Client, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let list = client.get("/images/json").await?;
    let images = list.as_array().map_or(&[][..], Vec::as_slice);
    match args.output {
        Output::Json => output::json(&list)?,
        Output::Text if args.quiet => {
            for image in images {
                output::line(short(&image["Id"]))?;
            }
        }
        Output::Text => {
            let mut rows = Vec::new();
            for image in images {
                let tags = image["RepoTags"].as_array().filter(|tags| !tags.is_empty());
                let untagged = vec![Value::String("<none>".to_owned())];
                for tag in tags.unwrap_or(&untagged) {
                    rows.push(vec![
                        tag.as_str().unwrap_or_default().to_owned(),
                        short(&image["Id"]),
                        size(image["Size"].as_u64().unwrap_or(0)),
                    ]);
                }
            }
            output::print(output::table(&["IMAGE", "ID", "SIZE"], &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As people say it: 12.3MB, powers of ten as docker shows them.
pub fn size(bytes: u64) -> String {
    let mut number = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if number < 1000.0 {
            return if unit == "B" {
                format!("{bytes}B")
            } else {
                format!("{number:.1}{unit}")
            };
        }
        number /= 1000.0;
    }
    format!("{number:.1}TB")
}

pub async fn load(client: &Client, args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let source: Box<dyn Read + Send> = match &args.input {
        Some(path) => Box::new(
            std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?,
        ),
        None => {
            if io::IsTerminal::is_terminal(&io::stdin()) {
                bail!("load reads an archive from stdin or from --input FILE");
            }
            Box::new(io::stdin())
        }
    };
    load_archive(client, source, true).await
}

/// Sends an archive to the daemon and, unless `loud` is false, shows what it says.
pub async fn load_archive(
    client: &Client,
    source: Box<dyn Read + Send>,
    loud: bool,
) -> anyhow::Result<ExitCode> {
    let tar = (header::CONTENT_TYPE, "application/x-tar");
    let answer = client
        .send(Method::POST, "/images/load?quiet=1", upload(source), &[tar])
        .await?;
    progress(answer.into_body(), loud).await
}

/// A body that reads as the connection takes it, on a thread that may block.
pub fn upload(mut source: Box<dyn Read + Send>) -> Body {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(PIECES);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let next = match source.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Frame::data(Bytes::from(piece)))
                }
                Err(e) => Err(e),
            };
            let failed = next.is_err();
            if sender.blocking_send(next).is_err() || failed {
                return;
            }
        }
    });
    let pieces = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    StreamBody::new(pieces).boxed_unsync()
}

/// JSON lines of a long operation: streams and statuses are shown if `loud`, an error ends it.
async fn progress(mut body: Incoming, loud: bool) -> anyhow::Result<ExitCode> {
    let mut pending = Vec::new();
    while let Some(piece) = body.frame().await {
        let Ok(bytes) = piece.context("reading the daemon's progress")?.into_data() else {
            continue;
        };
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            show(&line, loud)?;
        }
        if pending.len() > LINE_LIMIT {
            bail!("the daemon sent a progress line of more than {LINE_LIMIT} bytes");
        }
    }
    show(&pending, loud)?;
    Ok(ExitCode::SUCCESS)
}

fn show(line: &[u8], loud: bool) -> anyhow::Result<()> {
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        return Ok(());
    };
    if let Some(error) = message["error"].as_str() {
        bail!("{error}");
    }
    if !loud {
        return Ok(());
    }
    if let Some(text) = message["stream"].as_str() {
        output::print(text)?;
    } else if let Some(text) = message["status"].as_str() {
        eprintln!("{text}");
    }
    Ok(())
}

pub async fn save(client: &Client, args: &SaveArgs) -> anyhow::Result<ExitCode> {
    let names: Vec<String> = args
        .names
        .iter()
        .map(|n| format!("names={}", escaped(n)))
        .collect();
    if args.output.is_none() && io::IsTerminal::is_terminal(&io::stdout()) {
        bail!("save does not write an archive to a terminal; say --output FILE or redirect it");
    }
    let body = client
        .send(
            Method::GET,
            &format!("/images/get?{}", names.join("&")),
            empty(),
            &[],
        )
        .await?
        .into_body();
    // The file is made after the daemon agreed, so that a refusal leaves no empty one.
    let out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(
            std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?,
        ),
        None => Box::new(io::stdout()),
    };
    download(body, out).await?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a body as it comes.
pub async fn download(mut body: Incoming, mut out: Box<dyn Write>) -> anyhow::Result<()> {
    while let Some(piece) = body.frame().await {
        if let Ok(bytes) = piece.context("reading the archive")?.into_data() {
            out.write_all(&bytes).context("writing the archive")?;
        }
    }
    out.flush().context("writing the archive")
}

pub async fn pull(client: &Client, name: &str) -> anyhow::Result<ExitCode> {
    let body = client
        .send(
            Method::POST,
            &format!("/images/create?fromImage={}", escaped(name)),
            empty(),
            &[],
        )
        .await?
        .into_body();
    progress(body, true).await
}

pub async fn remove(client: &Client, args: &RmiArgs) -> anyhow::Result<ExitCode> {
    let force = u8::from(args.force);
    each(client, &args.names, Method::DELETE, |name| {
        format!("/images/{name}?force={force}")
    })
    .await
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_as_docker_writes_them() {
        assert_eq!(super::size(999), "999B");
        assert_eq!(super::size(2_300_000), "2.3MB");
        assert_eq!(super::size(7_100_000_000), "7.1GB");
    }
}
