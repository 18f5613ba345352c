"""Reading the plain data of a policy: types, lengths and names, each refused by the line it stands in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from adyton.attest.policy.bits import BitRule
from adyton.errors import UsageError

MAX_ENTRIES: Final = 4096
MAX_TEXT: Final = 1024

Plain = Mapping[str, object]
Reader = Callable[[str, object], object]


def wrong(name: str, expected: str, seen: object) -> UsageError:
    """The refusal of a line of a policy."""
    return UsageError(
        f"the policy's {name} is wrong: expected {expected}, seen {str(seen)[:160]}",
        check=f"policy: {name}",
        expected=expected,
        seen=str(seen)[:160],
        remedy="see docs/attestation.md, section Policy, and docs/policy.md",
    )


def listed(name: str, value: object) -> list[object]:
    """A list of at most MAX_ENTRIES entries."""
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise wrong(name, f"a list of at most {MAX_ENTRIES} entries", value)
    return value


def text_of(name: str, value: object, limit: int = MAX_TEXT, *, one_line: bool = True) -> str:
    """A text that is not empty. One line, unless said otherwise: a verdict shows it, and must keep its own lines."""
    if not isinstance(value, str) or not value or len(value) > limit or (one_line and not value.isprintable()):
        what = "one line of" if one_line else "a text of"
        raise wrong(name, f"{what} at most {limit} characters", value)
    return value


def whole(name: str, value: object, limit: int = 1 << 32) -> int:
    """A whole number from 0 to `limit`."""
    if type(value) is not int or not 0 <= value <= limit:
        raise wrong(name, f"a whole number from 0 to {limit}", value)
    return value


def mask(name: str, value: object) -> int:
    """A mask of 64 bits. TOML's numbers have 63, so hex as a text is read too."""
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]{1,16}", value, re.ASCII) is not None:
        return int(value, 16)
    return whole(name, value, (1 << 64) - 1)


def flag(name: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def only(name: str, value: object, allowed: Iterable[str]) -> Plain:
    """A table without other names than these."""
    if not isinstance(value, Mapping):
        raise wrong(name, "a table", value)
    unknown = sorted(str(key) for key in set(value) - set(allowed))
    if unknown:
        raise wrong(name, "only " + ", ".join(sorted(allowed)), ", ".join(unknown))
    return value


def by_name(name: str, value: object, readers: Mapping[str, Reader]) -> dict[str, object]:
    """A table whose every name has a reader of its own."""
    table = only(name, value, readers)
    return {key: readers[key](f"{name}.{key}", item) for key, item in table.items()}


def hexes(size: int) -> Callable[[str, object], frozenset[bytes]]:
    """A reader of a list of byte strings in hex."""

    def read(name: str, value: object) -> frozenset[bytes]:
        found = set()
        for item in listed(name, value):
            if not isinstance(item, str) or re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", item, re.ASCII) is None:
                raise wrong(name, f"{size} bytes in hex each", item)
            found.add(bytes.fromhex(item))
        return frozenset(found)

    return read


def bit_rule(names: Mapping[str, int]) -> Callable[[str, object], BitRule]:
    """A reader of `{require = […], forbid = […]}` over these names of bits."""

    def chosen(name: str, value: object) -> frozenset[str]:
        found = [text_of(name, item) for item in listed(name, value)]
        for item in found:
            if item not in names:
                raise wrong(name, "names of bits: " + ", ".join(sorted(names)), item)
        return frozenset(found)

    def read(name: str, value: object) -> BitRule:
        table = only(name, value, ("require", "forbid"))
        require, forbid = (chosen(f"{name}.{part}", table.get(part, [])) for part in ("require", "forbid"))
        both = sorted(require & forbid)
        if both:
            raise wrong(name, "a bit that is either required or forbidden", f"{both[0]} in both")
        return BitRule(require=require, forbid=forbid)

    return read
