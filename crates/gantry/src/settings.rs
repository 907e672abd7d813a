//! What `gantry up` was told, resolved once: default < file < environment < flag.
//!
//! The file (`--config`) is one JSON object. Its keys are the flags' names without the dashes in front:
//! ```json
//! { "docker": "unix:///run/gantry/docker.sock", "subnet-pool": "172.16.0.0/12", "firewall": "friendly" }
//! ```
//! `data-dir` and `run-dir` may stand in it too. Unknown keys are refused, so that a typo does not pass in silence.

use crate::args::{DirArgs, LaterArgs, UpArgs};
use crate::front::{Address, TlsFiles, Wanted};
use crate::instance::Dirs;
use anyhow::{Context, bail};
use gantry_network::Firewall;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A configuration file longer than this is refused.
const CONFIG_LIMIT: u64 = 1 << 20;
/// The longest path that fits a unix socket's address.
const SOCKET_PATH_LIMIT: usize = 107;
/// Addresses on TCP.
const TCP_LIMIT: usize = 8;
/// Where clients expect a registry.
pub const DEFAULT_REGISTRY: &str = "127.0.0.1:5000";
/// Docker's own range. Every address and route of the host is left out when subnets are cut from it.
const DEFAULT_SUBNET_POOL: &str = "172.16.0.0/12";
const DEFAULT_KUBE: &str = "127.0.0.1:6443";

/// What `gantry up` does.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub dirs: Dirs,
    /// Socket of the Docker API; `None` is `off`.
    pub docker: Option<PathBuf>,
    /// The Docker API on TCP and the registry, through `gantry front`.
    pub front: Wanted,
    pub subnet_pool: ipnet::Ipv4Net,
    pub firewall: Firewall,
    /// A container that becomes unhealthy is restarted unless its label forbids it.
    pub restart_unhealthy: bool,
    /// Asked before every request of the Docker API.
    pub authorization_plugins: Vec<String>,
    /// Mirrors and insecure registries.
    pub registries: gantry_engine::Registries,
}

/// The configuration file. Same words as the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ConfigFile {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    docker: Option<OneOrMore>,
    tlscert: Option<PathBuf>,
    tlskey: Option<PathBuf>,
    tlscacert: Option<PathBuf>,
    tlsverify: Option<bool>,
    subnet_pool: Option<String>,
    firewall: Option<String>,
    restart_unhealthy: Option<bool>,
    #[serde(alias = "authorization-plugin")]
    authorization_plugins: Option<OneOrMore>,
    kube: Option<String>,
    registry: Option<String>,
    router: Option<String>,
    router_tls: Option<String>,
    console: Option<String>,
    store: Option<String>,
    join: Option<String>,
    token: Option<String>,
    name: Option<String>,
    pod_cidr: Option<String>,
    service_cidr: Option<String>,
    /// Docker's name for the list of `--registry-mirror`.
    #[serde(alias = "registry-mirror")]
    registry_mirrors: Option<OneOrMore>,
    #[serde(alias = "insecure-registry")]
    insecure_registries: Option<OneOrMore>,
}

/// `"ADDRESS"` or `["ADDRESS", …]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

impl Settings {
    pub fn resolve(dirs: &DirArgs, up: &UpArgs) -> anyhow::Result<Self> {
        let file = match &up.config {
            Some(path) => read_file(path)?,
            None => ConfigFile::default(),
        };
        let dirs = Dirs::resolve(
            dirs.data_dir.clone().or(file.data_dir.clone()),
            dirs.run_dir.clone().or(file.run_dir.clone()),
        )?;
        refuse_later(&up.later, &file)?;
        let typed = match &file.docker {
            Some(filed) if up.docker.is_empty() => filed.as_slice(),
            _ => &up.docker,
        };
        let (tcp, local): (Vec<_>, Vec<_>) = typed.iter().partition(|a| a.starts_with("tcp://"));
        if let [_, second, ..] = local[..] {
            bail!("--docker {second} is one local address too many; say one unix:///PATH or off");
        }
        let docker = docker_socket(local.first().copied(), &dirs.run.join("docker.sock"))?;
        let front = front(&tcp, up, &file)?;
        let pool = up
            .subnet_pool
            .as_ref()
            .or(file.subnet_pool.as_ref())
            .map_or(DEFAULT_SUBNET_POOL, String::as_str);
        let subnet_pool: ipnet::Ipv4Net = pool.parse().map_err(|_| {
            anyhow::anyhow!("--subnet-pool {pool} is not an IPv4 subnet; write one such as {DEFAULT_SUBNET_POOL}")
        })?;
        if subnet_pool.prefix_len() > 24 {
            bail!("--subnet-pool {pool} is too small to cut subnets from; give at least a /24");
        }
        let firewall = match up
            .firewall
            .as_ref()
            .or(file.firewall.as_ref())
            .map(String::as_str)
        {
            None | Some("friendly") => Firewall::Friendly,
            Some("strict") => Firewall::Strict,
            Some(other) => bail!("--firewall {other} is unknown; say friendly or strict"),
        };
        Ok(Self {
            dirs,
            docker,
            front,
            subnet_pool: subnet_pool.trunc(),
            firewall,
            restart_unhealthy: up.restart_unhealthy || file.restart_unhealthy.unwrap_or(false),
            authorization_plugins: match (
                up.authorization_plugin.as_slice(),
                &file.authorization_plugins,
            ) {
                ([], Some(OneOrMore::One(name))) => vec![name.clone()],
                ([], Some(OneOrMore::More(names))) => names.clone(),
                (names, _) => names.to_vec(),
            },
            registries: registries(up, &file)?,
        })
    }
}

fn registries(up: &UpArgs, file: &ConfigFile) -> anyhow::Result<gantry_engine::Registries> {
    let list = |typed: &[String], filed: &Option<OneOrMore>| -> Vec<String> {
        let list = match filed {
            Some(filed) if typed.is_empty() => filed.as_slice(),
            _ => typed,
        };
        list.iter()
            .filter(|value| *value != "off")
            .cloned()
            .collect()
    };
    gantry_engine::Registries::new(
        &list(&up.registry_mirror, &file.registry_mirrors),
        &list(&up.insecure_registry, &file.insecure_registries),
    )
    .map_err(|error| anyhow::anyhow!(error.chain()))
}

fn read_file(path: &Path) -> anyhow::Result<ConfigFile> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_LIMIT).read_to_string(&mut text))
        .with_context(|| format!("reading --config {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "--config {} is not the JSON object that gantry reads",
            path.display()
        )
    })
}

fn docker_socket(typed: Option<&String>, default: &Path) -> anyhow::Result<Option<PathBuf>> {
    let path = match typed.map(String::as_str) {
        None => default.to_owned(),
        Some("off") => return Ok(None),
        Some(address) => match address.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => PathBuf::from(path),
            Some(_) => bail!(
                "--docker {address} needs an absolute path, such as unix://{}",
                default.display()
            ),
            None => {
                bail!(
                    "--docker {address} is not served by this build; say unix:///PATH, tcp://IP:PORT or off"
                )
            }
        },
    };
    if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        bail!(
            "--docker unix://{} is longer than the {SOCKET_PATH_LIMIT} bytes that a socket's path may have; choose a shorter --run-dir or path",
            path.display()
        );
    }
    Ok(Some(path))
}

/// What shall be served on TCP. The API is root on this machine for whoever reaches it, so beyond loopback clients must prove
/// who they are.
fn front(tcp: &[&String], up: &UpArgs, file: &ConfigFile) -> anyhow::Result<Wanted> {
    let either = |flag: &Option<PathBuf>, filed: &Option<PathBuf>| flag.clone().or(filed.clone());
    let certificate = either(&up.tlscert, &file.tlscert);
    let key = either(&up.tlskey, &file.tlskey);
    let authority = either(&up.tlscacert, &file.tlscacert);
    let verify = up.tlsverify || file.tlsverify == Some(true);
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles {
            certificate: std::path::absolute(certificate)?,
            key: std::path::absolute(key)?,
            authority: match (verify, authority) {
                (true, Some(authority)) => Some(std::path::absolute(authority)?),
                (true, None) => {
                    bail!("--tlsverify needs --tlscacert, the authority of clients' certificates")
                }
                (false, _) => None,
            },
        }),
        (None, None) if verify => bail!("--tlsverify needs --tlscert and --tlskey"),
        (None, None) => None,
        _ => bail!("--tlscert and --tlskey go together"),
    };
    if tcp.len() > TCP_LIMIT {
        bail!("--docker tcp://… may be given {TCP_LIMIT} times at most");
    }
    let mut addresses = Vec::new();
    for address in tcp {
        let plain = address.trim_start_matches("tcp://").trim_end_matches('/');
        let plain = plain.replace("localhost:", "127.0.0.1:");
        let parsed: SocketAddr = plain.parse().map_err(|_| {
            anyhow::anyhow!(
                "--docker {address} needs an address and a port, such as tcp://127.0.0.1:2376"
            )
        })?;
        if !parsed.ip().is_loopback() && tls.as_ref().is_none_or(|tls| tls.authority.is_none()) {
            bail!(
                "--docker {address} would give root on this machine to everybody who reaches it; add --tlsverify, --tlscacert, --tlscert and --tlskey, or listen on 127.0.0.1"
            );
        }
        addresses.push(parsed);
    }
    let registry = registry(
        up.registry.as_ref().or(file.registry.as_ref()),
        tls.is_some(),
    )?;
    let encrypted = registry.is_some_and(|registry| !registry.address.ip().is_loopback());
    if addresses.is_empty() && tls.is_some() && !encrypted {
        bail!(
            "--tlscert is for tcp:// addresses and a registry beyond loopback; add --docker tcp://IP:PORT"
        );
    }
    Ok(Wanted {
        addresses,
        registry,
        kube: kube(up.kube.as_ref().or(file.kube.as_ref()))?,
        tls,
    })
}

/// The Kubernetes API always speaks TLS and asks who comes, so it may listen anywhere.
fn kube(typed: Option<&String>) -> anyhow::Result<Option<Address>> {
    let text = match typed.map(String::as_str) {
        Some("off") => return Ok(None),
        Some(text) => text.replace("localhost:", "127.0.0.1:"),
        None => DEFAULT_KUBE.to_owned(),
    };
    let address = text.parse().map_err(|_| {
        anyhow::anyhow!("--kube {text} needs an address and a port, such as {DEFAULT_KUBE}, or off")
    })?;
    Ok(Some(Address {
        address,
        typed: typed.is_some(),
    }))
}

/// Beyond loopback passwords and content travel encrypted.
fn registry(typed: Option<&String>, tls: bool) -> anyhow::Result<Option<Address>> {
    let text = match typed.map(String::as_str) {
        Some("off") => return Ok(None),
        Some(text) => text.replace("localhost:", "127.0.0.1:"),
        None => DEFAULT_REGISTRY.to_owned(),
    };
    let address: SocketAddr = text.parse().map_err(|_| {
        anyhow::anyhow!(
            "--registry {text} needs an address and a port, such as {DEFAULT_REGISTRY}, or off"
        )
    })?;
    if !address.ip().is_loopback() && !tls {
        bail!(
            "--registry {address} would send passwords and images in the clear; add --tlscert and --tlskey, or listen on 127.0.0.1"
        );
    }
    Ok(Some(Address {
        address,
        typed: typed.is_some(),
    }))
}

/// The parts of the contract that this build does not carry refuse to be switched on, instead of being ignored.
fn refuse_later(flags: &LaterArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let parts = [
        ("router", &flags.router, &file.router, "off"),
        ("router-tls", &flags.router_tls, &file.router_tls, "off"),
        ("console", &flags.console, &file.console, "off"),
        ("store", &flags.store, &file.store, "embedded"),
        ("join", &flags.join, &file.join, "off"),
        ("token", &flags.token, &file.token, "off"),
        ("name", &flags.name, &file.name, "off"),
        ("pod-cidr", &flags.pod_cidr, &file.pod_cidr, "off"),
        (
            "service-cidr",
            &flags.service_cidr,
            &file.service_cidr,
            "off",
        ),
    ];
    for (flag, typed, filed, accepted) in parts {
        let Some(value) = typed.as_ref().or(filed.as_ref()) else {
            continue;
        };
        if value != accepted && value != "off" {
            // A token is a secret, so no value is repeated here.
            bail!("--{flag} is not served by this build; leave it out, or say --{flag} {accepted}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Verb};
    use clap::Parser;

    fn resolve(words: &str) -> Result<Settings, String> {
        let words = ["gantry", "up"].into_iter().chain(words.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|e| e.to_string())?;
        let Verb::Up(up) = args.verb else {
            unreachable!("`up` was typed")
        };
        Settings::resolve(&args.dirs, &up).map_err(|e| crate::sentence(&e))
    }

    #[test]
    fn defaults_follow_the_run_directory() {
        let settings = resolve("--data-dir /x/d --run-dir /x/r").unwrap();
        assert_eq!(settings.docker.unwrap(), Path::new("/x/r/docker.sock"));
        assert_eq!(settings.subnet_pool.to_string(), DEFAULT_SUBNET_POOL);
        assert_eq!(settings.firewall, Firewall::Friendly);
    }

    #[test]
    fn tcp_goes_beyond_loopback_only_with_clients_that_prove_themselves() {
        let up = |words: &str| resolve(&format!("--data-dir /x/d --run-dir /x/r {words}"));
        let plain = up("--docker tcp://127.0.0.1:2375 --docker tcp://[::1]:2375").unwrap();
        assert_eq!(plain.docker.as_deref(), Some(Path::new("/x/r/docker.sock")));
        assert_eq!((plain.front.addresses.len(), plain.front.tls), (2, None));
        assert_eq!(
            up("--docker off --docker tcp://localhost:1")
                .unwrap()
                .docker,
            None
        );
        let files = "--tlscert /c --tlskey /k --tlscacert /a";
        let open = up(&format!("--docker tcp://0.0.0.0:2376 {files}"));
        assert!(open.unwrap_err().contains("would give root"));
        let verified = up(&format!("--docker tcp://0.0.0.0:2376 {files} --tlsverify")).unwrap();
        assert_eq!(
            verified.front.tls.unwrap().authority.as_deref(),
            Some(Path::new("/a"))
        );
        for (words, sentence) in [
            (
                "--docker unix:///a --docker unix:///b",
                "one local address too many",
            ),
            ("--docker tcp://127.0.0.1", "needs an address and a port"),
            ("--docker tcp://127.0.0.1:1 --tlskey /k", "go together"),
            ("--tlscert /c --tlskey /k", "is for tcp:// addresses"),
        ] {
            assert!(up(words).unwrap_err().contains(sentence), "{words}");
        }
    }

    #[test]
    fn every_listener_takes_off() {
        let settings = resolve(
            "--docker off --kube off --registry off --router off --router-tls off --console off --store embedded",
        )
        .unwrap();
        assert_eq!((settings.docker, settings.front.kube), (None, None));
    }

    #[test]
    fn the_kubernetes_api_is_on_loopback_unless_told() {
        let kube =
            |words: &str| resolve(words).map(|s| s.front.kube.map(|a| a.address.to_string()));
        assert_eq!(kube("").unwrap().as_deref(), Some(DEFAULT_KUBE));
        let asked = kube("--kube localhost:0").unwrap();
        assert_eq!(asked.as_deref(), Some("127.0.0.1:0"));
        let refusal = kube("--kube 6443").unwrap_err();
        assert!(refusal.starts_with("--kube 6443 needs an address and a port"));
    }

    #[test]
    fn what_this_build_lacks_is_refused_by_name() {
        for flag in ["router", "router-tls", "console", "join", "token", "name"] {
            let refusal = resolve(&format!("--{flag} 127.0.0.1:1")).unwrap_err();
            assert_eq!(
                refusal,
                format!("--{flag} is not served by this build; leave it out, or say --{flag} off")
            );
        }
        assert!(
            resolve("--store etcd://a:1")
                .unwrap_err()
                .ends_with("say --store embedded")
        );
        assert!(
            resolve("--docker npipe:////./pipe/docker")
                .unwrap_err()
                .contains("not served")
        );
    }

    #[test]
    fn bad_values_are_named() {
        for (words, part) in [
            ("--subnet-pool 10.0.0.0", "--subnet-pool 10.0.0.0"),
            ("--subnet-pool 10.0.0.0/30", "too small"),
            ("--firewall open", "--firewall open"),
            ("--docker unix://relative", "absolute"),
            ("--config /nonexistent", "/nonexistent"),
        ] {
            let refusal = resolve(words).unwrap_err();
            assert!(refusal.contains(part), "{words}: {refusal}");
        }
        let long = format!("--docker unix:///{}", "x".repeat(120));
        assert!(resolve(&long).unwrap_err().contains("107 bytes"));
    }

    #[test]
    fn registries_have_dockers_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gantry.json");
        let text = r#"{"registry-mirrors": ["http://127.0.0.1:1/"], "insecure-registries": ["a:5000", "10.0.0.0/8"]}"#;
        std::fs::write(&path, text).unwrap();
        let up = |words: &str| resolve(&format!("--data-dir /x/d --run-dir /x/r {words}"));
        let file = format!("--config {}", path.display());
        let filed = up(&file).unwrap().registries;
        assert_eq!(filed.mirrors(), ["http://127.0.0.1:1/"]);
        let (hosts, nets) = filed.insecure();
        assert_eq!(
            (hosts, nets),
            (vec!["a:5000".to_owned()], vec!["10.0.0.0/8".to_owned()])
        );
        let flags = "--registry-mirror https://m --registry-mirror https://n --insecure-registry b";
        let typed = up(&format!("{file} {flags}")).unwrap().registries;
        assert_eq!(typed.mirrors(), ["https://m/", "https://n/"]);
        assert_eq!(typed.insecure().0, ["b"]);
        assert!(
            up("--registry-mirror m")
                .unwrap_err()
                .starts_with("invalid mirror: ")
        );
        assert!(up("--registry-mirror off --insecure-registry off").is_ok());
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gantry.json");
        std::fs::write(
            &path,
            r#"{"data-dir": "/f/d", "run-dir": "/f/r", "firewall": "strict", "subnet-pool": "10.9.0.0/16"}"#,
        )
        .unwrap();
        let settings = resolve(&format!(
            "--config {} --subnet-pool 10.8.0.0/16",
            path.display()
        ))
        .unwrap();
        assert_eq!(settings.dirs.data, Path::new("/f/d"));
        assert_eq!(settings.firewall, Firewall::Strict);
        assert_eq!(settings.subnet_pool.to_string(), "10.8.0.0/16");
        std::fs::write(&path, r#"{"fire-wall": "strict"}"#).unwrap();
        assert!(
            resolve(&format!("--config {}", path.display()))
                .unwrap_err()
                .contains("fire-wall")
        );
        std::fs::write(&path, r#"{"router": "127.0.0.1:8080"}"#).unwrap();
        assert!(
            resolve(&format!("--config {}", path.display()))
                .unwrap_err()
                .contains("--router")
        );
    }
}
