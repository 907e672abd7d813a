//! `--change` of `commit` and `import`: the Dockerfile instructions that only touch the configuration.

use gantry_base::Result;
use gantry_oci::image::RunConfig;

/// Applies Dockerfile instructions to a configuration, in order. `InvalidArgument` in Docker's words.
pub fn apply_changes(config: &mut RunConfig, changes: &[String]) -> Result<()> {
    gantry_docker_api::change::apply(config, changes)
}
