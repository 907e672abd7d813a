//! Rules in CEL (`x-kubernetes-validations`) of a custom resource's schema.
//!
//! The interpreter has no limit of its own, so the work is bounded before it begins: the steps of an expression are those of
//! its loops, each as long as the largest list or map that it can see. What could take more is not evaluated but refused, as
//! Kubernetes refuses what exceeds its cost budget. Expressions run on a thread with a stack that their length cannot exhaust.
//!
//! Not here: Kubernetes' own libraries (`url`, `ip`, `cidr`, `quantity`, `semver`, times and durations); a rule that needs one
//! is refused with the definition.
//!
//! Spec: Kubernetes, "Common Expression Language in Kubernetes".

use crate::field::{Errors, Fault, Path};
use crate::view::{entries, flag, get, list, text};
use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, Program};
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Bytes of one expression.
pub const RULE_LIMIT: usize = 4096;
/// Rules of one schema.
pub const RULES_LIMIT: usize = 1000;
/// Brackets that an expression may nest.
pub const NESTING_LIMIT: usize = 60;
/// Steps that all rules of one object may take together.
pub const STEPS_LIMIT: u64 = 2_000_000;
/// Bytes of text in a value that functions may multiply with one another (`replace`, `join`).
pub const PRODUCT_TEXT_LIMIT: usize = 8192;
const STACK: usize = 64 * 1024 * 1024;

/// Functions that an expression may call, beside the operators.
const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "type",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "dyn",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "join",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
];

/// The compiled rules of a schema, by their text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules(Arc<BTreeMap<String, Compiled>>);

#[derive(Debug)]
struct Compiled {
    program: Program,
    uses_old: bool,
    multiplies: bool,
}

/// Runs work on a stack that is deep enough for any allowed expression.
fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(STACK);
        let handle = thread
            .spawn_scoped(scope, work)
            .map_err(|e| format!("starting a thread for rules: {e}"))?;
        handle
            .join()
            .map_err(|_| "an expression could not be evaluated".to_owned())
    })
}

impl Rules {
    /// Compiles all rules of a schema.
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        let mut texts = Vec::new();
        gather(schema, &mut texts)?;
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let compiled = deep(|| {
            let mut all = BTreeMap::new();
            for text in texts {
                if let Entry::Vacant(place) = all.entry(text) {
                    let compiled = compile(place.key())?;
                    place.insert(compiled);
                }
            }
            Ok::<_, String>(all)
        })??;
        Ok(Self(Arc::new(compiled)))
    }

    /// Evaluates the rules over an object, and over what it replaces.
    pub(crate) fn check(
        &self,
        schema: &Value,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Errors,
    ) {
        if self.0.is_empty() {
            return;
        }
        let result = deep(|| {
            let mut found = Errors::default();
            let mut left = STEPS_LIMIT;
            self.walk(schema, object, old, &Path::root(), &mut left, &mut found);
            found
        });
        match result {
            Ok(found) => errors.0.extend(found.0),
            Err(sentence) => errors.push(Fault::Internal, &Path::root(), Value::Null, sentence),
        }
    }

    fn walk(
        &self,
        schema: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        left: &mut u64,
        errors: &mut Errors,
    ) {
        for rule in list(schema, "x-kubernetes-validations") {
            self.one(schema, rule, value, old, path, left, errors);
        }
        match value {
            Value::Object(object) => {
                let fields = get(schema, "properties");
                for (name, inner) in object {
                    let field = fields
                        .get(name)
                        .unwrap_or(get(schema, "additionalProperties"));
                    if field.is_object() {
                        let old = old.and_then(|old| old.get(name));
                        self.walk(field, inner, old, &path.child(name), left, errors);
                    }
                }
            }
            Value::Array(items) => {
                let field = get(schema, "items");
                if !field.is_object() {
                    return;
                }
                let known = crate::crd::OldItems::new(schema, old);
                for (at, item) in items.iter().enumerate() {
                    let old = known.of(item);
                    self.walk(field, item, old, &path.index(at), left, errors);
                }
            }
            _ => {}
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the place of one rule in one walk"
    )]
    fn one(
        &self,
        schema: &Value,
        rule: &Value,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        left: &mut u64,
        errors: &mut Errors,
    ) {
        let source = text(rule, "rule");
        let Some(compiled) = self.0.get(source) else {
            return;
        };
        let optional = flag(rule, "optionalOldSelf");
        if compiled.uses_old && old.is_none() && !optional {
            return;
        }
        // What did not change is not judged again.
        if !compiled.uses_old && old == Some(value) {
            return;
        }
        let kind = text(schema, "type").to_owned();
        let (largest, letters) = measure(value, old);
        let steps = weight(&compiled.program.expression().expr, largest);
        if steps > *left || (compiled.multiplies && letters > PRODUCT_TEXT_LIMIT) {
            errors.invalid(
                path,
                kind,
                "validation failed due to running out of cost budget, no further validation rules will be run",
            );
            *left = 0;
            return;
        }
        *left -= steps;
        let mut context = Context::with_env(environment());
        let bind = |context: &mut Context<'_, '_>, name: &str, value: &Value| {
            cel::to_value(value)
                .map(|value| context.add_variable_from_value(name.to_owned(), value))
        };
        let bound = bind(&mut context, "self", value).and_then(|()| match old {
            Some(old) => bind(&mut context, "oldSelf", old),
            None => Ok(()),
        });
        let shown = match text(rule, "message") {
            "" => source.to_owned(),
            message => message.trim().to_owned(),
        };
        if bound.is_err() {
            errors.invalid(
                path,
                kind,
                format!("a value cannot be held for rule: {shown}"),
            );
            return;
        }
        match compiled.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(cel::Value::Bool(false)) => {
                let message = match text(rule, "message") {
                    "" => self
                        .message(rule, &context)
                        .unwrap_or_else(|| format!("failed rule: {source}")),
                    message => self
                        .message(rule, &context)
                        .unwrap_or_else(|| message.trim().to_owned()),
                };
                failed(schema, rule, value, path, &message, errors);
            }
            Ok(_) => errors.invalid(
                path,
                kind,
                format!("rule did not give a truth value: {shown}"),
            ),
            Err(error) => errors.invalid(
                path,
                kind,
                format!("{} evaluating rule: {shown}", spoken(&error)),
            ),
        }
    }

    fn message(&self, rule: &Value, context: &Context<'_, '_>) -> Option<String> {
        let compiled = self.0.get(get(rule, "messageExpression").as_str()?)?;
        match compiled.program.execute(context) {
            Ok(cel::Value::String(text)) => {
                let text = text.trim().to_owned();
                (!text.is_empty() && text.len() <= 5120 && !text.contains('\n')).then_some(text)
            }
            _ => None,
        }
    }
}

fn failed(
    schema: &Value,
    rule: &Value,
    value: &Value,
    path: &Path,
    message: &str,
    errors: &mut Errors,
) {
    let place = match text(rule, "fieldPath") {
        "" => path.clone(),
        below => path.child(below.trim_start_matches('.')),
    };
    // Objects and lists are not repeated in the answer.
    let omitted = matches!(text(schema, "type"), "object" | "array");
    match text(rule, "reason") {
        "FieldValueForbidden" => errors.forbidden(&place, message),
        "FieldValueRequired" => errors.required(&place, message),
        "FieldValueDuplicate" => errors.duplicate(&place, value.clone()),
        _ if omitted => errors.omitted(&place, message),
        _ => errors.invalid(&place, value.clone(), message),
    }
}

fn spoken(error: &cel::ExecutionError) -> String {
    match error {
        cel::ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        other => {
            let text = other.to_string();
            let mut letters = text.chars();
            letters.next().map_or_else(String::new, |first| {
                first.to_lowercase().collect::<String>() + letters.as_str()
            })
        }
    }
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: std::sync::OnceLock<Arc<Env>> = std::sync::OnceLock::new();
    let made = ENVIRONMENT.get_or_init(|| {
        let mut env = Env::stdlib();
        env.add_extension(cel::extensions::strings)
            .expect("the library's own names do not clash");
        Arc::new(env)
    });
    Arc::clone(made)
}

fn gather(schema: &Value, texts: &mut Vec<String>) -> Result<(), String> {
    for rule in list(schema, "x-kubernetes-validations") {
        texts.push(text(rule, "rule").to_owned());
        if let Some(expression) = get(rule, "messageExpression").as_str() {
            texts.push(expression.to_owned());
        }
        if texts.len() > RULES_LIMIT {
            return Err(format!("the schema has more than {RULES_LIMIT} rules"));
        }
    }
    for word in ["items", "additionalProperties"] {
        let inner = get(schema, word);
        if inner.is_object() {
            gather(inner, texts)?;
        }
    }
    for (_, inner) in entries(schema, "properties") {
        gather(inner, texts)?;
    }
    Ok(())
}

fn compile(source: &str) -> Result<Compiled, String> {
    let failed = |why: String| format!("compilation failed: ERROR: <input>:1:1: {why}");
    if source.trim().is_empty() {
        return Err("rule is not specified".to_owned());
    }
    if source.len() > RULE_LIMIT {
        return Err(failed(format!(
            "expression has more than {RULE_LIMIT} bytes"
        )));
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' | b'!' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > NESTING_LIMIT {
        return Err(failed(format!(
            "expression nests more than {NESTING_LIMIT} levels"
        )));
    }
    let program = environment().compile(source).map_err(|errors| {
        let text = errors.to_string();
        failed(text.lines().next().unwrap_or_default().to_owned())
    })?;
    let references = program.references();
    let mut functions = references.functions();
    functions.sort_unstable();
    for function in functions {
        let named = function.starts_with(|c: char| c.is_ascii_alphabetic());
        if named && !FUNCTIONS.contains(&function) {
            return Err(failed(format!(
                "undeclared reference to '{function}' (in container '')"
            )));
        }
    }
    let uses_old = references.has_variable("oldSelf");
    let multiplies = ["replace", "join"]
        .iter()
        .any(|name| references.has_function(name));
    drop(references);
    Ok(Compiled {
        uses_old,
        multiplies,
        program,
    })
}

/// The items of the largest list or map, and the bytes of all text, in a value and in what it replaces.
fn measure(value: &Value, old: Option<&Value>) -> (u64, usize) {
    fn walk(value: &Value, largest: &mut u64, letters: &mut usize) {
        match value {
            Value::Array(items) => {
                *largest = (*largest).max(items.len() as u64);
                items.iter().for_each(|item| walk(item, largest, letters));
            }
            Value::Object(object) => {
                *largest = (*largest).max(object.len() as u64);
                for (name, inner) in object {
                    *letters += name.len();
                    walk(inner, largest, letters);
                }
            }
            Value::String(text) => *letters += text.len(),
            _ => {}
        }
    }
    let (mut largest, mut letters) = (1, 0);
    walk(value, &mut largest, &mut letters);
    if let Some(old) = old {
        walk(old, &mut largest, &mut letters);
    }
    (largest, letters)
}

/// Steps of an expression whose loops run over at most `items`; what `split` makes is as long as a text at most, which the
/// text limits of requests bound, so it counts as many.
fn weight(expression: &Expr, items: u64) -> u64 {
    fn sum<'a>(parts: impl IntoIterator<Item = &'a IdedExpr>, items: u64) -> u64 {
        parts.into_iter().fold(1_u64, |total, part| {
            total.saturating_add(weight(&part.expr, items))
        })
    }
    match expression {
        Expr::Call(call) => {
            let own = if call.func_name == "matches" { 100 } else { 1 };
            sum(call.args.iter().chain(call.target.as_deref()), items).saturating_add(own)
        }
        Expr::Comprehension(own) => {
            let longest = match &own.iter_range.expr {
                Expr::List(list) => list.elements.len() as u64,
                Expr::Call(call) if call.func_name == "split" => 10_000,
                _ => items,
            };
            let each = sum([&own.loop_cond, &own.loop_step], items);
            sum([&own.iter_range, &own.accu_init, &own.result], items)
                .saturating_add(each.saturating_mul(longest.max(1)))
        }
        Expr::List(list) => sum(&list.elements, items),
        Expr::Map(map) => map.entries.iter().fold(1_u64, |total, entry| {
            total.saturating_add(match &entry.expr {
                EntryExpr::MapEntry(entry) => sum([&entry.key, &entry.value], items),
                EntryExpr::StructField(entry) => sum([&entry.value], items),
            })
        }),
        Expr::Struct(own) => own.entries.iter().fold(1_u64, |total, entry| {
            total.saturating_add(match &entry.expr {
                EntryExpr::MapEntry(entry) => sum([&entry.key, &entry.value], items),
                EntryExpr::StructField(entry) => sum([&entry.value], items),
            })
        }),
        Expr::Select(select) => sum([select.operand.as_ref()], items),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => 1,
    }
}

/// An empty object, for a rule over nothing.
#[cfg(test)]
fn nothing() -> Value {
    Value::Object(serde_json::Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Errors::default();
        Rules::new(schema)
            .unwrap()
            .check(schema, object, old, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_hold_or_say_why_not() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min must not be above max"},
                {"rule": "self.names.all(n, n.startsWith('a'))"},
                {"rule": "!has(self.kind) || self.kind in ['x', 'y']", "messageExpression": "'no such kind: ' + self.kind", "fieldPath": ".kind"}],
            "properties": {"min": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= 0", "reason": "FieldValueForbidden", "message": "negative"}]},
                "max": {"type": "integer"}, "kind": {"type": "string"}, "names": {"type": "array", "items": {"type": "string"}}}}}});
        let good = json!({"spec": {"min": 1, "max": 2, "names": ["a", "ab"]}});
        assert_eq!(said(&schema, &good, None), Vec::<String>::new());
        let bad = json!({"spec": {"min": -1, "max": -2, "names": ["b"], "kind": "z"}});
        assert_eq!(
            said(&schema, &bad, None),
            [
                "spec: Invalid value: min must not be above max",
                "spec: Invalid value: failed rule: self.names.all(n, n.startsWith('a'))",
                "spec.kind: Invalid value: no such kind: z",
                "spec.min: Forbidden: negative",
            ]
        );
        let missing = json!({"spec": {"min": 1, "names": []}});
        assert_eq!(
            said(&schema, &missing, None),
            [
                "spec: Invalid value: \"object\": no such key: max evaluating rule: min must not be above max"
            ]
        );
    }

    #[test]
    fn changes_are_judged_against_what_was() {
        let schema = json!({"type": "object", "properties": {"size": {"type": "integer",
            "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "may only grow"}]}}});
        assert_eq!(
            said(&schema, &json!({"size": 1}), None),
            Vec::<String>::new()
        );
        assert_eq!(
            said(&schema, &json!({"size": 2}), Some(&json!({"size": 1}))),
            Vec::<String>::new()
        );
        assert_eq!(
            said(&schema, &json!({"size": 1}), Some(&json!({"size": 2}))),
            ["size: Invalid value: 1: may only grow"]
        );
        assert_eq!(
            said(&schema, &json!({"size": 1}), Some(&nothing())),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let compile = |rule: &str| {
            let schema = json!({"x-kubernetes-validations": [{"rule": rule}]});
            Rules::new(&schema).map(drop)
        };
        assert!(compile("self.a == 1").is_ok());
        assert!(
            compile("self.")
                .unwrap_err()
                .starts_with("compilation failed: ERROR: <input>:1:1: ")
        );
        assert_eq!(
            compile("quantity(self.a) == 1").unwrap_err(),
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'quantity' (in container '')"
        );
        assert!(
            compile("url(self.a) == 1")
                .unwrap_err()
                .contains("undeclared reference to 'url' (in container '')")
        );
        assert!(compile(&"(".repeat(200)).is_err());
        assert!(compile(&format!("{}1 == 1", "!".repeat(3000))).is_err());
        assert!(compile(&"1+".repeat(3000)).is_err());
        // As long as it may be: the stack holds.
        let long = format!("{}1 > 0", "1+".repeat(2000));
        assert!(compile(&long).is_ok());
        assert_eq!(
            said(
                &json!({"type": "object", "x-kubernetes-validations": [{"rule": long}]}),
                &nothing(),
                None
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn work_is_bounded() {
        let items: Vec<i64> = (0..2000).collect();
        let schema = json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.a.all(x, self.a.all(y, self.a.all(z, x + y + z >= 0)))"}]});
        let start = std::time::Instant::now();
        assert_eq!(
            said(&schema, &json!({"a": items}), None),
            [
                "<nil>: Invalid value: \"object\": validation failed due to running out of cost budget, no further validation rules will be run"
            ]
        );
        assert!(start.elapsed().as_secs() < 5);
        let text = "a".repeat(100_000);
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.a.replace('a', self.a) != ''"}]});
        assert_eq!(said(&schema, &json!({"a": text}), None).len(), 1);
    }
}
