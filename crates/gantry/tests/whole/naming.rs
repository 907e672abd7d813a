//! Names of containers: the server at 127.0.0.11, `/etc/resolv.conf` and `/etc/hosts` of containers in user-defined networks.

use crate::{SOON, busybox};
use gantry_testkit::{World, eventually, run};
use std::io::BufRead;

/// A container that sleeps.
fn sleeper(world: &World, name: &str, words: &[&str]) {
    let all = [
        &["run", "-d", "--name", name],
        words,
        &["busybox", "sleep", "600"],
    ];
    world.docker(&all.concat()).ok();
}

fn network(world: &World, words: &[&str]) {
    world.docker(&[&["network", "create"], words].concat()).ok();
}

fn inside(world: &World, container: &str, words: &[&str]) -> String {
    world.docker(&[&["exec", container], words].concat()).ok()
}

/// Addresses or names that `container` is told, sorted, or the sentence of the refusal. `kind`: a, aaaa, ptr.
fn asked(world: &World, container: &str, kind: &str, name: &str) -> String {
    let option = format!("-type={kind}");
    // An address is looked up in reverse when no type is named.
    let option = (kind != "ptr").then_some(option.as_str());
    let words: Vec<&str> = ["exec", container, "nslookup"]
        .into_iter()
        .chain(option)
        .chain([name, "127.0.0.11"])
        .collect();
    let done = world.docker(&words);
    if done.code != 0 {
        let words = ["NXDOMAIN", "SERVFAIL", "REFUSED", "timed out"];
        let all = format!("{}{}", done.stdout, done.stderr);
        return words
            .into_iter()
            .find(|w| all.contains(w))
            .map_or(all.clone(), str::to_owned);
    }
    // The first block is about the server.
    let answers = done.stdout.split_once("\n\n").map_or("", |(_, rest)| rest);
    let mut found: Vec<&str> = answers
        .lines()
        .filter_map(|line| {
            let address = line.strip_prefix("Address: ");
            address.or_else(|| line.split_once("name = ").map(|(_, name)| name))
        })
        .collect();
    found.sort_unstable();
    found.join(" ")
}

#[test]
fn containers_find_each_other() {
    let world = busybox();
    network(&world, &["--subnet", "10.200.0.0/24", "front"]);
    network(&world, &["--subnet", "10.201.0.0/24", "--internal", "back"]);
    let ip = |n: &'static str| ["--network", "front", "--ip", n, "--network-alias", "all"];
    sleeper(
        &world,
        "web",
        &[&ip("10.200.0.11")[..], &["--hostname", "page"]].concat(),
    );
    sleeper(
        &world,
        "api",
        &[&ip("10.200.0.12")[..], &["--link", "web:w3"]].concat(),
    );
    sleeper(&world, "db", &["--network", "back", "--ip", "10.201.0.13"]);
    let id = world.docker(&["inspect", "-f", "{{.Id}}", "web"]).ok();
    for (who, kind, name, want) in [
        ("api", "a", "web", "10.200.0.11"),
        ("api", "a", "WEB", "10.200.0.11"),
        ("api", "a", "page", "10.200.0.11"),
        ("api", "a", "web.front", "10.200.0.11"),
        ("api", "a", &id[..12], "10.200.0.11"),
        ("api", "a", "w3", "10.200.0.11"),
        ("api", "a", "api", "10.200.0.12"),
        ("api", "a", "all", "10.200.0.11 10.200.0.12"),
        ("api", "aaaa", "web", ""),
        ("api", "ptr", "10.200.0.11", "web.front"),
        // Nothing from elsewhere, and no way out of an internal network.
        ("db", "a", "web", "NXDOMAIN"),
        ("db", "a", "example.org", "NXDOMAIN"),
        ("db", "ptr", "10.200.0.11", "NXDOMAIN"),
        ("web", "a", "w3.front", "NXDOMAIN"),
    ] {
        // A name that only the world may know is not waited for here.
        if want == "NXDOMAIN" && who != "db" {
            continue;
        }
        assert_eq!(asked(&world, who, kind, name), want, "{who} {kind} {name}");
    }
    let firsts: Vec<String> = (0..2)
        .map(|_| {
            let all = inside(&world, "api", &["nslookup", "-type=a", "all"]);
            let answers = all.split_once("\n\n").unwrap().1;
            answers
                .lines()
                .find(|l| l.starts_with("Address"))
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_ne!(firsts[0], firsts[1], "answers do not take turns");

    let resolv = inside(&world, "web", &["cat", "/etc/resolv.conf"]);
    assert!(resolv.contains("nameserver 127.0.0.11\n"), "{resolv}");
    assert!(resolv.contains("options ndots:0\n"), "{resolv}");
    assert!(resolv.contains("# ExtServers: ["), "{resolv}");
    let format = "{{.NetworkSettings.Networks.front.DNSNames}}";
    let shown = world.docker(&["inspect", "-f", format, "web"]).ok();
    assert_eq!(shown, format!("[web all {} page]", &id[..12]));

    world.docker(&["rename", "web", "site"]).ok();
    assert_eq!(asked(&world, "api", "a", "site"), "10.200.0.11");
    assert_eq!(asked(&world, "api", "ptr", "10.200.0.11"), "site.front");
    world.docker(&["rm", "-f", "site"]).ok();
    assert_eq!(asked(&world, "api", "a", "all"), "10.200.0.12");
}

#[test]
fn names_follow_those_who_join_and_leave() {
    let world = busybox();
    network(
        &world,
        &["--subnet", "10.200.0.0/24", "--internal", "front"],
    );
    sleeper(
        &world,
        "web",
        &["--network", "front", "--ip", "10.200.0.11"],
    );
    // It begins on the default bridge, where nobody answers for names.
    sleeper(&world, "late", &["--hostname", "guest"]);
    let resolv = || inside(&world, "late", &["cat", "/etc/resolv.conf"]);
    let hosts = || inside(&world, "late", &["cat", "/etc/hosts"]);
    assert!(!resolv().contains("127.0.0.11"), "{}", resolv());
    inside(
        &world,
        "late",
        &["sh", "-c", "echo '192.0.2.1 mine' >>/etc/hosts"],
    );
    let connect = [
        "network",
        "connect",
        "--ip",
        "10.200.0.12",
        "--alias",
        "visitor",
        "front",
        "late",
    ];
    world.docker(&connect).ok();
    assert!(resolv().contains("nameserver 127.0.0.11\n"), "{}", resolv());
    assert!(hosts().contains("10.200.0.12\tguest"), "{}", hosts());
    assert!(hosts().contains("192.0.2.1 mine"), "{}", hosts());
    assert_eq!(asked(&world, "late", "a", "web"), "10.200.0.11");
    assert_eq!(asked(&world, "web", "a", "visitor"), "10.200.0.12");
    // Who shares the network shares its name and files.
    let shared = [
        "run",
        "--rm",
        "--network",
        "container:late",
        "busybox",
        "sh",
        "-c",
    ];
    let script = "hostname; grep -c 127.0.0.11 /etc/resolv.conf; nslookup -type=a web | tail -n2";
    let shown = world.docker(&[&shared[..], &[script]].concat()).ok();
    assert!(
        shown.starts_with("guest\n1\n") && shown.contains("10.200.0.11"),
        "{shown}"
    );

    world
        .docker(&["network", "disconnect", "front", "late"])
        .ok();
    assert!(!hosts().contains("10.200.0.12"), "{}", hosts());
    assert!(hosts().contains("192.0.2.1 mine"), "{}", hosts());
    assert_eq!(asked(&world, "web", "a", "visitor"), "NXDOMAIN");
}

/// A name server on `address` in the world's network: knows example.org alone.
const UPSTREAM: &str = r#"
use IO::Socket::INET;
my $s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => $ARGV[0], LocalPort => 53) or die $!;
$| = 1; print "ready\n";
while (my $from = $s->recv(my $q, 512)) {
    my $known = $q =~ /\x07example\x03org\x00\x00\x01/;
    my $head = substr($q, 0, 2) . pack('nnnnn', $known ? 0x8180 : 0x8183, 1, $known, 0, 0);
    my ($question) = substr($q, 12) =~ /^(.*?\x00....)/s;
    $s->send($head . $question . ($known ? pack('nnnNnC4', 0xc00c, 1, 1, 60, 4, 192, 0, 2, 7) : ''));
}
"#;

#[test]
fn other_names_are_asked_of_others() {
    let world = busybox();
    network(&world, &["--subnet", "10.200.0.0/24", "front"]);
    let mut perl = world.enter("perl");
    perl.args(["-e", UPSTREAM, "10.200.0.1"]);
    perl.stdout(std::process::Stdio::piped());
    let mut upstream = perl.spawn().expect("perl can be started");
    let mut line = String::new();
    let output = upstream.stdout.take().expect("piped");
    std::io::BufReader::new(output)
        .read_line(&mut line)
        .expect("perl says a word");
    assert_eq!(line, "ready\n");
    sleeper(
        &world,
        "client",
        &["--network", "front", "--dns", "10.200.0.1"],
    );
    let resolv = inside(&world, "client", &["cat", "/etc/resolv.conf"]);
    let comments = "# ExtServers: [10.200.0.1]\n# Overrides: [nameservers]\n";
    assert!(resolv.contains(comments), "{resolv}");
    for (name, want) in [
        ("example.org", "192.0.2.7"),
        ("example.net", "NXDOMAIN"),
        ("client", "10.200.0.2"),
    ] {
        assert_eq!(asked(&world, "client", "a", name), want, "{name}");
    }
    upstream.kill().expect("our own process");
    upstream.wait().expect("our own process");
    assert_eq!(asked(&world, "client", "a", "example.org"), "SERVFAIL");
    assert_eq!(asked(&world, "client", "a", "client"), "10.200.0.2");
}

#[test]
fn a_container_can_be_a_name_server_itself() {
    let world = busybox();
    network(
        &world,
        &["--subnet", "10.200.0.0/24", "--internal", "front"],
    );
    // Port 53 on every address, UDP and TCP, although our own server answers in that namespace.
    let script = "nc -u -l -p 53 >/udp & exec httpd -f -p 53 -h /www";
    let words = [
        "run",
        "-d",
        "--name",
        "ns",
        "--network",
        "front",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    world.docker(&words).ok();
    sleeper(&world, "client", &["--network", "front"]);
    assert_eq!(asked(&world, "ns", "a", "client"), "10.200.0.3");
    eventually("the page", SOON, || {
        let done = world.docker(&["exec", "client", "wget", "-qO-", "http://ns:53/"]);
        if done.stdout.trim() == "ok" {
            Ok(())
        } else {
            Err(done.to_string())
        }
    });
    let pid = world
        .docker(&["inspect", "-f", "{{.State.Pid}}", "ns"])
        .ok();
    let mut perl = std::process::Command::new("nsenter");
    perl.arg(format!("--net=/proc/{pid}/ns/net"))
        .args(["perl", "-e"]);
    perl.arg(
        "use IO::Socket::INET; IO::Socket::INET->new(Proto => 'udp', LocalPort => 53) or print $!",
    );
    assert_eq!(run(&mut perl, None).ok(), "");
}

#[test]
fn names_survive_the_daemon() {
    let mut world = busybox();
    network(
        &world,
        &["--internal", "--subnet", "10.200.0.0/24", "front"],
    );
    sleeper(
        &world,
        "web",
        &["--network", "front", "--ip", "10.200.0.11"],
    );
    let script =
        "while :; do nslookup -type=a web | grep -q 10.200.0.11 && echo found; sleep 0.1; done";
    let words = [
        "run",
        "-d",
        "--name",
        "asker",
        "--network",
        "front",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    world.docker(&words).ok();
    let found = |world: &World| world.docker(&["logs", "asker"]).ok().lines().count();
    let more_than = |world: &World, before: usize| {
        eventually("more answers", SOON, || match found(world) {
            now if now > before => Ok(now),
            now => Err(format!("{now}")),
        })
    };
    more_than(&world, 0);
    world.kill();
    world.up();
    let before = found(&world);
    more_than(&world, before);
    sleeper(&world, "new", &["--network", "front"]);
    assert_eq!(
        asked(&world, "asker", "a", "new"),
        inside(&world, "new", &["hostname", "-i"]).trim()
    );
    assert_eq!(asked(&world, "new", "a", "web"), "10.200.0.11");
}
