//! Bad manifests and the exact lines that Kubernetes answers.
//!
//! Each case takes a good manifest, changes some places in it, fills in defaults and asks whether it may be stored.

use gantry_kube_api::{defaults, field, validate};
use serde_json::{Value, json};

const NAME: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn good(kind: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let (version, rest) = match kind {
        "Pod" => (
            "v1",
            json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
        ),
        "Service" => ("v1", json!({"spec": {"ports": [{"port": 80}]}})),
        "Namespace" | "ConfigMap" | "Secret" | "ServiceAccount" | "Node" => ("v1", json!({})),
        "LimitRange" => ("v1", json!({"spec": {"limits": [{"type": "Container"}]}})),
        "ResourceQuota" => ("v1", json!({"spec": {"hard": {"pods": "1"}}})),
        "Endpoints" => (
            "v1",
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        "PersistentVolumeClaim" => (
            "v1",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        "PersistentVolume" => (
            "v1",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/a"}}}),
        ),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => (
            "apps/v1",
            json!({"spec": {"selector": selector, "template": template}}),
        ),
        "Job" => {
            let mut template = template;
            template["spec"]["restartPolicy"] = json!("Never");
            (
                "batch/v1",
                json!({"spec": {"selector": selector, "template": template, "manualSelector": true}}),
            )
        }
        "CronJob" => {
            let mut template = template;
            template["spec"]["restartPolicy"] = json!("Never");
            (
                "batch/v1",
                json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}}),
            )
        }
        "HorizontalPodAutoscaler" => (
            "autoscaling/v2",
            json!({"spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
        ),
        "PodDisruptionBudget" => (
            "policy/v1",
            json!({"spec": {"minAvailable": 1, "selector": selector}}),
        ),
        "Ingress" => (
            "networking.k8s.io/v1",
            json!({"spec": {"rules": [{"host": "a.example", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ),
        "IngressClass" => (
            "networking.k8s.io/v1",
            json!({"spec": {"controller": "example.com/c"}}),
        ),
        "NetworkPolicy" => (
            "networking.k8s.io/v1",
            json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}], "from": [{"podSelector": {}}]}]}}),
        ),
        "EndpointSlice" => (
            "discovery.k8s.io/v1",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        ),
        "Role" | "ClusterRole" => (
            "rbac.authorization.k8s.io/v1",
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        ),
        "RoleBinding" | "ClusterRoleBinding" => (
            "rbac.authorization.k8s.io/v1",
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        "StorageClass" => ("storage.k8s.io/v1", json!({"provisioner": "example.com/p"})),
        "PriorityClass" => ("scheduling.k8s.io/v1", json!({"value": 1})),
        "Lease" => (
            "coordination.k8s.io/v1",
            json!({"spec": {"leaseDurationSeconds": 1}}),
        ),
        "ValidatingWebhookConfiguration" => (
            "admissionregistration.k8s.io/v1",
            json!({"webhooks": [{"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"url": "https://a.example/"},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]}),
        ),
        other => panic!("no good {other}"),
    };
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}});
    let resource = gantry_kube_api::resources::by_kind(version, kind).unwrap();
    if resource.namespaced {
        object["metadata"]["namespace"] = json!("n");
    }
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

/// Puts a value at a pointer, making what is missing on the way; null takes it away.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let steps: Vec<String> = pointer[1..]
        .split('/')
        .map(|s| s.replace("~1", "/").replace("~0", "~"))
        .collect();
    let (last, steps) = steps.split_last().unwrap();
    let mut at = object;
    for step in steps {
        at = match at {
            Value::Array(list) => {
                let index: usize = step.parse().unwrap();
                if index == list.len() {
                    list.push(json!({}));
                }
                &mut list[index]
            }
            other => &mut other[step],
        };
    }
    match (at, value) {
        (Value::Array(list), value) => {
            let index: usize = last.parse().unwrap();
            if index == list.len() {
                list.push(value);
            } else {
                list[index] = value;
            }
        }
        (Value::Object(map), Value::Null) => {
            map.shift_remove(last);
        }
        (at, value) => at[last] = value,
    }
}

fn changed(kind: &str, changes: &Value) -> Value {
    let mut object = good(kind);
    for (pointer, value) in changes.as_object().unwrap() {
        put(&mut object, pointer, value.clone());
    }
    defaults::apply(&mut object);
    object
}

fn lines(errors: &[field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn good_manifests_have_no_faults() {
    for kind in [
        "Pod",
        "Service",
        "Namespace",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "Node",
        "LimitRange",
        "ResourceQuota",
        "Endpoints",
        "PersistentVolumeClaim",
        "PersistentVolume",
        "Deployment",
        "ReplicaSet",
        "DaemonSet",
        "StatefulSet",
        "Job",
        "CronJob",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "Ingress",
        "IngressClass",
        "NetworkPolicy",
        "EndpointSlice",
        "Role",
        "ClusterRole",
        "RoleBinding",
        "ClusterRoleBinding",
        "StorageClass",
        "PriorityClass",
        "Lease",
        "ValidatingWebhookConfiguration",
    ] {
        let object = changed(kind, &json!({}));
        assert_eq!(
            lines(&validate::create(&object)),
            Vec::<String>::new(),
            "{kind}"
        );
        let mut old = object.clone();
        old["metadata"]["resourceVersion"] = json!("1");
        assert_eq!(
            lines(&validate::update(&old, &old)),
            Vec::<String>::new(),
            "{kind}"
        );
    }
}

/// A kind, the changes to its good manifest, and the lines. `%NAME%` and the like stand for the long sentences above.
fn cases() -> Vec<(&'static str, Value, Vec<String>)> {
    let mut cases = Vec::new();
    let mut add = |kind: &'static str, changes: Value, expected: &[&str]| {
        let expected = expected
            .iter()
            .map(|line| {
                line.replace("%NAME%", NAME)
                    .replace("%LABEL%", LABEL)
                    .replace("%VALUE%", VALUE)
                    .replace("%QUALIFIED%", QUALIFIED)
                    .replace("%IP%", IP)
            })
            .collect();
        cases.push((kind, changes, expected));
    };
    // Metadata
    add(
        "Pod",
        json!({"/metadata/name": "X_bad"}),
        &["metadata.name: Invalid value: \"X_bad\": %NAME%"],
    );
    add(
        "Pod",
        json!({"/metadata/name": ""}),
        &["metadata.name: Required value: name or generateName is required"],
    );
    add(
        "Pod",
        json!({"/metadata/name": null, "/metadata/generateName": "AB-"}),
        &[
            "metadata.generateName: Invalid value: \"AB-\": %NAME%",
            "metadata.name: Required value: name or generateName is required",
        ],
    );
    add(
        "Pod",
        json!({"/metadata/name": "a".repeat(254)}),
        &[&format!(
            "metadata.name: Invalid value: \"{}\": must be no more than 253 characters",
            "a".repeat(254)
        )],
    );
    add(
        "Pod",
        json!({"/metadata/namespace": "N"}),
        &["metadata.namespace: Invalid value: \"N\": %LABEL%"],
    );
    add(
        "Pod",
        json!({"/metadata/namespace": ""}),
        &["metadata.namespace: Required value"],
    );
    add(
        "Node",
        json!({"/metadata/namespace": "n"}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
    add(
        "Namespace",
        json!({"/metadata/name": "a.b"}),
        &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
    );
    add(
        "ConfigMap",
        json!({"/metadata/labels": {"a b": "c"}}),
        &["metadata.labels: Invalid value: \"a b\": %QUALIFIED%"],
    );
    add(
        "ConfigMap",
        json!({"/metadata/labels": {"a": "b c"}}),
        &["metadata.labels: Invalid value: \"b c\": %VALUE%"],
    );
    add(
        "ConfigMap",
        json!({"/metadata/labels": {"a": "b".repeat(64)}}),
        &[&format!(
            "metadata.labels: Invalid value: \"{}\": must be no more than 63 bytes",
            "b".repeat(64)
        )],
    );
    add(
        "ConfigMap",
        json!({"/metadata/labels": {"/a": ""}}),
        &["metadata.labels: Invalid value: \"/a\": prefix part must be non-empty"],
    );
    add(
        "ConfigMap",
        json!({"/metadata/annotations": {"a/": ""}}),
        &[
            "metadata.annotations: Invalid value: \"a/\": name part must be non-empty",
            "metadata.annotations: Invalid value: \"a/\": %QUALIFIED%",
        ],
    );
    add(
        "ConfigMap",
        json!({"/metadata/annotations": {"a": "x".repeat(256 * 1024)}}),
        &["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
    add(
        "ConfigMap",
        json!({"/metadata/finalizers": ["mine"]}),
        &[
            "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
        ],
    );
    add(
        "ConfigMap",
        json!({"/metadata/finalizers": ["orphan", "foregroundDeletion"]}),
        &[
            "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion cannot be both set",
        ],
    );
    add(
        "ConfigMap",
        json!({"/metadata/ownerReferences": [{"apiVersion": "v1", "kind": "Pod"}]}),
        &[
            "metadata.ownerReferences[0].name: Required value: must not be empty",
            "metadata.ownerReferences[0].uid: Required value: must not be empty",
        ],
    );
    add(
        "ConfigMap",
        json!({"/metadata/ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true}, {"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "2", "controller": true}]}),
        &[
            "metadata.ownerReferences: Invalid value: [{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"name\":\"a\",\"uid\":\"1\",\"controller\":true},{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"name\":\"b\",\"uid\":\"2\",\"controller\":true}]: Only one reference can have Controller set to true. Found \"true\" in references for Pod/a and Pod/b",
        ],
    );
    // Pods: containers
    add(
        "Pod",
        json!({"/spec/containers": []}),
        &["spec.containers: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/name": ""}),
        &["spec.containers[0].name: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/name": "C"}),
        &["spec.containers[0].name: Invalid value: \"C\": %LABEL%"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/image": ""}),
        &["spec.containers[0].image: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/image": " i"}),
        &[
            "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/1": {"name": "c", "image": "i"}}),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/imagePullPolicy": "Sometimes"}),
        &[
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/terminationMessagePolicy": "x"}),
        &[
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"x\": supported values: \"File\", \"FallbackToLogsOnError\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/restartPolicy": "Maybe"}),
        &[
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/dnsPolicy": "x"}),
        &[
            "spec.dnsPolicy: Unsupported value: \"x\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    add(
        "Pod",
        json!({"/spec/dnsConfig": {"nameservers": ["a"]}}),
        &["spec.dnsConfig.nameservers[0]: Invalid value: \"a\": %IP%"],
    );
    // Pods: ports
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 0}]}),
        &["spec.containers[0].ports[0].containerPort: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 70000}]}),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 80, "protocol": "tcp"}]}),
        &[
            "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 80, "name": "much-too-long-a-name"}]}),
        &[
            "spec.containers[0].ports[0].name: Invalid value: \"much-too-long-a-name\": must be no more than 15 characters",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]}),
        &["spec.containers[0].ports[1].name: Duplicate value: \"a\""],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/ports": [{"containerPort": 80, "hostPort": 1}, {"containerPort": 81, "hostPort": 1}]}),
        &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//1\""],
    );
    add(
        "Pod",
        json!({"/spec/hostNetwork": true, "/spec/containers/0/ports": [{"containerPort": 80, "hostPort": 1}]}),
        &[
            "spec.containers[0].ports[0].hostPort: Invalid value: 1: must match `containerPort` when `hostNetwork` is true",
        ],
    );
    // Pods: environment
    add(
        "Pod",
        json!({"/spec/containers/0/env": [{"name": ""}]}),
        &["spec.containers[0].env[0].name: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/env": [{"name": "a=b"}]}),
        &[
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/env": [{"name": "a", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
        &[
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.bogus"}}}]}),
        &[
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.bogus\": error converting fieldPath: field label not supported: spec.bogus",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/env": [{"name": "a", "valueFrom": {"configMapKeyRef": {"name": "m", "key": ""}}}]}),
        &["spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/envFrom": [{"prefix": "a"}]}),
        &[
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ],
    );
    // Pods: resources
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"requests": {"memory": "-1Gi"}}}),
        &[
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1Gi\": must be greater than or equal to 0",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"requests": {"gold": "1"}}}),
        &[
            "spec.containers[0].resources.requests[gold]: Invalid value: \"gold\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[gold]: Invalid value: \"gold\": must be a standard resource for containers",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"requests": {"example.com/gpu": "1"}}}),
        &[
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"limits": {"example.com/gpu": "1500m"}}}),
        &[
            "spec.containers[0].resources.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
            "spec.containers[0].resources.requests[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/resources": {"limits": {"hugepages-2Mi": "2Mi"}}}),
        &["spec.containers[0].resources: Forbidden: HugePages require cpu or memory"],
    );
    // Pods: probes and hooks
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"periodSeconds": 1}}),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"exec": {"command": []}}}),
        &["spec.containers[0].livenessProbe.exec.command: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"httpGet": {"port": 0}}}),
        &[
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"tcpSocket": {"port": "A"}}}),
        &[
            "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: \"A\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: \"A\": must contain at least one letter (a-z)",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}}),
        &[
            "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}}),
        &["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/readinessProbe": {"exec": {"command": ["a"]}, "periodSeconds": -1}}),
        &[
            "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/lifecycle": {"preStop": {}}}),
        &["spec.containers[0].lifecycle.preStop: Required value: must specify a handler type"],
    );
    add(
        "Pod",
        json!({"/spec/initContainers": [{"name": "i", "image": "i", "livenessProbe": {"tcpSocket": {"port": 1}}}]}),
        &[
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
    add(
        "Pod",
        json!({"/spec/initContainers": [{"name": "c", "image": "i"}]}),
        &["spec.initContainers[0].name: Duplicate value: \"c\""],
    );
    add(
        "Pod",
        json!({"/spec/ephemeralContainers": [{"name": "e", "image": "i"}]}),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
    // Pods: volumes
    add(
        "Pod",
        json!({"/spec/containers/0/volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v"}], "/spec/containers/0/volumeMounts": [{"name": "v", "mountPath": ""}]}),
        &["spec.containers[0].volumeMounts[0].mountPath: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v"}], "/spec/containers/0/volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
        &["spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique"],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v"}], "/spec/containers/0/volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "../b"}]}),
        &[
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"../b\": must not contain '..'",
        ],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/a"}}]}),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v"}, {"name": "v"}]}),
        &["spec.volumes[1].name: Duplicate value: \"v\""],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}),
        &["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v", "secret": {"secretName": ""}}]}),
        &["spec.volumes[0].secret.secretName: Required value"],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v", "configMap": {"name": "m", "defaultMode": 512}}]}),
        &[
            "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ],
    );
    add(
        "Pod",
        json!({"/spec/volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": ""}}]}),
        &["spec.volumes[0].persistentVolumeClaim.claimName: Required value"],
    );
    // Pods: security and scheduling
    add(
        "Pod",
        json!({"/spec/securityContext": {"runAsUser": -1}}),
        &[
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/securityContext": {"seccompProfile": {"type": "Localhost"}}}),
        &[
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ],
    );
    add(
        "Pod",
        json!({"/spec/containers/0/securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
        &[
            "spec.containers[0].securityContext: Invalid value: {\"privileged\":true,\"allowPrivilegeEscalation\":false}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ],
    );
    add(
        "Pod",
        json!({"/spec/tolerations": [{"operator": "Equal"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/tolerations": [{"key": "a", "effect": "Never"}]}),
        &[
            "spec.tolerations[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
    add(
        "Pod",
        json!({"/spec/affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ],
    );
    add(
        "Pod",
        json!({"/spec/topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]}),
        &["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"],
    );
    add(
        "Pod",
        json!({"/spec/nodeName": "n", "/spec/schedulingGates": [{"name": "g"}]}),
        &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
    );
    add(
        "Pod",
        json!({"/spec/activeDeadlineSeconds": 0}),
        &[
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    add(
        "Pod",
        json!({"/spec/hostAliases": [{"ip": "x"}]}),
        &["spec.hostAliases[0].ip: Invalid value: \"x\": %IP%"],
    );
    // Controllers
    add(
        "Deployment",
        json!({"/spec/selector": null}),
        &["spec.selector: Required value"],
    );
    add(
        "Deployment",
        json!({"/spec/selector": {}}),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    add(
        "Deployment",
        json!({"/spec/selector/matchLabels": {"app": "b"}}),
        &[
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/replicas": -1}),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    add(
        "Deployment",
        json!({"/spec/strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}),
        &[
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}),
        &[
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/strategy": {"rollingUpdate": {"maxUnavailable": "many"}}}),
        &[
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"many\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
        &[
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/strategy": {"type": "Magic"}}),
        &[
            "spec.strategy.type: Unsupported value: \"Magic\": supported values: \"Recreate\", \"RollingUpdate\"",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/progressDeadlineSeconds": 5, "/spec/minReadySeconds": 5}),
        &["spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"],
    );
    add(
        "Deployment",
        json!({"/spec/template/spec/restartPolicy": "Never"}),
        &[
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ],
    );
    add(
        "Deployment",
        json!({"/spec/template/spec/containers/0/name": ""}),
        &["spec.template.spec.containers[0].name: Required value"],
    );
    add(
        "DaemonSet",
        json!({"/spec/updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}}),
        &[
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ],
    );
    add(
        "StatefulSet",
        json!({"/spec/podManagementPolicy": "x"}),
        &["spec.podManagementPolicy: Invalid value: \"x\": must be 'OrderedReady' or 'Parallel'"],
    );
    add(
        "StatefulSet",
        json!({"/spec/selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
        &[
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ],
    );
    add(
        "Job",
        json!({"/spec/template/spec/restartPolicy": "Always"}),
        &[
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ],
    );
    add(
        "Job",
        json!({"/spec/completionMode": "Indexed", "/spec/parallelism": 1}),
        &["spec.completions: Required value: when completion mode is Indexed"],
    );
    add(
        "Job",
        json!({"/spec/backoffLimit": -1}),
        &["spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"],
    );
    add(
        "Job",
        json!({"/metadata/uid": "u", "/spec/manualSelector": false}),
        &[
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"batch.kubernetes.io/controller-uid\":\"u\"}}: `selector` not auto-generated",
        ],
    );
    add(
        "CronJob",
        json!({"/spec/schedule": ""}),
        &["spec.schedule: Required value"],
    );
    add(
        "CronJob",
        json!({"/spec/schedule": "soon"}),
        &["spec.schedule: Invalid value: \"soon\": expected exactly 5 fields, found 1: [soon]"],
    );
    add(
        "CronJob",
        json!({"/spec/concurrencyPolicy": "x"}),
        &[
            "spec.concurrencyPolicy: Unsupported value: \"x\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
        ],
    );
    add(
        "CronJob",
        json!({"/metadata/name": "a".repeat(53)}),
        &[&format!(
            "metadata.name: Invalid value: \"{}\": must be no more than 52 characters",
            "a".repeat(53)
        )],
    );
    add(
        "HorizontalPodAutoscaler",
        json!({"/spec/minReplicas": 3}),
        &["spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`"],
    );
    add(
        "HorizontalPodAutoscaler",
        json!({"/spec/maxReplicas": 0}),
        &[
            "spec.maxReplicas: Invalid value: 0: must be greater than 0",
            "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
        ],
    );
    add(
        "PodDisruptionBudget",
        json!({"/spec": {"minAvailable": 1, "maxUnavailable": 1}}),
        &[
            "spec: Invalid value: {\"minAvailable\":1,\"maxUnavailable\":1}: minAvailable and maxUnavailable cannot be both set",
        ],
    );
    // Services and their like
    add(
        "Service",
        json!({"/metadata/name": "1a"}),
        &[
            "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    add(
        "Service",
        json!({"/spec/ports": []}),
        &["spec.ports: Required value"],
    );
    add(
        "Service",
        json!({"/spec/ports/0/port": 0, "/spec/ports/0/targetPort": 1}),
        &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
    );
    add(
        "Service",
        json!({"/spec/ports/1": {"port": 81}}),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
        ],
    );
    add(
        "Service",
        json!({"/spec/type": "Magic"}),
        &[
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    add(
        "Service",
        json!({"/spec/ports/0/nodePort": 30000}),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    add(
        "Service",
        json!({"/spec/type": "ExternalName"}),
        &["spec.externalName: Required value"],
    );
    add(
        "Service",
        json!({"/spec/clusterIP": "x"}),
        &["spec.clusterIPs[0]: Invalid value: \"x\": %IP%"],
    );
    add(
        "Service",
        json!({"/spec/externalIPs": ["127.0.0.1"]}),
        &[
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ],
    );
    add(
        "Service",
        json!({"/spec/sessionAffinity": "x"}),
        &[
            "spec.sessionAffinity: Unsupported value: \"x\": supported values: \"ClientIP\", \"None\"",
        ],
    );
    add(
        "Service",
        json!({"/spec/externalTrafficPolicy": "Local"}),
        &[
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ],
    );
    add(
        "Endpoints",
        json!({"/subsets/0/addresses": []}),
        &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
    );
    add(
        "EndpointSlice",
        json!({"/endpoints/0/addresses": []}),
        &["endpoints[0].addresses: Required value: must contain at least 1 address"],
    );
    add(
        "Ingress",
        json!({"/spec": {}}),
        &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
    );
    add(
        "Ingress",
        json!({"/spec/rules/0/host": "10.0.0.1"}),
        &["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
    );
    add(
        "Ingress",
        json!({"/spec/rules/0/http/paths/0/pathType": null}),
        &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
    add(
        "Ingress",
        json!({"/spec/rules/0/http/paths/0/path": "a"}),
        &["spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"],
    );
    add(
        "Ingress",
        json!({"/spec/rules/0/http/paths/0/backend": {}}),
        &[
            "spec.rules[0].http.paths[0].backend: Required value: resource or service backend is required",
        ],
    );
    add(
        "Ingress",
        json!({"/spec/rules/0/http/paths/0/backend/service/port": {}}),
        &["spec.rules[0].http.paths[0].backend: Required value: port name or number is required"],
    );
    add(
        "IngressClass",
        json!({"/spec/controller": "c"}),
        &[
            "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ],
    );
    add(
        "NetworkPolicy",
        json!({"/spec/ingress/0/from/0": {}}),
        &["spec.ingress[0].from[0]: Required value: must specify a peer"],
    );
    add(
        "NetworkPolicy",
        json!({"/spec/ingress/0/from/0": {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}}),
        &[
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `10.0.0.0/8`",
        ],
    );
    add(
        "NetworkPolicy",
        json!({"/spec/policyTypes": ["In"]}),
        &[
            "spec.policyTypes[0]: Unsupported value: \"In\": supported values: \"Egress\", \"Ingress\"",
        ],
    );
    // Storage
    add(
        "PersistentVolumeClaim",
        json!({"/spec/accessModes": []}),
        &["spec.accessModes: Required value: at least 1 access mode is required"],
    );
    add(
        "PersistentVolumeClaim",
        json!({"/spec/accessModes": ["RWO"]}),
        &[
            "spec.accessModes: Unsupported value: \"RWO\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
        ],
    );
    add(
        "PersistentVolumeClaim",
        json!({"/spec/resources": {}}),
        &["spec.resources[storage]: Required value"],
    );
    add(
        "PersistentVolumeClaim",
        json!({"/spec/resources/requests/storage": "0"}),
        &["spec.resources[storage]: Invalid value: \"0\": must be greater than zero"],
    );
    add(
        "PersistentVolume",
        json!({"/spec/hostPath": null}),
        &["spec: Required value: must specify a volume type"],
    );
    add(
        "PersistentVolume",
        json!({"/spec/capacity": null}),
        &["spec.capacity: Required value"],
    );
    add(
        "StorageClass",
        json!({"/provisioner": ""}),
        &["provisioner: Required value"],
    );
    add(
        "StorageClass",
        json!({"/reclaimPolicy": "Keep"}),
        &["reclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Retain\""],
    );
    // The rest
    add(
        "ConfigMap",
        json!({"/data": {"a b": "c"}}),
        &[
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    add(
        "ConfigMap",
        json!({"/data": {"a": "b"}, "/binaryData": {"a": "Yg=="}}),
        &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
    );
    add(
        "ConfigMap",
        json!({"/data": {"a": "x".repeat(1024 * 1024 + 1)}}),
        &[": Too long: may not be more than 1048576 bytes"],
    );
    add(
        "Secret",
        json!({"/type": "kubernetes.io/tls"}),
        &[
            "data[tls.crt]: Required value",
            "data[tls.key]: Required value",
        ],
    );
    add(
        "Secret",
        json!({"/data": {"..a": ""}}),
        &["data[..a]: Invalid value: \"..a\": must not start with '..'"],
    );
    add(
        "LimitRange",
        json!({"/spec/limits/0": {"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}}),
        &[
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
        ],
    );
    add(
        "ResourceQuota",
        json!({"/spec/hard": {"gold": "1"}}),
        &[
            "spec.hard[gold]: Invalid value: \"gold\": must be a standard resource type or fully qualified",
        ],
    );
    add(
        "ResourceQuota",
        json!({"/spec/scopes": ["BestEffort", "NotBestEffort"]}),
        &["spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes"],
    );
    add(
        "Node",
        json!({"/spec/taints": [{"key": "a", "effect": "x"}]}),
        &[
            "metadata.taints[0].effect: Unsupported value: \"x\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
    add(
        "Role",
        json!({"/rules/0/verbs": []}),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    add(
        "Role",
        json!({"/rules/0": {"verbs": ["get"], "nonResourceURLs": ["/x"]}}),
        &[
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
        ],
    );
    add(
        "ClusterRole",
        json!({"/rules/0/apiGroups": []}),
        &["rules[0].apiGroups: Required value: resource rules must supply at least one api group"],
    );
    add(
        "RoleBinding",
        json!({"/roleRef/name": ""}),
        &["roleRef.name: Required value"],
    );
    add(
        "RoleBinding",
        json!({"/subjects/0/kind": "Robot"}),
        &[
            "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
        ],
    );
    add(
        "ClusterRoleBinding",
        json!({"/roleRef/kind": "Role"}),
        &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
    );
    add(
        "PriorityClass",
        json!({"/value": 2_000_000_000}),
        &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    add(
        "Lease",
        json!({"/spec/leaseDurationSeconds": 0}),
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
    add(
        "ValidatingWebhookConfiguration",
        json!({"/webhooks/0/name": "a"}),
        &[
            "webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots",
        ],
    );
    add(
        "ValidatingWebhookConfiguration",
        json!({"/webhooks/0/sideEffects": null}),
        &["webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"],
    );
    add(
        "ValidatingWebhookConfiguration",
        json!({"/webhooks/0/timeoutSeconds": 31}),
        &[
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ],
    );
    add(
        "ValidatingWebhookConfiguration",
        json!({"/webhooks/0/clientConfig": {}}),
        &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
    );
    cases
}

#[test]
fn bad_manifests_are_refused_in_kubernetes_words() {
    let cases = cases();
    assert!(cases.len() >= 100, "{}", cases.len());
    let mut wrong = Vec::new();
    for (kind, changes, mut expected) in cases {
        let mut found = lines(&validate::create(&changed(kind, &changes)));
        found.sort();
        expected.sort();
        if found != expected {
            wrong.push(format!(
                "{kind} {}\n  found    {found:#?}\n  expected {expected:#?}",
                changes.to_string().chars().take(300).collect::<String>()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn what_may_not_change_is_refused() {
    let cases = [
        (
            "Deployment",
            json!({}),
            json!({"/spec/selector/matchLabels": {"app": "a", "b": "c"}, "/spec/template/metadata/labels": {"app": "a", "b": "c"}}),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"b\":\"c\"}}: field is immutable",
        ),
        (
            "StatefulSet",
            json!({}),
            json!({"/spec/serviceName": "s"}),
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ),
        (
            "Pod",
            json!({}),
            json!({"/spec/containers/1": {"name": "d", "image": "i"}}),
            "spec.containers: Forbidden: pod updates may not add or remove containers",
        ),
        (
            "Pod",
            json!({"/spec/activeDeadlineSeconds": 5}),
            json!({"/spec/activeDeadlineSeconds": 6}),
            "spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value",
        ),
        (
            "Pod",
            json!({"/spec/tolerations": [{"key": "a", "operator": "Exists"}]}),
            json!({"/spec/tolerations": []}),
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ),
        (
            "Secret",
            json!({}),
            json!({"/type": "x/y"}),
            "type: Invalid value: \"x/y\": field is immutable",
        ),
        (
            "ConfigMap",
            json!({"/immutable": true, "/data": {"a": "b"}}),
            json!({"/immutable": true, "/data": {"a": "c"}}),
            "data: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            "Service",
            json!({"/spec/clusterIP": "10.0.0.1", "/spec/clusterIPs": ["10.0.0.1"]}),
            json!({"/spec/clusterIP": "10.0.0.2", "/spec/clusterIPs": ["10.0.0.2"]}),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set",
        ),
        (
            "RoleBinding",
            json!({}),
            json!({"/roleRef/name": "other"}),
            "roleRef: Invalid value: {\"kind\":\"ClusterRole\",\"name\":\"other\",\"apiGroup\":\"rbac.authorization.k8s.io\"}: cannot change roleRef",
        ),
        (
            "StorageClass",
            json!({}),
            json!({"/provisioner": "example.com/q"}),
            "provisioner: Forbidden: updates to provisioner are forbidden.",
        ),
        (
            "PriorityClass",
            json!({}),
            json!({"/value": 2}),
            "value: Forbidden: may not be changed in an update.",
        ),
        (
            "IngressClass",
            json!({}),
            json!({"/spec/controller": "example.com/d"}),
            "spec.controller: Invalid value: \"example.com/d\": field is immutable",
        ),
        (
            "PersistentVolumeClaim",
            json!({}),
            json!({"/spec/accessModes": ["ReadOnlyMany"]}),
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ),
        (
            "Job",
            json!({}),
            json!({"/spec/completions": 2}),
            "spec.completions: Invalid value: 2: field is immutable",
        ),
        (
            "ConfigMap",
            json!({}),
            json!({"/metadata/resourceVersion": ""}),
            "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
        ),
        (
            "ConfigMap",
            json!({}),
            json!({"/metadata/uid": "2"}),
            "metadata.uid: Invalid value: \"2\": field is immutable",
        ),
        (
            "ConfigMap",
            json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}),
            json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z", "/metadata/finalizers": ["a/b"]}),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a/b\"}",
        ),
        (
            "EndpointSlice",
            json!({}),
            json!({"/addressType": "FQDN", "/endpoints/0/addresses": ["a"]}),
            "addressType: Invalid value: \"FQDN\": field is immutable",
        ),
        (
            "Node",
            json!({"/spec/podCIDRs": ["10.0.0.0/24"]}),
            json!({"/spec/podCIDRs": ["10.0.1.0/24"]}),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ),
    ];
    for (kind, old, new, expected) in cases {
        let mut old = changed(kind, &old);
        let mut new = changed(kind, &new);
        for object in [&mut old, &mut new] {
            if object["metadata"].get("resourceVersion").is_none() {
                object["metadata"]["resourceVersion"] = json!("1");
            }
            if object["metadata"].get("uid").is_none() {
                object["metadata"]["uid"] = json!("1");
            }
        }
        let found = lines(&validate::update(&new, &old));
        assert_eq!(found, [expected], "{kind}");
    }
    let old = changed("Pod", &json!({"/metadata/resourceVersion": "1"}));
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = json!("other");
    new["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    assert_eq!(lines(&validate::update(&new, &old)), Vec::<String>::new());
    new["spec"]["hostname"] = json!("h");
    let found = lines(&validate::update(&new, &old));
    assert!(found[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"), "{found:?}");
}

#[test]
fn the_answer_has_a_cause_for_each_line() {
    let pod = changed(
        "Pod",
        &json!({"/metadata/name": "X_bad", "/spec/containers": []}),
    );
    let errors = validate::create(&pod);
    let status = field::invalid("", "Pod", "X_bad", &errors);
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("Pod \"X_bad\" is invalid: [metadata.name: Invalid value: \"X_bad\": a lowercase RFC 1123"), "{message}");
    assert!(
        message.ends_with(", spec.containers: Required value]"),
        "{message}"
    );
    assert_eq!(
        status["details"]["causes"][1],
        json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"})
    );
}
