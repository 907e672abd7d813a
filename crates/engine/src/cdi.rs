//! Devices by name: the Container Device Interface. A specification file says what a device needs in a container (nodes, mounts,
//! variables, hooks); `--device vendor/class=name` and `--gpus` ask for it.
//!
//! [`Wanted::read`] takes the requests of `HostConfig.DeviceRequests` apart (pure), [`resolve`] reads the files and gathers the [`Edits`].
//! A GPU that is asked for by count is a device of the first kind of class `gpu`: `all`, or `0`, `1` and so on.
//!
//! Spec: CDI 0.8. Files in JSON; one in YAML is named when a device is missing, because that is what the vendors' tools write by default.

use crate::container::spec::FoundDevice;
use gantry_base::{Error, Result};
use gantry_oci::image::null_default;
use gantry_oci::runtime::{Device, Hook, Hooks, Mount};
use serde::Deserialize;
use serde_json::Value;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the files are, the later folder's win.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
const FILE_LIMIT: u64 = 4 << 20;
const FILES_LIMIT: usize = 256;
/// Names that a container may ask for.
const WANTED_LIMIT: usize = 256;

/// What the requests of one container ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// `vendor/class=name`.
    names: Vec<String>,
    /// Names of GPUs whose vendor nobody said, and the request in Docker's words for the case that there is none.
    gpus: Vec<(Vec<String>, String)>,
}

impl Wanted {
    pub(crate) fn read(requests: &[Value]) -> Result<Self> {
        let mut wanted = Self::default();
        for request in requests {
            wanted.add(request)?;
        }
        let gpus = wanted.gpus.iter().map(|(names, _)| names.len());
        if wanted.names.len() + gpus.sum::<usize>() > WANTED_LIMIT {
            return Err(Error::invalid(format!(
                "a container can ask for at most {WANTED_LIMIT} devices"
            )));
        }
        Ok(wanted)
    }

    fn add(&mut self, request: &Value) -> Result<()> {
        let strings = |value: &Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        let driver = request["Driver"].as_str().unwrap_or_default();
        let count = request["Count"].as_i64().unwrap_or(0);
        let ids = strings(&request["DeviceIDs"]);
        if request["Options"]
            .as_object()
            .is_some_and(|o| !o.is_empty())
        {
            return Err(Error::invalid(
                "device requests: Options are not supported: CDI has none",
            ));
        }
        if count != 0 && !ids.is_empty() {
            return Err(Error::invalid(
                "cannot set both Count and DeviceIDs on device request",
            ));
        }
        if driver == "cdi" {
            if count != 0 {
                return Err(Error::invalid(
                    "CDI device requests name devices, they cannot have a Count",
                ));
            }
            for id in ids {
                parse(&id)?;
                self.names.push(id);
            }
            return Ok(());
        }
        let sets = request["Capabilities"].as_array();
        let sets: Vec<Vec<String>> = sets.into_iter().flatten().map(strings).collect();
        let shown: Vec<String> = sets
            .iter()
            .map(|set| format!("[{}]", set.join(" ")))
            .collect();
        let refusal = format!(
            "could not select device driver {driver:?} with capabilities: [{}]",
            shown.join(" ")
        );
        let gpu = sets.iter().any(|set| set.iter().any(|name| name == "gpu"));
        if !matches!(driver, "" | "nvidia") || !gpu {
            return Err(Error::invalid(refusal));
        }
        let names = match (count, ids) {
            (count, _) if count < 0 => vec!["all".to_owned()],
            (0, ids) if ids.is_empty() => return Ok(()),
            (0, ids) => ids,
            (count, _) => (0..count.min(WANTED_LIMIT as i64 + 1))
                .map(|n| n.to_string())
                .collect(),
        };
        self.gpus.push((names, refusal));
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.gpus.is_empty()
    }
}

/// `vendor.com/class=name` → kind and name.
fn parse(id: &str) -> Result<(&str, &str)> {
    let word = |text: &str, more: &[u8]| {
        text.bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    let parts = id.split_once('=').filter(|(kind, name)| {
        word(name, b"_-.:")
            && kind
                .split_once('/')
                .is_some_and(|(vendor, class)| word(vendor, b"_-.") && word(class, b"_-"))
    });
    parts.ok_or_else(|| {
        Error::invalid(format!(
            "invalid CDI device name {id:?}: it looks like vendor.com/class=name"
        ))
    })
}

/// What devices change in a container.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    pub(crate) env: Vec<String>,
    pub(crate) devices: Vec<FoundDevice>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) gids: Vec<u32>,
    pub(crate) hooks: Hooks,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    #[serde(deserialize_with = "null_default")]
    container_edits: FileEdits,
    #[serde(deserialize_with = "null_default")]
    devices: Vec<FileDevice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileDevice {
    name: String,
    #[serde(deserialize_with = "null_default")]
    container_edits: FileEdits,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct FileEdits {
    #[serde(deserialize_with = "null_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    device_nodes: Vec<FileNode>,
    #[serde(deserialize_with = "null_default")]
    mounts: Vec<FileMount>,
    #[serde(deserialize_with = "null_default")]
    hooks: Vec<FileHook>,
    #[serde(rename = "additionalGids", deserialize_with = "null_default")]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileNode {
    path: String,
    #[serde(deserialize_with = "null_default")]
    host_path: String,
    #[serde(rename = "type", deserialize_with = "null_default")]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    #[serde(deserialize_with = "null_default")]
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileMount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type", deserialize_with = "null_default")]
    kind: String,
    #[serde(deserialize_with = "null_default")]
    options: Vec<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileHook {
    hook_name: String,
    path: String,
    #[serde(deserialize_with = "null_default")]
    args: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    env: Vec<String>,
    timeout: Option<i64>,
}

/// Everything that the requests' devices need, from the specifications in `folders`.
pub(crate) fn resolve(requests: &[Value], folders: &[PathBuf]) -> Result<Edits> {
    let wanted = Wanted::read(requests)?;
    let mut edits = Edits::default();
    if wanted.is_empty() {
        return Ok(edits);
    }
    let (files, unreadable) = read_files(folders);
    let mut names = wanted.names;
    for (gpus, refusal) in wanted.gpus {
        let kind = files
            .iter()
            .rev()
            .find(|file| file.kind.ends_with("/gpu"))
            .map(|file| &file.kind);
        let kind = kind.ok_or_else(|| Error::invalid(with_hint(refusal, &unreadable)))?;
        names.extend(gpus.iter().map(|name| format!("{kind}={name}")));
    }
    let mut missing = Vec::new();
    let mut seen: Vec<*const File> = Vec::new();
    for id in &names {
        let (kind, name) = parse(id)?;
        let found = files
            .iter()
            .rev()
            .filter(|file| file.kind == kind)
            .find_map(|file| {
                let device = file.devices.iter().find(|device| device.name == name)?;
                Some((file, device))
            });
        let Some((file, device)) = found else {
            missing.push(id.as_str());
            continue;
        };
        edits.add(&device.container_edits)?;
        // What goes for all devices of a file goes into a container once.
        if !seen.contains(&std::ptr::from_ref(file)) {
            seen.push(file);
            edits.add(&file.container_edits)?;
        }
    }
    if missing.is_empty() {
        return Ok(edits);
    }
    let text = format!(
        "CDI device injection failed: unresolvable CDI devices {}",
        missing.join(", ")
    );
    Err(Error::invalid(with_hint(text, &unreadable)))
}

fn with_hint(text: String, unreadable: &[String]) -> String {
    match unreadable.first() {
        Some(why) => format!("{text} ({why})"),
        None => text,
    }
}

/// The specifications in order of precedence, and why some were not read.
fn read_files(folders: &[PathBuf]) -> (Vec<File>, Vec<String>) {
    let (mut files, mut unreadable) = (Vec::new(), Vec::new());
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .take(FILES_LIMIT)
            .collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => match read_file(&path) {
                    Ok(file) => files.push(file),
                    Err(why) => unreadable.push(format!("{}: {why}", path.display())),
                },
                Some("yaml" | "yml") => unreadable.push(format!(
                    "{} is not read because it is YAML: write it as JSON, nvidia-ctk does with --format=json",
                    path.display()
                )),
                _ => {}
            }
        }
    }
    (files, unreadable)
}

fn read_file(path: &Path) -> std::result::Result<File, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() || meta.len() > FILE_LIMIT {
        return Err(format!("no file of at most {FILE_LIMIT} bytes"));
    }
    let text = std::fs::read(path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&text).map_err(|e| e.to_string())
}

impl Edits {
    fn add(&mut self, from: &FileEdits) -> Result<()> {
        self.env.extend(from.env.iter().cloned());
        self.gids.extend(&from.additional_gids);
        for node in &from.device_nodes {
            self.devices.push(found(node)?);
        }
        for mount in &from.mounts {
            let mut options = mount.options.clone();
            let is_bind = |option: &String| matches!(option.as_str(), "bind" | "rbind");
            if mount.kind.is_empty() && !options.iter().any(is_bind) {
                options.push("rbind".into());
            }
            self.mounts.push(Mount {
                destination: mount.container_path.clone(),
                kind: match mount.kind.as_str() {
                    "" => "bind".into(),
                    kind => kind.into(),
                },
                source: mount.host_path.clone(),
                options,
                ..Mount::default()
            });
        }
        for hook in &from.hooks {
            let list = match hook.hook_name.as_str() {
                "createRuntime" => &mut self.hooks.create_runtime,
                "createContainer" => &mut self.hooks.create_container,
                "startContainer" => &mut self.hooks.start_container,
                other => {
                    return Err(Error::invalid(format!(
                        "CDI device injection failed: hooks of kind {other:?} are not supported"
                    )));
                }
            };
            list.push(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook.timeout,
            });
        }
        Ok(())
    }
}

/// Numbers that the file leaves out are those of the node on the host.
fn found(node: &FileNode) -> Result<FoundDevice> {
    let host = if node.host_path.is_empty() {
        &node.path
    } else {
        &node.host_path
    };
    let mut device = Device {
        path: node.path.clone(),
        kind: node.kind.clone(),
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
    };
    if device.kind.is_empty() || (device.kind != "p" && device.major.is_none()) {
        let meta = std::fs::metadata(host).map_err(|e| {
            Error::invalid(format!(
                "CDI device injection failed: failed to stat CDI host device {host:?}: {e}"
            ))
        })?;
        let kind = meta.file_type();
        if !(kind.is_char_device() || kind.is_block_device()) {
            return Err(Error::invalid(format!(
                "CDI device injection failed: {host:?} is not a device node"
            )));
        }
        device.kind = if kind.is_char_device() { "c" } else { "b" }.into();
        device.major = Some(i64::from(rustix::fs::major(meta.rdev())));
        device.minor = Some(i64::from(rustix::fs::minor(meta.rdev())));
        device.file_mode = device.file_mode.or(Some(meta.mode() & 0o7777));
    }
    let access = match node.permissions.as_str() {
        "" => "rwm",
        text => text,
    };
    Ok(FoundDevice {
        device,
        access: access.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(request: &str) -> String {
        let request = serde_json::from_str(request).expect("a test's JSON");
        match Wanted::read(&[request]) {
            Ok(wanted) => {
                let gpus = wanted
                    .gpus
                    .iter()
                    .map(|(names, _)| format!("gpu {}", names.join(",")));
                wanted
                    .names
                    .iter()
                    .cloned()
                    .chain(gpus)
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            Err(e) => e.message().to_owned(),
        }
    }

    #[test]
    fn requests_are_taken_apart() {
        for (request, outcome) in [
            (
                r#"{"Driver":"cdi","DeviceIDs":["a.b/c=d","x/y=0:1"]}"#,
                "a.b/c=d x/y=0:1",
            ),
            (
                r#"{"Driver":"cdi","DeviceIDs":["a=b"]}"#,
                "invalid CDI device name \"a=b\": it looks like vendor.com/class=name",
            ),
            (
                r#"{"Driver":"cdi","DeviceIDs":["../x/c=d"]}"#,
                "invalid CDI device name \"../x/c=d\": it looks like vendor.com/class=name",
            ),
            (
                r#"{"Driver":"","Count":-1,"Capabilities":[["gpu"]]}"#,
                "gpu all",
            ),
            (
                r#"{"Driver":"nvidia","Count":2,"Capabilities":[["compute","gpu"]]}"#,
                "gpu 0,1",
            ),
            (r#"{"DeviceIDs":["3"],"Capabilities":[["gpu"]]}"#, "gpu 3"),
            (
                r#"{"Count":1,"DeviceIDs":["3"],"Capabilities":[["gpu"]]}"#,
                "cannot set both Count and DeviceIDs on device request",
            ),
            (
                r#"{"Driver":"tpu","Count":1,"Capabilities":[["tpu"]]}"#,
                "could not select device driver \"tpu\" with capabilities: [[tpu]]",
            ),
            (
                r#"{"Count":9000000000,"Capabilities":[["gpu"]]}"#,
                "a container can ask for at most 256 devices",
            ),
        ] {
            assert_eq!(verdict(request), outcome, "{request}");
        }
    }

    #[test]
    fn files_give_edits_and_say_what_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file")
        };
        write(
            "a.json",
            r#"{"cdiVersion":"0.6.0","kind":"gantry.test/gpu","containerEdits":{"env":["ALL=1"]},
            "devices":[{"name":"0","containerEdits":{"env":["ONE=1"],"deviceNodes":[{"path":"/dev/mine","hostPath":"/dev/null","permissions":"r"}],
            "mounts":[{"hostPath":"/etc","containerPath":"/host","options":["ro"]}],"hooks":[{"hookName":"createContainer","path":"/bin/true"}]}}]}"#,
        );
        let folders = [folder.path().to_owned()];
        let of = |ids: &[&str]| {
            resolve(
                &[serde_json::json!({"Driver": "cdi", "DeviceIDs": ids})],
                &folders,
            )
        };
        let edits = of(&["gantry.test/gpu=0"]).expect("it is there");
        assert_eq!(edits.env, ["ONE=1", "ALL=1"]);
        let device = &edits.devices[0];
        assert_eq!(
            (
                device.device.path.as_str(),
                device.device.major,
                device.device.minor,
                device.access.as_str()
            ),
            ("/dev/mine", Some(1), Some(3), "r")
        );
        assert_eq!(edits.mounts[0].options, ["ro", "rbind"]);
        assert_eq!(edits.hooks.create_container[0].path, "/bin/true");
        let gpus = resolve(
            &[serde_json::json!({"Count": 1, "Capabilities": [["gpu"]]})],
            &folders,
        );
        assert_eq!(gpus.expect("a kind of class gpu").env, ["ONE=1", "ALL=1"]);
        let words = |ids: &[&str]| of(ids).expect_err("there is none").message().to_owned();
        assert_eq!(
            words(&["gantry.test/gpu=7"]),
            "CDI device injection failed: unresolvable CDI devices gantry.test/gpu=7"
        );
        write("b.yaml", "kind: x/y");
        assert!(words(&["x/y=0"]).contains("b.yaml is not read because it is YAML"));
        write(
            "c.json",
            r#"{"kind":"n/n","devices":[{"name":"0","containerEdits":{"netDevices":[{}]}}]}"#,
        );
        assert!(
            words(&["n/n=0"])
                .starts_with("CDI device injection failed: unresolvable CDI devices n/n=0 (")
        );
    }
}
