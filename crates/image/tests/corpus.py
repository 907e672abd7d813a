"""Writes N archives into a folder with GNU tar, bsdtar and Python's tarfile: python3 corpus.py FOLDER N SEED."""

import io
import os
import random
import subprocess
import sys
import tarfile

folder, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
LETTERS = "abcXYZ019._-+@ äßñ"


def name(limit=40):
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, limit))).strip() or "n"


def path(depth=6, limit=40):
    parts = [name(limit) for _ in range(rng.randint(1, depth))]
    return "/".join("x" if part in (".", "..") else part for part in parts)


def long_path():
    return path(rng.choice([1, 3, 12]), rng.choice([20, 90, 100]))[: rng.choice([99, 100, 101, 155, 256, 257, 900])].strip("/ ") or "l"


def tarfile_archive(where):
    kind = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    options = {}
    if kind == tarfile.PAX_FORMAT and rng.random() < 0.5:
        options["pax_headers"] = {"comment": name(), "vendor.key": name(200)}
    with tarfile.open(where, "w", format=kind, **options) as out:
        seen = []
        for _ in range(rng.randint(1, 12)):
            info = tarfile.TarInfo(path(3, 15) if kind == tarfile.USTAR_FORMAT else long_path())
            info.mode = rng.choice([0o644, 0o755, 0o4755, 0o1777, 0o600, 0])
            big = kind != tarfile.USTAR_FORMAT and rng.random() < 0.2
            info.uid, info.gid = rng.choice([0, 1000, 2097151]), rng.choice([0, 65534])
            if big:
                info.uid = rng.choice([2097152, 4294967294])
            info.mtime = rng.choice([0, 1, 1700000000, 8589934591])
            if kind == tarfile.PAX_FORMAT and rng.random() < 0.3:
                info.mtime = 1700000000.25
                info.pax_headers = {"SCHILY.xattr.user.x": name(60)}
            what = rng.choice("ffffdlhcbp")
            body = b""
            if what == "f":
                body = bytes(rng.choice([0, 1, 511, 512, 513, 5000]))
                info.size = len(body)
                seen.append(info.name)
            elif what == "d":
                info.type = tarfile.DIRTYPE
            elif what == "l":
                info.type, info.linkname = tarfile.SYMTYPE, (path(2, 10) if kind == tarfile.USTAR_FORMAT else long_path())
            elif what == "h" and seen:
                info.type, info.linkname = tarfile.LNKTYPE, rng.choice(seen)
            elif what in "cb":
                info.type = tarfile.CHRTYPE if what == "c" else tarfile.BLKTYPE
                info.devmajor, info.devminor = rng.randint(0, 255), rng.randint(0, 255)
            else:
                info.type = tarfile.FIFOTYPE
            try:
                out.addfile(info, io.BytesIO(body))
            except (ValueError, UnicodeError):
                pass  # ustar cannot say it


def tree(root):
    """A few real files for the programs that read them from disk."""
    made = []
    for _ in range(rng.randint(3, 10)):
        at = os.path.join(root, path(4, rng.choice([10, 60])))
        try:
            os.makedirs(os.path.dirname(at), exist_ok=True)
        except OSError:
            continue  # a file has the name
        if os.path.lexists(at):
            continue
        what = rng.choice("fffslhp")
        if what == "f":
            with open(at, "wb") as file:
                file.write(os.urandom(rng.choice([0, 1, 600, 20000])))
            made.append(at)
        elif what == "s":
            with open(at, "wb") as file:
                for _ in range(rng.choice([0, 1, 3, 40])):
                    file.seek(rng.randint(1, 30) * 4096, 1)
                    file.write(b"data" * rng.choice([1, 2000]))
                file.truncate(file.tell() + rng.choice([0, 100000]))
        elif what == "l":
            os.symlink(path(3, 50), at)
        elif what == "h" and made:
            os.link(rng.choice(made), at)
        elif what == "p":
            os.mkfifo(at)
        if os.path.lexists(at) and what != "l":
            os.chmod(at, rng.choice([0o644, 0o700, 0o4711]))


roots = []
for number in range(6):
    root = os.path.join(folder, f"tree{number}")
    os.mkdir(root)
    tree(root)
    roots.append(root)

GNU = [
    ["--format=gnu"], ["--format=oldgnu"], ["--format=posix"], ["--format=ustar"], ["--format=v7"],
    ["--format=gnu", "--sparse"], ["--format=oldgnu", "--sparse"],
    ["--format=posix", "--sparse", "--sparse-version=0.0"],
    ["--format=posix", "--sparse", "--sparse-version=0.1"],
    ["--format=posix", "--sparse", "--sparse-version=1.0"],
    ["--format=posix", "--pax-option=globexthdr.name=g%n,comment=x,vendor.y:=z"],
    ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs"],
    ["--format=gnu", "--blocking-factor=1"], ["--format=gnu", "--blocking-factor=64"],
]
BSD = [["--format=pax"], ["--format=ustar"], ["--format=gnutar"], ["--format=v7"], ["--format=pax", "--read-sparse"]]
for number in range(count):
    where = os.path.join(folder, f"{number}.tar")
    choice = number % 10
    if choice < 6:
        tarfile_archive(where)
        continue
    program = ["tar", *rng.choice(GNU)] if choice < 9 else ["bsdtar", *rng.choice(BSD)]
    # What a format cannot say is left out with a word about it and an exit code; the archive is whole.
    if os.path.exists(where):
        sys.exit(f"{where} exists")
    subprocess.run([*program, "-C", rng.choice(roots), "-cf", where, "."], stderr=subprocess.DEVNULL)
