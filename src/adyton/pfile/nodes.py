"""Reading nodes: from the root down, each verified against the slot that its parent holds, tree nodes kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from adyton.errors import IntegrityError
from adyton.pfile import geometry, seal
from adyton.pfile.layout import DATA_SLOTS, NODE_BYTES, SLOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

    from adyton.pfile.backing import Backing


def altered(name: str, place: int, what: str, *, cut: bool = False) -> IntegrityError:
    """The refusal of one node: `place` on the host, and what it is, as `data node 7`."""
    return IntegrityError(
        f"{name}: node {place} of the host file ({what}) " + ("is missing" if cut else "does not pass its check"),
        check=f"tag of node {place}, {what}",
        expected="the tag that its parent node holds",
        seen="the end of the file" if cut else "another",
        remedy="the file was altered, or two writers used it at once; get it again from its owner",
    )


class NodeReader:
    """Opens nodes below one root slot.  Not locked: its user is."""

    def __init__(self, backing: Backing, root_slot: bytes, *, max_trees: int) -> None:
        self._backing = backing
        self._max_trees = max_trees
        self._trees: OrderedDict[int, bytearray] = OrderedDict()
        self.root_slot = root_slot
        self.pinned: dict[int, bytearray] = {}
        """Tree nodes whose newest content is not on the host, after a write that failed half-way."""

    @property
    def shared_cache(self) -> dict[int, bytearray]:
        """The verified tree nodes, by number. The C reader shares this cache: never rebind it."""
        return self._trees

    def tree(self, number: int) -> bytearray:
        """The verified plaintext of tree node `number`, which the caller must not change."""
        plain = self._trees.get(number)
        if plain is not None:
            self._trees.move_to_end(number)
            return plain
        plain = self.pinned.get(number)
        if plain is not None:
            return plain
        if number == 0:
            slot = self.root_slot
        else:
            at = geometry.child_slot_at(number)
            slot = bytes(self.tree(geometry.parent(number))[at : at + SLOT_BYTES])
        plain = bytearray(NODE_BYTES)
        place = geometry.physical_tree(number)
        got = self._backing.read_into(place * NODE_BYTES, plain)
        if got != NODE_BYTES or seal.open_nodes(plain, slot, plain) >= 0:
            raise altered(self._backing.name, place, f"tree node {number}", cut=got != NODE_BYTES)
        self.keep(number, plain)
        return plain

    def keep(self, number: int, plain: bytearray) -> None:
        """Put the present content of a tree node in the cache; the one not used for longest leaves it."""
        self._trees[number] = plain
        self._trees.move_to_end(number)
        if len(self._trees) > self._max_trees:
            self._trees.popitem(last=False)

    def committed(self, root_slot: bytes, trees: Mapping[int, bytearray]) -> None:
        """The host holds these tree nodes now, below this root."""
        self.root_slot = root_slot
        self.pinned = {}
        for number, plain in trees.items():
            self.keep(number, plain)

    def pin(self, trees: dict[int, bytearray]) -> None:
        """Hold on to tree nodes that the host does not have."""
        for number in trees:
            self._trees.pop(number, None)
        self.pinned = trees

    def forget_from(self, number: int) -> None:
        """Forget the tree nodes from `number` on: the file no longer has them."""
        for kept in (self._trees, self.pinned):
            for gone in [each for each in kept if each >= number]:
                del kept[gone]

    def slots(self, first: int, count: int) -> bytes:
        """The slots of `count` data nodes from `first`, all of one tree node."""
        number = first // DATA_SLOTS
        if number not in self._trees:
            self._backing.will_read(geometry.physical_data(first) * NODE_BYTES, count * NODE_BYTES)
        at = geometry.data_slot_at(first)
        return bytes(self.tree(number)[at : at + SLOT_BYTES * count])

    def open_run(self, first: int, slots: bytes, target: Buffer) -> None:
        """Read a run of data nodes of one tree node into `target` and open it there; a bad one wipes all of it."""
        place = geometry.physical_data(first)
        size = len(slots) // SLOT_BYTES * NODE_BYTES
        got = self._backing.read_into(place * NODE_BYTES, target)
        bad = got // NODE_BYTES
        if got == size:
            bad = seal.open_nodes(target, slots, target)
            if bad < 0:
                return
        memoryview(target)[:] = bytes(size)
        raise altered(self._backing.name, place + bad, f"data node {first + bad}", cut=got != size)

    def check(self, places: Iterable[int]) -> None:
        """Verify the nodes at these places on the host (node 0 left out), each against its parent."""
        for place in places:
            if place == 0:
                continue
            number, within = divmod(place - 1, geometry.SEGMENT_NODES)
            if within == 0:
                self.tree(number)
            else:
                data = DATA_SLOTS * number + within - 1
                self.open_run(data, self.slots(data, 1), bytearray(NODE_BYTES))
