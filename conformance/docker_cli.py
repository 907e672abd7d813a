#!/usr/bin/env python3
"""Runs docker_cli.txt with an unmodified docker client against DOCKER_HOST and compares exit codes and output.
The engine needs the image busybox and nothing else. Prints each difference, then counts; exit code 1 when there was one.
usage: DOCKER_HOST=unix://... docker_cli.py"""
import os, pathlib, re, shlex, shutil, subprocess, sys, tempfile

def commands():
    for line in (pathlib.Path(__file__).parent / "docker_cli.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            code, rest = line.split(" | ", 1)
            command, pattern = rest.rsplit(" | ", 1) if not rest.endswith(" | ") else (rest[:-3], "")
            yield [int(one) for one in code.split("/")], command, pattern

def main():
    docker = shutil.which("docker") or sys.exit("docker_cli: there is no docker client in PATH")
    folder = tempfile.mkdtemp()
    env = dict(os.environ, DOCKER_CONFIG=folder, DOCKER_CLI_HINTS="false")
    passed = failed = 0
    for code, command, pattern in commands():
        command = command.replace("@", folder) if command.startswith("sh:") else command
        words = ["sh", "-c", command[3:]] if command.startswith("sh:") else [docker] + shlex.split(command)
        terminal = len(words) > 2 and words[1] in ("run", "exec") and "-t" in words[2:5]
        if terminal:
            words = ["script", "-qec", shlex.join(words), "/dev/null"]
        try:
            done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
            text, got = done.stdout.decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired as e:
            text, got = (e.stdout or b"").decode(errors="replace") + "(no end in 60 s)", -1
        if got in code and re.search(pattern, text, re.MULTILINE):
            passed += 1
        else:
            failed += 1
            print(f"DIFFERENT docker {command}\n  code {got}, expected {code}; output {text.strip()[:300]!r}, expected {pattern}")
    shutil.rmtree(folder)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0

if __name__ == "__main__":
    sys.exit(main())
