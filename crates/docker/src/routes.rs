//! Every route of the Docker API that this face answers: one table, tried from top to bottom.
//!
//! `before .. after`: the part between is the name, which may contain slashes (images do) and is percent-decoded.
//! A path with a wrong method is `page not found`, as in Docker.

use crate::call::Call;
use crate::reply::Reply;
use crate::{
    archive, build, buildkit, containers, disk, events, exec, images, networks, system, transfer,
    volumes,
};
use gantry_base::Result;
use gantry_docker_api::query;
use http::Method;
use std::pin::Pin;

pub(crate) type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

struct Route {
    method: Method,
    before: &'static str,
    /// `None`: the path is exactly `before`.
    after: Option<&'static str>,
    handler: Handler,
}

macro_rules! routes {
    ($($method:ident $before:literal $(.. $after:literal)? => $handler:path,)*) => {
        &[$(Route {
            method: Method::$method,
            before: $before,
            after: routes!(@after $($after)?),
            handler: |call| Box::pin($handler(call)),
        }),*]
    };
    (@after) => { None };
    (@after $after:literal) => { Some($after) };
}

static TABLE: &[Route] = routes! {
    GET "/_ping" => system::ping,
    HEAD "/_ping" => system::ping,
    GET "/version" => system::version,
    GET "/info" => system::info,
    GET "/system/df" => system::disk_usage,
    GET "/events" => events::stream,
    POST "/auth" => transfer::auth,

    GET "/containers/json" => containers::list,
    POST "/containers/create" => containers::create,
    POST "/containers/prune" => containers::prune,
    GET "/containers/" .. "/json" => containers::inspect,
    // Ours: what Docker cannot tell.
    GET "/containers/" .. "/autopsy" => containers::autopsy,
    POST "/containers/" .. "/set" => containers::set,
    GET "/containers/" .. "/top" => containers::top,
    GET "/containers/" .. "/logs" => containers::logs,
    GET "/containers/" .. "/changes" => archive::changes,
    GET "/containers/" .. "/export" => archive::export,
    GET "/containers/" .. "/stats" => containers::stats,
    GET "/containers/" .. "/archive" => archive::get,
    HEAD "/containers/" .. "/archive" => archive::head,
    PUT "/containers/" .. "/archive" => archive::put,
    GET "/containers/" .. "/attach/ws" => containers::attach_websocket,
    GET "/containers/" .. "/checkpoints" => containers::checkpoints,
    POST "/containers/" .. "/checkpoints" => containers::checkpoints,
    DELETE "/containers/" .. "/checkpoints/" => containers::checkpoints,
    POST "/containers/" .. "/start" => containers::start,
    POST "/containers/" .. "/stop" => containers::stop,
    POST "/containers/" .. "/restart" => containers::restart,
    POST "/containers/" .. "/kill" => containers::kill,
    POST "/containers/" .. "/pause" => containers::pause,
    POST "/containers/" .. "/unpause" => containers::unpause,
    POST "/containers/" .. "/rename" => containers::rename,
    POST "/containers/" .. "/update" => containers::update,
    POST "/containers/" .. "/resize" => containers::resize,
    POST "/containers/" .. "/attach" => containers::attach,
    POST "/containers/" .. "/wait" => containers::wait,
    POST "/containers/" .. "/exec" => exec::create,
    DELETE "/containers/" .. "" => containers::remove,
    POST "/commit" => archive::commit,

    GET "/exec/" .. "/json" => exec::inspect,
    POST "/exec/" .. "/start" => exec::start,
    POST "/exec/" .. "/resize" => exec::resize,

    GET "/images/json" => images::list,
    GET "/images/search" => transfer::search,
    GET "/images/get" => images::save,
    POST "/images/create" => images::create,
    POST "/images/load" => images::load,
    POST "/images/prune" => images::prune,
    GET "/images/" .. "/get" => images::save,
    GET "/images/" .. "/json" => images::inspect,
    GET "/images/" .. "/history" => images::history,
    POST "/images/" .. "/tag" => images::tag,
    POST "/images/" .. "/push" => transfer::push,
    // Ours: a disk budget, what is protected from it, and whether the disk still has what it was given.
    POST "/images/reclaim" => disk::reclaim,
    POST "/images/check" => disk::check,
    GET "/images/pins" => disk::pins,
    POST "/images/" .. "/pin" => disk::pin,
    POST "/images/" .. "/unpin" => disk::unpin,
    DELETE "/images/" .. "" => images::remove,
    GET "/distribution/" .. "/json" => transfer::distribution,
    POST "/build" => build::build,
    POST "/build/prune" => build::prune,
    POST "/build/cancel" => build::cancel,
    POST "/session" => buildkit::session,
    POST "/grpc" => buildkit::grpc,

    GET "/volumes" => volumes::list,
    POST "/volumes/create" => volumes::create,
    POST "/volumes/prune" => volumes::prune,
    GET "/volumes/" .. "" => volumes::inspect,
    PUT "/volumes/" .. "" => system::not_a_manager,
    DELETE "/volumes/" .. "" => volumes::remove,

    GET "/networks" => networks::list,
    GET "/networks/" => networks::list,
    POST "/networks/create" => networks::create,
    POST "/networks/prune" => networks::prune,
    POST "/networks/" .. "/connect" => networks::connect,
    POST "/networks/" .. "/disconnect" => networks::disconnect,
    GET "/networks/" .. "" => networks::inspect,
    DELETE "/networks/" .. "" => networks::remove,

    POST "/swarm/init" => system::swarm_begin,
    POST "/swarm/join" => system::swarm_begin,
    POST "/swarm/leave" => system::swarm_leave,
    GET "/swarm" => system::not_a_manager,
    GET "/swarm/unlockkey" => system::not_a_manager,
    POST "/swarm/" .. "" => system::not_a_manager,
    GET "/services" .. "" => system::not_a_manager,
    POST "/services" .. "" => system::not_a_manager,
    DELETE "/services" .. "" => system::not_a_manager,
    GET "/nodes" .. "" => system::not_a_manager,
    POST "/nodes" .. "" => system::not_a_manager,
    DELETE "/nodes" .. "" => system::not_a_manager,
    GET "/tasks" .. "" => system::not_a_manager,
    GET "/secrets" .. "" => system::not_a_manager,
    POST "/secrets" .. "" => system::not_a_manager,
    DELETE "/secrets" .. "" => system::not_a_manager,
    GET "/configs" .. "" => system::not_a_manager,
    POST "/configs" .. "" => system::not_a_manager,
    DELETE "/configs" .. "" => system::not_a_manager,

    GET "/plugins" => system::plugins,
    GET "/plugins/" .. "/json" => system::no_plugin,
    GET "/plugins/" .. "" => system::plugins_unsupported,
    POST "/plugins/" .. "" => system::plugins_unsupported,
    DELETE "/plugins/" .. "" => system::no_plugin,
};

/// The handler of a path without its version, and the name in it.
pub(crate) fn find(method: &Method, path: &str) -> Option<(Handler, String)> {
    TABLE
        .iter()
        .filter(|route| route.method == method)
        .find_map(|route| {
            let rest = path.strip_prefix(route.before)?;
            let name = match route.after {
                None => rest.is_empty().then_some("")?,
                // A collection of something that is served as a whole may be named alone: `/services`.
                Some("") if !route.before.ends_with('/') => {
                    (rest.is_empty() || rest.starts_with('/')).then_some(rest)?
                }
                Some("/checkpoints/") => rest.split_once("/checkpoints/")?.0,
                Some(after) => rest.strip_suffix(after).filter(|name| !name.is_empty())?,
            };
            Some((route.handler, query::decode(name, false).into_owned()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(method: Method, path: &str) -> Option<String> {
        find(&method, path).map(|(_, name)| name)
    }

    #[test]
    fn names_may_hold_slashes_and_escapes() {
        let some = |text: &str| Some(text.to_string());
        for (method, path, want) in [
            (Method::GET, "/_ping", some("")),
            (Method::GET, "/containers/abc/json", some("abc")),
            (Method::DELETE, "/containers/abc", some("abc")),
            (
                Method::GET,
                "/images/localhost:5000/a/b:c/json",
                some("localhost:5000/a/b:c"),
            ),
            (Method::GET, "/images/a%2Fb%3Ac/json", some("a/b:c")),
            (Method::DELETE, "/images/a/b", some("a/b")),
            (Method::GET, "/containers//json", None),
            (Method::GET, "/networks/", some("")),
            (Method::DELETE, "/networks/", None),
            (Method::GET, "/services", some("")),
            (Method::GET, "/services/x/logs", some("/x/logs")),
            (Method::GET, "/servicesx", None),
            (Method::PUT, "/containers/json", None),
            (Method::GET, "/nope", None),
            (Method::GET, "", None),
        ] {
            assert_eq!(name_of(method.clone(), path), want, "{method} {path}");
        }
    }
}
