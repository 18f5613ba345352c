"""Weights to a GPU: `adyton.gpu.load` of a protected file beside the same call on the plain file. Runs where a GPU is.

The plain load is the limit: the same reads, the same pinned buffers and the same copies, without decryption. Both files
are in the page cache. Best of several rounds, which alternate. A figure from a GPU out of confidential mode says
nothing about confidential mode, where the driver encrypts each copy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from adyton.errors import NoDevice
from adyton.gpu import load
from adyton.storage.files import encrypt_file
from adyton.tee.nvml import NVML
from adyton.values import Key128

TENSORS = 64


def write(path: Path, size: int) -> None:
    """A safetensors file of about `size` bytes of noise, in equal tensors."""
    each = size // TENSORS // 2 * 2
    header = {
        f"layer.{number}": {"dtype": "BF16", "shape": [each // 2], "data_offsets": [each * number, each * (number + 1)]}
        for number in range(TENSORS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(TENSORS):
            file.write(os.urandom(each))


def seconds(path: Path, key: Key128 | None, workers: int | None) -> float:
    """One load, freed again."""
    began = time.perf_counter()
    with load(path, key=key, sealed_as="weights", workers=workers):
        return time.perf_counter() - began


def mode() -> str:
    """What NVML says of confidential mode."""
    with contextlib.suppress(NoDevice), NVML() as library:
        return "on" if library.state().enabled else "off"
    return "unknown"


def main(arguments: list[str]) -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args(arguments)
    key = Key128.generate()
    with tempfile.TemporaryDirectory(prefix="adyton-bench-") as name:
        plain, sealed = Path(name, "weights"), Path(name, "weights.sealed")
        write(plain, 1 << 20)
        try:
            seconds(plain, None, 1)
        except NoDevice as error:
            sys.stdout.write(f"skipped: bench gpu: {error.message}\n")
            return
        write(plain, int(options.gigabytes * 1e9))
        encrypt_file(plain, sealed, key, path="weights")
        size = plain.stat().st_size
        found: dict[str, list[float]] = {"plain": [], "protected": []}
        for _ in range(options.rounds):
            found["plain"].append(seconds(plain, None, options.workers))
            found["protected"].append(seconds(sealed, key, options.workers))
    best = {name: min(times) for name, times in found.items()}
    for name, took in best.items():
        sys.stdout.write(f"{name:<10} {size / took / 1e9:6.2f} GB/s\n")
    sys.stdout.write(f"ratio      {best['plain'] / best['protected']:6.2f} of the plain load\n")
    sys.stdout.write(f"confidential mode: {mode()}\n")
