#!/usr/bin/env python3
"""Other people's registry clients that Debian's stable release lacks, and the official suite, against `gantry registry`.

usage: registry.py GANTRY
oras and cosign are unpacked (not installed) from Debian's trixie. OCI_SUITE names the built program of the OCI's own conformance
suite (`go build` in the folder `conformance` of its distribution-spec repository); without it that part is left out and said so.
"""
import hashlib, json, os, re, subprocess, sys, tempfile, urllib.request

GANTRY = os.path.abspath(sys.argv[1])
WORK = tempfile.mkdtemp(prefix="gantry-registry-conformance-")
CACHE = os.path.expanduser("~/.cache/gantry-conformance")
passed, failed = [], []


def run(*words, ok=True, **more):
    done = subprocess.run(words, cwd=WORK, capture_output=True, text=True, timeout=120, **more)
    if ok and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def case(name, act):
    try:
        act()
        passed.append(name)
    except Exception as error:  # noqa: BLE001: whatever a client does, the next one is tried
        failed.append(name)
        print(f"FAILED {name}: {error}")


def trixie(package):
    """The folder that a package of Debian's trixie was unpacked to."""
    folder = f"{CACHE}/{package}"
    if os.path.exists(f"{folder}/usr"):
        return folder
    state = f"{CACHE}/apt"
    for part in ("lists/partial", "archives/partial", "parts"):
        os.makedirs(f"{state}/{part}", exist_ok=True)
    sources = ""
    for path in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if os.path.exists(path):
            sources += open(path).read()
    base = re.search(r"(?m)^URIs:\s*(\S+)|^deb\s+(?:\[.*?\]\s+)?(\S+)", sources)
    with open(f"{state}/parts/trixie.list", "w") as file:
        file.write(f"deb {base.group(1) or base.group(2)} trixie main\n")
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": f"{state}/parts",
        "Dir::State::Lists": f"{state}/lists",
        "Dir::Cache": state,
        "APT::Sandbox::User": "root",
    }
    words = ["apt-get", "-qq"] + [word for k, v in options.items() for word in ("-o", f"{k}={v}")]
    run(*words, "update")
    os.makedirs(folder, exist_ok=True)
    subprocess.run([*words, "download", package], cwd=folder, check=True, capture_output=True)
    archive = next(name for name in os.listdir(folder) if name.endswith(".deb"))
    run("dpkg-deb", "-x", f"{folder}/{archive}", folder)
    return folder


server = subprocess.Popen(
    [GANTRY, "registry", "--listen", "127.0.0.1:0", "--data-dir", f"{WORK}/data"], stderr=subprocess.PIPE, text=True
)
assert server.stderr.readline().startswith("ready in ")
address = server.stderr.readline().split()[-1]
try:
    oras = trixie("oras") + "/usr/bin/oras"
    cosign = trixie("cosign") + "/usr/bin/cosign"
    for name in ("one", "two"):
        with open(f"{WORK}/{name}.txt", "w") as file:
            file.write(name)
    art = f"{address}/conf/art:1"

    def oras_push():
        run(oras, "push", "--plain-http", art, "--artifact-type", "application/x.test", "one.txt:text/plain")
        run(oras, "pull", "--plain-http", "-o", "back", art)
        assert open(f"{WORK}/back/one.txt").read() == "one"

    def oras_referrers():
        run(oras, "attach", "--plain-http", "--artifact-type", "a/sbom", art, "two.txt:text/plain")
        seen = run(oras, "discover", "--plain-http", "--distribution-spec", "v1.1-referrers-api", "--format", "json", art)
        assert len(json.loads(seen)["manifests"]) == 1, seen

    def oras_copies_with_referrers():
        run(oras, "cp", "-r", "--from-plain-http", "--to-plain-http", art, f"{address}/conf/copy:1")
        assert "conf/copy" in run(oras, "repo", "ls", "--plain-http", address)
        assert run(oras, "repo", "tags", "--plain-http", f"{address}/conf/copy").split() == ["1"]

    def cosign_signs_and_verifies():
        environment = {**os.environ, "COSIGN_PASSWORD": ""}
        with urllib.request.urlopen(
            urllib.request.Request(
                f"http://{address}/v2/conf/art/manifests/1", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}
            )
        ) as answer:
            digest = "sha256:" + hashlib.sha256(answer.read()).hexdigest()
        run(cosign, "generate-key-pair", env=environment)
        flags = ["--allow-http-registry", "--key"]
        run(cosign, "sign", "--yes", "--tlog-upload=false", *flags, "cosign.key", f"{address}/conf/art@{digest}", env=environment)
        run(cosign, "verify", "--insecure-ignore-tlog", *flags, "cosign.pub", art, env=environment)

    def official(version):
        environment = {
            **os.environ,
            "OCI_REGISTRY": address,
            "OCI_TLS": "disabled",
            "OCI_VERSION": version,
            "OCI_RESULTS_DIR": f"{WORK}/results",
            "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
            "OCI_API_BLOBS_DIGEST_HEADER": "true",
            "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
        }
        seen = run(os.path.abspath(os.environ["OCI_SUITE"]), ok=False, env=environment)
        wrong = [line.strip() for line in seen.splitlines() if line.endswith(("FAIL", "Error"))]
        assert "Data conformance:" in seen and not wrong, wrong

    for act in (oras_push, oras_referrers, oras_copies_with_referrers, cosign_signs_and_verifies):
        case(act.__name__, act)
    if "OCI_SUITE" in os.environ:
        for version in ("1.1", "dev"):
            case(f"official suite, {version}", lambda version=version: official(version))
    else:
        print("left out: the official suite (OCI_SUITE names no program)")
finally:
    server.terminate()
    server.wait()
print(f"{len(passed)} passed, {len(failed)} failed")
sys.exit(1 if failed or not passed else 0)
