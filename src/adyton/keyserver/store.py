"""The store of keys, policies, grants and the audit record: SQLite in the owner's home, or PostgreSQL.

Whoever writes holds one lock (SQLite's write lock; a row lock in PostgreSQL), so that decisions, releases, policy
changes and their audit entries happen one after the other: a revocation is either before a release, which then does
not happen, or after it. A transaction is durable before anything that it allows leaves this process.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from adyton.errors import AuditError, OutOfOrder, StoreError, UnknownKey, UsageError, VersionMismatch
from adyton.keyserver import schema
from adyton.keyserver.audit import (
    STORE_ID_BYTES,
    Checkpoint,
    Entry,
    Head,
    canonical,
    entry_hash,
    start_hash,
    verify_chain,
)
from adyton.keyserver.names import check_name
from adyton.keyserver.policy import APPROVED, REVOKED, Approval, StoredApproval
from adyton.keyserver.wrapping import WrappingKey
from adyton.values import KEY_BYTES, Key128, Measurement

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

KEY: Final = "key"
SECRET: Final = "secret"  # noqa: S105 - a kind of entry, not a secret
MAX_SECRET_BYTES: Final = 64 * 1024
BUSY_TIMEOUT_S: Final = 10
_MASTER_CHECK: Final = b"adyton master key check 1"
_POLICY_MAC: Final = b"adyton policy mac 1"
_NONCE_MAC: Final = b"adyton challenge 1"


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


def new_id(prefix: str) -> str:
    """A fresh id that both sides can quote, as `d-4f3a…` (80 random bits)."""
    return f"{prefix}-{secrets.token_hex(10)}"


def now_ms() -> int:
    """The time by this machine's clock, in ms since 1970 UTC."""
    return time.time_ns() // 1_000_000


def moment(at_ms: int) -> datetime:
    """A stored time as a datetime."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


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
    """An engine over `sqlite:///PATH` or `postgresql+psycopg://…`; raises StoreError for anything else."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
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
        engine = sa.create_engine(parsed, pool_pre_ping=True, pool_size=4)
    sa.event.listen(engine, "begin", _begin)
    return engine


class Reader:
    """A consistent view of the store, for as long as its `with` block lasts."""

    def __init__(self, store: Store, connection: sa.Connection) -> None:
        self._store = store
        self._connection = connection

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
        bound = _key_binding(self._store.id, row.name, row.version, row.kind)
        value = data_key.unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
        return KeyInfo(row.name, row.kind, row.version, moment(row.created_at)), value

    def load_key(self, name: str, *, version: int | None = None) -> Key128:
        """A protected-file key by name; raises UnknownKey, also where the name is a secret of another kind."""
        info, value = self.reveal(name, version=version)
        if info.kind != KEY:
            raise UnknownKey(f"{name!r} is a secret, not a key of protected files", check="kind", seen=info.kind)
        return Key128(value)

    def _data_key(self, version: int) -> WrappingKey:
        cached = self._store.data_key_cache.get(version)
        if cached is None:
            row = self._connection.execute(
                sa.select(schema.data_keys.c.wrapped).where(schema.data_keys.c.version == version)
            ).one_or_none()
            if row is None:
                raise StoreError(f"data key {version} is missing from the store", check="data keys of the store")
            raw = self._store.master.unwrap(
                bytes(row.wrapped), _data_key_binding(self._store.id, version), f"data key {version}"
            )
            cached = self._store.data_key_cache[version] = WrappingKey(raw)
        return cached

    def _newest_data_key(self) -> int:
        newest = self._connection.execute(sa.select(sa.func.max(schema.data_keys.c.version))).scalar_one()
        if newest is None:
            raise StoreError("the store holds no data key", check="data keys of the store")
        return int(newest)

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first; each authenticated, raises StoreError otherwise."""
        query = sa.select(schema.approvals).order_by(schema.approvals.c.changed_at.desc(), schema.approvals.c.id)
        if key is not None:
            query = query.where(schema.approvals.c.key == key)
        return [self._stored(row) for row in self._connection.execute(query)]

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
        mac = _policy_mac(self._store.policy_key, row.id, row.state, row.revision, row.document)
        if not hmac.compare_digest(mac, bytes(row.mac)):
            raise StoreError(
                f"approval {row.id} was changed by something other than Adyton",
                check=f"authentication code of approval {row.id}",
                expected="the code made under the store's own key",
                seen="another code",
                remedy="nothing is released on it: revoke and approve again, and look for who wrote to the database",
            )
        approval = Approval.from_dict(json.loads(row.document))
        if approval.key != row.key:
            raise StoreError(f"approval {row.id} is filed under another key", check="key of the approval")
        return StoredApproval(row.id, row.state, row.revision, approval, moment(row.changed_at))

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval as it was at one of its revisions."""
        found = self._connection.execute(
            sa.select(schema.history.c.document).where(
                schema.history.c.approval == approval_id, schema.history.c.revision == revision
            )
        ).scalar_one_or_none()
        return None if found is None else Approval.from_dict(json.loads(found))

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of every approval (or of one): who changed it, when, and to what; oldest first."""
        query = sa.select(schema.history).order_by(schema.history.c.at, schema.history.c.revision)
        if approval_id is not None:
            query = query.where(schema.history.c.approval == approval_id)
        return [
            {
                "approval": row.approval,
                "revision": row.revision,
                "state": row.state,
                "actor": row.actor,
                "at_ms": row.at,
                "policy": json.loads(row.document),
            }
            for row in self._connection.execute(query)
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
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, from the one after `after`."""
        table = schema.audit
        query = sa.select(table.c.seq, table.c.at, table.c.kind, table.c.body, table.c.hash).order_by(table.c.seq)
        query = query.where(table.c.seq > after)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        if subject is not None:
            query = query.where(table.c.subject == subject)
        with self._connection.execute(query, execution_options={"yield_per": 5000}) as rows:
            for row in rows:
                yield Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash))

    def newest_entries(self, limit: int, *, kinds: Sequence[str] = ()) -> list[Entry]:
        """The newest audit entries first."""
        table = schema.audit
        query = sa.select(table).order_by(table.c.seq.desc()).limit(limit)
        if kinds:
            query = query.where(table.c.kind.in_(kinds))
        return [Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash)) for row in self._connection.execute(query)]

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number."""
        table = schema.audit
        row = self._connection.execute(sa.select(table).where(table.c.seq == seq)).one_or_none()
        return None if row is None else Entry(row.seq, row.at, row.kind, row.body, bytes(row.hash))

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
            return start_hash(self._store.id)
        found = self._connection.execute(
            sa.select(schema.audit.c.hash).where(schema.audit.c.seq == seq)
        ).scalar_one_or_none()
        return None if found is None else bytes(found)

    def policy_revision(self) -> int:
        """A number that grows with every change of a key or an approval."""
        return int(self._connection.execute(sa.select(schema.chain.c.policy_revision)).scalar_one())


class Transaction(Reader):
    """A change of the store: nothing of it counts until its `with` block ends, then all of it does, durably."""

    def __init__(self, store: Store, connection: sa.Connection) -> None:
        super().__init__(store, connection)
        row = connection.execute(_LOCK_HEAD).one()
        self._head = Head(row.seq, bytes(row.hash))
        self._policy_revision = int(row.policy_revision)
        self._changed_policy = False
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self._pending_nonces: set[bytes] = set()
        self._keys_cache = store.key_cache(self._policy_revision)
        self._approval_cache = store.approval_cache(self._policy_revision)
        self.kept: set[bytes] = set()

    def head(self) -> Head:
        """Where the audit chain ends, this transaction's own entries included."""
        return self._head

    def record(self, kind: str, subject: str, body: Mapping[str, Any], at_ms: int) -> Entry:
        """Append an entry to the audit record."""
        text = canonical(body)
        seq = self._head.seq + 1
        digest = entry_hash(self._head.hash, seq, at_ms, kind, text)
        self._head = Head(seq, digest)
        row = {"seq": seq, "at": at_ms, "kind": kind, "subject": subject, "body": text, "hash": digest}
        self._later("audit", row)
        return Entry(seq, at_ms, kind, text, digest)

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None
    ) -> Generator[Entry, None, None]:
        """As for a reader, this transaction's own entries included."""
        self._flush()
        return super().entries(after=after, kind=kind, subject=subject)

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """As for a reader, this transaction's own releases included."""
        self._flush("releases")
        return super().usage(approval_id, run, at_ms, counted=counted)

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """As for a reader; the wrapped value is kept between transactions until a key or an approval changes."""
        if version is not None or self._changed_policy:
            return super().reveal(name, version=version)
        row = self._keys_cache.get(name)
        if row is None:
            row = self._keys_cache[name] = self._key_row(name, None)
        return self._opened(row)

    def has_key(self, name: str) -> bool:
        """As for a reader."""
        return name in self._keys_cache or super().has_key(name)

    def _later(self, table: str, row: dict[str, Any]) -> None:
        self._pending.setdefault(table, []).append(row)

    def _flush(self, only: str | None = None) -> None:
        for table in list(self._pending) if only is None else [only] if only in self._pending else []:
            rows = self._pending.pop(table)
            self._connection.execute(self._store.inserts[table], rows)

    def finish(self) -> None:
        """Write what is still pending; called once, before the commit."""
        self._flush()
        revision = self._policy_revision + (1 if self._changed_policy else 0)
        values = {"new_seq": self._head.seq, "new_hash": self._head.hash, "new_revision": revision}
        self._connection.execute(_MOVE_HEAD, values)

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """As for a reader; kept between transactions until a key or an approval changes."""
        if self._changed_policy:
            return super().approvals(key)
        found = self._approval_cache.get(key or "")
        if found is None:
            found = self._approval_cache[key or ""] = super().approvals(key)
        return found

    def add_key(self, name: str, value: bytes, kind: str, *, actor: str, new_version: bool = False) -> KeyInfo:
        """Store a key or secret under a new name, or (`new_version`) as the newest version of an existing one."""
        check_name(name)
        if kind == KEY and len(value) != KEY_BYTES:
            raise UsageError(f"a key has {KEY_BYTES} bytes, got {len(value)}", check="length of the key")
        if not 1 <= len(value) <= MAX_SECRET_BYTES:
            raise UsageError(
                f"a secret has 1 to {MAX_SECRET_BYTES} bytes, got {len(value)}", check="length of the secret"
            )
        rows = self._connection.execute(
            sa.select(schema.keys.c.version, schema.keys.c.kind).where(schema.keys.c.name == name)
        ).all()
        if bool(rows) != new_version:
            raise UsageError(
                f"key {name!r} {'exists already' if rows else 'does not exist'}",
                check="name of the key",
                expected="a new name" if rows else "an existing key",
                seen=name,
                remedy=f"choose another name, or make a new version of it: adyton key rotate {name}"
                if rows
                else f"make it with: adyton key new {name}",
            )
        if any(row.kind != kind for row in rows):
            raise UsageError(f"{name!r} is a {rows[0].kind}", check="kind", expected=rows[0].kind, seen=kind)
        version = 1 + max((row.version for row in rows), default=0)
        data_key = self._newest_data_key()
        wrapped = self._data_key(data_key).wrap(value, _key_binding(self._store.id, name, version, kind))
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.keys).values(
                name=name, version=version, kind=kind, data_key=data_key, wrapped=wrapped, created_at=at
            )
        )
        self._changed_policy = True
        self.record("key-added", name, {"key": name, "version": version, "kind": kind, "actor": actor}, at)
        return KeyInfo(name, kind, version, moment(at))

    def add_approval(self, approval: Approval, *, actor: str, state: str = APPROVED) -> StoredApproval:
        """Store a new approval; raises UnknownKey where its key does not exist."""
        if not self.has_key(approval.key):
            self.reveal(approval.key)
        approval_id = new_id("a")
        document = canonical(approval.to_dict())
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.approvals).values(
                id=approval_id,
                key=approval.key,
                state=state,
                revision=1,
                document=document,
                changed_at=at,
                mac=_policy_mac(self._store.policy_key, approval_id, state, 1, document),
            )
        )
        self._note_change(approval_id, 1, state, approval, actor, at)
        if approval.measurement is not None:
            self._connection.execute(
                sa.delete(schema.candidates).where(
                    schema.candidates.c.measurement == approval.measurement.raw,
                    schema.candidates.c.key == approval.key,
                )
            )
        return StoredApproval(approval_id, state, 1, approval, moment(at))

    def change_approval(
        self, approval_id: str, *, actor: str, state: str | None = None, approval: Approval | None = None
    ) -> StoredApproval:
        """Change an approval's state or content; the former revision stays in the history."""
        before = self.approval(approval_id)
        after = before.approval if approval is None else approval
        if after.key != before.approval.key:
            raise UsageError(
                "an approval stays with its key", check="key", expected=before.approval.key, seen=after.key
            )
        new_state = before.state if state is None else state
        if before.state == REVOKED and new_state != REVOKED:
            raise UsageError(
                f"approval {approval_id} was revoked and stays so",
                check="state of the approval",
                expected="pending or approved",
                seen=REVOKED,
                remedy="make a new one with adyton approve",
            )
        revision = before.revision + 1
        document = canonical(after.to_dict())
        at = now_ms()
        self._connection.execute(
            sa.update(schema.approvals)
            .where(schema.approvals.c.id == approval_id)
            .values(
                state=new_state,
                revision=revision,
                document=document,
                changed_at=at,
                mac=_policy_mac(self._store.policy_key, approval_id, new_state, revision, document),
            )
        )
        self._note_change(approval_id, revision, new_state, after, actor, at)
        return StoredApproval(approval_id, new_state, revision, after, moment(at))

    def _note_change(
        self, approval_id: str, revision: int, state: str, approval: Approval, actor: str, at: int
    ) -> None:
        document = canonical(approval.to_dict())
        self._connection.execute(
            sa.insert(schema.history).values(
                approval=approval_id, revision=revision, state=state, document=document, actor=actor[:128], at=at
            )
        )
        self._changed_policy = True
        body = {
            "approval": approval_id,
            "revision": revision,
            "state": state,
            "policy": approval.to_dict(),
            "actor": actor[:128],
        }
        self.record("policy", approval_id, body, at)

    def remember(self, measurement: Measurement, manifest: bytes, runtime_parts: Mapping[str, str]) -> None:
        """Keep what a measurement stands for; whoever calls this has checked that it does."""
        known = self._connection.execute(
            sa.select(schema.manifests.c.added_at).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        if known is None:
            self._connection.execute(
                sa.insert(schema.manifests).values(
                    measurement=measurement.raw,
                    manifest=manifest,
                    runtime_parts=canonical(runtime_parts),
                    added_at=now_ms(),
                )
            )

    def add_release(self, release: Release) -> None:
        """Note that a run has a key."""
        row = {
            "id": release.id,
            "approval": release.approval,
            "run": release.run,
            "key": release.key,
            "key_version": release.key_version,
            "at": release.at_ms,
            "lease_until": release.lease_until_ms,
            "used_at": release.used_at_ms,
        }
        self._later("releases", row)

    def use_nonce(self, nonce: bytes, expires_at_ms: int, at_ms: int) -> None:
        """Use a challenge up; raises OutOfOrder where it was used before."""
        seen = nonce in self._pending_nonces
        if seen or self._connection.execute(_FIND_NONCE, {"nonce": nonce}).one_or_none() is not None:
            raise OutOfOrder(
                "this challenge was answered before",
                check="challenge",
                expected="a challenge that is answered once",
                seen="its second answer",
                remedy="ask for a new challenge",
            )
        self._pending_nonces.add(nonce)
        self._later("nonces", {"nonce": nonce, "expires_at": expires_at_ms})
        if nonce[-1] == 0:
            self._connection.execute(_FORGET_NONCES, {"before": at_ms - 60_000})

    def add_grant(self, grant_id: str, token_sha256: bytes, at_ms: int) -> None:
        """Expect an acknowledgement of this grant."""
        self._later("grants", {"id": grant_id, "token": token_sha256, "at": at_ms, "used_at": None})

    def use_grant(self, grant_id: str, token: bytes, at_ms: int) -> bool:
        """Note that the enclave acknowledged a grant; False where no such grant awaits this token."""
        table = schema.grants
        row = self._connection.execute(sa.select(table).where(table.c.id == grant_id)).one_or_none()
        if row is None or not hmac.compare_digest(bytes(row.token), hashlib.sha256(token).digest()):
            return False
        if row.used_at is None:
            self._connection.execute(sa.update(table).where(table.c.id == grant_id).values(used_at=at_ms))
            self.record("used", grant_id, {"grant": grant_id}, at_ms)
        return True

    def note_candidate(self, measurement: Measurement, tee: str, key: str, denial: str, at_ms: int) -> None:
        """Note that a program on a genuine platform asked for a key that it is not approved for."""
        table = schema.candidates
        where = (table.c.measurement == measurement.raw, table.c.tee == tee, table.c.key == key)
        done = self._connection.execute(
            sa.update(table).where(*where).values(last_at=at_ms, requests=table.c.requests + 1, denial=denial)
        )
        if done.rowcount == 0:
            self._connection.execute(
                sa.insert(table).values(
                    measurement=measurement.raw,
                    tee=tee,
                    key=key,
                    first_at=at_ms,
                    last_at=at_ms,
                    requests=1,
                    denial=denial,
                )
            )

    def keep_artifact(self, kind: str, data: bytes, at_ms: int) -> bytes:
        """Keep evidence or collateral once, under its SHA-256, which is returned."""
        sha256 = hashlib.sha256(data).digest()
        if sha256 not in self.kept and not self._store.knows_artifact(sha256):
            self._later("artifacts", {"sha256": sha256, "kind": kind, "data": data, "at": at_ms})
            self.kept.add(sha256)
        return sha256

    def rotate_data_key(self, *, actor: str) -> int:
        """Make a new data key and wrap every key and secret again under it; returns its version."""
        version = self._newest_data_key() + 1
        data_key = WrappingKey.generate()
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.data_keys).values(
                version=version,
                wrapped=self._store.master.wrap(data_key.reveal(), _data_key_binding(self._store.id, version)),
                created_at=at,
            )
        )
        for row in self._connection.execute(sa.select(schema.keys)).all():
            bound = _key_binding(self._store.id, row.name, row.version, row.kind)
            value = self._data_key(row.data_key).unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
            self._connection.execute(
                sa.update(schema.keys)
                .where(schema.keys.c.name == row.name, schema.keys.c.version == row.version)
                .values(wrapped=data_key.wrap(value, bound), data_key=version)
            )
        self._connection.execute(sa.delete(schema.data_keys).where(schema.data_keys.c.version < version))
        self._changed_policy = True
        self.record("data-key-rotated", "", {"version": version, "actor": actor}, at)
        return version

    def rewrap(self, new_master: WrappingKey, *, actor: str) -> None:
        """Wrap the data keys under another master key; the caller then puts it in the old one's place."""
        for row in self._connection.execute(sa.select(schema.data_keys)).all():
            bound = _data_key_binding(self._store.id, row.version)
            raw = self._store.master.unwrap(bytes(row.wrapped), bound, f"data key {row.version}")
            self._connection.execute(
                sa.update(schema.data_keys)
                .where(schema.data_keys.c.version == row.version)
                .values(wrapped=new_master.wrap(raw, bound))
            )
        secrets_of_store = self._store.secrets_under(new_master)
        for name, value in secrets_of_store.items():
            self._connection.execute(sa.update(schema.meta).where(schema.meta.c.name == name).values(value=value))
        self.record("master-key-rotated", "", {"actor": actor}, now_ms())


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
_FIND_NONCE: Final = sa.select(schema.nonces.c.nonce).where(schema.nonces.c.nonce == sa.bindparam("nonce"))
_FORGET_NONCES: Final = sa.delete(schema.nonces).where(schema.nonces.c.expires_at < sa.bindparam("before"))
_LOCK_HEAD: Final = sa.select(schema.chain).with_for_update()
_MOVE_HEAD: Final = sa.update(schema.chain).values(
    seq=sa.bindparam("new_seq"), hash=sa.bindparam("new_hash"), policy_revision=sa.bindparam("new_revision")
)


def _inserts(dialect: str) -> dict[str, sa.Insert]:
    """The statements of everything that a transaction writes at its end; an artifact that is there already stays."""
    found = {table.name: sa.insert(table) for table in (schema.audit, schema.releases, schema.grants, schema.nonces)}
    if dialect == "sqlite":
        found["artifacts"] = sqlite.insert(schema.artifacts).on_conflict_do_nothing()
    else:
        found["artifacts"] = postgresql.insert(schema.artifacts).on_conflict_do_nothing()
    return found


def _release(row: Any) -> Release:
    return Release(row.id, row.approval, row.run, row.key, row.key_version, row.at, row.lease_until, row.used_at)


def _key_binding(store_id: bytes, name: str, version: int, kind: str) -> bytes:
    return b"\0".join((b"adyton key 1", store_id.hex().encode(), name.encode(), str(version).encode(), kind.encode()))


def _data_key_binding(store_id: bytes, version: int) -> bytes:
    return b"\0".join((b"adyton data key 1", store_id.hex().encode(), str(version).encode()))


def _policy_mac(key: bytes, approval_id: str, state: str, revision: int, document: str) -> bytes:
    parts = [approval_id.encode(), state.encode(), str(revision).encode(), document.encode()]
    framed = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(key, framed, "sha256")


class Store:
    """An open store: `read()` and `write()` are its two doors."""

    def __init__(self, engine: sa.Engine, master: WrappingKey) -> None:
        self.engine = engine
        self.master = master
        self.data_key_cache: dict[int, WrappingKey] = {}
        self._approvals: tuple[int, dict[str, list[StoredApproval]]] = (-1, {})
        self._keys: tuple[int, dict[str, Any]] = (-1, {})
        self._artifacts: set[bytes] = set()
        self.inserts = _inserts(engine.dialect.name)
        facts = self._facts()
        version = int(facts["schema"])
        if version > schema.SCHEMA_VERSION:
            raise VersionMismatch(
                f"this store was made by a newer Adyton (schema {version})",
                check="schema of the store",
                expected=f"at most {schema.SCHEMA_VERSION}",
                seen=version,
                remedy="upgrade Adyton on this machine",
            )
        self.id = facts["id"]
        state = master.unwrap(facts["state"], _MASTER_CHECK + self.id, "the store")
        self._state_key = WrappingKey(state)
        self.policy_key = self._state_key.derive(_POLICY_MAC)
        self.challenge_key = self._state_key.derive(_NONCE_MAC)
        if version < schema.SCHEMA_VERSION:
            self._migrate(version)

    @classmethod
    def create(cls, url: str, master: WrappingKey, *, actor: str) -> Store:
        """Make the tables of a new store; raises StoreError where there is one already."""
        engine = make_engine(url)
        store_id = secrets.token_bytes(STORE_ID_BYTES)
        state_key = WrappingKey.generate()
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
                        {"name": "state", "value": master.wrap(state_key.reveal(), _MASTER_CHECK + store_id)},
                    ],
                )
                connection.execute(
                    sa.insert(schema.chain).values(id=1, seq=0, hash=start_hash(store_id), policy_revision=0)
                )
                connection.execute(
                    sa.insert(schema.data_keys).values(
                        version=1,
                        wrapped=master.wrap(data_key.reveal(), _data_key_binding(store_id, 1)),
                        created_at=now_ms(),
                    )
                )
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error
        store = cls(engine, master)
        with store.write() as change:
            change.record("store-created", "", {"actor": actor, "schema": schema.SCHEMA_VERSION}, now_ms())
        return store

    @classmethod
    def open(cls, url: str, master: WrappingKey) -> Store:
        """Open an existing store; raises StoreError where there is none, or the master key is another's."""
        return cls(make_engine(url), master)

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

    def _migrate(self, version: int) -> None:
        with self.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
            for step in range(version + 1, schema.SCHEMA_VERSION + 1):
                schema.MIGRATIONS[step](connection)
            connection.execute(
                sa.update(schema.meta)
                .where(schema.meta.c.name == "schema")
                .values(value=str(schema.SCHEMA_VERSION).encode())
            )

    def secrets_under(self, master: WrappingKey) -> dict[str, bytes]:
        """The store's own secret facts, wrapped under `master`."""
        return {"state": master.wrap(self._state_key.reveal(), _MASTER_CHECK + self.id)}

    def approval_cache(self, revision: int) -> dict[str, list[StoredApproval]]:
        """Approvals read earlier at this revision of keys and policies; the caller holds the write lock."""
        if self._approvals[0] != revision:
            self._approvals = (revision, {})
        return self._approvals[1]

    def key_cache(self, revision: int) -> dict[str, Any]:
        """Wrapped keys read earlier at this revision; the caller holds the write lock."""
        if self._keys[0] != revision:
            self._keys = (revision, {})
        return self._keys[1]

    def knows_artifact(self, sha256: bytes) -> bool:
        """Whether this artifact was stored earlier by this process."""
        return sha256 in self._artifacts

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A consistent view of the store."""
        try:
            with self.engine.connect() as connection, connection.begin():
                yield Reader(self, connection)
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A change of the store: durable when the block ends, undone when it raises."""
        try:
            with self.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
                transaction = Transaction(self, connection)
                yield transaction
                transaction.finish()
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error) from error
        if len(self._artifacts) > 1000:
            self._artifacts.clear()
        self._artifacts |= transaction.kept

    def verify_audit(self, checkpoints: Sequence[Checkpoint] = ()) -> Head:
        """Verify the whole audit record, and that the chain row agrees with it; raises AuditError."""
        with self.read() as view:
            claimed = view.head()
            with closing(view.entries()) as entries:
                head = verify_chain(self.id, entries, checkpoints)
        if head != claimed:
            raise AuditError(
                "the audit record does not end where the store says it ends",
                check="head of the audit record",
                expected=f"entry {claimed.seq}",
                seen=f"entry {head.seq}",
                remedy="entries were removed: restore a backup, and compare with the checkpoints that clients hold",
            )
        return head

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def store_error(error: sa.exc.SQLAlchemyError) -> StoreError:
    """What the database said, without the values that a statement carried."""
    cause = getattr(error, "orig", None)
    text = str(cause if cause is not None else type(error).__name__).splitlines()[0][:200]
    return StoreError(
        f"the database refused: {text}",
        check="database",
        expected="a database that can be read and written",
        seen=text,
        remedy="check the disk, the permissions and store.url in config.toml; nothing was released",
    )
