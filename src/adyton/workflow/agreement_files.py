"""The files of an agreement: its TOML, and beside it one signature for each party, NAME.PARTY.sig."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from adyton.agreement.document import MAX_DOCUMENT_BYTES, Agreement, parse_agreement
from adyton.agreement.manifest_check import check_against
from adyton.agreement.signature import (
    MAX_SIGNATURE_FILE_BYTES,
    Signature,
    missing,
    parse_signature_file,
    verify_signature,
)
from adyton.capped_read import read_capped
from adyton.errors import BadSignature, Error, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from adyton.agreement.document import Party
    from adyton.manifest.signed import SignedManifest


@dataclass(frozen=True, slots=True)
class SignedAgreement:
    """An agreement and the verified signatures beside it, by party. `refused` are those that do not hold."""

    agreement: Agreement
    signatures: Mapping[str, Signature]
    refused: Mapping[str, Error]

    @property
    def missing(self) -> tuple[str, ...]:
        """The parties whose signature is not there, or does not hold."""
        return missing(self.agreement, self.signatures)


def read_agreement(path: Path) -> Agreement:
    """Read an agreement's TOML. Raises StorageFailed, UsageError."""
    return parse_agreement(read_capped(path, MAX_DOCUMENT_BYTES, "agreement", regular_only=True))


def signature_path(path: Path, party: str) -> Path:
    """Where the signature of a party lies: beside the agreement."""
    return path.with_name(f"{path.name.removesuffix('.toml')}.{party}.sig")


def read_with_signatures(path: Path, now: datetime | None = None) -> SignedAgreement:
    """Read an agreement and every signature beside it. Raises StorageFailed, UsageError."""
    agreement = read_agreement(path)
    moment = datetime.now(UTC) if now is None else now
    found: dict[str, Signature] = {}
    refused: dict[str, Error] = {}
    for party in agreement.parties:
        file = signature_path(path, party.name)
        if not file.exists():
            continue
        try:
            found[party.name] = _signature_of(party, file, agreement, moment)
        except (UsageError, BadSignature) as error:
            refused[party.name] = error
    return SignedAgreement(agreement, found, refused)


def _signature_of(party: Party, file: Path, agreement: Agreement, now: datetime) -> Signature:
    what = f"signature of {party.name}"
    signature = parse_signature_file(read_capped(file, MAX_SIGNATURE_FILE_BYTES, what, regular_only=True))
    signer = verify_signature(agreement, signature, now)
    if signer != party:
        raise BadSignature(
            f"{file.name} holds the signature of another party",
            check=what,
            expected=f"the signature of {party.name}",
            seen=f"that of {signer.name}",
            remedy=f"ask {party.name} for her file",
        )
    return signature


def read_signed_agreement(path: Path, signed: SignedManifest, tees: Sequence[str]) -> SignedAgreement:
    """Read an agreement that all parties signed, about this program.

    Raises UsageError or BadSignature where a signature is missing or does not hold, or where it is about another
    program.
    """
    if "sgx" in tees:
        raise UsageError(
            "an agreement carries no approval under SGX: there is no keeper apart from the program",
            check="--agreement",
            expected="a TEE with a keeper beside the program, which brings the other parties' statements",
            seen="sgx",
            remedy="approve it for tdx, snp or an Azure machine; or approve under sgx without --agreement",
        )
    found = read_with_signatures(path)
    for error in found.refused.values():
        raise error
    if found.missing:
        raise BadSignature(
            f"agreement {found.agreement.id} is not signed by {', '.join(found.missing)}",
            check="signatures of the agreement",
            expected=", ".join(party.name for party in found.agreement.parties),
            seen=", ".join(found.signatures) or "none",
            remedy=f"ask for {', '.join(signature_path(path, name).name for name in found.missing)}, and put it beside"
            f" {path.name}",
        )
    check_against(found.agreement, signed.manifest, measurement=signed.measurement, signer=signed.mrsigner)
    return found
