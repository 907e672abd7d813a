//! Ports as people write them: `80`, `80/tcp`, `8000-8010/udp`.

use gantry_base::{Error, Result};

/// An inclusive range of one protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl PortRange {
    pub fn contains(&self, port: u16, protocol: &str) -> bool {
        (self.first..=self.last).contains(&port) && self.protocol == protocol
    }
}

/// Parses one port or range; the protocol defaults to `tcp`.
pub fn parse(text: &str) -> Result<PortRange> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |digits: &str| -> Result<u16> {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let value = plain.then(|| digits.parse().ok()).flatten();
        value.ok_or_else(|| Error::invalid(format!("invalid containerPort: {text}")))
    };
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        return Err(Error::invalid(format!("invalid containerPort: {text}")));
    }
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(Error::invalid(format!("invalid proto: {protocol}")));
    }
    Ok(PortRange {
        first,
        last,
        protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        let range = |first, last, protocol: &str| PortRange {
            first,
            last,
            protocol: protocol.into(),
        };
        for (text, want) in [
            ("80", range(80, 80, "tcp")),
            ("53/UDP", range(53, 53, "udp")),
            ("8000-8010/tcp", range(8000, 8010, "tcp")),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "80/http", "70000", "9-8", "-1", "80-", "+80"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
