//! `docker rename`.

use super::{Record, State, validate};
use crate::Engine;
use gantry_base::{Error, Result};

impl Engine {
    pub async fn rename(&self, r: &str, new: &str) -> Result<()> {
        let new = new.strip_prefix('/').unwrap_or(new);
        if new.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        let slot = self.0.containers.find(r)?;
        let _guard = slot.lock().await;
        let record = slot.record();
        if matches!(record.state, State::Removing | State::Dead) {
            return Err(Error::conflict(format!(
                "container {} is marked for removal",
                record.id
            )));
        }
        if record.name == new {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        validate::name_is_valid(new).map_err(|e| {
            Error::invalid(format!("Error when allocating new name: {}", e.message()))
        })?;
        self.0.containers.claim(new, &record.id).map_err(|holder| {
            Error::conflict(format!(
                "Error when allocating new name: {}",
                super::create::name_is_taken(new, &holder).message()
            ))
        })?;
        let mut renamed: Record = (*record).clone();
        renamed.name = new.to_owned();
        let batch = gantry_base::db::Batch::new().put("containers", &renamed.id, &renamed);
        if let Err(error) = self.0.db.commit(batch).await {
            self.0.containers.release(new, &record.id);
            return Err(error);
        }
        let renamed = slot.set(renamed);
        self.0.containers.release(&record.name, &record.id);
        if renamed.state.process().is_some() {
            self.announce(&renamed);
        }
        self.say(
            &renamed,
            "rename",
            &[("oldName", format!("/{}", record.name))],
        );
        Ok(())
    }
}
