//! Images in, out, named, removed; what a restart and a failure leave.

mod common;

use common::*;
use gantry_base::ErrorKind;
use gantry_image::{Entry, EntryKind, Removed};
use gantry_oci::{Digest, Reference, image::ImageConfig};
use std::io::Read;

fn layer(name: &str) -> Vec<u8> {
    Tar::new()
        .dir("d/")
        .file(&format!("d/{name}"), name.as_bytes())
        .end()
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn unused(_: &Digest) -> Vec<(String, bool)> {
    Vec::new()
}

fn told(removed: &[Removed]) -> Vec<String> {
    removed
        .iter()
        .map(|line| match line {
            Removed::Untagged(reference) => format!("Untagged: {reference}"),
            Removed::Deleted(_) => "Deleted".into(),
        })
        .collect()
}

#[test]
fn names_ids_and_prefixes() {
    let world = World::new();
    let loaded = world
        .load(&docker_archive(&[layer("a")], &["x:1", "host:5000/y:2"]))
        .unwrap();
    assert_eq!(loaded.len(), 2);
    let id = &loaded[0].id;
    for name in [
        "x:1",
        "docker.io/library/x:1",
        "host:5000/y:2",
        &id.to_string(),
        &id.hex(),
        &id.hex()[..7],
        &id.to_string()[..20],
    ] {
        assert_eq!(world.image(name).id, *id, "{name}");
    }
    for (name, words) in [
        ("x", "No such image: x:latest"),
        ("x:2", "No such image: x:2"),
        ("nothing/here", "No such image: nothing/here:latest"),
        (
            &"a".repeat(64),
            &format!("No such image: sha256:{}", "a".repeat(64)),
        ),
    ] {
        let error = world.store.get(name).unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::NotFound, words)
        );
    }
    let error = world.store.get("UPPER").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        error.message(),
        "invalid reference format: repository name (library/UPPER) must be lowercase"
    );
    let image = world.image("x:1");
    assert_eq!(image.size, 1);
    assert_eq!(
        image.config.config.cmd.as_deref(),
        Some(&["/bin/sh".to_owned()][..])
    );
    assert_eq!(sha256(&image.raw_config), image.id);
}

#[test]
fn every_compression_in_every_place() {
    let plain = [layer("a"), layer("b")];
    let mut ids = Vec::new();
    for outer in [<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, gzip, zstd] {
        for inner in [<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, gzip, zstd] {
            let world = World::new();
            let packed: Vec<_> = plain.iter().map(|l| inner(l)).collect();
            let archive = outer(&docker_archive_of(&plain, &packed, &["x:1"]));
            ids.push(world.load(&archive).unwrap()[0].id.clone());
            assert_eq!(
                in_container(&world, &world.image("x:1"), "cat d/a d/b"),
                "ab"
            );
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let world = World::new();
    for (start, words) in [(&b"BZh91AY&SY"[..], "bzip2"), (b"\xfd7zXZ\0\0\0", "xz")] {
        let error = world.load(start).unwrap_err();
        assert!(error.message().starts_with(words), "{}", error.message());
    }
}

#[test]
fn oci_layouts() {
    let world = World::new();
    let mut layout = Layout::new();
    let plain = [layer("a")];
    let packed = [gzip(&plain[0])];
    let mut ours = layout.manifest(&plain, &packed, "ours");
    ours["platform"] = serde_json::json!({"os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }});
    let mut theirs = layout.manifest(&[layer("b")], &[layer("b")], "theirs");
    theirs["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    // An attestation: no image, and its blob is not even there.
    let attestation = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(b"none"), "size": 4,
        "platform": {"os": "unknown", "architecture": "unknown"},
    });
    let inner = Layout::index(&[theirs, attestation, ours.clone()]);
    let mut nested = layout.blob("application/vnd.oci.image.index.v1+json", &inner);
    nested["annotations"] = serde_json::json!({"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"});
    let loaded = world.load(&layout.end(&[nested])).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].reference.as_ref().unwrap().to_string(), "x:1");
    let image = world.image("x:1");
    assert_eq!(image.config.config.env, ["X=ours"]);
    assert_eq!(
        image.manifest.as_ref().unwrap().to_string(),
        ours["digest"].as_str().unwrap()
    );
    // What goes out carries the manifest that came in.
    let mut saved = Vec::new();
    world.store.save(&["x:1".into()], &mut saved).unwrap();
    let other = World::new();
    other.load(&saved).unwrap();
    assert_eq!(other.image("x:1").manifest, image.manifest);
}

#[test]
fn archives_of_old_docker() {
    let world = World::new();
    let (base, top) = ("a".repeat(64), "b".repeat(64));
    let document = |id: &str, parent: Option<&str>| {
        serde_json::json!({"id": id, "parent": parent, "created": "2014-01-01T00:00:00Z", "os": "linux", "architecture": "amd64",
            "config": {"Cmd": ["x"]}, "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) ADD"]}})
        .to_string()
    };
    let archive = Tar::new()
        .file(&format!("{base}/VERSION"), b"1.0")
        .file(&format!("{base}/json"), document(&base, None).as_bytes())
        .file(&format!("{base}/layer.tar"), &layer("a"))
        .file(
            &format!("{top}/json"),
            document(&top, Some(&base)).as_bytes(),
        )
        .file(&format!("{top}/layer.tar"), &layer("b"))
        .file(
            "repositories",
            serde_json::json!({"old": {"1": top}})
                .to_string()
                .as_bytes(),
        )
        .end();
    world.load(&archive).unwrap();
    assert_eq!(
        in_container(&world, &world.image("old:1"), "cat d/a d/b"),
        "ab"
    );
    let lines = world.store.history("old:1").unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].created_by, "/bin/sh -c #(nop) ADD");
    // A parent that leads in a circle ends.
    let circle = Tar::new()
        .file(
            &format!("{base}/json"),
            document(&base, Some(&base)).as_bytes(),
        )
        .file(&format!("{base}/layer.tar"), &layer("a"))
        .file(
            "repositories",
            serde_json::json!({"old": {"2": base}})
                .to_string()
                .as_bytes(),
        )
        .end();
    assert_eq!(
        world.load(&circle).unwrap_err().message(),
        "max depth exceeded"
    );
}

/// Old `docker save` writes a layer once and links to it (symbolic links, `../`).
#[test]
fn repeated_layers_are_links() {
    let plain = layer("a");
    let diff = sha256(&plain);
    let config = config(&[diff.clone(), diff], "");
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    let archive = Tar::new()
        .file("1/layer.tar", &plain)
        .symlink("2/layer.tar", "../1/layer.tar")
        .file("c.json", &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    let world = World::new();
    world.load(&archive).unwrap();
    let image = world.image("x:1");
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0].folder, image.layers[1].folder);
}

#[test]
fn layers_are_shared_and_kept_while_used() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a"), layer("b")], &["x:1"]))
        .unwrap();
    world
        .load(&docker_archive(&[layer("a"), layer("c")], &["y:1"]))
        .unwrap();
    let (x, y) = (world.image("x:1"), world.image("y:1"));
    assert_eq!(x.layers[0].folder, y.layers[0].folder);
    assert_eq!(world.store.layers_size(), 3);
    let removed = world.store.remove("x:1", false, &unused).unwrap();
    assert_eq!(told(&removed), ["Untagged: x:1", "Deleted", "Deleted"]);
    assert!(!x.layers[1].folder.exists());
    assert_eq!(in_container(&world, &y, "cat d/a d/c"), "ac");
    let removed = world
        .store
        .remove(&y.id.hex()[..12], false, &unused)
        .unwrap();
    assert_eq!(
        told(&removed),
        ["Untagged: y:1", "Deleted", "Deleted", "Deleted"]
    );
    assert_eq!(world.files(), [""; 0]);
    let world = world.reopen();
    assert!(world.store.list().unwrap().is_empty());
}

#[test]
fn a_restart_finds_everything_and_sweeps_the_rest() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    world.store.tag("x:1", &reference("y")).unwrap();
    let before = world.files();
    for junk in ["tmp/7/layer0/deep", "layers/99/x", "tmp/gone-3/y"] {
        std::fs::create_dir_all(world.images_dir().join(junk)).unwrap();
    }
    std::fs::write(
        world.images_dir().join("blobs/sha256").join("c".repeat(64)),
        b"half",
    )
    .unwrap();
    std::fs::write(world.images_dir().join("tmp/blob-4"), b"half").unwrap();
    let world = world.reopen();
    assert_eq!(world.files(), before);
    let image = world.image("x:1");
    assert_eq!(image.tags, [reference("x:1"), reference("y:latest")]);
    assert_eq!(in_container(&world, &image, "cat d/a"), "a");
    // The next layer gets a folder of its own.
    world
        .load(&docker_archive(&[layer("b")], &["z:1"]))
        .unwrap();
    assert_ne!(world.image("z:1").layers[0].folder, image.layers[0].folder);
}

#[test]
fn a_damaged_image_does_not_stop_the_node() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    world
        .load(&docker_archive(&[layer("b")], &["y:1"]))
        .unwrap();
    let blob = world
        .images_dir()
        .join("blobs/sha256")
        .join(world.image("x:1").id.hex());
    std::fs::write(blob, b"{}").unwrap();
    let world = world.reopen();
    assert_eq!(world.store.list().unwrap().len(), 1);
    assert_eq!(world.image("y:1").tags.len(), 1);
}

#[test]
fn removal_in_dockers_words() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let image = world.image("x:1");
    let short = image.id.hex()[..12].to_owned();
    let container = "0123456789abcdef".repeat(4);
    let used_by = |running| {
        let container = container.clone();
        move |_: &Digest| vec![(container.clone(), running)]
    };
    let refusal = |name: &str, force, running| {
        let error = world
            .store
            .remove(name, force, &used_by(running))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        error.message().to_owned()
    };
    assert_eq!(
        refusal("x:1", false, false),
        format!(
            "conflict: unable to remove repository reference \"x:1\" (must force) - container 0123456789ab is using its referenced image {short}"
        )
    );
    assert_eq!(
        refusal(&short, false, false),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is being used by stopped container 0123456789ab"
        )
    );
    assert_eq!(
        refusal(&short, true, true),
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container 0123456789ab"
        )
    );
    world.store.tag("x:1", &reference("y:2")).unwrap();
    assert_eq!(
        world
            .store
            .remove(&short, false, &unused)
            .unwrap_err()
            .message(),
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    // One of two names goes even while a container runs.
    let removed = world.store.remove("y:2", false, &used_by(true)).unwrap();
    assert_eq!(told(&removed), ["Untagged: y:2"]);
    // The last name goes by force; the image stays for the running container.
    let removed = world.store.remove("x:1", true, &used_by(true)).unwrap();
    assert_eq!(told(&removed), ["Untagged: x:1"]);
    assert_eq!(world.image(&short).tags, []);
    let error = world.store.remove("nothing", false, &unused).unwrap_err();
    assert_eq!(error.message(), "No such image: nothing:latest");
}

#[test]
fn a_stopped_container_keeps_its_layers() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let image = world.image("x:1");
    let stopped = |_: &Digest| vec![("c".repeat(64), false)];
    let removed = world.store.remove("x:1", true, &stopped).unwrap();
    assert_eq!(told(&removed), ["Untagged: x:1", "Deleted"]);
    assert!(world.store.get("x:1").is_err() && world.store.get(&image.id.hex()).is_err());
    let world = world.reopen();
    assert!(world.store.list().unwrap().is_empty());
    assert_eq!(in_container(&world, &image, "cat d/a"), "a");
    assert_eq!(world.store.collect(&|_| true).unwrap(), 0);
    assert_eq!(world.store.collect(&|_| false).unwrap(), 1);
    assert_eq!(world.files(), [""; 0]);
    // Loaded again while hidden, it is an image like any other.
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    world.store.remove("x:1", true, &stopped).unwrap();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    assert_eq!(world.store.list().unwrap().len(), 1);
}

#[test]
fn pruning() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let old = world.image("x:1").id.clone();
    // The name moves on: the first image is dangling.
    world
        .load(&docker_archive(&[layer("b")], &["x:1"]))
        .unwrap();
    world
        .load(&docker_archive(&[layer("c")], &["y:1"]))
        .unwrap();
    assert_eq!(world.image(&old.hex()).tags, []);
    let (removed, freed) = world
        .store
        .prune(false, &|_| true, &|id| *id == old)
        .unwrap();
    assert_eq!((removed.len(), freed), (0, 0));
    let (removed, freed) = world.store.prune(false, &|_| true, &|_| false).unwrap();
    assert_eq!(
        (told(&removed), freed),
        (vec!["Deleted".to_owned(), "Deleted".into()], 1)
    );
    let y = world.image("y:1").id.clone();
    let (removed, freed) = world.store.prune(true, &|_| true, &|id| *id == y).unwrap();
    assert_eq!(told(&removed), ["Untagged: x:1", "Deleted", "Deleted"]);
    assert_eq!(freed, 1);
    assert_eq!(world.store.list().unwrap().len(), 1);
}

#[test]
fn commits_build_on_their_base() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let base = world.image("x:1");
    let id = world
        .store
        .commit(
            Some(&base.id),
            layer("b").as_slice(),
            Some(&reference("x:2")),
            ImageConfig::default(),
        )
        .unwrap();
    let image = world.image("x:2");
    assert_eq!(
        (
            image.id == id,
            image.layers.len(),
            image.config.history.len()
        ),
        (true, 2, 2)
    );
    assert_eq!(image.parent.as_ref(), Some(&base.id));
    assert_eq!(in_container(&world, &image, "cat d/a d/b"), "ab");
    let short = base.id.hex()[..12].to_owned();
    assert_eq!(
        world
            .store
            .remove(&short, true, &unused)
            .unwrap_err()
            .message(),
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image has dependent child images"
        )
    );
    // Nothing changed: no layer.
    let same = world
        .store
        .commit(
            Some(&base.id),
            Tar::new().end().as_slice(),
            None,
            ImageConfig::default(),
        )
        .unwrap();
    let same = world.image(&same.hex());
    assert_eq!(
        (same.layers.len(), same.config.history[1].empty_layer),
        (1, true)
    );
    // Without names, parents go with the last child.
    let untagged = world.store.remove("x:1", true, &unused).unwrap();
    assert_eq!(told(&untagged), ["Untagged: x:1"]);
    world.store.remove(&same.id.hex(), false, &unused).unwrap();
    let removed = world.store.remove("x:2", false, &unused).unwrap();
    assert_eq!(
        told(&removed),
        ["Untagged: x:2", "Deleted", "Deleted", "Deleted", "Deleted"]
    );
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn import_and_history() {
    let world = World::new();
    for (name, pack) in [
        ("p", <[u8]>::to_vec as fn(&[u8]) -> Vec<u8>),
        ("g", gzip),
        ("z", zstd),
    ] {
        world
            .store
            .import(
                pack(&layer("a")).as_slice(),
                Some(&reference(name)),
                ImageConfig::default(),
            )
            .unwrap();
        let image = world.image(name);
        assert_eq!(image.layers[0].diff_id, sha256(&layer("a")));
        assert_eq!(
            (image.config.os.as_str(), image.config.rootfs.kind.as_str()),
            ("linux", "layers")
        );
        let lines = world.store.history(name).unwrap();
        assert_eq!(
            (lines[0].comment.as_str(), lines[0].size),
            ("Imported from -", 1)
        );
        assert_eq!(lines[0].id.as_ref(), Some(&image.id));
        assert!(lines[0].created > 1_600_000_000);
    }
    for bad in [
        &b"no archive, just a line of text that is longer than nothing"[..],
        &[b'x'; 4096],
    ] {
        let error = world
            .store
            .import(bad, None, ImageConfig::default())
            .unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidArgument,
            "{}",
            error.chain()
        );
    }
    let error = world
        .store
        .tag("p", &reference(&format!("a@sha256:{}", "a".repeat(64))))
        .unwrap_err();
    assert_eq!(
        error.message(),
        "refusing to create a tag with a digest reference"
    );
}

#[test]
fn built_images_are_reproducible() {
    let entries = [
        Entry {
            path: "bin/app".into(),
            mode: 0o755,
            kind: EntryKind::File(b"program".to_vec()),
        },
        Entry {
            path: "tmp".into(),
            mode: 0o1777,
            kind: EntryKind::Directory,
        },
        Entry {
            path: "app".into(),
            mode: 0o777,
            kind: EntryKind::Symlink("bin/app".into()),
        },
    ];
    let (one, two) = (World::new(), World::new());
    let id = one
        .store
        .build_single_layer(&entries, ImageConfig::default(), Some(&reference("demo")))
        .unwrap();
    assert_eq!(
        two.store
            .build_single_layer(&entries, ImageConfig::default(), None)
            .unwrap(),
        id
    );
    let image = one.image("demo");
    assert_eq!(
        in_container(&one, &image, "cat app; stat -c %a tmp bin bin/app"),
        "program1777\n755\n755\n"
    );
}

#[test]
fn saved_archives_come_back_the_same() {
    let world = World::new();
    let plain = [layer("a"), layer("b")];
    let packed = [gzip(&plain[0]), zstd(&plain[1])];
    world
        .load(&docker_archive_of(&plain, &packed, &["x:1", "x:2"]))
        .unwrap();
    world
        .load(&docker_archive(&[layer("a"), layer("c")], &["y:1"]))
        .unwrap();
    let save = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let mut out = Vec::new();
        world.store.save(&names, &mut out).unwrap();
        out
    };
    let archive = save(&["x", "y:1"]);
    assert_eq!(archive, save(&["x", "y:1"]), "same images, same bytes");
    let other = World::new();
    let loaded = other.load(&archive).unwrap();
    let names: Vec<_> = loaded
        .iter()
        .map(|l| l.reference.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(names, ["x:1", "x:2", "y:1"]);
    for name in ["x:1", "x:2", "y:1"] {
        assert_eq!(other.image(name).id, world.image(name).id);
    }
    // The shared layer is in the archive once.
    let count = tar::Archive::new(&archive[..]).entries().unwrap().count();
    assert_eq!(
        count,
        2 + 2 + 2 + 3 + 3,
        "folders, configurations, manifests, layers, lists"
    );
    // By ID there are no names.
    let by_id = save(&[&world.image("x:1").id.hex()]);
    let third = World::new();
    assert!(third.load(&by_id).unwrap()[0].reference.is_none());
    let missing = world.store.save(&["none".into()], Vec::new()).unwrap_err();
    assert_eq!(missing.message(), "No such image: none:latest");
}

/// The archives are read by other tools as well, where they are installed.
#[test]
fn skopeo_reads_what_we_save() {
    if std::process::Command::new("skopeo")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let world = World::new();
    let plain = [layer("a"), layer("b")];
    world
        .load(&docker_archive_of(
            &plain,
            &[plain[0].clone(), gzip(&plain[1])],
            &["x:1"],
        ))
        .unwrap();
    let file = world.dir.path().join("saved.tar");
    world
        .store
        .save(&["x:1".into()], std::fs::File::create(&file).unwrap())
        .unwrap();
    for (kind, target) in [("docker-archive", "one"), ("oci-archive", "two")] {
        let target = world.dir.path().join(target);
        let script = format!("skopeo copy -q --insecure-policy {kind}:\"$1\" dir:\"$2\"");
        shell(&script, &[&file, &target]);
        let config = target.join(world.image("x:1").id.hex());
        assert_eq!(
            std::fs::read(config).unwrap(),
            world.image("x:1").raw_config,
            "{kind}"
        );
    }
    // And the other way round.
    let back = world.dir.path().join("back.tar");
    shell(
        "skopeo copy -q --insecure-policy docker-archive:\"$1\" oci-archive:\"$2\":again:1",
        &[&file, &back],
    );
    let loaded = world
        .store
        .load(std::fs::File::open(&back).unwrap(), &mut |_, _| {})
        .unwrap();
    assert_eq!(loaded[0].reference.as_ref().unwrap().to_string(), "again:1");
}

/// A source that ends or fails after some bytes.
struct Faulty<'a> {
    bytes: &'a [u8],
    left: usize,
    fail: bool,
}

impl Read for Faulty<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let take = buffer.len().min(self.left).min(self.bytes.len()).min(997);
        if take == 0 && self.fail {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        buffer[..take].copy_from_slice(&self.bytes[..take]);
        self.bytes = &self.bytes[take..];
        self.left -= take;
        Ok(take)
    }
}

#[test]
fn a_broken_load_leaves_nothing() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let before = world.files();
    let archive = docker_archive(
        &[
            layer("a"),
            layer("b"),
            Tar::new().file("big", &vec![7; 300_000]).end(),
        ],
        &["y:1"],
    );
    let packed = gzip(&archive);
    for bytes in [&archive, &packed] {
        for step in 0..24 {
            for fail in [false, true] {
                // Never the whole: the last blocks of a plain archive are only its end mark.
                let left = (bytes.len() - 1100.min(bytes.len() / 10)) * step / 24;
                let result = world
                    .store
                    .load(Faulty { bytes, left, fail }, &mut |_, _| {});
                assert!(result.is_err(), "{left} of {}", bytes.len());
                assert_eq!(world.files(), before, "after {left} bytes");
                assert!(world.store.get("y:1").is_err());
            }
        }
    }
    world.load(&archive).unwrap();
}

#[test]
fn two_loads_at_once_and_a_removal_between() {
    let world = World::new();
    let archive = docker_archive(
        &[
            layer("a"),
            Tar::new().file("big", &vec![7; 2_000_000]).end(),
        ],
        &["x:1"],
    );
    let other = docker_archive(&[layer("a"), layer("c")], &["y:1"]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..15 {
                    world.load(&archive).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..30 {
                world.load(&other).unwrap();
                // Whatever the others do, the image that was just loaded is whole.
                let image = world.image("y:1");
                assert!(image.layers.iter().all(|l| l.folder.join("d").is_dir()));
                world.store.remove("y:1", true, &unused).unwrap();
            }
        });
        scope.spawn(|| {
            for _ in 0..60 {
                let _ = world.store.remove("x:1", true, &unused);
                let _ = world.store.prune(false, &|_| true, &|_| false).unwrap();
            }
        });
    });
    world.load(&archive).unwrap();
    let image = world.image("x:1");
    assert_eq!(
        in_container(&world, &image, "cat d/a; wc -c < big"),
        "a2000000\n"
    );
    world.store.remove("x:1", true, &unused).unwrap();
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn an_image_that_is_held_stays() {
    let world = World::new();
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let image = world.image("x:1");
    let hold = world.store.hold(&image.id).unwrap();
    let error = world.store.remove("x:1", false, &unused).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        world
            .store
            .prune(true, &|_| true, &|_| false)
            .unwrap()
            .0
            .is_empty()
    );
    // By force it goes, and its layers with the container.
    world.store.remove("x:1", true, &unused).unwrap();
    assert_eq!(in_container(&world, &image, "cat d/a"), "a");
    assert!(world.store.hold(&image.id).is_err());
    drop(hold);
    world.store.collect(&|_| false).unwrap();
    assert_eq!(world.files(), [""; 0]);
    // Whoever asks during a removal is refused or counted.
    world
        .load(&docker_archive(&[layer("a")], &["x:1"]))
        .unwrap();
    let asked = |id: &Digest| {
        assert!(world.store.hold(id).is_err());
        Vec::new()
    };
    world.store.remove("x:1", false, &asked).unwrap();
}
