//! Authorisation plug-ins: each is asked before a request is done and before its answer goes out; all must allow.
//!
//! A plug-in decides on what is executed: a body that it is shown is read to its end first, and the handler gets those bytes. A JSON body that is too
//! long to be shown is refused instead of being let through unseen. Archives and streams are not shown, as in Docker.
//!
//! Spec: Docker's authorization plugin, `AuthZPlugin.AuthZReq` and `AuthZPlugin.AuthZRes`.

use crate::call::Call;
use crate::reply::{Body, Reply};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gantry_base::{Error, ErrorKind, Result};
use gantry_engine::Engine;
use http::header;
use serde_json::{Map, Value, json};

/// A longer body is not shown to plug-ins, and what is JSON must be shown.
const SHOWN: usize = 1 << 20;

/// A request that was allowed; its answer is still to be.
pub(crate) struct Asked {
    engine: Engine,
    question: Value,
}

/// `None` without plug-ins.
pub(crate) async fn ask(call: &mut Call) -> Result<Option<Asked>> {
    if call.engine.settings().authorization_plugins.is_empty() {
        return Ok(None);
    }
    let kind = call.parts.headers.get(header::CONTENT_TYPE);
    let path = call.parts.uri.path();
    let archives = ["/build", "/images/load", "/images/create"];
    let puts_archive = call.parts.method == http::Method::PUT && path.ends_with("/archive");
    let is_archive = puts_archive || archives.iter().any(|end| path.ends_with(end));
    let mut question = json!({
        "User": "",
        "UserAuthNMethod": "",
        "RequestMethod": call.parts.method.as_str(),
        "RequestUri": call.parts.uri.path_and_query().map_or("/", |uri| uri.as_str()),
        "RequestHeaders": headers(&call.parts.headers),
    });
    if !is_archive && (call.upgrade.is_none() || kind.is_some()) {
        let body = call.bytes().await?;
        if body.len() > SHOWN {
            return Err(denied(
                "the request's body is larger than what an authorization plugin is shown",
            ));
        }
        if !body.is_empty() {
            question["RequestBody"] = STANDARD.encode(&body).into();
        }
        call.seen = Some(body);
    }
    let asked = Asked {
        engine: call.engine.clone(),
        question,
    };
    asked.all("AuthZPlugin.AuthZReq").await?;
    Ok(Some(asked))
}

impl Asked {
    /// The answer, or the plug-in's refusal of it.
    pub(crate) async fn about(mut self, reply: Reply) -> Result<Reply> {
        let status = reply.0.status();
        if status.is_informational() {
            return Ok(reply);
        }
        self.question["ResponseStatusCode"] = status.as_u16().into();
        self.question["ResponseHeaders"] = headers(reply.0.headers());
        if let Body::Whole(body) = reply.0.body()
            && body.len() <= SHOWN
        {
            self.question["ResponseBody"] = STANDARD.encode(body).into();
        }
        self.all("AuthZPlugin.AuthZRes").await?;
        Ok(reply)
    }

    async fn all(&self, method: &str) -> Result<()> {
        for name in &self.engine.settings().authorization_plugins {
            let failed = |e: Error| {
                let text = format!("plugin {name} failed with error: {}", e.chain());
                Error::internal(text)
            };
            let plugin = self.engine.plugin(name, "authz").await.map_err(failed)?;
            let answer = plugin.call(method, &self.question).await.map_err(failed)?;
            if answer["Allow"] != Value::Bool(true) {
                let words = answer["Msg"].as_str().unwrap_or_default();
                return Err(denied(&format!(
                    "authorization denied by plugin {name}: {words}"
                )));
            }
        }
        Ok(())
    }
}

fn denied(words: &str) -> Error {
    Error::new(ErrorKind::Forbidden, words)
}

/// Without what is secret to the registries.
fn headers(map: &http::HeaderMap) -> Value {
    let mut shown = Map::new();
    for (name, value) in map {
        if matches!(
            name.as_str(),
            "x-registry-auth" | "x-registry-config" | "authorization"
        ) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        shown.insert(name.as_str().to_owned(), value.into());
    }
    Value::Object(shown)
}
