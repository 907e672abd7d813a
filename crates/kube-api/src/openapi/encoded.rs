//! The document of OpenAPI version 2 in the protobuf form that Go clients ask for
//! (`application/com.github.proto-openapi.spec.v2@v1.0+protobuf`). The answer must call itself [`MEDIA_TYPE`]: clients cannot
//! parse the name that they ask with.
//!
//! Spec: gnostic, `openapi.v2.Document`. Numbers of fields are those of its definition; extensions are YAML, which JSON is.

use crate::view::{entries, flag, get, list, text, words};
use serde_json::Value;

/// The media type of the encoded document.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Encodes what [`crate::openapi::v2`] made.
pub fn protobuf(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, text(document, "swagger"));
    let info = get(document, "info");
    let mut inner = Message::default();
    inner.text(1, text(info, "title"));
    inner.text(2, text(info, "version"));
    out.message(2, inner);
    let mut paths = Message::default();
    for (name, item) in entries(document, "paths") {
        paths.message(2, named(name, path_item(item)));
    }
    out.message(8, paths);
    let mut definitions = Message::default();
    for (name, schema) in entries(document, "definitions") {
        definitions.message(1, named(name, self::schema(schema)));
    }
    out.message(9, definitions);
    out.0
}

/// A message under way.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, texts: &[&str]) {
        for text in texts {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, flag: bool) {
        if flag {
            self.number(field << 3);
            self.number(1);
        }
    }

    fn message(&mut self, field: u64, message: Self) {
        self.bytes(field, &message.0);
    }

    /// The extensions of an object, each by its name.
    fn extensions(&mut self, field: u64, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                let mut any = Self::default();
                any.text(2, &value.to_string());
                self.message(field, named(name, any));
            }
        }
    }
}

fn named(name: &str, value: Message) -> Message {
    let mut out = Message::default();
    out.text(1, name);
    out.message(2, value);
    out
}

fn schema(own: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, text(own, "$ref"));
    out.text(2, text(own, "format"));
    out.text(4, text(own, "description"));
    out.texts(19, &words(own, "required"));
    let values = get(own, "additionalProperties");
    if values.is_object() {
        let mut item = Message::default();
        item.message(1, schema(values));
        out.message(21, item);
    }
    let kind = text(own, "type");
    if !kind.is_empty() {
        let mut item = Message::default();
        item.text(1, kind);
        out.message(22, item);
    }
    let items = get(own, "items");
    if items.is_object() {
        let mut item = Message::default();
        item.message(1, schema(items));
        out.message(23, item);
    }
    if get(own, "properties").is_object() {
        let mut properties = Message::default();
        for (name, field) in entries(own, "properties") {
            properties.message(1, named(name, schema(field)));
        }
        out.message(25, properties);
    }
    out.extensions(31, own);
    out
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (field, verb) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        let own = get(item, verb);
        if own.is_object() {
            out.message(field, operation(own));
        }
    }
    for own in list(item, "parameters") {
        out.message(9, parameter(own));
    }
    out
}

fn operation(own: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &words(own, "tags"));
    out.text(3, text(own, "description"));
    out.text(5, text(own, "operationId"));
    out.texts(6, &words(own, "produces"));
    out.texts(7, &words(own, "consumes"));
    for own in list(own, "parameters") {
        out.message(8, parameter(own));
    }
    let mut responses = Message::default();
    for (code, response) in entries(own, "responses") {
        let mut inner = Message::default();
        inner.text(1, text(response, "description"));
        let own = get(response, "schema");
        if own.is_object() {
            let mut item = Message::default();
            item.message(1, schema(own));
            inner.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, inner);
        responses.message(1, named(code, value));
    }
    out.message(9, responses);
    out.texts(10, &words(own, "schemes"));
    out.extensions(13, own);
    out
}

fn parameter(own: &Value) -> Message {
    let place = text(own, "in");
    let mut inner = Message::default();
    let mut one = Message::default();
    if place == "body" {
        inner.text(1, text(own, "description"));
        inner.text(2, text(own, "name"));
        inner.text(3, place);
        inner.flag(4, flag(own, "required"));
        inner.message(5, schema(get(own, "schema")));
        one.message(1, inner);
    } else {
        inner.flag(1, flag(own, "required"));
        inner.text(2, place);
        inner.text(3, text(own, "description"));
        inner.text(4, text(own, "name"));
        // Only a query parameter has a field before its type.
        let (kind, unique, which) = if place == "query" {
            (6, 20, 3)
        } else {
            (5, 19, 4)
        };
        inner.text(kind, text(own, "type"));
        inner.flag(unique, flag(own, "uniqueItems"));
        let mut other = Message::default();
        other.message(which, inner);
        one.message(2, other);
    }
    let mut item = Message::default();
    item.message(1, one);
    item
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields of a message: number and bytes; what is not length-delimited is skipped.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
        let mut found = Vec::new();
        let number = |bytes: &mut &[u8]| {
            let (mut value, mut shift) = (0_u64, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        };
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let value = number(&mut bytes);
            if key & 7 == 2 {
                let (own, rest) = bytes.split_at(value as usize);
                found.push((key >> 3, own));
                bytes = rest;
            }
        }
        found
    }

    fn only(bytes: &[u8], wanted: u64) -> &[u8] {
        fields(bytes)
            .into_iter()
            .find(|(field, _)| *field == wanted)
            .unwrap()
            .1
    }

    #[test]
    fn the_document_is_encoded() {
        let document = json!({"swagger": "2.0", "info": {"title": "t", "version": "v"},
            "paths": {"/a": {"get": {"operationId": "readA", "x-kubernetes-action": "get", "responses": {"200": {"description": "OK"}},
                "parameters": [{"name": "limit", "in": "query", "type": "integer"}]}}},
            "definitions": {"io.A": {"type": "object", "description": "An A.", "properties": {"b": {"type": "array", "items": {"$ref": "#/definitions/io.B"}}},
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "A", "version": "v1"}]}}});
        let bytes = protobuf(&document);
        assert_eq!(only(&bytes, 1), b"2.0");
        let named = only(only(&bytes, 9), 1);
        assert_eq!(only(named, 1), b"io.A");
        let schema = only(named, 2);
        assert_eq!(only(schema, 4), b"An A.");
        assert_eq!(only(only(schema, 22), 1), b"object");
        let field = only(only(schema, 25), 1);
        assert_eq!(only(field, 1), b"b");
        assert_eq!(
            only(only(only(only(field, 2), 23), 1), 1),
            b"#/definitions/io.B"
        );
        let extension = only(schema, 31);
        assert_eq!(only(extension, 1), b"x-kubernetes-group-version-kind");
        assert_eq!(
            only(only(extension, 2), 2),
            br#"[{"group":"","kind":"A","version":"v1"}]"#
        );
        let path = only(only(&bytes, 8), 2);
        assert_eq!(only(path, 1), b"/a");
        let get = only(only(path, 2), 2);
        assert_eq!(only(get, 5), b"readA");
        let query = only(only(only(only(get, 8), 1), 2), 3);
        assert_eq!(only(query, 4), b"limit");
        assert_eq!(only(query, 6), b"integer");
    }

    #[test]
    fn the_whole_document_is_encoded() {
        let bytes = protobuf(&crate::openapi::v2(&[]));
        assert!(fields(only(&bytes, 9)).len() > 300);
    }
}
