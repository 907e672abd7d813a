//! Custom resources: kinds that a CustomResourceDefinition adds. Crate `kube-api` reads their schemas; this serves them.

use crate::delete::{self, Options};
use crate::kinds::Kind;
use crate::object::{self, text};
use crate::read::{self, At};
use crate::request::Target;
use crate::select::Selection;
use crate::status::Result;
use crate::{Api, keeper};
use gantry_kube_api::crd::Structural;
use gantry_kube_api::schema::Schema;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const AGAIN: Duration = Duration::from_millis(500);
const PAGE: usize = 500;

/// One definition, for one of its versions.
#[derive(Debug)]
pub(crate) struct Custom {
    pub(crate) list_kind: String,
    /// How many versions are served.
    pub(crate) versions: usize,
    /// Fields that field selectors may name, without the leading dot.
    pub(crate) selectable: Vec<String>,
    /// `openAPIV3Schema` of the version, as written and as read.
    pub(crate) schema: Value,
    pub(crate) structural: Structural,
    pub(crate) types: Schema,
    /// `subresources.scale` as JSON pointers.
    pub(crate) scale: Option<(String, String, String)>,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Vec<Value>,
}

/// The kinds that a definition adds, one for each version that is served.
fn kinds(definition: &Value) -> Vec<Arc<Kind>> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let words = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let versions: Vec<_> = spec["versions"].as_array().into_iter().flatten().collect();
    let stored = versions.iter().find(|v| v["storage"] == true);
    let served: Vec<_> = versions.iter().filter(|v| v["served"] == true).collect();
    let group = text(spec, "/group");
    let kind = text(names, "/kind");
    let mut kinds = Vec::new();
    for version in &served {
        let schema = version
            .pointer("/schema/openAPIV3Schema")
            .cloned()
            .unwrap_or_default();
        let structural = match Structural::new(&schema) {
            Ok(structural) => structural,
            Err(why) => {
                tracing::warn!("{}.{group} is not served: {why}", text(names, "/plural"));
                continue;
            }
        };
        let pointer = |path: &str| path.replace('.', "/");
        let scale = version.pointer("/subresources/scale").map(|scale| {
            (
                pointer(text(scale, "/specReplicasPath")),
                pointer(text(scale, "/statusReplicasPath")),
                pointer(text(scale, "/labelSelectorPath")),
            )
        });
        let mut subresources = Vec::new();
        if version.pointer("/subresources/status").is_some() {
            subresources.push("status".to_owned());
        }
        if scale.is_some() {
            subresources.push("scale".to_owned());
        }
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        let selectable = selectable
            .map(|f| text(f, "/jsonPath").trim_start_matches('.').to_owned())
            .collect();
        let or = |word: &str, otherwise: String| match text(names, word) {
            "" => otherwise,
            word => word.to_owned(),
        };
        kinds.push(Arc::new(Kind {
            group: group.to_owned(),
            version: text(version, "/name").to_owned(),
            kind: kind.to_owned(),
            plural: text(names, "/plural").to_owned(),
            singular: or("/singular", kind.to_lowercase()),
            short: words(&names["shortNames"]),
            categories: words(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            subresources,
            virtual_kind: false,
            stored_as: stored.map(|v| (group.to_owned(), text(v, "/name").to_owned())),
            custom: Some(Arc::new(Custom {
                list_kind: or("/listKind", format!("{kind}List")),
                versions: served.len(),
                selectable,
                types: structural.types(),
                structural,
                schema,
                scale,
                columns: version["additionalPrinterColumns"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            })),
        }));
    }
    kinds
}

/// What a new definition gets.
pub(crate) fn complete(definition: &mut Value) {
    let kind = text(definition, "/spec/names/kind").to_owned();
    let names = &mut definition["spec"]["names"];
    if text(names, "/singular").is_empty() {
        names["singular"] = kind.to_lowercase().into();
    }
    if text(names, "/listKind").is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
    if definition["spec"]["conversion"].is_null() {
        definition["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let mut finalizers = definition["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    definition["metadata"]["finalizers"] = finalizers.into();
}

impl Api {
    /// Serves what the definitions say now; gives the definitions.
    pub(crate) async fn load_custom(&self) -> Result<Vec<Value>> {
        let Some(kind) = self.definitions() else {
            return Ok(Vec::new());
        };
        let found = read::page(self, &Selection::all(&kind), At::Now, "", 0).await?;
        let mut all = Vec::new();
        let mut served = Vec::new();
        for item in &found.items {
            let definition = self.document(&kind, item)?;
            served.extend(kinds(&definition));
            all.push(definition);
        }
        self.registry.set_custom(served);
        Ok(all)
    }

    fn definitions(&self) -> Option<Arc<Kind>> {
        self.registry
            .find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    }

    /// Watches definitions: new ones are served and say so, ending ones take their objects along.
    pub(crate) async fn keep_definitions(self: Arc<Self>) {
        let Some(kind) = self.definitions() else {
            return;
        };
        loop {
            if let Err(status) = self.definitions_once(&kind).await {
                tracing::warn!("looking after custom resources: {}", status.message);
                tokio::time::sleep(AGAIN * 4).await;
            }
        }
    }

    async fn definitions_once(self: &Arc<Self>, kind: &Arc<Kind>) -> Result<()> {
        let revision = self.store.revision().await?;
        let mut cursor = self.hub.subscribe(&kind.prefix(), revision)?;
        loop {
            let mut waiting = false;
            for definition in self.load_custom().await? {
                waiting |= !self.definition_look(kind, &definition).await?;
            }
            tokio::select! {
                events = cursor.next() => drop(events?),
                () = tokio::time::sleep(AGAIN), if waiting => {}
            }
        }
    }

    /// `true`: nothing is to be waited for.
    async fn definition_look(
        self: &Arc<Self>,
        kind: &Arc<Kind>,
        definition: &Value,
    ) -> Result<bool> {
        let target = keeper::target(kind, "", text(definition, "/metadata/name"));
        if definition["metadata"].get("deletionTimestamp").is_some() {
            let own = kinds(definition);
            let left = match own.first() {
                Some(own) => self.empty_all(own).await?,
                None => 0,
            };
            if left > 0 {
                return Ok(false);
            }
            self.edit(&target, |object| keeper::drop_finalizer(object, CLEANUP))
                .await?;
            return Ok(true);
        }
        let conditions = definition
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let established = conditions.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        });
        let versions = definition["spec"]["versions"]
            .as_array()
            .into_iter()
            .flatten();
        let storage = versions
            .clone()
            .find(|v| v["storage"] == true)
            .map(|v| v["name"].clone())
            .unwrap_or_default();
        let kept = definition
            .pointer("/status/storedVersions")
            .and_then(Value::as_array);
        let noted = kept.is_some_and(|all| all.contains(&storage));
        let names = &definition["spec"]["names"];
        if established && noted && definition.pointer("/status/acceptedNames") == Some(names) {
            return Ok(true);
        }
        self.edit(&target, |object| {
            let mut stored = object
                .pointer("/status/storedVersions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            if !stored.contains(&storage) {
                stored.push(storage.clone());
            }
            let now = object::now();
            let conditions = match object.pointer("/status/conditions") {
                Some(conditions) if established => conditions.clone(),
                _ => json!([
                    {"type": "NamesAccepted", "status": "True", "lastTransitionTime": now, "reason": "NoConflicts", "message": "no conflicts found"},
                    {"type": "Established", "status": "True", "lastTransitionTime": now, "reason": "InitialNamesAccepted", "message": "the initial names have been accepted"},
                ]),
            };
            object["status"] = json!({"conditions": conditions, "acceptedNames": object["spec"]["names"], "storedVersions": stored});
            true
        })
        .await?;
        Ok(true)
    }

    /// Deletes every object of a kind; how many are still there.
    async fn empty_all(self: &Arc<Self>, kind: &Arc<Kind>) -> Result<usize> {
        let mut left = 0;
        let found = read::page(self, &Selection::all(kind), At::Now, "", PAGE).await?;
        for item in &found.items {
            let head = object::head(&item.value)?;
            let one = Target {
                verb: "delete",
                ..keeper::target(kind, &head.metadata.namespace, &head.metadata.name)
            };
            match delete::delete_object(self, &one, &Options::default()).await {
                Ok(delete::Deleted::Gone(_)) => {}
                Ok(delete::Deleted::Marked(_)) => left += 1,
                Err(status) if status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        Ok(left + usize::from(found.more().is_some()))
    }
}
