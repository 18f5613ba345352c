"""Whole files in segments: a tree node and its 96 data nodes, which lie together on the host.

Segments are sealed and opened in any order and by several threads. The slots of the tree nodes, 32 bytes for each
segment, tie them together.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from adyton.pfile import geometry, seal
from adyton.pfile.layout import CHILD_SLOTS, DATA_SLOTS, INLINE_BYTES, NODE_BYTES, SLOT_BYTES
from adyton.pfile.nodes import altered

if TYPE_CHECKING:
    from adyton.pfile.backing import Backing

SEGMENT_DATA_BYTES: Final = DATA_SLOTS * NODE_BYTES
SEGMENT_HOST_BYTES: Final = geometry.SEGMENT_NODES * NODE_BYTES


def segment_offset(number: int) -> int:
    """The plaintext offset of the first byte of segment `number`."""
    return INLINE_BYTES + number * SEGMENT_DATA_BYTES


def segment_host_offset(number: int) -> int:
    """The offset of segment `number` (its tree node) on the host."""
    return geometry.physical_tree(number) * NODE_BYTES


class Buffers:
    """The buffers of one worker: a segment's plaintext, its form on the host, a tree node."""

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(SEGMENT_DATA_BYTES))
        self.host = memoryview(bytearray(SEGMENT_HOST_BYTES))
        self.tree = memoryview(bytearray(NODE_BYTES))


class SegmentSealer:
    """Seals the segments of one new file, and ends with the slot of its root.

    A tree node that has children can be sealed only after them: `finish` does that.  Until then its 3 KiB
    of slots are kept, 3 KiB for every 12 MiB of the file.
    """

    def __init__(self, backing: Backing, segments: int | None) -> None:
        """`segments` is the number of segments. None: it is not known, and they come in order."""
        self._backing = backing
        self._segments = segments
        self._slots: dict[int, bytes] = {}
        self._inner: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def seal(self, number: int, size: int, buffers: Buffers) -> None:
        """Seal the first `size` bytes of `buffers.plain` as segment `number`, and write it. Size 0 is no segment."""
        count = (size + NODE_BYTES - 1) // NODE_BYTES
        end = count * NODE_BYTES
        buffers.plain[size:end] = bytes(end - size)
        whole = buffers.host[: end + NODE_BYTES]
        slots = buffers.tree[: count * SLOT_BYTES]
        seal.seal_nodes(buffers.plain[:end], whole[NODE_BYTES:], slots)
        if self._segments is not None and geometry.children_of(number, self._segments):
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
        if self._segments is None and number:
            self._make_inner(geometry.parent(number))

    def _make_inner(self, number: int) -> None:
        """A tree node that was written as a leaf has a child after all: take its slots back."""
        if number in self._inner:
            return
        plain = bytearray(NODE_BYTES)
        got = self._backing.read_into(segment_host_offset(number), plain)
        if got != NODE_BYTES or seal.open_nodes(plain, self._slots.pop(number), plain) >= 0:
            raise altered(
                self._backing.name, geometry.physical_tree(number), f"tree node {number}", cut=got != NODE_BYTES
            )
        self._inner[number] = bytes(plain[: DATA_SLOTS * SLOT_BYTES])

    def finish(self, segments: int) -> bytes:
        """Seal the tree nodes that have children, and return the slot of the root, zeros without one."""
        plain, cipher, slot = bytearray(NODE_BYTES), bytearray(NODE_BYTES), bytearray(SLOT_BYTES)
        for number in sorted(self._inner, reverse=True):
            plain[:] = self._inner.pop(number).ljust(NODE_BYTES, b"\0")
            first = CHILD_SLOTS * number + 1
            for child in range(first, first + geometry.children_of(number, segments)):
                at = geometry.child_slot_at(child)
                plain[at : at + SLOT_BYTES] = self._slots.pop(child)
            seal.seal_nodes(plain, cipher, slot)
            self._slots[number] = bytes(slot)
            self._backing.write_at(segment_host_offset(number), cipher)
        return self._slots.pop(0) if segments else bytes(SLOT_BYTES)


class SegmentOpener:
    """Opens the segments of one file. It holds 32 bytes for each."""

    def __init__(self, backing: Backing, size: int, root_slot: bytes, *, in_order: bool = False) -> None:
        """Any order and several threads, for which the inner tree nodes are read first; or strictly `in_order`."""
        self._backing = backing
        self._size = size
        self._data_nodes = geometry.data_nodes(size)
        self.count = geometry.tree_nodes(size)
        self._slots = bytearray(SLOT_BYTES * self.count)
        if self.count:
            self._slots[:SLOT_BYTES] = root_slot
        if not in_order:
            self._read_inner()

    def _read_inner(self) -> None:
        node = memoryview(bytearray(NODE_BYTES))
        number = 0
        while geometry.children_of(number, self.count):
            got = self._backing.read_into(segment_host_offset(number), node)
            self._open_tree(number, node, node, cut=got != NODE_BYTES)
            number += 1

    def _open_tree(self, number: int, cipher: memoryview, plain: memoryview, *, cut: bool) -> None:
        slot = self._slots[SLOT_BYTES * number : SLOT_BYTES * (number + 1)]
        if cut or seal.open_nodes(cipher, slot, plain) >= 0:
            raise altered(self._backing.name, geometry.physical_tree(number), f"tree node {number}", cut=cut)
        children = geometry.children_of(number, self.count)
        if children:
            at = SLOT_BYTES * (CHILD_SLOTS * number + 1)
            first = SLOT_BYTES * DATA_SLOTS
            self._slots[at : at + SLOT_BYTES * children] = plain[first : first + SLOT_BYTES * children]

    def host_bytes(self, number: int) -> int:
        """How many bytes segment `number` has on the host."""
        return NODE_BYTES * (1 + geometry.data_in_tree(number, self._data_nodes))

    def open(self, number: int, buffers: Buffers) -> memoryview:
        """The verified plaintext of segment `number`, in the worker's own buffer."""
        whole = buffers.host[: self.host_bytes(number)]
        return self.open_read(number, self._backing.read_into(segment_host_offset(number), whole), buffers)

    def open_read(self, number: int, got: int, buffers: Buffers) -> memoryview:
        """The same where `got` bytes of the segment were read into `buffers.host` already."""
        count = geometry.data_in_tree(number, self._data_nodes)
        self._open_tree(number, buffers.host[:NODE_BYTES], buffers.tree, cut=got < NODE_BYTES)
        first = DATA_SLOTS * number
        if got < (count + 1) * NODE_BYTES:
            data = first + got // NODE_BYTES - 1
            raise altered(self._backing.name, geometry.physical_data(data), f"data node {data}", cut=True)
        plain = buffers.plain[: count * NODE_BYTES]
        cipher = buffers.host[NODE_BYTES : (count + 1) * NODE_BYTES]
        bad = seal.open_nodes(cipher, buffers.tree[: count * SLOT_BYTES], plain)
        if bad >= 0:
            raise altered(self._backing.name, geometry.physical_data(first + bad), f"data node {first + bad}")
        return plain[: min(SEGMENT_DATA_BYTES, self._size - segment_offset(number))]
