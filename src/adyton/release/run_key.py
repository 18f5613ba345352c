"""The run key: one ECDSA P-256 key for each run, made in the TEE, with which the run signs what it says to its owners.

The evidence of the release binds its public key (`messages.report_data`). The private key never leaves the process that
holds the keys of the run. The program never has it.

A public key is exactly 91 bytes: the DER of a SubjectPublicKeyInfo with an uncompressed point (RFC 5480 section 2). A
signature is 64 bytes: r and s, each 32 bytes, big-endian. s is at most half the order of the curve. So each signature
has one form only.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.release.wire import malformed

RUN_KEY_BYTES: Final = 91
SIGNATURE_BYTES: Final = 64
_SPKI_HEAD: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""The DER before the point: SEQUENCE, the algorithm (id-ecPublicKey, prime256v1), BIT STRING without unused bits."""

_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of the group of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3)."""


class RunKey:
    """The private key of one run. It never leaves this process."""

    __slots__ = ("_private", "public_bytes")

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        self.public_bytes: bytes = self._private.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`: ECDSA with SHA-256, 64 bytes."""
        r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + min(s, _ORDER - s).to_bytes(32, "big")

    def __repr__(self) -> str:
        return "RunKey(<secret>)"


def parse_run_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """Parse the public key of a run: 91 bytes, an uncompressed point on P-256. Raises OutOfOrder."""
    if len(raw) != RUN_KEY_BYTES or not raw.startswith(_SPKI_HEAD):
        raise malformed("run key", f"a P-256 key of {RUN_KEY_BYTES} bytes, DER", f"{len(raw)} bytes of something else")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw[len(_SPKI_HEAD) :])
    except ValueError:
        raise malformed("run key", "an uncompressed point on P-256", "no such point") from None


def is_signed_by(spki: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the run with this public key signed `data`. False also for a signature in another form.

    Raises OutOfOrder where `spki` is no run key.
    """
    key = parse_run_key(spki)
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if s > _ORDER // 2:
        return False
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
