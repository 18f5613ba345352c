"""The launch digest: what SEV-SNP's firmware measures while QEMU builds the guest. Pure.

Sources: AMD, "SEV-SNP Firmware ABI" 1.58, section 8.17 (PAGE_INFO, SNP_LAUNCH_UPDATE); AMD64 manual volume 2, table
B-4 (the state of a processor, VMSA); QEMU's target/i386/sev.c (order of the pages, table of hashes). It is compared
with the PyPI package sev-snp-measure in the tests.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adyton.errors import UsageError
from adyton.image.firmware import PAGE, SEV_HASH_TABLE, SEV_RESET_BLOCK, FirmwareFile, number_of

MAX_VCPUS: Final = 4096
VMSA_ADDRESS: Final = 0xFFFFFFFFF000
BOOT_ADDRESS: Final = 0xFFFFFFF0
"""Where the first processor starts."""

NORMAL, VMSA, ZERO, SECRETS, CPUID = 1, 2, 3, 5, 6
"""Types of pages."""
_SEC_MEM, _SEC_SECRETS, _SEC_CPUID, _SEC_CAA, KERNEL_HASHES = 1, 2, 3, 4, 0x10
"""Kinds of sections in the firmware's metadata."""

_HASH_TABLE: Final = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_ENTRIES: Final = (
    ("command_line", uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")),
    ("initrd", uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")),
    ("kernel", uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")),
)
_TABLE_BYTES: Final = 18 + 3 * 50


def _signature(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001_EAX of these numbers (AMD, publication 25481)."""
    low, high = min(family, 0xF), max(0, family - 0xF)
    return high << 20 | (model >> 4) << 16 | low << 8 | (model & 0xF) << 4 | stepping


VCPU_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        **dict.fromkeys(("EPYC", "EPYC-v1", "EPYC-v2", "EPYC-v3", "EPYC-v4", "EPYC-IBPB"), _signature(23, 1, 2)),
        **dict.fromkeys(("EPYC-Rome", "EPYC-Rome-v1", "EPYC-Rome-v2", "EPYC-Rome-v3"), _signature(23, 49, 0)),
        **dict.fromkeys(("EPYC-Milan", "EPYC-Milan-v1", "EPYC-Milan-v2"), _signature(25, 1, 1)),
        **dict.fromkeys(("EPYC-Genoa", "EPYC-Genoa-v1"), _signature(25, 17, 0)),
        **dict.fromkeys(("EPYC-Turin", "EPYC-Turin-v1"), _signature(26, 0, 0)),
    }
)
"""QEMU's name of a processor -> its signature, which stands in a register when the guest starts."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What QEMU loads beside the firmware with `-kernel`, `-initrd` and `-append`, for `kernel-hashes=on`.

    An initrd or a command line that is not given counts as empty, and is measured so.
    """

    kernel: bytes
    initrd: bytes = b""
    command_line: str = ""

    def table(self) -> bytes:
        """The table of hashes that QEMU writes into the guest's memory, padded to 16 bytes."""
        content = {"kernel": self.kernel, "initrd": self.initrd, "command_line": self.command_line.encode() + b"\0"}
        out = _HASH_TABLE.bytes_le + struct.pack("<H", _TABLE_BYTES)
        for name, guid in _ENTRIES:
            out += guid.bytes_le + struct.pack("<H", 50) + hashlib.sha256(content[name]).digest()
        return out.ljust(-(-_TABLE_BYTES // 16) * 16, b"\0")


def takes_kernel_hashes(firmware: FirmwareFile) -> bool:
    """Whether this firmware checks kernel, initrd and command line against hashes that the launch digest covers."""
    has_page = any(section.kind == KERNEL_HASHES for section in firmware.sev)
    return has_page and bool(number_of(firmware.table, SEV_HASH_TABLE))


def launch_digest(
    firmware: FirmwareFile, launch: Launch | None, *, vcpus: int, vcpu_type: str, guest_features: int = 1
) -> bytes:
    """The launch digest, 48 bytes. Without `launch` the firmware alone is measured. Raises UsageError."""
    if vcpu_type not in VCPU_TYPES or not 1 <= vcpus <= MAX_VCPUS:
        raise _wrong("processors", f"1 to {MAX_VCPUS} of {', '.join(VCPU_TYPES)}", f"{vcpus} of {vcpu_type}"[:160])
    reset = number_of(firmware.table, SEV_RESET_BLOCK)
    if not firmware.sev or reset is None:
        raise _wrong("SEV metadata of the firmware", "sections, and where processors start", "none")
    if launch is not None and not takes_kernel_hashes(firmware):
        raise _wrong("kernel hashes of the firmware", "a page for them (OVMF's AmdSev build)", "none")
    value = bytes(48)
    for at in range(0, len(firmware.raw), PAGE):
        value = _page(value, NORMAL, firmware.address + at, firmware.raw[at : at + PAGE])
    for section in firmware.sev:
        value = _section(value, firmware, section.kind, section.address, section.size, launch)
    first, others = (_state(start, VCPU_TYPES[vcpu_type], guest_features) for start in (BOOT_ADDRESS, reset))
    for index in range(vcpus):
        value = _page(value, VMSA, VMSA_ADDRESS, others if index else first)
    return value


def _section(value: bytes, firmware: FirmwareFile, kind: int, address: int, size: int, launch: Launch | None) -> bytes:
    if kind == KERNEL_HASHES and launch is not None:
        offset, table = (number_of(firmware.table, SEV_HASH_TABLE) or 0) % PAGE, launch.table()
        if size != PAGE or offset + len(table) > PAGE:
            raise _wrong("page for kernel hashes", "one page that holds the table", f"{size} bytes")
        return _page(value, NORMAL, address, (bytes(offset) + table).ljust(PAGE, b"\0"))
    if kind in (_SEC_SECRETS, _SEC_CPUID):
        return _page(value, SECRETS if kind == _SEC_SECRETS else CPUID, address, None)
    if kind not in (_SEC_MEM, _SEC_CAA, KERNEL_HASHES):
        raise _wrong("kind of a SEV section", "1, 2, 3, 4 or 16", str(kind))
    for page in range(address, address + size, PAGE):
        value = _page(value, ZERO, page, None)
    return value


def _page(value: bytes, kind: int, address: int, content: bytes | None) -> bytes:
    """The digest after one page. Of some kinds of pages the content does not count."""
    hashed = bytes(48) if content is None else hashlib.sha384(content).digest()
    info = value + hashed + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)
    return hashlib.sha384(info).digest()


def _state(start: int, signature: int, guest_features: int) -> bytes:
    """The first state of a processor, as KVM and QEMU set it: one page (VMSA)."""
    page = bytearray(PAGE)
    segments = {  # offset: selector, attributes, limit, base
        0x00: (0, 0x93, 0xFFFF, 0),  # es
        0x10: (0xF000, 0x9B, 0xFFFF, start & 0xFFFF0000),  # cs
        0x20: (0, 0x93, 0xFFFF, 0),  # ss
        0x30: (0, 0x93, 0xFFFF, 0),  # ds
        0x40: (0, 0x93, 0xFFFF, 0),  # fs
        0x50: (0, 0x93, 0xFFFF, 0),  # gs
        0x60: (0, 0, 0xFFFF, 0),  # gdtr
        0x70: (0, 0x82, 0xFFFF, 0),  # ldtr
        0x80: (0, 0, 0xFFFF, 0),  # idtr
        0x90: (0, 0x8B, 0xFFFF, 0),  # tr
    }
    for at, segment in segments.items():
        struct.pack_into("<HHIQ", page, at, *segment)
    registers = {
        0xD0: 0x1000,  # efer: SVME
        0x148: 0x40,  # cr4: MCE
        0x158: 0x10,  # cr0: ET
        0x160: 0x400,  # dr7
        0x168: 0xFFFF0FF0,  # dr6
        0x170: 0x2,  # rflags
        0x178: start & 0xFFFF,  # rip
        0x268: 0x7040600070406,  # g_pat
        0x310: signature,  # rdx
        0x3B0: guest_features,  # sev_features
        0x3E8: 0x1,  # xcr0
    }
    for at, number in registers.items():
        struct.pack_into("<Q", page, at, number)
    struct.pack_into("<I", page, 0x408, 0x1F80)  # mxcsr
    struct.pack_into("<H", page, 0x410, 0x37F)  # x87_fcw
    return bytes(page)


def _wrong(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"{check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="SEV-SNP takes this image by -kernel with kernel-hashes=on, under OVMF's AmdSev build",
    )
