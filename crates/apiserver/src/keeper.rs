//! What must happen without being asked for, or no client works: namespaces end, every namespace has its default account and the
//! authority's certificate, and what belongs to something that is gone goes too.
//!
//! All three look at the state, not at what changed: a nudge says only where to look. What is missed is seen at the next start.

#![allow(
    clippy::mutable_key_type,
    reason = "an item is hashed by its kind's names and its own, which never change"
)]

use crate::delete::{self, Deleted, Options};
use crate::kinds::Kind;
use crate::object::{self, Owner, metadata, text};
use crate::read::{self, At};
use crate::request::Target;
use crate::select::Selection;
use crate::status::Result;
use crate::{Api, Extra};
use gantry_store::{Event, Span, Watch};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at something that waits for somebody else.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks at everything.
const ROUND: Duration = Duration::from_secs(300);
const PAGE: usize = 500;
const TRIES: usize = 20;
const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) fn target(kind: &Arc<Kind>, namespace: &str, name: &str) -> Target {
    Target {
        verb: "update",
        kind: kind.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
    }
}

impl Api {
    /// Changes an object until the change is written; nothing happens when `change` says so or the object is gone.
    pub(crate) async fn edit(
        self: &Arc<Self>,
        target: &Target,
        change: impl Fn(&mut Value) -> bool,
    ) -> Result<()> {
        for _ in 0..TRIES {
            let kind = &target.kind;
            let found = self.find(kind, &target.namespace, &target.name).await?;
            let Some(stored) = found else {
                return Ok(());
            };
            let mut object = self.document(kind, &stored)?;
            if !change(&mut object) {
                return Ok(());
            }
            let done = if delete::is_over(kind, &object) {
                self.remove(kind, &target.namespace, &target.name, &stored)
                    .await?
            } else {
                let mut extra = Extra::default();
                self.replace(
                    kind,
                    &target.namespace,
                    &target.name,
                    &object,
                    &stored,
                    &mut extra,
                    false,
                )
                .await?
                .is_some()
            };
            if done {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Watches namespaces: new ones get what they need, ending ones are emptied.
    pub(crate) async fn keep_namespaces(self: Arc<Self>) {
        let Some(kind) = self.registry.find("", "v1", "namespaces") else {
            return;
        };
        loop {
            if let Err(status) = self.namespaces_once(&kind).await {
                tracing::warn!("looking after namespaces: {}", status.message);
                tokio::time::sleep(AGAIN * 4).await;
            }
        }
    }

    async fn namespaces_once(self: &Arc<Self>, kind: &Arc<Kind>) -> Result<()> {
        let revision = self.store.revision().await?;
        let mut namespaces = self.hub.subscribe(&kind.prefix(), revision)?;
        let others =
            ["serviceaccounts", "configmaps"].map(|plural| format!("/registry/core/{plural}/"));
        let mut accounts = self.hub.subscribe(&others[0], revision)?;
        let mut maps = self.hub.subscribe(&others[1], revision)?;
        let mut round = tokio::time::interval(ROUND);
        let mut waiting = HashSet::new();
        loop {
            let mut look = HashSet::new();
            tokio::select! {
                _ = round.tick() => look = self.names(kind).await?,
                events = namespaces.next() => {
                    for event in events? {
                        look.extend(last_words::<1>(&event.key).map(|[name]| name));
                    }
                }
                events = accounts.next() => look = gone(&events?, "default"),
                events = maps.next() => look = gone(&events?, ROOT_CA),
                () = tokio::time::sleep(AGAIN), if !waiting.is_empty() => look = std::mem::take(&mut waiting),
            }
            for name in look {
                match self.namespace_look(kind, &name).await {
                    Ok(true) => {}
                    Ok(false) => {
                        waiting.insert(name);
                    }
                    Err(status) => {
                        tracing::debug!("namespace {name}: {}", status.message);
                        waiting.insert(name);
                    }
                }
            }
        }
    }

    async fn names(&self, kind: &Kind) -> Result<HashSet<String>> {
        let found = read::page(self, &Selection::all(kind), At::Now, "", 0).await?;
        let mut names = HashSet::new();
        for item in &found.items {
            names.insert(object::head(&item.value)?.metadata.name.into_owned());
        }
        Ok(names)
    }

    /// `true`: it is as it should be.
    async fn namespace_look(self: &Arc<Self>, kind: &Arc<Kind>, name: &str) -> Result<bool> {
        let Some(stored) = self.find(kind, "", name).await? else {
            return Ok(true);
        };
        let namespace = self.document(kind, &stored)?;
        if namespace["metadata"].get("deletionTimestamp").is_none() {
            let account = json!({"metadata": {"name": "default", "namespace": name}});
            self.make("", "v1", "serviceaccounts", name, account)
                .await?;
            let authority = &self.keys.authority.certificate_pem;
            let map = json!({
                "metadata": {"name": ROOT_CA, "namespace": name, "annotations": {"kubernetes.io/description":
                    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}},
                "data": {"ca.crt": authority},
            });
            self.make("", "v1", "configmaps", name, map).await?;
            return Ok(true);
        }
        let finalizers = namespace
            .pointer("/spec/finalizers")
            .and_then(Value::as_array);
        if finalizers.is_none_or(|f| !f.iter().any(|f| f == "kubernetes")) {
            return Ok(true);
        }
        let mut left = Vec::new();
        for kind in self.registry.kept().iter().filter(|k| k.namespaced) {
            let count = self.empty(kind, name).await?;
            if count > 0 {
                let group = if kind.group.is_empty() {
                    String::new()
                } else {
                    format!(".{}", kind.group)
                };
                left.push(format!(
                    "{}{group} has {count} resource instances",
                    kind.plural
                ));
            }
        }
        if left.is_empty() {
            self.edit(&target(kind, "", name), |namespace| {
                let Some(list) = namespace
                    .pointer_mut("/spec/finalizers")
                    .and_then(Value::as_array_mut)
                else {
                    return false;
                };
                list.retain(|f| f != "kubernetes");
                true
            })
            .await?;
            return Ok(true);
        }
        let words = format!("Some resources are remaining: {}", left.join(", "));
        self.edit(&target(kind, "", name), |namespace| {
            let old = namespace.pointer("/status/conditions/0/message");
            if old.is_some_and(|old| *old == words) {
                return false;
            }
            namespace["status"]["conditions"] = json!([{
                "type": "NamespaceContentRemaining", "status": "True", "reason": "SomeResourcesRemain",
                "message": words, "lastTransitionTime": object::now(),
            }]);
            true
        })
        .await?;
        Ok(false)
    }

    /// Deletes everything of a kind in a namespace; how much is still there.
    async fn empty(self: &Arc<Self>, kind: &Arc<Kind>, namespace: &str) -> Result<usize> {
        let selection = Selection::within(kind, namespace);
        let options = Options {
            propagation: "Background".into(),
            ..Options::default()
        };
        let mut left = 0;
        let mut start = String::new();
        loop {
            let found = read::page(self, &selection, At::Now, &start, PAGE).await?;
            for item in &found.items {
                let head = object::head(&item.value)?;
                let name = head.metadata.name.into_owned();
                let marked = head.metadata.deletion_timestamp.is_some()
                    && !head.metadata.finalizers.is_empty();
                if marked {
                    left += 1;
                    continue;
                }
                match delete::delete_object(self, &target(kind, namespace, &name), &options).await {
                    Ok(Deleted::Gone(_)) => {}
                    Ok(Deleted::Marked(_)) => left += 1,
                    Err(status) if status.is_not_found() => {}
                    Err(status) => return Err(status),
                }
            }
            match found.more() {
                Some(more) => start = more.to_owned(),
                None => return Ok(left),
            }
        }
    }

    /// Removes what belongs to something that is gone, and lets go what waits for that.
    pub(crate) async fn collect_garbage(self: Arc<Self>) {
        loop {
            if let Err(status) = self.garbage_once().await {
                tracing::warn!("the garbage collector starts over: {}", status.message);
                tokio::time::sleep(AGAIN * 4).await;
            }
        }
    }

    async fn garbage_once(self: &Arc<Self>) -> Result<()> {
        let revision = self.store.revision().await?;
        let mut watcher = self
            .store
            .watch(Watch {
                span: Span::prefix(crate::hub::REGISTRY),
                from: revision + 1,
                prev: true,
            })
            .await?;
        let mut graph = Graph::default();
        let mut work = HashSet::new();
        for kind in self.registry.kept() {
            let mut start = String::new();
            loop {
                let found = read::page(self, &Selection::all(&kind), At::Now, &start, PAGE).await?;
                for item in &found.items {
                    graph.see(&kind, &item.value, &mut work)?;
                }
                match found.more() {
                    Some(more) => start = more.to_owned(),
                    None => break,
                }
            }
        }
        let mut retries = HashSet::new();
        loop {
            for item in std::mem::take(&mut work) {
                if let Err(status) = self.garbage_look(&graph, &item).await {
                    tracing::debug!("garbage: {}: {}", item.name, status.message);
                    retries.insert(item);
                }
            }
            tokio::select! {
                batch = watcher.next() => {
                    for event in batch?.events {
                        self.garbage_event(event, &mut graph, &mut work)?;
                    }
                }
                () = tokio::time::sleep(AGAIN), if !retries.is_empty() => work = std::mem::take(&mut retries),
            }
        }
    }

    fn garbage_event(
        &self,
        event: Event,
        graph: &mut Graph,
        work: &mut HashSet<Item>,
    ) -> Result<()> {
        let key = String::from_utf8_lossy(event.key()).into_owned();
        let kinds = self.registry.kept();
        let Some(kind) = kinds.iter().find(|k| key.starts_with(&k.prefix())) else {
            return Ok(());
        };
        match event {
            Event::Put { kv, .. } => {
                let stored = self.opened(kv)?;
                graph.see(kind, &stored.value, work)
            }
            Event::Delete {
                prev: Some(prev), ..
            } => {
                let stored = self.opened(prev)?;
                let head = object::head(&stored.value)?;
                let item = Item::of(kind, &head);
                graph.forget(&item, &head.metadata.owner_references);
                // An owner that waits in the foreground looks again.
                for owner in &head.metadata.owner_references {
                    work.extend(graph.owners.get(&owner.uid).cloned());
                }
                work.extend(graph.dependents(&head.metadata.uid));
                graph.owners.remove(&head.metadata.uid[..]);
                Ok(())
            }
            Event::Delete { .. } => Ok(()),
        }
    }

    async fn garbage_look(self: &Arc<Self>, graph: &Graph, item: &Item) -> Result<()> {
        let kind = &item.kind;
        let Some(stored) = self.find(kind, &item.namespace, &item.name).await? else {
            return Ok(());
        };
        let head = object::head(&stored.value)?;
        let uid = head.metadata.uid.to_string();
        let target = target(kind, &item.namespace, &item.name);
        if head.metadata.deletion_timestamp.is_some() {
            let waits = |word: &str| head.metadata.finalizers.iter().any(|f| f == word);
            if waits("orphan") {
                for dependent in graph.dependents(&uid) {
                    let target =
                        self::target(&dependent.kind, &dependent.namespace, &dependent.name);
                    self.edit(&target, |object| drop_owners(object, |owner| owner == uid))
                        .await?;
                }
                self.edit(&target, |object| drop_finalizer(object, "orphan"))
                    .await?;
            } else if waits("foregroundDeletion") {
                let mut blocked = false;
                for dependent in graph.dependents(&uid) {
                    let found = self
                        .find(&dependent.kind, &dependent.namespace, &dependent.name)
                        .await?;
                    let Some(found) = found else { continue };
                    let head = object::head(&found.value)?;
                    let Some(owner) = head.metadata.owner_references.iter().find(|o| o.uid == uid)
                    else {
                        continue;
                    };
                    blocked |= owner.block_owner_deletion;
                    if head.metadata.deletion_timestamp.is_none() {
                        let propagation = if graph.has_dependents(&head.metadata.uid) {
                            "Foreground"
                        } else {
                            "Background"
                        };
                        self.discard(&dependent, propagation, &head.metadata.uid)
                            .await?;
                    }
                }
                if !blocked {
                    self.edit(&target, |object| {
                        drop_finalizer(object, "foregroundDeletion")
                    })
                    .await?;
                }
            }
            return Ok(());
        }
        let owners = head.metadata.owner_references.clone();
        if owners.is_empty() {
            return Ok(());
        }
        let (mut solid, mut absent) = (0, Vec::new());
        for owner in &owners {
            match self.owner_state(owner, &item.namespace).await? {
                Some(true) => solid += 1,
                Some(false) => absent.push(owner.uid.clone()),
                // Its kind is not served now: nothing can be said.
                None => solid += 1,
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        if solid > 0 {
            return self
                .edit(&target, |object| {
                    drop_owners(object, |owner| absent.iter().any(|a| a == owner))
                })
                .await;
        }
        self.discard(item, "Background", &uid).await
    }

    async fn discard(self: &Arc<Self>, item: &Item, propagation: &str, uid: &str) -> Result<()> {
        let options = Options {
            propagation: propagation.into(),
            uid: uid.to_owned(),
            ..Options::default()
        };
        let target = target(&item.kind, &item.namespace, &item.name);
        match delete::delete_object(self, &target, &options).await {
            Err(status) if status.is_not_found() || status.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether an owner is there. An owner in another namespace is none.
    async fn owner_state(&self, owner: &Owner, namespace: &str) -> Result<Option<bool>> {
        let Some(kind) = self.registry.by_kind(&owner.api_version, &owner.kind) else {
            return Ok(None);
        };
        let namespace = if kind.namespaced { namespace } else { "" };
        let found = self.find(&kind, namespace, &owner.name).await?;
        Ok(Some(match found {
            Some(stored) => object::head(&stored.value)?.metadata.uid == owner.uid,
            None => false,
        }))
    }
}

/// An object that owns, or is owned.
#[derive(Debug, Clone)]
struct Item {
    kind: Arc<Kind>,
    namespace: String,
    name: String,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}
impl Eq for Item {}
impl std::hash::Hash for Item {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Item {
    fn of(kind: &Arc<Kind>, head: &object::Head<'_>) -> Self {
        Self {
            kind: kind.clone(),
            namespace: head.metadata.namespace.to_string(),
            name: head.metadata.name.to_string(),
        }
    }
    fn parts(&self) -> (&str, &str, &str, &str) {
        (
            &self.kind.group,
            &self.kind.plural,
            &self.namespace,
            &self.name,
        )
    }
}

/// Who belongs to whom: only objects that have owners, and owners that wait.
#[derive(Debug, Default)]
struct Graph {
    dependents: HashMap<String, HashSet<Item>>,
    /// Owners that are being deleted and wait.
    owners: HashMap<String, Item>,
}

impl Graph {
    fn see(&mut self, kind: &Arc<Kind>, kept: &[u8], work: &mut HashSet<Item>) -> Result<()> {
        // Most objects have neither; they are not even parsed.
        let has = |word: &[u8]| kept.windows(word.len()).any(|w| w == word);
        let (owned, ending) = (
            has(b"\"ownerReferences\":["),
            has(b"\"deletionTimestamp\":"),
        );
        if !owned && !ending {
            return Ok(());
        }
        let head = object::head(kept)?;
        let item = Item::of(kind, &head);
        for owner in &head.metadata.owner_references {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(item.clone());
        }
        if head.metadata.deletion_timestamp.is_some() {
            self.owners
                .insert(head.metadata.uid.to_string(), item.clone());
        }
        work.insert(item);
        Ok(())
    }

    fn forget(&mut self, item: &Item, owners: &[Owner]) {
        for owner in owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(item);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn dependents(&self, uid: &str) -> Vec<Item> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
    fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }
}

fn drop_owners(object: &mut Value, gone: impl Fn(&str) -> bool) -> bool {
    let fields = metadata(object);
    let Some(Value::Array(owners)) = fields.get_mut("ownerReferences") else {
        return false;
    };
    let before = owners.len();
    owners.retain(|owner| !gone(text(owner, "/uid")));
    let changed = owners.len() != before;
    if owners.is_empty() {
        fields.shift_remove("ownerReferences");
    }
    changed
}

pub(crate) fn drop_finalizer(object: &mut Value, word: &str) -> bool {
    let fields = metadata(object);
    let Some(Value::Array(finalizers)) = fields.get_mut("finalizers") else {
        return false;
    };
    let before = finalizers.len();
    finalizers.retain(|f| f != word);
    let changed = finalizers.len() != before;
    if finalizers.is_empty() {
        fields.shift_remove("finalizers");
    }
    changed
}

/// The last `N` words of a key.
fn last_words<const N: usize>(key: &[u8]) -> Option<[String; N]> {
    let key = std::str::from_utf8(key).ok()?;
    let mut words: Vec<_> = key.rsplitn(N + 1, '/').take(N).map(str::to_owned).collect();
    words.reverse();
    words.try_into().ok()
}

/// The namespaces in which an object called `name` was removed or changed.
fn gone(events: &[Arc<crate::hub::Event>], name: &str) -> HashSet<String> {
    let mut namespaces = HashSet::new();
    for event in events.iter().filter(|event| event.now.is_none()) {
        if let Some([namespace, found]) = last_words::<2>(&event.key)
            && found == name
        {
            namespaces.insert(namespace);
        }
    }
    namespaces
}
