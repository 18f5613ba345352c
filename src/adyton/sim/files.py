"""Files of a simulated platform: read with a cap, written beside and renamed, private keys only if private."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

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


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write beside, sync, rename: never half a file under the real name."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageFailed(f"cannot write {path}: {error.strerror}", check="writing", seen=error.strerror) from error


def read_file(path: Path, *, private: bool = False) -> bytes:
    """The whole file. Raises NoDevice where it is missing, UsageError where a private one can be read by others."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if private and mode & 0o077:
                raise UsageError(
                    f"{path} can be read by others",
                    check="permissions of a private key",
                    expected="0600",
                    seen=f"{mode:04o}",
                    remedy=f"chmod 600 {path}",
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NoDevice(
            f"no simulated platform here: {path} is missing",
            check="simulated platform",
            expected=str(path),
            seen="no such file",
            remedy="make one with `adyton platform new DIR` and name it with --sim-platform DIR or ADYTON_SIM_PLATFORM",
        ) from None
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}", check="reading", seen=error.strerror) from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than any file of a simulated platform ({MAX_FILE_BYTES} bytes)")
    return content


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
