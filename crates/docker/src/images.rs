//! `/images/…`.

use crate::archive::tagged;
use crate::call::Call;
use crate::error::{self, unsupported};
use crate::reply::{Reply, json_line, received};
use bytes::{Bytes, BytesMut};
use gantry_base::{Error, Result, ResultExt};
use gantry_docker_api::container::GraphDriver;
use gantry_docker_api::image as doc;
use gantry_docker_api::{ApiVersion, Filters, change};
use gantry_engine::Engine;
use gantry_image::{Image, Removed};
use gantry_oci::image::{History, ImageConfig};
use gantry_oci::{Digest, Reference};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::mpsc;

const LIST_FILTERS: &[&str] = &["dangling", "label", "before", "since", "reference", "until"];
const PRUNE_FILTERS: &[&str] = &["dangling", "label", "label!", "until"];
/// Pieces of an archive on their way to the client, and their size.
pub(crate) const PIECES_AHEAD: usize = 8;
const PIECE: usize = 128 << 10;
/// A line of progress at most every so many bytes of a layer.
const PROGRESS_STEP: u64 = 1 << 20;

pub(crate) async fn list(call: Call) -> Result<Reply> {
    let query = call.query();
    let filters = call.filters(LIST_FILTERS)?;
    let images = call.engine.images().list()?;
    let dangling = filters.flag("dangling")?;
    let created_of = |name: &str| -> Result<Option<i64>> {
        let Some(image) = filters.values(name).first() else {
            return Ok(None);
        };
        Ok(Some(created_ns(&*call.engine.images().get(image)?)))
    };
    let (before, since) = (created_of("before")?, created_of("since")?);
    let until = match filters.values("until").first() {
        Some(text) => Some(gantry_docker_api::query::time(
            text,
            crate::containers::now_ns(),
        )?),
        None => None,
    };
    // The parameter of that name was Docker's first filter.
    let legacy =
        Some(query.get("filter")).filter(|name| !name.is_empty() && !call.version.at_least(41));
    let wanted = |image: &&Arc<Image>| {
        let created = created_ns(image);
        let names: Vec<&Reference> = image.tags.iter().collect();
        dangling.is_none_or(|wanted| wanted == names.is_empty())
            && before.is_none_or(|before| created < before)
            && since.is_none_or(|since| created > since)
            && until.is_none_or(|until| created < until)
            && filters.labels(&image.config.config.labels)
            && filters.any("reference", |pattern| {
                names.iter().any(|name| matches_reference(pattern, name))
            })
            && legacy
                .is_none_or(|pattern| names.iter().any(|name| matches_reference(pattern, name)))
    };
    let mut list: Vec<doc::Summary> = images
        .iter()
        .filter(wanted)
        .map(|image| summary(image, call.version))
        .collect();
    // With a pattern Docker shows only the names that fit.
    if filters.has("reference") {
        for summary in &mut list {
            summary.repo_tags.retain(|tag| {
                Reference::parse(tag).is_ok_and(|name| {
                    filters.any("reference", |pattern| matches_reference(pattern, &name))
                })
            });
        }
    }
    Ok(Reply::json(&list))
}

/// `busybox`, `busybox:1.*`, `host/*/x`: shell patterns against the familiar name with and without its tag.
fn matches_reference(pattern: &str, name: &Reference) -> bool {
    let whole = name.to_string();
    let bare = Reference {
        tag: None,
        digest: None,
        ..name.clone()
    }
    .to_string();
    glob(pattern, &whole) || glob(pattern, &bare)
}

/// Go's `path.Match`: `*` and `?` stop at slashes, `[…]` is a set, `\` takes the next as it is.
fn glob(pattern: &str, text: &str) -> bool {
    fn at(pattern: &[char], text: &[char], steps: &mut u32) -> bool {
        *steps += 1;
        if *steps > 100_000 {
            return false;
        }
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                at(rest, text, steps)
                    || text
                        .split_first()
                        .is_some_and(|(c, more)| *c != '/' && at(pattern, more, steps))
            }
            (Some(('?', rest)), Some((c, more))) => *c != '/' && at(rest, more, steps),
            (Some(('[', rest)), Some((c, more))) => {
                let Some(end) = rest
                    .iter()
                    .skip(1)
                    .position(|c| *c == ']')
                    .map(|end| end + 1)
                else {
                    return false;
                };
                let (negated, set) = match rest[..end].split_first() {
                    Some(('^', set)) => (true, set),
                    _ => (false, &rest[..end]),
                };
                let ranged = set
                    .windows(3)
                    .any(|w| w[1] == '-' && (w[0]..=w[2]).contains(c));
                (ranged || set.contains(c)) != negated && at(&rest[end + 1..], more, steps)
            }
            (Some(('\\', rest)), Some((c, more))) => rest
                .split_first()
                .is_some_and(|(wanted, rest)| wanted == c && at(rest, more, steps)),
            (Some((wanted, rest)), Some((c, more))) => wanted == c && at(rest, more, steps),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    at(&chars(pattern), &chars(text), &mut 0)
}

fn created_ns(image: &Image) -> i64 {
    let created = image
        .config
        .created
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    created
        .and_then(|time| i64::try_from(time.as_nanosecond()).ok())
        .unwrap_or(0)
}

/// Tags and digests of an image as Docker lists them.
fn names(image: &Image) -> (Vec<String>, Vec<String>) {
    let (digests, tags): (Vec<&Reference>, Vec<&Reference>) =
        image.tags.iter().partition(|name| name.digest.is_some());
    let text = |list: Vec<&Reference>| list.into_iter().map(ToString::to_string).collect();
    (text(tags), text(digests))
}

pub(crate) fn summary(image: &Image, version: ApiVersion) -> doc::Summary {
    let (mut repo_tags, mut repo_digests) = names(image);
    if !version.at_least(43) && repo_tags.is_empty() && repo_digests.is_empty() {
        repo_tags.push("<none>:<none>".into());
        repo_digests.push("<none>@<none>".into());
    }
    doc::Summary {
        containers: -1,
        created: created_ns(image).div_euclid(1_000_000_000),
        id: image.id.to_string(),
        labels: Some(image.config.config.labels.clone()).filter(|labels| !labels.is_empty()),
        parent_id: image
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        repo_digests,
        repo_tags,
        shared_size: -1,
        size: image.size,
        virtual_size: (!version.at_least(44)).then_some(image.size),
    }
}

pub(crate) async fn inspect(call: Call) -> Result<Reply> {
    let image = call.engine.images().get(&call.name)?;
    let config = &image.config;
    let (repo_tags, repo_digests) = names(&image);
    let folder = |layer: &gantry_image::LayerRef| layer.folder.to_string_lossy().into_owned();
    let mut data = BTreeMap::new();
    let mut folders: Vec<String> = image.layers.iter().map(folder).collect();
    if let Some(top) = folders.pop() {
        data.insert("UpperDir", top);
    }
    if !folders.is_empty() {
        folders.reverse();
        data.insert("LowerDir", folders.join(":"));
    }
    Ok(Reply::json(&doc::Inspect {
        id: image.id.to_string(),
        repo_tags,
        repo_digests,
        parent: image
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        comment: config
            .history
            .last()
            .and_then(|entry| entry.comment.clone())
            .unwrap_or_default(),
        created: config.created.clone().unwrap_or_default(),
        container: (!call.version.at_least(45))
            .then(|| config.container.clone().unwrap_or_default()),
        container_config: (!call.version.at_least(45)).then(|| {
            config.container_config.clone().unwrap_or_else(|| {
                let empty: doc::RunConfig = gantry_oci::image::RunConfig::default().into();
                serde_json::to_value(empty).unwrap_or_default()
            })
        }),
        docker_version: String::new(),
        author: config.author.clone().unwrap_or_default(),
        config: config.config.clone().into(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
        os: config.os.clone(),
        size: image.size,
        virtual_size: (!call.version.at_least(44)).then_some(image.size),
        graph_driver: GraphDriver {
            data,
            name: "overlay2",
        },
        root_fs: doc::RootFs {
            kind: "layers",
            layers: config
                .rootfs
                .diff_ids
                .iter()
                .map(ToString::to_string)
                .collect(),
        },
        metadata: doc::Metadata {
            last_tag_time: gantry_docker_api::text::time(image.loaded_at_ns),
        },
    }))
}

pub(crate) async fn history(call: Call) -> Result<Reply> {
    let lines = call.engine.images().history(&call.name)?;
    let document = |line: gantry_image::HistoryLine| doc::History {
        id: line
            .id
            .map_or_else(|| "<missing>".to_string(), |id| id.to_string()),
        created: line.created,
        created_by: line.created_by,
        tags: crate::containers::some_if_any(line.tags.iter().map(ToString::to_string).collect()),
        size: line.size,
        comment: line.comment,
    };
    Ok(Reply::json(
        &lines.into_iter().map(document).collect::<Vec<_>>(),
    ))
}

pub(crate) async fn tag(call: Call) -> Result<Reply> {
    let query = call.query();
    let reference = tagged(query.get("repo"), query.get("tag"))?;
    let (images, name) = (call.engine.images().clone(), call.name.clone());
    let wanted = reference.clone();
    blocking(move || images.tag(&name, &wanted)).await?;
    publish(&call.engine, &reference.to_string(), "tag");
    Ok(Reply::empty(http::StatusCode::CREATED))
}

/// Runs work on files and the database where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context(|| "waiting for blocking work".into())?
}

pub(crate) fn publish(engine: &Engine, name: &str, action: &str) {
    let Ok(image) = engine.images().get(name) else {
        return;
    };
    let mut attributes = image.config.config.labels.clone();
    attributes.insert("name".into(), name.to_string());
    engine
        .events()
        .publish("image", action, image.id.to_string(), attributes);
}

pub(crate) async fn remove(call: Call) -> Result<Reply> {
    let force = call.query().is("force");
    let (engine, name) = (call.engine.clone(), call.name.clone());
    let removed = blocking(move || {
        engine
            .images()
            .remove(&name, force, &|image| users(&engine, image))
    })
    .await?;
    published_removal(&call.engine, &removed);
    Ok(Reply::json(
        &removed.into_iter().map(deleted).collect::<Vec<_>>(),
    ))
}

pub(crate) fn published_removal(engine: &Engine, removed: &[Removed]) {
    for line in removed {
        let (action, actor) = match line {
            Removed::Untagged(name) => ("untag", name.to_string()),
            Removed::Deleted(id) => ("delete", id.to_string()),
        };
        let attributes = BTreeMap::from([("name".to_string(), actor.clone())]);
        engine.events().publish("image", action, actor, attributes);
    }
}

fn users(engine: &Engine, image: &Digest) -> Vec<(String, bool)> {
    let records = engine.list();
    let users = records.iter().filter(|record| record.uses_image(image));
    users
        .map(|record| (record.id.clone(), record.state.process().is_some()))
        .collect()
}

fn deleted(removed: Removed) -> doc::Deleted {
    match removed {
        Removed::Untagged(name) => doc::Deleted::Untagged(name.to_string()),
        Removed::Deleted(id) => doc::Deleted::Deleted(id.to_string()),
    }
}

pub(crate) async fn prune(call: Call) -> Result<Reply> {
    let filters: Filters = call.filters(PRUNE_FILTERS)?;
    let until = match filters.values("until") {
        [] => None,
        [one] => Some(gantry_docker_api::query::time(
            one,
            crate::containers::now_ns(),
        )?),
        _ => return Err(Error::invalid("more than one until filter specified")),
    };
    // Docker prunes dangling ones unless it is told `dangling=false`.
    let all = filters.flag("dangling")? == Some(false);
    let engine = call.engine.clone();
    let (removed, freed) = blocking(move || {
        let used: HashSet<Digest> = engine
            .list()
            .iter()
            .flat_map(|record| {
                let mounted = record
                    .mounts
                    .iter()
                    .filter_map(gantry_engine::MountPoint::image);
                mounted.chain([record.image.clone()]).collect::<Vec<_>>()
            })
            .collect();
        let wanted = |image: &Image| {
            until.is_none_or(|until| created_ns(image) <= until)
                && filters.labels(&image.config.config.labels)
        };
        engine
            .images()
            .prune(all, &wanted, &|image| used.contains(image))
    })
    .await?;
    published_removal(&call.engine, &removed);
    let deleted: Vec<_> = removed.into_iter().map(deleted).collect();
    Ok(Reply::json(
        &json!({"ImagesDeleted": crate::containers::some_if_any(deleted), "SpaceReclaimed": freed}),
    ))
}

/// `docker load`: the archive streams in while lines about it stream out.
pub(crate) async fn load(mut call: Call) -> Result<Reply> {
    let quiet = call.query().is("quiet");
    let archive = call.reader();
    let engine = call.engine.clone();
    let (lines, output) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut shown = (None::<Digest>, 0);
        let mut progress = |layer: &Digest, bytes: u64| {
            let is_new = shown.0.as_ref() != Some(layer);
            if quiet || (!is_new && bytes < shown.1 + PROGRESS_STEP) {
                return;
            }
            shown = (Some(layer.clone()), bytes);
            let line = json_line(
                &json!({"status": "Loading layer", "progressDetail": {"current": bytes}, "id": &layer.hex()[..12]}),
            );
            // Nobody waits for progress: a full channel loses the line, not our time.
            let _ = lines.try_send(Ok(line));
        };
        let loaded = engine.images().load(archive, &mut progress);
        let answers = match loaded {
            Ok(loaded) => loaded
                .into_iter()
                .map(|one| {
                    let name = one.reference.as_ref().map(ToString::to_string);
                    publish(
                        &engine,
                        name.as_deref().unwrap_or(&one.id.to_string()),
                        "load",
                    );
                    let text = match name {
                        Some(name) => format!("Loaded image: {name}\n"),
                        None => format!("Loaded image ID: {}\n", one.id),
                    };
                    json_line(&json!({"stream": text}))
                })
                .collect(),
            Err(e) => vec![error::line(&e)],
        };
        for answer in answers {
            if lines.blocking_send(Ok(answer)).is_err() {
                return;
            }
        }
    });
    Ok(Reply::chunks("application/json", received(output)))
}

/// `POST /images/create`: import from the body, or a pull.
pub(crate) async fn create(mut call: Call) -> Result<Reply> {
    let query = call.query();
    match query.get("fromSrc") {
        "" => return crate::transfer::pull(call).await,
        "-" => {}
        _ => {
            return Err(unsupported(
                "importing from a URL is not part of this build; fetch it and use docker import -",
            ));
        }
    }
    let reference = match query.get("repo") {
        "" => None,
        repo => Some(tagged(repo, query.get("tag"))?),
    };
    let mut config = ImageConfig {
        os: "linux".into(),
        architecture: architecture().into(),
        ..ImageConfig::default()
    };
    if let Some((os, machine)) = query.get("platform").split_once('/') {
        (config.os, config.architecture) =
            (os.into(), machine.split('/').next().unwrap_or("").into());
    }
    change::apply(&mut config.config, &query.all("changes"))?;
    let now = jiff::Timestamp::now().to_string();
    let message = Some(query.get("message"))
        .filter(|message| !message.is_empty())
        .unwrap_or("Imported from -");
    config.created = Some(now.clone());
    config.history = vec![History {
        created: Some(now),
        comment: Some(message.to_string()),
        ..History::default()
    }];
    let tar = call.reader();
    let images = call.engine.images().clone();
    let id = blocking(move || images.import(tar, reference.as_ref(), config)).await?;
    publish(&call.engine, &id.to_string(), "import");
    Ok(Reply::chunks(
        "application/json",
        futures_util::stream::iter([Ok(json_line(&json!({"status": id.to_string()})))]),
    ))
}

/// Go's word for this machine.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `docker save`, one or several.
pub(crate) async fn save(call: Call) -> Result<Reply> {
    let names = match call.name.as_str() {
        "" => call.query().all("names"),
        name => vec![name.to_string()],
    };
    if names.is_empty() {
        return Err(Error::invalid("no images to save: give names"));
    }
    // A missing one is a status, not a broken archive.
    for name in &names {
        call.engine.images().get(name)?;
    }
    let engine = call.engine.clone();
    let (pieces, output) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut writer = Pieces {
            pieces: pieces.clone(),
            buffer: BytesMut::with_capacity(PIECE),
        };
        let saved = engine.images().save(&names, &mut writer);
        let end = saved.and_then(|()| writer.flush().context(|| "sending the archive".into()));
        match end {
            Ok(()) => names.iter().for_each(|name| publish(&engine, name, "save")),
            // The connection breaks, so that nobody takes the half for the whole.
            Err(e) => {
                let _ = pieces.blocking_send(Err(io::Error::other(e)));
            }
        }
    });
    Ok(Reply::chunks("application/x-tar", received(output)))
}

/// A blocking writer whose pieces are the body of an answer.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_patterns_are_gos() {
        for (pattern, text, want) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("busybox:1.?", "busybox:1.2", true),
            ("b[a-u]sy*", "busybox", true),
            ("b[^u]sy*", "busybox", false),
            ("bus", "busybox", false),
            (r"a\*", "a*", true),
            ("[", "a", false),
            (
                "*a*a*a*a*a*a*a*a*a*b",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                false,
            ),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} on {text}");
        }
    }
}
