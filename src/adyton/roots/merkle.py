"""One hash over all entries of a folder. A change costs the same however many entries there are, but for a logarithm.

It is a binary trie over SHA-256 of the paths::

    hash of no entries      = 32 zeros
    hash of one entry       = SHA-256(0x00 ‖ SHA-256(path) ‖ content)
    hash of several entries = SHA-256(0x01 ‖ hash of those whose next bit is 0 ‖ hash of those whose next bit is 1)

So the hash follows from the entries alone, in whatever order they were made. The bits of SHA-256(path) are taken from
the first byte on, the highest bit of each byte first. `content` is the size (u64, big-endian) and the root of a file.
It is empty for a folder.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.roots.entry import Entry

EMPTY: Final = bytes(32)


class _Branch:
    """At least two entries, by their next bit. `digest` is None where something below changed."""

    __slots__ = ("children", "digest")

    def __init__(self) -> None:
        self.children: list[_Node] = [None, None]
        self.digest: bytes | None = None


_Node: TypeAlias = "tuple[int, bytes] | _Branch | None"
"""Nothing, one entry (SHA-256 of its path as a number, its hash), or several."""


class MerkleTree:
    """The hash of a set of entries that changes."""

    def __init__(self, entries: Iterable[tuple[str, Entry]] = ()) -> None:
        self._top: _Node = None
        for path, entry in entries:
            self.put(path, entry)

    def put(self, path: str, entry: Entry) -> None:
        """Add the entry of a path, or replace it."""
        name = hashlib.sha256(os.fsencode(path)).digest()
        content = b"" if entry.is_folder else entry.size.to_bytes(8, "big") + entry.root
        self._top = _put(self._top, 255, int.from_bytes(name, "big"), hashlib.sha256(b"\0" + name + content).digest())

    def remove(self, path: str) -> None:
        """Remove the entry of a path, if there is one."""
        self._top = _remove(self._top, 255, int.from_bytes(hashlib.sha256(os.fsencode(path)).digest(), "big"))

    def digest(self) -> bytes:
        """The hash, 32 bytes."""
        return _digest(self._top)


def _put(node: _Node, bit: int, key: int, leaf: bytes) -> _Node:
    if node is None or (isinstance(node, tuple) and node[0] == key):
        return key, leaf
    if isinstance(node, tuple):
        branch = _Branch()
        branch.children[node[0] >> bit & 1] = node
        node = branch
    node.digest = None
    side = key >> bit & 1
    node.children[side] = _put(node.children[side], bit - 1, key, leaf)
    return node


def _remove(node: _Node, bit: int, key: int) -> _Node:
    if not isinstance(node, _Branch):
        return None if node is not None and node[0] == key else node
    node.digest = None
    side = key >> bit & 1
    node.children[side] = _remove(node.children[side], bit - 1, key)
    left, right = node.children
    if left is None and not isinstance(right, _Branch):
        return right
    if right is None and not isinstance(left, _Branch):
        return left
    return node


def _digest(node: _Node) -> bytes:
    if node is None:
        return EMPTY
    if isinstance(node, tuple):
        return node[1]
    if node.digest is None:
        node.digest = hashlib.sha256(b"\1" + _digest(node.children[0]) + _digest(node.children[1])).digest()
    return node.digest
