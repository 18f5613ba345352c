"""MRTD: what a TDX module measures of the firmware while the host builds the guest. Pure.

Source: Intel, "TDX Module Base Architecture Specification", TDH.MEM.PAGE.ADD and TDH.MR.EXTEND. The order of the calls
is the host's. QEMU before 9.0 adds all pages of a section and then measures them (two-pass). Later it does both page by
page (single-pass).

No value that this module gives was compared with hardware (docs/tested.md).
"""

from __future__ import annotations

import hashlib
from typing import Final

from adyton.errors import UsageError
from adyton.image.document import PAGE_ORDERS
from adyton.image.firmware import PAGE, FirmwareFile

_EXTEND: Final = 1
_AUGMENT: Final = 2
"""Attributes of a section: its content is measured; its pages are added while the guest runs, so not at all."""
_CHUNK: Final = 256
_BLOCK: Final = 128


def mrtd(firmware: FirmwareFile, page_order: str) -> bytes:
    """MRTD of this firmware, 48 bytes. `page_order` is one of PAGE_ORDERS. Raises UsageError."""
    if not firmware.tdx:
        raise UsageError(
            "this firmware cannot start a TDX guest",
            check="TDX metadata of the firmware",
            expected="a TDVF descriptor",
            seen="none",
            remedy="take an OVMF that was built for TDX, in one piece (not the one split in CODE and VARS)",
        )
    digest = hashlib.sha384()
    passes = ((True, True),) if page_order == PAGE_ORDERS[0] else ((True, False), (False, True))
    for section in firmware.tdx:
        content = firmware.raw[section.offset : section.offset + section.file_bytes].ljust(section.memory_bytes, b"\0")
        for adds, measures in passes:
            for page in range(0, section.memory_bytes, PAGE):
                if adds and not section.attributes & _AUGMENT:
                    digest.update(_record(b"MEM.PAGE.ADD", section.address + page))
                if measures and section.attributes & _EXTEND:
                    for chunk in range(page, page + PAGE, _CHUNK):
                        digest.update(_record(b"MR.EXTEND", section.address + chunk))
                        digest.update(content[chunk : chunk + _CHUNK])
    return digest.digest()


def _record(name: bytes, address: int) -> bytes:
    return (name.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(_BLOCK, b"\0")
