//! `gantry set`.

use super::run::{bytes, nano_cpus, ports, restart};
use crate::args::SetArgs;
use crate::client::{Client, escaped};
use crate::output;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

pub async fn run(client: &Client, args: &SetArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/containers/{}/set", escaped(&args.container));
    let answer = client.post(&path, &document(args)?).await?;
    for warning in answer["Warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", warning.as_str().unwrap_or_default());
    }
    output::line(&args.container)?;
    Ok(ExitCode::SUCCESS)
}

fn document(args: &SetArgs) -> anyhow::Result<Value> {
    let (_, mut bindings) = ports(&args.shape.publish)?;
    for port in &args.unpublish {
        let port = if port.contains('/') {
            port.clone()
        } else {
            format!("{port}/tcp")
        };
        bindings.insert(port, json!([]));
    }
    let labels = args
        .shape
        .label
        .iter()
        .map(|label| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), json!(value)),
            None => (label.clone(), Value::Null),
        });
    let mut document = json!({
        "Env": args.shape.env,
        "Labels": labels.collect::<Map<_, _>>(),
        "PortBindings": bindings,
        "Binds": args.shape.volume,
        "Unmount": args.unmount,
    });
    if let Some(memory) = &args.shape.memory {
        document["Memory"] = json!(bytes(memory).with_context(|| format!("--memory {memory}"))?);
    }
    if let Some(cpus) = &args.shape.cpus {
        document["NanoCpus"] = json!(nano_cpus(cpus).with_context(|| format!("--cpus {cpus}"))?);
    }
    if let Some(limit) = args.shape.pids_limit {
        document["PidsLimit"] = json!(limit);
    }
    if let Some(policy) = &args.shape.restart {
        document["RestartPolicy"] = restart(policy)?;
    }
    Ok(document)
}
