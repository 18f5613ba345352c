"""Mutations of good inputs: bytes, JSON and TOML, each from one seeded source of chance."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, Final

import tomli_w

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

MAX_BYTES: Final = 96 << 10
_BYTES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x27, 0x5B, 0x5C, 0x7B, 0x2E, 0x0A, 0x30, 0x39)
_WORDS: Final = (
    b'"""', b"'''", b"[[", b"]]", b"{", b"}", b"a.", b".a", b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"nan", b"inf",
    b"-0", b"0x", b"9" * 25, b"9" * 5000, b"1979-05-27", b"00:00:60", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\0",
    b"null", b"true", b"{{", b"}}", b"{%", b"%}", b"{#", b"| ", b" * 99999999 ", b"-----BEGIN CERTIFICATE-----\n",
    b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\xc3\xa9", b"../", b"file:", b"/", b"\x1b[2J",
)  # fmt: skip


class Raw(str):
    """JSON text that is written as it is, whatever json.dumps thinks of it."""

    __slots__ = ()


_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 255, 256, 65535, 65536, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63),
    0.5, -0.0, 1e308, "", " ", "a", "é", "\0", "a" * 5000, "0" * 64, "../../etc/passwd", "file:/dev/zero", "\u202e",
    "-----BEGIN CERTIFICATE-----", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-00-00", [], {}, [[]], [None],
    {"": None}, {"a": {"a": {"a": 1}}},
    Raw("1e999"), Raw("NaN"), Raw("-Infinity"), Raw("9" * 30), Raw("9" * 5000), Raw('"\\ud800"'), Raw('{"a":1,"a":2}'),
    Raw("[" * 40 + "]" * 40), Raw("[" * 3000 + "]" * 3000), Raw('{"a":' * 40 + "1" + "}" * 40), Raw("-0"), Raw("1.0"),
)  # fmt: skip


def to_json(value: Any) -> str:
    """JSON with the fragments of `Raw` in their places. Raises ValueError once it is far longer than any input is."""
    parts: list[str] = []
    _write(value, parts, [8 * MAX_BYTES])
    return "".join(parts)


def _write(value: Any, parts: list[str], left: list[int]) -> None:
    """Write into parts. Lists that were repeated within each other would have no end."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("the document has become too long")
    if isinstance(value, dict):
        for number, (name, inner) in enumerate(value.items()):
            parts.append(f"{',' if number else '{'}{json.dumps(str(name))}:")
            _write(inner, parts, left)
        parts.append("}" if value else "{}")
        return
    if isinstance(value, list):
        for number, inner in enumerate(value):
            parts.append("," if number else "[")
            _write(inner, parts, left)
        parts.append("]" if value else "[]")
        return
    parts.append(str(value) if isinstance(value, Raw) else json.dumps(value))
    left[0] -= len(parts[-1])


def mutate(raw: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """One to six changes of an input; others are inputs whose pieces may be taken."""
    if chance.random() < 0.5 and (changed := _mutate_document(raw, chance)) is not None:
        if chance.random() < 0.7:
            return changed[:MAX_BYTES]
        raw = changed
    found = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        _mutate_bytes(found, chance, others)
    return bytes(found[:MAX_BYTES])


def _mutate_bytes(found: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    at = chance.randrange(len(found) + 1)
    end = min(len(found), at + chance.choice((1, 2, 4, 8, 32, 512)))
    kind = chance.randrange(9)
    if kind == 0 and at < len(found):
        found[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(found):
        found[at] = chance.choice(_BYTES)
    elif kind == 2:
        del found[at:end]
    elif kind == 3:
        found[at:at] = chance.choice(_WORDS)
    elif kind == 4:
        found[at:end] = chance.choice(_WORDS)
    elif kind == 5:
        found[at:at] = bytes(found[at:end]) * chance.choice((1, 2, 8, 64, 1024))
        del found[MAX_BYTES:]
    elif kind == 6:
        other = chance.choice(others)
        start = chance.randrange(len(other) + 1)
        found[at:end] = other[start : start + chance.choice((1, 8, 64, 1024))]
    elif kind == 7:
        del found[at:]
    elif at + 4 <= len(found):
        size = chance.choice((2, 4))
        value = chance.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(found), at))
        found[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, chance.choice(("little", "big")))


def _mutate_document(raw: bytes, chance: random.Random) -> bytes | None:
    """A JSON or TOML document with some of its values and names changed; None where it is neither."""
    is_json = raw.lstrip()[:1] in (b"{", b"[")
    try:
        document: Any = json.loads(raw) if is_json else tomllib.loads(raw.decode())
    except (ValueError, RecursionError):
        return None  # what came of an earlier mutation
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = _change(document, chance)
    try:
        return to_json(document).encode() if is_json else tomli_w.dumps(_plain(document)).encode()
    except (ValueError, TypeError, RecursionError, AttributeError):
        return None


def _change(value: Any, chance: random.Random) -> Any:
    """Walk down to somewhere and change what is there."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        kind = chance.randrange(8)
        if kind == 0:
            del value[name]
        elif kind == 1:
            value[chance.choice(("", "a", name + "x", name.upper(), "é", "a" * 2000))] = value[name]
        elif kind == 2:
            value[chance.choice(list(value))] = value[name]
        else:
            value[name] = _change(value[name], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        kind = chance.randrange(6)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value *= chance.choice((2, 50, 1000)) if len(value) < 50 else 1
        else:
            value[at] = _change(value[at], chance)
        return value
    if isinstance(value, str) and value and chance.random() < 0.5:
        written = value.encode("utf-8", "replace")
        found = bytearray(written)
        _mutate_bytes(found, chance, (written,))
        return found.decode("utf-8", "replace")
    return chance.choice(_VALUES)


def _plain(value: Any) -> Any:
    """As TOML can say it."""
    if isinstance(value, Raw) or value is None:
        return 7
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
