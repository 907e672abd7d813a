//! Taking away what nothing names any more, while clients push and pull.
//!
//! ```text
//! uploads nobody goes on with → tags by rule → manifests without a tag by rule → claims of blobs that no manifest names →
//! content that no repository claims
//! ```
//! Looking is done without a lock. Whoever makes a reference makes the time of what he names young, under the shared lock; here
//! each removal looks at that time again under the exclusive one, so that nothing goes that somebody named or was told of
//! meanwhile. A manifest that cannot be read keeps everything in its repository.

use crate::manifest;
use crate::name::{Algorithm, Digest, Repository};
use crate::policy::{Keep, Policy, Rule, matches};
use crate::store::{Store, age, file_name, file_names, from_file_name};
use crate::{Registry, upload};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Removals under one hold of the lock; pushes go on in between.
const BATCH: usize = 64;
/// How often a server looks whether it is time.
const LOOK: Duration = Duration::from_secs(60);
const DAY: f64 = 86_400.0;

/// What went, or would go.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub uploads: usize,
    pub tags: usize,
    pub manifests: usize,
    /// Blobs that a repository let go of.
    pub claims: usize,
    /// Files of content.
    pub blobs: usize,
    pub bytes: u64,
}

/// How one run is done.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Nothing is removed.
    pub dry: bool,
    /// Instead of the policy's.
    pub grace: Option<Duration>,
}

impl Registry {
    /// One collection. Blocks for as long as it takes.
    pub fn collect(&self, run: Run) -> io::Result<Report> {
        let policy = self.policy();
        let collecting = Collecting {
            store: &self.store,
            grace: run
                .grace
                .unwrap_or(Duration::from_secs(policy.collect.grace_seconds)),
            policy: &policy,
            dry: run.dry,
        };
        collecting.run()
    }

    /// Reads every byte of every blob and manifest; what is damaged is set aside and named.
    pub fn check(&self) -> io::Result<Vec<String>> {
        let mut damaged = Vec::new();
        for (digest, path) in self.store.contents()? {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            match self.store.prove(&digest, &file) {
                Ok(_) => {}
                Err(e) => match e.cause {
                    Some(cause) => return Err(cause),
                    None => damaged.push(digest.to_string()),
                },
            }
        }
        Ok(damaged)
    }

    /// Collects when it is time, until `stop` turns true. Of several servers over one folder one does it.
    pub async fn maintain(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let registry = Arc::clone(&self);
            let done = tokio::task::spawn_blocking(move || registry.collect_if_due()).await;
            match done {
                Ok(Ok(Some(report))) if report != Report::default() => {
                    tracing::info!(?report, "collected")
                }
                Ok(Err(e)) => tracing::error!("collecting: {e}"),
                _ => {}
            }
        }
    }

    fn collect_if_due(&self) -> io::Result<Option<Report>> {
        let every = self.policy().collect.every_seconds;
        let mark = self.store.root().join("collected");
        let recent =
            std::fs::metadata(&mark).is_ok_and(|meta| age(&meta) < Duration::from_secs(every));
        if every == 0 || recent {
            return Ok(None);
        }
        std::fs::write(&mark, b"")?;
        self.collect(Run {
            dry: false,
            grace: None,
        })
        .map(Some)
    }
}

struct Collecting<'a> {
    store: &'a Store,
    policy: &'a Policy,
    grace: Duration,
    dry: bool,
}

impl Collecting<'_> {
    fn run(&self) -> io::Result<Report> {
        let mut report = Report::default();
        if !self.dry {
            report.uploads = upload::expire(self.store, self.policy.upload_expiry())?;
        }
        // Before the names are gathered: what is claimed after this moment has a young time.
        let mut claimed = HashSet::new();
        for name in self.folders()? {
            self.repository(&name, &mut report, &mut claimed)?;
        }
        self.contents(&claimed, &mut report)?;
        Ok(report)
    }

    /// Repositories, and folders where only blobs were pushed so far.
    fn folders(&self) -> io::Result<Vec<Repository>> {
        self.store
            .walk(|folder| folder.join("_manifests").exists() || folder.join("_blobs").exists())
    }

    fn repository(
        &self,
        name: &Repository,
        report: &mut Report,
        claimed: &mut HashSet<Digest>,
    ) -> io::Result<()> {
        let tags = self.tags(name)?;
        let gone = match self.policy.rule(name.as_str()) {
            Some(rule) => self.retire_tags(name, rule, &tags, report)?,
            None => BTreeSet::new(),
        };
        let tagged: BTreeSet<Digest> = tags
            .into_iter()
            .filter(|(tag, _)| !gone.contains(tag))
            .map(|(_, (digest, _))| digest)
            .collect();
        let mut manifests = BTreeMap::new();
        let mut unreadable = false;
        for digest in self.store.linked(name, "_manifests")? {
            match self.read(name, &digest) {
                Some(reading) => {
                    manifests.insert(digest, reading);
                }
                // Deleted meanwhile, or damaged.
                None => unreadable |= self.store.has_manifest(name, &digest),
            }
        }
        if let Some(days) = self
            .policy
            .rule(name.as_str())
            .and_then(|rule| rule.untagged_days)
        {
            self.retire_manifests(name, days, &tagged, &mut manifests, report)?;
        }
        let used: HashSet<&Digest> = manifests
            .values()
            .flat_map(|m| m.blobs.iter().map(|b| &b.digest))
            .collect();
        let links = self.store.linked(name, "_blobs")?;
        let idle: Vec<&Digest> = links
            .iter()
            .filter(|digest| !unreadable && !used.contains(digest))
            .collect();
        let removed = self.remove_old(
            &idle,
            |digest| self.store.blob_link(name, digest),
            |_| report.claims += 1,
        )?;
        claimed.extend(
            links
                .iter()
                .filter(|digest| !removed.contains(digest))
                .cloned(),
        );
        claimed.extend(manifests.into_keys());
        if unreadable {
            claimed.extend(self.store.linked(name, "_manifests")?);
        }
        if !self.dry {
            self.sweep(name)?;
        }
        Ok(())
    }

    fn read(&self, name: &Repository, digest: &Digest) -> Option<manifest::Reading> {
        let manifest = self.store.manifest(name, digest).ok()?;
        manifest::read(&manifest.media_type, &manifest.bytes).ok()
    }

    /// Tags with what they name and how old they are.
    fn tags(&self, name: &Repository) -> io::Result<BTreeMap<String, (Digest, Duration)>> {
        let folder = self.store.repository(name).join("_tags");
        // One moment for all: tags of the same time are of the same age.
        let now = SystemTime::now();
        let mut tags = BTreeMap::new();
        for tag in file_names(&folder)? {
            if let Ok(digest) = self.store.tag(name, &tag)
                && let Ok(meta) = std::fs::metadata(folder.join(&tag))
            {
                let age = now.duration_since(meta.modified()?).unwrap_or_default();
                tags.insert(tag, (digest, age));
            }
        }
        Ok(tags)
    }

    fn retire_tags(
        &self,
        name: &Repository,
        rule: &Rule,
        tags: &BTreeMap<String, (Digest, Duration)>,
        report: &mut Report,
    ) -> io::Result<BTreeSet<String>> {
        let ages: Vec<(&str, Duration)> = tags
            .iter()
            .map(|(tag, (_, age))| (tag.as_str(), *age))
            .collect();
        let mut gone = BTreeSet::new();
        for tag in retired(&rule.keep, &ages) {
            if self.policy.is_immutable(name.as_str(), tag) {
                continue;
            }
            let (digest, _) = &tags[tag];
            if !self.dry {
                let _lock = self.store.exclusive()?;
                // Pushed again meanwhile: it is new.
                if self.store.tag(name, tag).ok().as_ref() != Some(digest)
                    || self.store.delete_tag(name, tag).is_err()
                {
                    continue;
                }
            }
            report.tags += 1;
            gone.insert(tag.to_owned());
        }
        Ok(gone)
    }

    /// Removes old manifests that no tag, no index that stays and no subject that stays leads to.
    fn retire_manifests(
        &self,
        name: &Repository,
        days: f64,
        tagged: &BTreeSet<Digest>,
        manifests: &mut BTreeMap<Digest, manifest::Reading>,
        report: &mut Report,
    ) -> io::Result<()> {
        let old = Duration::try_from_secs_f64(days * DAY)
            .unwrap_or(Duration::MAX)
            .max(self.grace);
        let is_old = |digest: &Digest| {
            std::fs::metadata(self.store.manifest_link(name, digest)).is_ok_and(|m| age(&m) >= old)
        };
        let mut kept: HashSet<Digest> = manifests
            .keys()
            .filter(|d| tagged.contains(*d) || !is_old(d))
            .cloned()
            .collect();
        loop {
            let before = kept.len();
            for (digest, reading) in manifests.iter() {
                if kept.contains(digest) {
                    kept.extend(reading.manifests.iter().map(|child| child.digest.clone()));
                } else if reading
                    .subject
                    .as_ref()
                    .is_some_and(|subject| kept.contains(subject))
                {
                    kept.insert(digest.clone());
                }
            }
            if kept.len() == before {
                break;
            }
        }
        let going: Vec<Digest> = manifests
            .keys()
            .filter(|d| !kept.contains(*d))
            .cloned()
            .collect();
        for digest in going {
            if !self.dry {
                let _lock = self.store.exclusive()?;
                let tagged_again = self.tags(name)?.values().any(|(named, _)| *named == digest);
                let subject = manifests[&digest].subject.clone();
                if tagged_again
                    || !is_old(&digest)
                    || self
                        .store
                        .delete_manifest(name, &digest, subject.as_ref())
                        .is_err()
                {
                    continue;
                }
            }
            report.manifests += 1;
            manifests.remove(&digest);
        }
        Ok(())
    }

    /// Removes those files whose time is still old under the lock, and answers which.
    fn remove_old<'d>(
        &self,
        digests: &[&'d Digest],
        path: impl Fn(&Digest) -> PathBuf,
        mut removed: impl FnMut(u64),
    ) -> io::Result<HashSet<&'d Digest>> {
        let mut gone = HashSet::new();
        let old = |path: &Path| {
            std::fs::metadata(path)
                .ok()
                .filter(|meta| age(meta) >= self.grace)
        };
        for batch in digests.chunks(BATCH) {
            if !batch.iter().any(|digest| old(&path(digest)).is_some()) {
                continue;
            }
            let _lock = self.store.exclusive()?;
            for digest in batch {
                let path = path(digest);
                let Some(meta) = old(&path) else { continue };
                if self.dry || std::fs::remove_file(&path).is_ok() {
                    removed(meta.len());
                    gone.insert(*digest);
                }
            }
        }
        Ok(gone)
    }

    fn contents(&self, claimed: &HashSet<Digest>, report: &mut Report) -> io::Result<()> {
        let contents = self.store.contents()?;
        let idle: Vec<&Digest> = contents
            .iter()
            .map(|(d, _)| d)
            .filter(|d| !claimed.contains(*d))
            .collect();
        let (mut blobs, mut bytes) = (0, 0);
        let gone = self.remove_old(
            &idle,
            |digest| self.store.blob_path(digest),
            |size| {
                blobs += 1;
                bytes += size;
            },
        )?;
        report.blobs = blobs;
        report.bytes = bytes;
        if !self.dry {
            for digest in gone {
                let _ = std::fs::remove_file(self.store.sums_path(digest));
            }
        }
        Ok(())
    }

    /// Places among referrers whose manifest is gone, and folders that are empty.
    fn sweep(&self, name: &Repository) -> io::Result<()> {
        let folder = self.store.repository(name);
        let referrers = folder.join("_referrers");
        for subject in file_names(&referrers)? {
            for file in file_names(&referrers.join(&subject))? {
                let path = referrers.join(&subject).join(&file);
                let Some(digest) = from_file_name(&file) else {
                    continue;
                };
                let stale = !self.store.has_manifest(name, &digest)
                    && std::fs::metadata(&path).is_ok_and(|meta| age(&meta) >= self.grace);
                if stale {
                    let _lock = self.store.exclusive()?;
                    if !self.store.has_manifest(name, &digest) {
                        let _ = std::fs::remove_file(&path);
                    }
                }
            }
            let _ = std::fs::remove_dir(referrers.join(&subject));
        }
        if file_names(&folder.join("_manifests"))?.is_empty() {
            // Each of these fails where something is left; who pushes at this moment makes the folder again.
            let _lock = self.store.exclusive()?;
            for kind in ["_referrers", "_tags", "_blobs", "_manifests"] {
                let _ = std::fs::remove_dir(folder.join(kind));
            }
            let _ = std::fs::remove_dir_all(folder.join("_fresh"));
            let top = self.store.root().join("repos");
            let mut folder = folder.as_path();
            while folder != top && std::fs::remove_dir(folder).is_ok() {
                let Some(parent) = folder.parent() else { break };
                folder = parent;
            }
        }
        Ok(())
    }
}

/// Which tags go. A tag belongs to the first rule that its name matches; it stays when one of the rule's reasons holds.
fn retired<'t>(rules: &[Keep], tags: &[(&'t str, Duration)]) -> Vec<&'t str> {
    let mut gone = Vec::new();
    let mut left: Vec<(&str, Duration)> = tags.to_vec();
    for rule in rules {
        let (mut mine, others): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|(tag, _)| matches(&rule.tags, tag));
        left = others;
        if rule.newest.is_none() && rule.younger_than_days.is_none() {
            continue;
        }
        mine.sort_by(|(a, age_a), (b, age_b)| age_a.cmp(age_b).then(b.cmp(a)));
        let young = |age: Duration| {
            rule.younger_than_days
                .is_some_and(|days| age.as_secs_f64() < days * DAY)
        };
        let newest = rule.newest.unwrap_or(0);
        gone.extend(
            mine.into_iter()
                .skip(newest)
                .filter(|(_, age)| !young(*age))
                .map(|(tag, _)| tag),
        );
    }
    gone
}

impl Store {
    /// Every blob's digest and file.
    pub(crate) fn contents(&self) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let top = self.root().join("blobs").join(algorithm.name());
            for shard in file_names(&top)? {
                for name in file_names(&top.join(&shard))? {
                    if let Some(digest) = Digest::from_file_name(algorithm, &name) {
                        found.push((digest, top.join(&shard).join(name)));
                    }
                }
            }
        }
        debug_assert!(
            found
                .iter()
                .all(|(digest, path)| *path == self.blob_path(digest)
                    && !file_name(digest).is_empty())
        );
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stays_for_one_reason() {
        let day = |n: u64| Duration::from_secs(n * 86_400);
        let tags = [
            ("n-1", day(40)),
            ("n-2", day(20)),
            ("n-3", day(2)),
            ("n-4", day(1)),
            ("latest", day(90)),
            ("old", day(99)),
        ];
        let rule = |tags: &str, newest, younger| Keep {
            tags: tags.into(),
            newest,
            younger_than_days: younger,
        };
        assert_eq!(
            retired(&[rule("n-*", Some(1), None)], &tags),
            ["n-3", "n-2", "n-1"]
        );
        assert_eq!(retired(&[rule("n-*", Some(1), Some(30.0))], &tags), ["n-1"]);
        assert_eq!(
            retired(
                &[rule("latest", None, None), rule("*", None, Some(50.0))],
                &tags
            ),
            ["old"]
        );
        assert!(retired(&[], &tags).is_empty());
    }
}
