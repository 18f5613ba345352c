"""`disk.raw`: a disk with two partitions, the kernel image's and the root file system's. Pure.

The root partition holds the file system and, behind it, its dm-verity tree. Everything on the disk follows from
`adyton.efi`, `root.erofs` and `root.verity`, so it can be checked against them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Final

from adyton.image.fat import system_partition
from adyton.image.gpt import ESP_TYPE, ROOT_TYPE, SECTOR, TABLE_SECTORS, Partition, write_tables

ALIGNMENT: Final = 1 << 20
"""Partitions start at, and the disk ends at, whole MiB: what clouds ask of an upload."""
ROOT_NAME: Final = "adyton-root"
"""The initrd looks for the partition of this name (`_init.c`)."""


def identifier(label: str, *parts: bytes) -> uuid.UUID:
    """A UUID that follows from these parts, so that two builds have the same one."""
    digest = hashlib.sha256(b"adyton image/1\0" + label.encode("ascii"))
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return uuid.UUID(bytes=digest.digest()[:16], version=5)


def disk_parts(kernel_image: bytes, root: bytes, tree: bytes) -> Iterator[bytes]:
    """The disk's bytes, in pieces."""
    guids = [identifier(label, kernel_image, tree) for label in ("disk", "system partition", "root partition")]
    system = system_partition(kernel_image, int.from_bytes(guids[1].bytes[:4], "big"))
    system_at = _up(TABLE_SECTORS * SECTOR)
    root_at = _up(system_at + len(system))
    end = _up(root_at + len(root) + len(tree) + TABLE_SECTORS * SECTOR)
    partitions = (
        Partition(ESP_TYPE, guids[1], "adyton-esp", system_at // SECTOR, len(system) // SECTOR),
        Partition(ROOT_TYPE, guids[2], ROOT_NAME, root_at // SECTOR, (len(root) + len(tree)) // SECTOR),
    )
    front, back = write_tables(guids[0], end // SECTOR, partitions)
    yield front.ljust(system_at, b"\0")
    yield system.ljust(root_at - system_at, b"\0")
    yield root
    yield tree
    yield bytes(end - root_at - len(root) - len(tree) - len(back)) + back


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
