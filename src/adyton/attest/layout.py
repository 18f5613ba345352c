"""Where a field stands in a fixed-size structure, and how it is read and written.

Integers in quotes and reports are little-endian. Nothing here knows what a field means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from adyton.errors import MalformedQuote, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_QUOTE_BYTES: Final = 64 << 10
MAX_CHAIN_BYTES: Final = 64 << 10
MAX_CERTIFICATES: Final = 10
MAX_CRL_BYTES: Final = 4 << 20
MAX_JSON_BYTES: Final = 1 << 20


class Span(NamedTuple):
    """A field's place: offset and size, in bytes."""

    offset: int
    size: int

    def of(self, raw: bytes) -> bytes:
        """The field's bytes."""
        return raw[self.offset : self.offset + self.size]

    def number(self, raw: bytes) -> int:
        """The field as an unsigned little-endian integer."""
        return int.from_bytes(raw[self.offset : self.offset + self.size], "little")


def check_size(raw: bytes, size: int, what: str) -> None:
    """Refuse anything that has not exactly `size` bytes."""
    if len(raw) != size:
        raise MalformedQuote(
            f"{what}: expected {size} bytes, got {len(raw)}",
            check=f"size of the {what}",
            expected=f"{size} bytes",
            seen=f"{len(raw)} bytes",
        )


def pack(size: int, layout: Mapping[str, Span], fields: Mapping[str, bytes | int], base: bytes | None = None) -> bytes:
    """Write named fields into a structure of `size` bytes (zeros, or a copy of `base`).

    An integer is written little-endian. Bytes must fill their field exactly.
    """
    out = bytearray(base if base is not None else size)
    if len(out) != size:
        raise UsageError(f"the structure to change has {len(out)} bytes, expected {size}")
    for name, value in fields.items():
        if name not in layout:
            raise UsageError(f"no field named {name!r}", expected=", ".join(layout), seen=name)
        span = layout[name]
        try:
            raw = value.to_bytes(span.size, "little") if isinstance(value, int) else bytes(value)
        except OverflowError:
            raise UsageError(f"field {name}: {value!r} does not fit in {span.size} bytes") from None
        if len(raw) != span.size:
            raise UsageError(f"field {name}: expected {span.size} bytes, got {len(raw)}")
        out[span.offset : span.offset + span.size] = raw
    return bytes(out)
