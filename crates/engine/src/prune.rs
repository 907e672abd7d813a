//! `container prune` and the sizes that `system df` and `ps -s` show.

use crate::events::now_ns;
use crate::files::tree;
use crate::{Engine, Record, Remove, State};
use gantry_base::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

pub use gantry_docker_api::filters::Filters;

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerSize {
    /// The writable layer.
    pub rw: u64,
    /// Writable layer and image together.
    pub root_fs: u64,
}

impl Engine {
    /// Removes stopped containers (`until`, `label`, `label!`). Returns ids and bytes freed.
    pub async fn container_prune(&self, filters: &Filters) -> Result<(Vec<String>, u64)> {
        let until_ns = until(filters)?;
        let (mut removed, mut freed) = (Vec::new(), 0);
        for record in self.list() {
            if !prunable(&record, until_ns, filters) {
                continue;
            }
            let size = self.rw_size(&record.id).await;
            match self.remove(&record.id, Remove::default()).await {
                Ok(()) => {
                    freed += size;
                    removed.push(record.id.clone());
                }
                // Started or removed by somebody else meanwhile.
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(e) => tracing::warn!(
                    container.id = record.id,
                    error = e.chain(),
                    "pruning a container"
                ),
            }
        }
        let attributes = BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]);
        self.0.events.publish("container", "prune", "", attributes);
        Ok((removed, freed))
    }

    pub async fn container_size(&self, r: &str) -> Result<ContainerSize> {
        let record = self.get(r)?;
        let rw = self.rw_size(&record.id).await;
        // The image of an odd, damaged store counts nothing rather than hide the container.
        let image = self
            .0
            .images
            .get(&record.image.to_string())
            .map_or(0, |image| image.size);
        Ok(ContainerSize {
            rw,
            root_fs: rw + image,
        })
    }

    async fn rw_size(&self, id: &str) -> u64 {
        let upper = self.container_dir(id).join("upper");
        tokio::task::spawn_blocking(move || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let upper = rustix::fs::open(&upper, flags, Mode::empty()).ok()?;
            tree::measure(upper.as_fd()).ok()
        })
        .await
        .ok()
        .flatten()
        .unwrap_or(0)
    }
}

/// The filter `until` as a time: what is older goes.
pub(crate) fn until(filters: &Filters) -> Result<Option<i64>> {
    match filters.values("until") {
        [] => Ok(None),
        [one] => gantry_docker_api::query::time(one, now_ns()).map(Some),
        _ => Err(Error::invalid("more than one until filter specified")),
    }
}

fn prunable(record: &Record, until_ns: Option<i64>, filters: &Filters) -> bool {
    let stopped = match record.state {
        State::Created { .. } | State::Exited(_) | State::Dead => true,
        State::Creating
        | State::Running(_)
        | State::Paused(_)
        | State::Restarting { .. }
        | State::Removing => false,
    };
    stopped
        && until_ns.is_none_or(|until| record.created_at_ns <= until)
        && filters.labels(&record.config.labels)
}
