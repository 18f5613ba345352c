"""What can be read of a store, as of one moment. Nothing is believed that the audit record does not bear out.

A reader begins by reading the record on to its head. Each table then has a module of its own in `tables`: approvals and
keys must be what the record says, older entries are verified again when they are shown, manifests must give their
measurement, and evidence its hash.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from adyton.keystore.facts import AWAITED, USED
from adyton.keystore.tables.approvals import ApprovalReader
from adyton.keystore.tables.evidence import EvidenceReader
from adyton.keystore.tables.keys import KeyReader
from adyton.keystore.tables.manifests import ManifestReader
from adyton.keystore.tables.record import RecordReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import sqlalchemy as sa

    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.audit import Checkpoint, Entry, Head
    from adyton.keystore.facts import Candidate
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.recorded_facts import Usage
    from adyton.keystore.tables.keys import KeyInfo
    from adyton.values import Key128, Measurement


class Reader:
    """The store as of one moment, for as long as its `with` block lasts."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        record: RecordReader,
        keys: KeyReader,
        approvals: ApprovalReader,
        manifests: ManifestReader,
        evidence: EvidenceReader,
    ) -> None:
        self._keyring = keyring
        self._record = record
        self._keys = keys
        self._approvals = approvals
        self._manifests = manifests
        self._evidence = evidence

    @classmethod
    def create(cls, connection: sa.Connection, keyring: Keyring, ledger: Ledger) -> Reader:
        """A reader on a connection, whose transaction has begun; raises AuditError where the head is not authentic."""
        record = RecordReader(connection, keyring, ledger)
        return cls(
            keyring,
            record=record,
            keys=KeyReader(connection, keyring, record.facts),
            approvals=ApprovalReader(connection, keyring, record),
            manifests=ManifestReader(connection),
            evidence=EvidenceReader(connection),
        )

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """Read the record on to its head, and hold it against what is known of it: see `RecordReader.begin`."""
        self._record.begin(known, kept)

    # --- the audit record -------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """Where the audit chain ends, with what a transaction added."""
        return self._record.head()

    def load(self, after: int, to: int) -> Generator[Entry, None, None]:
        """The entries after one number and up to another as they lie in the database, not verified."""
        return self._record.load(after, to)

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, each verified: see `RecordReader.entries` for what could be hidden of them."""
        return self._record.entries(after=after, kind=kind, subject=subject, since_ms=since_ms)

    def newest_entries(self, limit: int, *, kinds: Sequence[str] = (), before: int | None = None) -> list[Entry]:
        """The newest audit entries first, or the newest of those before one; each verified."""
        return self._record.newest_entries(limit, kinds=kinds, before=before)

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number, verified; None where there is none."""
        return self._record.entry(seq)

    def hash_of(self, seq: int) -> bytes | None:
        """The hash of an audit entry (0: before the first); None where there is no such entry."""
        return self._record.hash_of(seq)

    def kept_facts(self) -> bytes | None:
        """What a process wrote down of the record (JSON), authenticated; None where none has; raises AuditError."""
        return self._record.kept_facts()

    def policy_revision(self) -> int:
        """A number that grows with every change of a key or an approval, and when evidence is pruned."""
        return self._record.facts.changed_at()

    # --- keys and secrets -------------------------------------------------------------------------------------------

    def keys(self) -> list[KeyInfo]:
        """Every key and secret at its newest version, by name; raises StoreError where one is missing, or too many."""
        return self._keys.newest()

    def has_key(self, name: str) -> bool:
        """Whether a key or secret of this name exists."""
        return self._keys.has(name)

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """Unwrap a key or secret (its newest version unless one is named); raises UnknownKey."""
        return self._keys.reveal(name, version=version)

    def load_key(self, name: str, *, version: int | None = None) -> Key128:
        """A protected-file key by name; raises UnknownKey, also where the name is a secret of another kind."""
        return self._keys.load_key(name, version=version)

    # --- approvals, and who has what by them ------------------------------------------------------------------------

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first; raises StoreError where one is not as recorded."""
        return self._approvals.newest(key)

    def approval(self, approval_id: str) -> StoredApproval:
        """One approval by its id; raises UsageError where there is none."""
        return self._approvals.get(approval_id)

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval as it was at one of its revisions, by the audit record; None where there is no such revision."""
        return self._approvals.revision(approval_id, revision)

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of every approval (or of one) by the audit record: who changed it, when, and to what."""
        return self._approvals.history(approval_id)

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """How much of an approval's limits is used (unless not `counted`), and whether this run holds a lease.

        By the releases in the audit record.
        """
        return self._record.facts.usage(approval_id, run, at_ms, counted=counted)

    def grant_state(self, grant_id: str, token: bytes) -> str | None:
        """Whether a grant awaits its acknowledgement or has it; None where there is none with this token."""
        if not hmac.compare_digest(token, self._keyring.token(grant_id)):
            return None
        return USED if any(self.entries(kind=USED, subject=grant_id)) else AWAITED

    def candidates(self) -> list[Candidate]:
        """Programs that asked and were not approved, the last to ask first; by the audit record."""
        return self._record.facts.candidates()

    # --- what stands behind measurements and decisions --------------------------------------------------------------

    def behind(self, measurement: Measurement) -> tuple[bytes, dict[str, str]] | None:
        """The manifest and runtime parts that a measurement stands for, where they are known; raises StoreError."""
        return self._manifests.get(measurement)

    def artifact(self, sha256: bytes) -> bytes | None:
        """Evidence or collateral of a past decision; raises StoreError where it is not what was kept."""
        return self._evidence.get(sha256)

    def artifacts(self) -> Iterator[tuple[str, bytes, bytes]]:
        """All evidence and collateral of past decisions: (kind, SHA-256, bytes); each is what was kept."""
        return self._evidence.every()

    # --- all that there is, against the record ----------------------------------------------------------------------

    def hold_approvals_against_record(self) -> None:
        """Compare every approval with the record; raises AuditError."""
        self._approvals.hold_against_record()

    def hold_keys_against_record(self) -> None:
        """Open every key and secret, each version that the record names and no other; raises StoreError."""
        self._keys.hold_against_record()

    def hold_rest_against_record(self) -> None:
        """Compare what else is kept: manifests, evidence, and the ids under which entries are found."""
        self._manifests.check_every()
        for _ in self._evidence.every():
            pass
        self._record.hold_ids_against_record()
