"""The tables of the store, and how an older store becomes a newer one.

Times are whole milliseconds since 1970 UTC; digests and wrapped values are raw bytes; documents are JSON text.
Every change of these tables raises `SCHEMA_VERSION` and adds a step to `MIGRATIONS`; a store that is newer than the
program is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, ForeignKey, Index, MetaData, Table

from adyton.keystore.columns import LongText, Number, Octets, SmallNumber, Words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

SCHEMA_VERSION: Final = 3
SIGNED_RECORD: Final = 3
"""From this version on the head of the audit record carries a code of the store's own."""

metadata: Final = MetaData()

meta: Final = Table(
    "meta",
    metadata,
    Column("name", Words(64), primary_key=True),
    Column("value", Octets, nullable=False),
)
"""Facts about the store itself: `id`, `schema` (its version), `state` (the state key under the master key), and `facts`
(what the record says up to some entry, authenticated: who opens the store reads on from there)."""

chain: Final = Table(
    "chain",
    metadata,
    Column("id", SmallNumber, primary_key=True),
    Column("seq", Number, nullable=False),
    Column("hash", Octets(32), nullable=False),
    Column("mac", Octets(32), nullable=False),
)
"""One row: the head of the audit chain, authenticated; who writes holds its lock."""

data_keys: Final = Table(
    "data_keys",
    metadata,
    Column("version", SmallNumber, primary_key=True),
    Column("wrapped", Octets, nullable=False),
    Column("created_at", Number, nullable=False),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("name", Words(64), primary_key=True),
    Column("version", SmallNumber, primary_key=True),
    Column("kind", Words(16), nullable=False),
    Column("data_key", SmallNumber, ForeignKey("data_keys.version"), nullable=False),
    Column("wrapped", Octets, nullable=False),
    Column("created_at", Number, nullable=False),
)

approvals: Final = Table(
    "approvals",
    metadata,
    Column("id", Words(32), primary_key=True),
    Column("key", Words(64), nullable=False, index=True),
    Column("state", Words(16), nullable=False),
    Column("revision", SmallNumber, nullable=False),
    Column("document", LongText, nullable=False),
    Column("changed_at", Number, nullable=False),
    Column("mac", Octets(32), nullable=False),
)

manifests: Final = Table(
    "manifests",
    metadata,
    Column("measurement", Octets(48), primary_key=True),
    Column("manifest", Octets, nullable=False),
    Column("runtime_parts", LongText, nullable=False),
    Column("added_at", Number, nullable=False),
)
"""What stands behind a measurement, so that a refusal can say what changed."""

nonces: Final = Table(
    "nonces",
    metadata,
    Column("nonce", Octets(32), primary_key=True),
    Column("expires_at", Number, nullable=False, index=True),
)
"""Challenges that were answered, until they expire on their own."""

audit: Final = Table(
    "audit",
    metadata,
    Column("seq", Number().with_variant(SmallNumber(), "sqlite"), primary_key=True, autoincrement=False),
    Column("at", Number, nullable=False),
    Column("kind", Words(32), nullable=False),
    Column("subject", Words(64), nullable=False, index=True),
    Column("body", LongText, nullable=False),
    Column("hash", Octets(32), nullable=False),
    Index("audit_kind", "kind", "seq"),
)
"""The audit record; `subject` repeats the id in the body by which an entry is looked up (it is not hashed).

Approvals' newest revisions, versions of keys, runs and leases, and who waits are read from here: `keystore.facts`."""

artifacts: Final = Table(
    "artifacts",
    metadata,
    Column("sha256", Octets(32), primary_key=True),
    Column("kind", Words(32), nullable=False),
    Column("data", Octets, nullable=False),
    Column("at", Number, nullable=False),
)
"""Evidence and collateral of past decisions, so that they can be verified again; named by the audit entries."""


def _read_history_from_the_record(connection: Connection) -> None:
    """The history of approvals stands in the audit record, which nobody can change unnoticed."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS history")


def _sign_the_record(connection: Connection) -> None:
    """The head of the record carries a code (`Store` fills it in); runs, grants and who waits are read from it."""
    for table in ("releases", "grants", "candidates"):
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    connection.exec_driver_sql("ALTER TABLE chain DROP COLUMN policy_revision")
    kind = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    connection.exec_driver_sql(f"ALTER TABLE chain ADD COLUMN mac {kind} NOT NULL DEFAULT ''")


MIGRATIONS: Final[Mapping[int, Callable[[Connection], None]]] = {
    2: _read_history_from_the_record,
    3: _sign_the_record,
}
"""Schema version -> the step that makes it from the one before, run in one transaction with all others.

Before the first that is below `SIGNED_RECORD` the whole record is verified, since from then on it is believed."""
