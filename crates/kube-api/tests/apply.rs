//! Server-side apply as clients see it: managers, conflicts, removal.

use gantry_kube_api::apply::{self, Refused, Request};
use gantry_kube_api::defaults;
use gantry_kube_api::schema::Schema;
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: &str = "2026-01-02T03:04:05Z";
const LATER: &str = "2026-01-02T03:04:06Z";

fn request<'a>(manager: &'a str, version: &'a str) -> Request<'a> {
    Request {
        manager,
        subresource: "",
        api_version: version,
        time: NOW,
        has_status: true,
    }
}

fn types(object: &Value) -> &'static Schema {
    Schema::of(
        object["apiVersion"].as_str().unwrap(),
        object["kind"].as_str().unwrap(),
    )
    .unwrap()
}

/// As the server does: apply, then defaults.
fn applied(live: &Value, config: &Value, manager: &str, force: bool) -> Result<Value, Refused> {
    let version = config["apiVersion"].as_str().unwrap();
    let mut object = apply::apply(
        types(config),
        live,
        config,
        &request(manager, version),
        force,
    )?;
    defaults::apply(&mut object);
    Ok(object)
}

fn created(mut object: Value, manager: &str) -> Value {
    defaults::apply(&mut object);
    let version = object["apiVersion"].as_str().unwrap().to_owned();
    apply::update(
        types(&object),
        &Value::Null,
        object.clone(),
        &request(manager, &version),
    )
}

fn updated(live: &Value, mut object: Value, manager: &str) -> Value {
    defaults::apply(&mut object);
    let version = object["apiVersion"].as_str().unwrap().to_owned();
    apply::update(
        types(&object),
        live,
        object.clone(),
        &request(manager, &version),
    )
}

fn fields_of(object: &Value, manager: &str) -> Value {
    let all = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let entry = all.into_iter().find(|entry| entry["manager"] == manager);
    entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

fn deployment(replicas: Option<i64>, containers: &[(&str, &str)]) -> Value {
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, image)| json!({"name": name, "image": image}))
        .collect();
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "n", "labels": {"app": "web"}},
        "spec": {"selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}}}});
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = json!(replicas);
    }
    object
}

#[test]
fn a_create_records_what_kubernetes_records() {
    let object = created(deployment(Some(1), &[("c", "i:1")]), "kubectl-create");
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!(entry["manager"], "kubectl-create");
    assert_eq!(entry["operation"], "Update");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["time"], NOW);
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(
        entry["fieldsV1"],
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                            "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
                        "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {}, "f:terminationGracePeriodSeconds": {}
                    }
                }
            }
        })
    );
}

#[test]
fn an_apply_records_what_it_sets_and_nothing_else() {
    let object = applied(
        &Value::Null,
        &deployment(Some(2), &[("c", "i:1")]),
        "a",
        false,
    )
    .unwrap();
    assert_eq!(object["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(
        fields_of(&object, "a"),
        json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:replicas": {}, "f:selector": {},
            "f:template": {"f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
    );
    assert_eq!(object["metadata"]["managedFields"][0]["operation"], "Apply");
}

#[test]
fn one_conflict_is_told_in_kubernetes_words() {
    let live = created(deployment(Some(1), &[("c", "i:1")]), "kubectl");
    let refused = applied(&live, &deployment(Some(3), &[("c", "i:1")]), "a", false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    let status = refused.status();
    assert_eq!(status["code"], 409);
    assert_eq!(status["reason"], "Conflict");
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\" using apps/v1", "field": ".spec.replicas"}])
    );
    let forced = applied(&live, &deployment(Some(3), &[("c", "i:1")]), "a", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert!(
        fields_of(&forced, "kubectl")["f:spec"]
            .get("f:replicas")
            .is_none()
    );
    assert!(
        fields_of(&forced, "a")["f:spec"]
            .get("f:replicas")
            .is_some()
    );
}

#[test]
fn many_conflicts_are_listed_by_manager() {
    let live = applied(
        &Value::Null,
        &deployment(Some(1), &[("c", "i:1")]),
        "a",
        false,
    )
    .unwrap();
    let live = applied(&live, &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"x": "1"}}}), "b", false).unwrap();
    let mut config = deployment(Some(2), &[("c", "i:2")]);
    config["metadata"]["labels"]["x"] = json!("2");
    let refused = applied(&live, &config, "c", false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image\nconflicts with \"b\":\n- .metadata.labels.x"
    );
    // The same values are no conflict: both manage them.
    let shared = applied(&live, &deployment(Some(1), &[("c", "i:1")]), "c", false).unwrap();
    assert_eq!(shared["spec"], live["spec"]);
}

#[test]
fn what_a_manager_no_longer_wants_goes_unless_another_has_it() {
    let live = applied(
        &Value::Null,
        &deployment(Some(2), &[("c", "i:1"), ("side", "s:1")]),
        "a",
        false,
    )
    .unwrap();
    // A container goes with all that was filled in for it.
    let live = applied(&live, &deployment(Some(2), &[("c", "i:1")]), "a", false).unwrap();
    assert_eq!(
        live["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // A second manager holds replicas too; the first lets go, then the second.
    let only_replicas = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 2}});
    let nothing =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
    let live = applied(&live, &only_replicas, "b", false).unwrap();
    let live = applied(&live, &deployment(None, &[("c", "i:1")]), "a", false).unwrap();
    assert_eq!(live["spec"]["replicas"], 2);
    let live = applied(&live, &nothing, "b", false).unwrap();
    assert_eq!(live["spec"]["replicas"], 1, "the default again");
    assert_eq!(fields_of(&live, "b"), Value::Null);
    // Labels: the last one takes the map along.
    let mut config = deployment(None, &[("c", "i:1")]);
    config["metadata"]["labels"] = json!({});
    let live = applied(&live, &config, "a", false).unwrap();
    assert!(
        live["metadata"]
            .get("labels")
            .is_none_or(|labels| labels == &json!({})),
        "{live}"
    );
}

#[test]
fn lists_merge_by_their_keys_and_keep_an_order() {
    let pod = |ports: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]}});
    let live = applied(
        &Value::Null,
        &pod(json!([{"containerPort": 80, "name": "web"}])),
        "a",
        false,
    )
    .unwrap();
    // Another protocol is another port; a port without one is the TCP one.
    let live = applied(
        &live,
        &pod(json!([{"containerPort": 80, "protocol": "UDP"}])),
        "b",
        false,
    )
    .unwrap();
    let ports = live["spec"]["containers"][0]["ports"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(ports.len(), 2);
    let live = applied(&live, &pod(json!([])), "b", false).unwrap();
    assert_eq!(
        live["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "name": "web", "protocol": "TCP"}])
    );
    let config = |names: &[&str]| {
        let containers: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "image": "i:1"}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
    };
    let names = |object: &Value| -> Vec<String> {
        object["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let live = applied(&Value::Null, &config(&["a", "b", "c"]), "x", false).unwrap();
    let live = applied(&live, &config(&["c", "a"]), "y", false).unwrap();
    assert_eq!(names(&live), ["b", "c", "a"]);
    let live = applied(&live, &config(&["d", "a", "c"]), "y", false).unwrap();
    assert_eq!(names(&live), ["b", "d", "a", "c"]);
}

#[test]
fn sets_and_atomic_values() {
    let map = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "finalizers": finalizers}});
    let live = applied(&Value::Null, &map(json!(["a/x"])), "a", false).unwrap();
    let live = applied(&live, &map(json!(["a/y"])), "b", false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["a/x", "a/y"]));
    assert_eq!(
        fields_of(&live, "b"),
        json!({"f:metadata": {"f:finalizers": {"v:\"a/y\"": {}}}})
    );
    let live = applied(&live, &map(json!([])), "b", false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["a/x"]));
    // A service's selector is one value.
    let service = |selector: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": selector, "ports": [{"port": 80}]}});
    let live = applied(&Value::Null, &service(json!({"a": "b"})), "a", false).unwrap();
    let refused = applied(&live, &service(json!({"c": "d"})), "b", false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.selector"
    );
    let live = applied(&live, &service(json!({"c": "d"})), "a", false).unwrap();
    assert_eq!(live["spec"]["selector"], json!({"c": "d"}));
}

#[test]
fn an_update_takes_fields_from_appliers() {
    let live = applied(
        &Value::Null,
        &deployment(Some(2), &[("c", "i:1")]),
        "a",
        false,
    )
    .unwrap();
    let mut object = live.clone();
    object["spec"]["replicas"] = json!(5);
    let live = updated(&live, object, "scaler");
    assert_eq!(
        fields_of(&live, "scaler"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    let refused = applied(&live, &deployment(Some(2), &[("c", "i:1")]), "a", false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
    // An update that changes nothing is nobody's.
    let again = updated(&live, live.clone(), "other");
    assert_eq!(again, live);
    // A client that does not know managers does not lose them.
    let mut bare = live.clone();
    bare["metadata"]
        .as_object_mut()
        .unwrap()
        .shift_remove("managedFields");
    assert_eq!(
        updated(&live, bare, "other")["metadata"]["managedFields"],
        live["metadata"]["managedFields"]
    );
    // An empty list forgets them.
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([]);
    let reset = updated(&live, reset, "other");
    assert!(reset["metadata"].get("managedFields").is_none(), "{reset}");
}

#[test]
fn status_has_managers_of_its_own() {
    let live = applied(
        &Value::Null,
        &deployment(Some(2), &[("c", "i:1")]),
        "a",
        false,
    )
    .unwrap();
    let mut object = live.clone();
    object["status"] =
        json!({"replicas": 2, "conditions": [{"type": "Available", "status": "True"}]});
    let status = Request {
        subresource: "status",
        time: LATER,
        ..request("controller", "apps/v1")
    };
    let live = apply::update(types(&object), &live, object.clone(), &status);
    let entry = live["metadata"]["managedFields"][1].clone();
    assert_eq!(entry["subresource"], "status");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}}, "f:replicas": {}}})
    );
    // The object itself never owns its status.
    let mut config = deployment(Some(2), &[("c", "i:1")]);
    config["status"] = json!({"replicas": 9});
    let version = "apps/v1";
    let object = apply::apply(
        types(&config),
        &Value::Null,
        &config,
        &request("x", version),
        false,
    )
    .unwrap();
    assert!(fields_of(&object, "x").get("f:status").is_none());
    let conflict = apply::apply(
        types(&config),
        &live,
        &config,
        &Request {
            subresource: "status",
            ..request("x", version)
        },
        false,
    )
    .unwrap_err();
    assert!(conflict.to_string().contains("conflict with \"controller\" with subresource \"status\" using apps/v1: .status.replicas"), "{conflict}");
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let mut object = deployment(Some(1), &[("c", "i:1")]);
    let annotation = object.to_string();
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": annotation});
    let live = created(object, "kubectl-client-side-apply");
    // Another manager conflicts, kubectl does not.
    let config = deployment(Some(3), &[("c", "i:2")]);
    assert!(applied(&live, &config, "other", false).is_err());
    let live = applied(&live, &config, "kubectl", false).unwrap();
    assert_eq!(live["spec"]["replicas"], 3);
    // The annotation goes on telling what was applied.
    let remembered =
        live["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
            .as_str()
            .unwrap();
    assert_eq!(serde_json::from_str::<Value>(remembered).unwrap(), config);
    // What somebody else changed since is a conflict all the same.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(7);
    let scaled = updated(&live, scaled, "scaler");
    let refused = applied(
        &scaled,
        &deployment(Some(4), &[("c", "i:2")]),
        "kubectl",
        false,
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn an_object_without_managers_belongs_to_whoever_came_before() {
    let mut live = deployment(Some(1), &[("c", "i:1")]);
    defaults::apply(&mut live);
    let refused = applied(&live, &deployment(Some(2), &[("c", "i:1")]), "a", false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
    let live = applied(&live, &deployment(Some(1), &[("c", "i:1")]), "a", false).unwrap();
    assert!(fields_of(&live, "before-first-apply").is_object());
}

#[test]
fn what_cannot_be_applied_is_refused() {
    let refuse = |config: Value| {
        applied(&Value::Null, &config, "a", false)
            .unwrap_err()
            .to_string()
    };
    let mut config = deployment(Some(1), &[("c", "i:1")]);
    config["spec"]["bogus"] = json!(1);
    assert_eq!(
        refuse(config),
        "failed to create typed patch object (n/web; apps/v1, Kind=Deployment): .spec.bogus: field not declared in schema"
    );
    assert_eq!(
        refuse(deployment(None, &[("c", "i:1"), ("c", "i:2")])),
        "failed to create typed patch object (n/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"c\"]"
    );
    let mut config = deployment(None, &[("c", "i:1")]);
    config["spec"]["template"]["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .shift_remove("name");
    assert_eq!(
        refuse(config),
        "failed to create typed patch object (n/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)"
    );
    let mut config = deployment(None, &[("c", "i:1")]);
    config["metadata"]["managedFields"] = json!([]);
    assert_eq!(refuse(config), "metadata.managedFields must be nil");
    let request = request("a", "apps/v1");
    let other = json!({"apiVersion": "v1", "kind": "Deployment"});
    let refused = apply::apply(
        Schema::of("apps/v1", "Deployment").unwrap(),
        &Value::Null,
        &other,
        &request,
        false,
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Incorrect version specified in apply patch. Specified patch version: v1, expected: apps/v1"
    );
}

#[test]
fn many_updaters_become_one() {
    let mut live = created(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a0": "x"}}),
        "m0",
    );
    for at in 1..30 {
        let mut object = live.clone();
        object["data"][format!("a{at}")] = json!("x");
        let name = format!("m{at}");
        let time = format!("2026-01-02T03:05:{at:02}Z");
        let request = Request {
            time: &time,
            ..request(&name, "v1")
        };
        live = apply::update(types(&object), &live, object.clone(), &request);
    }
    let all = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(all.len(), apply::UPDATE_MANAGERS_LIMIT);
    assert!(
        all.iter()
            .any(|entry| entry["manager"] == "ancient-changes")
    );
    let total: usize = all
        .iter()
        .map(|e| {
            e["fieldsV1"]["f:data"]
                .as_object()
                .unwrap()
                .keys()
                .filter(|k| k.starts_with("f:"))
                .count()
        })
        .sum();
    assert_eq!(total, 30, "no field loses its manager");
}

fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", "[x-z]", 0..4).prop_map(|map| json!(map))
}

fn any_config() -> impl Strategy<Value = Value> {
    let containers =
        prop::collection::btree_map("[p-r]", ("[x-z]", data()), 1..3).prop_map(|map| {
            map.into_iter()
                .map(|(name, (image, env))| {
                    let env: Vec<Value> = env
                        .as_object()
                        .unwrap()
                        .iter()
                        .map(|(k, v)| json!({"name": k, "value": v}))
                        .collect();
                    json!({"name": name, "image": image, "env": env})
                })
                .collect::<Vec<_>>()
        });
    (data(), containers, prop::option::of(0i64..5)).prop_map(|(labels, containers, grace)| {
        let mut config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels}, "spec": {"containers": containers}});
        if let Some(grace) = grace {
            config["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        }
        config
    })
}

fn plain(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.shift_remove("managedFields");
    }
    object
}

/// Whether all that a configuration says is in an object; an empty list or map and none are the same.
fn holds(object: &Value, config: &Value) -> bool {
    let empty = |value: &Value| value == &json!([]) || value == &json!({});
    match (object, config) {
        (Value::Object(object), Value::Object(config)) => config
            .iter()
            .all(|(k, v)| object.get(k).map_or(empty(v), |o| holds(o, v))),
        (Value::Array(items), Value::Array(wanted)) => wanted
            .iter()
            .all(|w| items.iter().any(|i| i["name"] == w["name"] && holds(i, w))),
        (a, b) => a == b,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_changes_nothing(a in any_config(), b in any_config()) {
        let live = applied(&Value::Null, &a, "a", false).unwrap();
        prop_assert_eq!(&applied(&live, &a, "a", false).unwrap(), &live);
        let live = applied(&live, &b, "b", true).unwrap();
        prop_assert_eq!(&applied(&live, &b, "b", true).unwrap(), &live);
        prop_assert!(holds(&live, &b), "{}", live);
    }

    #[test]
    fn a_manager_alone_gets_exactly_its_last_configuration(a in any_config(), b in any_config()) {
        let through = applied(&applied(&Value::Null, &a, "a", false).unwrap(), &b, "a", false).unwrap();
        let direct = applied(&Value::Null, &b, "a", false).unwrap();
        // The grace period is a default that stays when nobody says another one; labels may stay as an empty map.
        prop_assert!(holds(&through, &b), "{} {}", through, b);
        prop_assert!(holds(&direct, &plain(&through)) || through["metadata"].get("labels") == Some(&json!({})), "{} {}", through, direct);
    }

    #[test]
    fn what_one_adds_and_takes_away_leaves_the_other_alone(a in any_config(), b in any_config()) {
        let nothing = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        let before = applied(&Value::Null, &a, "a", false).unwrap();
        if let Ok(with) = applied(&before, &b, "b", false) {
            prop_assert!(holds(&with, &a));
            let after = applied(&with, &nothing, "b", false).unwrap();
            prop_assert!(holds(&after, &a), "{} {}", after, a);
            prop_assert!(holds(&plain(&before), &plain(&after)), "{} {}", before, after);
        }
    }

    #[test]
    fn no_hostile_managed_fields_panic(step in "[fkvi]:.{0,12}", depth in 0usize..200) {
        let mut fields = json!({});
        for _ in 0..depth { fields = json!({step.clone(): fields}); }
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "managedFields":
            [{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}]}, "data": {"a": "b"}});
        let _ = updated(&Value::Null, object.clone(), "y");
        object["data"]["a"] = json!("c");
        let _ = applied(&object, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}}), "z", true);
    }
}
