"""Keys at rest. A master key wraps the store's data key, and the data key wraps every key and secret.

::

    master key (32 bytes: a file, a passphrase through scrypt, or what a command prints)
      └─ AES-256-GCM ─> data key, version 1, 2, … (32 random bytes each, kept wrapped in the store)
           └─ AES-256-GCM ─> each key and secret, bound to its name, version and kind
      └─ AES-256-GCM ─> state key (32 random bytes, kept wrapped in the store, never changed)
           └─ HKDF ────────> the keys that authenticate policies and challenges,
                            and the one that seals the key of grants

A wrapped value is `nonce (12) ‖ ciphertext ‖ tag (16)`. Its binding is the associated data, so a wrapped key that was
copied over another one does not open. The nonce is an HMAC over all the wrapped data, under 32 random bytes. A virtual
machine that was cloned or restored may draw these bytes twice. Other data give another nonce even then.
"""

from __future__ import annotations

import hmac
import secrets
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from adyton.capped_read import read_private_file
from adyton.errors import StorageFailed, StoreError, Timeout, UsageError

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
COMMAND_TIMEOUT_S: Final = 60
SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
NO_HOME: Final = "name the right home (--home or ADYTON_HOME), or make one with adyton init"
"""The remedy where a file of the home is missing."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WrappingKey:
    """A 32-byte key that wraps other secrets. It never shows itself in text."""

    _raw: bytes

    def __post_init__(self) -> None:
        if len(self._raw) != SECRET_BYTES:
            raise StoreError(
                f"a wrapping key has {SECRET_BYTES} bytes, got {len(self._raw)}",
                check="length of the master key",
                expected=f"{SECRET_BYTES} bytes",
                seen=f"{len(self._raw)} bytes",
            )

    @classmethod
    def generate(cls) -> WrappingKey:
        """Draw a new one from the kernel."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    def wrap(self, secret: bytes, bound_to: bytes) -> bytes:
        """Encrypt `secret`. It opens only under this key and with the same `bound_to`."""
        content = struct.pack("<Q", len(bound_to)) + bound_to + secret
        nonce = hmac.digest(secrets.token_bytes(SECRET_BYTES), content, "sha256")[:NONCE_BYTES]
        return nonce + AESGCM(self._raw).encrypt(nonce, secret, bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes, what: str) -> bytes:
        """Decrypt the output of `wrap`. Raises StoreError where the key, the binding or a byte differs."""
        try:
            return AESGCM(self._raw).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], bound_to)
        except (InvalidTag, ValueError):
            raise StoreError(
                f"{what} does not open under this key",
                check=f"authentication tag of {what}",
                expected="the tag made under the store's own key",
                seen="another key, or altered bytes",
                remedy="use the store's own master key (after a rotation the new one, on every machine that shares the"
                " store), or restore a backup (adyton restore)",
            ) from None

    def derive(self, label: bytes) -> bytes:
        """Derive 32 bytes for the purpose `label` (HKDF-SHA-256)."""
        return HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=None, info=label).derive(self._raw)

    def reveal(self) -> bytes:
        """The 32 raw bytes. Call it only where they are written or wrapped."""
        return self._raw

    def __repr__(self) -> str:
        return "WrappingKey(<secret>)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled")


def master_from_file(path: Path) -> WrappingKey:
    """The master key kept as 32 raw bytes in a file of mode 0600."""
    return WrappingKey(read_private_file(path, "master key file", remedy=NO_HOME))


def master_from_passphrase(passphrase: bytes, salt: bytes) -> WrappingKey:
    """The master key derived from a passphrase by scrypt (n=2^17, r=8, p=1: 128 MiB, about half a second)."""
    if len(passphrase) < 8:
        raise UsageError(
            "the passphrase is too short", check="passphrase", expected="at least 8 bytes", seen=f"{len(passphrase)}"
        )
    return WrappingKey(Scrypt(salt=salt, length=SECRET_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase))


def master_from_command(command: tuple[str, ...]) -> WrappingKey:
    """The master key from a command: 32 raw bytes or 64 hex digits on its standard output."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Timeout(f"the master key command did not end within {COMMAND_TIMEOUT_S} s: {command[0]}") from None
    except OSError as error:
        raise StorageFailed(f"the master key command cannot be started: {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise StoreError(
            f"the master key command failed: {command[0]}",
            check="exit status of the master key command",
            expected=0,
            seen=done.returncode,
            remedy="run it by hand; it must print 32 raw bytes or 64 hex digits",
        )
    raw = done.stdout
    if len(raw) != SECRET_BYTES:
        try:
            raw = bytes.fromhex(raw.decode("ascii").strip())
        except ValueError:
            raise StoreError(
                f"the master key command printed no key: {command[0]}",
                check="output of the master key command",
                expected=f"{SECRET_BYTES} raw bytes or {2 * SECRET_BYTES} hex digits",
                seen=f"{len(done.stdout)} bytes of something else",
            ) from None
    return WrappingKey(raw)
