//! One object in two versions: the few built-in kinds that are kept in another version than they are asked for.

use crate::kinds::Kind;
use crate::write::put;
use serde_json::{Value, json};

/// A document of another version of `kind`, in the version `to`.
pub(crate) fn convert(kind: &Kind, mut object: Value, to: &str) -> Value {
    if object["apiVersion"] == to {
        return object;
    }
    object["apiVersion"] = to.into();
    match (&kind.kind[..], to) {
        ("HorizontalPodAutoscaler", "autoscaling/v2") => autoscaler_up(&mut object),
        ("HorizontalPodAutoscaler", "autoscaling/v1") => autoscaler_down(&mut object),
        ("Event", "v1") => rename(&mut object, |(old, new)| (new, old)),
        ("Event", "events.k8s.io/v1") => rename(&mut object, |names| names),
        // Versions of a custom resource differ in their name only: no conversion but that is served.
        _ => {}
    }
    object
}

fn utilization(percent: &Value) -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}])
}

fn autoscaler_up(object: &mut Value) {
    let take =
        |part: &mut Value, name: &str| part.as_object_mut().and_then(|p| p.shift_remove(name));
    if let Some(percent) = take(&mut object["spec"], "targetCPUUtilizationPercentage") {
        object["spec"]["metrics"] = utilization(&percent);
    }
    if object.get("status").is_some_and(Value::is_object)
        && let Some(percent) = take(&mut object["status"], "currentCPUUtilizationPercentage")
    {
        object["status"]["currentMetrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]);
    }
}

fn autoscaler_down(object: &mut Value) {
    let of = |list: Option<Value>, path: &str| {
        let list = list?.as_array()?.clone();
        let cpu = list.into_iter().find(|m| m["resource"]["name"] == "cpu")?;
        cpu.pointer(path).cloned()
    };
    let take = |part: Option<&mut Value>, name: &str| {
        part.and_then(Value::as_object_mut)
            .and_then(|p| p.shift_remove(name))
    };
    let metrics = take(object.get_mut("spec"), "metrics");
    put(&mut object["spec"], "behavior", None);
    if let Some(percent) = of(metrics, "/resource/target/averageUtilization") {
        object["spec"]["targetCPUUtilizationPercentage"] = percent;
    }
    let current = take(object.get_mut("status"), "currentMetrics");
    if let Some(percent) = of(current, "/resource/current/averageUtilization") {
        object["status"]["currentCPUUtilizationPercentage"] = percent;
    }
    if let Some(status) = object.get_mut("status") {
        put(status, "conditions", None);
    }
}

/// The fields of an event that are called otherwise in `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("message", "note"),
    ("involvedObject", "regarding"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(
    object: &mut Value,
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for names in RENAMED {
        let (from, to) = order(names);
        let value = object.as_object_mut().and_then(|o| o.shift_remove(from));
        if let Some(value) = value {
            object[to] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn there_and_back_is_the_same() {
        let registry = Registry::new();
        let kind = registry
            .find("autoscaling", "v1", "horizontalpodautoscalers")
            .unwrap();
        let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let new = convert(&kind, old.clone(), "autoscaling/v2");
        assert_eq!(
            new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
        assert_eq!(convert(&kind, new, "autoscaling/v1"), old);
        let kind = registry.find("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "p"}, "count": 2, "type": "Normal"});
        let new = convert(&kind, event.clone(), "events.k8s.io/v1");
        assert_eq!(
            (&new["note"], &new["regarding"]["name"]),
            (&json!("m"), &json!("p"))
        );
        assert_eq!(convert(&kind, new, "v1"), event);
    }
}
