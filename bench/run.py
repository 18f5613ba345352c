"""Figures of staging, serving and whole runs, each beside its peer and its physical limit, as ratios of one run.

python -m bench run [--small] [--dir DIR] [start] [staging] [files] [served] [memory]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from adyton.values import Digest
from adyton.vfs.stage import StagedFile, Staging

ROUNDS = 3


class Part(Protocol):
    """One measurement, made in a folder of its own."""

    def __call__(self, folder: Path, *, small: bool) -> None: ...


def say(text: str = "") -> None:
    print(text, flush=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    return min(timed(work) for _ in range(rounds))


def _entry(path: Path, target: str) -> StagedFile:
    content = path.read_bytes()
    return StagedFile(str(path), Digest(hashlib.sha256(content).digest()), (target,), len(content))


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, as staging has it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def _stage(files: list[StagedFile], jobs: int) -> float:
    with memory_folder() as root:
        began = time.perf_counter()
        staging = Staging(str(root), files, jobs=jobs)
        staging.start()
        staging.finish()
        return time.perf_counter() - began


def _hash_and_copy(paths: list[Path], jobs: int) -> float:
    """The limit: the same bytes hashed and written to memory, by as many processes, with nothing else done."""
    with memory_folder() as root:
        began = time.perf_counter()
        children = []
        for number in range(jobs):
            child = os.fork()
            if child == 0:
                buffer = bytearray(256 << 10)
                for index, path in enumerate(paths):
                    if index % jobs != number:
                        continue
                    digest = hashlib.sha256()
                    with path.open("rb", buffering=0) as source, (root / str(index)).open("wb", buffering=0) as target:
                        while got := source.readinto(buffer):
                            part = memoryview(buffer)[:got]
                            digest.update(part)
                            target.write(part)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return time.perf_counter() - began


def staging(folder: Path, *, small: bool) -> None:
    """Staging throughput against hashing and copying alone."""
    jobs = len(os.sched_getaffinity(0))
    count, size = (8, 8 << 20) if small else (24, 24 << 20)
    paths = []
    for number in range(count):
        path = folder / f"large{number}"
        path.write_bytes(random.Random(number).randbytes(size))
        paths.append(path)
    files = [_entry(path, f"/d/{path.name}") for path in paths]
    ours = limit = float("inf")
    for _ in range(ROUNDS):
        limit = min(limit, _hash_and_copy(paths, jobs))
        ours = min(ours, _stage(files, jobs))
    total = count * size / 1e6
    say(f"staging {total:.0f} MB, {jobs} workers        MB/s    of the limit   wanted")
    say(f"  hash and copy alone (limit)   {total / limit:7.0f}      1.00")
    say(f"  adyton                        {total / ours:7.0f}      {limit / ours:.2f}          0.70")
    for path in paths:
        path.unlink()


def files(folder: Path, *, small: bool) -> None:
    """Start-up with very many small trusted files: linear."""
    count = 6_679 if small else 66_788
    (folder / "many").mkdir()
    entries = []
    for number in range(count):
        path = folder / "many" / str(number)
        content = b"%d" % number * 40
        path.write_bytes(content)
        digest = Digest(hashlib.sha256(content).digest())
        entries.append(StagedFile(str(path), digest, (f"/d{number % 500}/{number}",), len(content)))
    jobs = len(os.sched_getaffinity(0))
    some = _stage(entries[: count // 4], jobs)
    every = _stage(entries, jobs)
    say("staging of small files               s     per file   wanted")
    say(f"  {count // 4:6d} files                  {some:6.2f}   {some / (count // 4) * 1e6:6.0f} us")
    say(f"  {count:6d} files                  {every:6.2f}   {every / count * 1e6:6.0f} us   5 s for 66 788")
    shutil.rmtree(folder / "many")


# ---------------------------------------------------------------- served


def _drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def _write(path: Path, megabytes: int) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(block)


def _read(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _read_randomly(path: Path, count: int) -> None:
    chance = random.Random(1)
    pages = path.stat().st_size // 4096
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(count):
        os.pread(fd, 4096, chance.randrange(pages) * 4096)
    os.close(fd)


def _each(top: Path, count: int, work: Callable[[Path], object]) -> None:
    for number in range(count):
        work(top / f"s{number}")


def _round(top: Path, *, small: bool) -> dict[str, float]:
    megabytes, reads, entries = (64, 1000, 200) if small else (1024, 10_000, 1000)
    found: dict[str, float] = {}
    big = top / "big"
    found["write, MB/s"] = megabytes / timed(lambda: _write(big, megabytes))
    _drop_caches()
    found["read cold, MB/s"] = megabytes / timed(lambda: _read(big))
    _drop_caches()
    found["random 4 KiB read, us"] = timed(lambda: _read_randomly(big, reads)) / reads * 1e6
    big.unlink()
    found["create, us"] = timed(lambda: _each(top, entries, lambda path: path.write_bytes(b"x" * 1000))) / entries * 1e6
    _drop_caches()
    found["stat, us"] = timed(lambda: _each(top, entries, lambda path: path.stat())) / entries * 1e6
    found["open and read, us"] = timed(lambda: _each(top, entries, lambda path: path.read_bytes())) / entries * 1e6
    found["unlink, us"] = timed(lambda: _each(top, entries, lambda path: path.unlink())) / entries * 1e6
    return found


@contextmanager
def adyton_mount(folder: Path) -> Iterator[Path]:
    (folder / "enc").mkdir()
    (folder / "top").mkdir()
    (folder / "key").touch(0o600)
    (folder / "key").write_bytes(os.urandom(16))
    words = [sys.executable, "-m", "adyton", "mount", "enc", "top", "--key-file", "key"]
    subprocess.run(words, cwd=folder, check=True)
    try:
        yield folder / "top"
    finally:
        subprocess.run([sys.executable, "-m", "adyton", "umount", "top"], cwd=folder, check=True)


@contextmanager
def _gocryptfs_mount(folder: Path) -> Iterator[Path]:
    (folder / "genc").mkdir()
    (folder / "gtop").mkdir()
    (folder / "password").write_text("bench\n")
    common = ["gocryptfs", "-q", "-nosyslog", "-passfile", "password"]
    subprocess.run([*common, "-init", "-scryptn", "10", "genc"], cwd=folder, check=True)
    subprocess.run([*common, "genc", "gtop"], cwd=folder, check=True)
    try:
        yield folder / "gtop"
    finally:
        subprocess.run(["fusermount3", "-u", "gtop"], cwd=folder, check=True)


WANTED = {
    "write, MB/s": 1.0,
    "read cold, MB/s": 0.7,
    "random 4 KiB read, us": 1.0,
    "create, us": 0.5,
    "stat, us": 0.5,
    "open and read, us": 0.5,
    "unlink, us": 0.5,
}


def served(folder: Path, *, small: bool) -> None:
    """A mount against gocryptfs on the same backing folder, rounds taken in turn, the best of each."""
    if shutil.which("gocryptfs") is None:
        say("served: gocryptfs is not installed, so there is no peer to compare with")
        return
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    with adyton_mount(folder) as top, _gocryptfs_mount(folder) as other:
        for _ in range(ROUNDS):
            for best, where in ((theirs, other), (ours, top)):
                for name, value in _round(where, small=small).items():
                    better = max if "MB/s" in name else min
                    best[name] = better(best.get(name, value), value)
    say("served                      gocryptfs    adyton   how many times as fast   wanted")
    for name, value in ours.items():
        ratio = value / theirs[name] if "MB/s" in name else theirs[name] / value
        say(f"  {name:24} {theirs[name]:10.0f} {value:9.0f}          {ratio:5.2f}            {WANTED[name]:.1f}")
    say("  (gramine-direct, installed or not, is not run here; seen elsewhere: 100-150 MB/s)")


# ---------------------------------------------------------------- memory


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])


def memory(folder: Path, *, small: bool) -> None:
    """Memory of the serving process: after import, with 1 000 open files, and after writing a large file."""
    count = 100 if small else 1000
    place = folder / "memory"
    place.mkdir()
    with adyton_mount(place) as top:
        pid = server_of(place / "enc")
        before = resident_kib(pid)
        handles = []
        for number in range(count):
            handle = (top / f"f{number}").open("w+b", buffering=0)
            handle.write(os.urandom(200_000))
            handles.append(handle)
        for handle in handles:
            os.fsync(handle.fileno())
        _drop_caches()
        for handle in handles:
            handle.seek(0)
            handle.read(200_000)
        opened = resident_kib(pid)
        for handle in handles:
            handle.close()
        _write(top / "big", 64 if small else 1024)
        _drop_caches()
        _read(top / "big")
        after = resident_kib(pid)
    say("memory of the serving process      MiB    over import   wanted")
    say(f"  after import                 {before / 1024:7.1f}")
    say(f"  {count:5d} files open, read       {opened / 1024:7.1f}      {(opened - before) / 1024:6.1f}         64")
    say(f"  1 GiB written and read       {after / 1024:7.1f}      {(after - before) / 1024:6.1f}         64")


def server_of(source: Path) -> int:
    wanted = str(source.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted:
            return int(words[4])
    raise RuntimeError("the serving process was not found")


# ---------------------------------------------------------------- whole runs


class World:
    """An owner, a simulated platform and a running key server in a folder; programs are made and run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "ADYTON_HOME": str(folder / "home")}
        self.environment |= {"HOME": str(folder)}
        self.environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("src"))
        self._server: subprocess.Popen[bytes] | None = None
        self._address = ""

    def adyton(self, *words: str) -> str:
        """One verb."""
        command = [sys.executable, "-m", "adyton", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"adyton {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def __enter__(self) -> World:
        self.adyton("init")
        self.adyton("key", "new", "k")
        self.adyton("platform", "new", "platform")
        shown = self.adyton("platform", "show", "platform").split()
        self._tee = next(word for word in shown if word.startswith("sim:"))
        self.adyton("platform", "export", "platform", "-o", "bundle.json")
        self.adyton("collateral", "import", "bundle.json", "--root", self._tee.removeprefix("sim:"))
        ready = self.folder / "ready"
        words = [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        quiet = subprocess.DEVNULL
        self._server = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=quiet, stderr=quiet)
        while not ready.exists() or not ready.read_text():
            time.sleep(0.05)
        self._address = json.loads(ready.read_text())["adyton"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def make(self, script: str) -> None:
        """From a script to an approved program with an encrypted output folder; the script is run once."""
        name = script.removesuffix(".py")
        self.adyton("new", "--key", "k", script)
        template = self.folder / f"{name}.manifest.template"
        (self.folder / "out").mkdir(exist_ok=True)
        mount = '  { type = "encrypted", path = "/out", uri = "file:out", key_name = "k" },\n  { type = "tmpfs"'
        text = template.read_text().replace('  { type = "tmpfs"', mount, 1).replace('THREADS = "2"', 'THREADS = "1"')
        template.write_text(text + '\n[adyton.owners.owner]\nca_file = "file:home/ca.crt"\n')
        (self.folder / "encrypted").mkdir(exist_ok=True)
        self.adyton("build", template.name)
        self.adyton("approve", f"{name}.manifest", "--key", "k", "--tee", self._tee)

    def run(self, script: str) -> str:
        """One attested run."""
        manifest = script.removesuffix(".py") + ".manifest"
        where = ("--tee", "sim", "--sim-platform", "platform", "--key-server", self._address)
        return self.adyton("run", manifest, *where)


def start(folder: Path, *, small: bool) -> None:
    """Whole attested runs against the same program run natively."""
    programs = {"pass": "pass", **({} if small else {"import torch": "import torch"})}
    with World(folder) as world:
        for number, code in enumerate(programs.values()):
            (folder / f"p{number}.py").write_text(code + "\n")
            world.make(f"p{number}.py")
        say("whole run, attestation and key release included    native s   adyton s   ratio   wanted at most")
        for number, label in enumerate(programs):
            script = f"p{number}.py"
            native_words = [sys.executable, script]
            native = ours = float("inf")
            for _ in range(ROUNDS):
                work = partial(subprocess.run, native_words, cwd=folder, env=world.environment, check=True)
                native = min(native, timed(work))
                ours = min(ours, timed(partial(world.run, script)))
            limit = 0.6 if label == "pass" else 1.5 * native + 0.6
            say(f"  {label:50} {native:6.2f}     {ours:6.2f}   {ours / native:5.2f}   {limit:.2f} s")


def measure(room: str, about: str | None, parts: Mapping[str, Part], args: list[str]) -> None:
    """Measure the parts that were asked for, or all, each in a folder of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {room}", description=about)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; default: everything")
    parser.add_argument("--small", action="store_true", help="small sizes, for a look")
    parser.add_argument("--dir", type=Path, help="where the backing folders lie; default: a temporary folder")
    chosen = parser.parse_args(args)
    for name in chosen.parts or parts:
        with tempfile.TemporaryDirectory(dir=chosen.dir) as folder:
            parts[name](Path(folder), small=chosen.small)
        say()


def main(args: list[str]) -> None:
    """Measure what was asked for, or everything."""
    parts = {"start": start, "staging": staging, "files": files, "served": served, "memory": memory}
    measure("run", __doc__, parts, args)
