"""Rows that a transaction writes together at its end: one statement for each table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from adyton.keystore import schema

if TYPE_CHECKING:
    from collections.abc import Mapping

AUDIT: Final = "audit"
NONCES: Final = "nonces"
ARTIFACTS: Final = "artifacts"
RELEASED: Final = "released"
"""Purposes of rows. RELEASED rows are artifacts too: evidence of releases, which stays."""


def _inserts(artifact: sqlite.Insert | postgresql.Insert) -> Mapping[str, sa.Insert]:
    kind = {"kind": artifact.excluded.kind}
    return {
        AUDIT: sa.insert(schema.audit),
        NONCES: sa.insert(schema.nonces),
        ARTIFACTS: artifact.on_conflict_do_nothing(),
        RELEASED: artifact.on_conflict_do_update(index_elements=[schema.artifacts.c.sha256], set_=kind),
    }


_INSERTS: Final[Mapping[str, Mapping[str, sa.Insert]]] = {
    "sqlite": _inserts(sqlite.insert(schema.artifacts)),
    "postgresql": _inserts(postgresql.insert(schema.artifacts)),
}
"""By dialect, then by purpose.

A stored artifact is not overwritten. If a release names it, its kind changes.
"""


class PendingRows:
    """Rows that are still to be written, in the order in which they were added."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Write this row later."""
        self._rows.setdefault(table, []).append(row)

    def write(self, *only: str) -> None:
        """Write pending rows: all of them, or those of some purposes."""
        for table in [name for name in self._rows if not only or name in only]:
            rows = self._rows.pop(table)
            self._connection.execute(_INSERTS[self._connection.dialect.name][table], rows)
