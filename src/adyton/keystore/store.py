"""The store of keys, policies, grants and the audit record: SQLite in the owner's home, or PostgreSQL.

Only this module creates, opens, migrates and commits a store. A change is durable before anything that it allows leaves
this process.
"""

from __future__ import annotations

import secrets
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from adyton.errors import AuditError, StoreError, VersionMismatch
from adyton.keystore import schema
from adyton.keystore.audit import (
    STORE_ID_BYTES,
    Checkpoint,
    Entry,
    Head,
    canonical,
    entry_hash,
    start_hash,
    verify_chain,
)
from adyton.keystore.audit_facts import RECORD_SIGNED
from adyton.keystore.clock import now_ms
from adyton.keystore.database import AS_OF_ONE_MOMENT, make_engine, store_error
from adyton.keystore.keyring import Keyring
from adyton.keystore.ledger import Ledger, check_end
from adyton.keystore.reader import Reader
from adyton.keystore.transaction import Transaction
from adyton.keystore.transaction_cache import Cache
from adyton.keystore.wrapping import WrappingKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from adyton.keystore.keyring import Masters


def _known_version(written: bytes) -> int:
    version = int(written) if written.isdigit() and len(written) < 10 else 0
    if version < 1:
        raise StoreError(
            "the store does not say which version it has",
            check="schema of the store",
            expected=f"1 to {schema.SCHEMA_VERSION}",
            seen=repr(written[:20]),
            remedy="restore a backup (adyton restore)",
        )
    if version > schema.SCHEMA_VERSION:
        raise VersionMismatch(
            f"this store was made by a newer Adyton (schema {version})",
            check="schema of the store",
            expected=f"at most {schema.SCHEMA_VERSION}",
            seen=version,
            remedy="upgrade Adyton on this machine",
        )
    return version


def _never_signed(entry: Entry) -> Entry:
    if entry.kind == RECORD_SIGNED:
        raise AuditError(
            "the store was given back the form that it had in an older version of Adyton",
            check="form of the audit record",
            expected=f"a record with a code, as entry {entry.seq} says",
            seen="a record without one",
            remedy="restore the newest backup (adyton restore), and look for who wrote to the database",
        )
    return entry


@contextmanager
def _disposed_if_it_fails(engine: sa.Engine) -> Iterator[sa.Engine]:
    try:
        yield engine
    except BaseException:
        engine.dispose()
        raise


class Store:
    """An open store, with two ways in: `read()` and `write()`.

    Both first read the audit record up to its authenticated head. They compare it with the entries that this process
    has seen, and with `kept`, the current checkpoint in the home, outside the database.
    """

    def __init__(
        self,
        engine: sa.Engine,
        master: WrappingKey,
        reload: Masters | None = None,
        kept: Callable[[], Checkpoint | None] | None = None,
    ) -> None:
        self.engine = engine
        self._cache = Cache()
        self._kept = kept or (lambda: None)
        self._held: Checkpoint | None = None
        self.has_written = False
        """Whether this process has committed an entry."""
        facts = self._facts()
        version = _known_version(facts["schema"])
        self.id = facts["id"]
        unsigned = version < schema.SIGNED_RECORD
        self.keyring = Keyring.open(self.id, master, facts["state"], reload, unsigned_record=unsigned)
        self._ledger = Ledger(self.id)
        if version < schema.SCHEMA_VERSION:
            self._migrate()
        if self.has_written:
            with self.read():
                pass

    @classmethod
    def create(cls, url: str, master: WrappingKey, *, actor: str) -> Store:
        """Create the tables of a new store. Raises StoreError where there is one already."""
        with _disposed_if_it_fails(make_engine(url)) as engine:
            cls._make_tables(engine, master)
            store = cls(engine, master)
            with store.write() as transaction:
                body = {"actor": actor[:128], "schema": schema.SCHEMA_VERSION}
                transaction.record("store-created", "", body, now_ms())
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
                start = Head(0, start_hash(store_id))
                mac = keyring.head_mac(start)
                connection.execute(sa.insert(schema.chain).values(id=1, seq=0, hash=start.hash, mac=mac))
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
    def open(
        cls,
        url: str,
        master: WrappingKey,
        reload: Masters | None = None,
        kept: Callable[[], Checkpoint | None] | None = None,
    ) -> Store:
        """Open an existing store. Raises StoreError where there is none, or where the master key does not open it.

        `reload` gives the master keys to try where this one does not open a value, as after a rotation by another
        process. `kept` gives the checkpoint outside the database. The record must contain it.
        """
        with _disposed_if_it_fails(make_engine(url)) as engine:
            return cls(engine, master, reload, kept)

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
            unsigned = version < schema.SIGNED_RECORD
            head = self._unsigned_head(connection) if unsigned else None
            for step in range(version + 1, schema.SCHEMA_VERSION + 1):
                schema.MIGRATIONS[step](connection)
            if head is not None:
                head = self._note_signed(connection, head, version)
                mac = self.keyring.head_mac(head)
                connection.execute(sa.update(schema.chain).values(seq=head.seq, hash=head.hash, mac=mac))
                state = self.keyring.state_under(self.keyring.master)
                connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "state").values(value=state))
            connection.execute(
                sa.update(schema.meta)
                .where(schema.meta.c.name == "schema")
                .values(value=str(schema.SCHEMA_VERSION).encode())
            )
        self.has_written = head is not None

    @staticmethod
    def _note_signed(connection: sa.Connection, head: Head, version: int) -> Head:
        """Record that the head has a MAC from here on, so that a head without one is refused later."""
        seq, at, body = head.seq + 1, now_ms(), canonical({"from": version, "schema": schema.SCHEMA_VERSION})
        digest = entry_hash(head.hash, seq, at, RECORD_SIGNED, body)
        row = {"seq": seq, "at": at, "kind": RECORD_SIGNED, "subject": "", "body": body, "hash": digest}
        connection.execute(sa.insert(schema.audit).values(**row))
        return Head(seq, digest)

    def _unsigned_head(self, connection: sa.Connection) -> Head:
        """The head of a record without a MAC, after verifying all of it and the kept checkpoint.

        Raises AuditError also where the record says that it had one: then somebody put the store back into its older
        form.
        """
        kept = self._kept()
        row = connection.execute(sa.select(schema.chain.c.seq, schema.chain.c.hash)).one()
        table = schema.audit
        query = sa.select(table).order_by(table.c.seq)
        with connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            entries = (Entry(item.seq, item.at, item.kind, item.body, bytes(item.hash)) for item in rows)
            head = verify_chain(self.id, map(_never_signed, entries), [] if kept is None else [kept])
        check_end(head, Head(row.seq, bytes(row.hash)))
        return head

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A snapshot of the store, unaffected by writers."""
        with self._reader() as (reader, known, kept):
            reader.begin(known, self._not_held(kept))
            self._held = kept
            yield reader

    @contextmanager
    def _reader(self, ledger: Ledger | None = None) -> Iterator[tuple[Reader, Head, Checkpoint | None]]:
        """A reader that has not begun, with the head and checkpoint that it must contain.

        Both were read before the snapshot.
        """
        known, kept = self._ledger.head, self._kept()
        options = AS_OF_ONE_MOMENT[self.engine.dialect.name]
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield Reader.create(connection, self.keyring, ledger or self._ledger), known, kept
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error

    def _not_held(self, kept: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint, or None where this process has found it in the record before."""
        return None if kept == self._held else kept

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Change the store: durable when the block ends, undone when it raises."""
        known, kept = self._ledger.head, self._kept()
        try:
            with self.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
                transaction = Transaction(connection, self.keyring, self._ledger, self._cache)
                transaction.begin(known, self._not_held(kept))
                self._held = kept
                yield transaction
                transaction.finish()
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error
        transaction.committed()
        if transaction.has_added:
            self.has_written = True
            if transaction.has_changed_policy:
                self._check_kept(transaction)

    def _check_kept(self, transaction: Transaction) -> None:
        """Read back a change of keys or approvals, since a hostile database could drop it and keep the old state."""
        with self._reader(Ledger(self.id)) as (reader, _, _):
            transaction.check_kept(reader)
        with self.read() as reader:
            reader.approvals()
            reader.keys()

    def verify_audit(self, checkpoints: Sequence[Checkpoint] = ()) -> Head:
        """Verify the whole audit record, and compare its head, all approvals and keys with it. Raises AuditError.

        Verified entries are not read again, and a store without them is refused from then on.
        """
        recorded = Ledger(self.id)
        with self._reader(recorded) as (reader, known, kept):
            head = self._verify(reader, recorded, checkpoints, known, kept)
        if recorded.head.seq >= self._ledger.head.seq:  # else another thread has read further meanwhile
            self._ledger = recorded
        return head

    def _verify(
        self,
        reader: Reader,
        recorded: Ledger,
        checkpoints: Sequence[Checkpoint],
        known: Head,
        kept: Checkpoint | None,
    ) -> Head:
        with closing(reader.load(0, reader.head().seq)) as entries:
            head = verify_chain(self.id, recorded.noting(entries), checkpoints)
        check_end(head, reader.head())
        reader.begin(known, kept)
        reader.hold_approvals_against_record()
        reader.hold_keys_against_record()
        reader.kept_facts()
        return head

    def verify_copy(self, copy: sa.Engine) -> Head:
        """Verify a copy of this store in the same way as a restore does.

        Returns the head of its record. Raises AuditError and StoreError.
        """
        recorded = Ledger(self.id)
        try:
            with copy.connect() as connection:
                meta = {row.name: row.value for row in connection.execute(sa.select(schema.meta))}
                keyring = self.keyring.without_data_keys()
                keyring.current_master(meta.get("state", b""))
                facts = (meta.get("id"), _known_version(meta.get("schema", b"")))
                if facts != (self.id, schema.SCHEMA_VERSION):
                    raise StoreError(
                        "the database says that it holds another store than this process opened",
                        check="facts of the store",
                        expected=f"store {self.id.hex()}, schema {schema.SCHEMA_VERSION}",
                        seen=f"store {bytes(facts[0] or b'')[:20].hex()}, schema {facts[1]}",
                        remedy="something other than Adyton wrote to the database: restore the newest backup (adyton"
                        " restore)",
                    )
                reader = Reader.create(connection, keyring, recorded)
                return self._verify(reader, recorded, (), recorded.head, None)
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error

    def verify_rest(self) -> None:
        """Check manifests, evidence and the ids of entries. Call it after `verify_audit`."""
        with self.read() as reader:
            reader.hold_rest_against_record()

    def head(self) -> Head:
        """The last entry of the record that this process has verified."""
        return self._ledger.head

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
