//! Who asks, and whether they may.

use crate::Api;
use crate::object::text;
use crate::rbac::{self, Action};
use crate::reply::{self, Reply};
use crate::request::{Call, Place, Target, User};
use crate::status::{Result, Status};
use crate::{tokens, write};
use http::{HeaderMap, StatusCode, header};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const MASTERS: &str = "system:masters";
const EXTRA: &str = "impersonate-extra-";

/// The user that a verified client certificate names: CN is the name, each O a group.
pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<User> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| Status::unauthorized())?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .filter(|name| !name.is_empty())
        .ok_or_else(Status::unauthorized)?;
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok().map(str::to_owned))
        .collect();
    groups.push(AUTHENTICATED.into());
    Ok(User {
        name: name.to_owned(),
        groups,
        ..User::default()
    })
}

pub(crate) fn anonymous() -> User {
    User {
        name: "system:anonymous".into(),
        groups: vec!["system:unauthenticated".into()],
        ..User::default()
    }
}

/// The user of a request: by certificate, by token, or nobody in particular.
pub(crate) async fn authenticate(
    api: &Api,
    certified: Option<Result<User>>,
    headers: &HeaderMap,
) -> Result<User> {
    if let Some(user) = certified {
        return user;
    }
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(anonymous());
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|v| v.strip_prefix("Bearer ").or(v.strip_prefix("bearer ")))
        .ok_or_else(Status::unauthorized)?;
    let (user, audiences) = tokens::verify(api, token.trim()).await?;
    // A token that was made for somebody else is none here.
    if audiences.iter().any(|a| a == tokens::ISSUER) {
        Ok(user)
    } else {
        Err(Status::unauthorized())
    }
}

/// The user that the request wants to be taken for, if it may.
pub(crate) async fn impersonate(api: &Api, user: User, headers: &HeaderMap) -> Result<User> {
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .filter_map(|v| v.to_str().ok().map(str::to_owned))
            .collect()
    };
    let name = all("impersonate-user")
        .into_iter()
        .next()
        .unwrap_or_default();
    let (groups, uid) = (all("impersonate-group"), all("impersonate-uid"));
    if name.is_empty() {
        let asks = headers
            .keys()
            .any(|key| key.as_str().starts_with("impersonate-"));
        if asks {
            return Err(Status::bad_request(
                "requested impersonation without a user: Impersonate-User is missing",
            ));
        }
        return Ok(user);
    }
    let may = async |group: &str, resource: &str, namespace: &str, name: &str| -> Result<()> {
        let action = Action {
            verb: "impersonate".into(),
            group: group.into(),
            resource: resource.into(),
            name: name.into(),
            namespace: namespace.into(),
            path: String::new(),
        };
        if api.rbac.allows(api, &user, &action).await? {
            return Ok(());
        }
        Err(Status::forbidden(
            group,
            resource,
            name,
            &sentence(&user, &action),
        ))
    };
    let mut wanted = User {
        name: name.clone(),
        groups: groups.clone(),
        uid: uid.first().cloned().unwrap_or_default(),
        extra: Vec::new(),
        by: Some(Box::new(user.clone())),
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => {
            may("", "serviceaccounts", namespace, account).await?;
            if groups.is_empty() {
                wanted.groups = tokens::account_groups(namespace);
            }
        }
        None => may("", "users", "", &name).await?,
    }
    for group in &groups {
        may("", "groups", "", group).await?;
    }
    for uid in &uid {
        may("authentication.k8s.io", "uids", "", uid).await?;
    }
    for key in headers.keys() {
        let Some(word) = key.as_str().strip_prefix(EXTRA) else {
            continue;
        };
        let values = all(key.as_str());
        for value in &values {
            may(
                "authentication.k8s.io",
                &format!("userextras/{word}"),
                "",
                value,
            )
            .await?;
        }
        wanted.extra.push((word.to_owned(), values));
    }
    let anonymous = name == "system:anonymous";
    let own = if anonymous {
        "system:unauthenticated"
    } else {
        AUTHENTICATED
    };
    if !wanted.is_in(own) {
        wanted.groups.push(own.into());
    }
    Ok(wanted)
}

/// Refuses what the user may not.
pub(crate) async fn authorize(api: &Api, call: &Call, place: &Place) -> Result<()> {
    let user = &call.user;
    match place {
        Place::Path => {
            let action = Action {
                verb: call.method.as_str().to_lowercase(),
                path: call.path.clone(),
                ..Action::default()
            };
            if api.rbac.allows(api, user, &action).await? {
                return Ok(());
            }
            Err(Status::forbidden_path(&format!(
                "User {:?} cannot {} path {:?}",
                user.name, action.verb, action.path
            )))
        }
        Place::Object(target) => {
            let action = Action::of(target);
            if api.rbac.allows(api, user, &action).await? {
                return Ok(());
            }
            let kind = &target.kind;
            let why = sentence(user, &action);
            Err(Status::forbidden(
                &kind.group,
                &kind.plural,
                &target.name,
                &why,
            ))
        }
    }
}

/// The words of Kubernetes' own refusal.
fn sentence(user: &User, action: &Action) -> String {
    let scope = if action.namespace.is_empty() || action.resource == "namespaces" {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", action.namespace)
    };
    format!(
        "User {:?} cannot {} resource {:?} in API group {:?} {scope}",
        user.name, action.verb, action.resource, action.group
    )
}

/// Nobody hands out rights that they do not hold, by a role or by a binding.
pub(crate) async fn escalation(
    api: &Api,
    user: &User,
    target: &Target,
    object: &Value,
) -> Result<()> {
    let kind = &target.kind;
    if kind.group != rbac::GROUP || user.is_in(MASTERS) {
        return Ok(());
    }
    let name = text(object, "/metadata/name");
    let (wanted, verb, resource, about) = match &kind.plural[..] {
        "roles" | "clusterroles" => (
            rbac::rules(object),
            "escalate",
            kind.plural.clone(),
            name.to_owned(),
        ),
        _ => {
            let reference = &object["roleRef"];
            let rules = api
                .rbac
                .referenced(api, reference, &target.namespace)
                .await?;
            let role = text(reference, "/name").to_owned();
            let plural = match text(reference, "/kind") {
                "ClusterRole" => "clusterroles",
                _ => "roles",
            };
            let Some(rules) = rules else {
                return Err(Status::not_found(rbac::GROUP, plural, &role));
            };
            (rules.to_vec(), "bind", plural.to_owned(), role)
        }
    };
    let action = Action {
        verb: verb.into(),
        group: rbac::GROUP.into(),
        resource,
        name: about,
        namespace: target.namespace.clone(),
        path: String::new(),
    };
    if api.rbac.allows(api, user, &action).await? {
        return Ok(());
    }
    let held = api.rbac.held(api, user, &target.namespace).await?;
    let missing = rbac::covers(&held, &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<_> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        rbac::describe(&missing)
    );
    Err(Status::forbidden(&kind.group, &kind.plural, name, &why))
}

/// The kinds that are questions: answered, not kept.
pub(crate) async fn review(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let mut document = write::decode(call, target, body, &mut Vec::new())?;
    let user = &call.user;
    let strings = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let status = match &target.kind.plural[..] {
        "selfsubjectaccessreviews" => access(api, user, &document["spec"], "").await?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let spec = &document["spec"];
            let asked = User {
                name: text(spec, "/user").to_owned(),
                groups: strings(&spec["groups"]),
                ..User::default()
            };
            access(api, &asked, spec, &target.namespace).await?
        }
        "selfsubjectrulesreviews" => {
            let namespace = text(&document, "/spec/namespace");
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            let held = api.rbac.held(api, user, namespace).await?;
            let (resources, paths) = rbac::review(&held);
            json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
        }
        "selfsubjectreviews" => json!({"userInfo": info(user)}),
        "tokenreviews" => {
            let asked = strings(&document["spec"]["audiences"]);
            let wanted = if asked.is_empty() {
                vec![tokens::ISSUER.to_owned()]
            } else {
                asked
            };
            match tokens::verify(api, text(&document, "/spec/token")).await {
                Ok((user, audiences)) if audiences.iter().any(|a| wanted.contains(a)) => {
                    let shared: Vec<_> = audiences.iter().filter(|a| wanted.contains(a)).collect();
                    json!({"authenticated": true, "user": info(&user), "audiences": shared})
                }
                Ok(_) => {
                    json!({"authenticated": false, "error": "the token is for other audiences"})
                }
                Err(status) if status.code == StatusCode::UNAUTHORIZED => {
                    json!({"authenticated": false})
                }
                Err(status) => return Err(status),
            }
        }
        _ => return Err(Status::method_not_allowed()),
    };
    document["status"] = status;
    document["metadata"] = json!({"creationTimestamp": null});
    Ok(reply::json(StatusCode::CREATED, &document))
}

async fn access(api: &Api, user: &User, spec: &Value, namespace: &str) -> Result<Value> {
    let action = if spec["nonResourceAttributes"].is_object() {
        Action {
            verb: text(spec, "/nonResourceAttributes/verb").to_owned(),
            path: text(spec, "/nonResourceAttributes/path").to_owned(),
            ..Action::default()
        }
    } else {
        let at = |name: &str| text(spec, &format!("/resourceAttributes/{name}")).to_owned();
        let resource = match &at("subresource")[..] {
            "" => at("resource"),
            sub => format!("{}/{sub}", at("resource")),
        };
        if !namespace.is_empty() && at("namespace") != namespace {
            return Err(Status::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {namespace}"
            )));
        }
        Action {
            verb: at("verb"),
            group: at("group"),
            resource,
            name: at("name"),
            namespace: at("namespace"),
            path: String::new(),
        }
    };
    let allowed = api.rbac.allows(api, user, &action).await?;
    Ok(json!({"allowed": allowed}))
}

fn info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        let extra = user.extra.iter().map(|(k, v)| (k.clone(), json!(v)));
        info["extra"] = Value::Object(extra.collect());
    }
    info
}
