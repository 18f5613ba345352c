"""How the committed state of a file on the host is replaced by the next one.

This module alone decides which nodes are written, and when. A flush is one commit:

1.  what the nodes to be overwritten hold goes to the recovery log                              [sync]
2.  node 0 is written again with the pending flag set (version 2)                               [sync]
3.  dirty data nodes, then the tree nodes above them, children first, each under a new key      [sync]
4.  node 0 under a new nonce: this is the commit                                  [sync if asked for]
5.  what the file no longer reaches is cut off

The syncs make the order hold over a power cut. They are left out for a file that was never synced and so has nothing
to lose, and with `power_safe=False`. The order then holds when the process is killed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from adyton.errors import Error, IntegrityError, StorageFailed
from adyton.pfile import committed_state, geometry, recovery, seal
from adyton.pfile.backing import Backing, read_at
from adyton.pfile.layout import DATA_SLOTS, FLAGS_AT, INLINE_BYTES, NODE_BYTES, PENDING, SLOT_BYTES, Envelope, Metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from adyton.pfile.nodes import NodeReader
    from adyton.values import Key128

_Undoing = Literal["nothing", "replay", "cut", "seal again"]

Announce: TypeAlias = "Callable[[bytes, bytes, int], None]"
"""Hears of a commit before it is made: sealed path, root (48 bytes) and size. If it raises, none is made."""


@dataclass(frozen=True, slots=True)
class Change:
    """The next state, in memory."""

    path: bytes
    size: int
    kept_size: int
    """The least size since the last commit: what lies below it is on the host."""
    inline: bytes
    dirty: Mapping[int, bytearray]
    """Plaintext of data nodes by number."""


class CommittedFile:
    """The host's file as this handle last committed it. Not locked: its user is."""

    def __init__(
        self,
        backing: Backing,
        key: Key128,
        *,
        version: int,
        envelope: Envelope | None,
        host_nodes: int,
        use_log: bool,
        power_safe: bool,
    ) -> None:
        """`host_nodes` is what the host holds now; `envelope` is None where nothing was committed yet."""
        self._backing = backing
        self._key = key
        self._version = version
        self._envelope = envelope
        self._host_nodes = host_nodes
        self._use_log = use_log
        self._power_safe = power_safe
        self._durable = host_nodes > 0  # the host holds something that a power cut must not take
        self._unsynced = False  # something was written since the last sync
        self._undoing: _Undoing = "nothing"  # what a commit that failed left to be done
        self._torn = False  # a commit failed half-way and cannot be undone: the next one mends it
        self._log: Backing | None = None
        self.announce: Announce | None = None

    @property
    def root(self) -> bytes:
        """48 bytes that identify the committed state. Every commit changes them."""
        if self._envelope is None:
            raise StorageFailed(f"{self._backing.name} was never flushed", check="root of the file")
        return self._envelope.nonce + self._envelope.tag

    def commit(self, change: Change, nodes: NodeReader, *, log_anyway: bool = False) -> None:
        """Steps 1 to 4. Where it fails the old state is put back, now or by `finish_undoing`."""
        self._check_host()
        data = sorted(change.dirty)
        numbers = _with_ancestors({number // DATA_SLOTS for number in data} | nodes.pinned.keys())
        touched = [*map(geometry.physical_data, data), *map(geometry.physical_tree, numbers)]
        overwritten = [place for place in touched if place < self._host_nodes]
        careful = self._is_careful
        trees = {number: _tree_to_change(number, change, nodes) for number in numbers}

        undoing: _Undoing = "seal again" if overwritten or self._envelope is None else "cut"
        if self._use_log and self._host_nodes > 0 and (overwritten or careful or log_anyway):
            undoing = self._begin(overwritten, careful=careful, flag=bool(touched), otherwise=undoing)
        self._undoing = undoing
        try:
            self._seal_data(change, data, trees)
            root_slot = nodes.root_slot if change.size > INLINE_BYTES else bytes(SLOT_BYTES)
            root_slot = self._seal_trees(numbers, trees, change.size, root_slot)
            if careful and touched:
                self._backing.sync()
            envelope = self._seal_node_0(change, root_slot)
        except BaseException:
            if undoing == "seal again":
                nodes.pin(trees)
                self._torn = True
            with contextlib.suppress(Error):  # then the next call tries again
                self.finish_undoing()
            raise
        self._undoing = "nothing"
        self._torn = False
        self._unsynced = True
        self._envelope = envelope
        self._host_nodes = geometry.host_nodes(change.size)
        nodes.committed(root_slot, trees)

    def cut_off(self, *, sync: bool) -> None:
        """Step 5, where the file became shorter."""
        if self._backing.size() > NODE_BYTES * self._host_nodes:
            if self._is_careful or sync:
                self._sync()
            with contextlib.suppress(StorageFailed):  # the file is whole with some nodes too many
                self._backing.truncate(NODE_BYTES * self._host_nodes)

    def make_durable(self) -> None:
        """Return once the committed state survives a power cut."""
        if self._unsynced or not self._durable:
            self._sync()
            self._durable = True

    def finish_undoing(self) -> None:
        """Put back on the host what a failed commit overwrote. What was to be flushed stays dirty."""
        if self._undoing == "replay" and self._log is not None:
            undo = recovery.parse_log(self._log)
            if undo is None:
                raise StorageFailed(
                    f"the recovery log of {self._backing.name} was altered",
                    check="recovery log",
                    expected="the records that this handle wrote",
                    seen="others",
                    remedy="somebody else wrote to it; get the file again from its owner",
                )
            recovery.replay(self._log, undo, self._backing, nodes=self._host_nodes)
        elif self._undoing == "cut" and self._envelope is not None:
            self._backing.write_at(0, self._envelope.to_bytes())
            self._backing.truncate(NODE_BYTES * self._host_nodes)
        self._undoing = "nothing"

    def moved_to(self, place: Path) -> None:
        """The host file now lies at `place`. Its recovery log at the old place is removed."""
        self._close_log()
        self._backing.moved_to(place, sync=self._power_safe)

    def remove_log(self) -> None:
        """Nothing will be committed any more: the recovery log is not needed."""
        if self._log is not None:
            if self._is_careful and self._unsynced:
                self._sync()
            self._close_log()
            self._backing.remove_log()

    def close(self) -> None:
        """Close the backing, and a recovery log that is needed still."""
        self._close_log()
        self._backing.close()

    # ---------------------------------------------------------------- steps

    @property
    def _is_careful(self) -> bool:
        return self._power_safe and self._durable

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _sync(self) -> None:
        self._backing.sync()
        self._unsynced = False

    def _check_host(self) -> None:
        """Refuse to write into a host file that is no longer the one this handle knows."""
        if self._envelope is None or self._torn:
            return
        seen = committed_state.read_envelope(self._backing)
        if (seen.nonce, seen.tag, seen.version) != (self._envelope.nonce, self._envelope.tag, self._envelope.version):
            raise IntegrityError(
                f"{self._backing.name} changed on the host while it was open",
                check="node 0 on the host",
                expected=self.root.hex(),
                seen=(seen.nonce + seen.tag).hex(),
                remedy="another writer used it, or another version was put in its place; open it again",
            )

    def _begin(self, overwritten: list[int], *, careful: bool, flag: bool, otherwise: _Undoing) -> _Undoing:
        """Steps 1 and 2: the log and the pending flag; how to undo, which is `otherwise` where no log is possible."""
        if careful and self._unsynced:
            self._sync()  # the log still leads back from what was not synced
        if self._log is None:
            self._log = self._backing.open_log(create=True)
        if self._log is None:
            return otherwise
        recovery.write_log(self._log, self._backing, overwritten)
        if careful:
            self._log.sync()
        if flag and self._envelope is not None and self._version != 1:
            self._undoing = "replay"
            node_0 = bytearray(read_at(self._backing, 0, NODE_BYTES))
            node_0[FLAGS_AT] |= PENDING
            self._backing.write_at(0, node_0)
            if careful:
                self._backing.sync()
        return "replay"

    def _seal_data(self, change: Change, data: list[int], trees: dict[int, bytearray]) -> None:
        """Step 3: seal and write the dirty data nodes, in runs; their slots go to `trees`."""
        at = 0
        while at < len(data):
            first = data[at]
            room = min(DATA_SLOTS - first % DATA_SLOTS, len(data) - at)
            count = 1
            while count < room and data[at + count] == first + count:
                count += 1
            plain = b"".join([change.dirty[number] for number in data[at : at + count]])
            cipher = bytearray(len(plain))
            slots = bytearray(SLOT_BYTES * count)
            seal.seal_nodes(plain, cipher, slots)
            self._backing.write_at(geometry.physical_data(first) * NODE_BYTES, cipher)
            slot_at = geometry.data_slot_at(first)
            trees[first // DATA_SLOTS][slot_at : slot_at + len(slots)] = slots
            at += count

    def _seal_trees(self, numbers: list[int], trees: dict[int, bytearray], size: int, root_slot: bytes) -> bytes:
        """Step 3: seal and write tree nodes, children first; the slot of the root, `root_slot` if it did not change."""
        for number in reversed(numbers):
            plain = trees[number]
            geometry.zero_dangling(plain, number, size)
            cipher = bytearray(NODE_BYTES)
            slot = bytearray(SLOT_BYTES)
            seal.seal_nodes(plain, cipher, slot)
            self._backing.write_at(geometry.physical_tree(number) * NODE_BYTES, cipher)
            if number == 0:
                root_slot = bytes(slot)
            else:
                at = geometry.child_slot_at(number)
                trees[geometry.parent(number)][at : at + SLOT_BYTES] = slot
        return root_slot

    def _seal_node_0(self, change: Change, root_slot: bytes) -> Envelope:
        """Step 4."""
        metadata = Metadata(change.path, change.size, root_slot, change.inline)
        envelope = seal.seal_metadata(self._key, self._version, metadata.to_bytes())
        if self.announce is not None:
            self.announce(change.path, envelope.nonce + envelope.tag, change.size)
        self._backing.write_at(0, envelope.to_bytes())
        return envelope


def _tree_to_change(number: int, change: Change, nodes: NodeReader) -> bytearray:
    if number < geometry.tree_nodes(change.kept_size):
        return bytearray(nodes.tree(number))
    return bytearray(NODE_BYTES)


def _with_ancestors(numbers: set[int]) -> list[int]:
    found = set(numbers)
    for number in numbers:
        up = number
        while up:
            up = geometry.parent(up)
            if up in found:
                break
            found.add(up)
    return sorted(found)
