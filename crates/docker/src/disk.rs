//! What Docker has no words for: images within a disk budget, pinned images, and looking at what the disk has kept.

use crate::call::Call;
use crate::images::{blocking, published_removal};
use crate::reply::Reply;
use gantry_base::{Error, Result};
use gantry_image::DiskBudget;
use gantry_oci::Digest;
use http::StatusCode;
use serde_json::json;
use std::collections::HashSet;

/// `POST /images/reclaim?bytes=N[&keep=N][&dry-run=1]`
pub(crate) async fn reclaim(call: Call) -> Result<Reply> {
    let query = call.query();
    let number = |key: &str| -> Result<Option<u64>> {
        query
            .number(key)?
            .map(|n| u64::try_from(n).map_err(|_| Error::invalid(format!("{key} is negative"))))
            .transpose()
    };
    let budget = DiskBudget {
        bytes: number("bytes")?
            .ok_or_else(|| Error::invalid("a budget is missing: say bytes=N"))?,
        keep: usize::try_from(number("keep")?.unwrap_or(0)).unwrap_or(usize::MAX),
        dry_run: query.is("dry-run"),
    };
    let engine = call.engine.clone();
    let (reclaimed, removed) = blocking(move || {
        let used: HashSet<Digest> = engine
            .list()
            .iter()
            .map(|record| record.image.clone())
            .collect();
        engine
            .images()
            .reclaim(budget, &|image| used.contains(image))
    })
    .await?;
    published_removal(&call.engine, &removed);
    Ok(Reply::json(&reclaimed))
}

/// `POST /images/check[?repair=1]`
pub(crate) async fn check(call: Call) -> Result<Reply> {
    let repair = call.query().is("repair");
    let engine = call.engine.clone();
    let (bytes, damage) = blocking(move || {
        let runs = |image: &Digest| {
            engine
                .list()
                .iter()
                .any(|record| record.image == *image && record.state.process().is_some())
        };
        engine.images().check(repair, &runs)
    })
    .await?;
    Ok(Reply::json(&json!({"Bytes": bytes, "Damage": damage})))
}

pub(crate) async fn pins(call: Call) -> Result<Reply> {
    Ok(Reply::json(&call.engine.images().pins()?))
}

pub(crate) async fn pin(call: Call) -> Result<Reply> {
    set(call, true).await
}

pub(crate) async fn unpin(call: Call) -> Result<Reply> {
    set(call, false).await
}

async fn set(call: Call, wanted: bool) -> Result<Reply> {
    let (images, name) = (call.engine.images().clone(), call.name.clone());
    blocking(move || images.pin(&name, wanted)).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}
