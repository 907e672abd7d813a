//! A layer unpacked is the tree that was packed, and overlayfs reads its deletions as meant.

mod common;

use common::*;
use gantry_image::Store;
use gantry_linux::dirfd::{self, Symlinks};
use gantry_oci::{Reference, image::ImageConfig};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn import(store: &Store, tar: &[u8]) -> std::path::PathBuf {
    let name = Reference::parse("t").unwrap();
    store
        .import(tar, Some(&name), ImageConfig::default())
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    store.get("t").unwrap().layers[0].folder.clone()
}

/// Everything that an image must preserve, one line per name, links by the first name of their file.
const DESCRIBE: &str = r#"
cd "$1"
find . -mindepth 1 -printf '%p|%y|%m|%U:%G|%s|%T@|%l|%n\n' | grep -av '|d|' | LC_ALL=C sort
find . -type d -printf '%p|d|%m|%U:%G|%T@\n' | LC_ALL=C sort
find . \( -type c -o -type b \) -exec stat -c '%n %t:%T' {} + | LC_ALL=C sort
find . -type f -exec sha256sum {} + | LC_ALL=C sort
find . -links +1 -type f -printf '%i %p\n' | LC_ALL=C sort -k2 | awk '{ if (!($1 in first)) first[$1] = $2; print $2, "=", first[$1] }'
"#;

/// A tree with everything that GNU tar can pack.
const TREE: &str = r#"
cd "$1"
umask 0
mkdir -p usr/bin var/empty sticky 'name with  spaces' deep
chmod 1777 sticky; chmod 0700 var/empty; chown 12:34 var
printf program > usr/bin/app; chmod 4755 usr/bin/app
printf x > usr/bin/group; chown 5:60000 usr/bin/group; chmod 2711 usr/bin/group
printf secret > 'name with  spaces/f'; chmod 0 'name with  spaces/f'
ln usr/bin/app usr/hard; ln usr/hard deep/harder
ln -s ../usr/bin/app deep/relative; ln -s /etc/passwd absolute; ln -s missing dangling; ln -sfn usr/bin bin
chown -h 77:88 dangling; ln -P absolute absolute-twice
mkfifo -m 640 fifo; mknod -m 660 null c 1 3; mknod loop b 7 0; mknod big c 300 70000
: > empty
long=$(printf 'n%.0s' $(seq 200)); mkdir -p "deep/$long/$long"; printf long > "deep/$long/$long/file"; ln -s "$long/$long/$long" deep/longlink
printf odd > "$(printf 'deep/\377\001not-utf8')"
truncate -s 3M deep/sparse; printf start | dd of=deep/sparse conv=notrunc status=none; printf mid | dd of=deep/sparse bs=1 seek=1500000 conv=notrunc status=none
truncate -s 1M deep/hole
head -c 1500000 /dev/urandom > deep/large
touch -h -d '2001-02-03 04:05:06.123456789' deep/large dangling fifo; touch -d '1969-12-31 23:00:00' empty
touch -d '2010-01-01 00:00:00.5' deep usr/bin usr .
"#;

/// Attributes that GNU tar can pack: of users, of the system, a file capability.
const ATTRIBUTES: [(&str, &str, &[u8]); 4] = [
    ("deep/large", "user.note", b"a text"),
    ("usr", "user.bin", b"\0\x01\xff"),
    ("usr/bin", "trusted.thing", b"1"),
    ("usr/bin/group", "security.capability", &CAPABILITY),
];
/// `cap_net_bind_service=ep` as the kernel keeps it (version 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn make_tree(tree: &Path) {
    std::fs::create_dir(tree).unwrap();
    shell(TREE, &[tree]);
    let root = std::fs::File::open(tree).unwrap();
    for (path, key, value) in ATTRIBUTES {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = dirfd::open_dir_beneath(&root, folder.as_bytes(), Symlinks::Refuse).unwrap();
        dirfd::set_xattr(&folder, name.as_bytes(), key.as_bytes(), value).unwrap();
    }
}

/// The tree in words, extended attributes included.
fn describe(tree: &Path) -> String {
    let mut text = shell(DESCRIBE, &[tree]);
    let mut lines = Vec::new();
    attributes(tree, tree, &mut lines);
    lines.sort();
    lines.iter().for_each(|line| text.push_str(line));
    text
}

fn attributes(root: &Path, folder: &Path, lines: &mut Vec<String>) {
    let fd = std::fs::File::open(folder).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        for key in dirfd::list_xattrs(&fd, name.as_bytes()).unwrap() {
            let value = dirfd::get_xattr(&fd, name.as_bytes(), &key)
                .unwrap()
                .unwrap();
            let path = entry.path();
            let path = path.strip_prefix(root).unwrap().display();
            lines.push(format!(
                "{path} {}={}\n",
                key.escape_ascii(),
                value.escape_ascii()
            ));
        }
        if entry.file_type().unwrap().is_dir() {
            attributes(root, &entry.path(), lines);
        }
    }
}

#[test]
fn the_tree_that_gnu_tar_packed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    make_tree(&tree);
    let expected = describe(&tree);
    assert!(
        expected.contains("user.note") && expected.contains("security.capability"),
        "{expected}"
    );
    for options in [
        "--format=pax --xattrs --xattrs-include=*",
        "--format=pax --xattrs --xattrs-include=* --sparse",
        "--format=pax --xattrs --xattrs-include=* --sparse --sparse-version=0.0",
        "--format=pax --xattrs --xattrs-include=* --sparse --sparse-version=0.1",
    ] {
        let world = World::new();
        let tar = folder.path().join("t.tar");
        shell(
            &format!("tar -C \"$1\" --numeric-owner {options} -cf \"$2\" ."),
            &[&tree, &tar],
        );
        let layer = import(&world.store, &std::fs::read(&tar).unwrap());
        assert_same(&expected, &describe(&layer), options);
    }
}

/// GNU's own format has no attributes and no parts of seconds; there the oracle is GNU tar's extraction.
#[test]
fn the_tree_that_gnu_tar_unpacks() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    make_tree(&tree);
    for options in [
        "--format=gnu",
        "--format=gnu --sparse",
        "--format=oldgnu --sparse",
        "--format=v7 --exclude=n* --exclude=empty --exclude=longlink --exclude=big --exclude=null --exclude=loop --exclude=fifo",
    ] {
        let (tar, theirs) = (folder.path().join("t.tar"), folder.path().join("theirs"));
        shell(
            &format!(
                "rm -rf \"$3\"; mkdir \"$3\"; tar -C \"$1\" --numeric-owner {options} -cf \"$2\" .; tar -C \"$3\" --numeric-owner -xpf \"$2\""
            ),
            &[&tree, &tar, &theirs],
        );
        let world = World::new();
        let layer = import(&world.store, &std::fs::read(&tar).unwrap());
        assert_same(&describe(&theirs), &describe(&layer), options);
    }
}

fn assert_same(expected: &str, actual: &str, what: &str) {
    if expected != actual {
        let (mut e, mut a): (Vec<_>, Vec<_>) =
            (expected.lines().collect(), actual.lines().collect());
        e.retain(|line| !actual.contains(line));
        a.retain(|line| !expected.contains(line));
        panic!("{what}:\nexpected {e:#?}\nfound {a:#?}");
    }
}

fn stack(world: &World, layers: &[Vec<u8>]) -> std::sync::Arc<gantry_image::Image> {
    world
        .load(&docker_archive(layers, &["s"].map(|_| "s:1")))
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    world.image("s:1")
}

#[test]
fn deletions_as_overlayfs_reads_them() {
    let base = Tar::new()
        .dir("./")
        .dir("d/")
        .file("d/gone", b"1")
        .file("d/stays", b"2")
        .dir("full/")
        .file("full/old", b"3")
        .dir("tree/")
        .dir("tree/sub/")
        .file("tree/sub/f", b"4")
        .dir("again/")
        .file("again/old", b"5")
        .dir("later/")
        .file("later/old", b"6")
        .end();
    let top = Tar::new()
        .dir("d/")
        .file("d/.wh.gone", b"")
        .dir("full/")
        .file("full/.wh..wh..opq", b"")
        .file("full/new", b"n")
        .file(".wh.tree", b"")
        // Deleted and made again: nothing of the old shows, in whichever order the two stand.
        .file(".wh.again", b"")
        .dir("again/")
        .file("again/new", b"n")
        .dir("later/")
        .file("later/new", b"n")
        .file(".wh.later", b"")
        // aufs' own files mean nothing.
        .dir(".wh..wh.plnk/")
        .file(".wh..wh.plnk/123.4", b"")
        .file(".wh..wh.aufs", b"")
        .end();
    let world = World::new();
    let image = stack(&world, &[base, top]);
    let seen = in_container(&world, &image, "find . -mindepth 1 | LC_ALL=C sort");
    assert_eq!(
        seen,
        "./again\n./again/new\n./d\n./d/stays\n./full\n./full/new\n./later\n./later/new\n"
    );
}

#[test]
fn a_layer_can_hide_all_below_it() {
    let world = World::new();
    let base = Tar::new().file("old", b"1").end();
    let top = Tar::new().file(".wh..wh..opq", b"").file("new", b"2").end();
    let last = Tar::new().file("last", b"3").end();
    let image = stack(&world, &[base, top, last]);
    assert_eq!(image.layers.len(), 3);
    assert_eq!(in_container(&world, &image, "ls"), "last\nnew\n");
}

/// A tar without entries for its folders must not change them.
#[test]
fn folders_that_are_only_implied_keep_what_they_were() {
    let base = Tar::new()
        .raw(b'5', b"tmp/", b"", 0o1777, b"")
        .raw(b'5', b"root/", b"", 0o700, b"")
        .raw(b'5', b"root/in/", b"", 0o750, b"")
        .end();
    let other = Tar::new().raw(b'5', b"tmp/", b"", 0o711, b"").end();
    let top = Tar::new()
        .file("tmp/f", b"")
        .file("root/in/f", b"")
        .file("made/here/f", b"")
        .end();
    let world = World::new();
    let modes = "stat -c '%a %n' tmp root root/in made made/here";
    let image = stack(&world, &[base, top.clone()]);
    assert_eq!(
        in_container(&world, &image, modes),
        "1777 tmp\n700 root\n750 root/in\n755 made\n755 made/here\n"
    );
    // The same tar over other layers is another layer.
    let image = stack(&world, &[other, top.clone()]);
    assert_eq!(
        in_container(&world, &image, modes),
        "711 tmp\n755 root\n755 root/in\n755 made\n755 made/here\n"
    );
    let alone = stack(&world, &[top]);
    assert_eq!(
        in_container(&world, &alone, modes),
        "755 tmp\n755 root\n755 root/in\n755 made\n755 made/here\n"
    );
}

#[test]
fn hard_links_to_files_below() {
    let base = Tar::new()
        .raw(b'5', b"bin/", b"", 0o711, b"")
        .raw(b'0', b"bin/tool", b"", 0o4755, b"tool")
        .file("gone", b"x")
        .end();
    let top = Tar::new()
        .link("alias", "bin/tool")
        .link("other", "/bin/tool")
        .end();
    let world = World::new();
    let image = stack(&world, &[base.clone(), top]);
    assert_eq!(
        in_container(
            &world,
            &image,
            "cat alias other; stat -c '%a %h %n' bin bin/tool alias; test alias -ef bin/tool"
        ),
        "tooltool711 1 bin\n4755 3 bin/tool\n4755 3 alias\n"
    );
    let hidden = Tar::new().file(".wh.gone", b"").end();
    let link = Tar::new().link("alias", "gone").end();
    let error = world
        .load(&docker_archive(&[base, hidden, link], &["x:1"]))
        .unwrap_err();
    assert!(
        error.message().contains("no such file or directory"),
        "{}",
        error.message()
    );
}

#[test]
fn later_entries_win_as_in_docker() {
    let world = World::new();
    let tar = Tar::new()
        .file("f", b"old")
        .file("f", b"new")
        .symlink("bin", "usr/bin")
        .dir("usr/")
        .dir("usr/bin/")
        .file("bin/through", b"followed")
        .symlink("l", "nowhere")
        .file("l", b"plain now")
        .dir("empty/")
        .file("empty", b"file now")
        .symlink("was", "f")
        .dir("was/")
        .file("was/in", b"")
        .file("/absolute", b"inside")
        .file("./x/../dotted", b"inside")
        .end();
    let layer = import(&world.store, &tar);
    let read = |name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(read("f"), "new");
    assert_eq!(read("usr/bin/through"), "followed");
    assert_eq!(
        (read("l"), read("empty")),
        ("plain now".into(), "file now".into())
    );
    assert_eq!(
        (read("absolute"), read("dotted")),
        ("inside".into(), "inside".into())
    );
    assert!(layer.join("was/in").exists() && read("f") == "new");
}

#[test]
fn attributes_that_steer_overlayfs_stay_out() {
    let world = World::new();
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.keep", b"1"),
        ])
        .dir("d/")
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.trusted.overlay.origin", b"x"),
        ])
        .file("f", b"1")
        .end();
    let layer = import(&world.store, &tar);
    let listed = describe(&layer);
    assert!(
        !listed.contains("overlay") && listed.contains("user.keep"),
        "{listed}"
    );
}

#[test]
fn file_capabilities_stay() {
    let world = World::new();
    let tar = Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", &CAPABILITY)])
        .raw(b'0', b"ping", b"", 0o755, b"x")
        .end();
    let layer = import(&world.store, &tar);
    let root = std::fs::File::open(layer).unwrap();
    let kept = dirfd::get_xattr(&root, b"ping", b"security.capability").unwrap();
    assert_eq!(kept.as_deref(), Some(&CAPABILITY[..]));
}

/// A whole Debian, compared with GNU tar's own extraction. Ignored: it wants a mirror and a minute.
#[test]
#[ignore = "needs mmdebstrap and a package mirror, or GANTRY_ROOTFS_TAR"]
fn a_whole_debian() {
    let folder = tempfile::tempdir().unwrap();
    let tar = match std::env::var_os("GANTRY_ROOTFS_TAR") {
        Some(path) => path.into(),
        None => {
            let tar = folder.path().join("debian.tar");
            shell(
                "mmdebstrap --mode=root --variant=minbase bookworm \"$1\" 2>/dev/null",
                &[&tar],
            );
            tar
        }
    };
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    shell(
        "tar -C \"$2\" --numeric-owner --xattrs --xattrs-include='*' -xpf \"$1\"",
        &[Path::new(tar.as_os_str()), &theirs],
    );
    let world = World::new();
    let layer = import(&world.store, &std::fs::read(&tar).unwrap());
    assert!(layer.as_os_str().as_bytes().len() < 200);
    assert_same(&describe(&theirs), &describe(&layer), "debian");
}
