//! Real traffic through real tables, each test in network namespaces of its own; `nft`, `iptables` and `ip` are the oracles.

use super::*;
use gantry_linux::net::in_new_namespace;
use gantry_linux::netlink::{Inside, Netns, RouteSocket, Veth};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// Long enough for an answer under load, short enough to wait for one that must not come.
const ANSWER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(400);

fn settings(instance: &str, firewall: Firewall) -> Settings {
    Settings {
        instance: instance.into(),
        subnet_pool: "10.88.0.0/16".parse().unwrap(),
        firewall,
    }
}

/// A node in the calling thread's namespace.
struct Node {
    networks: Networks,
    db: Db,
    settings: Settings,
    _folder: tempfile::TempDir,
}

impl Node {
    fn new(instance: &str, firewall: Firewall) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("node.redb")).unwrap();
        let settings = settings(instance, firewall);
        let networks = Networks::open(settings.clone(), db.clone(), &BTreeMap::new()).unwrap();
        Self {
            networks,
            db,
            settings,
            _folder: folder,
        }
    }
    /// A container on the network with a server that answers every connection and datagram with its peer's address.
    fn container(&self, id: &str, network: &str, ports: &[PortRequest]) -> Container {
        let endpoint = self
            .networks
            .connect(id, network, None, None, None)
            .unwrap();
        let published = self.networks.reserve(id, id, &endpoint, ports).unwrap();
        let world = World::new();
        let mut socket = RouteSocket::open().unwrap();
        world.join(
            &mut socket,
            &endpoint.host_interface,
            "eth0",
            Some(&endpoint.bridge),
        );
        let e = endpoint.clone();
        world.run(move || {
            RouteSocket::open()
                .unwrap()
                .configure_inside(&[Inside {
                    name: "eth0",
                    addresses: &[(e.address.into(), e.prefix_len)],
                    gateways: &e.gateway.map(IpAddr::V4).into_iter().collect::<Vec<_>>(),
                }])
                .unwrap();
        });
        world.serve(SocketAddr::new(endpoint.address.into(), 80));
        self.networks
            .publish(id, &endpoint, &published.bindings)
            .unwrap();
        Container {
            endpoint,
            published,
            world,
        }
    }
}

struct Container {
    endpoint: Endpoint,
    published: Published,
    world: World,
}

impl Container {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.endpoint.address.into(), 80)
    }
    fn port(&self, i: usize) -> u16 {
        self.published.bindings[i].host_port
    }
}

/// A network namespace with a thread in it that runs what it is given.
struct World {
    netns: File,
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl World {
    fn new() -> Self {
        let (work, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, opened) = mpsc::channel();
        std::thread::spawn(move || {
            in_new_namespace(move || {
                ready
                    .send(File::open("/proc/thread-self/ns/net").unwrap())
                    .unwrap();
                while let Ok(job) = jobs.recv() {
                    job();
                }
            })
        });
        Self {
            netns: opened.recv().unwrap(),
            work,
        }
    }
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work
            .send(Box::new(move || drop(done.send(work()))))
            .unwrap();
        result.recv().expect("the work did not panic")
    }
    fn join(&self, socket: &mut RouteSocket, outside: &str, inside: &str, master: Option<&str>) {
        socket
            .create_veth(&Veth {
                host_name: outside,
                peer_name: inside,
                peer_netns: Netns::Fd(self.netns.as_fd()),
                master,
                peer_mac: None,
                mtu: 0,
                isolated: false,
            })
            .unwrap();
    }
    fn serve(&self, address: SocketAddr) {
        self.run(move || {
            let tcp = TcpListener::bind(address).unwrap();
            let udp = UdpSocket::bind(address).unwrap();
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.unwrap();
                    let peer = stream.peer_addr().unwrap().ip().to_string();
                    let _ = stream.write_all(peer.as_bytes());
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
                }
            });
        });
    }
    fn ask(&self, address: SocketAddr) -> Option<String> {
        self.run(move || ask(address))
    }
    fn ask_in_vain(&self, address: SocketAddr) -> Option<String> {
        self.run(move || ask_for(address, SILENCE))
    }
}

/// A neighbour of the host on another network: 198.51.100.2, the host is .1.
fn lan() -> World {
    let world = World::new();
    let mut socket = RouteSocket::open().unwrap();
    world.join(&mut socket, "uplink", "eth0", None);
    let uplink = socket.index("uplink").unwrap();
    socket.add_address(uplink, ip("198.51.100.1"), 24).unwrap();
    world.run(|| {
        RouteSocket::open()
            .unwrap()
            .configure_inside(&[Inside {
                name: "eth0",
                addresses: &[(ip("198.51.100.2"), 24)],
                gateways: &[ip("198.51.100.1")],
            }])
            .unwrap();
    });
    RouteSocket::open().unwrap().configure_inside(&[]).unwrap();
    world.serve(at("198.51.100.2", 80));
    world
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// What the server says that we are, or `None` when nobody answers.
fn ask(address: SocketAddr) -> Option<String> {
    ask_for(address, ANSWER)
}
fn ask_for(address: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
fn ask_udp(from: &str, address: SocketAddr) -> Option<String> {
    let socket = UdpSocket::bind(at(from, 0)).unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    socket.connect(address).ok()?;
    socket.send(b"?").ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn port(udp: bool, host_ip: Option<&str>) -> PortRequest {
    PortRequest {
        udp,
        container_port: 80,
        host_ip: host_ip.map(ip),
        host_ports: (0, 0),
    }
}

fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn in_world(test: impl FnOnce() + Send) {
    in_new_namespace(|| {
        // A new namespace inherits this from the host.
        gantry_linux::net::set_sysctl("ipv4/ip_forward", "0").unwrap();
        test();
    })
    .expect("root");
}

#[test]
fn the_table_as_nft_reads_it() {
    in_world(|| {
        let node = Node::new("gantry", Firewall::Friendly);
        let target = Endpoint {
            address: Ipv4Addr::new(10, 88, 0, 2),
            ..node
                .networks
                .connect("a", "bridge", None, None, None)
                .unwrap()
        };
        let binding = |host_ip, host_port, udp| PortBinding {
            udp,
            container_port: 80,
            host_ip: ip(host_ip),
            host_port,
        };
        node.networks
            .publish(
                "a",
                &target,
                &[
                    binding("0.0.0.0", 8080, false),
                    binding("::", 8080, false),
                    binding("127.0.0.1", 5353, true),
                ],
            )
            .unwrap();
        let listed = output("nft", "list table inet gantry");
        let want = r#"table inet gantry {
	comment "ip_forward was 0"
	set bridges {
		type ifname
		elements = { "gantry0" }
	}

	set internal {
		type ifname
	}

	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.88.0.2 . 80 }
	}

	map ports_at {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 127.0.0.1 . udp . 5353 : 10.88.0.2 . 80 }
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname @bridges ip daddr 127.0.0.0/8 drop
		iifname @bridges ip saddr 127.0.0.0/8 drop
	}

	chain published {
		dnat ip to ip daddr . meta l4proto . th dport map @ports_at
		meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @ports
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump published
	}

	chain output {
		type nat hook output priority -100; policy accept;
		jump published
	}

	chain to_bridge {
		iifname "gantry0" oifname "gantry0" accept
		iifname @internal drop
		ct state established,related accept
		ct status dnat accept
		drop
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname @bridges jump to_bridge
		iifname @internal drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.88.0.0/20 oifname != "gantry0" masquerade
		ip saddr 10.88.0.0/20 oifname "gantry0" ct status dnat masquerade
		ip saddr 127.0.0.0/8 oifname "gantry0" masquerade
	}
}
"#;
        assert_eq!(listed, want, "{listed}");
        node.networks.release("a").unwrap();
        node.networks.release("a").unwrap();
        let listed = output("nft", "list map inet gantry ports");
        assert!(!listed.contains("8080"), "{listed}");
    });
}

/// Every way that a packet may take, with and without a foreign chain that drops.
fn traffic_flows(node: &Node, lan: &World) {
    let gateway = node
        .networks
        .get("bridge")
        .unwrap()
        .gateway
        .unwrap()
        .to_string();
    let web = node.container("web", "bridge", &[port(false, None), port(true, None)]);
    let local = node.container("local", "bridge", &[port(false, Some("127.0.0.1"))]);
    let plain = node.container("plain", "bridge", &[]);
    let tcp = web.port(0);
    // `None` publishes on IPv4 and, where there is any, on IPv6.
    let udp = web
        .published
        .bindings
        .iter()
        .find(|b| b.udp)
        .unwrap()
        .host_port;

    // Out, as the host.
    assert_eq!(
        plain.world.ask(at("198.51.100.2", 80)).as_deref(),
        Some("198.51.100.1")
    );
    // Between containers, as themselves.
    let plain_address = plain.endpoint.address.to_string();
    assert_eq!(plain.world.ask(web.address()), Some(plain_address));
    // Published: from outside as themselves, from the host by any of its addresses.
    assert_eq!(
        lan.ask(at("198.51.100.1", tcp)).as_deref(),
        Some("198.51.100.2")
    );
    for host in ["127.0.0.1", "127.0.0.9", &gateway] {
        assert_eq!(ask(at(host, tcp)), Some(gateway.clone()), "{host}");
    }
    assert_eq!(
        ask(at("198.51.100.1", tcp)).as_deref(),
        Some("198.51.100.1")
    );
    assert_eq!(
        lan.run(move || ask_udp("198.51.100.2", at("198.51.100.1", udp)))
            .as_deref(),
        Some("198.51.100.2")
    );
    assert_eq!(
        ask_udp("127.0.0.1", at("127.0.0.1", udp)),
        Some(gateway.clone())
    );
    // A container that reaches its own or its neighbour's port through the host.
    for from in [&web, &plain] {
        assert_eq!(
            from.world.ask(at("198.51.100.1", tcp)),
            Some(gateway.clone())
        );
    }
    // Published on the loopback: there, and nowhere else.
    assert_eq!(ask(at("127.0.0.1", local.port(0))), Some(gateway.clone()));
    assert_eq!(lan.ask_in_vain(at("198.51.100.1", local.port(0))), None);
    // Not published: a neighbour that routes to the bridge reaches nothing.
    assert_eq!(lan.ask_in_vain(plain.address()), None);
    assert_eq!(lan.ask_in_vain(web.address()), None);
    // The user-space forward's way: from the host to the container itself.
    assert_eq!(ask(web.address()), Some(gateway));
    for id in ["web", "local", "plain"] {
        node.networks.release(id).unwrap();
    }
    assert_eq!(lan.ask_in_vain(at("198.51.100.1", tcp)), None);
}

#[test]
fn traffic_takes_its_ways_and_no_others() {
    in_world(|| {
        let lan = lan();
        traffic_flows(&Node::new("gantry", Firewall::Friendly), &lan);
    });
}

#[test]
fn forward_drop_of_docker_is_passed_by_a_marked_accept() {
    in_world(|| {
        let lan = lan();
        for rule in [
            "-P FORWARD DROP",
            "-N DOCKER-USER",
            "-A DOCKER-USER -j RETURN",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ] {
            output("iptables", rule);
        }
        let before = output("iptables", "-S");
        let node = Node::new("gantry", Firewall::Friendly);
        assert_eq!(
            node.networks.foreign_drops(),
            [
                "ip filter FORWARD drops forwarded traffic; a marked accept in DOCKER-USER lets our bridges through"
            ]
        );
        let during = output("iptables", "-S");
        for want in ["-A DOCKER-USER -i gantry0", "-A DOCKER-USER -o gantry0"] {
            assert!(during.contains(want), "{during}");
        }
        traffic_flows(&node, &lan);
        // A second look adds nothing.
        node.networks.repair_accepts();
        assert_eq!(output("iptables", "-S"), during);
        Networks::remove_all(&node.settings, false).unwrap();
        assert_eq!(output("iptables", "-S"), before);
    });
}

#[test]
fn forward_drop_without_docker_and_firewalld_like_reject() {
    in_world(|| {
        let lan = lan();
        output("iptables", "-P FORWARD DROP");
        output("nft", "add table inet firewalld");
        output(
            "nft",
            "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy accept ; }",
        );
        output(
            "nft",
            "add rule inet firewalld filter_FORWARD ct state established,related accept",
        );
        output(
            "nft",
            "add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        );
        let before = (
            output("iptables", "-S"),
            output("nft", "list table inet firewalld"),
        );
        let node = Node::new("gantry", Firewall::Friendly);
        assert_eq!(node.networks.foreign_drops().len(), 2);
        traffic_flows(&node, &lan);
        Networks::remove_all(&node.settings, true).unwrap();
        let after = (
            output("iptables", "-S"),
            output("nft", "list table inet firewalld"),
        );
        assert_eq!(before, after);
    });
}

#[test]
fn strict_leaves_foreign_chains_alone() {
    in_world(|| {
        let lan = lan();
        output("iptables", "-P FORWARD DROP");
        let before = output("iptables", "-S");
        let node = Node::new("gantry", Firewall::Strict);
        assert_eq!(output("iptables", "-S"), before);
        assert_eq!(
            node.networks.foreign_drops(),
            ["ip filter FORWARD drops forwarded traffic, that of our bridges included"]
        );
        let web = node.container("web", "bridge", &[port(false, None)]);
        assert_eq!(lan.ask_in_vain(at("198.51.100.1", web.port(0))), None);
        // What the host itself sends is not forwarded.
        assert!(ask(at("127.0.0.1", web.port(0))).is_some());
    });
}

#[test]
fn the_hosts_own_rules_also_hold_for_published_ports() {
    in_world(|| {
        let lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let web = node.container("web", "bridge", &[port(false, None)]);
        assert!(lan.ask(at("198.51.100.1", web.port(0))).is_some());
        output("iptables", "-A FORWARD -s 198.51.100.2 -j DROP");
        node.networks.repair_accepts();
        assert_eq!(lan.ask_in_vain(at("198.51.100.1", web.port(0))), None);
    });
}

#[test]
fn containers_do_not_reach_the_hosts_loopback() {
    in_world(|| {
        let _lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = service.local_addr().unwrap();
        let evil = node.container("evil", "bridge", &[]);
        let gateway = evil.endpoint.gateway.unwrap();
        evil.world.run(move || {
            output("ip", "route del local 127.0.0.1 dev lo table local");
            output("ip", "route del local 127.0.0.0/8 dev lo table local");
            output("ip", &format!("route add 127.0.0.0/8 via {gateway}"));
            gantry_linux::net::set_sysctl("ipv4/conf/all/route_localnet", "1").unwrap();
        });
        let attack = |patience| {
            evil.world.run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"x", address).unwrap();
            });
            service.set_read_timeout(Some(patience)).unwrap();
            service.recv_from(&mut [0; 8]).is_ok()
        };
        assert!(!attack(SILENCE));
        // The attack itself works: without the guard it reaches the service.
        output("nft", "flush chain inet gantry guard");
        assert!(attack(ANSWER));
    });
}

#[test]
fn networks_are_apart_and_internal_ones_stay_inside() {
    in_world(|| {
        let lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let make = |request| runtime.block_on(node.networks.create_network(request));
        make(CreateNetwork {
            name: "inner".into(),
            internal: true,
            ..CreateNetwork::default()
        })
        .unwrap();
        let other = make(CreateNetwork {
            name: "other".into(),
            subnet: Some("10.99.0.0/24".parse().unwrap()),
            ..CreateNetwork::default()
        })
        .unwrap();
        let web = node.container("web", "bridge", &[port(false, None)]);
        let a = node.container("a", "other", &[]);
        let (b, c) = (
            node.container("b", "inner", &[]),
            node.container("c", "inner", &[]),
        );
        assert!(b.world.ask(c.address()).is_some());
        assert!(a.world.ask(at("198.51.100.2", 80)).is_some());
        assert_eq!(a.world.ask_in_vain(web.address()), None);
        // Published ports are for everybody, by way of the host.
        assert!(a.world.ask(at("198.51.100.1", web.port(0))).is_some());
        // Even with a default route of its own making.
        let gateway = node.networks.get("inner").unwrap().gateway.unwrap();
        b.world
            .run(move || output("ip", &format!("route add default via {gateway}")));
        assert_eq!(b.world.ask_in_vain(at("198.51.100.2", 80)), None);
        assert_eq!(b.world.ask_in_vain(a.address()), None);
        assert_eq!(lan.ask_in_vain(b.address()), None);

        let remove = |name| runtime.block_on(node.networks.remove_network(name));
        let refused = remove("other").unwrap_err();
        assert_eq!(
            refused.message(),
            format!(
                "error while removing network: network other id {} has active endpoints",
                other.id
            )
        );
        node.networks.release("a").unwrap();
        remove(&other.id[..12]).unwrap();
        assert_eq!(
            remove("other").unwrap_err().message(),
            "network other not found"
        );
        assert!(!output("ip", "-br link").contains(other.bridge.as_deref().unwrap()));
        assert!(!output("nft", "list ruleset").contains("10.99.0"));
        assert!(remove("bridge").is_err());
    });
}

#[test]
fn a_running_container_joins_and_leaves() {
    in_world(|| {
        let _lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let router: Ipv4Addr = "10.99.0.2".parse().unwrap();
        let request = CreateNetwork {
            name: "other".into(),
            subnet: Some("10.99.0.0/24".parse().unwrap()),
            auxiliary: BTreeMap::from([("router".to_owned(), router)]),
            ..CreateNetwork::default()
        };
        runtime
            .block_on(node.networks.create_network(request))
            .unwrap();
        let web = node.container("web", "other", &[]);
        assert_eq!(web.endpoint.address.to_string(), "10.99.0.3");
        let late = node.container("late", "bridge", &[]);
        assert_eq!(late.world.ask_in_vain(web.address()), None);

        let taken = node
            .networks
            .connect("late", "other", Some(router), None, None);
        assert_eq!(taken.unwrap_err().message(), "Address already in use");
        let joined = node
            .networks
            .connect("late", "other", None, None, None)
            .unwrap();
        let file = late
            .world
            .run(|| File::open("/proc/thread-self/ns/net").unwrap());
        let namespace = Namespace::at(file);
        node.networks.join(&namespace, &joined).unwrap();
        // As a crash leaves it before the address was given.
        late.world.run(|| output("ip", "addr flush dev eth1"));
        node.networks.join(&namespace, &joined).unwrap();
        node.networks.join(&namespace, &joined).unwrap();
        assert!(late.world.ask(web.address()).is_some());
        let routes = || late.world.run(|| output("ip", "route"));
        assert_eq!(routes().matches("default").count(), 1);

        let first = &late.endpoint;
        node.networks
            .leave(&namespace, first, std::slice::from_ref(&joined))
            .unwrap();
        node.networks.disconnect("late", first);
        assert!(routes().contains("default via 10.99.0.1"), "{}", routes());
        node.networks.leave(&namespace, &joined, &[]).unwrap();
        node.networks.disconnect("late", &joined);
        assert_eq!(late.world.ask_in_vain(web.address()), None);
        assert!(
            node.networks
                .connect("next", "other", Some(joined.address), None, None)
                .is_ok()
        );
    });
}

#[test]
fn create_refuses_in_dockers_words() {
    in_world(|| {
        let _lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for (name, driver, subnet, gateway, want) in [
            (
                "bridge",
                "",
                "",
                "",
                "operation is not permitted on predefined bridge network ",
            ),
            (
                "x",
                "overlay",
                "",
                "",
                "could not find plugin overlay in v1 plugin registry: plugin not found",
            ),
            (
                "x",
                "bridge",
                "198.51.0.0/16",
                "",
                "Pool overlaps with other one on this address space",
            ),
            (
                "x",
                "bridge",
                "10.88.1.0/24",
                "",
                "Pool overlaps with other one on this address space",
            ),
            (
                "x",
                "",
                "10.7.0.0/24",
                "10.8.0.1",
                "no matching subnet for gateway 10.8.0.1",
            ),
        ] {
            let refused = runtime
                .block_on(node.networks.create_network(CreateNetwork {
                    name: name.into(),
                    driver: driver.into(),
                    subnet: subnet.parse().ok(),
                    gateway: gateway.parse().ok(),
                    ..CreateNetwork::default()
                }))
                .unwrap_err();
            assert_eq!(refused.message(), want);
        }
        let fine = CreateNetwork {
            name: "x".into(),
            ..CreateNetwork::default()
        };
        runtime
            .block_on(node.networks.create_network(fine.clone()))
            .unwrap();
        let again = runtime
            .block_on(node.networks.create_network(fine))
            .unwrap_err();
        assert_eq!(again.message(), "network with name x already exists");
        assert_eq!(node.networks.list().len(), 4);
    });
}

#[test]
fn two_instances_side_by_side_and_purge_takes_one() {
    in_world(|| {
        let lan = lan();
        let first = Node::new("gantry", Firewall::Friendly);
        let second = Node::new("gantry-1a2b3c4d", Firewall::Friendly);
        let subnet = |node: &Node| node.networks.get("bridge").unwrap().subnet.unwrap();
        assert!(!ipam::overlap(subnet(&first), subnet(&second)));
        let a = first.container("a", "bridge", &[port(false, None)]);
        let b = second.container("b", "bridge", &[port(false, None)]);
        assert!(a.endpoint.host_interface.len() <= 15 && b.endpoint.host_interface.len() <= 15);
        assert!(lan.ask(at("198.51.100.1", a.port(0))).is_some());
        assert!(lan.ask(at("198.51.100.1", b.port(0))).is_some());
        assert_eq!(a.world.ask_in_vain(b.address()), None);
        // One's port is foreign to the other.
        let taken = PortRequest {
            host_ports: (a.port(0), a.port(0)),
            ..port(false, None)
        };
        let refused = second
            .networks
            .reserve("c", "c", &b.endpoint, &[taken])
            .unwrap_err();
        assert!(
            refused.message().ends_with("address already in use"),
            "{refused}"
        );
        Networks::remove_all(&first.settings, true).unwrap();
        assert!(lan.ask(at("198.51.100.1", b.port(0))).is_some());
        assert_eq!(forwarding(), "1");
        drop((a, b));
        Networks::remove_all(&second.settings, true).unwrap();
        Networks::remove_all(&second.settings, true).unwrap();
        assert_eq!(output("nft", "list ruleset"), "");
        assert_eq!(forwarding(), "0");
        assert_eq!(output("ip", "-o link show type bridge"), "");
    });
}

fn forwarding() -> String {
    gantry_linux::net::sysctl("ipv4/ip_forward").unwrap()
}

#[test]
fn udp_clients_are_not_led_to_a_container_that_gave_its_port_back() {
    in_world(|| {
        let lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let a = node.container("a", "bridge", &[port(true, Some("198.51.100.1"))]);
        let host = at("198.51.100.1", a.port(0));
        let client = lan.run(|| UdpSocket::bind("198.51.100.2:0").unwrap());
        client.set_read_timeout(Some(ANSWER)).unwrap();
        let answers = |patience| {
            client.set_read_timeout(Some(patience)).unwrap();
            client.send_to(b"?", host).unwrap();
            client.recv_from(&mut [0; 64]).is_ok()
        };
        assert!(answers(ANSWER));
        node.networks.release("a").unwrap();
        drop(a.published);
        // The old server still answers, but nobody is led to it.
        assert!(!answers(SILENCE));
    });
}

#[test]
fn a_new_daemon_takes_over_what_lives_and_repairs_what_was_broken() {
    in_world(|| {
        let lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let web = node.container("web", "bridge", &[port(false, None)]);
        let gone = node.container("gone", "bridge", &[port(false, None)]);
        let ids: Vec<String> = node.networks.list().into_iter().map(|r| r.id).collect();
        output("nft", "flush ruleset");
        output("ip", "addr flush dev gantry0");
        let live = BTreeMap::from([(
            "web".to_owned(),
            (vec![web.endpoint.clone()], web.published.bindings.clone()),
        )]);
        let again = Networks::open(node.settings.clone(), node.db.clone(), &live).unwrap();
        let same: Vec<String> = again.list().into_iter().map(|r| r.id).collect();
        assert_eq!(ids, same);
        assert!(lan.ask(at("198.51.100.1", web.port(0))).is_some());
        assert!(!output("nft", "list table inet gantry").contains(&gone.port(0).to_string()));
        // The address of the living one is not given to anybody else.
        let next = again.connect("new", "bridge", None, None, None).unwrap();
        assert_ne!(next.address, web.endpoint.address);
        assert_eq!(
            again.connect("web", "bridge", None, None, None).unwrap().id,
            web.endpoint.id
        );
        // Its port is ours, and the words say so.
        let taken = PortRequest {
            host_ports: (web.port(0), web.port(0)),
            ..port(false, None)
        };
        let refused = again.reserve("new", "new", &next, &[taken]).unwrap_err();
        assert_eq!(
            refused.message(),
            format!(
                "driver failed programming external connectivity on endpoint new ({}): Bind for 0.0.0.0:{} failed: port is already allocated",
                next.id,
                web.port(0)
            )
        );
    });
}

#[test]
fn an_interface_in_the_way_is_named() {
    in_world(|| {
        output("ip", "link add gantry0 type veth peer name other");
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("node.redb")).unwrap();
        let settings = settings("gantry", Firewall::Friendly);
        let refused = Networks::open(settings, db, &BTreeMap::new())
            .err()
            .unwrap();
        assert_eq!(
            refused.message(),
            "interface gantry0 exists and is no bridge; remove or rename it"
        );
    });
}

#[test]
fn a_rule_removed_by_somebody_else_does_not_stop_us() {
    in_world(|| {
        let lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let a = node.container("a", "bridge", &[port(false, None)]);
        output("nft", "flush map inet gantry ports");
        // Removing what is not there writes the table anew.
        node.networks.release("a").unwrap();
        output("nft", "delete table inet gantry");
        let b = node.container("b", "bridge", &[port(false, None)]);
        assert!(lan.ask(at("198.51.100.1", b.port(0))).is_some());
        drop(a);
    });
}

/// Prints, for the record: `cargo test -p gantry-network --profile runtime how_long -- --nocapture --ignored`.
#[test]
#[ignore = "a measurement"]
fn how_long_it_takes() {
    in_world(|| {
        let _lan = lan();
        let node = Node::new("gantry", Firewall::Friendly);
        let median = |mut all: Vec<Duration>| {
            all.sort();
            all[all.len() / 2]
        };
        let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let mut socket = RouteSocket::open().unwrap();
        for i in 0..60 {
            let id = i.to_string();
            let mut step = |name, work: &mut dyn FnMut()| {
                let before = std::time::Instant::now();
                work();
                times.entry(name).or_default().push(before.elapsed());
            };
            let (mut endpoint, mut published) = (None, None);
            step("1 connect", &mut || {
                endpoint = Some(
                    node.networks
                        .connect(&id, "bridge", None, None, None)
                        .unwrap(),
                );
            });
            let endpoint = endpoint.unwrap();
            step("2 reserve", &mut || {
                let ports = [port(false, None)];
                published = Some(node.networks.reserve(&id, &id, &endpoint, &ports).unwrap());
            });
            let world = World::new();
            step("3 create_veth", &mut || {
                world.join(
                    &mut socket,
                    &endpoint.host_interface,
                    "eth0",
                    Some(&endpoint.bridge),
                );
            });
            let e = endpoint.clone();
            let inside = world.run(move || {
                let before = std::time::Instant::now();
                gantry_linux::netlink::configure_inside(&[Inside {
                    name: "eth0",
                    addresses: &[(e.address.into(), e.prefix_len)],
                    gateways: &[e.gateway.unwrap().into()],
                }])
                .unwrap();
                before.elapsed()
            });
            step("5 publish", &mut || {
                let bindings = &published.as_ref().unwrap().bindings;
                node.networks.publish(&id, &endpoint, bindings).unwrap();
            });
            step("6 release", &mut || node.networks.release(&id).unwrap());
            times.entry("4 configure_inside").or_default().push(inside);
        }
        for (name, all) in times {
            eprintln!(
                "{name}: min {:?} median {:?}",
                all.iter().min().unwrap(),
                median(all.clone())
            );
        }
    });
}
