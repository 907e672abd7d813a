//! Custom resources: what a CustomResourceDefinition says of its kind.

use gantry_kube_api::field::FieldError;
use serde_json::Value;

/// One definition, for one of its versions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Custom {
    pub(crate) list_kind: String,
    /// How many versions are served.
    pub(crate) versions: usize,
    /// Fields that field selectors may name.
    pub(crate) selectable: Vec<String>,
    /// `openAPIV3Schema` of the version.
    pub(crate) schema: Value,
    /// `subresources.scale` as JSON pointers.
    pub(crate) scale: Option<(String, String, String)>,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Vec<Value>,
}

impl Custom {
    pub(crate) fn prune(&self, _object: &mut Value) -> Vec<String> {
        Vec::new()
    }
    pub(crate) fn default(&self, _object: &mut Value) {}
    pub(crate) fn validate(&self, _object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }
    pub(crate) fn scale_paths(&self, _version: &str) -> Option<(String, String, String)> {
        self.scale.clone()
    }
}
