"""The fields and sizes of the format. Node 0 as bytes and as values.  Source: docs/protected-file.md.

::

    node 0, 4096 bytes, version 2 (version 1 has no flags byte: the sealed part starts at 58)

    0        8  9  10          42       58 59                             3943        4096
    | magic  |v |m | KDF nonce | tag    |f | sealed part, 3884 bytes      | zeros     |

    sealed part, once opened

    0              772    780        796        812                              3884
    | path, NUL    | size | root key | root tag | first 3072 bytes of the file   |

All integers are little-endian.  Everything outside the sealed part is unauthenticated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from adyton.errors import IntegrityError, NotProtectedFile, UnsupportedVersion

NODE_BYTES: Final = 4096
KEY_BYTES: Final = 16
TAG_BYTES: Final = 16
SLOT_BYTES: Final = KEY_BYTES + TAG_BYTES
NONCE_BYTES: Final = 32
INLINE_BYTES: Final = 3072
DATA_SLOTS: Final = 96
CHILD_SLOTS: Final = 32
PATH_FIELD_BYTES: Final = 772
MAX_PATH_BYTES: Final = PATH_FIELD_BYTES - 1
MAX_FILE_BYTES: Final = 2**63 - 1

MAGIC: Final = b"GRAFS_PF"
VERSIONS: Final = (1, 2)
MINOR: Final = 0
PENDING: Final = 0x01

SEALED_BYTES: Final = PATH_FIELD_BYTES + 8 + SLOT_BYTES + INLINE_BYTES
SEALED_AT: Final = {1: 58, 2: 59}
FLAGS_AT: Final = 58

_HEADER: Final = struct.Struct("<8sBB32s16s")
_SIZE: Final = struct.Struct("<Q")
_SIZE_AT: Final = PATH_FIELD_BYTES
_ROOT_AT: Final = _SIZE_AT + 8
_INLINE_AT: Final = _ROOT_AT + SLOT_BYTES


@dataclass(frozen=True, slots=True)
class Envelope:
    """Node 0 as it stands on the host: nothing of it is verified yet."""

    version: int
    nonce: bytes
    tag: bytes
    flags: int
    sealed: bytes

    @property
    def pending(self) -> bool:
        """Whether a flush was begun and not ended."""
        return bool(self.flags & PENDING)

    def to_bytes(self) -> bytes:
        """The 4096 bytes of node 0."""
        head = _HEADER.pack(MAGIC, self.version, MINOR, self.nonce, self.tag)
        if self.version != 1:
            head += bytes([self.flags])
        return (head + self.sealed).ljust(NODE_BYTES, b"\0")


def parse_envelope(raw: bytes) -> Envelope:
    """Node 0 of a host file, 4096 bytes. Raises NotProtectedFile or UnsupportedVersion."""
    if len(raw) != NODE_BYTES:
        raise NotProtectedFile(
            f"not a protected file: {len(raw)} bytes where node 0 has {NODE_BYTES}",
            check="size of node 0",
            expected=f"{NODE_BYTES} bytes",
            seen=f"{len(raw)} bytes",
            remedy="a protected file is made by `adyton encrypt` or by Gramine",
        )
    magic, version, _minor, nonce, tag = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise NotProtectedFile(
            "not a protected file: the magic is not there",
            check="magic",
            expected=MAGIC.decode(),
            seen="other bytes",
            remedy="this looks like plaintext or another format; encrypt it first with `adyton encrypt`",
        )
    if version not in VERSIONS:
        raise UnsupportedVersion(
            f"protected file of version {version}, which is not known",
            check="major version",
            expected="1 or 2",
            seen=version,
            remedy="use a newer Adyton, or write the file again with --format 1 or 2",
        )
    start = SEALED_AT[version]
    flags = raw[FLAGS_AT] if version != 1 else 0
    return Envelope(version, nonce, tag, flags, raw[start : start + SEALED_BYTES])


@dataclass(frozen=True, slots=True)
class Metadata:
    """What node 0 seals: path, size, the slot of the root tree node, and the first bytes of the file."""

    path: bytes
    size: int
    root_slot: bytes
    inline: bytes

    def to_bytes(self) -> bytes:
        """The 3884 bytes to be sealed; what the file does not reach of the inline area is zero."""
        live = self.inline[: min(self.size, INLINE_BYTES)]
        return b"".join(
            (
                self.path.ljust(PATH_FIELD_BYTES, b"\0"),
                _SIZE.pack(self.size),
                self.root_slot,
                live.ljust(INLINE_BYTES, b"\0"),
            )
        )

    def __repr__(self) -> str:
        return f"Metadata(path={self.path!r}, size={self.size}, <secret>)"

    @classmethod
    def parse(cls, opened: bytes) -> Self:
        """The fields of an opened sealed part. Raises IntegrityError where its maker wrote nonsense."""
        path, nul, _ = opened[:PATH_FIELD_BYTES].partition(b"\0")
        if not nul:
            raise IntegrityError(
                "the path field has no end",
                check="path field",
                expected=f"a NUL within {PATH_FIELD_BYTES} bytes",
                seen="none",
                remedy="the file was made by something that is not Gramine nor Adyton; get it again",
            )
        (size,) = _SIZE.unpack_from(opened, _SIZE_AT)
        if size > MAX_FILE_BYTES:
            raise IntegrityError(
                f"the file says it has {size} bytes",
                check="plaintext size",
                expected=f"at most {MAX_FILE_BYTES} bytes",
                seen=f"{size} bytes",
                remedy="the file was made by something that is not Gramine nor Adyton; get it again",
            )
        return cls(path, size, opened[_ROOT_AT:_INLINE_AT], opened[_INLINE_AT:])
