//! The Kubernetes API: REST over the versioned store.
//!
//! ```text
//! TLS (server) ─► who is it (auth) ─► may it (rbac) ─► place (request) ─┬─ get, list   read
//!                                                                      ├─ watch       watch ◄─ hub ◄─ one watch of the store
//!                                                                      ├─ create, update, patch   write ─► compare-and-swap
//!                                                                      └─ delete, deletecollection   delete
//! ```
//! Start with [`Api::call`]; [`kinds`] is the table of what is served. Objects are bytes from the store to the wire
//! ([`object`]): a get or a list without selectors decodes nothing, an event is put into words once for all watchers ([`hub`]).
//! What Kubernetes' types say (schemas, defaults, faults, apply) is crate `kube-api`'s; [`rules`] and [`managed`] call it.
//!
//! Invariants
//! * An answered write is durable; it replaced exactly the revision that it was computed from.
//! * A watch misses nothing and repeats nothing, whether the ring or the store's log feeds it.
//! * Secrets are sealed before they reach the store, keys are wrapped by the root key that alone lies in the data directory.
//! * Every body, header, selector, watch and number of watchers has a limit.
//!
//! Spec: Kubernetes 1.35 API concepts and conventions.

#![forbid(unsafe_code)]

mod admission;
mod audit;
mod auth;
mod convert;
mod custom;
mod delete;
mod discovery;
mod hub;
mod keeper;
mod keys;
mod kinds;
mod managed;
mod object;
mod pods;
mod protobuf;
mod rbac;
mod read;
mod reply;
mod request;
mod rules;
mod scale;
mod select;
mod server;
mod status;
mod table;
mod tokens;
mod watch;
mod write;

pub use reply::{Body, Reply};
pub use request::User;
pub use server::serve;

use audit::Audit;
use bytes::Bytes;
use gantry_base::ResultExt;
use gantry_store::{Compare, Done, KeyValue, Op, Range, Span, Store, Txn};
use http::{HeaderMap, Method, StatusCode, Uri};
use hub::Hub;
use keys::Keys;
use kinds::{Kind, Registry};
use rbac::Rbac;
use request::{Call, Form, Place, Target};
use serde_json::Value;
use status::{Result, Status};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as signal;

/// How far back a watch or an exact list may reach.
const HISTORY: Duration = Duration::from_secs(300);

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the root key lies: `D/keys`.
    pub keys_dir: PathBuf,
    /// Where clients reach it: `127.0.0.1:6443`.
    pub address: String,
    /// Where writes and refusals are noted down; `None`: nowhere.
    pub audit_log: Option<PathBuf>,
    /// Further addresses that its certificate shall name.
    pub addresses: Vec<IpAddr>,
}

/// One API server. Shared by all connections and by the parts of the platform that live in the same process.
pub struct Api {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
    hub: Arc<Hub>,
    registry: Registry,
    rbac: Rbac,
    audit: Option<Audit>,
    settings: Settings,
    stop: signal::Receiver<bool>,
}

/// An object as kept, opened.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
}

/// What a write brings along into its transaction.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    pub(crate) when: Vec<Compare>,
    pub(crate) then: Vec<Op>,
}

/// What creations ask of their namespace.
pub(crate) struct Namespace {
    pub(crate) created: u64,
    pub(crate) ending: bool,
}

impl Api {
    /// Opens the server on a store: keys, first objects, the watch. Ends with `stop`.
    pub async fn open(
        store: Arc<dyn Store>,
        settings: Settings,
        stop: signal::Receiver<bool>,
    ) -> gantry_base::Result<Arc<Self>> {
        let keys = Arc::new(Keys::open(&*store, &settings.keys_dir).await?);
        let hub = Arc::new(Hub::new(store.clone(), keys.clone()));
        let audit = match &settings.audit_log {
            Some(path) => Some(
                Audit::start(path)
                    .context(|| format!("opening the audit log {}", path.display()))?,
            ),
            None => None,
        };
        let api = Arc::new(Self {
            store,
            keys,
            hub,
            registry: Registry::new(),
            rbac: Rbac::default(),
            audit,
            settings,
            stop,
        });
        let watcher = api
            .hub
            .start()
            .await
            .map_err(|status| gantry_base::Error::internal(status.message))?;
        api.first_objects()
            .await
            .map_err(|status| gantry_base::Error::internal(status.message))
            .context(|| "making the first objects of the cluster".into())?;
        api.load_custom()
            .await
            .map_err(|status| gantry_base::Error::internal(status.message))?;
        let hub = api.hub.clone();
        let rbac = api.clone();
        api.spawn(async move { hub.run(watcher, || rbac.rbac.changed()).await });
        api.spawn(api.clone().keep_namespaces());
        api.spawn(api.clone().keep_definitions());
        api.spawn(api.clone().collect_garbage());
        api.spawn(api.clone().compact());
        Ok(api)
    }

    /// A part of this server that runs until it stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopped(&mut stop) => {}
            }
        });
    }

    /// Forgets revisions that are older than anybody may ask for: Kubernetes keeps five minutes.
    async fn compact(self: Arc<Self>) {
        let mut before = 0;
        loop {
            tokio::time::sleep(HISTORY).await;
            if before > 0
                && let Err(error) = self.store.compact(before).await
            {
                tracing::warn!("compacting the store: {error}");
            }
            before = self.store.revision().await.unwrap_or(before);
        }
    }

    /// The namespaces that every cluster has.
    async fn first_objects(self: &Arc<Self>) -> Result<()> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let object = serde_json::json!({"metadata": {"name": name}});
            self.make("", "v1", "namespaces", "", object).await?;
        }
        for (name, rules) in rbac::first_roles() {
            let object = serde_json::json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                    "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
                "rules": rules,
            });
            self.make(rbac::GROUP, "v1", "clusterroles", "", object)
                .await?;
        }
        for (name, groups) in rbac::FIRST_BINDINGS {
            let subject = |group: &&str| serde_json::json!({"kind": "Group", "apiGroup": rbac::GROUP, "name": group});
            let subjects: Vec<_> = groups.iter().map(subject).collect();
            let object = serde_json::json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
                "roleRef": {"apiGroup": rbac::GROUP, "kind": "ClusterRole", "name": name},
                "subjects": subjects,
            });
            self.make(rbac::GROUP, "v1", "clusterrolebindings", "", object)
                .await?;
        }
        Ok(())
    }

    /// Creates an object for a part of this server, unless it is there.
    pub(crate) async fn make(
        self: &Arc<Self>,
        group: &str,
        version: &str,
        plural: &str,
        namespace: &str,
        mut object: Value,
    ) -> Result<()> {
        let call = Call::new(
            User::system("apiserver"),
            Method::POST,
            &Uri::from_static("/"),
            HeaderMap::new(),
        )?;
        let kind = self
            .registry
            .find(group, version, plural)
            .ok_or_else(Status::no_resource)?;
        let name = object::text(&object, "/metadata/name").to_owned();
        if self.find(&kind, namespace, &name).await?.is_some() {
            return Ok(());
        }
        let target = Target {
            verb: "create",
            kind,
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
        };
        write::belongs(&target, &mut object)?;
        match write::create_object(self, &call, &target, object, &mut Vec::new()).await {
            Err(status) if status.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// The same from inside of another creation.
    pub(crate) fn make_boxed<'a>(
        self: &'a Arc<Self>,
        plural: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(self.make("", "v1", plural, namespace, object))
    }

    /// Answers one request of an authenticated user. The one way in, for connections and for parts of the same process.
    pub async fn call<B>(
        self: &Arc<Self>,
        user: User,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: B,
    ) -> Reply
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.respond(user, method, uri, headers, body).await {
            Ok(reply) => reply,
            Err(status) => {
                if status.code.is_server_error() {
                    tracing::warn!(path = uri.path(), "{}", status.message);
                }
                reply::refusal(&status)
            }
        }
    }

    async fn respond<B>(
        self: &Arc<Self>,
        user: User,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        body: B,
    ) -> Result<Reply>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let call = Call::new(user, method, uri, headers)?;
        let place = request::place(&self.registry, &call.method, &call.path, &call.query)?;
        let answered = match auth::authorize(self, &call, &place).await {
            Ok(()) => self.handle(&call, &place, body).await,
            Err(status) => Err(status),
        };
        if let Some(audit) = &self.audit {
            let code = match &answered {
                Ok(reply) => reply.status(),
                Err(status) => status.code,
            };
            audit.note(&call, Some(&place), code.as_u16());
        }
        answered
    }

    async fn handle<B>(self: &Arc<Self>, call: &Call, place: &Place, body: B) -> Result<Reply>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let target = match place {
            Place::Object(target) => target,
            Place::Path => return self.path(call).await,
        };
        match target.verb {
            "get" => return self.read_one(call, target).await,
            "list" => return read::list(self, call, target).await,
            "watch" => return watch::watch(self, call, target).await,
            _ => {}
        }
        let body = request::body(body).await?;
        match target.verb {
            "create" => match &target.subresource[..] {
                "" if target.kind.virtual_kind && target.kind.group.is_empty() => {
                    Err(Status::method_not_allowed())
                }
                "" if target.kind.virtual_kind => auth::review(self, call, target, &body).await,
                "" => write::create(self, call, target, &body).await,
                "token" => tokens::request(self, call, target, &body).await,
                "binding" => pods::bind(self, call, target, &body).await,
                "eviction" => pods::evict(self, call, target, &body).await,
                "exec" | "attach" | "portforward" => self.read_one(call, target).await,
                _ => Err(Status::method_not_allowed()),
            },
            "update" => write::update(self, call, target, &body).await,
            "patch" => write::patch(self, call, target, &body).await,
            "delete" if target.subresource.is_empty() => {
                delete::delete(self, call, target, &body).await
            }
            "deletecollection" => delete::delete_many(self, call, target, &body).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn read_one(self: &Arc<Self>, call: &Call, target: &Target) -> Result<Reply> {
        match &target.subresource[..] {
            "" | "status" => read::get(self, call, target).await,
            "scale" => scale::answer(self, call, target, &self.need(target).await?),
            "log" | "exec" | "attach" | "portforward" => {
                self.need(target).await?;
                Err(Status::bad_request(format!(
                    "pod {} does not have a host assigned",
                    target.name
                )))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn path(self: &Arc<Self>, call: &Call) -> Result<Reply> {
        if !matches!(call.method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        if let Some(reply) = discovery::answer(self, call)? {
            return Ok(reply);
        }
        match call.path.trim_end_matches('/') {
            "/version" => Ok(reply::json(StatusCode::OK, &discovery::version())),
            "/healthz" | "/livez" | "/readyz" => self.health(call).await,
            "" => {
                let paths = [
                    "/api", "/api/v1", "/apis", "/healthz", "/livez", "/readyz", "/version",
                ];
                Ok(reply::json(
                    StatusCode::OK,
                    &serde_json::json!({"paths": paths}),
                ))
            }
            _ => Err(Status::no_resource()),
        }
    }

    async fn health(&self, call: &Call) -> Result<Reply> {
        let store = self.store.revision().await;
        let name = call.path.trim_matches('/');
        if let Err(error) = store {
            let text = format!("[+]ping ok\n[-]store failed: {error}\n{name} check failed\n");
            return Ok(reply::bytes(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain; charset=utf-8",
                text,
            ));
        }
        if call.query.flag("verbose") {
            return Ok(reply::text(format!(
                "[+]ping ok\n[+]store ok\n{name} check passed\n"
            )));
        }
        Ok(reply::text("ok"))
    }

    pub(crate) fn address(&self) -> &str {
        &self.settings.address
    }

    pub(crate) fn stopping(&self) -> signal::Receiver<bool> {
        self.stop.clone()
    }

    /// A kubeconfig for whoever may do everything: `context`, cluster and user are called `gantry`.
    pub fn admin_kubeconfig(&self) -> gantry_base::Result<String> {
        use base64::Engine;
        let pair = self
            .keys
            .authority
            .client("kubernetes-admin", &["system:masters"])?;
        let encode = |text: &str| base64::prelude::BASE64_STANDARD.encode(text);
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: gantry\nclusters:\n- name: gantry\n  cluster:\n    server: https://{}\n    certificate-authority-data: {}\ncontexts:\n- name: gantry\n  context:\n    cluster: gantry\n    user: gantry\nusers:\n- name: gantry\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            self.settings.address,
            encode(&self.keys.authority.certificate_pem),
            encode(&pair.certificate_pem),
            encode(&pair.key_pem),
        ))
    }

    // What follows is the way to the store: keys, sealing, versions.

    pub(crate) fn opened(&self, kv: KeyValue) -> Result<Stored> {
        let value = self
            .keys
            .open_value(&kv.key, kv.value)
            .map_err(|e| Status::internal(e.chain()))?;
        Ok(Stored {
            value,
            revision: kv.mod_revision,
        })
    }

    fn closed(&self, kind: &Kind, key: &str, value: Bytes) -> Result<Bytes> {
        if kind.is("", "secrets") {
            let sealed = self.keys.seal(key.as_bytes(), &value);
            return sealed.map_err(|e| Status::internal(e.chain()));
        }
        Ok(value)
    }

    pub(crate) async fn find(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Stored>> {
        let key = Bytes::from(kind.key(namespace, name));
        let found = self.store.get(key).await?;
        found.map(|kv| self.opened(kv)).transpose()
    }

    pub(crate) async fn need(&self, target: &Target) -> Result<Stored> {
        let kind = &target.kind;
        self.find(kind, &target.namespace, &target.name)
            .await?
            .ok_or_else(|| Status::not_found(&kind.group, &kind.plural, &target.name))
    }

    pub(crate) async fn namespace(&self, name: &str) -> Result<Option<Namespace>> {
        let key = format!("/registry/core/namespaces/{name}");
        let found = self.store.range(Range::of(Span::key(key))).await?;
        let Some(kv) = found.kvs.into_iter().next() else {
            return Ok(None);
        };
        let head = object::head(&kv.value)?;
        Ok(Some(Namespace {
            created: kv.create_revision,
            ending: head.metadata.deletion_timestamp.is_some(),
        }))
    }

    /// Writes a new object. `None`: the name is taken.
    pub(crate) async fn insert(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        object: &Value,
        extra: &mut Extra,
        dry: bool,
    ) -> Result<Option<Stored>> {
        let value = write::kept(self, kind, object)?;
        let key = kind.key(namespace, name);
        if dry {
            let taken = self.find(kind, namespace, name).await?.is_some();
            return Ok((!taken).then_some(Stored { value, revision: 0 }));
        }
        let sealed = self.closed(kind, &key, value.clone())?;
        let mut txn = Txn::swap(key, 0, sealed);
        txn.when.append(&mut extra.when);
        txn.then.append(&mut extra.then);
        let done = self.store.txn(txn).await?;
        self.touched(kind);
        if done.succeeded {
            return Ok(Some(Stored {
                value,
                revision: done.revision,
            }));
        }
        if let [Done::Got(Some(_))] = done.results[..] {
            return Ok(None);
        }
        Err(Status::unavailable(
            "what the object depends on changed while it was written; please try again",
            1,
        ))
    }

    /// Replaces an object that is as it was read. `None`: it is not.
    #[expect(
        clippy::too_many_arguments,
        reason = "one place calls it with everything that a write has"
    )]
    pub(crate) async fn replace(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        object: &Value,
        was: &Stored,
        extra: &mut Extra,
        dry: bool,
    ) -> Result<Option<Stored>> {
        let value = write::kept(self, kind, object)?;
        if dry {
            return Ok(Some(Stored {
                value,
                revision: was.revision,
            }));
        }
        let key = kind.key(namespace, name);
        let sealed = self.closed(kind, &key, value.clone())?;
        let mut txn = Txn::swap(key, was.revision, sealed);
        txn.when.append(&mut extra.when);
        txn.then.append(&mut extra.then);
        let done = self.store.txn(txn).await?;
        self.touched(kind);
        Ok(done.succeeded.then_some(Stored {
            value,
            revision: done.revision,
        }))
    }

    /// Removes an object that is as it was read. `false`: it is not.
    pub(crate) async fn remove(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        was: &Stored,
    ) -> Result<bool> {
        let key = kind.key(namespace, name);
        let done = self.store.txn(Txn::remove(key, was.revision)).await?;
        self.touched(kind);
        Ok(done.succeeded)
    }

    /// What is read from roles and bindings is read again at the next question, by whoever wrote too.
    fn touched(&self, kind: &Kind) {
        if kind.group == rbac::GROUP {
            self.rbac.changed();
        }
    }

    /// Whether kept bytes are of another version than `kind`.
    pub(crate) fn needs_conversion(&self, kind: &Kind, kept: &[u8]) -> bool {
        if !kind.is_converted() {
            return false;
        }
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\"",
            kind.kind,
            kind.api_version()
        );
        !kept.starts_with(head.as_bytes())
    }

    /// A kept document in the version of `kind`.
    pub(crate) fn converted(&self, kind: &Kind, object: Value) -> Result<Value> {
        Ok(convert::convert(kind, object, &kind.api_version()))
    }

    /// A document in the version in which it is kept.
    pub(crate) fn to_stored(&self, kind: &Kind, object: Value) -> Result<Value> {
        Ok(convert::convert(kind, object, &kind.stored_version()))
    }

    /// The document of a stored object, in the version of `kind`, with its resourceVersion.
    pub(crate) fn document(&self, kind: &Kind, stored: &Stored) -> Result<Value> {
        let mut object = object::decode(&stored.value, stored.revision)?;
        if stored.revision == 0 {
            object::metadata(&mut object).shift_remove("resourceVersion");
        }
        if self.needs_conversion(kind, &stored.value) {
            return self.converted(kind, object);
        }
        Ok(object)
    }

    /// A document as if it had been stored.
    pub(crate) fn rendered(&self, kind: &Kind, object: &Value, revision: u64) -> Result<Stored> {
        Ok(Stored {
            value: write::kept(self, kind, object)?,
            revision,
        })
    }

    /// One object in the form that was asked for.
    pub(crate) fn answer(
        &self,
        call: &Call,
        target: &Target,
        status: StatusCode,
        stored: &Stored,
    ) -> Result<Reply> {
        let kind = &target.kind;
        let plain = matches!(call.form, Form::Plain | Form::Aggregated | Form::OpenApi);
        if plain && stored.revision > 0 && !self.needs_conversion(kind, &stored.value) {
            let mut out = Vec::with_capacity(stored.value.len() + 40);
            object::write_whole(&mut out, &stored.value, stored.revision)?;
            return Ok(reply::bytes(status, "application/json", out));
        }
        let object = self.document(kind, stored)?;
        let document = match call.form {
            Form::Table => {
                let row = table::row(kind, &object, call.query.get("includeObject"))?;
                serde_json::json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
                    "columnDefinitions": table::columns(kind), "rows": [row],
                })
            }
            Form::Partial => table::partial(&object),
            _ => object,
        };
        Ok(reply::json(status, &document))
    }
}

/// Waits until the server is told to end.
pub(crate) async fn stopped(stop: &mut signal::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
