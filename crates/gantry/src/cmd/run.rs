//! `gantry run`.

use super::streams::{RawTerminal, follow_size, pump, terminal_size};
use crate::args::RunArgs;
use crate::client::{Client, escaped};
use crate::output;
use anyhow::{Context, bail};
use http::Method;
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

pub async fn run(client: &Client, args: RunArgs) -> anyhow::Result<ExitCode> {
    let document = document(&args)?;
    let query = args
        .name
        .as_ref()
        .map_or_else(String::new, |name| format!("?name={}", escaped(name)));
    let created = client
        .post(&format!("/containers/create{query}"), &document)
        .await?;
    for warning in created["Warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", warning.as_str().unwrap_or_default());
    }
    let id = created["Id"]
        .as_str()
        .context("the daemon names no container")?
        .to_owned();
    if args.detach {
        client
            .call(Method::POST, &format!("/containers/{id}/start"))
            .await?;
        output::line(&id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stdin = if args.interactive { "&stdin=1" } else { "" };
    let stream = client
        .hijack(
            &format!("/containers/{id}/attach?stream=1&stdout=1&stderr=1{stdin}"),
            None,
        )
        .await?;
    // Asked before the start, so that a container that ends at once (and is removed) is not missed.
    let condition = if args.rm { "removed" } else { "next-exit" };
    let waiting = tokio::spawn({
        let client = client.clone();
        let path = format!("/containers/{id}/wait?condition={condition}");
        async move { client.call(Method::POST, &path).await }
    });
    if let Err(error) = client
        .call(Method::POST, &format!("/containers/{id}/start"))
        .await
    {
        waiting.abort();
        if args.rm {
            let _ = client
                .call(Method::DELETE, &format!("/containers/{id}?force=1"))
                .await;
        }
        return Err(error);
    }
    let raw = if args.tty {
        RawTerminal::enter()?
    } else {
        None
    };
    let resize = format!("/containers/{id}/resize");
    let signals = format!("/containers/{id}/kill");
    tokio::select! {
        done = pump(stream, args.interactive, args.tty) => done?,
        () = follow_size(client, &resize), if args.tty => {}
        () = pass_signals(client, &signals), if !args.tty => {}
    }
    drop(raw);
    let ended = waiting.await.context("waiting for the container")??;
    if let Some(message) = ended["Error"]["Message"].as_str()
        && !message.is_empty()
    {
        bail!("{message}");
    }
    let code = ended["StatusCode"].as_i64().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// What the user sends us is meant for the container. Never ends.
async fn pass_signals(client: &Client, path: &str) {
    let (Ok(mut int), Ok(mut term)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    loop {
        let name = tokio::select! {
            _ = int.recv() => "INT",
            _ = term.recv() => "TERM",
        };
        let _ = client
            .call(Method::POST, &format!("{path}?signal={name}"))
            .await;
    }
}

/// The request of `POST /containers/create`.
fn document(args: &RunArgs) -> anyhow::Result<Value> {
    let (exposed, bindings) = ports(&args.shape.publish)?;
    let attached = !args.detach;
    let mut host = json!({
        "Binds": args.shape.volume,
        "PortBindings": bindings,
        "AutoRemove": args.rm,
        "Privileged": args.privileged,
        "ReadonlyRootfs": args.read_only,
        "CapAdd": args.cap_add,
        "CapDrop": args.cap_drop,
        "NetworkMode": args.network.as_deref().unwrap_or("default"),
    });
    if args.init {
        host["Init"] = json!(true);
    }
    if let Some(memory) = &args.shape.memory {
        host["Memory"] = json!(bytes(memory).with_context(|| format!("--memory {memory}"))?);
    }
    if let Some(cpus) = &args.shape.cpus {
        host["NanoCpus"] = json!(nano_cpus(cpus).with_context(|| format!("--cpus {cpus}"))?);
    }
    if let Some(limit) = args.shape.pids_limit {
        host["PidsLimit"] = json!(limit);
    }
    if let Some(policy) = &args.shape.restart {
        host["RestartPolicy"] = restart(policy)?;
    }
    if args.tty
        && let Some((columns, rows)) = terminal_size()
    {
        host["ConsoleSize"] = json!([rows, columns]);
    }
    let mut document = json!({
        "Image": args.image,
        "Env": args.shape.env.iter().filter_map(|v| variable(v)).collect::<Vec<_>>(),
        "Labels": args.shape.label.iter().map(|l| {
            let (name, value) = l.split_once('=').unwrap_or((l, ""));
            (name.to_owned(), json!(value))
        }).collect::<Map<_, _>>(),
        "Tty": args.tty,
        "OpenStdin": args.interactive,
        "StdinOnce": args.interactive && attached,
        "AttachStdin": args.interactive && attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "ExposedPorts": exposed,
        "HostConfig": host,
    });
    if !args.command.is_empty() {
        document["Cmd"] = json!(args.command);
    }
    let words = [
        ("Hostname", &args.hostname),
        ("User", &args.user),
        ("WorkingDir", &args.workdir),
    ];
    for (key, value) in words {
        if let Some(value) = value {
            document[key] = json!(value);
        }
    }
    if let Some(entrypoint) = &args.entrypoint {
        document["Entrypoint"] = json!([entrypoint]);
    }
    Ok(document)
}

/// `NAME=VALUE`; `NAME` alone takes our own value, and nothing when we have none.
pub fn variable(typed: &str) -> Option<String> {
    if typed.contains('=') {
        return Some(typed.to_owned());
    }
    std::env::var(typed)
        .ok()
        .map(|value| format!("{typed}={value}"))
}

/// `[ADDRESS:][PORT:]CONTAINER_PORT[/PROTOCOL]`, address of IPv6 in brackets. A port may be a range, passed on as it is.
pub fn ports(typed: &[String]) -> anyhow::Result<(Map<String, Value>, Map<String, Value>)> {
    let mut exposed = Map::new();
    let mut bindings: Map<String, Value> = Map::new();
    for text in typed {
        let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let (head, container) = rest.rsplit_once(':').unwrap_or(("", rest));
        let (address, host) = match head.rsplit_once(':') {
            Some((address, host)) => (address.trim_start_matches('[').trim_end_matches(']'), host),
            None => ("", head),
        };
        let number = |text: &str| {
            text.split('-').count() <= 2 && text.split('-').all(|n| n.parse::<u16>().is_ok())
        };
        if !number(container) || !(host.is_empty() || number(host)) {
            bail!("--publish {text} is not [ADDRESS:]PORT:CONTAINER_PORT[/PROTOCOL]");
        }
        let Some((first, last)) = container.split_once('-') else {
            add(
                &mut exposed,
                &mut bindings,
                &format!("{container}/{protocol}"),
                address,
                host,
            );
            continue;
        };
        let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
        let host_first: Option<u16> = match host.split_once('-') {
            Some((low, high)) => {
                let (low, high): (u16, u16) = (low.parse()?, high.parse()?);
                if high.checked_sub(low) != last.checked_sub(first) {
                    bail!("--publish {text}: both ranges must be equally long");
                }
                Some(low)
            }
            None if host.is_empty() => None,
            None => bail!("--publish {text}: both must be ranges"),
        };
        for port in first..=last {
            let host =
                host_first.map_or_else(String::new, |low| (low + (port - first)).to_string());
            add(
                &mut exposed,
                &mut bindings,
                &format!("{port}/{protocol}"),
                address,
                &host,
            );
        }
    }
    Ok((exposed, bindings))
}

fn add(
    exposed: &mut Map<String, Value>,
    bindings: &mut Map<String, Value>,
    key: &str,
    address: &str,
    host: &str,
) {
    exposed.insert(key.to_owned(), json!({}));
    let list = bindings.entry(key.to_owned()).or_insert_with(|| json!([]));
    if let Value::Array(list) = list {
        list.push(json!({ "HostIp": address, "HostPort": host }));
    }
}

/// `64m`, `1.5g`, `4096`.
pub fn bytes(text: &str) -> anyhow::Result<i64> {
    let lower = text.to_ascii_lowercase();
    let number = lower
        .trim_end_matches('b')
        .trim_end_matches(['k', 'm', 'g', 't']);
    let factor: f64 = match lower[number.len()..].trim_end_matches('b') {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1024.0 * 1024.0,
        "g" => 1024.0 * 1024.0 * 1024.0,
        "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => bail!("not a size; write a number with k, m or g"),
    };
    match number.parse::<f64>() {
        Ok(number) if number >= 0.0 && number * factor < 9e18 => Ok((number * factor) as i64),
        _ => bail!("not a size; write a number with k, m or g"),
    }
}

pub fn nano_cpus(text: &str) -> anyhow::Result<i64> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.0..1e6).contains(&cpus) => Ok((cpus * 1e9).round() as i64),
        _ => bail!("not a number of CPUs"),
    }
}

pub fn restart(policy: &str) -> anyhow::Result<Value> {
    let (name, count) = policy.split_once(':').unwrap_or((policy, "0"));
    let Ok(count) = count.parse::<u32>() else {
        bail!("--restart {policy}: the count is not a number");
    };
    Ok(json!({ "Name": name, "MaximumRetryCount": count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str) -> String {
        match ports(&[text.to_owned()]) {
            Ok((_, bindings)) => Value::Object(bindings).to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        assert_eq!(
            published("8080:80"),
            r#"{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}"#
        );
        assert_eq!(
            published("53/udp"),
            r#"{"53/udp":[{"HostIp":"","HostPort":""}]}"#
        );
        assert_eq!(
            published("127.0.0.1::80"),
            r#"{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]}"#
        );
        assert_eq!(
            published("[::1]:8:80"),
            r#"{"80/tcp":[{"HostIp":"::1","HostPort":"8"}]}"#
        );
        assert_eq!(
            published("8000-8001:80-81"),
            r#"{"80/tcp":[{"HostIp":"","HostPort":"8000"}],"81/tcp":[{"HostIp":"","HostPort":"8001"}]}"#
        );
        for bad in [
            "x:80",
            "80:70000",
            "8000-8002:80-81",
            "",
            "8000:80-81",
            "1-2-3:80",
        ] {
            assert!(published(bad).starts_with("--publish"), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, number) in [
            ("4096", 4096),
            ("64m", 64 << 20),
            ("1.5G", 3 << 29),
            ("2kb", 2048),
            ("0", 0),
        ] {
            assert_eq!(bytes(text).unwrap(), number, "{text}");
        }
        for bad in ["", "m", "1x", "-1m", "1e30", "nan"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(nano_cpus("0.5").unwrap(), 500_000_000);
        assert!(nano_cpus("inf").is_err() && nano_cpus("-1").is_err());
    }
}
