#!/usr/bin/env python3
"""g. The versioned store beside etcd: durable 256-byte writes, both in one run on the same disk, interleaved.

The embedded store is called in process, etcd over gRPC: each by the path that the API server uses. redb through the same
kind of group commit is the third column. Build first: cargo build --release -p gantry-store --example bench
SECONDS=3 a measurement, ROUNDS=3, WORK=a directory on the disk to be measured, PODS=1 also 150,000 pods of 2 KiB.
"""
import json, os, shutil, socket, statistics, subprocess, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH = os.environ.get("BENCH", ROOT + "/target/release/examples/bench")
SECONDS, ROUNDS = os.environ.get("SECONDS", "3"), int(os.environ.get("ROUNDS", "3"))
work = tempfile.mkdtemp(dir=os.environ.get("WORK", "/var/tmp"))

def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def run(*words):
    return json.loads(subprocess.run([BENCH, *words], check=True, stdout=subprocess.PIPE).stdout)

client, peer = (f"http://127.0.0.1:{port()}" for _ in range(2))
etcd = subprocess.Popen(["etcd", "--data-dir", work + "/etcd", "--listen-client-urls", client, "--advertise-client-urls", client,
    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    while subprocess.run(["etcdctl", "--endpoints", client, "endpoint", "health"], env={**os.environ, "ETCDCTL_API": "3"},
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        assert etcd.poll() is None, "etcd does not start"
        time.sleep(0.1)
    got = {}
    for n in range(ROUNDS):
        for writers in ("1", "256"):
            for what, place in (("etcd", client), ("embedded", f"{work}/embedded"), ("redb", f"{work}/redb")):
                got.setdefault((what, writers), []).append(run(what, place, writers, SECONDS))
    print("%-10s %8s %10s %10s %10s   %s" % ("store", "writers", "writes/s", "p50 ms", "p99 ms", "ratio to etcd (writes/s, p50)"))
    for (what, writers), rs in sorted(got.items(), key=lambda i: int(i[0][1])):
        m = lambda k, rs=rs: statistics.median(r[k] for r in rs)
        e = got[("etcd", writers)]
        r = (m("per_second") / m("per_second", e), m("p50_us") / m("p50_us", e))
        print("%-10s %8s %10.0f %10.3f %10.3f   %.2f x, %.2f x" % (what, writers, m("per_second"), m("p50_us") / 1e3, m("p99_us") / 1e3, *r))
    if os.environ.get("PODS"):
        print(json.dumps(run("pods", work + "/pods")))
finally:
    etcd.terminate()
    etcd.wait()
    shutil.rmtree(work, ignore_errors=True)
