//! Files in and out of containers: `cp`, `export`, `diff`, `commit`.

use crate::call::Call;
use crate::containers::some_if_any;
use crate::reply::{Reply, received};
use base64::Engine as _;
use gantry_base::{Error, Result};
use gantry_docker_api::create::ContainerConfig;
use gantry_engine::{Commit, PathStat};
use gantry_oci::Reference;
use http::{HeaderName, HeaderValue};
use serde::Serialize;

const TAR: &str = "application/x-tar";
const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

fn path_of(call: &Call) -> Result<String> {
    match call.query().get("path") {
        "" => Err(Error::invalid("bad parameter: path cannot be empty")),
        path => Ok(path.to_string()),
    }
}

fn with_stat(mut reply: Reply, stat: &PathStat) -> Result<Reply> {
    let json = serde_json::to_vec(stat)
        .map_err(|e| Error::internal("describing the file").with_source(e))?;
    let text = base64::engine::general_purpose::STANDARD.encode(json);
    let value = HeaderValue::try_from(text)
        .map_err(|e| Error::internal("describing the file").with_source(e))?;
    reply.0.headers_mut().insert(PATH_STAT, value);
    Ok(reply)
}

pub(crate) async fn head(call: Call) -> Result<Reply> {
    let stat = call
        .engine
        .archive_stat(&call.name, &path_of(&call)?)
        .await?;
    with_stat(Reply::ok(), &stat)
}

pub(crate) async fn get(call: Call) -> Result<Reply> {
    let (stat, tar) = call
        .engine
        .archive_get(&call.name, &path_of(&call)?)
        .await?;
    with_stat(Reply::chunks(TAR, received(tar)), &stat)
}

pub(crate) async fn put(mut call: Call) -> Result<Reply> {
    let path = path_of(&call)?;
    let query = call.query();
    let (no_overwrite, owners) = (query.is("noOverwriteDirNonDir"), query.is("copyUIDGID"));
    let tar = call.reader();
    call.engine
        .archive_put(&call.name, &path, tar, no_overwrite, owners)
        .await?;
    Ok(Reply::ok())
}

pub(crate) async fn export(call: Call) -> Result<Reply> {
    let tar = call.engine.export(&call.name).await?;
    Ok(Reply::chunks("application/octet-stream", received(tar)))
}

pub(crate) async fn changes(call: Call) -> Result<Reply> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Change {
        path: String,
        kind: u8,
    }
    let changes = call.engine.changes(&call.name).await?;
    let changes = changes
        .into_iter()
        .map(|(kind, path)| Change { path, kind })
        .collect();
    Ok(Reply::json(&some_if_any::<Change>(changes)))
}

pub(crate) async fn commit(mut call: Call) -> Result<Reply> {
    let config: Option<ContainerConfig> = match call.json_bytes().await? {
        Some(body) => gantry_docker_api::create::json(&body)?,
        None => None,
    };
    let query = call.query();
    let reference = match query.get("repo") {
        "" => None,
        repo => Some(tagged(repo, query.get("tag"))?),
    };
    let what = Commit {
        reference,
        author: query.get("author").to_string(),
        message: query.get("comment").to_string(),
        pause: query.is_or("pause", true),
        changes: query.all("changes"),
        config,
    };
    let id = call.engine.commit(query.get("container"), what).await?;
    Ok(Reply::created(&serde_json::json!({"Id": id.to_string()})))
}

/// A repository and a tag as two parameters.
pub(crate) fn tagged(repo: &str, tag: &str) -> Result<Reference> {
    let invalid = |e: gantry_oci::reference::InvalidReference| Error::invalid(e.to_string());
    let reference = Reference::parse(repo).map_err(invalid)?;
    if reference.digest.is_some() {
        return Err(Error::invalid(
            "refusing to create a tag with a digest reference",
        ));
    }
    if tag.is_empty() {
        return Ok(reference.or_latest());
    }
    // Through the parser once more: it alone knows what a tag may look like.
    let bare = Reference {
        tag: None,
        ..reference
    };
    Reference::parse(&format!("{bare}:{tag}")).map_err(invalid)
}
