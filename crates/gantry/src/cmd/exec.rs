//! `gantry exec`.

use super::run::variable;
use super::streams::{RawTerminal, follow_size, pump, terminal_size};
use crate::args::ExecArgs;
use crate::client::{Client, escaped};
use anyhow::Context;
use serde_json::json;
use std::process::ExitCode;

pub async fn run(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let mut document = json!({
        "Cmd": args.command,
        "AttachStdin": args.interactive && !args.detach,
        "AttachStdout": !args.detach,
        "AttachStderr": !args.detach,
        "Tty": args.tty,
        "Env": args.env.iter().filter_map(|v| variable(v)).collect::<Vec<_>>(),
        "User": args.user.as_deref().unwrap_or_default(),
        "WorkingDir": args.workdir.as_deref().unwrap_or_default(),
        "Privileged": args.privileged,
    });
    let size = terminal_size().filter(|_| args.tty);
    if let Some((columns, rows)) = size {
        document["ConsoleSize"] = json!([rows, columns]);
    }
    let container = escaped(&args.container);
    let created = client
        .post(&format!("/containers/{container}/exec"), &document)
        .await?;
    let id = created["Id"].as_str().context("the daemon names no exec")?;
    let start = format!("/exec/{id}/start");
    let how = json!({
        "Detach": args.detach,
        "Tty": args.tty,
        "ConsoleSize": size.map(|(columns, rows)| [rows, columns]),
    });
    if args.detach {
        client.post(&start, &how).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let stream = client.hijack(&start, Some(&how)).await?;
    let raw = if args.tty {
        RawTerminal::enter()?
    } else {
        None
    };
    let resize = format!("/exec/{id}/resize");
    tokio::select! {
        done = pump(stream, args.interactive, args.tty) => done?,
        () = follow_size(client, &resize), if args.tty => {}
    }
    drop(raw);
    let ended = client.get(&format!("/exec/{id}/json")).await?;
    let code = ended["ExitCode"].as_i64().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
