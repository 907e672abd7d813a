//! Recovery: what an earlier daemon left, from what the database, the disk and the kernel show. Every start of the daemon
//! runs through here; there is no second path for crashes.
//!
//! | record | what is there | becomes |
//! |---|---|---|
//! | Running, Paused | supervisor | the same, watched again |
//! | Running, Paused | exit.json | Exited with the true code, then the restart policy |
//! | Running, Paused | nothing (reboot) | Exited 255, then the restart policy |
//! | Created, Exited | supervisor: a start without its answer | Running |
//! | Restarting | – | started again |
//! | none | folder, supervisor | removed |

use super::{Exit, Process, Record, State, restart, table::Slot};
use crate::supervisor::{self, Adopted};
use crate::{Engine, Settings};
use gantry_base::{Error, Result, ResultExt, db::Db};
use gantry_network::{Endpoint, PortBinding};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// After a reboot nobody knows how it ended; Docker says 255.
const LOST_CODE: i32 = 255;
/// What the record of a run says that ended with its supervisor.
pub(crate) const SUPERVISOR_LOST: &str = "the container's supervisor was killed";
/// What the record of a run says of which nothing was left.
pub(crate) const PROCESSES_LOST: &str =
    "the container's processes went away while no daemon ran, as after a reboot";

/// A record with what was found of its processes.
struct Found {
    record: Record,
    /// The supervisor, when it runs.
    handle: Option<supervisor::Handle>,
    /// The run that ended unseen.
    ended: Option<Exit>,
}

pub(crate) struct Survey {
    found: Vec<Found>,
    /// Folders and run folders that belong to no record.
    orphans: Vec<PathBuf>,
}

impl Survey {
    /// Addresses and published ports of the containers that run.
    pub(crate) fn live(&self) -> BTreeMap<String, (Vec<Endpoint>, Vec<PortBinding>)> {
        let running = self.found.iter().filter(|found| found.handle.is_some());
        let of = |record: &Record| {
            (
                // The one with the published ports comes first.
                super::start::in_order(record),
                record.ports.clone(),
            )
        };
        running
            .map(|found| (found.record.id.clone(), of(&found.record)))
            .collect()
    }
}

/// Reads every record and finds every supervisor; side by side, because each may have to be waited for.
pub(crate) async fn find(settings: &Settings, db: &Db) -> Result<Survey> {
    let records: Vec<(String, Record)> = db.scan("containers")?;
    if let Some((id, record)) = records.iter().find(|(_, record)| record.schema > 1) {
        return Err(Error::internal(format!(
            "container {id} was written by a newer gantry (schema {}); run the newer gantry",
            record.schema
        )));
    }
    let ids: BTreeSet<String> = records.iter().map(|(id, _)| id.clone()).collect();
    let runs = settings.run_dir.join("c");
    let mut orphans = strangers(&settings.data_dir.join("containers"), &ids)?;
    let lost_runs = strangers(&runs, &ids)?;
    let kills = lost_runs.iter().map(|dir| end(dir));
    futures_util::future::join_all(kills).await;
    orphans.extend(lost_runs);
    let searches = records.into_iter().map(|(id, record)| {
        let dir = runs.join(&id);
        async move { search(record, &dir).await }
    });
    let found = futures_util::future::try_join_all(searches).await?;
    Ok(Survey { found, orphans })
}

fn strangers(dir: &Path, ids: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let mut strangers = Vec::new();
    for entry in std::fs::read_dir(dir).context(|| format!("reading {}", dir.display()))? {
        let entry = entry.context(|| format!("reading {}", dir.display()))?;
        if !entry
            .file_name()
            .to_str()
            .is_some_and(|name| ids.contains(name))
        {
            strangers.push(entry.path());
        }
    }
    Ok(strangers)
}

/// Ends a container without a record.
async fn end(run_dir: &Path) {
    if let Ok(Adopted::Running(handle, _)) = supervisor::adopt(run_dir).await {
        let _ = handle.signal(9).await;
        let gone = async {
            handle.exited().await;
            handle.gone().await;
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), gone).await;
    }
}

async fn search(mut record: Record, run_dir: &Path) -> Result<Found> {
    let was_running = record.state.process().cloned();
    if was_running.is_none() && !std::fs::exists(run_dir).unwrap_or(false) {
        return Ok(Found {
            record,
            handle: None,
            ended: None,
        });
    }
    let adopted = match supervisor::adopt(run_dir).await {
        Ok(adopted) => adopted,
        Err(error) => {
            // One container that cannot be reached must not keep the node from coming up.
            tracing::error!(container.id = %record.id, error = %error.chain(), "adopting");
            Adopted::Lost
        }
    };
    let started_at_ns = was_running
        .as_ref()
        .map_or_else(crate::events::now_ns, |process| process.started_at_ns);
    let exit = |code, error: &str, finished_at_ns: i64| Exit {
        code,
        oom_killed: false,
        memory_peak: None,
        error: error.to_owned(),
        started_at_ns: started_at_ns.min(finished_at_ns),
        finished_at_ns,
    };
    let now = crate::events::now_ns();
    let (handle, ended) = match adopted {
        Adopted::Running(handle, state) => {
            let process = Process {
                pid: state.pid,
                start_ticks: state.start_ticks,
                supervisor: state.supervisor,
                started_at_ns: was_running
                    .as_ref()
                    .map_or(state.started_at_ns, |process| process.started_at_ns),
            };
            record.state = match record.state {
                State::Paused(_) => State::Paused(process),
                _ => State::Running(process),
            };
            (Some(handle), None)
        }
        Adopted::Exited(end) => {
            let seen = matches!(&record.state, State::Exited(exit) | State::Restarting { exit, .. }
                if exit.finished_at_ns == end.finished_at_ns);
            (
                None,
                (!seen).then(|| Exit {
                    oom_killed: end.oom_killed,
                    memory_peak: end.memory_peak,
                    ..exit(end.code, "", end.finished_at_ns)
                }),
            )
        }
        Adopted::Lost => (
            None,
            was_running
                .is_some()
                .then(|| exit(137, SUPERVISOR_LOST, now)),
        ),
        Adopted::Never => (
            None,
            was_running
                .is_some()
                .then(|| exit(LOST_CODE, PROCESSES_LOST, now)),
        ),
    };
    Ok(Found {
        record,
        handle,
        ended,
    })
}

impl Engine {
    /// Brings what was found into memory and goes on from there.
    pub(crate) async fn settle(&self, survey: Survey) -> Result<()> {
        let mut to_start = Vec::new();
        for Found {
            mut record,
            handle,
            ended,
        } in survey.found
        {
            if let Err(holder) = self.0.containers.claim(&record.name, &record.id) {
                return Err(Error::internal(format!(
                    "containers {} and {holder} have the same name {:?}",
                    record.id, record.name
                )));
            }
            let before = record.clone();
            if handle.is_none() {
                record.endpoints.clear();
                record.ports.clear();
            }
            let mut removes = false;
            let mut died = None;
            if let Some(exit) = ended {
                let unhealthy = record
                    .health
                    .as_ref()
                    .is_some_and(|health| health.status == "unhealthy");
                let next = record.replacing
                    || wants_restart(&record, &exit)
                    || (unhealthy && !record.stopped_by_user && self.restarts_unhealthy(&record));
                died = Some(exit.clone());
                removes = !next && record.host_config.auto_remove;
                record.state = State::Exited(exit);
                if next {
                    record.restart_count += 1;
                    to_start.push(record.id.clone());
                }
            } else {
                match &record.state {
                    State::Restarting { exit, .. } => {
                        record.state = State::Exited(exit.clone());
                        to_start.push(record.id.clone());
                    }
                    // Docker starts these with the daemon, whoever stopped them.
                    State::Exited(_) if starts_with_the_daemon(&record) || record.replacing => {
                        to_start.push(record.id.clone())
                    }
                    State::Removing | State::Dead | State::Creating => removes = true,
                    _ => {}
                }
            }
            let changed =
                serde_json::to_string(&before).ok() != serde_json::to_string(&record).ok();
            let slot = Slot::new(record.clone());
            self.0.containers.insert(slot.clone());
            if changed {
                drop(self.save(&slot, record));
            }
            if let Some(exit) = died {
                // Nobody said so when it happened.
                self.say_died(&slot.record(), &exit);
            }
            self.ship_log(&slot);
            if let Some(handle) = handle {
                slot.live().handle = Some(handle.clone());
                self.rejoin(&slot.record());
                self.announce(&slot.record());
                self.serve_names(&slot, &handle);
                self.watch(slot.clone(), handle);
                self.watch_health(&slot);
                if slot.record().replacing {
                    // Not waited for: a stop takes its time.
                    let engine = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = engine.replace(&slot).await {
                            tracing::warn!(container.id = %slot.id, error = %error.chain(), "finishing a change");
                        }
                    });
                    continue;
                }
            } else if removes {
                let _guard = slot.lock().await;
                let how = super::remove::Remove {
                    force: true,
                    volumes: true,
                    link: false,
                };
                self.remove_locked(&slot, how).await?;
            }
        }
        for dir in &survey.orphans {
            let _ = crate::volumes::unmount(&dir.join("shm"));
        }
        tokio::spawn(super::remove::delete(survey.orphans));
        self.sweep_cgroups().await;
        self.start_all(to_start);
        Ok(())
    }

    /// Removes the cgroups of containers that do not run, with what still is in them.
    async fn sweep_cgroups(&self) {
        let running = |id: &str| {
            self.get(id)
                .is_ok_and(|record| record.state.process().is_some())
        };
        let instance = self.0.settings.instance.clone();
        let mut leftovers = BTreeSet::new();
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        let roots = hierarchies
            .map(|entry| entry.path())
            .chain([PathBuf::from("/sys/fs/cgroup")]);
        for root in roots {
            for entry in std::fs::read_dir(root.join(&instance))
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_id = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
                if is_id && !running(&name) {
                    leftovers.insert(name);
                }
            }
        }
        if leftovers.is_empty() {
            return;
        }
        let swept = tokio::task::spawn_blocking(move || {
            for id in leftovers {
                let gone = gantry_runtime::cgroup::Cgroup::at(&format!("/{instance}/{id}"))
                    .and_then(|cgroup| cgroup.kill_all().and_then(|()| cgroup.remove()));
                if let Err(error) = gone {
                    tracing::warn!(container.id = %id, %error, "removing the cgroups of a container that does not run");
                }
            }
        });
        let _ = swept.await;
    }

    /// Not waited for: the node serves meanwhile.
    fn start_all(&self, ids: Vec<String>) {
        for id in ids {
            let Ok(slot) = self.0.containers.find(&id) else {
                continue;
            };
            let engine = self.clone();
            tokio::spawn(async move {
                let _guard = slot.lock().await;
                if !matches!(slot.record().state, State::Exited(_)) {
                    return;
                }
                if let Err(error) = engine.start_locked(&slot, super::start::Why::Policy).await {
                    tracing::warn!(container.id = %slot.id, error = %error.chain(), "restart policy: start failed");
                }
            });
        }
    }
}

fn wants_restart(record: &Record, exit: &Exit) -> bool {
    if record.stopped_by_user && record.host_config.restart_policy.name != "always" {
        return false;
    }
    let ran = std::time::Duration::from_secs(3600);
    let policy = &record.host_config.restart_policy;
    restart::decide(
        policy,
        exit.code,
        record.restart_count,
        ran,
        std::time::Duration::ZERO,
    )
    .is_some()
}

fn starts_with_the_daemon(record: &Record) -> bool {
    match record.host_config.restart_policy.name.as_str() {
        "always" => true,
        "unless-stopped" => !record.stopped_by_user,
        _ => false,
    }
}
