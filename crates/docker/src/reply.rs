//! Answers: status, a few headers, and a body that is whole or a stream.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, watch};

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The body of an answer.
pub(crate) enum Body {
    Whole(Bytes),
    Chunks(Chunks),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Chunks(chunks) => chunks
                .as_mut()
                .poll_next(cx)
                .map(|next| next.map(|chunk| chunk.map(Frame::data))),
        }
    }
    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(bytes) if bytes.is_empty())
    }
    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Chunks(_) => SizeHint::default(),
        }
    }
}

/// An answer on its way.
pub(crate) struct Reply(pub(crate) Response<Body>);

impl Reply {
    pub(crate) fn empty(status: StatusCode) -> Self {
        let mut response = Response::new(Body::Whole(Bytes::new()));
        *response.status_mut() = status;
        Self(response)
    }
    pub(crate) fn no_content() -> Self {
        Self::empty(StatusCode::NO_CONTENT)
    }
    pub(crate) fn ok() -> Self {
        Self::empty(StatusCode::OK)
    }
    pub(crate) fn text(text: &'static str) -> Self {
        Self(Response::new(Body::Whole(Bytes::from_static(
            text.as_bytes(),
        ))))
        .with(header::CONTENT_TYPE, "text/plain; charset=utf-8")
    }
    pub(crate) fn json(document: &impl Serialize) -> Self {
        Self::json_with(StatusCode::OK, document)
    }
    pub(crate) fn created(document: &impl Serialize) -> Self {
        Self::json_with(StatusCode::CREATED, document)
    }
    pub(crate) fn json_with(status: StatusCode, document: &impl Serialize) -> Self {
        let mut response = Response::new(Body::Whole(json_line(document)));
        *response.status_mut() = status;
        Self(response).with(header::CONTENT_TYPE, "application/json")
    }
    pub(crate) fn chunks(
        kind: &'static str,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Self {
        Self(Response::new(Body::Chunks(Box::pin(chunks)))).with(header::CONTENT_TYPE, kind)
    }
    /// A stream that may last for ever: cut, visibly, when the daemon ends.
    pub(crate) fn endless(
        kind: &'static str,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let cut = stream::once(stopped(stop)).map(|()| Err(io::Error::other("the daemon ends")));
        // `select` would wait for both; the marker ends the stream as soon as either half is through.
        let chunks = chunks.map(Some).chain(stream::once(async { None }));
        let both = stream::select(Box::pin(chunks), Box::pin(cut.map(Some)));
        Self::chunks(
            kind,
            both.take_while(|item| std::future::ready(item.is_some()))
                .filter_map(std::future::ready),
        )
    }
    #[must_use]
    pub(crate) fn with(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.0
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        self
    }
}

/// One document and a newline, as Go's encoder writes it.
pub(crate) fn json_line(document: &impl Serialize) -> Bytes {
    let mut text =
        serde_json::to_vec(document).expect("our own documents serialise: string keys only");
    text.push(b'\n');
    text.into()
}

/// Resolves when the daemon ends, also when its handle is gone.
pub(crate) async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A channel as a stream.
pub(crate) fn received<T: Send + 'static>(
    channel: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(channel, async |mut channel| {
        Some((channel.recv().await?, channel))
    })
}
