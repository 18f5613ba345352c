"""What can be changed in a store, all of it in one transaction and with its entry in the audit record.

Whoever writes holds one lock (SQLite's write lock; a row lock in PostgreSQL), so that decisions, releases, policy
changes and their audit entries happen one after the other: a revocation is either before a release, which then does
not happen, or after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adyton.keystore.approval import APPROVED
from adyton.keystore.clock import now_ms
from adyton.keystore.facts import AWAITED, DISMISSED, USED
from adyton.keystore.reader import Reader
from adyton.keystore.tables.approvals import ApprovalWriter
from adyton.keystore.tables.evidence import EvidenceWriter
from adyton.keystore.tables.keys import KeyWriter
from adyton.keystore.tables.manifests import ManifestWriter, too_much
from adyton.keystore.tables.nonces import NonceWriter
from adyton.keystore.tables.pending import PendingRows
from adyton.keystore.tables.record import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.audit import Checkpoint, Entry, Head
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.tables.keys import KeyInfo
    from adyton.keystore.transaction_cache import Cache
    from adyton.keystore.wrapping import WrappingKey
    from adyton.values import Measurement


class Transaction(Reader):
    """A change of the store: nothing of it counts until its `with` block ends, then all of it does, durably.

    What it reads includes what it has itself added.
    """

    _record: RecordWriter
    _keys: KeyWriter
    _approvals: ApprovalWriter
    _manifests: ManifestWriter
    _evidence: EvidenceWriter

    def __init__(self, connection: sa.Connection, keyring: Keyring, ledger: Ledger, cache: Cache) -> None:
        self._pending = PendingRows(connection)
        self._cache = cache
        self._nonces = NonceWriter(connection, self._pending, cache.knows_nonce)
        record = RecordWriter(connection, keyring, ledger, self._pending)
        keys = KeyWriter(connection, keyring, record)
        super().__init__(
            keyring,
            record=record,
            keys=keys,
            approvals=ApprovalWriter(connection, keyring, record, keys, cache),
            manifests=ManifestWriter(connection),
            evidence=EvidenceWriter(connection, self._pending),
        )

    # --- how it begins and ends -------------------------------------------------------------------------------------

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """As for a reader; what earlier transactions know counts where nothing changed since."""
        super().begin(known, kept)
        self._keys.known_rows = self._cache.keys(self.policy_revision())
        self._evidence.known = self._cache.artifacts(self.policy_revision())

    def finish(self) -> None:
        """Write what is still pending, then move the record's head; called once, before the commit."""
        self._pending.write()
        self._record.finish()

    def committed(self) -> None:
        """Note for later transactions what this one wrote; called once, after the commit."""
        self._evidence.committed()
        if self._nonces.used:
            self._cache.note_nonces(self._nonces.used, now_ms())
        self._record.committed()

    @property
    def has_added(self) -> bool:
        """Whether this transaction adds to the record."""
        return self._record.has_added

    @property
    def has_changed_policy(self) -> bool:
        """Whether this transaction changes a key or an approval."""
        return self._record.facts.has_changes

    def check_kept(self, later: Reader) -> None:
        """Hold a later reader, which has not begun, against what this transaction wrote; raises StoreError."""
        self._record.check_kept(later.head(), later.load)

    # --- the audit record, and what is only in it -------------------------------------------------------------------

    def record(self, kind: str, subject: str, body: Mapping[str, Any], at_ms: int) -> Entry:
        """Append an entry to the audit record."""
        return self._record.append(kind, subject, body, at_ms)

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

    def use_nonce(self, nonce: bytes, expires_at_ms: int, at_ms: int) -> None:
        """Use a challenge up; raises OutOfOrder where it was used before."""
        self._nonces.use(nonce, expires_at_ms, at_ms)

    # --- keys and secrets -------------------------------------------------------------------------------------------

    def add_key(self, name: str, value: bytes, kind: str, *, actor: str, new_version: bool = False) -> KeyInfo:
        """Store a key or secret under a new name, or (`new_version`) as the newest version of an existing one."""
        return self._keys.add(name, value, kind, actor=actor, new_version=new_version)

    def current_master(self) -> WrappingKey:
        """The master key that opens the store now, whoever rotated it meanwhile; raises StoreError otherwise."""
        return self._keys.current_master()

    def rotate_data_key(self, *, actor: str) -> int:
        """Make a new data key and wrap every key and secret again under it; returns its version."""
        return self._keys.rotate_data_key(actor=actor)

    def rewrap(self, new_master: WrappingKey, *, actor: str) -> None:
        """Wrap the data keys under another master key; the caller then puts it in the old one's place."""
        self._keys.rewrap(new_master, actor=actor)

    # --- approvals --------------------------------------------------------------------------------------------------

    def add_approval(self, approval: Approval, *, actor: str, state: str = APPROVED) -> StoredApproval:
        """Store a new approval; raises UnknownKey where its key does not exist, UsageError where it has a gap."""
        return self._approvals.add(approval, actor=actor, state=state)

    def change_approval(
        self, approval_id: str, *, actor: str, state: str | None = None, approval: Approval | None = None
    ) -> StoredApproval:
        """Change an approval's state or content; the former revision stays in the history.

        One with a gap (`keystore.approval_gaps`) can only be revoked.
        """
        return self._approvals.change(approval_id, actor=actor, state=state, approval=approval)

    # --- what stands behind measurements and decisions --------------------------------------------------------------

    def remember(self, measurement: Measurement, manifest: bytes, runtime_parts: Mapping[str, str]) -> None:
        """Keep what a measurement stands for; raises StoreError where it does not."""
        self._manifests.keep(measurement, manifest, runtime_parts)

    def forget_shown(self, most_bytes: int) -> int:
        """Forget manifests of programs that nobody approved, the oldest first, down to so many bytes; how many.

        What an approval stands for stays, revoked ones too; what waits for the owner goes last.
        """
        kept = self._manifests.sizes()
        if sum(item.size_bytes for item in kept) <= most_bytes:
            return 0
        approved = {stored.approval.measurement.raw for stored in self.approvals() if stored.approval.measurement}
        waiting = {item.measurement.raw for item in self.candidates()}
        going = too_much(kept, most_bytes, approved=approved, waiting=waiting)
        self._manifests.forget(going)
        return len(going)

    def keep_artifact(self, kind: str, data: bytes, at_ms: int) -> bytes:
        """Keep evidence or collateral once, under its SHA-256, which is returned."""
        return self._evidence.keep(kind, data, at_ms)

    def keep_released(self, data: bytes, at_ms: int) -> bytes:
        """Keep the evidence of a release, also where a refusal left it here first; returns its SHA-256."""
        return self._evidence.keep_released(data, at_ms)

    def forget_refused(self, most_bytes: int) -> tuple[int, int, int] | None:
        """Forget evidence of refused requests, the oldest first, down to three quarters of so many bytes.

        Returns before when (ms) what was stored is gone, how many and how many bytes; None where there is room.
        """
        return self._evidence.forget_refused(most_bytes)

    def forget_artifacts(self, before_ms: int, needed: set[bytes]) -> tuple[int, int]:
        """Remove artifacts that were stored before a time, but for those that are needed; how many, and their bytes."""
        return self._evidence.forget(before_ms, needed)
