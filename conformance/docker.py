#!/usr/bin/env python3
"""Other people's clients against this build: the commands of docker_cli.txt, then the Python SDK's own integration tests (the source
distribution of docker 6.1.3 carries them). Starts a Gantry of its own in a network namespace of its own, in a temporary folder, and takes
everything away again. Prints what differs and counts; exit code 1 when a test failed that is not in KNOWN. Needs root.
usage: docker.py GANTRY [cli] [sdk [api_exec_test ...]]"""
import os, pathlib, subprocess, sys, tempfile, time, xml.etree.ElementTree as tree

HERE = pathlib.Path(__file__).parent
# What needs parts that this script does not bring: a swarm, plugins from Docker Hub, a build, the user's own contexts.
SKIPPED = ("api_plugin_test", "context_api_test", "api_service_test", "api_swarm_test", "api_secret_test", "api_config_test", "api_build_test",
           "models_nodes_test", "models_services_test", "models_swarm_test")
# Not passed, each with its reason. A test of this list that passes is told, too.
KNOWN = {
    "test_run_container_reading_socket_ws": "the SDK cannot speak WebSocket over a unix socket",
    "test_create_check_duplicate": "Docker since 25 refuses a second network of a name, as Gantry does",
    "test_exec_run_failed": "the suite wants 126, Docker since 25 says 127, as Gantry does",
    "test_create_inspect_network_with_scope": "needs a swarm",
    "test_create_network_attachable": "needs a swarm",
    "test_create_network_ingress": "needs a swarm",
    "test_create_with_linklocal_ips": "link-local addresses are refused",
    "test_pull_with_sha": "a digest of Docker Hub's hello-world",
    "test_connect_with_ipv6_address": "networks with IPv6",
    "test_create_with_ipv6_address": "networks with IPv6",
    "test_create_network_ipv6_enabled": "networks with IPv6",
    "test_connect_with_links": "names of containers in networks",
    "test_create_with_links": "names of containers in networks",
    "test_build": "builds",
    "test_build_with_error": "builds",
    "test_build_with_multiple_success": "builds",
    "test_build_with_success_build_output": "builds",
}
# Pulled from Docker Hub: from the mirror, where the build has mirrors.
PULLS = ("test_pull", "test_pull_streaming", "test_get_load_image", "test_prune_images", "test_inspect_distribution", "test_list", "test_list_with_repository",
         "test_pull_multiple", "test_pull_with_tag", "test_tag_and_remove", "test_run_with_image_that_does_not_exist")
REGISTRY = "127.0.0.1:5000"

def registry(folder, env, inside):
    """Debian's registry behind the engine as the mirror of Docker Hub, with the images that the suites pull."""
    (folder / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\nhttp: {{addr: '{REGISTRY}'}}\n")
    server = subprocess.Popen(inside + ["docker-registry", "serve", folder / "registry.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name in ("busybox:latest", "alpine:3.10", "alpine:latest", "hello-world:latest"):
        there = f"{REGISTRY}/library/{name}"
        subprocess.check_call(["docker", "tag", name, there], env=env)
        for last in [False] * 50 + [True]:
            done = subprocess.run(["docker", "push", "-q", there], env=env, capture_output=True)
            if done.returncode == 0:
                break
            if last:
                sys.exit(f"the registry takes no image: {done.stderr.decode()}")
            time.sleep(0.1)
        subprocess.check_call(["docker", "rmi", there], env=env, stdout=subprocess.DEVNULL)
    return server

def sdk(folder, env, inside, only):
    venv = folder / "venv"
    subprocess.check_call([sys.executable, "-m", "venv", venv])
    pip = [venv / "bin/pip", "-q", "--disable-pip-version-check"]
    subprocess.check_call(pip + ["install", "docker[websockets]==7.1.0", "paramiko", "pytest", "pytest-timeout", "setuptools", "wheel"])
    subprocess.check_call(pip + ["download", "--no-deps", "--no-binary", ":all:", "-d", folder, "docker==6.1.3"])
    source = folder / "source"
    source.mkdir()
    subprocess.check_call(["tar", "xzf", folder / "docker-6.1.3.tar.gz", "-C", source, "--strip-components=1"])
    subprocess.check_call(["rm", "-rf", source / "docker"])
    passed = failed = skipped = 0
    env = dict(env, DOCKER_TEST_API_VERSION="1.41")
    for test in sorted((source / "tests/integration").glob("*_test.py")):
        if test.stem in SKIPPED or (only and test.stem not in only):
            continue
        report = folder / (test.stem + ".xml")
        run = [venv / "bin/python", "-m", "pytest", test, "-p", "no:cacheprovider", "--timeout", "90", "-q", f"--junitxml={report}"]
        subprocess.run(inside + run, cwd=source, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900)
        for case in tree.parse(report).getroot().iter("testcase"):
            name = case.get("name")
            if case.find("skipped") is not None:
                skipped += 1
            elif case.find("failure") is None and case.find("error") is None:
                passed += 1
                if name in KNOWN:
                    print("passes now", case.get("classname"), name, flush=True)
            else:
                failed += name not in KNOWN
                told = case.find("failure") if case.find("failure") is not None else case.find("error")
                why = " ".join((told.get("message") or "").split())[-200:]
                print("known" if name in KNOWN else "FAILED", case.get("classname"), f"{name}: {why}", flush=True)
    print(f"Python SDK: {passed} passed, {failed} failed that should pass, {skipped} skipped by the suite")
    return failed

def main():
    gantry, parts = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:] or ["cli", "sdk"]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gantry-conformance-"))
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep infinity"])
    inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    dirs = ["--data-dir", folder / "data", "--run-dir", folder / "run"]
    failed, server = 0, None
    try:
        up = inside + [gantry, "up", "--detach"] + dirs
        mirrored = subprocess.run(up + ["--registry-mirror", f"http://{REGISTRY}"], capture_output=True).returncode == 0
        if not mirrored:
            KNOWN.update({name: "needs a mirror of Docker Hub" for name in PULLS})
            subprocess.check_call(up, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        env = dict(os.environ, DOCKER_HOST=f"unix://{folder}/run/docker.sock")
        subprocess.check_call([sys.executable, HERE / "images.py", folder / "images.tar"])
        subprocess.check_call(["docker", "load", "-q", "-i", folder / "images.tar"], env=env, stdout=subprocess.DEVNULL)
        if "cli" in parts:
            failed += subprocess.run([sys.executable, HERE / "docker_cli.py"], env=env).returncode
        if "sdk" in parts:
            server = registry(folder, env, inside) if mirrored else None
            failed += sdk(folder, env, inside, [part for part in parts if part.endswith("_test")])
    finally:
        subprocess.run(inside + [gantry, "down", "--purge"] + dirs)
        holder.kill()
        if server:
            server.kill()
        subprocess.run(["rm", "-rf", folder])
    return 1 if failed else 0

if __name__ == "__main__":
    sys.exit(main())
