#!/usr/bin/env python3
"""Ten sample applications by an unmodified compose: up, what the file's x-check says (a shell line, tried until it holds), down and up again
with the volumes kept (x-restart), down. All of them share one image of Debian packages, made by mmdebstrap. Starts a Gantry of its own
in a network namespace of its own, in a temporary folder, and takes everything away again. Needs root.
usage: compose.py GANTRY [application ...]     COMPOSE: the program, `docker-compose` by default; IMAGE: a root file system tar to use"""
import os, pathlib, subprocess, sys, tempfile, time
import yaml

HERE = pathlib.Path(__file__).parent / "compose"
PACKAGES = ("redis-server,postgresql,nginx-light,python3-minimal,python3-redis,python3-psycopg2,memcached,mosquitto,mosquitto-clients,haproxy,"
            "curl,netcat-openbsd,mariadb-server")
PATIENCE = float(os.environ.get("PATIENCE", "90"))

def main():
    gantry, only = os.path.abspath(sys.argv[1]), sys.argv[2:]
    compose = os.environ.get("COMPOSE", "docker-compose")
    with tempfile.TemporaryDirectory(prefix="gantry-compose-") as name:
        folder = pathlib.Path(name)
        image = os.environ.get("IMAGE")
        if not image:
            image = folder / "base.tar"
            print("making the image of Debian packages: some minutes", flush=True)
            subprocess.check_call(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", image])
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            time.sleep(0.01)
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        subprocess.check_call(inside + ["ip", "link", "set", "lo", "up"])
        dirs = ["--data-dir", folder / "data", "--run-dir", folder / "run"]
        env = dict(os.environ, DOCKER_HOST=f"unix://{folder}/run/docker.sock", COMPOSE_API_VERSION="1.44", COMPOSE=f"{compose} -p app")
        daemon = subprocess.Popen(inside + [gantry, "up", *dirs], stdout=open(folder / "log", "w"), stderr=subprocess.STDOUT)
        try:
            until(lambda: (folder / "run/docker.sock").exists())
            subprocess.check_call(["docker", "import", image, "gantry-apps"], env=env, stdout=subprocess.DEVNULL)
            failed = 0
            names = only or sorted(path.stem for path in HERE.glob("*.yml"))
            for app in names:
                begin = time.time()
                why = run(app, folder / app, inside, env, compose)
                failed += bool(why)
                print(f"{'FAILED' if why else 'ok'}  {app}  {time.time() - begin:.1f} s  {why or ''}", flush=True)
            print(f"{len(names) - failed} passed, {failed} failed")
            return bool(failed)
        finally:
            subprocess.run(inside + [gantry, "down", "--purge", *dirs], stdout=subprocess.DEVNULL)
            daemon.kill()
            daemon.wait()
            holder.kill()
            holder.wait()

def until(holds):
    end = time.time() + PATIENCE
    while not holds():
        if time.time() > end:
            return False
        time.sleep(0.2)
    return True

def run(app, folder, inside, env, compose):
    """Why it failed, or nothing."""
    text = (HERE / f"{app}.yml").read_text()
    document = yaml.safe_load(text)
    folder.mkdir()
    (folder / "docker-compose.yml").write_text(text)
    for name, content in document.get("x-files", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    def shell(line):
        return subprocess.run(inside + ["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    def words(*all):
        done = shell(f"{env['COMPOSE']} {' '.join(all)}")
        return "" if done.returncode == 0 else f"{' '.join(all)}: {done.stdout[-500:]}{done.stderr[-1000:]}"
    def holds(line):
        last = []
        def once():
            last[:] = [shell(line)]
            return last[0].returncode == 0
        return "" if until(once) else f"{line}: {last[0].stdout[-500:]}{last[0].stderr[-500:]}{shell(env['COMPOSE'] + ' logs').stdout[-1500:]}"
    why = words("up", "-d") or holds(document["x-check"])
    if not why and "x-restart" in document:
        why = words("down") or words("up", "-d") or holds(document["x-restart"])
    why = words("down", "-v") if not why else (words("down", "-v", "-t", "1"), why)[1]
    left = subprocess.run(["docker", "ps", "-aq"], env=env, capture_output=True, text=True).stdout
    return why or (left and f"left: {left}")

sys.exit(main())
