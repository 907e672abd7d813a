//! `gantry why` and `gantry autopsy`: the daemon's verdict, short and long.

use crate::args::{Output, WhyArgs};
use crate::client::{Client, escaped};
use crate::output;
use serde_json::Value;
use std::process::ExitCode;

async fn report(client: &Client, container: &str) -> anyhow::Result<Value> {
    client
        .get(&format!("/containers/{}/autopsy", escaped(container)))
        .await
}

fn text<'a>(report: &'a Value, key: &str) -> &'a str {
    report[key].as_str().unwrap_or_default()
}

pub async fn why(client: &Client, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let report = report(client, &args.container).await?;
    if args.output == Output::Json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!(
        "{}: {}",
        text(&report, "Name"),
        text(&report, "Cause")
    ))?;
    let advice = text(&report, "Advice");
    if !advice.is_empty() {
        output::line(format!("  {advice}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn autopsy(client: &Client, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let report = report(client, &args.container).await?;
    if args.output == Output::Json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![
        format!(
            "container   {} ({})",
            text(&report, "Name"),
            super::containers::short(&report["Id"])
        ),
        format!("state       {}", text(&report, "Status")),
        format!("kind        {}", text(&report, "Kind")),
        format!("cause       {}", text(&report, "Cause")),
    ];
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<11} {value}"));
        }
    };
    add("advice", text(&report, "Advice").to_owned());
    let signal = report["Signal"]
        .as_str()
        .map_or(String::new(), |name| format!(" ({name})"));
    add("exit code", format!("{}{signal}", report["ExitCode"]));
    add("started", moment(&report["StartedAtNs"]));
    add("ended", moment(&report["FinishedAtNs"]));
    if let Some(peak) = report["MemoryPeak"].as_u64() {
        let limit = match report["MemoryLimit"].as_u64() {
            None | Some(0) => "no limit".to_owned(),
            Some(limit) => format!("limit {:.1} MiB", limit as f64 / 1048576.0),
        };
        add(
            "memory",
            format!("at most {:.1} MiB, {limit}", peak as f64 / 1048576.0),
        );
    }
    if report["RestartCount"]
        .as_u64()
        .is_some_and(|count| count > 0)
    {
        add("restarts", report["RestartCount"].to_string());
    }
    match moment(&report["LastGoodAtNs"]) {
        never if never.is_empty() => add("last good", "no run yet".into()),
        time => add("last good", time),
    }
    for change in report["Changes"].as_array().into_iter().flatten() {
        let line = format!(
            "{} {}: {} -> {}",
            moment(&change["AtNs"]),
            text(change, "Field"),
            text(change, "Before"),
            text(change, "After")
        );
        add("changed", line);
    }
    let output = report["LastOutput"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if !output.is_empty() {
        lines.push("last output".into());
        lines.extend(
            output
                .iter()
                .map(|line| format!("  {}", line.as_str().unwrap_or_default())),
        );
    }
    output::line(lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Nanoseconds since the epoch as a time; empty for never.
fn moment(nanoseconds: &Value) -> String {
    match nanoseconds.as_i64() {
        None | Some(0) => String::new(),
        Some(nanoseconds) => jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
            .map(|time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
            .unwrap_or_default(),
    }
}
