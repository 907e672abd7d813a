//! Streams of attached processes: Docker's multiplexing, and the pump between a hijacked connection and a process.
//!
//! ```text
//! frame = [stream 0|1|2, 0, 0, 0, length as 4 bytes, big end first] payload      (without a terminal)
//! raw bytes                                                                      (with a terminal)
//! ```

use crate::call::Call;
use crate::reply::{Body, Reply, received, stopped};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use gantry_base::{Error, Result};
use gantry_docker_api::keys::{Typed, Watcher};
use gantry_engine::{Attached, Input, Stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Pieces of output written with one system call at most.
const BATCH: usize = 32;
/// Input is read in pieces of this size.
const INPUT: usize = 32 << 10;
/// How often a connection whose client stopped sending is checked for being gone altogether.
const HANGUP_CHECK: Duration = Duration::from_secs(5);

/// How long a client may take to close a connection on which everything was said.
const LINGER: Duration = Duration::from_secs(5);

/// How long output waits for a client that has not read the answer's head.
const HEAD_PATIENCE: Duration = Duration::from_millis(500);

/// The header of a frame.
pub(crate) fn header(stream: Stream, length: usize) -> [u8; 8] {
    let number = match stream {
        Stream::Stdin => 0,
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    // Pieces are far below 4 GiB: frames from the supervisor are bounded.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [number, 0, 0, 0, a, b, c, d]
}

/// Appends a frame, or the bare bytes of a terminal.
pub(crate) fn put(out: &mut BytesMut, tty: bool, stream: Stream, payload: &[u8]) {
    if !tty {
        out.put_slice(&header(stream, payload.len()));
    }
    out.put_slice(payload);
}

/// The media type of such a stream: since 1.42 it tells the two kinds apart.
pub(crate) fn media_type(call: &Call, tty: bool) -> &'static str {
    if call.version.at_least(42) && !tty {
        MULTIPLEXED
    } else {
        RAW
    }
}

/// How a session ended, as far as the face cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process is through, or the client went away.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// What a hijacked connection will be joined with.
pub(crate) struct Session<F> {
    pub(crate) tty: bool,
    /// Bytes that detach from a terminal.
    pub(crate) keys: Vec<u8>,
    /// Awaited after the client was sent the answer's head, so that its failure is part of the stream.
    pub(crate) attached: F,
}

/// Answers with the streams of a session: 101 and the bare connection if the client asked to upgrade, otherwise 200, output as the
/// answer's body and the request's body as input. `ended` is called when it is over. A session that does not come about says why on
/// its standard output, as in Docker.
pub(crate) fn hijack<F>(
    mut call: Call,
    session: Session<F>,
    ended: impl FnOnce(Ended) + Send + 'static,
) -> Reply
where
    F: Future<Output = Result<Attached>> + Send + 'static,
{
    let Session {
        tty,
        keys,
        attached,
    } = session;
    let kind = media_type(&call, tty);
    let attached = async move { attached.await.unwrap_or_else(|e| said(tty, &e)) };
    let Some(upgrade) = call.upgrade.take() else {
        return over_bodies(kind, tty, attached, call.body.take(), call.stop);
    };
    let watcher = tty.then(|| Watcher::new(keys));
    let stop = call.stop;
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return ended(Ended::Closed);
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else {
            return ended(Ended::Closed);
        };
        let pumping = async {
            let attached = attached.await;
            let socket = parts.io.into_inner();
            // The request says how the streams are framed, not what the process runs on.
            let attached = Attached { tty, ..attached };
            pump(socket, parts.read_buf, attached, watcher, ended).await;
        };
        tokio::select! {
            () = pumping => {}
            () = stopped(stop) => {}
        }
    });
    let mut response = Response::new(Body::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b"UPGRADED"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Reply(response)
}

/// A finished process that printed one sentence.
fn said(tty: bool, error: &Error) -> Attached {
    let (sender, output) = mpsc::channel(1);
    let sentence = format!("{}\r\n", error.chain());
    let _ = sender.try_send((Stream::Stdout, Bytes::from(sentence)));
    Attached {
        tty,
        output,
        input: None,
    }
}

fn over_bodies(
    kind: &'static str,
    tty: bool,
    attached: impl Future<Output = Attached> + Send + 'static,
    mut body: Option<Incoming>,
    stop: watch::Receiver<bool>,
) -> Reply {
    let frames = futures_util::stream::once(attached).flat_map(move |attached| {
        let Attached { output, input, .. } = attached;
        if let (Some(input), Some(body)) = (input, body.take()) {
            tokio::spawn(feed(input, body));
        }
        received(output).map(move |(stream, payload)| {
            let mut frame = BytesMut::with_capacity(8 + payload.len());
            put(&mut frame, tty, stream, &payload);
            Ok(frame.freeze())
        })
    });
    Reply::endless(kind, frames, stop)
}

async fn feed(mut input: Input, mut body: Incoming) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        if input.write(bytes).await.is_err() {
            return;
        }
    }
    input.close().await;
}

/// Moves bytes between client and process until one of them is through. Output is never copied.
async fn pump(
    mut socket: UnixStream,
    early: Bytes,
    attached: Attached,
    watcher: Option<Watcher>,
    ended: impl FnOnce(Ended),
) {
    let Attached {
        tty,
        mut output,
        input,
    } = attached;
    let end = {
        let (mut reading, mut writing) = socket.split();
        tokio::select! {
            _ = send(&mut output, &mut writing, tty) => Ended::Closed,
            end = receive(&mut reading, early, input, watcher) => end,
        }
    };
    drop(output);
    ended(end);
    linger(socket).await;
}

/// Closes so that the client reads everything that was written: a unix socket that is closed with unread input resets its peer, and
/// keys typed while the program ended would cost the client its last output.
async fn linger(mut socket: UnixStream) {
    let _ = socket.shutdown().await;
    let mut scrap = vec![0; 4 << 10];
    let discard = async { while matches!(socket.read(&mut scrap).await, Ok(size) if size > 0) {} };
    let _ = tokio::time::timeout(LINGER, discard).await;
}

async fn send(
    output: &mut mpsc::Receiver<(Stream, Bytes)>,
    client: &mut WriteHalf<'_>,
    tty: bool,
) -> io::Result<()> {
    let mut pieces = Vec::with_capacity(BATCH);
    let mut is_first = true;
    while output.recv_many(&mut pieces, BATCH).await > 0 {
        if std::mem::take(&mut is_first) {
            head_is_read(client.as_ref()).await;
        }
        let headers: Vec<[u8; 8]> = pieces
            .iter()
            .map(|(stream, payload)| header(*stream, payload.len()))
            .collect();
        let mut slices: Vec<IoSlice> = Vec::with_capacity(2 * pieces.len());
        for ((_, payload), header) in pieces.iter().zip(&headers) {
            if !tty {
                slices.push(IoSlice::new(header));
            }
            slices.push(IoSlice::new(payload));
        }
        write_all(client, &mut slices).await?;
        pieces.clear();
    }
    Ok(())
}

/// Waits, for a moment at most, until the client has read the answer's head. Some clients read the head with a buffer and the streams
/// without it (docker-py does): what arrives together with the head would be lost for them.
async fn head_is_read(client: &UnixStream) {
    let reading = async {
        while gantry_linux::ipc::unread_by_peer(client).is_ok_and(|unread| unread > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = tokio::time::timeout(HEAD_PATIENCE, reading).await;
}

pub(crate) async fn write_all(
    client: &mut WriteHalf<'_>,
    slices: &mut [IoSlice<'_>],
) -> io::Result<()> {
    let mut rest = slices;
    // Leading empty pieces would look like a write of nothing.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = client.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

/// Ends only when the user detached or the client is gone.
async fn receive(
    client: &mut ReadHalf<'_>,
    early: Bytes,
    mut input: Option<Input>,
    mut watcher: Option<Watcher>,
) -> Ended {
    let mut piece = early;
    let mut buffer = BytesMut::new();
    loop {
        if !piece.is_empty() {
            let typed = watcher
                .as_mut()
                .map_or(Typed::Unchanged, |watcher| watcher.feed(&piece));
            let (bytes, detach) = match typed {
                Typed::Unchanged => (piece, false),
                Typed::Instead(bytes) => (bytes.into(), false),
                Typed::Detach(bytes) => (bytes.into(), true),
            };
            if let Some(stdin) = input.as_mut().filter(|_| !bytes.is_empty())
                && stdin.write(bytes).await.is_err()
            {
                // The process reads no more; what else the client sends goes nowhere, as with a closed pipe.
                input = None;
            }
            if detach {
                return Ended::Detached;
            }
        }
        buffer.reserve(INPUT);
        match client.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => piece = buffer.split().freeze(),
            Err(_) => return Ended::Closed,
        }
    }
    if let Some(stdin) = input {
        stdin.close().await;
    }
    // The client sends no more but may still listen. Nothing tells a half-closed unix socket from a dead one but a look at its state.
    loop {
        match client.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => tokio::time::sleep(HANGUP_CHECK).await,
            Ok(_) | Err(_) => return Ended::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_docker_api::keys;

    #[test]
    fn frames_are_dockers() {
        assert_eq!(header(Stream::Stdout, 5), [1, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(
            header(Stream::Stderr, 0x0102_0304),
            [2, 0, 0, 0, 1, 2, 3, 4]
        );
        let mut out = BytesMut::new();
        put(&mut out, false, Stream::Stderr, b"x");
        put(&mut out, true, Stream::Stdout, b"yz");
        assert_eq!(&out[..], b"\x02\0\0\0\0\0\0\x01xyz");
    }

    /// A pump with a client at the other end and a process whose output we write.
    fn session(
        tty: bool,
    ) -> (
        UnixStream,
        mpsc::Sender<(Stream, Bytes)>,
        tokio::sync::oneshot::Receiver<Ended>,
    ) {
        let (client, server) = UnixStream::pair().unwrap();
        let (process, output) = mpsc::channel(4);
        let attached = Attached {
            tty,
            output,
            input: None,
        };
        let watcher = tty.then(|| Watcher::new(keys::DEFAULT.to_vec()));
        let (sender, ended) = tokio::sync::oneshot::channel();
        let report = |end| sender.send(end).unwrap();
        tokio::spawn(pump(server, Bytes::new(), attached, watcher, report));
        (client, process, ended)
    }

    #[tokio::test]
    async fn output_is_multiplexed_whole_and_the_connection_closed_behind_it() {
        let (mut client, process, pumping) = session(false);
        let big = Bytes::from(vec![7u8; 300_000]);
        let sent = big.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                process.send((Stream::Stdout, sent.clone())).await.unwrap();
                process.send((Stream::Stderr, Bytes::new())).await.unwrap();
            }
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let mut want = BytesMut::new();
        for _ in 0..10 {
            put(&mut want, false, Stream::Stdout, &big);
            put(&mut want, false, Stream::Stderr, b"");
        }
        assert!(got == want, "{} bytes, wanted {}", got.len(), want.len());
        assert_eq!(pumping.await.unwrap(), Ended::Closed);
    }

    #[tokio::test]
    async fn half_closed_clients_still_get_everything() {
        let (mut client, process, pumping) = session(false);
        client.shutdown().await.unwrap();
        process
            .send((Stream::Stdout, Bytes::from_static(b"late")))
            .await
            .unwrap();
        drop(process);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\x01\0\0\0\0\0\0\x04late");
        assert_eq!(pumping.await.unwrap(), Ended::Closed);
    }

    #[tokio::test]
    async fn detach_keys_end_a_terminal_session() {
        let (mut client, _process, pumping) = session(true);
        client.write_all(b"ls\n\x10").await.unwrap();
        client.write_all(b"\x11").await.unwrap();
        assert_eq!(pumping.await.unwrap(), Ended::Detached);
    }

    #[tokio::test]
    async fn input_that_nobody_reads_any_more_does_not_cost_the_last_output() {
        let (mut client, process, ended) = session(true);
        process
            .send((Stream::Stdout, Bytes::from_static(b"bye")))
            .await
            .unwrap();
        drop(process);
        assert_eq!(ended.await.unwrap(), Ended::Closed);
        client.write_all(b"typed too late").await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
    }

    #[tokio::test]
    async fn output_waits_until_the_head_was_read() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"head").await.unwrap();
        let (process, output) = mpsc::channel(4);
        let text = Bytes::from_static(b"text");
        process.send((Stream::Stdout, text)).await.unwrap();
        drop(process);
        let attached = Attached {
            tty: true,
            output,
            input: None,
        };
        tokio::spawn(pump(server, Bytes::new(), attached, None, |_| {}));
        // The pump runs until it waits for the head to be read.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let mut buffer = [0; 100];
        assert_eq!(client.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(client.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer[..4], b"text");
    }

    #[tokio::test]
    async fn a_client_that_went_away_ends_the_session() {
        let (client, process, pumping) = session(false);
        drop(client);
        assert_eq!(pumping.await.unwrap(), Ended::Closed);
        assert!(process.is_closed());
    }
}
