//! What Kubernetes fills in: one walk over the table of types, with a rule for each type that has defaults.
//!
//! Rules of an object come before those of what it holds, as in Kubernetes: a pod's requests are taken from its limits
//! before either is rounded. Applying twice is applying once.
//!
//! Spec: Kubernetes 1.35, the API reference of each type; "Default" in the field descriptions.

use crate::quantity::Quantity;
use crate::schema::Schema;
use crate::view::{get, is_set, list, object_mut, text};
use base64::Engine;
use serde_json::{Map, Value, json};

/// Fills in the defaults of a built-in kind, by the object's own `apiVersion` and `kind`. Takes the decoded object, gives it
/// back in place; an object of an unknown kind stays as it is. Also brings quantities into their canonical form and gives the
/// parts that Kubernetes always shows (`resources: {}`, a zero `status`).
pub fn apply(object: &mut Value) {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    let Some(name) = Schema::name_of(version, kind) else {
        return;
    };
    if let Some(schema) = Schema::named(name) {
        walk(schema, Some(name), object);
    }
}

/// The defaults of one value of a type with a full name, as `io.k8s.api.core.v1.PodTemplateSpec`.
pub fn apply_type(name: &str, value: &mut Value) {
    if let Some(schema) = Schema::named(name) {
        walk(schema, Some(name), value);
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

fn walk(schema: &Schema, name: Option<&str>, value: &mut Value) {
    if name == Some(QUANTITY) {
        if let Ok(quantity) = Quantity::from_value(value) {
            *value = Value::from(quantity.to_string());
        }
        return;
    }
    if let (Some(name), Value::Object(object)) = (name, &mut *value) {
        typed(name, object);
    }
    match value {
        Value::Object(object) => {
            for (field, inner) in object.iter_mut() {
                // Free text of a CRD's schema is data of the one who wrote it, not ours to fill in.
                if let Some(schema) = schema.field(field) {
                    walk(schema, schema.type_name(), inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items() {
                for item in items {
                    walk(schema, schema.type_name(), item);
                }
            }
        }
        _ => {}
    }
}

type Object = Map<String, Value>;

/// Sets a field that is missing, null, or an empty string.
fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    let unset = match object.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if unset {
        object.insert(name.to_owned(), value.into());
    }
}

/// Sets a field that is missing, null, empty or zero.
fn set_zero(object: &mut Object, name: &str, value: impl Into<Value>) {
    if object.get(name).is_none_or(crate::view::is_zero) {
        object.insert(name.to_owned(), value.into());
    }
}

fn word<'a>(object: &'a Object, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn on(object: &Object, name: &str) -> bool {
    object
        .get(name)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

fn there(object: &Object, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_null())
}

fn typed(name: &str, object: &mut Object) {
    if let Some(core) = name.strip_prefix("io.k8s.api.core.v1.") {
        return in_core(core, object);
    }
    match name.strip_prefix("io.k8s.api.").unwrap_or(name) {
        "apps.v1.Deployment" => deployment(object),
        "apps.v1.DaemonSet" => daemon_set(object),
        "apps.v1.StatefulSet" => stateful_set(object),
        "apps.v1.ReplicaSet" => {
            replicas(object);
            labels_from_template(object, false);
            status(object, json!({"replicas": 0}));
        }
        "batch.v1.Job" => job(object),
        "batch.v1.CronJob" => {
            if let Some(spec) = object_mut(object, "spec") {
                set(spec, "concurrencyPolicy", "Allow");
                set(spec, "suspend", false);
                set(spec, "successfulJobsHistoryLimit", 3);
                set(spec, "failedJobsHistoryLimit", 1);
            }
            status(object, json!({}));
        }
        "batch.v1.PodFailurePolicyOnPodConditionsPattern" => set(object, "status", "True"),
        "autoscaling.v1.HorizontalPodAutoscaler" => {
            if let Some(spec) = object_mut(object, "spec") {
                set(spec, "minReplicas", 1);
            }
            status(object, json!({"currentReplicas": 0, "desiredReplicas": 0}));
        }
        "autoscaling.v2.HorizontalPodAutoscaler" => autoscaler(object),
        "networking.v1.NetworkPolicySpec" => {
            let filled = |name: &str| {
                object
                    .get(name)
                    .is_some_and(|value| !crate::view::is_zero(value))
            };
            let types = if filled("egress") {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
            set_zero(object, "policyTypes", types);
        }
        "networking.v1.NetworkPolicyPort" => set(object, "protocol", "TCP"),
        "networking.v1.IngressClassParametersReference" => set(object, "scope", "Cluster"),
        "networking.v1.Ingress" => status(object, json!({"loadBalancer": {}})),
        "policy.v1.PodDisruptionBudget" => status(
            object,
            json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
        ),
        "rbac.v1.RoleRef" => set(object, "apiGroup", "rbac.authorization.k8s.io"),
        "rbac.v1.Subject" => {
            if matches!(word(object, "kind"), "User" | "Group") {
                set(object, "apiGroup", "rbac.authorization.k8s.io");
            }
        }
        "storage.v1.StorageClass" => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        "storage.v1.CSIDriverSpec" => {
            set(object, "attachRequired", true);
            set(object, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            set(object, "podInfoOnMount", false);
            set(object, "requiresRepublish", false);
            set(object, "seLinuxMount", false);
            set(object, "storageCapacity", false);
            set_zero(object, "volumeLifecycleModes", json!(["Persistent"]));
        }
        "scheduling.v1.PriorityClass" => set(object, "preemptionPolicy", "PreemptLowerPriority"),
        "discovery.v1.EndpointSlice" => {
            for port in items_mut(object, "ports") {
                if !there(port, "name") {
                    port.insert("name".to_owned(), json!(""));
                }
                set(port, "protocol", "TCP");
            }
        }
        "admissionregistration.v1.MutatingWebhook" => {
            webhook(object);
            set(object, "reinvocationPolicy", "Never");
        }
        "admissionregistration.v1.ValidatingWebhook" => webhook(object),
        "admissionregistration.v1.RuleWithOperations" => set(object, "scope", "*"),
        "admissionregistration.v1.NamedRuleWithOperations" => set(object, "scope", "*"),
        "admissionregistration.v1.ValidatingAdmissionPolicySpec" => {
            set(object, "failurePolicy", "Fail")
        }
        "admissionregistration.v1.MatchResources" => {
            set(object, "matchPolicy", "Equivalent");
            set(object, "namespaceSelector", json!({}));
            set(object, "objectSelector", json!({}));
        }
        "admissionregistration.v1.ServiceReference" => set(object, "port", 443),
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference"
        | "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference" => {
            set(object, "port", 443);
        }
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec" => {
            if let Some(names) = object_mut(object, "names") {
                let kind = word(names, "kind").to_owned();
                if !kind.is_empty() {
                    set(names, "singular", kind.to_lowercase());
                    set(names, "listKind", format!("{kind}List"));
                }
            }
            set(object, "conversion", json!({"strategy": "None"}));
        }
        _ => {}
    }
}

fn in_core(name: &str, object: &mut Object) {
    match name {
        "Pod" => pod(object),
        "PodSpec" => pod_spec(object),
        "Container" | "EphemeralContainer" => container(object),
        "ContainerPort" | "EndpointPort" => set(object, "protocol", "TCP"),
        "Volume" => volume(object),
        "Probe" => {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                set_zero(object, field, value);
            }
        }
        "GRPCAction" if !there(object, "service") => {
            object.insert("service".to_owned(), json!(""));
        }
        "HTTPGetAction" => {
            set(object, "path", "/");
            set(object, "scheme", "HTTP");
        }
        "SecretVolumeSource"
        | "ConfigMapVolumeSource"
        | "DownwardAPIVolumeSource"
        | "ProjectedVolumeSource" => set(object, "defaultMode", 0o644),
        "ServiceAccountTokenProjection" => set(object, "expirationSeconds", 3600),
        "HostPathVolumeSource" if !there(object, "type") => {
            object.insert("type".to_owned(), json!(""));
        }
        "ISCSIVolumeSource" | "ISCSIPersistentVolumeSource" => {
            set(object, "iscsiInterface", "default");
        }
        "RBDVolumeSource" | "RBDPersistentVolumeSource" => {
            set(object, "pool", "rbd");
            set(object, "user", "admin");
            set(object, "keyring", "/etc/ceph/keyring");
        }
        "AzureDiskVolumeSource" => {
            set(object, "cachingMode", "ReadWrite");
            set(object, "kind", "Shared");
            set(object, "fsType", "ext4");
            set(object, "readOnly", false);
        }
        "ScaleIOVolumeSource" | "ScaleIOPersistentVolumeSource" => {
            set(object, "storageMode", "ThinProvisioned");
            set(object, "fsType", "xfs");
        }
        "ObjectFieldSelector" => set(object, "apiVersion", "v1"),
        "ResourceFieldSelector" => set(object, "divisor", "0"),
        "PersistentVolumeClaimSpec" => set(object, "volumeMode", "Filesystem"),
        "PersistentVolumeClaim" => status(object, json!({"phase": "Pending"})),
        "PersistentVolume" => {
            if let Some(spec) = object_mut(object, "spec") {
                set(spec, "persistentVolumeReclaimPolicy", "Retain");
                set(spec, "volumeMode", "Filesystem");
            }
            status(object, json!({"phase": "Pending"}));
        }
        "Service" => service(object),
        "Secret" => secret(object),
        "Namespace" => {
            let name = object.get("metadata").map(|m| text(m, "name").to_owned());
            if let Some(name) = name.filter(|name| !name.is_empty())
                && let Some(labels) =
                    object_mut(object, "metadata").and_then(|m| object_mut(m, "labels"))
            {
                labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
            }
            status(object, json!({"phase": "Active"}));
        }
        "NodeStatus" => {
            if let Some(capacity) = object.get("capacity").cloned() {
                set(object, "allocatable", capacity);
            }
        }
        "Node" | "ResourceQuota" => status(object, json!({})),
        "ReplicationController" => {
            labels_from_template(object, true);
            replicas(object);
            status(object, json!({"replicas": 0}));
        }
        "LimitRangeItem" => limit_range_item(object),
        _ => {}
    }
}

/// The objects of a list.
fn items_mut<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    let items = object.get_mut(name).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// A status that Kubernetes shows although nobody has set it.
fn status(object: &mut Object, zero: Value) {
    let Some(status) = object_mut(object, "status") else {
        return;
    };
    if let Value::Object(zero) = zero {
        for (name, value) in zero {
            set(status, &name, value);
        }
    }
}

fn replicas(object: &mut Object) {
    if let Some(spec) = object_mut(object, "spec") {
        set(spec, "replicas", 1);
    }
}

/// Old controllers take their labels, and a replication controller also its selector, from the pods' labels.
fn labels_from_template(object: &mut Object, selector: bool) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let labels = crate::view::at(spec, &["template", "metadata", "labels"]).clone();
    if crate::view::is_zero(&labels) {
        return;
    }
    if selector && let Some(spec) = object_mut(object, "spec") {
        set_zero(spec, "selector", labels.clone());
    }
    if let Some(metadata) = object_mut(object, "metadata") {
        set_zero(metadata, "labels", labels);
    }
}

fn pod(object: &mut Object) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    for field in ["containers", "initContainers"] {
        for container in items_mut(spec, field) {
            requests_from_limits(container);
        }
    }
    set(spec, "enableServiceLinks", true);
    if on(spec, "hostNetwork") {
        for field in ["containers", "initContainers"] {
            for container in items_mut(spec, field) {
                for port in items_mut(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set_zero(port, "hostPort", number);
                    }
                }
            }
        }
    }
    pod_level_requests(spec);
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = container
        .get_mut("resources")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let limits = resources.get("limits").and_then(Value::as_object).cloned();
    let Some(limits) = limits.filter(|limits| !limits.is_empty()) else {
        return;
    };
    if let Some(requests) = object_mut(resources, "requests") {
        for (name, value) in limits {
            requests.entry(name).or_insert(value);
        }
    }
}

/// Pod-level limits without requests: the requests are those of the containers, else the limits.
fn pod_level_requests(spec: &mut Object) {
    let limits = spec.get("resources").map(|r| get(r, "limits").clone());
    let Some(Value::Object(limits)) = limits else {
        return;
    };
    let mut sums: Vec<(String, Quantity)> = Vec::new();
    for container in spec
        .get("containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        for (name, value) in crate::view::entries(get(container, "resources"), "requests") {
            let Some(value) =
                crate::view::quantity(value).filter(|_| matches!(name.as_str(), "cpu" | "memory"))
            else {
                continue;
            };
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum = sum.plus(value),
                None => sums.push((name.clone(), value)),
            }
        }
    }
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let Some(requests) = object_mut(spec, "resources").and_then(|r| object_mut(r, "requests"))
    else {
        return;
    };
    for (name, sum) in sums {
        requests
            .entry(name)
            .or_insert_with(|| json!(sum.to_string()));
    }
    for (name, value) in limits.into_iter().filter(|(name, _)| supported(name)) {
        requests.entry(name).or_insert(value);
    }
}

fn pod_spec(object: &mut Object) {
    set(object, "dnsPolicy", "ClusterFirst");
    set(object, "restartPolicy", "Always");
    set(object, "securityContext", json!({}));
    set(object, "terminationGracePeriodSeconds", 30);
    set(object, "schedulerName", "default-scheduler");
    // The old name of the field is kept equal to the new one, and the new one wins.
    let account = word(object, "serviceAccountName").to_owned();
    let old = word(object, "serviceAccount").to_owned();
    if !account.is_empty() {
        object.insert("serviceAccount".to_owned(), json!(account));
    } else if !old.is_empty() {
        object.insert("serviceAccountName".to_owned(), json!(old));
    }
}

fn container(object: &mut Object) {
    let policy = pull_policy(word(object, "image"));
    set(object, "imagePullPolicy", policy);
    set(object, "terminationMessagePath", "/dev/termination-log");
    set(object, "terminationMessagePolicy", "File");
    set(object, "resources", json!({}));
}

/// `Always` for the tag `latest`, also when no tag and no digest is written.
pub fn pull_policy(image: &str) -> &'static str {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, _)) => (rest, true),
        None => (image, false),
    };
    let start = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[start..].split_once(':') {
        Some((name, tag)) => (&rest[..start + name.len()], tag),
        None => (rest, if digest { "" } else { "latest" }),
    };
    // What is no reference at all has no tag.
    let path = name.split_once('/').map_or(name, |(host, path)| {
        if host.contains(['.', ':']) || host == "localhost" {
            path
        } else {
            name
        }
    });
    let good = !path.is_empty() && !path.bytes().any(|b| b.is_ascii_uppercase() || b == b' ');
    if good && tag == "latest" {
        "Always"
    } else {
        "IfNotPresent"
    }
}

fn volume(object: &mut Object) {
    if !object
        .iter()
        .any(|(name, value)| name != "name" && !value.is_null())
    {
        object.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(image) = object.get_mut("image").and_then(Value::as_object_mut) {
        let policy = pull_policy(word(image, "reference"));
        set(image, "pullPolicy", policy);
    }
}

/// `stringData` is only a way to write `data`.
fn secret(object: &mut Object) {
    set(object, "type", "Opaque");
    let Some(Value::Object(plain)) = object.shift_remove("stringData") else {
        return;
    };
    if plain.is_empty() {
        return;
    }
    if let Some(data) = object_mut(object, "data") {
        for (key, value) in plain {
            let text = base64::engine::general_purpose::STANDARD
                .encode(value.as_str().unwrap_or_default());
            data.insert(key, Value::String(text));
        }
    }
}

fn service(object: &mut Object) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    set(spec, "sessionAffinity", "None");
    match word(spec, "sessionAffinity") {
        "None" => {
            spec.shift_remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let config = spec.get("sessionAffinityConfig").unwrap_or(&Value::Null);
            if crate::view::at(config, &["clientIP", "timeoutSeconds"]).is_null() {
                spec.insert(
                    "sessionAffinityConfig".to_owned(),
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
        }
        _ => {}
    }
    set(spec, "type", "ClusterIP");
    // The old field and the first of the new ones are one.
    let address = word(spec, "clusterIP").to_owned();
    if !address.is_empty() && word(spec, "type") != "ExternalName" {
        set_zero(spec, "clusterIPs", json!([address]));
    }
    for port in items_mut(spec, "ports") {
        set(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            set_zero(port, "targetPort", number);
        }
    }
    let kind = word(spec, "type").to_owned();
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP"
            && spec
                .get("externalIPs")
                .is_some_and(|ips| !crate::view::is_zero(ips)));
    if outside {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    status(object, json!({"loadBalancer": {}}));
    if kind == "LoadBalancer"
        && let Some(balancer) =
            object_mut(object, "status").and_then(|s| object_mut(s, "loadBalancer"))
    {
        for ingress in items_mut(balancer, "ingress") {
            if !word(ingress, "ip").is_empty() {
                set(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn deployment(object: &mut Object) {
    replicas(object);
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    if let Some(strategy) = object_mut(spec, "strategy") {
        set(strategy, "type", "RollingUpdate");
        if word(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    status(object, json!({}));
}

fn daemon_set(object: &mut Object) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    if let Some(strategy) = object_mut(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if word(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", 1);
            set(rolling, "maxSurge", 0);
        }
    }
    set(spec, "revisionHistoryLimit", 10);
    status(
        object,
        json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
    );
}

fn stateful_set(object: &mut Object) {
    replicas(object);
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    set(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = object_mut(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if word(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
        }
    }
    if let Some(policy) = object_mut(spec, "persistentVolumeClaimRetentionPolicy") {
        set(policy, "whenDeleted", "Retain");
        set(policy, "whenScaled", "Retain");
    }
    set(spec, "revisionHistoryLimit", 10);
    for claim in items_mut(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
    }
    status(object, json!({"availableReplicas": 0, "replicas": 0}));
}

/// Once a job has its name and uid, its pods are told apart by them, unless it brings a selector of its own.
fn job_selector(object: &mut Object) {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    let (uid, name) = (
        text(metadata, "uid").to_owned(),
        text(metadata, "name").to_owned(),
    );
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    if uid.is_empty() || name.is_empty() || on(spec, "manualSelector") {
        return;
    }
    let labels = object_mut(spec, "template")
        .and_then(|template| object_mut(template, "metadata"))
        .and_then(|metadata| object_mut(metadata, "labels"));
    if let Some(labels) = labels {
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            set(labels, key, value.as_str());
        }
    }
    if let Some(wanted) = object_mut(spec, "selector").and_then(|s| object_mut(s, "matchLabels")) {
        set(wanted, "batch.kubernetes.io/controller-uid", uid);
    }
}

fn job(object: &mut Object) {
    labels_from_template(object, false);
    job_selector(object);
    // A template without labels has the generated ones now.
    labels_from_template(object, false);
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    if !there(spec, "completions") && !there(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let limit = if there(spec, "backoffLimitPerIndex") {
        i32::MAX
    } else {
        6
    };
    set(spec, "backoffLimit", limit);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    let replacement = if there(spec, "podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    set(spec, "podReplacementPolicy", replacement);
    status(object, json!({}));
}

fn autoscaler(object: &mut Object) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    set(spec, "minReplicas", 1);
    set_zero(
        spec,
        "metrics",
        json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
    );
    if there(spec, "behavior")
        && let Some(behavior) = object_mut(spec, "behavior")
    {
        if let Some(up) = object_mut(behavior, "scaleUp") {
            set(up, "stabilizationWindowSeconds", 0);
            set(up, "selectPolicy", "Max");
            set_zero(
                up,
                "policies",
                json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        }
        if let Some(down) = object_mut(behavior, "scaleDown") {
            set(down, "selectPolicy", "Max");
            set_zero(
                down,
                "policies",
                json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        }
    }
    status(
        object,
        json!({"currentMetrics": null, "desiredReplicas": 0}),
    );
}

fn webhook(object: &mut Object) {
    set(object, "failurePolicy", "Fail");
    set(object, "matchPolicy", "Equivalent");
    set(object, "namespaceSelector", json!({}));
    set(object, "objectSelector", json!({}));
    set(object, "timeoutSeconds", 10);
}

fn limit_range_item(object: &mut Object) {
    if word(object, "type") != "Container" {
        return;
    }
    for (from, to) in [
        ("max", "default"),
        ("default", "defaultRequest"),
        ("min", "defaultRequest"),
    ] {
        let Some(source) = object.get(from).and_then(Value::as_object).cloned() else {
            continue;
        };
        if let Some(target) = object_mut(object, to) {
            for (name, value) in source {
                target.entry(name).or_insert(value);
            }
        }
    }
}

/// The quality of service of a pod, from its requests and limits: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = get(pod, "spec");
    let mut requests: Vec<(&str, Quantity)> = Vec::new();
    let mut limits: Vec<(&str, Quantity)> = Vec::new();
    let mut guaranteed = true;
    let pod_level = get(spec, "resources");
    let all: Vec<&Value> = if is_set(pod_level, "requests") || is_set(pod_level, "limits") {
        vec![pod_level]
    } else {
        let containers = list(spec, "containers")
            .iter()
            .chain(list(spec, "initContainers"));
        containers.map(|c| get(c, "resources")).collect()
    };
    for resources in all {
        let mut limited = 0;
        for (sums, field) in [(&mut requests, "requests"), (&mut limits, "limits")] {
            for (name, value) in crate::view::entries(resources, field) {
                let Some(value) = crate::view::quantity(value).filter(|v| v.sign().is_gt()) else {
                    continue;
                };
                if !matches!(name.as_str(), "cpu" | "memory") {
                    continue;
                }
                limited += i32::from(field == "limits");
                match sums.iter_mut().find(|(known, _)| known == name) {
                    Some((_, sum)) => *sum = sum.plus(value),
                    None => sums.push((name, value)),
                }
            }
        }
        guaranteed &= limited == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len()
        && requests
            .iter()
            .all(|(name, value)| limits.iter().any(|(n, v)| n == name && v == value));
    if guaranteed && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::has;

    fn defaulted(mut object: Value) -> Value {
        apply(&mut object);
        let once = object.clone();
        apply(&mut object);
        assert_eq!(object, once, "defaulting twice is defaulting once");
        object
    }

    #[test]
    fn a_pod_gets_what_kubernetes_gives_it() {
        let pod = defaulted(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/a"}}]}}),
        );
        assert_eq!(
            pod["spec"],
            json!({
                "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                    {"name": "h", "hostPath": {"path": "/a", "type": ""}}],
                "enableServiceLinks": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler"})
        );
        assert_eq!(qos_class(&pod), "Guaranteed");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("localhost:5000/a/b", "Always"),
            ("localhost:5000/a/b:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
            ("nginx:latest@sha256:abc", "Always"),
            ("Not A Reference", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn workloads_get_their_strategies() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        let made = |version: &str, kind: &str| {
            defaulted(
                json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": {"template": template}}),
            )
        };
        let deployment = made("apps/v1", "Deployment");
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 600);
        assert_eq!(
            deployment["spec"]["template"]["spec"]["restartPolicy"],
            "Always"
        );
        // A pod's own defaults are not a template's.
        assert!(!has(
            &deployment["spec"]["template"]["spec"],
            "enableServiceLinks"
        ));
        let set = made("apps/v1", "StatefulSet");
        assert_eq!(set["spec"]["podManagementPolicy"], "OrderedReady");
        assert_eq!(
            set["spec"]["updateStrategy"]["rollingUpdate"]["partition"],
            0
        );
        let daemon = made("apps/v1", "DaemonSet");
        assert_eq!(
            daemon["spec"]["updateStrategy"]["rollingUpdate"],
            json!({"maxUnavailable": 1, "maxSurge": 0})
        );
        assert_eq!(daemon["status"]["numberReady"], 0);
        let job = made("batch/v1", "Job");
        assert_eq!(job["spec"]["completions"], 1);
        assert_eq!(job["spec"]["backoffLimit"], 6);
        assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
        let mut named = job;
        named["metadata"]["uid"] = json!("u");
        let named = defaulted(named);
        assert_eq!(
            named["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(
            named["spec"]["template"]["metadata"]["labels"]["job-name"],
            "a"
        );
    }

    #[test]
    fn a_service_gets_its_type_and_ports() {
        let service = defaulted(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
            "spec": {"ports": [{"port": 80}], "type": "LoadBalancer"}}),
        );
        assert_eq!(
            service["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "LoadBalancer", "sessionAffinity": "None",
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true})
        );
        assert_eq!(service["status"], json!({"loadBalancer": {}}));
    }

    #[test]
    fn other_kinds_get_theirs() {
        let binding = defaulted(
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "a"},
            "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
        );
        assert_eq!(binding["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
        assert_eq!(
            binding["subjects"][0]["apiGroup"],
            "rbac.authorization.k8s.io"
        );
        assert!(!has(&binding["subjects"][1], "apiGroup"));
        let policy = defaulted(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a"},
            "spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}}),
        );
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        let scaler = defaulted(
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
        );
        assert_eq!(scaler["spec"]["minReplicas"], 1);
        let crd = defaulted(
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a"},
            "spec": {"names": {"kind": "Widget", "plural": "widgets"}}}),
        );
        assert_eq!(
            crd["spec"]["names"],
            json!({"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"})
        );
        assert_eq!(crd["spec"]["conversion"]["strategy"], "None");
        let namespace =
            defaulted(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
        assert_eq!(
            namespace["metadata"]["labels"]["kubernetes.io/metadata.name"],
            "a"
        );
        let range = defaulted(
            json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "a"},
            "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
        );
        assert_eq!(
            range["spec"]["limits"][0]["defaultRequest"],
            json!({"cpu": "2"})
        );
        let secret = defaulted(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
            "data": {"a": "eA=="}, "stringData": {"b": "hello"}}),
        );
        assert_eq!(secret["data"], json!({"a": "eA==", "b": "aGVsbG8="}));
        assert!(!has(&secret, "stringData"));
        let unknown = json!({"apiVersion": "x/v1", "kind": "Y", "spec": {"containers": [{}]}});
        assert_eq!(defaulted(unknown.clone()), unknown);
    }
}
