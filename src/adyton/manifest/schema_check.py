"""A parsed TOML document against the table of keys: unknown, missing and ill-typed keys are refused by name."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from adyton.errors import MalformedManifest
from adyton.manifest.key_table import KEYS, RETIRED, Key, Kind

MAX_TEXT_CHARS: Final = 65_536
MAX_ITEMS: Final = 1_000_000
MAX_SIZE_BYTES: Final = 1 << 48

_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)([KMG]?)")
_UNIT: Final = {"": 0, "K": 10, "M": 20, "G": 30}


def parse_size(text: str) -> int:
    """Bytes meant by Gramine's size text: a decimal or 0x number with an optional K, M or G (powers of 1024)."""
    match = _SIZE.fullmatch(text)
    size = int(match[1], 0) << _UNIT[match[2]] if match and len(text) <= 24 else MAX_SIZE_BYTES + 1
    if size > MAX_SIZE_BYTES:
        raise MalformedManifest(
            f"{text[:40]!r} is not a size",
            check="size",
            expected='a number with an optional K, M or G, such as "512M", at most 256 TiB',
            seen=text[:40],
        )
    return size


def format_size(size_bytes: int) -> str:
    """The shortest exact size text of so many bytes."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)


class _Node:
    """One table of the schema: its key (where it is one) and the tables and keys below it."""

    __slots__ = ("children", "key")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.key: Key | None = None


def _segments(name: str) -> list[str]:
    return name.replace("[]", ".[]").split(".")


def _trie() -> _Node:
    root = _Node()
    for key in KEYS:
        node = root
        for segment in _segments(key.name):
            node = node.children.setdefault(segment, _Node())
        node.key = key
    return root


_ROOT: Final = _trie()
_MATCH: Final = {
    Kind.STRING: str,
    Kind.BOOL: bool,
    Kind.INTEGER: int,
    Kind.SIZE: str,
    Kind.STRINGS: list,
    Kind.TABLES: list,
    Kind.TABLE: dict,
    Kind.TRUSTED: list,
}


_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def _shown(value: object) -> str:
    """A value cut to 160 characters, however deep it nests."""
    return _REPR.repr(value)[:160]


def refuse(name: str, message: str, *, expected: str, seen: object, remedy: str | None = None) -> MalformedManifest:
    """The refusal of one key's value, by the key's name. What was seen is cut to 160 characters."""
    return MalformedManifest(
        f"{name}: {message}", check=f"manifest key {name}", expected=expected, seen=_shown(seen), remedy=remedy
    )


def _type_name(value: object) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a float", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


def nearest(name: str, among: Iterator[str] | None = None) -> str | None:
    """The known key that `name` most likely means, if any is near."""
    known = list(among) if among is not None else [key.name for key in KEYS]
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if found:
        return found[0]
    last = name.rpartition(".")[2]
    by_last = {key.rpartition(".")[2].strip("[]"): key for key in known}
    found = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.75)
    return by_last[found[0]] if found else None


def _unknown(name: str, seen: object) -> MalformedManifest:
    name = name[:256]
    pattern = re.sub(r"\[\d+\]", "[]", name)
    for retired, remedy in RETIRED.items():
        if pattern == retired or pattern.startswith(retired + "."):
            return MalformedManifest(
                f"{name} is a key of an older Gramine release",
                check=f"manifest key {name}",
                expected="a key that today's manifests know",
                seen=_shown(seen),
                remedy=remedy,
            )
    guess = nearest(pattern)
    return MalformedManifest(
        f"unknown key {name}",
        check=f"manifest key {name}",
        expected=f"a known key; the nearest is {guess}" if guess else "a known key (docs/manifest.md lists them)",
        seen=_shown(seen),
        remedy=f"write {guess}, or take the key out" if guess else "take the key out",
    )


def check_document(document: Mapping[str, Any]) -> None:
    """Refuse, by its name, the first key of a parsed TOML document that is unknown, missing, or of a wrong type."""
    _check_table(_ROOT, document, "")


def _check_table(node: _Node, table: Mapping[str, Any], prefix: str) -> None:
    for name, value in table.items():
        full = f"{prefix}.{name}" if prefix else name
        child = node.children.get(name) if name not in ("*", "[]") else None
        if child is None:
            child = node.children.get("*")
            if child is None:
                raise _unknown(full, value)
            if not name or len(name) > 256 or not name.isprintable():
                raise refuse(full, "not a name", expected="1 to 256 printable characters", seen=name)
        if child.key is None:
            if not isinstance(value, dict):
                guess = f"a table of {full}.… keys"
                raise refuse(full, f"must be a table, is {_type_name(value)}", expected=guess, seen=value)
            _check_table(child, value, full)
        else:
            _check_value(child, child.key, value, full)
    for name, child in node.children.items():
        if name in table or name in ("*", "[]"):
            continue
        full = f"{prefix}.{name}" if prefix else name
        if child.key is None:
            _check_table(child, {}, full)
        elif child.key.required:
            raise MalformedManifest(
                f"{full} is missing", check=f"manifest key {full}", expected=child.key.meaning, seen="nothing"
            )


def _check_value(node: _Node, key: Key, value: Any, full: str) -> None:
    if key.kind is Kind.ENVIRONMENT:
        _check_environment(value, full)
        return
    if key.kind is Kind.ENTRYPOINT:
        if isinstance(value, dict):
            _check_table(node, value, full)
            return
        if not isinstance(value, str):
            raise refuse(full, f"must be of type {key.kind}, is {_type_name(value)}", expected=key.kind, seen=value)
        return
    wanted = _MATCH[key.kind]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise refuse(full, f"must be of type {key.kind}, is {_type_name(value)}", expected=key.kind, seen=value)
    if isinstance(value, str):
        _check_text(key, value, full)
    elif isinstance(value, list):
        _check_list(node, key, value, full)
    elif isinstance(value, int) and not key.least <= value <= key.most:
        raise refuse(full, "out of range", expected=f"{key.least} to {key.most}", seen=value)


def _check_text(key: Key, value: str, full: str) -> None:
    if len(value) > MAX_TEXT_CHARS and key.name != "adyton.files":
        raise refuse(full, "too long", expected=f"at most {MAX_TEXT_CHARS} characters", seen=len(value))
    if "\0" in value:
        raise refuse(full, "holds a NUL character", expected="text without NUL", seen=value)
    if key.choices and value not in key.choices:
        guess = difflib.get_close_matches(value, key.choices, n=1)
        remedy = "Intel ended EPID attestation; write dcap" if value == "epid" else None
        raise refuse(
            full,
            "not one of its values",
            expected=" or ".join(key.choices),
            seen=value,
            remedy=remedy or (f"write {guess[0]}" if guess else None),
        )
    if key.kind is Kind.SIZE:
        parse_size(value)


def _check_list(node: _Node, key: Key, value: list[Any], full: str) -> None:
    if len(value) > MAX_ITEMS:
        raise refuse(full, "too many", expected=f"at most {MAX_ITEMS} items", seen=len(value))
    if key.kind is Kind.STRINGS:
        for position, item in enumerate(value):
            if not isinstance(item, str):
                where = f"{full}[{position}]"
                raise refuse(where, f"must be a string, is {_type_name(item)}", expected="a string", seen=item)
            _check_text(key, item, f"{full}[{position}]")
    elif key.kind is Kind.TABLES:
        below = node.children.get("[]")
        for position, item in enumerate(value):
            where = f"{full}[{position}]"
            if not isinstance(item, dict):
                raise refuse(where, f"must be a table, is {_type_name(item)}", expected="a table", seen=item)
            if below is not None:
                _check_table(below, item, where)


def _check_environment(value: Any, full: str) -> None:
    if isinstance(value, str):
        text = value
    elif isinstance(value, dict):
        for name in value:
            if name not in ("value", "passthrough"):
                guess = nearest(name, iter(("value", "passthrough")))
                raise refuse(f"{full}.{name}", "unknown key", expected=guess or "value or passthrough", seen=value)
        if len(value) != 1:
            raise refuse(full, "must have either value or passthrough", expected="exactly one of the two", seen=value)
        if "passthrough" in value:
            if value["passthrough"] is not True:
                raise refuse(
                    full,
                    "passthrough can only be true",
                    expected="passthrough = true",
                    seen=value,
                    remedy="leave the variable out: nothing is passed through by default",
                )
            return
        text = value["value"]
        if not isinstance(text, str):
            raise refuse(full, f"value must be a string, is {_type_name(text)}", expected="a string", seen=text)
    else:
        raise refuse(full, f"must be a string or a table, is {_type_name(value)}", expected="a string", seen=value)
    if "\0" in text or len(text) > MAX_TEXT_CHARS:
        raise refuse(full, "not a value of the environment", expected="text without NUL, 64 Ki at most", seen=text)
