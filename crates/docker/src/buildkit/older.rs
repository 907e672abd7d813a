//! `POST /build?version=2`: the client of Docker 18.09 to 20.10. The request says it all, the files come over the session, the
//! status goes back as lines of JSON with BuildKit's messages in base64.

use super::control::{Solve, tags};
use crate::call::Call;
use crate::images::publish;
use crate::reply::{Reply, json_line};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use gantry_base::{Error, Result};
use prost::Message;
use serde_json::json;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

pub(crate) async fn build(call: Call) -> Result<Reply> {
    let query = call.query();
    let session_id = query.get("session").to_owned();
    if session_id.is_empty() {
        return Err(Error::invalid("a build of version 2 needs a session"));
    }
    let mut attributes: HashMap<String, String> = HashMap::new();
    let mut set = |key: &str, value: &str| {
        if !value.is_empty() {
            attributes.insert(key.to_owned(), value.to_owned());
        }
    };
    set("filename", query.get("dockerfile"));
    set("target", query.get("target"));
    set("platform", query.get("platform"));
    set("cgroup-parent", query.get("cgroupparent"));
    set("shm-size", query.get("shmsize"));
    if query.get("networkmode") != "default" {
        set("force-network-mode", query.get("networkmode"));
    }
    let hosts: Vec<String> = query
        .all("extrahosts")
        .iter()
        .map(|host| host.replacen(':', "=", 1))
        .collect();
    set("add-hosts", &hosts.join(","));
    let remote = query.get("remote");
    if remote != "client-session" {
        set("context", remote);
    }
    if query.is("pull") {
        set("image-resolve-mode", "pull");
    }
    if query.is("nocache") {
        attributes.insert("no-cache".into(), String::new());
    }
    for (key, prefix) in [("buildargs", "build-arg:"), ("labels", "label:")] {
        let text = query.get(key);
        if text.is_empty() {
            continue;
        }
        let map: HashMap<String, Option<String>> = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("error reading {key}")).with_source(e))?;
        for (name, value) in map {
            // Without a value it is unset.
            if let Some(value) = value {
                attributes.insert(format!("{prefix}{name}"), value);
            }
        }
    }
    let mut request = super::control::request(&attributes, &[])?;
    request.tags = tags(&query.all("t").join(","))?;
    let outputs = query.get("outputs");
    if !matches!(outputs, "" | "null" | "[]") {
        return Err(crate::error::unsupported(
            "outputs of this client are not supported: build with buildx, or use docker save",
        ));
    }

    let builds = call.builds.clone();
    let engine = call.engine.clone();
    let solve = Arc::new(Solve::new(query.get("buildid")));
    let (out, lines) = mpsc::channel::<io::Result<Bytes>>(64);
    tokio::spawn(async move {
        let building = async {
            let session = builds.session(&session_id).await?;
            let tags = request.tags.clone();
            let running = builds.run(session, request, &attributes, solve.vertices.clone());
            let built = Box::pin(running).await.map_err(|failure| failure.error)?;
            let key = "export";
            solve.vertices.start(key, "exporting to image");
            solve
                .vertices
                .status(key, &format!("writing image {}", built.id));
            for tag in &tags {
                solve
                    .vertices
                    .status(key, &format!("naming to {}", tag.canonical()));
                publish(&engine, &tag.to_string(), "tag");
            }
            solve.vertices.complete(key, false, None);
            Ok::<_, Error>(built.id)
        };
        let building = async {
            let result = building.await;
            solve.end();
            result
        };
        let telling = async {
            let Some(mut status) = solve.status() else {
                return;
            };
            while let Some(Ok(message)) = status.next().await {
                let text = STANDARD.encode(message.encode_to_vec());
                let line = json_line(&json!({"id": "moby.buildkit.trace", "aux": text}));
                if out.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        };
        let both = async { tokio::join!(building, telling).0 };
        let result = tokio::select! {
            result = both => result,
            () = out.closed() => return,
        };
        let last = match result {
            Ok(id) => json!({"id": "moby.image.id", "aux": {"ID": id.to_string()}}),
            Err(error) => {
                let text = error.chain();
                json!({"errorDetail": {"message": text}, "error": text})
            }
        };
        let _ = out.send(Ok(json_line(&last))).await;
    });
    Ok(Reply::chunks(
        "application/json",
        crate::reply::received(lines),
    ))
}
