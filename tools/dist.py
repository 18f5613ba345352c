"""Build the wheel and the source archive of one commit: the same bytes wherever and whenever that is done.

What they depend on: the commit, the interpreter, the compiler with the system's headers, the locked setuptools and
auditwheel.
What they do not: the folder, the time (the commit's stands in them), the user, the umask, the environment.

Usage: dist.py [--commit COMMIT] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BACKEND = "import sys; from setuptools import build_meta as b; {call}"
KEPT = ("PATH", "TMPDIR")


def git(*words: str) -> bytes:
    """What git prints for these words, in this repository."""
    return subprocess.run(["git", "-C", str(REPOSITORY), *words], check=True, stdout=subprocess.PIPE).stdout


def build(source: Path, to: Path, epoch: int) -> None:
    """Have setuptools make both, in an environment that holds nothing of the caller's."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {
        "HOME": str(to),
        "SOURCE_DATE_EPOCH": str(epoch),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
    }
    for call in ("b.build_sdist(sys.argv[1])", "b.build_wheel(sys.argv[1])"):
        done = subprocess.run(
            [sys.executable, "-I", "-c", BACKEND.format(call=call), str(to)],
            cwd=source,
            env=environment,
            umask=0o022,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"dist: the build failed:\n{done.stdout}")


def for_any_distribution(wheel: Path, epoch: int) -> None:
    """Put the wheel's name right for every distribution with at least the C library that it needs (manylinux).

    OpenSSL stays the system's own: it is updated there, and the runtime's identity covers it.
    """
    if importlib.util.find_spec("auditwheel") is None:
        sys.stderr.write("dist: auditwheel is not installed (make setup): the wheel is for this distribution only\n")
        return
    folder = wheel.parent / "repaired"
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SOURCE_DATE_EPOCH": str(epoch),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    command = ["repair", "--exclude", "libcrypto.so.3", "--wheel-dir", str(folder), str(wheel)]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "auditwheel", *command],
        env=environment,
        umask=0o022,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"dist: auditwheel refuses the wheel:\n{done.stdout}")
    wheel.unlink()
    for repaired in folder.iterdir():
        repaired.rename(wheel.parent / repaired.name)
    folder.rmdir()


def normalise(path: Path, epoch: int) -> None:
    """Write a source archive anew: names in order, one time, one owner, and no time in gzip's own header."""
    plain = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def main() -> None:
    """Export the commit, build it, and print each file's SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "dist")
    options = parser.parse_args()
    commit = git("rev-parse", "--verify", f"{options.commit}^{{commit}}").decode().strip()
    epoch = int(git("show", "-s", "--format=%ct", commit))
    with tempfile.TemporaryDirectory(prefix="adyton-dist-") as name:
        source, built = Path(name) / "source", Path(name) / "built"
        source.mkdir()
        built.mkdir()
        exported = git("-c", "tar.umask=0022", "archive", "--format=tar", commit)
        subprocess.run(["tar", "-x", "-p", "-C", str(source)], input=exported, check=True)
        build(source, built, epoch)
        for path in sorted(built.iterdir()):
            if path.name.endswith(".tar.gz"):
                normalise(path, epoch)
            elif sum(name.endswith(".so") for name in zipfile.ZipFile(path).namelist()) != 4:
                sys.exit("dist: the C parts were not built: install gcc, python3-dev and libssl-dev")
            else:
                for_any_distribution(path, epoch)
        options.to.mkdir(parents=True, exist_ok=True)
        for path in sorted(built.iterdir()):
            (options.to / path.name).write_bytes(path.read_bytes())
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
