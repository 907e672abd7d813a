//! Whether an object may be stored, in Kubernetes' own reasons, paths and sentences.
//!
//! The caller decodes, fills in defaults ([`crate::defaults::apply`]), and then asks here; [`crate::field::invalid`] makes the
//! answer to the client. What an object has in a wrong JSON type was refused when it was decoded.
//!
//! Spec: Kubernetes 1.35, the API reference and "API conventions".

mod access;
mod core;
mod meta;
mod network;
mod pod;
mod storage;
mod volume;
mod workload;

use crate::field::{Errors, FieldError, Path};
use crate::resources;
use crate::view::text;
use serde_json::Value;

pub(crate) use access::client_config;
pub(crate) use meta::immutable;
pub use meta::{delete_options, field_manager};

/// What is wrong with a new object: a built-in kind, decoded and with its defaults, `metadata.name` already generated and
/// `metadata.namespace` set by the caller when the kind lives in one. An empty list means that it may be stored.
pub fn create(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    if let Some(resource) = resources::by_kind(version, kind) {
        meta::create(object, resource.namespaced, resource.names, &mut errors);
        body(object, None, &mut errors);
    }
    errors.0
}

/// What is wrong with an object that takes the place of `old`: both of one built-in kind, with their defaults. Takes the new
/// object as the server would store it (`resourceVersion`, `uid`, `creationTimestamp` already filled in from the old one when
/// the client left them out).
pub fn update(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    if resources::by_kind(version, kind).is_some() {
        meta::update(object, old, &mut errors);
        body(object, Some(old), &mut errors);
    }
    errors.0
}

/// The same for the `status` subresource: only metadata and status are looked at.
pub fn update_status(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::update(object, old, &mut errors);
    match text(object, "kind") {
        "Pod" => pod::status_update(object, old, &mut errors),
        "Namespace" => core::namespace_status(object, &mut errors),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController" | "DaemonSet" => {
            workload::status(object, &mut errors);
        }
        _ => {}
    }
    errors.0
}

/// What is wrong with metadata alone, for kinds that have no rules of their own here (custom resources). `old` is the object
/// that is replaced, if there is one.
pub fn metadata(object: &Value, old: Option<&Value>, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match old {
        Some(old) => meta::update(object, old, &mut errors),
        None => meta::create(
            object,
            namespaced,
            resources::NameRule::Subdomain,
            &mut errors,
        ),
    }
    errors.0
}

/// What is wrong with the ephemeral containers of a pod that replaces `old` through the subresource `ephemeralcontainers`.
pub fn ephemeral_containers(pod: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::update(pod, old, &mut errors);
    pod::ephemeral_update(pod, old, &mut errors);
    errors.0
}

fn body(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let version = text(object, "apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let spec = Path::new("spec");
    match (group, text(object, "kind")) {
        ("", "Pod") => pod::pod(object, old, errors),
        ("", "PodTemplate") => {
            pod::template(&object["template"], &Path::new("template"), errors);
        }
        ("", "ReplicationController") => workload::replication_controller(object, errors),
        ("", "Service") => network::service(object, old, errors),
        ("", "Endpoints") => network::endpoints(object, errors),
        ("", "Namespace") => core::namespace(object, errors),
        ("", "Node") => core::node(object, old, errors),
        ("", "ConfigMap") => core::config_map(object, old, errors),
        ("", "Secret") => core::secret(object, old, errors),
        ("", "LimitRange") => core::limit_range(object, errors),
        ("", "ResourceQuota") => core::resource_quota(object, old, errors),
        ("", "PersistentVolumeClaim") => storage::claim(object, old, errors),
        ("", "PersistentVolume") => storage::persistent_volume(object, old, errors),
        ("", "Event") => core::event(object, errors),
        ("apps", "Deployment") => workload::deployment(object, old, errors),
        ("apps", "DaemonSet") => workload::daemon_set(object, old, errors),
        ("apps", "ReplicaSet") => workload::replica_set(object, old, errors),
        ("apps", "StatefulSet") => workload::stateful_set(object, old, errors),
        ("apps", "ControllerRevision") => workload::revision(object, old, errors),
        ("batch", "Job") => workload::job(object, old, errors),
        ("batch", "CronJob") => workload::cron_job(object, errors),
        ("autoscaling", "HorizontalPodAutoscaler") => workload::autoscaler(object, errors),
        ("policy", "PodDisruptionBudget") => workload::disruption_budget(object, errors),
        ("networking.k8s.io", "Ingress") => network::ingress(object, errors),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(object, old, errors),
        ("networking.k8s.io", "NetworkPolicy") => {
            network::network_policy(&object["spec"], &spec, errors);
        }
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, old, errors),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => access::role(object, errors),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            access::role_binding(object, old, errors);
        }
        ("storage.k8s.io", "StorageClass") => storage::storage_class(object, old, errors),
        ("scheduling.k8s.io", "PriorityClass") => core::priority_class(object, old, errors),
        ("coordination.k8s.io", "Lease") => core::lease(object, errors),
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => access::webhooks(object, errors),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            errors.0.extend(crate::crd::definition(object, old));
        }
        _ => {}
    }
}
