//! Server-side apply: who manages which field, merging what a manager wants, conflicts, and removing what it no longer wants.
//!
//! live + configuration + managers --[`apply`]--> object with new managers, or conflicts
//! live + changed object           --[`update`]--> object with new managers
//!
//! Both walk a [`Schema`]: a built-in type or one made from a custom resource's schema. Managers whose fields were recorded in
//! another version of the same kind are compared as they are, without conversion.
//!
//! Spec: Kubernetes, "Server-Side Apply".

use crate::fieldset::{FieldSet, key_step, shown};
use crate::schema::Schema;
use crate::view::{at, get, list, text};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Managers by update that are kept apart; the oldest become `ancient-changes`.
pub const UPDATE_MANAGERS_LIMIT: usize = 10;
/// Entries of `managedFields` that are read from an object.
pub const ENTRIES_LIMIT: usize = 1000;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes of annotations; kubectl's annotation is left out when it would not fit.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// Who asks, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The field manager: query parameter `fieldManager`, or the first part of the user agent.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// The version of the object that is sent: `apps/v1`.
    pub api_version: &'a str,
    /// Now, in RFC 3339 with whole seconds: `2026-01-02T03:04:05Z`.
    pub time: &'a str,
    /// Whether the kind has a `status` of its own, so that the object itself never owns fields in it.
    pub has_status: bool,
}

/// One field that another manager holds with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// As sentences name it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`.
    pub field: String,
}

/// Why a configuration was not applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The configuration is not one that can be applied: 400.
    Bad(String),
    /// It does not fit the type: 500 with this sentence, as in Kubernetes.
    Untyped(String),
    /// Others manage these fields: 409.
    Conflicts(Vec<Conflict>),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bad(text) | Self::Untyped(text) => f.write_str(text),
            Self::Conflicts(conflicts) => f.write_str(&conflict_message(conflicts)),
        }
    }
}

impl std::error::Error for Refused {}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        let fields = by_manager.entry(&conflict.manager).or_default();
        fields.push(&conflict.field);
    }
    let mut lines = Vec::new();
    for (manager, fields) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(fields.iter().map(|field| format!("- {field}")));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

impl Refused {
    /// The `Status` that answers the request.
    pub fn status(&self) -> Value {
        let (code, reason) = match self {
            Self::Bad(_) => (400, "BadRequest"),
            Self::Untyped(_) => (500, ""),
            Self::Conflicts(_) => (409, "Conflict"),
        };
        let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code});
        if let Self::Conflicts(conflicts) = self {
            let causes: Vec<Value> = conflicts
                .iter()
                .map(|c| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {}", c.manager), "field": c.field}))
                .collect();
            status["details"] = json!({"causes": causes});
        }
        if let Some(object) = status.as_object_mut()
            && reason.is_empty()
        {
            object.shift_remove("reason");
        }
        status
    }
}

/// Who manages fields: the name in its way of managing. The order is that of `managedFields`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    /// `Apply` before `Update`.
    operation: &'static str,
    manager: String,
    /// Empty for `Apply`: an applier stays one manager in all versions.
    api_version: String,
    subresource: String,
}

#[derive(Debug, Clone)]
struct Managed {
    set: FieldSet,
    api_version: String,
    time: Option<String>,
}

type Managers = BTreeMap<Id, Managed>;

impl Id {
    fn new(request: &Request<'_>, operation: &'static str) -> Self {
        Self {
            operation,
            manager: request.manager.to_owned(),
            api_version: if operation == "Apply" {
                String::new()
            } else {
                request.api_version.to_owned()
            },
            subresource: request.subresource.to_owned(),
        }
    }

    fn shown(&self) -> String {
        let mut text = crate::field::quoted(&self.manager);
        if !self.subresource.is_empty() {
            text = format!(
                "{text} with subresource {}",
                crate::field::quoted(&self.subresource)
            );
        }
        if self.operation == "Update" {
            text = format!("{text} using {}", self.api_version);
        }
        text
    }
}

/// Reads `metadata.managedFields`.
fn managers(object: &Value) -> Result<Managers, String> {
    let entries = list(get(object, "metadata"), "managedFields");
    if entries.len() > ENTRIES_LIMIT {
        return Err(format!(
            "metadata.managedFields has more than {ENTRIES_LIMIT} entries"
        ));
    }
    let mut all = Managers::new();
    for (at, entry) in entries.iter().enumerate() {
        let operation = match text(entry, "operation") {
            "Apply" => "Apply",
            "Update" => "Update",
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let api_version = text(entry, "apiVersion").to_owned();
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text(entry, "fieldsType") {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {at}")),
            other => {
                return Err(format!(
                    "invalid fieldsType {other:?} in managed fields entry {at}"
                ));
            }
        }
        let set = match get(entry, "fieldsV1") {
            Value::Null => FieldSet::default(),
            fields => FieldSet::read(fields)?,
        };
        let id = Id {
            operation,
            manager: text(entry, "manager").to_owned(),
            api_version: if operation == "Apply" {
                String::new()
            } else {
                api_version.clone()
            },
            subresource: text(entry, "subresource").to_owned(),
        };
        let time = get(entry, "time").as_str().map(str::to_owned);
        all.insert(
            id,
            Managed {
                set,
                api_version,
                time,
            },
        );
    }
    Ok(all)
}

/// Writes `metadata.managedFields`: appliers first, then by time.
fn write(object: &mut Value, managers: &Managers) {
    let mut sorted: Vec<(&Id, &Managed)> = managers.iter().collect();
    sorted.sort_by(|(a, x), (b, y)| {
        (
            a.operation,
            &x.time,
            &a.manager,
            &x.api_version,
            &a.subresource,
        )
            .cmp(&(
                b.operation,
                &y.time,
                &b.manager,
                &y.api_version,
                &b.subresource,
            ))
    });
    let entries: Vec<Value> = sorted
        .into_iter()
        .map(|(id, managed)| {
            let mut entry = json!({"manager": id.manager, "operation": id.operation, "apiVersion": managed.api_version});
            if let Some(time) = &managed.time {
                entry["time"] = json!(time);
            }
            entry["fieldsType"] = json!("FieldsV1");
            entry["fieldsV1"] = managed.set.write();
            if !id.subresource.is_empty() {
                entry["subresource"] = json!(id.subresource);
            }
            entry
        })
        .collect();
    let Some(metadata) = object
        .as_object_mut()
        .and_then(|object| crate::view::object_mut(object, "metadata"))
    else {
        return;
    };
    if entries.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    object
}

/// Fields that nobody manages: identity, and what only the server writes.
fn strip(mut set: FieldSet, request: &Request<'_>) -> FieldSet {
    for path in [&["f:apiVersion"][..], &["f:kind"]] {
        set.cut(path);
    }
    for field in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        set.cut(&["f:metadata", &format!("f:{field}")]);
    }
    let mut metadata = FieldSet::default();
    metadata.insert(&["f:metadata".to_owned()]);
    set = set.minus(&metadata);
    // What a request cannot change it does not manage.
    match request.subresource {
        "status" => {
            for path in [
                &["f:spec"][..],
                &["f:metadata", "f:labels"],
                &["f:metadata", "f:ownerReferences"],
                &["f:metadata", "f:deletionTimestamp"],
            ] {
                set.cut(path);
            }
        }
        "" if request.has_status => set.cut(&["f:status"]),
        _ => {}
    }
    set
}

/// Records who wrote what, for everything that is not an apply: create, replace, the other patches.
///
/// `live` is the stored object, or null for a create; `new` is the object as it will be stored (with its defaults). Gives `new`
/// back with its `metadata.managedFields`. What the client itself sent there is taken over when it is well formed; an empty list
/// forgets all managers.
pub fn update(types: &Schema, live: &Value, new: Value, request: &Request<'_>) -> Value {
    let sent = at(&new, &["metadata", "managedFields"]);
    let forget = match sent.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    };
    let known = if forget {
        Managers::new()
    } else {
        let sent = if request.subresource.is_empty() {
            managers(&new).unwrap_or_default()
        } else {
            Managers::new()
        };
        if sent.is_empty() {
            managers(live).unwrap_or_default()
        } else {
            sent
        }
    };
    let mut new = without_managers(&new);
    // Nothing was ever tracked: an update does not begin it, only a create or an apply does.
    if !live.is_null() && known.is_empty() {
        return new;
    }
    let mut known = known;
    let changes = compare(types, &without_managers(live), &new);
    give_up(&mut known, None, &changes);
    let set = strip(changes.added.union(&changes.modified), request);
    if !set.is_empty() {
        let id = Id::new(request, "Update");
        let before = known.remove(&id).map(|managed| managed.set);
        let managed = Managed {
            set: set.union(&before.unwrap_or_default()),
            api_version: request.api_version.to_owned(),
            time: Some(request.time.to_owned()),
        };
        known.insert(id, managed);
    }
    cap(&mut known);
    write(&mut new, &known);
    new
}

/// Takes from all managers but `keep` the fields that were changed or removed.
fn give_up(known: &mut Managers, keep: Option<&Id>, changes: &Changes) {
    let taken = changes.added.clone().union(&changes.modified);
    for (id, managed) in known.iter_mut() {
        if Some(id) != keep {
            managed.set = managed.set.minus(&taken).minus(&changes.removed);
        }
    }
    known.retain(|_, managed| !managed.set.is_empty());
}

/// The oldest updaters become one.
fn cap(known: &mut Managers) {
    let mut updaters: Vec<(Option<String>, Id)> = known
        .iter()
        .filter(|(id, _)| id.operation == "Update")
        .map(|(id, managed)| (managed.time.clone(), id.clone()))
        .collect();
    updaters.sort();
    let mut count = updaters.len();
    let mut first: BTreeMap<String, Id> = BTreeMap::new();
    for (_, id) in updaters {
        if count <= UPDATE_MANAGERS_LIMIT {
            break;
        }
        let version = id.api_version.clone();
        let Some(oldest) = first.get(&version) else {
            first.insert(version, id);
            continue;
        };
        let bucket = Id {
            operation: "Update",
            manager: "ancient-changes".to_owned(),
            api_version: version,
            subresource: String::new(),
        };
        let Some(merged) = known.remove(&id) else {
            continue;
        };
        let before = known.remove(&bucket).or_else(|| known.remove(oldest));
        let set = merged.set.union(&before.map(|m| m.set).unwrap_or_default());
        known.insert(bucket, Managed { set, ..merged });
        count -= 1;
    }
}

/// Applies a configuration.
///
/// `live` is the stored object, or null when there is none yet; `config` is what the client sent, decoded. Gives the merged object
/// with its `metadata.managedFields`, still without defaults: the caller fills them in. With `force` the fields of others are
/// taken over.
///
/// # Errors
/// Conflicts, or a configuration that does not fit.
pub fn apply(
    types: &Schema,
    live: &Value,
    config: &Value,
    request: &Request<'_>,
    force: bool,
) -> Result<Value, Refused> {
    let version = text(config, "apiVersion");
    if version != request.api_version {
        return Err(Refused::Bad(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            request.api_version
        )));
    }
    if !at(config, &["metadata", "managedFields"]).is_null() {
        return Err(Refused::Bad(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    let config = without_nulls(config);
    typed(Some(types), &config, &mut Vec::new()).map_err(|sentence| {
        let metadata = get(&config, "metadata");
        let name = |field| match text(metadata, field) {
            "" => "<unknown>",
            name => name,
        };
        Refused::Untyped(format!(
            "failed to create typed patch object ({}/{}; {version}, Kind={}): {sentence}",
            name("namespace"),
            name("name"),
            text(&config, "kind")
        ))
    })?;
    let mut known = managers(live)
        .map_err(|text| Refused::Untyped(format!("failed to decode managed fields: {text}")))?;
    let bare = without_managers(live);
    if !live.is_null() && known.is_empty() {
        // Nobody was recorded so far: what is there belongs to whoever came before.
        let before = Request {
            manager: "before-first-apply",
            ..*request
        };
        let set = strip(compare(types, &Value::Null, &bare).added, &before);
        if !set.is_empty() {
            let managed = Managed {
                set,
                api_version: request.api_version.to_owned(),
                time: Some(request.time.to_owned()),
            };
            known.insert(Id::new(&before, "Update"), managed);
        }
    }
    let force = force || upgrades(types, &bare, &known, &config, request);
    let mut object = merged(types, &bare, &config, known, request, force)?;
    if request.manager == "kubectl"
        && !at(live, &["metadata", "annotations", LAST_APPLIED]).is_null()
    {
        remember(&mut object, &config);
    }
    Ok(object)
}

fn merged(
    types: &Schema,
    live: &Value,
    config: &Value,
    mut known: Managers,
    request: &Request<'_>,
    force: bool,
) -> Result<Value, Refused> {
    let id = Id::new(request, "Apply");
    let mut set = FieldSet::default();
    fields(Some(types), config, &mut Vec::new(), &mut set);
    let last = known.remove(&id);
    let mut object = merge(Some(types), live, config);
    let managed = Managed {
        set,
        api_version: request.api_version.to_owned(),
        time: None,
    };
    known.insert(id.clone(), managed);
    if let Some(last) = &last {
        let owned = known
            .values()
            .fold(FieldSet::default(), |all, managed| all.union(&managed.set));
        prune(Some(types), &mut object, &last.set, &owned);
    }
    let changes = compare(types, live, &object);
    let taken = changes.added.clone().union(&changes.modified);
    let mut conflicts = Vec::new();
    for (other, managed) in known.iter().filter(|(other, _)| **other != id) {
        let both = managed.set.intersection(&taken);
        conflicts.extend(both.paths().iter().map(|path| Conflict {
            manager: other.shown(),
            field: shown(path),
        }));
    }
    if !force && !conflicts.is_empty() {
        return Err(Refused::Conflicts(conflicts));
    }
    give_up(&mut known, Some(&id), &changes);
    if let Some(mut managed) = known.remove(&id) {
        managed.set = strip(managed.set, request);
        let same = last
            .as_ref()
            .is_some_and(|last| last.set == managed.set && changes.is_empty());
        managed.time = match last {
            Some(last) if same => last.time,
            _ => Some(request.time.to_owned()),
        };
        if !managed.set.is_empty() {
            known.insert(id, managed);
        }
    }
    write(&mut object, &known);
    Ok(object)
}

/// Whether all conflicts of an apply by kubectl are with what it applied itself before, from the client's side: its annotation
/// says the same as the live object.
fn upgrades(
    types: &Schema,
    live: &Value,
    known: &Managers,
    config: &Value,
    request: &Request<'_>,
) -> bool {
    if request.manager != "kubectl" {
        return false;
    }
    let Some(applied) = at(live, &["metadata", "annotations", LAST_APPLIED]).as_str() else {
        return false;
    };
    let Ok(applied) = serde_json::from_str::<Value>(applied) else {
        return false;
    };
    if text(&applied, "apiVersion") != request.api_version {
        return false;
    }
    let Err(Refused::Conflicts(conflicts)) =
        merged(types, live, config, known.clone(), request, false)
    else {
        return false;
    };
    let applied = without_nulls(&applied);
    let mut set = FieldSet::default();
    fields(Some(types), &applied, &mut Vec::new(), &mut set);
    let changes = compare(types, &applied, live);
    let set = set
        .minus(&changes.modified)
        .minus(&changes.added)
        .minus(&changes.removed);
    let allowed: std::collections::BTreeSet<String> =
        set.paths().iter().map(|path| shown(path)).collect();
    conflicts
        .iter()
        .all(|conflict| allowed.contains(&conflict.field))
}

/// Keeps the annotation of client-side apply true, for clients that still use it.
fn remember(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(notes) = config
        .get_mut("metadata")
        .and_then(|m| m.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        notes.shift_remove(LAST_APPLIED);
    }
    let text = config.to_string() + "\n";
    let Some(notes) = object
        .get_mut("metadata")
        .and_then(|m| m.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    notes.insert(LAST_APPLIED.to_owned(), json!(text));
    let size: usize = notes
        .iter()
        .map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len())
        .sum();
    if size > ANNOTATIONS_LIMIT {
        notes.insert(LAST_APPLIED.to_owned(), json!(""));
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => object
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// How a value is walked.
enum Shape<'a> {
    /// One value: a scalar, or an atomic list or map.
    Leaf,
    Object(&'a Map<String, Value>),
    List(&'a [Value]),
}

fn shape<'a>(schema: Option<&Schema>, value: &'a Value) -> Shape<'a> {
    match value {
        Value::Object(object) if !schema.is_some_and(Schema::is_atomic_map) => {
            Shape::Object(object)
        }
        Value::Array(items) => match schema.map(Schema::list_kind) {
            Some("map" | "set") => Shape::List(items),
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

fn field_of<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    schema.and_then(|schema| schema.field(name))
}

/// The step to an item of a list that is a map or a set.
fn item_step(list: &Schema, item: &Value) -> Result<String, String> {
    if list.list_kind() == "set" {
        return Ok(format!("v:{item}"));
    }
    let mut keys = BTreeMap::new();
    for key in list.map_keys() {
        let value = match item.get(key) {
            Some(value) if !value.is_null() => value.clone(),
            _ => list
                .items()
                .and_then(|items| items.key_default(key))
                .ok_or_else(|| {
                    format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
                })?,
        };
        keys.insert(key.clone(), value);
    }
    Ok(key_step(&keys))
}

/// The same for lists that are stored already: what lacks its keys is known by what it is.
fn stored_step(list: &Schema, item: &Value) -> String {
    item_step(list, item).unwrap_or_else(|_| format!("v:{item}"))
}

/// Whether a configuration can be walked: known fields, and items that can be told apart.
fn typed(schema: Option<&Schema>, value: &Value, path: &mut Vec<String>) -> Result<(), String> {
    match shape(schema, value) {
        Shape::Leaf => Ok(()),
        Shape::Object(object) => {
            for (name, inner) in object {
                path.push(format!("f:{name}"));
                let field = field_of(schema, name);
                if field.is_none()
                    && schema.is_some_and(|s| s.is_struct() && !s.preserves_unknown())
                {
                    return Err(format!("{}: field not declared in schema", shown(path)));
                }
                typed(field, inner, path)?;
                path.pop();
            }
            Ok(())
        }
        Shape::List(items) => {
            let Some(list) = schema else { return Ok(()) };
            let mut seen = std::collections::BTreeSet::new();
            for (at, item) in items.iter().enumerate() {
                let step = item_step(list, item)
                    .map_err(|text| format!("{}: element {at}: {text}", shown(path)))?;
                if !seen.insert(step.clone()) {
                    return Err(format!(
                        "{}: duplicate entries for key {}",
                        shown(path),
                        shown(&[step])
                    ));
                }
                path.push(step);
                typed(list.items(), item, path)?;
                path.pop();
            }
            Ok(())
        }
    }
}

/// The fields that a configuration sets.
fn fields(schema: Option<&Schema>, value: &Value, path: &mut Vec<String>, set: &mut FieldSet) {
    match shape(schema, value) {
        Shape::Leaf => set.insert(path),
        Shape::Object(object) => {
            for (name, inner) in object {
                path.push(format!("f:{name}"));
                let named = schema.is_some_and(|s| s.has_field(name));
                let empty = inner.as_object().is_some_and(Map::is_empty);
                fields(field_of(schema, name), inner, path, set);
                if empty || !named {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Shape::List(items) => {
            let Some(list) = schema else { return };
            for item in items {
                path.push(stored_step(list, item));
                fields(list.items(), item, path, set);
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
struct Changes {
    added: FieldSet,
    modified: FieldSet,
    removed: FieldSet,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

fn compare(types: &Schema, old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    let empty = Value::Object(Map::new());
    let old = if old.is_null() { &empty } else { old };
    differ(
        Some(types),
        Some(old),
        Some(new),
        &mut Vec::new(),
        &mut changes,
    );
    changes
}

/// Fields that Kubernetes' own types always have, also when they are empty: nobody adds them.
fn always_there(step: &str) -> bool {
    matches!(
        step,
        "f:metadata"
            | "f:spec"
            | "f:status"
            | "f:template"
            | "f:strategy"
            | "f:updateStrategy"
            | "f:jobTemplate"
            | "f:resources"
            | "f:loadBalancer"
            | "f:containers"
            | "f:scaleTargetRef"
            | "f:names"
            | "f:involvedObject"
            | "f:source"
    )
}

/// The items of a list by their steps; of items with the same step the first.
fn indexed<'a>(list: &Schema, items: Option<&'a Value>) -> BTreeMap<String, &'a Value> {
    let items = items.and_then(Value::as_array).into_iter().flatten();
    let mut index = BTreeMap::new();
    for item in items {
        index.entry(stored_step(list, item)).or_insert(item);
    }
    index
}

fn differ(
    schema: Option<&Schema>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    changes: &mut Changes,
) {
    let old = old.filter(|value| !value.is_null());
    let new = new.filter(|value| !value.is_null());
    let empty = |value: &Value| match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let shape_of = |value: Option<&'_ Value>| match value.map(|value| shape(schema, value)) {
        Some(Shape::Object(_)) => 1,
        Some(Shape::List(_)) => 2,
        Some(Shape::Leaf) => 0,
        None => 3,
    };
    let (a, b) = (shape_of(old), shape_of(new));
    if a == 3 && b == 3 {
        return;
    }
    let hollow = old.is_none_or(empty) && new.is_none_or(empty);
    let walk = !hollow && a != 0 && b != 0 && (a == b || a == 3 || b == 3);
    if !walk {
        match (old, new) {
            (None, _) => changes.added.insert(path),
            (_, None) => changes.removed.insert(path),
            (Some(old), Some(new)) if old != new => changes.modified.insert(path),
            _ => {}
        }
        return;
    }
    if a == 2 || b == 2 {
        let Some(list) = schema else { return };
        let (old, new) = (indexed(list, old), indexed(list, new));
        for (step, before) in &old {
            path.push(step.clone());
            differ(
                list.items(),
                Some(before),
                new.get(step).copied(),
                path,
                changes,
            );
            path.pop();
        }
        for (step, after) in new.iter().filter(|(step, _)| !old.contains_key(*step)) {
            path.push(step.clone());
            differ(list.items(), None, Some(after), path, changes);
            path.pop();
        }
    } else {
        let (old, new) = (
            old.and_then(Value::as_object),
            new.and_then(Value::as_object),
        );
        for (name, before) in old.into_iter().flatten() {
            path.push(format!("f:{name}"));
            let after = new.and_then(|new| new.get(name));
            differ(field_of(schema, name), Some(before), after, path, changes);
            path.pop();
        }
        let known = |name: &String| old.is_some_and(|old| old.contains_key(name));
        for (name, after) in new.into_iter().flatten().filter(|(name, _)| !known(name)) {
            path.push(format!("f:{name}"));
            differ(field_of(schema, name), None, Some(after), path, changes);
            path.pop();
        }
    }
    let implied = path.last().is_some_and(|step| always_there(step));
    if a == 3 && !implied {
        changes.added.insert(path);
    } else if b == 3 {
        changes.removed.insert(path);
    }
}

/// The live object with the configuration over it.
fn merge(schema: Option<&Schema>, live: &Value, config: &Value) -> Value {
    match (shape(schema, live), shape(schema, config)) {
        (Shape::Object(old), Shape::Object(new)) => {
            let mut object = old.clone();
            for (name, value) in new {
                let merged = match old.get(name) {
                    Some(before) => merge(field_of(schema, name), before, value),
                    None => value.clone(),
                };
                object.insert(name.clone(), merged);
            }
            Value::Object(object)
        }
        (Shape::List(old), Shape::List(new)) => match schema {
            Some(list) => Value::Array(merge_list(list, old, new)),
            None => config.clone(),
        },
        _ => config.clone(),
    }
}

/// Items of the configuration keep its order; what only the live list has keeps its place between the items that both have.
fn merge_list(list: &Schema, old: &[Value], new: &[Value]) -> Vec<Value> {
    let old_steps: Vec<String> = old.iter().map(|item| stored_step(list, item)).collect();
    let new_steps: Vec<String> = new.iter().map(|item| stored_step(list, item)).collect();
    let in_old: BTreeMap<&str, &Value> = old_steps.iter().map(String::as_str).zip(old).collect();
    let in_new: std::collections::BTreeSet<&str> = new_steps.iter().map(String::as_str).collect();
    let mut out = Vec::with_capacity(old.len().max(new.len()));
    let mut shared = new_steps
        .iter()
        .map(String::as_str)
        .filter(|step| in_old.contains_key(step));
    let mut next = shared.next();
    let mut done: std::collections::BTreeSet<&str> = std::collections::BTreeSet::new();
    let both = |step: &str, item: &Value| match in_old.get(step) {
        Some(before) => merge(list.items(), before, item),
        None => item.clone(),
    };
    let (mut o, mut n) = (0, 0);
    while o < old.len() || n < new.len() {
        if o < old.len() && n < new.len() {
            let step = old_steps[o].as_str();
            if step == new_steps[n] {
                done.insert(step);
                out.push(both(step, &new[n]));
                o += 1;
                n += 1;
                next = shared.next();
                continue;
            }
            if in_new.contains(step) && next.is_some_and(|next| next != step) {
                o += 1;
                continue;
            }
        }
        if o < old.len() {
            let step = old_steps[o].as_str();
            if !in_new.contains(step) {
                out.push(old[o].clone());
                o += 1;
                continue;
            }
            if done.contains(step) {
                o += 1;
            }
        }
        if n < new.len() {
            let step = new_steps[n].as_str();
            done.insert(step);
            out.push(both(step, &new[n]));
            n += 1;
            if next == Some(step) {
                next = shared.next();
            }
        } else if o < old.len() && in_new.contains(old_steps[o].as_str()) {
            o += 1;
        }
    }
    out
}

/// Takes away what the manager wanted the last time and nobody wants now.
fn prune(schema: Option<&Schema>, value: &mut Value, last: &FieldSet, owned: &FieldSet) {
    match value {
        Value::Object(object) if !schema.is_some_and(Schema::is_atomic_map) => {
            let names: Vec<String> = object.keys().cloned().collect();
            for name in names {
                let step = format!("f:{name}");
                let Some(was) = last.step(&step) else {
                    continue;
                };
                let named = schema.is_some_and(|s| s.has_field(&name));
                let is = owned.step(&step);
                let Some(inner) = object.get_mut(&name) else {
                    continue;
                };
                if wanted(was, is, named) {
                    let before = hollow(inner);
                    prune(
                        field_of(schema, &name),
                        inner,
                        was,
                        is.unwrap_or(&FieldSet::default()),
                    );
                    let kept = is.is_some_and(|is| !is.is_empty());
                    if hollow(inner) && !before && !kept {
                        object.shift_remove(&name);
                    }
                } else {
                    object.shift_remove(&name);
                }
            }
        }
        Value::Array(items) => {
            let Some(list) = schema.filter(|s| matches!(s.list_kind(), "map" | "set")) else {
                return;
            };
            items.retain_mut(|item| {
                let step = stored_step(list, item);
                let Some(was) = last.step(&step) else {
                    return true;
                };
                let is = owned.step(&step);
                if !wanted(was, is, false) {
                    return false;
                }
                prune(list.items(), item, was, is.unwrap_or(&FieldSet::default()));
                true
            });
        }
        _ => {}
    }
}

/// Whether a path stays: it was not the manager's, or somebody has it, or it is a named field with something of somebody in it.
fn wanted(was: &FieldSet, is: Option<&FieldSet>, named: bool) -> bool {
    !was.is_member() || is.is_some_and(|is| is.is_member() || (named && !is.is_empty()))
}

fn hollow(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
