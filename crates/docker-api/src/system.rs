//! `GET /events`: one document per line.

use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// What clients older than 1.22 read; containers and images only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<&'a str>,
    #[serde(rename = "Type")]
    pub kind: &'a str,
    #[serde(rename = "Action")]
    pub action: &'a str,
    #[serde(rename = "Actor")]
    pub actor: Actor<'a>,
    pub scope: &'static str,
    /// Seconds since the epoch.
    pub time: i64,
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

#[derive(Debug, Serialize)]
pub struct Actor<'a> {
    #[serde(rename = "ID")]
    pub id: &'a str,
    #[serde(rename = "Attributes")]
    pub attributes: &'a BTreeMap<String, String>,
}

impl<'a> Event<'a> {
    pub fn new(
        kind: &'a str,
        action: &'a str,
        id: &'a str,
        attributes: &'a BTreeMap<String, String>,
        time_ns: i64,
    ) -> Self {
        let old = matches!(kind, "container" | "image");
        Self {
            status: old.then_some(action),
            id: old.then_some(id),
            from: attributes
                .get("image")
                .map(String::as_str)
                .filter(|_| kind == "container"),
            kind,
            action,
            actor: Actor { id, attributes },
            scope: "local",
            time: time_ns.div_euclid(1_000_000_000),
            time_nano: time_ns,
        }
    }
}
