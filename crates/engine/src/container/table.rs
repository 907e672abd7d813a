//! Every container of the node in memory: found by ID, ID prefix or name; one lock each.
//!
//! Readers take snapshots (`Arc<Record>`) and never wait for an operation. An operation holds the container's [`Slot::lock`] for its
//! whole length and publishes each new record with [`Slot::set`].

use super::Record;
use gantry_base::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// One container: its latest record, its lock, and what the daemon holds of its processes.
pub(crate) struct Slot {
    pub(crate) id: String,
    record: RwLock<Arc<Record>>,
    lock: tokio::sync::Mutex<()>,
    /// What ends with the daemon: connections, waiting attaches, timers.
    live: Mutex<super::Live>,
    /// Wakes everybody who waits for an exit or the removal.
    moment: tokio::sync::watch::Sender<super::wait::Moment>,
}

impl Slot {
    pub(crate) fn new(record: Record) -> Arc<Self> {
        let moment = super::wait::Moment::of(&record);
        Arc::new(Self {
            id: record.id.clone(),
            record: RwLock::new(Arc::new(record)),
            lock: tokio::sync::Mutex::new(()),
            live: Mutex::default(),
            moment: tokio::sync::watch::Sender::new(moment),
        })
    }
    /// The latest record.
    pub(crate) fn record(&self) -> Arc<Record> {
        self.record
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
    /// Shows a new record to readers. The caller holds [`Slot::lock`] and makes it durable.
    pub(crate) fn set(&self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record.clone();
        record
    }
    /// One operation at a time.
    pub(crate) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.lock.lock().await
    }
    /// Short access to the process's handles; never held over an await.
    pub(crate) fn live(&self) -> std::sync::MutexGuard<'_, super::Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn moment(&self) -> &tokio::sync::watch::Sender<super::wait::Moment> {
        &self.moment
    }
}

#[derive(Default)]
pub(crate) struct Table(RwLock<Index>);

#[derive(Default)]
struct Index {
    slots: BTreeMap<String, Arc<Slot>>,
    /// Name to ID; also names claimed by a create or rename that is under way.
    names: BTreeMap<String, String>,
}

impl Table {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// By full ID, name (with or without the leading slash), or unambiguous ID prefix, in Docker's order.
    pub(crate) fn find(&self, r: &str) -> Result<Arc<Slot>> {
        let index = self.read();
        if let Some(slot) = index.slots.get(r) {
            return Ok(slot.clone());
        }
        let name = r.strip_prefix('/').unwrap_or(r);
        if let Some(slot) = index.names.get(name).and_then(|id| index.slots.get(id)) {
            return Ok(slot.clone());
        }
        let missing = || Error::not_found(format!("No such container: {r}"));
        if r.is_empty() || !r.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut matches = index
            .slots
            .range(r.to_owned()..)
            .take_while(|(id, _)| id.starts_with(r));
        let (_, slot) = matches.next().ok_or_else(missing)?;
        if matches.next().is_some() {
            return Err(Error::invalid(format!(
                "multiple IDs found with provided prefix: {r}"
            )));
        }
        Ok(slot.clone())
    }

    /// Claims a name for `id`; `Err` holds the ID that has it.
    pub(crate) fn claim(&self, name: &str, id: &str) -> Result<(), String> {
        let mut index = self.write();
        if let Some(holder) = index.names.get(name) {
            return Err(holder.clone());
        }
        index.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }
    /// Gives a name back if `id` has it.
    pub(crate) fn release(&self, name: &str, id: &str) {
        let mut index = self.write();
        if index.names.get(name).is_some_and(|holder| holder == id) {
            index.names.remove(name);
        }
    }
    pub(crate) fn insert(&self, slot: Arc<Slot>) {
        self.write().slots.insert(slot.id.clone(), slot);
    }
    pub(crate) fn remove(&self, id: &str) {
        let mut index = self.write();
        index.slots.remove(id);
        index.names.retain(|_, holder| holder != id);
    }
    pub(crate) fn len(&self) -> usize {
        self.read().slots.len()
    }
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        self.read().slots.values().cloned().collect()
    }
    /// Snapshots, newest first.
    pub(crate) fn list(&self) -> Vec<Arc<Record>> {
        let mut records: Vec<_> = self
            .read()
            .slots
            .values()
            .map(|slot| slot.record())
            .collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.created_at_ns));
        records
    }
}
