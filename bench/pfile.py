"""Protected files against the limit of the machine and against peers, all in one run, alternating.

The limit is a C loop over OpenSSL (limit.c) that seals and opens 4 KiB nodes, a fresh key each, over the same
working set with as many threads.  Every figure is the best of several rounds, and every ratio is between
figures of the same rounds, as other work on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from adyton.pfile import seal
from adyton.pfile.layout import NODE_BYTES, SLOT_BYTES
from adyton.storage.files import decrypt_file, encrypt_file
from adyton.values import Key128

MIB = 1 << 20
GB = 1e9
RUN_NODES = 96
COPY_BYTES = RUN_NODES * NODE_BYTES


def main(args: list[str]) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(prog="python -m bench pfile")
    parser.add_argument("--size", type=int, default=512, metavar="MiB", help="of whole files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="adyton-bench-") as folder:
        limit = Limit(Path(folder))
        in_memory(limit, 6 * options.rounds)
        whole_files(limit, Path(folder), options.size * MIB, options.rounds)
        random_reads(Path(folder), options.rounds)


class Limit:
    """The C loop, built for this run."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            sys.exit("bench pfile: no C compiler, so no limit to measure against")
        library = folder / "limit.so"
        source = Path(__file__).with_name("limit.c")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-lcrypto", "-lpthread"]
        subprocess.run(command, check=True)
        self._call = ctypes.CDLL(str(library)).limit
        self._call.argtypes = [ctypes.c_int, ctypes.c_size_t, *[ctypes.POINTER(ctypes.c_double)] * 2]

    def __call__(self, threads: int, nodes: int) -> tuple[float, float]:
        """Bytes per second of sealing and of opening."""
        sealed, opened = ctypes.c_double(), ctypes.c_double()
        if self._call(threads, nodes, ctypes.byref(sealed), ctypes.byref(opened)) != 0:
            sys.exit("bench pfile: the C loop failed")
        return nodes * NODE_BYTES / sealed.value, nodes * NODE_BYTES / opened.value


def table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows, the first of them the heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def gbps(rate: float) -> str:
    """A rate in GB/s."""
    return f"{rate / GB:.2f} GB/s"


# ---------------------------------------------------------------- in memory


def in_memory(limit: Limit, rounds: int, nodes: int = 96 * 170) -> None:
    """Seal and open 64 MiB in memory."""
    engines: list[tuple[str, seal.Engine, int, float]] = [
        (name, engine, threads, goal)
        for threads in (1, 2)
        for name, engine, goal in (("C part", seal.engine, 0.85), ("fallback", seal.Fallback, 0.40))
        if engine is not seal.Fallback or threads == 1
    ]
    if not seal.NATIVE:
        print("the C part was not built: only the fallback is measured")
        engines = [each for each in engines if each[0] == "fallback"]
    plain = bytearray(os.urandom(nodes * NODE_BYTES))
    cipher, slots = bytearray(len(plain)), bytearray(nodes * SLOT_BYTES)
    best: dict[tuple[str, int, str], float] = {}

    def note(what: tuple[str, int, str], rate: float) -> None:
        best[what] = max(rate, best.get(what, 0))

    for _ in range(rounds):
        for threads in (1, 2):
            sealed, opened = limit(threads, nodes)
            note(("limit", threads, "seal"), sealed)
            note(("limit", threads, "open"), opened)
        for name, engine, threads, _goal in engines:
            note((name, threads, "seal"), _over(engine.seal_nodes, plain, cipher, slots, threads, slots_last=True))
            note((name, threads, "open"), _over(engine.open_nodes, cipher, plain, slots, threads, slots_last=False))
    rows: list[tuple[str, ...]] = [("what", "threads", "Adyton", "limit", "of limit", "goal")]
    for name, _engine, threads, goal in engines:
        for what in ("seal", "open"):
            mine, most = best[name, threads, what], best["limit", threads, what]
            rows.append((f"{what}, {name}", str(threads), gbps(mine), gbps(most), f"{mine / most:.0%}", f"{goal:.0%}"))
    table(f"In memory, {nodes * NODE_BYTES // MIB} MiB, runs of {RUN_NODES} nodes", rows)


def _over(
    call: Callable[..., object],
    source: bytearray,
    target: bytearray,
    slots: bytearray,
    threads: int,
    *,
    slots_last: bool,
) -> float:
    """Bytes per second of calling an engine over buffers, run by run."""
    from_, to, places = memoryview(source), memoryview(target), memoryview(slots)
    count = len(source) // NODE_BYTES

    def work(first: int, last: int) -> None:
        for start in range(first, last, RUN_NODES):
            end = min(start + RUN_NODES, last)
            a, b = from_[start * NODE_BYTES : end * NODE_BYTES], to[start * NODE_BYTES : end * NODE_BYTES]
            s = places[start * SLOT_BYTES : end * SLOT_BYTES]
            result = call(a, b, s) if slots_last else call(a, s, b)
            if result not in (None, -1):
                raise RuntimeError("a node did not open")

    return len(source) / _timed(threads, count, work)


def _timed(threads: int, count: int, work: Callable[[int, int], None]) -> float:
    shares = [(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
    workers = [threading.Thread(target=work, args=share) for share in shares[1:]]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    work(*shares[0])
    for worker in workers:
        worker.join()
    return time.perf_counter() - begin


# ---------------------------------------------------------------- whole files


def whole_files(limit: Limit, folder: Path, size: int, rounds: int) -> None:
    """File to file, against copy and limit together, and against other tools."""
    key = Key128.generate()
    source, sealed, opened, copied = (folder / name for name in ("plain", "sealed", "opened", "copied"))
    block = random.Random(0).randbytes(MIB)
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
    best: dict[str, float] = {}

    def note(what: str, seconds: float) -> None:
        best[what] = max(size / seconds, best.get(what, 0))

    peers = [peer for peer in (Age(folder), GoCryptFS(folder), GraminePfCrypt(folder)) if peer.usable]
    threads = (1, 2)
    for _ in range(rounds):
        for jobs in threads:
            copied.unlink(missing_ok=True)
            note(f"copy {jobs}", copy(source, copied, jobs))
            seal_rate, open_rate = limit(jobs, 96 * 170)
            note(f"limit encrypt {jobs}", size / seal_rate)
            note(f"limit decrypt {jobs}", size / open_rate)
            for path in (sealed, opened, copied):
                path.unlink(missing_ok=True)
            note(f"encrypt {jobs}", timed(lambda: encrypt_file(source, sealed, key, path="x", jobs=jobs)))  # noqa: B023
            note(f"decrypt {jobs}", timed(lambda: decrypt_file(sealed, opened, key, path="x", jobs=jobs)))  # noqa: B023
            sealed.unlink()
            opened.unlink()
        for peer in peers:
            note(f"{peer.name} encrypt", peer.encrypt(source))
            note(f"{peer.name} decrypt", peer.decrypt())
    rows: list[tuple[str, ...]] = [("what", "jobs", "Adyton", "copy and limit", "of them", "goal")]
    for what in ("encrypt", "decrypt"):
        for jobs in threads:
            together = 1 / (1 / best[f"copy {jobs}"] + 1 / best[f"limit {what} {jobs}"])
            mine = best[f"{what} {jobs}"]
            rows.append((what, str(jobs), gbps(mine), gbps(together), f"{mine / together:.0%}", "60%"))
    table(f"Whole file to whole file, {size // MIB} MiB in {folder.parent}", rows)
    for jobs in threads:
        print(f"  (copy alone, {jobs} threads: {gbps(best[f'copy {jobs}'])})")
    rows = [("peer", "what", "peer", "Adyton", "times", "goal")]
    for peer in peers:
        for what in ("encrypt", "decrypt"):
            theirs, mine = best[f"{peer.name} {what}"], max(best[f"{what} {jobs}"] for jobs in threads)
            rows.append((peer.name, what, gbps(theirs), gbps(mine), f"{mine / theirs:.1f}", peer.goal))
    table("Against other tools, same file", rows)
    for kind in (Age, GoCryptFS, GraminePfCrypt):
        if kind.name not in {each.name for each in peers}:
            print(f"  ({kind.name} is not installed: not compared)")
    source.unlink()


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def copy(source: Path, target: Path, threads: int) -> float:
    """Seconds to copy by read and write of 384 KiB."""
    read, write = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        size = os.fstat(read).st_size

        def work(first: int, last: int) -> None:
            buffer = memoryview(bytearray(COPY_BYTES))
            for number in range(first, last):
                got = os.preadv(read, [buffer], number * COPY_BYTES)
                os.pwrite(write, buffer[:got], number * COPY_BYTES)

        return _timed(threads, -(-size // COPY_BYTES), work)
    finally:
        os.close(read)
        os.close(write)


class Peer:
    """Another tool that encrypts one file."""

    name = ""
    goal = "> 1"
    programs: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.usable = all(map(shutil.which, self.programs))

    def encrypt(self, source: Path) -> float:
        """Seconds."""
        raise NotImplementedError

    def decrypt(self) -> float:
        """Seconds, of what was encrypted last."""
        raise NotImplementedError


class Age(Peer):
    """age, with an X25519 key."""

    name = "age"
    programs = ("age", "age-keygen")

    def encrypt(self, source: Path) -> float:
        """Seconds."""
        identity = self.folder / "age.key"
        if not identity.exists():
            subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
        self.recipient = subprocess.run(
            ["age-keygen", "-y", str(identity)], check=True, capture_output=True, text=True
        ).stdout.strip()
        target = self.folder / "age.out"
        target.unlink(missing_ok=True)
        command = ["age", "-r", self.recipient, "-o", str(target), str(source)]
        return timed(lambda: subprocess.run(command, check=True))

    def decrypt(self) -> float:
        """Seconds."""
        plain = self.folder / "age.plain"
        command = ["age", "-d", "-i", str(self.folder / "age.key"), "-o", str(plain), str(self.folder / "age.out")]
        seconds = timed(lambda: subprocess.run(command, check=True))
        plain.unlink()
        return seconds


class GoCryptFS(Peer):
    """gocryptfs, through its mount, with a key derivation of no cost."""

    name = "gocryptfs"
    programs = ("gocryptfs", "fusermount3")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.usable = self.usable and Path("/dev/fuse").exists()

    def _mounted(self, work: Callable[[Path], float]) -> float:
        cipher, mount, password = (self.folder / name for name in ("go.cipher", "go.mount", "go.password"))
        if not cipher.exists():
            cipher.mkdir()
            mount.mkdir()
            password.write_text("bench")
            command = ["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", str(password), str(cipher)]
            subprocess.run(command, check=True)
        subprocess.run(["gocryptfs", "-q", "-passfile", str(password), str(cipher), str(mount)], check=True)
        try:
            return work(mount)
        finally:
            subprocess.run(["fusermount3", "-u", str(mount)], check=True)

    def encrypt(self, source: Path) -> float:
        """Seconds."""

        def work(mount: Path) -> float:
            (mount / "file").unlink(missing_ok=True)
            return copy(source, mount / "file", 1)

        return self._mounted(work)

    def decrypt(self) -> float:
        """Seconds."""

        def work(mount: Path) -> float:
            plain = self.folder / "go.plain"
            plain.unlink(missing_ok=True)
            seconds = copy(mount / "file", plain, 1)
            plain.unlink()
            return seconds

        return self._mounted(work)


class GraminePfCrypt(Peer):
    """Gramine's own tool."""

    name = "gramine-sgx-pf-crypt"
    goal = "6 (aim 12)"
    programs = ("gramine-sgx-pf-crypt",)

    def _run(self, verb: str, source: Path, target: Path) -> float:
        key = self.folder / "gramine.key"
        if not key.exists():
            key.write_bytes(os.urandom(16))
        target.unlink(missing_ok=True)
        command = ["gramine-sgx-pf-crypt", verb, "-w", str(key), "-i", str(source), "-o", str(target)]
        return timed(lambda: subprocess.run(command, check=True, capture_output=True))

    def encrypt(self, source: Path) -> float:
        """Seconds."""
        return self._run("encrypt", source, self.folder / "gramine.out")

    def decrypt(self) -> float:
        """Seconds."""
        return self._run("decrypt", self.folder / "gramine.out", self.folder / "gramine.plain")


# ---------------------------------------------------------------- random reads

_READER = """
import random, sys, time
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128
def peak():
    return int([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])
before = peak()
path, rounds, key = sys.argv[1], int(sys.argv[2]), Key128(sys.stdin.buffer.read())
with ProtectedFile.open(OSFile(path), key) as file:
    for offset in range(0, file.size, 393216):
        file.read_at(offset, 1)
    chance, best = random.Random(0), 0.0
    for _ in range(rounds):
        offsets = [4096 * chance.randrange(file.size // 4096) for _ in range(30000)]
        begin = time.perf_counter()
        for offset in offsets:
            file.read_at(offset, 4096)
        best = max(best, len(offsets) / (time.perf_counter() - begin))
print(best, peak() - before)
"""


def random_reads(folder: Path, rounds: int) -> None:
    """4 KiB reads of a 1 GiB file, and the memory that it takes."""
    key = Key128.generate()
    source, sealed = folder / "plain", folder / "sealed"
    with source.open("wb") as file:
        file.truncate(1 << 30)
    encrypt_file(source, sealed, key, path="x")
    source.unlink()
    command = [sys.executable, "-c", _READER, str(sealed), str(rounds)]
    said = subprocess.run(command, check=True, input=key.reveal(), stdout=subprocess.PIPE).stdout
    best, memory = map(float, said.split())
    with sealed.open("rb", buffering=0) as file:
        descriptor, chance = file.fileno(), random.Random(0)
        offsets = [4096 * chance.randrange(1 << 18) for _ in range(100_000)]
        begin = time.perf_counter()
        for offset in offsets:
            os.pread(descriptor, 4096, offset)
        plain = len(offsets) / (time.perf_counter() - begin)
    rows = [
        ("what", "seen", "goal"),
        ("4 KiB random reads per second, warm tree", f"{best:,.0f}", "60,000"),
        ("  os.pread of the ciphertext alone", f"{plain:,.0f}", ""),
        ("memory over what importing costs", f"{memory / 1024:.1f} MiB", "32 MiB"),
    ]
    table("Random reads, 1 GiB file", rows)
    sealed.unlink()
