"""The signatures of an agreement: one for each party, detached, by her own key for agreements. Pure.

A signature is Ed25519 over `adyton agreement/1\\0` and the canonical form. Its certificate stands under the CA whose
SHA-256 the agreement names for that party. The parties compare these fingerprints by a way of their own: over the
telephone, or on paper. Nothing here can tell whose CA it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from adyton.agreement.document import ID_PATTERN
from adyton.errors import BadSignature, Error, UsageError
from adyton.purpose_certificate import AGREEMENTS, certified_key
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.agreement.document import Agreement, Party

FORMAT: Final = "adyton-agreement-signature/1"
MAX_SIGNATURE_FILE_BYTES: Final = 16 * 1024
MAX_CERTIFICATE_BYTES: Final = 4096
SIGNATURE_BYTES: Final = 64
_LABEL: Final = b"adyton agreement/1\0"
_ID: Final = re.compile(ID_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A party's signature, unverified: the agreement's id, her CA and her certificate (DER), and 64 bytes."""

    agreement: str
    ca: bytes
    certificate: bytes
    signature: bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "agreement": self.agreement,
            "ca": base64.b64encode(self.ca).decode(),
            "certificate": base64.b64encode(self.certificate).decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }

    def to_bytes(self) -> bytes:
        """The file."""
        return json.dumps(self.to_dict(), indent=1).encode() + b"\n"

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Signature:
        """Read the data of `to_dict`. Raises UsageError."""
        found = TypedDocument(document, _refuse)
        found.only({"format", "agreement", "ca", "certificate", "signature"})
        if found.text("format", 64) != FORMAT:
            raise found.wrong("format", FORMAT, "another format")
        agreement = found.text("agreement", 40)
        if _ID.fullmatch(agreement) is None:
            raise found.wrong("agreement", "an agreement's id", "something else")
        return cls(
            agreement=agreement,
            ca=found.binary("ca", 1, MAX_CERTIFICATE_BYTES),
            certificate=found.binary("certificate", 1, MAX_CERTIFICATE_BYTES),
            signature=found.binary("signature", SIGNATURE_BYTES, SIGNATURE_BYTES),
        )


def parse_signature_file(raw: bytes) -> Signature:
    """Parse the file of a signature. Raises UsageError."""
    what = "signature of an agreement"
    document = parse_json_object(raw, what=what, refuse=UsageError, limit_bytes=MAX_SIGNATURE_FILE_BYTES, max_depth=2)
    return Signature.from_dict(document)


def sign_agreement(agreement: Agreement, key: Ed25519PrivateKey, certificate: bytes, ca: bytes) -> Signature:
    """Sign an agreement with a party's key. `certificate` is that of the key, `ca` that of her CA (both DER)."""
    return Signature(agreement=agreement.id, ca=ca, certificate=certificate, signature=key.sign(_signed(agreement)))


def verify_signature(agreement: Agreement, signature: Signature, now: datetime) -> Party:
    """The party who made a signature of this agreement. Raises BadSignature."""

    def refuse(check: str, expected: str, seen: str) -> Error:
        return _false(agreement, check, expected, seen)

    if signature.agreement != agreement.id:
        raise refuse("agreement of the signature", agreement.id, signature.agreement)
    fingerprint = hashlib.sha256(signature.ca).hexdigest()
    party = next((party for party in agreement.parties if party.owner.hex() == fingerprint), None)
    if party is None:
        known = ", ".join(f"{party.name} {party.owner}" for party in agreement.parties)
        raise refuse("owner of the signature", known, fingerprint)
    key = certified_key(signature.certificate, signature.ca, AGREEMENTS, now, refuse)
    try:
        key.verify(signature.signature, _signed(agreement))
    except InvalidSignature:
        what = f"signature of {party.name}"
        raise refuse(what, "one over this very agreement", "one that does not verify") from None
    return party


def signed_by(agreement: Agreement, signatures: Iterable[Signature], now: datetime) -> dict[str, Signature]:
    """The signatures by party, each verified. Raises BadSignature where one does not hold, or a party has two."""
    found: dict[str, Signature] = {}
    for signature in signatures:
        party = verify_signature(agreement, signature, now)
        if party.name in found:
            raise _false(agreement, "signatures of the agreement", "one of each party", f"two of {party.name}")
        found[party.name] = signature
    return found


def missing(agreement: Agreement, signed: Iterable[str]) -> tuple[str, ...]:
    """The names of the parties who have not signed."""
    return tuple(party.name for party in agreement.parties if party.name not in set(signed))


def _signed(agreement: Agreement) -> bytes:
    return _LABEL + agreement.canonical()


def _false(agreement: Agreement, check: str, expected: str, seen: str) -> BadSignature:
    return BadSignature(
        f"a signature of agreement {agreement.id} does not hold: {check}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="compare the agreement with the other parties line by line (adyton agreement show), and the fingerprints"
        " by telephone; then have each sign again",
    )


def _refuse(path: str, expected: str, seen: str) -> Error:
    return UsageError(
        f"the signature of an agreement is refused: {path}: expected {expected}, found {seen}",
        check=f"{path} of the signature",
        expected=expected,
        seen=seen,
        remedy="ask that party for the file that adyton agreement sign wrote",
    )
