"""What can be read of a store, and in which values; nothing is believed that the audit record does not bear out.

A view begins by reading the record on to its head. Approvals and keys must be what the record says, older entries are
verified again when they are shown, manifests must give their measurement, and evidence its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from adyton.errors import AuditError, Error, StoreError, UnknownKey, UsageError
from adyton.keystore import schema
from adyton.keystore.approval import Approval, StoredApproval
from adyton.keystore.audit import Entry, Head, linked
from adyton.keystore.clock import moment
from adyton.keystore.facts import POLICY, PRUNED, USED, ApprovalRevision, Candidate, subject_of
from adyton.keystore.ledger import STEP, Ledger
from adyton.manifest.measure import combine, workload_measurement
from adyton.values import Digest, Key128, Measurement

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from datetime import datetime

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.facts import ApprovalChange, KeyVersion, Lease
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.wrapping import WrappingKey

AWAITED: Final = "awaited"
"""A grant that was not acknowledged yet; one that was is USED."""
KEY: Final = "key"
SECRET: Final = "secret"  # noqa: S105 - a kind of entry, not a secret
FACTS: Final = "facts"
"""The row of `meta` that holds what the record says up to some entry."""

MAC_BYTES: Final = 32
SEGMENTS_KEPT: Final = 8
"""Verified stretches of the record that a view keeps, so that neighbours need not be read twice."""

ARTIFACT_KIND: Final = re.compile(r"[a-z]{1,32}")
"""What a kind of evidence may be called: files are named after it."""

_COLUMNS: Final = (
    schema.audit.c.seq,
    schema.audit.c.at,
    schema.audit.c.kind,
    schema.audit.c.subject,
    schema.audit.c.body,
    schema.audit.c.hash,
)
_LOOK_FOR_WRITER: Final = (
    "nothing is released on it: restore the newest backup (adyton restore), and look for who wrote to the database"
)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be told about a key: its name, newest version, kind and age; never its value."""

    name: str
    kind: str
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """How far an approval's limits are used up, seen from one run."""

    runs: int
    active: int
    own: Lease | None
    """The release that this run holds already, with a lease that still lasts."""


class Reader:
    """A view of the store as of one moment, for as long as its `with` block lasts."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, ledger: Ledger) -> None:
        self._connection = connection
        self._keyring = keyring
        self._ledger = ledger
        self._segments: dict[int, dict[int, Entry]] = {}
        self._own: list[Entry] = []
        """What this view has itself added to the record."""
        self._head = self._authentic_head(self._chain_row())
        self._verified_to = self._head
        """The head of this view, without what a transaction adds."""

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
                remedy=_LOOK_FOR_WRITER,
            )
        return head

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """Read the record on to this view's head.

        `known` is the last entry that this process knew before the view began, `kept` the checkpoint that then lay in
        the home. Raises StoreError where the store is older than they are, AuditError where the record was altered.
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
        """Take what an earlier process wrote down of the record, where this one has read nothing yet."""
        facts = None if self._ledger.head.seq else self.kept_facts()
        if facts is not None:
            self._ledger.resume(json.loads(facts))

    def kept_facts(self) -> bytes | None:
        """What a process wrote down of the record (JSON), authenticated; None where none has; raises AuditError."""
        query = sa.select(schema.meta.c.value).where(schema.meta.c.name == FACTS)
        found = self._connection.execute(query).scalar_one_or_none()
        if found is None:
            return None
        mac, raw = bytes(found[:MAC_BYTES]), bytes(found[MAC_BYTES:])
        if not hmac.compare_digest(self._keyring.facts_mac(raw), mac):
            raise AuditError(
                "what was read from the audit record before was changed by something other than Adyton",
                check="authentication code of what the record says",
                expected="the code made under the store's own key",
                seen="another code",
                remedy=_LOOK_FOR_WRITER,
            )
        return raw

    def load(self, after: int, to: int) -> Generator[Entry, None, None]:
        """The entries after one number and up to another as they lie in the database, not verified."""
        table = schema.audit
        query = sa.select(*_COLUMNS).where(table.c.seq > after, table.c.seq <= to).order_by(table.c.seq)
        with self._connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            yield from map(_entry, rows)

    def head(self) -> Head:
        """Where the audit chain ends."""
        return self._head

    def keys(self) -> list[KeyInfo]:
        """Every key and secret at its newest version, by name; raises StoreError where one is missing, or one too many.

        The versions are those of the audit record.
        """
        names = self._key_names()
        found = {name: self._versions(name) for name in names}
        by_record = {(name, item.version, item.kind) for name, versions in found.items() for item in versions}
        query = sa.select(schema.keys.c.name, schema.keys.c.version, schema.keys.c.kind)
        there = {(row.name, row.version, row.kind) for row in self._connection.execute(query)}
        for name, version, kind in sorted(by_record ^ there):
            missing = (name, version, kind) in by_record
            raise _key_not_as_recorded(name, f"{kind}, version {version}", missing=missing)
        newest = [(name, versions[-1]) for name, versions in found.items()]
        return [KeyInfo(name, item.kind, item.version, moment(item.at_ms)) for name, item in newest]

    def has_key(self, name: str) -> bool:
        """Whether a key or secret of this name exists."""
        return bool(self._versions(name))

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """Unwrap a key or secret (its newest version unless one is named); raises UnknownKey."""
        return self._opened(self._key_row(name, version))

    def _key_row(self, name: str, version: int | None) -> Any:
        versions = self._versions(name)
        recorded = next((item for item in reversed(versions) if version in (None, item.version)), None)
        if recorded is None:
            wanted = f"{name!r}" if version is None else f"{name!r} version {version}"
            known = ", ".join(self._key_names()) or "none"
            raise UnknownKey(
                f"no key {wanted}",
                check="name of the key",
                expected=f"one of: {known}",
                seen=name,
                remedy=f"make it with: adyton key new {name}",
            )
        query = sa.select(schema.keys).where(schema.keys.c.name == name, schema.keys.c.version == recorded.version)
        row = self._connection.execute(query).one_or_none()
        if row is None or row.kind != recorded.kind:
            raise _key_not_as_recorded(name, f"{recorded.kind}, version {recorded.version}", missing=True)
        self._check_data_key(name, row.data_key)
        return row

    def _check_data_key(self, name: str, version: int) -> None:
        newest = self._newest_data_key()
        if version != newest:
            raise StoreError(
                f"key {name!r} is wrapped as it was before the store's data key was rotated",
                check=f"data key of key {name!r}",
                expected=f"data key {newest}, by the audit record",
                seen=f"data key {version}",
                remedy=_LOOK_FOR_WRITER,
            )

    def _opened(self, row: Any) -> tuple[KeyInfo, bytes]:
        data_key = self._data_key(row.data_key)
        bound = self._keyring.key_binding(row.name, row.version, row.kind)
        value = data_key.unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
        at_ms = next(item.at_ms for item in self._versions(row.name) if item.version == row.version)
        return KeyInfo(row.name, row.kind, row.version, moment(at_ms)), value

    def load_key(self, name: str, *, version: int | None = None) -> Key128:
        """A protected-file key by name; raises UnknownKey, also where the name is a secret of another kind."""
        info, value = self.reveal(name, version=version)
        if info.kind != KEY:
            raise UnknownKey(f"{name!r} is a secret, not a key of protected files", check="kind", seen=info.kind)
        return Key128(value)

    def _data_key(self, version: int) -> WrappingKey:
        cached = self._keyring.data_keys.get(version)
        if cached is None:
            row = self._connection.execute(
                sa.select(schema.data_keys.c.wrapped).where(schema.data_keys.c.version == version)
            ).one_or_none()
            if row is None:
                raise StoreError(
                    f"data key {version} is missing from the store",
                    check="data keys of the store",
                    expected=f"data key {version}",
                    seen="no such row",
                    remedy=_LOOK_FOR_WRITER,
                )
            cached = self._keyring.data_keys[version] = self._keyring.open_data_key(version, bytes(row.wrapped))
        return cached

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first.

        Each is authenticated, and is what the audit record says that it is; raises StoreError otherwise, also where
        one is missing.
        """
        rows = {row.id: row for row in self._connection.execute(sa.select(schema.approvals)).all()}
        recorded = self._newest_changes()
        for approval_id in sorted(recorded.keys() - rows.keys()):
            raise self._not_as_recorded(approval_id, None, recorded[approval_id].revision)
        found = [self._stored(row) for row in rows.values()]
        found.sort(key=lambda item: recorded[item.id].seq, reverse=True)
        return [item for item in found if key in (None, item.approval.key)]

    def approval(self, approval_id: str) -> StoredApproval:
        """One approval by its id; raises UsageError where there is none."""
        row = self._connection.execute(
            sa.select(schema.approvals).where(schema.approvals.c.id == approval_id)
        ).one_or_none()
        if row is not None:
            return self._stored(row)
        recorded = self._newest_change(approval_id)
        if recorded is not None:
            raise self._not_as_recorded(approval_id, None, recorded.revision)
        raise UsageError(
            f"no approval {approval_id[:40]!r}",
            check="approval id",
            expected="an id that adyton policy show lists",
            seen=approval_id[:40],
        )

    def _stored(self, row: Any) -> StoredApproval:
        self._authenticate(row)
        there, recorded = ApprovalRevision.create(row.revision, row.state, row.document), self._newest_change(row.id)
        if recorded is None or there != recorded.revision:
            raise self._not_as_recorded(row.id, there, None if recorded is None else recorded.revision)
        approval = Approval.from_dict(json.loads(row.document))
        if approval.key != row.key:
            raise StoreError(
                f"approval {row.id} is filed under another key",
                check=f"key of approval {row.id}",
                expected=approval.key,
                seen=repr(row.key)[:80],
                remedy=_LOOK_FOR_WRITER,
            )
        return StoredApproval(row.id, row.state, row.revision, approval, moment(recorded.at_ms))

    @staticmethod
    def _not_as_recorded(
        approval_id: str, there: ApprovalRevision | None, recorded: ApprovalRevision | None
    ) -> StoreError:
        what = "an older one was put back" if there is not None else "it was removed"
        return StoreError(
            f"approval {approval_id} is not as it was left: {what}",
            check=f"newest revision of approval {approval_id}",
            expected=f"what the audit record says: {recorded or 'no such approval'}",
            seen=there or "no such approval",
            remedy=_LOOK_FOR_WRITER,
        )

    def _authenticate(self, row: Any) -> None:
        mac = self._keyring.policy_mac(row.id, row.state, row.revision, row.document)
        if not hmac.compare_digest(mac, bytes(row.mac)):
            raise StoreError(
                f"approval {row.id} was changed by something other than Adyton",
                check=f"authentication code of approval {row.id}",
                expected="the code made under the store's own key",
                seen="another code",
                remedy="nothing is released on it: restore the newest backup (adyton restore), and look for who wrote"
                " to the database",
            )

    def _newest_change(self, approval_id: str) -> ApprovalChange | None:
        """How an approval stands by the audit record as this view sees it."""
        return self._ledger.newest_change(approval_id, self._verified_to.seq)

    def _newest_changes(self) -> dict[str, ApprovalChange]:
        """How every approval stands by the audit record as this view sees it."""
        return self._ledger.newest_changes(self._verified_to.seq)

    def _changes_of(self, approval_id: str | None) -> list[int]:
        """The entries that changed an approval, or any (None)."""
        return self._ledger.changes_of(approval_id, self._verified_to.seq)

    def _key_names(self) -> list[str]:
        """The names of all keys and secrets, by the audit record."""
        return self._ledger.key_names(self._verified_to.seq)

    def _versions(self, name: str) -> list[KeyVersion]:
        """The versions of a key, by the audit record."""
        return self._ledger.versions(name, self._verified_to.seq)

    def _newest_data_key(self) -> int:
        """The version of the data key that wraps all keys, by the audit record."""
        return self._ledger.data_key(self._verified_to.seq)

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval as it was at one of its revisions, by the audit record."""
        return next(
            (
                Approval.from_dict(item["policy"])
                for item in self.history(approval_id)
                if (item["approval"], item["revision"]) == (approval_id, revision)
            ),
            None,
        )

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of every approval (or of one) by the audit record: who changed it, when, and to what."""
        entries = [self._whole(seq) for seq in self._changes_of(approval_id)]
        found = [(entry.at_ms, json.loads(entry.body)) for entry in entries]
        return [
            {
                "approval": body["approval"],
                "revision": body["revision"],
                "state": body["state"],
                "actor": body["actor"],
                "at_ms": at_ms,
                "policy": body["policy"],
            }
            for at_ms, body in found
        ]

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """How much of an approval's limits is used (unless not `counted`), and whether this run holds a lease.

        By the releases in the audit record.
        """
        return Usage(*self._ledger.used(approval_id, run, at_ms, counted=counted))

    def grant_state(self, grant_id: str, token: bytes) -> str | None:
        """Whether a grant awaits its acknowledgement or has it; None where there is none with this token."""
        if not hmac.compare_digest(token, self._keyring.token(grant_id)):
            return None
        return USED if any(self.entries(kind=USED, subject=grant_id)) else AWAITED

    def candidates(self) -> list[Candidate]:
        """Programs that asked and were not approved, the last to ask first; by the audit record."""
        return self._ledger.candidates()

    def behind(self, measurement: Measurement) -> tuple[bytes, dict[str, str]] | None:
        """The manifest and runtime parts that a measurement stands for, where they are known.

        They give this measurement, or StoreError is raised.
        """
        row = self._connection.execute(
            sa.select(schema.manifests).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        return None if row is None else measured(measurement, bytes(row.manifest), row.runtime_parts)

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, from the one after `after`; those of a time on, where that is named.

        Each is verified. All of them are there, but for those that are looked up by `subject`, or by a `kind` other
        than changes of approvals and prunings: of these one could be hidden, which `adyton audit verify` finds.
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
            entry = self._whole(seq)
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
            found = itertools.chain(map(self._whole, [seq for seq in known if seq > after]), own)
        for entry in found:
            if entry.seq > after and (since_ms is None or entry.at_ms >= since_ms):
                yield entry

    def _in_order(self, after: int) -> Generator[Entry, None, None]:
        """All entries after one that lies at most 64 before `after`, each verified, without what this view added."""
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

    def _whole(self, seq: int) -> Entry:
        """One entry, verified with those around it; raises AuditError where it is not what was written."""
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
        """The newest audit entries first, or the newest of those before one; each verified."""
        table = schema.audit
        query = sa.select(table.c.seq).where(table.c.seq <= self._head.seq).order_by(table.c.seq.desc()).limit(limit)
        if kinds:
            query = query.where(table.c.kind.in_(kinds))
        if before is not None:
            query = query.where(table.c.seq < before)
        return [self._whole(seq) for seq in self._connection.execute(query).scalars().all()]

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number, verified."""
        return self._whole(seq) if 1 <= seq <= self._head.seq else None

    def artifact(self, sha256: bytes) -> bytes | None:
        """Evidence or collateral of a past decision; raises StoreError where it is not what was kept."""
        found = self._connection.execute(
            sa.select(schema.artifacts.c.data).where(schema.artifacts.c.sha256 == sha256)
        ).scalar_one_or_none()
        return None if found is None else _hashed(sha256, bytes(found))

    def artifacts(self) -> Iterator[tuple[str, bytes, bytes]]:
        """All evidence and collateral of past decisions: (kind, SHA-256, bytes); each is what was kept."""
        with self._connection.execute(sa.select(schema.artifacts), execution_options={"yield_per": 100}) as rows:
            for row in rows:
                sha256 = bytes(row.sha256)
                if not ARTIFACT_KIND.fullmatch(row.kind):
                    raise StoreError(
                        f"a piece of evidence is of an unknown kind: {sha256.hex()}",
                        check="kind of evidence",
                        expected="evidence or collateral",
                        seen=repr(row.kind)[:80],
                        remedy=_LOOK_FOR_WRITER,
                    )
                yield row.kind, sha256, _hashed(sha256, bytes(row.data))

    def hash_of(self, seq: int) -> bytes | None:
        """The hash of an audit entry (0: before the first); None where there is no such entry."""
        if not 0 <= seq <= self._head.seq:
            return None
        anchor = self._ledger.anchor(seq // STEP) if seq % STEP == 0 else None
        if anchor is not None:
            return anchor.hash
        return self._head.hash if seq == self._head.seq else self._whole(seq).hash

    def policy_revision(self) -> int:
        """A number that grows with every change of a key or an approval, and when evidence is pruned."""
        return self._ledger.changed_at(self._verified_to.seq)

    # --- all that there is, against the record ----------------------------------------------------------------------

    def hold_approvals_against_record(self) -> None:
        """Compare every approval with the record; raises AuditError."""
        rows = self._connection.execute(sa.select(schema.approvals)).all()
        there = {row.id: ApprovalRevision.create(row.revision, row.state, row.document) for row in rows}
        recorded = {approval: change.revision for approval, change in self._newest_changes().items()}
        for approval_id in sorted(there.keys() | recorded.keys()):
            by_record, by_row = recorded.get(approval_id), there.get(approval_id)
            if by_record != by_row:
                raise AuditError(
                    f"approval {approval_id} is not what the audit record says",
                    check=f"approval {approval_id} against its newest entry",
                    expected=by_record or "no such approval",
                    seen=by_row or "no such approval",
                    remedy="something other than Adyton wrote to the database: restore the newest backup (adyton"
                    " restore); what was released since is in the record",
                )
        for row in rows:
            self._stored(row)

    def hold_keys_against_record(self) -> None:
        """Open every key and secret, each version that the record names and no other; raises StoreError."""
        for name in [key.name for key in self.keys()]:
            for item in self._versions(name):
                self._opened(self._key_row(name, item.version))

    def hold_rest_against_record(self) -> None:
        """Compare what else is kept: manifests, evidence, and the ids under which entries are found."""
        for row in self._connection.execute(sa.select(schema.manifests)):
            measured(row.measurement, bytes(row.manifest), row.runtime_parts)
        for _ in self.artifacts():
            pass
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


def _key_not_as_recorded(name: str, what: str, *, missing: bool) -> StoreError:
    return StoreError(
        f"key {name!r} is not as it was left: {what} {'is missing' if missing else 'was never made'}",
        check=f"versions of key {name!r} against the audit record",
        expected=f"{what}, as the record says" if missing else "only what the record says",
        seen="no such row" if missing else what,
        remedy=_LOOK_FOR_WRITER,
    )


def measured(measurement: Measurement | bytes, manifest: bytes, written_parts: str) -> tuple[bytes, dict[str, str]]:
    """Manifest and runtime parts, once they give the measurement under which they are kept."""
    try:
        parts = {str(name): str(value) for name, value in json.loads(written_parts).items()}
        found = workload_measurement(manifest, combine({name: Digest.from_hex(text) for name, text in parts.items()}))
    except (ValueError, AttributeError, RecursionError, Error):
        found = None
    raw = measurement if isinstance(measurement, bytes) else measurement.raw
    if found is None or found.raw != raw:
        raise StoreError(
            "the manifest that is kept for a measurement is another program's",
            check="measurement of the kept manifest",
            expected=raw.hex(),
            seen="parts that are no hashes" if found is None else found.hex(),
            remedy="something other than Adyton wrote to the database: do not approve what it shows; restore the newest"
            " backup (adyton restore), and look for who did",
        )
    return manifest, parts


def _hashed(sha256: bytes, data: bytes) -> bytes:
    """Evidence or collateral, once it has the hash under which it is kept."""
    seen = hashlib.sha256(data).digest()
    if seen != sha256:
        raise StoreError(
            "kept evidence is not what it was when it was decided on",
            check="SHA-256 of kept evidence",
            expected=sha256.hex(),
            seen=seen.hex(),
            remedy="something other than Adyton wrote to the database: restore a backup (adyton restore)",
        )
    return data


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash))
