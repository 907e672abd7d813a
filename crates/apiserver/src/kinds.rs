//! The kinds that are served: Kubernetes' own (the table is crate `kube-api`'s), and those that custom resource definitions add.

use gantry_kube_api::resources;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// One kind in one version.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kind {
    /// Empty for core.
    pub group: String,
    pub version: String,
    /// `Pod`.
    pub kind: String,
    /// `pods`.
    pub plural: String,
    pub singular: String,
    pub short: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Subresources by name: `status`, `scale`, …
    pub subresources: Vec<String>,
    /// Only `create`: reviews and bindings, which are answered and not kept.
    pub virtual_kind: bool,
    /// Where it is kept and as what, when that is not its own group and version: `("", "v1")` for `events.k8s.io`.
    pub stored_as: Option<(String, String)>,
    /// The definition, when it is a custom resource.
    pub custom: Option<Arc<crate::custom::Custom>>,
}

impl Kind {
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
    /// The apiVersion in which objects of it are kept.
    pub(crate) fn stored_version(&self) -> String {
        match &self.stored_as {
            Some((group, version)) => api_version(group, version),
            None => self.api_version(),
        }
    }
    /// Every key of it begins so.
    pub(crate) fn prefix(&self) -> String {
        let group = match &self.stored_as {
            Some((group, _)) => group,
            None => &self.group,
        };
        let group = if group.is_empty() { "core" } else { group };
        format!("/registry/{group}/{}/", self.plural)
    }
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix())
        } else {
            format!("{}{name}", self.prefix())
        }
    }
    pub(crate) fn has(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|s| s == subresource)
    }
    /// What its list is called.
    pub(crate) fn list_kind(&self) -> String {
        match &self.custom {
            Some(custom) => custom.list_kind.clone(),
            None => format!("{}List", self.kind),
        }
    }
    /// Whether kept bytes may be of another version than this one.
    pub(crate) fn is_converted(&self) -> bool {
        match &self.custom {
            Some(custom) => custom.versions > 1 || self.stored_version() != self.api_version(),
            None => self.stored_as.is_some(),
        }
    }
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        if self.virtual_kind {
            return &["create"];
        }
        &[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ]
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Groups of Kubernetes whose kinds are served. The others would be promises: nothing here acts on their objects.
const GROUPS: [&str; 16] = [
    "",
    "apiextensions.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];
/// Kinds and subresources of these groups that are not served.
const LEFT_OUT: [&str; 4] = [
    "componentstatuses",
    "ipaddresses",
    "servicecidrs",
    "volumeattributesclasses",
];
const LEFT_OUT_BELOW: [&str; 2] = ["proxy", "resize"];

/// Kinds by (group, plural), newest version first, as a snapshot that a request keeps.
#[derive(Debug)]
pub(crate) struct Registry {
    kinds: RwLock<Arc<[Arc<Kind>]>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            kinds: RwLock::new(built_in()),
        }
    }

    /// Everything that is served now.
    pub(crate) fn all(&self) -> Arc<[Arc<Kind>]> {
        self.kinds
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let all = self.all();
        all.iter()
            .find(|k| k.plural == plural && k.group == group && k.version == version)
            .cloned()
    }

    pub(crate) fn by_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let all = self.all();
        all.iter()
            .find(|k| k.kind == kind && k.api_version() == api_version)
            .cloned()
    }

    /// The kinds that are kept, each once: two versions of one are one.
    pub(crate) fn kept(&self) -> Vec<Arc<Kind>> {
        let mut seen = BTreeMap::new();
        for kind in self.all().iter().filter(|k| !k.virtual_kind) {
            seen.entry(kind.prefix()).or_insert_with(|| kind.clone());
        }
        seen.into_values().collect()
    }

    /// Replaces the custom kinds.
    pub(crate) fn set_custom(&self, custom: Vec<Arc<Kind>>) {
        let mut kinds: Vec<_> = self
            .all()
            .iter()
            .filter(|k| k.custom.is_none())
            .cloned()
            .collect();
        kinds.extend(custom);
        *self.kinds.write().unwrap_or_else(PoisonError::into_inner) = kinds.into();
    }
}

fn built_in() -> Arc<[Arc<Kind>]> {
    let served = resources::all()
        .iter()
        .filter(|r| GROUPS.contains(&r.group) && !LEFT_OUT.contains(&r.plural));
    served
        .map(|resource| {
            let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            let subresources = resource.subresources.iter().copied();
            let stored_as = match (resource.group, resource.version) {
                ("events.k8s.io", _) => Some((String::new(), "v1".to_owned())),
                ("autoscaling", "v1") => Some(("autoscaling".to_owned(), "v2".to_owned())),
                _ => None,
            };
            Arc::new(Kind {
                group: resource.group.to_owned(),
                version: resource.version.to_owned(),
                kind: resource.kind.to_owned(),
                plural: resource.plural.to_owned(),
                singular: resource.singular(),
                short: own(resource.short),
                categories: own(resource.categories),
                namespaced: resource.namespaced,
                virtual_kind: resource.virtual_only,
                subresources: subresources
                    .filter(|name| !LEFT_OUT_BELOW.contains(name))
                    .map(str::to_owned)
                    .collect(),
                stored_as,
                custom: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_table_has_a_schema() {
        for kind in built_in().iter() {
            assert!(
                gantry_kube_api::schema::Schema::of(&kind.api_version(), &kind.kind).is_some(),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn one_object_has_one_key_whatever_version_asks() {
        let registry = Registry::new();
        let key =
            |group, version, plural| registry.find(group, version, plural).unwrap().key("n", "x");
        assert_eq!(
            key("", "v1", "events"),
            key("events.k8s.io", "v1", "events")
        );
        let hpa = "horizontalpodautoscalers";
        assert_eq!(key("autoscaling", "v1", hpa), key("autoscaling", "v2", hpa));
        assert_eq!(key("", "v1", "pods"), "/registry/core/pods/n/x");
    }
}
