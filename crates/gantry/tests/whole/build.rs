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

/// BuildKit's two clients: the one built into docker 20.10, and buildx; those that are there.
fn buildkits(world: &World) -> Vec<(&'static str, Vec<String>)> {
    let mut found = Vec::new();
    let version = std::process::Command::new("/usr/bin/docker")
        .arg("--version")
        .output();
    if version.is_ok_and(|done| String::from_utf8_lossy(&done.stdout).contains("version 20.")) {
        found.push((
            "older",
            vec!["/usr/bin/docker".to_owned(), "build".to_owned()],
        ));
    }
    if let Some(buildx) = gantry_testkit::images::buildx() {
        let plugins = world.folder().join("docker-config/cli-plugins");
        std::fs::create_dir_all(&plugins).unwrap();
        std::os::unix::fs::symlink(
            buildx.canonicalize().unwrap(),
            plugins.join("docker-buildx"),
        )
        .unwrap();
        found.push((
            "buildx",
            ["docker", "buildx", "build"].map(String::from).to_vec(),
        ));
    }
    assert!(
        !found.is_empty(),
        "neither docker 20.10 nor buildx is there"
    );
    found
}

fn buildkit(world: &World, client: &[String], folder: &Path, words: &[&str]) -> Done {
    let mut command = world.docker_command(&[]);
    let mut real = std::process::Command::new("timeout");
    real.args(["--kill-after=5", "90"])
        .args(client)
        .arg("--progress=plain")
        .args(words)
        .arg(folder);
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => real.env(key, value),
            None => real.env_remove(key),
        };
    }
    real.env("DOCKER_BUILDKIT", "1")
        .env("SECRET_ENV", "from-the-environment");
    std::mem::swap(&mut command, &mut real);
    gantry_testkit::run(&mut command, None)
}

#[test]
fn buildkits_clients_build_with_secrets_caches_and_mounts() {
    let world = busybox();
    let folder = context(
        &world,
        "kit",
        &[
            (
                "Dockerfile",
                "# syntax=docker/dockerfile:1\nFROM busybox AS one\nARG WHO\nCOPY --chown=1:2 --chmod=600 a.txt /a\nRUN --mount=type=secret,id=s cat /run/secrets/s | wc -c >/size && cat /run/secrets/s\nFROM busybox AS unused\nRUN exit 9\nFROM busybox\nCOPY --from=one /a /size /from/\nRUN --mount=type=cache,target=/cache echo x >>/cache/n && wc -l </cache/n >/n\nRUN --mount=type=bind,target=/src --mount=type=tmpfs,target=/t ls /src >/list && touch /t/x\nCOPY <<EOF /text\nhello $PATH\nEOF\nRUN <<EOF\nset -e\necho one >/h\necho two >>/h\nEOF\nWORKDIR /w\nCMD [\"cat\", \"/from/size\", \"/n\", \"/list\", \"/text\", \"/h\"]\n",
            ),
            (".dockerignore", "ignored\n"),
            ("a.txt", "a\n"),
            ("b/c.txt", "c\n"),
            ("ignored", "i\n"),
            ("secret", "very-secret-bytes\n"),
        ],
    );
    for (name, client) in buildkits(&world) {
        let secret = format!("id=s,src={}", folder.join("secret").display());
        let tag = format!("kit-{name}");
        let done = buildkit(
            &world,
            &client,
            &folder,
            &["-t", &tag, "--secret", &secret, "--no-cache"],
        );
        assert_eq!(done.code, 0, "{name}: {done}");
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(said.contains("RUN --mount=type=cache"), "{name}: {said}");
        assert!(!said.contains("very-secret"), "{name}: {said}");
        let ran = world.docker(&["run", "--rm", &tag]).ok();
        let want = "18\n1\nDockerfile\na.txt\nb\nsecret\nhello /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\none\ntwo";
        let ran = ran.replacen(".dockerignore\n", "", 1);
        let count = if name == "older" { "18\n1\n" } else { "18\n" };
        assert!(ran.starts_with(count), "{name}: {ran}");
        assert_eq!(
            ran.split_once("Dockerfile").unwrap().1,
            want.split_once("Dockerfile").unwrap().1,
            "{name}"
        );
        let owner = world
            .docker(&["run", "--rm", &tag, "stat", "-c", "%u:%g %a", "/from/a"])
            .ok();
        assert_eq!(owner, "1:2 600", "{name}");
        // Nothing of the secret is anywhere that stays.
        let found = std::process::Command::new("grep")
            .args(["-r", "-l", "-a", "very-secret-bytes"])
            .args([world.data_dir(), world.run_dir()])
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(found.is_empty(), "{name}: {found}");
        let again = buildkit(&world, &client, &folder, &["-t", &tag, "--secret", &secret]);
        let said = format!("{}{}", again.stdout, again.stderr);
        assert!(said.matches("CACHED").count() >= 6, "{name}: {said}");
        let failed = buildkit(&world, &client, &folder, &["--target", "unused"]);
        let said = format!("{}{}", failed.stdout, failed.stderr);
        assert!(
            failed.code != 0 && said.contains("did not complete successfully: exit code: 9"),
            "{name}: {said}"
        );
    }
    world.purge();
}

/// Processes of build steps are the only ones that show this name.
fn steps_running(mark: &str) -> usize {
    let listed = std::process::Command::new("ps")
        .args(["-eww", "-o", "args"])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    listed
        .lines()
        .filter(|line| line.trim().starts_with("sleep") && line.contains(mark))
        .count()
}

#[test]
fn a_cancelled_or_killed_build_leaves_nothing_and_the_next_one_is_whole() {
    let mut world = busybox();
    // A number that no other test sleeps for.
    let mark = format!("{}", 50_000 + u64::from(std::process::id()));
    let dockerfile = format!(
        "FROM busybox\nCOPY a /a\nRUN echo step >/step\nRUN if [ -e /stop ]; then exit 0; fi; test -n \"$GO\" || sleep {mark}\n"
    );
    let dockerfile = dockerfile.replace("RUN if", "ARG GO\nRUN if");
    let folder = context(&world, "kill", &[("Dockerfile", &dockerfile), ("a", "a\n")]);
    let place = folder.to_string_lossy().into_owned();
    for round in 0..3 {
        let mut command = world.docker_command(&["build", "-t", "half", &place]);
        command
            .env("DOCKER_BUILDKIT", "0")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut client = command.spawn().unwrap();
        gantry_testkit::eventually("the sleeping step", crate::SOON, || {
            match steps_running(&mark) {
                0 => Err("not yet".into()),
                _ => Ok(()),
            }
        });
        if round == 0 {
            let pid = rustix::process::Pid::from_child(&client);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            client.wait().unwrap();
        } else {
            world.kill();
            client.wait().unwrap();
            world.up();
        }
        gantry_testkit::eventually("the end of the step", crate::SOON, || {
            match steps_running(&mark) {
                0 => Ok(()),
                n => Err(format!("{n} run")),
            }
        });
        assert_ne!(world.docker(&["inspect", "half"]).code, 0);
        assert_eq!(
            std::fs::read_dir(world.data_dir().join("containers"))
                .unwrap()
                .count(),
            0
        );
    }
    let done = classic(&world, &folder, &["-t", "whole", "--build-arg", "GO=1"]);
    assert_eq!(done.code, 0, "{done}");
    assert_eq!(
        world
            .docker(&["run", "--rm", "whole", "cat", "/a", "/step"])
            .ok(),
        "a\nstep"
    );
    world.purge();
}

#[test]
fn two_identical_builds_at_once_run_their_steps_once() {
    let world = busybox();
    let folder = context(
        &world,
        "twice",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid >/id && sleep 1\nCMD [\"cat\", \"/id\"]\n",
        )],
    );
    std::thread::scope(|scope| {
        let (world, folder) = (&world, &folder);
        for name in ["one", "two"] {
            scope.spawn(move || classic(world, folder, &["-t", name]).ok());
        }
    });
    let ids = ["one", "two"].map(|name| world.docker(&["run", "--rm", name]).ok());
    assert_eq!(ids[0], ids[1]);
    world.purge();
}
