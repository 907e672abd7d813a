//! `gantry cp`: a tar out of or into a container. One side is `CONTAINER:PATH`, the other a file, a folder, or `-` for the tar itself.

use super::images::{download, upload};
use crate::args::CpArgs;
use crate::client::{Client, empty, escaped};
use anyhow::{Context, bail};
use http::{Method, header};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

pub async fn run(client: &Client, args: &CpArgs) -> anyhow::Result<ExitCode> {
    match (in_container(&args.from), in_container(&args.to)) {
        (Some((container, path)), None) => out_of(client, container, path, &args.to).await?,
        (None, Some((container, path))) => into(client, &args.from, container, path).await?,
        _ => bail!("cp needs one side as CONTAINER:PATH and the other on this machine"),
    }
    Ok(ExitCode::SUCCESS)
}

/// `CONTAINER:PATH`; a path of this machine that holds a colon starts with `/` or `.`.
fn in_container(side: &str) -> Option<(&str, &str)> {
    if side.starts_with(['/', '.']) {
        return None;
    }
    side.split_once(':').filter(|(_, path)| !path.is_empty())
}

async fn out_of(client: &Client, container: &str, path: &str, to: &str) -> anyhow::Result<()> {
    let url = format!(
        "/containers/{}/archive?path={}",
        escaped(container),
        escaped(path)
    );
    let body = client
        .send(Method::GET, &url, empty(), &[])
        .await?
        .into_body();
    if to == "-" {
        return download(body, Box::new(io::stdout())).await;
    }
    let to = Path::new(to);
    let mut tar = tempfile_in_memory()?;
    download(
        body,
        Box::new(tar.try_clone().context("doubling a descriptor")?),
    )
    .await?;
    io::Seek::rewind(&mut tar).context("rewinding the archive")?;
    // Into a folder that is there under its own name; otherwise under the new one.
    let (place, name) = if to.is_dir() {
        (to, None)
    } else {
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")), to.file_name())
    };
    // Unpacked beside its place first: `unpack_in` lets nothing out of the folder it is given, and the rename is one step.
    let work = place.join(format!(".gantry-cp.{}", std::process::id()));
    std::fs::create_dir(&work).with_context(|| format!("creating {}", work.display()))?;
    let done = unpack(tar, &work, place, name);
    let _ = std::fs::remove_dir_all(&work);
    done
}

/// Unpacks into `work`, then moves the one thing that is in it to `place`, as `name` or under its own name.
fn unpack(
    tar: std::fs::File,
    work: &Path,
    place: &Path,
    name: Option<&OsStr>,
) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().context("reading the archive")? {
        let mut entry = entry.context("reading the archive")?;
        entry.unpack_in(work).context("unpacking")?;
    }
    for entry in std::fs::read_dir(work).context("reading what was unpacked")? {
        let entry = entry.context("reading what was unpacked")?;
        let own = entry.file_name();
        let target = place.join(name.unwrap_or(&own));
        if target.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            bail!(
                "{} is there already; copy to another name",
                target.display()
            );
        }
        std::fs::rename(entry.path(), &target)
            .with_context(|| format!("moving the copy to {}", target.display()))?;
    }
    Ok(())
}

async fn into(client: &Client, from: &str, container: &str, path: &str) -> anyhow::Result<()> {
    let (source, folder): (Box<dyn Read + Send>, String) = if from == "-" {
        (Box::new(io::stdin()), path.to_owned())
    } else {
        let from = Path::new(from);
        let meta = std::fs::symlink_metadata(from)
            .with_context(|| format!("reading {}", from.display()))?;
        let is_folder = is_folder(client, container, path).await;
        // A folder takes it under its own name; anything else is the new name.
        let (folder, name) = match (is_folder, Path::new(path).file_name()) {
            (true, _) | (_, None) => (
                path.to_owned(),
                from.file_name().context("the source has no name")?,
            ),
            (false, Some(name)) => {
                let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
                (parent.to_string_lossy().into_owned(), name)
            }
        };
        let mut tar = tar::Builder::new(tempfile_in_memory()?);
        tar.follow_symlinks(false);
        if meta.is_dir() {
            tar.append_dir_all(name, from)
        } else {
            tar.append_path_with_name(from, name)
        }
        .with_context(|| format!("packing {}", from.display()))?;
        let mut file = tar.into_inner().context("packing")?;
        io::Seek::rewind(&mut file).context("rewinding the archive")?;
        (Box::new(file), folder)
    };
    let url = format!(
        "/containers/{}/archive?path={}",
        escaped(container),
        escaped(&folder)
    );
    let tar = (header::CONTENT_TYPE, "application/x-tar");
    client
        .send(Method::PUT, &url, upload(source), &[tar])
        .await?;
    Ok(())
}

/// Asks by fetching: the archive of a folder begins with a folder. Absent is "no".
async fn is_folder(client: &Client, container: &str, path: &str) -> bool {
    use base64::Engine;
    let url = format!(
        "/containers/{}/archive?path={}",
        escaped(container),
        escaped(path)
    );
    let Ok(answer) = client.send(Method::HEAD, &url, empty(), &[]).await else {
        return false;
    };
    let stat = answer
        .headers()
        .get("X-Docker-Container-Path-Stat")
        .and_then(|value| base64::engine::general_purpose::STANDARD.decode(value).ok())
        .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    // Go's `fs.ModeDir`.
    stat.and_then(|stat| stat["mode"].as_u64())
        .is_some_and(|mode| mode & (1 << 31) != 0)
}

/// The archive in between; a nameless file, so that nothing is left behind.
fn tempfile_in_memory() -> anyhow::Result<std::fs::File> {
    rustix::fs::memfd_create("gantry-cp", rustix::fs::MemfdFlags::CLOEXEC)
        .map(std::fs::File::from)
        .context("making a file in memory")
}
