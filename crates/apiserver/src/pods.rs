//! What pods have beyond other objects: their service account, binding to a node, eviction.

use crate::delete::{self, Options};
use crate::object::{self, metadata, text};
use crate::reply::{self, Reply};
use crate::request::{self, Call, Target};
use crate::status::{Result, Status};
use crate::write::{self, put};
use crate::{Api, Extra, protobuf};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

const TRIES: usize = 20;
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Gives a new pod its account, and its containers the account's token.
pub(crate) async fn admit(api: &Arc<Api>, target: &Target, pod: &mut Value) -> Result<()> {
    let spec = &pod["spec"];
    let mut name = text(spec, "/serviceAccountName").to_owned();
    if name.is_empty() {
        name = text(spec, "/serviceAccount").to_owned();
    }
    if name.is_empty() {
        name = "default".into();
    }
    let kind = api
        .registry
        .find("", "v1", "serviceaccounts")
        .ok_or_else(Status::no_resource)?;
    let pod_name = text(pod, "/metadata/name").to_owned();
    let Some(stored) = api.find(&kind, &target.namespace, &name).await? else {
        // The default account is made beside the namespace: a pod may be faster.
        if name == "default" {
            let account = json!({"metadata": {"name": "default", "namespace": target.namespace}});
            api.make_boxed("serviceaccounts", &target.namespace, account)
                .await?;
            return Box::pin(admit(api, target, pod)).await;
        }
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            target.namespace
        );
        return Err(Status::forbidden("", "pods", &pod_name, &why));
    };
    let account = api.document(&kind, &stored)?;
    pod["spec"]["serviceAccountName"] = name.clone().into();
    pod["spec"]["serviceAccount"] = name.into();
    let secrets = &account["imagePullSecrets"];
    if pod["spec"].get("imagePullSecrets").is_none() && secrets.is_array() {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(pod)?;
    }
    pod["status"]["qosClass"] = gantry_kube_api::defaults::qos_class(pod).into();
    Ok(())
}

fn mount_token(pod: &mut Value) -> Result<()> {
    let volume = format!("kube-api-access-{}", object::suffix()?);
    let mut used = false;
    for field in ["initContainers", "containers"] {
        let containers = pod["spec"][field].as_array_mut();
        for container in containers.into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            if mounts.clone().any(|m| m["mountPath"] == TOKEN_PATH) || !container.is_object() {
                continue;
            }
            let mut mounts: Vec<Value> = mounts.cloned().collect();
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            container["volumeMounts"] = mounts.into();
            used = true;
        }
    }
    if pod["spec"]["initContainers"].is_null() {
        put(&mut pod["spec"], "initContainers", None);
    }
    if !used {
        return Ok(());
    }
    let source = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    let mut volumes = pod["spec"]["volumes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    volumes.push(source);
    pod["spec"]["volumes"] = volumes.into();
    Ok(())
}

fn document(call: &Call, body: &[u8]) -> Result<Value> {
    match call.content_type() {
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body),
        _ => request::json(body),
    }
}

/// `POST …/pods/x/binding`: the scheduler's decision, made once.
pub(crate) async fn bind(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let binding = document(call, body)?;
    let node = text(&binding, "/target/name").to_owned();
    let kind = text(&binding, "/target/kind");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        let fault = crate::status::Fault::required("target.name", "");
        return Err(Status::invalid("", "Binding", &target.name, &[fault]));
    }
    let refused = |why: &str| Err(Status::conflict("", "pods/binding", &target.name, why));
    for _ in 0..TRIES {
        let stored = api.need(target).await?;
        let mut pod = api.document(&target.kind, &stored)?;
        let uid = text(&binding, "/metadata/uid");
        if !uid.is_empty() && uid != text(&pod, "/metadata/uid") {
            return Err(write::uid_conflict(
                &target.kind,
                &target.name,
                uid,
                text(&pod, "/metadata/uid"),
            ));
        }
        if pod["metadata"].get("deletionTimestamp").is_some() {
            return refused(&format!(
                "pod {} is being deleted, cannot be assigned to a host",
                target.name
            ));
        }
        let bound = text(&pod, "/spec/nodeName");
        if !bound.is_empty() {
            return refused(&format!(
                "pod {} is already assigned to node {bound:?}",
                target.name
            ));
        }
        pod["spec"]["nodeName"] = node.clone().into();
        let annotations = binding["metadata"]["annotations"].as_object();
        for (name, value) in annotations.into_iter().flatten() {
            metadata(&mut pod)
                .entry("annotations")
                .or_insert_with(|| json!({}))[name] = value.clone();
        }
        let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": object::now()});
        let mut conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(scheduled);
        pod["status"]["conditions"] = conditions.into();
        let mut extra = Extra::default();
        let dry = call.dry_run()?;
        let written = api
            .replace(
                &target.kind,
                &target.namespace,
                &target.name,
                &pod,
                &stored,
                &mut extra,
                dry,
            )
            .await?;
        if written.is_some() {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            return Ok(reply::json(StatusCode::CREATED, &status));
        }
    }
    Err(Status::modified("", "pods", &target.name))
}

/// `POST …/pods/x/eviction`: a deletion that disruption budgets may refuse.
pub(crate) async fn evict(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let eviction = document(call, body)?;
    let stored = api.need(target).await?;
    let pod = api.document(&target.kind, &stored)?;
    let options = &eviction["deleteOptions"];
    let options = Options {
        grace: options["gracePeriodSeconds"].as_i64(),
        uid: text(options, "/preconditions/uid").to_owned(),
        resource_version: text(options, "/preconditions/resourceVersion").to_owned(),
        propagation: text(options, "/propagationPolicy").to_owned(),
        dry: call.dry_run()?,
    };
    let ended = matches!(
        text(&pod, "/status/phase"),
        "Succeeded" | "Failed" | "Pending"
    ) || pod["metadata"].get("deletionTimestamp").is_some();
    if !ended {
        spend_budget(api, target, &pod, options.dry).await?;
    }
    delete::delete_object(api, target, &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(reply::json(StatusCode::CREATED, &status))
}

/// Takes one disruption from the pod's budget, or refuses.
async fn spend_budget(api: &Arc<Api>, target: &Target, pod: &Value, dry: bool) -> Result<()> {
    use crate::read::{self, At};
    use crate::select::Selection;
    use gantry_kube_api::selector::Selector;
    let kind = api
        .registry
        .find("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(Status::no_resource)?;
    let selection = Selection::within(&kind, &target.namespace);
    let found = read::page(api, &selection, At::Now, "", 0).await?;
    let mut budgets = Vec::new();
    for item in &found.items {
        let budget = api.document(&kind, item)?;
        let selector = crate::scale::selector_text(&budget["spec"]["selector"]);
        let chosen =
            Selector::parse(&selector).is_ok_and(|s| s.matches(&pod["metadata"]["labels"]));
        if chosen {
            budgets.push((item.clone(), budget));
        }
    }
    let (stored, mut budget) = match budgets.len() {
        0 => return Ok(()),
        1 => budgets.remove(0),
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let name = text(&budget, "/metadata/name").to_owned();
    let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
    if allowed <= 0 {
        let needed = &budget["status"]["desiredHealthy"];
        let healthy = &budget["status"]["currentHealthy"];
        let message = format!(
            "The disruption budget {name} needs {needed} healthy pods and has {healthy} currently"
        );
        let cause = json!({"reason": "DisruptionBudget", "message": message});
        return Err(Status::too_many(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            Some(cause),
        ));
    }
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let pod_name = text(pod, "/metadata/name");
    budget["status"]["disruptedPods"][pod_name] = object::now().into();
    let mut extra = Extra::default();
    let written = api
        .replace(
            &kind,
            &target.namespace,
            &name,
            &budget,
            &stored,
            &mut extra,
            dry,
        )
        .await?;
    if written.is_none() {
        return Err(Status::too_many(
            "Cannot evict pod as the disruption budget is still being processed by the server.",
            None,
        ));
    }
    Ok(())
}
