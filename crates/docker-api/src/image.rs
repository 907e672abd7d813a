//! What `docker images`, `docker image inspect` and `docker history` read.

use crate::container::GraphDriver;
use serde::Serialize;
use std::collections::BTreeMap;

/// One item of `GET /images/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    /// −1: not counted.
    pub containers: i64,
    /// Seconds since the epoch.
    pub created: i64,
    pub id: String,
    pub labels: Option<BTreeMap<String, String>>,
    pub parent_id: String,
    pub repo_digests: Vec<String>,
    pub repo_tags: Vec<String>,
    /// −1: not counted.
    pub shared_size: i64,
    pub size: u64,
    /// Gone since 1.44.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
}

/// `GET /images/{name}/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspect {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub parent: String,
    pub comment: String,
    pub created: String,
    /// Gone since 1.45, like `container_config`: what a build ran in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_config: Option<serde_json::Value>,
    pub docker_version: String,
    pub author: String,
    pub config: RunConfig,
    pub architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    pub os: String,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    pub graph_driver: GraphDriver,
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    pub metadata: Metadata,
}

/// The image's run configuration as Docker spells it here: a `ContainerConfig` in which only the image's fields ever are set.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    pub hostname: &'static str,
    pub domainname: &'static str,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<gantry_oci::image::Healthcheck>,
    pub image: &'static str,
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    pub working_dir: String,
    pub entrypoint: Option<Vec<String>>,
    pub on_build: Option<Vec<String>>,
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

impl From<gantry_oci::image::RunConfig> for RunConfig {
    fn from(config: gantry_oci::image::RunConfig) -> Self {
        let filled = |map: BTreeMap<_, _>| Some(map).filter(|map| !map.is_empty());
        Self {
            hostname: "",
            domainname: "",
            user: config.user,
            attach_stdin: false,
            attach_stdout: false,
            attach_stderr: false,
            exposed_ports: config.exposed_ports,
            tty: false,
            open_stdin: false,
            stdin_once: false,
            env: Some(config.env).filter(|env| !env.is_empty()),
            cmd: config.cmd,
            healthcheck: config.healthcheck,
            image: "",
            volumes: filled(config.volumes),
            working_dir: config.working_dir,
            entrypoint: config.entrypoint,
            on_build: config.on_build,
            labels: Some(config.labels).filter(|labels| !labels.is_empty()),
            stop_signal: config.stop_signal,
            shell: config.shell,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RootFs {
    #[serde(rename = "Type")]
    pub kind: &'static str,
    pub layers: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    pub last_tag_time: String,
}

/// One item of `GET /images/{name}/history`, newest first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct History {
    /// The image's ID for the newest, `<missing>` below.
    pub id: String,
    pub created: i64,
    pub created_by: String,
    pub tags: Option<Vec<String>>,
    pub size: u64,
    pub comment: String,
}

/// One item of `DELETE /images/{name}`.
#[derive(Debug, Serialize)]
pub enum Deleted {
    Untagged(String),
    Deleted(String),
}
