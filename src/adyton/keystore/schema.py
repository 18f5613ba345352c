"""The tables of the store, and the migration of older stores.

Times are whole milliseconds since 1970 UTC. Digests and wrapped values are raw bytes. Documents are JSON text.
Every change of these tables raises `SCHEMA_VERSION` and adds a step to `MIGRATIONS`. A store that is newer than the
program is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, ForeignKey, Index, MetaData, Table

from adyton.keystore.columns import LongText, Number, Octets, SmallNumber, Words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

SCHEMA_VERSION: Final = 4
SIGNED_RECORD: Final = 3
"""From this version on the head of the audit record has a MAC of the store."""

metadata: Final = MetaData()

meta: Final = Table(
    "meta",
    metadata,
    Column("name", Words(64), primary_key=True),
    Column("value", Octets, nullable=False),
)
"""Facts about the store itself.

The rows are `id`, `schema` (its version), `state` (the state key under the master key), and `facts` (authenticated
facts of the record up to some entry, where the next process goes on).
"""

chain: Final = Table(
    "chain",
    metadata,
    Column("id", SmallNumber, primary_key=True),
    Column("seq", Number, nullable=False),
    Column("hash", Octets(32), nullable=False),
    Column("mac", Octets(32), nullable=False),
)
"""One row: the authenticated head of the audit chain. A writer holds its lock."""

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
"""Manifest and runtime parts by measurement, so that a refusal can say what changed."""

nonces: Final = Table(
    "nonces",
    metadata,
    Column("nonce", Octets(32), primary_key=True),
    Column("expires_at", Number, nullable=False, index=True),
)
"""Answered challenges, until they expire."""

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
"""The audit record. `subject` repeats the id in the body, for look-ups. It is not hashed.

The facts come from here: revisions of approvals, versions of keys, runs and leases, waiting programs
(`keystore.audit_facts`).
"""

artifacts: Final = Table(
    "artifacts",
    metadata,
    Column("sha256", Octets(32), primary_key=True),
    Column("kind", Words(32), nullable=False),
    Column("data", Octets, nullable=False),
    Column("at", Number, nullable=False),
)
"""Evidence and collateral of past decisions, for later verification. Audit entries name them."""


SINCE_4: Final[tuple[Table, ...]] = ()
"""The tables that version 4 added, for what runs say after their grant."""


def _read_history_from_the_record(connection: Connection) -> None:
    """Drop the table of the approvals' history: it is in the audit record, which nobody can change unnoticed."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS history")


def _sign_the_record(connection: Connection) -> None:
    """Add the MAC of the record's head (`Store` fills it in). Drop the tables of runs, grants and candidates."""
    for table in ("releases", "grants", "candidates"):
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
    connection.exec_driver_sql("ALTER TABLE chain DROP COLUMN policy_revision")
    kind = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    connection.exec_driver_sql(f"ALTER TABLE chain ADD COLUMN mac {kind} NOT NULL DEFAULT ''")


def _keep_what_runs_say(connection: Connection) -> None:
    """Add the tables of `SINCE_4`. The record has entries of new kinds from here on: older versions do not open it."""
    metadata.create_all(connection, tables=SINCE_4)


MIGRATIONS: Final[Mapping[int, Callable[[Connection], None]]] = {
    2: _read_history_from_the_record,
    3: _sign_the_record,
    4: _keep_what_runs_say,
}
"""Schema version -> the step to it from the version before. All steps run in one transaction.

The whole record of a store below `SIGNED_RECORD` is verified first, since it is trusted afterwards.
"""
