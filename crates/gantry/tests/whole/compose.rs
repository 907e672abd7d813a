//! Debian's docker-compose, unmodified, with two small applications. Ten larger ones: `make conformance-compose`.

use crate::{SOON, busybox};
use gantry_testkit::{Done, World, eventually, run};

/// docker-compose on the application whose file is `text`.
fn compose(world: &World, text: &str, words: &[&str]) -> Done {
    let folder = world.folder().join("app");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    std::fs::write(folder.join("docker-compose.yml"), text).expect("a file can be written");
    let mut command = world.enter("timeout");
    command
        .args(["--kill-after=5", "120", "docker-compose", "--no-ansi"])
        .args(words)
        .current_dir(&folder)
        // The first compose cannot recreate a container at Docker 25 and newer, whose API has no `ContainerConfig`, unless it speaks an older one.
        .env("COMPOSE_API_VERSION", "1.44")
        .env(
            "DOCKER_HOST",
            format!("unix://{}", world.socket().display()),
        );
    run(&mut command, None)
}

const PAGES: &str = r##"
version: "3.8"
services:
  page:
    image: busybox
    stop_signal: SIGKILL
    command: httpd -f -p 80 -h /www
    networks: [back]
    healthcheck:
      test: wget -qO- http://127.0.0.1/
      interval: 1s
    deploy:
      resources:
        limits: {memory: 64M}
  proxy:
    image: busybox
    stop_signal: SIGKILL
    # A name that is answered by whichever of the pages.
    command: sh -c 'mkdir -p /srv/cgi-bin; printf "#!/bin/sh\necho; wget -qO- http://pages/\n" >/srv/cgi-bin/p; chmod +x /srv/cgi-bin/p; exec httpd -f -p 80 -h /srv'
    depends_on: [page]
    links: ["page:pages"]
    ports: ["127.0.0.1::80"]
    networks: [front, back]
    environment: {WHO: proxy}
    volumes: ["data:/data"]
networks:
  front: {}
  back: {internal: true}
volumes:
  data: {}
"##;

#[test]
fn a_proxy_and_its_pages() {
    let world = busybox();
    let up = compose(&world, PAGES, &["up", "-d", "--scale", "page=2"]);
    assert_eq!(up.code, 0, "{up}");
    let address = compose(&world, PAGES, &["port", "proxy", "80"]).ok();
    let url = format!("http://{address}/cgi-bin/p");
    eventually("the page through the proxy", SOON, || {
        let done = run(world.enter("curl").args(["-s", &url]), None);
        if done.stdout.trim() == "ok" {
            Ok(())
        } else {
            Err(done.to_string())
        }
    });
    let who = compose(
        &world,
        PAGES,
        &[
            "exec",
            "-T",
            "proxy",
            "sh",
            "-c",
            "echo $WHO; nslookup -type=a page",
        ],
    );
    assert_eq!(who.code, 0, "{who}");
    assert!(who.stdout.starts_with("proxy\n"), "{who}");
    // Both pages answer to the service's name.
    assert_eq!(who.stdout.matches("Name:\tpage").count(), 2, "{who}");
    let shown = compose(&world, PAGES, &["ps"]).ok();
    assert_eq!(shown.matches(" Up ").count(), 3, "{shown}");
    // A second time nothing changes; what is changed is made anew.
    let again = compose(&world, PAGES, &["up", "-d", "--scale", "page=2"]);
    assert!(
        again.stderr.contains("app_proxy_1 is up-to-date"),
        "{again}"
    );
    let changed = PAGES.replace("WHO: proxy", "WHO: changed");
    let third = compose(&world, &changed, &["up", "-d", "--scale", "page=2"]);
    assert!(third.stderr.contains("Recreating app_proxy_1"), "{third}");
    let who = compose(
        &world,
        &changed,
        &["exec", "-T", "proxy", "sh", "-c", "echo $WHO"],
    )
    .ok();
    assert_eq!(who, "changed");
    let down = compose(&world, &changed, &["down", "-v"]);
    assert_eq!(down.code, 0, "{down}");
    assert_eq!(world.docker(&["ps", "-aq"]).ok(), "");
    assert_eq!(
        world
            .docker(&["network", "ls", "-q", "--filter", "type=custom"])
            .ok(),
        ""
    );
    assert_eq!(world.docker(&["volume", "ls", "-q"]).ok(), "");
}

const WORK: &str = r#"
version: "2.4"
services:
  queue:
    image: busybox
    stop_signal: SIGKILL
    command: sh -c 'mkfifo /q; touch /ready; exec httpd -f -p 80 -h /www'
    healthcheck: {test: test -e /ready, interval: 1s}
    read_only: false
  worker:
    image: busybox
    stop_signal: SIGKILL
    depends_on: {queue: {condition: service_healthy}}
    command: sh -c 'wget -qO /out/result http://queue/ && echo done'
    volumes: ["./out:/out"]
    mem_limit: 32m
    extra_hosts: ["elsewhere:192.0.2.1"]
    sysctls: {net.core.somaxconn: 200}
    tmpfs: [/scratch]
    user: "0"
  sidecar:
    image: busybox
    stop_signal: SIGKILL
    network_mode: "service:queue"
    command: sh -c 'hostname; sleep 600'
"#;

#[test]
fn a_worker_that_waits_and_a_sidecar() {
    let world = busybox();
    let up = compose(&world, WORK, &["up", "-d"]);
    assert_eq!(up.code, 0, "{up}");
    let result = world.folder().join("app/out/result");
    eventually(
        "the worker's result",
        SOON,
        || match std::fs::read_to_string(&result) {
            Ok(text) if text == "ok\n" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    let logs = compose(&world, WORK, &["logs", "worker"]).ok();
    assert!(
        logs.contains("worker_1 ") && logs.contains("| done"),
        "{logs}"
    );
    let sidecar = compose(
        &world,
        WORK,
        &["exec", "-T", "sidecar", "wget", "-qO-", "http://127.0.0.1/"],
    );
    assert_eq!(sidecar.ok(), "ok");
    let stopped = compose(&world, WORK, &["stop", "-t", "0"]);
    assert_eq!(stopped.code, 0, "{stopped}");
    let started = compose(&world, WORK, &["start"]);
    assert_eq!(started.code, 0, "{started}");
    let down = compose(&world, WORK, &["down"]);
    assert_eq!(down.code, 0, "{down}");
    assert_eq!(world.docker(&["ps", "-aq"]).ok(), "");
}
