//! Sets of fields, as `metadata.managedFields` holds them (FieldsV1).
//!
//! A step is written as FieldsV1 writes it: `f:name` a field, `k:{"name":"a"}` an item of a list by its keys, `v:"a"` an item of
//! a set by its value, `i:0` an item by its index. A set knows which paths are in it; a path may be in it without its parent.
//!
//! Spec: Kubernetes, "Server-Side Apply"; FieldsV1 in the API reference.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Steps of one path in a set that a client sends; what is deeper is not read.
pub const DEPTH_LIMIT: usize = 128;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    own: bool,
    inner: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Reads FieldsV1.
    ///
    /// # Errors
    /// What is wrong with it, as one sentence.
    pub fn read(fields: &Value) -> Result<Self, String> {
        Self::read_at(fields, 0)
    }

    fn read_at(fields: &Value, depth: usize) -> Result<Self, String> {
        let Some(object) = fields.as_object() else {
            return Err("fieldsV1 must be an object".to_owned());
        };
        if depth > DEPTH_LIMIT {
            return Err(format!("fieldsV1 is deeper than {DEPTH_LIMIT} steps"));
        }
        let mut set = Self::default();
        for (step, fields) in object {
            if step == "." {
                set.own = true;
                continue;
            }
            let mut inner = Self::read_at(fields, depth + 1)?;
            inner.own |= inner.inner.is_empty();
            set.inner.insert(canonical(step)?, inner);
        }
        Ok(set)
    }

    /// Writes FieldsV1.
    pub fn write(&self) -> Value {
        let mut object = Map::new();
        if self.own && !self.inner.is_empty() {
            object.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, inner) in &self.inner {
            object.insert(step.clone(), inner.write());
        }
        Value::Object(object)
    }

    /// Puts a path in; the empty one is the document itself and is never a member.
    pub fn insert(&mut self, path: &[String]) {
        let mut at = self;
        for step in path {
            at = at.inner.entry(step.clone()).or_default();
        }
        at.own |= !path.is_empty();
    }

    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        !self.own && self.inner.values().all(Self::is_empty)
    }

    /// Whether the set's own root is a member: meaningful for what [`FieldSet::step`] gives.
    pub fn is_member(&self) -> bool {
        self.own
    }

    /// Whether a path is a member.
    pub fn has(&self, path: &[String]) -> bool {
        let mut at = self;
        for step in path {
            let Some(inner) = at.inner.get(step) else {
                return false;
            };
            at = inner;
        }
        at.own
    }

    /// What lies behind a step.
    pub fn step(&self, step: &str) -> Option<&Self> {
        self.inner.get(step)
    }

    /// Paths in this set or in the other.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.own |= other.own;
        for (step, theirs) in &other.inner {
            let mine = self.inner.remove(step).unwrap_or_default();
            self.inner.insert(step.clone(), mine.union(theirs));
        }
        self
    }

    /// Paths in this set and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut set = Self {
            own: self.own && !other.own,
            inner: BTreeMap::new(),
        };
        for (step, mine) in &self.inner {
            let left = match other.inner.get(step) {
                Some(theirs) => mine.minus(theirs),
                None => mine.clone(),
            };
            if !left.is_empty() {
                set.inner.insert(step.clone(), left);
            }
        }
        set
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut set = Self {
            own: self.own && other.own,
            inner: BTreeMap::new(),
        };
        for (step, mine) in &self.inner {
            if let Some(theirs) = other.inner.get(step) {
                let both = mine.intersection(theirs);
                if !both.is_empty() {
                    set.inner.insert(step.clone(), both);
                }
            }
        }
        set
    }

    /// This set without everything at and below a step.
    pub fn cut(&mut self, path: &[&str]) {
        let Some((last, path)) = path.split_last() else {
            return;
        };
        let mut at = self;
        for step in path {
            let Some(inner) = at.inner.get_mut(*step) else {
                return;
            };
            at = inner;
        }
        at.inner.remove(*last);
    }

    /// All member paths, each as its steps.
    pub fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        if self.own {
            found.push(path.clone());
        }
        for (step, inner) in &self.inner {
            path.push(step.clone());
            inner.collect(path, found);
            path.pop();
        }
    }
}

/// A step as we write it: the keys of an item in order.
fn canonical(step: &str) -> Result<String, String> {
    let wrong = || format!("{step:?} is no field path element");
    match step.split_once(':') {
        Some(("f", _)) => Ok(step.to_owned()),
        Some(("i", index)) if index.parse::<u64>().is_ok() => Ok(step.to_owned()),
        Some(("v", text)) => {
            let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
            Ok(format!("v:{value}"))
        }
        Some(("k", text)) => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| wrong())?;
            Ok(key_step(&keys))
        }
        _ => Err(wrong()),
    }
}

/// The step of a list item with these keys.
pub(crate) fn key_step(keys: &BTreeMap<String, Value>) -> String {
    format!(
        "k:{}",
        serde_json::to_string(keys).expect("a map of strings is JSON")
    )
}

/// A path as conflicts show it: `.spec.containers[name="a"].image`.
pub fn shown(path: &[String]) -> String {
    let scalar = |value: &Value| match value {
        Value::String(text) => crate::field::quoted(text),
        other => other.to_string(),
    };
    let mut text = String::new();
    for step in path {
        match step.split_once(':') {
            Some(("f", name)) => {
                text.push('.');
                text.push_str(name);
            }
            Some(("k", keys)) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(key, value)| format!("{key}={}", scalar(value)))
                    .collect();
                text.push_str(&format!("[{}]", keys.join(",")));
            }
            Some(("v", value)) => {
                let value: Value = serde_json::from_str(value).unwrap_or_default();
                text.push_str(&format!("[={}]", scalar(&value)));
            }
            Some((_, index)) => text.push_str(&format!("[{index}]")),
            None => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_are_read_and_written() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}, "f:finalizers": {"v:\"a/b\"": {}}}});
        let set = FieldSet::read(&fields).unwrap();
        assert_eq!(set.write(), fields);
        let shown: Vec<String> = set.paths().iter().map(|path| shown(path)).collect();
        assert_eq!(
            shown,
            [
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.finalizers[=\"a/b\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].containerPort",
            ]
        );
        // Keys in another order are the same item.
        let other =
            json!({"f:spec": {"f:ports": {"k:{\"protocol\":\"TCP\",\"containerPort\":80}": {}}}});
        let both = set.intersection(&FieldSet::read(&other).unwrap());
        assert_eq!(both.paths().len(), 1);
    }

    #[test]
    fn sets_that_are_none_are_refused() {
        for fields in [
            json!([]),
            json!({"x": {}}),
            json!({"k:{": {}}),
            json!({"f:a": 1}),
            json!({"i:a": {}}),
        ] {
            assert!(FieldSet::read(&fields).is_err(), "{fields}");
        }
        let mut deep = json!({});
        for _ in 0..DEPTH_LIMIT + 2 {
            deep = json!({"f:a": deep});
        }
        assert!(FieldSet::read(&deep).is_err());
    }

    #[test]
    fn sets_are_sets() {
        let set = |fields: Value| FieldSet::read(&fields).unwrap();
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {"f:b": {}}, "f:d": {}}));
        assert_eq!(a.minus(&b), set(json!({"f:a": {}, "f:c": {}})));
        assert_eq!(
            a.clone().union(&b),
            set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}}))
        );
        assert!(a.minus(&a).is_empty());
        let mut cut = a.clone();
        cut.cut(&["f:a"]);
        assert_eq!(cut, set(json!({"f:c": {}})));
    }
}
