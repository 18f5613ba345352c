"""The envelope of a receipt: DSSE (Dead Simple Signing Envelope, version 1.0.2), read strictly.

A signature is over the pre-authentication encoding::

    "DSSEv1 " ‖ len(type) ‖ " " ‖ type ‖ " " ‖ len(payload) ‖ " " ‖ payload        (lengths as decimal digits)

The `keyid` of a signature is the fingerprint of its key: SHA-256 over the SubjectPublicKeyInfo in DER, as hex digits.
A P-256 key signs by ECDSA with SHA-256, in DER and with the lower s. An Ed25519 key signs 64 bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import BadChain, KeyReleaseError
from adyton.release.run_key import RunKey, is_signed_by
from adyton.release.wire import b64

if TYPE_CHECKING:
    from adyton.typed_document import TypedDocument

IN_TOTO: Final = "application/vnd.in-toto+json"
MAX_PAYLOAD_BYTES: Final = 128 * 1024
MAX_SIGNATURES: Final = 17
_MAX_SIGNATURE_BYTES: Final = 80


def pae(payload: bytes) -> bytes:
    """The bytes that are signed for a payload of type `IN_TOTO`."""
    return b"DSSEv1 %d %s %d %s" % (len(IN_TOTO), IN_TOTO.encode(), len(payload), payload)


def fingerprint(spki: bytes) -> str:
    """The `keyid` of a key: SHA-256 of its SubjectPublicKeyInfo (DER), in hex."""
    return hashlib.sha256(spki).hexdigest()


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope."""

    keyid: str
    sig: bytes

    @classmethod
    def create(cls, key: RunKey, payload: bytes) -> Signature:
        """The signature of a run."""
        raw = key.sign(pae(payload))
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        return cls(fingerprint(key.public_bytes), encode_dss_signature(r, s))

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"keyid": self.keyid, "sig": b64(self.sig)}

    @classmethod
    def from_dict(cls, document: TypedDocument) -> Signature:
        """Read the members."""
        document.only({"keyid", "sig"})
        keyid = document.hexadecimal("keyid", 32).hex()
        if document["keyid"] != keyid:
            raise document.wrong("keyid", "lower-case hex digits", "others")
        return cls(keyid, document.binary("sig", 1, _MAX_SIGNATURE_BYTES))

    @classmethod
    def of_owner(cls, key: Ed25519PrivateKey, payload: bytes) -> Signature:
        """The signature of an owner's audit key."""
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(fingerprint(spki), key.sign(pae(payload)))

    def check_run(self, run_key: bytes, payload: bytes) -> None:
        """Check that the run with this public key (DER) made this signature. Raises BadChain."""
        try:
            r, s = decode_dss_signature(self.sig)
            canonical = encode_dss_signature(r, s) == self.sig
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            holds = canonical and is_signed_by(run_key, raw, pae(payload))
        except (ValueError, OverflowError, KeyReleaseError):
            holds = False
        if not holds or self.keyid != fingerprint(run_key):
            raise _false("signature of the run", "a signature of the run key that the statement names")

    def check_owner(self, key: Ed25519PublicKey, payload: bytes) -> None:
        """Check that this audit key made this signature. Raises BadChain."""
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        try:
            key.verify(self.sig, pae(payload))
            holds = True
        except InvalidSignature:
            holds = False
        if not holds or self.keyid != fingerprint(spki):
            raise _false("signature of the key server", "a signature of the owner's audit key over this very statement")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed payload of type `IN_TOTO`. The first signature is that of the run."""

    payload: bytes
    signatures: tuple[Signature, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "payload": b64(self.payload),
            "payloadType": IN_TOTO,
            "signatures": [signature.to_dict() for signature in self.signatures],
        }

    @classmethod
    def from_dict(cls, document: TypedDocument) -> Envelope:
        """Read the three members of an envelope. The caller checks that there are no others."""
        if document.text("payloadType", 64) != IN_TOTO:
            raise document.wrong("payloadType", IN_TOTO, "another type")
        signatures = document.inner_list("signatures", MAX_SIGNATURES)
        if not signatures:
            raise document.wrong("signatures", "the signature of the run", "none")
        return cls(
            document.binary("payload", 1, MAX_PAYLOAD_BYTES), tuple(Signature.from_dict(item) for item in signatures)
        )


def _false(check: str, expected: str) -> BadChain:
    return BadChain(
        f"the receipt was altered, or was not made by this run: the {check} does not hold",
        check=check,
        expected=expected,
        seen="one that does not verify",
        remedy="get the receipt again from whoever started the run",
    )
