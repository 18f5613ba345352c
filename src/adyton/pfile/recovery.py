"""The recovery log: what the nodes held before a flush overwrote them, in Gramine's form.

A log is a sequence of 4104-byte records: the place of a node (u64), then the 4096 bytes that it held.
The record of node 0 comes last.  The log is not authenticated. Whoever uses it checks every restored
node against the tree that its node 0 promises (`ProtectedFile.open` does) before anything is written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.pfile.backing import Backing, read_at
from adyton.pfile.layout import NODE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_BYTES: Final = 8 + NODE_BYTES
MAX_RECORDS: Final = 1 << 16
"""No flush, ours or Gramine's, dirties as many nodes as this: 256 MiB."""

_PLACE: Final = struct.Struct("<Q")
_RECORDS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class UndoLog:
    """A complete log: the old node 0, and where in the log each other node's old content stands."""

    node_0: bytes
    places: Mapping[int, int]


def write_log(log: Backing, backing: Backing, nodes: Iterable[int]) -> None:
    """Copy the present content of `nodes`, and of node 0 last, from `backing` into an emptied `log`."""
    log.truncate(0)
    at = 0
    batch = bytearray()
    for node in _with_node_0_last(nodes):
        content = read_at(backing, node * NODE_BYTES, NODE_BYTES)
        batch += _PLACE.pack(node) + content.ljust(NODE_BYTES, b"\0")
        if len(batch) >= _RECORDS_AT_ONCE * RECORD_BYTES:
            log.write_at(at, batch)
            at += len(batch)
            batch = bytearray()
    log.write_at(at, batch)


def _with_node_0_last(nodes: Iterable[int]) -> Iterator[int]:
    late = [1, 0]
    ordered = sorted(nodes)
    yield from (node for node in ordered if node not in late)
    if 1 in ordered:
        yield 1
    yield 0


def parse_log(log: Backing) -> UndoLog | None:
    """The log's contents by place, or None where it is empty, cut, oversized, or does not end with node 0."""
    count, rest = divmod(log.size(), RECORD_BYTES)
    if rest or not 0 < count <= MAX_RECORDS:
        return None
    places: dict[int, int] = {}
    node = -1
    for first in range(0, count, _RECORDS_AT_ONCE):
        chunk = read_at(log, first * RECORD_BYTES, min(_RECORDS_AT_ONCE, count - first) * RECORD_BYTES)
        for start in range(0, len(chunk) - RECORD_BYTES + 1, RECORD_BYTES):
            (node,) = _PLACE.unpack_from(chunk, start)
            places[node] = first * RECORD_BYTES + start + _PLACE.size
    if node != 0:
        return None
    node_0 = read_at(log, places.pop(0), NODE_BYTES)
    return UndoLog(node_0, places) if len(node_0) == NODE_BYTES else None


def replay(log: Backing, undo: UndoLog, backing: Backing, *, nodes: int) -> None:
    """Write the old content of the first `nodes` nodes back, durably, node 0 last, and cut what came after.

    It may be stopped anywhere and run again.
    """
    for node, place in undo.places.items():
        if node < nodes:
            backing.write_at(node * NODE_BYTES, read_at(log, place, NODE_BYTES))
    backing.sync()
    backing.write_at(0, undo.node_0)
    backing.sync()
    backing.truncate(nodes * NODE_BYTES)
