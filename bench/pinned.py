"""What a pinned folder costs: a local commit by how many entries are there and how many changed; the start of a run.

python bench/pinned.py [FOLDER]   (a folder on the disk to measure; its file system's own sync is measured beside it)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from adyton.atomic_file import sync_file_system
from adyton.roots.entry import Entry
from adyton.roots.first_root import pin_folder
from adyton.roots.history import History
from adyton.roots.journal import Journal, journal_of
from adyton.roots.judge import Judged
from adyton.roots.pinned_folder import Checked, PinnedFolder, check_folder
from adyton.storage.trees import encrypt_tree
from adyton.values import Key128

KEY = Key128(bytes(range(16)))
ROUNDS = 20


def _median_ms(samples: list[float]) -> str:
    return f"{1000 * statistics.median(samples):.2f} ms (of {len(samples)}, {1000 * max(samples):.2f} at most)"


def commits(place: Path, there: int, changed: int) -> None:
    """A commit after `changed` of `there` files have another state."""
    folder = place / f"out-{there}-{changed}"
    folder.mkdir()
    entries = {
        f"d{number % 50}/file-{number}": Entry(number.to_bytes(48, "big"), 4096, 1, "owner")
        for number in range(1, there + 1)
    }
    history = History.create("demo/out", entries, at_s=1)
    Journal(journal_of(str(folder)), KEY, history).close()
    pinned = PinnedFolder(Checked(str(folder), "out", KEY, history, Judged(dict(entries), (), ())), "g-1")
    names = list(entries)[:changed]
    whole, alone, syncs = [], [], []
    for number in range(ROUNDS):
        root = (10**9 + number).to_bytes(48, "big")
        began = time.perf_counter()
        for name in names:
            pinned.writing(name, root, 4096)
        told = time.perf_counter()
        pinned.commit()
        ended = time.perf_counter()
        sync_file_system(folder)
        syncs.append(time.perf_counter() - ended)
        whole.append(ended - told)
        alone.append((told - began) / changed)
    pinned.close()
    print(f"{there:>7} entries, {changed:>4} changed: commit {_median_ms(whole)}; a change {_median_ms(alone)}")
    print(f"    syncfs of nothing {_median_ms(syncs)}")


def start(place: Path, there: int) -> None:
    """The check of a folder of small files at the start of a run."""
    plain, sealed = place / "plain", place / "sealed"
    plain.mkdir()
    for number in range(there):
        (plain / f"file-{number}").write_bytes(b"x" * 2000)
    encrypt_tree(plain, sealed, KEY, path="sealed")
    root = pin_folder(str(sealed), KEY, "demo/sealed", sealed_as="sealed", known=None)
    samples = []
    for _ in range(5):
        began = time.perf_counter()
        check_folder(str(sealed), KEY, "demo/sealed", root, sealed_as="sealed")
        samples.append(time.perf_counter() - began)
    print(f"start of a run with {there} files: {_median_ms(samples)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        for count, some in ((100, 1), (1000, 1), (10_000, 1), (100_000, 1), (1000, 10), (1000, 100), (1000, 1000)):
            commits(Path(name), count, some)
        start(Path(name), 1000)
