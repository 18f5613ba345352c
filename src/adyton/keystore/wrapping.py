"""Keys at rest: a master key wraps the store's data key, the data key wraps every key and secret of the store.

::

    master key (32 bytes: a file, a passphrase through scrypt, or what a command prints)
      └─ AES-256-GCM ─> data key, version 1, 2, … (32 random bytes each, kept wrapped in the store)
           └─ AES-256-GCM ─> each key and secret, bound to its name, version and kind
      └─ AES-256-GCM ─> state key (32 random bytes, kept wrapped in the store, never changed)
           └─ HKDF ────────> the keys that authenticate policies and challenges,
                            and the one that seals the key of grants

A wrapped value is `nonce (12) ‖ ciphertext ‖ tag (16)`; what it belongs to is the associated data, so a
wrapped key that was copied over another one does not open. The nonce is an HMAC, under 32 random bytes, over all that
is wrapped: a virtual machine that was cloned or restored may draw these bytes twice, and has another nonce even so.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from adyton.errors import StorageFailed, StoreError, Timeout, UsageError

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
MAX_SECRET_FILE_BYTES: Final = 16 * 1024
COMMAND_TIMEOUT_S: Final = 60
SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WrappingKey:
    """A 32-byte key that wraps other secrets; it never shows itself in text."""

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
        """Encrypt `secret` so that it opens only under this key and for `bound_to`."""
        content = struct.pack("<Q", len(bound_to)) + bound_to + secret
        nonce = hmac.digest(secrets.token_bytes(SECRET_BYTES), content, "sha256")[:NONCE_BYTES]
        return nonce + AESGCM(self._raw).encrypt(nonce, secret, bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes, what: str) -> bytes:
        """Open what `wrap` made; raises StoreError where the key, the place, or a byte is another."""
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
        """32 bytes for another purpose, named by `label` (HKDF-SHA-256)."""
        return HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=None, info=label).derive(self._raw)

    def reveal(self) -> bytes:
        """The 32 raw bytes; call it only where they are written or wrapped."""
        return self._raw

    def __repr__(self) -> str:
        return "WrappingKey(<secret>)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled")


def read_private_file(path: Path, what: str, *, limit: int = MAX_SECRET_FILE_BYTES) -> bytes:
    """Read a small secret file that nobody else may read; refuses one that group or others can open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise StorageFailed(
            f"{what} cannot be read: {path}: {error.strerror}",
            check=what,
            expected="a readable file of mode 0600",
            seen=str(error.strerror),
            remedy="name the right home (--home or ADYTON_HOME), or make one with adyton init",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise StoreError(
                f"{what} is open to others: {path}",
                check=f"permissions of {what}",
                expected="a regular file of mode 0600 or stricter",
                seen=f"mode {stat.filemode(status.st_mode)}",
                remedy=f"chmod 600 {path}",
            )
        raw = os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(raw) > limit:
        raise StoreError(f"{what} is longer than {limit} bytes: {path}")
    return raw


def write_private_file(path: Path, raw: bytes) -> None:
    """Write a file of mode 0600 that appears under its name whole or not at all, and never replaces another.

    When this returns, the file and its name outlast a power cut.
    """
    try:
        _write_new(path, raw)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error


def _write_new(path: Path, raw: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(
        f"cannot write {path}: {error.strerror}",
        check="writing a new file",
        expected="a path that does not exist yet, in a folder that can be written",
        seen=str(error.strerror),
        remedy="choose another path, or remove what is there if it is not needed",
    )


def replace_private_file(path: Path, raw: bytes) -> None:
    """Put new content in an existing private file's place, whole or not at all; durable when this returns."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _write_new(beside, raw)
    except OSError as error:
        raise _not_written(path, error) from error
    rename_private_file(beside, path)


def rename_private_file(path: Path, to: Path) -> None:
    """Put a private file in another's place, or under a new name in the same folder; durable when this returns."""
    try:
        path.replace(to)
        sync_folder(to.parent)
    except OSError as error:
        raise StorageFailed(
            f"cannot put {path.name} in the place of {to}: {error.strerror}",
            check="renaming a file",
            expected="a folder that can be written",
            seen=str(error.strerror),
            remedy=f"nothing is lost: it is still in {path}; mend the folder and try again",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def master_from_file(path: Path) -> WrappingKey:
    """The master key kept as 32 raw bytes in a file of mode 0600."""
    return WrappingKey(read_private_file(path, "master key file"))


def master_from_passphrase(passphrase: bytes, salt: bytes) -> WrappingKey:
    """The master key derived from a passphrase by scrypt (n=2^17, r=8, p=1: 128 MiB, about half a second)."""
    if len(passphrase) < 8:
        raise UsageError(
            "the passphrase is too short", check="passphrase", expected="at least 8 bytes", seen=f"{len(passphrase)}"
        )
    return WrappingKey(Scrypt(salt=salt, length=SECRET_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase))


def master_from_command(command: tuple[str, ...]) -> WrappingKey:
    """The master key that a command prints: 32 raw bytes or 64 hex digits on its standard output."""
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
