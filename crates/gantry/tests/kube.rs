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
    let create = |text: &str| world.kubectl_with(&["create", "-f", "-"], text);
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
    let apply = |text: &str| world.kubectl_with(&["create", "-f", "-"], text);
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

    let dry = ["create", "--dry-run=server", "-f", "-"];
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
    let refusal = world.kubectl_with(&["replace", "-f", "-"], stale).fails(1);
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

#[test]
fn typed_clients_apply_and_explain() {
    let world = world();
    // Protobuf bodies, from an older and a newer client.
    let old =
        |words: &[&str]| gantry_testkit::run(&mut world.kube_command("kubectl-1.32", words), None);
    assert_eq!(old(&["create", "ns", "n"]).ok(), "namespace/n created");
    old(&["-n", "n", "create", "cm", "a", "--from-literal=x=y"]).ok();
    old(&[
        "-n",
        "n",
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=k=v",
    ])
    .ok();
    assert_eq!(
        world
            .kubectl(&[
                "-n",
                "n",
                "get",
                "secret/s",
                "-o",
                "jsonpath={.data.k} {.type}"
            ])
            .ok(),
        "dg== Opaque"
    );
    world
        .kubectl(&[
            "-n",
            "n",
            "create",
            "deployment",
            "web",
            "--image=busybox",
            "--replicas=0",
            "--port=80",
        ])
        .ok();
    assert_eq!(
        world
            .kubectl(&[
                "-n",
                "n",
                "get",
                "deploy/web",
                "-o",
                "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].ports[0].protocol}"
            ])
            .ok(),
        "0 TCP"
    );
    old(&[
        "-n",
        "n",
        "autoscale",
        "deployment",
        "web",
        "--max=4",
        "--cpu-percent=80",
    ])
    .ok();
    assert_eq!(
        world
            .kubectl(&[
                "-n",
                "n",
                "get",
                "hpa.v2.autoscaling/web",
                "-o",
                "jsonpath={.spec.metrics[0].resource.target.averageUtilization}"
            ])
            .ok(),
        "80"
    );

    let apply = |words: &[&str]| {
        let all = [&["-n", "n", "apply", "-f", "-"], words].concat();
        world.kubectl_with(&all, WORKLOAD)
    };
    apply(&[]).ok();
    // What is written as `stringData` is never read back, so kubectl sends it each time.
    let again = apply(&[]).ok();
    let mut others = again.lines().filter(|line| !line.starts_with("secret/"));
    assert!(others.all(|line| line.ends_with(" unchanged")), "{again}");
    apply(&["--server-side", "--force-conflicts", "--field-manager=one"]).ok();
    let other = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "2"}}"#;
    let refusal = world
        .kubectl_with(
            &[
                "-n",
                "n",
                "apply",
                "--server-side",
                "--field-manager=two",
                "-f",
                "-",
            ],
            other,
        )
        .fails(1);
    assert!(
        refusal.contains(r#"conflict with "one": .data.a"#),
        "{refusal}"
    );
    let text = world.kubectl(&["explain", "deployment.spec.strategy"]).ok();
    assert!(text.contains("rollingUpdate"), "{text}");
    let refusal = world.kubectl_with(&["-n", "n", "create", "-f", "-"], "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"u\"}, \"bogus\": 1}").fails(1);
    assert!(refusal.contains(r#"unknown field "bogus""#), "{refusal}");

    assert_eq!(
        world.kubectl(&["delete", "ns", "n", "--timeout=30s"]).ok(),
        "namespace \"n\" deleted"
    );
    world.kubectl(&["get", "ns", "n"]).fails(1);
    world.purge();
}

#[test]
fn rights_are_what_roles_say_and_nobody_hands_out_more() {
    let world = world();
    world
        .kubectl(&[
            "create",
            "role",
            "reader",
            "--verb=get,list",
            "--resource=pods",
        ])
        .ok();
    world
        .kubectl(&[
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--serviceaccount=default:default",
        ])
        .ok();
    let can = |what: &[&str]| {
        let all = [
            &[
                "auth",
                "can-i",
                "--as=system:serviceaccount:default:default",
            ],
            what,
        ]
        .concat();
        world.kubectl(&all).stdout.trim().to_owned()
    };
    assert_eq!(can(&["list", "pods"]), "yes");
    assert_eq!(can(&["delete", "pods"]), "no");
    assert_eq!(can(&["list", "pods", "-n", "kube-system"]), "no");

    // The same by a token that the account was given.
    let token = world.kubectl(&["create", "token", "default"]).ok();
    let server = world
        .kubectl(&[
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ])
        .ok();
    let by_token = |token: &str, words: &[&str]| {
        let mut command = world.kube_command("kubectl", words);
        command.env("KUBECONFIG", "/dev/null").args([
            &format!("--token={token}"),
            "--insecure-skip-tls-verify",
            "-s",
            &server,
        ]);
        gantry_testkit::run(&mut command, None)
    };
    by_token(&token, &["get", "pods"]).ok();
    assert_eq!(
        by_token(&token, &["get", "secrets"]).fails(1),
        r#"Error from server (Forbidden): secrets is forbidden: User "system:serviceaccount:default:default" cannot list resource "secrets" in API group "" in the namespace "default""#
    );
    let mut forged = token.clone();
    forged.truncate(token.rfind('.').unwrap() + 1);
    forged.push_str(&"A".repeat(86));
    assert!(
        by_token(&forged, &["get", "pods"])
            .stderr
            .contains("Unauthorized")
    );
    assert!(
        by_token("nonsense", &["get", "pods"])
            .stderr
            .contains("Unauthorized")
    );

    // Somebody who may write roles does not get more by them.
    world
        .kubectl(&[
            "create",
            "rolebinding",
            "admin",
            "--clusterrole=admin",
            "--user=eve",
        ])
        .ok();
    let eve = |words: &[&str]| world.kubectl(&[words, &["--as=eve"]].concat());
    eve(&["create", "role", "mine", "--verb=get", "--resource=pods"]).ok();
    let refusal = eve(&["create", "role", "more", "--verb=get", "--resource=nodes"]).fails(1);
    assert!(
        refusal.contains("is attempting to grant RBAC permissions not currently held")
            && refusal.contains(r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}"#),
        "{refusal}"
    );
    let refusal = eve(&[
        "create",
        "rolebinding",
        "all",
        "--clusterrole=cluster-admin",
        "--user=eve",
    ])
    .fails(1);
    assert!(refusal.contains("not currently held"), "{refusal}");
    let refusal = by_token(&token, &["get", "pods", "--as=eve"]).fails(1);
    assert!(
        refusal.contains(r#"cannot impersonate resource "users""#),
        "{refusal}"
    );

    let log = std::fs::read_to_string(world.data_dir().join("audit.log")).unwrap();
    let told = log.lines().any(|line| {
        line.contains(r#""impersonatedUser":{"username":"eve""#)
            && line.contains(r#""username":"kubernetes-admin""#)
            && line.contains(r#""code":403"#)
    });
    assert!(told, "{log}");

    // The account goes, and its token with it.
    world.kubectl(&["create", "sa", "short"]).ok();
    let token = world.kubectl(&["create", "token", "short"]).ok();
    assert!(
        by_token(&token, &["get", "pods"])
            .stderr
            .contains("Forbidden")
    );
    world.kubectl(&["delete", "sa", "short"]).ok();
    assert!(
        by_token(&token, &["get", "pods"])
            .stderr
            .contains("Unauthorized")
    );
    world.purge();
}

#[test]
fn what_belongs_to_something_gone_goes_too() {
    let world = world();
    for name in ["owner", "child", "orphan"] {
        world.kubectl(&["create", "cm", name]).ok();
    }
    let uid = world
        .kubectl(&["get", "cm/owner", "-o", "jsonpath={.metadata.uid}"])
        .ok();
    let owned = format!(
        r#"{{"metadata":{{"ownerReferences":[{{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}"}}]}}}}"#
    );
    world.kubectl(&["patch", "cm/child", "-p", &owned]).ok();
    world.kubectl(&["delete", "cm/owner"]).ok();
    eventually("the child's end", SOON, || {
        match world.kubectl(&["get", "cm/child"]).code {
            0 => Err("it is there".to_owned()),
            _ => Ok(()),
        }
    });
    // Orphans stay, and belong to nobody.
    world.kubectl(&["create", "cm", "owner"]).ok();
    let uid = world
        .kubectl(&["get", "cm/owner", "-o", "jsonpath={.metadata.uid}"])
        .ok();
    let owned = format!(
        r#"{{"metadata":{{"ownerReferences":[{{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}"}}]}}}}"#
    );
    world.kubectl(&["patch", "cm/orphan", "-p", &owned]).ok();
    world
        .kubectl(&["delete", "cm/owner", "--cascade=orphan"])
        .ok();
    assert_eq!(
        world
            .kubectl(&[
                "get",
                "cm/orphan",
                "-o",
                "jsonpath={.metadata.ownerReferences}"
            ])
            .ok(),
        ""
    );
    // What was removed by hand comes back.
    world.kubectl(&["delete", "cm/kube-root-ca.crt"]).ok();
    eventually("the authority's certificate", SOON, || {
        match world.kubectl(&["get", "cm/kube-root-ca.crt"]).code {
            0 => Ok(()),
            _ => Err("it is not there".to_owned()),
        }
    });
    world.purge();
}

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.gk.test}
spec:
  group: gk.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties: {size: {type: integer, minimum: 1}, color: {type: string, default: red}}
            x-kubernetes-validations: [{rule: "self.size < 100", message: "too big"}]
"#;

#[test]
fn custom_resources_are_kinds_like_others() {
    let world = world();
    world.kubectl_with(&["apply", "-f", "-"], DEFINITION).ok();
    world
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/widgets.gk.test",
            "--timeout=20s",
        ])
        .ok();
    let widget = |name: &str, spec: &str| {
        let text = format!(
            "{{\"apiVersion\":\"gk.test/v1\",\"kind\":\"Widget\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{spec}}}"
        );
        world.kubectl_with(&["apply", "-f", "-"], &text)
    };
    widget("w", "{\"size\":3}").ok();
    assert_eq!(
        world
            .kubectl(&["get", "wd", "w", "-o", "jsonpath={.spec}"])
            .ok(),
        r#"{"color":"red","size":3}"#
    );
    let table = world.kubectl(&["get", "wd"]).ok();
    assert_eq!(
        table.split_whitespace().collect::<Vec<_>>(),
        ["NAME", "SIZE", "w", "3"]
    );
    assert!(
        widget("x", "{\"size\":0}")
            .fails(1)
            .contains("spec.size: Invalid value: 0")
    );
    assert!(widget("x", "{\"size\":100}").fails(1).contains("too big"));
    assert!(
        widget("x", "{}")
            .fails(1)
            .contains("spec.size: Required value")
    );
    assert!(
        world
            .kubectl(&["explain", "widget.spec"])
            .ok()
            .contains("size")
    );
    world
        .kubectl(&["delete", "crd", "widgets.gk.test", "--timeout=20s"])
        .ok();
    world.kubectl(&["get", "wd"]).fails(1);
    world.purge();
}
