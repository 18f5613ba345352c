"""Large inputs: a 2 GiB model staged and loaded, a 100 GiB file served, and inference once it runs.

`python -m bench inputs [--small] [--dir DIR] [load] [sparse] [inference]`: each beside the same without Adyton.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from adyton.pfile import geometry, seal
from adyton.pfile.layout import DATA_SLOTS, NODE_BYTES, SLOT_BYTES, Metadata
from adyton.pfile.paths import path_bytes
from adyton.runtime import namespace
from adyton.storage.files import encrypt_file
from adyton.values import Key128
from adyton.vfs.owner import Owner
from adyton.vfs.stage import stage_encrypted
from bench.pfile import Limit
from bench.run import ROUNDS, World, adyton_mount, measure, resident_kib, say, server_of, timed

_LOAD = """
import sys, time
from safetensors.torch import load_file
began = time.monotonic()
tensors = load_file(sys.argv[1])
total = sum(float(tensor.sum()) for tensor in tensors.values())
print(time.monotonic() - began, total)
"""

_INFER = """
import time, torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.GELU()) for _ in range(8)])
x = torch.randn(32, 1024)
best = 1e9
with torch.inference_mode():
    for _ in range(40):
        began = time.perf_counter()
        for _ in range(10):
            model(x)
        best = min(best, time.perf_counter() - began)
open("seconds.txt", "w").write(str(best))
"""


def _loaded(path: Path) -> tuple[float, str]:
    """Seconds to load a safetensors file in a fresh process, reading every byte, and a sum that proves it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _LOAD, str(path)]
    shown = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, total = shown.split()
    return float(seconds), total


@contextmanager
def _memory(folder: Path, size: int) -> Iterator[Path]:
    """Memory as a run has it: a file system of its own, with large pages; needs root."""
    place = folder / "memory"
    place.mkdir(exist_ok=True)
    namespace.mount_memory(str(place), size_bytes=size, mode=0o755, owner=Owner.caller(), huge=True)
    try:
        yield place
    finally:
        namespace.detach(str(place))


def load(folder: Path, *, small: bool) -> None:
    """Staged and loaded, against the plain load from page cache and one decryption at the limit of AES."""
    import torch
    from safetensors.torch import save_file

    count = 4 if small else 32
    plain, sealed = folder / "model.safetensors", folder / "sealed.safetensors"
    save_file({f"w{number}": torch.randn(4096, 4096) for number in range(count)}, plain)
    key = Key128.generate()
    os.chdir(folder)
    encrypt_file(plain, sealed, key, path=sealed.name)
    jobs = len(os.sched_getaffinity(0))
    size = plain.stat().st_size
    _, at_limit = Limit(folder)(jobs, 96 * 170)
    natively = staged = loaded = float("inf")
    for _ in range(ROUNDS):
        seconds, expected = _loaded(plain)
        natively = min(natively, seconds)
        with _memory(folder, 2 * size) as memory:
            target = memory / "model"
            staged = min(staged, timed(partial(stage_encrypted, sealed.name, str(target), key, jobs=jobs)))
            seconds, total = _loaded(target)
            loaded = min(loaded, seconds)
        if total != expected:
            raise RuntimeError(f"what was loaded differs: {total}, {expected}")
    limit = size / at_limit
    ratio = (natively + limit) / (staged + loaded)
    say(f"safetensors of {size / 2**30:.1f} GiB, every byte read                 s")
    say(f"  plain, from page cache                                {natively:6.2f}")
    say(f"  decrypting as many bytes, AES alone, {jobs} threads        {limit:6.2f}")
    say(f"  adyton: staged                                        {staged:6.2f}")
    say(f"  adyton: loaded from where it was staged               {loaded:6.2f}")
    say(f"  (plain + AES alone) / (staged + loaded)                {ratio:5.2f}   wanted 0.60")


def _make_sparse(path: Path, key: Key128, size: int, sealed_as: str, places: list[int]) -> dict[int, bytes]:
    """A protected file of `size` bytes of which only the data nodes `places`, and what leads to them, are there."""
    contents = {data: random.Random(data).randbytes(NODE_BYTES) for data in places}
    slots: dict[int, dict[int, bytes]] = defaultdict(dict)
    with path.open("wb") as host:

        def put(place: int, plain: bytes) -> bytes:
            cipher, slot = bytearray(NODE_BYTES), bytearray(SLOT_BYTES)
            seal.seal_nodes(plain, cipher, slot)
            host.seek(place * NODE_BYTES)
            host.write(cipher)
            return bytes(slot)

        for data, plain in contents.items():
            slots[data // DATA_SLOTS][geometry.data_slot_at(data)] = put(geometry.physical_data(data), plain)
        root = bytes(SLOT_BYTES)
        waiting = set(slots)
        while waiting:
            number = max(waiting)
            waiting.discard(number)
            node = bytearray(NODE_BYTES)
            for at, slot in slots.pop(number).items():
                node[at : at + SLOT_BYTES] = slot
            root = put(geometry.physical_tree(number), bytes(node))
            if number:
                slots[geometry.parent(number)][geometry.child_slot_at(number)] = root
                waiting.add(geometry.parent(number))
        metadata = Metadata(path_bytes(sealed_as), size, root, b"")
        host.seek(0)
        host.write(seal.seal_metadata(key, 2, metadata.to_bytes()).to_bytes())
        host.truncate(geometry.host_size(size))
    return contents


def sparse(folder: Path, *, small: bool) -> None:
    """Memory of the serving process over random reads of a file of 100 GiB."""
    size, count = (1 << 30, 500) if small else (100 << 30, 20_000)
    chance = random.Random(7)
    pages = chance.sample(range(1, geometry.data_nodes(size) - 1), count)
    places = sorted({page - behind for page in pages for behind in (0, 1)})  # a page lies in two nodes
    with adyton_mount(folder) as top:
        key = Key128((folder / "key").read_bytes())
        contents = _make_sparse(folder / "enc" / "huge", key, size, "enc/huge", places)
        pid = server_of(folder / "enc")
        before = resident_kib(pid)
        fd = os.open(top / "huge", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        most = before
        for number, page in enumerate(pages):
            if os.pread(fd, NODE_BYTES, page * NODE_BYTES) != (contents[page - 1] + contents[page])[1024:5120]:
                raise RuntimeError(f"page {page} reads as something else")
            if number % 500 == 0:
                most = max(most, resident_kib(pid))
        os.close(fd)
        most = max(most, resident_kib(pid))
    grown = (most - before) / 1024
    say(f"{count} random reads of {size >> 30} GiB: the serving process grew by {grown:.1f} MiB   wanted at most 64")


def inference(folder: Path, *, small: bool) -> None:
    """Steady state: the best of 40 rounds of 10 batches, in the sandbox and natively."""
    del small
    script = folder / "infer.py"
    script.write_text(_INFER)
    natively = ours = float("inf")
    with World(folder) as world:
        world.make("infer.py")
        for _ in range(ROUNDS):
            subprocess.run([sys.executable, script.name], cwd=folder, env=world.environment, check=True)
            natively = min(natively, float((folder / "seconds.txt").read_text()))
            world.run("infer.py")
            (folder / "opened.txt").unlink(missing_ok=True)
            world.adyton("decrypt", "encrypted/seconds.txt", "-o", "opened.txt", "--key", "k")
            ours = min(ours, float((folder / "opened.txt").read_text()))
    say(f"inference, ms for ten batches: native {natively * 1e3:.1f}, adyton {ours * 1e3:.1f}, "
        f"ratio {ours / natively:.3f}   wanted at most 1.02")  # fmt: skip


def main(args: list[str]) -> None:
    """Measure what was asked for, or everything."""
    measure("inputs", __doc__, {"load": load, "sparse": sparse, "inference": inference}, args)
