//! Which objects a list, a watch or a deletion of many is about.

use crate::kinds::Kind;
use crate::object;
use crate::request::{Call, Target};
use crate::status::{Result, Status};
use gantry_kube_api::field_selector::FieldSelector;
use gantry_kube_api::selector::Selector;
use serde_json::Value;

/// A namespace, a name, labels, fields; each may be open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    prefix: String,
    labels: Option<Selector>,
    /// `metadata.name=x` is looked up by key.
    name: Option<String>,
    fields: FieldSelector,
}

impl Selection {
    pub(crate) fn of(call: &Call, target: &Target) -> Result<Self> {
        let kind = &target.kind;
        let mut prefix = kind.prefix();
        if !target.namespace.is_empty() {
            prefix.push_str(&target.namespace);
            prefix.push('/');
        }
        let labels = match call.query.get("labelSelector") {
            "" => None,
            text => Some(Selector::parse(text).map_err(|why| {
                Status::bad_request(format!("unable to parse requirement: {why}"))
            })?),
        };
        let no_fields = Vec::new();
        let custom = kind.custom.as_ref().map_or(&no_fields, |c| &c.selectable);
        let text = call.query.get("fieldSelector");
        let mut fields = FieldSelector::parse(text, &kind.group, &kind.kind, custom)
            .map_err(Status::bad_request)?;
        // A key is known from the name alone when the namespace is fixed or there is none.
        let single = !kind.namespaced || !target.namespace.is_empty();
        let name = fields.name().filter(|_| single).map(str::to_owned);
        if name.is_some() && fields.requirements().len() == 1 {
            fields = FieldSelector::default();
        }
        let mut selection = Self {
            prefix,
            labels,
            name,
            fields,
        };
        if !target.name.is_empty() {
            selection.name = Some(target.name.clone());
        }
        Ok(selection)
    }

    /// Everything of a kind.
    pub(crate) fn all(kind: &Kind) -> Self {
        Self {
            prefix: kind.prefix(),
            ..Self::default()
        }
    }

    /// Everything of a kind in a namespace.
    pub(crate) fn within(kind: &Kind, namespace: &str) -> Self {
        Self {
            prefix: format!("{}{namespace}/", kind.prefix()),
            ..Self::default()
        }
    }

    /// What every chosen key begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The one key that can be meant, if only one can.
    pub(crate) fn only_key(&self) -> Option<String> {
        self.name
            .as_ref()
            .map(|name| format!("{}{name}", self.prefix))
    }

    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        match &self.name {
            Some(name) => {
                key.len() == self.prefix.len() + name.len()
                    && key.starts_with(self.prefix.as_bytes())
                    && key.ends_with(name.as_bytes())
            }
            None => key.starts_with(self.prefix.as_bytes()),
        }
    }

    /// Whether the key alone decides.
    pub(crate) fn is_by_key(&self) -> bool {
        self.labels.is_none() && self.fields.requirements().is_empty()
    }

    /// Whether an object whose key is chosen is chosen.
    pub(crate) fn chooses(&self, kept: &[u8]) -> Result<bool> {
        if self.is_by_key() {
            return Ok(true);
        }
        if let Some(labels) = &self.labels {
            let head = object::head(kept)?;
            let found = head.metadata.labels.unwrap_or_default();
            let found = found.into_iter().map(|(k, v)| (k, Value::String(v)));
            if !labels.matches(&Value::Object(found.collect())) {
                return Ok(false);
            }
        }
        if self.fields.requirements().is_empty() {
            return Ok(true);
        }
        Ok(self.fields.matches(&object::decode(kept, 0)?))
    }
}
