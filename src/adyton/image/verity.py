"""The dm-verity tree over the root file system. Pure.

Source: cryptsetup's description of the format, "DM-Verity" (hash type 1), and the kernel's
Documentation/admin-guide/device-mapper/verity.rst. Blocks have 4096 bytes, and the hash is SHA-256.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Final

from adyton.errors import UsageError

BLOCK: Final = 4096
SALT_BYTES: Final = 32
MAX_DATA_BYTES: Final = 1 << 33


def verity_tree(data: bytes | memoryview, salt: bytes, identifier: uuid.UUID) -> tuple[bytes, bytes]:
    """The superblock with the tree, and the root hash (32 bytes). Raises UsageError unless `data` is whole blocks."""
    if not data or len(data) % BLOCK or len(data) > MAX_DATA_BYTES or len(salt) != SALT_BYTES:
        raise UsageError(
            "the root file system has no whole blocks",
            check="size of root.erofs",
            expected=f"a multiple of {BLOCK} bytes, at most {MAX_DATA_BYTES}",
            seen=f"{len(data)} bytes",
        )
    levels: list[bytes] = []
    below = memoryview(data)
    while True:
        digests = _hash_blocks(below, salt)
        if len(below) == BLOCK:
            root = digests
            break
        levels.append(digests.ljust(-(-len(digests) // BLOCK) * BLOCK, b"\0"))
        below = memoryview(levels[-1])
    superblock = struct.pack(
        "<8sII16s32sIIQH6x256s168x",
        b"verity",
        1,
        1,
        identifier.bytes,
        b"sha256",
        BLOCK,
        BLOCK,
        len(data) // BLOCK,
        len(salt),
        salt,
    )
    return superblock.ljust(BLOCK, b"\0") + b"".join(reversed(levels)), root


def table(root_hash: bytes, salt: bytes, data_blocks: int) -> str:
    """The device mapper's table of an image, where the tree lies behind the data on one device (@).

    A block that does not fit stops the kernel: no program goes on with a file that the host changed.
    """
    return (
        f"1 @ @ {BLOCK} {BLOCK} {data_blocks} {data_blocks + 1} sha256 {root_hash.hex()} {salt.hex()}"
        " 1 panic_on_corruption"
    )


def _hash_blocks(data: memoryview, salt: bytes) -> bytes:
    salted = hashlib.sha256(salt)
    found = bytearray()
    for at in range(0, len(data), BLOCK):
        digest = salted.copy()
        digest.update(data[at : at + BLOCK])
        found += digest.digest()
    return bytes(found)
