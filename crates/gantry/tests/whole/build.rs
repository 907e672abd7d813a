//! `docker build`: the classic way, with the real client.

use gantry_testkit::{Done, World};
use std::path::{Path, PathBuf};

use crate::busybox;

/// A folder with files for a build.
fn context(world: &World, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = world.folder().join(name);
    for (path, text) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn classic(world: &World, folder: &Path, words: &[&str]) -> Done {
    let mut all = vec!["build"];
    all.extend(words);
    let folder = folder.to_string_lossy();
    all.push(&folder);
    let mut command = world.docker_command(&all);
    command.env("DOCKER_BUILDKIT", "0");
    gantry_testkit::run(&mut command, None)
}

#[test]
fn a_build_makes_an_image_that_runs_and_the_second_one_is_cached() {
    let world = busybox();
    let folder = context(
        &world,
        "ctx",
        &[
            (
                "Dockerfile",
                "FROM busybox\nARG WHO=nobody\nENV A=1 B=\"two words\"\nCOPY src /src\nRUN echo $WHO >/who && cat /src/* >/sum\nWORKDIR /app\nRUN pwd >here\nLABEL a=b\nCMD [\"cat\", \"/who\", \"/sum\", \"/app/here\"]\n",
            ),
            ("src/one", "1\n"),
            ("src/two", "2\n"),
        ],
    );
    let done = classic(
        &world,
        &folder,
        &["-t", "x", "--build-arg", "WHO=me", "--label", "c=d"],
    );
    let text = done.ok();
    assert!(text.contains("Step 1/9 : FROM busybox"), "{text}");
    assert!(text.contains("Successfully tagged x:latest"), "{text}");
    assert_eq!(world.docker(&["run", "--rm", "x"]).ok(), "me\n1\n2\n/app");
    let shown = world
        .docker(&[
            "inspect",
            "x",
            "--format",
            "{{json .Config.Labels}} {{.Config.WorkingDir}} {{.Config.Env}}",
        ])
        .ok();
    assert_eq!(
        shown,
        "{\"a\":\"b\",\"c\":\"d\"} /app [PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin A=1 B=two words]"
    );
    let id = world.docker(&["inspect", "x", "--format", "{{.Id}}"]).ok();
    let again = classic(
        &world,
        &folder,
        &["-t", "y", "--build-arg", "WHO=me", "--label", "c=d"],
    )
    .ok();
    assert_eq!(again.matches("Using cache").count(), 4, "{again}");
    assert_eq!(
        world.docker(&["inspect", "y", "--format", "{{.Id}}"]).ok(),
        id
    );
    let quiet = classic(
        &world,
        &folder,
        &["-q", "--build-arg", "WHO=me", "--label", "c=d"],
    )
    .ok();
    assert_eq!(quiet, id);
    std::fs::write(folder.join("src/two"), "3\n").unwrap();
    let changed = classic(&world, &folder, &["-t", "x", "--build-arg", "WHO=me"]).ok();
    assert_eq!(changed.matches("Using cache").count(), 0, "{changed}");
    assert_eq!(world.docker(&["run", "--rm", "x"]).ok(), "me\n1\n3\n/app");
    world.purge();
}

#[test]
fn what_is_wrong_is_said_in_dockers_words() {
    let world = busybox();
    for (dockerfile, words, want) in [
        (
            "FROM busybox\nRUM x\n",
            &[][..],
            "Dockerfile:2: dockerfile parse error on line 2: unknown instruction: RUM (did you mean RUN?)",
        ),
        (
            "FROM busybox\nRUN exit 3\n",
            &[],
            "The command '/bin/sh -c exit 3' returned a non-zero code: 3",
        ),
        (
            "FROM busybox\nCOPY none /x\n",
            &[],
            "COPY failed: file not found in build context or excluded by .dockerignore: stat none: file does not exist",
        ),
        (
            "FROM busybox\nCOPY ../../etc/passwd /x\n",
            &[],
            "stat ../../etc/passwd: file does not exist",
        ),
        (
            "FROM busybox\n",
            &["--target", "none"],
            "failed to reach build target none in Dockerfile",
        ),
        (
            "FROM busybox\nRUN --security=insecure id\n",
            &[],
            "security.insecure is not allowed",
        ),
        (
            "FROM busybox\nRUN --network=host id\n",
            &[],
            "network.host is not allowed",
        ),
        ("FROM busybox\n", &["-f", "Other"], "Other"),
        (
            "FROM busybox\nRUN --mount=type=secret,id=s,required cat /run/secrets/s\n",
            &[],
            "secret s: not found",
        ),
        (
            "# syntax=example/front\nFROM busybox\n",
            &[],
            "external front-ends are not run",
        ),
    ] {
        let folder = context(&world, "bad", &[("Dockerfile", dockerfile)]);
        let done = classic(&world, &folder, words);
        assert_ne!(done.code, 0, "{dockerfile}: {done}");
        assert!(done.stderr.contains(want), "{dockerfile}: {done}");
    }
    // A symbolic link does not lead out of the context.
    let folder = context(
        &world,
        "link",
        &[("Dockerfile", "FROM busybox\nCOPY l /l\n")],
    );
    std::os::unix::fs::symlink("/etc/passwd", folder.join("l")).unwrap();
    let done = classic(&world, &folder, &[]);
    assert!(
        done.code != 0 && done.stderr.contains("stat l: file does not exist"),
        "{done}"
    );
    world.purge();
}
