"""The databases for a store: how each is made durable and private, and how their errors are shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from adyton.errors import StoreError
from adyton.keystore.database_transport import DRIVER, further_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

BUSY_TIMEOUT_S: Final = 10
LOOK_FOR_WRITER: Final = (
    "nothing is released on it: restore the newest backup (adyton restore), and look for who wrote to the database"
)
"""The remedy where a row was changed outside Adyton."""

AS_OF_ONE_MOMENT: Final[Mapping[str, dict[str, Any]]] = {
    "sqlite": {},
    "postgresql": {"isolation_level": "REPEATABLE READ"},
}
"""Execution options of a connection that reads from one snapshot, by dialect.

SQLite's transactions do this already. In a default transaction of PostgreSQL each statement sees later commits of
others, so a record and its head, read one after the other, would disagree.
"""


def _begin(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        write = connection.get_execution_options().get("adyton_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")


def _configure_sqlite(raw: Any, _record: Any) -> None:
    raw.isolation_level = None
    cursor = raw.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        "secure_delete=ON",
        f"busy_timeout={BUSY_TIMEOUT_S * 1000}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def make_engine(url: str) -> sa.Engine:
    """An engine over `sqlite:///PATH` or `postgresql+psycopg://…`. Raises StoreError for anything else.

    A PostgreSQL on another machine must prove itself over TLS: see `keystore.database_transport`.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in ("sqlite", DRIVER):
        raise StoreError(
            "this is no database that a store can live in",
            check="store.url",
            expected="sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME",
            seen=url.split(":", 1)[0][:40],
        )
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(parsed, poolclass=QueuePool, connect_args={"check_same_thread": False})
        sa.event.listen(engine, "connect", _configure_sqlite)
    else:
        arguments = parsed.get_dialect()().create_connect_args(parsed)[1]
        further = further_arguments(arguments, os.environ)
        engine = sa.create_engine(parsed, pool_pre_ping=True, pool_size=4, connect_args=further)
    sa.event.listen(engine, "begin", _begin)
    return engine


def store_error(error: sa.exc.SQLAlchemyError) -> StoreError:
    """The error for a failure of the database, without the values in the statement."""
    cause = getattr(error, "orig", None)
    text = str(cause if cause is not None else type(error).__name__).splitlines()[0][:200]
    return StoreError(
        f"the database refused: {text}",
        check="database",
        expected="a database that can be read and written",
        seen=text,
        remedy="check the disk, the permissions and store.url in config.toml; nothing was released",
    )
