"""The history of a pinned folder: its last commit, what is in it now, and what a crash since then could have left.

Between two commits the host's files change one after the other, and nothing says yet that they are durable. That time
is the *window*. For each path that was touched in it, this module remembers every state since the last commit. It is
pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adyton.roots.merkle import MerkleTree
from adyton.roots.records import (
    MAX_COMMITS,
    Change,
    Commit,
    Confirmed,
    Record,
    Snapshot,
    Step,
    encode,
    malformed,
    parse_record,
)
from adyton.roots.root import OWNER, Root
from adyton.roots.sealing import first_head, next_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.roots.entry import Entry


@dataclass(slots=True)
class Window:
    """What was touched since the last commit."""

    states: dict[str, list[Entry | None]] = field(default_factory=dict)
    """By path, every state since the last commit, that one first. None: nothing was there."""
    names: dict[str, frozenset[tuple[str, bytes]]] = field(default_factory=dict)
    """By path, for what was there at the last commit and was moved since: every name that it had, with its root."""

    def names_of(self, path: str, now: Entry | None) -> frozenset[tuple[str, bytes]]:
        """Names and roots since the last commit of what is at a path now. None for what was made after it."""
        if path in self.names:
            return self.names[path]
        states = self.states.get(path, [now])
        return frozenset() if states[0] is None else frozenset((path, each.root) for each in states if each is not None)


class History:
    """A history, read record by record. `add` takes the records after the snapshot, in their order."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.folder = snapshot.folder
        self.root = snapshot.root
        self.confirmed = snapshot.confirmed
        self.heads: dict[int, bytes] = {**snapshot.earlier, snapshot.root.sequence: snapshot.root.head}
        """Every commit that is known: sequence number -> head."""
        self.entries: dict[str, Entry] = dict(snapshot.entries)
        self.window = Window()
        self.tree = MerkleTree(self.entries.items())
        if self.tree.digest() != snapshot.root.state:
            raise malformed("state of the snapshot", snapshot.root.state.hex(), self.tree.digest().hex())
        self.head = next_head(first_head(snapshot.folder), encode(snapshot))

    @classmethod
    def create(
        cls,
        folder: str,
        entries: Mapping[str, Entry],
        *,
        at_s: int,
        after: Root | None = None,
        earlier: Mapping[int, bytes] | None = None,
    ) -> History:
        """The history of a folder as its owner has it now: the first, or the one that goes on after a root."""
        state = MerkleTree(entries.items()).digest()
        sequence = 1 if after is None else after.sequence + 1
        record = encode(Commit(sequence, at_s, OWNER, state))
        head = next_head(first_head(folder) if after is None else after.head, record)
        root = Root(sequence, head, state, len(entries), at_s, OWNER)
        known = dict(earlier or {})
        if after is not None:
            known[after.sequence] = after.head
        return cls(Snapshot(folder, root, 0, {number: known[number] for number in sorted(known)}, entries))

    def snapshot(self) -> Snapshot:
        """The history as one record. Only right after a commit."""
        newest = sorted(sequence for sequence in self.heads if sequence != self.root.sequence)[-MAX_COMMITS:]
        earlier = {sequence: self.heads[sequence] for sequence in newest}
        return Snapshot(self.folder, self.root, self.confirmed, earlier, self.entries)

    def add(self, raw: bytes) -> None:
        """Take in one record. Raises IntegrityError where it cannot follow."""
        record = parse_record(raw)
        if isinstance(record, Snapshot):
            raise malformed("records of a history", "a snapshot at the beginning only", "another snapshot")
        self.apply(record, raw)

    def apply(self, record: Record, raw: bytes) -> None:
        """Take in a record whose bytes are `raw`."""
        head = next_head(self.head, raw)
        if isinstance(record, Change):
            self._change(record.steps)
        elif isinstance(record, Commit):
            self._commit(record, head)
        elif isinstance(record, Confirmed):
            self.confirmed = max(self.confirmed, record.sequence)
        self.head = head

    def _change(self, steps: tuple[Step, ...]) -> None:
        moved = {
            step.path: self.window.names_of(step.moved_from, self.entries.get(step.moved_from))
            for step in steps
            if step.moved_from and step.entry is not None
        }
        for step in steps:
            states = self.window.states.setdefault(step.path, [self.entries.get(step.path)])
            states.append(step.entry)
            names = moved[step.path] if step.path in moved else self.window.names.get(step.path)
            if names and step.entry is not None:
                self.window.names[step.path] = names | {(step.path, step.entry.root)}
            else:
                self.window.names.pop(step.path, None)
            if step.entry is None:
                self.entries.pop(step.path, None)
                self.tree.remove(step.path)
            else:
                self.entries[step.path] = step.entry
                self.tree.put(step.path, step.entry)

    def _commit(self, record: Commit, head: bytes) -> None:
        if record.sequence != self.root.sequence + 1:
            raise malformed("sequence number of a commit", self.root.sequence + 1, record.sequence)
        if record.state != self.tree.digest():
            raise malformed("state of a commit", self.tree.digest().hex(), record.state.hex())
        self.root = Root(record.sequence, head, record.state, len(self.entries), record.at_s, record.writer)
        self.heads[record.sequence] = head
        self.window = Window()

    @property
    def has_changed(self) -> bool:
        """Whether something was touched since the last commit."""
        return bool(self.window.states)
