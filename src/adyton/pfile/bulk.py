"""Whole files in segments: a tree node and its 96 data nodes, which lie together on the host.

Segments are sealed and opened in any order and by several threads; what ties them together, the slots of
the tree nodes, is 32 bytes each.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from adyton.pfile import seal, tree
from adyton.pfile.layout import CHILD_SLOTS, DATA_SLOTS, INLINE_BYTES, NODE_BYTES, SLOT_BYTES
from adyton.pfile.nodes import altered

if TYPE_CHECKING:
    from adyton.pfile.backing import Backing

SEGMENT_DATA_BYTES: Final = DATA_SLOTS * NODE_BYTES
SEGMENT_HOST_BYTES: Final = tree.SEGMENT_NODES * NODE_BYTES


def segment_offset(number: int) -> int:
    """The plaintext offset of the first byte of segment `number`."""
    return INLINE_BYTES + number * SEGMENT_DATA_BYTES


def segment_host_offset(number: int) -> int:
    """The offset of segment `number` (its tree node) on the host."""
    return tree.physical_tree(number) * NODE_BYTES


class SegmentSealer:
    """Seals the segments of one new file; ends with the slot of its root.

    A segment whose tree node has children is not complete until they are: its slots are kept, 3 KiB for
    every 32 segments (12 MiB), until `finish` seals the inner tree nodes, children first.
    """

    def __init__(self, backing: Backing, segments: int | None) -> None:
        """`segments`: how many there will be, or None where the size is not known yet."""
        self._backing = backing
        self._segments = segments
        self._slots: dict[int, bytes] = {}
        self._inner: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def new_buffers(self) -> Buffers:
        """What one thread needs to seal or open segments."""
        return Buffers()

    def seal(self, number: int, size: int, buffers: Buffers) -> None:
        """Seal the first `size` bytes of `buffers.plain` as segment `number`, and write it."""
        count = (size + NODE_BYTES - 1) // NODE_BYTES
        end = count * NODE_BYTES
        buffers.plain[size:end] = bytes(end - size)
        whole = buffers.host[: end + NODE_BYTES]
        slots = buffers.tree[: count * SLOT_BYTES]
        seal.seal_nodes(buffers.plain[:end], whole[NODE_BYTES:], slots)
        inner = self._segments is None or tree.children_of(number, self._segments) > 0
        if inner:
            with self._lock:
                self._inner[number] = bytes(slots)
            self._backing.write_at(segment_host_offset(number) + NODE_BYTES, whole[NODE_BYTES:])
            return
        buffers.tree[count * SLOT_BYTES :] = bytes(NODE_BYTES - count * SLOT_BYTES)
        slot = bytearray(SLOT_BYTES)
        seal.seal_nodes(buffers.tree, whole[:NODE_BYTES], slot)
        with self._lock:
            self._slots[number] = bytes(slot)
        self._backing.write_at(segment_host_offset(number), whole)

    def finish(self, segments: int) -> bytes:
        """Seal the tree nodes that are left, and return the slot of the root."""
        plain, cipher, slot = bytearray(NODE_BYTES), bytearray(NODE_BYTES), bytearray(SLOT_BYTES)
        for number in sorted(self._inner, reverse=True):
            slots = self._inner.pop(number)
            plain[:] = slots.ljust(NODE_BYTES, b"\0")
            for child in range(CHILD_SLOTS * number + 1, CHILD_SLOTS * number + 1 + tree.children_of(number, segments)):
                at = tree.child_slot_at(child)
                plain[at : at + SLOT_BYTES] = self._slots.pop(child)
            seal.seal_nodes(plain, cipher, slot)
            self._slots[number] = bytes(slot)
            self._backing.write_at(segment_host_offset(number), cipher)
        return self._slots.pop(0) if segments else bytes(SLOT_BYTES)


class Buffers:
    """The buffers of one worker: a segment's plaintext, its host form, a tree node."""

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(SEGMENT_DATA_BYTES))
        self.host = memoryview(bytearray(SEGMENT_HOST_BYTES))
        self.tree = memoryview(bytearray(NODE_BYTES))


class SegmentOpener:
    """Opens the segments of one file, in any order, from several threads; it holds 32 bytes per segment."""

    def __init__(self, backing: Backing, size: int, root_slot: bytes) -> None:
        self._backing = backing
        self._data_nodes = tree.data_nodes(size)
        self._size = size
        self.count = tree.tree_nodes(size)
        self._slots = bytearray(SLOT_BYTES * self.count)
        if self.count:
            self._slots[:SLOT_BYTES] = root_slot
        self._read_inner()

    def _read_inner(self) -> None:
        node = memoryview(bytearray(NODE_BYTES))
        number = 0
        while children := tree.children_of(number, self.count):
            got = self._backing.read_into(segment_host_offset(number), node)
            self._open_tree(number, node, node, cut=got != NODE_BYTES)
            at = SLOT_BYTES * (CHILD_SLOTS * number + 1)
            self._slots[at : at + SLOT_BYTES * children] = node[SLOT_BYTES * DATA_SLOTS :][: SLOT_BYTES * children]
            number += 1

    def _open_tree(self, number: int, cipher: memoryview, plain: memoryview, *, cut: bool) -> None:
        slot = self._slots[SLOT_BYTES * number : SLOT_BYTES * (number + 1)]
        if cut or seal.open_nodes(cipher, slot, plain) >= 0:
            raise altered(self._backing.name, tree.physical_tree(number), f"tree node {number}", cut=cut)

    def open(self, number: int, buffers: Buffers) -> memoryview:
        """The verified plaintext of segment `number`, in the worker's own buffer."""
        count = tree.data_in_tree(number, self._data_nodes)
        whole = buffers.host[: (count + 1) * NODE_BYTES]
        got = self._backing.read_into(segment_host_offset(number), whole)
        return self.open_read(number, got, buffers)

    def open_read(self, number: int, got: int, buffers: Buffers) -> memoryview:
        """The same for `got` bytes of the segment that were read into `buffers.host` already."""
        count = tree.data_in_tree(number, self._data_nodes)
        self._open_tree(number, buffers.host[:NODE_BYTES], buffers.tree, cut=got < NODE_BYTES)
        plain = buffers.plain[: count * NODE_BYTES]
        first = DATA_SLOTS * number
        if got < (count + 1) * NODE_BYTES:
            data = first + max(0, got // NODE_BYTES - 1)
            raise altered(self._backing.name, tree.physical_data(data), f"data node {data}", cut=True)
        bad = seal.open_nodes(
            buffers.host[NODE_BYTES : (count + 1) * NODE_BYTES], buffers.tree[: count * SLOT_BYTES], plain
        )
        if bad >= 0:
            raise altered(self._backing.name, tree.physical_data(first + bad), f"data node {first + bad}")
        return plain[: min(SEGMENT_DATA_BYTES, self._size - segment_offset(number))]
