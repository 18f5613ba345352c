"""OCSP answers (RFC 6960) as collateral: parsed, their signature checked, kept until their next update.

Answers are judged without a nonce, because they are kept: their own times bound their age. Every revocation counts,
also `certificateHold`. The answer is signed by an authority in the certificate's own chain, or by a responder that such
an authority named (extended key usage OCSPSigning).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.attest.certificates import FOREIGN, Certificate, Window, parse_certificate
from adyton.attest.nvidia.chain import signs_data
from adyton.attest.nvidia.layout import MAX_OCSP_BYTES
from adyton.errors import BadChain, MalformedQuote, Revoked, Stale
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from adyton.attest.checks import Checks

_HASHES: Final = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha384": hashlib.sha384}
"""Hashes that name an issuer in an answer. SHA-1 is no weakness there: the whole issuer is known."""
_MAX_CERTIFICATES: Final = 4
_REFRESH: Final = "fetch it again: adyton collateral fetch --gpu --for EVIDENCE"


@dataclass(frozen=True, slots=True)
class Answer:
    """One OCSP answer about one certificate. It is unverified."""

    raw: bytes
    serial: int
    issuer_hash: str
    """Name of the hash of the next two."""
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    status: str
    """good, revoked or unknown."""
    reason: str
    """The reason of a revocation, or empty."""
    this_update: datetime
    next_update: datetime
    signed_part: bytes
    signature: bytes
    responder: tuple[bytes, ...]
    """DER of the certificates inside it."""

    @property
    def fingerprint(self) -> Digest:
        """SHA-256 of the answer."""
        return Digest(hashlib.sha256(self.raw).digest())

    def window(self, what: str) -> Window:
        """When it is valid. Both ends belong to it."""
        return Window(f"OCSP answer about the {what}", self.this_update, self.next_update)

    def is_about(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Whether it names this certificate, by its serial number and by name and key of its issuer."""
        if self.serial != certificate.serial:
            return False
        return (self.issuer_name_hash, self.issuer_key_hash) == issuer_hashes(issuer, self.issuer_hash)


def issuer_hashes(issuer: Certificate, algorithm: str) -> tuple[bytes, bytes]:
    """The hashes of an issuer's name and public key (the bits alone), as a CertID has them."""
    digest = _HASHES[algorithm]
    key = issuer.key
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MalformedQuote("the issuer's key is of no curve", check="key of the issuer", expected="P-384", seen="")
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return digest(issuer.subject.der).digest(), digest(point).digest()


def _malformed(seen: object) -> MalformedQuote:
    return MalformedQuote(
        f"the OCSP answer does not parse: {seen}",
        check="parse of the OCSP answer",
        expected="one successful answer about one certificate, with a next update",
        seen=seen,
        remedy=_REFRESH,
    )


def parse_answer(raw: bytes) -> Answer:
    """Parse one OCSP answer (DER). Raises MalformedQuote."""
    if len(raw) > MAX_OCSP_BYTES:
        raise _malformed(f"{len(raw)} bytes")
    try:
        found = ocsp.load_der_ocsp_response(bytes(raw))
        if found.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise _malformed(f"the responder's error {found.response_status.name}")
        singles = list(found.responses)
        certificates = tuple(item.public_bytes(serialization.Encoding.DER) for item in found.certificates)
        if len(singles) != 1 or len(certificates) > _MAX_CERTIFICATES:
            raise _malformed(f"{len(singles)} answers and {len(certificates)} certificates")
        if any(extension.critical for extension in [*found.extensions, *found.single_extensions]):
            raise _malformed("a critical extension")
        single = singles[0]
        algorithm, after = single.hash_algorithm.name, single.next_update_utc
        if algorithm not in _HASHES or after is None:
            raise _malformed("no next update, or an issuer named by an unknown hash")
        if not isinstance(found.signature_hash_algorithm, hashes.SHA384 | hashes.SHA256):
            raise _malformed("a signature with another hash than SHA-384 or SHA-256")
        reason = single.revocation_reason
        return Answer(
            raw=bytes(raw),
            serial=single.serial_number,
            issuer_hash=algorithm,
            issuer_name_hash=single.issuer_name_hash,
            issuer_key_hash=single.issuer_key_hash,
            status=single.certificate_status.name.lower(),
            reason="" if reason is None else str(reason.value),
            this_update=single.this_update_utc,
            next_update=after,
            signed_part=found.tbs_response_bytes,
            signature=found.signature,
            responder=certificates,
        )
    except FOREIGN as error:
        raise _malformed(type(error).__name__) from None


def signer_of(answer: Answer, authorities: Sequence[Certificate]) -> Certificate | None:
    """The certificate whose key signed an answer. None where no authority or responder of it did.

    `authorities` are the verified issuers of the certificate in question, nearest first.
    """
    for raw in answer.responder:
        candidate = parse_certificate(raw, "OCSP responder")
        named = any(candidate.issuer == each.subject and candidate.is_signed_by(each) for each in authorities)
        if named and _may_answer(candidate) and _signed(answer, candidate):
            return candidate
    return next((authority for authority in authorities if _signed(answer, authority)), None)


def _may_answer(candidate: Certificate) -> bool:
    if candidate.is_ca or not signs_data(candidate):
        return False
    for extension in candidate.extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            return ExtendedKeyUsageOID.OCSP_SIGNING in extension.value
    return False


def _signed(answer: Answer, signer: Certificate) -> bool:
    key = signer.p384
    if key is None:
        return False
    try:
        key.verify(answer.signature, answer.signed_part, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def check_answer(
    checks: Checks, answer: Answer, signer: Certificate | None, certificate: Certificate, now: datetime
) -> Window:
    """Check who signed an answer about this certificate, that it is valid at `now`, and that it says good.

    `signer` is what `signer_of` found. Returns the answer's validity.
    """
    what = certificate.what
    signer = checks.require_found(
        f"{what}: OCSP answer is signed",
        signer,
        expected="a signature by an authority above it, or by a responder that one named",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy=_REFRESH,
    )
    window, responder = answer.window(what), signer.window
    checks.require(
        f"{what}: OCSP answer is valid now",
        answer.this_update <= now <= answer.next_update and responder.not_before <= now <= responder.not_after,
        expected=(answer.this_update, answer.next_update),
        seen=now,
        error=Stale,
        remedy=_REFRESH,
    )
    checks.require(
        f"{what}: not revoked",
        answer.status == "good",
        expected="good",
        seen=f"{answer.status} {answer.reason}".strip(),
        error=Revoked,
        message=f"NVIDIA's answer about the {what} is: {answer.status} {answer.reason}".strip(),
        remedy="do not use this device or this RIM; ask NVIDIA",
    )
    return window


def build_request(certificate: Certificate, issuer: Certificate) -> bytes:
    """An OCSP request (DER) about one certificate, with SHA-384 in its CertID and without a nonce."""
    name, key = issuer_hashes(issuer, "sha384")
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, key, certificate.serial, hashes.SHA384())
    return builder.build().public_bytes(serialization.Encoding.DER)
