"""Read the members of a JSON or TOML object by type. A member of another type is refused.

`adyton.untrusted` turns text into plain values, within limits. This module turns plain values into typed ones. The
caller gives a function that makes the error. Its arguments are the member's path (such as `tcbLevels[2].tcb.pcesvn`),
the expected type and the seen type. A refusal never shows the value itself, which may be a secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from adyton.dates import parse_timestamp
from adyton.errors import Error

Refuse = Callable[[str, str, str], Error]
"""Makes the error from the path of a member, the expected type, and the seen type."""

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*", re.ASCII)
_NOTHING: Final = object()


class TypedDocument(Mapping[str, Any]):
    """One object. As a mapping it gives its members unchecked. Its methods check the type."""

    __slots__ = ("_members", "_path", "_refuse")

    def __init__(self, members: Mapping[str, Any], refuse: Refuse, path: str = "") -> None:
        self._members = members
        self._refuse = refuse
        self._path = path

    def __getitem__(self, name: str) -> Any:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def only(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Refuse an object that lacks a required member, or has one that is neither required nor optional."""
        names = set(self._members)
        if set(required) - names or names - set(required) - set(optional):
            seen = ", ".join(sorted(str(name)[:40] for name in names)) or "none"
            raise self._refuse(f"{self._path}.members".lstrip("."), ", ".join(sorted(required)), seen)

    def text(self, name: str, max_chars: int | None = None) -> str:
        """A text of at most `max_chars` characters."""
        value = self._value(name)
        if not isinstance(value, str) or (max_chars is not None and len(value) > max_chars):
            most = "" if max_chars is None else f" of at most {max_chars} characters"
            raise self.wrong(name, f"a text{most}")
        return value

    def number(self, name: str, top: int) -> int:
        """A whole number from 0 to `top`. True and false are none."""
        value = self._value(name)
        if type(value) is not int or not 0 <= value <= top:
            raise self.wrong(name, f"a whole number from 0 to {top}")
        return value

    def hexadecimal(self, name: str, size: int) -> bytes:
        """`size` bytes in hex digits of either case."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) != 2 * size or _HEX.fullmatch(value) is None:
            raise self.wrong(name, f"{size} bytes in hex")
        return bytes.fromhex(value)

    def binary(self, name: str, low: int, high: int) -> bytes:
        """`low` to `high` bytes in standard base64 (RFC 4648 section 4), in the one form that encodes them."""
        return self._binary(name, self._value(name), low, high)

    def binaries(self, name: str, limit: int, low: int, high: int) -> tuple[bytes, ...]:
        """A member that is a list of at most `limit` byte strings, each as in `binary`."""
        return tuple(self._binary(name, value, low, high) for value in self.texts(name, limit))

    def _binary(self, name: str, value: object, low: int, high: int) -> bytes:
        if not isinstance(value, str) or len(value) > 4 * ((high + 2) // 3):
            raise self.wrong(name, f"base64 of at most {high} bytes")
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.wrong(name, "standard base64", "something else") from None
        if not low <= len(raw) <= high or base64.b64encode(raw).decode() != value:
            raise self.wrong(name, f"{low} to {high} bytes in base64's one form", f"{len(raw)} bytes")
        return raw

    def moment(self, name: str) -> datetime:
        """A moment in the form YYYY-MM-DDThh:mm:ssZ."""
        value = self._value(name)
        try:
            return parse_timestamp(value if isinstance(value, str) else "")
        except ValueError:
            raise self.wrong(name, "a time YYYY-MM-DDThh:mm:ssZ") from None

    def inner(self, name: str) -> TypedDocument:
        """A member that is an object itself."""
        value = self._value(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return TypedDocument(value, self._refuse, self._place(name))

    def inner_list(self, name: str, limit: int) -> list[TypedDocument]:
        """A member that is a list of at most `limit` objects."""
        value = self._list(name, dict, limit, "objects")
        return [
            TypedDocument(item, self._refuse, f"{self._place(name)}[{number}]") for number, item in enumerate(value)
        ]

    def texts(self, name: str, limit: int) -> list[str]:
        """A member that is a list of at most `limit` texts."""
        return self._list(name, str, limit, "texts")

    def wrong(self, name: str, expected: str, seen: str | None = None) -> Error:
        """The refusal of a member, for the checks that a format adds. `seen` is the kind of its value if left out."""
        if seen is None:
            value = self._value(name)
            seen = "nothing" if value is _NOTHING else type(value).__name__
        return self._refuse(self._place(name), expected, seen)

    def _value(self, name: str) -> object:
        return self._members.get(name, _NOTHING)

    def _place(self, name: str) -> str:
        return f"{self._path}.{name[:80]}" if self._path else name[:80]

    def _list(self, name: str, kind: type, limit: int, what: str) -> list[Any]:
        value = self._value(name)
        if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, kind) for item in value):
            raise self.wrong(name, f"a list of at most {limit} {what}")
        return value
