//! Bodies of answers, and the parts of a request that are text.

use crate::name::Digest;
use crate::store::{Blob, Store};
use crate::sums::{PIECE, Sums};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::task::JoinHandle;

/// What an answer carries.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Bytes),
    Pieces(Pieces),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
    /// The bytes from `begin` to before `end`.
    pub(crate) fn of(
        store: &Arc<Store>,
        digest: &Digest,
        blob: Blob,
        begin: u64,
        end: u64,
    ) -> Self {
        match blob {
            Blob::Small(bytes) => {
                let cut = |at: u64| usize::try_from(at).expect("a small blob");
                Self::Whole(bytes.slice(cut(begin)..cut(end)))
            }
            Blob::Large { file, sums } => Self::Pieces(Pieces {
                store: Arc::clone(store),
                digest: digest.clone(),
                file,
                sums,
                at: begin,
                end,
                next: None,
            }),
        }
    }
}

/// A part of a large blob: pieces are read one ahead of the wire, by a blocking thread that is free again in between, so
/// that a slow client holds two pieces of memory and no thread.
#[derive(Debug)]
pub(crate) struct Pieces {
    store: Arc<Store>,
    digest: Digest,
    file: Arc<File>,
    sums: Arc<Sums>,
    at: u64,
    end: u64,
    next: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Pieces {
    fn read(&self, index: u64) -> JoinHandle<io::Result<Bytes>> {
        let (store, digest) = (Arc::clone(&self.store), self.digest.clone());
        let (file, sums) = (Arc::clone(&self.file), Arc::clone(&self.sums));
        tokio::task::spawn_blocking(move || store.piece(&digest, &file, &sums, index))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Whole(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces(pieces) => pieces,
        };
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let index = this.at / PIECE as u64;
        let mut reading = this.next.take().unwrap_or_else(|| this.read(index));
        let read = match Pin::new(&mut reading).poll(context) {
            Poll::Pending => {
                this.next = Some(reading);
                return Poll::Pending;
            }
            Poll::Ready(read) => read,
        };
        let piece = match read.map_err(io::Error::other).and_then(|read| read) {
            Ok(piece) => piece,
            Err(e) => {
                this.at = this.end;
                return Poll::Ready(Some(Err(e)));
            }
        };
        let begin = index * PIECE as u64;
        let end = this.end.min(begin + PIECE as u64);
        let cut = |at: u64| usize::try_from(at - begin).expect("within a piece");
        let part = piece.slice(cut(this.at)..cut(end));
        this.at = end;
        if this.at < this.end {
            this.next = Some(this.read(index + 1));
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Pieces(pieces) => pieces.at >= pieces.end,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Pieces(pieces) => pieces.end - pieces.at,
        })
    }
}

/// What a `Range` header asks of a body of `size` bytes. RFC 9110, 14.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// No range, or one that may be passed over: other units, several ranges, nonsense.
    Whole,
    /// From the first to before the second.
    Part(u64, u64),
    Unsatisfiable,
}

impl Range {
    pub(crate) fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = spec.trim().split_once('-') else {
            return Self::Whole;
        };
        let number = |text: &str| match text {
            "" => Some(None),
            digits if digits.bytes().all(|c| c.is_ascii_digit()) => {
                // More digits than fit is more than there is.
                Some(Some(digits.parse::<u64>().unwrap_or(u64::MAX)))
            }
            _ => None,
        };
        match (number(first), number(last)) {
            (Some(Some(first)), Some(last)) => {
                if last.is_some_and(|last| last < first) {
                    Self::Whole
                } else if first >= size {
                    Self::Unsatisfiable
                } else {
                    Self::Part(
                        first,
                        last.map_or(size, |last| last.saturating_add(1).min(size)),
                    )
                }
            }
            (Some(None), Some(Some(suffix))) => {
                if suffix == 0 || size == 0 {
                    Self::Unsatisfiable
                } else {
                    Self::Part(size.saturating_sub(suffix), size)
                }
            }
            _ => Self::Whole,
        }
    }
}

/// `%XX` and, in a query, `+`. `None` when it is not UTF-8 or an escape is broken.
pub(crate) fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if plus => b' ',
            other => *other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Parameters of a query or a form; a parameter that cannot be decoded is left out. A name's first value counts.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// More parameters than that nobody means.
const PARAMETERS: usize = 32;

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').take(PARAMETERS);
        Self(
            pairs
                .filter_map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Some((decode(name, true)?, decode(value, true)?))
                })
                .collect(),
        )
    }
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }
    pub(crate) fn all<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// A value in a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Waits for the whole of a body that may be `limit` bytes long. The flag of the error says that it was longer.
pub(crate) async fn collect<B>(body: B, limit: usize) -> Result<Bytes, bool>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    use http_body_util::BodyExt;
    if body.size_hint().lower() > limit as u64 {
        return Err(true);
    }
    let mut body = body;
    let mut first = None;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| false)?.into_data() else {
            continue;
        };
        let length = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if length + data.len() > limit {
            return Err(true);
        }
        match &first {
            None => first = Some(data),
            Some(head) => {
                if rest.is_empty() {
                    rest.extend_from_slice(head);
                    first = Some(Bytes::new());
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(if rest.is_empty() {
        first.unwrap_or_default()
    } else {
        rest.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_rfc_has_them() {
        for (header, expected) in [
            ("bytes=0-0", Range::Part(0, 1)),
            ("bytes=2-", Range::Part(2, 10)),
            ("bytes=2-99", Range::Part(2, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-99", Range::Part(0, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=3-2", Range::Whole),
            ("bytes=1-2,4-5", Range::Whole),
            ("bytes=-", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("bytes=a-b", Range::Whole),
        ] {
            assert_eq!(Range::parse(Some(header), 10), expected, "{header}");
        }
        assert_eq!(Range::parse(None, 10), Range::Whole);
    }

    #[test]
    fn queries_are_decoded_once() {
        let query = Query::parse(Some(
            "digest=sha256%3Aab&n=5&scope=a&scope=b+c&bad=%zz&flag",
        ));
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.all("scope").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!((query.get("bad"), query.get("flag")), (None, Some("")));
        assert_eq!(decode("%252e", false).as_deref(), Some("%2e"));
        assert_eq!(encode("a b&c"), "a%20b%26c");
    }
}
