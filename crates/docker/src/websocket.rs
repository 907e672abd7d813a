//! Attaching over a websocket: RFC 6455's handshake and frames, as much as a byte stream needs.
//!
//! What the process writes goes out as binary frames, standard output and error alike; what the client sends, text or binary, is the
//! process's input. Payloads are passed on as they arrive, so that a frame of any length needs no room.

use crate::call::Call;
use crate::reply::{Body, Reply, stopped};
use aws_lc_rs::digest;
use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};
use gantry_base::{Error, Result};
use gantry_docker_api::keys::{Typed, Watcher};
use gantry_engine::{Attached, Input};
use http::{HeaderValue, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::ReadHalf;

/// RFC 6455, 1.3: what a server puts behind the client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// RFC 6455, 5.5: a control frame carries no more.
const CONTROL_LIMIT: u64 = 125;
const INPUT: usize = 32 << 10;

/// The value of `Sec-WebSocket-Accept` for a client's key.
fn accept(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(context.finish())
}

/// Completes the handshake and joins the client with the process.
pub(crate) fn join(mut call: Call, attached: Attached, keys: Vec<u8>) -> Result<Reply> {
    let headers = &call.parts.headers;
    let is = |name: &str, value: &str| {
        headers
            .get(name)
            .is_some_and(|have| have.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
    };
    let key = headers.get("sec-websocket-key");
    let (Some(key), true, true) = (
        key,
        is("upgrade", "websocket"),
        is("sec-websocket-version", "13"),
    ) else {
        return Err(Error::invalid("bad websocket handshake"));
    };
    let accept = HeaderValue::try_from(accept(key.as_bytes()))
        .map_err(|e| Error::internal("answering a websocket handshake").with_source(e))?;
    let upgrade = call
        .upgrade
        .take()
        .ok_or_else(|| Error::invalid("bad websocket handshake"))?;
    let watcher = attached.tty.then(|| Watcher::new(keys));
    let stop = call.stop;
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else {
            return;
        };
        tokio::select! {
            _ = pump(parts.io.into_inner(), parts.read_buf, attached, watcher) => {}
            () = stopped(stop) => {}
        }
    });
    let mut response = Response::new(Body::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(Reply(response))
}

async fn pump(
    mut socket: UnixStream,
    early: Bytes,
    attached: Attached,
    watcher: Option<Watcher>,
) -> io::Result<()> {
    let Attached {
        mut output, input, ..
    } = attached;
    let (reading, mut writing) = socket.split();
    // Answers to control frames; the writer alone writes, so that frames stay whole.
    let (control, mut answers) = tokio::sync::mpsc::channel::<(u8, Bytes)>(4);
    let receiving = receive(reading, early, input, watcher, control);
    let sending = async {
        loop {
            let (kind, payload) = tokio::select! {
                answer = answers.recv() => match answer {
                    Some(answer) => answer,
                    // The client has gone or has closed.
                    None => return Ok(()),
                },
                piece = output.recv() => match piece {
                    Some((_, payload)) => (BINARY, payload),
                    None => (CLOSE, Bytes::from_static(&[0x03, 0xe8])),
                },
            };
            let head = frame_head(kind, payload.len());
            let mut slices = [IoSlice::new(&head), IoSlice::new(&payload)];
            crate::stream::write_all(&mut writing, &mut slices).await?;
            if kind == CLOSE {
                return Ok(());
            }
        }
    };
    let result = tokio::select! {
        result = sending => result,
        () = receiving => Ok(()),
    };
    socket.shutdown().await?;
    result
}

/// The head of an unmasked, final frame.
fn frame_head(kind: u8, length: usize) -> Vec<u8> {
    let mut head = vec![0x80 | kind];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => head.push(short),
        (_, Ok(middle)) => {
            head.push(126);
            head.extend(middle.to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}

/// A client's frame whose payload is still coming.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    left: u64,
    mask: [u8; 4],
    at: usize,
}

/// The next frame's head, taken off the buffer when it is whole. An error is a broken client.
fn take_head(buffer: &mut BytesMut) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = buffer[..] else {
        return Ok(None);
    };
    if second & 0x80 == 0 {
        return Err("a client's frame must be masked");
    }
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if buffer.len() < 6 + extended {
        return Ok(None);
    }
    let mut left = u64::from(second & 0x7f);
    if extended > 0 {
        left = buffer[2..2 + extended]
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    let kind = first & 0x0f;
    if kind >= CLOSE && (left > CONTROL_LIMIT || first & 0x80 == 0) {
        return Err("a control frame must be short and whole");
    }
    buffer.advance(2 + extended);
    let mask = [buffer[0], buffer[1], buffer[2], buffer[3]];
    buffer.advance(4);
    Ok(Some(Frame {
        kind,
        left,
        mask,
        at: 0,
    }))
}

impl Frame {
    /// The part of the payload that is there, unmasked.
    fn take(&mut self, buffer: &mut BytesMut) -> BytesMut {
        let size = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let mut piece = buffer.split_to(size);
        for byte in piece.iter_mut() {
            *byte ^= self.mask[self.at % 4];
            self.at += 1;
        }
        self.left -= size as u64;
        piece
    }
}

/// Ends when the client has closed or broken the connection, or has typed the detach keys.
async fn receive(
    mut client: ReadHalf<'_>,
    early: Bytes,
    mut input: Option<Input>,
    mut watcher: Option<Watcher>,
    control: tokio::sync::mpsc::Sender<(u8, Bytes)>,
) {
    let mut buffer = BytesMut::from(&early[..]);
    let mut frame: Option<Frame> = None;
    loop {
        let Some(current) = &mut frame else {
            match take_head(&mut buffer) {
                Ok(Some(head)) => frame = Some(head),
                Ok(None) => match client.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                Err(problem) => return tracing::debug!("websocket: {problem}"),
            }
            continue;
        };
        let is_control = current.kind >= CLOSE;
        let has_part = !buffer.is_empty() && !is_control;
        if current.left > 0 && !has_part && (buffer.len() as u64) < current.left {
            buffer.reserve(INPUT);
            match client.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        }
        let piece = current.take(&mut buffer).freeze();
        let (kind, is_through) = (current.kind, current.left == 0);
        if is_through {
            frame = None;
        }
        match kind {
            CLOSE => {
                let _ = control.send((CLOSE, piece)).await;
                // The writer ends the connection once it has answered.
                return std::future::pending().await;
            }
            PING => {
                let _ = control.send((PONG, piece)).await;
            }
            PONG => {}
            _ => {
                if typed(&mut input, watcher.as_mut(), piece).await {
                    return;
                }
            }
        }
    }
}

/// Passes input on; true when the user detached.
async fn typed(input: &mut Option<Input>, watcher: Option<&mut Watcher>, piece: Bytes) -> bool {
    let (bytes, detach) = match watcher.map_or(Typed::Unchanged, |watcher| watcher.feed(&piece)) {
        Typed::Unchanged => (piece, false),
        Typed::Instead(bytes) => (bytes.into(), false),
        Typed::Detach(bytes) => (bytes.into(), true),
    };
    if let Some(stdin) = input.as_mut().filter(|_| !bytes.is_empty())
        && stdin.write(bytes).await.is_err()
    {
        *input = None;
    }
    detach
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_of_the_specification() {
        // RFC 6455, 1.3.
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn heads_of_frames() {
        assert_eq!(frame_head(BINARY, 5), [0x82, 5]);
        assert_eq!(frame_head(BINARY, 200), [0x82, 126, 0, 200]);
        assert_eq!(
            frame_head(BINARY, 70_000),
            [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]
        );
    }

    #[test]
    fn clients_frames_are_unmasked_piece_by_piece() {
        // RFC 6455, 5.7: a masked "Hello".
        let bytes = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let mut buffer = BytesMut::from(&bytes[..5]);
        assert_eq!(take_head(&mut buffer), Ok(None));
        buffer.extend_from_slice(&bytes[5..8]);
        let mut frame = take_head(&mut buffer).unwrap().unwrap();
        assert_eq!(&frame.take(&mut buffer)[..], b"He");
        buffer.extend_from_slice(&bytes[8..]);
        assert_eq!(&frame.take(&mut buffer)[..], b"llo");
        assert_eq!(frame.left, 0);
        for bad in [
            &[0x81, 0x05][..],
            &[0x09, 0x85],
            &[0x88, 0xfe, 1, 0, 0, 0, 0, 0],
        ] {
            assert!(
                take_head(&mut BytesMut::from(bad)).is_err() || bad.len() < 6,
                "{bad:?}"
            );
        }
    }
}
