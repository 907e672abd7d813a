//! Between this node and registries: pull, push, login, and questions about what a registry holds.

use crate::archive::tagged;
use crate::call::Call;
use crate::error;
use crate::images::{PIECES_AHEAD, publish};
use crate::reply::{Reply, json_line, received};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use gantry_base::{Error, Result, ResultExt};
use gantry_engine::Engine;
use gantry_image::{Credentials, Progress, PushProgress, Resolved};
use gantry_oci::{Digest, Reference};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// A header larger than this is no credentials.
const AUTH_LIMIT: usize = 16 << 10;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    serveraddress: String,
    #[serde(alias = "identityToken")]
    identitytoken: String,
    #[serde(alias = "registryToken")]
    registrytoken: String,
}

impl From<Auth> for Credentials {
    fn from(auth: Auth) -> Self {
        Self {
            username: auth.username,
            password: auth.password,
            identity_token: auth.identitytoken,
            registry_token: auth.registrytoken,
        }
    }
}

/// `X-Registry-Auth`: base64 of a JSON document; what cannot be read counts as absent, as in Docker.
fn credentials(call: &Call) -> Option<Credentials> {
    let text = call.parts.headers.get("x-registry-auth")?.as_bytes();
    if text.is_empty() || text.len() > AUTH_LIMIT {
        return None;
    }
    let bytes = URL_SAFE
        .decode(text)
        .or_else(|_| STANDARD.decode(text))
        .ok()?;
    let auth: Auth = serde_json::from_slice(&bytes).ok()?;
    let credentials = Credentials::from(auth);
    (credentials != Credentials::default()).then_some(credentials)
}

fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}

fn detail(status: &str, id: &Digest, current: u64, total: u64) -> Value {
    json!({"status": status, "progressDetail": {"current": current, "total": total}, "id": short(id)})
}

fn plain(status: &str, id: &Digest) -> Value {
    json!({"status": status, "progressDetail": {}, "id": short(id)})
}

type Lines = mpsc::Sender<io::Result<Bytes>>;

/// States of a layer must arrive; byte counts may be lost.
fn tell(lines: &Lines, document: &Value, may_be_lost: bool) {
    if may_be_lost {
        let _ = lines.try_send(Ok(json_line(document)));
    } else {
        let _ = lines.blocking_send(Ok(json_line(document)));
    }
}

/// `docker pull`. What a name means is asked before the answer begins, so that a refusal has a status. A name without tag and
/// digest is all tags (`docker pull -a`); the client names `latest` where that is meant.
pub(crate) async fn pull(call: Call) -> Result<Reply> {
    let query = call.query();
    let (name, tag) = (query.get("fromImage"), query.get("tag"));
    let invalid = |e: gantry_oci::reference::InvalidReference| Error::invalid(e.to_string());
    let reference = match tag {
        tag if tag.starts_with("sha256:") => {
            Reference::parse(&format!("{name}@{tag}")).map_err(invalid)?
        }
        "" => Reference::parse(name).map_err(invalid)?,
        tag => tagged(name, tag)?,
    };
    let credentials = credentials(&call);
    let images = call.engine.images().clone();
    let mut names = vec![reference.clone()];
    if reference.tag.is_none() && reference.digest.is_none() {
        let tags = images.remote_tags(&reference, credentials.clone()).await?;
        names = tags
            .iter()
            .map(|tag| tagged(&reference.name(), tag))
            .collect::<Result<_>>()?;
    }
    let Some(first) = names.first() else {
        return Err(Error::not_found(format!(
            "repository {} has no tags",
            reference.familiar_name()
        )));
    };
    let platform = query.get("platform").to_owned();
    let first = images
        .resolve(first, &platform, credentials.clone())
        .await?;
    let engine = call.engine.clone();
    let (lines, output) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut first = Some(first);
        for name in names {
            let resolved = match first.take() {
                Some(resolved) => Ok(resolved),
                None => runtime.block_on(images.resolve(&name, &platform, credentials.clone())),
            };
            let done =
                resolved.and_then(|resolved| pull_one(&engine, &runtime, &name, &resolved, &lines));
            if let Err(e) = done {
                let _ = lines.blocking_send(Ok(error::line(&e)));
                return;
            }
        }
    });
    Ok(Reply::chunks("application/json", received(output)))
}

fn pull_one(
    engine: &Engine,
    runtime: &Handle,
    name: &Reference,
    resolved: &Resolved,
    lines: &Lines,
) -> Result<()> {
    let label = match &name.digest {
        Some(digest) => digest.to_string(),
        None => name.tag.clone().unwrap_or_default(),
    };
    tell(
        lines,
        &json!({"status": format!("Pulling from {}", name.path), "id": label}),
        false,
    );
    let progress = |step: Progress<'_>| match step {
        Progress::Waiting(layer) => tell(lines, &plain("Pulling fs layer", layer), false),
        Progress::Exists(layer) => tell(lines, &plain("Already exists", layer), false),
        Progress::Downloading(layer, current, total) => {
            tell(lines, &detail("Downloading", layer, current, total), true);
        }
        Progress::Downloaded(layer) => {
            tell(lines, &plain("Verifying Checksum", layer), true);
            tell(lines, &plain("Download complete", layer), false);
        }
        Progress::Complete(layer) => tell(lines, &plain("Pull complete", layer), false),
    };
    // Docker, too, gives a pull up that nobody waits for.
    let gone = || lines.is_closed();
    let pulled = engine.images().pull(runtime, resolved, &progress, &gone)?;
    publish(engine, &pulled.reference.to_string(), "pull");
    tell(
        lines,
        &json!({"status": format!("Digest: {}", pulled.digest)}),
        false,
    );
    let state = if pulled.is_new {
        "Downloaded newer image"
    } else {
        "Image is up to date"
    };
    let text = format!("Status: {state} for {}", pulled.reference);
    tell(lines, &json!({"status": text}), false);
    Ok(())
}

/// `docker push`: one tag, or with none all of the repository.
pub(crate) async fn push(call: Call) -> Result<Reply> {
    let tag = call.query().get("tag").to_owned();
    let name = Reference::parse(&call.name).map_err(|e| Error::invalid(e.to_string()))?;
    let references: Vec<Reference> = if tag.is_empty() {
        let images = call.engine.images().list()?;
        let tags = images.iter().flat_map(|image| &image.tags);
        tags.filter(|t| t.same_repository(&name) && t.tag.is_some())
            .cloned()
            .collect()
    } else {
        vec![tagged(&name.name(), &tag)?]
    };
    let missing = || {
        Error::not_found(format!(
            "An image does not exist locally with the tag: {}",
            name.familiar_name()
        ))
    };
    if references.is_empty() {
        return Err(missing());
    }
    for reference in &references {
        call.engine
            .images()
            .get(&reference.to_string())
            .map_err(|_| missing())?;
    }
    let credentials = credentials(&call);
    let engine = call.engine.clone();
    let (lines, output) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        tell(
            &lines,
            &json!({"status": format!("The push refers to repository [{}]", name.name())}),
            false,
        );
        let progress = |step: PushProgress<'_>| match step {
            PushProgress::Preparing(layer) => tell(&lines, &plain("Preparing", layer), false),
            PushProgress::Exists(layer) => {
                tell(&lines, &plain("Layer already exists", layer), false)
            }
            PushProgress::Mounted(layer, from) => {
                tell(
                    &lines,
                    &plain(&format!("Mounted from {from}"), layer),
                    false,
                );
            }
            PushProgress::Pushing(layer, current, total) => {
                tell(&lines, &detail("Pushing", layer, current, total), true);
            }
            PushProgress::Pushed(layer) => tell(&lines, &plain("Pushed", layer), false),
            PushProgress::Foreign(layer) => {
                tell(&lines, &plain("Skipped foreign layer", layer), false)
            }
        };
        let gone = || lines.is_closed();
        for reference in references {
            let credentials = credentials.clone();
            match engine
                .images()
                .push(&runtime, &reference, credentials, &progress, &gone)
            {
                Ok(pushed) => {
                    publish(&engine, &reference.to_string(), "push");
                    let text = format!(
                        "{}: digest: {} size: {}",
                        pushed.tag, pushed.digest, pushed.size
                    );
                    tell(&lines, &json!({"status": text}), false);
                    let aux =
                        json!({"Tag": pushed.tag, "Digest": pushed.digest, "Size": pushed.size});
                    tell(&lines, &json!({"progressDetail": {}, "aux": aux}), false);
                }
                Err(e) => {
                    let _ = lines.blocking_send(Ok(error::line(&e)));
                    return;
                }
            }
        }
    });
    Ok(Reply::chunks("application/json", received(output)))
}

/// `docker login`: are the credentials good?
pub(crate) async fn auth(mut call: Call) -> Result<Reply> {
    let auth: Auth = call.json().await?;
    let address = auth.serveraddress.clone();
    let host = address
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    let domain = match host {
        "" | "index.docker.io" => "docker.io",
        host => host,
    };
    let token = call.engine.images().login(domain, auth.into()).await?;
    Ok(Reply::json(
        &json!({"IdentityToken": token, "Status": "Login Succeeded"}),
    ))
}

/// A line of `docker search`, as the index writes it.
#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Found {
    star_count: i64,
    is_official: bool,
    name: String,
    is_automated: bool,
    description: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Index {
    results: Vec<Found>,
}

/// `GET /images/search`: registries that still have an index of version 1 answer it; Docker's own does.
pub(crate) async fn search(call: Call) -> Result<Reply> {
    let query = call.query();
    let filters = call.filters(&["is-automated", "is-official", "stars"])?;
    let limit = query.number("limit")?.unwrap_or(0);
    let limit = if limit == 0 { 25 } else { limit };
    if !(1..=100).contains(&limit) {
        return Err(Error::invalid(format!(
            "limit {limit} is outside the range of [1, 100]"
        )));
    }
    let (automated, official) = (filters.flag("is-automated")?, filters.flag("is-official")?);
    let stars = match filters.values("stars").iter().max() {
        Some(text) => text
            .parse()
            .map_err(|_| Error::invalid(format!("invalid filter 'stars=[{text}]'")))?,
        None => 0,
    };
    let term = query.get("term");
    if term.contains("://") {
        return Err(Error::invalid(format!(
            "invalid repository name ({term}): must not contain '://'"
        )));
    }
    let (domain, term) = match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", term),
    };
    let host = match domain {
        "docker.io" => "index.docker.io",
        other => other,
    };
    let term = term.strip_prefix("library/").unwrap_or(term);
    let wanted = format!("q={}&n={limit}", gantry_docker_api::query::escape(term));
    let answer = call
        .engine
        .images()
        .search(host, &wanted, credentials(&call))
        .await?;
    let index: Index =
        serde_json::from_slice(&answer).context(|| "reading the index's answer".into())?;
    let found: Vec<Found> = index
        .results
        .into_iter()
        .filter(|one| {
            automated.is_none_or(|wanted| wanted == one.is_automated)
                && official.is_none_or(|wanted| wanted == one.is_official)
                && one.star_count >= stars
        })
        .collect();
    Ok(Reply::json(&found))
}

/// `GET /distribution/{name}/json`: what a registry holds under a name.
pub(crate) async fn distribution(call: Call) -> Result<Reply> {
    let reference = Reference::parse(&call.name).map_err(|e| Error::invalid(e.to_string()))?;
    let credentials = credentials(&call);
    let resolved = call
        .engine
        .images()
        .resolve(&reference, "", credentials)
        .await?;
    Ok(Reply::json(&json!({
        "Descriptor": {"mediaType": resolved.media_type, "digest": resolved.digest, "size": resolved.size},
        "Platforms": resolved.platforms,
    })))
}
