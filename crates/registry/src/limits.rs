//! How often a caller may ask. A bucket for each account, or each address of callers without one.

use crate::access::Caller;
use crate::error::{Error, Result};
use crate::policy::{Policy, Watched};
use http::StatusCode;
use http::header::RETRY_AFTER;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Buckets that are kept; the fullest half goes when there are more.
const BUCKETS: usize = 8192;
/// Wrong passwords for one account from one address: so many at once, then one in so many seconds.
const FAILURES: f64 = 10.0;
const FAILURE_SECONDS: f64 = 6.0;

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

#[derive(Debug)]
pub(crate) struct Limits {
    policy: Arc<Watched<Policy>>,
    requests: Mutex<HashMap<String, Bucket>>,
    failures: Mutex<HashMap<String, Bucket>>,
}

impl Limits {
    pub(crate) fn new(policy: Arc<Watched<Policy>>) -> Self {
        Self {
            policy,
            requests: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// One request of this caller.
    pub(crate) fn admit(&self, caller: &Caller, address: Option<IpAddr>) -> Result<()> {
        let Some(policy) = self.policy.get() else {
            return Ok(());
        };
        let Some(rate) = policy.requests_per_second.filter(|rate| *rate > 0.0) else {
            return Ok(());
        };
        let key = match (&caller.name, address) {
            (Some(name), _) => format!("account {name}"),
            (None, Some(address)) => format!("address {}", network(address)),
            (None, None) => "address".to_owned(),
        };
        let burst = policy.burst.unwrap_or(rate * 4.0).max(1.0);
        take(&self.requests, key, rate, burst, 1.0).map_err(too_many)
    }

    /// May somebody try a password for this account from there?
    pub(crate) fn may_try(&self, account: &str, address: Option<IpAddr>) -> Result<()> {
        take(
            &self.failures,
            failure_key(account, address),
            1.0 / FAILURE_SECONDS,
            FAILURES,
            0.0,
        )
        .map_err(too_many)
    }
    /// The password was wrong.
    pub(crate) fn failed(&self, account: &str, address: Option<IpAddr>) {
        let _ = take(
            &self.failures,
            failure_key(account, address),
            1.0 / FAILURE_SECONDS,
            FAILURES,
            1.0,
        );
    }
}

fn failure_key(account: &str, address: Option<IpAddr>) -> String {
    let account: String = account.chars().take(128).collect();
    format!("{account} {}", address.map(network).unwrap_or_default())
}

/// A host with IPv6 has as many addresses as it likes within its network.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::")
        }
    }
}

/// Takes `cost` out of the bucket, or says how many seconds until there is one whole again.
fn take(
    buckets: &Mutex<HashMap<String, Bucket>>,
    key: String,
    rate: f64,
    burst: f64,
    cost: f64,
) -> std::result::Result<(), f64> {
    let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if buckets.len() >= BUCKETS && !buckets.contains_key(&key) {
        let left = |b: &Bucket| b.left + now.duration_since(b.at).as_secs_f64() * rate;
        let mut all: Vec<f64> = buckets.values().map(left).collect();
        all.sort_by(f64::total_cmp);
        let median = all[all.len() / 2];
        buckets.retain(|_, b| left(b) < median);
    }
    let bucket = buckets.entry(key).or_insert(Bucket {
        left: burst,
        at: now,
    });
    bucket.left = (bucket.left + now.duration_since(bucket.at).as_secs_f64() * rate).min(burst);
    bucket.at = now;
    if bucket.left < 1.0 {
        return Err((1.0 - bucket.left) / rate);
    }
    bucket.left -= cost;
    Ok(())
}

fn too_many(seconds: f64) -> Error {
    Error::new(
        StatusCode::TOO_MANY_REQUESTS,
        "TOOMANYREQUESTS",
        "too many requests; come back later",
    )
    .with(RETRY_AFTER, format!("{:.0}", seconds.ceil().max(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_runs_dry_and_many_callers_do_not_grow_it() {
        let buckets = Mutex::default();
        for _ in 0..5 {
            take(&buckets, "a".into(), 0.001, 5.0, 1.0).unwrap();
        }
        assert!(take(&buckets, "a".into(), 0.001, 5.0, 1.0).unwrap_err() > 900.0);
        for i in 0..3 * BUCKETS {
            take(&buckets, format!("{i}"), 0.001, 5.0, 1.0).unwrap();
        }
        assert!(buckets.lock().unwrap().len() <= BUCKETS);
        assert_eq!(network("::ffff:1.2.3.4".parse().unwrap()), "1.2.3.4");
        assert_eq!(
            network("2001:db8:1:2:3::4".parse().unwrap()),
            "2001:db8:1:2::"
        );
    }
}
