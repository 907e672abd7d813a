//! `gantry registry`: the registry alone, and what an operator does with its folder `D/registry`.

use crate::args::{AccountVerb, Output, RegistryArgs, RegistryServeArgs, RegistryVerb};
use crate::instance::Dirs;
use crate::settings::DEFAULT_REGISTRY;
use crate::{logging, output};
use anyhow::{Context, bail};
use gantry_registry::access::{self, Account, Accounts, Grant};
use gantry_registry::{Listener, Registry, Run};
use serde_json::json;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// A certificate, key or password longer than this is refused.
const TEXT_LIMIT: u64 = 64 << 10;
/// Files that are hashed and written at one time; more wait.
const BLOCKING_THREADS: usize = 64;

pub fn run(dirs: &Dirs, args: RegistryArgs) -> anyhow::Result<ExitCode> {
    let root = root(dirs);
    match args.verb {
        None => serve(dirs, &args.serve),
        Some(RegistryVerb::Account(args)) => account(&root, args.verb),
        Some(RegistryVerb::Collect {
            dry_run,
            grace,
            how,
        }) => collect(&root, dry_run, grace, how.output),
        Some(RegistryVerb::Check) => check(&root),
    }
}

fn root(dirs: &Dirs) -> PathBuf {
    dirs.data.join("registry")
}

/// Opens `D/registry` to be served on `address`. A registry where everybody may do everything stays on loopback.
pub fn open(dirs: &Dirs, address: SocketAddr) -> anyhow::Result<Arc<Registry>> {
    let registry = Registry::open(&root(dirs)).map_err(anyhow::Error::msg)?;
    if registry.is_open() && !address.ip().is_loopback() {
        bail!(
            "the registry on {address} would take and give everything to everybody; make an account first: gantry registry account set NAME --grant '*:read,write,delete' --data-dir {}",
            dirs.data.display()
        );
    }
    Ok(registry)
}

fn serve(dirs: &Dirs, args: &RegistryServeArgs) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let text = args.listen.as_deref().unwrap_or(DEFAULT_REGISTRY);
    let address: SocketAddr = text
        .replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| {
            anyhow::anyhow!(
                "--listen {text} needs an address and a port, such as {DEFAULT_REGISTRY}"
            )
        })?;
    let tls = match (&args.tlscert, &args.tlskey) {
        (Some(certificate), Some(key)) => {
            let certificate = read_limited(certificate, "tlscert")?;
            let key = read_limited(key, "tlskey")?;
            Some(gantry_registry::tls(&certificate, &key).map_err(anyhow::Error::msg)?)
        }
        (None, None) => None,
        _ => bail!("--tlscert and --tlskey go together"),
    };
    if !address.ip().is_loopback() && tls.is_none() && !args.plain_http {
        bail!(
            "--listen {address} would send passwords and images in the clear; add --tlscert and --tlskey, or --plain-http where something in front ends TLS"
        );
    }
    logging::start(None)?;
    std::fs::create_dir_all(&dirs.data)
        .with_context(|| format!("creating {}", dirs.data.display()))?;
    let registry = open(dirs, address)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("gantry")
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("listening for signals")?;
        let mut int = signal(SignalKind::interrupt()).context("listening for signals")?;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on --listen {address}"))?;
        let address = listener
            .local_addr()
            .context("reading a listener's address")?;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        tokio::spawn(Arc::clone(&registry).maintain(stopped.clone()));
        let serving = tokio::spawn(gantry_registry::serve(
            registry,
            Listener::Tcp(listener, tls),
            stopped,
        ));
        eprintln!("ready in {:.2}s", began.elapsed().as_secs_f64());
        eprintln!("registry on {address}");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = stop.send(true);
        serving.await.context("serving")?.context("serving")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read_limited(path: &Path, flag: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(TEXT_LIMIT).read_to_end(&mut bytes))
        .with_context(|| format!("reading --{flag} {}", path.display()))?;
    Ok(bytes)
}

fn collect(root: &Path, dry: bool, grace: Option<u64>, how: Output) -> anyhow::Result<ExitCode> {
    let registry = existing(root)?;
    let run = Run {
        dry,
        grace: grace.map(Duration::from_secs),
    };
    let report = registry.collect(run).context("collecting")?;
    match how {
        Output::Json => output::json(&serde_json::to_value(&report)?)?,
        Output::Text => output::line(format!(
            "{}{} uploads, {} tags, {} manifests, {} claims, {} blobs with {} bytes",
            if dry { "would go: " } else { "" },
            report.uploads,
            report.tags,
            report.manifests,
            report.claims,
            report.blobs,
            report.bytes
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(root: &Path) -> anyhow::Result<ExitCode> {
    let damaged = existing(root)?.check().context("reading the files")?;
    for digest in &damaged {
        output::line(format!("damaged: {digest}"))?;
    }
    Ok(match damaged.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn existing(root: &Path) -> anyhow::Result<Arc<Registry>> {
    if !root.exists() {
        bail!("there is no registry in {}", root.display());
    }
    Registry::open(root).map_err(anyhow::Error::msg)
}

fn account(root: &Path, verb: AccountVerb) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
    // Two of these commands at once take turns.
    let lock = std::fs::File::create(root.join("access.lock")).context("locking the accounts")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .context("locking the accounts")?;
    let mut accounts = Accounts::read(root).map_err(anyhow::Error::msg)?;
    match verb {
        AccountVerb::List(how) => return list(&accounts, how.output),
        AccountVerb::Set { name, grant } => {
            let mut password = String::new();
            std::io::stdin()
                .take(TEXT_LIMIT)
                .read_to_string(&mut password)
                .context("reading the password from stdin")?;
            let password = password.trim_end_matches(['\r', '\n']);
            if password.is_empty() {
                bail!("the password is read from stdin, and nothing came");
            }
            let account = Account {
                proof: access::password_proof(password).context("hashing the password")?,
                grants: grants(&grant)?,
                expires: None,
            };
            accounts.accounts.insert(checked(name)?, account);
        }
        AccountVerb::Robot {
            name,
            grant,
            expires,
        } => {
            let (secret, proof) = access::new_secret().context("making a secret")?;
            let account = Account {
                proof,
                grants: grants(&grant)?,
                expires: expires.as_deref().map(moment).transpose()?,
            };
            accounts.accounts.insert(checked(name)?, account);
            accounts.write(root).context("writing the accounts")?;
            output::line(secret)?;
            return Ok(ExitCode::SUCCESS);
        }
        AccountVerb::Anonymous { grant } => accounts.anonymous = grants(&grant)?,
        AccountVerb::Remove { name } => {
            if accounts.accounts.remove(&name).is_none() {
                bail!("there is no account {name}");
            }
        }
    }
    accounts.write(root).context("writing the accounts")?;
    Ok(ExitCode::SUCCESS)
}

fn checked(name: String) -> anyhow::Result<String> {
    if !access::is_account_name(&name) {
        bail!("{name:?} is no account's name; letters, digits and . _ + @ - may stand in it");
    }
    Ok(name)
}

fn grants(typed: &[String]) -> anyhow::Result<Vec<Grant>> {
    typed
        .iter()
        .map(|text| {
            Grant::parse(text).ok_or_else(|| {
                anyhow::anyhow!(
                    "--grant {text} is not REPOSITORIES:ACTIONS, such as 'team/*:read,write,delete'"
                )
            })
        })
        .collect()
}

/// A moment, or a time from now.
fn moment(text: &str) -> anyhow::Result<jiff::Timestamp> {
    let wrong = || {
        anyhow::anyhow!(
            "--expires {text} is neither a moment (2030-01-31T00:00:00Z) nor a time from now (12h, 30d)"
        )
    };
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: u64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = match &text[split..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let span = Duration::from_secs(count.checked_mul(unit).ok_or_else(wrong)?);
    jiff::Timestamp::now()
        .checked_add(span)
        .map_err(|_| wrong())
}

fn list(accounts: &Accounts, how: Output) -> anyhow::Result<ExitCode> {
    let kind = |account: &Account| match account.proof {
        access::Proof::Password(_) => "person",
        access::Proof::Secret(_) => "robot",
    };
    let words = |grants: &[Grant]| -> Vec<String> {
        let actions = |grant: &Grant| serde_json::to_string(&grant.actions).unwrap_or_default();
        grants
            .iter()
            .map(|grant| {
                format!(
                    "{}:{}",
                    grant.repositories,
                    actions(grant).replace(['[', ']', '"'], "")
                )
            })
            .collect()
    };
    match how {
        Output::Json => {
            let all: Vec<_> = accounts
                .accounts
                .iter()
                .map(|(name, account)| {
                    json!({
                        "name": name, "kind": kind(account), "grants": account.grants,
                        "expires": account.expires.map(|e| e.to_string()),
                    })
                })
                .collect();
            output::json(&json!({ "accounts": all, "anonymous": accounts.anonymous }))?;
        }
        Output::Text => {
            for (name, account) in &accounts.accounts {
                let until = account
                    .expires
                    .map(|e| format!("  until {e}"))
                    .unwrap_or_default();
                output::line(format!(
                    "{name}  {}  {}{until}",
                    kind(account),
                    words(&account.grants).join(" ")
                ))?;
            }
            if !accounts.anonymous.is_empty() {
                output::line(format!(
                    "(anonymous)  {}",
                    words(&accounts.anonymous).join(" ")
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
