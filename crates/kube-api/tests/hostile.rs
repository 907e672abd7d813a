//! Documents of every kind, grown from the table of types with wrong and extreme values in them: nothing panics, and what
//! defaulting gives is stable.

use gantry_kube_api::apply::{self, Request};
use gantry_kube_api::decode::{self, FieldValidation, Format};
use gantry_kube_api::schema::Schema;
use gantry_kube_api::{defaults, resources, validate};
use serde_json::{Map, Value, json};

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn scalar(dice: &mut Dice) -> Value {
    let words = [
        "",
        "a",
        "A b",
        "1Gi",
        "-1",
        "50%",
        "*",
        "/",
        "../x",
        "10.0.0.1",
        "10.0.0.0/8",
        "Always",
        "None",
        "é\u{0}",
        "a-",
    ];
    match dice.roll(12) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(i64::MAX),
        5 => json!(1.5),
        6 => json!([]),
        7 => json!({}),
        _ => json!(words[dice.roll(words.len() as u64) as usize]),
    }
}

/// A value of a type; one in `wild` is something else.
fn grown(schema: &Schema, dice: &mut Dice, depth: usize, wild: u64) -> Value {
    if depth == 0 || dice.roll(wild) == 0 {
        return scalar(dice);
    }
    let own = schema.resolved();
    match own.kind.as_deref() {
        Some("object") => {
            let mut object = Map::new();
            for (name, field) in own.fields() {
                if own.required.iter().any(|r| r == name) || dice.roll(4) == 0 {
                    object.insert(name.to_owned(), grown(field, dice, depth - 1, wild));
                }
            }
            if let Some(values) = own.values() {
                for key in ["a", "cpu", "A b/c"] {
                    if dice.roll(2) == 0 {
                        object.insert(key.to_owned(), grown(values, dice, depth - 1, wild));
                    }
                }
            }
            Value::Object(object)
        }
        Some("array") => {
            let items = own.items();
            (0..dice.roll(3))
                .map(|_| items.map_or(Value::Null, |items| grown(items, dice, depth - 1, wild)))
                .collect()
        }
        Some("integer") => json!(dice.roll(70_000) as i64 - 100),
        Some("boolean") => json!(dice.roll(2) == 0),
        Some("string") if own.format.as_deref() == Some("date-time") => {
            json!("2026-01-02T03:04:05Z")
        }
        Some("string") if own.format.as_deref() == Some("byte") => json!("eA=="),
        _ => {
            let value = scalar(dice);
            if value.is_string() { value } else { json!("x") }
        }
    }
}

fn documents(wild: u64, count: usize) -> impl Iterator<Item = (&'static Schema, Value)> {
    let mut dice = Dice(7);
    resources::all().iter().flat_map(move |resource| {
        let version = resource.api_version();
        let schema = Schema::of(&version, resource.kind).unwrap();
        let made: Vec<_> = (0..count)
            .map(|_| {
                let mut document = grown(schema, &mut dice, 12, wild);
                if !document.is_object() {
                    document = json!({});
                }
                document["apiVersion"] = json!(version);
                document["kind"] = json!(resource.kind);
                (schema, document)
            })
            .collect();
        made
    })
}

#[test]
fn undecoded_documents_panic_nowhere() {
    let mut before: Option<Value> = None;
    for (schema, document) in documents(12, 40) {
        let mut object = document.clone();
        defaults::apply(&mut object);
        let _ = validate::create(&object);
        let _ = validate::update(&object, &document);
        let _ = validate::update_status(&object, &document);
        if let Some(old) = &before {
            let _ = validate::update(&object, old);
        }
        let request = Request {
            manager: "m",
            subresource: "",
            api_version: object["apiVersion"].as_str().unwrap(),
            time: "2026-01-02T03:04:05Z",
            has_status: true,
        };
        let _ = apply::update(schema, &Value::Null, object.clone(), &request);
        let _ = apply::update(schema, &document, object.clone(), &request);
        let _ = apply::apply(schema, &document, &object, &request, true);
        before = Some(object);
    }
}

#[test]
fn decoded_documents_get_stable_defaults_and_managers() {
    let mut decoded_some = 0;
    for (schema, document) in documents(1_000_000, 30) {
        let (version, kind) = (
            document["apiVersion"].as_str().unwrap(),
            document["kind"].as_str().unwrap(),
        );
        let bytes = document.to_string();
        let Ok(decoded) = decode::object(
            bytes.as_bytes(),
            Format::Json,
            version,
            kind,
            FieldValidation::Warn,
        ) else {
            continue;
        };
        decoded_some += 1;
        let mut object = decoded.object;
        defaults::apply(&mut object);
        let mut again = object.clone();
        defaults::apply(&mut again);
        assert_eq!(again, object, "{document}");
        let text = object.to_string();
        let reread = decode::object(
            text.as_bytes(),
            Format::Json,
            version,
            kind,
            FieldValidation::Strict,
        );
        assert!(reread.is_ok(), "{reread:?}");
        let request = Request {
            manager: "m",
            subresource: "",
            api_version: version,
            time: "2026-01-02T03:04:05Z",
            has_status: true,
        };
        let created = apply::update(schema, &Value::Null, object.clone(), &request);
        // Storing the same again changes no manager.
        let other = Request {
            manager: "n",
            ..request
        };
        assert_eq!(
            apply::update(schema, &created, created.clone(), &other),
            created
        );
    }
    assert!(decoded_some > 100, "{decoded_some}");
}

#[test]
fn long_lists_take_no_long_time() {
    let many = |field: &str| -> Vec<Value> {
        (0..15_000)
            .map(|at| json!({field: format!("a{at}")}))
            .collect()
    };
    let start = std::time::Instant::now();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n", "resourceVersion": "1"},
        "spec": {"containers": many("name"), "initContainers": many("name"), "volumes": many("name"), "tolerations": many("key"),
            "schedulingGates": many("name"), "resourceClaims": many("name")}});
    pod["spec"]["containers"][0]["volumeMounts"] = json!(many("mountPath"));
    pod["spec"]["containers"][0]["ports"] = json!(many("name"));
    defaults::apply(&mut pod);
    assert!(!validate::create(&pod).is_empty());
    assert!(!validate::update(&pod, &pod).is_empty());
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": many("name")}});
    defaults::apply(&mut service);
    assert!(!validate::create(&service).is_empty());
    // A debug build on a busy machine: pairs of all items would take hours.
    assert!(start.elapsed().as_secs() < 40, "{:?}", start.elapsed());
}
