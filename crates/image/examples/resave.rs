//! Loads an archive into an empty store and saves its images again: `resave IN OUT`. For trying archives against other tools.

use gantry_base::db::Db;
use gantry_image::Store;
use std::fs::File;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(input), Some(output)) = (arguments.next(), arguments.next()) else {
        return Err("usage: resave IN OUT".into());
    };
    let folder = tempfile::tempdir()?;
    let db = Db::open(&folder.path().join("node.redb"))?;
    let store = Store::open(
        &folder.path().join("images"),
        db,
        gantry_image::Registries::default(),
    )?;
    let mut loaded = store.load(File::open(input)?, &mut |_, _| {})?;
    loaded.dedup_by(|a, b| a.id == b.id && a.reference == b.reference);
    let names: Vec<String> = loaded
        .into_iter()
        .map(|one| one.reference.map_or(one.id.to_string(), |r| r.to_string()))
        .collect();
    store.save(&names, File::create(output)?)?;
    Ok(())
}
