"""Firmware for virtual machines (OVMF): the tables at its end that say how TDX and SEV-SNP load it. Pure.

Sources: EDK2, OvmfPkg/ResetVector (the GUIDed structures below 4 GiB, the TDX and SEV metadata); Intel "TDX Virtual
Firmware Design Guide", chapter 11.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from adyton.errors import UsageError

MAX_BYTES: Final = 64 << 20
MAX_SECTIONS: Final = 64
PAGE: Final = 4096
TOP: Final = 1 << 32
"""The firmware's last byte lies below this address."""
MAX_MEASURED_BYTES: Final = 64 << 20
"""Most bytes of memory that all sections may cover: what bounds the time of a measurement."""

_FOOTER: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_TDX_METADATA: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_SEV_METADATA: Final = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
SEV_HASH_TABLE: Final = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_RESET_BLOCK: Final = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_ENTRY_HEADER: Final = 18


@dataclass(frozen=True, slots=True)
class TDXSection:
    """A piece of a TDX guest's first memory: offset and size in the file, address and size in memory."""

    offset: int
    file_bytes: int
    address: int
    memory_bytes: int
    attributes: int
    kind: int
    """0 firmware, 1 its store of variables, 2 the hand-off list, 3 working memory."""


@dataclass(frozen=True, slots=True)
class SEVSection:
    """A piece of a SEV-SNP guest's first memory."""

    address: int
    size: int
    kind: int


@dataclass(frozen=True, slots=True)
class FirmwareFile:
    """A firmware file, with what TDX and SEV-SNP read of it. Both lists are empty where it has no such metadata."""

    raw: bytes = field(repr=False)
    table: Mapping[uuid.UUID, bytes]
    tdx: tuple[TDXSection, ...]
    sev: tuple[SEVSection, ...]

    @property
    def address(self) -> int:
        """Where its first byte lies in the guest's memory."""
        return TOP - len(self.raw)

    @classmethod
    def parse(cls, raw: bytes) -> FirmwareFile:
        """Parse a firmware file. Raises UsageError where it is none, or where its metadata lies."""
        if not PAGE <= len(raw) <= MAX_BYTES or len(raw) % PAGE:
            raise _wrong("size of the firmware", f"whole pages, at most {MAX_BYTES} bytes", f"{len(raw)} bytes")
        table = _table(raw)
        return cls(raw, MappingProxyType(table), tuple(_tdx(raw, table)), tuple(_sev(raw, table)))


def _table(raw: bytes) -> dict[uuid.UUID, bytes]:
    """The GUIDed structures, which are read from the end: content, size of all, GUID."""
    at = len(raw) - 32 - _ENTRY_HEADER
    size, guid = _entry(raw, at)
    if guid != _FOOTER:
        return {}
    start = at + _ENTRY_HEADER - size
    if not 0 <= start <= at:
        raise _wrong("table of the firmware", "inside the file", f"{size} bytes")
    found: dict[uuid.UUID, bytes] = {}
    while at - start >= _ENTRY_HEADER:
        size, guid = _entry(raw, at - _ENTRY_HEADER)
        if not _ENTRY_HEADER <= size <= at - start or guid in found or len(found) >= MAX_SECTIONS:
            raise _wrong("table of the firmware", "entries that fill it, each once", f"an entry of {size} bytes")
        found[guid] = raw[at - size : at - _ENTRY_HEADER]
        at -= size
    return found


def _entry(raw: bytes, at: int) -> tuple[int, uuid.UUID]:
    return int.from_bytes(raw[at : at + 2], "little"), uuid.UUID(bytes_le=raw[at + 2 : at + 18])


def number_of(table: Mapping[uuid.UUID, bytes], guid: uuid.UUID) -> int | None:
    """The 32-bit number at the start of a structure of the table; None where the table has none."""
    entry = table.get(guid)
    if entry is None:
        return None
    if len(entry) < 4:
        raise _wrong("table of the firmware", "at least 4 bytes in an entry", f"{len(entry)} bytes")
    return int.from_bytes(entry[:4], "little")


def _metadata(
    raw: bytes, table: Mapping[uuid.UUID, bytes], guid: uuid.UUID, magic: bytes, section: struct.Struct
) -> list[tuple[int, ...]]:
    from_end = number_of(table, guid)
    if from_end is None:
        return []
    at = len(raw) - from_end
    if not 0 <= at <= len(raw) - 16 or raw[at : at + 4] != magic:
        raise _wrong("metadata of the firmware", magic.decode("ascii"), "something else")
    _, version, count = struct.unpack_from("<III", raw, at + 4)
    if version != 1 or not 1 <= count <= MAX_SECTIONS or at + 16 + count * section.size > len(raw):
        raise _wrong(
            "metadata of the firmware", f"version 1, 1 to {MAX_SECTIONS} sections", f"version {version}, {count}"
        )
    return [section.unpack_from(raw, at + 16 + index * section.size) for index in range(count)]


def _tdx(raw: bytes, table: Mapping[uuid.UUID, bytes]) -> list[TDXSection]:
    found, left = [], MAX_MEASURED_BYTES
    for offset, size, address, memory, kind, attributes in _metadata(
        raw, table, _TDX_METADATA, b"TDVF", struct.Struct("<IIQQII")
    ):
        left -= memory
        if address % PAGE or memory % PAGE or left < 0 or size > memory or offset + size > len(raw):
            raise _wrong(
                "a TDX section of the firmware", "whole pages, with its content in the file", f"{memory} bytes"
            )
        found.append(TDXSection(offset, size, address, memory, attributes, kind))
    return found


def _sev(raw: bytes, table: Mapping[uuid.UUID, bytes]) -> list[SEVSection]:
    found, left = [], MAX_MEASURED_BYTES
    for address, size, kind in _metadata(raw, table, _SEV_METADATA, b"ASEV", struct.Struct("<III")):
        left -= size
        if address % PAGE or size % PAGE or left < 0:
            raise _wrong("a SEV section of the firmware", "whole pages", f"{size} bytes at {address:#x}")
        found.append(SEVSection(address, size, kind))
    return found


def _wrong(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"{check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="take a firmware file in one piece, such as /usr/share/ovmf/OVMF.fd",
    )
