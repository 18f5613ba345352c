"""Manifests of tens of thousands of files, the runtime's identity, MRENCLAVE: each beside a peer and beside its limit.

The peers are what one would use without this code (sha256sum, tomllib, tomli_w, a plain loop over records), the limits
are the system calls or the hashing that cannot be avoided. Every figure is the best of several rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import tomli_w

from adyton.manifest.cache import HashCache
from adyton.manifest.document import write_document
from adyton.manifest.finalize import finish
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import Area, Layout, measure
from adyton.runtime.identity import runtime_identity

FILES = 66_788
TEMPLATE = (
    'libos.entrypoint = "/bin/true"\nfs.mounts = []\nsgx.trusted_files = ["file:lib/"]\nadyton.insecure__stdio = true\n'
)


def main(args: list[str]) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m bench manifest")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args(args)
    rows: list[tuple[str, float, str, float, str, float]] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="adyton-bench-") as folder:
        top = Path(folder)
        paths = _make(top, options.files)
        rows += _build(top, paths, options.rounds)
        rows += _read(finish(TEMPLATE, top).manifest_bytes.decode(), options.rounds)
    rows += _identity(options.rounds)
    rows += _enclave(options.rounds)
    say = sys.stdout.write
    say(f"{options.files} trusted files of a few bytes; best of {options.rounds} rounds\n\n")
    say("| what | here | peer | ratio | limit | ratio |\n| --- | --- | --- | --- | --- | --- |\n")
    for what, ours, peer, peers, limit, limits in rows:
        say(
            f"| {what} | {ours:.3f} s | {peer}: {peers:.3f} s | {ours / peers:.2f} |"
            f" {limit}: {limits:.3f} s | {ours / limits:.2f} |\n"
        )


def best(rounds: int, *jobs: Callable[[], object]) -> list[float]:
    """The shortest time of each job, the jobs taken in turns."""
    found = [float("inf")] * len(jobs)
    for _ in range(rounds):
        for number, job in enumerate(jobs):
            began = time.perf_counter()
            job()
            found[number] = min(found[number], time.perf_counter() - began)
    return found


def _make(top: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        place = top / "lib" / f"d{number % 700:03}"
        if number < 700:
            place.mkdir(parents=True)
        path = place / f"module_{number}.py"
        path.write_bytes(b"x = %d\n" % number)
        paths.append(str(path))
    return paths


def _build(top: Path, paths: list[str], rounds: int) -> list[tuple[str, float, str, float, str, float]]:
    listing = top / "listing"
    listing.write_text("\n".join(paths))

    def read_all() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            hashlib.sha256(os.read(descriptor, 4096)).digest()
            os.close(descriptor)

    def stat_all() -> None:
        for path in paths:
            os.stat(path)

    def peer() -> None:
        subprocess.run(["xargs", "-a", str(listing), "sha256sum"], stdout=subprocess.DEVNULL, check=True)

    cache = HashCache.load(top / "cache.json")
    time.sleep(1.1)  # a file that changed within the last second is not remembered
    finish(TEMPLATE, top, cache=cache)
    cache.save()

    def cached() -> None:
        finish(TEMPLATE, top, cache=HashCache.load(top / "cache.json"))

    cold, warm, sums, reads, stats = best(rounds, lambda: finish(TEMPLATE, top), cached, peer, read_all, stat_all)
    return [
        ("final manifest, every file hashed", cold, "sha256sum", sums, "open, read, hash, close", reads),
        ("final manifest, from the cache", warm, "sha256sum", sums, "stat", stats),
    ]


def _read(text: str, rounds: int) -> list[tuple[str, float, str, float, str, float]]:
    raw = text.encode()
    document = tomllib.loads(text)
    trusted = [(entry["uri"], entry["sha256"]) for entry in document["sgx"]["trusted_files"]]
    rest = {**document, "sgx": {**document["sgx"]}}
    del rest["sgx"]["trusted_files"]
    ours, peer, lines = best(
        rounds, lambda: parse_manifest(text), lambda: tomllib.loads(text), lambda: raw.decode().split("\n")
    )
    write, dump, join = best(
        rounds,
        lambda: write_document(rest, trusted),
        lambda: tomli_w.dumps(document),
        lambda: "".join(f"{uri}{digest}" for uri, digest in trusted),
    )
    return [
        (f"parse and check {len(raw) / 1e6:.1f} MB", ours, "tomllib alone", peer, "split into lines", lines),
        ("write it", write, "tomli_w", dump, "join the strings", join),
    ]


def _identity(rounds: int) -> list[tuple[str, float, str, float, str, float]]:
    total = sum(os.stat(path).st_size for path in _opened(runtime_identity))
    block = os.urandom(total)
    paths = _opened(runtime_identity)

    def plainly() -> None:
        for path in paths:
            hashlib.sha256(Path(path).read_bytes()).digest()

    ours, plain, hashing = best(max(rounds, 10), runtime_identity, plainly, lambda: hashlib.sha256(block).digest())
    what = f"runtime identity, {len(paths)} files, {total / 1e6:.0f} MB"
    return [(what, ours, "one thread, file by file", plain, "hashing as one block", hashing)]


def _opened(job: Callable[[], object]) -> list[str]:
    """The files that a job opens, by Python's audit events."""
    found: list[str] = []
    listening = [True]

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening[0] and event == "open" and isinstance(arguments[0], str) and os.path.isfile(arguments[0]):
            found.append(arguments[0])

    sys.addaudithook(hear)
    job()
    listening[0] = False
    return [path for path in found if not path.startswith("/proc")]


def _enclave(rounds: int) -> list[tuple[str, float, str, float, str, float]]:
    size = 1 << 30
    layout = Layout(size, 4, (Area("free", 0x10000, size - 0x10000, 0x207, None),))
    pages = (size - 0x10000) // 4096

    def plainly() -> None:
        digest = hashlib.sha256()
        for address in range(0x10000, size, 4096):
            digest.update(struct.pack("<8sQQ40x", b"EADD\0\0\0\0", address, 0x207))

    ours, plain, hashing = best(
        rounds, lambda: measure(layout), plainly, lambda: hashlib.sha256(bytes(64 * pages)).digest()
    )
    return [("MRENCLAVE of 1 GiB of free pages", ours, "record by record", plain, "hashing as one block", hashing)]
