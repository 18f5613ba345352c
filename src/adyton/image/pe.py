"""The sections of a PE file: read, and added to a stub. Pure.

Source: Microsoft, "PE Format". Only PE32+ files for x86-64 without a signature are taken: the image has no others.
`adyton.attest.tpm.pe` computes the hash that firmware measures of such a file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from adyton.errors import UsageError

MAX_BYTES: Final = 1 << 30
MAX_SECTIONS: Final = 64
FILE_ALIGNMENT: Final = 512
SECTION_ALIGNMENT: Final = 4096

_MACHINE_X86_64: Final = 0x8664
_PE32_PLUS: Final = 0x20B
_READ_ONLY_DATA: Final = 0x40000040
"""Characteristics of a section: initialised data, readable."""
_SECTION_BYTES: Final = 40
_CERTIFICATES: Final = 4
"""Which data directory names the certificate table."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section: where it lies in memory and in the file. All numbers are bytes."""

    name: str
    memory_bytes: int
    address: int
    file_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class PEFile:
    """A PE file that was parsed. Offsets are those in the file."""

    raw: bytes = field(repr=False)
    sections: tuple[Section, ...]
    optional_header: int
    """Offset of the optional header. COFF's own fields stand in the 20 bytes before it."""
    section_table: int
    headers_bytes: int

    @classmethod
    def parse(cls, raw: bytes) -> PEFile:
        """Parse a file. Raises UsageError where it is not PE32+ for x86-64, or where a part lies outside the file."""
        if len(raw) > MAX_BYTES:
            _refuse("size of the PE file", f"at most {MAX_BYTES} bytes", f"{len(raw)} bytes")
        start = _number(raw, 0x3C, 4) if raw[:2] == b"MZ" else len(raw)
        if raw[start : start + 4] != b"PE\0\0":
            _refuse("signature of the PE file", "MZ, and PE where it points to", "something else")
        machine, count, optional_bytes = (_number(raw, start + at, 2) for at in (4, 6, 20))
        optional = start + 24
        directories = _number(raw, optional + 108, 4)
        if machine != _MACHINE_X86_64 or _number(raw, optional, 2) != _PE32_PLUS:
            _refuse("kind of the PE file", "PE32+ for x86-64", f"machine {machine:#x}")
        if not 1 <= count <= MAX_SECTIONS:
            _refuse("sections of the PE file", f"1 to {MAX_SECTIONS}", str(count))
        if not _CERTIFICATES < directories <= 16 or optional_bytes != 112 + 8 * directories:
            _refuse("data directories of the PE file", "5 to 16, which fill the optional header", str(directories))
        table, headers = optional + optional_bytes, _number(raw, optional + 60, 4)
        if not table + count * _SECTION_BYTES <= headers <= len(raw):
            _refuse("headers of the PE file", f"a size that holds all of them, at most {len(raw)}", str(headers))
        found = tuple(_section(raw, table + index * _SECTION_BYTES) for index in range(count))
        if _number(raw, optional + 112 + 8 * _CERTIFICATES, 8):
            _refuse("certificates of the PE file", "none", "some")
        parsed = cls(raw, found, optional, table, headers)
        parsed._check_sections()
        return parsed

    def _check_sections(self) -> None:
        """Every section lies behind the headers and inside the file, and no two share a byte of the file."""
        end = self.headers_bytes
        for section in self._by_offset():
            if section.offset < end or section.offset + section.file_bytes > len(self.raw):
                _refuse(f"place of the section {section.name}", "behind the one before, in the file", "elsewhere")
            end = section.offset + section.file_bytes

    def _by_offset(self) -> list[Section]:
        return sorted((item for item in self.sections if item.file_bytes), key=lambda item: item.offset)

    def contents(self) -> Mapping[str, bytes]:
        """Section name -> content as it stands in memory. Raises UsageError where two sections have one name."""
        found: dict[str, bytes] = {}
        for section in self.sections:
            if section.name in found:
                _refuse("names of the sections", "each once", f"{section.name} twice")
            size = min(section.memory_bytes, section.file_bytes)
            content = self.raw[section.offset : section.offset + size]
            found[section.name] = content + bytes(min(section.memory_bytes, MAX_BYTES) - size)
        return found


def add_sections(stub: bytes, contents: Mapping[str, bytes]) -> bytes:
    """`stub` with these sections at its end, in their order. The same input gives the same bytes.

    Raises UsageError where the stub is no PE file, has such a section, or has no room for the headers.
    """
    parsed = PEFile.parse(stub)
    if set(contents) & {section.name for section in parsed.sections}:
        _refuse("sections of the stub", "none of those to add", "one of them")
    table_end = parsed.section_table + _SECTION_BYTES * len(parsed.sections)
    if table_end + _SECTION_BYTES * len(contents) > parsed.headers_bytes or any(
        stub[table_end : parsed.headers_bytes].strip(b"\0")
    ):
        _refuse("headers of the stub", f"room for {len(contents)} more sections", "less")
    out = bytearray(stub.ljust(_up(len(stub), FILE_ALIGNMENT), b"\0"))
    address = max(_up(item.address + item.memory_bytes, SECTION_ALIGNMENT) for item in parsed.sections)
    for index, (name, content) in enumerate(contents.items()):
        padded = content.ljust(_up(len(content), FILE_ALIGNMENT), b"\0")
        header = struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(content), address, len(padded), len(out), 0, 0, 0, 0, _READ_ONLY_DATA
        )
        out[table_end + index * _SECTION_BYTES : table_end + (index + 1) * _SECTION_BYTES] = header
        out += padded
        address = _up(address + len(content), SECTION_ALIGNMENT)
    optional = parsed.optional_header
    struct.pack_into("<H", out, optional - 18, len(parsed.sections) + len(contents))
    initialised = _number(stub, optional + 8, 4) + sum(_up(len(item), FILE_ALIGNMENT) for item in contents.values())
    struct.pack_into("<I", out, optional + 8, initialised)
    struct.pack_into("<I", out, optional + 56, address)  # SizeOfImage
    struct.pack_into("<I", out, optional + 64, 0)  # CheckSum
    return bytes(out)


def _section(raw: bytes, at: int) -> Section:
    name, memory, address, size, offset = struct.unpack_from("<8sIIII", raw, at)
    shown = name.rstrip(b"\0")
    if not shown or not shown.isascii() or not shown.decode("ascii").isprintable():
        _refuse("name of a section", "one to eight printable characters of ASCII", repr(shown)[:40])
    if memory > MAX_BYTES:
        _refuse(f"size of the section {shown.decode()}", f"at most {MAX_BYTES} bytes", f"{memory} bytes")
    return Section(shown.decode("ascii"), memory, address, size, offset)


def _number(raw: bytes, at: int, size: int) -> int:
    if at + size > len(raw):
        _refuse("size of the PE file", f"{at + size} bytes and more", f"{len(raw)} bytes")
    return int.from_bytes(raw[at : at + size], "little")


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _refuse(check: str, expected: str, seen: str) -> NoReturn:
    raise UsageError(
        f"this is no PE file that the image can use: {check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="take the file that `adyton image build` wrote",
    )
