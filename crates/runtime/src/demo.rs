//! `gantry-runtime demo-web`: the one process of the demo container. A web page that shows what holds it.
//!
//! One connection at a time, answers and closes. It reads only what every container may read about itself.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A request longer than this is not read further.
const REQUEST_LIMIT: usize = 8 << 10;
/// A client that is slower than this is left.
const PATIENCE: Duration = Duration::from_secs(5);

/// The role's whole life.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry-runtime demo-web: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves on port 80 of the container until it is killed.
fn run() -> io::Result<()> {
    // The wildcard of IPv6 also takes IPv4 connections; without IPv6 the IPv4 one it is.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))?;
    let began = Instant::now();
    let mut served: u64 = 0;
    for stream in listener.incoming() {
        // A client that left early, or a full table of descriptors for a moment: the next one may fare better.
        let Ok(stream) = stream else { continue };
        served += 1;
        let _ = answer(stream, began.elapsed(), served);
    }
    Ok(())
}

fn answer(mut stream: TcpStream, up: Duration, served: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
        if request.len() > REQUEST_LIMIT {
            return stream.write_all(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n",
            );
        }
    }
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line: String = String::from_utf8_lossy(line)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let _ = writeln!(io::stderr(), "{served} {line}");
    let page = page(&facts(up, served));
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        page.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(page.as_bytes())
}

/// What the page shows, as name and value.
fn facts(up: Duration, served: u64) -> Vec<(&'static str, String)> {
    let hostname = read("/proc/sys/kernel/hostname");
    vec![
        ("container", hostname),
        (
            "memory limit",
            bytes(&limit("memory", "memory.limit_in_bytes", "memory.max")),
        ),
        (
            "memory used",
            bytes(&limit("memory", "memory.usage_in_bytes", "memory.current")),
        ),
        ("CPU limit", cpus()),
        ("process limit", limit("pids", "pids.max", "pids.max")),
        ("process id inside", std::process::id().to_string()),
        ("uptime", format!("{} s", up.as_secs())),
        ("requests served", served.to_string()),
    ]
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A file of our own cgroup, in whichever layout the host has.
fn limit(controller: &str, v1: &str, v2: &str) -> String {
    let places = [
        format!("/sys/fs/cgroup/{controller}/{v1}"),
        format!("/sys/fs/cgroup/{v2}"),
        format!("/sys/fs/cgroup/unified/{v2}"),
    ];
    places
        .iter()
        .map(|place| read(place))
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn cpus() -> String {
    let both = limit("cpu", "cpu.cfs_quota_us", "cpu.max");
    let (quota, period) = match both.split_once(' ') {
        Some((quota, period)) => (quota.to_owned(), period.to_owned()),
        None => (both, read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    };
    match (quota.parse::<f64>(), period.parse::<f64>()) {
        (Ok(quota), Ok(period)) if quota > 0.0 && period > 0.0 => format!("{:.2}", quota / period),
        _ if quota == "max" || quota == "-1" => "none".to_owned(),
        _ => "unknown".to_owned(),
    }
}

fn bytes(text: &str) -> String {
    match text.parse::<u64>() {
        // The kernel's way of saying "no limit" in version 1.
        Ok(bytes) if bytes > 1 << 60 => "none".to_owned(),
        Ok(bytes) => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        Err(_) if text == "max" => "none".to_owned(),
        Err(_) => text.to_owned(),
    }
}

fn page(facts: &[(&str, String)]) -> String {
    let mut rows = String::new();
    for (name, value) in facts {
        let _ = write!(
            rows,
            "<tr><th>{}</th><td>{}</td></tr>",
            escaped(name),
            escaped(value)
        );
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Gantry demo</title>\
<style>body{{font:16px system-ui,sans-serif;margin:3rem auto;max-width:34rem;padding:0 1rem;color:#222;background:#fff}}\
th{{text-align:left;padding:.3rem 2rem .3rem 0;font-weight:500;color:#555}}td{{font-family:ui-monospace,monospace}}\
@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#16181c}}th{{color:#999}}}}</style>\
<h1>This page comes from a container</h1><table>{rows}</table></html>\n"
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let page = page(&[("container", "<b>&\"".to_owned())]);
        assert!(page.contains("&lt;b&gt;&amp;&quot;") && !page.contains("<b>"));
    }

    #[test]
    fn limits_read_as_people_write_them() {
        assert_eq!(bytes("67108864"), "64.0 MiB");
        assert_eq!(bytes("9223372036854771712"), "none");
        assert_eq!(bytes("max"), "none");
        assert_eq!(bytes("unknown"), "unknown");
    }
}
