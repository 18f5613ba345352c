"""Agreements: they stand in the audit record and nowhere else, so nobody can change one unnoticed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from adyton.agreement.document import Agreement
from adyton.agreement.signature import Signature
from adyton.errors import UsageError
from adyton.keystore.audit_facts import (
    AGREEMENT,
    AGREEMENT_COMPLETE,
    AGREEMENT_REVOKED,
    AGREEMENT_SIGNED,
    PRIVACY_SETTLED,
    AgreementChange,
)
from adyton.keystore.clock import moment, now_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from adyton.keystore.tables.record import RecordReader, RecordWriter


@dataclass(frozen=True, slots=True)
class StoredAgreement:
    """An agreement with its state (signed, complete or revoked), and when it came to it."""

    agreement: Agreement
    state: str
    changed_at: datetime

    @property
    def id(self) -> str:
        """The agreement's id."""
        return self.agreement.id


class AgreementReader:
    """The agreements as of one moment, by the audit record."""

    def __init__(self, record: RecordReader) -> None:
        self._reader = record
        self._facts = record.facts

    def get(self, agreement_id: str) -> StoredAgreement | None:
        """One agreement by its id. None where the owner never signed one with this id."""
        change = self._facts.agreement(agreement_id)
        return None if change is None else _stored(change)

    def every(self) -> list[StoredAgreement]:
        """All agreements, in the order in which they were signed."""
        changes = map(self._facts.agreement, self._facts.agreement_ids())
        return [_stored(change) for change in changes if change is not None]

    def runs(self, agreement_id: str) -> int:
        """The number of runs that had a key on its ground, by the releases in the record."""
        return self._facts.agreed_runs(agreement_id)

    def privacy_steps(self, agreement_id: str) -> int:
        """The steps that runs used of its privacy budget, or that are reserved for them."""
        return self._facts.privacy_steps(agreement_id)

    def signatures(self, agreement_id: str) -> dict[str, Signature]:
        """The signatures that its newest entry has, by the name of the party."""
        change = self._facts.agreement(agreement_id)
        if change is None:
            return {}
        body = json.loads(self._reader.whole(change.seq).body)
        return {name: Signature.from_dict(document) for name, document in body["signatures"].items()}


class AgreementWriter(AgreementReader):
    """The agreements while a transaction has the record's lock. The caller has verified every signature."""

    def __init__(self, record: RecordWriter) -> None:
        super().__init__(record)
        self._record = record

    def sign(
        self, agreement: Agreement, signatures: Mapping[str, Signature], *, allowed: Sequence[str], actor: str
    ) -> StoredAgreement:
        """Note that the owner signed. `allowed` are the findings that she named. Raises UsageError where it ended."""
        before = self.get(agreement.id)
        if before is not None and before.state == AGREEMENT_COMPLETE:
            return before  # the signatures of the others stay
        return self._note(agreement, AGREEMENT_SIGNED, signatures, allowed, actor)

    def complete(self, agreement: Agreement, signatures: Mapping[str, Signature], *, actor: str) -> StoredAgreement:
        """Note that all parties signed. Raises UsageError where the owner did not, or ended it."""
        stored = self.get(agreement.id)
        if stored is None:
            raise UsageError(
                f"you have not signed agreement {agreement.id}",
                check="signature of the agreement",
                expected="your own, made in this home",
                seen="none in the audit record",
                remedy="look at it and sign it: adyton agreement sign FILE",
            )
        if stored.state == AGREEMENT_COMPLETE:
            return stored
        return self._note(agreement, AGREEMENT_COMPLETE, signatures, (), actor)

    def settle(self, grant: str, steps: int, at_ms: int) -> bool:
        """Note how many steps a run used of a privacy budget. False where nothing is reserved for its grant."""
        reserved = self._facts.reserved(grant)
        if reserved is None:
            return False
        body = {"grant": grant, "agreement": reserved[0], "reserved": reserved[1], "used": steps}
        self._record.append(PRIVACY_SETTLED, grant, body, at_ms)
        return True

    def revoke(self, agreement_id: str, *, actor: str) -> StoredAgreement:
        """End an agreement for this owner, for ever. Raises UsageError where there is none."""
        stored = self.get(agreement_id)
        if stored is None:
            raise UsageError(
                f"no agreement {agreement_id[:40]!r}",
                check="agreement id",
                expected="the id of an agreement that you signed",
                seen=agreement_id[:40],
                remedy="adyton agreement list names them",
            )
        if stored.state == AGREEMENT_REVOKED:
            return stored
        return self._note(stored.agreement, AGREEMENT_REVOKED, self.signatures(agreement_id), (), actor)

    def _note(
        self,
        agreement: Agreement,
        state: str,
        signatures: Mapping[str, Signature],
        allowed: Sequence[str],
        actor: str,
    ) -> StoredAgreement:
        before = self.get(agreement.id)
        if before is not None and before.state == AGREEMENT_REVOKED:
            raise UsageError(
                f"agreement {agreement.id} was revoked and stays so",
                check="state of the agreement",
                expected="one that you did not end",
                seen=f"revoked on {before.changed_at:%Y-%m-%d}",
                remedy="draft another one: with another name it has another id",
            )
        at = now_ms()
        body = {
            "agreement": agreement.id,
            "state": state,
            "document": agreement.to_dict(),
            "signatures": {name: signature.to_dict() for name, signature in signatures.items()},
            "allowed": list(allowed),
            "actor": actor[:128],
        }
        self._record.append(AGREEMENT, agreement.id, body, at)
        return StoredAgreement(agreement, state, moment(at))


def _stored(change: AgreementChange) -> StoredAgreement:
    return StoredAgreement(_parsed(change.document), change.state, moment(change.at_ms))


@lru_cache(maxsize=256)
def _parsed(document: str) -> Agreement:
    return Agreement.from_dict(json.loads(document))
