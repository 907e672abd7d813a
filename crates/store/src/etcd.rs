//! The store in an etcd v3 cluster, over gRPC. Holds no state: any number of servers may use one cluster.
//!
//! A write that got no answer may have happened: it is never repeated here, the caller hears [`Error::Unavailable`]. A watch that
//! lost its connection goes on from the revision after the last one it delivered.

use crate::{
    Answer, Batch, Bytes, Compare, Done, Error, Event, Is, KeyValue, Op, Range, Ranged, Result,
    Span, Store, Txn, Txned, Watch, Watcher,
};
use etcd_client as etcd;
use std::time::Duration;

/// How long one request may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for this long is given up, so that a watch notices a dead cluster.
const PING: Duration = Duration::from_secs(5);
/// Bytes of one answer; a list without a limit over a large cluster needs pages instead.
const ANSWER_LIMIT: usize = 512 << 20;

/// Where the cluster is, and who we are to it.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `host:port`, or with `http://` or `https://` before it.
    pub endpoints: Vec<String>,
    pub user: Option<(String, String)>,
    /// PEM of the authority that signed the servers' certificates. `Some` makes every connection TLS.
    pub ca: Option<Vec<u8>>,
    /// PEM of our own certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    client: etcd::Client,
}

impl Etcd {
    /// Connects and makes one request, so that a wrong address or password shows at once.
    pub async fn connect(config: &Config) -> Result<Self> {
        let mut options = etcd::ConnectOptions::new()
            .with_connect_timeout(TIMEOUT)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true);
        if let Some((name, password)) = &config.user {
            options = options
                .with_user(name.clone(), password.clone())
                .with_auto_token_refresh(true);
        }
        let scheme = if config.ca.is_some() { "https" } else { "http" };
        if let Some(ca) = &config.ca {
            let mut tls = etcd::TlsOptions::new().ca_certificate(etcd::Certificate::from_pem(ca));
            if let Some((certificate, key)) = &config.identity {
                tls = tls.identity(etcd::Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let endpoints: Vec<String> = config
            .endpoints
            .iter()
            .map(|endpoint| {
                if endpoint.contains("://") {
                    endpoint.clone()
                } else {
                    format!("{scheme}://{endpoint}")
                }
            })
            .collect();
        let client = within(etcd::Client::connect(endpoints, Some(options))).await?;
        let store = Self { client };
        store.revision().await?;
        Ok(store)
    }

    fn kv(&self) -> etcd::KvClient {
        self.client
            .kv_client()
            .max_decoding_message_size(ANSWER_LIMIT)
    }
}

async fn within<T>(request: impl Future<Output = Result<T, etcd::Error>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(translate),
        Err(_) => Err(Error::Unavailable("etcd gave no answer in time".to_owned())),
    }
}

fn translate(error: etcd::Error) -> Error {
    let etcd::Error::GRpcStatus(status) = &error else {
        return match &error {
            etcd::Error::InvalidArgs(_)
            | etcd::Error::InvalidUri(_)
            | etcd::Error::InvalidMetadataValue(_) => Error::Invalid(error.to_string()),
            // What the client makes of an answer without time left.
            etcd::Error::LeaseKeepAliveError(text) if text == "lease not found" => {
                Error::NoLease(0)
            }
            _ => Error::Unavailable(error.to_string()),
        };
    };
    let text = status.message();
    // The names are gRPC's codes; the type itself is not re-exported by the client.
    let code = format!("{:?}", status.code());
    match code.as_str() {
        "OutOfRange" if text.contains("compacted") => Error::Compacted {
            requested: 0,
            oldest: 0,
        },
        "OutOfRange" => Error::Future {
            requested: 0,
            current: 0,
        },
        "NotFound" => Error::NoLease(0),
        "ResourceExhausted" if text.contains("space") => Error::Full(text.to_owned()),
        "Unauthenticated" | "PermissionDenied" => Error::Unauthorized(text.to_owned()),
        "InvalidArgument" if text.contains("auth") || text.contains("user name") => {
            Error::Unauthorized(text.to_owned())
        }
        "InvalidArgument" => Error::Invalid(text.trim_start_matches("etcdserver: ").to_owned()),
        _ => Error::Unavailable(format!("{code}: {text}")),
    }
}

fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn revision_of(header: Option<&etcd::ResponseHeader>) -> u64 {
    header.map_or(0, |header| unsigned(header.revision()))
}

fn kv(found: &etcd::KeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(found.key()),
        value: Bytes::copy_from_slice(found.value()),
        create_revision: unsigned(found.create_revision()),
        mod_revision: unsigned(found.mod_revision()),
        version: unsigned(found.version()),
        lease: found.lease(),
    }
}

/// etcd's way to say "no upper end" is a zero byte.
fn end_of(span: &Span) -> Option<Vec<u8>> {
    let end = span.end.as_ref()?;
    Some(if end.is_empty() {
        vec![0]
    } else {
        end.to_vec()
    })
}

/// etcd knows no empty key; the smallest one stands for it.
fn start_of(span: &Span) -> Vec<u8> {
    if span.start.is_empty() && span.end.is_some() {
        vec![0]
    } else {
        span.start.to_vec()
    }
}

fn compare(compare: &Compare) -> etcd::Compare {
    let (key, equal) = (compare.key.to_vec(), etcd::CompareOp::Equal);
    match compare.is {
        Is::ModRevision(revision) => etcd::Compare::mod_revision(key, equal, signed(revision)),
        Is::CreateRevision(revision) => {
            etcd::Compare::create_revision(key, equal, signed(revision))
        }
        Is::Version(version) => etcd::Compare::version(key, equal, signed(version)),
    }
}

fn op(op: &Op) -> etcd::TxnOp {
    match op {
        Op::Get { key } => etcd::TxnOp::get(key.to_vec(), None),
        Op::Put { key, value, lease } => {
            let options = (*lease != 0).then(|| etcd::PutOptions::new().with_lease(*lease));
            etcd::TxnOp::put(key.to_vec(), value.to_vec(), options)
        }
        Op::Delete { key } => etcd::TxnOp::delete(key.to_vec(), None),
    }
}

impl Store for Etcd {
    fn range(&self, range: Range) -> Answer<'_, Ranged> {
        Box::pin(async move {
            if range.span.start.is_empty() && range.span.end.is_none() {
                return Ok(Ranged::default());
            }
            let mut options = etcd::GetOptions::new()
                .with_limit(i64::try_from(range.limit).unwrap_or(i64::MAX))
                .with_revision(signed(range.revision));
            if let Some(end) = end_of(&range.span) {
                options = options.with_range(end);
            }
            if range.keys_only {
                options = options.with_keys_only();
            }
            let answer = within(self.kv().get(start_of(&range.span), Some(options)))
                .await
                .map_err(|e| with_requested(e, range.revision))?;
            Ok(Ranged {
                kvs: answer.kvs().iter().map(kv).collect(),
                more: answer.more(),
                count: range.count.then(|| unsigned(answer.count())),
                revision: match range.revision {
                    0 => revision_of(answer.header()),
                    revision => revision,
                },
            })
        })
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Txned> {
        Box::pin(async move {
            txn.validate()?;
            let request = etcd::Txn::new()
                .when(txn.when.iter().map(compare).collect::<Vec<_>>())
                .and_then(txn.then.iter().map(op).collect::<Vec<_>>())
                .or_else(txn.or_else.iter().map(op).collect::<Vec<_>>());
            let mut client = self.kv();
            let lease = txn.then.iter().chain(&txn.or_else).find_map(|op| match op {
                Op::Put { lease, .. } if *lease != 0 => Some(*lease),
                _ => None,
            });
            let answer = within(client.txn(request)).await.map_err(|e| match e {
                Error::NoLease(_) => Error::NoLease(lease.unwrap_or(0)),
                e => e,
            })?;
            let results = answer
                .op_responses()
                .into_iter()
                .map(|response| match response {
                    etcd::TxnOpResponse::Get(got) => Done::Got(got.kvs().first().map(kv)),
                    etcd::TxnOpResponse::Delete(deleted) => Done::Deleted(deleted.deleted() > 0),
                    _ => Done::Put,
                })
                .collect();
            Ok(Txned {
                succeeded: answer.succeeded(),
                revision: revision_of(answer.header()),
                results,
            })
        })
    }

    fn watch(&self, watch: Watch) -> Answer<'_, Box<dyn Watcher>> {
        Box::pin(async move {
            let next = match watch.from {
                0 => self.revision().await? + 1,
                from => from,
            };
            let mut watcher = EtcdWatcher {
                client: self.client.clone(),
                watch,
                next,
                stream: None,
            };
            watcher.open().await?;
            Ok(Box::new(watcher) as Box<dyn Watcher>)
        })
    }

    fn revision(&self) -> Answer<'_, u64> {
        Box::pin(async move {
            let options = etcd::GetOptions::new().with_count_only();
            let answer = within(self.kv().get("\0", Some(options))).await?;
            Ok(revision_of(answer.header()))
        })
    }

    fn compact(&self, revision: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            within(self.kv().compact(signed(revision), None))
                .await
                .map_err(|e| with_requested(e, revision))?;
            Ok(())
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, i64> {
        Box::pin(async move {
            let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
            let granted = within(self.client.lease_client().grant(seconds, None)).await?;
            Ok(granted.id())
        })
    }

    fn keep_alive(&self, lease: i64) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut client = self.client.lease_client();
            // The client has waited for the first answer when this returns.
            within(client.keep_alive(lease))
                .await
                .map_err(|e| match e {
                    Error::NoLease(_) => Error::NoLease(lease),
                    e => e,
                })?;
            Ok(())
        })
    }

    fn revoke(&self, lease: i64) -> Answer<'_, ()> {
        Box::pin(async move {
            within(self.client.lease_client().revoke(lease))
                .await
                .map_err(|e| match e {
                    Error::NoLease(_) => Error::NoLease(lease),
                    e => e,
                })?;
            Ok(())
        })
    }
}

fn with_requested(error: Error, revision: u64) -> Error {
    match error {
        Error::Compacted { oldest, .. } => Error::Compacted {
            requested: revision,
            oldest,
        },
        Error::Future { current, .. } => Error::Future {
            requested: revision,
            current,
        },
        e => e,
    }
}

struct EtcdWatcher {
    client: etcd::Client,
    watch: Watch,
    /// The next revision to deliver.
    next: u64,
    stream: Option<etcd::WatchStream>,
}

impl EtcdWatcher {
    async fn open(&mut self) -> Result<()> {
        let mut options = etcd::WatchOptions::new().with_start_revision(signed(self.next));
        if let Some(end) = end_of(&self.watch.span) {
            options = options.with_range(end);
        }
        if self.watch.prev {
            options = options.with_prev_key();
        }
        let mut client = self
            .client
            .watch_client()
            .max_decoding_message_size(ANSWER_LIMIT);
        let stream = within(client.watch(start_of(&self.watch.span), Some(options))).await?;
        self.stream = Some(stream);
        Ok(())
    }

    fn take(&mut self, answer: &etcd::WatchResponse) -> Result<Option<Batch>> {
        if answer.compact_revision() > 0 {
            self.stream = None;
            return Err(Error::Compacted {
                requested: self.next,
                oldest: unsigned(answer.compact_revision()),
            });
        }
        if answer.canceled() {
            self.stream = None;
            let reason = answer.cancel_reason().to_owned();
            return Err(
                if reason.contains("permission") || reason.contains("auth") {
                    Error::Unauthorized(reason)
                } else {
                    Error::Unavailable(format!("etcd ended the watch: {reason}"))
                },
            );
        }
        let events: Vec<Event> = answer
            .events()
            .iter()
            .filter_map(|event| {
                let found = event.kv()?;
                let prev = event.prev_kv().map(kv);
                Some(match event.event_type() {
                    etcd::EventType::Put => Event::Put {
                        kv: kv(found),
                        prev,
                    },
                    etcd::EventType::Delete => Event::Delete {
                        key: Bytes::copy_from_slice(found.key()),
                        revision: unsigned(found.mod_revision()),
                        prev,
                    },
                })
            })
            // After a reconnection the server may begin with what has been delivered.
            .filter(|event| event.revision() >= self.next)
            .collect();
        let Some(last) = events.last() else {
            return Ok(None);
        };
        let revision = last.revision();
        self.next = revision + 1;
        Ok(Some(Batch { events, revision }))
    }
}

impl Watcher for EtcdWatcher {
    fn next(&mut self) -> Answer<'_, Batch> {
        Box::pin(async move {
            loop {
                let Some(stream) = self.stream.as_mut() else {
                    self.open().await?;
                    continue;
                };
                match stream.message().await {
                    Ok(Some(answer)) => {
                        if let Some(batch) = self.take(&answer)? {
                            return Ok(batch);
                        }
                    }
                    Ok(None) => {
                        self.stream = None;
                        return Err(Error::Unavailable("etcd closed the watch".to_owned()));
                    }
                    Err(e) => {
                        self.stream = None;
                        return Err(translate(e));
                    }
                }
            }
        })
    }

    fn resume_from(&self) -> u64 {
        self.next
    }
}
