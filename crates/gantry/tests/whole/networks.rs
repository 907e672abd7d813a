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

/// A container that serves a page on port 80 over both families.
fn server(world: &World, name: &str, words: &[&str]) {
    let head = ["run", "-d", "--name", name];
    let tail = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
    world.docker(&[&head[..], words, &tail].concat()).ok();
}

fn fetches(world: &World, client: &str, url: &str) -> bool {
    let words = ["exec", client, "timeout", "2", "wget", "-qO-", url];
    world.docker(&words).code == 0
}

#[test]
fn networks_with_ipv6() {
    let mut world = busybox();
    let create = [
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "10.200.0.0/24",
        "--subnet",
        "2001:db8:7::/64",
        "six",
    ];
    world.docker(&create).ok();
    server(
        &world,
        "web",
        &[
            "--network",
            "six",
            "--ip6",
            "2001:db8:7::80",
            "-p",
            "[::]:8080:80",
        ],
    );
    server(&world, "client", &["--network", "six"]);
    let format = "{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.IPv6Gateway}}{{end}}";
    let shown = world.docker(&["inspect", "-f", format, "web"]).ok();
    assert_eq!(shown, "2001:db8:7::80/64 2001:db8:7::1");
    let format = "{{.EnableIPv6}} {{range .IPAM.Config}}{{.Subnet}} {{.Gateway}} {{end}}{{range .Containers}}{{.IPv6Address}} {{end}}";
    let shown = world
        .docker(&["network", "inspect", "-f", format, "six"])
        .ok();
    assert!(
        shown.starts_with("true 10.200.0.0/24 10.200.0.1 2001:db8:7::/64 2001:db8:7::1 "),
        "{shown}"
    );
    assert!(
        shown.contains("2001:db8:7::80/64") && shown.contains("2001:db8:7::2/64"),
        "{shown}"
    );
    assert!(fetches(&world, "client", "http://[2001:db8:7::80]/"));
    // By name, the host by its gateway, and the port that is published on every IPv6 address.
    let name = world
        .docker(&["exec", "client", "nslookup", "-type=aaaa", "web"])
        .ok();
    assert!(name.contains("2001:db8:7::80"), "{name}");
    let reverse = world
        .docker(&["exec", "client", "nslookup", "2001:db8:7::80"])
        .ok();
    assert!(reverse.contains("web.six"), "{reverse}");
    let hosts = world.docker(&["exec", "web", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains("2001:db8:7::80\t"), "{hosts}");
    assert!(fetches(&world, "client", "http://[2001:db8:7::1]:8080/"));
    let mut curl = world.enter("curl");
    assert_eq!(
        run(curl.args(["-s", "http://[::1]:8080/"]), None).ok(),
        "ok"
    );
    // Out of the host: the sender is the host's own address there.
    let script = "ip link add out type veth peer name beyond && ip addr add 2001:db8:9::1/64 dev out nodad && ip link set out up";
    run(world.enter("sh").args(["-c", script]), None).ok();
    assert!(fetches(&world, "client", "http://[2001:db8:9::1]:8080/"));
    let mut nft = world.enter("nft");
    let rules = run(nft.args(["list", "ruleset"]), None).ok();
    assert!(
        rules.contains("ip6 saddr 2001:db8:7::/64 oifname != "),
        "{rules}"
    );

    let taken = world.docker(&[
        "run",
        "--rm",
        "--network",
        "six",
        "--ip6",
        "2001:db8:7::80",
        "busybox",
        "true",
    ]);
    assert!(
        taken.fails(125).contains("Address already in use"),
        "{taken}"
    );
    world
        .docker(&["network", "create", "--ipv6", "chosen"])
        .ok();
    let format = "{{range .IPAM.Config}}{{.Subnet}} {{end}}";
    let chosen = world
        .docker(&["network", "inspect", "-f", format, "chosen"])
        .ok();
    assert!(
        chosen.contains(" fd") && chosen.contains("::/64"),
        "{chosen}"
    );
    // A running container joins one, and the daemon's end changes nothing.
    world
        .docker(&["network", "connect", "chosen", "client"])
        .ok();
    let own = ["exec", "client", "ip", "-6", "addr", "show", "eth1"];
    assert!(world.docker(&own).ok().contains("inet6 fd"));
    world.kill();
    world.up();
    assert!(fetches(&world, "client", "http://[2001:db8:7::80]/"));
    run(world.enter("ip").args(["link", "del", "out"]), None).ok();
    server(&world, "after", &["--network", "six"]);
    let shown = world
        .docker(&["exec", "after", "ip", "-6", "addr", "show", "eth0"])
        .ok();
    assert!(shown.contains("2001:db8:7::3/64"), "{shown}");
}

#[test]
fn containers_that_must_not_reach_each_other() {
    let world = busybox();
    let option = "com.docker.network.bridge.enable_icc=false";
    let create = [
        "network",
        "create",
        "--subnet",
        "10.200.0.0/24",
        "-o",
        option,
        "apart",
    ];
    world.docker(&create).ok();
    server(
        &world,
        "web",
        &["--network", "apart", "--ip", "10.200.0.80", "-p", "8080:80"],
    );
    server(&world, "client", &["--network", "apart"]);
    assert!(!fetches(&world, "client", "http://10.200.0.80/"));
    let mut curl = world.enter("curl");
    assert_eq!(
        run(curl.args(["-s", "http://10.200.0.1:8080/"]), None).ok(),
        "ok"
    );
    let mut curl = world.enter("curl");
    assert_eq!(
        run(curl.args(["-s", "http://10.200.0.80/"]), None).ok(),
        "ok"
    );
}

#[test]
fn containers_on_the_wire_of_the_host() {
    let mut world = busybox();
    // A wire: what is sent into one end comes out at the other.
    let script = "ip link add wire type veth peer name far && ip link set wire up && ip link set far up && ip addr add 10.210.0.1/24 dev far";
    run(world.enter("sh").args(["-c", script]), None).ok();
    let create = |driver: &str, words: &[&str]| {
        let head = ["network", "create", "-d", driver];
        world.docker(&[&head[..], words].concat())
    };
    let made = create(
        "macvlan",
        &["--subnet", "10.210.0.0/24", "-o", "parent=wire", "mac"],
    );
    // The far end of the wire is in the same namespace here, and its route is in the way.
    assert!(made.fails(1).contains("Pool overlaps"), "{made}");
    run(
        world.enter("ip").args(["addr", "flush", "dev", "far"]),
        None,
    )
    .ok();
    create(
        "macvlan",
        &["--subnet", "10.210.0.0/24", "-o", "parent=wire", "mac"],
    )
    .ok();
    run(
        world
            .enter("ip")
            .args(["addr", "add", "10.210.0.1/24", "dev", "far"]),
        None,
    )
    .ok();
    server(&world, "web", &["--network", "mac", "--ip", "10.210.0.80"]);
    server(&world, "client", &["--network", "mac"]);
    assert!(fetches(&world, "client", "http://web/"));
    let mut curl = world.enter("curl");
    assert_eq!(
        run(curl.args(["-s", "http://10.210.0.80/"]), None).ok(),
        "ok"
    );
    let kind = world.docker(&[
        "network",
        "inspect",
        "-f",
        "{{.Driver}} {{.Options}}",
        "mac",
    ]);
    assert_eq!(kind.ok(), "macvlan map[parent:wire]");

    for (driver, words, why) in [
        (
            "macvlan",
            &["-o", "parent=nowhere", "no"],
            "invalid parent interface nowhere: it does not exist",
        ),
        (
            "macvlan",
            &["-o", "macvlan_mode=odd", "no"],
            "requested macvlan mode 'odd' is not valid",
        ),
    ] {
        let refused = create(driver, words);
        assert!(refused.fails(1).contains(why), "{refused}");
    }
    let ipvlan = create(
        "ipvlan",
        &["--subnet", "10.211.0.0/24", "-o", "parent=wire", "ipv"],
    );
    if ipvlan.code == 0 {
        server(&world, "ip1", &["--network", "ipv", "--ip", "10.211.0.80"]);
        server(&world, "ip2", &["--network", "ipv"]);
        assert!(fetches(&world, "ip2", "http://10.211.0.80/"));
    } else {
        assert!(
            ipvlan.fails(1).contains("this host's kernel has no ipvlan"),
            "{ipvlan}"
        );
    }
    // Without a parent they see each other alone; joined and left while it runs, and after the daemon's end.
    create("macvlan", &["--subnet", "10.212.0.0/24", "alone"]).ok();
    server(
        &world,
        "hermit",
        &["--network", "alone", "--ip", "10.212.0.80"],
    );
    world
        .docker(&["network", "connect", "alone", "client"])
        .ok();
    assert!(fetches(&world, "client", "http://10.212.0.80/"));
    world.kill();
    world.up();
    assert!(fetches(&world, "client", "http://10.212.0.80/"));
    world
        .docker(&["network", "disconnect", "alone", "client"])
        .ok();
    assert!(!fetches(&world, "client", "http://10.212.0.80/"));
    world.docker(&["rm", "-f", "hermit"]).ok();
    world.docker(&["network", "rm", "alone"]).ok();
    run(world.enter("ip").args(["link", "del", "wire"]), None).ok();
}
