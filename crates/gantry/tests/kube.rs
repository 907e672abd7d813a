//! The Kubernetes API of the whole program, through the unmodified kubectl.

#![forbid(unsafe_code)]

use gantry_testkit::{Options, World, eventually};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

const GANTRY: &str = env!("CARGO_BIN_EXE_gantry");
const SOON: Duration = Duration::from_secs(20);

/// A platform that serves the Kubernetes API on a free port and nothing else.
#[track_caller]
fn world() -> World {
    let flags = ["--docker", "off", "--kube", "127.0.0.1:0"];
    World::with(
        GANTRY,
        Options {
            flags: flags.map(str::to_owned).into(),
            ..Options::default()
        },
    )
}

#[test]
fn kubectl_finds_the_cluster_that_env_names() {
    let world = world();
    let kubeconfig = world.run_dir().join("kubeconfig");
    let line = format!("export KUBECONFIG={}", kubeconfig.display());
    assert_eq!(world.gantry(&["env"]).ok(), line);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&kubeconfig).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let version = world.kubectl(&["version", "-o", "json"]).json();
    assert_eq!(version["serverVersion"]["minor"], "35");
    assert_eq!(world.kubectl(&["get", "--raw", "/readyz"]).ok(), "ok");
    let kinds = world.kubectl(&["api-resources", "--verbs=list,watch", "-o", "name"]);
    for kind in [
        "pods",
        "deployments.apps",
        "roles.rbac.authorization.k8s.io",
    ] {
        assert!(kinds.ok().lines().any(|line| line == kind), "{kinds}");
    }
    let old = gantry_testkit::run(
        &mut world.kube_command("kubectl-1.32", &["get", "ns", "-o", "name"]),
        None,
    );
    assert_eq!(
        old.ok(),
        "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system"
    );
    world.purge();
}

const WORKLOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, labels: {app: d}}
spec:
  replicas: 2
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: busybox, command: [sh]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {a: "1"}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: hidden-from-the-disk}
"#;

#[test]
fn kubectl_makes_changes_watches_and_removes() {
    let mut world = world();
    let create = |text: &str| world.kubectl_with(&["create", "--validate=false", "-f", "-"], text);
    assert_eq!(
        create(WORKLOAD).ok(),
        "deployment.apps/d created\nconfigmap/cm created\nsecret/s created"
    );
    assert!(
        create(WORKLOAD)
            .fails(1)
            .contains(r#"deployments.apps "d" already exists"#)
    );
    let row = world
        .kubectl(&["get", "deploy", "--no-headers", "-o", "wide"])
        .ok();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["d", "0/2", "0", "0"], "{row}");
    assert_eq!(cells[5..], ["c", "busybox", "app=d"], "{row}");

    // A watch sees every change in order, also those that selectors make.
    let mut watch = world
        .kube_command(
            "kubectl",
            &[
                "get",
                "cm",
                "cm",
                "-w",
                "-o",
                "jsonpath={.data.b}/{.metadata.labels.z}{\"\\n\"}",
            ],
        )
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || seen.next().unwrap().unwrap();
    assert_eq!(next(), "/");
    for patch in [
        &["patch", "cm", "cm", "-p", r#"{"data":{"b":"2"}}"#][..],
        &[
            "patch",
            "cm",
            "cm",
            "--type=json",
            "-p",
            r#"[{"op":"replace","path":"/data/b","value":"3"}]"#,
        ],
        &[
            "patch",
            "cm",
            "cm",
            "--type=merge",
            "-p",
            r#"{"data":{"a":null}}"#,
        ],
        &["label", "cm", "cm", "z=1"],
    ] {
        world.kubectl(patch).ok();
    }
    assert_eq!([next(), next(), next(), next()], ["2/", "3/", "3/", "3/1"]);
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(
        world
            .kubectl(&["get", "cm", "-l", "z in (1,2)", "-o", "name"])
            .ok(),
        "configmap/cm"
    );
    assert_eq!(
        world
            .kubectl(&[
                "get",
                "cm",
                "--field-selector",
                "metadata.name=no",
                "-o",
                "name"
            ])
            .ok(),
        ""
    );
    assert_eq!(
        world.kubectl(&["scale", "deploy/d", "--replicas=3"]).ok(),
        "deployment.apps/d scaled"
    );
    assert_eq!(
        world
            .kubectl(&[
                "get",
                "deploy/d",
                "-o",
                "jsonpath={.spec.replicas} {.metadata.generation}"
            ])
            .ok(),
        "3 2"
    );

    // What was answered outlives a kill; Secrets do not lie open on the disk.
    world.kill();
    world.up();
    assert_eq!(
        world
            .kubectl(&["get", "cm/cm", "-o", "jsonpath={.data}"])
            .ok(),
        r#"{"b":"3"}"#
    );
    assert_eq!(
        world
            .kubectl(&["get", "secret/s", "-o", "jsonpath={.data.k}"])
            .ok(),
        "aGlkZGVuLWZyb20tdGhlLWRpc2s="
    );
    let mut logs = 0;
    for entry in std::fs::read_dir(world.data_dir().join("store")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        logs += usize::from(bytes.windows(5).any(|w| w == b"/core"));
        assert!(!bytes.windows(20).any(|w| w == b"aGlkZGVuLWZyb20tdGhl"));
    }
    assert!(logs > 0, "the store's log was not looked at");

    assert_eq!(
        world
            .kubectl(&["delete", "deploy/d", "cm/cm", "secret/s"])
            .ok(),
        "deployment.apps \"d\" deleted from default namespace\nconfigmap \"cm\" deleted from default namespace\nsecret \"s\" deleted from default namespace"
    );
    assert!(
        world
            .kubectl(&["get", "cm", "cm"])
            .fails(1)
            .contains(r#"configmaps "cm" not found"#)
    );
    world.purge();
}

#[test]
fn finalizers_preconditions_and_dry_runs_hold() {
    let world = world();
    let apply = |text: &str| world.kubectl_with(&["create", "--validate=false", "-f", "-"], text);
    apply("{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"f\", \"finalizers\": [\"x.test/f\"]}}").ok();
    world.kubectl(&["delete", "cm/f", "--wait=false"]).ok();
    let time = world
        .kubectl(&[
            "get",
            "cm/f",
            "-o",
            "jsonpath={.metadata.deletionTimestamp}",
        ])
        .ok();
    assert!(time.ends_with('Z'), "{time}");
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    world
        .kubectl(&["patch", "cm/f", "--type=merge", "-p", patch])
        .ok();
    world.kubectl(&["get", "cm/f"]).fails(1);

    let dry = ["create", "--validate=false", "--dry-run=server", "-f", "-"];
    world
        .kubectl_with(
            &dry,
            "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"g\"}}",
        )
        .ok();
    world.kubectl(&["get", "cm/g"]).fails(1);

    // Two that read the same revision: the second is told.
    let stale = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "h", "resourceVersion": "1"}}"#;
    apply("{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"h\"}}")
        .ok();
    let refusal = world
        .kubectl_with(&["replace", "--validate=false", "-f", "-"], stale)
        .fails(1);
    assert!(refusal.contains("the object has been modified; please apply your changes to the latest version and try again"), "{refusal}");

    // Faults are Kubernetes' own.
    let bad =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"X_bad"},"spec":{"containers":[]}}"#;
    let refusal = apply(bad).fails(1);
    assert!(
        refusal.contains("spec.containers: Required value")
            && refusal.contains("metadata.name: Invalid value"),
        "{refusal}"
    );
    eventually("pages", SOON, || {
        let page = world
            .kubectl(&["get", "--raw", "/api/v1/namespaces?limit=3"])
            .json();
        let token = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(page["metadata"]["remainingItemCount"], 1);
        let rest = world
            .kubectl(&[
                "get",
                "--raw",
                &format!("/api/v1/namespaces?limit=3&continue={token}"),
            ])
            .json();
        assert_eq!(rest["items"][0]["metadata"]["name"], "kube-system");
        Ok(())
    });
    world.purge();
}
