//! Rules of a pod's volumes.

use super::pod::{field_reference, resource_reference};
use crate::field::{Errors, Path};
use crate::names;
use crate::view::{get, has, int, list, number, quantity, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// A source's field, and how the paths of its errors call it.
const SOURCES: &[(&str, &str)] = &[
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephfs"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwardAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];
const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks the volumes of a pod's spec; gives those without a fault by name, for the mounts. `pod` is the pod's name, when it is one.
pub(super) fn volumes<'a>(
    spec: &'a Value,
    pod: Option<&str>,
    path: &Path,
    errors: &mut Errors,
) -> BTreeMap<&'a str, &'a Value> {
    let mut good: BTreeMap<&str, &Value> = BTreeMap::new();
    for (at, volume) in list(spec, "volumes").iter().enumerate() {
        let (here, name) = (path.index(at), text(volume, "name"));
        let before = errors.0.len();
        source(volume, name, pod, &here, errors);
        if name.is_empty() {
            errors.required(&here.child("name"), "");
        } else {
            errors.invalid_each(&here.child("name"), name, names::dns_label(name));
        }
        if good.contains_key(name) {
            errors.duplicate(&here.child("name"), name);
        }
        if errors.0.len() == before {
            good.insert(name, volume);
        }
    }
    good
}

fn source(volume: &Value, name: &str, pod: Option<&str>, path: &Path, errors: &mut Errors) {
    let mut found = 0;
    for (field, shown) in SOURCES {
        let own = get(volume, field);
        if own.is_null() {
            continue;
        }
        let here = path.child(shown);
        found += 1;
        if found > 1 {
            errors.forbidden(
                &path.child(field),
                "may not specify more than 1 volume type",
            );
            continue;
        }
        one(field, own, &here, errors);
        if *field == "ephemeral"
            && let Some(pod) = pod.filter(|pod| !pod.is_empty() && !name.is_empty())
        {
            let claim = format!("{pod}-{name}");
            for detail in names::dns_subdomain(&claim) {
                errors.invalid(
                    &path.child("name"),
                    name,
                    format!("PVC name {claim:?}: {detail}"),
                );
            }
        }
    }
    if found == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn one(kind: &str, own: &Value, path: &Path, errors: &mut Errors) {
    let need = |fields: &[&str], errors: &mut Errors| {
        for field in fields {
            if text(own, field).is_empty() {
                errors.required(&path.child(field), "");
            }
        }
    };
    match kind {
        "emptyDir" if quantity(get(own, "sizeLimit")).is_some_and(|size| size.sign().is_lt()) => {
            errors.forbidden(
                &path.child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            );
        }
        "hostPath" => host_path(own, path, errors),
        "gitRepo" => {
            need(&["repository"], errors);
            descending(text(own, "directory"), &path.child("directory"), errors);
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            need(
                &[if kind.starts_with('g') {
                    "pdName"
                } else {
                    "volumeID"
                }],
                errors,
            );
            if !(0..=255).contains(&int(own, "partition")) {
                errors.invalid(
                    &path.child("partition"),
                    int(own, "partition"),
                    "must be between 1 and 255, inclusive",
                );
            }
        }
        "secret" | "configMap" => {
            need(
                &[if kind == "secret" {
                    "secretName"
                } else {
                    "name"
                }],
                errors,
            );
            mode(own, "defaultMode", path, errors);
            for (at, item) in list(own, "items").iter().enumerate() {
                key_to_path(item, &path.child("items").index(at), errors);
            }
        }
        "nfs" => {
            need(&["server", "path"], errors);
            if !text(own, "path").starts_with('/') {
                errors.invalid(
                    &path.child("path"),
                    text(own, "path"),
                    "must be an absolute path",
                );
            }
        }
        "iscsi" => {
            need(&["targetPortal", "iqn"], errors);
            if !(0..=255).contains(&int(own, "lun")) {
                errors.invalid(
                    &path.child("lun"),
                    int(own, "lun"),
                    "must be between 0 and 255, inclusive",
                );
            }
        }
        "glusterfs" => need(&["endpoints", "path"], errors),
        "persistentVolumeClaim" => need(&["claimName"], errors),
        "rbd" => {
            if list(own, "monitors").is_empty() {
                errors.required(&path.child("monitors"), "");
            }
            need(&["image"], errors);
        }
        "cephfs" if list(own, "monitors").is_empty() => {
            errors.required(&path.child("monitors"), "")
        }
        "cinder" | "portworxVolume" => need(&["volumeID"], errors),
        "flexVolume" => need(&["driver"], errors),
        "azureFile" => need(&["secretName", "shareName"], errors),
        "vsphereVolume" => need(&["volumePath"], errors),
        "photonPersistentDisk" => need(&["pdID"], errors),
        "azureDisk" => need(&["diskName", "diskURI"], errors),
        "scaleIO" => need(&["gateway", "system", "volumeName"], errors),
        "downwardAPI" => {
            mode(own, "defaultMode", path, errors);
            for item in list(own, "items") {
                downward(item, path, errors);
            }
        }
        "projected" => projected(own, path, errors),
        "csi" => {
            let driver = text(own, "driver");
            driver_name(driver, &path.child("driver"), errors);
            if has(own, "nodePublishSecretRef")
                && text(get(own, "nodePublishSecretRef"), "name").is_empty()
            {
                errors.required(&path.child("nodePublishSecretRef").child("name"), "");
            }
        }
        "ephemeral" => {
            let template = get(own, "volumeClaimTemplate");
            if template.is_null() {
                errors.required(&path.child("volumeClaimTemplate"), "");
            } else {
                super::storage::claim_spec(
                    get(template, "spec"),
                    &path.child("volumeClaimTemplate").child("spec"),
                    errors,
                );
            }
        }
        "image" => {
            need(&["reference"], errors);
            super::meta::maybe_one_of(
                own,
                "pullPolicy",
                path,
                &["Always", "IfNotPresent", "Never"],
                errors,
            );
        }
        _ => {}
    }
}

pub(super) fn driver_name(driver: &str, path: &Path, errors: &mut Errors) {
    if driver.is_empty() {
        errors.required(path, "");
        return;
    }
    if driver.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.invalid_each(path, driver, names::dns_subdomain(&driver.to_lowercase()));
}

pub(super) fn host_path(own: &Value, path: &Path, errors: &mut Errors) {
    let place = text(own, "path");
    if place.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(place, &path.child("path"), errors);
    let kinds = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    if !kinds.contains(&text(own, "type")) {
        errors.not_supported(&path.child("type"), text(own, "type"), &kinds);
    }
}

fn mode(own: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = number(own, field)
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(&path.child(field), mode, MODE);
    }
}

fn key_to_path(item: &Value, path: &Path, errors: &mut Errors) {
    if text(item, "key").is_empty() {
        errors.required(&path.child("key"), "");
    }
    if text(item, "path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    local(text(item, "path"), &path.child("path"), errors);
    mode(item, "mode", path, errors);
}

fn downward(item: &Value, path: &Path, errors: &mut Errors) {
    if text(item, "path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    local(text(item, "path"), &path.child("path"), errors);
    if has(item, "fieldRef") {
        field_reference(
            get(item, "fieldRef"),
            FILE_FIELDS,
            &path.child("fieldRef"),
            errors,
        );
        if has(item, "resourceFieldRef") {
            errors.invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if has(item, "resourceFieldRef") {
        resource_reference(
            get(item, "resourceFieldRef"),
            true,
            &path.child("resourceFieldRef"),
            errors,
        );
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    mode(item, "mode", path, errors);
}

fn projected(own: &Value, path: &Path, errors: &mut Errors) {
    mode(own, "defaultMode", path, errors);
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for (at, source) in list(own, "sources").iter().enumerate() {
        let here = path.child("sources").index(at);
        let mut found = 0;
        for field in ["secret", "configMap"] {
            let inner = get(source, field);
            if inner.is_null() {
                continue;
            }
            found += 1;
            let here = here.child(field);
            if text(inner, "name").is_empty() {
                errors.required(&here.child("name"), "");
            }
            for (at, item) in list(inner, "items").iter().enumerate() {
                key_to_path(item, &here.child("items").index(at), errors);
                let place = text(item, "path");
                if !place.is_empty() && paths.contains(&place) {
                    errors.invalid(path, text(inner, "name"), "conflicting duplicate paths");
                }
                paths.insert(place);
            }
        }
        if has(source, "downwardAPI") {
            found += 1;
            for item in list(get(source, "downwardAPI"), "items") {
                downward(item, &here.child("downwardAPI"), errors);
                let place = text(item, "path");
                if !place.is_empty() && paths.contains(&place) {
                    errors.invalid(path, place, "conflicting duplicate paths");
                }
                paths.insert(place);
            }
        }
        let token = get(source, "serviceAccountToken");
        if !token.is_null() {
            found += 1;
            let here = here.child("serviceAccountToken");
            let seconds = number(token, "expirationSeconds").unwrap_or(3600);
            if seconds < 600 {
                errors.invalid(
                    &here.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            if seconds > 1 << 32 {
                errors.invalid(
                    &here.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            if text(token, "path").is_empty() {
                errors.required(&here.child("path"), "");
            } else {
                local(text(token, "path"), &here.child("path"), errors);
            }
        }
        found +=
            i32::from(has(source, "clusterTrustBundle")) + i32::from(has(source, "podCertificate"));
        if found > 1 {
            errors.forbidden(&here, "may not specify more than 1 volume type");
        }
    }
}

/// Inside of a directory: relative, and never upwards.
pub(super) fn descending(place: &str, path: &Path, errors: &mut Errors) {
    if place.starts_with('/') {
        errors.invalid(path, place, "must be a relative path");
    }
    no_backsteps(place, path, errors);
}

fn no_backsteps(place: &str, path: &Path, errors: &mut Errors) {
    if place.split('/').any(|part| part == "..") {
        errors.invalid(path, place, "must not contain '..'");
    }
}

/// Inside of a volume that is updated as a whole: names that start with two dots are taken.
fn local(place: &str, path: &Path, errors: &mut Errors) {
    descending(place, path, errors);
    if place.starts_with("..") && !place.starts_with("../") && place != ".." {
        errors.invalid(path, place, "must not start with '..'");
    }
}
