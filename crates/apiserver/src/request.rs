//! What a request asks for: its path as Kubernetes reads paths, its query, the form of the answer.

use crate::kinds::{Kind, Registry};
use crate::status::{Result, Status};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use std::sync::Arc;

/// Bytes of a request's body; Kubernetes' own limit.
pub(crate) const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// Bytes of a path and query.
const URI_LIMIT: usize = 64 << 10;
const QUERY_LIMIT: usize = 200;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: Vec<(String, Vec<String>)>,
    /// Who takes this user's place.
    pub by: Option<Box<User>>,
}

impl User {
    /// A part of this server: allowed everything, and named in the audit log.
    pub fn system(name: &str) -> Self {
        Self {
            name: format!("system:{name}"),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..Self::default()
        }
    }
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The decoded query string, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == QUERY_LIMIT {
                return Err(Status::bad_request("the query has too many parameters"));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((unescape(name, true)?, unescape(value, true)?));
        }
        Ok(Self(pairs))
    }
    /// The first value; empty when there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, value)| value)
    }
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
    /// As Go reads booleans here: present and not `0` or `false`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .is_some_and(|(_, value)| !matches!(&value.to_lowercase()[..], "0" | "false"))
    }
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        match self.get(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("invalid value for {name}: {text:?}"))),
        }
    }
}

fn unescape(text: &str, plus: bool) -> Result<String> {
    let bad = || Status::bad_request("the request's address has a malformed escape");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || {
                    let digit = char::from(bytes.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let high = digit().ok_or_else(bad)?;
                let low = digit().ok_or_else(bad)?;
                out.push(high * 16 + low);
            }
            b'+' if plus => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).map_err(|_| bad())
}

/// The form in which an object is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Table,
    /// Only kind and metadata.
    Partial,
    /// Discovery of all groups in one document.
    Aggregated,
    /// OpenAPI 2 as protobuf.
    OpenApi,
}

/// A request for a kind.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) verb: &'static str,
    pub(crate) kind: Arc<Kind>,
    /// Empty: none, or all.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    pub(crate) subresource: String,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Object(Target),
    /// `/version`, `/apis`, …: no kind.
    Path,
}

/// Everything that a handler knows of its request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) user: User,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) form: Form,
}

impl Call {
    pub(crate) fn new(
        user: User,
        method: Method,
        uri: &http::Uri,
        headers: HeaderMap,
    ) -> Result<Self> {
        if uri.path().len() + uri.query().map_or(0, str::len) > URI_LIMIT {
            return Err(Status::bad_request("the request's address is too long"));
        }
        let form = form(&headers)?;
        Ok(Self {
            user,
            method,
            path: uri.path().to_owned(),
            query: Query::parse(uri.query().unwrap_or_default())?,
            headers,
            form,
        })
    }

    /// Whether the write is only to be tried.
    pub(crate) fn dry_run(&self) -> Result<bool> {
        let mut dry = false;
        for word in self.query.all("dryRun") {
            match word {
                "All" => dry = true,
                "" => {}
                other => {
                    return Err(Status::unprocessable(format!(
                        "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: {other:?}: supported values: \"All\""
                    )));
                }
            }
        }
        Ok(dry)
    }

    pub(crate) fn content_type(&self) -> &str {
        let text = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("application/json");
        text.split(';').next().unwrap_or_default().trim()
    }

    /// Who changes fields: the query's word, or what the client calls itself.
    pub(crate) fn manager(&self) -> String {
        let asked = self.query.get("fieldManager");
        if !asked.is_empty() {
            return asked.to_owned();
        }
        let agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("unknown");
        let agent = agent.split(['/', ' ']).next().unwrap_or("unknown");
        agent.chars().take(128).collect()
    }
}

/// Accept: the first form that is served wins.
fn form(headers: &HeaderMap) -> Result<Form> {
    let mut words = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        let value = value
            .to_str()
            .map_err(|_| Status::bad_request("the Accept header is not text"))?;
        words.extend(value.split(','));
    }
    if words.is_empty() {
        return Ok(Form::Plain);
    }
    for word in words {
        let mut parts = word.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if media.starts_with("application/com.github.proto-openapi.spec.v2") {
            return Ok(Form::OpenApi);
        }
        if !matches!(media, "application/json" | "*/*" | "application/*" | "") {
            continue;
        }
        let wanted = parts
            .filter_map(|p| p.split_once('='))
            .find(|(n, _)| *n == "as");
        match wanted.map(|(_, as_what)| as_what) {
            None => return Ok(Form::Plain),
            Some("Table") => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                return Ok(Form::Partial);
            }
            Some("APIGroupDiscoveryList") => return Ok(Form::Aggregated),
            Some(_) => {}
        }
    }
    Err(Status::not_acceptable())
}

/// Reads a path as Kubernetes does. `None`: not a resource's path.
pub(crate) fn place(
    registry: &Registry,
    method: &Method,
    path: &str,
    query: &Query,
) -> Result<Place> {
    let words = path
        .trim_matches('/')
        .split('/')
        .map(|word| unescape(word, false))
        .collect::<Result<Vec<_>>>()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (group, version, rest) = match &words[..] {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Place::Path),
    };
    // The old form of a watch: /api/v1/watch/pods.
    let (rest, watched) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        rest => (rest, false),
    };
    let (namespace, rest) = match rest {
        // Below a namespace, but not the namespace itself or one of its own subresources.
        ["namespaces", namespace, rest @ ..]
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") =>
        {
            (*namespace, rest)
        }
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Err(Status::no_resource()),
    };
    let Some(kind) = registry.find(group, version, plural) else {
        return Err(Status::no_resource());
    };
    if kind.namespaced == namespace.is_empty() && (!name.is_empty() || !kind.namespaced) {
        return Err(Status::no_resource());
    }
    if !subresource.is_empty() && !kind.has(subresource) {
        return Err(Status::no_resource());
    }
    let on_one = !name.is_empty();
    let verb = match *method {
        Method::GET | Method::HEAD if watched || query.flag("watch") => "watch",
        Method::GET | Method::HEAD if on_one => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST if !on_one || !subresource.is_empty() => "create",
        Method::PUT if on_one => "update",
        Method::PATCH if on_one => "patch",
        Method::DELETE if on_one => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(Place::Object(Target {
        verb,
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    }))
}

/// The whole body, bounded.
pub(crate) async fn body<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(BODY_LIMIT)),
        Err(e) => Err(Status::bad_request(format!("reading the body: {e}"))),
    }
}

/// A body that must be a JSON object.
pub(crate) fn json(body: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(body).map_err(|e| {
        Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
    })?;
    if !value.is_object() {
        return Err(Status::bad_request(
            "couldn't get version/kind; json parse error: an object was expected",
        ));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, address: &str) -> String {
        let (path, query) = address.split_once('?').unwrap_or((address, ""));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let query = Query::parse(query).unwrap();
        match place(&Registry::new(), &method, path, &query) {
            Ok(Place::Path) => "path".to_owned(),
            Ok(Place::Object(t)) => {
                let what = t.kind.kind.clone();
                format!(
                    "{} {what} {}/{} {}",
                    t.verb, t.namespace, t.name, t.subresource
                )
            }
            Err(e) => e.code.as_u16().to_string(),
        }
    }

    #[test]
    fn paths_are_read_as_kubernetes_does() {
        for (method, address, expected) in [
            ("GET", "/api/v1/namespaces/a/pods", "list Pod a/ "),
            ("GET", "/api/v1/pods", "list Pod / "),
            ("GET", "/api/v1/pods?watch=true", "watch Pod / "),
            ("GET", "/api/v1/pods?watch=0", "list Pod / "),
            ("GET", "/api/v1/namespaces/a", "get Namespace /a "),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update Namespace /a finalize",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/binding",
                "create Pod a/p binding",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection Deployment a/ ",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch Deployment a/d scale",
            ),
            ("GET", "/api/v1/namespaces/a/nodes", "404"),
            ("GET", "/api/v1/pods/p", "404"),
            ("GET", "/apis/apps/v2/deployments", "404"),
            ("GET", "/api/v1/namespaces/a/configmaps/c/status", "404"),
            ("POST", "/api/v1/namespaces/a/pods/p", "405"),
            ("GET", "/apis/apps/v1", "path"),
            ("GET", "/version", "path"),
        ] {
            assert_eq!(read(method, address), expected, "{method} {address}");
        }
    }

    #[test]
    fn the_first_form_that_is_served_wins() {
        let of = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            form(&headers).ok()
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(of(kubectl), Some(Form::Table));
        assert_eq!(
            of("application/vnd.kubernetes.protobuf, */*"),
            Some(Form::Plain)
        );
        assert_eq!(of("application/vnd.kubernetes.protobuf"), None);
    }
}
