"""What a receipt is made from: the files that a run took and made, whatever it did with their names since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adyton.vfs.linked import LinkedTree
from tests.support.pinned import KEY, PinnedWorld, read, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> PinnedWorld:
    """A pinned folder in which an earlier run left three files."""
    world = PinnedWorld(tmp_path)
    with world.run() as tree:
        for name in ("a", "b", "c"):
            write(tree, name, name.encode())
    return world


def _roots(tree: LinkedTree) -> dict[str, tuple[bytes, bytes]]:
    return {state.path: (state.found_root, state.root) for state in tree.states()}


def test_pinned_file_that_no_run_opened_is_neither_taken_nor_made(world: PinnedWorld) -> None:
    with world.run("g-2") as tree:
        pass
    assert _roots(tree) == {}


def test_pinned_file_that_was_read_is_taken_and_not_made(world: PinnedWorld) -> None:
    root = world.check().entries["a"].root
    with world.run("g-2") as tree:
        read(tree, "a")
    assert _roots(tree) == {"out/a": (root, root)}


def test_pinned_file_of_a_mount_that_is_only_read_is_not_made(world: PinnedWorld) -> None:
    entries = world.check().entries
    tree = LinkedTree(str(world.folder), KEY, sealed_as="out", read_only=True, entries=entries)
    read(tree, "b")
    tree.close()
    assert _roots(tree) == {"out/b": (entries["b"].root, entries["b"].root)}


def test_pinned_file_that_was_written_over_has_both_roots(world: PinnedWorld) -> None:
    before = world.check().entries["a"].root
    with world.run("g-2") as tree:
        write(tree, "a", b"second")
    assert _roots(tree) == {"out/a": (before, world.check().entries["a"].root)}


@pytest.mark.parametrize("pinned", [True, False])
def test_file_that_was_removed_or_replaced_was_taken(world: PinnedWorld, pinned: bool) -> None:
    before = {name: entry.root for name, entry in world.check().entries.items()}

    def change(tree: LinkedTree) -> None:
        for name in ("a", "b", "c"):
            read(tree, name)
        tree.remove("a")
        tree.rename("c", "b", 0)
        write(tree, "new", b"new")

    if pinned:
        with world.run("g-2") as tree:
            change(tree)
    else:
        tree = LinkedTree(str(world.folder), KEY, sealed_as="out")
        change(tree)
        tree.close()
    found = _roots(tree)
    assert {path: taken for path, (taken, _) in found.items() if taken} == {
        f"out/{name}": root for name, root in before.items()
    }
    made = {path for path, (taken, root) in found.items() if root != taken}
    assert made == {"out/b", "out/new"}
