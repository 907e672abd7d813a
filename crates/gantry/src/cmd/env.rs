//! `gantry env`: what this instance really listens on, as shell lines.

use crate::args::Output;
use crate::instance::Dirs;
use crate::output;
use anyhow::bail;
use serde_json::{Map, Value};
use std::process::ExitCode;

pub fn run(dirs: &Dirs, how: Output) -> anyhow::Result<ExitCode> {
    let Some(daemon) = dirs.daemon()? else {
        bail!(
            "no gantry runs on {}; start it with `gantry up`",
            dirs.data.display()
        );
    };
    let mut variables = Vec::new();
    if let Some(socket) = &daemon.docker {
        variables.push(("DOCKER_HOST", format!("unix://{}", socket.display())));
    }
    if daemon.kube.is_some() {
        let path = daemon.run_dir.join(crate::instance::KUBECONFIG);
        variables.push(("KUBECONFIG", path.display().to_string()));
    }
    match how {
        Output::Text => {
            for (name, value) in &variables {
                output::line(format!("export {name}={}", quoted(value)))?;
            }
        }
        Output::Json => {
            let object: Map<String, Value> = variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Value::String(value)))
                .collect();
            output::json(&Value::Object(object))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As a shell word.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(
            super::quoted("unix:///run/gantry/docker.sock"),
            "unix:///run/gantry/docker.sock"
        );
        assert_eq!(super::quoted("unix:///a b/it's"), r"'unix:///a b/it'\''s'");
    }
}
