//! The Docker API byte by byte: what clients without a docker CLI see.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

#[path = "docker_http/fields.rs"]
mod fields;

use gantry_testkit::{World, eventually};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const GANTRY: &str = env!("CARGO_BIN_EXE_gantry");

/// One answer, headers lower-cased.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
    fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }
    fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| line.strip_prefix(name)?.strip_prefix(": ").map(str::len);
        self.head
            .lines()
            .find_map(|line| value(line).map(|length| &line[line.len() - length..]))
    }
}

/// Sends `request` as it is and reads one answer to its end.
fn raw(world: &World, request: &[u8]) -> Answer {
    let mut socket = connect(world);
    socket.write_all(request).unwrap();
    answer(&mut socket, request.starts_with(b"HEAD"))
}

fn connect(world: &World) -> UnixStream {
    let socket = UnixStream::connect(world.socket()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    socket
}

fn read_head(socket: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(
            socket.read(&mut byte).unwrap(),
            1,
            "the connection ended in the head: {}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).unwrap();
    let (line, fields) = text.split_once("\r\n").unwrap();
    let fields = fields.lines().map(|line| match line.split_once(": ") {
        Some((name, value)) => format!("{}: {value}\n", name.to_ascii_lowercase()),
        None => String::new(),
    });
    format!("{line}\n{}", fields.collect::<String>())
}

fn answer(socket: &mut UnixStream, no_body: bool) -> Answer {
    let head = read_head(socket);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    let length = answer
        .header("content-length")
        .map(|text| text.parse().unwrap());
    if no_body || status == 304 || status == 204 {
        return answer;
    }
    match length {
        Some(length) => {
            answer.body.resize(length, 0);
            socket.read_exact(&mut answer.body).unwrap();
        }
        None => {
            while let Some(chunk) = read_chunk(socket) {
                answer.body.extend(chunk);
            }
        }
    }
    answer
}

fn read_chunk(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        socket.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
    let mut chunk = vec![0; size + 2];
    socket.read_exact(&mut chunk).unwrap();
    chunk.truncate(size);
    Some(chunk).filter(|chunk| !chunk.is_empty())
}

/// Sends a request whose answer is a stream until the server hangs up, and gives all of it.
fn to_the_end(world: &World, method: &str, path: &str, body: &str) -> String {
    let mut socket = connect(world);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut all = Vec::new();
    socket.read_to_end(&mut all).unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

fn get(world: &World, path: &str) -> Answer {
    send(world, "GET", path, "")
}

fn send(world: &World, method: &str, path: &str, body: &str) -> Answer {
    let kind = if body.is_empty() {
        String::new()
    } else {
        format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )
    };
    raw(
        world,
        format!("{method} {path} HTTP/1.1\r\nHost: d\r\n{kind}\r\n{body}").as_bytes(),
    )
}

fn escaped(json: &str) -> String {
    json.bytes().map(|b| format!("%{b:02x}")).collect()
}

#[test]
fn statuses_and_sentences_are_dockers() {
    let world = World::isolated(GANTRY);
    let not_found = "page not found";
    let swarm = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
    for (method, path, body, status, message) in [
        ("GET", "/nope", "", 404, not_found),
        ("PUT", "/containers/json", "", 404, not_found),
        ("GET", "/v1.41/nope", "", 404, not_found),
        (
            "GET",
            "/v1.23/_ping",
            "",
            400,
            "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
        (
            "GET",
            "/v1.99/_ping",
            "",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.50",
        ),
        ("GET", "/swarm", "", 503, swarm),
        ("GET", "/services?x=y", "", 503, swarm),
        ("GET", "/v1.41/nodes", "", 503, swarm),
        (
            "GET",
            "/containers/zz/json",
            "",
            404,
            "No such container: zz",
        ),
        (
            "POST",
            "/containers/zz/start",
            "",
            404,
            "No such container: zz",
        ),
        ("DELETE", "/containers/zz", "", 404, "No such container: zz"),
        (
            "GET",
            "/containers/zz/logs",
            "",
            400,
            "Bad parameters: you must choose at least one stream",
        ),
        (
            "GET",
            "/images/zz/json",
            "",
            404,
            "No such image: zz:latest",
        ),
        ("GET", "/exec/zz/json", "", 404, "No such exec instance: zz"),
        ("GET", "/volumes/zz", "", 404, "get zz: no such volume"),
        ("GET", "/networks/zz", "", 404, "network zz not found"),
        (
            "POST",
            "/containers/create",
            "",
            400,
            "invalid JSON: got EOF while reading request body",
        ),
        (
            "POST",
            "/containers/create",
            "{}",
            400,
            "config cannot be empty in order to create a container",
        ),
        (
            "POST",
            "/containers/create",
            r#"{"Image":"nosuch"}"#,
            404,
            "No such image: nosuch:latest",
        ),
        (
            "GET",
            "/containers/json?filters=%7B%22x%22:[%22y%22]%7D",
            "",
            400,
            "invalid filter 'x'",
        ),
        (
            "POST",
            "/images/create?fromImage=127.0.0.1:1/busybox&tag=1",
            "",
            500,
            "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
        ),
    ] {
        let answer = send(&world, method, path, body);
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (status, message),
            "{method} {path}"
        );
    }
    let typed = raw(
        &world,
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
    );
    assert_eq!(
        (typed.status, typed.message().as_str()),
        (
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'"
        )
    );
    let huge = raw(
        &world,
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n",
    );
    assert_eq!(huge.status, 400);
}

#[test]
fn ping_version_and_info() {
    let world = World::isolated(GANTRY);
    for method in ["GET", "HEAD"] {
        let ping = raw(
            &world,
            format!("{method} /_ping HTTP/1.1\r\nHost: d\r\n\r\n").as_bytes(),
        );
        assert_eq!(ping.status, 200);
        for (name, value) in [
            ("api-version", "1.50"),
            ("docker-experimental", "false"),
            ("ostype", "linux"),
            ("builder-version", "2"),
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", "2"),
            ("cache-control", "no-cache, no-store, must-revalidate"),
        ] {
            assert_eq!(ping.header(name), Some(value), "{method} {name}");
        }
    }
    let version = get(&world, "/version").json();
    assert_eq!(version["ApiVersion"], "1.50");
    assert_eq!(version["MinAPIVersion"], "1.24");
    let info = get(&world, "/v1.41/info").json();
    assert_eq!(info["Containers"], 0);
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    assert!(info["MemTotal"].as_u64().unwrap() > 0);
}

#[test]
fn connections_are_kept_and_pipelines_answered_in_order() {
    let world = World::isolated(GANTRY);
    let mut socket = connect(&world);
    let one = "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n";
    let other = "GET /nope HTTP/1.1\r\nHost: d\r\n\r\n";
    socket
        .write_all([one, other, one, other].concat().as_bytes())
        .unwrap();
    let statuses: Vec<u16> = (0..4).map(|_| answer(&mut socket, false).status).collect();
    assert_eq!(statuses, [200, 404, 200, 404]);

    // Oversized heads are refused, not buffered for ever; whether the client still reads the refusal is up to its timing.
    let mut socket = connect(&world);
    let long = format!(
        "GET /_ping HTTP/1.1\r\nX-Long: {}\r\n",
        "a".repeat(300 << 10)
    );
    let _ = socket.write_all(long.as_bytes());
    let mut refusal = String::new();
    let _ = socket.read_to_string(&mut refusal);
    assert!(
        refusal.is_empty() || refusal.starts_with("HTTP/1.1 431"),
        "{refusal}"
    );
    assert_eq!(get(&world, "/_ping").status, 200);
}

#[test]
fn a_refused_upload_gets_its_answer() {
    let world = World::isolated(GANTRY);
    let mut socket = connect(&world);
    let size = 8 << 20;
    write!(
        socket,
        "PUT /containers/nosuch/archive?path=/ HTTP/1.1\r\nHost: d\r\nContent-Length: {size}\r\n\r\n"
    )
    .unwrap();
    socket.write_all(&vec![0; size]).unwrap();
    let refused = answer(&mut socket, false);
    assert_eq!(
        (refused.status, refused.message().as_str()),
        (404, "No such container: nosuch")
    );
    // The connection serves on.
    socket
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut socket, false).status, 200);
}

#[test]
fn documents_have_every_field_that_docker_writes() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "127.0.0.1::80",
            "-v",
            "vol:/v",
            "-l",
            "a=b",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let inspect = get(&world, "/v1.41/containers/web/json?size=1").json();
    let keys = |value: &Value, names: &str| {
        for name in names.split_whitespace() {
            assert!(value.get(name).is_some(), "{name} is missing: {value}");
        }
    };
    keys(
        &inspect,
        "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name RestartCount Driver Platform \
         MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver SizeRw SizeRootFs Mounts Config NetworkSettings",
    );
    keys(
        &inspect["State"],
        "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt",
    );
    keys(
        &inspect["NetworkSettings"],
        "Bridge SandboxID HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen Ports SandboxKey SecondaryIPAddresses \
         SecondaryIPv6Addresses EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway \
         MacAddress Networks",
    );
    keys(
        &inspect["NetworkSettings"]["Networks"]["bridge"],
        "IPAMConfig Links Aliases NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway GlobalIPv6Address \
         GlobalIPv6PrefixLen MacAddress DriverOpts",
    );
    keys(
        &inspect["HostConfig"],
        "Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom CapAdd CapDrop \
         CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged \
         PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize Runtime ConsoleSize Isolation CpuShares Memory \
         NanoCpus CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps \
         BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices \
         DeviceCgroupRules DeviceRequests MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits CpuCount \
         CpuPercent IOMaximumIOps IOMaximumBandwidth MaskedPaths ReadonlyPaths",
    );
    keys(
        &inspect["Config"],
        "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd Image Volumes WorkingDir \
         Entrypoint OnBuild Labels ExposedPorts",
    );
    let published = &inspect["NetworkSettings"]["Ports"]["80/tcp"][0];
    assert_eq!(published["HostIp"], "127.0.0.1");
    assert_ne!(published["HostPort"], "0");

    let list = get(&world, "/containers/json?size=1").json();
    keys(
        &list[0],
        "Id Names Image ImageID Command Created Ports SizeRootFs Labels State Status HostConfig NetworkSettings Mounts",
    );
    assert_eq!(list[0]["Names"][0], "/web");
    assert_eq!(list[0]["Command"], "sleep 600");
    assert_eq!(list[0]["Mounts"][0]["Name"], "vol");

    let stats = get(&world, "/containers/web/stats?stream=0&one-shot=1").json();
    keys(
        &stats,
        "read preread pids_stats blkio_stats num_procs storage_stats cpu_stats precpu_stats memory_stats name id networks",
    );
    assert!(stats["memory_stats"]["usage"].as_u64().unwrap() > 0);
    assert_eq!(stats["precpu_stats"]["system_cpu_usage"], Value::Null);
    let network = get(&world, "/networks/bridge").json();
    let member = &network["Containers"][inspect["Id"].as_str().unwrap()];
    assert_eq!(member["Name"], "web");
    world.docker(&["rm", "-fv", "web"]).ok();
}

#[test]
fn filters_choose_containers() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    for (name, words) in [
        ("one", ["-l", "tier=front", "busybox", "sleep", "600"]),
        ("two", ["-l", "tier=back", "busybox", "sleep", "600"]),
    ] {
        let mut line = vec!["run", "-d", "--network", "none", "--name", name];
        line.extend(words);
        world.docker(&line).ok();
    }
    world
        .docker(&[
            "create",
            "--name",
            "three",
            "--network",
            "none",
            "-v",
            "data:/d",
            "--expose",
            "7000",
            "busybox",
            "true",
        ])
        .ok();
    let names = |query: &str, filters: &str| {
        let path = format!("/containers/json?{query}&filters={}", escaped(filters));
        let list = get(&world, &path).json();
        let names = list.as_array().unwrap_or_else(|| panic!("{list}")).iter();
        names
            .map(|item| item["Names"][0].as_str().unwrap()[1..].to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (query, filters, want) in [
        ("", "{}", "two one"),
        ("all=1", "{}", "three two one"),
        ("limit=1", "{}", "three"),
        ("", r#"{"label":["tier"]}"#, "two one"),
        ("", r#"{"label":{"tier=front":true}}"#, "one"),
        ("", r#"{"name":["^/?t"]}"#, "two"),
        ("all=1", r#"{"name":["^/?t"]}"#, "three two"),
        ("", r#"{"status":["created"]}"#, "three"),
        ("", r#"{"status":["created","running"]}"#, "three two one"),
        ("all=1", r#"{"since":["one"]}"#, "three two"),
        ("all=1", r#"{"before":["three"]}"#, "two one"),
        ("all=1", r#"{"since":["one"],"before":["three"]}"#, "two"),
        ("all=1", r#"{"ancestor":["busybox"]}"#, "three two one"),
        ("all=1", r#"{"ancestor":["nosuch"]}"#, ""),
        ("all=1", r#"{"volume":["data"]}"#, "three"),
        ("all=1", r#"{"volume":["/d"]}"#, "three"),
        ("all=1", r#"{"expose":["7000/tcp"]}"#, "three"),
        ("all=1", r#"{"expose":["6000-7000"]}"#, "three"),
        ("all=1", r#"{"network":["none"]}"#, "three two one"),
        ("all=1", r#"{"health":["none"]}"#, "three two one"),
        ("all=1", r#"{"is-task":["true"]}"#, ""),
        ("all=1", r#"{"exited":["0"]}"#, ""),
    ] {
        assert_eq!(names(query, filters), want, "{query} {filters}");
    }
    let bad = format!(
        "/containers/json?filters={}",
        escaped(r#"{"status":["odd"]}"#)
    );
    assert_eq!(
        get(&world, &bad).message(),
        "Unrecognised filter value for status: odd"
    );
    world.docker(&["rm", "-f", "one", "two", "three"]).ok();
}

/// The frames of a multiplexed stream as (stream, text), pieces of one stream joined.
fn frames(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut all: Vec<(u8, String)> = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        match all.last_mut() {
            Some((stream, before)) if *stream == bytes[0] => before.push_str(&text),
            _ => all.push((bytes[0], text)),
        }
        bytes = &bytes[8 + length..];
    }
    all
}

fn id_of(answer: &Answer) -> String {
    assert_eq!(
        answer.status,
        201,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    answer.json()["Id"].as_str().unwrap().to_owned()
}

#[test]
fn a_run_by_hand_attach_wait_start() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    let id = id_of(&send(
        &world,
        "POST",
        "/v1.50/containers/create",
        r#"{"Image":"busybox","Cmd":["sh","-c","cat; echo out; echo err >&2; exit 3"],"OpenStdin":true,"StdinOnce":true,"AttachStdin":true,"HostConfig":{"NetworkMode":"none"}}"#,
    ));
    let mut stream = connect(&world);
    let attach = format!(
        "POST /v1.50/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    );
    stream.write_all(attach.as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED\n"), "{head}");
    assert!(
        head.contains("content-type: application/vnd.docker.multiplexed-stream"),
        "{head}"
    );

    // The head of `wait` comes at once, its body when the container has ended.
    let mut waiting = connect(&world);
    write!(
        waiting,
        "POST /v1.50/containers/{id}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n"
    )
    .unwrap();
    assert!(read_head(&mut waiting).starts_with("HTTP/1.1 200"));
    let started = send(&world, "POST", &format!("/containers/{id}/start"), "");
    assert_eq!(started.status, 204);
    assert_eq!(
        send(&world, "POST", &format!("/containers/{id}/start"), "").status,
        304
    );

    stream.write_all(b"typed\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut output = Vec::new();
    stream.read_to_end(&mut output).unwrap();
    let mut got = frames(&output);
    // Two pipes have no order between them.
    got.sort();
    assert_eq!(
        got,
        [(1, "typed\nout\n".to_owned()), (2, "err\n".to_owned())]
    );
    let waited: Value = serde_json::from_slice(&read_chunk(&mut waiting).unwrap()).unwrap();
    assert_eq!(waited, serde_json::json!({"StatusCode": 3}));

    let logs = get(
        &world,
        &format!("/v1.41/containers/{id}/logs?stdout=1&stderr=0&timestamps=1"),
    );
    let lines = frames(&logs.body);
    let line = lines[0].1.lines().next().unwrap();
    let (time, text) = line.split_once(' ').unwrap();
    assert_eq!(
        (time.len(), text),
        ("2026-11-24T04:06:31.536448250Z".len(), "typed")
    );
    assert_eq!(
        logs.header("content-type"),
        Some("application/vnd.docker.raw-stream")
    );
    assert_eq!(
        send(&world, "DELETE", &format!("/containers/{id}"), "").status,
        204
    );
}

#[test]
fn a_client_that_leaves_ends_its_follow_and_the_daemon_serves_on() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    world
        .docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "cc",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{}/fd", world.pid()))
            .unwrap()
            .count()
    };
    let before = descriptors();
    let streams: Vec<UnixStream> = ["logs?stdout=1&follow=1", "stats", "wait", "attach?stream=1&stdout=1"]
        .iter()
        .flat_map(|what| std::iter::repeat_n(*what, 5))
        .map(|what| {
            let method = if what.starts_with("wait") || what.starts_with("attach") { "POST" } else { "GET" };
            let mut socket = connect(&world);
            write!(socket, "{method} /containers/cc/{what} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").unwrap();
            read_head(&mut socket);
            socket
        })
        .collect();
    assert!(descriptors() >= before + streams.len());
    drop(streams);
    eventually("the streams to end", Duration::from_secs(20), || {
        let now = descriptors();
        if now <= before + 1 {
            Ok(())
        } else {
            Err(format!("{now} descriptors, {before} before"))
        }
    });
    assert_eq!(get(&world, "/_ping").status, 200);
    world.docker(&["rm", "-f", "cc"]).ok();
}

#[test]
fn events_end_at_their_time_and_filter() {
    let world = World::isolated(GANTRY);
    world.load_busybox();
    world
        .docker(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--name",
            "ev",
            "busybox",
            "true",
        ])
        .ok();
    let path = format!(
        "/events?since=1&until={}&filters={}",
        jiff::Timestamp::now().as_second() + 1,
        escaped(r#"{"type":["container"],"container":["ev"]}"#)
    );
    let begun = Instant::now();
    let events = get(&world, &path);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let actions: Vec<String> = String::from_utf8(events.body)
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["Action"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let place = |action: &str| {
        actions
            .iter()
            .position(|a| a == action)
            .unwrap_or_else(|| panic!("{action} in {actions:?}"))
    };
    assert!(
        place("create") < place("start")
            && place("start") < place("die")
            && place("die") < place("destroy")
    );
}

#[test]
fn requests_are_cheap() {
    let world = World::isolated(GANTRY);
    let mut socket = connect(&world);
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let begun = Instant::now();
        socket
            .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
            .unwrap();
        assert_eq!(answer(&mut socket, false).status, 200);
        best = best.min(begun.elapsed());
    }
    // The best of many, with ten times the room that a quiet release build needs: this catches a sleep or a poll, not a busy machine.
    assert!(best < Duration::from_millis(5), "{best:?}");
}
