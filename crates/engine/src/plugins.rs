//! Docker's plug-ins of the first kind: programs that somebody else runs, found by a file and spoken to with JSON over HTTP.
//!
//! ```text
//! R/plugins, /run/docker/plugins        NAME.sock, NAME/NAME.sock
//! /etc/docker/plugins, /usr/lib/docker/plugins    NAME.spec (an address), NAME.json ({"Name","Addr"})
//! ```
//! [`Plugins::get`] finds and activates; [`Plugin::call`] asks. Volumes and authorisation use them. Managed plug-ins (`docker plugin install`) do not
//! exist here.
//!
//! Spec: Docker plugin API 1.2. A plug-in is trusted with what it is asked for and not with the daemon: answers are bounded and waited for only so long.

use bytes::Bytes;
use gantry_base::{Error, Result, ResultExt};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// Bytes of an answer at most; an authorisation plug-in's are small, a list of volumes may be long.
const ANSWER_LIMIT: usize = 4 << 20;
/// How long an answer may take: making a volume somewhere else takes a while.
const PATIENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(10);
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Where plug-ins are looked for, and those that were activated.
pub(crate) struct Plugins {
    folders: Vec<PathBuf>,
    active: Mutex<BTreeMap<String, Arc<Plugin>>>,
}

/// One activated plug-in.
pub struct Plugin {
    name: String,
    address: Address,
    implements: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Plugins {
    pub(crate) fn new(run_dir: &Path) -> Self {
        let mut folders = vec![run_dir.join("plugins")];
        folders.extend(
            [
                "/run/docker/plugins",
                "/etc/docker/plugins",
                "/usr/lib/docker/plugins",
            ]
            .map(PathBuf::from),
        );
        Self {
            folders,
            active: Mutex::default(),
        }
    }

    fn active(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Plugin>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the activated plug-ins that implement `what`.
    pub(crate) fn names(&self, what: &str) -> Vec<String> {
        let active = self.active();
        let plugins = active.values().filter(|plugin| plugin.does(what));
        plugins.map(|plugin| plugin.name.clone()).collect()
    }

    /// `NotFound`: `plugin "x" not found`, also when it is there and does something else.
    pub(crate) async fn get(&self, name: &str, what: &str) -> Result<Arc<Plugin>> {
        let not_found = || Error::not_found(format!("plugin {name:?} not found"));
        let address = find(&self.folders, name)?.ok_or_else(not_found)?;
        let known = self.active().get(name).cloned();
        if let Some(plugin) = known.filter(|plugin| plugin.address == address) {
            return if plugin.does(what) {
                Ok(plugin)
            } else {
                Err(not_found())
            };
        }
        let mut plugin = Plugin {
            name: name.to_owned(),
            address,
            implements: Vec::new(),
        };
        let answer = plugin.call("Plugin.Activate", &Value::Null).await?;
        let list = answer["Implements"].as_array().into_iter().flatten();
        plugin.implements = list
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect();
        let plugin = Arc::new(plugin);
        self.active().insert(name.to_owned(), plugin.clone());
        if plugin.does(what) {
            Ok(plugin)
        } else {
            Err(not_found())
        }
    }
}

impl Plugin {
    fn does(&self, what: &str) -> bool {
        self.implements.iter().any(|name| name == what)
    }

    /// The answer to one question. An `Err` in it is an error here, in the plug-in's words.
    pub async fn call(&self, method: &str, question: &Value) -> Result<Value> {
        let text = || format!("asking plugin {}: {method}", self.name);
        let asked = tokio::time::timeout(PATIENCE, self.ask(method, question)).await;
        let (status, body) = asked.context(text)?.context(text)?;
        let answer: Value = match serde_json::from_slice(&body) {
            Ok(answer) => answer,
            Err(_) if status == 200 && body.is_empty() => Value::Null,
            Err(e) if status == 200 => return Err(e).context(text),
            Err(_) => Value::Null,
        };
        match answer["Err"].as_str().filter(|words| !words.is_empty()) {
            Some(words) => Err(Error::internal(format!("{method}: {words}"))),
            None if status == 200 => Ok(answer),
            None => Err(Error::internal(format!("{}: it answered {status}", text()))),
        }
    }

    async fn ask(&self, method: &str, question: &Value) -> std::io::Result<(u16, Bytes)> {
        let other = std::io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
        let body = match question {
            Value::Null => Bytes::new(),
            question => question.to_string().into(),
        };
        let request = http::Request::post(format!("/{method}"))
            .header(http::header::HOST, "plugin")
            .header(http::header::ACCEPT, MEDIA_TYPE)
            .header(http::header::CONTENT_TYPE, MEDIA_TYPE)
            .body(Full::new(body))
            .map_err(|e| other(e.into()))?;
        let response = match &self.address {
            Address::Unix(path) => {
                let socket = tokio::time::timeout(CONNECT, UnixStream::connect(path)).await??;
                send(TokioIo::new(socket), request).await
            }
            Address::Tcp(address) => {
                let socket = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await??;
                send(TokioIo::new(socket), request).await
            }
        }
        .map_err(|e| other(e.into()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT);
        Ok((status, body.collect().await.map_err(other)?.to_bytes()))
    }
}

async fn send<S>(
    socket: S,
    request: http::Request<Full<Bytes>>,
) -> hyper::Result<http::Response<hyper::body::Incoming>>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(socket).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The address that a name's file says, the first folder's first.
fn find(folders: &[PathBuf], name: &str) -> Result<Option<Address>> {
    let is_name = !name.is_empty()
        && !name.starts_with('.')
        && (name.bytes()).all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !is_name {
        return Ok(None);
    }
    for folder in folders {
        for socket in [
            folder.join(format!("{name}.sock")),
            folder.join(name).join(format!("{name}.sock")),
        ] {
            use std::os::unix::fs::FileTypeExt;
            if std::fs::metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket()) {
                return Ok(Some(Address::Unix(socket)));
            }
        }
        let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{name}.{ending}")));
        if let Ok(text) = read("spec") {
            return address(name, text.trim()).map(Some);
        }
        if let Ok(text) = read("json") {
            let document: Value = serde_json::from_str(&text).unwrap_or_default();
            let secure = &document["TLSConfig"];
            if secure.is_object() && secure["InsecureSkipVerify"] != Value::Bool(true) {
                return Err(Error::invalid(format!(
                    "plugin {name}: TLS to plug-ins is not supported, use a unix socket"
                )));
            }
            return address(name, document["Addr"].as_str().unwrap_or_default()).map(Some);
        }
    }
    Ok(None)
}

fn address(name: &str, text: &str) -> Result<Address> {
    match text.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        Some(("tcp" | "http", address)) if !address.is_empty() => Ok(Address::Tcp(address.into())),
        _ => Err(Error::invalid(format!(
            "plugin {name}: its address {text:?} is neither unix:///PATH nor tcp://HOST:PORT"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_addresses() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        write("far.spec", "tcp://10.0.0.1:8080\n");
        write(
            "doc.json",
            r#"{"Name":"doc","Addr":"unix:///run/doc.sock"}"#,
        );
        write("bad.spec", "gopher://x");
        write(
            "tls.json",
            r#"{"Addr":"https://x","TLSConfig":{"CAFile":"/ca"}}"#,
        );
        let near = folder.path().join("near.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&near).expect("a socket");
        let folders = [folder.path().to_owned()];
        let found = |name: &str| find(&folders, name).map_err(|e| e.message().to_owned());
        assert_eq!(found("far"), Ok(Some(Address::Tcp("10.0.0.1:8080".into()))));
        assert_eq!(
            found("doc"),
            Ok(Some(Address::Unix("/run/doc.sock".into())))
        );
        assert_eq!(found("near"), Ok(Some(Address::Unix(near))));
        for nobody in ["absent", "", "../near", ".near", "a/b"] {
            assert_eq!(found(nobody), Ok(None), "{nobody}");
        }
        assert!(found("bad").is_err_and(|words| words.contains("gopher://x")));
        assert!(found("tls").is_err_and(|words| words.contains("TLS")));
    }
}
