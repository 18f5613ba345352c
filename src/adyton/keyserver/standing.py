"""What the audit record says of each approval: which of its revisions is the newest, and what that says.

An approval's authentication code shows that Adyton wrote its row, not that the row is the newest: whoever can write to
the database could put an older row back with its older code, and so undo a revocation. Every change of an approval has
an entry in the record, so the row must be what its newest entry says.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.errors import AuditError
from adyton.keyserver.audit import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from adyton.keyserver.audit import Entry

POLICY: Final = "policy"
"""The kind of entry that every change of an approval leaves."""


@dataclass(frozen=True, slots=True)
class Stand:
    """One revision of an approval: its number, its state, and what it says."""

    revision: int
    state: str
    document_sha256: bytes

    @classmethod
    def of(cls, revision: int, state: str, document: str) -> Stand:
        """That of a row, or of what is about to become one."""
        return cls(revision, state, hashlib.sha256(document.encode()).digest())

    def __str__(self) -> str:
        return f"revision {self.revision}, {self.state}, SHA-256 of its text {self.document_sha256.hex()[:16]}…"


class Standing:
    """The revisions of every approval by the record, read on from where it was left; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_to = 0
        self._found: dict[str, list[tuple[int, Stand]]] = {}

    def read_on(self, to: int, load: Callable[[int, int], Iterable[Entry]]) -> None:
        """Read the entries up to number `to`; `load` gives those after one number and up to another."""
        with self._lock:
            if to > self._read_to:
                for entry in load(self._read_to, to):
                    self._note(entry)
                self._read_to = to

    def noting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same entries, each noted once whoever takes them asks for the next: that is, has verified it."""
        for entry in entries:
            yield entry
            if entry.kind == POLICY:
                self._note(entry)
            self._read_to = entry.seq

    def _note(self, entry: Entry) -> None:
        try:
            body = json.loads(entry.body)
            stand = Stand.of(body["revision"], body["state"], canonical(body["policy"]))
            self._found.setdefault(body["approval"], []).append((entry.seq, stand))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AuditError(
                f"audit entry {entry.seq} is no change of an approval",
                check=f"body of audit entry {entry.seq}",
                expected="approval, revision, state, policy",
                seen=entry.body[:80],
                remedy="the record was altered: adyton audit verify, and restore a backup",
            ) from None

    def newest(self, approval: str, to: int) -> Stand | None:
        """How an approval stood once entry `to` was written; None where the record does not know it."""
        found = self._found.get(approval, ())
        return next((stand for seq, stand in reversed(found) if seq <= to), None)

    def approvals(self) -> set[str]:
        """The ids of all approvals that the record knows."""
        return set(self._found)
