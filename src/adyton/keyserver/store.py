"""The store of keys, policies, grants and the audit record: SQLite in the owner's home, or PostgreSQL.

This module alone decides when a store is made, opened, brought to this version's schema, and committed: a change is
durable before anything that it allows leaves this process.
"""

from __future__ import annotations

import secrets
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from adyton.errors import AuditError, StoreError, VersionMismatch
from adyton.keyserver import schema
from adyton.keyserver.audit import STORE_ID_BYTES, Checkpoint, Head, start_hash, verify_chain
from adyton.keyserver.change import Cache, Transaction
from adyton.keyserver.clock import now_ms
from adyton.keyserver.database import AS_OF_ONE_MOMENT, make_engine, store_error
from adyton.keyserver.keyring import Keyring
from adyton.keyserver.standing import Standing
from adyton.keyserver.view import Reader
from adyton.keyserver.wrapping import WrappingKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adyton.keyserver.keyring import Masters


def _known_version(written: bytes) -> int:
    version = int(written)
    if version > schema.SCHEMA_VERSION:
        raise VersionMismatch(
            f"this store was made by a newer Adyton (schema {version})",
            check="schema of the store",
            expected=f"at most {schema.SCHEMA_VERSION}",
            seen=version,
            remedy="upgrade Adyton on this machine",
        )
    return version


@contextmanager
def _disposed_if_it_fails(engine: sa.Engine) -> Iterator[sa.Engine]:
    try:
        yield engine
    except BaseException:
        engine.dispose()
        raise


class Store:
    """An open store: `read()` and `write()` are its two doors."""

    def __init__(self, engine: sa.Engine, master: WrappingKey, reload: Masters | None = None) -> None:
        self.engine = engine
        self._cache = Cache()
        self._standing = Standing()
        facts = self._facts()
        version = _known_version(facts["schema"])
        self.id = facts["id"]
        self.keyring = Keyring.open(self.id, master, facts["state"], reload)
        if version < schema.SCHEMA_VERSION:
            self._migrate()

    @classmethod
    def create(cls, url: str, master: WrappingKey, *, actor: str) -> Store:
        """Make the tables of a new store; raises StoreError where there is one already."""
        with _disposed_if_it_fails(make_engine(url)) as engine:
            cls._make_tables(engine, master)
            store = cls(engine, master)
            with store.write() as change:
                body = {"actor": actor[:128], "schema": schema.SCHEMA_VERSION}
                change.record("store-created", "", body, now_ms())
            return store

    @staticmethod
    def _make_tables(engine: sa.Engine, master: WrappingKey) -> None:
        store_id = secrets.token_bytes(STORE_ID_BYTES)
        keyring = Keyring.generate(store_id, master)
        data_key = WrappingKey.generate()
        try:
            with engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
                if sa.inspect(connection).has_table("meta"):
                    raise StoreError(
                        "there is a store in this database already",
                        check="database of the new store",
                        expected="no store in it",
                        seen="one",
                        remedy="use it as it is, or name another home",
                    )
                schema.metadata.create_all(connection)
                connection.execute(
                    sa.insert(schema.meta),
                    [
                        {"name": "schema", "value": str(schema.SCHEMA_VERSION).encode()},
                        {"name": "id", "value": store_id},
                        {"name": "state", "value": keyring.state_under(master)},
                    ],
                )
                connection.execute(
                    sa.insert(schema.chain).values(id=1, seq=0, hash=start_hash(store_id), policy_revision=0)
                )
                connection.execute(
                    sa.insert(schema.data_keys).values(
                        version=1,
                        wrapped=master.wrap(data_key.reveal(), keyring.data_key_binding(1)),
                        created_at=now_ms(),
                    )
                )
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error

    @classmethod
    def open(cls, url: str, master: WrappingKey, reload: Masters | None = None) -> Store:
        """Open an existing store; raises StoreError where there is none, or the master key is another's.

        `reload` gives the master keys to try where this one does not open something, as after a rotation elsewhere.
        """
        with _disposed_if_it_fails(make_engine(url)) as engine:
            return cls(engine, master, reload)

    def _facts(self) -> dict[str, bytes]:
        try:
            with self.engine.connect() as connection:
                if not sa.inspect(connection).has_table("meta"):
                    raise StoreError(
                        "there is no store in this database",
                        check="store",
                        expected="the tables of a store",
                        seen="none",
                        remedy="make one with adyton init, or bring one back with adyton restore",
                    )
                rows = connection.execute(sa.select(schema.meta)).all()
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error
        facts = {row.name: bytes(row.value) for row in rows}
        if not {"schema", "id", "state"} <= set(facts):
            raise StoreError(
                "the store is incomplete",
                check="facts of the store",
                expected="schema, id, state",
                seen=", ".join(sorted(facts)) or "nothing",
                remedy="restore a backup (adyton restore)",
            )
        return facts

    def _migrate(self) -> None:
        with self.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
            stands = sa.select(schema.meta.c.value).where(schema.meta.c.name == "schema").with_for_update()
            version = _known_version(bytes(connection.execute(stands).scalar_one()))  # another may have migrated it
            for step in range(version + 1, schema.SCHEMA_VERSION + 1):
                schema.MIGRATIONS[step](connection)
            connection.execute(
                sa.update(schema.meta)
                .where(schema.meta.c.name == "schema")
                .values(value=str(schema.SCHEMA_VERSION).encode())
            )

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A view of the store as of one moment, whoever writes meanwhile."""
        options = AS_OF_ONE_MOMENT[self.engine.dialect.name]
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield Reader(connection, self.keyring, self._standing)
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A change of the store: durable when the block ends, undone when it raises."""
        try:
            with self.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
                transaction = Transaction(connection, self.keyring, self._standing, self._cache)
                yield transaction
                transaction.finish()
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error
        transaction.committed()

    def verify_audit(self, checkpoints: Sequence[Checkpoint] = ()) -> Head:
        """Verify the whole audit record, and that its head and all approvals agree with it; raises AuditError.

        From then on nothing that was verified is read again, and a store without it is refused.
        """
        with self.read() as view:
            claimed, recorded = view.head(), Standing()
            with closing(view.entries()) as entries:
                head = verify_chain(self.id, recorded.noting(entries), checkpoints)
            if head != claimed:
                raise AuditError(
                    "the audit record does not end where the store says it ends",
                    check="head of the audit record",
                    expected=f"entry {claimed.seq}",
                    seen=f"entry {head.seq}",
                    remedy="entries were removed: restore a backup, and compare with the checkpoints that clients hold",
                )
            view.hold_approvals_against(recorded, head.seq)
        self._standing = recorded
        self._cache.note_head(head)
        return head

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
