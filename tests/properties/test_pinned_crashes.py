"""A pinned folder whose run is killed, or whose machine loses power, at any write. Random programs, every moment.

What was committed is never lost or refused, and after the next run's start nothing of the crash is left.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adyton.errors import Error, IntegrityError
from adyton.roots.journal import journal_of
from adyton.roots.pinned_folder import PinnedFolder
from adyton.vfs.host_file import HostFile
from adyton.vfs.linked import LinkedTree
from tests.support.pinned import KEY, PinnedWorld, read, write

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("a", "b", "d/a", "d/b", "e/a", "e/f/a")
FOLDERS = ("d", "e", "e/f")


def _content(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 10, 3072, 9000)))


def step(tree: LinkedTree, chance: random.Random) -> None:
    """Something that a program does."""
    name, other, folder = chance.choice(NAMES), chance.choice(NAMES), chance.choice(FOLDERS)
    beside = chance.choice([each for each in FOLDERS if not each.startswith(folder + "/")])  # the kernel refuses others
    moves: list[Callable[[], Any]] = [
        lambda: write(tree, name, _content(chance)),
        lambda: write(tree, name, _content(chance)),
        lambda: tree.remove(name),
        lambda: tree.make_folder(folder, 0o755),
        lambda: tree.remove_folder(folder),
        lambda: tree.rename(name, other, 0),
        lambda: tree.rename(folder, beside, 0),
        lambda: tree.make_link(name, b"somewhere"),
        lambda: tree.set_attribute(name, b"user.x", _content(chance)[:100], 0),
        lambda: tree.sync_folder(""),
    ]
    with suppress(OSError, Error):
        chance.choice(moves)()


def everything(tree: LinkedTree, path: str = "") -> dict[str, bytes | None]:
    """All that a program sees: content of files, None for folders, targets of links."""
    found: dict[str, bytes | None] = {}
    for name, kind in tree.listing(path):
        below = f"{path}/{name}" if path else name
        if kind == stat.S_IFDIR:
            found[below] = None
            found |= everything(tree, below)
        elif kind == stat.S_IFLNK:
            with suppress(FileNotFoundError):  # a link that was not yet written when the run was killed
                found[below] = b"-> " + tree.node(below).target
        else:
            found[below] = read(tree, below)
    return found


def opened_again(world: PinnedWorld) -> dict[str, bytes | None]:
    """What the next run sees; it ends well, and the run after it finds nothing to mend."""
    with world.run("g-next") as tree:
        found = everything(tree)
    assert world.check().judged.taken_back == ()
    return found


class Moments:
    """Keeps folder and history as they are at each write of a run."""

    def __init__(self, world: PinnedWorld, into: Path) -> None:
        self.world, self.into, self.count = world, into, 0
        into.mkdir()

    def keep(self) -> None:
        """As it is now."""
        to = self.into / str(self.count)
        to.mkdir()
        self.world.copy(to)
        self.count += 1


def watch(monkeypatch: pytest.MonkeyPatch, moments: Moments) -> None:
    """Keep a moment before and after every write to the host, and in the middle of those to the history."""
    at, pwrite = HostFile.write_at, os.pwrite

    def write_at(self: HostFile, offset: int, data: Any, /) -> None:
        moments.keep()
        at(self, offset, data)
        moments.keep()

    def torn(fd: int, data: bytes, offset: int) -> int:
        moments.keep()
        done = pwrite(fd, data[: len(data) // 2], offset)
        moments.keep()
        return done + pwrite(fd, data[done:], offset + done)

    monkeypatch.setattr(HostFile, "write_at", write_at)
    monkeypatch.setattr(os, "pwrite", torn)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every moment opens, and shows what the program had committed then, or something that it did after."""
    chance = random.Random(seed)
    world = PinnedWorld(tmp_path / "host")
    with world.run() as tree:
        for _ in range(12):
            step(tree, chance)
    granted = world.server
    pinned = PinnedFolder(world.check(), "g-killed")
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
    moments = Moments(world, tmp_path / "moments")
    with monkeypatch.context() as patched:
        watch(patched, moments)
        for _ in range(20):
            step(tree, chance)
    tree.close()
    pinned.close()
    assert moments.count > 5
    for number in range(moments.count):
        world.put_back(moments.into / str(number))
        world.server = granted
        opened_again(world)


@pytest.mark.parametrize("seed", range(4))
def test_power_cut_at_every_record(tmp_path: Path, seed: int) -> None:
    """What was not synced is lost or not, file by file; what was committed is there, or the folder is refused."""
    chance = random.Random(100 + seed)
    world = PinnedWorld(tmp_path / "host")
    with world.run() as tree:
        tree.make_folder("d", 0o755)
        for name in ("a", "b", "d/a"):
            write(tree, name, b"first " + name.encode())
    granted = world.server
    world.copy(tmp_path / "before")
    committed = {name: b"first " + name.encode() for name in ("a", "b", "d/a")}
    pinned = PinnedFolder(world.check(), "g-cut")
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
    for name in ("a", "d/a", "new"):
        write(tree, name, b"second " + name.encode())
    pinned.close()
    tree._files._host.close()
    names = ("a", "b", "d/a", "new")
    after = {name: (world.folder / name).read_bytes() for name in names}
    before = {name: (tmp_path / "before/out" / name).read_bytes() for name in names if name in committed}
    for _ in range(12):
        lost = {name for name in names if chance.random() < 0.5}
        for name in names:
            (world.folder / name).write_bytes(before.get(name, b"") if name in lost else after[name])
        world.server = granted
        seen = {name: content for name, content in _copy(world, tmp_path / "copy").items() if content is not None}
        expected = {name: b"second " + name.encode() for name in ("a", "d/a", "new") if name not in lost}
        assert seen == {**committed, **expected}


def _copy(world: PinnedWorld, place: Path) -> dict[str, bytes | None]:
    """What the next run sees of a copy."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    world.copy(place)
    copy = object.__new__(PinnedWorld)
    copy.place, copy.folder, copy.server = place, place / "out", world.server
    return opened_again(copy)


def test_every_cut_of_the_history_opens_or_is_refused(tmp_path: Path) -> None:
    """Cut anywhere behind what the server knows, the history fits the folder of its last record, or is refused."""
    world = PinnedWorld(tmp_path / "host")
    with world.run() as tree:
        write(tree, "a", b"first")
    pinned = PinnedFolder(world.check(), "g-2")
    begun = len(journal_of(str(world.folder)).read_bytes())
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", power_safe=True, pinned=lambda: pinned)
    write(tree, "a", b"second")
    write(tree, "b", b"second")
    tree.close()
    pinned.close()
    raw = journal_of(str(world.folder)).read_bytes()
    taken = []
    for end in range(len(raw) + 1):
        journal_of(str(world.folder)).write_bytes(raw[:end])
        try:
            entries = world.check().entries
        except IntegrityError:
            continue  # the folder is ahead of what is left of its history
        assert set(entries) == {"a", "b"}
        taken.append(end)
    assert taken == list(range(taken[0], len(raw) + 1))  # without the last commit, the records before it say the same
    assert begun < taken[0]
    assert opened_again(world) == {"a": b"second", "b": b"second"}
