//! What the compiler does not check: the arrows between crates, where `unsafe` may stand, and house-keeping.

use crate::root;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates each crate may depend on. `ARCHITECTURE.md` draws it; an arrow that is not here is a decision, not a line.
const EDGES: [(&str, &[&str]); 18] = [
    ("gantry-base", &[]),
    ("gantry-oci", &["base"]),
    ("gantry-docker-api", &["base", "oci"]),
    ("gantry-linux", &["base"]),
    ("gantry-runtime", &["linux", "oci"]),
    ("gantry-image", &["base", "linux", "oci"]),
    ("gantry-network", &["base", "linux"]),
    ("gantry-registry", &["base"]),
    ("gantry-store", &["base"]),
    ("gantry-kube-api", &["base", "oci"]),
    ("gantry-apiserver", &["base", "store", "kube-api"]),
    (
        "gantry-engine",
        &[
            "base",
            "linux",
            "oci",
            "runtime",
            "image",
            "network",
            "docker-api",
        ],
    ),
    (
        "gantry-build",
        &["base", "linux", "oci", "docker-api", "engine", "image"],
    ),
    (
        "gantry-docker",
        &[
            "build",
            "base",
            "linux",
            "oci",
            "docker-api",
            "engine",
            "image",
            "network",
        ],
    ),
    (
        "gantry",
        &[
            "base",
            "linux",
            "oci",
            "runtime",
            "image",
            "network",
            "engine",
            "docker-api",
            "docker",
            "registry",
            "store",
            "kube-api",
            "apiserver",
        ],
    ),
    ("gantry-testkit", &[]),
    ("gantry-bench", &[]),
    ("xtask", &[]),
];
/// The one crate that may hold `unsafe`.
const UNSAFE: &str = "crates/linux/";
/// A file longer than this is looked at by no human.
const LINES_LIMIT: usize = 2000;

pub(crate) fn run() -> anyhow::Result<()> {
    let root = root();
    let mut faults = edges(&root)?;
    for file in sources(&root)? {
        let text = std::fs::read_to_string(root.join(&file))
            .with_context(|| format!("reading {}", file.display()))?;
        faults.extend(
            source(&file, &text)
                .into_iter()
                .map(|fault| format!("{}: {fault}", file.display())),
        );
    }
    if !faults.is_empty() {
        bail!("not tidy:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

/// Dependencies between our crates that the list does not allow.
fn edges(root: &Path) -> anyhow::Result<Vec<String>> {
    let metadata = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("starting cargo metadata")?;
    if !metadata.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&metadata.stderr)
        );
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.stdout).context("reading cargo metadata")?;
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(crate_name, _)| *crate_name == name) else {
            faults.push(format!("crate {name} has no row in xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let Some(target) = target.strip_prefix("gantry-") else {
                continue;
            };
            let test_only = dependency["kind"].as_str() == Some("dev") && target == "testkit";
            if !test_only && !allowed.contains(&target) {
                faults.push(format!("{name} must not depend on gantry-{target}"));
            }
        }
    }
    Ok(faults)
}

/// Our Rust files, as git knows them, relative to the workspace.
fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "xtask", "fuzz"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().context("reading a file's type")?;
            if kind.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What is wrong with one file.
fn source(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |line: usize, what: &str| faults.push(format!("{line}: {what}"));
    let name = path.to_string_lossy();
    let front = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    let may_be_unsafe = name.starts_with(UNSAFE);
    if front && !text.trim_start().starts_with("//!") {
        fault(1, "a crate's front page starts with what it does (//!)");
    }
    if front && !may_be_unsafe && !text.contains("#![forbid(unsafe_code)]") {
        fault(1, "#![forbid(unsafe_code)] is missing");
    }
    if !text.is_empty() && !text.ends_with('\n') {
        fault(text.lines().count(), "no newline at the end");
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        if !may_be_unsafe && has_unsafe(line) {
            fault(number, "`unsafe` stands only in crate linux");
        }
        if line.ends_with(' ') || line.ends_with('\t') {
            fault(number, "white space at the end");
        }
    }
    if text.lines().count() > LINES_LIMIT {
        fault(LINES_LIMIT, "too long to be read; split it by subject");
    }
    faults
}

/// The keyword, outside of comments, strings' prose and lint names.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Spelled in two parts, so that this file passes its own check.
    let keyword = concat!("un", "safe");
    ["{", "fn", "impl", "trait", "extern"]
        .iter()
        .any(|next| code.contains(&format!("{keyword} {next}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        if let Err(error) = run() {
            panic!("{error}");
        }
    }

    #[test]
    fn faults_are_found() {
        let keyword = concat!("un", "safe");
        let text = format!("fn f() {{ {keyword} {{ }} }}  \nlast");
        let faults = source(Path::new("crates/engine/src/x.rs"), &text);
        assert_eq!(
            faults,
            [
                "2: no newline at the end",
                "1: `unsafe` stands only in crate linux",
                "1: white space at the end",
            ]
        );
        assert_eq!(source(Path::new("crates/linux/src/x.rs"), &text).len(), 2);
        assert_eq!(
            source(Path::new("crates/base/src/lib.rs"), "//! Doc.\n").len(),
            1
        );
    }
}
