"""Changes of a store. Each change is one transaction, with its entries in the audit record.

A writer holds one lock (SQLite's write lock, or a row lock in PostgreSQL). So decisions, releases, policy changes and
their audit entries happen one after the other. A revocation is either before a release, which then does not happen, or
after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adyton.errors import StoreError
from adyton.keystore.approval import APPROVED
from adyton.keystore.audit_facts import AWAITED, DISMISSED, FOLDER_ROOT, USED
from adyton.keystore.clock import now_ms
from adyton.keystore.reader import Reader
from adyton.keystore.tables.agreements import AgreementWriter
from adyton.keystore.tables.approvals import ApprovalWriter
from adyton.keystore.tables.evidence import EvidenceWriter
from adyton.keystore.tables.keys import KeyWriter
from adyton.keystore.tables.manifests import ManifestWriter, too_much
from adyton.keystore.tables.nonces import NonceWriter
from adyton.keystore.tables.pending import PendingRows
from adyton.keystore.tables.record import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import sqlalchemy as sa

    from adyton.agreement.document import Agreement
    from adyton.agreement.signature import Signature
    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.audit import Checkpoint, Entry, Head
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.stored_folder import Event, StoredFolder
    from adyton.keystore.tables.agreements import StoredAgreement
    from adyton.keystore.tables.keys import KeyInfo
    from adyton.keystore.transaction_cache import Cache
    from adyton.keystore.wrapping import WrappingKey
    from adyton.values import Measurement


class Transaction(Reader):
    """A change of the store. It counts as a whole and durably when its `with` block ends.

    Its reads include its own changes.
    """

    _record: RecordWriter
    _keys: KeyWriter
    _approvals: ApprovalWriter
    _agreements: AgreementWriter
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
            agreements=AgreementWriter(record),
            manifests=ManifestWriter(connection),
            evidence=EvidenceWriter(connection, self._pending),
        )

    # --- how it begins and ends -------------------------------------------------------------------------------------

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """As for a reader. Caches of earlier transactions are used where nothing changed since."""
        super().begin(known, kept)
        self._keys.known_rows = self._cache.keys(self.policy_revision())
        self._evidence.known = self._cache.artifacts(self.policy_revision())

    def finish(self) -> None:
        """Write pending rows, then move the record's head. Called once, before the commit."""
        self._pending.write()
        self._record.finish()

    def committed(self) -> None:
        """Note for later transactions what this one wrote. Called once, after the commit."""
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
        """Check that a later reader, which has not begun, finds the changes of this transaction. Raises StoreError."""
        self._record.check_kept(later.head(), later.load)

    # --- the audit record, and what is only in it -------------------------------------------------------------------

    def record(self, kind: str, subject: str, body: Mapping[str, Any], at_ms: int) -> Entry:
        """Append an entry to the audit record."""
        return self._record.append(kind, subject, body, at_ms)

    def token_of(self, grant_id: str) -> bytes:
        """The token that acknowledges this grant. Give it only to the enclave."""
        return self._keyring.token(grant_id)

    def use_grant(self, grant_id: str, token: bytes, at_ms: int) -> bool:
        """Record that the enclave acknowledged a grant. False where no grant has this token."""
        state = self.grant_state(grant_id, token)
        if state == AWAITED:
            self.record(USED, grant_id, {"grant": grant_id}, at_ms)
        return state is not None

    def set_folder(self, folder: StoredFolder, event: Event, at_ms: int, *, actor: str = "") -> None:
        """Record the newest root of a pinned folder, and what happened to it. Raises StoreError where it goes back."""
        before = self.folder(folder.folder)
        if before is not None and not folder.may_follow(before):
            raise StoreError(
                f"the root of {folder.folder} would go back",
                check="root of the folder",
                expected=f"commit {before.root.sequence} or later, writer {before.fence} or later",
                seen=f"commit {folder.root.sequence}, writer {folder.fence}",
            )
        self.record(FOLDER_ROOT, "", {**folder.to_dict(), "event": event, "actor": actor[:128]}, at_ms)

    def dismiss_candidate(self, measurement: Measurement, key: str, *, actor: str) -> bool:
        """Remove a program from those that wait. False where it does not wait.

        It waits again after its next request.
        """
        if not any((item.measurement, item.key) == (measurement, key) for item in self.candidates()):
            return False
        body = {"measurement": measurement.hex(), "key": key, "actor": actor[:128]}
        self.record(DISMISSED, "", body, now_ms())
        return True

    def use_nonce(self, nonce: bytes, expires_at_ms: int, at_ms: int) -> None:
        """Use up a challenge. Raises OutOfOrder where it was used before."""
        self._nonces.use(nonce, expires_at_ms, at_ms)

    # --- keys and secrets -------------------------------------------------------------------------------------------

    def add_key(self, name: str, value: bytes, kind: str, *, actor: str, new_version: bool = False) -> KeyInfo:
        """Store a key or secret under a new name, or (`new_version`) as the newest version of an existing one."""
        return self._keys.add(name, value, kind, actor=actor, new_version=new_version)

    def current_master(self) -> WrappingKey:
        """The master key that opens the store now, also after a rotation by another process. Raises StoreError."""
        return self._keys.current_master()

    def rotate_data_key(self, *, actor: str) -> int:
        """Make a new data key and wrap every key and secret again under it. Returns its version."""
        return self._keys.rotate_data_key(actor=actor)

    def rewrap(self, new_master: WrappingKey, *, actor: str) -> None:
        """Wrap the data keys under another master key. The caller then replaces the old one."""
        self._keys.rewrap(new_master, actor=actor)

    # --- approvals --------------------------------------------------------------------------------------------------

    def add_approval(self, approval: Approval, *, actor: str, state: str = APPROVED) -> StoredApproval:
        """Store a new approval. Raises UnknownKey where its key does not exist, UsageError where it has a gap."""
        return self._approvals.add(approval, actor=actor, state=state)

    def change_approval(
        self, approval_id: str, *, actor: str, state: str | None = None, approval: Approval | None = None
    ) -> StoredApproval:
        """Change an approval's state or content. The old revision stays in the history.

        An approval with a gap (`keystore.approval_gaps`) can only be revoked.
        """
        return self._approvals.change(approval_id, actor=actor, state=state, approval=approval)

    # --- agreements -------------------------------------------------------------------------------------------------

    def sign_agreement(
        self, agreement: Agreement, signatures: Mapping[str, Signature], *, allowed: Sequence[str], actor: str
    ) -> StoredAgreement:
        """Note that the owner signed. `allowed` are the findings that she named. Raises UsageError where it ended."""
        return self._agreements.sign(agreement, signatures, allowed=allowed, actor=actor)

    def complete_agreement(
        self, agreement: Agreement, signatures: Mapping[str, Signature], *, actor: str
    ) -> StoredAgreement:
        """Note that all parties signed. Raises UsageError where the owner did not, or ended it."""
        return self._agreements.complete(agreement, signatures, actor=actor)

    def revoke_agreement(self, agreement_id: str, *, actor: str) -> StoredAgreement:
        """End an agreement for this owner, for ever. Raises UsageError where there is none."""
        return self._agreements.revoke(agreement_id, actor=actor)

    def settle_privacy(self, grant: str, steps: int, at_ms: int) -> bool:
        """Note how many steps a run used of a privacy budget. False where nothing is reserved for its grant.

        A transaction settles a grant once.
        """
        return self._agreements.settle(grant, steps, at_ms)

    # --- what stands behind measurements and decisions --------------------------------------------------------------

    def remember(self, measurement: Measurement, manifest: bytes, runtime_parts: Mapping[str, str]) -> None:
        """Store the manifest and runtime parts of a measurement. Raises StoreError where they do not give it."""
        self._manifests.keep(measurement, manifest, runtime_parts)

    def forget_shown(self, most_bytes: int) -> int:
        """Remove the oldest manifests of unapproved programs, down to `most_bytes`. Returns their number.

        Manifests of approvals stay, also of revoked ones. Those of waiting programs go last.
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
        """Store evidence or collateral once, under its SHA-256. Returns the SHA-256."""
        return self._evidence.keep(kind, data, at_ms)

    def keep_released(self, data: bytes, at_ms: int) -> bytes:
        """Store the evidence of a release, also where a refusal stored it before. Returns its SHA-256."""
        return self._evidence.keep_released(data, at_ms)

    def forget_refused(self, most_bytes: int) -> tuple[int, int, int] | None:
        """Remove the oldest evidence of refused requests, down to three quarters of `most_bytes`.

        Returns the time (ms) before which all was removed, the number removed, and their bytes. None where there is
        room.
        """
        return self._evidence.forget_refused(most_bytes)

    def forget_artifacts(self, before_ms: int, needed: set[bytes]) -> tuple[int, int]:
        """Remove artifacts stored before a time, except `needed`. Returns their number and bytes."""
        return self._evidence.forget(before_ms, needed)
