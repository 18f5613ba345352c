"""The partition table of `disk.raw`: written, and read as far as firmware measures it. Pure.

Source: UEFI 2.10, chapter 5 (GUID Partition Table). The measured form is UEFI_GPT_DATA of the TCG PC Client profile:
the header, the number of partitions that exist, and their entries.
"""

from __future__ import annotations

import binascii
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adyton.errors import UsageError

SECTOR: Final = 512
ENTRIES: Final = 128
ENTRY_BYTES: Final = 128
TABLE_SECTORS: Final = 2 + ENTRIES * ENTRY_BYTES // SECTOR
"""Sectors of protective MBR, header and entries at the start of a disk. At its end stand one fewer."""
HEADER_BYTES: Final = 92

ESP_TYPE: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT_TYPE: Final = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
"""The type of a root file system for x86-64 (UAPI group, Discoverable Partitions Specification)."""

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: its type, its own GUID, its name, and its place in sectors of 512 bytes."""

    kind: uuid.UUID
    guid: uuid.UUID
    name: str
    first: int
    sectors: int


def write_tables(disk: uuid.UUID, sectors: int, partitions: Sequence[Partition]) -> tuple[bytes, bytes]:
    """The sectors at the start and at the end of a disk of `sectors` sectors."""
    entries = b"".join(
        _ENTRY.pack(
            item.kind.bytes_le,
            item.guid.bytes_le,
            item.first,
            item.first + item.sectors - 1,
            0,
            item.name.encode("utf-16-le"),
        )
        for item in partitions
    ).ljust(ENTRIES * ENTRY_BYTES, b"\0")
    last = sectors - 1
    front = _header(disk, sectors, 1, last, 2, entries)
    back = _header(disk, sectors, last, 1, last - (TABLE_SECTORS - 2), entries)
    record = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    protective = bytes(446) + record + bytes(48) + b"\x55\xaa"
    return protective + front.ljust(SECTOR, b"\0") + entries, entries + back.ljust(SECTOR, b"\0")


def _header(disk: uuid.UUID, sectors: int, here: int, other: int, table: int, entries: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART",
            0x10000,
            HEADER_BYTES,
            checksum,
            0,
            here,
            other,
            TABLE_SECTORS,
            sectors - TABLE_SECTORS,
            disk.bytes_le,
            table,
            ENTRIES,
            ENTRY_BYTES,
            binascii.crc32(entries),
        )

    return packed(binascii.crc32(packed(0)))


def measured_table(start: bytes) -> bytes:
    """What firmware measures of a disk, from its first TABLE_SECTORS sectors.

    Raises UsageError where they hold no table in the form that `write_tables` gives.
    """
    header = start[SECTOR : SECTOR + HEADER_BYTES]
    entries = start[2 * SECTOR : TABLE_SECTORS * SECTOR]
    if len(entries) != ENTRIES * ENTRY_BYTES or header[:8] != b"EFI PART":
        raise _wrong("a GUID partition table", "none")
    fields = _HEADER.unpack(header)
    if fields[2] != HEADER_BYTES or fields[10:13] != (2, ENTRIES, ENTRY_BYTES) or fields[13] != binascii.crc32(entries):
        raise _wrong(f"{ENTRIES} entries of {ENTRY_BYTES} bytes behind the header, and their checksum", "others")
    if fields[3] != binascii.crc32(header[:16] + bytes(4) + header[20:]):
        raise _wrong("the header's checksum", "another")
    used = [entries[at : at + ENTRY_BYTES] for at in range(0, len(entries), ENTRY_BYTES)]
    used = [entry for entry in used if any(entry[:16])]
    return header + struct.pack("<Q", len(used)) + b"".join(used)


def _wrong(expected: str, seen: str) -> UsageError:
    return UsageError(
        f"the disk's partition table is not an image's: expected {expected}, seen {seen}",
        check="partition table of disk.raw",
        expected=expected,
        seen=seen,
        remedy="take the disk.raw that `adyton image build` wrote",
    )
