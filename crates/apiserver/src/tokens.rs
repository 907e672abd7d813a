//! Tokens of service accounts: signed by the cluster's key, bound to an account (and a pod, if asked), short-lived.
//!
//! Spec: RFC 7519, RFC 7518 section 3.4 (ES256); Kubernetes "TokenRequest".

use crate::auth::AUTHENTICATED;
use crate::keys::Keys;
use crate::object::{self, text};
use crate::reply::{self, Reply};
use crate::request::{Call, Target, User};
use crate::status::{Result, Status};
use crate::{Api, write};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const HEADER: &str = r#"{"alg":"ES256","typ":"JWT"}"#;
const DEFAULT_SECONDS: i64 = 3600;
const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;
/// A token longer than this is nobody's.
const TOKEN_LIMIT: usize = 16 << 10;

fn sign(keys: &Keys, claims: &Value) -> Result<String> {
    let text = format!(
        "{}.{}",
        BASE64.encode(HEADER),
        BASE64.encode(claims.to_string())
    );
    let signature = keys
        .tokens
        .sign(&SystemRandom::new(), text.as_bytes())
        .map_err(|_| Status::internal("signing a token failed"))?;
    Ok(format!("{text}.{}", BASE64.encode(signature.as_ref())))
}

/// The claims of a token that this cluster signed and that holds now.
fn claims(keys: &Keys, token: &str) -> Option<Value> {
    if token.len() > TOKEN_LIMIT {
        return None;
    }
    let (text, signature) = token.rsplit_once('.')?;
    let (header, claims) = text.split_once('.')?;
    // Only the one algorithm: a token does not choose how it is checked.
    if BASE64.decode(header).ok()? != HEADER.as_bytes() {
        return None;
    }
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, keys.token_public_key());
    key.verify(text.as_bytes(), &BASE64.decode(signature).ok()?)
        .ok()?;
    let claims: Value = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
    let now = jiff::Timestamp::now().as_second();
    let holds = claims["iss"] == ISSUER
        && claims["exp"].as_i64().is_some_and(|exp| now < exp)
        && claims["nbf"].as_i64().is_some_and(|nbf| nbf <= now + 60);
    holds.then_some(claims)
}

/// Whom a token names, and the audiences that it is for. `Err`: nobody.
pub(crate) async fn verify(api: &Api, token: &str) -> Result<(User, Vec<String>)> {
    let claims = claims(&api.keys, token).ok_or_else(Status::unauthorized)?;
    let bound = &claims["kubernetes.io"];
    let namespace = text(bound, "/namespace");
    let name = text(bound, "/serviceaccount/name");
    // The account must still be the one that the token was made for.
    let same = async |plural: &str, name: &str, uid: &str| -> Result<bool> {
        let kind = api
            .registry
            .find("", "v1", plural)
            .ok_or_else(Status::no_resource)?;
        let Some(stored) = api.find(&kind, namespace, name).await? else {
            return Ok(false);
        };
        Ok(object::head(&stored.value)?.metadata.uid == uid)
    };
    let uid = text(bound, "/serviceaccount/uid");
    if name.is_empty() || !same("serviceaccounts", name, uid).await? {
        return Err(Status::unauthorized());
    }
    let mut extra = vec![(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("JTI={}", text(&claims, "/jti"))],
    )];
    let pod = text(bound, "/pod/name");
    if !pod.is_empty() {
        let pod_uid = text(bound, "/pod/uid");
        if !same("pods", pod, pod_uid).await? {
            return Err(Status::unauthorized());
        }
        let key = |word: &str| format!("authentication.kubernetes.io/pod-{word}");
        extra.push((key("name"), vec![pod.to_owned()]));
        extra.push((key("uid"), vec![pod_uid.to_owned()]));
    }
    let user = User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: account_groups(namespace),
        extra,
        by: None,
    };
    let audiences = claims["aud"].as_array().into_iter().flatten();
    let audiences = audiences
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    Ok((user, audiences))
}

pub(crate) fn account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        AUTHENTICATED.into(),
    ]
}

/// `POST …/serviceaccounts/x/token`.
pub(crate) async fn request(
    api: &Arc<Api>,
    call: &Call,
    target: &Target,
    body: &[u8],
) -> Result<Reply> {
    let asked_target = Target {
        kind: Arc::new(crate::kinds::Kind {
            group: "authentication.k8s.io".into(),
            version: "v1".into(),
            kind: "TokenRequest".into(),
            plural: "tokenrequests".into(),
            namespaced: true,
            virtual_kind: true,
            ..crate::kinds::Kind::default()
        }),
        ..target.clone()
    };
    let mut asked = write::decode(call, &asked_target, body, &mut Vec::new())?;
    let account = api.need(target).await?;
    let uid = object::head(&account.value)?.metadata.uid.into_owned();
    let seconds = asked["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let faulty = |why: &str| {
        let fault =
            crate::status::Fault::invalid("spec.expirationSeconds", &seconds.to_string(), why);
        Err(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &[fault],
        ))
    };
    if seconds < LEAST_SECONDS {
        return faulty("may not specify a duration less than 10 minutes");
    }
    if seconds > MOST_SECONDS {
        return faulty("may not specify a duration larger than 2^32 seconds");
    }
    let audiences = match asked["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.clone(),
        _ => vec![ISSUER.into()],
    };
    let mut bound = json!({
        "namespace": target.namespace,
        "serviceaccount": {"name": target.name, "uid": uid},
    });
    let reference = &asked["spec"]["boundObjectRef"];
    if reference.is_object() {
        bind(api, target, reference, &mut bound).await?;
    }
    let now = jiff::Timestamp::now();
    let until = now
        .checked_add(jiff::SignedDuration::from_secs(seconds))
        .map_err(Status::internal)?;
    let claims = json!({
        "aud": audiences, "exp": until.as_second(), "iat": now.as_second(), "iss": ISSUER,
        "jti": object::uid()?, "kubernetes.io": bound, "nbf": now.as_second(),
        "sub": format!("system:serviceaccount:{}:{}", target.namespace, target.name),
    });
    asked["spec"]["audiences"] = audiences.into();
    asked["spec"]["expirationSeconds"] = seconds.into();
    asked["metadata"]["creationTimestamp"] = object::at(now).into();
    asked["status"] =
        json!({"token": sign(&api.keys, &claims)?, "expirationTimestamp": object::at(until)});
    Ok(reply::json(StatusCode::CREATED, &asked))
}

/// Ties a token to a pod of the account: it ends with it.
async fn bind(api: &Api, target: &Target, reference: &Value, bound: &mut Value) -> Result<()> {
    let name = text(reference, "/name");
    if text(reference, "/kind") != "Pod" || text(reference, "/apiVersion") != "v1" {
        return Err(Status::bad_request(
            "cannot bind token for serviceaccount to other objects than a v1 Pod",
        ));
    }
    let kind = api
        .registry
        .find("", "v1", "pods")
        .ok_or_else(Status::no_resource)?;
    let stored = api
        .find(&kind, &target.namespace, name)
        .await?
        .ok_or_else(|| Status::not_found("", "pods", name))?;
    let pod = api.document(&kind, &stored)?;
    let uid = text(&pod, "/metadata/uid");
    let asked = text(reference, "/uid");
    if !asked.is_empty() && asked != uid {
        return Err(crate::write::uid_conflict(&kind, name, asked, uid));
    }
    if text(&pod, "/spec/serviceAccountName") != target.name {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            target.name
        )));
    }
    bound["pod"] = json!({"name": name, "uid": uid});
    Ok(())
}
