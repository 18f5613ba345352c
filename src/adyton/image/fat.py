"""The EFI system partition: a FAT16 file system that holds one file, `EFI/BOOT/BOOTX64.EFI`. Pure.

Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03. The same file gives the same bytes.
"""

from __future__ import annotations

import struct
from typing import Final

from adyton.errors import UsageError

SECTOR: Final = 512
_SECTORS_PER_CLUSTER: Final = 8
CLUSTER: Final = SECTOR * _SECTORS_PER_CLUSTER
_FEWEST_CLUSTERS: Final = 4200
_MOST_CLUSTERS: Final = 65_000
"""FAT16 has 4085 to 65524 clusters. Both limits keep away from where drivers disagree."""
_ROOT_ENTRIES: Final = 512
_END: Final = 0xFFFF
_DATE: Final = 0x21
"""1 January 1980."""
_FOLDER: Final = 0x10
_FILE: Final = 0x01


def system_partition(application: bytes, serial: int) -> bytes:
    """The file system, in whole sectors. `serial` has 32 bits. Raises UsageError where the file is too large."""
    file_clusters = -(-len(application) // CLUSTER)
    clusters = max(_FEWEST_CLUSTERS, file_clusters + 2)
    if not application or clusters > _MOST_CLUSTERS:
        raise UsageError(
            "the kernel image does not fit in the system partition",
            check="size of adyton.efi",
            expected=f"1 to {(_MOST_CLUSTERS - 2) * CLUSTER} bytes",
            seen=f"{len(application)} bytes",
        )
    fat_sectors = -(-(clusters + 2) * 2 // SECTOR)
    sectors = 1 + 2 * fat_sectors + _ROOT_ENTRIES * 32 // SECTOR + clusters * _SECTORS_PER_CLUSTER
    chain = [0xFFF8, _END, _END, _END]  # the first two are the header, then the folders EFI and BOOT
    chain += [*range(5, 4 + file_clusters), _END]
    table = struct.pack(f"<{len(chain)}H", *chain).ljust(fat_sectors * SECTOR, b"\0")
    root = _entry(b"EFI", _FOLDER, 2, 0).ljust(_ROOT_ENTRIES * 32, b"\0")
    efi = _entry(b".", _FOLDER, 2, 0) + _entry(b"..", _FOLDER, 0, 0) + _entry(b"BOOT", _FOLDER, 3, 0)
    boot = _entry(b".", _FOLDER, 3, 0) + _entry(b"..", _FOLDER, 2, 0)
    boot += _entry(b"BOOTX64 EFI", _FILE, 4, len(application))
    data = efi.ljust(CLUSTER, b"\0") + boot.ljust(CLUSTER, b"\0") + application
    return b"".join(
        (_boot_sector(sectors, fat_sectors, serial), table, table, root, data.ljust(clusters * CLUSTER, b"\0"))
    )


def _boot_sector(sectors: int, fat_sectors: int, serial: int) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x3c\x90",
        b"ADYTON  ",
        SECTOR,
        _SECTORS_PER_CLUSTER,
        1,
        2,
        _ROOT_ENTRIES,
        sectors if sectors < 0x10000 else 0,
        0xF8,
        fat_sectors,
        32,
        2,
        0,
        0 if sectors < 0x10000 else sectors,
    )
    tail = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, serial, b"NO NAME    ", b"FAT16   ")
    return (head + tail).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _entry(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return struct.pack("<11sB8xHHHHI", name.ljust(11), attributes, 0, 0, _DATE, cluster, size)
