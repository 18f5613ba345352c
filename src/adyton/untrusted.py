"""Parse untrusted TOML and JSON into plain values, in processor time that is linear in the length of the text.

Every document from others is parsed here: manifests, policies, collateral, exports, checkpoints. The standard parsers
are correct, but they have no limits on time, depth or numbers:

* tomllib needs n² steps for a key of n dotted parts, and for n keys below a header of n parts,
* a document that is nested too deep makes later code fail with RecursionError,
* each digit of a number takes a hundred bytes while it is read,
* an integer of 5,000 digits cannot be shown in a message, and a lone surrogate cannot be encoded,
* of two equal names in a JSON object the last one wins.

So a text is checked once before it is parsed (`_check_shape`, without backtracking), and the values once after
(`_check_values`, without recursion). `tests/unit/test_untrusted.py` measures the worst cases.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any, Final, NoReturn

from adyton.errors import Error, MalformedManifest

MAX_TEXT_BYTES: Final = 32 << 20
MAX_DEPTH: Final = 32
"""Maximum depth of nested tables and lists. Also the most parts of one dotted key."""
MAX_PATH_CHARS: Final = 1024
"""The most characters of all names from the document's top down to one value."""
MAX_TOKENS: Final = 2_000_000
"""The most signs (brackets, dots, commas, strings, comments, lines) in a TOML text: two to five seconds of tomllib.

The n-th dot of a key counts n times: each dot makes a table, and tomllib walks all of them again for the next part.
"""
MAX_BARE_CHARS: Final = 4096
"""The most characters between two signs outside strings and comments: bare keys, numbers, dates, spaces."""
MAX_INTEGER: Final = 1 << 64
_MAX_DIGITS: Final = 20

_SIGN: Final = re.compile(r"\"\"\"|'''|[\"'#\[\]{}.=,\n]")
_END: Final = {
    '"""': re.compile(r"\\.|(\"{3,5})", re.DOTALL),
    "'''": re.compile(r"('{3,5})"),
    '"': re.compile(r"\\.|([\"\n])", re.DOTALL),
    "'": re.compile(r"(['\n])"),
    "#": re.compile(r"(\n)"),
}
"""Matches the end of a string or comment in group 1. Any other match is an escape inside it."""
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _Refused(ValueError):
    """A fault in a document: check, expected, seen. The caller's class of error is made from it."""

    def __init__(self, check: str, expected: str, seen: str) -> None:
        super().__init__(f"{check}: expected {expected}, found {seen}")
        self.parts = check, expected, seen


def parse_toml(
    text: str | bytes,
    *,
    what: str,
    refuse: type[Error] = MalformedManifest,
    limit_bytes: int = MAX_TEXT_BYTES,
    max_depth: int = MAX_DEPTH,
) -> dict[str, Any]:
    """Parse TOML 1.0. Raises `refuse` (MalformedManifest) for everything else, naming `what`.

    Integers have 64 bits, floats are finite, tables and lists stand at most `max_depth` deep, and no name is longer
    than MAX_PATH_CHARS.
    """
    try:
        decoded = _decode(text, limit_bytes)
        _check_shape(decoded, max_depth)
        found = tomllib.loads(decoded)
        _check_values(found, max_depth)
    except _Refused as error:
        raise _refusal(refuse, what, error) from None
    except (ValueError, RecursionError) as error:
        message = str(error)[:300]
        raise refuse(
            f"the {what} is not TOML: {message}",
            check="TOML syntax",
            expected="TOML 1.0",
            seen=_line_of(decoded, message),
        ) from None
    return found


def parse_json(
    text: str | bytes,
    *,
    what: str,
    refuse: type[Error] = MalformedManifest,
    limit_bytes: int = MAX_TEXT_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """Parse one JSON value (RFC 8259) in UTF-8. Raises `refuse` for everything else, naming `what`.

    No name stands twice in an object, integers have at most 20 digits, floats are finite, and texts are Unicode.
    """
    try:
        decoded = _decode(text, limit_bytes)
        found = _JSON.decode(decoded)
        _check_values(found, max_depth)
    except _Refused as error:
        raise _refusal(refuse, what, error) from None
    except (ValueError, RecursionError) as error:
        raise refuse(
            f"the {what} is not JSON: {str(error)[:160] or type(error).__name__}",
            check="JSON syntax",
            expected="one JSON value in UTF-8",
            seen=f"{len(text)} bytes of something else",
        ) from None
    return found


def parse_json_object(
    text: str | bytes,
    *,
    what: str,
    refuse: type[Error] = MalformedManifest,
    limit_bytes: int = MAX_TEXT_BYTES,
    max_depth: int = MAX_DEPTH,
) -> dict[str, Any]:
    """`parse_json` for a document that is one object."""
    found = parse_json(text, what=what, refuse=refuse, limit_bytes=limit_bytes, max_depth=max_depth)
    if not isinstance(found, dict):
        raise _refusal(refuse, what, _Refused("JSON value", "an object", type(found).__name__))
    return found


def _refusal(refuse: type[Error], what: str, error: _Refused) -> Error:
    check, expected, seen = error.parts
    return refuse(
        f"the {what} is refused: {check}: expected {expected}, found {seen}", check=check, expected=expected, seen=seen
    )


def _decode(text: str | bytes, limit_bytes: int) -> str:
    if len(text) > limit_bytes:
        raise _Refused("size", f"at most {limit_bytes} bytes", f"{len(text)}")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused("text encoding", "UTF-8", f"byte {error.start}") from None


def _check_shape(text: str, max_depth: int) -> None:
    """Refuse TOML for which tomllib would need more than linear time.

    The signs are those of the TOML grammar, so this function and tomllib agree up to tomllib's first error.
    """
    depth = dots = count = at = 0
    while (match := _SIGN.search(text, at)) is not None:
        if match.start() - at > MAX_BARE_CHARS:
            break
        sign, at = match[0], match.end()
        count += 1
        if sign in _END:
            at, escapes = _end_of(sign, text, at)
            count += escapes
        elif sign == ".":
            dots += 1
            count += dots - 1
            if dots >= max_depth:
                raise _Refused("parts of a key", f"at most {max_depth}", _line_at(text, at))
        elif sign in "[{":
            dots = 0
            depth += 1
            if depth > max_depth:
                raise _Refused("depth of tables and lists", f"at most {max_depth}", _line_at(text, at))
        elif sign in "]}":
            depth -= 1
        else:
            dots = 0
        if count > MAX_TOKENS:
            raise _Refused("signs in the text", f"at most {MAX_TOKENS}", _line_at(text, at))
    if (match.start() if match else len(text)) - at > MAX_BARE_CHARS:
        raise _Refused("length of a bare key or number", f"at most {MAX_BARE_CHARS} characters", _line_at(text, at))


def _end_of(sign: str, text: str, at: int) -> tuple[int, int]:
    """The end of the string or comment that began with `sign`, and the number of escapes in it.

    The newline is not part of a comment. A string without an end goes to the end of the text: an error for tomllib.
    """
    escapes = 0
    for match in _END[sign].finditer(text, at):
        if match[1] is not None:
            return match.start() if match[1] == "\n" else match.end(), escapes
        escapes += 1
    return len(text), escapes


def _line_at(text: str, at: int) -> str:
    return f"more, in line {text.count(chr(10), 0, at) + 1}"


def _line_of(text: str, message: str) -> str | None:
    where = re.search(r"at line (\d+)", message)
    lines = text.split("\n", int(where[1])) if where else []
    return repr(lines[int(where[1]) - 1][:160]) if where and len(lines) >= int(where[1]) else None


def _check_values(document: object, max_depth: int) -> None:
    """Refuse values nested too deep, names that are too long, and values that cannot be shown or encoded.

    No recursion.
    """
    left: list[tuple[object, int, int]] = [(document, 0, 0)]
    while left:
        value, depth, path_chars = left.pop()
        if isinstance(value, dict | list):
            if depth == max_depth:
                raise _Refused("depth of tables and lists", f"at most {max_depth}", "more")
            if isinstance(value, list):
                left += [(inner, depth + 1, path_chars) for inner in value]
                continue
            for name, inner in value.items():
                chars = path_chars + len(name)
                if chars > MAX_PATH_CHARS:
                    raise _Refused("length of a name", f"at most {MAX_PATH_CHARS} characters", f"{chars}")
                _check_text(name)
                left.append((inner, depth + 1, chars))
        elif isinstance(value, str):
            _check_text(value)
        elif isinstance(value, int):
            if not -MAX_INTEGER < value < MAX_INTEGER:
                raise _Refused("a number", "an integer of 64 bits", f"one of {value.bit_length()} bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise _Refused("a number", "a finite one", str(value))


def _check_text(text: str) -> None:
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise _Refused("a text", "Unicode", "half of a surrogate pair")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("names of an object", "each name once", "a name twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise _Refused("a number", "a finite one", text)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _Refused("a number", f"at most {_MAX_DIGITS} digits", f"{len(text)}")
    return int(text)


_JSON: Final = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer)
