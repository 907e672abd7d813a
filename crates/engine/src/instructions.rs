//! `--change` of `commit` and `import`: the Dockerfile instructions that only touch the configuration.

use gantry_base::Result;
use gantry_oci::image::RunConfig;

/// Applies Dockerfile instructions to a configuration, in order. `InvalidArgument` in Docker's words.
pub fn apply_changes(_config: &mut RunConfig, _changes: &[String]) -> Result<()> {
    todo!()
}
