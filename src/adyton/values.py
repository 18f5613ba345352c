"""Value objects that several rooms use: digests, keys, measurements, nonces.

A value is checked once, when it is made. It needs no further check.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final, Literal, Self

from adyton.errors import UsageError

KEY_BYTES: Final = 16
KEY_REMEDY: Final = "a key file holds the 16 raw bytes and nothing else, not hex and no newline"
NONCE_BYTES: Final = 32
NAME_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
"""The names of keys, secrets, programs and versions (ASCII). Both sides of the release protocol check them."""

GRANT_PURPOSE: Final = "2.25.3674707917392626790769346016838999790"
"""The extended key usage of the certificate that signs grants, and of no other (an OID from a UUID, ITU-T X.667)."""

AGREEMENT_PURPOSE: Final = "2.25.68256761448144805412867333757588319862"
"""The extended key usage of the certificate whose key signs agreements in the name of their party."""

IN_FORCE_PURPOSE: Final = "2.25.231929294420742513983913746312839329637"
"""The extended key usage of the certificate whose key says that an agreement is in force: a key server has it."""


def _unhex(text: str, what: str, sizes: tuple[int, ...]) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) not in sizes or len(text) != 2 * len(raw):
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise UsageError(
            f"{what}: expected {wanted} hex digits, got {len(text)} characters",
            check=what,
            expected=f"{wanted} hex digits",
            seen=text[:160],
        )
    return raw


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 digest, 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise UsageError(f"a SHA-256 digest has 32 bytes, got {len(self.raw)}")

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse 64 hex digits. Raises UsageError otherwise."""
        return cls(_unhex(text, "SHA-256 digest", (32,)))

    def hex(self) -> str:
        """The digest as 64 lower-case hex digits."""
        return self.raw.hex()

    def __str__(self) -> str:
        return self.hex()


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of a TEE: 32 bytes (SGX) or 48 bytes (TDX, SEV-SNP), in report order."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) not in (32, 48):
            raise UsageError(f"a measurement has 32 or 48 bytes, got {len(self.raw)}")

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse 64 or 96 hex digits. Raises UsageError otherwise."""
        return cls(_unhex(text, "measurement", (32, 48)))

    def hex(self) -> str:
        """The measurement as lower-case hex digits."""
        return self.raw.hex()

    def __str__(self) -> str:
        return self.hex()


@dataclass(frozen=True, slots=True)
class Nonce:
    """32 bytes that are used once."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != NONCE_BYTES:
            raise UsageError(f"a nonce has {NONCE_BYTES} bytes, got {len(self.raw)}")

    @classmethod
    def fresh(cls) -> Self:
        """Draw one from the kernel."""
        return cls(secrets.token_bytes(NONCE_BYTES))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Key128:
    """A 16-byte wrap key of protected files. It never shows itself in text, and compares in constant time."""

    _raw: bytes

    def __post_init__(self) -> None:
        if len(self._raw) != KEY_BYTES:
            raise UsageError(
                f"a key has {KEY_BYTES} bytes, got {len(self._raw)}",
                check="length of the key",
                expected=f"{KEY_BYTES} raw bytes",
                seen=f"{len(self._raw)} bytes",
                remedy=KEY_REMEDY,
            )

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the kernel."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def reveal(self) -> bytes:
        """The 16 raw bytes. Call it only where they are used."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key128) and hmac.compare_digest(self._raw, other._raw)

    __hash__ = None  # type: ignore[assignment]
    """A key cannot be in a set or be a dictionary's key: both compare bytes in variable time."""

    def __repr__(self) -> str:
        return "Key128(<secret>)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of `adyton doctor`: the subject, its state, what was seen, and the remedy."""

    group: str
    name: str
    state: Literal["ok", "note", "warning", "missing"]
    seen: str
    remedy: str | None = None
