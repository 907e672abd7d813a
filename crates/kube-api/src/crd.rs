//! Custom resources: whether a definition may be stored, and what its schema does with objects: pruning, defaults, validation.
//!
//! openAPIV3Schema --[`Structural::new`]--> `prune`, `default`, `validate`, and [`Structural::types`] for server-side apply
//!
//! Spec: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions", structural schemas.

use crate::field::{Errors, Fault, FieldError, Path};
use crate::names;
use crate::schema::{Schema, UNKNOWN_LIMIT};
use crate::view::{at, entries, flag, get, has, list, number, text, words};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Levels of a schema; objects are as bounded as what they are decoded by.
pub const SCHEMA_DEPTH_LIMIT: usize = 60;
/// Bytes of one compiled `pattern`.
pub const PATTERN_LIMIT: usize = 1024 * 1024;
/// Values that the defaults of one object may add.
pub const DEFAULTS_LIMIT: usize = 100_000;

/// The schema of one version of a custom resource, ready for use.
#[derive(Debug, Clone)]
pub struct Structural {
    schema: Value,
    patterns: BTreeMap<String, Regex>,
    rules: crate::rules::Rules,
}

fn nullable(schema: &Value) -> bool {
    flag(schema, "nullable")
}

fn preserves(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-preserve-unknown-fields")
}

fn embedded(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
}

impl Structural {
    /// Takes a version's `schema.openAPIV3Schema` (null means that everything is allowed).
    ///
    /// # Errors
    /// What is wrong with a pattern or a rule; definitions that passed [`definition`] have none.
    pub fn new(schema: &Value) -> Result<Self, String> {
        let schema = if schema.is_null() {
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
        } else {
            schema.clone()
        };
        let mut patterns = BTreeMap::new();
        collect(&schema, 0, &mut patterns)?;
        let rules = crate::rules::Rules::new(&schema)?;
        Ok(Self {
            schema,
            patterns,
            rules,
        })
    }

    /// The types of an object for server-side apply.
    pub fn types(&self) -> Schema {
        Schema::custom(&self.schema)
    }

    /// Takes out of an object what its schema does not have. Gives the paths, as `spec.foo`, at most [`UNKNOWN_LIMIT`].
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut found = Vec::new();
        prune(&self.schema, object, true, "", &mut found);
        found
    }

    /// Fills in the defaults of the schema; a null where none is allowed counts as missing.
    pub fn default(&self, object: &mut Value) {
        let mut left = DEFAULTS_LIMIT;
        default(&self.schema, object, &mut left);
    }

    /// What is wrong with an object, in Kubernetes' words. `old` is the object that it replaces, for rules about changes.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Errors::default();
        self.check(&self.schema, object, old, "", &mut errors);
        duplicates(&self.schema, object, &Path::root(), &mut errors);
        // Rules may count on the types.
        if errors.0.is_empty() {
            self.rules.check(&self.schema, object, old, &mut errors);
        }
        errors.0
    }

    /// What did not change is not judged again: a schema may have become stricter than the objects that are stored.
    fn check(
        &self,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        errors: &mut Errors,
    ) {
        if old == Some(value) {
            return;
        }
        let place = place(path);
        if value.is_null() && nullable(schema) {
            return;
        }
        let found = kind_of(value);
        let wanted = text(schema, "type");
        let mixed = flag(schema, "x-kubernetes-int-or-string");
        let fits = match wanted {
            "" => !mixed || matches!(found, "integer" | "string"),
            "number" => matches!(found, "number" | "integer"),
            other => other == found,
        };
        if !fits {
            let wanted = if mixed { "integer,string" } else { wanted };
            let detail = format!("{path} in body must be of type {wanted}: {found:?}");
            errors.push(Fault::TypeInvalid, &place, json!(found), detail);
            return;
        }
        self.values(schema, value, path, errors);
        match value {
            Value::Object(object) => {
                for name in words(schema, "required") {
                    if !object.contains_key(name) {
                        errors.required(&self::place(&joined(path, name)), "");
                    }
                }
                let fields = get(schema, "properties");
                for (name, value) in object {
                    if path.is_empty()
                        && matches!(name.as_str(), "apiVersion" | "kind" | "metadata")
                    {
                        continue;
                    }
                    let field = match fields.get(name) {
                        Some(field) => field,
                        None => get(schema, "additionalProperties"),
                    };
                    if field.is_object() {
                        let old = old.and_then(|old| old.get(name));
                        self.check(field, value, old, &joined(path, name), errors);
                    }
                }
            }
            Value::Array(items) => {
                let item_schema = get(schema, "items");
                if item_schema.is_object() {
                    let known = OldItems::new(schema, old);
                    for (at, item) in items.iter().enumerate() {
                        let old = known.of(item);
                        self.check(item_schema, item, old, &format!("{path}[{at}]"), errors);
                    }
                }
            }
            _ => {}
        }
        self.junctors(schema, value, path, errors);
    }

    fn values(&self, schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
        let place = place(path);
        let mut say = |detail: String| {
            errors.invalid(&place, value.clone(), format!("{path} in body {detail}"));
        };
        match value {
            Value::Number(own) => {
                let own = own.as_f64().unwrap_or_default();
                if let Some(least) = get(schema, "minimum").as_f64() {
                    if flag(schema, "exclusiveMinimum") && own <= least {
                        say(format!("should be greater than {least}"));
                    } else if own < least {
                        say(format!("should be greater than or equal to {least}"));
                    }
                }
                if let Some(most) = get(schema, "maximum").as_f64() {
                    if flag(schema, "exclusiveMaximum") && own >= most {
                        say(format!("should be less than {most}"));
                    } else if own > most {
                        say(format!("should be less than or equal to {most}"));
                    }
                }
                if let Some(step) = get(schema, "multipleOf").as_f64()
                    && step > 0.0
                    && (own / step).fract() != 0.0
                {
                    say(format!("should be a multiple of {step}"));
                }
            }
            Value::String(own) => {
                let length = own.chars().count() as i64;
                if let Some(least) = number(schema, "minLength")
                    && length < least
                {
                    say(format!("should be at least {least} chars long"));
                }
                if let Some(pattern) = get(schema, "pattern").as_str()
                    && let Some(compiled) = self.patterns.get(pattern)
                    && !compiled.is_match(own)
                {
                    say(format!("should match '{pattern}'"));
                }
                let format = text(schema, "format");
                if !format_fits(format, own) {
                    say(format!(
                        "must be of type {format}: {}",
                        crate::field::quoted(own)
                    ));
                }
                if let Some(most) = number(schema, "maxLength")
                    && length > most
                {
                    errors.too_long(&place, most.max(0) as usize);
                }
            }
            Value::Array(items) => {
                if let Some(least) = number(schema, "minItems")
                    && (items.len() as i64) < least
                {
                    say(format!("should have at least {least} items"));
                }
                if let Some(most) = number(schema, "maxItems")
                    && items.len() as i64 > most
                {
                    errors.too_many(&place, items.len(), most.max(0) as usize);
                }
            }
            Value::Object(fields) => {
                if let Some(least) = number(schema, "minProperties")
                    && (fields.len() as i64) < least
                {
                    say(format!("should have at least {least} properties"));
                }
                if let Some(most) = number(schema, "maxProperties")
                    && fields.len() as i64 > most
                {
                    errors.too_many(&place, fields.len(), most.max(0) as usize);
                }
            }
            _ => {}
        }
        let allowed = list(schema, "enum");
        if !allowed.is_empty() && !allowed.contains(value) {
            let shown: Vec<String> = allowed
                .iter()
                .map(|value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                })
                .collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            errors.not_supported(&place, value.clone(), &shown);
        }
    }

    fn fits(&self, schema: &Value, value: &Value, path: &str) -> bool {
        let mut errors = Errors::default();
        self.check(schema, value, None, path, &mut errors);
        errors.0.is_empty()
    }

    fn junctors(&self, schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
        let root = Path::root();
        let named = crate::field::quoted(path);
        for inner in list(schema, "allOf") {
            self.check(inner, value, None, path, errors);
        }
        let any = list(schema, "anyOf");
        if !any.is_empty() && !any.iter().any(|inner| self.fits(inner, value, path)) {
            errors.invalid(
                &root,
                "",
                format!("{named} must validate at least one schema (anyOf)"),
            );
            if let Some(first) = any.first() {
                self.check(first, value, None, path, errors);
            }
        }
        let one = list(schema, "oneOf");
        if !one.is_empty() {
            let count = one
                .iter()
                .filter(|inner| self.fits(inner, value, path))
                .count();
            let found = match count {
                1 => None,
                0 => Some("Found none valid".to_owned()),
                more => Some(format!("Found {more} valid alternatives")),
            };
            if let Some(found) = found {
                errors.invalid(
                    &root,
                    "",
                    format!("{named} must validate one and only one schema (oneOf). {found}"),
                );
            }
        }
        let not = get(schema, "not");
        if not.is_object() && self.fits(not, value, path) {
            errors.invalid(
                &root,
                "",
                format!("{named} must not validate the schema (not)"),
            );
        }
    }
}

/// The items of a list that was there before, by their keys; other lists have no items that stay the same ones.
pub(crate) struct OldItems<'a> {
    keys: Vec<&'a str>,
    by_key: BTreeMap<String, &'a Value>,
}

impl<'a> OldItems<'a> {
    pub(crate) fn new(schema: &'a Value, old: Option<&'a Value>) -> Self {
        let mut items = Self {
            keys: words(schema, "x-kubernetes-list-map-keys"),
            by_key: BTreeMap::new(),
        };
        if text(schema, "x-kubernetes-list-type") == "map" {
            for item in old.and_then(Value::as_array).into_iter().flatten() {
                items.by_key.insert(items.key(item), item);
            }
        }
        items
    }

    fn key(&self, item: &Value) -> String {
        let values: Vec<&Value> = self.keys.iter().map(|key| get(item, key)).collect();
        json!(values).to_string()
    }

    pub(crate) fn of(&self, item: &Value) -> Option<&'a Value> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&self.key(item)).copied()
    }
}

fn place(path: &str) -> Path {
    if path.is_empty() {
        Path::root()
    } else {
        Path::new(path)
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) => {
            let whole = number.as_f64().is_some_and(|n| n.fract() == 0.0);
            if number.is_f64() && !whole {
                "number"
            } else {
                "integer"
            }
        }
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Formats that Kubernetes looks at and that are cheap to tell.
fn format_fits(format: &str, value: &str) -> bool {
    match format {
        "date-time" => crate::decode::is_time(value),
        "date" => value.len() == 10 && crate::decode::is_time(&format!("{value}T00:00:00Z")),
        "ipv4" => value.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => value.parse::<std::net::Ipv6Addr>().is_ok(),
        "byte" => crate::decode::is_base64(value),
        "uuid" => {
            let plain: String = value.chars().filter(|c| *c != '-').collect();
            plain.len() == 32 && plain.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "hostname" => {
            value.len() <= 253
                && !value.is_empty()
                && names::dns_subdomain(&value.to_lowercase()).is_empty()
        }
        _ => true,
    }
}

fn collect(
    schema: &Value,
    depth: usize,
    patterns: &mut BTreeMap<String, Regex>,
) -> Result<(), String> {
    if depth > SCHEMA_DEPTH_LIMIT {
        return Err(format!(
            "the schema is deeper than {SCHEMA_DEPTH_LIMIT} levels"
        ));
    }
    if let Some(pattern) = get(schema, "pattern").as_str()
        && !patterns.contains_key(pattern)
    {
        patterns.insert(pattern.to_owned(), compile(pattern)?);
    }
    children(schema, &mut |_, inner| collect(inner, depth + 1, patterns))
}

fn compile(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(pattern)
        .size_limit(PATTERN_LIMIT)
        .dfa_size_limit(PATTERN_LIMIT)
        .nest_limit(50)
        .build()
        .map_err(|error| {
            error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned()
        })
}

/// Calls for each schema directly below one, with the step to it.
fn children<E>(
    schema: &Value,
    visit: &mut dyn FnMut(&str, &Value) -> Result<(), E>,
) -> Result<(), E> {
    for word in ["items", "additionalProperties", "not"] {
        let inner = get(schema, word);
        if inner.is_object() {
            visit(word, inner)?;
        }
    }
    for (name, inner) in entries(schema, "properties") {
        visit(&format!("properties[{name}]"), inner)?;
    }
    for word in ["allOf", "anyOf", "oneOf"] {
        for (at, inner) in list(schema, word).iter().enumerate() {
            visit(&format!("{word}[{at}]"), inner)?;
        }
    }
    Ok(())
}

fn prune(schema: &Value, value: &mut Value, root: bool, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let is_resource = root || embedded(schema);
            let fields = get(schema, "properties");
            let others = get(schema, "additionalProperties");
            object.retain(|name, inner| {
                let here = joined(path, name);
                if is_resource && matches!(name.as_str(), "apiVersion" | "kind") {
                    return true;
                }
                if is_resource && name == "metadata" {
                    if let Some(meta) =
                        Schema::named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
                        && let Some(metadata) = inner.as_object_mut()
                    {
                        metadata.retain(|field, _| {
                            let known = meta.has_field(field);
                            if !known {
                                note(found, joined(&here, field));
                            }
                            known
                        });
                    }
                    return true;
                }
                let field = fields.get(name).or(others.is_object().then_some(others));
                if let Some(field) = field {
                    prune(field, inner, false, &here, found);
                    return true;
                }
                let kept = preserves(schema) || others == &Value::Bool(true);
                if !kept {
                    note(found, here);
                }
                kept
            });
        }
        Value::Array(items) => {
            let item_schema = get(schema, "items");
            if item_schema.is_object() {
                for (at, item) in items.iter_mut().enumerate() {
                    prune(item_schema, item, false, &format!("{path}[{at}]"), found);
                }
            }
        }
        _ => {}
    }
}

fn note(found: &mut Vec<String>, path: String) {
    if found.len() < UNKNOWN_LIMIT {
        found.push(path);
    }
}

fn default(schema: &Value, value: &mut Value, left: &mut usize) {
    match value {
        Value::Object(object) => {
            for (name, field) in entries(schema, "properties") {
                let preset = get(field, "default");
                let null = object.get(name).is_some_and(Value::is_null);
                if null && !nullable(field) && preset.is_null() {
                    object.shift_remove(name);
                } else if !preset.is_null()
                    && *left > 0
                    && (!object.contains_key(name) || (null && !nullable(field)))
                {
                    *left -= 1;
                    object.insert(name.clone(), preset.clone());
                }
                if let Some(inner) = object.get_mut(name) {
                    default(field, inner, left);
                }
            }
            let others = get(schema, "additionalProperties");
            if others.is_object() {
                let fields = get(schema, "properties");
                for (_, inner) in object
                    .iter_mut()
                    .filter(|(name, _)| fields.get(name.as_str()).is_none())
                {
                    default(others, inner, left);
                }
            }
        }
        Value::Array(items) => {
            let item_schema = get(schema, "items");
            if item_schema.is_object() {
                for item in items {
                    default(item_schema, item, left);
                }
            }
        }
        _ => {}
    }
}

/// Items of sets and of lists with keys stand once.
fn duplicates(schema: &Value, value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::Object(object) => {
            let fields = get(schema, "properties");
            for (name, inner) in object {
                let field = fields
                    .get(name)
                    .unwrap_or(get(schema, "additionalProperties"));
                if field.is_object() {
                    duplicates(field, inner, &path.child(name), errors);
                }
            }
        }
        Value::Array(items) => {
            let kind = text(schema, "x-kubernetes-list-type");
            let keys = words(schema, "x-kubernetes-list-map-keys");
            let mut seen = BTreeSet::new();
            for (at, item) in items.iter().enumerate() {
                let own = match kind {
                    "set" => item.clone(),
                    "map" => keys
                        .iter()
                        .filter_map(|key| {
                            item.get(key)
                                .map(|value| ((*key).to_owned(), value.clone()))
                        })
                        .collect::<Map<String, Value>>()
                        .into(),
                    _ => break,
                };
                if !seen.insert(own.to_string()) {
                    errors.duplicate(&path.index(at), own);
                }
            }
            let item_schema = get(schema, "items");
            if item_schema.is_object() {
                for (at, item) in items.iter().enumerate() {
                    duplicates(item_schema, item, &path.index(at), errors);
                }
            }
        }
        _ => {}
    }
}

/// What is wrong with a CustomResourceDefinition (with its defaults). `old` is the one that it replaces.
pub fn definition(crd: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, path) = (get(crd, "spec"), Path::new("spec"));
    let (group, plural) = (text(spec, "group"), text(get(spec, "names"), "plural"));
    let name = text(get(crd, "metadata"), "name");
    if name != format!("{plural}.{group}") {
        errors.invalid(
            &Path::new("metadata").child("name"),
            name,
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    let wrong = names::dns_subdomain(group);
    if group.is_empty() {
        errors.required(&path.child("group"), "");
    } else if !wrong.is_empty() {
        errors.invalid(&path.child("group"), group, wrong.join(","));
    } else if !group.contains('.') {
        errors.invalid(
            &path.child("group"),
            group,
            "should be a domain with at least one dot",
        );
    }
    let scope = text(spec, "scope");
    if scope.is_empty() {
        errors.required(&path.child("scope"), "");
    } else if !matches!(scope, "Cluster" | "Namespaced") {
        errors.not_supported(&path.child("scope"), scope, &["Cluster", "Namespaced"]);
    }
    if flag(spec, "preserveUnknownFields") {
        errors.invalid(
            &path.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    versions(spec, &path, &mut errors);
    definition_names(get(spec, "names"), &path.child("names"), &mut errors);
    conversion(
        get(spec, "conversion"),
        &path.child("conversion"),
        &mut errors,
    );
    if let Some(old) = old {
        let before = get(old, "spec");
        let used = !list(get(old, "status"), "storedVersions").is_empty();
        for field in ["group", "scope"] {
            if used || field == "group" {
                crate::validate::immutable(
                    get(spec, field),
                    get(before, field),
                    &path.child(field),
                    &mut errors,
                );
            }
        }
        if used {
            for field in ["kind", "plural"] {
                crate::validate::immutable(
                    at(spec, &["names", field]),
                    at(before, &["names", field]),
                    &path.child("names").child(field),
                    &mut errors,
                );
            }
        }
        let known: Vec<&str> = list(spec, "versions")
            .iter()
            .map(|v| text(v, "name"))
            .collect();
        for (at, stored) in words(get(crd, "status"), "storedVersions")
            .iter()
            .enumerate()
        {
            if !known.contains(stored) {
                errors.invalid(
                    &Path::new("status").child("storedVersions").index(at),
                    *stored,
                    format!("missing from spec.versions; {stored} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {stored} and removes {stored} from status.storedVersions"),
                );
            }
        }
    }
    errors.0
}

fn versions(spec: &Value, path: &Path, errors: &mut Errors) {
    let versions = list(spec, "versions");
    let here = path.child("versions");
    let mut seen = BTreeSet::new();
    let mut stored = 0;
    for (index, version) in versions.iter().enumerate() {
        let here = here.index(index);
        let name = text(version, "name");
        let wrong = names::dns1035_label(name);
        if !wrong.is_empty() {
            errors.invalid(&here.child("name"), name, wrong.join(","));
        }
        stored += usize::from(flag(version, "storage"));
        let unique = seen.insert(name);
        if !unique && seen.len() == index {
            errors.invalid(
                path,
                get(spec, "versions").clone(),
                "must contain unique version names",
            );
        }
        let schema = at_schema(version);
        let schema_path = here.child("schema").child("openAPIV3Schema");
        if schema.is_null() {
            errors.required(&schema_path, "schemas are required");
        } else {
            structural(schema, Level::Root, 0, &schema_path, errors);
            if let Err(why) = Structural::new(schema)
                && !errors.0.iter().any(|error| error.detail.contains(&why))
            {
                errors.invalid(&schema_path, "", why);
            }
        }
        columns(version, &here.child("additionalPrinterColumns"), errors);
        let scale = at(version, &["subresources", "scale"]);
        if !scale.is_null() {
            let here = here.child("subresources");
            for (field, roots, sentence) in [
                (
                    "specReplicasPath",
                    &[".spec."][..],
                    "should be a json path under .spec",
                ),
                (
                    "statusReplicasPath",
                    &[".status."],
                    "should be a json path under .status",
                ),
                (
                    "labelSelectorPath",
                    &[".spec.", ".status."],
                    "should be a json path under either .spec or .status",
                ),
            ] {
                let own = text(scale, field);
                let here = here.child(&format!("scale.{field}"));
                if own.is_empty() {
                    if field != "labelSelectorPath" {
                        errors.required(&here, "");
                    }
                } else if !roots.iter().any(|root| own.starts_with(root)) {
                    errors.invalid(&here, own, sentence);
                }
            }
        }
    }
    if stored != 1 {
        errors.invalid(
            &here,
            get(spec, "versions").clone(),
            "must have exactly one version marked as storage version",
        );
    }
}

fn at_schema(version: &Value) -> &Value {
    at(version, &["schema", "openAPIV3Schema"])
}

fn columns(version: &Value, path: &Path, errors: &mut Errors) {
    for (at, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
        let here = path.index(at);
        if text(column, "name").is_empty() {
            errors.required(&here.child("name"), "");
        }
        let kinds = ["boolean", "date", "integer", "number", "string"];
        let kind = text(column, "type");
        let detail = format!("must be one of {}", kinds.join(","));
        if kind.is_empty() {
            errors.required(&here.child("type"), &detail);
        } else if !kinds.contains(&kind) {
            errors.invalid(&here.child("type"), kind, detail);
        }
        let json_path = text(column, "jsonPath");
        if json_path.is_empty() {
            errors.required(&here.child("jsonPath"), "");
        } else if !json_path.starts_with('.') {
            errors.invalid(
                &here.child("jsonPath"),
                json_path,
                "must be a simple json path starting with .",
            );
        }
    }
}

fn definition_names(own: &Value, path: &Path, errors: &mut Errors) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = text(own, field);
        let here = path.child(field);
        if value.is_empty() {
            errors.required(&here, "");
            continue;
        }
        let mixed = field.to_lowercase().ends_with("kind");
        let wrong = names::dns1035_label(&if mixed {
            value.to_lowercase()
        } else {
            value.to_owned()
        });
        if !wrong.is_empty() {
            let before = if mixed {
                "may have mixed case, but should otherwise match: "
            } else {
                ""
            };
            errors.invalid(&here, value, format!("{before}{}", wrong.join(",")));
        }
    }
    for field in ["shortNames", "categories"] {
        for (at, value) in words(own, field).iter().enumerate() {
            let wrong = names::dns1035_label(value);
            if !wrong.is_empty() {
                errors.invalid(&path.child(field).index(at), *value, wrong.join(","));
            }
        }
    }
    let kind = text(own, "kind");
    if !kind.is_empty() && kind == text(own, "listKind") {
        errors.invalid(
            &path.child("listKind"),
            kind,
            "kind and listKind may not be the same",
        );
    }
}

fn conversion(own: &Value, path: &Path, errors: &mut Errors) {
    let strategy = text(own, "strategy");
    match strategy {
        "" | "None" => {
            if has(own, "webhook") {
                errors.forbidden(
                    &path.child("webhook"),
                    "should not be set when strategy is not set to Webhook",
                );
            }
        }
        "Webhook" => {
            let client = at(own, &["webhook", "clientConfig"]);
            let here = path.child("webhookClientConfig");
            if client.is_null() {
                errors.required(&here, "required when strategy is set to Webhook");
            } else {
                crate::validate::client_config(client, &here, errors);
            }
            let versions = words(get(own, "webhook"), "conversionReviewVersions");
            let here = path.child("conversionReviewVersions");
            if versions.is_empty() {
                errors.required(&here, "");
            } else if !versions.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
                errors.invalid(
                    &here,
                    json!(versions),
                    "must include at least one of v1, v1beta1",
                );
            }
        }
        other => errors.not_supported(&path.child("strategy"), other, &["None", "Webhook"]),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
    /// Below `allOf` and the like: only values may be restricted there.
    Nested,
}

fn is_int_or_string(inner: &[Value]) -> bool {
    inner == [json!({"type": "integer"}), json!({"type": "string"})]
}

fn structural(schema: &Value, level: Level, depth: usize, path: &Path, errors: &mut Errors) {
    if depth > SCHEMA_DEPTH_LIMIT {
        errors.invalid(
            path,
            "",
            format!("the schema is deeper than {SCHEMA_DEPTH_LIMIT} levels"),
        );
        return;
    }
    if !schema.is_object() {
        return;
    }
    let kind = text(schema, "type");
    let mixed = flag(schema, "x-kubernetes-int-or-string");
    let kinds = ["array", "boolean", "integer", "number", "object", "string"];
    if kind == "null" {
        errors.forbidden(
            &path.child("type"),
            "type cannot be set to null, use nullable as an alternative",
        );
    } else if !kind.is_empty() && !kinds.contains(&kind) {
        errors.not_supported(&path.child("type"), kind, &kinds);
    }
    for word in [
        "id",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
        "$ref",
    ] {
        if has(schema, word) {
            errors.forbidden(&path.child(word), format!("{word} is not supported"));
        }
    }
    if get(schema, "items").is_array() {
        errors.forbidden(
            &path.child("items"),
            "items must be a schema object and not an array",
        );
    }
    if flag(schema, "uniqueItems") {
        errors.forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    if has(schema, "properties") && get(schema, "additionalProperties").is_object() {
        errors.forbidden(
            &path.child("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    if let Some(pattern) = get(schema, "pattern").as_str()
        && let Err(why) = compile(pattern)
    {
        errors.invalid(
            &path.child("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {why}"),
        );
    }
    if level == Level::Nested {
        for (word, sentence) in [
            ("type", "must be empty to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("default", "must be undefined to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            ("nullable", "must be false to be structural"),
            (
                "x-kubernetes-preserve-unknown-fields",
                "must be false to be structural",
            ),
            (
                "x-kubernetes-embedded-resource",
                "must be false to be structural",
            ),
            (
                "x-kubernetes-int-or-string",
                "must be false to be structural",
            ),
            (
                "x-kubernetes-list-map-keys",
                "must be empty to be structural",
            ),
            (
                "x-kubernetes-list-type",
                "must be undefined to be structural",
            ),
            (
                "x-kubernetes-map-type",
                "must be undefined to be structural",
            ),
            ("x-kubernetes-validations", "must be empty to be structural"),
        ] {
            if !crate::view::is_zero(get(schema, word)) {
                errors.forbidden(&path.child(word), sentence);
            }
        }
    } else {
        generic(schema, level, kind, mixed, path, errors);
    }
    for (name, field) in entries(schema, "properties") {
        let here = path.child("properties").key(name);
        let inner = if level == Level::Nested {
            Level::Nested
        } else {
            Level::Field
        };
        if level == Level::Root && name == "metadata" {
            continue;
        }
        structural(field, inner, depth + 1, &here, errors);
    }
    for (word, inner) in [
        ("items", Level::Item),
        ("additionalProperties", Level::Field),
    ] {
        let inner = if level == Level::Nested {
            Level::Nested
        } else {
            inner
        };
        structural(
            get(schema, word),
            inner,
            depth + 1,
            &path.child(word),
            errors,
        );
    }
    for word in ["allOf", "anyOf", "oneOf"] {
        let all = list(schema, word);
        if word == "anyOf" && mixed && is_int_or_string(all) {
            continue;
        }
        for (at, inner) in all.iter().enumerate() {
            if word == "allOf" && at == 0 && mixed && is_int_or_string(list(inner, "anyOf")) {
                continue;
            }
            structural(
                inner,
                Level::Nested,
                depth + 1,
                &path.child(word).index(at),
                errors,
            );
            complete(schema, inner, &path.child(word).index(at), errors);
        }
    }
    let not = get(schema, "not");
    structural(not, Level::Nested, depth + 1, &path.child("not"), errors);
    complete(schema, not, &path.child("not"), errors);
}

/// What a junctor restricts must be known outside of it.
fn complete(schema: &Value, nested: &Value, path: &Path, errors: &mut Errors) {
    for (name, inner) in entries(nested, "properties") {
        let here = path.child("properties").key(name);
        match get(schema, "properties").get(name) {
            Some(outer) => complete(outer, inner, &here, errors),
            None if get(schema, "additionalProperties").is_object() => {}
            None => {
                // The same place outside of the junctor.
                let outside = path.to_string();
                let outside = outside
                    .rsplit_once(".allOf")
                    .or_else(|| outside.rsplit_once(".anyOf"))
                    .or_else(|| outside.rsplit_once(".oneOf"))
                    .or_else(|| outside.rsplit_once(".not"))
                    .map_or(outside.as_str(), |(before, _)| before);
                errors.required(
                    &Path::new(outside).child("properties").key(name),
                    &format!("because it is defined in {here}"),
                );
            }
        }
    }
}

fn generic(
    schema: &Value,
    level: Level,
    kind: &str,
    mixed: bool,
    path: &Path,
    errors: &mut Errors,
) {
    let kind_path = path.child("type");
    if kind.is_empty() && !mixed && !preserves(schema) {
        let sentence = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            _ => "must not be empty for specified object fields",
        };
        errors.required(&kind_path, sentence);
    }
    if level == Level::Root {
        if !kind.is_empty() && kind != "object" {
            errors.invalid(&kind_path, kind, "must be object at the root");
        }
        if has(schema, "additionalProperties") {
            errors.forbidden(
                &path.child("additionalProperties"),
                "must not be used at the root",
            );
        }
        if nullable(schema) {
            errors.forbidden(
                &path.child("nullable"),
                "nullable cannot be true at the root",
            );
        }
        let metadata = at(schema, &["properties", "metadata"]);
        let plain = metadata.as_object().is_none_or(|metadata| {
            metadata.iter().all(|(word, value)| match word.as_str() {
                "type" | "description" => true,
                "properties" => value.as_object().is_some_and(|fields| {
                    fields
                        .keys()
                        .all(|name| matches!(name.as_str(), "name" | "generateName"))
                }),
                _ => false,
            })
        });
        if !plain {
            errors.forbidden(
                &path.child("properties").key("metadata"),
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }
    if kind == "array" && !has(schema, "items") {
        errors.required(&path.child("items"), "must be specified");
    }
    if mixed && preserves(schema) {
        errors.invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            true,
            "must be false if x-kubernetes-int-or-string is true",
        );
    }
    if get(schema, "x-kubernetes-preserve-unknown-fields") == &Value::Bool(false) {
        errors.invalid(
            &path.child("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        );
    }
    if embedded(schema) {
        if kind != "object" {
            errors.invalid(
                &kind_path,
                kind,
                "must be object if x-kubernetes-embedded-resource is true",
            );
        }
        if !preserves(schema) && !has(schema, "properties") {
            errors.required(
                &path.child("properties"),
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            );
        }
    }
    list_rules(schema, kind, path, errors);
    let preset = get(schema, "default");
    if !preset.is_null()
        && let Ok(own) = Structural::new(schema)
    {
        let mut pruned = preset.clone();
        let unknown = if pruned.is_object() {
            own.prune_value(&mut pruned)
        } else {
            Vec::new()
        };
        if !unknown.is_empty() {
            errors.invalid(
                &path.child("default"),
                preset.clone(),
                "must not have unknown fields",
            );
        }
        let mut inner = Errors::default();
        own.check(&own.schema, preset, None, "default", &mut inner);
        for error in inner.0 {
            errors.invalid(&path.child("default"), preset.clone(), error.detail);
        }
    }
}

impl Structural {
    fn prune_value(&self, value: &mut Value) -> Vec<String> {
        let mut found = Vec::new();
        prune(&self.schema, value, false, "", &mut found);
        found
    }
}

fn list_rules(schema: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let list_type = get(schema, "x-kubernetes-list-type").as_str();
    let keys = words(schema, "x-kubernetes-list-map-keys");
    let here = path.child("x-kubernetes-list-type");
    if let Some(list_type) = list_type {
        if kind != "array" {
            errors.invalid(
                &path.child("type"),
                kind,
                "must be array if x-kubernetes-list-type is specified",
            );
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            errors.not_supported(&here, list_type, &["atomic", "set", "map"]);
        }
    }
    if !keys.is_empty() && list_type != Some("map") {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.required(&here, detail),
            Some(other) => errors.invalid(&here, other, detail),
        }
    }
    if list_type == Some("map") {
        let keys_path = path.child("x-kubernetes-list-map-keys");
        if keys.is_empty() {
            errors.required(
                &keys_path,
                "must not be empty if x-kubernetes-list-type is map",
            );
        }
        let items = get(schema, "items");
        if items.is_object() && text(items, "type") != "object" {
            errors.invalid(
                &path.child("items").child("type"),
                text(items, "type"),
                "must be object if parent array's x-kubernetes-list-type is map",
            );
        }
        for key in &keys {
            let Some(field) = get(items, "properties").get(key) else {
                errors.invalid(
                    &keys_path,
                    json!(keys),
                    "entries must all be names of item properties",
                );
                continue;
            };
            if matches!(text(field, "type"), "array" | "object") {
                errors.invalid(
                    &path
                        .child("items")
                        .child("properties")
                        .key(key)
                        .child("type"),
                    text(items, "type"),
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                );
            }
            if !has(field, "default") && !words(items, "required").contains(key) {
                errors.required(
                    &path.child("items").child("properties").key(key).child("default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                );
            }
        }
    }
    if let Some(map_type) = get(schema, "x-kubernetes-map-type").as_str() {
        if kind != "object" {
            errors.invalid(
                &path.child("type"),
                kind,
                "must be object if x-kubernetes-map-type is specified",
            );
        }
        if !matches!(map_type, "atomic" | "granular") {
            errors.not_supported(
                &path.child("x-kubernetes-map-type"),
                map_type,
                &["atomic", "granular"],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn widget(schema: Value) -> Value {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced",
                "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
    }

    fn said(schema: Value) -> Vec<String> {
        lines(&definition(&widget(schema), None))
    }

    #[test]
    fn good_schemas_are_taken() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "properties": {"metadata": {"type": "object"}, "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1, "default": 2}, "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "any": {"x-kubernetes-preserve-unknown-fields": true},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}},
                "oneOf": [{"required": ["size"]}, {"required": ["port"]}], "x-kubernetes-validations": [{"rule": "self.size > 0"}]}}}),
        ] {
            assert_eq!(said(schema), Vec::<String>::new());
        }
    }

    #[test]
    fn bad_schemas_are_refused_in_kubernetes_words() {
        let at = "spec.versions[0].schema.openAPIV3Schema";
        for (schema, sentences) in [
            (
                Value::Null,
                vec![format!("{at}: Required value: schemas are required")],
            ),
            (
                json!({}),
                vec![format!(
                    "{at}.type: Required value: must not be empty at the root"
                )],
            ),
            (
                json!({"type": "string"}),
                vec![format!(
                    "{at}.type: Invalid value: \"string\": must be object at the root"
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                vec![format!(
                    "{at}.properties[a].type: Required value: must not be empty for specified object fields"
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                vec![format!(
                    "{at}.properties[a].items: Required value: must be specified"
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "text"}}}),
                vec![format!(
                    "{at}.properties[a].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "$ref": "x"}}}),
                vec![format!(
                    "{at}.properties[a].$ref: Forbidden: $ref is not supported"
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}}}),
                vec![format!(
                    "{at}.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
                )],
            ),
            (
                json!({"type": "object", "anyOf": [{"type": "object"}]}),
                vec![format!(
                    "{at}.anyOf[0].type: Forbidden: must be empty to be structural"
                )],
            ),
            (
                json!({"type": "object", "not": {"properties": {"a": {"minimum": 1}}}}),
                vec![format!(
                    "{at}.properties[a]: Required value: because it is defined in {at}.not.properties[a]"
                )],
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
                vec![format!(
                    "{at}.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
                vec![format!(
                    "{at}.properties[a].default: Invalid value: \"x\": default in body must be of type integer: \"string\""
                )],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}}}),
                vec![format!(
                    "{at}.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"
                )],
            ),
        ] {
            assert_eq!(said(schema.clone()), sentences, "{schema}");
        }
        let pattern = said(
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
        );
        assert!(pattern[0].starts_with(&format!("{at}.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: ")), "{pattern:?}");
        assert_eq!(pattern.len(), 1);
        let rule = said(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self."}]}));
        assert!(rule[0].contains("compilation failed"), "{rule:?}");
        let mut deep = json!({"type": "object"});
        for _ in 0..100 {
            deep = json!({"type": "object", "properties": {"a": deep}});
        }
        assert!(!said(deep).is_empty());
    }

    #[test]
    fn bad_definitions_are_refused() {
        let mut crd = widget(json!({"type": "object"}));
        crd["metadata"]["name"] = json!("other");
        crd["spec"]["group"] = json!("example");
        crd["spec"]["scope"] = json!("World");
        crd["spec"]["versions"][0]["storage"] = json!(false);
        crd["spec"]["names"]["listKind"] = json!("Widget");
        let found = lines(&definition(&crd, None));
        assert_eq!(
            found[0],
            "metadata.name: Invalid value: \"other\": must be spec.names.plural+\".\"+spec.group"
        );
        assert_eq!(
            found[1],
            "spec.group: Invalid value: \"example\": should be a domain with at least one dot"
        );
        assert_eq!(
            found[2],
            "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\""
        );
        assert!(
            found[3].ends_with("must have exactly one version marked as storage version"),
            "{}",
            found[3]
        );
        assert_eq!(
            found[4],
            "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same"
        );
    }

    #[test]
    fn objects_are_pruned_and_get_defaults() {
        let own = Structural::new(&json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
            "size": {"type": "integer", "default": 3}, "name": {"type": "string"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}}}}}})).unwrap();
        let mut object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a", "bogus": 1}, "other": 1,
            "spec": {"name": null, "extra": 1, "free": {"any": [1]}, "map": {"k": {"b": 2}}}});
        assert_eq!(
            own.prune(&mut object),
            ["metadata.bogus", "other", "spec.extra", "spec.map.k.b"]
        );
        own.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({"free": {"any": [1]}, "map": {"k": {"a": "x"}}, "size": 3})
        );
        let mut empty = json!({"metadata": {"name": "a"}});
        own.default(&mut empty);
        assert_eq!(empty["spec"], json!({"size": 3}));
    }

    #[test]
    fn objects_are_checked_in_kubernetes_words() {
        let own = Structural::new(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["size"],
            "properties": {"size": {"type": "integer", "minimum": 1, "maximum": 5}, "name": {"type": "string", "pattern": "^a+$", "maxLength": 3, "minLength": 1},
                "color": {"type": "string", "enum": ["red", "blue"]}, "tags": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "port": {"x-kubernetes-int-or-string": true}, "at": {"type": "string", "format": "date-time"}}}}})).unwrap();
        for (spec, sentences) in [
            (json!({"size": 1, "port": "x"}), vec![]),
            (json!({}), vec!["spec.size: Required value"]),
            (
                json!({"size": 0}),
                vec![
                    "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
                ],
            ),
            (
                json!({"size": 6}),
                vec![
                    "spec.size: Invalid value: 6: spec.size in body should be less than or equal to 5",
                ],
            ),
            (
                json!({"size": "1"}),
                vec![
                    "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
                ],
            ),
            (
                json!({"size": null}),
                vec![
                    "spec.size: Invalid value: \"null\": spec.size in body must be of type integer: \"null\"",
                ],
            ),
            (
                json!({"size": 1, "name": "bbbb"}),
                vec![
                    "spec.name: Invalid value: \"bbbb\": spec.name in body should match '^a+$'",
                    "spec.name: Too long: may not be more than 3 bytes",
                ],
            ),
            (
                json!({"size": 1, "name": ""}),
                vec![
                    "spec.name: Invalid value: \"\": spec.name in body should be at least 1 chars long",
                    "spec.name: Invalid value: \"\": spec.name in body should match '^a+$'",
                ],
            ),
            (
                json!({"size": 1, "color": "green"}),
                vec![
                    "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
                ],
            ),
            (
                json!({"size": 1, "tags": ["a", "a"]}),
                vec!["spec.tags[1]: Duplicate value: \"a\""],
            ),
            (
                json!({"size": 1, "tags": ["a", "b", "c"]}),
                vec!["spec.tags: Too many: 3: must have at most 2 items"],
            ),
            (
                json!({"size": 1, "port": true}),
                vec![
                    "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                ],
            ),
            (
                json!({"size": 1, "at": "soon"}),
                vec![
                    "spec.at: Invalid value: \"soon\": spec.at in body must be of type date-time: \"soon\"",
                ],
            ),
        ] {
            let found = lines(&own.validate(&json!({"spec": spec}), None));
            assert_eq!(found, sentences, "{spec}");
        }
        assert_eq!(
            lines(&own.validate(&json!({}), None)),
            ["spec: Required value"]
        );
    }

    #[test]
    fn custom_objects_are_applied_by_their_keys() {
        let own = Structural::new(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}}}}}})).unwrap();
        let types = own.types();
        let request = |manager| crate::apply::Request {
            manager,
            subresource: "",
            api_version: "example.com/v1",
            time: "2026-01-01T00:00:00Z",
            has_status: false,
        };
        let widget = |name: &str, n: i64| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"parts": [{"name": name, "n": n}]}});
        let live = crate::apply::apply(&types, &Value::Null, &widget("a", 1), &request("x"), false)
            .unwrap();
        let live =
            crate::apply::apply(&types, &live, &widget("b", 2), &request("y"), false).unwrap();
        assert_eq!(
            live["spec"]["parts"],
            json!([{"name": "a", "n": 1}, {"name": "b", "n": 2}])
        );
        let refused =
            crate::apply::apply(&types, &live, &widget("a", 3), &request("y"), false).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Apply failed with 1 conflict: conflict with \"x\": .spec.parts[name=\"a\"].n"
        );
    }
}
