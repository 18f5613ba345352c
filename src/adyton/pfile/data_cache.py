"""Plaintext of data nodes in memory: those that wait for a flush, and those used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final


class DataCache:
    """At most `max_nodes` clean nodes, and as many dirty ones as its user lets wait. Not locked: its user is."""

    def __init__(self, *, max_nodes: int) -> None:
        self.max_nodes: Final = max_nodes
        self._clean: OrderedDict[int, bytearray] = OrderedDict()
        self.dirty: dict[int, bytearray] = {}
        """By number of the data node, what waits for a flush."""

    def __bool__(self) -> bool:
        """Whether anything is cached."""
        return bool(self.dirty or self._clean)

    def __len__(self) -> int:
        """How many nodes are cached."""
        return len(self.dirty) + len(self._clean)

    @property
    def is_full(self) -> bool:
        """Whether so many nodes are dirty that they must be flushed before more is taken."""
        return len(self.dirty) >= self.max_nodes

    def get(self, number: int) -> bytearray | None:
        """The content of a node, if it is here."""
        plain = self.dirty.get(number)
        if plain is None:
            plain = self._clean.get(number)
            if plain is not None:
                self._clean.move_to_end(number)
        return plain

    def keep(self, number: int, plain: bytearray) -> None:
        """Keep a node as the host has it; the one that was not used for longest is dropped."""
        self._clean[number] = plain
        if len(self._clean) > self.max_nodes:
            self._clean.popitem(last=False)

    def replace(self, number: int, plain: bytearray) -> None:
        """This is the node's whole content now. It waits for a flush."""
        self._clean.pop(number, None)
        self.dirty[number] = plain

    def settle(self) -> None:
        """Everything was flushed."""
        self._clean.update(self.dirty)
        self.dirty = {}
        while len(self._clean) > self.max_nodes:
            self._clean.popitem(last=False)

    def forget_from(self, number: int) -> None:
        """Forget the nodes from `number` on: the file no longer has them."""
        for kept in (self.dirty, self._clean):
            for gone in [each for each in kept if each >= number]:
                del kept[gone]

    def clear(self) -> None:
        """Forget all."""
        self.dirty.clear()
        self._clean.clear()
