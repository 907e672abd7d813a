//! `docker rm`.

use super::wait::Moment;
use super::{Record, State, stop, table::Slot};
use crate::Engine;
use gantry_base::{Error, ErrorKind, Result, db::Batch};
use std::path::PathBuf;
use std::sync::Arc;

/// How to remove.
#[derive(Debug, Clone, Copy, Default)]
pub struct Remove {
    /// Kill it first if it runs.
    pub force: bool,
    /// Its anonymous volumes go too.
    pub volumes: bool,
    /// Only the legacy link of that name.
    pub link: bool,
}

impl Engine {
    pub async fn remove(&self, r: &str, how: Remove) -> Result<()> {
        if how.link {
            return self.remove_link(r).await;
        }
        let slot = self.0.containers.find(r)?;
        let engine = self.clone();
        Self::whole(async move { engine.remove_slot(&slot, how).await }).await
    }

    async fn remove_slot(&self, slot: &Arc<Slot>, how: Remove) -> Result<()> {
        loop {
            {
                let _guard = slot.lock().await;
                let record = slot.record();
                let word = match &record.state {
                    State::Running(_) => "running",
                    State::Paused(_) => "paused",
                    State::Restarting { .. } => "restarting",
                    State::Removing if self.0.containers.find(&record.id).is_err() => {
                        return Err(Error::not_found(format!(
                            "No such container: {}",
                            record.id
                        )));
                    }
                    _ => return self.remove_locked(slot, how).await,
                };
                if !how.force {
                    let advice = if word == "paused" {
                        "unpause and then stop the container before removing or force remove"
                    } else {
                        "stop the container before removing or force remove"
                    };
                    return Err(Error::conflict(format!(
                        "cannot remove container \"/{}\": container is {word}: {advice}",
                        record.name
                    )));
                }
            }
            match self
                .stop_slot(slot, Some(9), Some(10), stop::Why::Asked)
                .await
            {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotModified => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes a container that does not run out of the database and of memory; its folders go after the answer. The caller holds
    /// the lock. What a crash leaves over, the next start sweeps: a folder without a record belongs to nobody.
    pub(crate) async fn remove_locked(&self, slot: &Arc<Slot>, how: Remove) -> Result<()> {
        let record = slot.record();
        let mut removing: Record = (*record).clone();
        removing.state = State::Removing;
        let takes_volumes = how.volumes && record.mounts.iter().any(|mount| mount.anonymous);
        let batch = if takes_volumes {
            // More than one step: the record stays until the volumes are gone, and says so.
            Batch::new().put("containers", &record.id, &removing)
        } else {
            Batch::new().delete("containers", &record.id)
        };
        slot.set(removing);
        self.step("remove.begun").await;
        if let Err(error) = self.0.db.commit(batch).await {
            slot.set((*record).clone());
            return Err(error);
        }
        self.step("remove.committed").await;
        self.0.containers.remove(&record.id);
        self.forget_execs(slot);
        let handle = {
            let mut live = slot.live();
            live.waiting.clear();
            live.handle.take()
        };
        if takes_volumes {
            for mount in record.mounts.iter().filter(|mount| mount.anonymous) {
                let Some(name) = &mount.name else { continue };
                // In use by another container (--volumes-from): it stays.
                if let Err(error) = self.volume_remove(name, false).await {
                    tracing::debug!(volume = name, error = %error.chain(), "anonymous volume stays");
                }
            }
            self.step("remove.volumes").await;
            self.0
                .db
                .commit(Batch::new().delete("containers", &record.id))
                .await?;
        }
        self.say(&record, "destroy", &[]);
        Moment::note_removed(slot.moment());
        let (dir, run_dir) = (self.container_dir(&record.id), self.run_dir(&record.id));
        let engine = self.clone();
        tokio::spawn(async move {
            if let Some(handle) = handle {
                handle.gone().await;
            }
            delete(vec![dir, run_dir]).await;
            engine.free_removed_images().await;
        });
        Ok(())
    }
}

impl Engine {
    /// An image that was removed by force while this container used it goes with the last such container.
    async fn free_removed_images(&self) {
        let engine = self.clone();
        let freed = tokio::task::spawn_blocking(move || {
            let in_use = |image: &_| engine.list().iter().any(|record| record.uses_image(image));
            engine.0.images.collect(&in_use)
        });
        if let Ok(Err(error)) = freed.await {
            tracing::warn!(error = %error.chain(), "freeing a removed image");
        }
    }
}

/// Deletes folders on a thread of its own; what fails is swept at the next start.
pub(crate) async fn delete(dirs: Vec<PathBuf>) {
    let deleted = tokio::task::spawn_blocking(move || {
        for dir in dirs {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %dir.display(), %error, "deleting a folder");
                }
                _ => {}
            }
        }
    });
    let _ = deleted.await;
}
