"""The database writer: reads and writes every table over a connection of his own, and makes triggers; has no key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pytest
import sqlalchemy as sa

from adyton.errors import AuditError, Denied, Error, StoreError, Unavailable
from adyton.keystore import schema
from adyton.keystore.approval import REVOKED
from adyton.keystore.store import Store
from adyton.manifest.signed import SignedManifest
from adyton.release.client import obtain_keys
from adyton.workflow.owner import owner_store
from tests.support.owner_world import Running, World

Rows = dict[str, list[dict[str, Any]]]
REFUSED = (StoreError, AuditError)


class Writer:
    """One connection to the database that Adyton knows nothing of."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def drop_all(self) -> None:
        """Leave the database empty, triggers and all."""
        if self._engine.dialect.name == "postgresql":
            self.sql("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

    def run(self, *statements: sa.Executable) -> None:
        """Execute statements in one transaction."""
        with self._engine.connect() as connection, connection.begin():
            for statement in statements:
                connection.execute(statement)

    def sql(self, *statements: str) -> None:
        """The same, as text."""
        with self._engine.connect() as connection, connection.begin():
            for statement in statements:
                connection.execute(sa.text(statement.replace(":", "\\:")))

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        """All rows of a table."""
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(table)).mappings()]

    def copy(self) -> Rows:
        """Everything that is in the database."""
        return {table.name: self.rows(table) for table in schema.metadata.sorted_tables}

    def put_back(self, copy: Mapping[str, Sequence[Mapping[str, Any]]], *names: str) -> None:
        """Make tables (all, where none is named) what they were."""
        tables = [table for table in schema.metadata.sorted_tables if not names or table.name in names]
        with self._engine.connect() as connection, connection.begin():
            for table in reversed(tables):
                connection.execute(sa.delete(table))
            for table in tables:
                if copy[table.name]:
                    connection.execute(sa.insert(table), [dict(row) for row in copy[table.name]])

    def trigger(self, name: str, event: str, table: str, when: str, *, ignore: bool = False, then: str = "") -> None:
        """Have the database do something of its own: leave a row's change out, or a statement after it."""
        time = "BEFORE" if ignore else "AFTER"
        if self._engine.dialect.name == "sqlite":
            action = "SELECT RAISE(IGNORE)" if ignore else then
            self.sql(f"CREATE TRIGGER {name} {time} {event} ON {table} WHEN {when} BEGIN {action}; END")
            return
        body = "RETURN NULL" if ignore else f"{then}; RETURN NULL"
        self.sql(
            f"CREATE FUNCTION {name}() RETURNS trigger AS $$ BEGIN {body}; END $$ LANGUAGE plpgsql",
            f"CREATE TRIGGER {name} {time} {event} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}()",
        )


def release(world: World, server: Running, signed: SignedManifest) -> None:
    """Ask for the key as an approved program does."""
    obtain_keys(signed, world.enclave(signed), {"": server.adyton})


def revoke(world: World, approval: str) -> None:
    """What `adyton revoke` does, in a store of its own, as another process has it."""
    with owner_store(world.home.path) as (_, store), store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)


@contextmanager
def opened(world: World) -> Iterator[Store]:
    """The store as a process that starts now opens it."""
    store = world.home.open_store()
    try:
        yield store
    finally:
        store.close()


def releases(world: World) -> int:
    """How many releases somebody who asks the database for them is told of."""
    with Writer(world.home.store_url()) as writer:
        return sum(row["kind"] == "release" for row in writer.rows(schema.audit))


@contextmanager
def denied(world: World, why: str) -> Iterator[None]:
    """What is asked within is refused, and the newest refusal in the database says why, whatever became of the rest."""
    with pytest.raises(Denied):
        yield
    table = schema.audit.c
    newest = sa.select(table.body).where(table.kind == "denial").order_by(table.seq.desc()).limit(1)
    with world.store.engine.connect() as connection:
        assert why in json.loads(connection.execute(newest).scalar_one())["reason"]["message"]


def releases_nothing(world: World, server: Running, signed: SignedManifest) -> None:
    """The key server refuses as one that cannot check, and says no more to the far side."""
    before = releases(world)
    with pytest.raises(Unavailable, match="could not check"):
        release(world, server, signed)
    assert releases(world) == before


def is_named(work: Callable[[], object], *words: str) -> None:
    """It is refused, with a check, and names this."""
    with pytest.raises(REFUSED) as caught:
        work()
    error: Error = caught.value
    assert error.check
    assert error.remedy
    told = f"{error.message} {error.check} {error.expected} {error.seen}"
    for word in words:
        assert word in told, told


def list_approvals(store: Store) -> None:
    """What `adyton policy show` and the dashboard's list read."""
    with store.read() as view:
        view.approvals()


def list_keys(store: Store) -> None:
    """What `adyton key list` reads."""
    with store.read() as view:
        view.keys()


def verify(world: World) -> None:
    """What `adyton audit verify` does."""
    with opened(world) as store:
        store.verify_audit()
        store.verify_rest()
