"""Files of a simulated platform: read with a cap, private keys only if private."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from adyton.capped_read import read_capped, read_private_file
from adyton.errors import NoDevice, StorageFailed, UsageError

PLATFORM_VARIABLE: Final = "ADYTON_SIM_PLATFORM"
DEFAULT_PLATFORM: Final = "~/.adyton-sim"
MAX_FILE_BYTES: Final = 1 << 20
PPID_PADDING: Final = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
"""The padding with which a PPID is encrypted to the vendor."""


def platform_directory(chosen: Path | None = None) -> Path:
    """The simulated platform's folder: the one chosen, else $ADYTON_SIM_PLATFORM, else ~/.adyton-sim."""
    if chosen is not None:
        return chosen
    return Path(os.environ.get(PLATFORM_VARIABLE) or DEFAULT_PLATFORM).expanduser()


def read_file(path: Path, *, private: bool = False) -> bytes:
    """The whole file; raises NoDevice where it is missing, UsageError where a private one can be read by others."""
    what = "file of the simulated platform"
    try:
        if private:
            return read_private_file(path, what, limit_bytes=MAX_FILE_BYTES, refuse=UsageError)
        return read_capped(path, MAX_FILE_BYTES, what)
    except StorageFailed as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise NoDevice(
            f"no simulated platform here: {path} is missing",
            check="simulated platform",
            expected=str(path),
            seen="no such file",
            remedy="make one with `adyton platform new DIR` and name it with --sim-platform DIR or ADYTON_SIM_PLATFORM",
        ) from None


def key_bytes(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """A private key as PKCS #8 DER, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key that only its owner can read."""
    content = read_file(path, private=True)
    try:
        key = serialization.load_der_private_key(content, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} does not hold a P-256 private key")
    return key


def decrypt_ppid(path: Path, encrypted: bytes) -> bytes | None:
    """A PPID decrypted with the vendor's key in this file, or None where it does not decrypt."""
    key = serialization.load_der_private_key(read_file(path, private=True), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise UsageError(f"{path} does not hold an RSA private key")
    try:
        return key.decrypt(encrypted, PPID_PADDING)
    except ValueError:
        return None


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA-P256-SHA256 as quotes and signed documents carry it: r and s, 32 bytes each, big-endian."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x and y, 32 bytes each, big-endian."""
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return point[1:]
