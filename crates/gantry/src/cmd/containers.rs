//! `gantry ps, start, stop, kill, rm, inspect`: one request each.

use crate::args::{KillArgs, Output, PsArgs, RmArgs, StopArgs};
use crate::client::{Client, escaped};
use crate::output;
use http::Method;
use serde_json::Value;
use std::process::ExitCode;

pub async fn ps(client: &Client, args: &PsArgs) -> anyhow::Result<ExitCode> {
    let list = client
        .get(&format!("/containers/json?all={}", u8::from(args.all)))
        .await?;
    let containers = list.as_array().map_or(&[][..], Vec::as_slice);
    match args.list.output {
        Output::Json => output::json(&list)?,
        Output::Text if args.list.quiet => {
            for container in containers {
                output::line(short(&container["Id"]))?;
            }
        }
        Output::Text => {
            let rows: Vec<Vec<String>> = containers.iter().map(row).collect();
            output::print(output::table(
                &[
                    "CONTAINER ID",
                    "IMAGE",
                    "COMMAND",
                    "STATUS",
                    "PORTS",
                    "NAME",
                ],
                &rows,
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(container: &Value) -> Vec<String> {
    let text = |key: &str| container[key].as_str().unwrap_or_default().to_owned();
    let ports: Vec<String> = container["Ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(port)
        .collect();
    let name = container["Names"][0].as_str().unwrap_or_default();
    vec![
        short(&container["Id"]),
        text("Image"),
        text("Command").chars().take(30).collect(),
        text("Status"),
        ports.join(", "),
        name.trim_start_matches('/').to_owned(),
    ]
}

fn port(port: &Value) -> String {
    let (inner, kind) = (&port["PrivatePort"], port["Type"].as_str().unwrap_or("tcp"));
    match (port["IP"].as_str(), port["PublicPort"].as_u64()) {
        (Some(address), Some(outer)) if address.contains(':') => {
            format!("[{address}]:{outer}->{inner}/{kind}")
        }
        (Some(address), Some(outer)) => format!("{address}:{outer}->{inner}/{kind}"),
        _ => format!("{inner}/{kind}"),
    }
}

/// Twelve digits of an ID, without the algorithm.
pub fn short(id: &Value) -> String {
    let id = id.as_str().unwrap_or_default();
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

pub async fn start(client: &Client, names: &[String]) -> anyhow::Result<ExitCode> {
    each(client, names, Method::POST, |name| {
        format!("/containers/{name}/start")
    })
    .await
}

pub async fn stop(client: &Client, args: &StopArgs) -> anyhow::Result<ExitCode> {
    let time = args.time.map_or_else(String::new, |t| format!("?t={t}"));
    each(client, &args.names, Method::POST, |name| {
        format!("/containers/{name}/stop{time}")
    })
    .await
}

pub async fn kill(client: &Client, args: &KillArgs) -> anyhow::Result<ExitCode> {
    let signal = escaped(&args.signal);
    each(client, &args.names, Method::POST, |name| {
        format!("/containers/{name}/kill?signal={signal}")
    })
    .await
}

pub async fn remove(client: &Client, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let (force, volumes) = (u8::from(args.force), u8::from(args.volumes));
    each(client, &args.names, Method::DELETE, |name| {
        format!("/containers/{name}?force={force}&v={volumes}")
    })
    .await
}

/// The same request for each name: what worked is data, what failed is one sentence each, and the rest goes on.
pub async fn each(
    client: &Client,
    names: &[String],
    method: Method,
    path: impl Fn(&str) -> String,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match client.call(method.clone(), &path(&escaped(name))).await {
            Ok(_) => output::line(name)?,
            Err(error) => {
                eprintln!("gantry: {}", crate::sentence(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

pub async fn inspect(client: &Client, names: &[String]) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let name = escaped(name);
        let document = match client.get(&format!("/containers/{name}/json")).await {
            Ok(document) => Ok(document),
            // The container's refusal is the better sentence when neither is there.
            Err(error) => client
                .get(&format!("/images/{name}/json"))
                .await
                .map_err(|_| error),
        };
        match document {
            Ok(document) => found.push(document),
            Err(error) => {
                eprintln!("gantry: {}", crate::sentence(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    output::json(&Value::Array(found))?;
    Ok(code)
}
