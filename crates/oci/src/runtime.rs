//! runtime-spec 1.2, `config.json`.

use serde::{Deserialize, Serialize};

/// runtime-spec: "Container Configuration file".
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Spec {}

/// runtime-spec: "Process".
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Process {}
