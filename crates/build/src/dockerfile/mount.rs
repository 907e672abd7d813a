//! `RUN --mount=…`.

/// One mount as written; variables in it are expanded by the caller before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    pub kind: MountKind,
    pub from: String,
    pub source: String,
    /// May be relative to the working directory; empty for a secret or agent at its usual place.
    pub target: String,
    pub read_only: bool,
    pub id: String,
    pub sharing: Sharing,
    pub required: bool,
    /// Octal, when given.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Bytes of a tmpfs; 0 is the kernel's half of the memory.
    pub size: u64,
    /// The secret as an environment variable.
    pub env: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// How builds share a cache folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

/// Splits at commas outside double quotes, as a CSV line.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!(
            "extraneous or missing \" in quoted-field of {text:?}"
        ));
    }
    fields.push(field);
    Ok(fields)
}

fn boolean(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("true" | "1" | "t") => Ok(true),
        Some("false" | "0" | "f") => Ok(false),
        Some(_) => Err(format!(
            "invalid value for {key}: {}",
            value.unwrap_or_default()
        )),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, String> {
    u32::from_str_radix(value, radix).map_err(|_| format!("invalid value {value} for {key}"))
}

pub(crate) fn parse(text: &str) -> Result<Mount, String> {
    let fields = fields(text)?;
    let mut mount = Mount::default();
    let mut read_only = None;
    // What a key means depends on the type, wherever that stands.
    for field in &fields {
        if let Some(kind) = field.strip_prefix("type=") {
            mount.kind = match kind.to_ascii_lowercase().as_str() {
                "bind" => MountKind::Bind,
                "cache" => MountKind::Cache,
                "tmpfs" => MountKind::Tmpfs,
                "secret" => MountKind::Secret,
                "ssh" => MountKind::Ssh,
                _ => {
                    return Err(format!(
                        "unsupported mount type {kind:?}: it is bind, cache, tmpfs, secret or ssh"
                    ));
                }
            };
        }
    }
    let kind = mount.kind;
    let secret = matches!(kind, MountKind::Secret | MountKind::Ssh);
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let unexpected = || Err(format!("unexpected key '{key}' in '{field}'"));
        match (key.as_str(), value) {
            ("readonly" | "ro", value) if !secret => read_only = Some(boolean(&key, value)?),
            ("readwrite" | "rw", value) if !secret => read_only = Some(!boolean(&key, value)?),
            ("required", value) if secret => mount.required = boolean(&key, value)?,
            (_, None) => {
                return Err(format!("invalid field '{field}' must be a key=value pair"));
            }
            ("type", _) => {}
            ("from", Some(value)) if matches!(kind, MountKind::Bind | MountKind::Cache) => {
                mount.from = value.into();
            }
            ("source" | "src", Some(value)) if secret => {
                // The same as `id` for a secret.
                if mount.id.is_empty() {
                    mount.id = value.into();
                }
            }
            ("source" | "src", Some(value)) if kind != MountKind::Tmpfs => {
                mount.source = value.into();
            }
            ("target" | "dst" | "destination", Some(value)) => mount.target = value.into(),
            ("id", Some(value)) if kind != MountKind::Bind && kind != MountKind::Tmpfs => {
                mount.id = value.into();
            }
            ("sharing", Some(value)) if kind == MountKind::Cache => {
                mount.sharing = match value {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(format!("unsupported sharing value {value:?}")),
                };
            }
            ("mode", Some(value)) if secret || kind == MountKind::Cache => {
                let mode = number("mode", value, 8)?;
                if mode > 0o7777 {
                    return Err(format!("invalid value {value} for mode"));
                }
                mount.mode = Some(mode);
            }
            ("uid", Some(value)) if secret || kind == MountKind::Cache => {
                mount.uid = Some(number("uid", value, 10)?);
            }
            ("gid", Some(value)) if secret || kind == MountKind::Cache => {
                mount.gid = Some(number("gid", value, 10)?);
            }
            ("size", Some(value)) if kind == MountKind::Tmpfs => {
                mount.size =
                    bytes(value).ok_or_else(|| format!("invalid value for size: {value}"))?;
            }
            ("env", Some(value)) if kind == MountKind::Secret => mount.env = Some(value.into()),
            _ => return unexpected(),
        }
    }
    mount.read_only = read_only.unwrap_or(kind == MountKind::Bind);
    if mount.kind == MountKind::Cache && mount.target.is_empty() {
        return Err("invalid mount: target required".into());
    }
    if mount.kind == MountKind::Cache && mount.id.is_empty() {
        mount.id.clone_from(&mount.target);
    }
    if matches!(kind, MountKind::Bind | MountKind::Tmpfs) && mount.target.is_empty() {
        return Err("invalid mount: target required".into());
    }
    if kind == MountKind::Secret && mount.id.is_empty() {
        let name = mount.target.rsplit('/').next().unwrap_or_default();
        let name = match name {
            "" => mount.env.clone().unwrap_or_default(),
            name => name.to_owned(),
        };
        if name.is_empty() {
            return Err("one of source, target required".into());
        }
        mount.id = name;
    }
    if kind == MountKind::Ssh && mount.id.is_empty() {
        mount.id = "default".into();
    }
    Ok(mount)
}

/// `64m`: units of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let lower = lower.strip_suffix('i').unwrap_or(lower);
    let (digits, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
