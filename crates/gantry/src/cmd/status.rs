//! `gantry status`: what is up.

use crate::args::Output;
use crate::client::Client;
use crate::instance::Dirs;
use crate::output;
use anyhow::bail;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Exit code 1 when nothing runs, so that scripts can ask.
pub async fn run(dirs: &Dirs, how: Output) -> anyhow::Result<ExitCode> {
    let Some(daemon) = dirs.daemon()? else {
        if how == Output::Json {
            output::json(&json!({ "running": false, "dataDir": dirs.data, "runDir": dirs.run }))?;
            return Ok(ExitCode::FAILURE);
        }
        bail!(
            "no gantry runs on {}; start it with `gantry up`",
            dirs.data.display()
        );
    };
    let info = match &daemon.docker {
        Some(socket) => Client::at(socket.clone()).get("/info").await?,
        None => Value::Null,
    };
    let number = |key: &str| info[key].as_u64().unwrap_or(0);
    let warnings: Vec<&str> = info["Warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let docker = daemon.docker.as_ref().map_or_else(
        || "off".to_owned(),
        |path| format!("unix://{}", path.display()),
    );
    if how == Output::Json {
        output::json(&json!({
            "running": true,
            "pid": daemon.pid,
            "version": daemon.version,
            "instance": daemon.instance,
            "dataDir": daemon.data_dir,
            "runDir": daemon.run_dir,
            "startedAt": daemon.started_at.to_string(),
            "docker": docker,
            "dockerTcp": daemon.docker_tcp,
            "registry": daemon.registry,
            "kube": daemon.kube,
            "containers": {
                "running": number("ContainersRunning"),
                "paused": number("ContainersPaused"),
                "stopped": number("ContainersStopped"),
            },
            "images": number("Images"),
            "warnings": warnings,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let up = jiff::Timestamp::now().duration_since(daemon.started_at);
    output::line(format!(
        "gantry {} runs, pid {}, for {}",
        daemon.version,
        daemon.pid,
        span(up.as_secs())
    ))?;
    output::line(format!("  instance    {}", daemon.instance))?;
    output::line(format!("  data        {}", daemon.data_dir.display()))?;
    output::line(format!("  docker      {docker}"))?;
    for address in &daemon.docker_tcp {
        output::line(format!("  docker      {address}"))?;
    }
    let registry = daemon.registry.as_deref().unwrap_or("off");
    output::line(format!("  registry    {registry}"))?;
    let kube = daemon.kube.as_deref().unwrap_or("off");
    output::line(format!("  kube        {kube}"))?;
    if daemon.docker.is_some() {
        output::line(format!(
            "  containers  {} running, {} paused, {} stopped",
            number("ContainersRunning"),
            number("ContainersPaused"),
            number("ContainersStopped")
        ))?;
        output::line(format!("  images      {}", number("Images")))?;
    }
    for warning in warnings {
        output::line(format!("  warning     {warning}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
