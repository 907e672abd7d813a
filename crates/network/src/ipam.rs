//! Which address a container gets. Pure: a subnet, who holds what, and a cursor.
//!
//! Addresses are handed out in sequence behind the last one, so that an address that was just given back comes last: peers that
//! still hold it in a cache do not talk to a stranger.

use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Addresses of one network.
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: Ipv4Net,
    /// The part that addresses are chosen from; static ones may lie outside.
    range: Ipv4Net,
    gateway: Option<Ipv4Addr>,
    leases: BTreeMap<Ipv4Addr, String>,
    /// Where the next search begins.
    cursor: u32,
}

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// All are held.
    Exhausted,
    /// Somebody else holds the wanted one.
    Taken,
    /// The wanted one does not belong to the subnet or is its network, broadcast or gateway address.
    Outside,
}

impl Pool {
    pub fn new(subnet: Ipv4Net, range: Option<Ipv4Net>, gateway: Option<Ipv4Addr>) -> Self {
        let range = range.filter(|r| subnet.contains(r)).unwrap_or(subnet);
        Self {
            subnet: subnet.trunc(),
            range: range.trunc(),
            gateway,
            leases: BTreeMap::new(),
            cursor: range.trunc().network().into(),
        }
    }

    /// Takes back a lease that was recorded. `false`: somebody else has it, or it is none of ours.
    pub fn restore(&mut self, owner: &str, address: Ipv4Addr) -> bool {
        if !self.usable(address) {
            return false;
        }
        match self.leases.get(&address) {
            Some(holder) => holder == owner,
            None => {
                self.take(owner, address);
                true
            }
        }
    }

    /// An address for `owner`: the wanted one, or the next free one.
    pub fn lease(&mut self, owner: &str, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, Refusal> {
        let address = match wanted {
            Some(address) if !self.usable(address) => return Err(Refusal::Outside),
            Some(address) if self.leases.contains_key(&address) => return Err(Refusal::Taken),
            Some(address) => {
                // Static addresses do not move the cursor: the sequence is for those that did not choose.
                self.leases.insert(address, owner.to_owned());
                return Ok(address);
            }
            None => self.next_free().ok_or(Refusal::Exhausted)?,
        };
        self.take(owner, address);
        Ok(address)
    }

    /// Gives back every address of `owner`.
    pub fn release(&mut self, owner: &str) {
        self.leases.retain(|_, holder| holder != owner);
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    fn take(&mut self, owner: &str, address: Ipv4Addr) {
        self.leases.insert(address, owner.to_owned());
        let next = u32::from(address).wrapping_add(1);
        self.cursor = self.cursor.max(next);
    }

    fn next_free(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (
            u32::from(self.range.network()),
            u32::from(self.range.broadcast()),
        );
        if !(first..=last).contains(&self.cursor) {
            self.cursor = first;
        }
        let found = (self.cursor..=last)
            .chain(first..self.cursor)
            .map(Ipv4Addr::from)
            .find(|a| self.usable(*a) && !self.leases.contains_key(a))?;
        // Behind the one found even when the search went round; `take` alone never goes back.
        self.cursor = u32::from(found);
        Some(found)
    }

    fn usable(&self, address: Ipv4Addr) -> bool {
        // Subnets of one or two addresses have neither network nor broadcast address (RFC 3021).
        let small = self.subnet.prefix_len() >= 31;
        self.subnet.contains(&address)
            && Some(address) != self.gateway
            && (small || (address != self.subnet.network() && address != self.subnet.broadcast()))
    }
}

/// IPv6 addresses of one network: handed out in sequence behind the last one. A subnet is never used up.
#[derive(Debug, Clone)]
pub struct Pool6 {
    subnet: Ipv6Net,
    range: Ipv6Net,
    gateway: Ipv6Addr,
    leases: BTreeMap<Ipv6Addr, String>,
    cursor: u128,
}

impl Pool6 {
    pub fn new(subnet: Ipv6Net, range: Option<Ipv6Net>, gateway: Ipv6Addr) -> Self {
        let range = range.filter(|r| subnet.contains(r)).unwrap_or(subnet);
        Self {
            subnet: subnet.trunc(),
            range: range.trunc(),
            gateway,
            leases: BTreeMap::new(),
            cursor: range.network().into(),
        }
    }

    /// The wanted address, or the next free one. Asked for again by its owner, the wanted one is given again.
    pub fn lease(&mut self, owner: &str, wanted: Option<Ipv6Addr>) -> Result<Ipv6Addr, Refusal> {
        let address = match wanted {
            Some(address) if !self.usable(address) => return Err(Refusal::Outside),
            Some(address) => match self.leases.get(&address) {
                Some(holder) if holder != owner => return Err(Refusal::Taken),
                _ => address,
            },
            None => {
                let found = self.next_free().ok_or(Refusal::Exhausted)?;
                self.cursor = u128::from(found).wrapping_add(1);
                found
            }
        };
        self.leases.insert(address, owner.to_owned());
        Ok(address)
    }

    pub fn release(&mut self, owner: &str) {
        self.leases.retain(|_, holder| holder != owner);
    }

    fn next_free(&self) -> Option<Ipv6Addr> {
        let (first, last) = (
            u128::from(self.range.network()),
            u128::from(self.range.broadcast()),
        );
        let begin = self.cursor.clamp(first, last);
        (begin..=last)
            .chain(first..begin)
            // Every lease, the gateway and the subnet's own address may be in the way, nothing else.
            .take(self.leases.len() + 3)
            .map(Ipv6Addr::from)
            .find(|a| self.usable(*a) && !self.leases.contains_key(a))
    }

    fn usable(&self, address: Ipv6Addr) -> bool {
        // The subnet's first address is that of its routers (RFC 4291, 2.6.1).
        self.subnet.contains(&address)
            && address != self.gateway
            && address != self.subnet.network()
    }
}

/// The first subnet of the pool that overlaps nothing in `used`. The pool is cut in sixteen, but never into more than a /16 or
/// less than a /28 each.
pub fn choose_subnet(pool: Ipv4Net, used: &[Ipv4Net]) -> Option<Ipv4Net> {
    let length = (pool.prefix_len() + 4).clamp(16, 28).max(pool.prefix_len());
    pool.subnets(length)
        .ok()?
        .find(|candidate| !used.iter().any(|u| overlap(*candidate, *u)))
}

pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Docker's way to make a MAC address from an IPv4 address: the same address always has the same.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }
    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }
    fn pool(subnet: &str, gateway: &str) -> Pool {
        Pool::new(net(subnet), None, Some(ip(gateway)))
    }

    #[test]
    fn in_sequence_and_the_one_given_back_comes_last() {
        let mut pool = pool("10.0.0.0/29", "10.0.0.1");
        let mut got = vec![
            pool.lease("a", None).unwrap(),
            pool.lease("b", None).unwrap(),
        ];
        pool.release("a");
        for owner in ["c", "d", "e", "f"] {
            got.push(pool.lease(owner, None).unwrap());
        }
        let want = [
            "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2",
        ];
        assert_eq!(got, want.map(ip));
        assert_eq!(pool.lease("g", None), Err(Refusal::Exhausted));
        pool.release("c");
        assert_eq!(pool.lease("g", None), Ok(ip("10.0.0.4")));
    }

    #[test]
    fn static_addresses() {
        let mut pool = pool("10.0.0.0/24", "10.0.0.1");
        assert_eq!(
            pool.lease("a", Some(ip("10.0.0.200"))),
            Ok(ip("10.0.0.200"))
        );
        assert_eq!(pool.lease("b", Some(ip("10.0.0.200"))), Err(Refusal::Taken));
        for outside in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2"] {
            assert_eq!(pool.lease("b", Some(ip(outside))), Err(Refusal::Outside));
        }
        assert_eq!(pool.lease("b", None), Ok(ip("10.0.0.2")));
    }

    #[test]
    fn recorded_leases_come_back() {
        let mut pool = pool("10.0.0.0/24", "10.0.0.1");
        assert!(pool.restore("a", ip("10.0.0.2")));
        assert!(pool.restore("a", ip("10.0.0.2")));
        assert!(!pool.restore("b", ip("10.0.0.2")));
        assert!(!pool.restore("b", ip("192.168.0.2")));
        assert_eq!(pool.lease("b", None), Ok(ip("10.0.0.3")));
    }

    #[test]
    fn a_range_bounds_the_choice() {
        let mut pool = Pool::new(
            net("10.0.0.0/24"),
            Some(net("10.0.0.128/30")),
            Some(ip("10.0.0.1")),
        );
        let got: Vec<_> = ["a", "b", "c", "d"]
            .map(|o| pool.lease(o, None).unwrap())
            .into();
        assert_eq!(
            got,
            ["10.0.0.128", "10.0.0.129", "10.0.0.130", "10.0.0.131"].map(ip)
        );
        assert_eq!(pool.lease("e", None), Err(Refusal::Exhausted));
    }

    #[test]
    fn subnets_avoid_what_is_used() {
        let used = [net("172.17.5.0/24"), net("172.18.0.0/15")];
        assert_eq!(
            choose_subnet(net("172.16.0.0/12"), &used),
            Some(net("172.16.0.0/16"))
        );
        assert_eq!(
            choose_subnet(net("10.9.0.0/16"), &[net("10.9.0.0/20")]),
            Some(net("10.9.16.0/20"))
        );
        assert_eq!(
            choose_subnet(net("10.9.0.0/30"), &[]),
            Some(net("10.9.0.0/30"))
        );
        assert_eq!(choose_subnet(net("10.9.0.0/16"), &[net("0.0.0.0/0")]), None);
    }

    #[test]
    fn ipv6_in_sequence_and_static() {
        let mut pool = Pool6::new(
            "fd00::/64".parse().unwrap(),
            None,
            "fd00::1".parse().unwrap(),
        );
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        assert_eq!(pool.lease("a", None), Ok(ip("fd00::2")));
        assert_eq!(pool.lease("b", Some(ip("fd00::3"))), Ok(ip("fd00::3")));
        assert_eq!(pool.lease("c", None), Ok(ip("fd00::4")));
        assert_eq!(pool.lease("c", Some(ip("fd00::3"))), Err(Refusal::Taken));
        for outside in ["fd00::", "fd00::1", "fd01::2"] {
            assert_eq!(pool.lease("c", Some(ip(outside))), Err(Refusal::Outside));
        }
        pool.release("a");
        assert_eq!(pool.lease("d", None), Ok(ip("fd00::5")));
        // A small range goes round and runs out.
        let range = Some("fd00::8/126".parse().unwrap());
        let mut pool = Pool6::new("fd00::/64".parse().unwrap(), range, ip("fd00::1"));
        let got: Vec<_> = (0..5).map(|n| pool.lease(&n.to_string(), None)).collect();
        assert_eq!(got[3], Ok(ip("fd00::b")));
        assert_eq!(got[4], Err(Refusal::Exhausted));
        pool.release("1");
        assert_eq!(pool.lease("x", None), Ok(ip("fd00::9")));
    }

    proptest! {
        /// Nobody shares an address, nobody gets one that is not usable, and what is free can be had.
        #[test]
        fn leases_are_exclusive(operations in proptest::collection::vec((0u8..12, any::<bool>()), 0..200)) {
            let mut pool = pool("10.0.0.0/28", "10.0.0.1");
            let mut held: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for (owner, take) in operations {
                let owner = owner.to_string();
                if take && !held.contains_key(&owner) {
                    let address = pool.lease(&owner, None).unwrap();
                    prop_assert!(net("10.0.0.0/28").hosts().any(|h| h == address && h != ip("10.0.0.1")));
                    prop_assert!(!held.values().any(|a| *a == address));
                    held.insert(owner, address);
                } else if !take {
                    pool.release(&owner);
                    held.remove(&owner);
                }
                prop_assert_eq!(pool.len(), held.len());
            }
        }
    }
}
