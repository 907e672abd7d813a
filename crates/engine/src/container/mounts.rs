//! What is mounted into a container: `-v`, `--mount`, `--volumes-from`, `VOLUME`. Pure: [`plan`] decides, `create` and `start` act.

use super::validate::clean_path;
use super::{MountPoint, Record};
use gantry_base::{Error, Result};
use gantry_docker_api::create::{ContainerConfig, HostConfig, Mount};
use std::collections::BTreeMap;

const MOUNTS_LIMIT: usize = 1024;
const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "slave", "rslave", "shared", "rshared",
];

/// A mount as planned: an anonymous volume has no name yet.
pub(crate) type Plan = Vec<MountPoint>;

/// Options of a [`MountPoint`] that the start acts on.
pub(crate) mod option {
    /// The volume's first mount does not copy the image's content into it.
    pub(crate) const NO_COPY: &str = "nocopy";
    /// The bind's source is made when it is missing (`-v`); without it, a missing source is refused (`--mount`).
    pub(crate) const MAKE_SOURCE: &str = "make-source";
    /// `bind` instead of `rbind`.
    pub(crate) const NON_RECURSIVE: &str = "non-recursive";
    /// Only the topmost mount of a read-only bind is read-only.
    pub(crate) const READ_ONLY_NON_RECURSIVE: &str = "ro-non-recursive";
    /// The folder of the volume that is mounted instead of the whole.
    pub(crate) const SUBPATH: &str = "subpath";
    /// Digest of the image that is mounted.
    pub(crate) const IMAGE: &str = "image";
    /// tmpfs options as the kernel reads them.
    pub(crate) const TMPFS: &str = "tmpfs";
}

/// Everything to be mounted, in Docker's order of precedence. `others` finds the containers of `--volumes-from`; `exists` tells
/// whether a path is there.
pub(crate) fn plan(
    config: &ContainerConfig,
    host: &HostConfig,
    others: impl Fn(&str) -> Result<std::sync::Arc<Record>>,
    exists: impl Fn(&str) -> bool,
) -> Result<Plan> {
    let mut plan: BTreeMap<String, MountPoint> = BTreeMap::new();
    for entry in host.volumes_from.iter().flatten() {
        let (other, mode) = volumes_from(entry)?;
        for mount in &others(other)?.mounts {
            if mount.kind == "tmpfs" {
                continue;
            }
            let mut mount = mount.clone();
            mount.rw &= mode != "ro";
            mount.anonymous = false;
            plan.insert(mount.destination.clone(), mount);
        }
    }
    let mut explicit: BTreeMap<String, MountPoint> = BTreeMap::new();
    let tmpfs = |destination: &str| {
        host.tmpfs
            .iter()
            .flatten()
            .any(|(path, _)| clean_path(path) == destination)
    };
    let binds = host.binds.iter().flatten().map(|text| bind(text));
    let mounts = host.mounts.iter().map(|mount| api_mount(mount, &exists));
    let driver = |mut mount: MountPoint| {
        if !host.volume_driver.is_empty() && mount.kind == "volume" {
            mount.driver = Some(host.volume_driver.clone());
        }
        mount
    };
    for mount in binds.map(|bind| bind.map(driver)).chain(mounts) {
        let mount = mount?;
        if explicit.contains_key(&mount.destination) || tmpfs(&mount.destination) {
            return Err(Error::invalid(format!(
                "Duplicate mount point: {}",
                mount.destination
            )));
        }
        explicit.insert(mount.destination.clone(), mount);
    }
    plan.extend(explicit);
    for path in config.volumes.iter().flatten().map(|(path, _)| path) {
        destination(path)?;
        let path = clean_path(path);
        if !tmpfs(&path) {
            plan.entry(path.clone())
                .or_insert_with(|| driver(volume("", path, true)));
        }
    }
    if plan.len() > MOUNTS_LIMIT {
        return Err(Error::invalid(format!(
            "a container can have at most {MOUNTS_LIMIT} mounts"
        )));
    }
    // Sorted by path, a parent comes before what is mounted below it.
    Ok(plan.into_values().collect())
}

/// An absolute path that is not the root.
pub(crate) fn destination(path: &str) -> Result<()> {
    if !path.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        )));
    }
    if path.contains('\0') {
        return Err(Error::invalid(
            "invalid mount path: it contains a zero byte",
        ));
    }
    if clean_path(path) == "/" {
        return Err(Error::invalid(
            "invalid specification: destination can't be '/'",
        ));
    }
    Ok(())
}

fn volume(name: &str, destination: String, rw: bool) -> MountPoint {
    MountPoint {
        kind: "volume".into(),
        name: (!name.is_empty()).then(|| name.to_owned()),
        source: String::new(),
        destination,
        driver: Some("local".into()),
        mode: String::new(),
        rw,
        propagation: String::new(),
        options: BTreeMap::new(),
        anonymous: name.is_empty(),
    }
}

/// `[source:]destination[:mode]`.
fn bind(text: &str) -> Result<MountPoint> {
    let invalid = || Error::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    let (source, target, mode) = match parts[..] {
        ["", ..] => return Err(invalid()),
        [target] => ("", target, ""),
        [_, mode] if !mode.is_empty() && mode_is_valid(mode) => return Err(invalid()),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(invalid()),
    };
    if !mode_is_valid(mode) {
        return Err(Error::invalid(format!("invalid mode: {mode}")));
    }
    destination(target).map_err(|e| {
        let kind = if source.starts_with('/') {
            "bind"
        } else {
            "volume"
        };
        let reason = format!("invalid mount config for type {kind:?}: {}", e.message());
        Error::invalid(format!("invalid volume specification: '{text}': {reason}"))
    })?;
    let has = |word: &str| mode.split(',').any(|m| m == word);
    let read_only = has("ro") || has("ro-non-recursive") || has("ro-force-recursive") || has("rro");
    let mut mount = if source.starts_with('/') {
        let mut mount = bind_mount(source, target, !read_only);
        mount
            .options
            .insert(option::MAKE_SOURCE.into(), String::new());
        if let Some(propagation) = mode.split(',').find(|m| PROPAGATIONS.contains(m)) {
            mount.propagation = propagation.into();
        }
        if has("ro-non-recursive") {
            mount
                .options
                .insert(option::READ_ONLY_NON_RECURSIVE.into(), String::new());
        }
        mount
    } else {
        if !source.is_empty() {
            volume_name(source)?;
        }
        volume(source, clean_path(target), !read_only)
    };
    if has("nocopy") {
        mount.options.insert(option::NO_COPY.into(), String::new());
    }
    mount.mode = mode.into();
    Ok(mount)
}

fn bind_mount(source: &str, target: &str, rw: bool) -> MountPoint {
    MountPoint {
        kind: "bind".into(),
        name: None,
        source: clean_path(source),
        destination: clean_path(target),
        driver: None,
        mode: String::new(),
        rw,
        propagation: "rprivate".into(),
        options: BTreeMap::new(),
        anonymous: false,
    }
}

/// At most one word of each kind.
fn mode_is_valid(mode: &str) -> bool {
    if mode.is_empty() {
        return true;
    }
    let kinds: [&[&str]; 5] = [
        &["rw", "ro", "ro-non-recursive", "ro-force-recursive", "rro"],
        &["z", "Z"],
        &PROPAGATIONS,
        &["nocopy"],
        &["consistent", "cached", "delegated"],
    ];
    let mut seen = [false; 5];
    mode.split(',').all(
        |word| match kinds.iter().position(|kind| kind.contains(&word)) {
            Some(kind) => !std::mem::replace(&mut seen[kind], true),
            None => false,
        },
    )
}

pub(crate) fn volume_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes.len() == 1 {
        return Err(Error::invalid(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    let valid = bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.len() <= 255
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b));
    if valid {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// An entry of `HostConfig.Mounts`.
fn api_mount(mount: &Mount, exists: &impl Fn(&str) -> bool) -> Result<MountPoint> {
    let kind = mount.kind.as_str();
    let invalid =
        |reason: &str| Error::invalid(format!("invalid mount config for type {kind:?}: {reason}"));
    let forbid = |set: bool, field: &str| {
        if set {
            Err(invalid(&format!("field {field} must not be specified")))
        } else {
            Ok(())
        }
    };
    if mount.target.is_empty() {
        return Err(invalid("field Target must not be empty"));
    }
    destination(&mount.target).map_err(|e| invalid(e.message()))?;
    match kind {
        "bind" => {
            if mount.source.is_empty() {
                return Err(invalid("field Source must not be empty"));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            if !options.propagation.is_empty()
                && !PROPAGATIONS.contains(&options.propagation.as_str())
            {
                return Err(invalid(&format!(
                    "invalid propagation mode: {}",
                    options.propagation
                )));
            }
            forbid(mount.volume_options.is_some(), "VolumeOptions")?;
            forbid(mount.tmpfs_options.is_some(), "TmpfsOptions")?;
            if !mount.source.starts_with('/') {
                return Err(invalid(&format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    mount.source
                )));
            }
            if !options.create_mountpoint && !exists(&mount.source) {
                return Err(invalid(&format!(
                    "bind source path does not exist: {}",
                    mount.source
                )));
            }
            let precise = options.read_only_non_recursive || options.read_only_force_recursive;
            if precise && !mount.read_only {
                return Err(invalid(
                    "ReadOnlyNonRecursive and ReadOnlyForceRecursive need ReadOnly",
                ));
            }
            if options.read_only_force_recursive
                && (options.read_only_non_recursive
                    || options.non_recursive
                    || !matches!(options.propagation.as_str(), "" | "rprivate"))
            {
                return Err(invalid(
                    "ReadOnlyForceRecursive needs a recursive mount with propagation rprivate",
                ));
            }
            let mut planned = bind_mount(&mount.source, &mount.target, !mount.read_only);
            if !options.propagation.is_empty() {
                planned.propagation = options.propagation;
            }
            let flags = [
                (options.create_mountpoint, option::MAKE_SOURCE),
                (options.non_recursive, option::NON_RECURSIVE),
                (
                    options.read_only_non_recursive,
                    option::READ_ONLY_NON_RECURSIVE,
                ),
            ];
            for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
                planned.options.insert(name.into(), String::new());
            }
            Ok(planned)
        }
        "volume" => {
            forbid(mount.bind_options.is_some(), "BindOptions")?;
            forbid(mount.tmpfs_options.is_some(), "TmpfsOptions")?;
            if mount.read_only && mount.source.is_empty() {
                return Err(invalid(
                    "must not set ReadOnly mode when using anonymous volumes",
                ));
            }
            if !mount.source.is_empty() {
                volume_name(&mount.source)?;
            }
            let options = mount.volume_options.clone().unwrap_or_default();
            let driver = options.driver_config.unwrap_or_default();
            subpath_stays(&options.subpath)
                .ok_or_else(|| invalid("subpath must be a relative path within the volume"))?;
            if !options.subpath.is_empty() && mount.source.is_empty() {
                return Err(invalid("must not set Subpath when using anonymous volumes"));
            }
            let mut planned = volume(&mount.source, clean_path(&mount.target), !mount.read_only);
            planned.mode = "z".into();
            if !driver.name.is_empty() {
                planned.driver = Some(driver.name);
            }
            if !options.subpath.is_empty() {
                planned
                    .options
                    .insert(option::SUBPATH.into(), options.subpath.clone());
            }
            for (key, value) in driver.options {
                planned.options.insert(format!("driver-opt:{key}"), value);
            }
            if options.no_copy {
                planned
                    .options
                    .insert(option::NO_COPY.into(), String::new());
            }
            for (key, value) in options.labels {
                planned.options.insert(format!("label:{key}"), value);
            }
            Ok(planned)
        }
        "tmpfs" => {
            forbid(mount.bind_options.is_some(), "BindOptions")?;
            forbid(mount.volume_options.is_some(), "VolumeOptions")?;
            forbid(!mount.source.is_empty(), "Source")?;
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            if options.size_bytes < 0 {
                return Err(invalid("the size must not be negative"));
            }
            let mut words = Vec::new();
            if mount.read_only {
                words.push("ro".to_owned());
            }
            if options.mode != 0 {
                words.push(format!("mode={:o}", options.mode));
            }
            if options.size_bytes != 0 {
                words.push(format!("size={}", options.size_bytes));
            }
            for option in options.options.iter().flatten() {
                words.push(tmpfs_option(option).ok_or_else(|| {
                    invalid(&format!("invalid tmpfs option {:?}", option.join("=")))
                })?);
            }
            let mut planned = bind_mount("/", &mount.target, !mount.read_only);
            planned.kind = "tmpfs".into();
            planned.source = String::new();
            planned.propagation = String::new();
            planned
                .options
                .insert(option::TMPFS.into(), words.join(","));
            Ok(planned)
        }
        "image" => {
            forbid(mount.bind_options.is_some(), "BindOptions")?;
            forbid(mount.volume_options.is_some(), "VolumeOptions")?;
            forbid(mount.tmpfs_options.is_some(), "TmpfsOptions")?;
            if mount.source.is_empty() {
                return Err(invalid("field Source must not be empty"));
            }
            let mut planned = bind_mount("/", &mount.target, false);
            planned.kind = "image".into();
            planned.source.clone_from(&mount.source);
            planned.propagation = String::new();
            let subpath = mount.image_options.clone().unwrap_or_default().subpath;
            subpath_stays(&subpath)
                .ok_or_else(|| invalid("subpath must be a relative path within the image"))?;
            if !subpath.is_empty() {
                planned.options.insert(option::SUBPATH.into(), subpath);
            }
            Ok(planned)
        }
        _ => Err(invalid("mount type unknown")),
    }
}

fn subpath_stays(subpath: &str) -> Option<()> {
    use std::path::Component;
    let mut parts = std::path::Path::new(subpath).components();
    let stays = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (stays && !subpath.contains('\0')).then_some(())
}

/// A flag alone, or a name with its value, of those that a tmpfs may have.
fn tmpfs_option(words: &[String]) -> Option<String> {
    let is_simple = |text: &str| !text.contains([',', '\0']);
    match words {
        [flag] => matches!(
            flag.as_str(),
            "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev"
        )
        .then(|| flag.clone()),
        [name, value] => {
            let known = [
                "uid",
                "gid",
                "mode",
                "size",
                "nr_inodes",
                "nr_blocks",
                "huge",
            ];
            (known.contains(&name.as_str()) && is_simple(value)).then(|| format!("{name}={value}"))
        }
        _ => None,
    }
}

/// `container[:ro|rw]`.
fn volumes_from(text: &str) -> Result<(&str, &str)> {
    if text.is_empty() {
        return Err(Error::invalid(
            "volumes-from specification cannot be an empty string",
        ));
    }
    let (container, mode) = text.split_once(':').unwrap_or((text, "rw"));
    if mode
        .split(',')
        .all(|word| matches!(word, "ro" | "rw" | "z" | "Z"))
    {
        Ok((
            container,
            if mode.split(',').any(|word| word == "ro") {
                "ro"
            } else {
                "rw"
            },
        ))
    } else {
        Err(Error::invalid(format!("invalid mode: {mode}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per mount, or the refusal; the path `/missing` does not exist.
    fn planned(config: &str, host: &str) -> String {
        let config: ContainerConfig = serde_json::from_str(config).unwrap();
        let host: HostConfig = serde_json::from_str(host).unwrap();
        let none = |r: &str| Err(Error::not_found(format!("No such container: {r}")));
        match plan(&config, &host, none, |path| path != "/missing") {
            Ok(plan) => plan
                .iter()
                .map(|m| {
                    let from = m.name.clone().unwrap_or_else(|| m.source.clone());
                    let mode = if m.rw { "rw" } else { "ro" };
                    format!(
                        "{} {from}:{} {mode} {}",
                        m.kind, m.destination, m.propagation
                    )
                    .trim()
                    .to_owned()
                })
                .collect::<Vec<_>>()
                .join(" | "),
            Err(e) => e.message().to_owned(),
        }
    }

    #[test]
    fn specs_as_docker_reads_them() {
        for (binds, lines) in [
            (r#"["/a:/b"]"#, "bind /a:/b rw rprivate"),
            (r#"["/a/../c:/b/:ro,z,rshared"]"#, "bind /c:/b ro rshared"),
            (r#"["v1:/b:nocopy"]"#, "volume v1:/b rw"),
            (r#"["/a"]"#, "volume :/a rw"),
        ] {
            assert_eq!(
                planned("{}", &format!(r#"{{"Binds":{binds}}}"#)),
                lines,
                "{binds}"
            );
        }
        assert_eq!(
            planned(
                r#"{"Volumes":{"/d":{},"/b":{}}}"#,
                r#"{"Binds":["/a:/b"],"Tmpfs":{"/d/":""}}"#
            ),
            "bind /a:/b rw rprivate"
        );
    }

    #[test]
    fn refusals_in_dockers_words() {
        for (host, sentence) in [
            (
                r#"{"Binds":["/a:/b:ro:x"]}"#,
                "invalid volume specification: '/a:/b:ro:x'",
            ),
            (
                r#"{"Binds":["/a:ro"]}"#,
                "invalid volume specification: '/a:ro'",
            ),
            (
                r#"{"Binds":[":/b"]}"#,
                "invalid volume specification: ':/b'",
            ),
            (r#"{"Binds":["/a:/b:foo"]}"#, "invalid mode: foo"),
            (r#"{"Binds":["/a:/b:ro,rw"]}"#, "invalid mode: ro,rw"),
            (
                r#"{"Binds":["/a:/"]}"#,
                "invalid volume specification: '/a:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'",
            ),
            (
                r#"{"Binds":["/a:b"]}"#,
                "invalid volume specification: '/a:b': invalid mount config for type \"bind\": invalid mount path: 'b' mount path must be absolute",
            ),
            (
                r#"{"Binds":["../x:/b"]}"#,
                "create ../x: \"../x\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
            ),
            (
                r#"{"Binds":["/a:/b","/c:/b"]}"#,
                "Duplicate mount point: /b",
            ),
            (
                r#"{"Binds":["/a:/b"],"Tmpfs":{"/b":""}}"#,
                "Duplicate mount point: /b",
            ),
            (
                r#"{"Mounts":[{"Type":"bind","Source":"/missing","Target":"/b"}]}"#,
                "invalid mount config for type \"bind\": bind source path does not exist: /missing",
            ),
            (
                r#"{"Mounts":[{"Type":"bind","Target":"/b"}]}"#,
                "invalid mount config for type \"bind\": field Source must not be empty",
            ),
            (
                r#"{"Mounts":[{"Type":"bind","Source":"/a"}]}"#,
                "invalid mount config for type \"bind\": field Target must not be empty",
            ),
            (
                r#"{"Mounts":[{"Type":"tmpfs","Source":"/a","Target":"/b"}]}"#,
                "invalid mount config for type \"tmpfs\": field Source must not be specified",
            ),
            (
                r#"{"Mounts":[{"Type":"foo","Target":"/b"}]}"#,
                "invalid mount config for type \"foo\": mount type unknown",
            ),
            (
                r#"{"Mounts":[{"Type":"volume","Target":"/b","ReadOnly":true}]}"#,
                "invalid mount config for type \"volume\": must not set ReadOnly mode when using anonymous volumes",
            ),
            (r#"{"VolumesFrom":["nobody"]}"#, "No such container: nobody"),
            (r#"{"VolumesFrom":["a:shared"]}"#, "invalid mode: shared"),
        ] {
            assert_eq!(planned("{}", host), sentence, "{host}");
        }
    }
}
