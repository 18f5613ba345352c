"""The key of a backup that opens with a passphrase."""

from __future__ import annotations

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from adyton.errors import UsageError
from adyton.keystore.wrapping import SCRYPT_N, SCRYPT_P, SCRYPT_R
from adyton.values import KEY_BYTES, Key128


def key_from_passphrase(passphrase: bytes, salt: bytes) -> Key128:
    """A backup's key from a passphrase (scrypt, n=2^17, r=8, p=1)."""
    if len(passphrase) < 8:
        raise UsageError("the passphrase is too short", check="passphrase", expected="at least 8 bytes")
    return Key128(Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase))
