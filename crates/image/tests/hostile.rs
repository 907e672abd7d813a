//! Archives that mean harm: refused with a sentence, nothing outside touched, nothing left inside.

mod common;

use common::*;
use gantry_base::ErrorKind;
use gantry_oci::image::ImageConfig;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::path::Path;

/// A file beside the store that no archive may reach, and the folder it lies in.
fn canary(world: &World) -> String {
    let outside = world.dir.path().join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("canary"), b"alive").unwrap();
    outside.display().to_string()
}

fn assert_untouched(outside: &str, what: &str) {
    let names: Vec<_> = std::fs::read_dir(outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["canary"], "{what}");
    assert_eq!(
        std::fs::read(Path::new(outside).join("canary")).unwrap(),
        b"alive",
        "{what}"
    );
}

#[test]
fn layers() {
    let world = World::new();
    let out = canary(&world);
    let up = "../".repeat(30);
    let far = format!("{up}{}", &out[1..]);
    let long = "a/".repeat(2100);
    let t = Tar::new;
    let huge = b"77777777777\0";
    let cases: Vec<(&str, Tar, &str)> = vec![
        (
            "dot dot",
            t().file("../evil", b"x"),
            "it leads out of the layer",
        ),
        (
            "dot dot inside",
            t().file("a/../../evil", b"x"),
            "it leads out of the layer",
        ),
        (
            "dot dot after a slash",
            t().file("/../evil", b"x"),
            "it leads out of the layer",
        ),
        (
            "dot dot in PAX",
            t().pax(&[("path", format!("{far}/evil").as_bytes())])
                .file("ok", b"x"),
            "it leads out of the layer",
        ),
        (
            "dot dot in GNU long name",
            t().raw(b'L', b"././@LongLink", b"", 0, b"../../evil\0")
                .file("ok", b"x"),
            "it leads out of the layer",
        ),
        (
            "absolute link and through it",
            t().symlink("l", &out).file("l/evil", b"x"),
            "symbolic link that leads out",
        ),
        (
            "relative link above the root",
            t().symlink("l", "../../outside"),
            "invalid symlink",
        ),
        (
            "relative link, deep",
            t().dir("a/").symlink("a/l", "../../outside"),
            "invalid symlink",
        ),
        (
            "links in a chain",
            t().dir("a/")
                .symlink("a/b", "..")
                .symlink("c", "a/b/a/b")
                .symlink("d", &out)
                .file("c/d/evil", b"x"),
            "symbolic link that leads out",
        ),
        (
            "folder replaced by a link",
            t().dir("d/").symlink("d", &out).file("d/evil", b"x"),
            "symbolic link that leads out",
        ),
        (
            "folder kept open, then replaced",
            t().dir("d/")
                .file("d/a", b"1")
                .symlink("d", &out)
                .file("d/evil", b"x"),
            "cannot overwrite directory",
        ),
        (
            "link with its own folder entry below",
            t().symlink("l", &out).dir("l/sub/"),
            "symbolic link that leads out",
        ),
        (
            "whiteout through a link",
            t().symlink("l", &out).file("l/.wh.canary", b""),
            "symbolic link that leads out",
        ),
        (
            "opaque through a link",
            t().symlink("l", &out).file("l/.wh..wh..opq", b""),
            "symbolic link that leads out",
        ),
        (
            "hard link above the root",
            t().link("h", &format!("{far}/canary")),
            "invalid hardlink",
        ),
        (
            "hard link through a link",
            t().symlink("l", &out).link("h", "l/canary"),
            "invalid hardlink",
        ),
        (
            "hard link to itself",
            t().file("h", b"x").link("h", "h"),
            "invalid hardlink",
        ),
        (
            "hard link to a folder",
            t().dir("d/").link("h", "d"),
            "invalid hardlink",
        ),
        (
            "hard link to the root",
            t().link("h", "/"),
            "invalid hardlink",
        ),
        (
            "hard link to nothing",
            t().link("h", "missing"),
            "no such file or directory",
        ),
        (
            "hard link to a link to a file outside, then written",
            t().symlink("l", &format!("{out}/canary"))
                .link("h", "l")
                .file("h/evil", b"x"),
            "symbolic link that leads out",
        ),
        (
            "whiteout of dot dot",
            t().file(".wh...", b""),
            "invalid whiteout",
        ),
        (
            "whiteout of dot",
            t().file(".wh..", b""),
            "invalid whiteout",
        ),
        (
            "whiteout of nothing",
            t().file("d/.wh.", b""),
            "invalid whiteout",
        ),
        (
            "file where a folder is full",
            t().dir("d/").file("d/f", b"x").file("d", b"y"),
            "cannot overwrite directory",
        ),
        (
            "folder under a file",
            t().file("f", b"x").file("f/g", b"y"),
            "unpacking",
        ),
        (
            "root as a file",
            t().file("./", b"")
                .patch(0, 156, b"2")
                .patch(0, 157, b"/etc"),
            "root must be a folder",
        ),
        (
            "device number out of range",
            t().device(b'4', "b", 0o7777777, 1),
            "invalid device number",
        ),
        (
            "unknown type",
            t().raw(b'M', b"x", b"", 0o644, b""),
            "unknown entry type",
        ),
        (
            "name too long",
            t().pax(&[("path", long.as_bytes())]).file("x", b""),
            "longer than 4096",
        ),
        (
            "component too long",
            t().pax(&[("path", "n".repeat(300).as_bytes())])
                .file("x", b""),
            "file name too long",
        ),
        (
            "NUL in a name",
            t().pax(&[("path", b"a\0b")]).file("x", b""),
            "NUL",
        ),
        (
            "size beyond the archive",
            t().file("f", b"").patch(0, 124, huge),
            "unexpected EOF",
        ),
        (
            "size beyond the disk",
            t().file("f", b"")
                .patch(0, 124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            "no space left on device",
        ),
        (
            "negative size",
            t().file("f", b"")
                .patch(0, 124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            "negative number",
        ),
        (
            "PAX size beyond the archive",
            t().pax(&[("size", b"99999999")]).file("f", b"x"),
            "unexpected EOF",
        ),
        (
            "PAX size not a number",
            t().pax(&[("size", b"-1")]).file("f", b"x"),
            "not a number",
        ),
        (
            "PAX record length lies",
            t().raw(b'x', b"p", b"", 0, b"99 path=abc\n")
                .file("f", b"x"),
            "malformed PAX record",
        ),
        (
            "PAX header too large",
            t().raw(b'x', b"p", b"", 0, &vec![b'x'; 1_100_000]),
            "extended header too large",
        ),
        (
            "PAX header of many gigabytes",
            t().raw(b'x', b"p", b"", 0, b"").patch(0, 124, huge),
            "extended header too large",
        ),
        (
            "GNU long name of many gigabytes",
            t().raw(b'L', b"p", b"", 0, b"").patch(0, 124, huge),
            "extended header too large",
        ),
        (
            "extended headers without end",
            (0..40).fold(t(), |t, _| t.pax(&[("path", b"a")])),
            "too many extended headers",
        ),
        (
            "owner out of range",
            t().pax(&[("uid", b"99999999999")]).file("f", b"x"),
            "owner out of range",
        ),
        (
            "checksum",
            t().file("f", b"x").append(&[1; 512]),
            "checksum",
        ),
        (
            "garbage after one block of zeros",
            t().append(&[0; 512]).file("f", b"x"),
            "data after a block of zeros",
        ),
        (
            "sparse map that overlaps",
            t().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,2,1,2")])
                .file("f", b"abcd"),
            "overlap",
        ),
        (
            "sparse map beyond the end",
            t().pax(&[("GNU.sparse.size", b"3"), ("GNU.sparse.map", b"0,4")])
                .file("f", b"abcd"),
            "behind the end",
        ),
        (
            "sparse map that wraps round",
            t().pax(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.map", b"18446744073709551615,4"),
            ])
            .file("f", b"abcd"),
            "out of range",
        ),
        (
            "sparse map that lies",
            t().pax(&[("GNU.sparse.size", b"99"), ("GNU.sparse.map", b"0,50")])
                .file("f", b"abcd"),
            "do not add up",
        ),
        (
            "sparse file of an exabyte",
            t().pax(&[
                ("GNU.sparse.size", b"1152921504606846976"),
                ("GNU.sparse.map", b"0,4"),
            ])
            .file("f", b"abcd"),
            "too large",
        ),
        (
            "attribute of an unsettable kind",
            t().pax(&[("SCHILY.xattr.security.capability", b"nonsense")])
                .file("f", b"x"),
            "extended attribute",
        ),
    ];
    for (what, tar, words) in cases {
        for layer in [tar.clone().end(), tar.cut()] {
            // Alone, on a base (links may lead below), and as `docker import`.
            let base = Tar::new().dir("base/").file("base/f", b"x").end();
            let single = world.load(&docker_archive(std::slice::from_ref(&layer), &["x:1"]));
            let above = world.load(&docker_archive(&[base, layer.clone()], &["x:1"]));
            let packed = world.load(&gzip(&docker_archive_of(
                std::slice::from_ref(&layer),
                &[gzip(&layer)],
                &["x:1"],
            )));
            let import = world
                .store
                .import(layer.as_slice(), None, ImageConfig::default())
                .map(|_| Vec::new());
            for result in [single, above, packed, import] {
                let error = result.expect_err(what);
                assert!(error.chain().contains(words), "{what}: {}", error.chain());
                if words != "no space left on device" {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::InvalidArgument,
                        "{what}: {}",
                        error.chain()
                    );
                }
            }
            assert_eq!(world.files(), [""; 0], "{what}");
            assert_untouched(&out, what);
        }
    }
    assert!(world.store.list().unwrap().is_empty());
}

#[test]
fn archives() {
    let world = World::new();
    let out = canary(&world);
    let layer = Tar::new().file("f", b"x").end();
    let diff = sha256(&layer);
    let good = config(std::slice::from_ref(&diff), "");
    let lying = config(&[sha256(b"other")], "");
    let manifest = |config: &str, tags: &str, layers: &str| {
        format!(r#"[{{"Config":"{config}","RepoTags":[{tags}],"Layers":[{layers}]}}]"#).into_bytes()
    };
    let with = |manifest: &[u8], config: &[u8]| {
        Tar::new()
            .file("l.tar", &layer)
            .file("c.json", config)
            .file("manifest.json", manifest)
    };
    let plain = manifest("c.json", "", "\"l.tar\"");
    let big = |n: usize| [b"{\"x\":\"".to_vec(), vec![b'x'; n], b"\"}".to_vec()].concat();
    let many: Vec<_> = (0..126).map(|i: u32| sha256(&i.to_le_bytes())).collect();
    let mut damaged = Layout::new();
    let wrong = {
        let mut manifest = damaged.manifest(
            std::slice::from_ref(&layer),
            std::slice::from_ref(&layer),
            "",
        );
        manifest["digest"] = serde_json::json!(sha256(b"absent"));
        manifest
    };
    let mut artifact = Layout::new();
    let signature = {
        let empty = artifact.blob("application/vnd.oci.empty.v1+json", b"{}");
        let text =
            serde_json::json!({"schemaVersion": 2, "config": empty, "layers": []}).to_string();
        artifact.blob(
            "application/vnd.oci.image.manifest.v1+json",
            text.as_bytes(),
        )
    };
    let mut deep = Layout::new();
    let mut nested = deep.manifest(
        std::slice::from_ref(&layer),
        std::slice::from_ref(&layer),
        "",
    );
    for _ in 0..10 {
        nested = deep.blob(
            "application/vnd.oci.image.index.v1+json",
            &Layout::index(&[nested]),
        );
    }
    let mut foreign = Layout::new();
    let mut other = foreign.manifest(
        std::slice::from_ref(&layer),
        std::slice::from_ref(&layer),
        "",
    );
    other["platform"] = serde_json::json!({"os": "windows", "architecture": "amd64"});
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("nothing", Vec::new(), "no image in the archive".into()),
        (
            "not a tar",
            b"hello, this is a text".repeat(100),
            "invalid tar header".into(),
        ),
        (
            "no list",
            Tar::new().file("x", b"y").end(),
            "no image in the archive".into(),
        ),
        (
            "list not JSON",
            with(b"[", &good).end(),
            "invalid manifest.json".into(),
        ),
        (
            "list of the wrong shape",
            with(b"{\"a\":1}", &good).end(),
            "invalid manifest.json".into(),
        ),
        (
            "list too large",
            with(&vec![b' '; 5 << 20], &good).end(),
            "manifest.json is larger than 4 MiB".into(),
        ),
        (
            "configuration missing",
            with(&manifest("none", "", ""), &good).end(),
            "the archive lacks the file \"none\"".into(),
        ),
        (
            "configuration outside",
            with(&manifest("../../../etc/passwd", "", ""), &good).end(),
            "the archive lacks the file".into(),
        ),
        (
            "configuration absolute",
            with(&manifest("/etc/passwd", "", ""), &good).end(),
            "the archive lacks the file".into(),
        ),
        (
            "configuration too large",
            with(&plain, &big(9 << 20)).end(),
            "larger than 8 MiB".into(),
        ),
        (
            "configuration not JSON",
            with(&plain, b"nonsense").end(),
            "invalid image configuration".into(),
        ),
        (
            "configuration is a layer",
            with(&manifest("l.tar", "", ""), &good).end(),
            "invalid image configuration".into(),
        ),
        (
            "layer missing",
            with(&manifest("c.json", "", "\"none\""), &good).end(),
            "the archive lacks the file".into(),
        ),
        (
            "layer is no tar",
            with(&manifest("c.json", "", "\"c.json\""), &good).end(),
            "unexpected EOF".into(),
        ),
        (
            "too few layers",
            with(&manifest("c.json", "", ""), &good).end(),
            "invalid manifest, layers length mismatch: expected 0, got 1".into(),
        ),
        (
            "wrong diff ID",
            with(&plain, &lying).end(),
            format!(
                "invalid diffID for layer 0: expected \"{}\", got \"{diff}\"",
                sha256(b"other")
            ),
        ),
        (
            "too deep",
            with(&plain, &config(&many, "")).end(),
            "max depth exceeded".into(),
        ),
        (
            "another system",
            with(
                &plain,
                &String::from_utf8_lossy(&good)
                    .replace("\"os\":\"linux\"", "\"os\":\"windows\"")
                    .into_bytes(),
            )
            .end(),
            "cannot load windows image on linux".into(),
        ),
        (
            "bad tag",
            with(&manifest("c.json", "\"UPPER:1\"", "\"l.tar\""), &good).end(),
            "must be lowercase".into(),
        ),
        (
            "no tag",
            with(&manifest("c.json", "\"x\"", "\"l.tar\""), &good).end(),
            "invalid tag \"x\"".into(),
        ),
        (
            "path outside",
            Tar::new().file("../../evil", b"x").end(),
            "in the image archive".into(),
        ),
        (
            "link outside",
            Tar::new().symlink("a/b", "../../../etc/passwd").end(),
            "in the image archive".into(),
        ),
        (
            "device",
            Tar::new().device(b'3', "n", 1, 3).end(),
            "in the image archive".into(),
        ),
        (
            "links in a circle",
            Tar::new()
                .symlink("c.json", "d.json")
                .symlink("d.json", "c.json")
                .file("l.tar", &layer)
                .file("manifest.json", &plain)
                .end(),
            "the archive lacks the file".into(),
        ),
        (
            "blob damaged",
            damaged
                .0
                .clone()
                .file(
                    &format!("blobs/sha256/{}", sha256(b"absent").hex()),
                    b"{\"other\":1}",
                )
                .file("index.json", &Layout::index(std::slice::from_ref(&wrong)))
                .end(),
            "the archive is damaged".into(),
        ),
        (
            "blob missing",
            damaged.end(&[wrong]),
            "the archive lacks the blob".into(),
        ),
        (
            "not an image",
            artifact.end(&[signature]),
            "is not a container image".into(),
        ),
        (
            "indexes in indexes",
            deep.end(&[nested]),
            "nested too deep".into(),
        ),
        (
            "no platform for us",
            foreign.end(&[other]),
            "no image for linux/".into(),
        ),
        (
            "legacy ID outside",
            Tar::new()
                .file("repositories", br#"{"x":{"1":"../../etc"}}"#)
                .end(),
            "invalid layer ID".into(),
        ),
        (
            "gzip cut short",
            {
                let mut z = gzip(&docker_archive(std::slice::from_ref(&layer), &["x:1"]));
                z.truncate(z.len() / 2);
                z
            },
            "unexpected EOF".into(),
        ),
        (
            "zstd cut short",
            {
                let mut z = zstd(&docker_archive(std::slice::from_ref(&layer), &["x:1"]));
                z.truncate(z.len() / 2);
                z
            },
            "EOF".into(),
        ),
        (
            "gzip damaged",
            {
                let mut z = gzip(&docker_archive(std::slice::from_ref(&layer), &["x:1"]));
                let middle = z.len() / 2;
                z[middle] ^= 0x55;
                z[middle + 1] ^= 0x55;
                z
            },
            "".into(),
        ),
    ];
    for (what, archive, words) in cases {
        let error = world.load(&archive).expect_err(what);
        assert!(error.chain().contains(&words), "{what}: {}", error.chain());
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidArgument,
            "{what}: {}",
            error.chain()
        );
        assert_eq!(world.files(), [""; 0], "{what}");
        assert_untouched(&out, what);
    }
}

/// The second image of an archive is bad: the first does not come in either.
#[test]
fn all_images_of_an_archive_or_none() {
    let world = World::new();
    let layer = Tar::new().file("f", b"x").end();
    let good = config(&[sha256(&layer)], "");
    let lying = config(&[sha256(b"other")], "");
    let manifest = br#"[{"Config":"g","RepoTags":["g:1"],"Layers":["l"]},{"Config":"b","RepoTags":["b:1"],"Layers":["l"]}]"#;
    let archive = Tar::new()
        .file("l", &layer)
        .file("g", &good)
        .file("b", &lying)
        .file("manifest.json", manifest)
        .end();
    world.load(&archive).unwrap_err();
    assert!(world.store.get("g:1").is_err());
    assert_eq!(world.files(), [""; 0]);
}

#[derive(Debug, Clone)]
enum Step {
    File(String),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
    Node(String),
}

fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh.b"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["..", ".", "", ".wh..wh..opq", ".wh...", "OUT"]).prop_map(str::to_owned),
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        name().prop_map(Step::File),
        name().prop_map(Step::Dir),
        (
            name(),
            prop_oneof![
                name(),
                Just("/OUT".to_owned()),
                Just("..".to_owned()),
                Just("/".to_owned())
            ]
        )
            .prop_map(|(a, b)| Step::Symlink(a, b)),
        (name(), prop_oneof![name(), Just("/OUT/canary".to_owned())])
            .prop_map(|(a, b)| Step::Link(a, b)),
        name().prop_map(Step::Node),
    ]
}

/// Entries in any order, of any kind, with names that collide: refused or unpacked, and outside nothing happens.
#[test]
fn any_entries() {
    let world = World::new();
    let out = canary(&world);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let check = |steps: Vec<Step>| {
        let real = |text: &str| text.replace("/OUT", &out);
        let tar = steps.iter().fold(Tar::new(), |tar, step| match step {
            Step::File(path) => tar.file(path, b"evil"),
            Step::Dir(path) => tar.dir(path),
            Step::Symlink(path, target) => tar.symlink(path, &real(target)),
            Step::Link(path, target) => tar.link(path, &real(target)),
            Step::Node(path) => tar.device(b'3', path, 1, 3),
        });
        let base = Tar::new()
            .dir("a/")
            .dir("a/b/")
            .file("a/b/c", b"below")
            .file("c", b"below")
            .end();
        if world
            .load(&docker_archive(&[base, tar.end()], &["x:1"]))
            .is_ok()
        {
            world.store.remove("x:1", true, &|_| Vec::new()).unwrap();
        }
        assert_untouched(&out, "any entries");
        prop_assert_eq!(world.files(), [""; 0]);
        Ok(())
    };
    runner
        .run(&prop::collection::vec(step(), 1..14), check)
        .unwrap();
}
