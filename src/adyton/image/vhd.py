"""The footer that makes a raw disk a fixed virtual hard disk (VHD), as Azure takes it. Pure.

A fixed VHD is the disk, and 512 bytes behind it. Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0,
"Hard Disk Footer Format". The creator is QEMU's `qem2`: it says that the size counts, and not the geometry, which
cannot say every size.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from adyton.errors import UsageError

FOOTER_BYTES: Final = 512
ALIGNMENT: Final = 1 << 20
"""Azure takes disks of whole MiB."""
# cookie, features, version, next header, time, creator, its version, its system, size at first, size now,
# cylinders, heads, sectors, type, checksum, identifier, saved state
_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_CHECKSUM_AT: Final = 64
_FIXED: Final = 2
_NO_GEOMETRY: Final = (0xFFFF, 16, 255)


def fixed_footer(size_bytes: int, identifier: uuid.UUID) -> bytes:
    """The footer of a disk of so many bytes. Its time is the first of 2000, so that two exports are the same.

    Raises UsageError where the size is not whole MiB.
    """
    if size_bytes <= 0 or size_bytes % ALIGNMENT:
        raise UsageError("this is no size for a VHD", check="size of the disk", expected="whole MiB", seen=size_bytes)
    head = (b"conectix", 2, 0x00010000, 0xFFFFFFFFFFFFFFFF, 0, b"qem2", 0x00050003, b"Wi2k")
    tail = (size_bytes, size_bytes, *_NO_GEOMETRY, _FIXED)
    raw = _FOOTER.pack(*head, *tail, 0, identifier.bytes, 0).ljust(FOOTER_BYTES, b"\0")
    checksum = ~sum(raw) & 0xFFFFFFFF
    return raw[:_CHECKSUM_AT] + checksum.to_bytes(4, "big") + raw[_CHECKSUM_AT + 4 :]
