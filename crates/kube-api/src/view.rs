//! Reading a document as Kubernetes' own types would hold it: what is missing, null or of another type is the zero value.

use crate::quantity::Quantity;
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// A field, or null.
pub(crate) fn get<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&NULL)
}

/// A field behind several steps, or null.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, name| get(value, name))
}

/// A string, or the empty one.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    get(value, name).as_str().unwrap_or_default()
}

/// A list, or the empty one.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    get(value, name).as_array().map_or(&[], Vec::as_slice)
}

/// The strings of a list.
pub(crate) fn words<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    list(value, name).iter().filter_map(Value::as_str).collect()
}

/// A map's or an object's entries; none when it is not there.
pub(crate) fn entries<'a>(
    value: &'a Value,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    get(value, name).as_object().into_iter().flatten()
}

/// An integer, when it is there.
pub(crate) fn number(value: &Value, name: &str) -> Option<i64> {
    get(value, name).as_i64()
}

/// An integer, or zero.
pub(crate) fn int(value: &Value, name: &str) -> i64 {
    number(value, name).unwrap_or_default()
}

/// A truth value, or false.
pub(crate) fn flag(value: &Value, name: &str) -> bool {
    get(value, name).as_bool().unwrap_or_default()
}

/// Whether a field is there and not null.
pub(crate) fn has(value: &Value, name: &str) -> bool {
    !get(value, name).is_null()
}

/// Whether it is there and is not the zero value of its JSON type.
pub(crate) fn is_set(value: &Value, name: &str) -> bool {
    !is_zero(get(value, name))
}

pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// A quantity of a resource list.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

/// The object at `name`, made when it is not there.
pub(crate) fn object_mut<'a>(
    object: &'a mut Map<String, Value>,
    name: &str,
) -> Option<&'a mut Map<String, Value>> {
    let value = object.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// Puts a value behind several steps, making objects on the way; what is no object stays as it is.
pub(crate) fn put(value: &mut Value, path: &[&str], new: Value) {
    let Some((name, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    if let Some(object) = value.as_object_mut() {
        put(object.entry(*name).or_insert(Value::Null), rest, new);
    }
}

/// Equal as Kubernetes compares: null, missing and empty are the same, quantities compare by their number where both are quantities.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let one = |a: &Map<String, Value>, b: &Map<String, Value>| {
                a.iter()
                    .all(|(name, value)| same(value, b.get(name).unwrap_or(&NULL)))
            };
            one(a, b) && one(b, a)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => {
            a == b
                || (empty(a) && empty(b))
                || (is_unit(a)
                    && is_unit(b)
                    && match (quantity(a), quantity(b)) {
                        (Some(a), Some(b)) => a == b,
                        _ => false,
                    })
        }
    }
}

/// What could be a quantity: a name that looks like a number is not compared as one, unless it has a unit's shape on both sides.
fn is_unit(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::String(text) => text.as_bytes().first().is_some_and(u8::is_ascii_digit),
        _ => false,
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(_) => false,
    }
}
