//! The built-in resources: how each kind is called in paths, whether it lives in a namespace, and what its names may be.
//!
//! One table; discovery, validation and the OpenAPI documents read it.

use crate::names;

/// What the name of an object may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    Label1035,
    /// Whatever fits into a path: RBAC.
    PathSegment,
}

impl NameRule {
    /// What is wrong with `name`, as sentences. `prefix` is true for a `generateName`.
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked;
        let name = if prefix && self != Self::PathSegment {
            masked = names::before_suffix(name);
            &masked
        } else {
            name
        };
        match self {
            Self::Subdomain => names::dns_subdomain(name),
            Self::Label => names::dns_label(name),
            Self::Label1035 => names::dns1035_label(name),
            Self::PathSegment => names::path_segment(name),
        }
    }
}

/// A built-in resource.
#[derive(Debug, Clone, Copy)]
pub struct Resource {
    /// Empty for core.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// `deployments`.
    pub plural: &'static str,
    /// `deploy`.
    pub short: &'static [&'static str],
    /// Whether its objects live in a namespace.
    pub namespaced: bool,
    /// `all`, `api-extensions`.
    pub categories: &'static [&'static str],
    /// `status`, `scale` and the like.
    pub subresources: &'static [&'static str],
    /// What its names may be.
    pub names: NameRule,
    /// Only answered, never stored: reviews, bindings.
    pub virtual_only: bool,
}

impl Resource {
    /// `deployment`.
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }

    /// `apps/v1`, `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether it has a subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources.contains(&subresource)
    }
}

/// All of them, core first, then by group.
pub fn all() -> &'static [Resource] {
    RESOURCES
}

/// The resource of a kind.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    RESOURCES
        .iter()
        .find(|r| r.group == group && r.version == version && r.kind == kind)
}

/// The resource behind a path's group, version and plural name.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|r| r.group == group && r.version == version && r.plural == plural)
}

const ALL: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];
const STATUS: &[&str] = &["status"];
const SCALE: &[&str] = &["scale", "status"];
const NONE: &[&str] = &[];

struct Entry(
    &'static str,
    &'static str,
    &'static [&'static str],
    bool,
    &'static [&'static str],
    &'static [&'static str],
    NameRule,
);

const fn stored(group: &'static str, version: &'static str, e: Entry) -> Resource {
    Resource {
        group,
        version,
        kind: e.0,
        plural: e.1,
        short: e.2,
        namespaced: e.3,
        categories: e.4,
        subresources: e.5,
        names: e.6,
        virtual_only: false,
    }
}

const fn answered(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Resource {
    let mut resource = stored(
        group,
        version,
        Entry(kind, plural, NONE, namespaced, NONE, NONE, Subdomain),
    );
    resource.virtual_only = true;
    resource
}

use NameRule::{Label, Label1035, PathSegment, Subdomain};

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const POD: &[&str] = &[
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "log",
    "portforward",
    "proxy",
    "resize",
    "status",
];

static RESOURCES: &[Resource] = &[
    answered("", "v1", "Binding", "bindings", true),
    stored(
        "",
        "v1",
        Entry(
            "ComponentStatus",
            "componentstatuses",
            &["cs"],
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "ConfigMap",
            "configmaps",
            &["cm"],
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "Endpoints",
            "endpoints",
            &["ep"],
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry("Event", "events", &["ev"], true, NONE, NONE, Subdomain),
    ),
    stored(
        "",
        "v1",
        Entry(
            "LimitRange",
            "limitranges",
            &["limits"],
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "Namespace",
            "namespaces",
            &["ns"],
            false,
            NONE,
            &["finalize", "status"],
            Label,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "Node",
            "nodes",
            &["no"],
            false,
            NONE,
            &["proxy", "status"],
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            &["pvc"],
            true,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "PersistentVolume",
            "persistentvolumes",
            &["pv"],
            false,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry("Pod", "pods", &["po"], true, ALL, POD, Subdomain),
    ),
    stored(
        "",
        "v1",
        Entry(
            "PodTemplate",
            "podtemplates",
            NONE,
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "ReplicationController",
            "replicationcontrollers",
            &["rc"],
            true,
            ALL,
            SCALE,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "ResourceQuota",
            "resourcequotas",
            &["quota"],
            true,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry("Secret", "secrets", NONE, true, NONE, NONE, Subdomain),
    ),
    stored(
        "",
        "v1",
        Entry(
            "ServiceAccount",
            "serviceaccounts",
            &["sa"],
            true,
            NONE,
            &["token"],
            Subdomain,
        ),
    ),
    stored(
        "",
        "v1",
        Entry(
            "Service",
            "services",
            &["svc"],
            true,
            ALL,
            &["proxy", "status"],
            Label1035,
        ),
    ),
    stored(
        ADMISSION,
        "v1",
        Entry(
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            NONE,
            false,
            EXTENSIONS,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        ADMISSION,
        "v1",
        Entry(
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            NONE,
            false,
            EXTENSIONS,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        ADMISSION,
        "v1",
        Entry(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            NONE,
            false,
            EXTENSIONS,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        ADMISSION,
        "v1",
        Entry(
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
            NONE,
            false,
            EXTENSIONS,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "apiextensions.k8s.io",
        "v1",
        Entry(
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
            false,
            EXTENSIONS,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "apiregistration.k8s.io",
        "v1",
        Entry(
            "APIService",
            "apiservices",
            NONE,
            false,
            EXTENSIONS,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "apps",
        "v1",
        Entry(
            "ControllerRevision",
            "controllerrevisions",
            NONE,
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "apps",
        "v1",
        Entry(
            "DaemonSet",
            "daemonsets",
            &["ds"],
            true,
            ALL,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "apps",
        "v1",
        Entry(
            "Deployment",
            "deployments",
            &["deploy"],
            true,
            ALL,
            SCALE,
            Subdomain,
        ),
    ),
    stored(
        "apps",
        "v1",
        Entry(
            "ReplicaSet",
            "replicasets",
            &["rs"],
            true,
            ALL,
            SCALE,
            Subdomain,
        ),
    ),
    stored(
        "apps",
        "v1",
        Entry(
            "StatefulSet",
            "statefulsets",
            &["sts"],
            true,
            ALL,
            SCALE,
            Subdomain,
        ),
    ),
    answered(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        false,
    ),
    answered(
        "authentication.k8s.io",
        "v1",
        "TokenReview",
        "tokenreviews",
        false,
    ),
    answered(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        true,
    ),
    answered(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        false,
    ),
    answered(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        false,
    ),
    answered(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        false,
    ),
    stored(
        "autoscaling",
        "v2",
        Entry(
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            &["hpa"],
            true,
            ALL,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "autoscaling",
        "v1",
        Entry(
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            &["hpa"],
            true,
            ALL,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        "batch",
        "v1",
        Entry("CronJob", "cronjobs", &["cj"], true, ALL, STATUS, Subdomain),
    ),
    stored(
        "batch",
        "v1",
        Entry("Job", "jobs", NONE, true, ALL, STATUS, Subdomain),
    ),
    stored(
        "certificates.k8s.io",
        "v1",
        Entry(
            "CertificateSigningRequest",
            "certificatesigningrequests",
            &["csr"],
            false,
            NONE,
            &["approval", "status"],
            Subdomain,
        ),
    ),
    stored(
        "coordination.k8s.io",
        "v1",
        Entry("Lease", "leases", NONE, true, NONE, NONE, Subdomain),
    ),
    stored(
        "discovery.k8s.io",
        "v1",
        Entry(
            "EndpointSlice",
            "endpointslices",
            NONE,
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "events.k8s.io",
        "v1",
        Entry("Event", "events", &["ev"], true, NONE, NONE, Subdomain),
    ),
    stored(
        NETWORKING,
        "v1",
        Entry(
            "IngressClass",
            "ingressclasses",
            NONE,
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        NETWORKING,
        "v1",
        Entry(
            "Ingress",
            "ingresses",
            &["ing"],
            true,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        NETWORKING,
        "v1",
        Entry(
            "NetworkPolicy",
            "networkpolicies",
            &["netpol"],
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "node.k8s.io",
        "v1",
        Entry(
            "RuntimeClass",
            "runtimeclasses",
            NONE,
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        "policy",
        "v1",
        Entry(
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            &["pdb"],
            true,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
    stored(
        RBAC,
        "v1",
        Entry(
            "ClusterRoleBinding",
            "clusterrolebindings",
            NONE,
            false,
            NONE,
            NONE,
            PathSegment,
        ),
    ),
    stored(
        RBAC,
        "v1",
        Entry(
            "ClusterRole",
            "clusterroles",
            NONE,
            false,
            NONE,
            NONE,
            PathSegment,
        ),
    ),
    stored(
        RBAC,
        "v1",
        Entry(
            "RoleBinding",
            "rolebindings",
            NONE,
            true,
            NONE,
            NONE,
            PathSegment,
        ),
    ),
    stored(
        RBAC,
        "v1",
        Entry("Role", "roles", NONE, true, NONE, NONE, PathSegment),
    ),
    stored(
        "scheduling.k8s.io",
        "v1",
        Entry(
            "PriorityClass",
            "priorityclasses",
            &["pc"],
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        STORAGE,
        "v1",
        Entry(
            "CSIDriver",
            "csidrivers",
            NONE,
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        STORAGE,
        "v1",
        Entry("CSINode", "csinodes", NONE, false, NONE, NONE, Subdomain),
    ),
    stored(
        STORAGE,
        "v1",
        Entry(
            "CSIStorageCapacity",
            "csistoragecapacities",
            NONE,
            true,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        STORAGE,
        "v1",
        Entry(
            "StorageClass",
            "storageclasses",
            &["sc"],
            false,
            NONE,
            NONE,
            Subdomain,
        ),
    ),
    stored(
        STORAGE,
        "v1",
        Entry(
            "VolumeAttachment",
            "volumeattachments",
            NONE,
            false,
            NONE,
            STATUS,
            Subdomain,
        ),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;

    #[test]
    fn every_resource_has_a_type() {
        for resource in all() {
            let schema = Schema::of(&resource.api_version(), resource.kind);
            assert!(schema.is_some(), "{resource:?}");
        }
        assert_eq!(
            by_kind("apps/v1", "Deployment").unwrap().plural,
            "deployments"
        );
        assert!(by_plural("", "v1", "pods").unwrap().has("status"));
        assert!(by_plural("apps", "v1", "pods").is_none());
    }

    #[test]
    fn a_generated_name_may_end_with_a_dash() {
        assert!(Subdomain.check("web-", true).is_empty());
        assert_eq!(Subdomain.check("web-", false).len(), 1);
        assert!(PathSegment.check("system:a", false).is_empty());
    }
}
