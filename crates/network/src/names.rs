//! Names of everything global that an instance makes on the host, and ids. Interface names hold 15 bytes, so that the instance
//! is shortened in them.
//!
//! ```text
//! instance           default bridge   bridge of a network   host's side of a pair
//! gantry             gantry0          gantry-89abcdef       gv0123456789
//! gantry-1a2b3c4d    g1a2b3c4d-0      g1a2b3c4d-9abcd       g1a2b3c4d01abcd
//! ```
//! No name of one instance can be one of another.

use gantry_base::{Result, ResultExt};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;

/// The prefix of interface names of instances other than the default one.
fn tag(instance: &str) -> Option<String> {
    if instance == "gantry" {
        return None;
    }
    let hex = instance
        .strip_prefix("gantry-")
        .filter(|hex| hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    Some(match hex {
        Some(hex) => format!("g{}", hex.to_ascii_lowercase()),
        // Any other name is shortened to eight digits of its FNV-1a.
        None => {
            let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            format!("g{hash:08x}")
        }
    })
}

pub(crate) fn default_bridge(instance: &str) -> String {
    match tag(instance) {
        None => "gantry0".into(),
        Some(tag) => format!("{tag}-0"),
    }
}

/// `id`: hexadecimal digits of the network's id, more of them when the first try is taken.
pub(crate) fn network_bridge(instance: &str, id: &str) -> String {
    match tag(instance) {
        None => format!("gantry-{}", &id[..8]),
        Some(tag) => format!("{tag}-{}", &id[..5]),
    }
}

/// Whether an interface of kind bridge with this name is one of the instance's.
pub(crate) fn is_own_bridge(instance: &str, name: &str) -> bool {
    if name == default_bridge(instance) {
        return true;
    }
    let (prefix, digits) = match tag(instance) {
        None => ("gantry-".to_owned(), 8),
        Some(tag) => (format!("{tag}-"), 5),
    };
    name.strip_prefix(&prefix)
        .is_some_and(|rest| rest.len() == digits && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `id`: hexadecimal digits of the endpoint's id.
pub(crate) fn host_interface(instance: &str, id: &str) -> String {
    match tag(instance) {
        None => format!("gv{}", &id[..10]),
        Some(tag) => {
            // Six digits of base 36 instead of hexadecimal ones: 2·10⁹ names in the room that is left.
            let mut number = u64::from_str_radix(&id[..12], 16).unwrap_or(0);
            let mut name = tag;
            for _ in 0..6 {
                let digit = u32::try_from(number % 36).expect("less than 36");
                name.push(char::from_digit(digit, 36).expect("less than 36"));
                number /= 36;
            }
            name
        }
    }
}

/// Whether an interface of kind veth with this name is the host's side of one of the instance's pairs.
pub(crate) fn is_own_pair(instance: &str, name: &str) -> bool {
    match tag(instance) {
        None => name
            .strip_prefix("gv")
            .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit())),
        Some(tag) => name.strip_prefix(&tag).is_some_and(|rest| {
            rest.len() == 6
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        }),
    }
}

/// 64 random hexadecimal digits.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context(|| "reading random bytes".into())?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_instances_apart() {
        let id = new_id().unwrap();
        assert_eq!(id.len(), 64);
        let instances = [
            "gantry",
            "gantry-1a2b3c4d",
            "gantry-00000000",
            "a-long-test-name",
        ];
        for instance in instances {
            let bridges = [default_bridge(instance), network_bridge(instance, &id)];
            for name in &bridges {
                assert!(name.len() <= 15, "{name}");
                for other in instances {
                    assert_eq!(
                        is_own_bridge(other, name),
                        other == instance,
                        "{other} {name}"
                    );
                }
            }
            let veth = host_interface(instance, &id);
            assert!(veth.len() <= 15, "{veth}");
            assert!(!is_own_bridge(instance, &veth));
            for other in instances {
                assert_eq!(
                    is_own_pair(other, &veth),
                    other == instance,
                    "{other} {veth}"
                );
            }
        }
        assert_eq!(default_bridge("gantry-1a2b3c4d"), "g1a2b3c4d-0");
    }
}
