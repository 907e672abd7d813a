//! Who manages which field, and server-side apply.

use crate::Api;
use crate::reply::Reply;
use crate::request::{Call, Target};
use crate::status::{Result, Status};
use serde_json::Value;
use std::sync::Arc;

pub(crate) fn created(_call: &Call, _target: &Target, _object: &mut Value) -> Result<()> {
    Ok(())
}

pub(crate) fn changed(
    _call: &Call,
    _target: &Target,
    _old: &Value,
    _new: &mut Value,
) -> Result<()> {
    Ok(())
}

pub(crate) fn applied(
    _call: &Call,
    _target: &Target,
    _old: &Value,
    _applied: &Value,
    _force: bool,
) -> Result<Value> {
    Err(Status::not_implemented("server-side apply is not served"))
}

pub(crate) async fn apply(
    _api: &Arc<Api>,
    _call: &Call,
    _target: &Target,
    _body: &[u8],
) -> Result<Reply> {
    Err(Status::unsupported_media(
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
    ))
}
