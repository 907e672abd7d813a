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
    /// Print the lines that point `docker` and `kubectl` at this instance
    Env(OutputArgs),
    /// What is up
    Status(OutputArgs),
    /// What this machine lacks, and the fix for each line
    Doctor(OutputArgs),
    /// Check or repair the files of the cluster state, while the platform is down
    Store(StoreArgs),
    /// Serve the registry alone, or look after its accounts and files
    Registry(Box<RegistryArgs>),
    /// Print the version
    Version(OutputArgs),
    /// Serve TCP for the node that started it
    #[command(hide = true)]
    Front { uid: u32 },
    /// Load and run the demo container (what `up --demo` does)
    #[command(hide = true)]
    Demo,
    /// Create and start a container
    Run(Box<RunArgs>),
    /// List containers
    Ps(PsArgs),
    /// Show what a container wrote
    Logs(LogsArgs),
    /// Run a command in a running container
    Exec(ExecArgs),
    /// Start stopped containers
    Start(NamesArgs),
    /// Stop containers
    Stop(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// List images
    Images(ListArgs),
    /// Images within a disk budget, pinned images, and whether the disk still has what it was given
    Disk(DiskArgs),
    /// Change a container in place: ports, variables, labels, mounts, limits; restarts it if it runs
    Set(Box<SetArgs>),
    /// Why a container does not run, in one sentence
    Why(WhyArgs),
    /// Everything that is known about a container's end
    Autopsy(WhyArgs),
    /// Bring in images from an archive
    Load(LoadArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Fetch an image
    Pull(NameArgs),
    /// Show everything about containers or images
    Inspect(NamesArgs),
    /// Copy between a container and the host (CONTAINER:PATH; `-` is a tar on stdin or stdout)
    Cp(CpArgs),
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
pub struct StoreArgs {
    #[command(subcommand)]
    pub verb: StoreVerb,
}

#[derive(Debug, Subcommand)]
pub enum StoreVerb {
    /// Read every byte and name what is damaged; changes nothing
    Check(OutputArgs),
    /// Take damaged entries out, name them, and keep the files as they were beside
    Repair(OutputArgs),
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RegistryArgs {
    #[command(flatten)]
    pub serve: RegistryServeArgs,
    #[command(subcommand)]
    pub verb: Option<RegistryVerb>,
}

#[derive(Debug, ClapArgs)]
pub struct RegistryServeArgs {
    /// IP:PORT; port 0 takes a free one [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Certificate (PEM); needed beyond loopback
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Serve plain HTTP beyond loopback: something in front of this ends TLS
    #[arg(long)]
    pub plain_http: bool,
}

#[derive(Debug, Subcommand)]
pub enum RegistryVerb {
    /// Who may do what
    Account(AccountArgs),
    /// Take away what nothing names any more, as the policy says; servers may run meanwhile
    Collect {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Keep what was claimed within so many seconds, whatever the policy says
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u64>,
        #[command(flatten)]
        how: OutputArgs,
    },
    /// Read every byte; set aside and name what is damaged
    Check,
}

#[derive(Debug, ClapArgs)]
pub struct AccountArgs {
    #[command(subcommand)]
    pub verb: AccountVerb,
}

#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// Make or change a person's account; the password is read from stdin
    Set {
        name: String,
        /// REPOSITORIES:ACTIONS, such as 'team/*:read,write,delete'; may be given more than once
        #[arg(long, value_name = "GRANT", required = true)]
        grant: Vec<String>,
    },
    /// Make a robot's account, or give it a new secret; prints the secret
    Robot {
        name: String,
        #[arg(long, value_name = "GRANT", required = true)]
        grant: Vec<String>,
        /// When it ends: 2030-01-31T00:00:00Z, or from now: 12h, 30d
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// What callers without an account may do; nothing without --grant
    Anonymous {
        #[arg(long, value_name = "GRANT")]
        grant: Vec<String>,
    },
    /// Take an account away
    Remove { name: String },
    /// List accounts
    List(OutputArgs),
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
    /// The Docker API: unix://PATH, tcp://IP:PORT or off; may be given more than once [default: unix://R/docker.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub docker: Vec<String>,
    /// Certificate (PEM) that tcp:// addresses show
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Authority whose certificates clients must show with --tlsverify
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Refuse clients without a certificate of --tlscacert
    #[arg(long)]
    pub tlsverify: bool,
    /// Pool that networks' subnets are cut from [default: 172.16.0.0/12]
    #[arg(long, value_name = "CIDR")]
    pub subnet_pool: Option<String>,
    /// friendly: accept our bridges where a foreign chain drops forwarded traffic; strict: never [default: friendly]
    #[arg(long, value_name = "MODE")]
    pub firewall: Option<String>,
    /// The Kubernetes API: IP:PORT or off [default: 127.0.0.1:6443]
    #[arg(long, value_name = "ADDRESS")]
    pub kube: Option<String>,
    /// A plug-in that allows or denies every request of the Docker API; may be repeated, all must allow
    #[arg(long, value_name = "PLUGIN")]
    pub authorization_plugin: Vec<String>,
    /// Restart containers that become unhealthy; label gantry.restart-unhealthy=false|true wins
    #[arg(long)]
    pub restart_unhealthy: bool,
    /// Where Docker's own registry is asked for first when images are pulled, such as https://mirror.example; may be repeated
    #[arg(long, value_name = "URL")]
    pub registry_mirror: Vec<String>,
    /// A registry (or network) without a certificate that is trusted here: any is taken, or plain HTTP; may be repeated
    #[arg(long, value_name = "HOST[:PORT]|CIDR")]
    pub insecure_registry: Vec<String>,
    /// A JSON object with these flags' names as keys; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The registry: IP:PORT or off [default: 127.0.0.1:5000, unless something else listens there]
    #[arg(long, value_name = "ADDRESS")]
    pub registry: Option<String>,
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
}

#[derive(Debug, ClapArgs)]
pub struct NameArgs {
    pub name: String,
}

#[derive(Debug, ClapArgs)]
pub struct SetArgs {
    pub container: String,
    /// CONTAINER_PORT[/udp] that is no longer published
    #[arg(long, value_name = "PORT")]
    pub unpublish: Vec<String>,
    /// TARGET whose mount goes
    #[arg(long, value_name = "TARGET")]
    pub unmount: Vec<String>,
    #[command(flatten)]
    pub shape: ShapeArgs,
}

/// What `run` gives a container and `set` changes.
#[derive(Debug, ClapArgs)]
pub struct ShapeArgs {
    /// [ADDRESS:]PORT:CONTAINER_PORT[/udp], or CONTAINER_PORT for a free one
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<String>,
    /// SOURCE:TARGET[:ro]; SOURCE is an absolute path or a volume's name; takes the place of what is at TARGET
    #[arg(short, long, value_name = "MOUNT")]
    pub volume: Vec<String>,
    /// NAME=VALUE; NAME alone passes on the own one to `run`, and takes it away in `set`
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// NAME=VALUE; NAME alone takes it away in `set`
    #[arg(short, long)]
    pub label: Vec<String>,
    /// Bytes, or with k, m, g
    #[arg(short, long)]
    pub memory: Option<String>,
    /// Such as 0.5
    #[arg(long)]
    pub cpus: Option<String>,
    #[arg(long)]
    pub pids_limit: Option<i64>,
    /// no, always, unless-stopped, on-failure[:COUNT]
    #[arg(long)]
    pub restart: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct WhyArgs {
    pub container: String,
    /// How data is written
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct NamesArgs {
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Leave it running and print its ID
    #[arg(short, long)]
    pub detach: bool,
    /// Keep stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub rm: bool,
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// bridge, none, host, container:NAME, or a network's name
    #[arg(long, visible_alias = "net")]
    pub network: Option<String>,
    #[arg(long)]
    pub hostname: Option<String>,
    /// USER[:GROUP]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Folder to start in
    #[arg(short, long)]
    pub workdir: Option<String>,
    #[arg(long)]
    pub entrypoint: Option<String>,
    #[arg(long)]
    pub privileged: bool,
    #[arg(long)]
    pub read_only: bool,
    /// Run an init as the first process
    #[arg(long)]
    pub init: bool,
    #[arg(long)]
    pub cap_add: Vec<String>,
    #[arg(long)]
    pub cap_drop: Vec<String>,
    pub image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub list: ListArgs,
}

#[derive(Debug, ClapArgs)]
pub struct DiskArgs {
    #[command(subcommand)]
    pub verb: DiskVerb,
}

#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Take unused images away until the rest fits, the least recently used first
    Reclaim {
        /// Bytes that all layers together may take, such as 20g
        #[arg(long, value_name = "BYTES")]
        to: String,
        /// The images used last that stay in any case
        #[arg(long, value_name = "N", default_value_t = 0)]
        keep: u32,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// How data is written
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Protect images from reclaim and prune; without a name list what is protected
    Pin { names: Vec<String> },
    /// Protect images no longer
    Unpin {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Read every stored byte again; exits 1 when something is damaged and was not repaired
    Check {
        /// Make again what can be made, fetch what must be fetched
        #[arg(long)]
        repair: bool,
        /// How data is written
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// Only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// How data is written
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct LogsArgs {
    /// Go on as the container writes
    #[arg(short, long)]
    pub follow: bool,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only so many last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<u64>,
    pub container: String,
}

#[derive(Debug, ClapArgs)]
pub struct ExecArgs {
    /// Leave it running
    #[arg(short, long)]
    pub detach: bool,
    /// Keep stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(short, long)]
    pub workdir: Option<String>,
    #[arg(long)]
    pub privileged: bool,
    pub container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct StopArgs {
    /// Seconds before it is killed
    #[arg(short, long)]
    pub time: Option<i64>,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct KillArgs {
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct RmArgs {
    /// Kill it first
    #[arg(short, long)]
    pub force: bool,
    /// Also its anonymous volumes
    #[arg(short, long)]
    pub volumes: bool,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct RmiArgs {
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct LoadArgs {
    /// The archive; stdin without it
    #[arg(short, long)]
    pub input: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct SaveArgs {
    /// The archive; stdout without it
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct CpArgs {
    pub from: String,
    pub to: String,
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
