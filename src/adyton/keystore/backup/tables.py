"""The tables of a store in a backup: copied to SQLite as a snapshot, and loaded into a new database."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from adyton.errors import StoreError, UsageError, VersionMismatch
from adyton.keystore import schema
from adyton.keystore.database import AS_OF_ONE_MOMENT, make_engine, store_error

if TYPE_CHECKING:
    from pathlib import Path

PIECE_ROWS: Final = 2000


def copy_tables(engine: sa.Engine, path: Path) -> None:
    """Copy a snapshot of every table into a new SQLite file."""
    target = sa.create_engine(f"sqlite:///{path}")
    try:
        with (
            engine.connect().execution_options(**AS_OF_ONE_MOMENT[engine.dialect.name]) as source,
            source.begin(),
            target.connect() as sink,
            sink.begin(),
        ):
            schema.metadata.create_all(sink)
            for table in schema.metadata.sorted_tables:
                _copy_rows(source, sink, table)
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        target.dispose()
    path.chmod(0o600)


def _copy_rows(source: sa.Connection, sink: sa.Connection, table: sa.Table) -> None:
    with source.execute(sa.select(table), execution_options={"yield_per": PIECE_ROWS}) as found:
        for piece in found.mappings().partitions(PIECE_ROWS):
            sink.execute(sa.insert(table), [dict(row) for row in piece])


def load_tables(path: Path, url: str) -> None:
    source, target = make_engine(f"sqlite:///{path}"), make_engine(url)
    try:
        with (
            source.connect() as reading,
            reading.begin(),
            target.connect().execution_options(adyton_write=True) as sink,
            sink.begin(),
        ):
            written = reading.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "schema")).scalar_one()
            if bytes(written) != str(schema.SCHEMA_VERSION).encode():
                raise VersionMismatch(
                    "this backup was made by another version of Adyton, and goes to SQLite only",
                    check="schema of the backup",
                    expected=schema.SCHEMA_VERSION,
                    seen=bytes(written).decode("ascii", "replace")[:20],
                    remedy="restore it with --store-url '', make a backup of that, and restore that one here",
                )
            if sa.inspect(sink).has_table("meta"):
                raise StoreError(
                    "there is a store in that database already",
                    check="database",
                    expected="no store in it",
                    seen="one",
                    remedy="a machine that is to share it: adyton restore --join; otherwise name another database with"
                    " --store-url",
                )
            schema.metadata.create_all(sink)
            for table in schema.metadata.sorted_tables:
                _copy_rows(reading, sink, table)
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        source.dispose()
        target.dispose()


def drop_tables(url: str) -> None:
    """Remove tables that were just loaded and did not verify. The database had no store before."""
    engine = make_engine(url)
    try:
        with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection, connection.begin():
            schema.metadata.drop_all(connection)
    finally:
        engine.dispose()


def check_shared(url: str, store_id: str) -> None:
    """Refuse to join a store that is local to one machine, or another store than the backup's."""
    if not url or sa.make_url(url).get_backend_name() != "postgresql":
        raise UsageError(
            "a store in SQLite belongs to one machine",
            check="--join",
            expected="a store in PostgreSQL, as postgresql+psycopg://…",
            seen=url.partition(":")[0] or "SQLite in the home",
            remedy="leave --join out to bring the store back, or move it to PostgreSQL: adyton restore --store-url",
        )
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            there = sa.inspect(connection).has_table("meta")
            query = sa.select(schema.meta.c.value).where(schema.meta.c.name == "id")
            seen = bytes(connection.execute(query).scalar_one()).hex() if there else "no store"
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        engine.dispose()
    if seen != store_id:
        raise StoreError(
            "that database does not hold the store of this backup",
            check="--join",
            expected=store_id,
            seen=seen,
            remedy="name the database that the other key server uses (--store-url), or leave --join out to bring the"
            " store back",
        )
