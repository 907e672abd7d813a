//! Networks and published ports, in a network namespace that each test has for itself.

use crate::{GANTRY, SOON, busybox};
use gantry_testkit::{Options, World, eventually, run};

/// Fetches a page in the world's namespace; answers with its text.
#[track_caller]
fn fetch(world: &World, url: &str) -> String {
    eventually(url, SOON, || {
        let mut command = world.enter("curl");
        command.args(["-sS", "--globoff", "--max-time", "5", url]);
        let done = run(&mut command, None);
        if done.code == 0 {
            Ok(done.stdout)
        } else {
            Err(done.to_string())
        }
    })
}

/// A web server on port 80 of a container named `web`, with these flags.
fn web(world: &World, flags: &[&str]) {
    let mut words = vec!["run", "-d", "--name", "web"];
    words.extend(flags);
    words.extend(["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]);
    world.docker(&words).ok();
}

fn published(world: &World) -> String {
    let port = world.docker(&["port", "web", "80/tcp"]).ok();
    port.lines()
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn a_published_port_answers_everywhere() {
    let world = busybox();
    web(&world, &["-p", "80"]);
    let port = published(&world);
    let address = world
        .docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"])
        .ok();
    let gateway = world
        .docker(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", "web"])
        .ok();
    for host in ["127.0.0.1".to_owned(), "[::1]".to_owned(), gateway] {
        assert_eq!(
            fetch(&world, &format!("http://{host}:{port}/")),
            "ok\n",
            "{host}"
        );
    }
    assert_eq!(fetch(&world, &format!("http://{address}/")), "ok\n");
    // From another container, by address and through the published port of the gateway.
    assert_eq!(
        world
            .docker(&[
                "run",
                "--rm",
                "busybox",
                "wget",
                "-qO-",
                &format!("http://{address}/")
            ])
            .ok(),
        "ok"
    );
}

#[test]
fn a_taken_port_is_refused_in_both_directions() {
    let world = busybox();
    web(&world, &["-p", "127.0.0.1::80"]);
    let port = published(&world);
    let binding = format!("127.0.0.1:{port}:80");
    let done = world.docker(&[
        "run", "-d", "--name", "late", "-p", &binding, "busybox", "sleep", "600",
    ]);
    assert!(
        done.fails(125).contains("port is already allocated"),
        "{done}"
    );
    assert_eq!(
        world
            .docker(&["inspect", "-f", "{{.State.Status}}", "late"])
            .ok(),
        "created"
    );
    assert_eq!(world.try_bind("127.0.0.1", &port), "Address already in use");
    world.docker(&["rm", "-f", "web"]).ok();
    world.docker(&["start", "late"]).ok();
}

#[test]
fn none_host_and_shared() {
    let world = busybox();
    let links = |network: &str| {
        world
            .docker(&[
                "run",
                "--rm",
                "--network",
                network,
                "busybox",
                "ls",
                "/sys/class/net",
            ])
            .ok()
    };
    assert_eq!(links("none"), "lo");
    assert!(links("bridge").contains("eth0"));
    web(&world, &[]);
    assert_eq!(
        world
            .docker(&[
                "run",
                "--rm",
                "--network",
                "container:web",
                "busybox",
                "wget",
                "-qO-",
                "http://127.0.0.1/"
            ])
            .ok(),
        "ok"
    );
    let inside = world
        .docker(&[
            "run",
            "--rm",
            "--network",
            "host",
            "busybox",
            "readlink",
            "/proc/self/ns/net",
        ])
        .ok();
    let mut outside = world.enter("readlink");
    assert_eq!(inside, run(outside.arg("/proc/self/ns/net"), None).ok());
}

#[test]
fn hosts_and_resolv_conf() {
    let world = busybox();
    let hosts = world
        .docker(&[
            "run",
            "--rm",
            "--hostname",
            "me",
            "--add-host",
            "db:10.1.2.3",
            "busybox",
            "cat",
            "/etc/hosts",
        ])
        .ok();
    assert!(
        hosts.contains("10.1.2.3\tdb") && hosts.lines().any(|line| line.ends_with("\tme")),
        "{hosts}"
    );
    let resolv = world
        .docker(&[
            "run",
            "--rm",
            "--dns",
            "10.9.9.9",
            "busybox",
            "cat",
            "/etc/resolv.conf",
        ])
        .ok();
    assert!(resolv.contains("nameserver 10.9.9.9"), "{resolv}");
}

#[test]
fn traffic_flows_where_forward_is_dropped() {
    let world = busybox();
    // What Docker or a firewall leaves behind: everything forwarded is dropped. Restarting must repair it.
    let mut nft = world.enter("nft");
    let rules =
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }";
    run(nft.arg(rules), None).ok();
    let mut world = world;
    world.terminate();
    world.up();
    web(&world, &["-p", "80"]);
    let address = world
        .docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"])
        .ok();
    assert_eq!(
        world
            .docker(&[
                "run",
                "--rm",
                "busybox",
                "timeout",
                "10",
                "wget",
                "-qO-",
                &format!("http://{address}/")
            ])
            .ok(),
        "ok"
    );
    let ruleset = |world: &World| {
        let mut nft = world.enter("nft");
        run(nft.args(["list", "chain", "ip", "filter", "FORWARD"]), None).ok()
    };
    assert!(
        ruleset(&world).contains("policy drop"),
        "a foreign rule was changed"
    );
    let instance = world.instance();
    world.gantry(&["down"]).ok();
    assert!(
        !ruleset(&world).contains(&instance),
        "`down` left its accept in a foreign chain"
    );
}

#[test]
fn ports_and_rules_go_with_the_container() {
    let world = busybox();
    web(&world, &["-p", "80"]);
    let port = published(&world);
    fetch(&world, &format!("http://127.0.0.1:{port}/"));
    world.docker(&["rm", "-f", "web"]).ok();
    let mut nft = world.enter("nft");
    let rules = run(nft.args(["list", "ruleset"]), None).ok();
    assert!(!rules.contains(&format!(" {port} ")), "{rules}");
    eventually("the interface's end", SOON, || {
        let mut ip = world.enter("ip");
        let links = run(ip.args(["-oneline", "link", "show", "type", "veth"]), None).ok();
        if links.is_empty() { Ok(()) } else { Err(links) }
    });
    let mut curl = world.enter("curl");
    let done = run(
        curl.args([
            "-sS",
            "--max-time",
            "5",
            &format!("http://127.0.0.1:{port}/"),
        ]),
        None,
    );
    assert_eq!(done.code, 7, "{done}");
}

#[test]
fn the_hosts_input_rules_hold_for_published_ports_when_strict() {
    for (mode, reached) in [("friendly", true), ("strict", false)] {
        let world = World::with(
            GANTRY,
            Options {
                isolated: true,
                flags: vec!["--firewall".into(), mode.into()],
                ..Options::default()
            },
        );
        world.load_busybox();
        let web = [
            "run", "-d", "--name", "web", "-p", "8080:80", "-p", "8081:80", "busybox",
        ];
        let httpd = ["httpd", "-f", "-p", "80", "-h", "/www"];
        world.docker(&[&web[..], &httpd].concat()).ok();
        world
            .docker(&["run", "-d", "--name", "other", "busybox", "sleep", "600"])
            .ok();
        let script = "nft add table inet mine && nft add chain inet mine input '{ type filter hook input priority 0; }' && nft add rule inet mine input tcp dport 8080 drop";
        run(world.enter("sh").args(["-c", script]), None).ok();
        let gateway = world
            .docker(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", "web"])
            .ok();
        let fetch = |port: &str| {
            let url = format!("http://{gateway}:{port}/");
            let words = ["exec", "other", "timeout", "3", "wget", "-qO-", &url];
            world.docker(&words).code == 0
        };
        assert!(fetch("8081"), "{mode}");
        assert_eq!(fetch("8080"), reached, "{mode}");
        run(
            world.enter("nft").args(["delete", "table", "inet", "mine"]),
            None,
        )
        .ok();
        assert!(fetch("8080"), "{mode}");
    }
}
