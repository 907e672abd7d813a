//! Where a build's result goes besides this node's images: archives and folders of the client's.

use super::Builds;
use super::control::{refused, tags};
use super::progress::Vertices;
use super::session::Session;
use bollard_buildkit_proto::moby::filesync::v1::{BytesMessage, file_send_client::FileSendClient};
use gantry_base::{Error, ErrorKind, Result};
use gantry_build::Built;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of one message of an archive.
const PIECE: usize = 256 << 10;
const PIECES_AHEAD: usize = 8;

pub(super) async fn export(
    builds: &Builds,
    session: &Arc<Session>,
    vertices: &Arc<Vertices>,
    built: &Arc<Built>,
    kind: &str,
    attributes: &HashMap<String, String>,
) -> Result<HashMap<String, String>> {
    let names = attributes.get("name").map_or("", String::as_str);
    let mut answer = HashMap::from([
        (
            "containerimage.config.digest".to_owned(),
            built.id.to_string(),
        ),
        ("containerimage.digest".to_owned(), built.id.to_string()),
    ]);
    if !names.is_empty() {
        answer.insert("image.name".into(), names.to_owned());
    }
    let key = format!("export {kind}");
    match kind {
        "moby" | "image" => {
            vertices.start(&key, "exporting to image");
            vertices.status(&key, &format!("writing image {}", built.id));
            for tag in tags(names)? {
                vertices.status(&key, &format!("naming to {}", tag.canonical()));
                crate::images::publish(builds.builder().engine(), &tag.to_string(), "tag");
            }
            vertices.complete(&key, false, None);
            if attributes.get("push").is_some_and(|text| text == "true") {
                return Err(Error::new(
                    ErrorKind::NotImplemented,
                    "a build does not push: use docker push afterwards",
                ));
            }
            Ok(answer)
        }
        "tar" | "docker" | "oci" => {
            vertices.start(&key, &format!("exporting to {kind}"));
            let images = builds.builder().engine().images().clone();
            let what = built.clone();
            let mut wanted: Vec<String> = tags(names)?.iter().map(ToString::to_string).collect();
            if wanted.is_empty() {
                wanted.push(built.id.to_string());
            }
            let is_tree = kind == "tar";
            let sent = send(session, move |out| {
                if is_tree {
                    what.tar(out)
                } else {
                    images.save(&wanted, out)
                }
            })
            .await;
            vertices.complete(&key, false, sent.as_ref().err().map(Error::chain));
            sent.map(|()| answer)
        }
        "cacheonly" | "" => Ok(answer),
        "local" => Err(Error::new(
            ErrorKind::NotImplemented,
            "output type local is not supported: use --output type=tar,dest=FILE and unpack it",
        )),
        other => Err(Error::not_found(format!(
            "exporter {other:?} could not be found"
        ))),
    }
}

/// Streams what `write` writes to the client.
async fn send(
    session: &Arc<Session>,
    write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (pieces, queue) = mpsc::channel::<BytesMessage>(PIECES_AHEAD);
    let outgoing =
        futures_util::stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)));
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = Pieces {
            pieces,
            buffer: Vec::with_capacity(PIECE),
        };
        write(&mut out)?;
        out.flush()
            .map_err(|e| Error::new(ErrorKind::Unavailable, "sending the result").with_source(e))
    });
    let mut incoming = FileSendClient::new(session.channel.clone())
        .diff_copy(outgoing)
        .await
        .map_err(|status| refused("sending the result to the client", &status))?
        .into_inner();
    // The client says nothing; its end is its receipt.
    loop {
        match incoming.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(status) => return Err(refused("sending the result to the client", &status)),
        }
    }
    writing
        .await
        .map_err(|e| Error::internal("sending the result").with_source(e))?
}

struct Pieces {
    pieces: mpsc::Sender<BytesMessage>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.pieces
            .blocking_send(BytesMessage { data })
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
