//! `/networks…`.

use crate::call::Call;
use crate::containers::{mac_text, some_if_any};
use crate::error::unsupported;
use crate::reply::Reply;
use gantry_base::{Error, Result};
use gantry_docker_api::network::{
    ConfigFrom, Connect, CreateNetwork, Disconnect, Ipam, IpamPool, Member, Network,
};
use gantry_docker_api::text;
use gantry_engine::Engine;
use gantry_network::Record;
use serde_json::json;
use std::collections::BTreeMap;

const LIST_FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "until"];

fn document(record: &Record) -> Network {
    let pool = record.subnet.map(|subnet| IpamPool {
        subnet: subnet.to_string(),
        gateway: record
            .gateway
            .map(|gateway| gateway.to_string())
            .unwrap_or_default(),
        ip_range: record
            .range
            .map(|range| range.to_string())
            .unwrap_or_default(),
        auxiliary: (!record.auxiliary.is_empty()).then(|| {
            let shown = record.auxiliary.iter();
            shown
                .map(|(name, a)| (name.clone(), a.to_string()))
                .collect()
        }),
    });
    let pool6 = record.ipv6.map(|six| IpamPool {
        subnet: six.subnet.to_string(),
        gateway: six.gateway.to_string(),
        ip_range: six.range.map(|range| range.to_string()).unwrap_or_default(),
        auxiliary: None,
    });
    Network {
        name: record.name.clone(),
        id: record.id.clone(),
        created: text::time(record.created_at_ns),
        scope: "local",
        driver: record.driver.clone(),
        enable_ipv4: true,
        enable_ipv6: record.ipv6.is_some(),
        ipam: Ipam {
            driver: "default".into(),
            options: None,
            config: pool.into_iter().chain(pool6).collect(),
        },
        internal: record.internal,
        attachable: false,
        ingress: false,
        config_from: ConfigFrom::default(),
        config_only: false,
        containers: BTreeMap::new(),
        options: record.options.clone(),
        labels: record.labels.clone(),
    }
}

/// Who is on it now.
fn members(engine: &Engine, network: &Record) -> BTreeMap<String, Member> {
    let records = engine.list();
    let running = records
        .iter()
        .filter(|record| record.state.process().is_some());
    running
        .filter_map(|record| {
            let endpoint = record
                .endpoints
                .values()
                .find(|endpoint| endpoint.network_id == network.id)?;
            let member = Member {
                name: record.name.clone(),
                endpoint_id: endpoint.id.clone(),
                mac_address: mac_text(endpoint.mac),
                ipv4_address: format!("{}/{}", endpoint.address, endpoint.prefix_len),
                ipv6_address: endpoint
                    .ipv6
                    .map(|six| format!("{}/{}", six.address, six.prefix_len))
                    .unwrap_or_default(),
            };
            Some((record.id.clone(), member))
        })
        .collect()
}

pub(crate) async fn list(call: Call) -> Result<Reply> {
    let filters = call.filters(LIST_FILTERS)?;
    let dangling = filters.flag("dangling")?;
    for kind in filters.values("type") {
        if kind != "custom" && kind != "builtin" {
            return Err(Error::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let wanted = |record: &Record| {
        let builtin = record.is_predefined();
        filters.any("driver", |driver| driver == record.driver)
            && filters.any("scope", |scope| scope == "local")
            && filters.any("id", |id| record.id.starts_with(id))
            && filters.pattern("name", &record.name)
            && filters.labels(&record.labels)
            && filters.any("type", |kind| (kind == "builtin") == builtin)
            && dangling
                .is_none_or(|wanted| !builtin && wanted == members(&call.engine, record).is_empty())
    };
    let networks = call.engine.networks().list();
    Ok(Reply::json(
        &networks
            .iter()
            .filter(|record| wanted(record))
            .map(document)
            .collect::<Vec<_>>(),
    ))
}

pub(crate) async fn inspect(call: Call) -> Result<Reply> {
    let scope = call.query().get("scope").to_string();
    if !["", "local"].contains(&scope.as_str()) {
        return Err(Error::not_found(format!("network {} not found", call.name)));
    }
    let record = call.engine.networks().get(&call.name)?;
    let mut network = document(&record);
    network.containers = members(&call.engine, &record);
    Ok(Reply::json(&network))
}

pub(crate) async fn create(mut call: Call) -> Result<Reply> {
    let request: CreateNetwork = call.json().await?;
    let network = call.engine.network_create(wanted(request)?).await?;
    Ok(Reply::created(&json!({"Id": network.id, "Warning": ""})))
}

/// What the request means; what cannot be had is refused rather than left out.
fn wanted(request: CreateNetwork) -> Result<gantry_network::CreateNetwork> {
    if request.ingress {
        return Err(unsupported(
            "ingress networks are not part of this build yet",
        ));
    }
    if !matches!(request.ipam.driver.as_str(), "" | "default") {
        return Err(Error::not_found(format!(
            "could not find plugin {} in v1 plugin registry: plugin not found",
            request.ipam.driver
        )));
    }
    let (six, four): (Vec<_>, Vec<_>) = request
        .ipam
        .config
        .into_iter()
        .partition(|pool| pool.subnet.contains(':'));
    if four.len() > 1 || six.len() > 1 {
        return Err(Error::invalid(
            "bridge driver doesn't support multiple subnets",
        ));
    }
    let pool = four.into_iter().next().unwrap_or_default();
    let pool6 = six.into_iter().next().unwrap_or_default();
    // Docker gives a network with an IPv6 subnet IPv6 only when told.
    let ipv6 = request.enable_ipv6;
    let mut auxiliary = BTreeMap::new();
    for (name, text) in pool.auxiliary.unwrap_or_default() {
        if let Some(address) = parse("aux-address", &text, "invalid address")? {
            auxiliary.insert(name, address);
        }
    }
    Ok(gantry_network::CreateNetwork {
        name: request.name,
        driver: request.driver,
        subnet: parse("subnet", &pool.subnet, "invalid CIDR block notation")?,
        range: parse("ip-range", &pool.ip_range, "invalid CIDR block notation")?,
        gateway: parse("gateway address", &pool.gateway, "invalid address")?,
        ipv6,
        subnet6: parse("subnet", &pool6.subnet, "invalid CIDR block notation")?,
        range6: parse("ip-range", &pool6.ip_range, "invalid CIDR block notation")?,
        gateway6: parse("gateway address", &pool6.gateway, "invalid address")?,
        auxiliary,
        internal: request.internal,
        labels: request.labels,
        options: request.options,
    })
}

fn parse<T: std::str::FromStr>(what: &str, text: &str, why: &str) -> Result<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::invalid(format!(
            "invalid network config:\ninvalid {what} {text}: {why}"
        ))
    })
}

pub(crate) async fn remove(call: Call) -> Result<Reply> {
    call.engine.network_remove(&call.name).await?;
    Ok(Reply::no_content())
}

pub(crate) async fn connect(mut call: Call) -> Result<Reply> {
    let request: Connect = call.json().await?;
    call.engine
        .network_connect(&call.name, &request.container, request.endpoint_config)
        .await?;
    Ok(Reply::ok())
}

pub(crate) async fn disconnect(mut call: Call) -> Result<Reply> {
    let request: Disconnect = call.json().await?;
    call.engine
        .network_disconnect(&call.name, &request.container)
        .await?;
    Ok(Reply::ok())
}

pub(crate) async fn prune(call: Call) -> Result<Reply> {
    let filters = call.filters(PRUNE_FILTERS)?;
    let deleted = call.engine.network_prune(&filters).await?;
    Ok(Reply::json(
        &json!({"NetworksDeleted": some_if_any(deleted)}),
    ))
}
