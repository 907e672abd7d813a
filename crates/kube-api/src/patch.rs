//! JSON Patch, JSON Merge Patch and Kubernetes' strategic merge patch.
//!
//! Spec: RFC 6902, RFC 7386; Kubernetes: "Update API Objects in Place Using kubectl patch", "strategic-merge-patch.md".

use crate::schema::Schema;
use serde_json::{Map, Value};

/// Operations of one JSON patch; Kubernetes' own limit.
pub const OPERATIONS_LIMIT: usize = 10_000;
/// Bytes that the `copy` operations of one patch may add: a short patch must not double a document many times.
pub const COPY_LIMIT: usize = 3 * 1024 * 1024;

/// Levels that a JSON patch may build: what walks a document later does so by recursion.
pub const DEPTH_LIMIT: usize = 128;

/// Why a patch does not apply.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The patch itself is malformed: 400.
    Bad(String),
    /// It is well formed, but not for this document: 422.
    Unprocessable(String),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bad(text) | Self::Unprocessable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Refused {}

type Patched<T = Value> = Result<T, Refused>;

fn bad<T>(text: impl Into<String>) -> Patched<T> {
    Err(Refused::Bad(text.into()))
}

fn missing<T>(operation: &str, path: &str) -> Patched<T> {
    Err(Refused::Unprocessable(format!(
        "{operation} operation does not apply: doc is missing path: {path:?}: missing value"
    )))
}

/// RFC 7386: `null` removes, objects merge, everything else replaces.
pub fn merge(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch;
    };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.shift_remove(&name);
        } else {
            let before = target.get_mut(&name).map(Value::take).unwrap_or_default();
            target.insert(name, merge(before, value));
        }
    }
    Value::Object(target)
}

/// RFC 6902: the operations in order, all or none.
pub fn json(mut document: Value, patch: &Value) -> Patched {
    let Some(operations) = patch.as_array() else {
        return bad("a JSON patch is a list of operations");
    };
    if operations.len() > OPERATIONS_LIMIT {
        return Err(Refused::Unprocessable(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for operation in operations {
        one(&mut document, operation, &mut copied)?;
    }
    Ok(document)
}

fn one(document: &mut Value, operation: &Value, copied: &mut usize) -> Patched<()> {
    let word = |name: &str| match operation.get(name).and_then(Value::as_str) {
        Some(word) => Ok(word),
        None => bad(format!("operation is missing {name:?}")),
    };
    let value = || match operation.get("value") {
        Some(value) => Ok(value.clone()),
        None => bad("operation is missing \"value\""),
    };
    let path = word("path")?;
    match word("op")? {
        "add" => add(document, path, value()?),
        "remove" => remove(document, path, "remove").map(drop),
        "replace" => {
            let value = value()?;
            shallow(path, &value)?;
            let Some(place) = document.pointer_mut(path) else {
                return missing("replace", path);
            };
            *place = value;
            Ok(())
        }
        "move" => {
            let from = word("from")?;
            // RFC 6902 section 4.4: "The from location MUST NOT be a proper prefix of the path location".
            if path
                .strip_prefix(from)
                .is_some_and(|rest| rest.starts_with('/'))
            {
                return bad("move into one of its own children");
            }
            let value = remove(document, from, "move")?;
            add(document, path, value)
        }
        "copy" => {
            let from = word("from")?;
            let Some(value) = document.pointer(from).cloned() else {
                return missing("copy", from);
            };
            *copied += serde_json::to_vec(&value).map_or(COPY_LIMIT, |text| text.len());
            if *copied > COPY_LIMIT {
                return Err(Refused::Unprocessable(format!(
                    "Unable to copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPY_LIMIT}"
                )));
            }
            add(document, path, value)
        }
        "test" => {
            let wanted = operation.get("value").unwrap_or(&Value::Null);
            if document.pointer(path).unwrap_or(&Value::Null) == wanted {
                Ok(())
            } else {
                Err(Refused::Unprocessable(format!(
                    "testing value {path} failed: test failed"
                )))
            }
        }
        other => bad(format!("Unexpected kind: {other}")),
    }
}

/// The parent's pointer and the unescaped last word.
fn split(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

/// An index of RFC 6901: digits without a leading zero.
fn index(word: &str) -> Option<usize> {
    let plain = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| plain)
}

/// Refuses a value that would stand too deep below the document's root.
fn shallow(path: &str, value: &Value) -> Patched<()> {
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
            Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    if path.matches('/').count() + depth(value) > DEPTH_LIMIT {
        return Err(Refused::Unprocessable(format!(
            "a JSON patch must not build more than {DEPTH_LIMIT} levels"
        )));
    }
    Ok(())
}

fn add(document: &mut Value, path: &str, value: Value) -> Patched<()> {
    shallow(path, &value)?;
    if path.is_empty() {
        *document = value;
        return Ok(());
    }
    let Some((parent, last)) = split(path) else {
        return missing("add", path);
    };
    match document.pointer_mut(parent) {
        Some(Value::Object(object)) => {
            object.insert(last, value);
        }
        Some(Value::Array(list)) if last == "-" => list.push(value),
        Some(Value::Array(list)) => match index(&last) {
            Some(at) if at <= list.len() => list.insert(at, value),
            _ => return missing("add", path),
        },
        _ => return missing("add", path),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str, operation: &str) -> Patched {
    let Some((parent, last)) = split(path) else {
        return missing(operation, path);
    };
    let gone = match document.pointer_mut(parent) {
        Some(Value::Object(object)) => object.shift_remove(&last),
        Some(Value::Array(list)) => index(&last)
            .filter(|at| *at < list.len())
            .map(|at| list.remove(at)),
        _ => None,
    };
    gone.map_or_else(|| missing(operation, path), Ok)
}

const ORDER: &str = "$setElementOrder/";
const FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Kubernetes' strategic merge: as a merge patch, but lists whose type says so are merged item by item.
pub fn strategic(document: Value, patch: Value, schema: &'static Schema) -> Patched {
    if !patch.is_object() {
        return bad("a strategic merge patch is an object");
    }
    Ok(object(document, patch, Some(schema))?.unwrap_or_default())
}

/// Merges two objects; `None` when the patch says that the object goes.
fn object(target: Value, patch: Value, schema: Option<&'static Schema>) -> Patched<Option<Value>> {
    let Value::Object(mut patch) = patch else {
        return Ok(Some(patch));
    };
    match patch.shift_remove("$patch") {
        None => {}
        Some(word) => match word.as_str() {
            Some("merge") => {}
            Some("replace") => return Ok(Some(Value::Object(patch))),
            Some("delete") => return Ok(None),
            _ => return bad(format!("unknown patch type: {word}")),
        },
    }
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    if let Some(kept) = patch.shift_remove("$retainKeys") {
        let Some(kept) = kept.as_array() else {
            return bad("invalid patch format of retainKeys");
        };
        if patch
            .keys()
            .any(|n| !n.starts_with('$') && !kept.iter().any(|k| k == n))
        {
            return bad("retainKeys list doesn't contain all fields of the patch");
        }
        target.retain(|name, _| kept.iter().any(|k| k == name));
    }
    let (orders, patch): (Vec<_>, Vec<_>) = patch
        .into_iter()
        .partition(|(name, _)| name.starts_with(ORDER));
    let mut orders: Map<String, Value> = orders.into_iter().collect();
    for (name, value) in patch {
        if let Some(name) = name.strip_prefix(FROM_LIST) {
            let (Some(Value::Array(list)), Value::Array(gone)) = (target.get_mut(name), value)
            else {
                continue;
            };
            list.retain(|item| !gone.contains(item));
            continue;
        }
        if value.is_null() {
            target.shift_remove(&name);
            continue;
        }
        let field = schema.and_then(|schema| schema.field(&name));
        let order = orders.shift_remove(&format!("{ORDER}{name}"));
        let before = target.get_mut(&name).map(Value::take).unwrap_or_default();
        let after = match value {
            Value::Array(items) => Some(list(before, items, field, order)?),
            value => object(before, value, field)?,
        };
        match after {
            Some(after) => target.insert(name, after),
            None => target.shift_remove(&name),
        };
    }
    // An order without a patch of the list sorts what is there.
    for (name, order) in orders {
        let name = &name[ORDER.len()..];
        let field = schema.and_then(|schema| schema.field(name));
        if let Some(before) = target.get_mut(name) {
            let taken = before.take();
            *before = list(taken, Vec::new(), field, Some(order))?;
        }
    }
    Ok(Some(Value::Object(target)))
}

fn list(
    before: Value,
    patch: Vec<Value>,
    field: Option<&'static Schema>,
    order: Option<Value>,
) -> Patched {
    let Some(field) = field.filter(|field| field.strategy("merge")) else {
        return Ok(Value::Array(patch));
    };
    let before = match before {
        Value::Array(before) => before,
        _ => Vec::new(),
    };
    let key = field.merge_key.as_deref();
    let mut result = before.clone();
    let mut replaced = false;
    for mut item in patch {
        let Some(key) = key else {
            if !result.contains(&item) {
                result.push(item);
            }
            continue;
        };
        if item.get("$patch").is_some_and(|word| word == "replace") && item.get(key).is_none() {
            // `[{"$patch": "replace"}, …]`: the rest of the patch is the whole list.
            result.clear();
            replaced = true;
            continue;
        }
        let Some(name) = item.get(key).cloned() else {
            return bad(format!(
                "map: {item} does not contain declared merge key: {key}"
            ));
        };
        match result.iter().position(|old| old.get(key) == Some(&name)) {
            Some(at) => match object(result[at].take(), item, field.items())? {
                Some(merged) => result[at] = merged,
                None => drop(result.remove(at)),
            },
            None => {
                let new = object(Value::Null, item.take(), field.items())?;
                result.extend(new);
            }
        }
    }
    match order {
        Some(Value::Array(order)) if !replaced => Ok(ordered(result, &before, &order, key)),
        _ => Ok(Value::Array(result)),
    }
}

/// The items that `order` names stand as it says; the others keep their place before those that followed them.
fn ordered(items: Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) -> Value {
    let name = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or_default(),
        None => item.clone(),
    };
    let wanted: Vec<Value> = order.iter().map(name).collect();
    let rank = |item: &Value| wanted.iter().position(|w| *w == name(item));
    let was = |item: &Value| before.iter().position(|b| name(b) == name(item));
    let (mut named, others): (Vec<_>, Vec<_>) =
        items.into_iter().partition(|item| rank(item).is_some());
    named.sort_by_key(rank);
    let mut others = others.into_iter().peekable();
    let mut result = Vec::new();
    for item in named {
        let at = was(&item);
        while let Some(other) = others.next_if(|o| at.is_some() && was(o) < at) {
            result.push(other);
        }
        result.push(item);
    }
    result.extend(others);
    Value::Array(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(patch: Value) -> Patched {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}],
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "old"}]}, "metadata": {"finalizers": ["f/one"]}});
        strategic(pod, patch, Schema::of("v1", "Pod").unwrap())
    }

    /// Names and images of the containers after a patch of them.
    fn containers(patch: Value) -> String {
        let pod = pod(json!({"spec": patch})).unwrap();
        let list = pod["spec"]["containers"].as_array().unwrap();
        let words = list.iter().map(|c| format!("{}={}", c["name"], c["image"]));
        words.collect::<Vec<_>>().join(" ").replace('"', "")
    }

    #[test]
    fn containers_merge_by_name() {
        let of = |list: Value| containers(json!({"containers": list}));
        assert_eq!(of(json!([{"name": "b", "image": "b:2"}])), "a=a:1 b=b:2");
        assert_eq!(
            of(json!([{"name": "c", "image": "c:1"}])),
            "a=a:1 b=b:1 c=c:1"
        );
        assert_eq!(of(json!([{"name": "a", "$patch": "delete"}])), "b=b:1");
        assert_eq!(
            of(json!([{"$patch": "replace"}, {"name": "z", "image": "z"}])),
            "z=z"
        );
    }

    #[test]
    fn the_order_of_a_list_is_set() {
        let order = json!([{"name": "b"}, {"name": "a"}]);
        assert_eq!(
            containers(json!({"$setElementOrder/containers": order})),
            "b=b:1 a=a:1"
        );
        let order = json!([{"name": "c"}, {"name": "b"}]);
        let patch = json!({"$setElementOrder/containers": order, "containers": [{"name": "c", "image": "c"}]});
        assert_eq!(containers(patch), "c=c a=a:1 b=b:1");
    }

    #[test]
    fn plain_lists_are_replaced_maps_merge_and_primitive_lists_unite() {
        let after = pod(json!({"spec": {"tolerations": [{"key": "new"}], "nodeSelector": {"zone": "a", "disk": null}},
            "metadata": {"finalizers": ["f/one", "f/two"]}})).unwrap();
        assert_eq!(after["spec"]["tolerations"], json!([{"key": "new"}]));
        assert_eq!(after["spec"]["nodeSelector"], json!({"zone": "a"}));
        assert_eq!(after["metadata"]["finalizers"], json!(["f/one", "f/two"]));
        let after = pod(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f/one"]}}));
        assert_eq!(after.unwrap()["metadata"]["finalizers"], json!([]));
    }

    #[test]
    fn an_item_without_its_merge_key_is_refused() {
        let error = pod(json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("does not contain declared merge key: name")
        );
    }

    #[test]
    fn retain_keys_drops_what_the_patch_does_not_name() {
        let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let after = strategic(
            deployment,
            patch,
            Schema::of("apps/v1", "Deployment").unwrap(),
        );
        assert_eq!(
            after.unwrap()["spec"]["strategy"],
            json!({"type": "Recreate"})
        );
    }

    #[test]
    fn merge_patch_follows_the_rfc() {
        let target = json!({"a": "b", "c": {"d": "e", "f": "g"}, "l": [1, 2]});
        let patch = json!({"a": "z", "c": {"f": null}, "l": [3], "n": {"x": null, "y": 1}});
        assert_eq!(
            merge(target, patch),
            json!({"a": "z", "c": {"d": "e"}, "l": [3], "n": {"y": 1}})
        );
    }

    #[test]
    fn json_patch_follows_the_rfc() {
        let document = json!({"a": [1, 2], "b/c": {"~": 1}});
        let patch = json!([
            {"op": "test", "path": "/b~1c/~0", "value": 1},
            {"op": "add", "path": "/a/1", "value": 9},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "remove", "path": "/a/0"},
            {"op": "move", "from": "/b~1c", "path": "/d"},
            {"op": "copy", "from": "/a/0", "path": "/e"},
            {"op": "replace", "path": "/d/~0", "value": null},
        ]);
        assert_eq!(
            json(document, &patch).unwrap(),
            json!({"a": [9, 2, 3], "d": {"~": null}, "e": 9})
        );
    }

    #[test]
    fn json_patches_that_do_not_apply_are_refused() {
        for (operation, words) in [
            (
                json!({"op": "test", "path": "/a", "value": 2}),
                "testing value /a failed: test failed",
            ),
            (
                json!({"op": "replace", "path": "/x", "value": 2}),
                "missing path: \"/x\"",
            ),
            (
                json!({"op": "remove", "path": "/l/3"}),
                "missing path: \"/l/3\"",
            ),
            (
                json!({"op": "add", "path": "/l/01", "value": 0}),
                "missing path: \"/l/01\"",
            ),
            (
                json!({"op": "move", "from": "/l", "path": "/l/0"}),
                "its own children",
            ),
            (json!({"op": "jump", "path": "/a"}), "Unexpected kind: jump"),
            (json!({"path": "/a"}), "operation is missing \"op\""),
        ] {
            let error = json(json!({"a": 1, "l": [0]}), &json!([operation])).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let doubling = vec![json!({"op": "copy", "from": "/l", "path": "/l/-"}); 40];
        let error = json(json!({"l": ["y".repeat(100)]}), &doubling.into()).unwrap_err();
        assert!(error.to_string().starts_with("Unable to copy"), "{error}");
        let nesting = vec![json!({"op": "copy", "from": "", "path": "/a"}); 200];
        let error = json(json!({"x": 1}), &nesting.into()).unwrap_err();
        assert!(error.to_string().ends_with("128 levels"), "{error}");
        let many = vec![json!({"op": "remove", "path": "/a"}); OPERATIONS_LIMIT + 1];
        let error = json(json!({}), &Value::Array(many)).unwrap_err();
        assert!(
            error.to_string().starts_with("The allowed maximum"),
            "{error}"
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i8>().prop_map(Value::from),
            "[a-c]".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-d]", inner), 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_merge_patch_twice_is_once(target in any_json(), patch in any_json()) {
            let once = merge(target, patch.clone());
            prop_assert_eq!(merge(once.clone(), patch), once);
        }

        #[test]
        fn a_strategic_patch_never_panics(patch in any_json()) {
            let _ = pod(json!({"spec": {"containers": patch.clone(), "$setElementOrder/containers": patch}}));
        }
    }
}
