//! Printed columns: what `kubectl get` shows.
//!
//! One table of columns by kind; one function that fills the cells. Times in cells are ages as Kubernetes writes them.

use crate::kinds::Kind;
use crate::object::text;
use crate::scale::selector_text;
use crate::status::Result;
use serde_json::{Value, json};

const NONE: &str = "<none>";

/// Names of the columns; `+` in front: only with `-o wide`. Types follow from the cells.
fn names(kind: &Kind) -> Vec<String> {
    if let Some(custom) = &kind.custom {
        let mut names = vec!["Name".to_owned()];
        if custom.columns.is_empty() {
            names.push("Age".into());
        }
        for column in &custom.columns {
            let wide = column["priority"].as_i64().unwrap_or(0) > 0;
            let mark = if wide { "+" } else { "" };
            names.push(format!("{mark}{}", text(column, "/name")));
        }
        return names;
    }
    let line = match (&kind.group[..], &kind.plural[..]) {
        ("", "pods") => "Name|Ready|Status|Restarts|Age|+IP|+Node|+Nominated Node|+Readiness Gates",
        ("", "namespaces") => "Name|Status|Age",
        ("", "configmaps") => "Name|Data|Age",
        ("", "secrets") => "Name|Type|Data|Age",
        ("", "services") => "Name|Type|Cluster-IP|External-IP|Port(s)|Age|+Selector",
        ("", "endpoints") => "Name|Endpoints|Age",
        ("", "nodes") => {
            "Name|Status|Roles|Age|Version|+Internal-IP|+External-IP|+OS-Image|+Kernel-Version|+Container-Runtime"
        }
        // Secrets are not listed any more since tokens are requested; Kubernetes 1.35 prints this column still.
        ("", "serviceaccounts") => "Name|Secrets|Age",
        ("", "events") => {
            "Last Seen|Type|Reason|Object|+Subobject|+Source|Message|+First Seen|+Count|+Name"
        }
        ("events.k8s.io", "events") => {
            "Last Seen|Type|Reason|Object|+Subobject|+Source|Message|+First Seen|+Count|+Name"
        }
        ("", "limitranges") => "Name|Created At",
        ("", "resourcequotas") => "Name|Request|Limit|Age",
        ("", "replicationcontrollers") => {
            "Name|Desired|Current|Ready|Age|+Containers|+Images|+Selector"
        }
        ("", "podtemplates") => "Name|Containers|Images|Pod Labels",
        ("", "persistentvolumes") => {
            "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|+VolumeMode"
        }
        ("", "persistentvolumeclaims") => {
            "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|+VolumeMode"
        }
        ("apps", "deployments") => {
            "Name|Ready|Up-to-date|Available|Age|+Containers|+Images|+Selector"
        }
        ("apps", "replicasets") => "Name|Desired|Current|Ready|Age|+Containers|+Images|+Selector",
        ("apps", "statefulsets") => "Name|Ready|Age|+Containers|+Images",
        ("apps", "daemonsets") => {
            "Name|Desired|Current|Ready|Up-to-date|Available|Node Selector|Age|+Containers|+Images|+Selector"
        }
        ("apps", "controllerrevisions") => "Name|Controller|Revision|Age",
        ("batch", "jobs") => "Name|Status|Completions|Duration|Age|+Containers|+Images|+Selector",
        ("batch", "cronjobs") => {
            "Name|Schedule|Timezone|Suspend|Active|Last Schedule|Age|+Containers|+Images|+Selector"
        }
        ("autoscaling", _) => "Name|Reference|Targets|MinPods|MaxPods|Replicas|Age",
        ("policy", _) => "Name|Min Available|Max Unavailable|Allowed Disruptions|Age",
        ("networking.k8s.io", "ingresses") => "Name|Class|Hosts|Address|Ports|Age",
        ("networking.k8s.io", "ingressclasses") => "Name|Controller|Parameters|Age",
        ("networking.k8s.io", "networkpolicies") => "Name|Pod-Selector|Age",
        ("discovery.k8s.io", _) => "Name|AddressType|Ports|Endpoints|Age",
        ("coordination.k8s.io", _) => "Name|Holder|Age",
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => "Name|Created At",
        ("rbac.authorization.k8s.io", _) => "Name|Role|Age|+Users|+Groups|+ServiceAccounts",
        ("storage.k8s.io", "storageclasses") => {
            "Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age"
        }
        ("storage.k8s.io", "csinodes") => "Name|Drivers|Age",
        ("storage.k8s.io", "csidrivers") => {
            "Name|AttachRequired|PodInfoOnMount|StorageCapacity|TokenRequests|RequiresRepublish|Modes|Age"
        }
        ("storage.k8s.io", "volumeattachments") => "Name|Attacher|PV|Node|Attached|Age",
        ("scheduling.k8s.io", _) => "Name|Value|Global-Default|Age|PreemptionPolicy",
        ("node.k8s.io", _) => "Name|Handler|Age",
        _ => "Name|Created At",
    };
    line.split('|').map(str::to_owned).collect()
}

/// `columnDefinitions`.
pub(crate) fn columns(kind: &Kind) -> Value {
    let custom = kind.custom.as_ref();
    let columns = names(kind).into_iter().enumerate().map(|(at, name)| {
        let wide = name.starts_with('+');
        let name = name.trim_start_matches('+');
        let definition = custom.and_then(|c| at.checked_sub(1).and_then(|at| c.columns.get(at)));
        let numbers = "Data Desired Current Up-to-date Available MinPods MaxPods Replicas Revision Secrets Value Count Active Allowed Disruptions";
        let is_number = custom.is_none() && numbers.split(' ').any(|n| n == name);
        json!({
            "name": name,
            "type": definition.map_or(if is_number && kind.plural != "daemonsets" { "integer" } else { "string" }, |d| text(d, "/type")),
            "format": if name == "Name" { "name" } else { definition.map_or("", |d| text(d, "/format")) },
            "description": definition.map_or("", |d| text(d, "/description")),
            "priority": i32::from(wide),
        })
    });
    Value::Array(columns.collect())
}

/// One row. `include`: `None`, `Metadata` (the default) or `Object`.
pub(crate) fn row(kind: &Kind, object: &Value, include: &str) -> Result<Value> {
    let mut row = json!({"cells": cells(kind, object)});
    match include {
        "None" => {}
        "Object" => row["object"] = object.clone(),
        _ => row["object"] = partial(object),
    }
    Ok(row)
}

/// Kind and metadata alone.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn cells(kind: &Kind, object: &Value) -> Vec<Value> {
    let name = Value::from(text(object, "/metadata/name"));
    let age = Value::from(age(text(object, "/metadata/creationTimestamp")));
    let created = || object["metadata"]["creationTimestamp"].clone();
    let at = |path: &str| text(object, path);
    let or_none = |path: &str| Value::from(or(text(object, path), NONE));
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let count = |path: &str| match object.pointer(path) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    };
    let template = || containers(&object["spec"]["template"]["spec"]);
    let selector = || Value::from(or(&selector_text(&object["spec"]["selector"]), NONE));
    if let Some(custom) = &kind.custom {
        let mut cells = vec![name];
        if custom.columns.is_empty() {
            cells.push(age);
        }
        for column in &custom.columns {
            cells.push(custom_cell(column, object));
        }
        return cells;
    }
    match (&kind.group[..], &kind.plural[..]) {
        ("", "pods") => pod(object, name, age),
        ("", "namespaces") => vec![name, at("/status/phase").into(), age],
        ("", "configmaps") => vec![name, (count("/data") + count("/binaryData")).into(), age],
        ("", "secrets") => vec![name, at("/type").into(), count("/data").into(), age],
        ("", "services") => service(object, name, age),
        ("", "endpoints") => vec![name, endpoints(object).into(), age],
        ("", "nodes") => node(object, name, age),
        ("", "serviceaccounts") => vec![name, count("/secrets").into(), age],
        ("", "events") | ("events.k8s.io", "events") => event(kind, object, name),
        ("", "resourcequotas") => {
            let (requests, limits) = quota(object);
            vec![name, requests.into(), limits.into(), age]
        }
        ("", "replicationcontrollers") | ("apps", "replicasets") => {
            let (names, images) = template();
            vec![
                name,
                number("/spec/replicas").into(),
                number("/status/replicas").into(),
                number("/status/readyReplicas").into(),
                age,
                names,
                images,
                selector(),
            ]
        }
        ("", "podtemplates") => {
            let (names, images) = containers(&object["template"]["spec"]);
            let labels = selector_text(&object["template"]["metadata"]["labels"]);
            vec![name, names, images, or(&labels, NONE).into()]
        }
        ("", "persistentvolumes") => vec![
            name,
            at("/spec/capacity/storage").into(),
            modes(&object["spec"]["accessModes"]).into(),
            at("/spec/persistentVolumeReclaimPolicy").into(),
            or(ending(object), at("/status/phase")).into(),
            match object.pointer("/spec/claimRef") {
                Some(claim) => {
                    format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")).into()
                }
                None => "".into(),
            },
            at("/spec/storageClassName").into(),
            or(at("/spec/volumeAttributesClassName"), "<unset>").into(),
            at("/status/reason").into(),
            age,
            or(at("/spec/volumeMode"), "<unset>").into(),
        ],
        ("", "persistentvolumeclaims") => {
            let bound = !at("/spec/volumeName").is_empty();
            let modes = modes(&object["status"]["accessModes"]);
            vec![
                name,
                or(ending(object), at("/status/phase")).into(),
                at("/spec/volumeName").into(),
                if bound {
                    at("/status/capacity/storage")
                } else {
                    ""
                }
                .into(),
                if bound { modes } else { String::new() }.into(),
                at("/spec/storageClassName").into(),
                or(at("/spec/volumeAttributesClassName"), "<unset>").into(),
                age,
                or(at("/spec/volumeMode"), "<unset>").into(),
            ]
        }
        ("apps", "deployments") => {
            let (names, images) = template();
            let ready = format!(
                "{}/{}",
                number("/status/readyReplicas"),
                number("/spec/replicas")
            );
            vec![
                name,
                ready.into(),
                number("/status/updatedReplicas").into(),
                number("/status/availableReplicas").into(),
                age,
                names,
                images,
                selector(),
            ]
        }
        ("apps", "statefulsets") => {
            let (names, images) = template();
            let ready = format!(
                "{}/{}",
                number("/status/readyReplicas"),
                number("/spec/replicas")
            );
            vec![name, ready.into(), age, names, images]
        }
        ("apps", "daemonsets") => {
            let (names, images) = template();
            let nodes = selector_text(&object["spec"]["template"]["spec"]["nodeSelector"]);
            vec![
                name,
                number("/status/desiredNumberScheduled").into(),
                number("/status/currentNumberScheduled").into(),
                number("/status/numberReady").into(),
                number("/status/updatedNumberScheduled").into(),
                number("/status/numberAvailable").into(),
                or(&nodes, NONE).into(),
                age,
                names,
                images,
                selector(),
            ]
        }
        ("apps", "controllerrevisions") => {
            let owner = controller(object).unwrap_or_else(|| NONE.to_owned());
            vec![name, owner.into(), number("/revision").into(), age]
        }
        ("batch", "jobs") => job(object, name, age),
        ("batch", "cronjobs") => {
            let (names, images) =
                containers(&object["spec"]["jobTemplate"]["spec"]["template"]["spec"]);
            let last = at("/status/lastScheduleTime");
            let last = if last.is_empty() {
                NONE.to_owned()
            } else {
                self::age(last)
            };
            let suspend = object
                .pointer("/spec/suspend")
                .and_then(Value::as_bool)
                .unwrap_or(false);
            let selector = selector_text(&object["spec"]["jobTemplate"]["spec"]["selector"]);
            vec![
                name,
                at("/spec/schedule").into(),
                or_none("/spec/timeZone"),
                if suspend { "True" } else { "False" }.into(),
                count("/status/active").into(),
                last.into(),
                age,
                names,
                images,
                or(&selector, NONE).into(),
            ]
        }
        ("autoscaling", _) => {
            let reference = format!(
                "{}/{}",
                at("/spec/scaleTargetRef/kind"),
                at("/spec/scaleTargetRef/name")
            );
            let minimum = object
                .pointer("/spec/minReplicas")
                .map_or("<unset>".into(), Clone::clone);
            vec![
                name,
                reference.into(),
                targets(object).into(),
                minimum,
                number("/spec/maxReplicas").into(),
                number("/status/currentReplicas").into(),
                age,
            ]
        }
        ("policy", _) => {
            let bound = |path: &str| match object.pointer(path) {
                Some(Value::String(text)) => text.clone().into(),
                Some(number @ Value::Number(_)) => number.to_string().into(),
                _ => Value::from("N/A"),
            };
            vec![
                name,
                bound("/spec/minAvailable"),
                bound("/spec/maxUnavailable"),
                number("/status/disruptionsAllowed").into(),
                age,
            ]
        }
        ("networking.k8s.io", "ingresses") => ingress(object, name, age),
        ("networking.k8s.io", "ingressclasses") => {
            let parameters = match object.pointer("/spec/parameters") {
                Some(p) => {
                    let kind = match text(p, "/apiGroup") {
                        "" => text(p, "/kind").to_owned(),
                        group => format!("{}.{group}", text(p, "/kind")),
                    };
                    format!("{kind}/{}", text(p, "/name"))
                }
                None => NONE.to_owned(),
            };
            vec![name, at("/spec/controller").into(), parameters.into(), age]
        }
        ("networking.k8s.io", "networkpolicies") => {
            let selector = selector_text(&object["spec"]["podSelector"]);
            vec![name, or(&selector, NONE).into(), age]
        }
        ("discovery.k8s.io", _) => slice(object, name, age),
        ("coordination.k8s.io", _) => vec![name, at("/spec/holderIdentity").into(), age],
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            let role = format!("{}/{}", at("/roleRef/kind"), at("/roleRef/name"));
            let (users, groups, accounts) = subjects(object);
            vec![name, role.into(), age, users, groups, accounts]
        }
        ("storage.k8s.io", "storageclasses") => {
            let is_default = object
                .pointer("/metadata/annotations/storageclass.kubernetes.io~1is-default-class")
                .is_some_and(|v| v == "true");
            let name = if is_default {
                format!("{} (default)", at("/metadata/name")).into()
            } else {
                name
            };
            let expands = object["allowVolumeExpansion"].as_bool().unwrap_or(false);
            vec![
                name,
                at("/provisioner").into(),
                or(at("/reclaimPolicy"), "Delete").into(),
                or(at("/volumeBindingMode"), "Immediate").into(),
                expands.into(),
                age,
            ]
        }
        ("storage.k8s.io", "csinodes") => vec![name, count("/spec/drivers").into(), age],
        ("storage.k8s.io", "csidrivers") => {
            let flag = |path: &str, otherwise: bool| {
                Value::from(
                    object
                        .pointer(path)
                        .and_then(Value::as_bool)
                        .unwrap_or(otherwise),
                )
            };
            let list = |path: &str, word: &str| {
                let items = object.pointer(path).and_then(Value::as_array);
                let items = items.into_iter().flatten();
                let all: Vec<_> = items.map(|i| i.as_str().unwrap_or(text(i, word))).collect();
                all.join(",")
            };
            vec![
                name,
                flag("/spec/attachRequired", true),
                flag("/spec/podInfoOnMount", false),
                flag("/spec/storageCapacity", false),
                or(&list("/spec/tokenRequests", "/audience"), "<unset>").into(),
                flag("/spec/requiresRepublish", false),
                or(&list("/spec/volumeLifecycleModes", ""), NONE).into(),
                age,
            ]
        }
        ("storage.k8s.io", "volumeattachments") => vec![
            name,
            at("/spec/attacher").into(),
            at("/spec/source/persistentVolumeName").into(),
            at("/spec/nodeName").into(),
            object
                .pointer("/status/attached")
                .and_then(Value::as_bool)
                .unwrap_or(false)
                .into(),
            age,
        ],
        ("scheduling.k8s.io", _) => vec![
            name,
            number("/value").into(),
            object["globalDefault"].as_bool().unwrap_or(false).into(),
            age,
            or(at("/preemptionPolicy"), "PreemptLowerPriority").into(),
        ],
        ("node.k8s.io", _) => vec![name, at("/handler").into(), age],
        _ => vec![name, created()],
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn ending(object: &Value) -> &'static str {
    if object["metadata"].get("deletionTimestamp").is_some() {
        "Terminating"
    } else {
        ""
    }
}

fn containers(spec: &Value) -> (Value, Value) {
    let all = |field: &str| {
        let list = spec["containers"].as_array().into_iter().flatten();
        let all: Vec<_> = list.map(|c| text(c, field)).collect();
        Value::from(all.join(","))
    };
    (all("/name"), all("/image"))
}

fn controller(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|o| o["controller"] == true)?;
    let kind = text(owner, "/kind").to_lowercase();
    let group = text(owner, "/apiVersion")
        .split_once('/')
        .map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    Some(format!("{kind}{dot}{group}/{}", text(owner, "/name")))
}

/// The words of `kubectl get pods`: what keeps it from running comes before its phase.
fn pod(pod: &Value, name: Value, age_cell: Value) -> Vec<Value> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let statuses = list(&pod["status"]["containerStatuses"]);
    let inits = list(&pod["status"]["initContainerStatuses"]);
    let init_specs = list(&pod["spec"]["initContainers"]);
    let mut total = list(&pod["spec"]["containers"]).len();
    let mut ready = 0;
    let mut restarts = 0;
    let mut reason = or(text(pod, "/status/reason"), text(pod, "/status/phase")).to_owned();
    let conditions = list(&pod["status"]["conditions"]);
    let is = |kind: &str| conditions.iter().find(|c| c["type"] == kind);
    if is("PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let is_sidecar = |name: &str| {
        init_specs
            .iter()
            .any(|c| c["name"] == name && c["restartPolicy"] == "Always")
    };
    total += init_specs
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .count();
    let mut initializing = false;
    let count = inits.len().max(init_specs.len());
    for (at, status) in inits.iter().enumerate() {
        restarts += status["restartCount"].as_i64().unwrap_or(0);
        let state = &status["state"];
        let ended = &state["terminated"];
        if ended["exitCode"] == 0 {
            continue;
        }
        if is_sidecar(text(status, "/name")) && status["started"] == true {
            ready += usize::from(status["ready"] == true);
            continue;
        }
        reason = if ended.is_object() {
            let why = text(ended, "/reason");
            if !why.is_empty() {
                format!("Init:{why}")
            } else if ended["signal"].as_i64().unwrap_or(0) != 0 {
                format!("Init:Signal:{}", ended["signal"])
            } else {
                format!("Init:ExitCode:{}", ended["exitCode"])
            }
        } else {
            match text(state, "/waiting/reason") {
                "" | "PodInitializing" => format!("Init:{at}/{count}"),
                why => format!("Init:{why}"),
            }
        };
        initializing = true;
        break;
    }
    let finished_init = is("Initialized").is_some_and(|c| c["status"] == "True");
    if !initializing || finished_init {
        let mut running = false;
        if !initializing {
            restarts = inits
                .iter()
                .filter(|s| is_sidecar(text(s, "/name")))
                .filter_map(|s| s["restartCount"].as_i64())
                .sum();
        }
        for status in statuses.iter().rev() {
            restarts += status["restartCount"].as_i64().unwrap_or(0);
            let state = &status["state"];
            let ended = &state["terminated"];
            let waits = text(state, "/waiting/reason");
            if !waits.is_empty() {
                reason = waits.to_owned();
            } else if ended.is_object() {
                reason = match text(ended, "/reason") {
                    "" if ended["signal"].as_i64().unwrap_or(0) != 0 => {
                        format!("Signal:{}", ended["signal"])
                    }
                    "" => format!("ExitCode:{}", ended["exitCode"]),
                    why => why.to_owned(),
                };
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = is("Ready").is_some_and(|c| c["status"] == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if !ending(pod).is_empty() {
        reason = match text(pod, "/status/reason") {
            "NodeLost" => "Unknown".to_owned(),
            _ if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") => reason,
            _ => "Terminating".to_owned(),
        };
    }
    let last = statuses
        .iter()
        .map(|s| text(s, "/lastState/terminated/finishedAt"))
        .max()
        .unwrap_or_default();
    let restarts = if restarts > 0 && !last.is_empty() {
        format!("{restarts} ({} ago)", age(last))
    } else {
        restarts.to_string()
    };
    let gates = list(&pod["spec"]["readinessGates"]);
    let fulfilled = gates
        .iter()
        .filter(|g| is(text(g, "/conditionType")).is_some_and(|c| c["status"] == "True"))
        .count();
    let gates = if gates.is_empty() {
        NONE.to_owned()
    } else {
        format!("{fulfilled}/{}", gates.len())
    };
    vec![
        name,
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        age_cell,
        or(text(pod, "/status/podIP"), NONE).into(),
        or(text(pod, "/spec/nodeName"), NONE).into(),
        or(text(pod, "/status/nominatedNodeName"), NONE).into(),
        gates.into(),
    ]
}

fn service(service: &Value, name: Value, age: Value) -> Vec<Value> {
    let kind = or(text(service, "/spec/type"), "ClusterIP");
    let address = or(text(service, "/spec/clusterIP"), NONE);
    let mut outside: Vec<String> = Vec::new();
    let ingress = service
        .pointer("/status/loadBalancer/ingress")
        .and_then(Value::as_array);
    for point in ingress.into_iter().flatten() {
        outside.push(or(text(point, "/ip"), text(point, "/hostname")).to_owned());
    }
    for address in service["spec"]["externalIPs"]
        .as_array()
        .into_iter()
        .flatten()
    {
        outside.extend(address.as_str().map(str::to_owned));
    }
    let external = match kind {
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" if outside.is_empty() => "<pending>".to_owned(),
        _ => or(&outside.join(","), NONE).to_owned(),
    };
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<_> = ports
        .map(|port| {
            let protocol = or(text(port, "/protocol"), "TCP");
            match port["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    vec![
        name,
        kind.into(),
        address.into(),
        external.into(),
        or(&ports.join(","), NONE).into(),
        age,
        or(&selector_text(&service["spec"]["selector"]), NONE).into(),
    ]
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in object["subsets"].as_array().into_iter().flatten() {
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        for address in addresses {
            let ports = subset["ports"].as_array().cloned().unwrap_or_default();
            if ports.is_empty() {
                all.push(text(address, "/ip").to_owned());
            }
            for port in ports {
                all.push(format!("{}:{}", text(address, "/ip"), port["port"]));
            }
        }
    }
    first_of(&all, 3)
}

/// Some, and how many more there are.
fn first_of(all: &[String], shown: usize) -> String {
    match all.len() {
        0 => NONE.to_owned(),
        n if n > shown => format!("{} + {} more...", all[..shown].join(","), n - shown),
        _ => all.join(","),
    }
}

fn node(node: &Value, name: Value, age: Value) -> Vec<Value> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Ready");
    let mut status = match ready {
        Some(c) if c["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<_> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let all = node.pointer("/status/addresses").and_then(Value::as_array);
        let found = all.into_iter().flatten().find(|a| a["type"] == kind);
        Value::from(found.map_or(NONE, |a| text(a, "/address")))
    };
    let info = |field: &str| text(node, &format!("/status/nodeInfo/{field}"));
    vec![
        name,
        status.into(),
        or(&roles.join(","), NONE).into(),
        age,
        info("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(info("osImage"), "<unknown>").into(),
        or(info("kernelVersion"), "<unknown>").into(),
        or(info("containerRuntimeVersion"), "<unknown>").into(),
    ]
}

fn event(kind: &Kind, event: &Value, name: Value) -> Vec<Value> {
    let newer = !kind.group.is_empty();
    let at = |path: &str| text(event, path);
    let (object, message, source) = if newer {
        (
            "/regarding",
            at("/note"),
            at("/reportingController").to_owned(),
        )
    } else {
        let component = or(at("/source/component"), at("/reportingComponent"));
        let host = at("/source/host");
        let source = if host.is_empty() {
            component.to_owned()
        } else {
            format!("{component}, {host}")
        };
        ("/involvedObject", at("/message"), source)
    };
    let what = event.pointer(object).unwrap_or(&Value::Null);
    let first = or(
        at("/firstTimestamp"),
        or(at("/deprecatedFirstTimestamp"), at("/eventTime")),
    );
    let last = or(
        at("/series/lastObservedTime"),
        or(
            at("/lastTimestamp"),
            or(at("/deprecatedLastTimestamp"), first),
        ),
    );
    let count = ["/series/count", "/count", "/deprecatedCount"]
        .into_iter()
        .find_map(|path| event.pointer(path).and_then(Value::as_i64));
    vec![
        age(last).into(),
        at("/type").into(),
        at("/reason").into(),
        format!(
            "{}/{}",
            text(what, "/kind").to_lowercase(),
            text(what, "/name")
        )
        .into(),
        text(what, "/fieldPath").into(),
        source.into(),
        message.trim().into(),
        age(first).into(),
        count.unwrap_or(1).into(),
        name,
    ]
}

fn quota(object: &Value) -> (String, String) {
    let hard = object.pointer("/status/hard").and_then(Value::as_object);
    let mut lines: Vec<(String, bool)> = Vec::new();
    for (name, limit) in hard.into_iter().flatten() {
        let used = object["status"]["used"][name].as_str().unwrap_or("0");
        let limit = limit.as_str().unwrap_or_default();
        lines.push((
            format!("{name}: {used}/{limit}"),
            name.starts_with("limits"),
        ));
    }
    lines.sort();
    let pick = |limits: bool| {
        let all: Vec<_> = lines
            .iter()
            .filter(|l| l.1 == limits)
            .map(|l| &l.0[..])
            .collect();
        all.join(", ")
    };
    (pick(false), pick(true))
}

fn modes(list: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let all = list.as_array().into_iter().flatten();
    let all: Vec<_> = all.filter_map(Value::as_str).map(short).collect();
    all.join(",")
}

fn job(job: &Value, name: Value, age_cell: Value) -> Vec<Value> {
    let number = |path: &str| job.pointer(path).and_then(Value::as_i64);
    let done = number("/status/succeeded").unwrap_or(0);
    let completions = match (number("/spec/completions"), number("/spec/parallelism")) {
        (Some(all), _) => format!("{done}/{all}"),
        (None, Some(parallel)) if parallel > 1 => format!("{done}/1 of {parallel}"),
        _ => format!("{done}/1"),
    };
    let started = text(job, "/status/startTime");
    let duration = match (started, text(job, "/status/completionTime")) {
        ("", _) => String::new(),
        (started, "") => age(started),
        (started, ended) => between(started, ended),
    };
    let conditions = job.pointer("/status/conditions").and_then(Value::as_array);
    let has = |kind: &str| {
        conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == kind && c["status"] == "True")
    };
    let status = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !ending(job).is_empty() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let (names, images) = containers(&job["spec"]["template"]["spec"]);
    vec![
        name,
        status.into(),
        completions.into(),
        duration.into(),
        age_cell,
        names,
        images,
        or(&selector_text(&job["spec"]["selector"]), NONE).into(),
    ]
}

fn targets(hpa: &Value) -> String {
    let current = hpa
        .pointer("/status/currentMetrics")
        .and_then(Value::as_array);
    let wanted = hpa.pointer("/spec/metrics").and_then(Value::as_array);
    let mut all = Vec::new();
    for (at, metric) in wanted.into_iter().flatten().enumerate() {
        let target = &metric["resource"]["target"];
        if metric["type"] != "Resource" {
            all.push("<unknown>/<unknown>".to_owned());
            continue;
        }
        let now = current
            .and_then(|c| c.get(at))
            .map(|c| &c["resource"]["current"]);
        let resource = text(metric, "/resource/name");
        all.push(match target["averageUtilization"].as_i64() {
            Some(percent) => {
                let now = now.and_then(|n| n["averageUtilization"].as_i64());
                let now = now.map_or("<unknown>".to_owned(), |n| format!("{n}%"));
                format!("{resource}: {now}/{percent}%")
            }
            None => {
                let now = now.map_or("<unknown>", |n| or(text(n, "/averageValue"), "<unknown>"));
                format!("{resource}: {now}/{}", text(target, "/averageValue"))
            }
        });
    }
    first_of(&all, 2)
}

fn ingress(ingress: &Value, name: Value, age: Value) -> Vec<Value> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    let hosts: Vec<_> = rules
        .map(|r| text(r, "/host").to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    let hosts = if hosts.is_empty() {
        "*".to_owned()
    } else {
        first_of(&hosts, 3)
    };
    let points = ingress
        .pointer("/status/loadBalancer/ingress")
        .and_then(Value::as_array);
    let points: Vec<_> = points
        .into_iter()
        .flatten()
        .map(|p| or(text(p, "/ip"), text(p, "/hostname")))
        .collect();
    let tls = ingress["spec"]["tls"]
        .as_array()
        .is_some_and(|t| !t.is_empty());
    vec![
        name,
        or(text(ingress, "/spec/ingressClassName"), NONE).into(),
        hosts.into(),
        points.join(",").into(),
        if tls { "80, 443" } else { "80" }.into(),
        age,
    ]
}

fn slice(slice: &Value, name: Value, age: Value) -> Vec<Value> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let ports: Vec<_> = ports
        .map(|p| match &p["port"] {
            Value::Null => "*".to_owned(),
            port => port.to_string(),
        })
        .collect();
    let points = slice["endpoints"].as_array().into_iter().flatten();
    let points: Vec<_> = points
        .flat_map(|e| e["addresses"].as_array().cloned().unwrap_or_default())
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let unset = |all: String| {
        if all == NONE {
            "<unset>".to_owned()
        } else {
            all
        }
    };
    vec![
        name,
        text(slice, "/addressType").into(),
        unset(first_of(&ports, 3)).into(),
        unset(first_of(&points, 3)).into(),
        age,
    ]
}

fn subjects(binding: &Value) -> (Value, Value, Value) {
    let of = |kind: &str| {
        let all = binding["subjects"].as_array().into_iter().flatten();
        let all: Vec<_> = all
            .filter(|s| s["kind"] == kind)
            .map(|s| match text(s, "/namespace") {
                "" => text(s, "/name").to_owned(),
                namespace => format!("{namespace}/{}", text(s, "/name")),
            })
            .collect();
        Value::from(all.join(", "))
    };
    (of("User"), of("Group"), of("ServiceAccount"))
}

fn custom_cell(column: &Value, object: &Value) -> Value {
    // Definitions name fields by simple paths here; filters and wildcards show nothing.
    let path = text(column, "/jsonPath");
    let found = simple_path(object, path);
    match (text(column, "/type"), found) {
        (_, None) => Value::Null,
        ("date", Some(Value::String(time))) => age(time).into(),
        ("integer" | "number" | "boolean", Some(value)) => value.clone(),
        (_, Some(Value::String(text))) => text.clone().into(),
        (_, Some(value)) => value.to_string().into(),
    }
}

/// `.spec.replicas`, `.metadata.labels['a\.b']`, `.status.conditions[0].type`.
pub(crate) fn simple_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (word, after) = inner.split_once(']')?;
            rest = after;
            let word = word.trim_matches(['\'', '"']).replace('\\', "");
            at = match at {
                Value::Array(list) => list.get(word.parse::<usize>().ok()?)?,
                other => other.get(&word)?,
            };
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let mut name = String::new();
            let mut letters = rest.char_indices().peekable();
            let mut end = rest.len();
            while let Some((index, letter)) = letters.next() {
                match letter {
                    '\\' => name.extend(letters.next().map(|(_, l)| l)),
                    '.' | '[' => {
                        end = index;
                        break;
                    }
                    letter => name.push(letter),
                }
            }
            rest = &rest[end..];
            at = at.get(&name)?;
        }
    }
    Some(at)
}

/// The time since then, as `kubectl` writes it: `5s`, `3m20s`, `2d3h`.
pub(crate) fn age(time: &str) -> String {
    if time.is_empty() {
        return "<unknown>".into();
    }
    match time.parse::<jiff::Timestamp>() {
        Ok(then) => human(jiff::Timestamp::now().duration_since(then).as_secs()),
        Err(_) => "<unknown>".into(),
    }
}

fn between(from: &str, to: &str) -> String {
    match (
        from.parse::<jiff::Timestamp>(),
        to.parse::<jiff::Timestamp>(),
    ) {
        (Ok(from), Ok(to)) => human(to.duration_since(from).as_secs()),
        _ => "<unknown>".into(),
    }
}

/// Kubernetes' `HumanDuration`: about two or three digits.
fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => two(hours / 8760, "y", days % 365, "d"),
        _ => format!("{}y", hours / 8760),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn ages_are_kubernetes_words() {
        for (seconds, words) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (864_000, "10d"),
            (90_000_000, "2y311d"),
            (315_360_000, "10y"),
        ] {
            assert_eq!(human(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn every_kind_has_as_many_cells_as_columns() {
        for kind in Registry::new().all().iter() {
            let cells = cells(kind, &json!({}));
            assert_eq!(cells.len(), names(kind).len(), "{}", kind.plural);
        }
    }

    fn words(pod_document: Value) -> String {
        let cells = pod(&pod_document, "p".into(), "1s".into());
        let cells: Vec<_> = cells[1..4].iter().filter_map(Value::as_str).collect();
        cells.join(" ")
    }

    #[test]
    fn a_pods_words_say_what_keeps_it() {
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        let crashed = json!({"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let of = |status: Value| words(json!({"spec": spec, "status": status}));
        assert_eq!(of(json!({"phase": "Pending"})), "0/2 Pending 0");
        assert_eq!(
            of(json!({"phase": "Running", "containerStatuses": [running, running]})),
            "2/2 Running 0"
        );
        assert_eq!(
            of(json!({"phase": "Running", "containerStatuses": [running, crashed]})),
            "1/2 CrashLoopBackOff 3"
        );
        let init = json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}});
        assert_eq!(words(init), "0/1 Init:1/2 0");
        let ending = json!({"metadata": {"deletionTimestamp": "x"}, "spec": spec, "status": {"phase": "Running"}});
        assert_eq!(words(ending), "0/2 Terminating 0");
    }

    #[test]
    fn simple_paths_lead_to_fields() {
        let object = json!({"a": {"b.c": [1, {"d": 2}]}});
        assert_eq!(simple_path(&object, ".a['b\\.c'][1].d"), Some(&json!(2)));
        assert_eq!(simple_path(&object, ".a.b\\.c[0]"), Some(&json!(1)));
        assert_eq!(simple_path(&object, ".a.x"), None);
    }
}
