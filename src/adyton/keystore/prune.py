"""Remove evidence and collateral of old decisions. The audit record itself stays.

Evidence is stored once under its hash, and collateral may serve decisions for months. So everything that an entry after
the chosen date names is kept, whatever its age.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.keystore.audit_facts import DENIAL, PRUNED
from adyton.keystore.clock import now_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.keystore.audit import Entry
    from adyton.keystore.reader import Reader
    from adyton.keystore.store import Store
    from adyton.keystore.transaction import Transaction

COLLATERAL: Final = "collateral"
NAMES: Final = ("evidence", "event_log", "devices", COLLATERAL)
"""The members of an entry that name its stored evidence and collateral."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of a pruning."""

    count: int
    size_bytes: int


def named(entry: Entry) -> dict[str, bytes]:
    """The SHA-256 of an entry's stored evidence and collateral, by name."""
    body = json.loads(entry.body)
    found = {name: body.get(name) for name in NAMES}
    return {name: bytes.fromhex(value) for name, value in found.items() if isinstance(value, str)}


def prune(store: Store, before_ms: int, *, actor: str) -> Pruned:
    """Remove evidence and collateral that only entries older than `before_ms` name, and record the pruning."""
    with store.read() as reader:  # the long part, while others write
        seen_to = reader.head().seq
        needed = _named_by(reader.entries(since_ms=before_ms))
    with store.write() as transaction:
        needed |= _named_by(transaction.entries(after=seen_to))
        count, size_bytes = transaction.forget_artifacts(before_ms, needed)
        body = {"before_ms": before_ms, "count": count, "size_bytes": size_bytes, "actor": actor[:128]}
        transaction.record(PRUNED, "", body, now_ms())
    return Pruned(count, size_bytes)


def prune_refused(transaction: Transaction, most_bytes: int, at_ms: int) -> None:
    """Keep the evidence of refusals below a size, and record the removal.

    The oldest goes first, that of releases stays.
    """
    found = transaction.forget_refused(most_bytes)
    if found is not None:
        before_ms, count, size_bytes = found
        body = {"before_ms": before_ms, "of": DENIAL, "count": count, "size_bytes": size_bytes, "actor": "adyton serve"}
        transaction.record(PRUNED, "", body, at_ms)


def _named_by(entries: Iterable[Entry]) -> set[bytes]:
    return {sha256 for entry in entries for sha256 in named(entry).values()}


def missing(reader: Reader, entry: Entry) -> dict[str, str]:
    """The evidence and collateral of an entry that is missing now: name -> reason."""
    from adyton.keystore.clock import moment

    found: dict[str, str] = {}
    for name, sha256 in named(entry).items():
        if reader.artifact(sha256) is not None:
            continue
        pruned = [item for item in reader.entries(kind=PRUNED) if _covers(json.loads(item.body), entry, name)]
        found[name] = (
            f"pruned on {moment(pruned[0].at_ms):%Y-%m-%d} (entry {pruned[0].seq})"
            if pruned
            else "missing, and the record does not say that it was pruned: something else removed it"
        )
    return found


def _covers(pruning: dict[str, Any], entry: Entry, name: str) -> bool:
    """Whether a recorded pruning removed this part of an entry. A pruning of refusals removes nothing of a release."""
    of = pruning.get("of")
    return bool(pruning["before_ms"] > entry.at_ms and (of is None or (of == entry.kind and name != COLLATERAL)))
