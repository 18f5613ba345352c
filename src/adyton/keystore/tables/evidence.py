"""Evidence and collateral of past decisions, each stored once under its SHA-256, for later verification."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from adyton.errors import StoreError
from adyton.keystore import schema
from adyton.keystore.database import LOOK_FOR_WRITER
from adyton.keystore.tables.pending import ARTIFACTS, RELEASED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.keystore.tables.pending import PendingRows

ARTIFACT_KIND: Final = re.compile(r"[a-z]{1,32}")
"""The pattern of a kind of evidence. Files are named after it."""

EVIDENCE: Final = "evidence"
REFUSED: Final = "refused"
"""Kinds of artifacts: evidence of releases, and evidence of refusals, which has a size limit."""

FORGOTTEN_AT_ONCE: Final = 500


class EvidenceReader:
    """The evidence and collateral as of one moment."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def get(self, sha256: bytes) -> bytes | None:
        """Evidence or collateral of a past decision. Raises StoreError where it was changed."""
        found = self._connection.execute(
            sa.select(schema.artifacts.c.data).where(schema.artifacts.c.sha256 == sha256)
        ).scalar_one_or_none()
        return None if found is None else _hashed(sha256, bytes(found))

    def every(self) -> Iterator[tuple[str, bytes, bytes]]:
        """All evidence and collateral of past decisions, verified: (kind, SHA-256, bytes)."""
        with self._connection.execute(sa.select(schema.artifacts), execution_options={"yield_per": 100}) as rows:
            for row in rows:
                sha256 = bytes(row.sha256)
                if not ARTIFACT_KIND.fullmatch(row.kind):
                    raise StoreError(
                        f"a piece of evidence is of an unknown kind: {sha256.hex()}",
                        check="kind of evidence",
                        expected="evidence or collateral",
                        seen=repr(row.kind)[:80],
                        remedy=LOOK_FOR_WRITER,
                    )
                yield row.kind, sha256, _hashed(sha256, bytes(row.data))


class EvidenceWriter(EvidenceReader):
    """The evidence and collateral while a transaction has the record's lock."""

    def __init__(self, connection: sa.Connection, pending: PendingRows) -> None:
        super().__init__(connection)
        self._pending = pending
        self._kept: set[bytes] = set()
        self.known: set[bytes] = set()
        """SHA-256 of artifacts that this process knows to be stored."""

    def keep(self, kind: str, data: bytes, at_ms: int) -> bytes:
        """Store evidence or collateral once, under its SHA-256. Returns the SHA-256."""
        sha256 = hashlib.sha256(data).digest()
        if sha256 not in self._kept and sha256 not in self.known:
            self._pending.add(ARTIFACTS, {"sha256": sha256, "kind": kind, "data": data, "at": at_ms})
            self._kept.add(sha256)
        return sha256

    def keep_released(self, data: bytes, at_ms: int) -> bytes:
        """Store the evidence of a release, also where a refusal stored it before. Returns its SHA-256."""
        sha256 = hashlib.sha256(data).digest()
        self._pending.add(RELEASED, {"sha256": sha256, "kind": EVIDENCE, "data": data, "at": at_ms})
        self._kept.add(sha256)
        return sha256

    def forget_refused(self, most_bytes: int) -> tuple[int, int, int] | None:
        """Remove the oldest evidence of refused requests, down to three quarters of `most_bytes`.

        Returns the time (ms) before which all was removed, the number removed, and their bytes. None where there is
        room.
        """
        self._pending.write(ARTIFACTS)
        self._pending.write(RELEASED)
        table = schema.artifacts
        total = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(table.c.data)), 0)).where(table.c.kind == REFUSED)
        excess = int(self._connection.execute(total).scalar_one()) - most_bytes
        if excess <= 0:
            return None
        excess += most_bytes // 4
        by_age = sa.select(table.c.at, sa.func.length(table.c.data)).where(table.c.kind == REFUSED).order_by(table.c.at)
        before_ms = count = gone_bytes = 0
        for at, size_bytes in self._connection.execute(by_age).all():
            if at >= before_ms and excess <= gone_bytes:
                break
            before_ms, count, gone_bytes = at + 1, count + 1, gone_bytes + int(size_bytes)
        self._connection.execute(sa.delete(table).where(table.c.kind == REFUSED, table.c.at < before_ms))
        return before_ms, count, gone_bytes

    def forget(self, before_ms: int, needed: set[bytes]) -> tuple[int, int]:
        """Remove artifacts stored before a time, except `needed`. Returns their number and bytes."""
        self._pending.write(ARTIFACTS)
        self._pending.write(RELEASED)
        table = schema.artifacts
        query = sa.select(table.c.sha256, sa.func.length(table.c.data)).where(table.c.at < before_ms)
        sizes = {bytes(row[0]): int(row[1] or 0) for row in self._connection.execute(query)}
        going = [sha256 for sha256 in sizes if sha256 not in needed]
        for start in range(0, len(going), FORGOTTEN_AT_ONCE):
            piece = going[start : start + FORGOTTEN_AT_ONCE]
            self._connection.execute(sa.delete(table).where(table.c.sha256.in_(piece)))
        return len(going), sum(sizes[sha256] for sha256 in going)

    def committed(self) -> None:
        """Note for later transactions what this one stored. Called once, after the commit."""
        self.known |= self._kept


def _hashed(sha256: bytes, data: bytes) -> bytes:
    """The evidence or collateral, once its hash is checked."""
    seen = hashlib.sha256(data).digest()
    if seen != sha256:
        raise StoreError(
            "stored evidence was changed after its decision",
            check="SHA-256 of kept evidence",
            expected=sha256.hex(),
            seen=seen.hex(),
            remedy="something other than Adyton wrote to the database: restore a backup (adyton restore)",
        )
    return data
