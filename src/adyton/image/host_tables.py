"""RTMR0 of an image under one firmware, with the ACPI tables of one QEMU and one shape of machine. Pure.

Nothing here computes the tables: QEMU makes them from its version, its options, and the addresses that the firmware
gives to devices. They come from the event log of a boot that the owner made herself, on a machine that she trusts: a
log that somebody else made pins his tables. What is known of such a boot is compared: the firmware's store of
variables, the empty variables of Secure Boot, and the whole of RTMR1 and RTMR2.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from adyton.attest.tdx_boot import TABLES
from adyton.errors import UsageError
from adyton.image.document import HostTables
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adyton.attest.tdx_boot import TDXBoot
    from adyton.image.document import TDXEntry
    from adyton.image.firmware import FirmwareFile

_STORE: Final = 1
"""Kind of the TDX section that holds the store of variables."""
_GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_SECURITY: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_VARIABLES: Final = ((_GLOBAL, "SecureBoot"), (_GLOBAL, "PK"), (_GLOBAL, "KEK"), (_SECURITY, "db"), (_SECURITY, "dbx"))


def variable_store_digest(firmware: FirmwareFile) -> bytes | None:
    """SHA-384 of the firmware's store of variables (CFV), as the firmware measures it. None where it has none."""
    found = [section for section in firmware.tdx if section.kind == _STORE]
    if len(found) != 1:
        return None
    (section,) = found
    return hashlib.sha384(firmware.raw[section.offset : section.offset + section.file_bytes]).digest()


def empty_variables() -> tuple[bytes, ...]:
    """SHA-384 of each variable of Secure Boot where none has content (UEFI_VARIABLE_DATA)."""
    found = []
    for vendor, name in _VARIABLES:
        text = name.encode("utf-16-le")
        found.append(hashlib.sha384(vendor.bytes_le + struct.pack("<QQ", len(name), 0) + text).digest())
    return tuple(found)


def with_host_tables(
    entries: Sequence[TDXEntry],
    boot: TDXBoot,
    firmware: Mapping[str, FirmwareFile],
    *,
    qemu: str,
    machine: str,
) -> tuple[TDXEntry, ...]:
    """The entries, with RTMR0 of this boot in those that it is a boot of: this image, way to boot, and firmware.

    `firmware` has the file of each entry by its name. `qemu` and `machine` are the owner's own words for them. Raises
    UsageError where it is a boot of none, with the closest reason.
    """
    if boot.variables != empty_variables():
        raise _refused(
            "variables of Secure Boot",
            "all empty, as in a fresh firmware file",
            "others",
            "boot without Secure Boot, and with the firmware file alone (-bios)",
        )
    tables = MappingProxyType({name: Measurement(value) for name, value in zip(TABLES, boot.acpi, strict=True)})
    found = HostTables(rtmr0=Measurement(boot.rtmrs[0]), qemu=qemu, machine=machine, tables=tables)
    same_image = [entry for entry in entries if (entry.rtmr1.raw, entry.rtmr2.raw) == boot.rtmrs[1:]]
    if not same_image:
        raise _refused(
            "RTMR1 and RTMR2 of the log",
            "those of this image, by -kernel or from its disk",
            f"RTMR1 {boot.rtmrs[1].hex()}, RTMR2 {boot.rtmrs[2].hex()}",
            "take the log of a boot of this very image",
        )
    stores = {name: variable_store_digest(file) for name, file in firmware.items()}
    chosen = [entry for entry in same_image if stores.get(entry.firmware.name) == boot.variable_store]
    if not chosen:
        raise _refused(
            "the firmware's store of variables",
            ", ".join(sorted(f"{name}: {value.hex()}" for name, value in stores.items() if value)) or "one",
            boot.variable_store.hex(),
            "give the firmware of that boot with --firmware FILE",
        )
    return tuple(replace(entry, acpi=found) if entry in chosen else entry for entry in entries)


def _refused(check: str, expected: str, seen: str, remedy: str) -> UsageError:
    return UsageError(
        f"this log pins no ACPI tables for this image: {check}: expected {expected}, seen {seen}",
        check=f"event log: {check}",
        expected=expected,
        seen=seen,
        remedy=remedy,
    )
