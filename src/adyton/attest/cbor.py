"""Strict CBOR (RFC 8949): shortest heads, definite lengths, nothing left over. Only what evidence needs.

Each caller names the type that must come next, so no other type can stand there. There are no floats, no simple values
but null, and a tag only where the caller asks for it. One form beside that is allowed by name: the map of indefinite
length (`open_map`), since AWS writes its documents so. Nothing here recurses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.errors import MalformedQuote

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAGGED = range(7)

_OPEN_MAP: Final = 0xBF
_BREAK: Final = 0xFF
_NULL: Final = 0xF6


def head(major: int, value: int) -> bytes:
    """A head in its shortest form. Raises UsageError where the value has more than 64 bits."""
    for code, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 24:
            return bytes((major << 5 | value,))
        if value < 1 << 8 * width:
            return bytes((major << 5 | code,)) + value.to_bytes(width, "big")
    raise UsageError(f"{value} is too large for CBOR")


def string(major: int, content: bytes) -> bytes:
    """A byte string or a text."""
    return head(major, len(content)) + content


class Reader:
    """Reads CBOR from its start to its end. `refuse` makes the error from what is wrong."""

    def __init__(self, raw: bytes, refuse: Callable[[str], MalformedQuote]) -> None:
        self._raw = raw
        self._at = 0
        self._refuse = refuse

    def head(self, major: int, what: str) -> int:
        """The number in a head of this major type: a value, a length, a count or a tag."""
        raw, at = self._raw, self._at
        if at >= len(raw) or raw[at] >> 5 != major:
            raise self._refuse(f"no {what} where one belongs")
        value, at = raw[at] & 31, at + 1
        if value >= 24:
            width = {24: 1, 25: 2, 26: 4, 27: 8}.get(value, 0)
            if not width or at + width > len(raw):
                raise self._refuse(f"the length of the {what}")
            value = int.from_bytes(raw[at : at + width], "big")
            at += width
            if value < 24 or (width > 1 and value < 1 << 4 * width):
                raise self._refuse(f"the length of the {what} is not in its shortest form")
        self._at = at
        return value

    def string(self, major: int, what: str, limit: int | None = None) -> bytes:
        """The content of a byte string or text of at most `limit` bytes."""
        size = self.head(major, what)
        if limit is not None and size > limit:
            raise self._refuse(f"the {what} has {size} bytes, more than {limit}")
        end = self._at + size
        if end > len(self._raw):
            raise self._refuse(f"the {what} is cut")
        content, self._at = self._raw[self._at : end], end
        return content

    def text(self, what: str, limit: int) -> str:
        """A text of at most `limit` bytes."""
        try:
            return self.string(TEXT, what, limit).decode("utf-8")
        except UnicodeDecodeError:
            raise self._refuse(f"the {what} is not UTF-8") from None

    def count(self, major: int, what: str, limit: int) -> int:
        """The count of a list or map, at most `limit`."""
        count = self.head(major, what)
        if count > limit:
            raise self._refuse(f"the {what} has {count} entries, more than {limit}")
        return count

    def open_map(self, what: str, limit: int) -> int | None:
        """The count of a map, at most `limit`. None where it has no length and ends with a break."""
        if self._at < len(self._raw) and self._raw[self._at] == _OPEN_MAP:
            self._at += 1
            return None
        return self.count(MAP, what, limit)

    def ends_here(self) -> bool:
        """Whether a break comes next, which ends a map without a length. It is taken."""
        return self._take(_BREAK)

    def null(self) -> bool:
        """Whether null comes next. It is taken."""
        return self._take(_NULL)

    def _take(self, byte: int) -> bool:
        if self._at >= len(self._raw) or self._raw[self._at] != byte:
            return False
        self._at += 1
        return True

    def end(self, what: str) -> None:
        """Refuse whatever is left over."""
        if self._at != len(self._raw):
            raise self._refuse(f"{len(self._raw) - self._at} bytes follow the {what}")
