"""Read a snapshot of a store. Every value must agree with the audit record.

A reader first reads the record up to its head. Each table has a module of its own in `tables`. Approvals and keys must
agree with the record. Older entries are verified again when they are shown. Manifests must give their measurement, and
evidence must have its hash.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from adyton.keystore.audit_facts import AWAITED, USED
from adyton.keystore.tables.agreements import AgreementReader
from adyton.keystore.tables.approvals import ApprovalReader
from adyton.keystore.tables.evidence import EvidenceReader
from adyton.keystore.tables.keys import KeyReader
from adyton.keystore.tables.manifests import ManifestReader
from adyton.keystore.tables.record import RecordReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import sqlalchemy as sa

    from adyton.agreement.signature import Signature
    from adyton.keystore.approval import Approval, StoredApproval
    from adyton.keystore.audit import Checkpoint, Entry, Head
    from adyton.keystore.audit_facts import Candidate
    from adyton.keystore.current_facts import Usage
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.ledger import Ledger
    from adyton.keystore.stored_folder import StoredFolder
    from adyton.keystore.tables.agreements import StoredAgreement
    from adyton.keystore.tables.keys import KeyInfo
    from adyton.values import Key128, Measurement


class Reader:
    """A snapshot of the store, for the duration of its `with` block."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        record: RecordReader,
        keys: KeyReader,
        approvals: ApprovalReader,
        agreements: AgreementReader,
        manifests: ManifestReader,
        evidence: EvidenceReader,
    ) -> None:
        self._keyring = keyring
        self._agreements = agreements
        self._record = record
        self._keys = keys
        self._approvals = approvals
        self._manifests = manifests
        self._evidence = evidence

    @classmethod
    def create(cls, connection: sa.Connection, keyring: Keyring, ledger: Ledger) -> Reader:
        """A reader on a connection with an open transaction. Raises AuditError where the head is not authentic."""
        record = RecordReader(connection, keyring, ledger)
        return cls(
            keyring,
            record=record,
            keys=KeyReader(connection, keyring, record.facts),
            approvals=ApprovalReader(connection, keyring, record),
            agreements=AgreementReader(record),
            manifests=ManifestReader(connection),
            evidence=EvidenceReader(connection),
        )

    def begin(self, known: Head, kept: Checkpoint | None) -> None:
        """Read the record up to its head, and compare it with `known` and `kept`: see `RecordReader.begin`."""
        self._record.begin(known, kept)

    # --- the audit record -------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The head of the audit chain, with the entries that a transaction added."""
        return self._record.head()

    def load(self, after: int, to: int) -> Generator[Entry, None, None]:
        """The entries after `after` up to `to` from the database, unverified."""
        return self._record.load(after, to)

    def entries(
        self, *, after: int = 0, kind: str | None = None, subject: str | None = None, since_ms: int | None = None
    ) -> Generator[Entry, None, None]:
        """Audit entries in order, each verified.

        `RecordReader.entries` says which of them a hostile database could hide.
        """
        return self._record.entries(after=after, kind=kind, subject=subject, since_ms=since_ms)

    def newest_entries(self, limit: int, *, kinds: Sequence[str] = (), before: int | None = None) -> list[Entry]:
        """Verified audit entries, the newest first. With `before`, only older ones than that."""
        return self._record.newest_entries(limit, kinds=kinds, before=before)

    def entry(self, seq: int) -> Entry | None:
        """One audit entry by its number, verified. None where there is none."""
        return self._record.entry(seq)

    def hash_of(self, seq: int) -> bytes | None:
        """The hash of an audit entry (0: before the first). None where there is no such entry."""
        return self._record.hash_of(seq)

    def kept_facts(self) -> bytes | None:
        """The stored facts of the record (JSON), authenticated. None where there are none. Raises AuditError."""
        return self._record.kept_facts()

    def policy_revision(self) -> int:
        """A number that grows with every change of a key or an approval, and when evidence is pruned."""
        return self._record.facts.changed_at()

    # --- keys and secrets -------------------------------------------------------------------------------------------

    def keys(self) -> list[KeyInfo]:
        """The newest version of every key and secret, by name. Raises StoreError where one is missing or extra."""
        return self._keys.newest()

    def has_key(self, name: str) -> bool:
        """Whether a key or secret of this name exists."""
        return self._keys.has(name)

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """Unwrap a key or secret (by default its newest version). Raises UnknownKey."""
        return self._keys.reveal(name, version=version)

    def load_key(self, name: str, *, version: int | None = None) -> Key128:
        """A protected-file key by name. Raises UnknownKey, also where the name is a secret of another kind."""
        return self._keys.load_key(name, version=version)

    # --- approvals, and who has what by them ------------------------------------------------------------------------

    def approvals(self, key: str | None = None) -> list[StoredApproval]:
        """All approvals, or those of one key, newest change first.

        Raises StoreError where one differs from the record.
        """
        return self._approvals.newest(key)

    def approval(self, approval_id: str) -> StoredApproval:
        """One approval by its id. Raises UsageError where there is none."""
        return self._approvals.get(approval_id)

    def revision(self, approval_id: str, revision: int) -> Approval | None:
        """An approval at one of its revisions, by the audit record. None where there is no such revision."""
        return self._approvals.revision(approval_id, revision)

    def history(self, approval_id: str | None = None) -> list[dict[str, Any]]:
        """Every revision of all approvals (or of one) by the audit record: author, time and content."""
        return self._approvals.history(approval_id)

    def agreement(self, agreement_id: str) -> StoredAgreement | None:
        """An agreement that the owner signed, by its id. None where there is none."""
        return self._agreements.get(agreement_id)

    def agreements(self) -> list[StoredAgreement]:
        """All agreements that the owner signed, also those that she ended."""
        return self._agreements.every()

    def agreement_signatures(self, agreement_id: str) -> dict[str, Signature]:
        """The signatures of an agreement that are here, by the name of the party."""
        return self._agreements.signatures(agreement_id)

    def agreed_runs(self, agreement_id: str) -> int:
        """The number of runs that had a key on the ground of an agreement, by the releases in the record."""
        return self._agreements.runs(agreement_id)

    def privacy_steps(self, agreement_id: str) -> int:
        """The steps that runs used of the privacy budget of an agreement, or that are reserved for them."""
        return self._agreements.privacy_steps(agreement_id)

    def usage(self, approval_id: str, run: str, at_ms: int, *, counted: bool = True) -> Usage:
        """The use of an approval's limits (unless not `counted`), and this run's lease.

        The numbers come from the releases in the audit record.
        """
        return self._record.facts.usage(approval_id, run, at_ms, counted=counted)

    def grant_state(self, grant_id: str, token: bytes) -> str | None:
        """The state of a grant: AWAITED or USED. None where there is no grant with this token."""
        if not hmac.compare_digest(token, self._keyring.token(grant_id)):
            return None
        return USED if any(self.entries(kind=USED, subject=grant_id)) else AWAITED

    def folder(self, folder: str) -> StoredFolder | None:
        """The newest root of a pinned folder, by the audit record. None where it is not pinned."""
        return self._record.facts.folder(folder)

    def folders(self) -> list[StoredFolder]:
        """Every pinned folder, by the audit record."""
        return self._record.facts.folders()

    def candidates(self) -> list[Candidate]:
        """Programs that asked without an approval, by the audit record, the latest request first."""
        return self._record.facts.candidates()

    # --- what stands behind measurements and decisions --------------------------------------------------------------

    def behind(self, measurement: Measurement) -> tuple[bytes, dict[str, str]] | None:
        """The manifest and runtime parts that give a measurement, if they are stored. Raises StoreError."""
        return self._manifests.get(measurement)

    def artifact(self, sha256: bytes) -> bytes | None:
        """Evidence or collateral of a past decision. Raises StoreError where it was changed."""
        return self._evidence.get(sha256)

    def artifacts(self) -> Iterator[tuple[str, bytes, bytes]]:
        """All evidence and collateral of past decisions, verified: (kind, SHA-256, bytes)."""
        return self._evidence.every()

    # --- all that there is, against the record ----------------------------------------------------------------------

    def hold_approvals_against_record(self) -> None:
        """Compare every approval with the record. Raises AuditError."""
        self._approvals.hold_against_record()

    def hold_keys_against_record(self) -> None:
        """Check that the database has exactly the versions in the record, and unwrap them all. Raises StoreError."""
        self._keys.hold_against_record()

    def hold_rest_against_record(self) -> None:
        """Check the rest: manifests, evidence, and the ids by which entries are looked up."""
        self._manifests.check_every()
        for _ in self._evidence.every():
            pass
        self._record.hold_ids_against_record()
