"""A strict reader of DER elements, for the vendors' certificate extensions, which no library parses.

It takes one-byte tags and definite minimal lengths. Every element must lie inside its parent. No recursion.
"""

from __future__ import annotations

from typing import Final

from adyton.errors import MalformedQuote

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
OID: Final = 0x06
ENUMERATED: Final = 0x0A
IA5_STRING: Final = 0x16
SEQUENCE: Final = 0x30
SET: Final = 0x31
VERSION: Final = 0xA0
"""The explicit tag of a certificate's version."""


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(f"malformed DER: {what}", check="DER encoding", expected="strict DER", seen=what)


def element(raw: bytes, at: int, end: int) -> tuple[int, int, int]:
    """The element at offset `at`, which must end by `end`. Returns its tag, and the start and end of its content."""
    if at + 2 > end:
        raise _malformed("an element without tag or length")
    tag, length, start = raw[at], raw[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise _malformed("a tag of several bytes")
    if length >= 0x80:
        width = length & 0x7F
        if not 1 <= width <= 4 or start + width > end:
            raise _malformed("a length of no or too many bytes")
        length = int.from_bytes(raw[start : start + width], "big")
        start += width
        if length < 0x80 or length >> (8 * (width - 1)) == 0:
            raise _malformed("a length that is not minimal")
    if start + length > end:
        raise _malformed("an element longer than its parent")
    return tag, start, start + length


def children(raw: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element in `raw`. The elements must fill `raw`."""
    found: list[tuple[int, bytes]] = []
    at, size = 0, len(raw)
    while at < size:
        if at + 1 < size and raw[at + 1] < 0x80 and raw[at] & 0x1F != 0x1F:
            start, end = at + 2, at + 2 + raw[at + 1]
            if end > size:
                raise _malformed("an element longer than its parent")
        else:
            _, start, end = element(raw, at, size)
        found.append((raw[at], raw[start:end]))
        at = end
    return found


def only(raw: bytes, tag: int) -> bytes:
    """The content of the single element in `raw`, which must have this tag."""
    found, start, end = element(raw, 0, len(raw))
    if found != tag or end != len(raw):
        raise _malformed(f"expected one element with tag {tag:#04x}, found {found:#04x}")
    return raw[start:end]


def unsigned(content: bytes, limit: int) -> int:
    """The value of an INTEGER's or ENUMERATED's content, from 0 to `limit`."""
    if not content or (len(content) > 1 and content[0] == 0 and content[1] < 0x80):
        raise _malformed("an integer that is empty or not minimal")
    value = int.from_bytes(content, "big", signed=True)
    if not 0 <= value <= limit:
        raise _malformed(f"an integer outside 0 to {limit}")
    return value


def boolean(content: bytes) -> bool:
    """The value of a BOOLEAN's content."""
    if content not in (b"\x00", b"\xff"):
        raise _malformed("a boolean that is neither 00 nor FF")
    return content == b"\xff"
