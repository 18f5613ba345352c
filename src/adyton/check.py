"""One check: its name, the expected and the seen value, whether it held, and the remedy."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import NamedTuple


def text(value: object) -> str:
    """A value as text for people: bytes in hex, times in UTC, collections separated by commas."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (tuple, list)):
        return ", ".join(text(item) for item in value) or "none"
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(text(item) for item in value)) or "none"
    return str(value)


class Check(NamedTuple):
    """One check and its outcome. `expected` and `seen` are None where they do not apply."""

    name: str
    expected: object
    seen: object
    ok: bool
    remedy: str | None = None

    def to_dict(self) -> dict[str, str | bool]:
        """As JSON: name, expected, seen, ok, and the remedy where it failed."""
        found: dict[str, str | bool] = {
            "name": self.name,
            "expected": "" if self.expected is None else text(self.expected),
            "seen": "" if self.seen is None else text(self.seen),
            "ok": self.ok,
        }
        if self.remedy is not None and not self.ok:
            found["remedy"] = self.remedy
        return found
