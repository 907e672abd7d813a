//! User-defined networks: containers that join and leave them while they run.

use crate::{SOON, busybox};
use gantry_testkit::{World, eventually, run};

fn addresses(world: &World, container: &str) -> String {
    let words = ["exec", container, "ip", "-o", "-4", "addr", "show"];
    world.docker(&words).ok()
}

fn routes(world: &World, container: &str) -> String {
    world.docker(&["exec", container, "ip", "route"]).ok()
}

/// Two networks, `front` and `back`, with `web` serving in `back` at 10.201.0.80.
fn two_networks(world: &World) {
    for (name, subnet) in [("front", "10.200.0.0/24"), ("back", "10.201.0.0/24")] {
        let words = ["network", "create", "--subnet", subnet, name];
        world.docker(&words).ok();
    }
    let words = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "back",
        "--ip",
        "10.201.0.80",
        "busybox",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/www",
    ];
    world.docker(&words).ok();
    let words = [
        "run",
        "-d",
        "--name",
        "client",
        "--network",
        "front",
        "busybox",
        "sleep",
        "600",
    ];
    world.docker(&words).ok();
}

/// What `client` gets from `web`.
fn page(world: &World) -> (i32, String) {
    let url = "http://10.201.0.80/";
    let done = world.docker(&["exec", "client", "timeout", "2", "wget", "-qO-", url]);
    (done.code, done.stdout)
}

#[test]
fn a_running_container_joins_and_leaves() {
    let world = busybox();
    two_networks(&world);
    assert_ne!(page(&world).0, 0, "networks are not isolated");
    let words = [
        "network",
        "connect",
        "--ip",
        "10.201.0.9",
        "--alias",
        "cl",
        "back",
        "client",
    ];
    world.docker(&words).ok();
    eventually("the page", SOON, || match page(&world) {
        (0, text) => Ok(text),
        failed => Err(format!("{failed:?}")),
    });
    let shown = addresses(&world, "client");
    assert!(
        shown.contains("eth1") && shown.contains("10.201.0.9/24"),
        "{shown}"
    );
    assert!(routes(&world, "client").contains("default via 10.200.0.1"));
    let format = "{{with .NetworkSettings.Networks.back}}{{.IPAddress}} {{.Aliases}}{{end}}";
    let words = ["inspect", "-f", format, "client"];
    assert_eq!(world.docker(&words).ok(), "10.201.0.9 [cl]");
    let members = world
        .docker(&[
            "network",
            "inspect",
            "-f",
            "{{range .Containers}}{{.Name}} {{end}}",
            "back",
        ])
        .ok();
    assert!(
        members.contains("client") && members.contains("web"),
        "{members}"
    );

    let again = world.docker(&["network", "connect", "back", "client"]);
    assert!(
        again
            .fails(1)
            .contains("endpoint with name client already exists in network back"),
        "{again}"
    );
    let taken = world.docker(&["network", "rm", "back"]);
    assert!(taken.fails(1).contains("has active endpoints"), "{taken}");

    // The default route goes with its network and comes with the next.
    world
        .docker(&["network", "disconnect", "front", "client"])
        .ok();
    assert!(routes(&world, "client").contains("default via 10.201.0.1"));
    world
        .docker(&["network", "disconnect", "back", "client"])
        .ok();
    assert!(!addresses(&world, "client").contains("eth"));
    let gone = world.docker(&["network", "disconnect", "back", "client"]);
    assert!(
        gone.fails(1).contains("is not connected to network back"),
        "{gone}"
    );
    // The address is free again, for a container that was told so before it runs.
    world
        .docker(&["create", "--name", "late", "busybox", "sleep", "600"])
        .ok();
    world
        .docker(&["network", "connect", "--ip", "10.201.0.9", "back", "late"])
        .ok();
    world.docker(&["start", "late"]).ok();
    assert!(addresses(&world, "late").contains("10.201.0.9/24"));
}

#[test]
fn joined_networks_survive_the_daemon() {
    let mut world = busybox();
    two_networks(&world);
    world.docker(&["network", "connect", "back", "client"]).ok();
    let before = addresses(&world, "client");
    let words = [
        "inspect",
        "-f",
        "{{.NetworkSettings.Networks.back.EndpointID}}",
        "client",
    ];
    let endpoint = world.docker(&words).ok();
    world.kill();
    world.up();
    assert_eq!(addresses(&world, "client"), before);
    assert_eq!(world.docker(&words).ok(), endpoint);
    assert_eq!(page(&world).0, 0);
    world
        .docker(&["network", "disconnect", "back", "client"])
        .ok();
    assert_ne!(page(&world).0, 0);
}

#[test]
fn auxiliary_addresses_and_options() {
    let world = busybox();
    let create = |words: &[&str]| {
        let words = [&["network", "create"], words].concat();
        world.docker(&words)
    };
    create(&[
        "--subnet",
        "10.202.0.0/29",
        "--aux-address",
        "router=10.202.0.2",
        "few",
    ])
    .ok();
    let format = "{{json .IPAM.Config}}";
    let shown = world
        .docker(&["network", "inspect", "-f", format, "few"])
        .ok();
    assert!(
        shown.contains(r#""AuxiliaryAddresses":{"router":"10.202.0.2"}"#),
        "{shown}"
    );
    let first = world
        .docker(&[
            "run",
            "--rm",
            "--network",
            "few",
            "busybox",
            "ip",
            "-o",
            "-4",
            "addr",
        ])
        .ok();
    assert!(first.contains("10.202.0.3/29"), "{first}");
    let taken = world.docker(&[
        "run",
        "--rm",
        "--network",
        "few",
        "--ip",
        "10.202.0.2",
        "busybox",
        "true",
    ]);
    assert!(
        taken.fails(125).contains("Address already in use"),
        "{taken}"
    );
    let outside = create(&[
        "--subnet",
        "10.203.0.0/24",
        "--aux-address",
        "a=10.9.9.9",
        "no",
    ]);
    assert!(
        outside
            .fails(1)
            .contains("no matching subnet for aux-address 10.9.9.9"),
        "{outside}"
    );
    let icc = create(&["-o", "com.docker.network.bridge.enable_icc=false", "no"]);
    assert!(icc.fails(1).contains("enable_icc=false"), "{icc}");

    let rules = |world: &World| {
        let mut nft = world.enter("nft");
        run(nft.args(["list", "ruleset"]), None).ok()
    };
    create(&["--subnet", "10.204.0.0/24", "masked"]).ok();
    let option = "com.docker.network.bridge.enable_ip_masquerade=false";
    create(&["--subnet", "10.205.0.0/24", "-o", option, "routed"]).ok();
    let outwards = |subnet: &str| {
        let text = rules(&world);
        text.lines().any(|line| {
            line.contains(subnet) && line.contains("oifname !=") && line.contains("masquerade")
        })
    };
    assert!(
        outwards("10.204.0.0/24") && !outwards("10.205.0.0/24"),
        "{}",
        rules(&world)
    );
}
