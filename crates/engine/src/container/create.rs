//! `docker create`.

use super::{MountPoint, Record, State, mounts, names, table::Slot, validate};
use crate::Engine;
use crate::volumes::{Claim, CreateVolume};
use gantry_base::{Error, Result, ResultExt, db::Batch};
use gantry_docker_api::create::{CreateContainer, EndpointSettings, HostConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A node has so many containers at most.
const CONTAINERS_LIMIT: usize = 20_000;

/// What `create` answers.
#[derive(Debug, Clone)]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Makes a container that can be started. Validates everything before it touches anything.
    pub async fn create(&self, request: CreateContainer) -> Result<Created> {
        let engine = self.clone();
        Self::whole(async move { engine.create_whole(request).await }).await
    }

    async fn create_whole(&self, mut request: CreateContainer) -> Result<Created> {
        let mut warnings = validate::request(&mut request, &self.0.facts)?;
        if request.config.image.is_empty() {
            return Err(Error::invalid("no image specified"));
        }
        let image = self.0.images.get(&request.config.image)?;
        // Until the container is in the table, where a removal of the image sees it.
        let _hold = self.0.images.hold(&image.id)?;
        warnings.extend(platform(request.platform.as_deref(), &image.config)?);
        validate::merge(&mut request.config, &image.config.config)?;
        let CreateContainer {
            name,
            mut config,
            mut host_config,
            endpoints,
            ..
        } = request;
        self.resolve_containers(&mut host_config)?;
        let networks = self.networks_of(&host_config, endpoints);
        // Only looked at: they are bound at each start.
        validate::ports(&config, &host_config)?;
        let plan = mounts::plan(
            &config,
            &host_config,
            |r| self.get(r),
            |path| std::fs::exists(path).unwrap_or(false),
        )?;
        if self.0.containers.len() >= CONTAINERS_LIMIT {
            return Err(Error::conflict(format!(
                "this node has {CONTAINERS_LIMIT} containers, the most it may have"
            )));
        }

        let id = crate::random_id();
        if config.hostname.is_empty() && !host_config.network_mode.starts_with("container:") {
            config.hostname = id[..12].to_owned();
        }
        let argv = config
            .entrypoint
            .iter()
            .chain(&config.cmd)
            .flatten()
            .cloned()
            .collect();
        let name = self.claim_name(name, &id)?;
        if let Err(error) = self.resolve_links(&name, &mut host_config) {
            self.0.containers.release(&name, &id);
            return Err(error);
        }
        let mut record = Record {
            schema: 1,
            id,
            name,
            created_at_ns: crate::events::now_ns(),
            image: image.id.clone(),
            image_name: config.image.clone(),
            config,
            host_config,
            argv,
            mounts: Vec::new(),
            networks,
            endpoints: BTreeMap::new(),
            ports: Vec::new(),
            state: State::Created { failure: None },
            changes: Vec::new(),
            good_at_ns: 0,
            replacing: false,
            restart_count: 0,
            stopped_by_user: false,
            health: None,
        };
        let mut claims = Vec::new();
        let made = self.make(&mut record, plan, &mut claims).await;
        if let Err(error) = made {
            drop(claims);
            self.unmake(&record).await;
            return Err(error);
        }
        let record = {
            let slot = Slot::new(record);
            self.0.containers.insert(slot.clone());
            slot.record()
        };
        drop(claims);
        self.say(&record, "create", &[]);
        Ok(Created {
            id: record.id.clone(),
            warnings,
        })
    }

    /// Folders, volumes, and the one commit that makes the container exist. What a crash leaves before it belongs to nobody and
    /// is swept.
    async fn make(
        &self,
        record: &mut Record,
        plan: mounts::Plan,
        claims: &mut Vec<Claim>,
    ) -> Result<()> {
        let dir = self.container_dir(&record.id);
        let snapshot = self.0.images.prepare(&record.image, &dir)?;
        self.step("create.folders").await;
        for mut mount in plan {
            let made = match mount.kind.as_str() {
                "image" => self.find_image(&mut mount).await,
                "volume" => self.make_volume(&mut mount, &snapshot.lowers, claims).await,
                _ => Ok(()),
            };
            // Also when it failed: an anonymous one that was made goes with the rest.
            record.mounts.push(mount);
            made?;
        }
        self.step("create.volumes").await;
        self.0
            .db
            .commit(Batch::new().put("containers", &record.id, record))
            .await
    }

    /// The image is found once: a tag that moves later does not change what the container has.
    pub(crate) async fn find_image(&self, mount: &mut MountPoint) -> Result<()> {
        let image = self.0.images.get(&mount.source)?;
        if let Some(subpath) = mount.options.get(mounts::option::SUBPATH).cloned() {
            let overlay = gantry_linux::view::Overlay {
                lowers: self.0.images.layers(&image.id)?,
                upper: None,
            };
            let text = || format!("cannot access path {subpath} in image {}", mount.source);
            let look = {
                let subpath = PathBuf::from(&subpath);
                move || -> std::io::Result<()> {
                    let root = gantry_linux::view::detached_overlay(&overlay)?;
                    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
                    gantry_linux::mount::open_in_root(&root, &subpath, flags).map(drop)
                }
            };
            let found = tokio::task::spawn_blocking(look).await.context(text)?;
            found.map_err(|e| Error::invalid(text()).with_source(e))?;
        }
        mount
            .options
            .insert(mounts::option::IMAGE.into(), image.id.to_string());
        Ok(())
    }

    pub(crate) async fn make_volume(
        &self,
        mount: &mut MountPoint,
        lowers: &[PathBuf],
        claims: &mut Vec<Claim>,
    ) -> Result<()> {
        let labels = mount.options.iter().filter_map(|(key, value)| {
            key.strip_prefix("label:")
                .map(|key| (key.to_owned(), value.clone()))
        });
        let options = mount.options.iter().filter_map(|(key, value)| {
            key.strip_prefix("driver-opt:")
                .map(|key| (key.to_owned(), value.clone()))
        });
        let request = CreateVolume {
            name: mount.name.clone().unwrap_or_default(),
            labels: labels.collect(),
            options: options.collect(),
            driver: mount.driver.clone().unwrap_or_default(),
        };
        let (volume, claim) = self.volume_claim(request).await?;
        claims.push(claim);
        mount.name = Some(volume.name.clone());
        mount.driver = Some(volume.driver.clone());
        if volume.driver == crate::volumes::LOCAL {
            let place = self.volume_mountpoint(&volume.name);
            mount.source = place.to_string_lossy().into_owned();
        }
        let whole = !mount.options.contains_key(mounts::option::SUBPATH);
        if whole && !mount.options.contains_key(mounts::option::NO_COPY) {
            let destination = std::path::Path::new(&mount.destination);
            self.volume_populate(&volume.name, lowers, destination)
                .await?;
        }
        Ok(())
    }

    async fn unmake(&self, record: &Record) {
        for mount in record.mounts.iter().filter(|mount| mount.anonymous) {
            if let Some(name) = &mount.name {
                let _ = self.volume_remove(name, true).await;
            }
        }
        self.0.containers.release(&record.name, &record.id);
        super::remove::delete(vec![self.container_dir(&record.id)]).await;
    }

    fn claim_name(&self, wanted: Option<String>, id: &str) -> Result<String> {
        if let Some(name) = wanted {
            self.0
                .containers
                .claim(&name, id)
                .map_err(|holder| name_is_taken(&name, &holder))?;
            return Ok(name);
        }
        for attempt in 0..100 {
            let name = names::pick(crate::random(), attempt);
            if self.0.containers.claim(&name, id).is_ok() {
                return Ok(name);
            }
        }
        Err(Error::internal(
            "no free name was found for the container; give one with --name",
        ))
    }

    /// `container:name` → `container:id`, so that a rename does not cut the bond. An unknown one shows at the start, as with Docker.
    pub(super) fn resolve_containers(&self, host: &mut HostConfig) -> Result<()> {
        for mode in [
            &mut host.network_mode,
            &mut host.ipc_mode,
            &mut host.pid_mode,
        ] {
            if let Some(r) = mode.strip_prefix("container:")
                && let Ok(slot) = self.0.containers.find(r)
            {
                *mode = format!("container:{}", slot.id);
            }
        }
        Ok(())
    }

    /// The networks to connect to, under their names; those that are not there yet keep what was typed.
    pub(super) fn networks_of(
        &self,
        host: &HostConfig,
        endpoints: BTreeMap<String, EndpointSettings>,
    ) -> BTreeMap<String, EndpointSettings> {
        let mode = host.network_mode.as_str();
        if matches!(mode, "none" | "host") || mode.starts_with("container:") {
            return BTreeMap::new();
        }
        let name_of = |typed: &str| {
            self.0
                .networks
                .get(typed)
                .map_or_else(|_| typed.to_owned(), |network| network.name)
        };
        let mut networks: BTreeMap<String, EndpointSettings> = endpoints
            .into_iter()
            .map(|(name, settings)| (name_of(&name), settings))
            .collect();
        networks.entry(name_of(mode)).or_default();
        networks
    }
}

pub(crate) fn name_is_taken(name: &str, holder: &str) -> Error {
    Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

/// `--platform`: refused when the image is for another one, a warning when nobody asked.
fn platform(
    wanted: Option<&str>,
    image: &gantry_oci::image::ImageConfig,
) -> Result<Option<String>> {
    let host = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let architecture = if image.architecture.is_empty() {
        host
    } else {
        image.architecture.as_str()
    };
    if let Some(wanted) = wanted.filter(|text| !text.is_empty()) {
        let mut parts = wanted.split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        let (os, asked) = match second {
            Some(architecture) => (first, architecture),
            None if matches!(first, "linux" | "windows" | "darwin") => (first, architecture),
            None => ("linux", first),
        };
        let asked = match asked {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if os != "linux" || asked != architecture {
            return Err(Error::not_found(format!(
                "image was found but its platform (linux/{architecture}) does not match the specified platform ({wanted})"
            )));
        }
        return Ok(None);
    }
    Ok((architecture != host).then(|| {
        format!(
            "The requested image's platform (linux/{architecture}) does not match the detected host platform (linux/{host}) and no specific platform was requested"
        )
    }))
}

/// Folders of a bind that `-v` asked to make.
pub(crate) fn make_bind_source(path: &str) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(path)
            .context(|| format!("error while creating mount source path '{path}'")),
        Err(e) => Err(
            Error::internal(format!("error while creating mount source path '{path}'"))
                .with_source(e),
        ),
    }
}
