//! Docker's rules for `rmi` and `image prune`: what a name takes away, what stands in the way, and the words for it.
//!
//! [`plan`] decides, the rest acts. A name is untagged; the image goes with its last tag, unless something uses it. An ID
//! takes all tags of one repository with it. Running containers and child images stop a deletion even with force.

use crate::Removed;
use crate::archive::chain_id;
use crate::store::{Inner, LayerRow, Leaving, State};
use crate::{Image, no_such_image};
use gantry_base::{Error, Result};
use gantry_oci::reference::AnyReference;
use gantry_oci::{Digest, Reference};
use std::collections::HashSet;
use std::sync::Arc;

/// What a removal will do.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    untag: Vec<Reference>,
    delete: bool,
}

/// What the decision rests on.
struct Facts<'a> {
    image: &'a Image,
    /// The tag that was named; `None` when the image was named by its ID.
    named: Option<&'a Reference>,
    force: bool,
    /// Containers of the image, and whether each runs.
    containers: &'a [(String, bool)],
    children: usize,
}

fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// Docker: `ImageDelete`.
fn plan(facts: &Facts<'_>) -> Result<Plan> {
    let Facts {
        image,
        named,
        force,
        containers,
        ..
    } = *facts;
    if let Some(tag) = named {
        if !force
            && single_reference(&image.tags)
            && let Some((container, _)) = containers.first()
        {
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference {:?} (must force) - container {} is using its referenced image {}",
                tag.to_string(),
                short(container),
                short(&image.id.to_string()),
            )));
        }
        // What stands in the way of the deletion now only means that the image stays, without the name.
        let mut untag = vec![tag.clone()];
        let same = |t: &&Reference| t.same_repository(tag) && *t != tag;
        if tag.digest.is_none() && image.tags.iter().filter(same).all(|t| t.digest.is_some()) {
            untag.extend(image.tags.iter().filter(same).cloned());
        }
        let last = image.tags.iter().all(|t| untag.contains(t));
        return Ok(Plan {
            untag,
            delete: last && hindrance(facts, 0).is_none(),
        });
    }
    // One tag goes together with the ID that was named; several are a reason to ask for force.
    let references = if single_reference(&image.tags) {
        0
    } else {
        image.tags.len()
    };
    match hindrance(facts, references) {
        Some(conflict) => Err(conflict),
        None => Ok(Plan {
            untag: image.tags.clone(),
            delete: true,
        }),
    }
}

/// Docker: `isSingleReference`. All names are of one repository, and at most one is a tag.
fn single_reference(names: &[Reference]) -> bool {
    names.iter().filter(|name| name.digest.is_none()).count() <= 1
        && names
            .windows(2)
            .all(|pair| pair[0].same_repository(&pair[1]))
}

/// Docker: `checkImageDeleteConflict`, in its order.
fn hindrance(facts: &Facts<'_>, references: usize) -> Option<Error> {
    let conflict = |how: &str, why: String| {
        Some(Error::conflict(format!(
            "conflict: unable to delete {} ({how}) - {why}",
            short(&facts.image.id.to_string())
        )))
    };
    if facts.children > 0 {
        return conflict(
            "cannot be forced",
            "image has dependent child images".into(),
        );
    }
    if let Some((id, _)) = facts.containers.iter().find(|(_, running)| *running) {
        let why = format!("image is being used by running container {}", short(id));
        return conflict("cannot be forced", why);
    }
    if facts.force {
        return None;
    }
    if references > 0 {
        return conflict(
            "must be forced",
            "image is referenced in multiple repositories".into(),
        );
    }
    if let Some((id, _)) = facts.containers.first() {
        let why = format!("image is being used by stopped container {}", short(id));
        return conflict("must be forced", why);
    }
    None
}

pub(crate) fn remove(
    store: &Inner,
    name: &str,
    force: bool,
    in_use: &dyn Fn(&Digest) -> Vec<(String, bool)>,
) -> Result<Vec<Removed>> {
    let parsed = AnyReference::parse(name).map_err(|e| Error::invalid(e.to_string()))?;
    let _publish = store.lock_publish();
    let (image, children) = {
        let state = store.read();
        let image = state
            .find(name, &parsed)
            .cloned()
            .ok_or_else(|| no_such_image(name))?;
        let children = state.children(&image.id);
        (image, children)
    };
    let by_id = image.id.to_string().starts_with(name) || image.id.hex().starts_with(name);
    let named = match parsed {
        AnyReference::Name(reference) if !by_id => Some(reference.or_latest()),
        _ => None,
    };
    // From here on nobody can begin to use it; who does already is known to `in_use` or holds it.
    let _leaving = Leaving::new(store, vec![image.id.clone()]);
    let mut containers = in_use(&image.id);
    if store.read().is_held(&image.id) {
        containers.push(("(new)".into(), false));
    }
    let plan = plan(&Facts {
        image: &image,
        named: named.as_ref(),
        force,
        containers: &containers,
        children,
    })?;
    let mut gone = Vec::new();
    let mut hidden = Vec::new();
    if plan.delete {
        // A stopped container keeps the layers of an image that was removed by force.
        if containers.is_empty() {
            gone.push(image);
            gone.extend(orphaned_parents(&store.read(), &gone, &|id| {
                !in_use(id).is_empty()
            }));
        } else {
            hidden.push(image);
        }
    }
    take_out(store, &plan.untag, &gone, &hidden).map(|(removed, _)| removed)
}

/// Docker also deletes the images that a deleted one was made from, as long as nothing else wants them.
fn orphaned_parents(
    state: &State,
    gone: &[Arc<Image>],
    in_use: &dyn Fn(&Digest) -> bool,
) -> Vec<Arc<Image>> {
    let mut dead: HashSet<Digest> = gone.iter().map(|image| image.id.clone()).collect();
    let mut orphans = Vec::new();
    let mut next = gone.last().and_then(|image| image.parent.clone());
    while let Some(known) = next.and_then(|id| state.images.get(&id)) {
        let image = &known.image;
        let wanted = state
            .visible_images()
            .any(|other| other.parent.as_ref() == Some(&image.id) && !dead.contains(&other.id));
        if known.row.hidden
            || wanted
            || !image.tags.is_empty()
            || state.is_held(&image.id)
            || in_use(&image.id)
        {
            break;
        }
        dead.insert(image.id.clone());
        orphans.push(image.clone());
        next = image.parent.clone();
    }
    orphans
}

/// Does it and tells it in Docker's order: tags, image, its layers from the top.
pub(crate) fn take_out(
    store: &Inner,
    untag: &[Reference],
    gone: &[Arc<Image>],
    hidden: &[Arc<Image>],
) -> Result<(Vec<Removed>, u64)> {
    let ids = |images: &[Arc<Image>]| images.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    let freed = store.take_out(untag, &ids(gone), &ids(hidden))?;
    let bytes = freed.iter().map(|(_, row)| row.size).sum();
    let mut removed: Vec<Removed> = untag.iter().cloned().map(Removed::Untagged).collect();
    let mut told = HashSet::new();
    for image in gone {
        removed.push(Removed::Deleted(image.id.clone()));
        for chain in freed_chains(image, &freed) {
            if told.insert(chain.clone()) {
                removed.push(Removed::Deleted(chain));
            }
        }
    }
    removed.extend(
        hidden
            .iter()
            .map(|image| Removed::Deleted(image.id.clone())),
    );
    Ok((removed, bytes))
}

fn freed_chains(image: &Image, freed: &[(String, LayerRow)]) -> Vec<Digest> {
    let mut chain = None;
    let mut chains = Vec::new();
    for layer in &image.layers {
        let id = chain_id(chain.as_ref(), &layer.diff_id);
        let key = format!("chain-{}", id.hex());
        if freed
            .iter()
            .any(|(k, row)| *k == key || (row.diff_id == layer.diff_id && !k.starts_with("chain-")))
        {
            chains.push(id.clone());
        }
        chain = Some(id);
    }
    chains.reverse();
    chains
}

pub(crate) fn prune(
    store: &Inner,
    all: bool,
    wanted: &dyn Fn(&Image) -> bool,
    in_use: &dyn Fn(&Digest) -> bool,
) -> Result<(Vec<Removed>, u64)> {
    let _publish = store.lock_publish();
    let pins = crate::disk::pins(store)?;
    let pinned = |image: &Image| {
        pins.contains(&image.id.to_string())
            || image.tags.iter().any(|tag| pins.contains(&tag.canonical()))
    };
    let candidates = store
        .read()
        .visible_images()
        .map(|i| i.id.clone())
        .collect();
    let _leaving = Leaving::new(store, candidates);
    let mut gone: Vec<Arc<Image>> = Vec::new();
    let mut untag = Vec::new();
    {
        let state = store.read();
        let mut dead: HashSet<Digest> = HashSet::new();
        // A parent may go only after its children: until a pass finds nothing more.
        loop {
            let before = gone.len();
            for image in state.visible_images() {
                let has_children = state.visible_images().any(|other| {
                    other.parent.as_ref() == Some(&image.id) && !dead.contains(&other.id)
                });
                if dead.contains(&image.id)
                    || has_children
                    || !wanted(image)
                    || pinned(image)
                    || (!all && !image.tags.is_empty())
                    || state.is_held(&image.id)
                    || in_use(&image.id)
                {
                    continue;
                }
                dead.insert(image.id.clone());
                untag.extend(image.tags.iter().cloned());
                gone.push(image.clone());
            }
            if gone.len() == before {
                break;
            }
        }
    }
    let left = hidden_and_unused(&store.read(), in_use);
    let (removed, bytes) = take_out(store, &untag, &gone, &[])?;
    Ok((removed, bytes + free_hidden(store, &left)?))
}

pub(crate) fn collect(store: &Inner, in_use: &dyn Fn(&Digest) -> bool) -> Result<u64> {
    // Asked after every removal of a container; almost always there is nothing.
    if hidden_and_unused(&store.read(), in_use).is_empty() {
        return Ok(0);
    }
    let _publish = store.lock_publish();
    let left = hidden_and_unused(&store.read(), in_use);
    free_hidden(store, &left)
}

fn hidden_and_unused(state: &State, in_use: &dyn Fn(&Digest) -> bool) -> Vec<Digest> {
    state
        .images
        .iter()
        .filter(|(id, known)| known.row.hidden && !in_use(id))
        .map(|(id, _)| id.clone())
        .collect()
}

fn free_hidden(store: &Inner, ids: &[Digest]) -> Result<u64> {
    if ids.is_empty() {
        return Ok(0);
    }
    let freed = store.take_out(&[], ids, &[])?;
    Ok(freed.iter().map(|(_, row)| row.size).sum())
}
