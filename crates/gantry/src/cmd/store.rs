//! `gantry store check` and `gantry store repair`.

use crate::args::{Output, StoreArgs, StoreVerb};
use crate::instance::Dirs;
use crate::output;
use gantry_store::check;
use gantry_store::embedded::Finding;
use serde_json::{Value, json};
use std::process::ExitCode;

/// A check that finds damage exits 1; a repair that did its work exits 0.
pub fn run(dirs: &Dirs, args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let dir = dirs.data.join("store");
    match &args.verb {
        StoreVerb::Check(how) => {
            let report = check::check(&dir)?;
            match how.output {
                Output::Json => output::json(&json!({
                    "revision": report.revision,
                    "keys": report.keys,
                    "files": report.files,
                    "bytes": report.bytes,
                    "damage": documents(&report.findings),
                }))?,
                Output::Text => {
                    lines(&report.findings)?;
                    output::line(format!(
                        "revision {}, {} keys, {} bytes in {} files, {} damaged places",
                        report.revision,
                        report.keys,
                        report.bytes,
                        report.files,
                        report.findings.len()
                    ))?;
                }
            }
            Ok(if report.findings.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        StoreVerb::Repair(how) => {
            let repaired = check::repair(&dir)?;
            match how.output {
                Output::Json => output::json(&json!({
                    "revision": repaired.revision,
                    "removed": documents(&repaired.findings),
                    "kept": repaired.kept,
                }))?,
                Output::Text if repaired.findings.is_empty() => {
                    output::line("nothing is damaged; nothing was changed")?;
                }
                Output::Text => {
                    lines(&repaired.findings)?;
                    for kept in &repaired.kept {
                        output::line(format!("kept as it was: {}", kept.display()))?;
                    }
                    output::line(format!(
                        "the store goes on from revision {}; what is named above is lost",
                        repaired.revision
                    ))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn lines(findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings {
        let key = finding
            .key
            .as_ref()
            .map_or(String::new(), |key| format!(", it seems to be {key}"));
        output::line(format!(
            "{} at {}, {} bytes: {}{key}",
            finding.file.display(),
            finding.offset,
            finding.bytes,
            finding.what
        ))?;
    }
    Ok(())
}

fn documents(findings: &[Finding]) -> Vec<Value> {
    findings
        .iter()
        .map(|finding| {
            json!({
                "file": finding.file,
                "offset": finding.offset,
                "bytes": finding.bytes,
                "what": finding.what,
                "key": finding.key,
            })
        })
        .collect()
}
