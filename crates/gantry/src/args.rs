//! What was typed. What it means is [`crate::settings`]'s business.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Containers on this machine: the platform that `docker` talks to.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, disable_help_subcommand = true)]
pub struct Args {
    #[command(flatten)]
    pub dirs: DirArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

/// The two directories that name an instance.
#[derive(Debug, ClapArgs)]
pub struct DirArgs {
    /// Durable state of this instance [default: /var/lib/gantry]
    #[arg(long, global = true, env = "GANTRY_DATA_DIR", value_name = "D")]
    pub data_dir: Option<PathBuf>,
    /// Sockets and run-time state of this instance [default: /run/gantry]
    #[arg(long, global = true, env = "GANTRY_RUN_DIR", value_name = "R")]
    pub run_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start the platform
    Up(Box<UpArgs>),
    /// Stop the platform; containers run on unless --purge
    Down(DownArgs),
    /// Print the lines that point `docker` at this instance
    Env(OutputArgs),
    /// What is up
    Status(OutputArgs),
    /// What this machine lacks, and the fix for each line
    Doctor(OutputArgs),
    /// Print the version
    Version(OutputArgs),
    /// The OCI runtime: exactly runc's command line
    #[command(disable_help_flag = true)]
    Runtime {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        words: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, ClapArgs)]
pub struct OutputArgs {
    /// How data is written
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct DownArgs {
    /// Also remove every container, mount, rule, bridge, cgroup and file of this instance
    #[arg(long)]
    pub purge: bool,
}

/// `gantry up`. Every flag is optional here: file, environment and defaults come in [`crate::settings`].
#[derive(Debug, Default, ClapArgs)]
pub struct UpArgs {
    /// The Docker API: unix://PATH or off [default: unix://R/docker.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub docker: Option<String>,
    /// Pool that networks' subnets are cut from [default: 172.16.0.0/12]
    #[arg(long, value_name = "CIDR")]
    pub subnet_pool: Option<String>,
    /// friendly: accept our bridges where a foreign chain drops forwarded traffic; strict: never [default: friendly]
    #[arg(long, value_name = "MODE")]
    pub firewall: Option<String>,
    /// A JSON object with these flags' names as keys; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run the demo container and say how to go on
    #[arg(long)]
    pub demo: bool,
    /// Return when everything serves; the log goes to R/gantry.log
    #[arg(long)]
    pub detach: bool,
    /// Set on the process that --detach leaves behind.
    #[arg(long, hide = true)]
    pub detached: bool,
    #[command(flatten)]
    pub later: LaterArgs,
}

/// Flags of the contract whose parts this build does not carry. `off` (and `--store embedded`) is accepted.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Not in this build (accept `off`)")]
pub struct LaterArgs {
    #[arg(long, value_name = "ADDRESS")]
    pub kube: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub registry: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub router: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub router_tls: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub console: Option<String>,
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    #[arg(long, value_name = "URL")]
    pub join: Option<String>,
    #[arg(long, value_name = "T")]
    pub token: Option<String>,
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    #[arg(long, value_name = "URL")]
    pub registry_mirror: Option<String>,
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
