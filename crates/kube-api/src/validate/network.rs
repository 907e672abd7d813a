//! Rules of services, endpoints, ingresses and network policies.

use super::meta::{
    cidr, immutable, ip, label_key, label_selector, labels, maybe_one_of, one_of, port,
};
use crate::field::{Errors, Path};
use crate::names;
use crate::view::{at, get, has, int, is_set, list, number, text, words};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn service(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    if let Some(old) = old {
        service_update(object, old, errors);
    }
    let ports = list(spec, "ports");
    let ips = words(spec, "clusterIPs");
    let headless = ips.first().copied().unwrap_or(text(spec, "clusterIP")) == "None";
    let kind = text(spec, "type");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => errors.invalid(
            &path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if is_set(spec, field) {
                    errors.forbidden(
                        &path.child(field),
                        "may not be set for ExternalName services",
                    );
                }
            }
            let name = text(spec, "externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.required(&path.child("externalName"), "");
            } else {
                errors.invalid_each(
                    &path.child("externalName"),
                    name,
                    names::dns_subdomain(name),
                );
            }
        }
        _ => {}
    }
    service_ports(ports, &path.child("ports"), errors);
    labels(get(spec, "selector"), &path.child("selector"), errors);
    one_of(
        spec,
        "sessionAffinity",
        &path,
        &["ClientIP", "None"],
        errors,
    );
    affinity(spec, &path.child("sessionAffinityConfig"), errors);
    cluster_ips(spec, &path, errors);
    for (at, address) in words(spec, "externalIPs").iter().enumerate() {
        let here = path.child("externalIPs").index(at);
        if ip(address, &here, errors) {
            special(address, &here, errors);
        }
    }
    one_of(
        spec,
        "type",
        &path,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    let mut node_ports: BTreeSet<(&str, i64)> = BTreeSet::new();
    let mut seen: BTreeSet<(&str, i64)> = BTreeSet::new();
    for (at, entry) in ports.iter().enumerate() {
        let here = path.child("ports").index(at);
        let (protocol, node, own) = (
            text(entry, "protocol"),
            int(entry, "nodePort"),
            int(entry, "port"),
        );
        if kind == "ClusterIP" && node != 0 {
            errors.forbidden(
                &here.child("nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            );
        }
        if node != 0 && node_ports.contains(&(protocol, node)) {
            errors.duplicate(&here.child("nodePort"), node);
        }
        node_ports.insert((protocol, node));
        if seen.contains(&(protocol, own)) {
            errors.duplicate(
                &here,
                json!({"protocol": protocol, "port": own, "targetPort": 0}),
            );
        }
        seen.insert((protocol, own));
    }
    let ranges = words(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let here = path.child("LoadBalancerSourceRanges");
        if kind != "LoadBalancer" {
            errors.forbidden(&here, "may only be used when `type` is 'LoadBalancer'");
        }
        for (at, range) in ranges.iter().enumerate() {
            cidr(range.trim(), &here.index(at), errors);
        }
    }
    if has(spec, "allocateLoadBalancerNodePorts") && kind != "LoadBalancer" {
        errors.forbidden(
            &path.child("allocateLoadBalancerNodePorts"),
            "may only be used when `type` is 'LoadBalancer'",
        );
    }
    if has(spec, "loadBalancerClass") {
        let class = text(spec, "loadBalancerClass");
        if kind != "LoadBalancer" {
            errors.forbidden(
                &path.child("loadBalancerClass"),
                "may only be used when `type` is 'LoadBalancer'",
            );
        } else {
            label_key(class, &path.child("loadBalancerClass"), errors);
        }
    }
    traffic(spec, kind, &path, errors);
}

fn service_update(object: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(object, "spec"), get(old, "spec"));
    let path = Path::new("spec");
    if text(spec, "type") == "ExternalName" || text(before, "type") == "ExternalName" {
        return;
    }
    let (new, known) = (words(spec, "clusterIPs"), words(before, "clusterIPs"));
    for (at, address) in known.iter().enumerate() {
        let here = path.child("clusterIPs").index(at);
        match new.get(at) {
            Some(now) if now != address => {
                errors.invalid(&here, json!(new), "may not change once set")
            }
            None if at == 0 => {
                errors.invalid(&here, json!(new), "primary clusterIP can not be unset")
            }
            _ => {}
        }
    }
    let (new, known) = (words(spec, "ipFamilies"), words(before, "ipFamilies"));
    for (at, family) in known.iter().enumerate() {
        let here = path.child("ipFamilies").index(at);
        match new.get(at) {
            Some(now) if now != family => {
                errors.invalid(&here, json!(new), "may not change once set")
            }
            None if at == 0 => {
                errors.invalid(&here, json!(new), "primary ipFamily can not be unset")
            }
            _ => {}
        }
    }
    let (port, known) = (
        int(spec, "healthCheckNodePort"),
        int(before, "healthCheckNodePort"),
    );
    if needs_health_check(spec) && needs_health_check(before) && port != known {
        errors.forbidden(&path.child("healthCheckNodePort"), "field is immutable");
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn service_ports(ports: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, entry) in ports.iter().enumerate() {
        let (here, name) = (path.index(at), text(entry, "name"));
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(&here.child("name"), "");
            }
        } else {
            errors.invalid_each(&here.child("name"), name, names::dns_label(name));
            if seen.contains(&name) {
                errors.duplicate(&here.child("name"), name);
            }
            seen.insert(name);
        }
        for detail in names::port_number(int(entry, "port")) {
            errors.invalid(&here.child("port"), int(entry, "port"), detail);
        }
        one_of(entry, "protocol", &here, &["SCTP", "TCP", "UDP"], errors);
        port(get(entry, "targetPort"), &here.child("targetPort"), errors);
        if has(entry, "appProtocol") {
            label_key(
                text(entry, "appProtocol"),
                &here.child("appProtocol"),
                errors,
            );
        }
    }
}

fn affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = get(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let detail = "when session affinity type is ClientIP";
            let client = get(config, "clientIP");
            if config.is_null() {
                errors.required(path, detail);
            } else if client.is_null() {
                errors.required(&path.child("clientIP"), detail);
            } else {
                let here = path.child("clientIP").child("timeoutSeconds");
                match number(client, "timeoutSeconds") {
                    None => errors.required(&here, detail),
                    Some(seconds) if !(1..=86400).contains(&seconds) => {
                        errors.invalid(
                            &here,
                            seconds,
                            "must be greater than 0 and less than 86400",
                        );
                    }
                    Some(_) => {}
                }
            }
        }
        "None" if !config.is_null() => {
            errors.forbidden(path, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(spec: &Value, path: &Path, errors: &mut Errors) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let ips = words(spec, "clusterIPs");
    let own = text(spec, "clusterIP");
    let here = path.child("clusterIPs");
    if ips.is_empty() {
        if !own.is_empty() && own != "None" {
            ip(own, &here.index(0), errors);
        }
    } else if ips[0] != own && !own.is_empty() {
        errors.invalid(&here, json!(ips), "first value must match `clusterIP`");
    }
    if ips.len() > 2 {
        errors.invalid(&here, json!(ips), "may only hold up to 2 values");
    }
    for (at, address) in ips.iter().enumerate() {
        if *address == "None" {
            if ips.len() > 1 {
                errors.invalid(
                    &here.index(at),
                    json!(ips),
                    "'None' must be the first and only value",
                );
            }
        } else {
            ip(address, &here.index(at), errors);
        }
    }
    for (at, family) in words(spec, "ipFamilies").iter().enumerate() {
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.not_supported(
                &path.child("ipFamilies").index(at),
                *family,
                &["IPv4", "IPv6"],
            );
        }
    }
    maybe_one_of(
        spec,
        "ipFamilyPolicy",
        path,
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        errors,
    );
}

fn traffic(spec: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let outside = matches!(kind, "LoadBalancer" | "NodePort")
        || (kind == "ClusterIP" && is_set(spec, "externalIPs"));
    let policy = text(spec, "externalTrafficPolicy");
    if outside {
        one_of(
            spec,
            "externalTrafficPolicy",
            path,
            &["Cluster", "Local"],
            errors,
        );
    } else if !policy.is_empty() {
        errors.invalid(
            &path.child("externalTrafficPolicy"),
            policy,
            "may only be set for externally-accessible services",
        );
    }
    let health = int(spec, "healthCheckNodePort");
    if health != 0 {
        let here = path.child("healthCheckNodePort");
        if needs_health_check(spec) {
            for detail in names::port_number(health) {
                errors.invalid(&here, health, detail);
            }
        } else {
            errors.invalid(
                &here,
                health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    }
    if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
        one_of(
            spec,
            "internalTrafficPolicy",
            path,
            &["Cluster", "Local"],
            errors,
        );
    }
    maybe_one_of(
        spec,
        "trafficDistribution",
        path,
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
        errors,
    );
}

/// Addresses that mean something else on every machine.
fn special(address: &str, path: &Path, errors: &mut Errors) {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        return;
    };
    if parsed.is_unspecified() {
        errors.invalid(path, address, format!("may not be unspecified ({address})"));
    }
    if parsed.is_loopback() {
        errors.invalid(
            path,
            address,
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        );
    }
    let (local, multicast) = match parsed {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.segments()[0] & 0xffc0 == 0xfe80,
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if local {
        errors.invalid(
            path,
            address,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        );
    }
    if multicast {
        errors.invalid(
            path,
            address,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    let path = Path::new("subsets");
    for (at, subset) in list(object, "subsets").iter().enumerate() {
        let here = path.index(at);
        if !is_set(subset, "addresses") && !is_set(subset, "notReadyAddresses") {
            errors.required(&here, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (at, address) in list(subset, field).iter().enumerate() {
                let here = here.child(field).index(at);
                if ip(text(address, "ip"), &here.child("ip"), errors) {
                    special(text(address, "ip"), &here.child("ip"), errors);
                }
                let name = text(address, "hostname");
                if !name.is_empty() {
                    errors.invalid_each(&here.child("hostname"), name, names::dns_label(name));
                }
            }
        }
        let ports = list(subset, "ports");
        for (at, entry) in ports.iter().enumerate() {
            let (here, name) = (here.child("ports").index(at), text(entry, "name"));
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.required(&here.child("name"), "");
                }
            } else {
                errors.invalid_each(&here.child("name"), name, names::dns_label(name));
            }
            for detail in names::port_number(int(entry, "port")) {
                errors.invalid(&here.child("port"), int(entry, "port"), detail);
            }
            one_of(entry, "protocol", &here, &["SCTP", "TCP", "UDP"], errors);
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let family = text(object, "addressType");
    one_of(
        object,
        "addressType",
        &Path::root(),
        &["FQDN", "IPv4", "IPv6"],
        errors,
    );
    let all = list(object, "endpoints");
    if all.len() > 1000 {
        errors.too_many(&Path::new("endpoints"), all.len(), 1000);
        return;
    }
    for (at, endpoint) in all.iter().enumerate() {
        let here = Path::new("endpoints").index(at);
        let addresses = words(endpoint, "addresses");
        if addresses.is_empty() {
            errors.required(&here.child("addresses"), "must contain at least 1 address");
        } else if addresses.len() > 100 {
            errors.too_many(&here.child("addresses"), addresses.len(), 100);
        }
        for (at, address) in addresses.iter().enumerate() {
            let here = here.child("addresses").index(at);
            match family {
                "FQDN" => errors.invalid_each(&here, address, names::dns_subdomain(address)),
                "IPv4" | "IPv6" => match address.parse::<IpAddr>() {
                    Ok(parsed) if parsed.is_ipv4() == (family == "IPv4") => {
                        special(address, &here, errors)
                    }
                    Ok(_) => {
                        errors.invalid(&here, *address, format!("must be an {family} address"))
                    }
                    Err(_) => {
                        ip(address, &here, errors);
                    }
                },
                _ => {}
            }
        }
        let name = text(endpoint, "hostname");
        if !name.is_empty() {
            errors.invalid_each(&here.child("hostname"), name, names::dns_label(name));
        }
    }
    let ports = list(object, "ports");
    if ports.len() > 20_000 {
        errors.too_many(&Path::new("ports"), ports.len(), 20_000);
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (at, entry) in ports.iter().enumerate().take(20_000) {
        let (here, name) = (Path::new("ports").index(at), text(entry, "name"));
        if !name.is_empty() {
            errors.invalid_each(&here.child("name"), name, names::dns_label(name));
        }
        if seen.contains(&name) {
            errors.duplicate(&here.child("name"), name);
        }
        seen.insert(name);
        one_of(entry, "protocol", &here, &["SCTP", "TCP", "UDP"], errors);
    }
    if let Some(old) = old {
        immutable(
            get(object, "addressType"),
            get(old, "addressType"),
            &Path::new("addressType"),
            errors,
        );
    }
}

pub(super) fn ingress(object: &Value, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    let rules = list(spec, "rules");
    if rules.is_empty() && !has(spec, "defaultBackend") {
        errors.invalid(
            &path,
            get(spec, "rules").clone(),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if has(spec, "defaultBackend") {
        backend(
            get(spec, "defaultBackend"),
            &path.child("defaultBackend"),
            errors,
        );
    }
    for (at, rule) in rules.iter().enumerate() {
        let here = path.child("rules").index(at);
        let host = text(rule, "host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(
                    &here.child("host"),
                    host,
                    "must be a DNS name, not an IP address",
                );
            }
            host_name(host, &here.child("host"), errors);
        }
        let http = get(rule, "http");
        if http.is_null() {
            continue;
        }
        let here = here.child("http").child("paths");
        if !is_set(http, "paths") {
            errors.required(&here, "");
        }
        for (at, entry) in list(http, "paths").iter().enumerate() {
            ingress_path(entry, &here.index(at), errors);
        }
    }
    for (at, tls) in list(spec, "tls").iter().enumerate() {
        for (h, host) in words(tls, "hosts").iter().enumerate() {
            host_name(
                host,
                &path.child("tls").index(at).child("hosts").index(h),
                errors,
            );
        }
    }
    if has(spec, "ingressClassName") {
        let class = text(spec, "ingressClassName");
        errors.invalid_each(
            &path.child("ingressClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
}

fn host_name(host: &str, path: &Path, errors: &mut Errors) {
    let wrong = if host.contains('*') {
        names::wildcard_subdomain(host)
    } else {
        names::dns_subdomain(host)
    };
    errors.invalid_each(path, host, wrong);
}

fn ingress_path(entry: &Value, path: &Path, errors: &mut Errors) {
    let (own, here) = (text(entry, "path"), path.child("path"));
    match text(entry, "pathType") {
        "" => errors.required(&path.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !own.starts_with('/') {
                errors.invalid(&here, own, "must be an absolute path");
            }
            if !own.is_empty() {
                for part in ["//", "/./", "/../", "%2f", "%2F"] {
                    if own.contains(part) {
                        errors.invalid(&here, own, format!("must not contain '{part}'"));
                    }
                }
                for end in ["/..", "/."] {
                    if own.ends_with(end) {
                        errors.invalid(&here, own, format!("cannot end with '{end}'"));
                    }
                }
            }
        }
        "ImplementationSpecific" => {
            if !own.is_empty() && !own.starts_with('/') {
                errors.invalid(&here, own, "must be an absolute path");
            }
        }
        other => errors.not_supported(
            &path.child("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
    backend(get(entry, "backend"), &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &Path, errors: &mut Errors) {
    let (service, resource) = (get(backend, "service"), get(backend, "resource"));
    if !resource.is_null() && !service.is_null() {
        errors.invalid(path, "", "cannot set both resource and service backends");
        return;
    }
    if !resource.is_null() {
        for field in ["kind", "name"] {
            if text(resource, field).is_empty() {
                errors.required(&path.child("resource").child(field), "");
            }
        }
        return;
    }
    if service.is_null() {
        errors.required(path, "resource or service backend is required");
        return;
    }
    let here = path.child("service");
    let name = text(service, "name");
    if name.is_empty() {
        errors.required(&here.child("name"), "");
    } else {
        errors.invalid_each(&here.child("name"), name, names::dns1035_label(name));
    }
    let port = get(service, "port");
    let (name, number) = (text(port, "name"), int(port, "number"));
    let here = here.child("port");
    if !name.is_empty() && number != 0 {
        errors.invalid(path, "", "cannot set both port name & port number");
    } else if !name.is_empty() {
        errors.invalid_each(&here.child("name"), name, names::port_name(name));
    } else if number != 0 {
        for detail in names::port_number(number) {
            errors.invalid(&here.child("number"), number, detail);
        }
    } else {
        errors.required(path, "port name or number is required");
    }
}

pub(super) fn ingress_class(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, here) = (get(object, "spec"), Path::new("spec").child("controller"));
    let controller = text(spec, "controller");
    if let Some(old) = old {
        immutable(
            get(spec, "controller"),
            at(old, &["spec", "controller"]),
            &here,
            errors,
        );
    }
    if controller.len() > 250 {
        errors.too_long(&here, 250);
    }
    if controller.is_empty() {
        errors.required(&here, "");
        return;
    }
    match controller.split_once('/') {
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            errors.invalid_each(&here, host, names::dns_subdomain(host));
        }
        _ => errors.invalid(
            &here,
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
    }
}

pub(super) fn network_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    label_selector(get(spec, "podSelector"), &path.child("podSelector"), errors);
    for (field, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in list(spec, field).iter().enumerate() {
            let here = path.child(field).index(at);
            for (at, entry) in list(rule, "ports").iter().enumerate() {
                policy_port(entry, &here.child("ports").index(at), errors);
            }
            for (at, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(peer, &here.child(peers).index(at), errors);
            }
        }
    }
    let types = words(spec, "policyTypes");
    let here = path.child("policyTypes");
    if types.len() > 2 {
        errors.invalid(
            &here,
            json!(types),
            "may not specify more than two policyTypes",
        );
        return;
    }
    for (at, kind) in types.iter().enumerate() {
        if !matches!(*kind, "Ingress" | "Egress") {
            errors.not_supported(&here.index(at), *kind, &["Egress", "Ingress"]);
        }
    }
}

fn policy_port(entry: &Value, path: &Path, errors: &mut Errors) {
    maybe_one_of(entry, "protocol", path, &["SCTP", "TCP", "UDP"], errors);
    let own = get(entry, "port");
    if !own.is_null() {
        port(own, &path.child("port"), errors);
    }
    if let Some(end) = number(entry, "endPort") {
        let here = path.child("endPort");
        match own {
            Value::Number(first) => {
                if first.as_i64().is_some_and(|first| end < first) {
                    errors.invalid(&here, end, "must be greater than or equal to `port`");
                }
                for detail in names::port_number(end) {
                    errors.invalid(&here, end, detail);
                }
            }
            Value::String(_) => errors.invalid(
                &here,
                end,
                "may not be specified when `port` is non-numeric",
            ),
            _ => errors.invalid(
                &here,
                end,
                "may not be specified when `port` is not specified",
            ),
        }
    }
}

fn policy_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let mut found = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if has(peer, field) {
            found += 1;
            label_selector(get(peer, field), &path.child(field), errors);
        }
    }
    let block = get(peer, "ipBlock");
    if !block.is_null() {
        let here = path.child("ipBlock");
        let own = text(block, "cidr");
        if own.is_empty() {
            errors.required(&here.child("cidr"), "");
        } else if cidr(own, &here.child("cidr"), errors) {
            for (at, except) in words(block, "except").iter().enumerate() {
                let here = here.child("except").index(at);
                if cidr(except, &here, errors) && !inside(except, own) {
                    errors.invalid(
                        &here,
                        *except,
                        format!("must be a strict subset of `{own}`"),
                    );
                }
            }
        }
        if found > 0 {
            errors.forbidden(path, "may not specify both ipBlock and another peer");
        }
        found += 1;
    }
    if found == 0 {
        errors.required(path, "must specify a peer");
    }
}

/// Whether one range lies in another and is not the same.
fn inside(inner: &str, outer: &str) -> bool {
    let parse = |text: &str| {
        let (address, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        let (number, width) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        Some((number, bits, width))
    };
    let (Some((inner, inner_bits, inner_width)), Some((outer, bits, width))) =
        (parse(inner), parse(outer))
    else {
        return false;
    };
    let shift = width - bits;
    let prefix = |number: u128| if shift >= 128 { 0 } else { number >> shift };
    inner_width == width && inner_bits > bits && prefix(inner) == prefix(outer)
}
