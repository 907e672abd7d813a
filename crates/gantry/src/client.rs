//! A client of the Docker API on this instance's socket, for our own verbs. The same API that `docker` uses, nothing beside it.

use crate::instance::Dirs;
use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

/// The version whose documents these verbs read.
const API: &str = "/v1.50";
/// A JSON answer longer than this is refused.
const ANSWER_LIMIT: usize = 256 << 20;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Talks to one daemon. Each request has its own connection: the socket is local, and attach needs that anyway.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The running daemon of this instance, or one sentence how to start it.
    pub fn of(dirs: &Dirs) -> anyhow::Result<Self> {
        let Some(daemon) = dirs.daemon()? else {
            bail!(
                "no gantry runs on {}; start it with `gantry up`",
                dirs.data.display()
            );
        };
        match daemon.docker {
            Some(socket) => Ok(Self { socket }),
            None => bail!(
                "the gantry on {} runs with --docker off; start it without that",
                dirs.data.display()
            ),
        }
    }

    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends one request; an error status becomes the API's own message.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: &[(header::HeaderName, &str)],
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("connecting to {}", self.socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .context("greeting the daemon")?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{API}{path}"))
            .header(header::HOST, "gantry");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(body).context("writing the request")?;
        let response = sender
            .send_request(request)
            .await
            .context("asking the daemon")?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            bail!(message(status, response.into_body()).await);
        }
        Ok(response)
    }

    /// A request without a body; the answer is a JSON document (or nothing).
    pub async fn call(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        read_json(self.send(method, path, empty(), &[]).await?).await
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path).await
    }

    /// A request with a JSON document; the answer is one too (or nothing).
    pub async fn post(&self, path: &str, document: &Value) -> anyhow::Result<Value> {
        let body = full(document.to_string());
        let json = (header::CONTENT_TYPE, "application/json");
        read_json(self.send(Method::POST, path, body, &[json]).await?).await
    }

    /// Turns a connection into a two-way stream (`attach`, `exec start`).
    pub async fn hijack(
        &self,
        path: &str,
        document: Option<&Value>,
    ) -> anyhow::Result<TokioIo<Upgraded>> {
        let body = document.map_or_else(empty, |d| full(d.to_string()));
        let headers = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "tcp"),
            (header::CONTENT_TYPE, "application/json"),
        ];
        let response = self.send(Method::POST, path, body, &headers).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            bail!(
                "the daemon does not turn the connection into a stream ({})",
                response.status()
            );
        }
        let stream = hyper::upgrade::on(response)
            .await
            .context("taking over the connection")?;
        Ok(TokioIo::new(stream))
    }
}

async fn message(status: StatusCode, body: Incoming) -> String {
    let text = match Limited::new(body, 1 << 20).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return format!("the daemon refuses ({status})"),
    };
    serde_json::from_slice::<Value>(&text)
        .ok()
        .and_then(|document| Some(document.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("{} ({status})", String::from_utf8_lossy(&text).trim()))
}

async fn read_json(response: Response<Incoming>) -> anyhow::Result<Value> {
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|e| anyhow::anyhow!("reading the daemon's answer: {e}"))?
        .to_bytes();
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).context("the daemon's answer is not JSON")
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A value inside a path or query.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_escaped() {
        assert_eq!(super::escaped("a/b:1 ü"), "a%2Fb%3A1%20%C3%BC");
    }
}
