//! Who may do what: roles and bindings, read into memory once and again when one of them changed.
//!
//! Start with [`Rbac::allows`]. [`covers`] answers the other question: may somebody hand out these rules?
//!
//! Spec: Kubernetes "Using RBAC Authorization".

use crate::Api;
use crate::auth::MASTERS;
use crate::object::text;
use crate::read::{self, At};
use crate::request::{Target, User};
use crate::select::Selection;
use crate::status::{Result, Status};
use gantry_kube_api::selector::Selector;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Keys of roles and bindings begin so.
pub(crate) const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    urls: Vec<String>,
}

#[derive(Debug)]
struct Binding {
    subjects: Vec<(Subject, String)>,
    rules: Arc<[Rule]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Subject {
    User,
    Group,
}

/// What a question is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Action {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// `pods`, `pods/log`.
    pub(crate) resource: String,
    pub(crate) name: String,
    /// Empty: the whole cluster.
    pub(crate) namespace: String,
    /// Instead of a resource.
    pub(crate) path: String,
}

impl Action {
    pub(crate) fn of(target: &Target) -> Self {
        let kind = &target.kind;
        let resource = match &target.subresource[..] {
            "" => kind.plural.clone(),
            sub => format!("{}/{sub}", kind.plural),
        };
        // A namespace is asked for within itself.
        let namespace = if kind.is("", "namespaces") {
            &target.name
        } else {
            &target.namespace
        };
        Self {
            verb: target.verb.to_owned(),
            group: kind.group.clone(),
            resource,
            name: target.name.clone(),
            namespace: namespace.clone(),
            path: String::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Book {
    cluster: Vec<Binding>,
    namespaces: HashMap<String, Vec<Binding>>,
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
    /// The number of changes that it has seen.
    version: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Rbac {
    changes: AtomicU64,
    book: RwLock<Arc<Book>>,
}

impl Rbac {
    /// A role or binding changed: what is in memory holds no longer.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    async fn book(&self, api: &Api) -> Result<Arc<Book>> {
        let wanted = self.changes.load(Ordering::SeqCst) + 1;
        let book = self
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if book.version == wanted {
            return Ok(book);
        }
        let mut fresh = load(api).await?;
        fresh.version = wanted;
        let fresh = Arc::new(fresh);
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        Ok(fresh)
    }

    pub(crate) async fn allows(&self, api: &Api, user: &User, action: &Action) -> Result<bool> {
        if user.is_in(MASTERS) {
            return Ok(true);
        }
        let book = self.book(api).await?;
        Ok(rules_of(&book, user, &action.namespace).any(|rule| permits(rule, action)))
    }

    /// Everything that a user holds in a namespace (empty: in the cluster).
    pub(crate) async fn held(&self, api: &Api, user: &User, namespace: &str) -> Result<Vec<Rule>> {
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            let everything = Rule {
                verbs: all(),
                groups: all(),
                resources: all(),
                ..Rule::default()
            };
            let paths = Rule {
                verbs: all(),
                urls: all(),
                ..Rule::default()
            };
            return Ok(vec![everything, paths]);
        }
        let book = self.book(api).await?;
        Ok(rules_of(&book, user, namespace).cloned().collect())
    }

    /// The rules that a binding's `roleRef` names.
    pub(crate) async fn referenced(
        &self,
        api: &Api,
        reference: &Value,
        namespace: &str,
    ) -> Result<Option<Arc<[Rule]>>> {
        let book = self.book(api).await?;
        let name = text(reference, "/name").to_owned();
        Ok(match text(reference, "/kind") {
            "ClusterRole" => book.cluster_roles.get(&name).cloned(),
            _ => book.roles.get(&(namespace.to_owned(), name)).cloned(),
        })
    }
}

fn rules_of<'a>(book: &'a Book, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Rule> {
    let local = book.namespaces.get(namespace).into_iter().flatten();
    book.cluster
        .iter()
        .chain(local)
        .filter(|binding| {
            binding.subjects.iter().any(|(kind, name)| match kind {
                Subject::User => *name == user.name,
                Subject::Group => user.is_in(name),
            })
        })
        .flat_map(|binding| binding.rules.iter())
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|item| item == "*" || item == word)
}

fn permits(rule: &Rule, action: &Action) -> bool {
    if !has(&rule.verbs, &action.verb) {
        return false;
    }
    if !action.path.is_empty() {
        return rule.urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => action.path.starts_with(prefix),
            None => *url == action.path,
        });
    }
    has(&rule.groups, &action.group)
        && has_resource(&rule.resources, &action.resource)
        && (rule.names.is_empty() || rule.names.contains(&action.name))
}

/// `*` is everything, `*/scale` that subresource of everything.
fn has_resource(list: &[String], resource: &str) -> bool {
    let sub = resource.split_once('/').map(|(_, sub)| sub);
    list.iter().any(|item| {
        item == "*" || item == resource || (sub.is_some() && item.strip_prefix("*/") == sub)
    })
}

/// Whether whoever holds `held` may hand out `wanted`. The rules that are missing otherwise.
pub(crate) fn covers(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in wanted {
        for verb in &rule.verbs {
            for url in &rule.urls {
                let one = Rule {
                    verbs: vec![verb.clone()],
                    urls: vec![url.clone()],
                    ..Rule::default()
                };
                let is_held = held.iter().any(|h| {
                    has(&h.verbs, verb)
                        && h.urls.iter().any(|u| match u.strip_suffix('*') {
                            Some(prefix) => url.starts_with(prefix),
                            None => u == url,
                        })
                });
                if !is_held {
                    missing.push(one);
                }
            }
            for group in &rule.groups {
                for resource in &rule.resources {
                    let names: Vec<Option<&String>> = if rule.names.is_empty() {
                        vec![None]
                    } else {
                        rule.names.iter().map(Some).collect()
                    };
                    for name in names {
                        let is_held = held.iter().any(|h| {
                            // A star is held only by a star.
                            has(&h.verbs, verb)
                                && has(&h.groups, group)
                                && has_resource(&h.resources, resource)
                                && (h.names.is_empty()
                                    || name.is_some_and(|name| h.names.contains(name)))
                        });
                        if !is_held {
                            missing.push(Rule {
                                verbs: vec![verb.clone()],
                                groups: vec![group.clone()],
                                resources: vec![resource.clone()],
                                names: name.into_iter().cloned().collect(),
                                urls: Vec::new(),
                            });
                        }
                    }
                }
            }
        }
    }
    missing
}

/// Missing rules as Kubernetes prints them: those that differ only in their verbs are one.
pub(crate) fn describe(missing: &[Rule]) -> String {
    let mut merged: Vec<Rule> = Vec::new();
    for rule in missing {
        let found = merged.iter_mut().find(|m| {
            m.groups == rule.groups
                && m.resources == rule.resources
                && m.names == rule.names
                && m.urls == rule.urls
        });
        match found {
            Some(found) => found.verbs.extend(rule.verbs.iter().cloned()),
            None => merged.push(rule.clone()),
        }
    }
    let mut lines: Vec<String> = merged
        .iter()
        .map(|rule| {
            let mut parts = Vec::new();
            for (name, list) in [
                ("APIGroups", &rule.groups),
                ("Resources", &rule.resources),
                ("ResourceNames", &rule.names),
                ("NonResourceURLs", &rule.urls),
                ("Verbs", &rule.verbs),
            ] {
                if !list.is_empty() {
                    let words: Vec<_> = list.iter().map(|w| format!("{w:?}")).collect();
                    parts.push(format!("{name}:[{}]", words.join(" ")));
                }
            }
            format!("{{{}}}", parts.join(", "))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

pub(crate) fn rules(role: &Value) -> Vec<Rule> {
    let list = |rule: &Value, name: &str| -> Vec<String> {
        let words = rule[name].as_array().into_iter().flatten();
        words
            .filter_map(|w| w.as_str().map(str::to_owned))
            .collect()
    };
    let all = role["rules"].as_array().into_iter().flatten();
    all.map(|rule| Rule {
        verbs: list(rule, "verbs"),
        groups: list(rule, "apiGroups"),
        resources: list(rule, "resources"),
        names: list(rule, "resourceNames"),
        urls: list(rule, "nonResourceURLs"),
    })
    .collect()
}

/// The rules as a SelfSubjectRulesReview lists them.
pub(crate) fn review(held: &[Rule]) -> (Vec<Value>, Vec<Value>) {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in held {
        if rule.urls.is_empty() {
            let mut entry =
                json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                entry["resourceNames"] = json!(rule.names);
            }
            resources.push(entry);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    (resources, paths)
}

async fn all(api: &Api, plural: &str) -> Result<Vec<Value>> {
    let kind = api
        .registry
        .find(GROUP, "v1", plural)
        .ok_or_else(Status::no_resource)?;
    let selection = Selection::all(&kind);
    let found = read::page(api, &selection, At::Now, "", 0).await?;
    found
        .items
        .iter()
        .map(|item| api.document(&kind, item))
        .collect()
}

async fn load(api: &Api) -> Result<Book> {
    let mut book = Book::default();
    let cluster_roles = all(api, "clusterroles").await?;
    for role in &cluster_roles {
        let mut found = rules(role);
        // A role that is made of others: its selectors say of which.
        let selectors = role.pointer("/aggregationRule/clusterRoleSelectors");
        for selector in selectors.and_then(Value::as_array).into_iter().flatten() {
            let selector = Selector::parse(&crate::scale::selector_text(selector));
            let Ok(selector) = selector else { continue };
            for other in &cluster_roles {
                if other["metadata"]["uid"] != role["metadata"]["uid"]
                    && selector.matches(&other["metadata"]["labels"])
                {
                    found.extend(rules(other));
                }
            }
        }
        let name = text(role, "/metadata/name").to_owned();
        book.cluster_roles.insert(name, found.into());
    }
    for role in all(api, "roles").await? {
        let key = (
            text(&role, "/metadata/namespace").to_owned(),
            text(&role, "/metadata/name").to_owned(),
        );
        book.roles.insert(key, rules(&role).into());
    }
    for binding in all(api, "clusterrolebindings").await? {
        let name = text(&binding, "/roleRef/name");
        if let Some(rules) = book.cluster_roles.get(name) {
            let rules = rules.clone();
            book.cluster.push(Binding {
                subjects: subjects(&binding, ""),
                rules,
            });
        }
    }
    for binding in all(api, "rolebindings").await? {
        let namespace = text(&binding, "/metadata/namespace").to_owned();
        let name = text(&binding, "/roleRef/name").to_owned();
        let rules = match text(&binding, "/roleRef/kind") {
            "ClusterRole" => book.cluster_roles.get(&name),
            _ => book.roles.get(&(namespace.clone(), name)),
        };
        if let Some(rules) = rules.cloned() {
            let subjects = subjects(&binding, &namespace);
            book.namespaces
                .entry(namespace)
                .or_default()
                .push(Binding { subjects, rules });
        }
    }
    Ok(book)
}

fn subjects(binding: &Value, namespace: &str) -> Vec<(Subject, String)> {
    let all = binding["subjects"].as_array().into_iter().flatten();
    all.filter_map(|subject| {
        let name = text(subject, "/name");
        match text(subject, "/kind") {
            "User" => Some((Subject::User, name.to_owned())),
            "Group" => Some((Subject::Group, name.to_owned())),
            "ServiceAccount" => {
                let own = text(subject, "/namespace");
                let namespace = if own.is_empty() { namespace } else { own };
                let account = format!("system:serviceaccount:{namespace}:{name}");
                Some((Subject::User, account))
            }
            _ => None,
        }
    })
    .collect()
}

/// The roles and bindings that every cluster begins with: (name, rules) and (name, group).
pub(crate) fn first_roles() -> Vec<(&'static str, Value)> {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let read = &["get", "list", "watch"][..];
    let change = &["create", "delete", "deletecollection", "patch", "update"][..];
    let workloads = |verbs: &[&str]| {
        json!([
            rule(
                &[""],
                &[
                    "configmaps",
                    "endpoints",
                    "persistentvolumeclaims",
                    "persistentvolumeclaims/status",
                    "pods",
                    "replicationcontrollers",
                    "replicationcontrollers/scale",
                    "serviceaccounts",
                    "services",
                    "services/status",
                    "pods/status",
                    "pods/log",
                    "replicationcontrollers/status"
                ],
                verbs
            ),
            rule(
                &["apps"],
                &[
                    "controllerrevisions",
                    "daemonsets",
                    "daemonsets/status",
                    "deployments",
                    "deployments/scale",
                    "deployments/status",
                    "replicasets",
                    "replicasets/scale",
                    "replicasets/status",
                    "statefulsets",
                    "statefulsets/scale",
                    "statefulsets/status"
                ],
                verbs
            ),
            rule(
                &["autoscaling"],
                &[
                    "horizontalpodautoscalers",
                    "horizontalpodautoscalers/status"
                ],
                verbs
            ),
            rule(
                &["batch"],
                &["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
                verbs
            ),
            rule(&["discovery.k8s.io"], &["endpointslices"], verbs),
            rule(
                &["networking.k8s.io"],
                &["ingresses", "ingresses/status", "networkpolicies"],
                verbs
            ),
            rule(
                &["policy"],
                &["poddisruptionbudgets", "poddisruptionbudgets/status"],
                verbs
            ),
        ])
    };
    let join = |parts: &[Value]| {
        let all = parts.iter().flat_map(|p| match p {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        });
        Value::Array(all.collect())
    };
    let view = join(&[
        workloads(read),
        rule(
            &[""],
            &[
                "bindings",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "resourcequotas",
                "resourcequotas/status",
            ],
            read,
        ),
    ]);
    let edit = join(&[
        view.clone(),
        rule(
            &[""],
            &[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "secrets",
                "services/proxy",
            ],
            read,
        ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(
            &[""],
            &[
                "pods",
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "configmaps",
                "endpoints",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
            change,
        ),
        rule(
            &[""],
            &["pods/eviction", "serviceaccounts/token"],
            &["create"],
        ),
        rule(
            &["apps"],
            &[
                "daemonsets",
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            change,
        ),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], change),
        rule(&["batch"], &["cronjobs", "jobs"], change),
        rule(
            &["networking.k8s.io"],
            &["ingresses", "networkpolicies"],
            change,
        ),
        rule(&["policy"], &["poddisruptionbudgets"], change),
        rule(
            &["coordination.k8s.io"],
            &["leases"],
            &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        ),
    ]);
    let admin = join(&[
        edit.clone(),
        rule(
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews"],
            &["create"],
        ),
        rule(
            &[GROUP],
            &["rolebindings", "roles"],
            &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        ),
    ]);
    let paths = |urls: &[&str]| json!({"nonResourceURLs": urls, "verbs": ["get"]});
    let health = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    vec![
        (
            "cluster-admin",
            json!([rule(&["*"], &["*"], &["*"]), {"nonResourceURLs": ["*"], "verbs": ["*"]}]),
        ),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
        (
            "system:basic-user",
            json!([
                rule(
                    &["authorization.k8s.io"],
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    &["create"]
                ),
                rule(
                    &["authentication.k8s.io"],
                    &["selfsubjectreviews"],
                    &["create"]
                ),
            ]),
        ),
        (
            "system:discovery",
            json!([paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/"
            ])]),
        ),
        ("system:public-info-viewer", json!([paths(&health)])),
        (
            "system:service-account-issuer-discovery",
            json!([paths(&[
                "/.well-known/openid-configuration",
                "/openid/v1/jwks"
            ])]),
        ),
        (
            "system:auth-delegator",
            json!([
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(
                    &["authorization.k8s.io"],
                    &["subjectaccessreviews"],
                    &["create"]
                ),
            ]),
        ),
    ]
}

pub(crate) const FIRST_BINDINGS: [(&str, &[&str]); 4] = [
    ("cluster-admin", &["system:masters"]),
    ("system:basic-user", &["system:authenticated"]),
    ("system:discovery", &["system:authenticated"]),
    (
        "system:public-info-viewer",
        &["system:authenticated", "system:unauthenticated"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        // verbs groups resources names
        let mut parts = text.split(' ').map(|part| {
            let words = part.split(',').filter(|w| *w != "-");
            words.map(|w| w.replace("core", "")).collect::<Vec<_>>()
        });
        let mut next = || parts.next().unwrap_or_default();
        Rule {
            verbs: next(),
            groups: next(),
            resources: next(),
            names: next(),
            urls: Vec::new(),
        }
    }

    fn missing(held: &[&str], wanted: &str) -> usize {
        let held: Vec<_> = held.iter().map(|h| rule(h)).collect();
        covers(&held, &[rule(wanted)]).len()
    }

    #[test]
    fn nobody_hands_out_more_than_they_hold() {
        assert_eq!(missing(&["get,list core pods"], "get core pods"), 0);
        assert_eq!(
            missing(&["get core pods"], "get,delete core pods,secrets"),
            3
        );
        assert_eq!(missing(&["* * *"], "* * *"), 0);
        assert_eq!(
            missing(&["get,list,create * *"], "* * *"),
            1,
            "a star is more than all words"
        );
        assert_eq!(
            missing(&["get core pods a"], "get core pods"),
            1,
            "all names"
        );
        assert_eq!(missing(&["get core pods a,b"], "get core pods b"), 0);
        assert_eq!(missing(&["get core pods"], "get core pods/log"), 1);
        assert_eq!(
            missing(&["get core pods", "list core pods"], "get,list core pods"),
            0
        );
    }

    #[test]
    fn missing_rules_are_told_as_kubernetes_does() {
        let missing = covers(&[], &[rule("get,list core pods")]);
        assert_eq!(
            describe(&missing),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}"#
        );
    }

    #[test]
    fn rules_permit_what_they_say() {
        let action = |verb: &str, resource: &str, name: &str| Action {
            verb: verb.into(),
            resource: resource.into(),
            name: name.into(),
            ..Action::default()
        };
        assert!(permits(&rule("get core pods"), &action("get", "pods", "x")));
        assert!(!permits(
            &rule("get core pods"),
            &action("list", "pods", "")
        ));
        assert!(!permits(
            &rule("get apps pods"),
            &action("get", "pods", "x")
        ));
        assert!(permits(
            &rule("get core */log"),
            &action("get", "pods/log", "x")
        ));
        assert!(!permits(
            &rule("get core pods y"),
            &action("get", "pods", "x")
        ));
        let path = Action {
            verb: "get".into(),
            path: "/api/v1".into(),
            ..Action::default()
        };
        assert!(!permits(&rule("* * *"), &path), "a path is no resource");
    }
}
