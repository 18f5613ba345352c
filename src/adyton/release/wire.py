"""Strict reading of small JSON messages: exact members, exact types, capped lengths, no duplicate names."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final

from adyton.errors import OutOfOrder, VersionMismatch
from adyton.typed_document import TypedDocument

PROTOCOL: Final = "adyton-release/4"
"""The protocol and version that every message of key release names."""

MAX_DEPTH: Final = 8
"""Maximum depth of nested objects and lists. The messages need three."""

MAX_SIGNS: Final = 4096
"""Most strings, brackets and commas of a message. The messages need a few hundred, however long their strings are."""

_SIGN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
"""A string (also an unfinished one), or one sign outside of strings. Matches without backtracking."""

_ID: Final = re.compile(r"[A-Za-z0-9-]{1,40}", re.ASCII)


def malformed(what: str, expected: str, seen: str) -> OutOfOrder:
    """The error for a message that breaks the protocol."""
    return OutOfOrder(
        f"malformed message: {what}",
        check="form of the message",
        expected=expected,
        seen=seen[:120],
        remedy="use an Adyton of the same protocol version on both sides",
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise malformed("a name stands twice", "each name once", "a name twice")
    return found


def _no_constant(text: str) -> object:
    raise malformed("not JSON", "a finite number", text)


def _check_shape(raw: bytes) -> None:
    """Refuse a message that is nested too deep or has too many parts, before it is parsed. Linear in the length."""
    depth = 0
    for count, found in enumerate(_SIGN.finditer(raw)):
        if count == MAX_SIGNS:
            raise malformed("too many parts", f"at most {MAX_SIGNS} strings, brackets and commas", "more")
        first = raw[found.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise malformed("nested too deep", f"at most {MAX_DEPTH} levels", "more")
        elif first in b"]}":
            depth -= 1


def identifier(document: TypedDocument, name: str) -> str:
    """The id of an audit entry: at most 40 letters, digits and `-`, so that it is safe in any text."""
    value = document.text(name, 40)
    if not _ID.fullmatch(value):
        raise document.wrong(name, "an id of letters, digits and -", "something else")
    return value


def check_protocol(document: TypedDocument) -> None:
    """Refuse a message of another protocol or version. Raises VersionMismatch."""
    named = document.get("protocol")
    if named != PROTOCOL:
        raise VersionMismatch(
            "the other side speaks another protocol",
            check="protocol version",
            expected=PROTOCOL,
            seen=str(named)[:60],
            remedy="use an Adyton of the same protocol version on both sides",
        )


def parse_object(raw: bytes, limit: int) -> TypedDocument:
    """Parse one JSON object of at most `limit` bytes and eight levels. Raises OutOfOrder."""
    if len(raw) > limit:
        raise malformed("too long", f"at most {limit} bytes", f"{len(raw)} bytes")
    _check_shape(raw)
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise malformed("not JSON", "one JSON object in UTF-8", f"{len(raw)} bytes of something else") from None
    if not isinstance(found, dict):
        raise malformed("no object", "one JSON object", type(found).__name__)
    return TypedDocument(found, malformed)


def to_bytes(document: dict[str, Any]) -> bytes:
    """One JSON object, compact."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def b64(raw: bytes) -> str:
    """Standard base64 text."""
    return base64.b64encode(raw).decode()


def printable(value: str) -> str:
    """A text from the peer without terminal control characters."""
    return "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in value)
