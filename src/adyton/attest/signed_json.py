"""Intel's signed JSON documents: cut out exactly as signed, then read strictly.

The signature covers the bytes of the inner value as served, so the value is cut out by a JSON scanner and never
written again.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn

from adyton.attest.layout import MAX_JSON_BYTES
from adyton.errors import MalformedQuote
from adyton.typed_document import TypedDocument


def malformed(what: str, seen: object) -> MalformedQuote:
    """A refusal of a document, ready to be raised."""
    return MalformedQuote(f"the {what} does not parse: {seen}", check=f"parse of the {what}", seen=seen)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:40]}")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_float=_refuse_number,
    parse_constant=_refuse_number,
    parse_int=_integer,
)


def load(text: str, what: str) -> TypedDocument:
    """Read a JSON object: no duplicate keys, no floating point, at most 1 MiB; raises MalformedQuote, also later."""
    if len(text) > MAX_JSON_BYTES:
        raise malformed(what, f"{len(text)} characters")
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise malformed(what, str(error)[:160] or type(error).__name__) from None
    if not isinstance(found, dict):
        raise malformed(what, "no JSON object")
    return TypedDocument(found, lambda place, expected, seen: malformed(what, f"{place} is not {expected}: {seen}"))


def cut_signed(text: str, name: str) -> tuple[str, str]:
    """The exact text of member `name` and the text of member `signature` of a served document.

    The document has these two members and no other, as in `{"tcbInfo":{...},"signature":"..."}`.
    """
    if len(text) > MAX_JSON_BYTES:
        raise malformed(name, f"{len(text)} characters")
    found: dict[str, str] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise malformed(name, "no JSON object")
    at += 1
    try:
        while True:
            key, at = _DECODER.raw_decode(text, _skip(text, at))
            at = _skip(text, at)
            if text[at : at + 1] != ":" or not isinstance(key, str) or key in found:
                raise malformed(name, "a member that is no name and value, or stands twice")
            start = _skip(text, at + 1)
            _, at = _DECODER.raw_decode(text, start)
            found[key] = text[start:at]
            at = _skip(text, at)
            if text[at : at + 1] == "}":
                break
            if text[at : at + 1] != ",":
                raise malformed(name, "members without a comma")
            at += 1
    except (ValueError, RecursionError) as error:
        raise malformed(name, str(error)[:160] or type(error).__name__) from None
    if _skip(text, at + 1) != len(text) or set(found) != {name, "signature"}:
        raise malformed(name, "members " + ", ".join(sorted(found))[:160])
    signature = _DECODER.decode(found["signature"])
    if not isinstance(signature, str):
        raise malformed(name, "a signature that is no text")
    return found[name], signature


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
