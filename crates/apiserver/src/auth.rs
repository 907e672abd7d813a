//! Who asks, and whether they may.

use crate::Api;
use crate::request::{Call, Place, Target, User};
use crate::status::{Result, Status};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const MASTERS: &str = "system:masters";

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

pub(crate) fn authorize(_api: &Api, call: &Call, place: &Place) -> Result<()> {
    if call.user.is_in(MASTERS) {
        return Ok(());
    }
    match place {
        Place::Path
            if matches!(
                &call.path[..],
                "/version" | "/healthz" | "/livez" | "/readyz"
            ) =>
        {
            Ok(())
        }
        Place::Path => Err(Status::forbidden_path(&format!(
            "User {:?} cannot {} path {:?}",
            call.user.name,
            call.method.as_str().to_lowercase(),
            call.path
        ))),
        Place::Object(target) => Err(denied(&call.user, target)),
    }
}

/// The words of Kubernetes' own refusal.
pub(crate) fn denied(user: &User, target: &Target) -> Status {
    let kind = &target.kind;
    let resource = if target.subresource.is_empty() {
        kind.plural.clone()
    } else {
        format!("{}/{}", kind.plural, target.subresource)
    };
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
        user.name, target.verb, kind.group
    );
    Status::forbidden(&kind.group, &kind.plural, &target.name, &why)
}
