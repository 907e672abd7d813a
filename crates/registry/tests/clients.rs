//! Other people's clients, unmodified, against a registry in this process: skopeo, umoci, podman, buildah.
//! What is not in Debian's stable release (oras, cosign) and the official suite are run by `make conformance-registry`.

#![forbid(unsafe_code)]

mod common;

use common::Server;
use gantry_registry::access::{Accounts, Grant};
use gantry_testkit::{images, run};
use std::path::Path;
use std::process::Command;

/// A folder with `base.tar`, and a registry.
struct Bench {
    server: Server,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(server: Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.tar"), images::busybox_archive()).unwrap();
        std::fs::write(folder.path().join("auth.json"), "{}").unwrap();
        Self { server, folder }
    }

    /// `program` with these words, `R` in them replaced by the registry's address; its output.
    #[track_caller]
    fn run(&self, program: &str, words: &str) -> String {
        run(&mut self.command(program, words), None).ok()
    }

    fn command(&self, program: &str, words: &str) -> Command {
        let address = self.server.address.to_string();
        let mut command = Command::new(program);
        if matches!(program, "podman" | "buildah") {
            let folder = |name: &str| self.folder.path().join(name);
            command
                .arg("--root")
                .arg(folder("root"))
                .arg("--runroot")
                .arg(folder("runroot"))
                .args(["--storage-driver", "vfs"]);
        }
        command
            .args(words.split(' ').map(|word| word.replace("@R@", &address)))
            .env("REGISTRY_AUTH_FILE", self.folder.path().join("auth.json"))
            .current_dir(self.folder.path());
        command
    }
}

const ARCHIVE: &str = "docker-archive:base.tar:busybox:latest";

#[test]
fn skopeo_copies_inspects_lists_and_deletes() {
    let bench = Bench::new(Server::start());
    let sk = |words: &str| bench.run("skopeo", words);
    sk(&format!(
        "copy -q --dest-tls-verify=false {ARCHIVE} docker://@R@/a/bb:1"
    ));
    sk(&format!(
        "copy -q --format oci --dest-tls-verify=false {ARCHIVE} docker://@R@/a/bb:oci"
    ));
    let seen: serde_json::Value =
        serde_json::from_str(&sk("inspect --tls-verify=false docker://@R@/a/bb:1")).unwrap();
    assert!(seen["Digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(seen["RepoTags"], serde_json::json!(["1", "oci"]));
    // Into another repository: mounted, not sent again.
    sk(
        "copy -q --src-tls-verify=false --dest-tls-verify=false docker://@R@/a/bb:1 docker://@R@/b/other:1",
    );
    // Back: everything is what it was.
    sk("copy -q --src-tls-verify=false docker://@R@/b/other:1 dir:back");
    assert!(bench.folder.path().join("back/manifest.json").exists());
    sk("delete --tls-verify=false docker://@R@/b/other:1");
    let gone = run(
        &mut bench.command(
            "skopeo",
            "inspect --tls-verify=false docker://@R@/b/other:1",
        ),
        None,
    );
    assert!(gone.fails(1).contains("manifest unknown"));
}

#[test]
fn umoci_changes_an_image_on_its_way() {
    let bench = Bench::new(Server::start());
    bench.run(
        "skopeo",
        &format!("copy -q --format oci --dest-tls-verify=false {ARCHIVE} docker://@R@/a/bb:oci"),
    );
    bench.run(
        "skopeo",
        "copy -q --src-tls-verify=false docker://@R@/a/bb:oci oci:lay:1",
    );
    bench.run("umoci", "unpack --image lay:1 one");
    std::fs::write(bench.folder.path().join("one/rootfs/etc/new"), "new\n").unwrap();
    bench.run("umoci", "repack --image lay:2 one");
    bench.run(
        "skopeo",
        "copy -q --dest-tls-verify=false oci:lay:2 docker://@R@/a/bb:2",
    );
    bench.run(
        "skopeo",
        "copy -q --src-tls-verify=false docker://@R@/a/bb:2 oci:again:2",
    );
    bench.run("umoci", "unpack --image again:2 two");
    let read = |path: &Path| std::fs::read_to_string(bench.folder.path().join(path)).unwrap();
    assert_eq!(read(Path::new("two/rootfs/etc/new")), "new\n");
    assert_eq!(read(Path::new("two/rootfs/www/index.html")), "ok\n");
}

#[test]
fn podman_and_buildah_push_and_pull() {
    let bench = Bench::new(Server::start());
    bench.run(
        "skopeo",
        &format!("copy -q --dest-tls-verify=false {ARCHIVE} docker://@R@/a/bb:1"),
    );
    bench.run("podman", "pull -q --tls-verify=false @R@/a/bb:1");
    bench.run(
        "podman",
        "push -q --tls-verify=false @R@/a/bb:1 @R@/a/pod:1",
    );
    let made = bench.run("buildah", "from --tls-verify=false @R@/a/pod:1");
    bench.run("buildah", &format!("config --label x=y {}", made.trim()));
    bench.run("buildah", &format!("commit -q {} @R@/a/bud:1", made.trim()));
    bench.run("buildah", "push -q --tls-verify=false @R@/a/bud:1");
    bench.run("buildah", "manifest create many");
    bench.run(
        "buildah",
        "manifest add --tls-verify=false many docker://@R@/a/bud:1",
    );
    bench.run(
        "buildah",
        "manifest push -q --tls-verify=false --all many docker://@R@/a/many:1",
    );
    let index = bench.run(
        "skopeo",
        "inspect --raw --tls-verify=false docker://@R@/a/many:1",
    );
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn clients_sign_in_with_a_password() {
    let server = Server::start();
    let mut accounts = Accounts::default();
    let account = gantry_registry::access::Account {
        proof: gantry_registry::access::password_proof("correct horse").unwrap(),
        grants: vec![Grant::parse("team/*:read,write").unwrap()],
        expires: None,
    };
    accounts.accounts.insert("anna".to_owned(), account);
    accounts.write(&server.root).unwrap();
    // Read at the start.
    let bench = Bench::new(Server::over(&server.root, None));
    let push = format!("copy -q --dest-tls-verify=false {ARCHIVE} docker://@R@/team/bb:1");
    let refused = run(&mut bench.command("skopeo", &push), None);
    let refused = refused.fails(1);
    assert!(
        refused.contains("unauthorized") || refused.contains("denied"),
        "{refused}"
    );
    let mut login = bench.command(
        "skopeo",
        "login --tls-verify=false -u anna --password-stdin @R@",
    );
    run(&mut login, Some(b"correct horse")).ok();
    bench.run("skopeo", &push);
    bench.run("podman", "pull -q --tls-verify=false @R@/team/bb:1");
    let other = format!("copy -q --dest-tls-verify=false {ARCHIVE} docker://@R@/secret/bb:1");
    run(&mut bench.command("skopeo", &other), None).fails(1);
    let mut wrong = bench.command(
        "skopeo",
        "login --tls-verify=false -u anna --password-stdin @R@",
    );
    assert!(
        run(&mut wrong, Some(b"wrong"))
            .fails(1)
            .contains("invalid username/password")
    );
}
