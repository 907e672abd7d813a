//! A line of output in the words of syslog, the journal, fluentd and gelf. Pure.

use crate::{LogLine, Record, Stream};
use gantry_base::{Error, Result};
use std::collections::BTreeMap;

/// What a tag's template and the receivers say of a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Subject {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) image_id: String,
    pub(super) image_name: String,
    pub(super) command: String,
    pub(super) created: String,
}

impl Subject {
    pub(super) fn of(record: &Record) -> Self {
        let created = jiff::Timestamp::from_nanosecond(i128::from(record.created_at_ns));
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            image_id: record.image.to_string(),
            image_name: record.image_name.clone(),
            command: record.argv.join(" "),
            created: created.map(|time| time.to_string()).unwrap_or_default(),
        }
    }
    pub(super) fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// Docker's template of a tag: text with `{{.ID}}`, `{{.FullID}}`, `{{.Name}}`, `{{.ImageID}}`, `{{.ImageFullID}}`, `{{.ImageName}}`,
/// `{{.Command}}`, `{{.DaemonName}}`. Anything else between braces is refused.
pub(super) fn tag(template: &str, subject: &Subject) -> Result<String> {
    let invalid = || Error::invalid(format!("invalid tag template: {template}"));
    let image_hex = subject.image_id.trim_start_matches("sha256:");
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (word, after) = after.split_once("}}").ok_or_else(invalid)?;
        out.push_str(match word.trim() {
            ".ID" => subject.short_id(),
            ".FullID" => &subject.id,
            ".Name" => &subject.name,
            ".ImageID" => image_hex.get(..12).unwrap_or(image_hex),
            ".ImageFullID" => &subject.image_id,
            ".ImageName" => &subject.image_name,
            ".Command" => &subject.command,
            ".DaemonName" => "docker",
            _ => return Err(invalid()),
        });
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Name or number; `daemon` when nothing was said.
pub(super) fn facility(text: &str) -> Result<u8> {
    const NAMES: [&str; 24] = [
        "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
        "authpriv", "ftp", "", "", "", "", "local0", "local1", "local2", "local3", "local4",
        "local5", "local6", "local7",
    ];
    if text.is_empty() {
        return Ok(3);
    }
    let by_name = NAMES.iter().position(|name| *name == text);
    let number = by_name.or_else(|| text.parse().ok().filter(|number| *number < 24));
    number
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| Error::invalid("invalid syslog facility"))
}

fn priority(line: &LogLine) -> u8 {
    match line.stream {
        Stream::Stderr => 3,
        _ => 6,
    }
}

/// Without the newline: a message is one line.
fn text(line: &LogLine) -> String {
    String::from_utf8_lossy(&line.line)
        .trim_end_matches('\n')
        .to_owned()
}

fn is_partial(line: &LogLine) -> bool {
    line.line.last() != Some(&b'\n')
}

fn seconds(line: &LogLine) -> (i64, i32) {
    let time = line.time.parse::<jiff::Timestamp>().unwrap_or_default();
    (time.as_second(), time.subsec_nanosecond())
}

/// How a syslog message is put together.
#[derive(Debug, Clone)]
pub(super) struct Syslog {
    pub(super) facility: u8,
    pub(super) format: String,
    pub(super) tag: String,
    pub(super) hostname: String,
}

impl Syslog {
    pub(super) fn message(&self, line: &LogLine) -> Vec<u8> {
        let code = self.facility * 8 + priority(line);
        let (tag, host, pid) = (&self.tag, &self.hostname, std::process::id());
        let time = line.time.parse::<jiff::Timestamp>().unwrap_or_default();
        let stamp = time.strftime("%b %e %H:%M:%S");
        let text = text(line);
        match self.format.as_str() {
            "rfc3164" => format!("<{code}>{stamp} {host} {tag}[{pid}]: {text}\n"),
            "rfc5424" => {
                let time = time.strftime("%Y-%m-%dT%H:%M:%SZ");
                format!("<{code}>1 {time} {host} {tag} {pid} {tag} - {text}\n")
            }
            "rfc5424micro" => {
                let time = time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
                format!("<{code}>1 {time} {host} {tag} {pid} {tag} - {text}\n")
            }
            _ => format!("<{code}>{stamp} {tag}[{pid}]: {text}\n"),
        }
        .into_bytes()
    }
}

/// The journal's native protocol: `NAME=value`, or for values with a newline the length in front.
pub(super) fn journal(
    line: &LogLine,
    subject: &Subject,
    tag: &str,
    attributes: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value);
        out.push(b'\n');
    };
    field("MESSAGE", text(line).as_bytes());
    field("PRIORITY", priority(line).to_string().as_bytes());
    field("CONTAINER_ID", subject.short_id().as_bytes());
    field("CONTAINER_ID_FULL", subject.id.as_bytes());
    field("CONTAINER_NAME", subject.name.as_bytes());
    field("CONTAINER_TAG", tag.as_bytes());
    field("IMAGE_NAME", subject.image_name.as_bytes());
    field("SYSLOG_IDENTIFIER", tag.as_bytes());
    field("SYSLOG_TIMESTAMP", line.time.as_bytes());
    if is_partial(line) {
        field("CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    for (name, value) in attributes.iter().filter(|(name, _)| *name != "tag") {
        // journal's rule for names: capital letters, digits, underscores, no underscore in front.
        let name: String = name
            .to_uppercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        field(name.trim_start_matches('_'), value.as_bytes());
    }
    out
}

/// Forward protocol, message mode: `[tag, time, {…}]` in msgpack.
pub(super) fn fluentd(
    line: &LogLine,
    subject: &Subject,
    tag: &str,
    attributes: &BTreeMap<String, String>,
    precise: bool,
) -> Vec<u8> {
    let (seconds, nanoseconds) = seconds(line);
    let mut out = vec![0x93];
    pack_str(&mut out, tag);
    if precise {
        // Event time: extension 0 of eight bytes.
        out.extend_from_slice(&[0xd7, 0x00]);
        out.extend_from_slice(&u32::try_from(seconds).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&u32::try_from(nanoseconds).unwrap_or(0).to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend_from_slice(&seconds.to_be_bytes());
    }
    let mut record = BTreeMap::from([
        ("container_id", subject.id.clone()),
        ("container_name", format!("/{}", subject.name)),
        (
            "source",
            if priority(line) == 3 {
                "stderr"
            } else {
                "stdout"
            }
            .to_owned(),
        ),
        ("log", text(line)),
    ]);
    if is_partial(line) {
        record.insert("partial_message", "true".into());
    }
    let extra = attributes.iter().filter(|(name, _)| *name != "tag");
    let pairs: Vec<(&str, &str)> = record
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(extra.map(|(name, value)| (name.as_str(), value.as_str())))
        .collect();
    out.push(0xde);
    out.extend_from_slice(&u16::try_from(pairs.len()).unwrap_or(u16::MAX).to_be_bytes());
    for (name, value) in pairs.iter().take(usize::from(u16::MAX)) {
        pack_str(&mut out, name);
        pack_str(&mut out, value);
    }
    out
}

fn pack_str(out: &mut Vec<u8>, text: &str) {
    out.push(0xdb);
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// One GELF document, version 1.1.
pub(super) fn gelf(
    line: &LogLine,
    subject: &Subject,
    tag: &str,
    attributes: &BTreeMap<String, String>,
    hostname: &str,
) -> Vec<u8> {
    let (seconds, nanoseconds) = seconds(line);
    let mut document = serde_json::json!({
        "version": "1.1",
        "host": hostname,
        "short_message": text(line),
        "timestamp": seconds as f64 + f64::from(nanoseconds / 1_000_000) / 1000.0,
        "level": priority(line),
        "_container_id": subject.id,
        "_container_name": subject.name,
        "_image_id": subject.image_id,
        "_image_name": subject.image_name,
        "_command": subject.command,
        "_created": subject.created,
        "_tag": tag,
    });
    for (name, value) in attributes.iter().filter(|(name, _)| *name != "tag") {
        document[format!("_{name}")] = value.as_str().into();
    }
    document.to_string().into_bytes()
}

/// GELF over UDP: what does not fit one datagram goes in numbered chunks, at most 128.
pub(super) fn gelf_chunks(message: Vec<u8>, id: [u8; 8]) -> Vec<Vec<u8>> {
    const DATAGRAM: usize = 1420;
    const CHUNK: usize = DATAGRAM - 12;
    if message.len() <= DATAGRAM {
        return vec![message];
    }
    let count = message.len().div_ceil(CHUNK).min(128);
    let chunks = message.chunks(CHUNK).take(128).enumerate();
    chunks
        .map(|(number, piece)| {
            let mut chunk = vec![0x1e, 0x0f];
            chunk.extend_from_slice(&id);
            chunk.extend([number as u8, count as u8]);
            chunk.extend_from_slice(piece);
            chunk
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            stream: Stream::Stderr,
            time: "2026-01-02T03:04:05.678901234Z".into(),
            line: bytes::Bytes::copy_from_slice(text.as_bytes()),
            attrs: Vec::new(),
        }
    }

    fn subject() -> Subject {
        Subject {
            id: "a".repeat(64),
            name: "web".into(),
            image_id: format!("sha256:{}", "b".repeat(64)),
            image_name: "busybox".into(),
            command: "sh -c x".into(),
            created: "2026-01-01T00:00:00Z".into(),
        }
    }

    #[test]
    fn tags() {
        let tag = |template: &str| tag(template, &subject()).map_err(|e| e.message().to_owned());
        assert_eq!(
            tag("{{.ImageName}}/{{.Name}}/{{ .ID }}").unwrap(),
            "busybox/web/aaaaaaaaaaaa"
        );
        assert_eq!(tag("plain").unwrap(), "plain");
        assert_eq!(tag("{{.X}}"), Err("invalid tag template: {{.X}}".into()));
        assert_eq!(tag("{{.ID"), Err("invalid tag template: {{.ID".into()));
    }

    #[test]
    fn syslog_in_each_format() {
        let pid = std::process::id();
        for (format, want) in [
            ("", format!("<27>Jan  2 03:04:05 t[{pid}]: oops\n")),
            ("rfc3164", format!("<27>Jan  2 03:04:05 h t[{pid}]: oops\n")),
            (
                "rfc5424",
                format!("<27>1 2026-01-02T03:04:05Z h t {pid} t - oops\n"),
            ),
            (
                "rfc5424micro",
                format!("<27>1 2026-01-02T03:04:05.678901Z h t {pid} t - oops\n"),
            ),
        ] {
            let syslog = Syslog {
                facility: 3,
                format: format.into(),
                tag: "t".into(),
                hostname: "h".into(),
            };
            assert_eq!(
                String::from_utf8(syslog.message(&line("oops\n"))).unwrap(),
                want
            );
        }
    }

    #[test]
    fn the_journals_fields() {
        let attributes = BTreeMap::from([("my.label".to_owned(), "two\nlines".to_owned())]);
        let message = journal(&line("half"), &subject(), "t", &attributes);
        let text = String::from_utf8_lossy(&message);
        assert!(
            text.starts_with("MESSAGE=half\nPRIORITY=3\nCONTAINER_ID=aaaaaaaaaaaa\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "CONTAINER_PARTIAL_MESSAGE=true\nMY_LABEL\n\u{9}\0\0\0\0\0\0\0two\nlines\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn gelf_documents_and_their_chunks() {
        let document: serde_json::Value =
            serde_json::from_slice(&gelf(&line("x\n"), &subject(), "t", &BTreeMap::new(), "h"))
                .unwrap();
        assert_eq!(document["timestamp"], 1_767_323_045.678);
        assert_eq!(
            (
                document["level"].as_i64(),
                document["short_message"].as_str()
            ),
            (Some(3), Some("x"))
        );
        let chunks = gelf_chunks(vec![7; 3000], [1; 8]);
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[2][..12], [0x1e, 0x0f, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3]);
        assert_eq!(
            chunks.iter().map(|chunk| chunk.len() - 12).sum::<usize>(),
            3000
        );
        assert_eq!(gelf_chunks(vec![7; 100], [1; 8]), [vec![7; 100]]);
    }

    #[test]
    fn fluentds_message() {
        let message = fluentd(&line("x\n"), &subject(), "t", &BTreeMap::new(), false);
        assert_eq!(message[..7], [0x93, 0xdb, 0, 0, 0, 1, b't']);
        assert_eq!(message[7], 0xd3);
        assert_eq!(message[16..19], [0xde, 0, 4]);
    }
}
