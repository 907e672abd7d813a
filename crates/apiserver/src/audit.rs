//! Who did what: a line of JSON (`audit.k8s.io/v1`, level `Metadata`) for every write and for everything that was refused.
//!
//! Reads that were allowed are not written down: watches alone would drown the rest. The file is turned over at a size, one old
//! one is kept. A log that cannot be written is said once, and requests go on.

use crate::object;
use crate::request::{Call, Place, User};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

const SIZE_LIMIT: u64 = 64 << 20;
/// Lines that wait to be written; more are dropped and counted, so that a slow disk does not stop the API.
const WAITING: usize = 8192;

pub(crate) struct Audit {
    lines: SyncSender<String>,
    dropped: std::sync::atomic::AtomicU64,
}

impl Audit {
    pub(crate) fn start(path: &Path) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING);
        let file = open(path)?;
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&path, file, &waiting))?;
        Ok(Self {
            lines,
            dropped: 0.into(),
        })
    }

    /// Notes a request down, if it is one that is kept. `place` is `None` when it was refused before it was understood.
    pub(crate) fn note(&self, call: &Call, place: Option<&Place>, code: u16) {
        let refused = matches!(code, 401 | 403);
        let verb = match place {
            Some(Place::Object(target)) => target.verb.to_owned(),
            _ => call.method.as_str().to_lowercase(),
        };
        let reads = matches!(&verb[..], "get" | "list" | "watch" | "head");
        if reads && !refused {
            return;
        }
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "auditID": object::uid().unwrap_or_default(), "requestURI": call.path, "verb": verb,
            "user": user(call.user.by.as_deref().unwrap_or(&call.user)),
            "responseStatus": {"code": code},
            "stageTimestamp": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            "annotations": {"authorization.k8s.io/decision": if refused { "forbid" } else { "allow" }},
        });
        if call.user.by.is_some() {
            event["impersonatedUser"] = user(&call.user);
        }
        let agent = call.headers.get(http::header::USER_AGENT);
        if let Some(agent) = agent.and_then(|a| a.to_str().ok()) {
            event["userAgent"] = agent.into();
        }
        if let Some(Place::Object(target)) = place {
            event["objectRef"] = json!({
                "resource": target.kind.plural, "apiGroup": target.kind.group, "apiVersion": target.kind.version,
            });
            for (name, value) in [
                ("namespace", &target.namespace),
                ("name", &target.name),
                ("subresource", &target.subresource),
            ] {
                if !value.is_empty() {
                    event["objectRef"][name] = value.clone().into();
                }
            }
        }
        let sent = self.lines.try_send(format!("{event}\n"));
        if let Err(TrySendError::Full(_)) = sent {
            let before = self
                .dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if before == 0 {
                tracing::error!("the audit log cannot keep up; lines are dropped");
            }
        }
    }
}

fn user(user: &User) -> Value {
    json!({"username": user.name, "groups": user.groups})
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn write(path: &PathBuf, mut file: File, lines: &Receiver<String>) {
    let mut size = file.metadata().map_or(0, |m| m.len());
    let mut complained = false;
    while let Ok(line) = lines.recv() {
        let done = (|| {
            if size > SIZE_LIMIT {
                std::fs::rename(path, path.with_extension("log.1"))?;
                file = open(path)?;
                size = 0;
            }
            size += line.len() as u64;
            file.write_all(line.as_bytes())
        })();
        if let Err(error) = done
            && !complained
        {
            complained = true;
            tracing::error!("writing the audit log {}: {error}", path.display());
        }
    }
}
