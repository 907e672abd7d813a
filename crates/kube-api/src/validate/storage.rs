//! Rules of volumes, claims and storage classes.

use super::meta::{immutable, label_selector, maybe_one_of};
use super::pod::{node_selector, resource_quantity};
use super::volume::{driver_name, host_path};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::view::{at, entries, get, has, is_set, put, quantity, same, text, words};
use serde_json::{Value, json};

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

fn access_modes(spec: &Value, path: &Path, detail: &str, errors: &mut Errors) {
    let modes = words(spec, "accessModes");
    let here = path.child("accessModes");
    if modes.is_empty() {
        errors.required(&here, detail);
    }
    for mode in &modes {
        if !MODES.contains(mode) {
            errors.not_supported(&here, *mode, MODES);
        }
    }
    if modes.contains(&"ReadWriteOncePod")
        && modes
            .iter()
            .any(|mode| *mode != "ReadWriteOncePod" && MODES.contains(mode))
    {
        errors.forbidden(
            &here,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
}

pub(super) fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    access_modes(spec, path, "at least 1 access mode is required", errors);
    label_selector(get(spec, "selector"), &path.child("selector"), errors);
    let here = path.child("resources").key("storage");
    let storage = at(spec, &["resources", "requests", "storage"]);
    if storage.is_null() {
        errors.required(&here, "");
    } else if let Some(amount) =
        resource_quantity("storage", storage, &here, &mut Errors::default())
    {
        if amount <= Quantity::ZERO {
            errors.invalid(&here, amount.to_string(), "must be greater than zero");
        }
    } else {
        resource_quantity("storage", storage, &here, errors);
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        errors.invalid_each(
            &path.child("storageClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
    maybe_one_of(spec, "volumeMode", path, &["Block", "Filesystem"], errors);
    for field in ["dataSource", "dataSourceRef"] {
        let source = get(spec, field);
        if source.is_null() {
            continue;
        }
        let here = path.child(field);
        for field in ["name", "kind"] {
            if text(source, field).is_empty() {
                errors.required(&here.child(field), "");
            }
        }
        let kind = text(source, "kind");
        if text(source, "apiGroup").is_empty() && kind != "PersistentVolumeClaim" {
            errors.invalid(
                &here,
                kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    }
}

pub(super) fn claim(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    claim_spec(spec, &path, errors);
    let Some(old) = old else { return };
    let before = get(old, "spec");
    let (mut new, mut known) = (spec.clone(), before.clone());
    if text(before, "volumeName").is_empty() {
        put(&mut known, &["volumeName"], get(spec, "volumeName").clone());
    }
    if !has(before, "storageClassName") {
        put(
            &mut known,
            &["storageClassName"],
            get(spec, "storageClassName").clone(),
        );
    }
    if text(get(object, "status"), "phase") == "Bound" {
        let size = at(before, &["resources", "requests", "storage"]).clone();
        put(&mut new, &["resources", "requests", "storage"], size);
        let class = get(before, "volumeAttributesClassName").clone();
        put(&mut new, &["volumeAttributesClassName"], class);
    }
    if !same(&new, &known) {
        errors.forbidden(
            &path,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |value: &Value| quantity(value).unwrap_or(Quantity::ZERO);
    let (now, then) = (
        size(at(spec, &["resources", "requests", "storage"])),
        size(at(before, &["resources", "requests", "storage"])),
    );
    if now < then && now <= size(at(old, &["status", "capacity", "storage"])) {
        errors.forbidden(
            &path.child("resources").child("requests").child("storage"),
            "field can not be less than status.capacity",
        );
    }
    immutable(
        get(spec, "volumeMode"),
        get(before, "volumeMode"),
        &Path::new("volumeMode"),
        errors,
    );
}

const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub(super) fn persistent_volume(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (get(object, "spec"), Path::new("spec"));
    access_modes(spec, &path, "", errors);
    let here = path.child("capacity");
    if !is_set(spec, "capacity") {
        errors.required(&here, "");
    } else if get(spec, "capacity")
        .as_object()
        .is_some_and(|c| c.len() > 1 || !c.contains_key("storage"))
    {
        errors.not_supported(&here, get(spec, "capacity").clone(), &["storage"]);
    }
    for (name, value) in entries(spec, "capacity") {
        let here = here.key(name);
        if let Some(amount) = resource_quantity(name, value, &here, errors)
            && amount <= Quantity::ZERO
        {
            errors.invalid(&here, amount.to_string(), "must be greater than zero");
        }
    }
    maybe_one_of(
        spec,
        "persistentVolumeReclaimPolicy",
        &path,
        &["Delete", "Recycle", "Retain"],
        errors,
    );
    let required = at(spec, &["nodeAffinity", "required"]);
    if has(spec, "nodeAffinity") {
        let here = path.child("nodeAffinity").child("required");
        if required.is_null() {
            errors.required(&here, "must specify required node constraints");
        } else {
            node_selector(required, &here, errors);
        }
    }
    let mut found = 0;
    for source in SOURCES {
        let own = get(spec, source);
        if own.is_null() {
            continue;
        }
        found += 1;
        let here = path.child(source);
        if found > 1 {
            errors.forbidden(&here, "may not specify more than 1 volume type");
            continue;
        }
        let needs: &[&str] = match *source {
            "nfs" => &["server", "path"],
            "local" => &["path"],
            "csi" => &["volumeHandle"],
            "iscsi" => &["targetPortal", "iqn"],
            _ => &[],
        };
        for field in needs {
            if text(own, field).is_empty() {
                errors.required(&here.child(field), "");
            }
        }
        match *source {
            "hostPath" => host_path(own, &here, errors),
            "csi" => driver_name(text(own, "driver"), &here.child("driver"), errors),
            "local" if required.is_null() => {
                errors.required(
                    &path.child("nodeAffinity"),
                    "Local volume requires node affinity",
                );
            }
            _ => {}
        }
    }
    if found == 0 {
        errors.required(&path, "must specify a volume type");
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        errors.invalid_each(
            &path.child("storageClassName"),
            class,
            names::dns_subdomain(class),
        );
    }
    maybe_one_of(spec, "volumeMode", &path, &["Block", "Filesystem"], errors);
    let Some(old) = old else { return };
    let before = get(old, "spec");
    if SOURCES
        .iter()
        .any(|source| !same(get(spec, source), get(before, source)))
    {
        errors.forbidden(
            &path.child("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    immutable(
        get(spec, "volumeMode"),
        get(before, "volumeMode"),
        &Path::new("volumeMode"),
        errors,
    );
    if has(before, "nodeAffinity") {
        immutable(
            get(spec, "nodeAffinity"),
            get(before, "nodeAffinity"),
            &Path::new("nodeAffinity"),
            errors,
        );
    }
}

pub(super) fn storage_class(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let provisioner = text(object, "provisioner");
    let path = Path::new("provisioner");
    if provisioner.is_empty() {
        errors.required(&path, "");
    } else {
        errors.invalid_each(
            &path,
            provisioner,
            names::qualified(&provisioner.to_lowercase()),
        );
    }
    for (key, _) in entries(object, "parameters") {
        if key.is_empty() {
            errors.invalid(
                &Path::new("parameters"),
                json!(key),
                "field can not be empty.",
            );
        }
    }
    let root = Path::root();
    maybe_one_of(
        object,
        "reclaimPolicy",
        &root,
        &["Delete", "Retain"],
        errors,
    );
    super::meta::one_of(
        object,
        "volumeBindingMode",
        &root,
        &["Immediate", "WaitForFirstConsumer"],
        errors,
    );
    let Some(old) = old else { return };
    for field in ["parameters", "provisioner"] {
        if !same(get(object, field), get(old, field)) {
            errors.forbidden(
                &Path::new(field),
                format!("updates to {field} are forbidden."),
            );
        }
    }
    for field in ["reclaimPolicy", "volumeBindingMode"] {
        immutable(
            get(object, field),
            get(old, field),
            &Path::new(field),
            errors,
        );
    }
}
