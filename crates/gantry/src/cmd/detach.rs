//! `gantry up --detach`: the same program once more, in a session of its own; this one waits for its "ready".

use crate::args::UpArgs;
use crate::settings::Settings;
use anyhow::Context;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

/// Starts the daemon and repeats what it says until it serves or fails.
pub fn run(settings: &Settings, up: &UpArgs) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("finding the program's own file")?;
    let mut child = Command::new(program)
        .args(words(settings, up))
        .env_remove("GANTRY_DATA_DIR")
        .env_remove("GANTRY_RUN_DIR")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the daemon")?;
    let talk = child.stdout.take().expect("stdout was made a pipe");
    let (mut ready, mut complaint) = (false, false);
    // The daemon closes its end when it has said all there is to say; the kernel does when it dies.
    for line in BufReader::new(talk).lines() {
        let line = line.context("reading what the daemon says")?;
        ready |= line.starts_with("ready in ");
        complaint |= line.starts_with("gantry: ");
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    if ready {
        // It serves; what it could not do beside that (the demo) is a failure all the same.
        return Ok(ExitCode::from(u8::from(complaint)));
    }
    let status = child.wait().context("waiting for the daemon")?;
    let code = status.code().and_then(|c| u8::try_from(c).ok());
    if code.is_none() {
        eprintln!(
            "gantry: the daemon ended before it served ({status}); its log is {}",
            settings.dirs.run.join("gantry.log").display()
        );
    }
    Ok(ExitCode::from(code.filter(|c| *c != 0).unwrap_or(1)))
}

/// The child's command line: everything as resolved, so that it does not depend on this process's folder.
fn words(settings: &Settings, up: &UpArgs) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["up".into(), "--detached".into()];
    let mut flag = |name: &str, value: &std::ffi::OsStr| {
        words.push(name.into());
        words.push(value.to_owned());
    };
    flag("--data-dir", settings.dirs.data.as_os_str());
    flag("--run-dir", settings.dirs.run.as_os_str());
    let docker = match &settings.docker {
        Some(path) => {
            let mut address = OsString::from("unix://");
            address.push(path);
            address
        }
        None => "off".into(),
    };
    flag("--docker", &docker);
    for address in &settings.front.addresses {
        flag("--docker", format!("tcp://{address}").as_ref());
    }
    let registry = settings.front.registry;
    // Left out when it is the default, which gives way to another program on its port.
    if registry.is_none_or(|registry| registry.typed) {
        let address = registry.map_or_else(|| "off".to_owned(), |r| r.address.to_string());
        flag("--registry", address.as_ref());
    }
    let kube = settings.front.kube;
    if kube.is_none_or(|kube| kube.typed) {
        let address = kube.map_or_else(|| "off".to_owned(), |kube| kube.address.to_string());
        flag("--kube", address.as_ref());
    }
    if let Some(tls) = &settings.front.tls {
        flag("--tlscert", tls.certificate.as_os_str());
        flag("--tlskey", tls.key.as_os_str());
        if let Some(authority) = &tls.authority {
            flag("--tlscacert", authority.as_os_str());
        }
    }
    flag("--subnet-pool", settings.subnet_pool.to_string().as_ref());
    let firewall = match settings.firewall {
        gantry_network::Firewall::Friendly => "friendly",
        gantry_network::Firewall::Strict => "strict",
    };
    flag("--firewall", firewall.as_ref());
    if settings
        .front
        .tls
        .as_ref()
        .is_some_and(|tls| tls.authority.is_some())
    {
        words.push("--tlsverify".into());
    }
    for mirror in settings.registries.mirrors() {
        words.extend(["--registry-mirror".into(), mirror.into()]);
    }
    let (hosts, nets) = settings.registries.insecure();
    for insecure in hosts.into_iter().chain(nets) {
        words.extend(["--insecure-registry".into(), insecure.into()]);
    }
    for plugin in &settings.authorization_plugins {
        words.extend(["--authorization-plugin".into(), plugin.into()]);
    }
    if settings.restart_unhealthy {
        words.push("--restart-unhealthy".into());
    }
    if up.demo {
        words.push("--demo".into());
    }
    words
}
