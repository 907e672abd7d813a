//! `gantry logs`.

use super::streams::copy_frames;
use crate::args::LogsArgs;
use crate::client::{Client, empty, escaped};
use crate::output;
use anyhow::Context;
use http::Method;
use http_body_util::BodyExt;
use std::process::ExitCode;
use tokio::io::AsyncWriteExt;

pub async fn run(client: &Client, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let name = escaped(&args.container);
    let container = client.get(&format!("/containers/{name}/json")).await?;
    let tty = container["Config"]["Tty"].as_bool().unwrap_or(false);
    let tail = args
        .tail
        .map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let path = format!(
        "/containers/{name}/logs?stdout=1&stderr=1&follow={}&timestamps={}&tail={tail}",
        u8::from(args.follow),
        u8::from(args.timestamps),
    );
    let mut body = client
        .send(Method::GET, &path, empty(), &[])
        .await?
        .into_body();
    // Frames do not end where the body's pieces end, so the pieces go through a pipe in memory.
    let (mut near, mut far) = tokio::io::duplex(64 << 10);
    let reading = async {
        while let Some(piece) = body.frame().await {
            if let Ok(bytes) = piece.context("reading the log")?.into_data() {
                if tty {
                    output::print(&bytes)?;
                } else {
                    near.write_all(&bytes)
                        .await
                        .context("taking the log apart")?;
                }
            }
        }
        drop(near);
        anyhow::Ok(())
    };
    let (read, copied) = tokio::join!(reading, copy_frames(&mut far));
    read.and(copied)?;
    Ok(ExitCode::SUCCESS)
}
