//! JSON documents from outside, read so that an error names the field.
//!
//! serde alone is too friendly for a container's configuration: it takes an array where an object belongs (its elements become the
//! fields in their order), and its errors give a line and a column but no name. So [`read`] walks the text once more, knows which field every
//! byte belongs to, and refuses both that and zero bytes in strings, which no kernel interface can take.

use gantry_oci::runtime::{Process, Resources, Spec};
use serde::de::DeserializeOwned;
use std::fmt::Write;

/// `config.json`. Its fields are well-formed then; whether they make sense together says [`crate::validate`].
pub fn spec(text: &[u8]) -> Result<Spec, String> {
    read(text, "", "config.json")
}

/// A process for `exec --process`.
pub fn process(text: &[u8]) -> Result<Process, String> {
    read(text, "process", "process")
}

/// Resources for `update --resources`.
pub fn resources(text: &[u8]) -> Result<Resources, String> {
    read(text, "linux.resources", "linux.resources")
}

/// Where the specification has objects; `[]` is any element, `*` any key.
const OBJECTS: [&str; 61] = [
    "",
    "annotations",
    "hooks",
    "hooks.createContainer[]",
    "hooks.createRuntime[]",
    "hooks.poststart[]",
    "hooks.poststop[]",
    "hooks.prestart[]",
    "hooks.startContainer[]",
    "linux",
    "linux.devices[]",
    "linux.gidMappings[]",
    "linux.intelRdt",
    "linux.memoryPolicy",
    "linux.namespaces[]",
    "linux.netDevices",
    "linux.personality",
    "linux.resources",
    "linux.resources.blockIO",
    "linux.resources.blockIO.throttleReadBpsDevice[]",
    "linux.resources.blockIO.throttleReadIOPSDevice[]",
    "linux.resources.blockIO.throttleWriteBpsDevice[]",
    "linux.resources.blockIO.throttleWriteIOPSDevice[]",
    "linux.resources.blockIO.weightDevice[]",
    "linux.resources.cpu",
    "linux.resources.devices[]",
    "linux.resources.hugepageLimits[]",
    "linux.resources.memory",
    "linux.resources.network",
    "linux.resources.network.priorities[]",
    "linux.resources.pids",
    "linux.resources.rdma",
    "linux.resources.rdma.*",
    "linux.resources.unified",
    "linux.seccomp",
    "linux.seccomp.syscalls[]",
    "linux.seccomp.syscalls[].args[]",
    "linux.sysctl",
    "linux.timeOffsets",
    "linux.timeOffsets.*",
    "linux.uidMappings[]",
    "mounts[]",
    "mounts[].gidMappings[]",
    "mounts[].uidMappings[]",
    "process",
    "process.capabilities",
    "process.consoleSize",
    "process.execCPUAffinity",
    "process.ioPriority",
    "process.rlimits[]",
    "process.scheduler",
    "process.user",
    "root",
    "solaris",
    "vm",
    "vm.hypervisor",
    "vm.image",
    "vm.kernel",
    "windows",
    "zos",
    "zos.namespaces[]",
];

fn read<T: DeserializeOwned>(text: &[u8], base: &str, name: &str) -> Result<T, String> {
    let parsed = serde_json::from_slice(text).map_err(|error| {
        let place = at_offset(text, base, offset_of(text, &error));
        let sentence = error.to_string();
        let sentence = match sentence.find(" at line ") {
            // Broken text is found by its place, a wrong value by its name.
            Some(end) if !error.is_syntax() && !error.is_eof() => &sentence[..end],
            _ => &sentence,
        };
        one_line(match place.is_empty() {
            true => format!("{name}: {sentence}"),
            false => format!("{place}: {sentence}"),
        })
    })?;
    let mut refused = None;
    Walk::over(text, base, text.len(), |walk, found| {
        let why = match found {
            Found::Array if is_object(&walk.pattern()) => "invalid type: array, expected an object",
            Found::ZeroByte => "must not contain a zero byte",
            Found::Array => return true,
        };
        let place = walk.place();
        let place = if place.is_empty() { name } else { &place };
        refused = Some(one_line(format!("{place}: {why}")));
        false
    });
    match refused {
        None => Ok(parsed),
        Some(sentence) => Err(sentence),
    }
}

/// A sentence that quotes a document stays one line, and no terminal takes orders from it.
pub(crate) fn one_line(sentence: String) -> String {
    if !sentence.contains(char::is_control) {
        return sentence;
    }
    let mut line = String::with_capacity(sentence.len() + 16);
    for letter in sentence.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

fn is_object(pattern: &str) -> bool {
    if OBJECTS.binary_search(&pattern).is_ok() {
        return true;
    }
    // Maps from names to objects.
    pattern
        .rsplit_once('.')
        .is_some_and(|(map, _)| matches!(map, "linux.timeOffsets" | "linux.resources.rdma"))
}

fn offset_of(text: &[u8], error: &serde_json::Error) -> usize {
    let line_start = text
        .split_inclusive(|b| *b == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    (line_start + error.column()).min(text.len())
}

/// The name of the field that the byte before `offset` belongs to.
fn at_offset(text: &[u8], base: &str, offset: usize) -> String {
    Walk::over(text, base, offset, |_, _| true).place()
}

enum Found {
    Array,
    ZeroByte,
}

enum Frame<'a> {
    Object(&'a [u8]),
    Array(usize),
}

/// Where in a document we are. The text need not be whole or valid.
struct Walk<'a> {
    base: &'a str,
    frames: Vec<Frame<'a>>,
}

impl<'a> Walk<'a> {
    fn over(
        text: &'a [u8],
        base: &'a str,
        end: usize,
        mut found: impl FnMut(&Self, Found) -> bool,
    ) -> Self {
        let mut walk = Self {
            base,
            frames: Vec::new(),
        };
        let mut key_next = false;
        let mut at = 0;
        while at < end {
            match text[at] {
                b'"' => {
                    let start = at + 1;
                    let mut zero = false;
                    at = start;
                    while at < end && text[at] != b'"' {
                        let escaped = text[at] == b'\\';
                        zero |= escaped && text[at + 1..].starts_with(b"u0000");
                        at += if escaped { 2 } else { 1 };
                    }
                    let string = text.get(start..at.min(text.len())).unwrap_or_default();
                    if let (true, Some(Frame::Object(key))) = (key_next, walk.frames.last_mut()) {
                        *key = string;
                        key_next = false;
                    }
                    if zero && !found(&walk, Found::ZeroByte) {
                        return walk;
                    }
                }
                b'{' => {
                    walk.frames.push(Frame::Object(b""));
                    key_next = true;
                }
                b'[' => {
                    if !found(&walk, Found::Array) {
                        return walk;
                    }
                    walk.frames.push(Frame::Array(0));
                    key_next = false;
                }
                b'}' | b']' => {
                    walk.frames.pop();
                    key_next = false;
                }
                b',' => match walk.frames.last_mut() {
                    Some(Frame::Array(index)) => *index += 1,
                    Some(Frame::Object(_)) => key_next = true,
                    None => {}
                },
                _ => {}
            }
            at += 1;
        }
        walk
    }

    fn text(&self, indices: bool) -> String {
        /// A name is for a sentence, not for a page.
        const LONGEST: usize = 64;
        const DEEPEST: usize = 16;
        let mut text = self.base.to_owned();
        for frame in self.frames.iter().take(DEEPEST) {
            match frame {
                Frame::Object(b"") => {}
                Frame::Object(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(&String::from_utf8_lossy(&key[..key.len().min(LONGEST)]));
                }
                Frame::Array(index) if indices => {
                    let _ = write!(text, "[{index}]");
                }
                Frame::Array(_) => text.push_str("[]"),
            }
        }
        text
    }

    fn place(&self) -> String {
        self.text(true)
    }

    fn pattern(&self) -> String {
        self.text(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_field() {
        assert!(OBJECTS.is_sorted());
        for (text, expected) in [
            (
                "",
                "config.json: EOF while parsing a value at line 1 column 0",
            ),
            ("[]", "config.json: invalid type: array, expected an object"),
            (
                "7",
                "config.json: invalid type: integer `7`, expected struct Spec",
            ),
            (
                r#"{"process":"x"}"#,
                "process: invalid type: string \"x\", expected struct Process",
            ),
            (
                r#"{"process":{"args":["a",5],"cwd":"/"}}"#,
                "process.args[1]: invalid type: integer `5`, expected a string",
            ),
            (
                r#"{"process":{"user":{"uid":-1,"gid":0}}}"#,
                "process.user.uid: invalid value: integer `-1`, expected u32",
            ),
            (
                r#"{"process":{"user":{"uid":5000000000}}}"#,
                "process.user.uid: invalid value: integer `5000000000`, expected u32",
            ),
            (
                r#"{"process":[]}"#,
                "process: invalid type: array, expected an object",
            ),
            (
                r#"{"mounts":[{},["/x"]]}"#,
                "mounts[1]: invalid type: array, expected an object",
            ),
            (
                r#"{"mounts":{}}"#,
                "mounts: invalid type: map, expected a sequence",
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"moon"}]}}"#,
                "linux.namespaces[1].type: unknown variant `moon`, expected one of `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`",
            ),
            (
                r#"{"linux":{"namespaces":[{"path":"/x"}]}}"#,
                "linux.namespaces[0]: missing field `type`",
            ),
            (
                r#"{"hostname":"a\u0000b"}"#,
                "hostname: must not contain a zero byte",
            ),
            (
                r#"{"hostname":"a","hostname":"b"}"#,
                "hostname: duplicate field `hostname`",
            ),
            (
                r#"{"linux":{"timeOffsets":{"boottime":[1]}}}"#,
                "linux.timeOffsets.boottime: invalid type: array, expected an object",
            ),
            (
                "{\n \"hostname\": true }",
                "hostname: invalid type: boolean `true`, expected a string",
            ),
            (
                "{\"process\":{\"args\":[\"x\"",
                "process.args[0]: EOF while parsing a list at line 1 column 23",
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"a\u001b[2J\nb"}]}}"#,
                "linux.namespaces[0].type: unknown variant `a\\u{1b}[2J\\nb`, expected one of `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`",
            ),
            (
                "{\"a\nb\": 1}",
                "a\\n: control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0",
            ),
            (
                r#"{"hostname":"x"} y"#,
                "config.json: trailing characters at line 1 column 18",
            ),
        ] {
            assert_eq!(spec(text.as_bytes()).unwrap_err(), expected, "{text}");
        }
        assert!(
            spec(br#"{"new":[[1]],"x-y":{"z":[[]]}}"#).is_ok(),
            "what is unknown is ignored"
        );
        assert_eq!(
            process(br#"{"user":[]}"#).unwrap_err(),
            "process.user: invalid type: array, expected an object"
        );
    }
}
