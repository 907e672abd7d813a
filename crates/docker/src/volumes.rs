//! `/volumes…`.

use crate::call::Call;
use crate::containers::some_if_any;
use crate::reply::Reply;
use gantry_base::Result;
use gantry_docker_api::text;
use gantry_docker_api::volume::{CreateVolume, Usage, Volume};
use gantry_engine::Engine;
use gantry_engine::volumes::Record;
use serde_json::json;
use std::collections::BTreeMap;

const LIST_FILTERS: &[&str] = &["dangling", "driver", "label", "name"];
const PRUNE_FILTERS: &[&str] = &["all", "label", "label!"];

pub(crate) fn document(engine: &Engine, record: &Record, usage: Option<Usage>) -> Volume {
    let filled = |map: &BTreeMap<String, String>| Some(map.clone()).filter(|map| !map.is_empty());
    let created = text::time(record.created_at_ns);
    // Docker prints whole seconds here.
    let created = created
        .split_once('.')
        .map_or(created.clone(), |(seconds, _)| format!("{seconds}Z"));
    Volume {
        created_at: created,
        driver: record.driver.clone(),
        labels: filled(&record.labels),
        // Where a plug-in has it only the plug-in knows.
        mountpoint: if record.driver == gantry_engine::volumes::LOCAL {
            let place = engine.volume_mountpoint(&record.name);
            place.to_string_lossy().into_owned()
        } else {
            String::new()
        },
        name: record.name.clone(),
        options: filled(&record.options),
        scope: "local",
        usage_data: usage,
    }
}

pub(crate) async fn list(call: Call) -> Result<Reply> {
    let filters = call.filters(LIST_FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let wanted = |record: &Record| {
        filters.any("driver", |driver| driver == record.driver)
            && filters.labels(&record.labels)
            && filters.pattern("name", &record.name)
            && dangling
                .is_none_or(|wanted| wanted == call.engine.volume_users(&record.name).is_empty())
    };
    let volumes = call.engine.volumes();
    let list: Vec<Volume> = volumes
        .iter()
        .filter(|record| wanted(record))
        .map(|record| document(&call.engine, record, None))
        .collect();
    Ok(Reply::json(&json!({"Volumes": list, "Warnings": null})))
}

pub(crate) async fn create(mut call: Call) -> Result<Reply> {
    let request: CreateVolume = call.json_or_default().await?;
    let record = call.engine.volume_create(gantry_engine::CreateVolume {
        name: request.name,
        driver: request.driver,
        labels: request.labels,
        options: request.driver_opts,
    });
    let record = record.await?;
    Ok(Reply::created(&document(&call.engine, &record, None)))
}

pub(crate) async fn inspect(call: Call) -> Result<Reply> {
    let record = call.engine.volume(&call.name)?;
    Ok(Reply::json(&document(&call.engine, &record, None)))
}

pub(crate) async fn remove(call: Call) -> Result<Reply> {
    call.engine
        .volume_remove(&call.name, call.query().is("force"))
        .await?;
    Ok(Reply::no_content())
}

pub(crate) async fn prune(call: Call) -> Result<Reply> {
    let mut filters = call.filters(PRUNE_FILTERS)?;
    // Before 1.42 `prune` took named volumes, too.
    if !call.version.at_least(42) {
        filters = filters.with("all", "true");
    }
    let (deleted, freed) = call.engine.volume_prune(&filters).await?;
    Ok(Reply::json(
        &json!({"VolumesDeleted": some_if_any(deleted), "SpaceReclaimed": freed}),
    ))
}
