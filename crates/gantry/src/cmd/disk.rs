//! `gantry disk reclaim, pin, unpin, check`.

use super::containers::{each, short};
use super::images::{pull, size};
use super::run::bytes;
use crate::args::{DiskVerb, Output};
use crate::client::Client;
use crate::output;
use anyhow::Context;
use http::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

pub async fn run(client: &Client, verb: &DiskVerb) -> anyhow::Result<ExitCode> {
    match verb {
        DiskVerb::Reclaim {
            to,
            keep,
            dry_run,
            output,
        } => {
            let to = bytes(to).with_context(|| format!("--to {to}"))?;
            let path = format!(
                "/images/reclaim?bytes={to}&keep={keep}&dry-run={}",
                u8::from(*dry_run)
            );
            let answer = client.post(&path, &json!({})).await?;
            reclaimed(&answer, *dry_run, *output)
        }
        DiskVerb::Pin { names } if names.is_empty() => {
            for name in client
                .get("/images/pins")
                .await?
                .as_array()
                .into_iter()
                .flatten()
            {
                output::line(name.as_str().unwrap_or_default())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        DiskVerb::Pin { names } => {
            each(client, names, Method::POST, |name| {
                format!("/images/{name}/pin")
            })
            .await
        }
        DiskVerb::Unpin { names } => {
            each(client, names, Method::POST, |name| {
                format!("/images/{name}/unpin")
            })
            .await
        }
        DiskVerb::Check { repair, output } => check(client, *repair, *output).await,
    }
}

fn reclaimed(answer: &Value, dry_run: bool, how: Output) -> anyhow::Result<ExitCode> {
    if how == Output::Json {
        output::json(answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for image in answer["Images"].as_array().into_iter().flatten() {
        let tags: Vec<&str> = image["Tags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        rows.push(vec![
            if tags.is_empty() {
                "<none>".to_owned()
            } else {
                tags.join(" ")
            },
            short(&image["Id"]),
            size(image["Freed"].as_u64().unwrap_or(0)),
        ]);
    }
    output::print(output::table(&["IMAGE", "ID", "FREES"], &rows))?;
    let number = |key: &str| size(answer[key].as_u64().unwrap_or(0));
    output::line(format!(
        "{} -> {}{}",
        number("Before"),
        number("After"),
        if dry_run {
            " (dry run: nothing was removed)"
        } else {
            ""
        }
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What only a registry has is fetched from there, and then everything is looked at once more.
async fn check(client: &Client, repair: bool, how: Output) -> anyhow::Result<ExitCode> {
    let path = format!("/images/check?repair={}", u8::from(repair));
    let mut answer = client.post(&path, &json!({})).await?;
    let list = |answer: &Value, key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let mut fetched = Vec::new();
    for damage in list(&answer, "Damage") {
        let first = list(&damage, "Images")
            .first()
            .and_then(|n| Some(n.as_str()?.to_owned()));
        if let Some(name) = first
            && repair
            && damage["Fetch"] == true
            && !fetched.contains(&name)
        {
            if let Err(error) = pull(client, &name).await {
                eprintln!("gantry: {name}: {}", crate::sentence(&error));
            }
            fetched.push(name);
        }
    }
    let told = answer.clone();
    if !fetched.is_empty() {
        answer = client.post("/images/check", &json!({})).await?;
    }
    let left = list(&answer, "Damage")
        .iter()
        .filter(|damage| damage["Repaired"] != true)
        .count();
    if how == Output::Json {
        output::json(&json!({"Found": told, "Left": left}))?;
    } else {
        for damage in list(&told, "Damage") {
            let state = match (&damage["Repaired"], repair && left == 0) {
                (Value::Bool(true), _) | (_, true) => "repaired",
                _ => "damaged",
            };
            output::line(format!(
                "{state}: {} {}",
                short(&damage["Digest"]),
                damage["What"].as_str().unwrap_or_default()
            ))?;
        }
        output::line(format!(
            "{} read, {left} damaged",
            size(told["Bytes"].as_u64().unwrap_or(0))
        ))?;
    }
    Ok(if left == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
