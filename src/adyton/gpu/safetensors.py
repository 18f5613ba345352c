"""The header of a safetensors file: names, types, shapes, and where the bytes lie. Pure.

The header is JSON behind its length (8 bytes, little-endian). The bytes of all tensors follow without a gap. Source:
the format's own description (huggingface/safetensors, README, "Format"). It is parsed strictly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import FileFormatError
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 64 << 20
MAX_TENSORS: Final = 1 << 17
MAX_DIMENSIONS: Final = 32
MAX_NAME_CHARACTERS: Final = 1024
METADATA: Final = "__metadata__"

ITEM_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Types of elements, and their sizes in bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: `size` bytes from `offset` of the file, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def header_bytes(start: bytes, file_bytes: int) -> int:
    """The length of the JSON, from the first 8 bytes of a file of `file_bytes`. Raises FileFormatError."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES or length > file_bytes - LENGTH_BYTES:
        raise _wrong("length of the header", f"2 to {MAX_HEADER_BYTES}, within the file", length)
    return length


def parse_header(raw: bytes, file_bytes: int) -> tuple[Entry, ...]:
    """The tensors of a header (JSON, without its length), in the order of their bytes.

    `file_bytes` is the size of the whole file. Raises FileFormatError.
    """
    document = parse_json_object(
        raw, what="header of safetensors", refuse=FileFormatError, limit_bytes=MAX_HEADER_BYTES
    )
    if len(document) > MAX_TENSORS:
        raise _wrong("number of tensors", f"at most {MAX_TENSORS}", len(document))
    metadata = document.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _wrong(METADATA, "texts by name", str(metadata)[:80])
    first = LENGTH_BYTES + len(raw)
    found = [_entry(name, value, first) for name, value in document.items() if name != METADATA]
    found.sort(key=lambda entry: (entry.offset, entry.size))
    end = first
    for entry in found:
        if entry.offset != end:
            raise _wrong(f"bytes of {entry.name[:80]}", f"from {end}, without a gap", entry.offset)
        end += entry.size
    if end != file_bytes:
        raise _wrong("end of the last tensor", f"{file_bytes}, the end of the file", end)
    return tuple(found)


def _entry(name: str, value: Any, first: int) -> Entry:
    shown = name[:80]
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _wrong(f"members of {shown}", "dtype, shape, data_offsets", str(value)[:80])
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if len(name) > MAX_NAME_CHARACTERS or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _wrong(f"type of {shown}", ", ".join(ITEM_BYTES), str(dtype)[:80])
    if not _numbers(shape) or len(shape) > MAX_DIMENSIONS or not _numbers(offsets) or len(offsets) != 2:
        raise _wrong(f"numbers of {shown}", "a shape, and two offsets", f"{shape}, {offsets}"[:80])
    size = ITEM_BYTES[dtype] * math.prod(shape)
    if offsets[1] - offsets[0] != size:
        raise _wrong(f"size of {shown}", f"{size} bytes, as type and shape say", offsets[1] - offsets[0])
    return Entry(name, dtype, tuple(shape), first + offsets[0], size)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _wrong(what: str, expected: str, seen: object) -> FileFormatError:
    return FileFormatError(
        f"the file is not in the form of safetensors: {what}: expected {expected}, seen {seen}",
        check=f"safetensors: {what}",
        expected=expected,
        seen=str(seen),
        remedy="write it with the safetensors library",
    )
