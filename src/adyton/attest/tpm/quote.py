"""The checks of a quote that do not depend on whose key signed it: signature, PCR selection, PCR digest.

One function for each. The nonce is compared in the appraisal, as all report data (`adyton.attest.appraise`).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from adyton.attest.certificates import ecdsa_is_valid
from adyton.attest.tpm.structures import ALG_ECDSA, ALG_RSASSA, ALL_PCRS, Attest, Signature
from adyton.errors import BadChain, Mismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.checks import Checks

MIN_RSA_BITS: Final = 2048
_EXPONENT: Final = 65537
_ANEW: Final = "collect the evidence again"


def usable_key(key: object) -> bool:
    """Whether a public key may be an attestation key: P-256, or RSA of 2048 bits or more with exponent 65537."""
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= MIN_RSA_BITS and key.public_numbers().e == _EXPONENT
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"


def check_key(checks: Checks, key: object) -> None:
    """The attestation key is of a kind and size that is accepted."""
    if isinstance(key, rsa.RSAPublicKey):
        seen = f"RSA, {key.key_size} bits, exponent {key.public_numbers().e}"
    else:
        seen = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    checks.require(
        "attestation key",
        usable_key(key),
        expected=f"P-256, or RSA of {MIN_RSA_BITS} bits or more with exponent {_EXPONENT}",
        seen=seen,
        error=BadChain,
    )


def rsassa_is_valid(key: rsa.RSAPublicKey, signature: bytes, data: bytes) -> bool:
    """Whether an RSASSA-PKCS1-v1_5 signature with SHA-256 over `data` is the key's."""
    try:
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _is_signed(key: object, signature: Signature, message: bytes) -> bool:
    if not usable_key(key):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return signature.algorithm == ALG_RSASSA and rsassa_is_valid(key, signature.value, message)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return signature.algorithm == ALG_ECDSA and ecdsa_is_valid(key, signature.value, message)
    return False


def check_signature(checks: Checks, key: object, signature: Signature, message: bytes) -> None:
    """The quoted message is signed by the attestation key."""
    checks.require(
        "TPM quote: signature",
        _is_signed(key, signature, message),
        expected="a signature by the attestation key",
        seen="a signature by another key, of another kind, or over other bytes",
        error=BadChain,
        remedy="the quote was altered, or is of another machine: " + _ANEW,
    )


def check_selection(checks: Checks, attest: Attest) -> None:
    """The quote covers all 24 PCRs of the SHA-256 bank, and nothing else: a PCR left out could hold anything."""
    checks.require(
        "TPM quote: PCR selection",
        attest.selections == (ALL_PCRS,),
        expected=ALL_PCRS,
        seen="; ".join(map(str, attest.selections)) or "none",
        error=Mismatch,
        remedy="quote all 24 PCRs of the SHA-256 bank",
    )


def check_pcr_digest(checks: Checks, attest: Attest, pcrs: Sequence[bytes]) -> None:
    """The PCR values beside the quote are those that the TPM signed."""
    computed = hashlib.sha256(b"".join(pcrs)).digest()
    checks.require(
        "TPM quote: PCR digest",
        hmac.compare_digest(attest.pcr_digest, computed),
        expected=attest.pcr_digest,
        seen=computed,
        error=Mismatch,
        remedy="the PCR values are not those of the quote: " + _ANEW,
    )
