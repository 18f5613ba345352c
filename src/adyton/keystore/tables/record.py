"""The audit record in the database: its entries, verified on every read, and its authenticated head."""

from __future__ import annotations

import hmac
import itertools
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from adyton.errors import AuditError, StoreError
from adyton.keystore import schema
from adyton.keystore.audit import Entry, Head, canonical, entry_hash, linked
from adyton.keystore.audit_facts import POLICY, PRUNED, subject_of
from adyton.keystore.current_facts import RecordedFacts
from adyton.keystore.database import LOOK_FOR_WRITER
from adyton.keystore.ledger import STEP
from adyton.keystore.tables.pending import AUDIT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.tables.pending import PendingRows

FACTS: Final = "facts"
"""The row of `meta` with the facts of the record up to some entry."""

MAC_BYTES: Final = 32
SEGMENTS_KEPT: Final = 8
"""Number of verified blocks that a reader caches, so that neighbouring entries are not read twice."""

FACTS_EVERY: Final = 10_000
"""The facts are stored anew after this many entries, so that opening a store reads only a few."""

_COLUMNS: Final = (
    schema.audit.c.seq,
    schema.audit.c.at,
    schema.audit.c.kind,
    schema.audit.c.subject,
    schema.audit.c.body,
    schema.audit.c.hash,
)
_LOCK_HEAD: Final = sa.select(schema.chain).with_for_update()
_MOVE_HEAD: Final = sa.update(schema.chain).values(
    seq=sa.bindparam("new_seq"), hash=sa.bindparam("new_hash"), mac=sa.bindparam("new_mac")
)


class RecordReader:
    """A snapshot of the record. Call `begin` first: it reads and verifies all entries up to the head."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, ledger: Ledger) -> None:
        self._connection = connection
        self._keyring = keyring
        self._ledger = ledger
        self._segments: dict[int, dict[int, Entry]] = {}
        self._own: list[Entry] = []
        """Entries that a writer has added."""
        self._head = self._authentic_head(self._chain_row())
        self._verified_to = self._head
        """The head at the beginning, without a writer's entries."""
        self.facts = RecordedFacts(ledger, self._head.seq)
        """The facts of the record in this snapshot."""

    def _chain_row(self) -> Any:
        return self._connection.execute(sa.select(schema.chain)).one()

    def _authentic_head(self, row: Any) -> Head:
        head = Head(row.seq, bytes(row.hash))
        if not hmac.compare_digest(self._keyring.head_mac(head), bytes(row.mac)):
            raise AuditError(
                "the end of the audit record was written by something other than Adyton",
                check="authentication code of the record's head",
                expected="the code made under the store's own key",
                seen=f"another code for entry {head.seq}",
                remedy=LOOK_FOR_WRITER,
            )
        return head

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """Read the record up to its head in this snapshot.

        `known` is the last entry that this process knew before, `kept` the checkpoint in the home at that time. Raises
        StoreError where the store is older than these, AuditError where the record was altered.
        """
        self._check_reaches(known)
        self._resume()
        self._ledger.follow(self._head, self.load)
        if kept is not None:
            there = Head(kept.seq, kept.hash)
            self._check_reaches(there)
            if kept.store_id != self._keyring.store_id or self.hash_of(kept.seq) != kept.hash:
                raise self._went_back(there, "another entry in its place")

    def _check_reaches(self, known: Head) -> None:
        if known.seq > self._head.seq:
            raise self._went_back(known, f"the record ends at entry {self._head.seq}")

    @staticmethod
    def _went_back(known: Head, seen: str) -> StoreError:
        return StoreError(
            "the store went back to an older state, or is another one: it lacks what this machine has seen in it",
            check="audit record against what this machine wrote or saw of it",
            expected=f"entry {known.seq} with the hash {known.hash.hex()}",
            seen=seen,
            remedy="nothing is released: stop the key server, put the newest store back (adyton restore), and look for"
            " who wrote to the database. If you accept that what was revoked since is undone, remove checkpoint.json",
        )

    def _resume(self) -> None:
        """Load the facts that an earlier process stored, where this one has read nothing yet."""
        facts = None if self._ledger.head.seq else self.kept_facts()
        if facts is not None:
            self._ledger.resume(json.loads(facts))

    def kept_facts(self) -> bytes | None:
        """The stored facts of the record (JSON), authenticated. None where there are none. Raises AuditError."""
        query = sa.select(schema.meta.c.value).where(schema.meta.c.name == FACTS)
        found = self._connection.execute(query).scalar_one_or_none()
        if found is None:
            return None
        mac, raw = bytes(found[:MAC_BYTES]), bytes(found[MAC_BYTES:])
        if not hmac.compare_digest(self._keyring.facts_mac(raw), mac):
            raise AuditError(
                "the stored facts of the audit record were changed by something other than Adyton",
                check="authentication code of what the record says",
                expected="the code made under the store's own key",
                seen="another code",
                remedy=LOOK_FOR_WRITER,
            )
        return raw

    def load(self, after: int, to: int) -> Generator[Entry, None, None]:
        """The entries after `after` up to `to` from the database, unverified."""
        table = schema.audit
        query = sa.select(*_COLUMNS).where(table.c.seq > after, table.c.seq <= to).order_by(table.c.seq)
        with self._connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            yield from map(_entry, rows)

    def head(self) -> Head:
        """The head of the audit chain."""
        return self._head

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, after entry `after`. With `since_ms`, only from that time on.

        Each is verified, and none is missing, with one exception. In a look-up by `subject`, or by a `kind` other than
        changes of approvals and prunings, a hostile database could hide an entry. `adyton audit verify` finds that.
        """
        if subject is None and kind in (None, POLICY, PRUNED):
            yield from self._every(after, kind, since_ms)
            return
        table = schema.audit
        query = sa.select(table.c.seq).where(table.c.seq > after, table.c.seq <= self._head.seq)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        if subject is not None:
            query = query.where(table.c.subject == subject)
        if since_ms is not None:
            query = query.where(table.c.at >= since_ms)
        for seq in self._connection.execute(query.order_by(table.c.seq)).scalars().all():
            entry = self.whole(seq)
            if subject is not None and subject_of(entry.kind, entry.body) not in (None, subject):
                raise _filed_elsewhere(entry, subject)
            if kind in (None, entry.kind):  # else the database gave another than it was asked for
                yield entry

    def _every(self, after: int, kind: str | None, since_ms: int | None) -> Generator[Entry, None, None]:
        found: Iterable[Entry]
        if kind is None:
            found = itertools.chain(self._in_order(after), self._own)
        else:
            to = self._verified_to.seq
            known = self._ledger.changes_of(None, to) if kind == POLICY else self._ledger.prunings(to)
            own = [entry for entry in self._own if entry.kind == kind]
            found = itertools.chain(map(self.whole, [seq for seq in known if seq > after]), own)
        for entry in found:
            if entry.seq > after and (since_ms is None or entry.at_ms >= since_ms):
                yield entry

    def _in_order(self, after: int) -> Generator[Entry, None, None]:
        """All verified entries from a block boundary (at most 64 before `after`) on, without a writer's entries."""
        last = self._anchor(min(after, self._verified_to.seq) // STEP)
        with closing(self.load(last.seq, self._verified_to.seq)) as found:
            for entry in linked(last, found):
                last = Head(entry.seq, entry.hash)
                yield entry
        self._check_ends(last, self._verified_to)

    def _anchor(self, number: int) -> Head:
        found = self._ledger.anchor(number)
        if found is None:
            raise StoreError("the audit record was not read yet", check="audit record", remedy="try again")
        return found

    @staticmethod
    def _check_ends(last: Head, expected: Head) -> None:
        if last != expected:
            raise AuditError(
                f"audit entry {last.seq + 1} is missing, or one before it was altered",
                check=f"audit record up to entry {expected.seq}",
                expected=f"the hash {expected.hash.hex()}",
                seen=f"entry {last.seq} with the hash {last.hash.hex()}",
                remedy="the record was altered: compare with a backup and with the checkpoints that clients hold",
            )

    def whole(self, seq: int) -> Entry:
        """One entry, verified with its block. Raises AuditError where it was changed."""
        if not 1 <= seq <= self._head.seq:
            raise _not_of_record(seq, self._head)
        if seq > self._verified_to.seq:
            return self._own[seq - self._verified_to.seq - 1]
        number = (seq - 1) // STEP
        found = self._segments.get(number)
        if found is None or seq not in found:
            while len(self._segments) >= SEGMENTS_KEPT:
                del self._segments[next(iter(self._segments))]
            found = self._segments[number] = self._segment(number)
        return found[seq]

    def _segment(self, number: int) -> dict[int, Entry]:
        start, end = self._anchor(number), self._ledger.anchor(number + 1)
        if end is None or end.seq > self._verified_to.seq:
            end = self._verified_to
        with closing(self.load(start.seq, end.seq)) as there:
            found = {entry.seq: entry for entry in linked(start, there)}
        last = Head(end.seq, found[end.seq].hash) if end.seq in found else start
        self._check_ends(last, end)
        return found

    def newest_entries(self, limit: int, *, kinds: Sequence[str] = (), before: int | None = None) -> list[Entry]:
        """Verified audit entries, the newest first. With `before`, only older ones than that."""
        table = schema.audit
        query = sa.select(table.c.seq).where(table.c.seq <= self._head.seq).order_by(table.c.seq.desc()).limit(limit)
        if kinds:
            query = query.where(table.c.kind.in_(kinds))
        if before is not None:
            query = query.where(table.c.seq < before)
        return [self.whole(seq) for seq in self._connection.execute(query).scalars().all()]

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number, verified."""
        return self.whole(seq) if 1 <= seq <= self._head.seq else None

    def hash_of(self, seq: int) -> bytes | None:
        """The hash of an audit entry (0: before the first). None where there is no such entry."""
        if not 0 <= seq <= self._head.seq:
            return None
        anchor = self._ledger.anchor(seq // STEP) if seq % STEP == 0 else None
        if anchor is not None:
            return anchor.hash
        return self._head.hash if seq == self._head.seq else self.whole(seq).hash

    def hold_ids_against_record(self) -> None:
        """Compare the ids for look-ups with the entries, and check that no rows lie beyond the head."""
        table = schema.audit
        beyond = sa.select(table.c.seq).where(sa.or_(table.c.seq > self._head.seq, table.c.seq < 1)).limit(1)
        for seq in self._connection.execute(beyond).scalars().all():
            raise _not_of_record(seq, self._head)
        query = sa.select(*_COLUMNS).where(table.c.seq <= self._head.seq)
        with self._connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            for row in rows:
                subject = subject_of(row.kind, row.body)
                if subject not in (None, row.subject):
                    raise _filed_elsewhere(_entry(row), row.subject)


class RecordWriter(RecordReader):
    """The record while a transaction has its lock. Appended entries count once the transaction commits."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, ledger: Ledger, pending: PendingRows) -> None:
        super().__init__(connection, keyring, ledger)
        self._pending = pending

    def _chain_row(self) -> Any:
        return self._connection.execute(_LOCK_HEAD).one()

    @property
    def has_added(self) -> bool:
        """Whether this transaction adds to the record."""
        return bool(self._own)

    def append(self, kind: str, subject: str, body: Mapping[str, Any], at_ms: int) -> Entry:
        """Append an entry to the audit record."""
        text = canonical(body)
        seq = self._head.seq + 1
        digest = entry_hash(self._head.hash, seq, at_ms, kind, text)
        self._head = Head(seq, digest)
        row = {"seq": seq, "at": at_ms, "kind": kind, "subject": subject, "body": text, "hash": digest}
        self._pending.add(AUDIT, row)
        entry = Entry(seq, at_ms, kind, text, digest)
        self._own.append(entry)
        self.facts.note(entry)
        return entry

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """As for a reader, with this transaction's own entries."""
        self._pending.write()
        return super().entries(after=after, kind=kind, subject=subject, since_ms=since_ms)

    def check_kept(self, head: Head, load: Callable[[int, int], Iterable[Entry]]) -> None:
        """Check that a later reader finds the entries of this transaction. Raises StoreError."""
        there = {entry.seq: entry for entry in load(self._verified_to.seq, self._head.seq)}
        missing = [entry for entry in self._own if there.get(entry.seq) != entry]
        if missing or head.seq < self._head.seq:
            raise StoreError(
                "the database did not keep what was written to it: the change does not count",
                check="audit record after the change",
                expected=f"entry {missing[0].seq if missing else self._head.seq}, as it was written",
                seen="another entry, or none",
                remedy="something in the database undoes what is written, as a trigger does: stop the key server, and"
                " look for who wrote to the database",
            )

    def finish(self) -> None:
        """Move the head to the last entry. Called once, when all rows are written, before the commit."""
        if self._head == self._verified_to:
            return
        self._keep_facts()
        mac = self._keyring.head_mac(self._head)
        self._connection.execute(_MOVE_HEAD, {"new_seq": self._head.seq, "new_hash": self._head.hash, "new_mac": mac})

    def _keep_facts(self) -> None:
        """Store the facts before this transaction, if the stored ones are old."""
        if self._verified_to.seq - self._ledger.kept_to < FACTS_EVERY:
            return
        raw = json.dumps(self._ledger.to_dict(), separators=(",", ":")).encode()
        self._connection.execute(sa.delete(schema.meta).where(schema.meta.c.name == FACTS))
        value = self._keyring.facts_mac(raw) + raw
        self._connection.execute(sa.insert(schema.meta).values(name=FACTS, value=value))
        self._ledger.kept_to = self._verified_to.seq

    def committed(self) -> None:
        """Add the appended entries to the ledger. Called once, after the commit."""
        self._ledger.absorb(self._verified_to, self._own)


def _not_of_record(seq: int, head: Head) -> AuditError:
    return AuditError(
        f"the database has an audit entry {seq}, and the record has none",
        check="entries of the audit record",
        expected=f"entries 1 to {head.seq}",
        seen=f"entry {seq}",
        remedy="something other than Adyton wrote it, and nothing more can be recorded once the record comes to its"
        " number: restore the newest backup (adyton restore), or remove this row",
    )


def _filed_elsewhere(entry: Entry, where: str) -> AuditError:
    return AuditError(
        f"audit entry {entry.seq} is filed under another id",
        check=f"id of audit entry {entry.seq}",
        expected=subject_of(entry.kind, entry.body),
        seen=where[:80],
        remedy="something other than Adyton wrote to the database: restore the newest backup (adyton restore)",
    )


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash))
