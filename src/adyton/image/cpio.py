"""The initrd: a cpio archive in the form that the kernel unpacks ("newc"). Pure.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_FILE: Final = 0o100000
_FOLDER: Final = 0o040000
_TRAILER: Final = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B00000000TRAILER!!!\0\0\0\0"
"""The end of an archive, in the letters that systemd's stub writes."""


def archive(folders: Mapping[str, int], files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive of folders (name -> mode) and files (name -> mode and content), sorted by names, all of time 0."""
    members = {name: (_FOLDER | mode, b"") for name, mode in folders.items()}
    members |= {name: (_FILE | mode, content) for name, (mode, content) in files.items()}
    out = bytearray()
    for number, name in enumerate(sorted(members), 1):
        _add(out, number, name, *members[name])
    return bytes(out) + _TRAILER


def as_booted(initrd: bytes, os_release: bytes) -> bytes:
    """The initrd that the kernel gets from systemd's stub: the image's own, and an archive with its `.osrel`.

    Source: systemd 257, src/boot/stub.c (`combine_initrds`) and src/boot/cpio.c.
    """
    extra = archive({".extra": 0o555}, {".extra/os-release": (0o444, os_release)})
    return initrd + bytes(-len(initrd) % 4) + extra


def _add(out: bytearray, number: int, name: str, mode: int, content: bytes) -> None:
    encoded = name.encode("ascii") + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    for part in (b"070701" + b"".join(b"%08x" % value for value in fields) + encoded, content):
        out += part
        out += bytes(-len(out) % 4)
