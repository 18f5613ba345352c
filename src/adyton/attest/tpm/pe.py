"""The Authenticode hash of a PE file: what UEFI firmware measures when it starts a program.

It covers the whole file but three things: the checksum, the entry of the certificate table in the header, and that
table. So a signature that is added later leaves the hash as it is.

Sources: Microsoft, Windows Authenticode Portable Executable Signature Format (2008), "Calculating the PE Image Hash";
TCG PC Client Platform Firmware Profile 1.05, 3.3.4.5 (the same, with the hash of each PCR bank).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from adyton.errors import MalformedQuote

MAX_PE_BYTES: Final = 512 << 20
MAX_SECTIONS: Final = 96
"""As Windows' loader and EDK2 have it."""

_PE32_PLUS: Final = 0x20B
_SECTION_BYTES: Final = 40
_CHECKSUM_AT: Final = 64
_DIRECTORIES_AT: Final = 112
_SECURITY: Final = 4


def _refuse(what: str, *, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"this is no PE file that firmware would start: {what}", check=f"PE: {what}", expected=expected, seen=seen
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets in the file."""

    checksum: int
    security_entry: int
    headers_end: int
    sections: tuple[tuple[int, int], ...]
    """Start and end of the raw data, ascending."""
    certificates: int
    """Where the certificate table begins; the end of the file where there is none."""


def authenticode(raw: bytes, algorithm: Literal["sha256", "sha384"] = "sha256") -> bytes:
    """The Authenticode hash of a 64-bit PE file (PE32+), 32 or 48 bytes. Raises MalformedQuote.

    Sections must not overlap or leave gaps, and the certificate table must end the file: there, implementations differ.
    """
    layout = _layout(raw)
    view = memoryview(raw)
    digest = hashlib.new(algorithm)
    digest.update(view[: layout.checksum])
    digest.update(view[layout.checksum + 4 : layout.security_entry])
    digest.update(view[layout.security_entry + 8 : layout.headers_end])
    end = layout.headers_end
    for start, stop in layout.sections:
        digest.update(view[start:stop])
        end = stop
    digest.update(view[end : layout.certificates])
    return digest.digest()


def _field(raw: bytes, size: int, at: int, what: str) -> int:
    if at + size > len(raw):
        _refuse(what, expected=f"{size} bytes at {at}", seen=f"a file of {len(raw)} bytes")
    return int.from_bytes(raw[at : at + size], "little")


def _layout(raw: bytes) -> _Layout:
    if len(raw) > MAX_PE_BYTES:
        _refuse("size", expected=f"at most {MAX_PE_BYTES} bytes", seen=f"{len(raw)} bytes")
    if raw[:2] != b"MZ":
        _refuse("DOS header", expected="MZ", seen=raw[:2].hex())
    at = _field(raw, 4, 0x3C, "DOS header")
    if raw[at : at + 4] != b"PE\0\0":
        _refuse("signature", expected="PE, two zeros", seen=raw[at : at + 4].hex())
    count = _field(raw, 2, at + 6, "number of sections")
    optional_bytes = _field(raw, 2, at + 20, "size of the optional header")
    optional = at + 24
    magic = _field(raw, 2, optional, "optional header")
    if magic != _PE32_PLUS:
        _refuse("optional header", expected=f"{_PE32_PLUS:#x} (PE32+)", seen=f"{magic:#x}")
    directories = _field(raw, 4, optional + _DIRECTORIES_AT - 4, "data directories")
    if not _SECURITY < directories <= 16 or optional_bytes != _DIRECTORIES_AT + 8 * directories:
        _refuse("data directories", expected="5 to 16, which fill the optional header", seen=directories)
    table = optional + optional_bytes
    headers_end = _field(raw, 4, optional + 60, "size of the headers")
    if not 1 <= count <= MAX_SECTIONS or not table + count * _SECTION_BYTES <= headers_end <= len(raw):
        _refuse("headers", expected=f"1 to {MAX_SECTIONS} sections inside the headers", seen=f"{count} sections")
    entry = optional + _DIRECTORIES_AT + 8 * _SECURITY
    sections = _sections(raw, table, count, headers_end)
    data_end = sections[-1][1] if sections else headers_end
    return _Layout(optional + _CHECKSUM_AT, entry, headers_end, sections, _certificates(raw, entry, data_end))


def _sections(raw: bytes, table: int, count: int, headers_end: int) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for place in range(count):
        size, start = struct.unpack_from("<II", raw, table + place * _SECTION_BYTES + 16)
        if size:
            spans.append((start, start + size))
    spans.sort()
    end = headers_end
    for start, stop in spans:
        if start != end or stop > len(raw):
            _refuse("sections", expected=f"data that begin at {end}, inside the file", seen=f"{start} to {stop}")
        end = stop
    return tuple(spans)


def _certificates(raw: bytes, entry: int, data_end: int) -> int:
    start, size = (int(value) for value in struct.unpack_from("<II", raw, entry))
    if (start, size) == (0, 0):
        return len(raw)
    if start < data_end or start % 8 or size == 0 or start + size != len(raw):
        _refuse(
            "certificate table",
            expected=f"behind the sections ({data_end}), aligned to 8, up to the end of the file ({len(raw)})",
            seen=f"{start}, {size} bytes",
        )
    return start
