//! The demo: a tiny web page in a container, from nothing but the embedded static program. No network, no registry.

use super::images::load_archive;
use crate::client::Client;
use crate::runtime_program;
use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;

const IMAGE: &str = "gantry-demo:latest";
const NAME: &str = "gantry-demo";
/// Where the page is published when nobody has that port; otherwise the next free one.
const FIRST_PORT: u16 = 8000;
const PORTS: u16 = 100;
const MEMORY_BYTES: u64 = 64 << 20;
const NANO_CPUS: u64 = 500_000_000;
const PIDS: u64 = 32;

pub async fn run(client: &Client) -> anyhow::Result<ExitCode> {
    for line in up(client).await? {
        eprintln!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes what is missing (image, container), starts it, and answers with the lines to show, six at most.
pub async fn up(client: &Client) -> anyhow::Result<Vec<String>> {
    let found = client.get(&format!("/containers/{NAME}/json")).await.ok();
    if found.is_none() {
        create(client).await?;
    }
    let running = found.is_some_and(|c| c["State"]["Running"].as_bool() == Some(true));
    if !running {
        client
            .call(Method::POST, &format!("/containers/{NAME}/start"))
            .await
            .context("starting the demo container")?;
    }
    let container = client.get(&format!("/containers/{NAME}/json")).await?;
    let port = container["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
        .as_str()
        .context("the demo container publishes no port")?
        .to_owned();
    let gantry = own_name();
    Ok(vec![
        format!("the demo container serves http://127.0.0.1:{port}/   next:"),
        format!("  export DOCKER_HOST=unix://{}", client.socket().display()),
        "  docker ps".to_owned(),
        format!("  docker logs -f {NAME}"),
        format!("  docker stats {NAME}"),
        format!(
            "stop: {gantry} down   (containers run on; with --purge they and everything else go)"
        ),
    ])
}

/// What to type for this program: its name when the shell finds it by that, otherwise its path.
fn own_name() -> String {
    let Ok(own) = std::env::current_exe() else {
        return "gantry".to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path)
        .map(|folder| folder.join("gantry"))
        .find(|candidate| candidate.is_file());
    if first.is_some_and(|found| found.canonicalize().ok() == own.canonicalize().ok()) {
        "gantry".to_owned()
    } else {
        own.display().to_string()
    }
}

async fn create(client: &Client) -> anyhow::Result<()> {
    if client.get(&format!("/images/{IMAGE}/json")).await.is_err() {
        load_archive(client, Box::new(std::io::Cursor::new(archive()?)), false)
            .await
            .context("loading the demo image")?;
    }
    let document = json!({
        "Image": IMAGE,
        "HostConfig": {
            "PortBindings": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": free_port()?.to_string() }] },
            "Memory": MEMORY_BYTES,
            "NanoCpus": NANO_CPUS,
            "PidsLimit": PIDS,
            "ReadonlyRootfs": true,
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_BIND_SERVICE"],
            "RestartPolicy": { "Name": "unless-stopped" },
        },
    });
    client
        .post(&format!("/containers/create?name={NAME}"), &document)
        .await
        .context("creating the demo container")?;
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    for port in FIRST_PORT..FIRST_PORT + PORTS {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "no port of {FIRST_PORT} to {} is free for the demo",
        FIRST_PORT + PORTS - 1
    )
}

/// A `docker save` archive of one layer with one file: our own static program.
fn archive() -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer, "gantry-runtime", 0o755, runtime_program::BYTES)?;
    let layer = layer.into_inner().context("packing the demo layer")?;
    let diff_id = sha256(&layer);
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config: Value = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/gantry-runtime", "demo-web"],
            "ExposedPorts": { "80/tcp": {} },
            "User": "65534:65534",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "gantry demo" }],
    });
    let config = config.to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": [IMAGE], "Layers": [layer_name] }]);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, &layer_name, 0o644, &layer)?;
    add(&mut archive, &config_name, 0o644, config.as_bytes())?;
    add(
        &mut archive,
        "manifest.json",
        0o644,
        manifest.to_string().as_bytes(),
    )?;
    archive.into_inner().context("packing the demo image")
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, bytes)
        .with_context(|| format!("packing {name}"))
}

fn sha256(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
