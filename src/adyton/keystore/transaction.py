"""What can be changed in a store, all of it in one transaction and with its entry in the audit record.

Whoever writes holds one lock (SQLite's write lock; a row lock in PostgreSQL), so that decisions, releases, policy
changes and their audit entries happen one after the other: a revocation is either before a release, which then does
not happen, or after it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from adyton.errors import OutOfOrder, StoreError, UsageError
from adyton.keystore import schema
from adyton.keystore.approval import APPROVED, REVOKED, Approval, StoredApproval
from adyton.keystore.approval_gaps import check_sound
from adyton.keystore.audit import Entry, Head, canonical, entry_hash
from adyton.keystore.clock import moment, now_ms
from adyton.keystore.facts import DATA_KEY_ROTATED, DISMISSED, KEY_ADDED, POLICY, USED, Candidate, Facts
from adyton.keystore.names import check_name, new_id
from adyton.keystore.reader import AWAITED, FACTS, KEY, KeyInfo, Reader, Usage, measured
from adyton.keystore.wrapping import WrappingKey
from adyton.values import KEY_BYTES, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.facts import Change, KeyVersion
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger

MAX_SECRET_BYTES: Final = 64 * 1024
FACTS_EVERY: Final = 10_000
"""After so many entries what the record says is written down anew, so that whoever opens the store reads few."""

KNOWN_NONCES: Final = 20_000
"""Above so many, challenges that have expired are forgotten."""
MAX_KNOWN_ARTIFACTS: Final = 1000
EVIDENCE: Final = "evidence"
REFUSED: Final = "refused"
"""Kinds of artifacts: evidence of releases, and of refusals, which is kept within bounds."""

FORGOTTEN_AT_ONCE: Final = 500
_FIND_NONCE: Final = sa.select(schema.nonces.c.nonce).where(schema.nonces.c.nonce == sa.bindparam("nonce"))
_FORGET_NONCES: Final = sa.delete(schema.nonces).where(schema.nonces.c.expires_at < sa.bindparam("before"))
_LOCK_HEAD: Final = sa.select(schema.chain).with_for_update()
_MOVE_HEAD: Final = sa.update(schema.chain).values(
    seq=sa.bindparam("new_seq"), hash=sa.bindparam("new_hash"), mac=sa.bindparam("new_mac")
)


_RELEASED: Final = "released"
"""What is pending of artifacts that stay: the evidence of releases."""


def _inserts(artifact: sqlite.Insert | postgresql.Insert) -> dict[str, sa.Insert]:
    found = {table.name: sa.insert(table) for table in (schema.audit, schema.nonces)}
    kind = {"kind": artifact.excluded.kind}
    return {
        **found,
        "artifacts": artifact.on_conflict_do_nothing(),
        _RELEASED: artifact.on_conflict_do_update(index_elements=[schema.artifacts.c.sha256], set_=kind),
    }


_INSERTS: Final = {
    "sqlite": _inserts(sqlite.insert(schema.artifacts)),
    "postgresql": _inserts(postgresql.insert(schema.artifacts)),
}
"""By dialect: the statements of everything written at the end.

An artifact that is there already stays; one that a release names is of that kind from then on.
"""


class Approvals:
    """All approvals, newest change first, and the same by key: what is kept grows with approvals, not with requests."""

    def __init__(self, every: list[StoredApproval]) -> None:
        self.every = every
        self._by_key: dict[str, list[StoredApproval]] = {}
        for stored in every:
            self._by_key.setdefault(stored.approval.key, []).append(stored)

    def of(self, key: str | None) -> list[StoredApproval]:
        """Those of one key, or all of them (None)."""
        return self.every if key is None else self._by_key.get(key, [])


class Cache:
    """What earlier transactions of this process read and kept, so that the next need not ask the database for it.

    Kept by the entry of the verified record that last changed a key or an approval: no number that somebody could
    write to the database brings back what was before it. Whoever asks holds the write lock.
    """

    def __init__(self) -> None:
        self._approvals: tuple[int, Approvals] | None = None
        self._keys: tuple[int, dict[str, Any]] = (-1, {})
        self._artifacts: tuple[int, set[bytes]] = (-1, set())
        self._nonces: dict[bytes, int] = {}
        self._forget_above = KNOWN_NONCES

    def approvals(self, changed_at: int, load: Callable[[], list[StoredApproval]]) -> Approvals:
        """All approvals since this entry."""
        if self._approvals is None or self._approvals[0] != changed_at:
            self._approvals = (changed_at, Approvals(load()))
        return self._approvals[1]

    def keys(self, changed_at: int) -> dict[str, Any]:
        """Wrapped keys read since this entry."""
        if self._keys[0] != changed_at:
            self._keys = (changed_at, {})
        return self._keys[1]

    def artifacts(self, changed_at: int) -> set[bytes]:
        """Artifacts known to be stored since this entry."""
        if self._artifacts[0] != changed_at or len(self._artifacts[1]) > MAX_KNOWN_ARTIFACTS:
            self._artifacts = (changed_at, set())
        return self._artifacts[1]

    def knows_nonce(self, nonce: bytes) -> bool:
        """Whether this process used up this challenge, whatever the database says."""
        return nonce in self._nonces

    def note_nonces(self, nonces: Mapping[bytes, int], at_ms: int) -> None:
        """Note challenges that are used up, by when they expire."""
        self._nonces.update(nonces)
        if len(self._nonces) > self._forget_above:
            self._nonces = {nonce: expires for nonce, expires in self._nonces.items() if expires >= at_ms - 60_000}
            self._forget_above = KNOWN_NONCES + 2 * len(self._nonces)


class Transaction(Reader):
    """A change of the store: nothing of it counts until its `with` block ends, then all of it does, durably."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, ledger: Ledger, cache: Cache) -> None:
        super().__init__(connection, keyring, ledger)
        self._cache = cache
        self._said = Facts(is_whole=False)
        """What this transaction's own entries say."""
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self._own_nonces: dict[bytes, int] = {}
        self._own_data_keys: dict[int, WrappingKey] = {}
        self._kept: set[bytes] = set()
        self._keys_cache: dict[str, Any] = {}
        self._known_artifacts: set[bytes] = set()

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """As for a reader."""
        super().begin(known, kept)
        self._keys_cache = self._cache.keys(self.policy_revision())
        self._known_artifacts = self._cache.artifacts(self.policy_revision())

    def _chain_row(self) -> Any:
        return self._connection.execute(_LOCK_HEAD).one()

    @property
    def has_added(self) -> bool:
        """Whether this transaction adds to the record."""
        return bool(self._own)

    @property
    def has_changed_policy(self) -> bool:
        """Whether this transaction changes a key or an approval."""
        return bool(self._said.changes)

    def check_kept(self, view: Reader) -> None:
        """Hold a later view, which has not begun, against what this transaction wrote; raises StoreError."""
        there = {entry.seq: entry for entry in view.load(self._verified_to.seq, self._head.seq)}
        missing = [entry for entry in self._own if there.get(entry.seq) != entry]
        if missing or view.head().seq < self._head.seq:
            raise StoreError(
                "the database did not keep what was written to it: the change does not count",
                check="audit record after the change",
                expected=f"entry {missing[0].seq if missing else self._head.seq}, as it was written",
                seen="another entry, or none",
                remedy="something in the database undoes what is written, as a trigger does: stop the key server, and"
                " look for who wrote to the database",
            )

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
        entry = Entry(seq, at_ms, kind, text, digest)
        self._own.append(entry)
        self._said.note(entry)
        return entry

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """As for a reader, this transaction's own entries included."""
        self._flush()
        return super().entries(after=after, kind=kind, subject=subject, since_ms=since_ms)

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """As for a reader, this transaction's own releases included."""
        found = super().usage(approval_id, run, at_ms, counted=counted)
        own = found.own or self._said.lease(approval_id, run, at_ms)
        if not counted:
            return Usage(0, 0, own)
        held = self._said.leases.get(approval_id, {}).items()
        lasting = [run for run, lease in held if lease.until_ms > at_ms]
        active = sum(self._ledger.lease(approval_id, run, at_ms) is None for run in lasting)
        return Usage(found.runs + self._said.runs.get(approval_id, 0), found.active + active, own)

    def candidates(self) -> list[Candidate]:
        """As for a reader, with those that wait since this transaction."""
        return self._ledger.candidates(self._own)

    def _newest(self, approval_id: str) -> Change | None:
        return self._said.newest(approval_id, self._head.seq) or super()._newest(approval_id)

    def _standing(self) -> dict[str, Change]:
        return {**super()._standing(), **self._said.standing(self._head.seq)}

    def _changes_of(self, approval_id: str | None) -> list[int]:
        said = self._said.approvals
        own = [change.seq for name in said if approval_id in (None, name) for change in said[name]]
        return super()._changes_of(approval_id) + sorted(own)

    def _key_names(self) -> list[str]:
        return sorted({*super()._key_names(), *self._said.keys})

    def _versions(self, name: str) -> list[KeyVersion]:
        return super()._versions(name) + self._said.keys.get(name, [])

    def _newest_data_key(self) -> int:
        return self._said.data_keys[-1][1] if self._said.data_keys else super()._newest_data_key()

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """As for a reader; the wrapped value is kept between transactions until a key or an approval changes."""
        if version is not None or self.has_changed_policy:
            return super().reveal(name, version=version)
        row = self._keys_cache.get(name)
        if row is None:
            row = self._keys_cache[name] = self._key_row(name, None)
        return self._opened(row)

    def _later(self, table: str, row: dict[str, Any]) -> None:
        self._pending.setdefault(table, []).append(row)

    def _flush(self, only: str | None = None) -> None:
        for table in list(self._pending) if only is None else [only] if only in self._pending else []:
            rows = self._pending.pop(table)
            self._connection.execute(_INSERTS[self._connection.dialect.name][table], rows)

    def finish(self) -> None:
        """Write what is still pending; called once, before the commit."""
        self._flush()
        if self._head == self._verified_to:
            return
        self._keep_facts()
        mac = self._keyring.head_mac(self._head)
        self._connection.execute(_MOVE_HEAD, {"new_seq": self._head.seq, "new_hash": self._head.hash, "new_mac": mac})

    def _keep_facts(self) -> None:
        """Write down what the record said before this transaction, if that is long ago."""
        if self._verified_to.seq - self._ledger.kept_to < FACTS_EVERY:
            return
        raw = json.dumps(self._ledger.to_dict(), separators=(",", ":")).encode()
        self._connection.execute(sa.delete(schema.meta).where(schema.meta.c.name == FACTS))
        value = self._keyring.facts_mac(raw) + raw
        self._connection.execute(sa.insert(schema.meta).values(name=FACTS, value=value))
        self._ledger.kept_to = self._verified_to.seq

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """As for a reader; kept between transactions until a key or an approval changes."""
        if self.has_changed_policy:
            return super().approvals(key)
        return self._cache.approvals(self.policy_revision(), super().approvals).of(key)

    def add_key(self, name: str, value: bytes, kind: str, *, actor: str, new_version: bool = False) -> KeyInfo:
        """Store a key or secret under a new name, or (`new_version`) as the newest version of an existing one."""
        check_name(name)
        if kind == KEY and len(value) != KEY_BYTES:
            raise UsageError(f"a key has {KEY_BYTES} bytes, got {len(value)}", check="length of the key")
        if not 1 <= len(value) <= MAX_SECRET_BYTES:
            raise UsageError(
                f"a secret has 1 to {MAX_SECRET_BYTES} bytes, got {len(value)}", check="length of the secret"
            )
        known = self._versions(name)
        if bool(known) != new_version:
            raise UsageError(
                f"key {name!r} {'exists already' if known else 'does not exist'}",
                check="name of the key",
                expected="a new name" if known else "an existing key",
                seen=name,
                remedy=f"choose another name, or make a new version of it: adyton key rotate {name}"
                if known
                else f"make it with: adyton key new {name}",
            )
        if any(item.kind != kind for item in known):
            raise UsageError(f"{name!r} is a {known[0].kind}", check="kind", expected=known[0].kind, seen=kind)
        version = 1 + max((item.version for item in known), default=0)
        data_key = self._newest_data_key()
        wrapped = self._data_key(data_key).wrap(value, self._keyring.key_binding(name, version, kind))
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.keys).values(
                name=name, version=version, kind=kind, data_key=data_key, wrapped=wrapped, created_at=at
            )
        )
        self.record(KEY_ADDED, name, {"key": name, "version": version, "kind": kind, "actor": actor[:128]}, at)
        return KeyInfo(name, kind, version, moment(at))

    def add_approval(self, approval: Approval, *, actor: str, state: str = APPROVED) -> StoredApproval:
        """Store a new approval; raises UnknownKey where its key does not exist, UsageError where it has a gap."""
        check_sound(approval)
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
                mac=self._keyring.policy_mac(approval_id, state, 1, document),
            )
        )
        self._note_change(approval_id, 1, state, approval, actor, at)
        return StoredApproval(approval_id, state, 1, approval, moment(at))

    def change_approval(
        self, approval_id: str, *, actor: str, state: str | None = None, approval: Approval | None = None
    ) -> StoredApproval:
        """Change an approval's state or content; the former revision stays in the history.

        One with a gap (`keyserver.gaps`) can only be revoked.
        """
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
        if new_state != REVOKED:
            check_sound(after)
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
                mac=self._keyring.policy_mac(approval_id, new_state, revision, document),
            )
        )
        self._note_change(approval_id, revision, new_state, after, actor, at)
        return StoredApproval(approval_id, new_state, revision, after, moment(at))

    def _note_change(
        self, approval_id: str, revision: int, state: str, approval: Approval, actor: str, at: int
    ) -> None:
        body = {
            "approval": approval_id,
            "revision": revision,
            "state": state,
            "policy": approval.to_dict(),
            "actor": actor[:128],
        }
        self.record(POLICY, approval_id, body, at)

    def remember(self, measurement: Measurement, manifest: bytes, runtime_parts: Mapping[str, str]) -> None:
        """Keep what a measurement stands for; raises StoreError where it does not."""
        parts = canonical(runtime_parts)
        measured(measurement, manifest, parts)
        known = self._connection.execute(
            sa.select(schema.manifests.c.added_at).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        if known is None:
            self._connection.execute(
                sa.insert(schema.manifests).values(
                    measurement=measurement.raw,
                    manifest=manifest,
                    runtime_parts=parts,
                    added_at=now_ms(),
                )
            )

    def forget_shown(self, most_bytes: int) -> int:
        """Forget manifests of programs that nobody approved, the oldest first, down to so many bytes; how many.

        What an approval stands for stays, revoked ones too; what waits for the owner goes last.
        """
        table = schema.manifests
        size = sa.func.length(table.c.manifest) + sa.func.length(table.c.runtime_parts)
        rows = self._connection.execute(sa.select(table.c.measurement, size, table.c.added_at)).all()
        if sum(int(row[1]) for row in rows) <= most_bytes:
            return 0
        approved = {stored.approval.measurement.raw for stored in self.approvals() if stored.approval.measurement}
        waiting = {item.measurement.raw for item in self.candidates()}
        shown = [(bytes(row[0]) in waiting, int(row[2]), bytes(row[0]), int(row[1])) for row in rows]
        shown = sorted(item for item in shown if item[2] not in approved)
        excess = sum(item[3] for item in shown) - most_bytes
        going: list[bytes] = []
        for _, _, measurement, size_bytes in shown:
            if excess <= 0:
                break
            going.append(measurement)
            excess -= size_bytes
        for measurement in going:
            self._connection.execute(sa.delete(table).where(table.c.measurement == measurement))
        return len(going)

    def use_nonce(self, nonce: bytes, expires_at_ms: int, at_ms: int) -> None:
        """Use a challenge up; raises OutOfOrder where it was used before."""
        seen = nonce in self._own_nonces or self._cache.knows_nonce(nonce)
        if seen or self._connection.execute(_FIND_NONCE, {"nonce": nonce}).one_or_none() is not None:
            raise OutOfOrder(
                "this challenge was answered before",
                check="challenge",
                expected="a challenge that is answered once",
                seen="its second answer",
                remedy="ask for a new challenge",
            )
        self._own_nonces[nonce] = expires_at_ms
        self._later("nonces", {"nonce": nonce, "expires_at": expires_at_ms})
        if nonce[-1] == 0:
            self._connection.execute(_FORGET_NONCES, {"before": at_ms - 60_000})

    def token_of(self, grant_id: str) -> bytes:
        """What an enclave shows to acknowledge this grant; to be given to it alone."""
        return self._keyring.token(grant_id)

    def use_grant(self, grant_id: str, token: bytes, at_ms: int) -> bool:
        """Note that the enclave acknowledged a grant; False where no such grant has this token."""
        state = self.grant_state(grant_id, token)
        if state == AWAITED:
            self.record(USED, grant_id, {"grant": grant_id}, at_ms)
        return state is not None

    def dismiss_candidate(self, measurement: Measurement, key: str, *, actor: str) -> bool:
        """Let a program wait no longer; False where it does not. It waits anew when it asks again."""
        if not any((item.measurement, item.key) == (measurement, key) for item in self.candidates()):
            return False
        body = {"measurement": measurement.hex(), "key": key, "actor": actor[:128]}
        self.record(DISMISSED, "", body, now_ms())
        return True

    def keep_artifact(self, kind: str, data: bytes, at_ms: int) -> bytes:
        """Keep evidence or collateral once, under its SHA-256, which is returned."""
        sha256 = hashlib.sha256(data).digest()
        if sha256 not in self._kept and sha256 not in self._known_artifacts:
            self._later("artifacts", {"sha256": sha256, "kind": kind, "data": data, "at": at_ms})
            self._kept.add(sha256)
        return sha256

    def keep_released(self, data: bytes, at_ms: int) -> bytes:
        """Keep the evidence of a release, also where a refusal left it here first; returns its SHA-256."""
        sha256 = hashlib.sha256(data).digest()
        self._later(_RELEASED, {"sha256": sha256, "kind": EVIDENCE, "data": data, "at": at_ms})
        self._kept.add(sha256)
        return sha256

    def forget_refused(self, most_bytes: int) -> tuple[int, int, int] | None:
        """Forget evidence of refused requests, the oldest first, down to three quarters of so many bytes.

        Returns before when (ms) what was stored is gone, how many and how many bytes; None where there is room.
        """
        self._flush("artifacts")
        self._flush(_RELEASED)
        table = schema.artifacts
        total = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(table.c.data)), 0)).where(table.c.kind == REFUSED)
        excess = int(self._connection.execute(total).scalar_one()) - most_bytes
        if excess <= 0:
            return None
        excess += most_bytes // 4
        by_age = sa.select(table.c.at, sa.func.length(table.c.data)).where(table.c.kind == REFUSED).order_by(table.c.at)
        before_ms = count = gone_bytes = 0
        for at, size_bytes in self._connection.execute(by_age).all():
            if at >= before_ms and excess <= gone_bytes:
                break
            before_ms, count, gone_bytes = at + 1, count + 1, gone_bytes + int(size_bytes)
        self._connection.execute(sa.delete(table).where(table.c.kind == REFUSED, table.c.at < before_ms))
        return before_ms, count, gone_bytes

    def forget_artifacts(self, before_ms: int, needed: set[bytes]) -> tuple[int, int]:
        """Remove artifacts that were stored before a time, but for those that are needed; how many, and their bytes."""
        self._flush("artifacts")
        self._flush(_RELEASED)
        table = schema.artifacts
        query = sa.select(table.c.sha256, sa.func.length(table.c.data)).where(table.c.at < before_ms)
        sizes = {bytes(row[0]): int(row[1] or 0) for row in self._connection.execute(query)}
        going = [sha256 for sha256 in sizes if sha256 not in needed]
        for start in range(0, len(going), FORGOTTEN_AT_ONCE):
            piece = going[start : start + FORGOTTEN_AT_ONCE]
            self._connection.execute(sa.delete(table).where(table.c.sha256.in_(piece)))
        return len(going), sum(sizes[sha256] for sha256 in going)

    def committed(self) -> None:
        """Note for later transactions what this one wrote; called once, after the commit."""
        self._known_artifacts |= self._kept
        if self._own_nonces:
            self._cache.note_nonces(self._own_nonces, now_ms())
        self._ledger.absorb(self._verified_to, self._own)

    def _data_key(self, version: int) -> WrappingKey:
        own = self._own_data_keys.get(version)
        return super()._data_key(version) if own is None else own

    def current_master(self) -> WrappingKey:
        """The master key that opens the store now, whoever rotated it meanwhile; raises StoreError otherwise."""
        state = sa.select(schema.meta.c.value).where(schema.meta.c.name == "state")
        return self._keyring.current_master(bytes(self._connection.execute(state).scalar_one()))

    def rotate_data_key(self, *, actor: str) -> int:
        """Make a new data key and wrap every key and secret again under it; returns its version."""
        self.keys()  # raises where a key is missing, or is one too many: it would be wrapped as if it were ours
        version = self._newest_data_key() + 1
        data_key = self._own_data_keys[version] = WrappingKey.generate()
        wrapped = self.current_master().wrap(data_key.reveal(), self._keyring.data_key_binding(version))
        at = now_ms()
        self._connection.execute(sa.insert(schema.data_keys).values(version=version, wrapped=wrapped, created_at=at))
        for row in self._connection.execute(sa.select(schema.keys)).all():
            self._check_data_key(row.name, row.data_key)  # else what an older, leaked one wraps would count again
            bound = self._keyring.key_binding(row.name, row.version, row.kind)
            value = self._data_key(row.data_key).unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
            self._connection.execute(
                sa.update(schema.keys)
                .where(schema.keys.c.name == row.name, schema.keys.c.version == row.version)
                .values(wrapped=data_key.wrap(value, bound), data_key=version)
            )
        self._connection.execute(sa.delete(schema.data_keys).where(schema.data_keys.c.version < version))
        self.record(DATA_KEY_ROTATED, "", {"version": version, "actor": actor[:128]}, at)
        return version

    def rewrap(self, new_master: WrappingKey, *, actor: str) -> None:
        """Wrap the data keys under another master key; the caller then puts it in the old one's place."""
        version = self._newest_data_key()
        wrapped = new_master.wrap(self._data_key(version).reveal(), self._keyring.data_key_binding(version))
        table = schema.data_keys
        self._connection.execute(sa.update(table).where(table.c.version == version).values(wrapped=wrapped))
        self._connection.execute(sa.delete(table).where(table.c.version != version))
        state = self._keyring.state_under(new_master)
        self._connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "state").values(value=state))
        self.record("master-key-rotated", "", {"actor": actor[:128]}, now_ms())
