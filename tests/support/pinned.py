"""A pinned folder without a mount: the tree that FUSE would serve, over a real folder, and the root of its server."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adyton.roots.first_root import pin_folder
from adyton.roots.journal import journal_of
from adyton.roots.pinned_folder import Checked, PinnedFolder, check_folder
from adyton.values import Key128
from adyton.vfs.linked import LinkedTree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adyton.roots.root import Root

KEY = Key128(bytes(range(16)))
ID = "demo/out"


class PinnedWorld:
    """A folder `out` below a place, and what its key server knows of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place / "out"
        self.folder.mkdir(parents=True)
        self.server = pin_folder(str(self.folder), KEY, ID, sealed_as="out", known=None)

    def check(self, granted: Root | None = None) -> Checked:
        """What a run does at its start. Raises IntegrityError."""
        return check_folder(str(self.folder), KEY, ID, granted or self.server, sealed_as="out")

    @contextmanager
    def run(self, writer: str = "g-1") -> Iterator[LinkedTree]:
        """A run that writes, whose last root the key server learns at its end."""
        pinned = PinnedFolder(self.check(), writer)
        tree = LinkedTree(str(self.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
        try:
            yield tree
        finally:
            tree.close()
            self.server = pinned.root
            pinned.close()

    def copy(self, to: Path) -> None:
        """Keep folder and history as they are now."""
        shutil.copytree(self.folder, to / "out", symlinks=True)
        shutil.copy2(journal_of(str(self.folder)), journal_of(str(to / "out")))

    def put_back(self, kept: Path) -> None:
        """Put folder and history back as they were kept."""
        shutil.rmtree(self.folder)
        shutil.copytree(kept / "out", self.folder, symlinks=True)
        shutil.copy2(journal_of(str(kept / "out")), journal_of(str(self.folder)))


def write(tree: LinkedTree, path: str, content: bytes) -> None:
    """Write a file, as a program does: it is made where it is not there."""
    try:
        opened = tree.open(path, truncate=True)
    except FileNotFoundError:
        opened = tree.create(path, 0o644)
    try:
        tree.write(opened, memoryview(content), 0)
        tree.flush(opened, sync=False)
    finally:
        tree.release(opened)


def read(tree: LinkedTree, path: str) -> bytes:
    """All of a file."""
    opened = tree.open(path)
    try:
        return opened.file.read_at(0, opened.file.size)
    finally:
        tree.release(opened)


def every_path(folder: Path) -> list[str]:
    """Everything below a folder but recovery logs."""
    found = []
    for base, folders, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(base, name), folder) for name in (*folders, *names)]
    return sorted(path for path in found if not path.endswith(".gramine.recovery"))
