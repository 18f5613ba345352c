"""What can be read of a store, and in which values; keys and approvals are authenticated before they are believed."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from adyton.errors import AuditError, StoreError, UnknownKey, UsageError
from adyton.keyserver import schema
from adyton.keyserver.audit import Entry, Head, start_hash
from adyton.keyserver.clock import moment
from adyton.keyserver.policy import Approval, StoredApproval
from adyton.keyserver.standing import POLICY, Stand
from adyton.values import Key128, Measurement

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from datetime import datetime

    from adyton.keyserver.keyring import Keyring
    from adyton.keyserver.standing import Standing
    from adyton.keyserver.wrapping import WrappingKey

AWAITED: Final = "awaited"
USED: Final = "used"
"""States of a grant."""
KEY: Final = "key"
SECRET: Final = "secret"  # noqa: S105 - a kind of entry, not a secret
_OWN_LEASE: Final = (
    sa.select(schema.releases)
    .where(
        schema.releases.c.approval == sa.bindparam("approval"),
        schema.releases.c.run == sa.bindparam("run"),
        schema.releases.c.lease_until > sa.bindparam("at"),
    )
    .limit(1)
)
_COUNT_RUNS: Final = sa.select(sa.func.count(sa.distinct(schema.releases.c.run))).where(
    schema.releases.c.approval == sa.bindparam("approval")
)
_COUNT_ACTIVE: Final = sa.select(sa.func.count(sa.distinct(schema.releases.c.run))).where(
    schema.releases.c.approval == sa.bindparam("approval"), schema.releases.c.lease_until > sa.bindparam("at")
)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be told about a key: its name, newest version, kind and age; never its value."""

    name: str
    kind: str
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Release:
    """One key given to one run."""

    id: str
    approval: str
    run: str
    key: str
    key_version: int
    at_ms: int
    lease_until_ms: int
    used_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """How far an approval's limits are used up, seen from one run."""

    runs: int
    active: int
    own: Release | None
    """The release that this run holds already, with a lease that still lasts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program on a genuine platform that asked for a key and was not approved."""

    measurement: Measurement
    tee: str
    key: str
    first_at_ms: int
    last_at_ms: int
    requests: int
    denial: str


class Reader:
    """A view of the store as of one moment, for as long as its `with` block lasts."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, standing: Standing) -> None:
        self._connection = connection
        self._keyring = keyring
        self._standing = standing
        self._ends_at: int | None = None

    def head(self) -> Head:
        """Where the audit chain ends."""
        row = self._connection.execute(sa.select(schema.chain.c.seq, schema.chain.c.hash)).one()
        return Head(row.seq, bytes(row.hash))

    def keys(self) -> list[KeyInfo]:
        """Every key and secret at its newest version, by name."""
        rows = self._connection.execute(sa.select(schema.keys).order_by(schema.keys.c.name, schema.keys.c.version))
        newest = {row.name: row for row in rows}
        return [KeyInfo(row.name, row.kind, row.version, moment(row.created_at)) for row in newest.values()]

    def has_key(self, name: str) -> bool:
        """Whether a key or secret of this name exists."""
        query = sa.select(schema.keys.c.version).where(schema.keys.c.name == name).limit(1)
        return self._connection.execute(query).one_or_none() is not None

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """Unwrap a key or secret (its newest version unless one is named); raises UnknownKey."""
        return self._opened(self._key_row(name, version))

    def _key_row(self, name: str, version: int | None) -> Any:
        query = sa.select(schema.keys).where(schema.keys.c.name == name).order_by(schema.keys.c.version.desc()).limit(1)
        if version is not None:
            query = query.where(schema.keys.c.version == version)
        row = self._connection.execute(query).one_or_none()
        if row is None:
            wanted = f"{name!r}" if version is None else f"{name!r} version {version}"
            known = ", ".join(key.name for key in self.keys()) or "none"
            raise UnknownKey(
                f"no key {wanted}",
                check="name of the key",
                expected=f"one of: {known}",
                seen=name,
                remedy=f"make it with: adyton key new {name}",
            )
        return row

    def _opened(self, row: Any) -> tuple[KeyInfo, bytes]:
        data_key = self._data_key(row.data_key)
        bound = self._keyring.key_binding(row.name, row.version, row.kind)
        value = data_key.unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
        return KeyInfo(row.name, row.kind, row.version, moment(row.created_at)), value

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
                raise StoreError(f"data key {version} is missing from the store", check="data keys of the store")
            cached = self._keyring.data_keys[version] = self._keyring.open_data_key(version, bytes(row.wrapped))
        return cached

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first.

        Each is authenticated, and is what the audit record says that it is; raises StoreError otherwise.
        """
        query = sa.select(schema.approvals).order_by(schema.approvals.c.changed_at.desc(), schema.approvals.c.id)
        if key is not None:
            query = query.where(schema.approvals.c.key == key)
        return [self._stored(row) for row in self._connection.execute(query).all()]

    def approval(self, approval_id: str) -> StoredApproval:
        """One approval by its id; raises UsageError where there is none."""
        row = self._connection.execute(
            sa.select(schema.approvals).where(schema.approvals.c.id == approval_id)
        ).one_or_none()
        if row is None:
            raise UsageError(
                f"no approval {approval_id[:40]!r}",
                check="approval id",
                expected="an id that adyton policy show lists",
                seen=approval_id[:40],
            )
        return self._stored(row)

    def _stored(self, row: Any) -> StoredApproval:
        self._authenticate(row)
        there, recorded = Stand.of(row.revision, row.state, row.document), self._newest(row.id)
        if there != recorded:
            raise StoreError(
                f"approval {row.id} is not as it was left: an older one was put back",
                check=f"newest revision of approval {row.id}",
                expected=f"what the audit record says: {recorded or 'no such approval'}",
                seen=there,
                remedy="nothing is released on it: restore the newest backup (adyton restore), and look for who wrote"
                " to the database",
            )
        approval = Approval.from_dict(json.loads(row.document))
        if approval.key != row.key:
            raise StoreError(f"approval {row.id} is filed under another key", check="key of the approval")
        return StoredApproval(row.id, row.state, row.revision, approval, moment(row.changed_at))

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

    def _newest(self, approval_id: str) -> Stand | None:
        """How an approval stands by the audit record as this view sees it."""
        if self._ends_at is None:
            self._ends_at = self.head().seq
        self._standing.read_on(self._ends_at, self._policy_entries)
        return self._standing.newest(approval_id, self._ends_at)

    def _policy_entries(self, after: int, to: int) -> Iterator[Entry]:
        table = schema.audit
        query = sa.select(table).where(table.c.kind == POLICY, table.c.seq > after, table.c.seq <= to)
        return map(_entry, self._connection.execute(query.order_by(table.c.seq)))

    def hold_approvals_against(self, recorded: Standing, to: int) -> None:
        """Compare every approval with a record that was verified up to entry `to`; raises AuditError."""
        rows = self._connection.execute(sa.select(schema.approvals)).all()
        there = {row.id: Stand.of(row.revision, row.state, row.document) for row in rows}
        for approval_id in sorted(there.keys() | recorded.approvals()):
            by_record, by_row = recorded.newest(approval_id, to), there.get(approval_id)
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
            self._authenticate(row)

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval as it was at one of its revisions, by the audit record."""
        found = (json.loads(entry.body) for entry in self.entries(kind=POLICY, subject=approval_id))
        return next(
            (
                Approval.from_dict(body["policy"])
                for body in found
                if (body["approval"], body["revision"]) == (approval_id, revision)
            ),
            None,
        )

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of every approval (or of one) by the audit record: who changed it, when, and to what."""
        found = [(entry.at_ms, json.loads(entry.body)) for entry in self.entries(kind=POLICY)]
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
            if approval_id in (None, body["approval"])
        ]

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """How much of an approval's limits is used (unless not `counted`), and whether this run holds a lease."""
        values = {"approval": approval_id, "run": run, "at": at_ms}
        own = self._connection.execute(_OWN_LEASE, values).one_or_none()
        runs = active = 0
        if counted:
            runs = self._connection.execute(_COUNT_RUNS, {"approval": approval_id}).scalar_one()
            active = self._connection.execute(_COUNT_ACTIVE, {"approval": approval_id, "at": at_ms}).scalar_one()
        return Usage(runs, active, None if own is None else _release(own))

    def grant_state(self, grant_id: str, token: bytes) -> str | None:
        """Whether a grant awaits its acknowledgement or has it; None where there is none with this token."""
        row = self._connection.execute(sa.select(schema.grants).where(schema.grants.c.id == grant_id)).one_or_none()
        if row is None or not hmac.compare_digest(bytes(row.token), hashlib.sha256(token).digest()):
            return None
        return AWAITED if row.used_at is None else USED

    def releases(self, limit: int = 100) -> list[Release]:
        """The newest releases first."""
        rows = self._connection.execute(sa.select(schema.releases).order_by(schema.releases.c.at.desc()).limit(limit))
        return [_release(row) for row in rows]

    def candidates(self) -> list[Candidate]:
        """Programs that asked and were not approved, the last to ask first."""
        rows = self._connection.execute(sa.select(schema.candidates).order_by(schema.candidates.c.last_at.desc()))
        return [
            Candidate(
                Measurement(bytes(row.measurement)),
                row.tee,
                row.key,
                row.first_at,
                row.last_at,
                row.requests,
                row.denial,
            )
            for row in rows
        ]

    def behind(self, measurement: Measurement) -> tuple[bytes, dict[str, str]] | None:
        """The manifest and runtime parts that a measurement stands for, where they are known."""
        row = self._connection.execute(
            sa.select(schema.manifests).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        return None if row is None else (bytes(row.manifest), json.loads(row.runtime_parts))

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, from the one after `after`; those of a time on, where that is named."""
        table = schema.audit
        query = sa.select(table.c.seq, table.c.at, table.c.kind, table.c.body, table.c.hash).order_by(table.c.seq)
        query = query.where(table.c.seq > after)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        if subject is not None:
            query = query.where(table.c.subject == subject)
        if since_ms is not None:
            query = query.where(table.c.at >= since_ms)
        with self._connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            yield from map(_entry, rows)

    def newest_entries(self, limit: int, *, kinds: Sequence[str] = (), before: int | None = None) -> list[Entry]:
        """The newest audit entries first, or the newest of those before one."""
        table = schema.audit
        query = sa.select(table).order_by(table.c.seq.desc()).limit(limit)
        if kinds:
            query = query.where(table.c.kind.in_(kinds))
        if before is not None:
            query = query.where(table.c.seq < before)
        return [_entry(row) for row in self._connection.execute(query)]

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number."""
        table = schema.audit
        row = self._connection.execute(sa.select(table).where(table.c.seq == seq)).one_or_none()
        return None if row is None else _entry(row)

    def artifact(self, sha256: bytes) -> bytes | None:
        """Evidence or collateral of a past decision."""
        found = self._connection.execute(
            sa.select(schema.artifacts.c.data).where(schema.artifacts.c.sha256 == sha256)
        ).scalar_one_or_none()
        return None if found is None else bytes(found)

    def artifacts(self) -> Iterator[tuple[str, bytes, bytes]]:
        """All evidence and collateral of past decisions: (kind, SHA-256, bytes)."""
        with self._connection.execute(sa.select(schema.artifacts), execution_options={"yield_per": 100}) as rows:
            for row in rows:
                yield row.kind, bytes(row.sha256), bytes(row.data)

    def hash_of(self, seq: int) -> bytes | None:
        """The hash of an audit entry (0: before the first); None where there is no such entry."""
        if seq == 0:
            return start_hash(self._keyring.store_id)
        found = self._connection.execute(
            sa.select(schema.audit.c.hash).where(schema.audit.c.seq == seq)
        ).scalar_one_or_none()
        return None if found is None else bytes(found)

    def policy_revision(self) -> int:
        """A number that grows with every change of a key or an approval, and when evidence is pruned."""
        return int(self._connection.execute(sa.select(schema.chain.c.policy_revision)).scalar_one())


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash))


def _release(row: Any) -> Release:
    return Release(row.id, row.approval, row.run, row.key, row.key_version, row.at, row.lease_until, row.used_at)
